/* What the token can do: one table, and the check of every mechanism parameter. */
#include "module.h"

#include <stdlib.h>
#include <string.h>

#define SIGNS (CKF_SIGN | CKF_VERIFY | CKF_MESSAGE_SIGN | CKF_MESSAGE_VERIFY | CKF_MULTI_MESSAGE)
#define CURVE (CKF_EC_F_P | CKF_EC_NAMEDCURVE | CKF_EC_UNCOMPRESS)
#define CIPHERS (CKF_ENCRYPT | CKF_DECRYPT)
#define WRAPS (CKF_WRAP | CKF_UNWRAP)

const struct mechanism mechanisms[] = {
    /* type, scheme, family, digest, sizes (bits for RSA and EC, bytes for secret keys), flags */
    {CKM_SM2_KEY_PAIR_GEN, SCHEME_GENERATE, FAMILY_SM2, DIGEST_NONE, 256, 256, CKF_GENERATE_KEY_PAIR | CURVE},
    {CKM_SM2, SCHEME_SM2, FAMILY_SM2, DIGEST_NONE, 256, 256, SIGNS | CURVE},
    {CKM_SM3_SM2, SCHEME_SM2, FAMILY_SM2, DIGEST_SM3, 256, 256, SIGNS | CURVE},
    {CKM_SM3, SCHEME_DIGEST, FAMILY_NONE, DIGEST_SM3, 0, 0, CKF_DIGEST},

    {CKM_EC_KEY_PAIR_GEN, SCHEME_GENERATE, FAMILY_P256, DIGEST_NONE, 256, 256, CKF_GENERATE_KEY_PAIR | CURVE},
    {CKM_ECDSA, SCHEME_ECDSA, FAMILY_P256, DIGEST_NONE, 256, 256, SIGNS | CURVE},
    {CKM_ECDSA_SHA256, SCHEME_ECDSA, FAMILY_P256, DIGEST_SHA256, 256, 256, SIGNS | CURVE},
    {CKM_ECDSA_SHA384, SCHEME_ECDSA, FAMILY_P256, DIGEST_SHA384, 256, 256, SIGNS | CURVE},
    {CKM_ECDSA_SHA512, SCHEME_ECDSA, FAMILY_P256, DIGEST_SHA512, 256, 256, SIGNS | CURVE},

    {CKM_RSA_PKCS_KEY_PAIR_GEN, SCHEME_GENERATE, FAMILY_RSA, DIGEST_NONE, 2048, 4096, CKF_GENERATE_KEY_PAIR},
    {CKM_RSA_PKCS, SCHEME_RSA_PKCS1, FAMILY_RSA, DIGEST_NONE, 2048, 4096, SIGNS},
    {CKM_SHA256_RSA_PKCS, SCHEME_RSA_PKCS1, FAMILY_RSA, DIGEST_SHA256, 2048, 4096, SIGNS},
    {CKM_SHA384_RSA_PKCS, SCHEME_RSA_PKCS1, FAMILY_RSA, DIGEST_SHA384, 2048, 4096, SIGNS},
    {CKM_SHA512_RSA_PKCS, SCHEME_RSA_PKCS1, FAMILY_RSA, DIGEST_SHA512, 2048, 4096, SIGNS},
    {CKM_RSA_PKCS_PSS, SCHEME_RSA_PSS, FAMILY_RSA, DIGEST_NONE, 2048, 4096, SIGNS},
    {CKM_SHA256_RSA_PKCS_PSS, SCHEME_RSA_PSS, FAMILY_RSA, DIGEST_SHA256, 2048, 4096, SIGNS},
    {CKM_SHA384_RSA_PKCS_PSS, SCHEME_RSA_PSS, FAMILY_RSA, DIGEST_SHA384, 2048, 4096, SIGNS},
    {CKM_SHA512_RSA_PKCS_PSS, SCHEME_RSA_PSS, FAMILY_RSA, DIGEST_SHA512, 2048, 4096, SIGNS},

    {CKM_SHA_1, SCHEME_DIGEST, FAMILY_NONE, DIGEST_SHA1, 0, 0, CKF_DIGEST},
    {CKM_SHA224, SCHEME_DIGEST, FAMILY_NONE, DIGEST_SHA224, 0, 0, CKF_DIGEST},
    {CKM_SHA256, SCHEME_DIGEST, FAMILY_NONE, DIGEST_SHA256, 0, 0, CKF_DIGEST},
    {CKM_SHA384, SCHEME_DIGEST, FAMILY_NONE, DIGEST_SHA384, 0, 0, CKF_DIGEST},
    {CKM_SHA512, SCHEME_DIGEST, FAMILY_NONE, DIGEST_SHA512, 0, 0, CKF_DIGEST},

    {CKM_AES_KEY_GEN, SCHEME_GENERATE, FAMILY_AES, DIGEST_NONE, 16, 32, CKF_GENERATE},
    {CKM_AES_ECB, SCHEME_ECB, FAMILY_AES, DIGEST_NONE, 16, 32, CIPHERS},
    {CKM_AES_CBC, SCHEME_CBC, FAMILY_AES, DIGEST_NONE, 16, 32, CIPHERS},
    {CKM_AES_CBC_PAD, SCHEME_CBC_PAD, FAMILY_AES, DIGEST_NONE, 16, 32, CIPHERS | WRAPS},
    {CKM_AES_KEY_WRAP, SCHEME_KEY_WRAP, FAMILY_AES, DIGEST_NONE, 16, 32, WRAPS},
    {CKM_AES_KEY_WRAP_PAD, SCHEME_KEY_WRAP_PAD, FAMILY_AES, DIGEST_NONE, 16, 32, WRAPS},
    {CKM_SM4_KEY_GEN, SCHEME_GENERATE, FAMILY_SM4, DIGEST_NONE, 16, 16, CKF_GENERATE},
    {CKM_SM4_ECB, SCHEME_ECB, FAMILY_SM4, DIGEST_NONE, 16, 16, CIPHERS},
    {CKM_SM4_CBC, SCHEME_CBC, FAMILY_SM4, DIGEST_NONE, 16, 16, CIPHERS},
    {CKM_SM4_CBC_PAD, SCHEME_CBC_PAD, FAMILY_SM4, DIGEST_NONE, 16, 16, CIPHERS | WRAPS},
    {CKM_GENERIC_SECRET_KEY_GEN, SCHEME_GENERATE, FAMILY_GENERIC, DIGEST_NONE, 1, 512, CKF_GENERATE},
    {CKM_SHA256_HMAC, SCHEME_HMAC, FAMILY_GENERIC, DIGEST_SHA256, 1, 512, CKF_SIGN | CKF_VERIFY},
    {CKM_SHA384_HMAC, SCHEME_HMAC, FAMILY_GENERIC, DIGEST_SHA384, 1, 512, CKF_SIGN | CKF_VERIFY},
    {CKM_SHA512_HMAC, SCHEME_HMAC, FAMILY_GENERIC, DIGEST_SHA512, 1, 512, CKF_SIGN | CKF_VERIFY},
};
const size_t mechanism_count = sizeof mechanisms / sizeof *mechanisms;

