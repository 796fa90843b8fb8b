"""Breaking the glass on a real platform: what it opens, what it does not, who reviews, what stays of it."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from gateway.demo import story

pytestmark = pytest.mark.integration

CASES = "/access/v1/break-glass"
REVIEWS = "/access/v1/break-glass-reviews"
REASON = "brought in unconscious, allergies unknown"


@pytest.fixture(scope="module")
def issue(platform):
    """Tokens as the platform's own service would give them."""

    def make(role: str, **claims) -> str:
        argv = [sys.executable, "-m", "gateway.cli.main", "token", "issue", "--config",
                str(platform.directory / "caregate.yaml"), "--role", role]  # fmt: skip
        for name, value in claims.items():
            argv += ["--claim", f"{name}={json.dumps(value) if not isinstance(value, str) else value}"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=platform._env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return make


@pytest.fixture(scope="module")
def doctor(issue):
    return issue("practitioner", sub="user-emergency", units=[story.CLINIC], auth_time=int(time.time()))


def record(unit: str, patient: str) -> str:
    return f"/units/v1/{unit}/patients/{patient}/observations"


def search(unit: str, query: str) -> str:
    return f"/fhir/v1/{unit}/Observation?{query}"


def events(platform, case: str) -> list[tuple[str, str]]:
    with psycopg.connect(platform._postgres.admin_dsn) as admin:
        return admin.execute(
            "SELECT kind, outcome FROM audit.event WHERE canonical::text LIKE %s ORDER BY occurred_at", (f"%{case}%",)
        ).fetchall()


def test_one_record_is_opened_read_ended_and_reviewed(platform, call, wait, doctor, issue):
    wait(lambda: call("GET", record(story.CLINIC, story.OTHER), doctor).status == 200)
    assert call("GET", record(story.HOSPITAL, story.OTHER), doctor).status == 403
    opened = call("POST", CASES, doctor, {"unit": story.HOSPITAL, "patient": story.OTHER, "reason": REASON})
    assert opened.status == 201, opened.body
    case = opened.json["case"]
    assert opened.json["until_s"] - opened.json["started_at_s"] == pytest.approx(3_600)
    # Every worker knows at once.
    for _ in range(12):
        assert call("GET", record(story.HOSPITAL, story.OTHER), doctor).status == 200
    for unit, patient, method in (
        (story.HOSPITAL, story.OWN, "GET"), (story.POST, story.OTHER, "GET"), (story.HOSPITAL, story.OTHER, "POST"),
    ):  # fmt: skip
        assert call(method, record(unit, patient), doctor).status in (403, 405), (unit, patient, method)
    named = f"subject=Patient/{story.OTHER}"
    assert call("GET", search(story.HOSPITAL, named), doctor).status == 200
    for unit, query in (
        (story.HOSPITAL, f"patient={story.OWN}"), (story.HOSPITAL, f"{named}&patient={story.OWN}"),
        (story.POST, named), (story.HOSPITAL, "code=x"),
    ):  # fmt: skip
        assert call("GET", search(unit, query), doctor).status == 403, (unit, query)
    assert [one["case"] for one in call("GET", CASES, doctor).json["cases"]] == [case]
    assert call("DELETE", f"{CASES}/{case}", doctor).status == 204
    assert call("GET", record(story.HOSPITAL, story.OTHER), doctor).status == 403
    assert call("GET", search(story.HOSPITAL, named), doctor).status == 403
    assert call("DELETE", f"{CASES}/{case}", doctor).status == 404

    auditor = issue("auditor", sub="user-auditor", auth_time=int(time.time()))
    queued = call("GET", REVIEWS, auditor).json["cases"]
    assert case in [one["case"] for one in queued]
    review = {"verdict": "justified", "comment": "seen in the emergency room"}
    assert call("POST", f"{CASES}/{case}/review", doctor, review).status == 403
    written = call("POST", f"{CASES}/{case}/review", auditor, review)
    assert written.status == 200
    assert written.json["review"]["verdict"] == "justified"
    assert call("POST", f"{CASES}/{case}/review", auditor, review).status == 409
    assert case not in [one["case"] for one in call("GET", REVIEWS, auditor).json["cases"]]

    found = wait(lambda: (rows := events(platform, case)) and len(rows) >= 22 and rows)
    kinds = [kind for kind, _ in found]
    assert kinds[0] == "break-glass.started"
    assert kinds.count("break-glass.used") == 13
    done = [kind for kind, outcome in found if outcome == "allowed"]
    assert done[-2:] == ["break-glass.ended", "break-glass.reviewed"]
    # The end a second time, the review by its holder, and a second one.
    refused = [kind for kind, outcome in found if outcome == "refused" and kind != "access"]
    assert refused == ["break-glass.ended", "break-glass.reviewed", "break-glass.reviewed"]
    with psycopg.connect(platform._postgres.admin_dsn) as admin:
        rules = admin.execute(
            "SELECT count(*) FROM audit.event WHERE rule = 'break-glass' AND phase = 'outcome' AND subject = %s",
            ("user-emergency",),
        ).fetchone()
    assert rules == (13,)


def test_a_unit_s_own_reviewer_sees_its_own_cases(platform, call, doctor, issue):
    made = call("POST", CASES, doctor, {"unit": story.POST, "patient": story.OTHER, "reason": REASON, "for_s": 60})
    assert made.status == 201
    case = made.json["case"]
    own = issue("hcu_admin", sub="admin-post", units=[story.POST])
    other = issue("hcu_admin", sub="admin-clinic", units=[story.CLINIC])
    assert case in [one["case"] for one in call("GET", REVIEWS, own).json["cases"]]
    assert case not in [one["case"] for one in call("GET", REVIEWS, other).json["cases"]]
    review = {"verdict": "unjustified", "comment": "nobody was brought in"}
    assert call("POST", f"{CASES}/{case}/review", other, review).status == 404
    for comment in (" ", "seen\0"):
        assert call("POST", f"{CASES}/{case}/review", own, {**review, "comment": comment}).status == 422
    assert call("POST", f"{CASES}/{case}/review", own, review).status == 200


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        pytest.param(b"{", 400, None, id="no JSON"),
        pytest.param({}, 422, "", id="nothing"),
        pytest.param({"unit": story.HOSPITAL, "patient": "p", "reason": "short"}, 422, "/reason", id="no reason"),
        pytest.param({"unit": "nowhere", "patient": "p", "reason": REASON}, 422, "/unit", id="unknown unit"),
        pytest.param({"unit": story.HOSPITAL, "patient": "p", "reason": REASON, "for_s": 14_401}, 422, "/for_s",
                     id="too long"),
        pytest.param({"unit": story.HOSPITAL, "patient": "p", "reason": REASON, "for_s": 59}, 422, "/for_s",
                     id="too short"),
        pytest.param({"unit": story.HOSPITAL, "patient": 7, "reason": REASON}, 422, "/patient", id="a number"),
        pytest.param({"unit": story.HOSPITAL, "patient": "p", "reason": REASON, "more": 1}, 422, "", id="one more"),
        pytest.param({"unit": story.HOSPITAL, "patient": "p", "reason": " " * 20}, 422, "/reason", id="blanks"),
        pytest.param({"unit": story.HOSPITAL, "patient": "p", "reason": f"{REASON}\0"}, 422, "/reason", id="NUL"),
        pytest.param({"unit": story.HOSPITAL, "patient": "p\0", "reason": REASON}, 422, "/patient", id="NUL in an id"),
    ],
)  # fmt: skip
def test_bad_bodies(call, doctor, body, status, pointer):
    answer = call("POST", CASES, doctor, body)
    assert answer.status == status, answer.body
    if pointer is not None:
        assert [one["pointer"] for one in answer.json["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("role", "claims", "status", "error"),
    [
        pytest.param("practitioner", {"auth_time": 600}, 401, "insufficient_user_authentication", id="an old login"),
        pytest.param("practitioner", {}, 401, "insufficient_user_authentication", id="no word of a login"),
        pytest.param("practitioner", {"auth_time": -600}, 401, "insufficient_user_authentication", id="a later login"),
        pytest.param("hcu_clerk", {"auth_time": 0}, 403, "insufficient_scope", id="a role that may not"),
    ],
)
def test_who_may_not(call, issue, role, claims, status, error):
    now_s = int(time.time())
    about = {name: now_s - ago_s for name, ago_s in claims.items()}
    token = issue(role, sub="user-x", units=[story.CLINIC], **about)
    answer = call("POST", CASES, token, {"unit": story.HOSPITAL, "patient": story.OTHER, "reason": REASON})
    assert answer.status == status
    assert f'error="{error}"' in answer.headers["WWW-Authenticate"]


def test_nobody_without_a_token(call):
    assert call("POST", CASES, None, {}).status == 401
    assert call("GET", REVIEWS).status == 401
    assert call("GET", f"{REVIEWS}?before=1", "PRACTITIONER").status == 403
    assert call("DELETE", f"{CASES}/1;x", "PRACTITIONER").status == 404


def test_a_case_is_told_to_whoever_the_configuration_names(platform, tmp_path):
    """The service itself, over a real HTTP server that takes the second attempt."""
    from gateway.breakglass.model import Case
    from gateway.breakglass.service import _post

    told = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            told.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(503 if len(told) == 1 else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    case = Case("c", "i", "s", "practitioner", "", "north", "p-1", REASON, 1.0, 2.0, 0.0, 0.0, "", "", "")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        assert not _post((endpoint,), "/hooks", case)
        assert _post(("http://127.0.0.1:1", endpoint), "/hooks", case)
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path, _ in told] == ["/hooks", "/hooks"]
    assert told[1][1]["event"] == "break-glass"
    assert told[1][1]["unit"] == "north"
