/* The vector engine: sixteen signatures abreast, in two halves of eight lanes, so that the latency of one
 * half's multiplications hides behind the other's. See sm2_verify.h for the method, sm2_lanes.h for the
 * arithmetic. Public values only.
 *
 * Lanes know nothing of each other: keys may be mixed at will. A lane without a signature repeats another
 * one's. */
#include "sm2_verify.h"

#define HALVES 2
#include "sm2_lanes_point.h"

#ifndef SM2_LANES

bool sm2_lanes_available(void)
{
    return false;
}

/* Never called. */
void *sm2_lanes_scratch_new(void)
{
    return NULL;
}

void sm2_lanes_verify(void *scratch, const sm2_item *items, size_t count)
{
    (void)scratch, (void)items, (void)count;
}

int sm2_lanes_table(sm2_affine *table, const sm2_affine *point)
{
    (void)table, (void)point;
    return -1;
}

#else

#include <pthread.h>
#include <stdlib.h>

#include "engine.h"

enum { WIDE = 8 * HALVES };

/* Groups of sixteen whose additions share inversions: the points of 128 signatures, 600 kB, stay in a
 * second-level cache, and an inversion shared by so many weighs little. */
enum { GROUPS = 8 };

/* Which entries of which tables the sixteen lanes want in each window. */
typedef struct {
    const sm2_affine *rows[SUM_POINTS][WIDE];
    uint16_t negative[SUM_POINTS];
} selection;

typedef struct {
    wide_affine points[GROUPS][SUM_POINTS];
    wide products[GROUPS * SUM_POINTS / 2 + 1];
    wide_jacobian multiples[LADDER_ENTRIES];
    wide partial[LADDER_ENTRIES];
    sm2_affine ladder[WIDE][LADDER_ENTRIES];
    selection selected;
    sm2_equation equations[GROUPS * WIDE];
    const sm2_item *items[GROUPS * WIDE];
} lanes_scratch;

/* Lanes in which the result of fe8_finish is zero. */
static inline unsigned zero_lanes(const wide *a)
{
    return fe8_zero_lanes(&a->h[0]) | (unsigned)fe8_zero_lanes(&a->h[1]) << 8;
}

/* ---- between rows of memory and lanes
 * ---------------------------------------------------------------------- */

static inline void load_points(wide_affine *point, const sm2_affine *const rows[WIDE])
{
    EACH_HALF
    {
        v8 r[8];
        for (int i = 0; i < 8; i++)
            r[i] = _mm512_loadu_si512(rows[8 * h + i]);
        transpose(r);
        point->x.h[h] = fe8_from_words(r);
        point->y.h[h] = fe8_from_words(r + 4);
    }
}

/* Numbers of eight lanes, below 2^260 with limbs in range, as words modulo p. */
static void lanes_to_numbers(u256 numbers[8], const fe8 *a)
{
    uint64_t l[5][8];
    for (int i = 0; i < 5; i++)
        _mm512_storeu_si512(l[i], a->l[i]);
    for (int k = 0; k < 8; k++) {
        u256 *n = &numbers[k];
        n->w[0] = l[0][k] | l[1][k] << 52;
        n->w[1] = l[1][k] >> 12 | l[2][k] << 40;
        n->w[2] = l[2][k] >> 24 | l[3][k] << 28;
        n->w[3] = l[3][k] >> 36 | l[4][k] << 16;
        uint64_t over = l[4][k] >> 48;
        while (over || !u256_less(n, &SM2_P))
            over -= u256_sub(n, n, &SM2_P);
    }
}

static void numbers_to_lanes(fe8 *a, const u256 numbers[8])
{
    v8 w[4];
    uint64_t words[4][8];
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 8; k++)
            words[i][k] = numbers[k].w[i];
        w[i] = _mm512_loadu_si512(words[i]);
    }
    *a = fe8_from_words(w);
}

