/* Index expressions: which element of an operand an element of a result comes from.
 *
 * A space belongs to one kernel (or, while fusing, to one group). Its expressions are dimension expressions in a table of
 * its own, over three sorts of symbols: those of the module (imported by name, or standing for an expression), loop
 * variables, and data: numbers that are only known when the kernel runs, such as an element of a gather's indices.
 *
 *   space of a kernel over [n, 768]:   variables #0 in [0, n), #1 in [0, 768)
 *   transpose                          (#0, #1) -> (#1, #0)
 *   reshape to [768 * n]               768*#0 + #1
 *   and back                           (floordiv(768*#0 + #1, 768), mod(768*#0 + #1, 768)) = (#0, #1)
 *
 * Being hash-consed and normalised, two indices are equal exactly when their expressions are the same pointers, and what
 * data movement does and undoes again is gone. Everything lives in the arena that the space was made with. */
#ifndef QN_PASSES_INDEX_H
#define QN_PASSES_INDEX_H

#include "ir/graph.h"
#include "ir/kernel.h"

typedef struct qn_var {
    qn_dim symbol;
    qn_dim extent;    /* in [0, extent) */
    bool data;        /* not a loop's */
    qn_kvalue *value; /* its number in the kernel, set while emitting */
} qn_var;

typedef struct qn_alias {
    qn_dim symbol, meaning; /* both of the space */
} qn_alias;

typedef struct qn_ispace {
    qn_arena *arena;
    qn_dims *dims;
    qn_vec(qn_alias) aliases;
    qn_vec(qn_var) vars;
    qn_vec(int) var_of_symbol; /* by symbol number: index into vars, or -1 for a symbol of the module */
} qn_ispace;

void qn_ispace_init(qn_ispace *space, qn_arena *arena);
/* A dim of the module. Quotients, minima and the like, and sums with them, come in as one symbol each, since products of
 * sums would grow beyond measure: floordiv(h + 1, 2) - 2 is $0 here. */
qn_dim qn_ispace_import(qn_ispace *space, qn_dim module_dim);
/* What an expression without variables means, in the space's table. */
qn_dim qn_ispace_meaning(const qn_ispace *space, qn_dim d);
void qn_ispace_dims(qn_ispace *space, const qn_type *type, qn_dim *out_dims); /* rank of them, imported */
/* A new variable in [0, extent), extent being of the space; the constant 0 when the extent is 1. */
qn_dim qn_ispace_var(qn_ispace *space, qn_dim extent, bool data);
qn_var *qn_ispace_var_of(const qn_ispace *space, qn_dim symbol); /* NULL: a symbol of the module */
/* What a variable is from here on; nothing where it is a constant. */
void qn_ispace_set(const qn_ispace *space, qn_dim var, qn_kvalue *value);

/* floordiv and mod that know the variables' extents, symbolic ones too: floordiv(n*#0 + #1, n) = #0 for #1 in [0, n). */
qn_dim qn_ix_div(qn_ispace *space, qn_dim a, qn_dim b);
qn_dim qn_ix_mod(qn_ispace *space, qn_dim a, qn_dim b);
/* Proven for all values of the variables: 0 <= a, and a < b. */
bool qn_ix_not_negative(qn_ispace *space, qn_dim a);
bool qn_ix_below(qn_ispace *space, qn_dim a, qn_dim b);

/* Row-major number of the element at `index` of a tensor with these dims, and back. */
qn_dim qn_ix_linear(qn_ispace *space, int rank, const qn_dim *dims, const qn_dim *index);
void qn_ix_split(qn_ispace *space, qn_dim linear, int rank, const qn_dim *dims, qn_dim *out_index);
/* The index of the same element in the row-major order of other dims. */
void qn_ix_reshape(qn_ispace *space, int from_rank, const qn_dim *from_dims, const qn_dim *index, int to_rank,
                   const qn_dim *to_dims, qn_dim *out_index);

bool qn_ix_uses(qn_dim a, qn_dim symbol);
bool qn_ix_uses_vars(const qn_ispace *space, qn_dim a); /* any variable at all */
bool qn_ix_uses_data(const qn_ispace *space, qn_dim a); /* one that only the run tells: a lookup */
/* a = coefficient * symbol + rest, both free of it. False when a is not of that form. */
bool qn_ix_affine(qn_ispace *space, qn_dim a, qn_dim symbol, qn_dim *out_coefficient, qn_dim *out_rest);

/* Index of operand `k` for the result element `index`, of an element-wise or movement op (qn_ix_moves). `data` are the
 * numbers that the op reads its index from, one for each qn_ix_data_count: starts of dynamic_slice, indices of gather.
 * For pad and concatenate the index is only meaningful where the element comes from that operand. */
bool qn_ix_moves(const qn_node *node);
int qn_ix_data_count(const qn_node *node);
void qn_ix_operand(qn_ispace *space, const qn_node *node, int k, const qn_dim *index, const qn_dim *data,
                   qn_dim *out_index);

#endif
