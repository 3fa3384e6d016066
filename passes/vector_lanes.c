/* How many lanes a vector loop has: see vector_lanes.h. */
#include "passes/vector_lanes.h"

#include <string.h>

#include "ir/kernel_edit.h"
#include "passes/words.h"

/* ---- strides ---- */

int64_t qn_lane_stride(const qn_kinst *inst, int64_t sx, int64_t sy, const qn_kvalue *factor, bool aligned)
{
    if (!qn_k_is_index(&inst->results[0]) || inst->op != QN_K_BINARY || sx == QN_UNKNOWN_STRIDE ||
        sy == QN_UNKNOWN_STRIDE)
        return QN_UNKNOWN_STRIDE;
    int64_t stride;
    switch (inst->fn) {
    case QN_OP_ADD: return __builtin_add_overflow(sx, sy, &stride) ? QN_UNKNOWN_STRIDE : stride;
    case QN_OP_SUB: return __builtin_sub_overflow(sx, sy, &stride) ? QN_UNKNOWN_STRIDE : stride;
    case QN_OP_MUL:
        if ((sx && sy) || !qn_k_is_const(factor) ||
            __builtin_mul_overflow(sx + sy, factor->inst->imm.i, &stride) || stride > INT32_MAX ||
            stride <= INT32_MIN)
            return QN_UNKNOWN_STRIDE;
        return stride;
    case QN_OP_DIV:
    case QN_OP_REM: /* All lanes lie in one multiple of the divisor: x / n is the same, x % n goes up by one. */
        if (!inst->index_math || sx != 1 || sy != 0 || !aligned)
            return QN_UNKNOWN_STRIDE;
        return inst->fn == QN_OP_DIV ? 0 : 1;
    default: return QN_UNKNOWN_STRIDE;
    }
}

/* ---- what a loop does ---- */

typedef struct {
    bool *varies; /* by serial: differs between lanes; over-estimates strides that cancel */
    int n_values;
    int element_bytes; /* of the widest data that goes through memory or is carried */
    bool possible;
} survey;

static bool operand_varies(const survey *s, const qn_kvalue *x)
{
    return x->serial < s->n_values && s->varies[x->serial];
}

static void survey_block(survey *s, const qn_kblock *block);

static void note_bytes(survey *s, qn_dtype dtype)
{
    int bytes = (int)qn_dtype_bytes(dtype);
    if (bytes > s->element_bytes)
        s->element_bytes = bytes;
}

static void survey_inst(survey *s, const qn_kinst *inst)
{
    bool any = false;
    for (int i = 0; i < inst->n_operands; i++) {
        any |= operand_varies(s, inst->operands[i]);
        s->possible &= inst->operands[i]->type.lanes == 1;
    }
    switch (inst->op) {
    case QN_K_LOAD: note_bytes(s, inst->buffer->dtype); break;
    case QN_K_STORE:
        note_bytes(s, inst->buffer->dtype);
        s->possible &= operand_varies(s, inst->operands[0]); /* else the last lane wins */
        break;
    case QN_K_FOR:
        for (int i = 0; i < 3; i++)
            s->possible &= !operand_varies(s, inst->operands[i]);
        for (int i = 0; i < inst->n_results; i++) {
            s->varies[inst->blocks[0]->arguments[1 + i].serial] = true;
            note_bytes(s, inst->results[i].type.dtype);
        }
        survey_block(s, inst->blocks[0]);
        any = true;
        break;
    case QN_K_IF:
        survey_block(s, inst->blocks[0]);
        survey_block(s, inst->blocks[1]);
        any = true;
        break;
    case QN_K_SPLAT:
    case QN_K_RAMP:
    case QN_K_EXTRACT:
    case QN_K_SHUFFLE:
    case QN_K_REDUCE:
    case QN_K_ATOMIC_ADD:
    case QN_K_BARRIER:
    case QN_K_WARP_SHUFFLE:
    case QN_K_WARP_LOAD:
    case QN_K_WARP_MMA:
    case QN_K_TILE_SHAPE:
    case QN_K_TILE_ZERO:
    case QN_K_TILE_LOAD:
    case QN_K_TILE_STORE:
    case QN_K_TILE_MMA: s->possible = false; break;
    default: break;
    }
    for (int i = 0; i < inst->n_results; i++)
        s->varies[inst->results[i].serial] = any;
}

