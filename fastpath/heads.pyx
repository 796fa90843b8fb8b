"""The JSON headers of REQ and RES on their shortest way: those of an ordinary request, as this project writes them.

None means "not ordinary": other escapes than of quotes, other orders of members, bytes past ASCII, anything wrong.
`gateway.relay.frames` and `gateway.relay.decoding` take those, and they alone refuse. What is answered here is what
they would have answered.
PERF: `relay_small` of `make bench`: REQ out, ACK and RES in cost 2.3 us, by orjson and regular expressions 11.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_Next
from cpython.ref cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp, memcpy

cdef extern from "Python.h":
    int PyUnicode_IS_ASCII(object)
    void* PyUnicode_DATA(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)

cdef enum:
    PREFIX = 12
    ROOM = 8192
    MAX_HEADER = 32768
    MAX_FIELDS = 100
    MAX_NAMES = 1024
    MAX_DEADLINE_MS = 300000
    ACK = 0x11
    RES = 0x12
    REQ = 0x10
    END_BODY = 1
    HAS_HEADER = 2
    CRITICAL = 4
    HOLD = 8
    QUOTE = 0x22
    BACKSLASH = 0x5C
    # what a byte may be part of
    IN_NAME = 1
    IN_TARGET = 2
    IN_METHOD = 4
    IN_TEXT = 8

cdef int64_t MAX_LENGTH = <int64_t>1 << 53
cdef int64_t MAX_UPSTREAM_MS = <int64_t>1 << 31

cdef unsigned char[256] CLASSES


cdef void fill_classes() noexcept:
    """Source: RFC 9110 5.6.2 for names, which are lower case here; RFC 9112 3.2.1 for targets."""
    cdef int c
    cdef bytes marks = b"!#$%&'*+-.^_`|~"
    for c in range(0x20, 0x7F):
        if c != 0x22 and c != 0x5C:
            CLASSES[c] |= IN_TEXT
            if c != 0x20 and c != 0x23:
                CLASSES[c] |= IN_TARGET
        if 0x41 <= c <= 0x5A:
            CLASSES[c] |= IN_METHOD
        if 0x61 <= c <= 0x7A or 0x30 <= c <= 0x39 or c in marks:
            CLASSES[c] |= IN_NAME


fill_classes()


# --- writing

cdef struct Pen:
    unsigned char* at
    unsigned char* end


cdef inline bint put(Pen* pen, const char* text, Py_ssize_t size) noexcept:
    if pen.end - pen.at < size:
        return False
    memcpy(pen.at, text, <size_t>size)
    pen.at += size
    return True


cdef bint put_text(Pen* pen, str text) noexcept:
    """The characters of a JSON string; False for controls and for what ASCII has not."""
    cdef const unsigned char* source
    cdef unsigned char* at = pen.at
    cdef Py_ssize_t size, i
    if text is None or not PyUnicode_IS_ASCII(text):
        return False
    source = <const unsigned char*>PyUnicode_DATA(text)
    size = PyUnicode_GET_LENGTH(text)
    if pen.end - at < 2 * size:
        return False
    for i in range(size):
        if not CLASSES[source[i]] & IN_TEXT:
            if source[i] != QUOTE and source[i] != BACKSLASH:
                return False
            at[0] = BACKSLASH
            at += 1
        at[0] = source[i]
        at += 1
    pen.at = at
    return True


cdef bint put_optional(Pen* pen, str text) noexcept:
    if text is None:
        return put(pen, b"null", 4)
    return put(pen, b'"', 1) and put_text(pen, text) and put(pen, b'"', 1)


cdef class FieldNames:
    """Environ keys to what REQ's header says of them; what is named in `removed`, or begins so, stays behind."""

    cdef frozenset _removed
    cdef tuple _beginnings
    cdef dict _known

    def __init__(self, frozenset removed not None, tuple beginnings not None):
        self._removed, self._beginnings = removed, beginnings
        self._known = {}

    cdef object opening(self, str key):
        """The pair's opening with the name, b"" for one that does not travel, None for one that is not a name."""
        cdef object known = self._known.get(key)
        cdef str name
        cdef bytes raw
        cdef Py_ssize_t i
        if known is not None:
            return known
        name = key[5:].replace("_", "-").lower()
        if name in self._removed or name.startswith(self._beginnings):
            known = b""
        else:
            raw = name.encode("utf-8")
            if not 1 <= len(raw) <= 256:
                return None
            for i in range(len(raw)):
                if not CLASSES[<unsigned char>PyBytes_AS_STRING(raw)[i]] & IN_NAME:
                    return None
            known = b',["' + raw + b'","'
        if len(self._known) < MAX_NAMES:
            self._known[key] = known
        return known


