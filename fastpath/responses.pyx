"""Response heads and request ids: what the worker's loop writes. No I/O, no clock."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Realloc
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    int PyUnicode_KIND(object text)
    void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)

include "characters.pxi"


class ResponseError(ValueError):
    """A response head that would not be HTTP: an error of the application."""

BODY_CHUNKED = -1
BODY_TO_CLOSE = -2
BODY_NONE = -3

cdef enum:
    JOIN_BYTES = 16384

cdef char* scratch = NULL
cdef Py_ssize_t scratch_size = 0
cdef Py_ssize_t scratch_used = 0


cdef int _reserve(Py_ssize_t more) except -1:
    """Room for `more` bytes in the scratch buffer, which every head is built in (nothing yields in between)."""
    global scratch, scratch_size
    cdef Py_ssize_t wanted = scratch_used + more
    cdef char* larger
    if wanted > scratch_size:
        larger = <char*> PyMem_Realloc(scratch, wanted * 2 + 4096)
        if larger == NULL:
            raise MemoryError()
        scratch = larger
        scratch_size = wanted * 2 + 4096
    return 0


cdef int _put(const char* at, Py_ssize_t size) except -1:
    global scratch_used
    _reserve(size)
    memcpy(scratch + scratch_used, at, size)
    scratch_used += size
    return 0


cdef const uint8_t* _text(object text, Py_ssize_t* size) except NULL:
    """The characters of a str that fits into latin-1."""
    if type(text) is not str or PyUnicode_KIND(text) != 1:
        raise ResponseError("Status, names and values are latin-1 strings")
    size[0] = PyUnicode_GET_LENGTH(text)
    return <const uint8_t*> PyUnicode_DATA(text)


cdef int _put_field(const uint8_t* name, Py_ssize_t name_size, const uint8_t* value, Py_ssize_t value_size) except -1:
    global scratch_used
    cdef char* to
    _reserve(name_size + value_size + 4)
    to = scratch + scratch_used
    memcpy(to, name, name_size)
    to += name_size
    to[0] = 58
    to[1] = 32
    memcpy(to + 2, value, value_size)
    to += 2 + value_size
    to[0] = 13
    to[1] = 10
    scratch_used += name_size + value_size + 4
    return 0


cdef class Steering:
    """What the application's fields say about framing."""

    cdef long long length
    cdef bint close, dated


cdef bint _steers(Steering steering, const uint8_t* name, Py_ssize_t size, object value, int code) except -1:
    """Is the field one that the worker writes itself, or that must not be passed on?"""
    cdef uint8_t first = LOWER[name[0]]
    if first == 99 and _same_lower(name, size, b"content-length", 14):
        if not (<str> value).isascii() or not (<str> value).isdigit() or len(<str> value) > 18:
            raise ResponseError("Content-Length is not a number")
        steering.length = int(value)
        return True
    if first == 99 and _same_lower(name, size, b"connection", 10):
        steering.close |= "close" in (<str> value).lower()
        return True
    if first == 100 and _same_lower(name, size, b"date", 4):
        steering.dated = True
        return False
    if first == 117 and _same_lower(name, size, b"upgrade", 7):
        return code != 101
    if first == 116:
        return (
            _same_lower(name, size, b"transfer-encoding", 17)
            or _same_lower(name, size, b"te", 2)
            or _same_lower(name, size, b"trailer", 7)
        )
    return (first == 107 and _same_lower(name, size, b"keep-alive", 10)) or (
        first == 112 and _same_lower(name, size, b"proxy-connection", 16)
    )


cdef int _put_fields(list fields, Steering steering, int code) except -1:
    cdef Py_ssize_t name_size, value_size
    cdef const uint8_t* name
    cdef const uint8_t* value
    cdef tuple pair
    for pair in fields:
        if len(pair) != 2:
            raise ResponseError("A field is a pair of name and value")
        name = _text(pair[0], &name_size)
        value = _text(pair[1], &value_size)
        if name_size == 0 or not _all(name, name_size, TOKEN):
            raise ResponseError("A field name is malformed")
        if not _field_text(value, value_size):
            raise ResponseError("A field value has a control character")
        if not _steers(steering, name, name_size, pair[1], code):
            _put_field(name, name_size, value, value_size)
    return 0


cdef int _status_code(const uint8_t* status, Py_ssize_t size) except -1:
    if size < 4 or not _all(status, 3, DIGIT) or status[3] != 32 or not _field_text(status, size):
        raise ResponseError("The status line is malformed")
    return (status[0] - 48) * 100 + (status[1] - 48) * 10 + status[2] - 48


