/* Checks a kernel: types, attributes and buffers of each instruction, blocks and what they yield, dominance, memory. */
#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"
#include "ir/kernel_text.h"

/* ---- one instruction ---- */

typedef struct checker {
    const qn_kernel *k;
    const qn_kinst *inst;
    qn_arena *arena;
} checker;

#define MISTAKE(...) return qn_arena_printf(c->arena, __VA_ARGS__)

static const char *show(const checker *c, const qn_kvalue *v)
{
    return qn_ktype_print(v->type, c->arena);
}

static bool lanes_are_good(int lanes)
{
    return lanes >= 1 && lanes <= 64 && (lanes & (lanes - 1)) == 0;
}

static const struct {
    int min, max, results; /* operands; results of -1: any number */
} arity[] = {
    [QN_K_CONST] = { 0, 0, 1 },      [QN_K_PARAM] = { 0, 0, 1 },        [QN_K_TASK] = { 0, 0, 1 },
    [QN_K_THREAD] = { 0, 0, 1 },     [QN_K_UNARY] = { 1, 1, 1 },        [QN_K_BINARY] = { 2, 2, 1 },
    [QN_K_FMA] = { 3, 3, 1 },        [QN_K_COMPARE] = { 2, 2, 1 },      [QN_K_SELECT] = { 3, 3, 1 },
    [QN_K_CONVERT] = { 1, 1, 1 },    [QN_K_BITCAST] = { 1, 1, 1 },      [QN_K_SCALE2] = { 2, 2, 1 },
    [QN_K_SPLAT] = { 1, 1, 1 },      [QN_K_RAMP] = { 1, 1, 1 },         [QN_K_EXTRACT] = { 1, 1, 1 },
    [QN_K_SHUFFLE] = { 2, 2, 1 },    [QN_K_REDUCE] = { 1, 1, 1 },       [QN_K_LOAD] = { 1, 3, 1 },
    [QN_K_STORE] = { 2, 3, 0 },      [QN_K_PREFETCH] = { 1, 1, 0 },     [QN_K_ATOMIC_ADD] = { 2, 2, 0 },
    [QN_K_FOR] = { 3, 1 << 20, -1 }, [QN_K_IF] = { 1, 1, -1 },          [QN_K_CHECK] = { 1, 1, 0 },
    [QN_K_BARRIER] = { 0, 0, 0 },    [QN_K_TILE_SHAPE] = { 8, 8, 0 },   [QN_K_TILE_ZERO] = { 0, 0, 0 },
    [QN_K_TILE_LOAD] = { 2, 2, 0 },  [QN_K_TILE_STORE] = { 2, 2, 0 },   [QN_K_TILE_MMA] = { 0, 0, 0 },
    [QN_K_DOT4] = { 3, 3, 1 },       [QN_K_WARP_SHUFFLE] = { 1, 1, 1 }, [QN_K_WARP_LOAD] = { 1, 1, 1 },
    [QN_K_WARP_MMA] = { 3, 3, 1 },   [QN_K_LOOKUP] = { 1, 1, 1 },       [QN_K_DOT2] = { 3, 3, 1 },
    [QN_K_MMLA] = { 3, 3, 1 },       [QN_K_PICK] = { 2, 2, 1 },         [QN_K_JOIN] = { 1, 1, 1 },
};

static const char *check_leaf(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0];
    if (inst->op == QN_K_CONST) {
        if (!qn_keval_same(r->type.dtype, qn_keval_normal(r->type.dtype, inst->imm), inst->imm))
            MISTAKE("constant is not a value of %s", show(c, r));
        return NULL;
    }
    if (!qn_k_is_index(r))
        MISTAKE("result is %s, not i64", show(c, r));
    if (inst->op == QN_K_PARAM && (inst->index < 0 || inst->index >= c->k->n_params))
        MISTAKE("parameter number %lld of %d", (long long)inst->index, c->k->n_params);
    if (inst->op == QN_K_THREAD && !c->k->by_thread)
        MISTAKE("is for kernels that say what each thread does: gpu_threads N each");
    return NULL;
}

