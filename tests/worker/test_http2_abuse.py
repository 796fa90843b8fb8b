"""Clients that mean HTTP/2 no good: floods, bombs, garbled frames, and every way to be slow."""

from __future__ import annotations

import random
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

SHORT = {f"CAREGATE_{name}_S": "1" for name in ("HEAD_TIMEOUT", "BODY_TIMEOUT", "KEEPALIVE", "WRITE_TIMEOUT")}
NO_ERROR, PROTOCOL_ERROR, CALM = 0, 1, 11


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, server: Any, http2_options: tuple[str, ...]) -> Iterator[Any]:
    """A worker whose every deadline is a second."""
    running = type(server)(tmp_path_factory.mktemp("http2-hasty") / "notes", *http2_options, **SHORT)
    yield running
    running.stop()


def eventually(check: Callable[[], object], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


FLOODS: dict[str, Callable[[Any, Any, int], bytes]] = {
    "ping": lambda h, c, n: h.frame(h.PING, 0, 0, b"12345678"),
    "settings": lambda h, c, n: h.frame(h.SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535 - n % 2)),
    "priority": lambda h, c, n: h.frame(h.PRIORITY, 0, 101, b"\0\0\0\0\1"),
    "unknown": lambda h, c, n: h.frame(0x42, 0, 0, b"x"),
    "window": lambda h, c, n: h.frame(h.WINDOW, 0, 0, b"\0\0\0\1"),
    "empty-data": lambda h, c, n: (c.block(1, h.request(b"/echo", b"POST"), 0) if n == 0 else b"")
    + h.frame(h.DATA, 0, 1),
    "rapid-reset": lambda h, c, n: c.block(2 * n + 1, h.request()) + h.frame(h.RST, 0, 2 * n + 1, b"\0\0\0\x08"),
    "made-you-reset": lambda h, c, n: c.block(2 * n + 1, h.request()) + h.frame(h.WINDOW, 0, 2 * n + 1, b"\0\0\0\0"),
    "bad-heads": lambda h, c, n: c.block(2 * n + 1, h.request(b"//")),
    "continuation": lambda h, c, n: h.frame(h.CONTINUATION, 0, 1, b"") if n else h.frame(h.HEADERS, 1, 1, b"\x82"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(front: Any, speak_http2: Callable[..., Any], http2: Any, name: str) -> None:
    client = speak_http2(front)
    client.sock.settimeout(10)
    try:
        for n in range(1500):
            client.send(FLOODS[name](http2, client, n))
    except OSError:
        pass
    client.wait_end()
    assert client.ended
    assert client.goaway is None or client.goaway[1] in (CALM, PROTOCOL_ERROR)
    assert speak_http2(front).get(http2.request()).status == 200


def test_a_header_bomb_ends_the_connection(front: Any, speak_http2: Callable[..., Any], http2: Any) -> None:
    """Small on the wire: one field of the dynamic table, again and again."""
    client = speak_http2(front)
    block = client.encoder.encode([*http2.request(), (b"x-a", b"a" * 3900)], huffman=False) + b"\xbe" * 10_000
    client.send(http2.frame(http2.HEADERS, 5, 1, block))
    client.wait_end()
    assert client.goaway is not None


def test_another_preface_ends_the_connection(front: Any, certificate: tuple[str, str]) -> None:
    context = ssl.create_default_context(cafile=certificate[1])
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(front.connect(), server_hostname="gw.example") as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n")
        data = b""
        while piece := sock.recv(1000):
            data += piece
    assert b"\0\0\x08\x07\0\0\0\0\0" in data, "GOAWAY"


@pytest.mark.parametrize("seed", range(6))
def test_garbled_frames_leave_the_worker_well(
    front: Any, speak_http2: Callable[..., Any], http2: Any, seed: int
) -> None:
    """Good conversations with bytes and frames of them changed."""
    chance = random.Random(seed)
    for _ in range(25):
        client = speak_http2(front)
        client.mute = True
        frames = [
            client.block(1, http2.request(b"/echo", b"POST"), 0), http2.frame(http2.DATA, 1, 1, b"hello"),
            client.block(3, http2.request()), http2.frame(http2.WINDOW, 0, 1, b"\0\0\0\1"),
            http2.frame(http2.RST, 0, 3, b"\0\0\0\x08"), http2.frame(http2.SETTINGS, 0, 0, b"\0\4\0\0\1\0"),
            http2.frame(http2.PING, 0, 0, b"12345678"), client.block(5, http2.request(b"/generator")),
            http2.frame(http2.PRIORITY, 0, 7, b"\0\0\0\1\0"), http2.frame(http2.GOAWAY, 0, 0, b"\0" * 8),
        ]  # fmt: skip
        chance.shuffle(frames) if chance.random() < 0.5 else None
        raw = bytearray(b"".join(frames))
        for _ in range(chance.randrange(6)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        client._try(bytes(raw))
        client.sock.settimeout(0.02)
        try:
            client.wait_end()
        except TimeoutError:
            client.sock.close()
    assert speak_http2(front).get(http2.request()).status == 200
    log = front.log.read_text()
    assert "Error on a" not in log
    assert "The protocol failed" not in log


class TestSlowClients:
    """See the rules in docs/http.md: every deadline of this worker is a second."""

    def ends(self, client: Any, drip: bytes = b"", pause_s: float = 0.02) -> float:
        """How long until the connection ends, a byte of `drip` at a time."""
        started = time.monotonic()
        client.mute = bool(drip)
        client.sock.settimeout(pause_s if drip else 5)
        at = 0
        while time.monotonic() - started < 5:
            if drip:
                client._try(drip[at % len(drip) : at % len(drip) + 1])
                at += 1
            try:
                if not client.read():
                    break
            except TimeoutError:
                continue
        return time.monotonic() - started

    def test_idle(self, hasty: Any, speak_http2: Callable[..., Any], http2: Any) -> None:
        client = speak_http2(hasty)
        assert 0.9 < self.ends(client) < 2.5
        assert client.goaway == (0, NO_ERROR)

    def test_idle_after_requests(self, hasty: Any, speak_http2: Callable[..., Any], http2: Any) -> None:
        client = speak_http2(hasty)
        client.get(http2.request())
        assert 0.9 < self.ends(client) < 2.5
        assert client.goaway == (1, NO_ERROR)

    def test_pings_keep_nothing_open(self, hasty: Any, speak_http2: Callable[..., Any], http2: Any) -> None:
        """Not even where one has always begun."""
        client = speak_http2(hasty)
        client.mute = True
        ping = http2.frame(http2.PING, 0, 0, b"12345678")
        client.send(ping[:1])
        client.sock.settimeout(0.02)
        started = time.monotonic()
        while not client.ended and time.monotonic() - started < 5:
            time.sleep(0.01)  # fewer than a flood
            client._try(ping[1:] + ping[:1])
            try:
                client.read()
            except TimeoutError:
                continue
        assert time.monotonic() - started < 2.5

    @pytest.mark.parametrize("part", ["head", "continuation"])
    def test_head(self, hasty: Any, speak_http2: Callable[..., Any], http2: Any, part: str) -> None:
        client = speak_http2(hasty)
        first = http2.frame(http2.HEADERS, 1, 1, b"\x82") if part == "continuation" else b""
        client.send(first)
        drip = http2.frame(http2.CONTINUATION, 0, 1, b"") if first else http2.frame(http2.HEADERS, 5, 1, b"\x82" * 999)
        assert 0.9 < self.ends(client, drip) < 3
        assert client.goaway == (0, CALM)

    def test_half_a_preface(self, hasty: Any, certificate: tuple[str, str]) -> None:
        context = ssl.create_default_context(cafile=certificate[1])
        context.set_alpn_protocols(["h2"])
        started = time.monotonic()
        with context.wrap_socket(hasty.connect(), server_hostname="gw.example") as sock:
            sock.sendall(b"PRI * HTTP/2.0\r\n")
            while sock.recv(1000):
                pass
        assert 0.9 < time.monotonic() - started < 3

    @pytest.mark.parametrize("how", ["stops", "drips-frames", "drips-a-frame"])
    def test_body(self, hasty: Any, speak_http2: Callable[..., Any], http2: Any, how: str) -> None:
        client = speak_http2(hasty)
        client.mute = True
        stream = client.ask(http2.request(b"/echo", b"POST"), end=False)
        drip = {
            "stops": b"", "drips-frames": http2.frame(http2.DATA, 0, 1, b"a"),
            "drips-a-frame": http2.frame(http2.DATA, 0, 1, b"a" * 9999),
        }[how]  # fmt: skip
        started = time.monotonic()
        client.sock.settimeout(0.01)
        at = 0
        while not client.of(stream).over and not client.ended and time.monotonic() - started < 5:
            client._try(drip[at : at + 1])
            at = (at + 1) % len(drip) if drip else 0
            try:
                client.read()
            except TimeoutError:
                continue
        assert 0.9 < time.monotonic() - started < 3.5
        assert client.of(stream).status == 408 or client.goaway == (1, CALM)

    def test_a_window_that_stays_shut(self, hasty: Any, speak_http2: Callable[..., Any], http2: Any) -> None:
        client = speak_http2(hasty, credit=False)
        stream = client.ask(http2.request(b"/large"))
        started = time.monotonic()
        got = client.wait(stream)
        assert 0.9 < time.monotonic() - started < 3
        assert (len(got.body), got.ended, got.reset) == (65_535, False, 2)
        assert client.get(http2.request(b"/", b"HEAD")).status == 200, "others go on"

    def test_other_streams_windows_move_no_deadline(
        self, hasty: Any, speak_http2: Callable[..., Any], http2: Any
    ) -> None:
        client = speak_http2(hasty, credit=False)
        stream = client.ask(http2.request(b"/large"))
        started = time.monotonic()
        client.sock.settimeout(0.05)
        while not client.of(stream).over and time.monotonic() - started < 5:
            client._try(http2.frame(http2.WINDOW, 0, 0, b"\0\0\0\1"))
            try:
                client.read()
            except TimeoutError:
                continue
        assert time.monotonic() - started < 3

    def test_a_client_that_does_not_read_is_cut_off(
        self, hasty: Any, speak_http2: Callable[..., Any], http2: Any
    ) -> None:
        (worker,) = psutil.Process(hasty.process.pid).children()
        eventually(lambda: len(worker.net_connections()) == 1)
        client = speak_http2(hasty, {4: 1 << 30}, credit=False)
        client.send(http2.frame(http2.WINDOW, 0, 0, struct.pack(">I", 1 << 30)))
        for _ in range(8):
            client.ask(http2.request(b"/large"))
        before = worker.memory_info().rss
        eventually(lambda: len(worker.net_connections()) == 1, 6)
        assert worker.memory_info().rss - before < 40 << 20
