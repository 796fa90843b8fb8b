"""Role x audience x route x own or other patient x own or other unit x state of the token, on a real platform.

Each cell's answer is what a plain model in tests/ says that reads the document's text, and knows nothing of the
gateway's policy nor of the model that `caregate selftest` goes by.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest

from gateway.cli.selftest import read
from gateway.demo import story
from gateway.selftest.model import STATES, World, cells
from gateway.selftest.run import Gateway, run
from tests.http.policy_model import standing

pytestmark = pytest.mark.integration

WORLD = World((story.OWN, story.OTHER), (story.HOSPITAL, story.CLINIC))


def plain(document, cell):
    return standing(document, cell.route, cell.method, cell.role, cell.own_patient, cell.own_unit, cell.state)


@pytest.fixture(scope="module")
def asked(platform):
    """The document, what signs, and the way to the gateway."""
    document, tokens = read(platform.directory / "caregate.yaml")
    gateway = Gateway(f"http://127.0.0.1:{platform.ports.gateway}")
    yield document, tokens, gateway
    gateway.close()


def test_every_cell_is_answered_as_the_document_says(asked):
    document, tokens, gateway = asked
    matrix = list(cells(document))
    assert {cell.state for cell in matrix} == set(STATES)
    assert {cell.role for cell in matrix} == set(document["roles"])
    wanted = [plain(document, cell) for cell in matrix]
    assert {"passes", "401", "403", "404"} <= set(wanted)
    found = run(document, matrix, WORLD, tokens, gateway, with_records=True, judge=plain)
    assert not found.wrong, "\n".join(f"{cell}: {status}, not {wanted}" for cell, wanted, status in found.wrong[:20])
    print(f"a limit held back {gateway.held_back} times")
    sent = sum(found.right.values())
    print(f"{sent} of {len(matrix)} cells sent; left out: {dict(found.left)}")
    assert sent + sum(found.left.values()) == len(matrix)
    assert sent > 0.9 * len(matrix)


def broken(document, change):
    other = copy.deepcopy(document)
    change(other["controllers"])
    return other


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda c: c["lab-results"].pop("bind"), id="a binding"),
        pytest.param(lambda c: c["lab-results"].update(roles=["practitioner"]), id="a role"),
        pytest.param(lambda c: c["lab-results"]["audiences"].append("staff-portal"), id="an audience"),
        pytest.param(lambda c: c["unit-lab-results"].update(permission="results.read"), id="a permission"),
        pytest.param(lambda c: c["lab-results"]["bind"][0].pop("refuse"), id="how it is refused"),
    ],
)
def test_a_gateway_that_decides_otherwise_is_found_out(asked, change):
    """The same gateway under a document that says something else."""
    document, tokens, gateway = asked
    other = broken(document, change)
    matrix = [cell for cell in cells(other) if "lab-results" in cell.route and cell.state == "fresh"]
    assert run(other, matrix, WORLD, tokens, gateway, with_records=True, judge=plain).wrong


def test_the_command(platform):
    argv = [
        sys.executable, "-m", "gateway.cli.main", "selftest", "--config", str(platform.directory / "caregate.yaml"),
        "--gateway", f"http://127.0.0.1:{platform.ports.gateway}", "--role", "patient", "--role", "auditor",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=platform._env)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["wrong"] == 0
    assert 0.8 < result["coverage"] <= 1
    assert "it would touch records" in done.stdout
    nobody = subprocess.run([*argv, "--role", "nobody"], capture_output=True, text=True, check=False, env=platform._env)
    assert nobody.returncode == 2
    gone = subprocess.run(
        [*argv[:-5], "http://127.0.0.1:1"], capture_output=True, text=True, check=False, env=platform._env
    )
    assert gone.returncode == 2, gone.stdout
