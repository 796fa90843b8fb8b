"""RSA verification against Python's pow and cryptography's signatures, with and without the processor's help."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.rsa import EXPONENT, WAYS, Check, Modulus
from gateway.auth.keys import SignatureCheck

PRIVATE = rsa.generate_private_key(EXPONENT, 2048)
MODULUS = PRIVATE.public_key().public_numbers().n
TEXT = b"header.payload"
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
EXTREMES = [2**2048 - 1, 2**2047 + 1, 2**2048 - 2**52 + 1, 2**2047 + 2**1040 - 1]


def sign(size: str, text: bytes = TEXT, pad: padding.AsymmetricPadding | None = None) -> bytes:
    return PRIVATE.sign(text, pad or padding.PKCS1v15(), HASHES[size])


def digest(size: str, text: bytes = TEXT) -> bytes:
    return hashlib.new(f"sha{size}", text).digest()


@pytest.mark.parametrize("way", WAYS)
class TestPower:
    @pytest.mark.parametrize("modulus", [MODULUS, *EXTREMES], ids=["drawn", "ones", "sparse", "gap", "halves"])
    def test_of_extreme_bases(self, modulus: int, way: str) -> None:
        key = Modulus(modulus, "256", way=way)
        ones = sum((2**52 - 1) << 104 * i for i in range(20))
        for base in (0, 1, 2, modulus - 1, modulus - 2, modulus // 2, 2**2047 - 1, 2**1040, ones % modulus):
            assert key.power(base.to_bytes(256, "big")) == pow(base, EXPONENT, modulus)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(2**2047, 2**2048 - 1), st.integers(0, 2**2048 - 1))
    def test_of_any(self, way: str, modulus: int, base: int) -> None:
        modulus |= 1
        expected = pow(base, EXPONENT, modulus) if base < modulus else None
        assert Modulus(modulus, "256", way=way).power(base.to_bytes(256, "big")) == expected

    def test_of_what_is_not_less_than_the_modulus(self, way: str) -> None:
        key = Modulus(EXTREMES[1], "256", way=way)
        assert [key.power((EXTREMES[1] + more).to_bytes(256, "big")) for more in (-1, 0, 1)] == [
            EXTREMES[1] - 1,
            None,
            None,
        ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", HASHES)
class TestOpens:
    def test_a_signature(self, size: str, way: str) -> None:
        key = Modulus(MODULUS, size, way=way)
        for text in (TEXT, b"", b"x" * 10_000):
            assert key.opens(sign(size, text), digest(size, text))

    def test_nothing_else(self, size: str, way: str) -> None:
        key, good, wanted = Modulus(MODULUS, size, way=way), sign(size), digest(size)
        number = int.from_bytes(good, "big")
        for bit in (0, 1, 51, 52, 1023, 1024, 2040):
            assert not key.opens((number ^ 1 << bit).to_bytes(256, "big"), wanted)
        other = "512" if size == "256" else "256"
        for signature in (
            good[1:],
            good + b"\0",
            b"\0" + good,
            b"",
            bytes(256),
            b"\xff" * 256,
            sign(other),
            sign(size, b"other"),
        ):
            assert not key.opens(signature, wanted)
        assert not key.opens(good, wanted[1:])
        assert not key.opens(good, digest(size, b"other"))
        assert not key.opens(good, digest(other))

    def test_another_padding(self, size: str, way: str) -> None:
        pss = padding.PSS(padding.MGF1(HASHES[size]), HASHES[size].digest_size)
        assert not Modulus(MODULUS, size, way=way).opens(sign(size, pad=pss), digest(size))

    def test_an_encoding_that_is_right_but_for_its_hash_or_padding(self, size: str, way: str) -> None:
        private = PRIVATE.private_numbers()
        raw = sign(size)
        encoded = pow(int.from_bytes(raw, "big"), EXPONENT, MODULUS)
        key = Modulus(MODULUS, size, way=way)
        assert key.opens(pow(encoded, private.d, MODULUS).to_bytes(256, "big"), digest(size))
        for bit in (0, 7, 8 * len(digest(size)), 1000, 2030, 2032):
            forged = pow(encoded ^ 1 << bit, private.d, MODULUS)
            assert not key.opens(forged.to_bytes(256, "big"), digest(size)), bit

    def test_the_same_signature_plus_the_modulus(self, size: str, way: str) -> None:
        number = int.from_bytes(sign(size), "big") + MODULUS
        key = Modulus(MODULUS, size, way=way)
        assert number >= 2**2048 or not key.opens(number.to_bytes(256, "big"), digest(size))


@pytest.mark.parametrize(
    "modulus", [MODULUS >> 1 | 1, MODULUS << 1 | 1, MODULUS & ~1, 3], ids=["2047 bits", "2049 bits", "even", "small"]
)
def test_another_modulus_is_refused(modulus: int) -> None:
    with pytest.raises(ValueError, match="2048"):
        Modulus(modulus, "256")


def test_the_processor_is_not_asked_for_what_it_cannot() -> None:
    with pytest.raises(ValueError, match="cannot compute by avx9"):
        Modulus(MODULUS, "256", way="avx9")


class TestSignatureCheck:
    @pytest.mark.parametrize(("bits", "exponent"), [(2048, 65537), (2048, 3), (3072, 65537)])
    @pytest.mark.parametrize("size", HASHES)
    def test_every_key_verifies_whoever_computes(self, bits: int, exponent: int, size: str) -> None:
        private = rsa.generate_private_key(exponent, bits) if (bits, exponent) != (2048, EXPONENT) else PRIVATE
        check = SignatureCheck(f"RS{size}", private.public_key())
        good = private.sign(TEXT, padding.PKCS1v15(), HASHES[size])
        assert check.verifies(good, TEXT)
        assert not check.verifies(good, b"other")
        assert not check.verifies(good[:-1] + bytes([good[-1] ^ 1]), TEXT)

    def test_what_the_kernel_does_not_open_somebody_else_is_asked(self) -> None:
        asked: list[tuple[bytes, bytes]] = []

        def otherwise(signature: bytes, data: bytes) -> bool:
            asked.append((signature, data))
            return data == b"other"

        check = Check(Modulus(MODULUS, "256"), otherwise)
        assert check.verifies(sign("256"), TEXT)
        assert asked == []
        assert check.verifies(sign("256"), b"other")
        assert not check.verifies(sign("256"), b"neither")
        assert asked == [(sign("256"), b"other"), (sign("256"), b"neither")]
