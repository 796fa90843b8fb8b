"""A route as the configuration compiled it: immutable, shared by every request of a snapshot."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

RESERVED_PREFIXES = (
    "/relay/", "/auth/", "/admin/", "/audit/", "/me/access-log", "/openapi/", "/access/",
    "/.well-known/oauth-authorization-server",
)  # fmt: skip
"""Paths of the gateway itself: no controller may lie under them, and none that matches any path is asked for them."""


class RouteKind(enum.StrEnum):
    """What answers a route."""

    FUNCTION = "function"
    UPSTREAM = "upstream"
    UNIT = "unit"
    RESOURCE = "resource"


class LimitKey(enum.StrEnum):
    """What one token bucket belongs to."""

    ADDRESS = "address"
    PRINCIPAL = "principal"
    ROLE = "role"
    ROUTE = "route"
    UNIT = "unit"


@dataclass(frozen=True, slots=True)
class Limit:
    """A token bucket's rule: `burst` tokens, one more every `interval_ns`.

    Units: `interval_ns` nanoseconds per token, `window_s` seconds for the advertised policy.
    """

    name: str
    per: LimitKey
    interval_ns: int
    burst: int
    window_s: int
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """What a request names must equal (or be a member of) a claim, for the named roles (empty: for all).

    `hidden`: a refusal answers 404 as if the record did not exist. `shadow`: a refusal is noted, and nothing else.
    Shapes: `source` is path (`param` is a parameter of it), query (`names` are parameters, one of which must be there)
    or body (`steps` are reference tokens of a JSON pointer, `*` each member of an array); `reference` is the type of
    resource that the value refers to as FHIR writes it, None for text that is compared as it is.
    """

    param: str
    claim: str
    roles: frozenset[str]
    hidden: bool
    source: str = "path"
    names: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    reference: str | None = None
    shadow: bool = False

    @property
    def rule(self) -> str:
        """How logs and metrics name it."""
        return f"binding:{self.param}"


@dataclass(frozen=True, slots=True)
class Need:
    """The scope that callers of a route need, if their role has scopes.

    Shapes: `text` as in `Observation.s`, `mask` its bits (see rbac.scopes; 0: any scope will do); `param` is the
    parameter that holds a path below a FHIR base, if each request's own path and method say what it needs.
    """

    text: str
    mask: int
    param: str | None = None
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Purpose:
    """Purposes of use that a route takes, in the order they are told."""

    required: tuple[str, ...]
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Consent:
    """Who is asked about a patient's consent: an entry point (`hook`) or a portal function. Empty `roles`: for all.

    Shapes: `patient` says where the patient is named: `source` is path, query, body or claim, see Binding.
    """

    hook: str | None
    function: str | None
    patient: Binding
    roles: frozenset[str]
    hidden: bool
    shadow: bool

    @property
    def name(self) -> str:
        return self.hook or self.function or ""


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a portal function: `source` is path, query, body or claim.

    `name` is the parameter or claim, or a JSON pointer for body ("" is the whole body).
    """

    parameter: str
    source: str
    name: str
    required: bool


LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""Levels of a log by rank."""


@dataclass(frozen=True, slots=True)
class Logging:
    """How a route's requests are logged: at which level, and one of how many; failures are all, at `error`."""

    level: bytes
    rank: int
    sample: int


@dataclass(frozen=True, slots=True)
class FunctionAction:
    function: str
    arguments: tuple[Argument, ...]
    success_status: int


@dataclass(frozen=True, slots=True)
class UpstreamAction:
    """`target` is the path template sent on; None sends the caller's own path."""

    upstream: str
    target: str | None


@dataclass(frozen=True, slots=True)
class UnitAction:
    """The unit is a path parameter (`unit_param`) or fixed (`unit`)."""

    unit: str | None
    unit_param: str | None
    target: str | None
    cookies: bool


@dataclass(frozen=True, slots=True)
class ResourceAction:
    entry_point: str


Action = FunctionAction | UpstreamAction | UnitAction | ResourceAction


@dataclass(frozen=True, slots=True)
class Route:
    """Units: `*_bytes` bytes, `deadline_ms` milliseconds for everything the route does."""

    name: str
    template: str
    methods: tuple[str, ...]
    kind: RouteKind
    action: Action
    audiences: frozenset[str]
    roles: frozenset[str]
    permission: str | None
    bindings: tuple[Binding, ...] = ()
    unbound_roles: frozenset[str] = frozenset()
    """Roles that pass although no binding names them; a route with bindings refuses every other uncovered role."""
    need: Need | None = None
    """None: a role that has scopes may not."""
    permission_shadow: bool = False
    """A lack of the permission is noted, and nothing else; so of the scope with `need.shadow`."""
    own_roles: frozenset[str] = frozenset()
    """Roles that a binding ties to the patient of their token: what scopes `patient/…` count for."""
    own_patient: bool = False
    """The patient is the token's: a target under `/me` has `{patient}`."""
    searched: frozenset[str] = frozenset()
    """Roles whose query may not reach beyond the records it searches."""
    bases: tuple[str, ...] = ()
    """Our own FHIR bases, `{unit}` in them the request's unit."""
    purpose: Purpose | None = None
    consent: Consent | None = None
    careful: bool = False
    """Something beside the path has a say: see http.care."""
    limits: tuple[Limit, ...] = ()
    query: frozenset[str] | None = frozenset()
    """Names of the query parameters a caller may send; None: any."""
    phi: bool = False
    break_glass: Binding | None = None
    """Where a request names the patient whom an emergency may open."""
    hidden: bool = False
    body_max_bytes: int = 1_048_576
    response_max_bytes: int = 67_108_864
    deadline_ms: int = 30_000
    logging: Logging | None = None
    """None: every request, at info."""
    metadata: dict[str, str] = field(default_factory=dict, compare=False)
    """What the audit trail says of it: `resource_type`, `resource_param` or `fhir_param`, `purpose`."""