static const char *check_element_wise(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0], *a = inst->operands[0];
    bool unary = inst->op == QN_K_UNARY;
    if (inst->fn >= QN_N_OPS || !(unary ? qn_keval_is_unary(inst->fn) : qn_keval_is_binary(inst->fn)))
        MISTAKE("is not an element-wise op with %s", unary ? "one operand" : "two operands");
    if (!qn_keval_accepts(inst->fn, a->type.dtype))
        MISTAKE("does not take %s", show(c, a));
    for (int i = 1; i < inst->n_operands; i++)
        if (!qn_ktype_equal(inst->operands[i]->type, a->type))
            MISTAKE("operands are %s and %s", show(c, a), show(c, inst->operands[i]));
    if (!qn_ktype_equal(r->type, qn_ktype_make(qn_keval_result(inst->fn, a->type.dtype), a->type.lanes)))
        MISTAKE("result is %s for operands of %s", show(c, r), show(c, a));
    if (inst->index_math && (unary || a->type.dtype != QUERN_I64 || !qn_k_index_name(inst->fn)))
        MISTAKE("index arithmetic on %s", show(c, a));
    return NULL;
}

static const char *check_float_operation(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0];
    for (int i = 0; i < inst->n_operands; i++)
        if (!qn_dtype_is_float(r->type.dtype) || !qn_ktype_equal(inst->operands[i]->type, r->type))
            MISTAKE("operand %d is %s, result %s; they must be one float type", i, show(c, inst->operands[i]),
                    show(c, r));
    return NULL;
}

static const char *check_dot4(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0], *const *o = (const qn_kvalue *const *)inst->operands;
    if (r->type.dtype != QUERN_I32 || !qn_ktype_equal(o[2]->type, r->type) ||
        !qn_k_dot4_takes(o[0]->type, o[1]->type, r->type.lanes))
        MISTAKE("adds products of bytes (u8 and i8, two u8, two i8), four to an i32, not of %s and %s to %s",
                show(c, o[0]), show(c, o[1]), show(c, o[2]));
    return NULL;
}

static const char *check_mmla(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0], *const *o = (const qn_kvalue *const *)inst->operands;
    if (!qn_ktype_equal(o[2]->type, r->type) || !qn_k_mmla_takes(o[0]->type, o[1]->type, r->type))
        MISTAKE("multiplies pairs of rows of eight bytes or four bf16, not %s by %s to %s", show(c, o[0]),
                show(c, o[1]), show(c, o[2]));
    return NULL;
}

static const char *check_dot2(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0], *const *o = (const qn_kvalue *const *)inst->operands;
    const qn_ktype pairs = qn_ktype_make(QUERN_BF16, 2 * r->type.lanes);
    if (r->type.dtype != QUERN_F32 || !qn_ktype_equal(o[2]->type, r->type) ||
        !qn_ktype_equal(o[0]->type, pairs) || !qn_ktype_equal(o[1]->type, pairs))
        MISTAKE("adds products of bf16, two to an f32, not of %s and %s to %s", show(c, o[0]), show(c, o[1]),
                show(c, o[2]));
    return NULL;
}

static const char *check_lookup(const checker *c)
{
    const qn_kvalue *r = &c->inst->results[0], *a = c->inst->operands[0];
    if (a->type.dtype != QUERN_I32 || !qn_ktype_equal(r->type, qn_ktype_make(QUERN_F32, a->type.lanes)))
        MISTAKE("gives f32 for i32, not %s for %s", show(c, r), show(c, a));
    return c->inst->table ? NULL : "has no table";
}

static const char *check_bytes(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0], *a = inst->operands[0];
    if (inst->op == QN_K_JOIN) {
        if (!qn_k_join_takes(a->type, r->type))
            MISTAKE("joins bytes, u8, to numbers, not %s to %s", show(c, a), show(c, r));
        return NULL;
    }
    if (a->type.dtype != QUERN_U8 || !qn_ktype_equal(r->type, a->type) ||
        !qn_ktype_equal(inst->operands[1]->type, qn_ktype_make(QUERN_U8, 16)))
        MISTAKE("gives u8 for u8 from u8x16, not %s for %s from %s", show(c, r), show(c, a),
                show(c, inst->operands[1]));
    return NULL;
}

