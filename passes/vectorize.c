/* Loops tagged vector become vector code.
 *
 * Before:  for %i = %lo to %hi vector { %a = load %x[%i]; %b = mul %a, %s; store %y[%i], %b }
 * After:   for %i = %lo to %lo + n - n%16 step 16 { the same on 16 lanes; %s splatted }
 *          and, where n is no multiple of 16, once more for the lanes that are left: under a mask, or (where masks are dear) one
 *          element at a time.
 *
 * Lane 0 of an index is kept as a scalar together with its stride from lane to lane: stride 0 is uniform and stays scalar,
 * stride 1 makes contiguous loads and stores, 2 to 4 loads of contiguous elements that shuffles choose from, anything else gathers
 * and scatters. An `if` whose condition differs between lanes becomes masks and selects. Carried values become vectors that are
 * combined behind the loop, several of them in long loops to hide the latency of an addition; the order is fixed by the trip count
 * alone.
 *
 * A loop whose body cannot be said in vectors (an inner loop with bounds that differ between lanes, a store to one
 * place) stays as it is, without the tag. */
#include <string.h>

#include "ir/kernel_edit.h"
#include "passes/lower.h"
#include "passes/passes.h"
#include "passes/vector_lanes.h"
#include "passes/words.h"

enum {
    INTERLEAVE = 4,       /* accumulators of a reduction */
    LONG_REDUCTION = 256, /* trips from which they pay; unknown trip counts count as long */
    LINE_BYTES = 64,
    SHORT_BYTES = 16, /* of vectors of which a line is several: such loops are unrolled */
    MOST_COST = 48,   /* instructions of a loop that is unrolled */
    MOST_APART = 4    /* elements from lane to lane where several loads are less than a gather */
};

/* What stands for an old value of the loop's body: the scalar of lane 0 (the rewriter's map) with its stride; a vector;
 * or both. */
typedef struct {
    bool scalar;       /* qn_kr_get is lane 0 */
    int64_t stride;    /* between lanes; 0 for everything that is no index: the same in all lanes */
    qn_kvalue *vector; /* made when first asked for */
} lane_value;

typedef struct {
    qn_krewriter *r;
    const qn_machine *machine;
    lane_value *values; /* by serial number of the old value */
    int n_values;
    int lanes, set;   /* set: which of the vectors of an iteration */
    qn_kvalue *tail;  /* lanes that exist; NULL: all */
    qn_kvalue *taken; /* lanes that are in the current branch; NULL: all */
} vectorizer;

static lane_value *entry(vectorizer *v, const qn_kvalue *old)
{
    static lane_value outside; /* defined before the loop: uniform */
    if (old->serial >= v->n_values) {
        outside = (lane_value){ .scalar = true };
        return &outside;
    }
    return &v->values[old->serial];
}

static void set_scalar(vectorizer *v, qn_kvalue *old, qn_kvalue *made, int64_t stride)
{
    qn_kr_set(old, made);
    v->values[old->serial] = (lane_value){ .scalar = true, .stride = stride };
}

static void set_vector(vectorizer *v, qn_kvalue *old, qn_kvalue *made)
{
    v->values[old->serial] = (lane_value){ .stride = QN_UNKNOWN_STRIDE, .vector = made };
}

static bool is_uniform(vectorizer *v, const qn_kvalue *old)
{
    const lane_value *e = entry(v, old);
    return e->scalar && e->stride == 0;
}

static qn_kvalue *const_vector(qn_kbuilder *b, qn_dtype dtype, int lanes, qn_scalar imm)
{
    return qn_kb_const(b, qn_ktype_make(dtype, lanes), imm);
}

/* base, base + stride, base + 2 stride, … */
static qn_kvalue *index_vector(vectorizer *v, qn_kvalue *base, int64_t stride)
{
    qn_kbuilder *b = &v->r->b;
    if (stride == 0)
        return qn_kb_splat(b, base, v->lanes);
    if (stride == 1)
        return qn_kb_ramp(b, base, v->lanes);
    qn_kvalue *steps = qn_kb_binary(b, QN_OP_MUL, qn_kb_ramp(b, qn_kb_index(b, 0), v->lanes),
                                    const_vector(b, QUERN_I64, v->lanes, (qn_scalar){ .i = stride }));
    return qn_kb_binary(b, QN_OP_ADD, qn_kb_splat(b, base, v->lanes), steps);
}

