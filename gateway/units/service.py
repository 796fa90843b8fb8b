"""The registry of units in one worker: its parts joined to the relay, started after the fork and stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import structlog

from fastpath.bucket import BucketTable
from gateway.config.snapshot import SnapshotHolder
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.relay.registry import own_word
from gateway.relay.service import Relay
from gateway.settings import Settings
from gateway.store.pool import Database
from gateway.store.units import UnitFeed, UnitStore
from gateway.units.endpoint import EnrolResource, Gate, RotateResource
from gateway.units.feed import RosterFeed
from gateway.units.model import Changes
from gateway.units.roster import Roster
from gateway.units.timeline import Timeline

RECALL_S: Final = 1.0
RESTARTED: Final = "gateway-restarted"
"""Why a unit is not connected that was, when the last gateway was seen for the last time."""

_KINDS: Final = {"connection.up": "unit.up", "connection.down": "unit.down", "connection.lost": "unit.lost"}
"""What the relay tells -> the kind of the audit event."""

_TOLD: Final = ("conn", "kid", "why", "agent", "client_address")

log = structlog.get_logger()


class Units:
    """`start` before the relay: no unit may dial before the registry is known."""

    def __init__(
        self,
        settings: Settings,
        holder: SnapshotHolder,
        database: Database,
        relay: Relay,
        metrics: Metrics,
        note: Callable[..., None] = lambda kind, outcome, **members: None,
    ) -> None:
        """Shapes: `note(kind, outcome, **members)` keeps an event in the audit trail, see AuditTrail.try_note."""
        self._note = note
        self._revoked: frozenset[tuple[str, str]] | None = None
        """What was known to be revoked, once the registry was read."""
        self._settings = settings
        self._relay = relay
        self._metrics = metrics
        self._store = UnitStore(database)
        self.roster = Roster(holder)
        self.feed = RosterFeed(
            self.roster,
            lambda: UnitFeed(settings.dsn),
            self._store.changes,
            settings.data_dir,
            poll_s=settings.unit_poll_ms / 1000,
            kind=Changes,
        )
        self.timeline = Timeline(
            self._store.write,
            held=lambda: {connection.unit for connection in relay.registry.all_local()},
            count=lambda outcome, number: metrics.inc("caregate_unit_timeline", (outcome,), number),
            node=f"{settings.node_name[:64]}/{os.getpid()}",
        )
        self.roster.on_change = self._on_change
        relay.refuses = self.roster.refuses
        relay.observe = self._observe
        relay.tokens.on_unknown_key = self.feed.hasten
        relay.tokens.on_used = self.timeline.used

    def resources(self, buckets: BucketTable) -> dict[str, object]:
        """What units register their keys at."""
        gate = Gate(buckets, self._settings.unit_enrolments_per_minute)
        enrol = EnrolResource(
            self._store, self.roster, gate, refresh=self.feed.refresh, tell=self._tell, note=self._note
        )
        rotate = RotateResource(
            self._relay.tokens,
            self._settings.unit_overlap_s,
            self._store,
            self.roster,
            gate,
            refresh=self.feed.refresh,
            tell=self._tell,
            note=self._note,
        )
        return {"/relay/v1/enrol": enrol, "/relay/v1/keys": rotate}

    def start(self) -> None:
        """Know keys and what is remembered of units. Yields to the hub: for about a second at most."""
        self.feed.start()
        self._revoked = self.roster.revoked
        try:
            for unit, seen_s, why in self._store.presence(RECALL_S):
                self._relay.registry.recall(unit, seen_s, why or RESTARTED)
        except GatewayError as error:
            log.warning("when units were last seen could not be read", reason=error.code)
        self.timeline.start()

    def stop(self) -> None:
        """Follow no more, write what is left. Yields to the hub: yes."""
        self.feed.stop()
        self.timeline.stop()

    def describe(self) -> dict[str, object]:
        """The connections of this worker, and the units that the configuration knows; for the control socket."""
        relay = self._relay
        connections = [{"unit": c.unit, **c.describe()} for c in relay.registry.all_local()]
        known = {unit.id: unit.enabled for unit in relay.known()}
        return {"connections": connections, "known": known, "revision": self.roster.revision}

    def _observe(self, event: str, unit: str, details: dict[str, object]) -> None:
        """Timeline and trail hear of it."""
        self.timeline.observe(event, unit, details)
        kind = _KINDS.get(event)
        if kind is not None:
            about = {name: own_word(str(details[name])) for name in _TOLD if details.get(name)}
            self._note("unit.replaced" if about.get("why") == "replaced" else kind, "allowed", unit=unit, **about)

    def _on_change(self) -> None:
        self._metrics.set("caregate_unit_revision", (), self.roster.revision)
        self._relay.enforce()
        if self._revoked is None:
            return
        before, self._revoked = self._revoked, self.roster.revoked
        for unit, kid in sorted(before ^ self._revoked):
            kind = "unit.revoked" if (unit, kid) in self._revoked else "unit.enabled"
            self._note(kind, "allowed", unit=unit, kid=kid, worker=str(os.getpid()))

    def _tell(self, outcome: str, unit: str, kid: str) -> None:
        self._metrics.inc("caregate_unit_enrolments", (outcome,))
        log.info("unit.key", outcome=outcome, unit=unit, kid=kid)
