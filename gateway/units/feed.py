"""Keeps what a worker holds as the database has it: told by NOTIFY, looked at from time to time, kept on disk.

Without its database a worker goes on with what it knew last; one that starts then takes it from the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import gevent
import msgspec
import structlog

from gateway.errors import GatewayError
from gateway.files import replace_file

COPY: Final = "units-last-known.json"
FIRST_LOAD_S: Final = 1.0
RETRY_S: Final = 0.5
COPY_EVERY_S: Final = 1.0
HASTE_S: Final = 1.0
"""How often at most a worker asks because a unit came with a key that it does not know."""
HASTE_TIMEOUT_S: Final = 0.5

log = structlog.get_logger()


class Revised(Protocol):
    """Rows that changed up to a revision."""

    @property
    def revision(self) -> int: ...


C = TypeVar("C", bound=Revised)
C_co = TypeVar("C_co", covariant=True)


class Held(Protocol[C]):
    """What a worker holds: see units.roster.Roster, auth.revocations.RevokedTokens."""

    revision: int

    def take(self, changes: C, /) -> bool: ...
    def tick(self) -> object: ...
    def whole(self) -> C: ...


class Feed(Protocol[C_co]):
    """See store.listener.Listener."""

    def changes(self, after: int) -> C_co: ...
    def wait(self, timeout_s: float) -> None: ...
    def close(self) -> None: ...


class RosterFeed(Generic[C]):
    """One greenlet. `start` after the fork; `dial` makes a connection that is told of changes."""

    def __init__(
        self,
        roster: Held[C],
        dial: Callable[[], Feed[C]],
        ask: Callable[[int, float], C],
        directory: Path,
        *,
        poll_s: float,
        kind: type[C],
        copy: str = COPY,
        what: str = "the registry of units",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Shapes: `ask(after, timeout_s)` asks once over another connection; `copy` is the file's name, `what` for the
        log. Units: `poll_s` between two looks.
        """
        self._roster = roster
        self._dial = dial
        self._ask = ask
        self._path = directory / copy
        self._kind = kind
        self._what = what
        self._poll_s = poll_s
        self._clock = clock
        self._greenlets: list[gevent.Greenlet] = []
        self._kept = 0
        self._hasty_until_s = 0.0

    def start(self) -> None:
        """Know what is registered before the first unit dials. Yields to the hub: for a second at most."""
        restored = self._restore()
        feed = None
        with gevent.Timeout(FIRST_LOAD_S, False):
            try:
                feed = self._open()
            except GatewayError:
                pass
        if feed is None:
            log.warning(f"{self._what} could not be read", last_known=restored)
        self._greenlets = [gevent.spawn(self._run, feed), gevent.spawn(self._keep)]

    def stop(self) -> None:
        """Follow no more."""
        gevent.killall(self._greenlets)

    def hasten(self) -> None:
        """A unit came with a key unknown here: perhaps it registered a moment ago. Yields to the hub: yes."""
        now_s = self._clock()
        if now_s < self._hasty_until_s:
            return
        self._hasty_until_s = now_s + HASTE_S
        try:
            self.refresh()
        except GatewayError:
            return

    def refresh(self) -> None:
        """Look now. Raises: DatabaseUnavailable, DatabaseTimeout. Yields to the hub: yes."""
        self._roster.take(self._ask(self._roster.revision, HASTE_TIMEOUT_S))

    def _open(self) -> Feed[C]:
        feed = self._dial()
        try:
            # NOTE: everything, once a connection: what it missed, and whether it is the same database at all.
            self._roster.take(feed.changes(0))
        except BaseException:
            feed.close()
            raise
        return feed

    def _run(self, feed: Feed[C] | None) -> None:
        while True:
            try:
                if feed is None:
                    feed = self._open()
                self._follow(feed)
            except GatewayError:
                if feed is not None:
                    feed.close()
                    log.warning(f"{self._what} is away; what is known goes on")
                feed = None
            except Exception:
                log.exception(f"{self._what} could not be followed")
                if feed is not None:
                    feed.close()
                feed = None
            self._roster.tick()
            gevent.sleep(RETRY_S)

    def _follow(self, feed: Feed[C]) -> None:
        while True:
            feed.wait(self._poll_s)
            self._roster.take(feed.changes(self._roster.revision))
            self._roster.tick()

    # --- the copy on disk

    def _restore(self) -> int:
        """The revision that was taken from the disk, 0 if there is none."""
        try:
            known = msgspec.json.decode(self._path.read_bytes(), type=self._kind)
        except (OSError, msgspec.DecodeError):
            return 0
        self._roster.take(known)
        self._kept = known.revision
        return known.revision

    def _keep(self) -> None:
        while True:
            gevent.sleep(COPY_EVERY_S)
            if self._roster.revision != self._kept:
                revision, content = self._roster.revision, msgspec.json.encode(self._roster.whole())
                error = gevent.get_hub().threadpool.apply(_write, (self._path, content))
                self._kept = revision
                if error is not None:
                    log.warning(f"{self._what} could not be kept on disk", reason=error)


def _write(path: Path, content: bytes) -> str | None:
    """Replace the file; why that failed.

    SEC: the keys of x-caregate-context are in it: readable by the owner alone.
    NOTE: what leaves a function of gevent's thread pool as an exception is printed with its traceback.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        return error.strerror
    return None
