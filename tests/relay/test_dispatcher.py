"""Which connection a request takes, when it is repeated, and what its failures are called; links without a network."""

from __future__ import annotations

import time

import gevent
import pytest

from gateway import errors as e
from gateway.errors import Delivery
from gateway.relay import frames as fr
from gateway.relay.decoding import decode
from gateway.relay.dispatcher import Call, Dispatcher
from gateway.relay.exchange import HIGH_WATER_BYTES, Exchange
from gateway.relay.failures import error_of, may_go_elsewhere
from gateway.relay.frames import ResetCode
from gateway.relay.link import LOST, Failure, Link
from gateway.relay.mesh_link import AskingLink
from gateway.relay.registry import Membership, Registry
from gateway.relay.session import GatewaySession, Limits


class Dead:
    """A carrier that goes nowhere."""

    def abort(self):
        """Nothing to abort."""

    close = abort


class Local(Link):
    """A unit's connection whose writer never runs."""

    def __init__(self, registry, conn, unit="u", streams=8):
        session = GatewaySession(Limits(max_streams=streams), time.monotonic())
        (hello,) = session.receive(fr.encode(fr.Hello("a", conn)), time.monotonic())
        session.welcome(fr.Welcome(conn, 1), time.monotonic(), hello.hello)
        super().__init__(session, Dead())
        self.unit, self.conn, self.seat, self.epoch = unit, conn, (conn, 0), registry.next_epoch()
        self.registry, self.keeps_keys = registry, False
        registry.register(self)

    def on_ended(self):
        self.registry.unregister(self, self.lost_reason)


class Sibling(AskingLink):
    """A sibling's link whose writer never runs."""

    def __init__(self, registry, unit="u"):
        Link.__init__(self, Local(Registry(), "mesh").session, Dead())
        self._registry, self.name = registry, "sibling"
        registry.add_remote(self, Membership(unit, "r", registry.next_epoch(), "i", 0))


class Body:
    replayable = True
    kept_bytes = 0

    def __init__(self, *pieces):
        self.pieces = list(pieces) or [b""]
        self.firsts = 0

    def first(self):
        self.firsts += 1
        return self.pieces[0], len(self.pieces) == 1

    def next(self):
        return self.pieces[1], True

    def interrupt(self):
        """It never waits."""


@pytest.fixture
def registry():
    return Registry()


def call(registry, body=None, deadline_s=5.0, length=None):
    """A greenlet that dispatches, run until it waits."""
    request = fr.Request("id", "GET", "/", [], length)
    made = Call("u", request, body or Body(), time.monotonic() + deadline_s)
    greenlet = gevent.spawn(Dispatcher(registry).dispatch, made)
    gevent.sleep(0)
    gevent.sleep(0)
    return greenlet


def outcome(greenlet):
    """The error; raised ones are not printed."""
    greenlet.join(3)
    return greenlet.exception


def started(link):
    return len(link.session.streams)


def test_the_fewest_streams_first_then_siblings(registry):
    busy, free, sibling = Local(registry, "1"), Local(registry, "2", streams=1), Sibling(registry)
    busy.session.send_request(fr.Request("x", "GET", "/", []), time.monotonic() + 9)
    calls = [call(registry)]
    assert (started(busy), started(free), started(sibling)) == (1, 1, 0)
    calls += [call(registry) for _ in range(7)]
    assert started(busy) == 8
    calls.append(call(registry))
    assert started(sibling) == 1
    gevent.killall(calls)


def test_a_connection_whose_queue_is_full_comes_last(registry):
    full, free, far = Local(registry, "1"), Local(registry, "2"), time.monotonic() + 9
    full.session.send_request(fr.Request("x", "PUT", "/", []), far, bytes(4_194_304))
    for _ in range(2):
        free.session.send_request(fr.Request("x", "GET", "/", []), far)
    waiting = call(registry)
    assert (started(full), started(free)) == (1, 3)
    free._end("lost")
    assert type(outcome(call(registry))) is e.UnitOverloaded
    waiting.kill()


def test_a_suspect_comes_after_a_sibling(registry):
    suspect, sibling = Local(registry, "1"), Sibling(registry)
    suspect.session.tick(time.monotonic() + 25)
    waiting = call(registry)
    assert (started(suspect), started(sibling)) == (0, 1)
    waiting.kill()


def test_nowhere(registry):
    error = outcome(call(registry))
    assert type(error) is e.UnitNotConnected
    assert error.delivery is Delivery.NOT_DISPATCHED


def test_all_full(registry):
    full = Local(registry, "1", streams=1)
    waiting = call(registry)
    assert started(full) == 1
    assert type(outcome(call(registry))) is e.UnitOverloaded
    waiting.kill()


def test_deadline_while_queued(registry):
    link = Local(registry, "1")
    waiting = call(registry, deadline_s=1.0)
    link._handle(link.session.tick(time.monotonic() + 1.0))
    assert type(outcome(waiting)) is e.UnitQueueTimeout
    assert type(outcome(call(registry, deadline_s=0.0))) is e.UnitQueueTimeout


