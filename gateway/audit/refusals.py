"""What the gateway's own resources refuse leaves an event with the same detail as what they allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.context import RequestContext
from gateway.errors import AuditUnavailable, GatewayError, Origin, RateLimited


def ending(ctx: RequestContext, error: GatewayError | None) -> tuple[str, str]:
    """How a request ends with that error, or none, and by which rule."""
    outcome = "allowed" if error is None else "refused" if error.origin is Origin.CLIENT else "failed"
    return outcome, error.code if error is not None and ctx.rule in ("", "allowed") else ctx.rule


@contextmanager
def noting(note: Callable[..., None], ctx: RequestContext, kind: str, about: dict[str, str]) -> Iterator[None]:
    """Leave an event of `kind` if what is done here ends with an error.

    Shapes: `note` is AuditTrail.note; `about` what is known by then: members of the event and of its detail.
    Raises: AuditUnavailable in place of the error.
    """
    try:
        yield
    except GatewayError as error:
        # SEC: what a limit refuses may come in floods; the limit is what the trail is guarded by.
        if not isinstance(error, RateLimited | AuditUnavailable):
            outcome, rule = ending(ctx, error)
            note(kind, outcome, ctx=ctx, rule=rule, **about)
        raise
