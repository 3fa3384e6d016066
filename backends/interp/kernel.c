/* The kernel interpreter: runs kernel IR exactly as ir/kernel.h and ir/ops.def define it, lane by lane. It is the judge
 * of the kernel passes and of the backends, so it is plain. Local memory is bounds-checked and starts as all ones (NaN).
 *
 * Every lane of every value has one qn_scalar in a frame; qn_kvalue.id is where. A kernel is run by one thread at a time. */
#include <math.h>
#include <string.h>

#include "backends/backend.h"
#include "backends/interp/tiles.h"
#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"

typedef enum outcome { GO_ON, TASK_ENDS, BROKEN } outcome;

typedef struct machine {
    const qn_kernel *k;
    int64_t *args, task;
    qn_scalar *frame;
    unsigned char **base; /* per buffer */
    qn_scalar *carried;   /* scratch for the values that a loop or a branch hands over */
    int n_slots, n_carried;
    qn_tiles tiles;
    int thread_loops; /* open loops that stand for the threads of a GPU block */
    int thread;       /* whose frame it is, in a kernel of each thread */
    qn_scalar *frames;
    qn_arena *arena;
    qn_diags *diags;
} machine;

/* ---- layout ---- */

static void place(machine *m, qn_kvalue *values, int n)
{
    int lanes = 0;
    for (int i = 0; i < n; i++) {
        values[i].id = m->n_slots;
        m->n_slots += values[i].type.lanes;
        lanes += values[i].type.lanes;
    }
    if (lanes > m->n_carried)
        m->n_carried = lanes;
}

static void place_block(machine *m, const qn_kblock *block)
{
    place(m, block->arguments, block->n_arguments);
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        place(m, inst->results, inst->n_results);
        for (int i = 0; i < inst->n_blocks; i++)
            place_block(m, inst->blocks[i]);
    }
}

static qn_scalar *lanes_of(const machine *m, const qn_kvalue *v)
{
    return m->frame + v->id;
}

static int64_t index_of(const machine *m, const qn_kvalue *v)
{
    return lanes_of(m, v)->i;
}

/* Copies all of `from` before any of `to` is written: a loop may swap its carried values. */
static void hand_over(machine *m, qn_kvalue *const *from, qn_kvalue *to, int n)
{
    qn_scalar *at = m->carried;
    for (int i = 0; i < n; i++, at += to[i - 1].type.lanes)
        memcpy(at, lanes_of(m, from[i]), (size_t)to[i].type.lanes * sizeof *at);
    at = m->carried;
    for (int i = 0; i < n; i++, at += to[i - 1].type.lanes)
        memcpy(lanes_of(m, &to[i]), at, (size_t)to[i].type.lanes * sizeof *at);
}

static outcome broken(machine *m, const char *what)
{
    qn_error(m->diags, QUERN_ERROR_INTERNAL, NULL, "kernel %s, task %lld: %s", m->k->name, (long long)m->task,
             what);
    return BROKEN;
}

/* ---- arithmetic ---- */

/* The commonest operations without the way through qn_keval_*; true when it was one. */
static bool binary_quickly(const qn_kinst *inst, const qn_scalar *a, const qn_scalar *b, qn_scalar *r)
{
    int n = inst->results[0].type.lanes;
    qn_dtype dtype = inst->results[0].type.dtype;
#define EACH(expression)                  \
    for (int i = 0; i < n; i++)           \
        r[i] = (qn_scalar){ expression }; \
    return true
    if (dtype == QUERN_F32) {
        switch (inst->fn) {
        case QN_OP_ADD: EACH(.f = (float)(a[i].f + b[i].f));
        case QN_OP_SUB: EACH(.f = (float)(a[i].f - b[i].f));
        case QN_OP_MUL: EACH(.f = (float)(a[i].f * b[i].f));
        case QN_OP_DIV: EACH(.f = (float)(a[i].f / b[i].f));
        default: return false;
        }
    }
    if (dtype == QUERN_I64) {
        switch (inst->fn) {
        case QN_OP_ADD: EACH(.i = (int64_t)((uint64_t)a[i].i + (uint64_t)b[i].i));
        case QN_OP_SUB: EACH(.i = (int64_t)((uint64_t)a[i].i - (uint64_t)b[i].i));
        case QN_OP_MUL: EACH(.i = (int64_t)((uint64_t)a[i].i * (uint64_t)b[i].i));
        default: return false;
        }
    }
#undef EACH
    return false;
}

