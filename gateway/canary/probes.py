"""Requests that carry marks everywhere a caller can put something, sent to a gateway."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gateway.canary.marks import Marks

LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One request. `echoes`: kinds that its answer may hold, since a backend says them back to who sent them."""

    title: str
    method: str
    target: str
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    echoes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Heard:
    """What a probe was answered; status 0: the connection ended without an answer."""

    probe: Probe
    status: int
    data: bytes


def probes(marks: Marks, paths: list[str], bearer: str = "") -> Iterator[Probe]:
    """What is sent. Shapes: `paths` are further paths to ask for; `bearer` is a good token, "" for none."""
    everywhere = {
        "User-Agent": marks["field"],
        "Referer": f"https://app.example.org/{marks['field']}",
        "Cookie": f"session={marks['field']}",
        "X-Patient-Name": marks["name"],
        "Idempotency-Key": marks["key"],
    }
    document = json.dumps({"name": marks["name"], "identifier": marks["identifier"], "note": marks["body"]}).encode()
    posted = {"Content-Type": "application/json", **everywhere}
    query = f"name={marks['name']}&patient={marks['query']}"
    forged = {"Authorization": f"Bearer {marks['token']}", **everywhere}
    good = {"Authorization": f"Bearer {bearer}", **everywhere} if bearer else forged
    nowhere = f"/{marks['identifier']}/{marks['name']}"
    yield Probe("no such route", "GET", f"{nowhere}?{query}", everywhere)
    yield Probe("a forged token", "GET", f"{nowhere}?{query}", forged)
    yield Probe("a token in the query", "GET", f"/?access_token={marks['token']}", everywhere)
    yield Probe("two tokens", "GET", f"/?access_token={marks['token']}", forged)
    yield Probe("a target that is not canonical", "GET", f"/x/../{marks['identifier']}", forged)
    yield Probe("an unknown method", "PURGE", nowhere, forged)
    yield Probe("a unit that dials", "GET", "/relay/v1/connect", {**forged, "Upgrade": "websocket"})
    yield Probe("an enrolment", "POST", "/relay/v1/enrol", posted, document)
    form = {"Content-Type": "application/x-www-form-urlencoded", **everywhere}
    secret = f"username={marks['name']}&password={marks['token']}&client_id={marks['identifier']}&code={marks['key']}"
    for grant in ("password", "client_credentials", "refresh_token", "authorization_code"):
        yield Probe(f"grant {grant}", "POST", "/auth/v1/token", form, f"grant_type={grant}&{secret}".encode())
    yield Probe("introspection", "POST", "/auth/v1/introspect", form, f"token={marks['token']}".encode())
    yield Probe("revocation", "POST", "/auth/v1/revoke", form, f"token={marks['token']}".encode())
    yield Probe("a search of the trail", "GET", f"/audit/v1/AuditEvent?patient={marks['query']}", forged)
    yield Probe("a broken body", "POST", nowhere, {**posted, "Authorization": good["Authorization"]}, document[:-1])
    for path in paths:
        path = path.replace("{mark}", marks["identifier"])
        own = frozenset({"body", "name", "identifier", "query", "field"})
        yield Probe(f"GET {path}", "GET", path, good, echoes=own)
        yield Probe(f"GET {path} with a query", "GET", f"{path}?{query}", good)
        yield Probe(f"POST {path}", "POST", path, {**posted, "Authorization": good["Authorization"]}, document, own)
        yield Probe(f"POST {path}, broken off", "POST", path, {**good, "Content-Length": "9999"}, document)


def send(gateway: str, probe: Probe, verify: bool = True) -> Heard:
    """Send a probe over a connection of its own. Raises: OSError if the gateway cannot be reached."""
    parts = urlsplit(gateway)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=LIMIT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    connection.connect()
    try:
        connection.putrequest(probe.method, probe.target, skip_accept_encoding=True)
        fields = dict(probe.fields)
        if probe.body is not None:
            fields.setdefault("Content-Length", str(len(probe.body)))
        for name, value in fields.items():
            connection.putheader(name, value)
        connection.endheaders(probe.body)
        if fields.get("Content-Length", "0") != str(len(probe.body or b"")):
            connection.sock.shutdown(1)
        answer = connection.getresponse()
        head = "\n".join(f"{name}: {value}" for name, value in answer.getheaders()).encode()
        return Heard(probe, answer.status, head + b"\n\n" + answer.read())
    except (OSError, http.client.HTTPException):
        return Heard(probe, 0, b"")
    finally:
        connection.close()
