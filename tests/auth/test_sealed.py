"""Private keys at rest: only the key that sealed them opens them, and only as what they were sealed."""

from __future__ import annotations

import pytest

from gateway.auth.sealed import KeyEncryptionKey, KeySeal
from gateway.auth.vault import Unsealable

OLD, NEW = KeyEncryptionKey(b"o" * 32), KeyEncryptionKey(b"n" * 40)
ABOUT = ("kid-1", "nurse", "ES256")


def test_what_is_sealed_opens_again_and_differs_each_time():
    seal = KeySeal(OLD)
    sealed = {seal.seal(b"private", *ABOUT) for _ in range(5)}
    assert len(sealed) == 5
    assert {seal.open(one, *ABOUT) for one in sealed} == {b"private"}
    assert not any(b"private" in one for one in sealed)
    assert {one[:4] for one in sealed} == {b"CGK\x01"}
    assert {one[4:12] for one in sealed} == {OLD.id}


@pytest.mark.parametrize("other", [("kid-2", *ABOUT[1:]), ("kid-1", "admin", "ES256"), ("kid-1", "nurse", "EdDSA")])
def test_a_row_that_was_changed_opens_for_nobody(other):
    with pytest.raises(Unsealable):
        KeySeal(OLD).open(KeySeal(OLD).seal(b"private", *ABOUT), *other)


@pytest.mark.parametrize("at", [0, 3, 4, 11, 12, 24, -1])
def test_every_byte_counts(at):
    sealed = bytearray(KeySeal(OLD).seal(b"private", *ABOUT))
    sealed[at] ^= 1
    with pytest.raises(Unsealable):
        KeySeal(OLD).open(bytes(sealed), *ABOUT)


@pytest.mark.parametrize("sealed", [b"", b"CGK\x01", b"CGK\x01" + OLD.id, b"x" * 64])
def test_garbage(sealed):
    with pytest.raises(Unsealable):
        KeySeal(OLD).open(sealed, *ABOUT)


def test_two_keys_during_a_change():
    old = KeySeal(OLD).seal(b"private", *ABOUT)
    both = KeySeal(NEW, OLD)
    assert both.open(old, *ABOUT) == b"private"
    assert not both.is_current(old)
    new = both.seal(b"private", *ABOUT)
    assert both.is_current(new)
    assert KeySeal(NEW).open(new, *ABOUT) == b"private"
    with pytest.raises(Unsealable, match="not known here"):
        KeySeal(NEW).open(old, *ABOUT)


def test_a_short_key_is_refused():
    with pytest.raises(ValueError, match="at least 32"):
        KeyEncryptionKey(b"x" * 31)
