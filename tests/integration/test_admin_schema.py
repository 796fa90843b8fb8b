"""The Admin API keeps what its OpenAPI document says, whatever it is sent: generated requests, good and bad, against a
real gateway.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode, checks

from gateway.admin.operations import OPERATIONS
from gateway.demo import story
from gateway.demo.platform import ROOT, Platform
from loadtests.demo import free_base_port

pytestmark = pytest.mark.integration

GOOD, BAD = 6, 6
"""Generated requests for each operation."""
CHECKS = [
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.response_headers_conformance, checks.unsupported_method,
    checks.allow_header_conformance,
]  # fmt: skip
THERE = {
    "unit": story.CLINIC, "number": 1, "limit": "per-caller", "kid": "k", "role": "partner", "session": "s" * 22,
    "request_id": "00000000-0000-4000-8000-000000000000",
}  # fmt: skip
"""What good requests name."""


class Site(Platform):
    """The demo without its units, and the database's connections of an operator."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, free_base_port(), 2, tell=lambda text: None)
        self._env.update(CAREGATE_CONFIG_SOURCE="database", CAREGATE_DRAIN_GRACE_S="3")

    def token(self) -> str:
        argv = ["token", "issue", "--config", str(self._config), "--role", "platform_admin", "--claim=sub=operator-8"]
        run = subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", *argv], capture_output=True, text=True, check=True,
            env=self._env, cwd=ROOT,
        )  # fmt: skip
        return run.stdout.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    started = Site(tmp_path_factory.mktemp("schema"))
    try:
        started.start_gateway()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def headers(site: Site) -> dict[str, str]:
    return {"Authorization": f"Bearer {site.token()}"}


@pytest.fixture(scope="module")
def schema(site: Site, headers: dict[str, str]) -> schemathesis.schemas.BaseSchema:
    url = f"http://127.0.0.1:{site.ports.ops}/admin/v1/openapi.json"
    return schemathesis.openapi.from_url(url, headers=headers)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("name", [operation.name for operation in OPERATIONS])
def test_every_answer_is_as_declared(schema, headers, name, mode) -> None:
    operation = schema.find_operation_by_id(name)
    bad = mode is GenerationMode.NEGATIVE
    named = {one for one in THERE if f"{{{one}}}" in operation.path}
    there = {} if bad or not named else {"path_parameters": {one: THERE[one] for one in named}}
    strategy = operation.as_strategy(mode, **there)
    statuses: list[int] = []

    @seed(8)
    @settings(
        max_examples=BAD if bad else GOOD, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=strategy)
    def ask(case) -> None:
        if would_lock_everybody_out(case.body):
            return
        response = case.call(headers=headers)
        case.validate_response(response, checks=[*CHECKS, checks.negative_data_rejection] if bad else CHECKS)
        statuses.append(response.status_code)

    ask()
    # Bad requests may also come without the token, or with another one.
    assert bad or not {401, 403} & set(statuses)


def would_lock_everybody_out(body: object) -> bool:
    """It revokes this test's own token with all others."""
    return isinstance(body, dict) and body.get("kind") == "before"


def test_without_a_token_every_operation_is_refused_as_declared(schema) -> None:
    for operation in OPERATIONS:
        case = schema.find_operation_by_id(operation.name).Case(path_parameters=THERE)
        response = case.call()
        assert response.status_code == 401, operation.name
        assert json.loads(response.content)["type"] == "urn:caregate:problem:token-missing"
        case.validate_response(response, checks=[checks.response_schema_conformance, checks.content_type_conformance])
