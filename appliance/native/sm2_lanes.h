/* Arithmetic modulo the SM2 prime on eight numbers at once: AVX-512 with the 52-bit multiplier (IFMA).
 *
 * A number is five limbs of 52 bits, limb i of all eight in one vector, in Montgomery form a 2^260 mod p.
 * Numbers are reduced weakly: what multiplication accepts is limbs in [0, 2^52) and a value below some
 * multiple of p that is stated, and 2^260 is sixteen times p, so that additions and subtractions rarely need
 * to reduce.
 *
 *     fe8_mul of values below i p and j p gives one below (i j / 16 + 1) p.
 *
 * No branch and no address depends on a value here: signing uses it on secrets.
 *
 * Whoever includes this has said SM2_LANES_BEGIN before any function that uses it, and runs it only where
 * sm2_lanes_supported() is true. The processor's features are asked for function by function, so that no
 * special compiler flags are needed. */
#ifndef CLOUD_SEAL_SM2_LANES_H
#define CLOUD_SEAL_SM2_LANES_H

#if defined(__x86_64__) && defined(__GNUC__)
#define SM2_LANES 1

#include <immintrin.h>

#include "sm2_point.h"

static inline int sm2_lanes_supported(void)
{
    /* The builtin asks the operating system too: are the wide registers saved? */
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512ifma");
}

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512ifma"))), \
                             apply_to = function)
#define SM2_LANES_END _Pragma("clang attribute pop")
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512ifma")
#define SM2_LANES_END _Pragma("GCC pop_options")
#endif

typedef __m512i v8;

typedef struct {
    v8 l[5];
} fe8;

/* Five limbs of a constant. */
typedef struct {
    uint64_t l[5];
} limbs;

#define LIMB_MASK 0xfffffffffffff

static const limbs LANES_P = {
    {0xfffffffffffff, 0xff00000000fff, 0xfffffffffffff, 0xfffffffffffff, 0xfffffffeffff}};
static const limbs LANES_2P = {
    {0xffffffffffffe, 0xfe00000001fff, 0xfffffffffffff, 0xfffffffffffff, 0x1fffffffdffff}};
static const limbs LANES_4P = {
    {0xffffffffffffc, 0xfc00000003fff, 0xfffffffffffff, 0xfffffffffffff, 0x3fffffffbffff}};
/* 2^260, 2^520 and 2^264 mod p: one; the factor into this form; and that from the form of sm2_field.h. */
static const limbs LANES_ONE = {{0x10, 0x0ffffffff0000, 0, 0, 0x100000}};
static const limbs LANES_R2 = {{0x20000000300, 0xffffffff00000, 0x100000002, 0x200000001000, 0x4000000}};
static const limbs LANES_FROM_SCALAR = {{0x100, 0xffffffff00000, 0, 0, 0x1000000}};

#define UNROLL5 _Pragma("GCC unroll 5")

static inline v8 v8_set(uint64_t x)
{
    return _mm512_set1_epi64((long long)x);
}

static inline fe8 fe8_constant(const limbs *c)
{
    fe8 r;
    UNROLL5
    for (int i = 0; i < 5; i++)
        r.l[i] = v8_set(c->l[i]);
    return r;
}

/* Limb by limb, without carries: for what is added before fe8_carry or fe8_finish. */
static inline fe8 limbs_add(fe8 a, fe8 b)
{
    UNROLL5
    for (int i = 0; i < 5; i++)
        a.l[i] = _mm512_add_epi64(a.l[i], b.l[i]);
    return a;
}

static inline fe8 limbs_sub(fe8 a, fe8 b)
{
    UNROLL5
    for (int i = 0; i < 5; i++)
        a.l[i] = _mm512_sub_epi64(a.l[i], b.l[i]);
    return a;
}

static inline fe8 limbs_shift(fe8 a, unsigned bits)
{
    UNROLL5
    for (int i = 0; i < 5; i++)
        a.l[i] = _mm512_slli_epi64(a.l[i], bits);
    return a;
}

/* Signed limbs into [0, 2^52); the value is the same and must lie in [0, 2^260). */
static inline fe8 fe8_carry(fe8 a)
{
    const v8 mask = v8_set(LIMB_MASK);
    UNROLL5
    for (int i = 0; i < 4; i++) {
        a.l[i + 1] = _mm512_add_epi64(a.l[i + 1], _mm512_srai_epi64(a.l[i], 52));
        a.l[i] = _mm512_and_si512(a.l[i], mask);
    }
    return a;
}

/* Any signed limbs below 2^57, of a value within +-2^260, to [2^256 - 2^214, 2^257 + 2^229]: that is
 * below 2.01 p. The multiple of p to subtract, q, is read off the top limb, one too low so that the result is
 * never negative; q p is subtracted as q 2^256 - q (2^224 + 2^96 - 2^64 + 1). */
