/* The rules for attributes, as one table: which object has which, who may give it when, what it is by
 * default.
 *
 * A template is foreign input: its types, lengths and values are checked here and nowhere else. Attributes
 * that guard a key only tighten: SENSITIVE and WRAP_WITH_TRUSTED only rise, EXTRACTABLE, COPYABLE and
 * DESTROYABLE only fall, in C_SetAttributeValue and in C_CopyObject alike.
 */
#include "curve.h"
#include "module.h"

#include <string.h>

enum kind { BOOLEAN, NUMBER, BYTES, DATE, NUMBERS };

/* The forms an object can take. */
enum {
    F_DATA = 1,
    F_CERT = 2,
    F_PUB_RSA = 4,
    F_PUB_EC = 8,
    F_PRIV_RSA = 16,
    F_PRIV_EC = 32,
    F_SECRET = 64,
    F_PUB = F_PUB_RSA | F_PUB_EC,
    F_PRIV = F_PRIV_RSA | F_PRIV_EC,
    F_KEY = F_PUB | F_PRIV | F_SECRET,
    F_GUARDED = F_PRIV | F_SECRET,
    F_ALL = F_DATA | F_CERT | F_KEY,
};

enum {
    /* May stand in the template of C_CreateObject, of generation, of C_UnwrapKey. */
    CREATE = 1,
    GENERATE = 2,
    UNWRAP = 4,
    GIVEN = CREATE | GENERATE | UNWRAP,
    /* Must stand there. */
    MUST_CREATE = 8,
    MUST_GENERATE = 16,
    /* May be changed by C_CopyObject, by C_SetAttributeValue; and then only upwards, only downwards. */
    COPY = 32,
    SET = 64,
    RISES = 128,
    FALLS = 256,
    SECRET = 512,      /* lies in the sealed part */
    OFFICER = 1024,    /* true only from the security officer */
    NEVER_TRUE = 2048, /* not implemented, so true is refused */
};

enum otherwise {
    NO_DEFAULT,
    EMPTY,
    IS_FALSE,
    IS_TRUE,
    ZERO,
    IF_GUARDED /* true for private and secret keys */
};

struct rule {
    CK_ATTRIBUTE_TYPE type;
    enum kind kind;
    unsigned forms, flags;
    enum otherwise otherwise;
};

