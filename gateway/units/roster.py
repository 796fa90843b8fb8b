"""The registered keys and revoked units of one worker, joined to whatever configuration is in force.

Of a snapshot two parts follow the registry: `unit_verifier` has the registered keys beside the document's, and `units`
says of a revoked unit that it is not enabled and gives each its context key. Nothing else of a snapshot ever changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from dataclasses import replace

import structlog

from fastpath.token import Key, Verifier
from gateway.auth.keys import load_public_key
from gateway.config.snapshot import (
    UNIT_LINK_AUDIENCE,
    UNIT_LINK_MAX_LIFETIME_S,
    CompiledUnit,
    Snapshot,
    SnapshotHolder,
)
from gateway.relay.service import KEY_REVOKED
from gateway.units.model import Changes, ContextRow, KeyRow, UnitRow

log = structlog.get_logger()


class Roster:
    """What is registered, up to `revision`.

    NOTE: belongs to one worker's hub: no method yields, so none sees another's half-done work.
    """

    def __init__(self, holder: SnapshotHolder, now: Callable[[], float] = time.time) -> None:
        self._holder = holder
        self._now = now
        self.revision = 0
        self.keys: dict[str, KeyRow] = {}
        self._revoked: set[str] = set()
        self._contexts: dict[str, dict[int, ContextRow]] = {}
        self._material: dict[str, Key] = {}
        self._joined: set[str] = set()
        self._base: dict[str, CompiledUnit] = {}
        self._amended: set[str] = set()
        """Units that are, or were, other than the document says."""
        self._due_s = float("inf")
        self.on_change: Callable[[], None] = lambda: None
        """Told after a change: links that are no longer allowed must end."""
        holder.before_swap(self._join)
        self._join(holder.current)

    def take(self, changes: Changes) -> bool:
        """Take in what changed; False if that is nothing new."""
        if changes.revision <= self.revision and not changes.whole:
            return False
        if changes.whole:
            self.keys.clear()
            self._revoked.clear()
            self._contexts.clear()
        self.revision = changes.revision
        for key in changes.keys:
            self.keys[key.kid] = key
        for row in changes.units:
            (self._revoked.add if row.revoked else self._revoked.discard)(row.unit)
        for context in changes.contexts:
            self._contexts.setdefault(context.unit, {})[context.generation] = context
        if changes.whole:
            self._apply()
        else:
            units = {row.unit for row in changes.units} | {row.unit for row in changes.contexts}
            self._apply({key.kid for key in changes.keys}, units)
        return True

    def tick(self) -> None:
        """Apply what falls due by time alone: a key that retires, a context key that begins."""
        if self._now() >= self._due_s:
            self._apply()

    def whole(self) -> Changes:
        """Everything, to keep on disk."""
        units = [UnitRow(unit, revoked=True) for unit in sorted(self._revoked)]
        contexts = [row for rows in self._contexts.values() for row in rows.values()]
        return Changes(self.revision, units, list(self.keys.values()), contexts, whole=True)

    @property
    def revoked(self) -> frozenset[tuple[str, str]]:
        """Whose links are refused: (unit, key id), of a whole unit with an empty one."""
        keys = {(key.unit, key.kid) for key in self.keys.values() if key.revoked}
        return frozenset(keys | {(unit, "") for unit in self._revoked})

    def refuses(self, unit: str, kid: str) -> str:
        """Why a link of this unit under this key must not be, "" if it may."""
        if unit in self._revoked:
            return "revoked"
        key = self.keys.get(kid)
        return KEY_REVOKED if key is not None and key.revoked else ""

    def document_context(self, unit: str) -> bytes | None:
        """The context key that the configuration gives a unit; no other is used then."""
        base = self._base.get(unit)
        return None if base is None else base.context_key

    def context(self, unit: str) -> bytes | None:
        """The context key in force for a unit, if the registry has one."""
        now_s = self._now()
        begun = [row for row in self._contexts.get(unit, {}).values() if row.from_s <= now_s]
        return max(begun, key=lambda row: row.generation).secret.encode() if begun else None

    def oldest_key_age_s(self) -> float:
        """How long ago the oldest registered key was registered that may still sign, in seconds; 0: there is none."""
        now_s = self._now()
        return max((now_s - row.created_s for row in self.keys.values() if row.live(now_s)), default=0.0)

    # --- joining

    def _join(self, snapshot: Snapshot) -> None:
        """Make a snapshot that is about to come into force as the registry says."""
        self._base = dict(snapshot.units)
        self._joined = set()
        self._apply_to(snapshot)

    def _apply(self, kids: Set[str] | None = None, units: Set[str] | None = None) -> None:
        self._apply_to(self._holder.current, kids, units)
        self.on_change()

    def _apply_to(self, snapshot: Snapshot, kids: Set[str] | None = None, units: Set[str] | None = None) -> None:
        """For these keys and units, None: for all."""
        self._apply_keys(snapshot, self._joined | self.keys.keys() if kids is None else kids)
        self._amended |= self._revoked | self._contexts.keys() if units is None else units
        for unit in self._amended if units is None else units:
            base = self._base.get(unit)
            if base is not None:
                context_key = base.context_key or self.context(unit)
                enabled = base.enabled and unit not in self._revoked
                snapshot.units[unit] = replace(base, enabled=enabled, context_key=context_key)
        self._due_s = min(self._moments(), default=float("inf"))

    def _apply_keys(self, snapshot: Snapshot, kids: Set[str]) -> None:
        verifier, now_s = snapshot.unit_verifier, self._now()
        for kid in kids:
            row = self.keys.get(kid)
            if row is not None and row.live(now_s):
                self._add(verifier, row)
            elif kid in self._joined or (row is not None and row.revoked):
                # SEC: what an operator revoked is refused even where the document has the key too.
                self._joined.discard(kid)
                with suppress(KeyError):
                    verifier.retire(kid)

    def _add(self, verifier: Verifier, row: KeyRow) -> None:
        key = None if row.kid in self._joined else self._key(row)
        if key is not None:
            with suppress(ValueError):  # the document has one of this kid
                verifier.add(key)
                self._joined.add(row.kid)

    def _key(self, row: KeyRow) -> Key | None:
        key = self._material.get(row.kid)
        if key is None:
            try:
                key = self._material[row.kid] = unit_key(row)
            except ValueError as error:
                log.error("a registered key cannot be used", unit=row.unit, kid=row.kid, reason=str(error))
        return key

    def _moments(self) -> Iterable[float]:
        """When something falls due. Units: seconds since 1970."""
        now_s = self._now()
        yield from (row.retires_s for row in self.keys.values() if row.retires_s is not None and row.retires_s > now_s)
        yield from (row.from_s for rows in self._contexts.values() for row in rows.values() if row.from_s > now_s)


def unit_key(row: KeyRow) -> Key:
    """A registered key as the verifier takes it. Raises: ValueError."""
    material = load_public_key(row.public_key, alg=row.alg, kid=row.kid)
    return Key(
        row.kid,
        row.alg,
        material.verifying,
        issuer=row.unit,
        audiences=(UNIT_LINK_AUDIENCE,),
        max_lifetime_s=UNIT_LINK_MAX_LIFETIME_S,
        attachment=row.unit,
    )
