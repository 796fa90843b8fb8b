"""Token buckets in memory that all workers of a machine share.

A bucket is one number: the time at which it is full again (the theoretical arrival time of GCRA). It lives with its key
in one slot of 16 bytes that only ever changes by one compare-and-swap of the whole, so there is no state in between: a
process may be killed at any instruction and the worst it leaves is a token taken for a request that nobody served.

A key has two sets of eight slots to live in. Only a key's first take needs a lock, so that two workers do not give it two
buckets; the kernel frees the lock of a process that died. A slot whose bucket is full says nothing that an absent one
does not, and may be given to another key. Where both sets are taken by buckets that are not full, the take is charged to
one overflow bucket that all such keys of the rule share.

Every time is handed in (integer nanoseconds of a monotonic clock). None is trusted to be later than the last one: what a
bucket has lent is kept when it moves to and from the overflow, and when its slot is given away.

Source: ITU-T I.371, generic cell rate algorithm; Azar et al., Balanced Allocations (two choices).
"""

cimport cython

import hashlib

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

from fastpath.primitives cimport fetch, siphash64

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef uint64_t MAGIC = 0x6361726567627431ULL
cdef int64_t MAX_NS = 1LL << 62
cdef int64_t MAX_SPAN_NS = 1LL << 61
cdef uint64_t GOLDEN = 0x9E3779B97F4A7C15ULL


cdef inline uint64_t later(uint64_t a, uint64_t b) noexcept nogil:
    return a if a > b else b


cdef inline bint admit(const Rule* rule, uint64_t full_at, Taken* taken) noexcept nogil:
    """Decide by a bucket's time; `taken` gets what it then is."""
    cdef uint64_t base = later(full_at, rule.now)
    cdef uint64_t ahead = base - rule.now + rule.interval
    if ahead > rule.span:
        taken.full_at = base
        taken.wait = ahead - rule.span
        return False
    taken.full_at = base + rule.interval
    taken.wait = 0
    return True


