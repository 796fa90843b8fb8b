"""WebSocket frames (RFC 6455) and relay frame prefixes: decode, encode, unmask.

Bytes in, bytes out: no socket, no clock. A length is checked against its maximum before memory is taken for it.
"""

import codecs

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

OP_CONTINUATION = 0x0
OP_TEXT = 0x1
OP_BINARY = 0x2
OP_CLOSE = 0x8
OP_PING = 0x9
OP_PONG = 0xA

PREFIX_BYTES = 12
END_BODY = 1
HAS_HEADER = 2
CRITICAL = 4
HOLD = 8

cdef enum:
    C_PREFIX = 12
    C_HAS_HEADER = 2
    C_WINDOW = 0x14
    C_RESET = 0x15
    MAX_HEAD = 14
    PROTOCOL = 1002
    BAD_DATA = 1007
    TOO_BIG = 1009


class FrameError(ValueError):
    """A WebSocket frame that must fail the connection; `code` is the close code to send."""

    def __init__(self, code, detail):
        super().__init__(detail)
        self.code = code


class RelayFrameError(ValueError):
    """A relay message whose prefix or lengths are wrong; `code` names the rule."""

    def __init__(self, code, detail):
        super().__init__(detail)
        self.code = code


cdef void xor_copy(unsigned char* target, const unsigned char* source, Py_ssize_t size, const unsigned char* key) noexcept nogil:
    # PERF: bench_fastpath frames/unmask; eight bytes a step, memcpy compiles to plain unaligned loads and stores.
    cdef uint32_t half
    cdef uint64_t whole, word
    cdef Py_ssize_t i = 0
    memcpy(&half, key, 4)
    whole = (<uint64_t>half << 32) | half
    while i + 8 <= size:
        memcpy(&word, source + i, 8)
        word ^= whole
        memcpy(target + i, &word, 8)
        i += 8
    while i < size:
        target[i] = source[i] ^ key[i & 3]
        i += 1


cdef bytes take(const unsigned char* source, Py_ssize_t size, const unsigned char* key):
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef unsigned char* target = <unsigned char*>PyBytes_AS_STRING(result)
    if key is NULL:
        memcpy(target, source, <size_t>size)
    else:
        xor_copy(target, source, size, key)
    return result


cdef bint close_code_valid(int code) noexcept nogil:
    # Source: RFC 6455 7.4 and the IANA registry, which added 1012 to 1014.
    if 1000 <= code <= 1014:
        return code != 1004 and code != 1005 and code != 1006
    return 3000 <= code <= 4999


def decode_close(bytes payload not None):
    """The (code, reason) of a close frame's payload; an empty one is (1005, "").

    Raises: FrameError for one byte, a code that may not be sent, a reason that is not UTF-8.
    """
    cdef int code
    if len(payload) == 0:
        return 1005, ""
    if len(payload) == 1:
        raise FrameError(PROTOCOL, "a close payload of one byte")
    code = payload[0] << 8 | payload[1]
    if not close_code_valid(code):
        raise FrameError(PROTOCOL, "a close code that may not be sent")
    try:
        return code, payload[2:].decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError(BAD_DATA, "a close reason that is not UTF-8") from None


