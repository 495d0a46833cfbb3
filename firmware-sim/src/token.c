/* A token's PINs: who knows one opens the master key, and nobody else does.
 *
 * The `token` file, version 1; all numbers big-endian:
 *
 *     "CSFSTOK1"  epoch[16]  serial[16]  label[32]  kdf_log2n u32
 *     twice, security officer then user: set u8, failures u32, max_failures u32, salt[16], wrapped[60]
 *     SHA-256 of all that precedes (finds accidents)
 *
 * wrapped = AES-256-GCM(key: scrypt(PIN, salt, N = 2^kdf_log2n, r = 8, p = 1), plaintext: master key,
 * associated data: epoch, serial, role). Each role wraps the same master key, so the officer can give the
 * user a new PIN without knowing the old one.
 *
 * A guess is counted, on disk and synced, before its answer exists: who cuts the power has lost the guess.
 */
#include "bytes.h"
#include "module.h"

#include <openssl/crypto.h>
#include <openssl/kdf.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static const char magic[8] = {'C', 'S', 'F', 'S', 'T', 'O', 'K', '1'};
static const char token_file[] = "token";
enum { TOKEN_FILE_MAX = 4096, ROLE_SO = 0, ROLE_USER = 1 };

static void record_encode(const struct token_record *record, struct writer *w) {
    uint8_t sum[32];
    write_bytes(w, magic, sizeof magic);
    write_bytes(w, record->epoch, EPOCH_LEN);
    write_bytes(w, record->serial, 16);
    write_bytes(w, record->label, 32);
    write_uint(w, record->kdf_log2n, 4);
    for (int role = 0; role < 2; role++) {
        const struct pin_record *pin = &record->pin[role];
        write_uint(w, pin->set, 1);
        write_uint(w, pin->failures, 4);
        write_uint(w, record->max_failures[role], 4);
        write_bytes(w, pin->salt, SALT_LEN);
        write_bytes(w, pin->wrapped, sizeof pin->wrapped);
    }
    if (!w->failed && EVP_Digest(w->start, w->len, sum, NULL, EVP_sha256(), NULL) != 1)
        w->failed = true;
    write_bytes(w, sum, sizeof sum);
}

bool token_record_decode(const uint8_t *bytes, size_t len, struct token_record *record) {
    uint8_t sum[32];
    memset(record, 0, sizeof *record);
    if (len < sizeof sum || EVP_Digest(bytes, len - sizeof sum, sum, NULL, EVP_sha256(), NULL) != 1 ||
        memcmp(sum, bytes + len - sizeof sum, sizeof sum) != 0)
        return false;
    struct reader r = {.at = bytes, .left = len - sizeof sum};
    const uint8_t *head = read_bytes(&r, sizeof magic);
    if (!head || memcmp(head, magic, sizeof magic) != 0)
        return false;
    read_into(&r, record->epoch, EPOCH_LEN);
    read_into(&r, record->serial, 16);
    read_into(&r, record->label, 32);
    record->kdf_log2n = (uint32_t)read_uint(&r, 4);
    for (int role = 0; role < 2; role++) {
        struct pin_record *pin = &record->pin[role];
        pin->set = read_uint(&r, 1) == 1;
        pin->failures = (uint32_t)read_uint(&r, 4);
        record->max_failures[role] = (uint32_t)read_uint(&r, 4);
        read_into(&r, pin->salt, SALT_LEN);
        read_into(&r, pin->wrapped, sizeof pin->wrapped);
    }
    return !r.failed && r.left == 0 && record->kdf_log2n >= 1 && record->kdf_log2n <= 14;
}

CK_RV token_read_record(const struct token *token, struct token_record *record) {
    uint8_t *bytes;
    size_t len;
    if (!store_read_file(token->directory, token_file, TOKEN_FILE_MAX, &bytes, &len))
        return CKR_DEVICE_ERROR;
    bool good = token_record_decode(bytes, len, record);
    free(bytes);
    return good ? CKR_OK : CKR_TOKEN_NOT_RECOGNIZED;
}

static CK_RV write_record(const char *directory, const struct token_record *record) {
    struct writer w = {0};
    record_encode(record, &w);
    bool good = !w.failed && store_write_file(directory, token_file, w.start, w.len);
    writer_wipe(&w);
    return good ? CKR_OK : CKR_DEVICE_ERROR;
}

/* ---- sealing ---- */

