"""The decision whether a failed attempt is followed by another, and when.

The decision is a pure function of the attempt number and the exception; it returns seconds or None.
The waiting is done by `queue.py`, which never sees the exception.

The rules:

- Retries are off by default. A task without a `Retry` has one attempt. [retry.1] Only the author of
  a task knows whether it may run twice: a task that sent a mail and then failed to log it must not
  send the mail again.
- ``attempts`` counts the first one. [retry.2] River, Oban and SAQ count in the same way:
  ``attempts=5`` is one attempt and four retries.
- The backoff is exponential with *full jitter*: the delay before attempt n+1 is uniform between
  zero and the ceiling ``min(cap, base * 2**(n-1))``. [retry.3] So a thousand tasks that failed
  together, because a mail server went away, are not retried together. Celery and AWS use the same
  rule. Equal jitter (half fixed, half random) was rejected: it spreads the retries over half the
  time.
- A task may choose the delay itself: ``raise RetryLater(after=30)``, as in Dramatiq, arq and
  Celery. This attempt counts like any other, so the retries end. [retry.4] Without a `Retry` the
  exception is a failure like any other.
- ``give_up_on`` takes precedence over ``on``. [retry.5] So a task can retry an unreachable mail
  server and give up on a wrong address.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minibg.background.clock import count, seconds

#: The largest power of two in the backoff. 2**63 seconds is longer than any cap, and a larger power
#: overflows a float.
LARGEST_EXPONENT = 63


class RetryLater(Exception):
    """Raised by a task whose attempt failed and should be retried in ``after`` seconds. In a task
    without a `Retry` or without an attempt left, it is a failure like any other. Raises ValueError
    unless ``after`` is a number of seconds, zero or more.
    """

    def __init__(self, message: str = "the task asked for another attempt", *, after: float) -> None:
        super().__init__(message)
        #: Seconds until the next attempt.
        self.after = seconds("RetryLater(after=)", after)


@dataclass(frozen=True, slots=True)
class Retry:
    """The number of attempts of a task, and the delays between them. Raises ValueError for an
    invalid number and TypeError for an invalid class; the message names the option.
    """

    #: The largest number of attempts, including the first.
    attempts: int = 5
    #: Seconds: the ceiling of the first delay. The ceiling doubles with each attempt.
    base: float = 1.0
    #: Seconds: the longest ceiling. Ten minutes is Celery's cap.
    cap: float = 600.0
    #: The exception classes that are retried.
    on: tuple[type[BaseException], ...] = (Exception,)
    #: The exception classes that are not retried, even if ``on`` includes them.
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        count("Retry(attempts=)", self.attempts)
        for name in ("base", "cap"):
            object.__setattr__(self, name, seconds(f"Retry({name}=)", getattr(self, name)))
        for name in ("on", "give_up_on"):
            object.__setattr__(self, name, _classes(name, getattr(self, name)))

    def delay(self, attempt: int, error: BaseException, random: Callable[[], float]) -> float | None:
        """Return the seconds to wait after attempt number ``attempt`` raised ``error``; None to
        give up.

        ``random`` returns a number in [0, 1).
        """
        if attempt >= self.attempts:
            return None
        if isinstance(error, RetryLater):
            return error.after
        if isinstance(error, self.give_up_on) or not isinstance(error, self.on):
            return None
        ceiling = min(self.cap, self.base * 2.0 ** min(attempt - 1, LARGEST_EXPONENT))
        return random() * ceiling


def _classes(option: str, value: object) -> tuple[type[BaseException], ...]:
    """Return exception classes as a tuple. ``value`` may be one class or an iterable of classes."""
    classes = tuple(value) if isinstance(value, Iterable) and not isinstance(value, type) else (value,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"Retry({option}=) is one or more exception classes, not {each!r}")
    return classes
