"""Bearer tokens: compact JWS signed by a known key, decoded, checked and remembered.

Strict on purpose, where a lenient reader gives an attacker a second spelling or a second meaning of one token:
base64url without padding or spare bits, UTF-8 JSON without a byte order mark, no duplicate member at any depth. The key
decides algorithm, issuer, audiences and role; the token never does. CPU only: the caller hands in the time.

Source: RFC 7515 (JWS), RFC 7518 (algorithms), RFC 7519 (claims), RFC 8037 (EdDSA), RFC 8725 (best current practice).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport floor
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcpy

from fastpath.remembered cimport Digest, Remembered
from fastpath.revoked cimport Revoked
from fastpath.primitives cimport fetch, siphash128
from fastpath.strict cimport base64url_bytes, decode_json_object, der_signature

import hashlib
import hmac
import math
import os

cdef enum:
    MAX_TOKEN_BYTES = 8192
    MAX_HEADERS = 64  # a key's tokens mostly have the same one, which is read once
    MEAN_TOKEN_BYTES = 1024  # the cache holds at most this many bytes of token text per entry on average

cdef double MAX_DATE_S = 253402300799.0  # 9999-12-31T23:59:59Z
cdef object _same_bytes = hmac.compare_digest
cdef object _absent = object()


class TokenError(ValueError):
    """A token that is refused: `code` for programs, `detail` for people. Neither echoes the token.

    Shapes: `code` is malformed, header, algorithm, unknown-key, signature, expired, not-yet-valid, issued-in-future,
    issuer, audience, subject, lifetime, role, claims, bound, revoked or too-large.
    """

    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class UnknownKey(TokenError):
    """No key of ours has signed the token. Shapes: `issuer` is that of a provider, whose key `kid` may be a new one."""

    def __init__(self, issuer=None, kid=None):
        super().__init__("unknown-key", "no key of ours has signed the token")
        self.issuer = issuer
        self.kid = kid


cdef dict _decode_part(bytes text, str what):
    """The JSON object in a token's part. Raises: TokenError."""
    try:
        return decode_json_object(text)
    except ValueError as error:
        raise TokenError("malformed", f"the {what} {error}") from None


# --- keys

cdef dict _HMAC_HASH = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
cdef dict _EC_SIGNATURE_BYTES = {"ES256": 64, "ES384": 96, "ES512": 132}
ALGORITHMS = frozenset(
    ["EdDSA"] + [family + size for family in ("HS", "RS", "PS", "ES") for size in ("256", "384", "512")]
)
cdef frozenset _ALGORITHMS = ALGORITHMS


