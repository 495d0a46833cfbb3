/* Session management: opening, closing, logging in. Login belongs to the token and the process, not to a
 * session. */
#include "module.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

/* Per process. Far beyond the sixty jobs a network HSM wants outstanding, and a bound on what a leak can eat.
 */
enum { SESSIONS_MAX = 16384 };

struct session *session_find(struct module *m, CK_SESSION_HANDLE handle) {
    pthread_rwlock_rdlock(&m->tables);
    struct session *s = handles_get(&m->sessions, handle);
    if (s)
        atomic_fetch_add(&s->references, 1);
    pthread_rwlock_unlock(&m->tables);
    return s;
}

void session_release(struct session *s) {
    if (!s || atomic_fetch_sub(&s->references, 1) != 1)
        return;
    pthread_mutex_destroy(&s->lock);
    free(s);
}

enum login session_login(const struct session *s) {
    return (enum login)atomic_load(&s->token->login);
}

bool session_may_see(const struct session *s, const struct object *object) {
    return object->slot == s->token->slot && (!object->private_object || session_login(s) == LOGIN_USER);
}

static void cancel_search(struct session *s) {
    free(s->found);
    s->found = NULL;
}

/* Under s->lock. */
void session_cancel_operations(struct session *s) {
    EVP_MD_CTX_free(s->digest);
    s->digest = NULL;
    signing_end(&s->sign);
    signing_end(&s->verify);
    signing_end(&s->message_sign);
    signing_end(&s->message_verify);
    ciphering_end(&s->encrypt);
    ciphering_end(&s->decrypt);
    cancel_search(s);
}

static CK_RV open_session(struct module *m, CK_SLOT_ID slot, CK_FLAGS flags, CK_SESSION_HANDLE *handle) {
    struct token *token = token_find(m, slot);
    *handle = CK_INVALID_HANDLE;
    if (!(flags & CKF_SERIAL_SESSION))
        return CKR_SESSION_PARALLEL_NOT_SUPPORTED;
    if (!token)
        return CKR_SLOT_ID_INVALID;
    if (!token->initialised)
        return CKR_TOKEN_NOT_RECOGNIZED;
    if (!(flags & CKF_RW_SESSION) && token->login == LOGIN_SO)
        return CKR_SESSION_READ_WRITE_SO_EXISTS;
    struct session *s = calloc(1, sizeof *s);
    if (!s)
        return CKR_HOST_MEMORY;
    atomic_init(&s->references, 1);
    pthread_mutex_init(&s->lock, NULL);
    s->token = token;
    s->read_write = (flags & CKF_RW_SESSION) != 0;
    pthread_mutex_lock(&token->lock); /* so that a login cannot slip in between looking and counting */
    pthread_rwlock_wrlock(&m->tables);
    CK_RV rv = CKR_OK;
    if (m->sessions.used >= SESSIONS_MAX && !m->sessions.free_head)
        rv = CKR_SESSION_COUNT;
    else if ((s->handle = handles_add(&m->sessions, s)) == CK_INVALID_HANDLE)
        rv = CKR_HOST_MEMORY;
    if (rv == CKR_OK) {
        token->sessions++;
        token->rw_sessions += s->read_write;
        *handle = s->handle;
    }
    pthread_rwlock_unlock(&m->tables);
    pthread_mutex_unlock(&token->lock);
    if (rv != CKR_OK)
        session_release(s);
    return rv;
}

CK_RV C_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify,
                    CK_SESSION_HANDLE_PTR session) {
    (void)application;
    (void)notify; /* no surrender call-backs: nothing here takes long enough to be surrendered */
    SHIM(C_OpenSession, session, open_session(call.module, slot, flags, session));
}

static void drop_session_objects(struct module *m, CK_SESSION_HANDLE owner) {
    for (;;) {
        struct object *object = NULL;
        pthread_rwlock_wrlock(&m->tables);
        for (uint32_t i = 0; i < m->objects.used && !object; i++) {
            struct object *at = m->objects.entry[i].item;
            if (at && at->owner == owner)
                object = handles_remove(&m->objects, at->handle);
        }
        pthread_rwlock_unlock(&m->tables);
        if (!object)
            return;
        object_release(object);
    }
}

