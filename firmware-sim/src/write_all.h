/* A whole write to a file, whatever write(2) takes at a time; for the store and for the trace. */
#ifndef FIRMWARE_SIM_WRITE_ALL_H
#define FIRMWARE_SIM_WRITE_ALL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

/* False where the file takes no more, and errno says why: what was written by then stays. */
static inline bool write_all(int fd, const void *bytes, size_t len) {
    const char *at = bytes;
    while (len) {
        ssize_t written = write(fd, at, len);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        at += written;
        len -= (size_t)written;
    }
    return true;
}

#endif
