"""Idempotency keys from caller to local service: run once through kills, restarts and full disks."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from pathlib import Path

import jwt
import pytest

from gateway.cli.main import main
from gateway.cli.token import issue

pytestmark = pytest.mark.integration

CREATED = b"HTTP/1.1 201 Created\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\nmade!"


class Unit:
    """A real agent with a state directory, in front of a service that counts."""

    def __init__(self, rig, directory):
        self.rig, self.directory = rig, directory
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.service = rig.service(self.behave)
        self.process = None
        self.callers = {}

    def behave(self, sock, head, body):
        self.may_answer.wait(8)
        sock.sendall(CREATED)

    @property
    def ran(self):
        return len(self.service.seen)

    def start(self, *prefix, ledger=True):
        more = ["--state-dir", str(self.directory)] if ledger else []
        self.process = self.rig.agent(self.service.port, self.rig.UNIT, None, *more, prefix=prefix)
        self.rig.settle(self.rig.UNIT)
        return self

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(10)
        self.rig.settle(self.rig.UNIT, present=False)

    def post(self, key, body=b"one", *, worker=0, path="x", route="probe", method="POST", token=None):
        headers = {} if key is None else {"Idempotency-Key": key}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        pid = self.rig.pids()[worker]
        # A connection is one caller's at a time; finding one to a certain worker takes many attempts.
        caller = self.callers.pop(pid, None) or self.rig.caller(pid)
        answer = caller(method, f"/{route}/v1/{self.rig.UNIT}/{path}", body, **headers)
        if answer.headers["Connection"] != "close":
            self.callers[pid] = caller
        return answer

    def in_background(self, key, **options):
        """A request whose answer is in the list when it has come."""
        found = []
        thread = threading.Thread(target=lambda: found.append(self.post(key, **options)), daemon=True)
        thread.start()
        return thread, found


@pytest.fixture
def unit(rig, tmp_path):
    return Unit(rig, tmp_path)


@pytest.fixture
def key():
    return str(uuid.uuid4())


def check(answer, status, code, *, retryable, delivery):
    problem = answer.problem
    found = answer.status, problem["type"].rpartition(":")[2], problem["retryable"], problem["delivery"]
    assert found == (status, code, retryable, delivery)


def test_the_repeat_gets_the_kept_answer_at_every_worker(unit, key):
    unit.start()
    first = unit.post(key)
    assert (first.status, first.body, first.headers["Idempotent-Replayed"]) == (201, b"made!", None)
    for worker in range(4):
        again = unit.post(key, worker=worker)
        assert (again.status, again.body, again.headers["Idempotent-Replayed"]) == (201, b"made!", "true")
        assert again.headers["Content-Type"] == first.headers["Content-Type"]
        assert again.headers["Relay-Source"] == "unit"
        assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert unit.ran == 1
    assert unit.post(None).status == 201
    assert unit.post(str(uuid.uuid4())).status == 201
    assert unit.ran == 3


def test_another_request_under_the_key(unit, key):
    unit.start()
    assert unit.post(key).status == 201
    for change in ({"body": b"two"}, {"path": "y"}, {"method": "PUT"}):
        check(unit.post(key, **change), 422, "idempotency-key-reused", retryable=False, delivery="not_dispatched")
    assert unit.ran == 1


def test_the_route_is_part_of_the_key(unit, key):
    unit.start()
    assert unit.post(key).status == 201
    assert unit.post(key, route="bulk").headers["Idempotent-Replayed"] is None
    assert unit.ran == 2


@pytest.fixture
def token_for(platform):
    """A new token of the same practitioner, with these units."""
    config = Path(platform._env["CAREGATE_CONFIG_PATH"])
    return lambda *units: issue(config, "practitioner", {"sub": "keyed", "units": list(units)}, 600)[0]


def test_what_was_withdrawn_meanwhile_gets_no_kept_answer(unit, key, token_for):
    """The key is the caller's still: it is authorization, run again, that says no. With a right token it is kept."""
    unit.start()
    token = token_for(unit.rig.UNIT)
    assert unit.post(key, route="own", token=token).status == 201
    without_unit = unit.post(key, route="own", token=token_for(unit.rig.OTHER))
    assert (without_unit.status, without_unit.headers["Idempotent-Replayed"]) == (403, None)
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    assert main(["revoke", "jti", jti, "--reason", "a test", "--data-dir", str(unit.rig.platform.directory)]) == 0
    for worker in range(4):
        revoked = unit.post(key, route="own", token=token, worker=worker)
        assert (revoked.status, revoked.headers["Idempotent-Replayed"]) == (401, None)
    again = unit.post(key, route="own", token=token_for(unit.rig.UNIT))
    assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert unit.ran == 1


