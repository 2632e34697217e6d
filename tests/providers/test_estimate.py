"""Token costs before anybody has counted them."""

from hypothesis import given
from hypothesis import strategies as st

from headgate.providers.estimate import LEARNED, MARGIN, REMEMBERED, UNKNOWN_OUTPUT, Estimator


def test_bytes_are_the_bound_until_enough_answers_have_told() -> None:
    estimator = Estimator()
    for _ in range(LEARNED - 1):
        estimator.learn("m", 1000, 250, 30)
        assert estimator.input_tokens("m", 4000) == 4000
        assert estimator.output_tokens("m") == UNKNOWN_OUTPUT
    estimator.learn("m", 1000, 250, 30)
    assert estimator.input_tokens("m", 4000) == int(1000 * MARGIN) + 1
    assert estimator.output_tokens("m") == int(30 * MARGIN) + 1


def test_each_model_learns_for_itself() -> None:
    estimator = Estimator()
    for _ in range(LEARNED):
        estimator.learn("small", 1000, 100, 5)
    assert estimator.input_tokens("large", 1000) == 1000
    assert estimator.input_tokens("small", 1000) < 110


def test_a_peak_is_forgotten_after_a_while() -> None:
    estimator = Estimator()
    estimator.learn("m", 100, 90, 500)
    for _ in range(REMEMBERED - 1):
        estimator.learn("m", 100, 20, 10)
    assert estimator.input_tokens("m", 100) >= 90
    estimator.learn("m", 100, 20, 10)
    assert estimator.input_tokens("m", 100) < 25


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 1 << 40)), max_size=80), st.integers(0, 10**7))
def test_an_estimate_covers_all_that_was_seen_and_never_exceeds_the_bytes(
    seen: list[tuple[int, int]], size: int
) -> None:
    estimator = Estimator()
    for text, tokens in seen:
        estimator.learn("m", text, tokens, tokens)
    assert 0 <= estimator.input_tokens("m", size) <= size
    if len([text for text, _ in seen if text]) >= LEARNED:
        for text, tokens in seen[-REMEMBERED:]:
            assert estimator.input_tokens("m", text) >= min(tokens, text)
