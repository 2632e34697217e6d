"""Counterexamples that were found, one test each."""

from __future__ import annotations

from random import Random

import pytest

from headgate.core import decide
from headgate.core.headers import delay_us, openai_readings
from headgate.core.model import (
    DAY,
    LOST,
    NEVER,
    SECOND,
    UNSENT,
    Granted,
    Limit,
    Reading,
    Signal,
    Throttle,
    Wait,
)  # fmt: skip
from headgate.core.plan import Plan
from headgate.core.text import parse_limit
from headgate.errors import ConfigurationError
from tests.core import servers
from tests.core.caller import WALL, Caller
from tests.core.world import EXACT, Step, World, integers

S = SECOND
MS = 1_000


def crowd(caller: Caller, at: int, size: int) -> list[Granted]:
    return [caller.grant(at) for _ in range(size)]


def test_a_hold_lasts_its_transit_though_the_silence_ends_because_others_gave_up() -> None:
    caller = Caller("requests=1000000/s:burst=1000000:start=full:transit=100ms")
    at = 0
    for _ in range(30):  # 30 answers, 1 ms apart: what is usual
        grant = caller.grant(at)
        at += MS
        caller.settle(at, grant)
    waiting = crowd(caller, at, 12)
    late = at + 60 * MS  # nobody has been answered: time stands still for holds
    caller.used(late)
    assert isinstance(caller.ask(late, (500_000,))[0], Granted)
    for each in waiting:
        caller.settle(late, each, UNSENT)
    held = caller.plan.rules[0]
    caller.used(late + 99 * MS)
    assert caller.state.parts[0][8] == 500_000, f"{held.limit.name}: lapsed before D was over"


def test_a_lost_call_that_is_charged_late_stays_a_hold_where_the_usage_counts() -> None:
    """Bucket of 10, 10/s: lost at once, arrives at D = 1 s."""
    caller = Caller("requests=10/s:burst=10:charge=usage:start=full:transit=1s")
    server = servers.Bucket(10, S, 10)
    lost = caller.grant(0, 10)
    caller.settle(0, lost, LOST)
    assert server.fits(S, 10)
    server.charge(S, 10)  # within D
    for _ in range(20):
        for _ in caller.granted(S, 1, most=1):
            assert server.fits(S, 1)
            server.charge(S, 1)


def test_a_lost_call_that_arrives_late_is_logged_when_it_may_have_arrived() -> None:
    caller = Caller("requests=1/s:kind=sliding:charge=usage:start=full:transit=100ms")
    server = servers.SlidingLog(1, S)
    lost = caller.grant(0)
    caller.settle(0, lost, LOST)
    server.charge(100 * MS, 1)
    at = caller.until(0)
    caller.grant(at)
    assert server.fits(at, 1)


def test_a_lost_call_that_may_arrive_behind_the_edge_counts_there_too() -> None:
    caller = Caller("requests=1/10s:kind=fixed:charge=usage:start=full:transit=1s:error=0s")
    lost = caller.grant(10 * S - 100 * MS)
    caller.settle(10 * S - 50 * MS, lost, LOST)
    assert caller.until(10 * S) == 20 * S  # it may have arrived at 10.5 s


@pytest.mark.parametrize("stated", [None, 100])
def test_an_unknown_limit_is_not_filled_up_by_what_an_answer_says_is_left(stated: int | None) -> None:
    """``remaining`` without ``limit`` filled the small bucket after each answer."""
    caller = Caller("requests=100/min:start=full")
    server = servers.Grid(100, 60 * S)
    at = 0
    for _ in range(200):
        answer = caller.ask(at, (1,))[0]
        if isinstance(answer, Wait):
            at = answer.until_us
            continue
        assert isinstance(answer, Granted)
        assert server.fits(at, 1), f"refused at {at}"
        server.charge(at, 1)
        caller.settle(
            at + 1, answer, Signal(readings=(Reading("requests", stated, server.remaining(at), None),))
        )
        at += 1


