/* The field of the SM2 curve (GB/T 32918.5): integers modulo
 *
 *     p = 2^256 - 2^224 - 2^96 + 2^64 - 1
 *
 * in Montgomery form, a 2^256 mod p, always fully reduced. Nothing here branches on a value or indexes by
 * one.
 *
 * Montgomery's reduction adds a multiple m p that clears the lowest word, with m = t0 * (-1/p mod 2^64). Here
 * p = -1 mod 2^64, so m is t0 itself, and p + 1 has four terms that are powers of two: a step of the
 * reduction
 *
 *     (t + t0 p) / 2^64 = (t - t0) / 2^64  +  t0 (2^192 - 2^160 - 2^32 + 1)
 *
 * takes two shifts, four subtractions and four additions, and no multiplication. */
#ifndef CLOUD_SEAL_SM2_FIELD_H
#define CLOUD_SEAL_SM2_FIELD_H

#include "sm2_words.h"

typedef u256 sm2_fe;

static const u256 SM2_P = {{0xffffffffffffffff, 0xffffffff00000000, 0xffffffffffffffff, 0xfffffffeffffffff}};
/* 2^256, 2^512 and 2^768 mod p: one, and the factors into Montgomery form and from an inverse taken outside
 * it. */
static const sm2_fe SM2_FE_ONE = {
    {0x0000000000000001, 0x00000000ffffffff, 0x0000000000000000, 0x0000000100000000}};
static const sm2_fe SM2_FE_R2 = {
    {0x0000000200000003, 0x00000002ffffffff, 0x0000000100000001, 0x0000000400000002}};
static const sm2_fe SM2_FE_R3 = {
    {0x0000001200000016, 0x0000000efffffff8, 0x0000000a0000000c, 0x0000001b00000009}};
/* The coefficient b and the generator, in Montgomery form. (a is p - 3, and is never needed as a number.) */
static const sm2_fe SM2_FE_B = {
    {0x90d230632bc0dd42, 0x71cf379ae9b537ab, 0x527981505ea51c3c, 0x240fe188ba20e2c8}};
static const sm2_fe SM2_FE_GX = {
    {0x61328990f418029e, 0x3e7981eddca6c050, 0xd6a1ed99ac24c3c3, 0x91167a5ee1c13b05}};
static const sm2_fe SM2_FE_GY = {
    {0xc1354e593c2d0ddd, 0xc1f5e5788d3295fa, 0x8d4cfb066e2a48f8, 0x63cd65d481d735bd}};

static inline void sm2_fe_add(sm2_fe *r, const sm2_fe *a, const sm2_fe *b)
{
    u256_add_mod(r, a, b, &SM2_P);
}

static inline void sm2_fe_sub(sm2_fe *r, const sm2_fe *a, const sm2_fe *b)
{
    u256_sub_mod(r, a, b, &SM2_P);
}

static inline void sm2_fe_double(sm2_fe *r, const sm2_fe *a)
{
    u256_add_mod(r, a, a, &SM2_P);
}

/* -a */
static inline void sm2_fe_negate(sm2_fe *r, const sm2_fe *a)
{
    static const u256 zero;
    u256_sub_mod(r, &zero, a, &SM2_P);
}

/* One step of the reduction: from t0 + 2^64 t1 + 2^128 t2 + 2^192 t3 to that plus t0 p, divided by 2^64,
 * which stands in t1, t2, t3 and t0. The result is below 2^192 + p and hence needs no fifth word. */
static inline void sm2_reduce_word(uint64_t *t0, uint64_t *t1, uint64_t *t2, uint64_t *t3)
{
    uint64_t m = *t0, low = m << 32, high = m >> 32;
#ifdef __x86_64__
    __asm__("addq %0, %1\n\tadcq $0, %2\n\tadcq $0, %3\n\tadcq $0, %0\n\t"
            "subq %4, %1\n\tsbbq %5, %2\n\tsbbq %4, %3\n\tsbbq %5, %0"
            : "+&r"(*t0), "+&r"(*t1), "+&r"(*t2), "+&r"(*t3)
            : "r"(low), "r"(high)
            : "cc");
#else
    uint64_t borrow = 0, carry = 0;
    uint64_t v0 = sub_borrow(m, low, &borrow);
    uint64_t v1 = sub_borrow(0, high, &borrow);
    uint64_t v2 = sub_borrow(0, low, &borrow);
    uint64_t v3 = m - high - borrow;
    *t1 = add_carry(*t1, v0, &carry);
    *t2 = add_carry(*t2, v1, &carry);
    *t3 = add_carry(*t3, v2, &carry);
    *t0 = v3 + carry;
#endif
}

/* r = t / 2^256 mod p, for t < p^2: reduces the lower half to at most p and adds the upper half. */
static inline void sm2_fe_reduce(sm2_fe *r, const uint64_t t[8])
{
    uint64_t t0 = t[0], t1 = t[1], t2 = t[2], t3 = t[3];
    sm2_reduce_word(&t0, &t1, &t2, &t3);
    sm2_reduce_word(&t1, &t2, &t3, &t0);
    sm2_reduce_word(&t2, &t3, &t0, &t1);
    sm2_reduce_word(&t3, &t0, &t1, &t2);
    u256 value = {{t0, t1, t2, t3}}, upper = {{t[4], t[5], t[6], t[7]}}, reduced;
    uint64_t carry = u256_add(&value, &value, &upper);
    uint64_t borrow = u256_sub(&reduced, &value, &SM2_P);
    u256_select(r, mask_of(borrow & (carry ^ 1)), &value, &reduced);
}

