"""Putting requests where the mediator finds them, and telling it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from headgate.errors import InvalidRequest, StorageError
from headgate.integrations.celery.mediator.request import (
    canonical,
    check_task_id,
    digest_of,
    find_service,
    request_name,
    request_of,
    vet_callback,
)
from headgate.integrations.celery.mediator.response import response_name, stored_failure
from headgate.integrations.celery.mediator.settings import Settings
from headgate.integrations.celery.mediator.worker import CALL, make_app
from headgate.integrations.storage import open_storage

if TYPE_CHECKING:
    from celery import Celery


class State(Enum):
    """What became of a submission."""

    SENT = "sent"
    """It is new."""
    SENT_AGAIN = "sent again"
    """The same request was there already, without a response, or with a failure that is to be tried again."""
    DONE = "already done"
    """There is a response; nothing was sent."""


class Submitted(NamedTuple):
    """A task id, and what became of it."""

    task_id: str
    state: State


class Submitter:
    """Submits requests to one mediator. For any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.app = make_app(settings)
        self._storage = open_storage(settings.storage)

    def submit(
        self, request: Mapping[str, Any], task_id: str | None = None, *, retry_failed: bool = False
    ) -> Submitted:
        """See :func:`submit`."""
        checked = request_of(request)
        if self.settings.services:  # a program that only submits need not know them
            find_service(checked, self.settings)
            if checked.callback is not None:
                vet_callback(checked.callback, self.settings)
        data = canonical(request)
        if len(data) > self.settings.largest_request_bytes:
            raise InvalidRequest(
                f"expected at most {self.settings.largest_request_bytes:,} bytes; got {len(data):,}"
            )
        name = digest_of(request) if task_id is None else check_task_id(task_id)
        state, given = State.SENT, {}
        if not self._storage.create(request_name(name), data):
            if not self._holds(name, data):
                raise InvalidRequest(f"task_id: {name!r} is that of another request already")
            if self._storage.exists(response_name(name)):
                if not (retry_failed and self._has_failed(name)):
                    return Submitted(name, State.DONE)
                given = {"retry_failed": True}
            state = State.SENT_AGAIN
        # Under the task's own id, so that ``celery control revoke`` knows it.
        self.app.send_task(CALL, args=[name], kwargs=given, task_id=name)
        return Submitted(name, state)

    def _has_failed(self, task_id: str) -> bool:
        return stored_failure(self._storage, task_id, self.settings.largest_response_bytes) is not None

    def _holds(self, task_id: str, data: bytes) -> bool:
        """Whether the request that is there is this one."""
        try:
            found = self._storage.read(request_name(task_id), self.settings.largest_request_bytes)
            return found == data or canonical(json.loads(found)) == data
        except (ValueError, RecursionError, StorageError):
            return False


def submit(
    request: Mapping[str, Any],
    *,
    task_id: str | None = None,
    settings: Settings | None = None,
    retry_failed: bool = False,
) -> str:
    """Have a request made; its response will be the object ``{id}.response.json``.

    The same request under the same id may be submitted any number of times; once it has its response, that
    costs nothing. A process that forks submits after the fork only.

    Args:
        request: what docs/mediator.md tells: ``endpoint``, ``payload``, ``callback``…
        task_id: 1 to 200 letters, digits, ``.``, ``_`` and ``-``. None for one that is made of the request,
            so that the same request is made once.
        settings: None for those of the file and the environment; see :meth:`Settings.load`.
        retry_failed: if the response tells of a failure, have the request made once more; the new response
            takes its place.

    Returns:
        The task's id.

    Raises:
        InvalidRequest: it makes no sense, no service is configured for it, or the id is that of another one.
        ConfigurationError: the settings make no sense.
        StorageError: it could not be stored.
        kombu.exceptions.OperationalError: the broker could not be told; submit it again.
    """
    return submitter_of(settings).submit(request, task_id, retry_failed=retry_failed).task_id


_submitters: dict[int, Submitter] = {}
_making = Lock()


def submitter_of(settings: Settings | None) -> Submitter:
    """One for each settings; None for those of the file and the environment, read once."""
    if settings is None:
        settings = _default()
    with _making:
        found = _submitters.get(id(settings))  # it holds the settings, so that the number is no one else's
        if found is None:
            found = _submitters[id(settings)] = Submitter(settings)
        return found


@cache
def _default() -> Settings:
    return Settings.load()


def app_of(settings: Settings | None) -> Celery:
    """The Celery app of a mediator with these settings."""
    return submitter_of(settings).app
