"""The Admin API of a real gateway: two workers, PostgreSQL, versions in the database, units as the demo has them."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import psycopg
import pytest

from gateway.demo import story
from gateway.demo.platform import ROOT, Platform
from loadtests.demo import free_base_port

pytestmark = pytest.mark.integration

WORKERS = 2
UNIT = story.CLINIC
OPERATOR = "operator-7"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site(Platform):
    """The demo without its units."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, free_base_port(), WORKERS, tell=lambda text: None)
        self._env.update(CAREGATE_CONFIG_SOURCE="database", CAREGATE_DRAIN_GRACE_S="3")

    def token(self, role: str, *claims: str, subject: str = OPERATOR) -> str:
        argv = ["token", "issue", "--config", str(self._config), "--role", role, f"--claim=sub={subject}"]
        run = subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", *argv, *(f"--claim={claim}" for claim in claims)],
            capture_output=True, text=True, check=True, env=self._env, cwd=ROOT,
        )  # fmt: skip
        return run.stdout.strip()

    def ask(
        self, method: str, path: str, token: str = "", body: Any = None, *, ops: bool = True, **headers: str
    ) -> Answer:
        """One connection a request, so that the kernel spreads them over the workers."""
        port = self.ports.ops if ops else self.ports.gateway
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            fields["Authorization"] = f"Bearer {token}"
        if body is not None:
            fields["Content-Type"] = "application/json"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), fields)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def events(self, request_id: str) -> list[dict[str, Any]]:
        """What the trail has of a request, as an administrator of the database sees it."""
        assert self._postgres is not None
        query = "SELECT canonical FROM audit.event WHERE request_id = %s ORDER BY occurred_at, sequence"
        with psycopg.connect(self._postgres.admin_dsn) as admin:
            return [json.loads(text) for (text,) in admin.execute(query, (request_id,))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    started = Site(tmp_path_factory.mktemp("admin"))
    try:
        started.start_gateway()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def token(site: Site) -> str:
    return site.token("platform_admin")


@pytest.fixture
def ask(site: Site, token: str) -> Callable[..., Answer]:
    return lambda method, path, body=None, **headers: site.ask(method, f"/admin/v1{path}", token, body, **headers)


@pytest.fixture
def changed(site: Site, ask: Callable[..., Answer], wait: Callable[..., Any]) -> Callable[..., Any]:
    """Make a change; its answer, and its one event of kind admin once the database has it."""

    def change(method: str, path: str, body: Any = None, **headers: str) -> tuple[Answer, dict[str, Any]]:
        answer = ask(method, path, body, **headers)
        rid = answer.headers["x-request-id"]
        found = wait(lambda: [event for event in site.events(rid) if event["kind"] == "admin"])
        assert len(found) == 1
        assert (found[0]["subject"], found[0]["role"]) == (OPERATOR, "platform_admin")
        wait(lambda: {e["phase"] for e in site.events(rid) if e["kind"] == "access"} == {"intent", "outcome"})
        return answer, found[0]

    return change


# --- units


def test_the_fleet_page_by_page(ask: Callable[..., Answer]) -> None:
    whole = ask("GET", "/units").json
    assert [one["unit"] for one in whole["items"]] == sorted([story.HOSPITAL, story.CLINIC, story.POST])
    assert whole["next"] is None
    assert {one["state"] for one in whole["items"]} == {"never-connected"}
    paged, cursor = [], ""
    while True:
        page = ask("GET", f"/units?limit=1{cursor}").json
        paged += page["items"]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert paged == whole["items"]
    assert ask("GET", "/units?state=connected").json["items"] == []


def test_a_unit_is_shut_out_and_let_in_and_repeats_change_nothing(
    ask: Callable[..., Answer], changed: Callable[..., Any]
) -> None:
    out, event = changed("POST", f"/units/{UNIT}/disable", {"reason": "stolen laptop"})
    assert out.json == {"unit": UNIT, "revoked": True, "changed": True}
    assert event["outcome"] == "allowed"
    detail = event["detail"]
    assert (detail["what"], detail["target"], detail["reason"]) == ("units.disable", f"unit/{UNIT}", "stolen laptop")
    assert len({detail["before"], detail["digest"]}) == 2
    assert ask("GET", f"/units/{UNIT}").json["state"] == "revoked"
    again, event = changed("POST", f"/units/{UNIT}/disable", {"reason": "stolen laptop"})
    assert again.json["changed"] is False
    assert event["detail"]["before"] == event["detail"]["digest"] == detail["digest"]
    back, event = changed("POST", f"/units/{UNIT}/enable", {"reason": "found"})
    assert back.json == {"unit": UNIT, "revoked": False, "changed": True}
    assert (event["detail"]["before"], event["detail"]["digest"]) == (detail["digest"], detail["before"])
    timeline = ask("GET", f"/units/{UNIT}/timeline").json["items"]
    assert [(e["kind"], e["why"], e["actor"]) for e in timeline[:2]] == [
        ("enabled", "found", OPERATOR), ("revoked", "stolen laptop", OPERATOR),
    ]  # fmt: skip
    first = ask("GET", f"/units/{UNIT}/timeline?limit=1").json
    rest = ask("GET", f"/units/{UNIT}/timeline?cursor={first['next']}").json
    assert first["items"] + rest["items"] == timeline


def test_one_time_codes(ask: Callable[..., Answer], changed: Callable[..., Any], site: Site) -> None:
    codes = f"/units/{story.POST}/enrolments"
    first, event = changed("POST", codes, {"lifetime_s": 600}, Idempotency_Key="order-1")
    assert first.status == 201
    assert first.json["code"] not in json.dumps(event)
    again, _ = changed("POST", codes, {"lifetime_s": 600}, Idempotency_Key="order-1")
    other, _ = changed("POST", codes, {}, Idempotency_Key="order-2")
    numbers = [answer.json["enrolment"]["number"] for answer in (first, again, other)]
    listed = {one["number"]: one["state"] for one in ask("GET", codes).json["items"]}
    assert [listed[number] for number in numbers] == ["cancelled", "open", "open"]
    gone, event = changed("DELETE", f"{codes}/{numbers[2]}")
    assert gone.json["state"] == "cancelled"
    assert event["detail"]["before"] != event["detail"]["digest"]
    assert changed("DELETE", f"{codes}/{numbers[2]}")[0].json == gone.json
    assert ask("GET", f"{codes}/{numbers[2]}").json == gone.json
    assert enrol(site, first.json["code"]) == 403
    assert enrol(site, other.json["code"]) == 403
    assert enrol(site, again.json["code"]) == 200
    assert ask("GET", f"{codes}/{numbers[1]}").json["state"] == "used"
    assert changed("DELETE", f"{codes}/{numbers[1]}")[0].status == 409
    assert changed("POST", codes, {}, Idempotency_Key="order-1")[0].status == 409
    (key,) = ask("GET", f"/units/{story.POST}/keys").json["items"]
    assert (key["state"], key["alg"]) == ("live", "EdDSA")
    revoked, event = changed("POST", f"/units/{story.POST}/keys/{key['kid']}/revoke", {"reason": "test"})
    assert revoked.json["state"] == "revoked"
    assert changed("POST", f"/units/{story.POST}/keys/{key['kid']}/revoke", {"reason": "test"})[0].json == revoked.json


def enrol(site: Site, code: str) -> int:
    """Register a key with a code; the status."""
    from gateway.agent.endpoint import gateway_endpoint
    from gateway.agent.enrol import EnrolmentFailed, KeyDirectory
    from gateway.agent.enrol import enrol as register

    folder = site.directory / "enrolled"
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        register(gateway_endpoint(f"http://127.0.0.1:{site.ports.gateway}"), story.POST, code, KeyDirectory(folder))
    except EnrolmentFailed:
        return 403
    return 200


@pytest.mark.parametrize(
    "path", ["/units/nowhere", "/units/nowhere/timeline", "/units/NO/keys", "/units/a/enrolments/1"]
)
def test_what_is_not_there(ask: Callable[..., Answer], path: str) -> None:
    assert ask("GET", path).status == 404


# --- the configuration


def test_a_version_is_made_from_the_newest_or_refused_with_it(
    ask: Callable[..., Answer], changed: Callable[..., Any], site: Site
) -> None:
    listed = ask("GET", "/config/versions")
    newest = listed.json["items"][0]
    assert listed.headers["etag"] == f'"{newest["number"]}"'
    document = ask("GET", f"/config/versions/{newest['number']}").json["document"]
    edited = document.replace("realm: ", "realm: edited-", 1)
    compared = ask("POST", "/config/diff", {"document": edited}).json
    assert compared["changed"]
    assert "+  realm: edited-" in compared["diff"]
    sent = {"document": edited, "reason": "a new name"}
    made, event = changed("POST", "/config/versions", sent, If_Match=listed.headers["etag"])
    number = newest["number"] + 1
    assert (made.status, made.json["number"], made.json["in_force"]) == (201, number, True)
    assert [worker["version"] for worker in made.json["workers"]] == [number] * WORKERS
    assert event["detail"]["target"] == f"config/version/{number}"
    assert (event["detail"]["before"], event["detail"]["digest"]) == (newest["digest"], made.json["digest"])
    shown = ask("GET", f"/config/versions/{number}").json
    assert (shown["author"], shown["reason"], shown["document"]) == (OPERATOR, "a new name", edited)
    # The same once more, as by one who did not get the answer.
    repeated, _ = changed("POST", "/config/versions", sent, If_Match=listed.headers["etag"])
    assert (repeated.status, repeated.json["number"]) == (200, number)
    stale, event = changed("POST", "/config/versions", {**sent, "document": document, "base": newest["number"]})
    assert (stale.status, stale.json["type"]) == (409, "urn:caregate:problem:stale-version")
    assert stale.json["current"]["number"] == number
    assert event["outcome"] == "refused"
    assert ask("GET", "/config/versions").headers["etag"] == f'"{number}"'


def test_without_a_base_nothing_is_applied(ask: Callable[..., Answer]) -> None:
    answer = ask("POST", "/config/versions", {"document": "version: 1\n", "reason": "x"})
    assert answer.status == 428


def test_a_bad_document_is_refused_with_every_fault(ask: Callable[..., Answer], changed: Callable[..., Any]) -> None:
    newest = ask("GET", "/config/versions?limit=1").json["items"][0]["number"]
    document = ask("GET", f"/config/versions/{newest}").json["document"]
    bad = document.replace("methods:", "verbs:", 1).replace("roles: [patient]", "roles: [nobody]", 1)
    faults = ask("POST", "/config/check", {"document": bad}).json["faults"]
    refused, _ = changed("POST", "/config/versions", {"document": bad, "reason": "x", "base": newest})
    assert refused.status == 422
    assert [(e["path"], e["line"]) for e in refused.json["errors"]] == [(f["path"], f["line"]) for f in faults]
    assert len(faults) >= 2
    assert {e["pointer"] for e in refused.json["errors"]} == {"/document"}
    assert ask("GET", "/config/versions?limit=1").json["items"][0]["number"] == newest
    assert ask("POST", "/config/check", {"document": document}).json["good"] is True


def test_rollback_and_what_the_workers_have(ask: Callable[..., Answer], changed: Callable[..., Any]) -> None:
    newest = ask("GET", "/config/versions?limit=1").json["items"][0]["number"]
    made, _ = changed("POST", "/config/rollback", {"number": 1, "base": newest})
    assert made.status == 201
    workers = ask("GET", "/config/workers").json
    assert workers["agree"] is True
    assert {worker["version"] for worker in workers["items"]} == {newest + 1}
    assert {worker["phase"] for worker in workers["items"]} == {"serving"}
    assert ask("POST", "/config/diff", {"number": 1}).json == {"against": newest + 1, "changed": False, "diff": ""}
    assert changed("POST", "/config/rollback", {"number": 999, "base": newest + 1})[0].status == 404


def test_the_command_line_and_the_api_see_the_same(site: Site, ask: Callable[..., Answer]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "units", UNIT, "--json", "--data-dir", str(site.directory)],
        capture_output=True, text=True, check=True, env=site._env, cwd=ROOT,
    )  # fmt: skip
    told, answered = json.loads(run.stdout), ask("GET", f"/units/{UNIT}").json
    assert {name: told[name] for name in answered} == answered


