"""The configuration document: one YAML file, decoded strictly into these structs.

A field that is not declared here is refused with its path. Cross-references (does that role exist?) are checked in
`gateway.config.check`; nothing here reads a file, a clock or the environment.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9._-]{0,63}$", description="lower case letters, digits, . _ -")]
UnitId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="lower case letters, digits, -")]
SecretRef = Annotated[
    str,
    Meta(
        pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+|exec:\[.+\])$",
        description='env:NAME, file:PATH or exec:["/program", "argument"]',
    ),
]
Positive = Annotated[int, Meta(ge=1)]
ZeroOrMore = Annotated[int, Meta(ge=0)]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]


PublicAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Gateway(_Strict, frozen=True, kw_only=True):
    """Settings of the policy as a whole."""

    realm: str = "caregate"
    leeway_s: Annotated[int, Meta(ge=0, le=120)] = 5
    trusted_proxies: tuple[str, ...] = ()
    limits: tuple[Name, ...] = ()
    """Taken for every request before routing; may only be per address."""
    fhir_bases: tuple[str, ...] = ()
    """FHIR bases as callers know them, for references as URLs; `{unit}` is the request's unit."""


class Cors(_Strict, frozen=True, kw_only=True):
    origins: tuple[str, ...]
    credentials: bool = False
    max_age_s: Annotated[int, Meta(ge=0, le=86_400)] = 600
    headers: tuple[str, ...] = ("authorization", "content-type", "idempotency-key")


class Audience(_Strict, frozen=True, kw_only=True):
    """`aud` of its tokens is the audience's name."""

    issuer: Annotated[str, Meta(min_length=1)]
    cors: Cors | None = None


class Key(_Strict, frozen=True, kw_only=True):
    """HS*: `secret`. The others: `public_key` (PEM or JWK), and `private_key` where the gateway issues tokens."""

    kid: Annotated[str, Meta(min_length=1, max_length=128)]
    alg: Algorithm
    secret: SecretRef | None = None
    public_key: SecretRef | None = None
    private_key: SecretRef | None = None


class Role(_Strict, frozen=True, kw_only=True):
    """What is not given of the lifetimes and the second factor is by the role's name, see config.role_defaults."""

    audience: Name
    keys: tuple[Key, ...] = ()
    """None if its tokens come from identity providers alone, or with `makes_keys`."""
    makes_keys: bool = False
    """The gateway makes its keys (`caregate keys rotate`), so that it needs none here."""
    access_lifetime_s: Positive | None = None
    refresh_lifetime_s: ZeroOrMore | None = None
    """0: its logins get no refresh tokens."""
    session_idle_s: ZeroOrMore | None = None
    """A session that is not refreshed for so long is over; 0: no such limit."""
    session_absolute_s: Positive | None = None
    second_factor: bool | None = None
    max_lifetime_s: Positive = 3600
    permissions: tuple[str, ...] = ()
    scopes: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    """SMART scopes its tokens may have at most; with them, a token without scopes may do nothing."""
    limits: tuple[Name, ...] = ()


class RoleClaim(_Strict, frozen=True, kw_only=True):
    """A role for the tokens whose `claim` is `value` or holds it; without both for every token of the provider."""

    role: Name
    claim: str = ""
    value: str = ""


