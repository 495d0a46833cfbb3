/* Seal signatures from templates: see seal_template.h. */
#include "seal_template.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "sm3.h"

enum { CHUNK = 256 };   /* items hashed together: keeps the lanes full and the scratch memory small */
enum { PAGE_LEN = 64 }; /* lengths of property infos are near each other: entries are made by the page */
enum { PAGES = SEAL_MAX_PROPERTY_LEN / PAGE_LEN + 1 };
enum { Z_LEN = 32, MAX_HEADER_LEN = 5, TIME_TLV_LEN = 2 + SEAL_TIME_LEN, HASH_TLV_LEN = 3 + SEAL_HASH_LEN };

/* What the hash function knows once it has read everything before timeInfo. */
typedef struct {
    bool known;
    uint32_t sm3[8];
    EVP_MD_CTX *sha256;
} midstate;

struct seal_template {
    int algorithm;
    uint8_t z[Z_LEN];
    uint8_t *body, *suffix;
    size_t body_len, suffix_len;
    EVP_MD *md; /* P-256 only */
    pthread_mutex_t lock;
    /* Guarded by lock. An entry, once known, does not change. */
    midstate *pages[PAGES];
    size_t held;
};

/* ---- DER: lengths below 2^24 -------------------------------------------------------------------------- */

static size_t header_len(size_t len)
{
    return len < 0x80 ? 2 : len < 0x100 ? 3 : len < 0x10000 ? 4 : 5;
}

static uint8_t *put_header(uint8_t *out, uint8_t tag, size_t len)
{
    *out++ = tag;
    if (len < 0x80) {
        *out++ = (uint8_t)len;
        return out;
    }
    size_t bytes = header_len(len) - 2;
    *out++ = (uint8_t)(0x80 | bytes);
    while (bytes-- > 0)
        *out++ = (uint8_t)(len >> (8 * bytes));
    return out;
}

static uint8_t *put(uint8_t *out, const void *data, size_t len)
{
    memcpy(out, data, len);
    return out + len;
}

static size_t tlv_len(size_t len)
{
    return header_len(len) + len;
}

/* The length of a non-negative INTEGER's content: as short as it goes, and no sign bit. */
static size_t integer_len(const uint8_t number[32])
{
    size_t zeros = 0;
    while (zeros < 31 && number[zeros] == 0)
        zeros++;
    return 32 - zeros + (number[zeros] >> 7);
}

static uint8_t *put_integer(uint8_t *out, const uint8_t number[32])
{
    size_t len = integer_len(number);
    out = put_header(out, 0x02, len);
    if (len == 33) {
        *out++ = 0;
        len = 32;
    }
    return put(out, number + 32 - len, len);
}

/* ---- lengths of the parts ------------------------------------------------------------------------------ */

static size_t property_len(const seal_batch *batch, size_t i)
{
    return batch->property_lengths[batch->shared ? 0 : i];
}

static size_t tbs_len(const seal_template *self, size_t property)
{
    return self->body_len + TIME_TLV_LEN + HASH_TLV_LEN + tlv_len(property);
}

static size_t middle_len(const seal_batch *batch, size_t i)
{
    return HASH_TLV_LEN + (batch->shared ? 0 : tlv_len(property_len(batch, i)));
}

static size_t signature_len(const uint8_t signature[SEAL_SIGNATURE_LEN])
{
    return tlv_len(integer_len(signature)) + tlv_len(integer_len(signature + 32)); /* within the SEQUENCE */
}

static size_t stamp_len(const seal_stamps *stamps, size_t i)
{
    return stamps == NULL ? 0 : stamps->lengths[i];
}

static size_t tail_len(const uint8_t signature[SEAL_SIGNATURE_LEN], size_t stamp)
{
    return tlv_len(1 + tlv_len(signature_len(signature))) + (stamp > 0 ? tlv_len(tlv_len(1 + stamp)) : 0);
}

/* ---- a template ---------------------------------------------------------------------------------------- */

static uint8_t *copy_of(const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len);
    if (copy != NULL)
        memcpy(copy, data, len);
    return copy;
}

