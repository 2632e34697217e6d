"""Bulk work from Python: any callable, many times, as fast as its limits allow."""

from headgate.errors import CallCancelled, DuplicateCall, RunStopped, ValidationError
from headgate.runner.call import Call, CurrentCall, current_call
from headgate.runner.digests import digest
from headgate.runner.events import Event
from headgate.runner.interval import Interval
from headgate.runner.results import Results
from headgate.runner.runner import Runner
from headgate.runner.statistics import Statistics

__all__ = [
    "Call",
    "CallCancelled",
    "CurrentCall",
    "DuplicateCall",
    "Event",
    "Interval",
    "Results",
    "RunStopped",
    "Runner",
    "Statistics",
    "ValidationError",
    "current_call",
    "digest",
]
