/* The yardstick: C_SignInit and C_Sign on a PKCS#11 module in a loop, with nothing around them.
 *
 *     raw_loop --module M --token LABEL --pin-file F --key-id HEX --mechanism N
 *              [--seconds S] [--threads N] [--processes N] [--batch N] [--pause US]
 *
 * Prints one JSON object: signatures per second over all threads and processes, processor time per signature, and
 * percentiles of one call pair in microseconds. With --batch it calls C_SignBatch of the vendor interface instead
 * (pkcs11/native/BATCH.md), N digests a call, and the percentiles are those of one such call. With --pause it sleeps
 * between two calls: the percentiles are then those of a call that comes alone, on a processor that has slept. The PIN
 * is read from a file, so that it stands in no argument list.
 *
 * - Processes are forked before the module is loaded, and open it one after the other: SoftHSM2 fails when several
 *   initialise at once. All start signing together.
 * - Each thread has a session of its own; more than one thread asks the module for its own locking.
 * - Any error ends the run with exit code 1: a rate with failures in it is no rate.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <getopt.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cryptoki.h"

enum { DIGEST_LEN = 32, SIGNATURE_LEN = 64 };

enum { MAX_THREADS = 256, MAX_PROCESSES = 64, MAX_SLOTS = 64, MAX_ID_LEN = 64, MAX_PIN_LEN = 255, MAX_BATCH = 65536 };

/* Latencies are counted in steps of 0.1 us up to 20 ms; whatever is longer falls into the last step. */
enum { STEP_NS = 100, STEPS = 200000 };

typedef struct {
    uint64_t signatures;
    uint64_t elapsed_ns, cpu_ns;
    uint32_t latencies[STEPS];
} Result;

typedef struct {
    const char *module, *token;
    CK_BYTE pin[MAX_PIN_LEN], key_id[MAX_ID_LEN];
    size_t pin_len, key_id_len;
    CK_ULONG mechanism;
    double seconds;
    int threads, processes, batch;
    useconds_t pause_us;
} Options;

typedef struct {
    const Options *options;
    CK_FUNCTION_LIST *module;
    CLOUD_SEAL_BATCH_FUNCTIONS *vendor; /* NULL without --batch */
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE key;
    Result *result;
    uint64_t seed;
} Caller;

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("raw_loop: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1);
}

static void check(const char *function, CK_RV rv)
{
    if (rv != CKR_OK)
        die("%s: 0x%lx", function, rv);
}

static uint64_t read_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t now_ns(void)
{
    return read_ns(CLOCK_MONOTONIC);
}

static CK_SLOT_ID find_slot(CK_FUNCTION_LIST *module, const char *label)
{
    CK_SLOT_ID slots[MAX_SLOTS];
    CK_ULONG count = MAX_SLOTS;
    size_t label_len = strlen(label);
    check("C_GetSlotList", module->C_GetSlotList(1, slots, &count));
    for (CK_ULONG index = 0; index < count; index++) {
        CK_TOKEN_INFO info;
        if (module->C_GetTokenInfo(slots[index], &info) != CKR_OK || label_len > sizeof info.label)
            continue;
        CK_BYTE padded[sizeof info.label];
        memset(padded, ' ', sizeof padded);
        memcpy(padded, label, label_len);
        if (!memcmp(padded, info.label, sizeof padded))
            return slots[index];
    }
    die("no token has the label %s", label);
    return 0;
}

static CK_OBJECT_HANDLE find_key(CK_FUNCTION_LIST *module, CK_SESSION_HANDLE session, const Options *options)
{
    CK_ULONG class = CKO_PRIVATE_KEY, found = 0;
    CK_ATTRIBUTE wanted[] = {
        {CKA_CLASS, &class, sizeof class},
        {CKA_ID, (void *)options->key_id, options->key_id_len},
    };
    CK_OBJECT_HANDLE key;
    check("C_FindObjectsInit", module->C_FindObjectsInit(session, wanted, 2));
    check("C_FindObjects", module->C_FindObjects(session, &key, 1, &found));
    check("C_FindObjectsFinal", module->C_FindObjectsFinal(session));
    if (!found)
        die("no private key has that ID");
    return key;
}

/* Sign once; how many signatures that made. */
static CK_ULONG sign_one(Caller *caller, CK_MECHANISM *mechanism, CK_BYTE *digest)
{
    CK_BYTE signature[256];
    CK_ULONG len = sizeof signature;
    uint64_t nonce = caller->seed + caller->result->signatures;
    memcpy(digest, &nonce, sizeof nonce);
    check("C_SignInit", caller->module->C_SignInit(caller->session, mechanism, caller->key));
    check("C_Sign", caller->module->C_Sign(caller->session, digest, DIGEST_LEN, signature, &len));
    return 1;
}

