"""What the mediator's page tells people to copy."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from headgate.integrations.celery.mediator.request import find_service, request_of, vet_callback
from headgate.integrations.celery.mediator.settings import _CALLBACKS, _SERVICE, _TOP, Settings

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/mediator.md").read_text()


def block(text: str, language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_its_settings_are_settings() -> None:
    settings = Settings.of(tomllib.loads(block(PAGE, "toml")))
    assert list(settings.services) == ["openai", "anthropic", "tags"]


def test_it_tells_of_every_setting() -> None:
    told = set(re.findall(r"`([a-z_]+)`", PAGE)) | {"services", "callbacks"}
    assert {*_TOP, *_SERVICE, *_CALLBACKS} <= told


def test_the_examples_request_can_be_made() -> None:
    settings = Settings.of(tomllib.loads(block(PAGE, "toml")))
    page = (ROOT / "examples/celery_mediator/README.md").read_text()
    values = json.loads(block(page, "json"))
    del values["task_id"]
    request = request_of(values)
    service, url = find_service(request, settings)
    assert (service.name, url.shown) == ("anthropic", "https://api.anthropic.com/v1/messages")
    values["callback"] = "https://hooks.example.com/done"
    assert vet_callback(values["callback"], settings)[0].host == "hooks.example.com"
