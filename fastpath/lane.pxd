"""Rules and grants as other kernels read them."""

from libc.stdint cimport int64_t, uint64_t


cdef class Rule:
    cdef readonly object limit
    cdef readonly str prefix
    cdef readonly uint64_t number
    cdef readonly int64_t interval_ns
    cdef readonly int64_t burst
    cdef readonly str opening
    cdef readonly str policy
    cdef readonly tuple policy_field
    cdef readonly bint of_caller
    cdef readonly bint shadow


cdef class Grant:
    cdef public object route
    cdef public object decision
    cdef public tuple charges
    cdef public object resource
    cdef public dict responders
    cdef public bint takes_fields
    cdef public bint plain
    cdef public bint hidden
    cdef public bint told
    cdef public bytes line
    cdef public bytes claims
    cdef public tuple event
    cdef bint looked
    cdef Rule one
    cdef uint64_t bucket

    cdef int look_for_one(self) except -1
