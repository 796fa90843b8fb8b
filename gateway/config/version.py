"""One numbered version of the configuration document, as the database has it and a machine keeps it on its disk."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes: `digest` is the snapshot's; `author` is who is said to have made it, `actor` the login that added it."""

    number: int
    digest: str
    document: str
    author: str
    reason: str
    actor: str
    at: datetime


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A version without its text, for a list of them."""

    number: int
    digest: str
    author: str
    reason: str
    actor: str
    at: datetime
