"""Revoked tokens of one worker: they outlive configurations, databases and, on disk, the worker."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from fastpath.token import Verifier
from gateway.auth.model import Revocation, Revocations, RevokedToken
from gateway.auth.revocations import FORGET_EVERY_S, RevokedTokens
from gateway.config.snapshot import SnapshotHolder


def holder():
    return SnapshotHolder(snapshot())


def snapshot():
    return SimpleNamespace(version=1, verifier=Verifier([]), unit_verifier=Verifier([]))


def test_revocations_go_on_under_another_configuration():
    held = holder()
    revoked = RevokedTokens(held)
    assert revoked.take(Revocations(2, [RevokedToken("a", 100.0)]))
    held.swap(snapshot())
    revoked.take(Revocations(3, [RevokedToken("b", 200.0)]))
    assert held.current.verifier.revoked == {"a": 100.0, "b": 200.0}
    assert not revoked.take(Revocations(3, [RevokedToken("c", 300.0)]))


def test_another_database_allows_nothing_again():
    held = holder()
    revoked = RevokedTokens(held)
    revoked.take(Revocations(9, [RevokedToken("a", 100.0)]))
    assert revoked.take(Revocations(1, [], whole=True))
    assert revoked.revision == 1
    assert held.current.verifier.revoked == {"a": 100.0}


def test_what_has_run_out_is_forgotten_now_and_then():
    held, now_s = holder(), [100.0]
    revoked = RevokedTokens(held, lambda: now_s[0])
    revoked.tick()
    revoked.take(Revocations(2, [RevokedToken("a", 90.0), RevokedToken("b", 1e6)]))
    revoked.tick()
    assert set(held.current.verifier.revoked) == {"a", "b"}
    now_s[0] += FORGET_EVERY_S
    revoked.tick()
    assert set(held.current.verifier.revoked) == {"b"}


def test_the_copy_restores_it():
    first = RevokedTokens(holder())
    first.take(Revocations(5, [RevokedToken("a", 100.0)]))
    held = holder()
    second = RevokedTokens(held)
    second.take(first.whole())
    assert (second.revision, held.current.verifier.revoked) == (5, {"a": 100.0})


RULE = Revocation(kind="subject", value="s", before_s=50.0, until_s=1e6, audience="staff")


def test_rules_go_on_under_another_configuration_and_from_the_disk():
    held = holder()
    revoked = RevokedTokens(held)
    told = []
    revoked.on_change = lambda: told.append(revoked.revision)
    assert revoked.take(Revocations(2, [], [RULE]))
    held.swap(snapshot())
    assert revoked.whole() == Revocations(2, [], [RULE], whole=True)
    second = RevokedTokens(holder())
    second.take(msgspec.json.decode(msgspec.json.encode(revoked.whole()), type=Revocations))
    assert second.whole().rules == [RULE]
    assert told == [2]


def test_both_verifiers_of_every_snapshot_share_what_is_revoked():
    held = holder()
    revoked = RevokedTokens(held)
    held.swap(snapshot())
    revoked.take(Revocations(2, [RevokedToken("a", 100.0)]))
    assert held.current.unit_verifier.revoked == {"a": 100.0}


@pytest.mark.parametrize(
    ("rule", "issued_s", "refused"),
    [
        ({"kind": "unit", "value": "north"}, 49.0, True),
        ({"kind": "unit", "value": "north"}, 50.0, False),
        ({"kind": "unit", "value": "north"}, -1.0, True),
        ({"kind": "unit", "value": "south"}, 49.0, False),
        ({"kind": "subject", "value": "north"}, 49.0, True),
        ({"kind": "jti", "value": "j"}, 60.0, True),
        ({"kind": "before"}, 49.0, True),
        ({"kind": "before", "audience": "unit-link"}, 49.0, True),
        ({"kind": "before", "audience": "staff"}, 49.0, False),
        ({"kind": "before", "role": "nurse"}, 49.0, False),
    ],
    ids=str,
)
def test_links(rule, issued_s, refused):
    revoked = RevokedTokens(holder())
    revoked.take(Revocations(2, [], [Revocation(before_s=50.0, until_s=1e6, **rule)]))
    assert revoked.refuses_link("north", "j", issued_s) is refused
