/* What the chapters of the module share: its state, the life of a call, sessions, objects and tokens.
 *
 * Locks, in the order in which they are taken (never the other way round):
 *
 *   lifetime (rwlock)   every call holds it for reading; C_Initialize and C_Finalize for writing
 *   session.lock        one call at a time per session; held through a signature, so that two sessions sign
 * at once token.lock          login, PINs, and whatever reads or writes the token's directory module.tables
 * the handle tables and what hangs on an object's entry (rwlock; nothing slow under it)
 *
 * There is no "current session": every safe function is handed what it works on.
 */
#ifndef FIRMWARE_SIM_MODULE_H
#define FIRMWARE_SIM_MODULE_H

#include "../include/pkcs11.h"
#include "config.h"
#include "engine.h"
#include "fault.h"
#include "timing.h"
#include "trace.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Static_assert(sizeof(CK_ULONG) == 8, "handles carry a generation in their upper half: 64-bit systems only");

/* ---- handle tables ---- */

struct handle_entry {
    void *item;          /* NULL: free */
    uint32_t generation; /* of the slot: a handle that was destroyed never becomes valid again */
    uint32_t next_free;
};

struct handles {
    struct handle_entry *entry;
    uint32_t used, room, free_head; /* free_head: index + 1, 0 for none */
};

CK_ULONG handles_add(struct handles *table, void *item); /* CK_INVALID_HANDLE: out of memory */
void *handles_get(const struct handles *table, CK_ULONG handle);
void *handles_remove(struct handles *table, CK_ULONG handle);
void handles_replace(struct handles *table, CK_ULONG handle, void *item);
void handles_free(struct handles *table);

/* ---- attributes ---- */

struct attribute {
    CK_ATTRIBUTE_TYPE type;
    CK_ULONG len;
    uint8_t *value; /* owned; wiped when freed */
};

struct attributes {
    struct attribute *item;
    size_t count, room;
};

const struct attribute *attributes_find(const struct attributes *list, CK_ATTRIBUTE_TYPE type);
bool attributes_set(struct attributes *list, CK_ATTRIBUTE_TYPE type, const void *value,
                    size_t len); /* false: memory */
bool attributes_set_bool(struct attributes *list, CK_ATTRIBUTE_TYPE type, bool value);
bool attributes_set_ulong(struct attributes *list, CK_ATTRIBUTE_TYPE type, CK_ULONG value);
bool attributes_copy(struct attributes *to, const struct attributes *from);
bool attributes_bool(const struct attributes *list, CK_ATTRIBUTE_TYPE type); /* false where absent */
CK_ULONG attributes_ulong(const struct attributes *list, CK_ATTRIBUTE_TYPE type, CK_ULONG otherwise);
void attributes_free(struct attributes *list);

/* ---- objects ---- */

enum family { FAMILY_NONE, FAMILY_RSA, FAMILY_P256, FAMILY_SM2, FAMILY_AES, FAMILY_SM4, FAMILY_GENERIC };

/* A key ready for use, decoded once and shared by the operations that use it. Immutable; wiped with its last
 * reference. */
struct material {
    atomic_int references;
    enum family family;
    EVP_PKEY *pkey;         /* RSA, P-256, and SM2 */
    struct engine_key *sm2; /* private SM2 keys: the chosen engine's own form */
    uint8_t point[64];      /* SM2: x || y, for Z */
    uint8_t *secret;        /* AES, SM4, generic */
    size_t secret_len;
};

struct material *material_reference(struct material *material);
void material_release(struct material *material);

/* One version of an object. Immutable but for `handle` (set once, before it is published) and `material`
 * (module.tables); changing an attribute publishes a new version under the same handle. */
struct object {
    atomic_int references;
    CK_OBJECT_HANDLE handle;
    CK_SLOT_ID slot;
    CK_SESSION_HANDLE owner; /* session objects; 0 for token objects */
    uint8_t id[8];           /* CKA_UNIQUE_ID and, for token objects, the file's name */
    uint32_t revision;       /* of the file */
    CK_OBJECT_CLASS class;
    bool private_object;          /* CKA_PRIVATE */
    struct attributes attributes; /* all but the secret ones */
    uint8_t *sealed;              /* nonce || ciphertext || tag of the secret attributes; NULL: it has none */
    size_t sealed_len;
    struct material *material;
};

struct object *object_new(void);
struct object *object_reference(struct object *object);
void object_release(struct object *object);
enum family object_family(const struct attributes *attributes);

/* ---- tokens ---- */

enum login { LOGIN_NONE, LOGIN_USER, LOGIN_SO };

