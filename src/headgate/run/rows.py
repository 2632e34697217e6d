"""From lines of input to requests: OpenAI batch lines, or rows and a template.

A line that makes no request raises :class:`BadLine`; the run tells its number and goes on with the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from headgate.errors import ConfigurationError
from headgate.run.settings import CHAT, Settings

LONGEST_LINE = 256 << 20
"""Bytes; a longer line is no request but an accident."""

_PLACEHOLDER = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}|\{([\w.-]+)\}")
_ID_FIRST = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*"([^"\\]*)"')
_SAFE_IN_URL = "".join(map(chr, range(0x21, 0x7F)))
_MOST_TOKENS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class BadLine(ValueError):
    """A line that makes no request; the message says what was expected and what came.

    ``custom_id`` is its id if it has one.
    """

    def __init__(self, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.custom_id = custom_id


class Row(NamedTuple):
    """One request to send.

    ``number`` counts input lines from 0; ``max_tokens`` is None where the request names none.
    """

    number: int
    custom_id: str
    method: str
    path: str
    body: bytes | None
    model: str
    max_tokens: int | None
    text_bytes: int


class RowReader:
    """Makes rows of lines, by the settings of a run.

    Raises:
        ConfigurationError: a template that cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._origin = urlsplit(settings.base_url)
        self._template = None if settings.template is None else _read_template(settings.template, settings)

    def custom_id(self, number: int, line: bytes) -> str:
        """The id of a line, without making its request.

        Raises:
            BadLine: it has none.
        """
        if self._template is None and self._settings.id_column is None:
            quick = _ID_FIRST.match(line)
            if quick:
                return quick[1].decode("utf-8", "replace")
        return self._id_of(number, _parse(line))

    def row(self, number: int, line: bytes) -> Row:
        """The request of a line.

        Raises:
            BadLine: it makes none.
        """
        data = _parse(line)
        custom_id = self._id_of(number, data)
        try:
            return self._row(number, custom_id, data)
        except BadLine as error:
            error.custom_id = custom_id
            raise
        except (ValueError, RecursionError) as error:  # a URL, or text, that nobody could send
            raise BadLine(f"expected a request that can be sent; {error}", custom_id) from None

    def _row(self, number: int, custom_id: str, data: dict[str, Any]) -> Row:
        request = data if self._template is None else self._template(data)
        method = request.get("method", "POST")
        if not isinstance(method, str) or not (method.isascii() and method.isalpha()):
            raise BadLine(f"expected an HTTP method; got {method!r}")
        url = request.get("url", CHAT if self._template else None)
        if not isinstance(url, str) or not url:
            raise BadLine('expected "url", such as "/v1/chat/completions"; a row of data needs --template')
        body = request.get("body")
        model, max_tokens = "", None
        if isinstance(body, dict):
            body, model, max_tokens = self._complete(body)
        encoded = None if body is None else _encode(body)
        return Row(
            number,
            custom_id,
            method.upper(),
            self._path(url),
            encoded,
            model,
            max_tokens,
            len(encoded) if encoded else 0,
        )

    def _complete(self, body: dict[str, Any]) -> tuple[dict[str, Any], str, int | None]:
        """Fill in what the options say and the body does not."""
        settings = self._settings
        if body.get("stream"):
            raise BadLine('expected no "stream": a result is one line')
        if settings.model is not None and "model" not in body:
            body = {"model": settings.model, **body}
        found = next((body[name] for name in _MOST_TOKENS if name in body), None)
        if found is None and settings.max_tokens is not None:
            found = settings.max_tokens
            body = {**body, "max_tokens": found}
        if found is not None and (type(found) is not int or found < 0):
            raise BadLine(f"expected a whole number of tokens; got {found!r}")
        return body, str(body.get("model", "")), found

    def _path(self, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme or parts.netloc:
            if (parts.scheme, parts.netloc) != (self._origin.scheme, self._origin.netloc):
                raise BadLine(f"expected a path or a URL below {self._settings.base_url}; got {url!r}")
            url = url[len(parts.scheme) + 3 + len(parts.netloc) :] or "/"
        url = quote(
            url, safe=_SAFE_IN_URL
        )  # what is no part of a URL at all: spaces, line breaks, letters beyond ASCII
        return url if url.startswith("/") else f"/{url}"

    def _id_of(self, number: int, data: dict[str, Any]) -> str:
        column = self._settings.id_column
        if column is not None:
            if column not in data:
                raise BadLine(f"expected the id in {column!r}; the line has {_names(data)}")
            found = data[column]
        else:
            found = data.get("custom_id", data.get("id") if self._template else None)
        if found is None:
            if self._template is None:
                raise BadLine('expected "custom_id"; a row of data needs --template')
            return f"row-{number + 1}"
        if isinstance(found, bool) or not isinstance(found, str | int):
            raise BadLine(f"expected an id that is text or a whole number; got {found!r:.80}")
        return str(found)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        data = read_json(line)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"expected a JSON object; {error}") from None
    if not isinstance(data, dict):
        raise BadLine(f"expected a JSON object; got {type(data).__name__}")
    return data


def read_json(data: bytes) -> Any:
    """Parse JSON in any of its encodings, and nothing beyond it.

    Raises:
        ValueError, RecursionError: it is none, or too deep.
    """
    return _DECODER.decode(data.decode(json.detect_encoding(data), "surrogatepass"))


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_json)


def _encode(body: Any) -> bytes:
    if isinstance(body, str):
        return body.encode("utf-8", "replace")
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a character, which only an escape can tell
        return json.dumps(body, separators=(",", ":")).encode()


def _names(data: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(data)[:8])) or "no fields"


def template_file(text: str) -> Path | None:
    """The file that a template names; None if it is the text itself."""
    if text.lstrip().startswith("{"):
        return None
    try:
        return Path(text) if Path(text).is_file() else None
    except (OSError, ValueError):  # too long for the name of a file, as texts are
        return None


def _read_template(text: str, settings: Settings) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A template is a file or a text; JSON for the body (or the whole line), else the user's message."""
    path = template_file(text)
    if path is not None:
        text = path.read_text("utf-8")
    elif "{" not in text:
        raise ConfigurationError(
            f"--template: no such file, and no {{column}} in it to fill in: {text!r:.80}"
        )
    shape: Any = None
    if text.lstrip().startswith("{"):
        try:
            shape = json.loads(text)
        except ValueError as error:
            if not _PLACEHOLDER.match(text.lstrip()):
                raise ConfigurationError(
                    f"--template: expected JSON or text with {{columns}}; {error}"
                ) from None
    if shape is None:
        shape = {"messages": [{"role": "user", "content": text.rstrip("\n")}]}
    if "body" not in shape:
        shape = {"body": shape}
    body = shape["body"]
    if settings.model is None and isinstance(body, dict) and "messages" in body and "model" not in body:
        raise ConfigurationError("--template: it names no model; give --model")
    return lambda row: _fill(shape, row)


def _fill(shape: Any, row: Mapping[str, Any]) -> Any:
    if isinstance(shape, dict):
        return {key: _fill(value, row) for key, value in shape.items()}
    if isinstance(shape, list):
        return [_fill(value, row) for value in shape]
    if not isinstance(shape, str):
        return shape
    whole = _PLACEHOLDER.fullmatch(shape)
    if whole:
        return _column(whole, row)
    return _PLACEHOLDER.sub(lambda found: _as_text(_column(found, row)), shape)


def _column(found: re.Match[str], row: Mapping[str, Any]) -> Any:
    name = found[1] or found[2]
    if name not in row:
        raise BadLine(f"the template needs {name!r}; the line has {_names(row)}")
    return row[name]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
