"""Chunked bodies (RFC 9112, 7.1): bytes in, content out, wherever the bytes are split. No I/O."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t

include "characters.pxi"


class ChunkError(ValueError):
    """A chunked body that breaks its grammar or its limits."""

cdef enum:
    S_SIZE_FIRST = 0
    S_SIZE = 1
    S_BWS = 2
    S_EXT_NAME_FIRST = 3
    S_EXT_NAME = 4
    S_EXT_VALUE_FIRST = 5
    S_EXT_TOKEN = 6
    S_EXT_QUOTED = 7
    S_EXT_ESCAPE = 8
    S_EXT_AFTER = 9
    S_SIZE_LF = 10
    S_DATA = 11
    S_DATA_CR = 12
    S_DATA_LF = 13
    S_TRAILER = 14
    S_TRAILER_NAME = 15
    S_TRAILER_VALUE = 16
    S_TRAILER_LF = 17
    S_LAST_LF = 18
    S_DONE = 19
    S_EXT_NAME_BWS = 20
    MAX_EXTENSION = 1024
    MAX_TRAILER = 8192


@cython.final
cdef class ChunkReader:
    """Takes the chunks off a body (RFC 9112, 7.1), wherever the bytes are split; extensions and trailers are dropped.

    Units: at most 1 KiB of extensions and 8 KiB of trailers in one body.
    """

    cdef int state
    cdef int digits
    cdef uint64_t left
    cdef Py_ssize_t extension, trailer

    @property
    def done(self):
        """Has the last chunk with its trailer section been taken off?"""
        return self.state == S_DONE

    def take(self, bytes data not None, Py_ssize_t start, Py_ssize_t want):
        """Up to `want` bytes of content from `data[start:]`, and the offset of the first byte not consumed.

        Raises: ChunkError.
        """
        cdef const uint8_t* at = <const uint8_t*> PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t i = start
        cdef Py_ssize_t n
        cdef list pieces = []
        if start < 0 or start > size:
            raise ValueError("start lies outside the data")
        while i < size and self.state != S_DONE:
            if self.state != S_DATA:
                self._step(at[i])
                i += 1
                continue
            n = size - i
            if <uint64_t> n > self.left:
                n = <Py_ssize_t> self.left
            if n > want:
                n = want
            if n == 0:
                break
            pieces.append(data[i : i + n])
            self.left -= <uint64_t> n
            want -= n
            i += n
            if self.left == 0:
                self.state = S_DATA_CR
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), i

    cdef int _step(self, uint8_t c) except -1:
        """One byte that is not content."""
        if self.state <= S_SIZE or self.state == S_SIZE_LF:
            self._step_size(c)
        elif self.state <= S_EXT_AFTER or self.state == S_EXT_NAME_BWS:
            self.extension += 1
            if self.extension > MAX_EXTENSION:
                raise ChunkError("The chunk extensions are too long")
            self._step_extension(c)
        elif self.state == S_DATA_CR:
            self._expect(c, 13, S_DATA_LF)
        elif self.state == S_DATA_LF:
            self._expect(c, 10, S_SIZE_FIRST)
            self.digits = 0
        else:
            self.trailer += 1
            if self.trailer > MAX_TRAILER:
                raise ChunkError("The trailer section is too long")
            self._step_trailer(c)
        return 0

    cdef int _expect(self, uint8_t c, uint8_t wanted, int after) except -1:
        if c != wanted:
            raise ChunkError("A chunk does not end where it must")
        self.state = after
        return 0

    cdef int _step_size(self, uint8_t c) except -1:
        if self.state == S_SIZE_LF:
            self._expect(c, 10, S_DATA if self.left else S_TRAILER)
        elif CLASS[c] & HEX:
            if self.digits == 15:
                raise ChunkError("A chunk size is too large")
            self.digits += 1
            self.left = (self.left << 4) | <uint64_t> (c - 48 if c <= 57 else (c | 32) - 87)
            self.state = S_SIZE
        elif self.state == S_SIZE_FIRST:
            raise ChunkError("A chunk size is not a number")
        elif c == 13:
            self.state = S_SIZE_LF
        elif c == 59:
            self.state = S_EXT_NAME_FIRST
        elif c == 32 or c == 9:
            self.state = S_BWS
        else:
            raise ChunkError("A chunk size is not a number")
        return 0

    cdef int _step_extension(self, uint8_t c) except -1:
        """chunk-ext = *( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )"""
        cdef bint blank = c == 32 or c == 9
        cdef bint token = CLASS[c] & TOKEN
        cdef int state = self.state
        if state == S_EXT_QUOTED:
            if c == 34:
                self.state = S_EXT_AFTER
            elif c == 92:
                self.state = S_EXT_ESCAPE
            elif not CLASS[c] & FIELD:
                raise ChunkError("A chunk extension is malformed")
        elif state == S_EXT_ESCAPE and CLASS[c] & FIELD:
            self.state = S_EXT_QUOTED
        elif state in (S_EXT_NAME_FIRST, S_EXT_NAME) and token:
            self.state = S_EXT_NAME
        elif state in (S_EXT_VALUE_FIRST, S_EXT_TOKEN) and token:
            self.state = S_EXT_TOKEN
        elif state == S_EXT_VALUE_FIRST and c == 34:
            self.state = S_EXT_QUOTED
        elif state in (S_EXT_NAME_FIRST, S_EXT_VALUE_FIRST, S_BWS, S_EXT_NAME_BWS) and blank:
            pass
        elif state in (S_EXT_NAME, S_EXT_NAME_BWS) and c == 61:
            self.state = S_EXT_VALUE_FIRST
        elif state in (S_BWS, S_EXT_NAME, S_EXT_NAME_BWS, S_EXT_TOKEN, S_EXT_AFTER) and c == 59:
            self.state = S_EXT_NAME_FIRST
        elif state == S_EXT_NAME and blank:
            self.state = S_EXT_NAME_BWS
        elif state in (S_EXT_TOKEN, S_EXT_AFTER) and blank:
            self.state = S_BWS
        elif state in (S_EXT_NAME, S_EXT_TOKEN, S_EXT_AFTER) and c == 13:
            self.state = S_SIZE_LF
        else:
            raise ChunkError("A chunk extension is malformed")
        return 0

    cdef int _step_trailer(self, uint8_t c) except -1:
        if self.state == S_TRAILER_LF:
            self._expect(c, 10, S_TRAILER)
        elif self.state == S_LAST_LF:
            self._expect(c, 10, S_DONE)
        elif self.state == S_TRAILER and c == 13:
            self.state = S_LAST_LF
        elif self.state == S_TRAILER_VALUE and c == 13:
            self.state = S_TRAILER_LF
        elif self.state == S_TRAILER_NAME and c == 58:
            self.state = S_TRAILER_VALUE
        elif self.state == S_TRAILER_VALUE and CLASS[c] & FIELD:
            pass
        elif self.state in (S_TRAILER, S_TRAILER_NAME) and CLASS[c] & TOKEN:
            self.state = S_TRAILER_NAME
        else:
            raise ChunkError("A trailer field is malformed")
        return 0
