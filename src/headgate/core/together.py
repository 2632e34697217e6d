"""The same decisions where several clients draw on a key: each in its turn, and nobody's slots for ever.

As in ``decide``, for one client at a time: ``(plan, client, …, state, now) → answers``. Every step also says
that the client is alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headgate.core import crowd as crowds
from headgate.core import decide
from headgate.core.clock import FLYING, record_answer, record_end
from headgate.core.crowd import DUE, HEAD, WAITING, WEIGHT, Crowd, Member, Ticket
from headgate.core.decide import State
from headgate.core.model import SECOND, Costs, Decision, Granted, Now, Report, Signal, Wait, new
from headgate.core.plan import Plan

LOOK_US = SECOND
"""Whoever waits, for whatever, looks again after that at the latest."""
AT_LEAST_US = 1_000
"""Whoever has to let another go first comes again no sooner than that."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a client wants in one class: ``waiting`` calls, the first of which are ``asks``, in order."""

    kind: int
    waiting: int
    asks: Sequence[Costs]


@dataclass(frozen=True, slots=True)
class Trade:
    """All that a client says at once: what became of calls, what it still holds, what it wants.

    Attributes:
        sequence: of the settlement, counted by the client from 1; one that comes again is not booked again.
            0 for none.
        reports: what became of its calls.
        holding: what it holds besides them: [calls in flight, units on each rule that only a settlement gives
            back]; that is then what is held against it, whatever was believed. None to leave it as it is.
        lines: one for each class in which it wants anything, or has wanted something before.
    """

    sequence: int = 0
    reports: Sequence[Report] = ()
    holding: Sequence[int] | None = None
    lines: Sequence[Line] = ()


class Traded(NamedTuple):
    """The answer to a trade.

    Attributes:
        answers: to the asks of each line.
        next: a client that may go now and waits; None if there is none.
        epoch: which life of the client this is.
        used: units that stand against each limit.
    """

    answers: list[list[Decision]]
    next: str | None
    epoch: int
    used: Costs


def trade(plan: Plan, client: str, deal: Trade, state: State, now: Now, lease_us: int) -> Traded:
    """Settle, then count what is held, then answer asks; and say that the client is alive."""
    if deal.reports:
        _book(plan, client, deal.sequence, deal.reports, state, now, lease_us)
    member = beat(plan, client, state, now, lease_us, deal.holding)
    answers = acquire(plan, client, deal.lines, state, now, lease_us) if deal.lines else []
    return Traded(
        answers,
        who_may_go(plan, state, now),
        member.epoch,
        tuple(rule.used(part) for rule, part in zip(plan.rules, state.parts, strict=True)),
    )


def acquire(
    plan: Plan, client: str, lines: Sequence[Line], state: State, now: Now, lease_us: int
) -> list[list[Decision]]:
    """Answer the asks of a client, line by line, each in its order.

    Granted is what fits and is this client's turn; the first of a line that has to wait holds up all
    behind it. What is granted is told to no other client.

    Args:
        lines: one for each class in which it wants anything, or has wanted something before.
        lease_us: for how long it is to be believed alive if nothing more is heard of it.
    """
    at, alive_at = decide.advance(plan, state, now)
    crowd, member = _enter(plan, client, state, at, alive_at, lease_us)
    for line in lines:
        crowds.stand(crowd, member, line.kind, line.waiting, line.asks[0] if line.asks else None, at)
    answers: list[list[Decision]] = [[] for _ in lines]
    open_lines = [index for index, line in enumerate(lines) if line.asks]
    while open_lines:
        index = min(open_lines, key=lambda index: crowd.served[lines[index].kind])
        line, given = lines[index], answers[index]
        answer = _in_turn(plan, crowd, member, line, line.asks[len(given)], state, now, at, alive_at)
        given.append(answer)
        if type(answer) is Wait:
            given += [answer] * (len(line.asks) - len(given))
        if len(given) == len(line.asks):
            open_lines.remove(index)
    return answers


