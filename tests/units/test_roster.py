"""What is registered, joined to the configuration in force."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastpath.token import Key, TokenError
from gateway.units.model import Changes, ContextRow, UnitRow
from gateway.units.roster import Roster

NOW_S = 1_800_000_000.0


@pytest.fixture
def clock():
    return SimpleNamespace(now=NOW_S)


@pytest.fixture
def roster(holder, clock):
    made = Roster(holder, lambda: clock.now)
    made.told = 0
    made.on_change = lambda: setattr(made, "told", made.told + 1)
    return made


def verdict(holder, key, now_s=NOW_S):
    """ "good", or the code of the refusal."""
    try:
        verified = holder.current.unit_verifier.verify(key.identity.token(now_s), now_s)
    except TokenError as error:
        return error.code
    assert verified.key.attachment == key.unit
    return "good"


def test_a_registered_key_signs(roster, holder, site_key):
    key = site_key()
    assert verdict(holder, key) == "unknown-key"
    assert roster.take(Changes(1, keys=[key.row()]))
    assert verdict(holder, key) == "good"
    assert roster.told == 1
    assert not roster.take(Changes(1, keys=[])), "nothing new"


def test_a_revoked_key_signs_no_more_even_if_its_token_was_seen(roster, holder, site_key):
    key = site_key()
    roster.take(Changes(1, keys=[key.row()]))
    token = key.identity.token(NOW_S)
    holder.current.unit_verifier.verify(token, NOW_S)
    roster.take(Changes(2, keys=[key.row(revoked=True)]))
    with pytest.raises(TokenError):
        holder.current.unit_verifier.verify(token, NOW_S)
    assert roster.refuses("north", key.kid) == "key-revoked"
    assert roster.refuses("north", "another") == ""


def test_a_retired_key_signs_until_its_moment_and_cuts_no_link(roster, holder, site_key, clock):
    key = site_key()
    roster.take(Changes(1, keys=[key.row(retires_s=NOW_S + 60)]))
    roster.tick()
    assert verdict(holder, key) == "good"
    clock.now += 60
    roster.tick()
    assert verdict(holder, key, clock.now) == "unknown-key"
    assert roster.refuses("north", key.kid) == ""


def test_a_revoked_unit_is_not_enabled_until_it_is_again(roster, holder):
    roster.take(Changes(1, units=[UnitRow("north", revoked=True), UnitRow("elsewhere", revoked=True)]))
    assert not holder.current.units["north"].enabled
    assert roster.refuses("north", "") == "revoked"
    roster.take(Changes(2, units=[UnitRow("north", revoked=False)]))
    assert holder.current.units["north"].enabled


def test_what_the_document_disabled_stays_disabled(roster, holder):
    roster.take(Changes(1, units=[UnitRow("closed", revoked=True)]))
    roster.take(Changes(2, units=[UnitRow("closed", revoked=False)]))
    assert not holder.current.units["closed"].enabled


def test_a_swap_takes_everything_along_before_it_is_in_force(roster, holder, site_key, snapshot_of):
    key = site_key()
    roster.take(Changes(1, keys=[key.row()], units=[UnitRow("south", revoked=True)]))
    seen = []
    holder.subscribe(lambda snapshot: seen.append((verdict(holder, key), snapshot.units["south"].enabled)))
    holder.swap(snapshot_of())
    assert seen == [("good", False)]
    roster.take(Changes(2, keys=[key.row(revoked=True)]))
    assert verdict(holder, key) == "unknown-key"


def test_a_kid_of_the_document_is_the_documents_until_it_is_revoked(roster, holder, site_key, snapshot_of):
    key = site_key()
    secret = b"s" * 32
    holder.swap(snapshot_of(Key(key.kid, "HS256", secret, issuer="north", audiences=["unit-link"], attachment="x")))
    roster.take(Changes(1, keys=[key.row()]))
    assert verdict(holder, key) == "algorithm"
    roster.take(Changes(2, keys=[key.row(revoked=True)]))
    assert verdict(holder, key) == "unknown-key"


def test_context_keys_begin_at_their_time(roster, holder, clock):
    rows = [ContextRow("north", 1, "a" * 43, NOW_S - 1), ContextRow("north", 2, "b" * 43, NOW_S + 60)]
    roster.take(Changes(1, contexts=[*rows, ContextRow("south", 1, "c" * 43, NOW_S - 1)]))
    assert holder.current.units["north"].context_key == b"a" * 43
    assert holder.current.units["south"].context_key == b"context-key-of-the-document-32-bytes"
    clock.now += 60
    roster.tick()
    assert holder.current.units["north"].context_key == b"b" * 43
    assert "b" * 43 not in repr(rows[1])


def test_another_database_begins_anew(roster, holder, site_key):
    old, new = site_key(), site_key()
    roster.take(Changes(900, keys=[old.row()], units=[UnitRow("south", revoked=True)]))
    assert roster.take(Changes(3, keys=[new.row()], whole=True))
    assert (verdict(holder, old), verdict(holder, new)) == ("unknown-key", "good")
    assert holder.current.units["south"].enabled
    assert roster.revision == 3


def test_everything_can_be_kept_and_taken_again(roster, holder, site_key, snapshot_of):
    from gateway.config.snapshot import SnapshotHolder

    key, gone = site_key(), site_key("south")
    roster.take(
        Changes(7, [UnitRow("south", True)], [key.row(), gone.row(revoked=True)], [ContextRow("north", 1, "a" * 43, 0)])
    )
    other_holder = SnapshotHolder(snapshot_of())
    other = Roster(other_holder, lambda: NOW_S)
    other.take(roster.whole())
    assert (verdict(other_holder, key), verdict(other_holder, gone)) == ("good", "unknown-key")
    assert other.whole() == roster.whole()


def test_a_key_that_cannot_be_used_does_not_stop_the_others(roster, holder, site_key):
    bad, good = site_key(), site_key()
    broken = bad.row()
    broken = type(broken)(broken.kid, "north", "EdDSA", "no key", broken.created_s)
    roster.take(Changes(1, keys=[broken, good.row()]))
    assert (verdict(holder, bad), verdict(holder, good)) == ("unknown-key", "good")
