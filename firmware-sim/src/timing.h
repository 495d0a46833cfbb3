/* The timing model: how long a signature and a call would take on a device that is not in this machine.
 *
 * `engines` parallel engines, each busy for `service_us` with one signature, and `round_trip_us` for every
 * call. A signature books the engine that is free first; the caller then sleeps until its booking ends.
 * Bookings are made under a mutex and slept for outside of it, so 60 sessions keep 60 jobs outstanding. Per
 * process: the engines of two processes do not know of each other.
 */
#ifndef FIRMWARE_SIM_TIMING_H
#define FIRMWARE_SIM_TIMING_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct timing {
    pthread_mutex_t lock;
    uint64_t service_ns, round_trip_ns;
    size_t engines;
    uint64_t *free_at_ns; /* lock; per engine, on the monotonic clock */
};

int timing_start(struct timing *timing, unsigned long service_us, unsigned long engines,
                 unsigned long round_trip_us);
void timing_stop(struct timing *timing);

/* Book `count` signatures from `now_ns` on: the instant at which the last of them is done. Pure but for the
 * table. */
uint64_t timing_book(struct timing *timing, uint64_t now_ns, size_t count);

/* Sleep as the model says; at once where it is off. */
uint64_t timing_now(void);
void timing_wait_until(uint64_t at_ns);
void timing_round_trip(const struct timing *timing);

#endif
