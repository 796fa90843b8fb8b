"""What a plain request leaves behind when it ends: its event, its count, its line; all of them or none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastpath.books import Books
from fastpath.cells import Cells
from fastpath.lane import Grant
from gateway.context import RequestContext
from gateway.errors import AuditUnavailable, InternalError

IN_FLIGHT, COUNT, DURATION = 0, 1, 2
BOUNDS = (0.001, 0.01)


class Sinks:
    """Where it all goes. Shapes: `cells` in flight, count, then sum and counts of the histogram."""

    def __init__(self):
        self.cells = memoryview(bytearray(8 * 8)).cast("d")
        self.events, self.lines, self.kinds = [], [], []
        self.now_ns = 2_000_000
        self.full = False
        self.books = Books(
            Cells(self.cells),
            IN_FLIGHT,
            self.cells_of,
            frozenset({"GET"}),
            BOUNDS,
            log=self,
            since_ns=lambda: self.now_ns,
        )

    def cells_of(self, route, method, status):
        self.kinds.append((route, method, status))
        return COUNT, DURATION

    def enqueue_finished(self, ctx, status):
        if self.full:
            raise AuditUnavailable()
        self.events.append((ctx.id, status))

    def write(self, ctx, status, took_ns):
        self.lines.append((ctx.id, status, took_ns))


@pytest.fixture
def sinks():
    return Sinks()


def request(**changes):
    route = SimpleNamespace(name="why", phi=changes.pop("phi", False))
    ctx = RequestContext(id="r-1", started_ns=500_000, method="GET", route=route)
    ctx.grant = Grant(route, None)
    for name, value in changes.items():
        setattr(ctx, name, value)
    return ctx


def test_a_plain_request(sinks):
    assert sinks.books.settle(request(), "200 OK", sinks) is True
    assert (sinks.events, sinks.lines, sinks.kinds) == (
        [("r-1", 200)],
        [("r-1", 200, 1_500_000)],
        [("why", "GET", 200)],
    )
    assert list(sinks.cells)[:6] == [-1.0, 1.0, 0.0015, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"grant": None}, id="no grant"),
        pytest.param({"route": None}, id="no route"),
        pytest.param({"error": InternalError()}, id="an error"),
        pytest.param({"shadow": "purpose"}, id="a rule that watches"),
        pytest.param({"query": "patient=7"}, id="a query, which may name patients"),
        pytest.param({"also": ("7", "8")}, id="several patients"),
        pytest.param({"span": object()}, id="a trace"),
        pytest.param({"method": "POST"}, id="what may have made something"),
        pytest.param({"phi": True}, id="what must be durable"),
    ],
)
def test_what_is_left_to_the_steps_one_by_one(sinks, changes):
    assert sinks.books.settle(request(**changes), "200 OK", sinks) is False
    assert not any([*sinks.events, *sinks.lines, *sinks.cells])


def test_a_status_may_be_its_number(sinks):
    """As units' and portal functions' are."""
    assert sinks.books.settle(request(), 404, sinks) is True
    assert (sinks.events, sinks.kinds) == ([("r-1", 404)], [("why", "GET", 404)])


@pytest.mark.parametrize(
    "status", ["", "20", "2x0 OK", "099 A", "\u0662\u0660\u0660 OK", None, 99, 1000, -200, True, 200.0]
)
def test_no_status(sinks, status):
    assert sinks.books.settle(request(), status, sinks) is False
    assert not any([*sinks.events, *sinks.lines, *sinks.cells])


def test_without_room_for_its_event_nothing_is_counted(sinks):
    sinks.full = True
    with pytest.raises(AuditUnavailable):
        sinks.books.settle(request(), "200 OK", sinks)
    assert not any([*sinks.lines, *sinks.cells])
    sinks.full = False
    assert sinks.books.settle(request(), "200 OK", sinks) is True
