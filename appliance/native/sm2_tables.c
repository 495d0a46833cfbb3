/* See sm2_tables.h. Public values only.
 *
 * Everything is affine: an affine addition costs two multiplications, a squaring and an inversion, and the
 * inversion is shared by as many additions as are independent of each other, which makes it three more
 * multiplications each. That is little more than half of what an addition in projective coordinates costs. */
#include "sm2_tables.h"

#include <stdbool.h>
#include <stdlib.h>

enum { SHARED_INVERSION = 512 }; /* additions that share one: more would not be faster, only larger */

uint64_t sm2_affine_load(sm2_affine *point, const uint8_t bytes[64])
{
    u256 x, y;
    sm2_fe left, right, t;
    u256_load(&x, bytes);
    u256_load(&y, bytes + 32);
    uint64_t in_range = u256_less(&x, &SM2_P) & u256_less(&y, &SM2_P);
    sm2_fe_enter(&point->x, &x);
    sm2_fe_enter(&point->y, &y);
    sm2_fe_square(&left, &point->y);
    sm2_fe_square(&right, &point->x);
    sm2_fe_mul(&right, &right, &point->x);
    sm2_fe_double(&t, &point->x);
    sm2_fe_add(&t, &t, &point->x);
    sm2_fe_sub(&right, &right, &t);
    sm2_fe_add(&right, &right, &SM2_FE_B);
    return in_range & u256_equal(&left, &right);
}

/* ---- inversion
 * --------------------------------------------------------------------------------------------- */

/* Bernstein and Yang, Fast constant-time gcd computation and modular inversion (2019), here in variable time:
 * f = p and g = a are driven by steps (f, g) -> (f, g / 2), (f, (g + f) / 2) or (g, (g - f) / 2) until g = 0
 * and f = +-1. 62 steps at a time depend on the low words of f and g only; they are collected in a matrix,
 * which is then applied to f and g, and modulo p to d and e, for which d a = f and e a = g throughout. */

enum { STEPS = 62 };

#define LOW_BITS (((uint64_t)1 << STEPS) - 1)

__extension__ typedef __int128 i128;

/* Five digits of 62 bits, the last signed. */
typedef struct {
    int64_t v[5];
} signed_digits;

/* 2^62 (f', g') = (u f + v g, q f + r g). No entry exceeds 2^62. */
typedef struct {
    int64_t u, v, q, r;
} step_matrix;

static const signed_digits P_DIGITS = {
    {0x3fffffffffffffff, 0x3ffffffc00000003, 0x3fffffffffffffff, 0x3fffffbfffffffff, 0xff}};

/* Take 62 steps from the low words of f and g; returns what has become of delta, which decides about the
 * swaps. */
static int64_t take_steps(int64_t delta, uint64_t f, uint64_t g, step_matrix *matrix)
{
    uint64_t u = 1, v = 0, q = 0, r = 1;
    int left = STEPS;
    for (;;) {
        int zeros = __builtin_ctzll(g | (uint64_t)1 << left);
        g >>= zeros;
        u <<= zeros;
        v <<= zeros;
        delta += zeros;
        left -= zeros;
        if (left == 0)
            break;
        if (delta > 0) {
            uint64_t t = f;
            delta = -delta;
            f = g, g = 0 - t;
            t = u, u = q, q = 0 - t;
            t = v, v = r, r = 0 - t;
        }
        /* There will be no swap for 1 - delta steps: clear as many bits of g by a multiple of f, up to six,
         * for which f (2 - f^2) is 1/f. */
        int bits = 1 - delta < left ? (int)(1 - delta) : left;
        uint64_t w = (g * f * (f * f - 2)) & (((uint64_t)1 << (bits < 6 ? bits : 6)) - 1);
        g += f * w;
        q += u * w;
        r += v * w;
    }
    *matrix = (step_matrix){(int64_t)u, (int64_t)v, (int64_t)q, (int64_t)r};
    return delta;
}

/* (f, g) -> matrix (f, g) / 2^62, which is exact; or, modulo p, with the multiples of p that make it exact.
 */