/* *inverse = 1 / a in each of the sixteen lanes, with one inversion for all. Lanes in which a is zero get
 * garbage; returns which. */
static unsigned invert(wide *inverse, const wide *a)
{
    /* 2^264 mod p, which is 2^8 in the form of sm2_field.h. The inverse of a 2^260 taken there is 2^512 / (a
     * 2^260), and 2^260 / a is wanted. */
    static const sm2_fe correction = {{0x100, 0xffffffff00, 0, 0x10000000000}};
    fe8 both = fe8_mul(&a->h[0], &a->h[1]);
    u256 numbers[8], products[9], inverted;
    unsigned zeros = 0;
    lanes_to_numbers(numbers, &both);
    products[0] = SM2_FE_ONE;
    for (int k = 0; k < 8; k++) {
        if (u256_is_zero(&numbers[k])) {
            zeros |= 0x101u << k; /* one of the two halves; both are looked at again */
            numbers[k] = SM2_FE_ONE;
        }
        sm2_fe_mul(&products[k + 1], &products[k], &numbers[k]);
    }
    sm2_fe_invert_public(&inverted, &products[8]);
    sm2_fe_mul(&inverted, &inverted, &correction);
    for (int k = 8; k-- > 0;) {
        sm2_fe_mul(&products[k], &products[k], &inverted);
        sm2_fe_mul(&inverted, &inverted, &numbers[k]);
    }
    numbers_to_lanes(&both, products);
    inverse->h[0] = fe8_mul(&both, &a->h[1]);
    inverse->h[1] = fe8_mul(&both, &a->h[0]);
    return zeros;
}

/* ---- tables
 * ------------------------------------------------------------------------------------------------ */

static sm2_affine *base_table;
static pthread_once_t base_table_once = PTHREAD_ONCE_INIT;

/* From the form of sm2_field.h to that of the lanes: 2^4 times as much. */
static void convert_table(sm2_affine *table, size_t count)
{
    const fe8 factor = fe8_constant(&LANES_FROM_SCALAR);
    for (size_t i = 0; i < count; i += 8) {
        v8 r[8];
        for (int k = 0; k < 8; k++)
            r[k] = _mm512_loadu_si512(&table[i + (size_t)k]);
        transpose(r);
        for (int c = 0; c < 8; c += 4) {
            fe8 a = fe8_from_words(r + c);
            a = fe8_canonical(fe8_mul(&a, &factor));
            fe8_to_words(r + c, &a);
        }
        transpose(r);
        for (int k = 0; k < 8; k++)
            _mm512_storeu_si512(&table[i + (size_t)k], r[k]);
    }
}

static void build_base_table(void)
{
    sm2_affine *table = aligned_alloc(64, SM2_COMB_POINTS(BASE_WIDTH) * sizeof *table);
    if (table != NULL && sm2_comb_build(table, BASE_WIDTH, &SM2_GENERATOR) != 0) {
        free(table);
        table = NULL;
    }
    if (table != NULL)
        convert_table(table, SM2_COMB_POINTS(BASE_WIDTH));
    base_table = table; /* for the life of the process */
}

int sm2_lanes_table(sm2_affine *table, const sm2_affine *point)
{
    if (sm2_comb_build(table, KEY_WIDTH, point) != 0)
        return -1;
    convert_table(table, SM2_COMB_POINTS(KEY_WIDTH));
    return 0;
}

void *sm2_lanes_scratch_new(void)
{
    pthread_once(&base_table_once, build_base_table);
    return base_table == NULL ? NULL : aligned_alloc(64, (sizeof(lanes_scratch) + 63) / 64 * 64);
}

