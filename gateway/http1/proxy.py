"""The PROXY protocol, versions 1 and 2: who a load balancer in front says the peer is. Bytes in, address out.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_MAX_BYTES = 107
_V2_MAX_BYTES = 16 + 1024
_V2_ADDRESS_BYTES = {0x11: (4, socket.AF_INET), 0x21: (16, socket.AF_INET6)}


class ProxyLineError(ValueError):
    """Not a PROXY header, or a malformed one."""


@dataclass(frozen=True, slots=True)
class ProxyLine:
    """Shapes: `address` is "" where the balancer speaks for itself (health checks); `size` bytes are the header."""

    address: str
    port: int
    size: int


def parse_proxy_line(data: bytes, mode: str = "auto") -> ProxyLine | None:
    """The PROXY header that a connection begins with; None while it is incomplete. `mode` is v1, v2 or auto.

    Raises: ProxyLineError; the header is required of a peer that is trusted to send one.
    """
    if mode != "v1" and data[:12] == _V2_SIGNATURE[: len(data)]:
        return _parse_v2(data) if len(data) >= 16 else None
    if mode != "v2" and data[:6] == b"PROXY "[: len(data)]:
        return _parse_v1(data)
    raise ProxyLineError("no PROXY header")


def _parse_v1(data: bytes) -> ProxyLine | None:
    end = data.find(b"\r\n", 0, _V1_MAX_BYTES)
    if end < 0:
        if len(data) >= _V1_MAX_BYTES:
            raise ProxyLineError("the line is too long")
        return None
    words = data[:end].split(b" ")
    if words[1:2] == [b"UNKNOWN"]:
        return ProxyLine("", 0, end + 2)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyLineError("malformed")
    version = 4 if words[1] == b"TCP4" else 6
    address = _address(words[2], version)
    _address(words[3], version)
    _port(words[5])
    return ProxyLine(address, _port(words[4]), end + 2)


def _address(word: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(word.decode("ascii"))
    except ValueError as error:
        raise ProxyLineError("not an address") from error
    if address.version != version:
        raise ProxyLineError("an address of the other family")
    return str(address)


def _port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (len(word) > 1 and word[:1] == b"0") or int(word) > 65_535:
        raise ProxyLineError("not a port")
    return int(word)


def _parse_v2(data: bytes) -> ProxyLine | None:
    version, command = data[12] >> 4, data[12] & 15
    size = 16 + int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1 or size > _V2_MAX_BYTES:
        raise ProxyLineError("malformed")
    if len(data) < size:
        return None
    if command == 0 or data[13] == 0:
        return ProxyLine("", 0, size)
    if data[13] not in _V2_ADDRESS_BYTES:
        raise ProxyLineError("not TCP")
    length, family = _V2_ADDRESS_BYTES[data[13]]
    if size < 16 + 2 * length + 4:
        raise ProxyLineError("the addresses are cut short")
    address = socket.inet_ntop(family, data[16 : 16 + length])
    return ProxyLine(address, int.from_bytes(data[16 + 2 * length : 18 + 2 * length], "big"), size)
