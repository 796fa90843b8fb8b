"""One relayed request, between a scripted gateway and a scripted local service on real sockets."""

from __future__ import annotations

import hashlib
import time

import gevent
import jwt
import pytest
from gevent import socket

from gateway.agent.allowlist import AllowList, parse_rule
from gateway.agent.context_token import ContextVerifier
from gateway.agent.endpoint import Endpoint
from gateway.agent.exchange import Exchange
from gateway.agent.link import ROOM_BYTES
from gateway.agent.local_service import RECEIVE_BYTES
from gateway.agent.services import Services
from gateway.errors import Delivery
from gateway.relay import events as ev
from gateway.relay.frames import Request, ResetCode

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
CONTEXT_KEY = b"k" * 32


def answering(read, answer=OK, seen=None):
    """A local service that gives the same answer to every request, keeping the connection."""

    def serve(number, sock):
        while request := read(sock):
            if seen is not None:
                seen.append(request)
            sock.sendall(answer)

    return serve


def closing(read, answer):
    """A local service that answers once and closes."""

    def serve(number, sock):
        read(sock)
        sock.sendall(answer)

    return serve


def test_small_get(rig, read):
    seen = []
    rig.service.handler = answering(read, seen=seen)
    peer = rig.connect()
    head, body = peer.answer(peer.request("GET", "/a/b?c=d", fields=[("accept", "text/plain")]))
    assert (head.response.status, head.response.fields, body) == (200, [("content-type", "text/plain")], b"hi")
    assert (head.response.length, head.end) == (2, True)
    assert [type(event) for event in peer.log] == [ev.HelloReceived, ev.Acked, ev.ResponseReceived]
    assert seen[0].startswith(b"GET /a/b?c=d HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\naccept: text/plain\r\n" in seen[0]
    assert b"content-length" not in seen[0]


def test_base_path_of_the_target_comes_first(rig, read):
    seen = []
    rig.service.handler = answering(read, seen=seen)
    peer = rig.connect(target=Endpoint(False, "127.0.0.1", rig.service.port, "/base"))
    peer.answer(peer.request("GET", "/a?b"))
    assert seen[0].startswith(b"GET /base/a?b HTTP/1.1\r\n")


# --- ACK


def test_ack_comes_after_connecting_and_before_the_first_byte(rig):
    accepted, first_byte = gevent.event.Event(), []
    go_on = gevent.event.Event()

    def serve(number, sock):
        accepted.set()
        go_on.wait(5)
        first_byte.append((time.monotonic(), sock.recv(65536)))
        sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect()
    peer.request()
    assert accepted.wait(5)
    peer.expect(ev.Acked)
    peer.nothing(ev.ResponseReceived)
    go_on.set()
    peer.expect(ev.ResponseReceived)
    assert first_byte[0][1].startswith(b"GET ")


def test_ack_waits_for_the_answer_of_every_request(rig, read, monkeypatch):
    """Not only until it has left alone once."""
    monkeypatch.setattr("gateway.agent.link.ACK_DELAY_S", 0.05)
    may_answer, asked = gevent.event.Event(), []

    def serve(number, sock):
        while request := read(sock):
            asked.append(request)
            may_answer.wait(5)
            sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request()
    peer.expect(ev.Acked)
    may_answer.set()
    peer.answer(stream)
    may_answer.clear()
    stream = peer.request()
    rig.wait_for(lambda: len(asked) == 2)
    gevent.sleep(0.005)
    assert [event for event in peer.log if isinstance(event, ev.Acked) and event.stream == stream] == []
    may_answer.set()
    peer.answer(stream)
    assert len([event for event in peer.log if isinstance(event, ev.Acked)]) == 2


def test_held_request_sends_nothing_before_go(rig, read):
    seen, connected = [], gevent.event.Event()

    def serve(number, sock):
        connected.set()
        seen.append(read(sock))
        sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request(hold=True)
    assert connected.wait(5)
    gevent.sleep(0.01)
    assert not seen
    peer.nothing(ev.Acked)
    peer.session.send_go(stream)
    peer.flush()
    assert peer.answer(stream)[1] == b"hi"


def test_connect_refused_is_certainly_not_dispatched(rig):
    rig.service.stop()
    peer = rig.connect()
    peer.request("POST", body=b"x")
    aborted = peer.expect(ev.StreamAborted)
    assert (aborted.code, aborted.delivery) == (ResetCode.UPSTREAM_CONNECT, Delivery.NOT_DISPATCHED)
    peer.nothing(ev.Acked)


# --- refusals before dispatch


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/admin"),
        ("DELETE", "/fhir/Patient/1"),
        ("GET", "/fhir"),
        ("GET", "/fhir/"),
        ("GET", "/fhir/../admin"),
        ("GET", "/fhir/%2e%2e/admin"),
        ("GET", "/fhir//Patient"),
        ("GET", "/fhir/a%2Fb"),
        ("GET", "/fhir/a%00"),
        ("TRACE", "/fhir/x"),
        ("CONNECT", "/fhir/x"),
    ],
)
def test_refused_path_never_reaches_the_service(rig, read, method, target):
    rig.service.handler = answering(read)
    peer = rig.connect(allow=AllowList((parse_rule("GET /fhir/*"),)))
    peer.request(method, target)
    aborted = peer.expect(ev.StreamAborted)
    assert (aborted.code, aborted.delivery) == (ResetCode.REFUSED, Delivery.NOT_DISPATCHED)
    assert rig.service.connections == 0
    assert peer.answer(peer.request("GET", "/fhir/x"))[1] == b"hi"