/* Note for one lane what a comb's windows from `first` on want. */
static inline void select_comb(selection *selected, int lane, int first, const sm2_affine *table, int width,
                               const u256 *scalar, uint64_t negated)
{
    sm2_comb_digits digits;
    uint64_t index;
    sm2_comb_recode(&digits, scalar, width);
    for (int i = 0; i < SM2_COMB_WINDOWS(width); i++) {
        uint64_t negative = sm2_comb_digit(&digits, i, width, &index) ^ negated;
        const sm2_affine *row = table + ((size_t)i << (width - 1)) + index;
        _mm_prefetch(row, _MM_HINT_T0);
        selected->rows[first + i][lane] = row;
        selected->negative[first + i] |= (uint16_t)((negative & 1) << lane);
    }
}

/* ---- with tables
 * ------------------------------------------------------------------------------------------- */

/* One level of all sums; see add_level in sm2_verify.c. Returns the lanes in which some two points had the
 * same x: of all their sums, those of these lanes are worthless. */
static unsigned add_level(lanes_scratch *scratch, size_t groups, size_t stride)
{
    wide inverse, *product = scratch->products;
    *product = wide_constant(&LANES_ONE);
    for (size_t g = 0; g < groups; g++) {
        for (size_t i = 0; i + stride < SUM_POINTS; i += 2 * stride) {
            const wide_affine *a = &scratch->points[g][i], *b = a + stride;
            wide difference = wide_sub(&b->x, &a->x);
            product[1] = wide_mul(&product[0], &difference);
            product++;
        }
    }
    unsigned exceptional = invert(&inverse, product);
    for (size_t g = groups; g-- > 0;) {
        for (size_t i = (SUM_POINTS - 1 - stride) / (2 * stride) * 2 * stride + 2 * stride; i > 0;) {
            i -= 2 * stride;
            wide_affine *a = &scratch->points[g][i], *b = a + stride;
            wide difference = wide_sub(&b->x, &a->x), rise = wide_sub(&b->y, &a->y), slope, x, run;
            product--;
            slope = wide_mul(&inverse, product);
            inverse = wide_mul(&inverse, &difference);
            slope = wide_mul(&slope, &rise);
            EACH_HALF x.h[h] =
                fe8_finish(limbs_sub(limbs_sub(limbs_square(&slope.h[h]), a->x.h[h]), b->x.h[h]));
            run = wide_sub(&a->x, &x);
            EACH_HALF a->y.h[h] = fe8_finish(limbs_sub(limbs_mul(&slope.h[h], &run.h[h]), a->y.h[h]));
            a->x = x;
        }
    }
    return exceptional;
}

/* The x coordinates to expect, in the form of the lanes. */
static wide expected_x(const sm2_equation equations[WIDE])
{
    const fe8 r2 = fe8_constant(&LANES_R2);
    wide r;
    EACH_HALF
    {
        u256 numbers[8];
        for (int k = 0; k < 8; k++)
            numbers[k] = equations[8 * h + k].x;
        numbers_to_lanes(&r.h[h], numbers);
        r.h[h] = fe8_mul(&r.h[h], &r2);
    }
    return r;
}

/* Lanes in which a + b has that x coordinate: (x + a.x + b.x) (b.x - a.x)^2 = (b.y - a.y)^2. If b.x = a.x,
 * the answer is worthless, and *exceptional says so. */
static unsigned sum_has_x(const wide_affine *a, const wide_affine *b, const wide *x, unsigned *exceptional)
{
    wide left, zero, difference;
    EACH_HALF
    {
        fe8 run = fe8_finish(limbs_sub(b->x.h[h], a->x.h[h])),
            rise = fe8_finish(limbs_sub(b->y.h[h], a->y.h[h]));
        fe8 sum = fe8_carry(limbs_add(limbs_add(a->x.h[h], b->x.h[h]), x->h[h]));
        difference.h[h] = run;
        run = fe8_square(&run);
        left.h[h] = fe8_mul(&run, &sum);
        zero.h[h] = fe8_finish(limbs_sub(limbs_square(&rise), left.h[h]));
    }
    *exceptional |= zero_lanes(&difference);
    return zero_lanes(&zero);
}

