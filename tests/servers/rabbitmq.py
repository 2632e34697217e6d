"""A private RabbitMQ broker: tests start it, kill it, restart it, and stop it.

    with RabbitMQServer() as broker:
        connection = kombu.Connection(broker.url)

The broker and its Erlang are Debian's packages, with the versions of the machine's own release. They are
fetched and verified by ``apt-get`` and unpacked into a folder of the virtual environment, once, so nothing of
the machine changes, no system service is started, and nobody has to be root.

Erlang nodes find each other through a daemon, ``epmd``, that the first node of a machine leaves behind. Here
each broker has one of its own, on a port of its own, which ends with it.

It knows no AMQP client: what tests clients must not depend on one.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.processes import Process, free_ports, new_folder
from tests.servers.redis import NoProgram, NotStarted

START_SECONDS = 60.0
ANSWER_SECONDS = 2.0
APT_SECONDS = 300.0

# Names a folder that has usr/lib/erlang and usr/lib/rabbitmq: ``/`` where the machine's own are to be used.
ROOT_VARIABLE = "HEADGATE_RABBITMQ_ROOT"

# Of all that rabbitmq-server depends on, what a broker needs to run: the rest are tools of an installed
# system. Libraries are taken along, since a machine whose Python was built elsewhere may lack them.
_NEEDED = re.compile(r"rabbitmq-server|erlang-.+|libssl.+|libtinfo.+|libstdc\+\+6|libgcc-s1|zlib1g.*")

# What opens every AMQP 0-9-1 connection: the client's header, and the type of frame that answers it.
_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class RabbitMQServer:
    """A broker for the length of a ``with`` block; ``guest`` may do everything.

    It keeps durable queues and persistent messages on disk for the next ``restart``, and listens on 127.0.0.1
    alone.

    Args:
        say: Told what goes on when there is no broker on this machine yet and it has to be fetched.

    Raises:
        NoProgram: There is none to run, and none could be fetched.
        NotStarted: It does not run, or does not answer within ``START_SECONDS``.
    """

    def __init__(self, *, say: Callable[[str], None] = _tell) -> None:
        self._say = say
        self._epmd: Process | None = None
        self._broker: Process | None = None

    def __enter__(self) -> Self:
        root = find_root(self._say)
        for is_last in (False, False, True):
            try:
                self._begin(root)
            except NotStarted as error:
                if is_last or "eaddrinuse" not in str(error):  # a port that was free may be so no longer
                    raise
            else:
                break
        return self

    def _begin(self, root: Path) -> None:
        self._port, self._node_port, self._epmd_port = free_ports(3)
        self._folder = new_folder()
        try:
            self._prepare(root)
            self._start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens: ``amqp://guest:guest@127.0.0.1:…//``. It stays the same after a restart."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    @property
    def folder(self) -> Path:
        """Its folder, which goes with it."""
        return self._folder

    @property
    def log(self) -> str:
        """All that it and those before it wrote down."""
        return self._log.read_text(errors="replace")

    @property
    def pids(self) -> list[int]:
        """The processes that run: the broker and the daemon of its own."""
        return [process.pid for process in (self._broker, self._epmd) if process and process.pid]

    def kill(self) -> None:
        """SIGKILL: what it did not write is lost, and connections end in the middle."""
        if self._broker is not None:
            self._broker.kill()
            self._broker = None

    def stop(self) -> None:
        """SIGTERM, as on an orderly shutdown."""
        if self._broker is not None:
            self._broker.stop()
            self._broker = None

    def restart(self) -> None:
        """Stop it, if that has not happened yet, and start it at the same address with what it kept."""
        self.stop()
        self._start()

    def close(self) -> None:
        """End it and all that it started; its folder goes."""
        self.kill()  # what is thrown away need not be put in order
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None
        shutil.rmtree(self._folder)

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _prepare(self, root: Path) -> None:
        erlang = root / "usr/lib/erlang"
        home = _one(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"), "the broker's home")
        programs = _one(erlang.glob("erts-*/bin"), "Erlang's programs")
        (self._folder / "enabled_plugins").write_text("[].\n")
        # Erlang looks for each of a thousand modules in every folder it is told of: without the plug-ins,
        # which nobody has enabled, the broker starts in half the time.
        libraries = self._folder / "lib"
        libraries.mkdir()
        for path in (home / "plugins").iterdir():
            if path.name.startswith("rabbitmq_prelaunch") or not path.name.startswith("rabbitmq_"):
                (libraries / path.name).symlink_to(path)
        (self._folder / "rabbitmq.conf").write_text("log.console.level = warning\n")
        cookie = self._folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)  # Erlang takes no cookie that others could read

        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))
        }
        shared = [str(path) for path in (*root.glob("usr/lib/*-linux-*"), *root.glob("lib/*-linux-*"))]
        if root == Path("/"):
            shared = []
        # What the shell scripts around both set; in those the paths are an installed system's.
        self._env = kept | {
            "ROOTDIR": str(erlang),
            "BINDIR": str(programs),
            "EMU": "beam",
            "PROGNAME": "erl",
            "PATH": f"{erlang / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": ":".join(filter(None, [*shared, os.environ.get("LD_LIBRARY_PATH")])),
            "HOME": str(self._folder),
            "SYS_PREFIX": "",
            "ERL_LIBS": str(libraries),
            # As many as it opens at once, at most: without it Erlang sizes its tables by the process's limit.
            "ERL_MAX_PORTS": "4096",
            "ERL_CRASH_DUMP": str(self._folder / "crash"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_HOME": str(home),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "no-such-file"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_PLUGINS_DIR": str(libraries),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(self._folder),  # a log of upgrades is kept in any case
            "RABBITMQ_NODENAME": f"headgate-{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._node_port),
        }
        self._epmd_command = [str(programs / "epmd"), "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._command = [str(programs / "erlexec"), "-noinput", "-s", "rabbit", "boot", "-boot", "start_sasl"]
        # Two threads that do not spin while idle: tests share their machine.
        self._command += "+W w +B i +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none".split()
        self._command += "-syslog logger [] -syslog syslog_error_logger false".split()
        self._command += "-kernel prevent_overlapping_partitions false".split()
        self._command += "-kernel inet_dist_use_interface {127,0,0,1}".split()

    def _start(self) -> None:
        # A broker that finds no daemon starts one that outlives it: it must be there first.
        if self._epmd is None:
            self._epmd = self._run(self._epmd_command)
            self._epmd.wait_until(lambda: _listens(self._epmd_port), ANSWER_SECONDS)
        self._broker = self._run(self._command)
        self._broker.wait_until(self._answers, START_SECONDS)

    def _run(self, command: list[str]) -> Process:
        return Process(command, folder=self._folder, log=self._log, env=self._env)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), ANSWER_SECONDS) as connection:
                connection.sendall(_HEADER)
                return connection.recv(1) == _METHOD_FRAME
        except OSError:
            return False  # it does not listen yet


def find_root(say: Callable[[str], None] = _tell) -> Path:
    """Where the broker and its Erlang are: in what HEADGATE_RABBITMQ_ROOT names, else in what was unpacked.

    If nothing was, that is done now.

    Raises:
        NoProgram: There is none, and none could be fetched.
    """
    if told := os.environ.get(ROOT_VARIABLE):
        if not (Path(told) / "usr/lib/rabbitmq").is_dir():
            raise NoProgram(f"{ROOT_VARIABLE} is {told!r}, in which there is no usr/lib/rabbitmq")
        return Path(told)
    root = Path(sys.prefix) / "servers" / "rabbitmq"
    if root.is_dir():
        return root
    root.parent.mkdir(exist_ok=True)
    with (root.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others may be about to fetch it, too
        if not root.is_dir():
            _fetch(root, say)
    return root


def _fetch(root: Path, say: Callable[[str], None]) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise NoProgram(
            f"tests need RabbitMQ, which is fetched from Debian's packages, and there is no apt-get here: "
            f"install it and its Erlang, and say by {ROOT_VARIABLE} in which folder they are"
        )
    say("RabbitMQ is not here yet: fetching Debian's packages of it and Erlang (about 55 MB), once …")
    with tempfile.TemporaryDirectory(prefix="rabbitmq-", dir=root.parent) as folder:
        work = Path(folder)
        # Lists and state of apt's own in this folder, as if nothing were installed.
        (work / "lists/partial").mkdir(parents=True)
        (work / "archives/partial").mkdir(parents=True)
        options = [f"Dir::State::Lists={work}/lists", f"Dir::Cache={work}", "Dir::State::status=/dev/null"]
        options += ["APT::Sandbox::User=root", "Acquire::Languages=none", "Acquire::Retries=3"]
        apt = ["apt-get", "-q", *(part for option in options for part in ("-o", option))]
        _run_tool([*apt, "update"], work)
        plan = _run_tool([*apt, "--no-install-recommends", "--simulate", "install", "rabbitmq-server"], work)
        names = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
        _run_tool([*apt, "download", *(name for name in names if _NEEDED.fullmatch(name))], work)
        for package in work.glob("*.deb"):
            _run_tool(["dpkg-deb", "-x", str(package), str(work / "root")], work)
        _one((work / "root").glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"), "the broker's home")
        (work / "root").rename(root)
    say(f"RabbitMQ is in {root}.")


def _run_tool(command: list[str], folder: Path) -> str:
    """What it printed.

    Raises:
        NoProgram: It failed; the message has the end of what it said.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_SECONDS,
            check=True,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.CalledProcessError as error:
        last = "\n".join(error.stderr.splitlines()[-10:])
        raise NoProgram(f"RabbitMQ could not be fetched: {command[0]} {command[-1]} said\n{last}") from error
    except subprocess.TimeoutExpired as error:
        raise NoProgram(f"RabbitMQ could not be fetched: {command[0]} took over {APT_SECONDS:g} s") from error
    return done.stdout


def _one(found: Iterable[Path], what: str) -> Path:
    for path in sorted(found):
        return path
    raise NoProgram(f"{what} is not where Debian's packages have it")


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