static const struct rule rules[] = {
    {CKA_CLASS, NUMBER, F_ALL, GIVEN | MUST_CREATE, NO_DEFAULT},
    {CKA_TOKEN, BOOLEAN, F_ALL, GIVEN | COPY, IS_FALSE},
    {CKA_PRIVATE, BOOLEAN, F_ALL, GIVEN | COPY, IF_GUARDED},
    {CKA_MODIFIABLE, BOOLEAN, F_ALL, GIVEN | COPY, IS_TRUE},
    {CKA_COPYABLE, BOOLEAN, F_ALL, GIVEN | COPY | SET | FALLS, IS_TRUE},
    {CKA_DESTROYABLE, BOOLEAN, F_ALL, GIVEN | COPY | SET | FALLS, IS_TRUE},
    {CKA_LABEL, BYTES, F_ALL, GIVEN | COPY | SET, EMPTY},
    {CKA_UNIQUE_ID, BYTES, F_ALL, 0, NO_DEFAULT},

    {CKA_APPLICATION, BYTES, F_DATA, CREATE | COPY | SET, EMPTY},
    {CKA_OBJECT_ID, BYTES, F_DATA, CREATE | COPY | SET, EMPTY},
    {CKA_VALUE, BYTES, F_DATA, CREATE | COPY | SET, EMPTY},

    {CKA_CERTIFICATE_TYPE, NUMBER, F_CERT, CREATE | MUST_CREATE, NO_DEFAULT},
    {CKA_TRUSTED, BOOLEAN, F_CERT | F_PUB | F_SECRET, GIVEN | COPY | SET | OFFICER, IS_FALSE},
    {CKA_CERTIFICATE_CATEGORY, NUMBER, F_CERT, CREATE, ZERO},
    {CKA_VALUE, BYTES, F_CERT, CREATE | MUST_CREATE, NO_DEFAULT},
    {CKA_ISSUER, BYTES, F_CERT, CREATE | COPY | SET, EMPTY},
    {CKA_SERIAL_NUMBER, BYTES, F_CERT, CREATE | COPY | SET, EMPTY},
    {CKA_URL, BYTES, F_CERT, CREATE, EMPTY},
    {CKA_HASH_OF_SUBJECT_PUBLIC_KEY, BYTES, F_CERT, CREATE, EMPTY},
    {CKA_HASH_OF_ISSUER_PUBLIC_KEY, BYTES, F_CERT, CREATE, EMPTY},
    {CKA_JAVA_MIDP_SECURITY_DOMAIN, NUMBER, F_CERT, CREATE, ZERO},
    {CKA_NAME_HASH_ALGORITHM, NUMBER, F_CERT, CREATE, NO_DEFAULT},

    {CKA_KEY_TYPE, NUMBER, F_KEY, GIVEN | MUST_CREATE, NO_DEFAULT},
    {CKA_ID, BYTES, F_KEY | F_CERT, GIVEN | COPY | SET, EMPTY},
    {CKA_SUBJECT, BYTES, F_CERT, CREATE | MUST_CREATE | COPY | SET, NO_DEFAULT},
    {CKA_SUBJECT, BYTES, F_PUB | F_PRIV, GIVEN | COPY | SET, EMPTY},
    {CKA_START_DATE, DATE, F_KEY | F_CERT, GIVEN | COPY | SET, EMPTY},
    {CKA_END_DATE, DATE, F_KEY | F_CERT, GIVEN | COPY | SET, EMPTY},
    {CKA_CHECK_VALUE, BYTES, F_CERT | F_SECRET, GIVEN, NO_DEFAULT},
    {CKA_PUBLIC_KEY_INFO, BYTES, F_CERT | F_PUB | F_PRIV, CREATE, EMPTY},
    {CKA_LOCAL, BOOLEAN, F_KEY, 0, IS_FALSE},
    {CKA_KEY_GEN_MECHANISM, NUMBER, F_KEY, 0, NO_DEFAULT},
    {CKA_ALLOWED_MECHANISMS, NUMBERS, F_KEY, GIVEN, NO_DEFAULT},
    {CKA_DERIVE, BOOLEAN, F_KEY, GIVEN | COPY | SET, IS_FALSE},

    {CKA_VERIFY, BOOLEAN, F_PUB, GIVEN | COPY | SET, IS_TRUE},
    {CKA_VERIFY, BOOLEAN, F_SECRET, GIVEN | COPY | SET, IS_FALSE},
    {CKA_SIGN, BOOLEAN, F_PRIV, GIVEN | COPY | SET, IS_TRUE},
    {CKA_SIGN, BOOLEAN, F_SECRET, GIVEN | COPY | SET, IS_FALSE},
    {CKA_VERIFY_RECOVER, BOOLEAN, F_PUB, GIVEN | COPY | SET, IS_FALSE},
    {CKA_SIGN_RECOVER, BOOLEAN, F_PRIV, GIVEN | COPY | SET, IS_FALSE},
    {CKA_ENCRYPT, BOOLEAN, F_PUB | F_SECRET, GIVEN | COPY | SET, IS_FALSE},
    {CKA_DECRYPT, BOOLEAN, F_GUARDED, GIVEN | COPY | SET, IS_FALSE},
    {CKA_WRAP, BOOLEAN, F_PUB | F_SECRET, GIVEN | COPY | SET, IS_FALSE},
    {CKA_UNWRAP, BOOLEAN, F_GUARDED, GIVEN | COPY | SET, IS_FALSE},

    {CKA_SENSITIVE, BOOLEAN, F_GUARDED, GIVEN | COPY | SET | RISES, IS_TRUE},
    {CKA_EXTRACTABLE, BOOLEAN, F_GUARDED, GIVEN | COPY | SET | FALLS, IS_FALSE},
    {CKA_ALWAYS_SENSITIVE, BOOLEAN, F_GUARDED, 0, IS_FALSE},
    {CKA_NEVER_EXTRACTABLE, BOOLEAN, F_GUARDED, 0, IS_FALSE},
    {CKA_WRAP_WITH_TRUSTED, BOOLEAN, F_GUARDED, GIVEN | COPY | SET | RISES, IS_FALSE},
    {CKA_ALWAYS_AUTHENTICATE, BOOLEAN, F_PRIV, GIVEN | NEVER_TRUE, IS_FALSE},

    {CKA_MODULUS_BITS, NUMBER, F_PUB_RSA, GENERATE | MUST_GENERATE, NO_DEFAULT},
    {CKA_MODULUS, BYTES, F_PUB_RSA | F_PRIV_RSA, CREATE | MUST_CREATE, NO_DEFAULT},
    {CKA_PUBLIC_EXPONENT, BYTES, F_PUB_RSA, CREATE | MUST_CREATE | GENERATE, NO_DEFAULT},
    {CKA_PUBLIC_EXPONENT, BYTES, F_PRIV_RSA, CREATE | MUST_CREATE, NO_DEFAULT},
    {CKA_PRIVATE_EXPONENT, BYTES, F_PRIV_RSA, CREATE | MUST_CREATE | SECRET, NO_DEFAULT},
    {CKA_PRIME_1, BYTES, F_PRIV_RSA, CREATE | MUST_CREATE | SECRET, NO_DEFAULT},
    {CKA_PRIME_2, BYTES, F_PRIV_RSA, CREATE | MUST_CREATE | SECRET, NO_DEFAULT},
    {CKA_EXPONENT_1, BYTES, F_PRIV_RSA, CREATE | MUST_CREATE | SECRET, NO_DEFAULT},
    {CKA_EXPONENT_2, BYTES, F_PRIV_RSA, CREATE | MUST_CREATE | SECRET, NO_DEFAULT},
    {CKA_COEFFICIENT, BYTES, F_PRIV_RSA, CREATE | MUST_CREATE | SECRET, NO_DEFAULT},

    {CKA_EC_PARAMS, BYTES, F_PUB_EC, CREATE | MUST_CREATE | GENERATE | MUST_GENERATE, NO_DEFAULT},
    {CKA_EC_PARAMS, BYTES, F_PRIV_EC, CREATE | MUST_CREATE | GENERATE, NO_DEFAULT},
    {CKA_EC_POINT, BYTES, F_PUB_EC, CREATE | MUST_CREATE, NO_DEFAULT},
    {CKA_VALUE, BYTES, F_PRIV_EC, CREATE | MUST_CREATE | SECRET, NO_DEFAULT},

    {CKA_VALUE, BYTES, F_SECRET, CREATE | MUST_CREATE | SECRET, NO_DEFAULT},
    {CKA_VALUE_LEN, NUMBER, F_SECRET, GENERATE | UNWRAP, NO_DEFAULT},
};
enum { RULE_COUNT = sizeof rules / sizeof *rules };