def _enter(
    plan: Plan, client: str, state: State, at: int, alive_at: int, lease_us: int
) -> tuple[Crowd, Member]:
    crowd = state.crowd
    if crowd is None:
        crowd = state.crowd = crowds.fresh_crowd(at)
    member = crowds.enter(crowd, client, len(plan.rules), at, lease_us)
    for gone in crowds.lapsed(crowd, at):
        release(plan, gone, state, alive_at)
    return crowd, member


def release(plan: Plan, member: Member, state: State, alive_at: int) -> None:
    """A client is gone: give back what only its settlements would have given back."""
    state.alive[FLYING] = max(state.alive[FLYING] - member.flying, 0)
    for index, units in enumerate(member.pinned):
        if units:
            plan.rules[index].abandon(state.parts[index], units, alive_at)


def _in_turn(
    plan: Plan,
    crowd: Crowd,
    member: Member,
    line: Line,
    costs: Costs,
    state: State,
    now: Now,
    at: int,
    alive_at: int,
) -> Decision:
    ticket = member.tickets[line.kind]
    ticket[WEIGHT] = weight_us = plan.weight_us(costs)
    ticket[HEAD:] = costs
    others = crowds.ahead(crowd, member, line.kind, at)
    if others and decide.too_large(plan.rules, costs) is None:
        wait = _let_pass(plan, ticket, others, costs, state, at)
        if wait is not None:
            return wait
    answer = decide.decide_one(plan, costs, state, now, at, alive_at)
    if type(answer) is Wait:
        ticket[DUE] = min(answer.until_us, now.elapsed_us + LOOK_US) + state.steady[0]
        return answer
    ticket[WAITING] = max(ticket[WAITING] - 1, 0)
    if type(answer) is Granted:
        crowds.serve(crowd, member, line.kind, weight_us)
        member.flying += 1
        for index, rule in enumerate(plan.rules):
            if rule.pins:
                member.pinned[index] += costs[index]
        return new(Granted, (*answer[:6], member.epoch))
    return answer


