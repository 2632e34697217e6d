"""What a store is, and how one is opened by its URL.

A store knows keys, transactions and one clock. It answers two questions for a whole batch at once, and
computes nothing of its own: the rules are in the core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol
from urllib.parse import urlsplit

from headgate.core.model import Costs, Decision, Now, Report
from headgate.core.plan import Plan
from headgate.core.together import Line
from headgate.errors import ConfigurationError


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


class SharedStore(Store, Protocol):
    """A store that several processes draw on, each under a name of its own, in turn.

    The plain ``acquire`` and ``settle`` of such a store are those of one client, as if nobody waited.
    """

    @property
    def client(self) -> str:
        """The name of this process here: another one after a fork."""

    def acquire_for(self, key: str, plan: Plan, lines: Sequence[Line]) -> list[list[Decision]]:
        """Answer what this process wants in each class; see :func:`headgate.core.together.acquire`."""

    def settle_for(self, key: str, plan: Plan, reports: Sequence[Report]) -> bool:
        """Book what became of calls, each settlement once, and give a hint to whoever may go now.

        Returns whether that is this process itself.
        """

    def beat(self, key: str, plan: Plan) -> None:
        """Say that this process is alive and keeps what it holds."""

    def leave(self, key: str, plan: Plan) -> None:
        """Say that this process wants nothing more."""

    def listen(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake``, from any thread, when asking again may help; returns how to stop that.

        A hint may be lost or come for nothing: the instants that were told are the truth.
        """


def open_store(url: str | Store | None) -> Store:
    """The store at ``url``: ``memory://`` (also None), later others by their scheme.

    A store that is given is handed back.

    Raises:
        ConfigurationError: no store of that scheme.
    """
    if url is None:
        url = "memory://"
    if not isinstance(url, str):
        return url
    scheme = urlsplit(url).scheme or url
    name = f"headgate.stores.{scheme}"
    try:
        module = import_module(name) if scheme.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        module = None
    if not hasattr(module, "open_url"):
        raise ConfigurationError(f"expected the URL of a store, such as memory://; got {url!r}")
    store: Store = module.open_url(url)  # type: ignore[union-attr]  # it has one
    return store
