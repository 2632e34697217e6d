"""Which view is made, and what it draws in a terminal and in a log."""

import io
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from headgate.errors import ConfigurationError
from headgate.progress.notebook import NotebookView
from headgate.progress.view import KINDS, LimitStatus, LogView, NoView, RichView, line, make_view
from headgate.testing import FakeClock
from tests.progress.samples import LIMITS, status

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> list[str]:
    """Lines without colours and movements of the cursor."""
    return [row.rstrip() for row in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).splitlines() if row.strip()]


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as a terminal of 100 columns.

    No fixture, for pytest puts its own streams back between setting up and calling a test.
    """
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    return found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """IPython as it is found in a notebook."""
    handle = SimpleNamespace(update=lambda bundle, raw: None)
    display = SimpleNamespace(display=lambda bundle, raw, display_id: handle)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shell


# Which one


@pytest.mark.parametrize("kind", ["auto", "notebook"])
def test_a_kernel_gets_the_view_for_notebooks(
    kind: str, kernel: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_terminal(monkeypatch)
    assert isinstance(make_view(kind), NotebookView)


@pytest.mark.parametrize("kind", ["auto", "notebook"])
def test_a_terminal_gets_the_live_view(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    view = make_view(kind)
    view.close()
    assert isinstance(view, RichView)


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), SimpleNamespace(kernel=None)])
def test_ipython_in_a_terminal_is_a_terminal(shell: object, monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    view = make_view("auto")
    view.close()
    assert isinstance(view, RichView)


@pytest.mark.parametrize("kind", ["auto", "notebook"])
@pytest.mark.parametrize("stream", [io.StringIO(), None], ids=["file", "none"])
def test_elsewhere_there_are_lines(
    kind: str, stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    view = make_view(kind)
    assert isinstance(view, LogView)
    view.note("nobody may hear it")
    view.close()


def test_a_closed_standard_error_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    stream.close()
    stream.isatty = io.StringIO.isatty.__get__(stream)  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    assert isinstance(make_view("auto"), LogView)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_view("auto"), LogView)


@pytest.mark.parametrize("kind", ["auto", "rich"])
def test_two_live_views_do_not_draw_over_each_other(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    first = make_view("rich")
    try:
        assert isinstance(make_view(kind), LogView)
    finally:
        first.close()
    third = make_view(kind)
    third.close()
    assert isinstance(third, RichView)


def test_none_is_notes_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    view = make_view("none")
    assert type(view) is NoView
    view.show(status())
    view.close()
    assert terminal.getvalue() == ""
    view.note("a note")
    assert terminal.getvalue() == "a note\n"


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="auto, rich, notebook, log, none; got 'loud'"):
        make_view("loud")
    assert "loud" not in KINDS


def test_asking_loads_neither_ipython_nor_rich() -> None:
    code = (
        "import sys; from headgate.progress.view import make_view; make_view('auto'); "
        "print([name for name in ('IPython', 'rich') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert told.stdout == "[]\n"


# Lines


@pytest.fixture
def log(fake_clock: FakeClock, capsys: pytest.CaptureFixture[str]) -> LogView:
    return LogView(clock=lambda: fake_clock.elapsed_seconds)


def test_short_work_is_not_worth_a_line(
    log: LogView, fake_clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(9):
        log.show(status())
        fake_clock.advance(0.5)
    log.close()
    assert capsys.readouterr().err == ""


def test_a_line_every_five_seconds_and_a_last_one(
    log: LogView, fake_clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for second in range(13):
        log.show(status(done=second))
        told += [second] * len(capsys.readouterr().err.splitlines())
        fake_clock.advance(1)
    assert told == [5, 10]
    log.close()
    assert capsys.readouterr().err.startswith("headgate: 12 of 1,000 done, ")
    log.close()
    log.show(status())
    log.close()
    assert capsys.readouterr().err == ""


def test_a_timer_that_rings_a_little_early_skips_no_line(
    log: LogView, fake_clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(10):
        fake_clock.advance(log.every_seconds - 0.01)
        log.show(status())
    assert len(capsys.readouterr().err.splitlines()) == 10


def test_an_end_that_was_told_is_not_told_again(
    log: LogView, fake_clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_clock.advance(5)
    log.show(status())
    log.close()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_log_that_was_asked_for_tells_the_end_of_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    view = make_view("log")
    view.show(status(done=1))
    view.show(status(done=1000))
    view.close()
    view.close()
    assert [text.split(",")[1] for text in capsys.readouterr().err.splitlines()] == ["000 of 1"]


def test_a_log_of_nothing_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    make_view("log").close()
    assert capsys.readouterr().err == ""


def test_a_line_says_what_matters() -> None:
    assert line(status(blocked="requests/day is blocked until 00:00 UTC")) == (
        "headgate: 333 of 1,000 done, 12.3/s, 2 failed, 14 in flight, 812 waiting, 1 refused, 3 retries, "
        "requests/day is blocked until 00:00 UTC, 54 s left"
    )
    quiet = status(total=None, failed=0, refused=0, retries=0, eta_seconds=None, limits=())
    assert line(quiet) == "headgate: 333 done, 12.3/s, 14 in flight, 812 waiting"


def test_an_end_that_never_comes_is_not_told() -> None:
    assert "left" not in line(status(eta_seconds=float("inf")))


def test_notes_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    LogView().note("a\x1b[2Jb\x07\tc\nd \u2713")
    assert capsys.readouterr().err == "a�[2Jb�\tc\nd ✓\n"


# In a terminal


def last_drawing(text: str) -> list[str]:
    """What is left on the screen: behind the last movement of the cursor up."""
    return plain(re.split(r"\x1b\[1A", text)[-1])


def draw(monkeypatch: pytest.MonkeyPatch, columns: int, **changes: object) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    view = RichView(stream)
    view.show(status(**changes))
    view.close()
    return plain(stream.getvalue())


def test_the_live_view_draws_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(monkeypatch, 100, blocked="requests/day is blocked until 00:00 UTC")
    assert [re.sub(r"\s*[━╸╺]+\s*", " … ", row) for row in rows] == [
        "333 of 1,000 … 12.3/s  54 s left",
        "requests/min … 8.2/s of 10/s       82%  ◀ binds",
        "tokens/min … 1,820/s of 3,640/s  50%",
        "concurrency … 14 of 20            70%",
        "14 in flight  812 waiting  1 refused  3 retries  2 failed  p50 210 ms  p95 840 ms",
        "requests/day is blocked until 00:00 UTC",
    ]


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 80])
def test_a_narrow_terminal_is_not_overrun(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(monkeypatch, columns, blocked="requests/day is blocked until 00:00 UTC")
    assert all(len(row) <= columns for row in rows), rows
    assert sum("◀" in row for row in rows) == (columns >= 30)
    for fact in ("14 in flight", "812 waiting", "2 failed", "p95 840 ms"):
        assert sum(fact in row for row in rows) == 1


def test_forty_columns_leave_out_the_bars_of_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(monkeypatch, 40)
    assert rows[0] == "333 of 1,000  12.3/s  54 s left"
    assert rows[1] == "━" * 10 + "╸"  # of 32; what is left has a colour, and here are none
    assert rows[2:5] == [
        "requests/min  8.2/s of 10/s       82%  ◀",
        "tokens/min    1,820/s of 3,640/s  50%",
        "concurrency   14 of 20            70%",
    ]


def test_a_long_name_of_a_limit_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = LimitStatus("a-very-long-name-of-a-meter/min", 8.2, 10.0, binds=True)
    rows = draw(monkeypatch, 40, limits=(limit,))
    assert rows[2].endswith("…  8.2/s of 10/s  ◀")


def test_an_unknown_total_pulses(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    view = RichView()
    view.show(status(total=None))
    view.close()
    rows = last_drawing(terminal.getvalue())
    assert re.fullmatch("333  ━{32}  12.3/s  54 s left", rows[0])
    assert len(set(re.findall(r"\x1b\[(?:38|9|3)[0-9;]*m━", terminal.getvalue()))) > 1


def test_nothing_to_do_is_a_full_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    view = RichView()
    view.show(status(done=0, total=0, limits=()))
    view.close()
    assert re.match("0 of 0  ━{32}  ", last_drawing(terminal.getvalue())[0])


def test_draining_stands_in_the_place_of_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw(monkeypatch, 100, draining=True)[0].endswith("12.3/s  draining")


def test_work_without_limits_has_no_rows_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(draw(monkeypatch, 100, limits=())) == 2
    assert len(draw(monkeypatch, 100)) == 2 + len(LIMITS)


def test_closing_again_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    view = RichView()
    view.show(status())
    view.close()
    drawn = terminal.getvalue()
    view.close()
    view.show(status(done=5))
    view.close()
    assert terminal.getvalue() == drawn
    assert sys.stderr is terminal


def test_it_may_be_made_fed_and_closed_in_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    views: list[RichView] = []
    maker = threading.Thread(target=lambda: views.append(RichView()))
    maker.start()
    maker.join()
    [view] = views

    def feed() -> None:
        for done in range(50):
            view.show(status(done=done))
            view.note("a note")

    threads = [threading.Thread(target=feed) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    closer = threading.Thread(target=view.close)
    closer.start()
    closer.join()
    assert last_drawing(terminal.getvalue())[0].startswith("49 of 1,000")
    assert terminal.getvalue().count("a note") == 150
    assert sys.stderr is terminal


def test_prints_go_to_the_file_that_they_were_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    results = io.StringIO()
    monkeypatch.setattr(sys, "stdout", results)
    view = RichView()
    view.show(status())
    print("a result")
    view.close()
    assert results.getvalue() == "a result\n"
    assert "a result" not in terminal.getvalue()


def test_notes_in_the_terminal_are_taken_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    view = RichView()
    view.note("[bold]x[/bold] \x1b[2J")
    view.close()
    assert "[bold]x[/bold] �[2J" in terminal.getvalue()


SCRIPT = """
import sys, threading, time
from headgate.progress.view import make_view
from tests.progress.samples import status

