"""What a consent is asked about. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.errors import ConsentRefused, NotFound
from gateway.rbac.decide import Decision

CONSENT_REFUSED = Decision(False, "consent", error=ConsentRefused)
CONSENT_REFUSED_HIDDEN = Decision(False, "consent", hidden=True, error=NotFound)


@dataclass(frozen=True, slots=True)
class Question:
    """May this subject, in this role and for this purpose, have this patient's data at this unit? "" is none."""

    unit: str
    patient: str
    subject: str
    role: str
    purpose: str


class Hook(Protocol):
    """An entry point of the group `caregate.consent`."""

    def __call__(self, question: Question, deadline_ns: int) -> bool:
        """True permits, anything else denies; what it raises makes the request 503.

        Units: `deadline_ns` monotonic nanoseconds, past which nobody waits for the answer.
        """
