"""Workers of a mediator that are killed at the worst moments, under strict servers.

    python -m tests.integrations.mediator.faults [rabbitmq] [redis]

Two workers of four slots make requests of two services, whose limits strict servers enforce; a third server
is called back; responses are stored over S3. One worker is killed with SIGKILL while answers it has paid for
are not stored yet: storage stands still meanwhile, so that there are some. Then the worker is killed that
lets out what is parked, while something is due. Each is started anew, as a service manager would.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headgate.parking import lot_of
from headgate.stores.base import open_store
from tests.integrations.mediator.place import MODULE, ROOT, Place, wait_until
from tests.integrations.mediator.receiver import Receiver
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server
from tests.strict.scenarios import Server, strict_server

SLOTS = 4
SECONDS = 28
"""What the services take at full speed."""
RATES = {"slow": 4, "fast": 8}
"""Calls a second: what four slots can make, so that a worker that starts anew is not missed meanwhile."""
BURST = 8
LATENCY_SECONDS = 0.15
STILL_SECONDS = 0.4
"""So long storage stands still, at most, before the worker is killed."""


@dataclass
class Row:
    """What came of a run.

    Attributes:
        requests, stored, called_back: how many there were; of how many a response is stored; of how many
            somebody was called back, at least once.
        failed: responses that are failures.
        refused: by the servers.
        repeated: calls accepted for a request that another was accepted for.
        in_flight: what the killed workers could have in flight.
        utilisation: by service: the ideal time of its calls, but for those that went with a worker, over the
            time they took.
        stall_ms: how long a server stood still at most.
        seconds: from the first submission until all were called back.
    """

    broker: str
    requests: int
    stored: int
    called_back: int
    failed: int
    refused: int
    repeated: int
    in_flight: int
    utilisation: dict[str, float]
    stall_ms: float
    seconds: float

    def __str__(self) -> str:
        used = ", ".join(f"{name} {part:.1%}" for name, part in self.utilisation.items())
        return (
            f"{self.broker}: {self.requests} requests, {self.stored} responses stored ({self.failed} of them "
            f"failures), {self.called_back} called back, {self.refused} refused, {self.repeated} paid for "
            f"again (in flight at the kills: at most {self.in_flight}), used {used}; {self.seconds:.0f} s, "
            f"servers stood still for {self.stall_ms:.0f} ms at most"
        )


class Crew:
    """Workers by name, each a process group of its own."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        command = [sys.executable, "-m", "celery", "-A", MODULE, "worker", "-c", str(SLOTS), "-l", "INFO"]
        command += ["-n", f"{name}@here", "--without-mingle", "--without-gossip"]
        with (self.place.folder / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.place.folder,
                env={**self.place.environment, "WORKER": name},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        logs = [self.place.folder / f"{name}.log" for name in self.processes]
        wait_until(lambda: all(" ready." in log.read_text(errors="replace") for log in logs))

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)


