/* Before the loop sleeps: a lane that has answers due looks out for them for a while. See express.h.
 *
 * To wake a thread costs its sender as much as a lone request costs the front, and on a virtual machine a processor that
 * sleeps takes longer to wake than many a token takes to sign. So where what comes next has lately come soon, the loop's
 * thread asks for it again and again, for spin_s, before it goes back to the loop, which sleeps.
 *
 * - It ends as soon as the loop has anything to do, whoever it is for. Timers and callbacks that are due wait for spin_s
 *   at most.
 * - It needs an answer that is due, and a processor that no busy worker wants. Where workers are busy on all of them
 *   they are not to be robbed of one, and answers then come many at a time anyway.
 * - The GIL and the processor are offered each time round, and somebody who takes the processor is left alone with it
 *   for a while.
 * - Nothing here decides what is signed or answered, or when: without it everything happens in the same order, later. */
#include "express.h"

#include <sched.h>
#include <sys/epoll.h>

/* A wait counts as at most so many times spin_s, so that the end of a rest is noticed after some twenty requests; the
 * newest one has this share of the average. */
static const double MAX_WAIT_SPINS = 4, WAIT_SHARE = 1.0 / 8;
/* Whoever was given the processor and kept it for so long computes on it: most likely a worker or a caller, whose work is
 * what we wait for. It is left to them for so many times as long, and we sleep, so that the system finds us another. */
static const double CROWDED_S = 60e-6, CROWDED_PAUSES = 8;

void lane_woke(Lane *self, double now)
{
    double waited = now - self->idle_since, most = MAX_WAIT_SPINS * self->spin_s;
    self->wait_s += WAIT_SHARE * ((waited < most ? waited : most) - self->wait_s);
}

static int has_a_processor(const Lane *self)
{
    Py_ssize_t busy = 0;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(self->workers); index++) {
        PyObject *worker = PyList_GET_ITEM(self->workers, index);
        busy += PyObject_TypeCheck(worker, &Link_type) && ((Link *)worker)->outstanding;
    }
    return busy < self->processors;
}

void lane_spin(Lane *self)
{
    double before = self->idle_since = express_now(), until = before + self->spin_s;
    if (self->poll_fd < 0 || !self->inflight_items || self->held || self->wait_s >= self->spin_s / 2 ||
        before < self->crowded_until || !has_a_processor(self))
        return;
    int found = 0;
    self->spins++;
    Py_BEGIN_ALLOW_THREADS
    struct epoll_event ready;
    while (before < until && !(found = epoll_wait(self->poll_fd, &ready, 1, 0))) {
        sched_yield();
        double now = express_now();
        if (now - before > CROWDED_S) {
            self->crowded_until = now + CROWDED_PAUSES * (now - before);
            break;
        }
        before = now;
    }
    Py_END_ALLOW_THREADS
    self->spins_ended += found > 0;
}
