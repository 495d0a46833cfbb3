/* Message digesting and random numbers. */
#include "module.h"

#include <openssl/rand.h>

static void digest_end(struct session *s) {
    EVP_MD_CTX_free(s->digest);
    s->digest = NULL;
}

static CK_RV digest_init(struct module *m, struct session *s, const CK_MECHANISM *given) {
    if (!given) {
        CK_RV cancelled = s->digest ? CKR_OK : CKR_ARGUMENTS_BAD;
        digest_end(s);
        return cancelled;
    }
    const struct mechanism *mechanism = mechanism_find(given->mechanism, CKF_DIGEST);
    struct parameters parameters;
    if (s->digest)
        return CKR_OPERATION_ACTIVE;
    if (!mechanism)
        return CKR_MECHANISM_INVALID;
    CK_RV rv = mechanism_parameters(m, mechanism, given, &parameters);
    if (rv != CKR_OK)
        return rv;
    s->digest = EVP_MD_CTX_new();
    s->digest_mechanism = mechanism;
    s->digest_updated = false;
    if (!s->digest || EVP_DigestInit_ex2(s->digest, m->digests[mechanism->digest], NULL) != 1) {
        digest_end(s);
        return CKR_HOST_MEMORY;
    }
    return CKR_OK;
}

CK_RV C_DigestInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism) {
    SESSION_SHIM(C_DigestInit, true, digest_init(call.module, s, mechanism));
}

static CK_RV digest_finish(struct session *s, const uint8_t *in, size_t len, uint8_t *out,
                           CK_ULONG *out_len) {
    size_t need = (size_t)EVP_MD_CTX_get_size(s->digest), room = *out_len;
    *out_len = need;
    if (!out)
        return CKR_OK;
    if (room < need)
        return CKR_BUFFER_TOO_SMALL;
    if (len > SIGNING_MESSAGE_MAX) {
        digest_end(s);
        return CKR_DATA_LEN_RANGE;
    }
    bool good =
        (!len || EVP_DigestUpdate(s->digest, in, len) == 1) && EVP_DigestFinal_ex(s->digest, out, NULL) == 1;
    digest_end(s);
    return good ? CKR_OK : CKR_GENERAL_ERROR;
}

static CK_RV digest(struct session *s, const uint8_t *in, size_t len, uint8_t *out, CK_ULONG *out_len) {
    if (!s->digest)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (s->digest_updated)
        return CKR_OPERATION_ACTIVE;
    return digest_finish(s, in, len, out, out_len);
}

CK_RV C_Digest(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out,
               CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_Digest, (in || !in_len) && out_len, digest(s, in, in_len, out, out_len));
}

static CK_RV digest_update(struct session *s, const uint8_t *in, size_t len) {
    if (!s->digest)
        return CKR_OPERATION_NOT_INITIALIZED;
    s->digest_updated = true;
    bool too_long = len > SIGNING_MESSAGE_MAX;
    if (too_long || (len && EVP_DigestUpdate(s->digest, in, len) != 1)) {
        digest_end(s);
        return too_long ? CKR_DATA_LEN_RANGE : CKR_GENERAL_ERROR;
    }
    return CKR_OK;
}

CK_RV C_DigestUpdate(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len) {
    SESSION_SHIM(C_DigestUpdate, in || !in_len, digest_update(s, in, in_len));
}

static CK_RV digest_key(struct module *m, struct session *s, CK_OBJECT_HANDLE handle) {
    struct object *key;
    struct material *material;
    if (!s->digest)
        return CKR_OPERATION_NOT_INITIALIZED;
    CK_RV rv = key_open(m, s, handle, 0, NULL, &key, &material);
    if (rv != CKR_OK)
        return rv;
    /* The digest of a key that may not leave would be a test for guesses at it. */
    bool digestible = key->class == CKO_SECRET_KEY && attributes_bool(&key->attributes, CKA_EXTRACTABLE);
    rv = digestible ? digest_update(s, material->secret, material->secret_len) : CKR_KEY_INDIGESTIBLE;
    material_release(material);
    object_release(key);
    return rv;
}

CK_RV C_DigestKey(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key) {
    SESSION_SHIM(C_DigestKey, true, digest_key(call.module, s, key));
}

static CK_RV digest_final(struct session *s, uint8_t *out, CK_ULONG *out_len) {
    return s->digest ? digest_finish(s, NULL, 0, out, out_len) : CKR_OPERATION_NOT_INITIALIZED;
}

CK_RV C_DigestFinal(CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_DigestFinal, out_len, digest_final(s, out, out_len));
}

/* ---- random ---- */

static CK_RV seed_random(const uint8_t *seed, size_t len) {
    RAND_add(seed, (int)(len < 4096 ? len : 4096), 0.0); /* stirred in, credited with nothing */
    return CKR_OK;
}

CK_RV C_SeedRandom(CK_SESSION_HANDLE session, CK_BYTE_PTR seed, CK_ULONG seed_len) {
    SESSION_SHIM(C_SeedRandom, seed && seed_len, seed_random(seed, seed_len));
}

static CK_RV generate_random(uint8_t *out, size_t len) {
    if (len > SIGNING_MESSAGE_MAX)
        return CKR_ARGUMENTS_BAD;
    for (size_t at = 0; at < len;) {
        size_t part = len - at < 65536 ? len - at : 65536; /* the length RAND_bytes takes is an int */
        if (RAND_bytes(out + at, (int)part) != 1)
            return CKR_DEVICE_ERROR;
        at += part;
    }
    return CKR_OK;
}

CK_RV C_GenerateRandom(CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG out_len) {
    SESSION_SHIM(C_GenerateRandom, out || !out_len, generate_random(out, out_len));
}
