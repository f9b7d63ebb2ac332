"""Whether a failed attempt is followed by another, and when.

The whole file is one decision, and it is pure: attempt number and exception in, seconds or None out. Waiting is done
by `queue.py`, which knows nothing of exceptions.

The rules:

- Off unless asked. A task without a `Retry` has one attempt. Running a thing twice is only right where its author
  said so: a welcome mail that went out and then failed to log must not go out again by default.
- ``attempts`` counts the first one, as River, Oban and SAQ count. ``attempts=5`` is one attempt and four more.
- Backoff is exponential with *full jitter*: the delay before attempt n+1 is uniform between zero and the ceiling
  ``min(cap, base * 2**(n-1))``. A thousand tasks that failed together because a mail server went away do not come back together. Celery's and AWS's
  rule; equal jitter (half fixed, half random) was rejected because it brings them back in a narrower crowd.
- The task knows best: ``raise RetryLater(after=30)`` sets the delay itself, as Dramatiq, arq and Celery allow. It spends
  an attempt all the same, so it cannot go on for ever, and it means nothing without a `Retry`: the run then fails.
- ``give_up_on`` beats ``on``: a wrong address is not a mail server that is away.
"""

from collections.abc import Callable
from dataclasses import dataclass

#: 2**63 seconds is longer than anybody's cap; beyond it the power would overflow a float for no gain.
LARGEST_EXPONENT = 63


class RetryLater(Exception):
    """Raised by a task: this attempt did not work, try again in ``after`` seconds.

    Without effect on a task that has no `Retry`, or no attempt left: then it is a failure like any other.
    """

    def __init__(self, message: str = "the task asked for another attempt", *, after: float) -> None:
        if not after >= 0:
            raise ValueError(f"RetryLater(after=) is a number of seconds, zero or more, not {after!r}")
        super().__init__(message)
        self.after = after


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a task is tried, and how long it rests in between.

    Raises ValueError for numbers that make no sense, and names them.
    """

    #: How many attempts there are at the most, the first included.
    attempts: int = 5
    #: Seconds: the ceiling of the first delay. It doubles with each attempt.
    base: float = 1.0
    #: Seconds: no delay is longer. Ten minutes is Celery's cap.
    cap: float = 600.0
    #: The exceptions that are worth another attempt.
    on: tuple[type[BaseException], ...] = (Exception,)
    #: Those that are not, though they are among ``on``.
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"Retry(attempts=) counts the first attempt: at least 1, not {self.attempts!r}")
        if not self.base >= 0 or not self.cap >= 0:
            raise ValueError(f"Retry(base=, cap=) are seconds, zero or more, not {self.base!r} and {self.cap!r}")

    def delay(self, attempt: int, error: BaseException, random: Callable[[], float]) -> float | None:
        """Seconds to wait after attempt number ``attempt`` raised ``error``; None: give up.

        ``random`` gives a number in [0, 1).
        """
        if attempt >= self.attempts:
            return None
        if isinstance(error, RetryLater):
            return error.after
        if isinstance(error, self.give_up_on) or not isinstance(error, self.on):
            return None
        ceiling = min(self.cap, self.base * 2.0 ** min(attempt - 1, LARGEST_EXPONENT))
        return random() * ceiling
