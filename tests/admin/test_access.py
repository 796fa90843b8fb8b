"""Who may do what at the Admin API: every operation with every permission, and everybody else."""

from __future__ import annotations

import pytest

from gateway.admin import permissions
from gateway.admin.operations import OPERATIONS

ONE_EACH = {f"only-{permission}": permission for permission in sorted(permissions.ALL)}
FILL = {"{unit}": "north", "{number}": "1", "{kid}": "k1", "{limit}": "few", "{session}": "s" * 22, "{role}": "nothing"}


def path_of(operation):
    path = operation.template
    for name, value in FILL.items():
        path = path.replace(name, value)
    return path.replace("{request_id}", "0" * 8 + "-0000-4000-8000-" + "0" * 12)


IDS = [operation.name for operation in OPERATIONS]


def code_of(answer):
    return answer.json.get("type", "").rpartition(":")[2] if answer.status_code >= 400 else ""


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_an_operation_is_for_its_permission_alone(ask, operation) -> None:
    for role, permission in {**ONE_EACH, "nothing": None}.items():
        answer = ask(operation.method, path_of(operation), role)
        refused = operation.permission not in (None, permission)
        assert (code_of(answer) == "permission-refused") == refused, (role, answer.text)
        assert (answer.status_code == 403) == refused
        assert answer.status_code != 401
    assert code_of(ask(operation.method, path_of(operation), "everything")) != "permission-refused"


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
@pytest.mark.parametrize(
    ("role", "status", "code"),
    [
        pytest.param(None, 401, "token-missing", id="no token"),
        pytest.param("outsider", 401, "token-invalid", id="another audience"),
        pytest.param("clerk", 403, "role-refused", id="a role that admin does not name"),
    ],
)
def test_others_are_refused(ask, operation, role, status, code) -> None:
    answer = ask(operation.method, path_of(operation), role)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == answer.json["request_id"]


@pytest.mark.parametrize("role", [None, "outsider", "everything"])
def test_without_admin_in_the_configuration_nothing_is_there(tmp_path, make, ask_of, configuration, role) -> None:
    del configuration["admin"]
    for one in configuration["roles"].values():
        one["permissions"] = ["own.read"]
    del configuration["controllers"]["granted"]
    gateway = make(tmp_path, configuration)
    ask = ask_of(gateway.admin)
    for operation in OPERATIONS:
        assert code_of(ask(operation.method, path_of(operation), role)) == "not-found"
    gateway.database.close()


def test_the_public_listener_has_none_of_it(gateway, ask_of) -> None:
    ask = ask_of(gateway.public)
    for operation in OPERATIONS:
        assert code_of(ask(operation.method, path_of(operation))) == "not-found"


def test_every_permission_is_for_something() -> None:
    assert {operation.permission for operation in OPERATIONS} - {None} == permissions.ALL


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_another_method_is_405_and_says_which(ask, operation) -> None:
    answer = ask("PATCH", path_of(operation))
    assert answer.status_code == 405
    assert operation.method in answer.headers["allow"].split(", ")


def test_a_change_without_an_audit_trail_is_refused_before_it_is_made(ask) -> None:
    """The trail of this gateway was never started."""
    answer = ask("POST", "/admin/v1/units/north/disable", json={"reason": "test"})
    assert (answer.status_code, code_of(answer)) == (503, "audit-unavailable")


def test_without_a_login_of_an_operator_nothing_is_shown(ask) -> None:
    answer = ask("GET", "/admin/v1/units/north/keys")
    assert (answer.status_code, code_of(answer)) == (503, "operator-unavailable")
