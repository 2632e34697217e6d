from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.servers import Ledger, ledger_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Ledger]:
    folder = tmp_path / "server"
    folder.mkdir()
    with ledger_server(folder) as running:
        yield running
