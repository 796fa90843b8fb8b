"""Breaking the glass over HTTP.

```
POST   /access/v1/break-glass                {unit, patient, reason, for_s?}     201, a case
GET    /access/v1/break-glass                                                    one's own open cases
DELETE /access/v1/break-glass/{case}                                             204, ended before its time
GET    /access/v1/break-glass-reviews        ?after=CASE                         what nobody has reviewed yet
POST   /access/v1/break-glass/{case}/review  {verdict, comment}                  a reviewer's word
```
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar
from urllib.parse import parse_qs

import falcon
import msgspec
import orjson
from msgspec import Meta

from gateway.audit.refusals import noting
from gateway.breakglass.model import MAX_OPEN, Case, NewCase
from gateway.config.model import BreakGlass
from gateway.context import Principal, RequestContext
from gateway.errors import (
    AuditOutcomeUnavailable,
    AuditUnavailable,
    BadJson,
    BindingRefused,
    Conflict,
    GatewayError,
    LoginTooOld,
    NotFound,
    QueryRefused,
    RoleRefused,
    TokenMissing,
    Unprocessable,
)
from gateway.portal.resource import read_body

PATH: Final = "/access/v1/break-glass"
REVIEWS_PATH: Final = "/access/v1/break-glass-reviews"
STARTED: Final = "break-glass.started"
LISTED: Final = "break-glass.listed"
ENDED: Final = "break-glass.ended"
REVIEWED: Final = "break-glass.reviewed"
MAX_BODY_BYTES: Final = 8_192
PAGE: Final = 50
_AT: Final = re.compile(r" - at `\$?(.*)`\Z")
_CASE: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_NAME: Final = r"^[^\x00-\x1f\x7f]+$"
_PROSE: Final = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"
"""What people write: line breaks and tabs, no other control character; PostgreSQL keeps no NUL."""
MIN_REASON_CHARS: Final = 10
T = TypeVar("T")

Note = Callable[..., None]
"""As AuditTrail.note."""


class Store(Protocol):
    """See store.break_glass.BreakGlassStore."""

    def start(self, new: NewCase) -> Case | None: ...
    def own(self, issuer: str, subject: str) -> list[Case]: ...
    def end(self, case: str, issuer: str, subject: str) -> Case | None: ...
    def queue(self, units: list[str] | None, after: str, limit: int) -> list[Case]: ...
    def review(
        self, case: str, may: Callable[[Case], None], verdict: str, comment: str, issuer: str, reviewer: str
    ) -> Case | None: ...


class StartRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Units: `for_s` seconds."""

    unit: Annotated[str, Meta(min_length=1, max_length=63)]
    patient: Annotated[str, Meta(min_length=1, max_length=256, pattern=_NAME)]
    reason: Annotated[str, Meta(min_length=MIN_REASON_CHARS, max_length=500, pattern=_PROSE)]
    for_s: Annotated[int, Meta(ge=60)] | None = None


class ReviewRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verdict: Literal["justified", "unjustified"]
    comment: Annotated[str, Meta(min_length=1, max_length=500, pattern=_PROSE)]


class _Part:
    """What the resources share."""

    def __init__(
        self, store: Store, note: Note, wake: Callable[[], None], now: Callable[[], float] = time.time
    ) -> None:
        """Shapes: `wake()` has notifications sent."""
        self._store = store
        self._note = note
        self._wake = wake
        self._now = now

    def _holder(self, req: falcon.Request) -> tuple[RequestContext, Principal, BreakGlass]:
        """Who asks, if his role may break the glass. Raises: NotFound, TokenMissing, RoleRefused."""
        ctx, principal, rules = _asked(req)
        if principal.role not in rules.roles:
            raise RoleRefused()
        return ctx, principal, rules

    def _changed(self, ctx: RequestContext, kind: str, case: Case, **detail: str) -> None:
        """Keep the event of a change that was made; `pending` came before it. Raises: AuditOutcomeUnavailable."""
        try:
            self._note(
                kind, "allowed", ctx=ctx, durable=True, unit=case.unit, patient=case.patient, case=case.id, **detail
            )
        except AuditUnavailable:
            raise AuditOutcomeUnavailable("The outcome of the change was not recorded") from None


