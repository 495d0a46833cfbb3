/* Keys: from attributes to something that computes, and back. Every key that enters the token, made here or
 * brought from outside, passes key_complete(): a point off its curve or a number out of range never becomes
 * an object. */
#include "curve.h"
#include "module.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/param_build.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>

enum { RSA_BITS_MIN = 2048, RSA_BITS_MAX = 4096, GENERIC_LEN_MAX = 512 };

enum family object_family(const struct attributes *attributes) {
    const struct attribute *curve = attributes_find(attributes, CKA_EC_PARAMS);
    switch (attributes_ulong(attributes, CKA_KEY_TYPE, CK_UNAVAILABLE_INFORMATION)) {
    case CKK_RSA:
        return FAMILY_RSA;
    case CKK_EC:
        if (curve && curve->len == 10 && memcmp(curve->value, curve_p256_oid, 10) == 0)
            return FAMILY_P256;
        __attribute__((fallthrough));
    case CKK_SM2:
        return curve && curve->len == 10 && memcmp(curve->value, curve_sm2_oid, 10) == 0 ? FAMILY_SM2
                                                                                         : FAMILY_NONE;
    case CKK_AES:
        return FAMILY_AES;
    case CKK_SM4:
        return FAMILY_SM4;
    case CKK_GENERIC_SECRET:
    case CKK_SHA256_HMAC:
    case CKK_SHA384_HMAC:
    case CKK_SHA512_HMAC:
        return FAMILY_GENERIC;
    default:
        return FAMILY_NONE;
    }
}

/* ---- material ---- */

/* The engine that loaded the SM2 form unloads it; it lies in front of the key so that material needs no
 * module. */
struct loaded_material {
    struct material material;
    const struct engine *engine;
};

static struct material *material_new(const struct engine *engine, enum family family) {
    struct loaded_material *loaded = calloc(1, sizeof *loaded);
    if (!loaded)
        return NULL;
    atomic_init(&loaded->material.references, 1);
    loaded->material.family = family;
    loaded->engine = engine;
    return &loaded->material;
}

struct material *material_reference(struct material *material) {
    if (material)
        atomic_fetch_add(&material->references, 1);
    return material;
}

void material_release(struct material *material) {
    if (!material || atomic_fetch_sub(&material->references, 1) != 1)
        return;
    struct loaded_material *loaded = (struct loaded_material *)material;
    EVP_PKEY_free(material->pkey);
    if (material->sm2)
        loaded->engine->unload(material->sm2);
    if (material->secret)
        OPENSSL_cleanse(material->secret, material->secret_len);
    free(material->secret);
    free(loaded);
}

static const struct {
    CK_ATTRIBUTE_TYPE type;
    const char *parameter;
} rsa_numbers[] = {
    {CKA_MODULUS, OSSL_PKEY_PARAM_RSA_N},
    {CKA_PUBLIC_EXPONENT, OSSL_PKEY_PARAM_RSA_E},
    {CKA_PRIVATE_EXPONENT, OSSL_PKEY_PARAM_RSA_D},
    {CKA_PRIME_1, OSSL_PKEY_PARAM_RSA_FACTOR1},
    {CKA_PRIME_2, OSSL_PKEY_PARAM_RSA_FACTOR2},
    {CKA_EXPONENT_1, OSSL_PKEY_PARAM_RSA_EXPONENT1},
    {CKA_EXPONENT_2, OSSL_PKEY_PARAM_RSA_EXPONENT2},
    {CKA_COEFFICIENT, OSSL_PKEY_PARAM_RSA_COEFFICIENT1},
};
enum { RSA_NUMBERS = 8, RSA_PUBLIC_NUMBERS = 2 };

