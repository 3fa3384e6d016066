/* The builder of kernels. Folding is in kernel_fold.c, index arithmetic in kernel_index.c. */
#include "ir/kernel.h"

#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"

qn_kbuilder qn_kb_new(qn_kernel *kernel)
{
    return (qn_kbuilder){ .kernel = kernel, .block = kernel->body };
}

qn_kvalue *qn_kb_emit(qn_kbuilder *b, qn_kop op, int n_operands, qn_kvalue *const *operands, qn_ktype type)
{
    qn_kinst *inst = qn_kinst_new(b->kernel, op, n_operands, operands, type.lanes > 0, &type);
    qn_kblock_insert(b->block, inst, NULL);
    if (type.lanes == 0)
        return NULL;
    inst->fast = b->fast && qn_dtype_is_float(type.dtype);
    return &inst->results[0];
}

static qn_kvalue *finish(qn_kbuilder *b, qn_kvalue *v)
{
    qn_kinst_bound(b->kernel, v->inst);
    return v;
}

qn_kvalue *qn_kb_const(qn_kbuilder *b, qn_ktype type, qn_scalar imm)
{
    qn_kvalue *v = qn_kb_emit(b, QN_K_CONST, 0, NULL, type);
    v->inst->imm = qn_keval_normal(type.dtype, imm);
    v->inst->fast = false;
    return finish(b, v);
}

qn_kvalue *qn_kb_float(qn_kbuilder *b, qn_ktype type, double value)
{
    QN_ASSERT(qn_dtype_is_float(type.dtype), "a float constant of dtype %s", qn_dtype_name(type.dtype));
    return qn_kb_const(b, type, (qn_scalar){ .f = value });
}

qn_kvalue *qn_kb_task(qn_kbuilder *b)
{
    return qn_kernel_leaf(b->kernel, QN_K_TASK, 0);
}

qn_kvalue *qn_kb_thread(qn_kbuilder *b)
{
    return qn_kernel_leaf(b->kernel, QN_K_THREAD, 0);
}

qn_kvalue *qn_kb_unary(qn_kbuilder *b, qn_op fn, qn_kvalue *a)
{
    QN_ASSERT(qn_keval_is_unary(fn) && qn_keval_accepts(fn, a->type.dtype), "kernel %s: %s of %s",
              b->kernel->name, qn_ops[fn].name, qn_dtype_name(a->type.dtype));
    qn_kvalue *folded = qn_kfold_unary(b, fn, a);
    if (folded)
        return folded;
    qn_ktype type = { qn_keval_result(fn, a->type.dtype), a->type.lanes };
    qn_kvalue *v = qn_kb_emit(b, QN_K_UNARY, 1, &a, type);
    v->inst->fn = fn;
    return finish(b, v);
}

qn_kvalue *qn_kb_exp_nonpositive(qn_kbuilder *b, qn_kvalue *a)
{
    qn_kvalue *v = qn_kb_unary(b, QN_OP_EXP, a);
    if (v->inst && v->inst->op == QN_K_UNARY && v->inst->fn == QN_OP_EXP)
        v->inst->nonpositive = true;
    return v;
}

qn_kvalue *qn_kb_binary(qn_kbuilder *b, qn_op fn, qn_kvalue *a, qn_kvalue *c)
{
    QN_ASSERT(qn_keval_is_binary(fn) && qn_keval_accepts(fn, a->type.dtype) &&
                  qn_ktype_equal(a->type, c->type),
              "kernel %s: %s of %sx%d and %sx%d", b->kernel->name, qn_ops[fn].name,
              qn_dtype_name(a->type.dtype), a->type.lanes, qn_dtype_name(c->type.dtype), c->type.lanes);
    qn_kvalue *folded = qn_kfold_binary(b, fn, a, c);
    if (folded)
        return folded;
    qn_kvalue *v = qn_kb_emit(b, QN_K_BINARY, 2, (qn_kvalue *[]){ a, c }, a->type);
    v->inst->fn = fn;
    return finish(b, v);
}

