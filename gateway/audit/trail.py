"""A worker's audit trail: what has happened goes into the spool, and from there to PostgreSQL.

`record` returns when the event survives the machine, `enqueue_finished` when it survives the process. Neither waits for
the database. When the spool has no room, nothing is answered that is not on it: `ready` says so before work is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.commit import Commit
from gateway.audit.consent import CONSENT, consent_change, patient_answered
from gateway.audit.event import MAX_OTHERS, Accesses, action_in, also_named, encode, other_event, own_bases
from gateway.audit.kinds import ALSO
from gateway.audit.notary import KEY, Notary, load_or_make_key
from gateway.audit.pseudonyms import FOLDER as PATIENTS
from gateway.audit.pseudonyms import Keys, Pseudonyms
from gateway.audit.refusals import ending
from gateway.audit.shipper import Shipper
from gateway.audit.spool import Spool, SpoolFull, open_spool
from gateway.context import RequestContext
from gateway.errors import AuditUnavailable
from gateway.store.audit import AuditStore
from gateway.store.pool import Database

log = logging.getLogger("caregate.audit")

FOLDER = "audit"
_RESERVE = 4
"""A fraction of a segment that is kept for the outcomes of what runs already."""


class AuditTrail:
    """Holds: one spool on the disk, from `start` to `stop`."""

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        *,
        node: str = "",
        segment_bytes: int = 4 * 2**20,
        spool_bytes: int = 4 * 2**30,
        count: Callable[[str, int], None] = lambda outcome, number: None,
        key: Callable[[], Ed25519PrivateKey] | None = None,
        checkpoint_s: float = 60.0,
        checkpoint_copies: tuple[Path, ...] = (),
        months_ahead: int = 3,
        patients: Callable[[], Keys] | None = None,
        measure: Callable[[int], None] = lambda pending: None,
        unfinished: Callable[[int], None] = lambda found: None,
        admit: Callable[[bool], None] = lambda ready: None,
        early: bool = False,
    ) -> None:
        """Shapes: `count(outcome, number)` hears of records: written, refused, damaged; `measure(pending)` of lag;
        `unfinished(found)` of requests of late that were begun and never ended, in one worker of the machine;
        `admit(ready)` is told when `ready` changes. With `patients` their ids are replaced by pseudonyms. Checkpoints
        are signed with `key()`, by default a file's that is made at its first use. `early` breaks the promise of
        `record`, so that tests can see what that does.
        """
        self._store = AuditStore(database)
        self._root = data_dir / FOLDER
        self._node = node or os.uname().nodename
        self._patients = patients
        self._pseudonyms: Pseudonyms | None = None
        self._names: dict[str, str] = {}
        accesses = Accesses(
            self._node, None if patients is None else self._name_of, self._names, time.time_ns, time.monotonic_ns
        )
        self._keep, self._complete = accesses.keep, accesses.complete
        self._segment_bytes = segment_bytes
        self._spool_bytes = spool_bytes
        self._count = count
        self._measure = measure
        self._unfinished = unfinished
        self._admit = admit
        self._early = early
        self._key = key or partial(load_or_make_key, self._root / KEY)
        self._checkpoint_s = checkpoint_s
        self._checkpoint_copies = checkpoint_copies
        self._months_ahead = months_ahead
        self._notary: Notary | None = None
        self._spool: Spool | None = None
        self._commit: Commit | None = None
        self._shipper: Shipper | None = None
        self.ready = True
        """False while the spool has no room to spare."""

    def start(self) -> None:
        """Open the spool; go on with what dead workers left behind.

        Raises: OSError, SpoolFull: without a trail there is no gateway.
        """
        spool = open_spool(self._root, self._segment_bytes, self._spool_bytes)
        self._spool = spool
        if self._patients is not None:
            self._pseudonyms = Pseudonyms(self._root / PATIENTS, spool.chain, self._patients(), self._names)
        self._commit = Commit(spool, self._pseudonyms)
        self._shipper = Shipper(self._store, spool, self._commit, self._count, self._look, self._pseudonyms)
        self._notary = Notary(
            self._store, self._root, node=self._node, key=self._key, interval_s=self._checkpoint_s,
            copies=self._checkpoint_copies, count=self._count, months_ahead=self._months_ahead,
            unfinished=self._unfinished,
        )  # fmt: skip

    def record(self, ctx: RequestContext, status: int) -> None:
        """Keep the event of a request and wait until it is durable; status 0: the intent.

        Raises: AuditUnavailable.
        Yields to the hub: until the disk has it.
        """
        if self._commit is None:
            raise AuditUnavailable()
        self.enqueue_finished(ctx, status)
        if not self._early:
            self._commit.wait()

    def enqueue_finished(self, ctx: RequestContext, status: int) -> None:
        """Keep the event of a request. It survives the process from here on.

        Raises: AuditUnavailable.
        """
        spool = self._spool
        if spool is None:
            return
        try:
            self._keep(ctx, status, spool)
        except SpoolFull:
            raise self._no_room() from None

    def note_others(self, ctx: RequestContext) -> None:
        """Keep, of a request that names several patients, an event for each but the one that its own event has.

        Raises: AuditUnavailable.
        """
        outcome, rule = ending(ctx, ctx.error)
        for patient in also_named(ctx)[:MAX_OTHERS]:
            assert ctx.route is not None  # noqa: S101 - or it would name nobody
            self.note(
                ALSO, outcome, ctx=ctx, patient=patient, unit=ctx.unit or ctx.params.get("unit", ""), rule=rule,
                purpose=ctx.purpose, route=ctx.route.name, action=action_in(ctx.route, ctx),
            )  # fmt: skip

    def note_consent(self, ctx: RequestContext, answer: bytes | None) -> None:
        """Keep, of a request that changes a patient's consent, or tries to, an event that says so.

        Shapes: `answer` is what the caller is told, if it is in hand: of what was let, the consent as it is now.
        Raises: AuditUnavailable.
        """
        change = consent_change(ctx)
        if change is None:
            return
        assert ctx.route is not None  # noqa: S101 - or it would be about nothing
        outcome, rule = ending(ctx, ctx.error)
        now = answer if answer and outcome == "allowed" else b""
        digest = hashlib.sha256(now).hexdigest() if now else ""
        patient = change.patient or patient_answered(now, own_bases(ctx.route, ctx))
        self.note(
            change.kind, outcome, ctx=ctx, patient=patient, unit=ctx.unit or ctx.params.get("unit", ""),
            rule=rule, purpose=ctx.purpose, route=ctx.route.name, resource_type=CONSENT, resource_id=change.id,
            consent=change.id, digest=digest,
        )  # fmt: skip

    def _name_of(self, patient: str) -> str:
        """What the trail has in place of a patient's id. Raises: AuditUnavailable."""
        if self._pseudonyms is None:
            raise AuditUnavailable()
        try:
            return self._pseudonyms.of(patient)
        except OSError:
            raise self._no_room() from None

    def completed(self, ctx: RequestContext, status: int, whole: bool) -> None:
        """Keep how the transfer of an answer ended, as `enqueue_finished` does; nobody can be told if it fails."""
        spool = self._spool
        if spool is None:
            return
        try:
            self._complete(ctx, status, whole, spool)
        except SpoolFull:
            self._no_room()

    def note(
        self,
        kind: str,
        outcome: str,
        *,
        ctx: RequestContext | None = None,
        durable: bool = False,
        unit: str = "",
        agent: str = "",
        rule: str = "",
        patient: str = "",
        issuer: str = "",
        subject: str = "",
        role: str = "",
        audience: str = "",
        organisation: str = "",
        client: str = "",
        token_id: str = "",
        purpose: str = "",
        client_address: str = "",
        resource_type: str = "",
        resource_id: str = "",
        route: str = "",
        action: str = "",
        **detail: str,
    ) -> None:
        """Keep an event that is no access, as `enqueue_finished` does; `durable`: as `record` does.

        Shapes: `kind` and the names of `detail` as in gateway.audit.kinds; `outcome` allowed, refused or failed; `ctx`
        is the request that it happened in and says who caused it, as far as the members named here do not.
        Raises: AuditUnavailable.
        Yields to the hub: if `durable`.
        """
        if self._spool is None:
            return
        members = {
            "unit": unit, "agent": agent, "rule": rule, "patient": patient, "issuer": issuer, "subject": subject,
            "role": role, "audience": audience, "organisation": organisation, "client": client,
            "token_id": token_id, "purpose": purpose, "client_address": client_address,
            "resource_type": resource_type, "resource_id": resource_id, "route": route, "action": action,
        }  # fmt: skip
        about = members["patient"] or _patient_of(ctx)
        if about and self._patients is not None:
            members["patient"] = self._name_of(about)
        event = other_event(self._node, kind, outcome, time.time_ns() // 1_000_000, ctx, members, detail)
        try:
            self._spool.append(encode(event))
        except SpoolFull:
            raise self._no_room() from None
        if durable and self._commit is not None:
            self._commit.wait()

    def try_note(self, kind: str, outcome: str, **members: Any) -> None:
        """As `note`, for what happened whether it can be kept or not: then it is logged and counted."""
        try:
            self.note(kind, outcome, **members)
        except AuditUnavailable:
            log.error("the audit trail has no room for an event: %s %s", kind, outcome)

    @property
    def pending(self) -> int:
        """Records that the database does not have yet."""
        return self._shipper.pending if self._shipper is not None else 0

    def progress(self) -> tuple[int, int, float]:
        """This worker's records so far, how many of them the database has, and the part of the spool's room in use."""
        spool = self._spool
        return (0, 0, 0.0) if spool is None else (spool.sequence, spool.sequence - spool.pending, spool.filled)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ship what can be shipped; the rest waits in the spool for a successor. Later events go nowhere.

        Yields to the hub: yes.
        """
        shipper, commit, spool, notary = self._shipper, self._commit, self._spool, self._notary
        if shipper is None or commit is None or spool is None or notary is None:
            return
        shipper.stop(timeout_s)
        notary.stop(timeout_s)
        self._spool = self._commit = self._shipper = None
        commit.stop()
        with contextlib.suppress(OSError):
            spool.settle(time.time_ns() // 1_000_000)
        spool.close()
        if self._pseudonyms is not None:
            self._pseudonyms.close()
            self._pseudonyms = None

    def become(self, *, ready: bool) -> None:
        """Note whether there is room to spare."""
        if ready != self.ready:
            self.ready = ready
            log.warning("the audit spool has room again" if ready else "the audit spool is full: requests are refused")
            self._admit(ready)

    def _look(self) -> None:
        spool = self._spool
        if spool is None or self._shipper is None:
            return
        self.become(ready=spool.left_bytes > self._segment_bytes // _RESERVE)
        self._measure(self.pending)

    def _no_room(self) -> AuditUnavailable:
        self.become(ready=False)
        self._count("unwritten", 1)
        return AuditUnavailable()


def _patient_of(ctx: RequestContext | None) -> str:
    """The patient that the caller's token names."""
    claimed = ctx.principal.claims.get("patient") if ctx is not None and ctx.principal is not None else None
    return claimed if isinstance(claimed, str) else ""
