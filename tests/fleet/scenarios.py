"""Fleets under load, in real time: how they share a key, and what becomes of it when something fails.

    python -m tests.fleet [NAME ...] [--store KIND] [--seconds N] [--rounds N] [--json FILE]

Each scenario returns a row, judged by the strict server's log: what was refused, the most calls in flight,
how much of the limit was used before a fault and after it, and how long it took to be back.

Loads: *rate*: the bucket is the bottleneck, slots are plenty; the bucket is found nearly empty and the
clients read the rate-limit fields, so they use it to the last unit, and one call too many is refused.
*bucket*: the same without slots. *slots*: the slots are the bottleneck, the bucket is plenty. *long*: the
same, and each call takes five seconds. *tokens*: calls reserve five times what they use; only their
settlement gives the rest back.

*Full speed* is the bucket's rate under the first two loads; under the others it is what was let through in
the same run before the fault. Work is counted as `Outcome.work` says. Full speed is *back* at the first
instant, in steps of 10 ms, from which one window (a second) carries 95 % of it; that instant, within two
windows of the fault's end, and 95 % of it from there until the next fault or the end of the load, is what
tests ask for. Where a lease has to lapse first, the fault is felt for so long (`lasts_seconds`).
"""

from __future__ import annotations

import os
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.fleet.client import Job
from tests.fleet.fleet import SECOND, Call, Fault, Fleet, Outcome, run
from tests.fleet.stores import Kind, SharedStore, shared_store
from tests.strict.scenarios import SOURCE

WINDOW = 1.0  # seconds: the limit's period
RATE, BURST = 300, 60
TRANSIT = BURST / RATE / 2  # seconds: the plan's default D, min(1 s, B/2R)
TOKENS = 4000  # a second
AWAY = 1.5
"""Seconds for which a store is away."""
WARM_UP = 0.5
"""Seconds after the start that are no measure of what comes before a fault."""
STARVED = 0.1
"""Of its time a client may have to wait for a processor."""
LEASE = 1.5
"""Seconds for which a silent client is believed alive here; the stores' own leases are longer."""


