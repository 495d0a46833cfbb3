/* Object management: creating, copying, destroying, looking at, changing and finding objects. */
#include "bytes.h"
#include "module.h"

#include <openssl/rand.h>

/* ---- life ---- */

struct object *object_new(void) {
    struct object *object = calloc(1, sizeof *object);
    if (object)
        atomic_init(&object->references, 1);
    return object;
}

struct object *object_reference(struct object *object) {
    if (object)
        atomic_fetch_add(&object->references, 1);
    return object;
}

void object_release(struct object *object) {
    if (!object || atomic_fetch_sub(&object->references, 1) != 1)
        return;
    attributes_free(&object->attributes);
    free(object->sealed);
    material_release(object->material);
    free(object);
}

struct object *object_find(struct module *m, const struct session *s, CK_OBJECT_HANDLE handle) {
    pthread_rwlock_rdlock(&m->tables);
    struct object *object = handles_get(&m->objects, handle);
    object = object && session_may_see(s, object) ? object_reference(object) : NULL;
    pthread_rwlock_unlock(&m->tables);
    return object;
}

/* ---- secrets ---- */

static const uint8_t no_epoch[EPOCH_LEN]; /* session objects belong to no life of the token */

/* The key that seals this object, copied; false: nobody is logged in. */
static bool sealing_key(struct module *m, CK_SLOT_ID slot, bool token_object, uint8_t key[MASTER_KEY_LEN],
                        uint8_t epoch[EPOCH_LEN]) {
    if (!token_object) {
        memcpy(key, m->session_key, MASTER_KEY_LEN);
        memcpy(epoch, no_epoch, EPOCH_LEN);
        return true;
    }
    struct token *token = token_find(m, slot);
    pthread_mutex_lock(&token->lock);
    bool there = token->login != LOGIN_NONE;
    memcpy(key, token->master, MASTER_KEY_LEN);
    memcpy(epoch, token->epoch, EPOCH_LEN);
    pthread_mutex_unlock(&token->lock);
    return there;
}

CK_RV object_unseal(struct module *m, const struct object *object, struct attributes *secrets) {
    uint8_t key[MASTER_KEY_LEN], epoch[EPOCH_LEN];
    if (!object->sealed)
        return CKR_OK;
    if (!sealing_key(m, object->slot, !object->owner, key, epoch))
        return CKR_USER_NOT_LOGGED_IN;
    /* A seal that does not open: the file was tampered with. Said as a device error, never as a usable key.
     */
    CK_RV rv = object_open_seal(object, epoch, key, secrets) ? CKR_OK : CKR_DEVICE_ERROR;
    OPENSSL_cleanse(key, sizeof key);
    return rv;
}

/* ---- publishing ---- */

CK_RV object_check_writable(const struct session *s, const struct attributes *attributes) {
    if (attributes_bool(attributes, CKA_PRIVATE) && session_login(s) != LOGIN_USER)
        return CKR_USER_NOT_LOGGED_IN;
    if (attributes_bool(attributes, CKA_TOKEN) && !s->read_write)
        return CKR_SESSION_READ_ONLY;
    return CKR_OK;
}

/* Split off the secrets and fix the head; `attributes` is emptied into the object. */
static CK_RV assemble(struct module *m, const struct session *s, struct attributes *attributes,
                      struct object *object) {
    struct attributes secrets = {0};
    uint8_t key[MASTER_KEY_LEN], epoch[EPOCH_LEN];
    char unique[17];
    for (size_t i = 0; i < sizeof object->id; i++)
        snprintf(unique + 2 * i, 3, "%02x", object->id[i]);
    object->class = attributes_ulong(attributes, CKA_CLASS, CK_UNAVAILABLE_INFORMATION);
    object->private_object = attributes_bool(attributes, CKA_PRIVATE);
    object->slot = s->token->slot;
    bool token_object = attributes_bool(attributes, CKA_TOKEN), good = true;
    object->owner = token_object ? 0 : s->handle;
    for (size_t i = 0; i < attributes->count && good; i++) {
        const struct attribute *at = &attributes->item[i];
        bool secret = attribute_is_secret(object->class, object->private_object, at->type);
        good = attributes_set(secret ? &secrets : &object->attributes, at->type, at->value, at->len);
    }
    good = good && attributes_set(&object->attributes, CKA_UNIQUE_ID, unique, 16);
    CK_RV rv = good ? CKR_OK : CKR_HOST_MEMORY;
    if (good && secrets.count && !sealing_key(m, object->slot, token_object, key, epoch))
        rv = CKR_USER_NOT_LOGGED_IN;
    else if (good && secrets.count && !object_seal(object, &secrets, epoch, key))
        rv = CKR_GENERAL_ERROR;
    OPENSSL_cleanse(key, sizeof key);
    attributes_free(&secrets);
    attributes_free(attributes);
    return rv;
}

