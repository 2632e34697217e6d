"""The secret, however somebody spells it."""

import json
from urllib.parse import quote

import pytest

from tests.run.running import SECRET
from tests.run.test_rows import settings


@pytest.mark.parametrize(
    "shown",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower().replace("sk-test", "sk-Test").replace("ecret%3dkey", "ecret%3dKey"),
        quote(SECRET),
        SECRET.replace("/", "\\/"),
    ],
)
def test_every_spelling_is_covered(shown: str) -> None:
    found = settings(secrets=(SECRET,))
    assert found.redact(f"a {shown} b {shown}") == "a *** b ***"
    assert found.may_show_key(f"a {shown} b".encode())


def test_a_key_that_json_escapes_is_found_in_what_was_parsed() -> None:
    found = settings(secrets=(SECRET,))
    body = json.dumps({"a": [f"Bearer {SECRET}", 5, None], SECRET: True}).replace("+", "\\u002b").encode()
    assert found.may_show_key(body)
    assert found.redact_data(json.loads(body)) == {"a": ["Bearer ***", 5, None], "***": True}


def test_without_a_key_nothing_is_changed() -> None:
    found = settings()
    assert found.redact("text") == "text"
    assert not found.may_show_key(b"text")
