"""A body's bytes as they came, piece by piece, until somebody takes them."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Final

PIECE_BYTES: Final = 2_048
"""SEC: shorter pieces are joined: each costs some fifty bytes that nobody counts."""


def keep(pieces: MutableSequence[bytes], piece: bytes) -> None:
    """Put a piece behind those that are kept."""
    if pieces and len(pieces[-1]) + len(piece) <= PIECE_BYTES:
        pieces[-1] += piece
    else:
        pieces.append(piece)
