"""What ``headgate top`` shows: a key, or all keys, drawn for a terminal of some width and height.

Looks go in, text comes out. Nothing here asks a store, and no terminal is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from headgate.cli.operators import length_text, standing_text
from headgate.operate import ClientSnapshot, LimitSnapshot, Refusal, Snapshot, calls_per_second, rates
from headgate.progress.view import LimitStatus, printable

WINDOW_SECONDS = 5.0
"""Rates are those of so long a time, or since the first look."""
LONGEST_BAR, SHORTEST_BAR = 24, 6
GAP = 2
MOST_REFUSALS = 3
RATED = ("bucket", "unknown")
"""Kinds whose use is told by their rate; that of the others by the units that stand against them."""


@dataclass(frozen=True, slots=True)
class Look:
    """A key at one moment, and what went in the time before.

    Attributes:
        snapshot: the key.
        rates: {limit: units granted per second}; a limit of which it cannot be told is not there.
        calls: permits per second; None if it cannot be told.
    """

    snapshot: Snapshot
    rates: Mapping[str, float]
    calls: float | None

    def share(self, limit: LimitSnapshot) -> float | None:
        """How much of a limit is in use, 1 for all of it: of its rate, or of its window or slots."""
        if limit.kind not in RATED:
            return limit.used / limit.capacity
        rate = self.rates.get(limit.name)
        return None if rate is None or not limit.rate else rate / limit.rate

    @property
    def fullest(self) -> tuple[LimitSnapshot, float] | None:
        """The limit of which the largest part is in use; None if there is none."""
        found = [(limit, self.share(limit) or 0.0) for limit in self.snapshot.limits]
        return max(found, key=lambda pair: pair[1], default=None)


class Watch:
    """Remembers looks, to tell rates."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[Snapshot]] = {}

    def add(self, snapshot: Snapshot) -> Look:
        """The newest look at a key."""
        seen = self._seen.setdefault(snapshot.key, deque())
        seen.append(snapshot)
        while len(seen) > 2 and snapshot.elapsed_seconds - seen[1].elapsed_seconds >= WINDOW_SECONDS:
            seen.popleft()
        if len(seen) > 2 and (
            rates(seen[0], snapshot).keys() != rates(seen[-2], snapshot).keys()
            or snapshot.granted < seen[0].granted
        ):
            while len(seen) > 2:  # a count has begun anew: only what came after that tells anything
                seen.popleft()
        return Look(snapshot, rates(seen[0], snapshot), calls_per_second(seen[0], snapshot))


# One key


def key_screen(look: Look, place: str, *, width: int, height: int) -> list[Text | Table]:
    """A key. Where there is no room for all, refusals go first, and clients are only counted.

    Args:
        look: what to draw.
        place: the store, for people.
        width, height: of the terminal, in cells.
    """
    snapshot = look.snapshot
    above: list[Text | Table] = [_title(snapshot, place, width), *_wrapped(_facts(look), width), Text()]
    below: list[Text | Table] = [*_wrapped(_classes(snapshot), width)]
    if snapshot.set_by_operator:
        declared = [Text(printable(text), "yellow") for text in snapshot.declared]
        below += _wrapped([Text("set by an operator; programs declare", "yellow"), *declared], width)
    refusals = _refusals(snapshot.refusals, width)
    room = height - len(above) - 1 - len(snapshot.limits) - 1 - len(below)
    if room < len(refusals) + 3:
        refusals = []
    room -= len(refusals) + 2
    if snapshot.clients and room > 0:
        below += [Text(), _clients(snapshot.clients, width, room)]
    return [*above, _limits(look, width), Text(), *below, *refusals]


