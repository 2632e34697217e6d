"""What a worker has in hand: storage, limits and connections, each opened when it is first used.

Storage must not be used before a fork, and nothing here does so by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headgate.core.model import LARGEST_AMOUNT
from headgate.integrations.celery.mediator.hosts import Hosts
from headgate.integrations.celery.mediator.outgoing import Connections, Reply
from headgate.integrations.celery.mediator.request import Request
from headgate.integrations.celery.mediator.settings import Service, Settings
from headgate.integrations.storage import open_storage
from headgate.limiter import Limiter
from headgate.providers.outcome import Judge
from headgate.stores.base import Store, open_store

CALLBACK_KEY = "mediator-callback:"
"""What the keys of hosts that are called back begin with."""


class Engine:
    """Of one process, and of those forked from it. For any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.storage = open_storage(settings.storage)
        self.connections = Connections(settings.largest_response_bytes)
        self._store: Store | None = None
        self._limiters: dict[str, Limiter] = {}
        self.hosts = Hosts(lambda: self.store, self.callback_limiter)

    @property
    def store(self) -> Store:
        """Where the limits are kept."""
        if self._store is None:
            self._store = open_store(self.settings.store)
        return self._store

    def limiter(self, service: Service) -> Limiter:
        """Of a service's budget."""
        return self._limiter(service.key, lambda: Limiter(*service.limits, key=service.key, store=self.store))

    def callback_limiter(self, host: str) -> Limiter:
        """Of a host that is called back."""
        key = f"{CALLBACK_KEY}{host}"
        return self._limiter(key, lambda: Limiter(*self.settings.callbacks.limits, key=key, store=self.store))

    def _limiter(self, key: str, make: Callable[[], Limiter]) -> Limiter:
        found = self._limiters.get(key)
        return found or self._limiters.setdefault(key, make())


def cost_of(service: Service, request: Request) -> dict[str, int]:
    """{meter: units} of a call: the preset's guess, overruled by the settings, overruled by the request.

    What fits no limit that there can be is told by the smallest such number: a lot takes no larger ones.
    """
    meters = {limit.meter for limit in service.limits}
    guess: Mapping[str, int] = {}
    if service.preset is not None:
        guess = service.preset.cost(**_arguments(request.payload))
    guess = {meter: units for meter, units in guess.items() if meter in meters}
    found = {**guess, **service.cost, **request.cost}
    return {meter: min(units, LARGEST_AMOUNT + 1) for meter, units in found.items()}


def judge_of(service: Service, request: Request) -> Judge:
    """How the answer to a request is read; a preset learns from it."""
    meters = frozenset(limit.meter for limit in service.limits)
    preset = service.preset
    if preset is None:
        return Judge(meters, None, (), None, None, service.resets)
    arguments = _arguments(request.payload)

    def usage(reply: Reply) -> Mapping[str, int]:
        return preset.usage(reply.json) if reply.status < 300 else {}

    def learn(args: tuple[Any, ...], kwargs: dict[str, Any], reply: Reply) -> Mapping[str, int]:
        return preset.learn((), arguments, reply.json) if reply.status < 300 else {}

    return Judge(meters, usage, (), None, learn, service.resets)


def _arguments(payload: object) -> Mapping[str, Any]:
    return payload if isinstance(payload, Mapping) else {"input": payload}
