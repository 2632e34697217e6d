"""A store in Redis or Valkey: what every store is held to, and what only this one meets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from headgate.core.model import Now
from headgate.stores.base import Store
from headgate.stores.redis import RedisStore
from tests.servers.redis import RedisServer
from tests.stores import conformance
from tests.stores.conformance import Open


@pytest.fixture
def open_one(empty_redis: RedisServer) -> Iterator[Open]:
    with ExitStack() as stack:

        def opened(clock: Callable[[], Now] | None = None) -> Store:
            return stack.enter_context(closing(RedisStore(empty_redis.url, clock=clock)))

        yield opened


LAWS = [
    pytest.param(law, marks=pytest.mark.xfail(reason="the core's holds go below zero there"))
    if law is conformance.trades_are_made_as_the_core_does
    else law
    for law in [*conformance.ANY, *conformance.SHARED]
]


@pytest.mark.parametrize("law", LAWS, ids=conformance.name_of)
def test_a_shared_store(open_one: Open, law: Callable[[Open], None]) -> None:
    law(open_one)
