from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.durations import go_duration_us, seconds_text


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("17ms", 17_000),
        ("6m0s", 360_000_000),
        ("1h2m3.5s", 3_723_500_000),
        ("120ms", 120_000),
        ("1.5s", 1_500_000),
        (".5s", 500_000),
        ("1.s", 1_000_000),
        ("6us", 6),
        ("6µs", 6),
        ("6μs", 6),
        ("1500ns", 2),
        ("2d", 172_800_000_000),
        ("0s", 0),
        ("", None),
        ("6", None),
        ("s", None),
        ("-6s", None),
        ("6 s", None),
        ("6s ", None),
        ("x6s", None),
        ("6s!", None),
        ("6x1s", None),
        ("1y", None),
    ],
)
def test_go_durations(text: str, us: int | None) -> None:
    assert go_duration_us(text) == us


@given(st.text())
def test_no_text_raises(text: str) -> None:
    found = go_duration_us(text)
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.84, "0.8 s"),
        (9.94, "9.9 s"),
        (9.95, "10 s"),
        (45.4, "45 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86_399.9, "1 d 0 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_lengths_for_people(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text
