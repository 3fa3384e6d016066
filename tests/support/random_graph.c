/* Random graphs: the dice, the pool of values, the main loop, inputs for them. */
#include "tests/support/random_graph.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/random_internal.h"

enum { TAME = 100, SYMBOL_MAX = 5 };

/* ---- dice (splitmix64) ---- */

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t qn_rg_next(qn_rg *g)
{
    return next_random(&g->state);
}

int qn_rg_below(qn_rg *g, int n)
{
    return (int)(qn_rg_next(g) >> 33) % n;
}

bool qn_rg_chance(qn_rg *g, int percent)
{
    return qn_rg_below(g, 100) < percent;
}

bool qn_rg_has(const qn_rg *g, int flag)
{
    return (g->flags & flag) == flag;
}

/* ---- types ---- */

int64_t qn_rg_elements(const qn_type *type)
{
    int64_t n = 1;
    for (int i = 0; i < type->rank; i++)
        n *= type->dims[i]->max < 1000000 ? type->dims[i]->max : 1000000;
    return n;
}

qn_dtype qn_rg_float_dtype(qn_rg *g)
{
    static const qn_dtype narrow[] = { QUERN_F16, QUERN_BF16, QUERN_F64 };
    if (qn_rg_has(g, QN_RANDOM_DOUBLE))
        return QUERN_F64;
    return qn_rg_has(g, QN_RANDOM_NARROW) && qn_rg_chance(g, 40) ? narrow[qn_rg_below(g, 3)] : QUERN_F32;
}

static qn_dtype any_dtype(qn_rg *g)
{
    static const qn_dtype ints[] = { QUERN_BOOL, QUERN_I8,  QUERN_I16, QUERN_I32, QUERN_I64,
                                     QUERN_U8,   QUERN_U16, QUERN_U32, QUERN_U64 };
    if (qn_rg_has(g, QN_RANDOM_INTS) && qn_rg_chance(g, 35))
        return ints[qn_rg_below(g, 9)];
    return qn_rg_float_dtype(g);
}

qn_dim qn_rg_symbol(qn_rg *g)
{
    static const char *const symbols[] = { "n", "m" };
    return qn_dim_symbol(qn_b_dims(&g->b), symbols[qn_rg_below(g, 2)], 1, SYMBOL_MAX);
}

void qn_rg_random_dims(qn_rg *g, int *out_rank, qn_dim *out_dims)
{
    static const int extents[] = { 1, 2, 3, 4, 5, 7, 8, 16, 17 };
    qn_dims *dims = qn_b_dims(&g->b);
    int64_t elements = 1;
    *out_rank = qn_rg_below(g, 5);
    for (int i = 0; i < *out_rank; i++) {
        if (qn_rg_has(g, QN_RANDOM_SYMBOLS) && qn_rg_chance(g, 35)) {
            out_dims[i] = qn_rg_symbol(g);
            if (qn_rg_chance(g, 20))
                out_dims[i] = qn_dim_mul(dims, out_dims[i], qn_dim_const(dims, 2));
        } else {
            out_dims[i] = qn_dim_const(dims, extents[qn_rg_below(g, 9)]);
        }
        if (elements * out_dims[i]->max > QN_RG_MAX_ELEMENTS)
            out_dims[i] = qn_dim_const(dims, 1);
        elements *= out_dims[i]->max;
    }
}

/* ---- the pool ---- */

bool qn_rg_push(qn_rg *g, qn_value *value, double bound, bool exact)
{
    if (!value)
        return false;
    if (qn_dtype_is_float(value->type.dtype) && bound > TAME) {
        value = qn_b_binary_scalar(&g->b, QN_OP_MUL, value, exp2(-ceil(log2(bound / 8))));
        bound = 8;
        exact = false;
    }
    qn_rg_item item = { value, bound, exact };
    qn_vec_push(g->b.graph->module->arena, &g->pool, item);
    return true;
}

