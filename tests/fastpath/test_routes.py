"""The route table and the canonical form of targets, against plain Python models."""

from __future__ import annotations

import random
import re
import struct
import unicodedata
from urllib.parse import quote, unquote, unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastpath.routes import (
    REASONS,
    RouteConflict,
    RouteTable,
    TargetRefused,
    TargetTooLong,
    canonical_path,
    decode_segment,
    parse_template,
)

# --- the plain model of the table


def shape(template: str) -> list[str]:
    """One letter a segment: literal text, `*` for a parameter, `**` for the rest."""
    return [
        "**" if segment.endswith(":path}") else "*" if segment.startswith("{") else segment
        for segment in template[1:].split("/")
    ]


def params_of(template: str, path: str) -> dict[str, str] | None:
    """The parameters if the template matches, by a regular expression."""
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(template))
    pattern = re.sub(r"\\\{(\w+):path\\\}", r"(?P<\1>[^/].*)", pattern)
    found = re.fullmatch(pattern, path)
    return found.groupdict() if found else None


def exactness(template: str) -> list[int]:
    return [{"*": 1, "**": 2}.get(mark, 0) for mark in shape(template)]


def model_match(routes, method, path):
    matching = [(t, v) for m, t, v in routes if m == method and params_of(t, path) is not None]
    if not matching:
        return None
    template, value = min(matching, key=lambda row: exactness(row[0]))
    return value, params_of(template, path)


LITERALS = ["a", "b", "ab", "a.b", "%C3%A9"]


@st.composite
def templates(draw):
    depth = draw(st.integers(0, 4))
    segments = [draw(st.sampled_from([*LITERALS, "{%d}"])) for _ in range(depth)]
    segments.append(draw(st.sampled_from([*LITERALS, "", "{%d}", "{%d:path}"])))
    names = draw(st.permutations(["p", "q", "r", "s", "t"]))
    return "/" + "/".join(s.replace("%d", names[i]) if "{" in s else s for i, s in enumerate(segments))


@st.composite
def route_sets(draw):
    chosen, seen = [], set()
    for index, template in enumerate(draw(st.lists(templates(), max_size=14))):
        method = draw(st.sampled_from(["GET", "POST"]))
        if (method, *shape(template)) not in seen:
            seen.add((method, *shape(template)))
            chosen.append((method, template, index))
    return chosen


PATHS = st.lists(st.sampled_from([*LITERALS, "c", "x%2By"]), max_size=6).flatmap(
    lambda segments: st.sampled_from(["/" + "/".join(segments), "/" + "/".join([*segments, ""])])
)


@settings(max_examples=400, deadline=None)
@given(routes=route_sets(), paths=st.lists(PATHS, min_size=1, max_size=12), order=st.randoms(use_true_random=False))
def test_matches_as_the_model(routes, paths, order) -> None:
    shuffled = list(routes)
    order.shuffle(shuffled)
    table = RouteTable(shuffled)
    assert len(table) == len(routes)
    for path in paths:
        expected = {method: model_match(routes, method, path) for method in ("GET", "POST", "PUT")}
        assert {method: table.match(method, path) for method in expected} == expected, path
        assert table.allowed(path) == tuple(sorted(method for method, found in expected.items() if found))


@settings(max_examples=100, deadline=None)
@given(routes=route_sets())
def test_every_template_serves_its_own_path(routes) -> None:
    table = RouteTable(routes)
    for method, template, _ in routes:
        path = re.sub(r"\{\w+:path\}", "zz/zz", re.sub(r"\{\w+\}", "zz", template))
        assert table.match(method, path) == model_match(routes, method, path)


EXACT = [
    ("literal over parameter", ["/a/{x}", "/a/b"], "/a/b", "/a/b", {}),
    ("parameter over rest", ["/a/{x:path}", "/a/{x}"], "/a/b", "/a/{x}", {"x": "b"}),
    ("rest takes several", ["/a/{x:path}", "/a/{x}"], "/a/b/c", "/a/{x:path}", {"x": "b/c"}),
    ("rest keeps a trailing slash", ["/a/{x:path}"], "/a/b/", "/a/{x:path}", {"x": "b/"}),
    ("leftmost decides", ["/{x}/b/c", "/a/{y}/{z}"], "/a/b/c", "/a/{y}/{z}", {"y": "b", "z": "c"}),
    ("back to the parameter", ["/a/b/c", "/a/{x}/d"], "/a/b/d", "/a/{x}/d", {"x": "b"}),
    ("back to the rest", ["/a/b/c", "/{x:path}"], "/a/b/d", "/{x:path}", {"x": "a/b/d"}),
    ("back past a longer start", ["/a/b/{x}/e", "/a/{y:path}"], "/a/b/c/d", "/a/{y:path}", {"y": "b/c/d"}),
    ("root", ["/", "/{x}"], "/", "/", {}),
    ("trailing slash is another path", ["/a", "/a/"], "/a/", "/a/", {}),
    ("escaped literal", ["/%C3%A9/{x}"], "/%C3%A9/%20", "/%C3%A9/{x}", {"x": "%20"}),
]


@pytest.mark.parametrize(
    ("given_templates", "path", "winner", "params"), [c[1:] for c in EXACT], ids=[c[0] for c in EXACT]
)
@pytest.mark.parametrize("turn", [1, -1], ids=["in order", "reversed"])
def test_the_more_exact_wins(given_templates, path, winner, params, turn) -> None:
    table = RouteTable([("GET", t, t) for t in given_templates[::turn]])
    assert table.match("GET", path) == (winner, params)


