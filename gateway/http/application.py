"""Falcon's application as a gateway needs it: its request, response and error handling, without what we never use.

PERF: `policy_rs256` of `make bench`: half of what Falcon's own `__call__` and `Request.__init__` cost goes to
generality (independent middleware, sinks, older routers, form parsing) that no request of ours meets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import falcon
from falcon._typing import _UNSET
from falcon.util import code_to_http_status
from falcon.util.uri import parse_query_string

from fastpath.lane import AUTHORIZED, ROUTED
from fastpath.responses import complete
from gateway.bodies import Transfer

if TYPE_CHECKING:
    from gateway.http.lane import Lanes

TOLD = "caregate.told"
"""Environ: who wants to know whether all of the answer was sent, see gateway.bodies.Transfer."""
TELLS = "caregate.tells"
"""Environ: the server itself tells them of an answer that is whole."""
Steps = tuple[tuple[Callable[..., None], ...], ...]
"""The middleware's methods: before routing, between routing and the responder, after everything."""
_BODILESS = frozenset({falcon.HTTP_100, falcon.HTTP_101, falcon.HTTP_204, falcon.HTTP_304})
_TYPELESS = frozenset({falcon.HTTP_204, falcon.HTTP_304})


class Request(falcon.Request):
    """A Falcon request whose attributes are set in one go.

    NOTE: sets every slot that falcon.Request.__init__ sets; a test compares the two.
    """

    __slots__ = ()

    def __init__(self, env: dict[str, Any], options: falcon.RequestOptions | None = None) -> None:
        if options is None or options.auto_parse_qs_csv or not env["PATH_INFO"].isascii():
            super().__init__(env, options)
            return
        self.is_websocket = False
        self.env = env
        self.options = options
        self._wsgierrors = env["wsgi.errors"]
        self.method = env["REQUEST_METHOD"]
        self.uri_template = None
        self._media = _UNSET
        self._media_error = None
        self.path = env["PATH_INFO"] or "/"
        self.query_string = query = env["QUERY_STRING"]
        self._params = parse_query_string(query, keep_blank=options.keep_blank_qs_values) if query else {}
        self._cached_access_route = self._cached_forwarded = self._cached_forwarded_prefix = None
        self._cached_forwarded_uri = self._cached_headers = self._cached_headers_lower = None
        self._cached_prefix = self._cached_relative_uri = self._cached_uri = None
        self.content_type = env.get("CONTENT_TYPE")
        self.stream = env["wsgi.input"]
        self._bounded_stream = None
        self.context = self.context_type()


class Application(falcon.App[Request, falcon.Response]):
    """A falcon.App with one way through it.

    Every middleware method is independent of the others, the router finds something or raises, and its responders
    cover the method asked for. With a `lane` the first steps are done by it, as many as it knows how to.
    """

    lane: Lanes | None = None
    _middleware: Steps  # type: ignore[assignment]

    def __call__(self, env: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        req = Request(env, self.req_options)
        resp = falcon.Response(self.resp_options)
        resource: list[object] = [None]
        succeeded = True
        try:
            lane = self.lane
            done = lane.enter(env, req.context) if lane is not None and "caregate.path" in env else 0
            if lane is not None and done == AUTHORIZED:
                ctx = req.context.gateway
                grant = ctx.grant
                if ctx.route.phi:
                    lane.intent(ctx)
                resource[0] = grant.resource
                req.uri_template = ctx.route.template
                responder = grant.responders[ctx.method]
                responder(req, resp, **ctx.params) if grant.takes_fields else responder(req, resp)
            else:
                self._go_on(req, resp, done, resource)
        except Exception as error:
            succeeded = False
            if not self._handle_exception(req, resp, error, {}):
                raise
        for process in self._middleware[2]:
            try:
                process(req, resp, resource[0], succeeded)
            except Exception as error:
                succeeded = False
                if not self._handle_exception(req, resp, error, {}):
                    raise
        return self._finish(req, resp, start_response)

    def _go_on(self, req: Request, resp: falcon.Response, done: int, found: list[object]) -> None:
        """The steps from where the lane stopped, and the responder. Shapes: `found` gets the resource."""
        before, between, _ = self._middleware
        for process in before[done:]:
            process(req, resp)
            if resp.complete:
                return
        if done < ROUTED:
            find: Callable[..., Any] = self._router_search
            resource, responders, params, req.uri_template = find(req.path, req=req)
        else:
            grant = req.context.gateway.grant
            resource, responders, req.uri_template = grant.resource, grant.responders, grant.route.template
            params = req.context.gateway.params if grant.takes_fields else {}
        found[0] = resource
        for process in between[max(0, done - ROUTED) :]:
            process(req, resp, resource, params)
            if resp.complete:
                return
        responders[req.method](req, resp, **params)

    def _finish(self, req: Request, resp: falcon.Response, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Head and body as Falcon makes them of a response."""
        body: Iterable[bytes] | None
        body = complete(resp, req.method, self.resp_options.default_media_type, start_response, code_to_http_status)
        if body is None:
            body = self._finish_rest(req, resp, start_response)
        told = req.env.get(TOLD)
        return body if told is None or (type(body) is list and TELLS in req.env) else Transfer(body, told)

    def _finish_rest(self, req: Request, resp: falcon.Response, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Any response, whatever its body comes from."""
        body: Iterable[bytes]
        length: int | None
        try:
            body, length = self._get_body(resp, req.env.get("wsgi.file_wrapper"))
        except Exception as error:
            if not self._handle_exception(req, resp, error, {}):
                raise
            body, length = [], 0
        status = code_to_http_status(resp.status)
        media_type: str | None = self.resp_options.default_media_type
        if req.method == "HEAD" or status in _BODILESS:
            body = []
            if status in _TYPELESS:
                media_type = None
            elif length is not None and status not in _BODILESS and "content-length" not in resp._headers:
                resp._headers["content-length"] = str(length)
        elif length is not None:
            resp._headers["content-length"] = str(length)
        start_response(status, resp._wsgi_headers(media_type))
        return body
