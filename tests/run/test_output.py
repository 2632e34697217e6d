"""Result lines, each exactly once."""

import json
import random
from pathlib import Path

import pytest

from headgate.errors import ConfigurationError
from headgate.run.output import Appender, Ordered, number_of, response_json, result_line


def result(number: int, size: int = 0) -> bytes:
    return result_line(number, f"id-{number}", response_json(200, None, b'"%s"' % (b"x" * size)), None)


def numbers(path: Path) -> list[int | None]:
    return [number_of(line) for line in path.read_bytes().splitlines(keepends=True)]


def test_a_line_has_the_form_of_batch_files() -> None:
    item = json.loads(result_line(7, 'a"\n', response_json(201, "r-1", b'{"x":1}'), None))
    assert item == {
        "id": "batch_req_000000000007",
        "custom_id": 'a"\n',
        "response": {"status_code": 201, "request_id": "r-1", "body": {"x": 1}},
        "error": None,
    }
    failed = json.loads(result_line(7, None, None, {"code": "c", "message": "m"}))
    assert (failed["response"], failed["error"]) == (None, {"code": "c", "message": "m"})


def test_the_number_is_read_back_and_nothing_else_taken_for_one() -> None:
    assert number_of(result(10**12 + 5)) == 10**12 + 5
    assert number_of(b'{"id": "batch_req_x"') is None
    assert number_of(b'{"custom_id": "batch_req_1"') is None


@pytest.mark.parametrize("size", [0, 100, 3 << 20])
@pytest.mark.parametrize("left", [1, 30])
def test_half_a_line_at_the_end_is_cut_off(tmp_path: Path, size: int, left: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(result(0) + result(1, size) + result(2, size)[:-left])
    file = Appender(path, fresh=False)
    assert file.size == path.stat().st_size == len(result(0)) + len(result(1, size))
    file.add(result(3))
    file.close()
    assert numbers(path) == [0, 1, 3]


def test_half_a_first_line_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b'{"id": "batch_r')
    file = Appender(path, fresh=False)
    file.close()
    assert path.read_bytes() == b""


def test_a_fresh_one_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(result(0))
    file = Appender(path, fresh=True)
    file.close()
    assert path.read_bytes() == b""


def test_nobody_else_writes_to_it_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(result(0))
    first = Appender(path, fresh=False)
    with pytest.raises(ConfigurationError, match="another run"):
        Appender(path, fresh=True)
    assert numbers(path) == [0]
    first.close()
    Appender(path, fresh=False).close()


@pytest.mark.parametrize("seed", range(5))
def test_ordered_puts_any_order_in_order_over_any_number_of_starts(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    todo = list(range(200))
    chance.shuffle(todo)
    failing = set(todo[:20])
    out, spill = tmp_path / "out", tmp_path / "spill"
    fresh = True
    while todo:
        ordered = Ordered(Appender(out, fresh=True), spill, fresh=fresh)
        fresh = False
        for _ in range(chance.randrange(1, 60)):
            if not todo:
                break
            number = todo.pop()
            if number in failing:
                failing.discard(number)
                todo.insert(0, number)
                ordered.skip(number)
            else:
                ordered.add(result(number, chance.randrange(50)))
        if chance.random() < 0.5:
            ordered.close()
            found = [n for n in numbers(out) if n is not None]
            assert found == sorted(found)
        else:  # killed: only what the system keeps, and half a line
            for file in (ordered._spill, ordered._output):
                file.close()
            with spill.open("ab") as torn:
                torn.write(result(999)[:17])
    ordered = Ordered(Appender(out, fresh=True), spill, fresh=False)
    ordered.close()
    assert numbers(out) == list(range(200))
