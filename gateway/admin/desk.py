"""What the operations of the Admin API work with: the operator's connections, and what the workers answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.lock import BoundedSemaphore

from gateway.config.check import CatalogCheck
from gateway.config.reload import ReloadFailed, WorkerStatus, ask, status
from gateway.config.snapshot import SnapshotHolder
from gateway.errors import Conflict, DatabaseUnavailable, OperatorUnavailable, Overloaded, WorkersUnavailable
from gateway.settings import Settings
from gateway.store.config_version import VersionsError, VersionStore
from gateway.store.operator_trail import OperatorTrail, PastRequest
from gateway.store.revocation import OperatorStoreError, RevocationOperator
from gateway.store.session_operator import SessionOperator
from gateway.store.signing_key import KeyChangeRefused, KeyOperator
from gateway.store.unit_operator import OperatorError, UnitOperator

if TYPE_CHECKING:
    from gateway.auth.service import Tokens
    from gateway.http.admission import Admission
    from gateway.http.explain import Explainer
    from gateway.metrics import Metrics

ANSWER_TIMEOUT_S: Final = 10.0


@dataclass(slots=True)
class Desk:
    """Yields to the hub: in every method that asks the database or the workers."""

    settings: Settings
    holder: SnapshotHolder
    admission: Admission
    metrics: Metrics
    explainer: Explainer
    tokens: Tokens
    catalog_check: CatalogCheck
    busy: BoundedSemaphore

    @contextmanager
    def units(self, author: str = "") -> Iterator[UnitOperator]:
        """The registry of units. Raises: OperatorUnavailable, DatabaseUnavailable, Overloaded."""
        with self._operator() as dsn:
            try:
                with UnitOperator(dsn, author) as operator:
                    yield operator
            except OperatorError:
                raise DatabaseUnavailable(retry_after_s=1) from None

    @contextmanager
    def versions(self) -> Iterator[VersionStore]:
        """The versions of the configuration. Raises: as `units`."""
        with self._operator() as dsn:
            try:
                with VersionStore(dsn) as store:
                    yield store
            except VersionsError:
                raise DatabaseUnavailable(retry_after_s=1) from None

    @contextmanager
    def revocations(self) -> Iterator[RevocationOperator]:
        """What is revoked. Raises: as `units`, and RevocationRefused."""
        with self._operator() as dsn:
            try:
                with RevocationOperator(dsn) as operator:
                    yield operator
            except OperatorStoreError:
                raise DatabaseUnavailable(retry_after_s=1) from None

    @contextmanager
    def sessions(self) -> Iterator[SessionOperator]:
        """Sessions of logins. Raises: as `units`."""
        with self._operator() as dsn:
            try:
                with SessionOperator(dsn) as operator:
                    yield operator
            except OperatorError:
                raise DatabaseUnavailable(retry_after_s=1) from None

    @contextmanager
    def keys(self) -> Iterator[KeyOperator]:
        """The keys that rotations made. Raises: as `units`, and Conflict for what a rotation refuses."""
        with self._operator() as dsn:
            try:
                with KeyOperator(dsn) as operator:
                    yield operator
            except KeyChangeRefused as error:
                raise Conflict(str(error)) from None
            except OperatorStoreError:
                raise DatabaseUnavailable(retry_after_s=1) from None

    def past_request(self, request_id: str) -> PastRequest | None:
        """What the trail says of a request. Raises: as `units`."""
        with self._operator() as dsn:
            try:
                with OperatorTrail(dsn) as trail:
                    return trail.request(request_id)
            except OperatorError:
                raise DatabaseUnavailable(retry_after_s=1) from None

    @contextmanager
    def _operator(self) -> Iterator[str]:
        """The login's DSN, while one of few connections is this one's."""
        dsn = self.settings.operator_dsn
        if not dsn:
            raise OperatorUnavailable("CAREGATE_OPERATOR_DSN is not set")
        if not self.busy.acquire(timeout=ANSWER_TIMEOUT_S):
            raise Overloaded(retry_after_s=1)
        try:
            with gevent.Timeout(ANSWER_TIMEOUT_S, DatabaseUnavailable(retry_after_s=1)):
                yield dsn
        finally:
            self.busy.release()

    def ask(self, question: str) -> list[dict[str, Any]]:
        """What every worker answers. Raises: WorkersUnavailable."""
        try:
            return ask(self.settings.run_dir, question, timeout_s=ANSWER_TIMEOUT_S)
        except ReloadFailed:
            raise WorkersUnavailable(retry_after_s=1) from None

    def workers(self) -> list[WorkerStatus]:
        """What every worker has in force. Raises: WorkersUnavailable."""
        try:
            return status(self.settings.run_dir, timeout_s=ANSWER_TIMEOUT_S)
        except ReloadFailed:
            raise WorkersUnavailable(retry_after_s=1) from None
