"""The canonical form of request targets, against a plain Python model."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, unquote, unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastpath.target import REASONS, TargetRefused, TargetTooLong, canonical_path, decode_segment

CANONICAL = [
    ("root", "/", ("/", "")),
    ("plain", "/a/b", ("/a/b", "")),
    ("trailing slash", "/a/", ("/a/", "")),
    ("query", "/a?x=1&y=2", ("/a", "x=1&y=2")),
    ("empty query", "/a?", ("/a", "")),
    ("question marks in the query", "/a?b?c", ("/a", "b?c")),
    ("query keeps its spelling", '/a?%7e=%c3%a9|[]{}\\^`"<>', ("/a", '%7e=%c3%a9|[]{}\\^`"<>')),
    ("query with dots and slashes", "/a?../..//", ("/a", "../..//")),
    ("unreserved is decoded", "/%41%7e%2D%5f%30", ("/A~-_0", "")),
    ("dots inside a segment", "/a%2eb/...", ("/a.b/...", "")),
    ("hidden file", "/.well-known", ("/.well-known", "")),
    ("hex upper-cased", "/%c3%a9%3a", ("/%C3%A9%3A", "")),
    ("sub-delims and pchar", "/!$&'()*+,;=:@", ("/!$&'()*+,;=:@", "")),
    ("an escaped percent stays", "/%252e%252E", ("/%252e%252E", "")),
    ("parameters of a segment", "/a;v=1/b", ("/a;v=1/b", "")),
    ("four bytes", "/%F0%9F%98%80", ("/%F0%9F%98%80", "")),
    ("highest", "/%F4%8F%BF%BF", ("/%F4%8F%BF%BF", "")),
    ("first after C1", "/%C2%A0", ("/%C2%A0", "")),
    ("below the surrogates", "/%ED%9F%BF", ("/%ED%9F%BF", "")),
    ("first of three bytes", "/%E0%A0%80", ("/%E0%A0%80", "")),
]

REFUSED = [
    "", "a", "*", "?", "?/", "a/b", "http://host/", "host:443", "//", "//host/", "/a//b", "/a//", "/.", "/..", "/./",
    "/../", "/a/.", "/a/..", "/a/./b", "/a/../b", "/%2e", "/%2E%2e/", "/.%2e/a", "/a/%2e%2e?x", "/..;/", "/a/..;x/b",
    "/a/.;x", "/;", "/;x/a", "/a/;/b", "/...;x", "/..%3b/", "/%2e%2e%3Bx", "/a/%2f", "/a%2Fb", "/a%5cb", "/a%5Cb",
    "/a\\b", "/a#b", "/a?#", "/#", "/%00", "/%1f", "/%7F", "/%0d%0a", "/\x00", "/\n", "/a b", "/a\tb", "/\x7f",
    "/a?\x00", "/a? ", "/a?\r", "/a?%00", "/a?%0a", "/a?%7f", "/%", "/%4", "/%4g", "/%g4", "/%%41", "/%2%35", "/a?%",
    "/a?%1", "/a?%zz", "/é", "/a?é", "/a|b", "/[a]", "/{a}", '/"', "/<a>", "/^", "/`", "/%80", "/%bf", "/%c0%80",
    "/%c1%bf", "/%c3", "/%c3/a", "/%c3a", "/%c3%41", "/%c3?%a9", "/%e0%80%80", "/%e0%9f%bf", "/%ed%a0%80",
    "/%ed%bf%bf", "/%e2%82", "/%f0%80%80%80", "/%f0%8f%bf%bf", "/%f4%90%80%80", "/%f5%80%80%80", "/%ff", "/%f0%9f%98",
    "/%c2%80", "/%c2%9f", "/a?%c0%80", "/a?%c3", "/a?%c3&", "/a?%c2%85",
]  # fmt: skip


@pytest.mark.parametrize(("target", "expected"), [c[1:] for c in CANONICAL], ids=[c[0] for c in CANONICAL])
def test_canonical(target, expected) -> None:
    assert canonical_path(target) == expected
    assert canonical_path(target.encode()) == expected
    assert model_canonical(target) == expected


@pytest.mark.parametrize("target", REFUSED, ids=[ascii(t) for t in REFUSED])
def test_refused(target) -> None:
    with pytest.raises(TargetRefused) as caught:
        canonical_path(target)
    assert str(caught.value) in REASONS
    with pytest.raises(TargetRefused):
        canonical_path(target.encode("utf-8"))
    assert model_canonical(target) is None


def test_nothing_to_do_returns_the_same_object() -> None:
    target = "/portal/v1/patients/pat-0001"
    assert canonical_path(target)[0] is target


def test_length_is_limited_before_anything_else() -> None:
    assert canonical_path("/" + "a" * 8191)[0] == "/" + "a" * 8191
    with pytest.raises(TargetTooLong):
        canonical_path("/" + "a" * 8192)
    with pytest.raises(TargetTooLong):
        canonical_path(b"\x00" * 11, 10)


@pytest.mark.parametrize("target", [None, 1, bytearray(b"/")])
def test_neither_text_nor_bytes(target) -> None:
    with pytest.raises(TypeError):
        canonical_path(target)


def model_canonical(target: str) -> tuple[str, str] | None:
    """The rules again, in plain Python over whole strings."""
    path, _, query = target.partition("?")
    if not target.isascii() or not path.startswith("/"):
        return None
    if not re.fullmatch(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*", path):
        return None
    if not re.fullmatch(r"(?:[!\"$&-~]|%[0-9A-Fa-f]{2})*", query):
        return None
    for part in (path, query):
        try:
            text = unquote(part, errors="strict")
        except UnicodeDecodeError:
            return None
        if any(unicodedata.category(letter) == "Cc" for letter in text):
            return None
    if re.search(r"%(2f|5c)", path, re.IGNORECASE):
        return None
    plain = [unquote_to_bytes(segment) for segment in path[1:].split("/")]
    if any(re.match(rb"\.*;", segment) or segment in (b".", b"..") for segment in plain) or b"" in plain[:-1]:
        return None

    def one_spelling(escape: re.Match[str]) -> str:
        letter = chr(int(escape[1], 16))
        return letter if re.fullmatch(r"[A-Za-z0-9._~-]", letter) else escape[0].upper()

    return re.sub("%(..)", one_spelling, path), query


PIECES = [
    "/", "//", ".", "..", "%2e", "%2E", ";", "%3b", "a", "Z", "~", "%7e", "%41", "?", "#", "%", "%2f", "%5C", "\\",
    "%00", "%c3%a9", "%C3", "%a9", "%e2%82%ac", "%ed%a0%80", "%f0%9f%98%80", "%c2%85", "%25", "é", " ", "|", "+", "=",
    "\x00", "\n", "\x7f",
]  # fmt: skip


@settings(max_examples=3000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map(lambda pieces: "/" + "".join(pieces)) | st.text(max_size=12))
@example("/a%c3?%a9")
def test_canonical_as_the_model(target) -> None:
    try:
        found = canonical_path(target)
    except TargetRefused:
        found = None
    assert found == model_canonical(target)
    if found is not None:
        assert canonical_path(found[0]) == (found[0], "")
        assert canonical_path(target.encode()) == found


DECODED = [
    ("same", "pat-0001", "pat-0001"),
    ("space", "a%20b", "a b"),
    ("plus", "a+b", "a+b"),
    ("utf-8", "%C3%A9x", "éx"),
]


@pytest.mark.parametrize(("raw", "text"), [c[1:] for c in DECODED], ids=[c[0] for c in DECODED])
def test_decode_segment(raw, text) -> None:
    assert decode_segment(raw) == text


@pytest.mark.parametrize("raw", ["%", "%4", "a%zz", "%C3", "%ff", "é", "%C3%28"])
def test_decode_segment_refuses(raw) -> None:
    with pytest.raises(TargetRefused):
        decode_segment(raw)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="aé%/.€\U0001f600 ;", min_size=1, max_size=8))
def test_decode_segment_undoes_quoting(text) -> None:
    assert decode_segment(quote(text, safe="")) == text
