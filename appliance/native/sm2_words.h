/* Numbers of 256 bits in four 64-bit words, least significant first: what field and order arithmetic share.
 *
 * Everything here is free of branches and table look-ups that depend on the values: signing uses it on
 * secrets. */
#ifndef CLOUD_SEAL_SM2_WORDS_H
#define CLOUD_SEAL_SM2_WORDS_H

#include <stdint.h>

__extension__ typedef unsigned __int128 u128;

/* Before a loop of four: words in registers are half the speed of all this, whatever the compiler's level. */
#define UNROLL _Pragma("GCC unroll 4")

typedef struct {
    uint64_t w[4];
} u256;

/* a + b + *carry; *carry becomes the bit that falls out. */
static inline uint64_t add_carry(uint64_t a, uint64_t b, uint64_t *carry)
{
    u128 sum = (u128)a + b + *carry;
    *carry = (uint64_t)(sum >> 64);
    return (uint64_t)sum;
}

/* a - b - *borrow; *borrow becomes 1 if that is negative. */
static inline uint64_t sub_borrow(uint64_t a, uint64_t b, uint64_t *borrow)
{
    u128 difference = (u128)a - b - *borrow;
    *borrow = (uint64_t)(difference >> 64) & 1;
    return (uint64_t)difference;
}

/* low word of x y + add + *carry; *carry becomes the high word. It cannot overflow. */
static inline uint64_t mul_add(uint64_t x, uint64_t y, uint64_t add, uint64_t *carry)
{
    u128 sum = (u128)x * y + add + *carry;
    *carry = (uint64_t)(sum >> 64);
    return (uint64_t)sum;
}

/* r = a + b; returns the carry. The chains of carries are spelt out for x86-64, where gcc would otherwise
 * move each carry through a register and everything built on this would take half as long again. */
static inline uint64_t u256_add(u256 *r, const u256 *a, const u256 *b)
{
    uint64_t carry = 0;
#ifdef __x86_64__
    uint64_t w0 = a->w[0], w1 = a->w[1], w2 = a->w[2], w3 = a->w[3];
    __asm__("addq %5, %0\n\tadcq %6, %1\n\tadcq %7, %2\n\tadcq %8, %3\n\tadcq $0, %4"
            : "+&r"(w0), "+&r"(w1), "+&r"(w2), "+&r"(w3), "+&r"(carry)
            : "rm"(b->w[0]), "rm"(b->w[1]), "rm"(b->w[2]), "rm"(b->w[3])
            : "cc");
    *r = (u256){{w0, w1, w2, w3}};
#else
    UNROLL
    for (int i = 0; i < 4; i++)
        r->w[i] = add_carry(a->w[i], b->w[i], &carry);
#endif
    return carry;
}

/* r = a - b; returns the borrow, 1 if a < b. */
static inline uint64_t u256_sub(u256 *r, const u256 *a, const u256 *b)
{
    uint64_t borrow = 0;
#ifdef __x86_64__
    uint64_t w0 = a->w[0], w1 = a->w[1], w2 = a->w[2], w3 = a->w[3];
    __asm__("subq %5, %0\n\tsbbq %6, %1\n\tsbbq %7, %2\n\tsbbq %8, %3\n\tadcq $0, %4"
            : "+&r"(w0), "+&r"(w1), "+&r"(w2), "+&r"(w3), "+&r"(borrow)
            : "rm"(b->w[0]), "rm"(b->w[1]), "rm"(b->w[2]), "rm"(b->w[3])
            : "cc");
    *r = (u256){{w0, w1, w2, w3}};
#else
    UNROLL
    for (int i = 0; i < 4; i++)
        r->w[i] = sub_borrow(a->w[i], b->w[i], &borrow);
#endif
    return borrow;
}

/* Hide a mask from the optimiser: knowing it to be all zeros or all ones, it might turn a selection into a
 * branch. */
static inline uint64_t opaque(uint64_t mask)
{
    __asm__("" : "+r"(mask));
    return mask;
}

/* All ones if bit is 1, zero if it is 0. */
static inline uint64_t mask_of(uint64_t bit)
{
    return opaque(0 - bit);
}

/* 1 if x is zero, else 0. */
static inline uint64_t is_zero_word(uint64_t x)
{
    return 1 ^ ((x | (0 - x)) >> 63);
}

static inline uint64_t u256_is_zero(const u256 *a)
{
    return is_zero_word(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

static inline uint64_t u256_equal(const u256 *a, const u256 *b)
{
    return is_zero_word((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) | (a->w[2] ^ b->w[2]) |
                        (a->w[3] ^ b->w[3]));
}

/* 1 if a < b. */
static inline uint64_t u256_less(const u256 *a, const u256 *b)
{
    u256 ignored;
    return u256_sub(&ignored, a, b);
}

/* r = mask ? a : b, for a mask of all ones or zero. */
static inline void u256_select(u256 *r, uint64_t mask, const u256 *a, const u256 *b)
{
    UNROLL
    for (int i = 0; i < 4; i++)
        r->w[i] = b->w[i] ^ (mask & (a->w[i] ^ b->w[i]));
}

/* r = a + b mod m, for a, b < m. */
static inline void u256_add_mod(u256 *r, const u256 *a, const u256 *b, const u256 *m)
{
    u256 sum, reduced;
    uint64_t carry = u256_add(&sum, a, b);
    uint64_t borrow = u256_sub(&reduced, &sum, m);
    u256_select(r, mask_of(borrow & (carry ^ 1)), &sum, &reduced);
}

/* r = a - b mod m, for a, b < m. */
static inline void u256_sub_mod(u256 *r, const u256 *a, const u256 *b, const u256 *m)
{
    u256 difference, masked;
    uint64_t mask = mask_of(u256_sub(&difference, a, b));
    for (int i = 0; i < 4; i++)
        masked.w[i] = m->w[i] & mask;
    u256_add(r, &difference, &masked);
}

static inline void u256_load(u256 *r, const uint8_t bytes[32])
{
    for (int i = 0; i < 4; i++) {
        const uint8_t *p = bytes + 24 - 8 * i;
        r->w[i] = (uint64_t)p[0] << 56 | (uint64_t)p[1] << 48 | (uint64_t)p[2] << 40 | (uint64_t)p[3] << 32 |
                  (uint64_t)p[4] << 24 | (uint64_t)p[5] << 16 | (uint64_t)p[6] << 8 | p[7];
    }
}

static inline void u256_store(uint8_t bytes[32], const u256 *a)
{
    for (int i = 0; i < 32; i++)
        bytes[i] = (uint8_t)(a->w[3 - i / 8] >> (56 - 8 * (i % 8)));
}

#endif
