"""A mediator as it is run: a worker, a broker, a store, storage, an API, and whoever is called back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headgate.errors import ObjectNotFound
from headgate.integrations.celery.mediator.settings import Settings
from headgate.integrations.celery.mediator.submit import Submitted, Submitter
from headgate.integrations.storage import Storage, open_storage

ROOT = Path(__file__).parents[3]
MODULE = "headgate.integrations.celery.mediator"
SECONDS = 60.0


class Place:
    """Where a test runs.

    Attributes:
        environment: that of the worker, which is told everything by it.
    """

    def __init__(self, folder: Path, told: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment}
        for name, value in told.items():
            text = value if isinstance(value, str) else json.dumps(value)
            self.environment[f"HEADGATE_MEDIATOR_{name.upper()}"] = text
        self.settings = Settings.load(environment=self.environment)
        self.submitter = Submitter(self.settings)
        self.storage: Storage = open_storage(self.settings.storage)

    def submit(self, request: Mapping[str, Any], task_id: str | None = None) -> Submitted:
        return self.submitter.submit(request, task_id)

    def send(self, name: str, task_id: object) -> None:
        """A task by its name, as any program sends it."""
        self.submitter.app.send_task(name, args=[task_id])

    def response(self, task_id: str) -> Any:
        return self._json(f"{task_id}.response.json")

    def given_up(self, task_id: str) -> Any:
        return self._json(f"{task_id}.callback.json")

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self.storage.read(name, 1 << 30))
        except ObjectNotFound:
            return None

    def close(self) -> None:
        self.submitter.app.close()


@contextmanager
def worker(place: Place, name: str = "one", *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """``celery worker`` with four slots; its log is in the folder."""
    log = place.folder / f"{name}.log"
    command = [sys.executable, "-m", "celery", "-A", MODULE, "worker", "-c", "4", "-n", f"{name}@here"]
    command += ["-l", "INFO", "--without-mingle", "--without-gossip", *options]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, cwd=place.folder, env=place.environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_until(lambda: _is_ready(process, log))
        yield process
    except BaseException:
        print(log.read_text(errors="replace")[-20_000:])
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_ready(process: subprocess.Popen[bytes], log: Path) -> bool:
    text = log.read_text(errors="replace")
    assert process.poll() is None, text
    return " ready." in text


def wait_until(true: Callable[[], object], seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)
