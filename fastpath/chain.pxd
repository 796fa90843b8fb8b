"""A chain as the kernel that makes its events sees it."""

from libc.stdint cimport int64_t, uint64_t


cdef class Chain:
    cdef public int64_t sequence
    cdef public bytes hash
    cdef public object _map
    cdef public Py_ssize_t _size, _at

    cdef int64_t add(self, const char* text, Py_ssize_t size) except -1


cdef bytes link(bytes before, const unsigned char* sequence, const char* text, Py_ssize_t size)


cdef inline void put_big_endian(unsigned char* to, uint64_t value, int size) noexcept:
    cdef int i
    for i in range(size):
        to[i] = <unsigned char> (value >> 8 * (size - 1 - i) & 255)


cdef inline int64_t big_endian(const unsigned char* at, int size) noexcept:
    cdef int64_t value = 0
    cdef int i
    for i in range(size):
        value = value << 8 | at[i]
    return value
