"""The broker for tests: messages go through it, stay through a restart, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu.connection import Connection

from tests.servers.rabbitmq import ROOT_VARIABLE, RabbitMQServer, find_root
from tests.servers.redis import NoProgram
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

ORPHAN = """
import os, signal
from tests.servers.rabbitmq import RabbitMQServer
with RabbitMQServer() as broker:
    print(*broker.pids, broker.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def queue_of(broker: RabbitMQServer) -> Iterator[Any]:
    """A durable queue, on a connection that tries once."""
    # What is confirmed is on disk.
    options = {"confirm_publish": True}
    made = Connection(broker.url, connect_timeout=5, transport_options=options)  # type: ignore[no-untyped-call]
    with made as connection:
        queue = connection.SimpleQueue("calls", serializer="json")
        yield queue
        queue.close()


def take(queue: Any) -> Any:
    message = queue.get(block=True, timeout=10)
    message.ack()
    return message.payload


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_message_goes_through(rabbitmq: RabbitMQServer) -> None:
    with queue_of(rabbitmq) as queue:
        queue.put({"task": 1})
        assert take(queue) == {"task": 1}


def test_messages_stay_through_kill_and_restart_and_nothing_is_left_behind() -> None:
    with RabbitMQServer() as broker:
        url, pids = broker.url, broker.pids
        with queue_of(broker) as queue:
            queue.put({"task": 1})
        broker.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=5)
        broker.restart()
        assert broker.url == url
        with queue_of(broker) as queue:
            assert take(queue) == {"task": 1}
        pids += broker.pids
    assert len(set(pids)) == 3  # two brokers, one daemon
    assert not any(map(exists, pids))
    assert not broker.folder.exists()


def test_it_ends_with_the_process_that_started_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    *pids, folder = done.stdout.split()
    wait_until(lambda: not any(exists(int(pid)) for pid in pids) and not Path(folder).exists())


def test_a_root_without_a_broker_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(NoProgram, match=ROOT_VARIABLE):
        find_root()
