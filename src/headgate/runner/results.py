"""What a run gives back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from headgate.runner.call import DONE, Call

R = TypeVar("R")


class Results(tuple[list["R | None"], list[list[BaseException]]], Generic[R]):
    """Results and exceptions of a run, in the order of scheduling: ``results, exceptions = runner.run()``.

    Attributes:
        results: [what each call returned]; None for calls that failed, or are not done.
        exceptions: [[what each attempt of the call raised]].
        calls: the calls themselves, with all that is known of them.
        stopped: why the run ended before everything was done; None if it did not.
    """

    calls: list[Call[R]]
    stopped: str | None

    def __new__(cls, calls: Sequence[Call[R]], stopped: str | None) -> Results[R]:
        self = super().__new__(cls, ([call.value for call in calls], [call.exceptions for call in calls]))
        self.calls = list(calls)
        self.stopped = stopped
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        raise TypeError("calls belong to their runner: pickle .results and .exceptions")

    @property
    def results(self) -> list[R | None]:
        return self[0]

    @property
    def exceptions(self) -> list[list[BaseException]]:
        return self[1]

    @property
    def complete(self) -> bool:
        """Whether every call is done, well or not."""
        return all(call.state is DONE for call in self.calls)

    @property
    def failed(self) -> list[Call[R]]:
        """The calls that failed for good."""
        return [call for call in self.calls if call.error is not None]

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each call, as for ``pandas.DataFrame(…)``."""
        return [call.as_dict() for call in self.calls]

    def __repr__(self) -> str:
        done = sum(call.state is DONE for call in self.calls)
        failed = len(self.failed)
        text = f"<Results {done - failed:,} succeeded, {failed:,} failed"
        if done < len(self.calls):
            text += f", {len(self.calls) - done:,} not done"
        return text + (f": {self.stopped}>" if self.stopped else ">")

    def _repr_html_(self) -> str:
        from headgate.progress.html import table

        rows = [
            {
                "": call.position,
                "state": "failed" if call.error is not None else call.state,
                "value": call.value if call.error is None else call.error,
                "attempts": call.attempts,
                "seconds": call.elapsed_seconds,
            }
            for call in self.calls[:50]
        ]
        return table(rows, caption=repr(self)[1:-1])
