/* SM3 (GB/T 32905-2016), scalar. The rounds are unrolled by four so that the eight working variables rotate
 * by renaming instead of by moves. */
#include "sm3.h"

#include <string.h>

static const uint32_t SM3_IV[8] = {
    0x7380166fu, 0x4914b2b9u, 0x172442d7u, 0xda8a0600u, 0xa96f30bcu, 0x163138aau, 0xe38dee4du, 0xb0fb0e4eu,
};

static inline uint32_t rotl(uint32_t x, unsigned n)
{
    return (x << (n & 31)) | (x >> (-n & 31));
}

static inline uint32_t load_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void store_be32(uint8_t *p, uint32_t x)
{
    p[0] = (uint8_t)(x >> 24);
    p[1] = (uint8_t)(x >> 16);
    p[2] = (uint8_t)(x >> 8);
    p[3] = (uint8_t)x;
}

#define P0(x) ((x) ^ rotl((x), 9) ^ rotl((x), 17))
#define P1(x) ((x) ^ rotl((x), 15) ^ rotl((x), 23))
#define FF_XOR(x, y, z) ((x) ^ (y) ^ (z))
#define FF_MAJ(x, y, z) (((x) & (y)) | (((x) | (y)) & (z)))
#define GG_CH(x, y, z) ((((y) ^ (z)) & (x)) ^ (z))

/* One round (clause 5.3.3) written so that the caller renames the variables: afterwards h takes A's place,
 * d takes E's place, and b and f have been rotated in place. */
#define ROUND(a, b, c, d, e, f, g, h, t, FF, GG, wj, wj4) \
    do {                                                  \
        uint32_t a12 = rotl(a, 12);                       \
        uint32_t ss1 = rotl(a12 + e + t, 7);              \
        d += FF(a, b, c) + (ss1 ^ a12) + ((wj) ^ (wj4));  \
        h += GG(e, f, g) + ss1 + (wj);                    \
        b = rotl(b, 9);                                   \
        f = rotl(f, 19);                                  \
        h = P0(h);                                        \
    } while (0)

/* After one ROUND the new (A, B, C, D, E, F, G, H) is (d, a, b, c, h, e, f, g). */
#define FOUR_ROUNDS(j, FF, GG)                                                              \
    do {                                                                                    \
        ROUND(a, b, c, d, e, f, g, h, t_constant((j)), FF, GG, w[j], w[(j) + 4]);           \
        ROUND(d, a, b, c, h, e, f, g, t_constant((j) + 1), FF, GG, w[(j) + 1], w[(j) + 5]); \
        ROUND(c, d, a, b, g, h, e, f, t_constant((j) + 2), FF, GG, w[(j) + 2], w[(j) + 6]); \
        ROUND(b, c, d, a, f, g, h, e, t_constant((j) + 3), FF, GG, w[(j) + 3], w[(j) + 7]); \
    } while (0)

/* T_j rotated left by j (clause 5.3.3): T is 79cc4519 for j < 16 and 7a879d8a from there on. */
static inline uint32_t t_constant(int j)
{
    return rotl(j < 16 ? 0x79cc4519u : 0x7a879d8au, (unsigned)j);
}

/* Words j to j + 3 of the expanded message (clause 5.3.2), shortly before they are needed: in a loop of their
 * own, compilers turn them into vector code that is slower. */
#define EXPAND(j)                                                                                \
    (w[j] = expand(w + (j)), w[(j) + 1] = expand(w + (j) + 1), w[(j) + 2] = expand(w + (j) + 2), \
     w[(j) + 3] = expand(w + (j) + 3))

static inline uint32_t expand(const uint32_t *w)
{
    uint32_t x = w[-16] ^ w[-9] ^ rotl(w[-3], 15);
    return P1(x) ^ rotl(w[-13], 7) ^ w[-6];
}

void sm3_compress(uint32_t state[8], const uint8_t *blocks, size_t count)
{
    uint32_t w[68];
    for (; count > 0; count--, blocks += SM3_BLOCK_LEN) {
        for (int j = 0; j < 16; j++)
            w[j] = load_be32(blocks + 4 * j);
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        _Pragma("GCC unroll 3") for (int j = 0; j < 12; j += 4) FOUR_ROUNDS(j, FF_XOR, FF_XOR);
        EXPAND(16);
        FOUR_ROUNDS(12, FF_XOR, FF_XOR);
        _Pragma("GCC unroll 12") for (int j = 16; j < 64; j += 4)
        {
            EXPAND(j + 4);
            FOUR_ROUNDS(j, FF_MAJ, GG_CH);
        }
        state[0] ^= a;
        state[1] ^= b;
        state[2] ^= c;
        state[3] ^= d;
        state[4] ^= e;
        state[5] ^= f;
        state[6] ^= g;
        state[7] ^= h;
    }
}

void sm3_init(sm3_stream *stream)
{
    memcpy(stream->state, SM3_IV, sizeof SM3_IV);
    stream->total_len = 0;
}

void sm3_update(sm3_stream *stream, const uint8_t *data, size_t len)
{
    size_t held = stream->total_len % SM3_BLOCK_LEN;
    if (len == 0)
        return;
    stream->total_len += len;
    if (held > 0) {
        size_t take = SM3_BLOCK_LEN - held < len ? SM3_BLOCK_LEN - held : len;
        memcpy(stream->pending + held, data, take);
        if (held + take < SM3_BLOCK_LEN)
            return;
        sm3_compress(stream->state, stream->pending, 1);
        data += take;
        len -= take;
    }
    sm3_compress(stream->state, data, len / SM3_BLOCK_LEN);
    memcpy(stream->pending, data + len / SM3_BLOCK_LEN * SM3_BLOCK_LEN, len % SM3_BLOCK_LEN);
}

void sm3_final(sm3_stream *stream, uint8_t digest[SM3_DIGEST_LEN])
{
    size_t held = stream->total_len % SM3_BLOCK_LEN;
    uint8_t tail[2 * SM3_BLOCK_LEN] = {0};
    size_t blocks = held < 56 ? 1 : 2;
    memcpy(tail, stream->pending, held);
    tail[held] = 0x80;
    uint64_t bits = stream->total_len * 8;
    store_be32(tail + blocks * SM3_BLOCK_LEN - 8, (uint32_t)(bits >> 32));
    store_be32(tail + blocks * SM3_BLOCK_LEN - 4, (uint32_t)bits);
    sm3_compress(stream->state, tail, blocks);
    for (int i = 0; i < 8; i++)
        store_be32(digest + 4 * i, stream->state[i]);
}

void sm3_many(const sm3_message *messages, size_t count, uint8_t *digests)
{
    if (sm3_many_in_lanes(messages, count, digests))
        return;
    for (size_t i = 0; i < count; i++) {
        sm3_stream stream;
        if (messages[i].start != NULL)
            stream = *messages[i].start;
        else
            sm3_init(&stream);
        sm3_update(&stream, messages[i].data, messages[i].len);
        sm3_final(&stream, digests + SM3_DIGEST_LEN * i);
    }
}
