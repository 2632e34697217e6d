"""One ``headgate run`` from its options to its exit code: opens the files, starts the engine, closes all."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headgate.core.calendar import clock_text
from headgate.core.model import SECOND, Limit
from headgate.core.rates import possible_units
from headgate.errors import ConfigurationError
from headgate.keeping import Keeper
from headgate.limiter import Limiter, Permit
from headgate.progress.stats import Pace
from headgate.progress.view import LimitStatus, Status, View
from headgate.run.checkpoint import Bitmap, Checkpoint, checkpoint_path, recipe
from headgate.run.engine import Engine
from headgate.run.output import Appender, Ordered, Stdout, number_of
from headgate.run.rows import BadLine, Row, RowReader
from headgate.run.settings import Settings
from headgate.run.sources import FileRows, StreamRows
from headgate.run.summary import summarise
from headgate.run.survey import Survey, survey
from headgate.stores.base import open_store

CHECKPOINT_SECONDS = 3.0
STREAM = "standard input"
"""In a checkpoint, in the place of the input's digest: what was done is known by id alone."""
MALFORMED_TOLD = 10
"""Malformed lines that are told one by one; the rest are only counted, and all stand in the errors file."""

INTERRUPTED = 130


@dataclass(slots=True)
class Session:
    """The files and figures of one run.

    Raises (from ``prepare``):
        ConfigurationError: input, output and checkpoint do not belong together, or an id stands twice.
    """

    settings: Settings
    view: View
    reader: RowReader = field(init=False)
    checkpoint: Checkpoint = field(init=False)
    output: Appender | Ordered | Stdout = field(init=False)
    errors: Appender = field(init=False)
    limiter: Limiter = field(init=False)
    keeper: Keeper = field(init=False)
    engine: Engine = field(init=False)
    total: int | None = None
    already_done: int = 0
    stopped_at: str = ""
    _ended_at: float = 0.0
    _path: Path | None = None
    _pace: Pace = field(default_factory=Pace)
    _limit_paces: dict[str, Pace] = field(default_factory=dict)
    _stream: StreamRows | None = None

    def prepare(self) -> None:
        """Look through the input, and open or go on with the output."""
        settings = self.settings
        self.reader = RowReader(settings)
        self.limiter = Limiter(
            *settings.limits,
            key=settings.key,
            store=open_store(settings.store),
            service_class=settings.service_class,
            on_store_failure=settings.on_store_failure,
        )
        self.keeper = Keeper(self.limiter)
        found = self._open_checkpoint()
        self.checkpoint = found or Checkpoint.new(settings)
        if settings.source is not None:
            seen = survey(settings.source, self.reader, self.checkpoint.input_size)
            self._check_input(found, seen, settings.source)
            self.total = seen.lines
            self.checkpoint.input_size, self.checkpoint.input_digest = seen.size, seen.digest
        else:
            self.checkpoint.input_size, self.checkpoint.input_digest = 0, STREAM
        self.output = self._open_output(fresh=found is None)
        self._catch_up()
        self.errors = Appender(settings.errors, fresh=True)
        if self._path is not None:
            self.keeper.restore(self._kept_limits(self._path))
            self._snapshot()
            self.checkpoint.write(self._path)

    def _open_output(self, *, fresh: bool) -> Appender | Ordered | Stdout:
        path = self.settings.output
        if path is None:
            return Stdout()
        spill = path.with_name(path.name + ".spill")
        output = Appender(path, fresh=fresh)
        if not self.settings.ordered:
            if fresh:
                spill.unlink(missing_ok=True)
            elif spill.exists():  # it was ordered before: all results stand there
                output.clear()
                with spill.open("rb") as lines:
                    for line in lines:
                        if line.endswith(b"\n"):
                            output.add(line)
                spill.unlink()
            return output
        if not fresh and output.size and not spill.exists():  # it was not: all results stand here
            draft = spill.with_name(spill.name + ".new")
            shutil.copyfile(path, draft)
            draft.replace(spill)
        output.clear()
        return Ordered(output, spill, fresh=fresh)

    @staticmethod
    def _kept_limits(path: Path) -> dict[str, Any]:
        """What is left of the budgets; they are the account's, so a new start does not bring them back."""
        try:
            found = Checkpoint.read(path)
        except ConfigurationError:  # --fresh over a damaged one
            return {}
        return found.limits if found is not None else {}

    def _open_checkpoint(self) -> Checkpoint | None:
        settings = self.settings
        if settings.output is None:
            return None
        self._path = checkpoint_path(settings.output)
        if settings.fresh:
            return None
        found = Checkpoint.read(self._path)
        if found is None:
            if settings.output.exists() and settings.output.stat().st_size:
                raise ConfigurationError(
                    f"{settings.output} exists, but no checkpoint says what it is the output of; "
                    "--fresh overwrites it, another --output keeps it"
                )
            return None
        if found.recipe != recipe(settings):
            raise ConfigurationError(
                f"{settings.output} was begun with another template, model, --max-tokens or --id-column; "
                "--fresh starts over, another --output keeps it"
            )
        return found

    def _check_input(self, found: Checkpoint | None, seen: Survey, source: Path) -> None:
        if found is not None and found.input_digest == STREAM:
            raise ConfigurationError(
                f"{self.settings.output} was begun from standard input; go on with it from there, "
                "--fresh starts over, another --output keeps it"
            )
        if found is not None and found.input_digest and seen.prefix != found.input_digest:
            raise ConfigurationError(
                f"{source} has changed since {self.settings.output} was begun "
                "(appended lines would be fine); --fresh starts over, another --output keeps it"
            )

    def _catch_up(self) -> None:
        """Mark as done what stands in the output behind the checkpoint."""
        done = self.checkpoint.done
        start = self.checkpoint.output_size
        if self.output.size < start:  # somebody has cut the output: believe only what stands there
            done = self.checkpoint.done = Bitmap()
            start = 0
        for line in self.output.lines_from(start):
            number = number_of(line)
            if number is None:
                raise ConfigurationError(
                    f"{self.settings.output} holds a line that is no result of ours: {line[:60]!r}"
                )
            done.add(number)
        self.already_done = done.count
        self.checkpoint.output_size = self.output.size

    async def run(self) -> int:
        """Carry it out; returns the exit code."""
        settings = self.settings
        engine = self.engine = Engine(
            settings,
            self.limiter,
            self._rows(),
            output=self.output,
            errors=self.errors,
            salt=self.checkpoint.salt,
            done=self._done,
        )
        engine.on_stop = self._note_stop
        self._limit_paces = {limit.name: Pace() for limit in self.limiter.limits}
        if self._path is not None and self.keeper.needed:
            engine.on_sent = self._note_grant
        tasks = [asyncio.create_task(self._show())]
        if self._path is not None:
            tasks.append(asyncio.create_task(self._write_now_and_then()))
            tasks[-1].add_done_callback(self._checkpoint_ended)
        restore = self._catch_signals()
        try:
            await engine.run()
        finally:
            restore()
            self._ended_at = time.monotonic()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._stream is not None:
                self._stream.close()
            self.view.show(self.status())
            self._close()
        return self._exit_code()

    def _rows(self) -> FileRows | StreamRows:
        settings = self.settings
        if settings.source is not None:
            skip = self.output.skip if isinstance(self.output, Ordered) else lambda number: None
            return FileRows(settings.source, self.reader, self.checkpoint.done, self._malformed, skip)
        beside = settings.output or settings.errors
        stream = self._stream = StreamRows(
            self.reader, beside.with_name(beside.name + ".ids"), self._malformed
        )
        for line in self.output.lines_from(0):
            stream.finished(str(json.loads(line)["custom_id"]))
        # Numbers count lines of this standard input; the marks of an earlier one mean other lines.
        self.checkpoint.done = Bitmap()
        return stream

    def _done(self, row: Row) -> None:
        if self._stream is None:
            self.checkpoint.done.add(row.number)

    def _malformed(self, number: int, error: BadLine) -> None:
        counts = self.engine.figures.counts
        counts.malformed_lines += 1
        if counts.malformed_lines <= MALFORMED_TOLD:
            self.view.note(f"headgate: line {number + 1}: {error}")
        elif counts.malformed_lines == MALFORMED_TOLD + 1:
            self.view.note(f"headgate: more malformed lines; all of them stand in {self.settings.errors}")
        facts = {"code": "malformed_line", "message": str(error), "line": number + 1}
        self.engine.write_error(number, error.custom_id, None, facts)

    # Checkpoints

    def _snapshot(self, *, final: bool = False) -> None:
        self.checkpoint.output_size = self.output.size
        if self.keeper.needed:
            self.checkpoint.limits = self.keeper.save(final=final)

    def _write_now(self) -> None:
        if self._path is not None:
            self._snapshot()
            self.checkpoint.write(self._path)

    def _note_grant(self, permit: Permit) -> None:
        if self.keeper.granted(permit.units):
            try:
                self._write_now()
            except OSError as error:
                self.engine.fail(error)
                raise

    def _checkpoint_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.engine.fail(error)

    async def _write_now_and_then(self) -> None:
        while self._path is not None:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            if self.keeper.needed:  # what is granted meanwhile has to be covered by the copy on the disk
                self._write_now()
                continue
            self._snapshot()
            writing = asyncio.ensure_future(
                asyncio.to_thread(self._write_behind, self.checkpoint.encode(), self._path)
            )
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait([writing])  # or it would write its older state over the last one
                raise

    def _write_behind(self, data: bytes, path: Path) -> None:
        """Results first: a checkpoint must never speak of lines that are not on the disk."""
        self.output.sync()
        Checkpoint.write_bytes(path, data)

    def _close(self) -> None:
        if self._path is not None:
            self._snapshot(final=True)
            self.checkpoint.write(self._path)
        self.output.close()
        self.errors.close()
        if not self.errors.size:
            self.settings.errors.unlink(missing_ok=True)

    # Stopping

    def _note_stop(self) -> None:
        self.stopped_at = self.blocked_text()

    def _catch_signals(self) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        caught = [signal.SIGINT, signal.SIGTERM]

        def on_signal() -> None:
            if self.engine.stopping == "interrupted":
                self.engine.cut()
                return
            left = self.engine.figures.in_flight
            self.view.note(
                f"headgate: stopping; {left} calls in flight may come back. Once more stops at once."
            )
            if self.engine.stopping is None:
                self.engine.stop("interrupted", INTERRUPTED)
            else:
                self.engine.stopping = "interrupted"

        try:
            for number in caught:
                loop.add_signal_handler(number, on_signal)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            return lambda: None

        def restore() -> None:
            for number in caught:
                loop.remove_signal_handler(number)

        return restore

    def _exit_code(self) -> int:
        counts = self.engine.figures.counts
        finished = self.already_done + counts.succeeded + counts.failed + counts.malformed_lines
        if self.engine.stopping is not None and finished != self.total:
            return self.engine.stop_code
        return 1 if counts.failed or counts.malformed_lines else 0

    # Showing

    def summary(self) -> dict[str, Any]:
        """See :func:`headgate.run.summary.summarise`."""
        seconds = (self._ended_at or time.monotonic()) - self.engine.figures.started_at
        return summarise(self.engine, total=self.total, already_done=self.already_done, seconds=seconds)

    async def _show(self) -> None:
        while True:
            await asyncio.sleep(self.view.every_seconds)
            self.view.show(self.status())

    def status(self) -> Status:
        """The run as it stands."""
        engine, figures = self.engine, self.engine.figures
        counts = figures.counts
        now = time.monotonic()
        finished = counts.succeeded + counts.failed + counts.malformed_lines
        self._pace.mark(now, finished)
        rate = self._pace.per_second()
        left = None if self.total is None else max(self.total - self.already_done - finished, 0)
        blocked = self.limiter.blocked()
        return Status(
            done=self.already_done + finished,
            total=self.total,
            failed=counts.failed + counts.malformed_lines,
            in_flight=figures.in_flight,
            waiting=engine.waiting,
            refused=counts.refused,
            retries=counts.retries,
            rate=rate,
            p50=figures.latency.quantile(0.5),
            p95=figures.latency.quantile(0.95),
            eta_seconds=left / rate if left is not None and rate > 0 else None,
            blocked=self.blocked_text(),
            limits=[self._limit_status(limit, now, blocked) for limit in self.limiter.limits],
            draining=engine.stopping is not None,
        )

    def _limit_status(
        self, limit: Limit, now: float, blocked: tuple[Limit, float | None] | None
    ) -> LimitStatus:
        binds = blocked is not None and blocked[0] is limit
        if limit.kind == "concurrency":
            used = self.limiter._line.used()[self.limiter.limits.index(limit)]
            return LimitStatus(limit.name, used, limit.amount, binds, slots=True)
        pace = self._limit_paces[limit.name]
        pace.mark(now, self.engine.sent_units[limit.name])
        return LimitStatus(limit.name, pace.per_second(), possible_units(limit, 1.0), binds)

    def blocked_text(self) -> str:
        """``requests/day is blocked until 00:00 America/Los_Angeles``, if for more than a few seconds."""
        blocked = self.limiter.blocked()
        if blocked is None:
            return ""
        limit, seconds = blocked
        if seconds is None or seconds < 5:
            return ""
        zone = limit.zone if limit.calendar else "UTC"
        wall_us = self.limiter.store.now().wall_us + round(seconds * SECOND)
        # the edge itself, not the guard behind it
        minute = 60 * SECOND
        if limit.calendar and wall_us % minute < 5 * SECOND:
            wall_us -= wall_us % minute
        day = datetime.fromtimestamp(wall_us / SECOND, UTC).date() if seconds > 86_400 else None
        on = f" on {day.isoformat()}" if day else ""
        return f"{limit.name} is blocked until {clock_text(wall_us, zone)}{on}"