static qn_rg_item pick(qn_rg *g, int classes, int min_rank, bool exact)
{
    for (int attempt = 0; attempt < 30 && g->pool.n; attempt++) {
        int n = (int)g->pool.n, recent = n < 6 ? n : 6;
        int at = qn_rg_chance(g, 60) ? n - 1 - qn_rg_below(g, recent) : qn_rg_below(g, n);
        qn_rg_item item = g->pool.items[at];
        if ((qn_dtype_class_of(item.value->type.dtype) & classes) && item.value->type.rank >= min_rank &&
            (item.exact || !exact))
            return item;
    }
    return (qn_rg_item){ 0 };
}

qn_rg_item qn_rg_pick(qn_rg *g, int classes, int min_rank)
{
    return pick(g, classes, min_rank, false);
}

qn_rg_item qn_rg_pick_exact(qn_rg *g, int classes, int min_rank)
{
    return pick(g, classes, min_rank, true);
}

/* An expression that varies over its elements and reads no input. */
static qn_rg_item expression(qn_rg *g, const qn_type *type)
{
    qn_builder *b = &g->b;
    if (type->dtype == QUERN_BOOL)
        return (qn_rg_item){ qn_rg_mask(g, type->rank, type->dims), 1, true };
    int axis = type->rank ? qn_rg_below(g, type->rank) : 0;
    bool steps = type->rank > 0 && type->dims[axis]->max <= 32;
    qn_value *x = steps ? qn_b_iota(b, type, axis) : qn_b_full(b, type, qn_rg_below(g, 5));
    if (!qn_dtype_is_float(type->dtype))
        return (qn_rg_item){ x, 0, true };
    x = qn_b_binary_scalar(b, QN_OP_MUL, x, 0.0625 * (1 + qn_rg_below(g, 2)));
    return (qn_rg_item){ qn_b_binary_scalar(b, QN_OP_SUB, x, 0.5 * qn_rg_below(g, 3)), 4, true };
}

qn_rg_item qn_rg_fresh(qn_rg *g, const qn_type *type)
{
    if (g->in_region || qn_rg_chance(g, 15))
        return expression(g, type);
    const char *name = qn_arena_printf(g->b.graph->module->arena, "in%d", g->n_inputs++);
    qn_input_role role =
        qn_dtype_is_float(type->dtype) && qn_rg_chance(g, 30) ? QN_ROLE_PARAM : QN_ROLE_INPUT;
    return (qn_rg_item){ qn_graph_add_input(g->b.graph, name, *type, role), 2, true };
}

qn_rg_item qn_rg_fresh_static(qn_rg *g, qn_dtype dtype, int rank, const int64_t *dims)
{
    qn_type type = qn_type_static(g->b.graph->module, dtype, rank, dims);
    return qn_rg_fresh(g, &type);
}

qn_rg_item qn_rg_like(qn_rg *g, const qn_type *type)
{
    int n = (int)g->pool.n, start = qn_rg_below(g, n);
    for (int i = 0; i < n && !qn_rg_chance(g, 3); i++) {
        qn_rg_item item = g->pool.items[(start + i) % n];
        if (qn_type_equal(&item.value->type, type))
            return item;
    }
    return qn_rg_chance(g, 50) ? expression(g, type) : qn_rg_fresh(g, type);
}

qn_value *qn_rg_int_constant(qn_rg *g, int rank, const int64_t *dims, int64_t low, int64_t high)
{
    int64_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= dims[i];
    bool narrow = qn_rg_chance(g, 30);
    int64_t *wide = calloc((size_t)n + 1, sizeof *wide);
    int32_t *half = (int32_t *)wide;
    for (int64_t i = 0; i < n; i++) {
        int64_t value = low + (int64_t)(qn_rg_next(g) % (uint64_t)(high - low));
        if (narrow)
            half[i] = (int32_t)value;
        else
            wide[i] = value;
    }
    qn_tensor *tensor = qn_tensor_new(g->b.graph->module, narrow ? QUERN_I32 : QUERN_I64, rank, dims, wide);
    free(wide);
    return qn_b_constant(&g->b, tensor);
}

