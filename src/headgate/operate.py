"""What operators do to a key of any store: look at it, pause it, set its limits and shares, forget it.

Plain functions over ``Store.look`` and ``Store.edit``, for the commands, for ``Limiter`` and for programs of
your own. They only choose what to ask of the core. Seconds, units and Unix times are plain numbers; nothing
is shown and nothing is kept.

In a store of one process, those who wait for a permit look again when its ``Limiter`` is used for this
(``limiter.resume()``); a shared store tells all processes by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import itemgetter
from typing import Literal, TypeAlias

from headgate.core import crowd as crowds
from headgate.core import decide, together
from headgate.core.clock import FLYING
from headgate.core.crowd import CLASS_NAMES, DUE, HEAD, SERVED, WAITING, Crowd, Member
from headgate.core.decide import GRANTS, PROBE_LEASE_US, PROBED, REFUSED, SETTLED, UNTIL, State
from headgate.core.limits.base import TURN, Holding, Rule
from headgate.core.limits.token_bucket import DEBITED, TokenBucket
from headgate.core.model import DAY, NEVER, PERIODS_US, SECOND, Kind, Limit, Now
from headgate.core.plan import Plan
from headgate.core.rates import possible_units
from headgate.core.text import parse_limit
from headgate.errors import ConfigurationError, NoSuchKey
from headgate.parking import Lot, lot_of
from headgate.stores import memory
from headgate.stores.base import Keyed, Store, same_meters

Standing: TypeAlias = Literal["open", "full", "refused", "probing"]
"""Of a limit: whoever is next may go; has to wait for units; has to wait since the server refused a call; or
until the one call has been answered that probes whether the server lets calls go again."""

Why: TypeAlias = Literal["paused", "full", "refused", "probing"]

LONGEST_PAUSE_SECONDS = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class LimitSnapshot:
    """One limit as it stands.

    Attributes:
        name, meter, kind: what it is called, what it counts, how.
        text: the limit in its short form.
        amount: units per period; slots for ``concurrency``.
        burst: size of the bucket; None where the limit has none.
        period_seconds: None for ``concurrency``.
        rate: units per second that it lets through in the long run; None for ``concurrency``.
        used: units that stand against it now. May be above the capacity, where more is owed.
        capacity: units that may stand against it at once: the bucket, the window, the slots.
        granted: units reserved so far by the permits that were given: a count that starts again with other
            limits, and at 2^50. None for ``concurrency``.
        charged: units charged so far, as far as answers or time have proved it; likewise. Only of buckets,
            and of limits whose kind nobody knows; else None.
        standing: whether it lets go whoever is next, and if not, why.
        opens_seconds: until it does; 0 if that is now, None if an answer has to come first.
    """

    name: str
    meter: str
    kind: Kind
    text: str
    amount: int
    burst: int | None
    period_seconds: float | None
    rate: float | None
    used: int
    capacity: int
    granted: int | None
    charged: int | None
    standing: Standing
    opens_seconds: float | None


@dataclass(frozen=True, slots=True)
class ClassSnapshot:
    """A class of service: its share of the limits in percent, and how many calls wait in it."""

    name: str
    share: int
    waiting: int


@dataclass(frozen=True, slots=True)
class ClientSnapshot:
    """A process that draws on the key.

    Attributes:
        name: as the store calls it; ``?`` stands for all who may hold something after a loss, and the
            process itself is nameless in a store of its own.
        in_flight: its calls that have not been settled.
        held: {limit: units that only a settlement gives back}, slots among them.
        waiting: {class: calls that wait}, as it said last.
        lease_seconds: after so long without a word it is taken for dead, and what it holds is given back;
            None if that cannot be.
    """

    name: str
    in_flight: int
    held: Mapping[str, int]
    waiting: Mapping[str, int]
    lease_seconds: float | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server refused a call for its rate.

    Attributes:
        limit: which limit was shut by it.
        at: Unix time.
        ago_seconds: the same, until now.
        retry_after_seconds: what the server asked for; None if it said nothing.
    """

    limit: str
    at: float
    ago_seconds: float
    retry_after_seconds: float | None


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why whoever is next has to wait.

    Attributes:
        limit: the one in the way; empty while the key is paused.
        why: an operator paused the key, or how the limit stands.
        seconds: for how long; None until an answer comes, or an operator lets it go.
    """

    limit: str
    why: Why
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A key at one moment.

    Attributes:
        key: its name.
        at: Unix time.
        elapsed_seconds: the moment on the store's own clock, to tell how much time lies between two looks.
        limits: the limits in force.
        declared: what programs declare, in the short form; the same unless an operator has set others.
        set_by_operator: whether one has.
        paused: whether an operator lets nothing go.
        blocked: why whoever is next has to wait; None if it need not.
        granted, settled, refused: calls so far: permits given, permits settled, refusals of the server.
        in_flight: calls that have not been settled.
        parked: tasks of a job system that wait in the store, or have been let out and are on their way.
        classes: the classes of service.
        clients: the processes that draw on it.
        refusals: the last eight, the latest last.
    """

    key: str
    at: float
    elapsed_seconds: float
    limits: tuple[LimitSnapshot, ...]
    declared: tuple[str, ...]
    set_by_operator: bool
    paused: bool
    blocked: Blocked | None
    granted: int
    settled: int
    refused: int
    in_flight: int
    parked: int
    classes: tuple[ClassSnapshot, ...]
    clients: tuple[ClientSnapshot, ...]
    refusals: tuple[Refusal, ...]

    @property
    def waiting(self) -> int:
        """Calls that wait for a permit, of all classes."""
        return sum(each.waiting for each in self.classes)