enum { MASTER_KEY_LEN = 32, EPOCH_LEN = 16, SALT_LEN = 16, NONCE_LEN = 12, TAG_LEN = 16, SEAL_OVERHEAD = 28 };

/* What a PIN opens: the master key, wrapped under a key derived from the PIN. */
struct pin_record {
    bool set;
    uint32_t failures; /* since the last success; counted on disk before a guess is answered */
    uint8_t salt[SALT_LEN];
    uint8_t wrapped[MASTER_KEY_LEN + SEAL_OVERHEAD];
};

/* The content of a token's `token` file. */
struct token_record {
    uint8_t epoch[EPOCH_LEN]; /* new with every C_InitToken: objects of another epoch are rubbish */
    char serial[17];
    uint8_t label[32];
    uint32_t kdf_log2n;
    uint32_t max_failures[2]; /* by role: 0 security officer, 1 user */
    struct pin_record pin[2];
};

struct token {
    CK_SLOT_ID slot;
    char *directory;
    pthread_mutex_t lock;
    _Atomic bool initialised;
    _Atomic int login;              /* enum login; written under lock */
    uint8_t master[MASTER_KEY_LEN]; /* lock; valid while somebody is logged in */
    uint8_t epoch[EPOCH_LEN];       /* lock; of the record last read */
    char serial[17];                /* lock */
    _Atomic(_Atomic uint64_t *)
        generation;                 /* shared by all processes of the token: odd while one of them writes */
    _Atomic uint64_t seen;          /* written under lock; the generation our tables show */
    bool loaded;                    /* lock */
    unsigned sessions, rw_sessions; /* module.tables */
};

/* ---- sessions ---- */

struct mechanism;

struct parameters {
    uint8_t *id; /* SM2: the signer's ID, owned; NULL: the default */
    size_t id_len;
    const EVP_MD *pss_digest, *pss_mgf;
    int pss_salt_len;
    uint8_t iv[16];
};

/* One signing or verifying operation; `mechanism` NULL: none is active. */
struct signing {
    const struct mechanism *mechanism;
    struct object *key;
    struct material *material;
    struct parameters parameters;
    EVP_MD_CTX *digest; /* mechanisms that hash */
    uint8_t z[32];      /* CKM_SM3_SM2: what is hashed before the message */
    bool updated;       /* multi-part has begun */
    bool message_open;  /* 3.0: between Begin and its last Next */
};

struct ciphering {
    const struct mechanism *mechanism;
    struct object *key;
    EVP_CIPHER_CTX *context;
    bool updated;
    size_t pending; /* bytes taken in and not yet given out */
};

struct session {
    atomic_int references;
    pthread_mutex_t lock;
    CK_SESSION_HANDLE handle;
    struct token *token;
    bool read_write;
    bool closed;        /* lock */
    EVP_MD_CTX *digest; /* lock, as all that follows; NULL: no digest is active */
    const struct mechanism *digest_mechanism;
    bool digest_updated;
    struct signing sign, verify, message_sign, message_verify;
    struct ciphering encrypt, decrypt;
    CK_OBJECT_HANDLE *found; /* NULL: no search is active */
    size_t found_count, found_next;
};

struct module {
    struct settings settings;
    struct fault_plan faults;
    struct trace trace;
    struct timing timing;
    const struct engine *engine;
    const EVP_MD *digests[8];
    uint8_t session_key[MASTER_KEY_LEN]; /* seals the secrets of session objects in memory */
    pthread_rwlock_t tables;
    struct handles sessions, objects; /* tables */
    struct token **tokens;            /* tables; grows, entries stay until C_Finalize */
    size_t token_count;
};

/* ---- the life of a call (call.c) ---- */

struct call {
    struct module *module;
    enum call_id id;
    struct fault fault;
    bool entered;
    bool token_out; /* the plan has the token removed while this call runs */
};

CK_RV call_enter(struct call *call, enum call_id id);
CK_RV call_enter_session(struct call *call, enum call_id id, CK_SESSION_HANDLE handle,
                         struct session **session);
CK_RV call_leave(struct call *call, CK_RV rv);
CK_RV call_bad_arguments(const struct call *call, struct session *session);
CK_RV call_leave_session(struct call *call, struct session *session, CK_RV rv);

