/* See sm2_verify.h: what both engines share, and the scalar one. Public values only. */
#include "sm2_verify.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

/* ---- what both engines share
 * ------------------------------------------------------------------------------- */

static uint64_t make_odd(u256 *k)
{
    if (k->w[0] & 1)
        return 0;
    u256_sub(k, &SM2_N, k);
    return ~(uint64_t)0;
}

sm2_equation_state sm2_equation_load(sm2_equation *equation, const sm2_item *item)
{
    u256 r, e, wrapped;
    u256_load(&r, item->signature);
    u256_load(&equation->s, item->signature + 32);
    if (u256_is_zero(&r) || !u256_less(&r, &SM2_N) || u256_is_zero(&equation->s) ||
        !u256_less(&equation->s, &SM2_N))
        return EQUATION_INVALID;
    sm2_order_add(&equation->t, &r, &equation->s);
    if (u256_is_zero(&equation->t))
        return EQUATION_INVALID;
    u256_load(&e, item->digest);
    sm2_order_reduce(&e, &e);
    sm2_order_sub(&equation->x, &r, &e);
    equation->s_negated = make_odd(&equation->s);
    equation->t_negated = make_odd(&equation->t);
    uint64_t carry = u256_add(&wrapped, &equation->x, &SM2_N);
    return !carry && u256_less(&wrapped, &SM2_P) ? EQUATION_NEEDS_EXACT : EQUATION_READY;
}

/* r = a + b whatever a and b are. */
static void add_exact(sm2_jacobian *r, const sm2_jacobian *a, const sm2_affine *b)
{
    sm2_jacobian sum;
    if (u256_is_zero(&a->z)) {
        *r = (sm2_jacobian){b->x, b->y, SM2_FE_ONE};
        return;
    }
    sm2_add_affine(&sum, a, b);
    if (u256_is_zero(&sum.z)) { /* a = b or a = -b: which? b.y z^3 = Y tells */
        sm2_fe t;
        sm2_fe_square(&t, &a->z);
        sm2_fe_mul(&t, &t, &a->z);
        sm2_fe_mul(&t, &t, &b->y);
        if (u256_equal(&t, &a->y))
            sm2_double(&sum, a);
    }
    *r = sum;
}

bool sm2_verify_exact(const sm2_item *item)
{
    sm2_equation equation;
    sm2_affine base = SM2_GENERATOR, point = *item->point;
    sm2_jacobian sum = {SM2_FE_ONE, SM2_FE_ONE, {{0}}};
    if (sm2_equation_load(&equation, item) == EQUATION_INVALID)
        return false;
    if (equation.s_negated)
        sm2_fe_negate(&base.y, &base.y);
    if (equation.t_negated)
        sm2_fe_negate(&point.y, &point.y);
    for (int bit = 255; bit >= 0; bit--) {
        sm2_double(&sum, &sum);
        if (equation.s.w[bit / 64] >> (bit % 64) & 1)
            add_exact(&sum, &sum, &base);
        if (equation.t.w[bit / 64] >> (bit % 64) & 1)
            add_exact(&sum, &sum, &point);
    }
    if (u256_is_zero(&sum.z))
        return false;
    sm2_fe x;
    u256 number;
    sm2_fe_invert(&x, &sum.z);
    sm2_fe_square(&x, &x);
    sm2_fe_mul(&x, &x, &sum.x);
    sm2_fe_leave(&number, &x);
    sm2_order_reduce(&number, &number);
    return u256_equal(&number, &equation.x);
}

/* ---- the scalar engine
 * ------------------------------------------------------------------------------------- */

/* Signatures whose additions share inversions. More would save little and leave the second-level cache. */
enum { CHUNK = 32 };

struct sm2_scalar_scratch {
    sm2_affine points[CHUNK][SUM_POINTS];
    sm2_fe products[CHUNK * SUM_POINTS / 2 + 1];
};

static sm2_affine *base_table;
static pthread_once_t base_table_once = PTHREAD_ONCE_INIT;

static void build_base_table(void)
{
    sm2_affine *table = aligned_alloc(64, SM2_COMB_POINTS(BASE_WIDTH) * sizeof *table);
    if (table != NULL && sm2_comb_build(table, BASE_WIDTH, &SM2_GENERATOR) != 0) {
        free(table);
        table = NULL;
    }
    base_table = table; /* for the life of the process */
}

void *sm2_scalar_scratch_new(void)
{
    pthread_once(&base_table_once, build_base_table);
    return base_table == NULL ? NULL : aligned_alloc(64, (sizeof(sm2_scalar_scratch) + 63) / 64 * 64);
}

int sm2_scalar_table(sm2_affine *table, const sm2_affine *point)
{
    return sm2_comb_build(table, KEY_WIDTH, point);
}

static void take(sm2_affine *point, const sm2_affine *entry, uint64_t negative)
{
    *point = *entry;
    if (negative)
        sm2_fe_negate(&point->y, &point->y);
}