static const char *check_choice(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0], *const *o = (const qn_kvalue *const *)inst->operands;
    if (inst->op == QN_K_COMPARE) {
        if (inst->direction > QN_GE)
            MISTAKE("unknown direction");
        if (!qn_ktype_equal(o[0]->type, o[1]->type))
            MISTAKE("operands are %s and %s", show(c, o[0]), show(c, o[1]));
        if (!qn_ktype_equal(r->type, qn_ktype_make(QUERN_BOOL, o[0]->type.lanes)))
            MISTAKE("result is %s", show(c, r));
        return NULL;
    }
    if (!qn_ktype_equal(o[0]->type, qn_ktype_make(QUERN_BOOL, r->type.lanes)))
        MISTAKE("condition is %s for a result of %s", show(c, o[0]), show(c, r));
    if (!qn_ktype_equal(o[1]->type, r->type) || !qn_ktype_equal(o[2]->type, r->type))
        MISTAKE("chooses between %s and %s", show(c, o[1]), show(c, o[2]));
    return NULL;
}

static const char *check_lanes(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0], *a = inst->operands[0];
    if (inst->op == QN_K_CONVERT || inst->op == QN_K_BITCAST) {
        if (r->type.lanes != a->type.lanes)
            MISTAKE("changes lanes: %s to %s", show(c, a), show(c, r));
        if (inst->op == QN_K_BITCAST && (qn_dtype_bytes(r->type.dtype) != qn_dtype_bytes(a->type.dtype) ||
                                         r->type.dtype == QUERN_BOOL || a->type.dtype == QUERN_BOOL))
            MISTAKE("of %s to %s", show(c, a), show(c, r));
        return NULL;
    }
    if (r->type.dtype != a->type.dtype)
        MISTAKE("changes the dtype: %s to %s", show(c, a), show(c, r));
    switch (inst->op) {
    case QN_K_RAMP:
        if (!qn_dtype_is_int(a->type.dtype))
            MISTAKE("of %s, not an integer", show(c, a));
        /* fallthrough */
    case QN_K_SPLAT:
        if (a->type.lanes != 1 || r->type.lanes == 1)
            MISTAKE("of %s to %s", show(c, a), show(c, r));
        return NULL;
    case QN_K_EXTRACT:
        if (r->type.lanes != 1 || inst->index < 0 || inst->index >= a->type.lanes)
            MISTAKE("lane %lld of %s", (long long)inst->index, show(c, a));
        return NULL;
    case QN_K_REDUCE:
        if (r->type.lanes != 1 || inst->kind >= QN_SET ||
            (r->type.dtype == QUERN_BOOL && inst->kind != QN_KIND_MAX && inst->kind != QN_KIND_MIN))
            MISTAKE("of %s to %s", show(c, a), show(c, r));
        return NULL;
    default: /* SHUFFLE */
        if (!qn_ktype_equal(a->type, inst->operands[1]->type) || r->type.lanes != inst->n_mask)
            MISTAKE("of %s and %s to %s", show(c, a), show(c, inst->operands[1]), show(c, r));
        for (int i = 0; i < inst->n_mask; i++)
            if (inst->mask[i] < 0 || inst->mask[i] >= 2 * a->type.lanes)
                MISTAKE("takes lane %d of %d", inst->mask[i], 2 * a->type.lanes);
        return NULL;
    }
}

static const char *check_warp(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kvalue *r = &inst->results[0], *const *o = (const qn_kvalue *const *)inst->operands;
    const qn_dtype narrow = inst->op == QN_K_WARP_LOAD ? r->type.dtype : o[0]->type.dtype;
    if (!c->k->by_thread || c->k->gpu_threads % 32)
        MISTAKE("is for whole warps of kernels of each thread");
    if (inst->op == QN_K_WARP_SHUFFLE)
        return r->type.lanes == 1 && qn_dtype_bytes(r->type.dtype) == 4 && inst->index > 0 &&
                       inst->index < 32 && qn_ktype_equal(o[0]->type, r->type)
                   ? NULL
                   : "exchanges scalars of 32 bits of threads that differ by 1 to 31";
    if (narrow != QUERN_BF16 && narrow != QUERN_F16)
        MISTAKE("is of %s: bf16 and f16 are possible", qn_dtype_name(narrow));
    if (inst->op == QN_K_WARP_LOAD)
        return inst->buffer->space != QN_SPACE_SHARED || inst->buffer->dtype != narrow ||
                       r->type.lanes != 8 || !qn_k_is_index(o[0]) || (inst->index != 0 && inst->index != 1)
                   ? "loads 8 lanes from shared memory"
                   : NULL;
    const qn_ktype sums = qn_ktype_make(QUERN_F32, 4);
    if (!qn_ktype_equal(o[0]->type, qn_ktype_make(narrow, 8)) ||
        !qn_ktype_equal(o[1]->type, qn_ktype_make(narrow, 4)) || !qn_ktype_equal(o[2]->type, sums) ||
        !qn_ktype_equal(r->type, sums))
        MISTAKE("multiplies 8 by 4 lanes to f32x4, not %s by %s to %s", show(c, o[0]), show(c, o[1]),
                show(c, o[2]));
    return NULL;
}

