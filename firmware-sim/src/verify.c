/* Verifying. libcrypto does it whatever engine signs: it is the strictest at hand, and it is not in a hurry.
 */
#include "curve.h"
#include "module.h"

#include <openssl/crypto.h>
#include <openssl/rsa.h>
#include <string.h>

static bool primitive_verify(struct module *m, const struct signing *op, const uint8_t *value,
                             size_t value_len, const uint8_t *signature, size_t signature_len) {
    uint8_t der[72];
    bool rsa = op->mechanism->family == FAMILY_RSA;
    if (!rsa) {
        signature_len = curve_signature_to_der(signature, der);
        signature = der;
    }
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, op->material->pkey, NULL);
    bool good = context && signature_len && EVP_PKEY_verify_init(context) == 1 &&
                (!rsa || signing_rsa_settings(m, op, context)) &&
                EVP_PKEY_verify(context, signature, signature_len, value, value_len) == 1;
    EVP_PKEY_CTX_free(context);
    return good;
}

CK_RV signing_check(struct module *m, struct signing *op, const uint8_t *in, size_t len,
                    const uint8_t *signature, size_t signature_len) {
    uint8_t value[SIGNING_INPUT_MAX], mac[64];
    size_t value_len = 0, mac_len = sizeof mac;
    if (signature_len != signing_length(op))
        return CKR_SIGNATURE_LEN_RANGE;
    if (len > SIGNING_MESSAGE_MAX)
        return CKR_DATA_LEN_RANGE;
    if (op->mechanism->scheme == SCHEME_HMAC) {
        bool good = (!len || EVP_DigestSignUpdate(op->digest, in, len) == 1) &&
                    EVP_DigestSignFinal(op->digest, mac, &mac_len) == 1;
        return good && CRYPTO_memcmp(mac, signature, signature_len) == 0 ? CKR_OK : CKR_SIGNATURE_INVALID;
    }
    CK_RV rv = signing_input(op, in, len, value, &value_len);
    if (rv == CKR_OK && !primitive_verify(m, op, value, value_len, signature, signature_len))
        rv = CKR_SIGNATURE_INVALID;
    return rv;
}

static CK_RV verify(struct module *m, struct session *s, const uint8_t *in, size_t len,
                    const uint8_t *signature, size_t signature_len) {
    if (!s->verify.mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (s->verify.updated)
        return CKR_OPERATION_ACTIVE;
    CK_RV rv = signing_check(m, &s->verify, in, len, signature, signature_len);
    signing_end(&s->verify);
    return rv;
}

CK_RV C_VerifyInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    SESSION_SHIM(C_VerifyInit, true, signing_begin(call.module, s, &s->verify, mechanism, key, CKF_VERIFY));
}

CK_RV C_Verify(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR signature,
               CK_ULONG signature_len) {
    SESSION_SHIM(C_Verify, (in || !in_len) && signature,
                 verify(call.module, s, in, in_len, signature, signature_len));
}

static CK_RV verify_update(struct module *m, struct session *s, const uint8_t *in, size_t len) {
    if (!s->verify.mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    CK_RV rv = signing_update(m, &s->verify, in, len);
    if (rv != CKR_OK)
        signing_end(&s->verify);
    return rv;
}

CK_RV C_VerifyUpdate(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len) {
    SESSION_SHIM(C_VerifyUpdate, in || !in_len, verify_update(call.module, s, in, in_len));
}

static CK_RV verify_final(struct module *m, struct session *s, const uint8_t *signature,
                          size_t signature_len) {
    if (!s->verify.mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    CK_RV rv = s->verify.mechanism->digest == DIGEST_NONE
                   ? CKR_FUNCTION_NOT_SUPPORTED
                   : signing_check(m, &s->verify, NULL, 0, signature, signature_len);
    signing_end(&s->verify);
    return rv;
}

CK_RV C_VerifyFinal(CK_SESSION_HANDLE session, CK_BYTE_PTR signature, CK_ULONG signature_len) {
    SESSION_SHIM(C_VerifyFinal, signature, verify_final(call.module, s, signature, signature_len));
}

CK_RV C_VerifyRecoverInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    (void)key;
    SESSION_SHIM(C_VerifyRecoverInit, mechanism, CKR_FUNCTION_NOT_SUPPORTED);
}

CK_RV C_VerifyRecover(CK_SESSION_HANDLE session, CK_BYTE_PTR signature, CK_ULONG signature_len,
                      CK_BYTE_PTR out, CK_ULONG_PTR out_len) {
    (void)signature, (void)signature_len, (void)out, (void)out_len;
    SESSION_SHIM(C_VerifyRecover, true, CKR_FUNCTION_NOT_SUPPORTED);
}