# --- limits


def test_limits_are_seen_and_not_taken(site: Site, ask: Callable[..., Answer]) -> None:
    caller = site.token("partner", subject="p-1")
    issuer = "https://id.caregate.test/partners"
    bucket = f"/limits/per-partner?issuer={issuer}&subject=p-1"
    full = ask("GET", bucket).json
    assert full["left"] == full["burst"] == 10
    statuses = [site.ask("GET", "/partner/v1/statistics", caller, ops=False).status for _ in range(14)]
    assert 429 in statuses
    left = ask("GET", bucket).json["left"]
    assert left < 10
    assert [ask("GET", bucket).json["left"] >= left for _ in range(4)] == [True] * 4
    found = {one["name"]: one["refusals"] for one in ask("GET", "/limits").json["items"]}
    assert found["per-partner"] == statuses.count(429)
    assert found["per-caller"] == 0


# --- who may get in


def refused_everywhere(site: Site, token: str) -> bool:
    return all(site.ask("GET", "/auth/v1/none", token, ops=False).status == 401 for _ in range(12))


@pytest.mark.parametrize("kind", ["jti", "subject"])
def test_a_revocation_holds_when_it_is_answered(
    site: Site, ask: Callable[..., Answer], changed: Callable[..., Any], kind: str
) -> None:
    token = site.token("auditor", subject=f"leaver-{kind}")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert site.ask("GET", "/auth/v1/none", token, ops=False).status == 404
    value = claims["jti"] if kind == "jti" else claims["sub"]
    done, event = changed("POST", "/revocations", {"kind": kind, "value": value, "reason": "left"})
    assert done.status == 201
    assert (len(done.json["known_by"]), done.json["late"]) == (WORKERS, [])
    assert (event["detail"]["target"], event["detail"]["reason"]) == (f"revocation/{kind}", "left")
    assert refused_everywhere(site, token)
    newest = ask("GET", "/revocations?limit=1").json
    (row,) = newest["items"]
    assert (row["kind"], row["value"], row["author"], row["reason"]) == (kind, value, OPERATOR, "left")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        pytest.param({"kind": "before", "value": "x"}, "", id="before takes no value"),
        pytest.param({"kind": "jti"}, "", id="a token has an id"),
        pytest.param({"kind": "jti", "value": "x", "role": "auditor"}, "", id="a token is revoked whole"),
        pytest.param({"kind": "before", "before": "2999-01-01T00:00:00Z"}, "/before", id="in the future"),
        pytest.param({"kind": "before", "before": "2026-01-01T00:00:00"}, "/before", id="without a zone"),
        pytest.param({"kind": "everything"}, "/kind", id="no kind"),
    ],
)
def test_what_cannot_be_revoked(ask: Callable[..., Answer], body: dict[str, Any], pointer: str) -> None:
    answer = ask("POST", "/revocations", {**body, "reason": "x"})
    assert answer.status == 422
    assert [fault["pointer"] for fault in answer.json["errors"]] == [pointer]