static inline void sm2_fe_mul(sm2_fe *r, const sm2_fe *a, const sm2_fe *b)
{
    uint64_t t[8] = {0};
    UNROLL
    for (int i = 0; i < 4; i++) {
        uint64_t carry = 0;
        UNROLL
        for (int j = 0; j < 4; j++)
            t[i + j] = mul_add(a->w[i], b->w[j], t[i + j], &carry);
        t[i + 4] = carry;
    }
    sm2_fe_reduce(r, t);
}

static inline void sm2_fe_square(sm2_fe *r, const sm2_fe *a)
{
    uint64_t t[8], carry = 0;
    const uint64_t *w = a->w;
    /* The six products of different words, doubled, and the four squares. */
    t[1] = mul_add(w[0], w[1], 0, &carry);
    t[2] = mul_add(w[0], w[2], 0, &carry);
    t[3] = mul_add(w[0], w[3], 0, &carry);
    t[4] = carry;
    carry = 0;
    t[3] = mul_add(w[1], w[2], t[3], &carry);
    t[4] = mul_add(w[1], w[3], t[4], &carry);
    t[5] = carry;
    carry = 0;
    t[5] = mul_add(w[2], w[3], t[5], &carry);
    t[6] = carry;
    t[7] = t[6] >> 63;
    _Pragma("GCC unroll 5") for (int i = 6; i > 1; i--) t[i] = t[i] << 1 | t[i - 1] >> 63;
    t[1] <<= 1;
    carry = 0;
    u128 square = (u128)w[0] * w[0];
    t[0] = (uint64_t)square;
    t[1] = add_carry(t[1], (uint64_t)(square >> 64), &carry);
    UNROLL
    for (int i = 1; i < 4; i++) {
        square = (u128)w[i] * w[i];
        t[2 * i] = add_carry(t[2 * i], (uint64_t)square, &carry);
        t[2 * i + 1] = add_carry(t[2 * i + 1], (uint64_t)(square >> 64), &carry);
    }
    sm2_fe_reduce(r, t);
}

static inline void sm2_fe_square_times(sm2_fe *r, const sm2_fe *a, int times)
{
    *r = *a;
    for (int i = 0; i < times; i++)
        sm2_fe_square(r, r);
}

/* r = 1/a = a^(p-2), and 0 for a = 0; in constant time. In bits, p - 2 is 31 ones, a zero, 128 ones, 32
 * zeros, 62 ones, 01. x_k below is a to the power of k ones. */
static inline void sm2_fe_invert(sm2_fe *r, const sm2_fe *a)
{
    sm2_fe x1 = *a, x2, x4, x6, x8, x14, x16, x30, x31, x32, t;
    sm2_fe_square_times(&t, &x1, 1);
    sm2_fe_mul(&x2, &t, &x1);
    sm2_fe_square_times(&t, &x2, 2);
    sm2_fe_mul(&x4, &t, &x2);
    sm2_fe_square_times(&t, &x4, 2);
    sm2_fe_mul(&x6, &t, &x2);
    sm2_fe_square_times(&t, &x4, 4);
    sm2_fe_mul(&x8, &t, &x4);
    sm2_fe_square_times(&t, &x8, 6);
    sm2_fe_mul(&x14, &t, &x6);
    sm2_fe_square_times(&t, &x8, 8);
    sm2_fe_mul(&x16, &t, &x8);
    sm2_fe_square_times(&t, &x16, 14);
    sm2_fe_mul(&x30, &t, &x14);
    sm2_fe_square_times(&t, &x30, 1);
    sm2_fe_mul(&x31, &t, &x1);
    sm2_fe_square_times(&t, &x31, 1);
    sm2_fe_mul(&x32, &t, &x1);
    sm2_fe_square_times(&t, &x31, 1);
    for (int i = 0; i < 4; i++) {
        sm2_fe_square_times(&t, &t, 32);
        sm2_fe_mul(&t, &t, &x32);
    }
    sm2_fe_square_times(&t, &t, 64);
    sm2_fe_mul(&t, &t, &x32);
    sm2_fe_square_times(&t, &t, 30);
    sm2_fe_mul(&t, &t, &x30);
    sm2_fe_square_times(&t, &t, 2);
    sm2_fe_mul(r, &t, &x1);
}

/* Into Montgomery form, from a number below p. */
static inline void sm2_fe_enter(sm2_fe *r, const u256 *a)
{
    sm2_fe_mul(r, a, &SM2_FE_R2);
}

/* Out of Montgomery form. */
static inline void sm2_fe_leave(u256 *r, const sm2_fe *a)
{
    uint64_t t[8] = {a->w[0], a->w[1], a->w[2], a->w[3]};
    sm2_fe_reduce(r, t);
}

#endif
