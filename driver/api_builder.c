/* quern.h: building a model by calls. A quern_value is a value of the graph; a call that fails gives NULL, and so does
 * every call that is given one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "driver/api.h"
#include "driver/shuffle.h"
#include "frontend/text/text.h"
#include "ir/build.h"

struct quern_builder {
    qn_module *module;
    qn_diags diags; /* in the module's arena */
    qn_builder build;
    uint64_t seed;
    int n_parameters;
};

quern_builder *quern_builder_new(const char *function_name)
{
    quern_builder *b = calloc(1, sizeof *b);
    QN_ASSERT(b, "out of memory");
    b->module = qn_module_new("");
    qn_diags_init(&b->diags, b->module->arena);
    b->build.graph = qn_function_new(b->module, function_name ? function_name : "main");
    b->build.diags = &b->diags;
    return b;
}

void quern_builder_free(quern_builder *b)
{
    if (!b)
        return;
    qn_module_free(b->module);
    free(b);
}

void quern_builder_seed(quern_builder *b, uint64_t seed)
{
    b->seed = seed;
}

static quern_value *fail(quern_builder *b, const char *call, const char *text)
{
    qn_error(&b->diags, QUERN_ERROR_ARGUMENT, &(qn_loc){ .op = call }, "%s", text);
    return NULL;
}

/* Ready to build for this call? Not when an operand is missing: then an earlier call has failed and said why. */
static bool begin(quern_builder *b, const char *call, int n, quern_value *const *operands)
{
    b->build.loc = (qn_loc){ .op = call };
    for (int i = 0; i < n; i++)
        if (!operands[i]) {
            if (!b->diags.n_errors)
                fail(b, call, qn_arena_printf(b->module->arena, "operand %d is NULL", i));
            return false;
        }
    return true;
}

static qn_value *in(quern_value *value)
{
    return (qn_value *)value;
}

static quern_value *out(qn_value *value)
{
    return (quern_value *)value;
}

/* ---- leaves ---- */

static bool check_shape(quern_builder *b, const char *call, int dtype, int rank)
{
    if (!quern_dtype_size(dtype))
        fail(b, call, qn_arena_printf(b->module->arena, "%d is no data type", dtype));
    else if (rank < 0 || rank > QN_MAX_RANK)
        fail(b, call,
             qn_arena_printf(b->module->arena, "the rank must be 0 to %d, not %d", QN_MAX_RANK, rank));
    else
        return true;
    return false;
}

static bool name_is_free(quern_builder *b, const char *call, const char *name)
{
    const qn_graph *graph = b->build.graph;
    if (!name || !name[0]) {
        fail(b, call, "it needs a name");
        return false;
    }
    for (int i = 0; i < graph->n_inputs; i++)
        if (strcmp(graph->inputs[i]->name, name) == 0) {
            fail(b, call, qn_arena_printf(b->module->arena, "there is an input '%s' already", name));
            return false;
        }
    return true;
}

/* Dims as the graph knows them. */
static bool shape_of(quern_builder *b, const char *call, int dtype, int rank, const quern_dim *dims,
                     qn_dim *out_dims)
{
    if (!check_shape(b, call, dtype, rank))
        return false;
    for (int i = 0; i < rank; i++) {
        if (!dims[i].name && (dims[i].value < 0 || dims[i].value > QN_DIM_MAX_VALUE)) {
            fail(b, call, "a dimension is negative or too large");
            return false;
        }
        out_dims[i] = dims[i].name ? qn_dim_symbol(b->module->dims, dims[i].name, 1, INT32_MAX)
                                   : qn_dim_const(b->module->dims, dims[i].value);
    }
    return true;
}

quern_value *quern_input(quern_builder *b, const char *name, int dtype, int rank, const quern_dim *dims)
{
    static const char call[] = "quern_input";
    qn_dim d[QN_MAX_RANK];
    if (!shape_of(b, call, dtype, rank, dims, d) || !name_is_free(b, call, name))
        return NULL;
    return out(qn_graph_add_input(b->build.graph, name, qn_type_make(b->module, (qn_dtype)dtype, rank, d),
                                  QN_ROLE_INPUT));
}

static qn_tensor *new_tensor(quern_builder *b, const char *call, int dtype, int rank, const int64_t *dims,
                             const void *data)
{
    size_t bytes = quern_dtype_size(dtype);
    if (!check_shape(b, call, dtype, rank))
        return NULL;
    for (int i = 0; i < rank; i++)
        if (dims[i] < 0 || __builtin_mul_overflow(bytes, (size_t)dims[i], &bytes) ||
            bytes > PTRDIFF_MAX / 2) {
            fail(b, call, "a dimension is negative or too large");
            return NULL;
        }
    return qn_tensor_new(b->module, (qn_dtype)dtype, rank, dims, data);
}

