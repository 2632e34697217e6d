"""What the server enforces: its configuration, what a call costs, six kinds of limit, and the judge.

Each rule is a fold over the log of past arrivals in exact integers. Instants are nanoseconds: buckets and
moving windows live on the monotonic clock, grid windows on the wall clock. Nothing here reads a clock or
knows HTTP, and nothing is shared with the product.
"""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Limit:
    """One rule.

    meter: `tokens`, `input_tokens` and `output_tokens` count tokens; any other name counts calls.
    kind: bucket, sliding, fixed, counter, anchored or concurrency.
    amount: units per window; for concurrency the slots.
    burst: what a bucket holds; `None` leads to `amount`. Other kinds have none.
    found: what is left in a bucket when the first call comes; `None` leads to all.
    """

    meter: str
    kind: str
    amount: int
    window_seconds: float = 1.0
    burst: int | None = None
    found: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in RULES:
            raise ValueError(f"kind: expected one of {', '.join(RULES)}, got {self.kind!r}")
        for value in (self.amount, self.capacity):
            if type(value) is not int or value < 1:
                raise ValueError(f"amount and burst: expected a whole number from 1, got {value!r}")
        if self.found is not None and not (self.kind == "bucket" and 0 <= self.found <= self.capacity):
            raise ValueError(f"found: expected 0 to {self.capacity} of a bucket, got {self.found!r}")

    @property
    def window_ns(self) -> int:
        return int(Fraction(str(self.window_seconds)) * SECOND)

    @property
    def capacity(self) -> int:
        return self.amount if self.burst is None else self.burst

    @property
    def left_at_first(self) -> int:
        return self.capacity if self.found is None else self.found


@dataclass(frozen=True)
class Config:
    """What the server does.

    count_refused: refused calls are charged too, on every limit but concurrency.
    jitter_seconds: each call reaches the limiter a uniform 0..jitter after it was received.
    latency_seconds, latency_sigma: mean and sigma of the lognormal time from the decision to the answer.
    refund: at completion the difference between the reserved and the real usage is given back.
    headers: send `x-ratelimit-*`. `retry-after` is sent in any case.
    max_transit_seconds: the D that the caller relies on; only for the report. `None` leaves those lines out.
    """

    limits: tuple[Limit, ...]
    count_refused: bool = False
    jitter_seconds: float = 0.0
    latency_seconds: float = 0.0
    latency_sigma: float = 0.5
    seed: int = 1
    charge_rule: str = "odd"
    refund: bool = False
    headers: bool = True
    max_transit_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.charge_rule not in CHARGE_RULES:
            raise ValueError(
                f"charge_rule: expected one of {', '.join(CHARGE_RULES)}, got {self.charge_rule!r}"
            )

    @classmethod
    def from_json(cls, text: str) -> Config:
        raw = json.loads(text)
        return cls(**{**raw, "limits": tuple(Limit(**limit) for limit in raw["limits"])})


def odd_charge(text: str) -> int:
    """3, 2 for each word, 1 for each digit: a formula that nobody guesses."""
    return 3 + 2 * len(text.split()) + sum(text.count(digit) for digit in "0123456789")


def word_charge(text: str) -> int:
    """1 for each word."""
    return len(text.split())


CHARGE_RULES: dict[str, Callable[[str], int]] = {"odd": odd_charge, "words": word_charge}


class Usage(NamedTuple):
    """A call is charged `prompt + max_tokens` at arrival; its real usage is `prompt + completion`."""

    prompt: int
    max_tokens: int
    completion: int

    def reserved(self, limit: Limit) -> int:
        match limit.meter:
            case _ if limit.kind == "concurrency":
                return 1
            case "tokens":
                return self.prompt + self.max_tokens
            case "input_tokens":
                return self.prompt
            case "output_tokens":
                return self.max_tokens
            case _:
                return 1

    def unused(self, limit: Limit) -> int:
        """What completion frees: the slot, or the tokens that were not produced."""
        if limit.kind == "concurrency":
            return 1
        return self.max_tokens - self.completion if limit.meter in ("tokens", "output_tokens") else 0


def prompt_text(body: dict[str, Any]) -> str:
    """All text that the caller sent: messages (strings or parts), prompt, input."""
    texts = [body[name] for name in ("prompt", "input") if isinstance(body.get(name), str)]
    for message in body.get("messages") or ():
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [part["text"] for part in content if isinstance(part.get("text"), str)]
    return "\n".join(texts)