def run(broker: str, folder: Path, rabbitmq_url: str | None = None) -> Row:
    """One run.

    Args:
        broker: ``redis``, or ``rabbitmq``, which listens at ``rabbitmq_url``.
    """
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        s3 = stack.enter_context(S3Server())
        s3.create_bucket("calls")
        receiver = stack.enter_context(Receiver())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in {**s3.environment, "WORKER": "worker-of-nobody"}.items():
            patch.setenv(name, value)
        servers = {name: stack.enter_context(_server(folder / name, rate)) for name, rate in RATES.items()}
        told = {
            "storage": "s3://calls/here",
            "broker": rabbitmq_url or f"redis+socket://{redis.url.removeprefix('unix://')}",
            "store": redis.url,
            "visibility_timeout_seconds": "20",
            "services": {name: _service(server, RATES[name]) for name, server in servers.items()},
            "callbacks": {"allow": [receiver.url]},
        }
        place = Place(folder, told, {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"})
        stack.callback(place.close)
        crew = Crew(place)
        stack.callback(crew.close)
        for name in ("worker-one", "worker-two"):
            crew.start(name)
        crew.wait_until_ready()

        began = time.monotonic()
        ids = _submit(place, receiver.url)
        _kill_between_call_and_storing(crew, s3, servers)
        _kill_who_lets_out(crew, redis.url)
        wait_until(lambda: len(receiver.called()) == len(ids), 200)
        seconds = time.monotonic() - began
        responses = [place.response(task_id) for task_id in ids]
        reports = {name: server.finish() for name, server in servers.items()}
        told_keys = [report["idempotency_keys"] for report in reports.values()]
        return Row(
            broker=broker,
            requests=len(ids),
            stored=sum(response is not None for response in responses),
            called_back=len(receiver.called()),
            failed=sum(response is not None and not response["ok"] for response in responses),
            refused=sum(report["refused"] for report in reports.values()),
            repeated=sum(report["accepted"] for report in reports.values())
            - sum(keys["distinct"] for keys in told_keys),
            in_flight=2 * SLOTS,
            utilisation={name: _utilisation(server.log(), RATES[name]) for name, server in servers.items()},
            stall_ms=max(report["stalls"]["longest_seconds"] for report in reports.values()) * 1000,
            seconds=seconds,
        )


def _server(folder: Path, rate: int) -> Any:
    folder.mkdir()
    limit = {"meter": "requests", "kind": "bucket", "amount": rate, "burst": BURST}
    config = {"limits": [limit], "count_refused": True, "latency_seconds": LATENCY_SECONDS}
    return strict_server(config, folder)


def _service(server: Server, rate: int) -> dict[str, Any]:
    return {
        "endpoint": server.url,
        "limits": [f"requests={rate}/s:burst={BURST}:start=full"],
        "secret_headers": {"x-client": "${WORKER}"},
        "timeout_seconds": 15,
    }


def _submit(place: Place, receiver: str) -> list[str]:
    """Requests of both services, mixed in the proportion of their rates."""
    ids = []
    for number in range(SECONDS * sum(RATES.values())):
        name = "slow" if number % 3 == 0 else "fast"
        request = {
            "endpoint": f"{name}:/",
            "payload": {"custom_id": str(number)},
            "callback": f"{receiver}/{number}",
        }
        ids.append(place.submit(request, f"{name}-{number}").task_id)
    return ids


def _kill_between_call_and_storing(crew: Crew, s3: S3Server, servers: dict[str, Server]) -> None:
    """Storage stands still; calls go on, and what comes of them is not stored when the worker is killed."""
    wait_until(lambda: servers["fast"].arrivals() >= RATES["fast"] * 5)
    assert s3.pid is not None
    os.kill(s3.pid, signal.SIGSTOP)
    try:
        time.sleep(STILL_SECONDS)
        crew.kill("worker-one")
        crew.start("worker-three")
    finally:
        os.kill(s3.pid, signal.SIGCONT)


def _kill_who_lets_out(crew: Crew, store_url: str) -> None:
    """While parked work is due."""
    store: Any = open_store(store_url)
    try:
        lot = lot_of(store)
        crew.wait_until_ready()
        time.sleep(5)
        seen = lot.peek("fast")
        assert seen.waiting, "nothing is parked"
        pid = int(seen.releaser.split(":")[1])
        [name] = [name for name, process in crew.processes.items() if process.pid == pid]
        crew.kill(name)
        crew.start("worker-four")
    finally:
        store.close()


def _utilisation(log: list[dict[str, Any]], rate: int) -> float:
    """Of the bucket, from full: without the last calls, which may have had to wait for the broker."""
    arrived: list[int] = sorted(entry["arrived_ns"] for entry in log)[: -2 * SLOTS]
    return (len(arrived) - BURST) / rate / ((arrived[-1] - arrived[0]) / 1e9)


def main() -> None:
    """Print a row for each broker."""
    for broker in sys.argv[1:] or ["rabbitmq", "redis"]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(RabbitMQServer()).url if broker == "rabbitmq" else None
            print(run(broker, folder, url), flush=True)


if __name__ == "__main__":
    main()
