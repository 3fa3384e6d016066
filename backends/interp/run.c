/* One node: dispatch, dims, memory. The table says which function defines an op. */
#include "backends/interp/interp.h"

#include <string.h>
#include <unistd.h>

/* What the function finds in e->y. */
typedef enum prepared {
    MADE,   /* dims and memory to fill */
    SHAPED, /* dims; it sets the data to memory that is already there */
    NOTHING /* dims come from the data */
} prepared;

typedef struct rule {
    qn_status (*eval)(qn_eval *e);
    prepared prepared;
} rule;

/* Ops that are not here are element-wise on lanes, or composites. */
static const rule rules[QN_N_OPS] = {
    [QN_OP_CONSTANT] = { qn_eval_constant, SHAPED },
    [QN_OP_IOTA] = { qn_eval_iota, MADE },
    [QN_OP_DIM_VALUE] = { qn_eval_dim_value, MADE },
    [QN_OP_CONVERT] = { qn_eval_convert, MADE },
    [QN_OP_BITCAST] = { qn_eval_view, SHAPED },
    [QN_OP_STOP_GRADIENT] = { qn_eval_view, SHAPED },
    [QN_OP_SELECT] = { qn_eval_select, MADE },
    [QN_OP_BROADCAST] = { qn_eval_broadcast, MADE },
    [QN_OP_RESHAPE] = { qn_eval_view, SHAPED },
    [QN_OP_TRANSPOSE] = { qn_eval_transpose, MADE },
    [QN_OP_SLICE] = { qn_eval_slice, MADE },
    [QN_OP_PAD] = { qn_eval_pad, MADE },
    [QN_OP_CONCATENATE] = { qn_eval_concatenate, MADE },
    [QN_OP_GATHER_PACKED] = { qn_eval_gather_packed, MADE },
    [QN_OP_REVERSE] = { qn_eval_reverse, MADE },
    [QN_OP_DYNAMIC_SLICE] = { qn_eval_dynamic_slice, MADE },
    [QN_OP_DYNAMIC_UPDATE_SLICE] = { qn_eval_dynamic_update_slice, MADE },
    [QN_OP_GATHER] = { qn_eval_gather, MADE },
    [QN_OP_GATHER_ND] = { qn_eval_gather_nd, MADE },
    [QN_OP_GATHER_ELEMENTS] = { qn_eval_gather_elements, MADE },
    [QN_OP_SCATTER_ND] = { qn_eval_scatter_nd, MADE },
    [QN_OP_SCATTER_ELEMENTS] = { qn_eval_scatter_elements, MADE },
    [QN_OP_REDUCE] = { qn_eval_reduce, MADE },
    [QN_OP_ARG_REDUCE] = { qn_eval_arg_reduce, MADE },
    [QN_OP_REDUCE_WINDOW] = { qn_eval_reduce_window, MADE },
    [QN_OP_SELECT_AND_SCATTER] = { qn_eval_select_and_scatter, MADE },
    [QN_OP_CUMULATIVE] = { qn_eval_cumulative, MADE },
    [QN_OP_DOT_GENERAL] = { qn_eval_dot_general, MADE },
    [QN_OP_MATMUL_PACKED] = { qn_eval_matmul_packed, MADE },
    [QN_OP_CONVOLUTION] = { qn_eval_convolution, MADE },
    [QN_OP_CONV_PACKED] = { qn_eval_conv_packed, MADE },
    [QN_OP_SORT] = { qn_eval_sort, MADE },
    [QN_OP_TOP_K] = { qn_eval_top_k, MADE },
    [QN_OP_NON_ZERO] = { qn_eval_non_zero, NOTHING },
    [QN_OP_EXTENT] = { qn_eval_extent, MADE },
    [QN_OP_REQUIRE] = { qn_eval_require, MADE },
    [QN_OP_SUPPRESS] = { qn_eval_suppress, MADE },
    [QN_OP_RANDOM_BITS] = { qn_eval_random_bits, MADE },
    [QN_OP_ALL_REDUCE] = { qn_eval_collective, MADE },
    [QN_OP_ALL_GATHER] = { qn_eval_collective, MADE },
    [QN_OP_REDUCE_SCATTER] = { qn_eval_collective, MADE },
    [QN_OP_BROADCAST_RANK] = { qn_eval_collective, MADE },
    [QN_OP_RANK] = { qn_eval_rank, MADE },
    [QN_OP_TEXT_CONCAT] = { qn_eval_text, MADE },
    [QN_OP_TEXT_CASE] = { qn_eval_text, MADE },
    [QN_OP_TEXT_COUNT] = { qn_eval_text, MADE },
    [QN_OP_TEXT_SPLIT] = { qn_eval_text, MADE },
    [QN_OP_TEXT_MATCH] = { qn_eval_text, MADE },
    [QN_OP_TEXT_PARSE] = { qn_eval_text, MADE },
    [QN_OP_TEXT_PRINT] = { qn_eval_text, MADE },
    [QN_OP_IF] = { qn_eval_if, NOTHING },
    [QN_OP_WHILE] = { qn_eval_while, NOTHING },
    [QN_OP_SCAN] = { qn_eval_scan, NOTHING },
    [QN_OP_CALL] = { qn_eval_call, NOTHING },
};

