/* Lanes and links: what waits before a token, what its workers have, and their answers. See express.h. */
#include "express.h"

#include <string.h>
#include <structmember.h>

/* link.py: a slice that was answered, and how. */
enum { DONE_AT = 4, RV_AT = 8, EXECUTION_AT = 24 };
static const double MIN_ITEM_S = 1e-7, EWMA_WEIGHT = 0.2; /* dispatch.py's */
/* Slices that a lone worker is given ahead, however short they are: their frames must fit into its socket's buffer. */
enum { MAX_AHEAD = 16 };

/* ---------------------------------------------------------------- histograms */

static void observe(Histogram *self, double amount)
{
    Py_ssize_t index = 0;
    while (index < self->bound_count && self->bounds[index] < amount)
        index++;
    self->counts[index]++;
    self->sum += amount;
}

static int set_bounds(Histogram *self, PyObject *bounds)
{
    Py_ssize_t count = PyTuple_GET_SIZE(bounds);
    if (count > MAX_BOUNDS) {
        PyErr_Format(PyExc_ValueError, "at most %d bounds, got %zd", MAX_BOUNDS, count);
        return -1;
    }
    for (Py_ssize_t index = 0; index < count; index++) {
        self->bounds[index] = PyFloat_AsDouble(PyTuple_GET_ITEM(bounds, index));
        if (PyErr_Occurred())
            return -1;
    }
    self->bound_count = count;
    return 0;
}

/* (counts, sum), and begin anew. */
static PyObject *take_histogram(Histogram *self)
{
    PyObject *counts = PyList_New(self->bound_count + 1);
    for (Py_ssize_t index = 0; counts && index <= self->bound_count; index++) {
        PyObject *count = PyLong_FromUnsignedLongLong(self->counts[index]);
        if (!count)
            Py_CLEAR(counts);
        else
            PyList_SET_ITEM(counts, index, count);
    }
    PyObject *taken = counts ? Py_BuildValue("(Nd)", counts, self->sum) : NULL;
    if (taken) {
        memset(self->counts, 0, sizeof self->counts);
        self->sum = 0;
    }
    return taken;
}

/* ---------------------------------------------------------------- Key */

static void Key_dealloc(Key *self)
{
    Py_DECREF(self->name);
    Py_TYPE(self)->tp_free(self);
}

PyTypeObject Key_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "appliance._express.Key",
    .tp_basicsize = sizeof(Key),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)Key_dealloc,
    .tp_doc = "A key's queue.",
};

Key *lane_key(Lane *self, PyObject *name)
{
    PyObject *known = PyDict_GetItemWithError(self->keys, name);
    if (known)
        return (Key *)Py_NewRef(known);
    if (PyErr_Occurred())
        return NULL;
    Key *key = PyObject_New(Key, &Key_type);
    if (!key)
        return NULL;
    key->lane = self;
    key->name = Py_NewRef(name);
    key->first = key->last = NULL;
    key->items = 0;
    key->next = NULL;
    if (PyDict_SetItem(self->keys, name, (PyObject *)key))
        Py_CLEAR(key);
    return key;
}

/* ---------------------------------------------------------------- entries and queues */

Entry *lane_new_entry(Lane *self)
{
    Entry *entry = self->free;
    if (entry) {
        self->free = entry->next;
        return entry;
    }
    if (self->entry_count == MAX_ENTRIES || !(entry = PyMem_Malloc(sizeof *entry)))
        return NULL;
    self->entry_count++;
    return entry;
}

static void free_entry(Lane *self, Entry *entry)
{
    Py_DECREF(entry->key);
    entry->next = self->free;
    self->free = entry;
}

void lane_discard(Entry *entry)
{
    free_entry(entry->key->lane, entry);
}

/* Nobody waits for it, or somebody else answers. */
static void detach(Lane *self, Entry *entry)
{
    if (entry->client) {
        self->live--;
        client_forget_entry(entry);
    }
}

static void join_ring(Lane *self, Key *key)
{
    if (self->last)
        self->last->next = key;
    else
        self->first = key;
    self->last = key;
    key->next = self->first;
}

