/* The seam between the module and what computes SM2 signatures. One engine is chosen at C_Initialize
 * (`engine`).
 *
 * Verification is not part of it: it handles public values only and libcrypto, the strictest implementation
 * at hand, does it for every engine.
 */
#ifndef FIRMWARE_SIM_ENGINE_H
#define FIRMWARE_SIM_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine_key; /* the engine's own form of a private key; immutable, used by many threads at once */

struct engine {
    const char *name;
    /* d: 32 bytes in [1, n-2]; xy: its public point. NULL: out of range, or no memory. */
    struct engine_key *(*load)(const uint8_t d[32], const uint8_t xy[64]);
    void (*unload)(struct engine_key *key); /* wipes it */
    /* e: 32 bytes, any value. False: the engine or the random generator failed; `rs` is then all zeros. */
    bool (*sign)(const struct engine_key *key, const uint8_t e[32], uint8_t rs[64]);
    /* `count` items; ok[i] 1 or 0. An engine without lanes of its own has NULL here. */
    void (*sign_many)(const struct engine_key *key, size_t count, const uint8_t (*e)[32], uint8_t (*rs)[64],
                      uint8_t *ok);
};

/* "auto": the fastest that is built in; NULL: no such engine in this build. */
const struct engine *engine_named(const char *name);

extern const struct engine engine_openssl;
#ifdef HAVE_FAST_ENGINE
extern const struct engine engine_fast;
#endif

#endif