static void apply_steps(signed_digits *f, signed_digits *g, const step_matrix *m, bool modulo_p)
{
    i128 cf = (i128)m->u * f->v[0] + (i128)m->v * g->v[0];
    i128 cg = (i128)m->q * f->v[0] + (i128)m->r * g->v[0];
    /* p = -1 mod 2^62: the multiple that clears the low digit is that digit. */
    int64_t kf = modulo_p ? (int64_t)((uint64_t)cf & LOW_BITS) : 0;
    int64_t kg = modulo_p ? (int64_t)((uint64_t)cg & LOW_BITS) : 0;
    cf = (cf + (i128)kf * P_DIGITS.v[0]) >> STEPS;
    cg = (cg + (i128)kg * P_DIGITS.v[0]) >> STEPS;
    for (int i = 1; i < 5; i++) {
        cf += (i128)m->u * f->v[i] + (i128)m->v * g->v[i] + (i128)kf * P_DIGITS.v[i];
        cg += (i128)m->q * f->v[i] + (i128)m->r * g->v[i] + (i128)kg * P_DIGITS.v[i];
        f->v[i - 1] = (int64_t)((uint64_t)cf & LOW_BITS);
        g->v[i - 1] = (int64_t)((uint64_t)cg & LOW_BITS);
        cf >>= STEPS;
        cg >>= STEPS;
    }
    f->v[4] = (int64_t)cf;
    g->v[4] = (int64_t)cg;
}

void sm2_fe_invert_public(sm2_fe *r, const sm2_fe *a)
{
    signed_digits f = P_DIGITS, d = {{0}}, e = {{1}}, g;
    step_matrix matrix;
    int64_t delta = 1;
    const uint64_t *w = a->w;
    g.v[0] = (int64_t)(w[0] & LOW_BITS);
    g.v[1] = (int64_t)((w[0] >> 62 | w[1] << 2) & LOW_BITS);
    g.v[2] = (int64_t)((w[1] >> 60 | w[2] << 4) & LOW_BITS);
    g.v[3] = (int64_t)((w[2] >> 58 | w[3] << 6) & LOW_BITS);
    g.v[4] = (int64_t)(w[3] >> 56);
    while ((g.v[0] | g.v[1] | g.v[2] | g.v[3] | g.v[4]) != 0) {
        delta = take_steps(delta, (uint64_t)f.v[0] | (uint64_t)f.v[1] << 62,
                           (uint64_t)g.v[0] | (uint64_t)g.v[1] << 62, &matrix);
        apply_steps(&f, &g, &matrix, false);
        apply_steps(&d, &e, &matrix, true);
    }
    /* Now f is 1 or -1, and d = f / a. At most twelve rounds have each added less than p to |d|: a few
     * additions or subtractions of p make it a number below p. */
    int64_t sign = f.v[4] < 0 ? -1 : 1;
    i128 carry = 0;
    uint64_t digits[5];
    for (int i = 0; i < 5; i++) {
        carry += (i128)sign * d.v[i];
        digits[i] = (uint64_t)carry & LOW_BITS;
        carry >>= STEPS;
    }
    u256 value = {{digits[0] | digits[1] << 62, digits[1] >> 2 | digits[2] << 60,
                   digits[2] >> 4 | digits[3] << 58, digits[3] >> 6 | digits[4] << 56}};
    /* What is above 2^256, signed: the digits have been made positive with the rest in the carry. */
    int64_t over = (int64_t)(digits[4] >> 8) + (int64_t)((uint64_t)carry << 54);
    while (over < 0)
        over += (int64_t)u256_add(&value, &value, &SM2_P);
    while (over > 0 || !u256_less(&value, &SM2_P))
        over -= (int64_t)u256_sub(&value, &value, &SM2_P);
    sm2_fe_mul(r, &value, &SM2_FE_R3);
}

/* ---- combs
 * ------------------------------------------------------------------------------------------------- */

/* One addition that waits for its inversion: *sum = *a + *b, with *a != +-*b. */
typedef struct {
    sm2_affine *sum;
    const sm2_affine *a, *b;
} pending_addition;

