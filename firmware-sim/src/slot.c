/* Slot and token management. Slot n is the directory <tokens>/n; the first free number is an empty slot that
 * C_InitToken turns into a token. Slots keep their numbers, so that they mean the same to every process. */
#include "module.h"

#include <dirent.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
    SLOTS_MAX = 1024, /* a rack has dozens */
    PIN_LEN_MIN = 4,
    PIN_LEN_MAX = 255,
    PIN_FAILURES_LOW = 3, /* tries left at which the token says "count low" */
};

struct token *token_find(struct module *m, CK_SLOT_ID slot) {
    struct token *found = NULL;
    pthread_rwlock_rdlock(&m->tables);
    for (size_t i = 0; i < m->token_count && !found; i++)
        if (m->tokens[i]->slot == slot)
            found = m->tokens[i];
    pthread_rwlock_unlock(&m->tables);
    return found;
}

static struct token *token_new(const struct module *m, CK_SLOT_ID slot) {
    struct token *token = calloc(1, sizeof *token);
    if (!token || asprintf(&token->directory, "%s/%lu", m->settings.tokens, slot) < 0) {
        free(token);
        return NULL;
    }
    token->slot = slot;
    pthread_mutex_init(&token->lock, NULL);
    return token;
}

static int by_slot(const void *a, const void *b) {
    const struct token *x = *(struct token *const *)a, *y = *(struct token *const *)b;
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

static void add_slot(struct module *m, CK_SLOT_ID slot) {
    if (slot >= SLOTS_MAX || token_find(m, slot))
        return;
    struct token *token = token_new(m, slot);
    pthread_rwlock_wrlock(&m->tables);
    bool there = false; /* another thread may have looked at the same moment */
    for (size_t i = 0; i < m->token_count; i++)
        there |= m->tokens[i]->slot == slot;
    struct token **grown = token && !there ? realloc(m->tokens, (m->token_count + 1) * sizeof *grown) : NULL;
    if (grown) {
        m->tokens = grown;
        m->tokens[m->token_count++] = token;
        qsort(m->tokens, m->token_count, sizeof *m->tokens, by_slot);
    }
    pthread_rwlock_unlock(&m->tables);
    if (token && !grown) {
        free(token->directory);
        free(token);
    }
}

/* Look what slots there are. Slots are only ever added: a handle to one stays good until C_Finalize. */
void tokens_refresh(struct module *m) {
    CK_SLOT_ID next = 0;
    if (mkdir(m->settings.tokens, 0700) != 0 && errno != EEXIST)
        fprintf(stderr, "firmware-sim: %s: %s\n", m->settings.tokens, strerror(errno));
    DIR *listing = opendir(m->settings.tokens);
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        char *end, path[4400];
        unsigned long slot = strtoul(entry->d_name, &end, 10);
        snprintf(path, sizeof path, "%s/%s/token", m->settings.tokens, entry->d_name);
        struct stat info;
        if (*end || end == entry->d_name || slot >= SLOTS_MAX || stat(path, &info) != 0)
            continue;
        add_slot(m, slot);
        if (slot >= next)
            next = slot + 1;
    }
    if (listing)
        closedir(listing);
    add_slot(m, next);
    for (CK_SLOT_ID slot = 0; slot <= next; slot++) {
        struct token *token = token_find(m, slot);
        struct token_record record;
        if (!token || token->initialised)
            continue;
        pthread_mutex_lock(&token->lock);
        if (token_read_record(token, &record) == CKR_OK) {
            memcpy(token->epoch, record.epoch, EPOCH_LEN);
            memcpy(token->serial, record.serial, sizeof token->serial);
            token->initialised = true;
        }
        pthread_mutex_unlock(&token->lock);
    }
}

void tokens_free(struct module *m) {
    for (size_t i = 0; i < m->token_count; i++) {
        struct token *token = m->tokens[i];
        OPENSSL_cleanse(token->master, sizeof token->master);
        store_close(token);
        pthread_mutex_destroy(&token->lock);
        free(token->directory);
        free(token);
    }
    free(m->tokens);
}

static CK_RV get_slot_list(struct module *m, bool out, CK_SLOT_ID *slots, CK_ULONG *count) {
    if (!slots)
        tokens_refresh(m); /* the standard: slots may appear only between a call with NULL and the next */
    pthread_rwlock_rdlock(&m->tables);
    CK_ULONG room = *count, there = out ? 0 : m->token_count;
    *count = there;
    CK_RV rv = slots && room < there ? CKR_BUFFER_TOO_SMALL : CKR_OK;
    for (CK_ULONG i = 0; slots && rv == CKR_OK && i < there; i++)
        slots[i] = m->tokens[i]->slot;
    pthread_rwlock_unlock(&m->tables);
    return rv;
}