cdef Py_ssize_t sets_for(Py_ssize_t capacity) except -1:
    if not 1 <= capacity <= MAX_CAPACITY:
        raise ValueError("capacity is out of range")
    # Half full at capacity: measured, fewer than one key in 10**6 then finds both its sets taken.
    return max(2, (2 * capacity + WAYS - 1) // WAYS)


def segment_bytes(Py_ssize_t capacity):
    """Size of the shared segment of a table with room for `capacity` keys that are not full."""
    return <Py_ssize_t>sizeof(Segment) + sets_for(capacity) * WAYS * <Py_ssize_t>sizeof(bucket_slot)


@cython.final
cdef class BucketTable:
    """Token buckets by key, over a writable buffer that is shared by all processes that fork after it was made.

    Holds: the buffer. Stripe locks while a key gets its first slot: under a microsecond; a process that keeps one for
    5 ms without dying makes the takes that need it refuse.
    """

    def __cinit__(self, buffer, Py_ssize_t capacity, bytes secret not None, *, bint create):
        """Units: `secret` at least 16 bytes. `create` clears the buffer, otherwise it must hold a table already.

        Raises: ValueError for a buffer that is too small, not aligned to 64 bytes or not a table of this capacity.
        """
        if len(secret) < 16:
            raise ValueError("the secret is shorter than 16 bytes")
        cdef bytes digest = hashlib.blake2b(secret, digest_size=16, person=b"caregate-bucket").digest()
        memcpy(self.secret, PyBytes_AS_STRING(digest), 16)
        self.sets = <uint64_t>sets_for(capacity)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if self.view.len < segment_bytes(capacity):
            raise ValueError("the buffer is smaller than segment_bytes(capacity)")
        if <size_t>self.view.buf % ALIGNMENT:
            raise ValueError("the buffer is not aligned")
        self.segment = <Segment*>self.view.buf
        self.slots = <bucket_slot*>(<uint8_t*>self.view.buf + sizeof(Segment))
        if create:
            self.clear(capacity)
        elif self.segment.header.magic != MAGIC or self.segment.header.capacity != <uint64_t>capacity:
            raise ValueError("the buffer holds no table of this capacity")

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    cdef int clear(self, Py_ssize_t capacity) except -1:
        cdef int i
        memset(self.view.buf, 0, <size_t>segment_bytes(capacity))
        for i in range(STRIPES):
            if bucket_stripe_init(&self.segment.stripes[i]):
                raise OSError("this system has no robust process-shared mutexes")
        self.segment.header.capacity = <uint64_t>capacity
        self.segment.header.sets = self.sets
        self.segment.header.magic = MAGIC
        return 0

    def key(self, *parts):
        """The keyed hash of a sequence of texts or bytes; ("a", "bc") and ("ab", "c") differ.

        Source: SipHash-2-4 (Aumasson, Bernstein): who does not know the secret cannot make two keys meet.
        """
        cdef uint8_t space[512]
        cdef uint8_t* at = space
        cdef Py_ssize_t left = sizeof(space), size
        cdef const uint8_t* text
        cdef uint32_t length
        for part in parts:
            text = part_text(part, &size)
            if size > left - 4:
                return self.long_key(parts)
            length = <uint32_t>size
            memcpy(at, &length, 4)
            memcpy(at + 4, text, <size_t>size)
            at += 4 + size
            left -= 4 + size
        return siphash64(self.secret, space, <size_t> (at - space))

    cdef uint64_t long_key(self, tuple parts) except? 0:
        raws = [part.encode("utf-8") if isinstance(part, str) else part for part in parts]
        cdef bytes joined = b"".join([len(raw).to_bytes(4, "little") + raw for raw in raws])
        return siphash64(self.secret, <const uint8_t*>PyBytes_AS_STRING(joined), <size_t> PyBytes_GET_SIZE(joined))

    def take(self, uint64_t key, int64_t interval_ns, int64_t burst, int64_t now_ns, uint64_t rule=0):
        """Take a token from the bucket of `key`: `burst` tokens when full, one more every `interval_ns`.

        Shapes: (admitted, tokens left, wait_ns until one is there or 0, reset_ns until the bucket is full). `rule` tells
        overflow buckets apart; a key belongs to one rule.

        Raises: ValueError for a rule or a time out of range.
        """
        cdef Taken taken
        cdef uint64_t left = 0
        if self.take_into(key, interval_ns, burst, now_ns, rule, &taken):
            left = tokens_left(&taken, interval_ns, burst, now_ns)
        return taken.wait == 0, left, taken.wait, taken.full_at - <uint64_t>now_ns

    def peek(self, uint64_t key, int64_t interval_ns, int64_t burst, int64_t now_ns, uint64_t rule=0):
        """What `take` would answer now, without taking. Shapes: as `take`, but the tokens left and `reset_ns` are those
        that are there."""
        cdef Rule asked
        cdef Taken taken
        cdef uint64_t full_at, ahead
        self.ask(interval_ns, burst, now_ns, rule, &asked)
        full_at = later(self.owed(key or 1, &asked), asked.now)
        admit(&asked, full_at, &taken)
        ahead = full_at - asked.now
        return taken.wait == 0, (asked.span - ahead) // asked.interval if ahead < asked.span else 0, taken.wait, ahead

    cdef uint64_t owed(self, uint64_t key, const Rule* rule) noexcept nogil:
        """When the bucket of a key is full: its own slot's time, or what a key without one starts from."""
        cdef bucket_slot* slot
        cdef uint64_t full_at
        while True:
            slot = self.find(key)
            if slot is NULL:
                return later(bucket_load(rule.overflow), bucket_load(&self.segment.header.floor))
            full_at = bucket_load(&slot.full_at)
            if bucket_load(&slot.key) == key:
                return full_at

    cdef int ask(self, int64_t interval_ns, int64_t burst, int64_t now_ns, uint64_t rule, Rule* asked) except -1:
        """A rule in the form a take needs it. Raises: ValueError."""
        if interval_ns < 1 or burst < 1 or burst > MAX_SPAN_NS // interval_ns or not 0 <= now_ns <= MAX_NS:
            raise ValueError("interval, burst or time is out of range")
        asked.interval = <uint64_t>interval_ns
        asked.span = <uint64_t>(interval_ns * burst)
        asked.now = <uint64_t>now_ns
        asked.overflow = self.overflow_of(rule, asked.interval)
        return 0

    cdef bint take_into(
        self, uint64_t key, int64_t interval_ns, int64_t burst, int64_t now_ns, uint64_t rule, Taken* taken
    ) except -1:
        """`take` for other kernels: was a token there? Raises: ValueError."""
        cdef Rule asked
        self.ask(interval_ns, burst, now_ns, rule, &asked)
        self.charge(key or 1, &asked, taken)
        return taken.wait == 0

    def give_back(self, uint64_t key, int64_t interval_ns, int64_t taken_ns, int64_t reset_ns, uint64_t rule=0):
        """Undo an admitted take that was answered with `reset_ns` at `taken_ns`; False: too late, the token stays taken.

        It is too late once the bucket changed: what it would be without that take is then not known for certain, and a
        token too many is worse than one too few.
        """
        if taken_ns < 0 or reset_ns < interval_ns or interval_ns < 1:
            raise ValueError("not what a take answered")
        return self.undo(key, <uint64_t>interval_ns, <uint64_t>(taken_ns + reset_ns), rule)

    cdef bint undo(self, uint64_t key, uint64_t interval, uint64_t full_at, uint64_t rule) noexcept nogil:
        """`give_back` for other kernels: `full_at` is what the take left."""
        cdef bucket_slot* slot = self.find(key or 1)
        if slot is not NULL:
            return bucket_swap(slot, key or 1, full_at, key or 1, full_at - interval) != 0
        return bucket_swap_word(self.overflow_of(rule, interval), full_at, full_at - interval) != 0

    def stats(self):
        """Figures since the table was made; `used` counts slots that hold a key, full buckets included."""
        cdef uint64_t i, used = 0
        cdef Header* header = &self.segment.header
        for i in range(self.sets * WAYS):
            used += bucket_load(&self.slots[i].key) != 0
        return {
            "capacity": header.capacity,
            "slots": self.sets * WAYS,
            "used": used,
            "evictions": bucket_load(&header.evictions),
            "overflow_takes": bucket_load(&header.overflow_takes),
            "contended": bucket_load(&header.contended),
        }

    cdef void fetch_ahead(self, uint64_t key) noexcept nogil:
        """Have the slots of a key come from memory while something else is done."""
        cdef const char* first = <const char*> self.first_set(key or 1)
        cdef const char* second = <const char*> self.second_set(key or 1)
        fetch(first)
        fetch(first + ALIGNMENT)
        fetch(second)
        fetch(second + ALIGNMENT)

    cdef bucket_slot* first_set(self, uint64_t key) noexcept nogil:
        return &self.slots[(<uint64_t><uint32_t>key * self.sets >> 32) * WAYS]

    cdef bucket_slot* second_set(self, uint64_t key) noexcept nogil:
        return &self.slots[((key >> 32) * self.sets >> 32) * WAYS]

    cdef uint64_t* overflow_of(self, uint64_t rule, uint64_t interval) noexcept nogil:
        # NOTE: two rules that meet in one overflow bucket are held to it together: stricter, never laxer.
        return &self.segment.overflow[(rule ^ interval * GOLDEN) * GOLDEN >> 54]

    cdef bucket_slot* find(self, uint64_t key) noexcept nogil:
        cdef bucket_slot* slot = self.first_set(key)
        cdef int i
        for i in range(WAYS):
            if bucket_load(&slot[i].key) == key:
                return &slot[i]
        slot = self.second_set(key)
        for i in range(WAYS):
            if bucket_load(&slot[i].key) == key:
                return &slot[i]
        return NULL

    cdef void charge(self, uint64_t key, const Rule* rule, Taken* taken) noexcept nogil:
        cdef bucket_slot* slot
        cdef uint64_t full_at
        while True:
            slot = self.find(key)
            if slot is NULL:
                if self.charge_new(key, rule, taken):
                    return
                continue
            full_at = bucket_load(&slot.full_at)
            # The slot may have changed hands between the two loads; the swap would notice, a refusal would not.
            if bucket_load(&slot.key) != key:
                continue
            if not admit(rule, full_at, taken) or bucket_swap(slot, key, full_at, key, taken.full_at):
                return

    cdef bint charge_new(self, uint64_t key, const Rule* rule, Taken* taken) noexcept nogil:
        """A take from a key without a slot; False: another process gave it one meanwhile."""
        cdef Header* header = &self.segment.header
        cdef bucket_stripe* stripe = &self.segment.stripes[key * GOLDEN >> 58]
        cdef bint found
        if not bucket_lock(stripe):
            # SEC: refused. Without the lock it is not known that the key has no bucket, and a second one is a second burst.
            bucket_count(&header.contended)
            taken.full_at = rule.now + rule.interval
            taken.wait = rule.interval
            return True
        found = self.find(key) is not NULL
        if not found:
            self.place(key, rule, taken)
        bucket_unlock(stripe)
        return not found

    cdef void place(self, uint64_t key, const Rule* rule, Taken* taken) noexcept nogil:
        """Give a key its slot and take the first token, or take one from the overflow. The key's stripe is locked."""
        cdef Header* header = &self.segment.header
        cdef bucket_slot* slot
        cdef uint64_t old_key, old_full_at, lent, overflow
        while True:
            # SEC: the key may have taken from the overflow, or have had a slot before the clock stepped back: its new
            # bucket starts where those ended.
            overflow = bucket_load(rule.overflow)
            lent = later(overflow, bucket_load(&header.floor))
            if not admit(rule, lent, taken):
                return
            slot = self.vacant(key, rule.now, &old_key, &old_full_at)
            if slot is NULL:
                if bucket_swap_word(rule.overflow, overflow, taken.full_at):
                    bucket_count(&header.overflow_takes)
                    return
                continue
            bucket_raise(&header.floor, old_full_at)
            if bucket_swap(slot, old_key, old_full_at, key, taken.full_at):
                if old_key:
                    bucket_count(&header.evictions)
                return

    cdef bucket_slot* vacant(self, uint64_t key, uint64_t now, uint64_t* old_key, uint64_t* old_full_at) noexcept nogil:
        """The slot, among a key's two sets, of the bucket that has been full for longest, in the set with more of them."""
        cdef bucket_slot* best = NULL
        cdef int free = 0
        self.vacant_in(self.first_set(key), now, &best, &free, old_key, old_full_at)
        self.vacant_in(self.second_set(key), now, &best, &free, old_key, old_full_at)
        return best

    cdef void vacant_in(
        self, bucket_slot* slots, uint64_t now, bucket_slot** best, int* free, uint64_t* old_key, uint64_t* old_full_at
    ) noexcept nogil:
        cdef bucket_slot* oldest = NULL
        cdef uint64_t key, full_at, oldest_key = 0, oldest_full_at = 0
        cdef int i, full = 0
        for i in range(WAYS):
            key = bucket_load(&slots[i].key)
            full_at = bucket_load(&slots[i].full_at)
            if full_at > now:
                continue
            full += 1
            if oldest is NULL or full_at < oldest_full_at:
                oldest = &slots[i]
                oldest_key = key
                oldest_full_at = full_at
        if full > free[0]:
            free[0] = full
            best[0] = oldest
            old_key[0] = oldest_key
            old_full_at[0] = oldest_full_at


cdef const uint8_t* part_text(part, Py_ssize_t* size) except NULL:
    if isinstance(part, str):
        return <const uint8_t*>PyUnicode_AsUTF8AndSize(part, size)
    size[0] = len(<bytes?>part)
    return <const uint8_t*>PyBytes_AS_STRING(<bytes>part)
