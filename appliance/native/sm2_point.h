/* Points of the SM2 curve y^2 = x^3 - 3x + b, coordinates in Montgomery form.
 *
 * The formulas are the usual ones for a = -3 (Hankerson, Menezes, Vanstone, Guide to Elliptic Curve
 * Cryptography, 3.2.2): 3 multiplications and 5 squarings to double, 8 and 3 to add an affine point. They
 * branch on nothing; what they do not cover is said at each. */
#ifndef CLOUD_SEAL_SM2_POINT_H
#define CLOUD_SEAL_SM2_POINT_H

#include "sm2_field.h"

/* A point other than infinity: 64 bytes, one cache line. */
typedef struct {
    sm2_fe x, y;
} sm2_affine;

/* x = X / Z^2, y = Y / Z^3. Z = 0 is infinity. */
typedef struct {
    sm2_fe x, y, z;
} sm2_jacobian;

static const sm2_affine SM2_GENERATOR = {
    {{0x61328990f418029e, 0x3e7981eddca6c050, 0xd6a1ed99ac24c3c3, 0x91167a5ee1c13b05}},
    {{0xc1354e593c2d0ddd, 0xc1f5e5788d3295fa, 0x8d4cfb066e2a48f8, 0x63cd65d481d735bd}},
};

/* r = 2a, also for infinity. There is no point of order two. */
static inline void sm2_double(sm2_jacobian *r, const sm2_jacobian *a)
{
    sm2_fe delta, gamma, beta, alpha, t, u;
    sm2_fe_square(&delta, &a->z);
    sm2_fe_square(&gamma, &a->y);
    sm2_fe_mul(&beta, &a->x, &gamma);
    sm2_fe_sub(&t, &a->x, &delta);
    sm2_fe_add(&u, &a->x, &delta);
    sm2_fe_mul(&alpha, &t, &u);
    sm2_fe_double(&t, &alpha);
    sm2_fe_add(&alpha, &alpha, &t); /* 3 (x - z^2)(x + z^2) */
    sm2_fe_add(&t, &a->y, &a->z);
    sm2_fe_square(&t, &t);
    sm2_fe_sub(&t, &t, &gamma);
    sm2_fe_sub(&r->z, &t, &delta);
    sm2_fe_double(&beta, &beta);
    sm2_fe_double(&beta, &beta); /* 4 x y^2 */
    sm2_fe_square(&t, &alpha);
    sm2_fe_double(&u, &beta);
    sm2_fe_sub(&r->x, &t, &u);
    sm2_fe_sub(&t, &beta, &r->x);
    sm2_fe_mul(&t, &t, &alpha);
    sm2_fe_double(&gamma, &gamma);
    sm2_fe_square(&gamma, &gamma);
    sm2_fe_double(&gamma, &gamma); /* 8 y^4 */
    sm2_fe_sub(&r->y, &t, &gamma);
}

/* r = a + b, unless a is infinity or a = b: then Z becomes 0, and stays 0 in whatever is computed from it. If
 * a = -b that is the right answer. Whoever cannot exclude those cases looks at Z in the end. */
static inline void sm2_add_affine(sm2_jacobian *r, const sm2_jacobian *a, const sm2_affine *b)
{
    sm2_fe zz, h, w, hh, hhh, v, t;
    sm2_fe_square(&zz, &a->z);
    sm2_fe_mul(&h, &b->x, &zz);
    sm2_fe_sub(&h, &h, &a->x);
    sm2_fe_mul(&t, &zz, &a->z);
    sm2_fe_mul(&w, &b->y, &t);
    sm2_fe_sub(&w, &w, &a->y);
    sm2_fe_square(&hh, &h);
    sm2_fe_mul(&hhh, &hh, &h);
    sm2_fe_mul(&v, &a->x, &hh);
    sm2_fe_mul(&r->z, &a->z, &h);
    sm2_fe_square(&t, &w);
    sm2_fe_sub(&t, &t, &hhh);
    sm2_fe_sub(&t, &t, &v);
    sm2_fe_sub(&r->x, &t, &v);
    sm2_fe_mul(&hhh, &hhh, &a->y);
    sm2_fe_sub(&t, &v, &r->x);
    sm2_fe_mul(&t, &t, &w);
    sm2_fe_sub(&r->y, &t, &hhh);
}

#endif