quern_value *quern_param(quern_builder *b, const char *name, int dtype, int rank, const int64_t *dims,
                         const void *initial)
{
    static const char call[] = "quern_param";
    qn_tensor *tensor = name_is_free(b, call, name) ? new_tensor(b, call, dtype, rank, dims, initial) : NULL;
    if (!tensor)
        return NULL;
    qn_graph *graph = b->build.graph;
    qn_value *value = qn_graph_add_input(graph, name, tensor->type, QN_ROLE_PARAM);
    graph->input_initial[value->index] = tensor;
    return out(value);
}

quern_value *quern_constant(quern_builder *b, int dtype, int rank, const int64_t *dims, const void *data)
{
    qn_tensor *tensor = new_tensor(b, "quern_constant", dtype, rank, dims, data);
    return tensor && begin(b, "quern_constant", 0, NULL) ? out(qn_b_constant(&b->build, tensor)) : NULL;
}

/* ---- ops ---- */

quern_value *quern_op(quern_builder *b, const char *op_name, int n_operands, quern_value *const *operands,
                      const char *attributes)
{
    const char *call = qn_arena_printf(b->module->arena, "quern_op \"%s\"", op_name ? op_name : "");
    if (!begin(b, call, n_operands, operands))
        return NULL;
    qn_op op = op_name ? qn_op_parse(op_name, strlen(op_name)) : QN_N_OPS;
    if (op == QN_N_OPS)
        return fail(b, call, "there is no such op (docs/ops.md lists them)");
    if (op == QN_OP_IF || op == QN_OP_WHILE || op == QN_OP_SCAN)
        return fail(b, call, "it takes regions, which only the text form can say");
    if (n_operands < qn_ops[op].min_operands ||
        (qn_ops[op].max_operands >= 0 && n_operands > qn_ops[op].max_operands))
        return fail(b, call,
                    qn_arena_printf(b->module->arena, "it takes %d to %d operands, not %d",
                                    qn_ops[op].min_operands, qn_ops[op].max_operands, n_operands));
    int n_attrs = 0;
    qn_attr *attrs = NULL;
    if (qn_text_parse_attrs(attributes ? attributes : "", call, op, b->module, &n_attrs, &attrs, &b->diags))
        return NULL;
    qn_value **values = QN_NEW_ARRAY(b->module->arena, qn_value *, n_operands);
    for (int i = 0; i < n_operands; i++)
        values[i] = in(operands[i]);
    qn_node *node = qn_node_new(b->build.graph, NULL, op, n_operands, values, n_attrs, attrs, 0, NULL,
                                &b->build.loc, &b->diags);
    return node && node->n_results ? out(&node->results[0]) : NULL;
}

quern_value *quern_result(quern_builder *b, quern_value *value, int index)
{
    static const char call[] = "quern_result";
    if (!begin(b, call, 1, &value))
        return NULL;
    const qn_node *node = in(value)->node;
    if (!node || index < 0 || index >= node->n_results)
        return fail(b, call,
                    qn_arena_printf(b->module->arena, "there is no result %d: the op has %d", index,
                                    node ? node->n_results : 0));
    return out(&node->results[index]);
}

static quern_value *binary(quern_builder *b, const char *call, qn_op op, quern_value *x, quern_value *y)
{
    if (!begin(b, call, 2, (quern_value *[]){ x, y }))
        return NULL;
    return out(qn_b_binary_bcast(&b->build, op, in(x), in(y)));
}

quern_value *quern_add(quern_builder *b, quern_value *x, quern_value *y)
{
    return binary(b, "quern_add", QN_OP_ADD, x, y);
}

quern_value *quern_sub(quern_builder *b, quern_value *x, quern_value *y)
{
    return binary(b, "quern_sub", QN_OP_SUB, x, y);
}

quern_value *quern_mul(quern_builder *b, quern_value *x, quern_value *y)
{
    return binary(b, "quern_mul", QN_OP_MUL, x, y);
}

quern_value *quern_div(quern_builder *b, quern_value *x, quern_value *y)
{
    return binary(b, "quern_div", QN_OP_DIV, x, y);
}

quern_value *quern_matmul(quern_builder *b, quern_value *x, quern_value *y)
{
    if (!begin(b, "quern_matmul", 2, (quern_value *[]){ x, y }))
        return NULL;
    return out(qn_b_matmul(&b->build, in(x), in(y)));
}

