#!/usr/bin/env python3
"""Fuzz target: request targets. `python tests/fuzz/fuzz_target.py [corpus] [-runs=N]` needs atheris."""

from __future__ import annotations

import sys

from fastpath.routes import RouteTable
from fastpath.target import TargetRefused, canonical_path, decode_segment

TABLE = RouteTable([("GET", "/{a}/{b}", 2), ("GET", "/{a}", 1), ("GET", "/f/{rest:path}", 3), ("GET", "/", 0)])

# NOTE: compiled code gives a fuzzer no coverage to steer by; as indexes of these, inputs get past the first check.
PIECES = (
    b"/ / / a b . .. ; %2e %2E %3b %7e %41 %25 %2f %5C %c3%a9 %e2%82%ac %f0%9f%98%80 %c3 %a9 %00 %0d f ? # \\ // + ~ %"
).split()


def one_input(data: bytes) -> None:
    """Check the input as a target, and as the recipe of one."""
    check(data)
    check(b"/" + b"".join(PIECES[byte % len(PIECES)] for byte in data))


def check(data: bytes) -> None:
    """What holds of every target: refused, or of one spelling and free of anything that moves in a path."""
    try:
        path, query = canonical_path(data)
    except TargetRefused:
        return
    assert data.partition(b"?")[2] == query.encode()
    assert canonical_path(path) == (path, "")
    segments = [decode_segment(segment) for segment in path[1:].split("/")]
    for segment in segments:
        name = segment.partition(";")[0] if ";" in segment else segment
        assert name not in (".", ".."), segment
        assert not set(segment) & {"/", "\\", "\x00", "\r", "\n"}, segment
        assert ";" not in segment or name.strip("."), segment
    assert "" not in segments[:-1]
    found = TABLE.match("GET", path)
    assert (found is not None) == bool(TABLE.allowed(path))
    if found is not None:
        assert all(found[1].values())


def main() -> None:
    import atheris

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
