"""`POST /relay/v1/enrol` and `POST /relay/v1/keys`: a unit registers a public key, by a one-time code or its old key.

```
enrol  {unit, alg, public_key, proof}           proof: a JWS under the new key,
                                                {iss = sub = unit, aud = unit-enrolment, iat, exp, jti, code}
keys   {alg, public_key, proof, context: bool}  Authorization: Bearer, a unit token of the old key;
                                                proof: {iss = sub = unit, aud = unit-rotation, iat, exp, jti}
201    {unit, kid, context_key, overlap_s}      context_key in base64url, or null; overlap_s null at an enrolment
```
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import falcon
import msgspec
import orjson

from fastpath.bucket import BucketTable
from gateway.audit.refusals import noting
from gateway.context import RequestContext
from gateway.errors import BadRequest, EnrolmentRefused, GatewayError, RateLimited
from gateway.http.admission import address_block
from gateway.relay.endpoint import UnitTokens, unit_bearer
from gateway.relay.request import RequestBody, content_length
from gateway.units import code
from gateway.units.model import NewKey
from gateway.units.proof import prove
from gateway.units.roster import Roster

MAX_BODY_BYTES: Final = 16_384
ENROLLED: Final = "unit.enrolled"
ROTATED: Final = "unit.rotated"
ENROL_AUDIENCE: Final = "unit-enrolment"
ROTATE_AUDIENCE: Final = "unit-rotation"
CONTEXT_AFTER_S: Final = 60.0
"""Until the gateway signs with a new context key: the agent needs that long to hand it to whoever checks."""
T = TypeVar("T")


class Store(Protocol):
    """See store.units.UnitStore."""

    def enrol(self, unit: str, digest: bytes, key: NewKey, *, with_context: bool) -> str | None: ...

    def rotate(
        self,
        unit: str,
        old_kid: str,
        key: NewKey,
        *,
        overlap_s: float,
        with_context: bool,
        context_after_s: float | None,
    ) -> str | None: ...


class EnrolRequest(msgspec.Struct, frozen=True):
    unit: str
    alg: str
    public_key: str
    proof: str


class RotateRequest(msgspec.Struct, frozen=True):
    alg: str
    public_key: str
    proof: str
    context: bool = False


class Gate:
    """Attempts by address, counted for all workers of the machine together."""

    def __init__(self, table: BucketTable, per_minute: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Shapes: `per_minute` attempts in a minute, and so many at once."""
        self._table = table
        self._rule = table.key("unit-enrolment")
        self._burst = per_minute
        self._interval_ns = -(-60_000_000_000 // per_minute)
        self._clock_ns = clock_ns

    def admit(self, address: str) -> None:
        """Raises: RateLimited."""
        key = self._table.key("unit-enrolment", address_block(address))
        admitted, _, wait_ns, _ = self._table.take(key, self._interval_ns, self._burst, self._clock_ns(), self._rule)
        if not admitted:
            raise RateLimited(retry_after_s=-(-wait_ns // 1_000_000_000))


class _Registration:
    """What both endpoints do with a key that is registered."""

    def __init__(
        self,
        store: Store,
        roster: Roster,
        gate: Gate,
        *,
        refresh: Callable[[], None],
        tell: Callable[[str, str, str], None],
        note: Callable[..., None],
    ) -> None:
        """Shapes: `refresh` has this worker know the key at once; `tell(outcome, unit, kid)` is for log and metrics,
        `note` as AuditTrail.try_note.
        """
        self._store = store
        self._roster = roster
        self._gate = gate
        self._refresh = refresh
        self._tell = tell
        self._note = note

    def _admit(self, req: falcon.Request) -> RequestContext:
        ctx: RequestContext = req.context.gateway
        self._gate.admit(ctx.client_address)
        return ctx

    def _answer(
        self, resp: falcon.Response, unit: str, kid: str, context: bytes | None, overlap_s: float | None
    ) -> None:
        try:
            self._refresh()
        except GatewayError:
            pass  # registered it is; the feed brings it
        resp.status = 201
        resp.content_type = falcon.MEDIA_JSON
        resp.set_header("Cache-Control", "no-store")
        encoded = None if context is None else base64.urlsafe_b64encode(context).rstrip(b"=").decode("ascii")
        resp.data = orjson.dumps({"unit": unit, "kid": kid, "context_key": encoded, "overlap_s": overlap_s})


class EnrolResource(_Registration):
    """A unit's first key, or one for a new machine."""

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Register the key of whoever has the code. Yields to the hub: yes.

        Raises: BadRequest, EnrolmentRefused, RateLimited, Conflict, DatabaseUnavailable, DatabaseTimeout.
        """
        ctx = self._admit(req)
        about: dict[str, str] = {}
        with noting(self._note, ctx, ENROLLED, about):
            asked, kid, secret = self._enrol(req, ctx, about)
        ctx.unit = asked.unit
        self._note(ENROLLED, "allowed", ctx=ctx, **about)
        self._tell("enrolled", asked.unit, kid)
        self._answer(resp, asked.unit, kid, secret, None)

    def _enrol(
        self, req: falcon.Request, ctx: RequestContext, about: dict[str, str]
    ) -> tuple[EnrolRequest, str, bytes]:
        """Register the key; its id, and the context key. `about` is filled in whether it is registered or not."""
        asked = _read(req, EnrolRequest)
        known = asked.unit in ctx.snapshot.units
        if known:
            about["unit"] = asked.unit
        proof = prove(asked.unit, asked.alg, asked.public_key, asked.proof, ENROL_AUDIENCE)
        about["kid"] = proof.key.kid
        given = proof.claims.get("code")
        if not isinstance(given, str) or len(given) > 128:
            raise BadRequest("The proof has no code")
        context = self._roster.document_context(asked.unit)
        # SEC: one statement decides, and what it finds wrong is not told. A unit that the configuration does not know
        # takes the same way, with a digest that no code has.
        digest = code.digest(given) if known else bytes(32)
        secret = self._store.enrol(asked.unit, digest, proof.key, with_context=context is None)
        if secret is None or not known:
            self._tell("refused", "", proof.key.kid)
            raise EnrolmentRefused("The code is not one that enrols this unit now")
        return asked, proof.key.kid, context or secret.encode()


class RotateResource(_Registration):
    """A unit's next key, vouched for by the one it has."""

    def __init__(self, tokens: UnitTokens, overlap_s: float, *parts: Any, **options: Any) -> None:
        """Units: `overlap_s` seconds for which the old key is good beside the new one."""
        super().__init__(*parts, **options)
        self._tokens = tokens
        self._overlap_s = overlap_s

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Register the next key of the unit that the bearer token is of. Yields to the hub: yes.

        Raises: what a dial is refused with, and as EnrolResource.
        """
        ctx = self._admit(req)
        about: dict[str, str] = {}
        with noting(self._note, ctx, ROTATED, about):
            unit, kid, secret = self._rotate(req, about)
        ctx.unit = unit
        self._note(ROTATED, "allowed", ctx=ctx, **about)
        self._tell("rotated", unit, kid)
        self._answer(resp, unit, kid, secret, self._overlap_s)

    def _rotate(self, req: falcon.Request, about: dict[str, str]) -> tuple[str, str, bytes]:
        """As EnrolResource._enrol; the unit is the token's."""
        login = self._tokens.check(unit_bearer(req.env))
        about["unit"] = unit = login.unit.id
        asked = _read(req, RotateRequest)
        proof = prove(unit, asked.alg, asked.public_key, asked.proof, ROTATE_AUDIENCE)
        about["kid"] = proof.key.kid
        context = self._roster.document_context(unit)
        secret = self._store.rotate(
            unit,
            login.kid,
            proof.key,
            overlap_s=self._overlap_s,
            with_context=context is None,
            context_after_s=CONTEXT_AFTER_S if asked.context else None,
        )
        if secret is None:
            self._tell("refused", unit, proof.key.kid)
            raise EnrolmentRefused("The key cannot be registered for this unit")
        return unit, proof.key.kid, context or secret.encode()


def _read(req: falcon.Request, kind: type[T]) -> T:
    """The request's body. Raises: BadRequest, BodyTooLarge, and what reading raises."""
    body = RequestBody(req.env["wsgi.input"], content_length(req.env), MAX_BODY_BYTES)
    piece, end = body.first()
    pieces = [piece]
    while not end:
        piece, end = body.next()
        pieces.append(piece)
    try:
        return msgspec.json.decode(b"".join(pieces), type=kind)
    except msgspec.DecodeError:
        raise BadRequest("The body is not as this resource takes it") from None
