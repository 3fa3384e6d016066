/* quern.h: building a model by calls. A quern_value is a value of the graph; a call that fails gives NULL, and so does
 * every call that is given one. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "driver/api_builder.h"
#include "frontend/text/text.h"
#include "runtime/memory.h"

quern_builder *quern_builder_new(const char *function_name)
{
    quern_builder *b = calloc(1, sizeof *b);
    QN_ASSERT(b, "out of memory");
    b->module = qn_module_new("");
    qn_diags_init(&b->diags, b->module->arena);
    b->function = b->build.graph = qn_function_new(b->module, function_name ? function_name : "main");
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

quern_value *qn_build_fail(quern_builder *b, const char *call, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    qn_error(&b->diags, QUERN_ERROR_ARGUMENT, &(qn_loc){ .op = call }, "%s",
             qn_arena_vprintf(b->module->arena, format, args));
    va_end(args);
    return NULL;
}

bool qn_build_begin(quern_builder *b, const char *call, int n, quern_value *const *operands)
{
    b->build.loc = (qn_loc){ .op = call };
    for (int i = 0; i < n; i++)
        if (!operands[i]) {
            if (!b->diags.n_errors)
                qn_build_fail(b, call, "operand %d is NULL", i);
            return false;
        }
    return true;
}

/* ---- leaves ---- */

static bool check_shape(quern_builder *b, const char *call, int dtype, int rank)
{
    if (!quern_dtype_size(dtype))
        qn_build_fail(b, call, "%d is no data type", dtype);
    else if (rank < 0 || rank > QN_MAX_RANK)
        qn_build_fail(b, call, "the rank must be 0 to %d, not %d", QN_MAX_RANK, rank);
    else
        return true;
    return false;
}