qn_value *qn_rg_mask(qn_rg *g, int rank, const qn_dim *dims)
{
    qn_builder *b = &g->b;
    qn_type type = qn_type_make(b->graph->module, QUERN_I64, rank, dims);
    if (rank == 0)
        return qn_b_scalar_int(b, QUERN_BOOL, qn_rg_below(g, 2));
    qn_value *position = qn_b_iota(b, &type, qn_rg_below(g, rank));
    if (qn_rg_chance(g, 50))
        position = qn_b_binary_scalar(b, QN_OP_REM, position, 2 + qn_rg_below(g, 2));
    return qn_b_compare(b, (qn_direction)qn_rg_below(g, 6), position, qn_b_full(b, &type, qn_rg_below(g, 3)));
}

/* ---- graphs ---- */

static const qn_rg_choice *const families[] = { qn_rg_elementwise, qn_rg_movement, qn_rg_compute,
                                                qn_rg_control };
enum { N_FAMILIES = sizeof families / sizeof *families };

static bool allowed(const qn_rg *g, const qn_rg_choice *choice)
{
    return qn_rg_has(g, choice->flags) && (choice->smooth || !qn_rg_has(g, QN_RANDOM_SMOOTH));
}

static void step(qn_rg *g)
{
    int total = 0;
    for (int f = 0; f < N_FAMILIES; f++)
        for (const qn_rg_choice *c = families[f]; c->step; c++)
            total += allowed(g, c) ? c->weight : 0;
    int at = qn_rg_below(g, total);
    for (int f = 0; f < N_FAMILIES; f++)
        for (const qn_rg_choice *c = families[f]; c->step; c++) {
            at -= allowed(g, c) ? c->weight : 0;
            if (at < 0) {
                c->step(g);
                return;
            }
        }
}

static int count_nodes(const qn_graph *graph)
{
    int n = 0;
    QN_FOR_NODES (graph, node)
        n++;
    return n;
}

/* Every symbol is the dim of an input, from which whoever runs the graph learns it. */
static void bind_symbols(qn_rg *g)
{
    qn_graph *graph = g->b.graph;
    for (int s = 0; s < qn_dims_symbol_count(qn_b_dims(&g->b)); s++) {
        qn_dim symbol = qn_dims_symbol_at(qn_b_dims(&g->b), s);
        bool bound = false;
        for (int i = 0; i < graph->n_inputs; i++)
            for (int axis = 0; axis < graph->inputs[i]->type.rank; axis++)
                bound = bound || graph->inputs[i]->type.dims[axis] == symbol;
        if (!bound)
            qn_graph_add_input(graph, qn_arena_printf(graph->module->arena, "has_%s", symbol->name),
                               qn_type_make(graph->module, QUERN_F32, 1, &symbol), QN_ROLE_INPUT);
    }
}

/* The mean of the squares of everything that nobody reads. */
static void add_loss(qn_rg *g, const int *uses)
{
    qn_builder *b = &g->b;
    const qn_dtype dtype = qn_rg_has(g, QN_RANDOM_DOUBLE) ? QUERN_F64 : QUERN_F32;
    qn_value *loss = qn_b_scalar(b, dtype, 0);
    size_t n = g->pool.n;
    for (size_t i = 0; i < n; i++) {
        qn_value *x = g->pool.items[i].value;
        int64_t axes[QN_MAX_RANK];
        if (uses[x->id] || !qn_dtype_is_float(x->type.dtype))
            continue;
        for (int axis = 0; axis < x->type.rank; axis++)
            axes[axis] = axis;
        x = qn_b_convert(b, dtype, x);
        x = qn_b_mean(b, qn_b_binary(b, QN_OP_MUL, x, x), x->type.rank, axes, false);
        loss = qn_b_binary(b, QN_OP_ADD, loss, x);
    }
    qn_graph_add_output(b->graph, loss, "loss", -1);
}

/* Some of what nobody reads; the rest is dead code. */
static void add_outputs(qn_rg *g, const int *uses)
{
    static const char *const names[] = { "out0", "out1", "out2", "out3" };
    qn_graph *graph = g->b.graph;
    for (size_t i = g->pool.n; i-- > 0 && graph->n_outputs < 4;)
        if (!uses[g->pool.items[i].value->id])
            qn_graph_add_output(graph, g->pool.items[i].value, names[graph->n_outputs], -1);
    if (graph->n_outputs == 0)
        qn_graph_add_output(graph, g->pool.items[g->pool.n - 1].value, names[0], -1);
}