# Looking


def overview(store: Store) -> list[Snapshot]:
    """All keys of a store, in the order of their names."""
    found = []
    lot = _lot(store)
    busy = set() if lot is None else set(lot.keys())
    for key in list(store.keys()):
        looked = store.look(key)
        if looked is not None:  # it may have been forgotten just now
            found.append(_snapshot(key, *looked, parked=_parked(lot, key) if key in busy else 0))
    return found


def snapshot(store: Store, key: str) -> Snapshot:
    """A key as it stands; nothing is changed by looking.

    Raises:
        NoSuchKey, StoreUnavailable
    """
    looked = store.look(key)
    if looked is None:
        raise no_such_key(store, key)
    return _snapshot(key, *looked, parked=_parked(_lot(store), key))


def _lot(store: Store) -> Lot | None:
    try:
        return lot_of(store)
    except ConfigurationError:  # of somebody's own, without one
        return None


def _parked(lot: Lot | None, key: str) -> int:
    if lot is None:
        return 0
    seen = lot.peek(key)
    return seen.waiting + len(seen.out)


def unused(key: str, plan: Plan, now: Now) -> Snapshot:
    """A key that nobody has drawn on yet."""
    return _snapshot(key, Keyed(plan, decide.fresh(plan, now)), now)


def rates(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """{limit: units per second between two looks}, for limits of which it can be told.

    Units charged, where they are counted; else units granted, which may be more where a call is given back
    what it did not use.
    """
    seconds = after.elapsed_seconds - before.elapsed_seconds
    earlier = {limit.name: _count(limit) for limit in before.limits}
    found = {}
    for limit in after.limits:
        now, then = _count(limit), earlier.get(limit.name)
        if now is not None and then is not None and seconds > 0:
            units = (now - then) % TURN
            if units < TURN // 2:  # else the count has started anew
                found[limit.name] = units / seconds
    return found


def _count(limit: LimitSnapshot) -> int | None:
    return limit.granted if limit.charged is None else limit.charged


def calls_per_second(before: Snapshot, after: Snapshot) -> float | None:
    """Permits given per second between two looks; None if it cannot be told."""
    seconds = after.elapsed_seconds - before.elapsed_seconds
    calls = after.granted - before.granted
    return calls / seconds if seconds > 0 and calls >= 0 else None


def _snapshot(key: str, keyed: Keyed, now: Now, *, parked: int = 0) -> Snapshot:
    """Of what is ours to change: a copy."""
    plan, state = keyed.plan, keyed.state
    at, alive_at = decide.advance(plan, state, now)
    crowd = state.crowd or crowds.fresh_crowd(at)
    for gone in crowds.lapsed(crowd, at):
        together.release(plan, gone, state, alive_at)
    head = _head(plan, crowd, at)
    limits = tuple(_limit(rule, state, index, head[index] or 1, at) for index, rule in enumerate(plan.rules))
    return Snapshot(
        key=key,
        at=now.wall_us / SECOND,
        elapsed_seconds=now.elapsed_us / SECOND,
        limits=limits,
        declared=tuple(map(limit_text, (keyed.declared or plan).limits)),
        set_by_operator=keyed.declared is not None,
        paused=state.paused > at,
        blocked=_blocked(plan, state, head, limits, at),
        granted=state.tally[GRANTS],
        settled=state.tally[SETTLED],
        refused=state.tally[REFUSED],
        in_flight=state.alive[FLYING],
        parked=parked,
        classes=tuple(
            ClassSnapshot(
                name,
                crowd.shares[kind],
                sum(member.tickets[kind][WAITING] for member in crowd.members.values()),
            )
            for kind, name in enumerate(CLASS_NAMES)
        ),
        clients=tuple(_client(name, member, plan, at) for name, member in sorted(crowd.members.items())),
        refusals=tuple(_refusal(told, plan, now) for told in state.refusals),
    )


def _head(plan: Plan, crowd: Crowd, at: int) -> tuple[int, ...]:
    """What the next call costs, as far as it can pass; if nobody waits, one that says no costs."""
    turns = crowds.first_in_turn(crowd, at)
    if turns:
        name, kind = turns[0]
        costs: Sequence[int] = crowd.members[name].tickets[kind][HEAD:]
    else:
        costs = plan.costs({})
    return tuple(min(cost, rule.largest) for cost, rule in zip(costs, plan.rules, strict=True))


def _limit(rule: Rule, state: State, index: int, cost: int, at: int) -> LimitSnapshot:
    limit, part = rule.limit, state.parts[index]
    standing, opens = _standing(rule, state, index, cost, at)
    return LimitSnapshot(
        name=limit.name,
        meter=limit.meter,
        kind=limit.kind,
        text=limit_text(limit),
        amount=limit.amount,
        burst=limit.burst,
        period_seconds=limit.period_us / SECOND if limit.period_us else None,
        rate=possible_units(limit, 1.0) if limit.period_us else None,
        used=rule.used(part),
        capacity=rule.burst if isinstance(rule, TokenBucket) else limit.amount,
        granted=part[rule.calls.given] if isinstance(rule, Holding) else None,
        charged=part[DEBITED] if isinstance(rule, TokenBucket) else None,
        standing=standing,
        opens_seconds=_seconds(opens, at),
    )


def _standing(rule: Rule, state: State, index: int, cost: int, at: int) -> tuple[Standing, int]:
    """How a limit stands, and the steady instant at which it lets a cost pass."""
    part, gate = state.parts[index], state.gates[index]
    opens = at if rule.admits(part, cost) else rule.opens_at(part, cost, at, state.alive)
    if not gate:
        return ("open" if opens <= at else "full"), opens
    if gate[PROBED] >= 0 and at < gate[PROBED] + PROBE_LEASE_US:
        return "probing", NEVER
    return "refused", max(opens, gate[UNTIL])


def _blocked(
    plan: Plan, state: State, head: tuple[int, ...], limits: Sequence[LimitSnapshot], at: int
) -> Blocked | None:
    if state.paused > at:
        return Blocked("", "paused", _seconds(state.paused, at))
    wait = decide.wait_for(plan, head, state, at)
    if wait is None:
        return None
    limit = limits[wait.rule]
    why = "full" if limit.standing == "open" else limit.standing
    until = wait.until_us + state.steady[0] if wait.until_us < NEVER and why != "probing" else NEVER
    return Blocked(limit.name, why, _seconds(until, at))


def _client(name: str, member: Member, plan: Plan, at: int) -> ClientSnapshot:
    lease_us = member.until - at
    return ClientSnapshot(
        name=name,
        in_flight=member.flying,
        held={limit.name: units for limit, units in zip(plan.limits, member.pinned, strict=True) if units},
        waiting={
            CLASS_NAMES[kind]: ticket[WAITING]
            for kind, ticket in enumerate(member.tickets)
            if ticket[WAITING]
        },
        lease_seconds=lease_us / SECOND if lease_us < DAY else None,
    )


def _refusal(told: Sequence[int], plan: Plan, now: Now) -> Refusal:
    wall_us, index, retry_us = told
    return Refusal(
        limit=plan.limits[index].name if index < len(plan.limits) else "",  # of limits that were replaced
        at=wall_us / SECOND,
        ago_seconds=max(now.wall_us - wall_us, 0) / SECOND,
        retry_after_seconds=retry_us / SECOND if retry_us >= 0 else None,
    )


def _seconds(until: int, at: int) -> float | None:
    return max(until - at, 0) / SECOND if until < NEVER else None


# Changing


def pause(store: Store, key: str, seconds: float | None = None) -> None:
    """Let nothing go for so many seconds, above 0; None for until :func:`resume`. Calls in flight go on.

    Raises:
        NoSuchKey, ConfigurationError, StoreUnavailable
    """
    if seconds is not None and not 0 < seconds <= LONGEST_PAUSE_SECONDS:
        raise ConfigurationError(f"a pause lasts above 0 seconds and at most a year; got {seconds:g}")

    def change(keyed: Keyed, now: Now) -> Keyed:
        at, _ = decide.advance(keyed.plan, keyed.state, now)
        decide.pause(keyed.state, NEVER if seconds is None else at + math.ceil(seconds * SECOND))
        return keyed

    if not store.edit(key, change):
        raise no_such_key(store, key)


def resume(store: Store, key: str) -> bool:
    """Let calls go again; returns whether the key was paused.

    Raises:
        NoSuchKey, StoreUnavailable
    """
    was_paused = False

    def change(keyed: Keyed, now: Now) -> Keyed:
        nonlocal was_paused
        at, _ = decide.advance(keyed.plan, keyed.state, now)
        was_paused = keyed.state.paused > at
        decide.unpause(keyed.state)
        return keyed

    if not store.edit(key, change):
        raise no_such_key(store, key)
    return was_paused


def set_limits(store: Store, key: str, limits: Iterable[str | Limit]) -> None:
    """Put other limits in force, at once and for everybody who draws on the key, until :func:`reset_limits`.

    What has been used stays used and what is on its way stays held. A limit of another kind or period starts
    as if all of it had just been used.

    Args:
        store, key: where.
        limits: those that change, by their names; the others stay. In the short form, options that are not
            said stay as they are: ``requests=300/min`` leaves ``burst`` alone. A :class:`~headgate.Limit`
            says it all.

    Raises:
        NoSuchKey, StoreUnavailable
        ConfigurationError: there is no limit of that name, it counts something else, or what a call holds
            would end in another way (``charge``, ``when``, ``refund``).
    """
    given = list(limits)
    if not given:
        raise ConfigurationError("expected at least one limit, such as requests=600/min:burst=60")

    def change(keyed: Keyed, now: Now) -> Keyed:
        return _retuned(store, keyed, _with(keyed.plan.limits, given), now)

    if not store.edit(key, change):
        raise no_such_key(store, key)


def reset_limits(store: Store, key: str) -> bool:
    """Put the limits in force that programs declare; returns whether others were.

    Raises:
        NoSuchKey, StoreUnavailable
    """
    were_set = False

    def change(keyed: Keyed, now: Now) -> Keyed:
        nonlocal were_set
        were_set = keyed.declared is not None
        return _retuned(store, keyed, (keyed.declared or keyed.plan).limits, now)

    if not store.edit(key, change):
        raise no_such_key(store, key)
    return were_set


def set_shares(store: Store, key: str, *, interactive: int, normal: int, bulk: int) -> None:
    """Share the limits between classes of service: percents that add up to 100, each at least 1.

    They count while calls of several classes wait; what one class does not want is the others'.

    Raises:
        NoSuchKey, ConfigurationError, StoreUnavailable
    """
    shares = [interactive, normal, bulk]
    told = ", ".join(f"{name}={share}" for name, share in zip(CLASS_NAMES, shares, strict=True))
    if any(type(share) is not int or share < 1 for share in shares) or sum(shares) != 100:
        raise ConfigurationError(
            f"expected shares of 1 or more that add up to 100; got {told}: {sum(shares)} together"
        )

    def change(keyed: Keyed, now: Now) -> Keyed:
        _people(store, keyed, now).shares = list(shares)
        return keyed

    if not store.edit(key, change):
        raise no_such_key(store, key)


def forget(store: Store, key: str) -> bool:
    """Start a key anew, as at its first use, with the limits that programs declare.

    Its counts, debts, refusals, pause, shares and set limits are gone. What clients that are there still
    hold, such as slots, stays counted until they settle it.

    Returns whether nothing is left of it; False if something is held.

    Raises:
        NoSuchKey, StoreUnavailable
    """
    gone = False

    def change(keyed: Keyed, now: Now) -> Keyed | None:
        nonlocal gone
        anew = _anew(store, keyed, now)
        gone = anew is None
        return anew

    if not store.edit(key, change):
        raise no_such_key(store, key)
    return gone


def no_such_key(store: Store, key: str) -> NoSuchKey:
    """The error, with the keys that are called alike."""
    keys = store.keys()
    nearest = tuple(get_close_matches(key, keys, n=3, cutoff=0.5))
    if not keys:
        hint = "the store has no keys: nobody has drawn on it yet"
    elif nearest:
        hint = "the nearest: " + ", ".join(map(repr, nearest))
    elif len(keys) <= 5:
        hint = "there are: " + ", ".join(map(repr, keys))
    else:
        hint = f"there are {len(keys):,} others"
    return NoSuchKey(f"there is no key {key!r}; {hint}", key=key, nearest=nearest)


def _people(store: Store, keyed: Keyed, now: Now) -> Crowd:
    """Those who draw on the key, with all that they hold.

    In a store of one process nobody has been asked for a name as long as all calls were of one class.
    """
    state = keyed.state
    if state.crowd is None and not store.shared:
        together.claim(keyed.plan, "", state, now, memory.LEASE_US)
    if state.crowd is None:
        at, _ = decide.advance(keyed.plan, state, now)
        state.crowd = crowds.fresh_crowd(at)
    return state.crowd


def _retuned(store: Store, keyed: Keyed, limits: Sequence[Limit], now: Now) -> Keyed:
    declared = keyed.declared or keyed.plan
    if tuple(limits) == keyed.plan.limits:
        return keyed
    plan = Plan(limits)
    for rule, before in zip(plan.rules, declared.rules, strict=True):
        if rule.pins != before.pins:  # programs say what they hold by what they declare
            raise ConfigurationError(
                f"{rule.limit.name}: charge, when and refund say what ends the hold of a call; that stays as "
                f"programs declare it: {limit_text(before.limit)}"
            )
    _people(store, keyed, now)
    state = decide.retune(keyed.plan, plan, keyed.state, now)
    for ticket in _tickets(state.crowd):
        # Whoever waits for more than can pass from now on is told so when it asks again, at once. Until then
        # nobody may wait for its turn, which would never come.
        ticket[HEAD:] = [
            min(cost, rule.largest) for cost, rule in zip(ticket[HEAD:], plan.rules, strict=True)
        ]
    return Keyed(plan, state, None if plan.limits == declared.limits else declared)


def _tickets(crowd: Crowd | None) -> list[crowds.Ticket]:
    return [] if crowd is None else [ticket for member in crowd.members.values() for ticket in member.tickets]


def _anew(store: Store, keyed: Keyed, now: Now) -> Keyed | None:
    """The key as at its first use, but for what is held; None if nothing is."""
    at, _ = decide.advance(keyed.plan, keyed.state, now)
    crowd = _people(store, keyed, now)
    crowds.lapsed(crowd, at)
    if not any(member.flying or any(member.pinned) for member in crowd.members.values()):
        return None
    plan = keyed.declared or keyed.plan
    state = decide.fresh(plan, now)
    begun = now.elapsed_us  # steady time begins as elapsed time
    state.crowd = crowds.fresh_crowd(begun)
    state.crowd.epochs = max(state.crowd.epochs, crowd.epochs)
    state.crowd.members = crowd.members
    for member in crowd.members.values():
        # Marks of what it holds are of the former state: that is another life.
        state.crowd.epochs += 1
        member.epoch, member.adopted = state.crowd.epochs, 1
        member.until += begun - at
        state.alive[FLYING] += member.flying
        for ticket in member.tickets:
            ticket[SERVED] = 0
            ticket[DUE] = begun
        for rule, part, units in zip(plan.rules, state.parts, member.pinned, strict=True):
            if units and rule.pins:
                rule.adopt(part, units)
    return Keyed(plan, state)


# Limits as text


def _with(limits: Sequence[Limit], given: Iterable[str | Limit]) -> list[Limit]:
    """Limits with those that are given in the places of their names."""
    changed = list(limits)
    places = {limit.name: place for place, limit in enumerate(limits)}
    seen: set[str] = set()
    for item in given:
        limit = parse_limit(item) if isinstance(item, str) else item
        place = places.get(limit.name)
        if place is None:
            raise _no_such_limit(limit, limits)
        if limit.name in seen:
            raise ConfigurationError(f"{limit.name} is given twice")
        seen.add(limit.name)
        changed[place] = _as_said(limits[place], limit, item) if isinstance(item, str) else limit
    if not same_meters(Plan(limits), Plan(changed)):
        told = ", ".join(f"{limit.name} counts {limit.meter}" for limit in limits)
        raise ConfigurationError(f"expected limits that count what they counted before: {told}")
    return changed


def _no_such_limit(limit: Limit, limits: Sequence[Limit]) -> ConfigurationError:
    names = ", ".join(other.name for other in limits)
    alike = [other for other in limits if other.meter == limit.meter]
    hint = f"; to put it in the place of {alike[0].name}, add :name={alike[0].name}" if alike else ""
    return ConfigurationError(
        f"no limit of this key is named {limit.name!r}; its limits are {names or 'none'}{hint}"
    )


_STAYS = {
    "charge": "charge",
    "when": "when",
    "refund": "refund",
    "start": "start",
    "transit": "max_transit_us",
    "error": "clock_error_us",
    "zone": "zone",
}
"""Option of the short form → field of a limit."""


def _as_said(old: Limit, new: Limit, text: str) -> Limit:
    """A limit of the short form, where what it does not say stays as it was."""
    said = {part.partition("=")[0] for part in text.split(":")[1:]}
    facts = {fact: getattr(old, fact) for option, fact in _STAYS.items() if option not in said}
    if new.kind == "unknown" and "kind" not in said:
        if old.kind == "calendar" and new.period_us == PERIODS_US.get(_UNITS[old.calendar or "day"]):
            facts |= {"kind": "calendar", "calendar": old.calendar, "period_us": old.period_us}
        elif old.kind != "calendar":
            facts |= {"kind": old.kind, "burst": old.burst}
    return replace(new, **facts)


_UNITS: Mapping[str, str] = {"hour": "h", "day": "day", "month": "month"}
_THOUSANDS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))
_PLAIN_NAME = re.compile(r"[^:]+\Z")