NO_MATCH = [
    ("trailing slash", "/a/{x}", "/a/b/"),
    ("missing trailing slash", "/a/", "/a"),
    ("empty parameter", "/a/{x}", "/a/"),
    ("empty rest", "/a/{x:path}", "/a/"),
    ("rest that starts with a slash", "/a/{x:path}", "/a//b"),
    ("empty parameter inside", "/a/{x}/b", "/a//b"),
    ("longer", "/a/{x}", "/a/b/c"),
    ("much longer", "/a/{x}", "/a" * 3000),
    ("shorter", "/a/{x}", "/a"),
    ("prefix of a literal", "/abc", "/ab"),
    ("case", "/abc", "/ABC"),
    ("no slash", "/a", "a"),
    ("empty", "/", ""),
    ("not ASCII", "/{x}", "/é"),
]


@pytest.mark.parametrize(("template", "path"), [c[1:] for c in NO_MATCH], ids=[c[0] for c in NO_MATCH])
def test_does_not_match(template, path) -> None:
    table = RouteTable([("GET", template, 1)])
    assert table.match("GET", path) is None
    assert table.allowed(path) == ()


def test_each_method_has_its_own_most_exact_route() -> None:
    table = RouteTable([("GET", "/a/{x}", 1), ("POST", "/a/b", 2)])
    assert table.match("GET", "/a/b") == (1, {"x": "b"})
    assert table.match("POST", "/a/b") == (2, {})
    assert table.match("HEAD", "/a/b") is None
    assert table.allowed("/a/b") == ("GET", "POST")


CONFLICTS = [("same", "/a/{x}", "/a/{x}"), ("other name", "/a/{x}/b", "/a/{y}/b"), ("rest", "/{x:path}", "/{y:path}")]


@pytest.mark.parametrize(("one", "other"), [c[1:] for c in CONFLICTS], ids=[c[0] for c in CONFLICTS])
def test_conflict_names_both(one, other) -> None:
    with pytest.raises(RouteConflict) as caught:
        RouteTable([("GET", one, 1), ("GET", "/z", 2), ("GET", other, 3)])
    assert repr(one) in str(caught.value)
    assert repr(other) in str(caught.value)
    assert len(RouteTable([("GET", one, 1), ("POST", other, 2)])) == 2


BAD_TEMPLATES = [
    "", "a", "//", "/a//b", "/a/../b", "/a/./b", "/..", "/a/{x", "/a/x}", "/a/{}", "/a/{1x}", "/a/{x-y}", "/a/{{x}}",
    "/a/{x}{y}", "/a/p{x}", "/a/{x}.json", "/a/{x:int}", "/{x}/{x}", "/{x}/b/{x:path}", "/{x:path}/b", "/{x:path}/",
    "/é", "/a b", "/a?b", "/a?", "/a#b", "/%7Ea", "/%c3%a9", "/%2F", "/%", "/a\\b", "/..;/a", "/" + "a/" * 64,
]  # fmt: skip


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_bad_template_is_named(template) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(template))):
        RouteTable([("GET", template, 1)])


@pytest.mark.parametrize("method", ["", "get", "G T", "GET\n", None, "X" * 33])
def test_bad_method(method) -> None:
    with pytest.raises(ValueError, match="method"):
        RouteTable([(method, "/a", 1)])


def test_parse_template() -> None:
    assert parse_template("/a/{b}/{c:path}") == [("a", None, False), (None, "b", False), (None, "c", True)]


def test_overlaps_cost_no_more_than_the_trie_has_nodes() -> None:
    # 2**12 routes over {a, *} of depth 12 and a path that matches none: every node once is 8191 steps, not 4096 * 12.
    def of(bits: int) -> str:
        return "/" + "/".join("a" if bits >> i & 1 else f"{{p{i}}}" for i in range(12))

    table = RouteTable([("GET", of(bits) + "/end", bits) for bits in range(4096)])
    assert table.match("GET", "/a" * 12 + "/no") is None
    assert table.match("GET", "/a" * 12 + "/end") == (4095, {})


def test_large_table() -> None:
    routes = [("GET", f"/api/r{i}/{{id}}", i) for i in range(10_000)]
    random.Random(1).shuffle(routes)
    table = RouteTable(routes)
    assert all(table.match("GET", f"/api/r{i}/x") == (i, {"id": "x"}) for i in range(10_000))
    assert table.match("GET", "/api/r10000/x") is None


MULTIPLY, MASK = 0xFF51AFD7ED558CCD, 2**64 - 1


def kernel_hash(text: bytes) -> int:
    """The state of the kernel's hash when all but the last 8 bytes of a text went in."""
    state = 0x9E3779B97F4A7C15 ^ (len(text) + 8)
    for (word,) in struct.iter_unpack("<Q", text):
        state = (state ^ word) * MULTIPLY & MASK
        state ^= state >> 32
    return state


def test_segments_that_collide_are_compared() -> None:
    rng, letters = random.Random(5), b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    while True:
        first, other = (bytes(rng.choices(letters, k=8)) for _ in range(2))
        last = bytes(rng.choices(letters, k=8))
        twin = struct.unpack("<Q", last)[0] ^ kernel_hash(first) ^ kernel_hash(other)
        literal, collides = first + last, other + struct.pack("<Q", twin)
        if re.fullmatch(rb"[a-zA-Z0-9._~!$&'()*+,;=:@-]+", collides):
            break
    table = RouteTable([("GET", f"/{literal.decode()}", 1), ("GET", "/x", 2), ("GET", "/{other}", 3)])
    assert table.match("GET", f"/{literal.decode()}") == (1, {})
    assert table.match("GET", f"/{collides.decode()}") == (3, {"other": collides.decode()})


# --- targets

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
