/* Verification of batches: public keys, digests and signatures in, one status byte per item out.
 *
 * PUBLIC VALUES ONLY. Nothing here ever sees a private key or a nonce, and nothing here is constant time.
 * Signing lives in sm2_sign.c and shares only field arithmetic with this.
 *
 * An engine is shared by all threads of a process. */
#ifndef CLOUD_SEAL_ENGINE_H
#define CLOUD_SEAL_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "key_cache.h"

/* The numbers appliance.algorithms.Algorithm has on the wire. */
enum { ECDSA_P256_SHA256 = 1, SM2_SM3 = 2 };

/* One status byte per item. */
enum { STATUS_INVALID = 0, STATUS_VALID = 1 };

enum { POINT_LEN = 64, DIGEST_LEN = 32, SIGNATURE_LEN = 64 };

typedef enum { ENGINE_OPENSSL, ENGINE_SCALAR, ENGINE_LANES } engine_kind;

typedef struct engine engine;

bool engine_supported(engine_kind kind);

engine *engine_new(engine_kind kind, size_t max_table_bytes);
void engine_free(engine *self);

/* A batch. Item i is verified under key key_index[i] (under key 0 if key_index is NULL); its digest and
 * signature stand at 32 i and 64 i. Every index is below key_count: the caller has checked. */
typedef struct {
    size_t key_count, item_count;
    const uint8_t *algorithms; /* one byte per key */
    const uint8_t *points;     /* x || y per key; need not lie on the curve: such a key verifies nothing */
    const uint32_t *key_index;
    const uint8_t *digests;
    const uint8_t *signatures;
} verify_batch;

/* Returns 0, or -1 when out of memory; then status is unspecified. */
int engine_verify(engine *self, const verify_batch *batch, uint8_t *status);

typedef struct {
    key_cache_statistics tables;  /* multiplication tables of our own engines */
    key_cache_statistics objects; /* libcrypto's key objects */
} engine_statistics;

engine_statistics engine_read_statistics(engine *self);

#endif
