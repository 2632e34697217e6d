"""A name for a call, made from its arguments: 32 hex characters, the same in every process.

What was kept under it in one process is found by it in the next, so it stands on values alone: never on
addresses, on ``hash()`` or on the order in which a set happens to lie. It knows nothing of functions, runners
or files.

Each value is written as a letter for its type and then its content, which either has a fixed size or opens
with its length, so that no two different values are written the same. Two arguments are equal here if they
are of one type and written alike. So ``1``, ``True`` and ``1.0`` are three; so are ``0.0``, ``-0.0`` and
``nan`` (all nan are one); ``Decimal("1.0")`` is not ``Decimal("1.00")``, nor is an instant the same instant
told in another zone: a function that prints them can tell them apart, and a call repeated costs less than a
wrong answer. What comes in no order (dict, set) is sorted as it is written.

These are one type each: ``bytes``, ``bytearray`` and plain ``memoryview``; ``set`` and ``frozenset``; a
NamedTuple and a tuple; a scalar of numpy and the Python value that it stands for. A subclass of a type named
here counts as that type. Classes of enums, dataclasses and models go by their name without their module: a
notebook's class may move to a file.
"""

from __future__ import annotations

import dataclasses
import reprlib
import struct
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from enum import Enum, Flag
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, TypeAlias

from headgate.errors import ConfigurationError

DEEPEST = 100
"""Containers within containers, at most."""
_VERSION = b"headgate 1"
_LARGE = 4096
"""Bytes from which on content goes by its hash, so that sorting what holds it copies none of it."""
_PLAIN_SCALARS = frozenset("?bhilqpBHILQPefdFDSU")
"""numpy's letters for what has an equal in Python …"""
_PLAIN_ARRAYS = _PLAIN_SCALARS | {"M", "m"}
""" … and for what stands in an array as bytes without padding or pointers."""

Write: TypeAlias = Callable[[bytes], object]
Trail: TypeAlias = set[int]
"""The containers that are being written, by id: one that is met again within itself is a cycle."""
Encoder: TypeAlias = Callable[[Write, Any, Trail], None]


def digest(*args: Any, **kwargs: Any) -> str:
    """The digest of a call's arguments: 32 hex characters.

    It takes None, bool, int, float, complex, str, bytes, list, tuple, dict, set, Enum, Path, date, time,
    datetime, timedelta, Decimal, Fraction, UUID, dataclass instances (without fields of ``compare=False``),
    objects with ``model_dump()`` such as pydantic's (without fields of ``exclude=True``), scalars and arrays
    of numpy, scalars of pandas, and any of these within one another.

    Raises:
        ConfigurationError: anything else, a cycle, or more than 100 levels; the message says where.
    """
    state = blake2b(digest_size=16, person=_VERSION)
    trail: Trail = set()
    where = "args"
    try:
        _tuple(state.update, args, trail)
        where = "kwargs"
        _dict(state.update, kwargs, trail)
    except _Refused as refused:
        raise ConfigurationError(refused.told(where)) from None
    except RecursionError:
        raise ConfigurationError(_Refused("is nested too deeply").told(where)) from None
    return state.hexdigest()


class _Refused(Exception):
    """A value that cannot be written. The steps to it gather on the way out, the innermost first."""

    def __init__(self, why: str) -> None:
        self.why = why
        self.steps: list[str] = []

    def told(self, where: str) -> str:
        steps = self.steps[::-1]
        if len(steps) > 12:
            steps[8:-2] = [" … "]
        return (
            f"expected arguments that are plain data; {where}{''.join(steps)} {self.why}; give the Runner "
            "digest=, a function that takes the same arguments and returns a str that stands for them"
        )


def _feed(write: Write, value: Any, trail: Trail) -> None:
    (_ENCODERS.get(type(value)) or _encoder(type(value)))(write, value, trail)


def _written(value: Any, trail: Trail) -> bytes:
    """What is written for a value, for sorting."""
    if type(value) is str:  # as nearly all keys are
        return _content(b"s", value.encode("utf-8", "surrogatepass"))
    parts: list[bytes] = []
    _feed(parts.append, value, trail)
    return b"".join(parts)


def _refuse(write: Write, value: Any, trail: Trail) -> None:
    kind = type(value)
    raise _Refused(f"is of type {kind.__module__}.{kind.__qualname__}".replace("type builtins.", "type "))


# Plain values


def _none(write: Write, value: None, trail: Trail) -> None:
    write(b"N")


