from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.fixtures import own_redis
from tests.servers.redis import RedisServer

__all__ = ["own_redis"]  # a fixture is used by its name


@pytest.fixture(scope="session")
def redis_of_all() -> Iterator[RedisServer]:
    """A server for all these tests; none may stop it."""
    with RedisServer("redis") as running:
        yield running


@pytest.fixture(scope="session")
def valkey_of_all() -> Iterator[RedisServer]:
    with RedisServer("valkey") as running:
        yield running
