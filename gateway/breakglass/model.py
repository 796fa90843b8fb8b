"""A case of breaking the glass: who may look at whose record where, until when, why, and what a reviewer said. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST_S: Final = 4 * 3600
MAX_OPEN: Final = 5
"""Cases that one person may have open at a time."""
VERDICTS: Final = ("justified", "unjustified")


@dataclass(frozen=True, slots=True)
class NewCase:
    """Units: `for_s` seconds from now."""

    issuer: str
    subject: str
    audience: str
    role: str
    organisation: str
    unit: str
    patient: str
    reason: str
    for_s: int


@dataclass(frozen=True, slots=True)
class Case:
    """Units: moments in seconds since 1970; 0: not yet. `verdict` is "" until somebody has reviewed it."""

    id: str
    issuer: str
    subject: str
    role: str
    organisation: str
    unit: str
    patient: str
    reason: str
    started_s: float
    until_s: float
    ended_s: float
    reviewed_s: float
    verdict: str
    comment: str
    reviewer: str

    def as_json(self) -> dict[str, object]:
        """As callers see it; moments that have not come are null."""
        found: dict[str, object] = {
            "case": self.id, "subject": self.subject, "role": self.role, "organisation": self.organisation or None,
            "unit": self.unit, "patient": self.patient, "reason": self.reason, "started_at_s": self.started_s,
            "until_s": self.until_s, "ended_at_s": self.ended_s or None,
        }  # fmt: skip
        if self.reviewed_s:
            found["review"] = {"verdict": self.verdict, "comment": self.comment, "at_s": self.reviewed_s}
        return found