seal_template *seal_template_new(int algorithm, const uint8_t *z, const uint8_t *body, size_t body_len,
                                 const uint8_t *suffix, size_t suffix_len)
{
    seal_template *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    pthread_mutex_init(&self->lock, NULL);
    self->algorithm = algorithm;
    if (algorithm == TEMPLATE_SM2)
        memcpy(self->z, z, Z_LEN);
    else
        self->md = EVP_MD_fetch(NULL, "SHA256", NULL);
    self->body = copy_of(body, body_len);
    self->body_len = body_len;
    self->suffix = copy_of(suffix, suffix_len);
    self->suffix_len = suffix_len;
    self->held = sizeof *self + body_len + suffix_len;
    if (self->body == NULL || self->suffix == NULL || (algorithm == TEMPLATE_P256 && self->md == NULL)) {
        seal_template_free(self);
        return NULL;
    }
    return self;
}

void seal_template_free(seal_template *self)
{
    if (self == NULL)
        return;
    for (size_t page = 0; page < PAGES; page++) {
        for (size_t i = 0; self->pages[page] != NULL && i < PAGE_LEN; i++)
            EVP_MD_CTX_free(self->pages[page][i].sha256);
        free(self->pages[page]);
    }
    EVP_MD_free(self->md);
    free(self->body);
    free(self->suffix);
    pthread_mutex_destroy(&self->lock);
    free(self);
}

size_t seal_template_size(seal_template *self)
{
    pthread_mutex_lock(&self->lock);
    size_t size = self->held;
    pthread_mutex_unlock(&self->lock);
    return size;
}

/* ---- midstates ----------------------------------------------------------------------------------------- */

enum { EVP_CONTEXT_LEN = 512 }; /* about what libcrypto holds for one; counted, so that the bound is honest */

/* Everything of TBS_Sign that comes before the body. Returns its length. */
static size_t put_opening(const seal_template *self, size_t property, uint8_t out[Z_LEN + MAX_HEADER_LEN])
{
    uint8_t *end = out;
    if (self->algorithm == TEMPLATE_SM2)
        end = put(end, self->z, Z_LEN);
    return (size_t)(put_header(end, 0x30, tbs_len(self, property)) - out);
}

static bool compute_midstate(const seal_template *self, size_t property, midstate *entry)
{
    uint8_t opening[Z_LEN + MAX_HEADER_LEN];
    size_t len = put_opening(self, property, opening);
    if (self->algorithm == TEMPLATE_SM2) {
        sm3_stream stream;
        sm3_init(&stream);
        sm3_update(&stream, opening, len);
        sm3_update(&stream, self->body, self->body_len);
        memcpy(entry->sm3, stream.state, sizeof entry->sm3);
        return true;
    }
    entry->sha256 = EVP_MD_CTX_new();
    return entry->sha256 != NULL && EVP_DigestInit_ex2(entry->sha256, self->md, NULL) == 1 &&
           EVP_DigestUpdate(entry->sha256, opening, len) == 1 &&
           EVP_DigestUpdate(entry->sha256, self->body, self->body_len) == 1;
}

/* The entry if it is there already; its page is made if it is not. NULL: out of memory. */
static midstate *find_entry(seal_template *self, size_t property)
{
    midstate **page = &self->pages[property / PAGE_LEN];
    if (*page == NULL) {
        *page = calloc(PAGE_LEN, sizeof **page);
        if (*page == NULL)
            return NULL;
        self->held += PAGE_LEN * sizeof **page;
    }
    return &(*page)[property % PAGE_LEN];
}

/* The midstate for property infos of that length, hashed now if it is met for the first time. The body is
 * hashed without the lock: two threads may do the same work once, and no thread waits for another's. */
static const midstate *midstate_for(seal_template *self, size_t property)
{
    midstate fresh = {.known = true};
    pthread_mutex_lock(&self->lock);
    midstate *entry = find_entry(self, property);
    bool known = entry != NULL && entry->known;
    pthread_mutex_unlock(&self->lock);
    if (entry == NULL || known)
        return entry;
    if (!compute_midstate(self, property, &fresh)) {
        EVP_MD_CTX_free(fresh.sha256);
        return NULL;
    }
    pthread_mutex_lock(&self->lock);
    if (!entry->known) {
        *entry = fresh;
        self->held += fresh.sha256 != NULL ? EVP_CONTEXT_LEN : 0;
        fresh.sha256 = NULL;
    }
    pthread_mutex_unlock(&self->lock);
    EVP_MD_CTX_free(fresh.sha256);
    return entry;
}

