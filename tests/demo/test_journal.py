"""What callers wrote at a demo unit is there after a restart."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import falcon.testing
import pytest

from gateway.demo.fhir_data import Records
from gateway.demo.journal import Journal
from gateway.demo.unit_service import create_app


def clinic() -> Records:
    records = Records("linden-clinic")
    records.add({"resourceType": "Patient", "id": "pat-0001"})
    return records


def observation(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": str(number),
        "status": "final",
        "code": {"text": "Glucose"},
        "subject": {"reference": "Patient/pat-0001"},
    }


@pytest.mark.parametrize(("written", "most", "kept"), [(0, 5, []), (3, 5, [0, 1, 2]), (7, 5, [2, 3, 4, 5, 6])])
def test_the_last_ones_are_kept(tmp_path: Path, written: int, most: int, kept: list[int]) -> None:
    path = tmp_path / "unit.ndjson"
    for number in range(written):
        Journal(path).append(observation(number))
    for _ in range(2):
        assert Journal(path).read(most) == [observation(number) for number in kept]
    assert not path.exists() or stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("torn", [b'{"id": "1', b"[]\n", b"\xff\xfe\n", b"{}\n"])
def test_a_torn_line_costs_itself_alone(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "unit.ndjson"
    Journal(path).append(observation(0))
    with path.open("ab") as file:
        file.write(torn)
    assert Journal(path).read(9) == [observation(0)]
    Journal(path).append(observation(2))
    assert Journal(path).read(9) == [observation(0), observation(2)]


def test_a_unit_knows_what_was_posted_before_it_was_restarted(tmp_path: Path) -> None:
    path = tmp_path / "unit.ndjson"
    first = falcon.testing.TestClient(create_app(clinic(), None, path))
    created = first.simulate_post("/fhir/Observation", json=observation(0)).json
    again = falcon.testing.TestClient(create_app(clinic(), None, path))
    assert again.simulate_get("/fhir/Observation?patient=pat-0001").json["entry"][0]["resource"] == created
    forgetful = falcon.testing.TestClient(create_app(clinic()))
    assert forgetful.simulate_get("/fhir/Observation?patient=pat-0001").json["total"] == 0
