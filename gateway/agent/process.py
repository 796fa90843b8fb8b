"""The agent as a process: signals, the wait, the end."""

from __future__ import annotations

import gc
import os
import signal

import gevent
from gevent.event import Event

from gateway.agent.health import Health
from gateway.agent.log import Log
from gateway.agent.memory import let_go
from gateway.agent.notify import Notifier
from gateway.agent.rotate import Rotation
from gateway.agent.service import Agent
from gateway.agent.settings import AgentSettings

# PERF: `relay_open`: each greenlet would note the stack of the one that spawned it.
gevent.config.track_greenlet_tree = False


def serve(settings: AgentSettings) -> int:
    """Run until SIGTERM or SIGINT; a second one ends at once. The exit status. Yields to the hub.

    Raises: OSError if the log file cannot be opened.
    """
    gc.collect()  # PERF: the command's parser and the file's reader are in cycles; what follows takes their place
    stream = None if settings.log_file is None else settings.log_file.open("ab", buffering=0)
    log = Log(settings.log_level, stream).bind(unit=settings.identity.unit)
    health = Health(settings.health_file, Notifier.from_environment(os.environ))
    agent = Agent(settings, log, health=health, on_connected=let_go)
    second = Event()

    def on_signal() -> None:
        if agent.stopping:
            second.set()
        agent.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, on_signal)
    agent.start()
    health.ready()
    beats = gevent.spawn(health.keep_beating)
    rotation = gevent.spawn(Rotation(settings, log).run)
    agent.wait()
    draining = gevent.spawn(agent.drain, settings.grace_s)
    gevent.wait([draining, second], count=1)
    beats.kill()
    rotation.kill()
    return 0