static void survey_block(survey *s, const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next)
        survey_inst(s, inst);
}

/* ---- loops over bytes ---- */

/* What a loop over elements of one or two bytes does to its values, were it that many lanes. */
typedef struct {
    int64_t *strides; /* by serial; 0: the same in all lanes; QN_UNKNOWN_STRIDE: data */
    bool *aligned;    /* an index that is a multiple of the lanes in lane 0 */
    int n_values;
    int lanes;
    int bytes;   /* of the widest data */
    bool masked; /* masks of memory are cheap; else they are a branch for each lane */
} narrow_loop;

static int64_t narrow_stride(const narrow_loop *w, const qn_kvalue *x)
{
    return x->serial < w->n_values ? w->strides[x->serial] : 0;
}

static bool narrow_aligned(const narrow_loop *w, const qn_kvalue *x)
{
    return narrow_stride(w, x) == 0 ? qn_k_proven_multiple(x, w->lanes) : w->aligned[x->serial];
}

static bool narrow_data(narrow_loop *w, qn_dtype dtype)
{
    const int bytes = (int)qn_dtype_bytes(dtype);
    w->bytes = bytes > w->bytes ? bytes : w->bytes;
    return bytes <= 2;
}

/* Is it one instruction on vectors of bytes? Arithmetic of floats takes wider ones, and so do products and shifts of bytes. */
static bool is_bytewise(const qn_kinst *inst)
{
    for (int i = 0; i < inst->n_operands; i++)
        if (qn_dtype_is_float(inst->operands[i]->type.dtype) && inst->op != QN_K_SELECT)
            return false;
    switch (inst->op) {
    case QN_K_UNARY: return inst->fn == QN_OP_NOT || inst->fn == QN_OP_NEG || inst->fn == QN_OP_ABS;
    case QN_K_BINARY:
        return inst->fn == QN_OP_AND || inst->fn == QN_OP_OR || inst->fn == QN_OP_XOR ||
               inst->fn == QN_OP_ADD || inst->fn == QN_OP_SUB || inst->fn == QN_OP_MAX ||
               inst->fn == QN_OP_MIN;
    case QN_K_COMPARE:
    case QN_K_SELECT: return true;
    case QN_K_CONVERT: return !qn_dtype_is_float(inst->results[0].type.dtype);
    default: return false;
    }
}

static bool narrow_block(narrow_loop *w, const qn_kblock *block);

