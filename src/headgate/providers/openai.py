"""OpenAI, and the many APIs that speak as it does: limits, and what a call costs.

Answers are read in ``answers``, whose names can be had here, too. No SDK is known: arguments are those of
``chat.completions.create``, ``responses.create``, ``completions.create`` and ``embeddings.create``, and
results are looked at by their shape.

Source: OpenAI "Rate limits" guide, read October 2026. Limits refill continuously: the sample of a limit of
60 that has 59 left after one call is full again in ``1s``, and that of 200 a day in ``7m12s``. A limit for
minutes may be enforced by the second: 60,000 a minute as 1,000 a second. A call is charged the larger of
``max_tokens`` and a guess by the prompt's characters; failed calls and cached input count. Others who speak
the dialect charge the prompt's tokens and ``max_tokens`` together, so that is what is reserved.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any, Literal, NamedTuple

from headgate.core.model import DAY, MINUTE, Limit
from headgate.errors import ConfigurationError
from headgate.providers.answers import (
    MONEY_CODES,
    RAMP_CODES,
    SIZE_CODES,
    Answer,
    Usage,
    read_answer,
    read_usage,
    whole_tokens,
)
from headgate.providers.estimate import Estimator
from headgate.providers.preset import Preset, Units
from headgate.providers.reply import attribute, read_reply

__all__ = [
    "MONEY_CODES",
    "RAMP_CODES",
    "SIZE_CODES",
    "Answer",
    "Usage",
    "chat_cost",
    "limits",
    "read_answer",
    "read_usage",
    "usage",
]

PARTS_OF_MINUTE = 60
"""A minute's limit may be enforced by the second."""
LEAST_BURST = 2
"""One call on its way and one that gathers meanwhile. A bucket of one gathers nothing while a call is on its
way: it reaches 66 % of the rate where answers take long, this one 98 %."""
CHARACTERS_A_TOKEN = 4
"""The guess by characters; no text of ours has fewer bytes than characters."""
FRAME_BYTES = 16
"""What a server puts around a text: roles, beginnings and ends."""
ITEM_BYTES = 3
"""Quotes and a comma around each text."""
MEDIA_TOKENS = 4096
"""A picture, sound or file is taken for so many tokens; its bytes tell nothing. A full-size picture makes 765
to 3,779 of them for most of OpenAI's models ("Images and vision" guide, as its readers tell it, November
2026), and tens of thousands for a few."""
DEEPEST = 32

_PROMPTS = ("messages", "input", "prompt")
_TEXTS = (*_PROMPTS, "instructions", "suffix", "tools", "functions", "response_format", "text")
_BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_KEPT_THERE = ("previous_response_id", "conversation")
_MEDIA = frozenset({"image", "image_url", "input_image", "input_audio", "input_file", "file"})
_USAGE_NAMES = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")


