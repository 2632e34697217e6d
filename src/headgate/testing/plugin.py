"""The pytest plugin: the fixtures ``fake_clock``, ``shared_store`` and ``sim``.

Every pytest loads it where headgate is installed, so it loads next to nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from headgate.testing.clock import FakeClock
    from headgate.testing.simulator import StartServer


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that moves only when told; ``MemoryStore(fake_clock)`` keeps its limits in that time."""
    from headgate.testing.clock import FakeClock

    return FakeClock()


@pytest.fixture
def shared_store(tmp_path: Path) -> str:
    """The URL of a store for this test, which any number of processes can share: ``Limiter(store=…)``.

    It goes by the real clock, as whoever waits for it does.
    """
    return f"sqlite://{tmp_path / 'headgate-limits.db'}"


@pytest.fixture
def sim() -> Iterator[StartServer]:
    """Start rate-limited servers that live as long as the test: ``sim("requests=20/s:burst=5").url``."""
    from headgate.testing.simulator import simulated_servers

    with simulated_servers() as start:
        yield start