qn_kvalue *qn_kb_fma(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z)
{
    QN_ASSERT(qn_dtype_is_float(x->type.dtype) && qn_ktype_equal(x->type, y->type) &&
                  qn_ktype_equal(x->type, z->type),
              "kernel %s: fma of different types", b->kernel->name);
    if (qn_k_is_const(x) && qn_k_is_const(y) && qn_k_is_const(z))
        return qn_kb_const(b, x->type, qn_keval_fma(x->type.dtype, x->inst->imm, y->inst->imm, z->inst->imm));
    return qn_kb_emit(b, QN_K_FMA, 3, (qn_kvalue *[]){ x, y, z }, x->type);
}

bool qn_k_dot4_takes(qn_ktype x, qn_ktype y, int lanes)
{
    const bool bytes = x.dtype == QUERN_U8 ? y.dtype == QUERN_U8 || y.dtype == QUERN_I8
                                           : x.dtype == QUERN_I8 && y.dtype == QUERN_I8;
    return bytes && x.lanes == 4 * lanes && y.lanes == 4 * lanes;
}

qn_kvalue *qn_kb_dot4(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z)
{
    QN_ASSERT(z->type.dtype == QUERN_I32 && qn_k_dot4_takes(x->type, y->type, z->type.lanes),
              "kernel %s: dot4 of other types", b->kernel->name);
    return qn_kb_emit(b, QN_K_DOT4, 3, (qn_kvalue *[]){ x, y, z }, z->type);
}

bool qn_k_mmla_takes(qn_ktype x, qn_ktype y, qn_ktype z)
{
    const qn_ktype pairs = qn_ktype_make(QUERN_BF16, 2 * z.lanes);
    if (z.lanes % 4)
        return false;
    return z.dtype == QUERN_F32 ? qn_ktype_equal(x, pairs) && qn_ktype_equal(y, pairs)
                                : z.dtype == QUERN_I32 && qn_k_dot4_takes(x, y, z.lanes);
}

qn_kvalue *qn_kb_mmla(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z)
{
    QN_ASSERT(qn_k_mmla_takes(x->type, y->type, z->type), "kernel %s: mmla of other types", b->kernel->name);
    return qn_kb_emit(b, QN_K_MMLA, 3, (qn_kvalue *[]){ x, y, z }, z->type);
}

qn_kvalue *qn_kb_dot2(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z)
{
    const qn_ktype pairs = qn_ktype_make(QUERN_BF16, 2 * z->type.lanes);
    QN_ASSERT(z->type.dtype == QUERN_F32 && qn_ktype_equal(x->type, pairs) && qn_ktype_equal(y->type, pairs),
              "kernel %s: dot2 of other types", b->kernel->name);
    return qn_kb_emit(b, QN_K_DOT2, 3, (qn_kvalue *[]){ x, y, z }, z->type);
}

qn_kvalue *qn_kb_compare(qn_kbuilder *b, qn_direction d, qn_kvalue *x, qn_kvalue *y)
{
    QN_ASSERT(qn_ktype_equal(x->type, y->type), "kernel %s: compare of different types", b->kernel->name);
    qn_kvalue *folded = qn_kfold_compare(b, d, x, y);
    if (folded)
        return folded;
    qn_kvalue *v =
        qn_kb_emit(b, QN_K_COMPARE, 2, (qn_kvalue *[]){ x, y }, qn_ktype_make(QUERN_BOOL, x->type.lanes));
    v->inst->direction = d;
    return v;
}

qn_kvalue *qn_kb_select(qn_kbuilder *b, qn_kvalue *condition, qn_kvalue *x, qn_kvalue *y)
{
    QN_ASSERT(condition->type.dtype == QUERN_BOOL && qn_ktype_equal(x->type, y->type) &&
                  (condition->type.lanes == x->type.lanes || condition->type.lanes == 1),
              "kernel %s: select of different types", b->kernel->name);
    qn_kvalue *folded = qn_kfold_select(b, condition, x, y);
    if (folded)
        return folded;
    condition = qn_kb_splat(b, condition, x->type.lanes);
    return finish(b, qn_kb_emit(b, QN_K_SELECT, 3, (qn_kvalue *[]){ condition, x, y }, x->type));
}