def test_sessions_are_seen_and_ended_with_their_tokens(
    site: Site, ask: Callable[..., Answer], changed: Callable[..., Any]
) -> None:
    account, sessions = "a" * 22, [f"{number:022d}" for number in range(3)]
    hashed = "$argon2id$v=19$m=65536,t=3,p=1$" + "A" * 22 + "$" + "A" * 43
    token = site.token("patient", "patient=p-9", f"sid={sessions[1]}", subject="p-9")
    assert site._postgres is not None
    with psycopg.connect(site._postgres.admin_dsn, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO caregate.account (id, login, subject, role, password) VALUES (%s, 'p9', 'p-9', 'patient', %s)",
            (account, hashed),
        )
        for session in sessions:
            admin.execute(
                "INSERT INTO caregate.session (id, account, client, role, issuer, audience, methods, ends_at) VALUES"
                " (%s, %s, 'app', 'patient', 'https://id', 'patient-app', '{pwd}', now() + interval '1 day')",
                (session, account),
            )  # fmt: skip
    listed, cursor = [], ""
    while True:
        page = ask("GET", f"/sessions?subject=p-9&limit=2{cursor}").json
        listed += page["items"]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert {one["id"] for one in listed} == set(sessions)
    assert len(listed) == 3
    assert ask("GET", "/sessions?subject=nobody").json["items"] == []
    ended, event = changed("POST", f"/sessions/{sessions[1]}/end", {"reason": "lost phone"})
    assert (ended.json["ended_why"], event["detail"]["target"]) == ("operator", f"session/{sessions[1]}")
    assert event["detail"]["before"] != event["detail"]["digest"]
    assert changed("POST", f"/sessions/{sessions[1]}/end", {"reason": "again"})[0].json == ended.json
    assert ask("GET", f"/sessions/{sessions[1]}").json == ended.json
    assert changed("POST", f"/sessions/{'z' * 22}/end", {"reason": "x"})[0].status == 404
    until_s = time.monotonic() + 10
    while not refused_everywhere(site, token):
        assert time.monotonic() < until_s