static unsigned form_of(CK_OBJECT_CLASS class, CK_KEY_TYPE key_type) {
    bool rsa = key_type == CKK_RSA, ec = key_type == CKK_EC || key_type == CKK_SM2;
    switch (class) {
    case CKO_DATA:
        return F_DATA;
    case CKO_CERTIFICATE:
        return F_CERT;
    case CKO_PUBLIC_KEY:
        return rsa ? F_PUB_RSA : ec ? F_PUB_EC : 0;
    case CKO_PRIVATE_KEY:
        return rsa ? F_PRIV_RSA : ec ? F_PRIV_EC : 0;
    case CKO_SECRET_KEY:
        return key_type == CKK_AES || key_type == CKK_SM4 || key_type == CKK_GENERIC_SECRET ||
                       (key_type >= CKK_SHA256_HMAC && key_type <= CKK_SHA512_HMAC)
                   ? F_SECRET
                   : 0;
    default:
        return 0;
    }
}

static const struct rule *rule_of(unsigned form, CK_ATTRIBUTE_TYPE type) {
    for (size_t i = 0; i < RULE_COUNT; i++)
        if (rules[i].type == type && rules[i].forms & form)
            return &rules[i];
    return NULL;
}

bool attribute_is_ulong(CK_ATTRIBUTE_TYPE type) {
    for (size_t i = 0; i < RULE_COUNT; i++)
        if (rules[i].type == type)
            return rules[i].kind == NUMBER || rules[i].kind == NUMBERS;
    return false;
}

