"""docs/migrating-from-celery-limits.md: its programs run, also side by side, and so do its commands."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from celery import Celery
from celery.result import AsyncResult

from headgate import Limiter
from headgate.testing.simulator import StartServer
from tests.integrations.pages import ROOT, files_of, run, started
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.slow

PAGE = "migrating-from-celery-limits.md"
FILES = files_of(PAGE)
FORMS = [name.removeprefix("tasks.py, ") for name in FILES if name.startswith("tasks.py, ")]
EAGERLY = "from tasks import app, ask; app.conf.task_always_eager = True; print(ask.delay('Fine?').get())"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


@dataclass
class Place:
    """Where programs of the page run."""

    folder: Path
    env: dict[str, str]

    def form(self, form: str) -> Path:
        """The folder of a program with tasks in this form."""
        folder = self.folder / form.replace(" ", "-")
        if not folder.exists():
            folder.mkdir()
            for name in ("service.py", "decorators.py"):
                (folder / name).write_text(FILES[name])
            (folder / "tasks.py").write_text(FILES[f"tasks.py, {form}"])
        return folder

    def worker(self, form: str) -> AbstractContextManager[Path]:
        """One that runs, with two slots; gives its log."""
        words = "-m celery -A tasks worker -c 2 -l INFO --without-mingle --without-gossip -n".split()
        return started(self.form(form), *words, form.rsplit(maxsplit=1)[-1], env=self.env, ready=" ready.")


@pytest.fixture
def place(redis: RedisServer, tmp_path: Path) -> Place:
    redis.flush()
    return Place(tmp_path, {"REDIS_URL": redis.tcp_url.removesuffix("/0")})


def test_the_page_shows_all_forms() -> None:
    assert FORMS == ["with rate_limit", "with a limiter", "with a decorator", "with fields", "with both"]


@pytest.mark.parametrize("form", FORMS)
def test_each_form_works(place: Place, sim: StartServer, form: str) -> None:
    server = sim("requests=500/min:burst=50", "tokens=200k/min:burst=20k")
    place.env["SERVICE_URL"] = server.url
    assert "choices" in run(place.form(form), "-c", EAGERLY, env=place.env)
    assert server.stats()["accepted"] == 1


def test_old_and_new_workers_on_one_queue(place: Place, sim: StartServer) -> None:
    server = sim("requests=20/s:burst=5", latency="20ms")
    place.env["SERVICE_URL"] = server.url
    base = place.env["REDIS_URL"]
    app = Celery("tasks", broker=f"{base}/0", backend=f"{base}/0")
    limiter = Limiter("requests=500/min:burst=50", key="service", store=f"{base}/1")

    def parked() -> int:
        return limiter.snapshot().parked

    try:
        limiter.pause()
        with place.worker("with a decorator"):
            with place.worker("with a limiter"), place.worker("with both"):
                sent = [app.send_task("tasks.ask", (f"Question {number}",)) for number in range(40)]
                wait_until(lambda: states(sent)["SUCCESS"] + states(sent)["PARKED"] == 40)
                done = states(sent)
                # While nothing may go, only the old worker runs any.
                assert done["SUCCESS"] == server.stats()["accepted"] >= 1
                assert done["PARKED"] == parked() >= 2
            # Back again: the old worker does not see what is parked, and nothing of it is lost.
            limiter.resume()
            late = app.send_task("tasks.ask", ("Alone?",))
            assert late.get(timeout=60)["choices"]
            assert states(sent) == done
            assert parked() == done["PARKED"]
            with place.worker("with a limiter"):
                wait_until(lambda: states(sent)["SUCCESS"] == 40)
        assert server.stats()["accepted"] == 41, "each was done once"
    finally:
        limiter.store.close()  # type: ignore[attr-defined]  # it is a shared one
        app.close()


def test_commands_of_the_change_work_in_their_order(place: Place) -> None:
    text = (ROOT / "docs" / PAGE).read_text("utf-8").partition("## On a fleet")[2]
    told = re.findall(r"`((?:python|headgate set) [^`]+)`", text)
    assert [words.split()[0] for words in told] == ["python", "headgate", "headgate"]
    store = f"{place.env['REDIS_URL']}/1"
    limiter = Limiter("requests=500/min:burst=50", key="service", store=store)
    env = {**place.env, "HEADGATE_STORE": store}
    amounts = []
    try:
        for words in map(shlex.split, told):
            rest = words[1:] if words[0] == "python" else ["-m", *words]
            run(place.form("with a limiter"), *rest, env=env)
            amounts.append(limiter.snapshot().limits[0].amount)
    finally:
        limiter.store.close()  # type: ignore[attr-defined]  # it is a shared one
    assert amounts == [100, 300, 500]


def states(results: list[AsyncResult]) -> Counter[str]:
    return Counter(result.state for result in results)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)
