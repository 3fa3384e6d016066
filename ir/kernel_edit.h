/* Below the kernel builder: raw instructions and blocks, and the rewriter that kernel passes are made of.
 *
 * Nothing here folds or checks; the builder of ir/kernel.h does. Everything lives in the kernel's arena. */
#ifndef QN_IR_KERNEL_EDIT_H
#define QN_IR_KERNEL_EDIT_H

#include "ir/kernel.h"

static inline qn_ktype qn_ktype_make(qn_dtype dtype, int lanes)
{
    return (qn_ktype){ dtype, lanes };
}
static inline bool qn_ktype_equal(qn_ktype a, qn_ktype b)
{
    return a.dtype == b.dtype && a.lanes == b.lanes;
}
static inline bool qn_k_is_index(const qn_kvalue *v)
{
    return v->type.dtype == QUERN_I64 && v->type.lanes == 1;
}
static inline bool qn_k_is_const(const qn_kvalue *v)
{
    return v->inst && v->inst->op == QN_K_CONST;
}
static inline bool qn_k_is_index_const(const qn_kvalue *v, int64_t value)
{
    return qn_k_is_const(v) && qn_k_is_index(v) && v->inst->imm.i == value;
}

/* ---- instructions and blocks ---- */

/* TASK, THREAD and PARAM instructions are the first of the body, one of each: the value of that one. */
qn_kvalue *qn_kernel_leaf(qn_kernel *k, qn_kop op, int64_t index);
/* A value of the kernel without bounds, number `index` of its instruction or block. */
void qn_kvalue_init(qn_kernel *k, qn_kvalue *v, qn_ktype type, int index);
/* Unlinked; operands are copied, results of the given types have unknown bounds. */
qn_kinst *qn_kinst_new(qn_kernel *k, qn_kop op, int n_operands, qn_kvalue *const *operands, int n_results,
                       const qn_ktype *types);
/* Empty block number `which` of `owner` (NULL: a body) with arguments of the given types. */
qn_kblock *qn_kblock_new(qn_kernel *k, qn_kinst *owner, int which, int n_arguments, const qn_ktype *types);
void qn_kblock_insert(qn_kblock *block, qn_kinst *inst, qn_kinst *before); /* before NULL: at the end */
void qn_kinst_unlink(qn_kinst *inst);
void qn_kblock_set_yields(qn_kernel *k, qn_kblock *block, int n, qn_kvalue *const *yields);
/* Derives min and max of the results of `inst` from its operands. */
void qn_kinst_bound(const qn_kernel *k, qn_kinst *inst);
/* The counter's bounds from those of low, high and step. */
void qn_kfor_bound(qn_kinst *loop);

/* Appends an instruction with one result (or none for type.lanes == 0) at the cursor, bounds derived. */
qn_kvalue *qn_kb_emit(qn_kbuilder *b, qn_kop op, int n_operands, qn_kvalue *const *operands, qn_ktype type);

/* Has no effect and does not depend on memory (or only on buffers that are never written): may be merged and moved. */
bool qn_kinst_is_pure(const qn_kernel *k, const qn_kinst *inst);
/* Block that defines v (where its instruction is, or whose argument it is). */
qn_kblock *qn_kvalue_block(const qn_kvalue *v);
bool qn_kblock_inside(const qn_kblock *block, const qn_kblock *ancestor); /* or the same */
/* How often a loop runs: exact count, or -1 when it isn't known. */
int64_t qn_kfor_trips(const qn_kinst *loop);

/* ---- constant folding: NULL when there is nothing to fold; see kernel_fold.c ---- */

qn_kvalue *qn_kfold_unary(qn_kbuilder *b, qn_op fn, qn_kvalue *a);
qn_kvalue *qn_kfold_binary(qn_kbuilder *b, qn_op fn, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kfold_compare(qn_kbuilder *b, qn_direction d, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kfold_select(qn_kbuilder *b, qn_kvalue *c, qn_kvalue *x, qn_kvalue *y);

/* ---- rewriting: a new body made from the old one, instruction by instruction, through the folding builder ---- */

typedef struct qn_krewriter qn_krewriter;
struct qn_krewriter {
    qn_kbuilder b; /* where copies go */
    /* Emits what stands for `inst` and maps each of its results (qn_kr_set); false: it is copied as it is. */
    bool (*visit)(qn_krewriter *r, qn_kinst *inst);
    void *user;
};

/* Is there such an instruction, in the block or those inside it? A rewrite that would change nothing need not be made. */
bool qn_kblock_any(const qn_kblock *block, bool (*is)(const qn_kinst *inst, const void *user),
                   const void *user);

/* Runs `visit` over every instruction of the kernel in order; the result becomes the kernel's body. */
void qn_krewrite(qn_kernel *kernel, bool (*visit)(qn_krewriter *r, qn_kinst *inst), void *user);
qn_kvalue *qn_kr_get(qn_kvalue *old);                            /* what stands for an old value */
void qn_kr_set(qn_kvalue *old, qn_kvalue *made);                 /* maps it */
void qn_kr_block(qn_krewriter *r, qn_kblock *old);               /* each instruction of it, at the cursor */
void qn_kr_copy(qn_krewriter *r, qn_kinst *inst);                /* one, with its blocks, as it is */
void qn_kr_yields(const qn_kblock *old, qn_kvalue **out_yields); /* what stands for its yields */

#endif
