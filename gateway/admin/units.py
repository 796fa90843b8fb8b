"""Units: the fleet, shutting one out and in, one-time codes, registered keys."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.admin import permissions
from gateway.admin.desk import Desk
from gateway.admin.operation import Body, Call, Change, Operation, Reply
from gateway.admin.types import KeyId, Limit, Number, Reason, UnitId
from gateway.errors import Conflict, NotFound
from gateway.store.unit_operator import CodeSpent, IssuedCode, RegisteredKey, UnitEvent, UnitOperator
from gateway.units import code
from gateway.units.fleet import FLAP_WINDOW_S, FleetRow, fleet

MAX_CODE_LIFETIME_S = 14 * 86_400
State = Literal["connected", "disconnected", "never-connected", "revoked", "disabled"]


# --- what is sent and answered


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A unit's link. Units: milliseconds; `since` seconds since 1970."""

    conn: str
    worker: int
    state: str
    since: float
    streams: int
    rtt_ms: float | None
    clock_offset_ms: float | None
    agent: str
    kid: str
    index: int
    ledger: bool


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A unit in all workers of this machine. Units: `key_age_s` seconds; `flaps` losses in 24 hours."""

    unit: str
    state: State
    streams: int
    rtt_ms: float | None
    clock_offset_ms: float | None
    agent: str
    kid: str
    key_age_s: int | None
    last_seen: datetime | None
    why: str
    flaps: int
    connections: list[Connection]


class Units(msgspec.Struct, frozen=True):
    """A page. Shapes: `next` is the `cursor` of the page after it; null: there is none."""

    items: list[Unit]
    next: str | None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    kind: str
    why: str
    conn: str
    kid: str
    node: str
    agent: str
    actor: str


class Timeline(msgspec.Struct, frozen=True):
    items: list[Event]
    next: str | None


class UnitState(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `changed` is false if it was so already."""

    unit: str
    revoked: bool
    changed: bool


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A one-time code without the code."""

    number: int
    unit: str
    state: Literal["open", "used", "cancelled", "expired"]
    issued_at: datetime
    expires_at: datetime
    used_at: datetime | None
    used_by: str | None
    issued_by: str


class NewCode(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `code` is shown this once."""

    code: str
    enrolment: Code


class Codes(msgspec.Struct, frozen=True):
    items: list[Code]
    next: int | None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    kid: str
    unit: str
    alg: str
    state: Literal["live", "retiring", "retired", "revoked"]
    created_at: datetime
    retires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class Keys(msgspec.Struct, frozen=True):
    items: list[Key]
    next: str | None


class OfUnit(Body, frozen=True):
    unit: UnitId


class OfCode(Body, frozen=True):
    unit: UnitId
    number: Number


class OfKey(Body, frozen=True):
    unit: UnitId
    kid: KeyId


class UnitsQuery(Body, frozen=True):
    state: State | None = None
    limit: Limit = 100
    cursor: UnitId | None = None


class TimelineQuery(Body, frozen=True):
    limit: Limit = 100
    cursor: Annotated[str, Meta(pattern=r"^[0-9]{1,16}-[0-9]{1,15}$")] | None = None


class NumberedQuery(Body, frozen=True):
    limit: Limit = 100
    cursor: Number | None = None


class KeysQuery(Body, frozen=True):
    limit: Limit = 100
    cursor: KeyId | None = None


class Why(Body, frozen=True):
    reason: Reason


class Enrolment(Body, frozen=True):
    """Units: seconds."""

    lifetime_s: Annotated[int, Meta(ge=60, le=MAX_CODE_LIFETIME_S)] = 86_400


# --- the fleet


def rows(desk: Desk, operator: UnitOperator) -> list[FleetRow]:
    """Every unit that the configuration or the database knows, in all workers."""
    workers = desk.ask("units")
    live = [connection["conn"] for worker in workers for connection in worker.get("connections", ())]
    return fleet(workers, operator.records(live, FLAP_WINDOW_S), operator.keys(), datetime.now(UTC))


def list_units(desk: Desk, call: Call) -> Reply:
    query: UnitsQuery = call.query
    with desk.units() as operator:
        found = rows(desk, operator)
    after = [
        row for row in found if (query.cursor is None or row.unit > query.cursor) and query.state in (None, row.state)
    ]
    page = after[: query.limit]
    return Reply(Units([_unit(row) for row in page], page[-1].unit if len(after) > len(page) else None))