def test_a_role_gets_a_new_key_and_an_old_one_is_retired(
    site: Site, ask: Callable[..., Answer], changed: Callable[..., Any]
) -> None:
    token = site.token("auditor", subject="auditor-1")
    (key,) = ask("GET", "/keys?role=auditor").json["items"]
    assert (key["kid"], key["alg"], key["source"], key["signs"]) == ("auditor-1", "EdDSA", "document", True)
    last, _ = changed("POST", "/keys/auditor-1/retire", {"reason": "x"})
    assert last.status == 409
    made, event = changed("POST", "/keys/auditor/rotate", {"reason": "yearly", "overlap_s": 600})
    assert made.status == 201
    assert (made.json["alg"], made.json["late"], len(made.json["known_by"])) == ("EdDSA", [], WORKERS)
    assert event["detail"]["target"] == f"role/auditor/key/{made.json['kid']}"
    listed = {one["kid"]: one for one in ask("GET", "/keys?role=auditor").json["items"]}
    assert (listed[made.json["kid"]]["signs"], listed["auditor-1"]["live"]) == (True, True)
    assert site.ask("GET", "/auth/v1/none", token, ops=False).status == 404
    retired, event = changed("POST", "/keys/auditor-1/retire", {"reason": "leaked"})
    assert (retired.json["role"], retired.json["late"]) == ("auditor", [])
    assert event["detail"]["before"] != event["detail"]["digest"]
    assert refused_everywhere(site, token)
    assert changed("POST", "/keys/auditor-1/retire", {"reason": "again"})[0].status == 409
    assert changed("POST", "/keys/nobody/rotate", {"reason": "x"})[0].status == 404
    assert ask("GET", "/keys?role=nobody").status == 404