static qn_kvalue *vector_of(vectorizer *v, qn_kvalue *old)
{
    lane_value *e = entry(v, old);
    if (old->serial < v->n_values && e->vector)
        return e->vector;
    qn_kvalue *made = index_vector(v, qn_kr_get(old), e->stride);
    return made; /* not kept: it may be inside a branch that does not dominate the next use */
}

static qn_kvalue *and_masks(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y)
{
    return !x ? y : !y ? x : qn_kb_binary(b, QN_OP_AND, x, y);
}

static int64_t stride_of(vectorizer *v, const qn_kinst *inst)
{
    if (inst->op != QN_K_BINARY)
        return QN_UNKNOWN_STRIDE;
    const lane_value *x = entry(v, inst->operands[0]);
    const int64_t sx = x->scalar ? x->stride : QN_UNKNOWN_STRIDE;
    const lane_value *y = entry(v, inst->operands[1]);
    const int64_t sy = y->scalar ? y->stride : QN_UNKNOWN_STRIDE;
    if (sx == QN_UNKNOWN_STRIDE || sy == QN_UNKNOWN_STRIDE)
        return QN_UNKNOWN_STRIDE;
    const qn_kvalue *new_x = qn_kr_get(inst->operands[0]), *new_y = qn_kr_get(inst->operands[1]);
    return qn_lane_stride(inst, sx, sy, sx ? new_y : new_x,
                          qn_k_proven_multiple(new_y, v->lanes) && qn_k_proven_multiple(new_x, v->lanes));
}

/* ---- one instruction on lanes ---- */

static void vector_block(vectorizer *v, qn_kblock *block);

/* A quotient of indices by a number, or what is left. Vectors of 64 bits have no upper halves of products, which dividing by a
 * number takes: 32 bits are enough for most; and powers of two take less still where nothing is negative. NULL: not so. */
static qn_kvalue *divide_by_number(vectorizer *v, const qn_kinst *inst, qn_kvalue *const *o)
{
    qn_kbuilder *b = &v->r->b;
    const qn_kvalue *x = inst->operands[0], *y = inst->operands[1];
    if ((inst->fn != QN_OP_DIV && inst->fn != QN_OP_REM) || !qn_k_is_index(&inst->results[0]) || x->min < 0 ||
        !qn_k_is_const(y) || y->inst->imm.i < 1)
        return NULL;
    const int64_t n = y->inst->imm.i;
    if ((n & (n - 1)) == 0 && inst->fn == QN_OP_REM)
        return qn_kb_binary(b, QN_OP_AND, o[0], qn_kb_const(b, o[0]->type, (qn_scalar){ .i = n - 1 }));
    if ((n & (n - 1)) == 0)
        return qn_kb_binary(b, QN_OP_SHIFT_RIGHT, o[0],
                            qn_kb_const(b, o[0]->type, (qn_scalar){ .i = __builtin_ctzll((uint64_t)n) }));
    if (x->max > INT32_MAX || n > INT32_MAX)
        return NULL;
    qn_kvalue *made =
        qn_kb_binary(b, inst->fn, qn_kb_convert(b, QUERN_I32, o[0]), qn_kb_convert(b, QUERN_I32, o[1]));
    return qn_kb_convert(b, QUERN_I64, made);
}

static qn_kvalue *copy_on_lanes(vectorizer *v, const qn_kinst *inst)
{
    qn_kbuilder *b = &v->r->b;
    qn_kvalue *o[3];
    for (int i = 0; i < inst->n_operands; i++)
        o[i] = vector_of(v, inst->operands[i]);
    qn_dtype dtype = inst->results[0].type.dtype;
    switch (inst->op) {
    case QN_K_UNARY:
        return inst->nonpositive ? qn_kb_exp_nonpositive(b, o[0]) : qn_kb_unary(b, inst->fn, o[0]);
    case QN_K_BINARY: {
        qn_kvalue *made = divide_by_number(v, inst, o);
        return made ? made : qn_kb_binary(b, inst->fn, o[0], o[1]);
    }
    case QN_K_FMA: return qn_kb_fma(b, o[0], o[1], o[2]);
    case QN_K_COMPARE: return qn_kb_compare(b, inst->direction, o[0], o[1]);
    case QN_K_SELECT: return qn_kb_select(b, o[0], o[1], o[2]);
    case QN_K_CONVERT: return qn_kb_convert(b, dtype, o[0]);
    case QN_K_BITCAST: return qn_kb_bitcast(b, dtype, o[0]);
    case QN_K_SCALE2: return qn_kb_scale2(b, o[0], o[1]);
    case QN_K_LOOKUP: return qn_kb_lookup(b, inst->table, o[0]);
    default: QN_UNREACHABLE("vectorize: instruction %d on lanes", (int)inst->op);
    }
}

