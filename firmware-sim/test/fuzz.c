/* Fuzzing what parses foreign input: templates, mechanisms and their parameters through the entry points;
 * object files, token files, fault plans and settings directly.
 *
 *     fuzz <first seed> <count>      self-contained: inputs are made from seeds, every run repeats exactly
 *
 * Built by clang with -fsanitize=fuzzer and -DLIBFUZZER it is a libFuzzer target instead. Either way the
 * claim is the same: any input is accepted or refused with a CK_RV, and no sanitizer has anything to say.
 *
 * An input is read as a little program: a byte that chooses what to do, then templates made of a type, a
 * length and a value, each of which is either arbitrary or of a shape that gets past the first check.
 */
#include "../src/bytes.h"
#include "../src/module.h"

#include <stdio.h>

static CK_SESSION_HANDLE session;
static CK_OBJECT_HANDLE objects[8];

static const CK_ATTRIBUTE_TYPE types[] = {
    CKA_CLASS,
    CKA_TOKEN,
    CKA_PRIVATE,
    CKA_LABEL,
    CKA_VALUE,
    CKA_CERTIFICATE_TYPE,
    CKA_KEY_TYPE,
    CKA_ID,
    CKA_SENSITIVE,
    CKA_SIGN,
    CKA_WRAP,
    CKA_UNWRAP,
    CKA_EXTRACTABLE,
    CKA_START_DATE,
    CKA_MODULUS,
    CKA_MODULUS_BITS,
    CKA_PUBLIC_EXPONENT,
    CKA_PRIVATE_EXPONENT,
    CKA_PRIME_1,
    CKA_VALUE_LEN,
    CKA_EC_PARAMS,
    CKA_EC_POINT,
    CKA_ALLOWED_MECHANISMS,
    CKA_SUBJECT,
    CKA_CHECK_VALUE,
    CKA_PUBLIC_KEY_INFO,
    CKA_MODIFIABLE,
    CKA_COPYABLE,
    CKA_DESTROYABLE,
    CKA_ENCRYPT,
    CKA_DECRYPT,
};
enum { TYPES = sizeof types / sizeof *types, TEMPLATE_MAX = 12 };

struct template {
    CK_ATTRIBUTE item[TEMPLATE_MAX];
    CK_ULONG count;
    uint8_t storage[TEMPLATE_MAX][96];
};

static const uint8_t sm2_curve[] = {0x06, 0x08, 0x2A, 0x81, 0x1C, 0xCF, 0x55, 0x01, 0x82, 0x2D};

static void put_number(CK_ATTRIBUTE *at, CK_ULONG number) {
    memcpy(at->pValue, &number, sizeof number);
    at->ulValueLen = sizeof number;
}

/* A value of the shape that the type asks for, most of the time. */
static void read_value(struct reader *r, CK_ATTRIBUTE *at, uint8_t *storage) {
    uint64_t shape = read_uint(r, 1);
    at->pValue = storage;
    if (shape == 255) { /* a lie about the length, where no byte is looked at before it is checked */
        at->pValue = NULL;
        at->ulValueLen = read_uint(r, 1) % 2 ? CK_UNAVAILABLE_INFORMATION : read_uint(r, 1);
    } else if (shape > 240) { /* any bytes */
        at->ulValueLen = read_uint(r, 1) % 96;
        read_into(r, storage, r->left < at->ulValueLen ? r->left : at->ulValueLen);
    } else if (attribute_is_ulong(at->type)) {
        put_number(at, read_uint(r, 1) & 0x1F);
    } else if (at->type == CKA_EC_PARAMS) {
        memcpy(storage, sm2_curve, sizeof sm2_curve);
        storage[shape % 16] ^= (uint8_t)(shape & 0xC0);
        at->ulValueLen = sizeof sm2_curve;
    } else if (at->type == CKA_VALUE || at->type == CKA_LABEL || at->type == CKA_ID ||
               at->type == CKA_SUBJECT) {
        memset(storage, (int)shape + 1, 32);
        at->ulValueLen = shape & 0x0F ? 32 : 16;
    } else { /* a truth value */
        storage[0] = shape & 1;
        at->ulValueLen = 1;
    }
}

