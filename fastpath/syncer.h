/* A thread that makes files durable and tells it by an eventfd. It never holds the interpreter's lock. */

#ifndef CAREGATE_SYNCER_H
#define CAREGATE_SYNCER_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum syncer_state { SYNCER_IDLE, SYNCER_ASKED, SYNCER_ENDED };

/* `lock` guards all the rest but `told`, which is the same from begin to end. The thread frees it: its disk may hang for ever. */
struct syncer {
    pthread_mutex_t lock;
    pthread_cond_t work;
    enum syncer_state state;
    int told, leaving, error, count;
    int *files;
};

static void syncer_free(struct syncer *syncer) {
    close(syncer->told);
    pthread_cond_destroy(&syncer->work);
    pthread_mutex_destroy(&syncer->lock);
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
    pthread_mutex_lock(&syncer->lock);
    while (1) {
        while (!syncer->leaving && syncer->state != SYNCER_ASKED) pthread_cond_wait(&syncer->work, &syncer->lock);
        if (syncer->state != SYNCER_ASKED) break;
        pthread_mutex_unlock(&syncer->lock);
        /* The files are the thread's until it has ended. */
        int error = 0;
        for (int i = 0; i < syncer->count; i++)
            if (fdatasync(syncer->files[i]) && !error) error = errno;
        pthread_mutex_lock(&syncer->lock);
        syncer->error = error;
        syncer->state = SYNCER_ENDED;
        if (write(syncer->told, &one, sizeof one) < 0) { /* a counter of one is never full */ }
    }
    pthread_mutex_unlock(&syncer->lock);
    syncer_free(syncer);
    return NULL;
}

/* NULL and errno if there is no thread to be had. */
static struct syncer *syncer_start(void) {
    pthread_t thread;
    sigset_t all, before;
    struct syncer *syncer = calloc(1, sizeof *syncer);
    if (!syncer) return NULL;
    pthread_mutex_init(&syncer->lock, NULL);
    pthread_cond_init(&syncer->work, NULL);
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
    int error = 0;
    pthread_mutex_lock(&syncer->lock);
    if (syncer->state != SYNCER_IDLE) {
        error = EBUSY;
    } else {
        int *room = realloc(syncer->files, (size_t)(count ? count : 1) * sizeof *room);
        if (!room) {
            error = ENOMEM;
        } else {
            if (count) memcpy(room, files, (size_t)count * sizeof *room);
            syncer->files = room;
            syncer->count = count;
            syncer->state = SYNCER_ASKED;
            pthread_cond_signal(&syncer->work);
        }
    }
    pthread_mutex_unlock(&syncer->lock);
    return error;
}

/* -1 while it is under way; else 0, or the first error. Once for each `syncer_begin`. */
static int syncer_ended(struct syncer *syncer) {
    uint64_t count;
    int error = -1;
    if (read(syncer->told, &count, sizeof count) < 0) return -1;
    pthread_mutex_lock(&syncer->lock);
    if (syncer->state == SYNCER_ENDED) {
        syncer->state = SYNCER_IDLE;
        error = syncer->error;
    }
    pthread_mutex_unlock(&syncer->lock);
    return error;
}

/* The thread ends when its disk lets it; nobody hears of that any more. */
static void syncer_stop(struct syncer *syncer) {
    pthread_mutex_lock(&syncer->lock);
    syncer->leaving = 1;
    pthread_cond_signal(&syncer->work);
    pthread_mutex_unlock(&syncer->lock);
}

#endif
