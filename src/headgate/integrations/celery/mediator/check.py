"""Whether a mediator with these settings would work: each thing it needs is really used once."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

from headgate.errors import ConfigurationError, HeadgateError
from headgate.integrations.celery.mediator.secrets import Secret
from headgate.integrations.celery.mediator.settings import Settings
from headgate.integrations.celery.mediator.urls import Url
from headgate.integrations.celery.mediator.worker import make_app
from headgate.integrations.storage import open_storage
from headgate.parking import lot_of
from headgate.stores.base import open_store

CONNECT_SECONDS = 5.0
PROBE = "headgate-mediator-check"
"""What the probe's object and key begin with."""


class Item(NamedTuple):
    """A thing that was checked.

    Attributes:
        name: what it is; ``fault`` what is wrong with it, None if nothing is.
        about: where it is, without secrets.
    """

    name: str
    about: str
    fault: str | None


def check(settings: Settings) -> Iterator[Item]:
    """Use everything once; one item as soon as it is known."""
    app = make_app(settings)
    try:
        yield _item("storage", settings.storage, lambda: _storage(settings.storage))
        yield _item("store", _shown(settings.store), lambda: _store(settings.store))
        yield _item("broker", _shown(settings.broker), lambda: _broker(app))
        if settings.backend is not None:
            yield _item(
                "backend", _shown(settings.backend), lambda: app.backend.get_task_meta(f"{PROBE}-{uuid4()}")
            )
        for service in settings.services.values():
            limits = ", ".join(f"{limit.amount:,} {limit.name}" for limit in service.limits)
            secrets, urls = service.secret_headers.values(), [service.endpoint]
            use = partial(_reach, secrets, urls)
            yield _item(f"service {service.name}", f"{service.endpoint.shown} ({limits})", use)
        if not settings.services:
            yield Item("services", "", "expected one at least, [services.NAME]")
        callbacks = settings.callbacks
        about = ", ".join(url.shown for url in callbacks.allow) or "any public address"
        yield _item("callbacks", about, partial(_reach, callbacks.secret_headers.values(), callbacks.allow))
    finally:
        app.close()


def _item(name: str, about: str, use: Callable[[], object]) -> Item:
    try:
        use()
    except Exception as error:  # whatever a driver may raise
        return Item(name, about, _told(error))
    return Item(name, about, None)


def _told(error: Exception) -> str:
    text = str(error).partition("\n")[0] or type(error).__name__
    text = re.sub(r"//[^/\s@]*@", "//", text)
    return text if isinstance(error, HeadgateError) else f"{type(error).__name__}: {text}"[:300]


def _shown(url: str) -> str:
    """A URL without user, password and options; of several that a broker may have, each."""
    each = map(urlsplit, url.split(";"))
    return ";".join(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" for parts in each)


def _storage(url: str) -> None:
    """Write, read, and see that what is there is not made again. The probe stays: nothing here deletes."""
    storage = open_storage(url)
    name, data = f"{PROBE}.json", b"{}"
    storage.write(name, data)
    if storage.read(name, 1024) != data:
        raise ConfigurationError(f"{name} does not hold what was written")
    if storage.create(name, data):
        raise ConfigurationError(f"{name} was made twice: this storage cannot make objects only if absent")


def _store(url: str) -> None:
    store = open_store(url)
    try:
        lot_of(store).peek(PROBE)
    finally:
        store.close()  # type: ignore[attr-defined]  # it is a shared one


def _broker(app: object) -> None:
    with app.connection_for_write(connect_timeout=CONNECT_SECONDS) as connection:  # type: ignore[attr-defined]
        connection.ensure_connection(max_retries=1, timeout=CONNECT_SECONDS)


def _reach(secrets: Iterable[Secret], urls: Iterable[Url]) -> None:
    for secret in secrets:
        secret.value()
    for url in urls:
        try:
            socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            told = getattr(error, "strerror", None) or type(error).__name__
            raise ConfigurationError(f"{url.host} has no address: {told}") from None
