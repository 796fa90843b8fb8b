"""The revoked tokens of one worker, joined to the verifier of whatever configuration is in force."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from gateway.auth.model import Revocations, RevokedToken
from gateway.config.snapshot import SnapshotHolder

FORGET_EVERY_S: Final = 30.0


class RevokedTokens:
    """What is revoked, up to `revision`; see units.feed.Held. A swap of the configuration takes it along.

    NOTE: belongs to one worker's hub: no method yields.
    """

    def __init__(self, holder: SnapshotHolder, now: Callable[[], float] = time.time) -> None:
        self._holder = holder
        self._now = now
        self.revision = 0
        self._due_s = 0.0
        self.on_change: Callable[[], None] = lambda: None

    def take(self, changes: Revocations) -> bool:
        """Refuse these tokens too; False if that is nothing new.

        SEC: nothing is allowed again because the database does not know it: it may be another one.
        """
        if changes.revision <= self.revision and not changes.whole:
            return False
        for token in changes.tokens:
            self.add(token.jti, token.until_s)
        self.revision = changes.revision
        self.on_change()
        return True

    def add(self, jti: str, until_s: float) -> None:
        """Refuse one token from now on. Units: seconds since 1970."""
        self._holder.current.verifier.revoke_jti(jti, until_s)

    def tick(self) -> None:
        """Forget what has run out, now and then."""
        now_s = self._now()
        if now_s < self._due_s:
            return
        self._due_s = now_s + FORGET_EVERY_S
        self._holder.current.verifier.forget_revoked(now_s)

    def whole(self) -> Revocations:
        """All of it, for the disk."""
        revoked = self._holder.current.verifier.revoked
        known = [RevokedToken(jti, until_s) for jti, until_s in revoked.items() if until_s != float("inf")]
        return Revocations(self.revision, known, whole=True)
