/* appliance._sealing: the Python face of seal templates.
 *
 * Buffers in, bytes out, the interpreter lock released for the whole batch, no Python object per item. Every
 * length is checked here, where the memory is touched; a violation is ValueError, which appliance.sealing
 * turns into the caller's BadRequest. Public values only. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "seal_template.h"

/* What one call may carry: bounds its memory, and how long the call runs before its thread is free again. */
enum { MAX_ITEMS = 65536 };

enum { Z_LEN = 32 };

typedef struct {
    PyObject_HEAD seal_template *template;
} TemplateObject;

static PyObject *template_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    int algorithm;
    Py_buffer z, body, suffix;
    if (!PyArg_ParseTuple(args, "iy*y*y*:Template", &algorithm, &z, &body, &suffix))
        return NULL;
    TemplateObject *self = NULL;
    if (algorithm != TEMPLATE_P256 && algorithm != TEMPLATE_SM2) {
        PyErr_Format(PyExc_ValueError, "no algorithm %d", algorithm);
    } else if (z.len != (algorithm == TEMPLATE_SM2 ? Z_LEN : 0)) {
        PyErr_Format(PyExc_ValueError, "Z has %d bytes for SM2 and none otherwise, got %zd", Z_LEN, z.len);
    } else if (body.len < SEAL_MIN_BODY_LEN || body.len > SEAL_MAX_BODY_LEN) {
        PyErr_Format(PyExc_ValueError, "a seal has %d to %d bytes, got %zd", SEAL_MIN_BODY_LEN,
                     SEAL_MAX_BODY_LEN, body.len);
    } else if (suffix.len > SEAL_MAX_SUFFIX_LEN) {
        PyErr_Format(PyExc_ValueError, "a certificate has at most %d bytes, got %zd", SEAL_MAX_SUFFIX_LEN,
                     suffix.len);
    } else {
        self = (TemplateObject *)type->tp_alloc(type, 0);
    }
    if (self != NULL) {
        self->template =
            seal_template_new(algorithm, z.buf, body.buf, (size_t)body.len, suffix.buf, (size_t)suffix.len);
        if (self->template == NULL) {
            Py_CLEAR(self);
            PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&z);
    PyBuffer_Release(&body);
    PyBuffer_Release(&suffix);
    return (PyObject *)self;
}

static void template_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    seal_template_free(((TemplateObject *)self)->template);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- batches ------------------------------------------------------------------------------------------- */

/* A batch and what it borrows; `batch_release` ends it. */
typedef struct {
    Py_buffer time, hashes, lengths, properties;
    uint16_t *property_lengths;
    seal_batch batch;
} borrowed_batch;

static void batch_release(borrowed_batch *b)
{
    PyMem_Free(b->property_lengths);
    PyBuffer_Release(&b->time);
    PyBuffer_Release(&b->hashes);
    PyBuffer_Release(&b->lengths);
    PyBuffer_Release(&b->properties);
}

/* IA5String is seven bits wide. */
static bool is_ia5(const uint8_t *data, size_t len)
{
    uint8_t all = 0;
    for (size_t i = 0; i < len; i++)
        all |= data[i];
    return all < 0x80;
}

/* Read the big-endian lengths; ValueError and false unless they use up the property infos. */
static bool read_lengths(borrowed_batch *b)
{
    const uint8_t *at = b->lengths.buf;
    size_t count = (size_t)b->lengths.len / 2, total = 0;
    for (size_t i = 0; i < count; i++, at += 2) {
        b->property_lengths[i] = (uint16_t)(at[0] << 8 | at[1]);
        if (b->property_lengths[i] > SEAL_MAX_PROPERTY_LEN) {
            PyErr_Format(PyExc_ValueError, "item %zu: a property info has at most %d bytes, got %d", i,
                         SEAL_MAX_PROPERTY_LEN, (int)b->property_lengths[i]);
            return false;
        }
        total += b->property_lengths[i];
    }
    if (total != (size_t)b->properties.len) {
        PyErr_Format(PyExc_ValueError, "property infos have %zd bytes, their lengths add up to %zu",
                     b->properties.len, total);
        return false;
    }
    if (!is_ia5(b->properties.buf, total)) {
        PyErr_SetString(PyExc_ValueError, "a property info is an IA5String: ASCII only");
        return false;
    }
    return true;
}

