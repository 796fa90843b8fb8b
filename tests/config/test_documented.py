"""docs/configuration.md names every field of the document with its default, and its example is good."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from gateway.config import model
from gateway.config.parse import parse

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text()
STRUCTS = [
    (model.Document, ""), (model.Gateway, ""), (model.Admin, ""), (model.Audience, ""), (model.Cors, "cors."),
    (model.Role, ""),
    (model.Key, "keys[]."), (model.LimitRule, ""), (model.Upstream, ""), (model.Unit, ""), (model.UnitKey, "keys[]."),
    (model.Controller, ""), (model.Bind, "bind[]."), (model.Function, "function."), (model.ToUpstream, "upstream."),
    (model.ToUnit, "unit."), (model.Audited, "audit."), (model.Logged, "log."),
    (model.ToUnit, "unit."), (model.Audited, "audit."), (model.Purpose, "purpose."),
    (model.Consent, "consent."), (model.PermissionRule, "permission."), (model.ScopeRule, "scope."),
    (model.TokenService, ""), (model.Client, ""), (model.ClientKey, "keys[]."), (model.App, ""),
    (model.AuditAccess, ""), (model.AuditReader, "readers.*."),
    (model.BreakGlass, ""), (model.Notify, "notify."),
    (model.IdentityProvider, ""), (model.RoleClaim, "roles[]."),
]  # fmt: skip


def fields() -> Iterator[Any]:
    for struct, prefix in STRUCTS:
        for info in msgspec.structs.fields(struct):
            yield pytest.param(f"{prefix}{info.name}", info.default, id=f"{struct.__name__}.{info.name}")


@pytest.mark.parametrize(("name", "default"), list(fields()))
def test_field(name: str, default: object) -> None:
    if name in ("function", "upstream", "unit"):
        assert f"**`{name}`**" in DOCS
        return
    if name == "resource":
        assert "**`resource`**" in DOCS
        return
    row = re.search(rf"^\| [^|]*`{re.escape(name)}`[^|]* \| ([^|]*) \|", DOCS, re.MULTILINE)
    assert row is not None
    if isinstance(default, bool | int | str) and default != "":
        assert f"`{str(default).lower()}`" in row[1] or any(
            f"`{str(default).lower()}`" in found for found in re.findall(rf"`{re.escape(name)}` \| ([^|]*) \|", DOCS)
        )


def test_every_struct_is_covered() -> None:
    structs = {value for value in vars(model).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)}
    assert {struct for struct, _ in STRUCTS} == structs - {msgspec.Struct, model._Strict}


def test_algorithms_are_named() -> None:
    assert ", ".join(get_args(model.Algorithm)) in DOCS


def test_the_example_has_no_fault_but_its_missing_files(faults_of: Callable[[str], list[Any]]) -> None:
    text = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert text is not None
    assert parse(text[1]).faults == []
    faults = faults_of(text[1])
    assert {fault.reason.rpartition(" ")[2] for fault in faults} == {"exist", "set"}, faults