bool attribute_is_secret(CK_OBJECT_CLASS class, bool private_object, CK_ATTRIBUTE_TYPE type) {
    if (class == CKO_DATA)
        return private_object && type == CKA_VALUE;
    if (class != CKO_PRIVATE_KEY && class != CKO_SECRET_KEY)
        return false;
    for (size_t i = 0; i < RULE_COUNT; i++)
        if (rules[i].type == type && rules[i].flags & SECRET)
            return true;
    return false;
}

/* ---- shape: what holds for any template ---- */

enum { VALUE_LEN_MAX = 1 << 22 /* half an object file */, ATTRIBUTES_GIVEN_MAX = 256 };

static bool date_good(const uint8_t *date, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (date[i] < '0' || date[i] > '9')
            return false;
    if (len != sizeof(CK_DATE))
        return len == 0;
    int month = (date[4] - '0') * 10 + date[5] - '0', day = (date[6] - '0') * 10 + date[7] - '0';
    return month >= 1 && month <= 12 && day >= 1 && day <= 31;
}

static bool value_good(enum kind kind, const CK_ATTRIBUTE *at) {
    switch (kind) {
    case BOOLEAN:
        return at->ulValueLen == sizeof(CK_BBOOL) && *(const CK_BBOOL *)at->pValue <= 1;
    case NUMBER:
        return at->ulValueLen == sizeof(CK_ULONG);
    case NUMBERS:
        return at->ulValueLen % sizeof(CK_ULONG) == 0 && at->ulValueLen <= 32 * sizeof(CK_ULONG);
    case DATE:
        return date_good(at->pValue, at->ulValueLen);
    case BYTES:
        return at->ulValueLen <= VALUE_LEN_MAX;
    }
    return false;
}

CK_RV template_check(const CK_ATTRIBUTE *given, CK_ULONG count) {
    if (count > ATTRIBUTES_GIVEN_MAX)
        return CKR_TEMPLATE_INCONSISTENT;
    for (CK_ULONG i = 0; i < count; i++) {
        if (given[i].ulValueLen > VALUE_LEN_MAX || (!given[i].pValue && given[i].ulValueLen))
            return CKR_ATTRIBUTE_VALUE_INVALID;
        for (CK_ULONG k = 0; k < i; k++)
            if (given[k].type == given[i].type)
                return CKR_TEMPLATE_INCONSISTENT;
    }
    return CKR_OK;
}

/* ---- making ---- */

static bool put_default(const struct rule *rule, unsigned form, struct attributes *result) {
    switch (rule->otherwise) {
    case NO_DEFAULT:
        return true;
    case EMPTY:
        return attributes_set(result, rule->type, NULL, 0);
    case IS_FALSE:
    case IS_TRUE:
        return attributes_set_bool(result, rule->type, rule->otherwise == IS_TRUE);
    case IF_GUARDED:
        return attributes_set_bool(result, rule->type, (form & F_GUARDED) != 0);
    case ZERO:
        return attributes_set_ulong(result, rule->type, 0);
    }
    return false;
}

