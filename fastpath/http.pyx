"""HTTP/1.1 request heads as WSGI environs: the compiled part of the worker's loop. Bytes in, objects out; no I/O.

A request head is split by picohttpparser (gunicorn_h1c) and then proved here: every byte of it must be accounted for by
the grammar of RFC 9112 in its strict reading, so that no two receivers can read it differently.

Source: RFC 9110, RFC 9112; HAZARDS 5 to 8 for what other servers let through.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Copy, PyDict_Size
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeLatin1
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy

from gunicorn_h1c import parse_request_raw
# NOTE: parse_request_raw raises classes of its own module, not those that the package exports.
from gunicorn_h1c._parser_fast import IncompleteError, ParseError

cdef extern from "Python.h":
    PyObject* PyDict_SetDefault(object d, object key, object default) except NULL

include "characters.pxi"


class HeadError(ValueError):
    """A request head that is refused; `code` says how it is answered.

    Shapes: code is bad-request, bad-framing, bad-target, target-too-long, headers-too-large, not-implemented, version
    or expectation.
    """

    def __init__(self, str code, str detail):
        ValueError.__init__(self, detail)
        self.code = code
        self.detail = detail


# --- field names

cdef enum:
    NAME_SLOTS = 1024
    NAME_KEEP = 512
    NAME_BYTES = 48
    PLAIN = 0
    SINGLE = 1
    HOST_FIELD = 2
    LENGTH_FIELD = 3
    CODING_FIELD = 4
    CONNECTION_FIELD = 5
    EXPECT_FIELD = 6
    COOKIE_FIELD = 7

cdef struct Name:
    uint32_t hash
    uint16_t length
    uint8_t kind
    uint8_t lower[NAME_BYTES]
    PyObject* key
    PyObject* text

cdef Name NAMES[NAME_SLOTS]
cdef int name_count = 0
cdef list _kept = []

_KINDS = {
    b"host": HOST_FIELD,
    b"content-length": LENGTH_FIELD,
    b"transfer-encoding": CODING_FIELD,
    b"connection": CONNECTION_FIELD,
    b"expect": EXPECT_FIELD,
    b"cookie": COOKIE_FIELD,
    b"content-type": SINGLE,
}
_SEEDED = (
    b"accept accept-charset accept-encoding accept-language authorization cache-control content-encoding "
    b"content-language content-location content-range date dnt forwarded from idempotency-key if-match "
    b"if-modified-since if-none-match if-range if-unmodified-since keep-alive last-event-id max-forwards origin pragma "
    b"prefer proxy-authorization proxy-connection range referer sec-fetch-dest sec-fetch-mode sec-fetch-site "
    b"sec-fetch-user sec-websocket-extensions sec-websocket-key sec-websocket-protocol sec-websocket-version te "
    b"traceparent tracestate trailer upgrade upgrade-insecure-requests user-agent via x-forwarded-for "
    b"x-forwarded-host x-forwarded-proto x-http-method-override x-real-ip x-request-id x-requested-with"
).split()


cdef str _environ_key(bytes lower):
    """The WSGI key of a lower-case field name."""
    cdef str key = lower.decode("ascii").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


cdef Name* _lookup(const uint8_t* at, Py_ssize_t length, uint32_t hashed) noexcept:
    """The kept entry of a name, or the free slot where it would be."""
    cdef uint32_t slot = hashed & (NAME_SLOTS - 1)
    cdef Name* name
    while True:
        name = &NAMES[slot]
        if name.key == NULL:
            return name
        if name.hash == hashed and name.length == length and _same_lower(at, length, <const char*> name.lower, length):
            return name
        slot = (slot + 1) & (NAME_SLOTS - 1)


cdef int _keep(Name* name, bytes lower, uint32_t hashed) except -1:
    """Fill a free slot. The table only grows to its limit, so a flood of invented names costs no memory."""
    global name_count
    cdef str key = _environ_key(lower)
    cdef str text = lower.decode("ascii")
    _kept.append((key, text))
    memcpy(name.lower, PyBytes_AS_STRING(lower), len(lower))
    name.hash = hashed
    name.length = <uint16_t> len(lower)
    name.kind = <uint8_t> _KINDS.get(lower, PLAIN)
    name.text = <PyObject*> text
    name.key = <PyObject*> key
    name_count += 1
    return 0


cdef inline uint32_t _hash_name(const uint8_t* at, Py_ssize_t length, bint* token, bint* underscore) noexcept nogil:
    """FNV-1a over the lower-case name; says on the way whether it is a token and whether it has an underscore."""
    cdef uint32_t hashed = 2166136261u
    cdef uint8_t every = TOKEN
    cdef bint found = False
    cdef Py_ssize_t i
    for i in range(length):
        every &= CLASS[at[i]]
        found |= at[i] == 95
        hashed = (hashed ^ LOWER[at[i]]) * 16777619u
    token[0] = every != 0
    underscore[0] = found
    return hashed


cdef _seed_names():
    cdef bytes lower
    cdef bint token, underscore
    cdef uint32_t hashed
    cdef const uint8_t* at
    for lower in (*_KINDS, *_SEEDED):
        at = <const uint8_t*> PyBytes_AS_STRING(lower)
        hashed = _hash_name(at, len(lower), &token, &underscore)
        _keep(_lookup(at, len(lower), hashed), lower, hashed)


_seed_names()


# --- request heads

cdef frozenset NONE_TWICE = frozenset()


cdef class Head:
    """One request head.

    Shapes: `content_length` is -1 for a chunked body, 0 for none; `end` is the offset of the first byte after the head.
    """


@cython.final
cdef class HeadReader:
    """Reads request heads into WSGI environs, within limits.

    `canonical` is fastpath.routes.canonical_path: (target, max_bytes) -> (path, query), ValueError if not canonical.
    Units: limits in bytes and fields; `max_head_bytes` covers request line and fields.
    """

    def __init__(self, canonical, Py_ssize_t max_target_bytes=8192, Py_ssize_t max_head_bytes=32768, Py_ssize_t max_fields=100):
        if max_head_bytes > 65535:
            raise ValueError("max_head_bytes is at most 65535: the parser counts in 16 bits")
        if max_fields > 250:
            raise ValueError("max_fields is at most 250: the parser holds no more")
        self.canonical = canonical
        self.max_target = max_target_bytes
        self.max_head = max_head_bytes
        self.max_fields = max_fields

    cpdef Head read(self, bytes data, dict base, Py_ssize_t searched=0):
        """The head that `data` begins with, or None while it is incomplete.

        Shapes: `base` is the connection's part of the environ, copied; `searched` how many bytes an earlier call of
        the same head has seen.
        Raises: HeadError, also for a head that cannot become valid by more bytes.
        """
        if data is None or base is None:
            raise TypeError("data is bytes, base a dict")
        cdef const uint8_t* at = <const uint8_t*> PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t end = self._find_end(at, size, searched)
        if end == 0:
            self._check_incomplete(at, size, searched)
            return None
        self._check_limits(at, end)
        return self._decode(data, at, end, base)

    cdef Py_ssize_t _find_end(self, const uint8_t* at, Py_ssize_t size, Py_ssize_t searched):
        """Offset after the empty line that ends the head, 0 if it has not come."""
        cdef Py_ssize_t i = 2 if size >= 2 and at[0] == 13 and at[1] == 10 else 0
        cdef const uint8_t* found
        if searched > i + 3:
            i = searched - 3
        while i < size:
            found = <const uint8_t*> memchr(at + i, 10, size - i)
            if found == NULL:
                return 0
            i = found - at + 1
            if i + 1 < size and at[i] == 13 and at[i + 1] == 10:
                return i + 2
        return 0

    cdef int _check_incomplete(self, const uint8_t* at, Py_ssize_t size, Py_ssize_t searched) except -1:
        """Refuse early what no further byte can mend, so that it does not wait for the deadline."""
        cdef Py_ssize_t start = 2 if size >= 2 and at[0] == 13 else 0
        cdef const uint8_t* found = <const uint8_t*> memchr(at + start, 10, size - start)
        cdef Py_ssize_t i
        if (found - at if found != NULL else size) - start > self.max_target + 64:
            raise HeadError("target-too-long", "The request target is too long")
        if size > self.max_head:
            self._check_limits(at, size)
        for i in range(searched - 1 if searched else 0, size):
            if at[i] == 10 and (i == 0 or at[i - 1] != 13):
                raise HeadError("bad-framing", "A line ends in a bare line feed")
            if at[i] == 13 and i + 1 < size and at[i + 1] != 10:
                raise HeadError("bad-framing", "A carriage return stands alone")
            if not CLASS[at[i]] & FIELD and at[i] != 10 and at[i] != 13:
                raise HeadError("bad-request", "A control character in the head")
        return 0

    cdef int _check_limits(self, const uint8_t* at, Py_ssize_t end) except -1:
        cdef Py_ssize_t start = 2 if at[0] == 13 else 0
        cdef Py_ssize_t lines = 0
        cdef Py_ssize_t i = start
        cdef const uint8_t* found
        found = <const uint8_t*> memchr(at + start, 10, end - start)
        if (found - at if found != NULL else end) - start > self.max_target + 64:
            raise HeadError("target-too-long", "The request target is too long")
        if end > self.max_head:
            raise HeadError("headers-too-large", "The header fields are too large")
        while found != NULL:
            lines += 1
            i = found - at + 1
            found = <const uint8_t*> memchr(at + i, 10, end - i)
        if lines - 2 > self.max_fields:
            raise HeadError("headers-too-large", "There are too many header fields")
        return 0

    cdef Head _decode(self, bytes data, const uint8_t* at, Py_ssize_t end, dict base):
        cdef Py_ssize_t method_at, method_size, target_at, target_size, start
        cdef int minor, count
        cdef bytes fields
        cdef Head head
        try:
            method_at, method_size, target_at, target_size, minor, count, parsed, fields = parse_request_raw(data)
        except (ParseError, IncompleteError):
            raise _why_unparsed(at, end) from None
        start = 2 if at[0] == 13 else 0
        if parsed != end or method_at != start or target_at != start + method_size + 1:
            raise HeadError("bad-request", "The request line is malformed")
        _check_version(at + target_at + target_size, end - target_at - target_size, minor)
        head = Head.__new__(Head)
        head.end = end
        head.http10 = minor == 0
        head.environ = PyDict_Copy(base)
        head.environ["REQUEST_METHOD"] = _method(at + method_at, method_size, head)
        head.environ["SERVER_PROTOCOL"] = "HTTP/1.0" if minor == 0 else "HTTP/1.1"
        if target_size > self.max_target:
            raise HeadError("target-too-long", "The request target is too long")
        if not _all(at + target_at, target_size, TARGET):
            raise HeadError("bad-target", "The request target has a character that must be percent-encoded")
        _decode_fields(head, at, target_at + target_size + 11, end, fields, count)
        self._set_target(head, PyUnicode_DecodeASCII(<const char*> at + target_at, target_size, NULL))
        return head

    cdef int _set_target(self, Head head, str raw) except -1:
        """Path and query of an origin-form target, or of an absolute one that names the Host (RFC 9112, 3.2.2)."""
        cdef str target = raw
        if not raw.startswith("/"):
            target = _origin_form(raw, head.environ.get("HTTP_HOST"))
        try:
            path, query = self.canonical(target, self.max_target)
        except ValueError as error:
            raise HeadError("bad-target", "The request target is not in canonical form") from error
        head.environ["RAW_URI"] = raw
        head.environ["caregate.path"] = path
        head.environ["PATH_INFO"] = path if "%" not in path else _unquoted(path)
        head.environ["QUERY_STRING"] = query
        return 0


cdef _why_unparsed(const uint8_t* at, Py_ssize_t end):
    """The error of a head that the parser refused: of another HTTP version, or simply malformed."""
    cdef Py_ssize_t start = 2 if at[0] == 13 else 0
    cdef const uint8_t* found = <const uint8_t*> memchr(at + start, 13, end - start)
    cdef bytes line = (<const char*> at)[start : found - at if found != NULL else end]
    cdef bytes version = line.rpartition(b" ")[2]
    if len(version) == 8 and version.startswith(b"HTTP/") and version[5:6].isdigit() and version[6:7] == b"." \
            and version[7:8].isdigit() and not version.startswith(b"HTTP/1."):
        return HeadError("version", "Only HTTP/1.1 and HTTP/1.0 are spoken here")
    return HeadError("bad-framing", "The request head is malformed")


cdef int _check_version(const uint8_t* at, Py_ssize_t left, int minor) except -1:
    """The request line must end in one space, the version and CRLF."""
    if left < 11 or memcmp(at, b" HTTP/1.", 8) != 0 or at[9] != 13 or at[10] != 10:
        raise HeadError("bad-request", "The request line is malformed")
    if minor > 1:
        raise HeadError("version", "Only HTTP/1.1 and HTTP/1.0 are spoken here")
    return 0


cdef str _method(const uint8_t* at, Py_ssize_t size, Head head):
    if size == 3 and memcmp(at, b"GET", 3) == 0:
        return "GET"
    if size == 4 and memcmp(at, b"POST", 4) == 0:
        return "POST"
    if size == 4 and memcmp(at, b"HEAD", 4) == 0:
        head.head_only = True
        return "HEAD"
    return _rare_method((<const char*> at)[:size])


_METHODS = {name.encode(): name for name in ("PUT", "DELETE", "PATCH", "OPTIONS")}


cdef str _rare_method(bytes name):
    """Any token of capital letters, digits, - and _ is a method; what it may do is the application's to say."""
    known = _METHODS.get(name)
    if known is not None:
        return known
    if name in (b"CONNECT", b"TRACE"):
        raise HeadError("not-implemented", "The method is not implemented")
    if not 1 <= len(name) <= 24 or not name.replace(b"-", b"").replace(b"_", b"").isalnum() or name != name.upper():
        raise HeadError("bad-request", "The method is malformed")
    return name.decode("ascii")


