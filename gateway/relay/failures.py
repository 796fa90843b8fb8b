"""From how a stream ended to the error its caller gets: one row a code, ANSWERS first by what is known of delivery."""

from __future__ import annotations

from typing import Final

from gateway.errors import (
    Delivery,
    IdempotencyAnswerNotKept,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    IdempotencyUnavailable,
    OutcomeUnknown,
    RelayError,
    UnitAcceptTimeout,
    UnitBadResponse,
    UnitDisconnected,
    UnitOverloaded,
    UnitQueueTimeout,
    UnitRefused,
    UnitRequestTooLarge,
    UnitResponseTimeout,
    UnitResponseTooLarge,
    UnitUpstreamTimeout,
    UnitUpstreamUnreachable,
)
from gateway.relay.frames import RefusalReason, ResetCode
from gateway.relay.link import DROPPED, LOST, Failure

_TIMEOUTS: Final[dict[Delivery, type[RelayError]]] = {
    Delivery.NOT_DISPATCHED: UnitQueueTimeout,
    Delivery.UNKNOWN: UnitAcceptTimeout,
    Delivery.DISPATCHED: UnitResponseTimeout,
    Delivery.RESPONSE_STARTED: UnitResponseTimeout,
}

_CODES: Final[dict[int, tuple[type[RelayError], type[RelayError]]]] = {
    # code: the error if the request was certainly not dispatched, and otherwise
    LOST: (UnitDisconnected, UnitDisconnected),
    DROPPED: (UnitOverloaded, UnitOverloaded),
    ResetCode.CANCEL: (UnitRefused, UnitDisconnected),
    ResetCode.REFUSED: (UnitRefused, UnitBadResponse),
    ResetCode.UPSTREAM_CONNECT: (UnitUpstreamUnreachable, UnitBadResponse),
    ResetCode.UPSTREAM_TIMEOUT: (UnitUpstreamTimeout, UnitUpstreamTimeout),
    ResetCode.UPSTREAM_PROTOCOL: (UnitBadResponse, UnitBadResponse),
    ResetCode.TOO_LARGE: (UnitRefused, UnitResponseTooLarge),
    ResetCode.PROTOCOL: (UnitRefused, UnitBadResponse),
    ResetCode.INTERNAL: (UnitRefused, UnitBadResponse),
    ResetCode.SHED: (UnitOverloaded, UnitBadResponse),
}

_REASONS: Final[dict[tuple[int, str], type[RelayError]]] = {
    (ResetCode.REFUSED, RefusalReason.KEY_REUSED): IdempotencyKeyReused,
    (ResetCode.REFUSED, RefusalReason.KEY_IN_PROGRESS): IdempotencyInProgress,
    (ResetCode.REFUSED, RefusalReason.OUTCOME_UNKNOWN): OutcomeUnknown,
    (ResetCode.REFUSED, RefusalReason.ANSWER_NOT_KEPT): IdempotencyAnswerNotKept,
    (ResetCode.REFUSED, RefusalReason.LEDGER_UNAVAILABLE): IdempotencyUnavailable,
    (ResetCode.TOO_LARGE, RefusalReason.REQUEST_TOO_LARGE): UnitRequestTooLarge,
}
"""Refusals that say more than their code."""

NOT_CONNECTED: Final = "not-connected"
STREAMS: Final = "streams"
DRAINING: Final = "draining"
"""Reasons of REFUSED that say more than that the unit does not want the request."""


def error_of(unit: str, failure: Failure) -> RelayError:
    """The error for a stream that ended without a whole answer, none of which has been passed on."""
    delivery = failure.delivery
    if failure.code in (ResetCode.DEADLINE, ResetCode.FLOW_CONTROL):
        return _TIMEOUTS[delivery](unit, delivery=delivery)
    named = _REASONS.get((failure.code, failure.reason))
    if named is not None:
        return _named(named, unit, delivery)
    certain = delivery is Delivery.NOT_DISPATCHED
    if certain and failure.code == ResetCode.REFUSED and failure.reason == STREAMS:
        return UnitOverloaded(unit, retry_after_s=1)
    refused, otherwise = _CODES.get(failure.code, (UnitRefused, UnitBadResponse))
    kind = refused if certain else otherwise
    if kind is UnitOverloaded:
        return kind(unit, delivery=delivery, retry_after_s=1)
    if kind is UnitDisconnected or delivery is Delivery.UNKNOWN:
        return kind(unit, delivery=delivery)
    return kind(unit)


def _named(kind: type[RelayError], unit: str, delivery: Delivery) -> RelayError:
    """What a reason says of the key's first request outweighs what is known of this one."""
    return kind(unit, delivery=delivery) if kind.delivery is Delivery.NOT_DISPATCHED else kind(unit)


def may_go_elsewhere(failure: Failure) -> bool:
    """Was the request certainly not dispatched, for a reason that another connection need not have?"""
    if failure.delivery is not Delivery.NOT_DISPATCHED:
        return False
    return failure.lost or (failure.code == ResetCode.REFUSED and failure.reason in (NOT_CONNECTED, DRAINING))
