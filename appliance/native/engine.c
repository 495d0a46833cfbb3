/* See engine.h. Splits a batch by key and hands each part to the implementation for it. Public values only.
 */
#include "engine.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "openssl_verify.h"
#include "sm2_verify.h"

/* Key objects of libcrypto kept: 16 MiB at most. Making one costs less than a verification. */
enum { MAX_KEY_OBJECTS = 4096 };

/* SM2 signatures handed over together: enough for the additions of all to share inversions well. */
enum { SLICE = 512 };

/* Tables one batch may build before it has used and released them: bounds what running batches hold beyond
 * the cache's own bound, 5 MB each. */
enum { MAX_BUILDS_PER_SLICE = 32 };

/* Idle scratch memory kept, a buffer per thread at work: freeing and faulting in a megabyte each time would
 * cost a small batch more than its verification. */
enum { MAX_IDLE_SCRATCH = 16 };

/* Recent uses from which on a key gets a table: about what building one costs (0.4 ms), in what each
 * verification with it saves (70 us scalar, 11 us in lanes). */
enum { MIN_USES_SCALAR = 8, MIN_USES_LANES = 32 };

/* What differs between our own engines. */
typedef struct {
    void *(*scratch_new)(void);
    void (*verify)(void *scratch, const sm2_item *items, size_t count);
    int (*table)(sm2_affine *table, const sm2_affine *point);
    uint64_t min_uses;
} sm2_engine;

static const sm2_engine SCALAR = {sm2_scalar_scratch_new, sm2_scalar_verify, sm2_scalar_table,
                                  MIN_USES_SCALAR};
static const sm2_engine LANES = {sm2_lanes_scratch_new, sm2_lanes_verify, sm2_lanes_table, MIN_USES_LANES};

struct engine {
    const sm2_engine *sm2; /* NULL: libcrypto */
    key_cache *tables, *objects;
    pthread_mutex_t scratch_lock; /* guards the two below */
    void *idle_scratch[MAX_IDLE_SCRATCH];
    size_t idle_scratch_count;
};

bool engine_supported(engine_kind kind)
{
    return kind != ENGINE_LANES || sm2_lanes_available();
}

engine *engine_new(engine_kind kind, size_t max_table_bytes)
{
    engine *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    pthread_mutex_init(&self->scratch_lock, NULL); /* cannot fail on this platform */
    self->sm2 = kind == ENGINE_LANES ? &LANES : kind == ENGINE_SCALAR ? &SCALAR : NULL;
    self->tables = key_cache_new(max_table_bytes, KEY_TABLE_BYTES, true);
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
    for (size_t i = 0; i < self->idle_scratch_count; i++)
        free(self->idle_scratch[i]);
    pthread_mutex_destroy(&self->scratch_lock);
    free(self);
}

static void *borrow_scratch(engine *self)
{
    void *scratch = NULL;
    pthread_mutex_lock(&self->scratch_lock);
    if (self->idle_scratch_count > 0)
        scratch = self->idle_scratch[--self->idle_scratch_count];
    pthread_mutex_unlock(&self->scratch_lock);
    return scratch != NULL ? scratch : self->sm2->scratch_new();
}