def context(**change):
    return jwt.encode({"aud": "linden-clinic", "exp": time.time() + 30, "sub": "s", **change}, CONTEXT_KEY, "HS256")


@pytest.mark.parametrize(
    ("tokens", "admitted"),
    [
        pytest.param(lambda: [context()], True, id="valid"),
        pytest.param(list, False, id="missing"),
        pytest.param(lambda: [context()] * 2, False, id="twice"),
        pytest.param(lambda: [context(aud="other")], False, id="another unit"),
        pytest.param(lambda: [context(exp=time.time() - 60)], False, id="expired"),
        pytest.param(lambda: [context()[:-2] + "AA"], False, id="signature"),
    ],
)
def test_context_is_required_once_there_is_a_key(rig, read, tokens, admitted):
    """The tokens are made when the test runs: they live half a minute."""
    fields = [("x-caregate-context", token) for token in tokens()]
    seen = []
    rig.service.handler = answering(read, seen=seen)
    peer = rig.connect(context=ContextVerifier("linden-clinic", CONTEXT_KEY))
    stream = peer.request(fields=fields)
    if admitted:
        assert peer.answer(stream)[1] == b"hi"
        assert b"x-caregate-context: ey" in seen[0]
    else:
        assert peer.expect(ev.StreamAborted).code == ResetCode.REFUSED
        assert not seen


def test_fields_that_are_not_the_services_business_are_dropped(rig, read):
    seen = []
    rig.service.handler = answering(read, seen=seen)
    peer = rig.connect()
    dropped = ["connection", "keep-alive", "host", "te", "upgrade", "authorization", "expect"]
    dropped += ["x-caregate-role", "x_caregate_context", "x-http-method-override", "x_http_method", "x-original-url"]
    fields = [(name, "zzz") for name in dropped] + [("zzz", "named by connection"), ("accept", "a"), ("accept", "b")]
    peer.answer(peer.request(fields=fields, traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"))
    assert b"zzz" not in seen[0]
    assert seen[0].count(b"\r\naccept: ") == 2
    assert b"\r\ntraceparent: 00-aaaa" in seen[0]


# --- the local service's answers


def test_slow_service_is_a_timeout_after_dispatch(rig, read):
    def serve(number, sock):
        read(sock)
        gevent.sleep(5)

    rig.service.handler = serve
    peer = rig.connect()
    peer.request(deadline_ms=600)
    aborted = peer.expect(ev.StreamAborted)
    # At the whole deadline the session itself would have said DEADLINE.
    assert (aborted.code, aborted.delivery) == (ResetCode.UPSTREAM_TIMEOUT, Delivery.DISPATCHED)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="closed without a byte"),
        pytest.param(b"hello\r\n\r\n", id="not http"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", id="truncated"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="two framings"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx", id="unknown coding"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="bad chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", id="no last chunk"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="upgrade"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA b: c\r\nContent-Length: 0\r\n\r\n", id="field name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\x00c\r\nContent-Length: 0\r\n\r\n", id="field value"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"Content-Length: 0\r\n\r\n", id="many fields"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 40_000 + b"\r\n\r\n", id="large head"),
        pytest.param(b"HTTP/1.1 700 No\r\nContent-Length: 0\r\n\r\n", id="status"),
    ],
)
def test_garbage_is_reset_and_the_link_lives_on(rig, read, answer):
    answers = [answer, OK]

    def serve(number, sock):
        read(sock)
        sock.sendall(answers[number - 1])

    rig.service.handler = serve
    peer = rig.connect()
    peer.request()
    aborted = peer.expect(ev.StreamAborted)
    assert aborted.code == ResetCode.UPSTREAM_PROTOCOL
    assert aborted.delivery in {Delivery.DISPATCHED, Delivery.RESPONSE_STARTED}
    assert peer.answer(peer.request())[1] == b"hi"
    assert not [line for line in rig.lines if line["event"].endswith("_fault")]


