/* A token's directory: atomic files, one lock for writers, one generation counter for everybody.
 *
 *     <tokens>/<slot>/token            PINs and label (token.c)
 *     <tokens>/<slot>/<id>.<rev>.obj   one token object: 16 hex digits, 8 hex digits
 *     <tokens>/<slot>/lock             flock(2): one writer at a time, over all processes
 *     <tokens>/<slot>/generation       8 bytes shared by mmap, no durable state: odd while a writer is at
 * work <tokens>/<slot>/.tmp-*           a file being written; rubbish once its writer is dead
 *
 * A file is written under a temporary name, synced, renamed, and the directory synced: a crash at any moment
 * leaves the old file or the new one. A changed object gets the next revision and its old file is removed
 * afterwards; where a crash leaves both, the higher revision holds.
 */
#include "bytes.h"
#include "module.h"
#include "write_all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OBJECT_NAME_LEN = 16 + 1 + 8 + 4, OBJECT_FILE_MAX = 1 << 23 /* data objects are no file store */ };

static bool join(char *path, size_t room, const char *directory, const char *name) {
    int len = snprintf(path, room, "%s/%s", directory, name);
    return len > 0 && (size_t)len < room;
}

bool store_sync_directory(const char *directory) {
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool good = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    return good;
}

bool store_write_file(const char *directory, const char *name, const uint8_t *bytes, size_t len) {
    char temporary[4200], path[4200], temporary_name[48];
    uint8_t unique[8];
    if (RAND_bytes(unique, sizeof unique) != 1)
        return false;
    uint64_t number;
    memcpy(&number, unique, sizeof number);
    snprintf(temporary_name, sizeof temporary_name, ".tmp-%016llx", (unsigned long long)number);
    if (!join(temporary, sizeof temporary, directory, temporary_name) ||
        !join(path, sizeof path, directory, name))
        return false;
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    bool good = write_all(fd, bytes, len) && fsync(fd) == 0;
    good = close(fd) == 0 && good;
    /* A crash up to here leaves a temporary file, which nobody reads and the next writer removes. */
    good = good && rename(temporary, path) == 0;
    if (!good) {
        unlink(temporary);
        return false;
    }
    /* Renamed: every process sees the new file; after the next line a power failure does too. */
    return store_sync_directory(directory);
}

bool store_read_file(const char *directory, const char *name, size_t max_len, uint8_t **bytes, size_t *len) {
    char path[4200];
    struct stat info;
    *bytes = NULL;
    int fd = join(path, sizeof path, directory, name) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    bool good = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size >= 0 &&
                (size_t)info.st_size <= max_len;
    size_t size = good ? (size_t)info.st_size : 0;
    good = good && (*bytes = malloc(size + 1)) != NULL;
    for (*len = 0; good && *len < size;) {
        ssize_t got = read(fd, *bytes + *len, size - *len);
        if (got < 0 && errno == EINTR)
            continue;
        good = got > 0;
        *len += good ? (size_t)got : 0;
    }
    close(fd);
    if (!good) {
        free(*bytes);
        *bytes = NULL;
    }
    return good;
}

bool store_remove_file(const char *directory, const char *name) {
    char path[4200];
    return join(path, sizeof path, directory, name) && (unlink(path) == 0 || errno == ENOENT);
}

/* ---- the generation ---- */

static _Atomic uint64_t *generation_of(const struct token *token) {
    return atomic_load_explicit(&token->generation, memory_order_acquire);
}

/* Under token->lock. */
bool store_open(struct token *token) {
    char path[4200];
    if (generation_of(token))
        return true;
    int fd = join(path, sizeof path, token->directory, "generation")
                 ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)
                 : -1;
    if (fd < 0)
        return false;
    struct stat info;
    bool good =
        fstat(fd, &info) == 0 && (info.st_size == sizeof(uint64_t) || ftruncate(fd, sizeof(uint64_t)) == 0);
    void *map = good ? mmap(NULL, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (map == MAP_FAILED)
        return false;
    atomic_store_explicit(&token->generation, map, memory_order_release);
    return true;
}

void store_close(struct token *token) {
    if (generation_of(token))
        munmap((void *)generation_of(token), sizeof(uint64_t));
    token->generation = NULL;
}

static void remove_temporaries(const char *directory) {
    DIR *listing = opendir(directory);
    for (struct dirent *entry; listing && (entry = readdir(listing));)
        if (strncmp(entry->d_name, ".tmp-", 5) == 0)
            store_remove_file(directory, entry->d_name);
    if (listing)
        closedir(listing);
}

CK_RV store_lock(struct token *token, struct write_lock *lock) {
    char path[4200];
    lock->fd = join(path, sizeof path, token->directory, "lock")
                   ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)
                   : -1;
    if (lock->fd < 0 || !store_open(token))
        goto failed;
    while (flock(lock->fd, LOCK_EX) != 0)
        if (errno != EINTR)
            goto failed;
    /* Odd: the writer before us died between its first step and its last. Whatever it left is either whole or
     * temporary, so removing the temporary files is all the repair there is. */
    lock->recovered = atomic_load(generation_of(token)) % 2 != 0;
    if (lock->recovered)
        remove_temporaries(token->directory);
    else
        atomic_fetch_add(generation_of(token), 1);
    return CKR_OK;
