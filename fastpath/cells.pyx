"""Numbers in a buffer that one process writes and others read: what metrics count into."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer


@cython.final
cdef class Cells:
    """Doubles over a writable buffer, by index; a negative index stands for a number that found no room.

    PERF: `policy_rs256` of `make bench`, caregate-logged: over a memoryview an addition costs four times as much.
    Holds: the buffer. Raises: ValueError for a buffer that is not aligned; IndexError for a cell beyond it.
    """

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if <size_t> self.view.buf % sizeof(double):
            raise ValueError("the buffer is not aligned")
        self.values = <double*> self.view.buf
        self.count = self.view.len // <Py_ssize_t> sizeof(double)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    def add(self, Py_ssize_t cell, double value=1.0):
        """Add to a number."""
        self.plus(cell, value)

    def put(self, Py_ssize_t cell, double value):
        """Set a number."""
        if cell >= self.count:
            raise IndexError("no such cell")
        if cell >= 0:
            self.values[cell] = value

    def observe(self, Py_ssize_t cell, tuple bounds not None, double value):
        """Count a value into the histogram at `cell`: its sum, then a count for each bound and one beyond the last."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t size = len(bounds)
        cdef double bound
        if cell < 0:
            return
        while at < size:
            bound = bounds[at]
            if value <= bound:
                break
            at += 1
        if cell + 1 + size >= self.count:
            raise IndexError("no such cell")
        self.values[cell] += value
        self.values[cell + 1 + at] += 1.0

    cdef int plus(self, Py_ssize_t cell, double value) except -1:
        if cell >= self.count:
            raise IndexError("no such cell")
        if cell >= 0:
            self.values[cell] += value
        return 0
