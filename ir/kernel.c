/* Kernels: construction, raw instructions and blocks. The builder is in kernel_build.c. */
#include "ir/kernel.h"

#include <ctype.h>
#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"

/* ---- the kernel and its buffers ---- */

qn_kernel *qn_kernel_new(qn_arena *arena, const char *name)
{
    qn_kernel *k = QN_NEW(arena, qn_kernel);
    k->arena = arena;
    k->name = qn_arena_strdup(arena, name);
    k->body = qn_kblock_new(k, NULL, 0, 0, NULL);
    return k;
}

static bool name_taken(const qn_kernel *k, const char *name)
{
    for (int i = 0; i < k->n_all_buffers; i++)
        if (!strcmp(k->buffers[i]->name, name))
            return true;
    for (int i = 0; i < k->n_params; i++)
        if (!strcmp(k->param_names[i], name))
            return true;
    return false;
}

/* A name the text form can say: letters, digits, _ and ., no digit first; different from all others. */
static const char *make_name(qn_kernel *k, const char *wish)
{
    size_t n = wish ? strlen(wish) : 0;
    char *name = qn_arena_alloc(k->arena, n + 2);
    size_t at = 0;
    if (n == 0 || !(isalpha((unsigned char)wish[0]) || wish[0] == '_'))
        name[at++] = '_';
    for (size_t i = 0; i < n; i++)
        name[at++] = isalnum((unsigned char)wish[i]) || wish[i] == '.' ? wish[i] : '_';
    if (!name_taken(k, name))
        return name;
    for (int suffix = 1;; suffix++) {
        char *other = qn_arena_printf(k->arena, "%s.%d", name, suffix);
        if (!name_taken(k, other))
            return other;
    }
}

static qn_kbuffer *add_buffer(qn_kernel *k, const char *name, qn_dtype dtype, qn_space space, int at)
{
    qn_kbuffer *buffer = QN_NEW(k->arena, qn_kbuffer);
    buffer->name = make_name(k, name);
    buffer->dtype = dtype;
    buffer->space = space;
    buffer->inplace = -1;
    buffer->index = at;
    qn_kbuffer **all = QN_NEW_ARRAY(k->arena, qn_kbuffer *, k->n_all_buffers + 1);
    for (int i = 0, old = 0; i <= k->n_all_buffers; i++)
        all[i] = i == at ? buffer : k->buffers[old++];
    k->buffers = all;
    k->n_all_buffers++;
    return buffer;
}

qn_kbuffer *qn_kernel_add_buffer(qn_kernel *k, const char *name, qn_dtype dtype, bool read, bool written,
                                 int align)
{
    qn_kbuffer *buffer = add_buffer(k, name, dtype, QN_SPACE_ARGUMENT, k->n_buffers);
    k->n_buffers++;
    buffer->read = read;
    buffer->written = written;
    buffer->align = align > 0 ? align : (int)qn_dtype_bytes(dtype);
    return buffer;
}

static qn_kbuffer *add_scratch(qn_kernel *k, const char *name, qn_dtype dtype, qn_space space,
                               int64_t elements)
{
    QN_ASSERT(elements >= 0, "kernel %s: a local buffer of %lld elements", k->name, (long long)elements);
    qn_kbuffer *buffer = add_buffer(k, name, dtype, space, k->n_all_buffers);
    buffer->read = buffer->written = true;
    buffer->elements = elements;
    buffer->align = 64;
    return buffer;
}

qn_kbuffer *qn_kernel_add_local(qn_kernel *k, const char *name, qn_dtype dtype, int64_t elements)
{
    return add_scratch(k, name, dtype, QN_SPACE_LOCAL, elements);
}

qn_kbuffer *qn_kernel_add_shared(qn_kernel *k, const char *name, qn_dtype dtype, int64_t elements)
{
    return add_scratch(k, name, dtype, QN_SPACE_SHARED, elements);
}

qn_kvalue *qn_kernel_leaf(qn_kernel *k, qn_kop op, int64_t index)
{
    qn_kinst *before = k->body->first;
    for (; before && (before->op == QN_K_TASK || before->op == QN_K_THREAD || before->op == QN_K_PARAM);
         before = before->next)
        if (before->op == op && before->index == index)
            return &before->results[0];
    qn_ktype type = { QUERN_I64, 1 };
    qn_kinst *inst = qn_kinst_new(k, op, 0, NULL, 1, &type);
    inst->index = index;
    qn_kblock_insert(k->body, inst, before);
    qn_kinst_bound(k, inst);
    return &inst->results[0];
}

qn_kvalue *qn_kernel_param(qn_kernel *k, int number)
{
    QN_ASSERT(number >= 0 && number < k->n_params, "kernel %s has no parameter %d", k->name, number);
    return qn_kernel_leaf(k, QN_K_PARAM, number);
}

static void *grow_array(qn_arena *arena, const void *old, int n, size_t size)
{
    char *new = qn_arena_calloc(arena, (size_t)n + 1, size);
    if (n > 0)
        memcpy(new, old, (size_t)n * size);
    return new;
}

