"""The two heads of an exchange with an upstream: the request's as sent, the response's as read. No I/O, no clock."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Realloc
from cpython.unicode cimport PyUnicode_DecodeLatin1
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy

from fastpath.chunks import ChunkError, ChunkReader

cdef extern from "Python.h":
    int PyUnicode_KIND(object text)
    void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)

include "characters.pxi"


class RequestHeadError(ValueError):
    """A request head that would not be HTTP."""


class AnswerError(ValueError):
    """A response that is not HTTP, is over the limits, or is framed in a way that is not served."""


# --- the request's head

cdef enum:
    MAX_NAMES = 1024

cdef char* scratch = NULL
cdef Py_ssize_t scratch_size = 0
cdef Py_ssize_t scratch_used = 0


cdef int _put(const char* at, Py_ssize_t size) except -1:
    """Append to the scratch buffer, which every head is built in (nothing yields in between)."""
    global scratch, scratch_size, scratch_used
    cdef Py_ssize_t wanted = scratch_used + size
    cdef char* larger
    if wanted > scratch_size:
        larger = <char*> PyMem_Realloc(scratch, <size_t> wanted * 2 + 4096)
        if larger == NULL:
            raise MemoryError()
        scratch = larger
        scratch_size = wanted * 2 + 4096
    memcpy(scratch + scratch_used, at, <size_t> size)
    scratch_used = wanted
    return 0


cdef int _put_text(str text) except -1:
    """SEC: what goes into a line of the head holds no control character, wherever it came from."""
    cdef Py_ssize_t size = PyUnicode_GET_LENGTH(text)
    cdef const uint8_t* at = <const uint8_t*> PyUnicode_DATA(text)
    if PyUnicode_KIND(text) != 1 or not _field_text(at, size):
        raise RequestHeadError("A request head is latin-1 text without control characters")
    return _put(<const char*> at, size)


@cython.final
cdef class RequestHeads:
    """Writes the heads of requests that go on.

    Shapes: `dropped` names caller's fields (lower case) that do not go on, nor does any that begins as one of `private`.
    Holds: the spelling of at most 1024 field names.
    """

    cdef frozenset dropped
    cdef tuple private
    cdef dict names

    def __init__(self, frozenset dropped not None, tuple private not None):
        self.dropped = dropped
        self.private = private
        self.names = {}

    def encode(
        self, str method not None, str target not None, list own not None, dict environ not None, frozenset nominated,
        long long content_length,
    ):
        """A head with the gateway's `own` fields, then the caller's out of the WSGI environ.

        Shapes: `own` is name, value, name, value, ...; `nominated` are names that the caller declared hop-by-hop, or
        None; `content_length` -1 announces chunks.
        Raises: RequestHeadError.
        """
        global scratch_used
        cdef Py_ssize_t i
        cdef bytes number
        scratch_used = 0
        _put_text(method)
        _put(b" ", 1)
        _put_text(target)
        _put(b" HTTP/1.1\r\n", 11)
        for i in range(0, len(own) - 1, 2):
            _put_text(own[i])
            _put(b": ", 2)
            _put_text(own[i + 1])
            _put(b"\r\n", 2)
        if content_length < 0:
            _put(b"transfer-encoding: chunked\r\n", 28)
        elif content_length or method in ("POST", "PUT", "PATCH"):
            number = b"content-length: %d\r\n" % content_length
            _put(PyBytes_AS_STRING(number), PyBytes_GET_SIZE(number))
        self._put_callers(environ, nominated)
        _put(b"\r\n", 2)
        return PyBytes_FromStringAndSize(scratch, scratch_used)

    cdef int _put_callers(self, dict environ, frozenset nominated) except -1:
        cdef bytes prefix
        content_type = environ.get("CONTENT_TYPE")
        if content_type:
            _put(b"content-type: ", 14)
            _put_text(content_type)
            _put(b"\r\n", 2)
        for key, value in environ.items():
            if not _is_field(key):
                continue
            prefix = self.names.get(key)
            if prefix is None:
                prefix = self._prefix(key)
            if not prefix or (nominated is not None and prefix[: len(prefix) - 2].decode("latin-1") in nominated):
                continue
            _put(PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix))
            _put_text(value)
            _put(b"\r\n", 2)
        return 0

    cdef bytes _prefix(self, str key):
        """A name as sent, with its colon; empty for a field that does not go on."""
        cdef str name = key[5:].replace("_", "-").lower()
        cdef bytes prefix = b""
        if name not in self.dropped and not name.startswith(self.private):
            prefix = name.encode("latin-1", "replace")
            if not prefix or not _all(<const uint8_t*> PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix), TOKEN):
                raise RequestHeadError("A field name is malformed")
            prefix += b": "
        if len(self.names) < MAX_NAMES:
            self.names[key] = prefix
        return prefix


cdef inline bint _is_field(object key):
    """Is it the environ's key of a header field?"""
    if type(key) is not str or PyUnicode_KIND(key) != 1 or PyUnicode_GET_LENGTH(key) < 6:
        return False
    return memcmp(PyUnicode_DATA(key), b"HTTP_", 5) == 0


