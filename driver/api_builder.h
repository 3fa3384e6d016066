/* Behind the builder of quern.h: what its files share. Values belong to the module that is built. */
#ifndef QN_DRIVER_API_BUILDER_H
#define QN_DRIVER_API_BUILDER_H

#include "driver/api.h"
#include "ir/build.h"

struct quern_builder {
    qn_module *module;
    qn_diags diags;     /* in the module's arena */
    qn_graph *function; /* that is described: has the inputs, wherever a layer that needs one is */
    qn_builder build;   /* of it, or of the body of a loop in it */
    uint64_t seed;
    int n_parameters;                 /* that were drawn from the seed */
    qn_vec(qn_value *) updated, next; /* states, and what they become */
};

static inline qn_value *qn_in(quern_value *value)
{
    return (qn_value *)value;
}

static inline quern_value *qn_out(qn_value *value)
{
    return (quern_value *)value;
}

/* Reports a mistake in a call of quern.h; gives NULL. */
quern_value *qn_build_fail(quern_builder *b, const char *call, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Ready to build for this call? Not when an operand is missing: then an earlier call has failed and said why. */
bool qn_build_begin(quern_builder *b, const char *call, int n, quern_value *const *operands);

/* An axis of x from 0 on, where negative ones count from the end; -1 after a report. */
int qn_build_axis(quern_builder *b, const char *call, quern_value *x, int axis);

/* An input with initial contents (NULL: zeros), or NULL after a report. */
quern_value *qn_build_state(quern_builder *b, const char *call, const char *name, qn_input_role role,
                            int dtype, int rank, const int64_t *dims, const void *initial);

/* ---- what layers are made of: api_layers.c ---- */

typedef enum qn_spread { QN_UNIFORM, QN_NORMAL } qn_spread;

/* Parameter NAME.PART (part NULL: NAME) of floats, drawn from the builder's seed: uniform in +-scale, or normal of that
 * deviation. NULL after a report. */
quern_value *qn_build_param(quern_builder *b, const char *call, const char *name, const char *part,
                            qn_dtype dtype, int rank, const int64_t *dims, qn_spread spread, double scale);
/* The last dimension of x, which must be of floats and have a known one; -1 after a report. Or the layer has no name. */
int64_t qn_build_width(quern_builder *b, const char *call, quern_value *x, const char *name);

#endif
