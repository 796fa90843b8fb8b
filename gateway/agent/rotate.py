"""A registered key is replaced before it grows old, without a visit: the old key vouches for the new one.

What `caregate agent rotate` did beside a running agent is taken up too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import gevent

from gateway.agent.identity import BadKey

if TYPE_CHECKING:
    from gateway.agent.enrol import KeyDirectory
    from gateway.agent.log import Log
    from gateway.agent.settings import AgentSettings

LOOK_S: Final = 30.0
SETTLE_S: Final = 2.0
"""Until a new key is used: every worker of the gateway has heard of it by then."""
AGAIN_S: Final = 3_600.0
"""After a rotation that failed; there are days left."""


class Rotation:
    """Run it beside an agent. It does nothing for a key that was not registered from its directory."""

    def __init__(
        self,
        settings: AgentSettings,
        log: Log,
        *,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], object] = gevent.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._log = log
        self._now = now
        self._pause = pause
        # A fleet that was enrolled in one week does not rotate in one hour.
        self._after_s = settings.rotate_after_s * (0.9 + 0.1 * draw())
        self._not_before_s = 0.0

    def run(self) -> None:
        """Look every half minute. Yields to the hub."""
        directory = self._settings.identity.directory
        if directory is None:
            return
        from gateway.agent.enrol import KeyDirectory  # PERF: loaded only where a key was registered

        keys = KeyDirectory(directory)
        while True:
            self._pause(LOOK_S)
            self.look(keys)

    def look(self, keys: KeyDirectory) -> None:
        """Rotate if it is time; take up what changed in the directory. Yields to the hub."""
        if self._due(keys):
            self._rotate(keys)
        self._take_up(keys)

    def _due(self, keys: KeyDirectory) -> bool:
        registered_s = keys.registered_s()
        if not self._settings.rotate_after_s or registered_s is None or self._now() < self._not_before_s:
            return False
        return self._now() - registered_s >= self._after_s

    def _rotate(self, keys: KeyDirectory) -> None:
        from gateway.agent.enrol import EnrolmentFailed, rotate

        settings = self._settings
        try:
            done = rotate(settings.gateway, settings.identity.unit, keys, ca_file=settings.ca_file)
        except (EnrolmentFailed, BadKey, OSError) as error:
            self._not_before_s = self._now() + AGAIN_S
            self._log.warning("rotation_failed", why=str(error), again_s=AGAIN_S)
            return
        self._log.info("rotated", key_id=done.kid, overlap_s=done.overlap_s)

    def _take_up(self, keys: KeyDirectory) -> None:
        identity = self._settings.identity
        try:
            found = keys.identity(identity.unit)
            contexts = keys.contexts()
        except (BadKey, OSError) as error:
            self._log.warning("key_unreadable", why=type(error).__name__)
            return
        if self._settings.context is not None and contexts:
            self._settings.context.adopt(*contexts)
        if found.kid != identity.kid:
            self._pause(SETTLE_S)
            identity.adopt(found)
            self._log.info("key_in_use", key_id=found.kid)