bool seal(const uint8_t key[MASTER_KEY_LEN], const uint8_t *aad, size_t aad_len, const uint8_t *plain,
          size_t len, uint8_t *sealed) {
    int done, rest;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    /* Nonces are random: 2^32 seals under one key are out of reach of a simulator's disk. */
    bool good = context && RAND_bytes(sealed, NONCE_LEN) == 1 &&
                EVP_EncryptInit_ex(context, EVP_aes_256_gcm(), NULL, key, sealed) == 1 &&
                EVP_EncryptUpdate(context, NULL, &done, aad, (int)aad_len) == 1 &&
                EVP_EncryptUpdate(context, sealed + NONCE_LEN, &done, plain, (int)len) == 1 &&
                EVP_EncryptFinal_ex(context, sealed + NONCE_LEN + done, &rest) == 1 &&
                EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, TAG_LEN, sealed + NONCE_LEN + len) == 1;
    EVP_CIPHER_CTX_free(context);
    return good;
}

bool unseal(const uint8_t key[MASTER_KEY_LEN], const uint8_t *aad, size_t aad_len, const uint8_t *sealed,
            size_t sealed_len, uint8_t *plain) {
    if (sealed_len < SEAL_OVERHEAD)
        return false;
    int done, rest;
    size_t len = sealed_len - SEAL_OVERHEAD;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    bool good = context && EVP_DecryptInit_ex(context, EVP_aes_256_gcm(), NULL, key, sealed) == 1 &&
                EVP_DecryptUpdate(context, NULL, &done, aad, (int)aad_len) == 1 &&
                EVP_DecryptUpdate(context, plain, &done, sealed + NONCE_LEN, (int)len) == 1 &&
                EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_SET_TAG, TAG_LEN,
                                    (void *)(sealed + NONCE_LEN + len)) == 1 &&
                EVP_DecryptFinal_ex(context, plain + done, &rest) == 1;
    EVP_CIPHER_CTX_free(context);
    if (!good)
        OPENSSL_cleanse(plain, len);
    return good;
}

static bool pin_key(const struct token_record *record, const uint8_t salt[SALT_LEN], const uint8_t *pin,
                    size_t pin_len, uint8_t key[32]) {
    return EVP_PBE_scrypt((const char *)pin, pin_len, salt, SALT_LEN, (uint64_t)1 << record->kdf_log2n, 8, 1,
                          (uint64_t)32 << 20, key, 32) == 1;
}

static void wrap_aad(const struct token_record *record, int role, uint8_t aad[EPOCH_LEN + 17]) {
    memcpy(aad, record->epoch, EPOCH_LEN);
    memcpy(aad + EPOCH_LEN, record->serial, 16);
    aad[EPOCH_LEN + 16] = (uint8_t)role;
}

static bool pin_wrap(struct token_record *record, int role, const uint8_t *pin, size_t pin_len,
                     const uint8_t master[MASTER_KEY_LEN]) {
    struct pin_record *to = &record->pin[role];
    uint8_t key[32], aad[EPOCH_LEN + 17];
    wrap_aad(record, role, aad);
    bool good = RAND_bytes(to->salt, SALT_LEN) == 1 && pin_key(record, to->salt, pin, pin_len, key) &&
                seal(key, aad, sizeof aad, master, MASTER_KEY_LEN, to->wrapped);
    OPENSSL_cleanse(key, sizeof key);
    to->set = good;
    to->failures = 0;
    return good;
}

/* Open the master key with a PIN, counting the attempt. Under the store's lock. */
static CK_RV pin_open(struct token *token, struct token_record *record, int role, const uint8_t *pin,
                      size_t pin_len, uint8_t master[MASTER_KEY_LEN]) {
    struct pin_record *from = &record->pin[role];
    uint8_t key[32], aad[EPOCH_LEN + 17];
    if (!from->set)
        return CKR_USER_PIN_NOT_INITIALIZED;
    if (from->failures >= record->max_failures[role])
        return CKR_PIN_LOCKED;
    from->failures++;
    CK_RV rv = write_record(token->directory, record);
    if (rv != CKR_OK)
        return rv;
    /* From here on the attempt is on disk. A crash before the answer costs the holder one attempt, never the
     * token: the next success sets the counter back. */
    wrap_aad(record, role, aad);
    bool opened = pin_key(record, from->salt, pin, pin_len, key) &&
                  unseal(key, aad, sizeof aad, from->wrapped, sizeof from->wrapped, master);
    OPENSSL_cleanse(key, sizeof key);
    if (!opened)
        return from->failures >= record->max_failures[role] ? CKR_PIN_LOCKED : CKR_PIN_INCORRECT;
    from->failures = 0;
    rv = write_record(token->directory, record);
    if (rv != CKR_OK)
        OPENSSL_cleanse(master, MASTER_KEY_LEN);
    return rv;
}

/* ---- what the slot and session chapters ask for ---- */

/* Under token->lock. An uninitialised slot becomes a token; a token is emptied, if the officer's PIN is
 * right. */