cdef class Decoder:
    """Bytes of one direction in, whole messages and control frames out.

    `masked`: the peer must mask (it is the client) or must not. `max_bytes` bounds a frame and a reassembled message.
    """

    cdef bytearray _pending
    cdef Py_ssize_t _need
    cdef Py_ssize_t _max
    cdef bint _masked
    cdef bint _closed
    cdef int _opcode
    cdef Py_ssize_t _total
    cdef list _parts
    cdef object _text
    cdef readonly object error
    """The fault that ended decoding, or None."""

    def __init__(self, *, bint masked, Py_ssize_t max_bytes):
        if max_bytes < 1 or max_bytes > 1 << 40:
            raise ValueError("max_bytes is out of range")
        self._pending = bytearray()
        self._need = 1
        self._max = max_bytes
        self._masked = masked
        self._closed = False
        self._opcode = 0
        self._total = 0
        self._parts = []
        self._text = None
        self.error = None

    @property
    def pending_bytes(self):
        """Bytes held of a frame or message that is not complete."""
        return len(self._pending) + self._total

    @property
    def between_messages(self):
        """Is nothing held of a frame or message, and may another one come?"""
        return len(self._pending) == 0 and self._opcode == 0 and not self._closed and self.error is None

    def feed(self, data):
        """The list of (opcode, payload) that `data` completes: str for text, bytes for the rest.

        What came before a fault is still returned, then `error` is set; a close frame ends the direction and what
        follows it is ignored. Raises: FrameError on any call after a fault.
        """
        cdef Py_buffer view
        cdef list events = []
        cdef Py_ssize_t used
        cdef const unsigned char* start
        if self.error is not None:
            raise self.error
        if self._closed:
            return events
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if len(self._pending) == 0:
                used = self._run(<const unsigned char*>view.buf, view.len, events)
                if used < view.len and not self._closed and self.error is None:
                    start = <const unsigned char*>view.buf
                    self._pending += (<const char*>start)[used:view.len]
                return events
        finally:
            PyBuffer_Release(&view)
        self._pending += data
        self._drain(events)
        return events

    cdef int _drain(self, list events) except -1:
        cdef Py_buffer view
        cdef Py_ssize_t used
        if len(self._pending) < self._need:
            return 0
        PyObject_GetBuffer(self._pending, &view, PyBUF_SIMPLE)
        try:
            used = self._run(<const unsigned char*>view.buf, view.len, events)
        finally:
            PyBuffer_Release(&view)
        if used == len(self._pending) or self._closed or self.error is not None:
            self._pending = bytearray()
        elif used > 0:
            del self._pending[:used]
        return 0

    cdef Py_ssize_t _run(self, const unsigned char* data, Py_ssize_t size, list events) except -1:
        cdef Py_ssize_t used = 0, step
        try:
            while not self._closed:
                step = self._frame(data + used, size - used, events)
                if step == 0:
                    break
                used += step
        except FrameError as error:
            self.error = error
            self._parts = []
            self._total = 0
        return used

    cdef Py_ssize_t _frame(self, const unsigned char* data, Py_ssize_t size, list events) except -1:
        """Take one frame; 0 if it is not complete, and then `_need` says how many bytes it wants at least."""
        cdef int opcode, short
        cdef bint fin, masked
        cdef uint64_t length
        cdef Py_ssize_t head = 2, total, i
        cdef const unsigned char* key = NULL
        if size < 1:
            self._need = 1
            return 0
        fin = data[0] & 0x80 != 0
        opcode = data[0] & 0x0F
        if data[0] & 0x70:
            raise FrameError(PROTOCOL, "a reserved bit is set")
        if 3 <= opcode <= 7 or opcode > 10:
            raise FrameError(PROTOCOL, "a reserved opcode")
        if opcode >= 8 and not fin:
            raise FrameError(PROTOCOL, "a fragmented control frame")
        if opcode == 0 and self._opcode == 0:
            raise FrameError(PROTOCOL, "a continuation of nothing")
        if 0 < opcode < 8 and self._opcode != 0:
            raise FrameError(PROTOCOL, "a new message inside a fragmented one")
        if size < 2:
            self._need = 2
            return 0
        masked = data[1] & 0x80 != 0
        if masked != self._masked:
            raise FrameError(PROTOCOL, "a frame that is not masked" if self._masked else "a masked frame")
        short = data[1] & 0x7F
        if opcode >= 8 and short > 125:
            raise FrameError(PROTOCOL, "a control frame over 125 bytes")
        head += (2 if short == 126 else 8 if short == 127 else 0) + (4 if masked else 0)
        length = <uint64_t>short
        if short >= 126:
            if size < (4 if short == 126 else 10):
                self._need = 4 if short == 126 else 10
                return 0
            length = 0
            for i in range(2, 4 if short == 126 else 10):
                length = length << 8 | data[i]
            if length >> 63:
                raise FrameError(PROTOCOL, "a length of 64 bits")
            if length < 126 or (short == 127 and length < 65536):
                raise FrameError(PROTOCOL, "a length that is not minimal")
        # SEC: refused by the announced length, before a byte of the payload is kept.
        if opcode < 8 and length + <uint64_t>self._total > <uint64_t>self._max:
            raise FrameError(TOO_BIG, "a message over the maximum")
        total = head + <Py_ssize_t>length
        if size < total:
            self._need = total
            return 0
        if masked:
            key = data + head - 4
        self._need = 1
        self._deliver(opcode, fin, take(data + head, <Py_ssize_t>length, key), events)
        return total

    cdef int _deliver(self, int opcode, bint fin, bytes payload, list events) except -1:
        if opcode >= 8:
            if opcode == 8:
                decode_close(payload)
                self._closed = True
            events.append((opcode, payload))
            return 0
        if opcode == 0:
            opcode = self._opcode
        if opcode == 1:
            return self._deliver_text(fin, payload, events)
        if fin and self._opcode == 0:
            events.append((opcode, payload))
            return 0
        self._parts.append(payload)
        self._total += len(payload)
        self._opcode = opcode
        # NOTE: a peer may send a million fragments of one byte; joining now and then bounds the list.
        if len(self._parts) >= 64:
            self._parts = [b"".join(self._parts)]
        if fin:
            events.append((opcode, b"".join(self._parts)))
            self._reset_message()
        return 0

    cdef int _deliver_text(self, bint fin, bytes payload, list events) except -1:
        cdef str text
        try:
            if fin and self._opcode == 0:
                events.append((1, payload.decode("utf-8")))
                return 0
            if self._text is None:
                self._text = codecs.getincrementaldecoder("utf-8")()
            text = self._text.decode(payload, fin)
        except UnicodeDecodeError:
            raise FrameError(BAD_DATA, "a text message that is not UTF-8") from None
        self._opcode = 1
        self._total += len(payload)
        self._parts.append(text)
        if len(self._parts) >= 64:
            self._parts = ["".join(self._parts)]
        if fin:
            events.append((1, "".join(self._parts)))
            self._reset_message()
        return 0

    cdef int _reset_message(self) except -1:
        self._opcode = 0
        self._total = 0
        self._parts = []
        self._text = None
        return 0


