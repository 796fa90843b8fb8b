"""RSA signatures (PKCS #1 v1.5, 2048 bits, exponent 65537), where the processor multiplies eight limbs at a time.

Only verification, so nothing here is secret. A yes is the whole encoded message equal to the one that the hash asks for; a no is
no more than "ask somebody else" (gateway.auth.keys asks cryptography), so a fault here would cost time and refuse nobody.

PERF: `policy_rs256_unique` of `make bench`: 5.5 us where `cryptography` takes 15.9, of which its OpenSSL 13 to 14.
Source: RFC 8017, 8.2.2 and 9.2; Gueron, Krasnov: Software implementation of modular exponentiation, using advanced vector
instructions architectures.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

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

cdef enum:
    BITS = 8 * 256

LIMB_BITS = 52
EXPONENT = 65537
FAST = bool(rsa_has_ifma())
"""Has this processor AVX-512 IFMA? Without it this is slower than OpenSSL."""

cdef dict _DIGEST_INFO = {
    "256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "512": bytes.fromhex("3051300d060960864801650304020305000440"),
}


@cython.final
cdef class Modulus:
    """A public key that verifies signatures over one hash.

    Shapes: `modulus` an odd number of exactly 2048 bits; `size` of the hash in bits, as text: 256, 384, 512. `plain` does
    without the processor's help.
    Raises: ValueError for another modulus; KeyError for another hash.
    """

    cdef rsa_modulus _modulus
    cdef rsa_multiply* _multiply
    cdef bytes _opening
    cdef Py_ssize_t _digest_bytes

    def __init__(self, modulus, str size not None, *, bint plain=not FAST):
        if modulus.bit_length() != BITS or not modulus & 1:
            raise ValueError("not an odd modulus of 2048 bits")
        if not plain and not FAST:
            raise ValueError("this processor has no AVX-512 IFMA")
        cdef int i
        mask = (1 << LIMB_BITS) - 1
        square = pow(2, 2 * LIMB_BITS * RSA_LIMBS, modulus)
        for i in range(RSA_LIMBS):
            self._modulus.n[i] = modulus >> LIMB_BITS * i & mask
            self._modulus.rr[i] = square >> LIMB_BITS * i & mask
        self._modulus.k0 = -pow(modulus, -1, 1 << LIMB_BITS) & mask
        self._multiply = rsa_multiply_plain if plain else rsa_multiply_ifma
        self._digest_bytes = int(size) // 8
        info = _DIGEST_INFO[size]
        self._opening = b"\0\1" + b"\xff" * (RSA_BYTES - 3 - len(info) - self._digest_bytes) + b"\0" + info

    def opens(self, bytes signature not None, bytes digest not None):
        """Is it the key's signature over this hash? False also where it only might not be."""
        cdef uint64_t power[RSA_LIMBS]
        cdef uint64_t expected[RSA_LIMBS]
        if PyBytes_GET_SIZE(signature) != RSA_BYTES or PyBytes_GET_SIZE(digest) != self._digest_bytes:
            return False
        # SEC: the encoding is made and compared whole, never parsed: no other padding, no bytes behind the hash.
        cdef bytes encoded = self._opening + digest
        rsa_load(expected, <const uint8_t*> PyBytes_AS_STRING(encoded))
        if not rsa_power(power, <const uint8_t*> PyBytes_AS_STRING(signature), &self._modulus, self._multiply):
            return False
        return memcmp(power, expected, sizeof(power)) == 0

    def power(self, bytes base not None):
        """base ** 65537 % modulus, for tests; None unless the base is less than the modulus.

        Shapes: `base` 256 bytes, big-endian.
        """
        cdef uint64_t power[RSA_LIMBS]
        cdef int i
        if PyBytes_GET_SIZE(base) != RSA_BYTES:
            raise ValueError("not 256 bytes")
        if not rsa_power(power, <const uint8_t*> PyBytes_AS_STRING(base), &self._modulus, self._multiply):
            return None
        return sum([<object> power[i] << LIMB_BITS * i for i in range(RSA_LIMBS)])