class IdentityProvider(_Strict, frozen=True, kw_only=True):
    """Another issuer of an audience's tokens, whose public keys are fetched; see docs/keys.md."""

    issuer: Annotated[str, Meta(min_length=1)]
    audience: Name
    aud: str = ""
    """What `aud` of its tokens holds for us; the audience's name if it is not given."""
    jwks_url: str | None = None
    """Without it the address is discovered below `issuer` (OpenID Connect)."""
    algorithms: Annotated[tuple[PublicAlgorithm, ...], Meta(min_length=1)] = ("RS256", "ES256")
    roles: Annotated[tuple[RoleClaim, ...], Meta(min_length=1)]
    """The first that fits counts."""
    claims: dict[str, str] = {}
    """Claim here -> claim there, or JSON pointer into the token's payload."""
    refresh_s: Annotated[int, Meta(ge=10, le=86_400)] = 300
    stale_s: Annotated[int, Meta(ge=60, le=31_536_000)] = 604_800
    """How long the last good keys are used while no others can be fetched."""
    timeout_ms: Annotated[int, Meta(ge=100, le=30_000)] = 3_000
    max_bytes: Annotated[int, Meta(ge=1_024, le=1_048_576)] = 262_144
    unknown_kid_burst: Annotated[int, Meta(ge=1, le=100)] = 5
    unknown_kid_period_s: Annotated[int, Meta(ge=1, le=3_600)] = 30
    unknown_kid_memory_s: Annotated[int, Meta(ge=1, le=86_400)] = 300
    allowed_networks: tuple[str, ...] = ()
    """Addresses that are not public and may be connected to all the same."""
    allow_http: bool = False
    """For tests: only on loopback, which `allowed_networks` must name too."""
    ca: SecretRef | None = None
    """Certificates (PEM) to trust instead of the system's."""


class LimitRule(_Strict, frozen=True, kw_only=True):
    """`rate` requests in `period_s` seconds on average, `burst` at once."""

    per: Literal["address", "principal", "role", "route", "unit"]
    rate: Positive
    period_s: Positive = 1
    burst: Positive
    shadow: bool = False
    """Only log what it would refuse."""


class Upstream(_Strict, frozen=True, kw_only=True):
    endpoints: Annotated[tuple[str, ...], Meta(min_length=1)]
    """http://host:port, no path."""
    connect_timeout_ms: Positive = 1_000
    response_timeout_ms: Positive = 10_000
    idle_timeout_ms: Positive = 30_000
    max_connections: Positive = 64


class UnitKey(_Strict, frozen=True, kw_only=True):
    kid: Annotated[str, Meta(min_length=1, max_length=128)]
    alg: Literal["RS256", "PS256", "ES256", "ES384", "EdDSA"]
    public_key: SecretRef


class Unit(_Strict, frozen=True, kw_only=True):
    name: str
    keys: tuple[UnitKey, ...] = ()
    """Beside these, the keys that the unit registered itself (docs/units.md)."""
    context_key: SecretRef | None = None
    """HS256 key, shared with the unit, under which x-caregate-context is signed."""
    enabled: bool = True
    max_connections: Annotated[int, Meta(ge=1, le=4)] = 2
    openapi: Annotated[str, Meta(pattern=r"^file:.+$", description="file:PATH")] | None = None
    """OpenAPI document of the unit's own service: what it says stands in what callers are told (docs/openapi.md)."""


class TokenService(_Strict, frozen=True, kw_only=True):
    """The gateway's own token service, `/auth/v1/`."""

    url: str
    """Where callers reach the gateway: scheme://host or scheme://host:port."""


class ClientKey(_Strict, frozen=True, kw_only=True):
    kid: Annotated[str, Meta(min_length=1, max_length=128)]
    alg: Literal["RS256", "PS256", "ES256", "ES384", "EdDSA"]
    public_key: SecretRef


class Client(_Strict, frozen=True, kw_only=True):
    """A system that authenticates with a key of its own; its name is its `client_id`."""

    keys: Annotated[tuple[ClientKey, ...], Meta(min_length=1)]
    role: Name | None = None
    """What its tokens may do; without one it gets none."""
    claims: dict[str, str | tuple[str, ...]] = {}
    introspect: tuple[Name, ...] = ()
    """Audiences whose tokens it may ask about."""


class App(_Strict, frozen=True, kw_only=True):
    """An application in which people log in; its name is its `client_id`. Without keys it is a public client."""

    title: Annotated[str, Meta(min_length=1, max_length=64)]
    """What people read on the login page."""
    roles: Annotated[tuple[Name, ...], Meta(min_length=1)]
    """Whose accounts may log in by it."""
    redirect_uris: tuple[str, ...] = ()
    """Where the login page may send codes to, compared byte by byte."""
    keys: tuple[ClientKey, ...] = ()
    first_party: bool = False
    """It may send a login and a password itself (grant_type=password)."""
    proxies: bool = False
    """It may ask for tokens of whom its user acts for (token exchange)."""
    dpop: Literal["optional", "required"] = "optional"


