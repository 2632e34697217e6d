"""Ctrl-C in real processes: what is done stays done, nothing is done twice, and nobody waits for ever."""

import json
import random
import signal
import time
from collections import Counter
from typing import Any

import pytest

from tests.runner.children import Child

SOON = 2.0
"""Seconds in which a process has to end that has no reason to stay."""
NUMBERS = 20
GATED = 8
"""Calls from this one on wait for the gate."""
AT_ONCE = 4

WORK = f"""
def work(x):
    say("start", x)
    if x >= {GATED}:
        gate.wait()
    say("end", x)
    return 2 * x

async def work_async(x):
    say("start", x)
    if x >= {GATED}:
        await gate.wait_async()
    say("end", x)
    return 2 * x

def tell(name, results):
    say(name, json.dumps([results.results, results.complete, results.stopped]))

function = {{"thread": work, "coroutine": work_async}}[sys.argv[1]]
runner = Runner(function, max_concurrent={AT_ONCE}, progress=False)
"""
SCHEDULE = f"""
for x in range({NUMBERS}):
    runner.schedule(x)
"""

both_kinds = pytest.mark.parametrize("kind", ["thread", "coroutine"])


def told(child: Child, name: str) -> tuple[list[int | None], bool, str | None]:
    (line,) = child.said(name)
    results, complete, stopped = json.loads(line)
    return results, complete, stopped


def doubles(count: int) -> list[int | None]:
    """Results of the first so many calls, and None for the others."""
    return [2 * x if x < count else None for x in range(NUMBERS)]


def numbers(child: Child, word: str) -> Counter[int]:
    return Counter(map(int, child.said(word)))


def once(count: int) -> Counter[int]:
    return Counter(range(count))


@both_kinds
def test_the_first_interrupt_gives_partial_results_and_run_goes_on(kind: str) -> None:
    script = """
tell("first", runner.run())
tell("second", runner.run())
"""
    with Child(WORK + SCHEDULE + script, kind) as child:
        child.wait_for("start", GATED + AT_ONCE)
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("headgate:")
        assert child.said("headgate:") == [
            "interrupted; 4 calls are on their way. Ctrl-C again ends at once."
        ]
        assert not child.said("first")
        child.tell("open")
        assert child.end() == 0
        assert told(child, "first") == (doubles(GATED + AT_ONCE), False, "interrupted")
        assert told(child, "second") == (doubles(NUMBERS), True, None)
        assert numbers(child, "start") == numbers(child, "end") == once(NUMBERS)


@both_kinds
def test_an_interrupt_before_anything_has_started_starts_nothing(kind: str) -> None:
    script = """
runner.pause()
tell("first", runner.run())
runner.resume()
gate.open()
tell("second", runner.run())
"""
    with Child(WORK + SCHEDULE + script, kind) as child:
        child.wait_until_blocked()
        child.interrupt()
        assert child.end() == 0
        assert told(child, "first") == (doubles(0), False, "interrupted")
        assert told(child, "second") == (doubles(NUMBERS), True, None)
        assert child.heard.index("start 0") > child.heard.index(f"first {child.said('first')[0]}")
        assert numbers(child, "start") == once(NUMBERS)


STUCK = """
def sleeps():
    say("start")
    time.sleep(60)

async def ignores():
    say("start")
    for _ in range(60):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            say("ignored")

async def blocks():
    sleeps()

function = {"thread": sleeps, "coroutine": ignores, "coroutine that blocks": blocks}[sys.argv[1]]
runner = Runner(function, progress=False)
runner.schedule()
"""