CK_RV token_format(struct module *m, struct token *token, const uint8_t *so_pin, size_t so_pin_len,
                   const uint8_t label[32]) {
    struct token_record record = {0}, old;
    struct write_lock lock;
    uint8_t master[MASTER_KEY_LEN], serial[8];
    if (mkdir(token->directory, 0700) == 0 && !store_sync_directory(m->settings.tokens))
        return CKR_DEVICE_ERROR;
    /* A crash here leaves an empty directory: an uninitialised slot. */
    CK_RV rv = store_lock(token, &lock);
    if (rv != CKR_OK)
        return rv;
    bool exists = token_read_record(token, &old) == CKR_OK;
    if (exists)
        rv = pin_open(token, &old, ROLE_SO, so_pin, so_pin_len, master);
    if (rv != CKR_OK)
        goto done;
    bool good = RAND_bytes(record.epoch, EPOCH_LEN) == 1 && RAND_bytes(serial, sizeof serial) == 1 &&
                RAND_priv_bytes(master, sizeof master) == 1;
    for (size_t i = 0; i < sizeof serial; i++)
        snprintf(record.serial + 2 * i, 3, "%02x", serial[i]);
    if (exists)
        memcpy(record.serial, old.serial, sizeof record.serial);
    memcpy(record.label, label, sizeof record.label);
    record.kdf_log2n = (uint32_t)m->settings.kdf_log2n;
    record.max_failures[ROLE_SO] = (uint32_t)m->settings.max_so_failures;
    record.max_failures[ROLE_USER] = (uint32_t)m->settings.max_user_failures;
    good = good && pin_wrap(&record, ROLE_SO, so_pin, so_pin_len, master);
    /* The rename inside is the moment at which the new token replaces the old one: its epoch makes every
     * object of the old one rubbish, whether or not we live to remove the files. */
    rv = good ? write_record(token->directory, &record) : CKR_GENERAL_ERROR;
    if (rv == CKR_OK) {
        memcpy(token->epoch, record.epoch, EPOCH_LEN);
        memcpy(token->serial, record.serial, sizeof token->serial);
        token->initialised = true;
        token->loaded = false;
        store_remove_rubbish(token);
    }
done:
    OPENSSL_cleanse(master, sizeof master);
    store_unlock(token, &lock, false);
    return rv;
}

/* Under token->lock. */
CK_RV token_login(struct token *token, enum login who, const uint8_t *pin, size_t pin_len) {
    struct token_record record;
    struct write_lock lock;
    CK_RV rv = store_lock(token, &lock);
    if (rv != CKR_OK)
        return rv;
    uint8_t master[MASTER_KEY_LEN];
    rv = token_read_record(token, &record);
    if (rv == CKR_OK)
        rv = pin_open(token, &record, who == LOGIN_SO ? ROLE_SO : ROLE_USER, pin, pin_len, master);
    if (rv == CKR_OK) {
        memcpy(token->epoch, record.epoch, EPOCH_LEN);
        memcpy(token->master, master, sizeof master);
        token->login = (int)who;
    }
    OPENSSL_cleanse(master, sizeof master);
    store_unlock(token, &lock, true);
    return rv;
}

/* Under token->lock, with the officer logged in. */
CK_RV token_set_user_pin(struct token *token, const uint8_t *pin, size_t pin_len) {
    struct token_record record;
    struct write_lock lock;
    CK_RV rv = store_lock(token, &lock);
    if (rv != CKR_OK)
        return rv;
    rv = token_read_record(token, &record);
    if (rv == CKR_OK && memcmp(record.epoch, token->epoch, EPOCH_LEN) != 0)
        rv = CKR_DEVICE_REMOVED; /* another process has initialised the token anew: our master key is not its
                                  */
    if (rv == CKR_OK && !pin_wrap(&record, ROLE_USER, pin, pin_len, token->master))
        rv = CKR_GENERAL_ERROR;
    if (rv == CKR_OK)
        rv = write_record(token->directory, &record);
    store_unlock(token, &lock, true);
    return rv;
}

/* Under token->lock. */
CK_RV token_change_pin(struct token *token, enum login who, const uint8_t *old_pin, size_t old_len,
                       const uint8_t *new_pin, size_t new_len) {
    struct token_record record;
    struct write_lock lock;
    uint8_t master[MASTER_KEY_LEN];
    int role = who == LOGIN_SO ? ROLE_SO : ROLE_USER;
    CK_RV rv = store_lock(token, &lock);
    if (rv != CKR_OK)
        return rv;
    rv = token_read_record(token, &record);
    if (rv == CKR_OK)
        rv = pin_open(token, &record, role, old_pin, old_len, master);
    if (rv == CKR_OK) {
        rv = pin_wrap(&record, role, new_pin, new_len, master) ? write_record(token->directory, &record)
                                                               : CKR_GENERAL_ERROR;
        OPENSSL_cleanse(master, sizeof master);
    }
    store_unlock(token, &lock, true);
    return rv;
}
