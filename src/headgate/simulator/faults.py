"""Faults to inject into calls that were admitted, from text such as `500=3%,reset=1%,hang=0.5%`.

A kind is an HTTP error status, `reset` (the connection is torn down), `hang` (no answer) or `malformed`
(a 200 whose body cannot be read).
"""

import re
from collections.abc import Mapping
from random import Random
from types import MappingProxyType

NO_FAULTS: Mapping[str, float] = MappingProxyType({})

_KIND = re.compile(r"[45]\d\d|reset|hang|malformed")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


def parse_faults(text: str) -> dict[str, float]:
    """Read a list of faults as `{kind: probability}`; an empty text means none. Raises ValueError."""
    faults: dict[str, float] = {}
    for field in text.split(",") if text else ():
        kind, _, share = field.strip().partition("=")
        match = _SHARE.fullmatch(share)
        if not _KIND.fullmatch(kind) or match is None:
            raise ValueError(
                f"expected a fault such as 500=3%, reset=1%, hang=0.5% or malformed=5%, got {field!r}"
            )
        if kind in faults:
            raise ValueError(f"the fault {kind} is given twice")
        faults[kind] = float(match[1]) / 100
    if sum(faults.values()) > 1:
        raise ValueError(f"expected faults for at most 100% of the calls, got {text!r}")
    return faults


def draw_fault(faults: Mapping[str, float], random: Random) -> str | None:
    """Return the fault of one call, None for a sound one."""
    if not faults:
        return None
    drawn = random.random()
    for kind, probability in faults.items():
        drawn -= probability
        if drawn < 0:
            return kind
    return None
