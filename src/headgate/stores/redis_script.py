"""What the script for Redis is told, and what it answers.

``redis.lua`` runs the rules of the core inside the server. It is told a plan as numbers that are computed
here, once, by the rules themselves, so that none of that is there twice. This module knows no connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import msgspec

from headgate.core import calendar, decide
from headgate.core.limits.base import ADOPTED, Calls, Rule
from headgate.core.limits.concurrency import Concurrency
from headgate.core.limits.fixed_window import FixedWindow
from headgate.core.limits.sliding_window import RING, SlidingWindow
from headgate.core.limits.token_bucket import SmallBucket, TokenBucket
from headgate.core.model import (
    ANSWERED,
    NEVER,
    SECOND,
    CalendarUnit,
    Costs,
    Decision,
    Granted,
    Now,
    Refused,
    Report,
    Signal,
    Wait,
    new,
)
from headgate.core.plan import Plan
from headgate.core.together import Line

DONE, ABSENT, BEHIND, OTHER, EDGES, CHANGED, FOREIGN_FORMAT = range(7)
"""The first item of a reply."""
TRADE, ALONE, LEAVE, GET, PUT, FORGET = range(1, 7)
"""Verbs."""
GRANTED, WAITS, TOO_LARGE = range(1, 4)
"""The first item of the answer to an ask."""
PLAIN, PLAIN_PROBE, LONG, FOREIGN = range(4)
"""Forms of a report."""
BUCKET, SLIDING, FIXED, SLOTS = range(1, 5)
"""Kinds of rules."""
OUTCOMES: Mapping[str, int] = MappingProxyType({"answered": 0, "lost": 1, "unsent": 2})

LONGEST_ROW = 4000
"""Lua's stack holds 8000 values; a longer row is told as a list."""
CELL = 20
"""Slots of a sliding window's ring in one cell."""
MOST_INSTANTS = 8
"""The calendar is told around so many instants."""
_EXACT = 1 << 52
_USED = 9  # where a reply begins to tell it

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


