/* The loop that signs a whole batch, in the best way that the module has and the key works with.
 *
 * - A return code stops the batch unless it is known to concern the item or the key alone. Unknown codes stop it:
 *   a restart too many costs a second, a dead token taken for a thousand refusals costs a night's batch.
 * - No signature is handed on that is not two integers in [1, n-1]. Whatever was not signed is all zero.
 * - A session is used by one thread at a time; the caller sees to that.
 */
#include "batch.h"

#include <string.h>
#include <time.h>

/* Room for any signature a module may return, so that it never has cause for CKR_BUFFER_TOO_SMALL, which would
 * leave the operation open; DER of two 256-bit integers has at most 72 bytes. */
enum { SIGNATURE_ROOM = 1024 };

/* The status bytes of an item; link.py gives them their names. */
enum { ITEM_SIGNED = 0, ITEM_REFUSED = 1, ITEM_NOT_DONE = 2 };

/* Codes that concern this item, or this key and so every item of the batch; the token and its other keys are well. */
static int concerns_item_only(CK_RV rv)
{
    switch (rv) {
    case CKR_ACTION_PROHIBITED:
    case CKR_DATA_INVALID:
    case CKR_DATA_LEN_RANGE:
    case CKR_FUNCTION_CANCELED:
    case CKR_FUNCTION_REJECTED:
    case CKR_KEY_FUNCTION_NOT_PERMITTED:
    case CKR_KEY_SIZE_RANGE:
    case CKR_KEY_TYPE_INCONSISTENT:
    case CKR_MECHANISM_INVALID:
    case CKR_MECHANISM_PARAM_INVALID:
        return 1;
    default:
        return 0;
    }
}

static int in_range(const CK_BYTE *integer, const CK_BYTE *order)
{
    static const CK_BYTE zero[INTEGER_LEN];
    return memcmp(integer, zero, INTEGER_LEN) != 0 && memcmp(integer, order, INTEGER_LEN) < 0;
}

/* One DER INTEGER of at most 256 bits into 32 bytes; returns what follows it, or NULL if it is not DER. */
static const CK_BYTE *read_der_integer(const CK_BYTE *at, const CK_BYTE *end, CK_BYTE *out)
{
    if (end - at < 3 || at[0] != 0x02)
        return NULL;
    size_t len = at[1];
    at += 2;
    if (len == 0 || len > INTEGER_LEN + 1 || len > (size_t)(end - at))
        return NULL;    /* a length above 33, and so every long form (0x80 and above), is refused here */
    if (at[0] & 0x80)
        return NULL;    /* negative */
    if (at[0] == 0 && len > 1 && !(at[1] & 0x80))
        return NULL;    /* not the shortest form */
    const CK_BYTE *next = at + len;
    if (len == INTEGER_LEN + 1) {
        if (at[0] != 0)
            return NULL;
        at++;
        len--;
    }
    memset(out, 0, INTEGER_LEN - len);
    memcpy(out + INTEGER_LEN - len, at, len);
    return next;
}

int read_der_signature(const CK_BYTE *der, CK_ULONG len, CK_BYTE *out)
{
    if (len < 2 || der[0] != 0x30 || der[1] & 0x80 || der[1] != len - 2)
        return 0;
    const CK_BYTE *end = der + len;
    const CK_BYTE *at = read_der_integer(der + 2, end, out);
    if (at)
        at = read_der_integer(at, end, out + INTEGER_LEN);
    return at == end;
}

static int store(const Key *key, const CK_BYTE *signature, CK_ULONG len, CK_BYTE *out)
{
    if (key->der) {
        if (!read_der_signature(signature, len, out))
            return 0;
    } else {
        if (len != SIGNATURE_LEN)
            return 0;
        memcpy(out, signature, SIGNATURE_LEN);
    }
    return in_range(out, key->order) && in_range(out + INTEGER_LEN, key->order);
}

/* Record one item's outcome. Returns 0 when the batch must stop here. */
static int settle(Batch *batch, CK_ULONG index, CK_RV rv, const CK_BYTE *signature, CK_ULONG len)
{
    CK_BYTE *out = batch->signatures + index * SIGNATURE_LEN;
    if (rv == CKR_OK) {
        if (store(batch->key, signature, len, out)) {
            batch->statuses[index] = ITEM_SIGNED;
        } else {
            /* The module says it signed, and returned no signature: this item failed, its neighbours may not. */
            memset(out, 0, SIGNATURE_LEN);
            batch->statuses[index] = ITEM_REFUSED;
            batch->item_rv = CKR_GENERAL_ERROR;
        }
    } else if (concerns_item_only(rv)) {
        batch->statuses[index] = ITEM_REFUSED;
        batch->item_rv = rv;
    } else {
        batch->rv = rv;
        return 0;
    }
    batch->done = index + 1;
    return 1;
}

