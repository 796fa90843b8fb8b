"""The token service in one worker: its parts joined, started after the fork and stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import gevent
import structlog
from gevent.event import Event

from fastpath.bucket import BucketTable
from gateway.auth.attempts import Attempts
from gateway.auth.clients import Clients
from gateway.auth.endpoints import (
    INTROSPECT_PATH,
    JWKS_PATH,
    METADATA_PATH,
    REVOKE_PATH,
    IntrospectResource,
    JwksResource,
    MetadataResource,
    RevokeResource,
    TokenResource,
)
from gateway.auth.model import Revocations
from gateway.auth.revocations import RevokedTokens
from gateway.config.snapshot import TOKEN_PATH, SnapshotHolder
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.store.pool import Database
from gateway.store.revocation import Note, RevocationStore
from gateway.store.tokens import TokenFeed, TokenStore
from gateway.units.feed import RosterFeed

COPY: Final = "tokens-last-known.json"
FORGET_EVERY_S: Final = 300.0
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
        enforce: Callable[[], None] = lambda: None,
        note: Note = lambda kind, outcome, detail: None,
    ) -> None:
        """Shapes: `enforce()` ends the links that are no longer allowed; `note` keeps an event in the audit trail."""
        self._settings = settings
        self._metrics = metrics
        self._enforce = enforce
        self._note = note
        self._changed = Event()
        self._store = TokenStore(database)
        self._revocations = RevocationStore(database)
        self.revoked = RevokedTokens(holder)
        self.revoked.on_change = self._on_change
        self.feed = RosterFeed(
            self.revoked,
            lambda: TokenFeed(settings.dsn),
            self._store.changes,
            settings.data_dir,
            poll_s=settings.token_poll_ms / 1000,
            kind=Revocations,
            copy=COPY,
            what="the list of revoked tokens",
        )
        self._greenlets: list[gevent.Greenlet] = []

    def resources(self, buckets: BucketTable) -> dict[str, object]:
        """What callers find under which path."""
        clients = Clients(self._store, Attempts(buckets, self._settings.token_failures_per_minute))
        return {
            METADATA_PATH: MetadataResource(),
            JWKS_PATH: JwksResource(),
            TOKEN_PATH: TokenResource(clients, self._tell),
            INTROSPECT_PATH: IntrospectResource(self._store, clients, self._tell),
            REVOKE_PATH: RevokeResource(self._store, self.revoked.add, clients, self._tell),
        }

    def start(self) -> None:
        """Know what was revoked. Yields to the hub: for a second at most."""
        self.feed.start()
        self._greenlets = [gevent.spawn(self._forget), gevent.spawn(self._note_changes)]

    def stop(self) -> None:
        """Follow no more."""
        self.feed.stop()
        gevent.killall(self._greenlets)

    def _forget(self) -> None:
        while True:
            gevent.sleep(FORGET_EVERY_S)
            try:
                self._store.forget()
            except GatewayError:
                continue  # the next time will do

    def describe(self) -> dict[str, object]:
        """What this worker knows of; for the control socket."""
        return {"revocations": self.revoked.revision}

    def _on_change(self) -> None:
        self._metrics.set("caregate_token_revision", (), self.revoked.revision)
        self._enforce()
        self._changed.set()

    def _note_changes(self) -> None:
        """One worker of all notes each change, soon after it was made."""
        while True:
            self._changed.wait(NOTE_EVERY_S)
            self._changed.clear()
            try:
                while self._revocations.note_changes(self._note):
                    pass
            except GatewayError:
                continue  # the next time will do

    def _tell(self, endpoint: str, outcome: str, client: str) -> None:
        self._metrics.inc("caregate_auth_requests", (endpoint, outcome))
        log.info("auth.request", endpoint=endpoint, outcome=outcome, client=client)
