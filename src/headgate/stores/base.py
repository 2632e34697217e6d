"""What a store is, and how one is opened by its URL.

A store knows keys, transactions and one clock. It answers two questions for a whole batch at once, and
computes nothing of its own: the rules are in the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol
from urllib.parse import urlsplit

from headgate.core.model import Costs, Decision, Now, Report
from headgate.core.plan import Plan
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
