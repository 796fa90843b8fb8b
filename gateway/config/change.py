"""Making a document the next version of the configuration: checked by every worker, added if nobody was faster, waited
for. The command line and the Admin API do it this way.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config.load import Refused
from gateway.config.reload import TIMEOUT_S, WorkerStatus, await_version, rehearsed

if TYPE_CHECKING:
    from gateway.config.version import Version
    from gateway.store.config_version import VersionStore

SETTLE_S = 10.0
"""How long a change waits for the workers; they have a version within a second, or two if the notification is lost."""
Stores = Callable[[], AbstractContextManager["VersionStore"]]


class Stale(Exception):
    """The newest version is not the one that the change was made from. Shapes: `newest` None: there is none."""

    def __init__(self, base: int, newest: Version | None) -> None:
        if newest is None:
            text = f"stale: based on version {base}, and there is no version yet (--base 0); nothing was changed"
        else:
            text = (
                f"stale: based on version {base}, but version {newest.number} is the newest "
                f"({newest.author}: {newest.reason}); nothing was changed"
            )
        super().__init__(text)
        self.newest = newest


@dataclass(frozen=True, slots=True)
class Applied:
    """A version that was added, and what the workers have. Shapes: `again`: it had been added before."""

    number: int
    digest: str
    workers: list[WorkerStatus]
    again: bool = False

    @property
    def behind(self) -> list[WorkerStatus]:
        """Workers that do not have it in force."""
        return [worker for worker in self.workers if worker.version < self.number]


@dataclass(frozen=True, slots=True)
class Changes:
    """Shapes: `stores()` opens the versions for one `with` statement; `base` None: whatever is the newest."""

    stores: Stores
    run_dir: Path
    timeout_s: float = TIMEOUT_S

    def apply(self, raw: bytes, base: int | None, author: str, reason: str) -> Applied:
        """Add the version and wait for the workers.

        Repeated by one who did not get the answer, it answers with the version that it made.
        Raises: Stale, Refused with every fault, ReloadFailed; what `stores` raises.
        """
        with self.stores() as store:
            newest = store.newest()
        known = newest.number if newest is not None else 0
        if base is not None and base != known:
            if newest is not None and base == known - 1 and _is_same(newest, raw, author, reason):
                return Applied(known, newest.digest, self._settled(known), again=True)
            raise Stale(base, newest)
        with rehearsed(self.run_dir, raw, timeout_s=self.timeout_s) as rehearsal:
            if rehearsal.faults:
                raise Refused(rehearsal.faults)
            with self.stores() as store:
                add(store, known, rehearsal.digest, raw, author, reason)
            workers = self._settled(known + 1)
        return Applied(known + 1, rehearsal.digest, workers)

    def _settled(self, number: int) -> list[WorkerStatus]:
        return await_version(self.run_dir, number, timeout_s=SETTLE_S)


def _is_same(version: Version, raw: bytes, author: str, reason: str) -> bool:
    return (version.document.encode(), version.author, version.reason) == (raw, author, reason)


def add(store: VersionStore, base: int, digest: str, raw: bytes, author: str, reason: str) -> None:
    """Add the version after `base`. Raises: Stale."""
    if not store.add(base, digest, raw.decode(), author, reason):
        raise Stale(base, store.newest())


def difference(old_name: str, old: str, new_name: str, new: str) -> list[str]:
    """What has changed, as lines of a unified diff; none: nothing."""
    return list(difflib.unified_diff(old.splitlines(), new.splitlines(), old_name, new_name, lineterm=""))
