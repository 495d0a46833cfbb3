/* Clients: what a connection may have unanswered, which keys it was allowed lately, and its answers. See express.h. */
#include "express.h"

#include <errno.h>
#include <string.h>
#include <structmember.h>
#include <sys/socket.h>
#include <time.h>

enum { FIRST_IDS = 16, MAX_KEPT_OUTPUT_LEN = 64 * 1024 };
enum { WINDOW_OPEN, WINDOW_ID_IN_USE, WINDOW_FULL };

uint64_t express_generation;

double express_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---------------------------------------------------------------- output */

/* Whether bytes may go past the transport: nothing of it is half sent. -1 where it is closing. */
static int is_free(PyObject *transport)
{
    static PyObject *is_closing, *get_write_buffer_size;
    if (!is_closing && (!(is_closing = PyUnicode_InternFromString("is_closing")) ||
                        !(get_write_buffer_size = PyUnicode_InternFromString("get_write_buffer_size"))))
        return -1;
    PyObject *answer = PyObject_CallMethodNoArgs(transport, is_closing);
    int closing = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (closing)
        return -1;
    answer = PyObject_CallMethodNoArgs(transport, get_write_buffer_size);
    Py_ssize_t waiting = answer ? PyLong_AsSsize_t(answer) : -1;
    Py_XDECREF(answer);
    return waiting < 0 ? -1 : !waiting;
}

void express_write(PyObject *transport, int *fd, const uint8_t *block, size_t len)
{
    int free = transport ? is_free(transport) : -1;
    if (free < 0) {
        if (PyErr_Occurred())
            PyErr_WriteUnraisable(transport);
        return;
    }
    if (free && *fd >= 0) {
        ssize_t sent = send(*fd, block, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent == (ssize_t)len)
            return;
        if (sent > 0) {
            /* The rest is the transport's, which does not say that it has it before the loop's next turn. */
            *fd = -1;
            block += sent;
            len -= (size_t)sent;
        } else if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            return; /* the other end has gone; the transport sees it too */
        }
    }
    PyObject *none = PyObject_CallMethod(transport, "write", "y#", block, (Py_ssize_t)len);
    if (!none)
        PyErr_WriteUnraisable(transport);
    Py_XDECREF(none);
}

static int reserve_output(Client *self, size_t len)
{
    size_t wanted = self->output_len + len;
    if (wanted <= self->output_room)
        return 0;
    size_t room = self->output_room ? self->output_room : 512;
    while (room < wanted)
        room *= 2;
    uint8_t *output = PyMem_Realloc(self->output, room);
    if (!output)
        return -1;
    self->output = output;
    self->output_room = room;
    return 0;
}

int client_answer(Client *self, const Entry *entry, const uint8_t *statuses, const uint8_t *signatures, int failed,
                  Client **dirty)
{
    size_t count = (size_t)entry->count, payload_len = WIRE_SIGNED_LEN + count * (1 + SIGNATURE_LEN);
    if (!self->is_dirty) {
        self->is_dirty = 1;
        self->next_dirty = *dirty;
        *dirty = (Client *)Py_NewRef((PyObject *)self);
    }
    if (reserve_output(self, HEADER_LEN + payload_len)) {
        PyErr_NoMemory(); /* the client waits until its deadline, and asks again */
        PyErr_WriteUnraisable((PyObject *)self);
        return -1;
    }
    uint8_t *at = put_header(self->output + self->output_len, payload_len, WIRE_SIGNED, entry->request_id);
    memcpy(at, entry->job, JOB_AND_INDEX_LEN);
    at = put_number(put_number(at + JOB_AND_INDEX_LEN, count, 4), (uint64_t)failed, 4);
    memcpy(at, statuses, count);
    memcpy(at + count, signatures, count * SIGNATURE_LEN);
    self->output_len += HEADER_LEN + payload_len;
    return 0;
}

void clients_flush(Client *dirty)
{
    for (Client *self; (self = dirty);) {
        dirty = self->next_dirty;
        self->next_dirty = NULL;
        self->is_dirty = 0;
        if (self->output_len && self->transport)
            express_write(self->transport, &self->fd, self->output, self->output_len);
        self->output_len = 0;
        if (self->output_room > MAX_KEPT_OUTPUT_LEN) {
            PyMem_Free(self->output);
            self->output = NULL;
            self->output_room = 0;
        }
        Py_DECREF(self);
    }
}

