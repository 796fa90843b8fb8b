"""What an audience is told that it may call, and controllers made of a unit's document."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from openapi_spec_validator import validate

from gateway.cli.main import main
from gateway.openapi.document import describe
from gateway.openapi.importing import Terms, import_controllers
from gateway.openapi.reading import Undescribed, read_description
from gateway.routing.model import FunctionAction, Limit, LimitKey, ResourceAction, Route, RouteKind, UnitAction

LAB = Path(__file__).parent / "lab.yaml"
ROLES = frozenset({"nurse"})
STAFF = frozenset({"staff"})


def unit_route(template: str, target: str | None, *methods: str, unit: str | None = None, **more) -> Route:
    action = UnitAction(unit, None if unit else "unit", target, cookies=False)
    return Route("r", template, methods or ("GET",), RouteKind.UNIT, action, STAFF, ROLES, None, **more)


@pytest.fixture(scope="module")
def lab():
    return read_description(LAB.read_bytes())


def made(routes, units=None, audience="staff"):
    document = describe(routes, units or {}, audience, issuer="https://id.test", version=7, url="https://gateway.test")
    validate(document)
    return document


def test_only_what_the_audience_may_call():
    action = FunctionAction("portal.f", (), 201)
    limits = (Limit("l", LimitKey.PRINCIPAL, 1, 1, 1),)
    routes = {
        "mine": Route("mine", "/a/{id}", ("GET", "POST"), RouteKind.FUNCTION, action, STAFF, ROLES, None, limits=limits,
                      query=frozenset({"q"})),
        "theirs": Route("theirs", "/b", ("GET",), RouteKind.RESOURCE, ResourceAction("ping"), frozenset({"app"}), ROLES,
                        None),
    }  # fmt: skip
    document = made(routes)
    assert set(document["paths"]) == {"/a/{id}"}
    get, post = document["paths"]["/a/{id}"]["get"], document["paths"]["/a/{id}"]["post"]
    assert [get["operationId"], post["operationId"]] == ["mine-get", "mine-post"]
    assert [(p["name"], p["in"]) for p in get["parameters"]] == [("id", "path"), ("q", "query")]
    assert "requestBody" in post
    assert "requestBody" not in get
    assert {"201", "401", "403", "429"} <= set(get["responses"])
    assert "theirs" not in str(document)
    assert document["info"]["version"] == "7"
    assert made({})["paths"] == {}


def test_any_query_and_no_limits():
    action = ResourceAction("ping")
    routes = {"any": Route("any", "/a", ("GET",), RouteKind.RESOURCE, action, STAFF, ROLES, None, query=None)}
    get = made(routes)["paths"]["/a"]["get"]
    assert get["parameters"][0]["style"] == "form"
    assert "429" not in get["responses"]


def test_a_route_is_described_by_the_unit_it_reaches(lab):
    route = unit_route("/units/v1/{unit}/orders/{order}", "/lab/orders/{order}", query=frozenset({"detail"}))
    document = made({"order": route}, {"north": lab})
    get = document["paths"]["/units/v1/{unit}/orders/{order}"]["get"]
    assert get["summary"] == "One order"
    assert get["x-caregate-unit"] == "north"
    assert "security" not in get
    names = [(p["name"], p["in"]) for p in get["parameters"]]
    assert names == [("unit", "path"), ("order", "path"), ("detail", "query")], "trace and X-Internal do not pass"
    schema = get["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/north.Order"}
    assert get["responses"]["404"] == {"description": "No such order."}
    assert get["responses"]["403"] == {"$ref": "#/components/responses/Problem403"}
    schemas = document["components"]["schemas"]
    assert set(schemas) == {"Problem", "north.Order", "north.Level"}
    assert schemas["north.Order"]["properties"]["parent"] == {"$ref": "#/components/schemas/north.Order"}


def test_the_rest_of_a_path_is_every_operation_below(lab):
    document = made({"lab": unit_route("/units/v1/{unit}/{path:path}", "/lab/{path}", "GET", "POST")}, {"north": lab})
    assert set(document["paths"]) == {
        "/units/v1/{unit}/orders/{order_id}", "/units/v1/{unit}/orders", "/units/v1/{unit}/reports/{name}.pdf",
        "/units/v1/{unit}/{path}",
    }  # fmt: skip
    assert document["paths"]["/units/v1/{unit}/{path}"]["get"]["parameters"][1]["x-caregate-rest-of-path"]
    assert "delete" not in document["paths"]["/units/v1/{unit}/orders/{order_id}"], "the controller has no DELETE"


@pytest.mark.parametrize(
    ("route", "units"),
    [
        pytest.param(unit_route("/o/{order}", "/elsewhere/{order}", unit="north"), ("north",), id="another path"),
        pytest.param(unit_route("/o/{order}", "/lab/orders/{order}", unit="south"), ("north",), id="another unit"),
        pytest.param(unit_route("/o/{order}", "/lab/orders/{order}", "PATCH", unit="north"), ("north",), id="method"),
    ],
)
def test_what_no_unit_describes_is_described_by_the_configuration(lab, route, units):
    document = made({"o": route}, dict.fromkeys(units, lab))
    (operation,) = document["paths"]["/o/{order}"].values()
    assert "x-caregate-unit" not in operation


def test_the_first_unit_speaks_for_all(lab):
    document = made({"o": unit_route("/u/{unit}/o/{order}", "/lab/orders/{order}")}, {"a": lab, "b": lab})
    assert document["paths"]["/u/{unit}/o/{order}"]["get"]["x-caregate-unit"] == "a"


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        pytest.param("[]", "document", "must be a mapping", id="a list"),
        pytest.param("openapi: 2.0.0\npaths: {}", "openapi", "must be 3.0.x", id="version"),
        pytest.param("openapi: 3.1.0", "paths", "must be a mapping", id="no paths"),
        pytest.param("openapi: 3.1.0\npaths: {a: {}}", "paths.a", "must begin with /", id="path"),
        pytest.param("openapi: 3.1.0\npaths: {/a: {get: 1}}", 'paths["/a"].get', "must be a mapping", id="operation"),
        pytest.param("openapi: 3.1.0\npaths: {/a: {parameters: {}, get: {}}}", 'paths["/a"].parameters',
                     "must be a list", id="parameters"),
        pytest.param("openapi: 3.1.0\npaths: {/a: {get: {x: {$ref: '#/components/schemas/A'}}}}", "paths",
                     "refers to #/components/schemas/A", id="a reference to nothing"),
        pytest.param("openapi: 3.1.0\npaths: {/a: {get: {x: {$ref: 'http://evil.test/a.yaml#/A'}}}}", "paths",
                     "refers to http://evil.test", id="a reference to elsewhere"),
        pytest.param("openapi: 3.1.0\npaths: {}\ncomponents: {schemas: []}", "components", "sections", id="components"),
        pytest.param("openapi: 3.1.0\npaths: {}\nservers: [x]", "servers[0]", "has no url", id="server"),
        pytest.param("openapi: 3.1.0\npaths: {}\nservers: [{url: '/{v}'}]", "servers[0].url", "variable",
                     id="variable"),
        pytest.param("openapi: 3.1.0\npaths: {}\npaths: {}", "paths", "is a duplicate", id="a key twice"),
        pytest.param("openapi: 3.1.0\npaths: &a {}\nx: *a", "document", "", id="an alias"),
        pytest.param("openapi: {", "document", "is not YAML", id="no YAML"),
        pytest.param(b"\xff", "document", "is not UTF-8", id="no text"),
    ],
)  # fmt: skip
def test_refused(text, path, reason):
    with pytest.raises(Undescribed) as refused:
        read_description(text.encode() if isinstance(text, str) else text)
    assert any(reason in fault.reason for fault in refused.value.faults), refused.value.faults
    assert path == "document" or any(fault.path == path for fault in refused.value.faults), refused.value.faults


def test_controllers_of_a_document(lab):
    terms = Terms("north", "/units/v1/north", ["staff"], ["nurse"], "orders.read", {"order_id": "order"})
    found = import_controllers(lab, terms)
    assert found.controllers == {
        "north-lab-orders-order-id": {
            "path": "/units/v1/north/lab/orders/{order_id}", "methods": ["GET", "DELETE"], "audiences": ["staff"],
            "roles": ["nurse"], "permission": "orders.read", "bind": [{"param": "order_id", "claim": "order"}],
            "query": ["detail", "trace"], "phi": True,
            "unit": {"unit": "north", "target": "/lab/orders/{order_id}"},
        },
        "north-placeorder": {
            "path": "/units/v1/north/lab/orders", "methods": ["POST"], "audiences": ["staff"], "roles": ["nurse"],
            "permission": "orders.read", "phi": True, "unit": {"unit": "north", "target": "/lab/orders"},
        },
    }  # fmt: skip
    assert found.left_out == {
        "/lab/reports/{name}.pdf": "{name}.pdf is neither a literal nor one whole parameter",
        "/lab/orders/{other}": "matches the same paths as /lab/orders/{order-id}",
    }


def test_what_the_command_prints_can_be_loaded(tmp_path, capsys, monkeypatch):
    """It goes into a document as it is, and the document is good."""
    argv = ["config", "import", str(LAB), "--unit", "north", "--audience", "staff", "--role", "nurse"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "left out: /lab/reports/{name}.pdf" in printed.err
    document = {
        "version": 1,
        "audiences": {"staff": {"issuer": "https://id.test"}},
        "roles": {
            "nurse": {"audience": "staff", "keys": [{"kid": "n", "alg": "HS256", "secret": "file:nurse.secret"}]}
        },
        "units": {"north": {"name": "North", "openapi": "file:lab.yaml"}},
        **yaml.safe_load(printed.out),
    }
    (tmp_path / "nurse.secret").write_text("b8Yx3hT9qLw2vRz7mKc5pNd1sFg6jXe4")
    (tmp_path / "nurse.secret").chmod(0o600)
    (tmp_path / "lab.yaml").write_bytes(LAB.read_bytes())
    (tmp_path / "lab.yaml").chmod(0o644)
    (tmp_path / "caregate.yaml").write_text(yaml.safe_dump(document))
    assert main(["config", "check", str(tmp_path / "caregate.yaml")]) == 0, capsys.readouterr().out
    (tmp_path / "lab.yaml").write_text("openapi: 3.1.0\npaths: {/a: {get: 1}}")
    assert main(["config", "check", str(tmp_path / "caregate.yaml")]) == 1
    assert 'units.north.openapi: file:lab.yaml, line 2: paths["/a"].get: must be a mapping' in capsys.readouterr().out
    (tmp_path / "lab.yaml").unlink()
    assert main(["config", "check", str(tmp_path / "caregate.yaml")]) == 1
    assert "lab.yaml does not exist" in capsys.readouterr().out.replace(":", "")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param("openapi: 3.1.0\npaths: {}", 1, id="nothing in it"),
        pytest.param("openapi: 1", 1, id="refused"),
        pytest.param(None, 2, id="no file"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, content, code):
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["config", "import", str(path), "--unit", "n", "--audience", "a", "--role", "r"]) == code
    assert str(path) in capsys.readouterr().err
