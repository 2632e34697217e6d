"""What servers that tests start have in common: a process that does not outlive them, ports, a folder."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.servers.redis import NotStarted

STOP_SECONDS = 10.0

# Below what kernels hand out to outgoing connections: one that is tried again and again while the server is
# down could otherwise get the server's port for itself, even be connected to itself.
_PORTS = range(20_000, 32_000)

# Reads until the process that started it is no more, and then does what that can no longer do.
_GUARD = 'read -r _; kill -9 "$1"; rm -rf "$2"'


class Process:
    """A program that ends with the process that started it, however that ends; its folder goes, too.

    Args:
        command: The program and its arguments.
        folder: What is removed if this process ends without having stopped it.
        log: The file to which it writes.
        env: Its environment; None for this process's own.
    """

    def __init__(
        self, command: Sequence[str], *, folder: Path, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        self._name = command[0]
        # A process group of its own: Ctrl-C in a terminal is for the tests, which then stop the server.
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                cwd=folder,
                process_group=0,
            )
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "guard", str(self._process.pid), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )

    @property
    def pid(self) -> int | None:
        """Its number; None once it has ended."""
        return None if _has_ended(self._process) else self._process.pid

    def wait_until(self, answers: Callable[[], bool], seconds: float) -> None:
        """Until it answers.

        Raises:
            NotStarted: It ended, or did not answer in time.
        """
        deadline = time.monotonic() + seconds
        while not answers():
            if self.pid is None or time.monotonic() > deadline:
                last = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
                raise NotStarted(f"{self._name} does not answer. The end of its log:\n{last}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if it does not end within ``STOP_SECONDS``."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        self._process.send_signal(number)  # nothing happens to one that has ended
        try:
            # Not waited for yet: until the guard is gone, the process's number must not be another's.
            _wait_without_reaping(self._process, STOP_SECONDS)
        finally:
            self._guard.kill()
            self._guard.communicate()
            self._process.kill()
            self._process.wait()


def _wait_without_reaping(process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not _has_ended(process):
        time.sleep(0.005)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def new_folder() -> Path:
    """A new folder, for this user alone."""
    return Path(tempfile.mkdtemp(prefix="headgate-"))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens.

    Raises:
        NotStarted: There are none.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, k=100):
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
        if len(found) == count:
            return found
    raise NotStarted("a hundred ports were tried, and too few are free")
