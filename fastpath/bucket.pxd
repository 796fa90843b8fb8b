"""What other kernels take from token buckets directly."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "bucket.h" nogil:
    ctypedef struct bucket_slot:
        uint64_t key
        uint64_t full_at
    ctypedef struct bucket_stripe:
        pass
    int bucket_swap(bucket_slot* slot, uint64_t key, uint64_t full_at, uint64_t new_key, uint64_t new_full_at)
    uint64_t bucket_load(const uint64_t* word)
    int bucket_swap_word(uint64_t* word, uint64_t expected, uint64_t next)
    void bucket_raise(uint64_t* word, uint64_t floor)
    void bucket_count(uint64_t* word)
    int bucket_stripe_init(bucket_stripe* stripe)
    int bucket_lock(bucket_stripe* stripe)
    void bucket_unlock(bucket_stripe* stripe)

cdef enum:
    WAYS = 8
    STRIPES = 64
    OVERFLOWS = 1024
    ALIGNMENT = 64
    MAX_CAPACITY = 1 << 28


cdef struct Header:
    uint64_t magic
    uint64_t capacity
    uint64_t sets
    # No bucket whose slot was given away would have been full later than this.
    uint64_t floor
    uint64_t evictions
    uint64_t overflow_takes
    uint64_t contended
    uint64_t reserved


cdef struct Segment:
    Header header
    bucket_stripe stripes[STRIPES]
    uint64_t overflow[OVERFLOWS]


cdef struct Rule:
    # A take's rule and time. `span` is how long an empty bucket takes to fill.
    uint64_t interval
    uint64_t span
    uint64_t now
    uint64_t* overflow


cdef struct Taken:
    # `full_at` is the bucket's time after the take, `wait` is 0 if it was admitted.
    uint64_t full_at
    uint64_t wait


cdef inline uint64_t tokens_left(const Taken* taken, int64_t interval_ns, int64_t burst, int64_t now_ns) noexcept nogil:
    """What an admitted take left in its bucket."""
    return (<uint64_t>(interval_ns * burst) - (taken.full_at - <uint64_t>now_ns)) // <uint64_t>interval_ns


cdef class BucketTable:
    cdef Py_buffer view
    cdef Segment* segment
    cdef bucket_slot* slots
    cdef uint64_t sets
    cdef uint64_t secret[2]

    cdef int clear(self, Py_ssize_t capacity) except -1
    cdef uint64_t long_key(self, tuple parts) except? 0
    cdef uint64_t owed(self, uint64_t key, const Rule* rule) noexcept nogil
    cdef int ask(self, int64_t interval_ns, int64_t burst, int64_t now_ns, uint64_t rule, Rule* asked) except -1
    cdef bint take_into(
        self, uint64_t key, int64_t interval_ns, int64_t burst, int64_t now_ns, uint64_t rule, Taken* taken
    ) except -1
    cdef bint undo(self, uint64_t key, uint64_t interval, uint64_t full_at, uint64_t rule) noexcept nogil
    cdef void fetch_ahead(self, uint64_t key) noexcept nogil
    cdef bucket_slot* first_set(self, uint64_t key) noexcept nogil
    cdef bucket_slot* second_set(self, uint64_t key) noexcept nogil
    cdef uint64_t* overflow_of(self, uint64_t rule, uint64_t interval) noexcept nogil
    cdef bucket_slot* find(self, uint64_t key) noexcept nogil
    cdef void charge(self, uint64_t key, const Rule* rule, Taken* taken) noexcept nogil
    cdef bint charge_new(self, uint64_t key, const Rule* rule, Taken* taken) noexcept nogil
    cdef void place(self, uint64_t key, const Rule* rule, Taken* taken) noexcept nogil
    cdef bucket_slot* vacant(self, uint64_t key, uint64_t now, uint64_t* old_key, uint64_t* old_full_at) noexcept nogil
    cdef void vacant_in(
        self, bucket_slot* slots, uint64_t now, bucket_slot** best, int* free, uint64_t* old_key, uint64_t* old_full_at
    ) noexcept nogil
