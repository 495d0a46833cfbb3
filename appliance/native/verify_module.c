/* appliance._verify: the Python face of the native verification code.
 *
 * Buffers in, bytes out, the interpreter lock released for the whole batch, no Python object per item. Every
 * length is checked here, where the memory is touched; a violation is ValueError, which appliance.verifying
 * turns into the caller's BadRequest. Public values only. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <openssl/evp.h>

#include "engine.h"
#include "sm3.h"

/* What one call may carry: bounds its memory, and how long the call runs before its thread is free again. */
enum { MAX_ITEMS = 65536 };

/* What all messages of a call may begin with: Z, which is a digest. */
/* What many messages begin with: Z (32 bytes), and for a seal's signatures the seal. It is hashed once. */
enum { MAX_PREFIX = 1 << 21 };

static const struct {
    const char *name;
    engine_kind kind;
} ENGINES[] = {{"lanes", ENGINE_LANES}, {"scalar", ENGINE_SCALAR}, {"openssl", ENGINE_OPENSSL}};

enum { ENGINE_COUNT = sizeof ENGINES / sizeof ENGINES[0] };

/* ---- messages
 * ---------------------------------------------------------------------------------------------- */

/* Cut `data` into messages of the given big-endian lengths, which must use it up; each follows `start`.
 * Returns an array that the caller frees with PyMem_Free, or NULL with an exception. */
static sm3_message *cut_messages(const Py_buffer *lengths, const Py_buffer *data, const sm3_stream *start,
                                 size_t *count)
{
    if (lengths->len % 4 != 0 || lengths->len / 4 > MAX_ITEMS) {
        PyErr_Format(PyExc_ValueError, "lengths are at most %d blocks of 4 bytes, got %zd bytes", MAX_ITEMS,
                     lengths->len);
        return NULL;
    }
    *count = (size_t)lengths->len / 4;
    sm3_message *messages = PyMem_New(sm3_message, *count + 1);
    if (messages == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    const uint8_t *at = data->buf, *len = lengths->buf;
    size_t left = (size_t)data->len;
    for (size_t i = 0; i < *count; i++, len += 4) {
        messages[i].data = at;
        messages[i].start = start;
        messages[i].len = (size_t)len[0] << 24 | (size_t)len[1] << 16 | (size_t)len[2] << 8 | len[3];
        if (messages[i].len > left) {
            PyErr_Format(PyExc_ValueError, "message %zu reaches beyond the %zd bytes of data", i, data->len);
            PyMem_Free(messages);
            return NULL;
        }
        at += messages[i].len;
        left -= messages[i].len;
    }
    if (left != 0) {
        PyErr_Format(PyExc_ValueError, "%zu of %zd bytes of data belong to no message", left, data->len);
        PyMem_Free(messages);
        return NULL;
    }
    return messages;
}

static PyObject *py_sm3(PyObject *Py_UNUSED(module), PyObject *argument)
{
    Py_buffer data;
    uint8_t digest[SM3_DIGEST_LEN];
    sm3_stream stream;
    if (PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    sm3_init(&stream);
    sm3_update(&stream, data.buf, (size_t)data.len);
    sm3_final(&stream, digest);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyBytes_FromStringAndSize((const char *)digest, sizeof digest);
}

static PyObject *py_sm3_many(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer prefix, lengths, data;
    PyObject *result = NULL;
    size_t count;
    if (!PyArg_ParseTuple(args, "y*y*y*:sm3_many", &prefix, &lengths, &data))
        return NULL;
    sm3_message *messages = NULL;
    sm3_stream start;
    if (prefix.len > MAX_PREFIX) {
        PyErr_Format(PyExc_ValueError, "the prefix has at most %d bytes", MAX_PREFIX);
    } else {
        messages = cut_messages(&lengths, &data, &start, &count);
    }
    if (messages != NULL)
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(SM3_DIGEST_LEN * count));
    if (result != NULL) {
        uint8_t *digests = (uint8_t *)PyBytes_AS_STRING(result);
        Py_BEGIN_ALLOW_THREADS
        sm3_init(&start);
        sm3_update(&start, prefix.buf, (size_t)prefix.len);
        sm3_many(messages, count, digests);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(messages);
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&lengths);
    PyBuffer_Release(&data);
    return result;
}

static bool sha256_all(const sm3_message *messages, size_t count, uint8_t *digests)
{
    EVP_MD *sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool done = sha256 != NULL && context != NULL;
    for (size_t i = 0; done && i < count; i++)
        done = EVP_DigestInit_ex2(context, sha256, NULL) == 1 &&
               EVP_DigestUpdate(context, messages[i].data, messages[i].len) == 1 &&
               EVP_DigestFinal_ex(context, digests + DIGEST_LEN * i, NULL) == 1;
    EVP_MD_CTX_free(context);
    EVP_MD_free(sha256);
    return done;
}

static PyObject *py_sha256_many(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer lengths, data;
    PyObject *result = NULL;
    size_t count;
    if (!PyArg_ParseTuple(args, "y*y*:sha256_many", &lengths, &data))
        return NULL;
    sm3_message *messages = cut_messages(&lengths, &data, NULL, &count);
    if (messages != NULL)
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(DIGEST_LEN * count));
    if (result != NULL) {
        uint8_t *digests = (uint8_t *)PyBytes_AS_STRING(result);
        bool done;
        Py_BEGIN_ALLOW_THREADS
        done = sha256_all(messages, count, digests);
        Py_END_ALLOW_THREADS
        if (!done) {
            Py_CLEAR(result);
            PyErr_NoMemory();
        }
    }
    PyMem_Free(messages);
    PyBuffer_Release(&lengths);
    PyBuffer_Release(&data);
    return result;
}

