"""A record on a hash chain, written into the mapping that keeps it: what gateway.audit.spool does for every event. No I/O."""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from fastpath.sha256 cimport sha256_add, sha256_begin, sha256_end, sha256_here, sha256_sum

import hashlib

cdef enum:
    DIGEST = 32
    HEAD = 4 + 8 + DIGEST  # size, sequence, hash

cdef object _sha256 = hashlib.sha256
cdef bint _here = sha256_here()


cdef class Chain:
    """The end of a chain, and where its next record goes.

    Shapes: `hash` is the last record's, `sequence` its number; `_map` a writable buffer of which `_size` bytes may be used,
    `_at` of them are. A subclass has `_roll(size)`, which makes room for a record of an event of as many bytes.
    """

    def append(self, bytes canonical not None):
        """Add a record; its sequence. It is in the mapping from here on.

        Raises: what `_roll` raises, and then nothing is added.
        """
        return self.add(PyBytes_AS_STRING(canonical), PyBytes_GET_SIZE(canonical))

    cdef int64_t add(self, const char* text, Py_ssize_t size) except -1:
        """The same, of bytes that are the caller's."""
        cdef unsigned char head[HEAD]
        cdef bytes digest
        cdef char* to
        cdef Py_buffer view
        if self._at + HEAD + size > self._size:
            self._roll(size)
        if PyBytes_GET_SIZE(self.hash) != DIGEST:
            raise ValueError("a hash of another size")
        put_big_endian(head, <uint64_t> size, 4)
        put_big_endian(head + 4, <uint64_t> self.sequence + 1, 8)
        digest = link(self.hash, head + 4, text, size)
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


def sha256(parts not None, *, bint here=True):
    """The hash of some bytes one behind the other. `here`: by this kernel, where the processor can; else by hashlib."""
    cdef sha256_sum sum
    cdef bytes digest = PyBytes_FromStringAndSize(NULL, DIGEST), part
    if not (here and _here):
        return _sha256(b"".join(parts)).digest()
    sha256_begin(&sum)
    for part in parts:
        sha256_add(&sum, <const unsigned char*> PyBytes_AS_STRING(part), <size_t> PyBytes_GET_SIZE(part))
    sha256_end(&sum, <unsigned char*> PyBytes_AS_STRING(digest))
    return digest


cdef bytes link(bytes before, const unsigned char* sequence, const char* text, Py_ssize_t size):
    """The hash of a record: see gateway.audit.chain."""
    cdef sha256_sum sum
    cdef bytes digest
    if not _here:
        return sha256((before, sequence[:8], text[:size]), here=False)
    digest = PyBytes_FromStringAndSize(NULL, DIGEST)
    sha256_begin(&sum)
    sha256_add(&sum, <const unsigned char*> PyBytes_AS_STRING(before), DIGEST)
    sha256_add(&sum, sequence, 8)
    sha256_add(&sum, <const unsigned char*> text, <size_t> size)
    sha256_end(&sum, <unsigned char*> PyBytes_AS_STRING(digest))
    return digest
