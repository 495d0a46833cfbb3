#include "curve.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/obj_mac.h>
#include <openssl/param_build.h>
#include <string.h>

const uint8_t curve_p256_oid[10] = {0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07};
const uint8_t curve_sm2_oid[10] = {0x06, 0x08, 0x2A, 0x81, 0x1C, 0xCF, 0x55, 0x01, 0x82, 0x2D};

static const uint8_t p256_order[32] = {0xFF, 0xFF, 0xFF, 0xFF, 0x00, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xFF,
                                       0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xBC, 0xE6, 0xFA, 0xAD, 0xA7, 0x17,
                                       0x9E, 0x84, 0xF3, 0xB9, 0xCA, 0xC2, 0xFC, 0x63, 0x25, 0x51};
static const uint8_t sm2_order[32] = {0xFF, 0xFF, 0xFF, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
                                      0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x72, 0x03, 0xDF, 0x6B, 0x21, 0xC6,
                                      0x05, 0x2B, 0x53, 0xBB, 0xF4, 0x09, 0x39, 0xD5, 0x41, 0x23};

static int curve_nid(bool sm2) {
    return sm2 ? NID_sm2 : NID_X9_62_prime256v1;
}

bool curve_private_in_range(bool sm2, const uint8_t d[32]) {
    /* d < bound by subtracting with borrow, and d != 0: no branch on a bit of d. */
    uint8_t bound[32], any = 0;
    memcpy(bound, sm2 ? sm2_order : p256_order, 32);
    bound[31] = (uint8_t)(bound[31] - (sm2 ? 1 : 0)); /* SM2 inverts 1 + d: n-1 has no inverse */
    unsigned borrow = 0;
    for (int i = 31; i >= 0; i--) {
        borrow = ((unsigned)d[i] - bound[i] - borrow) >> 31;
        any |= d[i];
    }
    return borrow && any;
}

bool curve_public_from_private(bool sm2, const uint8_t d[32], uint8_t xy[64]) {
    if (!curve_private_in_range(sm2, d))
        return false;
    uint8_t octets[65];
    EC_GROUP *group = EC_GROUP_new_by_curve_name(curve_nid(sm2));
    EC_POINT *point = group ? EC_POINT_new(group) : NULL;
    BIGNUM *number = BN_secure_new();
    bool good = point && number && BN_bin2bn(d, 32, number) &&
                EC_POINT_mul(group, point, number, NULL, NULL, NULL) == 1 &&
                EC_POINT_point2oct(group, point, POINT_CONVERSION_UNCOMPRESSED, octets, 65, NULL) == 65;
    if (good)
        memcpy(xy, octets + 1, 64);
    BN_clear_free(number);
    EC_POINT_free(point);
    EC_GROUP_free(group);
    return good;
}

static EVP_PKEY *key_from(bool sm2, const uint8_t *d, const uint8_t xy[64]) {
    uint8_t octets[65] = {4};
    memcpy(octets + 1, xy, 64);
    EVP_PKEY *pkey = NULL;
    BIGNUM *number = d ? BN_secure_new() : NULL;
    OSSL_PARAM_BLD *build = OSSL_PARAM_BLD_new();
    OSSL_PARAM *parameters = NULL;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, sm2 ? "SM2" : "EC", NULL);
    bool good =
        build && context &&
        OSSL_PARAM_BLD_push_utf8_string(build, OSSL_PKEY_PARAM_GROUP_NAME, sm2 ? "SM2" : "P-256", 0) == 1 &&
        OSSL_PARAM_BLD_push_octet_string(build, OSSL_PKEY_PARAM_PUB_KEY, octets, sizeof octets) == 1;
    if (good && d)
        good = number && BN_bin2bn(d, 32, number) &&
               OSSL_PARAM_BLD_push_BN_pad(build, OSSL_PKEY_PARAM_PRIV_KEY, number, 32) == 1;
    if (good)
        good = (parameters = OSSL_PARAM_BLD_to_param(build)) != NULL &&
               EVP_PKEY_fromdata_init(context) == 1 &&
               EVP_PKEY_fromdata(context, &pkey, d ? EVP_PKEY_KEYPAIR : EVP_PKEY_PUBLIC_KEY, parameters) == 1;
    EVP_PKEY_CTX_free(context);
    OSSL_PARAM_free(parameters); /* clears the secure part, where the private number lies */
    OSSL_PARAM_BLD_free(build);
    BN_clear_free(number);
    if (!good) {
        EVP_PKEY_free(pkey);
        return NULL;
    }
    /* libcrypto has checked that the octets decode to a point; say it again where it would matter. */
    context = EVP_PKEY_CTX_new_from_pkey(NULL, pkey, NULL);
    good = context && EVP_PKEY_public_check(context) == 1;
    EVP_PKEY_CTX_free(context);
    if (!good) {
        EVP_PKEY_free(pkey);
        return NULL;
    }
    return pkey;
}

EVP_PKEY *curve_private_key(bool sm2, const uint8_t d[32], const uint8_t xy[64]) {
    return curve_private_in_range(sm2, d) ? key_from(sm2, d, xy) : NULL;
}

EVP_PKEY *curve_public_key(bool sm2, const uint8_t xy[64]) {
    return key_from(sm2, NULL, xy);
}

bool curve_private_numbers(EVP_PKEY *pkey, uint8_t d[32], uint8_t xy[64]) {
    BIGNUM *number = NULL, *x = NULL, *y = NULL;
    bool good = EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_PRIV_KEY, &number) == 1 &&
                EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_PUB_X, &x) == 1 &&
                EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_EC_PUB_Y, &y) == 1 &&
                BN_bn2binpad(number, d, 32) == 32 && BN_bn2binpad(x, xy, 32) == 32 &&
                BN_bn2binpad(y, xy + 32, 32) == 32;
    BN_clear_free(number);
    BN_free(x);
    BN_free(y);
    return good;
}

void curve_point_to_der(const uint8_t xy[64], uint8_t der[CURVE_POINT_DER_LEN]) {
    der[0] = 0x04; /* OCTET STRING */
    der[1] = 65;
    der[2] = 0x04; /* uncompressed */
    memcpy(der + 3, xy, 64);
}

bool curve_point_from_der(const uint8_t *der, size_t len, uint8_t xy[64]) {
    if (len != CURVE_POINT_DER_LEN || der[0] != 0x04 || der[1] != 65 || der[2] != 0x04)
        return false;
    memcpy(xy, der + 3, 64);
    return true;
}

bool curve_signature_from_der(const uint8_t *der, size_t len, uint8_t rs[64]) {
    const uint8_t *at = der;
    ECDSA_SIG *signature = d2i_ECDSA_SIG(NULL, &at, (long)len);
    bool good = signature && at == der + len && BN_bn2binpad(ECDSA_SIG_get0_r(signature), rs, 32) == 32 &&
                BN_bn2binpad(ECDSA_SIG_get0_s(signature), rs + 32, 32) == 32;
    ECDSA_SIG_free(signature);
    return good;
}

size_t curve_signature_to_der(const uint8_t rs[64], uint8_t der[72]) {
    ECDSA_SIG *signature = ECDSA_SIG_new();
    BIGNUM *r = BN_bin2bn(rs, 32, NULL), *s = BN_bin2bn(rs + 32, 32, NULL);
    int len = -1;
    if (signature && r && s && ECDSA_SIG_set0(signature, r, s) == 1) {
        r = s = NULL;
        len = i2d_ECDSA_SIG(signature, &der);
    }
    BN_free(r);
    BN_free(s);
    ECDSA_SIG_free(signature);
    return len > 0 ? (size_t)len : 0;
}
