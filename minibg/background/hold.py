"""The hold: the tasks of one response, from ``add_task`` until the response has left.

A handler knows it as `BackgroundTasks`. The name and ``add_task`` are FastAPI's. FastAPI's object
is a list of tasks that run inside the request's own coroutine. minibg's is a *hold*: it collects
runs that have a slot of the queue and may not start yet. A response has one hold; its handler and
its dependencies share it. [adding.1]

`after_response.py` calls three methods of the hold:

- ``commit`` before the response head leaves: the runs are accepted, with a journal on disk.
- ``release`` after the response has left: the runs go to the workers as one batch, in the order
  they were added.
- ``drop`` when no response was produced: the runs never start, except for runs that were added with
  ``using(always=True)``.

A task takes its slot in ``add_task``, so `QueueFull` is raised in the handler, where it can be
caught and answered. [bounded.2] Unless the handler catches it, the tasks of one response are all
accepted or none. [bounded.3] A handler that prefers to wait reserves slots first: ``await
background_tasks.reserve(3, timeout=5.0)`` waits until three slots are free for this hold. The next
three calls of ``add_task`` use them, and the commit frees the unused ones.

A dropped hold accepts tasks again, because an exception handler may need a task of its own. After
the release ``add_task`` starts its task at once, as a batch of its own, like `Pool.enqueue`. So a
task can still use the hold of its request.

Rejected: collecting plain function calls and taking slots at the end. It is simpler, but a full
queue would be noticed only after the handler has returned, when it can no longer answer.
"""

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from minibg.background.clock import count, seconds
from minibg.background.pool import Pool
from minibg.background.result import Event, TaskResult
from minibg.background.run import Run, of_origin
from minibg.log import SafeLogger

logger = SafeLogger("minibg.background")

P = ParamSpec("P")
T = TypeVar("T")


class BackgroundTasks:
    """The tasks of one response, which run after it has left. Handlers and dependencies share it."""

    __slots__ = ("_committed", "_is_released", "_origin", "_reserved", "_runs", "pool")

    def __init__(self, pool: Pool, origin: str = "") -> None:
        #: The pool that runs the tasks.
        self.pool = pool
        self._origin = origin
        #: The runs in the order they were added. The value is True for a run that is kept at a
        #: drop.
        self._runs: dict[Run, bool] = {}
        self._committed: set[Run] = set()
        #: The number of slots that are reserved and not used yet.
        self._reserved = 0
        self._is_released = False

    def __len__(self) -> int:
        """Return the number of tasks in this hold."""
        return len(self._runs)

    @overload
    def add_task(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskResult[T]: ...
    @overload
    def add_task(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    def add_task(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskResult[Any]:
        """Run ``func(*args, **kwargs)`` when the response has left. May be called from any thread.

        ``func`` is a function, a coroutine function, a `Task`, a partial, or another callable.
        Raises TypeError for a callable that cannot be run as a task, QueueFull when no slot is
        free, PoolStopped.
        """
        run = self.pool.prepare(func, args, kwargs, self._origin)
        return self.pool.on_loop(self._add, run).result

    def _add(self, run: Run) -> Run:
        added = self.pool.admission.add(run, reserved=self._reserved > 0)
        if added is run and self._reserved:
            self._reserved -= 1
        if self._is_released:
            self.pool.admission.release([added])
        elif added in self._runs:  # This hold has the run already, by its key, and counts as one holder.
            added.holders -= 1
            self._runs[added] |= run.options.always
        else:
            self._runs[added] = run.options.always
        return added

    async def reserve(self, n: int = 1, timeout: float | None = None) -> None:
        """Wait at most ``timeout`` seconds until ``n`` slots are free together, and reserve them.

        Callers are served first come, first served. The next ``n`` calls of ``add_task`` use these
        slots; unused slots are freed when the response head leaves. Raises QueueFull after the
        timeout [bounded.6], and at once when ``n`` is larger than the pool's ``queue_limit``;
        PoolStopped; ValueError for an invalid ``n`` or ``timeout``.
        """
        timeout = None if timeout is None else seconds("timeout=", timeout)
        self.pool.check_loop()
        await self.pool.admission.slots.reserve(count("n=", n), timeout)
        self._reserved += n
        if self._is_released:  # The response has left while one of its tasks waited here.
            self._free_reserved()

    async def commit(self) -> None:
        """Accept the runs that are held so far, all or none. Raises NotAccepted."""
        self._free_reserved()
        while not self._committed.issuperset(self._runs):  # Runs may be added during the await.
            runs = list(self._runs)  # Including committed ones: the journal keeps them as one batch.
            await self.pool.admission.commit(runs)
            self._committed.update(runs)

    def release(self) -> None:
        """Hand the runs to the workers, after the response has left."""
        self._is_released = True
        self._free_reserved()
        runs = list(self._runs)
        self._runs.clear()
        if runs:
            self.pool.admission.release(runs)

    def drop(self, reason: str = "its response was not produced") -> None:
        """Drop the runs, except for runs with ``always=True``. ``reason`` is for the log."""
        self._free_reserved()
        self._drop([run for run, always in self._runs.items() if not always], reason)

    def drop_uncommitted(self, reason: str = "it was added too late to be accepted") -> None:
        """Drop the runs that are not committed, because they were added too late."""
        self._drop([run for run in self._runs if run not in self._committed], reason)

    def _drop(self, runs: list[Run], reason: str) -> None:
        for run in runs:
            del self._runs[run]
        dropped = [f"{run.result.name} {run.result.id}" for run in runs if self.pool.admission.drop(run)]
        if dropped:
            fields = {"event": Event.DROP.value, "origin": self._origin, "number": len(dropped), "reason": reason}
            message = "%d dropped%s, because %s: %s"
            logger.warning(message, len(dropped), of_origin(self._origin), reason, ", ".join(dropped), extra=fields)

    def _free_reserved(self) -> None:
        unused, self._reserved = self._reserved, 0
        self.pool.admission.slots.free_unused(unused)