qn_kvalue *qn_kb_convert(qn_kbuilder *b, qn_dtype to, qn_kvalue *x)
{
    qn_ktype type = { to, x->type.lanes };
    if (to == x->type.dtype)
        return x;
    if (qn_k_is_const(x))
        return qn_kb_const(b, type, qn_keval_convert(x->type.dtype, to, x->inst->imm));
    return finish(b, qn_kb_emit(b, QN_K_CONVERT, 1, &x, type));
}

qn_kvalue *qn_kb_bitcast(qn_kbuilder *b, qn_dtype to, qn_kvalue *x)
{
    qn_ktype type = { to, x->type.lanes };
    QN_ASSERT(qn_dtype_bytes(to) == qn_dtype_bytes(x->type.dtype) && to != QUERN_BOOL &&
                  x->type.dtype != QUERN_BOOL,
              "kernel %s: bitcast %s to %s", b->kernel->name, qn_dtype_name(x->type.dtype),
              qn_dtype_name(to));
    if (to == x->type.dtype)
        return x;
    if (qn_k_is_const(x))
        return qn_kb_const(b, type, qn_keval_bitcast(x->type.dtype, to, x->inst->imm));
    if (x->inst && x->inst->op == QN_K_BITCAST)
        return qn_kb_bitcast(b, to, x->inst->operands[0]);
    return qn_kb_emit(b, QN_K_BITCAST, 1, &x, type);
}

qn_kvalue *qn_kb_scale2(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *n)
{
    QN_ASSERT(qn_dtype_is_float(x->type.dtype) && qn_ktype_equal(x->type, n->type),
              "kernel %s: scale2 of different types", b->kernel->name);
    if (qn_k_is_const(x) && qn_k_is_const(n))
        return qn_kb_const(b, x->type, qn_keval_scale2(x->type.dtype, x->inst->imm, n->inst->imm));
    return qn_kb_emit(b, QN_K_SCALE2, 2, (qn_kvalue *[]){ x, n }, x->type);
}

qn_kvalue *qn_kb_lookup(qn_kbuilder *b, const float *table, qn_kvalue *index)
{
    QN_ASSERT(index->type.dtype == QUERN_I32, "kernel %s: lookup by another type", b->kernel->name);
    qn_kvalue *v = qn_kb_emit(b, QN_K_LOOKUP, 1, &index, qn_ktype_make(QUERN_F32, index->type.lanes));
    v->inst->table = qn_arena_copy(b->kernel->arena, table, QN_LOOKUP * sizeof *table);
    return v;
}

qn_kvalue *qn_kb_pick(qn_kbuilder *b, qn_kvalue *index, qn_kvalue *table)
{
    QN_ASSERT(index->type.dtype == QUERN_U8 && qn_ktype_equal(table->type, qn_ktype_make(QUERN_U8, 16)),
              "kernel %s: pick of other types", b->kernel->name);
    return qn_kb_emit(b, QN_K_PICK, 2, (qn_kvalue *[]){ index, table }, index->type);
}

bool qn_k_join_takes(qn_ktype bytes, qn_ktype numbers)
{
    const int size = (int)qn_dtype_bytes(numbers.dtype);
    return bytes.dtype == QUERN_U8 && size > 1 && size <= 8 && bytes.lanes == size * numbers.lanes;
}

qn_kvalue *qn_kb_join(qn_kbuilder *b, qn_dtype to, qn_kvalue *bytes)
{
    const qn_ktype type = { to, bytes->type.lanes / (int)qn_dtype_bytes(to) };
    QN_ASSERT(qn_k_join_takes(bytes->type, type), "kernel %s: join of other types", b->kernel->name);
    return qn_kb_emit(b, QN_K_JOIN, 1, &bytes, type);
}

/* ---- lanes ---- */

qn_kvalue *qn_kb_splat(qn_kbuilder *b, qn_kvalue *x, int lanes)
{
    if (x->type.lanes == lanes)
        return x;
    QN_ASSERT(x->type.lanes == 1, "kernel %s: splat of a vector", b->kernel->name);
    qn_ktype type = { x->type.dtype, lanes };
    if (qn_k_is_const(x))
        return qn_kb_const(b, type, x->inst->imm);
    return qn_kb_emit(b, QN_K_SPLAT, 1, &x, type);
}

