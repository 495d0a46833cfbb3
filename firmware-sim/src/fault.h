/* Faults on command: the plan of FAULTS.md, parsed and consulted at each call.
 *
 * The text comes from a file (re-read when it is replaced) or from the setting itself. Counting is per
 * process and starts anew with each plan; `once` makes a fault fire in one process only, whichever comes
 * first.
 */
#ifndef FIRMWARE_SIM_FAULT_H
#define FIRMWARE_SIM_FAULT_H

#include "../include/pkcs11.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define CALL_ID(name, arguments) CALL_##name,
enum call_id {
    CK_FUNCTIONS_2_40(CALL_ID) CK_FUNCTIONS_3_0(CALL_ID) CALL_C_SignBatch,
    CALL_signature, /* not a call: each signature made, whatever call made it */
    CALL_COUNT,
    CALL_ANY = CALL_COUNT, /* "*" in a plan: any call, counted together */
    CALL_KINDS
};
#undef CALL_ID

enum fault_action {
    FAULT_NONE,
    FAULT_FAIL,         /* nothing done, this return value */
    FAULT_LOSE,         /* done, and this return value all the same */
    FAULT_HANG,         /* nothing done, never returns */
    FAULT_HANG_AFTER,   /* done, never returns */
    FAULT_CRASH,        /* SIGKILL to ourselves, nothing done */
    FAULT_CRASH_AFTER,  /* the same, after it was done */
    FAULT_DELAY,        /* ms */
    FAULT_CORRUPT,      /* the signature's last byte is changed after it was made and traced */
    FAULT_REMOVE_CALLS, /* the token is out for that many calls, this one included */
    FAULT_REMOVE_MS,
    FAULT_SESSION_LOST, /* every session of the process is closed */
    FAULT_PIN_LOCKED,   /* CKR_PIN_LOCKED, without touching the real counter */
};

struct fault {
    enum fault_action action;
    CK_RV rv;
    unsigned long amount;
};

struct fault_rule {
    unsigned call;               /* enum call_id, or CALL_ANY */
    uint64_t first, last, every; /* every > 0: each every-th, first and last unused */
    bool once;
    struct fault fault;
    char claim[24]; /* name of the file that says a `once` rule has fired */
};

enum { FAULT_RULES_MAX = 256 }; /* a plan is written by hand */

struct fault_plan {
    bool on;               /* immutable after start: without a plan no call takes the lock */
    char path[4096];       /* empty: the plan was given inline */
    const char *directory; /* for claims: the token directory */
    pthread_mutex_t lock;
    struct timespec modified; /* lock, as all below */
    uint64_t inode, size;
    struct fault_rule rules[FAULT_RULES_MAX];
    size_t rule_count;
    uint64_t seen[CALL_KINDS];
    unsigned long out_calls; /* the token is out for that many more calls */
    uint64_t out_until_ns;
};

bool fault_start(struct fault_plan *plan, const char *setting, const char *directory, char *message,
                 size_t message_len);
void fault_stop(struct fault_plan *plan);
bool fault_parse(struct fault_plan *plan, const char *text, char *message, size_t message_len);
/* Count this call and say what shall become of it. *token_out: the token is not there just now. */
struct fault fault_next(struct fault_plan *plan, enum call_id call, bool *token_out);
const char *fault_call_name(unsigned call);

#endif
