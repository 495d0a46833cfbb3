/* The native half of a signer worker: C_Initialize with locking, C_Login from a buffer that is wiped, the loop that
 * signs a whole batch with the GIL released once (sign.c), and the loop that answers frames with it (serve.c).
 *
 * Not for: finding tokens, keys or attributes; that is python-pkcs11's work (token.py).
 *
 * - A process has one module. It is opened and initialised here, and python-pkcs11 is given the very same function
 *   list: this library exports a C_GetFunctionList of its own. Opening the module's path twice would not do: some
 *   modules (p11-kit's client) make a new, uninitialised instance at each C_GetFunctionList.
 * - A batch uses the best that the module has and the key works with: our vendor interface, else C_SignMessage
 *   (PKCS#11 3.0), else C_SignInit and C_Sign.
 *
 * A crash here ends the worker process and nothing else: the front holds the batch and gives it to another.
 */
#include "batch.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

static const char *const METHOD_NAMES[METHOD_COUNT] = {"plain", "message", "vendor"};

/* One interpreter loads this, once per process: statics are enough. */
static PyObject *CryptokiError;
PyObject *BatchStopped;

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
        wanted = sum_of_lengths(lengths->buf, count);
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
        Py_BEGIN_ALLOW_THREADS
        batch_run(&batch);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("kkkK", batch.done, batch.rv, batch.item_rv,
                               (unsigned long long)batch.execution_ns);
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

PyTypeObject *Key_type;

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
    Key_type = (PyTypeObject *)PyType_FromSpec(&Key_spec);
    PyTypeObject *server_type = (PyTypeObject *)PyType_FromSpec(&Server_spec);
    CryptokiError = PyErr_NewExceptionWithDoc("appliance_pkcs11._batch.CryptokiError",
                                              "A PKCS#11 call failed; args are its name and the return code.",
                                              PyExc_RuntimeError, NULL);
    BatchStopped = PyErr_NewExceptionWithDoc("appliance_pkcs11._batch.BatchStopped",
                                             "A token-level code stopped a batch, and the answer says so; args are "
                                             "the frame's sequence number, count, done and the return code.",
                                             PyExc_RuntimeError, NULL);
    if (!Module_type || !Key_type || !server_type || !CryptokiError || !BatchStopped ||
        PyModule_AddType(module, Module_type) < 0 || PyModule_AddType(module, Key_type) < 0 ||
        PyModule_AddType(module, server_type) < 0 || PyModule_AddObjectRef(module, "CryptokiError", CryptokiError) < 0 ||
        PyModule_AddObjectRef(module, "BatchStopped", BatchStopped) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    Py_DECREF(server_type);
    return module;
}
