/* Handle tables and attribute lists. */
#include "module.h"

#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

/* ---- handles: index + 1 in the lower half, the slot's generation in the upper ---- */

static struct handle_entry *entry_of(const struct handles *table, CK_ULONG handle) {
    uint32_t index = (uint32_t)handle - 1; /* 0 wraps to a value beyond any table */
    if (index >= table->used)
        return NULL;
    struct handle_entry *entry = &table->entry[index];
    return entry->item && entry->generation == (uint32_t)(handle >> 32) ? entry : NULL;
}

CK_ULONG handles_add(struct handles *table, void *item) {
    uint32_t index;
    if (table->free_head) {
        index = table->free_head - 1;
        table->free_head = table->entry[index].next_free;
    } else {
        if (table->used == table->room) {
            uint32_t room = table->room ? table->room * 2 : 64;
            struct handle_entry *grown = realloc(table->entry, room * sizeof *grown);
            if (!grown)
                return CK_INVALID_HANDLE;
            table->entry = grown;
            table->room = room;
        }
        index = table->used++;
        table->entry[index] = (struct handle_entry){0};
    }
    table->entry[index].item = item;
    return (CK_ULONG)table->entry[index].generation << 32 | (index + 1);
}

void *handles_get(const struct handles *table, CK_ULONG handle) {
    const struct handle_entry *entry = entry_of(table, handle);
    return entry ? entry->item : NULL;
}

void *handles_remove(struct handles *table, CK_ULONG handle) {
    struct handle_entry *entry = entry_of(table, handle);
    if (!entry)
        return NULL;
    void *item = entry->item;
    entry->item = NULL;
    entry->generation++;
    entry->next_free = table->free_head;
    table->free_head = (uint32_t)handle;
    return item;
}

void handles_replace(struct handles *table, CK_ULONG handle, void *item) {
    struct handle_entry *entry = entry_of(table, handle);
    if (entry)
        entry->item = item;
}

void handles_free(struct handles *table) {
    free(table->entry);
    *table = (struct handles){0};
}

/* ---- attributes ---- */

const struct attribute *attributes_find(const struct attributes *list, CK_ATTRIBUTE_TYPE type) {
    for (size_t i = 0; i < list->count; i++)
        if (list->item[i].type == type)
            return &list->item[i];
    return NULL;
}

bool attributes_set(struct attributes *list, CK_ATTRIBUTE_TYPE type, const void *value, size_t len) {
    uint8_t *copy = malloc(len ? len : 1);
    if (!copy)
        return false;
    if (len)
        memcpy(copy, value, len);
    struct attribute *at = (struct attribute *)attributes_find(list, type);
    if (at) {
        OPENSSL_cleanse(at->value, at->len);
        free(at->value);
    } else {
        if (list->count == list->room) {
            size_t room = list->room ? list->room * 2 : 16;
            struct attribute *grown = realloc(list->item, room * sizeof *grown);
            if (!grown) {
                free(copy);
                return false;
            }
            list->item = grown;
            list->room = room;
        }
        at = &list->item[list->count++];
    }
    *at = (struct attribute){.type = type, .len = len, .value = copy};
    return true;
}

bool attributes_set_bool(struct attributes *list, CK_ATTRIBUTE_TYPE type, bool value) {
    CK_BBOOL byte = value ? CK_TRUE : CK_FALSE;
    return attributes_set(list, type, &byte, sizeof byte);
}

bool attributes_set_ulong(struct attributes *list, CK_ATTRIBUTE_TYPE type, CK_ULONG value) {
    return attributes_set(list, type, &value, sizeof value);
}

bool attributes_copy(struct attributes *to, const struct attributes *from) {
    for (size_t i = 0; i < from->count; i++)
        if (!attributes_set(to, from->item[i].type, from->item[i].value, from->item[i].len))
            return false;
    return true;
}

bool attributes_bool(const struct attributes *list, CK_ATTRIBUTE_TYPE type) {
    const struct attribute *at = attributes_find(list, type);
    return at && at->len == 1 && at->value[0];
}

CK_ULONG attributes_ulong(const struct attributes *list, CK_ATTRIBUTE_TYPE type, CK_ULONG otherwise) {
    const struct attribute *at = attributes_find(list, type);
    CK_ULONG value = otherwise;
    if (at && at->len == sizeof value)
        memcpy(&value, at->value, sizeof value);
    return value;
}

void attributes_free(struct attributes *list) {
    for (size_t i = 0; i < list->count; i++) {
        OPENSSL_cleanse(list->item[i].value, list->item[i].len);
        free(list->item[i].value);
    }
    free(list->item);
    *list = (struct attributes){0};
}
