"""What a session is, as the store has it, and what its refresh tokens are worth at a moment. Pure but for entropy.

A login begins a session: a family of refresh tokens, each for one use, and the access tokens they give. Who presents a
used token ends the whole session, with one exception: an answer may be lost on its way, so the same client may ask
once more within seconds, and gets the same successor.
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from gateway.auth.accounts import Account
from gateway.config.role_defaults import Lifetimes

REPEAT_S: Final = 10.0
"""How long after its use a refresh token may be presented once more by the client that used it."""
CODE_LIFETIME_S: Final = 60
REFRESH_PREFIX: Final = "cgr_"
CODE_PREFIX: Final = "cgc_"
_TOKEN_BYTES = 32
_ID_BYTES = 16
_REFRESH = re.compile(r"cgr_[A-Za-z0-9_-]{43}\Z")
_CODE = re.compile(r"cgc_[A-Za-z0-9_-]{43}\Z")


def new_session_id() -> str:
    return secrets.token_urlsafe(_ID_BYTES)


def new_refresh_token() -> str:
    return REFRESH_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def new_code() -> str:
    return CODE_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def is_refresh_token(text: str) -> bool:
    return _REFRESH.match(text) is not None


def is_code(text: str) -> bool:
    return _CODE.match(text) is not None


def digest_of(token: str) -> bytes:
    """What is kept instead of the token. It has 256 bits of entropy, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True)
class Session:
    """Units: seconds since 1970. Shapes: `proof_key` is the thumbprint its refresh tokens are bound to, or empty."""

    id: str
    client: str
    role: str
    scope: str
    methods: tuple[str, ...]
    proof_key: str
    started_s: float
    used_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to begin. Units: `started_s` seconds since 1970, `ends_in_s` seconds from now."""

    id: str
    account: str
    client: str
    role: str
    issuer: str
    audience: str
    scope: str
    methods: tuple[str, ...]
    proof_key: str
    started_s: float
    ends_in_s: int


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token as the store has it. Units: seconds since 1970; 0: not yet."""

    until_s: float
    used_s: float
    used_by: bytes
    successor: bytes = field(repr=False)
    successor_used: bool
    repeated: bool


@dataclass(frozen=True, slots=True)
class Presented:
    """A refresh token with its session and account, locked. Units: `now_s` is the database's clock."""

    session: Session
    account: Account
    token: RefreshToken
    now_s: float


@dataclass(frozen=True, slots=True)
class Owned:
    """A refresh token and whose it is, looked at without a lock. `good`: neither it nor its session or account is over.

    Units: `until_s`, when the token runs out, seconds since 1970.
    """

    session: Session
    account: Account
    until_s: float
    good: bool


@dataclass(frozen=True, slots=True)
class Code:
    """An authorization code as the store has it, locked. Shapes: `session` is what it gave when used, or empty."""

    client: str
    redirect_uri: str
    challenge: str
    proof_key: str
    scope: str
    methods: tuple[str, ...]
    account: Account
    used: bool
    session: str
    expired: bool


class Verdict(enum.StrEnum):
    """What a presented refresh token is worth."""

    ROTATE = "rotate"
    REPEAT = "repeat"
    """Used a moment ago by the same client: it gets the same successor, once."""
    REUSED = "reused"
    """Used before: the session ends."""
    OVER = "over"
    """It, its session or its account has run out."""
    FOREIGN = "foreign"
    """Another client's, or bound to another key: nothing changes."""


def judge(presented: Presented, client: str, proof_key: str, proof: bytes, lifetimes: Lifetimes) -> Verdict:
    """What the token is worth when this client presents it.

    Shapes: `proof_key` is the thumbprint that the request proved, or empty; `proof` the digest of whatever proved the
    client, empty if nothing did.
    """
    session, token = presented.session, presented.token
    # SEC: who only found the token cannot end its session without the key it is bound to.
    if session.client != client or (session.proof_key and session.proof_key != proof_key):
        return Verdict.FOREIGN
    if token.used_s:
        return Verdict.REPEAT if _may_repeat(presented, proof) else Verdict.REUSED
    if presented.account.disabled or presented.account.role != session.role:
        return Verdict.OVER
    now_s = presented.now_s
    ends_s = min(token.until_s, session.ends_s, session.started_s + lifetimes.absolute_s)
    idle = lifetimes.idle_s and now_s >= session.used_s + lifetimes.idle_s
    return Verdict.OVER if now_s >= ends_s or idle else Verdict.ROTATE


def _may_repeat(presented: Presented, proof: bytes) -> bool:
    token = presented.token
    return (
        bool(proof)
        and proof == token.used_by
        and not token.repeated
        and not token.successor_used
        and bool(token.successor)
        and presented.now_s - token.used_s <= REPEAT_S
    )


def proof_of(client: str, *, authenticated: bool, proof_key: str) -> bytes:
    """The digest of what proved the client; empty if nothing did. SEC: a bare client_id proves nothing."""
    if proof_key:
        return hashlib.sha256(f"key\n{client}\n{proof_key}".encode()).digest()
    return hashlib.sha256(f"client\n{client}".encode()).digest() if authenticated else b""
