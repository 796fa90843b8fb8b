"""`agent.toml`: read strictly, every fault named with its line and path, nothing guessed.

TOML because the standard library reads it: the agent's distribution has no YAML.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from gateway.agent.allowlist import AllowList, TargetRefused, canonical_path, parse_rule
from gateway.agent.context_token import ContextVerifier, load_context
from gateway.agent.endpoint import Endpoint, gateway_endpoint, service_endpoint
from gateway.agent.identity import BadKey, UnitIdentity, load_identity
from gateway.agent.services import ServiceSettings
from gateway.agent.settings import (
    KEY_NAME,
    KID,
    LOG_LEVELS,
    MAX_CONNECTIONS,
    UNIT,
    AgentSettings,
    LedgerSettings,
    common_warnings,
)
from gateway.agent.toml_table import BadConfig, Reader, Table

MAX_FILE_BYTES = 1_048_576
MAX_SERVICES = 64


def load_config(path: Path) -> AgentSettings:
    """Raises: BadConfig."""
    text, document = _read(path)
    reader = Reader(text, path.absolute().parent)
    root = Table(reader, document, ())
    settings = _settings(root)
    reader.finish()
    if settings is None:
        raise BadConfig(["line 1: the document is not usable"])
    return settings


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadConfig([f"cannot read {path}: {error.strerror}"]) from error
    if len(raw) > MAX_FILE_BYTES:
        raise BadConfig([f"{path} is over {MAX_FILE_BYTES} bytes"])
    try:
        text = raw.decode("utf-8")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BadConfig([f"line {line}: not UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        raise BadConfig([_syntax(str(error), text)]) from error


def _syntax(message: str, text: str) -> str:
    """`What (at line 3, column 7)`, as tomllib says it, with the line first."""
    what, _, where = message.rpartition(" (at ")
    if where.startswith("line "):
        line, _, column = where.removeprefix("line ").rstrip(")").partition(", column ")
        return f"line {line}: column {column}: {what}"
    return f"line {text.count(chr(10)) + 1}: {what or message}"


def _settings(root: Table) -> AgentSettings | None:
    gateway = root.parsed("gateway", gateway_endpoint, needed=True)
    unit = root.parsed("unit", _unit, needed=True)
    state_dir = _state_dir(root)
    identity, key = _identity(root, unit, state_dir)
    ca_file = root.file("ca")
    context = _context(root, unit)
    connections = root.whole("connections", 2, 1, MAX_CONNECTIONS)
    max_streams = root.whole("max_streams", 64, 1, 1024)
    grace_s = root.number("grace_s", 30.0, 0, 3600)
    rotate_days = root.number("rotate_days", 30.0, 0, 3650)
    health_file = root.place("health_file")
    services = _services(root, ca_file)
    ledger = _ledger(root, state_dir)
    log = root.inner("log")
    log_level = log.parsed("level", _level) or "info"
    log_file = log.place("file")
    log.close()
    root.close()
    if gateway is None or identity is None or key is None:
        return None
    return AgentSettings(
        gateway=gateway,
        identity=identity,
        services=services,
        context=context,
        connections=connections,
        ca_file=None if ca_file is None else str(ca_file),
        max_streams=max_streams,
        grace_s=grace_s,
        rotate_after_s=rotate_days * 86_400,
        state_dir=state_dir,
        health_file=health_file,
        ledger=ledger,
        log_level=log_level,
        log_file=log_file,
        warnings=tuple(common_warnings(gateway, key)),
    )


def _unit(text: str) -> str:
    if not UNIT.fullmatch(text):
        raise ValueError("must be lower case letters, digits and hyphens, 63 at most")
    return text


def _kid(text: str) -> str:
    if not KID.fullmatch(text):
        raise ValueError("must be 1 to 128 visible ASCII characters")
    return text


def _level(text: str) -> str:
    if text not in LOG_LEVELS:
        raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
    return text


def _prefix(text: str) -> str:
    if text == "/":
        return ""
    if text.endswith("/") or "?" in text:
        raise ValueError("must be / or a path without a final slash or a query")
    try:
        return canonical_path(text)
    except TargetRefused as error:
        raise ValueError(f"must be a path in canonical form ({error})") from error


def _service_url(text: str) -> Endpoint:
    return service_endpoint(text)


def _state_dir(root: Table) -> Path | None:
    found = root.place("state_dir")
    if found is not None and not found.is_dir():
        root.fault("state_dir", f"no such directory: {found}")
        return None
    return found


def _identity(root: Table, unit: str | None, state_dir: Path | None) -> tuple[UnitIdentity | None, Path | None]:
    """The key's own fault is named; the unit's is by now."""
    kid = root.parsed("kid", _kid)
    path = root.file("key")
    if path is None and not root.has("key"):
        path = None if state_dir is None else state_dir / KEY_NAME
        if path is None:
            root.fault("key", "is missing, and there is no state_dir to hold it")
    if path is None:
        return None, None
    try:
        return load_identity(unit or "unnamed", kid, path), path
    except OSError as error:
        root.fault("key", f"cannot read {path}: {error.strerror}")
    except BadKey as error:
        root.fault("key", f"{path}: {error}")
    return None, None


def _context(root: Table, unit: str | None) -> ContextVerifier | None:
    path = root.file("context_key")
    if path is None:
        return None
    try:
        return load_context(unit or "unnamed", path)
    except OSError as error:
        root.fault("context_key", f"cannot read {path}: {error.strerror}")
    except ValueError as error:
        root.fault("context_key", str(error))
    return None


def _services(root: Table, ca_file: Path | None) -> tuple[ServiceSettings, ...]:
    tables = root.tables("service")
    if not root.has("service"):
        root.fault("service", "is missing: at least one [[service]] is needed")
    if len(tables) > MAX_SERVICES:
        root.fault("service", f"at most {MAX_SERVICES} services")
    found: dict[str, ServiceSettings] = {}
    for table in tables[:MAX_SERVICES]:
        service = _service(table, ca_file)
        if service is None:
            continue
        if service.prefix in found:
            table.fault("prefix", "is another service's too")
        found[service.prefix] = service
    return tuple(found.values())


def _service(table: Table, ca_file: Path | None) -> ServiceSettings | None:
    target = table.parsed("target", _service_url, needed=True)
    prefix = table.parsed("prefix", _prefix)
    own_ca = table.file("ca") or ca_file
    strip = table.flag("strip_prefix")
    allow = _allow(table)
    limits = _limits(table)
    table.close()
    if target is None:
        return None
    return ServiceSettings(
        target=target,
        prefix=prefix or "",
        strip_prefix=strip,
        allow=allow,
        ca_file=None if own_ca is None else str(own_ca),
        **limits,
    )


def _limits(table: Table) -> dict[str, Any]:
    return {
        "max_concurrent": table.whole("max_concurrent", 64, 1, 1024),
        "deadline_s": table.number("deadline_s", 300.0, 0.05, 300),
        "request_max_bytes": table.whole("request_max_bytes", 67_108_864, 0, 2**40),
        "response_max_bytes": table.whole("response_max_bytes", 268_435_456, 0, 2**40),
        "connect_timeout_s": table.number("connect_timeout_s", 5.0, 0.05, 60),
        "idle_s": table.number("idle_s", 4.0, 0, 3600),
    }


def _allow(table: Table) -> AllowList:
    """SEC: in a file nothing is allowed that is not written."""
    rules = table.texts("allow")
    if rules is None:
        if not table.has("allow"):
            table.fault("allow", 'is missing: list what may be asked for, such as "GET /fhir/*"')
        return AllowList(())
    parsed = []
    for rule in rules:
        try:
            parsed.append(parse_rule(rule))
        except ValueError as error:
            table.fault("allow", str(error))
    return AllowList(tuple(parsed))


def _ledger(root: Table, state_dir: Path | None) -> LedgerSettings | None:
    table = root.inner("ledger")
    off = table.has("enabled") and not table.flag("enabled")
    key_file = table.file("key_file")
    keep_s = table.number("keep_h", 24.0, 0.01, 24 * 31) * 3600
    sizes = {
        "max_bytes": table.whole("max_bytes", 268_435_456, 65_536, 2**40),
        "max_entries": table.whole("max_entries", 200_000, 1, 100_000_000),
        "answer_max_bytes": table.whole("answer_max_bytes", 262_144, 0, 16_777_216),
    }
    table.close()
    if root.has("ledger") and not off and state_dir is None and not root.has("state_dir"):
        table.fault("enabled", "a ledger needs state_dir")
    return None if off or state_dir is None else LedgerSettings(state_dir, key_file, keep_s, **sizes)
