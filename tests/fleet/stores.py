"""The stores that a fleet can share: a file, or a server of the fleet's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.redis import RedisServer

Kind = Literal["sqlite", "redis", "valkey"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ANSWER_SECONDS = 15.0


class SharedStore:
    """A store that is up.

    url: of the store.
    file: of SQLite; else `None`.
    server: of Redis or Valkey; else `None`.
    """

    def __init__(self, url: str, file: Path | None = None, server: RedisServer | None = None) -> None:
        self.url = url
        self.file = file
        self._server = server

    @property
    def server(self) -> RedisServer:
        assert self._server is not None, "a file has no server"
        return self._server

    @contextmanager
    def admin(self) -> Iterator[Any]:
        """A client that tries once, and is not one of the fleet's; many of its methods have no types."""
        client = redis.Redis.from_url(
            self.server.url, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_SECONDS
        )
        try:
            yield client
        finally:
            client.close()


@contextmanager
def shared_store(kind: Kind, scratch: Path, **options: Any) -> Iterator[SharedStore]:
    """A store of this kind, for the length of a `with` block.

    Args:
        kind: which one.
        scratch: a folder, for a file.
        options: of :class:`RedisServer`.
    """
    if kind == "sqlite":
        file = scratch / "limits.db"
        yield SharedStore(f"sqlite://{quote(str(file))}", file=file)
        return
    with RedisServer(kind, **options) as server:
        yield SharedStore(server.url, server=server)


_MODULES: Mapping[Kind, str] = MappingProxyType({"sqlite": "sqlite", "redis": "redis", "valkey": "redis"})


def why_not(kind: Kind) -> str | None:
    """Why the package cannot share a store of this kind; `None` if it can."""
    name = f"headgate.stores.{_MODULES[kind]}"
    if find_spec(name) and hasattr(import_module(name), "open_url"):
        return None
    return f"there is no {name} yet"
