/* Encryption and decryption with AES and SM4, block modes only: what wrapping keys are used for beside
 * wrapping. */
#include "module.h"

#include <string.h>

enum { BLOCK = 16, CIPHER_INPUT_MAX = 1 << 30 /* libcrypto counts in int */ };

void ciphering_end(struct ciphering *op) {
    if (!op->mechanism)
        return;
    EVP_CIPHER_CTX_free(op->context); /* clears the key schedule */
    object_release(op->key);
    *op = (struct ciphering){0};
}

static CK_RV ciphering_begin(struct module *m, struct session *s, struct ciphering *op,
                             const CK_MECHANISM *given, CK_OBJECT_HANDLE key, bool encrypt) {
    if (!given) {
        CK_RV cancelled = op->mechanism ? CKR_OK : CKR_ARGUMENTS_BAD;
        ciphering_end(op);
        return cancelled;
    }
    struct ciphering next = {.mechanism =
                                 mechanism_find(given->mechanism, encrypt ? CKF_ENCRYPT : CKF_DECRYPT)};
    struct material *material = NULL;
    struct parameters parameters;
    if (op->mechanism)
        return CKR_OPERATION_ACTIVE;
    if (!next.mechanism)
        return CKR_MECHANISM_INVALID;
    CK_RV rv = mechanism_parameters(m, next.mechanism, given, &parameters);
    if (rv == CKR_OK)
        rv = key_open(m, s, key, encrypt ? CKA_ENCRYPT : CKA_DECRYPT, next.mechanism, &next.key, &material);
    if (rv == CKR_OK) {
        next.context = EVP_CIPHER_CTX_new();
        bool good = next.context &&
                    EVP_CipherInit_ex(next.context, mechanism_cipher(next.mechanism, material->secret_len),
                                      NULL, material->secret, parameters.iv, encrypt) == 1 &&
                    EVP_CIPHER_CTX_set_padding(next.context, next.mechanism->scheme == SCHEME_CBC_PAD) == 1;
        rv = good ? CKR_OK : CKR_HOST_MEMORY;
    }
    material_release(material);
    if (rv == CKR_OK)
        *op = next;
    else
        ciphering_end(&next);
    return rv;
}

static CK_RV length_error(bool encrypt) {
    return encrypt ? CKR_DATA_LEN_RANGE : CKR_ENCRYPTED_DATA_LEN_RANGE;
}

/* An upper bound of what the next `len` bytes and the end give out. */
static size_t room_needed(const struct ciphering *op, bool encrypt, size_t len) {
    size_t all = op->pending + len;
    return op->mechanism->scheme == SCHEME_CBC_PAD && encrypt ? all - all % BLOCK + BLOCK : all;
}