/* Elements `stride` apart from `base` on: as many contiguous loads, of which each begins with the last element of the one before,
 * so that nothing is read before the first lane or behind the last. */
static qn_kvalue *load_apart(vectorizer *v, const qn_kinst *inst, int64_t stride, qn_kvalue *mask)
{
    enum { MOST = 64 };
    qn_kbuilder *b = &v->r->b;
    const int lanes = v->lanes, step = lanes - 1;
    qn_kvalue *made = NULL, *none = mask ? qn_kb_const(b, mask->type, (qn_scalar){ .i = 0 }) : NULL;
    for (int part = 0; part < (int)stride; part++) {
        int chosen[MOST], wanted[MOST];
        for (int i = 0; i < lanes; i++)
            wanted[i] = lanes; /* a lane of `none` */
        for (int i = 0; i < lanes; i++) {
            const int at = i * (int)stride, from = at / step < (int)stride ? at / step : (int)stride - 1;
            chosen[i] = from == part             ? lanes + at - part * step
                        : part == 1 && from == 0 ? at /* of the first load as it is */
                                                 : i;
            if (from == part)
                wanted[at - part * step] = i;
        }
        qn_kvalue *at = qn_kb_iadd(b, qn_kr_get(inst->operands[0]), qn_kb_index(b, (int64_t)part * step));
        if (mask &&
            inst->buffer->space != QN_SPACE_ARGUMENT) /* with no lane, it may begin behind the buffer */
            at = qn_kb_imin(b, at, qn_kb_index(b, inst->buffer->elements - 1));
        qn_kvalue *piece = mask ? qn_kb_load_masked(b, inst->buffer, at, lanes,
                                                    qn_kb_shuffle(b, mask, none, lanes, wanted), NULL)
                                : qn_kb_load(b, inst->buffer, at, lanes);
        made = made ? qn_kb_shuffle(b, made, piece, lanes, chosen) : piece;
    }
    return made;
}

static void vector_load(vectorizer *v, qn_kinst *inst)
{
    qn_kbuilder *b = &v->r->b;
    const lane_value *index = entry(v, inst->operands[0]);
    const bool all_or_none = inst->n_operands > 1 && is_uniform(v, inst->operands[1]);
    if (index->scalar && index->stride == 0 && !v->taken && (inst->n_operands == 1 || all_or_none) &&
        (inst->n_operands < 3 || is_uniform(v, inst->operands[2]))) { /* all lanes the same element */
        qn_kr_copy(v->r, inst);
        set_scalar(v, &inst->results[0], qn_kr_get(&inst->results[0]), 0);
        return;
    }
    qn_kvalue *own = inst->n_operands > 1 ? vector_of(v, inst->operands[1]) : NULL;
    qn_kvalue *other = inst->n_operands > 2 ? vector_of(v, inst->operands[2]) : NULL;
    qn_kvalue *mask = and_masks(b, and_masks(b, v->tail, v->taken), own), *made;
    if (index->scalar && index->stride == -1 && !mask) {
        int reversed[64];
        qn_kvalue *low = qn_kb_isub(b, qn_kr_get(inst->operands[0]), qn_kb_index(b, v->lanes - 1));
        made = qn_kb_load(b, inst->buffer, low, v->lanes);
        for (int i = 0; i < v->lanes; i++)
            reversed[i] = v->lanes - 1 - i;
        made = qn_kb_shuffle(b, made, made, v->lanes, reversed);
    } else if (index->scalar && index->stride > 1 && index->stride <= MOST_APART && !other &&
               (!mask || v->machine->masked)) {
        made = load_apart(v, inst, index->stride, mask);
    } else {
        qn_kvalue *at = index->scalar && index->stride == 1 ? qn_kr_get(inst->operands[0])
                                                            : vector_of(v, inst->operands[0]);
        /* A load that is masked out costs a microcode assist where its address is not mapped: it goes to element 0. */
        if (all_or_none && index->scalar && index->stride == 1)
            at = qn_kb_select(b, qn_kr_get(inst->operands[1]), at, qn_kb_index(b, 0));
        made = mask ? qn_kb_load_masked(b, inst->buffer, at, v->lanes, mask, other)
                    : qn_kb_load(b, inst->buffer, at, v->lanes);
    }
    set_vector(v, &inst->results[0], made);
}