static inline fe8 fe8_finish(fe8 a)
{
    v8 q = _mm512_sub_epi64(_mm512_srai_epi64(a.l[4], 48), v8_set(1));
    a.l[0] = _mm512_add_epi64(a.l[0], q);
    a.l[1] = _mm512_sub_epi64(_mm512_add_epi64(a.l[1], _mm512_slli_epi64(q, 44)), _mm512_slli_epi64(q, 12));
    a.l[4] = _mm512_sub_epi64(_mm512_add_epi64(a.l[4], _mm512_slli_epi64(q, 16)), _mm512_slli_epi64(q, 48));
    return fe8_carry(a);
}

/* a - b for b below 4 p: below a + 4 p. */
static inline fe8 fe8_sub(fe8 a, fe8 b)
{
    return fe8_carry(limbs_add(limbs_sub(a, b), fe8_constant(&LANES_4P)));
}

/* The ten columns of a product, added to what they hold. */
static inline void columns_mul(v8 c[10], const fe8 *a, const fe8 *b)
{
    UNROLL5
    for (int i = 0; i < 5; i++) {
        UNROLL5
        for (int j = 0; j < 5; j++) {
            c[i + j] = _mm512_madd52lo_epu64(c[i + j], a->l[i], b->l[j]);
            c[i + j + 1] = _mm512_madd52hi_epu64(c[i + j + 1], a->l[i], b->l[j]);
        }
    }
}

static inline void columns_square(v8 c[10], const fe8 *a)
{
    UNROLL5
    for (int i = 0; i < 4; i++) {
        UNROLL5
        for (int j = i + 1; j < 5; j++) {
            c[i + j] = _mm512_madd52lo_epu64(c[i + j], a->l[i], a->l[j]);
            c[i + j + 1] = _mm512_madd52hi_epu64(c[i + j + 1], a->l[i], a->l[j]);
        }
    }
    _Pragma("GCC unroll 10") for (int i = 1; i < 10; i++) c[i] = _mm512_add_epi64(c[i], c[i]);
    UNROLL5
    for (int i = 0; i < 5; i++) {
        c[2 * i] = _mm512_madd52lo_epu64(c[2 * i], a->l[i], a->l[i]);
        c[2 * i + 1] = _mm512_madd52hi_epu64(c[2 * i + 1], a->l[i], a->l[i]);
    }
}

static inline void columns_clear(v8 c[10])
{
    _Pragma("GCC unroll 10") for (int i = 0; i < 10; i++) c[i] = _mm512_setzero_si512();
}

/* Montgomery's reduction of the columns, without the last carries. As p = -1 mod 2^52, the factor of each
 * step is the lowest limb m itself, and p + 1 = k1 2^52 - 2^104 + k4 2^208 for two constants below 2^52. */
static inline fe8 columns_reduce(v8 c[10])
{
    const v8 mask = v8_set(LIMB_MASK), k1 = v8_set(0xff00000001000), k4 = v8_set(0xffffffff0000);
    fe8 r;
    UNROLL5
    for (int i = 0; i < 5; i++) {
        v8 m = _mm512_and_si512(c[i], mask);
        c[i + 1] = _mm512_add_epi64(c[i + 1], _mm512_srai_epi64(c[i], 52));
        c[i + 1] = _mm512_madd52lo_epu64(c[i + 1], m, k1);
        c[i + 2] = _mm512_madd52hi_epu64(_mm512_sub_epi64(c[i + 2], m), m, k1);
        c[i + 4] = _mm512_madd52lo_epu64(c[i + 4], m, k4);
        c[i + 5] = _mm512_madd52hi_epu64(c[i + 5], m, k4);
    }
    UNROLL5
    for (int i = 0; i < 5; i++)
        r.l[i] = c[i + 5];
    return r;
}

/* a b and a^2 as limbs that still need fe8_carry or fe8_finish. */
static inline fe8 limbs_mul(const fe8 *a, const fe8 *b)
{
    v8 c[10];
    columns_clear(c);
    columns_mul(c, a, b);
    return columns_reduce(c);
}

static inline fe8 limbs_square(const fe8 *a)
{
    v8 c[10];
    columns_clear(c);
    columns_square(c, a);
    return columns_reduce(c);
}

static inline fe8 fe8_mul(const fe8 *a, const fe8 *b)
{
    return fe8_carry(limbs_mul(a, b));
}

static inline fe8 fe8_square(const fe8 *a)
{
    return fe8_carry(limbs_square(a));
}

static inline fe8 fe8_square_times(fe8 a, int times)
{
    for (int i = 0; i < times; i++)
        a = fe8_square(&a);
    return a;
}

