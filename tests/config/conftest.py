"""A small valid document with its key files, and ways to break it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from gateway.config.fault import Fault
from gateway.config.load import Refused, load_text
from gateway.config.snapshot import Snapshot

ENVIRON = {
    "NORTH_CONTEXT": secrets.token_urlsafe(48),
    "OTHER": secrets.token_urlsafe(48),
    "FORTY": secrets.token_urlsafe(30),
    "SHORT": "Ab3-x9",
    "WORDS": "changeme-please-this-is-the-default-secret",
    "REPEATS": "secret" * 12,
    "ONE_CHARACTER": "x" * 64,
    "SEQUENCE": "abcdefghijklmnopqrstuvwxyz0123456789",
    "EMPTY": "",
    "RFC7515": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
    "PEM": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA0\n-----END PUBLIC KEY-----",
}
RESOURCES = frozenset({"ping"})


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def write_pair(directory: Path, name: str, key: PrivateKeyTypes) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write(directory / f"{name}.key", private)
    write(directory / f"{name}.pub", public)


@pytest.fixture(scope="session")
def key_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every key file that the tables of documents name."""
    directory = tmp_path_factory.mktemp("keys")
    write(directory / "patient.secret", secrets.token_urlsafe(48).encode() + b"\n")
    shutil.copy2(directory / "patient.secret", directory / "copy.secret")
    write(directory / "open.secret", secrets.token_urlsafe(48).encode(), 0o644)
    write(directory / "writable.pub", b"", 0o666)
    write(directory / "empty.secret", b"\n")
    write(directory / "huge.secret", b"x" * 70_000)
    write(directory / "garbage.pub", b"not a key at all")
    write_pair(directory, "nurse", ec.generate_private_key(ec.SECP256R1()))
    write_pair(directory, "stranger", ec.generate_private_key(ec.SECP256R1()))
    write_pair(directory, "p384", ec.generate_private_key(ec.SECP384R1()))
    write_pair(directory, "clerk", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    write_pair(directory, "weak", rsa.generate_private_key(public_exponent=65537, key_size=1024))
    write_pair(directory, "north", ed25519.Ed25519PrivateKey.generate())
    write_pair(directory, "doctor", ed25519.Ed25519PrivateKey.generate())
    write_pair(directory, "terminal", ec.generate_private_key(ec.SECP256R1()))
    write_pair(directory, "lab", ed25519.Ed25519PrivateKey.generate())
    (directory / "nurse.key").chmod(0o600)
    shutil.copy2(directory / "nurse.key", directory / "open.key")
    (directory / "open.key").chmod(0o640)
    return directory


@pytest.fixture(scope="session")
def valid() -> str:
    return (Path(__file__).parent / "valid.yaml").read_text()


@pytest.fixture(scope="session")
def load(key_directory: Path) -> Callable[[str | bytes], Snapshot]:
    def load(text: str | bytes) -> Snapshot:
        raw = text.encode() if isinstance(text, str) else text
        return load_text(raw, key_directory, ENVIRON, resources=RESOURCES).snapshot

    return load


@pytest.fixture(scope="session")
def faults_of(load: Callable[[str | bytes], Snapshot]) -> Callable[[str | bytes], list[Fault]]:
    """Every fault of a text; none if it loads."""

    def faults_of(text: str | bytes) -> list[Fault]:
        try:
            load(text)
        except Refused as refused:
            return refused.places
        return []

    return faults_of


@pytest.fixture(scope="session")
def changed(valid: str) -> Callable[..., str]:
    """The valid document with pieces replaced; each piece must be there exactly once."""

    def changed(*pairs: tuple[str, str]) -> str:
        text = valid
        for old, new in pairs:
            assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
            text = text.replace(old, new)
        return text

    return changed
