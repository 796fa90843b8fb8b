"""Strict readers for what signatures are made over: base64url and JSON, each with one spelling for one meaning.

Source: RFC 4648, 5 (base64url), RFC 8259 (JSON), RFC 8725, 2.6 and 3.7 (why a second reading of one text is an attack).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

import os

import orjson

cdef enum:
    MAX_DEPTH = 64
    MEMBER_SLOTS = 4096  # power of two, over twice the members that fit in MAX_JSON_BYTES

cdef object _loads = orjson.loads

# --- base64url (RFC 4648, 5)

cdef unsigned char _SEXTET[256]


cdef int _fill_sextets() except -1:
    cdef bytes alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    cdef int value
    for value in range(256):
        _SEXTET[value] = 0xFF
    for value in range(64):
        _SEXTET[<unsigned char>alphabet[value]] = <unsigned char>value
    return 0


_fill_sextets()


cdef bytes base64url_bytes(const unsigned char* text, Py_ssize_t n):
    """None unless `text` is the one canonical spelling of its bytes: no padding, no white space, spare bits zero."""
    cdef Py_ssize_t tail = n & 3, i = 0, o = 0
    cdef uint32_t bad = 0, a, b, c, d
    cdef bytes result
    cdef unsigned char* out
    if tail == 1:
        return None
    result = PyBytes_FromStringAndSize(NULL, (n >> 2) * 3 + (tail - 1 if tail else 0))
    out = <unsigned char*>PyBytes_AS_STRING(result)
    while i + 4 <= n:
        a, b, c, d = _SEXTET[text[i]], _SEXTET[text[i + 1]], _SEXTET[text[i + 2]], _SEXTET[text[i + 3]]
        bad |= a | b | c | d
        out[o] = <unsigned char>(a << 2 | b >> 4)
        out[o + 1] = <unsigned char>(b << 4 | c >> 2)
        out[o + 2] = <unsigned char>(c << 6 | d)
        i += 4
        o += 3
    if tail:
        a, b = _SEXTET[text[i]], _SEXTET[text[i + 1]]
        bad |= a | b
        out[o] = <unsigned char>(a << 2 | b >> 4)
        if tail == 2:
            bad |= 0xC0 if b & 0x0F else 0
        else:
            c = _SEXTET[text[i + 2]]
            bad |= c | (0xC0 if c & 0x03 else 0)
            out[o + 1] = <unsigned char>(b << 4 | c >> 2)
    return None if bad & 0xC0 else result


def decode_base64url(text not None):
    """The bytes of a base64url text (ASCII str or bytes).

    Raises: ValueError unless `text` is the canonical spelling without padding.
    """
    cdef bytes raw = text if isinstance(text, bytes) else text.encode()
    cdef bytes result = base64url_bytes(<const unsigned char*>PyBytes_AS_STRING(raw), len(raw))
    if result is None:
        raise ValueError("not canonical base64url without padding")
    return result


# --- JSON: what orjson lets pass

cdef struct Member:
    uint32_t scan  # the scan that wrote the slot: older ones count as empty, so nothing is cleared between scans
    uint32_t container
    uint32_t start
    uint32_t length

# Scratch of one scan; a scan never yields, so the GIL guards them.
cdef Member _members[MEMBER_SLOTS]
cdef unsigned char _names[MAX_JSON_BYTES]
cdef uint32_t _scan_number = 0
cdef uint64_t _name_seed = int.from_bytes(os.urandom(8), "little")

cdef enum Fault:
    SOUND, BROKEN, DUPLICATE, DEEP, NUL, HUGE

cdef dict _FAULTS = {
    BROKEN: "is not JSON in UTF-8",
    DUPLICATE: "has a duplicate member",
    DEEP: "is nested too deeply",
    NUL: "has an escaped NUL",
    HUGE: "has an integer beyond 64 bits",
}


cdef inline int _short_escape(unsigned char c) noexcept:
    """What the character after a backslash stands for; 0 if nothing."""
    if c == 34 or c == 92 or c == 47:
        return c
    if c == 98:
        return 8
    if c == 102:
        return 12
    if c == 110:
        return 10
    if c == 114:
        return 13
    return 9 if c == 116 else 0


cdef inline int _hex4(const unsigned char* s, Py_ssize_t left) noexcept:
    """The value of four hexadecimal digits, -1 if there are none."""
    cdef int value = 0, i
    cdef unsigned char c
    if left < 4:
        return -1
    for i in range(4):
        c = s[i]
        if 48 <= c <= 57:
            value = value << 4 | (c - 48)
        elif 97 <= (c | 32) <= 102:
            value = value << 4 | ((c | 32) - 87)
        else:
            return -1
    return value


cdef inline Py_ssize_t _put_utf8(unsigned char* out, int point) noexcept:
    if point < 0x80:
        out[0] = <unsigned char>point
        return 1
    if point < 0x800:
        out[0] = <unsigned char>(0xC0 | point >> 6)
        out[1] = <unsigned char>(0x80 | point & 0x3F)
        return 2
    if point < 0x10000:
        out[0] = <unsigned char>(0xE0 | point >> 12)
        out[1] = <unsigned char>(0x80 | point >> 6 & 0x3F)
        out[2] = <unsigned char>(0x80 | point & 0x3F)
        return 3
    out[0] = <unsigned char>(0xF0 | point >> 18)
    out[1] = <unsigned char>(0x80 | point >> 12 & 0x3F)
    out[2] = <unsigned char>(0x80 | point >> 6 & 0x3F)
    out[3] = <unsigned char>(0x80 | point & 0x3F)
    return 4


cdef Py_ssize_t _unescape(const unsigned char* s, Py_ssize_t n, unsigned char* out) noexcept:
    """Writes the name `s` with its escapes resolved, never longer than it was; its length, or -1 if one is broken."""
    cdef Py_ssize_t i = 0, o = 0
    cdef int point, low
    while i < n:
        if s[i] != 92:
            out[o] = s[i]
            i += 1
            o += 1
            continue
        i += 1
        if s[i] != 117:
            point = _short_escape(s[i])
            if point == 0:
                return -1
            out[o] = <unsigned char>point
            i += 1
            o += 1
            continue
        point = _hex4(s + i + 1, n - i - 1)
        i += 5
        if point < 0:
            return -1
        if 0xD800 <= point < 0xDC00:
            if n - i < 6 or s[i] != 92 or s[i + 1] != 117:
                return -1
            low = _hex4(s + i + 2, n - i - 2)
            if not 0xDC00 <= low < 0xE000:
                return -1
            point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
            i += 6
        elif 0xDC00 <= point < 0xE000:
            return -1
        o += _put_utf8(out + o, point)
    return o


cdef bint _is_new_member(uint32_t container, Py_ssize_t start, Py_ssize_t length) noexcept:
    """Notes the name `_names[start:start+length]` of a container; False if the container has it already."""
    cdef uint64_t h = _name_seed ^ (<uint64_t>container * 0x9E3779B97F4A7C15u)
    cdef Py_ssize_t i
    cdef Member* member
    for i in range(start, start + length):
        h = (h ^ _names[i]) * 0x100000001B3u
    h ^= h >> 29
    while True:
        member = &_members[h & (MEMBER_SLOTS - 1)]
        if member.scan != _scan_number:
            member.scan = _scan_number
            member.container = container
            member.start = <uint32_t>start
            member.length = <uint32_t>length
            return True
        if (
            member.container == container
            and member.length == <uint32_t>length
            and memcmp(_names + member.start, _names + start, <size_t>length) == 0
        ):
            return False
        h += 1


cdef Py_ssize_t _string_end(const unsigned char* s, Py_ssize_t n, Py_ssize_t i, bint* escaped, Fault* fault) noexcept:
    """Index of the quote that ends the string whose content begins at `i`; n if none does."""
    while i < n and s[i] != 34:
        if s[i] == 92:
            escaped[0] = True
            if n - i >= 6 and memcmp(s + i, b"\\u0000", 6) == 0:
                fault[0] = NUL
            i += 1
        i += 1
    return i if i < n else n


cdef Py_ssize_t _number_end(const unsigned char* s, Py_ssize_t n, Py_ssize_t i, Fault* fault) noexcept:
    """Index past the number at `i`; an integer must fit 64 bits, or orjson would silently change it."""
    cdef bint negative = s[i] == 45
    cdef Py_ssize_t start = i + negative
    i = start
    while i < n and 48 <= s[i] <= 57:
        i += 1
    if i - start > 19 - negative and not (i < n and (s[i] == 46 or s[i] | 32 == 101)):
        fault[0] = HUGE
    while i < n and (48 <= s[i] <= 57 or s[i] == 46 or s[i] | 32 == 101 or s[i] == 43 or s[i] == 45):
        i += 1
    return i if i > start else start


cdef Fault _scan_json(const unsigned char* s, Py_ssize_t n) noexcept:
    """What a JSON text has that no token may have. The grammar is orjson's to check: in JSON that it then accepts, a
    string followed by a colon is a member's name and belongs to the innermost container."""
    global _scan_number
    cdef uint32_t open_containers[MAX_DEPTH + 1]
    cdef uint32_t containers = 0
    cdef Py_ssize_t depth = 0, i = 0, end, colon, used = 0, length
    cdef unsigned char c
    cdef bint escaped
    cdef Fault fault = SOUND
    if n > MAX_JSON_BYTES:
        return BROKEN
    open_containers[0] = 0
    _scan_number += 1
    if _scan_number == 0:  # wrapped after 2**32 scans: slot numbers of the last round could look current
        _forget_members()
    while i < n:
        c = s[i]
        if c == 34:
            escaped = False
            end = _string_end(s, n, i + 1, &escaped, &fault)
            if end == n:
                return BROKEN
            colon = end + 1
            while colon < n and (s[colon] == 32 or 9 <= s[colon] <= 10 or s[colon] == 13):
                colon += 1
            if colon < n and s[colon] == 58:
                length = _unescape(s + i + 1, end - i - 1, _names + used)
                if length < 0:
                    return BROKEN
                if not _is_new_member(open_containers[depth], used, length):
                    return DUPLICATE
                used += length
            i = colon
        elif c == 123 or c == 91:
            if depth == MAX_DEPTH:
                return DEEP
            depth += 1
            containers += 1
            open_containers[depth] = containers
            i += 1
        elif c == 125 or c == 93:
            if depth == 0:
                return BROKEN
            depth -= 1
            i += 1
        elif c == 45 or 48 <= c <= 57:
            i = _number_end(s, n, i, &fault)
        else:
            i += 1
        if fault != SOUND:
            return fault
    return SOUND


