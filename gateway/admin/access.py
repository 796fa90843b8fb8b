"""Who may get in: what is revoked, the sessions of logins, the roles' signing keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.admin import permissions
from gateway.admin.desk import Desk
from gateway.admin.operation import Body, Call, Change, Operation, Reply
from gateway.admin.types import KeyId, Limit, Name, Number, Reason
from gateway.auth.key_seal import key_seal
from gateway.auth.rotation import await_keys, role_of, rotate
from gateway.auth.settled import await_workers
from gateway.config.reload import ReloadFailed
from gateway.errors import Conflict, NotFound, Unprocessable, WorkersUnavailable
from gateway.store.revocation import NewRevocation, RevocationRefused, RevocationRow
from gateway.store.session_operator import KnownSession

MAX_AUTHOR_CHARS = 128
AHEAD_S = 60.0
"""How far a moment may be in the future: clocks differ."""
Kind = Literal["jti", "session", "subject", "unit", "before"]
SessionId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{22}$")]
Subject = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$")]
NameOrAny = Annotated[str, Meta(max_length=64, pattern=r"^[a-z0-9._-]*$")]


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """What is refused. Shapes: `issuer`, `audience` and `role` narrow it, "" is any; tokens issued before `before`."""

    number: int
    kind: str
    value: str
    issuer: str
    audience: str
    role: str
    before: datetime
    until: datetime
    author: str
    reason: str
    actor: str
    at: datetime


class Revocations(msgspec.Struct, frozen=True):
    items: list[Revocation]
    next: int | None


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `known_by` worker processes refuse it already, `late` do not yet."""

    revision: int
    before: datetime
    known_by: list[int]
    late: list[int]


class Sessions(msgspec.Struct, frozen=True):
    items: list[KnownSession]
    next: str | None


class SigningKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a role.

    Shapes: `source` is document or made (by a rotation); `signs`: new tokens are signed with it; `usable` false where
    the gateway lacks the key that it is sealed under.
    """

    role: str
    kid: str
    alg: str
    source: str
    signs: bool
    live: bool
    usable: bool
    signs_from: datetime | None
    retires_at: datetime | None


class RotatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `old` verifies until `retires_at`; `known_by` worker processes have the key, `late` do not yet."""

    role: str
    kid: str
    alg: str
    signs_from: datetime
    old: str | None
    retires_at: datetime | None
    known_by: list[int]
    late: list[int]


