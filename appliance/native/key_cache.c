/* See key_cache.h. One mutex guards everything: it is taken once per distinct key of a slice, never per item,
 * and nothing slow happens under it. */
#include "key_cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/rand.h>

/* Uses of keys that are not in the cache are counted approximately, by hash: 8 bits a counter, saturating. A
 * collision only means that a table is built a little early. */
enum { COUNTERS = 1 << 17 };

/* All counts halve after this many uses per entry that fits: long enough that a key used as often as the
 * cache has room for reaches its threshold, short enough that yesterday's favourites give way. */
enum { USES_PER_EPOCH_AND_ENTRY = 64 };

/* A newcomer displaces an entry only if it was used more than this many times as often: near-equals would
 * otherwise replace each other for ever, each time at the price of a table. */
enum { GATE_MARGIN = 2 };

struct key_cache {
    pthread_mutex_t lock;
    size_t max_bytes, bytes;
    bool frequency_gate;
    uint64_t seed[2], epoch, uses_in_epoch, uses_per_epoch;
    cached_key *newest, *oldest;
    size_t bucket_mask;
    cached_key **buckets;
    uint8_t *counters;
    key_cache_statistics statistics;
};

/* A seeded mix: whoever chooses keys cannot aim at one bucket, since the seed is this process's own. */
static uint64_t hash_id(const key_cache *cache, const uint8_t id[KEY_ID_LEN])
{
    uint64_t hash = cache->seed[0] ^ id[0];
    for (int i = 1; i < KEY_ID_LEN; i += 8) {
        uint64_t word;
        memcpy(&word, id + i, 8);
        hash = (hash ^ word) * (cache->seed[1] | 1);
        hash ^= hash >> 29;
    }
    return hash ^ hash >> 32;
}

key_cache *key_cache_new(size_t max_bytes, size_t entry_bytes, bool frequency_gate)
{
    key_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL)
        return NULL;
    size_t buckets = 64;
    while (buckets < max_bytes / entry_bytes && buckets < (size_t)1 << 20)
        buckets *= 2;
    cache->max_bytes = max_bytes;
    cache->frequency_gate = frequency_gate;
    cache->bucket_mask = buckets - 1;
    cache->uses_per_epoch = (uint64_t)USES_PER_EPOCH_AND_ENTRY * (max_bytes / entry_bytes + 1);
    cache->buckets = calloc(buckets, sizeof *cache->buckets);
    cache->counters = calloc(COUNTERS, 1);
    if (cache->buckets == NULL || cache->counters == NULL || RAND_bytes((uint8_t *)cache->seed, 16) != 1 ||
        pthread_mutex_init(&cache->lock, NULL) != 0) {
        free(cache->buckets);
        free(cache->counters);
        free(cache);
        return NULL;
    }
    return cache;
}

cached_key *cached_key_new(const uint8_t id[KEY_ID_LEN], void *value, void (*destroy)(void *), size_t bytes)
{
    cached_key *entry = calloc(1, sizeof *entry);
    if (entry == NULL) {
        destroy(value);
        return NULL;
    }
    entry->value = value;
    entry->destroy = destroy;
    entry->bytes = bytes;
    memcpy(entry->id, id, KEY_ID_LEN);
    atomic_init(&entry->references, 1);
    return entry;
}

void cached_key_release(cached_key *entry)
{
    /* acq_rel: whoever frees must see the table as its last user left it. */
    if (entry != NULL && atomic_fetch_sub_explicit(&entry->references, 1, memory_order_acq_rel) == 1) {
        entry->destroy(entry->value);
        free(entry);
    }
}

static void unlink_from_age(key_cache *cache, cached_key *entry)
{
    *(entry->newer ? &entry->newer->older : &cache->newest) = entry->older;
    *(entry->older ? &entry->older->newer : &cache->oldest) = entry->newer;
}

static void link_newest(key_cache *cache, cached_key *entry)
{
    entry->newer = NULL;
    entry->older = cache->newest;
    *(cache->newest ? &cache->newest->newer : &cache->oldest) = entry;
    cache->newest = entry;
}

static void evict_oldest(key_cache *cache)
{
    cached_key *entry = cache->oldest;
    cached_key **place = &cache->buckets[entry->hash & cache->bucket_mask];
    while (*place != entry)
        place = &(*place)->next_in_bucket;
    *place = entry->next_in_bucket;
    unlink_from_age(cache, entry);
    cache->bytes -= entry->bytes;
    cache->statistics.entries--;
    cache->statistics.evictions++;
    cached_key_release(entry);
}

