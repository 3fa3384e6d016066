/* A folder of its own for a test, which may be a cache. */
#ifndef QN_TESTS_FOLDER_H
#define QN_TESTS_FOLDER_H

#include "driver/cache.h"

typedef struct fixture {
    qn_arena *arena;
    qn_diags diags;
    char folder[64];
    qn_cache cache; /* in it, after setup_cache */
} fixture;

/* Of cmocka: *state is a fixture. The folder goes with what is in it. */
int setup_folder(void **state);
int teardown_folder(void **state);
int setup_cache(void **state);
int teardown_cache(void **state);

const char *in_folder(fixture *f, const char *name);

#endif