class CasesResource(_Part):
    """Open a case, and one's own."""

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Yields to the hub: yes.

        Raises: NotFound, TokenMissing, RoleRefused, LoginTooOld, BadJson, Unprocessable, Conflict, AuditUnavailable,
        DatabaseUnavailable, DatabaseTimeout.
        """
        about: dict[str, str] = {}
        with noting(self._note, req.context.gateway, STARTED, about):
            case = self._open(req, about)
        _answer(resp, case.as_json(), 201)

    def _open(self, req: falcon.Request, about: dict[str, str]) -> Case:
        """Open the case; `about` is filled in whether he may or not."""
        try:
            ctx, principal, rules = self._holder(req)
            self._check_login(principal, rules)
        except (RoleRefused, LoginTooOld):
            with suppress(GatewayError):
                about |= _wanted(decoded(read_body(req.env, MAX_BODY_BYTES), StartRequest))
            raise
        asked = decoded(read_body(req.env, MAX_BODY_BYTES), StartRequest)
        about |= _wanted(asked)
        if _written(asked.reason) < MIN_REASON_CHARS:
            raise refused("/reason", f"At least {MIN_REASON_CHARS} characters beside blanks")
        unit = ctx.snapshot.units.get(asked.unit)
        if unit is None or not unit.enabled:
            raise refused("/unit", "There is no such unit")
        for_s = rules.default_s if asked.for_s is None else asked.for_s
        if for_s > rules.max_s:
            raise refused("/for_s", f"At most {rules.max_s} seconds")
        # SEC: what is about to be given is on the disk before it is.
        self._note(STARTED, "pending", ctx=ctx, durable=True, **about)
        case = self._store.start(_new(principal, asked, for_s))
        if case is None:
            raise Conflict(f"There are {MAX_OPEN} cases open; end one")
        ended = str(int(case.until_s))
        self._note(STARTED, "allowed", ctx=ctx, durable=True, case=case.id, until=ended, **about)
        self._wake()
        return case

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Yields to the hub: yes. Raises: NotFound, TokenMissing, RoleRefused, DatabaseUnavailable, DatabaseTimeout."""
        _, principal, _ = self._holder(req)
        cases = self._store.own(principal.issuer, principal.subject)
        _answer(resp, {"cases": [case.as_json() for case in cases]})

    def _check_login(self, principal: Principal, rules: BreakGlass) -> None:
        """SEC: the person at the screen, now: a session that was left open breaks no glass. Raises: LoginTooOld."""
        at_s = principal.claims.get("auth_time")
        fresh = isinstance(at_s, int | float) and not isinstance(at_s, bool)
        if not fresh or not -60 <= self._now() - float(at_s or 0) <= rules.login_within_s:
            raise LoginTooOld(rules.login_within_s)


class CaseResource(_Part):
    """One case of one's own."""

    def on_delete(self, req: falcon.Request, resp: falcon.Response, case: str) -> None:
        """End it. Yields to the hub: yes.

        Raises: NotFound, TokenMissing, RoleRefused, AuditUnavailable (nothing was changed), AuditOutcomeUnavailable,
        DatabaseUnavailable, DatabaseTimeout.
        """
        with noting(self._note, req.context.gateway, ENDED, _case_of(case)):
            ctx, principal, _ = self._holder(req)
            named = _id(case)
            # SEC: what is about to be changed is on the disk before it is.
            self._note(ENDED, "pending", ctx=ctx, durable=True, case=named)
            ended = self._store.end(named, principal.issuer, principal.subject)
            if ended is None:
                raise NotFound()
        self._changed(ctx, ENDED, ended, reason="by its holder")
        resp.status = 204


class ReviewsResource(_Part):
    """What nobody has reviewed yet."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Yields to the hub: yes.

        Raises: NotFound, TokenMissing, RoleRefused, BindingRefused, QueryRefused, DatabaseUnavailable,
        DatabaseTimeout.
        """
        with noting(self._note, req.context.gateway, LISTED, {}):
            ctx, principal, rules = _asked(req)
            units = units_of(principal, rules)
            after = _after(ctx.query)
            found = self._store.queue(units, after, PAGE + 1)
        page = found[:PAGE]
        self._note(LISTED, "allowed", ctx=ctx, found=str(len(page)))
        answer: dict[str, object] = {"cases": [case.as_json() for case in page]}
        if len(found) > PAGE:
            answer["after"] = page[-1].id
        _answer(resp, answer)


