/* Reading and writing the length-prefixed, big-endian records of our files, with every bound checked.
 *
 * A reader or writer that failed stays failed and yields zeros; callers check `failed` once, at the end.
 */
#ifndef FIRMWARE_SIM_BYTES_H
#define FIRMWARE_SIM_BYTES_H

#include <openssl/crypto.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const uint8_t *at;
    size_t left;
    bool failed;
};

static inline const uint8_t *read_bytes(struct reader *r, size_t len) {
    if (r->failed || len > r->left) {
        r->failed = true;
        return NULL;
    }
    const uint8_t *at = r->at;
    r->at += len;
    r->left -= len;
    return at;
}

static inline uint64_t read_uint(struct reader *r, size_t len) {
    const uint8_t *at = read_bytes(r, len);
    uint64_t value = 0;
    for (size_t i = 0; at && i < len; i++)
        value = value << 8 | at[i];
    return value;
}

static inline void read_into(struct reader *r, void *out, size_t len) {
    const uint8_t *at = read_bytes(r, len);
    if (at)
        memcpy(out, at, len);
    else
        memset(out, 0, len);
}

struct writer {
    uint8_t *start;
    size_t len, room;
    bool failed; /* out of memory */
};

static inline void write_bytes(struct writer *w, const void *bytes, size_t len) {
    if (w->failed)
        return;
    if (len > w->room - w->len) {
        size_t room = (w->room + len) * 2 + 256;
        /* Not realloc: what is written here may be secret, and realloc leaves copies behind. */
        uint8_t *grown = malloc(room);
        if (!grown) {
            w->failed = true;
            return;
        }
        if (w->len)
            memcpy(grown, w->start, w->len);
        if (w->start)
            OPENSSL_cleanse(w->start, w->room);
        free(w->start);
        w->start = grown;
        w->room = room;
    }
    if (len)
        memcpy(w->start + w->len, bytes, len);
    w->len += len;
}

static inline void write_uint(struct writer *w, uint64_t value, size_t len) {
    uint8_t bytes[8];
    for (size_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)(value >> (8 * (len - 1 - i)));
    write_bytes(w, bytes, len);
}

static inline void writer_wipe(struct writer *w) {
    if (w->start)
        OPENSSL_cleanse(w->start, w->room);
    free(w->start);
    *w = (struct writer){0};
}

#endif