def encode_response(
    str status not None, list fields not None, bytes date not None, bint http10, bint head_only, bint keep_alive, bytes body,
    long long body_size,
):
    """A response head, with the body joined to it if that is at hand and small.

    Shapes: `date` is a whole field line; `body` the whole body or None; `body_size` its length, -1 if unknown. Returns
    (bytes, framing, keep_alive): framing is the number of body bytes that must follow, BODY_CHUNKED, BODY_TO_CLOSE or
    BODY_NONE; 0 too if the body is joined.
    Raises: ResponseError.
    """
    cdef long long framing = 0
    cdef bytes head = _encode_head(status, fields, date, http10, head_only, &keep_alive, body, body_size, &framing)
    return head, framing, keep_alive


cdef bytes _encode_head(
    object status, list fields, bytes date, bint http10, bint head_only, bint* keep_alive, bytes body, long long body_size,
    long long* framing,
):
    global scratch_used
    cdef Py_ssize_t size
    cdef const uint8_t* line = _text(status, &size)
    cdef int code = _status_code(line, size)
    cdef Steering steering = Steering.__new__(Steering)
    steering.length = -1
    scratch_used = 0
    _put(b"HTTP/1.1 ", 9)
    _put(<const char*> line, size)
    _put(b"\r\n", 2)
    _put_fields(fields, steering, code)
    if not steering.dated:
        _put(PyBytes_AS_STRING(date), PyBytes_GET_SIZE(date))
    framing[0] = _framing(steering, code, http10, head_only, body_size)
    keep_alive[0] = keep_alive[0] and not steering.close and framing[0] != -2
    if code == 101:
        _put(b"Connection: Upgrade\r\n", 21)
    elif not keep_alive[0]:
        _put(b"Connection: close\r\n", 19)
    elif http10:
        _put(b"Connection: keep-alive\r\n", 24)
    _put(b"\r\n", 2)
    if framing[0] > 0 and body is not None and PyBytes_GET_SIZE(body) <= JOIN_BYTES:
        _put(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        framing[0] = 0
    return PyBytes_FromStringAndSize(scratch, scratch_used)


cdef long long _framing(Steering steering, int code, bint http10, bint head_only, long long body_size) except -4:
    """Write the fields that frame the body; RFC 9112, 6.3 and RFC 9110, 8.6."""
    cdef bytes number
    if code < 200 or code == 204:
        return -3
    if body_size >= 0 and steering.length >= 0 and body_size != steering.length and not head_only and code != 304:
        raise ResponseError("Content-Length is not the length of the body")
    if steering.length < 0 and not head_only and code != 304:
        steering.length = body_size
    if steering.length >= 0:
        number = b"%d" % steering.length
        _put(b"Content-Length: ", 16)
        _put(PyBytes_AS_STRING(number), PyBytes_GET_SIZE(number))
        _put(b"\r\n", 2)
    if head_only or code == 304:
        return -3
    if steering.length >= 0:
        return steering.length
    if http10:
        return -2
    _put(b"Transfer-Encoding: chunked\r\n", 28)
    return -1

# --- responses

class LengthMismatch(RuntimeError):
    """The application gave fewer body bytes than it announced."""


cdef class Response:
    """One response on its way out: the head once, then the body as the framing says. Reused for every response of a
    connection.

    Shapes: `sink.send(pieces)` takes a sequence of bytes, all of it or an exception; `framing` is the number of body bytes
    still owed, or one of the BODY_ constants; `fields` as PEP 3333 has them.
    """

    def __init__(self, sink):
        self._sink = sink
        self.begin(b"", False, False, False)

    cpdef begin(self, bytes date, bint http10, bint head_only, bint keep_alive):
        """Forget the response before and take what the new request decides."""
        self.date, self.http10, self.head_only, self.keep_alive = date, http10, head_only, keep_alive
        self.status, self.fields = "", []
        self.head_sent, self.framing, self.sent = False, -3, 0

    def detach(self):
        """Let go of the connection that has ended."""
        self._sink = None

    def start_response(self, status, list fields not None, exc_info=None):
        """PEP 3333's callable."""
        if exc_info is not None and self.head_sent and exc_info[1] is not None:
            raise exc_info[1].with_traceback(exc_info[2])
        if exc_info is None and self.status:
            raise AssertionError("start_response was called twice")
        self.status = status
        self.fields = fields
        return self.write

    cpdef send(self, result):
        """Send what the application returned.

        Raises: whatever iterating raises; LengthMismatch; OSError; ResponseError.
        Yields to the hub: yes.
        """
        if type(result) is list and not self.head_sent:
            self._send_whole(result[0] if len(<list> result) == 1 else b"".join(result))
            return
        for piece in result:
            if piece:
                self.write(piece)
        self._finish()

    def write(self, piece):
        """Send a piece of the body, after the head if that is still to go."""
        if not isinstance(piece, bytes):
            raise TypeError("body pieces are bytes")
        cdef tuple before = () if self.head_sent else (self._encode(None, -1),)
        if not piece:
            self._sink.send(before)
            return
        if self.framing == -1:
            self._sink.send((*before, b"%x\r\n" % len(piece), piece, b"\r\n"))
        elif self.framing == -3:
            self._sink.send(before)
            return
        elif self.framing == -2:
            self._sink.send((*before, piece))
        else:
            piece = piece[: self.framing]
            self.framing -= len(piece)
            self._sink.send((*before, piece))
        self.sent += len(piece)

    cdef int _send_whole(self, bytes body) except -1:
        cdef bytes head = self._encode(body, len(body))
        if self.framing > 0:
            self.framing = 0
            self._sink.send((head, body))
        else:
            self._sink.send((head,))
        if not self.head_only:
            self.sent = len(body)
        return 0

    cdef bytes _encode(self, bytes body, long long size):
        cdef bytes head
        if not self.status:
            raise AssertionError("the application did not call start_response")
        head = _encode_head(
            self.status, self.fields, self.date, self.http10, self.head_only, &self.keep_alive, body, size, &self.framing
        )
        self.head_sent = True
        return head

    cdef int _finish(self) except -1:
        if not self.head_sent:
            if _announces_length(self.fields):
                self._sink.send((self._encode(None, -1),))
            else:
                self._send_whole(b"")
        if self.framing == -1:
            self._sink.send((b"0\r\n\r\n",))
        if self.framing > 0:
            raise LengthMismatch(f"{self.framing} bytes of the announced body are missing")
        self.framing = -3
        return 0


cdef bint _announces_length(list fields) except -1:
    for name, _ in fields:
        if name.lower() == "content-length":
            return True
    return False


def complete(resp, str method not None, str media_type, start_response, status_line):
    """End a Falcon response whose body is bytes, and that has neither cookies nor repeated fields; None if it is another.

    Shapes: `status_line(status)` is the line of what `resp.status` is; the result is a WSGI body of one piece.
    """
    cdef object data = resp._data
    cdef object status = resp.status
    cdef dict headers = resp._headers
    if type(data) is not bytes or resp.text is not None or resp._cookies is not None or resp._extra_headers:
        return None
    if type(status) is not str:
        status = status_line(status)
    if method == "HEAD" or (<str> status)[:3] in ("204", "304") or (<str> status)[:1] == "1":
        return None
    headers["content-length"] = str(PyBytes_GET_SIZE(data))
    if media_type is not None and "content-type" not in headers:
        headers["content-type"] = media_type
    start_response(status, list(headers.items()))
    return [data]


# --- request ids

cdef const char* HEX_DIGITS = b"0123456789abcdef"


@cython.final
cdef class RequestIds:
    """Random UUIDs (RFC 9562, version 4) from entropy drawn in batches.

    Shapes: `entropy(n)` returns n random bytes (os.urandom). One object a process, made after the fork.
    """

    def __init__(self, entropy):
        self.entropy = entropy
        self.pool = b""

    cpdef str next(self):
        """A fresh id, lower case."""
        cdef const uint8_t* at
        cdef char text[36]
        cdef int i, to = 0
        cdef uint8_t value
        if self.used + 16 > PyBytes_GET_SIZE(self.pool):
            self.pool = self.entropy(4096)
            self.used = 0
            if PyBytes_GET_SIZE(self.pool) < 16:
                raise ValueError("entropy gave too few bytes")
        at = <const uint8_t*> PyBytes_AS_STRING(self.pool) + self.used
        self.used += 16
        for i in range(16):
            value = at[i]
            if i == 6:
                value = (value & 0x0F) | 0x40
            elif i == 8:
                value = (value & 0x3F) | 0x80
            if i in (4, 6, 8, 10):
                text[to] = 45
                to += 1
            text[to] = HEX_DIGITS[value >> 4]
            text[to + 1] = HEX_DIGITS[value & 15]
            to += 2
        return PyUnicode_DecodeASCII(text, 36, NULL)