@pytest.mark.parametrize(
    ("method", "answer", "status", "length", "body"),
    [
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, None, b"", id="204"),
        pytest.param("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, 9, b"", id="304"),
        pytest.param("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 200, 9, b"", id="head"),
        pytest.param(
            "GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n",
            200,
            None,
            b"abcde",
            id="chunked with trailer",
        ),
        pytest.param(
            "GET",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK,
            200,
            2,
            b"hi",
            id="interim",
        ),
        pytest.param("GET", b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, None, b"until the end", id="until close"),
    ],
)
def test_framings(rig, read, method, answer, status, length, body):
    rig.service.handler = closing(read, answer)
    peer = rig.connect()
    head, got = peer.answer(peer.request(method))
    assert (head.response.status, head.response.length, got) == (status, length, body)
    assert not [name for name, _ in head.response.fields if name in {"x-t", "link", "transfer-encoding"}]


# --- bodies


def test_a_mebibyte_both_ways(rig, read):
    sent = bytes(range(256)) * 4096
    got = []

    def serve(number, sock):
        got.append(read(sock).partition(b"\r\n\r\n")[2])
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(sent))
        sock.sendall(sent)

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request("POST", length=len(sent), end=False)
    peer.data(stream, sent, end=True)
    _, body = peer.answer(stream)
    assert hashlib.sha256(got[0]).digest() == hashlib.sha256(sent).digest()
    assert hashlib.sha256(body).digest() == hashlib.sha256(sent).digest()


def test_early_answer_ends_the_upload(rig, read):
    def serve(number, sock):
        while b"\r\n\r\n" not in sock.recv(65536):
            pass
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request("POST", length=1_000_000, end=False)
    head, _ = peer.answer(stream)
    assert head.response.status == 413
    rig.service.handler = answering(read)
    assert peer.answer(peer.request())[1] == b"hi"


def test_caller_who_takes_nothing_stops_only_his_own_stream(rig, read):
    written = []

    def serve(number, sock):
        path = read(sock).split()[1]
        if path == b"/small":
            sock.sendall(OK)
            return
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(500):
            sock.sendall(bytes(100_000))
            written.append(100_000)

    rig.service.handler = serve
    peer = rig.connect()
    peer.auto_consume = False
    stream = peer.request("GET", "/big")
    peer.expect(ev.ResponseReceived)
    rig.wait_for(lambda: len(written) > 2)
    small = peer.request("GET", "/small")
    with gevent.Timeout(5):
        while True:
            event = peer.events.get()
            if event.stream == small and isinstance(event, ev.ResponseReceived):
                break
    rig.wait_for(lambda: rig.unsent(stream) >= ROOM_BYTES)
    gevent.sleep(0.01)
    assert rig.unsent(stream) <= ROOM_BYTES + RECEIVE_BYTES
    bodies = [event.body for event in peer.log if hasattr(event, "body") and event.stream == stream]
    assert sum(map(len, bodies)) == 262_144
    assert peer.session.reset(stream, ResetCode.CANCEL) is not None


# --- connections to the service


def test_connection_is_used_again(rig, read):
    rig.service.handler = answering(read)
    peer = rig.connect()
    for _ in range(5):
        peer.answer(peer.request())
    assert rig.service.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", id="connection close"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\n", id="bytes after the end"
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", id="http 1.0"),
    ],
)
def test_connection_that_must_not_be_used_again(rig, read, answer):
    rig.service.handler = answering(read, answer)
    peer = rig.connect()
    for _ in range(3):
        assert peer.answer(peer.request())[1] == b"hi"
    assert rig.service.connections == 3


def test_connection_that_died_while_idle_is_not_used(rig, read):
    rig.service.handler = closing(read, OK)
    peer = rig.connect()
    for _ in range(3):
        assert peer.answer(peer.request("POST", body=b"x"))[1] == b"hi"
        gevent.sleep(0.005)
    assert rig.service.connections == 3
    peer.nothing(ev.StreamAborted)


def test_connection_that_died_while_its_request_was_held_is_not_used(rig, read):
    """A caller who sends his body slowly, and a service that waits less for the next request."""
    may_close = gevent.event.Event()

    def serve(number, sock):
        sock.sendall(OK if read(sock) else b"")
        may_close.wait(5)

    rig.service.handler = serve
    peer = rig.connect()
    peer.answer(peer.request())
    stream = peer.request("POST", body=b"x", hold=True)
    rig.wait_for(lambda: rig.agent.services._services[0].running)
    gevent.sleep(0.005)
    may_close.set()
    gevent.sleep(0.005)
    peer.session.send_go(stream)
    peer.flush()
    assert peer.answer(stream)[1] == b"hi"
    assert rig.service.connections == 2