/* The points of the comb whose sum is the scalar times the comb's point. */
static void take_comb(sm2_affine *points, const sm2_affine *table, int width, const u256 *scalar,
                      uint64_t negated)
{
    sm2_comb_digits digits;
    uint64_t index;
    sm2_comb_recode(&digits, scalar, width);
    for (int i = 0; i < SM2_COMB_WINDOWS(width); i++) {
        uint64_t negative = sm2_comb_digit(&digits, i, width, &index) ^ negated;
        take(&points[i], table + ((size_t)i << (width - 1)) + index, negative);
    }
}

/* One level of the sums of all signatures: the points at 0 and stride, 2 stride and 3 stride, ... are added,
 * the sums take the places of the first of each pair, and a last point without a partner stays.
 * exceptional[c] is set if two of signature c had the same x. */
static void add_level(sm2_scalar_scratch *scratch, size_t count, size_t stride, bool *exceptional)
{
    sm2_fe inverse, difference, slope, t, *product = scratch->products;
    *product = SM2_FE_ONE;
    for (size_t c = 0; c < count; c++) {
        for (size_t i = 0; i + stride < SUM_POINTS; i += 2 * stride) {
            const sm2_affine *a = &scratch->points[c][i], *b = a + stride;
            sm2_fe_sub(&difference, &b->x, &a->x);
            exceptional[c] |= u256_is_zero(&difference);
            product++;
            if (u256_is_zero(&difference))
                *product = product[-1];
            else
                sm2_fe_mul(product, &product[-1], &difference);
        }
    }
    sm2_fe_invert_public(&inverse, product);
    for (size_t c = count; c-- > 0;) {
        for (size_t i = (SUM_POINTS - 1 - stride) / (2 * stride) * 2 * stride + 2 * stride; i > 0;) {
            i -= 2 * stride;
            sm2_affine *a = &scratch->points[c][i], *b = a + stride;
            sm2_fe_sub(&difference, &b->x, &a->x);
            product--;
            if (u256_is_zero(&difference))
                continue;
            sm2_fe_mul(&slope, &inverse, product);
            sm2_fe_mul(&inverse, &inverse, &difference);
            sm2_fe_sub(&t, &b->y, &a->y);
            sm2_fe_mul(&slope, &slope, &t);
            sm2_fe_square(&t, &slope);
            sm2_fe_sub(&t, &t, &a->x);
            sm2_fe_sub(&b->x, &t, &b->x);
            sm2_fe_sub(&t, &a->x, &b->x);
            sm2_fe_mul(&t, &t, &slope);
            sm2_fe_sub(&a->y, &t, &a->y);
            a->x = b->x;
        }
    }
}

/* The sum of a and b has the x coordinate w^2 / h^2 - a.x - b.x, for h = b.x - a.x and w = b.y - a.y. */
static bool sum_has_x(const sm2_affine *a, const sm2_affine *b, const u256 *x, bool *exceptional)
{
    sm2_fe h, w, left;
    sm2_fe_sub(&h, &b->x, &a->x);
    sm2_fe_sub(&w, &b->y, &a->y);
    *exceptional |= u256_is_zero(&h);
    sm2_fe_enter(&left, x);
    sm2_fe_add(&left, &left, &a->x);
    sm2_fe_add(&left, &left, &b->x);
    sm2_fe_square(&h, &h);
    sm2_fe_mul(&left, &left, &h);
    sm2_fe_square(&w, &w);
    return u256_equal(&left, &w);
}

static void verify_with_tables(sm2_scalar_scratch *scratch, const sm2_item *items, size_t count)
{
    sm2_equation equations[CHUNK];
    bool exceptional[CHUNK] = {false};
    size_t index[CHUNK], used = 0, stride;
    for (size_t i = 0; i < count; i++) {
        sm2_equation *equation = &equations[used];
        sm2_equation_state state = sm2_equation_load(equation, &items[i]);
        *items[i].status = STATUS_INVALID;
        if (state == EQUATION_NEEDS_EXACT)
            *items[i].status = sm2_verify_exact(&items[i]) ? STATUS_VALID : STATUS_INVALID;
        if (state != EQUATION_READY)
            continue;
        sm2_affine *points = scratch->points[used];
        take_comb(points, items[i].table, KEY_WIDTH, &equation->t, equation->t_negated);
        take_comb(points + KEY_WINDOWS, base_table, BASE_WIDTH, &equation->s, equation->s_negated);
        index[used++] = i;
    }
    for (stride = 1; used > 0 && 2 * stride < SUM_POINTS; stride *= 2)
        add_level(scratch, used, stride, exceptional);
    for (size_t c = 0; c < used; c++) {
        const sm2_item *item = &items[index[c]];
        const sm2_affine *points = scratch->points[c];
        bool valid = sum_has_x(&points[0], &points[stride], &equations[c].x, &exceptional[c]);
        if (exceptional[c])
            valid = sm2_verify_exact(item);
        *item->status = valid ? STATUS_VALID : STATUS_INVALID;
    }
}

