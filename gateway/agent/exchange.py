"""One relayed request at the unit: admitted, dispatched to the local service, answered; or refused, exactly once.

Runs in its own greenlet. The link tells it what arrives (`feed`, `go`) and takes what it has to say.
"""

from __future__ import annotations

import re
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent.event import Event

from gateway.agent.allowlist import TargetRefused, canonical_path
from gateway.agent.context_token import ContextRefused
from gateway.agent.fields import CONTEXT, PLACES, forwarded
from gateway.agent.local_service import ConnectFailed
from gateway.agent.response import ResponseBroken, ResponseReader
from gateway.relay.frames import Oversize, RefusalReason, Request, ResetCode, Response

if TYPE_CHECKING:
    from gateway.agent.local_service import LocalConnection
    from gateway.agent.log import Log
    from gateway.agent.response import ResponseHead
    from gateway.agent.services import Service, Services
    from gateway.relay.frames import Fields

_TRACEPARENT = re.compile(r"[0-9a-f]{2}(?:-[0-9a-f]{1,64}){3}")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
MARGIN = 0.1
MAX_MARGIN_S = 0.5
"""How much earlier than the gateway's deadline the unit gives up, so that its own, truer reason arrives in time."""


class Carrier(Protocol):
    """What an exchange asks of the link it came on. Every method does nothing once the stream has ended."""

    def send_ack(self, stream: int) -> bool: ...

    def send_response(self, stream: int, response: Response, body: bytes, end: bool) -> bool: ...

    def send_data(self, stream: int, body: bytes, end: bool) -> bool:
        """Yields to the hub until there is room for more."""

    def reset(self, stream: int, code: ResetCode, reason: str, dispatched: bool) -> None: ...

    def consumed(self, stream: int, size: int) -> None: ...


