/* Signing, and the operation that signing, verifying and their message forms share.
 *
 * A mechanism that hashes keeps a running digest; one that does not takes exactly one input. Either way the
 * primitive sees one short value. Before a signature leaves, it is traced; a fault may then befall it.
 */
#include "curve.h"
#include "module.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rsa.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static const uint8_t default_id[16] = {'1', '2', '3', '4', '5', '6', '7', '8',
                                       '1', '2', '3', '4', '5', '6', '7', '8'};

/* Z = SM3(ENTL || ID || a || b || xG || yG || xA || yA), GB/T 32918.2, 5.5. */
CK_RV signing_sm2_z(struct module *m, const uint8_t point[64], const uint8_t *id, size_t id_len,
                    uint8_t z[32]) {
    static const uint8_t curve[128] = {
        0xFF, 0xFF, 0xFF, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFC,
        0x28, 0xE9, 0xFA, 0x9E, 0x9D, 0x9F, 0x5E, 0x34, 0x4D, 0x5A, 0x9E, 0x4B, 0xCF, 0x65, 0x09, 0xA7,
        0xF3, 0x97, 0x89, 0xF5, 0x15, 0xAB, 0x8F, 0x92, 0xDD, 0xBC, 0xBD, 0x41, 0x4D, 0x94, 0x0E, 0x93,
        0x32, 0xC4, 0xAE, 0x2C, 0x1F, 0x19, 0x81, 0x19, 0x5F, 0x99, 0x04, 0x46, 0x6A, 0x39, 0xC9, 0x94,
        0x8F, 0xE3, 0x0B, 0xBF, 0xF2, 0x66, 0x0B, 0xE1, 0x71, 0x5A, 0x45, 0x89, 0x33, 0x4C, 0x74, 0xC7,
        0xBC, 0x37, 0x36, 0xA2, 0xF4, 0xF6, 0x77, 0x9C, 0x59, 0xBD, 0xCE, 0xE3, 0x6B, 0x69, 0x21, 0x53,
        0xD0, 0xA9, 0x87, 0x7C, 0xC6, 0x2A, 0x47, 0x40, 0x02, 0xDF, 0x32, 0xE5, 0x21, 0x39, 0xF0, 0xA0};
    if (!id) {
        id = default_id;
        id_len = sizeof default_id;
    }
    uint8_t entl[2] = {(uint8_t)(id_len * 8 >> 8), (uint8_t)(id_len * 8)};
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool good = context && EVP_DigestInit_ex2(context, m->digests[DIGEST_SM3], NULL) == 1 &&
                EVP_DigestUpdate(context, entl, sizeof entl) == 1 &&
                EVP_DigestUpdate(context, id, id_len) == 1 &&
                EVP_DigestUpdate(context, curve, sizeof curve) == 1 &&
                EVP_DigestUpdate(context, point, 64) == 1 && EVP_DigestFinal_ex(context, z, NULL) == 1;
    EVP_MD_CTX_free(context);
    return good ? CKR_OK : CKR_GENERAL_ERROR;
}

/* ---- the operation ---- */

void signing_end(struct signing *op) {
    if (!op->mechanism)
        return;
    EVP_MD_CTX_free(op->digest);
    parameters_free(&op->parameters);
    material_release(op->material);
    object_release(op->key);
    *op = (struct signing){0};
}

/* HMAC as a digest of its own would need a second context type; libcrypto's MAC through EVP_DigestSign serves
 * both. */
static CK_RV hmac_start(struct module *m, struct signing *op) {
    EVP_PKEY *key =
        EVP_PKEY_new_raw_private_key_ex(NULL, "HMAC", NULL, op->material->secret, op->material->secret_len);
    op->digest = EVP_MD_CTX_new();
    bool good = key && op->digest &&
                EVP_DigestSignInit(op->digest, NULL, m->digests[op->mechanism->digest], NULL, key) == 1;
    EVP_PKEY_free(key);
    return good ? CKR_OK : CKR_HOST_MEMORY;
}

