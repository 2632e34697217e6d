"""What a store is, and how one is opened by its URL.

A store knows keys, transactions and one clock. It answers questions for a whole batch at once, and computes
nothing of its own: the rules are in the core.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from headgate.core import crowd as crowds
from headgate.core import decide, together
from headgate.core.decide import State
from headgate.core.model import SECOND, Costs, Decision, Limit, Now, Report
from headgate.core.plan import Plan
from headgate.core.together import Line, Trade, Traded
from headgate.errors import ConfigurationError, HeadgateError

LEASE_US = 15 * SECOND
"""Of a process that has not been heard of for so long, the slots go to others."""


@dataclass(slots=True)
class Keyed:
    """A key as operators see and change it.

    Attributes:
        plan: the limits in force.
        state: what is kept of it.
        declared: the limits that programs declare, where others have been set in their place.
    """

    plan: Plan
    state: State
    declared: Plan | None = None


Edit: TypeAlias = Callable[[Keyed, Now], Keyed | None]
"""Changes a key, or says by None that it is to be forgotten. May be tried several times."""


class Store(Protocol):
    """The state of keys, and the clock that their instants belong to."""

    @property
    def batch(self) -> int:
        """How many asks are worth one question: 1 where a question costs nothing."""

    @property
    def shared(self) -> bool:
        """Whether other processes see it, so that it outlives this one."""

    def now(self) -> Now:
        """The present instant."""

    def acquire(self, key: str, plan: Plan, asks: Sequence[Costs]) -> list[Decision]:
        """Answer asks in their order, all or none each; see :func:`headgate.core.decide.acquire`."""

    def settle(self, key: str, plan: Plan, reports: Sequence[Report]) -> None:
        """Book what became of calls; see :func:`headgate.core.decide.settle`."""

    def used(self, key: str, plan: Plan) -> tuple[int, ...]:
        """Units that stand against each limit now."""

    # For operators

    def keys(self) -> list[str]:
        """All keys that anything is kept of, in order."""

    def look(self, key: str) -> tuple[Keyed, Now] | None:
        """What is kept of a key, and the present instant; None if nothing is. It is not changed by that."""

    def edit(self, key: str, change: Edit) -> bool:
        """Change what is kept of a key, in one step, and let all who wait look again.

        Returns whether there was anything. Limits may change only to others of the same meters in the same
        order.
        """


class Deal(NamedTuple):
    """A trade with a key; see :func:`headgate.core.together.trade`."""

    key: str
    plan: Plan
    trade: Trade


class SharedStore(Store, Protocol):
    """A store that several processes draw on, each under a name of its own, in turn.

    The plain ``acquire`` and ``settle`` of such a store are those of one client, as if nobody waited.
    """

    @property
    def client(self) -> str:
        """The name of this process here: another one after a fork."""

    def trade(self, deals: Sequence[Deal]) -> list[Traded | HeadgateError]:
        """Make trades with several keys; each is made as a whole, or fails with what stands in its place.

        A trade that failed may have been made nonetheless; with a sequence and with what is held, it may be
        tried again.
        """

    def acquire_for(self, key: str, plan: Plan, lines: Sequence[Line]) -> list[list[Decision]]:
        """Answer what this process wants in each class; see :func:`headgate.core.together.acquire`."""

    def settle_for(self, key: str, plan: Plan, reports: Sequence[Report]) -> bool:
        """Book what became of calls, and give a hint to whoever may go now.

        Returns whether that is this process itself.
        """

    def beat(self, key: str, plan: Plan) -> None:
        """Say that this process is alive and keeps what it holds."""

    def leave(self, key: str, plan: Plan) -> None:
        """Say that this process wants nothing more."""

    def ping(self) -> None:
        """Return if the store can be used.

        Raises:
            StoreUnavailable
        """

    def listen(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake``, from any thread, when asking again may help; returns how to stop that.

        A hint may be lost or come for nothing: the instants that were told are the truth.
        """


def same_meters(one: Plan, other: Plan) -> bool:
    """Whether a call costs the same by both: limits of the same names, in the same order."""
    return [(limit.name, limit.meter) for limit in one.limits] == [
        (limit.name, limit.meter) for limit in other.limits
    ]


_FIELDS = fields(Limit)


def text_of(limits: Sequence[Limit]) -> str:
    """Limits as JSON, without what is as usual; :func:`limits_of` reads it."""
    told = [
        {fact.name: value for fact in _FIELDS if (value := getattr(limit, fact.name)) != fact.default}
        for limit in limits
    ]
    return json.dumps(told, separators=(",", ":"))


def limits_of(text: str) -> list[Limit]:
    """The limits of a text that :func:`text_of` made."""
    return [Limit(**facts) for facts in json.loads(text)]


def under_ours(key: str, place: str, client: str, ours: Plan, theirs: Plan, state: State, now: Now) -> State:
    """The state of a key under our limits, which are others than those by which it was kept.

    Raises:
        ConfigurationError: somebody else still goes by theirs.
    """
    at, alive_at = decide.advance(theirs, state, now)
    if state.crowd is not None:
        for gone in crowds.lapsed(state.crowd, at):
            together.release(theirs, gone, state, alive_at)
        others = [member for name, member in state.crowd.members.items() if name != client]
        if others:
            seconds = (max(member.until for member in others) - at) / SECOND
            raise ConfigurationError(
                f"the key {key!r} of {place} is in use by {len(others)} other(s) with other limits. "
                f"Theirs: {text_of(theirs.limits)}; ours: {text_of(ours.limits)}. Give another key=, or the "
                f"same limits; should they have been killed, it is free in {seconds:.0f} s"
            )
    return decide.replan(theirs, ours, state, now)


def open_store(url: str | Store | None) -> Store:
    """The store at ``url``: ``memory://`` (also None), ``sqlite:///path``, ``redis://``, ``rediss://`` or
    ``unix://``.

    A store that is given is handed back.

    Raises:
        ConfigurationError: no store of that scheme, or what it needs is not installed.
    """
    if url is None:
        url = "memory://"
    if not isinstance(url, str):
        return url
    scheme = urlsplit(url).scheme or url
    name = f"headgate.stores.{_ALIASES.get(scheme, scheme)}"
    try:
        module = import_module(name) if scheme.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        module = None
    if not hasattr(module, "open_url"):
        raise ConfigurationError(
            "expected the URL of a store, such as sqlite:///limits.db, redis://localhost:6379/0 or "
            f"memory://; got {url if '@' not in url else scheme + '://…'!r}"
        )
    store: Store = module.open_url(url)  # type: ignore[union-attr]  # it has one
    return store


_ALIASES = {"rediss": "redis", "unix": "redis", "valkey": "redis", "valkeys": "redis"}
"""Schemes of one engine."""