/* The odd multiples P, 3 P, ... of the points of some signatures; all inversions are shared. */
static void odd_multiples(sm2_affine table[CHUNK][LADDER_ENTRIES], const sm2_item *const *items, size_t count)
{
    sm2_jacobian sums[CHUNK][LADDER_ENTRIES];
    sm2_fe products[CHUNK * LADDER_ENTRIES + 1], inverse, t, zz;
    sm2_affine doubled[CHUNK];
    /* 2 P, affine */
    products[0] = SM2_FE_ONE;
    for (size_t c = 0; c < count; c++) {
        sums[c][0] = (sm2_jacobian){items[c]->point->x, items[c]->point->y, SM2_FE_ONE};
        sm2_double(&sums[c][1], &sums[c][0]);
        sm2_fe_mul(&products[c + 1], &products[c], &sums[c][1].z);
    }
    sm2_fe_invert_public(&inverse, &products[count]);
    for (size_t c = count; c-- > 0;) {
        sm2_fe_mul(&t, &inverse, &products[c]);
        sm2_fe_mul(&inverse, &inverse, &sums[c][1].z);
        sm2_fe_square(&zz, &t);
        sm2_fe_mul(&doubled[c].x, &sums[c][1].x, &zz);
        sm2_fe_mul(&t, &t, &zz);
        sm2_fe_mul(&doubled[c].y, &sums[c][1].y, &t);
    }
    size_t filled = 0;
    for (size_t c = 0; c < count; c++) {
        for (size_t j = 1; j < LADDER_ENTRIES; j++, filled++) {
            sm2_add_affine(&sums[c][j], &sums[c][j - 1], &doubled[c]);
            sm2_fe_mul(&products[filled + 1], &products[filled], &sums[c][j].z);
        }
    }
    sm2_fe_invert_public(&inverse, &products[filled]);
    for (size_t c = count; c-- > 0;) {
        table[c][0] = *items[c]->point;
        for (size_t j = LADDER_ENTRIES - 1; j > 0; j--) {
            filled--;
            sm2_fe_mul(&t, &inverse, &products[filled]);
            sm2_fe_mul(&inverse, &inverse, &sums[c][j].z);
            sm2_fe_square(&zz, &t);
            sm2_fe_mul(&table[c][j].x, &sums[c][j].x, &zz);
            sm2_fe_mul(&t, &t, &zz);
            sm2_fe_mul(&table[c][j].y, &sums[c][j].y, &t);
        }
    }
}

/* Without tables: digits of t from the top, with doublings between them; then the comb of the generator. */
static bool verify_by_ladder(const sm2_item *item, const sm2_equation *equation, const sm2_affine *multiples)
{
    sm2_comb_digits digits;
    sm2_affine point, base[BASE_WINDOWS];
    sm2_jacobian sum;
    sm2_fe x, zz;
    uint64_t index;
    take_comb(base, base_table, BASE_WIDTH, &equation->s, equation->s_negated);
    sm2_comb_recode(&digits, &equation->t, LADDER_WIDTH);
    for (int i = LADDER_WINDOWS - 1; i >= 0; i--) {
        uint64_t negative = sm2_comb_digit(&digits, i, LADDER_WIDTH, &index) ^ equation->t_negated;
        take(&point, &multiples[index], negative);
        if (i == LADDER_WINDOWS - 1) {
            sum = (sm2_jacobian){point.x, point.y, SM2_FE_ONE};
            continue;
        }
        for (int j = 0; j < LADDER_WIDTH; j++)
            sm2_double(&sum, &sum);
        sm2_add_affine(&sum, &sum, &point);
    }
    for (int i = 0; i < BASE_WINDOWS; i++)
        sm2_add_affine(&sum, &sum, &base[i]);
    /* A summand equal or opposite to the sum before it has left its zero in Z. */
    if (u256_is_zero(&sum.z))
        return sm2_verify_exact(item);
    sm2_fe_enter(&x, &equation->x);
    sm2_fe_square(&zz, &sum.z);
    sm2_fe_mul(&x, &x, &zz);
    return u256_equal(&x, &sum.x);
}

static void verify_without_tables(const sm2_item *items, size_t count)
{
    sm2_affine multiples[CHUNK][LADDER_ENTRIES];
    sm2_equation equations[CHUNK];
    const sm2_item *ready[CHUNK];
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        sm2_equation_state state = sm2_equation_load(&equations[used], &items[i]);
        *items[i].status = STATUS_INVALID;
        if (state == EQUATION_NEEDS_EXACT)
            *items[i].status = sm2_verify_exact(&items[i]) ? STATUS_VALID : STATUS_INVALID;
        if (state == EQUATION_READY)
            ready[used++] = &items[i];
    }
    if (used > 0)
        odd_multiples(multiples, ready, used);
    for (size_t c = 0; c < used; c++)
        *ready[c]->status =
            verify_by_ladder(ready[c], &equations[c], multiples[c]) ? STATUS_VALID : STATUS_INVALID;
}

void sm2_scalar_verify(void *scratch, const sm2_item *items, size_t count)
{
    for (; count > 0;) {
        size_t chunk = count < CHUNK ? count : CHUNK;
        if (items->table != NULL)
            verify_with_tables(scratch, items, chunk);
        else
            verify_without_tables(items, chunk);
        items += chunk;
        count -= chunk;
    }
}
