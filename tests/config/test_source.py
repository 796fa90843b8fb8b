"""YAML text: what is refused as a whole, and what plain scalars mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.parse import parse
from gateway.config.source import MAX_BYTES, MAX_DEPTH, read


@pytest.mark.parametrize(
    ("raw", "path", "reason", "line"),
    [
        pytest.param(b"", "document", "is empty", None, id="empty"),
        pytest.param(b"# nothing\n", "document", "is empty", None, id="comment only"),
        pytest.param(b"a: 1\n---\nb: 2\n", "document", "second document", 2, id="two documents"),
        pytest.param(b"a: &x 1\nb: *x\n", "b", "aliases are refused", 2, id="alias"),
        pytest.param(b"a: &x {b: *x}\n", "a.b", "aliases are refused", 1, id="alias of itself"),
        pytest.param(b"*x : 1\n", "document", "aliases are refused", 1, id="alias as key"),
        pytest.param(b"a: 1\n<<: {b: 2}\n", "document", "merge keys are refused", 2, id="merge key"),
        pytest.param(b"%YAML 1.1\n---\na: 1\n", "document", "directives are refused", None, id="version directive"),
        pytest.param(
            b"%TAG ! tag:x,2000:\n---\na: 1\n", "document", "directives are refused", None, id="tag directive"
        ),
        pytest.param(b"a: {b: [\n", "document", "is not YAML", None, id="unfinished"),
        pytest.param(b"a: 1\n\tb: 2\n", "document", "is not YAML", 2, id="tab"),
        pytest.param(b"a: 1\nb: \xff\n", "document", "not UTF-8", 2, id="not UTF-8"),
        pytest.param("a: 1\n".encode("utf-16"), "document", "not UTF-8", 1, id="UTF-16"),
        pytest.param(b"a: 1\nb: \x00\n", "document", "YAML", None, id="NUL"),
        pytest.param(b"a: 1\n" * (MAX_BYTES // 5 + 1), "document", "is larger than", None, id="too large"),
        pytest.param(b"a: " + b"[" * 40 + b"]" * 40, "a" + "[0]" * MAX_DEPTH, "nested deeper", 1, id="too deep"),
        pytest.param(b"[" * 100_000, "document" + "[0]" * (MAX_DEPTH + 1), "nested deeper", 1, id="bottomless"),
        pytest.param(b"- a\n", "document", "must be a mapping", 1, id="a list"),
        pytest.param(b"just text", "document", "must be a mapping", 1, id="text"),
    ],
)
def test_refused(raw: bytes, path: str, reason: str, line: int | None) -> None:
    faults = parse(raw).faults
    found = [f for f in faults if f.path == path and reason in f.reason]
    assert found, [str(f) for f in faults]
    assert line is None or found[0].line == line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("y", "y"), ("NO", "NO"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("''", ""), ("'true'", "true"),
        ("12", 12), ("-3", -3), ("+4", 4), ("0", 0), ("0x1F", 31), ("0o17", 15), ("1_000", "1_000"), ("0b11", "0b11"),
        ("1:30", "1:30"), ("190:20:30", "190:20:30"), ("2026-01-31", "2026-01-31"), ("1e3", 1000.0), ("1.5", 1.5),
        (".5", 0.5), ("1.2.3", "1.2.3"), ("=", "="), ("<", "<"), ("a: b", {"a": "b"}),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    source = read(f"v: {text}".encode() if ": " not in text else f"v:\n  {text}".encode())
    assert source.faults == []
    assert source.data == {"v": value}
    assert type(source.data["v"]) is type(value)  # type: ignore[index]


def test_a_byte_order_mark_is_not_part_of_the_text() -> None:
    assert read(b"\xef\xbb\xbfa: 1\n").data == {"a": 1}


def test_lines_are_those_of_the_keys() -> None:
    source = read(b"a:\n  b: 1\n  c:\n    - x\n    - y: 2\n'q r': 3\n")
    assert source.lines == {
        "document": 1, "a": 1, "a.b": 2, "a.c": 3, "a.c[0]": 4, "a.c[1]": 5, "a.c[1].y": 5, 'document["q r"]': 6,
    }  # fmt: skip


PIECES = st.sampled_from(
    ["a: ", "- ", "\n", "  ", "{", "}", "[", "]", ",", "&x ", "*x", "!!str ", "<<: ", "'", '"', "|", "#", "? ", ": ",
     "---\n", "...\n", "%", "\\", "\t", "7", "true", "\x00", "\x85", "\ud800", "é", "roles:", "version: 1\n"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join))
def test_any_text_gives_faults_and_never_an_exception(text: str) -> None:
    assert parse(text).faults


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_faults_and_never_an_exception(raw: bytes) -> None:
    assert parse(raw).faults