def test_connection_with_unasked_bytes_is_not_used(rig, read):
    def serve(number, sock):
        while read(sock):
            sock.sendall(OK)
            gevent.sleep(0.002)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    rig.service.handler = serve
    peer = rig.connect()
    for _ in range(3):
        assert peer.answer(peer.request())[1] == b"hi"
        gevent.sleep(0.008)
    assert rig.service.connections == 3


# --- the end of a stream


def test_cancel_closes_the_local_connection(rig, read):
    closed, got = gevent.event.Event(), gevent.event.Event()

    def serve(number, sock):
        read(sock)
        got.set()
        if not sock.recv(10):
            closed.set()

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request(deadline_ms=60_000)
    assert got.wait(5)
    peer.session.reset(stream, ResetCode.CANCEL, "caller left")
    peer.flush()
    acked = peer.expect(ev.ResetAcked)
    assert (acked.stream, acked.dispatched) == (stream, True)
    assert closed.wait(5)


def test_cancel_while_connecting_is_not_dispatched(rig):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fill = [socket.socket() for _ in range(4)]
    for sock in fill:  # the accept queue is full: the agent's connect hangs
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
    peer = rig.connect(target=Endpoint(False, "127.0.0.1", listener.getsockname()[1], ""))
    stream = peer.request()
    gevent.sleep(0.01)
    peer.session.reset(stream, ResetCode.CANCEL)
    peer.flush()
    assert peer.expect(ev.ResetAcked).dispatched is False
    peer.nothing(ev.Acked)
    for sock in [*fill, listener]:
        sock.close()


def test_cancel_in_the_middle_of_an_answer(rig, read):
    closed = gevent.event.Event()

    def serve(number, sock):
        read(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
        if not sock.recv(10):
            closed.set()

    rig.service.handler = serve
    peer = rig.connect()
    stream = peer.request(deadline_ms=60_000)
    peer.expect(ev.ResponseReceived)
    peer.session.reset(stream, ResetCode.CANCEL)
    peer.flush()
    assert closed.wait(5)


def test_many_streams_at_once_and_one_too_many(rig, read):
    release = gevent.event.Event()

    def serve(number, sock):
        while read(sock):
            release.wait(5)
            sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect(max_streams=8)
    assert peer.session.max_streams == 8
    for _ in range(8):
        peer.request()
    rig.wait_for(lambda: sum(isinstance(event, ev.Acked) for event in peer.log) == 8)
    release.set()
    rig.wait_for(lambda: sum(isinstance(event, ev.ResponseReceived) for event in peer.log) == 8)
    assert rig.service.connections == 8


def test_credit_of_an_abandoned_upload_comes_back(rig):
    """A service that never reads: its bodies must not eat the connection's window."""

    def serve(number, sock):
        gevent.sleep(5)

    rig.service.handler = serve
    peer = rig.connect()
    for _ in range(20):
        stream = peer.request("POST", length=10_000_000, end=False, deadline_ms=50)
        peer.data(stream, bytes(262_144))
        peer.expect(ev.StreamAborted)
    rig.service.handler = lambda number, sock: (sock.recv(65536), sock.sendall(OK))
    assert peer.answer(peer.request("POST", body=b"x"))[1] == b"hi"
    assert peer.session.outbox.credit > 2_000_000


class Ledger:
    """A carrier that counts the credit given back; `on_response` runs when the answer's head is sent."""

    def __init__(self, on_response=lambda: None):
        self.given_back = 0
        self.resets = []
        self.on_response = on_response

    def send_ack(self, stream):
        return True

    def send_response(self, stream, response, body, end):
        self.on_response()
        return True

    def send_data(self, stream, body, end):
        return True

    def reset(self, stream, code, reason, dispatched):
        self.resets.append((code, dispatched))

    def consumed(self, stream, size):
        self.given_back += size


@pytest.mark.parametrize("when", ["before the answer is out", "after the exchange has ended"])
def test_credit_of_a_body_that_nobody_reads_any_more(rig, read, when):
    rig.service.handler = lambda number, sock: (sock.recv(65536), sock.sendall(OK))
    request = Request("r", "POST", "/x", [], 10, 5000)
    ledger = Ledger()
    exchange = Exchange(ledger, Services(rig.settings), rig.log, 1, request)
    exchange.feed(b"123", False)
    if when == "before the answer is out":
        ledger.on_response = lambda: exchange.feed(b"4567", False)
        exchange.run()
    else:
        exchange.run()
        exchange.feed(b"4567", False)
    assert (ledger.given_back, ledger.resets) == (7, [])
