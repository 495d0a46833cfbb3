/* The native half of a signer worker: C_Initialize with locking, C_Login from a buffer that is wiped, and the loop
 * that signs a whole batch with the GIL released once.
 *
 * Not for: finding tokens, keys or attributes; that is python-pkcs11's work (token.py).
 *
 * - A process has one module. It is opened and initialised here, and python-pkcs11 is given the very same function
 *   list: this library exports a C_GetFunctionList of its own. Opening the module's path twice would not do: some
 *   modules (p11-kit's client) make a new, uninitialised instance at each C_GetFunctionList.
 * - A batch uses the best that the module has and the key works with: our vendor interface, else C_SignMessage
 *   (PKCS#11 3.0), else C_SignInit and C_Sign.
 * - A return code stops the batch unless it is known to concern the item or the key alone. Unknown codes stop it:
 *   a restart too many costs a second, a dead token taken for a thousand refusals costs a night's batch.
 * - No signature is handed on that is not two integers in [1, n-1]. Whatever was not signed is all zero.
 * - A session is used by one thread at a time; the caller sees to that. A Key may be shared between threads.
 *
 * A crash here ends the worker process and nothing else: the front holds the batch and gives it to another.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "cryptoki.h"

enum { DIGEST_LEN = 32, INTEGER_LEN = 32, SIGNATURE_LEN = 64 };

/* Room for any signature a module may return, so that it never has cause for CKR_BUFFER_TOO_SMALL, which would
 * leave the operation open; DER of two 256-bit integers has at most 72 bytes. */
enum { SIGNATURE_ROOM = 1024 };

/* The status bytes of an item; link.py gives them their names. */
enum { ITEM_SIGNED = 0, ITEM_REFUSED = 1, ITEM_NOT_DONE = 2 };

enum method { METHOD_PLAIN, METHOD_MESSAGE, METHOD_VENDOR, METHOD_COUNT };
static const char *const METHOD_NAMES[METHOD_COUNT] = {"plain", "message", "vendor"};

/* One interpreter loads this, once per process: statics are enough. */
static PyObject *CryptokiError;

/* The one module of this process; set before it is initialised, never changed or unloaded after. */
static CK_FUNCTION_LIST *opened_functions;

/* What python-pkcs11 finds when it opens this library as if it were a module: the one that Module opened.
 * There is no C_GetInterface beside it, so that python-pkcs11 keeps to the functions of 2.40. */
__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
    if (!list)
        return CKR_ARGUMENTS_BAD;
    *list = opened_functions;
    return opened_functions ? CKR_OK : CKR_CRYPTOKI_NOT_INITIALIZED;
}

/* ---------------------------------------------------------------- Module */

typedef struct {
    PyObject_HEAD
    void *library;
    CK_FUNCTION_LIST *functions;
    CK_FUNCTION_LIST_3_0 *functions_3_0;    /* NULL where the module has no message signing */
    CLOUD_SEAL_BATCH_FUNCTIONS *vendor;     /* NULL where the module has no batch interface */
} Module;

static PyObject *raise_cryptoki(const char *function, CK_RV rv)
{
    PyObject *arguments = Py_BuildValue("(sk)", function, rv);
    if (arguments) {
        PyErr_SetObject(CryptokiError, arguments);
        Py_DECREF(arguments);
    }
    return NULL;
}

static void *find_interface(CK_C_GetInterface get_interface, const char *name, CK_BYTE major, CK_BYTE minor)
{
    CK_VERSION version = {major, minor};
    CK_INTERFACE *interface = NULL;
    if (get_interface((CK_BYTE *)name, &version, &interface, 0) != CKR_OK || !interface)
        return NULL;
    return interface->pFunctionList;
}