static EVP_PKEY *rsa_key(const struct attributes *attributes, bool private_key) {
    size_t count = private_key ? RSA_NUMBERS : RSA_PUBLIC_NUMBERS;
    BIGNUM *numbers[RSA_NUMBERS] = {0};
    EVP_PKEY *pkey = NULL;
    OSSL_PARAM *parameters = NULL;
    OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new();
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, "RSA", NULL);
    bool good = build && context;
    for (size_t i = 0; i < count && good; i++) {
        const struct attribute *at = attributes_find(attributes, rsa_numbers[i].type);
        good = at && at->len && at->len <= RSA_BITS_MAX / 8 + 1;
        numbers[i] = good ? BN_secure_new() : NULL;
        good = good && numbers[i] && BN_bin2bn(at->value, (int)at->len, numbers[i]) &&
               OSSL_PARAM_BLD_push_BN(build, rsa_numbers[i].parameter, numbers[i]) == 1;
    }
    if (good)
        good = BN_num_bits(numbers[0]) >= RSA_BITS_MIN && BN_num_bits(numbers[0]) <= RSA_BITS_MAX &&
               BN_is_odd(numbers[1]) && BN_num_bits(numbers[1]) > 1 && BN_num_bits(numbers[1]) <= 64;
    if (good)
        good = (parameters = OSSL_PARAM_BLD_to_param(build)) != NULL &&
               EVP_PKEY_fromdata_init(context) == 1 &&
               EVP_PKEY_fromdata(context, &pkey, private_key ? EVP_PKEY_KEYPAIR : EVP_PKEY_PUBLIC_KEY,
                                 parameters) == 1;
    for (size_t i = 0; i < count; i++)
        BN_clear_free(numbers[i]);
    OSSL_PARAM_free(parameters);
    OSSL_PARAM_BLD_free(build);
    EVP_PKEY_CTX_free(context);
    if (!good) {
        EVP_PKEY_free(pkey);
        return NULL;
    }
    return pkey;
}

/* Numbers may come with leading zeros or without. */
static bool number_32(const struct attribute *at, uint8_t out[32]) {
    if (!at || at->len == 0)
        return false;
    size_t skip = at->len > 32 ? at->len - 32 : 0;
    for (size_t i = 0; i < skip; i++)
        if (at->value[i])
            return false;
    memset(out, 0, 32);
    memcpy(out + 32 - (at->len - skip), at->value + skip, at->len - skip);
    return true;
}

/* From all attributes of a key, the secret ones among them. NULL: they make no key. */
static struct material *material_from(const struct engine *engine, const struct attributes *attributes) {
    CK_OBJECT_CLASS class = attributes_ulong(attributes, CKA_CLASS, CK_UNAVAILABLE_INFORMATION);
    enum family family = object_family(attributes);
    struct material *material = material_new(engine, family);
    const struct attribute *value = attributes_find(attributes, CKA_VALUE);
    bool private_key = class == CKO_PRIVATE_KEY, good = false;
    uint8_t d[32];
    if (!material)
        return NULL;
    switch (family) {
    case FAMILY_RSA:
        good = (material->pkey = rsa_key(attributes, private_key)) != NULL;
        break;
    case FAMILY_P256:
    case FAMILY_SM2: {
        bool sm2 = family == FAMILY_SM2;
        const struct attribute *point = attributes_find(attributes, CKA_EC_POINT);
        if (private_key) {
            good = number_32(value, d) && curve_public_from_private(sm2, d, material->point) &&
                   (material->pkey = curve_private_key(sm2, d, material->point)) != NULL;
            if (good && sm2)
                good = (material->sm2 = engine->load(d, material->point)) != NULL;
            OPENSSL_cleanse(d, sizeof d);
        } else {
            good = point && curve_point_from_der(point->value, point->len, material->point) &&
                   (material->pkey = curve_public_key(sm2, material->point)) != NULL;
        }
        break;
    }
    case FAMILY_AES:
        good = value && (value->len == 16 || value->len == 24 || value->len == 32);
        break;
    case FAMILY_SM4:
        good = value && value->len == 16;
        break;
    case FAMILY_GENERIC:
        good = value && value->len >= 1 && value->len <= GENERIC_LEN_MAX;
        break;
    case FAMILY_NONE:
        break;
    }
    if (good && class == CKO_SECRET_KEY) {
        good = (material->secret = malloc(value->len)) != NULL;
        if (good)
            memcpy(material->secret, value->value, material->secret_len = value->len);
    }
    if (!good) {
        material_release(material);
        return NULL;
    }
    return material;
}

/* What is wrong with CKA_EC_PARAMS: not the DER of an object identifier at all, or of a curve that we do not
 * have. */
CK_RV key_curve_error(const struct attributes *attributes) {
    const struct attribute *params = attributes_find(attributes, CKA_EC_PARAMS);
    bool oid = params && params->len >= 3 && params->len < 128 && params->value[0] == 0x06 &&
               params->value[1] == params->len - 2 && params->value[params->len - 1] < 0x80;
    return oid ? CKR_CURVE_NOT_SUPPORTED : CKR_DOMAIN_PARAMS_INVALID;
}

/* ---- entering the token ---- */

static bool set_public_key_info(struct attributes *attributes, EVP_PKEY *pkey, bool *mismatch) {
    uint8_t *der = NULL;
    int len = i2d_PUBKEY(pkey, &der);
    const struct attribute *given = attributes_find(attributes, CKA_PUBLIC_KEY_INFO);
    *mismatch = len > 0 && given && given->len &&
                (given->len != (size_t)len || memcmp(given->value, der, given->len) != 0);
    bool good = len > 0 && attributes_set(attributes, CKA_PUBLIC_KEY_INFO, der, (size_t)len);
    OPENSSL_free(der);
    return good;
}

