"""The S3 for tests: it keeps what S3 promises, and it leaves nothing behind."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers.s3 import ACCESS_KEY, S3Server


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


# It is not checked, but strangers may not overwrite.
SIGNED = (
    f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


def ask(url: str, method: str, data: bytes | None = None, **fields: str) -> tuple[int, bytes]:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    headers |= {"Authorization": SIGNED, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def test_it_keeps_objects_and_creates_each_once(server: S3Server) -> None:
    server.create_bucket("calls")
    url = f"{server.endpoint}/calls/a.json"
    assert ask(url, "GET")[0] == 404

    def create(number: int) -> int:
        return ask(url, "PUT", b"%d" % number, If_None_Match="*")[0]

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(create, range(16)))
    assert sorted(codes) == [200] + [412] * 15
    assert ask(url, "GET") == (200, b"%d" % codes.index(200))


def test_after_a_restart_it_is_empty_at_the_same_address(server: S3Server) -> None:
    endpoint = server.endpoint
    server.create_bucket("calls")
    server.kill()
    with pytest.raises(urllib.error.URLError):
        ask(endpoint, "GET")
    server.restart()
    assert server.endpoint == endpoint
    assert ask(f"{endpoint}/calls", "GET")[0] == 404


def test_it_leaves_nothing_behind() -> None:
    with S3Server() as server:
        pid = server.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(FileNotFoundError):
        print(server.log)