/* One of the objects that there can be, or nothing, and then whatever the input adds. */
static void read_template(struct reader *r, struct template *template) {
    static const struct {
        CK_ULONG class, key_type;
        CK_ATTRIBUTE_TYPE more[3];
    } bases[] = {
        {CKO_DATA, ~0UL, {CKA_VALUE, CKA_LABEL, CKA_TOKEN}},
        {CKO_CERTIFICATE, ~0UL, {CKA_SUBJECT, CKA_VALUE, CKA_CERTIFICATE_TYPE}},
        {CKO_SECRET_KEY, CKK_AES, {CKA_VALUE, CKA_ENCRYPT, CKA_DECRYPT}},
        {CKO_SECRET_KEY, CKK_GENERIC_SECRET, {CKA_VALUE, CKA_SIGN, CKA_EXTRACTABLE}},
        {CKO_PRIVATE_KEY, CKK_SM2, {CKA_VALUE, CKA_EC_PARAMS, CKA_SIGN}},
        {CKO_PRIVATE_KEY, CKK_RSA, {CKA_MODULUS, CKA_PUBLIC_EXPONENT, CKA_PRIME_1}},
    };
    uint64_t base = read_uint(r, 1) & 0x07;
    CK_ULONG at = 0;
    memset(template, 0, sizeof *template);
    if (base < sizeof bases / sizeof *bases) {
        template->item[at++].type = CKA_CLASS;
        if (bases[base].key_type != ~0UL)
            template->item[at++].type = CKA_KEY_TYPE;
        for (int i = 0; i < 3; i++)
            template->item[at++].type = bases[base].more[i];
    }
    template->count = at + (read_uint(r, 1) & 3);
    for (CK_ULONG i = at; i < template->count; i++) {
        uint64_t which = read_uint(r, 1);
        template->item[i].type = which < 250 ? types[which % TYPES] : read_uint(r, 8);
    }
    for (CK_ULONG i = 0; i < template->count; i++) {
        read_value(r, &template->item[i], template->storage[i]);
        if (i < at && template->item[i].pValue && template->item[i].type == CKA_CLASS)
            put_number(&template->item[i], bases[base].class);
        else if (i < at && template->item[i].pValue && template->item[i].type == CKA_KEY_TYPE)
            put_number(&template->item[i], bases[base].key_type);
    }
}

static CK_MECHANISM read_mechanism(struct reader *r, uint8_t parameter[64]) {
    uint64_t which = read_uint(r, 1);
    CK_MECHANISM mechanism = {which < 250 ? mechanisms[which % mechanism_count].type : read_uint(r, 8),
                              parameter, 0};
    memset(parameter, 0, 64);
    switch (read_uint(r, 1) % 8) {
    default:
        mechanism.pParameter = NULL;
        break;
    case 1: {
        CK_RSA_PKCS_PSS_PARAMS pss = {CKM_SHA256, CKG_MGF1_SHA256, read_uint(r, 1)};
        memcpy(parameter, &pss, sizeof pss);
        parameter[read_uint(r, 1) % 64] ^= (uint8_t)read_uint(r, 1);
        mechanism.ulParameterLen = sizeof pss;
        break;
    }
    case 2:
        mechanism.ulParameterLen = 16;
        break;
    case 3:
        mechanism.ulParameterLen = read_uint(r, 1) % 65;
        read_into(r, parameter, r->left < 64 ? r->left : 64);
    }
    return mechanism;
}

/* For generating: a mechanism that can, most of the time. */
static CK_MECHANISM read_generator(struct reader *r, uint8_t parameter[64], bool pair) {
    static const CK_MECHANISM_TYPE single[] = {CKM_AES_KEY_GEN, CKM_SM4_KEY_GEN, CKM_GENERIC_SECRET_KEY_GEN},
                                   pairs[] = {CKM_SM2_KEY_PAIR_GEN, CKM_EC_KEY_PAIR_GEN,
                                              CKM_SM2_KEY_PAIR_GEN};
    uint64_t which = read_uint(r, 1);
    if (which % 8 == 7)
        return read_mechanism(r, parameter);
    return (CK_MECHANISM){(pair ? pairs : single)[which % 3], NULL, 0};
}

static void keep(CK_RV rv, CK_OBJECT_HANDLE made) {
    static size_t next;
    if (rv != CKR_OK)
        return;
    C_DestroyObject(session, objects[3 + next]); /* the first three stay: there is always a key that works */
    objects[3 + next] = made;
    next = (next + 1) % 5;
}

