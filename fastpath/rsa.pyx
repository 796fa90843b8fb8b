"""RSA signatures (PKCS #1 v1.5, 2048 bits, exponent 65537), where the processor multiplies four or eight limbs at a time.

Only verification, so nothing here is secret. A yes is the whole encoded message equal to the one that the hash asks for; a no is
no more than "ask somebody else" (gateway.auth.keys asks cryptography), so a fault here would cost time and refuse nobody.

PERF: `policy_rs256_unique` of `make bench`: with AVX-512 IFMA 5.5 us where `cryptography` takes 15.9, of which its OpenSSL 13
to 14; on a processor with AVX2 alone 13.0 where `cryptography` takes 22.7.
Source: RFC 8017, 8.2.2 and 9.2; Gueron, Krasnov: Software implementation of modular exponentiation, using advanced vector
instructions architectures.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastpath.sha256 cimport SHA256_SIZE, sha256_add, sha256_begin, sha256_end, sha256_here, sha256_sum

import hashlib

cdef extern from "rsa.h" nogil:
    enum:
        RSA_BYTES
        RSA_LIMBS
    ctypedef struct rsa_modulus:
        uint64_t n[RSA_LIMBS]
        uint64_t rr[RSA_LIMBS]
        uint64_t k0
    ctypedef void rsa_multiply(uint64_t* product, const uint64_t* a, const uint64_t* b, const rsa_modulus* modulus)
    rsa_multiply rsa_multiply_plain
    rsa_multiply rsa_multiply_ifma
    int rsa_has_ifma()
    void rsa_load(uint64_t* limbs, const uint8_t* big_endian)
    int rsa_power(uint64_t* power, const uint8_t* base, const rsa_modulus* modulus, rsa_multiply* multiply)

cdef extern from "rsa_avx2.h" nogil:
    enum:
        RSA4_LIMBS
        RSA4_BITS
        RSA4_ROW
    ctypedef struct rsa4_shifted:
        uint64_t by[4][RSA4_ROW]
    ctypedef struct rsa4_modulus:
        rsa4_shifted n
        rsa4_shifted inverse
        uint64_t rr[RSA4_LIMBS]
    int rsa_has_avx2()
    int rsa4_power(uint64_t* power, const uint8_t* base, const rsa_modulus* wide, const rsa4_modulus* modulus)

cdef enum:
    BITS = 8 * 256

LIMB_BITS = 52
EXPONENT = 65537
WAYS = (("ifma",) if rsa_has_ifma() else ()) + (("avx2",) if rsa_has_avx2() else ()) + ("plain",)
"""How this processor can compute, the fastest first; the last is slower than OpenSSL."""

cdef bint _here = sha256_here()
cdef dict _HASHES = {32: hashlib.sha256, 48: hashlib.sha384, 64: hashlib.sha512}
cdef dict _DIGEST_INFO = {
    "256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "512": bytes.fromhex("3051300d060960864801650304020305000440"),
}


cdef _spread(uint64_t* limbs, number, int count, bits):
    cdef int i
    mask = (1 << bits) - 1
    for i in range(count):
        limbs[i] = number >> bits * i & mask


@cython.final
cdef class Modulus:
    """A public key that verifies signatures over one hash.

    Shapes: `modulus` an odd number of exactly 2048 bits; `size` of the hash in bits, as text: 256, 384, 512; `way` one of
    WAYS.
    Raises: ValueError for another modulus or way; KeyError for another hash.
    """

    cdef rsa_modulus _modulus
    cdef void* _block
    cdef rsa4_modulus* _narrow
    cdef rsa_multiply* _multiply
    cdef bytes _opening
    cdef Py_ssize_t _digest_bytes

    def __init__(self, modulus, str size not None, *, str way=None):
        if modulus.bit_length() != BITS or not modulus & 1:
            raise ValueError("not an odd modulus of 2048 bits")
        way = way or WAYS[0]
        if way not in WAYS:
            raise ValueError(f"this processor cannot compute by {way}")
        bits = LIMB_BITS * RSA_LIMBS
        _spread(self._modulus.n, modulus, RSA_LIMBS, LIMB_BITS)
        _spread(self._modulus.rr, pow(2, 2 * bits, modulus), RSA_LIMBS, LIMB_BITS)
        self._modulus.k0 = -pow(modulus, -1, 1 << LIMB_BITS) & ((1 << LIMB_BITS) - 1)
        self._multiply = rsa_multiply_ifma if way == "ifma" else rsa_multiply_plain
        if way == "avx2":
            self._take_narrow(modulus)
        self._digest_bytes = int(size) // 8
        info = _DIGEST_INFO[size]
        self._opening = b"\0\1" + b"\xff" * (RSA_BYTES - 3 - len(info) - self._digest_bytes) + b"\0" + info

    cdef _take_narrow(self, modulus):
        cdef int i
        bits = RSA4_BITS * RSA4_LIMBS
        if self._block == NULL:
            self._block = PyMem_Calloc(1, sizeof(rsa4_modulus) + 32)
            if self._block == NULL:
                raise MemoryError
        self._narrow = <rsa4_modulus*> ((<size_t> self._block + 31) & ~<size_t> 31)
        _spread(self._narrow.rr, pow(2, 2 * bits, modulus), RSA4_LIMBS, RSA4_BITS)
        inverse = -pow(modulus, -1, 1 << bits) % (1 << bits)
        for i in range(4):
            _spread(self._narrow.n.by[i], modulus << RSA4_BITS * i, RSA4_ROW, RSA4_BITS)
            _spread(self._narrow.inverse.by[i], inverse << RSA4_BITS * i, RSA4_ROW, RSA4_BITS)

    def __dealloc__(self):
        PyMem_Free(self._block)

    cdef bint _power(self, uint64_t* power, bytes base):
        """power = base ** 65537 % modulus; False unless the base is less than the modulus."""
        if self._narrow != NULL:
            return rsa4_power(power, <const uint8_t*> PyBytes_AS_STRING(base), &self._modulus, self._narrow)
        return rsa_power(power, <const uint8_t*> PyBytes_AS_STRING(base), &self._modulus, self._multiply)

    def opens(self, bytes signature not None, bytes digest not None):
        """Is it the key's signature over this hash? False also where it only might not be."""
        if PyBytes_GET_SIZE(digest) != self._digest_bytes:
            return False
        return self._opens(signature, <const uint8_t*> PyBytes_AS_STRING(digest))

    cdef bint _opens(self, bytes signature, const uint8_t* digest):
        cdef uint64_t power[RSA_LIMBS]
        cdef uint64_t expected[RSA_LIMBS]
        cdef uint8_t encoded[RSA_BYTES]
        cdef Py_ssize_t before = RSA_BYTES - self._digest_bytes
        if PyBytes_GET_SIZE(signature) != RSA_BYTES:
            return False
        # SEC: the encoding is made and compared whole, never parsed: no other padding, no bytes behind the hash.
        memcpy(encoded, PyBytes_AS_STRING(self._opening), <size_t> before)
        memcpy(encoded + before, digest, <size_t> self._digest_bytes)
        rsa_load(expected, encoded)
        if not self._power(power, signature):
            return False
        return memcmp(power, expected, sizeof(power)) == 0

    cdef bint _signed(self, bytes signature, bytes data) except -1:
        """Is it the key's signature of `data`? False as with `opens`."""
        cdef sha256_sum sum
        cdef uint8_t digest[SHA256_SIZE]
        cdef bytes hashed
        # PERF: `policy_rs256_unique` of `make bench`: hashlib's object and its digest take as long as the hash of a token.
        if self._digest_bytes == SHA256_SIZE and _here:
            sha256_begin(&sum)
            sha256_add(&sum, <const uint8_t*> PyBytes_AS_STRING(data), <size_t> PyBytes_GET_SIZE(data))
            sha256_end(&sum, digest)
            return self._opens(signature, digest)
        hashed = _HASHES[self._digest_bytes](data).digest()
        return self._opens(signature, <const uint8_t*> PyBytes_AS_STRING(hashed))

    def power(self, bytes base not None):
        """base ** 65537 % modulus, for tests; None unless the base is less than the modulus.

        Shapes: `base` 256 bytes, big-endian.
        """
        cdef uint64_t power[RSA_LIMBS]
        cdef int i
        if PyBytes_GET_SIZE(base) != RSA_BYTES:
            raise ValueError("not 256 bytes")
        if not self._power(power, base):
            return None
        return sum([<object> power[i] << LIMB_BITS * i for i in range(RSA_LIMBS)])


@cython.final
cdef class Check:
    """Verifies what a key signs, by the kernel where that says yes.

    Shapes: `otherwise(signature, data)` has the last word on everything else.
    """

    cdef Modulus _modulus
    cdef object _otherwise

    def __init__(self, Modulus modulus not None, otherwise):
        self._modulus, self._otherwise = modulus, otherwise

    def verifies(self, bytes signature not None, bytes data not None):
        """Is it the key's signature of `data`?"""
        # SEC: only a yes of the kernel counts.
        return True if self._modulus._signed(signature, data) else self._otherwise(signature, data)
