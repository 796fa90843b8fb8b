"""Every deliberate error of the gateway: what happened, whose fault it is, and whether a repeat can help.

Classes only; `gateway.http.problems` alone turns one into an HTTP answer. The detail of an error is written by us and
never echoes input, SQL, host names or tokens.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Origin(enum.StrEnum):
    """Who caused the error."""

    CLIENT = "client"
    GATEWAY = "gateway"
    UNIT = "unit"
    UPSTREAM = "upstream"


class Delivery(enum.StrEnum):
    """What is known about whether a unit executed the request."""

    NOT_DISPATCHED = "not_dispatched"
    UNKNOWN = "unknown"
    DISPATCHED = "dispatched"
    RESPONSE_STARTED = "response_started"


class Retry(enum.Enum):
    """May the caller send the same request again?"""

    NEVER = "never"
    ANY = "any method"
    IDEMPOTENT = "an idempotent method, or a request with a kept idempotency key"
    SAFE = "GET and HEAD"
    BY_DELIVERY = "any method if certainly not dispatched, else as IDEMPOTENT"


class GatewayError(Exception):
    """A failure the gateway answers on purpose."""

    code: ClassVar[str] = "internal"
    origin: ClassVar[Origin] = Origin.GATEWAY
    retry: ClassVar[Retry] = Retry.NEVER

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after_s: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        close: bool = False,
        **members: object,
    ) -> None:
        """Shapes: `members` are extra problem members, JSON values; `close` ends the caller's connection."""
        super().__init__(detail or self.code)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.headers = headers
        self.close = close
        self.members = members


class ClientError(GatewayError):
    """The request is at fault."""

    origin = Origin.CLIENT


class TokenRequestRefused(ClientError):
    """A request to the token service that it does not grant.

    Source: RFC 6749, 5.2: the members `error` and `error_description` are what its clients read.
    """

    code = "token-request-refused"

    def __init__(self, error: str = "invalid_request", detail: str = "") -> None:
        super().__init__(detail, error=error, error_description=detail)


class ClientUnauthenticated(TokenRequestRefused):
    """The sender did not prove to be a client of the token service."""

    code = "client-unauthenticated"

    def __init__(self) -> None:
        # SEC: one text for whatever is wrong, also where there is no such client.
        super().__init__("invalid_client", "The client did not prove who it is")


# --- the request as bytes


class BadRequest(ClientError):
    code = "bad-request"


class BadFraming(ClientError):
    """Conflicting lengths, a bad Host, a broken chunk, a truncated body: the connection cannot be read on."""

    code = "bad-framing"


class BadTarget(ClientError):
    """The request target is not in canonical form."""

    code = "bad-target"


class QueryRefused(ClientError):
    """A query parameter that the route does not declare, or one given twice."""

    code = "query-refused"


class TargetTooLong(ClientError):
    code = "target-too-long"


class HeadersTooLarge(ClientError):
    code = "headers-too-large"


class BodyTooLarge(ClientError):
    code = "body-too-large"


class RequestTimeout(ClientError):
    """The client took longer to send its request than it may."""

    code = "request-timeout"


class NotImplementedHere(ClientError):
    """A method, transfer coding or upgrade that is not served."""

    code = "not-implemented"


class VersionNotSupported(ClientError):
    """An HTTP version other than 1.0 and 1.1, HTTP/2 with prior knowledge included."""

    code = "http-version-not-supported"


class ExpectationFailed(ClientError):
    """An `Expect` other than 100-continue."""

    code = "expectation-failed"


class BadJson(ClientError):
    code = "not-json"


class Unprocessable(ClientError):
    """A JSON body that is not as the route declares; `errors` lists {pointer, detail}."""

    code = "unprocessable"


class ClientDisconnected(ClientError):
    """The caller went away: nobody is left to answer; logged as 499."""

    code = "client-disconnected"


# --- who and what


class TokenMissing(ClientError):
    code = "token-missing"


class TokenInvalid(ClientError):
    """A bearer token that is refused; `expired` tells the one case a client can mend by itself."""

    code = "token-invalid"

    def __init__(self, detail: str = "", *, expired: bool = False, **members: object) -> None:
        super().__init__(detail, **members)  # type: ignore[arg-type]
        self.expired = expired


class LoginTooOld(ClientError):
    """The token is good, but whoever it is of logged in too long ago for this; `max_age_s` would do.

    Source: RFC 9470.
    """

    code = "login-too-old"

    def __init__(self, max_age_s: int) -> None:
        super().__init__(f"A login of the last {max_age_s} seconds is needed", max_age_s=max_age_s)
        self.max_age_s = max_age_s