static void return_scratch(engine *self, void *scratch)
{
    pthread_mutex_lock(&self->scratch_lock);
    if (self->idle_scratch_count < MAX_IDLE_SCRATCH) {
        self->idle_scratch[self->idle_scratch_count++] = scratch;
        scratch = NULL;
    }
    pthread_mutex_unlock(&self->scratch_lock);
    free(scratch);
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

/* SM2 items on their way to one of our own engines, those whose key has a table apart from the others. */
typedef struct {
    engine *engine;
    void *scratch;
    size_t with_count, without_count, builds, held_count;
    sm2_item with[SLICE], without[SLICE];
    sm2_affine points[SLICE]; /* of keys without a table */
    cached_key *held[SLICE];  /* references to the tables in use */
} sm2_slice;

static sm2_slice *slice_new(engine *self)
{
    sm2_slice *slice = malloc(sizeof *slice);
    if (slice == NULL)
        return NULL;
    slice->engine = self;
    slice->with_count = slice->without_count = slice->builds = slice->held_count = 0;
    slice->scratch = borrow_scratch(self);
    if (slice->scratch == NULL) {
        free(slice);
        return NULL;
    }
    return slice;
}

static void flush_with_tables(sm2_slice *slice)
{
    if (slice->with_count > 0)
        slice->engine->sm2->verify(slice->scratch, slice->with, slice->with_count);
    for (size_t i = 0; i < slice->held_count; i++)
        cached_key_release(slice->held[i]);
    slice->with_count = slice->held_count = slice->builds = 0;
}

static void flush_without_tables(sm2_slice *slice)
{
    if (slice->without_count > 0)
        slice->engine->sm2->verify(slice->scratch, slice->without, slice->without_count);
    slice->without_count = 0;
}

/* The key's table with its point in front, as the cache keeps it. */
typedef struct {
    sm2_affine point;
    sm2_affine table[KEY_WINDOWS * KEY_ENTRIES];
} key_table;

/* Build the table of a key, and offer it to the cache. NULL: memory is short; it will do without. */
static cached_key *build_table(sm2_slice *slice, const uint8_t id[KEY_ID_LEN], const sm2_affine *point)
{
    if (slice->builds == MAX_BUILDS_PER_SLICE)
        flush_with_tables(slice);
    key_table *table = aligned_alloc(64, sizeof *table);
    if (table == NULL)
        return NULL;
    table->point = *point;
    if (slice->engine->sm2->table(table->table, point) != 0) {
        free(table);
        return NULL;
    }
    cached_key *entry = cached_key_new(id, table, free, sizeof *table);
    if (entry != NULL)
        key_cache_put(slice->engine->tables, entry);
    slice->builds++;
    return entry;
}

static void verify_sm2_key(sm2_slice *slice, const verify_batch *batch, size_t key, const uint32_t *items,
                           size_t count, uint8_t *status)
{
    uint8_t id[KEY_ID_LEN];
    sm2_affine point;
    bool worth_building;
    key_id(batch, key, id);
    if (slice->held_count == SLICE)
        flush_with_tables(slice);
    cached_key *entry = key_cache_get(slice->engine->tables, id, count, slice->engine->sm2->min_uses,
                                      sizeof(key_table), &worth_building);
    if (entry == NULL) { /* only keys on the curve ever get a table */
        if (!sm2_affine_load(&point, id + 1)) {
            for (size_t i = 0; i < count; i++)
                status[items[i]] = STATUS_INVALID;
            return;
        }
        if (worth_building)
            entry = build_table(slice, id, &point);
    }
    const key_table *table = entry == NULL ? NULL : entry->value;
    if (entry != NULL)
        slice->held[slice->held_count++] = entry;
    for (size_t i = 0; i < count; i++) {
        sm2_item item = {
            .digest = batch->digests + (size_t)DIGEST_LEN * items[i],
            .signature = batch->signatures + (size_t)SIGNATURE_LEN * items[i],
            .status = status + items[i],
        };
        if (table != NULL) {
            if (slice->with_count == SLICE) {
                /* The references must outlive the rest of this key's items. */
                slice->engine->sm2->verify(slice->scratch, slice->with, slice->with_count);
                slice->with_count = 0;
            }
            item.table = table->table;
            item.point = &table->point;
            slice->with[slice->with_count++] = item;
        } else {
            if (slice->without_count == SLICE)
                flush_without_tables(slice);
            slice->points[slice->without_count] = point;
            item.point = &slice->points[slice->without_count];
            slice->without[slice->without_count++] = item;
        }
    }
}

int engine_verify(engine *self, const verify_batch *batch, uint8_t *status)
{
    items_by_key sorted = {NULL, NULL};
    sm2_slice *slice = NULL;
    int result = sort_by_key(batch, &sorted);
    for (size_t k = 0; result == 0 && k < batch->key_count; k++) {
        const uint32_t *items = sorted.items + sorted.first[k];
        size_t count = sorted.first[k + 1] - sorted.first[k];
        if (count == 0)
            continue;
        if (batch->algorithms[k] != SM2_SM3 || self->sm2 == NULL) {
            result = verify_with_openssl(self, batch, k, items, count, status);
            continue;
        }
        if (slice == NULL && (slice = slice_new(self)) == NULL) {
            result = -1;
            break;
        }
        verify_sm2_key(slice, batch, k, items, count, status);
    }
    if (slice != NULL) {
        flush_with_tables(slice);
        flush_without_tables(slice);
        return_scratch(self, slice->scratch);
        free(slice);
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
