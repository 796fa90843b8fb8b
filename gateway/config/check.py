"""Cross-checks of a decoded document: everything that is wrong with it, each with its path."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import entry_points
from ipaddress import ip_network
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from gateway.config.check_admin import check_admin
from gateway.config.check_apps import check_apps
from gateway.config.check_audit import check_audit
from gateway.config.check_bindings import check_bases
from gateway.config.check_break_glass import check_break_glass
from gateway.config.check_clients import check_clients
from gateway.config.check_providers import check_providers, given_by_providers
from gateway.config.check_routes import check_controllers
from gateway.config.check_scopes import check_ceiling
from gateway.config.checking import Checking
from gateway.config.fault import WHOLE, Fault, step
from gateway.config.keyring import Keyring, load_keys
from gateway.config.model import Audience, Cors, Document, LimitRule, Role, Unit, Upstream
from gateway.config.role_defaults import Lifetimes, lifetimes_of
from gateway.config.secret import Secrets, SecretUnavailable
from gateway.config.snapshot import UNIT_LINK_AUDIENCE
from gateway.openapi.reading import Description, Undescribed, read_description

CatalogCheck = Callable[[Document], list[Fault]]

RESOURCE_GROUP = "caregate.resources"
MAX_LIFETIME_S = 86_400
MAX_SESSION_S = 365 * 86_400
MAX_REFILL_S = 365 * 86_400

_REALM = re.compile(r"[ !#-\[\]-~]{1,128}\Z")
_PERMISSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/-]{0,127}\Z")
_FIELD_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+\Z")
_VISIBLE = re.compile(r"[!-~]+\Z")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z|[0-9A-Fa-f:.]+\Z")


class Checked(NamedTuple):
    """Shapes: `keyring` and `descriptions` (by unit) are complete only if there are no faults."""

    faults: list[Fault]
    keyring: Keyring
    descriptions: dict[str, Description]


def check(
    document: Document,
    secrets: Secrets,
    *,
    dropped: Mapping[str, Collection[str]] | None = None,
    resources: Collection[str] | None = None,
    catalog_check: CatalogCheck | None = None,
) -> Checked:
    """Check a document against itself, its key files and, if `catalog_check` is given, the database.

    Shapes: `resources` are the names of the entry points there are, by default those installed.
    Yields to the hub: only in `catalog_check`.
    """
    checking = Checking(document, dropped or {})
    _check_gateway(checking)
    _check_audiences(checking)
    _check_roles(checking)
    _check_limits(checking)
    _check_upstreams(checking)
    check_controllers(checking, resource_names() if resources is None else resources)
    check_admin(checking)
    check_clients(checking)
    check_apps(checking)
    check_audit(checking)
    check_providers(checking)
    check_break_glass(checking)
    keyring = load_keys(checking, secrets)
    descriptions = _descriptions(checking, secrets)
    if catalog_check is not None:
        checking.faults.extend(catalog_check(document))
    return Checked(checking.faults, keyring, descriptions)


def resource_names() -> frozenset[str]:
    """Names of the Falcon resources that installed distributions offer."""
    return frozenset(point.name for point in entry_points(group=RESOURCE_GROUP))


def _check_gateway(checking: Checking) -> None:
    gateway = checking.document.gateway
    path = step(WHOLE, "gateway")
    check_bases(checking)
    if not _REALM.match(gateway.realm):
        checking.add(step(path, "realm"), "must be 1 to 128 visible ASCII characters without quotes and backslashes")
    for below, text in checking.each(gateway.trusted_proxies, step(path, "trusted_proxies")):
        _check_network(checking, below, text)
    for below, name in checking.each(gateway.limits, step(path, "limits")):
        limit: LimitRule | None = checking.find("limits", name, below)
        if limit is not None and limit.per != "address":
            checking.add(below, f"{name} counts per {limit.per}; before routing only address is known")


def _check_network(checking: Checking, path: str, text: str) -> None:
    try:
        network = ip_network(text)
    except ValueError:
        checking.add(path, "is not a network such as 10.0.0.0/8 (host bits must be zero)")
        return
    if network.prefixlen == 0:
        checking.add(path, "would believe every caller's word for its address")


def _check_audiences(checking: Checking) -> None:
    audience: Audience
    for path, name, audience in checking.entries("audiences"):
        if name == UNIT_LINK_AUDIENCE:
            checking.add(path, "is the audience of the units' own tokens")
        below = step(path, "issuer")
        if not _VISIBLE.match(audience.issuer):
            checking.add(below, "must be visible ASCII characters without spaces")
        elif "://" in audience.issuer and not _is_issuer_url(_split(audience.issuer)):
            checking.add(below, "as a URL must be http or https with a host, without query, fragment and user")
        if audience.issuer in checking.document.units:
            checking.add(below, "is a unit's id, which units sign as issuer")
        if audience.cors is not None:
            _check_cors(checking, step(path, "cors"), audience.cors)


def _check_cors(checking: Checking, path: str, cors: Cors) -> None:
    if not cors.origins:
        checking.add(step(path, "origins"), "is empty: leave cors out instead")
    for below, origin in checking.each(cors.origins, step(path, "origins")):
        if origin == "*":
            if cors.credentials:
                checking.add(below, "* is refused together with credentials")
        elif not _is_origin(_split(origin), origin):
            checking.add(
                below, "must be an origin as browsers send it: scheme://host or scheme://host:port, lower case"
            )
    for below, name in checking.each(cors.headers, step(path, "headers")):
        if name == "*" or not _FIELD_NAME.match(name):
            checking.add(below, "must be the name of a header field in lower case")


def _split(url: str) -> SplitResult | None:
    """The parts of a URL, or None for what is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.hostname and _HOST.match(parts.hostname) else None


