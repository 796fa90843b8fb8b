"""Grants as other kernels read them."""


cdef class Grant:
    cdef public object route
    cdef public object decision
    cdef public tuple charges
    cdef public object resource
    cdef public dict responders
    cdef public bint takes_fields
    cdef public bint plain
    cdef public bint hidden
    cdef public bytes line
    cdef public bytes claims
