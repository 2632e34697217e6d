"""What is reported as kept is found again, whatever ends the process; nothing else is taken for it."""

import errno
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.errors import ConfigurationError
from headgate.run.checkpoint import MAGIC
from headgate.runner import checkpoint as module
from headgate.runner.checkpoint import Checkpoint, Codec, Kept
from tests.runner.test_digests import told

TIMES = {"queued_at": 1.25, "started_at": 2.5, "finished_at": 1.7e9 + 0.123456}


def name(number: int) -> str:
    return f"{number:032x}"


def keep(checkpoint: Checkpoint, digest: str, value: Any, occurrence: int = 0, attempts: int = 1) -> None:
    checkpoint.keep(digest, occurrence, value, attempts=attempts, **TIMES)


def value_of(checkpoint: Checkpoint, digest: str, occurrence: int = 0) -> Any:
    kept = checkpoint.find(digest, occurrence)
    assert kept is not None
    return kept.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.checkpoint"


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


# Results


def test_a_result_is_found_as_it_was_kept_also_by_a_later_one(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint.find("a", 0) is None
        keep(checkpoint, "a", {"x": [1, None, "ä"]}, attempts=3)
        first = checkpoint.find("a", 0)
    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint.find("a", 0) == first == Kept({"x": [1, None, "ä"]}, 3, 1.25, 2.5, 1.7e9 + 0.123456)
        assert checkpoint.find("a", 1) is None
        assert checkpoint.find("A", 0) is None
        assert checkpoint.count() == 1


def test_a_result_of_none_is_told_from_no_result(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        keep(checkpoint, "a", None)
        assert checkpoint.find("a", 0) == Kept(None, 1, **TIMES)
        assert checkpoint.find("b", 0) is None


def test_equal_calls_are_told_apart_by_their_occurrence(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        for occurrence in (2, 0, 1):
            keep(checkpoint, "a", f"sample {occurrence}", occurrence)
        assert [value_of(checkpoint, "a", n) for n in range(3)] == ["sample 0", "sample 1", "sample 2"]
        assert checkpoint.count() == 3


def test_the_first_result_stands(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        keep(checkpoint, "a", "first", attempts=1)
        keep(checkpoint, "a", "second", attempts=2)
        assert checkpoint.find("a", 0) == Kept("first", 1, **TIMES)
        assert checkpoint.count() == 1


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec=None), max_size=4), inner, max_size=4)
    ),
    max_leaves=10,
)
_anything = st.recursive(
    _json | st.binary(max_size=9) | st.datetimes() | st.decimals(),
    lambda inner: st.tuples(inner, inner) | st.dictionaries(st.integers(), inner, max_size=3),
    max_leaves=5,
)
_digests = st.sampled_from([name(0), name(1), "a", "A", "", "\ud800", "\0", "an id of one's own"])