@cache
def script() -> tuple[str, str]:
    """The script as the server takes it, and its SHA-1.

    ``local NAME <const> = number`` is not known to Redis' Lua: the number is put in the name's place. Lines
    stay where they are, so that errors tell those of the file.
    """
    text = files("headgate.stores").joinpath("redis.lua").read_text("utf-8")
    text = re.sub(r"--\[\[.*?\]\]|--.*", "", text)
    named = dict(re.findall(r"^local (\w+) <const> = (-?\d+)", text, re.MULTILINE))
    text = re.sub(r"^local \w+ <const> = .*", "", text, flags=re.MULTILINE)
    text = re.sub(r"'[^']*'|\b[A-Z]\w*\b", lambda found: named.get(found[0], found[0]), text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


# Rows: msgpack values without a head


def row(items: Sequence[object]) -> bytes:
    """Items as the script reads them fastest."""
    text = _encode(items)
    size = len(items)
    if size < 16:
        return text[1:]
    return text[3:] if size <= LONGEST_ROW else text


def reply(data: bytes) -> list[Any]:
    """What the script answered."""
    found: list[Any] = _decode(data)
    return found


def _cell(data: bytes) -> msgspec.Raw:
    """Bytes in a string, for the script knows no others."""
    size = len(data)
    if size < 32:
        head = bytes([0xA0 | size])
    elif size < 1 << 8:
        head = bytes([0xD9, size])
    elif size < 1 << 16:
        head = b"\xda" + size.to_bytes(2, "big")
    else:
        head = b"\xdb" + size.to_bytes(4, "big")
    return msgspec.Raw(head + data)


def _bounded(number: int) -> int:
    """Beyond it, no limit tells one number from another."""
    return min(max(number, -_EXACT), _EXACT)


# Plans


class Told:
    """A plan as the script is told it.

    Attributes:
        rules: ARGV[2].
        shapes: how each rule's state is kept; for PUT.
        marks: how many marks a grant has of each rule.
        ttl_ms: after how long in silence nothing of the state counts, but for debts and what is shut.
    """

    def __init__(self, plan: Plan, lease_us: int, wall_us: int) -> None:
        self.plan = plan
        self.shapes = [_shape(rule) for rule in plan.rules]
        self.marks = tuple(_MARKS[type(rule)] for rule in plan.rules)
        self.ttl_ms = (max(map(_fades_us, plan.rules), default=0) + lease_us) // 1000 + 60_000
        self._numbers = [_numbers(rule) for rule in plan.rules]
        self._calendar = any(limit.calendar for limit in plan.limits)
        self._instants = [wall_us]
        self.rules = self._encoded()

    def see(self, wall_us: int, *, anew: bool = False) -> None:
        """Tell the edges of calendars around another instant, too; ``anew``: around no other."""
        if self._calendar:
            self._instants = [wall_us] if anew else [*self._instants, wall_us][-MOST_INSTANTS:]
            self.rules = self._encoded()

    def _encoded(self) -> bytes:
        rules: list[object] = [self.ttl_ms]
        for limit, numbers in zip(self.plan.limits, self._numbers, strict=True):
            told = numbers
            if limit.calendar:
                told = [*numbers, _windows(limit.calendar, limit.zone, self._instants)]
            elif numbers[0] == FIXED:
                told = [*numbers, False]
            rules.append(_cell(row(told)))
        return row(rules)


_MARKS: Mapping[type[Rule], int] = MappingProxyType(
    {TokenBucket: 3, SmallBucket: 3, SlidingWindow: 4, FixedWindow: 3, Concurrency: 0}
)


def _numbers(rule: Rule) -> list[object]:
    """In the order of the names in the script."""
    if isinstance(rule, TokenBucket):
        unknown = isinstance(rule, SmallBucket)
        return [
            *_head(BUCKET, rule, rule.calls),
            *(rule.burst, rule.unit, 1 << rule.shift, rule.full, rule.most),
            False if unknown else rule.limit.burst,
            rule.limit.amount if unknown else False,
        ]
    if isinstance(rule, SlidingWindow):
        return [*_head(SLIDING, rule, rule.calls), rule.amount, rule.period_us, rule.slot_us]
    if isinstance(rule, FixedWindow):
        return [
            *_head(FIXED, rule, rule.calls),
            *(rule.amount, rule.limit.period_us, rule.scale.unit_ticks, 1 << rule.scale.shift, rule.error_us),
        ]
    if isinstance(rule, Concurrency):
        return [SLOTS, rule.largest, True]
    raise TypeError(f"the script knows no {type(rule).__name__}")


def _head(kind: int, rule: Rule, calls: Calls) -> list[object]:
    base = calls.base + 1  # Lua counts from one
    if kind == SLIDING:
        base -= 2 * (RING - RING // CELL)  # its rings stand in cells
    return [
        *(kind, rule.largest, rule.pins),
        *(calls.transit_us, calls.slot_us, calls.size, calls.lapses, calls.late),
        *(base, calls.given + 1, calls.answered + 1, calls.lost + 1),
    ]


def _shape(rule: Rule) -> list[int]:
    """How many numbers of its state stand in the row, and (below 0) in a cell each, one after another."""
    if isinstance(rule, SlidingWindow):
        return [8, *[-CELL] * (2 * RING // CELL), 3, -rule.calls.size]
    if isinstance(rule, (TokenBucket, FixedWindow)):
        return [rule.calls.base + 3, -rule.calls.size]
    return [1]


def _fades_us(rule: Rule) -> int:
    silence = 8 * rule.transit_us + 4 * SECOND  # a hold, and an alive clock that stands still
    if isinstance(rule, TokenBucket):
        return (rule.full >> rule.shift) + silence
    if isinstance(rule, SlidingWindow):
        return rule.period_us + 2 * rule.slot_us + silence
    if isinstance(rule, FixedWindow):
        return rule.limit.period_us + 2 * rule.error_us + silence
    return silence


def _windows(unit: CalendarUnit, zone: str, instants: Sequence[int]) -> list[int]:
    """The windows around instants, as [from, until, begin, end, …], in order.

    Instants from ``from`` to ``until`` lie in the window that begins and ends so; that is all of it, except
    where the zone's offset changes within. Each instant comes with the window before it and three after it.
    """
    found: set[tuple[int, int, int, int]] = set()
    for instant in instants:
        at = calendar.window(instant, unit, zone)[0] - 1
        for _ in range(5):
            piece = _piece(at, unit, zone)
            found.add(piece)
            at = piece[1]
    return [number for piece in sorted(found) for number in piece]


def _piece(wall_us: int, unit: CalendarUnit, zone: str) -> tuple[int, int, int, int]:
    begin, end = window = calendar.window(wall_us, unit, zone)

    def is_other(instant: int) -> bool:
        return calendar.window(instant, unit, zone) != window

    first = begin
    if is_other(begin):
        first = _change(begin, wall_us, lambda instant: not is_other(instant))
    until = _change(wall_us, end, is_other) if is_other(end - 1) else end
    return first, until, begin, end


def _change(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The instant from which on something holds that does not at ``low``, and does at ``high``."""
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


# Questions


def question(
    verb: int,
    told: Told | None = None,
    *,
    client: str | bool = False,
    lease_us: int = 0,
    known: tuple[str | bool, int] = (False, 0),
    fingerprint: str | bool = False,
    now: Now | None = None,
    sequence: int = 0,
    reports: Sequence[Report] = (),
    holding: Sequence[int] | None = None,
    lines: Sequence[Line] = (),
) -> bytes:
    """ARGV[1].

    Args:
        told: the plan by which it is asked; no GET and FORGET needs one.
        client: who asks; False to be alone.
        known: generation and version of the state that was seen last; for PUT and FORGET, of the one that is
            to be there, or False for none.
        fingerprint: of the limits.
        now: in the place of the server's clock.
        sequence, reports, holding, lines: as in :class:`~headgate.core.together.Trade`.
    """
    held = -1 if holding is None else len(holding)
    items: list[object] = [verb, client, lease_us, *known, fingerprint]
    items += (False, False) if now is None else now
    items += (sequence, len(reports), held, len(lines))
    if told is not None:
        for report in reports:
            _put_report(items, told, report)
        items += holding or ()
        for line in lines:
            _put_line(items, told.plan, line)
    return row(items)


def new_state(
    generation: str, version: int, fingerprint: str, about: str, state: decide.State, told: Told
) -> bytes:
    """ARGV[3] of PUT."""
    return row([generation, version, fingerprint, about, state.dump(), told.shapes])


def _put_report(items: list[object], told: Told, report: Report) -> None:
    grant, signal = report
    costs = grant.costs
    if len(costs) != len(told.marks):
        items += (FOREIGN, grant.epoch, grant.steady_us, OUTCOMES[signal.outcome])
        return
    form = LONG
    if signal is ANSWERED:
        form = PLAIN_PROBE if grant.probe else PLAIN
    items += (form, grant.epoch, grant.steady_us, *costs)
    for cost, count, marks in zip(costs, told.marks, grant.marks, strict=True):
        if cost and count:
            items += marks if len(marks) == count else ADOPTED[:count]
    if form == LONG:
        _put_signal(items, told.plan, grant, signal)


def _put_signal(items: list[object], plan: Plan, grant: Granted, signal: Signal) -> None:
    costs, throttle = grant.costs, signal.throttle
    items += (OUTCOMES[signal.outcome], int(grant.probe))
    items += [decide.charge_of(rule, cost, signal) for rule, cost in zip(plan.rules, costs, strict=True)]
    if throttle is not None:
        hit = sorted(decide.hit(throttle, plan, costs))
        items += (len(hit), *(index + 1 for index in hit))
        if hit:
            after = throttle.retry_after_us
            items += (int(throttle.until_edge), -1 if after is None else _bounded(after))
        items.append(0)
        return
    read = [
        (index + 1, False if reading.limit is None else _bounded(reading.limit), _bounded(reading.remaining))
        for index, limit in enumerate(plan.limits)
        for reading in signal.readings
        if reading.meter == limit.meter and reading.remaining is not None
    ]
    items += (0, len(read))
    for reading in read:
        items += reading


def _put_line(items: list[object], plan: Plan, line: Line) -> None:
    runs = list(_runs(line.asks))
    items += (line.kind, line.waiting, len(runs))
    for count, costs in runs:
        items += (count, _bounded(plan.weight_us(costs)), *map(_bounded, costs))


def _runs(asks: Sequence[Costs]) -> Iterator[tuple[int, Costs]]:
    """Equal asks in a row, as (how many, costs)."""
    start = 0
    for place, costs in enumerate(asks):
        if costs != asks[start]:
            yield place - start, asks[start]
            start = place
    if asks:
        yield len(asks) - start, asks[start]


# Answers


def used(told: Told, reply: Sequence[Any]) -> tuple[int, ...]:
    """The units that stand against each limit, as a reply tells."""
    return tuple(reply[_USED : _USED + len(told.marks)])


def answers(told: Told, reply: Sequence[Any]) -> list[list[int]]:
    """What a reply says to each line."""
    return list(reply[_USED + len(told.marks) :])


def decisions(
    told: Told,
    answers: Sequence[int],
    asks: Sequence[Costs],
    now_us: int,
    steady_us: int,
    epoch: int,
    shift_us: int = 0,
) -> list[Decision]:
    """What the asks of a line were answered, up to the first that waits.

    Args:
        now_us: when, by the clock of whoever asked.
        steady_us: the same in steady time.
        shift_us: how far the server's clock is ahead of that of whoever asked.
    """
    plan, counts = told.plan, told.marks
    use_before = now_us + plan.use_before_us if plan.use_before_us < NEVER else NEVER
    found: list[Decision] = []
    place = 0
    while place < len(answers):
        kind, one = answers[place], answers[place + 1]
        place += 2
        if kind == GRANTED:
            costs = asks[len(found)]
            marks = []
            for cost, count in zip(costs, counts, strict=True):
                if cost and count:
                    marks.append(tuple(answers[place : place + count]))
                    place += count
                else:
                    marks.append(())
            found.append(new(Granted, (costs, now_us, use_before, tuple(marks), steady_us, one == 1, epoch)))
        elif kind == WAITS:
            until = one - shift_us if one < NEVER else NEVER
            found.append(Wait(until, answers[place] - 1, answers[place + 1] == 1))
            break
        else:
            found.append(Refused(one - 1, plan.rules[one - 1].largest))
    return found