static CK_RV whole(struct ciphering *op, bool encrypt, const uint8_t *in, size_t len, uint8_t *out,
                   CK_ULONG *out_len) {
    int first = 0, rest = 0;
    if (!op->mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (op->updated)
        return CKR_OPERATION_ACTIVE;
    bool padded = op->mechanism->scheme == SCHEME_CBC_PAD;
    if (len > CIPHER_INPUT_MAX || (!(padded && encrypt) && len % BLOCK) || (padded && !encrypt && !len)) {
        ciphering_end(op);
        return length_error(encrypt);
    }
    size_t need = room_needed(op, encrypt, len), room = *out_len;
    if (!out) {
        *out_len = need;
        return CKR_OK;
    }
    if (room < need) {
        /* Decrypting may need up to a block less than that: only trying tells, and a try must not spend the
         * operation. */
        *out_len = need;
        if (!(padded && !encrypt && room + BLOCK >= need))
            return CKR_BUFFER_TOO_SMALL;
    }
    uint8_t *to = out, *spare = NULL;
    if (room < need && !(to = spare = OPENSSL_malloc(need)))
        return CKR_HOST_MEMORY;
    EVP_CIPHER_CTX *copy = spare ? EVP_CIPHER_CTX_new() : NULL;
    if (copy)
        EVP_CIPHER_CTX_copy(copy, op->context);
    bool good = EVP_CipherUpdate(op->context, to, &first, in, (int)len) == 1 &&
                EVP_CipherFinal_ex(op->context, to + first, &rest) == 1;
    size_t given = (size_t)(first + rest);
    CK_RV rv = good ? CKR_OK : encrypt ? CKR_GENERAL_ERROR : CKR_ENCRYPTED_DATA_INVALID;
    if (spare && good && given > room) {
        EVP_CIPHER_CTX_free(op->context);
        op->context = copy;
        copy = NULL;
        rv = CKR_BUFFER_TOO_SMALL;
    } else if (spare && good) {
        memcpy(out, spare, given);
    }
    OPENSSL_clear_free(spare, spare ? need : 0);
    EVP_CIPHER_CTX_free(copy);
    if (rv == CKR_OK || rv == CKR_BUFFER_TOO_SMALL)
        *out_len = given;
    if (rv != CKR_BUFFER_TOO_SMALL)
        ciphering_end(op);
    return rv;
}

static CK_RV part(struct ciphering *op, bool encrypt, const uint8_t *in, size_t len, uint8_t *out,
                  CK_ULONG *out_len) {
    int given = 0;
    if (!op->mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    if (len > CIPHER_INPUT_MAX) {
        ciphering_end(op);
        return length_error(encrypt);
    }
    /* With padding, decrypting holds back the last full block: it may be the padding. */
    size_t all = op->pending + len;
    bool hold = op->mechanism->scheme == SCHEME_CBC_PAD && !encrypt;
    size_t need = hold && all && all % BLOCK == 0 ? all - BLOCK : all - all % BLOCK;
    if (!out || *out_len < need) {
        bool query = !out;
        *out_len = need;
        return query ? CKR_OK : CKR_BUFFER_TOO_SMALL;
    }
    op->updated = true;
    if (len && EVP_CipherUpdate(op->context, out, &given, in, (int)len) != 1) {
        ciphering_end(op);
        return CKR_GENERAL_ERROR;
    }
    op->pending = all - (size_t)given;
    *out_len = (CK_ULONG)given;
    return CKR_OK;
}

static CK_RV end(struct ciphering *op, bool encrypt, uint8_t *out, CK_ULONG *out_len) {
    uint8_t last[2 * BLOCK];
    int given = 0;
    if (!op->mechanism)
        return CKR_OPERATION_NOT_INITIALIZED;
    bool padded = op->mechanism->scheme == SCHEME_CBC_PAD;
    size_t need = padded ? BLOCK : 0;
    if (!padded && op->pending) {
        ciphering_end(op);
        return length_error(encrypt);
    }
    if (padded && !encrypt && op->pending != BLOCK) {
        ciphering_end(op);
        return CKR_ENCRYPTED_DATA_LEN_RANGE;
    }
    if (!out) {
        *out_len = need;
        return CKR_OK;
    }
    if (*out_len < need && encrypt) {
        *out_len = need;
        return CKR_BUFFER_TOO_SMALL;
    }
    EVP_CIPHER_CTX *copy = EVP_CIPHER_CTX_new();
    bool good =
        copy && EVP_CIPHER_CTX_copy(copy, op->context) == 1 && EVP_CipherFinal_ex(copy, last, &given) == 1;
    EVP_CIPHER_CTX_free(copy);
    CK_RV rv = good ? CKR_OK : encrypt ? CKR_GENERAL_ERROR : CKR_ENCRYPTED_DATA_INVALID;
    if (good && *out_len < (CK_ULONG)given)
        rv = CKR_BUFFER_TOO_SMALL;
    else if (good && given)
        memcpy(out, last, (size_t)given);
    if (good)
        *out_len = (CK_ULONG)given;
    OPENSSL_cleanse(last, sizeof last);
    if (rv != CKR_BUFFER_TOO_SMALL)
        ciphering_end(op);
    return rv;
}

CK_RV C_EncryptInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    SESSION_SHIM(C_EncryptInit, true, ciphering_begin(call.module, s, &s->encrypt, mechanism, key, true));
}

CK_RV C_Encrypt(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out,
                CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_Encrypt, (in || !in_len) && out_len, whole(&s->encrypt, true, in, in_len, out, out_len));
}

CK_RV C_EncryptUpdate(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out,
                      CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_EncryptUpdate, (in || !in_len) && out_len,
                 part(&s->encrypt, true, in, in_len, out, out_len));
}

CK_RV C_EncryptFinal(CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_EncryptFinal, out_len, end(&s->encrypt, true, out, out_len));
}

CK_RV C_DecryptInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    SESSION_SHIM(C_DecryptInit, true, ciphering_begin(call.module, s, &s->decrypt, mechanism, key, false));
}

CK_RV C_Decrypt(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out,
                CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_Decrypt, (in || !in_len) && out_len, whole(&s->decrypt, false, in, in_len, out, out_len));
}

CK_RV C_DecryptUpdate(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out,
                      CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_DecryptUpdate, (in || !in_len) && out_len,
                 part(&s->decrypt, false, in, in_len, out, out_len));
}

CK_RV C_DecryptFinal(CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG_PTR out_len) {
    SESSION_SHIM(C_DecryptFinal, out_len, end(&s->decrypt, false, out, out_len));
}

/* ---- dual-function calls: rarely used, and not offered ---- */

#define NOT_OFFERED(name) \
    CK_RV name(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
               CK_ULONG_PTR out_len) { \
        (void)in, (void)in_len, (void)out, (void)out_len; \
        SESSION_SHIM(name, true, CKR_FUNCTION_NOT_SUPPORTED); \
    }
NOT_OFFERED(C_DigestEncryptUpdate)
NOT_OFFERED(C_DecryptDigestUpdate)
NOT_OFFERED(C_SignEncryptUpdate)
NOT_OFFERED(C_DecryptVerifyUpdate)
