"""One connection of a caller or a unit: requests in, responses out, until one side has had enough."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gevent import get_hub, getcurrent, kill

from fastpath.http import Head, HeadError, HeadReader
from fastpath.loop import RECEIVE_BYTES, Loop, Outbox
from fastpath.responses import BODY_TO_CLOSE, RequestIds, Response, encode_response
from gateway import errors as e
from gateway.bodies import ReadInterrupted
from gateway.http.application import TELLS
from gateway.http.problems import render
from gateway.http1.body import Body, NoBody
from gateway.http1.deadlines import TICK_NS, DeadlinePassed, Deadlines
from gateway.http1.limits import SECOND_NS, Limits

BODY_RECEIVE_BYTES = 122_880
"""Under the 128 KiB from which malloc maps memory anew for each read, see gateway.relay.mesh_link."""
NO_BODY = NoBody()
TCP_CLOSING = frozenset({7, 8, 9, 11})
"""TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING of tcpi_state."""

_LOOK_AGAIN_S = 0.1

REFUSALS: dict[str, type[e.ClientError]] = {
    "bad-request": e.BadRequest,
    "bad-framing": e.BadFraming,
    "bad-target": e.BadTarget,
    "target-too-long": e.TargetTooLong,
    "headers-too-large": e.HeadersTooLarge,
    "not-implemented": e.NotImplementedHere,
    "version": e.VersionNotSupported,
    "expectation": e.ExpectationFailed,
}


class Service(Protocol):
    """What all connections of a worker share."""

    application: Callable[..., Any]
    limits: Limits
    reader: HeadReader
    ids: RequestIds
    deadlines: Deadlines
    outbox: Outbox
    date: bytes
    draining: bool
    """A request that begins now is refused."""
    keep_alive: bool
    observed: bool

    def count(self) -> bool:
        """Count a request; False if it is the worker's last."""

    def before(self, environ: dict[str, Any]) -> None:
        """Hooks before the application; only called if `observed`."""

    def after(self, environ: dict[str, Any], response: Response, started_ns: int) -> None:
        """Access log and hooks after a request; only called if `observed`."""

    def failed(self, message: str) -> None:
        """Log the exception being handled."""