cdef Py_ssize_t put_head(unsigned char* target, int opcode, bint fin, uint64_t length, const unsigned char* key) noexcept nogil:
    cdef Py_ssize_t head = 2
    cdef int i, width, mask = 0x80 if key is not NULL else 0
    target[0] = <unsigned char>((0x80 if fin else 0) | opcode)
    if length < 126:
        target[1] = <unsigned char>(mask | <int>length)
    else:
        width = 2 if length < 65536 else 8
        target[1] = <unsigned char>(mask | (126 if width == 2 else 127))
        for i in range(width):
            target[2 + i] = <unsigned char>(length >> (8 * (width - 1 - i)) & 0xFF)
        head += width
    if key is not NULL:
        memcpy(target + head, key, 4)
        head += 4
    return head


cdef const unsigned char* key_of(bytes mask) except? NULL:
    if mask is None:
        return NULL
    if len(mask) != 4:
        raise ValueError("a mask has four bytes")
    return <const unsigned char*>PyBytes_AS_STRING(mask)


cdef int check_opcode(int opcode, bint fin, Py_ssize_t length) except -1:
    if opcode < 0 or 3 <= opcode <= 7 or opcode > 10:
        raise ValueError("a reserved opcode")
    if opcode >= 8 and (not fin or length > 125):
        raise ValueError("a control frame is whole and has at most 125 bytes")
    return 0


def encode_head(int opcode, Py_ssize_t length, bytes mask=None, bint fin=True):
    """The head of a frame whose payload (already masked by the caller, if `mask` is given) is written after it."""
    cdef unsigned char[MAX_HEAD] target
    if length < 0:
        raise ValueError("a negative length")
    check_opcode(opcode, fin, length)
    cdef Py_ssize_t size = put_head(target, opcode, fin, <uint64_t>length, key_of(mask))
    return PyBytes_FromStringAndSize(<char*>target, size)


