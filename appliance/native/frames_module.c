/* appliance._frames: frames of few items, read and written without an object for each of their fields.
 *
 * For: what small slices and answers cost that do not pass in a lane (express.h), seals among them.
 * Not for: saying why a frame is wrong. What is not exactly whole and right frames of the expected type is answered with
 * None, and the caller's general way reads the same bytes again and has the words. A test holds the two together.
 *
 * Nothing is kept: bytes in, new objects out. Blocks are copied, so that no view pins what was received with them; that
 * is why only small ones are read here. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "frames.h"

#include <string.h>

/* Copying so many digests, or signatures, costs less than a view of them does. */
enum { MAX_SMALL = 16 };

/* Everything that link.unpack_header and link.unpack_signed check. */
static PyObject *read_signed(const uint8_t *frame, Py_ssize_t payload_len)
{
    const uint8_t *payload = frame + HEADER_LEN, *blocks = payload + LINK_SIGNED_LEN;
    uint64_t count = get_number(payload, 4), done = get_number(payload + 4, 4);
    if (!count || count > MAX_SMALL || done > count)
        return NULL;
    if (payload_len != LINK_SIGNED_LEN + (Py_ssize_t)count * (1 + SIGNATURE_LEN))
        return NULL;
    return Py_BuildValue("(KiiKKy#y#)", (unsigned long long)get_number(frame + 8, 8), (int)count, (int)done,
                         (unsigned long long)get_number(payload + 8, 8),
                         (unsigned long long)get_number(payload + 24, 8), blocks, (Py_ssize_t)count, blocks + count,
                         (Py_ssize_t)count * SIGNATURE_LEN);
}

static PyObject *frames_read_answers(PyObject *module, PyObject *data)
{
    (void)module;
    if (!PyBytes_Check(data))
        Py_RETURN_NONE;
    const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(data), *end = at + PyBytes_GET_SIZE(data);
    PyObject *found = PyList_New(0);
    if (!found)
        return NULL;
    do {
        Py_ssize_t payload_len = payload_of(at, end - at, LINK_SIGNED, LINK_SIGNED_LEN);
        PyObject *one = payload_len < 0 ? NULL : read_signed(at, payload_len);
        int failed = !one || PyList_Append(found, one);
        Py_XDECREF(one);
        if (failed) {
            Py_DECREF(found);
            if (PyErr_Occurred())
                return NULL;
            Py_RETURN_NONE;
        }
        at += HEADER_LEN + payload_len;
    } while (at < end);
    return found;
}

static PyObject *frames_pack_signed(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long request_id;
    Py_buffer job, statuses, signatures;
    if (!PyArg_ParseTuple(args, "Ky*y*y*:pack_signed", &request_id, &job, &statuses, &signatures))
        return NULL;
    PyObject *answer = NULL;
    uint64_t count = (uint64_t)statuses.len, failed = 0;
    if (job.len != JOB_AND_INDEX_LEN || signatures.len != statuses.len * SIGNATURE_LEN || count > UINT32_MAX / 128) {
        PyErr_SetString(PyExc_ValueError, "the parts of a SIGNED have other lengths");
    } else {
        Py_ssize_t payload_len = WIRE_SIGNED_LEN + statuses.len * (1 + SIGNATURE_LEN);
        PyObject *frame = PyBytes_FromStringAndSize(NULL, HEADER_LEN + payload_len);
        if (frame) {
            const uint8_t *status = statuses.buf;
            for (Py_ssize_t index = 0; index < statuses.len; index++)
                failed += status[index] != 0;
            uint8_t *at = put_header((uint8_t *)PyBytes_AS_STRING(frame), (uint64_t)payload_len, WIRE_SIGNED, request_id);
            memcpy(at, job.buf, JOB_AND_INDEX_LEN);
            at = put_number(put_number(at + JOB_AND_INDEX_LEN, count, 4), failed, 4);
            memcpy(at, statuses.buf, (size_t)statuses.len);
            memcpy(at + statuses.len, signatures.buf, (size_t)signatures.len);
            answer = Py_BuildValue("(NK)", frame, (unsigned long long)failed);
        }
    }
    PyBuffer_Release(&job);
    PyBuffer_Release(&statuses);
    PyBuffer_Release(&signatures);
    return answer;
}

static PyObject *frames_pack_slice(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long sequence;
    unsigned long slot;
    int count;
    Py_buffer digests;
    if (!PyArg_ParseTuple(args, "Kkiy*:pack_slice", &sequence, &slot, &count, &digests))
        return NULL;
    PyObject *frame = NULL;
    if (count < 1 || slot > UINT32_MAX || digests.len != (Py_ssize_t)count * DIGEST_LEN) {
        PyErr_SetString(PyExc_ValueError, "the parts of a SIGN have other lengths");
    } else {
        Py_ssize_t payload_len = LINK_SIGN_LEN + digests.len;
        frame = PyBytes_FromStringAndSize(NULL, HEADER_LEN + payload_len);
        if (frame) {
            uint8_t *at = put_header((uint8_t *)PyBytes_AS_STRING(frame), (uint64_t)payload_len, LINK_SIGN, sequence);
            at = put_number(put_number(put_number(at, slot, 4), 0, 4), (uint64_t)count, 4);
            memcpy(at, digests.buf, (size_t)digests.len);
        }
    }
    PyBuffer_Release(&digests);
    return frame;
}

static PyMethodDef functions[] = {
    {"read_answers", frames_read_answers, METH_O,
     "read_answers(data, /)\n--\n\n"
     "Whole SIGNED frames of the link over few items each: a list of (sequence, count, done, rv, execution in ns,\n"
     "statuses, signatures). None where the bytes are, or hold, anything else."},
    {"pack_signed", frames_pack_signed, METH_VARARGS,
     "pack_signed(request_id, job_and_index, statuses, signatures, /)\n--\n\n"
     "A SIGNED frame of the wire, and how many of its items have failed."},
    {"pack_slice", frames_pack_slice, METH_VARARGS,
     "pack_slice(sequence, slot, count, digests, /)\n--\n\nA SIGN frame of the link over digests."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "appliance._frames", .m_doc = "Frames of few items.", .m_methods = functions,
};

PyMODINIT_FUNC PyInit__frames(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "MAX_SMALL", MAX_SMALL)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
