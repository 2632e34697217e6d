"""One decision for all limits, the gate after a refusal, and the state's way through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import decide
from headgate.core.decide import FIRST_PAUSE_US, LONGEST_PAUSE_US, PROBE_LEASE_US, State
from headgate.core.model import (
    ANSWERED,
    LOST,
    NEVER,
    SECOND,
    UNSENT,
    Granted,
    Now,
    Refused,
    Report,
    Signal,
    Throttle,
    Wait,
)
from headgate.core.plan import Plan
from headgate.core.text import parse_limits
from tests.core.caller import Caller

S = SECOND
MS = 1_000
KINDS = (
    "tokens=10/s:burst=10",
    "tokens=10/s:kind=sliding",
    "tokens=10/s:kind=anchored",
    "tokens=10/10s:kind=fixed",
    "tokens=10/day:kind=calendar",
    "tokens=100/s",
)


def refused(meter: str | None = None, after: int | None = None, *, edge: bool = False) -> Signal:
    return Signal(throttle=Throttle(meter, after, edge))


# all or none


@given(
    limits=st.lists(st.sampled_from(KINDS), min_size=2, max_size=4, unique=True),
    costs=st.lists(st.integers(0, 14), min_size=4, max_size=4),
    at=st.integers(0, 3 * S),
)
def test_all_limits_are_charged_or_none(limits: list[str], costs: list[int], at: int) -> None:
    caller = Caller(
        *[f"{text}:name={index}:start=full" for index, text in enumerate(limits)], "concurrency=2"
    )
    ask = (*costs[: len(limits)], 1)
    for _ in range(3):
        before = caller.used(at)
        answer = caller.ask(at, ask)[0]
        after = caller.used(at)
        if isinstance(answer, Granted):
            for index, cost in enumerate(ask):
                assert after[index] - before[index] == cost or (limits[index] == "tokens=100/s" and cost > 5)
        else:
            assert after == before


def test_the_limit_that_is_last_to_open_is_named() -> None:
    caller = Caller("requests=10/s:burst=10:start=empty", "tokens=1/s:burst=10:start=empty", "concurrency=2")
    answer = caller.ask(0, (1, 3, 1))[0]
    assert isinstance(answer, Wait)
    assert answer.rule == 1
    assert answer.until_us == pytest.approx(3 * S, rel=0.001)


def test_what_costs_nothing_on_a_limit_does_not_wait_for_it() -> None:
    caller = Caller("requests=10/s:burst=10:start=full", "tokens=1/s:burst=1:start=empty")
    assert isinstance(caller.ask(0, (1, 0))[0], Granted)
    assert isinstance(caller.ask(0, (1, 1))[0], Wait)


def test_no_limits_grant_everything() -> None:
    plan = Plan([])
    state = decide.fresh(plan, Now(0, 0))
    answer = decide.acquire(plan, [()], state, Now(5, 5))[0]
    assert isinstance(answer, Granted)
    assert answer.use_before_us == NEVER
    decide.settle(plan, [Report(answer, Signal())], state, Now(6, 6))


# in line


def test_nobody_overtakes_whoever_waits() -> None:
    caller = Caller("tokens=10/s:burst=10:start=full")
    answers = caller.ask(0, (6,), (6,), (1,), (11,), (1,))
    assert [type(answer) for answer in answers] == [Granted, Wait, Wait, Refused, Wait]
    assert answers[1] == answers[2] == answers[4]


def test_a_refusal_holds_up_nobody() -> None:
    answers = Caller("tokens=10/s:burst=10:start=full").ask(0, (11,), (6,), (11,), (4,))
    assert [type(answer) for answer in answers] == [Refused, Granted, Refused, Granted]


def test_no_asks_no_answers() -> None:
    assert Caller("tokens=10/s:burst=10").ask(0) == []


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    text=st.sampled_from(KINDS),
    cuts=st.integers(1, 12),
)
def test_a_batch_is_answered_like_its_asks_one_by_one(sizes: list[int], text: str, cuts: int) -> None:
    together, single = Caller(text + ":start=full"), Caller(text + ":start=full")
    at = 100 * MS
    answers = together.ask(at, *[(size,) for size in sizes])
    for size, answer in zip(sizes, answers, strict=True):
        alone = single.ask(at, (size,))[0]
        if isinstance(answer, Wait):
            assert isinstance(alone, Wait)
            assert alone == answer
            break
        assert alone == answer


# instants


@given(
    limits=st.lists(st.sampled_from((*KINDS, "concurrency=2")), min_size=1, max_size=4, unique=True),
    calls=st.lists(
        st.tuples(st.integers(1, 10), st.integers(0, 2 * S), st.sampled_from(("keep", "answer", "lost"))),
        max_size=12,
    ),
    between=st.integers(0, 10**9),
)
def test_told_means_granted_then_and_not_before(
    limits: list[str], calls: list[tuple[int, int, str]], between: int
) -> None:
    caller = Caller(*[f"{text}:name={index}" for index, text in enumerate(limits)], at=20 * S)
    at = 20 * S
    for size, passed, fate in calls:
        at += passed
        ask = tuple(1 if "concurrency" in text else size for text in limits)
        answer = caller.ask(at, ask)[0]
        if isinstance(answer, Granted):
            if fate != "keep":
                caller.settle(at, answer, Signal() if fate == "answer" else LOST)
        elif isinstance(answer, Wait) and answer.until_us < NEVER:
            told = answer.until_us
            early = caller.copy()
            for instant in sorted({at + between % (told - at), told - 1}):
                assert early.ask(instant, ask) == [answer]
            assert isinstance(early.ask(told, ask)[0], Granted)
            assert isinstance(caller.copy().ask(told, ask)[0], Granted)
            if fate == "answer":
                at = told
        elif isinstance(answer, Wait):
            assert isinstance(caller.copy().ask(at + 10**12, ask)[0], Wait)  # it takes an answer


def test_a_grant_says_until_when_it_may_leave() -> None:
    grant = Caller("tokens=10/s:burst=10:start=full:transit=80ms", "concurrency=3").grant(5 * S)
    assert (grant.at_us, grant.use_before_us) == (5 * S, 5 * S + 40 * MS)


# the gate


def gated(text: str = "tokens=100/s:burst=100:start=full", more: int = 3) -> tuple[Caller, list[Granted]]:
    caller = Caller(text)
    return caller, caller.granted(0, most=more)


def test_after_a_refusal_nobody_passes_until_retry_after_then_one_then_all() -> None:
    caller, (hit, other, _) = gated()
    caller.settle(10 * MS, hit, refused(after=5 * S))
    opens = 5 * S + 10 * MS
    assert caller.until(20 * MS) == opens
    caller.settle(opens - 1, other)  # granted before: proves nothing
    assert caller.until(opens - 1) == opens
    probe, *rest = caller.ask(opens, (1,), (1,), (1,))
    assert isinstance(probe, Granted)
    assert all(isinstance(answer, Wait) for answer in rest)
    assert caller.until(opens) == opens + PROBE_LEASE_US
    caller.settle(opens + 50 * MS, probe)
    assert len(caller.granted(opens + 50 * MS)) > 10


def test_a_refusal_starts_the_bucket_again_from_less_than_nothing() -> None:
    caller, (hit, *_) = gated()
    caller.settle(10 * MS, hit, refused())
    assert caller.until(10 * MS) > 10 * MS


@pytest.mark.parametrize("signal", [LOST, UNSENT])
def test_a_probe_that_proves_nothing_is_followed_by_another(signal: Signal) -> None:
    caller, (hit, *_) = gated()
    caller.settle(10 * MS, hit, refused(after=S))
    at = caller.until(10 * MS)
    caller.settle(at + MS, caller.grant(at), signal)
    again = caller.until(at + MS) if isinstance(caller.copy().ask(at + MS, (1,))[0], Wait) else at + MS
    assert again < at + S
    probe, second = caller.ask(again, (1,), (1,))
    assert isinstance(probe, Granted)
    assert isinstance(second, Wait)


def test_a_probe_that_nobody_settles_is_forgotten_after_its_lease() -> None:
    caller, (hit, *_) = gated()
    caller.settle(10 * MS, hit, refused(after=S))
    at = caller.until(10 * MS)
    caller.grant(at)
    assert caller.until(at) == at + PROBE_LEASE_US
    caller.grant(at + PROBE_LEASE_US)


def test_probes_that_are_refused_wait_twice_as_long_each_time() -> None:
    caller, (hit, *_) = gated()
    at = 10 * MS
    caller.settle(at, hit, refused())
    pauses = []
    for _ in range(14):
        opens = caller.until(at)
        probe = caller.grant(opens)
        at = opens + MS
        caller.settle(at, probe, refused())
        pauses.append(caller.until(at) - at)
    assert pauses[0] == FIRST_PAUSE_US
    assert pauses[3] == 8 * FIRST_PAUSE_US
    assert pauses[-1] == LONGEST_PAUSE_US


@pytest.mark.parametrize("late", [refused(after=9 * S), refused(), Signal(), LOST])
def test_what_was_granted_before_never_opens(late: Signal) -> None:
    caller, (hit, other, _) = gated()
    caller.settle(10 * MS, hit, refused(after=5 * S))
    caller.settle(20 * MS, other, late)
    assert caller.until(30 * MS) >= 5 * S + 10 * MS


def test_a_named_meter_shuts_its_own_limit_only() -> None:
    caller = Caller("requests=100/s:burst=100:start=full", "tokens=100/s:burst=100:start=full")
    caller.settle(MS, caller.grant(0), refused("tokens", 5 * S))
    assert isinstance(caller.ask(2 * MS, (1, 0))[0], Granted)
    assert caller.until(2 * MS, 1, 1) == 5 * S + MS


def test_a_name_that_is_none_of_ours_shuts_every_rate() -> None:
    caller = Caller(
        "requests=100/s:burst=100:start=full", "tokens=100/s:burst=100:start=full", "concurrency=9"
    )
    caller.settle(MS, caller.grant(0), refused("images", 5 * S))
    assert caller.until(2 * MS, 1, 0, 1) == caller.until(2 * MS, 0, 1, 1) == 5 * S + MS
    assert isinstance(caller.ask(2 * MS, (0, 0, 1))[0], Granted)


def test_a_window_that_is_gone_opens_at_its_edge() -> None:
    caller = Caller("requests=10/s:burst=10:start=full", "requests=1000/day:kind=calendar")
    caller.settle(MS, caller.grant(0), refused("requests", edge=True))
    until = caller.until(2 * MS)
    assert (until + caller.wall_us) % (86_400 * S) in (0, S)


@pytest.mark.parametrize("text", KINDS)
def test_shut_stays_shut_through_json(text: str) -> None:
    caller = Caller(text + ":start=full", at=21 * S)
    caller.settle(21 * S + MS, caller.grant(21 * S), refused(after=5 * S))
    assert caller.copy().until(21 * S + 2 * MS) == caller.until(21 * S + 2 * MS) >= 26 * S


# the state


def test_the_state_is_plain_json() -> None:
    caller = Caller(*[f"{text}:name={index}" for index, text in enumerate(KINDS)], "concurrency=2")
    caller.ask(0, (1,) * 7, (9,) * 7)
    dumped = caller.state.dump()
    text = json.dumps(dumped)
    assert json.dumps(State.load(json.loads(text)).dump()) == text


def test_limits_that_stay_the_same_keep_their_state_when_others_change() -> None:
    caller = Caller("requests=10/s:burst=10:start=full", "tokens=10/s:kind=sliding:start=full")
    caller.ask(0, (7, 3))
    new = Plan(parse_limits(["tokens=10/s:kind=sliding:start=full", "images=5/s:burst=5:start=full"]))
    state = decide.replan(caller.plan, new, caller.state, caller.now(10))
    assert decide.used(new, state, caller.now(10)) == (3, 0)


def test_looking_changes_nothing() -> None:
    caller = Caller(*[f"{text}:name={index}:start=full" for index, text in enumerate(KINDS)])
    caller.ask(S, (3,) * 6)
    first = caller.used(S)
    assert caller.used(S) == first
    assert caller.copy().used(S) == first


@given(
    st.lists(
        st.tuples(
            st.sampled_from((-3600 * S, -S, 0, 1, S, 3600 * S)), st.sampled_from((-3600 * S, 0, S, 3600 * S))
        )
    )
)
def test_asking_survives_any_reading_of_the_clocks(readings: list[tuple[int, int]]) -> None:
    caller = Caller(*[f"{text}:name={index}" for index, text in enumerate(KINDS)], "concurrency=9", at=10**12)
    elapsed, wall = 10**12, 10**12 + caller.wall_us
    for elapsed_step, wall_step in readings:
        elapsed, wall = elapsed + elapsed_step, wall + wall_step
        now = Now(elapsed, wall)
        answer = decide.acquire(caller.plan, [(1,) * 7], caller.state, now)[0]
        if isinstance(answer, Granted):
            decide.settle(caller.plan, [Report(answer, Signal())], caller.state, now)


FIRM_KINDS = (
    "tokens=10/s:burst=10",
    "tokens=12/s:kind=sliding",
    "tokens=12/s:kind=fixed",
    "tokens=240/s",
    "concurrency=2",
)


@given(
    limits=st.lists(st.sampled_from(FIRM_KINDS), min_size=1, max_size=3, unique=True),
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, SECOND // 2)), min_size=2, max_size=12),
    answered=st.integers(0, 12),
    part=st.integers(0, 1000),
)
def test_a_firm_instant_stays_though_calls_are_answered(
    limits: list[str], sizes: list[tuple[int, int]], answered: int, part: int
) -> None:
    caller = Caller(*[f"{text}:name=n{index}" for index, text in enumerate(limits)], at=20 * SECOND)
    at, grants = 20 * SECOND, []
    for size, passed in sizes:
        at += passed
        ask = tuple(1 if "concurrency" in text else size for text in limits)
        answer = caller.ask(at, ask)[0]
        if isinstance(answer, Granted):
            grants.append(answer)
        elif isinstance(answer, Wait) and answer.firm:
            later = at + (answer.until_us - 1 - at) * part // 1000
            for grant in grants[:answered]:
                caller.settle(later, grant, ANSWERED)
            again = caller.copy().ask(later, ask)
            assert again == [answer] or caller.copy().until(later, *ask) >= answer.until_us
            break
