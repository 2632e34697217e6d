"""Ctrl-C in a thread that asks, and makes a round for all, at any moment at which Python lets it come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headgate import Limiter
from tests.sharing.store import Fault
from tests.sharing.world import World, every, is_clean, is_left_clean

Act = Callable[[Limiter], None]


def acquires(limiter: Limiter) -> None:
    with limiter.permit():
        pass


def acquires_in_time(limiter: Limiter) -> None:
    with limiter.permit(max_wait=30):
        pass


def tries(limiter: Limiter) -> None:
    permit = limiter.try_permit()
    if permit is not None:
        permit.settle()


def interrupted(at: int, act: Act, *, others: bool, slow: bool, seed: int = 0) -> tuple[bool, list[str]]:
    """Whether it came so far, and what is wrong after that."""
    world = World(seed, traces=True)
    world.spared.add("settle")  # a permit that has not begun to be settled is lost, as with any store
    wrong: list[str] = []

    def main() -> bool:
        store = world.process()
        limiter = world.limiter("concurrency=3", "requests=1000/s:burst=100:start=full", store=store)
        held = [limiter.acquire() for _ in range(3)]
        if slow:
            store.faults = lambda verb, keys: Fault(
                pause=lambda: world.sleep(0.001), pause_after=lambda: world.sleep(0.001)
            )

        async def waits() -> None:
            async with limiter.permit():
                await asyncio.sleep(0.01)

        threads = []
        if others:
            threads = [world.spawn(lambda: acquires(limiter)), world.in_loop(waits)]
            world.wait_until(lambda: limiter.waiting == 2)
            world.pass_by(0.05)
            for thread in world.threads:
                if thread.name == "headgate-courier":  # so that the victim makes the round for all
                    thread.stands_until = world.now_us + 200_000
        victim = world.spawn(lambda: act(limiter), "victim")
        victim.interrupt_at = at
        for permit in held:
            permit.settle()
        world.wait_until(lambda: victim.done)
        victim.seen = True
        reached = victim.interrupt_at is None
        if reached != isinstance(victim.error, KeyboardInterrupt):
            wrong.append(f"it ended with {victim.error!r}")
        victim.interrupt_at = None
        world.pass_by(6)
        for thread in threads:
            if not thread.done:
                wrong.append(f"{thread} still waits")
            elif thread.error is not None:
                wrong.append(f"{thread} was told {thread.error!r}")
        if wrong:
            raise AssertionError(wrong)
        world.pass_by(15)
        assert is_clean(limiter)
        return reached

    try:
        reached = world.main(main)
        assert is_left_clean(world)
        assert world.place.used("k")[0] == 0, "a slot was lost"
    except AssertionError as error:
        return True, [*wrong, str(error)[:1500]]
    return reached, wrong


@pytest.mark.parametrize("slow", [False, True], ids=["quick", "slow"])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "with others"])
@pytest.mark.parametrize("act", [acquires, acquires_in_time, tries], ids=lambda act: act.__name__)
def test_at_any_moment_nobody_is_left_waiting_and_nothing_is_held(act: Act, others: bool, slow: bool) -> None:
    at, found = 1, {}
    while True:
        reached, wrong = interrupted(at, act, others=others, slow=slow)
        if not reached:
            break
        if wrong:
            found[at] = wrong
        at += every(17)
    assert at > (1 if act is tries and others else 40), "it was no test"
    assert not found, found
