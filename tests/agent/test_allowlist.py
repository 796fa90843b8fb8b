"""Which requests a unit admits."""

from __future__ import annotations

import pytest

from gateway.agent.allowlist import EVERYTHING, AllowList, TargetRefused, canonical_path, parse_rule


@pytest.mark.parametrize(
    ("rule", "method", "path", "admitted"),
    [
        ("GET /fhir/*", "GET", "/fhir/Patient", True),
        ("GET /fhir/*", "GET", "/fhir/Patient/1", True),
        ("GET /fhir/*", "GET", "/fhir/Patient/", True),
        ("GET /fhir/*", "GET", "/fhir", False),
        ("GET /fhir/*", "GET", "/fhir/", False),
        ("GET /fhir/*", "GET", "/fhirx/Patient", False),
        ("GET /fhir/*", "GET", "/FHIR/Patient", False),
        ("GET /fhir/*", "POST", "/fhir/Patient", False),
        ("GET /fhir/*", "HEAD", "/fhir/Patient", False),
        ("* /fhir/*", "DELETE", "/fhir/Patient", True),
        ("* /fhir/*", "TRACE", "/fhir/Patient", False),
        ("* /fhir/*", "get", "/fhir/Patient", False),
        ("GET /fhir/*/history", "GET", "/fhir/1/history", True),
        ("GET /fhir/*/history", "GET", "/fhir/1/2/history", False),
        ("GET /fhir/*/history", "GET", "/fhir/1/other", False),
        ("GET /health", "GET", "/health", True),
        ("GET /health", "GET", "/health/x", False),
        ("GET /", "GET", "/", True),
        ("GET /", "GET", "/x", False),
        ("GET /*", "GET", "/x", True),
        ("GET /a%2Cb", "GET", "/a%2Cb", True),
        ("GET /a%2Cb", "GET", "/a,b", False),
    ],
)
def test_rules(rule, method, path, admitted):
    assert AllowList((parse_rule(rule),)).admits(method, path) is admitted


def test_nothing_is_admitted_without_rules():
    assert not AllowList(()).admits("GET", "/")


@pytest.mark.parametrize("path", ["/", "/a", "/a/", "/a/b"])
def test_everything(path):
    assert EVERYTHING.admits("GET", path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GET",
        "/a",
        "GET a",
        "GET /a /b",
        "get /a",
        "CONNECT /a",
        "GET /a/../b",
        "GET //a",
        "GET /a?b",
        "GET /a*",
        "GET /%2e",
    ],
)
def test_rules_that_are_refused(text):
    with pytest.raises(ValueError, match="^" + ("'" if text.isascii() else "")):
        parse_rule(text)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a/b?c=/../d//e", "/a/b"),
        ("/a/", "/a/"),
        ("/a?", "/a"),
        ("/a%20b", "/a%20b"),
        ("/%C3%A4", "/%C3%A4"),
        ("/a:b@c", "/a:b@c"),
        ("/...", "/..."),
        ("/a?q=a|b%00", "/a"),
    ],
)
def test_canonical(target, path):
    assert canonical_path(target) == path


@pytest.mark.parametrize(
    "target",
    [
        "",
        "a",
        "*",
        "http://h/a",
        "//a",
        "/a//b",
        "/./a",
        "/a/..",
        "/..",
        "/a/.",
        "/%2e%2e/a",
        "/%2E/a",
        "/a%2fb",
        "/a%5Cb",
        "/a\\b",
        "/a%00",
        "/a%0d",
        "/a%7F",
        "/a b",
        "/a\x00",
        "/a\r\nb",
        "/\u00e4",
        "/a#b",
        "/a?b#c",
        "/a?b c",
        "/a?\u00e4",
        "/%",
        "/%4",
        "/%zz",
        "/%41",
        "/%7e",
        "/%ff",
        "/%C3",
        "/a;/..",
        "/" + "a" * 20_000,
    ],
)
def test_not_canonical(target):
    with pytest.raises(TargetRefused):
        canonical_path(target)