def encode_frame(int opcode, payload, bytes mask=None, bint fin=True):
    """One whole frame. `mask`: the four bytes a client masks with (unpredictable ones), None on the server side."""
    cdef Py_buffer view
    cdef unsigned char[MAX_HEAD] head
    cdef unsigned char* target
    cdef Py_ssize_t size
    cdef bytes result
    cdef const unsigned char* key = key_of(mask)
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        check_opcode(opcode, fin, view.len)
        size = put_head(head, opcode, fin, <uint64_t>view.len, key)
        result = PyBytes_FromStringAndSize(NULL, size + view.len)
        target = <unsigned char*>PyBytes_AS_STRING(result)
        memcpy(target, head, <size_t>size)
        if key is NULL:
            memcpy(target + size, view.buf, <size_t>view.len)
        else:
            xor_copy(target + size, <const unsigned char*>view.buf, view.len, key)
        return result
    finally:
        PyBuffer_Release(&view)


def encode_messages(list messages not None, bytes masks=None):
    """Whole binary frames, one after another in one piece. `masks`: four bytes for each that a client masks with.

    PERF: `relay_small`: one allocation for all that leaves in one write.
    """
    cdef unsigned char[MAX_HEAD] head
    cdef unsigned char* target
    cdef const unsigned char* key = NULL
    cdef Py_ssize_t total = 0, size
    cdef bytes message, result
    if masks is not None and len(masks) != 4 * len(messages):
        raise ValueError("a mask has four bytes")
    for message in messages:
        if message is None:
            raise TypeError("messages are bytes")
        total += len(message) + (2 if len(message) < 126 else 4 if len(message) < 65536 else 10)
    if masks is not None:
        total += len(masks)
    result = PyBytes_FromStringAndSize(NULL, total)
    target = <unsigned char*>PyBytes_AS_STRING(result)
    total = 0
    if masks is not None:
        key = <const unsigned char*>PyBytes_AS_STRING(masks)
    for message in messages:
        size = put_head(head, 2, True, <uint64_t>len(message), key)
        memcpy(target + total, head, <size_t>size)
        total += size
        if key is NULL:
            memcpy(target + total, PyBytes_AS_STRING(message), <size_t>len(message))
        else:
            xor_copy(target + total, <const unsigned char*>PyBytes_AS_STRING(message), len(message), key)
            key += 4
        total += len(message)
    return result


def encode_close(int code, str reason="", bytes mask=None):
    """A close frame; the reason is cut to what fits, at a character.

    Raises: ValueError for a code that may not be sent. 1010 is a client's alone: extensions that a server did not take.
    """
    if not close_code_valid(code) or (code == 1010 and mask is None):
        raise ValueError("a close code that may not be sent")
    cdef bytes text = reason.encode("utf-8")[:123].decode("utf-8", "ignore").encode("utf-8")
    return encode_frame(0x8, bytes((code >> 8, code & 0xFF)) + text, mask)


def apply_mask(payload, bytes mask not None):
    """The payload masked, or unmasked: the same operation."""
    cdef Py_buffer view
    cdef const unsigned char* key = key_of(mask)
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        return take(<const unsigned char*>view.buf, view.len, key)
    finally:
        PyBuffer_Release(&view)


# --- relay frames: u8 version=1 | u8 type | u16 flags | u32 stream | u32 aux | header | body


cdef void put_prefix(unsigned char* target, int kind, int flags, uint32_t stream, uint32_t aux) noexcept nogil:
    target[0] = 1
    target[1] = <unsigned char>kind
    target[2] = <unsigned char>(flags >> 8 & 0xFF)
    target[3] = <unsigned char>(flags & 0xFF)
    target[4] = <unsigned char>(stream >> 24)
    target[5] = <unsigned char>(stream >> 16 & 0xFF)
    target[6] = <unsigned char>(stream >> 8 & 0xFF)
    target[7] = <unsigned char>(stream & 0xFF)
    target[8] = <unsigned char>(aux >> 24)
    target[9] = <unsigned char>(aux >> 16 & 0xFF)
    target[10] = <unsigned char>(aux >> 8 & 0xFF)
    target[11] = <unsigned char>(aux & 0xFF)


