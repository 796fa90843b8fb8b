"""Request targets: the one spelling of a path that is matched, decided on and forwarded."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memset

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    const uint8_t* PyUnicode_1BYTE_DATA(object text)


class TargetRefused(ValueError):
    """A request target that is not in canonical form; the text names the rule it broke and echoes nothing."""


class TargetTooLong(TargetRefused):
    """A request target of more bytes than are read."""


cdef enum:
    # Classes of a byte in a target, from nowhere to anywhere.
    REFUSED = 0
    QUERY_ONLY = 1
    PCHAR = 2
    UNRESERVED = 3
    SLASH = 4
    ESCAPE = 5
    QUESTION = 6

cdef enum:
    # Why a target is refused: indexes of REASONS.
    FINE = 0
    NOT_ORIGIN_FORM = 1
    BAD_CHARACTER = 2
    BAD_ESCAPE = 3
    BAD_TEXT = 4
    ENCODED_SLASH = 5
    DOT_SEGMENT = 6
    EMPTY_SEGMENT = 7

REASONS = (
    "",
    "the target is not in origin form",
    "the target has a character that must be percent-encoded",
    "the target has a bad percent escape",
    "the target's escapes spell a control character or are not UTF-8",
    "the path has an encoded slash or backslash",
    "the path has a dot segment",
    "the path has an empty segment",
)

cdef uint8_t CLASS[256]
cdef int HEX[256]
cdef const char* DIGITS = b"0123456789ABCDEF"


cdef void fill_classes() noexcept:
    cdef int i
    cdef unsigned char c
    memset(CLASS, REFUSED, sizeof(CLASS))
    memset(HEX, 0xFF, sizeof(HEX))
    # NOTE: RFC 3986 has these nowhere raw, but clients send them in queries (FHIR's `identifier=system|value`).
    for c in b"\"<>[]\\^`{|}":
        CLASS[c] = QUERY_ONLY
    for c in b"!$&'()*+,;=:@":
        CLASS[c] = PCHAR
    for c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~":
        CLASS[c] = UNRESERVED
    CLASS[c"/"] = SLASH
    CLASS[c"%"] = ESCAPE
    CLASS[c"?"] = QUESTION
    for i in range(16):
        HEX[<unsigned char>DIGITS[i]] = i
        HEX[<unsigned char>DIGITS[i] | 0x20] = i


fill_classes()


cdef struct Utf8:
    # While `needed` is not 0 the next byte must lie in low..high.
    int needed
    int low
    int high


cdef inline bint utf8_step(Utf8* state, int byte) noexcept nogil:
    """Take one escaped byte; False: not UTF-8, or a control character (C0, DEL, C1).

    Source: WHATWG Encoding Standard, UTF-8 decoder: no overlong forms, no surrogates, nothing past U+10FFFF.
    """
    if state.needed:
        if byte < state.low or byte > state.high:
            return False
        state.low = 0x80
        state.high = 0xBF
        state.needed -= 1
        return True
    if byte < 0x80:
        return byte >= 0x20 and byte != 0x7F
    if byte < 0xC2 or byte > 0xF4:
        return False
    state.needed = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3
    # NOTE: C2 80 to C2 9F are the C1 control characters.
    state.low = 0xA0 if byte == 0xC2 or byte == 0xE0 else 0x90 if byte == 0xF0 else 0x80
    state.high = 0x9F if byte == 0xED else 0x8F if byte == 0xF4 else 0xBF
    return True


cdef inline int escape_at(const uint8_t* text, Py_ssize_t i, Py_ssize_t size) noexcept nogil:
    """The byte that the escape at `i` spells, or -1."""
    cdef int high, low
    if i + 2 >= size:
        return -1
    high = HEX[text[i + 1]]
    low = HEX[text[i + 2]]
    if high < 0 or low < 0:
        return -1
    return high << 4 | low


cdef struct Scan:
    Py_ssize_t end
    bint canonical


cdef inline int segment_fault(Py_ssize_t length, Py_ssize_t dots) noexcept nogil:
    if length == dots and 1 <= length <= 2:
        return DOT_SEGMENT
    return FINE


cdef int scan_path(const uint8_t* text, Py_ssize_t size, Scan* scan) noexcept nogil:
    """Check the path of a target, up to `?` or its end: returns why it is refused, and where it ends."""
    cdef Utf8 utf8 = Utf8(0, 0, 0)
    cdef Py_ssize_t i = 1, length = 0, dots = 0
    cdef int byte, kind, fault
    scan.canonical = True
    if size == 0 or text[0] != c"/":
        return NOT_ORIGIN_FORM
    while i < size:
        byte = text[i]
        kind = CLASS[byte]
        if kind == ESCAPE:
            byte = escape_at(text, i, size)
            if byte < 0:
                return BAD_ESCAPE
            if not utf8_step(&utf8, byte):
                return BAD_TEXT
            if byte == c"/" or byte == c"\\":
                return ENCODED_SLASH
            if CLASS[byte] == UNRESERVED or text[i + 1] >= c"a" or text[i + 2] >= c"a":
                scan.canonical = False
            i += 3
        else:
            if utf8.needed:
                return BAD_TEXT
            if kind == QUESTION:
                break
            if kind < PCHAR:
                return BAD_CHARACTER
            i += 1
            if kind == SLASH:
                fault = EMPTY_SEGMENT if length == 0 else segment_fault(length, dots)
                if fault:
                    return fault
                length = dots = 0
                continue
        # SEC: servers that cut `;parameters` off would read `..;x` as a dot segment and `;x` as an empty one.
        if byte == c";" and length == dots:
            return DOT_SEGMENT
        length += 1
        dots += byte == c"."
    scan.end = i
    return BAD_TEXT if utf8.needed else segment_fault(length, dots)


cdef int scan_query(const uint8_t* text, Py_ssize_t i, Py_ssize_t size) noexcept nogil:
    """Check a query: any printable ASCII but `#`, and escapes that spell text."""
    cdef Utf8 utf8 = Utf8(0, 0, 0)
    cdef int byte
    while i < size:
        if text[i] == c"%":
            byte = escape_at(text, i, size)
            if byte < 0:
                return BAD_ESCAPE
            if not utf8_step(&utf8, byte):
                return BAD_TEXT
            i += 3
            continue
        if utf8.needed:
            return BAD_TEXT
        if CLASS[text[i]] == REFUSED:
            return BAD_CHARACTER
        i += 1
    return BAD_TEXT if utf8.needed else FINE


cdef str normalised(const uint8_t* text, Py_ssize_t size):
    """A path that passed the scan, in its one spelling: unreserved bytes raw, the other escapes in upper case.

    Source: RFC 3986, 6.2.2.1 and 6.2.2.2.
    """
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* target = <uint8_t*>PyBytes_AS_STRING(out)
    cdef Py_ssize_t i = 0, n = 0
    cdef int byte
    while i < size:
        if text[i] != c"%":
            target[n] = text[i]
            i += 1
            n += 1
            continue
        byte = escape_at(text, i, size)
        i += 3
        if CLASS[byte] == UNRESERVED:
            target[n] = <uint8_t>byte
            n += 1
            continue
        target[n] = c"%"
        target[n + 1] = <uint8_t>DIGITS[byte >> 4]
        target[n + 2] = <uint8_t>DIGITS[byte & 15]
        n += 3
    return PyUnicode_DecodeASCII(<char*>target, n, NULL)


def canonical_path(target, Py_ssize_t max_bytes=8192):
    """The canonical raw path and the raw query of an origin-form request target.

    Shapes: (path, query), both ASCII text; the path is percent-encoded, every byte in its one spelling, so equal paths
    are equal text, and what is matched can be forwarded as it is. The query is checked and left as it came.

    Raises: TargetTooLong; TargetRefused for another form, dot segments (also escaped or before `;`), `//`, an escaped
    slash or backslash, control characters raw or escaped, escapes that are not UTF-8, and characters that are not URI.
    Source: RFC 9112, 3.2.1; RFC 3986, 3.3 and 6.2.2.
    """
    cdef const uint8_t* text
    cdef Py_ssize_t size
    cdef Scan scan
    cdef int fault
    cdef str path
    if isinstance(target, str):
        if not PyUnicode_IS_ASCII(target):
            raise TargetRefused(REASONS[BAD_CHARACTER])
        text = PyUnicode_1BYTE_DATA(target)
        size = PyUnicode_GET_LENGTH(target)
    else:
        text = <const uint8_t*>PyBytes_AS_STRING(<bytes?>target)
        size = len(<bytes>target)
    if size > max_bytes:
        raise TargetTooLong("the target is too long")
    fault = scan_path(text, size, &scan)
    if fault == FINE and scan.end < size:
        fault = scan_query(text, scan.end + 1, size)
    if fault:
        raise TargetRefused(REASONS[fault])
    if not scan.canonical:
        path = normalised(text, scan.end)
    elif scan.end == size and isinstance(target, str):
        return target, ""
    else:
        path = PyUnicode_DecodeASCII(<const char*>text, scan.end, NULL)
    if scan.end == size:
        return path, ""
    return path, PyUnicode_DecodeASCII(<const char*>text + scan.end + 1, size - scan.end - 1, NULL)


def decode_segment(str raw not None):
    """The text that a raw path parameter spells.

    Raises: TargetRefused for a bad escape or escapes that are not UTF-8; a canonical path has none.
    """
    cdef const uint8_t* text
    cdef uint8_t* target
    cdef Py_ssize_t i = 0, n = 0, size
    cdef int byte
    if not PyUnicode_IS_ASCII(raw):
        raise TargetRefused(REASONS[BAD_CHARACTER])
    text = PyUnicode_1BYTE_DATA(raw)
    size = PyUnicode_GET_LENGTH(raw)
    if memchr(text, c"%", <size_t>size) is NULL:
        return raw
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
    target = <uint8_t*>PyBytes_AS_STRING(out)
    while i < size:
        byte = text[i]
        if byte == c"%":
            byte = escape_at(text, i, size)
            if byte < 0:
                raise TargetRefused(REASONS[BAD_ESCAPE])
            i += 2
        target[n] = <uint8_t>byte
        n += 1
        i += 1
    try:
        return (<char*>target)[:n].decode("utf-8")
    except UnicodeDecodeError:
        raise TargetRefused(REASONS[BAD_TEXT]) from None