static const char *check_memory(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const qn_kbuffer *buffer = inst->buffer;
    bool load = inst->op == QN_K_LOAD, known = false;
    for (int i = 0; i < c->k->n_all_buffers; i++)
        known = known || c->k->buffers[i] == buffer;
    if (!known)
        MISTAKE("names no buffer of this kernel");
    const qn_kvalue *index = inst->operands[0];
    if (inst->op == QN_K_PREFETCH) {
        if (inst->index < 0 || inst->index > 3)
            MISTAKE("locality %lld is not 0 to 3", (long long)inst->index);
        return qn_k_is_index(index) ? NULL : qn_arena_printf(c->arena, "index is %s", show(c, index));
    }
    if (load ? !buffer->read : !buffer->written)
        MISTAKE("%s %%%s, which is declared otherwise", load ? "reads" : "writes", buffer->name);
    const qn_kvalue *value = load ? &inst->results[0] : inst->operands[1];
    if (value->type.dtype != buffer->dtype)
        MISTAKE("of %s in %%%s, which holds %s", show(c, value), buffer->name, qn_dtype_name(buffer->dtype));
    if (index->type.dtype != QUERN_I64 || (index->type.lanes != 1 && index->type.lanes != value->type.lanes))
        MISTAKE("index is %s for %s", show(c, index), show(c, value));
    if (buffer->space != QN_SPACE_ARGUMENT && qn_k_is_const(index)) {
        int64_t first = index->inst->imm.i, last = index->type.lanes == 1 ? value->type.lanes - 1 : 0;
        bool masked = inst->n_operands > (load ? 1 : 2);
        if (first < 0 || first >= buffer->elements || (!masked && last >= buffer->elements - first))
            MISTAKE("element %lld of %%%s, which has %lld", (long long)first, buffer->name,
                    (long long)buffer->elements);
    }
    int at = load ? 1 : 2;
    if (inst->op == QN_K_ATOMIC_ADD)
        return NULL;
    if (at < inst->n_operands &&
        !qn_ktype_equal(inst->operands[at]->type, qn_ktype_make(QUERN_BOOL, value->type.lanes)))
        MISTAKE("mask is %s for %s", show(c, inst->operands[at]), show(c, value));
    if (at + 1 < inst->n_operands && !qn_ktype_equal(inst->operands[at + 1]->type, value->type))
        MISTAKE("other value is %s for %s", show(c, inst->operands[at + 1]), show(c, value));
    return NULL;
}

static const char *check_control(const checker *c)
{
    const qn_kinst *inst = c->inst;
    if (inst->op == QN_K_CHECK && c->k->by_thread)
        MISTAKE("would leave the other threads waiting");
    if (inst->op == QN_K_CHECK)
        return inst->operands[0]->type.dtype == QUERN_BOOL
                   ? NULL
                   : qn_arena_printf(c->arena, "condition is %s", show(c, inst->operands[0]));
    if (inst->op == QN_K_IF) {
        if (!qn_ktype_equal(inst->operands[0]->type, qn_ktype_make(QUERN_BOOL, 1)))
            MISTAKE("condition is %s, not bool", show(c, inst->operands[0]));
        return NULL;
    }
    for (int i = 0; i < 3; i++)
        if (!qn_k_is_index(inst->operands[i]))
            MISTAKE("bounds and step are i64 scalars, not %s", show(c, inst->operands[i]));
    if (inst->operands[2]->max < 1)
        MISTAKE("step is not positive");
    if (inst->n_results != inst->n_operands - 3)
        MISTAKE("has %d results for %d carried values", inst->n_results, inst->n_operands - 3);
    if (inst->tag > QN_TAG_GPU_THREAD || inst->lanes < 0 || (inst->lanes > 0 && !lanes_are_good(inst->lanes)))
        MISTAKE("tag or lanes are out of range");
    if (inst->tag == QN_TAG_UNROLL && qn_kfor_trips(inst) < 0)
        MISTAKE("is to be unrolled, but its bounds are not constant");
    for (int i = 0; inst->carried_kinds && i < inst->n_results; i++)
        if (inst->carried_kinds[i] > QN_SET)
            MISTAKE("unknown kind of carried value %d", i);
    if (inst->tag == QN_TAG_GPU_THREAD && !c->k->gpu_threads)
        MISTAKE("is spread over GPU threads, but the kernel has no gpu_threads");
    if (inst->tag == QN_TAG_GPU_THREAD && c->k->by_thread)
        MISTAKE("is spread over GPU threads, but the kernel is one of each thread");
    return NULL;
}