static CK_RV insert(struct module *m, struct object *object) {
    pthread_rwlock_wrlock(&m->tables);
    object->handle = handles_add(&m->objects, object);
    pthread_rwlock_unlock(&m->tables);
    return object->handle == CK_INVALID_HANDLE ? CKR_HOST_MEMORY : CKR_OK;
}

/* The file is on disk and synced before the handle exists: a key reported created is there after a crash. */
static CK_RV store_and_insert(struct module *m, struct token *token, struct object *object) {
    struct write_lock lock;
    pthread_mutex_lock(&token->lock);
    CK_RV rv = store_lock(token, &lock);
    if (rv == CKR_OK) {
        rv = store_check_epoch(token);
        if (rv == CKR_OK)
            rv = store_save_object(token, object, 0);
        if (rv == CKR_OK)
            rv = insert(m, object);
        store_unlock(token, &lock, rv == CKR_OK);
    }
    pthread_mutex_unlock(&token->lock);
    return rv;
}

CK_RV object_publish(struct module *m, struct session *s, struct attributes *attributes,
                     CK_OBJECT_HANDLE *handle) {
    struct object *object = object_new();
    if (!object || RAND_bytes(object->id, sizeof object->id) != 1) {
        object_release(object);
        attributes_free(attributes);
        return CKR_HOST_MEMORY;
    }
    object->revision = 1;
    CK_RV rv = assemble(m, s, attributes, object);
    if (rv == CKR_OK)
        rv = object->owner ? insert(m, object) : store_and_insert(m, s->token, object);
    if (rv == CKR_OK)
        *handle = object->handle;
    else
        object_release(object);
    return rv;
}

static CK_RV create_object(struct module *m, struct session *s, const CK_ATTRIBUTE *given, CK_ULONG count,
                           CK_OBJECT_HANDLE *handle) {
    struct attributes attributes = {0};
    CK_OBJECT_CLASS class = CK_UNAVAILABLE_INFORMATION;
    CK_KEY_TYPE key_type = CK_UNAVAILABLE_INFORMATION;
    bool has_class = false, has_key_type = false;
    CK_RV rv = template_check(given, count);
    for (CK_ULONG i = 0; rv == CKR_OK && i < count; i++) {
        CK_ULONG *to = given[i].type == CKA_CLASS ? &class : given[i].type == CKA_KEY_TYPE ? &key_type : NULL;
        if (!to)
            continue;
        if (given[i].ulValueLen != sizeof *to)
            rv = CKR_ATTRIBUTE_VALUE_INVALID;
        else
            memcpy(to, given[i].pValue, sizeof *to);
        has_class |= to == &class;
        has_key_type |= to == &key_type;
    }
    if (rv == CKR_OK && (!has_class || (class >= CKO_PUBLIC_KEY && class <= CKO_SECRET_KEY && !has_key_type)))
        rv = CKR_TEMPLATE_INCOMPLETE;
    if (rv == CKR_OK && class > CKO_SECRET_KEY)
        rv = CKR_ATTRIBUTE_VALUE_INVALID;
    if (rv == CKR_OK)
        rv = template_build(ORIGIN_CREATE, class, key_type, given, count, &attributes);
    if (rv == CKR_OK)
        rv = object_check_writable(s, &attributes);
    if (rv == CKR_OK && class >= CKO_PUBLIC_KEY)
        rv = key_complete(m, &attributes);
    if (rv == CKR_OK && class == CKO_CERTIFICATE &&
        attributes_ulong(&attributes, CKA_CERTIFICATE_TYPE, ~0UL) != CKC_X_509)
        rv = CKR_ATTRIBUTE_VALUE_INVALID;
    if (rv != CKR_OK) {
        attributes_free(&attributes);
        return rv;
    }
    return object_publish(m, s, &attributes, handle);
}

CK_RV C_CreateObject(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR attributes, CK_ULONG count,
                     CK_OBJECT_HANDLE_PTR object) {
    SESSION_SHIM(C_CreateObject, (attributes || !count) && object,
                 create_object(call.module, s, attributes, count, object));
}