static void use_mechanism(struct reader *r, uint64_t what, CK_OBJECT_HANDLE key) {
    uint8_t parameter[64], in[256] = {0}, out[1024];
    CK_ULONG out_len = read_uint(r, 1) * 4, in_len = read_uint(r, 1);
    CK_MECHANISM mechanism = read_mechanism(r, parameter);
    read_into(r, in, r->left < sizeof in ? r->left : sizeof in);
    if (mechanism.mechanism == CKM_RSA_PKCS_KEY_PAIR_GEN)
        return; /* takes a second, and its parser is the templates' */
    switch (what % 6) {
    case 0:
        if (C_SignInit(session, &mechanism, key) == CKR_OK &&
            C_Sign(session, in, in_len, out, &out_len) != CKR_OK)
            C_SessionCancel(session, CKF_SIGN);
        break;
    case 1:
        if (C_VerifyInit(session, &mechanism, key) == CKR_OK)
            C_Verify(session, in, in_len, in, in_len);
        break;
    case 2:
        if (C_EncryptInit(session, &mechanism, key) == CKR_OK) {
            C_EncryptUpdate(session, in, in_len, out, &out_len);
            C_EncryptFinal(session, out, &out_len);
            C_SessionCancel(session, CKF_ENCRYPT);
        }
        break;
    case 3:
        if (C_DecryptInit(session, &mechanism, key) == CKR_OK) {
            C_Decrypt(session, in, in_len, out, &out_len);
            C_SessionCancel(session, CKF_DECRYPT);
        }
        break;
    case 4:
        if (C_DigestInit(session, &mechanism) == CKR_OK) {
            C_Digest(session, in, in_len, out, &out_len);
            C_SessionCancel(session, CKF_DIGEST);
        }
        break;
    default:
        C_WrapKey(session, &mechanism, key, objects[in[0] % 8], out, &out_len);
    }
}

static void through_the_entry_points(struct reader *r, uint64_t what) {
    struct template one, two;
    uint8_t parameter[64], wrapped[256] = {0};
    CK_OBJECT_HANDLE made = 0, other = 0, key = objects[read_uint(r, 1) % 8];
    read_template(r, &one);
    switch (what) {
    case 0:
        keep(C_CreateObject(session, one.item, one.count, &made), made);
        break;
    case 1:
        keep(C_CopyObject(session, key, one.item, one.count, &made), made);
        break;
    case 2:
        C_SetAttributeValue(session, key, one.item, one.count);
        break;
    case 3:
        if (C_FindObjectsInit(session, one.item, one.count) == CKR_OK) {
            CK_OBJECT_HANDLE found[4];
            CK_ULONG count;
            C_FindObjects(session, found, 4, &count);
            C_FindObjectsFinal(session);
        }
        break;
    case 4:
        for (CK_ULONG i = 0; i < one.count; i++) /* lengths of the storage, whatever the input says */
            one.item[i].ulValueLen = one.item[i].pValue ? one.item[i].ulValueLen % 96 : 0;
        C_GetAttributeValue(session, key, one.item, one.count);
        break;
    case 5: {
        CK_MECHANISM mechanism = read_generator(r, parameter, false);
        keep(C_GenerateKey(session, &mechanism, one.item, one.count, &made), made);
        break;
    }
    case 6: {
        CK_MECHANISM mechanism = read_generator(r, parameter, true);
        read_template(r, &two);
        if (mechanism.mechanism == CKM_RSA_PKCS_KEY_PAIR_GEN)
            break;
        CK_RV rv =
            C_GenerateKeyPair(session, &mechanism, one.item, one.count, two.item, two.count, &made, &other);
        keep(rv, made);
        keep(rv, other);
        break;
    }
    case 7: {
        CK_MECHANISM mechanism = read_mechanism(r, parameter);
        read_into(r, wrapped, r->left < sizeof wrapped ? r->left : sizeof wrapped);
        keep(C_UnwrapKey(session, &mechanism, key, wrapped, wrapped[0], one.item, one.count, &made), made);
        break;
    }
    default:
        use_mechanism(r, what, key);
    }
}

/* The text parsers want a string. */
static void as_text(struct reader *r, void (*parse)(const char *)) {
    char text[2048];
    size_t len = r->left < sizeof text - 1 ? r->left : sizeof text - 1;
    read_into(r, text, len);
    text[len] = 0;
    parse(text);
}

static void parse_plan(const char *text) {
    static struct fault_plan plan;
    char message[256];
    fault_parse(&plan, text, message, sizeof message);
}

static void parse_setting(const char *text) {
    struct settings settings;
    char message[256];
    settings_default(&settings);
    settings_line(&settings, text, message, sizeof message);
}

