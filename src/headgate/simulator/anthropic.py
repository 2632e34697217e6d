"""The shape of Anthropic's messages API: requests, answers, streams, errors.

Source: Anthropic API reference, "Messages", "Streaming" and "Errors" (read October 2026).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from headgate.simulator.chat import Chat, Reply, read_chat, reply_to
from headgate.simulator.headers import anthropic_headers
from headgate.simulator.model import Verdict
from headgate.simulator.openai import refusal_text
from headgate.simulator.wire import Answer, BadRequest, Call, Incoming, to_json

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def read(incoming: Incoming) -> Call:
    """Understand a messages request. Raises BadRequest."""
    chat = read_chat(incoming.body, ("max_tokens",), None)
    return Call(chat.costs, lambda number, created_at: _answer(chat, number))


def headers(verdict: Verdict) -> dict[str, str]:
    """Return the headers that tell the limits."""
    return anthropic_headers(verdict.readings, verdict.arrived_us, verdict.retry_after_us)


def refusal(verdict: Verdict) -> bytes:
    """Return the body of a 429 by the limiter."""
    return _error_body(429, f"This request would exceed your rate limit of {refusal_text(verdict)}")


def bad_request(error: BadRequest) -> bytes:
    """Return the body of an answer to a caller's mistake."""
    return _error_body(error.status, f"{error.param}: {error.message}" if error.param else error.message)


def failure(status: int) -> bytes:
    """Return the body of an injected error."""
    return _error_body(status, "Overloaded" if status == 529 else "Internal server error")


def _answer(chat: Chat, number: int) -> Answer:
    reply = reply_to(chat)
    costs = chat.costs_with(reply.tokens)
    message: dict[str, Any] = {
        "id": f"msg_sim{number}",
        "type": "message",
        "role": "assistant",
        "model": chat.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": chat.prompt_tokens, "output_tokens": 0},
    }
    if chat.stream:
        return Answer(costs, chunks=tuple(_event(event) for event in _events(message, reply)))
    message["content"] = [{"type": "text", "text": reply.text}]
    message["stop_reason"] = _stop_reason(reply)
    message["usage"]["output_tokens"] = reply.tokens
    return Answer(costs, to_json(message))


def _events(message: Mapping[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
    yield {"type": "message_start", "message": message}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for piece in reply.pieces():
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    yield {"type": "content_block_stop", "index": 0}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": _stop_reason(reply), "stop_sequence": None},
        "usage": {"output_tokens": reply.tokens},
    }
    yield {"type": "message_stop"}


def _event(event: Mapping[str, Any]) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + to_json(event) + b"\n\n"


def _stop_reason(reply: Reply) -> str:
    return "max_tokens" if reply.cut else "end_turn"


def _error_body(status: int, message: str) -> bytes:
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return to_json({"type": "error", "error": {"type": kind, "message": message}})