def test_what_a_call_cost_beyond_its_estimate_is_not_forgotten_by_an_older_reading() -> None:
    caller = Caller("tokens=100/s:burst=100:start=full")
    first, second = caller.grant(0, 1), caller.grant(0, 1)
    caller.settle(10, second, Signal(charged={"tokens": 90}))
    caller.settle(10, first, Signal(readings=(Reading("tokens", 100, 99, None),)))  # decided before the other
    assert caller.used(10) == (91,)


def test_what_a_call_cost_beyond_its_estimate_is_not_forgotten_in_a_window() -> None:
    caller = Caller("tokens=100/10s:kind=fixed:start=full")
    first, second = caller.grant(S, 1), caller.grant(S, 1)
    caller.settle(S + 10, second, Signal(charged={"tokens": 90}))
    caller.settle(S + 10, first, Signal(readings=(Reading("tokens", 100, 99, None),)))
    assert caller.used(S + 10) == (91,)


@pytest.mark.parametrize("cost", [30, 50, 70, 90, 100])
def test_a_call_above_the_small_bucket_is_safe_against_a_sliding_counter(cost: int) -> None:
    for phase in range(0, 10 * S, S):
        world = World(
            Plan([Limit(meter="tokens", amount=100, period_us=10 * S, start="full")]),
            [servers.SlidingCounter(100, 10 * S, phase=phase)],
            Random(0),
            careful=False,
        )
        small: list[tuple[int, ...]] = [(1,)] * 120
        world.run([Step(0, [*small, (cost,), *small, (cost,), (cost,), *small], "none", "none")])


@pytest.mark.parametrize("server", [servers.SlidingLog(1, S), servers.Anchored(1, S)])
def test_one_per_period_of_unknown_kind_is_safe(server: servers.Server) -> None:
    world = World(Plan([Limit(meter="requests", amount=1, period_us=S)]), [server], Random(0))
    world.run([Step(0, [(1,)] * 20, "either", "short")])


def test_a_level_gathered_for_a_call_that_was_given_up_is_poured_away_for_a_smaller_one() -> None:
    """80 waits, is cancelled just before its turn; 50 comes and finds 80."""
    caller = Caller("tokens=100/10s:start=empty")
    server = servers.SlidingLog(100, 10 * S)
    told = caller.until(0, 80)
    at = told - 1
    world_calls = [(caller.grant(at, 50), at)]
    server.charge(at, 50)
    caller.settle(at, world_calls[0][0])
    while at < told + 10 * S:
        answer = caller.ask(at, (1,))[0]
        if isinstance(answer, Wait):
            at = answer.until_us
            continue
        assert isinstance(answer, Granted)
        assert server.fits(at, 1), f"refused {at - told} µs after"
        server.charge(at, 1)
        caller.settle(at, answer)


def test_used_is_never_negative_while_a_large_call_gathers() -> None:
    caller = Caller("tokens=100/10s:start=empty")
    told = caller.until(0, 80)
    assert caller.used(told - 1)[0] >= 0


@pytest.mark.parametrize("meter", [None, "requests"])
def test_a_refusal_without_a_name_does_not_close_the_month(meter: str | None) -> None:
    caller = Caller("requests=10/s:burst=10:start=full", "requests=1M/month:kind=calendar")
    grant = caller.grant(2 * S)
    caller.settle(2 * S + 10, grant, Signal(throttle=Throttle(meter, S)))
    until = caller.until(2 * S + 20)
    assert until < 2 * S + 60 * S
    caller.grant(until)


def test_a_probe_waits_for_the_later_of_retry_after_and_the_lease() -> None:
    caller = Caller("concurrency=10")
    older, newer = caller.grant(0), caller.grant(0)
    throttle = Signal(throttle=Throttle("concurrency", S))
    caller.settle(10, older, throttle)
    caller.grant(10 + S)  # the probe
    caller.settle(20 + S, newer, Signal(throttle=Throttle("concurrency", 300 * S)))
    until = caller.until(30 + S)
    assert until == 20 + 301 * S
    caller.grant(until)


def test_a_probe_that_passes_does_not_cut_short_a_longer_retry_after() -> None:
    caller = Caller("concurrency=10")
    older, newer = caller.grant(0), caller.grant(0)
    caller.settle(10, older, Signal(throttle=Throttle("concurrency", S)))
    probe = caller.grant(10 + S)
    caller.settle(20 + S, newer, Signal(throttle=Throttle("concurrency", 300 * S)))
    caller.settle(30 + S, probe)
    assert caller.until(40 + S) == 20 + 301 * S