qn_module *qn_graph_random(uint64_t seed, int flags, int n_nodes)
{
    qn_module *module = qn_module_new("random");
    qn_diags diags;
    qn_diags_init(&diags, module->arena);
    if (flags & QN_RANDOM_SMOOTH)
        flags &= ~(QN_RANDOM_INTS | QN_RANDOM_BITS);
    qn_rg g = { .b = { .graph = qn_function_new(module, "main"), .diags = &diags },
                .state = seed,
                .flags = flags };
    for (int i = 0; i < 2 + qn_rg_below(&g, 3); i++) {
        int rank;
        qn_dim dims[QN_MAX_RANK];
        qn_rg_random_dims(&g, &rank, dims);
        qn_type type = qn_type_make(module, any_dtype(&g), rank, dims);
        qn_rg_item input = qn_rg_fresh(&g, &type);
        qn_rg_push(&g, input.value, input.bound, input.exact);
    }
    for (int attempt = 0; attempt < 20 * n_nodes && count_nodes(g.b.graph) < n_nodes; attempt++)
        step(&g);
    bind_symbols(&g);
    int *uses = qn_graph_count_uses(g.b.graph, module->arena);
    if (flags & QN_RANDOM_SMOOTH)
        add_loss(&g, uses);
    else
        add_outputs(&g, uses);
    QN_ASSERT(diags.n_errors == 0 && qn_verify(module, &diags) == QUERN_OK, "random graph %llu, %d: %s",
              (unsigned long long)seed, flags, qn_diags_text(&diags, module->arena));
    return module;
}

/* ---- inputs ---- */

int64_t *qn_random_symbols(const qn_module *module, uint64_t seed, qn_arena *arena)
{
    int n = qn_dims_symbol_count(module->dims);
    int64_t *values = QN_NEW_ARRAY(arena, int64_t, n + 1);
    for (int i = 0; i < n; i++) {
        qn_dim symbol = qn_dims_symbol_at(module->dims, i);
        int64_t most = symbol->max - symbol->min < SYMBOL_MAX ? symbol->max - symbol->min : SYMBOL_MAX;
        values[i] = symbol->min + (int64_t)(next_random(&seed) % (uint64_t)(most + 1));
    }
    return values;
}

static void fill(qn_array *array, int64_t n, uint64_t *state)
{
    char *at = array->data;
    for (int64_t i = 0; i < n; i++, at += qn_dtype_bytes(array->dtype)) {
        uint64_t random = next_random(state);
        qn_scalar value = { .i = (int64_t)(random >> 8) % 17 - 8 };
        if (qn_dtype_is_float(array->dtype))
            value.f = (double)((int64_t)(random >> 8) % 65 - 32) / 16;
        else if (array->dtype == QUERN_BOOL)
            value.i = (int64_t)(random & 1);
        else if (array->dtype == QUERN_U64)
            value.i = (int64_t)random;
        else if (qn_dtype_class_of(array->dtype) == QN_CLASS_UNSIGNED)
            value.i = value.i < 0 ? -value.i : value.i;
        qn_scalar_store(array->dtype, value, at);
    }
}

qn_array *qn_random_inputs(const qn_graph *function, uint64_t seed, const int64_t *symbols, qn_arena *arena)
{
    qn_array *arrays = QN_NEW_ARRAY(arena, qn_array, function->n_inputs + 1);
    for (int i = 0; i < function->n_inputs; i++) {
        const qn_type *type = &function->inputs[i]->type;
        int64_t n = 1;
        arrays[i] = (qn_array){ .dtype = type->dtype, .rank = type->rank };
        for (int axis = 0; axis < type->rank; axis++)
            n *= arrays[i].dims[axis] = qn_dim_eval(type->dims[axis], symbols);
        arrays[i].data = qn_arena_alloc(arena, (size_t)n * qn_dtype_bytes(type->dtype));
        fill(&arrays[i], n, &seed);
    }
    return arrays;
}
