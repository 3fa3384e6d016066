/* Behind quern.h: what its files share. */
#ifndef QN_DRIVER_API_H
#define QN_DRIVER_API_H

#include <stdatomic.h>

#include "ir/graph.h"
#include "quern.h"
#include "runtime/model.h"

/* A module handle. Models that need the graph after compiling (the interpreter's) keep it alive: the last user frees it. */
struct quern_module {
    qn_module *ir;
    void *bytes; /* what `ir` points into, when it came from memory; or NULL */
    atomic_int users;
};

quern_module *qn_handle_new(qn_module *ir, void *bytes);
void qn_handle_release(quern_module *handle); /* NULL is fine */

/* One call of the API at work: an arena for its temporary memory and its diagnostics. */
typedef struct qn_call {
    qn_arena *arena;
    qn_diags diags;
} qn_call;

void qn_call_begin(qn_call *call);
/* Frees it; keeps the diagnostics for quern_last_error where status is an error. Gives the status. */
int qn_call_end(qn_call *call, qn_status status);
/* Is the argument there? Else reports "FUNCTION: NAME is NULL". */
qn_status qn_call_need(qn_call *call, const void *argument, const char *function, const char *name);

/* Is the size set that an options structure begins with? Of 0, which its caller forgot, no option would count. NULL is fine. */
QN_MUST_USE qn_status qn_need_size(const void *options, const char *type, qn_diags *diags);

/* A copy of the caller's options structure, which may be shorter (older) or longer (newer) than ours; zeros for NULL. */
#define QN_OPTIONS(type, name, given) \
    type name = { 0 };                \
    if (given)                        \
    memcpy(&name, (given), (given)->size < sizeof name ? (given)->size : sizeof name)

/* ---- loading: api_module.c ---- */

/* By contents; path NULL: from memory. What quern_load does, for the command line. */
QN_MUST_USE qn_status qn_load_module(const char *path, const void *data, size_t size,
                                     const quern_load_options *options, qn_module **out, qn_diags *diags);

/* Is the file, which may be absent, Quern's text rather than ONNX? */
bool qn_is_text_model(const char *path);

/* What quern_grad and quern_jvp do. */
QN_MUST_USE qn_status qn_add_gradient(qn_module *module, const char *function, const char *loss, int n_wrt,
                                      const char *const *wrt, const char *name, qn_diags *diags);
QN_MUST_USE qn_status qn_add_jvp(qn_module *module, const char *function, int n_wrt, const char *const *wrt,
                                 const char *name, qn_diags *diags);

/* ---- training: api_train.c ---- */

/* What quern_make_training does; or only the entries infer and eval. */
QN_MUST_USE qn_status qn_train_module(qn_module *module, const quern_train_options *options, bool only_eval,
                                      qn_diags *diags);

/* ---- models: model_interp.c, model_jit.c ---- */

/* A model that the reference interpreter runs; it keeps `handle`. */
QN_MUST_USE qn_status qn_model_interp(quern_module *handle, quern_model **out, qn_diags *diags);

#endif
