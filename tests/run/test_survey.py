"""One look at the whole input."""

import tracemalloc
from pathlib import Path

import pytest

from headgate.errors import ConfigurationError
from headgate.run.rows import RowReader
from headgate.run.survey import survey
from tests.run.running import line, write_lines
from tests.run.test_rows import settings


def reader(id_column: str | None = None) -> RowReader:
    return RowReader(settings(id_column=id_column))


def short(path: Path, count: int, last: str) -> Path:
    with path.open("w") as file:
        for number in range(count - 1):
            file.write(f'{{"custom_id": "id-{number}", "url": "/x"}}\n')
        file.write(last)
    return path


def test_it_counts_lines_and_bytes(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in", [line("a"), "", "  ", line("b"), "nonsense"])
    seen = survey(source, reader())
    assert (seen.lines, seen.size) == (3, source.stat().st_size)


@pytest.mark.slow
def test_twins_at_both_ends_of_300_000_lines_are_found_in_little_memory(tmp_path: Path) -> None:
    source = short(tmp_path / "in", 300_000, '{"url": "/x", "custom_id": "id-0"}')
    tracemalloc.start()
    with pytest.raises(ConfigurationError, match=r"'id-0' stands on lines 1 and 300000 of"):
        survey(source, reader())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    source = short(tmp_path / "in", 120_000, '{"custom_id": "id-77777", "url": "/x"}')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = Path("/proc/self/fd")
    already = len(list(files.iterdir())) if files.is_dir() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (already + 40, hard))
    try:
        with pytest.raises(ConfigurationError, match="lines 77778 and 120000"):
            survey(source, reader())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_twins_count_by_the_column_that_names_rows(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in", [line("a", key=1), line("a", key=2), line("b", key="1")])
    with pytest.raises(ConfigurationError, match="'1' stands on lines 1 and 3"):
        survey(source, reader("key"))
    with pytest.raises(ConfigurationError, match="'a' stands on lines 1 and 2"):
        survey(source, reader())


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (b"a\nb\n", b"a\nb\nc\n", True),
        (b"a\nb", b"a\nb\nc", True),
        (b"a\nb", b"a\nb\r\nc", True),
        (b"a\nb", b"a\nb", True),
        (b"a\nb", b"a\nbc", False),
        (b"a\nb\n", b"a\nB\nc\n", False),
        (b"a\nb\n", b"a\n", False),
        (b"", b"a\n", True),
    ],
)
def test_appended_lines_leave_the_beginning_what_it_was(
    tmp_path: Path, before: bytes, after: bytes, same: bool
) -> None:
    source = tmp_path / "in"
    source.write_bytes(before)
    first = survey(source, reader())
    source.write_bytes(after)
    again = survey(source, reader(), first.size)
    assert (again.prefix == first.digest) is same