/* Begin a message: an empty digest, or one that has taken Z. */
CK_RV signing_restart(struct module *m, struct signing *op) {
    op->updated = op->message_open = false;
    if (op->mechanism->scheme == SCHEME_HMAC) {
        EVP_MD_CTX_free(op->digest);
        return hmac_start(m, op);
    }
    if (op->mechanism->digest == DIGEST_NONE)
        return CKR_OK;
    if (!op->digest && !(op->digest = EVP_MD_CTX_new()))
        return CKR_HOST_MEMORY;
    bool good = EVP_DigestInit_ex2(op->digest, m->digests[op->mechanism->digest], NULL) == 1;
    if (good && op->mechanism->scheme == SCHEME_SM2)
        good = EVP_DigestUpdate(op->digest, op->z, sizeof op->z) == 1;
    return good ? CKR_OK : CKR_GENERAL_ERROR;
}

CK_RV signing_begin(struct module *m, struct session *s, struct signing *op, const CK_MECHANISM *given,
                    CK_OBJECT_HANDLE key, CK_FLAGS use) {
    if (!given) { /* 3.0: an initialisation without a mechanism cancels the operation */
        CK_RV cancelled = op->mechanism ? CKR_OK : CKR_ARGUMENTS_BAD;
        signing_end(op);
        return cancelled;
    }
    if (op->mechanism)
        return CKR_OPERATION_ACTIVE;
    struct signing next = {.mechanism = mechanism_find(given->mechanism, use)};
    if (!next.mechanism)
        return CKR_MECHANISM_INVALID;
    CK_ATTRIBUTE_TYPE usage = use & (CKF_SIGN | CKF_MESSAGE_SIGN) ? CKA_SIGN : CKA_VERIFY;
    CK_RV rv = mechanism_parameters(m, next.mechanism, given, &next.parameters);
    if (rv == CKR_OK)
        rv = key_open(m, s, key, usage, next.mechanism, &next.key, &next.material);
    if (rv == CKR_OK && next.mechanism->scheme == SCHEME_SM2 && next.mechanism->digest != DIGEST_NONE)
        rv = signing_sm2_z(m, next.material->point, next.parameters.id, next.parameters.id_len, next.z);
    if (rv == CKR_OK)
        rv = signing_restart(m, &next);
    if (rv == CKR_OK)
        *op = next;
    else
        signing_end(&next);
    return rv;
}

size_t signing_length(const struct signing *op) {
    switch (op->mechanism->scheme) {
    case SCHEME_RSA_PKCS1:
    case SCHEME_RSA_PSS:
        return (size_t)EVP_PKEY_get_size(op->material->pkey);
    case SCHEME_HMAC:
        return op->mechanism->digest == DIGEST_SHA256 ? 32 : op->mechanism->digest == DIGEST_SHA384 ? 48 : 64;
    default:
        return 64;
    }
}

CK_RV signing_update(struct module *m, struct signing *op, const uint8_t *in, size_t len) {
    (void)m;
    if (len > SIGNING_MESSAGE_MAX)
        return CKR_DATA_LEN_RANGE;
    if (op->mechanism->digest == DIGEST_NONE)
        return CKR_FUNCTION_NOT_SUPPORTED; /* a mechanism of one part: the caller hashes */
    op->updated = true;
    bool hmac = op->mechanism->scheme == SCHEME_HMAC;
    bool good = !len || (hmac ? EVP_DigestSignUpdate(op->digest, in, len)
                              : EVP_DigestUpdate(op->digest, in, len)) == 1;
    return good ? CKR_OK : CKR_GENERAL_ERROR;
}

/* What the primitive gets: the digest, or the caller's own value. */
CK_RV signing_input(struct signing *op, const uint8_t *in, size_t len, uint8_t value[SIGNING_INPUT_MAX],
                    size_t *value_len) {
    unsigned digest_len = 0;
    if (op->mechanism->digest != DIGEST_NONE) {
        if (len && EVP_DigestUpdate(op->digest, in, len) != 1)
            return CKR_GENERAL_ERROR;
        if (EVP_DigestFinal_ex(op->digest, value, &digest_len) != 1)
            return CKR_GENERAL_ERROR;
        *value_len = digest_len;
        return CKR_OK;
    }
    size_t modulus_len =
        op->mechanism->family == FAMILY_RSA ? (size_t)EVP_PKEY_get_size(op->material->pkey) : 0;
    switch (op->mechanism->scheme) {
    case SCHEME_SM2:
        if (len != 32)
            return CKR_DATA_LEN_RANGE;
        break;
    case SCHEME_ECDSA:
        if (len < 1 || len > 64) /* what a hash can give; ECDSA uses the leftmost 32 bytes */
            return CKR_DATA_LEN_RANGE;
        break;
    case SCHEME_RSA_PSS:
        if (len != (size_t)EVP_MD_get_size(op->parameters.pss_digest))
            return CKR_DATA_LEN_RANGE;
        break;
    default:
        if (len > modulus_len - 11)
            return CKR_DATA_LEN_RANGE;
    }
    if (len)
        memcpy(value, in, len);
    *value_len = len;
    return CKR_OK;
}

