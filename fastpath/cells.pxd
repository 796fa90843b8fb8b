"""Counters that other kernels add to directly."""


cdef class Cells:
    cdef Py_buffer view
    cdef double* values
    cdef Py_ssize_t count

    cdef int plus(self, Py_ssize_t cell, double value) except -1