/* ---- Engine
 * ------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD engine *engine;
    const char *name;
} EngineObject;

static PyObject *engine_type_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"name", "max_table_bytes", NULL};
    const char *name;
    Py_ssize_t max_table_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "sn:Engine", names, &name, &max_table_bytes))
        return NULL;
    if (max_table_bytes < 0)
        return PyErr_Format(PyExc_ValueError, "max_table_bytes is %zd", max_table_bytes);
    for (size_t i = 0; i < ENGINE_COUNT; i++) {
        if (strcmp(name, ENGINES[i].name) != 0 || !engine_supported(ENGINES[i].kind))
            continue;
        EngineObject *self = (EngineObject *)type->tp_alloc(type, 0);
        if (self == NULL)
            return NULL;
        self->name = ENGINES[i].name;
        Py_BEGIN_ALLOW_THREADS
        self->engine = engine_new(ENGINES[i].kind, (size_t)max_table_bytes);
        Py_END_ALLOW_THREADS
        if (self->engine == NULL) {
            Py_DECREF(self);
            return PyErr_NoMemory();
        }
        return (PyObject *)self;
    }
    return PyErr_Format(PyExc_ValueError, "no engine %s on this processor", name);
}

static void engine_type_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    engine_free(((EngineObject *)self)->engine);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Set ValueError and return false unless the blocks fit together. */
static bool check_batch(const Py_buffer *algorithms, const Py_buffer *points, const Py_buffer *key_index,
                        const Py_buffer *digests, const Py_buffer *signatures, verify_batch *batch)
{
    Py_ssize_t keys = algorithms->len, items = digests->len / DIGEST_LEN;
    if (digests->len % DIGEST_LEN != 0 || items > MAX_ITEMS) {
        PyErr_Format(PyExc_ValueError, "digests are at most %d blocks of %d bytes, got %zd bytes", MAX_ITEMS,
                     DIGEST_LEN, digests->len);
        return false;
    }
    if (signatures->len != items * SIGNATURE_LEN) {
        PyErr_Format(PyExc_ValueError, "%zd digests need %zd bytes of signatures, got %zd", items,
                     items * SIGNATURE_LEN, signatures->len);
        return false;
    }
    if (keys > MAX_ITEMS || points->len != keys * POINT_LEN) {
        PyErr_Format(PyExc_ValueError, "at most %d keys of %d bytes, got %zd and %zd bytes", MAX_ITEMS,
                     POINT_LEN, keys, points->len);
        return false;
    }
    for (Py_ssize_t k = 0; k < keys; k++) {
        uint8_t algorithm = ((const uint8_t *)algorithms->buf)[k];
        if (algorithm != ECDSA_P256_SHA256 && algorithm != SM2_SM3) {
            PyErr_Format(PyExc_ValueError, "key %zd has the unknown algorithm %d", k, algorithm);
            return false;
        }
    }
    if (key_index->buf == NULL) {
        if (keys != 1) {
            PyErr_SetString(PyExc_ValueError, "without an index there is exactly one key");
            return false;
        }
    } else {
        if (key_index->len != items * 4 || (uintptr_t)key_index->buf % 4 != 0) {
            PyErr_Format(PyExc_ValueError, "%zd items need %zd aligned bytes of key index, got %zd", items,
                         items * 4, key_index->len);
            return false;
        }
        const uint32_t *index = key_index->buf;
        for (Py_ssize_t i = 0; i < items; i++) {
            if (index[i] >= (size_t)keys) {
                PyErr_Format(PyExc_ValueError, "item %zd names key %lu of %zd", i, (unsigned long)index[i],
                             keys);
                return false;
            }
        }
    }
    *batch = (verify_batch){
        .key_count = (size_t)keys,
        .item_count = (size_t)items,
        .algorithms = algorithms->buf,
        .points = points->buf,
        .key_index = key_index->buf,
        .digests = digests->buf,
        .signatures = signatures->buf,
    };
    return true;
}

