"""The one place that turns an error into an HTTP answer: RFC 9457 problem details.

A body echoes no input, no SQL, no host name and no token: its detail is our own text.
"""

from __future__ import annotations

import http
from dataclasses import dataclass
from functools import lru_cache

import orjson

from gateway import errors as e

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:caregate:problem:"
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
SAFE = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Row:
    """How one error class is answered."""

    status: int
    title: str


TABLE: dict[type[e.GatewayError], Row] = {
    e.BadRequest: Row(400, "Bad request"),
    e.BadFraming: Row(400, "Bad message framing"),
    e.BadTarget: Row(400, "Request target is not in canonical form"),
    e.QueryRefused: Row(400, "Query parameter refused"),
    e.TargetTooLong: Row(414, "Request target too long"),
    e.HeadersTooLarge: Row(431, "Header fields too large"),
    e.BodyTooLarge: Row(413, "Body too large"),
    e.RequestTimeout: Row(408, "Request took too long to arrive"),
    e.NotImplementedHere: Row(501, "Not implemented"),
    e.VersionNotSupported: Row(505, "HTTP version not supported"),
    e.ExpectationFailed: Row(417, "Expectation failed"),
    e.BadJson: Row(400, "Body is not JSON"),
    e.Unprocessable: Row(422, "Body is not as the route declares"),
    e.ClientDisconnected: Row(499, "Caller went away"),
    e.TokenMissing: Row(401, "Token required"),
    e.TokenInvalid: Row(401, "Token refused"),
    e.LoginTooOld: Row(401, "Login too old"),
    e.TokenRequestRefused: Row(400, "Token request refused"),
    e.ClientUnauthenticated: Row(401, "Client authentication required"),
    e.TokenAmbiguous: Row(400, "More than one token, or a token in the query"),
    e.Forbidden: Row(403, "Forbidden"),
    e.EnrolmentRefused: Row(403, "Enrolment refused"),
    e.RoleRefused: Row(403, "Role not allowed"),
    e.PermissionRefused: Row(403, "Permission not granted"),
    e.ScopeRefused: Row(403, "Scope not granted"),
    e.BindingRefused: Row(403, "Record or unit not bound to the caller"),
    e.PurposeRefused: Row(403, "Purpose of use not accepted"),
    e.ConsentRefused: Row(403, "Consent not given"),
    e.SearchRefused: Row(403, "Search parameter not allowed to the caller"),
    e.NotFound: Row(404, "Not found"),
    e.MethodNotMapped: Row(405, "Method not allowed"),
    e.Conflict: Row(409, "Conflict"),
    e.StaleVersion: Row(409, "Made from an older version"),
    e.MediaTypeRefused: Row(415, "Body in another format than JSON"),
    e.PreconditionRequired: Row(428, "Version required"),
    e.UpgradeRequired: Row(426, "Upgrade required"),
    e.RateLimited: Row(429, "Rate limit exceeded"),
    e.InternalError: Row(500, "Internal error"),
    e.Draining: Row(503, "Gateway draining"),
    e.GraceEnded: Row(503, "Gateway left before the answer"),
    e.Overloaded: Row(503, "Gateway overloaded"),
    e.DatabaseUnavailable: Row(503, "Database unavailable"),
    e.DatabaseInterrupted: Row(503, "Database connection lost"),
    e.DatabaseTimeout: Row(503, "Database too slow"),
    e.KeysUnavailable: Row(503, "Keys unavailable"),
    e.ConsentUnavailable: Row(503, "Consents unavailable"),
    e.AuditUnavailable: Row(503, "Audit unavailable"),
    e.AuditSearchUnavailable: Row(503, "Audit trail cannot be read here"),
    e.ConfigUnavailable: Row(503, "Configuration unavailable"),
    e.OperatorUnavailable: Row(503, "Operator login unavailable"),
    e.WorkersUnavailable: Row(503, "Workers unavailable"),
    e.AuditOutcomeUnavailable: Row(503, "Audit outcome not recorded"),
    e.ConfigRefused: Row(422, "Configuration refused"),
    e.UpstreamUnreachable: Row(502, "Upstream unreachable"),
    e.UpstreamBroken: Row(502, "Upstream gave no valid answer"),
    e.UpstreamTimeout: Row(504, "Upstream too slow"),
    e.UpstreamUnavailable: Row(503, "Upstream unavailable"),
    e.UnitUnknown: Row(404, "Unit unknown"),
    e.UnitNotConnected: Row(503, "client not connected"),
    e.RelayPathUnavailable: Row(503, "Relay path unavailable"),
    e.UnitOverloaded: Row(503, "Unit overloaded"),
    e.UnitQueueTimeout: Row(504, "Deadline passed while queued"),
    e.UnitAcceptTimeout: Row(504, "Unit did not accept in time"),
    e.UnitResponseTimeout: Row(504, "Unit did not answer in time"),
    e.UnitRefused: Row(503, "Unit refused"),
    e.UnitUpstreamUnreachable: Row(502, "Unit's local service unreachable"),
    e.UnitUpstreamTimeout: Row(504, "Unit's local service too slow"),
    e.UnitDisconnected: Row(502, "Unit disconnected"),
    e.UnitTruncated: Row(502, "Unit disconnected during the answer"),
    e.UnitBadResponse: Row(502, "Unit gave no valid answer"),
    e.UnitResponseTooLarge: Row(502, "Unit's answer too large"),
    e.UnitRequestTooLarge: Row(413, "Body too large for this unit"),
    e.IdempotencyKeyReused: Row(422, "Idempotency key was used for another request"),
    e.IdempotencyInProgress: Row(409, "Request with this idempotency key still runs"),
    e.OutcomeUnknown: Row(409, "Outcome of the request with this idempotency key is not known"),
    e.IdempotencyAnswerNotKept: Row(409, "Answer for this idempotency key was not kept"),
    e.IdempotencyUnavailable: Row(503, "Idempotency ledger unavailable"),
}