static CK_ULONG sign_batch(Caller *caller, CK_MECHANISM *mechanism, CK_BYTE *digests)
{
    CK_ULONG count = (CK_ULONG)caller->options->batch, done = 0;
    CK_BYTE *signatures = digests + count * DIGEST_LEN, *statuses = signatures + count * SIGNATURE_LEN;
    check("C_SignBatch", caller->vendor->C_SignBatch(caller->session, mechanism, caller->key, count, digests,
                                                     signatures, statuses, &done));
    for (CK_ULONG index = 0; index < count; index++)
        if (done != count || statuses[index])
            die("C_SignBatch: an item failed");
    return count;
}

static void *call_until_time_is_up(void *argument)
{
    Caller *caller = argument;
    CK_MECHANISM mechanism = {caller->options->mechanism, NULL, 0};
    size_t count = caller->vendor ? (size_t)caller->options->batch : 1;
    CK_BYTE *digests = malloc(count * (DIGEST_LEN + SIGNATURE_LEN + 1));
    if (!digests)
        die("no memory");
    for (size_t at = 0; at < count * DIGEST_LEN; at++)
        digests[at] = (CK_BYTE)(at * 131 + (at >> 8));
    uint64_t cpu_before_ns = read_ns(CLOCK_THREAD_CPUTIME_ID), started_at = now_ns(), before = started_at;
    uint64_t until = started_at + (uint64_t)(caller->options->seconds * 1e9);
    Result *result = caller->result;
    while (before < until) {
        result->signatures += (caller->vendor ? sign_batch : sign_one)(caller, &mechanism, digests);
        uint64_t after = now_ns(), step = (after - before) / STEP_NS;
        result->latencies[step < STEPS ? step : STEPS - 1]++;
        before = after;
        if (caller->options->pause_us) {
            usleep(caller->options->pause_us);
            before = now_ns();
        }
    }
    result->elapsed_ns = before - started_at;
    result->cpu_ns = read_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_before_ns;
    free(digests);
    return NULL;
}

static CLOUD_SEAL_BATCH_FUNCTIONS *find_vendor(void *library)
{
    CK_C_GetInterface get_interface;
    *(void **)&get_interface = dlsym(library, "C_GetInterface");
    CK_INTERFACE *interface;
    if (!get_interface || get_interface((CK_BYTE *)CLOUD_SEAL_BATCH_INTERFACE, NULL, &interface, 0) != CKR_OK)
        die("the module has no batch interface");
    return interface->pFunctionList;
}

/* One process: open the module, say so on `ready`, wait until `go` is closed, sign, leave results in shared memory. */
static void run_process(const Options *options, int index, Result *results, int ready, int go)
{
    void *library = dlopen(options->module, RTLD_NOW);
    if (!library)
        die("%s", dlerror());
    CK_C_GetFunctionList get_functions;
    *(void **)&get_functions = dlsym(library, "C_GetFunctionList");
    if (!get_functions)
        die("%s is no PKCS#11 module", options->module);
    CK_FUNCTION_LIST *module;
    check("C_GetFunctionList", get_functions(&module));
    CK_C_INITIALIZE_ARGS locking = {.flags = CKF_OS_LOCKING_OK};
    check("C_Initialize", module->C_Initialize(options->threads > 1 ? &locking : NULL));
    CK_SLOT_ID slot = find_slot(module, options->token);
    CLOUD_SEAL_BATCH_FUNCTIONS *vendor = options->batch ? find_vendor(library) : NULL;
    Caller callers[MAX_THREADS];
    for (int thread = 0; thread < options->threads; thread++) {
        Caller *caller = &callers[thread];
        *caller = (Caller){.options = options, .module = module, .vendor = vendor, .result = &results[thread]};
        caller->seed = ((uint64_t)index << 56) + ((uint64_t)thread << 48);
        check("C_OpenSession", module->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &caller->session));
        if (thread == 0)
            check("C_Login", module->C_Login(caller->session, CKU_USER, (CK_BYTE *)options->pin, options->pin_len));
        caller->key = thread ? callers[0].key : find_key(module, caller->session, options);
    }
    char byte = 0;
    if (write(ready, &byte, 1) != 1 || read(go, &byte, 1) != 0)
        die("the parent is gone");
    pthread_t threads[MAX_THREADS];
    for (int thread = 1; thread < options->threads; thread++)
        if (pthread_create(&threads[thread], NULL, call_until_time_is_up, &callers[thread]))
            die("pthread_create failed");
    call_until_time_is_up(&callers[0]);
    for (int thread = 1; thread < options->threads; thread++)
        pthread_join(threads[thread], NULL);
    module->C_Finalize(NULL);
    _exit(0);
}

static double percentile_us(const uint64_t *latencies, uint64_t total, double share)
{
    uint64_t wanted = (uint64_t)((double)total * share), seen = 0;
    for (int step = 0; step < STEPS; step++) {
        seen += latencies[step];
        if (seen > wanted)
            return (step + 0.5) * STEP_NS / 1000.0;
    }
    return STEPS * (STEP_NS / 1000.0);
}