view = make_view("auto")
view.show(status())

def work():
    while True:
        view.show(status())
        time.sleep(0.01)

threading.Thread(target=work, daemon=True).start()
if sys.argv[1] == "raise":
    raise RuntimeError("in between")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def screen() -> Iterator[tuple[int, int]]:
    """(our end, its end) of a terminal of 40 columns."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    try:
        yield ours, its
    finally:
        os.close(ours)
        os.close(its)


def read(ours: int, until: str = "") -> str:
    """What is written, up to a text; without one, what there is now."""
    found = b""
    while select.select([ours], [], [], 30 if until else 0.05)[0]:
        found += os.read(ours, 65536)
        if until and until.encode() in found:
            break
    return found.decode(errors="replace")


@pytest.mark.parametrize("way", ["raise", "interrupt", "kill"])
def test_however_it_ends_the_cursor_is_visible(
    way: str, screen: tuple[int, int], pytestconfig: pytest.Config
) -> None:
    ours, its = screen
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    path = os.pathsep.join([str(pytestconfig.rootpath), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, way],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**environment, "TERM": "xterm", "PYTHONPATH": path},
    )
    try:
        written = read(ours, "RuntimeError: in between" if way == "raise" else "ready")
        if way != "raise":
            child.send_signal(signal.SIGINT if way == "interrupt" else signal.SIGKILL)
        while child.poll() is None:
            written += read(ours)
        written += read(ours)
    finally:
        child.kill()
        child.wait()
    assert child.returncode != 0
    assert "333 of 1,000" in written
    assert written.rfind(SHOW_CURSOR) > written.rfind(HIDE_CURSOR) >= 0
    if way != "kill":
        assert written.endswith(("\r\n", "\r\n" + SHOW_CURSOR))
