/* The session, as the runtime and the owners of models without machine code see it. Public calls are in quern.h. */
#ifndef QN_RUNTIME_SESSION_H
#define QN_RUNTIME_SESSION_H

#include "runtime/model.h"
#include "runtime/tensor.h"

/* One buffer of the session's entry. */
typedef struct qn_slot {
    const quern_buffer_info *info;
    int64_t *dims;        /* info->rank values: of the bound array, or what the symbols give */
    int64_t *found_dims;  /* likewise: of an output whose extent the run has found */
    qn_memory memory;     /* owned; empty while the buffer is somebody else's */
    size_t bytes;         /* of the dims */
    bool bound;           /* to the caller's memory */
    bool on_device;       /* that is, of the device that the model runs on */
    quern_tensor *tensor; /* that it is bound to, retained; NULL: it is none */
    bool shared;          /* a state of another session */
    bool has_dims;        /* dims are known */
    bool lent;            /* an input whose owned memory the caller has asked for: it need not be bound */
} qn_slot;

struct quern_session {
    bool ready; /* symbols, dims, outputs and workspace fit what is bound */
    int (*run)(void *io, void *workspace, quern_ctx *ctx);
    void **io; /* n_buffers addresses, then n_symbols values */
    qn_memory workspace;
    quern_ctx ctx;
    int64_t *symbols; /* in io */
    quern_model *model;
    quern_pool *pool; /* borrowed; NULL: none */
    const quern_entry_info *entry;
    int entry_index, n_buffers, n_symbols;
    quern_strings *strings; /* its own, where the model needs some; ctx has it or another one */
    bool decided;           /* some symbol is found by the run */
    bool *known;            /* per symbol, while symbols are being found */
    qn_slot *slots;
};

/* Gives the output of a model without machine code its dims; memory is found for it unless it is bound, which is an
 * error when the dims differ. The address is in session->io. */
int qn_session_resize(quern_session *session, int index, const int64_t *dims);

/* Runs a session that is ready, without what the model does around a run. */
int qn_session_run_plainly(quern_session *session);

/* Dims of a buffer for these values of the entry's symbols. */
void qn_session_shape(const quern_session *session, int index, const int64_t *symbols, int64_t *out_dims);

/* Bytes of an array; false: no machine has so many. */
bool qn_bytes_of(int dtype, int rank, const int64_t *dims, size_t *out);

#endif
