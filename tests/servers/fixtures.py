"""Fixtures that start the servers tests need; a conftest imports those it wants.

A machine without the server's program fails these tests: skipped, they would prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import Kind, RedisServer
from tests.servers.s3 import S3Server


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


@pytest.fixture(scope="session")
def rabbitmq(request: pytest.FixtureRequest) -> Iterator[RabbitMQServer]:
    """A broker that all tests share, so none may stop it, and each names its queues for itself."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        # Fetching a broker takes a while: who waits is to see why, not who reads of a failure.
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    with RabbitMQServer(say=say) as running:
        yield running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A server that all tests share, so none may stop it; each takes a bucket of its own."""
    with S3Server() as running:
        yield running