size_t seal_template_cold(seal_template *self, const seal_batch *batch, size_t enough)
{
    size_t lengths = batch->shared ? 1 : batch->count, cold = 0;
    uint8_t seen[SEAL_MAX_PROPERTY_LEN / 8 + 1] = {0};
    pthread_mutex_lock(&self->lock);
    for (size_t i = 0; i < lengths && cold < enough; i++) {
        size_t property = batch->property_lengths[i];
        uint8_t bit = (uint8_t)(1u << property % 8);
        if ((seen[property / 8] & bit) != 0)
            continue;
        seen[property / 8] |= bit;
        const midstate *page = self->pages[property / PAGE_LEN];
        cold += page == NULL || !page[property % PAGE_LEN].known;
    }
    pthread_mutex_unlock(&self->lock);
    return cold;
}

/* ---- what is signed ------------------------------------------------------------------------------------ */

static uint8_t *put_time(uint8_t *out, const uint8_t *time)
{
    return put(put_header(out, 0x18, SEAL_TIME_LEN), time, SEAL_TIME_LEN);
}

static uint8_t *put_hash(uint8_t *out, const uint8_t *hash)
{
    out = put_header(out, 0x03, 1 + SEAL_HASH_LEN);
    *out++ = 0; /* no unused bits */
    return put(out, hash, SEAL_HASH_LEN);
}

static uint8_t *put_property(uint8_t *out, const uint8_t *property, size_t len)
{
    return put(put_header(out, 0x16, len), property, len);
}

/* SM3 as it stands after the midstate and timeInfo. What awaits its block is the body's end. */
static void sm3_start(const seal_template *self, const midstate *known, size_t property, const uint8_t *time,
                      sm3_stream *start)
{
    uint8_t opening[Z_LEN + MAX_HEADER_LEN], stamp[TIME_TLV_LEN];
    memcpy(start->state, known->sm3, sizeof start->state);
    start->total_len = put_opening(self, property, opening) + self->body_len;
    size_t held = start->total_len % SM3_BLOCK_LEN;
    memcpy(start->pending, self->body + self->body_len - held, held);
    put_time(stamp, time);
    sm3_update(start, stamp, sizeof stamp);
}

typedef struct {
    sm3_stream starts[CHUNK];
    sm3_message messages[CHUNK];
    uint8_t rest[]; /* what follows timeInfo, one item after the other */
} sm3_scratch;

/* SM3 of up to CHUNK items. `at` is where the first one's property info stands. */
static bool sm3_chunk(seal_template *self, const seal_batch *batch, size_t from, size_t to, const uint8_t *at,
                      sm3_scratch *scratch, uint8_t *digests)
{
    uint8_t *rest = scratch->rest;
    size_t starts = 0, last = SIZE_MAX;
    for (size_t i = from; i < to; i++) {
        size_t property = property_len(batch, i);
        if (property != last) {
            const midstate *known = midstate_for(self, property);
            if (known == NULL)
                return false;
            sm3_start(self, known, property, batch->time, &scratch->starts[starts++]);
            last = property;
        }
        uint8_t *end = put_property(put_hash(rest, batch->hashes + SEAL_HASH_LEN * i), at, property);
        scratch->messages[i - from] = (sm3_message){rest, (size_t)(end - rest), &scratch->starts[starts - 1]};
        rest = end;
        at += batch->shared ? 0 : property;
    }
    sm3_many(scratch->messages, to - from, digests + SM3_DIGEST_LEN * from);
    return true;
}

static size_t longest(const seal_batch *batch)
{
    size_t lengths = batch->shared ? 1 : batch->count, most = 0;
    for (size_t i = 0; i < lengths; i++)
        most = batch->property_lengths[i] > most ? batch->property_lengths[i] : most;
    return most;
}

static int sm3_digests(seal_template *self, const seal_batch *batch, uint8_t *digests)
{
    size_t items = batch->count < CHUNK ? batch->count : CHUNK;
    sm3_scratch *scratch = malloc(sizeof *scratch + items * (HASH_TLV_LEN + tlv_len(longest(batch))));
    const uint8_t *at = batch->properties;
    bool done = scratch != NULL;
    for (size_t from = 0; done && from < batch->count; from += CHUNK) {
        size_t to = from + CHUNK < batch->count ? from + CHUNK : batch->count;
        done = sm3_chunk(self, batch, from, to, at, scratch, digests);
        for (size_t i = from; !batch->shared && i < to; i++)
            at += batch->property_lengths[i];
    }
    free(scratch);
    return done ? 0 : -1;
}

