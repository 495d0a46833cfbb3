/* Message signing and verifying (3.0): one key, many messages, one call for each.
 *
 * The operation stays open until C_MessageSignFinal; a message that fails is answered as such and leaves the
 * next one to be tried, which is what a batch wants.
 */
#include "module.h"

/* The mechanisms here take no parameter per message. */
#define NO_PARAMETER (!parameter_len)

CK_RV C_MessageSignInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    SESSION_SHIM(C_MessageSignInit, true,
                 signing_begin(call.module, s, &s->message_sign, mechanism, key, CKF_MESSAGE_SIGN));
}

static CK_RV one_signature(struct module *m, struct signing *op, const uint8_t *in, size_t len, uint8_t *out,
                           CK_ULONG *out_len) {
    size_t need = signing_length(op), room = *out_len;
    *out_len = need;
    if (!out)
        return CKR_OK;
    if (room < need)
        return CKR_BUFFER_TOO_SMALL;
    CK_RV rv = signing_compute(m, op, in, len, out);
    CK_RV again = signing_restart(m, op);
    return rv == CKR_OK ? again : rv;
}

static CK_RV sign_message(struct module *m, struct session *s, const uint8_t *in, size_t len, uint8_t *out,
                          CK_ULONG *out_len) {
    if (!s->message_sign.mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (s->message_sign.message_open)
        return CKR_OPERATION_ACTIVE;
    return one_signature(m, &s->message_sign, in, len, out, out_len);
}

CK_RV C_SignMessage(CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR in,
                    CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len) {
    (void)parameter;
    SESSION_SHIM(C_SignMessage, NO_PARAMETER && (in || !in_len) && out_len,
                 sign_message(call.module, s, in, in_len, out, out_len));
}

static CK_RV begin_message(struct signing *op) {
    if (!op->mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (op->message_open)
        return CKR_OPERATION_ACTIVE;
    if (op->mechanism->digest == DIGEST_NONE)
        return CKR_FUNCTION_NOT_SUPPORTED; /* a mechanism of one part */
    op->message_open = true;
    return CKR_OK;
}

CK_RV C_SignMessageBegin(CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len) {
    (void)parameter;
    SESSION_SHIM(C_SignMessageBegin, NO_PARAMETER, begin_message(&s->message_sign));
}

static CK_RV sign_message_next(struct module *m, struct session *s, const uint8_t *in, size_t len,
                               uint8_t *out, CK_ULONG *out_len) {
    struct signing *op = &s->message_sign;
    if (!op->mechanism || !op->message_open)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (!out_len) /* not the last part */
        return signing_update(m, op, in, len);
    return one_signature(m, op, in, len, out, out_len);
}

CK_RV C_SignMessageNext(CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len,
                        CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len) {
    (void)parameter;
    SESSION_SHIM(C_SignMessageNext, NO_PARAMETER && (in || !in_len),
                 sign_message_next(call.module, s, in, in_len, out, out_len));
}

static CK_RV message_final(struct signing *op) {
    if (!op->mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    signing_end(op);
    return CKR_OK;
}

CK_RV C_MessageSignFinal(CK_SESSION_HANDLE session) {
    SESSION_SHIM(C_MessageSignFinal, true, message_final(&s->message_sign));
}

CK_RV C_MessageVerifyInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    SESSION_SHIM(C_MessageVerifyInit, true,
                 signing_begin(call.module, s, &s->message_verify, mechanism, key, CKF_MESSAGE_VERIFY));
}

static CK_RV one_verification(struct module *m, struct signing *op, const uint8_t *in, size_t len,
                              const uint8_t *signature, size_t signature_len) {
    CK_RV rv = signing_check(m, op, in, len, signature, signature_len);
    CK_RV again = signing_restart(m, op);
    return rv == CKR_OK ? again : rv;
}

static CK_RV verify_message(struct module *m, struct session *s, const uint8_t *in, size_t len,
                            const uint8_t *signature, size_t signature_len) {
    if (!s->message_verify.mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (s->message_verify.message_open)
        return CKR_OPERATION_ACTIVE;
    return one_verification(m, &s->message_verify, in, len, signature, signature_len);
}

CK_RV C_VerifyMessage(CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len,
                      CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR signature, CK_ULONG signature_len) {
    (void)parameter;
    SESSION_SHIM(C_VerifyMessage, NO_PARAMETER && (in || !in_len) && signature,
                 verify_message(call.module, s, in, in_len, signature, signature_len));
}

CK_RV C_VerifyMessageBegin(CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len) {
    (void)parameter;
    SESSION_SHIM(C_VerifyMessageBegin, NO_PARAMETER, begin_message(&s->message_verify));
}

static CK_RV verify_message_next(struct module *m, struct session *s, const uint8_t *in, size_t len,
                                 const uint8_t *signature, size_t signature_len) {
    struct signing *op = &s->message_verify;
    if (!op->mechanism || !op->message_open)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (!signature) /* not the last part */
        return signing_update(m, op, in, len);
    return one_verification(m, op, in, len, signature, signature_len);
}

CK_RV C_VerifyMessageNext(CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len,
                          CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR signature, CK_ULONG signature_len) {
    (void)parameter;
    SESSION_SHIM(C_VerifyMessageNext, NO_PARAMETER && (in || !in_len),
                 verify_message_next(call.module, s, in, in_len, signature, signature_len));
}

CK_RV C_MessageVerifyFinal(CK_SESSION_HANDLE session) {
    SESSION_SHIM(C_MessageVerifyFinal, true, message_final(&s->message_verify));
}

/* ---- message encryption: no mechanism here offers it ---- */

#define NOT_OFFERED(name, arguments) \
    CK_RV name arguments { \
        SESSION_SHIM(name, true, CKR_FUNCTION_NOT_SUPPORTED); \
    }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
NOT_OFFERED(C_MessageEncryptInit,
            (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key))
NOT_OFFERED(C_EncryptMessage,
            (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR associated,
             CK_ULONG associated_len, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len))
NOT_OFFERED(C_EncryptMessageBegin, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len,
                                    CK_BYTE_PTR associated, CK_ULONG associated_len))
NOT_OFFERED(C_EncryptMessageNext,
            (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR in,
             CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len, CK_FLAGS flags))
NOT_OFFERED(C_MessageEncryptFinal, (CK_SESSION_HANDLE session))
NOT_OFFERED(C_MessageDecryptInit,
            (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key))
NOT_OFFERED(C_DecryptMessage,
            (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR associated,
             CK_ULONG associated_len, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len))
NOT_OFFERED(C_DecryptMessageBegin, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len,
                                    CK_BYTE_PTR associated, CK_ULONG associated_len))
NOT_OFFERED(C_DecryptMessageNext,
            (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR in,
             CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len, CK_FLAGS flags))
NOT_OFFERED(C_MessageDecryptFinal, (CK_SESSION_HANDLE session))
#pragma GCC diagnostic pop
