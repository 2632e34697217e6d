"""The view in a notebook: one output, drawn again in its place."""

import threading
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from headgate.progress.notebook import NotebookView
from headgate.testing import FakeClock
from tests.progress.samples import status


class Output:
    """One output of a cell, and all that it has shown."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> "Output":
        assert raw
        assert display_id
        assert not self.shown
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(bundle)

    @property
    def html(self) -> str:
        return self.shown[-1]["text/html"]

    @property
    def plain(self) -> str:
        return self.shown[-1]["text/plain"]


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def view(output: Output, fake_clock: FakeClock) -> NotebookView:
    return NotebookView(display=output.display, clock=lambda: fake_clock.elapsed_seconds)


def test_its_place_is_taken_at_once_and_empty(view: NotebookView, output: Output) -> None:
    assert output.shown == [{"text/html": "", "text/plain": ""}]


def test_everything_is_drawn(view: NotebookView, output: Output) -> None:
    view.show(status(blocked="requests/day is blocked until 00:00 UTC"))
    for text in (
        "333 of 1,000 done",
        "12.3/s · 54 s left",
        "requests/min",
        "8.2/s of 10/s (82%) ◀ binds",
        "tokens/min",
        "1,820/s of 3,640/s (50%)<",
        "14 of 20 (70%)<",
        "requests/day is blocked until 00:00 UTC",
        *("in flight", "waiting", "812", "refused", "retries", "failed", "p50", "210 ms", "p95", "840 ms"),
        *("width:33.3%", "width:82.0%", "width:50.0%", "width:70.0%"),
    ):
        assert text in output.html


def test_front_ends_without_html_get_a_line(view: NotebookView, output: Output) -> None:
    view.show(status())
    assert output.plain == (
        "headgate: 333 of 1,000 done, 12.3/s, 2 failed, 14 in flight, 812 waiting, 1 refused, 3 retries, "
        "bound by requests/min, 54 s left"
    )


def test_an_unknown_total_is_striped(view: NotebookView, output: Output) -> None:
    view.show(status(total=None, eta_seconds=None, p50=None, p95=None))
    assert "333 done" in output.html
    assert "repeating-linear-gradient" in output.html
    assert "p50" not in output.html


def test_nothing_to_do_is_done(view: NotebookView, output: Output) -> None:
    view.show(status(done=0, total=0, limits=()))
    assert "width:100.0%" in output.html


def test_texts_are_escaped(view: NotebookView, output: Output) -> None:
    limit = status().limits[0].__class__("<i>", 1, 2, binds=True)
    view.show(status(limits=(limit,), blocked="<script>1</script>"))
    view.note("<script>2</script>")
    view.close()
    assert "<script" not in output.html
    assert "<i>" not in output.html
    assert "&lt;script&gt;1" in output.html
    assert "&lt;script&gt;2" in output.html


def test_what_cannot_be_sent_is_replaced(view: NotebookView, output: Output) -> None:
    view.note("half \ud83d and \x1b[31m")
    assert output.plain == "half � and �[31m"
    assert "half �" in output.html
    assert output.html.encode()


def test_at_most_five_drawings_a_second(view: NotebookView, output: Output, fake_clock: FakeClock) -> None:
    for done in range(1000):
        view.show(status(done=done))
        fake_clock.advance(0.01)
    assert 10 / view.every_seconds <= len(output.shown) <= 1 + 5 * 10
    view.close()
    assert "999 of 1,000 done" in output.html


def test_what_is_left_is_drawn_with_the_next(
    view: NotebookView, output: Output, fake_clock: FakeClock
) -> None:
    view.show(status(done=1))
    view.note("a note")
    assert "a note" not in output.html
    fake_clock.advance(0.25)
    view.show(status(done=2))
    assert "a note" in output.html
    assert "2 of 1,000" in output.html


def test_closed_it_stays_as_it_is(view: NotebookView, output: Output, fake_clock: FakeClock) -> None:
    view.show(status(done=1))
    view.show(status(done=1000, eta_seconds=None))
    view.close()
    drawn = len(output.shown)
    assert "1,000 of 1,000 done" in output.html
    fake_clock.advance(10)
    view.close()
    view.show(status(done=5))
    view.close()
    assert len(output.shown) == drawn


def test_nothing_shown_leaves_nothing(view: NotebookView, output: Output) -> None:
    view.close()
    assert len(output.shown) == 1


def test_a_note_after_the_end_is_still_told(view: NotebookView, output: Output) -> None:
    view.show(status())
    view.close()
    view.note("and then")
    assert "and then" in output.html
    assert "333 of 1,000 done" in output.html


def test_many_notes_do_not_grow_the_page(view: NotebookView, output: Output, fake_clock: FakeClock) -> None:
    for number in range(1000):
        view.note(f"note {number}.")
    view.close()
    assert "… 990 notes before" in output.html
    assert "note 989." not in output.html
    assert "note 990." in output.html
    assert "note 999." in output.html


def test_threads_may_feed_it_at_once(view: NotebookView, output: Output, fake_clock: FakeClock) -> None:
    def feed() -> None:
        for _ in range(200):
            view.show(status())
            view.note("note")
            fake_clock.advance(0.1)

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view.close()
    assert "… 790 notes before" in output.html


CELL = """
import sys, threading
from headgate.progress.view import make_view
from tests.progress.samples import status

view = make_view("auto")

def work():
    view.show(status())
    view.show(status(done=1000))
    view.close()

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(type(view).__name__, "rich" in sys.modules)

table = make_view("rich")
table.show(status(done=5))
table.close()
"""


@pytest.mark.filterwarnings("ignore::RuntimeWarning:jupyter_client", "ignore::RuntimeWarning:zmq")
def test_a_real_kernel_updates_one_output(pytestconfig: pytest.Config) -> None:
    manager, client = start_new_kernel(cwd=str(pytestconfig.rootpath))
    told: list[dict[str, Any]] = []
    try:
        reply = client.execute_interactive(CELL, output_hook=told.append, timeout=60, store_history=False)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    printed = {"stdout": "", "stderr": ""}
    for message in told:
        if message["msg_type"] == "stream":
            printed[message["content"]["name"]] += message["content"]["text"]
    assert printed["stdout"] == "NotebookView False\n"
    assert "5 of 1,000" in printed["stderr"]  # rich has not looked for widgets
    assert "ipywidgets" not in printed["stderr"]
    drawn = [message for message in told if message["msg_type"].endswith("display_data")]
    assert [message["msg_type"] for message in drawn] == ["display_data", *["update_display_data"] * 2]
    assert len({message["content"]["transient"]["display_id"] for message in drawn}) == 1
    assert "1,000 of 1,000 done" in drawn[-1]["content"]["data"]["text/html"]