@pytest.mark.parametrize("kind", ["thread", "coroutine", "coroutine that blocks"])
@pytest.mark.parametrize("caught", [True, False])
def test_the_second_interrupt_ends_at_once_whatever_is_stuck(kind: str, caught: bool) -> None:
    script = """
try:
    runner.run()
except KeyboardInterrupt:
    say("raised")
    if sys.argv[2] == "False":
        raise
"""
    with Child(STUCK + script, kind, caught) as child:
        child.wait_for("start")
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("headgate:")
        child.wait_until_blocked()
        assert not child.said("raised")
        child.interrupt()
        before = time.monotonic()
        code = child.end()
        assert time.monotonic() - before < SOON
        assert child.said("raised") == [""]
        assert code == (0 if caught else -signal.SIGINT)


@both_kinds
def test_after_the_second_interrupt_run_goes_on_too(kind: str) -> None:
    script = """
try:
    runner.run()
except KeyboardInterrupt:
    tell("first", runner.results())
tell("second", runner.run())
"""
    with Child(WORK + SCHEDULE + script, kind) as child:
        child.wait_for("start", GATED + AT_ONCE)
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("headgate:")
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("first")
        child.tell("open")
        assert child.end() == 0
        assert told(child, "first") == (doubles(GATED), False, "interrupted")
        assert told(child, "second") == (doubles(NUMBERS), True, None)
        cancelled = Counter(range(GATED, GATED + AT_ONCE)) if kind == "coroutine" else Counter()
        assert numbers(child, "start") == once(NUMBERS) + cancelled
        assert numbers(child, "end") == once(NUMBERS)


@both_kinds
def test_map_raises_when_the_calls_on_their_way_have_come_back(kind: str) -> None:
    script = f"""
try:
    for value in runner.map(range({NUMBERS})):
        say("got", value)
except KeyboardInterrupt:
    say("raised", runner.size, runner.pending)
say("again", json.dumps(list(runner.map(range({NUMBERS})))))
"""
    with Child(WORK + script, kind) as child:
        child.wait_for("start", GATED + AT_ONCE)
        child.wait_for("got", GATED)
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("headgate:")
        child.tell("open")
        assert child.end() == 0
        assert child.said("raised") == ["0 0"]
        raised = child.heard.index("raised 0 0")
        assert Counter(child.heard[:raised]) == Counter(
            [f"{word} {x}" for x in range(GATED + AT_ONCE) for word in ("start", "end")]
            + [f"got {2 * x}" for x in range(GATED)]
            + ["blocked", *(line for line in child.heard if line.startswith("headgate: "))]
        )
        assert json.loads(child.said("again")[0]) == doubles(NUMBERS)


@both_kinds
def test_an_interrupt_of_the_loop_around_map_leaves_the_runner_fit_for_use(kind: str) -> None:
    script = f"""
try:
    for value in runner.map(range({NUMBERS})):
        if value == 10:
            say("inside")
            time.sleep(60)
except KeyboardInterrupt:
    say("raised", runner.size)
say("again", json.dumps(list(runner.map(range({NUMBERS})))))
"""
    with Child(WORK + script, kind) as child:
        child.wait_for("inside")
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("raised")
        child.tell("open")
        assert child.end() == 0
        assert child.said("raised") == ["0"]
        assert json.loads(child.said("again")[0]) == doubles(NUMBERS)
        assert numbers(child, "start") <= once(NUMBERS) + once(NUMBERS)


@both_kinds
def test_interrupted_asyncio_run_keeps_what_is_done_and_the_next_goes_on(kind: str) -> None:
    script = """
async def main():
    return await runner.run_async()

try:
    asyncio.run(main())
except KeyboardInterrupt:
    tell("first", runner.results())
tell("second", asyncio.run(main()))
"""
    with Child(WORK + SCHEDULE + script, kind) as child:
        child.wait_for("start", GATED + AT_ONCE)
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("first")
        child.tell("open")
        assert child.end() == 0
        assert told(child, "first") == (doubles(GATED), False, "interrupted")
        assert told(child, "second") == (doubles(NUMBERS), True, None)
        cancelled = Counter(range(GATED, GATED + AT_ONCE)) if kind == "coroutine" else Counter()
        assert numbers(child, "start") == once(NUMBERS) + cancelled
        assert numbers(child, "end") == once(NUMBERS)