/* `use`: one CKF_ flag that the mechanism must have; 0: any. */
const struct mechanism *mechanism_find(CK_MECHANISM_TYPE type, CK_FLAGS use) {
    for (size_t i = 0; i < mechanism_count; i++)
        if (mechanisms[i].type == type)
            return (mechanisms[i].flags & use) == use ? &mechanisms[i] : NULL;
    return NULL;
}

/* ---- what libcrypto is asked for ---- */

static const char *const digest_names[DIGEST_COUNT] = {
    [DIGEST_SHA1] = "SHA1",     [DIGEST_SHA224] = "SHA224", [DIGEST_SHA256] = "SHA256",
    [DIGEST_SHA384] = "SHA384", [DIGEST_SHA512] = "SHA512", [DIGEST_SM3] = "SM3",
};

/* Fetched once: looking a digest up by name costs more than hashing a short message. */
bool mechanisms_load(struct module *m) {
    bool good = true;
    for (int i = DIGEST_SHA1; i < DIGEST_COUNT; i++)
        good = (m->digests[i] = EVP_MD_fetch(NULL, digest_names[i], NULL)) != NULL && good;
    return good;
}

void mechanisms_unload(struct module *m) {
    for (int i = DIGEST_SHA1; i < DIGEST_COUNT; i++)
        EVP_MD_free((EVP_MD *)m->digests[i]);
}

