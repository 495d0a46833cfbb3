/* The life of a call: is the module there, what does the fault plan say, how far away is the device.
 *
 * Every shim enters and leaves through here, so no entry point can forget one of the three.
 */
#include "lifetime.h"
#include "module.h"

#include <signal.h>
#include <unistd.h>

/* Calls that work without a token; the others say that it is out while the plan has it removed. */
static bool works_without_token(enum call_id id) {
    switch (id) {
    case CALL_C_GetInfo:
    case CALL_C_GetSlotList:
    case CALL_C_GetSlotInfo:
    case CALL_C_Finalize:
    case CALL_C_WaitForSlotEvent:
    case CALL_C_CloseSession:
    case CALL_C_CloseAllSessions:
        return true;
    default:
        return false;
    }
}

static bool names_a_slot(enum call_id id) {
    return id == CALL_C_GetTokenInfo || id == CALL_C_GetMechanismList || id == CALL_C_GetMechanismInfo ||
           id == CALL_C_InitToken || id == CALL_C_OpenSession;
}

_Noreturn static void hang(void) {
    for (;;)
        pause(); /* until somebody ends the process: that is what is being rehearsed */
}

static void crash(void) {
    kill(getpid(), SIGKILL);
}

static CK_RV consult_plan(struct call *call) {
    struct module *m = call->module;
    call->fault = fault_next(&m->faults, call->id, &call->token_out);
    switch (call->fault.action) {
    case FAULT_FAIL:
        return call->fault.rv;
    case FAULT_PIN_LOCKED:
        return CKR_PIN_LOCKED;
    case FAULT_HANG:
        hang();
    case FAULT_CRASH:
        crash();
        break;
    case FAULT_DELAY:
        timing_wait_until(timing_now() + call->fault.amount * 1000000U);
        break;
    case FAULT_REMOVE_CALLS:
    case FAULT_REMOVE_MS:
    case FAULT_SESSION_LOST:
        session_close_all(m, NULL);
        break;
    default:
        break;
    }
    if (call->token_out && !works_without_token(call->id))
        return names_a_slot(call->id) ? CKR_TOKEN_NOT_PRESENT : CKR_DEVICE_REMOVED;
    return CKR_OK;
}

CK_RV call_enter(struct call *call, enum call_id id) {
    *call = (struct call){.id = id};
    call->module = lifetime_enter();
    if (!call->module)
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    call->entered = true;
    timing_round_trip(&call->module->timing);
    return call->module->faults.on ? consult_plan(call) : CKR_OK;
}

/* The operation that this call goes on with: as with a real device, a failure ends it. */
static CK_FLAGS operation_of(enum call_id id) {
    switch (id) {
    case CALL_C_Sign:
    case CALL_C_SignUpdate:
    case CALL_C_SignFinal:
        return CKF_SIGN;
    case CALL_C_Verify:
    case CALL_C_VerifyUpdate:
    case CALL_C_VerifyFinal:
        return CKF_VERIFY;
    case CALL_C_Digest:
    case CALL_C_DigestUpdate:
    case CALL_C_DigestKey:
    case CALL_C_DigestFinal:
        return CKF_DIGEST;
    case CALL_C_Encrypt:
    case CALL_C_EncryptUpdate:
    case CALL_C_EncryptFinal:
        return CKF_ENCRYPT;
    case CALL_C_Decrypt:
    case CALL_C_DecryptUpdate:
    case CALL_C_DecryptFinal:
        return CKF_DECRYPT;
    default:
        return 0;
    }
}

CK_RV call_enter_session(struct call *call, enum call_id id, CK_SESSION_HANDLE handle,
                         struct session **session) {
    *session = NULL;
    CK_RV rv = call_enter(call, id);
    struct session *s = call->module ? session_find(call->module, handle) : NULL;
    if (rv != CKR_OK) {
        if (s) {
            pthread_mutex_lock(&s->lock);
            session_cancel(s, operation_of(id));
            pthread_mutex_unlock(&s->lock);
        }
        session_release(s);
        return rv;
    }
    if (!s)
        return CKR_SESSION_HANDLE_INVALID;
    pthread_mutex_lock(&s->lock);
    if (s->closed) {
        pthread_mutex_unlock(&s->lock);
        session_release(s);
        return CKR_SESSION_HANDLE_INVALID;
    }
    *session = s;
    return CKR_OK;
}

/* Like any failure but a short buffer, bad arguments end the operation that the call goes on with. */
CK_RV call_bad_arguments(const struct call *call, struct session *session) {
    session_cancel(session, operation_of(call->id));
    return CKR_ARGUMENTS_BAD;
}

CK_RV call_leave(struct call *call, CK_RV rv) {
    switch (call->fault.action) {
    case FAULT_LOSE:
        rv = call->fault.rv;
        break;
    case FAULT_HANG_AFTER:
        hang();
    case FAULT_CRASH_AFTER:
        crash();
        break;
    default:
        break;
    }
    if (call->entered)
        lifetime_leave();
    return rv;
}

CK_RV call_leave_session(struct call *call, struct session *session, CK_RV rv) {
    if (session) {
        pthread_mutex_unlock(&session->lock);
        session_release(session);
    }
    return call_leave(call, rv);
}
