from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.config.load import load
from gateway.config.parse import parse
from gateway.demo.keys import write_config, write_keys
from loadtests.credentials import Issuer, write_unit_key
from loadtests.document import UNREACHED, for_load, token_lifetime_s, unit_ids

SECONDS = 7200
UNITS = unit_ids(3)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("config")
    keys = write_keys(directory)
    path = write_config(directory)
    for unit in UNITS:
        write_unit_key(unit, keys)
    path.write_text(yaml.safe_dump(for_load(yaml.safe_load(path.read_text()), UNITS, SECONDS)))
    return path


def test_the_gateway_accepts_it(config: Path) -> None:
    snapshot = load(config)
    assert set(UNITS) < set(snapshot.units)
    limits = [*snapshot.address_limits, *(limit for role in snapshot.roles.values() for limit in role.limits)]
    assert limits
    assert {limit.burst for limit in limits} == {UNREACHED}


@pytest.mark.parametrize(
    ("role", "claims"),
    [
        pytest.param("patient", {"patient": "pat-0001"}, id="patient"),
        pytest.param("practitioner", {"units": [UNITS[0]]}, id="practitioner"),
    ],
)
def test_callers_tokens_outlive_the_load(config: Path, role: str, claims: dict[str, object]) -> None:
    document = parse(config.read_bytes()).document
    assert document is not None
    token = Issuer(document, config.parent, token_lifetime_s(SECONDS)).token(role, "someone", claims)
    verified = load(config).verifier.verify(token, _issued_s(token) + SECONDS)
    assert verified.key.role == role
    assert claims.items() <= verified.claims.items()


def _issued_s(token: str) -> int:
    import jwt

    issued: int = jwt.decode(token, options={"verify_signature": False})["iat"]
    return issued


def test_the_demo_document_is_left_as_it_was() -> None:
    demo = {"roles": {"a": {"max_lifetime_s": 10}}, "limits": {"l": {"rate": 1, "burst": 1}}}
    changed = for_load(demo, UNITS, 60)
    assert demo == {"roles": {"a": {"max_lifetime_s": 10}}, "limits": {"l": {"rate": 1, "burst": 1}}}
    assert changed["roles"]["a"]["max_lifetime_s"] == token_lifetime_s(60)


def test_private_keys_are_the_owners_alone(config: Path) -> None:
    assert (config.parent / "keys" / f"{UNITS[0]}.key").stat().st_mode & 0o077 == 0