def test_a_lost_way_to_a_sibling(registry):
    sibling = Sibling(registry)
    waiting = call(registry)
    sibling._end("worker-lost")
    error = outcome(waiting)
    assert type(error) is e.RelayPathUnavailable
    assert error.delivery is Delivery.NOT_DISPATCHED


def test_what_was_not_dispatched_goes_elsewhere_once(registry):
    links = [Local(registry, str(n)) for n in range(3)]
    body = Body(b"one", b"two")
    waiting = call(registry, body)
    (first,) = [link for link in links if started(link)]
    first._end("lost")
    gevent.sleep(0)
    gevent.sleep(0)
    (second,) = [link for link in links if started(link)]
    assert body.firsts == 2
    second._end("lost")
    error = outcome(waiting)
    assert (type(error), error.delivery) == (e.UnitDisconnected, Delivery.NOT_DISPATCHED)
    assert body.firsts == 2


def test_what_may_have_been_dispatched_is_never_repeated(registry):
    links = [Local(registry, str(n)) for n in range(2)]
    body = Body()
    waiting = call(registry, body)
    (first,) = [link for link in links if started(link)]
    first.session.data_to_send(time.monotonic())
    first._end("lost")
    error = outcome(waiting)
    assert (type(error), error.delivery, body.firsts) == (e.UnitDisconnected, Delivery.UNKNOWN, 1)


def test_a_body_that_is_gone_is_not_repeated(registry):
    links = [Local(registry, str(n)) for n in range(2)]
    body = Body()
    body.replayable = False
    waiting = call(registry, body)
    next(link for link in links if started(link))._end("lost")
    assert outcome(waiting).delivery is Delivery.NOT_DISPATCHED
    assert body.firsts == 1


class Slow(Body):
    """Its second piece comes when the test says so."""

    def __init__(self, *pieces):
        super().__init__(*pieces)
        self.more = gevent.event.Event()

    def next(self):
        self.more.wait(3)
        return super().next()


def sent(link):
    """Kinds of frames that leave in one write, the link's first WELCOME aside."""
    frames = map(decode, link.session.data_to_send(time.monotonic()))
    return [type(frame) for frame in frames if not isinstance(frame, fr.Welcome)]


def test_a_body_that_is_still_arriving_is_held(registry):
    link, body = Local(registry, "1"), Slow(b"one", b"two")
    waiting = call(registry, body, length=6)
    (record,) = link.session.streams.values()
    assert record.held
    assert sent(link) == [fr.RequestFrame]
    body.more.set()
    gevent.sleep(0.01)
    assert not record.held
    assert sent(link) == [fr.Go, fr.Data]
    waiting.kill()


def test_go_never_overtakes_its_request(registry):
    link = Local(registry, "1")
    waiting = call(registry, Body(b"one", b"two"), length=6)
    assert sent(link) == [fr.RequestFrame]
    assert sent(link) == [fr.Go]
    waiting.kill()


@pytest.mark.parametrize("length", [None, 196_608, 1_000_000], ids=str)
def test_a_long_or_endless_body_is_not_held(registry, length):
    link = Local(registry, "1")
    waiting = call(registry, Slow(b"one", b"two"), length=length)
    (record,) = link.session.streams.values()
    assert not record.held
    waiting.kill()


def test_the_last_piece_of_a_body_waits_for_no_room(registry):
    """The unit may have to send its answer before it reads on, and nobody else takes that in."""
    link, exchange = Local(registry, "1"), Exchange()
    exchange.stream = link.start(fr.Request("id", "POST", "/", []), time.monotonic() + 9, exchange, b"x", False)
    exchange.link = link
    with gevent.Timeout(1):
        exchange.send(bytes(HIGH_WATER_BYTES), True)


def test_a_held_request_whose_caller_left_was_not_dispatched(registry):
    link, body = Local(registry, "1"), Slow(b"one", b"two")

    def gone():
        raise e.ClientDisconnected

    body.next = gone
    error = outcome(call(registry, body, length=6))
    assert error.members["delivery"] == "not_dispatched"
    assert fr.Go not in sent(link)


@pytest.mark.parametrize("fault", [e.RequestTimeout, e.BodyTooLarge, e.BadFraming])
def test_a_body_that_fails_on_its_way_says_what_became_of_the_request(registry, fault):
    link, body = Local(registry, "1"), Slow(b"one", b"two")

    def fail():
        body.more.wait(3)
        raise fault

    body.next = fail
    waiting = call(registry, body, length=1_000_000)
    assert sent(link) == [fr.RequestFrame]
    body.more.set()
    error = outcome(waiting)
    assert (type(error), error.members["delivery"]) == (fault, "unknown")


def test_a_held_request_of_a_lost_link_goes_elsewhere(registry):
    links, body = [Local(registry, str(n)) for n in range(2)], Slow(b"one", b"two")
    waiting = call(registry, body, length=6)
    (first,) = [link for link in links if started(link)]
    assert sent(first) == [fr.RequestFrame]
    first._end("lost")
    body.more.set()
    gevent.sleep(0.01)
    (second,) = [link for link in links if started(link)]
    assert second is not first
    assert body.firsts == 2
    waiting.kill()