static void vector_store(vectorizer *v, const qn_kinst *inst)
{
    qn_kbuilder *b = &v->r->b;
    const lane_value *index = entry(v, inst->operands[0]);
    qn_kvalue *own = inst->n_operands > 2 ? vector_of(v, inst->operands[2]) : NULL;
    qn_kvalue *mask = and_masks(b, and_masks(b, v->tail, v->taken), own);
    qn_kvalue *at =
        index->scalar && index->stride == 1 ? qn_kr_get(inst->operands[0]) : vector_of(v, inst->operands[0]);
    qn_kinst *store = qn_kb_store(b, inst->buffer, at, vector_of(v, inst->operands[1]), mask);
    if (store && index->scalar && index->stride == 1)
        store->nontemporal = inst->nontemporal;
}

/* Inner loops run all lanes together. */
static void vector_for(vectorizer *v, qn_kinst *inst)
{
    qn_kbuilder *b = &v->r->b;
    qn_arena *arena = b->kernel->arena;
    int n = inst->n_results;
    qn_kvalue **carried = QN_NEW_ARRAY(arena, qn_kvalue *, n);
    for (int i = 0; i < n; i++)
        carried[i] = vector_of(v, inst->operands[3 + i]);
    qn_kinst *loop = qn_kb_for(b, qn_kr_get(inst->operands[0]), qn_kr_get(inst->operands[1]),
                               qn_kr_get(inst->operands[2]), QN_TAG_SERIAL, n, carried, NULL);
    set_scalar(v, qn_loop_counter(inst), qn_loop_counter(loop), 0);
    for (int i = 0; i < n; i++)
        set_vector(v, &inst->blocks[0]->arguments[1 + i], &loop->blocks[0]->arguments[1 + i]);
    vector_block(v, inst->blocks[0]);
    for (int i = 0; i < n; i++)
        carried[i] = vector_of(v, inst->blocks[0]->yields[i]);
    qn_kb_end_for(b, loop, carried);
    for (int i = 0; i < n; i++)
        set_vector(v, &inst->results[i], &loop->results[i]);
}

static void vector_if(vectorizer *v, qn_kinst *inst)
{
    qn_kbuilder *b = &v->r->b;
    int n = inst->n_results;
    qn_kvalue **yields = QN_NEW_ARRAY(b->kernel->arena, qn_kvalue *, 2 * n);
    if (is_uniform(v, inst->operands[0])) {
        qn_kinst *branch = qn_kb_if(b, qn_kr_get(inst->operands[0]));
        for (int side = 0; side < 2; side++) {
            vector_block(v, inst->blocks[side]);
            for (int i = 0; i < n; i++)
                yields[i] = vector_of(v, inst->blocks[side]->yields[i]);
            if (side == 0)
                qn_kb_else(b, branch, n, yields);
            else
                qn_kb_end_if(b, branch, n, yields);
        }
        for (int i = 0; i < n; i++)
            set_vector(v, &inst->results[i], &branch->results[i]);
        return;
    }
    qn_kvalue *condition = vector_of(v, inst->operands[0]), *before = v->taken;
    for (int side = 0; side < 2; side++) {
        qn_kvalue *here = side == 0 ? condition : qn_kb_unary(b, QN_OP_NOT, condition);
        v->taken = and_masks(b, before, here);
        vector_block(v, inst->blocks[side]);
        for (int i = 0; i < n; i++)
            yields[side * n + i] = vector_of(v, inst->blocks[side]->yields[i]);
    }
    v->taken = before;
    for (int i = 0; i < n; i++)
        set_vector(v, &inst->results[i], qn_kb_select(b, condition, yields[i], yields[n + i]));
}

