"""Texts that occur nowhere else, one for each kind of thing that is personal, and how to find them. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

KINDS = ("name", "identifier", "token", "body", "query", "field", "key")
"""What a text stands for: a person's name, a record's id, a bearer token, a body, a query parameter, a header field,
an idempotency key."""
SHORTEST = 16
"""Characters of a mark: what is shorter could stand there by chance."""


@dataclass(frozen=True, slots=True)
class Marks:
    """One text a kind, in letters and digits, so that no encoding of text changes it."""

    texts: Mapping[str, str]
    _plain: dict[bytes, str] = field(init=False, repr=False)
    _coded: dict[bytes, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for kind, text in self.texts.items():
            if len(text) < SHORTEST or not text.isalnum() or not text.isascii():
                raise ValueError(f"the mark of {kind} is not {SHORTEST} letters and digits or more")
        for name, spell in (("_plain", plain), ("_coded", coded)):
            found = {spelling: kind for kind, text in self.texts.items() for spelling in spell(text)}
            object.__setattr__(self, name, found)

    def __getitem__(self, kind: str) -> str:
        return self.texts[kind]

    def find(self, data: bytes) -> set[str]:
        """The kinds of which a text stands in the data, in any of its spellings."""
        lower = data.lower()
        found = {kind for spelling, kind in self._plain.items() if spelling in lower}
        return found | {kind for spelling, kind in self._coded.items() if spelling in data}


def make_marks(random_hex: Callable[[int], str]) -> Marks:
    """Fresh marks. Shapes: `random_hex(bytes)`, as secrets.token_hex."""
    return Marks({kind: f"cg{kind}{random_hex(8)}" for kind in KINDS})


def plain(text: str) -> set[bytes]:
    """The text itself and its hexadecimal digits, in lower case."""
    return {text.lower().encode(), text.encode().hex().encode()}


def coded(text: str) -> set[bytes]:
    """The text as a piece of something in base64."""
    raw, found = text.encode(), set()
    for shift in range(3):
        # Which characters of base64 a text gives depends on where it begins; those at its ends on what is beside it.
        whole = base64.b64encode(bytes(shift) + raw)
        piece = whole[-(-shift * 8 // 6) + 1 : (shift + len(raw)) * 8 // 6 - 1]
        found |= {piece, piece.translate(_URL_SAFE)}
    return found


_URL_SAFE = bytes.maketrans(b"+/", b"-_")