# --- the response

cdef enum:
    PASSED = 0
    DROPPED = 1
    LENGTH = 2
    CODING = 3
    CONNECTION = 4
    COOKIE = 5
    NAME_SLOTS = 512
    NAME_PROBES = 8
    MAX_KNOWN = 256
    MAX_FIELDS = 200
    MAX_HEAD = 65536
    MAX_LENGTH_DIGITS = 18

cdef dict KINDS = {
    "content-length": LENGTH, "transfer-encoding": CODING, "connection": CONNECTION, "set-cookie": COOKIE,
}

cdef struct Name:
    uint32_t hashed
    int size
    int kind
    int number


@cython.final
cdef class AnswerNames:
    """What becomes of a response's fields, by name; names seen before are not made again.

    Shapes: `dropped` are names (lower case) that are not passed on.
    Holds: at most 256 names.
    """

    cdef Name slots[NAME_SLOTS]
    cdef list known

    def __init__(self, frozenset dropped not None):
        cdef bytes name
        cdef int i
        for i in range(NAME_SLOTS):
            self.slots[i].size = 0
        self.known = []
        for text in (*sorted(dropped - KINDS.keys()), *KINDS):
            name = text.encode("ascii")
            self._remember(
                <const uint8_t*> PyBytes_AS_STRING(name), <int> PyBytes_GET_SIZE(name), KINDS.get(text, DROPPED)
            )

    cdef int _remember(self, const uint8_t* at, int size, int kind) except -1:
        cdef uint32_t hashed = _hash(at, size)
        if self._find(at, size, hashed) == NULL and self._add(at, size, hashed, kind) == NULL:
            raise ValueError("too many names are dropped")
        return 0

    cdef Name* _find(self, const uint8_t* at, int size, uint32_t hashed):
        cdef int probe
        cdef Name* slot
        for probe in range(NAME_PROBES):
            slot = &self.slots[(hashed + <uint32_t> probe) & (NAME_SLOTS - 1)]
            if slot.size == 0:
                return NULL
            if slot.hashed == hashed and slot.size == size and _is_name(self.known[slot.number], at, size):
                return slot
        return NULL

    cdef Name* _add(self, const uint8_t* at, int size, uint32_t hashed, int kind):
        """The slot of a name that is new; NULL if there is no room."""
        cdef int probe
        cdef Name* slot
        if len(self.known) >= MAX_KNOWN:
            return NULL
        for probe in range(NAME_PROBES):
            slot = &self.slots[(hashed + <uint32_t> probe) & (NAME_SLOTS - 1)]
            if slot.size == 0:
                slot.number = <int> len(self.known)
                self.known.append(_lower(at, size))
                slot.hashed = hashed
                slot.size = size
                slot.kind = kind
                return slot
        return NULL


cdef inline uint32_t _hash(const uint8_t* at, int size) noexcept nogil:
    """FNV-1a without regard to case."""
    cdef uint32_t hashed = 2166136261
    cdef int i
    for i in range(size):
        hashed = (hashed ^ LOWER[at[i]]) * <uint32_t> 16777619
    return hashed


cdef inline bint _is_name(str known, const uint8_t* at, int size):
    return _same_lower(at, size, <const char*> PyUnicode_DATA(known), PyUnicode_GET_LENGTH(known))


cdef str _lower(const uint8_t* at, int size):
    return PyUnicode_DecodeLatin1(<const char*> at, size, NULL).lower()


