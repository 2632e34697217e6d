"""What a call will cost in tokens, before anybody has counted them.

No vocabulary is downloaded. Bytes are a hard bound on tokens for every byte-level encoding, so the first
calls of a model are booked by their bytes. Each answer's ``usage`` then tells tokens per byte, and the
upper tail of what was seen takes the bound's place. What is asked for in output (``max_tokens``) comes on
top. What was booked too much is put right when the answer comes.
"""

from __future__ import annotations

from collections import deque

LEARNED = 16
"""Answers of a model until its tail is believed."""
REMEMBERED = 512
MARGIN = 1.03
"""On top of the largest ratio seen: the next may be larger still."""
UNKNOWN_OUTPUT = 1024
"""Tokens to expect of a call that sets no bound on its output, until answers have told."""


class _Tail:
    """The largest of the last few hundred values."""

    __slots__ = ("_count", "_peaks")

    def __init__(self) -> None:
        self._peaks: deque[tuple[int, float]] = deque()  # falling values: the first is the largest
        self._count = 0

    def add(self, value: float) -> None:
        self._count += 1
        while self._peaks and self._peaks[-1][1] <= value:
            self._peaks.pop()
        self._peaks.append((self._count, value))
        if self._peaks[0][0] <= self._count - REMEMBERED:
            self._peaks.popleft()

    def top(self) -> float | None:
        return self._peaks[0][1] if self._count >= LEARNED else None


class Estimator:
    """Tokens per byte and output lengths, for each model."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[_Tail, _Tail]] = {}

    def input_tokens(self, model: str, text_bytes: int) -> int:
        """An upper estimate of the tokens in a request of that many bytes."""
        tails = self._models.get(model)
        top = tails[0].top() if tails else None
        if top is None:
            return text_bytes
        return min(int(text_bytes * top * MARGIN) + 1, text_bytes)

    def output_tokens(self, model: str) -> int:
        """The tokens to expect of an answer without a bound."""
        tails = self._models.get(model)
        top = tails[1].top() if tails else None
        return UNKNOWN_OUTPUT if top is None else int(top * MARGIN) + 1

    def learn(self, model: str, text_bytes: int, input_tokens: int, output_tokens: int) -> None:
        """What an answer's usage said."""
        tails = self._models.setdefault(model, (_Tail(), _Tail()))
        if text_bytes:
            tails[0].add(input_tokens / text_bytes)
        tails[1].add(output_tokens)
