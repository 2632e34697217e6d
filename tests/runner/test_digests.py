"""Equal arguments have one digest, in every process; different ones do not share it."""

import copy
import enum
import math
import os
import struct
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.errors import ConfigurationError
from headgate.runner import digest as public
from headgate.runner.digests import _ENCODERS, DEEPEST, digest


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    CRIMSON = 1  # noqa: PIE796  # another name for RED


class Right(enum.IntFlag):
    READ = 1
    WRITE = 2


@dataclass
class Prompt:
    text: str
    options: dict[str, Any] = field(default_factory=dict)
    client: Any = field(default=None, compare=False)


@dataclass
class Question:
    text: str
    options: dict[str, Any] = field(default_factory=dict)


class Dumped:
    """Looks like a model, of no library."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def model_dump(self) -> Any:
        return self.content


Point = namedtuple("Point", "x y")


def different() -> list[Any]:
    """Values that are all different, though many compare equal or print alike."""
    noon = datetime.fromisoformat("2026-01-02 12:00")
    plus_two = timezone(timedelta(hours=2))
    return [
        None, True, False, 0, 1, -1, 10**5000, 10**5000 + 1,
        0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 1j, complex(1, 0),
        "", "a", "1", "None", "ä", "a\u0308", "\ud800", "\U0001f600", "\ud83d\ude00", "x" * 4095, "x" * 4096,
        "x" * 4097, b"", b"a", b"x" * 4096, b"x" * 4097,
        [], (), {}, set(), [[]], [()], [None], [1, 2], [2, 1], (1, 2), {1, 2}, [[1], 2], [1, [2]],
        ["ab", "c"], ["a", "bc"], {"a": 1}, {"a": 1.0}, {1: "a"}, {True: "a"}, {"1": "a"}, {"a": {"b": 1}},
        {"a": 1, "b": 2}, {"a": 2, "b": 1}, [("a", 1)], {("a", 1)}, {(1, 2): 3}, {frozenset({1}): 3},
        {frozenset({1, 2}): 3}, {math.nan: 1}, Colour.RED, Colour.GREEN, "RED", Right.READ, Right.WRITE,
        Right.READ | Right.WRITE, Path("a"), Path("a/b"), date(2026, 1, 2), noon, noon.replace(tzinfo=UTC),
        noon.replace(fold=1), noon.replace(hour=14, tzinfo=plus_two), time(), time(1), time(fold=1),
        timedelta(1), timedelta(0), timedelta(0, 1), timedelta(0, 0, 1),
        Decimal(1), Decimal("1.0"), Decimal("NaN"), Fraction(1), Fraction(1, 2), UUID(int=1),
        Prompt("a"), Prompt("b"), Prompt("a", {"x": 1}), Question("a"), Dumped({"text": "a"}), Dumped([1]),
    ]  # fmt: skip


def test_what_is_different_has_different_digests() -> None:
    seen: dict[str, Any] = {}
    for value in different():
        name = digest(value)
        assert name not in seen, f"{value!r:.60} and {seen[name]!r:.60}"
        seen[name] = value


def test_a_digest_is_32_hex_characters_and_the_public_one() -> None:
    assert public is digest
    for value in different():
        assert len(digest(value)) == 32
        assert set(digest(value)) <= set("0123456789abcdef")


def test_a_copy_has_the_same_digest() -> None:
    for value, again in zip(different(), copy.deepcopy(different()), strict=True):
        assert digest(value) == digest(again)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"abc", bytearray(b"abc")),
        (b"abc", memoryview(b"abc")),
        (b"ac", memoryview(b"abc")[::2]),
        ({1, 2}, frozenset({1, 2})),
        (Point(1, 2), (1, 2)),
        ({"a": 1, "b": 2}, OrderedDict(b=2, a=1)),
        ({"a", "b", "c"}, {"c", "b", "a"}),
        (math.nan, -math.nan),
        ({math.nan: 1, float("nan"): 2}, {float("nan"): 2, math.nan: 1}),
        (Colour.RED, Colour.CRIMSON),
        (Path("a/b"), PurePosixPath("a") / "b"),
        (Prompt("a", client=object()), Prompt("a", client=open)),
        (Fraction(2, 4), Fraction(1, 2)),
        (timedelta(hours=24), timedelta(1)),
    ],
)
def test_what_is_equal_and_of_one_type_has_one_digest(one: Any, other: Any) -> None:
    assert digest(one) == digest(other)
    assert digest([one], x={"y": one}) == digest([other], x={"y": other})


def test_a_subclass_counts_as_the_type_it_extends() -> None:
    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    assert digest(Text("a"), {Text("b"): Number(1)}) == digest("a", {"b": 1})


def test_positional_and_named_arguments_are_told_apart() -> None:
    forms = [
        digest(), digest(()), digest({}), digest(1), digest((1,)), digest(1, 2), digest((1, 2)), digest(a=1),
        digest({"a": 1}), digest("a", 1), digest(1, a=1), digest("ab", "c"), digest("a", "bc"), digest(b=1),
    ]  # fmt: skip
    assert len(set(forms)) == len(forms)
    assert digest(a=1, b=2) == digest(b=2, a=1)


# Laws

_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 2),
    st.sampled_from([0.0, -0.0, 1.0, math.nan]),
    st.floats(),
    st.text(st.characters(codec=None), max_size=5),
    st.sampled_from(["", "a", "b", "1"]),
    st.binary(max_size=5),
)
_keys = st.one_of(_leaves, st.tuples(_leaves, _leaves), st.frozensets(_leaves, max_size=3))
_values = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner),
        st.tuples(inner, inner),
        st.dictionaries(_keys, inner, max_size=4),
        st.sets(_keys, max_size=4),
    ),
    max_leaves=12,
)


def told(value: Any) -> str:
    """What a value is by the definition of equality here: its type and how it is written, in no order where
    there is none.
    """
    if isinstance(value, dict):
        return f"dict{sorted((told(key), told(item)) for key, item in value.items())}"
    if isinstance(value, set | frozenset):
        return f"set{sorted(map(told, value))}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[told(item) for item in value]}"
    return f"{type(value).__name__} {value!r}"


def shuffled(value: Any) -> Any:
    """The same value, put together in another order."""
    if isinstance(value, dict):
        return {shuffled(key): shuffled(item) for key, item in reversed(value.items())}
    if isinstance(value, set | frozenset):
        return type(value)([shuffled(item) for item in value][::-1])
    if isinstance(value, list | tuple):
        return type(value)([shuffled(item) for item in value])
    return value


@given(_values, _values)
def test_digests_are_the_same_exactly_if_the_values_are(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) is (told(one) == told(other))


@given(_values)
def test_the_order_in_which_a_value_was_made_does_not_matter(value: Any) -> None:
    assert digest(value) == digest(shuffled(value)) == digest(copy.deepcopy(value))


@given(st.lists(_values, max_size=3), st.dictionaries(st.text(max_size=3), _values, max_size=3))
def test_arguments_are_never_mixed_up(args: list[Any], kwargs: dict[str, Any]) -> None:
    assert digest(*args, **kwargs) != digest(*args, None, **kwargs)
    assert digest(*args, **kwargs) != digest(args, kwargs)


# The same for ever


def test_what_is_hashed_is_each_value_by_type_length_and_content() -> None:
    written = b"t3:s5:hellol2:i1;Nf" + struct.pack(">d", 1.5) + b"d2:s1:ai-ff;s1:bu2:Fb1:x"
    expected = blake2b(written, digest_size=16, person=b"headgate 1").hexdigest()
    assert digest("hello", [1, None], 1.5, b={b"x", False}, a=-255) == expected


KNOWN: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "bf2e87e26cf22801132e53759d030b2b"),
    ((None, True, 1, -255, 1.5, "text", b"bytes"), {}, "31efd69a4070204f79a88d40d925aa7d"),
    (("\ud800", math.nan, 2**70), {}, "80918c69da621eb93da139fab0205966"),
    (([1, (2, {3, 4}), {"b": 1, "a": None}],), {}, "803d5e6e63e56697102dd8bfe44af7b5"),
    (("x" * 5000,), {"temperature": 0.5}, "590c761ca54d027a4445d9ef2c57789c"),
    ((Colour.RED, Right.READ, PurePosixPath("a/b")), {}, "57a35c6c98ee3507b900b9b1a8f5fc4e"),
    (
        (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), date(2026, 1, 2), time(3)),
        {},
        "06ab917634cdd59d1093bf2cbd532994",
    ),
    (
        (timedelta(1, 2, 3), Decimal("1.50"), Fraction(1, 3), UUID(int=5)),
        {},
        "cc5ca9599b70ac0f024d8ae69cc63830",
    ),
    ((Prompt("a", {"x": 1}), Dumped({"y": 2})), {}, "0279df694603f6cb6ba35a1474a20f48"),
    (([{"role": "user", "content": "Hello"}],), {"model": "m"}, "c6bb8fe4370de528343db6dffeab2674"),
]


@pytest.mark.parametrize(("args", "kwargs", "expected"), KNOWN)
def test_known_digests_stand_for_ever(args: tuple[Any, ...], kwargs: dict[str, Any], expected: str) -> None:
    """If this fails, nobody's checkpoint finds its results any more."""
    assert digest(*args, **kwargs) == expected


