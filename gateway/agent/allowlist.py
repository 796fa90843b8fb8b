"""Which methods and local paths this unit lets the gateway ask for.

The unit's own last word: what is refused here was never sent to the local service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_TARGET_BYTES = 16_384
_METHOD = re.compile(r"[A-Z]{1,32}")
_NEVER = frozenset({"CONNECT", "TRACE"})
_QUERY = re.compile(r"[\x21\x22\x24-\x7e]*")
_SEGMENT = re.compile(r"(?:[\x21\x22\x24\x26-\x2e\x30-\x3e\x40-\x5b\x5d-\x7e]|%[0-9A-Fa-f]{2})*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class TargetRefused(ValueError):
    """A request target that is not in canonical form."""


def canonical_path(target: str) -> str:
    """The path of an origin-form target that is already canonical; the query is checked and left out.

    SEC: refuses instead of mending: the gateway normalised the target, so anything else here is a fault or an attack,
    and a local service may read `..`, `//`, `%2f` or `%2e` in its own way.

    Raises: TargetRefused.
    """
    if not target.startswith("/") or len(target) > MAX_TARGET_BYTES:
        raise TargetRefused("form")
    path, _, query = target.partition("?")
    if not _QUERY.fullmatch(query):
        raise TargetRefused("query")
    _check_segments(path.split("/")[1:])
    _check_escapes(path)
    return path


def _check_segments(segments: list[str]) -> None:
    for segment in segments:
        if segment in {".", ".."} or not _SEGMENT.fullmatch(segment):
            raise TargetRefused("segment")
    if "" in segments[:-1]:
        raise TargetRefused("empty segment")


def _check_escapes(path: str) -> None:
    if "%" not in path:
        return
    for digits in _ESCAPE.findall(path):
        byte = int(digits, 16)
        if byte < 0x20 or byte == 0x7F or byte in b"/\\" or byte in _UNRESERVED:
            raise TargetRefused("escape")
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), path).encode("latin-1")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TargetRefused("escape") from error


@dataclass(frozen=True, slots=True)
class Rule:
    """`method` is a method or `*`; a `*` segment is any one segment, a final `*` any non-empty rest."""

    method: str
    segments: tuple[str, ...]

    def admits(self, method: str, segments: list[str]) -> bool:
        if self.method not in {"*", method}:
            return False
        rest = self.segments[-1] == "*"
        if len(segments) < len(self.segments) or (len(segments) > len(self.segments) and not rest):
            return False
        if rest and segments[len(self.segments) - 1 :] == [""]:
            return False
        fixed = self.segments[:-1] if rest else self.segments
        return all(own in {"*", asked} for own, asked in zip(fixed, segments, strict=False))


def parse_rule(text: str) -> Rule:
    """`METHOD /path/*`. Raises: ValueError."""
    parts = text.split()
    if len(parts) != 2:
        raise ValueError(f"{text!r}: write METHOD /path or METHOD /path/*")
    method, path = parts
    if method != "*" and (not _METHOD.fullmatch(method) or method in _NEVER):
        raise ValueError(f"{text!r}: {method} is not a method that can be relayed")
    try:
        canonical_path(path)
    except TargetRefused as error:
        raise ValueError(f"{text!r}: the path is not in canonical form ({error})") from error
    segments = tuple(path.split("/")[1:])
    if "?" in path or any("*" in segment and segment != "*" for segment in segments):
        raise ValueError(f"{text!r}: a * stands for a whole segment, and a query cannot be listed")
    return Rule(method, segments)


EVERY_PATH = frozenset({Rule("*", ("*",)), Rule("*", ("",))})


class AllowList:
    """The rules together; one that admits is enough."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        """Without rules nothing is admitted."""
        self._rules = rules
        self._admits_every_path = set(rules) >= EVERY_PATH

    def admits(self, method: str, path: str) -> bool:
        """`path` is canonical."""
        if not _METHOD.fullmatch(method) or method in _NEVER:
            return False
        if self._admits_every_path:
            return True
        segments = path.split("/")[1:]
        return any(rule.admits(method, segments) for rule in self._rules)


EVERYTHING = AllowList(tuple(EVERY_PATH))
"""Any path; the default of a first run, with a warning."""