cdef inline uint32_t be32(const unsigned char* data) noexcept nogil:
    return <uint32_t>data[0] << 24 | <uint32_t>data[1] << 16 | <uint32_t>data[2] << 8 | <uint32_t>data[3]


cdef bytes join_relay(int kind, int flags, uint32_t stream, uint32_t aux, bytes header, body):
    cdef Py_buffer view
    cdef Py_ssize_t head = len(header)
    cdef bytes result
    cdef unsigned char* target
    if not 0 <= kind <= 0xFF or not 0 <= flags <= 0xFFFF:
        raise ValueError("type or flags out of range")
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        result = PyBytes_FromStringAndSize(NULL, C_PREFIX + head + view.len)
        target = <unsigned char*>PyBytes_AS_STRING(result)
        put_prefix(target, kind, flags, stream, aux)
        memcpy(target + C_PREFIX, PyBytes_AS_STRING(header), <size_t>head)
        memcpy(target + C_PREFIX + head, view.buf, <size_t>view.len)
        return result
    finally:
        PyBuffer_Release(&view)


def pack_frame(int kind, int flags, uint32_t stream, bytes header not None=b"", body=b""):
    """A relay frame whose aux is the length of its header; HAS_HEADER is set exactly if there is one."""
    if len(header) > 0xFFFFFFFF:
        raise ValueError("a header over 32 bits")
    flags = flags | C_HAS_HEADER if len(header) else flags & ~C_HAS_HEADER
    return join_relay(kind, flags, stream, <uint32_t>len(header), header, body)


def pack_aux(int kind, int flags, uint32_t stream, uint32_t aux, rest=b""):
    """A relay frame (WINDOW, RESET) whose aux is a number of its own."""
    return join_relay(kind, flags & ~C_HAS_HEADER, stream, aux, b"", rest)


def unpack_frame(bytes message not None, Py_ssize_t max_bytes):
    """The parts (type, flags, stream, aux, header, body) of one relay message; both parts are copies.

    Raises: RelayFrameError: too short or too long, another version, HAS_HEADER and aux that disagree.
    """
    cdef Py_ssize_t size = len(message)
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(message)
    cdef int kind, flags
    cdef uint32_t aux
    cdef Py_ssize_t head
    if size > max_bytes:
        raise RelayFrameError("oversize", "a frame over the maximum")
    if size < C_PREFIX:
        raise RelayFrameError("length", "a frame shorter than its prefix")
    if data[0] != 1:
        raise RelayFrameError("version", "a version other than 1")
    kind = data[1]
    flags = data[2] << 8 | data[3]
    aux = be32(data + 8)
    if kind == C_WINDOW or kind == C_RESET:
        if flags & C_HAS_HEADER:
            raise RelayFrameError("flags", "HAS_HEADER on a type whose aux is not a length")
        head = 0
    else:
        if (flags & C_HAS_HEADER != 0) != (aux != 0):
            raise RelayFrameError("flags", "HAS_HEADER and the header's length disagree")
        if aux > <uint64_t>(size - C_PREFIX):
            raise RelayFrameError("length", "a header longer than the frame")
        head = <Py_ssize_t>aux
    return (
        kind,
        flags,
        be32(data + 4),
        aux,
        message[C_PREFIX:C_PREFIX + head],
        message[C_PREFIX + head:],
    )


def member_count(bytes text not None):
    """How many members the outermost object of a JSON text has, repeated names included.

    NOTE: only for text that a JSON parser has taken: what it kept of the members must be as many.
    """
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = len(text), i = 0, count = 0
    cdef int depth = 0
    cdef unsigned char c
    while i < size:
        c = data[i]
        if c == b'"':
            i += 1
            while i < size and data[i] != b'"':
                i += 2 if data[i] == b'\\' else 1
        elif c == b'{' or c == b'[':
            depth += 1
        elif c == b'}' or c == b']':
            depth -= 1
        elif c == b':' and depth == 1:
            count += 1
        i += 1
    return count