static void turn(Lane *self)
{
    self->last = self->first;
    self->first = self->first->next;
}

static void leave_ring(Lane *self, Key *key)
{
    Key *before = self->last;
    while (before->next != key)
        before = before->next;
    if (before == key) {
        self->first = self->last = NULL;
    } else {
        before->next = key->next;
        if (self->first == key)
            self->first = key->next;
        if (self->last == key)
            self->last = before;
    }
    key->next = NULL;
}

void lane_append(Entry *entry)
{
    Key *key = entry->key;
    Lane *self = key->lane;
    if (!key->first)
        join_ring(self, key);
    else
        key->last->next = entry;
    if (!key->first)
        key->first = entry;
    key->last = entry;
    entry->next = NULL;
    entry->is_sent = 0;
    key->items += entry->count;
    self->waiting_items += entry->count;
    self->queued_items += entry->count;
    self->live++;
}

/* The first of a queue that is not empty; `is_leaving`: it goes elsewhere, and is still queued by the dispatcher. */
static Entry *take_first(Lane *self, Key *key, int is_leaving)
{
    Entry *entry = key->first;
    key->first = entry->next;
    key->items -= entry->count;
    self->waiting_items -= entry->count;
    if (!is_leaving)
        self->queued_items -= entry->count;
    return entry;
}

void lane_let_go(Entry *entry)
{
    Key *key = entry->key;
    Lane *self = key->lane;
    detach(self, entry);
    if (entry->is_sent)
        return; /* what its worker answers is for nobody */
    Entry *before = NULL;
    for (Entry *one = key->first; one != entry; one = one->next)
        before = one;
    if (before)
        before->next = entry->next;
    else
        key->first = entry->next;
    if (key->last == entry)
        key->last = before;
    key->items -= entry->count;
    self->waiting_items -= entry->count;
    self->queued_items -= entry->count;
    if (!key->first)
        leave_ring(self, key);
    free_entry(self, entry);
}

/* ---------------------------------------------------------------- which worker */

/* `index` of the dispatcher's workers, where it is one of ours that can sign with that key; else NULL. */
static Link *able_link(const Lane *self, Py_ssize_t index, const Key *key)
{
    PyObject *worker = PyList_GET_ITEM(self->workers, index);
    if (!PyObject_TypeCheck(worker, &Link_type))
        return NULL;
    Link *link = (Link *)worker;
    return link->lane == self && PyDict_Contains(link->slots, key->name) == 1 ? link : NULL;
}

int lane_accepts(Lane *self, const Key *key, Py_ssize_t items)
{
    if (self->held || self->queued_items + items > self->max_queued_items)
        return 0;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(self->workers); index++)
        if (able_link(self, index, key))
            return 1;
    return 0;
}

/* So little is to do that idle workers are not woken for it. */
static int is_little(const Lane *self, double much_s, double now)
{
    return self->inflight_items && (double)(self->queued_items + self->inflight_items) * self->item_s < much_s &&
           now - self->moved_at < self->stay_patience_s;
}

/* The same of lone requests. Where a caller, the front and all workers have no processor each, a worker that is woken
 * takes one from those: then more waits for the one that is awake, until it has been busy without a pause for so long
 * that it is not going to catch up. */
static int stays(const Lane *self, double now)
{
    int is_crowded = self->processors < PyList_GET_SIZE(self->workers) + 2 &&
                     now - self->busy_since < self->crowded_patience_s;
    return is_little(self, is_crowded ? self->crowded_stay_s : self->stay_s, now);
}

/* A lone worker's slices are small and several are under way, so that each answer leaves when it is made and the
 * worker does not wait for the next; not where its items cost less in larger ones. */
static int is_given_pieces(const Link *link)
{
    return link->sessions == 1 && !link->batches;
}

static int has_room_ahead(const Lane *self, const Link *link)
{
    if (link->outstanding <= link->sessions)
        return 1;
    if (!is_given_pieces(link) || link->outstanding >= MAX_AHEAD)
        return 0;
    Py_ssize_t items = 0;
    for (const Piece *piece = link->pieces; piece; piece = piece->next)
        items += piece->items;
    return (double)items * self->item_s < self->ahead_s;
}

