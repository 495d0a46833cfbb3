/* appliance._express: small SIGN requests on their way from a client to a worker and back, without a Python object each.
 *
 * For: what a lone request pays for. A request of up to MAX_ITEMS digests under a key that its connection was allowed
 * lately is read, counted against the window, queued, given to a worker together with whatever else waits for that key,
 * and answered, here. The rules are those of server.py, session.py, pipeline.py and dispatch.py.
 * Not for: anything else. Whatever is not plainly such a request is left where it is, and the general way reads the same
 * bytes and has the words; whatever goes wrong with one (its worker dies, its token stops) is handed over to the
 * dispatcher, as if it had come to it in the first place.
 *
 * - Nobody is authorised here. The general way authorises a request and then allows its connection that key;
 *   withdraw() ends all that was ever allowed, and is called whenever an account, a key or a token changes. A request
 *   is looked at against what holds now, as every other.
 * - A lane takes nothing while the dispatcher before the same token has anything queued (`held`): who came first goes
 *   first, and interactive and bulk work share as they always do.
 * - One thread, the event loop's, owns everything here, and holds the GIL. Nothing waits; what looks out for the next
 *   answer before the loop sleeps (express_spin.c) gives the GIL and the processor to whoever wants them.
 * - Memory: MAX_ENTRIES requests a lane, each of a fixed size. They hold no permit, for they hold none of what was
 *   received.
 *
 * Crash story: a request is an Entry from the moment it is counted against its window until its answer is in its client's
 * buffer. It is in one place at a time: in its key's queue, or in one piece with one worker. An answer is taken from a
 * piece once, for the piece is gone with it; a worker that dies has its pieces taken from it, and they are the
 * dispatcher's from then on. A client that has gone leaves its entries without an owner: what was sent is signed for
 * nobody. */
#ifndef EXPRESS_H
#define EXPRESS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "frames.h"

enum { PRIORITY_INTERACTIVE = 1 };
/* Up to here a request that names no priority is interactive (dispatch.INTERACTIVE_MAX_ITEMS). */
enum { MAX_ITEMS = 16 };
enum { MAX_ENTRIES = 4096 };
/* Sequences of the lane's own slices have this bit; the general way counts from 1. */
#define EXPRESS_BIT (UINT64_C(1) << 63)

enum { MAX_BOUNDS = 32 };

typedef struct Entry Entry;
typedef struct Piece Piece;
typedef struct Key Key;
typedef struct Lane Lane;
typedef struct Link Link;
typedef struct Client Client;

/* A request. `client` is NULL once nobody waits for it. */
struct Entry {
    Client *client;             /* borrowed: a client that goes lets go of its entries first */
    Key *key;
    Entry *next;                /* in its key's queue or its piece */
    Entry *before, *after;      /* among its client's */
    double accepted_at, deadline_at;
    uint64_t request_id;
    int count, priority, is_sent;
    uint8_t job[JOB_AND_INDEX_LEN];
    uint8_t digests[MAX_ITEMS * DIGEST_LEN];
};

/* What a worker was given at once: entries of one key. */
struct Piece {
    Piece *next;
    Entry *first;
    uint64_t sequence;
    double sent_at, queued_at;
    Py_ssize_t items;
};

/* A key's queue; in its lane's ring while it is not empty. */
struct Key {
    PyObject_HEAD
    Lane *lane;                 /* borrowed: who holds a key holds its lane */
    PyObject *name;
    Entry *first, *last;
    Py_ssize_t items;
    Key *next;
};

/* What was counted since it was last asked for; bounds are the histograms', ascending. */
typedef struct {
    double bounds[MAX_BOUNDS];
    Py_ssize_t bound_count;
    uint64_t counts[MAX_BOUNDS + 1];
    double sum;
} Histogram;

