"""What the gateway's own resources refuse: an event as of what they allow, with who, what and why."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from gateway.audit.endpoint import AccessLogResource, ReadResource, SearchResource
from gateway.breakglass.endpoint import CaseResource, CasesResource, ReviewResource, ReviewsResource
from gateway.breakglass.model import Case
from gateway.context import Principal, RequestContext
from gateway.errors import AuditOutcomeUnavailable, AuditUnavailable, DatabaseUnavailable, GatewayError, RateLimited

CASE = "0" * 8 + "-0000-0000-0000-" + "0" * 12
SPAN = "date=ge2026-01-01&date=lt2027-01-01"
START = {"unit": "north", "patient": "p-9", "reason": "she is unconscious"}
REVIEW = {"verdict": "justified", "comment": "seen"}
ASKED = {"unit": "north", "patient": "p-9", "reason": "she is unconscious", "purpose": "BTG"}

CASE_OF_OWN = Case(CASE, "i", "own", "nurse", "", "north", "p-9", "", 0, 1, 0, 0, "", "", "")


class Store:
    """The database behind all of them: who asks for anything gets its error, or nothing."""

    def __init__(self, error: Exception | None = None, found: Case | None = None) -> None:
        self.error = error
        self.found = found
        self.changed: Case | None = None

    def _answer(self, *_):
        if self.error is not None:
            raise self.error

    find = read = start = queue = _answer

    def end(self, case, *_):
        self._answer()
        self.changed = self.found
        return self.found

    def review(self, case, may, *_):
        self._answer()
        may(CASE_OF_OWN)
        self.changed = CASE_OF_OWN
        return self.changed


def ask(
    resource, method, query="", body=None, role="nurse", subject="s", error=None, store=None, room=9,
    refused=GatewayError, **params,
):  # fmt: skip
    """The events of a request that is refused; the trail has room for so many."""
    notes = []
    rules = SimpleNamespace(
        roles={"nurse"}, login_within_s=300, reviewers={"chief": SimpleNamespace(sees="all")}, default_s=60, max_s=600
    )
    readers = {"chief": SimpleNamespace(sees="claim:units")}
    document = SimpleNamespace(audit=SimpleNamespace(readers=readers, own_record=["patient"]), break_glass=rules)
    snapshot = SimpleNamespace(document=document, units={"north": SimpleNamespace(enabled=True)}, version=1)
    ctx = RequestContext("id-1", 1, method, "/x", query, "192.0.2.7", snapshot)
    claims = {"units": ["north"], "auth_time": 1_000.0}
    if role:
        ctx.principal = Principal(
            subject=subject, issuer="i", audience="a", role=role, permissions=frozenset({"audit.read"}), token_id="t",
            key_id="k", expires_at_s=9e9, claims=claims,
        )  # fmt: skip
    raw = json.dumps(body).encode() if body is not None else b""
    env = {"wsgi.input": io.BytesIO(raw), "caregate.content_length": len(raw)}
    req = SimpleNamespace(context=SimpleNamespace(gateway=ctx), env=env)

    def note(kind, outcome, *, ctx, durable=False, **more):
        assert ctx.id == "id-1"
        if len(notes) == room:
            raise AuditUnavailable
        assert durable or outcome != "pending"
        notes.append((kind, outcome, more))

    wake = () if resource.__module__ == "gateway.audit.endpoint" else (lambda: None,)
    made = resource(store or Store(error), note, *wake, now=lambda: 1_000.0)
    with pytest.raises(refused):
        getattr(made, f"on_{method.lower()}")(req, SimpleNamespace(), **params)
    return notes


@pytest.mark.parametrize(
    ("asked", "kind", "rule", "more"),
    [
        pytest.param(
            lambda: ask(SearchResource, "GET", f"{SPAN}&patient=p-9&role=nurse"), "audit.searched", "permission",
            {"patient": "p-9", "query": "date=ge2026-01-01&date=lt2027-01-01&patient=%2A&role=nurse"}, id="a search",
        ),
        pytest.param(
            lambda: ask(SearchResource, "GET", f"{SPAN}&unit=south", role="chief"), "audit.searched",
            "binding-refused", {"patient": "", "query": f"{SPAN}&unit=south"}, id="another unit's",
        ),
        pytest.param(
            lambda: ask(SearchResource, "GET", "name=Anna", role="chief"), "audit.searched", "query-refused", {},
            id="a search that is none",
        ),
        pytest.param(
            lambda: ask(SearchResource, "GET", SPAN, role=""), "audit.searched", "token:missing",
            {"patient": "", "query": SPAN}, id="nobody's search",
        ),
        pytest.param(
            lambda: ask(ReadResource, "GET", event_id="abc-7"), "audit.searched", "permission",
            {"query": "_id=abc-7"}, id="one event",
        ),
        pytest.param(
            lambda: ask(ReadResource, "GET", role="chief", event_id="Anna"), "audit.searched", "not-found", {},
            id="what is no event's id",
        ),
        pytest.param(
            lambda: ask(AccessLogResource, "GET"), "audit.read-own", "not-found", {}, id="own log of no patient"
        ),
        pytest.param(
            lambda: ask(CasesResource, "POST", body=START, role="clerk"), "break-glass.started", "role-refused",
            ASKED, id="a case for another role",
        ),
        pytest.param(
            lambda: ask(CasesResource, "POST", body={**START, "unit": "nowhere"}), "break-glass.started",
            "unprocessable", {**ASKED, "unit": "nowhere"}, id="a case at no unit",
        ),
        pytest.param(
            lambda: ask(CasesResource, "POST", body="x", role="clerk"), "break-glass.started", "role-refused", {},
            id="a body that says nothing",
        ),
        pytest.param(
            lambda: ask(CaseResource, "DELETE", case=CASE), "break-glass.ended", "not-found", {"case": CASE},
            id="the end of another's case",
        ),
        pytest.param(
            lambda: ask(ReviewsResource, "GET"), "break-glass.listed", "role-refused", {}, id="what is to be reviewed"
        ),
        pytest.param(
            lambda: ask(ReviewResource, "POST", body=REVIEW, role="chief", subject="own", case=CASE),
            "break-glass.reviewed", "binding-refused",
            {"case": CASE, "verdict": "justified", "reason": "seen", "unit": "north", "patient": "p-9"},
            id="a review of one's own case",
        ),
    ],
)  # fmt: skip
def test_an_attempt_that_is_refused(asked, kind, rule, more):
    [(found, outcome, about)] = [event for event in asked() if event[1] != "pending"]
    assert (found, outcome, about.pop("rule"), about) == (kind, "refused", rule, more)


def test_what_fails_is_no_refusal():
    [(kind, outcome, about)] = ask(SearchResource, "GET", SPAN, role="chief", error=DatabaseUnavailable())
    assert (kind, outcome, about["rule"]) == ("audit.searched", "failed", "database-unavailable")


@pytest.mark.parametrize("error", [RateLimited(retry_after_s=1), AuditUnavailable()])
def test_what_a_limit_refuses_and_what_cannot_be_kept_is_none(error):
    assert ask(SearchResource, "GET", SPAN, role="chief", error=error) == []


@pytest.mark.parametrize(
    ("resource", "method", "options"),
    [
        pytest.param(CaseResource, "DELETE", {}, id="ended"),
        pytest.param(ReviewResource, "POST", {"body": REVIEW, "role": "chief"}, id="reviewed"),
    ],
)
def test_no_case_is_changed_without_the_trail(resource, method, options):
    full, later = Store(found=CASE_OF_OWN), Store(found=CASE_OF_OWN)
    assert ask(resource, method, store=full, room=0, case=CASE, **options) == []
    assert full.changed is None
    [(kind, outcome, about)] = ask(
        resource, method, store=later, room=1, refused=AuditOutcomeUnavailable, case=CASE, **options
    )
    assert later.changed == CASE_OF_OWN, "the trail failed in between, and has what was about to be done"
    assert (kind.partition(".")[0], outcome, about["case"]) == ("break-glass", "pending", CASE)
