"""A request with an idempotency key: run once, its answer kept, and given again to whoever repeats it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from gateway.agent.exchange import Carrier, Exchange, Failed, StreamGone
from gateway.agent.ledger import KeyRefused
from gateway.agent.ledger_store import LedgerUnavailable
from gateway.relay.frames import RefusalReason, Request, ResetCode, Response

if TYPE_CHECKING:
    from gateway.agent.ledger import Claim, KeptAnswer, Ledger
    from gateway.agent.local_service import LocalConnection
    from gateway.agent.log import Log
    from gateway.agent.response import ResponseReader
    from gateway.agent.services import Services

REPLAYED = ("idempotent-replayed", "true")
"""Marks an answer that was kept."""


class KeyedExchange(Exchange):
    """Goes on without its stream once the local service has the whole request: the answer is kept for the repeat."""

    def __init__(
        self, carrier: Carrier, services: Services, log: Log, stream: int, request: Request, ledger: Ledger
    ) -> None:
        super().__init__(carrier, services, log, stream, request)
        self._ledger = ledger
        self._claim: Claim | None = None
        self._digest = hashlib.sha256()

    def feed(self, body: bytes, end: bool) -> None:
        if not self._finished:
            self._digest.update(body)
        super().feed(body, end)

    @property
    def outlives_its_stream(self) -> bool:
        return self._dispatched and self._body_ended

    def _answered_before(self) -> bool:
        request = self._request
        try:
            self._claim = self._ledger.claim(request.idempotency or "", request.method, request.target)
        except KeyRefused as refusal:
            dispatched = None if refusal.reason == RefusalReason.OUTCOME_UNKNOWN else False
            raise Failed(ResetCode.REFUSED, refusal.reason, dispatched) from refusal
        if self._claim.kept is None:
            return False
        self._replay(self._claim, self._claim.kept)
        return True

    def _replay(self, claim: Claim, kept: KeptAnswer) -> None:
        """The kept answer, if this is the request that it belongs to."""
        self._wait_for_go()
        while True:
            self._next_body()
            self._let_go_of_body()
            if self._body_ended:
                break
            if not self._body_arrived.wait(self._left_s()):
                raise Failed(ResetCode.DEADLINE, "body", False)
            self._body_arrived.clear()
        if not claim.matches(self._digest.digest()):
            raise Failed(ResetCode.REFUSED, RefusalReason.KEY_REUSED, False)
        if not self._carrier.send_ack(self._stream):
            raise StreamGone
        fields = [*self._told(kept.fields), REPLAYED]
        self._send_whole(Response(kept.status, fields, len(kept.body)), kept.body)
        self._tell("replayed", status=kept.status)

    def _send_whole(self, response: Response, body: bytes) -> None:
        if not self._carrier.send_response(self._stream, response, body, True):
            raise StreamGone

    def _promise(self) -> None:
        if self._claim is None:
            raise TypeError("a keyed request that claimed no key")
        try:
            self._claim.intend()
        except LedgerUnavailable as error:
            raise Failed(ResetCode.REFUSED, RefusalReason.LEDGER_UNAVAILABLE, False) from error

    def _answer(self, connection: LocalConnection, reader: ResponseReader) -> None:
        """Keep a whole answer before its last byte leaves; one too large to keep is passed on as it comes."""
        pieces = [self._receive(connection, reader)]
        while not reader.complete and self._answer_bytes <= self._ledger.answer_max_bytes:
            pieces.append(self._receive(connection, reader))
        body = b"".join(pieces)
        if reader.head is None:
            raise TypeError("a complete answer without a head")
        if reader.complete and len(body) <= self._ledger.answer_max_bytes:
            self._keep(reader, body)
        else:
            self._spend()
        self._pass_on(connection, reader, reader.head, body)

    def _keep(self, reader: ResponseReader, body: bytes) -> None:
        head, claim = reader.head, self._claim
        if head is None or claim is None:
            return
        digest = self._digest.digest() if self._body_ended else None
        try:
            claim.keep(head.status, head.fields, body, digest)
        except LedgerUnavailable as error:
            # The answer is true all the same; a repeat will be told that its outcome is not known.
            self._log.error("answer_not_kept", request=self._request.id, reason=str(error))

    def _spend(self) -> None:
        if self._claim is None:
            return
        try:
            self._claim.spend()
        except LedgerUnavailable as error:
            self._log.error("answer_not_kept", request=self._request.id, reason=str(error))

    def _clean_up(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.close(self._dispatched)
        super()._clean_up()