def _let_pass(
    plan: Plan, ticket: Ticket, others: Sequence[tuple[Ticket, int]], costs: Costs, state: State, at: int
) -> Wait | None:
    """Others go first: come when there is enough for them to catch up, and then for this one.

    None if there is now: whoever goes then delays none of them, and nothing is left idle while they are on
    their way.
    """
    needed = list(costs)
    for other, lag in others:
        head = other[HEAD:]
        calls = min(other[WAITING], max(lag // other[WEIGHT], 1))
        for index, cost in enumerate(head):
            needed[index] += calls * cost
    largest = [min(units, rule.largest) for units, rule in zip(needed, plan.rules, strict=True)]
    wait = decide.wait_for(plan, tuple(largest), state, at)
    if wait is None:
        return None
    shift = state.steady[0]
    ticket[DUE] = min(max(wait.until_us + shift, at + AT_LEAST_US), at + LOOK_US)
    return Wait(ticket[DUE] - shift, wait.rule, False)


def settle(
    plan: Plan, client: str, sequence: int, reports: Sequence[Report], state: State, now: Now, lease_us: int
) -> str | None:
    """Book what became of a client's calls; returns the client that may go now and waits, if there is one.

    Args:
        sequence: of this settlement, counted by the client from 1: one that comes again is not booked again.
            0 for none.
    """
    _book(plan, client, sequence, reports, state, now, lease_us)
    return who_may_go(plan, state, now)


def _book(
    plan: Plan, client: str, sequence: int, reports: Sequence[Report], state: State, now: Now, lease_us: int
) -> None:
    at, alive_at = decide.advance(plan, state, now)
    _, member = _enter(plan, client, state, at, alive_at, lease_us)
    if not sequence or sequence > member.sequence:
        member.sequence = max(member.sequence, sequence)
        for grant, signal in reports:
            _settle_one(plan, member, grant, signal, state, now)


def _settle_one(plan: Plan, member: Member, grant: Granted, signal: Signal, state: State, now: Now) -> None:
    if grant.epoch != member.epoch and not member.adopted:
        decide.settle_late(plan, grant, signal, state, pinned=False)
        return
    at, alive_at = decide.advance(plan, state, now)
    if signal.outcome == "answered":
        alive_at = record_answer(state.alive, grant.steady_us, at)
    record_end(state.alive)
    member.flying = max(member.flying - 1, 0)
    ours = len(grant.costs) == len(plan.rules)  # else it was granted under other limits
    for index, rule in enumerate(plan.rules if ours else ()):
        if rule.pins:
            member.pinned[index] = max(member.pinned[index] - grant.costs[index], 0)
    if ours and grant.epoch == member.epoch:
        decide.settle_one(plan, grant, signal, state, at, alive_at)
    else:
        decide.settle_late(plan, grant, signal, state, at, alive_at, pinned=True)


def who_may_go(plan: Plan, state: State, now: Now) -> str | None:
    """The client whose turn it is, if it was told to wait and need not."""
    crowd = state.crowd
    if crowd is None:
        return None
    at = now.elapsed_us + state.steady[0]
    for name, kind in crowds.first_in_turn(crowd, at):
        ticket = crowd.members[name].tickets[kind]
        head = tuple(ticket[HEAD:])
        if ticket[DUE] > at and (
            decide.too_large(plan.rules, head) is not None or decide.wait_for(plan, head, state, at) is None
        ):
            return name
        return None
    return None


def beat(
    plan: Plan,
    client: str,
    state: State,
    now: Now,
    lease_us: int,
    holding: Sequence[int] | None = None,
) -> Member:
    """A client says that it is alive, and what it holds (see :class:`Trade`)."""
    at, alive_at = decide.advance(plan, state, now)
    _, member = _enter(plan, client, state, at, alive_at, lease_us)
    if holding is not None:
        _count(plan, member, holding, state, alive_at)
    return member


def _count(plan: Plan, member: Member, holding: Sequence[int], state: State, alive_at: int) -> None:
    """Set right what is held against a client.

    It may hold more than we know of, after its lease has lapsed or our state was lost; and less, if what
    it was granted has never reached it.
    """
    flying, *pinned = holding
    state.alive[FLYING] = max(state.alive[FLYING] + flying - member.flying, 0)
    member.flying = flying
    for index, rule in enumerate(plan.rules):
        if rule.pins:
            more = pinned[index] - member.pinned[index]
            if more > 0:
                rule.adopt(state.parts[index], more)
            elif more < 0:
                rule.abandon(state.parts[index], -more, alive_at)
            member.pinned[index] = pinned[index]
    member.adopted = 1


def claim(plan: Plan, client: str, state: State, now: Now, lease_us: int) -> None:
    """All that is held on a key is this client's, who drew on it as if nobody else ever would."""
    at, alive_at = decide.advance(plan, state, now)
    _, member = _enter(plan, client, state, at, alive_at, lease_us)
    member.flying = state.alive[FLYING]
    member.pinned = [rule.pinned(part) for rule, part in zip(plan.rules, state.parts, strict=True)]
    member.adopted = 1


def spare(plan: Plan, state: State, now: Now, away_us: int, grace_us: int) -> None:
    """The store was away for ``away_us``: who could not say meanwhile that it is alive still may, so long."""
    at, _ = decide.advance(plan, state, now)
    if state.crowd is not None:
        for member in state.crowd.members.values():
            if member.until > at - away_us:  # it had its lease when the store went
                member.until = max(member.until, at + grace_us)


def leave(plan: Plan, client: str, state: State, now: Now) -> None:
    """A client goes in order: its places are free at once, what it still holds is given back."""
    _, alive_at = decide.advance(plan, state, now)
    if state.crowd is not None:
        member = state.crowd.members.pop(client, None)
        if member is not None:
            release(plan, member, state, alive_at)
