"""What the mediator is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headgate.errors import ConfigurationError
from headgate.integrations.celery.mediator.settings import Settings

FILE = """
storage = "s3://calls"
broker = "redis://:hunter2@localhost:6379/0"
store = "redis://localhost:6379/1"

[services.openai]
endpoint = "https://api.openai.com/v1"
limits = ["requests=500/min:burst=8", "tokens=200k/min:burst=200k"]
preset = "openai"
secret_headers = { Authorization = "Bearer ${OPENAI_API_KEY}" }
timeout_seconds = 90

[services.other]
endpoint = "https://api.openai.com/v1/other"
preset = { name = "openai", rpm = 60, tpm = 1000 }
limits = ["concurrency=4"]
key = "their-budget"
idempotency_header = ""
cost = { tokens = 7 }

[callbacks]
allow = ["https://hooks.example.com/"]
attempts = 3
"""

LEAST: dict[str, Any] = {"storage": "memory://x", "broker": "redis://localhost", "store": "redis://localhost"}


def of(**more: Any) -> Settings:
    return Settings.of({**LEAST, **more})


def service(**more: Any) -> Settings:
    return of(services={"api": {"endpoint": "https://a.com", "limits": ["requests=5/s"], **more}})


def test_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "headgate-mediator.toml").write_text(FILE, "utf-8")
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(environment={})
    openai, other = settings.services["openai"], settings.services["other"]
    assert openai.key == "openai"
    assert [limit.name for limit in openai.limits] == ["requests/min", "tokens/min"]
    assert openai.preset is not None
    assert openai.preset.cost(prompt="x" * 10, max_tokens=5)["tokens"] >= 15
    assert repr(openai.secret_headers["authorization"]) == "<Secret of OPENAI_API_KEY>"
    assert openai.resets is not None
    assert openai.resets.fields[0].reset == "x-ratelimit-reset-requests"
    assert openai.idempotency_header == "idempotency-key"
    assert [limit.name for limit in other.limits] == ["requests/min", "tokens/min", "concurrency"]
    assert (other.key, other.idempotency_header, dict(other.cost)) == ("their-budget", "", {"tokens": 7})
    assert settings.visibility_timeout_seconds == 600
    assert settings.callbacks.attempts == 3
    assert "hunter2" not in repr(settings)


def test_the_environment_goes_first(tmp_path: Path) -> None:
    (tmp_path / "here.toml").write_text(FILE, "utf-8")
    environment = {
        "HEADGATE_MEDIATOR_CONFIG": str(tmp_path / "here.toml"),
        "HEADGATE_MEDIATOR_STORAGE": "gs://elsewhere",
        "HEADGATE_MEDIATOR_VISIBILITY_TIMEOUT_SECONDS": "130.5",
        "HEADGATE_MEDIATOR_LARGEST_REQUEST_BYTES": "1000",
        "HEADGATE_MEDIATOR_CALLBACKS": '{"attempts": 4}',
    }
    settings = Settings.load(environment=environment)
    assert settings.storage == "gs://elsewhere"
    assert settings.visibility_timeout_seconds == 130.5
    assert settings.largest_request_bytes == 1000
    assert (settings.callbacks.attempts, settings.callbacks.allow) == (4, ())


def test_the_environment_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = {f"HEADGATE_MEDIATOR_{name.upper()}": text for name, text in LEAST.items()}
    assert Settings.load(environment=told).queue == "mediator"


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"storrage": "x"}, "did you mean storage?"),
        ({"callbacks": {"alow": []}}, r"callbacks\.alow.*did you mean allow\?"),
        ({"storage": ""}, "storage: expected a text"),
        ({"broker": 7}, "broker: expected a text; got a int"),
        ({"store": "memory://"}, "all workers reach"),
        ({"visibility_timeout_seconds": -1}, "seconds above 0"),
        ({"visibility_timeout_seconds": True}, "seconds above 0"),
        ({"visibility_timeout_seconds": float("nan")}, "seconds above 0"),
        ({"largest_request_bytes": 1.5}, "whole number above 0"),
        ({"services": []}, r"\[services.NAME\]"),
        ({"services": {"http": {}}}, "neither http nor https"),
        ({"services": {"a b": {}}}, "letters, digits"),
        ({"callbacks": {"allow": "https://a.com"}}, "list of texts"),
        ({"callbacks": {"allow": ["a.com"]}}, "callbacks.allow: expected http"),
        ({"callbacks": {"secret_headers": {"x": "${A}"}}}, "anybody could be sent the secret"),
    ],
)
def test_mistakes_are_told(told: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        of(**told)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"endpoint": "https://a.com/?x"}, "services.api.endpoint: .*query"),
        ({"limits": []}, "expected limits"),
        ({"limits": ["requests=5"]}, "services.api.limits"),
        ({"limits": ["requests=5/s", "requests=6/s"]}, "different names"),
        ({"limits": ["timeout=5/s"]}, "cannot name a meter"),
        ({"timeot_seconds": 5}, "did you mean timeout_seconds"),
        ({"preset": "nobody"}, "name of a provider; got 'nobody'|such as 'openai'"),
        ({"preset": "openai"}, "limit on tokens beside it"),
        ({"preset": {"name": "openai", "rpmm": 5}}, "rpmm"),
        ({"cost": {"tokens": 5}}, "whole units of requests"),
        ({"headers": {"Host": "x"}}, "belongs to the connection"),
        ({"headers": {"x": "a\nb"}}, "printable ASCII"),
        ({"headers": {"x y": "a"}}, "name of a header field"),
        ({"secret_headers": {"authorization": "Bearer sk-hunter2"}}, r"expected \$\{VARIABLE\}"),
        ({"headers": {"X-A": "1"}, "secret_headers": {"x-a": "${A}"}}, "x-a is set twice"),
        ({"headers": {"Idempotency-Key": "1"}}, "set twice"),
        ({"timeout_seconds": 0}, "seconds above 0"),
        ({"attempts": 0}, "whole number above 0"),
        ({"headers_dialect": "klingon"}, "services.api.headers_dialect: .*one of anthropic"),
        ({"token_header": "x y"}, "services.api.headers_dialect: token_header= is the name"),
    ],
)
def test_mistakes_in_services_are_told(told: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as error:
        service(**told)
    assert "hunter2" not in str(error.value)


def test_a_call_is_not_taken_for_lost_while_it_may_run() -> None:
    with pytest.raises(ConfigurationError, match=r"visibility_timeout_seconds: expected more than .* 30"):
        of(
            visibility_timeout_seconds=30,
            services={"a": {"endpoint": "https://a.com", "limits": ["requests=5/s"], "timeout_seconds": 30}},
        )


def test_services_that_cannot_be_told_apart_are_refused() -> None:
    one = {"endpoint": "https://a.com/v1", "limits": ["requests=5/s"]}
    with pytest.raises(ConfigurationError, match="is that of 'a', too"):
        of(services={"a": one, "b": {**one, "endpoint": "https://a.com:443/v1/"}})
    with pytest.raises(ConfigurationError, match="which has other limits"):
        of(services={"a": one, "b": {"endpoint": "https://b.com", "limits": ["requests=6/s"], "key": "a"}})


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"HEADGATE_MEDIATOR_STORGE": "x"}, "did you mean HEADGATE_MEDIATOR_STORAGE"),
        ({"HEADGATE_MEDIATOR_SERVICES": "{"}, "expected a JSON object"),
        ({"HEADGATE_MEDIATOR_SERVICES": "[]"}, "expected tables"),
        ({"HEADGATE_MEDIATOR_LARGEST_REQUEST_BYTES": "much"}, "expected a number"),
        ({"HEADGATE_MEDIATOR_CONFIG": "/nowhere/at.all"}, "No such file"),
    ],
)
def test_mistakes_in_the_environment_are_told(told: dict[str, str], says: str) -> None:
    least = {f"HEADGATE_MEDIATOR_{name.upper()}": text for name, text in LEAST.items()}
    with pytest.raises(ConfigurationError, match=says):
        Settings.load(environment={**least, **told})


def test_what_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigurationError,
        match=r"in headgate-mediator\.toml.*_CONFIG names, or in HEADGATE_MEDIATOR_STORAGE",
    ):
        Settings.load(environment={})
    (tmp_path / "bad.toml").write_text("storage = ", "utf-8")
    with pytest.raises(ConfigurationError, match="is no TOML"):
        Settings.load("bad.toml", environment={})
