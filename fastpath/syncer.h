/* A thread that makes files durable and tells it by an eventfd. It never holds the interpreter's lock. */

#ifndef CAREGATE_SYNCER_H
#define CAREGATE_SYNCER_H

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum syncer_state { SYNCER_IDLE, SYNCER_ASKED, SYNCER_ENDED };

/* Whose turn it is says `state`: the thread's while SYNCER_ASKED, else the hub's; `leaving` is set once, by the hub. The thread
 * frees it: its disk may hang for ever.
 * PERF: `audit_durable` of `make bench`: with a lock and a condition each sync had up to five calls of futex and two more
 * switches on a processor that both share: who was woken waited for the lock of who woke it. */
struct syncer {
    sem_t work;
    enum syncer_state state;
    int told, leaving, error, count;
    int *files;
};

static enum syncer_state syncer_state(struct syncer *syncer) { return __atomic_load_n(&syncer->state, __ATOMIC_ACQUIRE); }

static void syncer_to(struct syncer *syncer, enum syncer_state state) {
    __atomic_store_n(&syncer->state, state, __ATOMIC_RELEASE);
}

static void syncer_free(struct syncer *syncer) {
    close(syncer->told);
    sem_destroy(&syncer->work);
    free(syncer->files);
    free(syncer);
}

/* As the kernel has it, up to its first fields (sched_setattr(2)). */
struct syncer_schedule {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* PERF: `audit_durable` of `make bench`: who has short turns has them soon (EEVDF, Linux 6.12 and later); on a busy processor
 * the thread waited up to 4 ms for the end of the hub's turn, twice a sync. Elsewhere nothing changes. */
static void syncer_be_short(void) {
    struct syncer_schedule schedule = {.size = sizeof schedule};
    if (syscall(SYS_sched_getattr, 0, &schedule, sizeof schedule, 0)) return;
    schedule.runtime = 100000;
    if (syscall(SYS_sched_setattr, 0, &schedule, 0)) return;
}

static void *syncer_run(void *given) {
    struct syncer *syncer = given;
    syncer_be_short();
    const uint64_t one = 1;
    while (1) {
        while (sem_wait(&syncer->work)) { /* EINTR */ }
        if (syncer_state(syncer) == SYNCER_ASKED) {
            int error = 0;
            for (int i = 0; i < syncer->count; i++)
                if (fdatasync(syncer->files[i]) && !error) error = errno;
            syncer->error = error;
            syncer_to(syncer, SYNCER_ENDED);
            if (write(syncer->told, &one, sizeof one) < 0) { /* a counter of one is never full */ }
        } else if (__atomic_load_n(&syncer->leaving, __ATOMIC_ACQUIRE)) {
            break;
        }
    }
    syncer_free(syncer);
    return NULL;
}

/* NULL and errno if there is no thread to be had. */
static struct syncer *syncer_start(void) {
    pthread_t thread;
    sigset_t all, before;
    struct syncer *syncer = calloc(1, sizeof *syncer);
    if (!syncer) return NULL;
    sem_init(&syncer->work, 0, 0);
    syncer->told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (syncer->told < 0) {
        free(syncer);
        return NULL;
    }
    /* Signals are for the interpreter's main thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, NULL, syncer_run, syncer);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        syncer_free(syncer);
        errno = failed;
        return NULL;
    }
    pthread_detach(thread);
    return syncer;
}

/* EBUSY while another is under way, ENOMEM, or 0. */
static int syncer_begin(struct syncer *syncer, const int *files, int count) {
    if (syncer_state(syncer) != SYNCER_IDLE) return EBUSY;
    int *room = realloc(syncer->files, (size_t)(count ? count : 1) * sizeof *room);
    if (!room) return ENOMEM;
    if (count) memcpy(room, files, (size_t)count * sizeof *room);
    syncer->files = room;
    syncer->count = count;
    syncer_to(syncer, SYNCER_ASKED);
    sem_post(&syncer->work);
    return 0;
}

/* -1 while it is under way; else 0, or the first error. Once for each `syncer_begin`. */
static int syncer_ended(struct syncer *syncer) {
    uint64_t count;
    if (read(syncer->told, &count, sizeof count) < 0 || syncer_state(syncer) != SYNCER_ENDED) return -1;
    int error = syncer->error;
    syncer_to(syncer, SYNCER_IDLE);
    return error;
}

/* The thread ends when its disk lets it; nobody hears of that any more. */
static void syncer_stop(struct syncer *syncer) {
    __atomic_store_n(&syncer->leaving, 1, __ATOMIC_RELEASE);
    sem_post(&syncer->work);
}

#endif