def show_unit(desk: Desk, call: Call) -> Reply:
    with desk.units() as operator:
        found = rows(desk, operator)
    for row in found:
        if row.unit == call.path.unit:
            return Reply(_unit(row))
    raise NotFound("No such unit")


def _unit(row: FleetRow) -> Unit:
    return msgspec.convert(asdict(row), Unit, strict=False)


def show_timeline(desk: Desk, call: Call) -> Reply:
    query: TimelineQuery = call.query
    before = None
    if query.cursor is not None:
        at_us, _, number = query.cursor.partition("-")
        before = int(at_us), int(number)
    _know(call)
    with desk.units() as operator:
        events = operator.timeline(call.path.unit, query.limit + 1, before)
    page = events[: query.limit]
    last = f"{_us(page[-1].at)}-{page[-1].number}" if len(events) > len(page) else None
    return Reply(Timeline([_event(event) for event in page], last))


def _us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)


def _event(event: UnitEvent) -> Event:
    values = asdict(event)
    del values["number"]
    return Event(**values)


def _know(call: Call) -> None:
    """The configuration names the unit. Raises: NotFound."""
    if call.path.unit not in call.snapshot.units:
        raise NotFound("No such unit")


# --- in and out


def disable(desk: Desk, call: Call, change: Change) -> Reply:
    return _switch(desk, call, change, revoked=True)


def enable(desk: Desk, call: Call, change: Change) -> Reply:
    return _switch(desk, call, change, revoked=False)


def _switch(desk: Desk, call: Call, change: Change, *, revoked: bool) -> Reply:
    unit, reason = call.path.unit, call.body.reason
    _know(call)
    change.target, change.reason = f"unit/{unit}", reason
    with desk.units(call.author) as operator:
        changed = operator.revoke(unit, reason) if revoked else operator.enable(unit, reason)
    change.before, change.after = {"revoked": revoked != changed}, {"revoked": revoked}
    return Reply(UnitState(unit=unit, revoked=revoked, changed=changed))


# --- one-time codes


def issue_code(
    operator: UnitOperator, unit: str, lifetime_s: float, retry: bytes | None = None
) -> tuple[str, IssuedCode]:
    """A new code, and what is kept of it. Raises: CodeSpent."""
    text = code.issue()
    return text, operator.issue_code(unit, code.digest(text), lifetime_s, retry)


def enrol(desk: Desk, call: Call, change: Change) -> Reply:
    unit = call.path.unit
    _know(call)
    change.target = f"unit/{unit}/enrolments"
    retry = None
    if call.retry_key is not None:
        retry = hashlib.sha256("\0".join(("enrol", call.author, unit, call.retry_key)).encode()).digest()
    with desk.units(call.author) as operator:
        try:
            text, kept = issue_code(operator, unit, call.body.lifetime_s, retry)
        except CodeSpent:
            raise Conflict("The code that this request issued before was used") from None
    shown = _code(kept)
    change.target, change.after = f"unit/{unit}/enrolment/{kept.number}", msgspec.to_builtins(shown)
    location = f"/admin/v1/units/{unit}/enrolments/{kept.number}"
    return Reply(NewCode(code=text, enrolment=shown), 201, location=location)


def list_codes(desk: Desk, call: Call) -> Reply:
    query: NumberedQuery = call.query
    _know(call)
    with desk.units() as operator:
        found = operator.codes(call.path.unit, query.limit + 1, query.cursor)
    page = found[: query.limit]
    return Reply(Codes([_code(kept) for kept in page], page[-1].number if len(found) > len(page) else None))


def show_code(desk: Desk, call: Call) -> Reply:
    with desk.units() as operator:
        return Reply(_code(_found_code(operator, call)))


def cancel_code(desk: Desk, call: Call, change: Change) -> Reply:
    unit, number = call.path.unit, call.path.number
    change.target, change.reason = f"unit/{unit}/enrolment/{number}", "cancelled"
    with desk.units(call.author) as operator:
        before = _code(_found_code(operator, call))
        operator.cancel_code(unit, number, "")
        after = _code(_found_code(operator, call))
    change.before, change.after = msgspec.to_builtins(before), msgspec.to_builtins(after)
    if after.state == "used":
        raise Conflict("The code was used")
    return Reply(after)


def _found_code(operator: UnitOperator, call: Call) -> IssuedCode:
    found = operator.code(call.path.unit, call.path.number)
    if found is None:
        raise NotFound()
    return found


def _code(kept: IssuedCode) -> Code:
    values = asdict(kept)
    cancelled_at = values.pop("cancelled_at")
    if kept.used_at is not None:
        values["state"] = "used"
    elif cancelled_at is not None:
        values["state"] = "cancelled"
    else:
        values["state"] = "open" if kept.expires_at > datetime.now(UTC) else "expired"
    return Code(**values)


