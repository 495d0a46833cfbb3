/* The raw loop: C_SignInit and C_Sign, SM2 over a ready 32-byte value, nothing else. What an appliance in
 * front of the module can at best reach.
 *
 *     bench_raw <module> <slot> <pin> [threads] [seconds] [init | message | batch]
 *
 * Makes a session key, signs for a while on `threads` sessions, prints signatures per second.
 */
#include "include/cloudseal_batch.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 1024, THREADS_MAX = 64 };

static CK_FUNCTION_LIST_3_0 *functions;
static CLOUDSEAL_BATCH_FUNCTION_LIST *batch;
static CK_OBJECT_HANDLE key;
static CK_SLOT_ID slot;
static const char *way;
static atomic_bool stop;

static void must(CK_RV rv, const char *what) {
    if (rv == CKR_OK)
        return;
    fprintf(stderr, "bench_raw: %s: 0x%lx\n", what, rv);
    exit(1);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *worker(void *count) {
    CK_SESSION_HANDLE session;
    CK_MECHANISM mechanism = {CKM_SM2, NULL, 0};
    static _Thread_local CK_BYTE digests[BATCH * 32], signatures[BATCH * 64], statuses[BATCH];
    unsigned long done = 0;
    must(functions->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session), "C_OpenSession");
    memset(digests, 0x5A, sizeof digests);
    if (strcmp(way, "message") == 0)
        must(functions->C_MessageSignInit(session, &mechanism, key), "C_MessageSignInit");
    while (!stop) {
        CK_ULONG len = 64, signed_now = 1;
        if (strcmp(way, "batch") == 0) {
            must(batch->C_SignBatch(session, &mechanism, key, BATCH, digests, signatures, statuses,
                                    &signed_now),
                 "C_SignBatch");
        } else if (strcmp(way, "message") == 0) {
            must(functions->C_SignMessage(session, NULL, 0, digests, 32, signatures, &len), "C_SignMessage");
        } else {
            must(functions->C_SignInit(session, &mechanism, key), "C_SignInit");
            must(functions->C_Sign(session, digests, 32, signatures, &len), "C_Sign");
        }
        done += signed_now;
    }
    *(unsigned long *)count = done;
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 4)
        return fprintf(stderr,
                       "bench_raw <module> <slot> <pin> [threads] [seconds] [init | message | batch]\n"),
               2;
    int threads = argc > 4 ? atoi(argv[4]) : 1;
    double seconds = argc > 5 ? atof(argv[5]) : 2;
    way = argc > 6 ? argv[6] : "init";
    if (threads < 1 || threads > THREADS_MAX)
        return fprintf(stderr, "bench_raw: 1 to %d threads\n", THREADS_MAX), 2;
    slot = strtoul(argv[2], NULL, 10);
    void *module = dlopen(argv[1], RTLD_NOW);
    CK_RV (*get_interface)
    (CK_UTF8CHAR_PTR, CK_VERSION *, CK_INTERFACE_PTR_PTR, CK_FLAGS) =
        module ? (CK_RV(*)(CK_UTF8CHAR_PTR, CK_VERSION *, CK_INTERFACE_PTR_PTR, CK_FLAGS))dlsym(
                     module, "C_GetInterface")
               : NULL;
    if (!get_interface)
        return fprintf(stderr, "bench_raw: %s\n", dlerror()), 1;
    CK_INTERFACE *interface;
    CK_VERSION version = {3, 0};
    must(get_interface((CK_UTF8CHAR_PTR) "PKCS 11", &version, &interface, 0), "C_GetInterface");
    functions = interface->pFunctionList;
    if (get_interface((CK_UTF8CHAR_PTR)CLOUDSEAL_BATCH_INTERFACE, NULL, &interface, 0) == CKR_OK)
        batch = interface->pFunctionList;
    else if (strcmp(way, "batch") == 0)
        return fprintf(stderr, "bench_raw: the module has no batch interface\n"), 1;

    CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE public_key;
    CK_MECHANISM generate = {CKM_SM2_KEY_PAIR_GEN, NULL, 0};
    must(functions->C_Initialize(&args), "C_Initialize");
    must(functions->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session),
         "C_OpenSession");
    must(functions->C_Login(session, CKU_USER, (CK_UTF8CHAR_PTR)argv[3], strlen(argv[3])), "C_Login");
    must(functions->C_GenerateKeyPair(session, &generate, NULL, 0, NULL, 0, &public_key, &key),
         "C_GenerateKeyPair");

    pthread_t thread[THREADS_MAX];
    unsigned long counts[THREADS_MAX] = {0}, all = 0;
    double start = now_s();
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, worker, &counts[i]) != 0)
            return 1;
    struct timespec pause = {.tv_sec = (time_t)seconds,
                             .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
    stop = true;
    for (int i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        all += counts[i];
    }
    printf("%.0f\n", (double)all / (now_s() - start));
    must(functions->C_Finalize(NULL), "C_Finalize");
    return 0;
}