static cached_key *find(key_cache *cache, const uint8_t id[KEY_ID_LEN], uint64_t hash)
{
    cached_key *entry = cache->buckets[hash & cache->bucket_mask];
    while (entry != NULL && (entry->hash != hash || memcmp(entry->id, id, KEY_ID_LEN) != 0))
        entry = entry->next_in_bucket;
    return entry;
}

static uint64_t recent_uses(const key_cache *cache, const cached_key *entry)
{
    uint64_t age = cache->epoch - entry->epoch;
    return age < 64 ? entry->uses >> age : 0;
}

static void note_uses(key_cache *cache, uint64_t uses)
{
    cache->uses_in_epoch += uses;
    if (cache->uses_in_epoch < cache->uses_per_epoch)
        return;
    cache->uses_in_epoch = 0;
    cache->epoch++;
    for (size_t i = 0; i < COUNTERS; i++)
        cache->counters[i] >>= 1;
}

/* Would evicting the oldest entries make room without displacing one in better use? */
static bool would_accept(const key_cache *cache, uint64_t uses, size_t bytes)
{
    if (bytes > cache->max_bytes)
        return false;
    size_t room = cache->max_bytes - cache->bytes;
    for (const cached_key *entry = cache->oldest; room < bytes; entry = entry->newer) {
        if (cache->frequency_gate && uses <= GATE_MARGIN * recent_uses(cache, entry))
            return false;
        room += entry->bytes;
    }
    return true;
}

cached_key *key_cache_get(key_cache *cache, const uint8_t id[KEY_ID_LEN], uint64_t uses, uint64_t min_uses,
                          size_t bytes, bool *worth_building)
{
    uint64_t hash = hash_id(cache, id);
    *worth_building = false;
    pthread_mutex_lock(&cache->lock);
    note_uses(cache, uses);
    cached_key *entry = find(cache, id, hash);
    if (entry != NULL) {
        entry->uses = recent_uses(cache, entry) + uses;
        entry->epoch = cache->epoch;
        cache->statistics.hits += uses;
        if (cache->newest != entry) {
            unlink_from_age(cache, entry);
            link_newest(cache, entry);
        }
        atomic_fetch_add_explicit(&entry->references, 1, memory_order_relaxed);
    } else {
        uint8_t *counter = &cache->counters[(hash >> 20) % COUNTERS];
        uint64_t counted = *counter + uses;
        *counter = counted < UINT8_MAX ? (uint8_t)counted : UINT8_MAX;
        *worth_building = counted >= min_uses && would_accept(cache, counted, bytes);
    }
    pthread_mutex_unlock(&cache->lock);
    return entry;
}

void key_cache_put(key_cache *cache, cached_key *entry)
{
    uint64_t hash = hash_id(cache, entry->id);
    pthread_mutex_lock(&cache->lock);
    cache->statistics.builds++;
    uint64_t uses = cache->counters[(hash >> 20) % COUNTERS];
    /* Another thread may have been faster; then this copy lives as long as its batch. */
    if (find(cache, entry->id, hash) == NULL && would_accept(cache, uses, entry->bytes)) {
        while (cache->max_bytes - cache->bytes < entry->bytes)
            evict_oldest(cache);
        entry->hash = hash;
        entry->uses = uses;
        entry->epoch = cache->epoch;
        entry->next_in_bucket = cache->buckets[hash & cache->bucket_mask];
        cache->buckets[hash & cache->bucket_mask] = entry;
        link_newest(cache, entry);
        cache->bytes += entry->bytes;
        cache->statistics.entries++;
        atomic_fetch_add_explicit(&entry->references, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&cache->lock);
}

key_cache_statistics key_cache_read_statistics(key_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    key_cache_statistics statistics = cache->statistics;
    statistics.bytes = cache->bytes;
    pthread_mutex_unlock(&cache->lock);
    return statistics;
}

void key_cache_free(key_cache *cache)
{
    if (cache == NULL)
        return;
    while (cache->oldest != NULL)
        evict_oldest(cache);
    pthread_mutex_destroy(&cache->lock);
    free(cache->buckets);
    free(cache->counters);
    free(cache);
}
