/* The timing model's bookings, on a clock of our own: no sleeping, no measuring. */
#include "../src/timing.h"

#include <stdio.h>
#include <stdlib.h>

static void expect(const char *what, uint64_t got, uint64_t wanted) {
    if (got == wanted)
        return;
    fprintf(stderr, "%s: %llu instead of %llu\n", what, (unsigned long long)got, (unsigned long long)wanted);
    exit(1);
}

int main(void) {
    struct timing one, three;
    if (timing_start(&one, 10, 1, 0) != 0 || timing_start(&three, 10, 3, 0) != 0)
        return 1;
    expect("an idle engine", timing_book(&one, 1000, 1), 11000);
    expect("a busy engine queues", timing_book(&one, 2000, 1), 21000);
    expect("and is idle again", timing_book(&one, 50000, 1), 60000);
    expect("a batch on one engine", timing_book(&one, 100000, 5), 150000);
    expect("three engines, first", timing_book(&three, 0, 1), 10000);
    expect("three engines, second", timing_book(&three, 0, 1), 10000);
    expect("three engines, third", timing_book(&three, 0, 1), 10000);
    expect("three engines, fourth waits", timing_book(&three, 0, 1), 20000);
    expect("a batch spreads", timing_book(&three, 100000, 6), 120000);
    expect("nothing to do", timing_book(&three, 500, 0), 500);
    timing_stop(&one);
    timing_stop(&three);
    return 0;
}
