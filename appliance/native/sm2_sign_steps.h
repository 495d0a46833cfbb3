/* The steps of an SM2 signature that sm2_sign.c and sm2_sign_lanes.c share: everything but the multiplication
 * k G. SECRET VALUES, constant time: see sm2_sign.h. */
#ifndef CLOUD_SEAL_SM2_SIGN_STEPS_H
#define CLOUD_SEAL_SM2_SIGN_STEPS_H

#include <string.h>

#include "sm2_order.h"
#include "sm2_sign.h"
#include "sm2_tables.h"

/* The comb for G that signing scans: 43 windows of 32 points, 88 kB. */
enum { SIGN_WIDTH = 6, SIGN_WINDOWS = SM2_COMB_WINDOWS(SIGN_WIDTH), SIGN_ENTRIES = 1 << (SIGN_WIDTH - 1) };

/* Built at the first call; NULL if there was no memory then. Multiples of G are public. */
const sm2_affine *sm2_sign_table(void);

/* Clear secrets. The barrier keeps the compiler from dropping a write to memory that nobody reads again. */
static inline void wipe(void *secret, size_t len)
{
    memset(secret, 0, len);
    __asm__ volatile("" : : "r"(secret) : "memory");
}

/* 1 if k is in [1, n-1]; *odd becomes k or n - k, whichever is odd, and *negated a mask that says which. */
static inline uint64_t sm2_make_odd(u256 *odd, uint64_t *negated, const u256 *k)
{
    u256 negative;
    u256_sub(&negative, &SM2_N, k);
    *negated = mask_of((k->w[0] & 1) ^ 1);
    u256_select(odd, *negated, &negative, k);
    return u256_less(k, &SM2_N) & (u256_is_zero(k) ^ 1);
}

/* From x1 = x(kG), a number below p, to the signature: r = e + x1, s = (k + r) / (1 + d) - r, which is the
 * standard's (k - r d) / (1 + d). Returns 1 and writes it, or returns 0 and writes zeros. */
static inline uint64_t sm2_finish_signature(const sm2_signing_key *key, const uint8_t e_bytes[32],
                                            const u256 *k, uint64_t usable, const u256 *x1, uint8_t sig[64])
{
    u256 e, r, s, sum, inverse;
    u256_load(&e, e_bytes);
    sm2_order_reduce(&e, &e);
    sm2_order_reduce(&r, x1);
    sm2_order_add(&r, &r, &e);
    sm2_order_add(&sum, &r, k);
    memcpy(inverse.w, key->inv1d, sizeof inverse.w);
    sm2_order_mul(&s, &sum, &inverse);
    sm2_order_sub(&s, &s, &r);
    usable &= (u256_is_zero(&r) | u256_is_zero(&sum) | u256_is_zero(&s)) ^ 1;
    /* With r + k = n, s would be -r: it tells k, and with k the key. So what is unusable is not written out.
     */
    for (int i = 0; i < 4; i++) {
        r.w[i] &= mask_of(usable);
        s.w[i] &= mask_of(usable);
    }
    u256_store(sig, &r);
    u256_store(sig + 32, &s);
    wipe(&inverse, sizeof inverse);
    wipe(&sum, sizeof sum);
    return usable;
}

#endif
