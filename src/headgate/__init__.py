"""headgate: rate limits, from the caller's side.

Declare what a server allows; headgate sends each request as soon as that allows, and never sooner. ::

    from headgate import Limiter

    limiter = Limiter("requests=500/min:burst=20", "tokens=40k/min:burst=4k:charge=usage")
    with limiter.permit(tokens=520) as permit:
        ...
        permit.settle(tokens=431)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headgate.core.model import Limit, Reading, Signal, Throttle
from headgate.core.text import parse_limit
from headgate.errors import (
    AcquireTimeout,
    CallCancelled,
    ConfigurationError,
    CostExceedsLimit,
    DuplicateCall,
    HeadgateError,
    InvalidObjectName,
    InvalidRequest,
    LeaseLost,
    NoSuchKey,
    NotSent,
    ObjectNotFound,
    ObjectTooLarge,
    RunStopped,
    StorageError,
    StorageUnavailable,
    StoreError,
    StoreUnavailable,
    Throttled,
    ValidationError,
)
from headgate.limiter import Limiter, Permit

if TYPE_CHECKING:
    from headgate.runner import Call, Interval, Runner, current_call, digest

__all__ = [
    "AcquireTimeout",
    "Call",
    "CallCancelled",
    "ConfigurationError",
    "CostExceedsLimit",
    "DuplicateCall",
    "HeadgateError",
    "Interval",
    "InvalidObjectName",
    "InvalidRequest",
    "LeaseLost",
    "Limit",
    "Limiter",
    "NoSuchKey",
    "NotSent",
    "ObjectNotFound",
    "ObjectTooLarge",
    "Permit",
    "Reading",
    "RunStopped",
    "Runner",
    "Signal",
    "StorageError",
    "StorageUnavailable",
    "StoreError",
    "StoreUnavailable",
    "Throttle",
    "Throttled",
    "ValidationError",
    "current_call",
    "digest",
    "parse_limit",
]


def __getattr__(name: str) -> Any:
    """Load bulk work when it is first asked for: whoever wants a Limiter does not pay for it."""
    if name in {"Call", "Interval", "Runner", "current_call", "digest"}:
        from headgate import runner

        return getattr(runner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