static void add_together(const pending_addition *additions, size_t count)
{
    sm2_fe products[SHARED_INVERSION + 1], inverse, difference, slope, t;
    products[0] = SM2_FE_ONE;
    for (size_t i = 0; i < count; i++) {
        sm2_fe_sub(&difference, &additions[i].b->x, &additions[i].a->x);
        sm2_fe_mul(&products[i + 1], &products[i], &difference);
    }
    sm2_fe_invert_public(&inverse, &products[count]);
    for (size_t i = count; i-- > 0;) {
        const sm2_affine *a = additions[i].a, *b = additions[i].b;
        sm2_affine *sum = additions[i].sum;
        sm2_fe_mul(&slope, &inverse, &products[i]);
        sm2_fe_sub(&difference, &b->x, &a->x);
        sm2_fe_mul(&inverse, &inverse, &difference);
        sm2_fe_sub(&t, &b->y, &a->y);
        sm2_fe_mul(&slope, &slope, &t);
        sm2_fe_square(&t, &slope);
        sm2_fe_sub(&t, &t, &a->x);
        sm2_fe_sub(&sum->x, &t, &b->x);
        sm2_fe_sub(&t, &a->x, &sum->x);
        sm2_fe_mul(&t, &t, &slope);
        sm2_fe_sub(&sum->y, &t, &a->y);
    }
}

/* powers[m] = 2^m point, for 0 <= m < count. */
static void double_repeatedly(sm2_affine *powers, sm2_jacobian *chain, size_t count, const sm2_affine *point)
{
    sm2_fe inverse, t, zz;
    powers[0] = *point;
    chain[0] = (sm2_jacobian){point->x, point->y, SM2_FE_ONE};
    for (size_t m = 1; m < count; m++) {
        sm2_double(&chain[m], &chain[m - 1]);
        /* The products of the z coordinates wait where the results will stand. */
        sm2_fe_mul(&powers[m].x, m == 1 ? &SM2_FE_ONE : &powers[m - 1].x, &chain[m].z);
    }
    sm2_fe_invert_public(&inverse, &powers[count - 1].x);
    for (size_t m = count - 1; m > 0; m--) {
        sm2_fe_mul(&t, &inverse, m == 1 ? &SM2_FE_ONE : &powers[m - 1].x);
        sm2_fe_mul(&inverse, &inverse, &chain[m].z);
        sm2_fe_square(&zz, &t);
        sm2_fe_mul(&powers[m].x, &chain[m].x, &zz);
        sm2_fe_mul(&t, &t, &zz);
        sm2_fe_mul(&powers[m].y, &chain[m].y, &t);
    }
}

int sm2_comb_build(sm2_affine *table, int width, const sm2_affine *point)
{
    const size_t windows = (size_t)SM2_COMB_WINDOWS(width), entries = (size_t)1 << (width - 1);
    const size_t powers_count = windows * (size_t)width;
    sm2_affine *powers = malloc(powers_count * (sizeof(sm2_affine) + sizeof(sm2_jacobian)));
    pending_addition additions[SHARED_INVERSION];
    size_t pending = 0;
    if (powers == NULL)
        return -1;
    double_repeatedly(powers, (sm2_jacobian *)(powers + powers_count), powers_count, point);
    for (size_t i = 0; i < windows; i++)
        table[i * entries] = powers[i * (size_t)width];
    /* {1, 3, ..., 2 half - 1} P_i + 2 half P_i = {2 half + 1, ..., 4 half - 1} P_i. The summands differ from
     * each other and from their negatives: one is an odd and one an even multiple, both below n. */
    int log = 1;
    for (size_t half = 1; half < entries; half *= 2, log++) {
        for (size_t i = 0; i < windows; i++) {
            for (size_t j = 0; j < half; j++) {
                sm2_affine *window = table + i * entries;
                additions[pending++] = (pending_addition){&window[half + j], &window[j],
                                                          &powers[i * (size_t)width + (size_t)log]};
                if (pending == SHARED_INVERSION) {
                    add_together(additions, pending);
                    pending = 0;
                }
            }
        }
        add_together(additions, pending);
        pending = 0;
    }
    free(powers);
    return 0;
}
