"""The agent as a process: signals, the wait, the end."""

from __future__ import annotations

import signal

import gevent
from gevent.event import Event

from gateway.agent.log import Log
from gateway.agent.service import Agent
from gateway.agent.settings import AgentSettings


def serve(settings: AgentSettings, log_level: str) -> int:
    """Run until SIGTERM or SIGINT; a second one ends at once. The exit status. Yields to the hub."""
    log = Log(log_level).bind(unit=settings.identity.unit)
    agent = Agent(settings, log)
    second = Event()

    def on_signal() -> None:
        if agent.stopping:
            second.set()
        agent.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, on_signal)
    agent.start()
    agent.wait()
    draining = gevent.spawn(agent.drain, settings.grace_s)
    gevent.wait([draining, second], count=1)
    return 0