/* Dispatcher._least_loaded, among those that have the key. */
static Link *choose_link(const Lane *self, const Key *key, int is_staying)
{
    Py_ssize_t count = PyList_GET_SIZE(self->workers);
    if (is_staying) {
        int awake = 0;
        for (Py_ssize_t index = 0; index < count; index++) {
            Link *link = able_link(self, index, key);
            if (link && link->outstanding) {
                awake = 1;
                if (has_room_ahead(self, link))
                    return link;
            }
        }
        if (awake)
            return NULL;
    }
    Link *best = NULL;
    double least = 0;
    Py_ssize_t ahead = self->queued_items >= self->min_ahead_items;
    for (Py_ssize_t index = 0; index < count; index++) {
        Link *link = able_link(self, index, key);
        if (!link || link->outstanding >= link->sessions + ahead)
            continue;
        double load = (double)link->outstanding / (double)link->sessions;
        if (!best || load < least) {
            best = link;
            least = load;
        }
    }
    return best;
}

/* Dispatcher._fill: how many of that key's items make a slice for that worker now. */
static Py_ssize_t slice_room(const Lane *self, const Key *key, const Link *chosen, int is_staying)
{
    double target = (is_staying && is_given_pieces(chosen) ? self->piece_s : self->slice_target_s) / self->item_s;
    Py_ssize_t room = target < (double)self->max_slice_items ? (Py_ssize_t)target : self->max_slice_items, idle = 0;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(self->workers); index++) {
        PyObject *worker = PyList_GET_ITEM(self->workers, index);
        if (PyObject_TypeCheck(worker, &Link_type)) {
            Link *link = (Link *)worker;
            idle += link->sessions > link->outstanding ? link->sessions - link->outstanding : 0;
        }
    }
    if (idle > 1 && !is_staying) {
        Py_ssize_t share = (key->items + idle - 1) / idle;
        room = share < room ? share : room;
    }
    return room > 1 ? room : 1;
}

/* ---------------------------------------------------------------- slices */

/* Give the first of a key's queue to a worker; -1 where memory is missing, and then nothing has happened. */
static int send_piece(Lane *self, Key *key, Link *link, int is_staying, double now)
{
    Py_ssize_t room = slice_room(self, key, link, is_staying), items = 0;
    for (const Entry *entry = key->first; entry && (!items || items + entry->count <= room); entry = entry->next)
        items += entry->count;
    size_t payload_len = LINK_SIGN_LEN + (size_t)items * DIGEST_LEN, frame_len = HEADER_LEN + payload_len;
    if (frame_len > self->frame_len) {
        uint8_t *frame = PyMem_Realloc(self->frame, frame_len);
        if (!frame)
            return -1;
        self->frame = frame;
        self->frame_len = frame_len;
    }
    PyObject *slot = PyDict_GetItemWithError(link->slots, key->name);
    unsigned long number = slot ? PyLong_AsUnsignedLong(slot) : 0;
    Piece *piece = slot && !PyErr_Occurred() ? PyMem_Malloc(sizeof *piece) : NULL;
    if (!piece) {
        PyErr_Clear();
        return -1;
    }
    *piece = (Piece){.sequence = EXPRESS_BIT | ++self->sequence,
                     .items = items,
                     .sent_at = now,
                     .queued_at = key->first->accepted_at};
    uint8_t *at = put_header(self->frame, payload_len, LINK_SIGN, piece->sequence);
    at = put_number(at, number, 4);
    at = put_number(at, 0, 4); /* form: digests */
    at = put_number(at, (uint64_t)items, 4);
    Entry **place = &piece->first;
    for (Py_ssize_t left = items; left;) {
        Entry *entry = take_first(self, key, 0);
        entry->is_sent = 1;
        memcpy(at, entry->digests, (size_t)entry->count * DIGEST_LEN);
        at += entry->count * DIGEST_LEN;
        left -= entry->count;
        *place = entry;
        place = &entry->next;
    }
    *place = NULL;
    if (key->first)
        turn(self);
    else
        leave_ring(self, key);
    Piece **last = &link->pieces;
    while (*last)
        last = &(*last)->next;
    *last = piece;
    if (!self->inflight_items)
        self->moved_at = self->busy_since = now;
    self->inflight_items += items;
    self->slices_given++;
    link->outstanding++;
    express_write(link->transport, &link->fd, self->frame, frame_len);
    return 0;
}

