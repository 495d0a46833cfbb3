/* SM2 signatures (GB/T 32918.2, clause 6.1) for the simulated HSM: plain C, no libcrypto, no allocation on
 * the way.
 *
 * SECRET VALUES. No branch, no memory address and no division depends on d or k; what is copied is wiped.
 * What a caller learns from the return value (this nonce cannot be used) is all that leaves besides the
 * signature.
 *
 * Numbers are 32 big-endian bytes; a signature is r || s; a point is x || y. The digest e may be any number.
 */
#ifndef CLOUD_SEAL_SM2_SIGN_H
#define CLOUD_SEAL_SM2_SIGN_H

#include <stdint.h>

/* d and 1 / (1 + d) mod n, the latter in Montgomery form: secret, wipe after use. */
typedef struct {
    uint64_t d[4];
    uint64_t inv1d[4];
} sm2_signing_key;

/* 0, or -1 if d is not in [1, n-2]; then the key is wiped. */
int sm2_signing_key_init(sm2_signing_key *key, const uint8_t d[32]);
void sm2_signing_key_wipe(sm2_signing_key *key);

/* 1: signed. 0: this k gives r = 0, r + k = n or s = 0, or is not in [1, n-1]; sig is all zero: draw another.
 * The nonce must be fresh, uniform and secret for every signature; it is the caller's to wipe. */
int sm2_sign_with_nonce(const sm2_signing_key *key, const uint8_t e[32], const uint8_t k[32],
                        uint8_t sig[64]);

/* The public key of d. 0, or -1 if d is not in [1, n-1]. */
int sm2_public_from_private(const uint8_t d[32], uint8_t point[64]);

/* Eight signatures at a time on AVX-512 IFMA; call sm2_sign8 only if sm2_sign8_available() returns 1. ok[i]
 * is what sm2_sign_with_nonce would return for item i. */
int sm2_sign8_available(void);
void sm2_sign8(const sm2_signing_key *key, const uint8_t e[8][32], const uint8_t k[8][32], uint8_t sig[8][64],
               uint8_t ok[8]);

#endif
