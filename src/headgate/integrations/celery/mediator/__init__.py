"""An engine for paid, rate-limited HTTP calls, made of Celery's workers.

::

    celery -A headgate.integrations.celery.mediator worker

Some program puts ``ID.request.json`` into object storage and sends the task ``headgate.mediator.call`` with
the id; ``submit`` does both. A worker reads the request, takes a permit, makes the call, stores
``ID.response.json`` and posts the id to the request's callback. docs/mediator.md tells all of it.

``app`` is the Celery app, made of the settings when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headgate.integrations.celery.mediator.settings import Settings
from headgate.integrations.celery.mediator.submit import app_of, submit

if TYPE_CHECKING:
    from celery import Celery

    app: Celery

__all__ = ["Settings", "app", "submit"]


def __getattr__(name: str) -> Any:
    if name == "app":
        return app_of(None)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
