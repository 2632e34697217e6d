"""Memory does not grow with the input; what a call costs is printed, for whoever wants to compare."""

from pathlib import Path

import pytest

from benchmarks.million import measure

MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fifty_thousand_lines_take_no_more_memory_than_five_thousand(tmp_path: Path) -> None:
    few = measure(tmp_path / "few", 5_000)
    many = measure(tmp_path / "many", 50_000)
    print(f"\n{few}\n{many}")
    assert many.peak_bytes - few.peak_bytes < 5 * MIB
    assert many.peak_bytes < 200 * MIB