class RetiredKey(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    kid: str
    known_by: list[int]
    late: list[int]


class SigningKeys(msgspec.Struct, frozen=True):
    items: list[SigningKey]


class PageQuery(Body, frozen=True):
    limit: Limit = 100
    cursor: Number | None = None


class SessionsQuery(Body, frozen=True):
    subject: Subject
    limit: Limit = 100
    cursor: SessionId | None = None


class KeysQuery(Body, frozen=True):
    role: Name | None = None


class OfSession(Body, frozen=True):
    session: SessionId


class OfRole(Body, frozen=True):
    role: Name


class OfSigningKey(Body, frozen=True):
    kid: KeyId


class Rotate(Body, frozen=True):
    """`alg`: by default as the key that signs now, or ES256. Units: seconds, at most 90 days."""

    reason: Reason
    alg: Literal["EdDSA", "ES256", "ES384", "RS256", "PS256"] | None = None
    overlap_s: Annotated[int, Meta(ge=0, le=90 * 86_400)] = 86_400


class Retire(Body, frozen=True):
    """`force`: also the last key of its role, which nobody can have tokens of then."""

    reason: Reason
    force: bool = False


class Revoke(Body, frozen=True):
    """`value` names the token, session, subject or unit; kind before has none. `before`: by default now.

    With `before` a repeat revokes the same; without it also what was issued since.
    """

    kind: Kind
    reason: Reason
    value: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    issuer: Text = ""
    audience: NameOrAny = ""
    role: NameOrAny = ""
    before: Annotated[datetime, Meta(tz=True)] | None = None


class End(Body, frozen=True):
    reason: Reason


# --- revocations


def list_revocations(desk: Desk, call: Call) -> Reply:
    query: PageQuery = call.query
    with desk.revocations() as operator:
        found = operator.listing(query.limit + 1, query.cursor)
    page = found[: query.limit]
    last = page[-1].number if len(found) > len(page) else None
    return Reply(Revocations([_revocation(row) for row in page], last))


def _revocation(row: RevocationRow) -> Revocation:
    return Revocation(
        number=row.number, kind=row.kind, value=row.value, issuer=row.issuer, audience=row.audience, role=row.role,
        before=row.before_at, until=row.until_at, author=row.author, reason=row.reason, actor=row.actor, at=row.at,
    )  # fmt: skip


def revoke(desk: Desk, call: Call, change: Change) -> Reply:
    body: Revoke = call.body
    change.target, change.reason = f"revocation/{body.kind}", body.reason
    if body.before is not None and body.before > datetime.now(UTC) + timedelta(seconds=AHEAD_S):
        # SEC: what will be issued cannot be judged yet, and nobody could log in until then.
        raise _refused("/before", "has not come yet")
    try:
        new = NewRevocation(
            kind=body.kind, value=body.value, issuer=body.issuer, audience=body.audience, role=body.role,
            before_s=body.before.timestamp() if body.before is not None else None,
            author=call.author[:MAX_AUTHOR_CHARS], reason=body.reason,
        )  # fmt: skip
    except RevocationRefused as error:
        raise _refused("", str(error)) from None
    with desk.revocations() as operator:
        revoked = operator.add(new)
    change.before, change.after = {"revoked": False}, msgspec.to_builtins(body)
    known, late = _await(desk, revoked.revision)
    return Reply(Revoked(revision=revoked.revision, before=revoked.before_at, known_by=known, late=late), 201)


def _refused(pointer: str, detail: str) -> Unprocessable:
    return Unprocessable("The body is not as declared", errors=[{"pointer": pointer, "detail": detail}])


def _await(desk: Desk, revision: int) -> tuple[list[int], list[int]]:
    """Raises: WorkersUnavailable."""
    try:
        return await_workers(desk.settings.run_dir, revision)
    except ReloadFailed:
        raise WorkersUnavailable("It is revoked; not every worker said that it knows", retry_after_s=1) from None


# --- sessions


def list_sessions(desk: Desk, call: Call) -> Reply:
    query: SessionsQuery = call.query
    with desk.sessions() as operator:
        found = operator.sessions(query.subject, query.limit + 1, query.cursor)
    page = found[: query.limit]
    return Reply(Sessions(page, page[-1].id if len(found) > len(page) else None))


def show_session(desk: Desk, call: Call) -> Reply:
    with desk.sessions() as operator:
        found = operator.session(call.path.session)
    if found is None:
        raise NotFound("No such session")
    return Reply(found)


def end_session(desk: Desk, call: Call, change: Change) -> Reply:
    change.target, change.reason = f"session/{call.path.session}", call.body.reason
    with desk.sessions() as operator:
        before = operator.session(call.path.session)
        if before is None:
            raise NotFound("No such session")
        operator.end(before.id)
        after = operator.session(before.id)
    if after is None:
        raise NotFound("No such session")
    change.before, change.after = _state(before), _state(after)
    return Reply(after)


def _state(session: KnownSession) -> dict[str, Any]:
    ended = None if session.ended_at is None else session.ended_at.isoformat()
    return {"session": session.id, "ended_at": ended, "ended_why": session.ended_why}


# --- keys


def _roles(desk: Desk) -> dict[str, list[dict[str, Any]]]:
    """The keys of each role, as the workers have them. Raises: WorkersUnavailable."""
    found = desk.ask("keys")
    if not found:
        raise WorkersUnavailable(retry_after_s=1)
    roles: dict[str, list[dict[str, Any]]] = found[0]["roles"]
    return roles


def list_keys(desk: Desk, call: Call) -> Reply:
    wanted = call.query.role
    roles = _roles(desk)
    if wanted is not None and wanted not in roles:
        raise NotFound("No such role")
    return Reply(
        SigningKeys(
            [_signing_key(role, key) for role, keys in sorted(roles.items()) if wanted in (None, role) for key in keys]
        )
    )


def _signing_key(role: str, key: dict[str, Any]) -> SigningKey:
    return SigningKey(
        role=role, kid=key["kid"], alg=key["alg"], source=key["source"], signs=key["signs"], live=key["live"],
        usable=key["usable"], signs_from=_moment(key["signs_s"]), retires_at=_moment(key["retires_s"]),
    )  # fmt: skip


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def rotate_key(desk: Desk, call: Call, change: Change) -> Reply:
    role, body = call.path.role, call.body
    change.target, change.reason = f"role/{role}/keys", body.reason
    keys = _roles(desk).get(role)
    if keys is None:
        raise NotFound("No such role")
    change.before = keys
    seal = key_seal(desk.settings, desk.settings.data_dir, make=True)
    assert seal is not None  # noqa: S101 - made if there was none
    with desk.keys() as store:
        made = rotate(
            store, seal, role, keys, alg=body.alg, at_s=None, overlap_s=body.overlap_s,
            author=call.author[:MAX_AUTHOR_CHARS], reason=body.reason,
        )  # fmt: skip
    rotated = made.rotated
    change.target, change.after = f"role/{role}/key/{made.kid}", {"kid": made.kid, "alg": made.alg, "old": rotated.old}
    known, late = _await_keys(desk, rotated.revision, made.kid)
    answer = RotatedKey(
        role=role, kid=made.kid, alg=made.alg, signs_from=rotated.signs_at, old=rotated.old,
        retires_at=rotated.retires_at, known_by=known, late=late,
    )  # fmt: skip
    return Reply(answer, 201)


def retire_key(desk: Desk, call: Call, change: Change) -> Reply:
    kid, body = call.path.kid, call.body
    change.target, change.reason = f"key/{kid}", body.reason
    role, last = role_of(kid, _roles(desk))
    if role is None:
        raise NotFound("No such key")
    change.target, change.before = f"role/{role}/key/{kid}", {"retired": False}
    if last and not body.force:
        raise Conflict("It is the last live key of its role: rotate first, or say force")
    with desk.keys() as store:
        revision = store.retire(kid, role, call.author[:MAX_AUTHOR_CHARS], body.reason)
    change.after = {"retired": True}
    known, late = _await_keys(desk, revision, "")
    return Reply(RetiredKey(role=role, kid=kid, known_by=known, late=late))


def _await_keys(desk: Desk, revision: int, signs: str) -> tuple[list[int], list[int]]:
    """Raises: WorkersUnavailable."""
    try:
        return await_keys(desk.settings.run_dir, revision, signs)
    except ReloadFailed:
        raise WorkersUnavailable("It is done; not every worker said that it knows", retry_after_s=1) from None


_REVOKE, _SESSIONS, _KEYS = permissions.REVOKE, permissions.SESSIONS, permissions.KEYS
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="revocations.list", method="GET", path="/revocations", permission=_REVOKE, answer=Revocations,
        query=PageQuery, run=list_revocations, summary="What is revoked and has not run out, the newest first",
    ),
    Operation(
        name="revocations.add", method="POST", path="/revocations", permission=_REVOKE, answer=Revoked, body=Revoke,
        change=revoke, status=201, errors=(WorkersUnavailable,),
        summary="Refuse a token, a session, the tokens of a subject or unit, or all that were issued before a moment",
    ),
    Operation(
        name="sessions.list", method="GET", path="/sessions", permission=_SESSIONS, answer=Sessions,
        query=SessionsQuery, run=list_sessions, summary="A subject's sessions, the newest first",
    ),
    Operation(
        name="sessions.show", method="GET", path="/sessions/{session}", permission=_SESSIONS, answer=KnownSession,
        params=OfSession, run=show_session, summary="One session",
    ),
    Operation(
        name="sessions.end", method="POST", path="/sessions/{session}/end", permission=_SESSIONS, answer=KnownSession,
        params=OfSession, body=End, change=end_session,
        summary="End a session, with its tokens, in every worker; repeating it changes nothing",
    ),
    Operation(
        name="keys.list", method="GET", path="/keys", permission=_KEYS, answer=SigningKeys, query=KeysQuery,
        run=list_keys, errors=(WorkersUnavailable,), summary="The roles' keys: which sign, which only verify",
    ),
    Operation(
        name="keys.rotate", method="POST", path="/keys/{role}/rotate", permission=_KEYS, answer=RotatedKey,
        params=OfRole, body=Rotate, change=rotate_key, status=201, errors=(WorkersUnavailable, Conflict),
        summary="Make a role's next key; the one before verifies until the overlap ends",
    ),
    Operation(
        name="keys.retire", method="POST", path="/keys/{kid}/retire", permission=_KEYS, answer=RetiredKey,
        params=OfSigningKey, body=Retire, change=retire_key, errors=(WorkersUnavailable, Conflict),
        summary="Refuse a key, and all that it signed, from now on and for ever",
    ),
)  # fmt: skip