def limits(
    *,
    rpm: int | None = None,
    tpm: int | None = None,
    rpd: int | None = None,
    tpd: int | None = None,
    max_concurrent: int | None = None,
    default_max_tokens: int | None = None,
    charge: Literal["estimate", "usage"] = "estimate",
) -> Preset:
    """Limits on requests and tokens, and what calls cost: ``Limiter(*openai.limits(rpm=500, tpm=200_000))``.

    Each is a bucket that refills continuously. The bucket of requests holds a second's worth, at least two: a
    minute's limit may be enforced by the second, and more would not make it faster. The bucket of tokens
    holds the whole limit, since one call may need it all. Limits for a day are believed full at first, until
    an answer's fields tell otherwise; a limiter that keeps them in memory warns, for it forgets them with
    its process.

    A call is reserved at its bytes, as no encoding makes more tokens than bytes, until 16 answers of its
    model have told tokens per byte, and at the output that it asks for, times the choices; never at less than
    a quarter of its bytes. If a guess exceeds the limit, the whole limit is reserved. What the server adds to
    a call by itself, such as an earlier response, is not foreseen. If your function takes other arguments
    than the SDK's, all its texts are counted as the prompt; give a cost of your own if it adds much to them.

    Args:
        rpm, tpm: requests and tokens per minute; at least one of them.
        rpd, tpd: requests and tokens per day.
        max_concurrent: calls at once.
        default_max_tokens: output of a call that sets no bound, as the server takes it; None for what answers
            have shown, and 1,024 until 16 have.
        charge: ``estimate``, the server keeps what it reserved, as OpenAI does; ``usage``, it gives back what
            was not used.

    Raises:
        ConfigurationError: neither ``rpm`` nor ``tpm``, or what is no whole number above 0.
    """
    given = {
        "rpm": rpm, "tpm": tpm, "rpd": rpd, "tpd": tpd, "max_concurrent": max_concurrent,
        "default_max_tokens": default_max_tokens,
    }  # fmt: skip
    for name, amount in given.items():
        if amount is not None and (type(amount) is not int or amount < 1):
            raise ConfigurationError(f"{name}: expected a whole number above 0; got {amount!r}")
    if rpm is None and tpm is None:
        raise ConfigurationError("expected rpm= or tpm=, the requests or tokens per minute of your account")
    if charge not in ("estimate", "usage"):
        raise ConfigurationError(f"charge: expected 'estimate' or 'usage'; got {charge!r}")

    found = []
    if rpm is not None:
        burst = min(max(rpm // PARTS_OF_MINUTE, LEAST_BURST), rpm)
        found.append(Limit(meter="requests", amount=rpm, period_us=MINUTE, kind="bucket", burst=burst))
    if tpm is not None:
        found.append(
            Limit(meter="tokens", amount=tpm, period_us=MINUTE, kind="bucket", burst=tpm, charge=charge)
        )
    if rpd is not None:
        found.append(
            Limit(meter="requests", amount=rpd, period_us=DAY, kind="bucket", burst=rpd, start="full")
        )
    if tpd is not None:
        found.append(
            Limit(
                meter="tokens", amount=tpd, period_us=DAY, kind="bucket", burst=tpd, start="full",
                charge=charge,
            )
        )  # fmt: skip
    if max_concurrent is not None:
        found.append(Limit(meter="concurrency", amount=max_concurrent, kind="concurrency"))

    largest = min((amount for amount in (tpm, tpd) if amount is not None), default=None)
    if largest is None:
        return Preset(found, name="openai")
    costs = _Costs(largest=largest, default_max_tokens=default_max_tokens, charge=charge)
    return Preset(found, name="openai", cost=costs.cost, usage=usage, learn=costs.learn)


def chat_cost(*args: Any, **kwargs: Any) -> Units:
    """{"tokens": what a call may cost at most}, of its arguments alone: bytes, and the output asked for.

    For a ``cost=`` of your own; :func:`limits` brings one that learns.
    """
    return _Costs().cost(*args, **kwargs)


def usage(result: object) -> Units:
    """{"tokens": what a call has used}, of its result; {} if that does not tell.

    Knows what the SDKs return, with and without ``with_raw_response``, answers of HTTP libraries that have
    been read, and parsed JSON.
    """
    found = _usage_of(result)
    return {} if found is None else {"tokens": found[1]}


class _Request(NamedTuple):
    """A call's arguments, as far as they cost tokens.

    ``counted_tokens`` came as token ids; ``most_output`` is None where no bound is set, and ``teaches`` False
    where the input's tokens say nothing of its bytes.
    """

    model: str
    text_bytes: int
    counted_tokens: int
    media: int
    choices: int
    most_output: int | None
    teaches: bool


class _Costs:
    """What calls cost in tokens; learns from their answers. For any number of threads."""

    def __init__(
        self,
        *,
        largest: int | None = None,
        default_max_tokens: int | None = None,
        charge: Literal["estimate", "usage"] = "estimate",
    ) -> None:
        self._estimator = Estimator()
        self._learning = Lock()
        self._largest = largest
        self._default = default_max_tokens
        self._charge = charge

    def cost(self, /, *args: Any, **kwargs: Any) -> Units:
        request = _read_request(args, kwargs)
        output = self._most_output(request)
        with self._learning:
            given = self._estimator.input_tokens(request.model, request.text_bytes)
            if output is None:
                output = self._estimator.output_tokens(request.model)
        given += request.counted_tokens + request.media * MEDIA_TOKENS
        guess = max(given + output, _by_characters(request))
        if self._largest is not None:
            # A guess above the limit is taken for the limit; what is known to be above it is not.
            guess = max(request.most_output or 0, min(guess, self._largest))
        return {"tokens": guess}

    def learn(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Units:
        found = _usage_of(result)
        if found is None:
            return {}
        (given, made), _ = found
        request = _read_request(args, kwargs)
        with self._learning:
            text_bytes = request.text_bytes if request.teaches else 0
            self._estimator.learn(request.model, text_bytes, given, made)
        output = self._most_output(request)
        if self._charge != "estimate" or output is None:
            return {}
        return {"tokens": max(given + output, _by_characters(request))}

    def _most_output(self, request: _Request) -> int | None:
        if request.most_output is None and self._default is not None:
            return self._default * request.choices
        return request.most_output


def _by_characters(request: _Request) -> int:
    return -(-request.text_bytes // CHARACTERS_A_TOKEN)


# Arguments


def _read_request(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Request:
    named = kwargs
    if len(args) == 1 and isinstance(args[0], Mapping):  # a request's body
        named = {**args[0], **kwargs}
    model = named.get("model")
    is_sdk = any(name in named for name in _PROMPTS)
    size = _Size()
    if is_sdk:
        for name in _TEXTS:
            size.add(named.get(name))
    else:
        size.add(args)
        size.add([value for name, value in kwargs.items() if name not in (*_BOUNDS, "model")])
    embeds = _is_embedding(named)
    if not embeds:
        size.text_bytes += FRAME_BYTES
    choices = _choices(named)
    bound = next((value for name in _BOUNDS if (value := _whole(named.get(name))) is not None), None)
    return _Request(
        model=model if isinstance(model, str) else "",
        text_bytes=size.text_bytes,
        counted_tokens=size.counted_tokens,
        media=size.media,
        choices=choices,
        most_output=0 if embeds else None if bound is None else bound * choices,
        teaches=is_sdk
        and not size.media
        and not size.counted_tokens
        and all(named.get(name) is None for name in _KEPT_THERE),
    )


def _is_embedding(named: Mapping[str, Any]) -> bool:
    """``input`` alone does not tell: ``responses`` have it, too, as one text or a list of items."""
    if "input" not in named:
        return False
    if any(name in named for name in ("dimensions", "encoding_format")):
        return True
    value = named["input"]
    if isinstance(value, list | tuple) and value and isinstance(value[0], str | int | list | tuple):
        return True
    return "embed" in str(named.get("model", "")).lower()


def _choices(named: Mapping[str, Any]) -> int:
    """How many outputs are made: ``n`` or ``best_of`` for each prompt."""
    each = max(_whole(named.get("n")) or 1, _whole(named.get("best_of")) or 1)
    prompts = named.get("prompt")
    if isinstance(prompts, list | tuple) and prompts and not isinstance(prompts[0], int):
        return each * len(prompts)
    return each


def _whole(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


class _Size:
    """Bytes of text, token ids, and media in a call's arguments."""

    __slots__ = ("counted_tokens", "media", "text_bytes")

    def __init__(self) -> None:
        self.text_bytes = self.counted_tokens = self.media = 0

    def add(self, value: Any, depth: int = 0) -> None:
        if isinstance(value, str):
            size = len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
            self.text_bytes += size + ITEM_BYTES
        elif value is None or depth > DEEPEST:
            return
        elif isinstance(value, list | tuple):
            if value and type(value[0]) is int:
                self.counted_tokens += len(value)
            else:
                for item in value:
                    self.add(item, depth + 1)
        elif isinstance(value, Mapping):
            self._add_object(value, depth)
        elif isinstance(value, int | float):
            self.text_bytes += len(str(value)) + ITEM_BYTES
        elif isinstance(value, bytes | bytearray):
            self.text_bytes += len(value)
        else:  # an SDK's object, such as the message of an earlier answer
            own = attribute(value, "__dict__")
            if isinstance(own, Mapping):
                self._add_object({name: own[name] for name in own if not name.startswith("_")}, depth)

    def _add_object(self, value: Mapping[Any, Any], depth: int) -> None:
        kind = value.get("type")
        if isinstance(kind, str) and kind in _MEDIA:
            self.media += 1
            return
        for name, item in value.items():
            if item is not None:
                self.add(name, depth + 1)
                self.add(item, depth + 1)


# Results


def _usage_of(result: object) -> tuple[Usage, int] | None:
    """Input and output tokens, and their total, of whatever a call returned; None if it does not tell."""
    if result is None or isinstance(result, str | bytes | int):
        return None
    told = result.get("usage") if isinstance(result, Mapping) else attribute(result, "usage")
    if told is None:
        reply = read_reply(result)
        told = reply.body.get("usage") if reply is not None and isinstance(reply.body, dict) else None
        if told is None:
            return None
    if isinstance(told, Mapping):
        figures = {name: told.get(name) for name in _USAGE_NAMES}
    else:
        figures = {name: attribute(told, name) for name in _USAGE_NAMES}
    found = read_usage({"usage": figures})
    if found is None:
        return None
    return found, max(sum(found), whole_tokens(figures["total_tokens"]) or 0)
