#include "timing.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

int timing_start(struct timing *timing, unsigned long service_us, unsigned long engines,
                 unsigned long round_trip_us) {
    timing->service_ns = service_us * 1000UL;
    timing->round_trip_ns = round_trip_us * 1000UL;
    timing->engines = engines;
    timing->free_at_ns = calloc(engines, sizeof *timing->free_at_ns);
    pthread_mutex_init(&timing->lock, NULL);
    return timing->free_at_ns ? 0 : -1;
}

void timing_stop(struct timing *timing) {
    pthread_mutex_destroy(&timing->lock);
    free(timing->free_at_ns);
}

uint64_t timing_book(struct timing *timing, uint64_t now_ns, size_t count) {
    uint64_t done_ns = now_ns;
    pthread_mutex_lock(&timing->lock);
    while (count--) {
        size_t first = 0;
        for (size_t i = 1; i < timing->engines; i++)
            if (timing->free_at_ns[i] < timing->free_at_ns[first])
                first = i;
        uint64_t start_ns = timing->free_at_ns[first] > now_ns ? timing->free_at_ns[first] : now_ns;
        timing->free_at_ns[first] = start_ns + timing->service_ns;
        if (timing->free_at_ns[first] > done_ns)
            done_ns = timing->free_at_ns[first];
    }
    pthread_mutex_unlock(&timing->lock);
    return done_ns;
}

uint64_t timing_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

void timing_wait_until(uint64_t at_ns) {
    struct timespec at = {.tv_sec = (time_t)(at_ns / 1000000000U), .tv_nsec = (long)(at_ns % 1000000000U)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
}

void timing_round_trip(const struct timing *timing) {
    if (timing->round_trip_ns)
        timing_wait_until(timing_now() + timing->round_trip_ns);
}