@cython.auto_pickle(False)
@cython.final
cdef class Key:
    """A key that may sign tokens, and everything that only the key decides. Immutable; prints no secret.

    Shapes: `material` is the secret (bytes) for HS*, else an object with `alg` and `verifies(signature, data) -> bool`;
    an ES* signature is handed to it as a DER sequence. `issuer` None checks no issuer; `role` None no role.
    `attachment` is the caller's. `epoch` grows when a key is replaced under the same kid. `mapping(claims)` says what the
    claims of another's token mean here, as (role, audience, claims, maximum lifetime); it may raise TokenError.
    Raises: ValueError if the material does not fit the algorithm.
    """

    def __init__(
        self, kid, alg, material, *, issuer, audiences, role=None, max_lifetime_s=None, epoch=0, attachment=None,
        mapping=None,
    ):
        if alg not in _ALGORITHMS:
            raise ValueError("the algorithm is not one that tokens are signed with")
        if kid is not None and not kid:
            raise ValueError("the kid is empty")
        if max_lifetime_s is not None and not max_lifetime_s > 0:
            raise ValueError("the maximum lifetime is not positive")
        self.kid, self.alg, self.issuer, self.role = kid, alg, issuer, role
        self.audiences = frozenset(audiences)
        self.max_lifetime_s, self.epoch, self.attachment, self._mapping = max_lifetime_s, epoch, attachment, mapping
        self._max_lifetime_s = math.inf if max_lifetime_s is None else max_lifetime_s
        if alg in _HMAC_HASH:
            self._take_secret(material)
        else:
            self._take_public_key(material)

    cdef _take_secret(self, material):
        """PERF: `token HS256, never seen`: HMAC (RFC 2104) from the two hash states that depend on the secret alone
        takes half of OpenSSL's one-shot HMAC, which fetches the digest and keys both states anew for each token."""
        if type(material) is not bytes:
            raise ValueError(f"{self.alg} takes a secret of bytes")
        new = getattr(hashlib, _HMAC_HASH[self.alg])
        inner, outer = new(), new()
        if len(material) < inner.digest_size:
            raise ValueError(f"{self.alg} takes a secret of at least {inner.digest_size} bytes")
        # SEC: a public key taken for a secret lets everyone who knows it sign.
        if b"-----BEGIN" in material or material.startswith((b"ssh-", b"ecdsa-sha2-")):
            raise ValueError("the secret is the text of an asymmetric key")
        block = new(material).digest() if len(material) > inner.block_size else material
        block = block.ljust(inner.block_size, b"\0")
        inner.update(bytes([byte ^ 0x36 for byte in block]))
        outer.update(bytes([byte ^ 0x5C for byte in block]))
        self._inner, self._outer, self._signature_bytes = inner, outer, inner.digest_size

    cdef _take_public_key(self, material):
        if isinstance(material, (bytes, str)) or getattr(material, "alg", None) != self.alg:
            raise ValueError(f"{self.alg} takes a public key made for it")
        self._verifies = material.verifies
        self._signature_bytes = _EC_SIGNATURE_BYTES.get(self.alg, 0)

    def __repr__(self):
        return f"Key(kid={self.kid!r}, alg={self.alg!r})"

    cdef bint _signed(self, bytes signature, bytes data) except -1:
        if self._inner is not None:
            state = self._inner.copy()
            state.update(data)
            outer = self._outer.copy()
            outer.update(state.digest())
            return _same_bytes(outer.digest(), signature)
        if self._signature_bytes:
            if len(signature) != self._signature_bytes:
                return False
            signature = der_signature(signature)
            if signature is None:
                return False
        return self._verifies(signature, data) is True


# --- verified tokens


# PERF: `policy_rs256_unique` of `make bench`: nothing here leads back to it, and the collector need not walk every caller.
@cython.no_gc
@cython.auto_pickle(False)
@cython.final
cdef class Verified:
    """What a token says, once all of it was checked. Shared by every request that carries the token: read only, but for
    `principal` and `grant`, which are the caller's.

    Shapes: `role` is the key's, or what its mapping gives. Units: `expires_at_s` seconds since 1970, whole; `issued_at_s` seconds, -1 if not said.
    """

    def __repr__(self):
        return f"Verified(key={self.key!r}, audience={self.audience!r})"


cdef double _date(dict claims, str name) except -2.0:
    """A NumericDate; -1 if there is none. Raises: TokenError."""
    value = claims.get(name, _absent)
    if value is _absent:
        return -1.0
    cdef double seconds
    if type(value) is int or type(value) is float:
        seconds = value
        if 0.0 <= seconds <= MAX_DATE_S:
            return seconds
    raise TokenError("claims", f"{name} is not a number of seconds from 1970 to 9999")


cdef str _text(dict claims, str name, str code):
    """A claim that is a non-empty string if it is there at all. Raises: TokenError."""
    value = claims.get(name, _absent)
    if value is _absent:
        return None
    if type(value) is not str or not value:
        raise TokenError(code, f"{name} is not a non-empty string")
    return value


cdef frozenset _REFUSED_HEADERS = frozenset(
    "crit b64 jwk jku x5u x5c x5t x5t#S256 zip enc epk apu apv iv tag p2s p2c".split()
)


