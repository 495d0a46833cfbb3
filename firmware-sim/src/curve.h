/* P-256 and the SM2 curve through libcrypto: keys from numbers, numbers from keys, signatures as r || s. */
#ifndef FIRMWARE_SIM_CURVE_H
#define FIRMWARE_SIM_CURVE_H

#include <openssl/evp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern const uint8_t curve_p256_oid[10], curve_sm2_oid[10]; /* DER, as CKA_EC_PARAMS holds them */

/* d in [1, n-1] (SM2: [1, n-2]). */
bool curve_private_in_range(bool sm2, const uint8_t d[32]);
/* xy = d * G; false where d is out of range. */
bool curve_public_from_private(bool sm2, const uint8_t d[32], uint8_t xy[64]);
/* NULL: a point off the curve, a number out of range. */
EVP_PKEY *curve_private_key(bool sm2, const uint8_t d[32], const uint8_t xy[64]);
EVP_PKEY *curve_public_key(bool sm2, const uint8_t xy[64]);
bool curve_private_numbers(EVP_PKEY *pkey, uint8_t d[32], uint8_t xy[64]);

/* CKA_EC_POINT: a DER OCTET STRING around 04 || x || y; both 32 bytes long here. */
enum { CURVE_POINT_DER_LEN = 67 };
void curve_point_to_der(const uint8_t xy[64], uint8_t der[CURVE_POINT_DER_LEN]);
bool curve_point_from_der(const uint8_t *der, size_t len, uint8_t xy[64]);

bool curve_signature_from_der(const uint8_t *der, size_t len, uint8_t rs[64]);
/* The length written, at most 72; 0: no memory. */
size_t curve_signature_to_der(const uint8_t rs[64], uint8_t der[72]);

#endif
