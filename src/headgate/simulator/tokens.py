"""The server's own count of LLM tokens: a simple stated formula, not any provider's tokenizer.

Up to 4 letters of a word are a token, and so is any other visible character; white space is free. So a text
never costs more than its UTF-8 bytes.
"""

import re
from itertools import islice

_TOKEN = re.compile(r"\w{1,4}|[^\w\s]")


def count_tokens(text: str) -> int:
    """Return the tokens of a text."""
    return len(_TOKEN.findall(text))


def truncate(text: str, max_tokens: int) -> str:
    """Return the beginning of a text, up to the end of token number `max_tokens`."""
    end = 0
    for token in islice(_TOKEN.finditer(text), max_tokens):
        end = token.end()
    return text[:end]
