"""What becomes of callers while a shared store cannot be reached: they wait, are refused, or use a share.

A share of 1/N of each limit is safe as long as no more than N processes draw on the key and all of them have
lost the store: N buckets of a rate R/N and a depth B/N conform to one of R and B, and windows add up
likewise. It begins empty, for nobody knows what the others have sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headgate.core import decide, together
from headgate.core.model import (
    NEVER,
    SECOND,
    Costs,
    Decision,
    Granted,
    Limit,
    Now,
    Refused,
    Report,
    Wait,
    new,
)
from headgate.core.plan import Plan
from headgate.core.together import LOOK_US, Line, Trade
from headgate.errors import ConfigurationError
from headgate.stores.base import LEASE_US
from headgate.stores.memory import process_clock

LOCAL = -1
"""In the place of the epoch of a permit that was granted from a share."""


@dataclass(frozen=True, slots=True)
class Policy:
    """``wait``, ``refuse`` or ``share:N``; ``share`` is N, or 0."""

    text: str
    refuse: bool = False
    share: int = 0


WAIT = Policy("wait")


def parse_policy(text: str) -> Policy:
    """Read ``wait``, ``refuse`` or ``share:N``.

    Raises:
        ConfigurationError: it is none of them.
    """
    found = re.fullmatch(r"share:([1-9]\d{0,5})", text)
    if found:
        return Policy(text, share=int(found[1]))
    if text not in ("wait", "refuse"):
        raise ConfigurationError(
            "on_store_failure is wait, refuse, or share:N with the number of processes that draw on the key; "
            f"got {text!r}"
        )
    return Policy(text, refuse=text == "refuse")


def part_of(limit: Limit, share: int) -> Limit | None:
    """One of ``share`` equal parts of a limit; None if it is too small to be parted."""
    if limit.kind == "concurrency" or limit.calendar:
        amount = limit.amount // share
        return replace(limit, amount=amount) if amount else None
    if limit.burst is not None:
        if limit.burst < share:
            return None
        return _slower(replace(limit, burst=limit.burst // share), share)
    if limit.amount >= share:
        return replace(limit, amount=limit.amount // share)
    return None


def _slower(limit: Limit, share: int) -> Limit:
    if limit.amount >= share:
        return replace(limit, amount=limit.amount // share)
    return replace(limit, amount=1, period_us=-(-limit.period_us * share // limit.amount))


class Share:
    """A part of the limits of a key, kept in this process alone."""

    def __init__(
        self, plan: Plan, share: int, holding: Sequence[int], used: Sequence[int] | None = None
    ) -> None:
        """Args:
        plan: the whole.
        share: of how many parts this is one.
        holding: what this process holds, as in :class:`~headgate.core.together.Trade`.
        used: units that stood against each limit when the store was last seen; None if it never was.
        """
        parts = [part_of(limit, share) for limit in plan.limits]
        self._plan = Plan([part for part in parts if part is not None]) if None not in parts else None
        if self._plan is not None:
            if used is not None:  # what was left is parted likewise
                used = [
                    max(part.amount - max(limit.amount - units, 0) // share, 0)
                    for limit, part, units in zip(plan.limits, self._plan.limits, used, strict=True)
                ]
            now = process_clock()
            self._state = decide.spent(self._plan, now, LEASE_US, used)
            self._member = together.beat(self._plan, "", self._state, now, NEVER >> 1, holding)

    def ended(self, grant: Granted) -> None:
        """A call has ended that was granted by the store, and held a part of ours."""
        if self._plan is not None:
            member = self._member
            held = [max(have - cost, 0) for have, cost in zip(member.pinned, grant.costs, strict=True)]
            holding = max(member.flying - 1, 0), *held
            together.beat(self._plan, "", self._state, process_clock(), NEVER >> 1, holding)

    def acquire(self, asks: Sequence[Costs], store_now: Now) -> list[Decision]:
        """Answer asks; instants are told by the store's clock, which ``store_now`` is a reading of."""
        plan, now = self._plan, process_clock()
        shift = store_now.elapsed_us - now.elapsed_us
        if plan is None:  # nothing can be had of it without the store
            return [Wait(store_now.elapsed_us + LOOK_US, -1)] * len(asks)
        answers = together.acquire(plan, "", [Line(1, len(asks), asks)], self._state, now, NEVER >> 1)[0]
        return [_moved(answer, shift, store_now) for answer in answers]

    def settle(self, report: Report) -> None:
        """Book what became of a call that was granted here."""
        if self._plan is not None:
            grant = report.grant
            own = new(Granted, (*grant[:6], self._member.epoch))
            trade = Trade(reports=[Report(own, report.signal)])
            together.trade(self._plan, "", trade, self._state, process_clock(), NEVER >> 1)


def _moved(answer: Decision, shift: int, store_now: Now) -> Decision:
    if type(answer) is Granted:
        use_before = answer.use_before_us
        return new(
            Granted,
            (
                answer.costs,
                answer.at_us + shift,
                use_before + shift if use_before < NEVER else NEVER,
                answer.marks,
                answer.steady_us,
                answer.probe,
                LOCAL,
            ),
        )
    if isinstance(answer, Refused):  # too large for a share, not for the whole
        return Wait(store_now.elapsed_us + SECOND, answer.rule)
    assert isinstance(answer, Wait)  # noqa: S101  # what else
    return Wait(answer.until_us + shift if answer.until_us < NEVER else NEVER, answer.rule)