static bool set_check_value(struct module *m, struct attributes *attributes, const struct material *material,
                            bool *mismatch) {
    uint8_t block[64] = {0}, value[64];
    int len = 0;
    bool good;
    if (material->family == FAMILY_GENERIC) {
        good = EVP_Digest(material->secret, material->secret_len, value, NULL, m->digests[DIGEST_SHA1],
                          NULL) == 1;
    } else {
        const struct mechanism ecb = {.scheme = SCHEME_ECB, .family = material->family};
        EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
        good = context &&
               EVP_EncryptInit_ex(context, mechanism_cipher(&ecb, material->secret_len), NULL,
                                  material->secret, NULL) == 1 &&
               EVP_EncryptUpdate(context, value, &len, block, 16) == 1;
        EVP_CIPHER_CTX_free(context);
    }
    const struct attribute *given = attributes_find(attributes, CKA_CHECK_VALUE);
    if (given && given->len == 0) /* the standard: an empty one asks for none */
        return good;
    *mismatch = given && (given->len != 3 || memcmp(given->value, value, 3) != 0);
    return good && attributes_set(attributes, CKA_CHECK_VALUE, value, 3);
}

CK_RV key_complete(struct module *m, struct attributes *attributes) {
    CK_OBJECT_CLASS class = attributes_ulong(attributes, CKA_CLASS, CK_UNAVAILABLE_INFORMATION);
    CK_KEY_TYPE type = attributes_ulong(attributes, CKA_KEY_TYPE, CK_UNAVAILABLE_INFORMATION);
    uint8_t d[32];
    bool mismatch = false, good = true;
    if (object_family(attributes) == FAMILY_NONE)
        return key_curve_error(attributes);
    struct material *material = material_from(m->engine, attributes);
    if (!material)
        return CKR_ATTRIBUTE_VALUE_INVALID;
    if (material->pkey)
        good = set_public_key_info(attributes, material->pkey, &mismatch);
    if (class == CKO_SECRET_KEY)
        good = set_check_value(m, attributes, material, &mismatch) &&
               attributes_set_ulong(attributes, CKA_VALUE_LEN, material->secret_len);
    if (type == CKK_RSA && class == CKO_PUBLIC_KEY)
        good = good && attributes_set_ulong(attributes, CKA_MODULUS_BITS,
                                            (CK_ULONG)EVP_PKEY_get_bits(material->pkey));
    if (class == CKO_PRIVATE_KEY && type != CKK_RSA) {
        good = good && number_32(attributes_find(attributes, CKA_VALUE), d) &&
               attributes_set(attributes, CKA_VALUE, d, sizeof d);
        OPENSSL_cleanse(d, sizeof d);
    }
    if (!attributes_find(attributes, CKA_KEY_GEN_MECHANISM))
        good = good && attributes_set_ulong(attributes, CKA_KEY_GEN_MECHANISM, CK_UNAVAILABLE_INFORMATION);
    material_release(material);
    return mismatch ? CKR_ATTRIBUTE_VALUE_INVALID : good ? CKR_OK : CKR_HOST_MEMORY;
}

/* What a generated or unwrapped key is made of, as attributes. */
CK_RV key_attributes_from_pkey(EVP_PKEY *pkey, CK_OBJECT_CLASS class, struct attributes *result) {
    bool good = true;
    if (EVP_PKEY_is_a(pkey, "RSA")) {
        size_t count = class == CKO_PRIVATE_KEY ? RSA_NUMBERS : RSA_PUBLIC_NUMBERS;
        for (size_t i = 0; i < count && good; i++) {
            uint8_t bytes[RSA_BITS_MAX / 8];
            BIGNUM *number = NULL;
            good = EVP_PKEY_get_bn_param(pkey, rsa_numbers[i].parameter, &number) == 1 &&
                   BN_num_bytes(number) <= (int)sizeof bytes;
            int len = good ? BN_bn2bin(number, bytes) : 0;
            good = good && attributes_set(result, rsa_numbers[i].type, bytes, (size_t)len);
            OPENSSL_cleanse(bytes, sizeof bytes);
            BN_clear_free(number);
        }
        return good ? CKR_OK : CKR_WRAPPED_KEY_INVALID;
    }
    char group[32] = "";
    uint8_t d[32], xy[64], point[CURVE_POINT_DER_LEN];
    EVP_PKEY_get_utf8_string_param(pkey, OSSL_PKEY_PARAM_GROUP_NAME, group, sizeof group, NULL);
    bool sm2 = strcmp(group, "SM2") == 0;
    if (!sm2 && strcmp(group, "prime256v1") != 0)
        return CKR_CURVE_NOT_SUPPORTED;
    good = curve_private_numbers(pkey, d, xy) &&
           attributes_set(result, CKA_EC_PARAMS, sm2 ? curve_sm2_oid : curve_p256_oid, 10);
    curve_point_to_der(xy, point);
    good = good && (class == CKO_PRIVATE_KEY ? attributes_set(result, CKA_VALUE, d, sizeof d)
                                             : attributes_set(result, CKA_EC_POINT, point, sizeof point));
    OPENSSL_cleanse(d, sizeof d);
    return good ? CKR_OK : CKR_HOST_MEMORY;
}

