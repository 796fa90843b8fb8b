"""The agent: keeps its connections to the gateway, and ends them in order when it is told to stop."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from gateway import __version__
from gateway.agent.backoff import Backoff, Draw
from gateway.agent.dial import DialTimeout, dial
from gateway.agent.handshake import HandshakeBroken, HandshakeRefused
from gateway.agent.health import Health, HealthState
from gateway.agent.link import Link, LinkEnd
from gateway.agent.log import Log
from gateway.agent.services import Services
from gateway.agent.settings import AgentSettings
from gateway.relay.frames import LEDGER, GoAwayCode, Hello

if TYPE_CHECKING:
    from gateway.agent.ledger import Ledger

AGENT = f"caregate-agent/{__version__}"
DENIALS = frozenset({401, 403, 404, 426})
"""Answers that only a person can change: wrong key, disabled, unknown, another protocol."""


class Agent:
    """`start`, then `drain`. `pause(seconds)` waits between dials and may return early when the agent stops."""

    def __init__(
        self,
        settings: AgentSettings,
        log: Log,
        *,
        draw: Draw = random.random,
        pause: Callable[[float], object] | None = None,
        health: Health | None = None,
        now: Callable[[], float] = time.time,
        on_connected: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_connected` is called whenever the last of the wanted connections has become active."""
        self._settings = settings
        self._log = log
        self._draw = draw
        self._stopping = Event()
        self._pause = pause or self._stopping.wait
        self._on_connected = on_connected
        self._instance = os.urandom(8).hex()
        self._links: dict[Link, gevent.Greenlet] = {}
        self._active: set[Link] = set()
        self._keepers: list[gevent.Greenlet] = []
        self._ledger = _ledger(settings, log, now)
        self._health = health or Health(settings.health_file)
        self.services = Services(settings, self._ledger)
        self.services.on_full = self._lease

    def start(self) -> None:
        """Dial every connection. Yields to the hub: until the ledger is open or is known to be unusable."""
        for warning in self._settings.warnings:
            self._log.warning("warning", text=warning)
        identity = self._settings.identity
        self._log.info("started", agent=AGENT, instance=self._instance, key_id=identity.kid, alg=identity.algorithm)
        self._health.tell(HealthState.STARTING, wanted=self._settings.connections)
        if self._ledger is not None:
            self._ledger.open()
        for index in range(self._settings.connections):
            self._keepers.append(gevent.spawn(self._keep, index))

    def wait(self) -> None:
        """Until `stop`. Yields to the hub."""
        self._stopping.wait()

    @property
    def stopping(self) -> bool:
        return bool(self._stopping.is_set())

    def stop(self) -> None:
        """Dial no more; `drain` does the rest. May be called from a signal handler."""
        self._stopping.set()

    def drain(self, grace_s: float) -> bool:
        """Let open requests finish, then end what is left; False if something was cut. Yields to the hub."""
        end_s = time.monotonic() + grace_s
        self._stopping.set()
        self._health.tell(HealthState.DRAINING)
        gevent.killall(self._keepers)
        running = list(self._links.values())
        self._log.info("draining", connections=len(running), streams=sum(link.streams for link in self._links))
        for link in self._links:
            link.leave("the agent stops")
        finished = gevent.joinall(running, timeout=grace_s)
        # What a caller with an idempotency key will ask for again.
        wanted = list(self.services.detached)
        finished += gevent.joinall(wanted, timeout=max(0.0, end_s - time.monotonic()))
        for link in list(self._links):
            link.close("the agent stopped")
        gevent.joinall(running, timeout=2.0)
        self._close(wanted)
        cut = len(running) + len(wanted) - len(finished)
        self._log.info("stopped", cut=cut)
        return cut == 0

    def _close(self, wanted: list[gevent.Greenlet]) -> None:
        gevent.killall([*wanted, *self.services.detached], timeout=2.0)
        self.services.close()
        if self._ledger is not None:
            self._ledger.close()
        self._health.tell(HealthState.STOPPED)

    # --- one connection, again and again

    def _keep(self, index: int) -> None:
        settings = self._settings
        log = self._log.bind(index=index)
        backoff = Backoff(settings.backoff_base_s, settings.backoff_cap_s, self._draw)
        previous: Link | None = None
        last_close: str | None = None
        while not self._stopping.is_set():
            try:
                sock, unread = dial(settings, settings.identity.token(time.time()))
            except HandshakeRefused as refusal:
                last_close = f"refused with {refusal.status}"
                self._health.fault(last_close)
                wait_s = self._after_refusal(refusal, backoff)
            except (HandshakeBroken, DialTimeout, OSError) as error:
                last_close = _reason(error)
                self._health.fault(last_close)
                wait_s = backoff.after_failure()
            else:
                previous = self._open(index, log, last_close, previous, sock, unread)
                end: LinkEnd = previous.outcome.get()
                last_close = end.reason
                wait_s = self._after_end(end, backoff)
            log.info("waiting", seconds=round(wait_s, 3), why=last_close)
            self._pause(wait_s)

    def _open(
        self, index: int, log: Log, last_close: str | None, previous: Link | None, sock: object, unread: bytes
    ) -> Link:
        """Run a link beside the one it replaces, which leaves as soon as the new one is active."""
        hello = Hello(
            agent=AGENT,
            instance=self._instance,
            index=index,
            caps=[LEDGER] if self._ledger is not None and self._ledger.available else [],
            max_streams=self._settings.max_streams,
            last_close=last_close,
            clock_ms=round(time.time() * 1000),
        )

        def on_active() -> None:
            self._active.add(link)
            self._tell_health()
            if previous is not None:
                previous.leave("replaced")
            if len(self._active) >= self._settings.connections:
                self._on_connected()

        link = Link(self._settings, self.services, log, hello, on_active)
        greenlet = gevent.spawn(link.run, sock, unread)
        self._links[link] = greenlet
        greenlet.link(lambda _: self._forget(link))
        return link

    def _forget(self, link: Link) -> None:
        self._links.pop(link, None)
        if link in self._active:
            self._active.discard(link)
            self._health.fault(link.outcome.get(block=False).reason if link.outcome.ready() else "ended")
            self._tell_health()

    def _lease(self, full: bool) -> None:
        for link in self._active:
            link.lease(full)

    def _tell_health(self) -> None:
        if self._stopping.is_set():
            return
        up, wanted = len(self._active), self._settings.connections
        state = HealthState.CONNECTED if up >= wanted else HealthState.DEGRADED if up else HealthState.DISCONNECTED
        self._health.tell(state, up=up, wanted=wanted)

    def _after_refusal(self, refusal: HandshakeRefused, backoff: Backoff) -> float:
        self._log.warning("refused", status=refusal.status, retry_after_s=refusal.retry_after_s)
        if refusal.status in DENIALS:
            return backoff.after_refusal(max(self._settings.refused_wait_s, refusal.retry_after_s or 0))
        if refusal.retry_after_s is not None:
            return backoff.after_refusal(refusal.retry_after_s)
        return backoff.after_failure()

    def _after_end(self, end: LinkEnd, backoff: Backoff) -> float:
        if end.lived_s >= self._settings.stable_after_s:
            backoff.succeeded()
        goaway = end.goaway
        if goaway is None or goaway.code in {GoAwayCode.PROTOCOL, GoAwayCode.REPLACED}:
            return backoff.after_failure()
        if goaway.code == GoAwayCode.UNIT_DISABLED:
            return backoff.after_refusal(self._settings.refused_wait_s)
        assigned_s = backoff.after_goaway(goaway.retry_ms, goaway.jitter_ms)
        if end.lived_s >= self._settings.stable_after_s or goaway.retry_ms:
            return assigned_s
        return max(assigned_s, backoff.after_failure())


def _ledger(settings: AgentSettings, log: Log, now: Callable[[], float]) -> Ledger | None:
    if settings.ledger is None:
        return None
    from gateway.agent.ledger import Ledger  # PERF: SQLite is loaded only where it is used

    return Ledger(settings.ledger, log, now)


def _reason(error: Exception) -> str:
    """For the log and HELLO: the kind of failure and the rule, never what was received."""
    detail = str(error) if isinstance(error, HandshakeBroken) else getattr(error, "verify_message", "")
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__