static PyObject *engine_type_verify(PyObject *object, PyObject *args)
{
    EngineObject *self = (EngineObject *)object;
    Py_buffer algorithms, points, key_index, digests, signatures;
    PyObject *result = NULL;
    verify_batch batch;
    if (!PyArg_ParseTuple(args, "y*y*z*y*y*:verify", &algorithms, &points, &key_index, &digests, &signatures))
        return NULL;
    if (check_batch(&algorithms, &points, &key_index, &digests, &signatures, &batch))
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)batch.item_count);
    if (result != NULL) {
        uint8_t *status = (uint8_t *)PyBytes_AS_STRING(result);
        int outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = engine_verify(self->engine, &batch, status);
        Py_END_ALLOW_THREADS
        if (outcome != 0) {
            Py_CLEAR(result);
            PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&algorithms);
    PyBuffer_Release(&points);
    PyBuffer_Release(&key_index);
    PyBuffer_Release(&digests);
    PyBuffer_Release(&signatures);
    return result;
}

static PyObject *engine_type_statistics(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    engine_statistics all = engine_read_statistics(((EngineObject *)self)->engine);
    const key_cache_statistics *t = &all.tables, *o = &all.objects;
    return Py_BuildValue("((KKKKK)(KKKKK))", (unsigned long long)t->entries, (unsigned long long)t->bytes,
                         (unsigned long long)t->hits, (unsigned long long)t->builds,
                         (unsigned long long)t->evictions, (unsigned long long)o->entries,
                         (unsigned long long)o->bytes, (unsigned long long)o->hits,
                         (unsigned long long)o->builds, (unsigned long long)o->evictions);
}

static PyObject *engine_type_name(PyObject *self, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(((EngineObject *)self)->name);
}

static PyMethodDef ENGINE_METHODS[] = {
    {"verify", engine_type_verify, METH_VARARGS, NULL},
    {"statistics", engine_type_statistics, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ENGINE_ATTRIBUTES[] = {
    {"name", engine_type_name, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ENGINE_SLOTS[] = {
    {Py_tp_new, engine_type_new},
    {Py_tp_dealloc, engine_type_dealloc},
    {Py_tp_methods, ENGINE_METHODS},
    {Py_tp_getset, ENGINE_ATTRIBUTES},
    {0, NULL},
};

static PyType_Spec ENGINE_SPEC = {
    .name = "appliance._verify.Engine",
    .basicsize = sizeof(EngineObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ENGINE_SLOTS,
};

/* ---- module
 * ------------------------------------------------------------------------------------------------ */

static PyMethodDef MODULE_METHODS[] = {
    {"sm3", py_sm3, METH_O, NULL},
    {"sm3_many", py_sm3_many, METH_VARARGS, NULL},
    {"sha256_many", py_sha256_many, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    PyObject *engines = PyList_New(0);
    for (size_t i = 0; engines != NULL && i < ENGINE_COUNT; i++) {
        if (!engine_supported(ENGINES[i].kind))
            continue;
        PyObject *name = PyUnicode_FromString(ENGINES[i].name);
        if (name == NULL || PyList_Append(engines, name) < 0)
            Py_CLEAR(engines);
        Py_XDECREF(name);
    }
    if (engines == NULL)
        return -1;
    PyObject *names = PyList_AsTuple(engines);
    Py_DECREF(engines);
    PyObject *type = PyType_FromModuleAndSpec(module, &ENGINE_SPEC, NULL);
    int failed = names == NULL || PyModule_AddObjectRef(module, "ENGINES", names) < 0 || type == NULL ||
                 PyModule_AddObjectRef(module, "Engine", type) < 0 ||
                 PyModule_AddIntConstant(module, "MAX_ITEMS", MAX_ITEMS) < 0;
    Py_XDECREF(names);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot MODULE_SLOTS[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static PyModuleDef MODULE = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "appliance._verify",
    .m_methods = MODULE_METHODS,
    .m_slots = MODULE_SLOTS,
};

PyMODINIT_FUNC PyInit__verify(void)
{
    return PyModuleDef_Init(&MODULE);
}
