/* Shared by the type rules in infer_*.c. Private to ir/infer*. */
#ifndef QN_IR_INFER_RULES_H
#define QN_IR_INFER_RULES_H

#include "ir/graph.h"

typedef struct qn_infer_context {
    const qn_node *node;
    qn_module *module;
    qn_diags *diags;
    qn_type *out; /* room for capacity types */
    int capacity, n;
} qn_infer_context;

/* Appends the result types, or reports. */
typedef qn_status (*qn_infer_rule)(qn_infer_context *c);

qn_infer_rule qn_infer_movement(qn_op op);
qn_infer_rule qn_infer_compute(qn_op op); /* reductions, contractions, order, random */
qn_infer_rule qn_infer_composite(qn_op op);
qn_infer_rule qn_infer_collective(qn_op op);
qn_infer_rule qn_infer_control(qn_op op);
qn_infer_rule qn_infer_text(qn_op op);

/* "op: text", at the node; QUERN_ERROR_MODEL. */
qn_status qn_infer_fail(qn_infer_context *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
qn_status qn_infer_give(qn_infer_context *c, qn_dtype dtype, int rank, const qn_dim *dims);

static inline const qn_type *qn_infer_operand(const qn_infer_context *c, int i)
{
    return &c->node->operands[i]->type;
}
static inline const char *qn_infer_print(const qn_infer_context *c, const qn_type *type)
{
    return qn_type_print(type, c->module->arena);
}
static inline qn_dim qn_infer_const(const qn_infer_context *c, int64_t value)
{
    return qn_dim_const(c->module->dims, value);
}

/* Operand i has this dtype, rank, dims (each reports what it is and what is expected). */
qn_status qn_infer_expect_dtype(qn_infer_context *c, int i, qn_dtype dtype);
qn_status qn_infer_expect_rank(qn_infer_context *c, int i, int rank);
qn_status qn_infer_expect_dims(qn_infer_context *c, int i, int rank, const qn_dim *dims);
qn_status qn_infer_expect_index(qn_infer_context *c, int i); /* i32 or i64 */
/* 0 <= axis < rank */
qn_status qn_infer_axis(qn_infer_context *c, qn_attr_key key, int rank, int *out_axis);
/* A list attribute of `n` entries. */
qn_status qn_infer_ints(qn_infer_context *c, qn_attr_key key, int n, const int64_t **out);
qn_status qn_infer_dims(qn_infer_context *c, qn_attr_key key, int n, const qn_dim **out);
/* Entries are distinct axes below rank. */
qn_status qn_infer_axes(qn_infer_context *c, qn_attr_key key, int rank, bool sorted, int *out_n,
                        const int64_t **out);
/* a > b, whatever the symbols are. What is not known to be wrong is accepted, and checked when the model runs. */
bool qn_infer_exceeds(const qn_infer_context *c, qn_dim a, qn_dim b);

#endif
