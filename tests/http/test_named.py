"""Whom the trail says a search by form or a batch was about, which no rule reads, through the gateway."""

from __future__ import annotations

import io
import json
import re

import pytest

from gateway.audit.event import Accesses, also_named, decode, encode
from gateway.context import RequestContext, deadline_of
from gateway.http.named import MOST_BYTES, note_named
from gateway.http1.body import Body
from gateway.routing.kinds import endpoint
from gateway.routing.model import ResourceAction, Route, RouteKind

FORM, FHIR = "application/x-www-form-urlencoded", "application/fhir+json"
SEARCH = "/v1/fhir/Observation/_search"
BASE = "/v1/base"
TYPED = "/v1/observations/_search"


class Server:
    """Answers, and keeps what it was sent."""

    sent = b""

    def on_request(self, req, resp):
        self.sent = req.stream.read(1 << 20)
        resp.content_type, resp.data = FHIR, b'{"resourceType": "Bundle", "id": "of-the-answer"}'


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def events(gateway_of, base, ways, server, monkeypatch):
    def route(path, **more):
        return {"path": path, "methods": ["POST"], "audiences": ["staff"], "roles": ["nurse"], "phi": True,
                "query": "any", "resource": "ping", **more}  # fmt: skip

    base["limits"]["address"] = {"per": "address", "rate": 1000, "burst": 1000}
    base["controllers"] |= {
        "fhir": route("/v1/fhir/{rest:path}", audit={"fhir": "rest"}),
        "observations": route(TYPED, audit={"resource": "Observation"}),
        "patients": route("/v1/patients/_search", audit={"resource": "Patient"}),
        "base": route("/v1/base", audit={"resource": "Bundle"}),
        "bound": route("/v1/bound/{unit}/{rest:path}", audit={"fhir": "rest"},
                       bind=[{"param": "unit", "claim": "units"}]),
        "others": route("/v1/others/{rest:path}", audit={"fhir": "rest"}, roles=["ward_admin"]),
        "notes": route("/v1/notes", audit={"resource": "Note"}),
    }  # fmt: skip
    base["gateway"]["fhir_bases"] = ["https://gw/fhir"]
    made = gateway_of(base)
    monkeypatch.setattr(made.public._router._resources, "of", lambda route: endpoint(server))
    found = []

    def record(ctx, status):
        event = Accesses("n").encode(ctx, status, 1, 1)
        assert encode(decode(event)) == event
        found.append(decode(event))

    for method in ("record", "enqueue_finished"):
        monkeypatch.setattr(made.audit, method, record)
    monkeypatch.setattr(made.audit, "completed", lambda *_: None)
    monkeypatch.setattr(made.audit, "note_others", lambda ctx: made.others.extend(also_named(ctx)))
    made.clients, made.events, made.others = ways(made), found, []
    return made


@pytest.fixture(params="ml", ids=["middleware", "lane"])
def post(request, events, token):
    """Send a request, twice, as the second one finds what the first left -> its events."""

    def post(path, body, kind=FORM, **fields):
        sent = json.dumps(body) if isinstance(body, dict) else body
        headers = {"Authorization": f"Bearer {token('nurse', units=['u-1'])}", "Content-Type": kind, **fields}
        for _ in range(2):
            events.events.clear()
            events.others.clear()
            events.clients[request.param].simulate_request("POST", path, headers=headers, body=sent)
        return list(events.events)

    return post