static void vector_check(vectorizer *v, qn_kinst *inst)
{
    qn_kbuilder *b = &v->r->b;
    qn_kvalue *mask = and_masks(b, v->tail, v->taken);
    if (is_uniform(v, inst->operands[0]) && !v->taken) {
        qn_kr_copy(v->r, inst);
        return;
    }
    qn_kvalue *holds = vector_of(v, inst->operands[0]);
    if (mask)
        holds = qn_kb_binary(b, QN_OP_OR, holds, qn_kb_unary(b, QN_OP_NOT, mask));
    qn_kb_check(b, qn_kb_reduce(b, QN_KIND_MIN, holds), (int)inst->index);
}

/* One of the vectors of an iteration fetches a line. */
static bool begins_line(vectorizer *v, const qn_kinst *inst)
{
    const int64_t bytes = (int64_t)v->set * v->lanes * (int64_t)qn_dtype_bytes(inst->buffer->dtype);
    return entry(v, inst->operands[0])->stride != 1 || bytes % LINE_BYTES == 0;
}

static void vector_inst(vectorizer *v, qn_kinst *inst)
{
    v->r->b.fast = inst->fast;
    switch (inst->op) {
    case QN_K_LOAD: vector_load(v, inst); return;
    case QN_K_STORE: vector_store(v, inst); return;
    case QN_K_FOR: vector_for(v, inst); return;
    case QN_K_IF: vector_if(v, inst); return;
    case QN_K_CHECK: vector_check(v, inst); return;
    case QN_K_PREFETCH: /* of lane 0's place */
        if (entry(v, inst->operands[0])->scalar && begins_line(v, inst))
            qn_kr_copy(v->r, inst);
        return;
    default: break;
    }
    bool uniform = true, scalars = true;
    for (int i = 0; i < inst->n_operands; i++) {
        uniform &= is_uniform(v, inst->operands[i]);
        scalars &= entry(v, inst->operands[i])->scalar;
    }
    if (scalars && (uniform || qn_k_is_index(&inst->results[0]))) {
        /* lane 0, and perhaps all there is to know */
        qn_kr_copy(v->r, inst);
        qn_kvalue *made = qn_kr_get(&inst->results[0]);
        int64_t stride = uniform ? 0 : stride_of(v, inst);
        if (stride != QN_UNKNOWN_STRIDE) {
            set_scalar(v, &inst->results[0], made, stride);
            return;
        }
    }
    set_vector(v, &inst->results[0], copy_on_lanes(v, inst));
}

static void vector_block(vectorizer *v, qn_kblock *block)
{
    for (qn_kinst *inst = block->first; inst; inst = inst->next)
        vector_inst(v, inst);
}

/* ---- the loop ---- */

/* The body once, for the lanes from `counter` on; `carried` (vectors) goes in and comes out. */
static void body_once(vectorizer *v, qn_kinst *loop, qn_kvalue *counter, qn_kvalue **carried)
{
    qn_kblock *body = loop->blocks[0];
    set_scalar(v, &body->arguments[0], counter, 1);
    for (int i = 0; i < loop->n_results; i++)
        set_vector(v, &body->arguments[1 + i], carried[i]);
    vector_block(v, body);
    for (int i = 0; i < loop->n_results; i++) {
        qn_kvalue *next = vector_of(v, body->yields[i]);
        carried[i] = v->tail ? qn_kb_select(&v->r->b, v->tail, next, carried[i]) : next;
    }
}

static const qn_op combining[] = {
    [QN_SUM] = QN_OP_ADD, [QN_PROD] = QN_OP_MUL, [QN_KIND_MAX] = QN_OP_MAX, [QN_KIND_MIN] = QN_OP_MIN
};

/* From low to high in steps of `sets` vectors, each with accumulators of its own: carried[set * n + i]. */
static void vector_loop(vectorizer *v, qn_kinst *loop, qn_kvalue *low, qn_kvalue *high, int sets,
                        qn_kvalue **carried)
{
    qn_kbuilder *b = &v->r->b;
    int n = loop->n_results;
    qn_kinst *made = qn_kb_carry(b, low, high, qn_kb_index(b, (int64_t)sets * v->lanes), QN_TAG_SERIAL,
                                 sets * n, carried, NULL);
    for (int set = 0; set < sets; set++) {
        v->set = set;
        body_once(v, loop, qn_kb_iadd(b, qn_loop_counter(made), qn_kb_index(b, (int64_t)set * v->lanes)),
                  carried + set * n);
    }
    v->set = 0;
    qn_kb_end_carry(b, made, carried);
}