static bool name_is_free(quern_builder *b, const char *call, const char *name)
{
    const qn_graph *graph = b->function;
    if (!name || !name[0]) {
        qn_build_fail(b, call, "it needs a name");
        return false;
    }
    for (int i = 0; i < graph->n_inputs; i++)
        if (strcmp(graph->inputs[i]->name, name) == 0) {
            qn_build_fail(b, call, "there is an input '%s' already", name);
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
            qn_build_fail(b, call, "a dimension is negative or too large");
            return false;
        }
        if (dims[i].name && !dims[i].name[0]) {
            qn_build_fail(b, call, "the name of dimension %d is empty", i);
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
    return qn_out(qn_graph_add_input(b->function, name, qn_type_make(b->module, (qn_dtype)dtype, rank, d),
                                     QN_ROLE_INPUT));
}

/* The arena of the module ends the process where memory ends: what is so large that the caller may have erred is asked for
 * first. */
static bool has_room(quern_builder *b, const char *call, size_t bytes)
{
    qn_memory room = { 0 };
    const bool has = bytes < (size_t)1 << 28 || (bytes < QN_ARENA_LIMIT && qn_memory_reserve(&room, bytes));
    qn_memory_free(&room);
    if (!has)
        qn_build_fail(b, call, "no memory for a tensor of %zu bytes", bytes);
    return has;
}

static bool check_dims(quern_builder *b, const char *call, int dtype, int rank, const int64_t *dims)
{
    size_t bytes = quern_dtype_size(dtype);
    if (!check_shape(b, call, dtype, rank))
        return false;
    for (int i = 0; i < rank; i++)
        if (dims[i] < 0 || dims[i] > QN_DIM_MAX_VALUE ||
            __builtin_mul_overflow(bytes, (size_t)dims[i], &bytes)) {
            qn_build_fail(b, call, "a dimension is negative or too large");
            return false;
        }
    return has_room(b, call, bytes);
}

static qn_tensor *new_tensor(quern_builder *b, const char *call, int dtype, int rank, const int64_t *dims,
                             const void *data)
{
    return check_dims(b, call, dtype, rank, dims)
               ? qn_tensor_new(b->module, (qn_dtype)dtype, rank, dims, data)
               : NULL;
}

quern_value *qn_build_state(quern_builder *b, const char *call, const char *name, qn_input_role role,
                            int dtype, int rank, const int64_t *dims, const void *initial)
{
    qn_tensor *tensor = name_is_free(b, call, name) ? new_tensor(b, call, dtype, rank, dims, initial) : NULL;
    if (!tensor)
        return NULL;
    qn_value *value = qn_graph_add_input(b->function, name, tensor->type, role);
    b->function->input_initial[value->index] = tensor;
    return qn_out(value);
}

quern_value *quern_param(quern_builder *b, const char *name, int dtype, int rank, const int64_t *dims,
                         const void *initial)
{
    return qn_build_state(b, "quern_param", name, QN_ROLE_PARAM, dtype, rank, dims, initial);
}

quern_value *quern_state(quern_builder *b, const char *name, int dtype, int rank, const int64_t *dims,
                         const void *initial)
{
    static const char call[] = "quern_state";
    if (initial)
        return qn_build_state(b, call, name, QN_ROLE_STATE, dtype, rank, dims, initial);
    if (!name_is_free(b, call, name) || !check_dims(b, call, dtype, rank, dims))
        return NULL;
    return qn_out(qn_graph_add_input(b->function, name,
                                     qn_type_static(b->module, (qn_dtype)dtype, rank, dims), QN_ROLE_STATE));
}

void quern_set_state(quern_builder *b, quern_value *state, quern_value *value)
{
    static const char call[] = "quern_set_state";
    if (!qn_build_begin(b, call, 2, (quern_value *[]){ state, value }))
        return;
    qn_value *input = qn_in(state);
    bool twice = false;
    for (size_t i = 0; i < b->updated.n; i++)
        twice |= b->updated.items[i] == input;
    if (b->build.graph != b->function)
        qn_build_fail(b, call, "states are set outside of loops: carry the value out of this one");
    else if (input->node || input->index >= b->function->n_inputs ||
             b->function->inputs[input->index] != input ||
             b->function->input_roles[input->index] != QN_ROLE_STATE)
        qn_build_fail(b, call, "what is set is not a state");
    else if (twice)
        qn_build_fail(b, call, "'%s' is set already", input->name);
    else if (!qn_type_equal(&input->type, &qn_in(value)->type))
        qn_build_fail(b, call, "'%s' is %s, what it is set to %s", input->name,
                      qn_type_print(&input->type, b->module->arena),
                      qn_type_print(&qn_in(value)->type, b->module->arena));
    qn_vec_push(b->module->arena, &b->updated, input);
    qn_vec_push(b->module->arena, &b->next, qn_in(value));
}

quern_value *quern_constant(quern_builder *b, int dtype, int rank, const int64_t *dims, const void *data)
{
    qn_tensor *tensor = new_tensor(b, "quern_constant", dtype, rank, dims, data);
    return tensor && qn_build_begin(b, "quern_constant", 0, NULL) ? qn_out(qn_b_constant(&b->build, tensor))
                                                                  : NULL;
}

/* Is the number, which a double says exactly, a value of the type of integers or bool? */
static bool holds_integer(qn_dtype dtype, double value)
{
    if (value != trunc(value) || fabs(value) > 0x1p53 ||
        (value < 0 && qn_dtype_class_of(dtype) != QN_CLASS_SIGNED))
        return false;
    const int64_t number = (int64_t)value;
    int64_t stored = 0;
    qn_scalar_store(dtype, (qn_scalar){ .i = number }, &stored);
    return qn_scalar_load(dtype, &stored).i == number;
}

quern_value *quern_scalar(quern_builder *b, int dtype, double value)
{
    static const char call[] = "quern_scalar";
    if (!qn_build_begin(b, call, 0, NULL) || !check_shape(b, call, dtype, 0))
        return NULL;
    if (qn_dtype_is_float((qn_dtype)dtype))
        return qn_out(qn_b_scalar(&b->build, (qn_dtype)dtype, value));
    if (qn_dtype_is_stored((qn_dtype)dtype))
        return qn_build_fail(b, call, "nothing is computed in %s: quern_convert makes it of another",
                             quern_dtype_text(dtype));
    if (!holds_integer((qn_dtype)dtype, value))
        return qn_build_fail(b, call, "%g is no %s", value, quern_dtype_text(dtype));
    return qn_out(qn_b_scalar_int(&b->build, (qn_dtype)dtype, (int64_t)value));
}

/* ---- ops ---- */

quern_value *quern_op(quern_builder *b, const char *op_name, int n_operands, quern_value *const *operands,
                      const char *attributes)
{
    const char *call = qn_arena_printf(b->module->arena, "quern_op \"%s\"", op_name ? op_name : "");
    if (!qn_build_begin(b, call, n_operands, operands))
        return NULL;
    qn_op op = op_name ? qn_op_parse(op_name, strlen(op_name)) : QN_N_OPS;
    if (op == QN_N_OPS)
        return qn_build_fail(b, call, "there is no such op (docs/ops.md lists them)");
    if (op == QN_OP_IF || op == QN_OP_WHILE || op == QN_OP_SCAN)
        return qn_build_fail(b, call, "it takes regions%s",
                             op == QN_OP_SCAN ? ": quern_scan makes it"
                                              : ", which only the text form can say");
    if (n_operands < qn_ops[op].min_operands ||
        (qn_ops[op].max_operands >= 0 && n_operands > qn_ops[op].max_operands))
        return qn_build_fail(b, call, "it takes %d to %d operands, not %d", qn_ops[op].min_operands,
                             qn_ops[op].max_operands, n_operands);
    int n_attrs = 0;
    qn_attr *attrs = NULL;
    if (qn_text_parse_attrs(attributes ? attributes : "", call, op, b->module, &n_attrs, &attrs, &b->diags))
        return NULL;
    qn_value **values = QN_NEW_ARRAY(b->module->arena, qn_value *, n_operands);
    for (int i = 0; i < n_operands; i++)
        values[i] = qn_in(operands[i]);
    qn_node *node = qn_node_new(b->build.graph, NULL, op, n_operands, values, n_attrs, attrs, 0, NULL,
                                &b->build.loc, &b->diags);
    return node && node->n_results ? qn_out(&node->results[0]) : NULL;
}

quern_value *quern_result(quern_builder *b, quern_value *value, int index)
{
    static const char call[] = "quern_result";
    if (!qn_build_begin(b, call, 1, &value))
        return NULL;
    const qn_node *node = qn_in(value)->node;
    if (!node || index < 0 || index >= node->n_results)
        return qn_build_fail(b, call, "there is no result %d: the op has %d", index,
                             node ? node->n_results : 0);
    return qn_out(&node->results[index]);
}

static quern_value *binary(quern_builder *b, const char *call, qn_op op, quern_value *x, quern_value *y)
{
    if (!qn_build_begin(b, call, 2, (quern_value *[]){ x, y }))
        return NULL;
    return qn_out(qn_b_binary_bcast(&b->build, op, qn_in(x), qn_in(y)));
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

quern_value *quern_max(quern_builder *b, quern_value *x, quern_value *y)
{
    return binary(b, "quern_max", QN_OP_MAX, x, y);
}

quern_value *quern_min(quern_builder *b, quern_value *x, quern_value *y)
{
    return binary(b, "quern_min", QN_OP_MIN, x, y);
}

quern_value *quern_broadcast(quern_builder *b, quern_value *x, int rank, const quern_dim *dims)
{
    static const char call[] = "quern_broadcast";
    qn_dim d[QN_MAX_RANK];
    if (!qn_build_begin(b, call, 1, &x) || !shape_of(b, call, QUERN_F32, rank, dims, d))
        return NULL;
    return qn_out(qn_b_broadcast_to(&b->build, qn_in(x), rank, d));
}

quern_value *quern_matmul(quern_builder *b, quern_value *x, quern_value *y)
{
    if (!qn_build_begin(b, "quern_matmul", 2, (quern_value *[]){ x, y }))
        return NULL;
    return qn_out(qn_b_matmul(&b->build, qn_in(x), qn_in(y)));
}

quern_value *quern_relu(quern_builder *b, quern_value *x)
{
    return qn_build_begin(b, "quern_relu", 1, &x) ? qn_out(qn_b_unary(&b->build, QN_OP_RELU, qn_in(x)))
                                                  : NULL;
}

quern_value *quern_leaky_relu(quern_builder *b, quern_value *x, double slope)
{
    if (!qn_build_begin(b, "quern_leaky_relu", 1, &x))
        return NULL;
    qn_value *negative = qn_b_compare(&b->build, QN_LT, qn_in(x), qn_b_full(&b->build, &qn_in(x)->type, 0));
    return qn_out(qn_b_select(&b->build, negative, qn_b_binary_scalar(&b->build, QN_OP_MUL, qn_in(x), slope),
                              qn_in(x)));
}

quern_value *quern_tanh(quern_builder *b, quern_value *x)
{
    return qn_build_begin(b, "quern_tanh", 1, &x) ? qn_out(qn_b_unary(&b->build, QN_OP_TANH, qn_in(x)))
                                                  : NULL;
}

quern_value *quern_sigmoid(quern_builder *b, quern_value *x)
{
    return qn_build_begin(b, "quern_sigmoid", 1, &x) ? qn_out(qn_b_unary(&b->build, QN_OP_LOGISTIC, qn_in(x)))
                                                     : NULL;
}

quern_value *quern_gelu(quern_builder *b, quern_value *x)
{
    return qn_build_begin(b, "quern_gelu", 1, &x) ? qn_out(qn_b_unary(&b->build, QN_OP_GELU, qn_in(x)))
                                                  : NULL;
}

quern_value *quern_gelu_tanh(quern_builder *b, quern_value *x)
{
    return qn_build_begin(b, "quern_gelu_tanh", 1, &x)
               ? qn_out(qn_b_unary(&b->build, QN_OP_GELU_TANH, qn_in(x)))
               : NULL;
}

quern_value *quern_convert(quern_builder *b, quern_value *x, int dtype)
{
    if (!qn_build_begin(b, "quern_convert", 1, &x) || !check_shape(b, "quern_convert", dtype, 0))
        return NULL;
    return qn_out(qn_b_convert(&b->build, (qn_dtype)dtype, qn_in(x)));
}

quern_value *quern_reshape(quern_builder *b, quern_value *x, int rank, const quern_dim *dims)
{
    static const char call[] = "quern_reshape";
    quern_dim given[QN_MAX_RANK] = { 0 };
    qn_dim d[QN_MAX_RANK];
    int rest = -1;
    if (!qn_build_begin(b, call, 1, &x) || !check_shape(b, call, QUERN_F32, rank))
        return NULL;
    for (int i = 0; i < rank; i++) {
        given[i] = dims[i];
        if (dims[i].name || dims[i].value != -1)
            continue;
        if (rest >= 0)
            return qn_build_fail(b, call, "two dimensions are -1: one may be what remains");
        rest = i;
        given[i] = QUERN_N(1);
    }
    if (!shape_of(b, call, QUERN_F32, rank, given, d))
        return NULL;
    if (rest >= 0) {
        qn_dims *t = b->module->dims;
        const qn_type *type = &qn_in(x)->type;
        qn_dim all = qn_dim_const(t, 1), others = all;
        for (int i = 0; i < type->rank; i++)
            all = qn_dim_mul(t, all, type->dims[i]);
        for (int i = 0; i < rank; i++)
            others = qn_dim_mul(t, others, d[i]);
        if (others->min < 1)
            return qn_build_fail(b, call, "what remains for -1 is not known: another dimension may be 0");
        d[rest] = qn_dim_floordiv(t, all, others);
    }
    return qn_out(qn_b_reshape(&b->build, qn_in(x), rank, d));
}

int qn_build_axis(quern_builder *b, const char *call, quern_value *x, int axis)
{
    const int rank = qn_in(x)->type.rank;
    if (axis >= -rank && axis < rank)
        return axis < 0 ? axis + rank : axis;
    qn_build_fail(b, call, "there is no axis %d: the rank is %d", axis, rank);
    return -1;
}

quern_value *quern_softmax(quern_builder *b, quern_value *x, int axis)
{
    static const char call[] = "quern_softmax";
    axis = qn_build_begin(b, call, 1, &x) ? qn_build_axis(b, call, x, axis) : -1;
    return axis < 0 ? NULL : qn_out(qn_b_softmax(&b->build, QN_OP_SOFTMAX, qn_in(x), axis));
}

quern_value *quern_slice(quern_builder *b, quern_value *x, int axis, int64_t start, int64_t limit)
{
    static const char call[] = "quern_slice";
    axis = qn_build_begin(b, call, 1, &x) ? qn_build_axis(b, call, x, axis) : -1;
    if (axis < 0)
        return NULL;
    qn_dims *t = b->module->dims;
    const qn_dim extent = qn_in(x)->type.dims[axis];
    const int64_t at[2] = { start, limit };
    qn_dim ends[2];
    for (int i = 0; i < 2; i++) {
        if (at[i] != INT64_MAX && (at[i] > QN_DIM_MAX_VALUE || at[i] < -QN_DIM_MAX_VALUE))
            return qn_build_fail(b, call, "%lld is no place on an axis", (long long)at[i]);
        ends[i] = at[i] == INT64_MAX ? extent : qn_dim_const(t, at[i]);
        if (at[i] < 0)
            ends[i] = qn_dim_add(t, extent, ends[i]);
    }
    return qn_out(qn_b_slice_axis(&b->build, qn_in(x), axis, ends[0], ends[1]));
}

quern_value *quern_mean(quern_builder *b, quern_value *x)
{
    static const int64_t axes[QN_MAX_RANK] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    if (!qn_build_begin(b, "quern_mean", 1, &x))
        return NULL;
    return qn_out(qn_b_mean(&b->build, qn_in(x), qn_in(x)->type.rank, axes, false));
}

/* ---- the end ---- */

void quern_output(quern_builder *b, quern_value *x, const char *name)
{
    static const char call[] = "quern_output";
    if (!qn_build_begin(b, call, 1, &x))
        return;
    if (b->build.graph != b->function) {
        qn_build_fail(b, call, "outputs are made outside of loops: stack the value, or carry it out");
        return;
    }
    if (!name || !name[0])
        name = qn_arena_printf(b->module->arena, "output_%d", b->function->n_outputs);
    qn_graph_add_output(b->function, qn_in(x), name, -1);
}

int quern_builder_finish(quern_builder *b, quern_module **out_module)
{
    qn_call call;
    *out_module = NULL;
    qn_call_begin(&call);
    qn_status status = qn_call_need(&call, b, "quern_builder_finish", "the builder");
    if (!status && !b->diags.n_errors && b->function->n_outputs == 0)
        qn_build_fail(b, "quern_builder_finish", "the function has no output");
    for (size_t i = 0; !status && i < b->updated.n; i++)
        qn_graph_add_output(b->function, b->next.items[i], b->updated.items[i]->name,
                            b->updated.items[i]->index);
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

int quern_build(quern_builder *b, const quern_compile_options *options, quern_model **out)
{
    quern_module *module;
    *out = NULL;
    int status = quern_builder_finish(b, &module);
    if (!status)
        status = quern_compile(module, options, out);
    quern_module_free(module);
    return status;
}
