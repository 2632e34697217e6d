"""Object storage: one suite for a folder, S3 and memory; what goes wrong; forks, processes and greenlets."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headgate.errors import (
    ConfigurationError,
    InvalidObjectName,
    ObjectNotFound,
    ObjectTooLarge,
    StorageError,
    StorageUnavailable,
)
from headgate.integrations.storage import Storage, open_storage
from tests.servers.processes import free_ports
from tests.servers.s3 import SECRET_KEY, S3Server

ROOT = Path(__file__).parents[2]
LOTS = 1 << 20


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, for whose server the environment has what is needed."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"calls-{uuid.uuid4().hex}"
    s3_server.create_bucket(name)
    return f"s3://{name}"


@pytest.fixture(params=["file", "s3", "memory"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    match request.param:
        case "file":
            yield (request.getfixturevalue("tmp_path") / "not yet" / "there").as_uri()
        case "s3":
            yield request.getfixturevalue("bucket") + "/some/prefix"
        case _:
            yield f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def storage(url: str) -> Storage:
    return open_storage(url)


def test_what_was_written_is_read(storage: Storage) -> None:
    assert not storage.exists("a.request.json")
    storage.write("a.request.json", b"{}")
    assert storage.exists("a.request.json")
    assert storage.read("a.request.json", 2) == b"{}"
    storage.write("a.request.json", b"")
    assert storage.read("a.request.json", 0) == b""
    large = os.urandom(6 * LOTS)  # more than obstore would send in one request by itself
    storage.write("deep/down/é ü", large)
    assert storage.read("deep/down/é ü", len(large)) == large


def test_another_who_opens_it_finds_the_same(url: str, storage: Storage) -> None:
    storage.write("a", b"1")
    assert open_storage(url).read("a", LOTS) == b"1"
    again = pickle.loads(pickle.dumps(storage))
    assert again.read("a", LOTS) == b"1"
    assert repr(again) == f"<Storage {url}>"


def test_what_is_not_there_is_told(storage: Storage) -> None:
    with pytest.raises(ObjectNotFound, match=r"a\.json: there is no such object"):
        storage.read("a.json", LOTS)
    with pytest.raises(FileNotFoundError):
        storage.read("b/c", LOTS)
    assert not storage.exists("b/c")


def test_more_than_is_allowed_is_not_read(storage: Storage) -> None:
    storage.write("a", bytes(1001))
    with pytest.raises(ObjectTooLarge, match="1,001 bytes, more than the 1,000") as caught:
        storage.read("a", 1000)
    assert (caught.value.size, caught.value.most) == (1001, 1000)


def test_an_object_is_created_once(storage: Storage) -> None:
    assert storage.create("a", b"1")
    assert not storage.create("a", b"2")
    assert storage.read("a", LOTS) == b"1"
    storage.write("a", b"3")
    assert storage.read("a", LOTS) == b"3"


def test_of_many_threads_that_create_an_object_one_does(url: str) -> None:
    start = threading.Barrier(8)

    def create(number: int) -> list[bool]:
        storage = open_storage(url)
        start.wait()
        return [storage.create(f"claims/{turn}", b"%d" % number) for turn in range(10)]

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(create, range(8)))
    storage = open_storage(url)
    for turn, wins in enumerate(zip(*done, strict=True)):
        assert sum(wins) == 1
        assert storage.read(f"claims/{turn}", LOTS) == b"%d" % wins.index(True)


def test_readers_see_all_or_nothing(tmp_path: Path) -> None:
    storage = open_storage(tmp_path.as_uri())
    storage.write("a", b"0" * LOTS)
    over = threading.Event()

    def read() -> set[int]:
        seen = set()
        while not over.is_set():
            data = storage.read("a", LOTS)
            assert len(data) == LOTS
            assert len(set(data)) == 1
            seen.add(data[0])
        return seen

    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read)
        try:
            for turn in range(60):
                storage.write("a", b"%d" % (turn % 10) * LOTS)
        finally:
            over.set()
    assert len(reading.result()) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # nothing half written is left over


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../a",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "a\nb",
        "a\0",
        "a\x7f",
        "\ud800",
        "a#1",
        "a%2e",
        "a?b",
        "*",
        "~",
        "é" * 513,
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    storage = open_storage((tmp_path / "folder").as_uri())
    for use in (
        lambda: storage.read(name, 1),
        lambda: storage.write(name, b""),
        lambda: storage.create(name, b""),
        lambda: storage.exists(name),
    ):
        with pytest.raises(InvalidObjectName, match="cannot be called"):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "begins with ''"),
        ("bucket/prefix", "begins with ''"),
        ("https://bucket/prefix", "begins with 'https'"),
        ("s3://key:hunter2@bucket/prefix", "come from the environment"),
        ("s3://bucket/prefix?secret=hunter2", "come from the environment"),
        ("s3://bucket/prefix#hunter2", "come from the environment"),
        ("s3://bucket/pre fix/hunter2", "no spaces"),
        ("s3://bucket/\nhunter2", "no spaces or control characters"),
        ("s3://[hunter2/", "cannot be read"),
        ("s3:///prefix", "expected s3://name/prefix"),
        ("s3://bucket/a/../b", "'..'"),
        ("s3://bucket/a%2e", "'%' in it"),
        ("file://folder", "three slashes"),
        ("file:folder", "three slashes"),
        ("file:///a/../b", "three slashes"),
        ("file:///a/%2e%2e/b", "three slashes"),
    ],
)
def test_urls_that_say_too_little_or_too_much_are_refused(url: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_storage(url)
    assert expected in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_no_missing_object(bucket: str) -> None:
    storage = open_storage(bucket + "x")
    with pytest.raises(StorageError, match="NoSuchBucket") as caught:
        storage.read("a", LOTS)
    assert type(caught.value) is StorageError
    with pytest.raises(StorageError, match="NoSuchBucket"):
        storage.write("a", b"")


def test_a_server_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.create_bucket("calls")
        storage = open_storage("s3://calls")
        storage.write("a", b"1")
        server.kill()
        for use in (lambda: storage.read("a", LOTS), lambda: storage.create("b", b"1")):
            with pytest.raises(StorageUnavailable, match=r"s3://calls/[ab]: .*refused") as caught:
                use()
            assert SECRET_KEY not in str(caught.value)
            assert caught.value.__context__ is None, "what obstore raised quotes the request"
        server.restart()
        server.create_bucket("calls")
        assert storage.create("b", b"1")


def test_what_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    import socket

    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        storage = open_storage(bucket, timeout_seconds=0.2)
        began = time.monotonic()
        with pytest.raises(StorageUnavailable, match="timed out"):
            storage.read("a", LOTS)
        assert time.monotonic() - began < 2


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        open_storage((tmp_path / "file" / "folder").as_uri()).write("a", b"")


def _write(url: str, name: str) -> None:
    open_storage(url).write(name, b"1")


@pytest.mark.parametrize("url", ["file", "s3"], indirect=True)
def test_a_process_that_is_spawned_has_its_own(url: str, storage: Storage) -> None:
    storage.write("a", b"1")
    spawned = multiprocessing.get_context("spawn").Process(target=_write, args=(url, "b"))
    spawned.start()
    spawned.join()
    assert spawned.exitcode == 0
    assert storage.read("b", LOTS) == b"1"


FORKS = """
import os, sys
from headgate.errors import StorageError
from headgate.integrations.storage import open_storage

