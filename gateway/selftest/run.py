"""The matrix, sent to a gateway: each cell's answer against what its document says."""

from __future__ import annotations

import http.client
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from gateway.selftest.model import Cell, Document, World, as_expected, reads_records, target, verdict
from gateway.selftest.tokens import Tokens

LIMIT_S = 20.0
REVOKED_WITHIN_S = 3.0
_PATIENCE = 40
"""How often a request is repeated that a rate limit refused."""

Tell = Callable[[str], None]


@dataclass(slots=True)
class Outcome:
    """What has become of the cells. Shapes: `wrong` (cell, what was wanted, the status); `left` why -> how many."""

    right: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[Cell, str, int]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


class Unreachable(RuntimeError):
    """The gateway does not answer; the message says why."""


class Gateway:
    """A kept connection to a gateway."""

    def __init__(self, url: str, *, verify: bool = True) -> None:
        self._parts = urlsplit(url)
        self._context = ssl.create_default_context() if verify else ssl._create_unverified_context()  # noqa: S323
        self._connection: http.client.HTTPConnection | None = None
        self.held_back = 0
        """How often a rate limit refused."""

    def ask(
        self, method: str, path: str, token: str | None, body: bytes | None = None, kind: str = ""
    ) -> tuple[int, bool]:
        """The status of the answer, and whether it is the gateway's own; what a limit refuses is asked again later.

        Raises: Unreachable.
        """
        for _ in range(_PATIENCE):
            answer = self._once(method, path, token, body, kind)
            if answer.status != 429:
                break
            self.held_back += 1
            time.sleep(min(float(answer.headers.get("Retry-After") or 1), 5.0))
        return answer.status, answer.headers.get("Relay-Source") in (None, "gateway")

    def _once(
        self, method: str, path: str, token: str | None, body: bytes | None, kind: str
    ) -> http.client.HTTPResponse:
        fields = {"Authorization": f"Bearer {token}"} if token else {}
        if kind:
            fields["Content-Type"] = kind
        for last in (False, True):
            try:
                connection = self._connected()
                connection.request(method, path, body, fields)
                answer = connection.getresponse()
                answer.read()
                return answer
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if last:
                    why = getattr(error, "strerror", None) or error or type(error).__name__
                    raise Unreachable(f"{self._parts.netloc}: {why}") from None
        raise AssertionError("unreachable")

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = self._parts.hostname or "", self._parts.port
            if self._parts.scheme == "https":
                self._connection = http.client.HTTPSConnection(host, port, timeout=LIMIT_S, context=self._context)
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def run(
    document: Document,
    matrix: Iterable[Cell],
    world: World,
    tokens: Tokens,
    gateway: Gateway,
    *,
    with_records: bool = False,
    tell: Tell = lambda text: None,
    judge: Callable[[Document, Cell], str] = verdict,
) -> Outcome:
    """Send every cell that can be judged. `with_records`: also what would read or write something of a person.

    Shapes: `judge(document, cell)` as gateway.selftest.model.verdict.
    Raises: Unreachable.
    """
    found = Outcome()
    matrix = list(matrix)
    revoked = _revoked(document, matrix, world, tokens, gateway)
    for number, cell in enumerate(matrix):
        if number % 200 == 199:
            tell(f"{number + 1} cells, {len(found.wrong)} wrong")
        wanted = judge(document, cell)
        why = _left_out(document, cell, wanted, tokens, with_records)
        if why:
            found.left[why] += 1
            continue
        token = _token(document, cell, world, tokens, revoked)
        if token == "":
            found.left["nothing can be revoked: no token service"] += 1
            continue
        status, own = gateway.ask(cell.method, target(document, cell, world), token)
        # What a unit or a cloud service refuses itself has passed the gateway.
        if as_expected(wanted, status) if own else wanted == "passes":
            found.right[cell.role] += 1
        else:
            found.wrong.append((cell, wanted, status))
    return found


def _left_out(document: Document, cell: Cell, wanted: str, tokens: Tokens, with_records: bool) -> str:
    """Why a cell is not sent, "" if it is."""
    if not wanted:
        return "its query, body, purpose or consent decides"
    if cell.state != "none" and not tokens.can_sign(cell.role):
        return "its role has no key to sign with here"
    if wanted == "passes" and not with_records and reads_records(document, cell):
        return "it would touch records"
    return ""


def _token(document: Document, cell: Cell, world: World, tokens: Tokens, revoked: dict[str, str]) -> str | None:
    """The token of a cell, None for none, "" if it cannot be made."""
    if cell.state == "none":
        return None
    if cell.state == "revoked":
        return revoked[cell.role]
    return tokens.make(cell.role, cell.state, _claims(document, cell, world), int(time.time()))


def _claims(document: Document, cell: Cell, world: World) -> dict[str, object]:
    claims = world.claims(document, cell.route)
    scopes = document["roles"][cell.role].get("scopes")
    if scopes:
        claims["scope"] = " ".join(scopes)
    return claims


def _revoked(document: Document, matrix: list[Cell], world: World, tokens: Tokens, gateway: Gateway) -> dict[str, str]:
    """For each role a token that every worker can be expected to refuse; "" where it cannot be had."""
    firsts = {cell.role: cell for cell in reversed(matrix) if cell.state == "revoked" and tokens.can_sign(cell.role)}
    made = {
        role: _revoke(tokens.make(role, "revoked", _claims(document, cell, world), int(time.time())), gateway)
        for role, cell in firsts.items()
    }
    if any(made.values()):
        time.sleep(REVOKED_WITHIN_S)
    return made


def _revoke(token: str, gateway: Gateway) -> str:
    form = urlencode({"token": token}).encode()
    status, _ = gateway.ask("POST", "/auth/v1/revoke", None, form, "application/x-www-form-urlencoded")
    return token if status == 200 else ""