class Connection(Loop):
    """A connection over a plain gevent socket. What every request passes is in fastpath.loop, the rest is here.

    Units: `deadline_ns`, `slot`: see gateway.http1.deadlines.
    """

    __slots__ = ("_body_left_ns", "_continue", "_interrupted", "_later", "_reading_body")

    def __init__(self, service: Service, sock: Any, base: dict[str, Any]) -> None:
        """Shapes: `base` is the environ's part that is the same for every request of the connection."""
        raw = getattr(sock, "_sock", sock)
        super().__init__(
            service, sock, raw, get_hub(), getcurrent(), base, clock=time.monotonic_ns, tick_ns=TICK_NS
        )  # fmt: skip
        self._body_left_ns = 0
        self._continue = self._reading_body = self._interrupted = False
        self._later: Any = None
        base["wsgi.input"] = NO_BODY
        base["caregate.socket"] = sock
        base[TELLS] = True
        base["caregate.watch"] = self.watch

    # --- the loop

    def serve(self, unread: bytes = b"") -> None:
        """Answer requests until the connection ends; the caller closes the socket.

        Yields to the hub: yes.
        """
        self._unread = unread
        serve_one = self.serve_one
        try:
            while serve_one():
                pass
        except (OSError, DeadlinePassed):
            self._cut()
        except BaseException:
            self._cut()
            raise
        finally:
            self._leave()
            self._service.deadlines.forget(self)
            self._watcher.stop()
            self._watcher.close()
            if self._later is not None:
                self._later.stop()
                self._later.close()
            self._base = {}
            self.response.detach()

    def _refuse_unread(self, error: Exception) -> bool:
        """A head that was refused. Raises: what is no refusal."""
        if not isinstance(error, e.GatewayError):
            raise error
        return self._refuse(error)

    def _refuse_draining(self, environ: dict[str, Any]) -> bool:
        return self._refuse(e.Draining(close=True), environ)

    def _refusal(self, error: HeadError) -> Exception:
        return REFUSALS[error.code](error.detail, close=True)

    def _start_body(self, head: Head) -> None:
        """Hand the application a body that reads on from what has come with the head."""
        body = Body(self, head.content_length, self._unread)
        self._unread = b""
        self._body = body
        self._body_left_ns = self._service.limits.body_ns
        self._continue = head.expects_continue and not body.pending
        head.environ["wsgi.input"] = body

    def _answer_observed(self, environ: dict[str, Any]) -> None:
        """Answer between the server's hooks and for the access log of gunicorn."""
        try:
            self._service.before(environ)
            self.answer(environ)
        finally:
            self._gone = None
            self._service.after(environ, self.response, self._started_ns)

    def _answer_failed(self, environ: dict[str, Any], error: BaseException) -> None:
        """An application's failure becomes a 500, or a cut where the head is out.

        Raises: what is no failure of the application's.
        """
        response = self.response
        if isinstance(error, OSError):
            response.keep_alive = False
            if response.head_sent:
                raise error
            self._fail(environ, e.InternalError())
        elif isinstance(error, e.GatewayError):
            self._fail(environ, error)
        elif isinstance(error, Exception):
            self._fail(environ, e.InternalError())
        else:
            raise error

    def _fail(self, environ: dict[str, Any], error: e.GatewayError) -> None:
        """Answer for an application that raised. Once the head is out, the transfer is cut instead."""
        response = self.response
        if type(error) is e.InternalError:
            self._service.failed("The application failed")
        if response.head_sent:
            self._cut()
        else:
            self._refuse(error, environ)
        response.keep_alive = False

    def _cut(self) -> None:
        """End the transfer so that it cannot be taken for complete."""
        self._ended = True
        if self.response.head_sent and self.response.framing == BODY_TO_CLOSE:
            with contextlib.suppress(OSError):
                self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _settle_body(self) -> None:
        """Before the head goes out: can the rest of the request's body be dropped, or must the connection end?"""
        body = self._body
        if body is None or body.finished:
            return
        if self._continue or not body.droppable(self._service.limits.drain_bytes):
            self.response.keep_alive = False

    def _may_go_on(self) -> bool:
        """After a response: is the connection in a state to read the next request from?"""
        body, self._body = self._body, None
        if body is None:
            return self.response.keep_alive or self._end()
        if self.response.keep_alive and self._discard(body):
            self._unread = body.pending
            return True
        return self._end()

    def _end(self) -> bool:
        """The connection ends after a response, unless it was given away or cut."""
        if not self.upgraded and not self._ended:
            self._linger()
        return False

    def _discard(self, body: Body) -> bool:
        try:
            return body.discard(self._service.limits.drain_bytes)
        except e.GatewayError:
            return False

    def _upgrade(self, environ: dict[str, Any]) -> None:
        """Answer 101 and give the socket away for the rest of its life."""
        response = self.response
        response.send([])
        response.keep_alive = False
        take_over = environ.get("caregate.upgrade")
        if take_over is None or self._body is not None:
            return
        self.upgraded = True
        self._service.deadlines.forget(self)
        self._watcher.stop()
        self._armed = False
        take_over(self._sock, self._unread)

    def _refuse(self, error: e.GatewayError, environ: dict[str, Any] | None = None) -> bool:
        """Answer an error without the application, tell it, and end the connection."""
        service = self._service
        if environ is None:
            environ = self._bare_environ()
        head_only = environ["REQUEST_METHOD"] == "HEAD" or self._unread[:5] == b"HEAD "
        status, fields, body = render(error, environ["caregate.request_id"], environ["REQUEST_METHOD"])
        payload, framing, _ = encode_response(status, fields, service.date, False, head_only, False, body, len(body))
        self._tell_refused(environ, error, int(status[:3]))
        self.response.status, self.response.sent = status, 0 if head_only else len(body)
        self.response.keep_alive = False
        self._ended = True
        self.send((payload, body) if framing > 0 else (payload,))
        if type(error) is e.RequestTimeout:
            self._say_end()
        else:
            self._linger()
        return False

    def _tell_refused(self, environ: dict[str, Any], error: e.GatewayError, status: int) -> None:
        refused = getattr(self._service.application, "refused", None)
        if refused is None:
            return
        try:
            refused(environ, error, status)
        except Exception:
            self._service.failed("A refused request was not accounted for")

    def _bare_environ(self) -> dict[str, Any]:
        """The environ of a request whose head could not be read: the connection's part and an id."""
        environ = {key: value for key, value in self._base.items() if value is not None}
        environ["REQUEST_METHOD"] = ""
        environ["caregate.request_id"] = self._service.ids.next()
        environ["caregate.started_ns"] = self._started_ns
        return environ

    # --- receiving

    def _read_on(self, data: bytes) -> tuple[Head, bytes]:
        """Read the rest of a head that came in pieces, by one deadline for all of it."""
        deadline_ns = self._started_ns + self._service.limits.head_ns
        while True:
            searched = len(data)
            try:
                piece = self._receive(RECEIVE_BYTES, deadline_ns)
            except DeadlinePassed:
                raise e.RequestTimeout("The request head took too long to arrive", close=True) from None
            if not piece:
                raise ConnectionAbortedError
            data += piece
            self._unread = data
            head = self._service.reader.read(data, self._base, searched)
            if head is not None:
                return head, data

    def _given_up(self, error: BaseException) -> bytes:
        """Waiting for a request ended without one; its first bytes if they have come this very moment.

        Raises: what is not the deadline.
        Yields to the hub: yes.
        """
        if not isinstance(error, DeadlinePassed):
            raise error
        if self.idle:
            with contextlib.suppress(BlockingIOError):
                return self._raw.recv(RECEIVE_BYTES)  # type: ignore[no-any-return]
            self._end_idle()
        return b""

    def _end_idle(self) -> None:
        """NOTE: a request may be under way; closing at once would answer it with a reset, and so with doubt."""
        self.idle = False
        self._linger(self._service.limits.idle_linger_ns)

    def _idle_deadline_ns(self) -> int:
        return time.monotonic_ns() + int(self._service.limits.keepalive_ns)

    def _receive(self, size: int, deadline_ns: int) -> bytes:
        """What has come, empty at the end of the stream.

        Raises: DeadlinePassed, OSError.
        """
        receive = self._raw.recv
        while True:
            try:
                return receive(size)  # type: ignore[no-any-return]
            except BlockingIOError:
                self._service.deadlines.arm(self, deadline_ns)
                self._wait_readable()

    def expire(self) -> None:
        """Called from the hub when the deadline has passed."""
        if self._waiting:
            self._greenlet.throw(DeadlinePassed)

    def leave(self) -> None:
        """The worker leaves: the next answer whose head goes out says so."""
        if not self.idle and not self.response.head_sent:
            self.response.keep_alive = False

    def interrupt(self) -> None:
        """Have the request that still runs end with GraceEnded, which the application accounts for and answers."""
        if not self.upgraded:
            kill(self._greenlet, e.GraceEnded(close=True, delivery="unknown"))

    def receive_body(self, received_bytes: int, deadline_ns: int) -> bytes:
        """See gateway.http1.body.Source."""
        self._interrupted = False
        if self._continue:
            self._continue = False
            if not self.response.head_sent:
                self.send((b"HTTP/1.1 100 Continue\r\n\r\n",))
        limits = self._service.limits
        started_ns = time.monotonic_ns()
        earned_ns = received_bytes * SECOND_NS // limits.body_rate_bytes
        try:
            piece = self._receive_body(min(started_ns + self._body_left_ns + earned_ns, deadline_ns))
        except DeadlinePassed:
            raise e.RequestTimeout("The request body took too long to arrive", close=True) from None
        except OSError as error:
            raise e.ClientDisconnected("The caller went away while it sent its request") from error
        self._body_left_ns -= time.monotonic_ns() - started_ns
        if not piece:
            raise e.BadFraming("The body ended before its announced end", close=True)
        return piece

    def _receive_body(self, deadline_ns: int) -> bytes:
        """Raises: DeadlinePassed, OSError, ReadInterrupted."""
        if self._interrupted:
            raise ReadInterrupted
        self._reading_body = True
        try:
            return self._receive(BODY_RECEIVE_BYTES, deadline_ns)
        finally:
            self._reading_body = False

    def interrupt_body(self) -> None:
        """See gateway.http1.body.Source. Who still sends 100 Continue sends it to its end."""
        self._interrupted = True
        if self._reading_body and self._waiting:
            self._greenlet.throw(ReadInterrupted)

    # --- the caller goes away

    def watch(self, gone: Callable[[], None] | None) -> None:
        """Call `gone` once, from the hub, if the peer closes before the response is complete; None stops that.

        A client that only half-closes counts as gone. Behind pipelined bytes it is noticed a tenth of a second later,
        on a unix socket not at all.
        """
        self._gone = gone
        if gone is not None and not self._armed:
            self._armed = True
            self._watcher.start(self._readable)

    def _notice_gone(self) -> None:
        """Called from the hub. Behind bytes that nobody reads yet, the end of the stream is looked for by the clock."""
        gone = self._gone
        if gone is None:
            return
        if self._peer_closed():
            self._gone = None
            gone()
            return
        if self._later is None:
            self._later = self._hub.loop.timer(_LOOK_AGAIN_S, _LOOK_AGAIN_S)
        self._later.start(self._look_again)

    def _look_again(self) -> None:
        if self._gone is None:
            self._later.stop()
        else:
            self._notice_gone()

    def _peer_closed(self) -> bool:
        try:
            if self._raw.family in (socket.AF_INET, socket.AF_INET6):
                return self._raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in TCP_CLOSING
            return not self._raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    # --- sending

    def _send_many(self, pieces: Sequence[bytes]) -> None:
        try:
            sent = self._raw.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
            else:
                self._send_on(memoryview(piece)[sent:])
                sent = 0

    def _send_on(self, rest: memoryview) -> None:
        """Send what the socket did not take at once; each progress moves the deadline.

        Raises: DeadlinePassed if the client takes nothing for the write limit.
        """
        while rest:
            self._wait_writable()
            try:
                rest = rest[self._raw.send(rest) :]
            except BlockingIOError:
                pass

    def _write_deadline_ns(self) -> int:
        return time.monotonic_ns() + int(self._service.limits.write_ns)

    def _wait_writable(self) -> None:
        self._service.deadlines.arm(self, self._write_deadline_ns())
        self._waiting = True
        if self._armed:
            self._watcher.stop()
            self._armed = False
        try:
            self._hub.wait(self._sock._write_event)
        finally:
            self._waiting = False
        if self._gone is not None:
            self.watch(self._gone)

    def _linger(self, linger_ns: int = 0) -> None:
        """Let the client read the answer before the socket closes on bytes it still sends (RFC 9112, 9.6).

        Units: `linger_ns` for how long; 0: `limits.linger_ns`.
        """
        limits = self._service.limits
        deadline_ns = time.monotonic_ns() + (linger_ns or limits.linger_ns)
        left = limits.linger_bytes
        try:
            self._half_close()
            while left > 0:
                piece = self._receive(BODY_RECEIVE_BYTES, deadline_ns)
                if not piece:
                    return
                left -= len(piece)
        except (OSError, DeadlinePassed):
            pass

    def _half_close(self) -> None:
        """Raises: OSError."""
        self._raw.shutdown(socket.SHUT_WR)

    def _say_end(self) -> None:
        """Before a close that nothing is read after: in TLS the peer is told. Closing a plain socket says it all."""
