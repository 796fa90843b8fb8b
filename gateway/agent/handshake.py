"""The client's side of the WebSocket handshake, without I/O: bytes in, bytes out.

Source: RFC 6455 section 4.1, held strictly: nothing that the agent did not ask for is accepted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re

from gateway.agent.endpoint import Endpoint

SUBPROTOCOL = "caregate.relay.v1"
MAX_HEAD_BYTES = 16_384
MAX_RETRY_AFTER_S = 3_600
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")


class HandshakeBroken(Exception):
    """The peer does not speak this handshake; the message names the rule, not what was received."""


class HandshakeRefused(Exception):
    """A plain HTTP answer instead of the upgrade.

    Units: `retry_after_s` seconds, None if the answer named none.
    """

    def __init__(self, status: int, retry_after_s: int | None) -> None:
        super().__init__(f"refused with {status}")
        self.status = status
        self.retry_after_s = retry_after_s


class Handshake:
    """One upgrade request and the check of its answer."""

    def __init__(self, gateway: Endpoint, token: str, nonce: bytes | None = None) -> None:
        """`nonce` has 16 bytes; a random one unless a test gives it."""
        key = base64.b64encode(nonce or os.urandom(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        self._received = bytearray()
        self.request = (
            f"GET {gateway.path} HTTP/1.1\r\n"
            f"Host: {gateway.authority}\r\n"
            "Connection: Upgrade\r\n"
            "Upgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key.decode('ascii')}\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
            f"Authorization: Bearer {token}\r\n"
            "\r\n"
        ).encode("ascii")

    def receive(self, data: bytes) -> bytes | None:
        """Take bytes of the answer; None while its head is incomplete, else the bytes after it.

        Raises: HandshakeRefused, HandshakeBroken.
        """
        self._received += data
        head, separator, unread = bytes(self._received).partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            raise HandshakeBroken("head too large")
        if not separator:
            return None
        status, fields = parse_head(head)
        if status != 101:
            raise HandshakeRefused(status, _retry_after(fields))
        self._check_upgrade(fields)
        return unread

    def _check_upgrade(self, fields: dict[bytes, list[bytes]]) -> None:
        if [value.lower() for value in fields.get(b"upgrade", [])] != [b"websocket"]:
            raise HandshakeBroken("upgrade")
        tokens = [token.strip().lower() for value in fields.get(b"connection", []) for token in value.split(b",")]
        if b"upgrade" not in tokens:
            raise HandshakeBroken("connection")
        accepts = fields.get(b"sec-websocket-accept", [])
        if len(accepts) != 1 or not hmac.compare_digest(accepts[0], self._accept):
            raise HandshakeBroken("sec-websocket-accept")
        if fields.get(b"sec-websocket-protocol", []) != [SUBPROTOCOL.encode("ascii")]:
            raise HandshakeBroken("sec-websocket-protocol")
        if b"sec-websocket-extensions" in fields:
            raise HandshakeBroken("sec-websocket-extensions")


def parse_head(head: bytes) -> tuple[int, dict[bytes, list[bytes]]]:
    """Status and fields, names in lower case, of an answer's head without its empty line. Raises: HandshakeBroken."""
    first, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise HandshakeBroken("status line")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise HandshakeBroken("header field")
        fields.setdefault(field[1].lower(), []).append(field[2])
    return int(status[1]), fields


def _retry_after(fields: dict[bytes, list[bytes]]) -> int | None:
    values = fields.get(b"retry-after", [])
    if len(values) != 1 or not values[0].isdigit() or len(values[0]) > 9:
        return None
    return min(int(values[0]), MAX_RETRY_AFTER_S)
