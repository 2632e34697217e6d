"""Object storage by URL: read, write, create what is not there yet. It knows obstore, and nothing of tasks.

    storage = open_storage("s3://bucket/prefix")
    storage.write("7f3a.request.json", b"{}")

Credentials, regions and endpoints come from the environment, as obstore's stores take them (``AWS_…``,
``GOOGLE_…``, ``AZURE_STORAGE_…``); URLs carry none. docs/decisions/0006-object-storage.md says why obstore,
and what follows from it:

- Its threads do not come along in a fork, and a forked process that uses it would wait for ever. Nothing here
  starts them before the first object is asked for; a process forked after that gets an error instead.
- It waits outside Python. Under gevent, whose one thread must not stand still, it is called in a thread.
- A signal's handler runs only once the operation is over.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from headgate.errors import (
    ConfigurationError,
    InvalidObjectName,
    ObjectNotFound,
    ObjectTooLarge,
    StorageError,
    StorageUnavailable,
)

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
    from obstore.store import LocalStore, MemoryStore, from_url
except ModuleNotFoundError as missing:
    raise ConfigurationError(
        f"object storage needs {missing.name}: pip install 'headgate[mediator]'"
    ) from missing

T = TypeVar("T")

TIMEOUT_SECONDS = 30.0
CONNECT_SECONDS = 5.0
RETRIES = 2

# In UTF-8: Amazon S3 User Guide, "Naming Amazon S3 objects", read 2026-11-26.
_LONGEST_NAME = 1024

# What URLs, shells or storages give a meaning of their own; for files, obstore itself does so with "#1".
_FORBIDDEN = frozenset('\\{}^%`[]"<>~#|*?')

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# What may name an endpoint; one without TLS is meant if it is written down so.
_ENDPOINTS = (
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)

# The process in which obstore's threads run, once they do.
_used_in: list[int] = []

# For as long as the process lives, as other storages outlive those who open them.
_memories: dict[str, MemoryStore] = {}


def open_storage(url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Storage:
    """Object storage; nothing is asked of it yet.

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``; ``file:///folder``,
            which is made if need be; or, for tests, ``memory://name``, which all of a process share.
        timeout_seconds: For one try. What fails for reasons that may pass is tried again, ``RETRIES`` times
            at most, and takes about twice that at most.

    Raises:
        ConfigurationError: The URL does not say where.
    """
    parts = _vet_url(url)
    if not timeout_seconds > 0:
        raise ConfigurationError(f"expected timeout_seconds above 0, got {timeout_seconds!r}")
    return Storage(parts, timeout_seconds)


class Storage:
    """Objects of one place, by name. Made by ``open_storage``.

    Threads may share it. Names are relative, their parts separated by ``/``. Every operation may raise
    ``StorageUnavailable``, if a later try may succeed, and ``StorageError`` if not.
    """

    def __init__(self, parts: SplitResult, timeout_seconds: float) -> None:
        self._parts = parts
        self._timeout_seconds = timeout_seconds
        self._client: Any = None

    @property
    def url(self) -> str:
        """Where it is; there are no secrets in it."""
        return self._parts.geturl()

    def __repr__(self) -> str:
        return f"<Storage {self.url}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self._parts, self._timeout_seconds))  # a client stays in its process

    def read(self, name: str, most_bytes: int) -> bytes:
        """What an object holds.

        Raises:
            ObjectNotFound: There is none of that name.
            ObjectTooLarge: It has more than ``most_bytes``; it was not read.
            InvalidObjectName: None can be called that.
        """

        def read(client: Any) -> bytes:
            found = obstore.get(client, name)
            size = found.meta["size"]
            if size > most_bytes:
                raise ObjectTooLarge(
                    f"{self._name(name)} has {size:,} bytes, more than the {most_bytes:,} that are allowed",
                    size=size,
                    most=most_bytes,
                )
            return bytes(found.bytes())

        return self._do(name, read)

    def write(self, name: str, data: bytes) -> None:
        """Make or replace an object. A reader sees the old one or the new one, whole.

        Raises:
            InvalidObjectName: None can be called that.
        """
        # In one request, as an upload in parts that is broken off leaves parts behind that are charged for.
        self._do(name, lambda client: obstore.put(client, name, data, use_multipart=False))

    def create(self, name: str, data: bytes) -> bool:
        """Make an object if there is none of that name; of several who try, one does.

        Returns:
            True if it was made. False if there is one, which may be this one: a try whose answer was lost is
            tried again. Who has to know reads it, and puts something of its own in.

        Raises:
            InvalidObjectName: None can be called that.
        """

        def create(client: Any) -> bool:
            try:
                obstore.put(client, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

        return self._do(name, create)

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name; S3 says no, too, if there is no such bucket.

        Raises:
            InvalidObjectName: None can be called that.
        """

        def exists(client: Any) -> bool:
            try:
                obstore.head(client, name)
            except FileNotFoundError:
                return False
            return True

        return self._do(name, exists)

    def _do(self, name: str, what: Callable[[Any], T]) -> T:
        if why := _fault(name):
            raise InvalidObjectName(f"an object cannot be called {name!r}: {why}")
        _claim_process()
        if self._client is None:
            self._client = (
                self._connect()
            )  # by two threads at once: one of the two is used, and both are good
        client = self._client
        try:
            return _off_the_hub(lambda: what(client))
        except (BaseError, OSError, ValueError) as error:
            failure = self._failure(error, name)
        # Not from what obstore raised, nor while it is handled: that quotes requests, signatures and all.
        raise failure

    def _connect(self) -> Any:
        try:
            match self._parts.scheme:
                case "file":
                    return LocalStore(Path(unquote(self._parts.path)), mkdir=True)
                case "memory":
                    return _memories.setdefault(self.url, MemoryStore())
                case _:
                    pass
            plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
            return from_url(
                self.url,
                client_options={
                    "timeout": timedelta(seconds=self._timeout_seconds),
                    "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, self._timeout_seconds)),
                    **({"allow_http": True} if plain else {}),
                },
                retry_config={
                    "max_retries": RETRIES,
                    "retry_timeout": timedelta(seconds=self._timeout_seconds),
                },
            )
        except (BaseError, OSError, ValueError) as error:
            failure = ConfigurationError(f"{self.url} cannot be opened: {_reason(str(error))}")
        raise failure

    def _failure(self, error: Exception, name: str) -> StorageError:
        """What is raised instead."""
        if isinstance(error, StorageError):
            return error
        text = str(error)
        if isinstance(error, FileNotFoundError) and not re.search(
            "NoSuchBucket|ContainerNotFound|bucket does not exist", text
        ):
            return ObjectNotFound(f"{self._name(name)}: there is no such object")
        told = f"{self._name(name)}: {_reason(text)}"
        passes = isinstance(error, GenericError) and self._parts.scheme not in {"file", "memory"}
        # What the server refuses it will refuse again; the client has tried again what may pass.
        if passes and not re.search(r"status code: 4\d\d", text):
            return StorageUnavailable(told)
        return StorageError(told)

    def _name(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}"


