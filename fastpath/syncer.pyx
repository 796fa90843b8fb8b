"""A thread that syncs files while the hub goes on: the one kernel that does I/O, and it does nothing else.

PERF: `audit_durable` of `make bench`: the thread holds no lock of the interpreter. One in Python asks for it twice a sync,
and waits for a hub at work up to the interpreter's switching interval of 5 ms, with all who wait for the sync.
"""

cimport cython
from cpython.list cimport PyList_GET_SIZE
from libc.errno cimport EBUSY, errno
from libc.stdlib cimport free, malloc

import os

cdef extern from "syncer.h" nogil:
    struct syncer:
        int told
    syncer* syncer_start()
    int syncer_begin(syncer* syncer, const int* files, int count)
    int syncer_ended(syncer* syncer)
    void syncer_stop(syncer* syncer)


@cython.final
cdef class Syncer:
    """Does one sync at a time.

    Holds: a thread and a descriptor, until `stop` or the end of what it does.
    """

    cdef syncer* _syncer

    def __init__(self):
        """Raises: OSError if there is no thread to be had."""
        self.stop()
        self._syncer = syncer_start()
        if self._syncer == NULL:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        if self._syncer != NULL:
            syncer_stop(self._syncer)

    @property
    def told(self):
        """A descriptor that can be read when a sync has ended; ours to close.

        Raises: ValueError after `stop`.
        """
        return self._alive().told

    def begin(self, list files not None):
        """Have files made durable, open descriptors until `ended` says so.

        Raises: ValueError while another sync is under way, or after `stop`; MemoryError.
        """
        cdef syncer* alive = self._alive()
        cdef Py_ssize_t i, count = len(files)
        cdef int* descriptors = <int*> malloc((count + 1) * sizeof(int))
        cdef int error
        if descriptors == NULL:
            raise MemoryError()
        try:
            for i in range(count):
                descriptors[i] = files[i]
            error = syncer_begin(alive, descriptors, <int> count)
        finally:
            free(descriptors)
        if error:
            raise ValueError("a sync is under way") if error == EBUSY else MemoryError()

    def ended(self):
        """None while a sync is under way, else 0 or the errno of the first file that failed; once for each `begin`."""
        cdef int error = syncer_ended(self._alive())
        return None if error < 0 else error

    def stop(self):
        """End; what is under way goes on, and nobody hears of it."""
        if self._syncer != NULL:
            syncer_stop(self._syncer)
            self._syncer = NULL

    cdef syncer* _alive(self) except NULL:
        if self._syncer == NULL:
            raise ValueError("the thread was stopped")
        return self._syncer


@cython.final
@cython.freelist(64)
cdef class _Place:
    cdef object greenlet


@cython.final
cdef class Waiters:
    """Greenlets that wait until the hub says how it went, all who wait at a time together.

    PERF: `loadtests.audit_cost`: a Waiter of gevent's and a method of Python's around it cost 1.5 us more a wait.
    Shapes: `switch()` of the hub, `current()` is the greenlet that runs; `ask()` is called by the first who waits while
    `asked` is False, and makes it True; `failed(context, type, error, traceback)` is told what nobody caught; `refusal()`
    makes the error of who waits in vain, and of whoever comes while `closed`.
    """

    cdef list _waiting
    cdef object _switch, _current, _ask, _failed, _refusal
    cdef public bint asked, closed

    def __init__(self, switch, current, ask, failed, refusal):
        self._waiting, self._switch, self._current, self._ask, self._failed = [], switch, current, ask, failed
        self._refusal = refusal

    def __len__(self):
        return PyList_GET_SIZE(self._waiting)

    def wait(self):
        """Until `tell` says of the batch that this greenlet is in that all is well.

        Raises: the refusal.
        Yields to the hub: yes.
        """
        cdef _Place place
        if self.closed:
            raise self._refusal()
        place = _Place.__new__(_Place)
        place.greenlet = self._current()
        self._waiting.append(place)
        if not self.asked:
            self.asked = True
            self._ask()
        try:
            well = self._switch()
        finally:
            # Who was killed meanwhile is told nothing.
            place.greenlet = None
        if not well:
            raise self._refusal()

    def take(self):
        """All who wait now, for `tell`; they wait for nothing else any more."""
        cdef list batch = self._waiting
        self._waiting = []
        return batch

    def tell(self, list batch not None, outcome):
        """Called from the hub: everybody of a batch goes on, in the order in which they came.

        NOTE: nothing is raised; gevent would stop the watcher whose callback this is part of.
        """
        cdef _Place place
        for place in batch:
            if place.greenlet is not None:
                try:
                    place.greenlet.switch(outcome)
                except BaseException as error:
                    self._failed(self, type(error), error, error.__traceback__)
