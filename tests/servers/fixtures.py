"""Fixtures that start the servers tests need; a conftest imports those it wants.

A machine without the server's program fails these tests: skipped, they would prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.redis import Kind, RedisServer


@pytest.fixture(scope="session", params=["redis", "valkey"])
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server that all tests share, so none may stop it; each test that asks runs on Redis and on Valkey.

    One that needs Redis alone says ``@pytest.mark.parametrize("redis_server", ["redis"], indirect=True)``.
    """
    kind: Kind = request.param
    with RedisServer(kind, tcp=True) as running:
        yield running


@pytest.fixture
def empty_redis(redis_server: RedisServer) -> RedisServer:
    """The shared server, without keys and scripts."""
    redis_server.flush()
    return redis_server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test alone, to kill, pause and restart; with other options: ``with RedisServer(…)``."""
    with RedisServer(tcp=True) as running:
        yield running
