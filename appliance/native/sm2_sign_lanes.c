/* Eight signatures at a time on AVX-512 IFMA. See sm2_sign.h. SECRET VALUES.
 *
 * The entry of a window that a lane wants is picked by vector permutations within registers: the whole window
 * is loaded for every digit, and no address depends on one. The rest is the arithmetic of sm2_lanes.h, which
 * does the same whatever the values are. */
#define HALVES 1
#include "sm2_lanes_point.h"

#include "sm2_sign_steps.h"

#ifndef SM2_LANES

int sm2_sign8_available(void)
{
    return 0;
}

/* Never called where it is not available; right all the same. */
void sm2_sign8(const sm2_signing_key *key, const uint8_t e[8][32], const uint8_t k[8][32], uint8_t sig[8][64],
               uint8_t ok[8])
{
    for (int i = 0; i < 8; i++)
        ok[i] = (uint8_t)sm2_sign_with_nonce(key, e[i], k[i], sig[i]);
}

#else

#include <pthread.h>
#include <stdlib.h>

_Static_assert(SIGN_ENTRIES == 32, "look_up permutes four vectors of eight");

/* A window of the comb by limbs: the five of x, then the five of y, each of all 32 points. */
typedef struct {
    v8 l[10][SIGN_ENTRIES / 8];
} lanes_window;

static lanes_window *lanes_table;
static pthread_once_t lanes_table_once = PTHREAD_ONCE_INIT;

static void build_lanes_table(void)
{
    const sm2_affine *table = sm2_sign_table();
    lanes_window *windows = NULL;
    if (table != NULL)
        windows = aligned_alloc(64, SIGN_WINDOWS * sizeof *windows);
    for (size_t i = 0; windows != NULL && i < (size_t)SIGN_WINDOWS * SIGN_ENTRIES; i += 8) {
        const fe8 factor = fe8_constant(&LANES_FROM_SCALAR);
        v8 r[8];
        for (size_t k = 0; k < 8; k++)
            r[k] = _mm512_loadu_si512(&table[i + k]);
        transpose(r);
        for (int c = 0; c < 2; c++) {
            fe8 a = fe8_from_words(r + 4 * c);
            a = fe8_canonical(fe8_mul(&a, &factor));
            for (int l = 0; l < 5; l++)
                windows[i / SIGN_ENTRIES].l[5 * c + l][i % SIGN_ENTRIES / 8] = a.l[l];
        }
    }
    lanes_table = windows; /* for the life of the process */
}

static inline void look_up(wide_affine *point, const lanes_window *window, v8 index, __mmask8 negative)
{
    __mmask8 upper = _mm512_test_epi64_mask(index, v8_set(16));
    fe8 *coordinates[2] = {&point->x.h[0], &point->y.h[0]};
    for (int i = 0; i < 10; i++) {
        const v8 *l = window->l[i];
        v8 low = _mm512_permutex2var_epi64(l[0], index, l[1]); /* looks at the lowest four bits */
        v8 high = _mm512_permutex2var_epi64(l[2], index, l[3]);
        coordinates[i / 5]->l[i % 5] = _mm512_mask_mov_epi64(low, upper, high);
    }
    negate_lanes_carried(point, negative);
}

/* The digits of eight scalars by window, and in what lanes they are negative. */
typedef struct {
    uint64_t index[SIGN_WINDOWS][8];
    uint64_t negative[SIGN_WINDOWS];
} lanes_digits;

/* x of odd G for eight odd scalars, as numbers below p; see multiply_generator in sm2_sign.c, also for the
 * doubling in the end. */
static void multiply_generator(u256 x[8], const lanes_digits *digits)
{
    static const limbs one = {{1}};
    struct {
        wide_affine point;
        wide_jacobian sum, doubled;
        fe8 z, x;
        v8 words[4];
    } secret;
    for (int i = 0; i < SIGN_WINDOWS; i++) {
        look_up(&secret.point, &lanes_table[i], _mm512_loadu_si512(digits->index[i]),
                (__mmask8)digits->negative[i]);
        if (i == 0)
            secret.sum = (wide_jacobian){secret.point.x, secret.point.y, wide_constant(&LANES_ONE)};
        else
            wide_add_affine(&secret.sum, &secret.sum, &secret.point);
    }
    secret.doubled = (wide_jacobian){secret.point.x, secret.point.y, wide_constant(&LANES_ONE)};
    wide_double(&secret.doubled, &secret.doubled);
    __mmask8 equal = fe8_zero_lanes(&secret.sum.z.h[0]);
    for (int l = 0; l < 5; l++) {
        v8 *sx = &secret.sum.x.h[0].l[l], *sz = &secret.sum.z.h[0].l[l];
        *sx = _mm512_mask_mov_epi64(*sx, equal, secret.doubled.x.h[0].l[l]);
        *sz = _mm512_mask_mov_epi64(*sz, equal, secret.doubled.z.h[0].l[l]);
    }
    secret.z = fe8_invert(&secret.sum.z.h[0]);
    secret.z = fe8_square(&secret.z);
    secret.x = fe8_mul(&secret.sum.x.h[0], &secret.z);
    /* Times one leaves Montgomery form, with a result that is at most p. */
    fe8 unit = fe8_constant(&one);
    secret.x = fe8_canonical(fe8_mul(&secret.x, &unit));
    fe8_to_words(secret.words, &secret.x);
    for (int i = 0; i < 4; i++) {
        uint64_t lanes[8];
        _mm512_storeu_si512(lanes, secret.words[i]);
        for (int k = 0; k < 8; k++)
            x[k].w[i] = lanes[k];
    }
    wipe(&secret, sizeof secret);
}

void sm2_sign8(const sm2_signing_key *key, const uint8_t e[8][32], const uint8_t k[8][32], uint8_t sig[8][64],
               uint8_t ok[8])
{
    struct {
        u256 k[8], odd, x[8];
        sm2_comb_digits digits;
        lanes_digits lanes;
        uint64_t negated;
    } secret;
    uint64_t usable[8];
    for (int i = 0; i < SIGN_WINDOWS; i++)
        secret.lanes.negative[i] = 0;
    for (int lane = 0; lane < 8; lane++) {
        u256_load(&secret.k[lane], k[lane]);
        usable[lane] = sm2_make_odd(&secret.odd, &secret.negated, &secret.k[lane]);
        sm2_comb_recode(&secret.digits, &secret.odd, SIGN_WIDTH);
        for (int i = 0; i < SIGN_WINDOWS; i++) {
            uint64_t negative = sm2_comb_digit(&secret.digits, i, SIGN_WIDTH, &secret.lanes.index[i][lane]);
            secret.lanes.negative[i] |= (negative & 1) << lane;
        }
    }
    multiply_generator(secret.x, &secret.lanes);
    for (int lane = 0; lane < 8; lane++)
        ok[lane] = (uint8_t)sm2_finish_signature(key, e[lane], &secret.k[lane], usable[lane], &secret.x[lane],
                                                 sig[lane]);
    wipe(&secret, sizeof secret);
}

SM2_LANES_END

int sm2_sign8_available(void)
{
    if (!sm2_lanes_supported())
        return 0;
    pthread_once(&lanes_table_once, build_lanes_table);
    return lanes_table != NULL;
}

#endif