cdef void _forget_members() noexcept:
    global _scan_number
    cdef Py_ssize_t i
    for i in range(MEMBER_SLOTS):
        _members[i].scan = 0
    _scan_number = 1


cdef dict decode_json_object(bytes text):
    """Raises: ValueError, which says what is wrong and echoes nothing."""
    cdef Fault fault = _scan_json(<const unsigned char*>PyBytes_AS_STRING(text), len(text))
    if fault != SOUND:
        raise ValueError(_FAULTS[fault])
    try:
        value = _loads(text)
    except ValueError:
        raise ValueError(_FAULTS[BROKEN]) from None
    if type(value) is not dict:
        raise ValueError("is not a JSON object")
    return value


def decode_object(text not None):
    """The JSON object in `text` (bytes), at most 6 KiB: UTF-8 without a byte order mark, no duplicate member at any
    depth, no integer beyond 64 bits, no escaped NUL (neither PostgreSQL's text nor a C string holds one), at most 64
    levels deep.

    Raises: ValueError.
    """
    return decode_json_object(text)


# --- signatures

cdef bytes _der_integer(bytes value):
    value = value.lstrip(b"\0")
    if not value:
        return None
    if value[0] & 0x80:
        value = b"\0" + value
    return b"\x02" + bytes((len(value),)) + value


cdef bytes der_signature(bytes raw):
    """An ECDSA signature r || s as the DER sequence that OpenSSL wants; None if r or s is zero."""
    cdef Py_ssize_t half = len(raw) // 2
    cdef bytes r = _der_integer(raw[:half]), s = _der_integer(raw[half:])
    if r is None or s is None:
        return None
    cdef Py_ssize_t length = len(r) + len(s)
    return (b"\x30" if length < 128 else b"\x30\x81") + bytes((length,)) + r + s


# --- claims


def is_name(value):
    """Is it text of 1 to 256 characters?"""
    return isinstance(value, str) and 0 < len(value) <= 256


def is_name_or_names(value):
    """Is it a name, or a list of names?"""
    if type(value) is not list:
        return is_name(value)
    for member in value:
        if not is_name(member):
            return False
    return True