cdef int _decode_fields(
    Head head, const uint8_t* at, Py_ssize_t position, Py_ssize_t end, bytes packed, int count
) except -1:
    """Check that the fields the parser found cover the head without a gap, and put them into the environ."""
    cdef const char* entry = PyBytes_AS_STRING(packed)
    cdef uint32_t name_at, value_at
    cdef uint16_t name_size, value_size
    cdef Fields state = Fields.__new__(Fields)
    cdef int i
    for i in range(count):
        memcpy(&name_at, entry + i * 12, 4)
        memcpy(&name_size, entry + i * 12 + 4, 2)
        memcpy(&value_at, entry + i * 12 + 6, 4)
        memcpy(&value_size, entry + i * 12 + 10, 2)
        if name_at != position or name_size == 0 or at[name_at + name_size] != 58:
            raise HeadError("bad-framing", "A header field is malformed")
        position = name_at + name_size + 1
        while position < value_at:
            if at[position] != 32 and at[position] != 9:
                raise HeadError("bad-framing", "A header field is malformed")
            position += 1
        position += value_size
        while at[position] == 32 or at[position] == 9:
            position += 1
        if value_at + value_size > position or at[position] != 13 or at[position + 1] != 10:
            raise HeadError("bad-framing", "A header field is malformed")
        position += 2
        _add_field(head, state, at + name_at, name_size, at + value_at, value_size)
    if position + 2 != end or at[position] != 13 or at[position + 1] != 10:
        raise HeadError("bad-framing", "The request head is malformed")
    return _settle(head, state)


