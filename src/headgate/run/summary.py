"""What a run came to, for people and for programs."""

from __future__ import annotations

from typing import Any

from headgate.core.model import SECOND
from headgate.core.rates import possible_units
from headgate.run.engine import Engine


def summarise(engine: Engine, *, total: int | None, already_done: int, seconds: float) -> dict[str, Any]:
    """The summary as JSON: times in seconds, rates per second."""
    figures = engine.figures
    counts = figures.counts
    sending = (figures.last_sent_at or 0) - (figures.first_sent_at or 0)
    limits = []
    for limit, rule in zip(engine.limiter.limits, engine.limiter.plan.rules, strict=True):
        used: float = engine.sent_units[limit.name]
        if limit.kind == "concurrency":
            used = round(figures.latency.total, 3)
        possible = possible_units(limit, sending)
        limits.append(
            {
                "name": limit.name,
                "kind": limit.kind,
                "used": used,
                "possible": round(possible, 3),
                "utilisation": round(used / possible, 4) if possible > 0 else None,
                "max_transit_seconds": rule.transit_us / SECOND or None,
            }
        )
    transits = [rule.transit_us for rule in engine.limiter.plan.rules if rule.transit_us]
    return {
        "total": total,
        "already_done": already_done,
        "requests": counts.requests,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "malformed_lines": counts.malformed_lines,
        "refused": counts.refused,
        "retries": counts.retries,
        "timeouts": counts.timeouts,
        "errors": dict(counts.errors),
        "seconds": round(seconds, 3),
        "throughput": round(counts.succeeded / seconds, 3) if seconds > 0 else None,
        "latency": {
            name: None if value is None else round(value, 4)
            for name, value in (
                ("mean", figures.latency.mean),
                ("p50", figures.latency.quantile(0.5)),
                ("p95", figures.latency.quantile(0.95)),
                ("p99", figures.latency.quantile(0.99)),
                ("max", figures.latency.largest or None),
            )
        },
        "limits": limits,
        "max_transit_seconds": min(transits) / SECOND if transits else None,
        "max_transit_exceeded": counts.late,
        "longest_loop_stall_seconds": round(figures.longest_stall, 4),
        "stopped": engine.stopping,
    }


def lines(summary: dict[str, Any]) -> list[str]:
    """The summary as a few lines of text."""
    found = [
        f"{summary['succeeded']:,} succeeded, {summary['failed'] + summary['malformed_lines']:,} failed, "
        f"{summary['requests']:,} requests, {summary['refused']:,} refused, {summary['retries']:,} retries"
        + (f"; {summary['already_done']:,} were done before" if summary["already_done"] else ""),
        f"{summary['seconds']:.1f} s, {summary['throughput'] or 0:.1f} per second; latency "
        + ", ".join(
            f"{name} {summary['latency'][name] * 1000:.0f} ms"
            for name in ("p50", "p95", "p99")
            if summary["latency"][name] is not None
        ),
    ]
    for limit in summary["limits"]:
        share = "" if limit["utilisation"] is None else f"  {limit['utilisation']:.1%}"
        found.append(f"{limit['name']}: {limit['used']:,.0f} of {limit['possible']:,.0f} possible{share}")
    if summary["max_transit_seconds"] is not None:
        found.append(
            f"max_transit_seconds {summary['max_transit_seconds']:g}, "
            f"exceeded {summary['max_transit_exceeded']:,} times; "
            f"longest stall of our own loop {summary['longest_loop_stall_seconds'] * 1000:.0f} ms"
        )
    return found
