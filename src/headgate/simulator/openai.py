"""The shape of OpenAI's chat completions: requests, answers, streams, errors.

Source: OpenAI API reference, "Chat", "Error codes" and "Rate limits" (read October 2026).
"""

from collections.abc import Iterator
from typing import Any

from headgate.simulator.chat import Chat, Reply, read_chat, reply_to
from headgate.simulator.durations import go_duration
from headgate.simulator.model import Verdict
from headgate.simulator.wire import Answer, BadRequest, Call, Incoming, to_json

DEFAULT_MAX_TOKENS = 256


def read(incoming: Incoming) -> Call:
    """Understand a chat completion request. Raises BadRequest."""
    chat = read_chat(incoming.body, ("max_completion_tokens", "max_tokens"), DEFAULT_MAX_TOKENS)
    if chat.body.get("n") not in (None, 1):
        raise BadRequest("This server makes one choice per request.", param="n", code="unsupported_value")
    return Call(chat.costs, lambda number, created_at: _answer(chat, number, created_at))


def headers(verdict: Verdict) -> dict[str, str]:
    """Return the headers that tell the limits."""
    return verdict.headers


def refusal(verdict: Verdict) -> bytes:
    """Return the body of a 429 by the limiter."""
    meter = verdict.refusal.meter if verdict.refusal else None
    return _error_body(f"Rate limit reached for {refusal_text(verdict)}", meter, None, "rate_limit_exceeded")


def refusal_text(verdict: Verdict) -> str:
    """Say which limit refused, with its numbers and when to come back."""
    reading = verdict.refusal
    if reading is None:
        raise ValueError("expected a refusal, got a verdict that accepts")
    if verdict.never_fits:
        then = "The request is larger than the limit and can never be served."
    elif verdict.retry_after_us is None:
        then = "Please try again when another request has ended."
    else:
        then = f"Please try again in {go_duration(verdict.retry_after_us)}."
    used = reading.limit - reading.remaining
    return (
        f"{reading.meter} ({verdict.refused_by}): "
        f"Limit {reading.limit}, Used {used}, Requested {verdict.requested}. {then}"
    )


def bad_request(error: BadRequest) -> bytes:
    """Return the body of an answer to a caller's mistake."""
    return _error_body(error.message, "invalid_request_error", error.param, error.code)


def failure(status: int) -> bytes:
    """Return the body of an injected error."""
    if status == 429:
        return _error_body("Your traffic grew too fast. Please slow down.", "requests", None, "slow_down")
    return _error_body("The server had an error while processing your request.", "server_error", None, None)


def _answer(chat: Chat, number: int, created_at: int) -> Answer:
    reply = reply_to(chat)
    usage = {
        "prompt_tokens": chat.prompt_tokens,
        "completion_tokens": reply.tokens,
        "total_tokens": chat.prompt_tokens + reply.tokens,
    }
    head = {"id": f"chatcmpl-sim{number}", "created": created_at, "model": chat.model}
    costs = chat.costs_with(reply.tokens)
    if chat.stream:
        head["object"] = "chat.completion.chunk"
        return Answer(costs, chunks=tuple(_chunks(chat, reply, head, usage)))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text, "refusal": None},
        "logprobs": None,
        "finish_reason": _finish_reason(reply),
    }
    return Answer(costs, to_json(head | {"object": "chat.completion", "choices": [choice], "usage": usage}))


def _chunks(chat: Chat, reply: Reply, head: dict[str, Any], usage: dict[str, int]) -> Iterator[bytes]:
    options = chat.body.get("stream_options")
    tells_usage = isinstance(options, dict) and options.get("include_usage") is True
    no_usage = {"usage": None} if tells_usage else {}

    def event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return b"data: " + to_json(head | {"choices": [choice]} | no_usage) + b"\n\n"

    yield event({"role": "assistant", "content": ""})
    for piece in reply.pieces():
        yield event({"content": piece})
    yield event({}, _finish_reason(reply))
    if tells_usage:
        yield b"data: " + to_json(head | {"choices": [], "usage": usage}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _finish_reason(reply: Reply) -> str:
    return "length" if reply.cut else "stop"


def _error_body(message: str, kind: str | None, param: str | None, code: str | None) -> bytes:
    return to_json({"error": {"message": message, "type": kind, "param": param, "code": code}})