cdef class Fields:
    """What the fields that steer the message have said so far."""

    cdef str coding
    cdef bint has_length, has_host, close, keep_alive
    cdef set twice
    cdef long long length


cdef int _add_field(
    Head head, Fields state, const uint8_t* name_at, Py_ssize_t name_size, const uint8_t* value_at, Py_ssize_t value_size
) except -1:
    cdef bint token, underscore
    cdef uint32_t hashed = _hash_name(name_at, name_size, &token, &underscore)
    cdef Name* name
    cdef str key, text, value, before
    cdef uint8_t kind = PLAIN
    cdef bytes lower
    cdef PyObject* held
    cdef Py_ssize_t before_count
    if not token:
        raise HeadError("bad-framing", "A header field name is malformed")
    if underscore:
        # SEC: WSGI maps X_Auth_User and X-Auth-User to one key (HAZARDS 8).
        raise HeadError("bad-request", "A header field name has an underscore")
    if not _field_text(value_at, value_size):
        raise HeadError("bad-framing", "A header field has a control character")
    name = _lookup(name_at, name_size, hashed) if name_size <= NAME_BYTES else NULL
    if name == NULL or name.key == NULL:
        lower = (<const char*> name_at)[:name_size].lower()
        if name != NULL and name_count < NAME_KEEP:
            _keep(name, lower, hashed)
        key, text = _environ_key(lower), lower.decode("ascii")
    else:
        key, text, kind = <str> name.key, <str> name.text, name.kind
    value = PyUnicode_DecodeLatin1(<const char*> value_at, value_size, NULL)
    # SEC: counted, not compared: equal values may be one object ("5" is), and a doubled field would pass.
    before_count = PyDict_Size(head.environ)
    held = PyDict_SetDefault(head.environ, key, value)
    if PyDict_Size(head.environ) == before_count:
        if kind in (SINGLE, HOST_FIELD, LENGTH_FIELD, CODING_FIELD, EXPECT_FIELD):
            raise HeadError("bad-framing", f"The header field {text} came more than once")
        if state.twice is None:
            state.twice = set()
        state.twice.add(text)
        before = <str> held
        head.environ[key] = f"{before}; {value}" if kind == COOKIE_FIELD else f"{before}, {value}"
    if kind > SINGLE:
        _steer(head, state, kind, value, value_at, value_size)
    return 0


