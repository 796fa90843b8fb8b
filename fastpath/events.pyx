"""The audit trail's bytes: the canonical event of a request, and the row of an event for PostgreSQL. No I/O, no clock.

PERF: `python -m loadtests.audit_cost`: a request's event costs a third of the same in Python (2.7 us), a row too (3.3 us).
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy

from fastpath.chain cimport Chain, big_endian, link, put_big_endian
from fastpath.context cimport RequestContext
from fastpath.lane cimport Grant

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const unsigned char* PyUnicode_1BYTE_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)

cdef extern from "<string.h>" nogil:
    void* memrchr(const void* at, int byte, size_t size)

cdef enum:
    MAX_TEXT = 256
    MAX_FIELDS = 40
    NUMBER = 32
    DIGEST = 32
    RECORD = 4 + 8 + DIGEST  # the head of a spool's record: size, sequence, hash

cdef uint64_t ONES = 0x0101010101010101ULL

cdef enum Kind:
    TEXT
    INTEGER
    FLAG


cdef class Text:
    """Bytes that grow; the room is kept from one use to the next."""

    cdef char* _at
    cdef Py_ssize_t _room
    cdef Py_ssize_t _size

    def __dealloc__(self):
        PyMem_Free(self._at)

    cdef char* room(self, Py_ssize_t size) except NULL:
        """Where the next bytes go; there is room for `size`."""
        cdef char* larger
        if self._size + size > self._room:
            larger = <char*> PyMem_Realloc(self._at, 2 * (self._size + size) + 1024)
            if larger == NULL:
                raise MemoryError()
            self._at = larger
            self._room = 2 * (self._size + size) + 1024
        return self._at + self._size

    cdef int put(self, const char* at, Py_ssize_t size) except -1:
        memcpy(self.room(size), at, size)
        self._size += size
        return 0

    cdef int bytes(self, bytes text) except -1:
        return self.put(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))

    cdef int integer(self, int64_t value) except -1:
        cdef char number[NUMBER]
        cdef int at = NUMBER
        cdef uint64_t left = <uint64_t> value if value >= 0 else -<uint64_t> value
        while True:
            at -= 1
            number[at] = <char> (48 + left % 10)
            left //= 10
            if left == 0:
                break
        if value < 0:
            at -= 1
            number[at] = b"-"
        return self.put(number + at, NUMBER - at)

    cdef bytes taken(self):
        cdef bytes text = PyBytes_FromStringAndSize(self._at, self._size)
        self._size = 0
        return text


@cython.final
cdef class AccessText(Text):
    """Writes the canonical bytes of requests; the form is described in gateway.audit.event.

    Shapes: `member(name, value)` is a whole member as bytes for what needs escapes or bounds, b"" for an empty value;
    `who(principal)` -> (the principal's members, its patient, its purpose as a member);
    `what(route, method)` -> (the route's members, the parameter with the resource's id or None, that with the patient's,
    that with a FHIR path, empty: the query alone may name a patient, None: neither, has the route a purpose?);
    `about(ctx, parameter)` -> (the route's members if the request changes them, the resource's id, the patient);
    `name_of(patient)` is what stands in place of a patient's id, None: the id itself; `names` is what it said before;
    `node` is the last member but one.
    Units: `clock_ns` nanoseconds since 1970, `since_ns` those of the clock that requests are timed by.
    """

    cdef object _member, _who, _what, _about, _name_of, _clock_ns, _since_ns
    cdef bytes _node
    cdef dict _actions, _names

    def __init__(
        self, member, who, what, about, bytes node not None, dict actions not None, name_of=None, dict names=None, *,
        clock_ns=None, since_ns=None,
    ):
        self._clock_ns, self._since_ns = clock_ns, since_ns
        self._name_of, self._names = name_of, names if names is not None else {}
        self._about = about
        self._member, self._who, self._what, self._node, self._actions = member, who, what, node, actions

    def encode(self, RequestContext ctx not None, int status, int64_t at_ms, int64_t took_us):
        """The event of a request that is answered with `status`; 0 is the intent.

        Units: `at_ms` ms since 1970, `took_us` microseconds.
        """
        self._write(ctx, status, at_ms, took_us)
        return self.taken()

    def keep(self, RequestContext ctx not None, int status, Chain chain not None):
        """Add the event of a request that is answered with `status` now to a chain; 0 is the intent.

        Raises: as Chain.append does.

        PERF: `audit_durable` of `make bench`: an event of its own bytes object, with the clocks read in Python, costs
        half a microsecond more.
        """
        cdef int64_t at_ms = <int64_t> self._clock_ns() // 1000000
        self._write(ctx, status, at_ms, self._took_us(ctx))
        return chain.add(self._at, self._size)

    def complete(self, RequestContext ctx not None, int status, bint whole, Chain chain not None):
        """The same of the event that says how the transfer of an answer ended; the rest stands in the outcome."""
        self._size = 0
        self.put(b'{"v":1,"kind":"access","phase":"completion","at_ms":', 52)
        self.integer(<int64_t> self._clock_ns() // 1000000)
        self.put(b',"duration_us":', 15)
        self.integer(self._took_us(ctx))
        self._field(b',"request_id":"', "request_id", ctx.id, True)
        if whole:
            self.put(b',"outcome":"complete"', 21)
        else:
            self.put(b',"outcome":"cut"', 16)
        self._field(b',"rule":"', "rule", ctx.error.code if ctx.error is not None else "", True)
        self.put(b',"status":', 10)
        self.integer(status)
        self.bytes(self._node)
        self.put(b"}", 1)
        return chain.add(self._at, self._size)

    cdef int64_t _took_us(self, RequestContext ctx) except -1:
        cdef int64_t took_ns = <int64_t> self._since_ns() - <int64_t> ctx.started_ns
        return max(took_ns, 0) // 1000

    cdef int _write(self, RequestContext ctx, int status, int64_t at_ms, int64_t took_us) except -1:
        self._size = 0
        self._head(ctx, status, at_ms, took_us)
        self._middle(ctx)
        if ctx.snapshot is not None and ctx.snapshot.version:
            self.put(b',"config_version":', 18)
            self.integer(ctx.snapshot.version)
        if ctx.shadow:
            self.put(b',"detail":{', 11)
            self.bytes(self._member("shadow", ctx.shadow)[1:])
            self.put(b"}", 1)
        return self.put(b"}", 1)

    cdef int _head(self, RequestContext ctx, int status, int64_t at_ms, int64_t took_us) except -1:
        cdef object error = ctx.error
        cdef str rule = ctx.rule
        if status:
            self.put(b'{"v":1,"kind":"access","phase":"outcome","at_ms":', 49)
        else:
            self.put(b'{"v":1,"kind":"access","phase":"intent","at_ms":', 48)
        self.integer(at_ms)
        self.put(b',"duration_us":', 15)
        self.integer(took_us)
        self._field(b',"request_id":"', "request_id", ctx.id, True)
        if status == 0:
            self.put(b',"outcome":"pending"', 20)
        elif error is None:
            self.put(b',"outcome":"allowed"', 20)
        elif error.origin.value == "client":
            self.put(b',"outcome":"refused"', 20)
        else:
            self.put(b',"outcome":"failed"', 19)
        if error is not None and (not rule or rule == "allowed"):
            rule = error.code
        self._field(b',"rule":"', "rule", rule, True)
        self.put(b',"status":', 10)
        return self.integer(status)

    cdef int _middle(self, RequestContext ctx) except -1:
        cdef tuple known = self._known(ctx)
        cdef bytes what = known[1], who = known[2], claimed_purpose = known[4]
        cdef object resource_param = known[5], value, patient, resource_id = None
        cdef object delivery = ctx.delivery
        cdef dict params = ctx.params
        self._field(b',"method":"', "method", ctx.method, False)
        if ctx.trace:
            self._field(b',"trace":"', "trace", ctx.trace, False)
        if not delivery and ctx.error is not None:
            delivery = getattr(ctx.error, "delivery", None)
        if delivery:
            self._field(b',"delivery":"', "delivery", str(delivery), False)
        value = ctx.unit or params.get("unit")
        if value:
            self._field(b',"unit":"', "unit", value, False)
        if ctx.agent:
            self._field(b',"agent":"', "agent", ctx.agent, False)
        patient = (params.get("patient") or params.get(known[6])) if params else None
        if resource_param is not None:
            resource_id = params.get(resource_param)
        if known[7] is not None and (ctx.query or known[7]):
            told = self._about(ctx, known[7])
            what, resource_id, patient = told[0] or what, told[1] or resource_id, patient or told[2]
        if not patient:
            patient = known[3]
        if patient:
            value = self._name(patient) if self._name_of is not None else patient
            self._field(b',"patient":"', "patient", value, False)
            if resource_id == patient:
                resource_id = value
        if resource_id:
            self._field(b',"resource_id":"', "resource_id", resource_id, False)
        self._field(b',"client_address":"', "client_address", ctx.client_address, False)
        self.bytes(what)
        if ctx.purpose:
            self._field(b',"purpose":"', "purpose", ctx.purpose, False)
        else:
            self.bytes(claimed_purpose)
        self.bytes(who)
        return self.bytes(self._node)

    cdef object _name(self, value):
        cdef object name = self._names.get(value)
        return name if name is not None else self._name_of(value)

    cdef tuple _known(self, RequestContext ctx):
        """What follows from route, method and principal; kept with the grant if there is one.

        Shapes: (method, route's members, principal's, its patient, its purpose unless the route has one, parameters of
        the resource's id, of the patient, of a FHIR path)
        """
        cdef Grant grant = ctx.grant
        cdef tuple known, who, what
        if grant is not None and grant.event is not None:
            known = grant.event
            if known[0] == ctx.method:
                return known
        who = self._who(ctx.principal) if ctx.principal is not None else (b"", "", b"")
        if ctx.route is not None:
            what = self._what(ctx.route, ctx.method)
        else:
            what = (self._member("action", self._actions.get(ctx.method, "E")), None, "patient", None, False)
        known = (ctx.method, what[0], who[0], who[1], b"" if what[4] else who[2], what[1], what[2], what[3])
        if grant is not None and grant.route is ctx.route:
            grant.event = known
        return known

    cdef int _field(self, const char* opening, str name, str value, bint always) except -1:
        """A member; `opening` ends with the value's first quote."""
        cdef const unsigned char* at
        cdef Py_ssize_t i, size = PyUnicode_GET_LENGTH(value), length = 0
        if size <= MAX_TEXT and PyUnicode_IS_COMPACT_ASCII(value):
            if size == 0 and not always:
                return 0
            at = PyUnicode_1BYTE_DATA(value)
            for i in range(size):
                if at[i] < 32 or at[i] == 34 or at[i] == 92 or at[i] == 127:
                    break
            else:
                while opening[length]:
                    length += 1
                self.put(opening, length)
                self.put(<const char*> at, size)
                return self.put(b'"', 1)
        return self.bytes(self._member(name, value))


cdef struct Field:
    const char* name
    Py_ssize_t name_size
    int kind


cdef bint _is_plain(const char* text, Py_ssize_t size) noexcept:
    """Is there no escape, and nothing that would need one?

    PERF: `python -m loadtests.audit_cost`: eight bytes at a time; one by one it is a quarter of a row.
    """
    cdef uint64_t eight, bad = 0
    cdef Py_ssize_t i = 0
    while i + 8 <= size:
        memcpy(&eight, text + i, 8)
        bad |= _below(eight, 32) | _below(eight ^ 92 * ONES, 1)
        i += 8
    while i < size:
        bad |= (<unsigned char> text[i] < 32) | (text[i] == 92)
        i += 1
    return bad == 0


cdef inline uint64_t _below(uint64_t eight, uint64_t bound) noexcept:
    """Not 0 if one of eight bytes is less than `bound`, which is at most 128."""
    return (eight - bound * ONES) & ~eight & 128 * ONES


@cython.final
cdef class Rows(Text):
    """Derives rows for COPY from canonical bytes.

    Shapes: `members` is the canonical order of all members as (name, kind), kind being str, int or bool; those named in
    `unwritten` have no column; the first `required` are always there. `second(whole)` is a second as PostgreSQL writes it, without fraction and zone.
    """

    cdef Field _fields[MAX_FIELDS]
    cdef bint _unwritten[MAX_FIELDS]
    cdef int _count, _at_ms, _required
    cdef list _names
    cdef object _second
    cdef int64_t _whole
    cdef bytes _second_text

    def __init__(self, members not None, unwritten not None, int required, second):
        self._names = [name.encode() for name, _ in members]
        self._count, self._at_ms = <int> len(self._names), -1
        if self._count > MAX_FIELDS:
            raise ValueError("too many members")
        for i, (name, kind) in enumerate(members):
            self._fields[<int> i].name = PyBytes_AS_STRING(self._names[i])
            self._fields[<int> i].name_size = len(name)
            self._fields[<int> i].kind = {str: TEXT, int: INTEGER, bool: FLAG}[kind]
            self._unwritten[<int> i] = name in unwritten
            if name == "at_ms":
                self._at_ms = <int> i
        self._second, self._whole, self._required = second, -1, required

    def row(self, bytes chain not None, int64_t sequence, bytes digest not None, bytes canonical not None):
        """A line for COPY, or None if the bytes are not of the plain form that nearly all have."""
        if PyBytes_GET_SIZE(digest) != DIGEST:
            raise ValueError("a hash of another size")
        self._size = 0
        if not self._put_row(
            chain, sequence, <const unsigned char*> PyBytes_AS_STRING(digest), PyBytes_AS_STRING(canonical),
            PyBytes_GET_SIZE(canonical),
        ):
            return None
        return self.taken()

    def stretch(
        self, bytes chain not None, records, Py_ssize_t at, Py_ssize_t end, int64_t after, int64_t until, *,
        Py_ssize_t most, Py_ssize_t most_bytes, other,
    ):
        """The lines of whole records that lie one behind the other, as a spool has them (gateway.audit.spool).

        Those up to sequence `after` are skipped, those beyond `until` left. `other(sequence, digest, canonical)` is the
        line of an event that is not of the plain form. Ends before `most` lines or behind `most_bytes` are exceeded.
        Shapes: (lines, how many, the last one's sequence or `after`, the position behind it).
        Raises: what `other` raises; ValueError for positions outside `records`.

        PERF: `policy_rs256` of `make bench`, caregate-logged: record by record in Python a line costs five times as much.
        """
        cdef Py_buffer view
        cdef const unsigned char* record
        cdef Py_ssize_t count = 0, size
        cdef int64_t sequence
        PyObject_GetBuffer(records, &view, PyBUF_SIMPLE)
        try:
            if not 0 <= at <= end <= view.len:
                raise ValueError("not positions of the records")
            self._size = 0
            while at + RECORD <= end and count < most and self._size < most_bytes:
                record = <const unsigned char*> view.buf + at
                size = <Py_ssize_t> big_endian(record, 4)
                if size == 0 or size > end - at - RECORD:
                    break
                sequence = <int64_t> big_endian(record + 4, 8)
                if sequence > until:
                    break
                if sequence > after:
                    if not self._put_row(chain, sequence, record + 12, <const char*> record + RECORD, size):
                        self.bytes(other(sequence, record[12 : 12 + DIGEST], record[RECORD : RECORD + size]))
                    after = sequence
                    count += 1
                at += RECORD + size
            return self.taken(), count, after, at
        finally:
            PyBuffer_Release(&view)

    def follow(
        self, bytes chain not None, list lines not None, Py_ssize_t at, int64_t sequence, bytes digest not None,
        Py_ssize_t most,
    ):
        """How far lines, from one on, are the rows of the records that follow a record of a chain.

        Shapes: (how many, at most `most`; the hash of the last of them, or `digest`). The line after them is another's,
        was changed, or is not of the plain form.

        PERF: `make audit-verify`: line by line in Python twice the CPU.
        """
        cdef Py_ssize_t count = 0, size, length
        cdef const char* line
        cdef const char* text
        cdef unsigned char number[8]
        cdef bytes found, row
        if PyBytes_GET_SIZE(digest) != DIGEST:
            raise ValueError("a hash of another size")
        if at < 0:
            raise ValueError("not a position of the lines")
        while count < most and at + count < len(lines):
            row = lines[at + count]
            if row is None:
                raise TypeError("a line is bytes")
            line, size = PyBytes_AS_STRING(row), PyBytes_GET_SIZE(row)
            text = <const char*> memrchr(line, b"\t", <size_t> size)
            if text == NULL:
                break
            text += 1
            length = line + size - 1 - text
            if length < 0:
                break
            put_big_endian(number, <uint64_t> (sequence + 1), 8)
            found = link(digest, number, text, length)
            self._size = 0
            if not self._put_row(
                chain, sequence + 1, <const unsigned char*> PyBytes_AS_STRING(found), text, length
            ) or self._size != size or memcmp(self._at, line, <size_t> size) != 0:
                break
            digest = found
            sequence += 1
            count += 1
        return count, digest

    cdef bint _put_row(
        self, bytes chain, int64_t sequence, const unsigned char* digest, const char* text, Py_ssize_t size
    ) except -1:
        """Add a line; False, and nothing is added, if the bytes are not of the plain form."""
        cdef const char* starts[MAX_FIELDS]
        cdef Py_ssize_t sizes[MAX_FIELDS]
        cdef int i
        if not _is_plain(text, size) or not self._parse(text, size, starts, sizes):
            return False
        for i in range(self._required):
            if starts[i] == NULL:
                return False
        if sizes[self._at_ms] > 14:
            return False
        self.bytes(chain)
        self.put(b"\t", 1)
        self.integer(sequence)
        self._timestamp(starts[self._at_ms], sizes[self._at_ms])
        self._columns(starts, sizes, size)
        self._digest(digest)
        self.put(text, size)
        self.put(b"\n", 1)
        return True

    cdef bint _parse(self, const char* text, Py_ssize_t size, const char** starts, Py_ssize_t* sizes) noexcept:
        """Find each member's value. Members come in their order, so none comes twice."""
        cdef Py_ssize_t at = 1
        cdef int field = 0
        if size < 2 or text[0] != b"{" or text[size - 1] != b"}":
            return False
        while at < size:
            if text[at] != b'"':
                return False
            at += 1
            while field < self._count and not self._is_named(field, text + at, size - at):
                starts[field], sizes[field] = NULL, 0
                field += 1
            if field == self._count:
                return _is_detail(text, size, at)
            at += self._fields[field].name_size + 2
            at = self._value(text, size, at, self._fields[field].kind, &starts[field], &sizes[field])
            field += 1
            if at < 0:
                return False
            if at == size - 1:
                while field < self._count:
                    starts[field], sizes[field] = NULL, 0
                    field += 1
                return True
            if text[at] != b",":
                return False
            at += 1
        return False

    cdef bint _is_named(self, int field, const char* name, Py_ssize_t left) noexcept:
        """Does the member's name stand there, with what ends it?"""
        cdef Py_ssize_t size = self._fields[field].name_size
        return size + 2 < left and memcmp(self._fields[field].name, name, size) == 0 and memcmp(name + size, b'":', 2) == 0

    cdef Py_ssize_t _value(
        self, const char* text, Py_ssize_t size, Py_ssize_t at, int kind, const char** start, Py_ssize_t* length
    ) noexcept:
        """Where the value ends, -1 if it is not of its kind or not in its one spelling."""
        cdef const char* end
        cdef Py_ssize_t stop = at
        if kind == TEXT:
            if text[at] != b'"':
                return -1
            end = <const char*> memchr(text + at + 1, b'"', size - at - 1)
            if end == NULL:
                return -1
            start[0], length[0] = text + at + 1, end - text - at - 1
            return end - text + 1
        start[0] = text + at
        if kind == INTEGER:
            while stop < size and 48 <= text[stop] <= 57:
                stop += 1
            length[0] = stop - at
            return stop if 0 < stop - at < 19 and (text[at] != 48 or stop - at == 1) else -1
        length[0] = 1
        return at + 4 if size - at > 4 and memcmp(text + at, b"true", 4) == 0 else -1

    cdef int _columns(self, const char** starts, Py_ssize_t* sizes, Py_ssize_t size) except -1:
        """The columns between; each value is a part of the event, so all of them are no longer than it."""
        cdef char* to = self.room(size + 2 * MAX_FIELDS)
        cdef int i
        for i in range(self._count):
            if self._unwritten[i]:
                continue
            to[0] = b"\t"
            to += 1
            if starts[i] == NULL:
                if self._fields[i].kind != TEXT:
                    to[0] = b"f" if self._fields[i].kind == FLAG else b"0"
                    to += 1
            elif self._fields[i].kind == FLAG:
                to[0] = b"t"
                to += 1
            else:
                memcpy(to, starts[i], <size_t> sizes[i])
                to += sizes[i]
        self._size = to - self._at
        return 0

    cdef int _timestamp(self, const char* digits, Py_ssize_t size) except -1:
        cdef int64_t at_ms = 0
        cdef Py_ssize_t i
        cdef int ms
        cdef char fraction[NUMBER]
        for i in range(size):
            at_ms = at_ms * 10 + (digits[i] - 48)
        if at_ms // 1000 != self._whole:
            self._second_text = self._second(at_ms // 1000)
            self._whole = at_ms // 1000
        self.put(b"\t", 1)
        self.bytes(self._second_text)
        ms = <int> (at_ms % 1000)
        if ms:
            i = snprintf(fraction, NUMBER, b".%03d", ms)
            while fraction[i - 1] == 48:
                i -= 1
            self.put(fraction, i)
        return self.put(b"+00", 3)

    cdef int _digest(self, const unsigned char* at) except -1:
        cdef const char* hexadecimal = b"0123456789abcdef"
        cdef char text[2 * DIGEST]
        cdef Py_ssize_t i
        for i in range(DIGEST):
            text[2 * i], text[2 * i + 1] = hexadecimal[at[i] >> 4], hexadecimal[at[i] & 15]
        self.put(b"\t\\\\x", 4)
        self.put(text, 2 * DIGEST)
        return self.put(b"\t", 1)


cdef bint _is_detail(const char* text, Py_ssize_t size, Py_ssize_t at) noexcept:
    """Is what stands there the last member, an object of texts, which has no column? `at` is behind its first quote."""
    cdef const char* end
    cdef char follows = b":"
    if size - at < 10 or memcmp(text + at, b'detail":{', 9) != 0:
        return False
    at += 9
    while at < size and text[at] == b'"':
        end = <const char*> memchr(text + at + 1, b'"', size - at - 1)
        # The event's last byte is a brace, so there is one behind each quote.
        if end == NULL:
            return False
        at = end - text + 1
        if text[at] == b"}" and follows != b":":
            return at == size - 2
        if text[at] != follows:
            return False
        follows = b"," if follows == b":" else b":"
        at += 1
    return False
