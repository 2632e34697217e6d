"""Facts to watch: what a limiter has just done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Granted:
    """A permit was given.

    ``units`` is {limit name: units reserved}, ``waited_seconds`` the time since it was asked for.
    """

    key: str
    units: Mapping[str, int]
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class Waited:
    """The head of the line has to wait for ``limit``: ``seconds``, or None until an answer comes.

    ``limit`` is ``paused`` while an operator lets nothing go.
    """

    key: str
    limit: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Throttled:
    """The server refused a call for its rate.

    ``meter`` is what it named, or None; ``retry_after_seconds`` what it asked for, or None.
    """

    key: str
    meter: str | None
    retry_after_seconds: float | None


@dataclass(frozen=True, slots=True)
class Settled:
    """A permit was settled: ``outcome`` is answered, lost or unsent; ``used`` {meter: units}."""

    key: str
    outcome: str
    used: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The shared store cannot be reached; ``why`` says what it said, or what was tried."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class StoreBack:
    """The shared store answers again, after ``seconds``."""

    key: str
    seconds: float


Event: TypeAlias = Granted | Waited | Throttled | Settled | StoreFailed | StoreBack
Listener: TypeAlias = Callable[[Event], None]