class Failed(Exception):
    """The request cannot be answered; becomes a RESET. `dispatched` None: say what is known by then."""

    def __init__(self, code: ResetCode, reason: str, dispatched: bool | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.dispatched = dispatched


class StreamGone(Exception):
    """The gateway ended the stream: nobody waits for an answer."""


class Exchange:
    """Units: `started_s` and the deadline monotonic seconds."""

    def __init__(self, carrier: Carrier, services: Services, log: Log, stream: int, request: Request) -> None:
        left_s = request.deadline_ms / 1000
        self._carrier = carrier
        self._services = services
        self._service: Service | None = None
        self._log = log
        self._stream = stream
        self._request = request
        self._started_s = time.monotonic()
        self._deadline_s = self._started_s + left_s - min(left_s * MARGIN, MAX_MARGIN_S)
        self._body: deque[bytes] = deque()
        self._body_bytes = 0
        self._in_hand_bytes = 0
        self._body_ended = False
        self._end_taken = False
        self._body_arrived = Event()
        self._released = Event()
        self._bodiless = False
        self._connection: LocalConnection | None = None
        self._dispatched = False
        self._dispatched_s = 0.0
        self._uploader: gevent.Greenlet | None = None
        self._uploaded = False
        self._finished = False
        self._greenlet: gevent.Greenlet | None = None
        self._answer_bytes = 0
        if not request.hold:
            self._released.set()

    # --- what the link says

    def feed(self, body: bytes, end: bool) -> None:
        """More of the request's body."""
        if self._finished:
            self._carrier.consumed(self._stream, len(body))
            return
        if body:
            self._body.append(body)
            self._body_bytes += len(body)
            if self._greenlet is not None and self._too_large():
                greenlet, self._greenlet = self._greenlet, None
                greenlet.kill(self._over_the_limit(), block=False)
        self._body_ended = self._body_ended or end
        self._body_arrived.set()

    def go(self) -> None:
        """A held request may be dispatched."""
        self._released.set()

    @property
    def outlives_its_stream(self) -> bool:
        """Is its answer wanted although the gateway no longer waits for it?"""
        return False

    @property
    def holds_place(self) -> bool:
        """Does a local service have it?"""
        return self._service is not None and not self._finished

    # --- the greenlet

    def run(self) -> None:
        """Yields to the hub. Ends with an answer, a RESET, or silently if the gateway ended the stream."""
        self._greenlet = gevent.getcurrent()
        try:
            self._relay()
        except StreamGone:
            self._tell("abandoned")
        except Failed as failure:
            dispatched = self._dispatched if failure.dispatched is None else failure.dispatched
            self._tell("failed", code=failure.code.name, reason=failure.reason, dispatched=dispatched)
            self._carrier.reset(self._stream, failure.code, failure.reason, dispatched)
        except Exception as error:
            self._log.error("exchange_fault", request=self._request.id, error=type(error).__name__)
            self._carrier.reset(self._stream, ResetCode.INTERNAL, "agent fault", self._dispatched)
        finally:
            self._clean_up()

    def _relay(self) -> None:
        service, target = self._admit()
        if self._answered_before():
            return
        connection = self._connect(service)
        if self._wait_for_go() and connection.reused and connection.stale():
            connection.close()
            connection = self._connect(service, fresh=True)
        self._promise()
        connection = self._dispatch(connection, service, target)
        reader = ResponseReader(self._request.method)
        self._answer(connection, reader)
        if reader.reusable and self._uploaded:
            self._connection = None
            service.pool.release(connection)

    def _answered_before(self) -> bool:
        """Was there nothing left to do? A plain request has never been seen before. Raises: Failed."""
        return False

    def _promise(self) -> None:
        """What must be durable before the local service sees a byte. Raises: Failed."""

    def _clean_up(self) -> None:
        """Whatever happened, a greenlet's kill included: nothing runs on, no socket stays open, no credit is lost."""
        if self._uploader is not None:
            self._uploader.kill(block=False)
        if self._connection is not None:
            self._connection.close()
        if self._service is not None:
            self._services.leave(self._service)
        self._finished = True
        self._in_hand_bytes += sum(map(len, self._body))
        self._body.clear()
        self._let_go_of_body()

    def _admit(self) -> tuple[Service, str]:
        """The service and the request target it is asked for. Raises: Failed, with nothing dispatched."""
        request = self._request
        try:
            path = canonical_path(request.target)
        except TargetRefused as error:
            raise Failed(ResetCode.REFUSED, "target", False) from error
        service = self._services.find(path)
        if service is None:
            raise Failed(ResetCode.REFUSED, "no service for this path", False)
        limits = service.settings
        if not limits.allow.admits(request.method, limits.local(path)):
            raise Failed(ResetCode.REFUSED, "not allowed at this unit", False)
        self._check_context()
        self._take_place(service)
        return service, limits.local(request.target)

    def _take_place(self, service: Service) -> None:
        limits = service.settings
        if not self._services.enter(service):
            raise Failed(ResetCode.SHED, "service busy", False)
        self._service = service
        if limits.deadline_s is not None:
            self._deadline_s = min(self._deadline_s, self._started_s + limits.deadline_s)
        if self._too_large():
            raise self._over_the_limit()

    def _too_large(self) -> bool:
        if self._service is None:
            return False
        return max(self._body_bytes, self._request.length or 0) > self._service.settings.request_max_bytes

    def _over_the_limit(self) -> Failed:
        return Failed(ResetCode.TOO_LARGE, RefusalReason.REQUEST_TOO_LARGE)

    def _check_context(self) -> None:
        verifier = self._services.context
        if verifier is None:
            return
        tokens = [value for name, value in self._request.fields if name == CONTEXT]
        try:
            if len(tokens) != 1:
                raise ContextRefused("malformed")
            verifier.verify(tokens[0], time.time())
        except ContextRefused as error:
            raise Failed(ResetCode.REFUSED, f"context: {error}", False) from error

    def _connect(self, service: Service, *, fresh: bool = False) -> LocalConnection:
        try:
            self._connection = service.pool.acquire(self._left_s(), fresh=fresh)
        except ConnectFailed as error:
            raise Failed(ResetCode.UPSTREAM_CONNECT, str(error), False) from error
        return self._connection

    # --- out

    def _wait_for_go(self) -> bool:
        """Was it held? Meanwhile the service may have closed a connection that it found idle. Raises: Failed."""
        if not self._request.hold:
            return False
        if not self._released.wait(self._left_s()):
            raise Failed(ResetCode.DEADLINE, "held", False)
        return True

    def _dispatch(self, connection: LocalConnection, service: Service, target: str) -> LocalConnection:
        """ACK, then the first bytes; the connection that took them.

        The rest of a body follows in a greenlet of its own, while the answer may already come. A kept connection that
        died without taking one byte is replaced, once: nothing was dispatched by then.
        """
        head = self._head(service.settings.target.authority, target)
        body = self._next_body()
        if not self._carrier.send_ack(self._stream):
            raise StreamGone
        first = memoryview(head + body)
        try:
            sent = self._send_first(connection, first)
        except OSError as error:
            if not connection.reused:
                raise Failed(ResetCode.UPSTREAM_CONNECT, type(error).__name__, False) from error
            connection.close()
            connection = self._connect(service, fresh=True)
            sent = self._send_first_or_fail(connection, first)
        if sent == len(first) and self._end_taken:
            self._let_go_of_body()
            self._uploaded = True
        else:
            self._uploader = gevent.spawn(self._upload, connection, first[sent:])
        return connection

    def _send_first(self, connection: LocalConnection, first: memoryview) -> int:
        """Raises: OSError if no byte was taken."""
        sent = connection.send_some(first, self._left_s())
        self._dispatched = True
        self._dispatched_s = time.monotonic()
        return sent

    def _send_first_or_fail(self, connection: LocalConnection, first: memoryview) -> int:
        try:
            return self._send_first(connection, first)
        except OSError as error:
            raise Failed(ResetCode.UPSTREAM_CONNECT, type(error).__name__, False) from error

    def _upload(self, connection: LocalConnection, rest: memoryview | bytes) -> None:
        """Write the rest of the request; a service that stops reading may still answer, so an error ends only this."""
        try:
            while True:
                if rest:
                    connection.send_all(rest, self._left_s())
                self._let_go_of_body()
                if self._end_taken:
                    break
                self._body_arrived.wait()
                self._body_arrived.clear()
                rest = self._next_body()
        except (OSError, Failed):
            return
        self._uploaded = True

    def _next_body(self) -> bytes:
        """What has arrived, framed for the local connection; in hand until `_let_go_of_body`.

        NOTE: the end may come alone, after the last byte was taken and while that is being written.
        """
        body = b"".join(self._body)
        self._body.clear()
        self._in_hand_bytes = len(body)
        self._end_taken = self._body_ended
        if self._request.length is not None or self._bodiless:
            return body
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return chunk + b"0\r\n\r\n" if self._body_ended else chunk

    def _let_go_of_body(self) -> None:
        """What was in hand is written, or nobody wants it any more: the gateway may send as much again."""
        size, self._in_hand_bytes = self._in_hand_bytes, 0
        self._carrier.consumed(self._stream, size)

    def _head(self, authority: str, target: str) -> bytes:
        request = self._request
        self._bodiless = request.length is None and self._body_ended and not self._body
        lines = [f"{request.method} {target} HTTP/1.1", f"host: {authority}"]
        lines += [f"{name}: {value}" for name, value in forwarded(request.fields)]
        lines += self._framing()
        if request.traceparent is not None and _TRACEPARENT.fullmatch(request.traceparent):
            lines += [] if _has(request, "traceparent") else [f"traceparent: {request.traceparent}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _framing(self) -> list[str]:
        request = self._request
        if request.length is None and not self._bodiless:
            return ["transfer-encoding: chunked"]
        length = request.length or 0
        return [f"content-length: {length}"] if length or request.method in _WITH_BODY else []

    # --- back

    def _answer(self, connection: LocalConnection, reader: ResponseReader) -> None:
        body = self._receive(connection, reader)
        while reader.head is None:
            body = self._receive(connection, reader)
        self._pass_on(connection, reader, reader.head, body)

    def _pass_on(self, connection: LocalConnection, reader: ResponseReader, head: ResponseHead, body: bytes) -> None:
        """Head and what is in hand, then the rest as it comes."""
        self._send_head(head, body, reader.complete)
        while not reader.complete:
            body = self._receive(connection, reader)
            if (body or reader.complete) and not self._carrier.send_data(self._stream, body, reader.complete):
                raise StreamGone
        self._tell("relayed", status=head.status)

    def _receive(self, connection: LocalConnection, reader: ResponseReader) -> bytes:
        """The next body bytes; none if only the head or framing came."""
        body = self._received(connection, reader)
        self._answer_bytes += len(body)
        announced = 0 if reader.head is None or reader.complete else reader.head.length or 0
        if max(self._answer_bytes, announced) > self._answer_limit():
            raise Failed(ResetCode.TOO_LARGE, "response too large")
        return body

    def _answer_limit(self) -> int:
        return self._service.settings.response_max_bytes if self._service is not None else 0

    def _received(self, connection: LocalConnection, reader: ResponseReader) -> bytes:
        try:
            data = connection.receive(self._left_s())
            if data:
                return b"".join(reader.feed(data))
            reader.end_of_stream()
            return b""
        except ResponseBroken as error:
            raise Failed(ResetCode.UPSTREAM_PROTOCOL, str(error)) from error
        except TimeoutError as error:
            raise Failed(ResetCode.UPSTREAM_TIMEOUT, "no answer in time") from error
        except OSError as error:
            raise Failed(ResetCode.UPSTREAM_PROTOCOL, type(error).__name__) from error

    def _send_head(self, head: ResponseHead, body: bytes, end: bool) -> None:
        spent_ms = int((time.monotonic() - self._dispatched_s) * 1000)
        response = Response(head.status, self._told(head.fields), head.length, spent_ms)
        try:
            alive = self._carrier.send_response(self._stream, response, body, end)
        except Oversize as error:
            raise Failed(ResetCode.UPSTREAM_PROTOCOL, "head too large") from error
        if not alive:
            raise StreamGone

    def _told(self, fields: Fields) -> Fields:
        """The answer's fields; what the gateway can ask for is named as it asks for it."""
        if self._service is None or not any(name in PLACES for name, _ in fields):
            return fields
        asked = self._service.settings.asked
        return [(name, asked(value) if name in PLACES else value) for name, value in fields]

    # ---

    def _left_s(self) -> float:
        """Raises: Failed when nothing is left."""
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            code = ResetCode.UPSTREAM_TIMEOUT if self._dispatched else ResetCode.DEADLINE
            raise Failed(code, "no answer in time" if self._dispatched else "deadline")
        return left_s

    def _tell(self, event: str, **fields: object) -> None:
        spent_ms = int((time.monotonic() - self._started_s) * 1000)
        write = self._log.info if event == "failed" else self._log.debug
        write(f"exchange_{event}", request=self._request.id, spent_ms=spent_ms, **fields)


def _has(request: Request, name: str) -> bool:
    return any(own == name for own, _ in request.fields)
