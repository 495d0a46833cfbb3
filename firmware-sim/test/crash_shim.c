/* Preloaded by the crash tests: counts the calls that change files below CRASH_UNDER and kills the process in
 * front of the CRASH_AT-th; with CRASH_LOG, writes down what was called.
 *
 * The kernel keeps what a killed process wrote, so this tests the order of steps, not the syncing; the log is
 * for that.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DESCRIPTORS = 1024, PATH_LEN = 512 };

static char watched[DESCRIPTORS][PATH_LEN];
static atomic_long count;

static bool below(const char *path) {
    const char *root = getenv("CRASH_UNDER");
    return root && strncmp(path, root, strlen(root)) == 0;
}

static void step(const char *what, const char *path, const char *other) {
    const char *at = getenv("CRASH_AT"), *log = getenv("CRASH_LOG");
    long now = atomic_fetch_add(&count, 1) + 1;
    if (log) {
        ssize_t (*real_write)(int, const void *, size_t) =
            (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
        int (*real_open)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
        char line[2 * PATH_LEN + 64];
        int len = snprintf(line, sizeof line, "%s %s %s\n", what, path, other),
            fd = real_open(log, O_WRONLY | O_APPEND | O_CREAT, 0600);
        if (fd >= 0 && real_write(fd, line, (size_t)len) < 0)
            abort();
        close(fd);
    }
    if (at && now == atol(at))
        kill(getpid(), SIGKILL);
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & O_CREAT ? (mode_t)va_arg(arguments, int) : 0;
    va_end(arguments);
    bool mine = below(path);
    if (mine && flags & O_CREAT)
        step("open", path, "");
    int fd = REAL(int, "open", const char *, int, ...)(path, flags, mode);
    if (fd >= 0 && fd < DESCRIPTORS)
        snprintf(watched[fd], PATH_LEN, "%s", mine ? path : "");
    return fd;
}

ssize_t write(int fd, const void *bytes, size_t len) {
    if (fd >= 0 && fd < DESCRIPTORS && *watched[fd])
        step("write", watched[fd], "");
    return REAL(ssize_t, "write", int, const void *, size_t)(fd, bytes, len);
}

int fsync(int fd) {
    if (fd >= 0 && fd < DESCRIPTORS && *watched[fd])
        step("fsync", watched[fd], "");
    return REAL(int, "fsync", int)(fd);
}

int close(int fd) {
    if (fd >= 0 && fd < DESCRIPTORS)
        *watched[fd] = 0;
    return REAL(int, "close", int)(fd);
}

int ftruncate(int fd, off_t len) {
    if (fd >= 0 && fd < DESCRIPTORS && *watched[fd])
        step("ftruncate", watched[fd], "");
    return REAL(int, "ftruncate", int, off_t)(fd, len);
}

int rename(const char *from, const char *to) {
    if (below(to))
        step("rename", from, to);
    return REAL(int, "rename", const char *, const char *)(from, to);
}

int unlink(const char *path) {
    if (below(path))
        step("unlink", path, "");
    return REAL(int, "unlink", const char *)(path);
}

int mkdir(const char *path, mode_t mode) {
    if (below(path))
        step("mkdir", path, "");
    return REAL(int, "mkdir", const char *, mode_t)(path, mode);
}
