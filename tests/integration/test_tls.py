"""A platform whose gateway speaks TLS only, HTTP/2 beside HTTP/1.1: callers, operations and the units' links."""

from __future__ import annotations

import datetime
import http.client
import importlib.util
import ipaddress
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from gateway.demo import story
from gateway.demo.platform import ROOT, Platform

pytestmark = pytest.mark.integration
UNIT = story.HOSPITAL
RESULTS = f"/units/v1/{UNIT}/patients/{story.OWN}/lab-results"
OBSERVATIONS = f"/units/v1/{UNIT}/fhir/Observation"


def certify(name: str, key: Any, issuer: str, issuer_key: Any, *, authority: bool) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(loopback, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


class TlsPlatform(Platform):
    """The demo's gateway with a certificate, and one unit whose agent dials wss."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory, port, workers=2, tell=lambda text: None)
        self.authority = directory / "ca.pem"
        leaf, key = directory / "leaf.pem", directory / "leaf.key"
        root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.authority.write_bytes(certify("authority", root, "authority", root, authority=True))
        leaf.write_bytes(certify("gateway", own, "authority", root, authority=False))
        key.write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._env.update(CAREGATE_TLS_CERTIFICATE=str(leaf), CAREGATE_TLS_KEY=str(key), CAREGATE_HTTP2="1")
        self.ports.units = {UNIT: self.ports.units[UNIT]}

    def start(self) -> None:
        self._check_ports()
        config = self.start_gateway()
        self._issue_tokens(config)
        keys, port = self.directory / "keys", self.ports.units[UNIT]
        context_key = str(keys / f"{UNIT}.context")
        self._spawn(
            "service", "-m", "gateway.demo.unit_service",
            "--unit", UNIT, "--port", str(port), "--context-key", context_key,
        )  # fmt: skip
        self.start_unit_agent("agent", self.authority)
        self._wait("agent", lambda: self.call(RESULTS).status == 200, 30)

    def start_unit_agent(self, name: str, authority: Path) -> None:
        keys = self.directory / "keys"
        self._spawn(
            name, "-m", "gateway.cli.main", "agent", "--gateway", f"wss://127.0.0.1:{self.ports.gateway}",
            "--unit", UNIT, "--key", str(keys / f"{UNIT}.key"), "--context-key", str(keys / f"{UNIT}.context"),
            "--target", f"http://127.0.0.1:{self.ports.units[UNIT]}", "--ca", str(authority),
            "--allow", "GET /fhir/*", "--allow", "POST /fhir/*",
        )  # fmt: skip

    def _start_workers(self) -> None:
        self._spawn("gateway", "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"))
        self._wait("gateway", lambda: self.operations("/readyz") is not None, 30)

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def operations(self, path: str) -> Any:
        try:
            url = f"https://127.0.0.1:{self.ports.ops}{path}"
            with urllib.request.urlopen(url, timeout=5, context=self.client()) as answer:
                return json.load(answer)
        except OSError:
            return None

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.ports.gateway, timeout=20, context=self.client())

    def roll(self) -> subprocess.Popen[str]:
        """`caregate workers roll`, its output in a pipe."""
        argv = [sys.executable, "-m", "gateway.cli.main", "workers", "roll", "--run-dir", str(self.directory / "run")]
        return subprocess.Popen(
            argv, cwd=ROOT, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def call(self, path: str, token: str = story.PATIENT) -> http.client.HTTPResponse:
        connection = self.connect()
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.tokens[token]}"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer


@pytest.fixture(scope="module")
def tls_platform(tmp_path_factory: pytest.TempPathFactory, base_port: Callable[[], int]) -> Iterator[TlsPlatform]:
    started = TlsPlatform(tmp_path_factory.mktemp("tls-platform"), base_port())
    try:
        started.start()
        yield started
    finally:
        started.stop()


def test_a_caller_reaches_a_unit_over_one_kept_connection(tls_platform: TlsPlatform) -> None:
    connection = tls_platform.connect()
    token = {"Authorization": f"Bearer {tls_platform.tokens[story.PATIENT]}"}
    sockets = set()
    for path in (RESULTS, RESULTS, "/portal/v1/patients/" + story.OWN + "/appointments", RESULTS):
        connection.request("GET", path, headers=token)
        answer = connection.getresponse()
        body = answer.read()
        sockets.add(connection.sock)
        assert answer.status == 200, body
    assert json.loads(body)["resourceType"] == "Bundle"
    assert len(sockets) == 1


def test_bodies_go_both_ways_through_the_link(tls_platform: TlsPlatform) -> None:
    connection = tls_platform.connect()
    resource = {"resourceType": "Observation", "status": "final", "note": [{"text": "x" * 100_000}]}
    resource |= {"subject": {"reference": f"Patient/{story.OWN}"}, "code": {"text": "creatinine"}}
    fields = {
        "Authorization": f"Bearer {tls_platform.tokens[story.PRACTITIONER]}",
        "Content-Type": "application/fhir+json",
    }
    connection.request("POST", OBSERVATIONS, json.dumps(resource), fields)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status in (200, 201), body
    assert json.loads(body)["note"][0]["text"] == "x" * 100_000


def test_the_link_is_a_units_and_encrypted(tls_platform: TlsPlatform) -> None:
    (unit,) = {row["unit"] for row in tls_platform.operations("/status")["units"]}
    assert unit == UNIT


def test_an_agent_that_trusts_another_authority_does_not_dial_in(
    tls_platform: TlsPlatform, tmp_path: Path, wait: Any
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    other = tmp_path / "other.pem"
    other.write_bytes(certify("other", key, "other", key, authority=True))
    before = len(tls_platform.operations("/status")["units"])
    tls_platform.start_unit_agent("stranger", other)
    stranger = tls_platform.children["stranger"]
    wait(lambda: "SSLCertVerificationError" in stranger.log.read_text(), 15)
    assert len(tls_platform.operations("/status")["units"]) == before
    stranger.signal(15)
    assert stranger.process is not None
    stranger.process.wait(15)


@pytest.fixture
def http2(tls_platform: TlsPlatform) -> Iterator[Any]:
    """A client of tests/worker/http2_client.py at the platform; `ask_for` builds its requests."""
    path = Path(__file__).parents[1] / "worker" / "http2_client.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(path.stem, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    context = tls_platform.client()
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", tls_platform.ports.gateway), 20)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as sock:
        client = module.Client(sock)
        client.ask_for = module.request
        yield client


def test_http2_reaches_portal_and_unit_and_is_accounted_for(tls_platform: TlsPlatform, http2: Any) -> None:
    def get(path: str, token: str | None = story.PATIENT) -> Any:
        fields = [(b"authorization", b"Bearer " + tls_platform.tokens[token].encode())] if token else []
        return http2.get(http2.ask_for(path.encode(), b"GET", *fields))

    appointments = f"/portal/v1/patients/{story.OWN}/appointments"
    found = {path: get(path) for path in (RESULTS, appointments)}
    assert [one.status for one in found.values()] == [200, 200]
    assert found[RESULTS].fields[b"relay-source"] == b"unit"
    refused = get(RESULTS, None)
    assert (refused.status, refused.fields[b"www-authenticate"]) == (401, b'Bearer realm="caregate"')
    assert get("/portal//v1").status == 400
    assert get("/relay/v1/connect", None).status == 426, "units dial over HTTP/1.1"
    ids = [one.fields[b"x-request-id"].decode() for one in (*found.values(), refused)]
    assert _logged(tls_platform.children["gateway"].log, ids) == [200, 200, 401]


def test_rolling_replacement_costs_no_answer(tls_platform: TlsPlatform, wait: Any) -> None:
    """A connection under TLS cannot be handed over: its agent dials a new worker before the old connection ends."""

    agent = psutil.Process(tls_platform.children["agent"].process.pid)

    def links() -> set[int]:
        gateway = tls_platform.ports.gateway
        return {link.laddr.port for link in agent.net_connections() if link.raddr and link.raddr.port == gateway}

    wait(lambda: len(links()) == 2, 15)
    before = links()
    statuses: list[int] = []
    rolling = tls_platform.roll()
    try:
        while rolling.poll() is None:
            statuses.append(tls_platform.call(RESULTS).status)
        told = rolling.communicate()[0]
    finally:
        rolling.kill()
    assert rolling.returncode == 0, told
    assert "rolled: 2 workers replaced" in told
    assert len(statuses) > 20
    assert set(statuses) == {200}
    wait(lambda: len(links()) == 2, 15)
    assert not before & links(), "dialled anew"


def _logged(log: Path, ids: list[str], limit_s: float = 10.0) -> list[int]:
    """The statuses of requests in the access log, which is written ten times a second."""
    until_s = time.monotonic() + limit_s
    while True:
        whole = log.read_text().rpartition("\n")[0].splitlines()
        rows = {row.get("request_id"): row for row in map(json.loads, filter(_is_json, whole))}
        if all(one in rows for one in ids) or time.monotonic() > until_s:
            return [rows[one]["status"] for one in ids if one in rows]
        time.sleep(0.05)


def _is_json(line: str) -> bool:
    return line.startswith("{")


def test_http2_bodies_go_through_the_link(tls_platform: TlsPlatform, http2: Any) -> None:
    resource = {"resourceType": "Observation", "status": "final", "note": [{"text": "x" * 50_000}]}
    resource |= {"subject": {"reference": f"Patient/{story.OWN}"}, "code": {"text": "creatinine"}}
    token = tls_platform.tokens[story.PRACTITIONER].encode()
    fields = ((b"authorization", b"Bearer " + token), (b"content-type", b"application/fhir+json"))
    got = http2.get(http2.ask_for(OBSERVATIONS.encode(), b"POST", *fields), json.dumps(resource).encode())
    assert got.status in (200, 201), got.body
    assert json.loads(got.body)["note"][0]["text"] == "x" * 50_000


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("path", ["/relay/v1/connect", RESULTS], ids=["unit", "caller"])
def test_old_versions_are_refused_on_every_path(tls_platform: TlsPlatform, path: str) -> None:
    context = tls_platform.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    connection = http.client.HTTPSConnection("127.0.0.1", tls_platform.ports.gateway, timeout=5, context=context)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|unsupported"):
        connection.request("GET", path)
