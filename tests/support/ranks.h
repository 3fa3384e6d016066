/* Ranks that are threads of a test. */
#ifndef QN_TESTS_RANKS_H
#define QN_TESTS_RANKS_H

#include "quern.h"

enum { MOST_RANKS = 5 };

/* `body` for each rank, in a thread. Checks are made afterwards: cmocka's fail in the test's own thread alone. */
void on_ranks(int ranks, void (*body)(quern_comm *comm, void *arg), void *arg);

/* Of a rank's input: small, and exact in every type. */
double number(int rank, int64_t i);

#endif
