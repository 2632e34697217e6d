"""Secrets: named in settings, taken from the environment when they are needed, kept out of what is stored.

Their values are in no attribute and no message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from html import escape

from headgate.errors import ConfigurationError

LEAST_SECRET = 6
"""Anything shorter keeps no secret, and hiding it would spoil the text around it."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_VALUE = re.compile(r"[\t -~]*")


class Secret:
    """A header's value with ``${VARIABLE}`` of the environment in it.

    Attributes:
        variables: their names, in order.

    Raises:
        ConfigurationError: there is none in it.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self.variables = tuple(dict.fromkeys(_VARIABLE.findall(template)))
        if not self.variables:
            raise ConfigurationError(
                "expected ${VARIABLE} in it, such as 'Bearer ${OPENAI_API_KEY}': the secret itself belongs "
                "into the environment"
            )

    def __repr__(self) -> str:
        return f"<Secret of {', '.join(self.variables)}>"

    def value(self) -> str:
        """What to send.

        Raises:
            ConfigurationError: a variable is not set, or holds what no header can.
        """
        found = _VARIABLE.sub(lambda match: _of_environment(match[1]), self._template)
        if not _VALUE.fullmatch(found):
            raise ConfigurationError(
                f"expected printable ASCII in {' and '.join(self.variables)}; does it end in a line break?"
            )
        return found

    def parts(self) -> list[str]:
        """What must not be shown: the values of its variables."""
        return [os.environ[name] for name in self.variables if os.environ.get(name)]


def _of_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"expected the environment variable {name}; it is not set, or empty")
    return value


def redact(data: bytes, secrets: Iterable[Secret]) -> bytes:
    """``data`` without the secrets, in every way that JSON, URLs and HTML can spell them."""
    for part in sorted({part for secret in secrets for part in secret.parts()}, key=len, reverse=True):
        if len(part) >= LEAST_SECRET:
            data = re.sub("".join(map(_spellings, part)).encode(), b"***", data)
    return data


def redact_text(text: str, secrets: Iterable[Secret]) -> str:
    """The same of a text, in which anything may stand."""
    return redact(text.encode("utf-8", "surrogatepass"), secrets).decode("utf-8", "surrogatepass")


def _spellings(char: str) -> str:
    plain, code = re.escape(char), "".join(f"[{digit}{digit.upper()}]" for digit in f"{ord(char):02x}")
    escaped = rf"|\\+{plain}" if char in '"\\/' else ""
    space = r"|\+" if char == " " else ""
    name = escape(char) if char in "&<>" else {'"': "&quot;", "'": "&apos;"}.get(char)
    entity = rf"&#0*{ord(char)};|&#[xX]0*{code};" + (f"|{name}" if name else "")
    return rf"(?:{entity}|{plain}|%{code}|\\+u00{code}{escaped}{space})"
