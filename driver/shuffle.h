/* Pseudo-random numbers that decide nothing but where training starts and in which order it sees its samples; and taking these. */
#ifndef QN_DRIVER_SHUFFLE_H
#define QN_DRIVER_SHUFFLE_H

#include <stdint.h>

#include "quern.h"

uint64_t qn_random_next(uint64_t *state);                 /* splitmix64 */
uint64_t qn_random_start(uint64_t seed, uint64_t number); /* the state of stream `number` of a seed */
/* order = 0 .. n-1 in an order that the two numbers decide. */
void qn_random_order(int64_t n, int64_t *order, uint64_t seed, uint64_t number);
/* Copies the samples order[0 .. n-1], which lie along an axis, to `out`: the array with n along that axis. */
void qn_samples_take(const quern_array *from, int axis, const int64_t *order, int64_t n, void *out);

#endif