/* ---------------------------------------------------------------- window */

static size_t place_of(const Client *self, uint64_t id)
{
    return (size_t)((id * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & (self->id_room - 1);
}

/* Where that id is, or the free place where it would be. */
static size_t find_id(const Client *self, uint64_t id)
{
    size_t place = place_of(self, id);
    while (self->ids[place] && self->ids[place] != id)
        place = (place + 1) & (self->id_room - 1);
    return place;
}

static int grow_ids(Client *self)
{
    uint64_t *old = self->ids;
    size_t old_room = self->id_room, room = old_room ? 2 * old_room : FIRST_IDS;
    uint64_t *ids = PyMem_Calloc(room, sizeof *ids);
    if (!ids)
        return -1;
    self->ids = ids;
    self->id_room = room;
    for (size_t place = 0; place < old_room; place++)
        if (old[place])
            ids[find_id(self, old[place])] = old[place];
    PyMem_Free(old);
    return 0;
}

/* Count a request; -1 where memory is missing. */
static int window_open(Client *self, uint64_t id, Py_ssize_t items)
{
    if ((size_t)(self->requests + 1) * 2 > self->id_room && grow_ids(self))
        return -1;
    size_t place = find_id(self, id);
    if (self->ids[place])
        return WINDOW_ID_IN_USE;
    if (self->requests >= self->max_requests || items > self->max_items - self->items)
        return WINDOW_FULL;
    self->ids[place] = id;
    self->requests++;
    self->items += items;
    return WINDOW_OPEN;
}

void client_close(Client *self, uint64_t id, Py_ssize_t items)
{
    size_t mask = self->id_room - 1, place;
    if (!self->id_room || !self->ids[place = find_id(self, id)])
        return;
    /* Whoever would be found past this place moves up. */
    for (size_t next = (place + 1) & mask; self->ids[next]; next = (next + 1) & mask) {
        size_t wanted = place_of(self, self->ids[next]);
        if (((next - wanted) & mask) >= ((next - place) & mask)) {
            self->ids[place] = self->ids[next];
            place = next;
        }
    }
    self->ids[place] = 0;
    self->requests--;
    self->items -= items;
}

/* ---------------------------------------------------------------- requests */

static const Grant *find_grant(const Client *self, const uint8_t *name, size_t len)
{
    for (const Grant *grant = self->grants; grant < self->grants + MAX_GRANTS; grant++)
        if (grant->key && grant->name_len == len && grant->generation == express_generation && !memcmp(grant->name, name, len))
            return grant;
    return NULL;
}

/* Take the SIGN at `frame` into its lane, or leave it alone: everything that wire.decode_sign checks, and more. */
static Lane *take_sign(Client *self, const uint8_t *frame, Py_ssize_t payload_len, double now)
{
    const uint8_t *payload = frame + HEADER_LEN;
    uint64_t request_id = get_number(frame + 8, 8), first_index = get_number(payload + 16, 8);
    uint64_t deadline_ms = get_number(payload + 24, 4), count = get_number(payload + 28, 4);
    int form = payload[32], priority = payload[33], name_len = payload[34];
    if (!request_id || form || priority > PRIORITY_INTERACTIVE || payload[35] || !name_len || name_len > MAX_NAME_LEN)
        return NULL;
    if (!count || count > MAX_ITEMS || first_index > UINT64_MAX - count + 1)
        return NULL;
    if (payload_len != WIRE_SIGN_LEN + name_len + (Py_ssize_t)count * DIGEST_LEN)
        return NULL;
    const uint8_t *name = payload + WIRE_SIGN_LEN;
    const Grant *grant = find_grant(self, name, (size_t)name_len);
    if (!grant || !lane_accepts(grant->lane, grant->key, (Py_ssize_t)count))
        return NULL;
    Entry *entry = lane_new_entry(grant->lane);
    if (!entry)
        return NULL;
    entry->key = (Key *)Py_NewRef((PyObject *)grant->key);
    if (window_open(self, request_id, (Py_ssize_t)count) != WINDOW_OPEN) {
        lane_discard(entry);
        return NULL;
    }
    double deadline_s = deadline_ms ? (double)deadline_ms / 1e3 : grant->default_deadline_s;
    entry->client = self;
    entry->before = NULL;
    entry->after = self->entries;
    if (self->entries)
        self->entries->before = entry;
    self->entries = entry;
    entry->accepted_at = now;
    entry->deadline_at = now + (deadline_s < grant->max_deadline_s ? deadline_s : grant->max_deadline_s);
    entry->request_id = request_id;
    entry->count = (int)count;
    entry->priority = priority;
    memcpy(entry->job, payload, JOB_AND_INDEX_LEN);
    memcpy(entry->digests, name + name_len, count * DIGEST_LEN);
    lane_append(entry);
    return grant->lane;
}

void client_forget_entry(Entry *entry)
{
    if (entry->before)
        entry->before->after = entry->after;
    else
        entry->client->entries = entry->after;
    if (entry->after)
        entry->after->before = entry->before;
    entry->client = NULL;
}

static PyObject *Client_take(Client *self, PyObject *data)
{
    if (!PyBytes_Check(data))
        return PyErr_Format(PyExc_TypeError, "take takes bytes");
    const uint8_t *begin = (const uint8_t *)PyBytes_AS_STRING(data), *end = begin + PyBytes_GET_SIZE(data), *at = begin;
    double now = express_now();
    Lane *fed = NULL;
    while (at < end) {
        Py_ssize_t payload_len = payload_of(at, end - at, WIRE_SIGN, WIRE_SIGN_LEN);
        Lane *lane = payload_len < 0 ? NULL : take_sign(self, at, payload_len, now);
        if (!lane)
            break;
        if (fed && fed != lane)
            lane_pump(fed);
        fed = lane;
        at += HEADER_LEN + payload_len;
    }
    if (fed) {
        lane_pump(fed);
        lane_woke(fed, now);
        if (at == end)
            lane_spin(fed);
    }
    return PyLong_FromSsize_t(at - begin);
}

/* ---------------------------------------------------------------- Client */

static PyObject *Client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"owner", "max_requests", "max_items", NULL};
    PyObject *owner;
    Py_ssize_t max_requests, max_items;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$nn:Client", names, &owner, &max_requests, &max_items))
        return NULL;
    Client *self = (Client *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->owner = Py_NewRef(owner);
    self->fd = -1;
    self->max_requests = max_requests;
    self->max_items = max_items;
    return (PyObject *)self;
}

static int Client_traverse(Client *self, visitproc visit, void *arg)
{
    Py_VISIT(self->owner);
    Py_VISIT(self->transport);
    for (Grant *grant = self->grants; grant < self->grants + MAX_GRANTS; grant++)
        Py_VISIT(grant->lane);
    return 0;
}

static int Client_clear(Client *self)
{
    while (self->entries)
        lane_let_go(self->entries);
    for (Grant *grant = self->grants; grant < self->grants + MAX_GRANTS; grant++) {
        Py_CLEAR(grant->key);
        Py_CLEAR(grant->lane);
    }
    self->fd = -1;
    Py_CLEAR(self->transport);
    Py_CLEAR(self->owner);
    return 0;
}

static void Client_dealloc(Client *self)
{
    PyObject_GC_UnTrack(self);
    Client_clear(self);
    PyMem_Free(self->ids);
    PyMem_Free(self->output);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *Client_attach(Client *self, PyObject *args)
{
    PyObject *transport;
    int fd;
    if (!PyArg_ParseTuple(args, "Oi:attach", &transport, &fd))
        return NULL;
    Py_XSETREF(self->transport, Py_NewRef(transport));
    self->fd = fd;
    Py_RETURN_NONE;
}

static PyObject *Client_lost(Client *self, PyObject *unused)
{
    (void)unused;
    Client_clear(self);
    Py_RETURN_NONE;
}

static PyObject *Client_allow(Client *self, PyObject *args)
{
    PyObject *name;
    Lane *lane;
    double default_deadline_s, max_deadline_s;
    if (!PyArg_ParseTuple(args, "UO!dd:allow", &name, &Lane_type, &lane, &default_deadline_s, &max_deadline_s))
        return NULL;
    Py_ssize_t len;
    const char *bytes = PyUnicode_AsUTF8AndSize(name, &len);
    if (!bytes)
        return NULL;
    if (len < 1 || len > MAX_NAME_LEN || !self->owner)
        Py_RETURN_NONE;
    Grant *grant = NULL;
    for (Grant *one = self->grants; one < self->grants + MAX_GRANTS && !grant; one++)
        if (one->key && one->name_len == len && !memcmp(one->name, bytes, (size_t)len))
            grant = one;
    if (grant && grant->lane == lane && grant->generation == express_generation)
        Py_RETURN_NONE;
    Key *key = lane_key(lane, name);
    if (!key)
        return NULL;
    if (!grant)
        grant = self->grants + self->next_grant++ % MAX_GRANTS;
    Key *old_key = grant->key;
    Lane *old_lane = grant->lane;
    grant->key = key;
    grant->lane = (Lane *)Py_NewRef((PyObject *)lane);
    grant->generation = express_generation;
    grant->default_deadline_s = default_deadline_s;
    grant->max_deadline_s = max_deadline_s;
    grant->name_len = (uint8_t)len;
    memcpy(grant->name, bytes, (size_t)len);
    Py_XDECREF(old_key);
    Py_XDECREF(old_lane);
    Py_RETURN_NONE;
}

static PyObject *Client_open(Client *self, PyObject *args)
{
    unsigned long long id;
    Py_ssize_t items;
    if (!PyArg_ParseTuple(args, "Kn:open", &id, &items))
        return NULL;
    int outcome = window_open(self, id, items);
    return outcome < 0 ? PyErr_NoMemory() : PyLong_FromLong(outcome);
}

static PyObject *Client_close(Client *self, PyObject *args)
{
    unsigned long long id;
    Py_ssize_t items;
    if (!PyArg_ParseTuple(args, "Kn:close", &id, &items))
        return NULL;
    client_close(self, id, items);
    Py_RETURN_NONE;
}

static PyMethodDef Client_methods[] = {
    {"attach", (PyCFunction)Client_attach, METH_VARARGS,
     "attach(transport, fd, /)\n--\n\nWhere its answers go: fd is the transport's socket until `lost`, or -1 where bytes must "
     "go through the\ntransport."},
    {"lost", (PyCFunction)Client_lost, METH_NOARGS, "lost()\n--\n\nThe connection has gone: nobody waits for anything."},
    {"allow", (PyCFunction)Client_allow, METH_VARARGS,
     "allow(key, lane, default_deadline_s, max_deadline_s, /)\n--\n\nIts account may sign with that key, as of now; until the "
     "next `withdraw`."},
    {"open", (PyCFunction)Client_open, METH_VARARGS,
     "open(request_id, items, /)\n--\n\nCount a request against the window: OPEN, ID_IN_USE or FULL."},
    {"close", (PyCFunction)Client_close, METH_VARARGS, "close(request_id, items, /)\n--\n\nIt was answered."},
    {"take", (PyCFunction)Client_take, METH_O,
     "take(data, /)\n--\n\nTake small SIGN frames under keys that were allowed from the front of it; how many bytes that "
     "were.\nWhat is left is for the general way."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Client_members[] = {
    {"requests", T_PYSSIZET, offsetof(Client, requests), READONLY, "Requests that are not answered."},
    {"items", T_PYSSIZET, offsetof(Client, items), READONLY, "Their items."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject Client_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "appliance._express.Client",
    .tp_basicsize = sizeof(Client),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = Client_new,
    .tp_dealloc = (destructor)Client_dealloc,
    .tp_traverse = (traverseproc)Client_traverse,
    .tp_clear = (inquiry)Client_clear,
    .tp_methods = Client_methods,
    .tp_members = Client_members,
    .tp_doc = "A connection: its window, the keys it was allowed lately, its requests in lanes.",
};

/* ---------------------------------------------------------------- the module */

static PyObject *express_withdraw(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    express_generation++;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"withdraw", express_withdraw, METH_NOARGS,
     "withdraw()\n--\n\nWhat any client was allowed holds no more: an account, a key or a token has changed."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "appliance._express",
    .m_doc = "Small SIGN requests from their clients to the workers and back.",
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__express(void)
{
    if (PyType_Ready(&Key_type))
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    if (PyModule_AddType(module, &Lane_type) || PyModule_AddType(module, &Link_type) ||
        PyModule_AddType(module, &Client_type) || PyModule_AddIntMacro(module, MAX_ITEMS) ||
        PyModule_AddIntMacro(module, MAX_ENTRIES) || PyModule_AddIntConstant(module, "OPEN", WINDOW_OPEN) ||
        PyModule_AddIntConstant(module, "ID_IN_USE", WINDOW_ID_IN_USE) ||
        PyModule_AddIntConstant(module, "FULL", WINDOW_FULL)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
