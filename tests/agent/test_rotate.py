"""The key directory, and a running agent's key that is replaced."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from gateway.agent import enrol as enrolment
from gateway.agent.context_token import ContextVerifier, load_context
from gateway.agent.endpoint import gateway_endpoint
from gateway.agent.enrol import EnrolmentFailed, KeyDirectory, enrol, rotate
from gateway.agent.identity import load_identity
from gateway.agent.post import Refused
from gateway.agent.rotate import AGAIN_S, Rotation

GATEWAY = gateway_endpoint("https://gateway.example/base")
CONTEXT, NEXT_CONTEXT = "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE", "YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI"


@dataclass
class Asked:
    target: str
    body: dict
    token: str | None


class Gateway:
    """Answers registrations."""

    def __init__(self):
        self.asked = []
        self.context = CONTEXT
        self.fault = None
        self.kid = None

    def post(self, gateway, target, body, token=None, ca_file=None):
        asked = Asked(target, json.loads(body), token)
        self.asked.append(asked)
        if self.fault is not None:
            raise self.fault
        from gateway.auth.keys import load_public_key

        kid = self.kid or load_public_key(asked.body["public_key"], alg="EdDSA").thumbprint
        return {"unit": "north", "kid": kid, "context_key": self.context, "overlap_s": 600 if token else None}


@pytest.fixture
def gateway(monkeypatch):
    made = Gateway()
    monkeypatch.setattr(enrolment, "post", made.post)
    return made


@pytest.fixture
def keys(tmp_path):
    return KeyDirectory(tmp_path / "keys")


def test_enrolment_leaves_what_an_agent_starts_with(gateway, keys):
    done = enrol(GATEWAY, "north", "CODE", keys)
    assert gateway.asked[0].target == "/base/relay/v1/enrol"
    identity = load_identity("north", None, keys.key)
    assert (identity.kid, identity.directory) == (done.kid, keys.path)
    assert sorted(path.name for path in keys.path.iterdir()) == ["context.key", "enrolled.json", "unit.key"]
    assert {path.stat().st_mode & 0o777 for path in keys.path.iterdir()} == {0o600}
    assert keys.path.stat().st_mode & 0o777 == 0o700
    assert keys.context.read_bytes() == b"a" * 32


def test_a_lost_answer_is_asked_for_again_with_the_same_key(gateway, keys):
    gateway.fault = Refused(0, "no answer in time")
    with pytest.raises(EnrolmentFailed, match="no answer in time"):
        enrol(GATEWAY, "north", "CODE", keys)
    gateway.fault = None
    enrol(GATEWAY, "north", "CODE", keys)
    first, second = (asked.body["public_key"] for asked in gateway.asked)
    assert first == second
    with pytest.raises(EnrolmentFailed, match="is there already"):
        enrol(GATEWAY, "north", "CODE", keys)


def test_an_answer_for_another_key_is_not_believed(gateway, keys):
    gateway.kid = "another"
    with pytest.raises(EnrolmentFailed, match="another key"):
        enrol(GATEWAY, "north", "CODE", keys)
    assert not keys.key.exists()


def test_rotation_is_vouched_for_by_the_old_key(gateway, keys):
    old = enrol(GATEWAY, "north", "CODE", keys).kid
    gateway.context = NEXT_CONTEXT
    done = rotate(GATEWAY, "north", keys, context=True)
    assert done.kid != old
    assert (done.overlap_s, done.context_changed) == (600, True)
    assert gateway.asked[1].target == "/base/relay/v1/keys"
    assert gateway.asked[1].body["context"] is True
    assert gateway.asked[1].token.count(".") == 2
    assert keys.contexts() == [b"b" * 32, b"a" * 32]


def test_a_verifier_accepts_the_context_key_before_too(gateway, keys):
    import jwt

    enrol(GATEWAY, "north", "CODE", keys)
    gateway.context = NEXT_CONTEXT
    rotate(GATEWAY, "north", keys, context=True)
    verifier = load_context("north", keys.context)
    for secret in (b"a" * 32, b"b" * 32):
        assert verifier.verify(jwt.encode({"aud": "north", "exp": 100}, secret, "HS256"), 50.0)["exp"] == 100
    with pytest.raises(ValueError, match="signature"):
        verifier.verify(jwt.encode({"aud": "north", "exp": 100}, b"c" * 32, "HS256"), 50.0)


def test_another_units_record_does_not_name_the_key(gateway, keys):
    enrol(GATEWAY, "north", "CODE", keys)
    assert load_identity("south", None, keys.key).kid == "south"
    assert load_identity("north", "mine", keys.key).kid == "mine"


class Lines:
    def __init__(self):
        self.events = []

    def info(self, event, **_):
        self.events.append(event)

    warning = info


@pytest.fixture
def running(gateway, keys):
    """An agent's settings on an enrolled key, its log, and its rotation under a clock of ours."""
    enrol(GATEWAY, "north", "CODE", keys)
    registered_s = keys.registered_s()
    clock, log = SimpleNamespace(now=registered_s), Lines()
    settings = SimpleNamespace(
        gateway=GATEWAY,
        identity=load_identity("north", None, keys.key),
        context=ContextVerifier("north", b"a" * 32),
        ca_file=None,
        rotate_after_s=1_000.0,
    )
    rotation = Rotation(settings, log, now=lambda: clock.now, pause=lambda s: None, draw=lambda: 1.0)
    return SimpleNamespace(settings=settings, clock=clock, log=log, rotation=rotation, registered_s=registered_s)


def test_a_key_is_replaced_when_it_is_old(running, keys, gateway):
    old = running.settings.identity.kid
    running.clock.now += 999
    running.rotation.look(keys)
    assert (running.settings.identity.kid, running.log.events) == (old, [])
    running.clock.now += 1
    running.rotation.look(keys)
    assert running.settings.identity.kid == load_identity("north", None, keys.key).kid != old
    assert running.log.events == ["rotated", "key_in_use"]


def test_a_rotation_that_fails_is_tried_again_later_with_the_same_key(running, keys, gateway):
    old = running.settings.identity.kid
    gateway.fault = Refused(503, "503 Database unavailable")
    running.clock.now += 1_000
    for _ in range(3):
        running.rotation.look(keys)
    assert len(gateway.asked) == 2, "once beside the enrolment"
    assert running.settings.identity.kid == old
    gateway.fault = None
    running.clock.now += AGAIN_S
    running.rotation.look(keys)
    assert gateway.asked[1].body["public_key"] == gateway.asked[2].body["public_key"]
    assert running.settings.identity.kid != old


def test_what_the_command_did_is_taken_up(running, keys, gateway):
    gateway.context = NEXT_CONTEXT
    done = rotate(GATEWAY, "north", keys)
    running.rotation.look(keys)
    assert running.settings.identity.kid == done.kid
    assert running.settings.identity.token(0.0).count(".") == 2


def test_never_means_never(running, keys):
    running.settings.rotate_after_s = 0
    rotation = Rotation(running.settings, running.log, now=lambda: 1e12)
    rotation.look(keys)
    assert running.log.events == []