def _vet_url(url: str) -> SplitResult:
    """Its parts. Messages do not quote what may be a secret.

    Raises:
        ConfigurationError: It does not say where, or says more than that.
    """
    if any(unicodedata.category(char) in {"Cc", "Cs"} or char.isspace() for char in url):
        raise ConfigurationError("the URL of an object storage has no spaces or control characters in it")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError("the URL of an object storage cannot be read") from None
    if parts.scheme not in {"s3", "gs", "az", "file", "memory"}:
        raise ConfigurationError(
            f"expected the URL of an object storage, which begins with s3://, gs://, az://, file:/// or "
            f"memory://, got one that begins with {parts.scheme!r}"
        )
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url or "#" in url:
        raise ConfigurationError(
            f"the URL of an object storage says where, and no more: {parts.scheme}://…; credentials and "
            f"options come from the environment"
        )
    if parts.scheme == "file":
        path = unquote(parts.path)
        if parts.netloc or not path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise ConfigurationError("expected file:///folder, with three slashes and no '..'")
        return parts
    if not _BUCKET.fullmatch(parts.netloc):
        raise ConfigurationError(f"expected {parts.scheme}://name/prefix, got {url!r}")
    prefix = parts.path.strip("/")
    if prefix and (why := _fault(prefix)):
        raise ConfigurationError(f"in {url!r}, what objects' names begin with is none: {why}")
    return parts._replace(path=f"/{prefix}" if prefix else "")


def _fault(name: str) -> str | None:
    """Why no object can be called that; None if one can."""
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in name):
        return "there are control characters in it"
    if found := sorted(_FORBIDDEN & set(name)):
        return f"there is {found[0]!r} in it"
    if len(name.encode()) > _LONGEST_NAME:
        return f"it has more than {_LONGEST_NAME} bytes"
    if any(part in {"", ".", ".."} for part in name.split("/")):
        return "it is empty, or one of its parts is empty, '.' or '..'"
    return None


def _claim_process() -> None:
    """From now on obstore's threads run in this process.

    Raises:
        StorageError: They were left behind by a fork.
    """
    if not _used_in:
        _used_in.append(os.getpid())
    elif _used_in[0] != os.getpid():
        raise StorageError(
            f"this process was forked from process {_used_in[0]}, which had used object storage already, and "
            f"the threads that do so do not come along: use it first after the fork, or spawn processes"
        )


def _off_the_hub(what: Callable[[], T]) -> T:
    """Its result; under gevent it is called in a thread, and others go on."""
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("socket"):
        return what()
    result: T = import_module("gevent").get_hub().threadpool.apply(what)
    return result


def _reason(text: str) -> str:
    """What obstore says, without what may be a secret: queries carry signatures, answers carry key ids."""
    told = text.partition("\n")[0].partition("<")[0]
    told = re.sub(r"//[^/\s]*@", "//", told)
    told = re.sub(r"\?\S*", "", told).strip(" :")
    # The kinds of causes that can be told in a word are deep in what follows.
    cause = re.search(r"<Code>(\w+)</Code>", text) or re.search(r'\bmessage: "([^"<?]*)"', text)
    if cause is None and "source: TimedOut" in text:
        return f"{told}: timed out"
    return f"{told}: {cause[1]}" if cause else told
