/* The reference engine: libcrypto, on every architecture. Slow (about 3,000 a second), constant-time, strict.
 */
#include "curve.h"
#include "engine.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

struct engine_key {
    EVP_PKEY *pkey;
};

static void unload(struct engine_key *key) {
    if (!key)
        return;
    EVP_PKEY_free(key->pkey); /* libcrypto clears the private number */
    free(key);
}

static struct engine_key *load(const uint8_t d[32], const uint8_t xy[64]) {
    struct engine_key *key = calloc(1, sizeof *key);
    if (!key)
        return NULL;
    key->pkey = curve_private_key(true, d, xy);
    if (!key->pkey) {
        unload(key);
        return NULL;
    }
    return key;
}

static bool sign(const struct engine_key *key, const uint8_t e[32], uint8_t rs[64]) {
    uint8_t der[80];
    size_t der_len = sizeof der;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, key->pkey, NULL);
    bool good = context && EVP_PKEY_sign_init(context) == 1 &&
                EVP_PKEY_sign(context, der, &der_len, e, 32) == 1 &&
                curve_signature_from_der(der, der_len, rs);
    EVP_PKEY_CTX_free(context);
    if (!good)
        memset(rs, 0, 64);
    return good;
}

const struct engine engine_openssl = {.name = "openssl", .load = load, .unload = unload, .sign = sign};

const struct engine *engine_named(const char *name) {
    if (strcmp(name, "openssl") == 0)
        return &engine_openssl;
#ifdef HAVE_FAST_ENGINE
    if (strcmp(name, "fast") == 0 || strcmp(name, "auto") == 0)
        return &engine_fast;
#else
    if (strcmp(name, "auto") == 0)
        return &engine_openssl;
#endif
    return NULL;
}
