"""Constraints of what the Admin API is sent, each once."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

UnitId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
KeyId = Annotated[str, Meta(pattern=r"^[!-.0-~]{1,128}$", description="an id without a slash")]
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9._-]{0,63}$")]
Number = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Limit = Annotated[int, Meta(ge=1, le=500)]
Reason = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