class ReviewResource(_Part):
    """A reviewer's word on a case."""

    def on_post(self, req: falcon.Request, resp: falcon.Response, case: str) -> None:
        """Yields to the hub: yes.

        Raises: NotFound, TokenMissing, RoleRefused, BindingRefused, BadJson, Unprocessable, Conflict,
        AuditUnavailable (nothing was changed), AuditOutcomeUnavailable, DatabaseUnavailable, DatabaseTimeout.
        """
        about = _case_of(case)
        with noting(self._note, req.context.gateway, REVIEWED, about):
            written = self._review(req, case, about)
        self._changed(req.context.gateway, REVIEWED, written, verdict=written.verdict, reason=written.comment)
        _answer(resp, written.as_json())

    def _review(self, req: falcon.Request, case: str, about: dict[str, str]) -> Case:
        """Write the review; `about` is filled in whether he may or not."""
        ctx, principal, rules = _asked(req)
        units = units_of(principal, rules)
        asked = decoded(read_body(req.env, MAX_BODY_BYTES), ReviewRequest)
        about |= {"verdict": asked.verdict, "reason": asked.comment}
        if not _written(asked.comment):
            raise refused("/comment", "Say something beside blanks")

        def may(found: Case) -> None:
            about.update(unit=found.unit, patient=found.patient)
            if units is not None and found.unit not in units:
                raise NotFound()
            # SEC: nobody judges his own case.
            if (found.issuer, found.subject) == (principal.issuer, principal.subject):
                raise BindingRefused("One's own case is reviewed by somebody else")
            if found.verdict:
                raise Conflict("The case has been reviewed")
            # SEC: what is about to be written is on the disk before it is.
            self._note(REVIEWED, "pending", ctx=ctx, durable=True, **about)

        written = self._store.review(_id(case), may, asked.verdict, asked.comment, principal.issuer, principal.subject)
        if written is None:
            raise NotFound()
        return written


def units_of(principal: Principal, rules: BreakGlass) -> list[str] | None:
    """Of which units a reviewer sees cases; None: of all. Raises: RoleRefused, BindingRefused."""
    reader = rules.reviewers.get(principal.role)
    if reader is None:
        raise RoleRefused()
    if reader.sees == "all":
        return None
    claim = principal.claims.get(reader.sees.removeprefix("claim:"))
    units = [claim] if isinstance(claim, str) else claim if isinstance(claim, list) else []
    found = [unit for unit in units if isinstance(unit, str)]
    if not found:
        raise BindingRefused()
    return found


def decoded(body: bytes, kind: type[T]) -> T:
    """A JSON body as declared. Raises: BadJson, Unprocessable with the pointer of the first fault."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        at = _AT.search(text)
        pointer = "/" + at[1].lstrip(".").replace(".", "/") if at is not None and at[1] else ""
        raise refused(pointer, _AT.sub("", text).replace("`", "")) from None
    except msgspec.DecodeError:
        raise BadJson("The body is not JSON") from None


def _written(text: str) -> int:
    """How many characters somebody wrote; blanks are none."""
    return sum(map(len, text.split()))


def refused(pointer: str, detail: str) -> Unprocessable:
    """A body that is not as it should be, at one place."""
    return Unprocessable("The body is not as this resource takes it", errors=[{"pointer": pointer, "detail": detail}])


def _asked(req: falcon.Request) -> tuple[RequestContext, Principal, BreakGlass]:
    """Raises: NotFound where no configuration allows it, TokenMissing."""
    ctx: RequestContext = req.context.gateway
    rules = ctx.snapshot.document.break_glass
    if rules is None:
        raise NotFound()
    if ctx.principal is None:
        ctx.rule = "token:missing"
        raise TokenMissing()
    return ctx, ctx.principal, rules


def _new(principal: Principal, asked: StartRequest, for_s: int) -> NewCase:
    organisation = principal.claims.get("org")
    return NewCase(
        issuer=principal.issuer,
        subject=principal.subject,
        audience=principal.audience,
        role=principal.role,
        organisation=organisation if isinstance(organisation, str) else "",
        unit=asked.unit,
        patient=asked.patient,
        reason=asked.reason,
        for_s=for_s,
    )


def _wanted(asked: StartRequest) -> dict[str, str]:
    """What the trail is told of an attempt."""
    return {"unit": asked.unit, "patient": asked.patient, "reason": asked.reason, "purpose": "BTG"}


def _case_of(case: str) -> dict[str, str]:
    """The same of one that names a case."""
    return {"case": case} if _CASE.match(case) else {}


def _id(case: str) -> str:
    """Raises: NotFound for what is no case's id."""
    if not _CASE.match(case):
        raise NotFound()
    return case


def _after(query: str) -> str:
    """Raises: QueryRefused."""
    found = parse_qs(query, keep_blank_values=True, max_num_fields=8)
    if set(found) - {"after"} or len(found.get("after", [""])) != 1:
        raise QueryRefused("Only `after` is taken, once")
    after = found.get("after", [""])[0]
    if after and not _CASE.match(after):
        raise QueryRefused("`after` is a case's id")
    return after


def _answer(resp: falcon.Response, document: dict[str, Any], status: int = 200) -> None:
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    resp.set_header("Cache-Control", "no-store")
    resp.data = orjson.dumps(document)