CK_RV session_close(struct module *m, CK_SESSION_HANDLE handle) {
    pthread_rwlock_wrlock(&m->tables);
    struct session *s = handles_remove(&m->sessions, handle);
    bool last = false;
    if (s) {
        s->token->rw_sessions -= s->read_write;
        last = --s->token->sessions == 0;
    }
    pthread_rwlock_unlock(&m->tables);
    if (!s)
        return CKR_SESSION_HANDLE_INVALID;
    pthread_mutex_lock(&s->lock); /* waits for the session's own call, if one is inside */
    s->closed = true;
    session_cancel_operations(s);
    pthread_mutex_unlock(&s->lock);
    drop_session_objects(m, handle);
    if (last)
        token_logout(m, s->token);
    session_release(s);
    return CKR_OK;
}

void session_close_all(struct module *m, struct token *only) {
    for (;;) {
        CK_SESSION_HANDLE handle = CK_INVALID_HANDLE;
        pthread_rwlock_rdlock(&m->tables);
        for (uint32_t i = 0; i < m->sessions.used && handle == CK_INVALID_HANDLE; i++) {
            const struct session *s = m->sessions.entry[i].item;
            if (s && (!only || s->token == only))
                handle = s->handle;
        }
        pthread_rwlock_unlock(&m->tables);
        if (handle == CK_INVALID_HANDLE)
            return;
        session_close(m, handle);
    }
}

CK_RV C_CloseSession(CK_SESSION_HANDLE session) {
    SHIM(C_CloseSession, true, session_close(call.module, session));
}

static CK_RV close_all_sessions(struct module *m, CK_SLOT_ID slot) {
    struct token *token = token_find(m, slot);
    if (!token)
        return CKR_SLOT_ID_INVALID;
    session_close_all(m, token);
    return CKR_OK;
}

CK_RV C_CloseAllSessions(CK_SLOT_ID slot) {
    SHIM(C_CloseAllSessions, true, close_all_sessions(call.module, slot));
}

static CK_RV get_session_info(const struct session *s, CK_SESSION_INFO *info) {
    static const CK_STATE states[2][3] = {
        {CKS_RO_PUBLIC_SESSION, CKS_RO_USER_FUNCTIONS, CKS_RO_PUBLIC_SESSION},
        {CKS_RW_PUBLIC_SESSION, CKS_RW_USER_FUNCTIONS, CKS_RW_SO_FUNCTIONS},
    };
    *info = (CK_SESSION_INFO){
        .slotID = s->token->slot,
        .state = states[s->read_write][session_login(s)],
        .flags = CKF_SERIAL_SESSION | (s->read_write ? CKF_RW_SESSION : 0),
    };
    return CKR_OK;
}

CK_RV C_GetSessionInfo(CK_SESSION_HANDLE session, CK_SESSION_INFO_PTR info) {
    SESSION_SHIM(C_GetSessionInfo, info, get_session_info(s, info));
}

/* ---- login ---- */

static CK_RV login(struct module *m, struct session *s, CK_USER_TYPE user, const uint8_t *pin,
                   size_t pin_len) {
    struct token *token = s->token;
    if (user == CKU_CONTEXT_SPECIFIC)
        return CKR_OPERATION_NOT_INITIALIZED; /* no key here asks for it (CKA_ALWAYS_AUTHENTICATE is refused)
                                               */
    if (user != CKU_SO && user != CKU_USER)
        return CKR_USER_TYPE_INVALID;
    enum login who = user == CKU_SO ? LOGIN_SO : LOGIN_USER;
    pthread_mutex_lock(&token->lock);
    CK_RV rv = CKR_OK;
    pthread_rwlock_rdlock(&m->tables);
    bool readers = token->sessions != token->rw_sessions;
    pthread_rwlock_unlock(&m->tables);
    if (who == LOGIN_SO && readers)
        rv = CKR_SESSION_READ_ONLY_EXISTS;
    else if (token->login == (int)who)
        rv = CKR_USER_ALREADY_LOGGED_IN;
    else if (token->login != LOGIN_NONE)
        rv = CKR_USER_ANOTHER_ALREADY_LOGGED_IN;
    if (rv == CKR_OK)
        rv = token_login(token, who, pin, pin_len);
    if (rv == CKR_OK)
        store_synchronise(m, token);
    pthread_mutex_unlock(&token->lock);
    return rv;
}

CK_RV C_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len) {
    SESSION_SHIM(C_Login, pin, login(call.module, s, user, pin, pin_len)); /* no keypad: a PIN must come */
}

