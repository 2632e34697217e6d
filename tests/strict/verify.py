"""Looks at the raw log once it is whole: was each decision right, and how much of what was allowed was used?

The verifier decides every arrival again by another method than the rules, with which it shares no code.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from fractions import Fraction
from itertools import pairwise

from tests.strict.rules import ELAPSED, SECOND, WALL, Arrival, Bucket, Completion, Config, Limit, Log


def verify(config: Config, log: Log) -> list[str]:
    """Decides every arrival of the log again and returns where the judge said otherwise, in words.

    Windows are range sums over a tree of all arrivals, looked up by time. A bucket is the envelope "in no
    interval of length x more than burst + rate x" written as a reflected sum: the level is what it would be
    without a top, less the most by which that ever exceeded the top; in fractions of seconds.
    """
    arrivals = [event for event in log if isinstance(event, Arrival)]
    disagreements = [
        f"event {event} is earlier than the one before"
        for before, event in pairwise(log)
        if event.stamp[ELAPSED] < before.stamp[ELAPSED] or event.stamp[WALL] < before.stamp[WALL]
    ]
    levels = [_levels(limit, config.count_refused, index, log) for index, limit in enumerate(config.limits)]
    for arrival, found in zip(arrivals, zip(*levels, strict=True), strict=True):
        refused_by = tuple(i for i, level in enumerate(found) if level < arrival.units[i])
        rooms = tuple(
            Fraction(room, limit.window_ns if limit.kind in ("bucket", "counter") else 1)
            for room, limit in zip(arrival.rooms, config.limits, strict=True)
        )
        if refused_by != arrival.refused_by or rooms != found:
            disagreements.append(
                f"call {arrival.number}: judged {arrival.refused_by} at {[float(room) for room in rooms]}, "
                f"verified {refused_by} at {[float(level) for level in found]}"
            )
    return disagreements


def _levels(limit: Limit, count_refused: bool, index: int, log: Log) -> list[Fraction]:
    """The units that limit `index` had left at each arrival of the log."""
    if limit.kind == "bucket":
        return _bucket_levels(limit, count_refused, index, log)
    if limit.kind == "concurrency":
        return _concurrency_levels(limit, log)
    return _window_levels(limit, count_refused, index, log)


def _bucket_levels(limit: Limit, count_refused: bool, index: int, log: Log) -> list[Fraction]:
    rate = Fraction(limit.amount) / Fraction(str(limit.window_seconds))
    burst = Fraction(limit.capacity)
    start = Fraction(limit.left_at_first)  # the level when the sum began
    total = highest = Fraction(0)  # supply less demand since then; by how much that has exceeded the top
    before = log[0].stamp[ELAPSED] if log else 0
    levels = []
    for event in log:
        total += rate * Fraction(event.stamp[ELAPSED] - before, SECOND)
        before = event.stamp[ELAPSED]
        highest = max(highest, total + start - burst)
        if isinstance(event, Arrival):
            levels.append(start + total - highest)
            if count_refused or not event.refused_by:
                total -= event.units[index]
                if start + total - highest < -burst:  # the debt is bounded: start again from there
                    start = -burst
                    total = highest = Fraction(0)
        else:
            total += event.units[index]
            highest = max(highest, total + start - burst)
    return levels


def _concurrency_levels(limit: Limit, log: Log) -> list[Fraction]:
    levels, admitted, ended = [], 0, 0
    for event in log:
        if isinstance(event, Arrival):
            levels.append(Fraction(limit.amount - admitted + ended))
            admitted += not event.refused_by
        else:
            ended += 1
    return levels


def _window_levels(limit: Limit, count_refused: bool, index: int, log: Log) -> list[Fraction]:
    clock = WALL if limit.kind in ("fixed", "counter") else ELAPSED
    window = limit.window_ns
    times = [event.stamp[clock] for event in log if isinstance(event, Arrival)]
    tree = [0] * (len(times) + 1)  # a Fenwick tree over arrival numbers

    def add(number: int, units: int) -> None:
        at = number + 1
        while at < len(tree):
            tree[at] += units
            at += at & -at

    def before(number: int) -> int:
        total = 0
        while number:
            total += tree[number]
            number -= number & -number
        return total

    levels = []
    anchor: int | None = None  # the first call of the open window
    for event in log:
        if isinstance(event, Completion):
            add(event.number, -event.units[index])
            continue
        now, everything = event.stamp[clock], before(len(times))
        charged = count_refused or not event.refused_by
        match limit.kind:
            case "sliding":
                used = Fraction(everything - before(bisect_right(times, now - window)))
            case "fixed":
                used = Fraction(everything - before(bisect_left(times, now - now % window)))
            case "counter":
                present, past = (
                    before(bisect_left(times, now - now % window - back)) for back in (0, window)
                )
                used = everything - present + (present - past) * (1 - Fraction(now % window, window))
            case _:
                if anchor is not None and now >= times[anchor] + window:
                    anchor = None
                used = Fraction(0 if anchor is None else everything - before(anchor))
                if anchor is None and charged:
                    anchor = event.number
        levels.append(limit.amount - used)
        if charged:
            add(event.number, event.units[index])
    return levels


def utilisation(limit: Limit, index: int, log: Log) -> dict[str, float | None]:
    """Accepted units, less what was given back by the last arrival, against the most this rule could accept.

    Arrivals, admitted or refused, run from t0 to t1; t = t1 - t0. Two callers to compare with:

    kind           empty_start                                full_start
    bucket         after the first call / R t                 all / (found + R t)
    sliding        after the first call / (N / T) t           all / N (floor(t / T) + 1)
    anchored       after the first call / (N / T) t           all / N (floor(t / T) + 1)
    counter        after the first call / (N / T) t           all / (N + (N / T) t)
    fixed          in whole windows / N * whole windows       all / N * touched windows
    concurrency    slot time in use / slots * t               the same

    empty_start asks for the steady rate: nothing was left when the first call had been admitted. That call
    marks the start and does not count, so a perfect pacer has exactly 1; whoever spends a full start gets
    above 1. full_start asks for the start as well and is never above 1. A window is whole if it opened
    after t0 and closed before t1: the first and the last, of which the caller saw only a part, are left
    out. `None`: nothing to divide by.
    """
    arrivals = [event for event in log if isinstance(event, Arrival)]
    admitted = [arrival for arrival in arrivals if not arrival.refused_by]
    if not admitted:
        return {"accepted_units": 0, "empty_start": None, "full_start": None}
    clock = WALL if limit.kind in ("fixed", "counter") else ELAPSED
    start, end = arrivals[0].stamp[clock], arrivals[-1].stamp[clock]
    span, window, amount = end - start, limit.window_ns, limit.amount
    net = {arrival.number: arrival.units[index] for arrival in admitted}
    ends: dict[int, int] = {}
    for event in log:
        if isinstance(event, Completion) and event.stamp[clock] <= end:
            net[event.number] -= event.units[index]
            ends[event.number] = event.stamp[clock]
    accepted = sum(net.values())
    steady, steady_most = float(accepted - net[admitted[0].number]), amount * span / window
    match limit.kind:
        case "concurrency":
            accepted = len(admitted)
            steady = float(sum(ends.get(call.number, end) - call.stamp[clock] for call in admitted))
            steady_most = float(amount * span)
            full, full_most = steady, steady_most
        case "fixed":
            first, last = start // window, end // window
            steady_most = float(amount * max(0, last - first - 1))
            steady = float(
                sum(net[call.number] for call in admitted if first < call.stamp[clock] // window < last)
            )
            full, full_most = float(accepted), float(amount * (last - first + 1))
        case "bucket":
            full, full_most = float(accepted), limit.left_at_first + steady_most
        case "counter":
            full, full_most = float(accepted), amount + steady_most
        case _:
            full, full_most = float(accepted), float(amount * (span // window + 1))
    return {
        "accepted_units": accepted,
        "empty_start": round(steady / steady_most, 6) if steady_most else None,
        "full_start": round(full / full_most, 6) if full_most else None,
    }


def ideal_seconds(config: Config, log: Log, full: bool) -> float | None:
    """The time from first to last admitted call for a caller who knew all rules, charges and latencies.

    It is the measure where several limits bind in turn. The same calls in the same order, each at the first
    instant at which every bucket carries it; what is given back comes as long after the call as it really
    did. `full` says whether the buckets were full before the first call or empty after it. `None` where a
    limit is not a bucket.
    """
    calls = [event for event in log if isinstance(event, Arrival) and not event.refused_by]
    if not calls or any(limit.kind != "bucket" for limit in config.limits):
        return None
    ends = {event.number: event for event in log if isinstance(event, Completion) and any(event.units)}
    buckets = [Bucket(limit) for limit in config.limits]
    pending: list[tuple[int, int]] = []  # (instant, number) of what will be given back
    now = 0
    for call in calls:
        while True:
            waits = [bucket.wait(now, unit) or 0 for bucket, unit in zip(buckets, call.units, strict=True)]
            if not pending or pending[0][0] > now + max(waits):
                break
            now, number = heapq.heappop(pending)
            for bucket, unit in zip(buckets, ends[number].units, strict=True):
                bucket.give_back(now, 0, unit)
        now += max(waits)
        for bucket, unit in zip(buckets, call.units, strict=True):
            bucket.charge(now, unit)
            if call is calls[0] and not full:
                bucket.level = 0
        if call.number in ends:
            latency = ends[call.number].stamp[ELAPSED] - call.stamp[ELAPSED]
            heapq.heappush(pending, (now + latency, call.number))
    return now / SECOND
