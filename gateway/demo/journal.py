"""What callers wrote at a demo unit, one JSON line each, so that a restart finds it again."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from gateway.demo.fhir_data import Resource


class Journal:
    """A file that is appended to; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self, most: int) -> list[Resource]:
        """The last `most` resources; the file is shortened to them, and to whole lines."""
        if self._path is None or not self._path.exists():
            return []
        resources = [found for line in self._path.read_bytes().splitlines() if (found := _resource(line))][-most:]
        shorter = self._path.with_suffix(".new")
        shorter.touch(mode=0o600)
        shorter.write_bytes(b"".join(map(_line, resources)))
        shorter.replace(self._path)
        return resources

    def append(self, resource: Resource) -> None:
        """Add one, for its owner alone to read."""
        if self._path is None:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, _line(resource))
        finally:
            os.close(descriptor)


def _line(resource: Resource) -> bytes:
    return orjson.dumps(resource, option=orjson.OPT_APPEND_NEWLINE)


def _resource(line: bytes) -> Resource | None:
    try:
        found = orjson.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "id" in found and "resourceType" in found else None
