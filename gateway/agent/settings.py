"""What the agent was told: addresses, key, allow-list and limits, checked before anything is dialled."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from gateway.agent.allowlist import EVERYTHING, AllowList, TargetRefused, canonical_path, parse_rule
from gateway.agent.context_token import ContextVerifier
from gateway.agent.identity import BadKey, UnitIdentity, load_identity

CONNECT_PATH = "/relay/v1/connect"
MAX_CONNECTIONS = 4
_UNIT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KID = re.compile(r"[\x21-\x7e]{1,128}")
_URL = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")


class BadSettings(ValueError):
    """An argument the agent cannot start with; the message names it and says what it must be."""


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


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Units: `*_s` seconds. The times that the protocol page fixes are fields so that tests need not wait them out."""

    gateway: Endpoint
    target: Endpoint
    identity: UnitIdentity
    allow: AllowList = EVERYTHING
    context: ContextVerifier | None = None
    connections: int = 2
    ca_file: str | None = None
    max_streams: int = 64
    dial_timeout_s: float = 10.0
    refused_wait_s: float = 60.0
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 30.0
    stable_after_s: float = 10.0
    """A connection that lived this long counts as a success; shorter ones keep the backoff growing."""
    grace_s: float = 30.0
    local_connect_timeout_s: float = 5.0
    local_idle_s: float = 4.0
    """An idle connection to the local service is used again for so long; common servers close theirs after 5 s."""
    warnings: tuple[str, ...] = field(default=())


def parse_settings(
    *,
    gateway: str,
    unit: str,
    key: str,
    target: str,
    allow: list[str] | None = None,
    kid: str | None = None,
    connections: int = 2,
    context_key: str | None = None,
    ca: str | None = None,
    grace_s: float = 30.0,
) -> AgentSettings:
    """Check the command's arguments and load the files they name. Raises: BadSettings."""
    if not _UNIT.fullmatch(unit):
        raise BadSettings("--unit must be lower case letters, digits and hyphens, 63 at most")
    if kid is not None and not _KID.fullmatch(kid):
        raise BadSettings("--kid must be 1 to 128 visible ASCII characters")
    if not 1 <= connections <= MAX_CONNECTIONS:
        raise BadSettings(f"--connections must be 1 to {MAX_CONNECTIONS}")
    if grace_s < 0:
        raise BadSettings("--grace must not be negative")
    if ca is not None and not Path(ca).is_file():
        raise BadSettings(f"--ca: no such file: {ca}")
    endpoint = parse_gateway(gateway)
    return AgentSettings(
        gateway=endpoint,
        target=parse_target(target),
        identity=_identity(unit, kid, Path(key)),
        allow=_allow_list(allow or []),
        context=_context(unit, context_key),
        connections=connections,
        ca_file=ca,
        grace_s=grace_s,
        warnings=_warnings(endpoint, bool(allow), Path(key)),
    )


def parse_gateway(url: str) -> Endpoint:
    """`ws`, `wss`, `http` or `https`; the connect path is added unless it is there. Raises: BadSettings."""
    endpoint = _endpoint("--gateway", url, {"ws": False, "wss": True, "http": False, "https": True})
    if endpoint.path.endswith(CONNECT_PATH):
        return endpoint
    return Endpoint(endpoint.tls, endpoint.host, endpoint.port, endpoint.path + CONNECT_PATH)


def parse_target(url: str) -> Endpoint:
    """`http` or `https`; a path is put before every path that is asked for. Raises: BadSettings."""
    return _endpoint("--target", url, {"http": False, "https": True})


def _endpoint(option: str, url: str, schemes: dict[str, bool]) -> Endpoint:
    if not _URL.fullmatch(url):  # urlsplit drops line breaks and tabs without a word
        raise BadSettings(f"{option}: not a URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadSettings(f"{option}: not a URL") from error
    if parts.scheme not in schemes:
        raise BadSettings(f"{option} must start with {', '.join(f'{scheme}://' for scheme in schemes)}")
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url or "#" in url:
        raise BadSettings(f"{option}: no user, query or fragment may be in the URL")
    tls = schemes[parts.scheme]
    return Endpoint(tls, _host(option, parts), port or (443 if tls else 80), _base_path(option, parts.path))


def _host(option: str, parts: SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise BadSettings(f"{option}: not an IPv6 address") from error
    if not _HOST.fullmatch(host):
        raise BadSettings(f"{option}: a host name or address is needed")
    return host


def _base_path(option: str, path: str) -> str:
    path = path.rstrip("/")
    try:
        return canonical_path(path) if path else ""
    except TargetRefused as error:
        raise BadSettings(f"{option}: the path is not in canonical form") from error


def _identity(unit: str, kid: str | None, path: Path) -> UnitIdentity:
    try:
        return load_identity(unit, kid, path)
    except OSError as error:
        raise BadSettings(f"--key: cannot read {path}: {error.strerror}") from error
    except BadKey as error:
        raise BadSettings(f"--key: {path}: {error}") from error


def _allow_list(rules: list[str]) -> AllowList:
    if not rules:
        return EVERYTHING
    try:
        return AllowList(tuple(parse_rule(rule) for rule in rules))
    except ValueError as error:
        raise BadSettings(f"--allow: {error}") from error


def _context(unit: str, path: str | None) -> ContextVerifier | None:
    """The file's bytes without a final line break are the key, as the gateway reads a secret file."""
    if path is None:
        return None
    try:
        return ContextVerifier(unit, Path(path).read_bytes().rstrip(b"\r\n"))
    except OSError as error:
        raise BadSettings(f"--context-key: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadSettings(f"--context-key: {error}") from error


def _warnings(gateway: Endpoint, listed: bool, key: Path) -> tuple[str, ...]:
    found = []
    if not listed:
        found.append("no --allow given: the gateway may ask for every path under --target")
    if not gateway.tls and not _loopback(gateway.host):
        found.append("--gateway is not encrypted: use wss:// outside a test")
    if key.stat().st_mode & 0o077:
        found.append("--key can be read by other users of this machine: chmod 600")
    return tuple(found)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
