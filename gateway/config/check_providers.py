"""Cross-checks of the identity providers."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from gateway.config.checking import Checking
from gateway.config.fault import step
from gateway.config.model import IdentityProvider, Role
from gateway.config.snapshot import UNIT_LINK_AUDIENCE

KEPT_CLAIMS: Final = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "role", "cnf"})
"""Claims that no mapping may set."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_CLAIM = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")
_POINTER = re.compile(r"(/([^~/]|~[01])*)+\Z")
_VISIBLE = re.compile(r"[!-~]{1,256}\Z")


def check_providers(checking: Checking) -> None:
    """Note every fault of `identity_providers`."""
    taken: dict[str, str] = {audience.issuer: path for path, _, audience in checking.entries("audiences")}
    provider: IdentityProvider
    for path, _, provider in checking.entries("identity_providers"):
        _check_issuer(checking, path, provider, taken)
        checking.find("audiences", provider.audience, step(path, "audience"))
        _check_aud(checking, step(path, "aud"), provider)
        if provider.jwks_url is not None:
            _check_url(checking, step(path, "jwks_url"), provider.jwks_url, provider)
        for _ in checking.each(provider.algorithms, step(path, "algorithms")):
            pass
        _check_roles(checking, step(path, "roles"), provider)
        _check_claims(checking, step(path, "claims"), provider)
        _check_networks(checking, path, provider)


def given_by_providers(checking: Checking) -> frozenset[str]:
    """The roles that some identity provider, sound or not, may give."""
    if checking.dropped.get("identity_providers"):
        return frozenset(checking.document.roles)
    providers = checking.document.identity_providers.values()
    return frozenset(entry.role for provider in providers for entry in provider.roles)


def _check_issuer(checking: Checking, path: str, provider: IdentityProvider, taken: dict[str, str]) -> None:
    below = step(path, "issuer")
    # SEC: whose token it is must follow from `iss` alone.
    first = taken.setdefault(provider.issuer, path)
    if first != path:
        checking.add(below, f"is the issuer of {first} too")
    if provider.issuer in checking.document.units or provider.issuer in checking.document.clients:
        checking.add(below, "is the id of a unit or client, which sign as issuer")
    if not _VISIBLE.match(provider.issuer):
        checking.add(below, "must be visible ASCII characters without spaces")
    elif provider.jwks_url is None:
        _check_url(checking, below, provider.issuer, provider)


def _check_url(checking: Checking, path: str, url: str, provider: IdentityProvider) -> None:
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment or "@" in parts.netloc:
        checking.add(path, "must be a URL with https and a host, without query, fragment and user")
    elif parts.scheme == "http" and not (provider.allow_http and parts.hostname in LOOPBACK):
        # SEC: whoever is on the way could put keys of his own in.
        checking.add(path, "must be https; for tests, allow_http allows http on loopback")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.hostname and _VISIBLE.match(url) else None


def _check_aud(checking: Checking, path: str, provider: IdentityProvider) -> None:
    if not provider.aud:
        return
    if not _VISIBLE.match(provider.aud):
        checking.add(path, "must be visible ASCII characters without spaces")
    elif provider.aud == UNIT_LINK_AUDIENCE:
        checking.add(path, "is the audience of the units' own tokens")
    elif provider.aud != provider.audience and checking.exists("audiences", provider.aud):
        checking.add(path, f"is another audience than {provider.audience}")


def _check_roles(checking: Checking, path: str, provider: IdentityProvider) -> None:
    for index, entry in enumerate(provider.roles):
        below = step(path, index)
        role: Role | None = checking.find("roles", entry.role, step(below, "role"))
        if role is not None and role.audience != provider.audience:
            checking.add(step(below, "role"), f"{entry.role} lives in the audience {role.audience}")
        if bool(entry.claim) != bool(entry.value):
            checking.add(below, "takes claim and value, or neither")
        elif entry.claim:
            _check_source(checking, step(below, "claim"), entry.claim)
        elif index + 1 < len(provider.roles):
            checking.add(below, "fits every token, so those after it never count")


def _check_claims(checking: Checking, path: str, provider: IdentityProvider) -> None:
    for name, source in provider.claims.items():
        below = step(path, name)
        if name in KEPT_CLAIMS:
            checking.add(below, "cannot be mapped")
        elif not _CLAIM.match(name):
            checking.add(below, "is not the name of a claim: letters, digits and _ . -")
        _check_source(checking, below, source)


def _check_source(checking: Checking, path: str, source: str) -> None:
    if not 0 < len(source) <= 256 or (source.startswith("/") and not _POINTER.match(source)):
        checking.add(path, "must be the name of a claim, or a JSON pointer that begins with /")


def _check_networks(checking: Checking, path: str, provider: IdentityProvider) -> None:
    for below, text in checking.each(provider.allowed_networks, step(path, "allowed_networks")):
        try:
            network = ip_network(text)
        except ValueError:
            checking.add(below, "is not a network such as 10.0.0.0/8 (host bits must be zero)")
            continue
        if network.prefixlen == 0:
            checking.add(below, "would allow every address")
    if provider.allow_http and not provider.allowed_networks:
        checking.add(step(path, "allow_http"), "is for loopback alone, which allowed_networks must name")
