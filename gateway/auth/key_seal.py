"""The key-encryption keys of this gateway, by reference; for workers and for the operator's commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from gateway.auth.sealed import KeyEncryptionKey, KeySeal
from gateway.auth.vault import load_or_make_key
from gateway.config.secret import Secrets
from gateway.settings import Settings, SettingsError

KEY_FILE: Final = "key-encryption.key"


def key_seal(settings: Settings, data_dir: Path, *, make: bool) -> KeySeal | None:
    """What seals and opens keys; None if no key-encryption key is named, and none lies in `data_dir`.

    Shapes: `make` makes one there then. Raises: SettingsError.
    """
    secrets = Secrets(settings.config_path.parent, os.environ)
    keys: list[KeyEncryptionKey] = []
    path = data_dir / KEY_FILE
    if settings.key_encryption_key:
        keys.append(_named("CAREGATE_KEY_ENCRYPTION_KEY", settings.key_encryption_key, secrets))
    elif make or path.exists():
        keys.append(_of_file(path))
    if settings.key_encryption_key_before:
        keys.append(_named("CAREGATE_KEY_ENCRYPTION_KEY_BEFORE", settings.key_encryption_key_before, secrets))
    return KeySeal(*keys) if keys else None


def _named(variable: str, reference: str, secrets: Secrets) -> KeyEncryptionKey:
    try:
        return KeyEncryptionKey(secrets.resolve(reference, private=True).strip())
    except ValueError as error:
        raise SettingsError(f"{variable}: {error}") from None


def _of_file(path: Path) -> KeyEncryptionKey:
    made = not path.exists()
    try:
        secret = load_or_make_key(path)
        if made and os.geteuid() == 0:
            # NOTE: made by root's command, it is for the gateway, whose directory it lies in.
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid)
        return KeyEncryptionKey(secret)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from None