@dataclass(frozen=True)
class Load:
    """What the limits are, and what the clients do.

    slots: calls at the same time; 0 for any number.
    tokens: what each call reserves; a fifth of it is used, on average, and the rest given back. 0 for none.
    """

    name: str
    slots: int
    latency_seconds: float
    latency_sigma: float
    workers: Sequence[int]
    tokens: int = 0

    @property
    def full(self) -> float:
        """The most calls a second that the limits allow."""
        by_tokens = 5 * TOKENS / self.tokens if self.tokens else RATE
        by_slots = self.slots / self.latency_seconds if self.slots else RATE
        return min(RATE, by_slots, by_tokens)

    @property
    def found(self) -> int | None:
        """What is left of the burst when the first call comes; `None` for all. Had the clients more than they
        know of where the rate is what binds, calls too many would not be seen.
        """
        return 2 if self.full == RATE else None

    @property
    def limits(self) -> tuple[str, ...]:
        found = [f"requests={RATE}/s:burst={BURST}"]
        if self.slots:
            found.append(f"concurrency={self.slots}")
        if self.tokens:
            found.append(f"tokens={TOKENS}/s:burst={TOKENS // 2}:charge=usage")
        return tuple(found)

    def server(self) -> dict[str, Any]:
        limits: list[dict[str, Any]] = [
            {"meter": "requests", "kind": "bucket", "amount": RATE, "burst": BURST, "found": self.found}
        ]
        if self.slots:
            limits.append({"meter": "concurrency", "kind": "concurrency", "amount": self.slots})
        if self.tokens:
            limits.append({"meter": "tokens", "kind": "bucket", "amount": TOKENS, "burst": TOKENS // 2})
        return {
            "limits": limits,
            "latency_seconds": self.latency_seconds,
            "latency_sigma": self.latency_sigma,
            "max_transit_seconds": TRANSIT,
            "charge_rule": "words",
            "refund": True,
        }

    def jobs(self, store: SharedStore, seconds: float, **options: Any) -> list[Job]:
        names = ("one", "two", "three")
        options = {"lease_seconds": LEASE, "tokens": self.tokens, **options}
        return [
            Job(name, "", store.url, self.limits, count, seconds, **options)
            for name, count in zip(names, self.workers, strict=False)
        ]


BY_RATE = Load("rate", 50, 0.03, 0.5, (30, 30))
BY_RATE_ALONE = Load("bucket", 0, 0.03, 0.5, (30, 30))
BY_SLOTS = Load("slots", 20, 0.125, 0, (20, 20, 20))
BY_LONG_CALLS = Load("long", 20, 5.0, 0, (20, 20, 20))
BY_TOKENS = Load("tokens", 50, 0.03, 0.5, (30, 30), 100)


@dataclass
class Row:
    """What came of one scenario.

    pardoned: refused calls that a client had in its hands when it was stopped; they count nowhere else.
    before: the first fault, as a part of the most that the limits allow.
    during: each fault, until it was over, but for the first half second, as a part of full speed; `None` for
        one of less than a second.
    after: each fault, from two windows after its end, as a part of full speed; `None` if the load was over.
    back_seconds: of each fault, until full speed was back; `None` if it was not.
    """

    scenario: str
    store: str
    load: str
    seconds: float
    accepted: int
    refused: int
    pardoned: int
    least_left: float
    most_in_flight: int
    slots: int
    before: float
    during: list[float | None]
    after: list[float | None]
    back_seconds: list[float | None]
    stall_ms: float
    lag_ms: float
    starved: float
    late: int
    oldest_ms: float
    errors: dict[str, int]
    exits: dict[str, int | None]
    outcome: Outcome = field(repr=False, kw_only=True)

    def facts(self) -> dict[str, Any]:
        """All but the log."""
        found = {fact.name: getattr(self, fact.name) for fact in fields(self) if fact.name != "outcome"}
        return {**found, "report": self.outcome.report, "summaries": dict(self.outcome.summaries)}

    @property
    def name(self) -> str:
        return f"{self.scenario} on {self.store}"

    @property
    def too_late(self) -> bool:
        """Whether the server stood still, or calls were on their way, for longer than `D`."""
        return self.stall_ms > 1000 * TRANSIT or self.late > 0

    @property
    def too_busy(self) -> bool:
        """Whether others had the processors for so long that the speed of these says nothing."""
        return self.too_late or self.starved > STARVED


def late(outcome: Outcome) -> int:
    """Calls that arrived later than `D` after their grant, though sent in time: the machine's doing."""
    return sum(
        call.sent_ns - call.granted_ns <= TRANSIT / 2 * SECOND and not in_hand(outcome, call)
        for call in outcome.late(TRANSIT)
    )


def in_hand(outcome: Outcome, call: Call) -> bool:
    """Whether a client was stopped after it had decided to send the call, and before it had arrived: nothing
    can call that back.
    """
    stops = [fault.done_ns for fault in outcome.faults if fault.name == first_stopped.__name__]
    ends = [fault.began_ns for fault in outcome.faults if fault.name == first_goes_on.__name__]
    return call.client == "one" and any(
        call.sent_ns <= stop and call.arrived_ns >= end for stop, end in zip(stops, ends, strict=False)
    )


def row_of(scenario: str, store: str, load: Load, seconds: float, outcome: Outcome) -> Row:
    first_ns = outcome.faults[0].began_ns if outcome.faults else outcome.end_ns
    warm_ns = outcome.begin_ns + WARM_UP * SECOND
    before = outcome.work(warm_ns, first_ns) / ((first_ns - warm_ns) / SECOND)
    full = RATE if load.full == RATE else before or load.full  # one that never moved is not at full speed
    during, after, back = [], [], []

    def part(since_ns: float, until_ns: float) -> float | None:
        seconds = (until_ns - since_ns) / SECOND
        if seconds <= 0:
            return None
        return outcome.work(since_ns, until_ns) / seconds / full

    untils = [*(fault.began_ns for fault in outcome.faults), outcome.end_ns][1:]
    for fault, until_ns in zip(outcome.faults, untils, strict=True):
        lasted = fault.done_ns - fault.began_ns > SECOND
        during.append(part(fault.began_ns + SECOND // 2, fault.done_ns) if lasted else None)
        since_ns = fault.ended_ns + 2 * WINDOW * SECOND
        after.append(part(since_ns, until_ns))
        back.append(outcome.recovery_seconds(fault.ended_ns, full, WINDOW))
    # Of a client that was stopped neither says anything of the machine.
    stopped = "one" if any(fault.name == first_stopped.__name__ for fault in outcome.faults) else None
    lived = [summary for name, summary in outcome.summaries.items() if name != stopped]
    pardoned = [call for call in outcome.calls if call.refused_by and in_hand(outcome, call)]
    judged = replace(outcome, calls=[call for call in outcome.calls if call not in pardoned])
    return Row(
        scenario,
        store,
        load.name,
        seconds,
        accepted=outcome.report["accepted"],
        refused=outcome.refused - len(pardoned),
        pardoned=len(pardoned),
        least_left=round(outcome.least_left, 2),
        most_in_flight=judged.most_in_flight,
        slots=load.slots,
        before=before / load.full,
        during=during,
        after=after,
        back_seconds=back,
        stall_ms=round(1000 * outcome.stall_seconds, 1),
        lag_ms=round(1000 * max((each["longest_lag_seconds"] for each in lived), default=0), 1),
        starved=max((each["starved_seconds"] for each in lived), default=0) / seconds,
        late=late(outcome),
        oldest_ms=round(max((call.sent_ns - call.granted_ns for call in outcome.calls), default=0) / 1e6, 1),
        errors=dict(outcome.errors),
        exits=dict(outcome.exits),
        outcome=outcome,
    )


# ---- faults


def killed_and_empty(store: SharedStore, fleet: Fleet) -> None:
    store.server.kill()
    time.sleep(0.5)
    store.server.restart(empty=True)


def killed_and_restored(store: SharedStore, fleet: Fleet) -> None:
    store.server.kill()
    time.sleep(0.5)
    store.server.restart()


def killed_and_behind(store: SharedStore, fleet: Fleet) -> None:
    """It is back at once, without what it acknowledged in the last 0.3 s, as after a sync each second."""
    [file] = (store.server.folder / "data").rglob("*.aof")
    size = file.stat().st_size
    time.sleep(0.3)
    store.server.kill()
    with file.open("r+b") as log:
        log.truncate(size)
    store.server.restart()


def flushed(store: SharedStore, fleet: Fleet) -> None:
    with store.admin() as admin:
        admin.flushall()


def asleep(store: SharedStore, fleet: Fleet) -> None:
    with store.admin() as admin:
        admin.execute_command("DEBUG", "SLEEP", "2")


def evicted(store: SharedStore, fleet: Fleet) -> None:
    """Fill it with junk until it has thrown out all keys of the fleet's; then take the junk away."""
    with store.admin() as admin, admin.pubsub() as events:
        own = {name for name in admin.scan_iter() if not name.startswith(b"junk")}
        admin.config_set("notify-keyspace-events", "Ee")
        events.subscribe("__keyevent@0__:evicted")
        deadline = time.monotonic() + 10
        number = 0
        gone: set[bytes] = set()
        while own - gone:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{own - gone} stayed, and {len(gone)} other keys went")
            for _ in range(20):
                number += 1
                admin.set(f"junk-{number}", os.urandom(1000) * 50)
            while (message := events.get_message(ignore_subscribe_messages=True)) is not None:
                gone.add(message["data"])
        for name in admin.scan_iter("junk-*"):
            admin.delete(name)


def scripts_forgotten(store: SharedStore, fleet: Fleet) -> None:
    with store.admin() as admin:
        admin.script_flush()


def cut_off(store: SharedStore, fleet: Fleet) -> None:
    """All connections but our own, those that listen included."""
    with store.admin() as admin:
        for kind in ("normal", "pubsub"):
            admin.client_kill_filter(_type=kind, skipme=True)


def file_deleted(store: SharedStore, fleet: Fleet) -> None:
    assert store.file is not None
    for ending in ("", "-wal", "-shm"):
        Path(f"{store.file}{ending}").unlink(missing_ok=True)


def disk_full(store: SharedStore, fleet: Fleet, seconds: float) -> None:
    """No client can write to a file; pipes and sockets are not concerned."""
    pids = [client.pid for client in fleet.clients.values()]
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    try:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[pid][1]))
        time.sleep(seconds)
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before[pid])


def first_killed(store: SharedStore, fleet: Fleet) -> None:
    fleet.clients["one"].kill()


def first_stopped(store: SharedStore, fleet: Fleet) -> None:
    """Not in mid-write to a file: SQLite then keeps everybody out for as long as it stands still."""
    client = fleet.clients["one"]
    client.stop()
    while store.file is not None and _is_locked(store.file):
        client.go_on()
        time.sleep(0.005)
        client.stop()


def _is_locked(file: Path) -> bool:
    with closing(sqlite3.connect(file, timeout=0.2, isolation_level=None)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return True
    return False


def first_goes_on(store: SharedStore, fleet: Fleet) -> None:
    fleet.clients["one"].go_on()


def away(store: SharedStore, fleet: Fleet, seconds: float = AWAY) -> None:
    """The store cannot be used for a while, and has kept all that it acknowledged."""
    if store.file is not None:
        disk_full(store, fleet, seconds)
        return
    store.server.kill()
    time.sleep(seconds)
    store.server.restart()


def away_for_longer_than_a_lease(store: SharedStore, fleet: Fleet) -> None:
    away(store, fleet, LEASE + 0.7)


Act = Callable[[SharedStore, Fleet], None]

# ---- a clock that is off

SHIFT = """
import time

def _shift(name, unit):
    real = getattr(time, name)
    setattr(time, name, lambda: real() + {seconds} * unit)

_shift("time", 1)
_shift("time_ns", 1_000_000_000)

def _shift_of(name, unit):
    real = getattr(time, name)
    setattr(time, name, lambda clock: real(clock) + ({seconds} * unit if clock == time.CLOCK_REALTIME else 0))

_shift_of("clock_gettime", 1)
_shift_of("clock_gettime_ns", 1_000_000_000)
"""
"""A sitecustomize: Python's own wall clocks are off, and nothing else. (Debian's libfaketime shifts them
for the whole process, but with it, as long as it leaves the monotonic clock alone, `time.sleep` fails.)
"""


def clock_off(scratch: Path, seconds: int) -> dict[str, str]:
    """The environment of a process whose wall clock is so many seconds ahead."""
    (scratch / "sitecustomize.py").write_text(SHIFT.format(seconds=seconds))
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(scratch), str(SOURCE), *([path] if path else [])])}


