"""Many tasks behind a service that is blocked, while another runs at full speed on the same workers.

    python -m tests.integrations.celery.blocked [--parked 10000] [--calls 1200] [redis] [rabbitmq]

Two workers of four slots. First both kinds of tasks are sent at once, the blocked ones in front: then workers
park them one after the other, as they find them at the broker. Then, all being parked, the others once more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from headgate.parking import lot_of
from tests.integrations.celery.workers import BURST, RATE, running, wait_until
from tests.servers.rabbitmq import RabbitMQServer

LONGEST_SECONDS = 600


def run(broker: str, parked: int, calls: int) -> str:
    """A line of what came of it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(RabbitMQServer()).url if broker == "rabbitmq" else None
        place = stack.enter_context(running(folder, url))
        program = place.program
        lot = lot_of(program.blocked.store)
        began = time.monotonic()
        with program.app.producer_pool.acquire(block=True) as producer:
            for number in range(parked):
                program.never_today.apply_async((number,), producer=producer, ignore_result=True)
        first = _calls(program, calls)
        wait_until(lambda: lot.peek("blocked").waiting == parked, LONGEST_SECONDS)
        parking = time.monotonic() - began
        for result in first:
            result.get(timeout=LONGEST_SECONDS)
        waited = time.monotonic()
        for result in _calls(program, calls):
            result.get(timeout=LONGEST_SECONDS)
        seconds = time.monotonic() - waited
        assert not place.lines("never_today")
        assert lot.peek("blocked").waiting == parked
        place.server.finish()
        arrived = sorted(entry["arrived_ns"] / 1e9 for entry in place.server.log())
    each = Counter(int(instant - arrived[0]) for instant in arrived[:calls])
    whole = [each[second] for second in range(max(each))]
    used = (calls - BURST) / RATE / seconds
    return (
        f"{broker}: {parked:,} tasks parked within {parking:.0f} s, {parked / parking:.0f} a second; "
        f"meanwhile the other service made {min(whole)} to {max(whole)} calls in each second of its {RATE}; "
        f"then {calls:,} calls in {seconds:.2f} s, {used:.1%} of what its limit allows; 0 refused"
    )


def _calls(program: Any, count: int) -> list[Any]:
    return [program.call.delay(number) for number in range(count)]


def main() -> None:
    """Print a line for each broker."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("brokers", nargs="*", default=["redis", "rabbitmq"])
    parser.add_argument("--parked", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=1_200)
    options = parser.parse_args()
    for broker in options.brokers:
        print(run(broker, options.parked, options.calls), flush=True)


if __name__ == "__main__":
    main()