static int Module_init(Module *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "os_locking", NULL};
    const char *path;
    int os_locking;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s$p:Module", names, &path, &os_locking))
        return -1;
    if (opened_functions) {
        PyErr_SetString(PyExc_RuntimeError, "this process has a module already");
        return -1;
    }
    CK_C_GetFunctionList get_functions = NULL;
    CK_C_GetInterface get_interface = NULL;
    CK_RV rv = CKR_GENERAL_ERROR;
    Py_BEGIN_ALLOW_THREADS
    self->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (self->library) {
        *(void **)&get_functions = dlsym(self->library, "C_GetFunctionList");
        *(void **)&get_interface = dlsym(self->library, "C_GetInterface");
        if (get_functions)
            rv = get_functions(&self->functions);
    }
    Py_END_ALLOW_THREADS
    if (!self->library) {
        PyErr_Format(PyExc_OSError, "%s", dlerror());
        return -1;
    }
    if (!get_functions) {
        PyErr_Format(PyExc_OSError, "%s: not a PKCS#11 module: it has no C_GetFunctionList", path);
        return -1;
    }
    if (rv != CKR_OK || !self->functions) {
        raise_cryptoki("C_GetFunctionList", rv);
        return -1;
    }
    opened_functions = self->functions;
    CK_C_INITIALIZE_ARGS locking = {.flags = CKF_OS_LOCKING_OK};
    Py_BEGIN_ALLOW_THREADS
    rv = self->functions->C_Initialize(os_locking ? &locking : NULL);
    Py_END_ALLOW_THREADS
    if (rv != CKR_OK) {
        raise_cryptoki("C_Initialize", rv);
        return -1;
    }
    if (get_interface) {
        CK_FUNCTION_LIST_3_0 *newer = find_interface(get_interface, "PKCS 11", 3, 0);
        if (newer && newer->v2.version.major >= 3 && newer->C_MessageSignInit && newer->C_SignMessage &&
            newer->C_MessageSignFinal)
            self->functions_3_0 = newer;
        CLOUD_SEAL_BATCH_FUNCTIONS *vendor = find_interface(get_interface, CLOUD_SEAL_BATCH_INTERFACE, 1, 0);
        if (vendor && vendor->version.major == 1 && vendor->C_SignBatch)
            self->vendor = vendor;
    }
    return 0;
}

static void Module_dealloc(Module *self)
{
    /* The library stays open: python-pkcs11 uses it as well, and modules are known to crash when unloaded. */
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static int module_offers(const Module *self, enum method method)
{
    return method == METHOD_VENDOR ? self->vendor != NULL : method == METHOD_MESSAGE ? self->functions_3_0 != NULL : 1;
}

static PyObject *Module_methods(Module *self, void *closure)
{
    (void)closure;
    PyObject *best_first = PyList_New(0);
    for (int method = METHOD_COUNT - 1; best_first && method >= 0; method--) {
        if (!module_offers(self, method))
            continue;
        PyObject *name = PyUnicode_FromString(METHOD_NAMES[method]);
        if (!name || PyList_Append(best_first, name) < 0)
            Py_CLEAR(best_first);
        Py_XDECREF(name);
    }
    if (!best_first)
        return NULL;
    PyObject *methods = PyList_AsTuple(best_first);
    Py_DECREF(best_first);
    return methods;
}

static PyObject *Module_login(Module *self, PyObject *args)
{
    unsigned long session;
    Py_buffer pin;
    if (!PyArg_ParseTuple(args, "kw*:login", &session, &pin))
        return NULL;
    CK_RV rv;
    Py_BEGIN_ALLOW_THREADS
    rv = self->functions->C_Login(session, CKU_USER, pin.len ? pin.buf : NULL, (CK_ULONG)pin.len);
    explicit_bzero(pin.buf, (size_t)pin.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&pin);
    if (rv != CKR_OK)
        return raise_cryptoki("C_Login", rv);
    Py_RETURN_NONE;
}

static PyObject *Module_finalize(Module *self, PyObject *unused)
{
    (void)unused;
    CK_RV rv;
    Py_BEGIN_ALLOW_THREADS
    rv = self->functions->C_Finalize(NULL);
    Py_END_ALLOW_THREADS
    if (rv != CKR_OK)
        return raise_cryptoki("C_Finalize", rv);
    Py_RETURN_NONE;
}

static PyMethodDef Module_functions[] = {
    {"login", (PyCFunction)Module_login, METH_VARARGS,
     "login(session, pin)\n--\n\nC_Login as user from a writable buffer, which is wiped whatever the outcome."},
    {"finalize", (PyCFunction)Module_finalize, METH_NOARGS, "finalize()\n--\n\nC_Finalize."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Module_attributes[] = {
    {"methods", (getter)Module_methods, NULL, "Ways to sign a batch that the module offers, best first.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Module_slots[] = {
    {Py_tp_doc, "Module(path, *, os_locking)\n--\n\nA PKCS#11 module, opened and initialised."},
    {Py_tp_init, Module_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, Module_dealloc},
    {Py_tp_methods, Module_functions},
    {Py_tp_getset, Module_attributes},
    {0, NULL},
};

static PyType_Spec Module_spec = {
    .name = "appliance_pkcs11._batch.Module",
    .basicsize = sizeof(Module),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Module_slots,
};

static PyTypeObject *Module_type;

/* ------------------------------------------------------------------- Key */

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

static int Key_init(Key *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"module", "handle", "mechanism", "parameter", "order", "der", "method", NULL};
    PyObject *module, *parameter;
    unsigned long handle, mechanism;
    const char *order, *method;
    Py_ssize_t order_len;
    int der;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!kk$Sy#ps:Key", names, Module_type, &module, &handle, &mechanism,
                                     &parameter, &order, &order_len, &der, &method))
        return -1;
    if (self->module) {
        PyErr_SetString(PyExc_RuntimeError, "the key is loaded already");
        return -1;
    }
    int chosen = 0;
    while (chosen < METHOD_COUNT && strcmp(method, METHOD_NAMES[chosen]))
        chosen++;
    if (chosen == METHOD_COUNT || !module_offers((Module *)module, chosen)) {
        PyErr_Format(PyExc_ValueError, "the module does not offer the batch method %s", method);
        return -1;
    }
    if (order_len != INTEGER_LEN) {
        PyErr_Format(PyExc_ValueError, "the group's order has %d bytes, got %zd", INTEGER_LEN, order_len);
        return -1;
    }
    self->method = chosen;
    memcpy(self->order, order, INTEGER_LEN);
    self->handle = handle;
    self->der = der;
    self->module = (Module *)Py_NewRef(module);
    self->parameter = Py_NewRef(parameter);
    self->mechanism.mechanism = mechanism;
    self->mechanism.ulParameterLen = (CK_ULONG)PyBytes_GET_SIZE(parameter);
    self->mechanism.pParameter = self->mechanism.ulParameterLen ? PyBytes_AS_STRING(parameter) : NULL;
    return 0;
}

static void Key_dealloc(Key *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->module);
    Py_XDECREF(self->parameter);
    type->tp_free(self);
    Py_DECREF(type);
}

