/* A disk that is slow, fails, lies, or loses its power: preloaded into the gateway by loadtests/ledger/disk.py.
 *
 * Only files below CAREGATE_TEST_SHIM_ROOT are looked at. CAREGATE_TEST_SHIM_CONTROL is a file of three numbers, read at each sync:
 * delay in milliseconds, failures in a thousand, and 1 to acknowledge without doing anything. CAREGATE_TEST_SHIM_IMAGE is a
 * folder that gets what would be found after a loss of power:
 *
 *   data/KEY    a file's content as of its last sync     dirs/KEY    a folder's names as of its last sync: KIND KEY NAME
 *   lost/KEY    a file's content when its sync failed    clean/KEY   a byte a page: 1 if the kernel now takes it for
 *                                                                    written, which it is not, and will not try again
 *
 * So it is stricter than most file systems: a name is durable when its folder was synced, and not before.
 * KEY is the inode with the time it was made, so that an inode used again is another file.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, NAME = 64, FILES = 4096, DESCRIPTORS = 4096 };

static const char *root, *image, *control;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int orders = -1;
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_msync)(void *, size_t, int);
static int (*real_sync_file_range)(int, off64_t, off64_t, unsigned);
static int (*real_wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);

__attribute__((constructor)) static void begin(void) {
    root = getenv("CAREGATE_TEST_SHIM_ROOT");
    image = getenv("CAREGATE_TEST_SHIM_IMAGE");
    control = getenv("CAREGATE_TEST_SHIM_CONTROL");
    *(void **)&real_fsync = dlsym(RTLD_NEXT, "fsync");
    *(void **)&real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    *(void **)&real_msync = dlsym(RTLD_NEXT, "msync");
    *(void **)&real_sync_file_range = dlsym(RTLD_NEXT, "sync_file_range");
    void *libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    *(void **)&real_wait = dlsym(libc ? libc : RTLD_NEXT, "pthread_cond_timedwait");
    *(void **)&real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
}

static int watched(int fd) {
    char link[32], path[PATH_MAX];
    if (!root || !control) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    size_t below = strlen(root);
    if (size < (ssize_t)below) return 0;
    path[size] = 0;
    return !strncmp(path, root, below) && (path[below] == '/' || !path[below]);
}

static void look(long *delay_ms, long *failures, long *lies) {
    char text[64] = "";
    *delay_ms = *failures = *lies = 0;
    /* Opened once, and written again in place: what is measured is the gateway, not this. */
    pthread_mutex_lock(&lock);
    if (orders < 0) orders = open(control, O_RDONLY | O_CLOEXEC);
    pthread_mutex_unlock(&lock);
    if (orders < 0 || pread(orders, text, sizeof text - 1, 0) <= 0) return;
    char *at = text;
    *delay_ms = strtol(at, &at, 10);
    *failures = strtol(at, &at, 10);
    *lies = strtol(at, &at, 10);
}

/* A thread's sleeps may end 50 us late, so that the kernel can have several end at once; a disk's answer does not wait. */
static void rest(long ms) {
    static __thread int punctual;
    if (!punctual) punctual = !prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (ms > 0 && nanosleep(&left, &left) < 0 && errno == EINTR) {}
}

static int key_of(int at, const char *name, char *key, mode_t *mode) {
    struct statx s;
    if (statx(at, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &s) < 0) return -1;
    snprintf(key, NAME, "%llu-%lld-%u", (unsigned long long)s.stx_ino, (long long)s.stx_btime.tv_sec, s.stx_btime.tv_nsec);
    *mode = s.stx_mode;
    return 0;
}

static int open_again(int fd) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return open(link, O_RDONLY | O_CLOEXEC);
}

static int open_kept(const char *what, const char *key, int flags) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s/%s", image, what, key);
    return open(path, flags | O_CLOEXEC, 0600);
}

static void keep_names(int fd, const char *key) {
    char from[32], part[PATH_MAX], path[PATH_MAX], entry_key[NAME];
    struct dirent *entry;
    mode_t mode;
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    snprintf(part, sizeof part, "%s/dirs/%s.%d", image, key, getpid());
    snprintf(path, sizeof path, "%s/dirs/%s", image, key);
    DIR *dir = opendir(from);
    FILE *out = fopen(part, "we");
    while (dir && out && (entry = readdir(dir)))
        if (entry->d_name[0] != '.' && !key_of(dirfd(dir), entry->d_name, entry_key, &mode))
            fprintf(out, "%c %s %s\n", S_ISDIR(mode) ? 'd' : 'f', entry_key, entry->d_name);
    if (dir) closedir(dir);
    if (out && !fclose(out)) rename(part, path);
}

