/* Key management: generating, wrapping, unwrapping. Nothing is derived. */
#include "module.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

enum { GENERIC_LEN_MAX = 512, WRAPPED_LEN_MAX = 8192 /* an RSA-4096 key in PKCS#8 takes 2,400 bytes */ };

static CK_KEY_TYPE default_key_type(CK_MECHANISM_TYPE mechanism) {
    switch (mechanism) {
    case CKM_SM2_KEY_PAIR_GEN:
        return CKK_SM2;
    case CKM_EC_KEY_PAIR_GEN:
        return CKK_EC;
    case CKM_RSA_PKCS_KEY_PAIR_GEN:
        return CKK_RSA;
    case CKM_AES_KEY_GEN:
        return CKK_AES;
    case CKM_SM4_KEY_GEN:
        return CKK_SM4;
    default:
        return CKK_GENERIC_SECRET;
    }
}

/* What generation knows and no template may say. */
static bool mark_generated(struct attributes *attributes, CK_MECHANISM_TYPE mechanism, bool guarded) {
    bool good = attributes_set_bool(attributes, CKA_LOCAL, true) &&
                attributes_set_ulong(attributes, CKA_KEY_GEN_MECHANISM, mechanism);
    if (good && guarded)
        good = attributes_set_bool(attributes, CKA_ALWAYS_SENSITIVE,
                                   attributes_bool(attributes, CKA_SENSITIVE)) &&
               attributes_set_bool(attributes, CKA_NEVER_EXTRACTABLE,
                                   !attributes_bool(attributes, CKA_EXTRACTABLE));
    return good;
}

static CK_RV generate_key(struct module *m, struct session *s, const CK_MECHANISM *given,
                          const CK_ATTRIBUTE *template, CK_ULONG count, CK_OBJECT_HANDLE *handle) {
    const struct mechanism *mechanism = mechanism_find(given->mechanism, CKF_GENERATE);
    struct attributes attributes = {0};
    struct parameters parameters;
    uint8_t value[GENERIC_LEN_MAX];
    if (!mechanism)
        return CKR_MECHANISM_INVALID;
    CK_RV rv = mechanism_parameters(m, mechanism, given, &parameters);
    if (rv == CKR_OK)
        rv = template_build(ORIGIN_GENERATE, CKO_SECRET_KEY, default_key_type(given->mechanism), template,
                            count, &attributes);
    const struct attribute *len_given = attributes_find(&attributes, CKA_VALUE_LEN);
    CK_ULONG len = attributes_ulong(&attributes, CKA_VALUE_LEN, mechanism->family == FAMILY_SM4 ? 16 : 0);
    if (rv == CKR_OK && mechanism->family != FAMILY_SM4 && !len_given)
        rv = CKR_TEMPLATE_INCOMPLETE;
    if (rv == CKR_OK && (len < mechanism->min_size || len > mechanism->max_size ||
                         (mechanism->family == FAMILY_AES && len % 8)))
        rv = CKR_ATTRIBUTE_VALUE_INVALID;
    if (rv == CKR_OK)
        rv = object_check_writable(s, &attributes);
    if (rv == CKR_OK &&
        (RAND_priv_bytes(value, (int)len) != 1 || !attributes_set(&attributes, CKA_VALUE, value, len) ||
         !mark_generated(&attributes, given->mechanism, true)))
        rv = CKR_HOST_MEMORY;
    OPENSSL_cleanse(value, sizeof value);
    if (rv == CKR_OK)
        rv = key_complete(m, &attributes);
    if (rv == CKR_OK)
        return object_publish(m, s, &attributes, handle);
    attributes_free(&attributes);
    return rv;
}

CK_RV C_GenerateKey(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_ATTRIBUTE_PTR attributes,
                    CK_ULONG count, CK_OBJECT_HANDLE_PTR key) {
    SESSION_SHIM(C_GenerateKey, mechanism && (attributes || !count) && key,
                 generate_key(call.module, s, mechanism, attributes, count, key));
}

/* ---- key pairs ---- */

