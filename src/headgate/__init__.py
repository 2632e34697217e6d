"""headgate: rate limits, from the caller's side.

Declare what a server allows; headgate sends each request as soon as that allows, and never sooner. ::

    from headgate import Limiter

    limiter = Limiter("requests=500/min:burst=20", "tokens=40k/min:burst=4k:charge=usage")
    with limiter.permit(tokens=520) as permit:
        ...
        permit.settle(tokens=431)
"""

from headgate.core.model import Limit, Reading, Signal, Throttle
from headgate.core.text import parse_limit
from headgate.errors import (
    AcquireTimeout,
    ConfigurationError,
    CostExceedsLimit,
    HeadgateError,
    LeaseLost,
    NotSent,
    StoreError,
    StoreUnavailable,
    Throttled,
)
from headgate.limiter import Limiter, Permit
from headgate.runner import Call, Interval, Runner, current_call, digest

__all__ = [
    "AcquireTimeout",
    "Call",
    "ConfigurationError",
    "CostExceedsLimit",
    "HeadgateError",
    "Interval",
    "LeaseLost",
    "Limit",
    "Limiter",
    "NotSent",
    "Permit",
    "Reading",
    "Runner",
    "Signal",
    "StoreError",
    "StoreUnavailable",
    "Throttle",
    "Throttled",
    "current_call",
    "digest",
    "parse_limit",
]