def read_usage(raw: bytes, body: dict[str, Any], rule: str) -> Usage:
    """The completion takes 10 to 30 % of `max_tokens`, a fifth on average, by a hash of the body."""
    max_tokens = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
    completion = max_tokens * (100 + zlib.crc32(raw) % 201) // 1000
    return Usage(CHARGE_RULES[rule](prompt_text(body)), max_tokens, max(1, completion))


ELAPSED, WALL = 0, 1
Stamp = tuple[int, int]
"""One instant on both clocks: (elapsed, wall)."""


class Rule(ABC):
    """One limit as the server enforces it. A call of c units is admitted iff `room(now) >= c * scale`.

    `charge` returns a place: what `give_back` needs to find the charge again.
    """

    clock = ELAPSED
    scale = 1

    def __init__(self, limit: Limit) -> None:
        self.amount = limit.amount
        self.window = limit.window_ns

    @abstractmethod
    def room(self, now: int) -> int:
        """Units that still fit at `now`, times `scale`. Callers ask in the order of time."""

    @abstractmethod
    def charge(self, now: int, units: int) -> int: ...

    @abstractmethod
    def give_back(self, now: int, place: int, units: int) -> None: ...

    @abstractmethod
    def wait(self, now: int, units: int) -> int | None:
        """Nanoseconds until so many units fit if nothing else arrives; `None` where nobody can know."""

    @abstractmethod
    def until_full(self, now: int) -> int:
        """Nanoseconds until nothing of the past counts any more."""