def test_a_malformed_key(unit):
    unit.start()
    for bad in ("", "a b", "k" * 256, "caf\xe9"):
        answer = unit.post(bad)
        assert (answer.status, answer.problem["type"]) == (400, "urn:caregate:problem:bad-request")
    assert unit.ran == 0


def test_while_the_first_runs(unit, key, wait):
    unit.start()
    unit.may_answer.clear()
    thread, found = unit.in_background(key, route="bulk")
    wait(lambda: unit.ran)
    answer = unit.post(key, route="bulk")
    check(answer, 409, "idempotency-in-progress", retryable=True, delivery="not_dispatched")
    assert int(answer.headers["Retry-After"]) >= 1
    unit.may_answer.set()
    thread.join(5)
    assert found[0].body == b"made!"
    assert unit.ran == 1


def test_a_caller_that_left_finds_its_answer(unit, key, wait):
    unit.start()
    unit.may_answer.clear()
    caller = unit.rig.caller(unit.rig.pids()[0])
    caller.send("POST", f"/bulk/v1/{unit.rig.UNIT}/x", b"one", Idempotency_Key=key)
    wait(lambda: unit.ran)
    time.sleep(0.1)
    caller.vanish()
    time.sleep(0.2)
    unit.may_answer.set()
    wait(lambda: unit.post(key, route="bulk").status == 201)
    assert unit.ran == 1


def test_an_agent_killed_between_intent_and_answer(unit, key, wait):
    """And restarted: its outcome is not known, and it is not run again."""
    unit.start()
    unit.may_answer.clear()
    thread, found = unit.in_background(key, route="bulk")
    wait(lambda: unit.ran)
    # The agent's ACK may wait 5 ms for an answer to leave with; without it the delivery would be unknown.
    time.sleep(0.5)
    unit.end(signal.SIGKILL)
    thread.join(5)
    check(found[0], 502, "unit-disconnected", retryable=True, delivery="dispatched")
    unit.may_answer.set()
    unit.start()
    for _ in range(2):
        check(unit.post(key, route="bulk"), 409, "outcome-unknown", retryable=False, delivery="unknown")
    assert unit.ran == 1


def all_answer(rig, workers):
    try:
        return len(rig.states()) == workers
    except OSError:
        return False


def test_restarts_of_agent_and_gateway(unit, key, wait):
    unit.start()
    assert unit.post(key).status == 201
    unit.end(signal.SIGTERM)
    unit.rig.may_lose_workers = True
    old = set(unit.rig.pids())
    arbiter = unit.rig.platform.children["gateway"].process
    arbiter.send_signal(signal.SIGHUP)
    wait(lambda: not old & set(unit.rig.pids()) and len(unit.rig.pids()) == len(old), 40)
    wait(lambda: all_answer(unit.rig, len(old)), 30)
    unit.start()
    again = unit.post(key)
    assert (again.body, again.headers["Idempotent-Replayed"]) == (b"made!", "true")
    assert unit.ran == 1


@pytest.mark.parametrize("ledger", [True, False], ids=["ledger", "no ledger"])
def test_whether_a_keyed_post_may_be_repeated(unit, ledger):
    """The worker that holds the unit knows what the agent announced, and so do the others."""
    unit.start(ledger=ledger)
    unit.may_answer.clear()
    asked = [unit.in_background(str(uuid.uuid4()), worker=worker) for worker in range(4)]
    for thread, found in asked:
        thread.join(10)
        check(found[0], 504, "unit-upstream-timeout", retryable=ledger, delivery="dispatched")
    assert unit.post(None).problem["retryable"] is False
    unit.may_answer.set()


def ruin(directory):
    (directory / "ledger.sqlite").write_bytes(os.urandom(8192))


@pytest.mark.parametrize("fault", ["unreadable", "disk full"])
def test_a_ledger_that_cannot_be_used_refuses_keys_and_nothing_else(unit, fault):
    unit.start().end(signal.SIGTERM)
    if fault == "unreadable":
        ruin(unit.directory)
        unit.start()
    else:
        # The write-ahead log grows until no file may be longer.
        unit.start("bash", "-c", 'ulimit -f 128; exec "$0" "$@"')
    answers = []
    for _ in range(100):
        before = unit.ran
        answers.append(unit.post(str(uuid.uuid4())))
        if answers[-1].status != 201:
            break
    check(answers[-1], 503, "idempotency-unavailable", retryable=True, delivery="not_dispatched")
    assert unit.ran == before
    assert unit.post(None).status == 201