static void sign_plain(Batch *batch)
{
    const CK_FUNCTION_LIST *call = batch->key->module->functions;
    CK_MECHANISM mechanism = batch->key->mechanism;
    CK_BYTE room[SIGNATURE_ROOM];
    CK_BYTE *data = batch->data;
    for (CK_ULONG index = 0; index < batch->count; index++) {
        CK_ULONG data_len = batch->lengths ? read_u32(batch->lengths + 4 * index) : DIGEST_LEN;
        CK_ULONG signature_len = sizeof room;
        CK_RV rv = call->C_SignInit(batch->session, &mechanism, batch->key->handle);
        if (rv == CKR_OK)
            rv = call->C_Sign(batch->session, data, data_len, room, &signature_len);
        if (!settle(batch, index, rv, room, signature_len))
            return;
        data += data_len;
    }
}

static void sign_message(Batch *batch)
{
    const CK_FUNCTION_LIST_3_0 *call = batch->key->module->functions_3_0;
    CK_MECHANISM mechanism = batch->key->mechanism;
    CK_BYTE room[SIGNATURE_ROOM];
    CK_BYTE *data = batch->data;
    int open = 0;
    for (CK_ULONG index = 0; index < batch->count; index++) {
        CK_ULONG data_len = batch->lengths ? read_u32(batch->lengths + 4 * index) : DIGEST_LEN;
        CK_ULONG signature_len = sizeof room;
        CK_RV rv = open ? CKR_OK : call->C_MessageSignInit(batch->session, &mechanism, batch->key->handle);
        if (rv == CKR_OK) {
            open = 1;
            rv = call->C_SignMessage(batch->session, NULL, 0, data, data_len, room, &signature_len);
            if (rv != CKR_OK) {
                /* Modules differ in whether a refused message ends the whole operation: end it, open it anew. */
                call->C_MessageSignFinal(batch->session);
                open = 0;
            }
        }
        if (!settle(batch, index, rv, room, signature_len))
            break;
        data += data_len;
    }
    if (open) {
        CK_RV rv = call->C_MessageSignFinal(batch->session);
        if (batch->rv == CKR_OK && rv != CKR_OK && !concerns_item_only(rv))
            batch->rv = rv;    /* the signatures stand; the next batch would not have */
    }
}

static void sign_vendor(Batch *batch)
{
    const Key *key = batch->key;
    CK_MECHANISM mechanism = key->mechanism;
    CK_ULONG done = 0;
    CK_RV rv = key->module->vendor->C_SignBatch(batch->session, &mechanism, key->handle, batch->count, batch->data,
                                                batch->signatures, batch->statuses, &done);
    if (done > batch->count) {
        done = 0;
        rv = CKR_GENERAL_ERROR;
    } else if (rv == CKR_OK && done < batch->count) {
        rv = CKR_GENERAL_ERROR;    /* it says all is well and has left items undone: do not ask it again */
    }
    for (CK_ULONG index = 0; index < batch->count; index++) {
        CK_BYTE *signature = batch->signatures + index * SIGNATURE_LEN;
        int good = index < done && batch->statuses[index] == 0 && in_range(signature, key->order) &&
                   in_range(signature + INTEGER_LEN, key->order);
        if (!good)
            memset(signature, 0, SIGNATURE_LEN);
        if (index < done && !good)
            batch->item_rv = CKR_FUNCTION_REJECTED;
        batch->statuses[index] = good ? ITEM_SIGNED : index < done ? ITEM_REFUSED : ITEM_NOT_DONE;
    }
    batch->done = done;
    if (rv != CKR_OK && concerns_item_only(rv)) {
        memset(batch->statuses + done, ITEM_REFUSED, batch->count - done);
        batch->done = batch->count;
        batch->item_rv = rv;
    } else {
        batch->rv = rv;
    }
}

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void batch_run(Batch *batch)
{
    uint64_t started_at = monotonic_ns();
    memset(batch->statuses, ITEM_NOT_DONE, batch->count);
    memset(batch->signatures, 0, batch->count * SIGNATURE_LEN);
    if (batch->key->method == METHOD_VENDOR)
        sign_vendor(batch);
    else if (batch->key->method == METHOD_MESSAGE)
        sign_message(batch);
    else
        sign_plain(batch);
    batch->execution_ns = monotonic_ns() - started_at;
}

uint64_t sum_of_lengths(const CK_BYTE *lengths, CK_ULONG count)
{
    uint64_t sum = 0;
    for (CK_ULONG index = 0; index < count; index++)
        sum += read_u32(lengths + 4 * index);
    return sum;
}