/* A batch on its way: what goes in, what comes out, and how far it got. Owned by one call of Key.sign. */
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
} Batch;

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

static CK_ULONG read_u32(const CK_BYTE *at)
{
    return (CK_ULONG)at[0] << 24 | (CK_ULONG)at[1] << 16 | (CK_ULONG)at[2] << 8 | at[3];
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

/* SEQUENCE { r INTEGER, s INTEGER } as DER and nothing else, into r || s. */
static int read_der_signature(const CK_BYTE *der, CK_ULONG len, CK_BYTE *out)
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

/* The blocks of a batch must agree before anything is signed: a length that lies must not move a pointer. */
static int blocks_agree(const Key *key, const Py_buffer *lengths, const Py_buffer *data, const Py_buffer *statuses,
                        const Py_buffer *signatures)
{
    size_t count = (size_t)statuses->len, wanted = count * DIGEST_LEN;
    if (signatures->len != statuses->len * SIGNATURE_LEN) {
        PyErr_Format(PyExc_ValueError, "%zd items need %zd bytes for signatures, got %zd", statuses->len,
                     statuses->len * SIGNATURE_LEN, signatures->len);
        return 0;
    }
    if (lengths->obj) {
        if (key->method == METHOD_VENDOR) {
            PyErr_SetString(PyExc_ValueError, "the vendor interface takes digests only");
            return 0;
        }
        if (lengths->len != statuses->len * 4) {
            PyErr_Format(PyExc_ValueError, "%zd items need %zd bytes of lengths, got %zd", statuses->len,
                         statuses->len * 4, lengths->len);
            return 0;
        }
        wanted = 0;
        for (size_t index = 0; index < count; index++)
            wanted += read_u32((const CK_BYTE *)lengths->buf + 4 * index);
    }
    if ((size_t)data->len != wanted) {
        PyErr_Format(PyExc_ValueError, "%zd items need %zu bytes of data, got %zd", statuses->len, wanted, data->len);
        return 0;
    }
    return 1;
}

static PyObject *Key_sign(Key *self, PyObject *args)
{
    unsigned long session;
    Py_buffer lengths, data, statuses, signatures;
    if (!PyArg_ParseTuple(args, "kz*y*w*w*:sign", &session, &lengths, &data, &statuses, &signatures))
        return NULL;
    PyObject *result = NULL;
    if (blocks_agree(self, &lengths, &data, &statuses, &signatures)) {
        Batch batch = {
            .key = self,
            .session = session,
            .count = (CK_ULONG)statuses.len,
            .lengths = lengths.obj ? lengths.buf : NULL,
            .data = data.buf,
            .statuses = statuses.buf,
            .signatures = signatures.buf,
        };
        uint64_t started_at;
        Py_BEGIN_ALLOW_THREADS
        started_at = monotonic_ns();
        memset(batch.statuses, ITEM_NOT_DONE, batch.count);
        memset(batch.signatures, 0, batch.count * SIGNATURE_LEN);
        if (self->method == METHOD_VENDOR)
            sign_vendor(&batch);
        else if (self->method == METHOD_MESSAGE)
            sign_message(&batch);
        else
            sign_plain(&batch);
        started_at = monotonic_ns() - started_at;
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("kkkK", batch.done, batch.rv, batch.item_rv, (unsigned long long)started_at);
    }
    PyBuffer_Release(&lengths);
    PyBuffer_Release(&data);
    PyBuffer_Release(&statuses);
    PyBuffer_Release(&signatures);
    return result;
}

static PyMethodDef Key_functions[] = {
    {"sign", (PyCFunction)Key_sign, METH_VARARGS,
     "sign(session, lengths, data, statuses, signatures)\n--\n\n"
     "Sign len(statuses) items; returns (done, rv, item_rv, execution_ns)."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Key_slots[] = {
    {Py_tp_doc, "Key(module, handle, mechanism, *, parameter, order, der, method)\n--\n\nA key and how to sign with it."},
    {Py_tp_init, Key_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, Key_dealloc},
    {Py_tp_methods, Key_functions},
    {0, NULL},
};

static PyType_Spec Key_spec = {
    .name = "appliance_pkcs11._batch.Key",
    .basicsize = sizeof(Key),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Key_slots,
};

/* ------------------------------------------------------------- functions */

static PyObject *confine(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(args, "s:confine", &name))
        return NULL;
    /* Not dumpable: no core, no ptrace, and /proc/PID/{mem,environ} belong to root. The name is only for `ps`. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0 || prctl(PR_SET_NAME, name) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *signature_from_der(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer der;
    if (!PyArg_ParseTuple(args, "y*:signature_from_der", &der))
        return NULL;
    CK_BYTE raw[SIGNATURE_LEN];
    int good = read_der_signature(der.buf, (CK_ULONG)der.len, raw);
    PyBuffer_Release(&der);
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "not a DER signature of two 256-bit integers");
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)raw, SIGNATURE_LEN);
}

static PyMethodDef functions[] = {
    {"confine", confine, METH_VARARGS,
     "confine(name)\n--\n\nDie with the parent, leave no core and no ptrace, and carry `name` in the process list."},
    {"signature_from_der", signature_from_der, METH_VARARGS,
     "signature_from_der(der)\n--\n\nThe loop's own strict DER reader, for tests: `r || s`, or ValueError."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_batch",
    .m_doc = "The native half of a signer worker.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__batch(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    Module_type = (PyTypeObject *)PyType_FromSpec(&Module_spec);
    PyTypeObject *key_type = (PyTypeObject *)PyType_FromSpec(&Key_spec);
    CryptokiError = PyErr_NewExceptionWithDoc("appliance_pkcs11._batch.CryptokiError",
                                              "A PKCS#11 call failed; args are its name and the return code.",
                                              PyExc_RuntimeError, NULL);
    if (!Module_type || !key_type || !CryptokiError || PyModule_AddType(module, Module_type) < 0 ||
        PyModule_AddType(module, key_type) < 0 || PyModule_AddObjectRef(module, "CryptokiError", CryptokiError) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(key_type);
    return module;
}
