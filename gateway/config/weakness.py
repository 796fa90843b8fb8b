"""Is a shared secret one that somebody could guess? Judged by its bytes alone."""

from __future__ import annotations

import base64
import re
from collections import Counter
from itertools import pairwise
from math import log2

MIN_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Source: RFC 7518 section 3.2: at least as long as the hash."""

MIN_DISTINCT = 8
MIN_ENTROPY_BITS = 80.0
"""Units: bits, of the bytes' own distribution; 32 random hexadecimal digits have about 115."""
MIN_UNGUESSED_BYTES = 16

_WORDS = re.compile(
    rb"super|secret|change|replace|passw[o0]rd|passphrase|default|example|insecure|private|shared|token|access|"
    rb"refresh|your|this|that|with|least|long|bits?|string|enough|must|please|before|production|development|test|demo|"
    rb"keyboard|qwerty|letmein|admin|caregate|gateway|jwt|hmac|sha|key|the|not|for|use|me|my|is|in|an|at|to|be|"
    rb"0123|1234|2345|4567|5678|6789|7890|abcd|efgh|256|384|512|[ -/:-@\[-`{-~]",
    re.IGNORECASE,
)

_PUBLISHED = frozenset(
    base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for text in (
        # RFC 7515, appendix A.1
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
        # RFC 7517, appendix A.3
        "GawgguFyGrWKav7AX4VKUg",
        # RFC 7520, section 3.5
        "hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg",
        # RFC 7520, section 3.6
        "AAPapAv4LbFbiVawEjagUBluYqN5rhna-8nuldDvOx8",
    )
)
_PUBLISHED_TEXTS = frozenset(base64.urlsafe_b64encode(secret).rstrip(b"=") for secret in _PUBLISHED)
_KEY_FILE = re.compile(rb"-----BEGIN |\Assh-|\Aecdsa-sha2-|\A\s*\{\s*\"(?:kty|keys)\"")


def weakness(secret: bytes, alg: str) -> str | None:
    """Why a secret may not be used with an HS algorithm, or None; the reason never holds the secret."""
    if len(secret) < MIN_BYTES[alg]:
        return f"is too short for {alg}: {len(secret)} bytes, at least {MIN_BYTES[alg]}"
    if secret in _PUBLISHED or secret.rstrip(b"=") in _PUBLISHED_TEXTS:
        return "is a published example key"
    if _KEY_FILE.search(secret):
        # SEC: a public key used as a shared secret lets anyone who has the public key sign.
        return "is a key file of another kind, not a shared secret"
    return _guessable(secret)


def _guessable(secret: bytes) -> str | None:
    if _period(secret) <= len(secret) // 2:
        return "repeats itself"
    if len(set(secret)) < MIN_DISTINCT or _entropy_bits(secret) < MIN_ENTROPY_BITS:
        return "is too regular to be random"
    if _is_sequence(secret):
        return "is a sequence of neighbouring characters"
    if len(_WORDS.sub(b"", secret)) < MIN_UNGUESSED_BYTES:
        return "is made of well-known words"
    return None


def _entropy_bits(secret: bytes) -> float:
    total = len(secret)
    return -sum(n * log2(n / total) for n in Counter(secret).values())


def _is_sequence(secret: bytes) -> bool:
    steps = Counter((b - a) % 256 for a, b in pairwise(secret))
    return steps.most_common(1)[0][1] > len(secret) // 2


def _period(secret: bytes) -> int:
    """The length of the shortest piece whose repetition makes the whole.

    Source: Knuth, Morris, Pratt 1977: the length less the longest border.
    """
    border = [0] * len(secret)
    k = 0
    for i in range(1, len(secret)):
        while k and secret[i] != secret[k]:
            k = border[k - 1]
        k += secret[i] == secret[k]
        border[i] = k
    return len(secret) - border[-1]
