/* Pseudo-random numbers that decide nothing but where training starts and in which order it sees its samples. */
#ifndef QN_DRIVER_SHUFFLE_H
#define QN_DRIVER_SHUFFLE_H

#include <stdint.h>

uint64_t qn_random_next(uint64_t *state);                 /* splitmix64 */
uint64_t qn_random_start(uint64_t seed, uint64_t number); /* the state of stream `number` of a seed */
/* order = 0 .. n-1 in an order that the two numbers decide. */
void qn_random_order(int64_t n, int64_t *order, uint64_t seed, uint64_t number);

#endif