@cython.final
cdef class AnswerReader:
    """Reads one response; informational ones before it are skipped.

    Shapes: `status` is 0 until the head is whole; `fields` are those that are passed on, by name in lower case, repeated
    ones joined; `cookies` the values of Set-Cookie, `connection` those of Connection unless it only closes or keeps;
    `done` after the last byte of the message, `surplus` if more followed.
    Units: the heads together at most 64 KiB, one head at most 200 fields.
    Source: RFC 9112, 4 to 6; llhttp is the oracle in tests.
    """

    cdef AnswerNames names
    cdef bint head_only, bodiless, chunked, closes, http10, in_lines
    cdef bytes pending
    cdef Py_ssize_t head_bytes
    cdef int count, coming
    cdef long long length, left
    cdef list pieces
    cdef object chunks
    cdef readonly int status
    cdef readonly dict fields
    cdef readonly list cookies
    cdef readonly str connection
    cdef readonly bint done, surplus

    def __init__(self, AnswerNames names not None, bint head_only):
        self.names = names
        self.head_only = head_only
        self.pending = None
        self.pieces = []
        self.chunks = None
        self._begin()

    cdef int _begin(self) except -1:
        """Forget an informational response."""
        self.fields = {}
        self.cookies = None
        self.connection = None
        self.count = 0
        self.length = -1
        self.chunked = self.closes = self.http10 = self.in_lines = False
        return 0

    @property
    def content_length(self):
        """As announced, or None."""
        return self.length if self.length >= 0 else None

    @property
    def reusable(self):
        """May the connection carry another request?"""
        return self.done and not self.surplus and not self.closes and not self.http10

    def feed(self, bytes data not None):
        """Raises: AnswerError."""
        cdef Py_ssize_t start = 0
        if self.done:
            self.surplus = True
            return
        if self.status == 0:
            if self.pending is not None:
                start = PyBytes_GET_SIZE(self.pending)
                data = self.pending + data
                self.pending = None
            start = self._read_head(data, start)
            if start < 0:
                return
        self._read_body(data, start)

    def take(self):
        """Content read so far that was not taken yet."""
        cdef list pieces = self.pieces
        if not pieces:
            return b""
        self.pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self):
        """The upstream closed the connection.

        Raises: AnswerError unless the response is whole, or one that the end of the connection delimits.
        """
        if self.done:
            return
        if self.status == 0 or self.length >= 0 or self.chunked:
            raise AnswerError("The upstream's answer ended too early")
        self.done = self.surplus = True

    # --- the head

    cdef Py_ssize_t _read_head(self, bytes data, Py_ssize_t searched) except -2:
        """Where the body starts, -1 if the head is not whole; no line ends before `searched`."""
        cdef const uint8_t* at = <const uint8_t*> PyBytes_AS_STRING(data)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t start = 0
        cdef Py_ssize_t end
        cdef const uint8_t* feed
        while True:
            feed = <const uint8_t*> memchr(at + searched, 10, <size_t> (size - searched))
            end = (feed - at if feed != NULL else size)
            if self.head_bytes + end - start >= MAX_HEAD:
                raise AnswerError("The head of the upstream's answer is too large")
            if feed == NULL:
                self._check_beginning(at + start, size - start)
                self.pending = data[start:] if start else data
                return -1
            if end == start or at[end - 1] != 13:
                raise AnswerError("The upstream's answer is not HTTP")
            self.head_bytes += end + 1 - start
            self._read_line(at + start, end - 1 - start)
            start = searched = end + 1
            if self.status:
                return start

    cdef int _check_beginning(self, const uint8_t* at, Py_ssize_t size) except -1:
        """What cannot become a status line is refused before its end comes."""
        if not self.in_lines and memcmp(at, b"HTTP/1.", <size_t> min(size, 7)) != 0:
            raise AnswerError("The upstream's answer is not HTTP")
        return 0

    cdef int _read_line(self, const uint8_t* at, Py_ssize_t size) except -1:
        if not self.in_lines:
            self._read_status_line(at, size)
        elif size == 0:
            self._end_head()
        else:
            self._read_field(at, size)
        return 0

    cdef int _read_status_line(self, const uint8_t* at, Py_ssize_t size) except -1:
        """HTTP-version SP status-code [ SP reason-phrase ]: without a reason many leave the last blank out."""
        if (
            size < 12 or memcmp(at, b"HTTP/1.", 7) != 0 or (at[7] != 48 and at[7] != 49) or at[8] != 32
            or not _all(at + 9, 3, DIGIT) or at[9] == 48 or (size > 12 and at[12] != 32)
            or not _field_text(at + 12, size - 12)
        ):
            raise AnswerError("The upstream's answer is not HTTP")
        self.http10 = at[7] == 48
        self.coming = (at[9] - 48) * 100 + (at[10] - 48) * 10 + at[11] - 48
        if self.coming == 101:
            raise AnswerError("The upstream answered with a protocol of its own")
        self.in_lines = True
        return 0

    cdef int _read_field(self, const uint8_t* at, Py_ssize_t size) except -1:
        cdef int name_size = 0
        cdef uint32_t hashed = 2166136261
        cdef Name* slot
        self.count += 1
        if self.count > MAX_FIELDS:
            raise AnswerError("The upstream's answer has too many fields")
        while name_size < size and CLASS[at[name_size]] & TOKEN:
            hashed = (hashed ^ LOWER[at[name_size]]) * <uint32_t> 16777619
            name_size += 1
        if name_size == 0 or name_size == size or at[name_size] != 58:
            raise AnswerError("The upstream's answer has a malformed field")
        slot = self.names._find(at, name_size, hashed)
        if slot == NULL:
            slot = self.names._add(at, name_size, hashed, PASSED)
        self._take_field(
            PASSED if slot == NULL else slot.kind,
            _lower(at, name_size) if slot == NULL else <str> self.names.known[slot.number],
            at + name_size + 1, size - name_size - 1,
        )
        return 0

    cdef int _take_field(self, int kind, str name, const uint8_t* at, Py_ssize_t size) except -1:
        while size and (at[0] == 32 or at[0] == 9):
            at += 1
            size -= 1
        while size and (at[size - 1] == 32 or at[size - 1] == 9):
            size -= 1
        if not _field_text(at, size):
            raise AnswerError("The upstream's answer has a malformed field")
        if kind == PASSED:
            self._pass_on(name, PyUnicode_DecodeLatin1(<const char*> at, size, NULL))
        elif kind == LENGTH:
            self._take_length(at, size)
        elif kind == CODING:
            if self.chunked or not _same_lower(at, size, b"chunked", 7):
                raise AnswerError("The upstream framed its answer in a way that is not served")
            self.chunked = True
        elif kind == CONNECTION:
            self._take_connection(at, size)
        elif kind == COOKIE:
            if self.cookies is None:
                self.cookies = []
            self.cookies.append(PyUnicode_DecodeLatin1(<const char*> at, size, NULL))
        return 0

    cdef int _pass_on(self, str name, str value) except -1:
        held = self.fields.get(name)
        self.fields[name] = value if held is None else f"{held}, {value}"
        return 0

    cdef int _take_length(self, const uint8_t* at, Py_ssize_t size) except -1:
        cdef Py_ssize_t i
        if self.length >= 0:
            raise AnswerError("The upstream framed its answer in a way that is not served")
        if size == 0 or size > MAX_LENGTH_DIGITS or not _all(at, size, DIGIT):
            raise AnswerError("The upstream announced a length that is no number")
        self.length = 0
        for i in range(size):
            self.length = self.length * 10 + (at[i] - 48)
        return 0

    cdef int _take_connection(self, const uint8_t* at, Py_ssize_t size) except -1:
        cdef str value
        if _same_lower(at, size, b"keep-alive", 10):
            return 0
        value = PyUnicode_DecodeLatin1(<const char*> at, size, NULL).lower()
        self.closes |= "close" in value
        if value != "close":
            self.connection = value if self.connection is None else f"{self.connection}, {value}"
        return 0

    cdef int _end_head(self) except -1:
        """Raises: AnswerError for framing that is ambiguous (RFC 9112, 6.1 and 6.3)."""
        cdef int status = self.coming
        if self.chunked and (self.length >= 0 or self.http10):
            raise AnswerError("The upstream framed its answer in a way that is not served")
        if status < 200:
            if self.http10:
                raise AnswerError("The upstream's interim answer is of a version that has none")
            self._begin()
            return 0
        self.status = status
        self.bodiless = self.head_only or status == 204 or status == 304
        self.left = self.length
        self.done = self.bodiless or self.length == 0
        if self.chunked:
            self.chunks = ChunkReader()
        return 0

    # --- the body

    cdef int _read_body(self, bytes data, Py_ssize_t start) except -1:
        """Raises: AnswerError."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t end = size
        if start < size and not self.done:
            if self.chunked:
                end = self._read_chunks(data, start)
            else:
                if self.length >= 0:
                    end = start + <Py_ssize_t> min(self.left, <long long> (size - start))
                    self.left -= end - start
                    self.done = self.left == 0
                self.pieces.append(data if start == 0 and end == size else data[start:end])
            start = end
        if self.done and start < size:
            self.surplus = True
        return 0

    cdef Py_ssize_t _read_chunks(self, bytes data, Py_ssize_t start) except -1:
        cdef Py_ssize_t end
        try:
            piece, end = self.chunks.take(data, start, PyBytes_GET_SIZE(data))
        except ChunkError as error:
            raise AnswerError("The upstream's answer is not HTTP") from error
        if piece:
            self.pieces.append(piece)
        self.done = self.chunks.done
        return end