class Admin(_Strict, frozen=True, kw_only=True):
    """The Admin API, `/admin/v1` of the operations listener. What a role may do there are its `admin.` permissions."""

    audience: Name
    roles: Annotated[tuple[Name, ...], Meta(min_length=1)]


class Bind(_Strict, frozen=True, kw_only=True):
    """`param`: a parameter of the path, `query:NAME` or `query:NAME|NAME`, or `body:/json/pointer`."""

    param: str
    claim: Annotated[str, Meta(min_length=1)]
    roles: tuple[Name, ...] = ()
    refuse: Literal["forbidden", "hidden"] = "forbidden"
    reference: str | None = None
    """The value is a FHIR reference to this type, in any of its spellings; else it is compared as it is."""
    shadow: bool = False
    """Only log what it would refuse."""


class Function(_Strict, frozen=True, kw_only=True):
    """`arguments`: parameter -> `path:NAME`, `query:NAME`, `claim:NAME`, `body` or `body:/json/pointer`.

    A trailing `?` makes an argument optional.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*$", description="schema.function")]
    arguments: dict[str, str] = {}
    success_status: Annotated[int, Meta(ge=200, le=299)] = 200


class ToUpstream(_Strict, frozen=True, kw_only=True):
    """`target`: path template sent on instead of the caller's path, see ToUnit."""

    name: Name
    target: str | None = None


class ToUnit(_Strict, frozen=True, kw_only=True):
    """`unit`: `path:PARAM` or a unit's id.

    `target` may have a query part, `/fhir/Observation?patient={patient}`: a parameter is percent-encoded where it is
    put in (only `{name:path}` keeps its slashes, and only in the path). The caller's declared query follows after it.
    """

    unit: str
    target: str | None = None
    cookies: bool = False


class Audited(_Strict, frozen=True, kw_only=True):
    """What the audit trail says of a route: type and id (a parameter of the path) of the resource, purpose of use.

    `fhir` is the parameter that takes a path below a FHIR base: then each request's own path says type and id.
    """

    resource: Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9]{0,63}$", description="a resource type")] | None = None
    id: str | None = None
    fhir: str | None = None
    purpose: Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_-]{0,31}$", description="a code in capitals")] | None = None


class Logged(_Strict, frozen=True, kw_only=True):
    """How the access log tells of a route. Failures (500 and above) are always in it, at level error."""

    level: Literal["debug", "info", "warning"] = "info"
    sample: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """One line for so many requests."""


class Purpose(_Strict, frozen=True, kw_only=True):
    """Purposes of use that callers must have one of, in `Purpose-Of-Use` or the token's claim `purpose`."""

    required: Annotated[tuple[str, ...], Meta(min_length=1)]
    shadow: bool = False


class Consent(_Strict, frozen=True, kw_only=True):
    """Who is asked, at each request, whether the patient consents: one of `hook` and `function`.

    `hook`: an entry point of the group `caregate.consent`. `function`: of the portal database, see portal.consent.
    """

    hook: Name | None = None
    function: (
        Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*$", description="schema.function")] | None
    ) = None
    patient: str
    """A parameter of the path, `query:NAME`, `body:/json/pointer` or `claim:NAME`."""
    roles: tuple[Name, ...] = ()
    refuse: Literal["forbidden", "hidden"] = "forbidden"
    shadow: bool = False


class PermissionRule(_Strict, frozen=True, kw_only=True):
    name: str
    shadow: bool = False
    """Only log what it would refuse."""


class ScopeRule(_Strict, frozen=True, kw_only=True):
    """`need`: `Observation.s`, `none`, or `path:PARAM` with a path below a FHIR base; else of `audit.resource` and
    methods.
    """

    need: str | None = None
    shadow: bool = False
    """Only log what it would refuse."""


