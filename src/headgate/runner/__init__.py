"""Bulk work from Python: any callable, many times, as fast as its limits allow."""

from headgate.runner.call import (
    Call,
    CallCancelled,
    CurrentCall,
    DuplicateCall,
    ValidationError,
    current_call,
)
from headgate.runner.digest import digest
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
    "Runner",
    "Statistics",
    "ValidationError",
    "current_call",
    "digest",
]