CK_RV template_build(enum origin origin, CK_OBJECT_CLASS class, CK_KEY_TYPE key_type,
                     const CK_ATTRIBUTE *given, CK_ULONG count, struct attributes *result) {
    static const unsigned may[] = {
        [ORIGIN_CREATE] = CREATE, [ORIGIN_GENERATE] = GENERATE, [ORIGIN_UNWRAP] = UNWRAP};
    static const unsigned must[] = {[ORIGIN_CREATE] = MUST_CREATE, [ORIGIN_GENERATE] = MUST_GENERATE};
    unsigned form = form_of(class, key_type), must_now = origin == ORIGIN_UNWRAP ? 0 : must[origin];
    CK_RV rv = template_check(given, count);
    if (rv != CKR_OK)
        return rv;
    if (!form)
        return CKR_TEMPLATE_INCONSISTENT;
    for (size_t i = 0; i < RULE_COUNT; i++)
        if (rules[i].forms & form && !put_default(&rules[i], form, result))
            return CKR_HOST_MEMORY;
    if (!attributes_set_ulong(result, CKA_CLASS, class) ||
        (form & F_KEY && !attributes_set_ulong(result, CKA_KEY_TYPE, key_type)))
        return CKR_HOST_MEMORY;
    for (CK_ULONG i = 0; i < count; i++) {
        const struct rule *rule = rule_of(form, given[i].type);
        if (!rule)
            return CKR_ATTRIBUTE_TYPE_INVALID;
        if (!value_good(rule->kind, &given[i]))
            return CKR_ATTRIBUTE_VALUE_INVALID;
        if (!(rule->flags & may[origin]))
            return rule->flags & GIVEN ? CKR_TEMPLATE_INCONSISTENT : CKR_ATTRIBUTE_READ_ONLY;
        if (rule->flags & (OFFICER | NEVER_TRUE) && *(const CK_BBOOL *)given[i].pValue)
            return rule->flags & OFFICER ? CKR_ATTRIBUTE_READ_ONLY : CKR_ATTRIBUTE_VALUE_INVALID;
        if ((rule->type == CKA_CLASS && memcmp(given[i].pValue, &class, sizeof class) != 0) ||
            (rule->type == CKA_KEY_TYPE && memcmp(given[i].pValue, &key_type, sizeof key_type) != 0))
            return CKR_TEMPLATE_INCONSISTENT;
        if (!attributes_set(result, given[i].type, given[i].pValue, given[i].ulValueLen))
            return CKR_HOST_MEMORY;
    }
    for (size_t i = 0; i < RULE_COUNT; i++)
        if (rules[i].forms & form && rules[i].flags & must_now && !attributes_find(result, rules[i].type))
            return CKR_TEMPLATE_INCOMPLETE;
    return CKR_OK;
}

/* ---- changing ---- */

CK_RV template_change(const struct attributes *current, bool copying, bool officer, const CK_ATTRIBUTE *given,
                      CK_ULONG count, struct attributes *result) {
    CK_RV rv = template_check(given, count);
    if (rv != CKR_OK)
        return rv;
    unsigned form = form_of(attributes_ulong(current, CKA_CLASS, CK_UNAVAILABLE_INFORMATION),
                            attributes_ulong(current, CKA_KEY_TYPE, CK_UNAVAILABLE_INFORMATION));
    for (CK_ULONG i = 0; i < count; i++) {
        const struct rule *rule = rule_of(form, given[i].type);
        if (!rule)
            return CKR_ATTRIBUTE_TYPE_INVALID;
        if (!(rule->flags & (copying ? COPY : SET)))
            return CKR_ATTRIBUTE_READ_ONLY;
        if (!value_good(rule->kind, &given[i]))
            return CKR_ATTRIBUTE_VALUE_INVALID;
        if (rule->kind == BOOLEAN) {
            bool is = attributes_bool(current, rule->type), wanted = *(const CK_BBOOL *)given[i].pValue;
            if ((rule->flags & RISES && is && !wanted) || (rule->flags & FALLS && !is && wanted))
                return CKR_ATTRIBUTE_READ_ONLY;
            if (rule->flags & OFFICER && wanted && !is && !officer)
                return CKR_ATTRIBUTE_READ_ONLY;
        }
        if (!attributes_set(result, given[i].type, given[i].pValue, given[i].ulValueLen))
            return CKR_HOST_MEMORY;
    }
    return CKR_OK;
}