qn_kvalue *qn_kernel_add_param(qn_kernel *k, const char *name, int64_t min, int64_t max, int64_t multiple)
{
    int n = k->n_params;
    QN_ASSERT(min <= max, "kernel %s: parameter %s has the range %lld to %lld", k->name, name, (long long)min,
              (long long)max);
    name = make_name(k, name);
    k->param_names = grow_array(k->arena, k->param_names, n, sizeof *k->param_names);
    k->param_min = grow_array(k->arena, k->param_min, n, sizeof *k->param_min);
    k->param_max = grow_array(k->arena, k->param_max, n, sizeof *k->param_max);
    k->param_multiple = grow_array(k->arena, k->param_multiple, n, sizeof *k->param_multiple);
    k->param_names[n] = name;
    k->param_min[n] = min;
    k->param_max[n] = max;
    k->param_multiple[n] = multiple < 1 ? 1 : multiple;
    k->n_params++;
    return qn_kernel_param(k, n);
}

/* ---- raw instructions ---- */

void qn_kvalue_init(qn_kernel *k, qn_kvalue *v, qn_ktype type, int index)
{
    v->type = type;
    v->index = index;
    v->min = INT64_MIN;
    v->max = INT64_MAX;
    v->multiple = 1;
    v->serial = k->n_serials++;
}

qn_kinst *qn_kinst_new(qn_kernel *k, qn_kop op, int n_operands, qn_kvalue *const *operands, int n_results,
                       const qn_ktype *types)
{
    qn_kinst *inst = QN_NEW(k->arena, qn_kinst);
    inst->op = op;
    inst->n_operands = n_operands;
    inst->n_results = n_results;
    inst->operands = QN_NEW_ARRAY(k->arena, qn_kvalue *, n_operands);
    for (int i = 0; i < n_operands; i++)
        inst->operands[i] = operands[i];
    inst->results = QN_NEW_ARRAY(k->arena, qn_kvalue, n_results);
    for (int i = 0; i < n_results; i++) {
        qn_kvalue_init(k, &inst->results[i], types[i], i);
        inst->results[i].inst = inst;
    }
    return inst;
}

qn_kblock *qn_kblock_new(qn_kernel *k, qn_kinst *owner, int which, int n_arguments, const qn_ktype *types)
{
    qn_kblock *block = QN_NEW(k->arena, qn_kblock);
    block->owner = owner;
    block->n_arguments = n_arguments;
    block->arguments = QN_NEW_ARRAY(k->arena, qn_kvalue, n_arguments);
    for (int i = 0; i < n_arguments; i++) {
        qn_kvalue_init(k, &block->arguments[i], types[i], i);
        block->arguments[i].block = block;
    }
    if (owner) {
        owner->blocks[which] = block;
        if (owner->n_blocks <= which)
            owner->n_blocks = which + 1;
    }
    return block;
}

void qn_kblock_insert(qn_kblock *block, qn_kinst *inst, qn_kinst *before)
{
    inst->parent = block;
    inst->next = before;
    inst->prev = before ? before->prev : block->last;
    *(inst->prev ? &inst->prev->next : &block->first) = inst;
    *(before ? &before->prev : &block->last) = inst;
}

void qn_kinst_unlink(qn_kinst *inst)
{
    *(inst->prev ? &inst->prev->next : &inst->parent->first) = inst->next;
    *(inst->next ? &inst->next->prev : &inst->parent->last) = inst->prev;
    inst->prev = inst->next = NULL;
    inst->parent = NULL;
}

void qn_kblock_set_yields(qn_kernel *k, qn_kblock *block, int n, qn_kvalue *const *yields)
{
    block->n_yields = n;
    block->yields = QN_NEW_ARRAY(k->arena, qn_kvalue *, n);
    for (int i = 0; i < n; i++)
        block->yields[i] = yields[i];
}

bool qn_kinst_is_pure(const qn_kernel *k, const qn_kinst *inst)
{
    switch (inst->op) {
    case QN_K_STORE:
    case QN_K_PREFETCH:
    case QN_K_ATOMIC_ADD:
    case QN_K_FOR:
    case QN_K_IF:
    case QN_K_CHECK:
    case QN_K_BARRIER:
    case QN_K_WARP_LOAD:
    case QN_K_TILE_SHAPE:
    case QN_K_TILE_ZERO:
    case QN_K_TILE_LOAD:
    case QN_K_TILE_STORE:
    case QN_K_TILE_MMA: return false;
    case QN_K_LOAD:
        if (inst->buffer->space != QN_SPACE_ARGUMENT || inst->buffer->written)
            return false;
        for (int i = 0; i < k->n_buffers; i++)
            if (k->buffers[i]->written && k->buffers[i]->inplace == inst->buffer->index)
                return false;
        return true;
    default: return true;
    }
}

qn_kblock *qn_kvalue_block(const qn_kvalue *v)
{
    return v->inst ? v->inst->parent : v->block;
}

bool qn_kblock_inside(const qn_kblock *block, const qn_kblock *ancestor)
{
    while (block && block != ancestor)
        block = block->owner ? block->owner->parent : NULL;
    return block == ancestor;
}

int64_t qn_kfor_trips(const qn_kinst *loop)
{
    const qn_kvalue *low = loop->operands[0], *high = loop->operands[1], *step = loop->operands[2];
    if (qn_k_proven_le(high, low))
        return 0;
    int64_t width, rounded;
    if (!qn_k_is_const(step))
        return -1;
    if (qn_k_is_const(low) && qn_k_is_const(high)) {
        int64_t by = step->inst->imm.i;
        if (by < 1 || __builtin_sub_overflow(high->inst->imm.i, low->inst->imm.i, &width) ||
            __builtin_add_overflow(width, by - 1, &rounded))
            return -1;
        return rounded / by;
    }
    return -1;
}
