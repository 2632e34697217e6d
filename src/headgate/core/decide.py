"""One decision for all limits of a call: grant and charge all of them, or none.

``(plan, asks, state, now) → answers``; the state changes in place, and is plain integers in lists. A store
runs these two functions inside its lock or transaction.

A limit that the server enforced against us (a 429) is *shut*: nothing passes it until the server's
retry-after is over; then one call goes as a probe, and only when the server has answered it otherwise
do the others follow, from an empty bucket or through a paced window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headgate.core.clock import (
    CROWD,
    FLYING,
    FROZEN,
    HELD,
    Alive,
    Steady,
    alive_time,
    fresh_alive,
    fresh_steady,
    record_answer,
    record_departure,
    record_end,
    steady_time,
    touch,
)
from headgate.core.crowd import GHOST, Crowd, Member, enter, fresh_crowd, load_crowd
from headgate.core.limits.base import ADOPTED, PACED_START_US, Rule
from headgate.core.limits.base import State as RuleState
from headgate.core.model import (
    ANSWERED,
    LARGEST_AMOUNT,
    MINUTE,
    NEVER,
    SECOND,
    Costs,
    Decision,
    Granted,
    Limit,
    Now,
    Refused,
    Report,
    Signal,
    Throttle,
    Wait,
    new,
)
from headgate.core.plan import Plan

Gate = list[int]
"""[shut until (steady), instant of the probe's grant or -1, refusals in a row]; empty while open."""

UNTIL, PROBED, STRIKES = range(3)

FIRST_PAUSE_US = SECOND // 4
LONGEST_PAUSE_US = MINUTE
PROBE_LEASE_US = MINUTE
"""A probe that nobody settles is forgotten after a minute; then another one goes."""

GRANTS, SETTLED, REFUSED = range(3)
LAST_REFUSALS = 8


class State:
    """All that a store keeps for one key. ``dump`` and ``load`` turn it into plain JSON and back."""

    __slots__ = ("alive", "crowd", "gates", "parts", "paused", "refusals", "shut", "steady", "tally")

    def __init__(
        self,
        steady: Steady,
        alive: Alive,
        parts: list[RuleState],
        gates: list[Gate],
        *,
        paused: int = 0,
        tally: list[int] | None = None,
        refusals: list[list[int]] | None = None,
        crowd: Crowd | None = None,
    ) -> None:
        self.steady = steady
        self.alive = alive
        self.parts = parts
        self.gates = gates
        self.paused = paused  # nothing is granted until this steady instant; 0 if it may
        self.tally = tally or [0, 0, 0]  # calls granted, calls settled, refusals of the server
        self.refusals = refusals or []  # the last ones: [Unix time µs, rule, retry-after µs or -1]
        self.crowd = crowd  # where several draw on the key
        self.shut = sum(map(bool, gates)) + (paused > 0)  # how many gates, this one included, are not open

    def dump(self) -> list[object]:
        whole: list[object] = [self.steady, self.alive, self.parts, self.gates]
        whole += [self.paused, self.tally, self.refusals]
        return whole if self.crowd is None else [*whole, self.crowd.dump()]

    @classmethod
    def load(cls, data: list[Any]) -> State:
        steady, alive, parts, gates, paused, tally, refusals, *crowd = data
        return cls(
            steady,
            alive,
            parts,
            gates,
            paused=paused,
            tally=tally,
            refusals=refusals,
            crowd=load_crowd(crowd[0]) if crowd else None,
        )


def fresh(plan: Plan, now: Now) -> State:
    """The state of a key at its first use."""
    steady = fresh_steady(now)
    at = steady_time(steady, now)
    longest = max((rule.transit_us for rule in plan.rules), default=0)
    return State(
        steady,
        fresh_alive(at, longest),
        [rule.fresh(now, at) for rule in plan.rules],
        [[] for _ in plan.rules],
    )


def acquire(plan: Plan, asks: Sequence[Costs], state: State, now: Now) -> list[Decision]:
    """Answer asks in their order, which is their place in line.

    Whoever is granted is charged on every limit at once. The first that has to wait holds up all behind
    it, so that nobody is overtaken; they are told the same instant. A refusal holds up nobody.

    Asking charges nothing, but it may notice that the server has fallen silent; what was told before can
    then prove too early.
    """
    at, alive_at = advance(plan, state, now)
    answers: list[Decision] = []
    for costs in asks:
        answer = decide_one(plan, costs, state, now, at, alive_at)
        answers.append(answer)
        if type(answer) is Wait:
            answers += [too_large(plan.rules, costs) or answer for costs in asks[len(answers) :]]
            break
    return answers


def advance(plan: Plan, state: State, now: Now) -> tuple[int, int]:
    """Let time pass up to ``now``; returns it as (steady time, alive time)."""
    steady, parts, alive = state.steady, state.parts, state.alive
    shift = steady[0]
    at = steady_time(steady, now)
    if steady[0] < shift:
        for rule, part in zip(plan.rules, parts, strict=True):
            rule.leapt(part, shift - steady[0])
    if alive[FLYING] < CROWD and alive[HELD] < 0:  # nearly always
        alive_at = at - alive[FROZEN]
    else:
        touch(alive, at)
        alive_at = alive_time(alive, at)
    wall_us = now[1]
    rules = plan.rules
    for index in plan.indexes:
        rules[index].advance(parts[index], at, alive_at, wall_us)
    return at, alive_at


def decide_one(plan: Plan, costs: Costs, state: State, now: Now, at: int, alive_at: int) -> Decision:
    """One ask, after :func:`advance`."""
    rules, parts = plan.rules, state.parts
    blocked = state.shut > 0
    if blocked and 0 < state.paused <= at:
        unpause(state)
    for index in plan.indexes:
        cost = costs[index]
        if cost and not rules[index].admits(parts[index], cost):
            blocked = True
            break
    if blocked:
        refused = too_large(rules, costs)
        if refused is not None:
            return refused
        wait = wait_for(plan, costs, state, at)
        if wait is not None:
            return wait
    probe = state.shut > 0 and _send_probes(state, costs, at)
    record_departure(state.alive, at)
    state.tally[GRANTS] += 1
    marks = []
    for index in plan.indexes:
        cost = costs[index]
        marks.append(rules[index].take(parts[index], cost, at, alive_at) if cost else ())
    elapsed = now[0]
    use_before = elapsed + plan.use_before_us if plan.use_before_us < NEVER else NEVER
    return new(Granted, (costs, elapsed, use_before, tuple(marks), at, probe, 0))


def too_large(rules: Sequence[Rule], costs: Costs) -> Refused | None:
    """The refusal of what can never fit; None if it can."""
    for index, rule in enumerate(rules):
        if costs[index] > rule.largest:
            return Refused(index, rule.largest)
    return None


def wait_for(plan: Plan, costs: Costs, state: State, at: int) -> Wait | None:
    """The first instant at which every limit admits it, and the limit that is last to; None if that is
    now. While the key is paused, that is no limit (-1).
    """
    if state.paused > at:
        return Wait(state.paused - state.steady[0] if state.paused < NEVER else NEVER, -1)
    instant, blocking = at, -1
    moved = True
    while moved and instant < NEVER:
        moved = False
        for index, cost in enumerate(costs):
            gate = state.gates[index]
            if not cost or (index == blocking and not gate):  # that is what it has just said
                continue
            opens = plan.rules[index].opens_at(state.parts[index], cost, instant, state.alive)
            if gate:
                opens = max(opens, _gate_opens(gate, at))
            if opens > instant:
                instant, blocking, moved = opens, index, True
                if instant >= NEVER:
                    break
    if blocking < 0:
        return None
    if instant >= NEVER:
        return Wait(NEVER, blocking)
    rule, part = plan.rules[blocking], state.parts[blocking]
    firm = not state.gates[blocking] and rule.firm(part, costs[blocking], instant)
    return Wait(instant - state.steady[0], blocking, firm)


def _gate_opens(gate: Gate, at: int) -> int:
    if gate[PROBED] >= 0 and at < gate[PROBED] + PROBE_LEASE_US:
        return max(gate[UNTIL], gate[PROBED] + PROBE_LEASE_US)
    return gate[UNTIL]


def _send_probes(state: State, costs: Costs, at: int) -> bool:
    probes = False
    for gate, cost in zip(state.gates, costs, strict=True):
        if gate and cost:
            gate[PROBED] = at
            probes = True
    return probes


def settle(plan: Plan, reports: Sequence[Report], state: State, now: Now) -> None:
    """Book what became of calls: charge, give back, correct, shut and open."""
    for grant, signal in reports:
        at, alive_at = advance(plan, state, now)
        if signal.outcome == "answered":
            alive_at = record_answer(state.alive, grant.steady_us, at)
        record_end(state.alive)
        settle_one(plan, grant, signal, state, at, alive_at)


def settle_one(plan: Plan, grant: Granted, signal: Signal, state: State, at: int, alive_at: int) -> None:
    """One report, after :func:`advance`."""
    state.tally[SETTLED] += 1
    if signal is ANSWERED and not state.shut:
        rules, parts = plan.rules, state.parts
        costs, marks = grant.costs, grant.marks
        for index in plan.indexes:
            cost = costs[index]
            if cost:
                rules[index].settle(parts[index], cost, marks[index], "answered", cost, at, alive_at)
        return
    throttle = signal.throttle
    hits = hit(throttle, plan, grant.costs) if throttle is not None else ()
    for index, (rule, part, cost, mark) in enumerate(
        zip(plan.rules, state.parts, grant.costs, grant.marks, strict=True)
    ):
        if not cost:
            continue
        if throttle is not None and index in hits:
            rule.refused(part, cost, mark, at, alive_at)
            _shut(state, index, throttle, rule, grant, at)
        else:
            rule.settle(part, cost, mark, signal.outcome, charge_of(rule, cost, signal), at, alive_at)
            if state.gates[index]:
                _open(state, index, signal, grant, at)
        if signal.readings and throttle is None:
            for reading in signal.readings:
                if reading.meter == rule.limit.meter:
                    rule.read(part, cost, mark, reading, grant.steady_us, at)


def settle_late(
    plan: Plan,
    grant: Granted,
    signal: Signal,
    state: State,
    at: int = 0,
    alive_at: int = 0,
    *,
    pinned: bool,
) -> None:
    """One report of a call that was granted in an earlier life of its client.

    Args:
        pinned: what only a settlement gives back has been counted again in this life; else it was given up
            with the client's lease. What lapses by itself needs no settlement.
    """
    state.tally[SETTLED] += 1
    if len(grant.costs) != len(plan.rules):
        return  # of other limits
    throttle = signal.throttle
    hits = hit(throttle, plan, grant.costs) if throttle is not None and pinned else ()
    for index, (rule, part, cost) in enumerate(zip(plan.rules, state.parts, grant.costs, strict=True)):
        if not cost:
            continue
        if pinned and rule.pins:
            if throttle is not None and index in hits:
                rule.refused(part, cost, ADOPTED, at, alive_at)
            else:
                rule.settle(part, cost, ADOPTED, signal.outcome, charge_of(rule, cost, signal), at, alive_at)
        elif signal.outcome == "answered":
            rule.overdue(part, cost, charge_of(rule, cost, signal))
        if throttle is not None and index in hits:
            _shut(state, index, throttle, rule, grant, at)


def charge_of(rule: Rule, cost: int, signal: Signal) -> int:
    """What to book: what the server charges by its own rule, as far as it told."""
    if signal.outcome == "unsent":
        return 0
    meter = rule.limit.meter
    used = _bounded(signal.usage.get(meter))
    if rule.limit.settles_to_usage:
        return cost if used is None else used
    charged = _bounded(signal.charged.get(meter))
    if charged is not None:
        return charged
    return cost if used is None else max(cost, used)


def _bounded(units: int | None) -> int | None:
    return None if units is None else min(max(units, 0), LARGEST_AMOUNT)


def hit(throttle: Throttle, plan: Plan, costs: Costs) -> set[int]:
    """The limits that a refusal was for, as far as it can be known.

    Those on the meter that it named, or any rate if it named none of ours. Of several on one meter the
    shortest explains a refusal, and the longest one that its window is used up.
    """
    named = throttle.meter if throttle.meter in plan.meters else None
    found: dict[str, int] = {}
    for index, limit in enumerate(plan.limits):
        if not costs[index] or (limit.meter != named if named else limit.kind == "concurrency"):
            continue
        other = found.get(limit.meter)
        if other is None or (plan.limits[other].period_us > limit.period_us) != throttle.until_edge:
            found[limit.meter] = index
    if throttle.until_edge and found:
        return {max(found.values(), key=lambda index: plan.limits[index].period_us)}
    return set(found.values())


def _shut(state: State, index: int, throttle: Throttle, rule: Rule, grant: Granted, at: int) -> None:
    gate = state.gates[index]
    if not gate:
        gate += [at, -1, 0]
        state.shut += 1
    if _is_probe(gate, grant):
        gate[PROBED] = -1
        gate[STRIKES] += 1
    if throttle.until_edge:
        until = rule.edge_after(state.parts[index], at)
    elif throttle.retry_after_us is not None:
        until = at + throttle.retry_after_us
    elif gate[STRIKES]:
        until = at + min(FIRST_PAUSE_US << min(gate[STRIKES] - 1, 20), LONGEST_PAUSE_US)
    else:
        until = at  # the level starts again below zero: that is the pause
    gate[UNTIL] = max(gate[UNTIL], until)
    state.tally[REFUSED] += 1
    asked = -1 if throttle.retry_after_us is None else throttle.retry_after_us
    state.refusals.append([state.steady[2], index, asked])
    del state.refusals[:-LAST_REFUSALS]


def pause(state: State, until: int) -> None:
    """Let nothing go until a steady instant (NEVER: until :func:`unpause`)."""
    state.shut += state.paused == 0
    state.paused = until


def unpause(state: State) -> None:
    """Let calls go again."""
    if state.paused:
        state.paused = 0
        state.shut -= 1


def _is_probe(gate: Gate, grant: Granted) -> bool:
    return grant.probe and grant.steady_us >= gate[PROBED] >= 0


def _open(state: State, index: int, signal: Signal, grant: Granted, at: int) -> None:
    gate = state.gates[index]
    if not _is_probe(gate, grant):
        return  # granted before it was shut: its answer proves nothing
    if signal.outcome == "answered" and gate[UNTIL] <= at:
        gate.clear()
        state.shut -= 1
    else:
        gate[PROBED] = -1


def used(plan: Plan, state: State, now: Now) -> tuple[int, ...]:
    """Units that stand against each limit now."""
    advance(plan, state, now)
    return tuple(rule.used(part) for rule, part in zip(plan.rules, state.parts, strict=True))


def full(plan: Plan, now: Now) -> State:
    """The state of a key that nobody has drawn on for as long as anything of it counts."""
    return fresh(Plan([replace(limit, start="full") for limit in plan.limits]), now)


def spent(plan: Plan, now: Now, lease_us: int, used: Sequence[int] | None = None) -> State:
    """The state of a key after it was lost, while others may have drawn on it to the last unit.

    Buckets are empty, windows are full, and slots are taken for one lease, within which whoever has some is
    heard of. A window of more than five minutes, which nobody can wait for, goes on from what was known.

    Args:
        used: units that stood against each limit when it was last seen; None if nobody knows.
    """
    state = fresh(plan, now)
    at = state.steady[0] + state.steady[1]
    slots = [0] * len(plan.rules)
    for index, rule in enumerate(plan.rules):
        if rule.limit.kind == "concurrency":
            slots[index] = rule.largest
        if rule.limit.kind != "bucket" and rule.limit.period_us > PACED_START_US:
            if used is not None:
                known = replace(rule.limit, start=used[index])
                state.parts[index] = Plan([known]).rules[0].fresh(now, at)
        else:
            state.parts[index] = rule.spent(now, at)
    if any(slots):
        crowd = state.crowd = fresh_crowd(at)
        ghost = enter(crowd, GHOST, len(plan.rules), at, lease_us)
        ghost.pinned = slots
    return state


def replan(old: Plan, new: Plan, state: State, now: Now) -> State:
    """The state under changed limits: those that are the same go on, the others start anew.

    Whatever was granted under the old limits has to be settled before.
    """
    kept = {
        limit: (part, gate) for limit, part, gate in zip(old.limits, state.parts, state.gates, strict=True)
    }
    started = fresh(new, now)
    started.alive = state.alive
    started.crowd = state.crowd
    if started.crowd is not None:
        started.crowd.members.clear()
    started.steady = state.steady
    at = steady_time(state.steady, now)
    started.parts = [
        kept[limit][0] if limit in kept else rule.fresh(now, at)
        for limit, rule in zip(new.limits, new.rules, strict=True)
    ]
    started.gates = [kept[limit][1] if limit in kept else [] for limit in new.limits]
    _carry(state, started)
    return started


def _carry(state: State, changed: State) -> None:
    """What has nothing to do with limits stays as it is."""
    changed.paused, changed.tally, changed.refusals = state.paused, state.tally, state.refusals
    changed.shut = sum(map(bool, changed.gates)) + (state.paused > 0)


def retune(old: Plan, new: Plan, state: State, now: Now) -> State:
    """The state under limits of the same meters in the same order, while calls are on their way.

    What has been used stays used, what is on its way stays held. Limits of another kind or period start as
    after a loss.
    """
    at, alive_at = advance(old, state, now)
    changed = State(state.steady, state.alive, [], state.gates, crowd=state.crowd)
    for before, after, part in zip(old.rules, new.rules, state.parts, strict=True):
        if before.limit == after.limit:
            changed.parts.append(part)
        elif _alike(before.limit, after.limit):
            changed.parts.append(after.carried(before, part, now, at, alive_at))
        else:
            changed.parts.append(_spent_but_held(after, len(changed.parts), state, now, at))
    _carry(state, changed)
    _begin_other_lives(state, at)
    return changed


def _begin_other_lives(state: State, at: int) -> None:
    """The marks of what clients hold are of rules, or a state of them, that are no more."""
    if state.crowd is not None:
        state.crowd.epochs = max(state.crowd.epochs, at)
        for member in _members(state):
            state.crowd.epochs += 1
            member.epoch, member.adopted = state.crowd.epochs, 1


def _spent_but_held(rule: Rule, index: int, state: State, now: Now, at: int) -> RuleState:
    """Nothing is left of a limit, and what clients hold of it stays held."""
    part = rule.spent(now, at)
    if rule.pins:
        rule.adopt(part, sum(member.pinned[index] for member in _members(state)))
    return part


def _members(state: State) -> list[Member]:
    return [] if state.crowd is None else list(state.crowd.members.values())


def _alike(before: Limit, after: Limit) -> bool:
    """Whether the one goes on in the other's state."""
    return replace(before, amount=1, burst=before.burst and 1, start="auto", name="x") == replace(
        after, amount=1, burst=after.burst and 1, start="auto", name="x"
    )


def lead(plan: Plan, state: State, units: Sequence[int], now: Now) -> None:
    """Charge ``units`` on each rule ahead of their use.

    A copy of the state that is kept for the case of a crash is charged with all that may be granted
    before the next copy.
    """
    at, alive_at = advance(plan, state, now)
    for rule, part, ahead in zip(plan.rules, state.parts, units, strict=True):
        if ahead:
            rule.take(part, ahead, at, alive_at)


def resume(plan: Plan, state: State, passed_us: int, now: Now) -> None:
    """Take up a state that another process left ``passed_us`` ago; its calls will not be settled."""
    left_at = state.steady[0] + state.steady[1]
    state.steady[:] = [left_at + max(passed_us, 0) - now.elapsed_us, now.elapsed_us, now.wall_us]
    at = steady_time(state.steady, now)
    # Alive time goes on from where it was: what was on its way lapses no earlier.
    frozen = left_at - alive_time(state.alive, left_at)
    state.alive = fresh_alive(at, max((rule.transit_us for rule in plan.rules), default=0))
    state.alive[FROZEN] = frozen
    for rule, part in zip(plan.rules, state.parts, strict=True):
        rule.advance(part, at, at - frozen, now.wall_us)
        rule.orphan(part, at - frozen)


def rejoin(plan: Plan, state: State, now: Now, pause_us: int) -> State:
    """The state after a time in which clients went by shares of the limits, of which nothing is known here.

    Nothing is granted for ``pause_us``, within which all of them come back; until then they may go on by
    their shares, so that all is spent only at the end of it. Who comes after the first, within that time,
    changes nothing more.
    """
    at, _ = advance(plan, state, now)
    if state.paused <= at:
        back_at = at + pause_us
        back = Now(now.elapsed_us + pause_us, now.wall_us + pause_us)
        for index, rule in enumerate(plan.rules):
            limit = rule.limit
            if limit.kind != "concurrency" and (limit.kind == "bucket" or limit.period_us <= PACED_START_US):
                state.parts[index] = _spent_but_held(rule, index, state, back, back_at)
        _begin_other_lives(state, at)
        pause(state, back_at)
    return state