def _is_bare(parts: SplitResult) -> bool:
    return not (parts.query or parts.fragment or "@" in parts.netloc)


def _is_issuer_url(parts: SplitResult | None) -> bool:
    return parts is not None and parts.scheme in ("http", "https") and _is_bare(parts)


def _is_origin(parts: SplitResult | None, text: str) -> bool:
    if parts is None or parts.scheme not in ("http", "https"):
        return False
    default = {"http": 80, "https": 443}[parts.scheme]
    # NOTE: browsers leave the default port out, so an origin that names it would never match.
    return text == f"{parts.scheme}://{parts.netloc.lower()}" and _is_bare(parts) and parts.port not in (default, 0)


def _check_roles(checking: Checking) -> None:
    role: Role
    for path, name, role in checking.entries("roles"):
        checking.find("audiences", role.audience, step(path, "audience"))
        _check_lifetimes(checking, path, lifetimes_of(name, role), role)
        if role.makes_keys and checking.document.token_service is None:
            checking.add(step(path, "makes_keys"), "needs token_service, which signs with them")
        if not (role.keys or role.makes_keys or name in given_by_providers(checking)):
            checking.add(
                step(path, "keys"), "is empty, and no identity provider gives the role: it would have no tokens"
            )
        if role.max_lifetime_s > MAX_LIFETIME_S:
            checking.add(step(path, "max_lifetime_s"), f"is longer than a day ({MAX_LIFETIME_S})")
        for below, permission in checking.each(role.permissions, step(path, "permissions")):
            if not _PERMISSION.match(permission):
                checking.add(below, "must be letters, digits and : . _ / - (there are no wildcards)")
        check_ceiling(checking, path, role)
        for below, limited in checking.each(role.limits, step(path, "limits")):
            limit: LimitRule | None = checking.find("limits", limited, below)
            if limit is not None and limit.per == "unit":
                checking.add(below, f"{limited} counts per unit, which only routes to units have")


def _check_lifetimes(checking: Checking, path: str, lifetimes: Lifetimes, role: Role) -> None:
    """NOTE: what the document does not say is a default; the fault stands at what it does say."""
    if lifetimes.access_s > role.max_lifetime_s:
        checking.add(step(path, "access_lifetime_s"), "is longer than max_lifetime_s")
    if lifetimes.absolute_s > MAX_SESSION_S:
        checking.add(step(path, "session_absolute_s"), f"is longer than a year ({MAX_SESSION_S})")
    if lifetimes.access_s > lifetimes.absolute_s:
        checking.add(step(path, "session_absolute_s"), "is shorter than the access lifetime")
    for name, value_s in (("refresh_lifetime_s", lifetimes.refresh_s), ("session_idle_s", lifetimes.idle_s)):
        if value_s > lifetimes.absolute_s:
            checking.add(step(path, name), "is longer than the session may last")


def _check_limits(checking: Checking) -> None:
    limit: LimitRule
    for path, _, limit in checking.entries("limits"):
        if limit.rate > limit.period_s * 1_000_000:
            checking.add(step(path, "rate"), "is more than a million a second")
        elif limit.burst * limit.period_s > MAX_REFILL_S * limit.rate:
            checking.add(step(path, "burst"), "would take more than a year to fill again")


def _descriptions(checking: Checking, secrets: Secrets) -> dict[str, Description]:
    """What units say of their own services; the first fault of each is enough to find it."""
    found = {}
    unit: Unit
    for path, name, unit in checking.entries("units"):
        if unit.openapi is None:
            continue
        try:
            found[name] = read_description(secrets.document(unit.openapi))
        except Undescribed as refused:
            fault = refused.faults[0]
            checking.add(step(path, "openapi"), f"{unit.openapi}, line {fault.line or 1}: {fault}")
        except SecretUnavailable as error:
            checking.add(step(path, "openapi"), str(error))
    return found


def _check_upstreams(checking: Checking) -> None:
    upstream: Upstream
    for path, _, upstream in checking.entries("upstreams"):
        for below, endpoint in checking.each(upstream.endpoints, step(path, "endpoints")):
            parts = _split(endpoint)
            if parts is None or parts.scheme != "http" or not parts.port or parts.path or not _is_bare(parts):
                checking.add(below, "must be http://host:port, without path, query and user")
