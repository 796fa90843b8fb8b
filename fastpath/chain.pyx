"""A record on a hash chain, written into the mapping that keeps it: what gateway.audit.spool does for every event. No I/O."""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

import hashlib

cdef enum:
    DIGEST = 32
    HEAD = 4 + 8 + DIGEST  # size, sequence, hash

cdef object _sha256 = hashlib.sha256


cdef class Chain:
    """The end of a chain, and where its next record goes.

    Shapes: `hash` is the last record's, `sequence` its number; `_map` a writable buffer of which `_size` bytes may be used,
    `_at` of them are. A subclass has `_roll(size)`, which makes room for a record of an event of as many bytes.
    """

    cdef public int64_t sequence
    cdef public bytes hash
    cdef public object _map
    cdef public Py_ssize_t _size, _at

    def append(self, bytes canonical not None):
        """Add a record; its sequence. It is in the mapping from here on.

        Raises: what `_roll` raises, and then nothing is added.

        PERF: `python -m loadtests.audit_cost`, `chain and spool`: 0.7 us where Python takes 1.05; the hash is 0.5 of them.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(canonical)
        cdef const char* text = PyBytes_AS_STRING(canonical)
        cdef unsigned char head[HEAD]
        cdef bytes hashed, digest
        cdef char* to
        cdef Py_buffer view
        if self._at + HEAD + size > self._size:
            self._roll(size)
        if PyBytes_GET_SIZE(self.hash) != DIGEST:
            raise ValueError("a hash of another size")
        _put_big_endian(head, <uint64_t> size, 4)
        _put_big_endian(head + 4, <uint64_t> self.sequence + 1, 8)
        hashed = PyBytes_FromStringAndSize(NULL, DIGEST + 8 + size)
        to = PyBytes_AS_STRING(hashed)
        memcpy(to, PyBytes_AS_STRING(self.hash), DIGEST)
        memcpy(to + DIGEST, head + 4, 8)
        memcpy(to + DIGEST + 8, text, size)
        digest = _sha256(hashed).digest()
        memcpy(head + 12, PyBytes_AS_STRING(digest), DIGEST)
        PyObject_GetBuffer(self._map, &view, PyBUF_WRITABLE)
        try:
            if self._at < 0 or self._at + HEAD + size > view.len:
                raise ValueError("the mapping is smaller than it should be")
            to = <char*> view.buf + self._at
            # NOTE: its size makes it a record, so that comes last; a reader checks the hash in any case.
            memcpy(to + HEAD, text, size)
            memcpy(to + 4, head + 4, HEAD - 4)
            memcpy(to, head, 4)
        finally:
            PyBuffer_Release(&view)
        self._at += HEAD + size
        self.hash = digest
        self.sequence += 1
        return self.sequence


cdef inline void _put_big_endian(unsigned char* to, uint64_t value, int size) noexcept:
    cdef int i
    for i in range(size):
        to[i] = <unsigned char> (value >> 8 * (size - 1 - i) & 255)
