"""What a connection does at every request: wait, read a head, run the application, send its answer.

Socket, hub, clock and everything that is not every request's are handed in or left to the subclass
(gateway.http1.connection); no I/O of its own.

PERF: `policy_rs256` of `make bench`: the same methods in Python cost twice as much as the application.
"""

cimport cython
from libc.stdint cimport int64_t

from fastpath.http cimport Head, HeadReader
from fastpath.responses cimport RequestIds, Response

from fastpath.http import HeadError

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLL_CTL_DEL
    struct epoll_event:
        pass
    int epoll_ctl(int epoll, int operation, int descriptor, epoll_event *event)

cdef enum:
    RECEIVE_SIZE = 16384
    MAX_WAITING = 16
    MAX_WAIT_NS = 500000

RECEIVE_BYTES = RECEIVE_SIZE


def forget_descriptor(int epoll, int descriptor):
    """Have an epoll instance watch the descriptor no more; nothing happens if it does not.

    Before a descriptor is closed whose socket another process has too: the kernel would go on telling of it, and libev,
    which then asks for a socket that it does not know, builds its epoll instance anew with all that it watches.
    PERF: `worker_ms_per_dial` of `make fleet`: a fifth of the workers' time was that.
    """
    epoll_ctl(epoll, EPOLL_CTL_DEL, descriptor, NULL)


@cython.final
cdef class Outbox:
    """Whole answers of one turn of the hub, which leave together at its end.

    PERF: `policy_rs256_unique` of `make bench`: the first `send` of several wakes whoever reads them, the others find it
    awake; a send that wakes costs twice as much as one that does not.
    Shapes: `at_end(callback)` has the hub call it before it waits again.
    Holds: at most 16 answers, none for longer than half a millisecond while others come.
    """

    cdef object _at_end, _clock, _turn_ends
    cdef list _loops
    cdef int64_t _since_ns

    def __init__(self, at_end, clock):
        self._at_end, self._clock, self._turn_ends = at_end, clock, self.empty
        self._loops = []

    cdef int put(self, Loop loop) except -1:
        cdef Py_ssize_t waiting = len(self._loops)
        self._loops.append(loop)
        if waiting == 0:
            self._since_ns = self._clock()
            self._at_end(self._turn_ends)
        elif waiting + 1 == MAX_WAITING or <int64_t> self._clock() - self._since_ns > MAX_WAIT_NS:
            self.empty()
        return 0

    cpdef empty(self):
        """Send what waits."""
        cdef list loops = self._loops
        cdef Loop loop
        self._loops = []
        for loop in loops:
            loop.leave_now()


