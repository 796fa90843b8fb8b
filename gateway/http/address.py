"""Whose address it is: the peer's, or the one that trusted proxies name."""

from __future__ import annotations

import ipaddress
import re

_MAX_HOPS = 16

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def client_address(peer: str, forwarded_for: str | None, trusted: Networks, forwarded: str | None = None) -> str:
    """The address that counts: the peer's, or behind trusted proxies the last one that is not such a proxy.

    A list that cannot be read is not believed beyond the last good entry. Where a request has both fields they must
    lead to the same address; if not, a proxy passes one of them on unread, and neither is believed.
    Source: RFC 7239 for `forwarded`.
    """
    if not trusted or not (forwarded_for or forwarded) or not _is_trusted(peer, trusted):
        return peer
    if not forwarded:
        return _last_stranger(peer, str(forwarded_for).split(","), trusted)
    address = _last_stranger(peer, _forwarded_nodes(forwarded), trusted)
    if forwarded_for and _last_stranger(peer, forwarded_for.split(","), trusted) != address:
        return peer
    return address


def _last_stranger(peer: str, entries: list[str], trusted: Networks) -> str:
    address = peer
    for entry in reversed(entries[-_MAX_HOPS:]):
        try:
            address = str(ipaddress.ip_address(entry.strip(" \t")))
        except ValueError:
            return address
        if not _is_trusted(address, trusted):
            return address
    return address


_PAIR = re.compile(r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([!#$%&'*+.^_`|~0-9A-Za-z-]+|"(?:[^"\\]|\\.)*")""")
_NODE = re.compile(r"(?:(\d+\.\d+\.\d+\.\d+)|\[([0-9A-Fa-f:.]+)\])(?::\d{1,5})?")


def _forwarded_nodes(text: str) -> list[str]:
    """The address of each element's `for`, "" where there is none; what is not well-formed ends the list there.

    The end of the list is what the nearest proxy wrote, so it is read from its end.
    """
    elements = _split_unquoted(text, ",")
    if elements is None:
        return []
    return [_node(element) for element in elements[-_MAX_HOPS:]]


def _split_unquoted(text: str, mark: str) -> list[str] | None:
    """Pieces between `mark`s outside quotes; None if a quote is left open."""
    parts, start, quoted, at = [], 0, False, 0
    while at < len(text):
        if quoted and text[at] == "\\":
            at += 1
        elif text[at] == '"':
            quoted = not quoted
        elif text[at] == mark and not quoted:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return None if quoted else [*parts, text[start:]]


def _node(element: str) -> str:
    """The address that an element's one `for` names, else ""."""
    found = []
    for part in _split_unquoted(element, ";") or ():
        pair = _PAIR.fullmatch(part.strip(" \t"))
        if pair is None:
            return ""
        if pair[1].lower() == "for":
            found.append(pair[2])
    node = _NODE.fullmatch(found[0].strip('"')) if len(found) == 1 else None
    return (node[1] or node[2]) if node is not None else ""


def _is_trusted(address: str, trusted: Networks) -> bool:
    if not address:
        return any(network.prefixlen == 0 for network in trusted)
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)
