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

__all__ = [
    "AcquireTimeout",
    "ConfigurationError",
    "CostExceedsLimit",
    "HeadgateError",
    "LeaseLost",
    "Limit",
    "Limiter",
    "NotSent",
    "Permit",
    "Reading",
    "Signal",
    "StoreError",
    "StoreUnavailable",
    "Throttle",
    "Throttled",
    "parse_limit",
]