def test_a_call_granted_before_the_refusal_on_the_same_tick_of_a_coarse_clock_does_not_open() -> None:
    caller = Caller("concurrency=10")
    first, second = caller.grant(0), caller.grant(16 * MS)
    caller.settle(16 * MS, first, Signal(throttle=Throttle("concurrency", None)))
    caller.grant(16 * MS)  # the probe
    caller.settle(32 * MS, second)
    assert caller.until(32 * MS) > 32 * MS


@pytest.mark.parametrize(
    ("elapsed_jump", "wall_jump"), [(-60 * S, 0), (0, -3600 * S), (-7 * S, 0), (0, -4 * S)], ids=str
)
def test_a_clock_that_goes_back_moves_no_edge_of_a_fixed_window(elapsed_jump: int, wall_jump: int) -> None:
    limit = Limit(meter="requests", amount=5, period_us=10 * S, kind="fixed", start="full")
    world = World(Plan([limit]), [servers.Grid(5, 10 * S)], Random(0), careful=False)
    steps = [Step(11 * S, [(1,)], "none", "none")]
    steps += [Step(3 * S, [(1,)], "none", "none", "answered", elapsed_jump, wall_jump)]
    steps += [Step(7 * S, [(1,)] * 30, "none", "none")]
    world.run(steps)


def test_a_grant_keeps_its_place_in_time_when_the_clock_jumps() -> None:
    """After a jump back, calls granted before the refusal looked younger than the probe."""
    caller = Caller("concurrency=10", at=100 * S)
    first, second = caller.grant(100 * S), caller.grant(100 * S)
    caller.settle(101 * S, first, Signal(throttle=Throttle("concurrency", None)))
    caller.grant(102 * S)  # the probe
    caller.used(40 * S)  # the clock goes back
    caller.settle(41 * S, second)
    assert isinstance(caller.ask(42 * S, (1,))[0], Wait)


def test_told_is_granted_through_a_silence_that_began_after_the_hold_lapsed() -> None:
    caller = Caller("requests=12/s:kind=sliding:start=full:transit=100ms")
    at = 0
    for _ in range(30):
        grant = caller.grant(at)
        at += MS
        caller.settle(at, grant, UNSENT)
    for _ in range(3):
        grants = crowd(caller, at, 10)
        for grant in grants:
            at += 10 * MS
            caller.settle(at, grant)
        at += 3 * S
    crowd(caller, at, 12)
    until = caller.until(at)
    assert isinstance(caller.copy().ask(until - 1, (1,))[0], Wait)
    caller.grant(until)


LARGE = [
    "tokens=1000000000/s:burst=1000000000",
    "tokens=1000000000/s:kind=sliding",
    "tokens=1000000000/s:kind=fixed",
    "tokens=1000000000/s",
]


@pytest.mark.parametrize("text", LARGE)
def test_counters_stay_exact_after_a_year_of_a_billion_a_second(text: str) -> None:
    caller = Caller(text + ":start=full")
    at, cost = 2 * S, caller.plan.rules[0].largest
    for _ in range(100):
        # as after many calls: the counters are sums, so large costs get there as well
        for counter in (4, 5, 6):
            caller.state.parts[0][counter] += 0
        grant = caller.ask(at, (cost,))[0]
        if isinstance(grant, Wait):
            at = grant.until_us
            continue
        assert isinstance(grant, Granted)
        caller.settle(at + 1, grant, Signal(charged={"tokens": 10**15}))
        at += 400 * DAY
        assert all(abs(number) < EXACT for number in integers(caller.state.dump()))


def test_a_rate_that_cannot_be_kept_exactly_is_told_as_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError):
        Plan([parse_limit("requests=1/day:burst=1000000000000")])


@pytest.mark.parametrize("error", ["5s", "6s", "10s", "1h"])
def test_a_clock_error_that_leaves_nothing_of_the_window_is_refused(error: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_limit(f"requests=5/10s:kind=fixed:error={error}")


@pytest.mark.parametrize("text", ["2.01M", "1.005k", "0.29k", "4.35k", "1.1M", "8.2M", "33.333k"])
def test_decimal_amounts_are_exact(text: str) -> None:
    number, factor = float(text[:-1]), {"k": 10**3, "M": 10**6}[text[-1]]
    assert parse_limit(f"tokens={text}/min").amount == round(number * factor)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "s", "9" * 400 + "h9" + "9" * 400 + "s"])
def test_absurd_fields_do_not_raise(text: str) -> None:
    delay_us(text, WALL)
    openai_readings({"x-ratelimit-limit-requests": text, "x-ratelimit-reset-requests": text}, WALL)


def test_a_refused_call_that_counts_may_count_behind_the_edge() -> None:
    """The server's clock is 400 ms ahead; a refused call is charged there."""
    caller = Caller("requests=10/10s:kind=fixed:error=500ms:start=full")
    grant = caller.grant(10 * S - 300 * MS)  # decided in the server's next window, 100 ms old
    caller.settle(10 * S - 200 * MS, grant, Signal(throttle=Throttle("requests", None)))
    caller.granted(10 * S)
    at = 10 * S + 500 * MS
    probe = caller.grant(at)
    caller.settle(at, probe)
    assert len(caller.granted(at)) <= 8


def test_a_call_that_may_arrive_behind_an_edge_counts_there_though_nothing_happened_meanwhile() -> None:
    """Windows of 1 s, D = 1 s: granted at 0.996, it may arrive at 1.996, in the server's third window."""
    caller = Caller("requests=10/s:kind=fixed:error=5ms:start=full:transit=1s")
    for at in range(960 * MS, S, MS):
        one = caller.copy()
        one.grant(at)
        if at + S >= 2 * S - 5 * MS:
            assert len(one.granted(2 * S + 5 * MS)) == 9, at


def test_what_is_left_before_the_charge_at_completion_is_not_taken_for_what_is_left_after() -> None:
    """A server that charges at completion states ``remaining`` in the head of its answer."""
    caller = Caller("tokens=100/s:burst=100:charge=usage:when=completion:start=full")
    grant = caller.grant(0, 60)
    reading = Reading("tokens", 100, 100, None)
    caller.settle(10, grant, Signal(usage={"tokens": 60}, readings=(reading,)))
    assert caller.used(10) == (60,)


@pytest.mark.parametrize(("start", "stands"), [("empty", 100), ("used-60", 60), ("used-100", 100)])
@pytest.mark.parametrize("kind", ["unknown", "sliding", "anchored"])
def test_an_unknown_limit_that_starts_used_up_waits_for_what_stands_in_the_window(
    kind: str, start: str, stands: int
) -> None:
    for server in (servers.SlidingLog(100, 10 * S), servers.SlidingCounter(100, 10 * S, phase=3 * S)):
        if kind != "unknown" and isinstance(server, servers.SlidingCounter):
            continue
        server.charge(-1, stands)
        plan = Plan([parse_limit(f"requests=100/10s:kind={kind}:start={start}")])
        World(plan, [server], Random(0)).run([Step(0, [(1,)] * 200, "none", "none")])