bool signing_rsa_settings(struct module *m, const struct signing *op, EVP_PKEY_CTX *context) {
    if (op->mechanism->scheme == SCHEME_RSA_PSS)
        return EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PSS_PADDING) == 1 &&
               EVP_PKEY_CTX_set_signature_md(context, op->parameters.pss_digest) == 1 &&
               EVP_PKEY_CTX_set_rsa_mgf1_md(context, op->parameters.pss_mgf) == 1 &&
               EVP_PKEY_CTX_set_rsa_pss_saltlen(context, op->parameters.pss_salt_len) == 1;
    return EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PADDING) == 1 &&
           (op->mechanism->digest == DIGEST_NONE ||
            EVP_PKEY_CTX_set_signature_md(context, m->digests[op->mechanism->digest]) == 1);
}

static bool primitive_sign(struct module *m, const struct signing *op, const uint8_t *value, size_t value_len,
                           uint8_t *out) {
    if (op->mechanism->scheme == SCHEME_SM2)
        return m->engine->sign(op->material->sm2, value, out);
    uint8_t der[80];
    bool rsa = op->mechanism->family == FAMILY_RSA;
    size_t len = rsa ? (size_t)EVP_PKEY_get_size(op->material->pkey) : sizeof der;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, op->material->pkey, NULL);
    bool good = context && EVP_PKEY_sign_init(context) == 1 &&
                (!rsa || signing_rsa_settings(m, op, context)) &&
                EVP_PKEY_sign(context, rsa ? out : der, &len, value, value_len) == 1 &&
                (rsa || curve_signature_from_der(der, len, out));
    EVP_PKEY_CTX_free(context);
    return good;
}

/* What the plan does to a signature that is about to be made (before) or has been made and traced (after). */
CK_RV signing_fault(struct module *m, bool after, struct fault *fault, uint8_t *signature, size_t len) {
    if (!m->faults.on)
        return CKR_OK;
    if (!after)
        *fault = fault_next(&m->faults, CALL_signature, NULL);
    switch (fault->action) {
    case FAULT_FAIL:
        return fault->rv; /* before: not made; so it never comes to `after` */
    case FAULT_LOSE:
        return after ? fault->rv : CKR_OK;
    case FAULT_DELAY:
        if (!after)
            timing_wait_until(timing_now() + fault->amount * 1000000U);
        break;
    case FAULT_HANG:
    case FAULT_HANG_AFTER:
        while (after == (fault->action == FAULT_HANG_AFTER))
            pause();
        break;
    case FAULT_CRASH:
    case FAULT_CRASH_AFTER:
        if (after == (fault->action == FAULT_CRASH_AFTER))
            kill(getpid(), SIGKILL);
        break;
    case FAULT_CORRUPT:
        if (after)
            signature[len - 1] ^= 1;
        break;
    default:
        break;
    }
    return CKR_OK;
}

