/* The serving loop of a worker with one session: SIGN frames in, SIGNED frames out, and no Python between them.
 *
 * Not for: saying why a frame is wrong. What is not a SIGN frame, whole and right, for a slot that is loaded, is handed
 * to Python as it came. link.py is the layout and has the words; here are the checks alone, every one of them, and a
 * test holds the two together.
 *
 * - A recv takes as much as there is, and frames are signed where it put them.
 * - An answer leaves as soon as its batch is signed, before the next one is begun. Letting it wait for a short one that
 *   is here already, to send both at once, was tried and measured nothing.
 * - The next frame is looked for again and again for spin_us before the thread sleeps, where frames have lately come
 *   sooner than half of that. To wake a thread costs its sender more than the frame does, and on a virtual machine a
 *   processor that sleeps takes longer to wake than a signature takes. The processor is offered to whoever else wants
 *   it each time; where somebody keeps it for long, others compute on it, and there is no looking for many times as
 *   long: who yields waits for his turn with all of them.
 * - Frames are answered in the order in which they came, each once.
 * - A frame larger than the buffer makes it grow; a buffer larger than what is worth keeping is given back. An answer
 *   is bounded by the largest batch (4.3 MB).
 * - One thread calls serve, load and forget. The slots hold references; the file descriptor is the caller's, and he
 *   keeps it open.
 *
 * A crash here leaves nothing behind: frames that were not answered are the front's, and it gives them to another.
 */
#include "batch.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

/* link.py's numbers; test_serve.py compares. */
enum { HEADER_LEN = 16, SIGN_HEAD_LEN = 12, SIGNED_HEAD_LEN = 32 };
enum { KIND_SIGN = 4, KIND_SIGNED = 67 };
enum { FORM_DIGESTS = 0, FORM_MESSAGES = 1 };
/* A processor that is given back no sooner is one that others compute on; it is left to them for so many times as long,
 * and what looking loses to them stays a small share. */
enum { CROWDED_NS = 1000 * 1000, CROWDED_PAUSES = 16 };
/* A wait counts as at most so many times spin_us, so that the end of a rest is noticed after some twenty frames; the
 * newest one has this share of the average. */
enum { MAX_WAIT_SPINS = 4, WAIT_SHARE = 8 };
enum { MAX_PAYLOAD_LEN = 32 * 1024 * 1024, MAX_ITEMS = 65536 };

typedef struct {
    unsigned long number;
    Key *key;
    int form;
} Slot;

typedef struct {
    PyObject_HEAD
    int fd;
    CK_SESSION_HANDLE session;
    Py_ssize_t first_len, max_kept_len;
    uint64_t spin_ns;
    uint64_t wait_ns;       /* for a frame, lately: an average */
    uint64_t crowded_until_ns;
    CK_BYTE *input;         /* received and not yet served: input[begin:end] */
    size_t begin, end, input_len;
    CK_BYTE *output;        /* the answer that is being made */
    size_t output_len;
    Slot *slots;            /* in the order of their numbers */
    size_t slot_count;
    int serving;
} Server;

/* A frame in the input buffer; it holds until the next one is asked for. */
typedef struct {
    CK_BYTE *header, *payload;
    size_t payload_len;
    int broken;             /* the header cannot be one: there is no payload and will be no next frame */
} Frame;

enum event { GO_ON, HAND_OVER, STOPPED, GONE, NO_MEMORY, SYSTEM_ERROR };

static uint64_t read_u64(const CK_BYTE *at)
{
    return (uint64_t)read_u32(at) << 32 | read_u32(at + 4);
}

static CK_BYTE *write_u32(CK_BYTE *at, uint64_t number)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        *at++ = (CK_BYTE)(number >> shift);
    return at;
}

static CK_BYTE *write_u64(CK_BYTE *at, uint64_t number)
{
    return write_u32(write_u32(at, number >> 32), number);
}

/* Make a buffer exactly so long; what it holds is kept as far as it fits. */
static int resize(CK_BYTE **buffer, size_t *len, size_t wanted_len)
{
    CK_BYTE *resized = PyMem_RawRealloc(*buffer, wanted_len);
    if (!resized)
        return 0;
    *buffer = resized;
    *len = wanted_len;
    return 1;
}

