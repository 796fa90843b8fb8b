"""What a row is: contenders that are asked the same, and how they are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loadtests.bench.report import Figure
from loadtests.bench.servers import Server

POLICY_BODY = b'{"ok":true}'


@dataclass(frozen=True, slots=True)
class Contender:
    """One server of a row: how it starts, what it is asked with which tokens, what it must answer.

    Shapes: `body` None: any; `warm_requests` at least are answered before the first round; `policy` False: it lets
    everybody in. With `body_bytes` it is sent POSTs.
    """

    name: str
    start: Callable[[], Server]
    path: str
    body: bytes | None = POLICY_BODY
    ready: Callable[[Server], None] | None = None
    tokens: str = ""
    warm_requests: int = 1
    body_bytes: int = 0
    connections: int = 32
    policy: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """`measure` (seconds, rounds) where the row is not just load on one contender after another."""

    name: str
    tokens: str
    contenders: tuple[Contender, ...]
    measure: Callable[[float, int], list[Figure]] | None = None