cdef dict _header(const uint8_t* text, Py_ssize_t n):
    """The header in a token's first part.

    SEC: what a token brings along to be verified with is the sender's choice; an extension that changes how it is
    read is not ours to guess.
    """
    cdef bytes raw = base64url_bytes(text, n)
    if raw is None:
        raise TokenError("malformed", "the token is not three parts of base64url")
    cdef dict header = _decode_part(raw, "header")
    if not _REFUSED_HEADERS.isdisjoint(header):
        raise TokenError("header", "the header embeds a key or asks for an extension")
    alg = header.get("alg")
    if type(alg) is not str:
        raise TokenError("header", "the header has no alg")
    if alg not in _ALGORITHMS:
        raise TokenError("algorithm", "the algorithm is not one that tokens are signed with")
    kid = header.get("kid", _absent)
    if kid is not _absent and (type(kid) is not str or not kid):
        raise TokenError("header", "kid is not a non-empty string")
    if type(header.get("cty", "")) is not str:
        raise TokenError("header", "cty is not a string")
    typ = header.get("typ", _absent)
    if typ is not _absent and typ != "JWT" and not _is_access_token_type(typ):
        raise TokenError("header", "typ is not that of a bearer token")
    return header


cdef bint _is_access_token_type(typ) except -1:
    """SEC: another kind of JWT by the same issuer (a logout token, a proof of possession) is no bearer token (RFC 8725,
    3.11). Types that no JWT is registered under say nothing and pass, as RFC 7519, 5.1 has it."""
    if type(typ) is not str:
        return False
    name = typ.lower().removeprefix("application/")
    return name == "at+jwt" or not (name.endswith("+jwt") or name == "jose+json" or name == "jwe")