cdef int _steer(Head head, Fields state, uint8_t kind, str value, const uint8_t* at, Py_ssize_t size) except -1:
    """Take in a field that decides over framing or the connection."""
    if kind == HOST_FIELD:
        _check_host(at, size)
        state.has_host = True
    elif kind == LENGTH_FIELD:
        if not 1 <= size <= 18 or not _all(at, size, DIGIT):
            raise HeadError("bad-framing", "Content-Length is not a number")
        state.has_length = True
        state.length = int(value)
    elif kind == CODING_FIELD:
        state.coding = value
    elif kind == CONNECTION_FIELD:
        _read_connection(state, at, size)
    elif kind == EXPECT_FIELD:
        if not _same_lower(at, size, b"100-continue", 12):
            raise HeadError("expectation", "The expectation cannot be met")
        head.expects_continue = True
    return 0


cdef int _read_connection(Fields state, const uint8_t* at, Py_ssize_t size) except -1:
    """Look for close and keep-alive in the list of a Connection field."""
    cdef bytes option
    if _same_lower(at, size, b"keep-alive", 10):
        state.keep_alive = True
        return 0
    for option in (<const char*> at)[:size].lower().split(b","):
        option = option.strip(b" \t")
        state.close |= option == b"close"
        state.keep_alive |= option == b"keep-alive"
    return 0


