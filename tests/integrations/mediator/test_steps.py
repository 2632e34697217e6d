"""Single steps, and what they do where nothing can be done right now."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import uuid4

import pytest

from headgate.core.model import LARGEST_AMOUNT, SECOND
from headgate.errors import StorageError, StorageUnavailable
from headgate.integrations.celery.mediator import steps
from headgate.integrations.celery.mediator.engine import Engine, cost_of, judge_of
from headgate.integrations.celery.mediator.outgoing import Reply
from headgate.integrations.celery.mediator.request import request_of
from headgate.integrations.celery.mediator.response import Response
from headgate.integrations.celery.mediator.secrets import Secret, redact
from headgate.integrations.celery.mediator.settings import Settings
from headgate.integrations.storage import Storage

LIMITS = ["requests=600/min:burst=10", "tokens=1000/min:burst=1000:charge=usage"]


def engine() -> Engine:
    """Of a storage in memory; nothing of it connects anywhere."""
    service = {"endpoint": "https://a.com", "limits": LIMITS, "preset": "openai"}
    return Engine(
        Settings.of(
            {
                "storage": f"memory://{uuid4()}",
                "broker": "redis://localhost",
                "store": "redis://localhost",
                "services": {"a": service},
            }
        )
    )


class Away(Storage):
    """A storage that fails so many times before it works."""

    def __init__(self, storage: Storage, failures: int, error: type[StorageError]) -> None:
        super().__init__(storage._parts, 1.0)
        self.failures, self.error = failures, error

    def create(self, name: str, data: bytes) -> bool:
        if self.failures:
            self.failures -= 1
            raise self.error("it is away")
        return super().create(name, data)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which took any time."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(found))
    return found


PAID = Response(task_id="t", service="a", reply=Reply(200, {}, b"{}"), attempts=3)


def test_an_answer_that_was_paid_for_is_held_until_storage_is_back(slept: list[float]) -> None:
    held = engine()
    held.storage = Away(held.storage, 5, StorageUnavailable)
    steps._store(held, PAID)
    assert len(slept) == 5
    assert json.loads(held.storage.read("t.response.json", 1000))["ok"]


def test_what_cannot_be_kept_is_done_again_and_counted(slept: list[float]) -> None:
    held = engine()
    held.storage = Away(held.storage, 10_000, StorageError)
    with pytest.raises(steps.Again) as again:
        steps._store(held, PAID)
    assert again.value.counts == {"failed": 3}
    assert sum(slept) >= steps.HOLD_SECONDS


def test_a_failure_that_has_cost_nothing_is_not_held(slept: list[float]) -> None:
    held = engine()
    held.storage = Away(held.storage, 1, StorageUnavailable)
    with pytest.raises(StorageUnavailable):
        steps._store(held, Response(task_id="t", error=("invalid_request", "")))
    assert not slept


def test_of_two_responses_the_first_stands() -> None:
    held = engine()
    steps._store(held, PAID)
    steps._store(held, Response(task_id="t", error=("caller", "")))
    assert json.loads(held.storage.read("t.response.json", 1000))["ok"]


def test_pauses_are_short_and_as_long_as_the_server_asks() -> None:
    for failed in range(1, 40):
        ceiling = min(0.5 * 2 ** (failed - 1), 10)
        assert 0 <= steps.backoff_seconds(failed) <= ceiling
        assert 7 <= steps.backoff_seconds(failed, 7 * SECOND) <= max(ceiling, 7)
        assert steps.backoff_seconds(failed, 3600 * SECOND) == 10


def test_costs_are_guessed_and_overruled() -> None:
    service = engine().settings.services["a"]
    chat = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "x" * 100}]}
    request: dict[str, Any] = {"endpoint": "a:/x", "payload": chat}
    assert 150 <= cost_of(service, request_of(request))["tokens"] <= 400
    assert cost_of(service, request_of({**request, "cost": {"tokens": 7}})) == {"tokens": 7}
    assert cost_of(service, request_of({"endpoint": "a:/x"}))["tokens"] > 0
    more: dict[str, Any]
    for more in ({"payload": {**chat, "max_tokens": 10**30}}, {"cost": {"tokens": 10**30}}):
        assert cost_of(service, request_of({**request, **more})) == {"tokens": LARGEST_AMOUNT + 1}


def test_answers_tell_what_was_used() -> None:
    service = engine().settings.services["a"]
    request = request_of({"endpoint": "a:/x", "payload": {"model": "m", "prompt": "x"}})
    judge = judge_of(service, request)
    usage = b'{"usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}}'
    signal = judge.of_value((), {}, Reply(200, {}, usage), None, 0).signal
    assert signal.usage == {"tokens": 11}
    assert judge.of_value((), {}, Reply(500, {}, usage), None, 0).signal.usage == {}
    large = usage[:-1] + b', "data": "' + b"x" * (2 << 20) + b'"}'
    assert judge.of_value((), {}, Reply(200, {}, large), None, 0).signal.usage == {"tokens": 11}


@pytest.mark.parametrize(
    ("headers", "body", "kept"),
    [
        ({"content-type": "application/json"}, b'{"a": 1}', {"body": {"a": 1}}),
        ({"content-type": "application/problem+json; charset=utf-8"}, b"[]", {"body": []}),
        ({"content-type": "application/json"}, b"null", {"text": "null"}),
        ({"content-type": "application/json"}, b"1e999", {"text": "1e999"}),
        ({"content-type": "application/json"}, b"{", {"text": "{"}),
        ({"content-type": "application/json"}, b"\xff", {"base64": "/w=="}),
        ({"content-type": "text/plain"}, "ä".encode(), {"text": "ä"}),
        ({"content-type": "text/plain"}, b"\xff", {"base64": "/w=="}),
        ({"content-type": "image/png"}, b"abc", {"base64": "YWJj"}),
        ({}, b"abc", {"text": "abc"}),
        ({}, b"", {"body": None}),
    ],
)
def test_bodies_are_kept_as_what_they_are(headers: dict[str, str], body: bytes, kept: dict[str, Any]) -> None:
    data = json.loads(Response(task_id="t", reply=Reply(200, headers, body)).data())
    assert {name: data[name] for name in ("body", "text", "base64") if name in data} == kept


def test_only_fields_that_are_safe_are_kept() -> None:
    headers = {
        "content-type": "text/plain", "x-request-id": "7", "retry-after": "1", "location": "/there",
        "x-ratelimit-remaining-tokens": "5", "anthropic-ratelimit-requests-reset": "x",
        "set-cookie": "session=secret", "server": "x", "www-authenticate": "x", "x-internal": "x",
    }  # fmt: skip
    kept = json.loads(Response(task_id="t", reply=Reply(200, headers, b"")).data())["headers"]
    assert list(kept) == list(headers)[:6]


def test_secrets_are_hidden_however_they_are_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", 'sec/ret"+x')
    monkeypatch.setenv("B", "short")
    secrets = [Secret("Bearer ${A}"), Secret("${B}")]
    assert secrets[0].value() == 'Bearer sec/ret"+x'
    data = b'sec/ret"+x sec/ret\\"+x sec%2Fret%22%2Bx short'
    assert redact(data, secrets) == b"*** *** *** short"
    data = rb'sec\/ret\"+x \u0073ec\u002fret\u0022\u002Bx sec%2fret%22%2bx sec/ret%22+x s%65c/ret"+y'
    assert redact(data, secrets) == b'*** *** *** *** s%65c/ret"+y'
    assert redact(rb'"sec\\/ret\\\"+x"', secrets) == b'"***"', "JSON in a text of JSON"
    for spelled in (b"sec/ret&quot;+x", b"sec&#x2F;ret&#34;&#x2b;x", b"&#115;ec&#047;ret&#X0022;+x"):
        assert redact(b"<p>" + spelled + b"</p>", secrets) == b"<p>***</p>"
    monkeypatch.setenv("B", "a&b<c>d'e")
    assert redact(b"a&amp;b&lt;c&gt;d&apos;e a&b<c>d&#39;e", secrets) == b"*** ***"
    monkeypatch.setenv("B", "/path key")
    assert redact(rb'"\/path key" "/path+key"', secrets) == b'"***" "***"'
