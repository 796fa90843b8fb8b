"""The demo's keys and its configuration, written into a directory; what is there already is kept."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from gateway.files import replace_file

TEMPLATE = Path(__file__).with_name("caregate.yaml")
UPSTREAM_PORT = 8091
_ENDPOINT = re.compile(r"http://127\.0\.0\.1:\d+")
_AS_WRITTEN = ".caregate.yaml.as-written"

UNITS = ("st-marien-hospital", "linden-clinic", "hollow-creek-post")
SECRET_BYTES = 64

SECRETS = ("patient.secret", "hcu_clerk.secret", *(f"{unit}.context" for unit in UNITS))
"""Shared secrets: text of the base64url alphabet, without a line break."""

PAIRS: dict[str, Callable[[], PrivateKeyTypes]] = {
    "practitioner": lambda: ec.generate_private_key(ec.SECP256R1()),
    "hcu_admin": lambda: ec.generate_private_key(ec.SECP384R1()),
    "partner": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "auditor": ed25519.Ed25519PrivateKey.generate,
    "platform_admin": ed25519.Ed25519PrivateKey.generate,
    "client-insurer": ed25519.Ed25519PrivateKey.generate,
    **dict.fromkeys(UNITS, ed25519.Ed25519PrivateKey.generate),
}
"""Key pairs: NAME.key (PKCS #8) and NAME.pub (SubjectPublicKeyInfo), both PEM."""


def write_keys(directory: Path) -> Path:
    """Make the keys that are missing under `directory`/keys, each readable by the owner alone; returns that folder."""
    keys = directory / "keys"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in SECRETS:
        if not (keys / name).exists():
            replace_file(keys / name, secrets.token_urlsafe(SECRET_BYTES).encode(), durable=False)
    for name, generate in PAIRS.items():
        if not ((keys / f"{name}.key").exists() and (keys / f"{name}.pub").exists()):
            _write_pair(keys, name, generate())
    return keys


def write_config(directory: Path, *, upstream_port: int = UPSTREAM_PORT) -> Path:
    """Write caregate.yaml into `directory`, anew each time; returns its path."""
    path = directory / "caregate.yaml"
    replace_file(path, _shipped(upstream_port).encode(), durable=False)
    return path


def prepare_config(directory: Path, *, upstream_port: int = UPSTREAM_PORT) -> bool:
    """Write caregate.yaml, but keep one that was edited, with the port of now; was it kept?"""
    path, note = directory / "caregate.yaml", directory / _AS_WRITTEN
    shipped = _shipped(upstream_port)
    try:
        found, written = path.read_bytes(), note.read_bytes()
    except FileNotFoundError:
        found = written = b""
    if found == written:
        replace_file(path, shipped.encode(), durable=False)
    else:
        replace_file(path, found.replace(_endpoint(written.decode()), _endpoint(shipped)), durable=False)
    replace_file(note, shipped.encode(), durable=False)
    return found != written


def _shipped(upstream_port: int) -> str:
    return TEMPLATE.read_text().replace(f"http://127.0.0.1:{UPSTREAM_PORT}", f"http://127.0.0.1:{upstream_port}")


def _endpoint(document: str) -> bytes:
    """The only endpoint of the shipped document."""
    match = _ENDPOINT.search(document)
    assert match is not None  # noqa: S101 - of a file that ships with the code
    return match[0].encode()


def _write_pair(keys: Path, name: str, private: PrivateKeyTypes) -> None:
    # NOTE: the private half last: a pair cut short by a crash is made anew as a whole.
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    replace_file(keys / f"{name}.pub", public, durable=False)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace_file(keys / f"{name}.key", pem, durable=False)