cdef int put_fields(Pen* pen, FieldNames names, dict environ) except -2:
    """How many of the caller's fields were written; -1 if one is not ordinary."""
    cdef Py_ssize_t at = 0
    cdef PyObject* key
    cdef PyObject* value
    cdef object opening
    cdef int count = 0
    cdef const unsigned char* text
    while PyDict_Next(environ, &at, &key, &value):
        if type(<object>key) is not str or not PyUnicode_IS_ASCII(<object>key):
            return -1
        if PyUnicode_GET_LENGTH(<object>key) < 5:
            continue
        text = <const unsigned char*>PyUnicode_DATA(<object>key)
        if memcmp(text, b"HTTP_", 5) != 0:
            continue
        opening = names.opening(<str><object>key)
        if opening is None or type(<object>value) is not str:
            return -1
        if len(<bytes>opening) == 0:
            continue
        if not put_field(pen, <bytes>opening, <str><object>value, count):
            return -1
        count += 1
    return count


cdef bint put_field(Pen* pen, bytes opening, str value, int count) noexcept:
    """`opening` begins with a comma, which the first pair of the list leaves out."""
    cdef Py_ssize_t skip = 1 if count == 0 else 0
    return (
        put(pen, PyBytes_AS_STRING(opening) + skip, len(opening) - skip)
        and put_text(pen, value)
        and put(pen, b'"]', 2)
    )


def encode_request_head(
    FieldNames names not None, dict environ not None, str request_id not None, str method not None,
    str target not None, object length, str traceparent, str idempotency, str context,
):
    """REQ's header in two parts, between which the milliseconds that are left belong; or None.

    `context` is the value of `x-caregate-context`, None for none. The caller's `Connection` field is not looked at: it
    may name no fields.
    """
    cdef unsigned char[ROOM] room
    cdef Pen pen
    cdef int count
    cdef object content_type
    cdef bytes number, before
    pen.at, pen.end = room, room + ROOM
    if not (put(&pen, b'{"id":"', 7) and put_text(&pen, request_id) and put(&pen, b'","m":"', 7)
            and put_text(&pen, method) and put(&pen, b'","t":"', 7) and put_text(&pen, target)
            and put(&pen, b'","h":[', 7)):
        return None
    count = put_fields(&pen, names, environ)
    if count < 0:
        return None
    content_type = environ.get("CONTENT_TYPE")
    if content_type:
        if type(content_type) is not str or not put_field(&pen, b',["content-type","', <str>content_type, count):
            return None
        count += 1
    if not put_field(&pen, b',["x-request-id","', request_id, count):
        return None
    count += 1
    if context is not None:
        if not put_field(&pen, b',["x-caregate-context","', context, count):
            return None
        count += 1
    if count > MAX_FIELDS:
        return None
    number = b"null" if length is None else b"%d" % length
    if not (put(&pen, b'],"len":', 8) and put(&pen, PyBytes_AS_STRING(number), len(number))
            and put(&pen, b',"dl":', 6)):
        return None
    before = PyBytes_FromStringAndSize(<char*>room, pen.at - room)
    pen.at = room
    if not (put(&pen, b',"tp":', 6) and put_optional(&pen, traceparent) and put(&pen, b',"idem":', 8)
            and put_optional(&pen, idempotency)):
        return None
    return before, PyBytes_FromStringAndSize(<char*>room, pen.at - room)


# --- reading

cdef struct Scan:
    const unsigned char* at
    const unsigned char* end


