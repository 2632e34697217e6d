"""Celery tasks that keep to the limits of a service, in several ways; the service's log is the judge.

Two workers get a burst of tasks that each make one call, and behind them tasks of another service. What a way
is worth shows in what is refused, in how much of the rule is used, and in who is kept waiting meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.celery_fleet import (
    BURST,
    LATENCY_SECONDS,
    RATE,
    SLOTS,
    WORKERS,
    Broker,
    Found,
    RabbitMQBroker,
    RedisBroker,
    measure,
)
from benchmarks.report import Table
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

CALLS = 600
ROUNDS = 3
CUT_OFF_SECONDS = 45.0
"""Three times what the rule needs for all calls."""

RULES = {"count": True, "do not": False}
"""{what refused calls do: whether they use up the limit}."""
WAYS = {
    "headgate": "headgate",
    "rate_limit, and retry on 429": "rate_limit",
    "retry on 429": "retry",
    "retry on 429, block in Redis": "retry_and_block",
}
"""{name: what the program calls it}."""
Cell = tuple[str, str, str]
"""(broker, rule, way)."""


def in_turn(
    rounds: int, calls: int, brokers: Mapping[str, Broker], store: RedisServer
) -> dict[Cell, list[Found]]:
    cells = [(broker, rule, way) for broker in brokers for rule in RULES for way in WAYS]
    found: dict[Cell, list[Found]] = {cell: [] for cell in cells}
    for number in range(rounds):
        for broker, rule, way in cells:
            print(f"  round {number + 1}: {broker}, refused {rule}: {way} …", file=sys.stderr, flush=True)
            found[broker, rule, way].append(
                measure(
                    WAYS[way],
                    brokers[broker],
                    store,
                    calls=calls,
                    count_refused=RULES[rule],
                    cut_off_seconds=CUT_OFF_SECONDS,
                )
            )
    return found


def row(cell: Cell, results: Sequence[Found], calls: int) -> list[str]:
    def middle(of: Callable[[Found], float | None], form: str) -> str:
        values = [value for one in results if (value := of(one)) is not None]
        return format(median(values), form) if len(values) == len(results) else "-"

    broker, rule, way = cell
    cut_off = any(one.accepted < calls for one in results)
    return [
        broker,
        rule,
        f"{way} (cut off)" if cut_off else way,
        middle(lambda one: one.accepted, ",.0f"),
        middle(lambda one: one.refused, ",.0f"),
        middle(lambda one: one.used, ".1%"),
        middle(lambda one: one.used_from_start, ".1%"),
        middle(lambda one: one.seconds, ".1f"),
        middle(lambda one: one.others_seconds, ".1f"),
        middle(lambda one: one.asleep, ".2f"),
        middle(lambda one: one.messages, ".2f"),
        middle(lambda one: one.broker_commands, ".1f"),
        middle(lambda one: one.store_commands, ".1f"),
        middle(lambda one: one.cpu_ms, ".1f"),
    ]


def run(share: float) -> Table:
    """share: of the rounds; a round has its full size, for what refused calls lead to takes its time."""
    rounds = max(1, round(ROUNDS * share))
    with RedisServer() as store, RedisServer() as redis, RabbitMQServer() as rabbitmq:
        brokers: dict[str, Broker] = {"Redis": RedisBroker(redis), "RabbitMQ": RabbitMQBroker(rabbitmq)}
        found = in_turn(rounds, CALLS, brokers, store)
    return Table(
        name="celery",
        title=f"{CALLS} tasks that call a service of {RATE} calls/s and a burst of {BURST}, sent at once to "
        f"{WORKERS} workers of {SLOTS} slots",
        columns=[
            "broker",
            "refused",
            "",
            "accepted",
            "refused",
            "used",
            "from start",
            "seconds",
            "others s",
            "asleep",
            "messages",
            "broker",
            "store",
            "CPU ms",
        ],
        rows=[row(cell, results, CALLS) for cell, results in found.items()],
        texts=3,
        note=f"""\
refused, left: whether refused calls use up the limit, too; right: how many there were. A call takes
{1000 * LATENCY_SECONDS:.0f} ms.""",
    )
