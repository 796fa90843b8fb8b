"""The byte sequences of Autobahn's cases 6.5 to 6.23, from what they have in common.

Source: Markus Kuhn's UTF-8 decoder stress test, which Autobahn follows.
"""

from __future__ import annotations

from itertools import product

GREEK = "\u03ba\u1f79\u03c3\u03bc\u03b5".encode()
NON_CHARACTERS = [plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)]


def encoded(code: int, length: int) -> bytes:
    """UTF-8's pattern of so many bytes, 2 to 6, whether or not it may be used for that code."""
    lead = 0xFF00 >> length & 0xFF | code >> 6 * (length - 1)
    return bytes((lead, *(0x80 | code >> 6 * i & 0x3F for i in reversed(range(length - 1)))))


def characters(*codes: int) -> list[bytes]:
    return [chr(code).encode("utf-8", "surrogatepass") for code in codes]


def truncated() -> list[bytes]:
    """The last byte is missing: of the lowest of each length, then of the highest."""
    lowest = [bytes((lead,)) + b"\x80" * i for i, lead in enumerate((0xC0, 0xE0, 0xF0, 0xF8, 0xFC))]
    return lowest + [bytes((lead,)) + b"\xbf" * i for i, lead in enumerate((0xDF, 0xEF, 0xF7, 0xFB, 0xFD))]


def lonely(first: int, last: int) -> bytes:
    return b"".join(bytes((lead, 0x20)) for lead in range(first, last))


SECTIONS: dict[int, list[bytes]] = {
    5: [*(f"hello{character}world".encode() for character in "$\u00a2\u20ac\U00024b62"), GREEK],
    6: [GREEK[:size] for size in range(1, len(GREEK) + 1)],
    7: characters(0, 0x80, 0x800, 0x10000),
    8: [encoded(0x200000, 5), encoded(0x4000000, 6)],
    9: characters(0x7F, 0x7FF, 0xFFFF, 0x10FFFF),
    10: [encoded(0x1FFFFF, 4), encoded(0x3FFFFFF, 5), encoded(0x7FFFFFFF, 6)],
    11: [*characters(0xD7FF, 0xE000, 0xFFFD, 0x10FFFF), encoded(0x110000, 4)],
    12: [b"\x80", b"\xbf", *((b"\x80\xbf" * 3)[:size] for size in range(2, 7)), bytes(range(0x80, 0xBF))],
    13: [lonely(*leads) for leads in ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))],
    14: truncated(),
    15: [b"".join(truncated())],
    16: [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"],
    17: [encoded(0x2F, length) for length in range(2, 7)],
    18: [encoded(code, 2 + i) for i, code in enumerate((0x7F, 0x7FF, 0xFFFF, 0x1FFFFF, 0x3FFFFFF))],
    19: [encoded(0, length) for length in range(2, 7)],
    20: characters(0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF),
    21: [b"".join(characters(*pair)) for pair in product((0xD800, 0xDB7F, 0xDB80, 0xDBFF), (0xDC00, 0xDFFF))],
    22: characters(*NON_CHARACTERS),
    23: characters(*range(0xFFF9, 0x10000)),
}
"""Second part of the case's number -> the payloads of its third parts, from 1 on."""


def valid(payload: bytes) -> bool:
    """By Python's own decoder."""
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
