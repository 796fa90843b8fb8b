"""The OpenAPI document says what is routed, decoded and answered, because it is made of the same declarations."""

from __future__ import annotations

import json
import re

import pytest

from gateway.admin.operations import OPERATIONS, describe


def test_every_operation_is_in_it_and_nothing_else() -> None:
    described = {
        (method.upper(), path): one for path, methods in describe()["paths"].items() for method, one in methods.items()
    }
    assert described.keys() == {(one.method, one.template) for one in OPERATIONS}
    for one in OPERATIONS:
        found = described[one.method, one.template]
        assert found["operationId"] == one.name
        assert found.get("x-permission") == one.permission
        assert ("requestBody" in found) == (one.body is not None)
        in_path = {parameter["name"] for parameter in found["parameters"] if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"\{([a-z_]+)\}", one.template))


def test_names_are_unique() -> None:
    assert len({one.name for one in OPERATIONS}) == len(OPERATIONS)


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(describe())
    schemas = describe()["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= schemas.keys()


@pytest.mark.parametrize("one", [one for one in OPERATIONS if one.body is not None], ids=lambda one: one.name)
def test_bodies_take_nothing_that_is_not_declared(one) -> None:
    assert describe()["components"]["schemas"][one.body.__name__]["additionalProperties"] is False


def test_it_is_served(ask) -> None:
    answer = ask("GET", "/admin/v1/openapi.json", "nothing")
    assert answer.json == json.loads(json.dumps(describe()))
    again = ask("GET", "/admin/v1/openapi.json", "nothing", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
