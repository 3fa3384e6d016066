/* A compiled model as sessions see it: the tables of quern_abi.h, the weights, and the threads it runs on. A shared
 * object, code from the JIT and the interpreter are the same structure with another owner.
 *
 * Immutable once made; any thread may use it. Whoever makes one fills in all fields and `release`. */
#ifndef QN_RUNTIME_MODEL_H
#define QN_RUNTIME_MODEL_H

#include <stdbool.h>

#include "quern.h"
#include "runtime/device.h"
#include "runtime/memory.h"

/* What a model does around each run of a session, for options that look at results. */
typedef struct qn_around {
    int (*run)(struct qn_around *around, quern_session *session); /* calls qn_session_run_plainly */
    void (*release)(struct qn_around *around);
} qn_around;

struct quern_model {
    const quern_model_info *info;
    const void *weights; /* lent to each run as quern_ctx.weights; NULL: they are in the object */
    int threads;         /* of a run; 1: on the caller's alone */
    qn_device *device;   /* that it runs on; NULL: the CPU */
    /* Instead of the entries' own functions, for a model without machine code: runs what the session has bound.
     * Outputs that the session owns may be given other dims, with qn_session_resize. NULL: the entry's `run`. */
    int (*run)(quern_session *session);
    /* Likewise instead of the entry's `shape`; such a model has no workspace. NULL where `run` is. */
    void (*shape)(const quern_model *model, int entry, int buffer, const int64_t *symbols, int64_t *out_dims);
    qn_around *around;                   /* or NULL */
    void (*release)(quern_model *model); /* frees the owner's part and the structure itself */
    void *owner;
};

/* Tables may come from an object whose structures are longer (newer) or shorter (older) than ours: element i of a table
 * lies at i times the size that its elements state. */
const quern_entry_info *qn_entry_at(const quern_model_info *info, int i);
const quern_buffer_info *qn_buffer_at(const quern_entry_info *entry, int i);
const quern_symbol_info *qn_symbol_at(const quern_entry_info *entry, int i);
/* Does the structure that `info` points to reach as far as this field? */
#define QN_HAS_FIELD(info, field) \
    ((info)->size >= (size_t)((const char *)(&(info)->field + 1) - (const char *)(info)))

/* One pool per number of threads for the whole process, made when first asked for: models that run in turn keep the same
 * workers warm. NULL for one thread. */
quern_pool *qn_pool_borrow(int threads);
void qn_pool_return(quern_pool *pool); /* NULL is fine */

/* The prefix of the C symbols of a model in the file at `path`: its name without folder and ending, other characters
 * than letters and digits as '_', 'm' in front of a digit. At most size - 1 characters. */
void qn_prefix_from_path(const char *path, char *out, size_t size);

#endif