/* Set ValueError and return false unless everything fits together. On success and failure the caller
 * releases. */
static bool batch_check(borrowed_batch *b)
{
    Py_ssize_t count = b->hashes.len / SEAL_HASH_LEN, lengths = b->lengths.len / 2;
    if (b->time.len != SEAL_TIME_LEN)
        PyErr_Format(PyExc_ValueError, "a time has %d bytes: YYYYMMDDHHMMSSZ", SEAL_TIME_LEN);
    else if (b->hashes.len % SEAL_HASH_LEN != 0 || count < 1 || count > MAX_ITEMS)
        PyErr_Format(PyExc_ValueError, "data hashes are 1 to %d blocks of %d bytes, got %zd bytes", MAX_ITEMS,
                     SEAL_HASH_LEN, b->hashes.len);
    else if (b->lengths.len % 2 != 0 || (lengths != 1 && lengths != count))
        PyErr_Format(PyExc_ValueError, "lengths of property infos: one for all, or %zd; got %zd bytes", count,
                     b->lengths.len);
    else if ((b->property_lengths = PyMem_New(uint16_t, lengths)) == NULL)
        PyErr_NoMemory();
    else if (read_lengths(b)) {
        b->batch = (seal_batch){
            .count = (size_t)count,
            .time = b->time.buf,
            .hashes = b->hashes.buf,
            .shared = lengths == 1,
            .property_lengths = b->property_lengths,
            .properties = b->properties.buf,
        };
        return true;
    }
    return false;
}

static PyObject *template_cold(PyObject *self, PyObject *args)
{
    borrowed_batch b = {0};
    PyObject *result = NULL;
    Py_ssize_t enough;
    if (!PyArg_ParseTuple(args, "y*y*y*y*n:cold", &b.time, &b.hashes, &b.lengths, &b.properties, &enough))
        return NULL;
    if (batch_check(&b))
        result = PyLong_FromSize_t(seal_template_cold(((TemplateObject *)self)->template, &b.batch,
                                                      enough > 0 ? (size_t)enough : 0));
    batch_release(&b);
    return result;
}

static PyObject *template_digests(PyObject *self, PyObject *args)
{
    borrowed_batch b = {0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*y*:digests", &b.time, &b.hashes, &b.lengths, &b.properties))
        return NULL;
    if (batch_check(&b))
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(b.batch.count * SEAL_HASH_LEN));
    if (result != NULL) {
        uint8_t *digests = (uint8_t *)PyBytes_AS_STRING(result);
        int outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = seal_template_digests(((TemplateObject *)self)->template, &b.batch, digests);
        Py_END_ALLOW_THREADS
        if (outcome != 0) {
            Py_CLEAR(result);
            PyErr_NoMemory();
        }
    }
    batch_release(&b);
    return result;
}

/* ---- values -------------------------------------------------------------------------------------------- */

/* Lengths of tokens in the machine's own order (array('I')). ValueError and false unless they use up the
 * tokens. */
static bool check_stamps(const Py_buffer *lengths, const Py_buffer *tokens, size_t count, seal_stamps *stamps)
{
    size_t total = 0;
    stamps->lengths = lengths->buf;
    stamps->tokens = tokens->buf;
    if ((size_t)lengths->len != count * sizeof *stamps->lengths) {
        PyErr_Format(PyExc_ValueError, "%zu items have %zd bytes of lengths of time stamps", count,
                     lengths->len);
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        if (stamps->lengths[i] > SEAL_MAX_STAMP_LEN) {
            PyErr_Format(PyExc_ValueError, "item %zu: a time stamp has at most %d bytes, got %u", i,
                         SEAL_MAX_STAMP_LEN, (unsigned)stamps->lengths[i]);
            return false;
        }
        total += stamps->lengths[i];
    }
    if (total != (size_t)tokens->len) {
        PyErr_SetString(PyExc_ValueError, "the lengths of the time stamps do not add up");
        return false;
    }
    return true;
}

