"""Objects by the keyed hash of a text: 128 bits under a secret that nobody outside the process knows.

The text itself is not kept: whoever does not know the secret finds a second text of the same hash only by trying, with
one chance in 2**128 for each entry and try, and a bearer token that was verified does not stay in memory.

PERF: `scale` of `make bench`: with 100,000 callers every object that a look-up touches is a cache miss. A dict of the tokens
touches its index, its entry and the ten lines of the token; this one line.
Source: SipHash-2-4, 128 bits (Aumasson, Bernstein).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from fastpath.primitives cimport siphash64, siphash128

cdef extern from "remembered.h" nogil:
    void* remembered_block(size_t size)

cdef enum:
    FEWEST = 16


@cython.final
@cython.no_gc
cdef class Remembered:
    """A growing hash table; nothing is ever taken out but with all of it."""

    def __cinit__(self):
        self._make(FEWEST)

    def __dealloc__(self):
        cdef size_t i
        if self._slots != NULL:
            for i in range(self._mask + 1):
                if self._slots[i].value != NULL:
                    Py_DECREF(<object> self._slots[i].value)
            free(self._slots)

    def __len__(self):
        return self.count

    cdef PyObject* find(self, const Digest* digest) noexcept:
        """Borrowed; NULL if there is none."""
        return self._place(digest).value

    cdef int put(self, const Digest* digest, value) except -1:
        """Remember, in place of what has the same hash. Raises: MemoryError."""
        cdef Slot* slot = self._place(digest)
        cdef PyObject* before = slot.value
        if before == NULL and <size_t> self.count >= (self._mask + 1) // 2:
            self._grow()
            slot = self._place(digest)
        Py_INCREF(value)
        slot.digest = digest[0]
        slot.value = <PyObject*> value
        if before == NULL:
            self.count += 1
        else:
            Py_DECREF(<object> before)
        return 0

    cdef Slot* _place(self, const Digest* digest) noexcept:
        """The slot that has the hash, or the empty one that would."""
        cdef size_t at = <size_t> digest.words[0] & self._mask
        cdef Slot* slot = &self._slots[at]
        while slot.value != NULL and (
            slot.digest.words[0] != digest.words[0] or slot.digest.words[1] != digest.words[1]
        ):
            at = (at + 1) & self._mask
            slot = &self._slots[at]
        return slot

    cdef int _make(self, size_t slots) except -1:
        cdef void* block = remembered_block(slots * sizeof(Slot))
        if block == NULL:
            raise MemoryError
        self._slots = <Slot*> block
        self._mask = slots - 1
        return 0

    cdef int _grow(self) except -1:
        cdef Slot* slots = self._slots
        cdef size_t count = self._mask + 1, i
        self._make(2 * count)
        for i in range(count):
            if slots[i].value != NULL:
                self._place(&slots[i].digest)[0] = slots[i]
        free(slots)
        return 0

    def get(self, bytes digest not None):
        """For tests. Shapes: `digest` 16 bytes."""
        cdef Digest found = _digest(digest)
        cdef PyObject* value = self.find(&found)
        return None if value == NULL else <object> value

    def set(self, bytes digest not None, value):
        """For tests. Shapes: `digest` 16 bytes."""
        cdef Digest found = _digest(digest)
        self.put(&found, value)


cdef Digest _digest(bytes digest) except *:
    cdef Digest found
    if len(digest) != <Py_ssize_t> sizeof(Digest):
        raise ValueError("not 16 bytes")
    memcpy(&found, PyBytes_AS_STRING(digest), sizeof(Digest))
    return found


def siphash24(bytes key not None, bytes text not None, *, bint wide=False):
    """SipHash-2-4 of `text` under a key of 16 bytes, 64 bits or 128, for tests."""
    cdef uint64_t words[2]
    cdef uint64_t hashed[2]
    if len(key) != <Py_ssize_t> sizeof(words):
        raise ValueError("the key is not 16 bytes")
    memcpy(words, PyBytes_AS_STRING(key), sizeof(words))
    if not wide:
        return siphash64(words, <const uint8_t*> PyBytes_AS_STRING(text), <size_t> len(text))
    siphash128(hashed, words, <const uint8_t*> PyBytes_AS_STRING(text), <size_t> len(text))
    return hashed[0] | <object> hashed[1] << 64
