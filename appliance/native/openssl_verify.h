/* Verification by libcrypto: P-256 always, SM2 as fallback and as referee of our own engines.
 * Public values only. */
#ifndef CLOUD_SEAL_OPENSSL_VERIFY_H
#define CLOUD_SEAL_OPENSSL_VERIFY_H

#include "engine.h"

/* A key object, or NULL if the point is none of its curve. *out_of_memory is set when that is the reason. */
void *openssl_key_new(uint8_t algorithm, const uint8_t point[POINT_LEN], bool *out_of_memory);
void openssl_key_free(void *key);

/* What a key object costs in memory, with libcrypto's own bookkeeping (measured: about 2.3 kB; rounded up).
 */
enum { OPENSSL_KEY_BYTES = 4096 };

/* A context to verify with: of one thread, for any number of signatures under one key. NULL: out of memory.
 */
void *openssl_context_new(void *key);
void openssl_context_free(void *context);
bool openssl_verify(void *context, const uint8_t digest[DIGEST_LEN], const uint8_t signature[SIGNATURE_LEN]);

#endif
