"""Request heads as the connection loop uses them."""

from libc.stdint cimport uint8_t


cdef class Head:
    cdef readonly dict environ
    cdef readonly Py_ssize_t end
    cdef readonly long long content_length
    cdef readonly bint keep_alive
    cdef readonly bint http10
    cdef readonly bint head_only
    cdef readonly bint expects_continue


cdef class HeadReader:
    cdef object canonical
    cdef Py_ssize_t max_target, max_head, max_fields

    cpdef Head read(self, bytes data, dict base, Py_ssize_t searched=*)
    cdef Py_ssize_t _find_end(self, const uint8_t* at, Py_ssize_t size, Py_ssize_t searched)
    cdef int _check_incomplete(self, const uint8_t* at, Py_ssize_t size, Py_ssize_t searched) except -1
    cdef int _check_limits(self, const uint8_t* at, Py_ssize_t end) except -1
    cdef Head _decode(self, bytes data, const uint8_t* at, Py_ssize_t end, dict base)
    cdef int _set_target(self, Head head, str raw) except -1