# --- explain


def test_a_past_request_is_explained_by_its_id(
    site: Site, ask: Callable[..., Answer], wait: Callable[..., Any]
) -> None:
    answer = site.ask("GET", "/portal/v1/me", site.token("hcu_clerk"), ops=False)
    assert answer.status == 401
    rid = answer.headers["x-request-id"]
    found = wait(lambda: (a := ask("GET", f"/explain/requests/{rid}")).status == 200 and a).json
    assert (found["rule"], found["status"], found["role"]) == ("audience", 401, "hcu_clerk")
    assert "patient" not in found
    assert "client_address" not in found
    run = command(site, "--request", rid, "--json", "--data-dir", str(site.directory))
    assert run.returncode == 1
    told = json.loads(run.stdout)
    assert {name: told[name] for name in ("rule", "route", "config_version", "subject")} == {
        name: found[name] for name in ("rule", "route", "config_version", "subject")
    }
    assert ask("GET", "/explain/requests/00000000-0000-4000-8000-000000000000").status == 404


def test_the_command_and_the_api_explain_alike(site: Site, ask: Callable[..., Answer]) -> None:
    token = site.token("partner", subject="p-2")
    for target, code in (("/partner/v1/statistics", 0), ("/portal/v1/me", 1), ("/nowhere", 1)):
        answered = ask("POST", "/explain", {"method": "GET", "target": target, "token": token}).json
        run = command(
            site, "GET", target, "--token", "-", "--json", "--run-dir", str(site.directory / "run"), stdin=token
        )
        assert run.returncode == code, run.stderr
        told = json.loads(run.stdout)
        for one in (told, answered):
            one["steps"] = [(step["step"], step["outcome"]) for step in one["steps"]]
        assert told == answered
        shown = command(site, "GET", target, "--token", token, "--run-dir", str(site.directory / "run"))
        assert ("REFUSED" in shown.stdout) == (code == 1)
        assert token not in shown.stdout