static EVP_PKEY *rsa_generate(const struct attributes *public_key, CK_RV *rv) {
    const struct attribute *given = attributes_find(public_key, CKA_PUBLIC_EXPONENT);
    CK_ULONG bits = attributes_ulong(public_key, CKA_MODULUS_BITS, 0);
    EVP_PKEY *pkey = NULL;
    BIGNUM *exponent = BN_new();
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    *rv = CKR_ATTRIBUTE_VALUE_INVALID;
    if (bits < 2048 || bits > 4096) {
        *rv = CKR_KEY_SIZE_RANGE;
        goto done;
    }
    if (bits % 64 || (given && (given->len == 0 || given->len > 8)))
        goto done;
    if (!exponent || !context ||
        (given ? !BN_bin2bn(given->value, (int)given->len, exponent) : BN_set_word(exponent, RSA_F4) != 1)) {
        *rv = CKR_HOST_MEMORY;
        goto done;
    }
    /* Small exponents and even ones: refused here, libcrypto would search for ever on some. */
    if (!BN_is_odd(exponent) || BN_num_bits(exponent) < 17)
        goto done;
    *rv = EVP_PKEY_keygen_init(context) == 1 && EVP_PKEY_CTX_set_rsa_keygen_bits(context, (int)bits) == 1 &&
                  EVP_PKEY_CTX_set1_rsa_keygen_pubexp(context, exponent) == 1 &&
                  EVP_PKEY_generate(context, &pkey) == 1
              ? CKR_OK
              : CKR_GENERAL_ERROR;
done:
    BN_free(exponent);
    EVP_PKEY_CTX_free(context);
    return pkey;
}

static CK_RV generate_numbers(const struct mechanism *mechanism, const struct attributes *public_key,
                              EVP_PKEY **pkey) {
    CK_RV rv = CKR_OK;
    if (mechanism->family == FAMILY_RSA) {
        *pkey = rsa_generate(public_key, &rv);
        return rv;
    }
    enum family family = object_family(public_key);
    if (family != FAMILY_P256 && family != FAMILY_SM2)
        return key_curve_error(public_key);
    *pkey = key_generate_ec(family == FAMILY_SM2);
    return *pkey ? CKR_OK : CKR_GENERAL_ERROR;
}

static CK_RV generate_key_pair(struct module *m, struct session *s, const CK_MECHANISM *given,
                               const CK_ATTRIBUTE *public_template, CK_ULONG public_count,
                               const CK_ATTRIBUTE *private_template, CK_ULONG private_count,
                               CK_OBJECT_HANDLE *public_handle, CK_OBJECT_HANDLE *private_handle) {
    static const CK_BYTE sm2_params[] = {0x06, 0x08, 0x2A, 0x81, 0x1C, 0xCF, 0x55, 0x01, 0x82, 0x2D};
    const struct mechanism *mechanism = mechanism_find(given->mechanism, CKF_GENERATE_KEY_PAIR);
    struct attributes public_key = {0}, private_key = {0};
    struct parameters parameters;
    EVP_PKEY *pkey = NULL;
    CK_ATTRIBUTE *with_curve = NULL;
    if (!mechanism)
        return CKR_MECHANISM_INVALID;
    CK_KEY_TYPE type = default_key_type(given->mechanism);
    CK_RV rv = mechanism_parameters(m, mechanism, given, &parameters);
    bool curve_given = false;
    for (CK_ULONG i = 0; i < public_count; i++)
        curve_given |= public_template[i].type == CKA_EC_PARAMS;
    if (rv == CKR_OK && type == CKK_SM2 && !curve_given) {
        /* The vendors' mechanism knows its curve; only the standard's needs to be told. */
        with_curve = calloc(public_count + 1, sizeof *with_curve);
        if (!with_curve)
            return CKR_HOST_MEMORY;
        if (public_count)
            memcpy(with_curve, public_template, public_count * sizeof *with_curve);
        with_curve[public_count++] = (CK_ATTRIBUTE){CKA_EC_PARAMS, (void *)sm2_params, sizeof sm2_params};
        public_template = with_curve;
    }
    if (rv == CKR_OK)
        rv =
            template_build(ORIGIN_GENERATE, CKO_PUBLIC_KEY, type, public_template, public_count, &public_key);
    if (rv == CKR_OK)
        rv = template_build(ORIGIN_GENERATE, CKO_PRIVATE_KEY, type, private_template, private_count,
                            &private_key);
    if (rv == CKR_OK)
        rv = object_check_writable(s, &public_key);
    if (rv == CKR_OK)
        rv = object_check_writable(s, &private_key);
    if (rv == CKR_OK)
        rv = generate_numbers(mechanism, &public_key, &pkey);
    if (rv == CKR_OK && !(mark_generated(&public_key, given->mechanism, false) &&
                          mark_generated(&private_key, given->mechanism, true)))
        rv = CKR_HOST_MEMORY;
    if (rv == CKR_OK)
        rv = key_attributes_from_pkey(pkey, CKO_PUBLIC_KEY, &public_key);
    if (rv == CKR_OK)
        rv = key_attributes_from_pkey(pkey, CKO_PRIVATE_KEY, &private_key);
    EVP_PKEY_free(pkey);
    free(with_curve);
    if (rv == CKR_OK)
        rv = key_complete(m, &public_key);
    if (rv == CKR_OK)
        rv = key_complete(m, &private_key);
    /* The private key first: a crash in between leaves a private key whose public half can be read from its
     * CKA_PUBLIC_KEY_INFO, and nothing was reported created. */
    if (rv == CKR_OK)
        rv = object_publish(m, s, &private_key, private_handle);
    if (rv == CKR_OK) {
        rv = object_publish(m, s, &public_key, public_handle);
        if (rv != CKR_OK)
            object_discard(m, s, *private_handle);
    }
    attributes_free(&public_key);
    attributes_free(&private_key);
    return rv;
}