class TokenAmbiguous(ClientError):
    """Two tokens, a doubled Authorization field or a token in the query."""

    code = "token-ambiguous"


class Forbidden(ClientError):
    """`code` of the instance is the rule class that refused: role, scope, unit or patient binding."""

    code = "forbidden"


class EnrolmentRefused(ClientError):
    """A unit's enrolment code is wrong, used, expired or another unit's: which of them, the answer does not say."""

    code = "enrolment-refused"


class RoleRefused(Forbidden):
    code = "role-refused"


class PermissionRefused(Forbidden):
    code = "permission-refused"


class ScopeRefused(Forbidden):
    """The token's scopes do not allow it; `scope` is one that would, if there is one."""

    code = "scope-refused"

    def __init__(self, scope: str = "") -> None:
        super().__init__()
        self.scope = scope


class BindingRefused(Forbidden):
    code = "binding-refused"


class PurposeRefused(Forbidden):
    """The request has no purpose of use, or none that the route takes."""

    code = "purpose-refused"


class ConsentRefused(Forbidden):
    """The patient's consent does not cover the request."""

    code = "consent-refused"


class SearchRefused(Forbidden):
    """A search parameter that would reach beyond the caller's own records: chained, including, or with a modifier."""

    code = "search-refused"


class NotFound(ClientError):
    code = "not-found"


class MethodNotMapped(ClientError):
    code = "method-not-allowed"


class Conflict(ClientError):
    code = "conflict"


class StaleVersion(Conflict):
    """A change made from a version that is not the newest any more; `current` says which one is."""

    code = "stale-version"


class PreconditionRequired(ClientError):
    """A change that does not say from which version it was made."""

    code = "precondition-required"


class MediaTypeRefused(ClientError):
    """A body in another format than the one that is read."""

    code = "media-type-refused"


class UpgradeRequired(ClientError):
    code = "upgrade-required"


class RateLimited(ClientError):
    code = "rate-limited"
    retry = Retry.ANY


# --- the gateway and what it depends on


class InternalError(GatewayError):
    code = "internal"


class Draining(GatewayError):
    code = "draining"
    retry = Retry.ANY


class GraceEnded(GatewayError):
    """The request still ran when the worker had to leave."""

    code = "grace-ended"
    retry = Retry.IDEMPOTENT


class Overloaded(GatewayError):
    code = "overloaded"
    retry = Retry.ANY


class DatabaseUnavailable(GatewayError):
    code = "database-unavailable"
    retry = Retry.ANY


class DatabaseInterrupted(DatabaseUnavailable):
    """The connection broke after the statement was sent: it may have run, and even been committed."""

    code = "database-interrupted"
    retry = Retry.IDEMPOTENT


class DatabaseTimeout(GatewayError):
    code = "database-timeout"
    retry = Retry.IDEMPOTENT


class KeysUnavailable(GatewayError):
    code = "keys-unavailable"
    retry = Retry.ANY


class ConsentUnavailable(GatewayError):
    """Whoever knows of consents gave no answer, so nothing was dispatched."""

    code = "consent-unavailable"
    retry = Retry.ANY


class AuditUnavailable(GatewayError):
    """The audit intent could not be made durable, so nothing was dispatched."""

    code = "audit-unavailable"
    retry = Retry.ANY


class AuditSearchUnavailable(GatewayError):
    """This gateway has no login that may read the trail."""

    code = "audit-search-unavailable"


class OperatorUnavailable(GatewayError):
    """The gateway has no login for what operators change."""

    code = "operator-unavailable"
    retry = Retry.IDEMPOTENT


class WorkersUnavailable(GatewayError):
    """A worker of this machine does not answer its siblings."""

    code = "workers-unavailable"
    retry = Retry.IDEMPOTENT


class AuditOutcomeUnavailable(GatewayError):
    """The request ran, but its audit outcome could not be made durable."""

    code = "audit-outcome-unavailable"
    retry = Retry.IDEMPOTENT


class ConfigUnavailable(GatewayError):
    """No configuration is in force yet: the database that has it is away, and the disk has no last good one."""

    code = "config-unavailable"
    retry = Retry.ANY


class ConfigRefused(GatewayError):
    """A configuration document with faults; `faults` is a list of `path: reason`."""

    code = "config-refused"

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


# --- upstreams in the cloud


class UpstreamError(GatewayError):
    origin = Origin.UPSTREAM


class UpstreamUnreachable(UpstreamError):
    """Refused, or reset before a byte of the request was written."""

    code = "upstream-unreachable"
    retry = Retry.ANY


