/* Records what a process does to the files below one folder, in one total order, for `replay.py`.
 *
 * Built as a shared library and put into LD_PRELOAD. It stands in front of the functions of libc that change files,
 * makes the system call itself, and appends a record to a log. One lock is held over both, so the order of the log is
 * an order in which the effects may have happened, and an fsync is recorded after it returned. What it does not know is
 * recorded as such ('?'), and the replay refuses the log: a change that goes unseen would make the test too kind.
 *
 * Files are named by their inodes, names by their paths. The environment says what to do:
 *   POWER_ROOT           the folder, as a real path; without it nothing is recorded
 *   POWER_LOG            the log, appended to
 *   POWER_KILL_AT        n: the process is killed (kill -9) right after it made its n-th name, counted from 1: by making
 *                        a folder, by linking or by renaming
 *   POWER_CLOCK_SECONDS  seconds that are added to the clock, to write what is old when it is looked at
 *
 * A record: kind (1 byte), inode (8), number (8: offset, size or descriptor), the lengths of two texts (4 each), and
 * the texts. All numbers are little-endian, as on every machine that this is built for.
 */
#ifndef __linux__
#error "the power-loss test needs Linux: it replaces functions of its libc by LD_PRELOAD"
#endif
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES (2 * PATH_MAX)
#define LOG_FD 900 /* out of the way of programs that count their descriptors from below */

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static size_t root_bytes;
static int log_fd = -1;
static long kill_at, clock_seconds;

static void give_up(const char *why) {
    dprintf(STDERR_FILENO, "recorder: %s: %s\n", why, strerror(errno));
    _exit(97);
}

__attribute__((constructor)) static void start(void) {
    const char *seconds = getenv("POWER_CLOCK_SECONDS");
    clock_seconds = seconds ? atol(seconds) : 0;
    const char *folder = getenv("POWER_ROOT"), *log = getenv("POWER_LOG"), *at = getenv("POWER_KILL_AT");
    if (!folder || !log) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    log_fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, LOG_FD);
    if (log_fd < 0) give_up("cannot open the log");
    close(fd);
    kill_at = at ? atol(at) : 0;
    root_bytes = strlen(folder);
    root = folder;
}

/* ---- records ---- */

static void record(char kind, uint64_t inode, uint64_t number, const char *first, const struct iovec *second, int parts,
                   size_t second_bytes) {
    char head[25];
    uint32_t lengths[2] = {first ? (uint32_t)strlen(first) : 0, (uint32_t)second_bytes};
    head[0] = kind;
    memcpy(head + 1, &inode, 8);
    memcpy(head + 9, &number, 8);
    memcpy(head + 17, lengths, 8);
    struct iovec front[2] = {{head, sizeof head}, {(void *)first, lengths[0]}};
    if (syscall(SYS_writev, log_fd, front, 2) != (ssize_t)(sizeof head + lengths[0])) give_up("cannot write the log");
    for (int i = 0; i < parts && second_bytes > 0; i++) {
        const char *bytes = second[i].iov_base;
        size_t left = second[i].iov_len < second_bytes ? second[i].iov_len : second_bytes;
        second_bytes -= left;
        while (left > 0) {
            ssize_t done = syscall(SYS_write, log_fd, bytes, left);
            if (done <= 0) give_up("cannot write the log");
            bytes += done;
            left -= (size_t)done;
        }
    }
}

static void record_names(char kind, uint64_t inode, const char *first, const char *second) {
    struct iovec text = {(void *)second, second ? strlen(second) : 0};
    record(kind, inode, 0, first, &text, 1, text.iov_len);
}

static void record_unknown(const char *function) {
    pthread_mutex_lock(&order);
    record_names('?', 0, function, NULL);
    pthread_mutex_unlock(&order);
}

/* ---- what is below the root ---- */

static int starts_below(const char *path) {
    return strncmp(path, root, root_bytes) == 0 && (path[root_bytes] == '/' || path[root_bytes] == 0);
}

/* The inode of a file or folder below the root that a descriptor names; 0 for anything else. */
static uint64_t below(int fd) {
    char link[64], path[PATH_BYTES];
    struct stat found;
    if (!root || fd == log_fd) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (!starts_below(path) || fstat(fd, &found) != 0) return 0;
    return S_ISREG(found.st_mode) || S_ISDIR(found.st_mode) ? found.st_ino : 0;
}

