"""Reading the trail in one worker: its parts joined, over a login and connections of their own."""

from __future__ import annotations

from collections.abc import Callable

from gateway.audit.endpoint import (
    ACCESS_LOG_PATH,
    SEARCH_PATH,
    AccessLogResource,
    ReadResource,
    SearchResource,
)
from gateway.audit.pseudonyms import Keys, NamesReader
from gateway.audit.trail import AuditTrail
from gateway.settings import Settings
from gateway.store.pool import Database
from gateway.store.trail_search import AT_ONCE, SearchStore


class AuditReading:
    """Holds: database connections as caregate_audit_reader, once somebody searches."""

    def __init__(self, settings: Settings, trail: AuditTrail, keys: Callable[[], Keys] | None = None) -> None:
        """Shapes: `keys()` joins pseudonyms to patients; None: there are none."""
        self._keys = keys
        self._trail = trail
        self._page_max = settings.audit_page_max
        self._database: Database | None = None
        self._store: SearchStore | None = None
        if settings.audit_dsn:
            self._database = Database(
                settings.audit_dsn,
                pool_min=0,
                pool_max=AT_ONCE,
                statement_timeout_ms=settings.audit_search_timeout_ms,
                connect_timeout_ms=settings.connect_timeout_ms,
                name="audit",
            )
            self._database.open()
            self._store = SearchStore(self._database, settings.audit_search_timeout_ms)

    def resources(self) -> dict[str, object]:
        """What callers find under which path."""
        parts = (self._store, self._trail.note)
        patients = NamesReader(self._keys, self._store.names) if self._keys and self._store is not None else None
        return {
            SEARCH_PATH: SearchResource(*parts, page_max=self._page_max, patients=patients),
            f"{SEARCH_PATH}/{{event_id}}": ReadResource(*parts, page_max=self._page_max, patients=patients),
            ACCESS_LOG_PATH: AccessLogResource(*parts, page_max=self._page_max, patients=patients),
        }

    def stop(self) -> None:
        """Close the connections."""
        if self._database is not None:
            self._database.close()
