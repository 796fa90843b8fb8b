"""The keys that the gateway made for its roles, and the ends of keys, in one worker: joined to whatever configuration
is in force.

Of a snapshot the verifier, the token service's signers and its published keys follow them. A key that was made counts
only if it opens under the key-encryption key of this gateway: who can write rows, and nothing else, adds no key.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import orjson
import structlog
from msgspec import structs

from fastpath.token import Key
from gateway.auth.keys import KeyMaterial, load_private_key, public_jwk_set
from gateway.auth.model import SigningKey
from gateway.auth.sealed import KeySeal
from gateway.auth.vault import Unsealable
from gateway.config.snapshot import Snapshot, SnapshotHolder

log = structlog.get_logger()


class SigningKeys:
    """What is known of keys.

    NOTE: belongs to one worker's hub: no method yields.
    """

    def __init__(
        self, holder: SnapshotHolder, seal: Callable[[], KeySeal | None], now: Callable[[], float] = time.time
    ) -> None:
        """Shapes: `seal()` opens keys, None where this gateway has no key-encryption key."""
        self._holder = holder
        self._seal = seal
        self._now = now
        self._rows: dict[str, SigningKey] = {}
        self._material: dict[str, KeyMaterial | None] = {}
        self._joined: set[str] = set()
        self._due_s = float("inf")
        holder.before_swap(self._join)
        self._join(holder.current)

    def take(self, rows: Iterable[SigningKey], *, whole: bool = False) -> None:
        """Take in what changed; with `whole` there are no others.

        SEC: what has ended stays so, also if the database does not know it: it may be another one.
        """
        snapshot, now_s = self._holder.current, self._now()
        if whole:
            self._rows = {kid: row for kid, row in self._rows.items() if row.has_ended(now_s)}
        for row in rows:
            known = self._rows.get(row.kid)
            self._rows[row.kid] = row if known is None else _sooner(known, row)
            if self._material.get(row.kid, True) is None:
                del self._material[row.kid]  # it may be sealed under another key now
        for kid in self._joined - self._rows.keys():
            self._leave(snapshot, kid)
        self._apply(snapshot)

    def tick(self) -> None:
        """Apply what falls due by time alone: a key that begins to sign, or ends."""
        if self._now() >= self._due_s:
            self._apply(self._holder.current)

    def rows(self) -> list[SigningKey]:
        """All of it, for the disk; private keys are sealed as in the database."""
        return list(self._rows.values())

    def describe(self) -> dict[str, list[dict[str, object]]]:
        """The keys of each role, live or not; for the control socket."""
        snapshot, now_s = self._holder.current, self._now()
        signers = snapshot.tokens.signers if snapshot.tokens is not None else {}
        found: dict[str, list[dict[str, object]]] = {name: [] for name in snapshot.roles}
        for name, keys in snapshot.role_keys.items():
            for key in keys:
                row = self._rows.get(str(key.kid))
                found[name].append(self._described(key.kid, key.alg, "document", row, signers.get(name), now_s))
        for row in self._rows.values():
            if row.sealed is not None and row.role in found:
                found[row.role].append(self._described(row.kid, row.alg, "made", row, signers.get(row.role), now_s))
        return found

    def _described(
        self, kid: str | None, alg: str, source: str, row: SigningKey | None, signer: KeyMaterial | None, now_s: float
    ) -> dict[str, object]:
        return {
            "kid": kid, "alg": alg, "source": source, "signs": signer is not None and signer.kid == kid,
            "live": row is None or not row.has_ended(now_s), "signs_s": row.signs_s if row is not None else None,
            "retires_s": row.retires_s if row is not None else None,
            "usable": source == "document" or self._material.get(str(kid)) is not None,
        }  # fmt: skip

    # --- joining

    def _join(self, snapshot: Snapshot) -> None:
        """Make a snapshot that is about to come into force as the keys say."""
        self._joined = set()
        self._apply(snapshot)

    def _apply(self, snapshot: Snapshot) -> None:
        now_s = self._now()
        for row in self._rows.values():
            if row.has_ended(now_s):
                self._leave(snapshot, row.kid)
            elif row.sealed is not None and row.kid not in self._joined:
                self._add(snapshot, row)
        self._sign(snapshot, now_s)
        self._due_s = min(self._moments(now_s), default=float("inf"))

    def _leave(self, snapshot: Snapshot, kid: str) -> None:
        """SEC: also where the configuration has a key of that kid: what was ended is refused."""
        self._joined.discard(kid)
        with suppress(KeyError):
            snapshot.verifier.retire(kid)

    def _add(self, snapshot: Snapshot, row: SigningKey) -> None:
        role, material = snapshot.roles.get(row.role), self._opened(row)
        if role is None or material is None or material.thumbprint in snapshot.thumbprints:
            return
        key = Key(
            row.kid,
            row.alg,
            material.verifying,
            issuer=snapshot.audiences[role.audience].issuer,
            audiences=(role.audience,),
            role=row.role,
            max_lifetime_s=role.max_lifetime_s,
            attachment=role,
        )
        try:
            snapshot.verifier.add(key)
        except ValueError:
            log.error("the configuration has a key of the same kid as one that was made", kid=row.kid, role=row.role)
            return
        self._joined.add(row.kid)

    def _opened(self, row: SigningKey) -> KeyMaterial | None:
        """The key, None if it cannot be used here."""
        if row.kid not in self._material:
            try:
                self._material[row.kid] = self._open(row)
            except ValueError as error:  # Unsealable too
                log.error("a key that was made cannot be used", kid=row.kid, role=row.role, reason=str(error))
                self._material[row.kid] = None
        return self._material[row.kid]

    def _open(self, row: SigningKey) -> KeyMaterial:
        seal = self._seal()
        if seal is None:
            raise Unsealable("there is no key-encryption key")
        assert row.sealed is not None  # noqa: S101 - asked of keys that were made alone
        content = seal.open(b64decode(row.sealed), row.kid, row.role, row.alg)
        return replace(load_private_key(content, alg=row.alg), kid=row.kid)

    def _sign(self, snapshot: Snapshot, now_s: float) -> None:
        """Which key signs for a role: the newest that was made and may, else the document's first that can."""
        tokens = snapshot.tokens
        if tokens is None:
            return
        published: list[KeyMaterial] = []
        for role in snapshot.roles:
            document = [key for key in snapshot.role_keys.get(role, ()) if not self._has_ended(key.kid, now_s)]
            made = list(self._live(role, now_s))
            published += [*document, *(key for _, key in made)]
            able = [key for signs_s, key in made if signs_s <= now_s]
            able += [key for key in document if key.signing is not None]
            if able:
                tokens.signers[role] = able[0]
            else:
                tokens.signers.pop(role, None)
        tokens.jwks = orjson.dumps(public_jwk_set(published))

    def _live(self, role: str, now_s: float) -> Iterator[tuple[float, KeyMaterial]]:
        """The joined keys of a role, the newest first."""
        rows = [row for row in self._rows.values() if row.role == role and row.kid in self._joined]
        for row in sorted(rows, key=lambda row: (row.signs_s, row.created_s), reverse=True):
            material = self._material.get(row.kid)
            if material is not None and not row.has_ended(now_s):
                yield row.signs_s, material

    def _has_ended(self, kid: str | None, now_s: float) -> bool:
        row = self._rows.get(str(kid))
        return row is not None and row.has_ended(now_s)

    def _moments(self, now_s: float) -> Iterable[float]:
        """When something falls due. Units: seconds since 1970."""
        for row in self._rows.values():
            if row.retires_s is not None and row.retires_s > now_s:
                yield row.retires_s
            if row.signs_s > now_s:
                yield row.signs_s


def _sooner(known: SigningKey, row: SigningKey) -> SigningKey:
    """The row, with the end of the two that comes first."""
    ends = [end for end in (known.retires_s, row.retires_s) if end is not None]
    return structs.replace(row, retires_s=min(ends, default=None), ended=known.ended or row.ended)
