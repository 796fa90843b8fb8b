"""What closes a request: its metrics, and its line in the access log as JSON. No I/O, no clock of its own.

PERF: `policy_rs256` of `make bench`, caregate-logged: a dict a request, encoded in batches, costs five times as much, and
keeps every finished request alive for a tenth of a second.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from fastpath.cells cimport Cells
from fastpath.context cimport RequestContext
from fastpath.lane cimport Grant

import orjson

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const unsigned char* PyUnicode_1BYTE_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    MAX_METHOD = 16
    MAX_BOUNDS = 32

cdef object _dumps = orjson.dumps


@cython.final
cdef class Lines:
    """Lines of an access log, collected until `take`.

    SEC: no path, no query, no subject; the route's template, the role and the token's id say enough.
    Shapes: `second(whole)` is the text of a second, RFC 3339 up to the seconds. `worker` a process id. What `write` adds is
    of the rank `usual` at level info unless the route says otherwise, if that is not below `least`; `full()` is called when
    there are `most` bytes. Units: `clock_s` seconds since 1970.
    """

    cdef char* _text
    cdef Py_ssize_t _room, _most
    cdef readonly Py_ssize_t size
    cdef public int least
    cdef int _usual
    cdef object _second, _clock_s, _full
    cdef int64_t _whole
    cdef bytes _opening
    cdef bytes _worker
    cdef dict _seen

    def __init__(
        self, int worker, second, *, clock_s=None, int usual=0, int least=0, Py_ssize_t most=PY_SSIZE_T_MAX, full=None
    ):
        self._second, self._clock_s, self._full = second, clock_s, full
        self._usual, self.least, self._most = usual, least, most
        self._whole = -1
        self._worker = b',"worker":%d' % worker
        self._seen = {}

    def __dealloc__(self):
        PyMem_Free(self._text)

    def write(self, RequestContext ctx not None, int status, int64_t took_ns):
        """Add the line of a request that ends now, if its route's are wanted and it is one of so many."""
        cdef object logging = None if ctx.route is None else ctx.route.logging
        cdef int rank = self._usual
        cdef int64_t sample = 1
        cdef bytes level = b"info"
        if logging is not None:
            level, rank, sample = logging.level, logging.rank, logging.sample
        if status >= 500:
            self._add(ctx, status, took_ns // 1000, self._clock_s(), b"error", 1)
        elif rank >= self.least and (sample == 1 or self._is_due(ctx.route.name, sample)):
            self._add(ctx, status, took_ns // 1000, self._clock_s(), level, sample)
        if self.size >= self._most:
            self._full()

    cdef bint _is_due(self, str route, int64_t sample) except -1:
        """Is it the first of every so many requests of a route?"""
        cdef int64_t seen = self._seen.get(route, 0)
        self._seen[route] = (seen + 1) % sample
        return seen == 0

    def add(
        self, RequestContext ctx not None, int status, int64_t took_us, double now_s, bytes level not None=b"info",
        int64_t sample=1,
    ):
        """Add the line of a finished request; it stands for `sample` of them.

        Units: `took_us` microseconds, `now_s` seconds since 1970, when it ended.
        """
        self._add(ctx, status, took_us, now_s, level, sample)

    cdef int _add(
        self, RequestContext ctx, int status, int64_t took_us, double now_s, bytes level, int64_t sample
    ) except -1:
        cdef int64_t micros = <int64_t> (now_s * 1000000)
        if micros // 1000000 != self._whole:
            self._whole = micros // 1000000
            self._opening = b'{"time":"' + self._second(self._whole).encode("ascii")
        self._bytes(self._opening)
        self._put(b".", 1)
        self._number(micros % 1000000, 6)
        self._put(b'Z","level":"', 12)
        self._bytes(level)
        self._put(b'","event":"request","request_id":"', 34)
        self._inside(ctx.id)
        self._put(b'","method":"', 12)
        self._inside(ctx.method if len(ctx.method) <= MAX_METHOD else "other")
        self._put(b'","status":', 11)
        self._number(status, 1)
        took_us = max(took_us, 0)
        self._put_ms(b',"ms":', took_us)
        if ctx.upstream_ns:
            self._put_split(ctx, took_us)
        if sample > 1:
            self._put(b',"sample":', 10)
            self._number(sample, 1)
        self._bytes(self._worker)
        self._put_caller(ctx)
        if ctx.rule:
            self._member(b',"rule":"', ctx.rule)
        if ctx.shadow:
            self._member(b',"shadow":"', ctx.shadow)
        if ctx.error is not None:
            self._member(b',"error":"', ctx.error.code)
            self._member(b',"origin":"', ctx.error.origin.value)
        elif status >= 400 and ctx.relay_source is not None:
            self._member(b',"origin":"', ctx.relay_source)
        if ctx.unit is not None:
            self._optional(b',"unit":', ctx.unit)
            self._optional(b',"delivery":', ctx.delivery)
            self._optional(b',"relay_source":', ctx.relay_source)
        if ctx.snapshot is not None:
            self._put(b',"config_version":', 18)
            self._number(ctx.snapshot.version, 1)
        return self._put(b"}\n", 2)

    def take(self):
        """What has been collected, which begins anew."""
        cdef bytes text = PyBytes_FromStringAndSize(self._text, self.size)
        self.size = 0
        return text

    cdef int _put_caller(self, RequestContext ctx) except -1:
        """Route and caller: the same text for every request under a grant."""
        cdef Grant grant = ctx.grant
        if grant is None:
            self._bytes(_caller(ctx.route, ctx.principal))
            return 0
        if grant.line is None:
            grant.line = _caller(ctx.route, ctx.principal)
        return self._bytes(grant.line)

    cdef int _put_split(self, RequestContext ctx, int64_t took_us) except -1:
        """Whose time it was."""
        cdef int64_t behind = ctx.upstream_ns // 1000
        cdef int64_t queue = ctx.queue_ns // 1000
        cdef int64_t unit = ctx.unit_ns // 1000
        self._put_ms(b',"gateway_ms":', took_us - behind)
        if queue:
            self._put_ms(b',"queue_ms":', queue)
        if ctx.unit is None:
            return self._put_ms(b',"upstream_ms":', behind - queue)
        self._put_ms(b',"relay_ms":', behind - queue - unit)
        return self._put_ms(b',"unit_ms":', unit)

    cdef int _put_ms(self, bytes opening, int64_t us) except -1:
        """A length of time in milliseconds; what clocks of two machines make negative is nothing."""
        us = max(us, 0)
        self._bytes(opening)
        self._number(us // 1000, 1)
        self._put(b".", 1)
        return self._number(us % 1000, 3)

    cdef int _put(self, const char* at, Py_ssize_t size) except -1:
        cdef char* larger
        if self.size + size > self._room:
            larger = <char*> PyMem_Realloc(self._text, 2 * (self.size + size) + 4096)
            if larger == NULL:
                raise MemoryError()
            self._text = larger
            self._room = 2 * (self.size + size) + 4096
        memcpy(self._text + self.size, at, size)
        self.size += size
        return 0

    cdef int _number(self, int64_t value, int digits) except -1:
        """A number from 0 on, with zeros before it up to as many digits."""
        cdef char text[24]
        cdef int at = 24
        while value > 0 or 24 - at < digits:
            at -= 1
            text[at] = <char> (48 + value % 10)
            value //= 10
        return self._put(text + at, 24 - at)

    cdef int _bytes(self, bytes text) except -1:
        return self._put(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))

    cdef int _inside(self, str text) except -1:
        """A text between quotes that are written already."""
        cdef const unsigned char* at
        cdef Py_ssize_t i, size = PyUnicode_GET_LENGTH(text)
        cdef bytes escaped
        if PyUnicode_IS_COMPACT_ASCII(text):
            at = PyUnicode_1BYTE_DATA(text)
            for i in range(size):
                if at[i] < 32 or at[i] == 34 or at[i] == 92:
                    break
            else:
                return self._put(<const char*> at, size)
        escaped = _json(text)
        return self._put(PyBytes_AS_STRING(escaped) + 1, PyBytes_GET_SIZE(escaped) - 2)

    cdef int _member(self, bytes opening, str text) except -1:
        self._bytes(opening)
        self._inside(text)
        return self._put(b'"', 1)

    cdef int _optional(self, bytes opening, value) except -1:
        self._bytes(opening)
        return self._bytes(b"null" if value is None else _json(str(value)))


cdef bytes _json(str text):
    """A JSON string; half a surrogate pair, which has no UTF-8, is replaced."""
    try:
        return _dumps(text)
    except TypeError:
        return _dumps(text.encode("utf-8", "replace").decode())


cdef bytes _caller(route, principal):
    cdef list parts = [
        b',"route":', b"null" if route is None else _json(route.name),
        b',"template":', b"null" if route is None else _json(route.template),
    ]
    if principal is not None:
        parts += [
            b',"role":', _json(principal.role), b',"audience":', _json(principal.audience),
            b',"jti":', _json(principal.token_id),
        ]
    return b"".join(parts)


@cython.final
cdef class Books:
    """Counts finished requests, and closes the books on the plain ones.

    Shapes: `cells_of(route, method, status)` finds the cells of a count and of a histogram over `bounds`; remembered for
    methods that `known` has, which are few. `in_flight` is the cell of requests under way. `log.write(ctx, status, took_ns)`
    adds to the access log.
    Units: `since_ns` nanoseconds of the clock that requests are timed by.
    """

    cdef Cells _cells
    cdef Py_ssize_t _in_flight
    cdef object _cells_of, _since_ns, _log
    cdef dict _known_cells
    cdef frozenset _known
    cdef double _bounds[MAX_BOUNDS]
    cdef int _count

    def __init__(
        self, Cells cells not None, Py_ssize_t in_flight, cells_of, frozenset known not None, tuple bounds not None, *,
        log=None, since_ns=None,
    ):
        if len(bounds) > MAX_BOUNDS:
            raise ValueError("too many bounds")
        self._cells, self._in_flight, self._cells_of, self._known = cells, in_flight, cells_of, known
        self._log, self._since_ns = log, since_ns
        self._known_cells = {}
        self._count = <int> len(bounds)
        for i, bound in enumerate(bounds):
            self._bounds[<Py_ssize_t> i] = bound

    def settle(self, RequestContext ctx not None, status, audit not None):
        """Event, count and line of a request that ends now with that status, a line or its number; False, and nothing is
        done, if there is more to say of it than that a caller with a grant was answered.

        Raises: what `audit.enqueue_finished(ctx, status)` raises; nothing is counted then.

        PERF: `policy_rs256` of `make bench`, caregate-logged: step by step from Python the request costs a twelfth more.
        """
        cdef object route = ctx.route
        cdef int code
        cdef int64_t took_ns
        if (
            ctx.grant is None or route is None or ctx.error is not None or ctx.shadow or ctx.query or ctx.also
            or ctx.span is not None
        ):
            return False
        if ctx.method == "POST" or route.phi:
            return False
        code = _code(status)
        if code == 0:
            return False
        audit.enqueue_finished(ctx, code)
        took_ns = <int64_t> self._since_ns() - <int64_t> ctx.started_ns
        self.count(route.name, ctx.method, code, took_ns)
        self._log.write(ctx, code, took_ns)
        return True

    def close(self, str route not None, str method not None, int status, int64_t took_ns):
        """Count a request that has ended."""
        self.count(route, method, status, took_ns)

    cdef int count(self, str route, str method, int status, int64_t took_ns) except -1:
        cdef tuple cells = self._known_cells.get((route, method, status))
        cdef Py_ssize_t duration
        cdef double seconds = took_ns / 1e9
        cdef int at = 0
        if cells is None:
            cells = self._cells_of(route, method, status)
            if method in self._known:
                self._known_cells[route, method, status] = cells
        self._cells.plus(self._in_flight, -1.0)
        self._cells.plus(cells[0], 1.0)
        duration = cells[1]
        if duration < 0:
            return 0
        while at < self._count and seconds > self._bounds[at]:
            at += 1
        self._cells.plus(duration, seconds)
        self._cells.plus(duration + 1 + at, 1.0)
        return 0


cdef int _code(status) except -1:
    """100 to 999; 0 for what is no status."""
    cdef const unsigned char* digits
    if type(status) is int:
        return status if 100 <= status <= 999 else 0
    if type(status) is not str or not PyUnicode_IS_COMPACT_ASCII(status) or PyUnicode_GET_LENGTH(status) < 3:
        return 0
    digits = PyUnicode_1BYTE_DATA(status)
    if not (49 <= digits[0] <= 57 and 48 <= digits[1] <= 57 and 48 <= digits[2] <= 57):
        return 0
    return 100 * (digits[0] - 48) + 10 * (digits[1] - 48) + digits[2] - 48
