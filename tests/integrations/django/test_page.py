"""docs/django.md is a project that works: web processes, a worker and a command on one budget."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from headgate import Limiter
from headgate.simulator import SimulatedServer, ThreadedServer
from tests.integrations.pages import files_of, run, started
from tests.servers.processes import free_ports
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.slow

LIMITS = ["requests=500/min:burst=50", "tokens=200k/min:burst=20k:charge=usage"]
KEY = {"OPENAI_API_KEY": "sk-a-key-of-the-page"}
NOWHERE = {**KEY, "REDIS_URL": "redis://127.0.0.1:1"}


@dataclass
class Site:
    """Where the project runs."""

    folder: Path
    url: str
    env: dict[str, str]
    server: ThreadedServer
    limiter: Limiter

    def get(self, path: str, **query: str) -> tuple[int, Any, Any]:
        """Status, fields and JSON."""
        try:
            with urllib.request.urlopen(f"{self.url}/{path}/?{urlencode(query)}", timeout=60) as answer:
                return answer.status, answer.headers, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.headers, json.load(error)

    def shell(self, code: str) -> str:
        return run(self.folder, "manage.py", "shell", "-c", code, env=self.env).strip()


def project(folder: Path) -> Path:
    """What Django makes, and the files of the page; its settings are added to Django's own."""
    run(folder, "-m", "django", "startproject", "mysite", str(folder), env={})
    run(folder, "manage.py", "startapp", "myapp", env={})
    for name, text in files_of("django.md").items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if name == "mysite/settings.py" else ""
        path.write_text(before + text)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = project(tmp_path_factory.mktemp("site"))
    with (folder / "mysite" / "settings.py").open("a") as settings:
        settings.write('CELERY_HEADGATE_QUEUE_SUFFIX = ".due"\n')
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tcp=True))
        server = stack.enter_context(SimulatedServer.in_thread(LIMITS, latency="50ms"))
        base = redis.tcp_url.removesuffix("/0")
        env = {**KEY, "REDIS_URL": base, "OPENAI_BASE_URL": f"{server.url}/v1"}
        [port] = free_ports(1)
        web = ["-m", "gunicorn", "--preload", "-w", "2", "--threads", "4", "-b", f"127.0.0.1:{port}"]
        worker = ["-m", "celery", "-A", "mysite", "worker", "-c", "2", "-l", "INFO"]
        stack.enter_context(started(folder, *web, "mysite.wsgi", env=env, ready="Booting worker"))
        stack.enter_context(started(folder, *worker, env=env, ready=" ready."))
        limiter = Limiter(*LIMITS, key="openai", store=f"{base}/1")
        yield Site(folder, f"http://127.0.0.1:{port}", env, server, limiter)
        limiter.store.close()  # type: ignore[attr-defined]  # it is a shared one


def test_web_processes_workers_and_commands_draw_on_one_budget(site: Site) -> None:
    before = site.server.stats()
    (site.folder / "lines.txt").write_text("".join(f"Line {number}.\n" for number in range(25)))
    with ThreadPoolExecutor(9) as pool:
        command = pool.submit(run, site.folder, "manage.py", "summarise", "lines.txt", env=site.env)
        tasks = [pool.submit(site.get, "start", text=f"Task {number}.") for number in range(25)]
        views = [
            pool.submit(site.get, ("summary", "summary-async")[number % 2], text=f"View {number}.")
            for number in range(16)
        ]
        ids = [task.result()[2]["id"] for task in tasks]
        # Some have to wait for longer than the view says, and are told so.
        statuses = [view.result()[0] for view in views]
        assert len(command.result().splitlines()) == 25
    assert set(statuses) <= {200, 503}
    assert 200 in statuses
    wait_until(lambda: all(site.get(f"state/{id}")[2]["state"] == "SUCCESS" for id in ids))
    after = site.server.stats()
    assert after["refused"] == 0
    assert after["accepted"] - before["accepted"] == 25 + 25 + statuses.count(200)


@pytest.mark.parametrize("path", ["summary", "summary-async"])
def test_a_view_that_would_wait_for_too_long_says_when_to_come_again(site: Site, path: str) -> None:
    site.limiter.pause()
    try:
        status, fields, said = site.get(path, text="Now?")
    finally:
        site.limiter.resume()
    assert (status, said) == (503, {"error": "busy"})
    assert int(fields["Retry-After"]) >= 1


def test_a_task_that_may_not_run_is_parked_meanwhile(site: Site) -> None:
    site.limiter.pause()
    try:
        id = site.get("start", text="Later.")[2]["id"]
        wait_until(lambda: site.get(f"state/{id}")[2] == {"state": "PARKED", "ready": False})
    finally:
        site.limiter.resume()
    wait_until(lambda: site.get(f"state/{id}")[2] == {"state": "SUCCESS", "ready": True})


def test_the_setting_for_due_queues_is_celerys_own_way(site: Site) -> None:
    code = "from mysite.celery import app; print(app.control.inspect().active_queues())"
    assert "'name': 'celery.due'" in site.shell(code)


def test_the_projects_own_tests_need_nothing_else(tmp_path: Path) -> None:
    project(tmp_path)
    run(tmp_path, "manage.py", "test", "--settings", "mysite.settings_test", env=NOWHERE)


def test_importing_the_project_connects_to_nothing(tmp_path: Path) -> None:
    project(tmp_path)
    assert "no issues" in run(tmp_path, "manage.py", "check", env=NOWHERE)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)