CK_RV C_GenerateKeyPair(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism,
                        CK_ATTRIBUTE_PTR public_attributes, CK_ULONG public_count,
                        CK_ATTRIBUTE_PTR private_attributes, CK_ULONG private_count,
                        CK_OBJECT_HANDLE_PTR public_key, CK_OBJECT_HANDLE_PTR private_key) {
    SESSION_SHIM(C_GenerateKeyPair,
                 mechanism && (public_attributes || !public_count) &&
                     (private_attributes || !private_count) && public_key && private_key,
                 generate_key_pair(call.module, s, mechanism, public_attributes, public_count,
                                   private_attributes, private_count, public_key, private_key));
}

/* ---- wrapping ---- */

/* Secret keys are wrapped as they are, private keys as PKCS#8. Caller wipes and frees. */
static bool wrappable(const struct object *key, const struct material *material, uint8_t **plain,
                      size_t *len) {
    if (key->class == CKO_SECRET_KEY) {
        *plain = malloc(material->secret_len);
        if (*plain)
            memcpy(*plain, material->secret, *len = material->secret_len);
        return *plain != NULL;
    }
    uint8_t *der = NULL;
    PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(material->pkey);
    int der_len = info ? i2d_PKCS8_PRIV_KEY_INFO(info, &der) : -1;
    PKCS8_PRIV_KEY_INFO_free(info); /* libcrypto clears the octets inside */
    bool good = der_len > 0 && (*plain = malloc((size_t)der_len)) != NULL;
    if (good)
        memcpy(*plain, der, *len = (size_t)der_len);
    if (der_len > 0)
        OPENSSL_clear_free(der, (size_t)der_len);
    return good;
}