cdef int _settle(Head head, Fields state) except -1:
    """Decide body length and persistence from all fields together (RFC 9112, 6.3)."""
    head.environ["caregate.duplicate"] = NONE_TWICE if state.twice is None else frozenset(state.twice)
    if not state.has_host and not head.http10:
        raise HeadError("bad-framing", "The Host field is missing")
    head.keep_alive = not state.close and (state.keep_alive or not head.http10)
    if head.http10:
        head.expects_continue = False
    if state.coding is not None:
        if state.has_length:
            raise HeadError("bad-framing", "Content-Length and Transfer-Encoding exclude each other")
        if head.http10:
            raise HeadError("bad-framing", "HTTP/1.0 has no Transfer-Encoding")
        _check_coding(state.coding)
        head.content_length = -1
        head.environ["caregate.content_length"] = None
    else:
        head.content_length = state.length
        head.environ["caregate.content_length"] = state.length
    return 0


cdef int _check_coding(str coding) except -1:
    """Only a single `chunked` is served; another coding is unknown, a list that cannot be framed is malformed."""
    cdef list codings
    cdef str name
    cdef const uint8_t* at
    cdef bytes raw
    if coding.lower() == "chunked":
        return 0
    codings = [name.strip(" \t").lower() for name in coding.split(",")]
    for name in codings:
        raw = name.encode("latin-1")
        at = <const uint8_t*> PyBytes_AS_STRING(raw)
        if not raw or not _all(at, len(raw), TOKEN):
            raise HeadError("bad-framing", "Transfer-Encoding is malformed")
    if "chunked" in codings[: len(codings) - 1]:
        raise HeadError("bad-framing", "Transfer-Encoding applies chunked before another coding")
    raise HeadError("not-implemented", "The transfer coding is not implemented")