static int sha256_digests(seal_template *self, const seal_batch *batch, uint8_t *digests)
{
    uint8_t rest[TIME_TLV_LEN + HASH_TLV_LEN + MAX_HEADER_LEN + SEAL_MAX_PROPERTY_LEN];
    uint8_t *hash_at = put_time(rest, batch->time);
    const uint8_t *at = batch->properties;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool done = context != NULL;
    for (size_t i = 0; done && i < batch->count; i++) {
        size_t property = property_len(batch, i);
        const midstate *known = midstate_for(self, property);
        const uint8_t *end = put_property(put_hash(hash_at, batch->hashes + SEAL_HASH_LEN * i), at, property);
        done = known != NULL && EVP_MD_CTX_copy_ex(context, known->sha256) == 1 &&
               EVP_DigestUpdate(context, rest, (size_t)(end - rest)) == 1 &&
               EVP_DigestFinal_ex(context, digests + SEAL_HASH_LEN * i, NULL) == 1;
        at += batch->shared ? 0 : property;
    }
    EVP_MD_CTX_free(context);
    return done ? 0 : -1;
}

int seal_template_digests(seal_template *self, const seal_batch *batch, uint8_t *digests)
{
    if (self->algorithm == TEMPLATE_SM2)
        return sm3_digests(self, batch, digests);
    return sha256_digests(self, batch, digests);
}

/* ---- complete values ----------------------------------------------------------------------------------- */

/* The lengths of one value's parts; those of the SEQUENCEs without their headers. */
typedef struct {
    size_t tbs, whole, head, middle, tail;
} extent;

static extent extent_of(const seal_template *self, const seal_batch *batch, size_t i,
                        const uint8_t *signature, size_t stamp)
{
    extent e = {.tbs = tbs_len(self, property_len(batch, i)), .middle = middle_len(batch, i)};
    e.tail = tail_len(signature, stamp);
    e.whole = tlv_len(e.tbs) + self->suffix_len + e.tail;
    e.head = header_len(e.whole) + header_len(e.tbs);
    return e;
}

size_t seal_template_written_len(const seal_template *self, const seal_batch *batch, const uint8_t *statuses,
                                 const uint8_t *signatures, const seal_stamps *stamps)
{
    size_t total = batch->count * SEAL_RECORD_LEN;
    for (size_t i = 0; i < batch->count; i++) {
        if (statuses[i] != 0)
            continue;
        extent e = extent_of(self, batch, i, signatures + SEAL_SIGNATURE_LEN * i, stamp_len(stamps, i));
        total += e.head + e.middle + e.tail;
    }
    return total;
}

static uint8_t *put_tail(uint8_t *out, const uint8_t *signature, const uint8_t *token, size_t stamp)
{
    size_t inner = signature_len(signature);
    out = put_header(out, 0x03, 1 + tlv_len(inner));
    *out++ = 0;
    out = put_integer(put_integer(put_header(out, 0x30, inner), signature), signature + 32);
    if (stamp > 0) {
        out = put_header(out, 0xa0, tlv_len(1 + stamp));
        out = put_header(out, 0x03, 1 + stamp);
        *out++ = 0;
        out = put(out, token, stamp);
    }
    return out;
}

static uint8_t *put_record(uint8_t *out, uint8_t status, const extent *e)
{
    *out++ = status;
    *out++ = (uint8_t)e->head;
    *out++ = (uint8_t)(e->middle >> 8);
    *out++ = (uint8_t)e->middle;
    *out++ = (uint8_t)(e->tail >> 8);
    *out++ = (uint8_t)e->tail;
    return out;
}

void seal_template_write(const seal_template *self, const seal_batch *batch, const uint8_t *statuses,
                         const uint8_t *signatures, const seal_stamps *stamps, uint8_t *out)
{
    const uint8_t *at = batch->properties, *token = stamps == NULL ? NULL : stamps->tokens;
    uint8_t *record = out;
    out += batch->count * SEAL_RECORD_LEN;
    for (size_t i = 0; i < batch->count; i++) {
        const uint8_t *signature = signatures + SEAL_SIGNATURE_LEN * i;
        size_t property = property_len(batch, i), stamp = stamp_len(stamps, i);
        extent e = {0};
        if (statuses[i] == 0) {
            e = extent_of(self, batch, i, signature, stamp);
            out = put_header(put_header(out, 0x30, e.whole), 0x30, e.tbs);
            out = put_hash(out, batch->hashes + SEAL_HASH_LEN * i);
            if (!batch->shared)
                out = put_property(out, at, property);
            out = put_tail(out, signature, token, stamp);
        }
        record = put_record(record, statuses[i], &e);
        at += batch->shared ? 0 : property;
        if (token != NULL)
            token += stamp;
    }
}