_RETRY_AFTER_S: dict[type[e.GatewayError], int] = {
    e.Draining: 1,
    e.GraceEnded: 1,
    e.Overloaded: 1,
    e.DatabaseUnavailable: 1,
    e.DatabaseInterrupted: 1,
    e.DatabaseTimeout: 1,
    e.KeysUnavailable: 5,
    e.ConsentUnavailable: 1,
    e.AuditUnavailable: 1,
    e.ConfigUnavailable: 1,
    e.UpstreamUnavailable: 1,
    e.RelayPathUnavailable: 1,
    e.UnitNotConnected: 5,
    e.UnitOverloaded: 1,
    e.UnitRefused: 1,
    e.IdempotencyInProgress: 1,
    e.IdempotencyUnavailable: 5,
}
_FALLBACK = Row(500, "Internal error")


def row_of(error: e.GatewayError) -> Row:
    """The answer's status and title for an error, by its class or the nearest base that has a row."""
    for cls in type(error).__mro__:
        row = TABLE.get(cls)
        if row is not None:
            return row
    return _FALLBACK


def media_type(error: e.GatewayError) -> str:
    """Source: RFC 6749, 5.2: clients of the token service read JSON; the problem's members are in it all the same."""
    return "application/json" if isinstance(error, e.TokenRequestRefused) else MEDIA_TYPE


def retryable(error: e.GatewayError, method: str, *, keyed: bool = False) -> bool:
    """May the caller repeat this request? `keyed`: it carried an idempotency key that the unit keeps."""
    rule = error.retry
    if rule is e.Retry.BY_DELIVERY:
        delivery = getattr(error, "delivery", e.Delivery.UNKNOWN)
        rule = e.Retry.ANY if delivery is e.Delivery.NOT_DISPATCHED else e.Retry.IDEMPOTENT
    if rule is e.Retry.ANY:
        return True
    if rule is e.Retry.IDEMPOTENT:
        return keyed or method in IDEMPOTENT
    return rule is e.Retry.SAFE and method in SAFE


def body(error: e.GatewayError, request_id: str, method: str = "", *, keyed: bool = False) -> bytes:
    """The problem document of an error."""
    row = row_of(error)
    document: dict[str, object] = {
        "type": TYPE_PREFIX + error.code,
        "title": row.title,
        "status": row.status,
        "detail": error.detail or row.title,
        "instance": f"urn:uuid:{request_id}",
        "request_id": request_id,
        "origin": error.origin.value,
        "retryable": retryable(error, method, keyed=keyed),
    }
    if isinstance(error, e.RelayError):
        document["unit"] = error.unit
        document["delivery"] = error.delivery.value
    document.update(error.members)
    return orjson.dumps(document)


def fields(error: e.GatewayError, realm: str = "caregate") -> list[tuple[str, str]]:
    """Header fields that an error's answer must carry, beside those every answer has."""
    out = list(error.headers)
    challenge = _challenge(error, realm)
    if challenge:
        out.append(("WWW-Authenticate", challenge))
    retry_after_s = error.retry_after_s if error.retry_after_s is not None else _RETRY_AFTER_S.get(type(error))
    if retry_after_s is not None:
        out.append(("Retry-After", str(max(1, retry_after_s))))
    if isinstance(error, e.RelayError):
        out.append(("Relay-Source", "gateway"))
    if error.close or isinstance(error, (e.BadFraming, e.Draining)):
        out.append(("Connection", "close"))
    return out


def _challenge(error: e.GatewayError, realm: str) -> str | None:
    """The RFC 6750 challenge of an error about tokens, else None."""
    prefix = f'Bearer realm="{realm}"'
    if isinstance(error, (e.TokenMissing, e.ClientUnauthenticated)):
        return prefix
    if isinstance(error, e.TokenInvalid):
        description = "The token has expired" if error.expired else "The token is not valid here"
        return f'{prefix}, error="invalid_token", error_description="{description}"'
    if isinstance(error, e.LoginTooOld):
        return f'{prefix}, error="insufficient_user_authentication", max_age="{error.max_age_s}"'
    if isinstance(error, e.TokenAmbiguous):
        return f'{prefix}, error="invalid_request", error_description="{error.detail or "Send one token"}"'
    if isinstance(error, e.ScopeRefused) and error.scope:
        return f'{prefix}, error="insufficient_scope", scope="{error.scope}"'
    if isinstance(error, e.Forbidden):
        return f'{prefix}, error="insufficient_scope"'
    return None


@lru_cache(maxsize=1024)
def reason(status: int) -> str:
    """The reason phrase of a status code."""
    if status == 499:
        return "Client Closed Request"
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def render(
    error: e.GatewayError, request_id: str, method: str = "", realm: str = "caregate"
) -> tuple[str, list[tuple[str, str]], bytes]:
    """A whole answer for an error found before the application runs.

    Shapes: (status line without version such as "400 Bad Request", header fields, body).
    """
    row = row_of(error)
    payload = body(error, request_id, method)
    headers = [
        ("Content-Type", MEDIA_TYPE),
        ("Content-Length", str(len(payload))),
        ("Cache-Control", "no-store"),
        ("X-Request-Id", request_id),
        *fields(error, realm),
    ]
    return f"{row.status} {reason(row.status)}", headers, payload
