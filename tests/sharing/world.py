"""Processes that draw on one key, in a machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from headgate import Limiter
from headgate.limiter import ServiceClass
from headgate.sharing.courier import Courier
from headgate.sharing.desk import Desk
from headgate.sharing.line import SharedLine
from tests.sharing.machine import Machine, Thread
from tests.sharing.store import Client, Place

T = TypeVar("T")

DEEP = "HEADGATE_EXAMPLES" in os.environ
"""Set it to look at what the usual examples, the same each time, do not show."""
KEY = "k"


class World(Machine):
    """A machine with a place; a client of the place is a process."""

    def __init__(
        self, seed: int = 0, *, preempt: float = 0.0, stall: float = 0.0, traces: bool = False
    ) -> None:
        super().__init__(seed, preempt=preempt, stall=stall, traces=traces)
        self.place = Place(self.clock, lock=self.threading.Lock())
        self.processes: list[Client] = []

    def process(self) -> Client:
        """A store of its own."""
        self.processes.append(self.place.client())
        return self.processes[-1]

    def limiter(
        self,
        *limits: str,
        store: Client | None = None,
        key: str = KEY,
        service_class: ServiceClass = "normal",
        on_store_failure: str = "wait",
    ) -> Limiter:
        return Limiter(
            *limits,
            key=key,
            store=store or self.process(),
            service_class=service_class,
            on_store_failure=on_store_failure,
        )

    def in_loop(self, main: Callable[[], Awaitable[T]], name: str = "") -> Thread[T]:
        """A thread with an event loop of its own."""
        return self.spawn(lambda: self.run_loop(main), name)

    def wait_until(self, what: Callable[[], object]) -> None:
        """Let others run until something is so; no time passes unless it has to."""
        self.block(lambda: bool(what()))

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.sleep(seconds)


def line_of(limiter: Limiter) -> SharedLine:
    line = limiter._line
    assert isinstance(line, SharedLine)
    return line


def desk_of(limiter: Limiter) -> Desk:
    return line_of(limiter).desk


def courier_of(limiter: Limiter) -> Courier:
    return desk_of(limiter).courier


def is_clean(limiter: Limiter) -> bool:
    """Nobody waits in this process, nothing is held, and nothing is left to be told."""
    desk = desk_of(limiter)
    lines = list(desk.lines.values())
    assert not limiter.waiting, "somebody waits"
    assert all(line.empty and not line._overdue for line in lines), "somebody is in line"
    assert not desk.believed, "the store believes that somebody waits"
    assert (desk.flying, any(desk.pinned), desk._held) == (0, False, {}), "something is held"
    assert not desk.reports, "something has not been told"
    assert desk.unsure is None, "something may not have been told"
    assert desk._stop_listening is None, "it listens"
    assert not desk.courier.active, "something is to be done"
    assert desk.courier._thread is None, "its thread has not ended"
    return True


def is_left_clean(world: World, key: str = KEY) -> bool:
    """Nobody holds anything of the key, nor waits for it, by what the place knows."""
    assert world.place.holds(key) == {}, "something is held"
    assert world.place.wait_for(key) == {}, "somebody waits"
    state = world.place.state(key)
    assert state.alive[2] == 0, "calls are in flight"
    return True


async def turns(count: int = 3) -> None:
    """Let others in the loop have some turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def every(usual: int) -> int:
    """How many moments to go on from one to the next that is looked at."""
    return 1 if DEEP else usual
