"""One stream: a request, its greenlet and its response."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from gevent import get_hub, spawn
from gevent.event import Event

from fastpath.http import Head
from gateway import errors as e
from gateway.bodies import ReadInterrupted
from gateway.http.problems import render
from gateway.http1.connection import Service
from gateway.http1.deadlines import NEVER, DeadlinePassed
from gateway.http1.limits import SECOND_NS
from gateway.http2.body import StreamBody
from gateway.http2.request import Fields, read_request, trailers_allowed
from gateway.http2.response import StreamResponse


class Channel(Protocol):
    """The connection as its streams see it."""

    service: Service
    base: dict[str, Any]

    def send_head(self, stream_id: int, fields: list[tuple[bytes, bytes]], end: bool) -> None: ...
    def room(self, stream: Stream) -> int:
        """How many body bytes the stream may send now; 0 if it must wait to be woken."""

    def send_data(self, stream_id: int, data: memoryview, end: bool) -> None: ...
    def credit(self, stream_id: int, size: int) -> None:
        """Tell the client that so many body bytes were taken."""

    def serving(self, stream: Stream) -> None:
        """A request begins."""

    def refused(self) -> None:
        """A head was refused."""

    def ended(self, stream: Stream) -> None:
        """The stream's greenlet is done with it."""


