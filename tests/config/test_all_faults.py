"""Every fault of a document in one run, and nothing secret in any of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import yaml

from gateway.config.fault import Fault, line_of, step

Faults = Callable[[str | bytes], list[Fault]]


def test_faults_of_every_kind_come_together(changed: Callable[..., str], faults_of: Faults) -> None:
    text = changed(
        ("realm: test", "realm: test\n  colour: red"),
        ("file:patient.secret", "env:WORDS"),
        ("kid: clerk-1", "kid: nurse-1"),
        ("roles: [patient, nurse]", "roles: [patient, nurse, ghost]"),
        ("phi: true", "phi: maybe\n    color: blue"),
        ('"path:note"', '"path:nothing"'),
        ("methods: [PUT]", "methods: [PUT, FETCH]"),
        ("{unit: north,", "{unit: south,"),
        ("resource: ping", "resource: pong"),
        ("path: /v1/ping", "path: /v1/north/status"),
        ("http://127.0.0.1:9001", "localhost"),
    )
    assert [fault.path for fault in faults_of(text)] == [
        "gateway.colour",
        "roles.patient.keys[0].secret",
        "roles.clerk.keys[0].kid",
        "upstreams.terms.endpoints[0]",
        "controllers.results.roles[2]",
        "controllers.results.phi",
        "controllers.results.color",
        "controllers.notes.methods[1]",
        "controllers.fixed.unit.unit",
        "controllers.ping.path",
        "controllers.ping.resource",
    ]


def test_an_entry_too_faulty_to_decode_is_not_reported_as_missing(
    changed: Callable[..., str], faults_of: Faults
) -> None:
    text = changed(("audience: app", "audience: [app]"), ("endpoints:", "endpints:"), ("name: North", "nom: North"))
    assert {fault.path for fault in faults_of(text)} == {
        "roles.patient.audience",
        "upstreams.terms.endpints",
        "upstreams.terms.endpoints",
        "units.north.name",
        "units.north.nom",
    }


def test_pairs_of_broken_pieces_are_both_named(valid: str, faults_of: Faults) -> None:
    """Two cases of the table at once: each keeps its path, unless one takes the place of the other away."""
    table = yaml.safe_load((Path(__file__).parent / "refused.yaml").read_text())
    # Where an entry gets another name, the faults in it get another path.
    table = [row for row in table if not row["old"].rstrip().endswith(":")]
    chosen = random.Random(7)
    tried = 0
    while tried < 60:
        first, second = chosen.sample(table, 2)
        if valid.count(first["old"]) != 1 or first["path"].split(".")[:2] == second["path"].split(".")[:2]:
            continue
        text = valid.replace(first["old"], first["new"])
        if text.count(second["old"]) != 1:
            continue
        paths = {fault.path for fault in faults_of(text.replace(second["old"], second["new"]))}
        assert {first["path"], second["path"]} <= paths, (first["id"], second["id"])
        tried += 1


def test_no_fault_shows_a_secret(key_directory: Path, changed: Callable[..., str], faults_of: Faults) -> None:
    secret = (key_directory / "patient.secret").read_text().strip()
    broken = [
        changed(("file:patient.secret", secret)),
        changed(("alg: HS256", "alg: ES256")),
        changed(("env:NORTH_CONTEXT", "file:patient.secret")),
        changed(('"file:clerk.pub"', '"file:patient.secret"')),
        changed(("file:nurse.key", "file:patient.secret")),
    ]
    for text in broken:
        faults = faults_of(text)
        assert faults
        assert all(secret not in str(fault) and secret[:12] not in str(fault) for fault in faults)


def test_paths() -> None:
    path = step(step(step("document", "controllers"), "lab.v1"), "roles")
    assert step(path, 1) == 'controllers["lab.v1"].roles[1]'
    lines = {"document": 1, "controllers": 5, 'controllers["lab.v1"]': 6}
    assert line_of(step(path, 1), lines) == 6
    assert line_of("controllers.other.path", lines) == 5
    assert line_of("elsewhere", lines) == 1