class UpstreamBroken(UpstreamError):
    """Reset or a bad answer after the request was written."""

    code = "upstream-broken"
    retry = Retry.IDEMPOTENT


class UpstreamTimeout(UpstreamError):
    code = "upstream-timeout"
    retry = Retry.IDEMPOTENT


class UpstreamUnavailable(UpstreamError):
    """Breaker open or no healthy endpoint."""

    code = "upstream-unavailable"
    retry = Retry.ANY


# --- relay (Type B)


class RelayError(GatewayError):
    """A relayed request without a unit's answer.

    Shapes: `delivery` is one of Delivery; `unit` the unit's id; further members `last_seen` (RFC 3339 UTC) and `why`.
    """

    delivery: Delivery = Delivery.NOT_DISPATCHED

    def __init__(self, unit: str, detail: str = "", *, delivery: Delivery | None = None, **members: object) -> None:
        super().__init__(detail, **members)  # type: ignore[arg-type]
        self.unit = unit
        if delivery is not None:
            self.delivery = delivery


class UnitUnknown(RelayError):
    code = "unit-unknown"
    origin = Origin.CLIENT


class UnitNotConnected(RelayError):
    code = "unit-not-connected"
    origin = Origin.UNIT
    retry = Retry.ANY


class RelayPathUnavailable(RelayError):
    code = "relay-path-unavailable"
    retry = Retry.ANY


class UnitOverloaded(RelayError):
    code = "unit-overloaded"
    origin = Origin.UNIT
    retry = Retry.BY_DELIVERY


class UnitQueueTimeout(RelayError):
    code = "unit-queue-timeout"
    retry = Retry.ANY


class UnitAcceptTimeout(RelayError):
    code = "unit-accept-timeout"
    origin = Origin.UNIT
    retry = Retry.IDEMPOTENT
    delivery = Delivery.UNKNOWN


class UnitResponseTimeout(RelayError):
    code = "unit-response-timeout"
    origin = Origin.UNIT
    retry = Retry.IDEMPOTENT
    delivery = Delivery.DISPATCHED


class UnitRefused(RelayError):
    code = "unit-refused"
    origin = Origin.UNIT
    retry = Retry.ANY


class UnitUpstreamUnreachable(RelayError):
    code = "unit-upstream-unreachable"
    origin = Origin.UNIT
    retry = Retry.ANY


class UnitUpstreamTimeout(RelayError):
    code = "unit-upstream-timeout"
    origin = Origin.UNIT
    retry = Retry.IDEMPOTENT
    delivery = Delivery.DISPATCHED


class UnitDisconnected(RelayError):
    code = "unit-disconnected"
    origin = Origin.UNIT
    retry = Retry.BY_DELIVERY
    delivery = Delivery.UNKNOWN


class UnitTruncated(RelayError):
    """Lost after the response began: the status is out, so the transfer is cut."""

    code = "unit-truncated"
    origin = Origin.UNIT
    retry = Retry.SAFE
    delivery = Delivery.RESPONSE_STARTED


class UnitBadResponse(RelayError):
    code = "unit-bad-response"
    origin = Origin.UNIT
    retry = Retry.IDEMPOTENT
    delivery = Delivery.DISPATCHED


class UnitResponseTooLarge(RelayError):
    code = "unit-response-too-large"
    origin = Origin.UNIT
    delivery = Delivery.DISPATCHED


class UnitRequestTooLarge(RelayError):
    """The body is larger than the unit takes for this service."""

    code = "unit-request-too-large"
    origin = Origin.CLIENT


# --- idempotency keys, kept by the unit's agent


class IdempotencyKeyReused(RelayError):
    """The key was used for another method, target or body."""

    code = "idempotency-key-reused"
    origin = Origin.CLIENT


class IdempotencyInProgress(RelayError):
    """The first request with this key still runs; its answer will be given for the key."""

    code = "idempotency-in-progress"
    origin = Origin.CLIENT
    retry = Retry.ANY


class OutcomeUnknown(RelayError):
    """A request with this key was sent to the local service and its answer is not known; it is not run again."""

    code = "outcome-unknown"
    origin = Origin.UNIT
    delivery = Delivery.UNKNOWN


class IdempotencyAnswerNotKept(RelayError):
    """The request with this key ran and was answered, but the answer was too large to keep; it is not run again."""

    code = "idempotency-answer-not-kept"
    origin = Origin.UNIT
    delivery = Delivery.DISPATCHED


class IdempotencyUnavailable(RelayError):
    """The agent cannot write its ledger now: a request with a key is not run, one without would be."""

    code = "idempotency-unavailable"
    origin = Origin.UNIT
    retry = Retry.ANY