qn_kvalue *qn_kb_ramp(qn_kbuilder *b, qn_kvalue *x, int lanes)
{
    QN_ASSERT(x->type.lanes == 1 && qn_dtype_is_int(x->type.dtype), "kernel %s: ramp of %sx%d",
              b->kernel->name, qn_dtype_name(x->type.dtype), x->type.lanes);
    if (lanes == 1)
        return x;
    return qn_kb_emit(b, QN_K_RAMP, 1, &x, qn_ktype_make(x->type.dtype, lanes));
}

qn_kvalue *qn_kb_extract(qn_kbuilder *b, qn_kvalue *x, int lane)
{
    QN_ASSERT(lane >= 0 && lane < x->type.lanes, "kernel %s: lane %d of %d", b->kernel->name, lane,
              x->type.lanes);
    qn_ktype type = { x->type.dtype, 1 };
    if (x->type.lanes == 1)
        return x;
    if (qn_k_is_const(x))
        return qn_kb_const(b, type, x->inst->imm);
    if (x->inst && x->inst->op == QN_K_SPLAT)
        return x->inst->operands[0];
    qn_kvalue *v = qn_kb_emit(b, QN_K_EXTRACT, 1, &x, type);
    v->inst->index = lane;
    return v;
}

qn_kvalue *qn_kb_shuffle(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, int n_mask, const int *mask)
{
    int lanes = x->type.lanes;
    QN_ASSERT(qn_ktype_equal(x->type, y->type), "kernel %s: shuffle of different types", b->kernel->name);
    bool same = n_mask == lanes;
    for (int i = 0; i < n_mask; i++) {
        QN_ASSERT(mask[i] >= 0 && mask[i] < 2 * lanes, "kernel %s: shuffle lane %d of %d", b->kernel->name,
                  mask[i], 2 * lanes);
        same = same && mask[i] == i;
    }
    if (same)
        return x;
    qn_kvalue *v =
        qn_kb_emit(b, QN_K_SHUFFLE, 2, (qn_kvalue *[]){ x, y }, qn_ktype_make(x->type.dtype, n_mask));
    v->inst->n_mask = n_mask;
    v->inst->mask = qn_arena_copy(b->kernel->arena, mask, (size_t)n_mask * sizeof *mask);
    return v;
}

qn_kvalue *qn_kb_reduce(qn_kbuilder *b, qn_kind kind, qn_kvalue *x)
{
    QN_ASSERT(kind != QN_SET, "kernel %s: reduce by set", b->kernel->name);
    if (x->type.lanes == 1)
        return x;
    qn_kvalue *v = qn_kb_emit(b, QN_K_REDUCE, 1, &x, qn_ktype_make(x->type.dtype, 1));
    v->inst->kind = kind;
    return v;
}

/* ---- memory ---- */

static void check_access(const qn_kbuilder *b, const qn_kbuffer *buffer, const qn_kvalue *index, int lanes,
                         const qn_kvalue *mask)
{
    QN_ASSERT(index->type.dtype == QUERN_I64 && (index->type.lanes == 1 || index->type.lanes == lanes),
              "kernel %s: index into %s is %sx%d for %d lanes", b->kernel->name, buffer->name,
              qn_dtype_name(index->type.dtype), index->type.lanes, lanes);
    QN_ASSERT(!mask || (mask->type.dtype == QUERN_BOOL && mask->type.lanes == lanes),
              "kernel %s: mask of an access to %s does not fit", b->kernel->name, buffer->name);
}

qn_kvalue *qn_kb_load(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, int lanes)
{
    return qn_kb_load_masked(b, buffer, index, lanes, NULL, NULL);
}

qn_kvalue *qn_kb_load_in_order(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, int lanes)
{
    qn_kvalue *v = qn_kb_load(b, buffer, index, lanes);
    v->inst->in_order = true;
    return v;
}

