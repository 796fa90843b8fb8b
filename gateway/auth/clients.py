"""Who asks the token service: a client or an app that proves itself with a signed assertion (`private_key_jwt`), or an
app that is a public client and has nothing to prove itself with.

Source: RFC 7523, 2.2 and 3; RFC 6749, 2.1.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fastpath.token import TokenError, Verified
from gateway.auth.attempts import Attempts
from gateway.config.snapshot import CompiledApp, CompiledClient, CompiledTokens
from gateway.errors import ClientUnauthenticated

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ALGORITHMS: Final = ("EdDSA", "ES256", "ES384", "PS256", "RS256")
LEEWAY_S: Final = 120
"""At least the leeway of any configuration: until then a used assertion is remembered."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Either a client or an app. Shapes: `proven` means by an assertion; a public app only says its name."""

    client: CompiledClient | None = None
    app: CompiledApp | None = None
    proven: bool = True

    @property
    def id(self) -> str:
        if self.client is not None:
            return self.client.id
        return self.app.id if self.app is not None else ""


class Spent(Protocol):
    """See store.tokens.TokenStore."""

    def spend(self, digest: bytes, until_s: float) -> bool: ...


class Clients:
    """Authenticates clients."""

    def __init__(self, store: Spent, attempts: Attempts, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self.attempts = attempts
        self._now = now

    def identify(self, tokens: CompiledTokens, form: Mapping[str, str], address: str) -> Caller:
        """The client or app that asks; an assertion is used then.

        Raises: ClientUnauthenticated, RateLimited, DatabaseUnavailable, DatabaseTimeout.
        Yields to the hub: yes.
        """
        app = tokens.apps.get(form.get("client_id", ""))
        if app is not None and app.public and "client_assertion" not in form and "client_assertion_type" not in form:
            return Caller(app=app, proven=False)
        with self.attempts.one(address):
            return self._authenticate(tokens, form)

    def _authenticate(self, tokens: CompiledTokens, form: Mapping[str, str]) -> Caller:
        assertion = form.get("client_assertion")
        if assertion is None or form.get("client_assertion_type") != ASSERTION_TYPE:
            raise ClientUnauthenticated()
        try:
            verified = tokens.verifier.verify(assertion, self._now())
        except TokenError:
            raise ClientUnauthenticated() from None
        owner: CompiledClient | CompiledApp = verified.key.attachment
        named = form.get("client_id", owner.id)
        if verified.subject != owner.id or named != owner.id or not verified.jti or not _is_for_us_alone(verified):
            raise ClientUnauthenticated()
        # SEC: by the client too, or one could use up another's assertions by guessing their ids.
        digest = hashlib.sha256(f"{owner.id}\n{verified.jti}".encode()).digest()
        if not self._store.spend(digest, verified.expires_at_s + LEEWAY_S):
            raise ClientUnauthenticated()
        return Caller(client=owner) if isinstance(owner, CompiledClient) else Caller(app=owner)


def _is_for_us_alone(assertion: Verified) -> bool:
    """SEC: one that names another server too could have been given to that one, and be shown here by it.

    Source: draft-ietf-oauth-rfc7523bis.
    """
    aud = assertion.claims["aud"]
    return isinstance(aud, str) or len(aud) == 1