/* Everything of an object, secrets included. */
static CK_RV gather(struct module *m, const struct object *object, struct attributes *all) {
    CK_RV rv = attributes_copy(all, &object->attributes) ? CKR_OK : CKR_HOST_MEMORY;
    return rv == CKR_OK ? object_unseal(m, object, all) : rv;
}

static CK_RV copy_object(struct module *m, struct session *s, CK_OBJECT_HANDLE from,
                         const CK_ATTRIBUTE *given, CK_ULONG count, CK_OBJECT_HANDLE *handle) {
    struct object *object = object_find(m, s, from);
    struct attributes all = {0};
    if (!object)
        return CKR_OBJECT_HANDLE_INVALID;
    CK_RV rv = attributes_bool(&object->attributes, CKA_COPYABLE) ? CKR_OK : CKR_ACTION_PROHIBITED;
    if (rv == CKR_OK)
        rv = gather(m, object, &all);
    if (rv == CKR_OK)
        rv = template_change(&object->attributes, true, session_login(s) == LOGIN_SO, given, count, &all);
    /* A private object may not be laid open by copying it. */
    if (rv == CKR_OK && object->private_object && !attributes_bool(&all, CKA_PRIVATE))
        rv = CKR_TEMPLATE_INCONSISTENT;
    if (rv == CKR_OK)
        rv = object_check_writable(s, &all);
    object_release(object);
    if (rv != CKR_OK) {
        attributes_free(&all);
        return rv;
    }
    return object_publish(m, s, &all, handle);
}

CK_RV C_CopyObject(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR attributes,
                   CK_ULONG count, CK_OBJECT_HANDLE_PTR copy) {
    SESSION_SHIM(C_CopyObject, (attributes || !count) && copy,
                 copy_object(call.module, s, object, attributes, count, copy));
}

/* The current version of an object that this session may change, found under token->lock when it is a token
 * object, so that no other thread or process changes it in between. */
static CK_RV open_for_change(struct module *m, struct session *s, CK_OBJECT_HANDLE handle,
                             struct write_lock *lock, struct object **object) {
    struct token *token = s->token;
    lock->fd = -1;
    *object = object_find(m, s, handle);
    if (!*object)
        return CKR_OBJECT_HANDLE_INVALID;
    CK_RV rv = object_check_writable(s, &(*object)->attributes);
    if (rv != CKR_OK || (*object)->owner)
        return rv;
    object_release(*object);
    *object = NULL;
    pthread_mutex_lock(&token->lock);
    rv = store_lock(token, lock);
    if (rv != CKR_OK) {
        lock->fd = -1;
        pthread_mutex_unlock(&token->lock);
        return rv;
    }
    store_catch_up(m, token, lock); /* others may have written: what we saw may be an old revision */
    rv = store_check_epoch(token);
    *object = object_find(m, s, handle);
    return rv == CKR_OK && !*object ? CKR_OBJECT_HANDLE_INVALID : rv;
}

static void close_after_change(struct session *s, struct write_lock *lock, bool current,
                               struct object *object) {
    if (lock->fd >= 0) {
        store_unlock(s->token, lock, current);
        pthread_mutex_unlock(&s->token->lock);
    }
    object_release(object);
}

static CK_RV destroy_object(struct module *m, struct session *s, CK_OBJECT_HANDLE handle) {
    struct write_lock lock;
    struct object *object;
    CK_RV rv = open_for_change(m, s, handle, &lock, &object);
    if (rv == CKR_OK && !attributes_bool(&object->attributes, CKA_DESTROYABLE))
        rv = CKR_ACTION_PROHIBITED;
    if (rv == CKR_OK && !object->owner)
        rv = store_delete_object(s->token, object);
    if (rv == CKR_OK) {
        pthread_rwlock_wrlock(&m->tables);
        object_release(handles_remove(&m->objects, handle));
        pthread_rwlock_unlock(&m->tables);
    }
    close_after_change(s, &lock, rv == CKR_OK, object);
    return rv;
}

void object_discard(struct module *m, struct session *s, CK_OBJECT_HANDLE handle) {
    destroy_object(m, s,
                   handle); /* best effort, on the way out of a failure that is already being reported */
}

CK_RV C_DestroyObject(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object) {
    SESSION_SHIM(C_DestroyObject, true, destroy_object(call.module, s, object));
}

static CK_RV get_object_size(struct module *m, struct session *s, CK_OBJECT_HANDLE handle, CK_ULONG *size) {
    struct object *object = object_find(m, s, handle);
    struct writer w = {0};
    if (!object)
        return CKR_OBJECT_HANDLE_INVALID;
    CK_RV rv = object_encode(object, no_epoch, &w) ? CKR_OK : CKR_HOST_MEMORY;
    *size = w.len; /* what the object takes on disk, or would take */
    writer_wipe(&w);
    object_release(object);
    return rv;
}

