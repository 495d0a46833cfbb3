/* Eight threads on one module, for ThreadSanitizer: signing, verifying, searching, making and destroying
 * objects, and a thread that looks at slots and token all the while. Ends by itself; exit status 0 is
 * success.
 *
 *     stress <module> <slot> <pin> [rounds]
 */
#include "../include/cloudseal_batch.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8 };

static CK_FUNCTION_LIST_3_0 *f;
static CLOUDSEAL_BATCH_FUNCTION_LIST *batch;
static CK_OBJECT_HANDLE public_key, private_key;
static CK_SLOT_ID slot;
static int rounds;

static void must(CK_RV rv, const char *what) {
    if (rv == CKR_OK)
        return;
    fprintf(stderr, "stress: %s: 0x%lx\n", what, rv);
    exit(1);
}

static void sign_and_verify(CK_SESSION_HANDLE session, CK_BYTE number) {
    CK_MECHANISM raw = {CKM_SM2, NULL, 0}, message = {CKM_SM3_SM2, "somebody", 8};
    CK_BYTE e[8 * 32], signature[8 * 64], statuses[8];
    CK_ULONG len = 64, done;
    memset(e, number, sizeof e);
    must(f->C_SignInit(session, &raw, private_key), "C_SignInit");
    must(f->C_Sign(session, e, 32, signature, &len), "C_Sign");
    must(f->C_VerifyInit(session, &raw, public_key), "C_VerifyInit");
    must(f->C_Verify(session, e, 32, signature, len), "C_Verify");
    must(f->C_MessageSignInit(session, &message, private_key), "C_MessageSignInit");
    must(f->C_SignMessage(session, NULL, 0, e, 100, signature, &len), "C_SignMessage");
    must(f->C_MessageSignFinal(session), "C_MessageSignFinal");
    must(batch->C_SignBatch(session, &raw, private_key, 8, e, signature, statuses, &done), "C_SignBatch");
    if (done != 8)
        must(CKR_GENERAL_ERROR, "C_SignBatch: not all signed");
}

static void make_and_destroy(CK_SESSION_HANDLE session, CK_BYTE number) {
    CK_OBJECT_CLASS data = CKO_DATA;
    CK_BBOOL token = number % 2;
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &data, sizeof data},
                               {CKA_TOKEN, &token, sizeof token},
                               {CKA_LABEL, &number, sizeof number}};
    CK_OBJECT_HANDLE made, found[16];
    CK_ULONG count;
    CK_BYTE label[4];
    CK_ATTRIBUTE look = {CKA_LABEL, label, sizeof label}, change = {CKA_LABEL, "new", 3};
    must(f->C_CreateObject(session, template, 3, &made), "C_CreateObject");
    must(f->C_FindObjectsInit(session, template, 1), "C_FindObjectsInit");
    must(f->C_FindObjects(session, found, 16, &count), "C_FindObjects");
    must(f->C_FindObjectsFinal(session), "C_FindObjectsFinal");
    must(f->C_SetAttributeValue(session, made, &change, 1), "C_SetAttributeValue");
    must(f->C_GetAttributeValue(session, made, &look, 1), "C_GetAttributeValue");
    must(f->C_DestroyObject(session, made), "C_DestroyObject");
}

static void *worker(void *which) {
    CK_BYTE number = (CK_BYTE)(size_t)which;
    for (int i = 0; i < rounds; i++) {
        CK_SESSION_HANDLE session;
        must(f->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session),
             "C_OpenSession");
        sign_and_verify(session, number);
        if (i % 4 == 0)
            make_and_destroy(session, number);
        must(f->C_CloseSession(session), "C_CloseSession");
    }
    return NULL;
}

static void *onlooker(void *unused) {
    (void)unused;
    for (int i = 0; i < rounds; i++) {
        CK_ULONG count = 0;
        CK_TOKEN_INFO info;
        must(f->C_GetSlotList(1, NULL, &count), "C_GetSlotList");
        must(f->C_GetTokenInfo(slot, &info), "C_GetTokenInfo");
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 4)
        return fprintf(stderr, "stress <module> <slot> <pin> [rounds]\n"), 2;
    rounds = argc > 4 ? atoi(argv[4]) : 50;
    slot = strtoul(argv[2], NULL, 10);
    void *module = dlopen(argv[1], RTLD_NOW);
    CK_RV (*get)
    (CK_UTF8CHAR_PTR, CK_VERSION *, CK_INTERFACE_PTR_PTR, CK_FLAGS) =
        module ? (CK_RV(*)(CK_UTF8CHAR_PTR, CK_VERSION *, CK_INTERFACE_PTR_PTR, CK_FLAGS))dlsym(
                     module, "C_GetInterface")
               : NULL;
    if (!get)
        return fprintf(stderr, "stress: %s\n", dlerror()), 1;
    CK_INTERFACE *interface;
    CK_VERSION version = {3, 0};
    must(get((CK_UTF8CHAR_PTR) "PKCS 11", &version, &interface, 0), "C_GetInterface");
    f = interface->pFunctionList;
    must(get((CK_UTF8CHAR_PTR)CLOUDSEAL_BATCH_INTERFACE, NULL, &interface, 0), "C_GetInterface");
    batch = interface->pFunctionList;

    CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
    CK_SESSION_HANDLE session;
    CK_MECHANISM generate = {CKM_SM2_KEY_PAIR_GEN, NULL, 0};
    CK_BBOOL yes = 1;
    CK_ATTRIBUTE on_token = {CKA_TOKEN, &yes, sizeof yes};
    must(f->C_Initialize(&args), "C_Initialize");
    must(f->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session), "C_OpenSession");
    must(f->C_Login(session, CKU_USER, (CK_UTF8CHAR_PTR)argv[3], strlen(argv[3])), "C_Login");
    must(f->C_GenerateKeyPair(session, &generate, &on_token, 1, &on_token, 1, &public_key, &private_key),
         "C_GenerateKeyPair");
    pthread_t thread[THREADS + 1];
    for (size_t i = 0; i < THREADS; i++)
        if (pthread_create(&thread[i], NULL, worker, (void *)i) != 0)
            return 1;
    if (pthread_create(&thread[THREADS], NULL, onlooker, NULL) != 0)
        return 1;
    for (size_t i = 0; i <= THREADS; i++)
        pthread_join(thread[i], NULL);
    must(f->C_Finalize(NULL), "C_Finalize");
    return 0;
}