@both_kinds
def test_interrupted_async_for_leaves_the_runner_fit_for_use(kind: str) -> None:
    script = f"""
async def main():
    return [value async for value in runner.map(range({NUMBERS}))]

try:
    asyncio.run(main())
except KeyboardInterrupt:
    say("raised", runner.size)
say("again", json.dumps(asyncio.run(main())))
"""
    with Child(WORK + script, kind) as child:
        child.wait_for("start", GATED + AT_ONCE)
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("raised")
        child.tell("open")
        assert child.end() == 0
        assert child.said("raised") == ["0"]
        assert json.loads(child.said("again")[0]) == doubles(NUMBERS)
        assert numbers(child, "start") == once(NUMBERS) + once(GATED + AT_ONCE)


def test_interrupted_asyncio_run_is_not_held_up_by_a_stuck_thread() -> None:
    with Child(STUCK + "asyncio.run(runner.run_async())", "thread") as child:
        child.wait_for("start")
        child.wait_until_blocked()
        child.interrupt()
        before = time.monotonic()
        assert child.end() == -signal.SIGINT
        assert time.monotonic() - before < SOON


@both_kinds
@pytest.mark.parametrize("caught", [True, False])
def test_a_run_in_another_thread_is_not_disturbed(kind: str, caught: bool) -> None:
    script = """
threading.Thread(target=lambda: tell("first", runner.run())).start()
try:
    time.sleep(60)
except KeyboardInterrupt:
    say("raised")
    if sys.argv[2] == "False":
        raise
"""
    with Child(WORK + SCHEDULE + script, kind, caught) as child:
        child.wait_for("start", GATED + AT_ONCE)
        child.wait_until_blocked()
        child.interrupt()
        child.wait_for("raised")
        child.tell("open")
        assert child.end() == (0 if caught else -signal.SIGINT)
        assert told(child, "first") == (doubles(NUMBERS), True, None)
        assert numbers(child, "start") == once(NUMBERS)


@both_kinds
@pytest.mark.parametrize("way", ["run", "background", "stuck in the background"])
def test_a_process_without_work_ends_by_itself(kind: str, way: str) -> None:
    script = f"""
if sys.argv[2] == "run":
    gate.open()
    for x in range({NUMBERS}):
        runner.schedule(x)
    tell("first", runner.run())
else:
    runner.start()
    for x in range({GATED + 1 if way == "stuck in the background" else GATED}):
        runner.schedule(x)
    runner.wait_below(1) if sys.argv[2] == "stuck in the background" else runner.wait_idle()
say("last")
"""
    with Child(WORK + script, kind, way) as child:
        child.wait_for("last")
        before = time.monotonic()
        assert child.end() == 0
        assert time.monotonic() - before < SOON
        assert child.heard[-1] == "last" or way == "stuck in the background"


ROUNDS = 12


@both_kinds
def test_interrupts_at_random_instants_lose_nothing(kind: str) -> None:
    script = f"""
sent = []
ORDERS["sent"] = lambda: sent.append(1)
calls = []

def work(x):
    calls.append(x)
    time.sleep(0.0005)
    return 2 * x

async def work_async(x):
    calls.append(x)
    await asyncio.sleep(0.0005)
    return 2 * x

function = {{"thread": work, "coroutine": work_async}}[sys.argv[1]]

def until_interrupted(count):
    while True:
        try:
            while len(sent) < count:
                time.sleep(0.001)
            time.sleep(0)  # it is there; here it is seen at the latest
            return
        except KeyboardInterrupt:
            pass

for number in range({ROUNDS}):
    calls.clear()
    runner = Runner(function, max_concurrent={AT_ONCE}, progress=False)
    for x in range({NUMBERS}):
        runner.schedule(x)
    first, how = None, "returned"
    try:
        say("round", number)
        first = runner.run()
    except KeyboardInterrupt:
        how = "raised"
    until_interrupted(number + 1)
    done = 0 if first is None else sum(call.done() for call in first.calls)
    last = first if first is not None and first.complete else runner.run()
    say("done", json.dumps([how, done, last.results, sorted(calls)]))
"""
    chance = random.Random(f"interrupts of a {kind}")
    interrupted: list[Any] = []
    with Child(script, kind) as child:
        for number in range(ROUNDS):
            child.wait_for("round", number + 1)
            time.sleep(chance.uniform(0, 0.01))
            child.interrupt()
            child.tell("sent")
            child.wait_for("done", number + 1)
            how, done, results, calls = json.loads(child.said("done")[-1])
            assert results == doubles(NUMBERS)
            assert calls == list(range(NUMBERS))
            interrupted.append((how, done))
        assert child.end() == 0
    print(f"\n{kind}: {interrupted}")


