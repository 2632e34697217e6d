from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.servers import Ledger, ledger_server


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with ledger_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def server(one_server: Ledger) -> Ledger:
    """A server whose ledger begins with this test."""
    return one_server.from_here()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Ledger]:
    """A server that nobody has left work to."""
    folder = tmp_path / "server"
    folder.mkdir()
    with ledger_server(folder) as running:
        yield running