/* One prefetch serves a vector; element by element there would be far too many. */
static void drop_prefetches(qn_kblock *block)
{
    for (qn_kinst *inst = block->first, *next; inst; inst = next) {
        next = inst->next;
        for (int i = 0; i < inst->n_blocks; i++)
            drop_prefetches(inst->blocks[i]);
        if (inst->op == QN_K_PREFETCH)
            qn_kinst_unlink(inst);
    }
}

/* What is left, one element at a time; carried are scalars here. */
static void scalar_rest(vectorizer *v, qn_kinst *loop, qn_kvalue *low, qn_kvalue *high, qn_kvalue **carried)
{
    qn_kbuilder *b = &v->r->b;
    qn_kblock *body = loop->blocks[0];
    int n = loop->n_results;
    qn_kinst *rest = qn_kb_carry(b, low, high, qn_kb_index(b, 1), QN_TAG_SERIAL, n, carried, NULL);
    for (int i = 0; i < body->n_arguments; i++)
        qn_kr_set(&body->arguments[i], &rest->blocks[0]->arguments[i]);
    qn_kr_block(v->r, body);
    qn_kr_yields(body, carried);
    qn_kb_end_carry(b, rest, carried);
}

/* Instructions of the block. */
static int cost_of(const qn_kblock *block)
{
    int cost = 0;
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        const bool computes = inst->op == QN_K_UNARY || inst->op == QN_K_BINARY;
        cost += computes && !inst->index_math ? qn_op_cost(inst->fn, inst->results[0].type.dtype) : 1;
        for (int i = 0; i < inst->n_blocks; i++)
            cost += MOST_COST; /* not for an inner loop */
    }
    return cost;
}

/* Vectors of an iteration without sums: of short ones a line, where the body is small, so that a core that computes in order has
 * something to do while one waits, and others less to count. */
static int unroll(const vectorizer *v, const qn_kblock *body)
{
    const int line = LINE_BYTES / SHORT_BYTES;
    int sets = v->machine->vector_bytes == SHORT_BYTES ? line : 1;
    while (sets > 1 && cost_of(body) * sets > MOST_COST)
        sets /= 2;
    return sets;
}

/* Vectors of an iteration with sums. Four powers at a time leave too few registers where vectors are short, since constants take
 * as many. */
static int accumulators(const vectorizer *v, const qn_kblock *body)
{
    const bool much = cost_of(body) > MOST_COST / INTERLEAVE;
    return much && v->machine->vector_bytes == SHORT_BYTES ? INTERLEAVE / 2 : INTERLEAVE;
}

/* Lanes of indices below `high`. Those of more lanes than a vector has words are counted in bytes: one comparison. */
static qn_kvalue *tail_mask(vectorizer *v, qn_kvalue *counter, qn_kvalue *high)
{
    qn_kbuilder *b = &v->r->b;
    if (v->lanes * QN_WORD_BYTES <= v->machine->vector_bytes)
        return qn_kb_compare(b, QN_LT, qn_kb_ramp(b, counter, v->lanes), qn_kb_splat(b, high, v->lanes));
    qn_kvalue *left = qn_kb_convert(b, QUERN_U8, qn_kb_isub(b, high, counter));
    qn_kvalue *none = qn_kb_const(b, qn_ktype_make(QUERN_U8, 1), (qn_scalar){ .i = 0 });
    return qn_kb_compare(b, QN_LT, qn_kb_ramp(b, none, v->lanes), qn_kb_splat(b, left, v->lanes));
}