ANY_INSTANT = """
import dis, faulthandler, signal
from pathlib import Path
from headgate.errors import RunStopped

made = []

def work(x):
    made.append(x)
    return x

async def work_async(x):
    await asyncio.sleep(0)
    return work(x)

function = {"thread": work, "coroutine": work_async}[sys.argv[1]]
way = sys.argv[2]
LOOKS = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")}
FILES = ("/headgate/", "/threading.py")

def interrupted_at(instant):
    '''Interrupt a run where the interpreter looks for signals for the so-many-eth time.'''
    runner = Runner(function, max_concurrent=2, progress=False)
    made.clear()
    if way == "run":
        for x in range(5):
            runner.schedule(x)
    before, place, count = (None, None), None, 0

    def trace(frame, event, argument):
        nonlocal before, place, count
        code = frame.f_code
        if not any(part in code.co_filename for part in FILES):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            looks = before[0] is frame and before[1] in LOOKS
            before = frame, code.co_code[frame.f_lasti]
            count += looks
            if looks and count == instant:
                place = f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return trace

    first, how = None, ""
    sys.settrace(trace)
    try:
        if way == "run":
            first = runner.run()
        elif way == "map":
            first = list(runner.map(range(5)))
        else:
            for x in range(5):
                runner.schedule(x)
    except KeyboardInterrupt:
        how = "raised"
    finally:
        sys.settrace(None)
    if place is None:
        return False
    guard = threading.Timer(3, runner.stop, ["it hangs"])
    guard.start()
    runner.stop("in between")  # which the next run forgets, if none before still counts as going on
    if way == "map" and first is None:
        how += f" and then left {runner.size} behind" if runner.size else ""
        how += "" if runner.wait_idle(2) else " and then never came to rest"
        made.clear()
        try:
            first = list(runner.map(range(5)))
        except RunStopped as error:
            how += f" and then {error}"
    elif way != "map" and not (first and first.complete):
        first = runner.run()
        how += f" and then {first}" if first.stopped or not first.complete else ""
    guard.cancel()
    results = first.results if way != "map" else first
    if sorted(made) != results or (results != [*range(5)] and way != "schedule"):
        how += f" and then made {made} and gave {results}"
    say("at", json.dumps([place, how]))
    return True

instant = 1
faulthandler.dump_traceback_later(100, exit=True)
while interrupted_at(instant):
    instant += 1
"""


@pytest.mark.slow
@both_kinds
@pytest.mark.parametrize("way", ["schedule", "run", "map"])
def test_an_interrupt_at_any_instant_loses_nothing(kind: str, way: str) -> None:
    with Child(ANY_INSTANT, kind, way) as child:
        code = child.end(seconds=110)
        found = [json.loads(line) for line in child.said("at")]
        assert code == 0, (found[-1:], child.heard[-40:])
        assert len(found) > 20
        assert "\n".join(": ".join(entry) for entry in found if " and " in entry[1]) == ""
        print(f"\n{kind}, {way}: {len(found)} instants, {sum(bool(how) for _, how in found)} raised")
