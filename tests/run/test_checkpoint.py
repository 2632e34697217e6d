"""What is kept beside the output."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.errors import ConfigurationError
from headgate.run.checkpoint import MAGIC, Bitmap, Checkpoint, recipe
from tests.run.test_rows import settings


@given(st.sets(st.integers(0, 100_000), max_size=50))
def test_a_bitmap_is_the_set_of_what_was_added(numbers: set[int]) -> None:
    bitmap = Bitmap()
    for number in [*numbers, *numbers]:
        bitmap.add(number)
    again = Bitmap(bytes(bitmap))
    assert bitmap.count == again.count == len(numbers)
    assert {n for n in range(100_001) if n in again} == numbers
    assert 10**12 not in again


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "c"
    checkpoint = Checkpoint("salt", "recipe", 5, "digest", 7, {"limits": ["x"], "state": [[1]]})
    checkpoint.done.add(12_345)
    checkpoint.write(path)
    again = Checkpoint.read(path)
    assert again is not None
    assert again.encode() == checkpoint.encode()
    assert 12_345 in again.done
    assert list(tmp_path.iterdir()) == [path]


def test_none_is_none(tmp_path: Path) -> None:
    assert Checkpoint.read(tmp_path / "c") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"something else",
        MAGIC,
        MAGIC + b"\xff" * 8,
        MAGIC + (4).to_bytes(8, "little") + b"null",
        MAGIC + (2).to_bytes(8, "little") + b"{}",
        MAGIC + (11).to_bytes(8, "little") + b'{"other":1}',
        MAGIC + (20).to_bytes(8, "little") + b'{"salt"',
    ],
)
def test_a_damaged_one_is_told_with_the_way_out(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "c"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match="--fresh starts over"):
        Checkpoint.read(path)


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    before = Checkpoint("salt", "recipe")
    before.write(path)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=str(path)):
        Checkpoint("other", "recipe").write(path)
    assert path.read_bytes() == before.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_the_recipe_knows_what_is_in_a_template_file(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_text("one {x}")
    first = recipe(settings(template=str(file)))
    file.write_text("two {x}")
    assert recipe(settings(template=str(file))) != first
    assert recipe(settings(template="x" * 5000)) == recipe(settings(template="x" * 5000, max_attempts=2))
    assert recipe(settings(model="a")) != recipe(settings(model="b"))