static const char *check_tile(const checker *c)
{
    const qn_kinst *inst = c->inst;
    const bool load = inst->op == QN_K_TILE_LOAD, memory = load || inst->op == QN_K_TILE_STORE;
    const int tiles = inst->op == QN_K_TILE_SHAPE ? 0 : inst->op == QN_K_TILE_MMA ? 3 : 1;
    bool known = !memory;
    for (int i = 0; i < inst->n_operands; i++)
        if (!qn_k_is_index(inst->operands[i]))
            MISTAKE("operand %d is %s, not i64", i, show(c, inst->operands[i]));
    if (inst->n_mask != tiles)
        MISTAKE("names %d tiles, not %d", inst->n_mask, tiles);
    for (int i = 0; i < tiles; i++)
        if (inst->mask[i] < 0 || inst->mask[i] >= QN_TILES)
            MISTAKE("there is no tile %d", inst->mask[i]);
    for (int i = 0; i < c->k->n_all_buffers && !known; i++)
        known = c->k->buffers[i] == inst->buffer;
    if (!known)
        MISTAKE("names no buffer of this kernel");
    if (memory && !(load ? inst->buffer->read : inst->buffer->written))
        MISTAKE("%s %%%s, which is declared otherwise", load ? "reads" : "writes", inst->buffer->name);
    if (inst->op == QN_K_TILE_MMA) {
        const qn_dtype x = inst->tile_type[0], y = inst->tile_type[1];
        const bool bytes = (x == QUERN_I8 || x == QUERN_U8) && (y == QUERN_I8 || y == QUERN_U8);
        if (!bytes && (x != QUERN_BF16 || y != QUERN_BF16))
            MISTAKE("multiplies bf16 with bf16 and bytes with bytes, not %s with %s", qn_dtype_name(x),
                    qn_dtype_name(y));
        if (inst->mask[0] == inst->mask[1] || inst->mask[0] == inst->mask[2] ||
            inst->mask[1] == inst->mask[2])
            MISTAKE("needs three different tiles");
    }
    return NULL;
}

static const char *check_inst(const checker *c)
{
    switch (c->inst->op) {
    case QN_K_CONST:
    case QN_K_PARAM:
    case QN_K_TASK:
    case QN_K_THREAD: return check_leaf(c);
    case QN_K_UNARY:
    case QN_K_BINARY: return check_element_wise(c);
    case QN_K_FMA:
    case QN_K_SCALE2: return check_float_operation(c);
    case QN_K_DOT4: return check_dot4(c);
    case QN_K_DOT2: return check_dot2(c);
    case QN_K_MMLA: return check_mmla(c);
    case QN_K_LOOKUP: return check_lookup(c);
    case QN_K_PICK:
    case QN_K_JOIN: return check_bytes(c);
    case QN_K_COMPARE:
    case QN_K_SELECT: return check_choice(c);
    case QN_K_CONVERT:
    case QN_K_BITCAST:
    case QN_K_SPLAT:
    case QN_K_RAMP:
    case QN_K_EXTRACT:
    case QN_K_SHUFFLE:
    case QN_K_REDUCE: return check_lanes(c);
    case QN_K_LOAD:
    case QN_K_STORE:
    case QN_K_PREFETCH:
    case QN_K_ATOMIC_ADD: return check_memory(c);
    case QN_K_WARP_SHUFFLE:
    case QN_K_WARP_LOAD:
    case QN_K_WARP_MMA: return check_warp(c);
    case QN_K_FOR:
    case QN_K_IF:
    case QN_K_CHECK: return check_control(c);
    case QN_K_BARRIER: return c->k->gpu_threads ? NULL : "is for GPUs, but the kernel has no gpu_threads";
    case QN_K_TILE_SHAPE:
    case QN_K_TILE_ZERO:
    case QN_K_TILE_LOAD:
    case QN_K_TILE_STORE:
    case QN_K_TILE_MMA: return check_tile(c);
    }
    return "is no kernel instruction";
}

