"""The tasks of one response, from ``add_task`` until the response has left.

This is the object a handler knows as `BackgroundTasks`. The name and ``add_task`` are FastAPI's; what is behind them is
not a list that the request's own coroutine works off, but a *hold*: it collects runs that have a place in the pool's
queue and may not start yet. Three verbs end that, and `after_response.py` is the one who says them:

- ``commit`` before the response head goes out: from here on the tasks are promised. With overflow "wait" this is where
  places are waited for.
- ``release`` when the last byte has left: they go to the workers, as one batch, in the order they were added.
- ``drop`` when the handler failed: they never run, but for those that were added with ``using(always=True)``.

Guarantees: a place in the queue is reserved in ``add_task``, so `QueueFull` is raised in the handler, where it can be
caught and answered. Unless it is caught, one response's tasks are all accepted or none. What a run becomes can be read from the `TaskResult`
that ``add_task`` gives back, from that moment on.

A hold that was dropped can be added to again: the handler of an exception may want a task of its own. After the
release ``add_task`` starts its task at once, as a batch of its own, as `Pool.enqueue` does: a task that still has the
hold of its request in hand can use it.

Rejected: collecting plain function calls and reserving places only at the end. It is simpler, and finds out that the
queue is full when the handler has done its work and can no longer say so.
"""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from minibg.background.result import TaskResult
from minibg.background.run import Run

if TYPE_CHECKING:
    from minibg.background.pool import Pool

P = ParamSpec("P")
T = TypeVar("T")


class BackgroundTasks:
    """Tasks that run when the response has left. One per request; handlers and dependencies share it."""

    __slots__ = ("_committed", "_origin", "_released", "_runs", "pool")

    def __init__(self, pool: "Pool", origin: str = "") -> None:
        #: The pool that runs them.
        self.pool = pool
        self._origin = origin
        self._runs: list[Run] = []
        self._committed = 0
        self._released = False

    def __len__(self) -> int:
        """How many tasks it holds."""
        return len(self._runs)

    @overload
    def add_task(
        self, func: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskResult[T]: ...
    @overload
    def add_task(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskResult[T]: ...
    def add_task(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskResult[Any]:
        """Run ``func(*args, **kwargs)`` when the response has left. May be called from any thread.

        ``func`` is a function, a coroutine function, a `Task`, a partial, or another callable. Raises TypeError for
        what cannot be run, QueueFull when there is no place for it.
        """
        run = self.pool.prepare(func, args, kwargs, self._origin)
        return self.pool.on_loop(self._add, run).result

    def _add(self, run: Run) -> Run:
        run = self.pool.admit(run, already=len(self._runs))
        if self._released:
            self.pool.accept_and_release(run)
        else:
            self._runs.append(run)
        return run

    async def commit(self) -> None:
        """Promise to run what is held so far. Raises NotAccepted; then nothing of it is promised."""
        if len(self._runs) > self._committed:
            await self.pool.commit(self._runs)
            self._committed = len(self._runs)

    def release(self) -> None:
        """Give what is held to the workers: the response has left."""
        self._released = True
        runs, self._runs = self._runs, []
        if runs:
            self.pool.release(runs)

    def drop(self) -> None:
        """Drop what is held: the handler failed. Keeps those that run always."""
        dropped = [run for run in self._runs if not run.options.always]
        self._runs = [run for run in self._runs if run.options.always]
        self._committed = 0
        for run in dropped:
            self.pool.drop(run)
