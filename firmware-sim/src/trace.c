#include "trace.h"
#include "write_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { INPUT_SHOWN = 32, ID_SHOWN = 32, LINE_MAX_LEN = 256, LINES_PER_WRITE = 64 };

bool trace_start(struct trace *trace, const char *path, char *message, size_t message_len) {
    trace->fd = -1;
    atomic_init(&trace->signatures, 0);
    if (!*path)
        return true;
    trace->fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (trace->fd < 0)
        snprintf(message, message_len, "trace %s: %s", path, strerror(errno));
    return trace->fd >= 0;
}

void trace_stop(struct trace *trace) {
    if (trace->fd >= 0)
        close(trace->fd);
    trace->fd = -1;
}

static size_t put_hex(char *out, const uint8_t *bytes, size_t len) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    return 2 * len;
}

bool trace_signatures(struct trace *trace, const uint8_t *id, size_t id_len, unsigned long mechanism,
                      const uint8_t *inputs, size_t input_len, size_t count) {
    uint64_t number = atomic_fetch_add(&trace->signatures, count);
    if (trace->fd < 0)
        return true;
    char lines[LINES_PER_WRITE * LINE_MAX_LEN];
    char key[2 * ID_SHOWN + 1];
    size_t len = 0;
    if (id_len)
        key[put_hex(key, id, id_len < ID_SHOWN ? id_len : ID_SHOWN)] = 0;
    else
        strcpy(key, "-");
    for (size_t i = 0; i < count; i++) {
        len += (size_t)snprintf(lines + len, LINE_MAX_LEN,
                                "sign pid=%ld n=%llu key=%s mechanism=0x%lx input=", (long)getpid(),
                                (unsigned long long)++number, key, mechanism);
        len +=
            put_hex(lines + len, inputs + i * input_len, input_len < INPUT_SHOWN ? input_len : INPUT_SHOWN);
        lines[len++] = '\n';
        if ((i + 1) % LINES_PER_WRITE == 0 || i + 1 == count) {
            if (!write_all(trace->fd, lines, len))
                return false;
            len = 0;
        }
    }
    return true;
}
