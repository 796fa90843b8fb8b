"""The syslog stream is read by rsyslog as Debian packages it, over TLS; across its restarts nothing is missing."""

from __future__ import annotations

import datetime
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.audit.event import decode
from gateway.audit.forwarding import Cursor, Forwarder, client_context
from gateway.store.trail import TrailReader

RSYSLOG = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin:/sbin")
pytestmark = pytest.mark.skipif(
    RSYSLOG is None, reason="rsyslogd is not installed: apt-get install rsyslog rsyslog-gnutls"
)
CONFIG = """
global(workDirectory="{folder}" maxMessageSize="64k"
    DefaultNetstreamDriver="gtls" DefaultNetstreamDriverCAFile="{folder}/ca.pem"
    DefaultNetstreamDriverCertFile="{folder}/cert.pem" DefaultNetstreamDriverKeyFile="{folder}/key.pem")
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="anon")
input(type="imtcp" address="127.0.0.1" port="{port}")
template(name="parsed" type="string"
    string="%pri%|%timestamp:::date-rfc3339%|%hostname%|%app-name%|%msgid%|%structured-data%|%msg%\\n")
action(type="omfile" file="{folder}/received" template="parsed")
"""


def write_certificate(folder: Path) -> None:
    """A CA and a certificate of 127.0.0.1."""
    key, ca_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])

    def make(subject, public, extension, critical):
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1)).add_extension(extension, critical)
            .sign(ca_key, hashes.SHA256())
        )  # fmt: skip

    ca = make(name, ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=None), True)
    host = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "collector")])
    import ipaddress

    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = make(host, key.public_key(), names, False)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


class Rsyslog:
    def __init__(self, folder: Path) -> None:
        write_certificate(folder)
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        (folder / "rsyslog.conf").write_text(CONFIG.format(folder=folder, port=self.port))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [RSYSLOG, "-n", "-f", str(self.folder / "rsyslog.conf"), "-i", str(self.folder / "pid")]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def lines(self) -> list[list[bytes]]:
        path = self.folder / "received"
        return [line.split(b"|", 6) for line in path.read_bytes().splitlines()] if path.exists() else []

    def wait_for(self, count: int) -> list[list[bytes]]:
        end = time.monotonic() + 20
        while len(self.lines()) < count:
            assert time.monotonic() < end, f"{len(self.lines())} lines"
            time.sleep(0.05)
        return self.lines()


@pytest.fixture
def rsyslog(tmp_path):
    made = Rsyslog(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def forwarder(written, rsyslog, tmp_path):
    made = []

    def forwarder(settled_s=0.2):
        tls = client_context(tmp_path / "ca.pem")
        cursor = Cursor(tmp_path / "cursor.json")
        one = Forwarder(
            lambda: TrailReader(written.dsn), ("127.0.0.1", rsyslog.port), tls, cursor, settled_s=settled_s,
            sleep=lambda seconds: time.sleep(min(seconds, 0.05)),
        )  # fmt: skip
        made.append(one)
        return one

    yield forwarder
    for one in made:
        one._settling.clear()  # close() would wait a minute for what no test looks at any more
        one.close()


def test_every_event_arrives_as_it_was_written(written, rsyslog, forwarder, tmp_path):
    one = forwarder()
    assert one.round() == 95
    lines = rsyslog.wait_for(95)
    assert len(lines) == 95
    priority, at, host, app, kind, data, text = lines[0]
    assert (priority, app, kind) == (b"log audit.info", b"caregate", b"access") or priority == b"110"
    assert at.startswith(b"2026-01-01T00:00:01")
    assert data.startswith(b"[caregate@32473 chain=")
    events = [decode(line[6].lstrip(b" ").removeprefix(b"\xef\xbb\xbf")) for line in lines]
    assert sorted(e.request_id for e in events if e.duration_us <= 30) == sorted([f"r-{n}" for n in range(1, 31)] * 2)
    one.close()
    assert Cursor(tmp_path / "cursor.json").sent == {"a" * 16: 65, "b" * 16: 30}
    again = forwarder()
    assert again.round() == 0, "it goes on where it ended"


def test_a_collector_that_is_killed_gets_again_what_may_be_lost(written, rsyslog, forwarder):
    one = forwarder(settled_s=60)
    assert one.round() == 95
    rsyslog.wait_for(95)
    rsyslog.stop(signal.SIGKILL)
    end = time.monotonic() + 20
    while one._socket is not None:
        assert time.monotonic() < end
        one.round()
    written.add("a" * 16, 5)
    written.seal()
    written.store()
    rsyslog.start()
    while one.round() == 0:
        assert time.monotonic() < end
    lines = rsyslog.wait_for(195)
    assert len(lines) == 195, "what had not settled came twice, nothing is missing"
    numbers = [int(line[5].split(b'sequence="')[1].split(b'"')[0]) for line in lines[95:] if b"a" * 16 in line[5]]
    assert numbers == list(range(1, 71)), "in the order of the chain"


def test_a_collector_that_somebody_else_vouches_for_gets_nothing(written, rsyslog, forwarder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_certificate(other)
    one = forwarder()
    one._tls = client_context(other / "ca.pem")
    assert one.round() == 0
    assert rsyslog.lines() == []
    with pytest.raises(ssl.SSLError):
        client_context(tmp_path / "rsyslog.conf")


def test_a_torn_cursor_is_refused(tmp_path):
    (tmp_path / "cursor.json").write_text("{")
    with pytest.raises(ValueError, match="truncated"):
        Cursor(tmp_path / "cursor.json")
