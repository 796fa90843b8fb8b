"""What kernels call of C beside Cython's own declarations: a keyed hash, and a hint to the processor."""

from libc.stdint cimport uint8_t, uint64_t

cdef extern from "siphash.h" nogil:
    uint64_t siphash64(const uint64_t* key, const uint8_t* text, size_t size)
    void siphash128(uint64_t* hash, const uint64_t* key, const uint8_t* text, size_t size)

cdef extern from * nogil:
    # Have a cache line come from memory while something else is done; any address will do.
    void fetch "__builtin_prefetch"(const void* address)