def _check_history(codec: Codec, history: list[tuple[str, int, Any]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "c")
        expected: dict[tuple[str, int], Any] = {}
        with Checkpoint(path, function="work", codec=codec) as checkpoint:
            for digest, occurrence, value in history:
                keep(checkpoint, digest, value, occurrence)
                expected.setdefault((digest, occurrence), value)
                assert told(value_of(checkpoint, digest, occurrence)) == told(expected[digest, occurrence])
        with Checkpoint(path, function="work", codec=codec) as checkpoint:
            assert checkpoint.count() == len(expected)
            for digest, occurrence, _ in history:
                for near in (occurrence, occurrence + 1):
                    kept = checkpoint.find(digest, near)
                    assert (kept is None) is ((digest, near) not in expected)
                    assert kept is None or told(kept.value) == told(expected[digest, near])


@given(st.lists(st.tuples(_digests, st.integers(0, 2), _json), max_size=8))
def test_exactly_what_was_kept_is_found(history: list[tuple[str, int, Any]]) -> None:
    _check_history(None, history)


@given(st.lists(st.tuples(_digests, st.integers(0, 2), _anything), max_size=8))
def test_exactly_what_was_pickled_is_found(history: list[tuple[str, int, Any]]) -> None:
    _check_history("pickle", history)


def test_threads_share_one(path: Path) -> None:
    def work(part: int) -> None:
        for number in range(part, 400, 4):
            keep(checkpoint, name(number), number)
            assert value_of(checkpoint, name(number)) == number
            checkpoint.record(name(number), 0, "thread", part)

    with Checkpoint(path, function="work") as checkpoint:
        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert checkpoint.count() == 400
        assert [value_of(checkpoint, name(number)) for number in range(400)] == list(range(400))
        assert all(checkpoint.recorded(name(number), 0) == {"thread": number % 4} for number in range(400))


# Facts and states


def test_facts_are_kept_by_call_and_name_and_outlast_the_result(path: Path) -> None:
    with Checkpoint(path, function="work", codec="pickle") as checkpoint:
        assert checkpoint.recorded("a", 0) == {}
        checkpoint.record("a", 0, "operation", {"id": "op-1"})
        checkpoint.record("a", 0, "\ud800", [1, None])
        checkpoint.record("a", 1, "operation", "other")
        checkpoint.record("a", 0, "operation", {"id": "op-2"})
        keep(checkpoint, "a", "done")
    with Checkpoint(path, function="work", codec="pickle") as checkpoint:
        assert checkpoint.recorded("a", 0) == {"operation": {"id": "op-2"}, "\ud800": [1, None]}
        assert checkpoint.recorded("a", 1) == {"operation": "other"}
        assert checkpoint.recorded("b", 0) == {}
        assert checkpoint.count() == 1


def test_states_are_kept_by_name(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint.load_state("limits") is None
        checkpoint.save_state("limits", {"a": [1, 2]})
        checkpoint.save_state("salt", "s", at_once=True)
        checkpoint.save_state("limits", {"a": [3]})
    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint.load_state("limits") == {"a": [3]}
        assert checkpoint.load_state("salt") == "s"
        assert checkpoint.count() == 0


@pytest.mark.parametrize("store", ["record", "save_state"])
def test_facts_and_states_are_json_whatever_the_codec(path: Path, store: str) -> None:
    with Checkpoint(path, function="work", codec="pickle") as checkpoint:
        put: Callable[[str, Any], None] = (
            checkpoint.save_state
            if store == "save_state"
            else lambda key, value: checkpoint.record("a", 0, key, value)
        )
        with pytest.raises(ConfigurationError, match=r'value\["at"\] is of type datetime\.date;') as caught:
            put("x", {"at": date.min})
        assert "codec" not in str(caught.value)
        assert checkpoint.recorded("a", 0) == {}
        assert checkpoint.load_state("x") is None


# How values are kept


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"x", "value is of type bytes;"),
        ({"a": [1, {"b": Decimal(1)}]}, 'value["a"][1]["b"] is of type decimal.Decimal;'),
        ([(1, {2})], "value[0][1] is of type set;"),
        ({1: "a"}, "value has the key 1 of type int, which would not come back as it is;"),
        ([{"a": {None: 2}}], 'value[0]["a"] has the key None of type NoneType,'),
        ({"a": 1, (1, 2): 3}, "value has the key (1, 2) of type tuple,"),
        (_cycle(), "value cannot be written (Circular reference detected);"),
        ([10**5000], "value cannot be written (Exceeds the limit"),
        (object, "value is of type type;"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place_and_the_way_out(
    path: Path, value: Any, what: str
) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        with pytest.raises(ConfigurationError) as caught:
            keep(checkpoint, "a", value)
        assert f"expected a value that JSON can hold; {what}" in str(caught.value)
        assert 'give the Runner codec="pickle" or codec=(encode, decode)' in str(caught.value)
        assert checkpoint.count() == 0


def test_json_gives_lists_for_tuples_and_knows_nan(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        keep(checkpoint, "a", (1, ("b", [])))
        assert value_of(checkpoint, "a") == [1, ["b", []]]
        keep(checkpoint, "b", {"mean": math.nan, "max": math.inf})
        assert str(value_of(checkpoint, "b")) == "{'mean': nan, 'max': inf}"


def test_json_is_plain_text_in_the_file(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        keep(checkpoint, "a", {"town": "Zürich"})
    with closing(sqlite3.connect(path)) as database:
        (row,) = database.execute("SELECT CAST(digest AS TEXT), occurrence, value FROM results").fetchall()
    assert row == ("a", 0, '{"town":"Zürich"}')


def test_what_does_not_pickle_is_refused(path: Path) -> None:
    with Checkpoint(path, function="work", codec="pickle") as checkpoint:
        with pytest.raises(
            ConfigurationError, match=r"can be pickled; got Lock|can be pickled; got lock"
        ) as caught:
            keep(checkpoint, "a", threading.Lock())
        assert "codec=(encode, decode)" in str(caught.value)
        assert checkpoint.count() == 0


@pytest.mark.parametrize(
    "codec",
    [
        (str, int),
        (lambda value: b"%d" % value, int),
        (lambda value: f"\0{value}", lambda text: int(text[1:])),
    ],
)
def test_a_pair_of_functions_is_a_codec(path: Path, codec: Codec) -> None:
    with Checkpoint(path, function="work", codec=codec) as checkpoint:
        keep(checkpoint, "a", 5)
        assert value_of(checkpoint, "a") == 5


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda value: 5, "expected str or bytes .* got int"),
        (lambda value: "\ud800", "or bytes|return bytes"),
    ],
)
def test_a_codec_that_gives_no_data_is_told(path: Path, encode: Callable[[Any], Any], message: str) -> None:
    with Checkpoint(path, function="work", codec=(encode, str)) as checkpoint:
        with pytest.raises(ConfigurationError, match=message):
            keep(checkpoint, "a", 5)
        assert checkpoint.count() == 0


def test_an_error_of_a_codec_is_its_users(path: Path) -> None:
    def encode(value: Any) -> str:
        raise KeyError(value)

    with Checkpoint(path, function="work", codec=(encode, str)) as checkpoint, pytest.raises(KeyError):
        keep(checkpoint, "a", 5)


def test_a_value_that_cannot_be_read_back_is_told_with_the_way_out(path: Path) -> None:
    with Checkpoint(path, function="work", codec=(str, int)) as checkpoint:
        keep(checkpoint, "a", "five")
        with pytest.raises(
            ConfigurationError, match=r"cannot be read as .*str, int.*ValueError.*another file"
        ):
            checkpoint.find("a", 0)


@pytest.mark.parametrize("codec", ["json", 5, (str,), (str, 5)])
def test_no_such_codec(path: Path, codec: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"expected None, 'pickle' or a pair"):
        Checkpoint(path, function="work", codec=codec)
    assert not path.exists()


# Whose file it is


def test_another_function_or_codec_is_refused_and_changes_nothing(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        keep(checkpoint, "a", 5)
    before = contents(path.parent)
    codecs: list[Codec] = ["pickle", (str, int)]
    with pytest.raises(ConfigurationError, match=r"function 'play'.* is of 'work'\. Give another"):
        Checkpoint(path, function="play")
    for codec in codecs:
        with pytest.raises(ConfigurationError, match=r"codec .* is of 'JSON'\. Give another"):
            Checkpoint(path, function="work", codec=codec)
    assert contents(path.parent) == before
    with Checkpoint(path, function="work") as checkpoint:
        assert value_of(checkpoint, "a") == 5


def _database(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"x"),
        lambda path: path.write_bytes(b"something else " * 500),
        lambda path: path.write_bytes(MAGIC + b"\0" * 5000),
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"x" * 5000),
        lambda path: _database(path, "VACUUM"),
        lambda path: _database(path, "CREATE TABLE results (a)", "INSERT INTO results VALUES (1)"),
        lambda path: _database(path, "PRAGMA journal_mode=WAL", "CREATE TABLE t (a)"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_left_as_it_is(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    before = contents(path.parent)
    with pytest.raises(
        ConfigurationError, match=r"expected a checkpoint or no file yet; .*results\.checkpoint"
    ):
        Checkpoint(path, function="work")
    assert contents(path.parent) == before


def test_a_database_in_use_by_others_is_left_as_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (a)")
        before = contents(path.parent)
        assert len(before) == 3
        with pytest.raises(ConfigurationError, match="no file yet"):
            Checkpoint(path, function="work")
        assert contents(path.parent) == before
        database.execute("INSERT INTO t VALUES (1)")


def test_a_later_format_is_refused_and_left_as_it_is(path: Path) -> None:
    Checkpoint(path, function="work").close()
    _database(path, "PRAGMA user_version=2")
    before = contents(path.parent)
    with pytest.raises(ConfigurationError, match="format 2; this headgate knows format 1"):
        Checkpoint(path, function="work")
    assert contents(path.parent) == before


def test_an_empty_file_is_as_good_as_none(path: Path) -> None:
    path.touch()
    with Checkpoint(path, function="work") as checkpoint:
        keep(checkpoint, "a", 5)
    with Checkpoint(path, function="work") as checkpoint:
        assert value_of(checkpoint, "a") == 5


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"directory that exists; there is no .*nowhere"):
        Checkpoint(tmp_path / "nowhere" / "c", function="work")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected the path of a file"):
        Checkpoint(tmp_path, function="work")


@pytest.mark.parametrize("odd", [":memory:", "file:x?mode=memory", "a b%20c#d?e", "ä\udcff"])
def test_any_file_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    monkeypatch.chdir(tmp_path)
    with Checkpoint(odd, function="work") as checkpoint:
        keep(checkpoint, "a", 5)
    assert [file.name for file in tmp_path.iterdir()] == [odd]


def test_the_name_stands_for_the_file_that_it_stood_for_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Checkpoint("c", function="work") as checkpoint:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        keep(checkpoint, "a", 5)
    assert not list((tmp_path / "elsewhere").iterdir())


# Open and closed


def test_one_file_is_left_behind_and_is_complete(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        for number in range(100):
            keep(checkpoint, name(number), number)
    assert list(path.parent.iterdir()) == [path]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM results").fetchone() == (100,)


def test_closed_is_closed(path: Path) -> None:
    checkpoint = Checkpoint(path, function="work")
    keep(checkpoint, "a", 5)
    assert repr(checkpoint) == f"<Checkpoint {str(path)!r} of work, JSON, 1 results>"
    checkpoint.close()
    checkpoint.close()
    assert repr(checkpoint) == f"<Checkpoint {str(path)!r} of work, JSON, closed>"
    for use in (
        lambda: checkpoint.find("a", 0),
        lambda: keep(checkpoint, "b", 5),
        lambda: checkpoint.record("a", 0, "x", 1),
        checkpoint.count,
        checkpoint.sync,
    ):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_a_second_one_in_this_process_is_refused_until_the_first_is_closed(path: Path) -> None:
    first = Checkpoint(path, function="work")
    for function in ("work", "play"):
        with pytest.raises(ConfigurationError, match=r"results\.checkpoint is open in another process or by"):
            Checkpoint(path, function=function)
    keep(first, "a", 5)
    first.close()
    with Checkpoint(path, function="work") as second:
        assert value_of(second, "a") == 5


def test_the_disk_is_waited_for_by_facts_and_once_a_second(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    said: list[str] = []

    def waits(act: Callable[[], object]) -> bool:
        said.clear()
        act()
        assert len([text for text in said if text.startswith("INSERT")]) == 1
        full = "PRAGMA synchronous=FULL" in said
        assert not full or said[-1] == "PRAGMA synchronous=NORMAL"
        return full

    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint._connection is not None
        checkpoint._connection.set_trace_callback(said.append)
        assert not waits(lambda: keep(checkpoint, "a", 1))
        now[0] += 0.9
        assert not waits(lambda: keep(checkpoint, "b", 1))
        assert waits(lambda: checkpoint.record("a", 0, "x", 1))
        assert waits(lambda: checkpoint.save_state("x", 1, at_once=True))
        now[0] += 0.2
        assert not waits(lambda: keep(checkpoint, "c", 1))
        now[0] += 1.0
        assert waits(lambda: keep(checkpoint, "d", 1))
        assert not waits(lambda: checkpoint.save_state("x", 1))


def test_sync_brings_all_into_the_file_itself(path: Path) -> None:
    log = path.with_name(path.name + "-wal")
    with Checkpoint(path, function="work") as checkpoint:
        keep(checkpoint, "a", 5)
        assert log.stat().st_size > 0
        checkpoint.sync()
        assert log.stat().st_size == 0
        assert value_of(checkpoint, "a") == 5


# Other processes


class Child:
    """A Python process that runs a script and tells of its progress line by line."""

    def __init__(self, script: str, *args: str | Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            assert line.endswith(b"\n")
            yield line.decode().rstrip("\n")

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Its exit code; all that it said has been read."""
        return self._process.wait()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


PRELUDE = """
import errno, os, random, resource, signal, sys, time
from headgate.runner.checkpoint import Checkpoint
path, *args = sys.argv[1:]
TIMES = {"attempts": 1, "queued_at": 1.25, "started_at": 2.5, "finished_at": 3.75}
def say(text):
    os.write(1, f"{text}\\n".encode())
def keep(checkpoint, number):
    checkpoint.keep(f"{number:032x}", 0, {"n": number, "text": "x" * (number % 977)}, **TIMES)
"""


def expected_value(number: int) -> Any:
    return {"n": number, "text": "x" * (number % 977)}


HOLDER = """
checkpoint = Checkpoint(path, function="work")
say("open")
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_has_died(path: Path) -> None:
    with Child(HOLDER, path) as child:
        assert next(child.lines()) == "open"
        with pytest.raises(ConfigurationError, match=r"results\.checkpoint is open in another process"):
            Checkpoint(path, function="work")
        child.kill()
        assert child.wait() == -signal.SIGKILL
        with Checkpoint(path, function="work") as checkpoint:
            assert checkpoint.count() == 0


KEEPER = """
checkpoint = Checkpoint(path, function="work")
number = int(args[0])
while True:
    if number % 50 == 0:
        checkpoint.record(f"{number:032x}", 0, "operation", number)
    keep(checkpoint, number)
    say(number)
    number += 1
"""


def test_kills_lose_nothing_that_was_reported_as_kept(path: Path) -> None:
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    print(f"seed {seed}")
    chance = random.Random(seed)
    total = 0
    for _ in range(6):
        with Child(KEEPER, path, str(total)) as child:
            lines = child.lines()
            for _ in range(chance.randrange(1, 3000)):
                reported = next(lines)
            child.kill()
            for reported in lines:  # noqa: B007  # what it said before it died counts too
                pass
            assert child.wait() == -signal.SIGKILL
        before, total = total, int(reported) + 1
        with Checkpoint(path, function="work") as checkpoint:
            assert total <= checkpoint.count() <= total + 1
            total = checkpoint.count()
            for number in range(before, total):
                assert value_of(checkpoint, name(number)) == expected_value(number)
            for number in range(0, total, 50):
                assert checkpoint.recorded(name(number), 0) == {"operation": number}
    with Checkpoint(path, function="work") as checkpoint:
        assert all(value_of(checkpoint, name(number)) == expected_value(number) for number in range(total))
        assert checkpoint.find(name(total), 0) is None


NEWBORN = """
chance = random.Random(int(args[0]))
for round in range(60):
    child = os.fork()
    if child == 0:
        checkpoint = Checkpoint(path, function="work")
        keep(checkpoint, 1)
        signal.pause()
    end = time.perf_counter() + chance.uniform(0, 0.01)
    while time.perf_counter() < end:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint.count() <= 1
    os.unlink(path)
    assert os.listdir(os.path.dirname(path)) == [], os.listdir(os.path.dirname(path))
say("done")
"""


def test_a_kill_while_the_file_is_made_leaves_what_can_be_opened(path: Path) -> None:
    with Child(NEWBORN, path, str(random.randrange(10**6))) as child:
        assert list(child.lines()) == ["done"]
        assert child.wait() == 0


FORKING = """
checkpoint = Checkpoint(path, function="work")
keep(checkpoint, 0)
child = os.fork()
if child == 0:
    for use in (lambda: keep(checkpoint, 1), checkpoint.count):
        try:
            use()
        except ValueError as error:
            say(f"refused: {error}")
    checkpoint.close()
    sys.exit(0)  # with all that an interpreter does at its end
say(os.waitpid(child, 0)[1])
keep(checkpoint, 2)
say("kept")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_forks_off_leaves_the_file_alone(path: Path) -> None:
    with Child(FORKING, path) as child:
        *refused, code, kept = child.lines()
        assert child.wait() == -signal.SIGKILL
    assert [text[:8] for text in refused] == ["refused:"] * 2
    assert "belongs to the process that forked" in refused[0]
    assert (code, kept) == ("0", "kept")
    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint.count() == 2
        assert [value_of(checkpoint, name(number)) for number in (0, 2)] == list(map(expected_value, (0, 2)))


def test_a_log_without_its_file_is_not_taken_for_results(path: Path) -> None:
    with Child(
        "checkpoint = Checkpoint(path, function='work')\nkeep(checkpoint, 0)\nsay('kept')\nsignal.pause()",
        path,
    ) as child:
        assert next(child.lines()) == "kept"
        child.kill()
        child.wait()
    path.unlink()
    assert list(path.parent.iterdir()) == [path.with_name(path.name + "-wal")]
    with Checkpoint(path, function="play") as checkpoint:
        assert checkpoint.count() == 0


# A disk that fails

FULL = """
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
def refused(number):
    try:
        keep(checkpoint, number)
    except OSError as error:
        assert error.filename == path and error.errno == errno.EIO, error
        return True
    return False
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
checkpoint = Checkpoint(path, function="work")
limit(int(args[0]))
number = 0
while not refused(number):
    number += 1
assert refused(number)
assert checkpoint.count() == number
assert all(checkpoint.find(f"{n:032x}", 0).value["n"] == n for n in range(number))
if args[1] == "again":
    limit(hard)
    assert not refused(number)
    number += 1
    checkpoint.close()
elif args[1] == "close":
    limit(8192)
    try:
        checkpoint.close()
    except OSError as error:
        assert error.filename == path, error
        say("close told")
    checkpoint.close()
say(number)
"""


@pytest.mark.parametrize("size", [50_000, 500_000])
@pytest.mark.parametrize("then", ["again", "close", "die"])
def test_a_full_disk_is_told_and_costs_nothing_that_was_kept(
    path: Path, size: int, then: Literal["again", "close", "die"]
) -> None:
    with Child(FULL, path, str(size), then) as child:
        *more, total = child.lines()
        assert child.wait() == 0
    assert more == (["close told"] if then == "close" else [])
    assert int(total) > 5
    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint.count() == int(total)
        for number in range(int(total)):
            assert value_of(checkpoint, name(number)) == expected_value(number)
        keep(checkpoint, name(10**6), "room again")
        assert value_of(checkpoint, name(10**6)) == "room again"


def test_a_disk_that_says_it_is_full_is_quoted(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        assert checkpoint._connection is not None
        checkpoint._connection.execute("PRAGMA max_page_count=12")
        with pytest.raises(OSError, match="full") as caught:
            keep(checkpoint, "a", "x" * 100_000)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert isinstance(caught.value.__cause__, sqlite3.Error)
        keep(checkpoint, "a", "short")
        assert value_of(checkpoint, "a") == "short"
        with pytest.raises(OSError, match="full"):
            checkpoint.record("a", 0, "x", "x" * 100_000)
        checkpoint.record("a", 0, "x", "short")
        assert checkpoint.recorded("a", 0) == {"x": "short"}
        assert checkpoint._connection.execute("PRAGMA synchronous").fetchone() == (1,)


def test_a_damaged_file_is_an_error_of_the_disk_not_a_result(path: Path) -> None:
    with Checkpoint(path, function="work") as checkpoint:
        for number in range(500):
            keep(checkpoint, name(number), expected_value(number))
    data = bytearray(path.read_bytes())
    data[8 * 4096 :] = b"\xff" * len(data[8 * 4096 :])
    path.write_bytes(data)
    with Checkpoint(path, function="work") as checkpoint:
        with pytest.raises(OSError, match="malformed") as caught:
            [checkpoint.find(name(number), 0) for number in range(500)]
        assert caught.value.filename == str(path)
