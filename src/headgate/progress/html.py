"""Small pieces of HTML for notebooks: cards, bars and tables.

Styles are inline and take the page's own text colour, so that they read in light and dark notebooks alike;
there is no script. Whatever the values are, they come out as short, escaped text. It knows nothing of work.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from html import escape

MOST_CHARACTERS = 80
_MOST_OF_A_LINE = 500

_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""Control characters, halves of characters (UTF-8 has no place for them), and what turns the text around."""
_OUTER = "color:inherit;font-family:inherit;font-size:13px;line-height:1.5;margin:2px 0"
_LINE = "1px solid rgba(128,128,128,0.35)"
"""Grey in between: visible on white and on black."""
# Front ends have styles of their own for tables, so everything that they might set is said.
_TABLE = "border-collapse:collapse;border:none;margin:2px 0;background:none;color:inherit;font-size:13px"
_ROW = "background:none;border:none"
_CELL = "padding:1px 12px 1px 0;text-align:left;vertical-align:top;border:none;background:none;color:inherit"
_STRIPES = "repeating-linear-gradient(45deg,currentColor 0,currentColor 4px,transparent 4px,transparent 8px)"
_ALL = "position:absolute;top:0;bottom:0;left:0"


def short(value: object, most: int = MOST_CHARACTERS) -> str:
    """Any value as one line of at most ``most`` characters; of large values, only the start is looked at."""
    try:
        text = _text(value, most)
    except Exception:  # its repr is somebody else's code
        text = f"<{type(value).__name__}>"
    text = _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def card(title: str, facts: Sequence[tuple[str, str]], bars: Sequence[tuple[str, float, str]]) -> str:
    """A title, bars below it, and facts below them.

    Args:
        title: what it is about.
        facts: (name, value).
        bars: (name, share from 0 to 1, text behind the bar); a share of NaN is one that nobody knows.
    """
    parts = [f'<div style="font-weight:600">{_isolated(title)}</div>']
    if bars:
        cells = "".join(_bar(name, share, text) for name, share, text in bars)
        parts.append(f'<table role="presentation" style="{_TABLE}"><tbody>{cells}</tbody></table>')
    if facts:
        words = " ".join(
            f'<span style="margin-right:14px"><span style="opacity:0.7">{_isolated(name)}</span> '
            f'<span style="font-weight:600">{_isolated(value)}</span></span>'
            for name, value in facts
        )
        parts.append(f"<div>{words}</div>")
    return f'<div style="{_OUTER};overflow-x:auto">{"".join(parts)}</div>'


def lines(texts: Iterable[str]) -> str:
    """Lines of text, one below the other; of each, the first 500 characters."""
    found = "".join(f"<div>{_isolated(text, _MOST_OF_A_LINE)}</div>" for text in texts)
    return f'<div style="{_OUTER};overflow-wrap:anywhere">{found}</div>'


def table(rows: Sequence[Mapping[str, object]], *, caption: str, most: int = 20) -> str:
    """The first ``most`` rows; how many more there are is said below them.

    Columns are the keys of these rows, in the order in which they come up. Values may be anything; of each,
    80 characters are shown.
    """
    shown = rows[: max(most, 0)]
    columns = list(dict.fromkeys(key for row in shown for key in row))
    above = f'<div style="font-weight:600">{_isolated(caption)}</div>'
    below = ""
    if len(rows) > len(shown):
        below = f'<div style="opacity:0.7">… {len(rows) - len(shown):,} more</div>'
    if not columns:
        return f'<div style="{_OUTER}">{above}{below}</div>'
    head = "".join(
        f'<th style="{_CELL};border-bottom:{_LINE};font-weight:600">{_isolated(column)}</th>'
        for column in columns
    )
    body = "".join(f'<tr style="{_ROW}">{_row(row, columns)}</tr>' for row in shown)
    return (
        f'<div style="{_OUTER};overflow-x:auto">{above}'
        f'<table style="{_TABLE}">'
        f'<thead><tr style="{_ROW}">{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>'
    )


def _row(row: Mapping[str, object], columns: Sequence[str]) -> str:
    style = f"{_CELL};max-width:36em;overflow-wrap:anywhere"
    return "".join(
        f'<td style="{style}">{_isolated(row[column]) if column in row else ""}</td>' for column in columns
    )


def _bar(name: str, share: float, text: str) -> str:
    """A row of three cells."""
    if math.isnan(share):
        role = 'role="progressbar"'
        fill = f"{_ALL};right:0;background:{_STRIPES};opacity:0.35"
    else:
        percent = 100 * min(max(share, 0.0), 1.0)
        role = f'role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0f}"'
        fill = f"{_ALL};width:{percent:.1f}%;background:currentColor;opacity:0.6"
    ground = f"{_ALL};right:0;background:currentColor;opacity:0.15"
    frame = "position:relative;width:200px;height:8px;border-radius:4px;overflow:hidden"
    cell = f"{_CELL};vertical-align:middle;white-space:nowrap"
    return (
        f'<tr style="{_ROW}">'
        f'<td style="{cell};max-width:18em;overflow:hidden;text-overflow:ellipsis">{_isolated(name)}</td>'
        f'<td style="{cell}"><div {role} style="{frame}">'
        f'<div style="{ground}"></div><div style="{fill}"></div></div></td>'
        f'<td style="{cell}">{_isolated(text)}</td></tr>'
    )


def _isolated(value: object, most: int = MOST_CHARACTERS) -> str:
    """Escaped; text from right to left keeps to its own place."""
    return f'<bdi dir="auto">{escape(short(value, most))}</bdi>'


def _text(value: object, most: int) -> str:
    enough = 4 * most  # spaces are still to go
    if isinstance(value, str):
        return value[:enough]
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}".removesuffix(": ")[:enough]
    if isinstance(value, date | time | timedelta):
        return str(value)
    return _sketch.repr(value)


class _Sketch(reprlib.Repr):
    """Looks only at the beginning of lists and mappings, and not far into them."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxlong = MOST_CHARACTERS

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[:MOST_CHARACTERS])

    repr_bytearray = repr_bytes

    def repr_instance(self, value: object, level: int) -> str:
        try:
            return repr(value)
        except Exception:
            return f"<{type(value).__name__}>"


_sketch = _Sketch()
