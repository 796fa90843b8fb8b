"""A stream's header block as WSGI environ: checked as RFC 9113 says, then read by the reader of HTTP/1.1.

The block is written as the HTTP/1.1 head it means, so that target, fields and limits have one set of rules.
SEC: nothing goes into that head that could end a line, and the reader must find exactly the bytes that were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fastpath.http import Head, HeadError, HeadReader
from gateway import errors as e
from gateway.http1.connection import REFUSALS

Fields = Iterable[tuple[bytes, bytes]]

_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_CONNECTION = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_METHOD = re.compile(rb"[!-~]{1,64}")
_PATH = re.compile(rb"[!-~]+")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BREAKS = re.compile(rb"[\0\r\n]|\A[ \t]|[ \t]\Z")


def read_request(reader: HeadReader, fields: Fields, ended: bool, base: dict[str, Any]) -> Head:
    """The head that a header block means; `ended` says that no body follows.

    Raises: GatewayError with the refusal.
    """
    pseudo, lines = _split(fields)
    text = _request_line(pseudo) + b"".join(lines) + b"\r\n"
    try:
        head = reader.read(text, base)
    except HeadError as error:
        raise REFUSALS[error.code](error.detail) from error
    if head is None or head.end != len(text):
        raise e.BadFraming("The header block is malformed")
    environ = head.environ
    environ["SERVER_PROTOCOL"] = "HTTP/2.0"
    if ended and head.content_length:
        raise e.BadFraming("The body ended before its announced end")
    if not ended and "CONTENT_LENGTH" not in environ:
        environ["caregate.content_length"] = None
    return head


def _split(fields: Fields) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Pseudo-header fields, and the others as lines with the Host in front.

    Raises: BadFraming, BadRequest.
    """
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    hosts: list[bytes] = []
    cookies: list[bytes] = []
    for name, value in fields:
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or lines or hosts or cookies:
                raise e.BadFraming("A pseudo-header field is unknown, doubled or out of place")
            pseudo[name] = value
            continue
        _check_field(name, value)
        if name == b"host":
            hosts.append(value)
        elif name == b"cookie":
            cookies.append(value)
        else:
            lines.append(name + b": " + value + b"\r\n")
    if cookies:
        lines.append(b"cookie: " + b"; ".join(cookies) + b"\r\n")
    return pseudo, [b"host: " + _authority(pseudo.get(b":authority"), hosts) + b"\r\n", *lines]


def _check_field(name: bytes, value: bytes) -> None:
    """Raises: BadFraming, BadRequest."""
    if not _NAME.fullmatch(name):
        raise e.BadFraming("A header field name is malformed")
    if _BREAKS.search(value):
        raise e.BadFraming("A header field has a control character or blanks at its ends")
    if name in _OF_CONNECTION:
        raise e.BadRequest("A header field of the connection has no place in HTTP/2")
    if name == b"te" and value.lower() != b"trailers":
        raise e.BadRequest("The TE field may say trailers alone")


def _authority(authority: bytes | None, hosts: list[bytes]) -> bytes:
    """The one host that the request names; the reader checks its form. Raises: BadFraming."""
    if len(hosts) > 1:
        raise e.BadFraming("The header field host came more than once")
    if authority is None and not hosts:
        raise e.BadFraming("The authority is missing")
    if authority is not None and hosts and authority.lower() != hosts[0].lower():
        raise e.BadFraming("Host names another authority")
    named = hosts[0] if authority is None else authority
    if _BREAKS.search(named):
        raise e.BadFraming("The authority is malformed")
    return named


def _request_line(pseudo: dict[bytes, bytes]) -> bytes:
    """Raises: BadFraming, BadRequest, BadTarget, NotImplementedHere."""
    method = pseudo.get(b":method", b"")
    if method == b"CONNECT":
        raise e.NotImplementedHere("The method is not implemented")
    path = pseudo.get(b":path", b"")
    if not _METHOD.fullmatch(method):
        raise e.BadRequest("The method is malformed")
    if pseudo.get(b":scheme") != b"https":
        raise e.BadRequest("The scheme is not that of the connection")
    if path[:1] != b"/":
        raise e.BadTarget("The request target is not in origin form")
    if not _PATH.fullmatch(path):
        raise e.BadTarget("The request target has a character that must be percent-encoded")
    return method + b" " + path + b" HTTP/1.1\r\n"


def trailers_allowed(fields: Fields) -> bool:
    """Are a body's trailers well formed? They are dropped."""
    return all(
        _NAME.fullmatch(name) and not _BREAKS.search(value) and name not in _OF_CONNECTION for name, value in fields
    )