/* What a sync that worked has written: every page but those that an earlier, failed one has made the kernel forget. */
static void keep_pages(int fd, const char *key) {
    char now[PAGE], kept[PAGE], was[PAGE], clean;
    int data = open_kept("data", key, O_RDWR | O_CREAT), lost = open_kept("lost", key, O_RDONLY);
    int marks = lost < 0 ? -1 : open_kept("clean", key, O_RDWR);
    off64_t at = 0;
    ssize_t size;
    for (; data >= 0 && (size = pread(fd, now, PAGE, at)) > 0; at += PAGE) {
        ssize_t had = pread(data, kept, PAGE, at);
        if (had == size && !memcmp(now, kept, (size_t)size)) continue;
        if (marks >= 0 && pread(marks, &clean, 1, at / PAGE) == 1 && clean
            && pread(lost, was, PAGE, at) == size && !memcmp(now, was, (size_t)size))
            continue;
        real_pwrite(data, now, (size_t)size, at);
    }
    struct stat status;
    if (data >= 0 && !fstat(fd, &status)) { if (ftruncate(data, status.st_size)) {} }
    if (data >= 0) close(data);
    if (lost >= 0) close(lost);
    if (marks >= 0) close(marks);
}

/* A sync that fails: the pages that it should have written count as clean from here on. */
static void forget_pages(int fd, const char *key) {
    char now[PAGE], kept[PAGE], clean;
    int data = open_kept("data", key, O_RDONLY), lost = open_kept("lost", key, O_RDWR | O_CREAT);
    int marks = open_kept("clean", key, O_RDWR | O_CREAT);
    off64_t at = 0;
    ssize_t size;
    for (; (size = pread(fd, now, PAGE, at)) > 0; at += PAGE) {
        clean = !(data >= 0 && pread(data, kept, PAGE, at) == size && !memcmp(now, kept, (size_t)size));
        real_pwrite(lost, now, (size_t)size, at);
        real_pwrite(marks, &clean, 1, at / PAGE);
    }
    if (data >= 0) close(data);
    close(lost);
    close(marks);
}

/* As Linux tells them (errseq_t): each opening of a file hears of an error once, whichever sync met it. One that was opened
 * after it may hear of it here too. */
static struct { char key[NAME]; unsigned faults; } met[FILES], heard[DESCRIPTORS];
static int trouble;

static unsigned *faults_of(const char *key) {
    int i = 0;
    while (i < FILES - 1 && *met[i].key && strcmp(met[i].key, key)) i++;
    strcpy(met[i].key, key);
    return &met[i].faults;
}

static int hears(int fd, const char *key) {
    if (!trouble || fd >= DESCRIPTORS) return 0;
    unsigned faults = *faults_of(key);
    if (strcmp(heard[fd].key, key)) {
        strcpy(heard[fd].key, key);
        heard[fd].faults = 0;
    }
    int news = heard[fd].faults != faults;
    heard[fd].faults = faults;
    return news;
}

static int sync_one(int fd, int (*real)(int)) {
    long delay_ms, failures, lies;
    char key[NAME];
    mode_t mode;
    int result = 0, why = 0;
    if (!watched(fd)) return real(fd);
    look(&delay_ms, &failures, &lies);
    rest(delay_ms);
    if (lies) return 0;
    if (!image && !failures && !trouble) return real(fd);
    if (key_of(fd, "", key, &mode) < 0) return -1;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&lock);
    /* Not every descriptor that is synced can be read. */
    int readable = image ? open_again(fd) : -1;
    if (S_ISREG(mode) && now.tv_nsec / 1000 % 1000 < failures) {
        if (image) forget_pages(readable, key);
        ++*faults_of(key);
        trouble = 1;
    } else if (!(result = real(fd)) && image) {
        if (S_ISDIR(mode)) keep_names(fd, key);
        else keep_pages(readable, key);
    }
    if (readable >= 0) close(readable);
    if (hears(fd, key)) {
        result = -1;
        why = EIO;
    }
    pthread_mutex_unlock(&lock);
    if (result) errno = why ? why : errno;
    return result;
}

int fsync(int fd) { return sync_one(fd, real_fsync); }

int fdatasync(int fd) { return sync_one(fd, real_fdatasync); }

/* These two make nothing durable here: who relies on them is found out. */
int msync(void *at, size_t size, int flags) {
    long delay_ms, failures, lies;
    if (root && control) {
        look(&delay_ms, &failures, &lies);
        rest(delay_ms);
    }
    return real_msync(at, size, flags);
}

int sync_file_range(int fd, off64_t at, off64_t size, unsigned flags) {
    long delay_ms, failures, lies;
    if (watched(fd)) {
        look(&delay_ms, &failures, &lies);
        rest(delay_ms);
    }
    return real_sync_file_range(fd, at, size, flags);
}

/* libfaketime 0.9.10 takes the false time from waits on the true clock, too: sleeps fail, Python's threads stall. */
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    return real_wait(condition, mutex, until);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *left) {
    return syscall(SYS_clock_nanosleep, clock, flags, until, left) < 0 ? errno : 0;
}

/* What is written again is dirty again. */
static void soil(int fd, off64_t at, ssize_t size) {
    char key[NAME], dirty = 0;
    mode_t mode;
    if (!image || size <= 0 || !watched(fd) || key_of(fd, "", key, &mode) < 0) return;
    int marks = open_kept("clean", key, O_RDWR);
    if (marks < 0) return;
    for (off64_t page = at / PAGE; page <= (at + size - 1) / PAGE; page++) real_pwrite(marks, &dirty, 1, page);
    close(marks);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    ssize_t written = real_pwrite(fd, from, size, at);
    int was = errno;
    soil(fd, at, written);
    errno = was;
    return written;
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at) { return pwrite64(fd, from, size, at); }
