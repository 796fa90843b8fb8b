"""The compiled record of a request has the fields, and the defaults, that its typed declaration says."""

from __future__ import annotations

import ast
from pathlib import Path

from gateway import context


def _declared() -> list[str]:
    tree = ast.parse(Path(context.__file__).read_text())
    declaration = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "RequestContext")
    return [n.target.id for n in declaration.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]


def test_fields() -> None:
    made = context.RequestContext("id", 1)
    assert sorted(name for name in dir(made) if not name.startswith("_")) == sorted(_declared())


def test_defaults_are_fresh() -> None:
    one, other = context.RequestContext("id", 1), context.RequestContext("id", 1)
    one.params["a"] = "b"
    one.limits_taken.append(1)
    assert (other.params, other.limits_taken, other.limit_headers) == ({}, [], ())
    assert (other.route, other.principal, other.error, other.unit, other.rule, other.deadline_ns) == (
        None, None, None, None, "", 0,
    )  # fmt: skip
