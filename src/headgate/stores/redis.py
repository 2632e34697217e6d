"""State in Redis or Valkey: processes of several machines share their limits.

Each trade is one run of a script in the server (``redis.lua``), so it is made as a whole, and many go in one
round trip. The server's clock alone decides; instants are told by this machine's, from the distance between
the two as answers show it, so that a server that steps its clock, or another that takes its place, makes
nobody here wait.

What happens rarely is computed by the core here, and put in place if nobody has written since: the state at
first use, or after a loss, changed limits, and what operators do. This module knows keys, connections and
what the server's errors mean; what a state says is the core's.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakValueDictionary, finalize, ref

try:
    import msgspec  # noqa: F401  # the script's questions are written by it
    from redis import exceptions
    from redis.backoff import NoBackoff
    from redis.client import PubSub, Redis
    from redis.connection import ConnectionPool
    from redis.retry import Retry
except ImportError as missing:
    from headgate.errors import ConfigurationError

    raise ConfigurationError(
        f"a store in Redis needs {missing.name}: pip install 'headgate[redis]'"
    ) from missing

from headgate.core import decide
from headgate.core.decide import State
from headgate.core.model import (
    SECOND,
    Costs,
    Decision,
    Granted,
    Now,
    Report,
    Wait,
)
from headgate.core.plan import Plan
from headgate.core.together import Line, Trade, Traded
from headgate.errors import ConfigurationError, HeadgateError, StoreError, StoreUnavailable
from headgate.stores import redis_script as script
from headgate.stores.base import (
    LEASE_US,
    Deal,
    Edit,
    Keyed,
    limits_of,
    same_meters,
    text_of,
    under_ours,
)
from headgate.stores.memory import process_clock
from headgate.stores.redis_script import Told

log = logging.getLogger("headgate")

ANSWER_SECONDS = 2.0
"""How long to wait for the server's answer; ``?socket_timeout=`` of the URL says otherwise."""
CONNECT_SECONDS = 2.0
"""How long to wait for a connection; likewise ``socket_connect_timeout``."""
END_SECONDS = 0.25
"""The same for whoever is ending: what it has not said then, its lease says."""
HEALTH_SECONDS = 10
"""How often to see whether the connection that hints come on is still one."""
LOOK_SECONDS = 1.0
"""How often whoever waits for hints sees whether he is still wanted."""
LINGER_SECONDS = 30.0
"""A subscription on which nobody has listened for so long is given up."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
"""Between two attempts to subscribe."""
MOST_ATTEMPTS = 50
"""So often others may change a key between a look and a change of ours."""
MOST_SEATS = 1_000
"""From so many keys on, those that have been silent for a lease are forgotten."""
UNKNOWING, FORGOTTEN, AFTER_LOSS, UNDER_OURS = "f", "o", "s", "r"
"""How a state came to be: by one who knew of none, after an operator said so, by one who knew that another
was lost, under other limits. One who still remembers another takes the first for a loss."""
DRIFT = 2_500
"""Two clocks drift apart by one part in so many at most: 400 ppm."""

Reply: TypeAlias = list[Any] | Exception


class RedisStore:
    """A store that processes anywhere share. Its methods may be called from any thread.

    It connects when it is used. The plain ``acquire`` and ``settle`` take no lease: what a process that is
    killed was granted by them is never given back. A grant is settled by the verb that belongs to the one
    that gave it.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py's ``Redis.from_url`` takes it.
        clock: another clock, for tests; the same for all who share the keys.

    Raises:
        ConfigurationError: the URL is none. From any verb: the server refuses us, or what it holds is no
            state; others are using the key under other limits.
        StoreUnavailable: from any verb: there is no connection or no answer, or the server can write nothing
            now. What was asked may have been done all the same.
    """

    batch = 64
    shared = True

    def __init__(self, url: str, *, clock: Callable[[], Now] | None = None) -> None:
        self.place = _place_of(url)
        self._url = url
        self._clock = clock
        self._begin_anew()
        _stores[id(self)] = self

    def _begin_anew(self) -> None:
        """As another client: at first, after a fork, and after ``close``."""
        self.client = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._lock = threading.Lock()  # for the fields below; never held over a question
        self._link = _Link(self._url)
        self._offset = _Offset()
        self._seats: dict[str, _Seat] = {}
        self._most_seats = MOST_SEATS
        self._ears = _Ears(self._url, f"headgate:to:{self.client}")
        self._finish = finalize(self, _finish, self._url, self.client, self._link, self._seats, self._ears)

    def __repr__(self) -> str:
        return f"<RedisStore {self.place} as {self.client}>"

    def now(self) -> Now:
        return process_clock() if self._clock is None else self._clock()

    # As one client, as if nobody waited

    def acquire(self, key: str, plan: Plan, asks: Sequence[Costs]) -> list[Decision]:
        reply, told = self._ask(key, plan, script.ALONE, lines=(Line(1, 0, asks),))
        answers = self._answers(told, reply, (asks,), epoch=0)[0]
        if answers and type(answers[-1]) is Wait:
            waits = answers[-1]
            rules = told.plan.rules
            answers += [decide.too_large(rules, costs) or waits for costs in asks[len(answers) :]]
        return answers

    def settle(self, key: str, plan: Plan, reports: Sequence[Report]) -> None:
        if reports:
            self._ask(key, plan, script.ALONE, reports=reports)

    def used(self, key: str, plan: Plan) -> tuple[int, ...]:
        reply, told = self._ask(key, plan, script.ALONE)
        return script.used(told, reply)

    # In turn

    def trade(self, deals: Sequence[Deal]) -> list[Traded | HeadgateError]:
        asked = [
            _Asked(
                self._seat(deal.key, deal.plan),
                script.TRADE,
                sequence=deal.trade.sequence,
                reports=deal.trade.reports,
                holding=deal.trade.holding,
                lines=deal.trade.lines,
            )
            for deal in deals
        ]
        for one, deal in zip(asked, deals, strict=True):
            if deal.trade.lines:
                self._ears.ask(one.seat.name)
        self._make(asked)
        return [self._traded(one, deal.trade) for one, deal in zip(asked, deals, strict=True)]

    def _traded(self, asked: _Asked, trade: Trade) -> Traded | HeadgateError:
        if isinstance(asked.result, HeadgateError):
            return asked.result
        reply, told = asked.result, asked.told
        epoch, next_client = reply[7], reply[8] or None
        answers = self._answers(told, reply, [line.asks for line in trade.lines], epoch)
        granted = 0
        for given, line in zip(answers, trade.lines, strict=True):
            granted += sum(type(answer) is Granted for answer in given)
            given.extend(given[-1:] * (len(line.asks) - len(given)))
        with self._lock:
            seat = asked.seat
            if trade.holding is not None:
                seat.held = trade.holding[0] + granted
            else:
                seat.held = max(seat.held + granted - len(trade.reports), 0)
        return Traded(answers, next_client, epoch, script.used(told, reply))

    def _answers(
        self, told: Told, reply: list[Any], lines: Sequence[Sequence[Costs]], epoch: int
    ) -> list[list[Decision]]:
        shift = self._shift
        return [
            script.decisions(told, flat, asks, reply[1] - shift, reply[3], epoch, shift)
            for flat, asks in zip(script.answers(told, reply), lines, strict=True)
        ]

    def acquire_for(self, key: str, plan: Plan, lines: Sequence[Line]) -> list[list[Decision]]:
        return self._trade(key, plan, Trade(lines=lines)).answers

    def settle_for(self, key: str, plan: Plan, reports: Sequence[Report]) -> bool:
        return self._trade(key, plan, Trade(reports=reports)).next == self.client

    def beat(self, key: str, plan: Plan) -> None:
        self._trade(key, plan, Trade())

    def _trade(self, key: str, plan: Plan, trade: Trade) -> Traded:
        [traded] = self.trade([Deal(key, plan, trade)])
        if isinstance(traded, HeadgateError):
            raise traded
        return traded

    def leave(self, key: str, plan: Plan) -> None:
        self._ask(key, plan, script.LEAVE)
        with self._lock:
            self._seats.pop(key, None)
        self._ears.wake(_name(key))

    def ping(self) -> None:
        [reply] = self._link.exchange([("SET", f"headgate:ping:{self.client}", "", "PX", 1)])
        if isinstance(reply, Exception):
            raise self._meaning(reply) from reply

    # Questions

    def _ask(self, key: str, plan: Plan, verb: int, **facts: Any) -> tuple[list[Any], Told]:
        asked = _Asked(self._seat(key, plan), verb, **facts)
        self._make([asked])
        if isinstance(asked.result, HeadgateError):
            raise asked.result
        return asked.result, asked.told

    def _make(self, asked: Sequence[_Asked]) -> None:
        """Ask all in one round trip, and again those that something had to be set right for."""
        open_ones = list(asked)
        for _ in range(MOST_ATTEMPTS):
            now = None if self._clock is None else self._clock()
            here = self.now()
            there = Now(here.elapsed_us + self._shift, here.wall_us)
            questions = [one.question(self.client, now, there) for one in open_ones]
            replies = self._run(
                [
                    (one.seat.name, question, one.told.rules)
                    for one, question in zip(open_ones, questions, strict=True)
                ]
            )
            left = []
            for one, reply in zip(open_ones, replies, strict=True):
                try:
                    if self._is_done(one, reply):
                        continue
                except HeadgateError as error:
                    one.result = error
                else:
                    left.append(one)
            open_ones = left
            if not open_ones:
                return
        for one in open_ones:
            one.result = StoreUnavailable(f"others change {one.seat.key!r} of {self.place} all the time")

    def _is_done(self, asked: _Asked, reply: Reply) -> bool:
        """Keep what came of a question; False if it has to be asked again."""
        seat = asked.seat
        if isinstance(reply, Exception):
            raise self._meaning(reply, seat.key) from reply
        match reply[0]:
            case script.DONE:
                asked.result = reply
                with self._lock:
                    seat.see(reply, asked.told)
                return True
            case script.EDGES:
                asked.see(reply[3])
            case script.ABSENT if asked.verb == script.LEAVE:
                asked.result = reply
                return True
            case script.ABSENT:
                self._begin(seat, _now_of(reply), marker=reply[3])
            case script.BEHIND:
                self._begin_after_loss(seat, _now_of(reply), known=(reply[4], reply[3]))
            case script.OTHER:
                self._look_at_limits(seat, reply)
            case _:
                raise self._foreign(seat.key, "another headgate wrote it")
        return False

    def _begin(self, seat: _Seat, now: Now, marker: str | bool) -> None:
        """There is no state: nobody has used the key, or not for a long time, or it was lost or forgotten."""
        if marker == "":
            self._put(seat, decide.fresh(seat.told.plan, now), now, born=FORGOTTEN)
        elif seat.remembers(now) or (marker and self._link.evicts):
            self._begin_after_loss(seat, now, known=(False, 0))
        elif seat.generation or marker:
            self._put(seat, decide.full(seat.told.plan, now), now, born=UNKNOWING)
        else:
            self._put(seat, decide.fresh(seat.told.plan, now), now, born=UNKNOWING)

    def _begin_after_loss(self, seat: _Seat, now: Now, known: tuple[str | bool, int]) -> None:
        log.warning(
            "%s has lost what it knew of the key %r: it goes on as if all of it had just been used",
            self.place,
            seat.key,
        )
        state = decide.spent(seat.told.plan, now, LEASE_US, seat.used)
        self._put(seat, state, now, known, born=AFTER_LOSS)

    def _look_at_limits(self, seat: _Seat, reply: list[Any]) -> None:
        """Other limits are in force: operators have set them, or programs declare them."""
        limits, declared, keyed = self._keyed(seat.key, reply)
        with self._lock:
            if declared and limits != seat.text and same_meters(keyed.plan, seat.plan):
                seat.go_by(keyed.plan, limits, reply[2])
                return
            seat.go_by(seat.plan, seat.text, reply[2])
            if seat.fingerprint == reply[5]:
                return
        now = _now_of(reply)
        state = under_ours(seat.key, self.place, self.client, seat.plan, keyed.plan, keyed.state, now)
        self._put(seat, state, now, known=(reply[3], reply[4]), born=UNDER_OURS)

    def _put(
        self,
        seat: _Seat,
        state: State,
        now: Now,
        known: tuple[str | bool, int] = (False, 0),
        *,
        born: str,
    ) -> None:
        """Put a state in place under a name of its own, if that is still wanted; then it is asked again.

        Args:
            born: how it came to be; whoever has known another one in its place judges by that.
        """
        about = _about(seat.force, "" if seat.force == seat.text else seat.text)
        new = script.new_state(born + secrets.token_hex(8), 1, seat.fingerprint, about, state, seat.told)
        question = script.question(script.PUT, known=known, now=self._told_now(now))
        [reply] = self._run([(seat.name, question, seat.told.rules, new)])
        if isinstance(reply, Exception):
            raise self._meaning(reply, seat.key) from reply
        if reply[0] == script.DONE:
            with self._lock:
                seat.generation = ""  # the next answer tells it

    # For operators

    def keys(self) -> list[str]:
        found: set[str] = set()
        cursor: Any = 0
        while True:
            [reply] = self._link.exchange([("SCAN", cursor, "MATCH", _name("*"), "COUNT", 1000)])
            if isinstance(reply, Exception):
                raise self._meaning(reply) from reply
            cursor, names = reply
            found.update(_key_of(name) for name in names)
            if int(cursor) == 0:
                return sorted(found)

    def look(self, key: str) -> tuple[Keyed, Now] | None:
        reply = self._get(key)
        return None if reply is None else (self._keyed(key, reply)[2], _now_of(reply))

    def edit(self, key: str, change: Edit) -> bool:
        for _ in range(MOST_ATTEMPTS):
            reply = self._get(key)
            if reply is None:
                return False
            now, known = _now_of(reply), (reply[3], reply[4])
            changed = change(self._keyed(key, reply)[2], now)
            if self._replace(key, changed, now, known):
                self._ears.wake(_name(key))
                return True
        raise StoreUnavailable(f"others change {key!r} of {self.place} all the time")

    def _replace(self, key: str, keyed: Keyed | None, now: Now, known: tuple[str, int]) -> bool:
        """Put another state in place, or none; False if somebody has written since."""
        verb, rules = script.FORGET, b""
        more: tuple[bytes, ...] = ()
        if keyed is not None:
            limits = text_of(keyed.plan.limits)
            declared = "" if keyed.declared is None else text_of(keyed.declared.limits)
            told = Told(keyed.plan, LEASE_US, now.wall_us)
            about = _about(limits, declared)
            verb, rules = script.PUT, told.rules
            more = (script.new_state(known[0], known[1] + 1, _fingerprint(limits), about, keyed.state, told),)
        question = script.question(verb, known=known, now=self._told_now(now))
        [reply] = self._run([(_name(key), question, rules, *more)])
        if isinstance(reply, Exception):
            raise self._meaning(reply, key) from reply
        if reply[0] != script.DONE:
            return False
        with self._lock:
            seat = self._seats.get(key)
            if seat is not None and keyed is None:
                seat.generation = ""
            elif seat is not None:
                seat.generation, seat.version = known[0], known[1] + 1
                seat.seen_us, seat.ttl_ms = reply[1], reply[3]
        return True

    def _get(self, key: str) -> list[Any] | None:
        now = None if self._clock is None else self._clock()
        [reply] = self._run([(_name(key), script.question(script.GET, now=now), b"")])
        if isinstance(reply, Exception):
            raise self._meaning(reply, key) from reply
        if reply[0] == script.ABSENT:
            return None
        if reply[0] != script.DONE:
            raise self._foreign(key, "another headgate wrote it")
        return reply

    def _keyed(self, key: str, reply: list[Any]) -> tuple[str, str, Keyed]:
        """What a reply tells of a key: the limits in force and those declared, as text, and all of it."""
        try:
            limits, declared = json.loads(reply[6])
            return (
                limits,
                declared,
                Keyed(
                    Plan(limits_of(limits)),
                    State.load(reply[7]),
                    Plan(limits_of(declared)) if declared else None,
                ),
            )
        except (TypeError, ValueError, KeyError, ConfigurationError) as error:
            raise self._foreign(key, str(error)) from error

    # Hints

    def listen(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        return self._ears.listen(_name(key), wake)

    def close(self) -> None:
        """Leave every key, and let go of the connections; what is still held is left to its lease.

        Whoever uses the store again does so as another client.
        """
        self._finish()
        self._begin_anew()

    # What is known here

    def _seat(self, key: str, plan: Plan) -> _Seat:
        with self._lock:
            seat = self._seats.get(key)
            if seat is None or (seat.plan is not plan and seat.plan.limits != plan.limits):
                if len(self._seats) >= self._most_seats:
                    self._forget_the_silent()
                    self._most_seats = max(MOST_SEATS, 2 * len(self._seats))
                wall_us = self.now().wall_us
                seat = self._seats[key] = _Seat(key, plan, wall_us)
            seat.spoke_at = time.monotonic()
            return seat

    def _forget_the_silent(self) -> None:
        long_ago = time.monotonic() - LEASE_US / SECOND
        for key, seat in list(self._seats.items()):
            if not seat.held and seat.spoke_at < long_ago:
                del self._seats[key]

    @property
    def _shift(self) -> int:
        """How far the server's clock is ahead of this machine's."""
        return self._offset.us if self._clock is None else 0

    def _told_now(self, now: Now) -> Now | None:
        """The instant to tell the script: none, but in tests."""
        return None if self._clock is None else now

    def _run(self, calls: Sequence[tuple[Any, ...]]) -> list[Reply]:
        """Run the script for each (name of a key, arguments …), in one round trip."""
        sent_us = process_clock().elapsed_us
        found = self._link.run(calls)
        received_us = process_clock().elapsed_us
        for reply in found:
            if isinstance(reply, list):
                self._offset.learn(sent_us, received_us, reply[1])
                break
        return found

    def _foreign(self, key: str, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.place}: what it holds of the key {key!r} cannot be read ({why}). Give another key=, or "
            "forget this one"
        )

    def _meaning(self, error: Exception, key: str | None = None) -> HeadgateError:
        """What an error of the connection or of the server means here."""
        if isinstance(error, _REFUSED):
            return ConfigurationError(f"{self.place} does not let us in: {error}")
        if isinstance(error, exceptions.MovedError | exceptions.AskError):
            return ConfigurationError(f"{self.place} is one of a cluster; expected a server of its own")
        if isinstance(error, _AWAY):
            return StoreUnavailable(f"{self.place} cannot be used: {error}")
        text = str(error)
        if any(sign in text for sign in _NO_STATE):
            return self._foreign(key or "", text)
        if _BUSY.search(text):
            return StoreUnavailable(f"{self.place} cannot be used: {text}")
        return StoreError(f"{self.place}: {text}")


_REFUSED = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
)
_AWAY = (
    exceptions.ConnectionError,  # BusyLoadingError among them
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    OSError,
)
# An error in a script is told within a longer text.
_BUSY = re.compile(r"\b(BUSY|FAILOVER|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|UNBLOCKED)\b")
_NO_STATE = ("WRONGTYPE", "Bad data format", "Missing bytes in input")


@dataclass(slots=True)
class _Seat:
    """What is known here of a key.

    Attributes:
        plan, text: what programs declare.
        told, force, fingerprint: the limits in force, which operators may have set.
        generation, version: of the state that was seen last.
        used, seen_us, ttl_ms: what stood against the limits then, when (the server's clock), and how long it
            was to be kept (−1: for ever).
        held: grants that have not been settled.
        spoke_at: when it was used last (``time.monotonic``).
    """

    key: str
    plan: Plan
    wall_us: int
    name: str = ""
    text: str = ""
    force: str = ""
    fingerprint: str = ""
    told: Told = field(init=False)
    generation: str = ""
    version: int = 0
    used: tuple[int, ...] | None = None
    seen_us: int = 0
    ttl_ms: int = 0
    held: int = 0
    spoke_at: float = 0.0

    def __post_init__(self) -> None:
        self.name = _name(self.key)
        self.text = text_of(self.plan.limits)
        self.go_by(self.plan, self.text, self.wall_us)

    def go_by(self, plan: Plan, text: str, wall_us: int) -> None:
        """These limits are in force."""
        if text != self.force:
            self.force, self.fingerprint = text, _fingerprint(text)
            self.told = Told(plan, LEASE_US, wall_us)

    def see(self, reply: list[Any], told: Told) -> None:
        """An answer tells of the state."""
        generation, version = reply[4], reply[5]
        if generation == self.generation and version < self.version:
            return  # another thread has seen a later one
        self.generation, self.version = generation, version
        self.used, self.seen_us, self.ttl_ms = script.used(told, reply), reply[1], reply[6]

    def remembers(self, now: Now) -> bool:
        """Whether the state that was seen last ought to be there."""
        age_us = abs(now.elapsed_us - self.seen_us)
        return bool(self.generation) and (self.ttl_ms < 0 or age_us < 1000 * self.ttl_ms)


class _Asked:
    """A question, and what came of it."""

    __slots__ = ("_facts", "_sees", "result", "seat", "told", "verb")

    def __init__(self, seat: _Seat, verb: int, **facts: Any) -> None:
        self.seat = seat
        self.told = seat.told
        self.verb = verb
        self._facts = facts
        self._sees = False
        self.result: Any = None

    def see(self, wall_us: int) -> None:
        """The edges of calendars around an instant are missing, or those around another as well."""
        self.told.see(wall_us, anew=not self._sees)
        self._sees = True

    def question(self, client: str, now: Now | None, here: Now) -> bytes:
        """ARGV[1], by the limits that are in force as far as is known.

        Args:
            now: the instant to tell the script; None to let it read its clock.
            here: what that clock shows, as far as is known.
        """
        seat = self.seat
        self.told = seat.told
        return script.question(
            self.verb,
            self.told,
            client=self.verb != script.ALONE and client,
            **self._facts,
            lease_us=LEASE_US,
            known=(seat.generation if seat.remembers(here) else False, seat.version),
            fingerprint=seat.fingerprint,
            now=now,
        )


def _now_of(reply: list[Any]) -> Now:
    return Now(reply[1], reply[2])


def _fingerprint(limits: str) -> str:
    return blake2b(limits.encode(), digest_size=8).hexdigest()


def _about(limits: str, declared: str) -> str:
    """What stands beside a state: the limits in force, and those that programs declare if they are others."""
    return json.dumps([limits, declared], separators=(",", ":"))


# Names of keys


def _name(key: str) -> str:
    """Where the state of a key stands. What is in braces decides the node of a cluster."""
    if key == "*":  # as a pattern
        return "headgate:{*}:state"
    return f"headgate:{{{quote(key.encode('utf-8', 'surrogatepass'), safe=':/@+,= ') or '%'}}}:state"


def _key_of(name: bytes) -> str:
    text = name.decode("ascii").removeprefix("headgate:{").removesuffix("}:state")
    return "" if text == "%" else unquote(text, errors="surrogatepass")


def _place_of(url: str) -> str:
    """The URL as people may see it."""
    try:
        parts = urlsplit(url)
        where = parts.hostname or ""
        if parts.port:
            where += f":{parts.port}"
    except ValueError as error:
        raise ConfigurationError(
            f"expected the URL of a server, such as redis://localhost:6379/0: {error}"
        ) from error
    return f"{parts.scheme}://{where}{parts.path}"


# Clocks


class _Offset:
    """How far the server's clock is ahead of this machine's elapsed clock.

    An answer tells an instant between its question and itself, so it is known to half of that; a later and
    vaguer answer changes nothing unless it contradicts.
    """

    def __init__(self) -> None:
        self.us = 0
        self._vague_us: int | None = None
        self._learned_us = 0

    def learn(self, sent_us: int, received_us: int, server_us: int) -> None:
        """The server said ``server_us`` in between."""
        found, vague_us = server_us - (sent_us + received_us) // 2, (received_us - sent_us) // 2 + 1
        if self._vague_us is not None:
            drift_us = abs(received_us - self._learned_us) // DRIFT
            agrees = abs(found - self.us) <= vague_us + self._vague_us + drift_us
            if agrees and vague_us > self._vague_us + drift_us:
                return
        self.us, self._vague_us, self._learned_us = found, vague_us, received_us


# Connections


class _Link:
    """Connections to the server, as many as threads use at once."""

    def __init__(self, url: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        connect_seconds = min(CONNECT_SECONDS, answer_seconds)
        try:
            self.pool = ConnectionPool.from_url(
                _redis_url(url),
                protocol=2,
                retry=Retry(NoBackoff(), 0),  # who is told of a failure knows better when to try again
                socket_timeout=answer_seconds,
                socket_connect_timeout=connect_seconds,
                health_check_interval=HEALTH_SECONDS,
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"expected the URL of a server, such as redis://localhost:6379/0; got {_place_of(url)!r}: "
                f"{error}"
            ) from error
        self.place = _place_of(url)
        self.evicts = False  # a key that is not there may have been thrown away
        self._looked = False

    def run(self, calls: Sequence[tuple[Any, ...]]) -> list[Reply]:
        """Run the script for each (name of a key, arguments …)."""
        if not self._looked:
            self._looked = True
            self._look_at_policy()
        text, sha = script.script()
        commands = [("EVALSHA", sha, 2, name, _mark(name), *arguments) for name, *arguments in calls]
        found = self.exchange(commands)
        unknown = [place for place, reply in enumerate(found) if isinstance(reply, exceptions.NoScriptError)]
        if unknown:  # it has been started anew, or somebody has flushed its scripts
            again = self.exchange([("SCRIPT LOAD", text), *(commands[place] for place in unknown)])
            for place, reply in zip(unknown, again[1:], strict=True):
                found[place] = reply
        return [reply if isinstance(reply, Exception) else script.reply(reply) for reply in found]

    def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands together; an error stands in the place of an answer."""
        found: list[Any] = []
        try:
            connection = self.pool.get_connection()
        except (exceptions.RedisError, OSError) as error:
            return [error] * len(commands)
        whole = False
        try:
            connection.send_packed_command(  # type: ignore[no-untyped-call]  # redis-py's
                connection.pack_commands(commands),  # type: ignore[no-untyped-call]  # likewise
                check_health=False,
            )
            for _ in commands:
                try:
                    found.append(connection.read_response())
                except exceptions.ResponseError as error:
                    found.append(error)
            whole = True
        except (exceptions.RedisError, OSError) as error:
            found += [error] * (len(commands) - len(found))
        finally:
            if not whole:  # whatever else comes on it answers nobody
                connection.disconnect()  # type: ignore[no-untyped-call]  # likewise
            self.pool.release(connection)
        return found

    def close(self) -> None:
        """Let go of all connections."""
        self.pool.disconnect()

    def _look_at_policy(self) -> None:
        """Warn of a server that throws away keys: they are limits that nobody keeps any more."""
        [reply] = self.exchange([("INFO", "memory")])
        if isinstance(reply, Exception):
            return  # what is asked next tells what is wrong, if it does not only forbid this
        told = dict(line.partition(":")[::2] for line in str(reply, "utf-8", "replace").splitlines())
        policy = told.get("maxmemory_policy", "noeviction")
        self.evicts = policy != "noeviction" and told.get("maxmemory", "0") != "0"
        if self.evicts:
            log.warning(
                "%s throws away keys when its memory is full (maxmemory-policy is %s): the state of a key "
                "that goes so is lost. Set it to noeviction",
                self.place,
                policy,
            )


def _mark(name: str) -> str:
    return name.removesuffix("state") + "mark"


def _redis_url(url: str) -> str:
    """As redis-py knows it."""
    scheme, colon, rest = url.partition(":")
    return {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme) + colon + rest


# Hints


class _Ears:
    """Who listens for hints, and the thread that they come on: there while anybody does, and a bit after."""

    def __init__(self, url: str, channel: str) -> None:
        self._url = url
        self._channel = channel
        self._lock = threading.Lock()
        self._wakes: dict[str, list[Callable[[], None]]] = {}
        self._subscribed = False
        self._informed: set[str] = set()  # keys that were asked for since, and then no hint came
        self._thread: threading.Thread | None = None
        self._idle_since = 0.0
        self._closed = False

    def listen(self, name: str, wake: Callable[[], None]) -> Callable[[], None]:
        """See :meth:`SharedStore.listen`."""

        def once_more() -> None:  # an object of its own, however often one function listens
            wake()

        with self._lock:
            self._wakes.setdefault(name, []).append(once_more)
            missed = self._subscribed and name not in self._informed
            if self._thread is None and not self._closed:
                self._start()
        if missed:
            _call([once_more])

        def stop() -> None:
            with self._lock:
                wakes = self._wakes.get(name, [])
                if once_more in wakes:
                    wakes.remove(once_more)
                    if not wakes:
                        del self._wakes[name]
                        self._idle_since = time.monotonic()

        return stop

    def ask(self, name: str) -> None:
        """A question is on its way: hints until now are out of date."""
        if self._subscribed:
            with self._lock:
                self._informed.add(name)

    def wake(self, name: str) -> None:
        """A hint came."""
        with self._lock:
            wakes = list(self._wakes.get(name, ()))
            if not wakes:
                self._informed.discard(name)
        _call(wakes)

    def wake_all(self) -> None:
        """From now on hints come; until now they may have been lost."""
        with self._lock:
            self._subscribed = True
            self._informed.clear()
            wakes = [wake for listeners in self._wakes.values() for wake in listeners]
        _call(wakes)

    def deaf(self) -> None:
        """No hints come any more."""
        with self._lock:
            self._subscribed = False

    def close(self) -> None:
        """Nobody listens any more."""
        with self._lock:
            self._closed = True

    def _start(self) -> None:
        thread = threading.Thread(target=_hear, args=(ref(self),), name="headgate-redis", daemon=True)
        with suppress(RuntimeError):  # no more threads at the end of the process: hints are not needed
            thread.start()
            self._thread = thread

    def is_wanted(self) -> bool:
        """Whether the thread is; if not, it is to end at once."""
        with self._lock:
            idle = not self._wakes and time.monotonic() - self._idle_since >= LINGER_SECONDS
            if self._closed or idle:
                self._thread, self._subscribed = None, False
                return False
            return True

    def subscribe(self) -> PubSub:
        """On a connection of its own, which nobody else closes."""
        redis = Redis(connection_pool=_Link(self._url).pool)
        made: PubSub = redis.pubsub()  # type: ignore[no-untyped-call]  # redis-py's
        made.subscribe(self._channel)
        return made


def _hear(ears: ref[_Ears]) -> None:
    """The thread. It does not keep the store alive."""
    subscription: PubSub | None = None
    pause = FIRST_PAUSE_SECONDS
    try:
        while True:
            found = ears()
            if found is None or not found.is_wanted():
                return
            try:
                if subscription is None:
                    subscription = found.subscribe()
                    if subscription.get_message(timeout=ANSWER_SECONDS) is None:
                        raise exceptions.TimeoutError("no answer to a subscription")
                    found.wake_all()
                    pause = FIRST_PAUSE_SECONDS
                del found
                message: Any = subscription.get_message(timeout=LOOK_SECONDS)
                found = ears()
                if message is not None and message["type"] == "message" and found is not None:
                    found.wake(message["data"].decode("ascii"))
                del found
            except (exceptions.RedisError, OSError) as error:
                log.debug("no hints: %s", error)
                found = ears()
                if found is not None:
                    found.deaf()
                found = None
                if subscription is not None:
                    _hang_up(subscription)
                    subscription = None
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    finally:
        if subscription is not None:
            _hang_up(subscription)


def _hang_up(subscription: PubSub) -> None:
    with suppress(exceptions.RedisError, OSError):
        subscription.close()
        subscription.connection_pool.disconnect()


def _call(wakes: Sequence[Callable[[], None]]) -> None:
    for wake in wakes:
        try:
            wake()
        except Exception:  # a listener that fails ends nobody's work
            log.warning("a listener failed", exc_info=True)


# The end


def _finish(url: str, client: str, link: _Link, seats: dict[str, _Seat], ears: _Ears) -> None:
    """The store is closed or collected, or the process ends."""
    ears.close()
    recently = time.monotonic() - LEASE_US / SECOND
    left = [seat for seat in seats.values() if seat.generation and not seat.held and seat.spoke_at > recently]
    if left:
        with suppress(HeadgateError):
            last = _Link(url, END_SECONDS)
            last.run(
                [
                    (
                        seat.name,
                        script.question(
                            script.LEAVE,
                            client=client,
                            known=(seat.generation, seat.version),
                            fingerprint=seat.fingerprint,
                        ),
                        seat.told.rules,
                    )
                    for seat in left
                ]
            )
            last.close()
    link.close()


# Forks


_stores: WeakValueDictionary[int, RedisStore] = WeakValueDictionary()


def _after_fork_in_child() -> None:
    """Another client, with connections of its own."""
    for place in _stores.valuerefs():
        store = place()
        if store is not None:
            store._finish.detach()
            store._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# URLs


_opened: WeakValueDictionary[str, RedisStore] = WeakValueDictionary()


def open_url(url: str) -> RedisStore:
    """The store at a URL; in one process the same for all who name it so.

    Raises:
        ConfigurationError: as for :class:`RedisStore`.
    """
    return _opened.get(url) or _opened.setdefault(url, RedisStore(url))