def _bool(write: Write, value: bool, trail: Trail) -> None:
    write(b"T" if value else b"F")


def _int(write: Write, value: int, trail: Trail) -> None:
    write(b"i%x;" % value)  # hexadecimal: Python refuses decimals of many thousand digits


def _float(write: Write, value: float, trail: Trail) -> None:
    write(b"f" + _eight(value))


def _complex(write: Write, value: complex, trail: Trail) -> None:
    write(b"c" + _eight(value.real) + _eight(value.imag))


def _eight(value: float) -> bytes:
    return struct.pack(">d", value) if value == value else b"\x7f\xf8\0\0\0\0\0\0"  # noqa: PLR0124  # nan is not


def _str(write: Write, value: str, trail: Trail) -> None:
    write(_content(b"s", str.encode(value, "utf-8", "surrogatepass")))


def _bytes(write: Write, value: bytes | bytearray, trail: Trail) -> None:
    write(_content(b"b", value))


def _memoryview(write: Write, value: memoryview, trail: Trail) -> None:
    if value.format != "B" or value.ndim != 1:
        raise _Refused("is a memoryview of other than plain bytes")
    write(_content(b"b", value.tobytes()))


def _content(tag: bytes, data: bytes | bytearray) -> bytes:
    size = len(data)
    return tag + b"%d:" % size + (data if size < _LARGE else blake2b(data, digest_size=32).digest())


# Containers


def _enter(value: object, trail: Trail) -> None:
    if id(value) in trail:
        raise _Refused("contains itself")
    if len(trail) > DEEPEST:
        raise _Refused(f"is nested more than {DEEPEST} levels deep")
    trail.add(id(value))


def _tuple(write: Write, value: tuple[Any, ...], trail: Trail) -> None:
    write(b"t%d:" % len(value))
    _items(write, value, trail)


def _list(write: Write, value: list[Any], trail: Trail) -> None:
    write(b"l%d:" % len(value))
    _items(write, value, trail)


def _items(write: Write, value: Iterable[Any], trail: Trail) -> None:
    _enter(value, trail)
    index = 0
    try:
        for index, item in enumerate(value):  # noqa: B007  # told below
            _feed(write, item, trail)
    except _Refused as refused:
        refused.steps.append(f"[{index}]")
        raise
    trail.discard(id(value))


def _set(write: Write, value: frozenset[Any] | set[Any], trail: Trail) -> None:
    _enter(value, trail)
    try:
        members = sorted([_written(member, trail) for member in value])
    except _Refused as refused:
        refused.steps.append(", a member of it,")
        raise
    write(b"u%d:%b" % (len(members), b"".join(members)))
    trail.discard(id(value))


def _dict(write: Write, value: dict[Any, Any], trail: Trail) -> None:
    _pairs(write, value, trail, _in_brackets)


def _pairs(write: Write, value: dict[Any, Any], trail: Trail, step: Callable[[Any], str]) -> None:
    _enter(value, trail)
    write(b"d%d:" % len(value))
    keys = []
    try:
        for key in value:
            keys.append((_written(key, trail), key))  # noqa: PERF401  # a key is told from its value
    except _Refused as refused:
        refused.steps.append(", a key of it,")
        raise
    keys.sort(key=_first)
    try:
        if len(keys) == len({written for written, _ in keys}):
            for written, key in keys:
                write(written)
                _feed(write, value[key], trail)
        else:  # keys that are not equal but written alike, such as nan: their values settle the order
            pairs = []
            for written, key in keys:
                pairs.append(written + _written(value[key], trail))
            write(b"".join(sorted(pairs)))
    except _Refused as refused:
        refused.steps.append(step(key))
        raise
    trail.discard(id(value))


def _first(pair: tuple[bytes, Any]) -> bytes:
    return pair[0]


def _in_brackets(key: Any) -> str:
    return f'["{key}"]' if isinstance(key, str) and len(key) < 60 else f"[{reprlib.repr(key)}]"


def _after_a_dot(name: str) -> str:
    return f".{name}"


# Objects: a letter for their kind, then what they are made of


def _made_of(tag: bytes, parts: Callable[[Any], tuple[Any, ...]]) -> Encoder:
    def encode(write: Write, value: Any, trail: Trail) -> None:
        write(tag)
        for part in parts(value):
            _feed(write, part, trail)

    return encode


def _enum(write: Write, value: Enum, trail: Trail) -> None:
    # Values may be anything and may change with the order of members; flags have values without a name.
    write(b"e")
    _str(write, type(value).__qualname__, trail)
    _feed(write, value.value if isinstance(value, Flag) else value.name, trail)