qn_status qn_eval_error(const qn_eval *e, qn_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const char *text = qn_arena_vprintf(e->in->diags->arena, format, args);
    va_end(args);
    return qn_error(e->in->diags, status, &e->node->loc, "%s", text);
}

/* ---- dims ---- */

static qn_dim unbound_symbol(const qn_interp *in, qn_dim d)
{
    if (d->kind == QN_DIM_SYMBOL)
        return d->symbol >= in->n_symbols || in->symbols[d->symbol] == QN_UNBOUND ? d : NULL;
    for (int i = 0; i < d->n; i++) {
        qn_dim symbol = unbound_symbol(in, d->operands[i]);
        if (symbol)
            return symbol;
    }
    return NULL;
}

qn_status qn_interp_dim(const qn_interp *in, qn_dim d, const qn_loc *loc, int64_t *out)
{
    if (qn_dim_is_const(d)) {
        *out = d->value;
        return QUERN_OK;
    }
    qn_dim symbol = unbound_symbol(in, d);
    if (symbol)
        return qn_error(in->diags, QUERN_ERROR_ARGUMENT, loc, "dimension '%s' has no value: no input says it",
                        symbol->name);
    *out = qn_dim_eval(d, in->symbols);
    return QUERN_OK;
}

qn_status qn_eval_dims(const qn_eval *e, qn_attr_key key, int64_t *out)
{
    int n;
    const qn_dim *dims = qn_attr_dims(e->node, key, &n);
    for (int i = 0; i < n; i++)
        QN_TRY(qn_interp_dim(e->in, dims[i], &e->node->loc, &out[i]));
    return QUERN_OK;
}

qn_status qn_interp_shape(const qn_interp *in, const qn_type *type, const qn_loc *loc, qn_array *out)
{
    *out = (qn_array){ .dtype = type->dtype, .rank = type->rank };
    for (int i = 0; i < type->rank; i++) {
        QN_TRY(qn_interp_dim(in, type->dims[i], loc, &out->dims[i]));
        if (out->dims[i] < 0)
            return qn_error(in->diags, QUERN_ERROR_ARGUMENT, loc, "axis %d would have %lld elements", i,
                            (long long)out->dims[i]);
    }
    return QUERN_OK;
}

/* ---- memory ---- */

/* What can be had at all: asking for more is a mistake of the model, not of the machine. */
static size_t memory_limit(void)
{
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const size_t physical = pages > 0 && page > 0 ? (size_t)pages * (size_t)page : QN_ARENA_LIMIT;
    return physical < QN_ARENA_LIMIT ? physical : QN_ARENA_LIMIT;
}

static qn_status checked_alloc(qn_arena *arena, const int64_t *dims, int rank, size_t element,
                               const qn_loc *loc, qn_diags *diags, void **out)
{
    size_t bytes = element;
    bool empty = false, overflow = false;
    for (int i = 0; i < rank; i++) {
        empty = empty || dims[i] == 0;
        overflow = __builtin_mul_overflow(bytes, (size_t)dims[i], &bytes) || overflow;
    }
    if (empty)
        bytes = 0;
    else if (overflow)
        bytes = SIZE_MAX;
    const size_t limit = bytes > 0 ? memory_limit() : SIZE_MAX;
    if (bytes > limit || qn_arena_bytes(arena) > limit - bytes)
        return qn_error(diags, QUERN_ERROR_MEMORY, loc,
                        "a tensor of %zu MB does not fit into the %zu MB of this machine", bytes >> 20,
                        limit >> 20);
    *out = qn_arena_alloc(arena, bytes);
    return QUERN_OK;
}

qn_status qn_array_alloc(qn_array *array, qn_arena *arena, const qn_loc *loc, qn_diags *diags)
{
    return checked_alloc(arena, array->dims, array->rank, qn_dtype_bytes(array->dtype), loc, diags,
                         &array->data);
}

qn_status qn_eval_scalars(qn_eval *e, int64_t n, qn_scalar **out)
{
    void *memory;
    if (!e->scratch)
        e->scratch = qn_arena_new();
    QN_TRY(checked_alloc(e->scratch, &n, 1, sizeof **out, &e->node->loc, e->in->diags, &memory));
    *out = memory;
    return QUERN_OK;
}

