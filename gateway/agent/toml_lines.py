"""Where each key of a TOML document stands, which `tomllib` does not tell.

Only for messages: the document itself is read by tomllib, and what this does not understand has no line of its own.
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]
_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*(\.?)""")
_TABLE = re.compile(r"\s*(\[\[?)(.+?)\]\]?\s*(?:#.*)?")
_QUOTES = ('"""', "'''", '"', "'")


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of every table and key; an array's tables are counted from 0."""
    found: dict[Path, int] = {}
    arrays: dict[Path, int] = {}
    table: Path = ()
    open_quote, depth = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        rest = line
        if not open_quote and not depth:
            header = _TABLE.fullmatch(line)
            if header is not None:
                table = _table_path(header[1], _key_path(header[2])[0], arrays)
                found.setdefault(table, number)
                continue
            path, after = _key_path(line)
            if not path or not after.startswith("="):
                continue
            found.setdefault((*table, *path), number)
            rest = after[1:]
        open_quote, depth = _scan(rest, open_quote, depth)
    return found


def _table_path(opening: str, path: Path, arrays: dict[Path, int]) -> Path:
    resolved: Path = ()
    for place, part in enumerate(path):
        resolved += (part,)
        last = place == len(path) - 1
        if last and opening == "[[":
            arrays[resolved] = arrays.get(resolved, -1) + 1
        if resolved in arrays:
            resolved += (arrays[resolved],)
    return resolved


def _key_path(text: str) -> tuple[Path, str]:
    """The dotted key at the beginning, and what follows it."""
    parts: list[str] = []
    while (match := _PART.match(text)) is not None:
        parts.append(next(group for group in match.groups()[:3] if group is not None))
        text = text[match.end() :]
        if not match[4]:
            break
    return tuple(parts), text.lstrip()


def _scan(text: str, quote: str, depth: int) -> tuple[str, int]:
    """Follow strings and brackets to the end of a line: the multi-line string that is open, and how deep we are."""
    at = 0
    while at < len(text):
        if quote:
            at, quote = _inside(text, at, quote)
            continue
        opened = next((mark for mark in _QUOTES if text.startswith(mark, at)), "")
        if opened:
            quote = opened
            at += len(opened)
        elif text[at] == "#":
            break
        else:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(text[at], 0)
            at += 1
    return (quote if len(quote) == 3 else ""), max(depth, 0)


def _inside(text: str, at: int, quote: str) -> tuple[int, str]:
    if text[at] == "\\" and quote[0] == '"':
        return at + 2, quote
    if text.startswith(quote, at):
        return at + len(quote), ""
    return at + 1, quote
