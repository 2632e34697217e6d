"""What a user sees of the package, and what it costs to import."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

import headgate
from headgate import errors

LOADED = "import sys; before = set(sys.modules); import headgate; print(*sorted(set(sys.modules) - before))"


def test_names_are_sorted_and_there() -> None:
    assert headgate.__all__ == sorted(headgate.__all__)
    assert len(set(headgate.__all__)) == len(headgate.__all__)
    for name in headgate.__all__:
        assert getattr(headgate, name).__doc__, f"{name} says nothing of itself"


def test_all_errors_are_public() -> None:
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.HeadgateError):
            assert getattr(headgate, name) is error


def test_importing_it_loads_the_standard_library_alone() -> None:
    ran = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = ran.stdout.split()
    assert "headgate.limiter" in loaded
    packages = {name.partition(".")[0] for name in loaded if not name.startswith("_sysconfigdata")}
    assert packages - set(sys.stdlib_module_names) == {"headgate"}
    assert not {"asyncio", "headgate.simulator", "headgate.testing"} & set(loaded), "none that is not needed"


MADE = [
    errors.HeadgateError("a"),
    errors.ConfigurationError("a"),
    errors.NoSuchKey("a", key="k", nearest=("kk",)),
    errors.NotSent("a"),
    errors.AcquireTimeout("a", limit="requests/s", retry_after_seconds=1.5),
    errors.CostExceedsLimit("a", limit="tokens/min", cost=9, largest=5),
    errors.CallCancelled("a"),
    errors.DuplicateCall("a"),
    errors.InvalidRequest("a"),
    errors.RunStopped("a"),
    errors.ValidationError("a", value=5, validator="even"),
    errors.Throttled("a", status=429, throttled_seconds=2.5),
    errors.StoreError("a"),
    errors.StoreUnavailable("a"),
    errors.LeaseLost("a"),
    errors.StorageError("a"),
    errors.InvalidObjectName("a"),
    errors.ObjectNotFound("a"),
    errors.ObjectTooLarge("a", size=9, most=5),
    errors.StorageUnavailable("a"),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_errors_pickle_with_their_facts(error: errors.HeadgateError) -> None:
    assert {type(error) for error in MADE} >= set(_tree(errors.HeadgateError))
    error.add_note("while testing")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def _tree(kind: type[errors.HeadgateError]) -> list[type[errors.HeadgateError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


def test_errors_are_what_python_calls_them() -> None:
    assert issubclass(errors.AcquireTimeout, TimeoutError)
    assert issubclass(errors.CostExceedsLimit, ValueError)
    assert issubclass(errors.ConfigurationError, ValueError)
    assert not issubclass(errors.Throttled, errors.NotSent), "it was sent"
