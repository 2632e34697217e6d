"""Calls in the order in which they are to start: larger priorities first, first come first served among
equals.

It knows nothing but order. Not safe for threads: its owner has a lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from headgate.runner.call import Call

Entry: TypeAlias = "tuple[float, int, Call[Any]]"
"""Minus the priority, the place among equals, the call."""

STALE = 1024
"""So many entries of calls that have left may stay in the heap, or as many as there are live ones."""


class Waiting:
    """A priority queue whose members may leave or move at any time.

    A call that leaves takes its ``entry`` along; what is left of it in the heap is passed over later.
    """

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._numbers = 0
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Call[Any]]:
        """All of them, in order."""
        return (entry[2] for entry in sorted(self._heap) if entry[2].entry is entry)

    def push(self, call: Call[Any]) -> None:
        """To the tail of its priority."""
        self.number(call)
        self.restore(call)

    def number(self, call: Call[Any]) -> None:
        """Give it the last place among equals, for when it is restored."""
        self._numbers += 1
        call.number = self._numbers

    def restore(self, call: Call[Any]) -> None:
        """Back to the place that it had."""
        entry = (-call._priority, call.number, call)
        call.entry = entry
        self.size += 1
        heappush(self._heap, entry)  # last: only after a call may a Ctrl-C strike

    def find(self, name: str) -> Call[Any] | None:
        """The first one with that id."""
        named = (entry for entry in self._heap if entry[2].entry is entry and entry[2].id == name)
        first = min(named, default=None)
        return None if first is None else first[2]

    def peek(self) -> Call[Any] | None:
        """The next one; None if there is none."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry[2].entry is entry:
                return entry[2]
            heappop(heap)
        return None

    def remove(self, call: Call[Any]) -> bool:
        """Take it out, wherever it stands; whether it was here."""
        if call.entry is None:
            return False
        heap = self._heap
        if heap and heap[0] is call.entry:
            heappop(heap)
        call.entry = None
        self.size -= 1
        if len(heap) > 2 * self.size + STALE:
            self._heap = [entry for entry in heap if entry[2].entry is entry]
            heapify(self._heap)
        return True

    def move(self, call: Call[Any], priority: float) -> None:
        """To the tail of another priority."""
        self.remove(call)
        call._priority = priority
        self.push(call)

    def drain(self) -> list[Call[Any]]:
        """Take out all of them."""
        calls = list(self)
        for call in calls:
            call.entry = None
        self._heap.clear()
        self.size = 0
        return calls