static enum event failed_call(void)
{
    return errno == EPIPE || errno == ECONNRESET ? GONE : SYSTEM_ERROR;
}

static enum event send_all(int fd, const CK_BYTE *block, size_t len)
{
    while (len) {
        ssize_t sent = send(fd, block, len, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            return failed_call();
        if (sent > 0) {
            block += sent;
            len -= (size_t)sent;
        }
    }
    return GO_ON;
}

static uint64_t read_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Take in what comes within spin_ns; -1 with EAGAIN where nothing has. */
static ssize_t receive_soon(Server *self, CK_BYTE *at, size_t room)
{
    uint64_t before = read_clock(), until = before + self->spin_ns;
    for (;;) {
        ssize_t count = recv(self->fd, at, room, MSG_DONTWAIT);
        if (count >= 0 || errno != EAGAIN || before >= until || before < self->crowded_until_ns)
            return count;
        sched_yield();
        uint64_t now = read_clock();
        if (now - before > CROWDED_NS)
            self->crowded_until_ns = now + CROWDED_PAUSES * (now - before);
        before = now;
    }
}

static void note_wait(Server *self, uint64_t waited_ns)
{
    uint64_t most = MAX_WAIT_SPINS * self->spin_ns;
    self->wait_ns = ((WAIT_SHARE - 1) * self->wait_ns + (waited_ns < most ? waited_ns : most)) / WAIT_SHARE;
}

/* Take in what there is, at least one byte. Of a frame whose rest has to be waited for, exactly that rest: a very large
 * one then has nothing behind it when its buffer is given back. */
static enum event receive(Server *self, size_t wanted_len)
{
    size_t held = self->end - self->begin;
    memmove(self->input, self->input + self->begin, held);
    self->begin = 0;
    self->end = held;
    size_t len = self->input_len;
    if (wanted_len > len)
        len = wanted_len;
    else if (len > (size_t)self->max_kept_len && wanted_len <= (size_t)self->first_len)
        len = (size_t)self->first_len;
    if (len != self->input_len && !resize(&self->input, &self->input_len, len))
        return NO_MEMORY;
    int in_a_frame = held >= HEADER_LEN;
    size_t room = (in_a_frame ? wanted_len : self->input_len) - held;
    ssize_t count = -1;
    int is_timed = self->spin_ns && !in_a_frame;
    uint64_t asked_at = is_timed ? read_clock() : 0;
    errno = EAGAIN;
    if (is_timed && self->wait_ns < self->spin_ns / 2)
        count = receive_soon(self, self->input + held, room);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        do
            count = recv(self->fd, self->input + held, room, in_a_frame ? MSG_WAITALL : 0);
        while (count < 0 && errno == EINTR);
    }
    if (count <= 0)
        return count ? failed_call() : GONE;
    if (is_timed)
        note_wait(self, read_clock() - asked_at);
    self->end += (size_t)count;
    return GO_ON;
}

static enum event next_frame(Server *self, Frame *frame)
{
    for (;;) {
        size_t held = self->end - self->begin, wanted_len = HEADER_LEN;
        if (held >= HEADER_LEN) {
            frame->header = self->input + self->begin;
            frame->payload = frame->header + HEADER_LEN;
            frame->payload_len = read_u32(frame->header);
            CK_BYTE *flags_and_reserved = frame->header + 5;
            frame->broken = frame->payload_len > MAX_PAYLOAD_LEN || flags_and_reserved[0] || flags_and_reserved[1] ||
                            flags_and_reserved[2];
            if (frame->broken)
                frame->payload_len = 0;
            wanted_len += frame->payload_len;
            if (held >= wanted_len) {
                self->begin += wanted_len;
                return GO_ON;
            }
        }
        enum event event = receive(self, wanted_len);
        if (event != GO_ON)
            return event;
    }
}