void lane_pump(Lane *self)
{
    while (self->first) {
        double now = express_now();
        int is_staying = stays(self, now);
        Link *link = NULL;
        const Key *first = self->first;
        while (!(link = choose_link(self, self->first, is_staying))) {
            turn(self);
            if (self->first == first)
                return;
        }
        if (send_piece(self, self->first, link, is_staying, now))
            return;
    }
}

/* What an entry was, for the dispatcher: (owner or None, key, request id, job id and first index, digests, priority,
 * accepted at, deadline at). The entry is gone after it. */
static PyObject *hand_over(Lane *self, Entry *entry)
{
    PyObject *owner = entry->client ? entry->client->owner : Py_None;
    PyObject *told = Py_BuildValue("(OOKy#y#idd)", owner, entry->key->name, (unsigned long long)entry->request_id,
                                   entry->job, (Py_ssize_t)JOB_AND_INDEX_LEN, entry->digests,
                                   (Py_ssize_t)entry->count * DIGEST_LEN, entry->priority, entry->accepted_at,
                                   entry->deadline_at);
    detach(self, entry);
    free_entry(self, entry);
    return told;
}

/* ---------------------------------------------------------------- Lane */

static PyObject *Lane_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slice_target_s", "max_slice_items", "stay_s", "stay_patience_s", "crowded_stay_s",
                            "crowded_patience_s", "piece_s", "ahead_s", "min_ahead_items", "max_queued_items",
                            "item_s", "spin_s", "processors", "seconds", "items", NULL};
    Lane *self = (Lane *)type->tp_alloc(type, 0);
    PyObject *seconds, *items;
    if (!self)
        return NULL;
    self->poll_fd = -1;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "$dnddddddnnddnO!O!:Lane", names, &self->slice_target_s, &self->max_slice_items, &self->stay_s,
            &self->stay_patience_s, &self->crowded_stay_s, &self->crowded_patience_s, &self->piece_s, &self->ahead_s,
            &self->min_ahead_items, &self->max_queued_items, &self->item_s, &self->spin_s, &self->processors,
            &PyTuple_Type, &seconds, &PyTuple_Type, &items) ||
        set_bounds(&self->request_s, seconds) || set_bounds(&self->queue_s, seconds) ||
        set_bounds(&self->execution_s, seconds) || set_bounds(&self->slice_items, items) ||
        !(self->workers = PyList_New(0)) || !(self->keys = PyDict_New()))
        Py_CLEAR(self);
    else
        self->wait_s = self->spin_s; /* nothing has come soon yet */
    return (PyObject *)self;
}

static int Lane_traverse(Lane *self, visitproc visit, void *arg)
{
    Py_VISIT(self->workers);
    Py_VISIT(self->keys);
    return 0;
}

static int Lane_clear(Lane *self)
{
    Py_CLEAR(self->workers);
    Py_CLEAR(self->keys);
    return 0;
}

