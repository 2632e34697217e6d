import pytest

from headgate.simulator.durations import go_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "length_us"),
    [
        ("s", 1_000_000),
        ("3s", 3_000_000),
        ("0.5s", 500_000),
        ("250ms", 250_000),
        ("7us", 7),
        ("min", 60_000_000),
        ("10min", 600_000_000),
        ("h", 3_600_000_000),
        ("day", 86_400_000_000),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_reads_lengths(text: str, length_us: int) -> None:
    assert parse_duration(text) == length_us


@pytest.mark.parametrize("text", ["", "5", "s3", "-1s", "1 s", "1e3s", "0.5us", "month", "1m"])
def test_refuses_what_is_no_length(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("length_us", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (17_000, "17ms"),
        (999_001, "1s"),
        (1_200_000, "1.2s"),
        (1_202_000, "1.202s"),
        (60_000_000, "1m0s"),
        (360_000_000, "6m0s"),
        (179_560_000, "2m59.56s"),
        (3_723_500_000, "1h2m3.5s"),
        (86_400_000_000, "24h0m0s"),
    ],
)
def test_writes_lengths_as_go_does_rounded_up(length_us: int, text: str) -> None:
    assert go_duration(length_us) == text