def _title(snapshot: Snapshot, place: str, width: int) -> Text:
    name = Text(printable(snapshot.key), "bold")
    name.truncate(max(width // 2, 8), overflow="ellipsis")
    calm = snapshot.blocked is None or snapshot.blocked.why == "full"
    told = Text(standing_text(snapshot.blocked), "green" if calm else "bold red")
    told.truncate(max(width - name.cell_len - GAP, 4), overflow="ellipsis")
    title = Text.assemble(name, " " * GAP, told)
    room = width - title.cell_len - len(place)
    if room >= GAP:
        title.append(" " * room).append(place, "dim")
    return title


def _facts(look: Look) -> list[Text]:
    snapshot = look.snapshot
    return [
        _fact("–" if look.calls is None else _number(look.calls), "calls/s"),
        _fact(f"{snapshot.in_flight:,}", "in flight"),
        _fact(f"{snapshot.waiting:,}", "waiting"),
        *([_fact(f"{snapshot.parked:,}", "parked")] if snapshot.parked else []),
        _fact(f"{len(snapshot.clients):,}", "client" if len(snapshot.clients) == 1 else "clients"),
        _fact(f"{snapshot.granted:,}", "granted"),
        _fact(f"{snapshot.refused:,}", "refused", alarming=snapshot.refused > 0),
    ]


def _fact(value: str, name: str, *, alarming: bool = False) -> Text:
    return Text.assemble((value, "bold red" if alarming else "bold"), " ", (name, "dim"))


def _classes(snapshot: Snapshot) -> list[Text]:
    """Who waits in each class, and what it gets of the limits."""
    return [
        Text.assemble((each.name, "dim"), " ", (f"{each.waiting:,}", "bold"), " waiting, ", f"{each.share} %")
        for each in snapshot.classes
    ]


def _limits(look: Look, width: int) -> Table:
    limits = look.snapshot.limits
    shares = [look.share(limit) for limit in limits]
    columns = [
        _Column("limit", [Text(printable(limit.name)) for limit in limits]),
        _Column("in use", [], rank=2),
        _Column("", [Text("" if share is None else f"{share:.0%}", "bold") for share in shares], rank=3),
        _Column("", [Text(_amounts(look, limit)) for limit in limits], rank=4),
        _Column("", [Text(_more(look, limit), "dim") for limit in limits], rank=1),
        _Column("", [_standing(limit) for limit in limits]),
    ]
    columns[2].right = True
    rest = [column for column in columns if column.cells]
    room = width - sum(column.width + GAP for column in _fitting(rest, width - SHORTEST_BAR - GAP)) - GAP
    if room >= SHORTEST_BAR:
        columns[1].cells = [_bar(share, min(room, LONGEST_BAR)) for share in shares]
    return _table([column for column in columns if column.cells], width)


def _amounts(look: Look, limit: LimitSnapshot) -> str:
    """What the share is of: the rate, or the units of a window or the slots."""
    return _rate(look, limit) if limit.kind in RATED else _used(limit)


def _more(look: Look, limit: LimitSnapshot) -> str:
    return _used(limit) if limit.kind in RATED else _rate(look, limit)


def _used(limit: LimitSnapshot) -> str:
    what = "slots" if limit.kind == "concurrency" else "used"
    return f"{limit.used:,} of {limit.capacity:,} {what}"


def _rate(look: Look, limit: LimitSnapshot) -> str:
    rate = look.rates.get(limit.name)
    if rate is None or not limit.rate:
        return ""
    return LimitStatus(limit.name, rate, limit.rate, binds=False).amounts


def _bar(share: float | None, length: int) -> Text:
    halves = round(min(max(share or 0.0, 0.0), 1.0) * 2 * length)
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    style = "bar.complete" if halves < 2 * length else "bar.finished"
    return Text.assemble((full, style), ("─" * (length - len(full)), "bar.back"))  # thin: colours may be off


def _standing(limit: LimitSnapshot) -> Text:
    if limit.standing == "open":
        return Text("")
    if limit.standing == "probing":
        return Text("probing", "red")
    style = "yellow" if limit.standing == "full" else "red"
    until = "" if limit.opens_seconds is None else f" {length_text(limit.opens_seconds)}"
    return Text(limit.standing + until, style)


def _clients(clients: Sequence[ClientSnapshot], width: int, lines: int) -> Table:
    most = lines if len(clients) <= lines else max(lines - 1, 1)
    ranked = sorted(clients, key=lambda each: (-each.in_flight - sum(each.waiting.values()), each.name))
    shown, left = ranked[:most], len(ranked) - most
    names = [Text(printable(each.name) or "this process") for each in shown]
    if left > 0 and lines > 1:
        names.append(Text(f"… and {left:,} more", "dim"))
    held = [Text(", ".join(f"{units:,} {name}" for name, units in each.held.items())) for each in shown]
    waiting = [
        Text(", ".join(f"{count:,} {name}" for name, count in each.waiting.items()) or "–") for each in shown
    ]
    leases = [Text("–" if each.lease_seconds is None else length_text(each.lease_seconds)) for each in shown]
    columns = [
        _Column("client", names),
        _Column("in flight", [Text(f"{each.in_flight:,}") for each in shown], rank=4, right=True),
        _Column("waiting", waiting, rank=3),
        _Column("holds", held, rank=2),
        _Column("lease", leases, rank=5),
    ]
    for column in columns:
        column.cells += [Text("")] * (len(names) - len(column.cells))
    return _table(columns, width)


def _refusals(refusals: Sequence[Refusal], width: int) -> list[Text]:
    """The last ones, the latest first."""
    if not refusals:
        return []
    lines = [Text(), Text("last refusals of the server", "dim")]
    for refusal in reversed(refusals[-MOST_REFUSALS:]):
        after = refusal.retry_after_seconds
        asked = "no retry-after" if after is None else f"retry after {length_text(after)}"
        line = Text(f"{length_text(refusal.ago_seconds)} ago   {printable(refusal.limit)}   {asked}")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


# All keys


def keys_screen(looks: Sequence[Look], place: str, *, width: int, height: int) -> list[Text | Table]:
    """The busiest keys first; those that have no room are only counted. Arguments as for a key."""
    ranked = sorted(looks, key=lambda look: (-(look.calls or 0.0), -look.snapshot.waiting, look.snapshot.key))
    most = max(height - 5, 1)
    shown, left = ranked[:most], len(ranked) - most
    title = Text.assemble(
        (f"{len(looks):,} key{'' if len(looks) == 1 else 's'}", "bold"), "  ", (place, "dim")
    )
    title.truncate(width, overflow="ellipsis")
    if not looks:
        return [title, Text("nobody has drawn on this store yet")]
    parked = _Column("parked", [Text(f"{look.snapshot.parked:,}") for look in shown], rank=6)
    columns = [
        _Column("key", [Text(printable(look.snapshot.key), "bold") for look in shown]),
        _Column("calls/s", [Text("" if look.calls is None else _number(look.calls)) for look in shown]),
        _Column("in flight", [Text(f"{look.snapshot.in_flight:,}") for look in shown], rank=3),
        _Column("waiting", [Text(f"{look.snapshot.waiting:,}") for look in shown], rank=5),
        *([parked] if any(look.snapshot.parked for look in shown) else []),
        _Column("refused", [Text(f"{look.snapshot.refused:,}") for look in shown], rank=2),
        _Column("fullest", [_fullest(look) for look in shown], rank=1),
        _Column("now", [_now(look.snapshot) for look in shown], rank=4),
    ]
    for column in columns[1:-2]:
        column.right = True
    found: list[Text | Table] = [title, Text(), _table(columns, width)]
    return [*found, Text(f"… and {left:,} more", "dim")] if left > 0 else found


def _fullest(look: Look) -> Text:
    if look.fullest is None:
        return Text("")
    limit, share = look.fullest
    return Text(f"{printable(limit.name)} {share:.0%}")


def _now(snapshot: Snapshot) -> Text:
    calm = snapshot.blocked is None or snapshot.blocked.why == "full"
    return Text(standing_text(snapshot.blocked), "green" if calm else "bold red")


# Tables


@dataclass(slots=True)
class _Column:
    """Cells under a head. Where there is no room for all columns, the lowest rank goes first; 0 stays."""

    head: str
    cells: list[Text]
    rank: int = 0
    right: bool = False

    @property
    def width(self) -> int:
        return max([len(self.head), *(cell.cell_len for cell in self.cells)])


def _fitting(columns: Sequence[_Column], width: int) -> list[_Column]:
    """Those that there is room for."""
    left = [column for column in columns if column.width]
    while sum(column.width + GAP for column in left) - GAP > width:
        ranked = [column.rank for column in left if column.rank]
        if not ranked:
            break
        left = [column for column in left if column.rank != min(ranked)]
    return left


def _table(columns: Sequence[_Column], width: int) -> Table:
    shown = _fitting(columns, width)
    table = Table.grid(padding=(0, GAP, 0, 0))
    for column in shown:
        table.add_column(justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis")
    if any(column.head for column in shown):
        table.add_row(*(Text(column.head, "dim") for column in shown))
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table


def _wrapped(parts: Sequence[Text], width: int) -> list[Text]:
    """Side by side, in as many lines as it takes; no part is broken in two."""
    lines = [Text()]
    for part in parts:
        if lines[-1] and lines[-1].cell_len + 3 + part.cell_len > width:
            lines.append(Text())
        lines[-1].append("   " if lines[-1] else "").append_text(part)
    return lines


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:,.1f}"
