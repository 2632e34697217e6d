"""A real notebook kernel: cells that block inside its running loop, cells that await, and the stop button."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

LONG = 30.0
NUMBERS, GATED, AT_ONCE = 20, 8, 4

SETUP = f"""
import asyncio, json, time
from collections import Counter
from pathlib import Path
from headgate import Runner

NUMBERS = {NUMBERS}
started, ended = Counter(), Counter()

def work(x):
    started[x] += 1
    print("start", x)
    while x >= {GATED} and not gate.exists():
        time.sleep(0.005)
    ended[x] += 1
    return 2 * x

async def work_async(x):
    started[x] += 1
    print("start", x)
    while x >= {GATED} and not gate.exists():
        await asyncio.sleep(0.005)
    ended[x] += 1
    return 2 * x
"""

both_kinds = pytest.mark.parametrize("function", ["work", "work_async"])


class Message(NamedTuple):
    """What a kernel publishes while it works."""

    kind: str
    content: dict[str, Any]


class Cell(NamedTuple):
    """What became of a cell."""

    reply: dict[str, Any]
    messages: list[Message]

    @property
    def ok(self) -> bool:
        return bool(self.reply["status"] == "ok")

    @property
    def value(self) -> Any:
        """Of its last expression, which is a string of JSON."""
        (result,) = self.of("execute_result")
        return json.loads(result["data"]["text/plain"].strip("'"))

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [message.content for message in self.messages if message.kind in kinds]


class Notebook:
    """A kernel and its client, which runs one cell at a time."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self._manager = manager
        self._client = client
        self._messages: list[Message] = []
        self._cell = ""

    def begin(self, code: str) -> None:
        self._messages = []
        self._cell = self._client.execute(code)

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def hear(self, text: str, count: int = 1) -> None:
        """Until the cell has published that so many times."""
        deadline = time.monotonic() + LONG
        while sum(_words(message).count(text) for message in self._messages) < count:
            assert not self._next(deadline), (
                f"the cell has ended without {count} × {text!r}: {self._messages}"
            )

    def end(self) -> Cell:
        deadline = time.monotonic() + LONG
        while not self._next(deadline):
            pass
        while True:
            reply = self._client.get_shell_msg(timeout=LONG)
            if (
                reply["parent_header"]["msg_id"] == self._cell
            ):  # others answer questions of the kernel's start
                return Cell(reply["content"], self._messages)

    def run(self, code: str) -> Cell:
        self.begin(code)
        return self.end()

    def _next(self, deadline: float) -> bool:
        """Whether the cell has ended."""
        try:
            found = self._client.get_iopub_msg(timeout=deadline - time.monotonic())
        except Empty:
            raise AssertionError(f"nothing more after {self._messages}") from None
        kind, content = found["msg_type"], found["content"]
        if kind == "status":
            of_cell = found["parent_header"].get("msg_id") == self._cell
            return bool(of_cell and content["execution_state"] == "idle")
        self._messages.append(Message(kind, content))
        return False


def _words(message: Message) -> str:
    if message.kind == "stream":
        return str(message.content["text"])
    return "".join(map(str, message.content.get("data", {}).values()))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("kernel")
    manager = KernelManager(kernel_name="python3", connection_file=str(folder / "connection.json"))
    manager.start_kernel(env={**os.environ, "IPYTHONDIR": str(folder)}, cwd=str(folder))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=LONG)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "open"


@pytest.fixture
def notebook(kernel: Notebook, gate: Path) -> Notebook:
    """The kernel with everything defined anew."""
    assert kernel.run(f"{SETUP}\ngate = Path({str(gate)!r})").ok
    return kernel


def doubles(count: int = NUMBERS) -> list[int | None]:
    """Results of the first so many calls, and None for the others."""
    return [2 * x if x < count else None for x in range(NUMBERS)]


MADE = f"""
runner = Runner({{}}, max_concurrent={AT_ONCE})
for x in range(NUMBERS):
    runner.schedule(x)
"""
RUN = """
found = runner.run()
results, exceptions = found
json.dumps([results, exceptions, found.complete, found.stopped])
"""
COUNTS = "json.dumps([sorted(started.elements()), sorted(ended.elements())])"


def counts(notebook: Notebook) -> tuple[Counter[int], Counter[int]]:
    """How often each call has been started, and has ended."""
    started, ended = notebook.run(COUNTS).value
    return Counter(started), Counter(ended)


@both_kinds
def test_run_blocks_inside_the_running_loop_and_gives_results(
    notebook: Notebook, gate: Path, function: str
) -> None:
    gate.touch()
    cell = notebook.run("asyncio.get_running_loop()\n" + MADE.format(function) + RUN)
    assert cell.ok
    assert cell.value == [doubles(), [[]] * NUMBERS, True, None]


@both_kinds
def test_the_stop_button_gives_partial_results_and_the_next_cell_goes_on(
    notebook: Notebook, gate: Path, function: str
) -> None:
    notebook.begin(MADE.format(function) + RUN)
    notebook.hear("start", GATED + AT_ONCE)
    notebook.interrupt()
    notebook.hear("interrupted; 4 calls are on their way")
    gate.touch()
    cell = notebook.end()
    assert cell.ok
    assert cell.of("error") == []
    assert cell.value == [doubles(GATED + AT_ONCE), [[]] * NUMBERS, False, "interrupted"]
    assert notebook.run(RUN).value == [doubles(), [[]] * NUMBERS, True, None]
    assert counts(notebook) == (Counter(range(NUMBERS)), Counter(range(NUMBERS)))


