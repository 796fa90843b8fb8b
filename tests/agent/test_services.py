"""Several local services behind one link: who is asked, and what each of them takes."""

from __future__ import annotations

import re

import gevent
import gevent.lock
import pytest

from gateway.agent.allowlist import AllowList, parse_rule
from gateway.agent.endpoint import Endpoint
from gateway.agent.services import ServiceSettings
from gateway.relay import events as ev
from gateway.relay.core import NotSendable
from gateway.relay.frames import ResetCode

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture
def seen(rig, read):
    """Request lines in the order in which the service got them."""
    lines = []

    def serve(number, sock):
        while request := read(sock):
            lines.append(request.split(b"\r\n")[0].decode())
            sock.sendall(OK)

    rig.service.handler = serve
    return lines


def refused(peer):
    aborted = peer.expect(ev.StreamAborted)
    return aborted.code, aborted.reason, aborted.delivery.value


def test_the_prefix_decides_and_the_rules_see_what_the_service_sees(rig, seen):
    port = rig.service.port
    whole = ServiceSettings(
        Endpoint(False, "127.0.0.1", port, ""), "/fhir", allow=AllowList((parse_rule("GET /fhir/*"),))
    )
    stripped = ServiceSettings(
        Endpoint(False, "127.0.0.1", port, "/wado"), "/img", True, AllowList((parse_rule("GET /wado/*"),))
    )
    peer = rig.connect(services=(whole, stripped))
    assert peer.answer(peer.request(target="/fhir/Patient?a=b"))[1] == b"hi"
    assert peer.answer(peer.request(target="/img/1?x=y"))[1] == b"hi"
    assert seen == ["GET /fhir/Patient?a=b HTTP/1.1", "GET /wado/1?x=y HTTP/1.1"]
    for target, reason in [
        ("/fhirs/x", "no service for this path"),
        ("/", "no service for this path"),
        ("/wado/1", "no service for this path"),
        ("/img", "not allowed at this unit"),
    ]:
        peer.request(target=target)
        assert refused(peer) == (ResetCode.REFUSED, reason, "not_dispatched")
    peer.request("POST", "/fhir/Patient", b"x")
    assert refused(peer) == (ResetCode.REFUSED, "not allowed at this unit", "not_dispatched")
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("options", "place", "asked"),
    [
        (("",), "http://unit.local:8000/fhir/a/7?x#y", "/fhir/a/7?x#y"),
        (("",), "HTTPS://Unit.Local:8000", "/"),
        (("",), "/fhir/a", "/fhir/a"),
        (("/base",), "http://unit.local:8000/base/a", "/a"),
        (("/base",), "/base?x", "?x"),
        (("/base",), "http://unit.local:8000/based/a", None),
        (("/wado", "/img", True), "http://unit.local:8000/wado/1", "/img/1"),
        (("/wado", "/img", True), "/wado/1", "/img/1"),
        (("", "/img", True), "http://unit.local:8000/1", "/img/1"),
        (("", "/fhir"), "http://unit.local:8000/fhir/1", "/fhir/1"),
        (("", "/fhir"), "http://unit.local:8000/other/1", None),
        (("",), "http://unit.local/fhir/a", None),
        (("",), "http://unit.local:8000@evil/a", None),
        (("",), "http://unit.local:8000\\@evil/a", None),
        (("",), "Observation/7", None),
        (("",), "urn:uuid:1", None),
        (("",), "", None),
    ],
)
def test_a_place_as_the_gateway_asks_for_it(options, place, asked):
    path, *more = options
    settings = ServiceSettings(Endpoint(False, "unit.local", 8000, path), *more)
    assert settings.asked(place) == (place if asked is None else asked)


def test_a_services_own_address_stays_at_the_unit(rig, read):
    def serve(number, sock):
        while request := read(sock):
            host = re.search(rb"host: (\S+)", request)[1]
            sock.sendall(
                b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nContent-Location: /elsewhere\r\nLocation: http://"
            )
            sock.sendall(host + b"/x/7\r\n\r\n")

    rig.service.handler = serve
    peer = rig.connect()
    head, _ = peer.answer(peer.request("POST", "/x", b"{}"))
    assert [value for name, value in head.response.fields if "location" in name] == ["/elsewhere", "/x/7"]


def test_a_busy_service_sheds_and_takes_again(rig, read):
    release = gevent.event.Event()

    def serve(number, sock):
        while read(sock):
            release.wait(5)
            sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect(max_concurrent=2)
    running = [peer.request() for _ in range(2)]
    rig.wait_for(lambda: rig.service.connections == 2)
    peer.request()
    assert refused(peer) == (ResetCode.SHED, "service busy", "not_dispatched")
    release.set()
    assert {peer.expect(ev.ResponseReceived).stream for _ in running} == set(running)
    rig.wait_for(lambda: not rig.agent.services.find("/").running)
    assert peer.answer(peer.request())[1] == b"hi"


