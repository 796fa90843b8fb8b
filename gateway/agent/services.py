"""The unit's local services: which one answers a path, what each takes, and what is running at each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.agent.allowlist import EVERYTHING, AllowList
from gateway.agent.local_service import LocalService

if TYPE_CHECKING:
    import gevent

    from gateway.agent.endpoint import Endpoint
    from gateway.agent.ledger import Ledger
    from gateway.agent.settings import AgentSettings

_ABSOLUTE = re.compile(r"https?://([^/?#\\]*)((?:[/?#].*)?)", re.IGNORECASE)
"""Either scheme: a service behind a proxy of its own may not know by which one it is reached."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """One local HTTP service and its limits.

    Units: `*_s` seconds, `*_bytes` bytes of body. Shapes: `prefix` is "" for every path, else whole segments such as
    "/fhir"; `deadline_s` None: the gateway's alone.
    """

    target: Endpoint
    prefix: str = ""
    strip_prefix: bool = False
    allow: AllowList = EVERYTHING
    max_concurrent: int = 64
    deadline_s: float | None = None
    request_max_bytes: int = 67_108_864
    response_max_bytes: int = 268_435_456
    connect_timeout_s: float = 5.0
    idle_s: float = 4.0
    """An idle connection to the service is used again for so long; common servers close theirs after 5 s."""
    ca_file: str | None = None

    def serves(self, path: str) -> bool:
        """`path` is canonical."""
        return path.startswith(self.prefix) and path[len(self.prefix) : len(self.prefix) + 1] in {"", "/"}

    def local(self, target: str) -> str:
        """The path, or path and query, that the service itself is asked for."""
        rest = target[len(self.prefix) :] if self.strip_prefix else target
        return self.target.path + (rest if rest.startswith("/") else "/" + rest)

    def asked(self, place: str) -> str:
        """A `Location` of the service as the gateway asks for it: a path, if it lies below the target, else `place`.

        Shapes: absolute or a path (RFC 3986, 4.1); a relative one is right as it is.
        """
        absolute = _ABSOLUTE.fullmatch(place)
        path = place
        if absolute is not None:
            if absolute[1].lower() != self.target.authority.lower():
                return place
            path = absolute[2] if absolute[2].startswith("/") else f"/{absolute[2]}"
        base = self.target.path
        if not path.startswith("/") or not _below(path, base):
            return place
        rest = path[len(base) :]
        return self.prefix + rest if self.strip_prefix else rest if _below(rest, self.prefix) else place


def _below(path: str, base: str) -> bool:
    return path.startswith(base) and path[len(base) : len(base) + 1] in {"", "/", "?", "#"}


class Service:
    """A local service in use. `running`: requests it has been given and has not answered."""

    __slots__ = ("pool", "running", "settings")

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.pool = LocalService(
            settings.target,
            connect_timeout_s=settings.connect_timeout_s,
            idle_s=settings.idle_s,
            ca_file=settings.ca_file,
        )
        self.running = 0


class Services:
    """All of a unit's services, shared by its connections to the gateway.

    Shapes: `detached` are exchanges whose stream is gone and whose answer is still wanted, for the ledger. `on_full` is
    told True whenever a request is sent back because no service has a place, False once half of the places are free.
    """

    def __init__(self, settings: AgentSettings, ledger: Ledger | None = None) -> None:
        self.context = settings.context
        self.ledger = ledger
        self.on_full: Callable[[bool], None] = lambda full: None
        self._full = False
        self.detached: set[gevent.Greenlet] = set()
        self._services = [Service(one) for one in settings.services]
        self._places = sum(one.max_concurrent for one in settings.services)
        self._services.sort(key=lambda service: len(service.settings.prefix), reverse=True)

    def find(self, path: str) -> Service | None:
        """The longest prefix wins. `path` is canonical."""
        return next((service for service in self._services if service.settings.serves(path)), None)

    def enter(self, service: Service) -> bool:
        """Give a request a place, until `leave`; False if its service has none."""
        if service.running >= service.settings.max_concurrent:
            if all(one.running >= one.settings.max_concurrent for one in self._services):
                self._full = True
                self.on_full(True)
            return False
        service.running += 1
        return True

    def leave(self, service: Service) -> None:
        """The request has its answer."""
        service.running -= 1
        if self._full and 2 * sum(one.running for one in self._services) <= self._places:
            self._full = False
            self.on_full(False)

    def detach(self, greenlet: gevent.Greenlet) -> None:
        """Remember a greenlet until it ends."""
        self.detached.add(greenlet)
        greenlet.link(self.detached.discard)

    def close(self) -> None:
        for service in self._services:
            service.pool.close()
