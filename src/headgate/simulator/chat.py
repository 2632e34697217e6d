"""Reading and answering a chat request: what the OpenAI and the Anthropic shape have in common.

The server's estimate, charged or reserved at arrival: all prompt tokens (see `tokens`) plus the most
tokens the caller lets it answer with. The real usage is never above it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headgate.simulator.summary import summarise
from headgate.simulator.tokens import count_tokens
from headgate.simulator.wire import BadRequest

_STREAM_CHUNKS = 16


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat request understood."""

    model: str
    prompt_tokens: int
    images: int
    last_user_text: str
    max_tokens: int
    stream: bool
    body: Mapping[str, Any]

    @property
    def costs(self) -> dict[str, int]:
        """What the server takes the call to cost."""
        return self.costs_with(self.max_tokens)

    def costs_with(self, output_tokens: int) -> dict[str, int]:
        """What the call costs with this many tokens of answer."""
        return {
            "requests": 1,
            "tokens": self.prompt_tokens + output_tokens,
            "input_tokens": self.prompt_tokens,
            "output_tokens": output_tokens,
            "images": self.images,
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """The simulated model's reply; `cut` if the caller's maximum ended it."""

    text: str
    tokens: int
    cut: bool

    def pieces(self) -> list[str]:
        """Split the text for a stream: at most 16 pieces, at spaces; joined they are the text."""
        words = self.text.split(" ")
        size = -(-len(words) // _STREAM_CHUNKS)
        pieces = [" ".join(words[at : at + size]) for at in range(0, len(words), size)]
        return [piece if at == 0 else " " + piece for at, piece in enumerate(pieces)]


def read_chat(body: bytes, max_tokens_names: tuple[str, ...], default_max_tokens: int | None) -> Chat:
    """Read the body of a chat request.

    `max_tokens_names`: fields that may hold the maximum; the first one present counts.
    `default_max_tokens`: the maximum without any; None makes it required.

    Raises BadRequest.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("We could not parse the JSON body of your request.") from None
    if not isinstance(value, dict):
        raise BadRequest("The JSON body of your request is not an object.")
    messages = value.get("messages")
    if messages is None:
        raise _missing("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("Expected a non-empty array of messages.", param="messages", code="invalid_type")
    prompt_tokens = images = 0
    last_user_text = ""
    if isinstance(value.get("system"), str | list):
        prompt_tokens += count_tokens(_text_and_images(value["system"], "system")[0])
    for number, message in enumerate(messages):
        param = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("Expected a message with a role.", param=param, code="invalid_type")
        text, pictures = _text_and_images(message.get("content"), param)
        prompt_tokens += count_tokens(text)
        images += pictures
        if message["role"] == "user":
            last_user_text = text
    max_tokens = next(
        (value[name] for name in max_tokens_names if value.get(name) is not None), default_max_tokens
    )
    if max_tokens is None:
        raise _missing(max_tokens_names[0])
    if type(max_tokens) is not int or max_tokens < 1:
        raise BadRequest(
            f"Expected at least one token, got {max_tokens!r}.",
            param=max_tokens_names[0],
            code="invalid_value",
        )
    model = value.get("model")
    return Chat(
        model=model if isinstance(model, str) else "sim-1",
        prompt_tokens=prompt_tokens,
        images=images,
        last_user_text=last_user_text,
        max_tokens=max_tokens,
        stream=value.get("stream") is True,
        body=value,
    )


def reply_to(chat: Chat) -> Reply:
    """Summarise what the user said last."""
    text, cut = summarise(chat.last_user_text, chat.max_tokens)
    return Reply(text, count_tokens(text), cut)


def _text_and_images(content: object, param: str) -> tuple[str, int]:
    """Read a message's content: a text, nothing, or a list of text and image parts."""
    if content is None or isinstance(content, str):
        return content or "", 0
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise BadRequest("Expected content as a text or as parts.", param=param, code="invalid_type")
    texts = [part["text"] for part in content if isinstance(part.get("text"), str)]
    return "\n".join(texts), sum(part.get("type") in ("image", "image_url") for part in content)


def _missing(param: str) -> BadRequest:
    return BadRequest(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )
