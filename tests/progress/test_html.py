"""HTML for notebooks: whatever is in it, it is text; and it reads in light and in dark."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import overload

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.progress.html import card, lines, short, table

SCRIPT = '<script>alert(\'"&")</script>'


class Page(HTMLParser):
    """Tags, styles and texts; fails on a tag that is not closed in its turn."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def styles(self) -> str:
        return ";".join(value or "" for name, value in self.attributes if name == "style")


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Rows(Sequence[Mapping[str, object]]):
    """A million rows that are made as they are looked at."""

    def __init__(self, numbers: range = range(1_000_000)) -> None:
        self.numbers = numbers
        self.made = 0

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, key: int) -> Mapping[str, object]: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Mapping[str, object]]: ...
    def __getitem__(self, key: int | slice) -> Mapping[str, object] | Sequence[Mapping[str, object]]:
        if isinstance(key, slice):
            return [self[number] for number in self.numbers[key]]
        self.made += 1
        return {"row": self.numbers[key]}


def endless() -> list[object]:
    found: list[object] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("two\n\t lines", "two lines"),
        ("", ""),
        (None, "None"),
        (True, "True"),
        (0.1, "0.1"),
        (math.nan, "nan"),
        (b"\x00<b>", "b'\\x00<b>'"),
        (bytearray(b"ab"), "bytearray(b'ab')"),
        ({"a": [1, {"b": None}]}, "{'a': [1, {'b': None}]}"),
        (ValueError("bad value"), "ValueError: bad value"),
        (ValueError(), "ValueError"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02 03:04:05+00:00"),
        ("a\x1b[31mb\x00", "a�[31mb�"),
        ("half \ud83d", "half �"),
        ("a\u202eb", "a�b"),
        (Unspeakable(), "<Unspeakable>"),
        (SilentError(), "<SilentError>"),
        ([Unspeakable(), b"\x00", 1], "[<Unspeakable>, b'\\x00', 1]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_one_short_line(value: object, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    "value",
    ["x" * 99, b"x" * 99, ["x" * 99] * 99, dict.fromkeys(range(99), "x" * 99), ValueError("x" * 99)],
    ids=lambda value: type(value).__name__,
)
def test_long_values_end_at_80_characters(value: object) -> None:
    assert len(short(value)) == 80
    assert short(value).endswith("…")


def test_an_endless_number_is_short() -> None:
    assert short(10**5000).startswith("<int")


def test_a_value_that_contains_itself_ends() -> None:
    assert len(short(endless())) <= 80


@given(st.text() | st.binary() | st.recursive(st.none() | st.text(), st.lists))
def test_no_value_can_leave_its_cell(value: object) -> None:
    page = Page(table([{"value": value}], caption="all"))
    assert set(page.tags) == {"div", "table", "thead", "tbody", "tr", "th", "td", "bdi"}
    assert page.tags.count("td") == 1
    assert "".join(page.texts) == "allvalue" + short(value)


@given(st.text(), st.text(), st.floats(allow_nan=True, allow_infinity=True))
def test_no_text_can_leave_its_card(name: str, text: str, share: float) -> None:
    page = Page(card(text, [(name, text)], [(name, share, text)]))
    assert set(page.tags) == {"div", "table", "tbody", "tr", "td", "span", "bdi"}
    assert {name for name, _ in page.attributes} <= {
        *("style", "role", "dir", "aria-valuemin", "aria-valuemax", "aria-valuenow")
    }


def test_a_script_is_text_wherever_it_stands() -> None:
    for source in (
        table([{SCRIPT: SCRIPT}], caption=SCRIPT),
        card(SCRIPT, [(SCRIPT, SCRIPT)], [(SCRIPT, 0.5, SCRIPT)]),
        lines([SCRIPT]),
    ):
        assert "<script" not in source
        assert SCRIPT in Page(source).texts


def test_text_from_right_to_left_is_isolated() -> None:
    assert '<bdi dir="auto">שלום (1)</bdi>' in table([{"a": "שלום (1)"}], caption="")


def test_more_rows_than_shown_are_counted() -> None:
    source = table([{"row": f"row {number}"} for number in range(1025)], caption="Calls")
    page = Page(source)
    assert page.tags.count("tr") == 1 + 20
    assert "row 19" in page.texts
    assert "row 20" not in page.texts
    assert "… 1,005 more" in page.texts


def test_as_many_rows_as_shown_need_no_count() -> None:
    assert "more" not in table([{"a": 1}, {"a": 2}], caption="", most=2)
    assert "… 1 more" in table([{"a": 1}, {"a": 2}], caption="", most=1)


def test_only_the_rows_shown_are_looked_at() -> None:
    rows = Rows()
    assert "… 999,997 more" in table(rows, caption="", most=3)
    assert rows.made == 3


def test_rows_may_differ_in_their_columns() -> None:
    page = Page(table([{"a": 1, "b": 2}, {"c": 3, "a": 4}], caption="mixed"))
    assert page.texts == ["mixed", "a", "b", "c", "1", "2", "4", "3"]
    assert page.tags.count("td") == 6


@pytest.mark.parametrize("rows", [[], [{}], [{}, {}]])
def test_nothing_to_show_is_a_caption(rows: list[dict[str, object]]) -> None:
    page = Page(table(rows, caption="Failed calls"))
    assert page.texts == ["Failed calls"]
    assert "table" not in page.tags


@pytest.mark.parametrize(
    ("share", "width"), [(0.333, "33.3%"), (0, "0.0%"), (1.7, "100.0%"), (-1, "0.0%"), (math.inf, "100.0%")]
)
def test_a_bar_is_as_long_as_its_share(share: float, width: str) -> None:
    assert f"width:{width}" in Page(card("", [], [("all", share, "")])).styles


def test_a_share_that_nobody_knows_is_striped() -> None:
    page = Page(card("", [], [("all", math.nan, "")]))
    assert "repeating-linear-gradient" in page.styles
    assert "aria-valuenow" not in dict(page.attributes)


def test_a_card_says_its_title_bars_and_facts() -> None:
    page = Page(card("Runner", [("waiting", "12")], [("done", 0.5, "1 of 2")]))
    assert [text for text in page.texts if text.strip()] == ["Runner", "done", "1 of 2", "waiting", "12"]


def test_colours_are_those_of_the_page() -> None:
    source = card("a", [("b", "c")], [("d", 0.5, "e"), ("f", math.nan, "g")]) + table([{"a": 1}], caption="a")
    colours = re.findall(r"(?<![-\w])color:([^;]+)", Page(source).styles)
    assert set(colours) == {"inherit"}
    assert "<style" not in source


def test_long_lines_keep_more_than_a_cell_does() -> None:
    assert "x" * 300 in lines(["x" * 300])
    assert len(lines(["x" * 10_000])) < 1000
