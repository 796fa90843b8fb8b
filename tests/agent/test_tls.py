"""wss: the gateway's certificate is verified, always."""

from __future__ import annotations

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from gateway.agent.endpoint import Endpoint

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def certify(subject, key, issuer, issuer_key, names=(), days=2):
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names or [x509.DNSName("ca")]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def authority():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    return name, key, certify(name, key, name, key)


@pytest.fixture
def serve(authority, tmp_path, gateway_over_tls):
    """A gateway with a certificate for `names`; the path of the authority's certificate."""

    def start(names, days=2):
        name, key, root = authority
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
        leaf = certify(subject, own, name, key, names, days)
        (tmp_path / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))
        (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
        (tmp_path / "leaf.key").write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        gateway = gateway_over_tls(certfile=str(tmp_path / "leaf.pem"), keyfile=str(tmp_path / "leaf.key"))
        return gateway, str(tmp_path / "ca.pem")

    return start


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def test_requests_over_tls(rig, read, serve):
    rig.service.handler = lambda number, sock: (read(sock), sock.sendall(OK))
    gateway, ca = serve([LOOPBACK])
    rig.start(gateway=Endpoint(True, "127.0.0.1", gateway.port, "/relay/v1/connect"), ca_file=ca)
    peer = gateway.accept()
    for _ in range(3):
        assert peer.answer(peer.request())[1] == b"hi"
    big = peer.request("POST", length=300_000, end=False)
    peer.data(big, bytes(300_000), end=True)
    assert peer.answer(big)[1] == b"hi"


@pytest.mark.parametrize(
    ("names", "days", "trusted", "reason"),
    [
        pytest.param([LOOPBACK], 2, False, "issuer", id="unknown authority"),
        pytest.param([x509.DNSName("gw.example")], 2, True, "mismatch", id="another name"),
        pytest.param([LOOPBACK], -1, True, "expired", id="expired"),
    ],
)
def test_certificates_that_are_not_trusted(rig, serve, names, days, trusted, reason):
    gateway, ca = serve(names, days)
    rig.start(gateway=Endpoint(True, "127.0.0.1", gateway.port, "/x"), ca_file=ca if trusted else None)
    rig.wait_for(lambda: rig.pauses)
    assert gateway.heads == []
    why = next(line["why"] for line in rig.lines if line["event"] == "waiting")
    assert why.startswith("SSLCertVerificationError: ")
    assert reason in why
