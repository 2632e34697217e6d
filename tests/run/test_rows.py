"""From lines and templates to requests."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.errors import ConfigurationError
from headgate.run.rows import BadLine, RowReader, read_json
from headgate.run.settings import Settings


def reader(**changes: Any) -> RowReader:
    return RowReader(settings(**changes))


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "source": None,
        "output": None,
        "errors": Path("e"),
        "base_url": "http://api.test/v1",
    }
    return Settings(**{**given, **changes})


def encoded(item: Any) -> bytes:
    return json.dumps(item).encode()


def test_a_batch_line_is_a_request() -> None:
    body = {"model": "m", "messages": [], "max_completion_tokens": 7}
    row = reader().row(3, encoded({"custom_id": "a", "method": "post", "url": "/v1/x", "body": body}))
    assert (row.number, row.custom_id, row.method, row.path) == (3, "a", "POST", "/v1/x")
    assert row.body is not None
    assert json.loads(row.body) == body
    assert (row.model, row.max_tokens, row.text_bytes) == ("m", 7, len(row.body))


@pytest.mark.parametrize(
    ("options", "body", "sent"),
    [
        ({"model": "m"}, {}, {"model": "m"}),
        ({"model": "m"}, {"model": "own"}, {"model": "own"}),
        ({"max_tokens": 5}, {}, {"max_tokens": 5}),
        ({"max_tokens": 5}, {"max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        ({"max_tokens": 5}, {"max_output_tokens": 0}, {"max_output_tokens": 0}),
    ],
)
def test_options_fill_in_what_a_body_does_not_say(
    options: dict[str, Any], body: dict[str, Any], sent: dict[str, Any]
) -> None:
    row = reader(**options).row(0, encoded({"custom_id": "a", "url": "/x", "body": body}))
    assert row.body is not None
    assert json.loads(row.body) == sent


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/v1/x", "/v1/x"),
        ("v1/x", "/v1/x"),
        ("http://api.test/v1/x?a=b", "/v1/x?a=b"),
        ("http://api.test", "/"),
        ("/a b\r\nHost: evil", "/a%20b%0D%0AHost:%20evil"),
        ("/%2F%zz?q=[1]&ü", "/%2F%zz?q=[1]&%C3%BC"),
    ],
)
def test_paths_are_kept_and_only_what_no_url_may_hold_is_encoded(url: str, path: str) -> None:
    assert reader().row(0, encoded({"custom_id": "a", "url": url})).path == path


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "JSON object"),
        (b"[]", "got list"),
        (b'{"custom_id": "a"}', '"url"'),
        (b'{"url": "/x"}', '"custom_id"'),
        (b'{"custom_id": 1.5, "url": "/x"}', "whole number"),
        (b'{"custom_id": "a", "url": "https://api.test/v1/x"}', "below http://api.test/v1"),
        (b'{"custom_id": "a", "url": "//[x"}', "can be sent"),
        (b'{"custom_id": "a", "url": "/x", "method": "P\\u00d6ST"}', "HTTP method"),
        (b'{"custom_id": "a", "url": "/x", "body": {"max_tokens": true}}', "whole number of tokens"),
        (b'{"custom_id": "a", "url": "/x", "body": {"max_tokens": -1}}', "whole number of tokens"),
        (b'{"custom_id": "a", "url": "/x", "body": {"stream": true}}', "stream"),
        (b'{"custom_id": "a", "url": "/x", "body": {"t": Infinity}}', "not JSON"),
        (b'{"custom_id": "\xff", "url": "/x"}', "JSON object"),
    ],
)
def test_a_line_that_makes_no_request_says_what_was_expected(line: bytes, told: str) -> None:
    with pytest.raises(BadLine, match=told.replace("(", "\\(")):
        reader().row(0, line)


def test_the_id_of_a_line_that_makes_no_request_is_kept() -> None:
    with pytest.raises(BadLine) as caught:
        reader().row(0, b'{"custom_id": "a", "url": 5}')
    assert caught.value.custom_id == "a"


@given(
    st.dictionaries(
        st.sampled_from(["custom_id", "url", "method", "body", "id", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_no_line_does_worse_than_make_no_request(item: dict[str, Any]) -> None:
    try:
        row = reader().row(0, encoded(item))
    except BadLine:
        return
    assert row.path.isascii()
    assert row.path.isprintable()
    assert " " not in row.path
    assert reader().custom_id(0, encoded(item)) == row.custom_id


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_do_worse_than_be_no_line(line: bytes) -> None:
    with pytest.raises(BadLine):
        reader().row(0, line)


@pytest.mark.parametrize("column", [None, "key"])
@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id": "a", "key": "b"}',
        b' {"custom_id" :"a\\u0041", "key": 7}',
        b'{"key": "b", "custom_id": "c"}',
        b'{"custom_id": "\\"", "key": ""}',
    ],
)
def test_the_quick_look_at_an_id_finds_the_same(line: bytes, column: str | None) -> None:
    data = json.loads(line)
    expected = str(data["custom_id" if column is None else column])
    assert reader(id_column=column).custom_id(0, line) == expected


def test_json_is_read_in_all_its_encodings_and_no_others() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32-le"):
        assert read_json('{"ä": "☃"}'.encode(encoding)) == {"ä": "☃"}
    for wrong in (b'{"a": NaN}', b'{"a": "\xff"}', b"", b"{} {}"):
        with pytest.raises(ValueError, match=r".*"):
            read_json(wrong)


# Templates


def test_a_text_is_the_message_of_a_user() -> None:
    row = reader(template="Kind? {text} {{ n }} {", model="m").row(
        0, b'{"text": "a {n} b", "n": [1, "\xc3\xa4"]}'
    )
    assert row.custom_id == "row-1"
    assert row.path == "/v1/chat/completions"
    assert row.body is not None
    assert json.loads(row.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": 'Kind? a {n} b [1, "ä"] {'}],
    }


def test_json_fills_values_with_their_types() -> None:
    shape = '{"model": "{m}", "n": "{n}", "list": ["{n} x", 5, null], "k": {"deep": "{o}"}}'
    row = reader(template=shape).row(0, b'{"id": 9, "m": "small", "n": 3, "o": {"p": true}}')
    assert row.custom_id == "9"
    assert row.body is not None
    assert json.loads(row.body) == {
        "model": "small",
        "n": 3,
        "list": ["3 x", 5, None],
        "k": {"deep": {"p": True}},
    }


def test_a_whole_line_may_be_the_template() -> None:
    shape = '{"method": "GET", "url": "/rows/{id}", "body": null}'
    row = reader(template=shape).row(0, b'{"id": "x y"}')
    assert (row.method, row.path, row.body) == ("GET", "/rows/x%20y", None)


def test_a_file_holds_the_template(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Sum up: {text}\n", "utf-8")
    row = reader(template=str(file), model="m").row(0, b'{"text": "x"}')
    assert row.body is not None
    assert json.loads(row.body)["messages"][0]["content"] == "Sum up: x"


def test_a_missing_column_is_told_with_those_that_are_there() -> None:
    with pytest.raises(BadLine, match="needs 'text'; the line has 'txt', 'b'"):
        reader(template="{text}", model="m").row(0, b'{"txt": 1, "b": 2}')


@pytest.mark.parametrize("template", ["nothing to fill in", '{"a": ', "x" * 5000])
def test_a_template_that_cannot_be_read_is_wrong_usage(template: str) -> None:
    with pytest.raises(ConfigurationError, match="--template"):
        reader(template=template)


@pytest.mark.parametrize("length", [200, 300, 999, 1001, 100_000])
def test_a_template_may_be_as_long_as_it_likes(length: int) -> None:
    reader(template="x" * length + "{text}", model="m")


def test_a_message_needs_a_model() -> None:
    with pytest.raises(ConfigurationError, match="--model"):
        reader(template="{text}")