@pytest.mark.parametrize(
    ("path", "form", "expected"),
    [
        pytest.param(SEARCH, "code=1&patient=p-1", ("Observation", "p-1"), id="patient"),
        pytest.param(SEARCH, "subject=Patient%2Fp-1&patient=p-2", ("Observation", "p-1"), id="the first"),
        pytest.param(SEARCH, "patient=https://gw/fhir/Patient/p-1", ("Observation", "p-1"), id="our own base"),
        pytest.param(SEARCH, "code=1", ("Observation", ""), id="nobody"),
        pytest.param(SEARCH, "patient=%ff&\xe4=%zz&;", ("Observation", ""), id="no ids"),
        pytest.param(SEARCH + "?patient=p-2", "patient=p-1", ("Observation", "p-2"), id="the query comes first"),
        pytest.param(SEARCH + "?_count=5", "patient=p-1", ("Observation", "p-1"), id="with a query"),
        pytest.param("/v1/fhir/Patient/_search", "_id=p-1", ("Patient", "p-1"), id="patients by id"),
        pytest.param("/v1/fhir/Patient/p-3/Condition/_search", "patient=p-1", ("Condition", "p-3"), id="compartment"),
        pytest.param("/v1/fhir/_search", "_type=Condition&patient=p-1", ("", "p-1"), id="of all types"),
        pytest.param(TYPED, "patient=p-1", ("Observation", "p-1"), id="a route of one type"),
        pytest.param("/v1/patients/_search", "_id=p-1", ("Patient", "p-1"), id="a route of patients"),
        pytest.param("/v1/bound/u-1/Observation/_search", "patient=p-1", ("Observation", "p-1"), id="bound"),
    ],
)
def test_a_search_by_form_names_what_the_same_search_by_get_does(post, server, path, form, expected):
    intent, outcome = post(path, form)
    assert (intent.phase, outcome.phase) == ("intent", "outcome")
    for event in (intent, outcome):
        assert (event.resource_type, event.patient, event.action, event.resource_id) == (*expected, "R", "")
    assert server.sent == form.encode()


@pytest.mark.parametrize(
    ("path", "form", "patients"),
    [
        pytest.param(SEARCH, "patient=p-9,p-1&subject=Patient/p-2", ["p-9", "p-1", "p-2"], id="several"),
        pytest.param(SEARCH + "?patient=p-9", "patient=p-1", ["p-9", "p-1"], id="beside the query"),
        pytest.param("/v1/fhir/Patient/p-3/Condition/_search", "patient=p-1", ["p-3", "p-1"], id="compartment"),
        pytest.param(TYPED, "patient=p-9,p-1", ["p-9", "p-1"], id="a route of one type"),
    ],
)
def test_a_decoy_in_front_hides_nobody(post, events, path, form, patients):
    assert {event.patient for event in post(path, form)} == {patients[0]}
    assert events.others == patients[1:]


def test_a_form_may_name_as_many_as_a_query(post, server):
    assert len(post(SEARCH, "patient=" + ",".join(f"p-{n}" for n in range(101)))) == 2
    server.sent = b""
    [event] = post(SEARCH, "patient=" + ",".join(f"p-{n}" for n in range(102)))
    assert (event.outcome, server.sent) == ("refused", b"")


@pytest.mark.parametrize("path", ["/v1/bound/u-2/Observation/_search", "/v1/others/Observation/_search"])
def test_a_refused_attempt_names_the_same(post, path):
    [event] = post(path, "patient=p-1")
    assert (event.outcome, event.resource_type, event.patient, event.action) == ("refused", "Observation", "p-1", "R")


@pytest.mark.parametrize(
    ("path", "kind", "fields"),
    [
        pytest.param("/v1/fhir/Observation", FORM, {}, id="no search"),
        pytest.param("/v1/fhir/Observation/1/$x", FORM, {}, id="an operation"),
        pytest.param(SEARCH, "text/plain", {}, id="no form"),
        pytest.param(SEARCH, FORM, {"Content-Encoding": "gzip"}, id="coded"),
        pytest.param("/v1/notes", FORM, {}, id="no type of FHIR"),
    ],
)
def test_other_bodies_are_not_read(post, monkeypatch, path, kind, fields):
    monkeypatch.setattr("gateway.http.named.ReadBody", None)
    assert {event.patient for event in post(path, "patient=p-1", kind, **fields)} == {""}


@pytest.mark.parametrize("size", [MOST_BYTES, MOST_BYTES + 1])
def test_a_form_that_is_too_large_names_nobody_and_goes_on(post, server, size):
    form = "patient=p-1&code=".ljust(size, "x")
    assert [event.patient for event in post(SEARCH, form)] == ["p-1" if size == MOST_BYTES else ""] * 2
    assert server.sent == form.encode()


def _entry(url="", method="GET", **resource):
    return {"request": {"method": method, "url": url}, **({"resource": resource} if resource else {})}


