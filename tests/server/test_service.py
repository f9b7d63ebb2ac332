"""The clock of a server and its deadlines, with a loop whose time is a number."""

from typing import Any

import pytest

from minibg.server.forwarded import TrustedProxies
from minibg.server.limits import PROGRESS, Limits
from minibg.server.service import Deadline, Service
from tests.server.wire import echo


class Loop:
    """A loop whose time stands still until the test moves it."""

    def __init__(self) -> None:
        self.moment = 100.0
        self.timers: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.moment

    def call_later(self, delay: float, callback: Any) -> "Loop":
        self.timers.append((delay, callback))
        return self

    def cancel(self) -> None:
        """It is its own timer."""
        self.timers.clear()


class Watched:
    """A connection that counts how often it was asked to look at its deadlines."""

    asked = 0

    def check_deadlines(self) -> None:
        self.asked += 1

    def shutdown(self) -> None: ...

    def reset(self) -> None: ...


def service_of(loop: Any, **limits: Any) -> Service:
    settings: dict[str, Any] = {"trusted": TrustedProxies(), "root_path": "", "access_log": False, "state": {}}
    return Service(app=echo, limits=Limits(**limits), loop=loop, **settings)


def at(service: Any, moment: float) -> None:
    """Let the tick come at a moment."""
    service.loop.moment = moment
    service.tick()


async def test_the_tick_sets_the_date_asks_every_connection_and_comes_back() -> None:
    loop, connection = Loop(), Watched()
    service = service_of(loop)
    service.connections.add(connection)
    service.tick()
    assert (service.now, connection.asked) == (0.0, 1)
    at(service, 101.0)
    assert (service.now, connection.asked) == (1.0, 2)
    assert service.date.endswith(b" GMT")
    assert loop.timers == [(1.0, service.tick)] * 2
    service.close()
    assert loop.timers == []


@pytest.mark.parametrize(
    ("limits", "interval"),
    [({}, 1.0), ({"keep_alive": 0.5}, 0.25), ({"header_timeout": 1.5}, 0.75), ({"header_timeout": 1e-9}, 0.01)],
)
async def test_short_limits_make_the_tick_shorter(limits: dict[str, float], interval: float) -> None:
    assert service_of(Loop(), **limits).interval == interval


async def test_a_deadline_is_never_early_and_at_most_two_ticks_late() -> None:
    service = service_of(Loop())
    deadline = Deadline(service)
    at(service, 100.0)
    assert not deadline.has_passed()
    deadline.set(3.0)
    seen = []
    for moment in (101.0, 102.0, 103.0, 104.0):
        at(service, moment)
        seen.append(deadline.has_passed())
    assert seen == [False, False, False, True]
    deadline.clear()
    assert not deadline.has_passed()


async def test_progress_renews_a_deadline_and_less_does_not() -> None:
    service = service_of(Loop())
    deadline = Deadline(service)
    at(service, 100.0)
    deadline.set(1.0, 500)
    at(service, 101.0)
    at(service, 102.0)
    assert deadline.has_passed()
    assert not deadline.renew(1.0, 500 + PROGRESS - 1)
    assert deadline.has_passed()
    assert deadline.renew(1.0, 500 + PROGRESS)
    assert not deadline.has_passed()
    at(service, 103.0)
    at(service, 104.0)
    assert deadline.has_passed()
    assert not deadline.renew(1.0, 500 + PROGRESS)  # measured from the last renewal


async def test_time_that_the_server_has_lost_is_not_counted() -> None:
    service = service_of(Loop())
    deadline = Deadline(service)
    at(service, 101.0)
    deadline.set(3.0)
    seen = []
    for moment in (102.0, 110.0, 111.0, 200.0, 201.5, 202.5):
        at(service, moment)
        seen.append((service.now, deadline.has_passed()))
    assert seen == [(2.0, False), (2.0, False), (3.0, False), (3.0, False), (4.5, False), (5.5, True)]
