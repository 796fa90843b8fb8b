"""Our application beside Falcon's own: the same middleware and resources, the same answers."""

from __future__ import annotations

import io

import falcon
import falcon.testing
import pytest

from gateway.http.application import Application, Request


class _Resource:
    def on_get(self, req, resp):
        resp.data = b"plain"

    def on_head(self, req, resp):
        resp.data = b"plain"

    def on_put(self, req, resp):
        resp.text = "text \u00e4"
        resp.content_type = "text/plain"

    def on_post(self, req, resp):
        resp.media = {"query": req.params, "body": req.bounded_stream.read().decode()}
        resp.set_header("X-One", "1")
        resp.append_header("X-Many", "1")
        resp.append_header("X-Many", "2")
        resp.set_cookie("c", "v")

    def on_delete(self, req, resp):
        resp.status = 204

    def on_patch(self, req, resp):
        resp.stream = io.BytesIO(b"streamed")
        resp.content_length = 8

    def on_options(self, req, resp):
        raise falcon.HTTPForbidden(title="no")


class _Broken:
    def on_get(self, req, resp):
        raise RuntimeError("broken")

    def on_put(self, req, resp):
        resp.media = object()

    def on_head(self, req, resp):
        resp.status = 304

    def on_post(self, req, resp):
        resp.stream = iter([b"a", b"b"])


class _Outer:
    """Marks what it saw; ends a request early, or fails, where its path asks for it."""

    def process_request(self, req, resp):
        req.context.seen = ["before"]
        if req.path == "/complete-before":
            resp.complete = True
        if req.path == "/fail-before":
            raise falcon.HTTPBadRequest(title="before")

    def process_resource(self, req, resp, resource, params):
        req.context.seen.append(f"between {type(resource).__name__} {params} {req.uri_template}")
        if req.get_param("between") == "complete":
            resp.complete = True
        if req.get_param("between") == "fail":
            raise falcon.HTTPConflict(title="between")

    def process_response(self, req, resp, resource, req_succeeded):
        req.context.seen.append(f"after {type(resource).__name__} {req_succeeded}")
        resp.set_header("X-Seen", "; ".join(req.context.seen))


class _Inner:
    def process_response(self, req, resp, resource, req_succeeded):
        if req.get_param("after") == "fail":
            raise falcon.HTTPGone(title="after")


def _client(application):
    app = application(middleware=[_Outer(), _Inner()])
    app.add_route("/things/{name}", _Named())
    for path, resource in (("/plain", _Resource()), ("/broken", _Broken())):
        app.add_route(path, resource)
    app.add_error_handler(RuntimeError, lambda req, resp, error, params: setattr(resp, "status", 500))
    return falcon.testing.TestClient(app)


class _Named:
    def on_get(self, req, resp, name):
        resp.text = name


CASES = [
    *((method, "/plain", "") for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS")),
    *((method, "/broken", "") for method in ("GET", "HEAD", "POST", "PUT")),
    ("POST", "/plain", "a=1&b=&a=2&c=%41"),
    ("GET", "/things/one", ""),
    ("GET", "/things/\u00e4", ""),
    ("GET", "/complete-before", ""),
    ("GET", "/fail-before", ""),
    *((method, "/plain", f"between={how}") for method in ("GET", "POST") for how in ("complete", "fail")),
    ("GET", "/plain", "after=fail"),
    ("PATCH", "/plain", "after=fail"),
]


@pytest.mark.parametrize(("method", "path", "query"), CASES, ids=[" ".join(filter(None, case)) for case in CASES])
def test_answers_as_falcon_does(method, path, query):
    ours, theirs = (
        _client(application).simulate_request(method, path, query_string=query, body="x" if method == "POST" else None)
        for application in (Application, falcon.App)
    )
    assert (ours.status, ours.content) == (theirs.status, theirs.content)
    assert sorted(ours.headers.items()) == sorted(theirs.headers.items())
    assert ours.headers["X-Seen"]


def test_a_request_has_every_attribute_that_falcons_has():
    options = falcon.RequestOptions()
    for query in ("", "a=1"):
        env = falcon.testing.create_environ(path="/x", query_string=query, headers={"Content-Type": "text/plain"})
        ours, theirs = Request(env, options), falcon.Request(env, options)
        for name in falcon.Request.__slots__:
            if name not in ("__dict__", "context"):
                assert getattr(ours, name) == getattr(theirs, name), name
        assert type(ours.context) is type(theirs.context)
