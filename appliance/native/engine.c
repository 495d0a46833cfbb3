/* See engine.h. Splits a batch by key and hands each part to the implementation for it. Public values only.
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#include "openssl_verify.h"

/* Key objects of libcrypto kept: 16 MiB at most. Making one costs less than a verification. */
enum { MAX_KEY_OBJECTS = 4096 };

struct engine {
    engine_kind kind;
    key_cache *tables, *objects;
};

bool engine_supported(engine_kind kind)
{
    return kind == ENGINE_OPENSSL;
}

engine_kind engine_best(void)
{
    return ENGINE_OPENSSL;
}

engine *engine_new(engine_kind kind, size_t max_table_bytes)
{
    engine *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->kind = kind;
    self->tables = key_cache_new(max_table_bytes, 1 << 17, true);
    self->objects = key_cache_new((size_t)MAX_KEY_OBJECTS * OPENSSL_KEY_BYTES, OPENSSL_KEY_BYTES, false);
    if (self->tables == NULL || self->objects == NULL) {
        engine_free(self);
        return NULL;
    }
    return self;
}

void engine_free(engine *self)
{
    if (self == NULL)
        return;
    key_cache_free(self->tables);
    key_cache_free(self->objects);
    free(self);
}

/* The items of a batch in the order of their keys: items[first[k]] to items[first[k + 1] - 1] belong to key
 * k. */
typedef struct {
    uint32_t *first;
    uint32_t *items;
} items_by_key;

static int sort_by_key(const verify_batch *batch, items_by_key *sorted)
{
    sorted->first = calloc(batch->key_count + 2, sizeof *sorted->first);
    sorted->items = malloc((batch->item_count + 1) * sizeof *sorted->items);
    if (sorted->first == NULL || sorted->items == NULL)
        return -1;
    /* A counting sort. first[k + 2] counts key k, then first[k + 1] is where its next item goes. */
    for (size_t i = 0; i < batch->item_count; i++)
        sorted->first[(batch->key_index ? batch->key_index[i] : 0) + 2]++;
    for (size_t k = 2; k <= batch->key_count + 1; k++)
        sorted->first[k] += sorted->first[k - 1];
    for (size_t i = 0; i < batch->item_count; i++)
        sorted->items[sorted->first[(batch->key_index ? batch->key_index[i] : 0) + 1]++] = (uint32_t)i;
    return 0;
}

static void key_id(const verify_batch *batch, size_t key, uint8_t id[KEY_ID_LEN])
{
    id[0] = batch->algorithms[key];
    memcpy(id + 1, batch->points + POINT_LEN * key, POINT_LEN);
}

/* Verify the listed items, all under one key, with libcrypto. */
static int verify_with_openssl(engine *self, const verify_batch *batch, size_t key, const uint32_t *items,
                               size_t count, uint8_t *status)
{
    uint8_t id[KEY_ID_LEN];
    bool worth_building, out_of_memory;
    key_id(batch, key, id);
    cached_key *entry = key_cache_get(self->objects, id, count, 1, OPENSSL_KEY_BYTES, &worth_building);
    if (entry == NULL) {
        void *object = openssl_key_new(id[0], id + 1, &out_of_memory);
        if (object == NULL) {
            for (size_t i = 0; i < count; i++)
                status[items[i]] = STATUS_INVALID;
            return out_of_memory ? -1 : 0;
        }
        entry = cached_key_new(id, object, openssl_key_free, OPENSSL_KEY_BYTES);
        if (entry == NULL)
            return -1;
        key_cache_put(self->objects, entry);
    }
    int result = -1;
    void *context = openssl_context_new(entry->value);
    if (context != NULL) {
        for (size_t i = 0; i < count; i++) {
            const uint8_t *digest = batch->digests + (size_t)DIGEST_LEN * items[i];
            const uint8_t *signature = batch->signatures + (size_t)SIGNATURE_LEN * items[i];
            status[items[i]] = openssl_verify(context, digest, signature) ? STATUS_VALID : STATUS_INVALID;
        }
        result = 0;
    }
    openssl_context_free(context);
    cached_key_release(entry);
    return result;
}

int engine_verify(engine *self, const verify_batch *batch, uint8_t *status)
{
    items_by_key sorted = {NULL, NULL};
    int result = sort_by_key(batch, &sorted);
    for (size_t k = 0; result == 0 && k < batch->key_count; k++) {
        size_t count = sorted.first[k + 1] - sorted.first[k];
        if (count > 0)
            result = verify_with_openssl(self, batch, k, sorted.items + sorted.first[k], count, status);
    }
    free(sorted.first);
    free(sorted.items);
    return result;
}

engine_statistics engine_read_statistics(engine *self)
{
    return (engine_statistics){
        .tables = key_cache_read_statistics(self->tables),
        .objects = key_cache_read_statistics(self->objects),
    };
}
