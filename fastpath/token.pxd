"""Verified tokens as other kernels read them."""

from libc.stdint cimport uint8_t, uint64_t

from fastpath.remembered cimport Digest, Remembered
from fastpath.revoked cimport Revoked


cdef class Key:
    cdef readonly str kid
    cdef readonly str alg
    cdef readonly str issuer
    cdef readonly frozenset audiences
    cdef readonly str role
    cdef readonly object max_lifetime_s
    cdef readonly object epoch
    cdef readonly object attachment
    cdef object _mapping
    cdef double _max_lifetime_s
    cdef Py_ssize_t _signature_bytes
    cdef object _inner
    cdef object _outer
    cdef object _verifies

    cdef _take_secret(self, material)
    cdef _take_public_key(self, material)
    cdef bint _signed(self, bytes signature, bytes data) except -1


cdef class Verified:
    cdef readonly dict claims
    cdef readonly Key key
    cdef readonly str audience
    cdef readonly str subject
    cdef readonly str jti
    cdef readonly str role
    cdef readonly double expires_at_s
    cdef public object principal
    cdef public object grant
    # The bucket of `grant`, 0 while there is none that is his alone: known here, it is fetched before `grant` is there.
    cdef uint64_t bucket
    cdef double _valid_from_s
    cdef readonly double issued_at_s
    cdef uint64_t _epoch


cdef class Verifier:
    cdef dict _by_kid
    cdef dict _by_alg
    cdef set _live
    cdef dict _issuers
    cdef dict _headers
    cdef readonly Revoked revocations
    cdef readonly frozenset known_audiences
    cdef tuple _checks
    cdef double _leeway_s
    cdef bint _require_kid
    cdef bint _require_sub
    cdef Py_ssize_t _max_token_bytes
    cdef Py_ssize_t _generation_size
    cdef Py_ssize_t _young_bytes
    cdef Remembered _young
    cdef Remembered _old
    cdef uint64_t _secret[2]
    cdef readonly Py_ssize_t hits
    cdef readonly Py_ssize_t misses

    cdef _add(self, Key key)
    cdef Verified verify_text(self, const uint8_t* text, Py_ssize_t size, const Digest* digest, double now_s)
    cdef Verified hit_text(self, const uint8_t* text, Py_ssize_t size, Digest* digest, double now_s)
    cdef bint _is_revoked(self, Verified verified) except -1
    cdef bint _holds(self, Verified verified, double now_s) except -1
    cdef int _check_again(self, Verified verified, double now_s) except -1
    cdef int _check_times(self, Verified verified, double now_s) except -1
    cdef int _remember(self, const Digest* digest, Py_ssize_t size, Verified verified) except -1
    cdef Verified _verify_unseen(self, const uint8_t* text, Py_ssize_t n, double now_s)
    cdef Key _find_key(self, dict header, str issuer)
    cdef Verified _check_claims(self, Key key, dict claims, double now_s)
    cdef str _audience(self, Key key, aud)
