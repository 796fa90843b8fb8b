"""wss: the gateway's certificate is verified, always."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509

from gateway.agent.endpoint import Endpoint

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


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
