/* See sm2_tables.h. Public values only.
 *
 * Everything is affine: an affine addition costs two multiplications, a squaring and an inversion, and the
 * inversion is shared by as many additions as are independent of each other, which makes it three more
 * multiplications each. That is little more than half of what an addition in projective coordinates costs. */
#include "sm2_tables.h"

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

void sm2_fe_invert_public(sm2_fe *r, const sm2_fe *a)
{
    sm2_fe_invert(r, a);
}

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