static void set_status(const sm2_item *const *items, size_t count, unsigned valid, unsigned exceptional)
{
    for (size_t lane = 0; lane < count; lane++) {
        bool good = exceptional >> lane & 1 ? sm2_verify_exact(items[lane]) : valid >> lane & 1;
        *items[lane]->status = good ? STATUS_VALID : STATUS_INVALID;
    }
}

static void verify_with_tables(lanes_scratch *scratch, size_t count)
{
    size_t groups = (count + WIDE - 1) / WIDE, stride;
    selection *selected = &scratch->selected;
    unsigned exceptional = 0;
    for (size_t g = 0; g < groups; g++) {
        for (int i = 0; i < SUM_POINTS; i++)
            selected->negative[i] = 0;
        for (int lane = 0; lane < WIDE; lane++) {
            const sm2_equation *equation = &scratch->equations[g * WIDE + (size_t)lane];
            const sm2_affine *table = scratch->items[g * WIDE + (size_t)lane]->table;
            select_comb(selected, lane, 0, table, KEY_WIDTH, &equation->t, equation->t_negated);
            select_comb(selected, lane, KEY_WINDOWS, base_table, BASE_WIDTH, &equation->s,
                        equation->s_negated);
        }
        for (int i = 0; i < SUM_POINTS; i++) {
            load_points(&scratch->points[g][i], selected->rows[i]);
            negate_lanes(&scratch->points[g][i], selected->negative[i]);
        }
    }
    for (stride = 1; 2 * stride < SUM_POINTS; stride *= 2)
        exceptional |= add_level(scratch, groups, stride);
    for (size_t g = 0; g < groups; g++) {
        const wide_affine *points = scratch->points[g];
        wide x = expected_x(&scratch->equations[g * WIDE]);
        unsigned worthless = exceptional;
        unsigned valid = sum_has_x(&points[0], &points[stride], &x, &worthless);
        size_t used = count - g * WIDE < WIDE ? count - g * WIDE : WIDE;
        set_status(&scratch->items[g * WIDE], used, valid, worthless);
    }
}

/* ---- without tables
 * ---------------------------------------------------------------------------------------- */

/* The odd multiples of the lanes' points, affine, in scratch->ladder. */
static void odd_multiples(lanes_scratch *scratch, const sm2_item *const items[WIDE])
{
    const sm2_affine *rows[WIDE];
    const wide factor = wide_constant(&LANES_FROM_SCALAR);
    wide_jacobian *multiples = scratch->multiples, doubled;
    wide inverse, t;
    wide_affine point, twice;
    for (int lane = 0; lane < WIDE; lane++)
        rows[lane] = items[lane]->point;
    load_points(&point, rows);
    point.x = wide_mul(&point.x, &factor);
    point.y = wide_mul(&point.y, &factor);
    multiples[0] = (wide_jacobian){point.x, point.y, wide_constant(&LANES_ONE)};
    wide_double(&doubled, &multiples[0]);
    invert(&inverse, &doubled.z); /* there are no points of order two, so never zero */
    wide_to_affine(&twice, &doubled, &inverse);
    scratch->partial[0] = wide_constant(&LANES_ONE);
    for (int j = 1; j < LADDER_ENTRIES; j++) {
        wide_add_affine(&multiples[j], &multiples[j - 1], &twice);
        scratch->partial[j] = wide_mul(&scratch->partial[j - 1], &multiples[j].z);
    }
    invert(&inverse, &scratch->partial[LADDER_ENTRIES - 1]);
    for (int j = LADDER_ENTRIES - 1; j >= 0; j--) {
        if (j > 0) {
            t = wide_mul(&inverse, &scratch->partial[j - 1]);
            inverse = wide_mul(&inverse, &multiples[j].z);
            wide_to_affine(&point, &multiples[j], &t);
        } else {
            point.x = multiples[0].x;
            point.y = multiples[0].y;
        }
        EACH_HALF
        {
            v8 r[8];
            fe8 x = fe8_canonical(point.x.h[h]), y = fe8_canonical(point.y.h[h]);
            fe8_to_words(r, &x);
            fe8_to_words(r + 4, &y);
            transpose(r);
            for (int k = 0; k < 8; k++)
                _mm512_storeu_si512(&scratch->ladder[8 * h + k][j], r[k]);
        }
    }
}