ELSEWHERE = """
from headgate.runner.digests import digest
words = "the quick brown fox jumps over the lazy dog".split()
keyed = {frozenset(words): dict.fromkeys(set(words), 1)}
print(digest(set(words), keyed, of={("a", None): {1.5, "x", b"y"}}))
"""


def test_every_process_computes_the_same_whatever_its_hash_seed() -> None:
    def computed(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert {computed(seed) for seed in ("0", "1", "4321")} == {"e83bdf8a5eb2c4cb26390c529933d99a"}


# What is refused


def _cycle() -> list[Any]:
    value: list[Any] = [1]
    value.append({"again": value})
    return value


def _nested(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [value]
    return value


class Client:
    pass


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((len,), {}, "args[0] is of type builtin_function_or_method;"),
        ((1, {"client": Client()}), {}, 'args[1]["client"] is of type tests.runner.test_digests.Client;'),
        ((), {"client": Client()}, 'kwargs["client"] is of type'),
        (([0, (1, Client)],), {}, "args[0][1][1] is of type type;"),
        (({(1, Client()): 2},), {}, "args[0], a key of it,[1] is of type"),
        (({len},), {}, "args[0], a member of it, is of type"),
        (({math.nan: 1, -math.nan: Client()},), {}, "args[0][nan] is of type"),
        ((Prompt("a", {"x": print}),), {}, 'args[0].options["x"] is of type'),
        ((Dumped({"x": [print]}),), {}, 'args[0]["x"][0] is of type'),
        (({"k" * 100: print},), {}, "args[0]['kkkkkkkkkkkk"),
        ((memoryview(b"abcd").cast("i"),), {}, "args[0] is a memoryview of other than plain bytes;"),
        ((_cycle(),), {}, 'args[0][1]["again"] contains itself;'),
        ((_nested(DEEPEST + 1),), {}, f"is nested more than {DEEPEST} levels deep;"),
    ],
)
def test_what_is_no_data_is_refused_with_its_place_and_the_way_out(
    args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        digest(*args, **kwargs)
    assert str(caught.value).startswith("expected arguments that are plain data; ")
    assert where in str(caught.value)
    assert "give the Runner digest=" in str(caught.value)


def test_endless_models_are_refused() -> None:
    class Endless:
        def model_dump(self) -> Any:
            return {"more": Endless()}

    with pytest.raises(ConfigurationError, match="is nested more than"):
        digest(Endless())


def test_a_dataclass_that_holds_itself_is_refused() -> None:
    prompt = Prompt("a")
    prompt.options["me"] = prompt
    with pytest.raises(ConfigurationError, match=r'args\[0\]\.options\["me"\] contains itself'):
        digest(prompt)


def test_a_stack_that_is_nearly_full_is_told_as_too_deep() -> None:
    def under(frames: int) -> str:
        return under(frames - 1) if frames else digest(_nested(DEEPEST - 1))

    def ever_deeper() -> None:
        for frames in range(0, sys.getrecursionlimit(), 20):
            under(frames)

    with pytest.raises(ConfigurationError, match="is nested too deeply"):
        ever_deeper()


def test_as_deep_as_allowed_and_met_twice_is_fine() -> None:
    shared = ["a"]
    assert digest([shared, shared]) == digest([["a"], ["a"]])
    assert digest(_nested(DEEPEST)) != digest(_nested(DEEPEST - 1))


def test_a_refusal_leaves_no_trace() -> None:
    value = [1, Client()]
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"args\[0\]\[1\] is of type"):
            digest(value)
    value[1] = 2
    assert digest(value) == digest([1, 2])