static void report(const Options *options, const Result *results)
{
    static uint64_t latencies[STEPS];
    uint64_t total = 0, calls = 0, cpu_ns = 0, elapsed_ns = 1;
    for (int caller = 0; caller < options->threads * options->processes; caller++) {
        total += results[caller].signatures;
        cpu_ns += results[caller].cpu_ns;
        if (results[caller].elapsed_ns > elapsed_ns)
            elapsed_ns = results[caller].elapsed_ns;
        for (int step = 0; step < STEPS; step++)
            latencies[step] += results[caller].latencies[step], calls += results[caller].latencies[step];
    }
    printf("{\"rate\": %.1f, \"signatures\": %llu, \"seconds\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"cpu_us\": %.2f, \"threads\": %d, \"processes\": %d}\n",
           (double)total * 1e9 / (double)elapsed_ns, (unsigned long long)total, (double)elapsed_ns / 1e9,
           percentile_us(latencies, calls, 0.50), percentile_us(latencies, calls, 0.99),
           (double)cpu_ns / 1e3 / (double)total, options->threads, options->processes);
}

static size_t read_hex(const char *text, CK_BYTE *out, size_t room)
{
    size_t len = strlen(text) / 2;
    if (!len || len > room || strlen(text) % 2)
        die("--key-id takes 1 to %zu bytes in hex", room);
    for (size_t index = 0; index < len; index++)
        if (sscanf(text + 2 * index, "%2hhx", &out[index]) != 1)
            die("--key-id takes hex");
    return len;
}

static size_t read_pin(const char *path, CK_BYTE *out, size_t room)
{
    FILE *file = fopen(path, "r");
    if (!file)
        die("cannot read %s", path);
    size_t len = fread(out, 1, room, file);
    fclose(file);
    while (len && (out[len - 1] == '\n' || out[len - 1] == '\r'))
        len--;
    return len;
}

static Options read_options(int argc, char **argv)
{
    static const struct option known[] = {
        {"module", 1, NULL, 'm'},  {"token", 1, NULL, 't'},   {"pin-file", 1, NULL, 'f'},  {"key-id", 1, NULL, 'k'},
        {"seconds", 1, NULL, 's'}, {"threads", 1, NULL, 'n'}, {"processes", 1, NULL, 'p'}, {"mechanism", 1, NULL, 'c'},
        {"batch", 1, NULL, 'b'},   {"pause", 1, NULL, 'w'},  {NULL, 0, NULL, 0},
    };
    Options options = {.seconds = 3, .threads = 1, .processes = 1};
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'm': options.module = optarg; break;
        case 't': options.token = optarg; break;
        case 'f': options.pin_len = read_pin(optarg, options.pin, sizeof options.pin); break;
        case 'k': options.key_id_len = read_hex(optarg, options.key_id, sizeof options.key_id); break;
        case 's': options.seconds = atof(optarg); break;
        case 'n': options.threads = atoi(optarg); break;
        case 'p': options.processes = atoi(optarg); break;
        case 'b': options.batch = atoi(optarg); break;
        case 'w': options.pause_us = (useconds_t)atoi(optarg); break;
        case 'c': options.mechanism = strtoul(optarg, NULL, 0); break;
        default: die("unknown option");
        }
    }
    if (!options.module || !options.token || !options.pin_len || !options.key_id_len || !options.mechanism)
        die("--module, --token, --pin-file, --key-id and --mechanism are needed");
    if (options.threads < 1 || options.threads > MAX_THREADS || options.processes < 1 ||
        options.processes > MAX_PROCESSES || options.seconds <= 0 || options.batch < 0 || options.batch > MAX_BATCH)
        die("1 to %d threads, 1 to %d processes, batches of at most %d, more than 0 seconds", MAX_THREADS,
            MAX_PROCESSES, MAX_BATCH);
    return options;
}

int main(int argc, char **argv)
{
    Options options = read_options(argc, argv);
    size_t callers = (size_t)options.threads * (size_t)options.processes;
    Result *results = mmap(NULL, callers * sizeof *results, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int go[2];
    if (results == MAP_FAILED || pipe(go))
        die("no memory or no pipe");
    for (int index = 0; index < options.processes; index++) {
        int ready[2];
        if (pipe(ready))
            die("no pipe");
        pid_t child = fork();
        if (child < 0)
            die("fork failed");
        if (child == 0) {
            close(ready[0]);
            close(go[1]);
            run_process(&options, index, results + index * options.threads, ready[1], go[0]);
        }
        char byte;
        close(ready[1]);
        if (read(ready[0], &byte, 1) != 1) /* end of file: the child died, and has said why */
            die("a process could not open the module");
        close(ready[0]);
    }
    close(go[0]);
    close(go[1]);
    int status, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    if (failed)
        die("a process failed");
    report(&options, results);
    return 0;
}
