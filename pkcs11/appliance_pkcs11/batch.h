/* What the parts of _batch share: `sign.c` signs a batch, `serve.c` answers frames with it, `_batch.c` is the Python
 * module around both. */
#ifndef CLOUD_SEAL_BATCH_H
#define CLOUD_SEAL_BATCH_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#include "cryptoki.h"

enum { DIGEST_LEN = 32, INTEGER_LEN = 32, SIGNATURE_LEN = 64 };

enum method { METHOD_PLAIN, METHOD_MESSAGE, METHOD_VENDOR, METHOD_COUNT };

typedef struct {
    PyObject_HEAD
    void *library;
    CK_FUNCTION_LIST *functions;
    CK_FUNCTION_LIST_3_0 *functions_3_0;    /* NULL where the module has no message signing */
    CLOUD_SEAL_BATCH_FUNCTIONS *vendor;     /* NULL where the module has no batch interface */
} Module;

/* Never changed once it is made: threads may share it. */
typedef struct {
    PyObject_HEAD
    Module *module;
    PyObject *parameter;    /* keeps the bytes alive that mechanism.pParameter points into */
    CK_OBJECT_HANDLE handle;
    CK_MECHANISM mechanism;
    enum method method;
    int der;
    CK_BYTE order[INTEGER_LEN];
} Key;

/* A batch on its way: what goes in, what comes out, and how far it got. Owned by the one call that runs it. */
typedef struct {
    const Key *key;
    CK_SESSION_HANDLE session;
    CK_ULONG count;
    const CK_BYTE *lengths;     /* count x u32, big endian; NULL where every item is a digest */
    CK_BYTE *data;
    CK_BYTE *statuses;          /* count x 1 */
    CK_BYTE *signatures;        /* count x 64 */
    CK_ULONG done;              /* items tried, from the front */
    CK_RV rv;                   /* what stopped the batch, or CKR_OK */
    CK_RV item_rv;              /* the last code that refused an item, or CKR_OK */
    uint64_t execution_ns;      /* how long the token took */
} Batch;

/* Sign the batch: without the GIL, and on lengths that have been checked. */
void batch_run(Batch *batch);

/* The bytes of all messages of a batch whose lengths these are. */
uint64_t sum_of_lengths(const CK_BYTE *lengths, CK_ULONG count);

/* SEQUENCE { r INTEGER, s INTEGER } as DER and nothing else, into r || s; 0 if it is not that. */
int read_der_signature(const CK_BYTE *der, CK_ULONG len, CK_BYTE *out);

static inline CK_ULONG read_u32(const CK_BYTE *at)
{
    return (CK_ULONG)at[0] << 24 | (CK_ULONG)at[1] << 16 | (CK_ULONG)at[2] << 8 | at[3];
}

extern PyTypeObject *Key_type;
extern PyObject *BatchStopped;
extern PyType_Spec Server_spec;

#endif