CK_RV C_GetObjectSize(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ULONG_PTR size) {
    SESSION_SHIM(C_GetObjectSize, size, get_object_size(call.module, s, object, size));
}

/* ---- attributes ---- */

static CK_RV give(const struct attribute *at, CK_ATTRIBUTE *wanted) {
    if (!wanted->pValue) {
        wanted->ulValueLen = at->len;
        return CKR_OK;
    }
    if (wanted->ulValueLen < at->len) {
        wanted->ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return CKR_BUFFER_TOO_SMALL;
    }
    if (at->len)
        memcpy(wanted->pValue, at->value, at->len);
    wanted->ulValueLen = at->len;
    return CKR_OK;
}

static CK_RV get_attribute_value(struct module *m, struct session *s, CK_OBJECT_HANDLE handle,
                                 CK_ATTRIBUTE *wanted, CK_ULONG count) {
    struct object *object = object_find(m, s, handle);
    struct attributes secrets = {0};
    if (!object)
        return CKR_OBJECT_HANDLE_INVALID;
    bool is_key = object->class == CKO_PRIVATE_KEY || object->class == CKO_SECRET_KEY;
    bool closed = is_key && (attributes_bool(&object->attributes, CKA_SENSITIVE) ||
                             !attributes_bool(&object->attributes, CKA_EXTRACTABLE));
    CK_RV rv = CKR_OK;
    for (CK_ULONG i = 0; i < count; i++) {
        const struct attribute *at = attributes_find(&object->attributes, wanted[i].type);
        CK_RV one = CKR_OK;
        if (!at && attribute_is_secret(object->class, object->private_object, wanted[i].type)) {
            if (closed)
                one = CKR_ATTRIBUTE_SENSITIVE;
            else if (!secrets.count)
                one = object_unseal(m, object, &secrets);
            at = one == CKR_OK ? attributes_find(&secrets, wanted[i].type) : NULL;
        }
        if (one == CKR_OK)
            one = at ? give(at, &wanted[i]) : CKR_ATTRIBUTE_TYPE_INVALID;
        if (one != CKR_OK) {
            wanted[i].ulValueLen = CK_UNAVAILABLE_INFORMATION;
            rv = rv == CKR_OK ? one : rv; /* every attribute is looked at, the first trouble is told */
        }
    }
    attributes_free(&secrets);
    object_release(object);
    return rv;
}

CK_RV C_GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR attributes,
                          CK_ULONG count) {
    SESSION_SHIM(C_GetAttributeValue, attributes && count,
                 get_attribute_value(call.module, s, object, attributes, count));
}

/* A new version of `object` with `all` as its attributes takes its place. Under the write lock if it is a
 * token object; token->lock is then held, so the sealing key is taken here and not through sealing_key(). */
static CK_RV replace(struct module *m, struct session *s, struct object *object, struct attributes *all) {
    struct attributes secrets = {0};
    struct object *next = object_new();
    bool good = next != NULL;
    for (size_t i = 0; i < all->count && good; i++) {
        const struct attribute *at = &all->item[i];
        bool secret = attribute_is_secret(object->class, object->private_object, at->type);
        good = attributes_set(secret ? &secrets : &next->attributes, at->type, at->value, at->len);
    }
    if (good) {
        memcpy(next->id, object->id, sizeof next->id);
        next->handle = object->handle;
        next->slot = object->slot;
        next->owner = object->owner;
        next->class = object->class;
        next->private_object = object->private_object;
        next->revision = object->revision + 1;
        const uint8_t *key = object->owner ? m->session_key : s->token->master;
        good = object_seal(next, &secrets, object->owner ? no_epoch : s->token->epoch, key);
    }
    attributes_free(&secrets);
    CK_RV rv = good ? CKR_OK : CKR_HOST_MEMORY;
    if (rv == CKR_OK && !object->owner)
        rv = store_save_object(s->token, next, object->revision);
    if (rv == CKR_OK) {
        pthread_rwlock_wrlock(&m->tables);
        struct object *now = handles_get(&m->objects, object->handle);
        if (now) {
            handles_replace(&m->objects, object->handle, next);
            next->material = material_reference(now->material); /* the key itself has not changed */
            object_release(now);
            next = NULL;
        }
        pthread_rwlock_unlock(&m->tables);
    }
    object_release(next);
    return rv;
}