class Stream:
    """A request from its header block to the end of its answer.

    Shapes: `ended` says that the client has sent all of its request, `failure` why the body cannot be read to its end,
    `gone` that the client has left the stream.
    Units: `deadline_ns`, `slot`: see gateway.http1.deadlines.
    """

    __slots__ = (
        "_backlog", "_bodiless", "_body_left_ns", "_continue", "_declared", "_fields", "_gone_call",
        "_interrupted", "_late", "_received", "_wake", "channel", "deadline_ns", "ended", "failure", "gone",
        "greenlet", "id", "response", "service", "slot", "started_ns",
    )  # fmt: skip

    def __init__(self, channel: Channel, stream_id: int, fields: Fields, ended: bool) -> None:
        self.channel = channel
        self.service = channel.service
        self.id = stream_id
        self.started_ns = time.monotonic_ns()
        self.ended = self._bodiless = ended
        self.gone = False
        self.failure: e.GatewayError | None = None
        self.deadline_ns = 0
        self.slot = NEVER
        self._fields = fields
        self._backlog: deque[bytes] = deque()
        self._body_left_ns = self.service.limits.body_ns
        self._continue = False
        self._declared = -1
        self._received = 0
        self._gone_call: Callable[[], None] | None = None
        self._late = self._interrupted = False
        self._wake = Event()
        self.response = StreamResponse(self, self.service.date, False)
        self.greenlet = spawn(self._run)

    # --- the request

    def _run(self) -> None:
        """Yields to the hub: yes. Ends without an error whatever happens."""
        try:
            self._serve()
        except (OSError, DeadlinePassed, e.GatewayError):
            pass
        except Exception:
            self.service.failed("Error on a stream")
        finally:
            self._gone_call = None
            self.service.deadlines.forget(self)
            self.channel.ended(self)

    def _serve(self) -> None:
        fields, self._fields = self._fields, ()
        try:
            head = read_request(self.service.reader, fields, self._bodiless, self.channel.base)
        except e.GatewayError as error:
            try:
                self._refuse(error, self._bare_environ(fields))
            finally:
                self.channel.refused()
            return
        environ = self._complete(head)
        if self.service.draining:
            self._refuse(e.Draining(), environ)
            return
        self.channel.serving(self)
        self.response = StreamResponse(self, self.service.date, head.head_only)
        try:
            self._answer(environ)
        finally:
            self._gone_call = None
            if self.service.observed:
                self.service.after(environ, self.response, self.started_ns)

    def _complete(self, head: Head) -> dict[str, Any]:
        """The environ with what is the stream's own."""
        environ = head.environ
        environ["caregate.request_id"] = self.service.ids.next()
        environ["caregate.started_ns"] = self.started_ns
        environ["caregate.watch"] = self.watch
        if not self._bodiless:
            if "CONTENT_LENGTH" in environ:
                self._declared = head.content_length
            environ["wsgi.input"] = StreamBody(self, max(self._declared, 0))
            self._continue = head.expects_continue
            self._check_length()
        return environ

    def _answer(self, environ: dict[str, Any]) -> None:
        """Run the application and send what it returns; its failures become a 500, or a reset where the head is out."""
        response = self.response
        result: Any = None
        try:
            if self.service.observed:
                self.service.before(environ)
            result = self.service.application(environ, response.start_response)
            if response.status[:1] == "1":
                raise e.NotImplementedHere("Another protocol cannot be spoken in a stream")
            response.send(result)
        except OSError:
            if self.gone or response.head_sent:
                raise
            self._fail(environ, e.InternalError())
        except e.GatewayError as error:
            self._fail(environ, error)
        except Exception:
            self._fail(environ, e.InternalError())
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _fail(self, environ: dict[str, Any], error: e.GatewayError) -> None:
        """Answer for an application that raised. Once the head is out, the stream is reset instead."""
        if type(error) is e.InternalError:
            self.service.failed("The application failed")
        if not self.response.head_sent:
            self._refuse(error, environ)

    def _refuse(self, error: e.GatewayError, environ: dict[str, Any]) -> None:
        """Answer an error without the application, and tell it."""
        status, fields, body = render(error, environ["caregate.request_id"], environ["REQUEST_METHOD"])
        tell_refused(self.service, environ, error, int(status[:3]))
        response = self.response = StreamResponse(self, self.service.date, environ["REQUEST_METHOD"] == "HEAD")
        response.start_response(status, fields)
        response.send([body])

    def _bare_environ(self, fields: Fields) -> dict[str, Any]:
        method = dict(fields).get(b":method", b"")
        environ = bare_environ(self.service, self.channel.base, self.started_ns)
        environ["REQUEST_METHOD"] = "HEAD" if method == b"HEAD" else ""
        return environ

    def interrupt(self) -> None:
        """Have the request end with GraceEnded, which the application accounts for and answers."""
        self.greenlet.kill(e.GraceEnded(delivery="unknown"), block=False)

    def watch(self, gone: Callable[[], None] | None) -> None:
        """Call `gone` once, from the hub, if the client resets the stream or leaves before the response is complete;
        None stops that."""
        self._gone_call = gone
        if self.gone:
            self._tell_gone()

    # --- what the connection has received for the stream

    def take_data(self, data: bytes) -> None:
        """Content of a DATA frame; the window bounds what is kept of it."""
        self._received += len(data)
        if data:
            self._backlog.append(data)
        self._check_length()
        self._wake.set()

    def take_trailers(self, fields: Fields) -> None:
        if not trailers_allowed(fields):
            self._break(e.BadFraming("The trailers are malformed"))

    def take_end(self) -> None:
        """The client has sent all of its request."""
        self.ended = True
        self._check_length()
        self._wake.set()

    def leave(self) -> None:
        """The client has reset the stream, or is gone with the connection."""
        if self.gone:
            return
        self.gone = True
        if not self.ended:
            self._break(e.ClientDisconnected("The caller went away while it sent its request"))
        self._tell_gone()
        self._wake.set()

    def wake(self) -> None:
        """There may be room to send now."""
        self._wake.set()

    def _check_length(self) -> None:
        """SEC: a body that is not as long as it was announced is never whole (RFC 9113, 8.1.1)."""
        if self._declared < 0:
            return
        if self._received > self._declared:
            self._break(e.BadFraming("The body is longer than announced"))
        elif self.ended and self._received < self._declared:
            self._break(e.BadFraming("The body ended before its announced end"))

    def _break(self, failure: e.GatewayError) -> None:
        if self.failure is None:
            self.failure = failure

    def _tell_gone(self) -> None:
        gone, self._gone_call = self._gone_call, None
        if gone is not None:
            get_hub().loop.run_callback(gone)

    # --- the body

    @property
    def drained(self) -> bool:
        """See gateway.http2.body.FrameSource."""
        return self.ended and not self._backlog and self.failure is None

    def receive_body(self, received_bytes: int, deadline_ns: int) -> bytes:
        """See gateway.http2.body.FrameSource."""
        self._interrupted = False
        if self._continue:
            self._continue = False
            if not self._backlog and not self.response.head_sent:
                self.channel.send_head(self.id, [(b":status", b"100")], False)
        limits = self.service.limits
        started_ns = time.monotonic_ns()
        earned_ns = received_bytes * SECOND_NS // limits.body_rate_bytes
        deadline_ns = min(started_ns + self._body_left_ns + earned_ns, deadline_ns)
        while not self._backlog:
            if self.failure is not None:
                raise self.failure
            if self.ended:
                return b""
            if self._interrupted:
                raise ReadInterrupted
            try:
                self._wait(deadline_ns)
            except DeadlinePassed:
                raise e.RequestTimeout("The request body took too long to arrive") from None
        self._body_left_ns -= time.monotonic_ns() - started_ns
        data = b"".join(self._backlog)
        self._backlog.clear()
        if not self.ended:
            self.channel.credit(self.id, len(data))
        return data

    def interrupt_body(self) -> None:
        """See gateway.http1.body.Source."""
        self._interrupted = True
        self._wake.set()

    # --- the response

    def send_head(self, fields: list[tuple[bytes, bytes]], end: bool) -> None:
        """See gateway.http2.response.FrameSink."""
        self._check_here()
        self.channel.send_head(self.id, fields, end)

    def send_data(self, data: bytes, end: bool) -> None:
        """See gateway.http2.response.FrameSink; each progress moves the deadline."""
        rest = memoryview(data)
        while True:
            size = self._wait_for_room(len(rest)) if rest else 0
            self._check_here()
            piece, rest = rest[:size], rest[size:]
            self.channel.send_data(self.id, piece, end and not rest)
            if not rest:
                return

    def _wait_for_room(self, wanted: int) -> int:
        """How much of it may be sent. Raises: DeadlinePassed, ConnectionResetError."""
        deadline_ns = time.monotonic_ns() + self.service.limits.write_ns
        while True:
            self._check_here()
            size = min(wanted, self.channel.room(self))
            if size:
                return size
            self._wait(deadline_ns)

    def _check_here(self) -> None:
        """Raises: ConnectionResetError if nobody waits for the answer."""
        if self.gone:
            raise ConnectionResetError("the client left the stream")

    # --- waiting

    def _wait(self, deadline_ns: int) -> None:
        """Until something happened to the stream. Raises: DeadlinePassed."""
        self._wake.clear()
        self._late = False
        self.service.deadlines.arm(self, deadline_ns)
        try:
            self._wake.wait()
        finally:
            self.deadline_ns = 0
        if self._late:
            raise DeadlinePassed

    def expire(self) -> None:
        """Called from the hub when the deadline has passed."""
        self._late = True
        self._wake.set()


def bare_environ(service: Service, base: dict[str, Any], started_ns: int) -> dict[str, Any]:
    """The environ of a request whose head could not be read: the connection's part and an id."""
    environ = {key: value for key, value in base.items() if value is not None}
    environ["REQUEST_METHOD"] = ""
    environ["caregate.request_id"] = service.ids.next()
    environ["caregate.started_ns"] = started_ns
    return environ


def tell_refused(service: Service, environ: dict[str, Any], error: e.GatewayError, status: int) -> None:
    """Have the application account for a request that it has not seen."""
    refused = getattr(service.application, "refused", None)
    if refused is None:
        return
    try:
        refused(environ, error, status)
    except Exception:
        service.failed("A refused request was not accounted for")
