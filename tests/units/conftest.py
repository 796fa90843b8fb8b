"""Keys, and a configuration holder with two units."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fastpath.token import Key, Verifier
from gateway.agent.identity import UnitIdentity, thumbprint
from gateway.config.snapshot import CompiledUnit, SnapshotHolder
from gateway.units.model import KeyRow

NOW_S = 1_800_000_000.0


def pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: ed25519.Ed25519PrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


class SiteKey:
    """A key pair as a site has it."""

    def __init__(self, unit: str = "north") -> None:
        self.private = ed25519.Ed25519PrivateKey.generate()
        self.unit = unit
        self.kid = thumbprint(self.private)
        self.identity = UnitIdentity(unit, self.kid, pem(self.private))

    def row(self, **changes: Any) -> KeyRow:
        values = {"created_s": NOW_S - 100, **changes}
        return KeyRow(self.kid, self.unit, "EdDSA", public_pem(self.private), **values)


def make_snapshot(*document_keys: Key) -> Any:
    return SimpleNamespace(
        version=1,
        units={
            "north": CompiledUnit("north", "North", True, 2, None),
            "south": CompiledUnit("south", "South", True, 2, b"context-key-of-the-document-32-bytes"),
            "closed": CompiledUnit("closed", "Closed", False, 2, None),
        },
        verifier=Verifier([]),
        unit_verifier=Verifier(document_keys, known_audiences=["unit-link"]),
    )


@pytest.fixture
def holder() -> SnapshotHolder:
    return SnapshotHolder(make_snapshot())


@pytest.fixture
def site_key() -> type[SiteKey]:
    return SiteKey


@pytest.fixture
def snapshot_of() -> Any:
    return make_snapshot
