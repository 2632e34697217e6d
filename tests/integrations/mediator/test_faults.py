"""Workers that are killed between the call and the storing of its answer, and while parked work is due."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.mediator import faults
from tests.servers.rabbitmq import RabbitMQServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


# Redis as a broker gives messages of a killed worker to others every hundred seconds: the module's own
# command shows it.
def test_each_request_is_stored_once_and_called_back(rabbitmq: RabbitMQServer, tmp_path: Path) -> None:
    row = faults.run("rabbitmq", tmp_path, rabbitmq.url)
    print(row)
    assert row.refused == 0
    assert (row.stored, row.failed, row.called_back) == (row.requests, 0, row.requests)
    assert row.repeated <= row.in_flight
    # A fleet that stands still after a kill would show; how close it comes to full use, the command prints.
    assert min(row.utilisation.values()) >= 0.5