/* Data at an address that its element type accepts: itself or a copy. */
static qn_status align(const qn_interp *in, qn_array *array, const qn_loc *loc)
{
    const size_t size = qn_dtype_bytes(array->dtype);
    const void *from = array->data;
    if (from && (uintptr_t)from % size == 0)
        return QUERN_OK;
    QN_TRY(qn_array_alloc(array, in->arena, loc, in->diags));
    if (qn_array_elements(array) > 0)
        memcpy(array->data, from, (size_t)qn_array_elements(array) * size);
    return QUERN_OK;
}

qn_status qn_eval_constant(qn_eval *e)
{
    /* Results are never written after their node, so this one may be the module's. */
    e->y[0].data = (void *)(uintptr_t)qn_tensor_data(qn_attr_tensor(e->node, QN_ATTR_VALUE));
    return align(e->in, &e->y[0], &e->node->loc);
}

/* ---- one node ---- */

static const char *shape_print(const qn_array *a, qn_arena *arena)
{
    const char *text = "";
    for (int i = 0; i < a->rank; i++)
        text = qn_arena_printf(arena, "%s%s%lld", text, i ? ", " : "", (long long)a->dims[i]);
    return qn_arena_printf(arena, "%s[%s]", qn_dtype_name(a->dtype), text);
}

static bool same_shape(const qn_array *a, const qn_array *b)
{
    return a->dtype == b->dtype && a->rank == b->rank &&
           memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims) == 0;
}

/* Operands are what the node's types say, so that the ops may rely on what ir/infer.c proved of these. */
static qn_status check_operand(const qn_interp *in, const qn_node *node, int i, const qn_array *operand)
{
    qn_array expected;
    QN_TRY(qn_interp_shape(in, &node->operands[i]->type, &node->loc, &expected));
    if (!same_shape(&expected, operand))
        return qn_error(in->diags, QUERN_ERROR_ARGUMENT, &node->loc, "operand %d of %s is %s, expected %s", i,
                        qn_ops[node->op].name, shape_print(operand, in->diags->arena),
                        shape_print(&expected, in->diags->arena));
    return QUERN_OK;
}

static rule rule_of(const qn_node *node)
{
    const rule r = rules[node->op];
    if (r.eval)
        return r;
    return qn_op_is_composite(node->op) ? (rule){ qn_eval_composite, SHAPED }
                                        : (rule){ qn_eval_elementwise, MADE };
}

qn_status qn_interp_eval_lanes(qn_interp *in, const qn_node *node, const qn_array *operands,
                               qn_array *results)
{
    qn_eval e = { .in = in, .node = node, .x = operands, .y = results };
    const qn_status status = rule_of(node).eval(&e);
    qn_arena_free(e.scratch);
    return status;
}

qn_status qn_interp_eval(qn_interp *in, const qn_node *node, const qn_array *operands, qn_array *results)
{
    const rule r = rule_of(node);
    for (int i = 0; i < node->n_operands; i++)
        QN_TRY(check_operand(in, node, i, &operands[i]));
    for (int i = 0; i < node->n_results && r.prepared != NOTHING; i++) {
        QN_TRY(qn_interp_shape(in, &node->results[i].type, &node->loc, &results[i]));
        if (r.prepared == MADE)
            QN_TRY(qn_array_alloc(&results[i], in->arena, &node->loc, in->diags));
    }
    qn_eval e = { .in = in, .node = node, .x = operands, .y = results };
    const qn_status status = r.eval(&e);
    qn_arena_free(e.scratch);
    return status;
}

qn_status qn_interp_run(const qn_graph *graph, const qn_array *inputs, qn_array *outputs, qn_arena *arena,
                        qn_diags *diags)
{
    return qn_interp_run_with(graph, &(quern_ctx){ .size = sizeof(quern_ctx) }, inputs, outputs, arena,
                              diags);
}

qn_status qn_interp_run_with(const qn_graph *graph, const quern_ctx *ctx, const qn_array *inputs,
                             qn_array *outputs, qn_arena *arena, qn_diags *diags)
{
    qn_arena *local = qn_arena_new();
    const int n_symbols = qn_dims_symbol_count(graph->module->dims);
    qn_interp in = { .module = graph->module,
                     .arena = local,
                     .diags = diags,
                     .symbols = QN_NEW_ARRAY(local, int64_t, n_symbols),
                     .n_symbols = n_symbols,
                     .comm = ctx->comm,
                     .strings = ctx->strings };
    qn_array *aligned = QN_NEW_ARRAY(local, qn_array, graph->n_inputs);
    qn_status status = QUERN_OK;
    for (int i = 0; i < n_symbols; i++)
        in.symbols[i] = QN_UNBOUND;
    for (int i = 0; i < graph->n_inputs; i++)
        aligned[i] = inputs[i];
    status = qn_interp_bind(&in, graph, aligned, NULL);
    for (int i = 0; i < graph->n_inputs && !status; i++)
        status = align(&in, &aligned[i], NULL);
    if (!status)
        status = qn_plan_run(qn_plan_new(graph, local), &in, aligned, outputs, arena);
    qn_arena_free(local);
    return status;
}
