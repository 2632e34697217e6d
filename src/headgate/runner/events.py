"""Facts to watch: what has become of a call, and of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from headgate.runner.call import Call

Kind: TypeAlias = Literal[
    "added",
    "started",
    "retried",
    "throttled",
    "completed",
    "failed",
    "empty",
    "idle",
    "limited",
    "unlimited",
]
KINDS: frozenset[str] = frozenset(get_args(Kind))


@dataclass(frozen=True, slots=True)
class Event:
    """One fact.

    In the life of a call: added, started, then completed or failed, or throttled or retried and started
    again. Of the whole: ``empty`` (nothing waits), ``idle`` (nor runs), ``limited`` (work waits for a limit
    or an interval) and ``unlimited``.

    Attributes:
        kind: what happened.
        call: to which call; None for facts about the whole.
        attempt: number of the attempt, from 1; 0 before the first.
        error: what it failed with, for retried, throttled and failed.
        seconds: the pause before the next attempt, for retried; the server's wish, for throttled.
    """

    kind: Kind
    call: Call[Any] | None = None
    attempt: int = 0
    error: BaseException | None = None
    seconds: float | None = None


Listener: TypeAlias = Callable[[Event], object]