static void verify_without_tables(lanes_scratch *scratch, const sm2_equation equations[WIDE],
                                  const sm2_item *const items[WIDE], size_t used)
{
    sm2_comb_digits digits[WIDE];
    selection *selected = &scratch->selected;
    wide_jacobian sum;
    wide_affine point;
    wide x, zz, difference;
    odd_multiples(scratch, items);
    for (int i = 0; i < BASE_WINDOWS; i++)
        selected->negative[i] = 0;
    for (int lane = 0; lane < WIDE; lane++) {
        sm2_comb_recode(&digits[lane], &equations[lane].t, LADDER_WIDTH);
        select_comb(selected, lane, 0, base_table, BASE_WIDTH, &equations[lane].s, equations[lane].s_negated);
    }
    for (int i = LADDER_WINDOWS - 1; i >= 0; i--) {
        const sm2_affine *rows[WIDE];
        uint16_t negative = 0;
        for (int lane = 0; lane < WIDE; lane++) {
            uint64_t index, sign = sm2_comb_digit(&digits[lane], i, LADDER_WIDTH, &index);
            rows[lane] = &scratch->ladder[lane][index];
            negative |= (uint16_t)(((sign ^ equations[lane].t_negated) & 1) << lane);
        }
        load_points(&point, rows);
        negate_lanes_carried(&point, negative);
        if (i == LADDER_WINDOWS - 1) {
            sum = (wide_jacobian){point.x, point.y, wide_constant(&LANES_ONE)};
            continue;
        }
        for (int j = 0; j < LADDER_WIDTH; j++)
            wide_double(&sum, &sum);
        wide_add_affine(&sum, &sum, &point);
    }
    for (int i = 0; i < BASE_WINDOWS; i++) {
        load_points(&point, selected->rows[i]);
        negate_lanes_carried(&point, selected->negative[i]);
        wide_add_affine(&sum, &sum, &point);
    }
    x = expected_x(equations);
    zz = wide_square(&sum.z);
    EACH_HALF difference.h[h] = fe8_finish(limbs_sub(limbs_mul(&x.h[h], &zz.h[h]), sum.x.h[h]));
    /* A summand equal or opposite to the sum before it has left its zero in Z. */
    set_status(items, used, zero_lanes(&difference), zero_lanes(&sum.z));
}

void sm2_lanes_verify(void *pointer, const sm2_item *items, size_t count)
{
    lanes_scratch *scratch = pointer;
    while (count > 0) {
        /* Collect what the equations do not settle, a chunk at a time. */
        size_t used = 0;
        for (; count > 0 && used < GROUPS * WIDE; items++, count--) {
            sm2_equation_state state = sm2_equation_load(&scratch->equations[used], items);
            *items->status = STATUS_INVALID;
            if (state == EQUATION_NEEDS_EXACT)
                *items->status = sm2_verify_exact(items) ? STATUS_VALID : STATUS_INVALID;
            else if (state == EQUATION_READY)
                scratch->items[used++] = items;
        }
        for (size_t i = used; i % WIDE != 0; i++) {
            scratch->equations[i] = scratch->equations[0];
            scratch->items[i] = scratch->items[0];
        }
        if (used == 0)
            continue;
        if (scratch->items[0]->table != NULL) {
            verify_with_tables(scratch, used);
            continue;
        }
        for (size_t first = 0; first < used; first += WIDE)
            verify_without_tables(scratch, scratch->equations + first, scratch->items + first,
                                  used - first < WIDE ? used - first : WIDE);
    }
}

SM2_LANES_END

bool sm2_lanes_available(void)
{
    return sm2_lanes_supported();
}

#endif
