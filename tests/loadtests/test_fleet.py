"""The fleet against a gateway's side that each test scripts: real sockets, the real session on both ends."""

from __future__ import annotations

import jwt
import orjson
import pytest

from fastpath import frames as ws
from gateway.relay import events as ev
from gateway.relay.frames import GoAwayCode, Request
from loadtests import unit_link
from loadtests.fleet import Counts, Fleet, Seat
from loadtests.plan import Plan, Unit
from loadtests.unit_link import LinkLost, UnitLink

UNIT = "load-unit-0001"


def request(target: str, method: str = "GET", length: int | None = None) -> Request:
    return Request("r1", method, target, [("accept", "*/*")], length=length)


def answered(peer) -> list[ev.ResponseReceived]:
    return [event for event in peer.events if isinstance(event, ev.ResponseReceived)]


@pytest.fixture
def fleet(relay_peer, unit_key):
    started = Fleet(Plan(relay_peer.url, [], [], [Unit(UNIT, str(unit_key))], ""), connections=2)
    yield started
    started.stop()


@pytest.fixture
def seat(settings) -> Seat:
    return Seat(settings, 0, Counts(), "i1")


def test_answers_every_request_for_its_unit(relay_peer, fleet, until) -> None:
    relay_peer.requests = [
        (request("/fhir/Observation?patient=pat-0001"), b""),
        (request("/fhir/Observation", "POST", 2), b"{}"),
    ]
    fleet.start()
    until(lambda: len(answered(relay_peer)) == 4)
    got = {(event.response.status, orjson.loads(event.body)["meta"]["source"]) for event in answered(relay_peer)}
    assert got == {
        (200, f"urn:caregate:unit:{UNIT}/fhir/Observation?patient=pat-0001"),
        (201, f"urn:caregate:unit:{UNIT}/fhir/Observation"),
    }
    report = fleet.report()
    assert (report["connected"], report["connections"], report["requests"], report["lost"]) == (1, 2, 4, 0)


def test_connections_of_a_unit_share_an_instance_and_have_their_own_index(relay_peer, fleet, until) -> None:
    fleet.start()
    until(lambda: fleet.report()["connections"] == 2)
    hellos = [event.hello for event in relay_peer.events if isinstance(event, ev.HelloReceived)]
    assert sorted(hello.index for hello in hellos) == [0, 1]
    assert len({hello.instance for hello in hellos}) == 1


def test_token_is_of_the_unit_and_fresh_each_time(relay_peer, fleet, until) -> None:
    fleet.start()
    until(lambda: len(relay_peer.heads) == 2)
    tokens = [head.partition(b"Bearer ")[2].partition(b"\r\n")[0].decode() for head in relay_peer.heads]
    claims = [jwt.decode(token, options={"verify_signature": False}) for token in tokens]
    assert {(claim["iss"], claim["sub"], claim["aud"]) for claim in claims} == {(UNIT, UNIT, "unit-link")}
    assert len({claim["jti"] for claim in claims}) == 2


def test_stop_says_good_bye(relay_peer, fleet, until) -> None:
    fleet.start()
    until(lambda: fleet.report()["connections"] == 2)
    fleet.stop()
    until(lambda: sum(isinstance(event, ev.GoAwayReceived) for event in relay_peer.events) == 2)
    assert fleet.report()["connections"] == 0


@pytest.mark.parametrize(
    ("answer", "low_s", "high_s"),
    [
        pytest.param(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", 60.0, 75.0, id="401 waits a minute"),
        pytest.param(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", 60.0, 75.0, id="403 waits a minute"),
        pytest.param(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n", 7.0, 8.75, id="503 waits as told"),
        pytest.param(b"HTTP/1.1 409 Conflict\r\n\r\n", 0.0, 1.0, id="409 backs off"),
    ],
)
def test_refusal_is_waited_out(relay_peer, seat, answer: bytes, low_s: float, high_s: float) -> None:
    relay_peer.refuse = answer
    assert low_s <= seat.serve_once() <= high_s


def test_goaway_moves_after_its_slot(relay_peer, seat) -> None:
    relay_peer.then = lambda session: session.go_away(GoAwayCode.DRAIN, "reload", 2000, 500)
    assert 2.0 <= seat.serve_once() <= 2.5
    report = seat._counts.report(1)
    assert (report["moved"], report["lost"], report["connected"]) == (1, 0, 0)


def test_lost_connection_is_counted_and_dialled_again_with_jitter(relay_peer, seat) -> None:
    relay_peer.hang_up = True
    assert 0.0 <= seat.serve_once() <= 1.0
    report = seat._counts.report(1)
    assert (report["lost"], report["moved"], report["connected"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("unasked", "ended"),
    [
        pytest.param(ws.encode_frame(ws.OP_TEXT, b"hello"), "violation", id="text message"),
        pytest.param(ws.encode_frame(ws.OP_BINARY, b"hello"), "violation", id="no relay frame"),
        pytest.param(ws.encode_frame(ws.OP_BINARY, b"hello", b"mask"), "bad-frame", id="masked"),
        pytest.param(ws.encode_close(1001), "closed", id="close frame"),
    ],
)
def test_what_ends_a_connection(relay_peer, settings, unasked: bytes, ended: str) -> None:
    relay_peer.unasked = unasked
    link = UnitLink(settings, 0, "i1", None, lambda: None)
    try:
        link.open()
        link.serve()
    except LinkLost:
        pass
    assert link.ended == ended


def test_a_gateway_that_hangs_up_before_welcome_is_no_connection(relay_peer, settings) -> None:
    relay_peer.refuse = b""
    with pytest.raises(LinkLost):
        UnitLink(settings, 0, "i1", None, lambda: None).open()


def test_token_is_renewed_on_the_live_connection(relay_peer, fleet, until, monkeypatch) -> None:
    monkeypatch.setattr(unit_link, "MIN_RENEW_S", 0.01)
    relay_peer.token_lifetime_s = 0
    fleet.start()
    until(lambda: any(isinstance(event, ev.TokenReceived) for event in relay_peer.events))