def left_here(registry):
    Local(registry, "1")._end("lost")


def left_a_sibling(registry):
    registry.drop_link(Sibling(registry), "worker-lost")


@pytest.mark.parametrize(
    ("leave", "why"),
    [(left_here, "lost"), (left_a_sibling, "worker-lost"), (lambda registry: None, "never-connected")],
    ids=["held here", "held by a sibling", "never held"],
)
def test_an_absent_unit_is_told_without_waiting_or_asking(registry, leave, why):
    leave(registry)
    bystanders, meanwhile = [Sibling(registry, unit="v"), Local(registry, "2", unit="v")], []
    gevent.spawn(meanwhile.append, "the hub ran")
    with pytest.raises(e.UnitNotConnected) as caught:
        Dispatcher(registry).dispatch(Call("u", fr.Request("id", "GET", "/", []), Body(), time.monotonic() + 5))
    assert meanwhile == []
    assert [started(link) for link in bystanders] == [0, 0]
    told = caught.value.members
    assert (told["why"], told["last_seen"] is None) == (why, why == "never-connected")


ND, UN, DI, RS = Delivery.NOT_DISPATCHED, Delivery.UNKNOWN, Delivery.DISPATCHED, Delivery.RESPONSE_STARTED
ERRORS = [
    (LOST, "", ND, e.UnitDisconnected, ND),
    (LOST, "", UN, e.UnitDisconnected, UN),
    (LOST, "", RS, e.UnitDisconnected, RS),
    (ResetCode.DEADLINE, "", ND, e.UnitQueueTimeout, ND),
    (ResetCode.DEADLINE, "", UN, e.UnitAcceptTimeout, UN),
    (ResetCode.DEADLINE, "", DI, e.UnitResponseTimeout, DI),
    (ResetCode.DEADLINE, "", RS, e.UnitResponseTimeout, RS),
    (ResetCode.FLOW_CONTROL, "", UN, e.UnitAcceptTimeout, UN),
    (ResetCode.REFUSED, "", ND, e.UnitRefused, ND),
    (ResetCode.REFUSED, "streams", ND, e.UnitOverloaded, ND),
    (ResetCode.REFUSED, "streams", DI, e.UnitBadResponse, DI),
    (ResetCode.REFUSED, "not-connected", UN, e.UnitBadResponse, UN),
    (ResetCode.SHED, "", ND, e.UnitOverloaded, ND),
    (ResetCode.UPSTREAM_CONNECT, "", ND, e.UnitUpstreamUnreachable, ND),
    (ResetCode.UPSTREAM_TIMEOUT, "", DI, e.UnitUpstreamTimeout, DI),
    (ResetCode.UPSTREAM_PROTOCOL, "", DI, e.UnitBadResponse, DI),
    (ResetCode.PROTOCOL, "", ND, e.UnitRefused, ND),
    (ResetCode.PROTOCOL, "", RS, e.UnitBadResponse, DI),
    (ResetCode.TOO_LARGE, "", DI, e.UnitResponseTooLarge, DI),
    (ResetCode.INTERNAL, "", DI, e.UnitBadResponse, DI),
    (ResetCode.INTERNAL, "", UN, e.UnitBadResponse, UN),
    (ResetCode.REFUSED, "idempotency-key-reused", ND, e.IdempotencyKeyReused, ND),
    (ResetCode.REFUSED, "idempotency-in-progress", ND, e.IdempotencyInProgress, ND),
    (ResetCode.REFUSED, "outcome-unknown", ND, e.OutcomeUnknown, UN),
    (ResetCode.REFUSED, "idempotency-answer-not-kept", ND, e.IdempotencyAnswerNotKept, DI),
    (ResetCode.REFUSED, "idempotency-unavailable", ND, e.IdempotencyUnavailable, ND),
    (ResetCode.TOO_LARGE, "request-too-large", ND, e.UnitRequestTooLarge, ND),
    (ResetCode.TOO_LARGE, "request-too-large", DI, e.UnitRequestTooLarge, DI),
    (200, "", DI, e.UnitBadResponse, DI),
    (200, "", ND, e.UnitRefused, ND),
]


@pytest.mark.parametrize(("code", "reason", "known", "kind", "told"), ERRORS, ids=str)
def test_names_of_failures(code, reason, known, kind, told):
    error = error_of("u", Failure(code, reason, known))
    assert (type(error), error.delivery) == (kind, told)


@pytest.mark.parametrize(
    ("failure", "elsewhere"),
    [
        (Failure(LOST, "", ND, lost=True), True),
        (Failure(LOST, "", UN, lost=True), False),
        (Failure(ResetCode.REFUSED, "draining", ND), True),
        (Failure(ResetCode.REFUSED, "not-connected", ND), True),
        (Failure(ResetCode.REFUSED, "streams", ND), False),
        (Failure(ResetCode.REFUSED, "draining", DI), False),
        (Failure(ResetCode.UPSTREAM_CONNECT, "", ND), False),
    ],
    ids=str,
)
def test_what_may_go_elsewhere(failure, elsewhere):
    assert may_go_elsewhere(failure) is elsewhere