# ---- scenarios


@dataclass(frozen=True)
class Blow:
    """A fault of a scenario.

    takes: seconds that the act takes, at most.
    lasts: seconds for which it is felt when it is done.
    """

    act: Act
    takes: float = 0.0
    lasts: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """One fault, or several one after the other.

    options: of the server behind the store.
    client: of the jobs.
    clock: how far the second client's wall clock is off, in seconds.
    begin: seconds after the start: the first fault.
    rest: seconds from the end of a fault to the next: two windows to be back, and one to measure.
    """

    what: str
    stores: tuple[Kind, ...]
    load: Load
    blows: Sequence[Blow] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict)
    clock: int = 0
    begin: float = 1.5
    rest: float = 3.0


QUIET = 2.5
"""Seconds of a load with no fault, after its beginning."""

SERVERS: tuple[Kind, ...] = ("redis", "valkey")
ALL: tuple[Kind, ...] = ("sqlite", *SERVERS)
KEPT = {"appendonly": True}
LOADS = {load.name: load for load in (BY_RATE, BY_SLOTS, BY_TOKENS)}

EMPTY = Blow(killed_and_empty, 0.7, LEASE)
FLUSHED = Blow(flushed, 0, LEASE)
RESTORED = Blow(killed_and_restored, 0.7)
BEHIND = Blow(killed_and_behind, 0.5, LEASE)
KILLED = Blow(first_killed, 0, LEASE)

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        **{f"none-{name}": Scenario("no fault", ALL, load) for name, load in LOADS.items()},
        **{
            f"lost-{name}": Scenario(
                "FLUSHALL; the server is killed, and comes back empty", SERVERS, load, [FLUSHED, EMPTY]
            )
            for name, load in LOADS.items()
        },
        **{
            f"behind-{name}": Scenario(
                "the server is killed, and has lost the last 0.3 s", SERVERS, load, [BEHIND], KEPT
            )
            for name, load in LOADS.items()
        },
        "evicted": Scenario(
            "the keys are evicted",
            SERVERS,
            BY_SLOTS,
            [Blow(evicted, 0.5, LEASE)],
            {"maxmemory": "6mb", "policy": "allkeys-lru"},
        ),
        "restored": Scenario(
            "the server is killed, and comes back with all it acknowledged",
            SERVERS,
            BY_SLOTS,
            [RESTORED],
            KEPT,
        ),
        "asleep": Scenario("DEBUG SLEEP 2", ("redis",), BY_RATE, [Blow(asleep, 2)]),
        "harmless": Scenario(
            "SCRIPT FLUSH; all connections are cut",
            SERVERS,
            BY_RATE,
            [Blow(scripts_forgotten), Blow(cut_off)],
        ),
        "stopped": Scenario(
            "a client is stopped for longer than its lease, and goes on",
            ALL,
            BY_SLOTS,
            [Blow(first_stopped, 0, LEASE), Blow(first_goes_on)],
        ),
        "killed": Scenario("a client that holds slots is killed", ALL, BY_SLOTS, [KILLED]),
        "killed-tokens": Scenario("a client that has reserved tokens is killed", ALL, BY_TOKENS, [KILLED]),
        "deleted": Scenario("the file is deleted", ("sqlite",), BY_SLOTS, [Blow(file_deleted, 0, LEASE)]),
        "clock": Scenario("a client's wall clock is an hour ahead", ALL, BY_RATE, clock=3600),
        "long": Scenario(
            "the store is away for longer than a lease, and calls take longer than that",
            ALL,
            BY_LONG_CALLS,
            [Blow(away_for_longer_than_a_lease, AWAY + LEASE)],
            KEPT,
            begin=0.7,
            rest=0.8,
        ),
        **{
            name: Scenario(
                f"the store is away for {AWAY:g} s; on_store_failure={mode}",
                ALL,
                load,
                [Blow(away, AWAY + 0.5)],
                KEPT,
                {"on_store_failure": mode},
            )
            for name, mode, load in (
                ("wait", "wait", BY_SLOTS),
                ("refuse", "refuse", BY_RATE),
                ("share", "share:4", BY_RATE_ALONE),
                ("share-slots", "share:4", BY_RATE),
            )
        },
    }
)


