"""What travels: bodies byte for byte, fields and what is removed of them, cancellation, many callers at once."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time

import pytest

from gateway.relay.frames import ResetCode

pytestmark = pytest.mark.integration

HOPS = pytest.mark.parametrize("hops", ["held", "mesh"])
SIZES = [0, 1, 65_535, 65_536, 65_537, 262_145, 1_048_576]


def echo(unit, request):
    if not unit.whole[request.stream].wait(10):
        return
    unit.ack(request.stream)
    body = bytes(unit.bodies[request.stream])
    unit.answer(request.stream, 200, body, fields=[("x-digest", hashlib.sha256(body).hexdigest())])


@HOPS
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", SIZES)
def test_bodies_byte_for_byte(rig, size, framing, hops):
    unit = rig.unit(echo)
    caller = rig.caller(rig.routes_to(unit)[hops])
    body = os.urandom(size)
    sent = body if framing == "length" else iter([body[: size // 3], body[size // 3 :]])
    headers = {} if framing == "length" else {"Transfer_Encoding": "chunked"}
    if framing == "chunked":
        sent = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in sent if p) + b"0\r\n\r\n"
    answer = caller("POST", f"/bulk/v1/{rig.UNIT}/x", sent, **headers)
    assert answer.status == 200, answer.body[:300]
    assert answer.headers["X-Digest"] == hashlib.sha256(body).hexdigest()
    assert answer.body == body
    assert answer.headers.get_all("Relay-Source") == ["unit"]
    assert len(unit.requests) == 1


@HOPS
def test_chunked_answer_in_many_pieces(rig, hops):
    pieces = [os.urandom(n) for n in (1, 0, 70_000, 3, 32_768, 1)]

    def script(unit, request):
        unit.ack(request.stream)
        unit.answer(request.stream, 200, b"", end=False)
        for piece in pieces:
            unit.data(request.stream, piece)
            time.sleep(0.01)
        unit.data(request.stream, b"", end=True)

    unit = rig.unit(script)
    answer = rig.caller(rig.routes_to(unit)[hops])("GET", f"/bulk/v1/{rig.UNIT}/x")
    assert (answer.status, answer.broken) == (200, None)
    assert answer.body == b"".join(pieces)


BODILESS = [
    ("HEAD", 200, b"", 1234, "1234"),
    ("HEAD", 200, b"forbidden", 9, "9"),
    ("HEAD", 404, b"", None, None),
    ("GET", 204, b"", None, None),
    ("GET", 204, b"forbidden", None, None),
    ("GET", 304, b"", 77, "77"),
    ("GET", 304, b"forbidden", 9, "9"),
    ("GET", 200, b"", 0, "0"),
]


@HOPS
@pytest.mark.parametrize(("method", "status", "body", "length", "announced"), BODILESS)
def test_answers_without_a_body(rig, method, status, body, length, announced, hops):
    """Nothing follows the head: the next answer on the connection is the next request's."""

    def script(unit, request):
        unit.ack(request.stream)
        if request.request.target == "/next":
            unit.answer(request.stream, 200, b"next")
        else:
            unit.answer(request.stream, status, body, length=length, fields=[("etag", '"1"')])

    unit = rig.unit(script)
    caller = rig.caller(rig.routes_to(unit)[hops])
    answer = caller(method, f"/probe/v1/{rig.UNIT}/x")
    assert (answer.status, answer.body, answer.headers["ETag"]) == (status, b"", '"1"')
    if announced is not None and status == 200:
        assert answer.headers["Content-Length"] == announced
    if status == 204:
        assert answer.headers["Content-Length"] is None
        assert answer.headers["Transfer-Encoding"] is None
    assert caller("GET", f"/probe/v1/{rig.UNIT}/next").body == b"next"