class Bucket(Rule):
    """Holds `burst`, starts full or with what is found, refills `amount` per window bit by bit, never falls
    below minus `burst`.
    """

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.scale = self.window  # so that one nanosecond refills exactly `amount`
        self.top = limit.capacity * self.scale
        self.level = limit.left_at_first * self.scale
        self.at: int | None = None

    def room(self, now: int) -> int:
        if self.at is not None:
            self.level = min(self.top, self.level + self.amount * (now - self.at))
        self.at = now
        return self.level

    def charge(self, now: int, units: int) -> int:
        self.level = max(-self.top, self.room(now) - units * self.scale)
        return 0

    def give_back(self, now: int, place: int, units: int) -> None:
        self.level = min(self.top, self.room(now) + units * self.scale)

    def wait(self, now: int, units: int) -> int | None:
        if units * self.scale > self.top:
            return None
        return max(0, -((self.room(now) - units * self.scale) // self.amount))

    def until_full(self, now: int) -> int:
        return -((self.room(now) - self.top) // self.amount)


class Sliding(Rule):
    """An exact log: what arrived in (now - window, now] and the call together are at most `amount`."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.times: list[int] = []
        self.units: list[int] = []
        self.oldest = 0  # the log before it has left the window
        self.used = 0

    def room(self, now: int) -> int:
        while self.oldest < len(self.times) and self.times[self.oldest] <= now - self.window:
            self.used -= self.units[self.oldest]
            self.oldest += 1
        return self.amount - self.used

    def charge(self, now: int, units: int) -> int:
        self.times.append(now)
        self.units.append(units)
        self.used += units
        return len(self.times) - 1

    def give_back(self, now: int, place: int, units: int) -> None:
        self.room(now)
        self.units[place] -= units
        if place >= self.oldest:
            self.used -= units

    def wait(self, now: int, units: int) -> int | None:
        room = self.room(now)
        if room >= units:
            return 0
        for place in range(self.oldest, len(self.times)):
            room += self.units[place]
            if room >= units:
                return self.times[place] + self.window - now
        return None

    def until_full(self, now: int) -> int:
        return self.times[-1] + self.window - now if self.used else 0


class Fixed(Rule):
    """At most `amount` in each window of the wall clock's grid, [k * window, (k + 1) * window)."""

    clock = WALL

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.counts: Counter[int] = Counter()

    def room(self, now: int) -> int:
        return self.amount - self.counts[now // self.window]

    def charge(self, now: int, units: int) -> int:
        self.counts[now // self.window] += units
        return now // self.window

    def give_back(self, now: int, place: int, units: int) -> None:
        self.counts[place] -= units

    def wait(self, now: int, units: int) -> int | None:
        if units > self.amount:
            return None
        return 0 if self.room(now) >= units else self.window - now % self.window

    def until_full(self, now: int) -> int:
        return self.window - now % self.window


class SlidingCounter(Fixed):
    """Two grid windows, the past one weighted by the part of it that a moving window would still cover."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.scale = self.window

    def room(self, now: int) -> int:
        number, gone = divmod(now, self.window)
        past, present = self.counts[number - 1], self.counts[number]
        return (self.amount - present) * self.window - past * (self.window - gone)

    def wait(self, now: int, units: int) -> int | None:
        if units > self.amount:
            return None
        number, gone = divmod(now, self.window)
        later = 0 if self.counts[number] + units <= self.amount else 1  # in this window, else in the next
        past, free = self.counts[number + later - 1], self.amount - units - self.counts[number + later]
        faded = self.window - free * self.window // past if past > free else 0
        return max(0, later * self.window + faded - gone)

    def until_full(self, now: int) -> int:
        number, gone = divmod(now, self.window)
        return (2 if self.counts[number] else 1) * self.window - gone


class Anchored(Rule):
    """At most `amount` in a window that opens with the first charge after the last one has closed."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.opened = -self.window
        self.used = 0

    def room(self, now: int) -> int:
        return self.amount - self.used if now < self.opened + self.window else self.amount

    def charge(self, now: int, units: int) -> int:
        if now >= self.opened + self.window:
            self.opened, self.used = now, 0
        self.used += units
        return self.opened

    def give_back(self, now: int, place: int, units: int) -> None:
        if place == self.opened:
            self.used -= units

    def wait(self, now: int, units: int) -> int | None:
        if units > self.amount:
            return None
        return 0 if self.room(now) >= units else self.until_full(now)

    def until_full(self, now: int) -> int:
        return max(0, self.opened + self.window - now)


class Concurrency(Rule):
    """At most `amount` calls between admission and completion, also when the caller has hung up."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.used = 0

    def room(self, now: int) -> int:
        return self.amount - self.used

    def charge(self, now: int, units: int) -> int:
        self.used += units
        return 0

    def give_back(self, now: int, place: int, units: int) -> None:
        self.used -= units

    def wait(self, now: int, units: int) -> int | None:
        return 0 if self.room(now) >= units else None

    def until_full(self, now: int) -> int:
        return 0


RULES: dict[str, type[Rule]] = {
    "bucket": Bucket,
    "sliding": Sliding,
    "fixed": Fixed,
    "counter": SlidingCounter,
    "anchored": Anchored,
    "concurrency": Concurrency,
}


class Arrival(NamedTuple):
    """One call at the instant of its decision: per limit the units asked and the room (times scale) found."""

    number: int
    stamp: Stamp
    units: tuple[int, ...]
    rooms: tuple[int, ...]
    refused_by: tuple[int, ...]


class Completion(NamedTuple):
    """The end of an admitted call: per limit the units given back."""

    number: int
    stamp: Stamp
    units: tuple[int, ...]


Log = list[Arrival | Completion]


class Judge:
    """The limiter: `arrive` decides one call on all limits at one instant, `complete` gives back."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.limits = config.limits
        self.rules = [RULES[limit.kind](limit) for limit in config.limits]
        self.log: Log = []
        self.arrivals = 0
        self.places: dict[int, tuple[int, ...]] = {}  # of the admitted calls that have not ended

    def arrive(self, stamp: Stamp, usage: Usage) -> Arrival:
        units = tuple(usage.reserved(limit) for limit in self.limits)
        rooms = tuple(rule.room(stamp[rule.clock]) for rule in self.rules)
        refused_by = tuple(
            index
            for index, (rule, room, unit) in enumerate(zip(self.rules, rooms, units, strict=True))
            if room < unit * rule.scale
        )
        arrival = Arrival(self.arrivals, stamp, units, rooms, refused_by)
        self.arrivals += 1
        self.log.append(arrival)
        if not refused_by:
            self.places[arrival.number] = tuple(
                rule.charge(stamp[rule.clock], unit) for rule, unit in zip(self.rules, units, strict=True)
            )
        elif self.config.count_refused:
            for limit, rule, unit in zip(self.limits, self.rules, units, strict=True):
                if limit.kind != "concurrency":
                    rule.charge(stamp[rule.clock], unit)
        return arrival

    def complete(self, stamp: Stamp, number: int, usage: Usage) -> None:
        units = tuple(
            usage.unused(limit) if self.config.refund or limit.kind == "concurrency" else 0
            for limit in self.limits
        )
        places = self.places.pop(number)
        self.log.append(Completion(number, stamp, units))
        for rule, place, unit in zip(self.rules, places, units, strict=True):
            if unit:
                rule.give_back(stamp[rule.clock], place, unit)
