"""The agent: keeps its connections to the gateway, and ends them in order when it is told to stop."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from gateway import __version__
from gateway.agent.backoff import Backoff, Draw
from gateway.agent.dial import DialTimeout, dial
from gateway.agent.handshake import HandshakeBroken, HandshakeRefused
from gateway.agent.link import Link, LinkEnd
from gateway.agent.local_service import LocalService
from gateway.agent.log import Log
from gateway.agent.settings import AgentSettings
from gateway.relay.frames import GoAwayCode, Hello

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
    ) -> None:
        self._settings = settings
        self._log = log
        self._draw = draw
        self._stopping = Event()
        self._pause = pause or self._stopping.wait
        self._instance = os.urandom(8).hex()
        self._links: dict[Link, gevent.Greenlet] = {}
        self._keepers: list[gevent.Greenlet] = []
        self.service = LocalService(
            settings.target,
            connect_timeout_s=settings.local_connect_timeout_s,
            idle_s=settings.local_idle_s,
            ca_file=settings.ca_file,
        )

    def start(self) -> None:
        """Dial every connection."""
        for warning in self._settings.warnings:
            self._log.warning("warning", text=warning)
        identity = self._settings.identity
        self._log.info("started", agent=AGENT, instance=self._instance, key_id=identity.kid, alg=identity.algorithm)
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
        self._stopping.set()
        gevent.killall(self._keepers)
        running = list(self._links.values())
        self._log.info("draining", connections=len(running), streams=sum(link.streams for link in self._links))
        for link in self._links:
            link.leave("the agent stops")
        finished = gevent.joinall(running, timeout=grace_s)
        for link in list(self._links):
            link.close("the agent stopped")
        gevent.joinall(running, timeout=2.0)
        self.service.close()
        self._log.info("stopped", cut=len(running) - len(finished))
        return len(finished) == len(running)

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
                wait_s = self._after_refusal(refusal, backoff)
            except (HandshakeBroken, DialTimeout, OSError) as error:
                last_close = _reason(error)
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
            max_streams=self._settings.max_streams,
            last_close=last_close,
        )

        def replace() -> None:
            if previous is not None:
                previous.leave("replaced")

        link = Link(self._settings, self.service, log, hello, replace)
        greenlet = gevent.spawn(link.run, sock, unread)
        self._links[link] = greenlet
        greenlet.link(lambda _: self._links.pop(link, None))
        return link

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


def _reason(error: Exception) -> str:
    """For the log and HELLO: the kind of failure and the rule, never what was received."""
    detail = str(error) if isinstance(error, HandshakeBroken) else getattr(error, "verify_message", "")
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__