# --- keys


def list_keys(desk: Desk, call: Call) -> Reply:
    query: KeysQuery = call.query
    _know(call)
    with desk.units() as operator:
        found = sorted(operator.keys(call.path.unit), key=lambda key: key.kid)
    after = [key for key in found if query.cursor is None or key.kid > query.cursor]
    page = after[: query.limit]
    return Reply(Keys([_key(key) for key in page], page[-1].kid if len(after) > len(page) else None))


def revoke_key(desk: Desk, call: Call, change: Change) -> Reply:
    unit, kid = call.path.unit, call.path.kid
    change.target, change.reason = f"unit/{unit}/key/{kid}", call.body.reason
    with desk.units(call.author) as operator:
        before = _found_key(operator, unit, kid)
        operator.revoke_key(unit, kid, call.body.reason)
        after = _found_key(operator, unit, kid)
    change.before, change.after = msgspec.to_builtins(before), msgspec.to_builtins(after)
    return Reply(after)


def _found_key(operator: UnitOperator, unit: str, kid: str) -> Key:
    for key in operator.keys(unit):
        if key.kid == kid:
            return _key(key)
    raise NotFound()


def _key(key: RegisteredKey) -> Key:
    values: dict[str, Any] = asdict(key)
    if key.revoked_at is not None:
        values["state"] = "revoked"
    elif key.retires_at is not None:
        values["state"] = "retired" if key.retires_at <= datetime.now(UTC) else "retiring"
    else:
        values["state"] = "live"
    return Key(**values)


_READ, _WRITE = permissions.UNITS_READ, permissions.UNITS_WRITE
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="units.list", method="GET", path="/units", permission=_READ, answer=Units, query=UnitsQuery,
        run=list_units, summary="The fleet: every unit, its state in all workers, and why it is away",
    ),
    Operation(
        name="units.show", method="GET", path="/units/{unit}", permission=_READ, answer=Unit, params=OfUnit,
        run=show_unit, summary="One unit",
    ),
    Operation(
        name="units.timeline", method="GET", path="/units/{unit}/timeline", permission=_READ, answer=Timeline,
        params=OfUnit, query=TimelineQuery, run=show_timeline,
        summary="What became of a unit, the newest first",
    ),
    Operation(
        name="units.disable", method="POST", path="/units/{unit}/disable", permission=_WRITE, answer=UnitState,
        params=OfUnit, body=Why, change=disable,
        summary="Cut the unit's links and refuse it until it is enabled; repeating it changes nothing",
    ),
    Operation(
        name="units.enable", method="POST", path="/units/{unit}/enable", permission=_WRITE, answer=UnitState,
        params=OfUnit, body=Why, change=enable,
        summary="Let a unit in again; its revoked keys stay revoked",
    ),
    Operation(
        name="enrolments.issue", method="POST", path="/units/{unit}/enrolments", permission=_WRITE, answer=NewCode,
        params=OfUnit, body=Enrolment, change=enrol, status=201, keyed=True, errors=(Conflict,),
        summary="A one-time code with which the unit registers a key; repeated with its Idempotency-Key, the code "
        "before is called back",
    ),
    Operation(
        name="enrolments.list", method="GET", path="/units/{unit}/enrolments", permission=_READ, answer=Codes,
        params=OfUnit, query=NumberedQuery, run=list_codes,
        summary="One-time codes of a unit, the newest first",
    ),
    Operation(
        name="enrolments.show", method="GET", path="/units/{unit}/enrolments/{number}", permission=_READ, answer=Code,
        params=OfCode, run=show_code, summary="One code, without the code",
    ),
    Operation(
        name="enrolments.cancel", method="DELETE", path="/units/{unit}/enrolments/{number}", permission=_WRITE,
        answer=Code, params=OfCode, change=cancel_code, errors=(Conflict,),
        summary="Call a code back that nobody has used",
    ),
    Operation(
        name="unit-keys.list", method="GET", path="/units/{unit}/keys", permission=_READ, answer=Keys, params=OfUnit,
        query=KeysQuery, run=list_keys, summary="Keys that a unit registered",
    ),
    Operation(
        name="unit-keys.revoke", method="POST", path="/units/{unit}/keys/{kid}/revoke", permission=_WRITE, answer=Key,
        params=OfKey, body=Why, change=revoke_key, summary="Refuse a key from now on, for ever",
    ),
)  # fmt: skip
