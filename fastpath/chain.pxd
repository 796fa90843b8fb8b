"""A chain as the kernel that makes its events sees it."""

from libc.stdint cimport int64_t


cdef class Chain:
    cdef public int64_t sequence
    cdef public bytes hash
    cdef public object _map
    cdef public Py_ssize_t _size, _at

    cdef int64_t add(self, const char* text, Py_ssize_t size) except -1