const EVP_CIPHER *mechanism_cipher(const struct mechanism *mechanism, size_t key_len) {
    bool sm4 = mechanism->family == FAMILY_SM4;
    int size = key_len == 16 ? 0 : key_len == 24 ? 1 : key_len == 32 ? 2 : -1;
    if (size < 0 || (sm4 && size))
        return NULL;
    switch (mechanism->scheme) {
    case SCHEME_ECB: {
        const EVP_CIPHER *const ecb[] = {EVP_aes_128_ecb(), EVP_aes_192_ecb(), EVP_aes_256_ecb()};
        return sm4 ? EVP_sm4_ecb() : ecb[size];
    }
    case SCHEME_CBC:
    case SCHEME_CBC_PAD: {
        const EVP_CIPHER *const cbc[] = {EVP_aes_128_cbc(), EVP_aes_192_cbc(), EVP_aes_256_cbc()};
        return sm4 ? EVP_sm4_cbc() : cbc[size];
    }
    case SCHEME_KEY_WRAP: {
        const EVP_CIPHER *const wrap[] = {EVP_aes_128_wrap(), EVP_aes_192_wrap(), EVP_aes_256_wrap()};
        return wrap[size];
    }
    case SCHEME_KEY_WRAP_PAD: {
        const EVP_CIPHER *const pad[] = {EVP_aes_128_wrap_pad(), EVP_aes_192_wrap_pad(),
                                         EVP_aes_256_wrap_pad()};
        return pad[size];
    }
    default:
        return NULL;
    }
}

/* ---- parameters: foreign input, of whatever length the caller says ---- */

/* ENTL is two bytes of bits: an ID has at most 8191 bytes. */
enum { ID_LEN_MAX = 8191 };

static CK_RV pss_parameters(struct module *m, const struct mechanism *mechanism, const CK_MECHANISM *given,
                            struct parameters *out) {
    static const struct {
        CK_MECHANISM_TYPE hash;
        CK_RSA_PKCS_MGF_TYPE mgf;
        enum digest_id digest;
    } known[] = {
        {CKM_SHA256, CKG_MGF1_SHA256, DIGEST_SHA256},
        {CKM_SHA384, CKG_MGF1_SHA384, DIGEST_SHA384},
        {CKM_SHA512, CKG_MGF1_SHA512, DIGEST_SHA512},
    };
    CK_RSA_PKCS_PSS_PARAMS pss;
    if (!given->pParameter || given->ulParameterLen != sizeof pss)
        return CKR_MECHANISM_PARAM_INVALID;
    memcpy(&pss, given->pParameter, sizeof pss);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (pss.hashAlg == known[i].hash &&
            (mechanism->digest == DIGEST_NONE || mechanism->digest == known[i].digest))
            out->pss_digest = m->digests[known[i].digest];
        if (pss.mgf == known[i].mgf)
            out->pss_mgf = m->digests[known[i].digest];
    }
    /* The salt must leave room in the smallest modulus: 2048 / 8 - hash - 2. */
    if (!out->pss_digest || !out->pss_mgf || pss.sLen > 190)
        return CKR_MECHANISM_PARAM_INVALID;
    out->pss_salt_len = (int)pss.sLen;
    return CKR_OK;
}

CK_RV mechanism_parameters(struct module *m, const struct mechanism *mechanism, const CK_MECHANISM *given,
                           struct parameters *out) {
    *out = (struct parameters){0};
    if (given->ulParameterLen && !given->pParameter)
        return CKR_MECHANISM_PARAM_INVALID;
    switch (mechanism->scheme) {
    case SCHEME_RSA_PSS:
        return pss_parameters(m, mechanism, given, out);
    case SCHEME_CBC:
    case SCHEME_CBC_PAD:
        if (given->ulParameterLen != sizeof out->iv)
            return CKR_MECHANISM_PARAM_INVALID;
        memcpy(out->iv, given->pParameter, sizeof out->iv);
        return CKR_OK;
    case SCHEME_SM2:
        if (mechanism->digest == DIGEST_NONE)
            break;
        if (given->ulParameterLen > ID_LEN_MAX)
            return CKR_MECHANISM_PARAM_INVALID;
        if (given->ulParameterLen) {
            out->id = malloc(given->ulParameterLen);
            if (!out->id)
                return CKR_HOST_MEMORY;
            memcpy(out->id, given->pParameter, given->ulParameterLen);
            out->id_len = given->ulParameterLen;
        }
        return CKR_OK;
    default:
        break;
    }
    return given->ulParameterLen ? CKR_MECHANISM_PARAM_INVALID : CKR_OK;
}

void parameters_free(struct parameters *parameters) {
    free(parameters->id);
    *parameters = (struct parameters){0};
}