CK_RV C_GetSlotList(CK_BBOOL present, CK_SLOT_ID_PTR slots, CK_ULONG_PTR count) {
    SHIM(C_GetSlotList, count, get_slot_list(call.module, present && call.token_out, slots, count));
}

static void pad(CK_UTF8CHAR *field, size_t room, const char *text) {
    size_t len = strlen(text);
    memset(field, ' ', room);
    memcpy(field, text, len < room ? len : room);
}

static CK_RV get_slot_info(struct module *m, bool out, CK_SLOT_ID slot, CK_SLOT_INFO *info) {
    if (!token_find(m, slot))
        return CKR_SLOT_ID_INVALID;
    char text[65];
    memset(info, 0, sizeof *info);
    snprintf(text, sizeof text, "firmware-sim slot %lu (SIMULATOR)", slot);
    pad(info->slotDescription, sizeof info->slotDescription, text);
    pad(info->manufacturerID, sizeof info->manufacturerID, "cloud-seal firmware-sim");
    info->flags = out ? 0 : CKF_TOKEN_PRESENT;
    if (m->faults.on)
        info->flags |= CKF_REMOVABLE_DEVICE; /* a plan may pull it */
    info->firmwareVersion = info->hardwareVersion = (CK_VERSION){0, 1};
    return CKR_OK;
}

CK_RV C_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO_PTR info) {
    SHIM(C_GetSlotInfo, info, get_slot_info(call.module, call.token_out, slot, info));
}

static CK_FLAGS pin_flags(const struct token_record *record, int role, CK_FLAGS low, CK_FLAGS final,
                          CK_FLAGS locked) {
    uint32_t failures = record->pin[role].failures, max = record->max_failures[role];
    uint32_t left = failures < max ? max - failures : 0;
    return (failures && left <= PIN_FAILURES_LOW && left ? low : 0) | (left == 1 ? final : 0) |
           (left == 0 ? locked : 0);
}

static CK_RV get_token_info(struct module *m, CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    struct token *token = token_find(m, slot);
    struct token_record record;
    if (!token)
        return CKR_SLOT_ID_INVALID;
    memset(info, 0, sizeof *info);
    pad(info->label, sizeof info->label, "");
    pad(info->manufacturerID, sizeof info->manufacturerID, "cloud-seal firmware-sim");
    pad(info->model, sizeof info->model, "SIMULATOR");
    pad(info->serialNumber, sizeof info->serialNumber, "");
    info->flags = CKF_RNG | CKF_LOGIN_REQUIRED;
    pthread_mutex_lock(&token->lock);
    CK_RV rv = token->initialised ? token_read_record(token, &record) : CKR_OK;
    if (token->initialised && rv == CKR_OK) {
        memcpy(info->label, record.label, sizeof info->label);
        memcpy(info->serialNumber, record.serial, sizeof info->serialNumber);
        info->flags |= CKF_TOKEN_INITIALIZED;
        if (record.pin[1].set)
            info->flags |= CKF_USER_PIN_INITIALIZED | pin_flags(&record, 1, CKF_USER_PIN_COUNT_LOW,
                                                                CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED);
        info->flags |= pin_flags(&record, 0, CKF_SO_PIN_COUNT_LOW, CKF_SO_PIN_FINAL_TRY, CKF_SO_PIN_LOCKED);
    }
    pthread_mutex_unlock(&token->lock);
    pthread_rwlock_rdlock(&m->tables);
    info->ulSessionCount = token->sessions;
    info->ulRwSessionCount = token->rw_sessions;
    pthread_rwlock_unlock(&m->tables);
    info->ulMaxSessionCount = info->ulMaxRwSessionCount = CK_EFFECTIVELY_INFINITE;
    info->ulMinPinLen = PIN_LEN_MIN;
    info->ulMaxPinLen = PIN_LEN_MAX;
    info->ulTotalPublicMemory = info->ulFreePublicMemory = info->ulTotalPrivateMemory =
        info->ulFreePrivateMemory = CK_UNAVAILABLE_INFORMATION;
    info->firmwareVersion = info->hardwareVersion = (CK_VERSION){0, 1};
    memset(info->utcTime, ' ', sizeof info->utcTime); /* no clock on the token */
    return rv;
}

CK_RV C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
    SHIM(C_GetTokenInfo, info, get_token_info(call.module, slot, info));
}

static CK_RV get_mechanism_list(struct module *m, CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count) {
    if (!token_find(m, slot))
        return CKR_SLOT_ID_INVALID;
    CK_ULONG room = *count;
    *count = mechanism_count;
    if (!list)
        return CKR_OK;
    if (room < mechanism_count)
        return CKR_BUFFER_TOO_SMALL;
    for (size_t i = 0; i < mechanism_count; i++)
        list[i] = mechanisms[i].type;
    return CKR_OK;
}

