/* General purpose functions, and the process-wide life of the module.
 *
 * After fork() the child is a new application to PKCS#11 and must call C_Initialize itself: what it inherited
 * is forgotten without being touched (another thread may have held any lock), and its keys are wiped.
 */
#include "lifetime.h"
#include "module.h"

#include "../include/cloudseal_batch.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_rwlock_t lifetime = PTHREAD_RWLOCK_INITIALIZER;
static struct module *the_module; /* lifetime */

static void in_the_child_of_a_fork(void) {
    lifetime = (pthread_rwlock_t)PTHREAD_RWLOCK_INITIALIZER;
    if (!the_module)
        return;
    /* The rest of the parent's state is unreachable from here on; freeing it could meet a lock held by a
     * thread that the child does not have. */
    for (size_t i = 0; i < the_module->token_count; i++)
        OPENSSL_cleanse(the_module->tokens[i]->master, MASTER_KEY_LEN);
    OPENSSL_cleanse(the_module->session_key, sizeof the_module->session_key);
    trace_stop(&the_module->trace);
    the_module = NULL;
}

__attribute__((constructor)) static void on_load(void) {
    pthread_atfork(NULL, NULL, in_the_child_of_a_fork);
}

struct module *lifetime_enter(void) {
    pthread_rwlock_rdlock(&lifetime);
    if (!the_module)
        pthread_rwlock_unlock(&lifetime);
    return the_module;
}

void lifetime_leave(void) {
    pthread_rwlock_unlock(&lifetime);
}

static CK_RV check_initialize_args(const CK_C_INITIALIZE_ARGS *args) {
    if (!args)
        return CKR_OK;
    if (args->pReserved)
        return CKR_ARGUMENTS_BAD;
    int callbacks = !!args->CreateMutex + !!args->DestroyMutex + !!args->LockMutex + !!args->UnlockMutex;
    if (callbacks != 0 && callbacks != 4)
        return CKR_ARGUMENTS_BAD;
    /* We lock with the operating system's primitives and nothing else; who forbids that cannot be served. */
    if (callbacks == 4 && !(args->flags & CKF_OS_LOCKING_OK))
        return CKR_CANT_LOCK;
    return CKR_OK;
}

static void module_free(struct module *m) {
    session_close_all(m, NULL);
    for (uint32_t i = 0; i < m->objects.used; i++)
        object_release(m->objects.entry[i].item);
    handles_free(&m->objects);
    handles_free(&m->sessions);
    tokens_free(m);
    mechanisms_unload(m);
    trace_stop(&m->trace);
    timing_stop(&m->timing);
    fault_stop(&m->faults);
    pthread_rwlock_destroy(&m->tables);
    OPENSSL_cleanse(m->session_key, sizeof m->session_key);
    free(m);
}

static CK_RV initialize(const CK_C_INITIALIZE_ARGS *args) {
    char message[512] = "";
    CK_RV rv = check_initialize_args(args);
    if (rv != CKR_OK)
        return rv;
    if (the_module)
        return CKR_CRYPTOKI_ALREADY_INITIALIZED;
    struct module *m = calloc(1, sizeof *m);
    if (!m)
        return CKR_HOST_MEMORY;
    pthread_rwlock_init(&m->tables, NULL);
    m->trace.fd = -1;
    bool good = settings_read(&m->settings, message, sizeof message);
    m->engine = good ? engine_named(m->settings.engine) : NULL;
    if (good && !m->engine)
        snprintf(message, sizeof message, "engine: \"%s\" is not in this build", m->settings.engine);
    good = good && m->engine;
    good = fault_start(&m->faults, good ? m->settings.faults : "", m->settings.tokens, message,
                       sizeof message) &&
           good;
    good = trace_start(&m->trace, good ? m->settings.trace : "", message, sizeof message) && good;
    good = timing_start(&m->timing, m->settings.service_us, m->settings.engines, m->settings.round_trip_us) ==
               0 &&
           good;
    rv = good ? CKR_OK : CKR_ARGUMENTS_BAD;
    if (good && (!mechanisms_load(m) || RAND_priv_bytes(m->session_key, sizeof m->session_key) != 1))
        rv = CKR_GENERAL_ERROR;
    if (rv != CKR_OK) {
        if (*message)
            fprintf(stderr, "firmware-sim: %s\n", message);
        module_free(m);
        return rv;
    }
    tokens_refresh(m);
    the_module = m;
    return CKR_OK;
}

CK_RV C_Initialize(CK_VOID_PTR args) {
    pthread_rwlock_wrlock(&lifetime);
    CK_RV rv = initialize(args);
    pthread_rwlock_unlock(&lifetime);
    return rv;
}

