"""Celery tasks that keep to the limits of a service, in several ways; the service's log is the judge.

Two workers get a burst of tasks that each make one call, and behind them tasks of another service. What a way
is worth shows in what is refused, in how much of the rule is used, and in who is kept waiting meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.celery_fleet import (
    BURST,
    LATENCY_SECONDS,
    OTHERS,
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
CUT_OFF_SECONDS = 30.0
"""Twice what the rule needs for all calls."""

PLACES = (("Redis", True), ("Redis", False), ("RabbitMQ", True))
"""The broker, and whether refused calls use up the limit. On RabbitMQ, one of two will do."""
WAYS = {
    "headgate": "headgate",
    "headgate, prefetch 1": "headgate_prefetch_1",
    "rate_limit": "rate_limit",
    "rate_limit, kombu mended": "rate_limit_mended",
    "retry on 429": "retry",
    "retry on 429, block in Redis": "retry_and_block",
}
"""{name: what the program calls it}."""


class Cell(NamedTuple):
    broker: str
    count_refused: bool
    way: str


def in_turn(
    rounds: int, calls: int, brokers: Mapping[str, Broker], store: RedisServer
) -> dict[Cell, list[Found]]:
    found: dict[Cell, list[Found]] = {Cell(*place, way): [] for place in PLACES for way in WAYS}
    for number in range(rounds):
        for cell, results in found.items():
            counted = "refused calls count" if cell.count_refused else "refused calls are free"
            print(
                f"  round {number + 1}: {cell.way}, {cell.broker}, {counted} …", file=sys.stderr, flush=True
            )
            one = measure(
                WAYS[cell.way],
                brokers[cell.broker],
                store,
                calls=calls,
                count_refused=cell.count_refused,
                cut_off_seconds=CUT_OFF_SECONDS,
            )
            results.append(one)
    return found


def row(cell: Cell, results: Sequence[Found], calls: int) -> list[str]:
    def middle(of: Callable[[Found], float | None], form: str) -> str:
        values = [value for one in results if (value := of(one)) is not None]
        return format(median(values), form) if len(values) == len(results) else "-"

    cut_off = any(one.accepted < calls for one in results)
    return [
        cell.broker,
        "yes" if cell.count_refused else "no",
        f"{cell.way} (cut off)" if cut_off else cell.way,
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
            "refused count",
            "",
            "accepted",
            "refused",
            "used",
            "from start",
            "seconds",
            "others s",
            "asleep",
            "messages",
            "broker commands",
            "store commands",
            "CPU ms",
        ],
        rows=[row(cell, results, CALLS) for cell, results in found.items()],
        texts=3,
        note=_note(rounds),
    )


def _note(rounds: int) -> str:
    return (
        f"A call takes {1000 * LATENCY_SECONDS:.0f} ms. refused count: whether the service charges for "
        "calls that it refuses, too. The bucket is full at the start. used: the least time in which the "
        "rule lets all calls through, of the time from the first to the last that was accepted; from start: "
        "of the time from the first task's being sent to the last accepted call. Where a run was cut off, "
        f"both reach to its end. cut off: not done after {CUT_OFF_SECONDS:.0f} s. others s: until {OTHERS} "
        "tasks of 10 ms of another service, sent to the same queue behind all these, were done; -: they were "
        f"not. asleep: of the {WORKERS * SLOTS} slots, those that tasks had while not in their HTTP call, in "
        "the mean over the run, by Celery's signals before and after a task. messages: times that tasks were "
        "published, by Celery's signal in each process. commands: of Redis, as broker and as store, those "
        "that scripts give included. CPU ms: of the workers. messages, commands and CPU are for each "
        "accepted call and have the other tasks in them, but not their first messages. Retries wait for "
        "Retry-After and up to as long again at random. rate_limit is half the rate for each worker, with "
        "the same retries. kombu mended: its event loop handles more than ten timers a turn. Workers have "
        "Celery's default settings, without results; prefetch 1 is `worker_prefetch_multiplier`. Medians of "
        f"{rounds} runs."
    )
