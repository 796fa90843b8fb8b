"""Breaking the glass in one worker: its resources, the look at a case where a binding refuses, the notifications."""

from __future__ import annotations

import http.client
from typing import Final
from urllib.parse import urlsplit

import gevent
import orjson
import structlog
from gevent.event import Event

from gateway.breakglass.endpoint import (
    PATH,
    REVIEWS_PATH,
    CaseResource,
    CasesResource,
    Note,
    ReviewResource,
    ReviewsResource,
)
from gateway.breakglass.model import Case
from gateway.config.snapshot import SnapshotHolder
from gateway.context import Principal, RequestContext
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.routing.model import Route, UnitAction
from gateway.store.break_glass import BreakGlassStore
from gateway.store.pool import Database

LOOK_EVERY_S: Final = 5.0
NOTICE_TIMEOUT_S: Final = 5.0

log = structlog.get_logger()


class BreakGlassService:
    """Holds: one greenlet that sends notifications."""

    def __init__(self, holder: SnapshotHolder, database: Database, metrics: Metrics, note: Note) -> None:
        """Shapes: `note` as AuditTrail.note."""
        self._holder = holder
        self._metrics = metrics
        self._store = BreakGlassStore(database)
        self._note = note
        self._due = Event()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def resources(self) -> dict[str, object]:
        """What callers find under which path."""
        parts = (self._store, self._note, self._due.set)
        return {
            PATH: CasesResource(*parts),
            f"{PATH}/{{case}}": CaseResource(*parts),
            f"{PATH}/{{case}}/review": ReviewResource(*parts),
            REVIEWS_PATH: ReviewsResource(*parts),
        }

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def case_of(self, ctx: RequestContext, principal: Principal, route: Route, patient: str) -> str | None:
        """The case by which the caller may read this patient's record; nothing is noted.

        Raises: DatabaseUnavailable, DatabaseTimeout.
        Yields to the hub: yes.
        """
        unit = _unit_of(route, ctx)
        return self._store.find(principal.issuer, principal.subject, unit, patient) if unit and patient else None

    def opens(self, ctx: RequestContext, principal: Principal, route: Route, patient: str) -> bool:
        """Has the caller a case by which he may read this record, although a binding refuses it? Then it is noted.

        SEC: asked of the database each time: a case that ended a moment ago opens nothing.
        Raises: DatabaseUnavailable, DatabaseTimeout, AuditUnavailable.
        Yields to the hub: yes.
        """
        case = self.case_of(ctx, principal, route, patient)
        if case is None:
            return False
        self._note(
            "break-glass.used", "allowed", ctx=ctx, durable=True, unit=_unit_of(route, ctx), patient=patient,
            purpose="BTG", case=case,
        )  # fmt: skip
        self._metrics.inc("caregate_break_glass", ("used",))
        return True

    # --- notifications

    def _run(self) -> None:
        while True:
            self._due.wait(LOOK_EVERY_S)
            self._due.clear()
            try:
                while self._holder.current.version and self._store.tell_next(self._tell):
                    pass
            except GatewayError:
                continue  # the next look will do

    def _tell(self, case: Case) -> bool:
        """Tell whoever the configuration names of a case; True if that was taken."""
        document = self._holder.current.document
        notify = document.break_glass.notify if document.break_glass is not None else None
        told = notify is None or _post(document.upstreams[notify.upstream].endpoints, notify.path, case)
        self._metrics.inc("caregate_break_glass", ("notified" if told else "notice-failed",))
        # SEC: no patient, no person, no reason: a log is read by many.
        log.warning("break-glass", case=case.id, unit=case.unit, role=case.role, notified=told)
        return told


def _unit_of(route: Route, ctx: RequestContext) -> str:
    action = route.action
    if not isinstance(action, UnitAction):
        return ""
    return action.unit if action.unit is not None else ctx.params.get(action.unit_param or "", "")


def _post(endpoints: tuple[str, ...], path: str, case: Case) -> bool:
    """Send a notification to the first endpoint that takes it. Yields to the hub: yes."""
    body = orjson.dumps({"event": "break-glass", **case.as_json()})
    return any(_taken(endpoint, path, body) for endpoint in endpoints)


def _taken(endpoint: str, path: str, body: bytes) -> bool:
    parts = urlsplit(endpoint)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=NOTICE_TIMEOUT_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
