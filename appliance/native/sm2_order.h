/* Integers modulo n, the order of the SM2 group (GB/T 32918.5). Constant time, as sm2_words.h. */
#ifndef CLOUD_SEAL_SM2_ORDER_H
#define CLOUD_SEAL_SM2_ORDER_H

#include "sm2_words.h"

static const u256 SM2_N = {{0x53bbf40939d54123, 0x7203df6b21c6052b, 0xffffffffffffffff, 0xfffffffeffffffff}};
/* 2^256 and 2^512 mod n, and -1/n mod 2^64. */
static const u256 SM2_ORDER_ONE = {
    {0xac440bf6c62abedd, 0x8dfc2094de39fad4, 0x0000000000000000, 0x0000000100000000}};
static const u256 SM2_ORDER_R2 = {
    {0x901192af7c114f20, 0x3464504ade6fa2fa, 0x620fc84c3affe0d4, 0x1eb5e412a22b3d3b}};
static const uint64_t SM2_ORDER_N0 = 0x327f9e8872350975;

static inline void sm2_order_add(u256 *r, const u256 *a, const u256 *b)
{
    u256_add_mod(r, a, b, &SM2_N);
}

static inline void sm2_order_sub(u256 *r, const u256 *a, const u256 *b)
{
    u256_sub_mod(r, a, b, &SM2_N);
}

/* r = a mod n, for any a: 2^256 < 2n, so one subtraction is enough. */
static inline void sm2_order_reduce(u256 *r, const u256 *a)
{
    u256 reduced;
    uint64_t borrow = u256_sub(&reduced, a, &SM2_N);
    u256_select(r, mask_of(borrow), a, &reduced);
}

/* r = a b / 2^256 mod n, for a, b < n: Montgomery's multiplication, word by word. */
static inline void sm2_order_mul(u256 *r, const u256 *a, const u256 *b)
{
    uint64_t t[6] = {0};
    for (int i = 0; i < 4; i++) {
        uint64_t carry = 0, last = 0;
        u128 sum;
        for (int j = 0; j < 4; j++) {
            sum = (u128)a->w[i] * b->w[j] + t[j] + carry;
            t[j] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        t[4] = add_carry(t[4], carry, &last);
        t[5] = last;
        uint64_t m = t[0] * SM2_ORDER_N0;
        sum = (u128)m * SM2_N.w[0] + t[0];
        carry = (uint64_t)(sum >> 64);
        for (int j = 1; j < 4; j++) {
            sum = (u128)m * SM2_N.w[j] + t[j] + carry;
            t[j - 1] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        last = 0;
        t[3] = add_carry(t[4], carry, &last);
        t[4] = t[5] + last;
    }
    u256 value = {{t[0], t[1], t[2], t[3]}}, reduced;
    uint64_t borrow = u256_sub(&reduced, &value, &SM2_N);
    u256_select(r, mask_of(borrow & (t[4] ^ 1)), &value, &reduced);
}

/* r = 1/a, both in Montgomery form, by a^(n-2). The branches follow the bits of n, which is no secret. */
static inline void sm2_order_invert(u256 *r, const u256 *a)
{
    u256 result = SM2_ORDER_ONE;
    for (int bit = 255; bit >= 0; bit--) {
        sm2_order_mul(&result, &result, &result);
        uint64_t word = SM2_N.w[bit / 64] - (bit < 64 ? 2 : 0);
        if (word >> (bit % 64) & 1)
            sm2_order_mul(&result, &result, a);
    }
    *r = result;
}

#endif
