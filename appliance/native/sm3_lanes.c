/* SM3 of sixteen messages at once on AVX-512: word i of all sixteen states is one vector.
 *
 * Messages need not be equally long: a lane whose message is done takes the next one. When fewer lanes are
 * left than it takes to beat the scalar code, that finishes them. */
#include "sm3.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <string.h>

enum { LANES = 16 };

/* A step of all lanes costs about as much as this many blocks one by one. */
enum { MIN_LANES = 4 };

/* One lane: its message, and the block that is staged where what was absorbed before, data and padding meet.
 */
typedef struct {
    const sm3_message *message;
    uint8_t *digest;
    size_t block, blocks; /* the next one, and how many there are with the padding */
    uint8_t staged[SM3_BLOCK_LEN];
} lane;

/* A message without a start follows nothing. */
static const sm3_stream NOTHING = {
    .state = {0x7380166fu, 0x4914b2b9u, 0x172442d7u, 0xda8a0600u, 0xa96f30bcu, 0x163138aau, 0xe38dee4du,
              0xb0fb0e4eu},
};

static const sm3_stream *start_of(const sm3_message *message)
{
    return message->start != NULL ? message->start : &NOTHING;
}

/* The next 64 bytes of what awaits its block in the start || data || padding. */
static const uint8_t *next_block(lane *l)
{
    const sm3_stream *start = start_of(l->message);
    size_t held = start->total_len % SM3_BLOCK_LEN;
    size_t from = SM3_BLOCK_LEN * l->block++, to = from + SM3_BLOCK_LEN, len = held + l->message->len;
    if (from >= held && to <= len)
        return l->message->data + (from - held);
    memset(l->staged, 0, SM3_BLOCK_LEN);
    if (from < held)
        memcpy(l->staged, start->pending, held); /* it is shorter than a block */
    size_t data_from = from < held ? held : from, data_to = to < len ? to : len;
    if (data_from < data_to)
        memcpy(l->staged + (data_from - from), l->message->data + (data_from - held), data_to - data_from);
    if (len >= from && len < to)
        l->staged[len - from] = 0x80;
    if (l->block == l->blocks) {
        uint64_t bits = __builtin_bswap64((start->total_len + l->message->len) * 8);
        memcpy(l->staged + SM3_BLOCK_LEN - 8, &bits, 8);
    }
    return l->staged;
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw")
#endif

typedef __m512i v16;

/* Sixteen rows of sixteen words become sixteen columns. */
static inline void transpose16(v16 r[16])
{
    v16 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    /* r[4 g + j] holds words j, 4 + j, 8 + j and 12 + j of rows 4 g to 4 g + 3, a quarter each. */
    for (int j = 0; j < 4; j++) {
        v16 a = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88),
            b = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
        v16 c = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd),
            d = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
        t[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[j + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[j + 4] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[j + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    for (int i = 0; i < 16; i++)
        r[i] = t[i];
}

#define ROL(x, n) _mm512_rol_epi32((x), (n))
#define ADD(x, y) _mm512_add_epi32((x), (y))
#define XOR3(x, y, z) _mm512_ternarylogic_epi32((x), (y), (z), 0x96)
#define MAJORITY(x, y, z) _mm512_ternarylogic_epi32((x), (y), (z), 0xe8)
#define CHOOSE(x, y, z) _mm512_ternarylogic_epi32((x), (y), (z), 0xca)

/* T_j rotated left by j, in all lanes. */
static inline v16 T(int j)
{
    uint64_t t = j < 16 ? 0x79cc4519u : 0x7a879d8au;
    return _mm512_set1_epi32((int)(t << j % 32 | t >> (32 - j % 32)));
}

/* The round of sm3.c, sixteen times. */
#define ROUND(a, b, c, d, e, f, g, h, j, FF, GG)                                                           \
    do {                                                                                                   \
        v16 a12_ = ROL(a, 12);                                                                             \
        v16 ss1_ = ROL(ADD(ADD(a12_, e), T(j)), 7);                                                        \
        v16 w_ = w[j];                                                                                     \
        d = ADD(ADD(d, FF(a, b, c)), ADD(_mm512_xor_si512(ss1_, a12_), _mm512_xor_si512(w_, w[(j) + 4]))); \
        h = ADD(ADD(h, GG(e, f, g)), ADD(ss1_, w_));                                                       \
        b = ROL(b, 9);                                                                                     \
        f = ROL(f, 19);                                                                                    \
        h = XOR3(h, ROL(h, 9), ROL(h, 17));                                                                \
    } while (0)

#define FOUR_ROUNDS(j, FF, GG)                          \
    do {                                                \
        ROUND(a, b, c, d, e, f, g, h, (j), FF, GG);     \
        ROUND(d, a, b, c, h, e, f, g, (j) + 1, FF, GG); \
        ROUND(c, d, a, b, g, h, e, f, (j) + 2, FF, GG); \
        ROUND(b, c, d, a, f, g, h, e, (j) + 3, FF, GG); \
    } while (0)

static void compress16(uint32_t state[8][LANES], const uint8_t *const blocks[LANES])
{
    const v16 swap =
        _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
    v16 w[68], s[8];
    for (int i = 0; i < LANES; i++)
        w[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(blocks[i]), swap);
    transpose16(w);
    for (int j = 16; j < 68; j++) {
        v16 x = XOR3(w[j - 16], w[j - 9], ROL(w[j - 3], 15));
        w[j] = XOR3(XOR3(x, ROL(x, 15), ROL(x, 23)), ROL(w[j - 13], 7), w[j - 6]);
    }
    for (int i = 0; i < 8; i++)
        s[i] = _mm512_loadu_si512(state[i]);
    v16 a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
    _Pragma("GCC unroll 4") for (int j = 0; j < 16; j += 4) FOUR_ROUNDS(j, XOR3, XOR3);
    _Pragma("GCC unroll 12") for (int j = 16; j < 64; j += 4) FOUR_ROUNDS(j, MAJORITY, CHOOSE);
    v16 r[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++)
        _mm512_storeu_si512(state[i], _mm512_xor_si512(s[i], r[i]));
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static void write_digest(uint32_t state[8][LANES], size_t i, uint8_t *digest)
{
    for (int j = 0; j < 8; j++) {
        uint32_t word = __builtin_bswap32(state[j][i]);
        memcpy(digest + 4 * j, &word, 4);
    }
}

bool sm3_many_in_lanes(const sm3_message *messages, size_t count, uint8_t *digests)
{
    static const uint8_t idle[SM3_BLOCK_LEN];
    uint32_t state[8][LANES];
    const uint8_t *blocks[LANES];
    lane lanes[LANES];
    size_t next = 0, busy = 0;
    if (count < MIN_LANES || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw"))
        return false;
    for (int i = 0; i < LANES; i++) {
        lanes[i].message = NULL;
        blocks[i] = idle;
    }
    for (;;) {
        for (size_t i = 0; i < LANES; i++) {
            lane *l = &lanes[i];
            if (l->message != NULL && l->block == l->blocks) {
                write_digest(state, i, l->digest);
                l->message = NULL;
                blocks[i] = idle;
                busy--;
            }
            if (l->message == NULL && next < count) {
                l->message = &messages[next];
                l->digest = digests + SM3_DIGEST_LEN * next++;
                l->block = 0;
                const sm3_stream *start = start_of(l->message);
                l->blocks = (start->total_len % SM3_BLOCK_LEN + l->message->len + 8) / SM3_BLOCK_LEN + 1;
                for (int j = 0; j < 8; j++)
                    state[j][i] = start->state[j];
                busy++;
            }
        }
        if (busy < MIN_LANES)
            break;
        for (size_t i = 0; i < LANES; i++)
            if (lanes[i].message != NULL)
                blocks[i] = next_block(&lanes[i]);
        compress16(state, blocks);
    }
    for (size_t i = 0; i < LANES; i++) {
        lane *l = &lanes[i];
        if (l->message == NULL)
            continue;
        uint32_t rest[8];
        for (int j = 0; j < 8; j++)
            rest[j] = state[j][i];
        while (l->block < l->blocks)
            sm3_compress(rest, next_block(l), 1);
        for (int j = 0; j < 8; j++)
            state[j][i] = rest[j];
        write_digest(state, i, l->digest);
    }
    return true;
}

#else

bool sm3_many_in_lanes(const sm3_message *messages, size_t count, uint8_t *digests)
{
    (void)messages, (void)count, (void)digests;
    return false;
}

#endif