CK_RV C_LoginUser(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len,
                  CK_UTF8CHAR_PTR username, CK_ULONG username_len) {
    /* One user and one officer, without names. */
    SESSION_SHIM(C_LoginUser, pin && (username || !username_len),
                 username_len ? CKR_ARGUMENTS_BAD : login(call.module, s, user, pin, pin_len));
}

/* Wipe what the login opened, and end whatever still used it. Takes the sessions' locks: hold none of them.
 */
void token_logout(struct module *m, struct token *token) {
    pthread_mutex_lock(&token->lock);
    token->login = LOGIN_NONE;
    OPENSSL_cleanse(token->master, sizeof token->master);
    pthread_mutex_unlock(&token->lock);
    pthread_rwlock_wrlock(&m->tables);
    for (uint32_t i = 0; i < m->objects.used; i++) {
        struct object *object = m->objects.entry[i].item;
        if (object && object->slot == token->slot && object->sealed) {
            material_release(object->material);
            object->material = NULL;
        }
    }
    uint32_t used = m->sessions.used;
    pthread_rwlock_unlock(&m->tables);
    for (uint32_t i = 0; i < used; i++) {
        pthread_rwlock_rdlock(&m->tables);
        struct session *s = m->sessions.entry[i].item;
        if (s && s->token == token)
            atomic_fetch_add(&s->references, 1);
        else
            s = NULL;
        pthread_rwlock_unlock(&m->tables);
        if (!s)
            continue;
        pthread_mutex_lock(&s->lock);
        session_cancel_operations(s);
        pthread_mutex_unlock(&s->lock);
        session_release(s);
    }
    /* Private session objects die with the login; the others of their session live on. */
    for (;;) {
        struct object *object = NULL;
        pthread_rwlock_wrlock(&m->tables);
        for (uint32_t i = 0; i < m->objects.used && !object; i++) {
            struct object *at = m->objects.entry[i].item;
            if (at && at->owner && at->private_object && at->slot == token->slot)
                object = handles_remove(&m->objects, at->handle);
        }
        pthread_rwlock_unlock(&m->tables);
        if (!object)
            return;
        object_release(object);
    }
}

static CK_RV logout(struct module *m, CK_SESSION_HANDLE handle) {
    struct session *s = session_find(m, handle);
    if (!s)
        return CKR_SESSION_HANDLE_INVALID;
    CK_RV rv = session_login(s) == LOGIN_NONE ? CKR_USER_NOT_LOGGED_IN : CKR_OK;
    if (rv == CKR_OK)
        token_logout(m, s->token);
    session_release(s);
    return rv;
}

CK_RV C_Logout(CK_SESSION_HANDLE session) {
    SHIM(C_Logout, true, logout(call.module, session)); /* without the session's lock: see token_logout */
}

/* ---- operations ---- */

/* Under s->lock. */
void session_cancel(struct session *s, CK_FLAGS flags) {
    if (flags & CKF_DIGEST) {
        EVP_MD_CTX_free(s->digest);
        s->digest = NULL;
    }
    if (flags & CKF_SIGN)
        signing_end(&s->sign);
    if (flags & CKF_VERIFY)
        signing_end(&s->verify);
    if (flags & CKF_MESSAGE_SIGN)
        signing_end(&s->message_sign);
    if (flags & CKF_MESSAGE_VERIFY)
        signing_end(&s->message_verify);
    if (flags & CKF_ENCRYPT)
        ciphering_end(&s->encrypt);
    if (flags & CKF_DECRYPT)
        ciphering_end(&s->decrypt);
    if (flags & CKF_FIND_OBJECTS)
        cancel_search(s);
}

CK_RV C_SessionCancel(CK_SESSION_HANDLE session, CK_FLAGS flags) {
    SESSION_SHIM(C_SessionCancel, true, (session_cancel(s, flags), CKR_OK));
}

CK_RV C_GetOperationState(CK_SESSION_HANDLE session, CK_BYTE_PTR state, CK_ULONG_PTR state_len) {
    (void)state;
    SESSION_SHIM(C_GetOperationState, state_len, CKR_FUNCTION_NOT_SUPPORTED);
}

CK_RV C_SetOperationState(CK_SESSION_HANDLE session, CK_BYTE_PTR state, CK_ULONG state_len,
                          CK_OBJECT_HANDLE encryption_key, CK_OBJECT_HANDLE authentication_key) {
    (void)state, (void)state_len, (void)encryption_key, (void)authentication_key;
    SESSION_SHIM(C_SetOperationState, true, CKR_FUNCTION_NOT_SUPPORTED);
}
