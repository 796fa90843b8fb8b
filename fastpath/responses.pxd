"""Responses and request ids as the connection loop uses them."""

cdef class Response:
    cdef object _sink
    cdef public bytes date
    cdef public bint http10
    cdef public bint head_only
    cdef public bint keep_alive
    cdef public object status
    cdef public list fields
    cdef public bint head_sent
    cdef public long long framing
    cdef public long long sent

    cpdef begin(self, bytes date, bint http10, bint head_only, bint keep_alive)
    cpdef send(self, result)
    cdef int _send_whole(self, bytes body) except -1
    cdef bytes _encode(self, bytes body, long long size)
    cdef int _finish(self) except -1


cdef class RequestIds:
    cdef object entropy
    cdef bytes pool
    cdef Py_ssize_t used

    cpdef str next(self)