def limit_text(limit: Limit) -> str:
    """A limit in its short form: what :func:`headgate.parse_limit` reads as the same limit."""
    if limit.kind == "concurrency":
        text = f"{limit.meter}={amount_text(limit.amount)}"
    elif limit.calendar:
        text = f"{limit.meter}={amount_text(limit.amount)}/{_UNITS[limit.calendar]}:kind=calendar"
    else:
        text = f"{limit.meter}={amount_text(limit.amount)}/{_period_text(limit.period_us)}"
    if limit.burst is not None:
        text += f":burst={amount_text(limit.burst)}"
    elif limit.kind not in ("concurrency", "calendar", "unknown"):
        text += f":kind={limit.kind}"
    if limit.zone != "UTC":
        text += f":zone={limit.zone}"
    if limit.charge != "estimate":
        text += f":charge={limit.charge}"
    if limit.when != "arrival":
        text += f":when={limit.when}"
    if limit.refund is not None:
        text += f":refund={'yes' if limit.refund else 'no'}"
    if limit.start != "auto":
        text += f":start={limit.start if isinstance(limit.start, str) else f'used-{limit.start}'}"
    if limit.max_transit_us is not None:
        text += f":transit={_duration_text(limit.max_transit_us)}"
    if limit.clock_error_us is not None:
        text += f":error={_duration_text(limit.clock_error_us)}"
    if limit.name != replace(limit, name="").name and _PLAIN_NAME.match(limit.name):
        text += f":name={limit.name}"
    return text


def amount_text(units: int) -> str:
    """``500``, ``40k``, ``1.2M``: never rounded."""
    for size, letter in _THOUSANDS:
        if units >= size and units % size == 0:
            return f"{units // size}{letter}"
        if units >= size > 1000 and units * 10 % size == 0:
            return f"{units // size}.{units * 10 // size % 10}{letter}"
    return str(units)


def _period_text(period_us: int) -> str:
    for name, us in sorted(PERIODS_US.items(), key=itemgetter(1), reverse=True):
        if period_us % us == 0:
            return name if period_us == us else f"{period_us // us}{name}"
    return _duration_text(period_us)


def _duration_text(us: int) -> str:
    if us % SECOND == 0:
        return f"{us // SECOND}s"
    return f"{us // 1000}ms" if us % 1000 == 0 else f"{us // 1000}.{us % 1000:03d}ms"