static void Lane_dealloc(Lane *self)
{
    PyObject_GC_UnTrack(self);
    while (self->first) {
        Key *key = self->first;
        while (key->first) {
            Entry *entry = take_first(self, key, 0);
            if (!key->first)
                leave_ring(self, key);
            detach(self, entry);
            free_entry(self, entry);
        }
    }
    for (Entry *entry; (entry = self->free); PyMem_Free(entry))
        self->free = entry->next;
    PyMem_Free(self->frame);
    Lane_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *Lane_pump(Lane *self, PyObject *unused)
{
    (void)unused;
    lane_pump(self);
    Py_RETURN_NONE;
}

static PyObject *Lane_stays(Lane *self, PyObject *now_object)
{
    double now = PyFloat_AsDouble(now_object);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(is_little(self, self->stay_s, now));
}

static PyObject *Lane_take_waiting(Lane *self, PyObject *unused)
{
    (void)unused;
    PyObject *taken = PyList_New(0);
    while (taken && self->first) {
        Key *key = self->first;
        Entry *entry = take_first(self, key, 1);
        if (!key->first)
            leave_ring(self, key);
        PyObject *told = hand_over(self, entry);
        if (!told || PyList_Append(taken, told))
            Py_CLEAR(taken);
        Py_XDECREF(told);
    }
    return taken;
}

static PyObject *Lane_take_counts(Lane *self, PyObject *unused)
{
    (void)unused;
    PyObject *taken =
        Py_BuildValue("(NNNNKK)", take_histogram(&self->request_s), take_histogram(&self->queue_s),
                      take_histogram(&self->execution_s), take_histogram(&self->slice_items),
                      (unsigned long long)self->items_signed, (unsigned long long)self->items_failed);
    if (taken)
        self->items_signed = self->items_failed = 0;
    return taken;
}

/* Tell of one that is late, and let go of it. */
static int tell_late(Lane *self, Entry *entry, PyObject *late)
{
    PyObject *one = Py_BuildValue("(OKid)", entry->client->owner, (unsigned long long)entry->request_id, entry->count,
                                  entry->accepted_at);
    int failed = !one || PyList_Append(late, one);
    Py_XDECREF(one);
    detach(self, entry);
    return failed ? -1 : 0;
}

static int expire_queue(Lane *self, Key *key, double now, PyObject *late)
{
    Entry *kept = NULL, **place = &kept, *last = NULL, *next;
    int failed = 0;
    for (Entry *entry = key->first; entry; entry = next) {
        next = entry->next;
        if (failed || entry->deadline_at > now) {
            *place = last = entry;
            place = &entry->next;
            continue;
        }
        failed = tell_late(self, entry, late);
        key->items -= entry->count;
        self->waiting_items -= entry->count;
        self->queued_items -= entry->count;
        free_entry(self, entry);
    }
    *place = NULL;
    key->first = kept;
    key->last = last;
    return failed;
}

static PyObject *Lane_expire(Lane *self, PyObject *now_object)
{
    double now = PyFloat_AsDouble(now_object);
    PyObject *late = PyErr_Occurred() ? NULL : PyList_New(0);
    if (!late)
        return NULL;
    int failed = 0;
    Py_ssize_t keys = 0;
    for (const Key *key = self->first; key; key = key == self->last ? NULL : key->next)
        keys++;
    for (; keys && !failed; keys--) {
        Key *key = (Key *)Py_NewRef(self->first);
        failed = expire_queue(self, key, now, late);
        if (key->first)
            turn(self);
        else
            leave_ring(self, key);
        Py_DECREF(key);
    }
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(self->workers) && !failed; index++) {
        PyObject *worker = PyList_GET_ITEM(self->workers, index);
        if (!PyObject_TypeCheck(worker, &Link_type))
            continue;
        for (const Piece *piece = ((Link *)worker)->pieces; piece; piece = piece->next)
            for (Entry *entry = piece->first; entry && !failed; entry = entry->next)
                if (entry->client && entry->deadline_at <= now)
                    failed = tell_late(self, entry, late);
    }
    if (failed)
        Py_CLEAR(late);
    return late;
}

