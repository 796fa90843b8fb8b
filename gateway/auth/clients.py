"""Who asks the token service: a client that proves itself with a signed assertion (`private_key_jwt`).

Source: RFC 7523, 2.2 and 3.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from fastpath.token import TokenError
from gateway.auth.attempts import Attempts
from gateway.config.snapshot import CompiledClient, CompiledTokens
from gateway.errors import ClientUnauthenticated

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ALGORITHMS: Final = ("EdDSA", "ES256", "ES384", "PS256", "RS256")
LEEWAY_S: Final = 120
"""At least the leeway of any configuration: until then a used assertion is remembered."""


class Spent(Protocol):
    """See store.tokens.TokenStore."""

    def spend(self, digest: bytes, until_s: float) -> bool: ...


class Clients:
    """Authenticates clients."""

    def __init__(self, store: Spent, attempts: Attempts, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._attempts = attempts
        self._now = now

    def authenticate(self, tokens: CompiledTokens, form: Mapping[str, str], address: str) -> CompiledClient:
        """The client whose assertion this is; the assertion is used then.

        Raises: ClientUnauthenticated, RateLimited, DatabaseUnavailable, DatabaseTimeout.
        Yields to the hub: yes.
        """
        with self._attempts.one(address):
            assertion = form.get("client_assertion")
            if assertion is None or form.get("client_assertion_type") != ASSERTION_TYPE:
                raise ClientUnauthenticated()
            try:
                verified = tokens.verifier.verify(assertion, self._now())
            except TokenError:
                raise ClientUnauthenticated() from None
            client: CompiledClient = verified.key.attachment
            named = form.get("client_id", client.id)
            if verified.subject != client.id or named != client.id or not verified.jti:
                raise ClientUnauthenticated()
            # SEC: by the client too, or one could use up another's assertions by guessing their ids.
            digest = hashlib.sha256(f"{client.id}\n{verified.jti}".encode()).digest()
            if not self._store.spend(digest, verified.expires_at_s + LEEWAY_S):
                raise ClientUnauthenticated()
        return client