static CK_RV set_attribute_value(struct module *m, struct session *s, CK_OBJECT_HANDLE handle,
                                 const CK_ATTRIBUTE *given, CK_ULONG count) {
    struct write_lock lock;
    struct object *object;
    struct attributes all = {0};
    CK_RV rv = open_for_change(m, s, handle, &lock, &object);
    if (rv == CKR_OK && !attributes_bool(&object->attributes, CKA_MODIFIABLE))
        rv = CKR_ACTION_PROHIBITED;
    if (rv == CKR_OK)
        rv = attributes_copy(&all, &object->attributes) ? CKR_OK : CKR_HOST_MEMORY;
    if (rv == CKR_OK && object->sealed) {
        bool opened = object->owner ? object_open_seal(object, no_epoch, m->session_key, &all)
                                    : s->token->login != LOGIN_NONE &&
                                          object_open_seal(object, s->token->epoch, s->token->master, &all);
        rv = opened ? CKR_OK : s->token->login == LOGIN_NONE ? CKR_USER_NOT_LOGGED_IN : CKR_DEVICE_ERROR;
    }
    if (rv == CKR_OK)
        rv = template_change(&object->attributes, false, session_login(s) == LOGIN_SO, given, count, &all);
    if (rv == CKR_OK)
        rv = replace(m, s, object, &all);
    attributes_free(&all);
    close_after_change(s, &lock, rv == CKR_OK, object);
    return rv;
}

CK_RV C_SetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR attributes,
                          CK_ULONG count) {
    SESSION_SHIM(C_SetAttributeValue, attributes && count,
                 set_attribute_value(call.module, s, object, attributes, count));
}

/* ---- finding ---- */

static bool matches(const struct object *object, const CK_ATTRIBUTE *wanted, CK_ULONG count) {
    for (CK_ULONG i = 0; i < count; i++) {
        /* Secret values are not searched: an answer would tell whether a guess is right. */
        const struct attribute *at = attributes_find(&object->attributes, wanted[i].type);
        if (!at || at->len != wanted[i].ulValueLen ||
            (at->len && memcmp(at->value, wanted[i].pValue, at->len) != 0))
            return false;
    }
    return true;
}

static CK_RV find_objects_init(struct module *m, struct session *s, const CK_ATTRIBUTE *wanted,
                               CK_ULONG count) {
    CK_RV rv = template_check(wanted, count);
    if (rv != CKR_OK)
        return rv;
    if (s->found)
        return CKR_OPERATION_ACTIVE;
    pthread_mutex_lock(&s->token->lock);
    store_synchronise(m, s->token);
    pthread_mutex_unlock(&s->token->lock);
    pthread_rwlock_rdlock(&m->tables);
    CK_OBJECT_HANDLE *found = calloc((size_t)m->objects.used + 1, sizeof *found);
    s->found_count = s->found_next = 0;
    for (uint32_t i = 0; found && i < m->objects.used; i++) {
        const struct object *object = m->objects.entry[i].item;
        if (object && session_may_see(s, object) && matches(object, wanted, count))
            found[s->found_count++] = object->handle;
    }
    pthread_rwlock_unlock(&m->tables);
    s->found = found;
    return found ? CKR_OK : CKR_HOST_MEMORY;
}

CK_RV C_FindObjectsInit(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR attributes, CK_ULONG count) {
    SESSION_SHIM(C_FindObjectsInit, attributes || !count,
                 find_objects_init(call.module, s, attributes, count));
}

static CK_RV find_objects(struct session *s, CK_OBJECT_HANDLE *objects, CK_ULONG max, CK_ULONG *found) {
    if (!s->found)
        return CKR_OPERATION_NOT_INITIALIZED;
    for (*found = 0; *found < max && s->found_next < s->found_count;)
        objects[(*found)++] = s->found[s->found_next++];
    return CKR_OK;
}

CK_RV C_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR objects, CK_ULONG max,
                    CK_ULONG_PTR found) {
    SESSION_SHIM(C_FindObjects, (objects || !max) && found, find_objects(s, objects, max, found));
}

static CK_RV find_objects_final(struct session *s) {
    if (!s->found)
        return CKR_OPERATION_NOT_INITIALIZED;
    free(s->found);
    s->found = NULL;
    return CKR_OK;
}

CK_RV C_FindObjectsFinal(CK_SESSION_HANDLE session) {
    SESSION_SHIM(C_FindObjectsFinal, true, find_objects_final(s));
}