struct Lane {
    PyObject_HEAD
    PyObject *workers;          /* the dispatcher's list */
    PyObject *keys;             /* name -> Key */
    double slice_target_s, stay_s, stay_patience_s, crowded_stay_s, crowded_patience_s, piece_s, ahead_s;
    Py_ssize_t max_slice_items, min_ahead_items, max_queued_items, processors;
    /* Of the whole dispatcher, which counts here too. */
    double item_s, moved_at, busy_since;
    Py_ssize_t queued_items, inflight_items;
    int held;
    /* Of the lane. */
    Key *first, *last;          /* a ring of keys: the first one's turn is next */
    Py_ssize_t waiting_items, live;
    Py_ssize_t entry_count;
    Entry *free;
    uint64_t sequence;
    uint8_t *frame;             /* where a slice's frame is put together */
    size_t frame_len;
    Histogram request_s, queue_s, execution_s, slice_items;
    uint64_t items_signed, items_failed;
    /* Before the loop sleeps (express_spin.c). */
    int poll_fd;                /* readable where the loop has something to do; -1: it sleeps at once */
    double spin_s, wait_s, idle_since, crowded_until;
    uint64_t slices_given;          /* to workers, by whomever */
    uint64_t spins, spins_ended;    /* how often it looked out, and how often something came meanwhile */
};

struct Link {
    PyObject_HEAD
    Lane *lane;
    PyObject *transport;
    PyObject *slots;            /* name -> slot: the worker's own dict */
    int fd;                     /* the transport's, valid until it is detached; -1 where there is none to write to */
    Py_ssize_t sessions, outstanding;
    int batches;                /* an item costs it less in a larger slice */
    Piece *pieces;              /* the oldest first */
};

typedef struct {
    Key *key;
    Lane *lane;                 /* the key's */
    uint64_t generation;
    double default_deadline_s, max_deadline_s;
    uint8_t name_len;
    char name[MAX_NAME_LEN];
} Grant;

enum { MAX_GRANTS = 8 };

struct Client {
    PyObject_HEAD
    PyObject *owner, *transport;
    int fd;                     /* as Link's; -1 as well where bytes are not the socket's (TLS) */
    Py_ssize_t max_requests, max_items;
    /* The window: ids of what is not answered, by open addressing, 0 for a free place. */
    uint64_t *ids;
    size_t id_room;             /* a power of two */
    Py_ssize_t requests, items;
    Grant grants[MAX_GRANTS];
    unsigned next_grant;
    Entry *entries;
    uint8_t *output;
    size_t output_len, output_room;
    Client *next_dirty;
    int is_dirty;
};

extern PyTypeObject Key_type, Lane_type, Link_type, Client_type;
/* What was allowed in an earlier generation holds no more. */
extern uint64_t express_generation;

/* time.monotonic(). */
double express_now(void);

/* Hand bytes to a transport, past it where nothing waits in it. `fd` becomes -1 where that can be done no more. A
 * transport that is closing drops them; what goes wrong is its owner's to see. */
void express_write(PyObject *transport, int *fd, const uint8_t *block, size_t len);

/* Lane (express_lane.c) */
Key *lane_key(Lane *self, PyObject *name);              /* a new reference */
int lane_accepts(Lane *self, const Key *key, Py_ssize_t items);
Entry *lane_new_entry(Lane *self);                      /* NULL where there is no room */
void lane_discard(Entry *entry);                        /* it was not appended */
void lane_append(Entry *entry);
void lane_let_go(Entry *entry);                         /* its client has gone */
void lane_pump(Lane *self);

/* Before the loop sleeps (express_spin.c) */
void lane_woke(Lane *self, double now);                 /* something for the lane has come */
void lane_spin(Lane *self);                             /* all that came has been seen to */

/* Client (express_client.c) */
void client_forget_entry(Entry *entry);                 /* takes it from its client's list */
void client_close(Client *self, uint64_t request_id, Py_ssize_t items);
/* A SIGNED with these results into its buffer, and itself onto the list of those that have something to send. */
int client_answer(Client *self, const Entry *entry, const uint8_t *statuses, const uint8_t *signatures, int failed,
                  Client **dirty);
void clients_flush(Client *dirty);

#endif
