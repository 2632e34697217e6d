"""Tasks parked in Redis or Valkey, beside the limits of their key: each verb is one run of ``lot.lua``.

The names are those of the limiter's key with ``parking`` at the end, so one hash tag holds all of it. They
have no time to live while anything waits or is out, however long no worker is there; else they go a day after
they were last touched. Nothing but the server's own persistence keeps parked tasks over its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis import exceptions

from headgate.core.model import DAY, SECOND
from headgate.parking.base import KEEP_US, RELEASER_US, Arrival, Lot, Parked, Taken
from headgate.parking.rules import DROPPED, TRIM
from headgate.stores import redis as stores
from headgate.stores.memory import process_clock
from headgate.stores.redis import RedisStore

CHANNEL = "headgate:parking"
"""Hints: the name of the head that has changed."""
FADE_US = DAY
"""So long what is known of tasks that have left outlives the last change."""


@cache
def script() -> tuple[str, str]:
    """The script as the server takes it, and its SHA-1."""
    text = re.sub(r"--.*", "", files("headgate.parking").joinpath("lot.lua").read_text("utf-8"))
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisLot(Lot):
    """See :class:`~headgate.parking.base.Lot`."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._after_fork()

    def __repr__(self) -> str:
        return f"<RedisLot at {self._store.place}>"

    def _after_fork(self) -> None:
        self._ears = stores._Ears(self._store._url, CHANNEL)

    def keys(self) -> list[str]:
        # Orders that hold nothing are not there.
        found: set[str] = set()
        pattern = f"{_head('*')}:[wo]*"
        cursor: Any = 0
        while True:
            [reply] = self._store._link.exchange([("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)])
            if isinstance(reply, Exception):
                raise self._store._meaning(reply) from reply
            cursor, names = reply
            found.update(stores._key_of(name.rpartition(b"}")[0] + b"}:state") for name in names)
            if int(cursor) == 0:
                return sorted(found)

    def listen(self, key: str, callback: Callable[[], None]) -> Callable[[], None]:
        name = _head(key)
        ears = self._ears
        ears.ask(name)  # nothing was missed: whoever begins to listen looks for himself
        stop = ears.listen(name, callback)

        def done(lot: RedisLot = self) -> None:  # whoever can stop it keeps the lot alive
            stop()

        return done

    def _enter(self, key: str, id: bytes, release: int) -> Arrival:
        return Arrival(self._run(key, "enter", id, release)[1].decode())

    def _park(
        self, key: str, id: bytes, release: int, body: bytes, costs: tuple[int, ...], place: int | None
    ) -> int:
        told = " ".join(map(str, costs))
        return int(self._run(key, "park", id, release, "" if place is None else place, told, body)[1])

    def _take(self, key: str, owner: str, most: int, lease_us: int) -> Taken:
        name = owner.encode("utf-8", "surrogatepass")
        reply = self._run(key, "take", name, most, lease_us)
        flat = reply[8]
        back_us = self._back_us(reply)
        parked = [
            _parked(id, text, body, back_us)
            for id, text, body in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]
        return self._taken(reply, name, parked)

    def _peek(self, key: str, owner: str, most: int) -> Taken:
        reply = self._run(key, "peek", most)
        back_us = self._back_us(reply)
        found: list[tuple[bytes, bytes]] = []
        for flat in reply[8:]:
            found += zip(flat[::2], flat[1::2], strict=True)
        found.sort(key=lambda one: (int(one[1].split(b" ")[2]), one[0]))
        parked = [_parked(id, text, b"", back_us) for id, text in found[:most]]
        return self._taken(reply, owner.encode("utf-8", "surrogatepass"), parked)

    def _leave(self, key: str, id: bytes, release: int, waited_us: int) -> bool:
        return bool(self._run(key, "leave", id, release, waited_us)[1])

    def _overtake(self, key: str) -> None:
        self._run(key, "overtake")

    def _resign(self, key: str, owner: str) -> None:
        self._run(key, "resign", owner.encode("utf-8", "surrogatepass"))

    def _drop(self, key: str, id: bytes) -> bool:
        return bool(self._run(key, "drop", id, DROPPED)[1])

    def _back_us(self, reply: Sequence[Any]) -> int:
        """From steady instants of the lot to those of this machine's clock."""
        elapsed, at = reply[:2]
        return int(elapsed - at - self._store._shift)

    def _taken(self, reply: Sequence[Any], owner: bytes, parked: list[Parked]) -> Taken:
        _, at, releaser, until, waiting, deadlines, out, lag = reply[:8]
        back_us = self._back_us(reply)
        led = at < until
        return Taken(
            parked,
            waiting,
            [_costs(text) for text in out],
            led and releaser == owner,
            [deadline + back_us for deadline in deadlines],
            releaser.decode("utf-8", "surrogatepass") if led else "",
            until + back_us if led else None,
            lag,
        )

    def _run(self, key: str, verb: str, *facts: bytes | str | int) -> list[Any]:
        """One run of the script; it answers the instant of its clock first."""
        store = self._store
        link = store._link
        if not link._looked:
            link._looked = True
            link._look_at_policy()
        now = "" if store._clock is None else store._clock().elapsed_us
        text, sha = script()
        constants = KEEP_US, RELEASER_US, TRIM, FADE_US // SECOND
        arguments = len(_PARTS), *_names(key), verb, now, *constants, *facts
        sent_us = process_clock().elapsed_us
        [reply] = link.exchange([("EVALSHA", sha, *arguments)])
        if isinstance(reply, exceptions.NoScriptError):  # it has been started anew
            sent_us = process_clock().elapsed_us
            [reply] = link.exchange([("EVAL", text, *arguments)])
        if isinstance(reply, Exception):
            raise store._meaning(reply, key) from reply
        store._offset.learn(sent_us, process_clock().elapsed_us, reply[0])
        found: list[Any] = reply
        return found


_PARTS = "", ":tasks", ":bodies", ":waiting", ":out", ":left"
"""In the order of KEYS."""


def _head(key: str) -> str:
    return stores._name(key).removesuffix("state") + "parking"


def _names(key: str) -> list[str]:
    head = _head(key)
    return [head + part for part in _PARTS]


def _parked(id: bytes, text: bytes, body: bytes, back_us: int) -> Parked:
    _, release, place, since, _, costs = text.split(b" ", 5)
    name = id.decode("utf-8", "surrogatepass")
    return Parked(name, int(place), int(release), body, _costs(costs), int(since) + back_us)


def _costs(text: bytes) -> tuple[int, ...]:
    return tuple(int(cost) for cost in text.split())


def open_lot(store: RedisStore) -> RedisLot:
    """The lot of such a store."""
    return RedisLot(store)