/* Where the slot of that number is, or would be. */
static size_t find_slot(const Server *self, unsigned long number)
{
    size_t low = 0, high = self->slot_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (self->slots[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int has_slot(const Server *self, size_t index, unsigned long number)
{
    return index < self->slot_count && self->slots[index].number == number;
}

/* Everything that link.unpack_sign checks, and that the slot is loaded for this form; 0 if Python is to say no. */
static int read_sign(const Server *self, const Frame *frame, Batch *batch)
{
    const CK_BYTE *head = frame->payload;
    if (frame->broken || frame->header[4] != KIND_SIGN || frame->payload_len < SIGN_HEAD_LEN)
        return 0;
    unsigned long number = read_u32(head);
    int form = head[4];
    CK_ULONG count = read_u32(head + 8);
    CK_BYTE *blocks = frame->payload + SIGN_HEAD_LEN;
    size_t blocks_len = frame->payload_len - SIGN_HEAD_LEN;
    if (head[5] || head[6] || head[7] || count < 1 || count > MAX_ITEMS)
        return 0;
    if (form == FORM_DIGESTS) {
        if (blocks_len != count * DIGEST_LEN)
            return 0;
    } else if (form == FORM_MESSAGES) {
        if (blocks_len < 4 * count || sum_of_lengths(blocks, count) != blocks_len - 4 * count)
            return 0;
    } else {
        return 0;
    }
    size_t index = find_slot(self, number);
    if (!has_slot(self, index, number) || self->slots[index].form != form)
        return 0;
    *batch = (Batch){
        .key = self->slots[index].key,
        .session = self->session,
        .count = count,
        .lengths = form == FORM_MESSAGES ? blocks : NULL,
        .data = form == FORM_MESSAGES ? blocks + 4 * count : blocks,
    };
    return 1;
}

static void write_signed_head(CK_BYTE *at, const Frame *frame, const Batch *batch, size_t payload_len)
{
    at = write_u32(at, payload_len);
    at = write_u32(at, (uint64_t)KIND_SIGNED << 24);
    at = write_u64(at, read_u64(frame->header + 8));
    at = write_u32(at, batch->count);
    at = write_u32(at, batch->done);
    at = write_u64(at, batch->rv);
    at = write_u64(at, batch->item_rv);
    write_u64(at, batch->execution_ns);
}

static enum event answer(Server *self, const Frame *frame, Batch *batch)
{
    if (!read_sign(self, frame, batch))
        return HAND_OVER;
    size_t payload_len = SIGNED_HEAD_LEN + batch->count * (1 + SIGNATURE_LEN), frame_len = HEADER_LEN + payload_len;
    if (frame_len > self->output_len && !resize(&self->output, &self->output_len, frame_len))
        return NO_MEMORY;
    batch->statuses = self->output + HEADER_LEN + SIGNED_HEAD_LEN;
    batch->signatures = batch->statuses + batch->count;
    batch_run(batch);
    write_signed_head(self->output, frame, batch, payload_len);
    enum event event = send_all(self->fd, self->output, frame_len);
    return event == GO_ON && batch->rv != CKR_OK ? STOPPED : event;
}

/* Answer frames until one comes that is Python's, or none can come. */
static enum event answer_all(Server *self, Frame *frame, Batch *batch)
{
    enum event event;
    do {
        event = next_frame(self, frame);
        if (event == GO_ON)
            event = answer(self, frame, batch);
    } while (event == GO_ON);
    return event;
}

/* ---------------------------------------------------------------- Server */

static int Server_init(Server *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "session", "buffer_len", "max_kept_len", "spin_us", NULL};
    unsigned long spin_us;
    if (self->input) {
        PyErr_SetString(PyExc_RuntimeError, "the server is set up already");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ik$nnk:Server", names, &self->fd, &self->session, &self->first_len,
                                     &self->max_kept_len, &spin_us))
        return -1;
    self->spin_ns = (uint64_t)spin_us * 1000;
    self->wait_ns = MAX_WAIT_SPINS * self->spin_ns;
    if (self->first_len < HEADER_LEN || self->max_kept_len < self->first_len) {
        PyErr_Format(PyExc_ValueError, "a buffer of %zd bytes, kept up to %zd, cannot be", self->first_len,
                     self->max_kept_len);
        return -1;
    }
    if (!resize(&self->input, &self->input_len, (size_t)self->first_len) ||
        !resize(&self->output, &self->output_len, (size_t)self->first_len)) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void Server_dealloc(Server *self)
{
    PyTypeObject *type = Py_TYPE(self);
    for (size_t index = 0; index < self->slot_count; index++)
        Py_DECREF(self->slots[index].key);
    PyMem_RawFree(self->slots);
    PyMem_RawFree(self->input);
    PyMem_RawFree(self->output);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The buffers and slots belong to the call of serve that runs. */
static int is_free(const Server *self)
{
    if (self->input && !self->serving)
        return 1;
    PyErr_SetString(PyExc_RuntimeError, self->input ? "the server is serving" : "the server is not set up");
    return 0;
}

static PyObject *Server_load(Server *self, PyObject *args)
{
    unsigned long number;
    int form;
    Key *key;
    if (!is_free(self) || !PyArg_ParseTuple(args, "kO!i:load", &number, Key_type, &key, &form))
        return NULL;
    if (form != FORM_DIGESTS && !(form == FORM_MESSAGES && key->method != METHOD_VENDOR))
        return PyErr_Format(PyExc_ValueError, "the key cannot be asked in form %d", form);
    size_t index = find_slot(self, number);
    if (has_slot(self, index, number))
        return PyErr_Format(PyExc_ValueError, "slot %lu is loaded already", number);
    Slot *slots = PyMem_RawRealloc(self->slots, (self->slot_count + 1) * sizeof *slots);
    if (!slots)
        return PyErr_NoMemory();
    memmove(slots + index + 1, slots + index, (self->slot_count - index) * sizeof *slots);
    slots[index] = (Slot){number, (Key *)Py_NewRef(key), form};
    self->slots = slots;
    self->slot_count++;
    Py_RETURN_NONE;
}

static PyObject *Server_forget(Server *self, PyObject *args)
{
    unsigned long number;
    if (!is_free(self) || !PyArg_ParseTuple(args, "k:forget", &number))
        return NULL;
    size_t index = find_slot(self, number);
    if (!has_slot(self, index, number))
        return PyErr_Format(PyExc_ValueError, "slot %lu is not loaded", number);
    Key *key = self->slots[index].key;
    self->slot_count--;
    memmove(self->slots + index, self->slots + index + 1, (self->slot_count - index) * sizeof *self->slots);
    Py_DECREF(key);
    Py_RETURN_NONE;
}

static PyObject *Server_serve(Server *self, PyObject *unused)
{
    (void)unused;
    if (!is_free(self))
        return NULL;
    Frame frame = {0};
    Batch batch = {0};
    enum event event;
    self->serving = 1;
    Py_BEGIN_ALLOW_THREADS
    event = answer_all(self, &frame, &batch);
    Py_END_ALLOW_THREADS
    self->serving = 0;
    switch (event) {
    case HAND_OVER:
        return Py_BuildValue("(y#y#)", frame.header, (Py_ssize_t)HEADER_LEN, frame.payload,
                             (Py_ssize_t)frame.payload_len);
    case STOPPED: {
        PyObject *arguments = Py_BuildValue("(Kkkk)", (unsigned long long)read_u64(frame.header + 8), batch.count,
                                            batch.done, batch.rv);
        if (arguments) {
            PyErr_SetObject(BatchStopped, arguments);
            Py_DECREF(arguments);
        }
        return NULL;
    }
    case NO_MEMORY:
        return PyErr_NoMemory();
    case SYSTEM_ERROR:
        return PyErr_SetFromErrno(PyExc_OSError);
    default:
        Py_RETURN_NONE;
    }
}

static PyMethodDef Server_functions[] = {
    {"load", (PyCFunction)Server_load, METH_VARARGS,
     "load(slot, key, form)\n--\n\nSIGN frames of that form for that slot are answered with that key."},
    {"forget", (PyCFunction)Server_forget, METH_VARARGS, "forget(slot)\n--\n\nThey no longer are."},
    {"serve", (PyCFunction)Server_serve, METH_NOARGS,
     "serve()\n--\n\n"
     "Answer SIGN frames until another frame comes, or one that cannot be answered: its header and payload. A header\n"
     "that cannot be comes without payload. None when the front is gone; BatchStopped when the token fails."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Server_slots[] = {
    {Py_tp_doc, "Server(fd, session, *, buffer_len, max_kept_len, spin_us)\n--\n\nThe native serving loop over a stream socket."},
    {Py_tp_init, Server_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, Server_dealloc},
    {Py_tp_methods, Server_functions},
    {0, NULL},
};

PyType_Spec Server_spec = {
    .name = "appliance_pkcs11._batch.Server",
    .basicsize = sizeof(Server),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Server_slots,
};