cdef inline bint literal(Scan* scan, const char* text, Py_ssize_t size) noexcept:
    if scan.end - scan.at < size or memcmp(scan.at, text, <size_t>size) != 0:
        return False
    scan.at += size
    return True


cdef bint number_of(Scan* scan, int64_t high, int64_t* found) noexcept:
    """A number from 0 to `high` in its only spelling."""
    cdef int64_t value = 0
    cdef const unsigned char* start = scan.at
    while scan.at < scan.end and 0x30 <= scan.at[0] <= 0x39:
        if scan.at - start >= 16:
            return False
        value = value * 10 + (scan.at[0] - 0x30)
        scan.at += 1
    if scan.at == start or (start[0] == 0x30 and scan.at - start > 1) or value > high:
        return False
    found[0] = value
    return True


cdef bint optional_number(Scan* scan, int64_t high, int64_t* found) noexcept:
    """-1 for null."""
    if literal(scan, b"null", 4):
        found[0] = -1
        return True
    return number_of(scan, high, found)


cdef str text_of(Scan* scan, int allowed, Py_ssize_t low, Py_ssize_t high):
    """What is up to the next quote, which is passed; None unless every byte is `allowed`."""
    cdef const unsigned char* start = scan.at
    while scan.at < scan.end and CLASSES[scan.at[0]] & allowed:
        scan.at += 1
    cdef Py_ssize_t size = scan.at - start
    if scan.at == scan.end or scan.at[0] != 0x22 or size < low or size > high:
        return None
    scan.at += 1
    return PyUnicode_DecodeASCII(<char*>start, size, NULL)


cdef str value_of(Scan* scan):
    """A field's value up to its closing quote, which is passed; quotes and backslashes in it are escaped."""
    cdef const unsigned char* start = scan.at
    cdef Py_ssize_t escapes = 0, size
    cdef unsigned char* target
    cdef str value
    while scan.at < scan.end and scan.at[0] != QUOTE:
        if scan.at[0] == BACKSLASH:
            scan.at += 1
            if scan.at == scan.end or (scan.at[0] != QUOTE and scan.at[0] != BACKSLASH):
                return None
            escapes += 1
        elif not CLASSES[scan.at[0]] & IN_TEXT:
            return None
        scan.at += 1
    if scan.at == scan.end:
        return None
    size = scan.at - start
    scan.at += 1
    if not escapes:
        return PyUnicode_DecodeASCII(<char*>start, size, NULL)
    value = PyUnicode_New(size - escapes, 127)
    target = <unsigned char*>PyUnicode_DATA(value)
    while start < scan.at - 1:
        if start[0] == BACKSLASH:
            start += 1
        target[0] = start[0]
        target += 1
        start += 1
    return value


cdef bint optional_text(Scan* scan, Py_ssize_t high, list found) except -1:
    """One more of `found`."""
    cdef str text
    if literal(scan, b"null", 4):
        found.append(None)
        return True
    if not literal(scan, b'"', 1):
        return False
    text = text_of(scan, IN_TEXT, 0, high)
    found.append(text)
    return text is not None


cdef list fields_of(Scan* scan):
    """The pairs of a list up to its end; None unless they are ordinary."""
    cdef list fields = []
    cdef str name, value
    if literal(scan, b"[]", 2):
        return fields
    if not literal(scan, b"[", 1):
        return None
    while literal(scan, b'["', 2):
        name = text_of(scan, IN_NAME, 1, 256)
        if name is None or not literal(scan, b',"', 2):
            return None
        value = value_of(scan)
        if value is None or not literal(scan, b"]", 1):
            return None
        fields.append((name, value))
        if literal(scan, b"]", 1):
            return fields if len(fields) <= MAX_FIELDS else None
        if not literal(scan, b",", 1):
            return None
    return None


cdef inline uint32_t be32(const unsigned char* data) noexcept nogil:
    return <uint32_t>data[0] << 24 | <uint32_t>data[1] << 16 | <uint32_t>data[2] << 8 | <uint32_t>data[3]