const char *qn_kinst_mistake(const qn_kernel *k, const qn_kinst *inst, qn_arena *arena)
{
    const checker checked = { k, inst, arena }, *c = &checked;
    if (inst->n_operands < arity[inst->op].min || inst->n_operands > arity[inst->op].max)
        MISTAKE("has %d operands", inst->n_operands);
    if (arity[inst->op].results >= 0 && inst->n_results != arity[inst->op].results)
        MISTAKE("has %d results", inst->n_results);
    for (int i = 0; i < inst->n_results; i++)
        if (!lanes_are_good(inst->results[i].type.lanes))
            MISTAKE("result has %d lanes; 1, 2, 4 … 64 are possible", inst->results[i].type.lanes);
    return check_inst(c);
}

/* ---- the kernel ---- */

typedef struct verifier {
    const qn_kernel *k;
    qn_arena *arena;
    qn_diags *diags;
    int position; /* values get ids in order of definition, from 1 */
} verifier;

static const char *describe(const qn_kinst *inst)
{
    return inst->op == QN_K_UNARY || inst->op == QN_K_BINARY ? qn_ops[inst->fn].name : qn_kop_names[inst->op];
}

static qn_status complain(verifier *v, const qn_kinst *inst, const char *mistake)
{
    return qn_error(v->diags, QUERN_ERROR_INTERNAL, NULL, "kernel %s: %s%s%s", v->k->name,
                    inst ? describe(inst) : "", inst ? " " : "", mistake);
}

/* Defined before, in this block or one around it. */
static bool dominates(const verifier *v, qn_kvalue *value, const qn_kblock *block)
{
    const qn_kblock *home = qn_kvalue_block(value);
    return home && qn_kblock_inside(block, home) && qn_kblock_inside(home, v->k->body) && value->id > 0 &&
           value->id <= v->position;
}

static void define(verifier *v, qn_kvalue *values, int n)
{
    for (int i = 0; i < n; i++)
        values[i].id = ++v->position;
}

static void reset_ids(qn_kblock *block)
{
    for (int i = 0; i < block->n_arguments; i++)
        block->arguments[i].id = 0;
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_results; i++)
            inst->results[i].id = 0;
        for (int i = 0; i < inst->n_blocks; i++)
            reset_ids(inst->blocks[i]);
    }
}

static qn_status verify_block(verifier *v, qn_kblock *block);

static qn_status verify_blocks(verifier *v, qn_kinst *inst)
{
    if (inst->n_blocks != (inst->op == QN_K_FOR ? 1 : 2))
        return complain(v, inst, "has the wrong number of blocks");
    for (int b = 0; b < inst->n_blocks; b++) {
        qn_kblock *block = inst->blocks[b];
        int arguments = inst->op == QN_K_FOR ? 1 + inst->n_results : 0;
        if (block->owner != inst || block->n_arguments != arguments)
            return complain(v, inst, "has a block with wrong arguments");
        for (int i = 0; i < arguments; i++) {
            qn_ktype type = i ? inst->operands[2 + i]->type : qn_ktype_make(QUERN_I64, 1);
            if (!qn_ktype_equal(block->arguments[i].type, type))
                return complain(v, inst, "has a block argument of a wrong type");
        }
        if (block->n_yields != inst->n_results)
            return complain(v, inst,
                            qn_arena_printf(v->arena, "has a block that yields %d values for %d results",
                                            block->n_yields, inst->n_results));
        QN_TRY(verify_block(v, block));
        for (int i = 0; i < inst->n_results; i++)
            if (!qn_ktype_equal(block->yields[i]->type, inst->results[i].type) ||
                (inst->op == QN_K_FOR && !qn_ktype_equal(inst->operands[3 + i]->type, inst->results[i].type)))
                return complain(v, inst,
                                qn_arena_printf(v->arena, "yields a %s for a result of %s",
                                                qn_ktype_print(block->yields[i]->type, v->arena),
                                                qn_ktype_print(inst->results[i].type, v->arena)));
    }
    return QUERN_OK;
}