quern_value *quern_relu(quern_builder *b, quern_value *x)
{
    return begin(b, "quern_relu", 1, &x) ? out(qn_b_unary(&b->build, QN_OP_RELU, in(x))) : NULL;
}

quern_value *quern_tanh(quern_builder *b, quern_value *x)
{
    return begin(b, "quern_tanh", 1, &x) ? out(qn_b_unary(&b->build, QN_OP_TANH, in(x))) : NULL;
}

quern_value *quern_convert(quern_builder *b, quern_value *x, int dtype)
{
    if (!begin(b, "quern_convert", 1, &x) || !check_shape(b, "quern_convert", dtype, 0))
        return NULL;
    return out(qn_b_convert(&b->build, (qn_dtype)dtype, in(x)));
}

quern_value *quern_reshape(quern_builder *b, quern_value *x, int rank, const quern_dim *dims)
{
    qn_dim d[QN_MAX_RANK];
    if (!begin(b, "quern_reshape", 1, &x) || !shape_of(b, "quern_reshape", QUERN_F32, rank, dims, d))
        return NULL;
    return out(qn_b_reshape(&b->build, in(x), rank, d));
}

quern_value *quern_softmax(quern_builder *b, quern_value *x, int axis)
{
    if (!begin(b, "quern_softmax", 1, &x))
        return NULL;
    int rank = in(x)->type.rank;
    if (axis < -rank || axis >= rank)
        return fail(b, "quern_softmax",
                    qn_arena_printf(b->module->arena, "there is no axis %d: the rank is %d", axis, rank));
    return out(qn_b_softmax(&b->build, QN_OP_SOFTMAX, in(x), axis < 0 ? axis + rank : axis));
}

quern_value *quern_mean(quern_builder *b, quern_value *x)
{
    static const int64_t axes[QN_MAX_RANK] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    if (!begin(b, "quern_mean", 1, &x))
        return NULL;
    return out(qn_b_mean(&b->build, in(x), in(x)->type.rank, axes, false));
}

quern_value *quern_cross_entropy(quern_builder *b, quern_value *logits, quern_value *labels)
{
    if (!begin(b, "quern_cross_entropy", 2, (quern_value *[]){ logits, labels }))
        return NULL;
    qn_value *rows = qn_b_cross_entropy(&b->build, in(logits), in(labels));
    return rows ? out(qn_b_mean(&b->build, rows, 1, (const int64_t[]){ 0 }, false)) : NULL;
}

/* A parameter of f32, f64, f16 or bf16 that is uniform in [-bound, bound). */
static quern_value *uniform_param(quern_builder *b, const char *name, qn_dtype dtype, int rank,
                                  const int64_t *dims, double bound)
{
    quern_value *value = quern_param(b, name, dtype, rank, dims, NULL);
    if (!value)
        return NULL;
    const qn_tensor *tensor = b->build.graph->input_initial[in(value)->index];
    uint64_t state = qn_random_start(b->seed, (uint64_t)b->n_parameters++);
    char *at = (char *)tensor->data;
    size_t size = qn_dtype_bytes(dtype);
    for (size_t i = 0; i < tensor->bytes; i += size) {
        double unit = (double)(qn_random_next(&state) >> 11) * 0x1p-53;
        qn_scalar_store(dtype, (qn_scalar){ .f = (2 * unit - 1) * bound }, at + i);
    }
    return value;
}

/* NAME.weight and NAME.bias of a layer: uniform in +-1/sqrt(fan_in). */
static bool layer_params(quern_builder *b, const char *name, qn_dtype dtype, int rank, const int64_t *dims,
                         int64_t fan_in, int64_t width, quern_value **weight, quern_value **bias)
{
    const double bound = fan_in > 0 ? 1 / sqrt((double)fan_in) : 0;
    qn_arena *arena = b->module->arena;
    *weight = uniform_param(b, qn_arena_printf(arena, "%s.weight", name), dtype, rank, dims, bound);
    *bias = uniform_param(b, qn_arena_printf(arena, "%s.bias", name), dtype, 1, &width, bound);
    return *weight && *bias;
}

quern_value *quern_linear(quern_builder *b, quern_value *x, int64_t width, const char *name)
{
    static const char call[] = "quern_linear";
    if (!begin(b, call, 1, &x))
        return NULL;
    const qn_type *type = &in(x)->type;
    if (!qn_dtype_is_float(type->dtype) || type->rank < 1 || !qn_dim_is_const(type->dims[type->rank - 1]))
        return fail(b, call,
                    qn_arena_printf(b->module->arena,
                                    "x is %s; it must be of floats, and its last dimension a number",
                                    qn_type_print(type, b->module->arena)));
    if (!name || !name[0])
        return fail(b, call, "it needs a name");
    int64_t depth = type->dims[type->rank - 1]->value;
    quern_value *weight, *bias;
    if (!layer_params(b, name, type->dtype, 2, (const int64_t[]){ depth, width }, depth, width, &weight,
                      &bias))
        return NULL;
    b->build.loc = (qn_loc){ .op = call };
    qn_value *product = qn_b_matmul(&b->build, in(x), in(weight));
    return product ? out(qn_b_binary_bcast(&b->build, QN_OP_ADD, product, in(bias))) : NULL;
}

