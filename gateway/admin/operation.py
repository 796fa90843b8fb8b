"""One operation of the Admin API: the declaration that routes it, decodes what is sent, and describes it in OpenAPI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.admin.desk import Desk
    from gateway.config.snapshot import Snapshot

BASE: Final = "/admin/v1"


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request's body, path or query is decoded to: nothing that is not declared."""


class Nothing(Body, frozen=True):
    """No parameters."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operation.

    Shapes: `author` is the token's subject; `path`, `query` and `body` are of the operation's types; `if_match` is the
    tag without its quotes; `retry_key` what the caller sent as Idempotency-Key.
    """

    author: str
    request_id: str
    snapshot: Snapshot
    path: Any = None
    query: Any = None
    body: Any = None
    if_match: str | None = None
    retry_key: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What an operation answers. Shapes: `tag` is the ETag's text; None: made of the answer."""

    answer: Any
    status: int = 200
    tag: str | None = None
    location: str = ""


@dataclass(slots=True)
class Change:
    """What the audit trail keeps of a change, filled by the operation. Shapes: JSON values, or a digest."""

    target: str = ""
    reason: str = ""
    before: object = None
    after: object = None


Run = Callable[["Desk", Call], Reply]
RunChange = Callable[["Desk", Call, Change], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Shapes: `errors` are those that it raises beside what every operation may; `status` of its answer; `also` other
    good statuses with the same body.
    """

    name: str
    method: str
    path: str
    summary: str
    permission: str | None
    answer: Any
    run: Run | None = None
    change: RunChange | None = None
    query: type[Body] = Nothing
    params: type[Body] = Nothing
    body: type[Body] | None = None
    status: int = 200
    also: tuple[int, ...] = ()
    errors: tuple[type[GatewayError], ...] = ()
    conditional: bool = False
    """Takes If-Match."""
    keyed: bool = False
    """Takes Idempotency-Key."""
    media_type: str = "application/json"
    tags: tuple[str, ...] = field(default=(), compare=False)

    @property
    def template(self) -> str:
        return BASE + self.path