/* Make the signature, `signing_length` bytes, over what the digest holds and `in`. The operation is spent. */
CK_RV signing_compute(struct module *m, struct signing *op, const uint8_t *in, size_t len, uint8_t *out) {
    uint8_t value[SIGNING_INPUT_MAX];
    size_t value_len = 0, out_len = signing_length(op);
    struct fault fault = {0};
    if (len > SIGNING_MESSAGE_MAX)
        return CKR_DATA_LEN_RANGE;
    if (op->mechanism->scheme == SCHEME_HMAC) {
        bool good = (!len || EVP_DigestSignUpdate(op->digest, in, len) == 1) &&
                    EVP_DigestSignFinal(op->digest, out, &out_len) == 1;
        return good ? CKR_OK : CKR_GENERAL_ERROR;
    }
    CK_RV rv = signing_input(op, in, len, value, &value_len);
    uint64_t done_at_ns = 0;
    if (rv == CKR_OK)
        rv = signing_fault(m, false, &fault, NULL, 0);
    if (rv == CKR_OK && m->timing.service_ns)
        done_at_ns = timing_book(&m->timing, timing_now(), 1);
    if (rv == CKR_OK && !primitive_sign(m, op, value, value_len, out))
        rv = CKR_DEVICE_ERROR;
    if (rv == CKR_OK) {
        const struct attribute *id = attributes_find(&op->key->attributes, CKA_ID);
        /* A signature that cannot be traced does not leave. */
        if (!trace_signatures(&m->trace, id ? id->value : NULL, id ? id->len : 0, op->mechanism->type, value,
                              value_len, 1))
            rv = CKR_DEVICE_ERROR;
    }
    if (rv == CKR_OK)
        rv = signing_fault(m, true, &fault, out, out_len);
    if (done_at_ns)
        timing_wait_until(done_at_ns);
    if (rv != CKR_OK)
        memset(out, 0, out_len);
    return rv;
}

/* ---- C_Sign and its parts ---- */

/* Length queries and short buffers leave the operation as it is; everything else ends it. */
static CK_RV room_for(const struct signing *op, const uint8_t *out, CK_ULONG *out_len, bool *query) {
    size_t need = signing_length(op);
    CK_RV rv = out && *out_len < need ? CKR_BUFFER_TOO_SMALL : CKR_OK;
    *query = !out || rv != CKR_OK;
    *out_len = need;
    return rv;
}

static CK_RV sign(struct module *m, struct session *s, const uint8_t *in, size_t len, uint8_t *out,
                  CK_ULONG *out_len) {
    bool query;
    if (!s->sign.mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (s->sign.updated)
        return CKR_OPERATION_ACTIVE; /* begun in parts, to be ended by C_SignFinal */
    CK_RV rv = room_for(&s->sign, out, out_len, &query);
    if (query)
        return rv;
    rv = signing_compute(m, &s->sign, in, len, out);
    signing_end(&s->sign);
    return rv;
}

CK_RV C_SignInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    SESSION_SHIM(C_SignInit, true, signing_begin(call.module, s, &s->sign, mechanism, key, CKF_SIGN));
}

CK_RV C_Sign(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out,
             CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_Sign, (in || !in_len) && out_len, sign(call.module, s, in, in_len, out, out_len));
}

static CK_RV sign_update(struct module *m, struct session *s, const uint8_t *in, size_t len) {
    if (!s->sign.mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    CK_RV rv = signing_update(m, &s->sign, in, len);
    if (rv != CKR_OK)
        signing_end(&s->sign);
    return rv;
}

CK_RV C_SignUpdate(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len) {
    SESSION_SHIM(C_SignUpdate, in || !in_len, sign_update(call.module, s, in, in_len));
}

static CK_RV sign_final(struct module *m, struct session *s, uint8_t *out, CK_ULONG *out_len) {
    bool query;
    if (!s->sign.mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (s->sign.mechanism->digest == DIGEST_NONE) {
        signing_end(&s->sign);
        return CKR_FUNCTION_NOT_SUPPORTED;
    }
    CK_RV rv = room_for(&s->sign, out, out_len, &query);
    if (query)
        return rv;
    rv = signing_compute(m, &s->sign, NULL, 0, out);
    signing_end(&s->sign);
    return rv;
}

CK_RV C_SignFinal(CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_SignFinal, out_len, sign_final(call.module, s, out, out_len));
}

CK_RV C_SignRecoverInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    (void)key;
    SESSION_SHIM(C_SignRecoverInit, mechanism, CKR_FUNCTION_NOT_SUPPORTED);
}

CK_RV C_SignRecover(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out,
                    CK_ULONG_PTR out_len) {
    (void)in, (void)in_len, (void)out, (void)out_len;
    SESSION_SHIM(C_SignRecover, true, CKR_FUNCTION_NOT_SUPPORTED);
}