def _of(patient):
    return {"reference": f"Patient/{patient}"}


@pytest.mark.parametrize(
    ("entries", "patients"),
    [
        pytest.param([_entry("Patient/p-1"), _entry("Observation?patient=p-1&code=2")], ["p-1"], id="read"),
        pytest.param([_entry("Observation", "POST", subject=_of("p-1")), _entry("Patient/p-1", "PUT", id="p-1")],
                     ["p-1"], id="written"),
        pytest.param([_entry("https://gw/fhir/Patient/p-1/_history/2"), _entry("/Patient/p%2D1")], ["p-1"],
                     id="spellings"),
        pytest.param([_entry("Patient/p-1"), _entry("Observation/7", "PUT", patient=_of("p-2")), _entry("Patient/p-3")],
                     ["p-1", "p-2", "p-3"], id="several"),
        pytest.param([_entry("Condition?patient=p-2,p-1")], ["p-2", "p-1"], id="several in one"),
        pytest.param([_entry("Observation/7"), _entry("https://elsewhere/Patient/p-1")], [""], id="nobody"),
        pytest.param([7, {}, {"request": 7}, {"request": {"url": 7}, "resource": []}], [""], id="no requests"),
        pytest.param([_entry(f"Patient/p-{n}") for n in range(150)], [f"p-{n}" for n in range(101)], id="many"),
    ],
)  # fmt: skip
def test_a_batch_names_the_patients_of_its_entries(post, events, server, entries, patients):
    sent = {"resourceType": "Bundle", "type": "batch", "entry": entries}
    told = post(BASE, sent, FHIR)
    assert [event.phase for event in told] == ["intent", "outcome"]
    for event in told:
        assert (event.resource_type, event.resource_id, event.action) == ("Bundle", "", "E")
        assert [event.patient, *events.others] == patients
    assert json.loads(server.sent) == sent


@pytest.mark.parametrize("body", ["", "[]", "{", '{"entry": 7}', '{"entry": [], "entry": []}', "[" * 60_000], ids=len)
def test_what_is_no_batch_names_nobody_and_goes_on(post, server, body):
    assert {event.patient for event in post(BASE, body, FHIR)} == {""}
    assert server.sent == body.encode()


class Connection:
    """Gives a body's bytes piece by piece."""

    def __init__(self, data, piece_bytes):
        self._pieces = [data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)]
        self.deadlines = set()

    def receive_body(self, received_bytes, deadline_ns):
        self.deadlines.add(deadline_ns)
        return self._pieces.pop(0)


@pytest.mark.parametrize("piece_bytes", [1, 4_096, 1 << 20])
@pytest.mark.parametrize("size", [20, MOST_BYTES, MOST_BYTES + 1, MOST_BYTES + 70_000])
def test_a_form_in_chunks_goes_on_whole(size, piece_bytes):
    if piece_bytes == 1 and size > 20:
        piece_bytes = 777
    form = b"patient=p-1&code=".ljust(size, b"x")
    wire = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in re.findall(b".{1,5000}", form)) + b"0\r\n\r\n"
    connection = Connection(wire, piece_bytes)
    body = Body(connection, -1, b"")
    route = Route(
        name="s", template="/s", methods=("POST",), kind=RouteKind.RESOURCE, action=ResourceAction("x"),
        audiences=frozenset(), roles=frozenset(), permission=None, metadata={"resource_type": "Observation"},
    )  # fmt: skip
    req = type("Request", (), {})()
    req.content_type, req.stream = FORM, body
    req.env = {"wsgi.input": body, "caregate.content_length": None}
    ctx = RequestContext("r", 0, method="POST")
    note_named(req, ctx, route)
    assert connection.deadlines == {deadline_of(ctx, route)}
    assert (ctx.told or ("", ""))[1] == ("p-1" if size <= MOST_BYTES else "")
    assert req.stream is req.env["wsgi.input"]
    read = io.BytesIO()
    while piece := req.stream.read_some(1_000):
        read.write(piece)
    assert read.getvalue() == form
    assert req.env["caregate.content_length"] == (size if size <= MOST_BYTES else None)
    assert body.finished
