/* appliance._frames: the frames of small SIGN requests, read and written without an object for each of their fields.
 *
 * For: what a lone request pays for on its way in and out: SIGN and SIGNED on the wire (appliance/wire.py,
 * PROTOCOL.md), SIGN and SIGNED on the link (appliance_pkcs11/link.py).
 * Not for: saying why a frame is wrong. What is not exactly whole and right frames of the expected type is answered with
 * None, and the caller's general way reads the same bytes again and has the words. A test holds the two together.
 *
 * - Nothing is kept: bytes in, new objects out. Blocks are copied, so that no view pins what was received with them;
 *   that is why only small ones are read here.
 * - A number in a frame is used as a length only after it was compared with what there is. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

/* wire.py's and link.py's numbers; test_frames.py compares. Both headers have 16 bytes: u32 payload length, u8 type,
 * 3 bytes zero, u64 request id or sequence. */
enum { HEADER_LEN = 16, DIGEST_LEN = 32, SIGNATURE_LEN = 64, MAX_NAME_LEN = 64 };
enum { WIRE_SIGN = 2, WIRE_SIGNED = 66, WIRE_SIGN_LEN = 36, WIRE_SIGNED_LEN = 32, JOB_AND_INDEX_LEN = 24 };
enum { LINK_SIGN = 4, LINK_SIGNED = 67, LINK_SIGN_LEN = 12, LINK_SIGNED_LEN = 32 };
enum { LAST_PRIORITY = 2, LAST_STATUS = 2 };
/* Copying so many digests, or signatures, costs less than a view of them does. */
enum { MAX_SMALL = 16 };

static uint64_t get(const uint8_t *at, int len)
{
    uint64_t number = 0;
    while (len--)
        number = number << 8 | *at++;
    return number;
}

static uint8_t *put(uint8_t *at, uint64_t number, int len)
{
    for (int shift = 8 * (len - 1); shift >= 0; shift -= 8)
        *at++ = (uint8_t)(number >> shift);
    return at;
}

static uint8_t *put_header(uint8_t *at, uint64_t payload_len, int type, uint64_t number)
{
    return put(put(put(put(at, payload_len, 4), (uint64_t)type, 1), 0, 3), number, 8);
}

/* The whole frame of that type at `at`: its payload's length, or -1 where there is none. */
static Py_ssize_t payload_of(const uint8_t *at, Py_ssize_t held_len, int type, Py_ssize_t min_len)
{
    if (held_len < HEADER_LEN || at[4] != type || at[5] || at[6] || at[7])
        return -1;
    Py_ssize_t payload_len = (Py_ssize_t)get(at, 4);
    return payload_len >= min_len && payload_len <= held_len - HEADER_LEN ? payload_len : -1;
}

/* Everything that link.unpack_header and link.unpack_signed check. */
static PyObject *read_signed(const uint8_t *frame, Py_ssize_t payload_len)
{
    const uint8_t *payload = frame + HEADER_LEN, *blocks = payload + LINK_SIGNED_LEN;
    uint64_t count = get(payload, 4), done = get(payload + 4, 4);
    if (!count || count > MAX_SMALL || done > count)
        return NULL;
    if (payload_len != LINK_SIGNED_LEN + (Py_ssize_t)count * (1 + SIGNATURE_LEN))
        return NULL;
    return Py_BuildValue("(KiiKKy#y#)", (unsigned long long)get(frame + 8, 8), (int)count, (int)done,
                         (unsigned long long)get(payload + 8, 8), (unsigned long long)get(payload + 24, 8), blocks,
                         (Py_ssize_t)count, blocks + count, (Py_ssize_t)count * SIGNATURE_LEN);
}

/* A list with what `read` makes of each frame; None where the bytes are anything else than such frames. */
static PyObject *read_all(PyObject *data, int type, Py_ssize_t min_len, Py_ssize_t max_len,
                          PyObject *(*read)(const uint8_t *, Py_ssize_t))
{
    if (!PyBytes_Check(data))
        Py_RETURN_NONE;
    const uint8_t *at = (const uint8_t *)PyBytes_AS_STRING(data), *end = at + PyBytes_GET_SIZE(data);
    PyObject *found = PyList_New(0);
    if (!found)
        return NULL;
    do {
        Py_ssize_t payload_len = payload_of(at, end - at, type, min_len);
        PyObject *one = payload_len < 0 || payload_len > max_len ? NULL : read(at, payload_len);
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

static PyObject *frames_read_answers(PyObject *module, PyObject *data)
{
    (void)module;
    return read_all(data, LINK_SIGNED, LINK_SIGNED_LEN, PY_SSIZE_T_MAX, read_signed);
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
            at = put(put(at + JOB_AND_INDEX_LEN, count, 4), failed, 4);
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
            at = put(put(put(at, slot, 4), 0, 4), (uint64_t)count, 4);
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
    PyModuleDef_HEAD_INIT, .m_name = "appliance._frames", .m_doc = "Frames of small SIGN requests.", .m_methods = functions,
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
