"""The token service in one worker: its parts joined, started after the fork and stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import gevent
import structlog
from gevent.event import Event

from fastpath.bucket import BucketTable
from gateway.auth.accounts import Logins, Note
from gateway.auth.attempts import HOUR_S, Attempts
from gateway.auth.authorize import AuthorizeResource
from gateway.auth.clients import Clients
from gateway.auth.endpoints import (
    AUTHORIZE_PATH,
    INTROSPECT_PATH,
    JWKS_PATH,
    METADATA_PATH,
    IntrospectResource,
    JwksResource,
    MetadataResource,
    RevokeResource,
    TokenResource,
)
from gateway.auth.grants import Grants
from gateway.auth.key_seal import key_seal
from gateway.auth.model import Revocations
from gateway.auth.passwords import Passwords
from gateway.auth.revocations import RevokedTokens
from gateway.auth.sealed import KeySeal
from gateway.auth.signing_keys import SigningKeys
from gateway.auth.vault import KEY_FILE, Vault, load_or_make_key
from gateway.config.secret import Secrets
from gateway.config.snapshot import REVOKE_PATH, TOKEN_PATH, SnapshotHolder
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.settings import Settings, SettingsError
from gateway.store.accounts import AccountStore
from gateway.store.pool import Database
from gateway.store.revocation import RevocationStore
from gateway.store.sessions import SessionStore
from gateway.store.share import Share
from gateway.store.tokens import TokenFeed, TokenStore
from gateway.units.feed import RosterFeed

COPY: Final = "tokens-last-known.json"
FORGET_EVERY_S: Final = 300.0
TICK_S: Final = 0.2
"""How often a worker looks whether a key begins to sign, or ends."""
BURN_EVERY_S: Final = 10.0
NOTE_EVERY_S: Final = 5.0
"""How often a worker looks for changes that nobody noted in the audit trail."""

log = structlog.get_logger()


class Tokens:
    """`start` before the worker accepts: what was revoked must be known before the first request."""

    def __init__(
        self,
        settings: Settings,
        holder: SnapshotHolder,
        database: Database,
        metrics: Metrics,
        *,
        note: Note,
        enforce: Callable[[], None] = lambda: None,
    ) -> None:
        """Shapes: `note` as AuditTrail.note; `enforce()` ends the links that are no longer allowed."""
        self._settings = settings
        self._holder = holder
        self._metrics = metrics
        self._enforce = enforce
        self._note = note
        self._changed = Event()
        share = Share(database, settings.token_connections, settings.token_line)
        self._store = TokenStore(share)
        self._revocations = RevocationStore(database)
        self._sessions = SessionStore(share)
        self._accounts = AccountStore(share)
        self._passwords = Passwords(settings.password_threads, settings.password_line)
        self._opened: Vault | None = None
        self.keys = SigningKeys(holder, self._key_seal)
        self.revoked = RevokedTokens(holder, keys=self.keys)
        self.revoked.on_change = self._on_change
        self.feed = RosterFeed(
            self.revoked,
            lambda: TokenFeed(settings.dsn),
            TokenStore(database).changes,
            settings.data_dir,
            poll_s=settings.token_poll_ms / 1000,
            kind=Revocations,
            copy=COPY,
            what="the list of revoked tokens",
        )
        self._chores: list[gevent.Greenlet[..., None]] = []

    def resources(self, buckets: BucketTable) -> dict[str, object]:
        """What callers find under which path."""
        by_address = Attempts(buckets, self._settings.token_failures_per_minute)
        by_login = Attempts(
            buckets, self._settings.login_failures_per_hour, period_s=HOUR_S, rule="login-failures", of=str
        )
        clients = Clients(self._store, by_address)
        logins = Logins(self._accounts, self._passwords, self._vault, by_login, self._note)
        grants = Grants(self._sessions, self._store, logins, self._note)
        posted = (clients, self._tell, self._note)
        return {
            METADATA_PATH: MetadataResource(),
            JWKS_PATH: JwksResource(),
            AUTHORIZE_PATH: AuthorizeResource(self._sessions, logins, self._vault, by_address, self._tell),
            TOKEN_PATH: TokenResource(self._store, grants, *posted),
            INTROSPECT_PATH: IntrospectResource(self._store, self._sessions, *posted),
            REVOKE_PATH: RevokeResource(self._store, self._sessions, self.revoked.add, *posted),
        }

    def _key_seal(self) -> KeySeal | None:
        """What opens the keys that were made, with what the references lead to now. Raises: ValueError."""
        return key_seal(self._settings, self._settings.data_dir, make=False)

    def _vault(self) -> Vault:
        """What seals, with the site's key. Raises: SettingsError if the key cannot be used."""
        if self._opened is None:
            try:
                self._opened = Vault(account_key(self._settings))
            except (OSError, ValueError) as error:
                raise SettingsError(f"CAREGATE_ACCOUNT_KEY: {error}") from None
        return self._opened

    def start(self) -> None:
        """Know what was revoked. Yields to the hub: for a second at most.

        Raises: SettingsError if the key of accounts cannot be used.
        """
        self._vault()
        self.feed.start()
        self._chores = [
            gevent.spawn(_every, BURN_EVERY_S, self._sessions.burn),
            gevent.spawn(_every, FORGET_EVERY_S, self._store.forget),
            gevent.spawn(_every, FORGET_EVERY_S, self._sessions.forget),
            gevent.spawn(self._note_changes),
            gevent.spawn(self._tick_keys),
        ]

    def stop(self) -> None:
        """Follow no more."""
        self.feed.stop()
        gevent.killall(self._chores)
        self._passwords.stop()

    def describe(self) -> dict[str, object]:
        """What this worker knows of; for the control socket."""
        return {"revocations": self.revoked.revision}

    def _on_change(self) -> None:
        self._metrics.set("caregate_token_revision", (), self.revoked.revision)
        self._enforce()
        self._changed.set()

    def _tick_keys(self) -> None:
        """NOTE: more often than the feed looks, so that a key ends in all workers within a second."""
        while True:
            gevent.sleep(TICK_S)
            self.keys.tick()

    def describe_keys(self) -> dict[str, object]:
        """The keys of each role; for the control socket."""
        roles, revision = self.keys.describe(), self.revoked.revision
        return {"roles": roles, "revision": revision, "issues": self._holder.current.tokens is not None}

    def _note_changes(self) -> None:
        """One worker of all notes each change, soon after it was made."""
        while True:
            self._changed.wait(NOTE_EVERY_S)
            self._changed.clear()
            try:
                while self._revocations.note_changes(lambda kind, outcome, detail: self._note(kind, outcome, **detail)):
                    pass
            except GatewayError:
                continue  # the next time will do

    def _tell(self, endpoint: str, outcome: str, client: str) -> None:
        self._metrics.inc("caregate_auth_requests", (endpoint, outcome))
        log.info("auth.request", endpoint=endpoint, outcome=outcome, client=client)


def account_key(settings: Settings, data_dir: Path | None = None) -> bytes:
    """The key under which what belongs to accounts is sealed. Raises: OSError, ValueError."""
    if settings.account_key:
        return Secrets(settings.config_path.parent, os.environ).resolve(settings.account_key, private=True)
    return load_or_make_key((data_dir or settings.data_dir) / KEY_FILE)


def _every(seconds: float, chore: Callable[[], None]) -> None:
    while True:
        gevent.sleep(seconds)
        try:
            chore()
        except GatewayError:
            continue  # the next time will do
