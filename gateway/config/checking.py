"""What the cross-checks share: the document, the names that exist, and the faults found so far."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.config.fault import WHOLE, Fault, step
from gateway.config.model import Document


@dataclass(slots=True)
class Checking:
    """Shapes: `dropped` holds, by section, entries that the text has but that were too faulty to decode."""

    document: Document
    dropped: Mapping[str, Collection[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def add(self, path: str, reason: str) -> None:
        self.faults.append(Fault(path, reason))

    def entries(self, section: str) -> Iterator[tuple[str, str, Any]]:
        """(path, name, entry) of every sound entry of a section."""
        for name, entry in getattr(self.document, section).items():
            yield step(step(WHOLE, section), name), name, entry

    def find(self, section: str, name: str, path: str) -> Any:
        """The entry a reference names; None if there is none to check further, noted unless it was dropped."""
        if not self.exists(section, name):
            self.add(path, f"there is no {section.removesuffix('s')} {name}")
        return getattr(self.document, section).get(name)

    def exists(self, section: str, name: str) -> bool:
        """Does the text have an entry of that name, sound or not?"""
        return name in getattr(self.document, section) or name in self.dropped.get(section, ())

    def each(self, items: tuple[str, ...], path: str) -> Iterator[tuple[str, str]]:
        """(path, item) of a list of names; one given twice is a fault and comes once."""
        seen: set[str] = set()
        for index, item in enumerate(items):
            below = step(path, index)
            if item in seen:
                self.add(below, f"{item} is given twice")
            else:
                seen.add(item)
                yield below, item
