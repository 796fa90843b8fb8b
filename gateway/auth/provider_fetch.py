"""Documents of identity providers: over TLS, from a public address, of a bounded size, in a bounded time.

SEC: what is fetched is named by the configuration, and by the discovery document of whoever is at that address. So that
nobody is led to fetch from inside, the name is resolved once, each address is judged, and the connection goes to the
address that was judged: a second answer of the name server (DNS rebinding) is never asked for. Nothing is followed
elsewhere: a redirect is a failure.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import gevent
from gevent import socket, ssl

from gateway.auth.jwk import parse_json

JSON_TYPES: Final = ("application/json", "application/jwk-set+json")
_SIXTO4: Final = IPv6Network("2002::/16")
_NAT64: Final = IPv6Network("64:ff9b::/96")

Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], list[str]]
"""(host, port) -> its addresses."""


class FetchFailed(RuntimeError):
    """Nothing usable was fetched; `reason` is for log and metrics and echoes nothing of what came."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of a host. Raises: OSError. Yields to the hub: yes."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found))


def is_allowed(address: str, networks: Iterable[Network]) -> bool:
    """May this address be connected to: is it public, or in one of the networks that are allowed?"""
    found = ip_address(address)
    if any(found in network for network in networks if network.version == found.version):
        return True
    inner = _inside(found)
    if inner is not None:
        return is_allowed(str(inner), networks)
    return found.is_global and not found.is_multicast


def _inside(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if isinstance(address, IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _SIXTO4:
        return address.sixtofour
    return address.teredo[1] if address.teredo is not None else None


class Fetcher:
    """Fetches JSON for one identity provider."""

    def __init__(
        self,
        *,
        networks: tuple[Network, ...],
        max_bytes: int,
        timeout_s: float,
        allow_http: bool,
        certificates: str | None = None,
        resolve: Resolve = resolve_host,
    ) -> None:
        """Units: `timeout_s` for everything that `fetch` does, the search for the address included."""
        self._networks = networks
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._allow_http = allow_http
        self._certificates = certificates
        self._resolve = resolve
        self._context: ssl.SSLContext | None = None

    def key_set(self, issuer: str, jwks_url: str | None) -> bytes:
        """The text of a provider's key set, whose address is discovered if it is not given.

        Raises: FetchFailed. Yields to the hub: yes.
        """
        with gevent.Timeout(self._timeout_s, FetchFailed("timeout")):
            return self._get(self._discover(issuer) if jwks_url is None else jwks_url)

    def _discover(self, issuer: str) -> str:
        """Source: OpenID Connect Discovery 1.0, 4."""
        raw = self._get(issuer.rstrip("/") + "/.well-known/openid-configuration")
        try:
            document = parse_json(raw)
        except ValueError:
            raise FetchFailed("discovery-malformed") from None
        # SEC: else one provider could speak for another (4.3).
        if not isinstance(document, dict) or document.get("issuer") != issuer:
            raise FetchFailed("discovery-issuer")
        url = document.get("jwks_uri")
        if not isinstance(url, str):
            raise FetchFailed("discovery-malformed")
        return url

    def _get(self, url: str) -> bytes:
        host, port, path, tls = self._split(url)
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.sock = self._connect(host, port, tls)
            connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
            return self._read(connection.getresponse())
        except ssl.SSLError:
            raise FetchFailed("tls") from None
        except (OSError, http.client.HTTPException):
            raise FetchFailed("unreachable") from None
        finally:
            connection.close()

    def _split(self, url: str) -> tuple[str, int, str, bool]:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise FetchFailed("bad-url") from None
        tls = parts.scheme == "https"
        if not parts.hostname or "@" in parts.netloc or not url.isascii() or not url.isprintable() or " " in url:
            raise FetchFailed("bad-url")
        if not tls and not (parts.scheme == "http" and self._allow_http):
            raise FetchFailed("not-https")
        path = parts.path or "/"
        return parts.hostname, port or (443 if tls else 80), f"{path}?{parts.query}" if parts.query else path, tls

    def _connect(self, host: str, port: int, tls: bool) -> Any:
        """A connection to an address that was judged. Raises: OSError, FetchFailed."""
        last: OSError | None = None
        addresses = self._resolve(host, port)
        if not all(is_allowed(address, self._networks) for address in addresses):
            raise FetchFailed("address-refused")
        if not tls and not all(ip_address(address).is_loopback for address in addresses):
            raise FetchFailed("not-https")
        for address in addresses:
            try:
                sock = socket.create_connection((address, port), self._timeout_s)
            except OSError as error:
                last = error
                continue
            # SEC: what counts is where it went.
            if not is_allowed(str(sock.getpeername()[0]).partition("%")[0], self._networks):
                sock.close()
                raise FetchFailed("address-refused")
            return self._tls().wrap_socket(sock, server_hostname=host) if tls else sock
        raise last or OSError("no address")

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            # NOTE: not create_default_context, whose sockets would block the hub unless gevent had patched them.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self._certificates is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(cadata=self._certificates)
            self._context = context
        return self._context

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        if answer.status != 200:
            raise FetchFailed("redirect" if 300 <= answer.status < 400 else "status")
        media_type = (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()
        if media_type not in JSON_TYPES:
            raise FetchFailed("media-type")
        if answer.getheader("Content-Encoding", "identity") != "identity":
            raise FetchFailed("encoded")
        body = answer.read(self._max_bytes + 1)
        if len(body) > self._max_bytes:
            raise FetchFailed("too-large")
        if answer.length:
            raise FetchFailed("cut-off")
        return body
