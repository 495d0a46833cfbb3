/* See openssl_verify.h. Only the EVP interface of libcrypto 3.0 is used: nothing deprecated, nothing
 * internal. */
#include "openssl_verify.h"

#include <string.h>

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>

void *openssl_key_new(uint8_t algorithm, const uint8_t point[POINT_LEN], bool *out_of_memory)
{
    bool sm2 = algorithm == SM2_SM3;
    char group[] = "SM2", p256[] = "P-256";
    uint8_t encoded[1 + POINT_LEN] = {0x04};
    memcpy(encoded + 1, point, POINT_LEN);
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, sm2 ? group : p256, 0),
        OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, encoded, sizeof encoded),
        OSSL_PARAM_construct_end(),
    };
    EVP_PKEY *key = NULL;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, sm2 ? "SM2" : "EC", NULL);
    *out_of_memory = context == NULL || EVP_PKEY_fromdata_init(context) != 1;
    /* Decoding the point checks that it lies on the curve. Its failure leaves entries in the thread's error
     * queue, which is nobody's but ours here. */
    if (!*out_of_memory && EVP_PKEY_fromdata(context, &key, EVP_PKEY_PUBLIC_KEY, params) != 1)
        ERR_clear_error();
    EVP_PKEY_CTX_free(context);
    return key;
}

void openssl_key_free(void *key)
{
    EVP_PKEY_free(key);
}

void *openssl_context_new(void *key)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    if (context != NULL && EVP_PKEY_verify_init(context) != 1) {
        EVP_PKEY_CTX_free(context);
        context = NULL;
    }
    return context;
}

void openssl_context_free(void *context)
{
    EVP_PKEY_CTX_free(context);
}

/* DER INTEGER of 32 big-endian bytes, shortest form; returns the number of bytes written, at most 35. */
static size_t der_integer(uint8_t *out, const uint8_t value[32])
{
    size_t skip = 0;
    while (skip < 31 && value[skip] == 0)
        skip++;
    size_t padding = value[skip] >> 7, len = 32 - skip;
    out[0] = 0x02;
    out[1] = (uint8_t)(len + padding);
    out[2] = 0;
    memcpy(out + 2 + padding, value + skip, len);
    return 2 + padding + len;
}

bool openssl_verify(void *context, const uint8_t digest[DIGEST_LEN], const uint8_t signature[SIGNATURE_LEN])
{
    uint8_t der[72];
    size_t len = der_integer(der + 2, signature);
    len += der_integer(der + 2 + len, signature + 32);
    der[0] = 0x30;
    der[1] = (uint8_t)len;
    bool valid = EVP_PKEY_verify(context, der, len + 2, digest, DIGEST_LEN) == 1;
    if (!valid)
        ERR_clear_error();
    return valid;
}
