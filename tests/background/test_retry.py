"""Whether a failed attempt is followed by another, and when."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from minibg.background import Retry, RetryLater


def highest() -> float:
    """Return the random number with which a delay is its ceiling."""
    return 1.0


def delays(retry: Retry, error: BaseException, random: float = 1.0) -> list[float | None]:
    return [retry.delay(attempt, error, lambda: random) for attempt in range(1, retry.attempts + 1)]


def test_attempts_counts_the_first_one() -> None:
    assert delays(Retry(attempts=1), ValueError()) == [None]
    assert delays(Retry(attempts=3), ValueError()) == [1.0, 2.0, None]


def test_the_ceiling_doubles_from_base_to_cap() -> None:
    assert delays(Retry(attempts=8, base=0.5, cap=10), ValueError()) == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, None]


def test_the_delay_is_uniform_between_zero_and_the_ceiling() -> None:
    retry = Retry(attempts=4, base=2)
    assert delays(retry, ValueError(), random=0.0) == [0.0, 0.0, 0.0, None]
    assert delays(retry, ValueError(), random=0.25) == [0.5, 1.0, 2.0, None]


def test_the_default_is_five_attempts_within_ten_minutes() -> None:
    assert (Retry().attempts, Retry().base, Retry().cap) == (5, 1.0, 600.0)
    assert delays(Retry(), ValueError()) == [1.0, 2.0, 4.0, 8.0, None]


def test_a_thousandth_attempt_does_not_overflow() -> None:
    assert Retry(attempts=10_000).delay(5_000, ValueError(), highest) == 600.0
    assert Retry(attempts=10_000, cap=float("inf")).delay(5_000, ValueError(), highest) == 2.0**63


def test_only_exceptions_in_on_are_followed_by_another_attempt() -> None:
    retry = Retry(on=(OSError,))
    assert retry.delay(1, ConnectionResetError(), highest) == 1.0
    assert retry.delay(1, ValueError(), highest) is None


def test_by_default_no_exception_that_ends_a_program_is_followed_by_another_attempt() -> None:
    assert [Retry().delay(1, error, highest) for error in (SystemExit(), KeyboardInterrupt())] == [None, None]


def test_give_up_on_beats_on() -> None:
    retry = Retry(on=(OSError,), give_up_on=(ConnectionResetError,))
    assert retry.delay(1, OSError(), highest) == 1.0
    assert retry.delay(1, ConnectionResetError(), highest) is None


def test_retry_later_chooses_the_delay_and_spends_an_attempt() -> None:
    retry = Retry(attempts=3, on=(), cap=1)
    assert delays(retry, RetryLater(after=30)) == [30.0, 30.0, None]


def test_retry_later_has_a_message() -> None:
    assert str(RetryLater(after=1)) == "the task asked for another attempt"
    assert str(RetryLater("busy", after=1)) == "busy"


@pytest.mark.parametrize("after", [-1, float("nan"), 10**400, "30", None, True])
def test_retry_later_is_refused_without_a_number_of_seconds(after: Any) -> None:
    with pytest.raises(ValueError, match="RetryLater"):
        RetryLater(after=after)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": 2.0}, "attempts"),
        ({"attempts": True}, "attempts"),
        ({"base": -1}, "base"),
        ({"base": float("nan")}, "base"),
        ({"base": 10**400}, "base"),
        ({"cap": -1}, "cap"),
        ({"cap": "long"}, "cap"),
    ],
)
def test_numbers_that_make_no_sense_are_named(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retry(**numbers)


@pytest.mark.parametrize("on", [ValueError, [ValueError], (ValueError, OSError), iter([ValueError])])
def test_exception_classes_are_understood_alone_and_in_any_iterable(on: Any) -> None:
    retry = Retry(on=on)
    assert retry.delay(1, ValueError(), highest) == 1.0
    assert retry.delay(1, KeyError(), highest) is None
    assert isinstance(hash(retry), int)


@pytest.mark.parametrize("option", ["on", "give_up_on"])
@pytest.mark.parametrize("value", [3, "ValueError", ValueError(), [int], (ValueError, None)])
def test_a_value_that_is_no_exception_class_is_refused(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"Retry\({option}=\) is one or more exception classes, not "):
        Retry(**{option: value})


def test_seconds_are_floats_whatever_number_they_were() -> None:
    retry = Retry(base=Decimal("0.5"), cap=Fraction(3, 2))  # type: ignore[arg-type]
    assert delays(retry, ValueError()) == [0.5, 1.0, 1.5, 1.5, None]
    assert type(RetryLater(after=Decimal(3)).after) is float  # type: ignore[arg-type]