cdef class Loop:
    """The part of a connection that every request passes.

    PERF: the read watcher stays armed from request to request, so that a waiting client costs no epoll_ctl, and a
    response goes out in one system call.
    Shapes: `service` is gateway.http1.connection.Service; `deadlines` a wheel with `arm(self, deadline_ns)`, which is only
    asked if this connection must move to an earlier slot of `tick_ns`.
    Units: `deadline_ns` and `slot`: see gateway.http1.deadlines.
    """

    cdef public object _service, _sock, _raw, _hub, _greenlet, _watcher, _body, _gone
    cdef public dict _base
    cdef public bytes _unread
    cdef public bint _armed, _waiting, _ended, idle, upgraded
    cdef public int64_t _started_ns, deadline_ns, slot
    cdef readonly Response response
    cdef object _clock, _deadlines, _application, _receive_now, _send_now
    cdef int64_t _tick_ns, _keepalive_ns
    cdef HeadReader _reader
    cdef RequestIds _ids
    cdef Outbox _outbox
    cdef bytes _leaving
    cdef object _owed, _told
    cdef bint _may_wait

    def __init__(self, service, sock, raw, hub, greenlet, dict base not None, *, clock, int64_t tick_ns):
        self._service, self._sock, self._raw, self._hub, self._greenlet = service, sock, raw, hub, greenlet
        self._watcher = hub.loop.io(sock.fileno(), 1)
        self._base, self._unread = base, b""
        self._clock, self._deadlines, self._tick_ns = clock, service.deadlines, tick_ns
        self._application, self._reader, self._ids = service.application, service.reader, service.ids
        self._outbox = service.outbox
        self._keepalive_ns = service.limits.keepalive_ns
        self._receive_now, self._send_now = raw.recv, raw.send
        self.slot = 1LL << 62
        self.response = Response(self)

    # --- the loop

    def serve_one(self):
        """One request; False ends the connection.

        Yields to the hub: yes.
        """
        cdef Head head
        cdef dict environ
        cdef object service = self._service
        cdef bint more
        try:
            head = self._read_head()
        except Exception as error:
            return self._refuse_unread(error)
        if head is None:
            self._say_end()
            return False
        environ = head.environ
        environ["caregate.request_id"] = self._ids.next()
        environ["caregate.started_ns"] = self._started_ns
        if service.draining:
            return self._refuse_draining(environ)
        if head.content_length:
            self._start_body(head)
        more = service.count()
        self.response.begin(
            service.date, head.http10, head.head_only, head.keep_alive and more and service.keep_alive
        )
        if service.observed:
            self._answer_observed(environ)
        else:
            try:
                self.answer(environ)
            finally:
                self._gone = None
        if self._body is None and self.response.keep_alive:
            return True
        return self._may_go_on()

    def answer(self, dict environ not None):
        """Run the application and send what it returns.

        Yields to the hub: yes.
        """
        cdef Response response = self.response
        cdef object result = None, told = None
        try:
            result = self._application(environ, response.start_response)
            if response.status is not None and response.status[:4] == "101 ":
                self._upgrade(environ)
                return
            if self._body is not None:
                self._settle_body()
            # NOTE: a hook counts on having sent.
            self._may_wait = type(result) is list and self._body is None and not self._unread and not self._service.observed
            if type(result) is list:
                told = environ.get("caregate.told")
            response.send(result)
            if told is not None:
                self._told, told = told, None
                if self._leaving is None:
                    self._tell(True)
        except BaseException as error:
            if told is not None:
                self._told = told
                self._tell(False)
            self._answer_failed(environ, error)
        finally:
            if result is not None and type(result) is not list:
                close = getattr(result, "close", None)
                if close is not None:
                    close()

    cdef Head _read_head(self):
        """The next request's head; None if the connection ended before one began."""
        cdef bytes data = self._unread or self._receive_idle()
        cdef Head head
        if not data:
            return None
        self._started_ns = self._clock()
        self._unread = data
        try:
            head = self._reader.read(data, self._base)
            if head is None:
                head, data = self._read_on(data)
        except HeadError as error:
            raise self._refusal(error) from error
        self._unread = data[head.end :] if len(data) > head.end else b""
        return head

    # --- receiving

    def _receive_idle(self):
        """The first bytes of a request; empty if none came before the client or we gave up waiting."""
        self.idle = True
        try:
            self._arm(<int64_t> self._clock() + self._keepalive_ns)
            self._wait_readable()
            if self._owed is not None:
                self._send_owed()
            try:
                return self._receive_now(RECEIVE_SIZE)
            except BlockingIOError:
                return self._receive(RECEIVE_SIZE, self.deadline_ns)
        except BaseException as error:
            return self._given_up(error)
        finally:
            self.idle = False

    cdef int _arm(self, int64_t deadline_ns) except -1:
        self.deadline_ns = deadline_ns
        if deadline_ns // self._tick_ns + 1 < self.slot:
            self._deadlines.arm(self, deadline_ns)
        return 0

    def _wait_readable(self):
        """Yields to the hub: until bytes or the end of the stream are there, or the deadline throws."""
        if not self._armed:
            self._armed = True
            self._watcher.start(self._readable)
        self._waiting = True
        try:
            self._hub.switch()
        finally:
            self._waiting = False

    def _readable(self):
        """Called from the hub. Bytes that nobody waits for stop the watcher until somebody does."""
        if self._waiting:
            self._greenlet.switch()
            return
        self._watcher.stop()
        self._armed = False
        self._notice_gone()

    # --- sending

    def send(self, tuple pieces not None):
        """See fastpath.responses.Sink."""
        cdef bytes piece
        cdef Py_ssize_t sent
        cdef bint may_wait = self._may_wait
        self._may_wait = False
        if self._leaving is not None:
            self.leave_now()
        if self._owed is not None:
            self._send_owed()
        if len(pieces) == 1:
            piece = pieces[0]
            if may_wait and self.response.keep_alive:
                self._leaving = piece
                self._outbox.put(self)
                return
            try:
                sent = self._send_now(piece)
            except BlockingIOError:
                sent = 0
            if sent != len(piece):
                self._send_on(memoryview(piece)[sent:])
        elif pieces:
            self._send_many(pieces)

    cdef int leave_now(self) except -1:
        """Send the answer that waits in the outbox, if it still does; what the socket does not take is the greenlet's."""
        cdef bytes piece = self._leaving
        cdef Py_ssize_t sent
        if piece is None:
            return 0
        self._leaving = None
        try:
            sent = self._send_now(piece)
        except BlockingIOError:
            sent = 0
        except OSError:
            # NOTE: the greenlet waits for the next request, and will find the same.
            return self._tell(False)
        if sent == len(piece):
            return self._tell(True)
        self._owed = memoryview(piece)[sent:]
        self._hub.loop.run_callback(self._resume)
        return 0

    cdef int _tell(self, bint whole) except -1:
        """Whoever wants to know hears whether all of the answer was sent."""
        cdef object told = self._told
        if told is None:
            return 0
        self._told = None
        try:
            told(whole)
        except Exception:
            self._service.failed("The end of an answer was not accounted for")
        return 0

    def _resume(self):
        """Called from the hub: have the greenlet send what it owes."""
        if self._owed is not None and self._waiting:
            self._greenlet.switch()

    cdef int _send_owed(self) except -1:
        cdef bint idle = self.idle
        owed, self._owed = self._owed, None
        self.idle = False
        try:
            self._send_on(owed)
        except BaseException:
            self._tell(False)
            raise
        self._tell(True)
        self.idle = idle
        if not idle:
            return 0
        return self._arm(<int64_t> self._clock() + self._keepalive_ns)

    def _leave(self):
        """Before the connection ends: send the answer that waits in the outbox."""
        self.leave_now()
        self._tell(False)
