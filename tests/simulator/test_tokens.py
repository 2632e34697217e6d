import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.simulator.tokens import count_tokens, truncate


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), (" \n", 0), ("gate", 1), ("gates", 2), ("A gate, closed!", 6), ("水門は高い", 2), ("🙂🙂", 2)],
)
def test_counts_by_the_stated_formula(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens


@given(st.text())
def test_never_exceeds_the_bytes(text: str) -> None:
    assert count_tokens(text) <= len(text.encode("utf-8", "surrogatepass"))


@given(st.text(), st.integers(0, 20))
def test_truncates_to_the_longest_beginning_that_fits(text: str, max_tokens: int) -> None:
    kept = truncate(text, max_tokens)
    assert text.startswith(kept)
    assert count_tokens(kept) == min(max_tokens, count_tokens(text))
