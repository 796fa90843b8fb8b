/* What Cython cannot say: compare-and-swap over memory that processes share, and a lock that outlives its owner. */
#ifndef CAREGATE_BUCKET_H
#define CAREGATE_BUCKET_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

typedef struct {
    uint64_t key;
    uint64_t full_at;
} __attribute__((aligned(16))) bucket_slot;

typedef struct {
    pthread_mutex_t mutex;
} __attribute__((aligned(64))) bucket_stripe;

/* NOTE: cmpxchg16b is outside the x86-64 baseline that compilers assume, but every processor since 2006 has it. */
#if defined(__x86_64__)
#define BUCKET_CX16 __attribute__((target("cx16")))
#else
#define BUCKET_CX16
#endif

__extension__ typedef unsigned __int128 bucket_word;

static inline bucket_word bucket_pack(uint64_t key, uint64_t full_at)
{
    bucket_slot slot = {key, full_at};
    bucket_word word;
    __builtin_memcpy(&word, &slot, sizeof word);
    return word;
}

/* Replace key and time at once, if both are as expected. */
/* Inline, so that a unit which does not need it is compiled without a warning. */
BUCKET_CX16 static inline int bucket_swap(bucket_slot *slot, uint64_t key, uint64_t full_at, uint64_t new_key,
                                   uint64_t new_full_at)
{
    typedef bucket_word __attribute__((may_alias)) shared_word;
    return __sync_bool_compare_and_swap((shared_word *)slot, bucket_pack(key, full_at),
                                        bucket_pack(new_key, new_full_at));
}

static inline uint64_t bucket_load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }

static inline int bucket_swap_word(uint64_t *word, uint64_t expected, uint64_t next)
{
    return __atomic_compare_exchange_n(word, &expected, next, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static inline void bucket_raise(uint64_t *word, uint64_t floor)
{
    uint64_t seen = bucket_load(word);
    while (seen < floor && !__atomic_compare_exchange_n(word, &seen, floor, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
}

static inline void bucket_count(uint64_t *word) { __atomic_fetch_add(word, 1, __ATOMIC_RELAXED); }

static inline int bucket_stripe_init(bucket_stripe *stripe)
{
    pthread_mutexattr_t attributes;
    int failed = pthread_mutexattr_init(&attributes);
    if (failed)
        return failed;
    failed = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (!failed)
        failed = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    if (!failed)
        failed = pthread_mutex_init(&stripe->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return failed;
}

/* 1: locked. 0: a living owner kept it for about 5 ms. The kernel hands on the lock of an owner that was killed; what the
   lock guards is one compare-and-swap, so it is whole whenever that happened. */
static inline int bucket_lock(bucket_stripe *stripe)
{
    const struct timespec pause = {0, 50000};
    int tries;
    for (tries = 0; tries < 150; tries++) {
        int outcome = pthread_mutex_trylock(&stripe->mutex);
        if (outcome == 0)
            return 1;
        if (outcome == EOWNERDEAD)
            return pthread_mutex_consistent(&stripe->mutex) == 0;
        if (outcome != EBUSY)
            return 0;
        if (tries >= 50)
            nanosleep(&pause, NULL);
    }
    return 0;
}

static inline void bucket_unlock(bucket_stripe *stripe) { pthread_mutex_unlock(&stripe->mutex); }

#endif
