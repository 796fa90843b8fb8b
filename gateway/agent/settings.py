"""What the agent was told: addresses, key, services and limits, checked before anything is dialled."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from gateway.agent.allowlist import EVERYTHING, AllowList, parse_rule
from gateway.agent.context_token import ContextVerifier, load_context
from gateway.agent.endpoint import BadUrl, Endpoint, gateway_endpoint, is_loopback, service_endpoint
from gateway.agent.identity import BadKey, UnitIdentity, load_identity
from gateway.agent.services import ServiceSettings

MAX_CONNECTIONS = 4
UNIT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
KID = re.compile(r"[\x21-\x7e]{1,128}")
KEY_NAME = "unit.key"
LOG_LEVELS = ("debug", "info", "warning", "error")


class BadSettings(ValueError):
    """An argument the agent cannot start with; the message names it and says what it must be."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Where answers to requests with an idempotency key are kept, and how much of them.

    Units: `keep_s` seconds, `*_bytes` bytes. Shapes: `key_file` None: `ledger.key` in the directory, made once.
    """

    directory: Path
    key_file: Path | None = None
    keep_s: float = 86_400.0
    max_bytes: int = 268_435_456
    max_entries: int = 200_000
    answer_max_bytes: int = 262_144


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Units: `*_s` seconds. The times that the protocol page fixes are fields so that tests need not wait them out."""

    gateway: Endpoint
    identity: UnitIdentity
    services: tuple[ServiceSettings, ...] = ()
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
    rotate_after_s: float = 30 * 86_400.0
    """How old a key that the unit registered itself may become, see `agent.rotate`; 0: it is never replaced."""
    state_dir: Path | None = None
    health_file: Path | None = None
    ledger: LedgerSettings | None = None
    log_level: str = "info"
    log_file: Path | None = None
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
    state_dir: str | None = None,
    health_file: str | None = None,
    log_level: str = "info",
) -> AgentSettings:
    """Check the command's arguments and load the files they name. Raises: BadSettings."""
    if not UNIT.fullmatch(unit):
        raise BadSettings("--unit must be lower case letters, digits and hyphens, 63 at most")
    if kid is not None and not KID.fullmatch(kid):
        raise BadSettings("--kid must be 1 to 128 visible ASCII characters")
    if not 1 <= connections <= MAX_CONNECTIONS:
        raise BadSettings(f"--connections must be 1 to {MAX_CONNECTIONS}")
    if grace_s < 0:
        raise BadSettings("--grace must not be negative")
    if ca is not None and not Path(ca).is_file():
        raise BadSettings(f"--ca: no such file: {ca}")
    if state_dir is not None and not Path(state_dir).is_dir():
        raise BadSettings(f"--state-dir: no such directory: {state_dir}")
    endpoint = parse_gateway(gateway)
    return AgentSettings(
        gateway=endpoint,
        identity=_identity(unit, kid, Path(key)),
        services=(ServiceSettings(parse_target(target), allow=_allow_list(allow or []), ca_file=ca),),
        context=_context(unit, context_key),
        connections=connections,
        ca_file=ca,
        grace_s=grace_s,
        state_dir=Path(state_dir) if state_dir else None,
        health_file=Path(health_file) if health_file else None,
        ledger=LedgerSettings(Path(state_dir)) if state_dir else None,
        log_level=log_level,
        warnings=_warnings(endpoint, bool(allow), Path(key)),
    )


def parse_gateway(url: str) -> Endpoint:
    """Raises: BadSettings."""
    try:
        return gateway_endpoint(url)
    except BadUrl as error:
        raise BadSettings(f"--gateway: {error}") from error


def parse_target(url: str) -> Endpoint:
    """Raises: BadSettings."""
    try:
        return service_endpoint(url)
    except BadUrl as error:
        raise BadSettings(f"--target: {error}") from error


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
    if path is None:
        return None
    try:
        return load_context(unit, Path(path))
    except OSError as error:
        raise BadSettings(f"--context-key: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadSettings(f"--context-key: {error}") from error


def _warnings(gateway: Endpoint, listed: bool, key: Path) -> tuple[str, ...]:
    found = []
    if not listed:
        found.append("no --allow given: the gateway may ask for every path under --target")
    found += common_warnings(gateway, key)
    return tuple(found)


def common_warnings(gateway: Endpoint, key: Path) -> list[str]:
    """What is allowed and unwise, however it was configured."""
    found = []
    if not gateway.tls and not is_loopback(gateway.host):
        found.append("the gateway's URL is not encrypted: use wss:// outside a test")
    if key.stat().st_mode & 0o077:
        found.append(f"{key} can be read by other users of this machine: chmod 600")
    return found