@cython.final
cdef class Verifier:
    """Verifies tokens against a fixed set of keys and remembers those that passed.

    The cache holds at most `cache_size` tokens in two generations (a token used since the last turn survives the next
    one), known by a keyed hash of 128 bits and not kept as text, and those of on average 1 KiB; what is refused is
    never kept, so a flood of tokens grows nothing. A hit checks time, revocation and the key again. Not for use from
    several threads at once.
    Shapes: `known_audiences` are the audiences this gateway has at all, by default those of `keys`; `revoked` maps a
    jti to the time until which its revocation must be kept; `checks` are (claim, is it good?, what it must be), run on
    the claims that are there.
    Units: `leeway_s`, `now_s` seconds.
    Raises: ValueError for keys that cannot be told apart.
    """

    def __init__(
        self, keys, *, leeway_s=0, require_kid=True, require_sub=True, known_audiences=None, cache_size=65536,
        max_token_bytes=MAX_TOKEN_BYTES, checks=(),
    ):
        if not 1 <= max_token_bytes <= MAX_TOKEN_BYTES:
            raise ValueError(f"max_token_bytes is not 1 to {MAX_TOKEN_BYTES}")
        if not 0 <= leeway_s <= 3600:
            raise ValueError("leeway_s is not 0 to 3600")
        self._by_kid, self._by_alg, self._live, self._issuers, self._headers = {}, {}, set(), {}, {}
        self._leeway_s, self._require_kid, self._require_sub = leeway_s, require_kid, require_sub
        for key in keys:
            self._add(key)
        self.known_audiences = (
            frozenset().union(*[key.audiences for key in self._live])
            if known_audiences is None
            else frozenset(known_audiences)
        )
        self.revocations = Revoked()
        self._checks = tuple(checks)
        self._max_token_bytes = max_token_bytes
        self._generation_size = max(cache_size, 0) // 2
        memcpy(self._secret, PyBytes_AS_STRING(os.urandom(16)), 16)
        self.clear()

    cdef _add(self, Key key):
        if key.kid is None and self._require_kid:
            raise ValueError("a key without kid where every token must have one")
        if key.kid is not None:
            if key.kid in self._by_kid:
                raise ValueError(f"two keys with the kid {key.kid!r}")
            self._by_kid[key.kid] = key
        self._by_alg.setdefault(key.alg, []).append(key)
        self._live.add(key)

    # --- what a cached token is checked against

    @property
    def revoked(self):
        """The ids of revoked tokens, and until when each is kept."""
        return self.revocations.jtis

    def revoke_jti(self, jti: str, until_s=math.inf):
        """Refuses the token from now on. Units: `until_s`: the token's expiry, after which nothing need be kept."""
        self.revocations.revoke("jti", jti, 0.0, until_s)

    def share(self, Revoked revocations not None):
        """What is revoked there is refused here from now on, and nothing else."""
        self.revocations = revocations
        self.clear()

    def forget_revoked(self, double now_s):
        """Drops the revocations of tokens that have expired anyway."""
        self.revocations.forget(now_s - self._leeway_s)

    def retire(self, kid: str):
        """Refuses everything the key signed. Raises: KeyError if there is none of that kid."""
        key = self._by_kid.pop(kid)
        self._by_alg[key.alg].remove(key)
        self._live.discard(key)

    def add(self, Key key not None):
        """Takes one more key. Raises: ValueError if there is one of its kid."""
        self._add(key)

    def replace(self, Key key not None):
        """Puts a key in the place of the one with the same kid: what that one signed is refused.

        Raises: KeyError if there is none of that kid; ValueError unless the epoch has grown.
        """
        if not key.epoch > self._by_kid[key.kid].epoch:
            raise ValueError("the epoch has not grown")
        self.retire(key.kid)
        self._add(key)

    def set_issuer(self, str issuer not None, keys):
        """From now on these keys, and no others, sign what names that issuer; it has kids of its own.

        Raises: ValueError for a key without kid or of another issuer, and for two of one kid.
        """
        by_kid = {}
        for key in keys:
            if key.kid is None or key.kid in by_kid or key.issuer != issuer:
                raise ValueError("the keys of an issuer have its name, and a kid each")
            by_kid[key.kid] = key
        self._live.difference_update(self._issuers.get(issuer, {}).values())
        self._live.update(by_kid.values())
        self._issuers[issuer] = by_kid

    def clear(self):
        """Forgets all verified tokens."""
        self._young, self._old, self._young_bytes = Remembered(), Remembered(), 0

    def __len__(self):
        return self._young.count + self._old.count

    # --- verification

    def verify(self, token, double now_s):
        """Raises: TokenError; ValueError if `now_s` is no time; TypeError if `token` is neither str nor bytes."""
        cdef Digest digest
        cdef const uint8_t* text
        cdef Py_ssize_t size
        if type(token) is bytes:
            token = token.decode("latin-1")
        elif type(token) is not str:
            raise TypeError("a token is str or bytes")
        if not token.isascii():
            raise TokenError("malformed", "the token is not three parts of base64url")
        text = <const uint8_t*> PyUnicode_AsUTF8AndSize(token, &size)
        siphash128(digest.words, self._secret, text, <size_t> size)
        return self.verify_text(text, size, &digest, now_s)

    cdef Verified verify_text(self, const uint8_t* text, Py_ssize_t size, const Digest* digest, double now_s):
        """`verify` for other kernels, of ASCII text whose digest they know."""
        cdef Verified verified
        cdef PyObject* found = self._young.find(digest)
        cdef bint aged = found == NULL
        if not 0.0 <= now_s <= MAX_DATE_S:
            raise ValueError("now_s is not a time")
        if size > self._max_token_bytes:
            raise TokenError("too-large", "the token is longer than the gateway accepts")
        if aged:
            found = self._old.find(digest)
        if found == NULL:
            self.misses += 1
            verified = self._verify_unseen(text, size, now_s)
            self._remember(digest, size, verified)
            return verified
        verified = <Verified> found
        self._check_again(verified, now_s)
        if aged:
            self._remember(digest, size, verified)
        self.hits += 1
        return verified

    def hit(self, str token not None, double now_s):
        """What `verify` returns for a token it remembers and would not refuse now; None otherwise."""
        cdef Digest digest
        cdef Py_ssize_t size
        cdef const uint8_t* text = <const uint8_t*> PyUnicode_AsUTF8AndSize(token, &size)
        return self.hit_text(text, size, &digest, now_s)

    cdef Verified hit_text(self, const uint8_t* text, Py_ssize_t size, Digest* digest, double now_s):
        """`hit` for other kernels; `digest` becomes the text's."""
        cdef PyObject* found
        siphash128(digest.words, self._secret, text, <size_t> size)
        found = self._young.find(digest)
        if found == NULL:
            return None
        fetch(found)
        fetch(<const char*> found + 64)
        fetch(<const char*> found + 128)
        if not self._holds(<Verified> found, now_s):
            return None
        self.hits += 1
        return <Verified> found

    cdef bint _holds(self, Verified verified, double now_s) except -1:
        """_check_again without words."""
        return (
            verified.key in self._live
            and 0.0 <= now_s < verified.expires_at_s + self._leeway_s
            and verified._valid_from_s <= now_s + self._leeway_s
            and verified.issued_at_s <= now_s + self._leeway_s
            and (verified._epoch == self.revocations.epoch or not self._is_revoked(verified))
        )

    cdef bint _is_revoked(self, Verified verified) except -1:
        """What is not is marked with the epoch, until which it need not be looked up again."""
        if self.revocations.refuses(
            verified.claims, verified.jti, verified.subject, verified.audience, verified.role, verified.issued_at_s
        ):
            return True
        verified._epoch = self.revocations.epoch
        return False

    cdef int _check_again(self, Verified verified, double now_s) except -1:
        if verified.key not in self._live:
            raise TokenError("unknown-key", "no key of ours has signed the token")
        self._check_times(verified, now_s)
        if verified._epoch != self.revocations.epoch and self._is_revoked(verified):
            raise TokenError("revoked", "the token was revoked")
        return 0

    cdef int _check_times(self, Verified verified, double now_s) except -1:
        if not now_s < verified.expires_at_s + self._leeway_s:
            raise TokenError("expired", "the token has expired")
        if not verified._valid_from_s <= now_s + self._leeway_s:
            raise TokenError("not-yet-valid", "the token is not valid yet")
        if not verified.issued_at_s <= now_s + self._leeway_s:
            raise TokenError("issued-in-future", "the token was issued in the future")
        return 0

    cdef int _remember(self, const Digest* digest, Py_ssize_t size, Verified verified) except -1:
        if self._generation_size == 0:
            return 0
        if (
            self._young.count >= self._generation_size
            or self._young_bytes + size > self._generation_size * MEAN_TOKEN_BYTES
        ):
            self._old, self._young, self._young_bytes = self._young, Remembered(), 0
        self._young.put(digest, verified)
        self._young_bytes += size
        return 0

    cdef Verified _verify_unseen(self, const uint8_t* text, Py_ssize_t n, double now_s):
        cdef const uint8_t* first = <const uint8_t*> memchr(text, 46, <size_t> n)
        cdef const uint8_t* second = NULL
        if first != NULL:
            second = <const uint8_t*> memchr(first + 1, 46, <size_t> (text + n - first - 1))
        if second == NULL or first == text or second == first + 1:
            raise TokenError("malformed", "the token is not three parts of base64url")
        cdef bytes opening = text[:first - text]
        cdef dict header = self._headers.get(opening)
        cdef bytes payload = base64url_bytes(first + 1, second - first - 1)
        cdef bytes signature = base64url_bytes(second + 1, text + n - second - 1)
        if payload is None or signature is None:
            raise TokenError("malformed", "the token is not three parts of base64url")
        cdef bint is_new = header is None
        if is_new:
            header = _header(text, first - text)
        cdef Key key = self._find_key(header, _issuer_in(payload, self._issuers) if self._issuers else None)
        if not key._signed(signature, text[:second - text]):
            raise TokenError("signature", "the signature does not fit")
        # SEC: only what a key of ours has signed is kept, so nobody else decides what is.
        if is_new and len(self._headers) < MAX_HEADERS:
            self._headers[opening] = header
        # SEC: before its signature is known to be good, the payload says nothing but whose key is to be tried.
        return self._check_claims(key, _decode_part(payload, "payload"), now_s)

    cdef Key _find_key(self, dict header, str issuer):
        alg = header["alg"]
        kid = header.get("kid")
        if issuer is not None and kid is not None:
            # SEC: an issuer's kid names a key of that issuer alone, whoever else has one of that kid.
            key = (<dict>self._issuers[issuer]).get(kid)
        elif kid is not None:
            key = self._by_kid.get(kid)
        elif self._require_kid or issuer is not None:
            raise TokenError("header", "the header has no kid")
        else:
            candidates = self._by_alg.get(alg, ())
            key = candidates[0] if len(candidates) == 1 else None
        if key is None:
            raise UnknownKey(issuer, kid)
        if (<Key>key).alg != alg:
            raise TokenError("algorithm", "the algorithm is not the key's")
        return key

    cdef Verified _check_claims(self, Key key, dict claims, double now_s):
        cdef Verified verified = Verified.__new__(Verified)
        cdef double expires_at_s = _date(claims, "exp")
        if expires_at_s < 0:
            raise TokenError("claims", "exp is missing")
        verified.key, verified.claims = key, claims
        # NOTE: a fraction of the last second is cut off, as PyJWT does; of the first, it counts.
        verified.expires_at_s = floor(expires_at_s)
        verified._valid_from_s = _date(claims, "nbf")
        verified.issued_at_s = _date(claims, "iat")
        self._check_times(verified, now_s)
        _check_lifetime(verified, expires_at_s, now_s, key._max_lifetime_s)
        issuer = _text(claims, "iss", "issuer")
        if key.issuer is not None and issuer != key.issuer:
            raise TokenError("issuer", "the issuer is not the key's")
        verified.audience = self._audience(key, claims.get("aud"))
        verified.subject = _text(claims, "sub", "subject")
        if verified.subject is None and self._require_sub:
            raise TokenError("subject", "sub is missing")
        if key.role is not None and claims.get("role", key.role) != key.role:
            raise TokenError("role", "the role is not the key's")
        _check_scope(claims, "scope")
        _check_scope(claims, "scp")
        verified.jti = _text(claims, "jti", "claims")
        verified.role = key.role
        # SEC: it is for whoever proves to have a key (RFC 7800, 3.1), and no proof is asked for here. Whatever it says.
        if "cnf" in claims:
            raise TokenError("bound", "the token is bound to a key of the sender's")
        if key._mapping is not None:
            verified.role, verified.audience, claims, role_lifetime_s = key._mapping(claims)
            verified.claims = claims
            _check_lifetime(verified, expires_at_s, now_s, role_lifetime_s)
        if self._is_revoked(verified):
            raise TokenError("revoked", "the token was revoked")
        for name, is_good, what in self._checks:
            if name in claims and not is_good(claims[name]):
                raise TokenError("claims", f"{name} is not {what}")
        return verified

    cdef str _audience(self, Key key, aud):
        """The one audience of ours that the token is for."""
        cdef str found = None
        if type(aud) is str:
            aud = (aud,)
        elif aud is None:
            raise TokenError("audience", "aud is missing")
        elif type(aud) is not list:
            raise TokenError("audience", "aud is not a string or an array of strings")
        for member in aud:
            if type(member) is not str:
                raise TokenError("audience", "aud is not a string or an array of strings")
            if member in self.known_audiences:
                if found is not None:
                    raise TokenError("audience", "the token is for more than one of our audiences")
                found = member
        if found is None or found not in key.audiences:
            raise TokenError("audience", "the token is for another audience")
        return found


cdef int _check_scope(dict claims, str name) except -1:
    """Source: RFC 8693, 4.2: text; as an array by those who name it `scp`."""
    value = claims.get(name, "")
    if type(value) is list:
        for member in value:
            if type(member) is not str:
                break
        else:
            return 0
    elif type(value) is str:
        return 0
    raise TokenError("claims", f"{name} is not a string or an array of strings")


cdef str _issuer_in(bytes payload, dict issuers):
    """The issuer that a payload names, if it is one of these."""
    try:
        issuer = decode_json_object(payload).get("iss")
    except ValueError:
        return None
    return issuer if type(issuer) is str and issuer in issuers else None


cdef int _check_lifetime(Verified verified, double expires_at_s, double now_s, double longest_s) except -1:
    cdef double from_s = verified.issued_at_s
    if from_s < 0:
        from_s = verified._valid_from_s if verified._valid_from_s >= 0 else now_s
    if expires_at_s - from_s > longest_s:
        raise TokenError("lifetime", "the token lives longer than the key allows")
    return 0
