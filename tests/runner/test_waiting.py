"""The line of calls equals a sorted list, whatever comes, leaves and moves."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.runner.call import Call
from headgate.runner.waiting import Waiting

DEEP = os.environ.get("HEADGATE_EXAMPLES")
"""Set it to a large number to look for what the usual examples, the same each time, do not show."""

examples = settings(max_examples=int(DEEP or 200), derandomize=DEEP is None, deadline=None)


class Nobody:
    """An owner of calls that is not to be asked: the line itself decides where a call stands."""

    def set_priority(self, call: Call[Any], priority: float) -> None:
        raise AssertionError("asked for a place")


def call_of(priority: float = 0) -> Call[Any]:
    nobody: Any = Nobody()
    call: Call[Any] = Call(nobody, (), {})
    call._priority = priority
    return call


def line_of(*priorities: float) -> tuple[Waiting, list[Call[Any]]]:
    waiting, calls = Waiting(), [call_of(priority) for priority in priorities]
    for call in calls:
        waiting.push(call)
    return waiting, calls


class TestOrder:
    def test_larger_first_and_equals_in_order(self) -> None:
        waiting, (a, b, c, d, e) = line_of(0, 1, 0, -0.5, 1)
        assert list(waiting) == [b, e, a, c, d]
        assert waiting.peek() is b
        assert len(waiting) == waiting.size == 5

    def test_an_empty_line(self) -> None:
        waiting = Waiting()
        assert (waiting.peek(), waiting.size, list(waiting), waiting.drain()) == (None, 0, [], [])

    def test_who_comes_back_stands_where_it_stood(self) -> None:
        waiting, (a, b, c) = line_of(0, 0, 0)
        waiting.remove(a)
        waiting.push(d := call_of())
        waiting.restore(a)
        assert list(waiting) == [a, b, c, d]

    def test_who_comes_anew_stands_at_the_tail(self) -> None:
        waiting, (a, b, c) = line_of(0, 0, 0)
        waiting.remove(a)
        waiting.push(a)
        assert list(waiting) == [b, c, a]

    def test_who_moves_stands_at_the_tail_of_its_new_priority(self) -> None:
        waiting, (a, b, c) = line_of(1, 0, 1)
        waiting.move(b, 1)
        assert list(waiting) == [a, c, b]
        assert b.priority == 1
        waiting.move(a, 1)
        assert list(waiting) == [c, b, a]

    def test_whole_numbers_beyond_the_floats_keep_their_order(self) -> None:
        waiting, (a, b, c) = line_of(2**60, 2**60 + 1, 2.0**60)
        assert list(waiting) == [b, a, c]


class TestLeaving:
    def test_nobody_leaves_twice(self) -> None:
        waiting, (a, b) = line_of(0, 0)
        assert waiting.remove(a)
        assert not waiting.remove(a)
        assert (waiting.size, waiting.peek()) == (1, b)

    def test_a_stranger_cannot_leave(self) -> None:
        waiting, _ = line_of(0)
        assert not waiting.remove(call_of())
        assert waiting.size == 1

    def test_all_leave_in_order_and_may_come_back(self) -> None:
        waiting, (a, b, c) = line_of(0, 1, 0)
        assert waiting.drain() == [b, a, c]
        assert (waiting.size, waiting.peek()) == (0, None)
        assert not waiting.remove(a)
        waiting.push(a)
        assert list(waiting) == [a]

    def test_what_has_left_takes_no_room_for_long(self) -> None:
        waiting, (stays, *_) = line_of(-1)
        for _ in range(50_000):
            waiting.push(call := call_of())
            waiting.remove(call)
            waiting.move(stays, -1)
        assert list(waiting) == [stays]
        assert len(waiting._heap) < 5_000


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("push", "push", "push", "pop", "restore", "remove", "move", "drain")),
        st.integers(0, 30),
        st.sampled_from((-1, 0, 0.5, 1, 1.0)),
    ),
    max_size=60,
)


class Model:
    """Calls and where they stand, sorted anew each time."""

    def __init__(self) -> None:
        self.place: dict[Call[Any], tuple[float, int]] = {}
        self.left: dict[Call[Any], tuple[float, int]] = {}
        self.tickets = 0

    def order(self) -> list[Call[Any]]:
        return sorted(self.place, key=self.place.__getitem__)

    def put(self, call: Call[Any], priority: float) -> None:
        self.tickets += 1
        self.place[call] = (-priority, self.tickets)

    def take(self, call: Call[Any]) -> None:
        self.left[call] = self.place.pop(call)

    def put_back(self, call: Call[Any]) -> None:
        self.place[call] = self.left.pop(call)


@examples
@given(STEPS)
def test_it_equals_a_sorted_list(steps: list[tuple[str, int, float]]) -> None:
    waiting, model = Waiting(), Model()
    for step, pick, priority in steps:
        there, gone = model.order(), list(model.left)
        if step == "push":
            waiting.push(call := call_of(priority))
            model.put(call, priority)
        elif step == "restore" and gone:
            waiting.restore(call := gone[pick % len(gone)])
            model.put_back(call)
        elif step == "pop" and there:
            head = waiting.peek()
            assert head is there[0]
            assert waiting.remove(head)
            model.take(head)
        elif step == "remove" and there:
            call = there[pick % len(there)]
            assert waiting.remove(call)
            model.take(call)
        elif step == "move" and there:
            waiting.move(call := there[pick % len(there)], priority)
            model.put(call, priority)
        elif step == "drain":
            assert waiting.drain() == there
            for call in there:
                model.take(call)
        order = model.order()
        assert list(waiting) == order
        assert waiting.peek() is (order[0] if order else None)
        assert len(waiting) == len(order)
        assert all(call.entry is None for call in model.left)