/* 1/a = a^(p-2), and a multiple of p for one; see sm2_fe_invert for the chain. */
static inline fe8 fe8_invert(const fe8 *a)
{
    fe8 x2, x4, x6, x8, x14, x16, x30, x31, x32, t;
    t = fe8_square_times(*a, 1), x2 = fe8_mul(&t, a);
    t = fe8_square_times(x2, 2), x4 = fe8_mul(&t, &x2);
    t = fe8_square_times(x4, 2), x6 = fe8_mul(&t, &x2);
    t = fe8_square_times(x4, 4), x8 = fe8_mul(&t, &x4);
    t = fe8_square_times(x8, 6), x14 = fe8_mul(&t, &x6);
    t = fe8_square_times(x8, 8), x16 = fe8_mul(&t, &x8);
    t = fe8_square_times(x16, 14), x30 = fe8_mul(&t, &x14);
    t = fe8_square_times(x30, 1), x31 = fe8_mul(&t, a);
    t = fe8_square_times(x31, 1), x32 = fe8_mul(&t, a);
    t = fe8_square_times(x31, 1);
    for (int i = 0; i < 4; i++)
        t = fe8_square_times(t, 32), t = fe8_mul(&t, &x32);
    t = fe8_square_times(t, 64), t = fe8_mul(&t, &x32);
    t = fe8_square_times(t, 30), t = fe8_mul(&t, &x30);
    t = fe8_square_times(t, 2);
    return fe8_mul(&t, a);
}

/* Bit i: is number i zero modulo p? For results of fe8_finish, of which only 2 p can be a multiple of p (and
 * p, for good measure). */
static inline uint8_t fe8_zero_lanes(const fe8 *a)
{
    v8 once = _mm512_setzero_si512(), twice = once;
    UNROLL5
    for (int i = 0; i < 5; i++) {
        once = _mm512_or_si512(once, _mm512_xor_si512(a->l[i], v8_set(LANES_P.l[i])));
        twice = _mm512_or_si512(twice, _mm512_xor_si512(a->l[i], v8_set(LANES_2P.l[i])));
    }
    return (uint8_t)(_mm512_testn_epi64_mask(once, once) | _mm512_testn_epi64_mask(twice, twice));
}

/* From a value below 2 p to the one below p. */
static inline fe8 fe8_canonical(fe8 a)
{
    fe8 t = fe8_carry(limbs_sub(a, fe8_constant(&LANES_P)));
    __mmask8 negative = _mm512_movepi64_mask(t.l[4]);
    UNROLL5
    for (int i = 0; i < 5; i++)
        t.l[i] = _mm512_mask_mov_epi64(t.l[i], negative, a.l[i]);
    return t;
}

/* Four words of 64 bits, least significant first, to five limbs, and back (from a value below 2^256). */
static inline fe8 fe8_from_words(const v8 w[4])
{
    const v8 mask = v8_set(LIMB_MASK);
    fe8 r;
    r.l[0] = _mm512_and_si512(w[0], mask);
    r.l[1] =
        _mm512_and_si512(_mm512_or_si512(_mm512_srli_epi64(w[0], 52), _mm512_slli_epi64(w[1], 12)), mask);
    r.l[2] =
        _mm512_and_si512(_mm512_or_si512(_mm512_srli_epi64(w[1], 40), _mm512_slli_epi64(w[2], 24)), mask);
    r.l[3] =
        _mm512_and_si512(_mm512_or_si512(_mm512_srli_epi64(w[2], 28), _mm512_slli_epi64(w[3], 36)), mask);
    r.l[4] = _mm512_srli_epi64(w[3], 16);
    return r;
}

static inline void fe8_to_words(v8 w[4], const fe8 *a)
{
    w[0] = _mm512_or_si512(a->l[0], _mm512_slli_epi64(a->l[1], 52));
    w[1] = _mm512_or_si512(_mm512_srli_epi64(a->l[1], 12), _mm512_slli_epi64(a->l[2], 40));
    w[2] = _mm512_or_si512(_mm512_srli_epi64(a->l[2], 24), _mm512_slli_epi64(a->l[3], 28));
    w[3] = _mm512_or_si512(_mm512_srli_epi64(a->l[3], 36), _mm512_slli_epi64(a->l[4], 16));
}

/* Eight rows of eight words become eight columns. It is its own inverse. */
static inline void transpose(v8 r[8])
{
    v8 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi64(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            u[i + j] = _mm512_shuffle_i64x2(t[i + j], t[i + j + 2], 0x88);
            u[i + j + 2] = _mm512_shuffle_i64x2(t[i + j], t[i + j + 2], 0xdd);
        }
    }
    for (int j = 0; j < 4; j++) {
        r[j] = _mm512_shuffle_i64x2(u[j], u[j + 4], 0x88);
        r[j + 4] = _mm512_shuffle_i64x2(u[j], u[j + 4], 0xdd);
    }
}

#endif
#endif