/* One pass of a wrapping cipher; `out` has room for in_len + 32 bytes. */
static bool cipher_pass(const struct mechanism *mechanism, const struct material *key, const uint8_t iv[16],
                        bool encrypt, const uint8_t *in, size_t in_len, uint8_t *out, size_t *out_len) {
    int first = 0, rest = 0;
    bool by_wrap = mechanism->scheme == SCHEME_KEY_WRAP || mechanism->scheme == SCHEME_KEY_WRAP_PAD;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    if (context && by_wrap)
        EVP_CIPHER_CTX_set_flags(context, EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
    bool good = context &&
                EVP_CipherInit_ex(context, mechanism_cipher(mechanism, key->secret_len), NULL, key->secret,
                                  by_wrap ? NULL : iv, encrypt) == 1 &&
                EVP_CipherUpdate(context, out, &first, in, (int)in_len) == 1 &&
                EVP_CipherFinal_ex(context, out + first, &rest) == 1;
    EVP_CIPHER_CTX_free(context);
    *out_len = (size_t)(first + rest);
    return good;
}

static CK_RV may_leave(const struct object *wrapping, const struct object *key) {
    if (key->class != CKO_SECRET_KEY && key->class != CKO_PRIVATE_KEY)
        return CKR_KEY_NOT_WRAPPABLE;
    if (!attributes_bool(&key->attributes, CKA_EXTRACTABLE))
        return CKR_KEY_UNEXTRACTABLE;
    if (attributes_bool(&key->attributes, CKA_WRAP_WITH_TRUSTED) &&
        !attributes_bool(&wrapping->attributes, CKA_TRUSTED))
        return CKR_KEY_NOT_WRAPPABLE;
    return CKR_OK;
}

static CK_RV as_wrapping_key_error(CK_RV rv, bool wrapping) {
    switch (rv) {
    case CKR_KEY_HANDLE_INVALID:
        return wrapping ? CKR_WRAPPING_KEY_HANDLE_INVALID : CKR_UNWRAPPING_KEY_HANDLE_INVALID;
    case CKR_KEY_TYPE_INCONSISTENT:
        return wrapping ? CKR_WRAPPING_KEY_TYPE_INCONSISTENT : CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT;
    default:
        return rv;
    }
}

static CK_RV wrap_key(struct module *m, struct session *s, const CK_MECHANISM *given,
                      CK_OBJECT_HANDLE wrapping_handle, CK_OBJECT_HANDLE key_handle, uint8_t *out,
                      CK_ULONG *out_len) {
    const struct mechanism *mechanism = mechanism_find(given->mechanism, CKF_WRAP);
    struct object *wrapping = NULL, *key = NULL;
    struct material *wrapping_material = NULL, *material = NULL;
    struct parameters parameters;
    uint8_t *plain = NULL, wrapped[WRAPPED_LEN_MAX + 32];
    size_t len = 0, wrapped_len = 0;
    if (!mechanism)
        return CKR_MECHANISM_INVALID;
    CK_RV rv = mechanism_parameters(m, mechanism, given, &parameters);
    if (rv == CKR_OK)
        rv = as_wrapping_key_error(
            key_open(m, s, wrapping_handle, CKA_WRAP, mechanism, &wrapping, &wrapping_material), true);
    if (rv == CKR_OK && !(key = object_find(m, s, key_handle)))
        rv = CKR_KEY_HANDLE_INVALID;
    if (rv == CKR_OK)
        rv = may_leave(wrapping, key);
    object_release(key);
    key = NULL;
    if (rv == CKR_OK)
        rv = key_open(m, s, key_handle, 0, NULL, &key, &material);
    if (rv == CKR_OK && (!wrappable(key, material, &plain, &len) || len > WRAPPED_LEN_MAX))
        rv = CKR_HOST_MEMORY;
    if (rv == CKR_OK && mechanism->scheme == SCHEME_KEY_WRAP && (len % 8 || len < 16))
        rv = CKR_KEY_SIZE_RANGE;
    if (rv == CKR_OK &&
        !cipher_pass(mechanism, wrapping_material, parameters.iv, true, plain, len, wrapped, &wrapped_len))
        rv = CKR_FUNCTION_FAILED;
    if (plain)
        OPENSSL_cleanse(plain, len);
    free(plain);
    if (rv == CKR_OK && out && *out_len < wrapped_len)
        rv = CKR_BUFFER_TOO_SMALL;
    if (rv == CKR_OK && out)
        memcpy(out, wrapped, wrapped_len);
    if (rv == CKR_OK || rv == CKR_BUFFER_TOO_SMALL)
        *out_len = wrapped_len;
    material_release(material);
    material_release(wrapping_material);
    object_release(key);
    object_release(wrapping);
    return rv;
}

CK_RV C_WrapKey(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE wrapping_key,
                CK_OBJECT_HANDLE key, CK_BYTE_PTR wrapped, CK_ULONG_PTR wrapped_len) {
    SESSION_SHIM(C_WrapKey, mechanism && wrapped_len,
                 wrap_key(call.module, s, mechanism, wrapping_key, key, wrapped, wrapped_len));
}

static CK_RV read_unwrapped(CK_OBJECT_CLASS class, const uint8_t *plain, size_t len,
                            struct attributes *attributes) {
    if (class == CKO_SECRET_KEY) {
        const struct attribute *given = attributes_find(attributes, CKA_VALUE_LEN);
        CK_ULONG wanted = attributes_ulong(attributes, CKA_VALUE_LEN, len);
        if (given && wanted != len)
            return CKR_WRAPPED_KEY_LEN_RANGE;
        return attributes_set(attributes, CKA_VALUE, plain, len) ? CKR_OK : CKR_HOST_MEMORY;
    }
    const uint8_t *at = plain;
    PKCS8_PRIV_KEY_INFO *info = d2i_PKCS8_PRIV_KEY_INFO(NULL, &at, (long)len);
    EVP_PKEY *pkey = info && at == plain + len ? EVP_PKCS82PKEY(info) : NULL;
    PKCS8_PRIV_KEY_INFO_free(info);
    CK_RV rv = pkey ? key_attributes_from_pkey(pkey, class, attributes) : CKR_WRAPPED_KEY_INVALID;
    EVP_PKEY_free(pkey);
    return rv;
}

static CK_RV unwrap_key(struct module *m, struct session *s, const CK_MECHANISM *given,
                        CK_OBJECT_HANDLE handle, const uint8_t *wrapped, size_t wrapped_len,
                        const CK_ATTRIBUTE *template, CK_ULONG count, CK_OBJECT_HANDLE *result) {
    const struct mechanism *mechanism = mechanism_find(given->mechanism, CKF_UNWRAP);
    struct object *unwrapping = NULL;
    struct material *material = NULL;
    struct attributes attributes = {0};
    struct parameters parameters;
    CK_ULONG class = CK_UNAVAILABLE_INFORMATION, type = CK_UNAVAILABLE_INFORMATION;
    uint8_t plain[WRAPPED_LEN_MAX + 32];
    size_t len = 0;
    if (!mechanism)
        return CKR_MECHANISM_INVALID;
    CK_RV rv = mechanism_parameters(m, mechanism, given, &parameters);
    if (rv == CKR_OK)
        rv = template_check(template, count);
    for (CK_ULONG i = 0; rv == CKR_OK && i < count; i++) {
        CK_ULONG *to = template[i].type == CKA_CLASS      ? &class
                       : template[i].type == CKA_KEY_TYPE ? &type
                                                          : NULL;
        if (to && template[i].ulValueLen != sizeof *to)
            rv = CKR_ATTRIBUTE_VALUE_INVALID;
        else if (to)
            memcpy(to, template[i].pValue, sizeof *to);
    }
    if (rv == CKR_OK && (class == CK_UNAVAILABLE_INFORMATION || type == CK_UNAVAILABLE_INFORMATION))
        rv = CKR_TEMPLATE_INCOMPLETE;
    if (rv == CKR_OK && class != CKO_SECRET_KEY && class != CKO_PRIVATE_KEY)
        rv = CKR_TEMPLATE_INCONSISTENT;
    if (rv == CKR_OK)
        rv = template_build(ORIGIN_UNWRAP, class, type, template, count, &attributes);
    if (rv == CKR_OK)
        rv = object_check_writable(s, &attributes);
    if (rv == CKR_OK)
        rv = as_wrapping_key_error(key_open(m, s, handle, CKA_UNWRAP, mechanism, &unwrapping, &material),
                                   false);
    size_t block = mechanism->scheme == SCHEME_CBC_PAD ? 16 : 8;
    if (rv == CKR_OK && (wrapped_len < 16 || wrapped_len % block || wrapped_len > WRAPPED_LEN_MAX))
        rv = CKR_WRAPPED_KEY_LEN_RANGE;
    if (rv == CKR_OK &&
        !cipher_pass(mechanism, material, parameters.iv, false, wrapped, wrapped_len, plain, &len))
        rv = CKR_WRAPPED_KEY_INVALID;
    if (rv == CKR_OK)
        rv = read_unwrapped(class, plain, len, &attributes);
    OPENSSL_cleanse(plain, sizeof plain);
    if (rv == CKR_OK) {
        rv = key_complete(m, &attributes);
        if (rv == CKR_ATTRIBUTE_VALUE_INVALID)
            rv = CKR_WRAPPED_KEY_INVALID; /* the numbers came out of the wrapping, not out of the template */
    }
    material_release(material);
    object_release(unwrapping);
    if (rv == CKR_OK)
        return object_publish(m, s, &attributes, result);
    attributes_free(&attributes);
    return rv;
}

CK_RV C_UnwrapKey(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE unwrapping_key,
                  CK_BYTE_PTR wrapped, CK_ULONG wrapped_len, CK_ATTRIBUTE_PTR attributes, CK_ULONG count,
                  CK_OBJECT_HANDLE_PTR key) {
    SESSION_SHIM(
        C_UnwrapKey, mechanism && wrapped && (attributes || !count) && key,
        unwrap_key(call.module, s, mechanism, unwrapping_key, wrapped, wrapped_len, attributes, count, key));
}

CK_RV C_DeriveKey(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE base_key,
                  CK_ATTRIBUTE_PTR attributes, CK_ULONG count, CK_OBJECT_HANDLE_PTR key) {
    (void)base_key, (void)attributes, (void)count, (void)key;
    SESSION_SHIM(C_DeriveKey, mechanism, CKR_MECHANISM_INVALID); /* none derives */
}