static void as_object_file(struct reader *r) {
    /* The checksum would stop nearly every input: mend it, it guards against accidents only. */
    static const uint8_t epoch[EPOCH_LEN];
    uint8_t bytes[2048];
    size_t len = r->left < sizeof bytes - 64 ? r->left : sizeof bytes - 64;
    memcpy(bytes, "CSFSOBJ1", 8);
    memset(bytes + 8, 0, EPOCH_LEN);
    read_into(r, bytes + 24, len);
    EVP_Digest(bytes, 24 + len, bytes + 24 + len, NULL, EVP_sha256(), NULL);
    object_release(object_decode(bytes, len + 56, epoch));
    struct token_record record;
    token_record_decode(bytes, len + 56, &record);
}

static void set_up(void) {
    static bool done;
    CK_OBJECT_HANDLE public_key;
    CK_BYTE label[32];
    CK_BBOOL yes = 1;
    CK_ULONG len = 16;
    CK_ATTRIBUTE aes[] = {{CKA_VALUE_LEN, &len, sizeof len},
                          {CKA_WRAP, &yes, 1},
                          {CKA_UNWRAP, &yes, 1},
                          {CKA_ENCRYPT, &yes, 1},
                          {CKA_DECRYPT, &yes, 1},
                          {CKA_EXTRACTABLE, &yes, 1}};
    CK_MECHANISM sm2 = {CKM_SM2_KEY_PAIR_GEN, NULL, 0}, aes_generate = {CKM_AES_KEY_GEN, NULL, 0};
    if (done)
        return;
    done = true;
    memset(label, ' ', sizeof label);
    bool good = C_Initialize(NULL) == CKR_OK &&
                C_InitToken(0, (CK_BYTE_PTR) "87654321", 8, label) == CKR_OK &&
                C_OpenSession(0, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session) == CKR_OK &&
                C_Login(session, CKU_SO, (CK_BYTE_PTR) "87654321", 8) == CKR_OK &&
                C_InitPIN(session, (CK_BYTE_PTR) "1234", 4) == CKR_OK && C_Logout(session) == CKR_OK &&
                C_Login(session, CKU_USER, (CK_BYTE_PTR) "1234", 4) == CKR_OK &&
                C_GenerateKeyPair(session, &sm2, NULL, 0, aes + 5, 1, &public_key, &objects[0]) == CKR_OK &&
                C_GenerateKey(session, &aes_generate, aes, 6, &objects[1]) == CKR_OK;
    objects[2] = public_key;
    for (int i = 3; i < 8 && good; i++)
        good = C_CopyObject(session, objects[i % 3], NULL, 0, &objects[i]) == CKR_OK;
    if (!good) {
        fprintf(stderr, "fuzz: cannot set up a token: set FIRMWARE_SIM_TOKENS to an empty directory\n");
        exit(2);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t len) {
    struct reader r = {.at = input, .left = len};
    set_up();
    uint64_t what = read_uint(&r, 1) % 20;
    if (what < 16)
        through_the_entry_points(&r, what);
    else if (what == 16)
        as_text(&r, parse_plan);
    else if (what == 17)
        as_text(&r, parse_setting);
    else
        as_object_file(&r);
    return 0;
}

#ifndef LIBFUZZER
static uint64_t state;

static uint64_t next(void) { /* splitmix64 */
    uint64_t z = state += 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static const char *const words[] = {
    "C_Sign ",
    "signature ",
    "* ",
    "every ",
    "3.. ",
    "2..4 ",
    "fail CKR_DEVICE_ERROR",
    "lose CKR_OK",
    "remove calls ",
    "once",
    ";",
    "\n",
    "# ",
    "tokens = ",
    "batch=on",
    "engines = 7",
    "kdf_log2n=99999999999999999999",
    "=",
    " ",
    "delay 18446744073709551616",
};

int main(int argc, char **argv) {
    if (argc != 3)
        return fprintf(stderr, "fuzz <first seed> <count>\n"), 2;
    uint64_t seed = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t input[512];
        state = seed + i;
        size_t len = 0, wanted = 8 + next() % 400;
        while (len < wanted) {
            uint64_t draw = next();
            const char *word = words[draw % (sizeof words / sizeof *words)];
            if (draw >> 60 == 0 && len + strlen(word) < sizeof input) {
                memcpy(input + len, word, strlen(word));
                len += strlen(word);
            } else {
                /* Small values are counts, lengths and choices: they lead deeper than large ones. */
                input[len++] = (uint8_t)(draw >> 8) & (draw >> 61 ? 0x1F : 0xFF);
            }
        }
        LLVMFuzzerTestOneInput(input, len);
    }
    return C_Finalize(NULL) == CKR_OK ? 0 : 1;
}
#endif
