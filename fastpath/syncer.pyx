"""A thread that syncs files while the hub goes on: the one kernel that does I/O, and it does nothing else.

PERF: `audit_durable` of `make bench`: the thread holds no lock of the interpreter. One in Python asks for it twice a sync,
and waits for a hub at work up to the interpreter's switching interval of 5 ms, with all who wait for the sync.
"""

cimport cython
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
