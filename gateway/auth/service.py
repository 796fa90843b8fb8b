"""The token service in one worker: its parts joined, started after the fork and stopped."""

from __future__ import annotations

from typing import Final

import gevent
import structlog

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
from gateway.store.tokens import TokenFeed, TokenStore
from gateway.units.feed import RosterFeed

COPY: Final = "tokens-last-known.json"
FORGET_EVERY_S: Final = 300.0

log = structlog.get_logger()


class Tokens:
    """`start` before the worker accepts: what was revoked must be known before the first request."""

    def __init__(self, settings: Settings, holder: SnapshotHolder, database: Database, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._store = TokenStore(database)
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
        self._forgetting: gevent.Greenlet | None = None

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
        self._forgetting = gevent.spawn(self._forget)

    def stop(self) -> None:
        """Follow no more."""
        self.feed.stop()
        if self._forgetting is not None:
            self._forgetting.kill()

    def _forget(self) -> None:
        while True:
            gevent.sleep(FORGET_EVERY_S)
            try:
                self._store.forget()
            except GatewayError:
                continue  # the next time will do

    def _on_change(self) -> None:
        self._metrics.set("caregate_token_revision", (), self.revoked.revision)

    def _tell(self, endpoint: str, outcome: str, client: str) -> None:
        self._metrics.inc("caregate_auth_requests", (endpoint, outcome))
        log.info("auth.request", endpoint=endpoint, outcome=outcome, client=client)