storage = open_storage(sys.argv[1])

def forked(do):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        do()
    except StorageError as error:
        os._exit(3 if "forked" in str(error) else 4)
    os._exit(0)

codes = [forked(lambda: storage.create("one", b"1")), forked(lambda: storage.create("two", b"1"))]
found = storage.read("one", 9) + storage.read("two", 9)
codes += [forked(lambda: storage.exists("one")), forked(lambda: open_storage(sys.argv[1]).exists("one"))]
print(codes, found)
"""


@pytest.mark.parametrize("url", ["file", "s3"], indirect=True)
def test_forked_processes_use_what_the_first_has_not_used_yet(url: str) -> None:
    done = _run(FORKS, url)
    assert done == "[0, 0, 3, 3] b'11'\n"


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import gevent, socket, sys, time
from headgate.integrations.storage import ObjectNotFound, StorageUnavailable, open_storage

ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.01)

ticking = gevent.spawn(tick)
storage = open_storage(sys.argv[1], timeout_seconds=0.3)
try:
    storage.read("a", 9)
except StorageUnavailable:
    print("given up, others went on:", ticks > 10)
"""


def test_under_gevent_others_go_on(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    import socket

    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert _run(GREENLETS, bucket) == "given up, others went on: True\n"


def _run(program: str, url: str) -> str:
    command = [sys.executable, "-c", program, url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