def test_fields_of_the_caller(rig):
    unit = rig.unit(echo)
    for pid in rig.routes_to(unit).values():
        answer = rig.caller(pid)(
            "POST",
            f"/probe/v1/{rig.UNIT}/x?a=%20b",
            b"1",
            Cookie="session=secret",
            Connection="keep-alive, X-Hop, x-other",
            Keep_Alive="timeout=5",
            X_Hop="1",
            X_Other="1",
            Proxy_Authorization="Basic eDp5",
            TE="trailers",
            Upgrade_Insecure_Requests="1",
            X_Caregate_Context="forged",
            X_Caregate_Anything="forged",
            X_Forwarded_For="10.0.0.1",
            X_Request_Id="mine",
            Accept_Language="de",
            Content_Type="text/x-odd; charset=utf-8",
        )
        assert answer.status == 200
        sent = unit.requests[-1].request
        names = [name for name, _ in sent.fields]
        fields = dict(sent.fields)
        for gone in (
            "authorization", "cookie", "connection", "keep-alive", "x-hop", "x-other", "proxy-authorization", "te",
            "host", "content-length", "transfer-encoding", "x-caregate-anything", "x-forwarded-for", "upgrade",
        ):  # fmt: skip
            assert gone not in names
        assert names.count("x-caregate-context") == 1
        assert fields["x-caregate-context"].count(".") == 2
        assert fields["x-request-id"] == answer.headers["X-Request-Id"] == sent.id
        assert fields["accept-language"] == "de"
        assert fields["content-type"] == "text/x-odd; charset=utf-8"
        assert sent.target == "/x?a=%20b"
        assert all(rig.platform.tokens["PRACTITIONER"] not in value for value in fields.values())


def test_other_spellings_of_identity_fields_do_not_travel(rig):
    """`X_Caregate_Context` is the same key as the real field to a WSGI service behind the unit."""
    unit = rig.unit(echo)
    sock = rig.socket_of(unit.worker)
    lines = [
        f"GET /probe/v1/{rig.UNIT}/x HTTP/1.1",
        "Host: test",
        f"Authorization: Bearer {rig.platform.tokens['PRACTITIONER']}",
        "X_Caregate_Context: forged",
        "x_caregate-role: admin",
        "X-CAREGATE-ROLE: admin",
        "X_Request_Id: forged",
        "Connection: close",
    ]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    response = http.client.HTTPResponse(sock)
    response.begin()
    if response.status == 200:
        values = [value for _, value in unit.requests[-1].request.fields]
        assert "forged" not in values
        assert "admin" not in values
    else:
        assert response.status == 400
        assert not unit.requests


@pytest.mark.parametrize(("route", "travels"), [("probe", False), ("sweet", True)])
def test_cookies_travel_where_the_route_asks_for_them(rig, route, travels):
    def script(unit, request):
        unit.ack(request.stream)
        unit.answer(request.stream, 200, b"1", fields=[("set-cookie", "a=1"), ("set-cookie", "b=2")])

    unit = rig.unit(script)
    answer = rig.caller(unit.worker)("GET", f"/{route}/v1/{rig.UNIT}/x", Cookie="session=secret")
    assert (("cookie", "session=secret") in unit.requests[-1].request.fields) is travels
    assert (answer.headers.get_all("Set-Cookie") or []) == (["a=1", "b=2"] if travels else [])


