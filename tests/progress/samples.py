"""A status to draw, for the tests of views."""

from typing import Any

from headgate.progress.view import LimitStatus, Status

LIMITS = (
    LimitStatus("requests/min", 8.2, 10.0, binds=True),
    LimitStatus("tokens/min", 1820.0, 3640.0, binds=False),
    LimitStatus("concurrency", 14, 20, binds=False, slots=True),
)


def status(**changes: Any) -> Status:
    """A third of a thousand calls, with something to tell about each figure."""
    facts: dict[str, Any] = {
        "done": 333,
        "total": 1000,
        "failed": 2,
        "in_flight": 14,
        "waiting": 812,
        "refused": 1,
        "retries": 3,
        "rate": 12.34,
        "p50": 0.21,
        "p95": 0.84,
        "eta_seconds": 54.0,
        "blocked": "",
        "limits": LIMITS,
        "draining": False,
    }
    return Status(**facts | changes)