CK_RV C_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE_PTR list, CK_ULONG_PTR count) {
    SHIM(C_GetMechanismList, count, get_mechanism_list(call.module, slot, list, count));
}

static CK_RV get_mechanism_info(struct module *m, CK_SLOT_ID slot, CK_MECHANISM_TYPE type,
                                CK_MECHANISM_INFO *info) {
    const struct mechanism *mechanism = mechanism_find(type, 0);
    if (!token_find(m, slot))
        return CKR_SLOT_ID_INVALID;
    if (!mechanism)
        return CKR_MECHANISM_INVALID;
    *info = (CK_MECHANISM_INFO){mechanism->min_size, mechanism->max_size, mechanism->flags};
    return CKR_OK;
}

CK_RV C_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR info) {
    SHIM(C_GetMechanismInfo, info, get_mechanism_info(call.module, slot, type, info));
}

static CK_RV init_token(struct module *m, CK_SLOT_ID slot, const uint8_t *pin, size_t pin_len,
                        const uint8_t *label) {
    struct token *token = token_find(m, slot);
    if (!token)
        return CKR_SLOT_ID_INVALID;
    if (pin_len < PIN_LEN_MIN || pin_len > PIN_LEN_MAX)
        return CKR_PIN_LEN_RANGE;
    pthread_mutex_lock(&token->lock);
    pthread_rwlock_rdlock(&m->tables);
    bool busy = token->sessions != 0;
    pthread_rwlock_unlock(&m->tables);
    CK_RV rv = busy ? CKR_SESSION_EXISTS : token_format(m, token, pin, pin_len, label);
    if (rv == CKR_OK)
        store_synchronise(m, token); /* the objects of its former life leave our tables */
    pthread_mutex_unlock(&token->lock);
    return rv;
}

CK_RV C_InitToken(CK_SLOT_ID slot, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len, CK_UTF8CHAR_PTR label) {
    SHIM(C_InitToken, pin && label, init_token(call.module, slot, pin, pin_len, label));
}

static CK_RV init_pin(struct session *s, const uint8_t *pin, size_t pin_len) {
    if (session_login(s) != LOGIN_SO)
        return CKR_USER_NOT_LOGGED_IN;
    if (pin_len < PIN_LEN_MIN || pin_len > PIN_LEN_MAX)
        return CKR_PIN_LEN_RANGE;
    pthread_mutex_lock(&s->token->lock);
    CK_RV rv =
        s->token->login == LOGIN_SO ? token_set_user_pin(s->token, pin, pin_len) : CKR_USER_NOT_LOGGED_IN;
    pthread_mutex_unlock(&s->token->lock);
    return rv;
}

CK_RV C_InitPIN(CK_SESSION_HANDLE session, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len) {
    SESSION_SHIM(C_InitPIN, pin, init_pin(s, pin, pin_len));
}

static CK_RV set_pin(struct session *s, const uint8_t *old_pin, size_t old_len, const uint8_t *new_pin,
                     size_t new_len) {
    if (!s->read_write)
        return CKR_SESSION_READ_ONLY;
    if (new_len < PIN_LEN_MIN || new_len > PIN_LEN_MAX)
        return CKR_PIN_LEN_RANGE;
    pthread_mutex_lock(&s->token->lock);
    enum login who = session_login(s) == LOGIN_SO ? LOGIN_SO : LOGIN_USER;
    CK_RV rv = token_change_pin(s->token, who, old_pin, old_len, new_pin, new_len);
    pthread_mutex_unlock(&s->token->lock);
    return rv;
}

CK_RV C_SetPIN(CK_SESSION_HANDLE session, CK_UTF8CHAR_PTR old_pin, CK_ULONG old_len, CK_UTF8CHAR_PTR new_pin,
               CK_ULONG new_len) {
    SESSION_SHIM(C_SetPIN, old_pin && new_pin, set_pin(s, old_pin, old_len, new_pin, new_len));
}

static CK_RV wait_for_slot_event(CK_FLAGS flags) {
    /* Nothing here blocks for an event that only a fault plan could bring. */
    return flags & CKF_DONT_BLOCK ? CKR_NO_EVENT : CKR_FUNCTION_NOT_SUPPORTED;
}

CK_RV C_WaitForSlotEvent(CK_FLAGS flags, CK_SLOT_ID_PTR slot, CK_VOID_PTR reserved) {
    SHIM(C_WaitForSlotEvent, slot && !reserved, wait_for_slot_event(flags));
}