@HOPS
def test_fields_of_the_unit(rig, hops):
    def script(unit, request):
        unit.ack(request.stream)
        unit.answer(
            request.stream,
            418,
            b"teapot",
            fields=[
                ("content-type", "text/x-odd"),
                ("relay-source", "gateway"),
                ("x-request-id", "theirs"),
                ("connection", "x-hop, close"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=1"),
                ("transfer-encoding", "chunked"),
                ("content-length", "3"),
                ("upgrade", "h2c"),
                ("trailer", "x"),
                ("x-caregate-context", "theirs"),
                ("access-control-allow-origin", "*"),
                ("link", "<a>"),
                ("link", "<b>"),
                ("x-latin", "caf\xe9"),
            ],
        )

    unit = rig.unit(script)
    answer = rig.caller(rig.routes_to(unit)[hops])("GET", f"/probe/v1/{rig.UNIT}/x")
    assert (answer.status, answer.body) == (418, b"teapot")
    assert answer.headers.get_all("Relay-Source") == ["unit"]
    assert answer.headers.get_all("X-Request-Id") == [unit.requests[0].request.id]
    assert answer.headers.get_all("Content-Length") == ["6"]
    assert answer.headers.get_all("Link") in (["<a>", "<b>"], ["<a>, <b>"])
    assert answer.headers["X-Latin"] == "caf\xe9"
    assert answer.headers["Content-Type"] == "text/x-odd"
    for gone in ("X-Hop", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Trailer", "X-Caregate-Context"):
        assert answer.headers[gone] is None
    assert answer.headers["Access-Control-Allow-Origin"] is None


FAILING = [
    ("disconnected", lambda unit, request: (unit.ack(request.stream), unit.cut())),
    ("refused", lambda unit, request: unit.reset(request.stream, ResetCode.REFUSED, "no", False)),
    ("silent", lambda unit, request: None),
    ("broken", lambda unit, request: (unit.ack(request.stream), unit.answer(request.stream, 200, b"1", length=9))),
]


@HOPS
@pytest.mark.parametrize("script", [row[1] for row in FAILING], ids=[row[0] for row in FAILING])
def test_a_post_is_not_repeated(rig, script, hops):
    """Two connections of the unit, each counting: what may have run runs once."""
    seen = []

    def counting(unit, request):
        seen.append(request.request.id)
        script(unit, request)

    units = [rig.unit(counting, instance="pair", index=index) for index in range(2)]
    pids = {unit.worker for unit in units}
    pid = units[0].worker if hops == "held" else next(p for p in rig.pids() if p not in pids)
    answer = rig.caller(pid)("POST", f"/probe/v1/{rig.UNIT}/x", b"1")
    assert answer.status in (502, 503, 504)
    assert seen == [answer.headers["X-Request-Id"]]


@HOPS
@pytest.mark.parametrize("when", ["before ACK", "after ACK", "during the answer", "during the request"])
def test_a_caller_that_goes_away_is_cancelled_at_the_unit(rig, wait, when, hops):
    def script(unit, request):
        if when in ("after ACK", "during the answer"):
            unit.ack(request.stream)
        if when == "during the answer":
            unit.answer(request.stream, 200, b"x" * 100_000, end=False)
            for _ in range(100):
                unit.data(request.stream, b"x" * 10_000)
                time.sleep(0.02)

    unit = rig.unit(script)
    caller = rig.caller(rig.routes_to(unit)[hops])
    started_s = time.monotonic()
    if when == "during the request":
        caller.connection.putrequest("POST", f"/bulk/v1/{rig.UNIT}/x")
        caller.connection.putheader("Content-Length", "1000000")
        caller.connection.putheader("Authorization", f"Bearer {rig.platform.tokens['PRACTITIONER']}")
        caller.connection.endheaders(b"x" * 1000)
    else:
        caller.send("GET", f"/bulk/v1/{rig.UNIT}/x")
    wait(lambda: unit.requests)
    if when == "during the answer":
        assert caller.connection.getresponse().status == 200
    time.sleep(0.1)
    caller.vanish()
    wait(lambda: unit.aborted, 5)
    assert unit.aborted[0].code == ResetCode.CANCEL
    assert time.monotonic() - started_s < 5


@HOPS
def test_twenty_callers_at_once(rig, hops):
    def script(unit, request):
        echo(unit, request)

    unit = rig.unit(script)
    pid = rig.routes_to(unit)[hops]
    callers = [rig.caller(pid) for _ in range(20)]
    wrong = []

    def call(caller, number):
        for turn in range(5):
            body = bytes([number]) * (1 + number * 7_000 + turn)
            answer = caller("POST", f"/bulk/v1/{rig.UNIT}/x", body)
            if (answer.status, answer.body) != (200, body):
                wrong.append((number, answer.status, answer.body[:200]))

    threads = [threading.Thread(target=call, args=(caller, n)) for n, caller in enumerate(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert len(unit.requests) == 100


@HOPS
def test_a_unit_that_answers_slowly_costs_no_other(rig, hops):
    answered = threading.Event()

    def slow(unit, request):
        unit.ack(request.stream)
        answered.wait(10)
        unit.answer(request.stream, 200, b"slow")

    unit = rig.unit(slow)
    other = rig.unit(echo, unit=rig.OTHER)
    pid = rig.routes_to(unit)[hops]
    caller = rig.caller(pid)
    caller.send("GET", f"/bulk/v1/{rig.UNIT}/x")
    answer = rig.caller(pid)("POST", f"/bulk/v1/{rig.OTHER}/x", b"fast")
    assert answer.body == b"fast"
    assert not answered.is_set()
    answered.set()
    assert caller.connection.getresponse().read() == b"slow"
    assert len(other.requests) == 1


@HOPS
def test_an_answer_before_the_end_of_the_request(rig, hops):
    """The service refuses a large body early: the caller gets that answer, and the unit is told to read no more."""

    def script(unit, request):
        unit.ack(request.stream)
        unit.answer(request.stream, 413, b"too much for us")

    unit = rig.unit(script)
    answer = rig.caller(rig.routes_to(unit)[hops])("POST", f"/bulk/v1/{rig.UNIT}/x", b"x" * 2_000_000)
    assert (answer.status, answer.body) == (413, b"too much for us")
    assert answer.headers["Relay-Source"] == "unit"


@HOPS
def test_a_request_body_over_the_routes_limit(rig, hops):
    unit = rig.unit(echo)
    pid = rig.routes_to(unit)[hops]
    announced = rig.caller(pid)("POST", f"/probe/v1/{rig.UNIT}/x", b"x" * 1_048_577)
    assert announced.status == 413
    chunks = b"".join(b"10000\r\n" + b"x" * 65_536 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
    counted = rig.caller(pid)("POST", f"/probe/v1/{rig.UNIT}/x", chunks, Transfer_Encoding="chunked")
    assert counted.status == 413
    assert rig.caller(pid)("POST", f"/probe/v1/{rig.UNIT}/x", b"fine").body == b"fine"


@HOPS
def test_a_large_download_and_a_slow_reader_stop_nobody(rig, wait, hops):
    """Of one unit: 64 MiB for one caller, a caller who reads a byte a second, and small answers for others."""
    large = 64 * 1_048_576

    def script(unit, request):
        unit.ack(request.stream)
        if request.request.target == "/small":
            unit.answer(request.stream, 200, b"small")
            return
        unit.answer(request.stream, 200, b"", end=False, length=large)
        unit.say(lambda session: [session.send_data(request.stream, bytes(1_048_576)) for _ in range(64)])
        unit.data(request.stream, b"", end=True)

    unit = rig.unit(script)
    pid = rig.routes_to(unit)[hops]
    slow, fast, small = (rig.caller(pid) for _ in range(3))
    slow.send("GET", f"/bulk/v1/{rig.UNIT}/slow")
    wait(lambda: unit.requests)
    reading = slow.connection.getresponse()
    took = []
    done = threading.Thread(target=lambda: took.append(fast("GET", f"/bulk/v1/{rig.UNIT}/fast")))
    done.start()
    wait(lambda: len(unit.requests) == 2)
    answered = 0
    while done.is_alive():
        assert small("GET", f"/probe/v1/{rig.UNIT}/small").body == b"small"
        answered += 1
        if answered % 10 == 1:
            assert len(reading.read(1)) == 1
    assert answered >= 5
    assert len(took[0].body) == large
    # What the slow one does not read waits at the unit, apart from windows and sockets on the way.
    assert unit.session.queued_bytes(unit.requests[0].stream) > large - 16 * 1_048_576
    slow.vanish()
