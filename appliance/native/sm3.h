/* SM3 (GB/T 32905-2016): one message, and many messages at once.
 *
 * For: digests of documents and of SM2 signing input. All input is public. */
#ifndef CLOUD_SEAL_SM3_H
#define CLOUD_SEAL_SM3_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SM3_BLOCK_LEN = 64, SM3_DIGEST_LEN = 32 };

typedef struct {
    uint32_t state[8];
    uint64_t total_len;             /* bytes absorbed so far */
    uint8_t pending[SM3_BLOCK_LEN]; /* total_len % 64 bytes that await their block */
} sm3_stream;

void sm3_init(sm3_stream *stream);
void sm3_update(sm3_stream *stream, const uint8_t *data, size_t len);
void sm3_final(sm3_stream *stream, uint8_t digest[SM3_DIGEST_LEN]);

/* Absorb whole blocks into a chaining value: the compression function itself. */
void sm3_compress(uint32_t state[8], const uint8_t *blocks, size_t count);

/* One of many messages: what `start` has absorbed already (NULL: nothing), followed by data. Many messages
 * may share a start, which is only read. */
typedef struct {
    const uint8_t *data;
    size_t len;
    const sm3_stream *start;
} sm3_message;

/* Hash count messages; digests are written in order, 32 bytes each. Uses vector lanes where the processor has
 * them. */
void sm3_many(const sm3_message *messages, size_t count, uint8_t *digests);

/* The same in vector lanes (sm3_lanes.c), or false: not here, or not worth it for so few. */
bool sm3_many_in_lanes(const sm3_message *messages, size_t count, uint8_t *digests);

#endif
