/* Points in lanes: the formulas of sm2_point.h on HALVES times eight points at once. The includer defines
 * HALVES before: 1, or 2 so that the latency of one half's multiplications hides behind the other's.
 *
 * No branch and no address depends on a value here: signing uses it on secrets. */
#ifndef CLOUD_SEAL_SM2_LANES_POINT_H
#define CLOUD_SEAL_SM2_LANES_POINT_H

#include "sm2_lanes.h"

#ifdef SM2_LANES

#define EACH_HALF for (int h = 0; h < HALVES; h++)

typedef struct {
    fe8 h[HALVES];
} wide;

/* x below 2.01 p. y below 2.01 p too, or else the limbs, without carries, of +-y for y below p. */
typedef struct {
    wide x, y;
} wide_affine;

typedef struct {
    wide x, y, z;
} wide_jacobian;

static inline wide wide_mul(const wide *a, const wide *b)
{
    wide r;
    EACH_HALF r.h[h] = fe8_mul(&a->h[h], &b->h[h]);
    return r;
}

static inline wide wide_square(const wide *a)
{
    wide r;
    EACH_HALF r.h[h] = fe8_square(&a->h[h]);
    return r;
}

static inline wide wide_sub(const wide *a, const wide *b)
{
    wide r;
    EACH_HALF r.h[h] = fe8_sub(a->h[h], b->h[h]);
    return r;
}

static inline wide wide_constant(const limbs *c)
{
    wide r;
    EACH_HALF r.h[h] = fe8_constant(c);
    return r;
}

/* r = 2a; see sm2_double. Coordinates are results of fe8_finish, before and after. */
static inline void wide_double(wide_jacobian *r, const wide_jacobian *a)
{
    wide delta = wide_square(&a->z), gamma = wide_square(&a->y), beta = wide_mul(&a->x, &gamma), alpha, t, z,
         x;
    EACH_HALF
    {
        fe8 minus = fe8_sub(a->x.h[h], delta.h[h]), plus = fe8_carry(limbs_add(a->x.h[h], delta.h[h]));
        fe8 product = limbs_mul(&minus, &plus);
        alpha.h[h] = fe8_finish(limbs_add(product, limbs_shift(product, 1)));
    }
    EACH_HALF z.h[h] = fe8_finish(limbs_shift(limbs_mul(&a->y.h[h], &a->z.h[h]), 1));
    EACH_HALF x.h[h] = fe8_finish(limbs_sub(limbs_square(&alpha.h[h]), limbs_shift(beta.h[h], 3)));
    gamma = wide_square(&gamma);
    EACH_HALF t.h[h] = fe8_finish(limbs_sub(limbs_shift(beta.h[h], 2), x.h[h]));
    EACH_HALF r->y.h[h] = fe8_finish(limbs_sub(limbs_mul(&t.h[h], &alpha.h[h]), limbs_shift(gamma.h[h], 3)));
    r->x = x;
    r->z = z;
}

/* r = a + b, with the exceptions of sm2_add_affine. b is carried. */
static inline void wide_add_affine(wide_jacobian *r, const wide_jacobian *a, const wide_affine *b)
{
    wide zz = wide_square(&a->z), zzz = wide_mul(&zz, &a->z), run, rise, hh, hhh, v, t, x, z;
    EACH_HALF run.h[h] = fe8_finish(limbs_sub(limbs_mul(&b->x.h[h], &zz.h[h]), a->x.h[h]));
    EACH_HALF rise.h[h] = fe8_finish(limbs_sub(limbs_mul(&b->y.h[h], &zzz.h[h]), a->y.h[h]));
    hh = wide_square(&run);
    EACH_HALF z.h[h] = fe8_finish(limbs_mul(&a->z.h[h], &run.h[h]));
    hhh = wide_mul(&hh, &run);
    v = wide_mul(&a->x, &hh);
    EACH_HALF x.h[h] =
        fe8_finish(limbs_sub(limbs_sub(limbs_square(&rise.h[h]), hhh.h[h]), limbs_shift(v.h[h], 1)));
    t = wide_sub(&v, &x);
    EACH_HALF
    {
        /* rise (v - x) - y hhh: two products, one reduction. */
        fe8 minus = fe8_carry(limbs_sub(fe8_constant(&LANES_4P), hhh.h[h]));
        v8 c[10];
        columns_clear(c);
        columns_mul(c, &rise.h[h], &t.h[h]);
        columns_mul(c, &a->y.h[h], &minus);
        r->y.h[h] = fe8_finish(columns_reduce(c));
    }
    r->x = x;
    r->z = z;
}

/* a / (Z^2, Z^3), given 1 / Z. */
static inline void wide_to_affine(wide_affine *r, const wide_jacobian *a, const wide *inverse)
{
    wide zz = wide_square(inverse), zzz = wide_mul(&zz, inverse);
    r->x = wide_mul(&a->x, &zz);
    r->y = wide_mul(&a->y, &zzz);
}

/* Change the sign of y in the lanes of the mask, limb by limb. */
static inline void negate_lanes(wide_affine *point, uint16_t negative)
{
    EACH_HALF
    {
        __mmask8 mask = (__mmask8)(negative >> 8 * h);
        for (int i = 0; i < 5; i++) {
            v8 *l = &point->y.h[h].l[i];
            *l = _mm512_mask_sub_epi64(*l, mask, _mm512_setzero_si512(), *l);
        }
    }
}

/* As negate_lanes, and carried: ready to be multiplied. */
static inline void negate_lanes_carried(wide_affine *point, uint16_t negative)
{
    negate_lanes(point, negative);
    EACH_HALF
    {
        __mmask8 mask = (__mmask8)(negative >> 8 * h);
        fe8 *y = &point->y.h[h];
        for (int i = 0; i < 5; i++)
            y->l[i] = _mm512_mask_add_epi64(y->l[i], mask, y->l[i], v8_set(LANES_P.l[i]));
        *y = fe8_carry(*y);
    }
}

#endif
#endif