static PyObject *write_values(const seal_template *template, const borrowed_batch *b,
                              const Py_buffer *statuses, const Py_buffer *signatures,
                              const seal_stamps *stamps)
{
    if ((size_t)statuses->len != b->batch.count ||
        (size_t)signatures->len != b->batch.count * SEAL_SIGNATURE_LEN)
        return PyErr_Format(PyExc_ValueError, "%zu items have %zd statuses and %zd bytes of signatures",
                            b->batch.count, statuses->len, signatures->len);
    size_t len;
    Py_BEGIN_ALLOW_THREADS
    len = seal_template_written_len(template, &b->batch, statuses->buf, signatures->buf, stamps);
    Py_END_ALLOW_THREADS
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
    if (result == NULL)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
    Py_BEGIN_ALLOW_THREADS
    seal_template_write(template, &b->batch, statuses->buf, signatures->buf, stamps, out);
    Py_END_ALLOW_THREADS
    return result;
}

static PyObject *template_values(PyObject *self, PyObject *args)
{
    borrowed_batch b = {0};
    Py_buffer statuses = {0}, signatures = {0}, stamp_lengths = {0}, tokens = {0};
    PyObject *result = NULL;
    seal_stamps stamps;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*|y*y*:values", &b.time, &b.hashes, &b.lengths, &b.properties,
                          &statuses, &signatures, &stamp_lengths, &tokens))
        return NULL;
    bool stamped = stamp_lengths.obj != NULL && tokens.obj != NULL;
    if (batch_check(&b) && (!stamped || check_stamps(&stamp_lengths, &tokens, b.batch.count, &stamps)))
        result = write_values(((TemplateObject *)self)->template, &b, &statuses, &signatures,
                              stamped ? &stamps : NULL);
    batch_release(&b);
    PyBuffer_Release(&statuses);
    PyBuffer_Release(&signatures);
    PyBuffer_Release(&stamp_lengths);
    PyBuffer_Release(&tokens);
    return result;
}

static PyObject *template_size(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(seal_template_size(((TemplateObject *)self)->template));
}

/* ---- module -------------------------------------------------------------------------------------------- */

static PyMethodDef TEMPLATE_METHODS[] = {
    {"cold", template_cold, METH_VARARGS, NULL},
    {"digests", template_digests, METH_VARARGS, NULL},
    {"values", template_values, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef TEMPLATE_ATTRIBUTES[] = {
    {"size", template_size, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot TEMPLATE_SLOTS[] = {
    {Py_tp_new, template_new},
    {Py_tp_dealloc, template_dealloc},
    {Py_tp_methods, TEMPLATE_METHODS},
    {Py_tp_getset, TEMPLATE_ATTRIBUTES},
    {0, NULL},
};

static PyType_Spec TEMPLATE_SPEC = {
    .name = "appliance._sealing.Template",
    .basicsize = sizeof(TemplateObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = TEMPLATE_SLOTS,
};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &TEMPLATE_SPEC, NULL);
    int failed = type == NULL || PyModule_AddObjectRef(module, "Template", type) < 0 ||
                 PyModule_AddIntConstant(module, "MAX_ITEMS", MAX_ITEMS) < 0 ||
                 PyModule_AddIntConstant(module, "MIN_BODY_LEN", SEAL_MIN_BODY_LEN) < 0 ||
                 PyModule_AddIntConstant(module, "MAX_BODY_LEN", SEAL_MAX_BODY_LEN) < 0 ||
                 PyModule_AddIntConstant(module, "MAX_SUFFIX_LEN", SEAL_MAX_SUFFIX_LEN) < 0 ||
                 PyModule_AddIntConstant(module, "MAX_PROPERTY_LEN", SEAL_MAX_PROPERTY_LEN) < 0 ||
                 PyModule_AddIntConstant(module, "MAX_STAMP_LEN", SEAL_MAX_STAMP_LEN) < 0 ||
                 PyModule_AddIntConstant(module, "RECORD_LEN", SEAL_RECORD_LEN) < 0;
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot MODULE_SLOTS[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static PyModuleDef MODULE = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "appliance._sealing",
    .m_slots = MODULE_SLOTS,
};

PyMODINIT_FUNC PyInit__sealing(void)
{
    return PyModuleDef_Init(&MODULE);
}