def _dataclass(write: Write, value: Any, trail: Trail) -> None:
    _enter(value, trail)
    write(b"o")
    _str(write, type(value).__qualname__, trail)
    names = [field.name for field in dataclasses.fields(value) if field.compare]
    _pairs(write, {name: getattr(value, name) for name in names}, trail, _after_a_dot)
    trail.discard(id(value))


def _model(write: Write, value: Any, trail: Trail) -> None:
    _enter(value, trail)
    write(b"m")
    _str(write, type(value).__qualname__, trail)
    fields = getattr(type(value), "model_fields", None)
    if isinstance(fields, dict):
        # Not model_dump(): it forgets the classes of models within, and what they add to a field's type.
        names = [name for name in vars(value) if name in fields and not fields[name].exclude]
        content = {name: vars(value)[name] for name in names}
        _pairs(write, content | (value.model_extra or {}), trail, _after_a_dot)
    else:
        _feed(write, value.model_dump(), trail)
    trail.discard(id(value))


def _array(write: Write, value: Any, trail: Trail) -> None:
    """A scalar or an array of numpy, or what looks like one."""
    letter = value.dtype.char
    if hasattr(value, "mask") or letter not in _PLAIN_ARRAYS:
        plain = value.tolist()
        if type(plain) is type(value):  # as of numpy's longest floats: nothing of Python holds them
            _refuse(write, value, trail)
        write(b"A")
        _str(write, str(value.dtype), trail)
        _tuple(write, value.shape, trail)
        _feed(write, plain, trail)
    elif value.shape == () and letter in _PLAIN_SCALARS:
        _feed(write, value.item(), trail)
    else:
        little_endian = value.astype(value.dtype.newbyteorder("<"), copy=False)
        write(b"a")
        _str(write, little_endian.dtype.str, trail)
        _tuple(write, value.shape, trail)
        write(_content(b"b", little_endian.tobytes()))


_ENCODERS: dict[type, Encoder] = {}
"""How values of the types that have been met are written."""
_MOST_ENCODERS = 1000


def _encoder(kind: type) -> Encoder:
    """How values of a type are written, found for the first time."""
    if len(_ENCODERS) >= _MOST_ENCODERS:  # classes that are made for each call must not live for ever
        _ENCODERS.clear()
    encoder = _ENCODERS[kind] = _choose(kind)
    return encoder


def _choose(kind: type) -> Encoder:
    if issubclass(kind, Enum):
        return _enum
    if callable(getattr(kind, "model_dump", None)):
        return _model
    if dataclasses.is_dataclass(kind):
        return _dataclass
    if all(hasattr(kind, name) for name in ("dtype", "shape", "tobytes", "tolist", "item")):
        return _array
    if kind.__name__ == "NAType" and kind.__module__.startswith("pandas."):
        return _made_of(b"n", lambda value: ())
    for known, encoder in (*_OWN, *_standard()):
        if issubclass(kind, known):
            return encoder
    return _refuse


_OWN: tuple[tuple[type | tuple[type, ...], Encoder], ...] = (
    (type(None), _none),
    (bool, _bool),
    (int, _int),
    (float, _float),
    (complex, _complex),
    (str, _str),
    ((bytes, bytearray), _bytes),
    (memoryview, _memoryview),
    (tuple, _tuple),
    (list, _list),
    (dict, _dict),
    ((set, frozenset), _set),
)


def _standard() -> Iterable[tuple[type, Encoder]]:
    """What else of the standard library is data; its modules are loaded when first asked for."""
    from decimal import Decimal
    from fractions import Fraction
    from uuid import UUID

    yield datetime, _made_of(b"D", lambda value: (value.isoformat(), value.fold))
    yield date, _made_of(b"y", lambda value: (value.isoformat(),))
    yield time, _made_of(b"h", lambda value: (value.isoformat(), value.fold))
    yield timedelta, _made_of(b"w", _parts_of_timedelta)
    yield PurePath, _made_of(b"p", lambda value: (str(value),))
    yield Decimal, _made_of(b"x", lambda value: (str(value),))
    yield Fraction, _made_of(b"q", lambda value: (value.numerator, value.denominator))
    yield UUID, _made_of(b"g", lambda value: (value.hex,))


def _parts_of_timedelta(value: Any) -> tuple[int, ...]:
    return value.days, value.seconds, value.microseconds, getattr(value, "nanoseconds", 0)  # pandas has these
