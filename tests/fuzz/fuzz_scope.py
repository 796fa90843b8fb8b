#!/usr/bin/env python3
"""Fuzz target: SMART scopes. `python tests/fuzz/fuzz_scope.py [corpus] [-runs=N]` needs atheris."""

from __future__ import annotations

import inspect
import re
import sys

from gateway.rbac.fhir import RESOURCE_TYPES, interaction_of
from gateway.rbac.scopes import claimed, covers, granted, mask_of, read_ceiling, read_need, read_scope

CEILING = read_ceiling(["patient/*.rs", "user/Observation.cruds"])
EVERYTHING = mask_of("*", "cruds")

# As indexes of these, inputs get past the first check.
PIECES = (
    b"patient/ user/ system/ launch/ openid Observation Patient * . rs s r c u d cruds read write .* .rs ? ?code=x "
    b"\x20 \t / _history _search $everything 7 a-b"
).split(b" ")


def one_input(data: bytes) -> None:
    """Check the input as a claim, and as the recipe of one."""
    check(data.decode("utf-8", "replace"))
    check(b"".join(PIECES[byte % len(PIECES)] or b" " for byte in data).decode())


def check(text: str) -> None:
    """What holds of every claim: no scope grants more than its own spelling says, nor than the role may have."""
    texts = claimed({"scope": text})
    scopes = granted(CEILING, texts)
    assert scopes.own & ~CEILING.patient == 0
    assert scopes.any & ~CEILING.user == 0
    for one in texts:
        check_one(one)
    if not any(one.startswith("patient/") for one in texts):
        assert scopes.own == 0
    if not covers(scopes, 0, own=True):
        assert not covers(scopes, mask_of("Observation", "r"), own=True)
    for method in ("GET", "POST", "PUT"):
        found = interaction_of(method, text)
        if found is not None:
            assert found[0] == "*" or found[0] in RESOURCE_TYPES
            assert re.fullmatch("c?r?u?d?s?", found[1])
            assert read_need(f"{found[0]}.{found[1]}") != 0
            assert "$" not in text


def check_one(text: str) -> None:
    found = read_scope(text)
    if found is None:
        return
    context, mask = found
    assert text.startswith(f"{context}/")
    assert 0 < mask <= EVERYTHING
    assert not set(text) & set("? \t\n")
    resource, _, letters = text.partition("/")[2].rpartition(".") if not text.endswith(".*") else ("", "", "*")
    if resource and resource != "*":
        assert resource in RESOURCE_TYPES
        assert mask & ~mask_of(resource, "cruds") == 0


def main() -> None:
    import atheris

    # NOTE: the policy is plain Python, which gives coverage only so; to instrument everything takes 15 s.
    for module in (interaction_of.__module__, granted.__module__):
        for function in vars(sys.modules[module]).values():
            if inspect.isfunction(function):
                atheris.instrument_func(function)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