static void vectorize_loop(vectorizer *v, qn_kinst *loop)
{
    qn_kbuilder *b = &v->r->b;
    qn_arena *arena = b->kernel->arena;
    int n = loop->n_results;
    int64_t trips = qn_kfor_trips(loop);
    qn_kvalue *low = qn_kr_get(loop->operands[0]), *high = qn_kr_get(loop->operands[1]), *at = low;
    qn_kvalue *count = qn_kb_imax(b, qn_kb_isub(b, high, low), qn_kb_index(b, 0));
    const bool is_long = trips < 0 || trips >= LONG_REDUCTION;
    int sets = !is_long || n > 4 ? 1 : n > 0 ? accumulators(v, loop->blocks[0]) : unroll(v, loop->blocks[0]);
    bool exact = qn_k_proven_multiple(count, v->lanes);
    qn_kvalue **carried = QN_NEW_ARRAY(arena, qn_kvalue *, sets * n);
    for (int i = 0; i < sets * n; i++) {
        qn_dtype dtype = loop->results[i % n].type.dtype;
        carried[i] = const_vector(b, dtype, v->lanes, qn_neutral(loop->carried_kinds[i % n], dtype));
    }
    if (sets > 1) {
        qn_kvalue *group = qn_kb_index(b, (int64_t)sets * v->lanes);
        qn_kvalue *end = qn_kb_iadd(b, low, qn_kb_isub(b, count, qn_kb_imod(b, count, group)));
        vector_loop(v, loop, at, end, sets, carried);
        at = end;
        for (int half = sets / 2; half > 0; half /= 2) {
            for (int i = 0; i < half * n; i++)
                carried[i] =
                    qn_kb_binary(b, combining[loop->carried_kinds[i % n]], carried[i], carried[i + half * n]);
        }
    }
    qn_kvalue *end =
        exact ? high
              : qn_kb_iadd(b, low, qn_kb_isub(b, count, qn_kb_imod(b, count, qn_kb_index(b, v->lanes))));
    if (trips < 0 || trips >= v->lanes) {
        vector_loop(v, loop, at, end, 1, carried);
        at = end;
    }
    const int words = v->machine->vector_bytes / QN_WORD_BYTES;
    if (!exact && !v->machine->masked && n == 0 && v->lanes > words) { /* of many lanes, many may be left */
        v->lanes = words;
        end = qn_kb_iadd(b, low, qn_kb_isub(b, count, qn_kb_imod(b, count, qn_kb_index(b, words))));
        vector_loop(v, loop, at, end, 1, carried);
        at = end;
    }
    if (!exact && v->machine->masked) {
        qn_kinst *some = qn_kb_carry(b, at, high, qn_kb_index(b, v->lanes), QN_TAG_SERIAL, n, carried,
                                     NULL); /* once at most */
        qn_kvalue *counter = qn_loop_counter(some);
        v->tail = tail_mask(v, counter, high);
        body_once(v, loop, counter, carried);
        v->tail = NULL;
        qn_kb_end_carry(b, some, carried);
    }
    for (int i = 0; i < n; i++) {
        qn_kvalue *all = qn_kb_reduce(b, loop->carried_kinds[i], carried[i]);
        carried[i] =
            qn_kb_binary(b, combining[loop->carried_kinds[i]], qn_kr_get(loop->operands[3 + i]), all);
    }
    if (!exact && !v->machine->masked) {
        drop_prefetches(loop->blocks[0]);
        scalar_rest(v, loop, at, high, carried);
    }
    for (int i = 0; i < n; i++)
        qn_kr_set(&loop->results[i], carried[i]);
}

static bool is_tagged(const qn_kinst *inst, const void *user)
{
    (void)user;
    return inst->op == QN_K_FOR && inst->tag == QN_TAG_VECTOR;
}

static bool visit(qn_krewriter *r, qn_kinst *inst)
{
    if (!is_tagged(inst, NULL))
        return false;
    vectorizer *v = r->user;
    inst->tag = QN_TAG_SERIAL; /* whatever becomes of it; and no inner loop is tagged inside it twice */
    v->r = r;
    memset(v->values, 0, (size_t)v->n_values * sizeof *v->values);
    v->lanes = qn_choose_lanes(inst, v->n_values, v->machine, v->r->b.kernel->arena);
    if (v->lanes <= 1) {
        drop_prefetches(inst->blocks[0]);
        return false;
    }
    /* what comes from outside the loop is uniform */
    for (int i = 0; i < v->n_values; i++)
        v->values[i] = (lane_value){ .scalar = true };
    vectorize_loop(v, inst);
    return true;
}

void qn_kernel_vectorize(qn_kernel *kernel, const qn_machine *machine)
{
    vectorizer v = { .machine = machine, .n_values = kernel->n_serials };
    if (!qn_kblock_any(kernel->body, is_tagged, NULL))
        return;
    v.values = qn_arena_calloc(kernel->arena, (size_t)v.n_values, sizeof *v.values);
    qn_krewrite(kernel, visit, &v);
}
