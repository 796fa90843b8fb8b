"""What is revoked, as the verifiers of a worker share it."""

from libc.stdint cimport uint64_t


cdef class Revoked:
    cdef readonly uint64_t epoch
    cdef readonly dict jtis
    cdef dict _sessions
    cdef dict _subjects
    cdef dict _units
    cdef dict _everything

    cdef dict _rules(self, str kind)
    cdef bint _names_revoked_unit(self, dict claims, str issuer, str audience, str role, double issued_s) except -1
    cpdef bint refuses(self, dict claims, str jti, str subject, str audience, str role, double issued_s) except -1
