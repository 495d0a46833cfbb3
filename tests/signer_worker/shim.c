/* A PKCS#11 module for tests: forwards everything to another module and spoils what the environment asks for.
 *
 * SHIM_TARGET      the module behind it
 * SHIM_FAIL        "n:code,n:code": the n-th C_Sign (from 1, self-tests included) returns that code (hex)
 * SHIM_SPOIL       "n:what,...": the n-th signature comes back as zero (0), one byte short (1) or with s = n (2)
 * SHIM_WAIT        "n:path": the n-th C_Sign does not return before somebody has opened that FIFO for writing
 * SHIM_DER         signatures are returned in DER
 * SHIM_HASH        mechanism 0x1044 (ECDSA with SHA-256) hashes here
 * SHIM_INTERFACES  "message", "vendor" or both: what C_GetInterface offers; "refusing" in it: offered, not supported
 * SHIM_LOGINS      a file that gets a byte for every C_Login
 * SHIM_FLAGS       token flags (hex) to add to the token's own
 */
#include <dlfcn.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cryptoki.h"

enum { CKM_ECDSA = 0x1041, CKM_ECDSA_SHA256 = 0x1044 };

static CK_FUNCTION_LIST *target;
static CK_FUNCTION_LIST_3_0 list;
static CK_ULONG calls;
static int hashing;
static CK_MECHANISM message_mechanism;
static CK_OBJECT_HANDLE message_key;

static const char *setting(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

/* The value given for the n-th call in "n:value,n:value", or `otherwise`. */
static long planned(const char *name, CK_ULONG n, int base, long otherwise)
{
    for (const char *at = setting(name); *at;) {
        char *end;
        CK_ULONG which = strtoul(at, &end, 10);
        long value = strtol(end + 1, &end, base);
        if (which == n)
            return value;
        at = *end == ',' ? end + 1 : end;
    }
    return otherwise;
}

/* Opening a FIFO for reading waits for whoever opens it for writing. */
static void wait_where_planned(CK_ULONG n)
{
    char *path;
    if (strtoul(setting("SHIM_WAIT"), &path, 10) == n && *path == ':') {
        FILE *gate = fopen(path + 1, "r");
        if (gate)
            fclose(gate);
    }
}

static CK_ULONG put_integer(CK_BYTE *out, const CK_BYTE *integer)
{
    CK_ULONG skip = 0;
    while (skip < 31 && !integer[skip])
        skip++;
    CK_ULONG pad = integer[skip] >> 7, len = 32 - skip + pad;
    out[0] = 2;
    out[1] = (CK_BYTE)len;
    out[2] = 0;
    memcpy(out + 2 + pad, integer + skip, 32 - skip);
    return 2 + len;
}

static CK_RV shim_sign_init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
    CK_MECHANISM plain = *mechanism;
    hashing = *setting("SHIM_HASH") && mechanism->mechanism == CKM_ECDSA_SHA256;
    if (hashing)
        plain.mechanism = CKM_ECDSA;
    return target->C_SignInit(session, &plain, key);
}

static CK_RV shim_sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG len, CK_BYTE *signature, CK_ULONG *signature_len)
{
    static const CK_BYTE order[] = "\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xbc\xe6\xfa\xad\xa7\x17"
                                   "\x9e\x84\xf3\xb9\xca\xc2\xfc\x63\x25\x51";
    CK_BYTE digest[32], raw[64];
    CK_ULONG n = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED), raw_len = sizeof raw;
    wait_where_planned(n);
    if (hashing) {
        SHA256(data, len, digest);
        data = digest;
        len = sizeof digest;
    }
    CK_RV rv = target->C_Sign(session, data, len, raw, &raw_len);
    long code = planned("SHIM_FAIL", n, 16, -1), spoil = planned("SHIM_SPOIL", n, 10, -1);
    if (code >= 0 || rv != CKR_OK)
        return code >= 0 ? (CK_RV)code : rv;
    if (spoil == 0)
        memset(raw, 0, sizeof raw);
    if (spoil == 2)
        memcpy(raw + 32, order, 32);
    if (*setting("SHIM_DER")) {
        CK_ULONG r_len = put_integer(signature + 2, raw), s_len = put_integer(signature + 2 + r_len, raw + 32);
        signature[0] = 0x30;
        signature[1] = (CK_BYTE)(r_len + s_len);
        *signature_len = 2 + r_len + s_len;
    } else {
        memcpy(signature, raw, sizeof raw);
        *signature_len = sizeof raw;
    }
    *signature_len -= spoil == 1;
    return CKR_OK;
}