static qn_status verify_block(verifier *v, qn_kblock *block)
{
    define(v, block->arguments, block->n_arguments);
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (inst->parent != block || (inst->next ? inst->next->prev != inst : block->last != inst))
            return complain(v, inst, "is linked wrongly");
        for (int i = 0; i < inst->n_operands; i++)
            if (!inst->operands[i] || !dominates(v, inst->operands[i], block))
                return complain(v, inst,
                                qn_arena_printf(v->arena, "reads operand %d before its definition", i));
        const char *mistake = qn_kinst_mistake(v->k, inst, v->arena);
        if (mistake)
            return complain(v, inst, mistake);
        if (inst->op == QN_K_FOR || inst->op == QN_K_IF)
            QN_TRY(verify_blocks(v, inst));
        define(v, inst->results, inst->n_results);
    }
    for (int i = 0; i < block->n_yields; i++)
        if (!block->yields[i] || !dominates(v, block->yields[i], block))
            return complain(v, block->owner,
                            qn_arena_printf(v->arena, "yields value %d before its definition", i));
    return QUERN_OK;
}

static qn_status verify_buffers(verifier *v)
{
    const qn_kernel *k = v->k;
    int64_t local = 0;
    for (int i = 0; i < k->n_all_buffers; i++) {
        const qn_kbuffer *buffer = k->buffers[i];
        bool argument = i < k->n_buffers;
        if ((buffer->space == QN_SPACE_ARGUMENT) != argument || (argument && buffer->index != i))
            return complain(v, NULL, "buffers are out of order");
        for (int j = 0; j < i; j++)
            if (!strcmp(buffer->name, k->buffers[j]->name))
                return complain(v, NULL,
                                qn_arena_printf(v->arena, "two buffers are called %s", buffer->name));
        if (buffer->align < 1 || (buffer->align & (buffer->align - 1)))
            return complain(v, NULL,
                            qn_arena_printf(v->arena, "%s: alignment %d is not a power of two", buffer->name,
                                            buffer->align));
        if (buffer->inplace >= 0 &&
            (!argument || buffer->inplace >= k->n_buffers || buffer->inplace == i || !buffer->written))
            return complain(v, NULL,
                            qn_arena_printf(v->arena, "%s is in place of no argument", buffer->name));
        if (argument)
            continue;
        if (buffer->space == QN_SPACE_SHARED && !k->gpu_threads)
            return complain(v, NULL, "shared memory is for GPUs, but there is no gpu_threads");
        if (buffer->space == QN_SPACE_LOCAL && k->by_thread)
            return complain(v, NULL, "a kernel of each thread has no local memory");
        int64_t bytes = (int64_t)qn_dtype_bytes(buffer->dtype);
        if (buffer->elements < 0 || buffer->elements > QN_LOCAL_LIMIT / bytes)
            return complain(v, NULL,
                            qn_arena_printf(v->arena,
                                            "%s has %lld elements; a kernel's local memory is %d bytes",
                                            buffer->name, (long long)buffer->elements, QN_LOCAL_LIMIT));
        local += buffer->elements * bytes;
    }
    if (local > QN_LOCAL_LIMIT)
        return complain(v, NULL,
                        qn_arena_printf(v->arena, "local memory of %lld bytes; the limit is %d",
                                        (long long)local, QN_LOCAL_LIMIT));
    return QUERN_OK;
}

qn_status qn_kernel_verify(const qn_kernel *kernel, qn_diags *diags)
{
    verifier v = { .k = kernel, .arena = diags->arena, .diags = diags };
    QN_TRY(verify_buffers(&v));
    for (int i = 0; i < kernel->n_params; i++)
        if (kernel->param_min[i] > kernel->param_max[i] || kernel->param_multiple[i] < 1)
            return complain(&v, NULL,
                            qn_arena_printf(diags->arena, "parameter %s has an empty range or no divisor",
                                            kernel->param_names[i]));
    reset_ids(kernel->body);
    if (kernel->body->owner || kernel->body->n_arguments || kernel->body->n_yields)
        return complain(&v, NULL, "the body takes or yields values");
    return verify_block(&v, kernel->body);
}