@pytest.mark.parametrize(
    ("patient", "rule", "status"), [(story.OTHER, "allowed", 0), (story.WITHDRAWN, "consent", 403)], ids=["yes", "no"]
)
def test_a_consent_is_asked_for_where_it_is_wanted(
    site: Site, ask: Callable[..., Answer], patient: str, rule: str, status: int
) -> None:
    """The portal's own function, by the API and by the command; without the wish nobody is asked."""
    token = site.token("practitioner", f'units=["{story.HOSPITAL}"]', subject="user-weber")
    target = f"/units/v1/{story.HOSPITAL}/patients/{patient}/conditions"
    asked = {"method": "GET", "target": target, "token": token, "purpose": "TREAT"}
    for wish, wanted in (
        (False, ("allowed", 0, "not-asked")),
        (True, (rule, status, "refused" if status else "passed")),
    ):
        found = ask("POST", "/explain", {**asked, "ask_consent": wish}).json
        step = next(step for step in found["steps"] if step["step"] == "consent")
        assert (found["rule"], found["status"], step["outcome"]) == wanted
        assert step["facts"] == {"function": "portal.consent_permits"}
        told = command(
            site, "GET", target, "--token", "-", "--purpose", "TREAT", "--run-dir", str(site.directory / "run"),
            *(["--ask-consent"] if wish else []), stdin=token,
        )  # fmt: skip
        assert told.returncode == (1 if wanted[1] else 0), told.stdout + told.stderr
        assert ("if the patient consents" in told.stdout) == (not wish)


def command(site: Site, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "explain", *arguments], input=stdin, capture_output=True, text=True,
        check=False, env=site._env, cwd=ROOT,
    )  # fmt: skip


def test_the_page_shows_the_fleet_without_a_token_on_loopback(site: Site) -> None:
    found = site.ask("GET", "/status/fleet").json
    assert [worker["phase"] for worker in found["workers"]] == ["serving"] * WORKERS
    assert {unit["unit"]: unit["state"] for unit in found["units"]}[story.HOSPITAL] == "never-connected"
    assert b"Caregate" in site.ask("GET", "/console").body
