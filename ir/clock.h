/* clock.h: the time that something took. */
#ifndef QN_IR_CLOCK_H
#define QN_IR_CLOCK_H

#include <time.h>

/* Seconds since some moment before the process. */
static inline double qn_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
