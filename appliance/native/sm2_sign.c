/* See sm2_sign.h. The multiplication k G reads the whole of each window of the comb and keeps by masking the
 * entry it wants, so that the addresses read are the same for every k. */
#include "sm2_sign_steps.h"

#include <pthread.h>
#include <stdlib.h>

static sm2_affine *generator_table;
static pthread_once_t generator_table_once = PTHREAD_ONCE_INIT;

static void build_generator_table(void)
{
    sm2_affine *table = aligned_alloc(64, SM2_COMB_POINTS(SIGN_WIDTH) * sizeof *table);
    if (table != NULL && sm2_comb_build(table, SIGN_WIDTH, &SM2_GENERATOR) != 0) {
        free(table);
        table = NULL;
    }
    generator_table = table; /* for the life of the process */
}

const sm2_affine *sm2_sign_table(void)
{
    pthread_once(&generator_table_once, build_generator_table);
    return generator_table;
}

/* Two words at a time, with the vector instructions that every 64-bit processor has. */
typedef uint64_t word_pair __attribute__((vector_size(16), aligned(16), may_alias));

/* *point = the entry of the window with that index, negated if the mask says so. */
static void look_up(sm2_affine *point, const sm2_affine window[SIGN_ENTRIES], uint64_t index,
                    uint64_t negative)
{
    word_pair found[4] = {{0}};
    u256 minus_y;
    for (uint64_t j = 0; j < SIGN_ENTRIES; j++) {
        const word_pair *entry = (const word_pair *)&window[j];
        uint64_t bit = mask_of(is_zero_word(j ^ index));
        word_pair mask = {bit, bit};
        UNROLL
        for (int i = 0; i < 4; i++)
            found[i] |= entry[i] & mask;
    }
    memcpy(point, found, sizeof *point);
    sm2_fe_negate(&minus_y, &point->y);
    u256_select(&point->y, negative, &minus_y, &point->y);
    wipe(found, sizeof found);
}

/* r = odd G, for an odd scalar below n.
 *
 * From the lowest window up, the sum so far is below 2^(w i) in absolute value and not zero, and the point
 * added at least that: they are never equal or opposite, as integers and, before the last window, modulo n.
 * In the last window they cannot be opposite (the sum is not 0 modulo n), but there is a scalar for which
 * they are equal; so the double is computed as well, and taken if the difference of the x coordinates, a
 * factor of Z, has vanished. */
static void multiply_generator(sm2_jacobian *r, const u256 *odd, const sm2_affine *table)
{
    struct {
        sm2_comb_digits digits;
        sm2_affine point;
        sm2_jacobian doubled;
    } secret;
    uint64_t index, negative;
    sm2_comb_recode(&secret.digits, odd, SIGN_WIDTH);
    for (int i = 0; i < SIGN_WINDOWS; i++) {
        negative = sm2_comb_digit(&secret.digits, i, SIGN_WIDTH, &index);
        look_up(&secret.point, table + i * SIGN_ENTRIES, index, negative);
        if (i == 0)
            *r = (sm2_jacobian){secret.point.x, secret.point.y, SM2_FE_ONE};
        else
            sm2_add_affine(r, r, &secret.point);
    }
    secret.doubled = (sm2_jacobian){secret.point.x, secret.point.y, SM2_FE_ONE};
    sm2_double(&secret.doubled, &secret.doubled);
    uint64_t equal = mask_of(u256_is_zero(&r->z));
    u256_select(&r->x, equal, &secret.doubled.x, &r->x);
    u256_select(&r->y, equal, &secret.doubled.y, &r->y);
    u256_select(&r->z, equal, &secret.doubled.z, &r->z);
    wipe(&secret, sizeof secret);
}

int sm2_signing_key_init(sm2_signing_key *key, const uint8_t d_bytes[32])
{
    static const u256 one = {{1}};
    u256 d, d1, inverse;
    u256_load(&d, d_bytes);
    /* 1 + d must be neither 0 nor 1 modulo n. */
    uint64_t valid = u256_less(&d, &SM2_N) & (u256_is_zero(&d) ^ 1);
    u256_add(&d1, &d, &one);
    valid &= u256_less(&d1, &SM2_N);
    u256_select(&d1, mask_of(valid), &d1, &one);
    sm2_order_mul(&d1, &d1, &SM2_ORDER_R2);
    sm2_order_invert(&inverse, &d1);
    for (int i = 0; i < 4; i++) {
        key->d[i] = d.w[i] & mask_of(valid);
        key->inv1d[i] = inverse.w[i] & mask_of(valid);
    }
    wipe(&d, sizeof d);
    wipe(&d1, sizeof d1);
    wipe(&inverse, sizeof inverse);
    return (int)valid - 1;
}

void sm2_signing_key_wipe(sm2_signing_key *key)
{
    wipe(key, sizeof *key);
}

int sm2_sign_with_nonce(const sm2_signing_key *key, const uint8_t e[32], const uint8_t k_bytes[32],
                        uint8_t sig[64])
{
    struct {
        u256 k, odd;
        sm2_jacobian point;
        sm2_fe inverse;
        uint64_t negated;
    } secret;
    const sm2_affine *table = sm2_sign_table();
    u256 x1;
    if (table == NULL) {
        memset(sig, 0, 64);
        return 0;
    }
    u256_load(&secret.k, k_bytes);
    uint64_t usable = sm2_make_odd(&secret.odd, &secret.negated, &secret.k);
    multiply_generator(&secret.point, &secret.odd, table);
    sm2_fe_invert(&secret.inverse, &secret.point.z);
    sm2_fe_square(&secret.inverse, &secret.inverse);
    sm2_fe_mul(&secret.point.x, &secret.point.x, &secret.inverse);
    sm2_fe_leave(&x1, &secret.point.x); /* -k G has the same x */
    usable = sm2_finish_signature(key, e, &secret.k, usable, &x1, sig);
    wipe(&secret, sizeof secret);
    return (int)usable;
}

int sm2_public_from_private(const uint8_t d_bytes[32], uint8_t point_bytes[64])
{
    struct {
        u256 d, odd;
        sm2_jacobian point;
        sm2_fe inverse, square;
        uint64_t negated;
    } secret;
    const sm2_affine *table = sm2_sign_table();
    u256 x, y, minus_y;
    if (table == NULL)
        return -1;
    u256_load(&secret.d, d_bytes);
    uint64_t valid = sm2_make_odd(&secret.odd, &secret.negated, &secret.d);
    multiply_generator(&secret.point, &secret.odd, table);
    sm2_fe_invert(&secret.inverse, &secret.point.z);
    sm2_fe_square(&secret.square, &secret.inverse);
    sm2_fe_mul(&secret.point.x, &secret.point.x, &secret.square);
    sm2_fe_mul(&secret.inverse, &secret.inverse, &secret.square);
    sm2_fe_mul(&secret.point.y, &secret.point.y, &secret.inverse);
    sm2_fe_negate(&minus_y, &secret.point.y);
    u256_select(&secret.point.y, secret.negated, &minus_y, &secret.point.y);
    sm2_fe_leave(&x, &secret.point.x);
    sm2_fe_leave(&y, &secret.point.y);
    for (int i = 0; i < 4; i++) {
        x.w[i] &= mask_of(valid);
        y.w[i] &= mask_of(valid);
    }
    u256_store(point_bytes, &x);
    u256_store(point_bytes + 32, &y);
    wipe(&secret, sizeof secret);
    return (int)valid - 1;
}
