/* A cache in a folder of its own, for tests. */
#ifndef QN_TESTS_CACHE_FOLDER_H
#define QN_TESTS_CACHE_FOLDER_H

#include "driver/cache.h"

typedef struct fixture {
    qn_arena *arena;
    qn_diags diags;
    qn_cache cache;
    char folder[64];
} fixture;

/* Of cmocka: *state is a fixture. */
int setup_cache(void **state);
int teardown_cache(void **state);

#endif