cdef bint framed(bytes message, Py_ssize_t max_bytes, int allowed, Scan* scan) noexcept:
    """A frame of version 1 with a header, flags of `allowed` and a stream of the gateway's; `scan` is its header."""
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(message)
    cdef Py_ssize_t size = len(message)
    cdef uint32_t header = be32(data + 8)
    if data[0] != 1 or size > max_bytes or data[2] or data[3] & ~(allowed | HAS_HEADER | CRITICAL):
        return False
    if not data[3] & HAS_HEADER or not data[7] & 1 or header > MAX_HEADER or <Py_ssize_t>header > size - PREFIX:
        return False
    scan.at = data + PREFIX
    scan.end = scan.at + header
    return True


def decode_answer(bytes message not None, Py_ssize_t max_bytes):
    """An ordinary ACK as (stream,), a RES as (stream, status, fields, length, upstream_ms, body, end); or None."""
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(message)
    cdef Scan scan
    cdef int64_t status = 0, length = 0, upstream_ms = 0
    cdef list fields
    if len(message) < PREFIX:
        return None
    if data[1] == ACK:
        if (len(message) != PREFIX or max_bytes < PREFIX or data[0] != 1 or data[2] or data[3] & ~CRITICAL
                or be32(data + 8) or not data[7] & 1):
            return None
        return (be32(data + 4),)
    if data[1] != RES or not framed(message, max_bytes, END_BODY, &scan):
        return None
    if not (literal(&scan, b'{"s":', 5) and number_of(&scan, 599, &status) and literal(&scan, b',"h":', 5)):
        return None
    fields = fields_of(&scan)
    if fields is None or status < 200:
        return None
    if not (literal(&scan, b',"len":', 7) and optional_number(&scan, MAX_LENGTH, &length)
            and literal(&scan, b',"up":', 6) and number_of(&scan, MAX_UPSTREAM_MS, &upstream_ms)
            and literal(&scan, b"}", 1) and scan.at == scan.end):
        return None
    return (
        be32(data + 4),
        status,
        fields,
        None if length < 0 else length,
        upstream_ms,
        message[scan.end - data:],
        data[3] & END_BODY != 0,
    )


def decode_request(bytes message not None, Py_ssize_t max_bytes):
    """An ordinary REQ as (stream, parts, body, end), or None.

    Shapes: `parts` is (id, method, target, fields, length, deadline_ms, traceparent, idempotency, hold, unit).
    """
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(message)
    cdef Scan scan
    cdef int64_t length = 0, deadline_ms = 0
    cdef str request_id, method, target
    cdef list fields, rest = []
    if len(message) < PREFIX or data[1] != REQ or not framed(message, max_bytes, END_BODY | HOLD, &scan):
        return None
    if not literal(&scan, b'{"id":"', 7):
        return None
    request_id = text_of(&scan, IN_TEXT, 0, 128)
    if request_id is None or not literal(&scan, b',"m":"', 6):
        return None
    method = text_of(&scan, IN_METHOD, 1, 32)
    if method is None or not literal(&scan, b',"t":"', 6):
        return None
    target = text_of(&scan, IN_TARGET, 1, 8192)
    if target is None or not target.startswith("/") or not literal(&scan, b',"h":', 5):
        return None
    fields = fields_of(&scan)
    if fields is None:
        return None
    if not (literal(&scan, b',"len":', 7) and optional_number(&scan, MAX_LENGTH, &length)
            and literal(&scan, b',"dl":', 6) and number_of(&scan, MAX_DEADLINE_MS, &deadline_ms)
            and literal(&scan, b',"tp":', 6) and optional_text(&scan, 256, rest)
            and literal(&scan, b',"idem":', 8) and optional_text(&scan, 256, rest)):
        return None
    if literal(&scan, b',"unit":', 8):
        if not optional_text(&scan, 64, rest):
            return None
    else:
        rest.append(None)
    if not literal(&scan, b"}", 1) or scan.at != scan.end:
        return None
    return (
        be32(data + 4),
        (
            request_id, method, target, fields, None if length < 0 else length, deadline_ms,
            rest[0], rest[1], data[3] & HOLD != 0, rest[2],
        ),
        message[scan.end - data:],
        data[3] & END_BODY != 0,
    )