qn_kvalue *qn_kb_load_masked(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, int lanes, qn_kvalue *mask,
                             qn_kvalue *other)
{
    check_access(b, buffer, index, lanes, mask);
    qn_ktype type = { buffer->dtype, lanes };
    if (mask && qn_k_is_const(mask)) {
        if (!mask->inst->imm.i)
            return other ? other : qn_kb_const(b, type, (qn_scalar){ .i = 0 });
        mask = NULL;
    }
    if (!mask)
        other = NULL;
    QN_ASSERT(!other || qn_ktype_equal(other->type, type), "kernel %s: masked load of %s: other value's type",
              b->kernel->name, buffer->name);
    qn_kvalue *operands[3] = { index, mask, other };
    qn_kvalue *v = qn_kb_emit(b, QN_K_LOAD, other ? 3 : mask ? 2 : 1, operands, type);
    v->inst->buffer = buffer;
    v->inst->fast = false;
    return finish(b, v);
}

qn_kinst *qn_kb_store(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, qn_kvalue *value, qn_kvalue *mask)
{
    check_access(b, buffer, index, value->type.lanes, mask);
    QN_ASSERT(value->type.dtype == buffer->dtype, "kernel %s: store of %s into %s", b->kernel->name,
              qn_dtype_name(value->type.dtype), buffer->name);
    if (mask && qn_k_is_const(mask) && mask->inst->imm.i)
        mask = NULL;
    qn_kvalue *operands[3] = { index, value, mask };
    qn_kb_emit(b, QN_K_STORE, mask ? 3 : 2, operands, qn_ktype_make(0, 0));
    b->block->last->buffer = buffer;
    return b->block->last;
}

void qn_kb_prefetch(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, int locality)
{
    QN_ASSERT(qn_k_is_index(index), "kernel %s: prefetch index", b->kernel->name);
    qn_kb_emit(b, QN_K_PREFETCH, 1, &index, qn_ktype_make(0, 0));
    b->block->last->buffer = buffer;
    b->block->last->index = locality;
}

void qn_kb_check(qn_kbuilder *b, qn_kvalue *condition, int node)
{
    QN_ASSERT(condition->type.dtype == QUERN_BOOL, "kernel %s: check of %s", b->kernel->name,
              qn_dtype_name(condition->type.dtype));
    if (qn_k_is_const(condition) && condition->inst->imm.i)
        return;
    qn_kb_emit(b, QN_K_CHECK, 1, &condition, qn_ktype_make(0, 0));
    b->block->last->index = node;
}

qn_kvalue *qn_kb_warp_shuffle(qn_kbuilder *b, qn_kvalue *x, int with)
{
    qn_kvalue *v = qn_kb_emit(b, QN_K_WARP_SHUFFLE, 1, &x, x->type);
    v->inst->index = with;
    v->inst->fast = false;
    return v;
}

qn_kvalue *qn_kb_warp_load(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, bool turned)
{
    qn_kvalue *v = qn_kb_emit(b, QN_K_WARP_LOAD, 1, &index, qn_ktype_make(buffer->dtype, 8));
    v->inst->buffer = buffer;
    v->inst->index = turned;
    v->inst->fast = false;
    return v;
}

qn_kvalue *qn_kb_warp_mma(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *sums)
{
    qn_kvalue *v = qn_kb_emit(b, QN_K_WARP_MMA, 3, (qn_kvalue *[]){ x, y, sums }, sums->type);
    v->inst->fast = false;
    return v;
}

void qn_kb_barrier(qn_kbuilder *b)
{
    qn_kb_emit(b, QN_K_BARRIER, 0, NULL, qn_ktype_make(0, 0));
}

/* ---- structure ---- */

qn_kinst *qn_kb_for(qn_kbuilder *b, qn_kvalue *low, qn_kvalue *high, qn_kvalue *step, qn_ktag tag,
                    int n_carried, qn_kvalue *const *initial, const qn_kind *carried_kinds)
{
    qn_kernel *k = b->kernel;
    QN_ASSERT(qn_k_is_index(low) && qn_k_is_index(high) && qn_k_is_index(step),
              "kernel %s: loop bounds are not i64 scalars", k->name);
    qn_kvalue **operands = QN_NEW_ARRAY(k->arena, qn_kvalue *, 3 + n_carried);
    qn_ktype *types = QN_NEW_ARRAY(k->arena, qn_ktype, 1 + n_carried);
    operands[0] = low;
    operands[1] = high;
    operands[2] = step;
    types[0] = qn_ktype_make(QUERN_I64, 1);
    for (int i = 0; i < n_carried; i++) {
        operands[3 + i] = initial[i];
        types[1 + i] = initial[i]->type;
    }
    qn_kinst *loop = qn_kinst_new(k, QN_K_FOR, 3 + n_carried, operands, n_carried, types + 1);
    loop->tag = tag;
    if (carried_kinds && n_carried > 0)
        loop->carried_kinds =
            qn_arena_copy(k->arena, carried_kinds, (size_t)n_carried * sizeof *carried_kinds);
    qn_kblock_insert(b->block, loop, NULL);
    b->block = qn_kblock_new(k, loop, 0, 1 + n_carried, types);
    qn_kfor_bound(loop);
    return loop;
}