def test_an_agent_without_a_place_asks_for_no_more_until_half_are_free(rig, read):
    turns = gevent.lock.Semaphore(0)

    def serve(number, sock):
        while read(sock):
            turns.acquire()
            sock.sendall(OK)

    rig.service.handler = serve
    peer = rig.connect(max_concurrent=4)
    running = {peer.request() for _ in range(4)}
    rig.wait_for(lambda: rig.service.connections == 4)
    assert peer.session.max_streams == 64, "not yet: nobody was sent back"
    peer.request()
    assert refused(peer)[0] == ResetCode.SHED
    rig.wait_for(lambda: peer.session.max_streams == 4)
    with pytest.raises(NotSendable, match="streams"):
        peer.request()
    turns.release()
    running.remove(peer.expect(ev.ResponseReceived).stream)
    running.add(peer.request())
    rig.wait_for(lambda: rig.agent.services.find("/").running == 4)
    assert peer.session.max_streams == 4, "a place that is free is taken"
    for _ in range(2):
        turns.release()
        running.remove(peer.expect(ev.ResponseReceived).stream)
    rig.wait_for(lambda: peer.session.max_streams == 64)
    turns.release()
    turns.release()
    assert {peer.expect(ev.ResponseReceived).stream for _ in running} == running


def test_a_service_without_a_place_keeps_nobody_from_another(rig, read):
    release = gevent.event.Event()

    def serve(number, sock):
        while request := read(sock):
            if b"/small" in request:
                release.wait(5)
            sock.sendall(OK)

    rig.service.handler = serve
    here = Endpoint(False, "127.0.0.1", rig.service.port, "")
    peer = rig.connect(services=(ServiceSettings(here), ServiceSettings(here, "/small", max_concurrent=1)))
    first = peer.request(target="/small/x")
    rig.wait_for(lambda: rig.agent.services.find("/small/x").running == 1)
    peer.request(target="/small/x")
    assert refused(peer)[0] == ResetCode.SHED
    assert peer.answer(peer.request(target="/x"))[1] == b"hi"
    assert peer.session.max_streams == 64
    release.set()
    assert peer.answer(first)[1] == b"hi"


def test_its_own_deadline(rig, read):
    rig.service.handler = lambda number, sock: (read(sock), gevent.sleep(5))
    peer = rig.connect(deadline_s=0.05)
    peer.request(deadline_ms=5000)
    assert refused(peer) == (ResetCode.UPSTREAM_TIMEOUT, "no answer in time", "dispatched")


def test_a_body_that_is_announced_too_large_is_never_sent(rig, seen):
    peer = rig.connect(request_max_bytes=10)
    peer.request("POST", body=b"x" * 11)
    assert refused(peer) == (ResetCode.TOO_LARGE, "request-too-large", "not_dispatched")
    assert peer.answer(peer.request("POST", body=b"x" * 10))[1] == b"hi"
    assert seen == ["POST /x HTTP/1.1"]


def test_a_body_that_grows_too_large_is_cut(rig):
    got = []

    def serve(number, sock):
        while data := sock.recv(65536):
            got.append(data)

    rig.service.handler = serve
    peer = rig.connect(request_max_bytes=100)
    stream = peer.request("POST", body=b"x" * 60, end=False)
    rig.wait_for(lambda: b"x" * 60 in b"".join(got))
    for _ in range(3):
        peer.data(stream, b"y" * 60)
    assert refused(peer) == (ResetCode.TOO_LARGE, "request-too-large", "dispatched")
    rig.wait_for(lambda: not rig.agent.services.find("/").running)
    assert not b"".join(got).endswith(b"0\r\n\r\n")
    assert not [line for line in rig.lines if line["level"] == "error"]


def test_a_body_that_is_too_large_before_anything_ran(rig, seen):
    """More than the limit is here before the exchange's greenlet has begun."""
    peer = rig.connect(request_max_bytes=100)
    stream = peer.session.send_request(_unknown_length(), 1e12, b"x" * 60, False)
    peer.session.send_data(stream, b"x" * 60)
    peer.session.send_data(stream, b"x" * 60)
    peer.flush()
    assert refused(peer)[:2] == (ResetCode.TOO_LARGE, "request-too-large")


def _unknown_length():
    from gateway.relay.frames import Request

    return Request("r", "POST", "/x", [], None, 5000)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", id="announced"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nxxxxxxxxxxx\r\n0\r\n\r\n", id="chunked"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nxxxxxxxxxxx", id="to the end"),
    ],
)
def test_an_answer_too_large(rig, read, answer):
    rig.service.handler = lambda number, sock: (read(sock), sock.sendall(answer))
    peer = rig.connect(response_max_bytes=10)
    peer.request()
    assert refused(peer)[0] == ResetCode.TOO_LARGE


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        pytest.param("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", id="head"),
        pytest.param("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5000\r\n\r\n", id="304"),
        pytest.param("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789", id="just fits"),
    ],
)
def test_an_answer_that_is_not_too_large(rig, read, method, answer):
    rig.service.handler = lambda number, sock: (read(sock), sock.sendall(answer))
    peer = rig.connect(response_max_bytes=10)
    peer.answer(peer.request(method))