EVP_PKEY *key_generate_ec(bool sm2) {
    return sm2 ? EVP_PKEY_Q_keygen(NULL, NULL, "SM2") : EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
}

/* ---- using ---- */

static bool mechanism_allowed(const struct object *object, CK_MECHANISM_TYPE type) {
    const struct attribute *allowed = attributes_find(&object->attributes, CKA_ALLOWED_MECHANISMS);
    for (size_t i = 0; allowed && i < allowed->len / sizeof type; i++)
        if (memcmp(allowed->value + i * sizeof type, &type, sizeof type) == 0)
            return true;
    return !allowed; /* an empty list allows nothing */
}

static bool class_fits(CK_OBJECT_CLASS class, CK_ATTRIBUTE_TYPE usage) {
    switch (usage) {
    case CKA_SIGN:
    case CKA_DECRYPT:
    case CKA_UNWRAP:
        return class == CKO_PRIVATE_KEY || class == CKO_SECRET_KEY;
    case CKA_VERIFY:
    case CKA_ENCRYPT:
    case CKA_WRAP:
        return class == CKO_PUBLIC_KEY || class == CKO_SECRET_KEY;
    default:
        return class != CKO_DATA && class != CKO_CERTIFICATE;
    }
}

static struct object *find_current(struct module *m, struct session *s, CK_OBJECT_HANDLE handle) {
    struct object *object = object_find(m, s, handle);
    if (!object || store_still_there(s->token, object))
        return object;
    object_release(object);
    pthread_mutex_lock(&s->token->lock);
    store_synchronise(m, s->token);
    pthread_mutex_unlock(&s->token->lock);
    return object_find(m, s, handle);
}

static CK_RV material_of(struct module *m, const struct session *s, struct object *object,
                         struct material **material) {
    pthread_rwlock_rdlock(&m->tables);
    *material = material_reference(object->material);
    pthread_rwlock_unlock(&m->tables);
    if (*material)
        return CKR_OK;
    struct attributes all = {0};
    CK_RV rv = attributes_copy(&all, &object->attributes) ? object_unseal(m, object, &all) : CKR_HOST_MEMORY;
    if (rv == CKR_OK && !(*material = material_from(m->engine, &all)))
        rv = CKR_DEVICE_ERROR;
    attributes_free(&all);
    if (rv != CKR_OK)
        return rv;
    pthread_rwlock_wrlock(&m->tables);
    /* Kept for the next use; a logout drops it. One that went by since we unsealed must not be undone. */
    if (!object->material && (!object->sealed || session_login(s) != LOGIN_NONE))
        object->material = material_reference(*material);
    pthread_rwlock_unlock(&m->tables);
    return CKR_OK;
}

CK_RV key_open(struct module *m, struct session *s, CK_OBJECT_HANDLE handle, CK_ATTRIBUTE_TYPE usage,
               const struct mechanism *mechanism, struct object **object, struct material **material) {
    struct object *found = find_current(m, s, handle);
    if (!found)
        return CKR_KEY_HANDLE_INVALID;
    CK_RV rv = CKR_OK;
    if (found->class < CKO_PUBLIC_KEY)
        rv = CKR_KEY_HANDLE_INVALID;
    else if (!class_fits(found->class, usage))
        rv = CKR_KEY_TYPE_INCONSISTENT;
    else if (mechanism && object_family(&found->attributes) != mechanism->family)
        rv = CKR_KEY_TYPE_INCONSISTENT;
    else if (usage && !attributes_bool(&found->attributes, usage))
        rv = CKR_KEY_FUNCTION_NOT_PERMITTED;
    else if (mechanism && !mechanism_allowed(found, mechanism->type))
        rv = CKR_MECHANISM_INVALID;
    if (rv == CKR_OK)
        rv = material_of(m, s, found, material);
    if (rv == CKR_OK)
        *object = found;
    else
        object_release(found);
    return rv;
}
