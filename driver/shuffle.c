/* Pseudo-random numbers, and samples in their order: see shuffle.h. */
#include "driver/shuffle.h"

#include <string.h>

uint64_t qn_random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t qn_random_start(uint64_t seed, uint64_t number)
{
    return seed * 0x2545f4914f6cdd1du + number;
}

void qn_random_order(int64_t n, int64_t *order, uint64_t seed, uint64_t number)
{
    uint64_t state = qn_random_start(seed, number);
    for (int64_t i = 0; i < n; i++)
        order[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        const int64_t k = (int64_t)(qn_random_next(&state) % (uint64_t)(i + 1));
        const int64_t kept = order[i];
        order[i] = order[k];
        order[k] = kept;
    }
}

void qn_samples_take(const quern_array *from, int axis, const int64_t *order, int64_t n, void *out)
{
    size_t bytes = quern_dtype_size(from->dtype);
    int64_t n_outer = 1;
    for (int i = 0; i < from->rank; i++) {
        n_outer *= i < axis ? from->dims[i] : 1;
        bytes *= i > axis ? (size_t)from->dims[i] : 1;
    }
    const char *at = from->data;
    char *to = out;
    for (int64_t outer = 0; outer < n_outer; outer++, at += (size_t)from->dims[axis] * bytes)
        for (int64_t i = 0; i < n; i++, to += bytes)
            memcpy(to, at + (size_t)order[i] * bytes, bytes);
}
