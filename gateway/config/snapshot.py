"""What a worker decides by: one immutable compiled configuration, swapped whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from fastpath.routes import RouteTable
    from fastpath.token import Verifier
    from gateway.auth.keys import KeyMaterial
    from gateway.auth.mapping import ClaimMapping
    from gateway.config.model import Audience, Document, Upstream
    from gateway.config.role_defaults import Lifetimes
    from gateway.openapi.reading import Description
    from gateway.rbac.scopes import Ceiling
    from gateway.routing.model import Limit, Route

log = structlog.get_logger()

UNIT_LINK_AUDIENCE = "unit-link"
UNIT_LINK_MAX_LIFETIME_S = 300
ASSERTION_MAX_LIFETIME_S = 300
TOKEN_PATH = "/auth/v1/token"  # noqa: S105 - a path
REVOKE_PATH = "/auth/v1/revoke"

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class CompiledRole:
    """Units: seconds."""

    name: str
    audience: str
    permissions: frozenset[str]
    limits: tuple[Limit, ...]
    access_lifetime_s: int
    max_lifetime_s: int
    lifetimes: Lifetimes
    scopes: Ceiling | None = None
    """What scopes its tokens may have at most; None: they need none."""


@dataclass(frozen=True, slots=True)
class CompiledUnit:
    """`context_key` is the HS256 key of x-caregate-context; never shown."""

    id: str
    name: str
    enabled: bool
    max_connections: int
    context_key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class CompiledClient:
    """Shapes: `introspect` audiences; `claims` as they stand in its tokens."""

    id: str
    role: str | None
    claims: dict[str, str | list[str]]
    introspect: frozenset[str]


@dataclass(frozen=True, slots=True)
class CompiledApp:
    """An application in which people log in. Shapes: `public` means that it has no key to prove itself with."""

    id: str
    title: str
    roles: frozenset[str]
    redirect_uris: frozenset[str]
    public: bool
    first_party: bool
    proxies: bool
    dpop_required: bool


@dataclass(slots=True)
class CompiledTokens:
    """The token service. Shapes: `verifier` knows the clients' and the apps' keys (`Key.attachment` the CompiledClient
    or CompiledApp); `signers` role -> the key that signs its tokens, for roles that have one; `jwks` the roles' public
    keys, a JWK set in JSON.
    """

    url: str
    verifier: Verifier
    signers: dict[str, KeyMaterial] = field(repr=False)
    jwks: bytes
    apps: dict[str, CompiledApp] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompiledProvider:
    """An identity provider. Shapes: `aud` is what its tokens name, `certificates` (PEM) are trusted instead of the
    system's, `max_lifetime_s` is the longest of its roles'.
    """

    name: str
    issuer: str
    aud: str
    jwks_url: str | None
    algorithms: tuple[str, ...]
    mapping: ClaimMapping
    max_lifetime_s: int
    refresh_s: int
    stale_s: int
    timeout_ms: int
    max_bytes: int
    unknown_kid_burst: int
    unknown_kid_period_s: int
    unknown_kid_memory_s: int
    allowed_networks: tuple[Network, ...]
    allow_http: bool
    certificates: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A configuration that passed every check. Only `unit_verifier` and `units` ever change, see `units.roster`.

    Shapes: `verifier` knows the callers' keys (`Key.role` set, `Key.attachment` the CompiledRole), `unit_verifier` the
    units' (`Key.attachment` the unit's id); `routes` matches to a Route; `digest` is the SHA-256 of the canonical
    document, `keys_digest` of all the key material it refers to, both in hex; `providers` by issuer; `thumbprints` are
    of all keys that it refers to, `role_keys` of them the roles'. The verifiers' keys, `tokens.signers` and
    `tokens.jwks` follow what was registered and made, see auth.signing_keys.
    """

    version: int
    digest: str
    keys_digest: str
    document: Document
    verifier: Verifier
    unit_verifier: Verifier
    routes: RouteTable[Route]
    controllers: dict[str, Route]
    roles: dict[str, CompiledRole]
    audiences: dict[str, Audience]
    known_audiences: frozenset[str]
    address_limits: tuple[Limit, ...]
    upstreams: dict[str, Upstream]
    units: dict[str, CompiledUnit]
    realm: str
    trusted_proxies: tuple[Network, ...]
    tokens: CompiledTokens | None = None
    descriptions: dict[str, Description] = field(default_factory=dict)
    """What units say of their own services, by unit."""
    providers: dict[str, CompiledProvider] = field(default_factory=dict)
    thumbprints: frozenset[str] = field(default=frozenset(), repr=False)
    role_keys: dict[str, tuple[KeyMaterial, ...]] = field(default_factory=dict, repr=False)


class SnapshotHolder:
    """The worker's current snapshot; a request reads `current` once and keeps it to its end."""

    def __init__(self, snapshot: Snapshot) -> None:
        _share_revocations(snapshot, snapshot)
        self.current = snapshot
        self._subscribers: list[Callable[[Snapshot], None]] = []
        self._preparers: list[Callable[[Snapshot], None]] = []

    def before_swap(self, callback: Callable[[Snapshot], None]) -> None:
        """`callback(new)` runs before each swap; it must not wait. What it raises prevents the swap."""
        self._preparers.append(callback)

    def subscribe(self, callback: Callable[[Snapshot], None]) -> None:
        """`callback(new)` runs after every swap; it must not wait."""
        self._subscribers.append(callback)

    def swap(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force; revocations made under the old one hold under the new one."""
        # SEC: one set for all snapshots of a worker, so that nothing revoked while this one was compiled is lost.
        _share_revocations(self.current, snapshot)
        for prepare in self._preparers:
            prepare(snapshot)
        self.current = snapshot
        for callback in self._subscribers:
            try:
                callback(snapshot)
            except Exception:
                log.exception("a subscriber failed on a configuration", config_version=snapshot.version)


def _share_revocations(old: Snapshot, new: Snapshot) -> None:
    for verifier in (new.verifier, new.unit_verifier):
        verifier.share(old.verifier.revocations)
