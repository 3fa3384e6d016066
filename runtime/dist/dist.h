/* What implementations of quern_comm share: the arithmetic of collectives and the comparison of what ranks ask for. Needs nothing
 * but quern_abi.h, so that libquern_mpi can have a copy of its own. Any thread may call these. */
#ifndef QN_RUNTIME_DIST_H
#define QN_RUNTIME_DIST_H

#include <stdbool.h>

#include "quern_abi.h"

typedef enum qn_request_kind {
    QN_ALL_REDUCE,
    QN_ALL_GATHER,
    QN_REDUCE_SCATTER,
    QN_BROADCAST,
    QN_LEAVE /* no collective any more; n, dtype and how are 0 */
} qn_request_kind;

/* What a rank asks for; ranks exchange these before they exchange elements. */
typedef struct qn_request {
    int64_t kind, n, dtype, how;
} qn_request;

enum { QN_DIST_TEXT = 512 }; /* room for a message */

/* Bytes of an element; 0 for an unknown type. */
size_t qn_dist_size(int64_t dtype);
/* Is this a request that a rank can make among so many? Otherwise a message in `out`. */
bool qn_dist_sound(const qn_request *request, int ranks, char *out);
/* Do all ranks ask for the same? Otherwise a message in `out`. */
bool qn_dist_agree(const qn_request *requests, int ranks, char *out);
/* out[i] = in[0][i] with in[1][i], …, in[ranks - 1][i], in this order; out may be one of them. */
void qn_dist_combine(int64_t dtype, int64_t how, int ranks, const void *const *in, void *out, int64_t n);
/* Where the part of rank `rank` of n elements begins; of `ranks`: the end. */
static inline int64_t qn_dist_part(int64_t n, int rank, int ranks)
{
    return n / ranks * rank + n % ranks * rank / ranks;
}

#endif