static bool narrow_inst(narrow_loop *w, const qn_kinst *inst)
{
    bool uniform = true;
    for (int i = 0; i < inst->n_operands; i++)
        uniform &= narrow_stride(w, inst->operands[i]) == 0;
    switch (inst->op) {
    case QN_K_LOAD: {
        const int64_t stride = narrow_stride(w, inst->operands[0]);
        if (uniform)
            return true;
        w->strides[inst->results[0].serial] = QN_UNKNOWN_STRIDE;
        const bool plain = inst->n_operands == 1;
        return ((stride == 1 && (plain || w->masked)) || (stride == -1 && plain)) &&
               narrow_data(w, inst->buffer->dtype);
    }
    case QN_K_STORE:
        return narrow_stride(w, inst->operands[0]) == 1 && (inst->n_operands == 2 || w->masked) &&
               narrow_data(w, inst->buffer->dtype);
    case QN_K_IF:
        for (int i = 0; i < inst->n_results; i++) {
            w->strides[inst->results[i].serial] = QN_UNKNOWN_STRIDE;
            if (!narrow_data(w, inst->results[i].type.dtype))
                return false;
        }
        return uniform && narrow_block(w, inst->blocks[0]) && narrow_block(w, inst->blocks[1]);
    case QN_K_FOR: return false;
    case QN_K_PREFETCH: return true;
    default: break;
    }
    if (uniform)
        return true;
    if (inst->n_results != 1)
        return false;
    const int at = inst->results[0].serial;
    w->strides[at] = QN_UNKNOWN_STRIDE;
    if (!qn_k_is_index(&inst->results[0]))
        return is_bytewise(inst) && narrow_data(w, inst->results[0].type.dtype);
    if (inst->op != QN_K_BINARY)
        return false;
    const qn_kvalue *x = inst->operands[0], *y = inst->operands[1];
    const int64_t sx = narrow_stride(w, x), sy = narrow_stride(w, y);
    const bool both = narrow_aligned(w, x) && narrow_aligned(w, y);
    w->strides[at] = qn_lane_stride(inst, sx, sy, sx ? y : x, both);
    w->aligned[at] =
        inst->fn == QN_OP_MUL ? narrow_aligned(w, x) || narrow_aligned(w, y) : both && inst->fn != QN_OP_DIV;
    return w->strides[at] != QN_UNKNOWN_STRIDE;
}

static bool narrow_block(narrow_loop *w, const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next)
        if (!narrow_inst(w, inst))
            return false;
    return true;
}

/* As many lanes as fit where the loop moves elements of one or two bytes between contiguous places, or does to them what has
 * instructions on bytes; otherwise `lanes`: elements are counted as four bytes, for what they become in between. */
static int narrow_lanes(const qn_kinst *loop, int n_values, const qn_machine *machine, qn_arena *arena,
                        int lanes)
{
    if (loop->n_results)
        return lanes;
    narrow_loop w = { .n_values = n_values, .masked = machine->masked };
    w.strides = QN_NEW_ARRAY(arena, int64_t, n_values);
    w.aligned = QN_NEW_ARRAY(arena, bool, n_values);
    for (w.lanes = machine->vector_bytes; w.lanes > lanes; w.lanes /= 2) {
        const int counter = loop->blocks[0]->arguments[0].serial;
        memset(w.strides, 0, (size_t)n_values * sizeof *w.strides);
        w.bytes = 1;
        w.strides[counter] = 1;
        w.aligned[counter] = qn_k_proven_multiple(loop->operands[0], w.lanes);
        if (narrow_block(&w, loop->blocks[0]) && w.lanes * w.bytes <= machine->vector_bytes)
            return w.lanes;
    }
    return lanes;
}

/* ---- the choice ---- */

int qn_choose_lanes(const qn_kinst *loop, int n_values, const qn_machine *machine, qn_arena *arena)
{
    bool *varies = qn_arena_calloc(arena, (size_t)n_values, sizeof *varies);
    survey s = { .varies = varies, .n_values = n_values, .element_bytes = QN_WORD_BYTES, .possible = true };
    const qn_kblock *body = loop->blocks[0];
    varies[body->arguments[0].serial] = true;
    for (int i = 0; i < loop->n_results; i++) {
        s.possible &= loop->carried_kinds && loop->carried_kinds[i] != QN_SET;
        varies[body->arguments[1 + i].serial] = true;
        note_bytes(&s, loop->results[i].type.dtype);
    }
    survey_block(&s, body);
    const qn_kvalue *step = loop->operands[2];
    if (!s.possible || !qn_k_is_index_const(step, 1))
        return 1;
    int lanes = loop->lanes ? loop->lanes : machine->vector_bytes / s.element_bytes;
    if (!loop->lanes && s.element_bytes == QN_WORD_BYTES)
        lanes = narrow_lanes(loop, n_values, machine, arena, lanes);
    int64_t trips = qn_kfor_trips(loop);
    while (trips >= 0 && (machine->masked ? lanes / 2 >= trips : lanes > trips) && lanes > 1)
        lanes /= 2;
    return lanes < 1 ? 1 : lanes;
}