failed:
    if (lock->fd >= 0)
        close(lock->fd);
    return CKR_DEVICE_ERROR;
}

void store_unlock(struct token *token, struct write_lock *lock, bool we_are_current) {
    uint64_t now = atomic_fetch_add(generation_of(token), 1) + 1;
    /* Our own tables already show what we wrote, unless others wrote since we last looked. */
    if (we_are_current && !lock->recovered && token->seen + 2 == now)
        token->seen = now;
    close(lock->fd); /* releases the flock */
}

/* ---- objects ---- */

static void object_name(const struct object *object, uint32_t revision, char name[OBJECT_NAME_LEN + 1]) {
    for (size_t i = 0; i < sizeof object->id; i++)
        snprintf(name + 2 * i, 3, "%02x", object->id[i]);
    snprintf(name + 16, OBJECT_NAME_LEN + 1 - 16, ".%08x.obj", revision);
}

CK_RV store_save_object(struct token *token, struct object *object, uint32_t replaces) {
    char name[OBJECT_NAME_LEN + 1];
    struct writer w = {0};
    object_name(object, object->revision, name);
    bool good = object_encode(object, token->epoch, &w) && w.len <= OBJECT_FILE_MAX &&
                store_write_file(token->directory, name, w.start, w.len);
    writer_wipe(&w);
    if (!good)
        return CKR_DEVICE_MEMORY;
    if (replaces) {
        /* A crash here leaves both revisions; readers take the higher. */
        object_name(object, replaces, name);
        store_remove_file(token->directory, name);
    }
    return CKR_OK;
}

CK_RV store_delete_object(struct token *token, const struct object *object) {
    char name[OBJECT_NAME_LEN + 1];
    object_name(object, object->revision, name);
    return store_remove_file(token->directory, name) && store_sync_directory(token->directory)
               ? CKR_OK
               : CKR_DEVICE_ERROR;
}

struct listed {
    uint8_t id[8];
    uint32_t revision;
    bool known; /* our tables show it */
    struct object *loaded;
};

