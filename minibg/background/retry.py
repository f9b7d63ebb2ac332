"""Whether a failed attempt is followed by another, and when.

The file is one decision, and it is pure: attempt number and exception in, seconds or None out.
`queue.py` does the waiting, and knows no exceptions.

The rules:

- Off unless asked. A task without a `Retry` has one attempt. [retry.1] Running a function twice is
  right only where its author says so: a welcome mail that was sent and then failed to log must not
  be sent again.
- ``attempts`` counts the first one. [retry.2] River, Oban and SAQ count like this: ``attempts=5``
  is one attempt and four more.
- The backoff is exponential with *full jitter*: the delay before attempt n+1 is uniform between
  zero and the ceiling ``min(cap, base * 2**(n-1))``. [retry.3] A thousand tasks that failed
  together, because a mail server went away, do not come back together. This is the rule of Celery
  and AWS. Equal jitter (half fixed, half random) was rejected: it brings them back in a narrower
  crowd.
- A task may choose the delay itself: ``raise RetryLater(after=30)``, as in Dramatiq, arq and
  Celery. It spends an attempt all the same, so it cannot go on for ever. [retry.4] Without a
  `Retry` it is a failure like any other.
- ``give_up_on`` beats ``on``. [retry.5] A wrong address is not a mail server that is away.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minibg.background.clock import count, seconds

#: The largest power of two in the backoff. 2**63 seconds is longer than any cap, and a larger power
#: overflows a float.
LARGEST_EXPONENT = 63


class RetryLater(Exception):
    """Raise it in a task: this attempt did not work, try again in ``after`` seconds.

    It has no effect in a task without a `Retry`, or without an attempt left: there it is a failure
    like any other. Raises ValueError unless ``after`` is a number of seconds, zero or more.
    """

    def __init__(self, message: str = "the task asked for another attempt", *, after: float) -> None:
        super().__init__(message)
        #: Seconds until the next attempt.
        self.after = seconds("RetryLater(after=)", after)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a task is tried, and how long it waits in between.

    Raises ValueError for a number and TypeError for a class that makes no sense, and names the
    option.
    """

    #: The number of attempts at the most, the first included.
    attempts: int = 5
    #: Seconds: the ceiling of the first delay. It doubles with each attempt.
    base: float = 1.0
    #: Seconds: no delay is longer. Ten minutes is Celery's cap.
    cap: float = 600.0
    #: The exception classes that are followed by another attempt.
    on: tuple[type[BaseException], ...] = (Exception,)
    #: The exception classes that are not, though they are among ``on``.
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
    """Return exception classes as a tuple: ``on=ValueError`` and ``on=[ValueError]`` are
    understood.
    """
    classes = tuple(value) if isinstance(value, Iterable) and not isinstance(value, type) else (value,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"Retry({option}=) is one or more exception classes, not {each!r}")
    return classes
