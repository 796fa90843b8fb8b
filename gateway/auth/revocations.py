"""The revocations of one worker, joined to the verifiers of whatever configuration is in force."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from fastpath.revoked import Revoked
from gateway.auth.model import Revocation, Revocations, RevokedToken
from gateway.auth.signing_keys import SigningKeys
from gateway.config.snapshot import UNIT_LINK_AUDIENCE, SnapshotHolder

FORGET_EVERY_S: Final = 30.0


class RevokedTokens:
    """What is revoked, up to `revision`; see units.feed.Held. All snapshots of a worker share it.

    NOTE: belongs to one worker's hub: no method yields.
    """

    def __init__(
        self, holder: SnapshotHolder, now: Callable[[], float] = time.time, keys: SigningKeys | None = None
    ) -> None:
        """Shapes: `keys` are told of the keys that come with the revocations."""
        self._holder = holder
        self._now = now
        self._keys = keys
        self.revision = 0
        self._due_s = 0.0
        self.on_change: Callable[[], None] = lambda: None
        """Told after a change: links that are no longer allowed must end."""

    @property
    def _revoked(self) -> Revoked:
        return self._holder.current.verifier.revocations

    def take(self, changes: Revocations) -> bool:
        """Refuse these too; False if that is nothing new.

        SEC: nothing is allowed again because the database does not know it: it may be another one.
        """
        if changes.revision <= self.revision and not changes.whole:
            return False
        for token in changes.tokens:
            self._revoked.revoke("jti", token.jti, 0.0, token.until_s)
        for rule in changes.rules:
            self._revoked.revoke(
                rule.kind, rule.value, rule.before_s, rule.until_s, rule.issuer or None, rule.audience or None,
                rule.role or None,
            )  # fmt: skip
        if self._keys is not None and (changes.keys or changes.whole):
            self._keys.take(changes.keys, whole=changes.whole)
        self.revision = changes.revision
        self.on_change()
        return True

    def add(self, jti: str, until_s: float) -> None:
        """Refuse one token from now on. Units: seconds since 1970."""
        self._revoked.revoke("jti", jti, 0.0, until_s)

    def tick(self) -> None:
        """Forget what has run out, now and then."""
        now_s = self._now()
        if now_s < self._due_s:
            return
        self._due_s = now_s + FORGET_EVERY_S
        self._holder.current.verifier.forget_revoked(now_s)

    def whole(self) -> Revocations:
        """All of it, for the disk."""
        tokens = [RevokedToken(jti, until_s) for jti, until_s in self._revoked.jtis.items() if until_s != float("inf")]
        rules = [
            Revocation(kind=kind, value=value, before_s=before_s, until_s=until_s, issuer=iss or "", audience=aud or "",
                       role=role or "")
            for kind, value, before_s, until_s, iss, aud, role in self._revoked.rules()
        ]  # fmt: skip
        keys = self._keys.rows() if self._keys is not None else []
        return Revocations(self.revision, tokens, rules, keys, whole=True)

    def refuses_link(self, unit: str, jti: str, issued_s: float) -> bool:
        """Is the token revoked under which a unit is connected? Units: seconds since 1970, -1: it does not say."""
        return self._revoked.refuses({"iss": unit}, jti, unit, UNIT_LINK_AUDIENCE, None, issued_s)
