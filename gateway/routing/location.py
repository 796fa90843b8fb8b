"""`Location` and `Content-Location` of an answer: the target's own address becomes the path callers know it by."""

from __future__ import annotations

import re
from collections.abc import Container
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

from fastpath.target import TargetRefused, canonical_path
from gateway.context import RequestContext
from gateway.routing.model import Route, UnitAction, UpstreamAction
from gateway.routing.target import forward_target, raw_params, target_pieces

if TYPE_CHECKING:
    import falcon

FIELDS: Final = ("location", "content-location")

_ABSOLUTE = re.compile(r"(?:(https?):)?//([^/?#\\]*)(.*)", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_OWN_PORT: Final = {"http": ":80", "https": ":443"}


def tell_places(resp: falcon.Response, ctx: RequestContext, hosts: Container[str] = ()) -> None:
    """Rewrite the answer's fields. What the target itself said is kept for the audit trail: see http.created."""
    if ctx.route is None or not isinstance(ctx.route.action, UnitAction | UpstreamAction):
        return
    sent = forward_target(ctx.route.action.target, ctx)
    resp.context.said = resp.get_header("location")
    for name in FIELDS:
        value = resp.get_header(name)
        if value is not None:
            resp.set_header(name, public_location(value, ctx, sent, hosts))


def public_location(value: str, ctx: RequestContext, sent: str, hosts: Container[str] = ()) -> str:
    """What a caller is told instead of `value`, which answers the request that was sent on as `sent`.

    A path of the target becomes the path of the route that leads there, else a path below the request's own; what no
    path of ours stands for keeps its path and loses the target's address. Another address is left alone.

    Shapes: `value` absolute, a path or relative (RFC 3986, 4.1); `sent` origin-form; `hosts` the target's own, in lower
    case, see `host_of`. The result is `value` or a path with what followed it.
    """
    reference = _own(value, sent, hosts)
    if reference is None:
        return value
    cut = min((at for at in (reference.find("?"), reference.find("#")) if at >= 0), default=len(reference))
    try:
        path, _ = canonical_path(reference[:cut])
    except TargetRefused:
        return value
    return (_path_of(path, ctx, sent.partition("?")[0]) or path) + reference[cut:]


def host_of(authority: str, scheme: str = "http") -> str:
    """An authority as it is compared: lower case, without the scheme's own port."""
    return authority.lower().removesuffix(_OWN_PORT[scheme])


def _own(value: str, sent: str, hosts: Container[str]) -> str | None:
    """The path, query and fragment at the target; None for another address."""
    absolute = _ABSOLUTE.match(value)
    if absolute is None:
        return None if not value or value.startswith("#") or _SCHEME.match(value) else urljoin(sent, value)
    scheme, authority, rest = absolute.groups()
    # NOTE: who believes our X-Forwarded-Proto says https of an address that is reached by http.
    if host_of(authority, (scheme or "http").lower()) not in hosts:
        return None
    return rest if rest.startswith("/") else f"/{rest}"


def _path_of(path: str, ctx: RequestContext, sent: str) -> str | None:
    """The gateway's path of a path at the target, None if there is none."""
    near = _below(path, ctx, sent)
    if near is not None and _sends(near, path, ctx):
        return near
    ways = [route for route in ctx.snapshot.controllers.values() if "GET" in route.methods and _leads(route, ctx)]
    for route in sorted(ways, key=_literal_length, reverse=True):
        public = _asked(route, path, ctx)
        if public is not None and _sends(public, path, ctx):
            return public
    return near


def _below(path: str, ctx: RequestContext, sent: str) -> str | None:
    """By the request's own route: what lies below its target lies below its path."""
    route = ctx.route
    public = None if route is None else _asked(route, path, ctx)
    if public is not None:
        return public
    return ctx.path + path[len(sent) :] if path == sent or path.startswith(f"{sent.rstrip('/')}/") else None


def _sends(public: str, path: str, ctx: RequestContext) -> bool:
    """Is a GET of `public` sent on to the same target as `path`?"""
    found = ctx.snapshot.routes.match("GET", public)
    if found is None or not _leads(found[0], ctx):
        return False
    route, raw = found
    if isinstance(route.action, UnitAction) and raw.get(route.action.unit_param or "", ctx.unit) != ctx.unit:
        return False
    pieces = target_pieces(_target(route))
    return all(name in raw for name in pieces[1::2]) and _filled(pieces, raw) == path


def _leads(route: Route, ctx: RequestContext) -> bool:
    """May it lead to the target of the request, for callers such as this one?"""
    if ctx.principal is None or ctx.principal.audience not in route.audiences:
        return False  # SEC: another audience's paths are not told
    action, own = route.action, None if ctx.route is None else ctx.route.action
    if isinstance(action, UnitAction):
        return isinstance(own, UnitAction) and action.unit in (None, ctx.unit)
    return isinstance(action, UpstreamAction) and isinstance(own, UpstreamAction) and action.upstream == own.upstream


def _asked(route: Route, path: str, ctx: RequestContext) -> str | None:
    """What a caller asks the route for to reach `path`; what the path does not tell is as in this request."""
    pattern = _pattern(route.template, _target(route))
    match = None if pattern is None else pattern.fullmatch(path)
    if match is None:
        return None
    known = raw_params(ctx) | match.groupdict()
    if isinstance(route.action, UnitAction) and route.action.unit_param is not None:
        known[route.action.unit_param] = ctx.unit or ""
    pieces = target_pieces(route.template)
    return _filled(pieces, known) if all(name in known for name in pieces[1::2]) else None


def _target(route: Route) -> str:
    action = route.action
    target = action.target if isinstance(action, UnitAction | UpstreamAction) else None
    return target or route.template


def _literal_length(route: Route) -> int:
    return sum(map(len, target_pieces(_target(route))[::2]))


def _filled(pieces: tuple[str, ...], values: dict[str, str]) -> str:
    return "".join(values[piece] if index % 2 else piece for index, piece in enumerate(pieces))


@lru_cache(maxsize=4096)
def _pattern(template: str, target: str) -> re.Pattern[str] | None:
    """What the path of a filled-in target looks like; None for a target that says more than its path.

    Shapes: a group for each parameter, which are the template's.
    """
    pieces, named = target_pieces(target), target_pieces(template)[1::2]
    names = pieces[1::2]
    if "?" in target or len(set(names)) < len(names) or not set(names) <= set(named):
        return None
    rest = named[-1] if template.endswith(":path}") else ""
    return re.compile(
        "".join(
            f"(?P<{piece}>{'.+' if piece == rest else '[^/]+'})" if index % 2 else re.escape(piece)
            for index, piece in enumerate(pieces)
        )
    )
