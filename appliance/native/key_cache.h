/* A cache of what is worth keeping per public key, bounded by bytes, shared by all threads of the process.
 *
 * What it keeps is opaque: a multiplication table (SM2, our own engines) or a libcrypto key object. Rules:
 *
 * - An entry is immutable once it is in the cache, and reference counted: evicting it while a batch works
 * with it only means that the batch, not the cache, frees it.
 * - The bound holds for what the cache owns. Beyond it there is only what running batches still hold.
 * - With `frequency_gate`, a newcomer must have been used more often, lately, than each entry it would
 * displace. A stream over more keys than fit therefore keeps the tables it has instead of building tables
 * without end. */
#ifndef CLOUD_SEAL_KEY_CACHE_H
#define CLOUD_SEAL_KEY_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KEY_ID_LEN = 65 }; /* algorithm byte, x, y */

typedef struct cached_key {
    void *value;
    void (*destroy)(void *value);
    size_t bytes;
    uint8_t id[KEY_ID_LEN];
    atomic_uint references; /* the cache's own, and one per batch that uses it */
    /* Below: owned by the cache, touched only under its lock. */
    struct cached_key *next_in_bucket, *newer, *older;
    uint64_t hash;
    uint64_t uses, epoch; /* uses halve with every epoch that passes */
} cached_key;

typedef struct key_cache key_cache;

typedef struct {
    uint64_t entries, bytes, hits, builds, evictions;
} key_cache_statistics;

/* entry_bytes: the size of a typical entry, from which the index is dimensioned. NULL: out of memory. */
key_cache *key_cache_new(size_t max_bytes, size_t entry_bytes, bool frequency_gate);
void key_cache_free(key_cache *cache);

/* Look the key up and note `uses` uses of it. Returns a reference to its entry, which the caller must
 * release, or NULL; then *worth_building tells whether, by its uses so far, an entry of `bytes` would be
 * accepted: at least `min_uses` recent uses and, behind the gate, more than what it displaces. */
cached_key *key_cache_get(key_cache *cache, const uint8_t id[KEY_ID_LEN], uint64_t uses, uint64_t min_uses,
                          size_t bytes, bool *worth_building);

/* Wrap a value; the caller holds the only reference. On NULL (out of memory) the value is destroyed. */
cached_key *cached_key_new(const uint8_t id[KEY_ID_LEN], void *value, void (*destroy)(void *), size_t bytes);
void cached_key_release(cached_key *entry);

/* Offer a built entry to the cache, which takes a reference of its own if it keeps it. */
void key_cache_put(key_cache *cache, cached_key *entry);

key_cache_statistics key_cache_read_statistics(key_cache *cache);

#endif