static int hex_value(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool name_read(const char *name, struct listed *out) {
    if (strlen(name) != OBJECT_NAME_LEN || name[16] != '.' || strcmp(name + 25, ".obj") != 0)
        return false;
    uint8_t bytes[12];
    for (size_t i = 0; i < 12; i++) {
        const char *at = name + 2 * i + (i >= 8); /* over the dot */
        int high = hex_value(at[0]), low = hex_value(at[1]);
        if (high < 0 || low < 0)
            return false;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    memcpy(out->id, bytes, 8);
    out->revision =
        (uint32_t)bytes[8] << 24 | (uint32_t)bytes[9] << 16 | (uint32_t)bytes[10] << 8 | bytes[11];
    out->known = false;
    out->loaded = NULL;
    return true;
}

static int by_id(const void *a, const void *b) {
    const struct listed *x = a, *y = b;
    int order = memcmp(x->id, y->id, sizeof x->id);
    if (order)
        return order;
    return x->revision < y->revision   ? 1
           : x->revision > y->revision ? -1
                                       : 0; /* the highest revision first */
}

static bool list_objects(const char *directory, struct listed **list, size_t *count) {
    size_t room = 0;
    *list = NULL;
    *count = 0;
    DIR *listing = opendir(directory);
    if (!listing)
        return false;
    bool good = true;
    for (struct dirent *entry; good && (entry = readdir(listing));) {
        if (*count == room) {
            room = room ? room * 2 : 64;
            struct listed *grown = realloc(*list, room * sizeof **list);
            good = grown != NULL;
            *list = good ? grown : *list;
        }
        if (good && name_read(entry->d_name, &(*list)[*count]))
            ++*count;
    }
    closedir(listing);
    if (*count)
        qsort(*list, *count, sizeof **list, by_id);
    size_t kept = 0;
    for (size_t i = 0; i < *count; i++)
        if (!kept || memcmp((*list)[kept - 1].id, (*list)[i].id, 8) != 0)
            (*list)[kept++] = (*list)[i];
    *count = kept;
    return good;
}

static struct listed *listed_find(struct listed *list, size_t count, const uint8_t id[8]) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = memcmp(list[middle].id, id, 8);
        if (order == 0)
            return &list[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static struct object *load_object(const struct token *token, const struct listed *listed) {
    struct object named = {.revision = listed->revision};
    memcpy(named.id, listed->id, sizeof named.id);
    char name[OBJECT_NAME_LEN + 1];
    uint8_t *bytes;
    size_t len;
    object_name(&named, listed->revision, name);
    if (!store_read_file(token->directory, name, OBJECT_FILE_MAX, &bytes, &len))
        return NULL;
    struct object *object = object_decode(bytes, len, token->epoch);
    free(bytes);
    /* A file that answers to another name than its content says was put there by somebody else. */
    if (object && (memcmp(object->id, listed->id, 8) != 0 || object->revision != listed->revision)) {
        object_release(object);
        return NULL;
    }
    if (object)
        object->slot = token->slot;
    return object;
}

static bool is_token_object(const struct object *object, const struct token *token) {
    return object && !object->owner && object->slot == token->slot;
}

/* Make our tables show the directory, if somebody has written since we last looked. Called under token->lock.
 */
void store_synchronise(struct module *m, struct token *token) {
    if (!token->initialised || !store_open(token))
        return;
    uint64_t now = atomic_load(generation_of(token));
    if (token->loaded && now == token->seen && now % 2 == 0)
        return;
    struct token_record record;
    if (token_read_record(token, &record) != CKR_OK)
        return;
    if (memcmp(token->epoch, record.epoch, EPOCH_LEN) != 0) {
        /* Another process has initialised the token anew: the key we hold opens nothing there. */
        token->login = LOGIN_NONE;
        OPENSSL_cleanse(token->master, sizeof token->master);
    }
    memcpy(token->epoch, record.epoch, EPOCH_LEN);
    memcpy(token->serial, record.serial, sizeof token->serial);
    struct listed *list;
    size_t count;
    if (!list_objects(token->directory, &list, &count)) {
        free(list);
        return;
    }
    /* Token objects of this token change under token->lock only, which we hold: look first, load without a
     * lock on the tables (others are signing), publish at the end. */
    pthread_rwlock_rdlock(&m->tables);
    for (uint32_t i = 0; i < m->objects.used; i++) {
        const struct object *object = m->objects.entry[i].item;
        struct listed *at = is_token_object(object, token) ? listed_find(list, count, object->id) : NULL;
        if (at && at->revision == object->revision)
            at->known = true;
    }
    pthread_rwlock_unlock(&m->tables);
    for (size_t i = 0; i < count; i++)
        list[i].loaded = list[i].known ? NULL : load_object(token, &list[i]);
    pthread_rwlock_wrlock(&m->tables);
    for (uint32_t i = 0; i < m->objects.used; i++) {
        struct object *object = m->objects.entry[i].item;
        struct listed *at = is_token_object(object, token) ? listed_find(list, count, object->id) : NULL;
        if (!is_token_object(object, token) || (at && at->known))
            continue;
        if (at && at->loaded) {
            at->loaded->handle = object->handle;
            handles_replace(&m->objects, object->handle, at->loaded);
            at->loaded = NULL;
        } else {
            handles_remove(&m->objects, object->handle);
        }
        object_release(object);
    }
    for (size_t i = 0; i < count; i++)
        if (list[i].loaded &&
            (list[i].loaded->handle = handles_add(&m->objects, list[i].loaded)) == CK_INVALID_HANDLE)
            object_release(list[i].loaded);
    pthread_rwlock_unlock(&m->tables);
    free(list);
    token->seen = now;
    token->loaded = true;
}

/* Remove the objects of an earlier life of the token. Leaving some behind is harmless: their epoch is
 * another. */
void store_remove_rubbish(const struct token *token) {
    struct listed *list;
    size_t count;
    if (list_objects(token->directory, &list, &count))
        for (size_t i = 0; i < count; i++) {
            struct object *object = load_object(token, &list[i]);
            struct object named = {.revision = list[i].revision};
            char name[OBJECT_NAME_LEN + 1];
            memcpy(named.id, list[i].id, sizeof named.id);
            object_name(&named, named.revision, name);
            if (!object)
                store_remove_file(token->directory, name);
            object_release(object);
        }
    free(list);
}

/* While writing: make our tables current, so that what we write builds on what is there. */
void store_catch_up(struct module *m, struct token *token, struct write_lock *lock) {
    uint64_t now = atomic_load(generation_of(token));
    if (token->loaded && !lock->recovered && token->seen + 1 == now)
        return;
    store_synchronise(m, token);
    token->seen = now - 1;
    lock->recovered = false;
}

/* While writing: is this still the token that our master key belongs to? */
CK_RV store_check_epoch(const struct token *token) {
    struct token_record record;
    CK_RV rv = token_read_record(token, &record);
    if (rv != CKR_OK)
        return rv;
    return memcmp(record.epoch, token->epoch, EPOCH_LEN) == 0 ? CKR_OK : CKR_DEVICE_REMOVED;
}

/* Has another process changed or destroyed this object? One atomic load where nobody has written since we
 * looked, one system call where somebody has; cheap enough for every C_SignInit. */
bool store_still_there(const struct token *token, const struct object *object) {
    _Atomic uint64_t *generation = generation_of(token);
    if (object->owner || (generation && atomic_load(generation) == atomic_load(&token->seen)))
        return true;
    char path[4200], name[OBJECT_NAME_LEN + 1];
    object_name(object, object->revision, name);
    return join(path, sizeof path, token->directory, name) && access(path, F_OK) == 0;
}
