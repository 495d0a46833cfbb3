/* Multiples of a public point, prepared so that multiplying it takes additions only.
 *
 * A comb of width w writes an odd scalar k < 2^256 as a sum of L = ceil(256 / w) digits d_i 2^(w i), each
 * digit odd and between -(2^w - 1) and 2^w - 1, hence never zero: no addition is ever skipped. (k >> 1) with
 * bit w L - 1 set holds the digits w bits each: the highest bit says positive, the others, inverted if
 * negative, are (|d_i| - 1) / 2, the index into the table.
 *
 *     table[i][j] = (2 j + 1) 2^(w i) P,    0 <= i < L,  0 <= j < 2^(w-1)
 *
 * An even scalar k is replaced by n - k, and the result negated.
 *
 * Points are public here: building is not constant time. */
#ifndef CLOUD_SEAL_SM2_TABLES_H
#define CLOUD_SEAL_SM2_TABLES_H

#include <stddef.h>

#include "sm2_point.h"

#define SM2_COMB_WINDOWS(width) ((256 + (width)-1) / (width))
#define SM2_COMB_POINTS(width) ((size_t)SM2_COMB_WINDOWS(width) << ((width)-1))

enum { SM2_COMB_MAX_WIDTH = 13 };

/* Fill table[SM2_COMB_POINTS(width)] for a point on the curve. Returns 0, or -1 when out of memory. */
int sm2_comb_build(sm2_affine *table, int width, const sm2_affine *point);

/* The digits of an odd scalar, ready to be cut out w bits at a time; see above. */
typedef struct {
    uint64_t w[5];
} sm2_comb_digits;

static inline void sm2_comb_recode(sm2_comb_digits *digits, const u256 *odd, int width)
{
    int top = width * SM2_COMB_WINDOWS(width) - 1;
    for (int i = 0; i < 4; i++)
        digits->w[i] = odd->w[i] >> 1 | (i < 3 ? odd->w[i + 1] << 63 : 0);
    digits->w[4] = 0;
    digits->w[top / 64] |= (uint64_t)1 << (top % 64);
}

/* Digit i: *index into window i of the table; returns all ones if the digit is negative, else zero. */
static inline uint64_t sm2_comb_digit(const sm2_comb_digits *digits, int i, int width, uint64_t *index)
{
    int at = width * i, word = at / 64, shift = at % 64;
    uint64_t bits = digits->w[word] >> shift;
    if (shift + width > 64) /* both are public */
        bits |= digits->w[word + 1] << (64 - shift);
    uint64_t negative = (bits >> (width - 1) & 1) - 1;
    *index = (bits ^ negative) & (((uint64_t)1 << (width - 1)) - 1);
    return negative;
}

/* Does x || y, 32 big-endian bytes each, lie on the curve? If so, *point is set. (The curve has no point with
 * both coordinates zero, so the usual stand-in for infinity is refused as well.) */
uint64_t sm2_affine_load(sm2_affine *point, const uint8_t bytes[64]);

/* 1/a for a public a != 0, in variable time. */
void sm2_fe_invert_public(sm2_fe *r, const sm2_fe *a);

#endif