class Controller(_Strict, frozen=True, kw_only=True):
    """One route: who may call it and what answers, exactly one of function, upstream, unit, resource."""

    path: Annotated[str, Meta(pattern=r"^/", description="a path that begins with /")]
    methods: Annotated[tuple[Method, ...], Meta(min_length=1)]
    audiences: Annotated[tuple[Name, ...], Meta(min_length=1)]
    roles: Annotated[tuple[Name, ...], Meta(min_length=1)]
    permission: str | PermissionRule | None = None
    """Text is its name."""
    scope: str | ScopeRule | None = None
    """Text is what is needed."""
    bind: tuple[Bind, ...] = ()
    unbound_roles: tuple[Name, ...] = ()
    """Roles that no entry of `bind` restricts.

    If there is any `bind`, or the unit is taken from the path, each role must be in an entry of `bind` or here.
    """
    purpose: Purpose | None = None
    consent: Consent | None = None
    limits: tuple[Name, ...] = ()
    query: tuple[str, ...] | Literal["any"] = ()
    phi: bool = False
    break_glass: str | None = None
    """What names the patient whom an emergency may open: a parameter of the path, `query:NAME` or
    `body:/json/pointer`.
    """
    audit: Audited = Audited()
    log: Logged = Logged()
    hidden: bool = False
    body_max_bytes: Annotated[int, Meta(ge=0, le=16_777_216)] = 1_048_576
    response_max_bytes: Annotated[int, Meta(ge=1, le=1_073_741_824)] = 67_108_864
    deadline_ms: Annotated[int, Meta(ge=1, le=300_000)] = 30_000
    function: Function | None = None
    upstream: ToUpstream | None = None
    unit: ToUnit | None = None
    resource: str | None = None
    """Name of an entry point in the group `caregate.resources`."""

    @property
    def permission_rule(self) -> PermissionRule | None:
        """`permission`, however it is written."""
        return PermissionRule(name=self.permission) if isinstance(self.permission, str) else self.permission

    @property
    def scope_rule(self) -> ScopeRule:
        """`scope`, however it is written."""
        return self.scope if isinstance(self.scope, ScopeRule) else ScopeRule(need=self.scope)


class AuditReader(_Strict, frozen=True, kw_only=True):
    """What a role with the permission audit.read may see of the trail."""

    sees: Annotated[str, Meta(pattern=r"^(all|claim:[A-Za-z_][A-Za-z0-9_.-]{0,63})$", description="all or claim:NAME")]
    """`claim:NAME`: events of the units that this claim names."""


class AuditAccess(_Strict, frozen=True, kw_only=True):
    """Who may read the audit trail, `/audit/v1/` and `/me/access-log`."""

    readers: dict[Name, AuditReader] = {}
    own_record: tuple[Name, ...] = ()
    """Roles that see who looked at the record of the `patient` that their token names."""


class Notify(_Strict, frozen=True, kw_only=True):
    upstream: Name
    path: Annotated[str, Meta(pattern=r"^/", description="a path that begins with /")]


class BreakGlass(_Strict, frozen=True, kw_only=True):
    """Emergency access, `/access/v1/break-glass`: who may give it to himself, for how long, who reviews it."""

    roles: Annotated[tuple[Name, ...], Meta(min_length=1)]
    reviewers: Annotated[dict[Name, AuditReader], Meta(min_length=1)]
    default_s: Annotated[int, Meta(ge=60, le=14_400)] = 3_600
    max_s: Annotated[int, Meta(ge=60, le=14_400)] = 14_400
    login_within_s: Annotated[int, Meta(ge=30, le=3_600)] = 300
    """How long ago the person may have logged in (`auth_time`)."""
    notify: Notify | None = None
    """Where each case is posted to."""


class Document(_Strict, frozen=True, kw_only=True):
    version: Literal[1]
    gateway: Gateway = Gateway()
    audiences: Annotated[dict[Name, Audience], Meta(min_length=1)]
    roles: Annotated[dict[Name, Role], Meta(min_length=1)]
    limits: dict[Name, LimitRule] = {}
    upstreams: dict[Name, Upstream] = {}
    units: dict[UnitId, Unit] = {}
    controllers: dict[Name, Controller] = {}
    token_service: TokenService | None = None
    admin: Admin | None = None
    """Without it there is no Admin API."""
    clients: dict[Name, Client] = {}
    audit: AuditAccess = AuditAccess()
    break_glass: BreakGlass | None = None
    apps: dict[Name, App] = {}
    identity_providers: dict[Name, IdentityProvider] = {}