void qn_kb_end_for(qn_kbuilder *b, qn_kinst *loop, qn_kvalue *const *yields)
{
    QN_ASSERT(b->block == loop->blocks[0], "kernel %s: end of a loop that is not the innermost open one",
              b->kernel->name);
    for (int i = 0; i < loop->n_results; i++)
        QN_ASSERT(qn_ktype_equal(yields[i]->type, loop->results[i].type),
                  "kernel %s: carried value %d changes its type", b->kernel->name, i);
    qn_kblock_set_yields(b->kernel, loop->blocks[0], loop->n_results, yields);
    b->block = loop->parent;
}

qn_kinst *qn_kb_carry(qn_kbuilder *b, qn_kvalue *low, qn_kvalue *high, qn_kvalue *step, qn_ktag tag, int n,
                      qn_kvalue **values, const qn_kind *kinds)
{
    qn_kinst *loop = qn_kb_for(b, low, high, step, tag, n, values, kinds);
    for (int i = 0; i < n; i++)
        values[i] = &loop->blocks[0]->arguments[1 + i];
    return loop;
}

void qn_kb_end_carry(qn_kbuilder *b, qn_kinst *loop, qn_kvalue **values)
{
    qn_kb_end_for(b, loop, values);
    for (int i = 0; i < loop->n_results; i++)
        values[i] = &loop->results[i];
}

qn_kinst *qn_kb_if(qn_kbuilder *b, qn_kvalue *condition)
{
    QN_ASSERT(condition->type.dtype == QUERN_BOOL && condition->type.lanes == 1,
              "kernel %s: condition of an if is not a bool scalar", b->kernel->name);
    qn_kinst *branch = qn_kinst_new(b->kernel, QN_K_IF, 1, &condition, 0, NULL);
    qn_kblock_insert(b->block, branch, NULL);
    qn_kblock_new(b->kernel, branch, 0, 0, NULL);
    qn_kblock_new(b->kernel, branch, 1, 0, NULL);
    b->block = branch->blocks[0];
    return branch;
}

void qn_kb_else(qn_kbuilder *b, qn_kinst *branch, int n_yields, qn_kvalue *const *yields)
{
    QN_ASSERT(b->block == branch->blocks[0], "kernel %s: else without its if", b->kernel->name);
    qn_kblock_set_yields(b->kernel, branch->blocks[0], n_yields, yields);
    b->block = branch->blocks[1];
}

void qn_kb_end_if(qn_kbuilder *b, qn_kinst *branch, int n_yields, qn_kvalue *const *yields)
{
    qn_kernel *k = b->kernel;
    if (b->block == branch->blocks[0])
        qn_kb_else(b, branch, 0, NULL);
    QN_ASSERT(b->block == branch->blocks[1] && n_yields == branch->blocks[0]->n_yields,
              "kernel %s: the blocks of an if yield different counts", k->name);
    qn_kblock_set_yields(k, branch->blocks[1], n_yields, yields);
    branch->n_results = n_yields;
    branch->results = QN_NEW_ARRAY(k->arena, qn_kvalue, n_yields);
    for (int i = 0; i < n_yields; i++) {
        QN_ASSERT(qn_ktype_equal(branch->blocks[0]->yields[i]->type, yields[i]->type),
                  "kernel %s: the blocks of an if yield different types", k->name);
        qn_kvalue_init(k, &branch->results[i], yields[i]->type, i);
        branch->results[i].inst = branch;
    }
    qn_kinst_bound(k, branch);
    b->block = branch->parent;
}