@pytest.mark.parametrize("charge", ["estimate", "usage"])
def test_a_crashed_process_leaves_calls_that_may_still_arrive(charge: str) -> None:
    """Granted just before the crash, resumed at once, arrived at D = 1 s."""
    caller = Caller(f"requests=10/s:burst=10:start=full:transit=1s:charge={charge}")
    server = servers.Bucket(10, S, 10)
    caller.grant(0, 10)
    decide.resume(caller.plan, caller.state, 0, caller.now(5 * S))
    server.charge(S, 10)
    for at in range(5 * S, 8 * S, S // 20):
        for grant in caller.granted(at):
            assert server.fits(at - 4 * S, 1)
            server.charge(at - 4 * S, 1)
            caller.settle(at, grant)


@pytest.mark.parametrize("kind", ["fixed", "sliding", "anchored", "bucket:burst=5"])
@pytest.mark.timeout(20)
def test_pinned_holds_do_not_make_the_ring_run_through_all_of_time(kind: str) -> None:
    caller = Caller(f"tokens=5/s:kind={kind}:charge=usage:start=full:transit=1ms", at=10**13 + S // 2)
    caller.grant(10**13 + S // 2, 2)
    caller.used(10**13 + S // 2 + 10**12)


@pytest.mark.parametrize("off", [-5 * MS, -1, 1, 3 * MS, 5 * MS])
def test_told_is_exact_though_the_wall_clock_differs_within_its_error(off: int) -> None:
    caller = Caller("tokens=10/10s:kind=fixed:start=full:transit=1s", at=S)
    caller.wall_us += off
    for at in (S, 9_800 * MS, 10_200 * MS, 19_990 * MS):
        caller.granted(at, 1, most=6)
        answer = caller.copy().ask(at, (10,))[0]
        if isinstance(answer, Granted):
            continue
        assert isinstance(answer, Wait)
        assert isinstance(caller.copy().ask(answer.until_us - 1, (10,))[0], Wait)
        assert isinstance(caller.copy().ask(answer.until_us, (10,))[0], Granted), at


def test_the_silence_before_a_large_call_counts_from_the_last_charge() -> None:
    """A small call is charged at its end, a minute after it was sent; the large one gathered meanwhile."""
    caller = Caller("tokens=100/10s:charge=usage:when=completion:start=full")
    server = servers.SlidingLog(100, 10 * S)
    small = caller.grant(0, 5)
    assert caller.until(0, 100) == NEVER
    server.charge(60 * S, 5)
    caller.settle(60 * S, small, Signal(usage={"tokens": 5}))
    at = caller.until(60 * S, 100)
    caller.grant(at, 100)
    assert server.fits(at, 100), at


@pytest.mark.parametrize("skew", [-S, S])
def test_what_is_answered_near_the_edge_by_the_other_clock_counts_on_both_sides(skew: int) -> None:
    """The elapsed clock went back 3 s, the wall is right, the server's off by the declared error."""
    limit = Limit(meter="requests", amount=10, period_us=10 * S, kind="fixed", start="full", clock_error_us=S)
    world = World(Plan([limit]), [servers.Grid(10, 10 * S, phase=skew)], Random(0), careful=False)
    steps = [Step(S, [(1,)], "none", "none"), Step(3 * S, [(1,)], "none", "none", "answered", -60 * S)]
    steps += [Step(5_200 * MS, [(1,)] * 5, "none", "none"), Step(5 * S, [(1,)] * 40, "none", "none")]
    world.run(steps)


def test_what_counts_on_both_sides_of_an_edge_is_remembered_when_another_limit_opens_behind_it() -> None:
    caller = Caller("tokens=1/10s:kind=fixed:start=full", "requests=1/11s:burst=10:start=empty", at=S)
    late = caller.grant(9 * S, 1, 0)
    caller.settle(10 * S - 1, late)
    told = caller.until(10 * S - 1, 1, 1)  # the bucket opens at 12 s, in a window that may be used up
    assert isinstance(caller.copy().ask(told - 1, (1, 1))[0], Wait)
    caller.grant(told, 1, 1)


@pytest.mark.parametrize("skew", [-12 * S, 12 * S])
@pytest.mark.parametrize("jump", [-2 * S, 2 * S])
def test_clocks_that_differ_within_the_error_leave_less_of_it_to_the_server(skew: int, jump: int) -> None:
    """Ours differ by 2 s, less than the declared 12 s; the server's by 12 s from the one that is right."""
    limit = Limit(
        meter="requests", amount=2, period_us=60 * S, kind="fixed", clock_error_us=12 * S, start="full"
    )
    world = World(Plan([limit]), [servers.Grid(2, 60 * S, phase=skew)], Random(0), careful=False)
    world.clock.wall = 1_790_000_040 * S  # a full minute
    world.state = decide.fresh(world.plan, world.now())
    steps = [Step(15 * S, [(1,)], "none", "none"), Step(S, [], "none", "none", "answered", jump)]
    steps += [Step(33 * S, [(1,)], "none", "none"), Step(3 * S, [(1,)] * 6, "none", "none")]
    world.run(steps)
