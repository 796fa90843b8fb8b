"""One JSON request to the gateway over a connection of its own, for what is not relayed.

Source: RFC 9112; the answer must have a length, and the connection ends after it.
"""

from __future__ import annotations

from typing import Any

import gevent
import orjson

from gateway.agent.dial import DialTimeout, connect
from gateway.agent.endpoint import Endpoint
from gateway.agent.handshake import HandshakeBroken, parse_head

TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 65_536


class Refused(Exception):
    """The gateway did not do it. Shapes: `status` 0 if there was no usable answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def post(
    gateway: Endpoint, target: str, body: bytes, token: str | None = None, ca_file: str | None = None
) -> dict[str, Any]:
    """The JSON object that a 200 or 201 brings.

    Raises: Refused, OSError (which ssl.SSLError is). Yields to the hub.
    """
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {gateway.authority}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    request = "\r\n".join([*lines, "", ""]).encode("ascii") + body
    try:
        with gevent.Timeout(TIMEOUT_S, DialTimeout()):
            data = _exchange(gateway, request, ca_file)
        head, separator, rest = data.partition(b"\r\n\r\n")
        status, fields = parse_head(head)
    except DialTimeout:
        raise Refused(0, "no answer in time") from None
    except HandshakeBroken as error:
        raise Refused(0, f"not an HTTP answer: {error}") from None
    if not separator or fields.get(b"content-length") != [str(len(rest)).encode()]:
        raise Refused(0, "an answer that was cut short")
    return _read(status, rest)


def _exchange(gateway: Endpoint, request: bytes, ca_file: str | None) -> bytes:
    sock = connect(gateway, TIMEOUT_S, ca_file)
    try:
        sock.sendall(request)
        data = b""
        while len(data) <= MAX_ANSWER_BYTES and (piece := sock.recv(MAX_ANSWER_BYTES)):
            data += piece
        return data
    finally:
        sock.close()


def _read(status: int, body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Refused(status, f"{status} without a JSON object")
    if status not in (200, 201):
        detail = answer.get("detail")
        raise Refused(status, f"{status} {detail}" if isinstance(detail, str) else str(status))
    return answer
