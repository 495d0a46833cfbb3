/* Verification of SM2 signatures (GB/T 32918.2, clause 7.1) by our own engines. PUBLIC VALUES ONLY: nothing
 * here ever sees a private key, and nothing here is constant time.
 *
 * A signature (r, s) of e under P is valid if r and s are in [1, n-1], t = r + s mod n is not 0, s G + t P is
 * not infinity, and its x coordinate is r - e modulo n.
 *
 * Two ways to s G + t P. With a comb table for P (sm2_tables.h) it is a sum of some sixty affine points, and
 * those of many signatures are added pairwise, level by level, so that all additions of a level share an
 * inversion. Without one, t P takes doublings. Both use formulas with exceptions (equal or opposite
 * summands), which honest signatures never meet; whatever meets one is decided by sm2_verify_exact. */
#ifndef CLOUD_SEAL_SM2_VERIFY_H
#define CLOUD_SEAL_SM2_VERIFY_H

#include <stdbool.h>
#include <stddef.h>

#include "sm2_order.h"
#include "sm2_tables.h"

/* Widths of the combs. A key's table has 37 windows of 64 points, 148 kB; the generator's, of which there is
 * one per process, is as large as the second-level cache likes. */
enum { KEY_WIDTH = 7, KEY_WINDOWS = SM2_COMB_WINDOWS(KEY_WIDTH), KEY_ENTRIES = 1 << (KEY_WIDTH - 1) };
enum { BASE_WIDTH = 11, BASE_WINDOWS = SM2_COMB_WINDOWS(BASE_WIDTH), BASE_ENTRIES = 1 << (BASE_WIDTH - 1) };
enum { KEY_TABLE_BYTES = KEY_WINDOWS * KEY_ENTRIES * 64 };
enum { SUM_POINTS = KEY_WINDOWS + BASE_WINDOWS };

/* Without a table: t in digits of five bits, from 16 odd multiples of P. */
enum {
    LADDER_WIDTH = 5,
    LADDER_WINDOWS = SM2_COMB_WINDOWS(LADDER_WIDTH),
    LADDER_ENTRIES = 1 << (LADDER_WIDTH - 1)
};

typedef struct {
    const uint8_t *digest, *signature;
    const sm2_affine *table; /* comb of the public key in the engine's own Montgomery form, or NULL: then */
    const sm2_affine
        *point; /* the public key, which lies on the curve, in the form of sm2_field.h; always set */
    uint8_t *status;
} sm2_item;

/* What the equations need of an item. Scalars are odd: an even one was replaced by n minus it, and its mask
 * says that the product is to be negated. */
typedef struct {
    u256 s, t;
    u256 x; /* r - e mod n: the only x coordinate to expect, unless needs_exact */
    uint64_t s_negated, t_negated;
} sm2_equation;

typedef enum { EQUATION_INVALID, EQUATION_READY, EQUATION_NEEDS_EXACT } sm2_equation_state;

/* NEEDS_EXACT: r - e + n is below p too, so that there are two x coordinates to expect. That happens to one
 * signature in 2^128. */
sm2_equation_state sm2_equation_load(sm2_equation *equation, const sm2_item *item);

/* Slow, without exceptions. */
bool sm2_verify_exact(const sm2_item *item);

/* The scalar engine. */
typedef struct sm2_scalar_scratch sm2_scalar_scratch;

/* NULL: out of memory. Builds the generator's table at the first call. */
void *sm2_scalar_scratch_new(void);
/* All items have a table, or none has. */
void sm2_scalar_verify(void *scratch, const sm2_item *items, size_t count);
/* Fill table[KEY_WINDOWS * KEY_ENTRIES]; 0, or -1 when out of memory. */
int sm2_scalar_table(sm2_affine *table, const sm2_affine *point);

/* The same eight at a time, if sm2_lanes_available(). */
bool sm2_lanes_available(void);
void *sm2_lanes_scratch_new(void);
void sm2_lanes_verify(void *scratch, const sm2_item *items, size_t count);
int sm2_lanes_table(sm2_affine *table, const sm2_affine *point);

#endif