@both_kinds
def test_the_stop_button_twice_ends_the_cell_at_once(notebook: Notebook, gate: Path, function: str) -> None:
    notebook.begin(MADE.format(function) + RUN)
    notebook.hear("start", GATED + AT_ONCE)
    notebook.interrupt()
    notebook.hear("interrupted; 4 calls are on their way")
    notebook.interrupt()
    cell = notebook.end()
    assert cell.reply["ename"] == "KeyboardInterrupt"
    gate.touch()
    assert notebook.run(RUN).value == [doubles(), [[]] * NUMBERS, True, None]
    started, ended = counts(notebook)
    cancelled = range(GATED, GATED + AT_ONCE) if function == "work_async" else ()
    assert started == Counter([*range(NUMBERS), *cancelled])
    assert ended == Counter(range(NUMBERS))


@both_kinds
def test_run_async_can_be_awaited_in_a_cell(notebook: Notebook, gate: Path, function: str) -> None:
    gate.touch()
    cell = notebook.run(MADE.format(function) + RUN.replace("runner.run()", "await runner.run_async()"))
    assert cell.ok
    assert cell.value == [doubles(), [[]] * NUMBERS, True, None]


@both_kinds
def test_an_interrupted_await_keeps_what_is_done(notebook: Notebook, gate: Path, function: str) -> None:
    again = RUN.replace("runner.run()", "await runner.run_async()")
    notebook.begin(MADE.format(function) + again)
    notebook.hear("start", GATED + AT_ONCE)
    notebook.interrupt()
    assert not notebook.end().ok
    assert notebook.run("json.dumps(runner.results().results)").value == doubles(GATED)
    gate.touch()
    assert notebook.run(again).value == [doubles(), [[]] * NUMBERS, True, None]
    assert counts(notebook)[1] == Counter(range(NUMBERS))


@both_kinds
def test_map_gives_values_in_both_kinds_of_loops(notebook: Notebook, gate: Path, function: str) -> None:
    gate.touch()
    made = f"runner = Runner({function}, max_concurrent={AT_ONCE})\n"
    plain = "json.dumps([value for value in runner.map(range(NUMBERS))])"
    assert notebook.run(made + plain).value == doubles()
    assert notebook.run(plain.replace("value for", "value async for")).value == doubles()


@pytest.mark.parametrize("way", ["runner.run()", "await runner.run_async()"])
def test_progress_is_one_output_that_is_drawn_again(notebook: Notebook, gate: Path, way: str) -> None:
    gate.touch()
    cell = notebook.run(MADE.format("work_async") + RUN.replace("runner.run()", way))
    (first,) = cell.of("display_data")
    updates = cell.of("update_display_data")
    assert {update["transient"]["display_id"] for update in updates} == {first["transient"]["display_id"]}
    assert "20 of 20 done" in updates[-1]["data"]["text/html"]
    assert "20 of 20 done" in updates[-1]["data"]["text/plain"]


def test_without_progress_nothing_is_drawn(notebook: Notebook, gate: Path) -> None:
    gate.touch()
    cell = notebook.run(MADE.format("work_async, progress=False") + RUN)
    assert cell.of("display_data", "update_display_data") == []


def test_a_runner_and_its_results_are_shown_as_html(notebook: Notebook, gate: Path) -> None:
    gate.touch()
    (shown,) = notebook.run(MADE.format("work") + "runner").of("execute_result")
    assert "Runner of work" in shown["data"]["text/html"]
    assert "20" in shown["data"]["text/html"]
    assert shown["data"]["text/plain"] == "<Runner work: 20 waiting, 0 running, 0 done>"
    (shown,) = notebook.run("runner.run()").of("execute_result")
    assert "20 succeeded, 0 failed" in shown["data"]["text/html"]


@both_kinds
def test_a_cell_that_makes_a_runner_with_a_checkpoint_can_be_run_again(
    notebook: Notebook, tmp_path: Path, gate: Path, function: str
) -> None:
    cell = MADE.format(f"{function}, checkpoint={str(tmp_path / 'kept')!r}") + RUN
    notebook.begin(cell)
    notebook.hear("start", GATED + AT_ONCE)
    notebook.interrupt()
    notebook.hear("interrupted; 4 calls are on their way")
    gate.touch()
    assert notebook.end().value[0] == doubles(GATED + AT_ONCE)
    for _ in range(2):
        assert notebook.run("old = runner\n" + cell).value == [doubles(), [[]] * NUMBERS, True, None]
        assert counts(notebook) == (Counter(range(NUMBERS)), Counter(range(NUMBERS)))


def test_the_checkpoint_of_a_runner_that_runs_is_not_taken_over(
    notebook: Notebook, tmp_path: Path, gate: Path
) -> None:
    made = MADE.format(f"work_async, checkpoint={str(tmp_path / 'kept')!r}")
    assert notebook.run(made + "runner.start()\nold = runner").ok
    refused = notebook.run(made)
    assert refused.reply["ename"] == "ConfigurationError"
    gate.touch()
    assert notebook.run("await old.wait_idle_async()\nold.stop()").ok
    assert notebook.run(made + RUN).value == [doubles(), [[]] * NUMBERS, True, None]
    assert counts(notebook)[0] == Counter(range(NUMBERS))


@pytest.mark.parametrize(
    "way",
    [
        "call = runner.schedule(21)\ncall.result()",
        "call = runner.schedule(21)\nrunner.wait_idle()",
        "with runner:\n    call = runner.schedule(21)",
        "async with runner:\n    call = runner.schedule(21)",
        "call = runner.schedule(21)\nawait call",
    ],
)
@both_kinds
def test_a_cell_can_wait_for_single_calls(notebook: Notebook, gate: Path, function: str, way: str) -> None:
    gate.touch()
    assert notebook.run(f"runner = Runner({function})\n{way}\njson.dumps(call.value)").value == 42
