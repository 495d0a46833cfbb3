/* The fast SM2 engine: the constant-time kernel of appliance/native, with nonces from libcrypto's private
 * generator.
 *
 * Chosen over Intel's Cryptography Primitives because it runs on every architecture, needs no package, and
 * verification needs the same field arithmetic anyway.
 *
 * Nonces: RAND_priv_bytes is a DRBG per thread, seeded by the operating system and seeded anew in the child
 * of a fork, so neither threads nor processes share a sequence. A value that the kernel cannot use (out of
 * range, or one of the cases the standard rejects) is thrown away whole; that happens once in 2^32, and no
 * value is ever reused or reduced.
 */
#include "engine.h"

#include "../../appliance/native/sm2_sign.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

/* Ten useless values in a row: the generator or the kernel is broken, not unlucky. */
enum { TRIES = 10, LANES = 8 };

struct engine_key {
    sm2_signing_key key;
};

static struct engine_key *load(const uint8_t d[32], const uint8_t xy[64]) {
    (void)xy;
    struct engine_key *key = calloc(1, sizeof *key);
    if (key && sm2_signing_key_init(&key->key, d) != 0) {
        free(key);
        return NULL;
    }
    return key;
}

static void unload(struct engine_key *key) {
    if (key)
        sm2_signing_key_wipe(&key->key);
    free(key);
}

static bool sign(const struct engine_key *key, const uint8_t e[32], uint8_t rs[64]) {
    uint8_t nonce[32];
    bool good = false;
    for (int i = 0; i < TRIES && !good; i++)
        good = RAND_priv_bytes(nonce, sizeof nonce) == 1 && sm2_sign_with_nonce(&key->key, e, nonce, rs) == 1;
    OPENSSL_cleanse(nonce, sizeof nonce);
    if (!good)
        memset(rs, 0, 64);
    return good;
}

static void sign_many(const struct engine_key *key, size_t count, const uint8_t (*e)[32], uint8_t (*rs)[64],
                      uint8_t *ok) {
    uint8_t nonces[LANES][32];
    size_t at = 0;
    while (sm2_sign8_available() && count - at >= LANES) {
        if (RAND_priv_bytes(nonces[0], sizeof nonces) == 1)
            sm2_sign8(&key->key, e + at, (const uint8_t(*)[32])nonces, rs + at, ok + at);
        else
            memset(ok + at, 0, LANES);
        for (size_t i = at; i < at + LANES; i++)
            if (!ok[i])
                ok[i] = sign(key, e[i], rs[i]);
        at += LANES;
    }
    for (; at < count; at++)
        ok[at] = sign(key, e[at], rs[at]);
    OPENSSL_cleanse(nonces, sizeof nonces);
}

const struct engine engine_fast = {
    .name = "fast", .load = load, .unload = unload, .sign = sign, .sign_many = sign_many};