/* Writes the absolute form of `path` to `full`; whether it is below the root. */
static int resolve(int dirfd, const char *path, char *full) {
    char link[64], folder[PATH_MAX];
    if (!root || !path) return 0;
    if (path[0] == '/') return snprintf(full, PATH_BYTES, "%s", path) < PATH_BYTES && starts_below(full);
    if (dirfd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t length = readlink(link, folder, sizeof folder - 1);
    if (length <= 0) return 0;
    folder[length] = 0;
    return snprintf(full, PATH_BYTES, "%s/%s", folder, path) < PATH_BYTES && starts_below(full);
}

static uint64_t inode_at(const char *path) {
    struct stat found;
    return fstatat(AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW) == 0 ? found.st_ino : 0;
}

/* ---- making and opening ---- */

static int opened(int dirfd, const char *path, int flags, mode_t mode) {
    char full[PATH_BYTES];
    if (!(flags & (O_CREAT | O_TRUNC)) || !resolve(dirfd, path, full)) {
        if ((flags & O_TMPFILE) == O_TMPFILE && resolve(dirfd, path, full)) record_unknown("open with O_TMPFILE");
        return (int)syscall(SYS_openat, dirfd, path, flags, mode);
    }
    pthread_mutex_lock(&order);
    uint64_t before = inode_at(full);
    int fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
    int reason = errno;
    if (fd >= 0) {
        struct stat found;
        if (fstat(fd, &found) != 0) give_up("cannot look at a file that was just opened");
        if (before == 0) record_names('c', found.st_ino, full, NULL);
        else if (flags & O_TRUNC) record('t', found.st_ino, 0, NULL, NULL, 0, 0);
    }
    pthread_mutex_unlock(&order);
    errno = reason;
    return fd;
}

#define MODE_AFTER(last)                                     \
    mode_t mode = 0;                                         \
    if (flags & (O_CREAT | __O_TMPFILE)) {                   \
        va_list rest;                                        \
        va_start(rest, last);                                \
        mode = va_arg(rest, mode_t);                         \
        va_end(rest);                                        \
    }

int open(const char *path, int flags, ...) { MODE_AFTER(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_AFTER(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int dirfd, const char *path, int flags, ...) { MODE_AFTER(flags) return opened(dirfd, path, flags, mode); }
int openat64(int dirfd, const char *path, int flags, ...) { MODE_AFTER(flags) return opened(dirfd, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* Makes a system call that changes names, and records it if it went well. */
static int change_names(char kind, const char *first, const char *second, long number, long a, long b, long c, long d,
                        long e) {
    static long names;
    pthread_mutex_lock(&order);
    int result = (int)syscall(number, a, b, c, d, e);
    int reason = errno;
    if (result == 0) {
        record_names(kind, kind == 'd' ? inode_at(first) : 0, first, second);
        if (kind != 'u' && ++names == kill_at) kill(getpid(), SIGKILL);
    }
    pthread_mutex_unlock(&order);
    errno = reason;
    return result;
}

int mkdirat(int dirfd, const char *path, mode_t mode) {
    char full[PATH_BYTES];
    if (!resolve(dirfd, path, full)) return (int)syscall(SYS_mkdirat, dirfd, path, mode);
    return change_names('d', full, NULL, SYS_mkdirat, dirfd, (long)path, mode, 0, 0);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int dirfd, const char *path, int flags) {
    char full[PATH_BYTES];
    if (!resolve(dirfd, path, full)) return (int)syscall(SYS_unlinkat, dirfd, path, flags);
    return change_names('u', full, NULL, SYS_unlinkat, dirfd, (long)path, flags, 0, 0);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    char source[PATH_BYTES], target[PATH_BYTES];
    int is_from = resolve(from_fd, from, source), is_to = resolve(to_fd, to, target);
    if (!is_from && !is_to) return (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
    if (!is_from || !is_to) record_unknown("link across the root");
    return change_names('l', source, target, SYS_linkat, from_fd, (long)from, to_fd, (long)to, flags);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    char source[PATH_BYTES], target[PATH_BYTES];
    int is_from = resolve(from_fd, from, source), is_to = resolve(to_fd, to, target);
    if (!is_from && !is_to) return (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    if (!is_from || !is_to) record_unknown("rename across the root");
    if (flags & ~1u /* RENAME_NOREPLACE */) record_unknown("renameat2 with flags");
    return change_names('r', source, target, SYS_renameat2, from_fd, (long)from, to_fd, (long)to, flags);
}
int renameat(int from_fd, const char *from, int to_fd, const char *to) { return renameat2(from_fd, from, to_fd, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlinkat(const char *text, int dirfd, const char *path) {
    char full[PATH_BYTES];
    if (resolve(dirfd, path, full)) record_unknown("symlink");
    return (int)syscall(SYS_symlinkat, text, dirfd, path);
}
int symlink(const char *text, const char *path) { return symlinkat(text, AT_FDCWD, path); }

/* ---- contents ---- */

/* `offset` < 0: at the descriptor's own place, which the call moves. Standard output is recorded wherever it goes. */
static ssize_t written(int fd, const struct iovec *parts, int count, off_t offset) {
    uint64_t inode = below(fd);
    int is_answer = root && fd == STDOUT_FILENO && !inode;
    if (inode || is_answer) pthread_mutex_lock(&order);
    ssize_t done = offset < 0 ? syscall(SYS_writev, fd, parts, count)
                              : syscall(SYS_pwritev, fd, parts, count, offset, 0);
    int reason = errno;
    if (done > 0 && inode) {
        uint64_t place = offset < 0 ? (uint64_t)(lseek(fd, 0, SEEK_CUR) - done) : (uint64_t)offset;
        record('w', inode, place, NULL, parts, count, (size_t)done);
    } else if (done > 0 && is_answer) {
        record('a', 0, 0, NULL, parts, count, (size_t)done);
    }
    if (inode || is_answer) pthread_mutex_unlock(&order);
    errno = reason;
    return done;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    struct iovec part = {(void *)bytes, count};
    return written(fd, &part, 1, -1);
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    struct iovec part = {(void *)bytes, count};
    return written(fd, &part, 1, offset);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) { return pwrite(fd, bytes, count, offset); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return written(fd, parts, count, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { return written(fd, parts, count, offset); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return written(fd, parts, count, offset); }
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    if (flags && below(fd)) record_unknown("pwritev2 with flags");
    return written(fd, parts, count, offset);
}

/* Makes a system call on a descriptor and records it if it went well. */
static int on_content(char kind, int fd, uint64_t size, long number, long argument) {
    uint64_t inode = below(fd);
    if (!inode) return (int)syscall(number, fd, argument);
    pthread_mutex_lock(&order);
    int result = (int)syscall(number, fd, argument);
    int reason = errno;
    if (result == 0) record(kind, inode, size, NULL, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    errno = reason;
    return result;
}

int ftruncate(int fd, off_t size) { return on_content('t', fd, (uint64_t)size, SYS_ftruncate, size); }
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }
int fsync(int fd) { return on_content('s', fd, 0, SYS_fsync, 0); }
int fdatasync(int fd) { return on_content('s', fd, 0, SYS_fdatasync, 0); }

/* Programs that are refused these fall back to reading and writing. */
static ssize_t refused_below(int fd, long number, long a, long b, long c, long d, long e, long f) {
    if (!below(fd)) return syscall(number, a, b, c, d, e, f);
    errno = ENOSYS;
    return -1;
}
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t count, unsigned flags) {
    return refused_below(to, SYS_copy_file_range, from, (long)from_at, to, (long)to_at, (long)count, flags);
}
ssize_t sendfile(int to, int from, off_t *at, size_t count) {
    return refused_below(to, SYS_sendfile, to, from, (long)at, (long)count, 0, 0);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t count) { return sendfile(to, from, at, count); }
ssize_t splice(int from, off64_t *from_at, int to, off64_t *to_at, size_t count, unsigned flags) {
    return refused_below(to, SYS_splice, from, (long)from_at, to, (long)to_at, (long)count, flags);
}
int fallocate(int fd, int mode, off_t offset, off_t count) {
    if (below(fd)) record_unknown("fallocate");
    return (int)syscall(SYS_fallocate, fd, mode, offset, count);
}
int posix_fallocate(int fd, off_t offset, off_t count) { return fallocate(fd, 0, offset, count) == 0 ? 0 : errno; }
int truncate(const char *path, off_t size) {
    char full[PATH_BYTES];
    if (resolve(AT_FDCWD, path, full)) record_unknown("truncate by name");
    return (int)syscall(SYS_truncate, path, size);
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }
void *mmap(void *place, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED) && below(fd)) record_unknown("mmap to write");
    return (void *)syscall(SYS_mmap, place, bytes, protection, flags, fd, offset);
}
void *mmap64(void *place, size_t bytes, int protection, int flags, int fd, off64_t offset) {
    return mmap(place, bytes, protection, flags, fd, offset);
}

/* ---- the clock ---- */

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += clock_seconds;
    return result;
}
