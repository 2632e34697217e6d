"""Strategies: limits with servers that they describe, and histories of calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hypothesis import strategies as st

from headgate.core.model import DAY, HOUR, SECOND, Kind, Limit
from headgate.core.plan import Plan
from tests.core import servers
from tests.core.servers import Server
from tests.core.world import EPOCH, Delay, Fate, Latency, Step

PERIODS = (1_000, 60_000, SECOND, 60 * SECOND)


@dataclass(repr=False)
class Pair:
    """A limit as declared, a server that keeps it, and the costs that may be asked for."""

    limit: Limit
    server: Server
    costs: range

    def __repr__(self) -> str:
        told = {
            name: value for name in Limit.__slots__ if (value := getattr(self.limit, name)) not in (None, "")
        }
        return f"{told} against {type(self.server).__name__} {vars(self.server)}"


Draw = Callable[[st.SearchStrategy[int]], int]


def _transit(draw: st.DrawFn, period: int) -> int | None:
    return draw(
        st.sampled_from((None, None, max(period // 20, 1), max(period // 3, 1), period + period // 7))
    )


def _charging(draw: st.DrawFn, modes: Sequence[str]) -> dict[str, str]:
    return {
        "estimate": {"charge": "estimate"},
        "usage": {"charge": "usage"},
        "completion": {"charge": "usage", "when": "completion"},
    }[draw(st.sampled_from(modes))]


ALL_MODES = ("estimate", "estimate", "usage", "completion")


@st.composite
def buckets(draw: st.DrawFn, meter: str = "requests", modes: Sequence[str] = ALL_MODES) -> Pair:
    """A token bucket that says so."""
    amount, period = draw(st.integers(1, 40)), draw(st.sampled_from(PERIODS))
    burst = draw(st.integers(1, 2 * amount + 1))
    limit = Limit(
        meter=meter, amount=amount, period_us=period, kind="bucket", burst=burst, name=meter + " bucket",
        start=draw(st.sampled_from(("auto", "empty", "full"))),
        max_transit_us=draw(st.sampled_from((None, None, period // 20, period))),
        **_charging(draw, modes),  # type: ignore[arg-type]
    )  # fmt: skip
    return Pair(limit, servers.Bucket(amount, period, burst), range(1, burst + 1))


@st.composite
def window_servers(draw: st.DrawFn, amount: int, period: int, *, counter: bool = False) -> Server:
    """Any server of ``amount`` in ``period`` whose phase we cannot know."""
    which = draw(st.sampled_from(("log", "grid", "anchored", "counter")[: 4 if counter else 3]))
    phase = draw(st.integers(0, period - 1))
    match which:
        case "log":
            return servers.SlidingLog(amount, period)
        case "grid":
            return servers.Grid(amount, period, phase=phase)
        case "anchored":
            return servers.Anchored(amount, period)
        case _:
            return servers.SlidingCounter(amount, period, phase=phase)


@st.composite
def windows(draw: st.DrawFn, meter: str = "requests", modes: Sequence[str] = ALL_MODES) -> Pair:
    """A sliding or anchored window that says so."""
    amount, period = draw(st.integers(1, 40)), draw(st.sampled_from(PERIODS))
    kind: Kind = draw(st.sampled_from(("sliding", "anchored")))
    limit = Limit(
        meter=meter, amount=amount, period_us=period, kind=kind, name=meter + " window",
        start=draw(st.sampled_from(("auto", "empty", "full"))),
        max_transit_us=_transit(draw, period),
        **_charging(draw, modes),  # type: ignore[arg-type]
    )  # fmt: skip
    return Pair(limit, draw(window_servers(amount, period)), range(1, amount + 1))


@st.composite
def grids(draw: st.DrawFn, meter: str = "requests", modes: Sequence[str] = ALL_MODES) -> Pair:
    """A fixed window on the clock grid, as far off as its declared error allows."""
    amount, period = draw(st.integers(1, 40)), draw(st.sampled_from(PERIODS))
    error = draw(st.sampled_from((None, 0, period // 100, period // 5)))
    limit = Limit(
        meter=meter, amount=amount, period_us=period, kind="fixed", name=meter + " grid",
        start=draw(st.sampled_from(("auto", "empty", "full"))),
        max_transit_us=_transit(draw, period),
        clock_error_us=error,
        **_charging(draw, modes),  # type: ignore[arg-type]
    )  # fmt: skip
    allowed = min(5_000, period // 20) if error is None else error
    skew = draw(st.sampled_from((-allowed, 0, allowed)))
    return Pair(limit, servers.Grid(amount, period, phase=skew - EPOCH), range(1, amount + 1))


@st.composite
def calendars(draw: st.DrawFn, meter: str = "requests", modes: Sequence[str] = ALL_MODES) -> Pair:
    """An hour, day or month of somewhere."""
    amount = draw(st.integers(1, 40))
    unit: Literal["hour", "day", "month"] = draw(st.sampled_from(("hour", "day", "month")))
    period = {"hour": HOUR, "day": 25 * HOUR, "month": 31 * DAY + HOUR}[unit]
    zone = draw(st.sampled_from(("UTC", "America/Los_Angeles", "Asia/Kolkata", "Europe/Berlin")))
    limit = Limit(
        meter=meter, amount=amount, period_us=period, kind="calendar", calendar=unit, zone=zone,
        name=meter + " calendar",
        max_transit_us=draw(st.sampled_from((None, None, 60 * SECOND))),
        **_charging(draw, modes),  # type: ignore[arg-type]
    )  # fmt: skip
    skew = draw(st.sampled_from((-SECOND, 0, SECOND)))
    return Pair(limit, servers.Calendar(amount, unit, zone, epoch=EPOCH, skew=skew), range(1, amount + 1))


@st.composite
def unknowns(draw: st.DrawFn, meter: str = "requests", modes: Sequence[str] = ALL_MODES) -> Pair:
    """A limit of unknown kind, and any window server; costs above the small bucket as well."""
    amount, period = draw(st.integers(2, 100)), draw(st.sampled_from(PERIODS))
    limit = Limit(
        meter=meter, amount=amount, period_us=period, name=meter + " unknown",
        start=draw(st.sampled_from(("auto", "empty", "full"))),
        max_transit_us=draw(st.sampled_from((None, None, period // 20, period))),
        **_charging(draw, modes),  # type: ignore[arg-type]
    )  # fmt: skip
    server = draw(window_servers(amount, period, counter=True))
    return Pair(limit, server, range(1, draw(st.sampled_from((max(amount // 20, 1), amount))) + 1))


@st.composite
def slots(draw: st.DrawFn, meter: str = "concurrency") -> Pair:
    amount = draw(st.integers(1, 30))
    limit = Limit(meter=meter, amount=amount, kind="concurrency")
    return Pair(limit, servers.Slots(amount), range(1, 2))


def any_pair(meter: str) -> st.SearchStrategy[Pair]:
    return st.one_of(buckets(meter), windows(meter), grids(meter), calendars(meter), unknowns(meter))


@st.composite
def layers(draw: st.DrawFn) -> list[Pair]:
    """One to four limits, such as per second and per month, on two meters and on slots."""
    pairs = [draw(any_pair("requests"))]
    if draw(st.booleans()):
        pairs.append(draw(any_pair("tokens")))
    if draw(st.booleans()):
        pairs.append(draw(any_pair(draw(st.sampled_from(("requests", "tokens"))))))
        pairs[-1].limit = replace(pairs[-1].limit, name="another " + pairs[-1].limit.name)
    if draw(st.booleans()):
        pairs.append(draw(slots()))
    return pairs


DELAYS: tuple[Delay, ...] = ("none", "longest", "either", "any", "bunched")
LATENCIES: tuple[Latency, ...] = ("none", "short", "long", "any", "stalls")
FATES: tuple[Fate, ...] = ("answered", "answered", "mixed", "mixed", "lost", "unsent")


@st.composite
def histories(
    draw: st.DrawFn,
    pairs: Sequence[Pair],
    *,
    fates: Sequence[Fate] = FATES,
    jumps: Literal["no", "one", "both"] = "no",
    most_steps: int = 8,
) -> list[Step]:
    """Bursts of calls with gaps of all sizes between.

    One clock jumps, the elapsed or the wall; the other stays right. ``jumps="both"``: now this, now that.
    """
    jumping = draw(st.sampled_from((("elapsed",), ("wall",)))) if jumps == "one" else ("elapsed", "wall")
    transits = [rule.transit_us for rule in Plan([pair.limit for pair in pairs]).rules if rule.transit_us]
    transit = min(transits, default=1_000)
    periods = [pair.limit.period_us for pair in pairs if pair.limit.period_us] or [SECOND]
    meters = {pair.limit.meter for pair in pairs}
    costs = {
        meter: min((pair.costs for pair in pairs if pair.limit.meter == meter), key=lambda costs: costs.stop)
        for meter in meters
    }
    steps = []
    for _ in range(draw(st.integers(1, most_steps))):
        period = draw(st.sampled_from(periods))
        gap = draw(
            st.sampled_from((0, 1, transit // 3, transit, period // 2, period - 1, period, 3 * period))
        )
        size = draw(st.sampled_from((1, 2, 5, 12, 40)))
        units = {
            meter: draw(st.sampled_from((1, 1, 1, (costs[meter].stop + 1) // 2, costs[meter].stop - 1)))
            for meter in sorted(meters)
        }
        skip = draw(st.sampled_from((None, None, *sorted(meters))))
        one = tuple(
            0
            if pair.limit.meter == skip and len(meters) > 1
            else min(units[pair.limit.meter], pair.costs.stop - 1)
            for pair in pairs
        )
        least = tuple(min(1, cost) for cost in one)
        step = Step(
            gap,
            [one if index % 3 == 0 else least for index in range(size)],
            draw(st.sampled_from(DELAYS)),
            draw(st.sampled_from(LATENCIES)),
            draw(st.sampled_from(tuple(fates))),
        )
        if jumps != "no":
            size_us = draw(
                st.sampled_from((-DAY, -period, -2 * SECOND, 0, 2 * SECOND, period + 2 * SECOND, DAY))
            )
            if draw(st.sampled_from(jumping)) == "elapsed":
                step.elapsed_jump = size_us
            else:
                step.wall_jump = size_us
        steps.append(step)
    return steps