/* Is x [N, C, H, W], C being a number? */
static bool is_image(quern_builder *b, const char *call, quern_value *x)
{
    const qn_type *type = &in(x)->type;
    if (qn_dtype_is_float(type->dtype) && type->rank == 4 && qn_dim_is_const(type->dims[1]))
        return true;
    fail(b, call,
         qn_arena_printf(b->module->arena, "x is %s; it must be of floats [N, C, H, W], and C a number",
                         qn_type_print(type, b->module->arena)));
    return false;
}

quern_value *quern_conv2d(quern_builder *b, quern_value *x, int64_t channels, int64_t kernel, int64_t stride,
                          int64_t padding, const char *name)
{
    static const char call[] = "quern_conv2d";
    if (!begin(b, call, 1, &x) || !is_image(b, call, x))
        return NULL;
    if (!name || !name[0])
        return fail(b, call, "it needs a name");
    if (channels < 1 || kernel < 1 || stride < 1 || padding < 0 || kernel > INT32_MAX || padding > INT32_MAX)
        return fail(b, call, "channels, kernel and stride must be at least 1, and the padding at least 0");
    const qn_type *type = &in(x)->type;
    const int64_t depth = type->dims[1]->value, dims[] = { channels, depth, kernel, kernel };
    quern_value *weight, *bias;
    if (!layer_params(b, name, type->dtype, 4, dims, depth * kernel * kernel, channels, &weight, &bias))
        return NULL;
    b->build.loc = (qn_loc){ .op = call };
    const qn_conv conv = { .stride = (const int64_t[]){ stride, stride },
                           .low = (const int64_t[]){ padding, padding },
                           .high = (const int64_t[]){ padding, padding },
                           .x_dilation = (const int64_t[]){ 1, 1 },
                           .w_dilation = (const int64_t[]){ 1, 1 },
                           .groups = 1 };
    qn_value *y = qn_b_convolution(&b->build, in(x), in(weight), &conv);
    const qn_dim column[] = { qn_dim_const(b->module->dims, channels), qn_dim_const(b->module->dims, 1),
                              qn_dim_const(b->module->dims, 1) };
    qn_value *shift = y ? qn_b_reshape(&b->build, in(bias), 3, column) : NULL;
    return shift ? out(qn_b_binary_bcast(&b->build, QN_OP_ADD, y, shift)) : NULL;
}

quern_value *quern_max_pool2d(quern_builder *b, quern_value *x, int64_t window)
{
    static const char call[] = "quern_max_pool2d";
    if (!begin(b, call, 1, &x) || !is_image(b, call, x))
        return NULL;
    if (window < 1)
        return fail(b, call, "the window must be at least 1");
    const int64_t extent[] = { 1, 1, window, window };
    return out(qn_b_reduce_window(&b->build, QN_KIND_MAX, in(x),
                                  &(qn_window){ .window = extent, .stride = extent }));
}

/* ---- the end ---- */

void quern_output(quern_builder *b, quern_value *x, const char *name)
{
    static const char call[] = "quern_output";
    if (!begin(b, call, 1, &x))
        return;
    if (!name || !name[0])
        name = qn_arena_printf(b->module->arena, "output_%d", b->build.graph->n_outputs);
    qn_graph_add_output(b->build.graph, in(x), name, -1);
}

int quern_builder_finish(quern_builder *b, quern_module **out_module)
{
    qn_call call;
    *out_module = NULL;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, b, "quern_builder_finish", "the builder");
    if (!status && !b->diags.n_errors && b->build.graph->n_outputs == 0)
        fail(b, "quern_builder_finish", "the function has no output");
    if (!status && !b->diags.n_errors)
        (void)!qn_verify(b->module, &b->diags);
    if (!status && b->diags.n_errors)
        status = qn_error(&call.diags, qn_diags_status(&b->diags), NULL, "%s",
                          qn_diags_text(&b->diags, call.arena));
    if (!status) {
        *out_module = qn_handle_new(b->module, NULL);
        free(b);
    } else {
        quern_builder_free(b);
    }
    return qn_call_end(&call, status);
}
