"""SHA-256 by the processor's own instructions, where it has them: see sha256.h."""

cdef extern from "sha256.h" nogil:
    enum:
        SHA256_SIZE
    ctypedef struct sha256_sum:
        pass
    bint sha256_here()
    void sha256_begin(sha256_sum* sum)
    void sha256_add(sha256_sum* sum, const unsigned char* at, size_t size)
    void sha256_end(sha256_sum* sum, unsigned char* digest)