static PyObject *Lane_forget(Lane *self, PyObject *name)
{
    const Key *key = (Key *)PyDict_GetItemWithError(self->keys, name);
    if (PyErr_Occurred() || (key && !key->first && PyDict_DelItem(self->keys, name)))
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef Lane_methods[] = {
    {"pump", (PyCFunction)Lane_pump, METH_NOARGS, "pump()\n--\n\nGive what waits to workers that have room."},
    {"stays", (PyCFunction)Lane_stays, METH_O,
     "stays(now, /)\n--\n\nWhether there is so little to do that idle workers are not woken for it."},
    {"take_waiting", (PyCFunction)Lane_take_waiting, METH_NOARGS,
     "take_waiting()\n--\n\nHand over what waits, as a list of (owner, key, request id, job id and first index, digests, "
     "priority,\naccepted at, deadline at). It stays in queued_items."},
    {"take_counts", (PyCFunction)Lane_take_counts, METH_NOARGS,
     "take_counts()\n--\n\nWhat was counted since the last call: four of (counts, sum) - requests, queue, execution, items "
     "of slices -\nand items signed and failed."},
    {"expire", (PyCFunction)Lane_expire, METH_O,
     "expire(now, /)\n--\n\nLet go of what is late, and tell: a list of (owner, request id, count, accepted at)."},
    {"forget", (PyCFunction)Lane_forget, METH_O, "forget(key, /)\n--\n\nThe key is gone for good."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Lane_members[] = {
    {"workers", T_OBJECT_EX, offsetof(Lane, workers), READONLY, "The dispatcher's workers."},
    {"queued_items", T_PYSSIZET, offsetof(Lane, queued_items), 0, "Items that wait, the dispatcher's own among them."},
    {"inflight_items", T_PYSSIZET, offsetof(Lane, inflight_items), 0, "Items with workers, whoever gave them."},
    {"item_s", T_DOUBLE, offsetof(Lane, item_s), 0, "What an item takes inside a worker, lately."},
    {"moved_at", T_DOUBLE, offsetof(Lane, moved_at), 0, "The last answer, or the first slice given while there was none."},
    {"busy_since", T_DOUBLE, offsetof(Lane, busy_since), 0, "When there was last nothing with any worker, and then something."},
    {"slices_given", T_ULONGLONG, offsetof(Lane, slices_given), 0, "Slices given to workers, whoever gave them."},
    {"spins", T_ULONGLONG, offsetof(Lane, spins), READONLY, "How often it looked out for what comes next."},
    {"spins_ended", T_ULONGLONG, offsetof(Lane, spins_ended), READONLY, "How often something came meanwhile."},
    {"poll_fd", T_INT, offsetof(Lane, poll_fd), 0,
     "Readable where the event loop has something to do; -1 where it is to sleep at once."},
    {"held", T_INT, offsetof(Lane, held), 0, "Whether the lane takes nothing."},
    {"waiting_items", T_PYSSIZET, offsetof(Lane, waiting_items), READONLY, "Items that wait in the lane."},
    {"live", T_PYSSIZET, offsetof(Lane, live), READONLY, "Requests in the lane that somebody waits for."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject Lane_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "appliance._express.Lane",
    .tp_basicsize = sizeof(Lane),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = Lane_new,
    .tp_dealloc = (destructor)Lane_dealloc,
    .tp_traverse = (traverseproc)Lane_traverse,
    .tp_clear = (inquiry)Lane_clear,
    .tp_methods = Lane_methods,
    .tp_members = Lane_members,
    .tp_doc = "What waits before a token, and the numbers that its dispatcher counts with.",
};

/* ---------------------------------------------------------------- Link */

static PyObject *Link_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args, (void)kwargs; /* they are the subclass's */
    Link *self = (Link *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->fd = -1;
    self->sessions = self->batches = 1;
    if (!(self->slots = PyDict_New()))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int Link_traverse(Link *self, visitproc visit, void *arg)
{
    Py_VISIT(self->lane);
    Py_VISIT(self->transport);
    Py_VISIT(self->slots);
    return 0;
}

static void free_piece(Lane *lane, Piece *piece)
{
    for (Entry *entry; (entry = piece->first);) {
        piece->first = entry->next;
        detach(lane, entry);
        free_entry(lane, entry);
    }
    PyMem_Free(piece);
}

static int Link_clear(Link *self)
{
    for (Piece *piece; (piece = self->pieces);) {
        self->pieces = piece->next;
        free_piece(self->lane, piece);
    }
    Py_CLEAR(self->lane);
    Py_CLEAR(self->transport);
    Py_CLEAR(self->slots);
    return 0;
}

static void Link_dealloc(Link *self)
{
    PyObject_GC_UnTrack(self);
    Link_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *Link_attach(Link *self, PyObject *args)
{
    Lane *lane;
    PyObject *transport;
    int fd;
    if (!PyArg_ParseTuple(args, "O!Oi:attach", &Lane_type, &lane, &transport, &fd))
        return NULL;
    if (self->lane) {
        PyErr_SetString(PyExc_RuntimeError, "the link is attached already");
        return NULL;
    }
    self->lane = (Lane *)Py_NewRef(lane);
    self->transport = Py_NewRef(transport);
    self->fd = fd;
    Py_RETURN_NONE;
}

static PyObject *Link_detach(Link *self, PyObject *unused)
{
    (void)unused;
    self->fd = -1;
    Py_CLEAR(self->transport);
    Py_RETURN_NONE;
}

/* The piece that an answer of that sequence is to, out of its list. */
static Piece *unlink_piece(Link *self, uint64_t sequence)
{
    for (Piece **place = &self->pieces; *place; place = &(*place)->next)
        if ((*place)->sequence == sequence) {
            Piece *piece = *place;
            *place = piece->next;
            return piece;
        }
    return NULL;
}

/* A whole answer's blocks, where all of it was done and as many items are in it as were asked for. */
static const uint8_t *whole_answer(const Link *self, const uint8_t *frame, Py_ssize_t payload_len)
{
    const uint8_t *payload = frame + HEADER_LEN;
    uint64_t sequence = get_number(frame + 8, 8), count = get_number(payload, 4);
    if (!(sequence & EXPRESS_BIT) || get_number(payload + DONE_AT, 4) != count || get_number(payload + RV_AT, 8))
        return NULL;
    if (payload_len != LINK_SIGNED_LEN + (Py_ssize_t)count * (1 + SIGNATURE_LEN))
        return NULL;
    const Piece *piece = self->pieces;
    while (piece && piece->sequence != sequence)
        piece = piece->next;
    return piece && (uint64_t)piece->items == count ? payload + LINK_SIGNED_LEN : NULL;
}

static void end_piece(Lane *lane, Piece *piece, const uint8_t *statuses, double now, Client **dirty)
{
    const uint8_t *signatures = statuses + piece->items;
    for (Entry *entry; (entry = piece->first);) {
        piece->first = entry->next;
        if (entry->client) {
            int failed = 0;
            for (int index = 0; index < entry->count; index++)
                failed += statuses[index] != 0;
            Client *client = entry->client;
            if (client_answer(client, entry, statuses, signatures, failed, dirty) == 0) {
                observe(&lane->request_s, now - entry->accepted_at);
                lane->items_signed += (uint64_t)(entry->count - failed);
                lane->items_failed += (uint64_t)failed;
            }
            detach(lane, entry);
            client_close(client, entry->request_id, entry->count);
        }
        statuses += entry->count;
        signatures += entry->count * SIGNATURE_LEN;
        free_entry(lane, entry);
    }
    PyMem_Free(piece);
}

static PyObject *Link_answered(Link *self, PyObject *data)
{
    if (!PyBytes_Check(data))
        return PyErr_Format(PyExc_TypeError, "answered takes bytes");
    Lane *lane = self->lane;
    const uint8_t *begin = (const uint8_t *)PyBytes_AS_STRING(data), *end = begin + PyBytes_GET_SIZE(data), *at = begin;
    Client *dirty = NULL;
    if (self->pieces)
        lane_woke(lane, express_now());
    while (self->pieces && at < end) {
        Py_ssize_t payload_len = payload_of(at, end - at, LINK_SIGNED, LINK_SIGNED_LEN);
        const uint8_t *statuses = payload_len < 0 ? NULL : whole_answer(self, at, payload_len);
        if (!statuses)
            break;
        double now = express_now(), execution_s = (double)get_number(at + HEADER_LEN + EXECUTION_AT, 8) / 1e9;
        Piece *piece = unlink_piece(self, get_number(at + 8, 8));
        self->outstanding--;
        lane->inflight_items -= piece->items;
        lane->moved_at = now;
        lane->item_s += EWMA_WEIGHT * (execution_s / (double)piece->items - lane->item_s);
        if (lane->item_s < MIN_ITEM_S)
            lane->item_s = MIN_ITEM_S;
        observe(&lane->queue_s, piece->sent_at - piece->queued_at);
        observe(&lane->execution_s, execution_s);
        observe(&lane->slice_items, (double)piece->items);
        end_piece(lane, piece, statuses, now, &dirty);
        at += HEADER_LEN + payload_len;
    }
    if (at > begin) {
        lane_pump(lane); /* the token first */
        clients_flush(dirty);
        if (at == end)
            lane_spin(lane);
    }
    return PyLong_FromSsize_t(at - begin);
}

/* (sent at, its entries), and the piece is gone. */
static PyObject *hand_over_piece(Link *self, Piece *piece)
{
    PyObject *entries = PyList_New(0);
    for (Entry *entry; entries && (entry = piece->first);) {
        piece->first = entry->next;
        PyObject *told = hand_over(self->lane, entry);
        if (!told || PyList_Append(entries, told))
            Py_CLEAR(entries);
        Py_XDECREF(told);
    }
    PyObject *taken = entries ? Py_BuildValue("(dN)", piece->sent_at, entries) : NULL;
    free_piece(self->lane, piece);
    return taken;
}

static PyObject *Link_take_piece(Link *self, PyObject *sequence_object)
{
    uint64_t sequence = PyLong_AsUnsignedLongLong(sequence_object);
    if (PyErr_Occurred())
        return NULL;
    Piece *piece = unlink_piece(self, sequence);
    if (!piece)
        Py_RETURN_NONE;
    return hand_over_piece(self, piece);
}

static PyObject *Link_sequences(Link *self, void *unused)
{
    (void)unused;
    PyObject *found = PyList_New(0);
    for (const Piece *piece = self->pieces; found && piece; piece = piece->next) {
        PyObject *one = PyLong_FromUnsignedLongLong(piece->sequence);
        if (!one || PyList_Append(found, one))
            Py_CLEAR(found);
        Py_XDECREF(one);
    }
    return found;
}

static PyObject *Link_oldest_sent_at(Link *self, void *unused)
{
    (void)unused;
    if (!self->pieces)
        Py_RETURN_NONE;
    return PyFloat_FromDouble(self->pieces->sent_at);
}

static PyMethodDef Link_methods[] = {
    {"attach", (PyCFunction)Link_attach, METH_VARARGS,
     "attach(lane, transport, fd, /)\n--\n\nGive it its transport, whose socket is fd until `detach`."},
    {"detach", (PyCFunction)Link_detach, METH_NOARGS, "detach()\n--\n\nThe transport has gone."},
    {"answered", (PyCFunction)Link_answered, METH_O,
     "answered(data, /)\n--\n\nTake whole answers to the lane's slices from the front of it and pass them on; how many bytes "
     "that were."},
    {"take_piece", (PyCFunction)Link_take_piece, METH_O,
     "take_piece(sequence, /)\n--\n\nHand over one of the lane's slices: (sent at, entries as `Lane.take_waiting` tells them, "
     "the owner None\nwhere nobody waits any more). None where there is none of that sequence. It stays in inflight_items."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Link_members[] = {
    {"sessions", T_PYSSIZET, offsetof(Link, sessions), 0, "How many slices it signs at a time."},
    {"outstanding", T_PYSSIZET, offsetof(Link, outstanding), 0, "Slices that it has been given and not answered."},
    {"batches", T_INT, offsetof(Link, batches), 0, "Whether an item costs it less in a larger slice."},
    {"slots", T_OBJECT_EX, offsetof(Link, slots), READONLY, "Key -> slot, for what is loaded and has passed its self-test."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Link_getset[] = {
    {"sequences", (getter)Link_sequences, NULL, "Of the lane's slices, the oldest first.", NULL},
    {"oldest_sent_at", (getter)Link_oldest_sent_at, NULL, "When the oldest of the lane's slices was sent, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject Link_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "appliance._express.Link",
    .tp_basicsize = sizeof(Link),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = Link_new,
    .tp_dealloc = (destructor)Link_dealloc,
    .tp_traverse = (traverseproc)Link_traverse,
    .tp_clear = (inquiry)Link_clear,
    .tp_methods = Link_methods,
    .tp_members = Link_members,
    .tp_getset = Link_getset,
    .tp_doc = "A worker, as the lane sees it: base of signers.SignerWorker.",
};
