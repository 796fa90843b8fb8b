"""Where to connect: a URL that was read strictly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from gateway.agent.allowlist import TargetRefused, canonical_path

CONNECT_PATH = "/relay/v1/connect"
_URL = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")


class BadUrl(ValueError):
    """A URL the agent cannot use; the message follows its name."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect. `path` starts with a slash, or is empty for a base of nothing."""

    tls: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host field's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def gateway_endpoint(url: str) -> Endpoint:
    """`ws`, `wss`, `http` or `https`; the connect path is added unless it is there. Raises: BadUrl."""
    endpoint = _endpoint(url, {"ws": False, "wss": True, "http": False, "https": True})
    if endpoint.path.endswith(CONNECT_PATH):
        return endpoint
    return Endpoint(endpoint.tls, endpoint.host, endpoint.port, endpoint.path + CONNECT_PATH)


def service_endpoint(url: str) -> Endpoint:
    """`http` or `https`; a path is put before every path that is asked for. Raises: BadUrl."""
    return _endpoint(url, {"http": False, "https": True})


def is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _endpoint(url: str, schemes: dict[str, bool]) -> Endpoint:
    if not _URL.fullmatch(url):  # urlsplit drops line breaks and tabs without a word
        raise BadUrl("not a URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadUrl("not a URL") from error
    if parts.scheme not in schemes:
        raise BadUrl(f"must start with {', '.join(f'{scheme}://' for scheme in schemes)}")
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url or "#" in url:
        raise BadUrl("no user, query or fragment may be in the URL")
    tls = schemes[parts.scheme]
    return Endpoint(tls, _host(parts), port or (443 if tls else 80), _base_path(parts.path))


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host:
        import ipaddress

        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise BadUrl("not an IPv6 address") from error
    if not _HOST.fullmatch(host):
        raise BadUrl("a host name or address is needed")
    return host


def _base_path(path: str) -> str:
    path = path.rstrip("/")
    try:
        return canonical_path(path) if path else ""
    except TargetRefused as error:
        raise BadUrl("the path is not in canonical form") from error
