"""Two APIs without a language model: `/echo`, which tells what it was sent, and `/image`, which tags.

Headers and errors are in OpenAI's dialect. A call costs one request, on `/image` one image too; a header
`x-cost-METER: N` sets the cost on any meter.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from headgate.simulator.wire import Answer, BadRequest, Call, Incoming, to_json

_COST_PREFIX = "x-cost-"
_SHOWN_HEADERS = ("content-type", "idempotency-key", "user-agent")
_HIDDEN_HEADERS = ("x-api-key",)
_TAGS = (
    "balcony bathroom bedroom bridge canal facade fireplace floor_plan front_house garage garden hallway "
    "kitchen living_room lock map meadow office pool river road roof sky stairs terrace tree view "
    "water weir window"
).split()
_TAGS_PER_IMAGE = 4


def read_echo(incoming: Incoming) -> Call:
    """Understand any request. Raises BadRequest for a cost that is no number."""
    costs = {"requests": 1} | _stated_costs(incoming)
    return Call(costs, lambda number, created_at: Answer(costs, to_json(_echo(incoming))))


def read_image(incoming: Incoming) -> Call:
    """Understand a request to tag the image in the body, or that the query names. Raises BadRequest."""
    costs = {"requests": 1, "images": 1} | _stated_costs(incoming)
    image = incoming.body or "&".join(f"{key}={value}" for key, value in incoming.query.items()).encode()
    if not image:
        raise BadRequest("Expected an image as the body or in the query.", param="url")
    return Call(costs, lambda number, created_at: Answer(costs, to_json(_tag(image))))


def _stated_costs(incoming: Incoming) -> dict[str, int]:
    costs = {}
    for name, value in incoming.headers.items():
        if name.lower().startswith(_COST_PREFIX):
            if not (value.isascii() and value.isdigit()):
                raise BadRequest(f"Expected a number of units, got {value!r}.", param=name)
            costs[name.lower().removeprefix(_COST_PREFIX).replace("-", "_")] = int(value)
    return costs


def _echo(incoming: Incoming) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in incoming.headers.items()}
    shown = {
        name: value
        for name, value in headers.items()
        if (name in _SHOWN_HEADERS or name.startswith("x-")) and name not in _HIDDEN_HEADERS
    }
    try:
        body = json.loads(incoming.body) if incoming.body else None
    except (ValueError, RecursionError):
        body = None
    return {
        "method": incoming.method,
        "path": incoming.path,
        "query": dict(incoming.query),
        "headers": shown,
        "body_bytes": len(incoming.body),
        "json": body,
    }


def _tag(image: bytes) -> Mapping[str, Any]:
    """Make up tags from the image's digest: the same image always gets the same ones."""
    digest = hashlib.sha256(image).digest()
    tags: dict[str, float] = {}
    for choice, certainty in zip(digest[::2], digest[1::2], strict=True):
        tags.setdefault(_TAGS[choice % len(_TAGS)], round(0.5 + certainty / 512, 3))
        if len(tags) == _TAGS_PER_IMAGE:
            break
    best_first = sorted(tags.items(), key=lambda tag: -tag[1])
    return {
        "id": digest.hex()[:16],
        "bytes": len(image),
        "tags": [{"name": name, "confidence": confidence} for name, confidence in best_first],
    }
