"""Cross-checks of the applications in which people log in."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from gateway.config.check_clients import LOOPBACK, check_signing_role
from gateway.config.checking import Checking
from gateway.config.fault import step
from gateway.config.model import App

MAX_URI_CHARS = 1024

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!$&'()*+,;=:@/?%A-Za-z0-9._~\[\]-]+\Z")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?\Z|[0-9a-f:.]+\Z")


def check_apps(checking: Checking) -> None:
    """Note every fault of `apps`."""
    app: App
    for path, name, app in checking.entries("apps"):
        if checking.document.token_service is None:
            checking.add(path, "needs token_service")
        if checking.exists("units", name):
            checking.add(path, "is a unit's id, which units sign as issuer")
        if checking.exists("clients", name):
            checking.add(path, "is a client's id too")
        if not app.redirect_uris and not app.first_party:
            checking.add(path, "has neither redirect_uris nor first_party: nobody could log in")
        if app.title != app.title.strip() or not app.title.isprintable():
            checking.add(step(path, "title"), "must be printable, without spaces around it")
        for below, role in checking.each(app.roles, step(path, "roles")):
            check_signing_role(checking, below, role)
        for below, uri in checking.each(app.redirect_uris, step(path, "redirect_uris")):
            reason = _fault_of(uri)
            if reason is not None:
                checking.add(below, reason)


def _fault_of(uri: str) -> str | None:
    """Source: RFC 6749, 3.1.2; RFC 8252, 7 (schemes of installed apps have a dot); RFC 9700, 4.1."""
    if len(uri) > MAX_URI_CHARS or not _URI.match(uri):
        return "must be an absolute URI in ASCII, without a fragment"
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "must be an absolute URI in ASCII, without a fragment"
    if parts.scheme in ("http", "https"):
        if host is None or not _HOST.match(host) or "@" in parts.netloc or parts.netloc != parts.netloc.lower():
            return "must have a host in lower case, and no user"
        # SEC: what is sent there is a code that gives tokens.
        if parts.scheme == "http" and host not in (*LOOPBACK, "::1"):
            return "must be https: only on loopback it may be http"
        return None if parts.path else "must have a path, at least /"
    if "." not in parts.scheme:
        return "must be https, or of a scheme that is the app's own, such as org.example.app:/callback"
    return None
