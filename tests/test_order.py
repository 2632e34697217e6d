"""Who is next in a line, and who stands where after having been taken out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.order import ELDEST_EVERY, Order


@dataclass(eq=False)
class Someone:
    name: str
    priority: float = 0.0
    number: int = 0


def joined(order: Order[Someone], *people: tuple[str, float]) -> list[Someone]:
    found = [Someone(name, priority) for name, priority in people]
    for one in found:
        order.join(one)
    return found


def all_of(order: Order[Someone]) -> str:
    out: list[Someone] = []
    while order:
        order.pop(out)
    return "".join(one.name for one in out)


def test_larger_priorities_first_and_equals_in_order() -> None:
    order: Order[Someone] = Order()
    joined(order, ("a", 0), ("b", 1), ("c", 0), ("d", -1), ("e", 1))
    assert all_of(order) == "beacd"
    assert not order


def test_every_eighth_is_the_eldest() -> None:
    order: Order[Someone] = Order()
    joined(order, ("x", 0), *[("i", 1.0)] * 20)
    assert all_of(order).index("x") == ELDEST_EVERY - 1


def test_whoever_comes_back_stands_where_it_stood() -> None:
    order: Order[Someone] = Order()
    a, _, c, _ = joined(order, ("a", 0), ("b", 0), ("c", 0), ("d", 0))
    for one in (a, c):
        assert order.remove(one)
    order.rejoin(c)
    order.rejoin(a)
    assert all_of(order) == "abcd"


def test_those_who_are_put_back_stand_behind_whoever_came_back_to_a_place_before() -> None:
    order: Order[Someone] = Order()
    joined(order, ("a", 0), ("b", 0), ("c", 0))
    out: list[Someone] = []
    for _ in range(3):
        order.pop(out)
    late, *asked = out
    order.rejoin(late)
    for one in reversed(asked):
        order.push_back(one)
    assert all_of(order) == "abc"


def test_whoever_is_put_back_has_not_had_a_turn() -> None:
    order: Order[Someone] = Order()
    joined(order, ("x", 0), *[("i", 1.0)] * 20)
    for _ in range(30):
        order.push_back(order.pop([]))
    assert all_of(order).index("x") == ELDEST_EVERY - 1


def test_whoever_may_still_be_there_is_put_back_once() -> None:
    order: Order[Someone] = Order()
    first, second = joined(order, ("a", 0), ("b", 0))
    order.restore(first)
    order.pop([])
    order.restore(first)
    order.restore(second)
    assert all_of(order) == "ab"


def test_who_leads() -> None:
    order: Order[Someone] = Order()
    a, b, c = joined(order, ("a", 0), ("b", 0), ("c", 1))
    assert [order.leads(one) for one in (a, b, c)] == [False, False, True]
    assert order.remove(c)
    assert [order.leads(one) for one in (a, b, c)] == [True, False, False]
    assert not Order[Someone]().leads(a)


def test_whoever_is_not_there_is_not_taken_out() -> None:
    order: Order[Someone] = Order()
    [one] = joined(order, ("a", 0))
    assert order.remove(one)
    assert not order.remove(one)
    assert not order.remove(Someone("b", 3.0))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("join pop back leave".split()), st.integers(-1, 1), st.integers(0, 99)),
        max_size=60,
    )
)
def test_equals_go_in_the_order_in_which_they_came(steps: Sequence[tuple[str, int, int]]) -> None:
    order: Order[Someone] = Order()
    inside: list[Someone] = []
    outside: list[Someone] = []
    for act, priority, which in steps:
        if act == "join":
            inside.append(Someone("", priority))
            order.join(inside[-1])
        elif act == "pop" and inside:
            one = order.pop(outside)
            inside.remove(one)
            assert all(one.number < other.number for other in inside if other.priority == one.priority)
        elif act == "back" and outside:
            one = outside.pop(which % len(outside))
            (order.rejoin if which % 2 else order.restore)(one)
            inside.append(one)
        elif act == "leave" and inside:
            assert order.remove(inside.pop(which % len(inside)))
        assert bool(order) == bool(inside)
        assert sum(order.leads(one) for one in inside) == min(len(inside), 1)


@pytest.mark.parametrize("priority", [float("inf"), -float("inf"), 1e300])
def test_priorities_are_numbers_of_any_size(priority: float) -> None:
    order: Order[Someone] = Order()
    joined(order, ("a", 0), ("b", priority))
    assert all_of(order) == ("ba" if priority > 0 else "ab")
