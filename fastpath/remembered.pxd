"""What is remembered under the keyed hash of a text, as other kernels read it."""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t


cdef struct Digest:
    uint64_t words[2]


cdef struct Slot:
    # Half a cache line; empty where `value` is NULL.
    Digest digest
    PyObject* value
    uint64_t unused


cdef class Remembered:
    cdef Slot* _slots
    cdef size_t _mask
    cdef readonly Py_ssize_t count

    cdef PyObject* find(self, const Digest* digest) noexcept
    cdef int put(self, const Digest* digest, value) except -1
    cdef int _make(self, size_t slots) except -1
    cdef int _grow(self) except -1
    cdef Slot* _place(self, const Digest* digest) noexcept
