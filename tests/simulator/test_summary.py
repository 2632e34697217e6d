from hypothesis import given
from hypothesis import strategies as st

from headgate.simulator.summary import summarise
from headgate.simulator.tokens import count_tokens

ARTICLE = (
    "The gate of the canal lets water through. Someone painted a door green. "
    "Water behind the gate rises when the canal is full. My neighbour has a cat. "
    "The keeper opens the gate and the canal carries the water away. It was a Tuesday."
)


def test_keeps_the_sentences_about_the_frequent_words_in_order() -> None:
    summary, cut = summarise(ARTICLE, 256)
    assert summary == (
        "The gate of the canal lets water through. Water behind the gate rises when the canal is full."
    )
    assert not cut


def test_drops_sentences_that_do_not_fit() -> None:
    first = "The gate of the canal lets water through."
    assert summarise(ARTICLE, count_tokens(first)) == (first, True)


def test_cuts_a_sentence_if_none_fits() -> None:
    assert summarise("Enormous gates everywhere.", 2) == ("Enormous", True)


def test_a_text_without_words_has_no_summary() -> None:
    assert summarise(" \n ", 10) == ("", False)


@given(st.text(alphabet="ab .!?\n水。", max_size=80), st.integers(1, 30))
def test_never_exceeds_the_maximum(text: str, max_tokens: int) -> None:
    summary, _ = summarise(text, max_tokens)
    assert count_tokens(summary) <= max_tokens
