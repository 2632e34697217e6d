"""The pytest fixture `sim`: rate-limited servers for one test.

def test_it_waits(sim):
    server = sim("requests=20/s:burst=5", latency="20ms")
    ...  # call server.url
    assert server.stats()["refused"] == 0
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import pytest

from headgate.simulator import SimulatedServer, ThreadedServer


class StartServer(Protocol):
    """What the fixture `sim` gives: a function that starts a server with these limits."""

    def __call__(self, *limits: str, **options: Any) -> ThreadedServer:
        """Take the options of SimulatedServer."""


@contextmanager
def simulated_servers() -> Iterator[StartServer]:
    """Gives a function that starts servers, each in a thread; all are closed in the end."""
    with ExitStack() as servers:

        def start(*limits: str, **options: Any) -> ThreadedServer:
            return servers.enter_context(SimulatedServer.in_thread(limits, **options))

        yield start


@pytest.fixture
def sim() -> Iterator[StartServer]:
    """Start simulated servers, each in a thread; all are closed when the test ends."""
    with simulated_servers() as start:
        yield start