def run_scenario(name: str, kind: Kind, *, rounds: int = 1, quiet_seconds: float = QUIET) -> Row:
    """Run one scenario.

    Args:
        name: which.
        kind: of store.
        rounds: how often its faults happen.
        quiet_seconds: how long the load of a scenario without faults goes on.
    """
    scenario = SCENARIOS[name]
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        scratch = Path(folder)
        with shared_store(kind, scratch, **scenario.options) as store:
            faults = []
            at = scenario.begin
            for blow in list(scenario.blows) * rounds:
                faults.append(Fault(blow.act.__name__, at, partial(blow.act, store), blow.lasts))
                at += blow.takes + blow.lasts + scenario.rest
            seconds = at if faults else scenario.begin + quiet_seconds
            extra = {}
            if scenario.clock:
                extra["two"] = clock_off(scratch, scenario.clock)
            outcome = run(
                scenario.load.server(),
                scenario.load.jobs(store, seconds, **scenario.client),
                scratch,
                faults=faults,
                extra=extra,
                stranger=scenario.load.found is not None,
            )
    return row_of(name, kind, scenario.load, seconds, outcome)


# ---- three unequal processes

UNEQUAL = {"many": 60, "some": 25, "few": 15}
"""Parts of the work, in per cent."""


def share_out(kind: Kind, *, seconds: float = 5.0) -> tuple[Row, list[Second]]:
    """Processes with 60, 25 and 15 % of the work of so many seconds."""
    load = Load("unequal", 0, 0.05, 0.5, ())
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        scratch = Path(folder)
        with shared_store(kind, scratch) as store:
            calls = round(RATE * seconds)
            jobs = [
                Job(
                    name,
                    "",
                    store.url,
                    load.limits,
                    workers=max(12, part),
                    seconds=3 * seconds,
                    calls=calls * part // 100,
                )
                for name, part in UNEQUAL.items()
            ]
            outcome = run(load.server(), jobs, scratch, stranger=True)
    row = row_of("unequal", kind, load, seconds, outcome)
    return row, fair_seconds(outcome)


@dataclass(frozen=True)
class Second:
    """A whole second through which the same clients had work, and their parts of what was accepted."""

    number: int
    shares: Mapping[str, float]

    @property
    def furthest(self) -> float:
        """The most by which a part is off the fair one: equal parts, since all of them want more."""
        return max(abs(share - 1 / len(self.shares)) for share in self.shares.values())


def fair_seconds(outcome: Outcome) -> list[Second]:
    """The seconds through which the same clients had work: each of these sent again after it, none of the
    others in it.
    """
    last = {
        name: max((call.arrived_ns for call in outcome.calls if call.client == name), default=0)
        for name in outcome.exits
    }
    found = []
    for number, shares in enumerate(outcome.shares()):
        begin_ns = outcome.begin_ns + number * SECOND
        working = {name for name in last if last[name] >= begin_ns + SECOND}
        if working and not any(begin_ns <= last[name] for name in set(last) - working):
            found.append(Second(number, {name: shares[name] for name in sorted(working)}))
    return found
