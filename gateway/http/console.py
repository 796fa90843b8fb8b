"""The operators' page on the operations listener: three files, and what they show without a token."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import falcon
import orjson

from gateway.config.reload import ReloadFailed, WorkerStatus, ask, status
from gateway.config.snapshot import SnapshotHolder
from gateway.errors import NotFound, WorkersUnavailable

ANSWER_TIMEOUT_S: Final = 5.0
FILES: Final = {
    "/console": ("index.html", "text/html; charset=utf-8"),
    "/console/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console/console.js": ("console.js", "text/javascript; charset=utf-8"),
}
# SEC: the page runs its own script and asks its own listener, and nothing else; nobody may put it into a frame.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FIELDS: Final = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class ConsoleFile:
    """One of the page's files, as it was when the worker started."""

    def __init__(self, name: str, media_type: str) -> None:
        self._data = (files("gateway") / "console" / name).read_bytes()
        self._tag = f'"{hashlib.sha256(self._data).hexdigest()[:32]}"'
        self._media_type = media_type

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """The file, or 304."""
        for name, value in _FIELDS.items():
            resp.set_header(name, value)
        resp.set_header("ETag", self._tag)
        if req.get_header("If-None-Match") == self._tag:
            resp.status = falcon.HTTP_304
            return
        resp.content_type = self._media_type
        resp.data = self._data


class FleetStatus:
    """`/status/fleet`: units and workers of the machine, for who is on it; elsewhere a token is wanted."""

    def __init__(
        self,
        holder: SnapshotHolder,
        run_dir: Path,
        ops_bind: str,
        seen: Callable[[str], tuple[str | None, str]],
        revoked: Callable[[str], bool],
    ) -> None:
        """Shapes: `seen(unit)` -> when it was connected last (RFC 3339) and why it is away; `revoked(unit)`."""
        self._holder = holder
        self._run_dir = run_dir
        self._open = is_loopback(ops_bind)
        self._seen = seen
        self._revoked = revoked

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Yields to the hub: until the workers have answered. Raises: NotFound, WorkersUnavailable."""
        if not self._open:
            raise NotFound()
        try:
            workers = status(self._run_dir, timeout_s=ANSWER_TIMEOUT_S)
            answers = ask(self._run_dir, "units", timeout_s=ANSWER_TIMEOUT_S)
        except ReloadFailed:
            raise WorkersUnavailable(retry_after_s=1) from None
        held: dict[str, list[dict[str, Any]]] = {}
        by_worker: dict[int, list[dict[str, Any]]] = {}
        for answer in answers:
            by_worker[answer["pid"]] = answer["connections"]
            for connection in answer["connections"]:
                held.setdefault(connection["unit"], []).append(connection)
        document = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "workers": [_worker(worker, by_worker.get(worker.pid, [])) for worker in workers],
            "units": [self._unit(unit, held.get(unit, [])) for unit in sorted(self._holder.current.units)],
        }
        resp.content_type = falcon.MEDIA_JSON
        resp.set_header("Cache-Control", "no-store")
        resp.data = orjson.dumps(document)

    def _unit(self, unit: str, held: list[dict[str, Any]]) -> dict[str, Any]:
        compiled = self._holder.current.units[unit]
        last_seen, why = self._seen(unit)
        if self._revoked(unit):
            state = "revoked"
        elif not compiled.enabled:
            state = "disabled"
        elif held:
            state, why = "connected", ""
        else:
            state = "disconnected" if last_seen else "never-connected"
        times = [connection["rtt_ms"] for connection in held if connection["rtt_ms"] is not None]
        return {
            "unit": unit,
            "name": compiled.name,
            "state": state,
            "links": len(held),
            "streams": sum(connection["streams"] for connection in held),
            "rtt_ms": max(times, default=None),
            "agent": ", ".join(sorted({connection["agent"] for connection in held})),
            "last_seen": last_seen,
            "why": "" if state == "never-connected" else why,
        }


def _worker(worker: WorkerStatus, held: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pid": worker.pid,
        "version": worker.version,
        "digest": worker.digest,
        "phase": worker.phase,
        "refused": worker.refused,
        "links": len(held),
        "streams": sum(connection["streams"] for connection in held),
    }


def is_loopback(bind: str) -> bool:
    """Can only who is on the machine reach a listener that is bound there?"""
    if bind.startswith("unix:"):
        return True
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
