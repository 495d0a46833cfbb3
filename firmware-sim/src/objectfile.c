/* The format of an object file, version 1; all numbers big-endian.
 *
 *     "CSFSOBJ1"  epoch[16]  id[8]  revision u32  count u32
 *     count times: type u64, len u32, value      (CK_ULONG values as u64, whatever the machine's own form)
 *     sealed_len u32, sealed[sealed_len]         (0: the object has no secret attributes)
 *     SHA-256 of all that precedes               (finds accidents; forgers are met by the seal)
 *
 * The seal is AES-256-GCM under the token's master key over the secret attributes, with everything in front
 * of sealed_len as associated data: who changes an attribute of a key on disk has a key that does not open.
 */
#include "bytes.h"
#include "module.h"

static const char magic[8] = {'C', 'S', 'F', 'S', 'O', 'B', 'J', '1'};
enum { ATTRIBUTES_MAX = 64 /* an object has fewer than forty */ };

static void encode_attributes(const struct attributes *list, struct writer *w) {
    write_uint(w, list->count, 4);
    for (size_t i = 0; i < list->count; i++) {
        const struct attribute *at = &list->item[i];
        write_uint(w, at->type, 8);
        write_uint(w, at->len, 4);
        if (attribute_is_ulong(at->type))
            for (size_t k = 0; k + sizeof(CK_ULONG) <= at->len; k += sizeof(CK_ULONG)) {
                CK_ULONG value;
                memcpy(&value, at->value + k, sizeof value);
                write_uint(w, value, 8);
            }
        else
            write_bytes(w, at->value, at->len);
    }
}

static bool decode_attributes(struct reader *r, struct attributes *list) {
    size_t count = (size_t)read_uint(r, 4);
    if (count > ATTRIBUTES_MAX)
        r->failed = true;
    for (size_t i = 0; i < count && !r->failed; i++) {
        CK_ATTRIBUTE_TYPE type = read_uint(r, 8);
        size_t len = (size_t)read_uint(r, 4);
        const uint8_t *value = read_bytes(r, len);
        if (!value || attributes_find(list, type)) {
            r->failed = true;
        } else if (attribute_is_ulong(type)) {
            CK_ULONG numbers[32] = {0};
            struct reader inner = {.at = value, .left = len};
            size_t n = len / 8;
            if (len % 8 || n > 32) {
                r->failed = true;
                break;
            }
            for (size_t k = 0; k < n; k++)
                numbers[k] = read_uint(&inner, 8);
            r->failed = !attributes_set(list, type, numbers, n * sizeof *numbers);
        } else {
            r->failed = !attributes_set(list, type, value, len);
        }
    }
    return !r->failed;
}

/* What the seal is bound to. */
static void encode_head(const struct object *object, const uint8_t epoch[EPOCH_LEN], struct writer *w) {
    write_bytes(w, magic, sizeof magic);
    write_bytes(w, epoch, EPOCH_LEN);
    write_bytes(w, object->id, sizeof object->id);
    write_uint(w, object->revision, 4);
    encode_attributes(&object->attributes, w);
}

bool object_encode(const struct object *object, const uint8_t epoch[EPOCH_LEN], struct writer *w) {
    uint8_t sum[32];
    encode_head(object, epoch, w);
    write_uint(w, object->sealed_len, 4);
    write_bytes(w, object->sealed, object->sealed_len);
    if (w->failed || EVP_Digest(w->start, w->len, sum, NULL, EVP_sha256(), NULL) != 1)
        return false;
    write_bytes(w, sum, sizeof sum);
    return !w->failed;
}

struct object *object_decode(const uint8_t *bytes, size_t len, const uint8_t epoch[EPOCH_LEN]) {
    uint8_t sum[32];
    if (len < sizeof sum || EVP_Digest(bytes, len - sizeof sum, sum, NULL, EVP_sha256(), NULL) != 1 ||
        memcmp(sum, bytes + len - sizeof sum, sizeof sum) != 0)
        return NULL;
    struct reader r = {.at = bytes, .left = len - sizeof sum};
    struct object *object = object_new();
    if (!object)
        return NULL;
    const uint8_t *head = read_bytes(&r, sizeof magic), *their_epoch = read_bytes(&r, EPOCH_LEN);
    r.failed =
        r.failed || memcmp(head, magic, sizeof magic) != 0 || memcmp(their_epoch, epoch, EPOCH_LEN) != 0;
    read_into(&r, object->id, sizeof object->id);
    object->revision = (uint32_t)read_uint(&r, 4);
    if (decode_attributes(&r, &object->attributes)) {
        object->sealed_len = (size_t)read_uint(&r, 4);
        const uint8_t *sealed = read_bytes(&r, object->sealed_len);
        if (sealed && object->sealed_len) {
            object->sealed = malloc(object->sealed_len);
            if (object->sealed)
                memcpy(object->sealed, sealed, object->sealed_len);
            else
                r.failed = true;
        }
    }
    object->class = attributes_ulong(&object->attributes, CKA_CLASS, CK_UNAVAILABLE_INFORMATION);
    object->private_object = attributes_bool(&object->attributes, CKA_PRIVATE);
    if (r.failed || r.left || object->class > CKO_SECRET_KEY) {
        object->sealed_len = object->sealed ? object->sealed_len : 0;
        object_release(object);
        return NULL;
    }
    return object;
}

bool object_seal(struct object *object, const struct attributes *secrets, const uint8_t epoch[EPOCH_LEN],
                 const uint8_t key[MASTER_KEY_LEN]) {
    struct writer head = {0}, plain = {0};
    free(object->sealed);
    object->sealed = NULL;
    object->sealed_len = 0;
    if (!secrets->count)
        return true;
    encode_head(object, epoch, &head);
    encode_attributes(secrets, &plain);
    bool good = !head.failed && !plain.failed &&
                (object->sealed = malloc(plain.len + SEAL_OVERHEAD)) != NULL &&
                seal(key, head.start, head.len, plain.start, plain.len, object->sealed);
    if (good)
        object->sealed_len = plain.len + SEAL_OVERHEAD;
    writer_wipe(&head);
    writer_wipe(&plain);
    return good;
}

bool object_open_seal(const struct object *object, const uint8_t epoch[EPOCH_LEN],
                      const uint8_t key[MASTER_KEY_LEN], struct attributes *secrets) {
    if (!object->sealed)
        return true;
    if (object->sealed_len < SEAL_OVERHEAD)
        return false;
    struct writer head = {0};
    size_t len = object->sealed_len - SEAL_OVERHEAD;
    uint8_t *plain = malloc(len + 1);
    encode_head(object, epoch, &head);
    bool good =
        plain && !head.failed && unseal(key, head.start, head.len, object->sealed, object->sealed_len, plain);
    struct reader r = {.at = plain, .left = len};
    good = good && decode_attributes(&r, secrets) && r.left == 0;
    if (plain)
        OPENSSL_cleanse(plain, len);
    free(plain);
    writer_wipe(&head);
    return good;
}