static qn_scalar reduce(const qn_kinst *inst, const qn_scalar *a)
{
    static const qn_op ops[] = {
        [QN_SUM] = QN_OP_ADD, [QN_PROD] = QN_OP_MUL, [QN_KIND_MAX] = QN_OP_MAX, [QN_KIND_MIN] = QN_OP_MIN
    };
    qn_dtype dtype = inst->results[0].type.dtype;
    qn_scalar lanes[64];
    int n = inst->operands[0]->type.lanes;
    memcpy(lanes, a, (size_t)n * sizeof *lanes);
    for (n /= 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            lanes[i] = qn_keval_binary(ops[inst->kind], dtype, lanes[i], lanes[i + n]);
    return lanes[0];
}

static qn_scalar dot4(qn_scalar *const *o, int i)
{
    int64_t sum = o[2][i].i;
    for (int k = 4 * i; k < 4 * i + 4; k++)
        sum += o[0][k].i * o[1][k].i;
    return qn_keval_normal(QUERN_I32, (qn_scalar){ .i = sum });
}

static qn_scalar dot2(qn_scalar *const *o, int i)
{
    float sum = (float)o[2][i].f;
    for (int k = 2 * i + 1; k >= 2 * i; k--)
        sum = fmaf((float)o[0][k].f, (float)o[1][k].f, sum);
    return (qn_scalar){ .f = sum };
}

static qn_scalar mmla(const qn_kinst *inst, qn_scalar *const *o, int i)
{
    const bool floats = inst->results[0].type.dtype == QUERN_F32;
    const int n = floats ? 4 : 8;
    const qn_scalar *x = o[0] + i / 4 * 2 * n + i / 2 % 2 * n, *y = o[1] + i / 4 * 2 * n + i % 2 * n;
    int64_t whole = o[2][i].i;
    float sum = (float)o[2][i].f;
    for (int k = 0; k < n; k++) {
        whole += floats ? 0 : x[k].i * y[k].i;
        sum = floats ? fmaf((float)x[k].f, (float)y[k].f, sum) : 0;
    }
    return floats ? (qn_scalar){ .f = sum } : qn_keval_normal(QUERN_I32, (qn_scalar){ .i = whole });
}

static qn_scalar join(qn_dtype dtype, const qn_scalar *bytes)
{
    static const qn_dtype bits[] = { [2] = QUERN_U16, [4] = QUERN_U32, [8] = QUERN_U64 };
    const int size = (int)qn_dtype_bytes(dtype);
    uint64_t all = 0;
    for (int i = size - 1; i >= 0; i--)
        all = all << 8 | (uint8_t)bytes[i].i;
    const qn_scalar whole = { .i = (int64_t)all };
    return dtype == bits[size] ? whole : qn_keval_bitcast(bits[size], dtype, whole);
}

static qn_scalar lane(machine *m, const qn_kinst *inst, qn_scalar *const *o, int i)
{
    qn_dtype dtype = inst->results[0].type.dtype;
    qn_dtype from = inst->n_operands ? inst->operands[0]->type.dtype : dtype;
    switch (inst->op) {
    case QN_K_CONST: return inst->imm;
    case QN_K_PARAM: return (qn_scalar){ .i = m->args[1 + m->k->n_buffers + inst->index] };
    case QN_K_TASK: return (qn_scalar){ .i = m->task };
    case QN_K_THREAD: return (qn_scalar){ .i = m->thread };
    case QN_K_UNARY: return qn_keval_unary(inst->fn, from, o[0][i]);
    case QN_K_BINARY: return qn_keval_binary(inst->fn, from, o[0][i], o[1][i]);
    case QN_K_FMA: return qn_keval_fma(dtype, o[0][i], o[1][i], o[2][i]);
    case QN_K_DOT4: return dot4(o, i);
    case QN_K_DOT2: return dot2(o, i);
    case QN_K_MMLA: return mmla(inst, o, i);
    case QN_K_COMPARE: return (qn_scalar){ .i = qn_keval_compare(inst->direction, from, o[0][i], o[1][i]) };
    case QN_K_SELECT: return o[0][i].i ? o[1][i] : o[2][i];
    case QN_K_CONVERT: return qn_keval_convert(from, dtype, o[0][i]);
    case QN_K_BITCAST: return qn_keval_bitcast(from, dtype, o[0][i]);
    case QN_K_SCALE2: return qn_keval_scale2(dtype, o[0][i], o[1][i]);
    case QN_K_LOOKUP: return (qn_scalar){ .f = inst->table[(uint64_t)o[0][i].i % QN_LOOKUP] };
    case QN_K_PICK: return o[1][(uint64_t)o[0][i].i % 16];
    case QN_K_JOIN: return join(dtype, o[0] + (ptrdiff_t)i * (int)qn_dtype_bytes(dtype));
    case QN_K_SPLAT: return o[0][0];
    case QN_K_RAMP:
        return qn_keval_normal(dtype, (qn_scalar){ .i = (int64_t)((uint64_t)o[0][0].i + (uint64_t)i) });
    case QN_K_EXTRACT: return o[0][inst->index];
    case QN_K_SHUFFLE: {
        int from_lanes = inst->operands[0]->type.lanes, at = inst->mask[i];
        return at < from_lanes ? o[0][at] : o[1][at - from_lanes];
    }
    case QN_K_REDUCE: return reduce(inst, o[0]);
    default: QN_UNREACHABLE("kernel instruction %d has no value", inst->op);
    }
}

static void run_value(machine *m, const qn_kinst *inst)
{
    qn_scalar *o[3] = { 0 }, *r = lanes_of(m, &inst->results[0]);
    for (int i = 0; i < inst->n_operands; i++)
        o[i] = lanes_of(m, inst->operands[i]);
    if (inst->op == QN_K_BINARY && binary_quickly(inst, o[0], o[1], r))
        return;
    if (inst->op == QN_K_FMA && inst->results[0].type.dtype == QUERN_F32) {
        for (int i = 0; i < inst->results[0].type.lanes; i++)
            r[i].f = fmaf((float)o[0][i].f, (float)o[1][i].f, (float)o[2][i].f);
        return;
    }
    for (int i = 0; i < inst->results[0].type.lanes; i++)
        r[i] = lane(m, inst, o, i);
}

/* ---- memory ---- */

static int buffer_number(const machine *m, const qn_kbuffer *buffer)
{
    if (buffer->space == QN_SPACE_ARGUMENT)
        return buffer->index;
    for (int i = m->k->n_buffers; i < m->k->n_all_buffers; i++)
        if (m->k->buffers[i] == buffer)
            return i;
    QN_UNREACHABLE("kernel %s has no buffer %s", m->k->name, buffer->name);
}

static outcome run_memory(machine *m, const qn_kinst *inst)
{
    const qn_kbuffer *buffer = inst->buffer;
    bool load = inst->op == QN_K_LOAD;
    const qn_kvalue *index = inst->operands[0], *value = load ? &inst->results[0] : inst->operands[1];
    int at = load ? 1 : 2;
    const qn_scalar *mask = at < inst->n_operands ? lanes_of(m, inst->operands[at]) : NULL;
    const qn_scalar *other = at + 1 < inst->n_operands ? lanes_of(m, inst->operands[at + 1]) : NULL;
    qn_scalar *v = lanes_of(m, value);
    unsigned char *base = m->base[buffer_number(m, buffer)];
    int64_t bytes = (int64_t)qn_dtype_bytes(buffer->dtype);
    for (int i = 0; i < value->type.lanes; i++) {
        if (mask && !mask[i].i) {
            if (load)
                v[i] = other ? other[i] : (qn_scalar){ .i = 0 };
            continue;
        }
        int64_t element = index->type.lanes == 1 ? index_of(m, index) + i : lanes_of(m, index)[i].i;
        if (buffer->space != QN_SPACE_ARGUMENT && (element < 0 || element >= buffer->elements))
            return broken(m, qn_arena_printf(m->arena, "element %lld of %s, which has %lld",
                                             (long long)element, buffer->name, (long long)buffer->elements));
        unsigned char *address = base + element * bytes;
        if (load)
            v[i] = qn_scalar_load(buffer->dtype, address);
        else if (inst->op == QN_K_STORE)
            qn_scalar_store(buffer->dtype, v[i], address);
        else
            qn_scalar_store(
                buffer->dtype,
                qn_keval_binary(QN_OP_ADD, buffer->dtype, qn_scalar_load(buffer->dtype, address), v[i]),
                address);
    }
    return GO_ON;
}

static outcome run_tile(machine *m, const qn_kinst *inst)
{
    int64_t rows[QN_TILES], row_bytes = 0;
    unsigned char *at = NULL;
    for (int i = 0; i < QN_TILES && inst->op == QN_K_TILE_SHAPE; i++)
        rows[i] = index_of(m, inst->operands[i]);
    if (inst->buffer) {
        const int64_t bytes = (int64_t)qn_dtype_bytes(inst->buffer->dtype);
        const int64_t first = index_of(m, inst->operands[0]), stride = index_of(m, inst->operands[1]);
        const int64_t last = first + (m->tiles.rows[inst->mask[0]] - 1) * stride + QN_TILE_BYTES / bytes - 1;
        if (inst->buffer->space != QN_SPACE_ARGUMENT && (first < 0 || last >= inst->buffer->elements))
            return broken(m, qn_arena_printf(m->arena, "a tile of %s from %lld to %lld, which has %lld",
                                             inst->buffer->name, (long long)first, (long long)last,
                                             (long long)inst->buffer->elements));
        at = m->base[buffer_number(m, inst->buffer)] + first * bytes;
        row_bytes = stride * bytes;
    }
    const char *wrong = qn_tiles_run(&m->tiles, inst, at, row_bytes, rows);
    return wrong ? broken(m, wrong) : GO_ON;
}

/* ---- control ---- */

static outcome run_block(machine *m, const qn_kblock *block);

static outcome run_for(machine *m, const qn_kinst *inst)
{
    const qn_kblock *body = inst->blocks[0];
    int64_t low = index_of(m, inst->operands[0]), high = index_of(m, inst->operands[1]);
    int64_t step = index_of(m, inst->operands[2]);
    int n = inst->n_results;
    if (step < 1)
        return broken(m, "a loop's step is not positive");
    m->thread_loops += inst->tag == QN_TAG_GPU_THREAD;
    hand_over(m, inst->operands + 3, body->arguments + 1, n);
    outcome result = GO_ON;
    for (int64_t i = low; i < high;) {
        lanes_of(m, &body->arguments[0])->i = i;
        result = run_block(m, body);
        if (result != GO_ON)
            break;
        hand_over(m, body->yields, body->arguments + 1, n);
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    for (int i = 0; i < n; i++)
        memcpy(lanes_of(m, &inst->results[i]), lanes_of(m, &body->arguments[1 + i]),
               (size_t)inst->results[i].type.lanes * sizeof(qn_scalar));
    m->thread_loops -= inst->tag == QN_TAG_GPU_THREAD;
    return result;
}

static outcome run_inst(machine *m, const qn_kinst *inst)
{
    switch (inst->op) {
    case QN_K_LOAD:
    case QN_K_STORE:
    case QN_K_ATOMIC_ADD: return run_memory(m, inst);
    case QN_K_PREFETCH: return GO_ON;
    case QN_K_FOR: return run_for(m, inst);
    case QN_K_IF: {
        const qn_kblock *taken = inst->blocks[index_of(m, inst->operands[0]) ? 0 : 1];
        outcome result = run_block(m, taken);
        if (result == GO_ON)
            hand_over(m, taken->yields, inst->results, inst->n_results);
        return result;
    }
    case QN_K_CHECK:
        for (int i = 0; i < inst->operands[0]->type.lanes; i++)
            if (!lanes_of(m, inst->operands[0])[i].i) {
                m->args[0] = inst->index;
                return TASK_ENDS;
            }
        return GO_ON;
    case QN_K_BARRIER: return m->thread_loops ? broken(m, "a barrier among the threads of a loop") : GO_ON;
    case QN_K_TILE_SHAPE:
    case QN_K_TILE_ZERO:
    case QN_K_TILE_LOAD:
    case QN_K_TILE_STORE:
    case QN_K_TILE_MMA: return run_tile(m, inst);
    default: run_value(m, inst); return GO_ON;
    }
}

static outcome run_block(machine *m, const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        outcome result = run_inst(m, inst);
        if (result != GO_ON)
            return result;
    }
    return GO_ON;
}

/* ---- kernels of each thread: one instruction after the other, each by all threads that are `in` ---- */

static void become(machine *m, int thread)
{
    m->thread = thread;
    m->frame = m->frames + (size_t)thread * (size_t)m->n_slots;
}

static outcome threads_block(machine *m, const qn_kblock *block, const bool *in);

static outcome threads_for(machine *m, const qn_kinst *inst, const bool *in)
{
    const qn_kblock *body = inst->blocks[0];
    const int n = m->k->gpu_threads;
    bool going[n];
    outcome result = GO_ON;
    for (int t = 0; t < n; t++) {
        going[t] = in[t];
        if (!in[t])
            continue;
        become(m, t);
        if (index_of(m, inst->operands[2]) < 1)
            return broken(m, "a loop's step is not positive");
        hand_over(m, inst->operands + 3, body->arguments + 1, inst->n_results);
        lanes_of(m, &body->arguments[0])->i = index_of(m, inst->operands[0]);
    }
    for (bool any = true; any && result == GO_ON;) {
        any = false;
        for (int t = 0; t < n; t++) {
            become(m, t);
            going[t] = going[t] && index_of(m, &body->arguments[0]) < index_of(m, inst->operands[1]);
            any |= going[t];
        }
        if (any)
            result = threads_block(m, body, going);
        for (int t = 0; t < n && any; t++) {
            if (!going[t])
                continue;
            become(m, t);
            int64_t *at = &lanes_of(m, &body->arguments[0])->i;
            hand_over(m, body->yields, body->arguments + 1, inst->n_results);
            going[t] = !__builtin_add_overflow(*at, index_of(m, inst->operands[2]), at);
        }
    }
    for (int t = 0; t < n; t++) {
        become(m, t);
        for (int i = 0; in[t] && i < inst->n_results; i++)
            memcpy(lanes_of(m, &inst->results[i]), lanes_of(m, &body->arguments[1 + i]),
                   (size_t)inst->results[i].type.lanes * sizeof(qn_scalar));
    }
    return result;
}

static outcome threads_if(machine *m, const qn_kinst *inst, const bool *in)
{
    const int n = m->k->gpu_threads;
    outcome result = GO_ON;
    for (int which = 0; which < 2 && result == GO_ON; which++) {
        bool taking[n];
        for (int t = 0; t < n; t++) {
            become(m, t);
            taking[t] = in[t] && (index_of(m, inst->operands[0]) != 0) == (which == 0);
        }
        result = threads_block(m, inst->blocks[which], taking);
        for (int t = 0; t < n; t++) {
            become(m, t);
            if (taking[t])
                hand_over(m, inst->blocks[which]->yields, inst->results, inst->n_results);
        }
    }
    return result;
}

static outcome threads_barrier(machine *m, const bool *in)
{
    for (int t = 0; t < m->k->gpu_threads; t++)
        if (!in[t])
            return broken(m, "a barrier that not all threads come to");
    return GO_ON;
}

/* ---- what a warp does together: pieces of tiles of 8 x 8, see QN_K_WARP_LOAD ---- */

enum { WARP = 32, TILE = 8 };

static qn_scalar *lanes_of_thread(const machine *m, const qn_kvalue *v, int thread)
{
    return m->frames + (size_t)thread * (size_t)m->n_slots + v->id;
}

/* Element [row][column] of tile `number` of a value whose lanes are pieces, of the warp that begins at thread `first`. */
static qn_scalar *in_tile(const machine *m, const qn_kvalue *v, int first, int number, int row, int column)
{
    return &lanes_of_thread(m, v, first + 4 * row + column / 2)[2 * number + column % 2];
}

static outcome warp_load(machine *m, const qn_kinst *inst, int first)
{
    const qn_kbuffer *buffer = inst->buffer;
    const unsigned char *base = m->base[buffer_number(m, buffer)];
    const int64_t bytes = (int64_t)qn_dtype_bytes(buffer->dtype);
    for (int row = 0; row < WARP; row++) {
        const int64_t at = lanes_of_thread(m, inst->operands[0], first + row)->i;
        if (at < 0 || at % TILE || at + TILE > buffer->elements)
            return broken(m, qn_arena_printf(m->arena, "a row at element %lld of %s, which has %lld",
                                             (long long)at, buffer->name, (long long)buffer->elements));
        for (int i = 0; i < TILE; i++)
            *in_tile(m, &inst->results[0], first, row / TILE, inst->index ? i : row % TILE,
                     inst->index ? row % TILE : i) = qn_scalar_load(buffer->dtype, base + (at + i) * bytes);
    }
    return GO_ON;
}

static void warp_mma(const machine *m, const qn_kinst *inst, int first)
{
    for (int row = 0; row < 2 * TILE; row++)
        for (int column = 0; column < TILE; column++) {
            double sum = 0;
            for (int k = 0; k < 2 * TILE; k++)
                sum +=
                    in_tile(m, inst->operands[0], first, k / TILE * 2 + row / TILE, row % TILE, k % TILE)->f *
                    in_tile(m, inst->operands[1], first, k / TILE, column, k % TILE)->f;
            in_tile(m, &inst->results[0], first, row / TILE, row % TILE, column)->f =
                (float)(in_tile(m, inst->operands[2], first, row / TILE, row % TILE, column)->f + sum);
        }
}

static outcome warps(machine *m, const qn_kinst *inst, const bool *in)
{
    outcome result = GO_ON;
    for (int first = 0; first < m->k->gpu_threads && result == GO_ON; first += WARP) {
        int n = 0;
        for (int t = first; t < first + WARP; t++)
            n += in[t];
        if (n > 0 && n < WARP)
            return broken(m, "a warp that is not together");
        for (int t = first; n > 0 && inst->op == QN_K_WARP_SHUFFLE && t < first + WARP; t++)
            *lanes_of_thread(m, &inst->results[0], t) =
                *lanes_of_thread(m, inst->operands[0], first + ((t - first) ^ (int)inst->index));
        if (n > 0 && inst->op == QN_K_WARP_LOAD)
            result = warp_load(m, inst, first);
        else if (n > 0 && inst->op == QN_K_WARP_MMA)
            warp_mma(m, inst, first);
    }
    return result;
}

static outcome threads_block(machine *m, const qn_kblock *block, const bool *in)
{
    outcome result = GO_ON;
    for (const qn_kinst *inst = block->first; inst && result == GO_ON; inst = inst->next) {
        if (inst->op == QN_K_FOR)
            result = threads_for(m, inst, in);
        else if (inst->op == QN_K_IF)
            result = threads_if(m, inst, in);
        else if (inst->op == QN_K_BARRIER)
            result = threads_barrier(m, in);
        else if (inst->op == QN_K_WARP_SHUFFLE || inst->op == QN_K_WARP_LOAD || inst->op == QN_K_WARP_MMA)
            result = warps(m, inst, in);
        else
            for (int t = 0; t < m->k->gpu_threads && result == GO_ON; t++) {
                become(m, t);
                result = in[t] ? run_inst(m, inst) : GO_ON;
            }
    }
    return result;
}

static outcome run_threads(machine *m)
{
    bool in[m->k->gpu_threads];
    memset(in, true, sizeof in);
    return threads_block(m, m->k->body, in);
}

qn_status qn_interp_kernel(const qn_kernel *kernel, int64_t *args, int64_t tasks, qn_diags *diags)
{
    qn_arena *arena = qn_arena_new();
    machine m = { .k = kernel, .args = args, .arena = arena, .diags = diags };
    place_block(&m, kernel->body);
    const int n_frames = kernel->by_thread ? kernel->gpu_threads : 1;
    m.frame = m.frames = QN_NEW_ARRAY(arena, qn_scalar, (size_t)m.n_slots * (size_t)n_frames);
    m.carried = QN_NEW_ARRAY(arena, qn_scalar, m.n_carried);
    m.base = QN_NEW_ARRAY(arena, unsigned char *, kernel->n_all_buffers);
    outcome result = GO_ON;
    for (int i = 0; i < kernel->n_all_buffers; i++) {
        const qn_kbuffer *buffer = kernel->buffers[i];
        m.base[i] = i < kernel->n_buffers
                        ? (unsigned char *)(uintptr_t)args[1 + i]
                        : qn_arena_calloc(arena, (size_t)buffer->elements, qn_dtype_bytes(buffer->dtype));
    }
    for (m.task = 0; m.task < tasks && result != BROKEN; m.task++) {
        for (int i = kernel->n_buffers; i < kernel->n_all_buffers; i++)
            memset(m.base[i], 0xff,
                   (size_t)kernel->buffers[i]->elements * qn_dtype_bytes(kernel->buffers[i]->dtype));
        result = kernel->by_thread ? run_threads(&m) : run_block(&m, kernel->body);
    }
    qn_arena_free(arena);
    return result == BROKEN ? QUERN_ERROR_INTERNAL : QUERN_OK;
}
