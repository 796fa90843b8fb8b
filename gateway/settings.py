"""Process settings from the environment: read once, validated, frozen. Policy is in the configuration document."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit


class SettingsError(ValueError):
    """An environment variable with a value that cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One field, one variable: `token_cache_size` is `CAREGATE_TOKEN_CACHE_SIZE`.

    Units: `*_s` seconds, `*_ms` milliseconds, `*_bytes` bytes; the rest are counts, addresses or paths.
    """

    config_path: Path = Path("caregate.yaml")
    config_source: str = "file"
    """file: the document at config_path; database: numbered versions in PostgreSQL, the file is the first one."""
    config_poll_ms: int = 2_000
    """How often a worker looks for a new version in the database although nothing told it of one."""
    data_dir: Path = Path(".caregate")
    """What survives a restart: embedded database, last good configuration, audit spool."""
    run_dir: Path = Path(".caregate/run")
    """Sockets and shared memory of the running gateway; mode 0700."""
    dsn: str = ""
    """PostgreSQL as caregate_gateway; empty: an embedded server under data_dir."""
    operator_dsn: str = ""
    """PostgreSQL as caregate_operator, for the Admin API; empty: the embedded server's, or none."""
    admin_connections: int = 4
    """Database connections that the Admin API of one worker opens at once."""
    bind: str = "127.0.0.1:8080"
    ops_bind: str = "127.0.0.1:9090"
    """Metrics, health and status; empty: none."""
    workers: int = 2
    worker_connections: int = 20_000
    max_requests: int = 0
    """A worker is replaced after so many requests; 0: never."""
    pool_min: int = 1
    pool_max: int = 16
    """Database connections of one worker."""
    statement_timeout_ms: int = 5_000
    connect_timeout_ms: int = 1_000
    bucket_capacity: int = 131_072
    """Rate-limit keys of the machine; 100,000 stay apart with room to spare."""
    token_cache_size: int = 65_536
    """Verified tokens a worker remembers."""
    metric_series: int = 8_192
    """Metric series a worker can hold."""
    head_timeout_s: int = 10
    body_timeout_s: int = 30
    write_timeout_s: int = 30
    keepalive_s: int = 75
    max_target_bytes: int = 8_192
    max_head_bytes: int = 32_768
    max_header_fields: int = 100
    drain_grace_s: int = 30
    drain_linger_s: int = 2
    """How long a worker that leaves still answers on the connections it has, each time with `Connection: close`."""
    relay_ping_ms: int = 15_000
    relay_dead_ms: int = 35_000
    relay_hello_timeout_ms: int = 5_000
    relay_dials_per_s: int = 500
    """New unit connections a worker admits in a second; above it 503 with Retry-After."""
    unit_poll_ms: int = 2_000
    """How often a worker looks at the registry of units although nothing told it of a change."""
    unit_enrolments_per_minute: int = 10
    """Attempts to register a key from one address; so many at once too."""
    unit_overlap_s: int = 86_400
    """How long a unit's old key is good beside the one that replaces it."""
    token_failures_per_minute: int = 30
    """Failed authentications at the token service from one address; so many at once too."""
    login_failures_per_hour: int = 20
    """Failed logins of one account, or under one name that is none; so many at once too."""
    password_threads: int = 1
    """Passwords that a worker checks at the same time; each takes 64 MiB and a core for a tenth of a second."""
    password_line: int = 16
    """Passwords that may wait to be checked; above it 503 with Retry-After."""
    token_connections: int = 2
    """Database connections of a worker's pool that the token service may use at the same time."""
    token_line: int = 64
    """Requests to the token service that may wait for one of them; above it 503 with Retry-After."""
    account_key: str = ""
    """Seals second factors and login forms: `file:PATH` or `env:NAME`, at least 32 bytes, the same on every machine;
    empty: accounts.key of data_dir, made at the first start."""
    token_poll_ms: int = 1_000
    """How often a worker looks for revoked tokens although nothing told it of any."""
    key_encryption_key: str = ""
    """Under which private keys that the gateway makes are encrypted: `file:PATH`, `env:NAME` or `exec:[…]`, 32 bytes or
    more; empty: key-encryption.key of data_dir, made by the first `caregate keys rotate`."""
    key_encryption_key_before: str = ""
    """The one before it, until `caregate keys rewrap` has run."""
    exec_timeout_ms: int = 5_000
    """How long a command may take that a reference names (`exec:`)."""
    exec_commands: str = ""
    """Programs that references may run: absolute paths, `:` between them; empty: any if the document is in a file, none
    if it is in the database."""
    relay_dials_open: int = 512
    """Unit connections of a worker that may be on their way from the dial to HELLO; above it 503 with Retry-After."""
    relay_moves_per_s: int = 800
    """Unit connections that a leaving worker sends to its siblings in a second."""
    relay_buffer_bytes: int = 268_435_456
    """Relay buffers of one worker."""
    node: str = ""
    """How this gateway is named in audit events, to units and in their timelines; empty: the machine's name."""
    audit_segment_bytes: int = 4_194_304
    """One file of a worker's audit spool; the next one is made before it is needed."""
    audit_spool_bytes: int = 4_294_967_296
    """How much one worker's audit spool may hold while the database is away; beyond it every request is refused."""
    audit_checkpoint_s: int = 60
    """How often the chains are signed."""
    audit_key: str = ""
    """The Ed25519 key that signs: `file:PATH` or `env:NAME` of a PEM; empty: audit/checkpoint.key of data_dir."""
    audit_checkpoint_copy: str = ""
    """A second folder for checkpoints, best on another machine; empty: none."""
    audit_pseudonyms: bool = True
    """Patients stand in the trail under pseudonyms, which can be erased."""
    audit_patient_key: str = ""
    """What joins pseudonyms to patients: `file:PATH` or `env:NAME`, 32 bytes or more, the same on all machines; empty:
    audit/patients.key of data_dir."""
    audit_months_ahead: int = 3
    """How many months of the trail's table are made ahead, beside the one that runs; at most 24."""
    audit_retention_months: int = 72
    """How long the trail is kept, for `caregate audit remove`; six years."""
    audit_dsn: str = ""
    """PostgreSQL as caregate_audit_reader, for searches; empty: the embedded server's, or none beside a `dsn`."""
    audit_search_timeout_ms: int = 5_000
    """The longest a search of the audit trail may take."""
    audit_page_max: int = 200
    """Events on one page of a search at most."""
    log_level: str = "info"
    access_log: bool = True
    trace_endpoint: str = ""
    """Where spans are sent by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; empty: nothing is traced."""
    trace_ratio: float = 0.01
    """Which part of the requests is traced, 0 to 1."""
    trace_parent: bool = True
    """A caller that sends a trace context decides by its sampled flag; false: the ratio decides for it too."""
    trace_queue: int = 2_048
    """Spans that wait to be sent; beyond it they are dropped and counted."""
    trace_interval_ms: int = 1_000
    """How long a span waits for company."""
    tls_certificate: str = ""
    tls_key: str = ""
    http2: bool = False
    """Offer HTTP/2 to callers over TLS, beside HTTP/1.1."""
    http2_streams: int = 100
    """Requests that a client may have open on one connection."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings with the variables that are set; unknown CAREGATE_ variables are refused, except CAREGATE_TEST_*.

        Raises: SettingsError naming the variable and what it takes.
        """
        known = {f"CAREGATE_{field.name.upper()}": field for field in fields(cls)}
        unknown = sorted(
            n
            for n in environ
            if n.startswith("CAREGATE_") and n not in known and not n.startswith(("CAREGATE_TEST_", "CAREGATE_SECRET_"))
        )
        if unknown:
            raise SettingsError(f"{', '.join(unknown)}: no such setting")
        values = {
            field.name: _read(name, environ[name], _READERS[str(field.type)])
            for name, field in known.items()
            if environ.get(name, "") != "" or (name in environ and field.name in _MAY_BE_EMPTY)
        }
        settings = cls(**values)  # type: ignore[arg-type]
        settings._validate()
        return settings

    @property
    def node_name(self) -> str:
        """This gateway's name, for the audit trail, units and operators."""
        return self.node or os.uname().nodename

    def _validate(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < (0 if field.name in _MAY_BE_ZERO else 1):
                raise SettingsError(f"CAREGATE_{field.name.upper()}: must be at least 1, not {value}")
        for name, most in _AT_MOST.items():
            if getattr(self, name) > most:
                raise SettingsError(f"CAREGATE_{name.upper()}: must be at most {most}, not {getattr(self, name)}")
        if not 262_144 <= self.audit_segment_bytes <= self.audit_spool_bytes // 2:
            raise SettingsError(
                "CAREGATE_AUDIT_SEGMENT_BYTES: at least 262144, at most half of CAREGATE_AUDIT_SPOOL_BYTES"
            )
        if not 0 <= self.trace_ratio <= 1:
            raise SettingsError(f"CAREGATE_TRACE_RATIO: from 0 to 1, not {self.trace_ratio}")
        if self.trace_endpoint and not is_http(self.trace_endpoint):
            raise SettingsError("CAREGATE_TRACE_ENDPOINT: an http or https URL without user and query")
        if self.log_level not in _LEVELS:
            raise SettingsError(f"CAREGATE_LOG_LEVEL: one of {', '.join(_LEVELS)}")
        if self.config_source not in CONFIG_SOURCES:
            raise SettingsError(f"CAREGATE_CONFIG_SOURCE: one of {', '.join(CONFIG_SOURCES)}")
        if self.pool_min > self.pool_max:
            raise SettingsError("CAREGATE_POOL_MIN: larger than CAREGATE_POOL_MAX")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise SettingsError("CAREGATE_TLS_CERTIFICATE and CAREGATE_TLS_KEY: give both or neither")
        if self.http2 and not self.tls_certificate:
            raise SettingsError("CAREGATE_HTTP2: is spoken over TLS alone; give CAREGATE_TLS_CERTIFICATE too")


CONFIG_SOURCES = ("file", "database")
_LEVELS = ("debug", "info", "warning", "error")
_AT_MOST = {"max_head_bytes": 65_535, "max_header_fields": 250}
"""What the request parser can count."""
_MAY_BE_EMPTY = frozenset({"ops_bind"})
"""Settings of which an empty value is one; of all others it means that nothing was set."""
_MAY_BE_ZERO = frozenset({"max_requests", "drain_linger_s"})


def is_http(text: str) -> bool:
    """Is it an http or https URL without user and query?"""
    try:
        url = urlsplit(text)
        is_plain = not url.query and "@" not in text and url.port != 0
        return is_plain and url.scheme in ("http", "https") and bool(url.hostname)
    except ValueError:
        return False


def _boolean(text: str) -> bool:
    if text not in ("0", "1", "true", "false"):
        raise ValueError("true or false")
    return text in ("1", "true")


_READERS: dict[str, Callable[[str], object]] = {
    "int": int,
    "str": str,
    "Path": Path,
    "bool": _boolean,
    "float": float,
}


def _read(name: str, text: str, reader: Callable[[str], object]) -> object:
    try:
        return reader(text)
    except ValueError as error:
        takes = {int: "a whole number", float: "a number", _boolean: "true or false"}.get(reader, "another value")
        raise SettingsError(f"{name}: takes {takes}") from error
