"""An extractive summary: the sentences that hold the most frequent words, in their own order.

The simulated model's answer: cheap, deterministic, and a real piece of work on the caller's text.
"""

import re
from collections import Counter

from headgate.simulator.tokens import count_tokens, truncate

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(
    "a about after all also an and any are as at be been but by can could did do does for from had has have "
    "he her his how i if in into is it its just may me more most my no not of on one or other our out she so "
    "some such than that the their them then there these they this to up us was we were what when which who "
    "will with would you your".split()
)
_FIRST_SENTENCE_WEIGHT = 1.5  # writers say first what they are about


def summarise(text: str, max_tokens: int) -> tuple[str, bool]:
    """Return up to a third of a text's sentences, in at most `max_tokens`, and whether that cut it short.

    A sentence scores the mean frequency, in the whole text, of its words that are not stop words.
    """
    sentences = [sentence for part in _SENTENCE_END.split(text) if part and (sentence := part.strip())]
    if not sentences:
        return "", False
    words = [[word for word in _WORD.findall(s.lower()) if word not in _STOP_WORDS] for s in sentences]
    frequency = Counter(word for sentence in words for word in sentence)
    scores = [sum(frequency[word] for word in sentence) / (len(sentence) or 1) for sentence in words]
    scores[0] *= _FIRST_SENTENCE_WEIGHT
    best_first = sorted(range(len(sentences)), key=lambda index: -scores[index])
    wanted = -(-len(sentences) // 3)

    picked: list[int] = []
    left = max_tokens
    for index in best_first:
        cost = count_tokens(sentences[index])
        if cost <= left:
            picked.append(index)
            left -= cost
            if len(picked) == wanted:
                break
    if not picked:
        return truncate(sentences[best_first[0]], max_tokens), True
    return " ".join(sentences[index] for index in sorted(picked)), len(picked) < wanted