def test_classes_made_for_each_call_do_not_pile_up() -> None:
    for number in range(2500):
        assert digest(type(f"Kind{number}", (int,), {})(5)) == digest(5)
    assert len(_ENCODERS) <= 1000


# Other libraries


def test_models_of_pydantic_are_told_by_class_and_fields() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Part(pydantic.BaseModel):  # type: ignore[name-defined,misc]  # imported above
        text: str

    class Link(Part):
        url: str = ""

    class Image(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        text: str

    class Message(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        model_config = pydantic.ConfigDict(extra="allow", arbitrary_types_allowed=True)
        part: Part | Image
        secret: Any = pydantic.Field(default=None, exclude=True)

    class Words(pydantic.RootModel[list[str]]):  # type: ignore[name-defined,misc]
        pass

    part = Part(text="a")
    messages: list[Any] = [
        part,
        Link(text="a"),
        Message(part=part),
        Message(part=Image(text="a")),
        Message(part=Link(text="a", url="b")),
        Message(part=Link(text="a", url="c")),
        Message(part=part, more=1),
        Words(["a"]),
        Words(["b"]),
    ]
    assert len({digest(message) for message in messages}) == len(messages)
    assert [digest(message.model_copy(deep=True)) for message in messages] == list(map(digest, messages))
    assert digest(Message(part=part, secret=Client())) == digest(Message(part=part))
    with pytest.raises(ConfigurationError, match=r"args\[0\]\.more is of type type;"):
        digest(Message(part=part, more=Client))


def test_scalars_of_numpy_are_the_values_they_stand_for() -> None:
    np = pytest.importorskip("numpy")
    for scalar, plain in (
        (np.int64(5), 5),
        (np.uint8(5), 5),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (np.complex128(1j), 1j),
        (np.array(5), 5),
    ):
        assert digest(scalar) == digest(plain)
    times = [np.datetime64(5, "ns"), np.datetime64(5, "us"), np.timedelta64(5, "ns"), np.datetime64("NaT"), 5]
    assert len({digest(value) for value in times}) == len(times)
    with pytest.raises(ConfigurationError, match=r"numpy\.longdouble"):
        digest(np.longdouble(1))


def test_arrays_of_numpy_are_told_by_type_shape_and_content() -> None:
    np = pytest.importorskip("numpy")
    arrays: list[Callable[[], Any]] = [
        lambda: np.arange(6),
        lambda: np.arange(6).reshape(2, 3),
        lambda: np.arange(6).reshape(3, 2),
        lambda: np.arange(6, dtype="i2"),
        lambda: np.arange(6.0),
        lambda: np.zeros(6, dtype=bool),
        lambda: np.zeros(0),
        lambda: np.zeros((0, 2)),
        lambda: np.array(["a", "b"]),
        lambda: np.array(["a", None, 5], dtype=object),
        lambda: np.array([(1, 2.0)], dtype=[("a", "i1"), ("b", "f8")]),
        lambda: np.array([1, 2], dtype="M8[s]"),
        lambda: np.ma.array([1, 2], mask=[False, True]),
        lambda: np.ma.array([1, 3], mask=[False, False]),
        lambda: np.arange(100_000),
    ]
    names = [digest(make()) for make in arrays]
    assert len(set(names)) == len(names)
    assert [digest(make()) for make in arrays] == names
    assert digest(np.arange(6).reshape(2, 3).T) == digest(np.ascontiguousarray(np.arange(6).reshape(2, 3).T))
    assert digest(np.arange(6, dtype=">i4")) == digest(np.arange(6, dtype="<i4"))
    assert digest(np.ma.array([1, 2], mask=[False, True])) == digest(np.ma.array([1, 9], mask=[False, True]))
    assert digest(np.arange(6)) != digest(list(range(6)))
    with pytest.raises(ConfigurationError, match=r"args\[0\]\[1\] is of type"):
        digest(np.array([1, Client()], dtype=object))


def test_scalars_of_pandas_have_digests_and_tables_have_none() -> None:
    pd = pytest.importorskip("pandas")
    scalars = [
        pd.Timestamp("2026-01-02"), pd.Timestamp("2026-01-02", tz="UTC"), pd.Timestamp(5), pd.Timestamp(6),
        pd.Timedelta(5), pd.Timedelta(6), pd.NaT, pd.NA, None,
    ]  # fmt: skip
    assert len({digest(value) for value in scalars}) == len(scalars)
    assert digest(pd.Timestamp("2026-01-02")) == digest(datetime.fromisoformat("2026-01-02"))
    assert digest(pd.Timedelta(days=1)) == digest(timedelta(1))
    with pytest.raises(ConfigurationError, match=r"pandas.*DataFrame"):
        digest(pd.DataFrame({"a": [1]}))
