"""The route table, against a plain Python model."""

from __future__ import annotations

import random
import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.routes import RouteConflict, RouteTable, parse_template

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