CK_RV C_Finalize(CK_VOID_PTR reserved) {
    struct call call;
    CK_RV rv = call_enter(&call, CALL_C_Finalize); /* the fault plan's say */
    rv = call_leave(&call, rv == CKR_OK && reserved ? CKR_ARGUMENTS_BAD : rv);
    if (rv != CKR_OK)
        return rv;
    pthread_rwlock_wrlock(&lifetime); /* waits for calls of other threads that are still inside */
    struct module *m = the_module;
    the_module = NULL;
    if (m)
        module_free(m);
    pthread_rwlock_unlock(&lifetime);
    return m ? CKR_OK : CKR_CRYPTOKI_NOT_INITIALIZED;
}

static CK_RV get_info(CK_INFO *info) {
    memset(info, 0, sizeof *info);
    info->cryptokiVersion = (CK_VERSION){3, 0};
    memcpy(info->manufacturerID, "cloud-seal firmware-sim         ", 32);
    memcpy(info->libraryDescription, "SIMULATOR, not a certified HSM  ", 32);
    info->libraryVersion = (CK_VERSION){0, 1};
    return CKR_OK;
}

CK_RV C_GetInfo(CK_INFO_PTR info) {
    SHIM(C_GetInfo, info, get_info(info));
}

/* ---- interfaces: available before C_Initialize ---- */

static CK_FUNCTION_LIST functions_2_40 = {.version = {2, 40},
#define MEMBER(name, arguments) .name = name,
                                          CK_FUNCTIONS_2_40(MEMBER)};
static CK_FUNCTION_LIST_3_0 functions_3_0 = {.version = {3, 0},
                                             CK_FUNCTIONS_2_40(MEMBER) CK_FUNCTIONS_3_0(MEMBER)};
#undef MEMBER

CK_RV C_SignBatch(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key, CK_ULONG count,
                  CK_BYTE_PTR digests, CK_BYTE_PTR signatures, CK_BYTE_PTR statuses, CK_ULONG_PTR done);
static CLOUDSEAL_BATCH_FUNCTION_LIST functions_batch = {.version = {1, 0}, .C_SignBatch = C_SignBatch};

static CK_INTERFACE interfaces[] = {
    {(CK_UTF8CHAR *)"PKCS 11", &functions_3_0, CKF_INTERFACE_FORK_SAFE},
    {(CK_UTF8CHAR *)"PKCS 11", &functions_2_40, CKF_INTERFACE_FORK_SAFE},
    {(CK_UTF8CHAR *)CLOUDSEAL_BATCH_INTERFACE, &functions_batch, CKF_INTERFACE_FORK_SAFE},
};

/* `batch = off` hides the vendor interface. A caller may look before C_Initialize, so the setting is read
 * here too. */
static size_t interface_count(void) {
    size_t all = sizeof interfaces / sizeof *interfaces;
    struct settings *settings = malloc(sizeof *settings);
    char message[512];
    bool hidden = settings && settings_read(settings, message, sizeof message) && !settings->batch;
    free(settings);
    return hidden ? all - 1 : all;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
    if (!list)
        return CKR_ARGUMENTS_BAD;
    *list = &functions_2_40;
    return CKR_OK;
}

CK_RV C_GetInterfaceList(CK_INTERFACE_PTR list, CK_ULONG_PTR count) {
    if (!count)
        return CKR_ARGUMENTS_BAD;
    CK_ULONG room = *count;
    *count = interface_count();
    if (!list)
        return CKR_OK;
    if (room < *count)
        return CKR_BUFFER_TOO_SMALL;
    memcpy(list, interfaces, *count * sizeof *list);
    return CKR_OK;
}

CK_RV C_GetInterface(CK_UTF8CHAR_PTR name, CK_VERSION *version, CK_INTERFACE_PTR_PTR interface,
                     CK_FLAGS flags) {
    if (!interface)
        return CKR_ARGUMENTS_BAD;
    size_t count = interface_count();
    for (size_t i = 0; i < count; i++) {
        const CK_VERSION *has = interfaces[i].pFunctionList; /* every list begins with its version */
        if (name && strcmp((const char *)name, (const char *)interfaces[i].pInterfaceName) != 0)
            continue;
        if (version && (version->major != has->major || version->minor != has->minor))
            continue;
        if ((interfaces[i].flags & flags) != flags)
            continue;
        *interface = &interfaces[i];
        return CKR_OK;
    }
    return CKR_ARGUMENTS_BAD;
}

/* ---- parallel function management: legacy by the standard's own words ---- */

CK_RV C_GetFunctionStatus(CK_SESSION_HANDLE session) {
    SESSION_SHIM(C_GetFunctionStatus, true, CKR_FUNCTION_NOT_PARALLEL);
}

CK_RV C_CancelFunction(CK_SESSION_HANDLE session) {
    SESSION_SHIM(C_CancelFunction, true, CKR_FUNCTION_NOT_PARALLEL);
}
