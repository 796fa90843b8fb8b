# Character classes of RFC 9110 and RFC 9112, included by the HTTP kernels.

cdef enum:
    TOKEN = 1
    HEX = 2
    DIGIT = 4
    HOST = 8
    TARGET = 16
    FIELD = 32

cdef uint8_t CLASS[256]
cdef uint8_t LOWER[256]


cdef void _fill_classes():
    cdef int c
    for c in range(256):
        CLASS[c] = 0
        LOWER[c] = <uint8_t> (c + 32 if 65 <= c <= 90 else c)
        if 48 <= c <= 57:
            CLASS[c] |= DIGIT
        if 0x21 <= c <= 0x7E:
            CLASS[c] |= TARGET
        if c == 9 or (c >= 32 and c != 127):
            CLASS[c] |= FIELD
    for c in b"0123456789abcdefABCDEF":
        CLASS[c] |= HEX
    for c in b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        CLASS[c] |= TOKEN | HOST
    for c in b"!#$%&'*+-.^_`|~":
        CLASS[c] |= TOKEN
    for c in b"-._~":
        CLASS[c] |= HOST


_fill_classes()


cdef inline bint _all(const uint8_t* at, Py_ssize_t length, uint8_t wanted) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(length):
        if not CLASS[at[i]] & wanted:
            return False
    return True


cdef inline bint _field_text(const uint8_t* at, Py_ssize_t length) noexcept nogil:
    """Is it free of control characters other than tab?"""
    cdef Py_ssize_t i
    cdef uint8_t bad = 0
    cdef uint8_t c
    for i in range(length):
        c = at[i]
        bad |= <uint8_t> (((c < 32) & (c != 9)) | (c == 127))
    return bad == 0


cdef inline bint _same_lower(const uint8_t* at, Py_ssize_t length, const char* lower, Py_ssize_t lower_length) noexcept nogil:
    """Do the bytes equal `lower` without regard to case?"""
    cdef Py_ssize_t i
    if length != lower_length:
        return False
    for i in range(length):
        if LOWER[at[i]] != <uint8_t> lower[i]:
            return False
    return True