/* A shim checks what C's types cannot say, calls the safe function, and nothing else. */
#define SHIM(name, arguments_good, safe_call) \
    struct call call; \
    CK_RV rv = call_enter(&call, CALL_##name); \
    if (rv == CKR_OK) \
        rv = (arguments_good) ? (safe_call) : CKR_ARGUMENTS_BAD; \
    return call_leave(&call, rv)

#define SESSION_SHIM(name, arguments_good, safe_call) \
    struct call call; \
    struct session *s = NULL; \
    CK_RV rv = call_enter_session(&call, CALL_##name, session, &s); \
    if (rv == CKR_OK) \
        rv = (arguments_good) ? (safe_call) : call_bad_arguments(&call, s); \
    return call_leave_session(&call, s, rv)

#define UNSUPPORTED_SHIM(name) SHIM(name, true, CKR_FUNCTION_NOT_SUPPORTED)

/* ---- sessions (session.c) ---- */

struct session *session_find(struct module *m, CK_SESSION_HANDLE handle); /* a reference, or NULL */
void session_release(struct session *session);
void session_cancel_operations(struct session *session);
void session_cancel(struct session *session, CK_FLAGS operations);
CK_RV session_close(struct module *m, CK_SESSION_HANDLE handle);
void session_close_all(struct module *m, struct token *only); /* NULL: of every token */
enum login session_login(const struct session *s);
bool session_may_see(const struct session *s, const struct object *object);

/* ---- slots and tokens (slot.c, token.c, store.c) ---- */

struct token *token_find(struct module *m, CK_SLOT_ID slot);
void tokens_refresh(struct module *m);
void tokens_free(struct module *m);

CK_RV token_format(struct module *m, struct token *token, const uint8_t *so_pin, size_t so_pin_len,
                   const uint8_t label[32]);
CK_RV token_login(struct token *token, enum login who, const uint8_t *pin, size_t pin_len);
void token_logout(struct module *m, struct token *token);
CK_RV token_set_user_pin(struct token *token, const uint8_t *pin, size_t pin_len);
CK_RV token_change_pin(struct token *token, enum login who, const uint8_t *old_pin, size_t old_len,
                       const uint8_t *new_pin, size_t new_len);
CK_RV token_read_record(const struct token *token, struct token_record *record);

bool seal(const uint8_t key[MASTER_KEY_LEN], const uint8_t *aad, size_t aad_len, const uint8_t *plain,
          size_t len, uint8_t *sealed);
bool unseal(const uint8_t key[MASTER_KEY_LEN], const uint8_t *aad, size_t aad_len, const uint8_t *sealed,
            size_t sealed_len, uint8_t *plain);

struct write_lock {
    int fd;
    bool recovered; /* the writer before us died: our tables may not show what it did */
};

bool store_open(struct token *token);
void store_close(struct token *token);
CK_RV store_lock(struct token *token, struct write_lock *lock);
void store_unlock(struct token *token, struct write_lock *lock, bool we_are_current);
bool store_write_file(const char *directory, const char *name, const uint8_t *bytes, size_t len);
bool store_read_file(const char *directory, const char *name, size_t max_len, uint8_t **bytes, size_t *len);
bool store_remove_file(const char *directory, const char *name);
bool store_sync_directory(const char *directory);
CK_RV store_save_object(struct token *token, struct object *object, uint32_t replaces);
CK_RV store_delete_object(struct token *token, const struct object *object);
void store_synchronise(struct module *m, struct token *token);
void store_catch_up(struct module *m, struct token *token, struct write_lock *lock);
CK_RV store_check_epoch(const struct token *token);
bool store_still_there(const struct token *token, const struct object *object);
void store_remove_rubbish(const struct token *token);
bool token_record_decode(const uint8_t *bytes, size_t len, struct token_record *record);
struct writer;
bool object_seal(struct object *object, const struct attributes *secrets, const uint8_t epoch[EPOCH_LEN],
                 const uint8_t key[MASTER_KEY_LEN]);
bool object_open_seal(const struct object *object, const uint8_t epoch[EPOCH_LEN],
                      const uint8_t key[MASTER_KEY_LEN], struct attributes *secrets);
bool object_encode(const struct object *object, const uint8_t epoch[EPOCH_LEN], struct writer *w);
struct object *object_decode(const uint8_t *bytes, size_t len, const uint8_t epoch[EPOCH_LEN]);

/* ---- objects (template.c, object.c, key.c) ---- */

enum origin { ORIGIN_CREATE, ORIGIN_GENERATE, ORIGIN_UNWRAP };

/* Check `given` against the rules for such an object and fill `result` with it and the defaults. */
CK_RV template_build(enum origin origin, CK_OBJECT_CLASS class, CK_KEY_TYPE key_type,
                     const CK_ATTRIBUTE *given, CK_ULONG count, struct attributes *result);
CK_RV template_change(const struct attributes *current, bool copying, bool officer, const CK_ATTRIBUTE *given,
                      CK_ULONG count, struct attributes *result);
CK_RV template_check(const CK_ATTRIBUTE *given, CK_ULONG count);
bool attribute_is_secret(CK_OBJECT_CLASS class, bool private_object, CK_ATTRIBUTE_TYPE type);
bool attribute_is_ulong(CK_ATTRIBUTE_TYPE type);

/* Publish an object made of `attributes` (emptied): sealed, stored if it is a token object, handle given. */
CK_RV object_publish(struct module *m, struct session *s, struct attributes *attributes,
                     CK_OBJECT_HANDLE *handle);
CK_RV object_check_writable(const struct session *s, const struct attributes *attributes);
struct object *object_find(struct module *m, const struct session *s,
                           CK_OBJECT_HANDLE handle); /* a reference */
CK_RV object_unseal(struct module *m, const struct object *object, struct attributes *secrets);
void object_discard(struct module *m, struct session *s, CK_OBJECT_HANDLE handle);

CK_RV key_open(struct module *m, struct session *s, CK_OBJECT_HANDLE handle, CK_ATTRIBUTE_TYPE usage,
               const struct mechanism *mechanism, struct object **object, struct material **material);
CK_RV key_curve_error(const struct attributes *attributes);
CK_RV key_complete(struct module *m, struct attributes *attributes);
CK_RV key_attributes_from_pkey(EVP_PKEY *pkey, CK_OBJECT_CLASS class, struct attributes *result);
EVP_PKEY *key_generate_ec(bool sm2);

/* ---- mechanisms (mechanism.c) ---- */

enum scheme {
    SCHEME_DIGEST,
    SCHEME_GENERATE,
    SCHEME_RSA_PKCS1,
    SCHEME_RSA_PSS,
    SCHEME_ECDSA,
    SCHEME_SM2,
    SCHEME_HMAC,
    SCHEME_ECB,
    SCHEME_CBC,
    SCHEME_CBC_PAD,
    SCHEME_KEY_WRAP,
    SCHEME_KEY_WRAP_PAD,
};

enum digest_id {
    DIGEST_NONE,
    DIGEST_SHA1,
    DIGEST_SHA224,
    DIGEST_SHA256,
    DIGEST_SHA384,
    DIGEST_SHA512,
    DIGEST_SM3,
    DIGEST_COUNT
};

struct mechanism {
    CK_MECHANISM_TYPE type;
    enum scheme scheme;
    enum family family;
    enum digest_id digest; /* DIGEST_NONE: the caller hashed */
    CK_ULONG min_size, max_size;
    CK_FLAGS flags;
};

extern const struct mechanism mechanisms[];
extern const size_t mechanism_count;

const struct mechanism *mechanism_find(CK_MECHANISM_TYPE type, CK_FLAGS use);
CK_RV mechanism_parameters(struct module *m, const struct mechanism *mechanism, const CK_MECHANISM *given,
                           struct parameters *parameters);
void parameters_free(struct parameters *parameters);
bool mechanisms_load(struct module *m);
void mechanisms_unload(struct module *m);
const EVP_CIPHER *mechanism_cipher(const struct mechanism *mechanism, size_t key_len);

/* ---- signing (sign.c, verify.c) ---- */

CK_RV signing_begin(struct module *m, struct session *s, struct signing *op, const CK_MECHANISM *mechanism,
                    CK_OBJECT_HANDLE key, CK_FLAGS use);
CK_RV signing_update(struct module *m, struct signing *op, const uint8_t *in, size_t len);
CK_RV signing_restart(struct module *m, struct signing *op);
CK_RV signing_compute(struct module *m, struct signing *op, const uint8_t *in, size_t len, uint8_t *out);
CK_RV signing_check(struct module *m, struct signing *op, const uint8_t *in, size_t len,
                    const uint8_t *signature, size_t signature_len);
enum {
    SIGNING_INPUT_MAX = 512,       /* the largest modulus */
    SIGNING_MESSAGE_MAX = 1 << 30, /* no buffer of an honest caller is larger; a length of garbage is */
};
CK_RV signing_input(struct signing *op, const uint8_t *in, size_t len, uint8_t value[SIGNING_INPUT_MAX],
                    size_t *value_len);
bool signing_rsa_settings(struct module *m, const struct signing *op, EVP_PKEY_CTX *context);
CK_RV signing_fault(struct module *m, bool after, struct fault *fault, uint8_t *signature, size_t len);
size_t signing_length(const struct signing *op);
void signing_end(struct signing *op);
CK_RV signing_sm2_z(struct module *m, const uint8_t point[64], const uint8_t *id, size_t id_len,
                    uint8_t z[32]);

void ciphering_end(struct ciphering *op);

#endif
