"""Errors become answers by one table: status, problem document, fields."""

from __future__ import annotations

import inspect

import orjson
import pytest

from gateway import errors as e
from gateway.http import problems

ID = "0f0e0d0c-0b0a-4908-8706-050403020100"
CLASSES = [c for _, c in inspect.getmembers(e, inspect.isclass) if issubclass(c, e.GatewayError)]
ABSTRACT = {e.GatewayError, e.ClientError, e.RelayError, e.UpstreamError}


def make(cls: type[e.GatewayError], **members: object) -> e.GatewayError:
    if issubclass(cls, e.RelayError):
        return cls("unit-a", **members)
    if cls is e.LoginTooOld:
        return cls(300, **members)
    return cls(["a: b"]) if cls is e.ConfigRefused else cls(**members)


@pytest.mark.parametrize("cls", [c for c in CLASSES if c not in ABSTRACT], ids=lambda c: c.__name__)
def test_every_error_has_its_row_and_a_whole_document(cls):
    assert cls in problems.TABLE
    status, headers, body = problems.render(make(cls), ID, "GET")
    document = orjson.loads(body)
    assert status.startswith(f"{document['status']} ")
    assert document["type"] == f"urn:caregate:problem:{cls.code}"
    assert document["instance"] == f"urn:uuid:{ID}"
    assert document["request_id"] == ID
    assert document["origin"] in {"client", "gateway", "unit", "upstream"}
    assert isinstance(document["retryable"], bool)
    assert dict(headers)["X-Request-Id"] == ID
    assert dict(headers)["Content-Length"] == str(len(body))
    if issubclass(cls, e.RelayError):
        assert document["delivery"] == cls.delivery.value
        assert document["unit"] == "unit-a"
        assert dict(headers)["Relay-Source"] == "gateway"


def test_codes_are_distinct():
    codes = [c.code for c in CLASSES if c not in ABSTRACT]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(e.TokenMissing(), 'Bearer realm="r"', id="no token: no error member"),
        pytest.param(
            e.TokenInvalid(expired=True),
            'Bearer realm="r", error="invalid_token", error_description="The token has expired"',
            id="expired is told",
        ),
        pytest.param(
            e.TokenInvalid(),
            'Bearer realm="r", error="invalid_token", error_description="The token is not valid here"',
            id="all else is one",
        ),
        pytest.param(e.RoleRefused(), 'Bearer realm="r", error="insufficient_scope"', id="403"),
        pytest.param(e.NotFound(), None, id="404 has none"),
    ],
)
def test_challenge(error, expected):
    assert dict(problems.fields(error, "r")).get("WWW-Authenticate") == expected


@pytest.mark.parametrize(
    ("error", "method", "keyed", "expected"),
    [
        pytest.param(e.UnitNotConnected("u"), "POST", False, True, id="not dispatched: any method"),
        pytest.param(
            e.UnitDisconnected("u", delivery=e.Delivery.NOT_DISPATCHED), "POST", False, True, id="by delivery"
        ),
        pytest.param(e.UnitDisconnected("u"), "POST", False, False, id="unknown delivery, POST"),
        pytest.param(e.UnitDisconnected("u"), "PUT", False, True, id="unknown delivery, idempotent"),
        pytest.param(e.UnitDisconnected("u"), "POST", True, True, id="unknown delivery, keyed"),
        pytest.param(e.UnitTruncated("u"), "PUT", False, False, id="response started: only safe methods"),
        pytest.param(e.UnitTruncated("u"), "GET", False, True, id="response started, GET"),
        pytest.param(e.UnitResponseTooLarge("u"), "GET", True, False, id="never"),
    ],
)
def test_retryable(error, method, keyed, expected):
    assert problems.retryable(error, method, keyed=keyed) is expected


@pytest.mark.parametrize("cls", [e.Draining, e.DatabaseUnavailable, e.UnitOverloaded, e.AuditUnavailable])
def test_retry_after_of_a_dependency(cls):
    assert int(dict(problems.fields(make(cls)))["Retry-After"]) >= 1


def test_outcome_not_recorded_has_no_retry_after():
    assert "Retry-After" not in dict(problems.fields(e.AuditOutcomeUnavailable()))


@pytest.mark.parametrize("error", [e.BadFraming(), e.Draining(), e.BodyTooLarge(close=True)])
def test_connection_is_closed_where_the_framing_is_lost(error):
    assert dict(problems.fields(error))["Connection"] == "close"