cdef int _check_host(const uint8_t* at, Py_ssize_t size) except -1:
    """host [":" port], the host a registered name, an IPv4 address or an IP literal in brackets."""
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t port_at
    cdef long port = 0
    if size and at[0] == 91:
        i = 1
        while i < size and (CLASS[at[i]] & HEX or at[i] == 58 or at[i] == 46):
            i += 1
        if i < 4 or i >= size or at[i] != 93:
            raise HeadError("bad-framing", "The Host field is malformed")
        i += 1
    else:
        while i < size and CLASS[at[i]] & HOST:
            i += 1
        if i == 0 or i > 255:
            raise HeadError("bad-framing", "The Host field is malformed")
    if i == size:
        return 0
    port_at = i + 1
    if at[i] != 58 or not 1 <= size - port_at <= 5 or not _all(at + port_at, size - port_at, DIGIT):
        raise HeadError("bad-framing", "The Host field is malformed")
    for i in range(port_at, size):
        port = port * 10 + at[i] - 48
    if port > 65535:
        raise HeadError("bad-framing", "The Host field is malformed")
    return 0


cdef str _origin_form(str target, host):
    """The origin form of an absolute target whose authority is the Host field.

    SEC: RFC 9112 lets the target overrule Host; two different names in one request are refused instead.
    """
    cdef str scheme, rest, authority, tail
    scheme, _, rest = target.partition("://")
    if scheme.lower() not in ("http", "https") or not rest or host is None:
        raise HeadError("bad-target", "The request target is not in origin form")
    authority = rest.split("/", 1)[0].split("?", 1)[0]
    if authority.lower() != host.lower():
        raise HeadError("bad-target", "The request target names another host than the Host field")
    tail = rest[len(authority) :]
    return tail if tail.startswith("/") else "/" + tail


cdef str _unquoted(str path):
    """WSGI's PATH_INFO: percent escapes decoded, the bytes as latin-1. Escapes are known to be well formed."""
    cdef list parts = path.split("%")
    cdef str part
    cdef list out = [parts[0]]
    for part in parts[1:]:
        out.append(chr(int(part[:2], 16)))
        out.append(part[2:])
    return "".join(out)