static CK_RV shim_login(CK_SESSION_HANDLE session, CK_ULONG user, CK_BYTE *pin, CK_ULONG len)
{
    FILE *logins = *setting("SHIM_LOGINS") ? fopen(setting("SHIM_LOGINS"), "a") : NULL;
    if (logins) {
        fputc('x', logins);
        fclose(logins);
    }
    return target->C_Login(session, user, pin, len);
}

static CK_RV shim_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO *info)
{
    CK_RV rv = target->C_GetTokenInfo(slot, info);
    info->flags |= strtoul(setting("SHIM_FLAGS"), NULL, 16);
    return rv;
}

static CK_RV shim_message_sign_init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key)
{
    (void)session;
    if (strstr(setting("SHIM_INTERFACES"), "refusing"))
        return CKR_FUNCTION_NOT_SUPPORTED;
    if (message_key)
        return 0x90; /* CKR_OPERATION_ACTIVE */
    message_mechanism = *mechanism;
    message_key = key;
    return CKR_OK;
}

static CK_RV shim_sign_message(CK_SESSION_HANDLE session, void *parameter, CK_ULONG parameter_len, CK_BYTE *data,
                               CK_ULONG len, CK_BYTE *signature, CK_ULONG *signature_len)
{
    (void)parameter;
    (void)parameter_len;
    if (!message_key)
        return 0x91; /* CKR_OPERATION_NOT_INITIALIZED */
    CK_RV rv = shim_sign_init(session, &message_mechanism, message_key);
    return rv == CKR_OK ? shim_sign(session, data, len, signature, signature_len) : rv;
}

static CK_RV shim_message_sign_final(CK_SESSION_HANDLE session)
{
    (void)session;
    message_key = 0;
    return CKR_OK;
}

static CK_RV shim_sign_batch(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key, CK_ULONG count,
                             CK_BYTE *digests, CK_BYTE *signatures, CK_BYTE *statuses, CK_ULONG *done)
{
    if (strstr(setting("SHIM_INTERFACES"), "refusing"))
        return CKR_MECHANISM_INVALID;
    for (*done = 0; *done < count; ++*done) {
        CK_ULONG len = 64;
        CK_RV rv = shim_sign_init(session, mechanism, key);
        if (rv == CKR_OK)
            rv = shim_sign(session, digests + 32 * *done, 32, signatures + 64 * *done, &len);
        if (rv == 0x30)
            return rv; /* CKR_DEVICE_ERROR stops the batch */
        statuses[*done] = rv != CKR_OK;
    }
    return CKR_OK;
}

static CK_RV not_supported(void)
{
    return CKR_FUNCTION_NOT_SUPPORTED;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **out)
{
    void *library = dlopen(setting("SHIM_TARGET"), RTLD_NOW);
    CK_C_GetFunctionList get_functions = NULL;
    if (library)
        *(void **)&get_functions = dlsym(library, "C_GetFunctionList");
    if (!get_functions || get_functions(&target) != CKR_OK)
        return CKR_GENERAL_ERROR;
    if (!list.v2.version.major) {
        ck_unused *slot = (ck_unused *)(&list.v2 + 1), *end = (ck_unused *)(&list + 1);
        while (slot < end)
            *slot++ = (ck_unused)not_supported;
        list.v2 = *target;
        list.v2.version = (CK_VERSION){3, 0};
        list.v2.C_SignInit = shim_sign_init;
        list.v2.C_Sign = shim_sign;
        list.v2.C_Login = shim_login;
        list.v2.C_GetTokenInfo = shim_token_info;
        list.C_MessageSignInit = shim_message_sign_init;
        list.C_SignMessage = shim_sign_message;
        list.C_MessageSignFinal = shim_message_sign_final;
    }
    *out = &list.v2;
    return CKR_OK;
}

CK_RV C_GetInterface(CK_BYTE *name, CK_VERSION *version, CK_INTERFACE **out, CK_FLAGS flags)
{
    static CLOUD_SEAL_BATCH_FUNCTIONS batch = {{1, 0}, shim_sign_batch};
    static CK_INTERFACE standard = {(CK_BYTE *)"PKCS 11", &list, 0};
    static CK_INTERFACE vendor = {(CK_BYTE *)CLOUD_SEAL_BATCH_INTERFACE, &batch, 0};
    const char *offered = setting("SHIM_INTERFACES");
    (void)flags;
    if (!strcmp((char *)name, "PKCS 11") && version->major == 3 && version->minor == 0 && strstr(offered, "message"))
        *out = &standard;
    else if (!strcmp((char *)name, CLOUD_SEAL_BATCH_INTERFACE) && strstr(offered, "vendor"))
        *out = &vendor;
    else
        return CKR_FUNCTION_NOT_SUPPORTED;
    return CKR_OK;
}
