"""What a caller's Idempotency-Key becomes: refused, ignored, or the digest that a unit's ledger knows it by."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gateway.context import Principal, RequestContext
from gateway.errors import BadRequest
from gateway.relay.registry import Membership, Registry
from gateway.relay.request import _idempotency


def digest(key="k", *, subject="s", issuer="i", route="r", method="POST", twice=(), anonymous=False):
    ctx = RequestContext("id", 0, method)
    if not anonymous:
        ctx.principal = Principal(subject, issuer, "a", "role", frozenset(), "t", "kid", 0.0, {})
    env = {"caregate.duplicate": frozenset(twice)}
    if key is not None:
        env["HTTP_IDEMPOTENCY_KEY"] = key
    return _idempotency(ctx, SimpleNamespace(name=route), env)


@pytest.mark.parametrize("key", ["k", "k" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "!~"], ids=str)
def test_a_key_becomes_a_digest(key):
    found = digest(key)
    assert len(found) == 64
    assert key not in found
    assert found == digest(key)


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", "a\tb", "k\n", "caf\xe9", "\x7f"], ids=repr)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_malformed_key_is_refused(key, method):
    with pytest.raises(BadRequest):
        digest(key, method=method)


def test_two_keys_are_refused():
    with pytest.raises(BadRequest):
        digest("a", twice=["idempotency-key"])


@pytest.mark.parametrize(
    "change",
    [{"key": "other"}, {"subject": "other"}, {"issuer": "other"}, {"route": "other"}, {"subject": "", "issuer": "si"}],
    ids=str,
)
def test_every_part_counts(change):
    assert digest(**change) != digest()


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_what_changes_nothing_needs_no_ledger(method):
    assert digest(method=method) is None


def test_no_key_and_nobody():
    assert digest(None) is None
    assert digest(anonymous=True) is None


@pytest.mark.parametrize(
    ("local", "remote", "keyed"),
    [
        ([], [], False),
        ([True], [], True),
        ([True, True], [True], True),
        ([True, False], [], False),
        ([True], [False], False),
        ([], [True], True),
    ],
)
def test_a_unit_keeps_keys_if_all_its_agents_do(local, remote, keyed):
    registry = Registry()
    for n, keeps in enumerate(local):
        connection = SimpleNamespace(unit="u", conn=str(n), seat=("i", n), epoch=n, keeps_keys=keeps)
        registry.register(connection)
    for n, keeps in enumerate(remote):
        registry.add_remote(object(), Membership("u", f"r{n}", n, "other", n, keeps))
    assert registry.keeps_keys("u") is keyed
    assert registry.keeps_keys("another") is False
