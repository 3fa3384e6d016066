/* Which constants of a forward function are learnt, and which are running statistics: they become inputs.
 *
 *   %0 = constant … "fc.weight"                       graph @infer(%x: …, %fc.weight: … param, %bn.mean: … state)
 *   %1 = constant … "bn.mean"              ->           …
 *   …
 *
 * Parameters of 16 bits become inputs of float32 that are converted.
 */
#include <math.h>
#include <string.h>

#include "passes/train_parts.h"

const char *qn_train_fresh_name(const qn_graph *graph, const char *name)
{
    const char *fresh = name;
    for (int attempt = 1;; attempt++) {
        bool taken = false;
        for (int i = 0; i < graph->n_inputs; i++)
            taken |= graph->inputs[i]->name && strcmp(graph->inputs[i]->name, fresh) == 0;
        if (!taken)
            return fresh;
        fresh = qn_arena_printf(graph->module->arena, "%s_%d", name, attempt);
    }
}

static const qn_tensor *float_constant(const qn_value *value)
{
    const qn_node *node = value->node;
    if (!node || node->op != QN_OP_CONSTANT || !qn_dtype_is_float(value->type.dtype))
        return NULL;
    return qn_attr_tensor(node, QN_ATTR_VALUE);
}

static const qn_tensor *constant_of(const qn_node *node)
{
    return node->n_results == 1 ? float_constant(&node->results[0]) : NULL;
}

/* The input that stands for a constant: one for each name. */
static void become_input(qn_graph *graph, qn_value *constant, const char *name, qn_input_role role)
{
    const qn_tensor *tensor = float_constant(constant);
    for (int i = 0; i < graph->n_inputs; i++) {
        const qn_value *input = graph->inputs[i];
        const qn_tensor *initial = graph->input_initial[i];
        if (initial && input->name && strcmp(input->name, name) == 0 && initial->data == tensor->data &&
            qn_type_equal(&input->type, &constant->type)) {
            qn_value_replace(constant, graph->inputs[i]);
            qn_node_remove(constant->node);
            return;
        }
    }
    qn_value *input = qn_graph_add_input(graph, qn_train_fresh_name(graph, name), constant->type, role);
    graph->input_initial[input->index] = tensor;
    qn_value_replace(constant, input);
    qn_node_remove(constant->node);
}

/* ---- running statistics ---- */

static void promote_statistics(qn_graph *graph)
{
    static const char *const suffixes[2] = { "mean", "variance" };
    int count = 0;
    QN_FOR_NODES (graph, node) {
        if (node->op != QN_OP_BATCH_NORM)
            continue;
        for (int i = 0; i < 2; i++) {
            qn_value *statistic = qn_value_resolve(node->operands[3 + i]);
            const qn_tensor *tensor = float_constant(statistic);
            if (!tensor)
                continue;
            const char *name =
                tensor->name ? tensor->name
                             : qn_arena_printf(graph->module->arena, "batch_norm_%d.%s", count, suffixes[i]);
            become_input(graph, statistic, name, QN_ROLE_STATE);
        }
        count++;
    }
    qn_graph_resolve(graph);
}

/* ---- what is learnt ---- */

/* Could learning adapt what this operand is made of, where the result is wanted? */
static bool leads_back(const qn_node *node, int operand)
{
    switch (node->op) {
    case QN_OP_SELECT: return operand > 0;
    case QN_OP_SCATTER_ND:
    case QN_OP_SCATTER_ELEMENTS: return operand != 1;
    case QN_OP_DROPOUT: return operand == 0;
    case QN_OP_STOP_GRADIENT: return false;
    default: return qn_op_selects(node->op) ? operand == 0 : (qn_ops[node->op].flags & QN_FLAG_SMOOTH) != 0;
    }
}

/* Is a constant in this place a setting of the model, which is not learnt? `constant`: by value, is it made of constants? */
static bool is_setting(const qn_node *node, int operand, const bool *constant)
{
    switch (node->op) {
    case QN_OP_BATCH_NORM: return operand >= 3;
    case QN_OP_LSTM: return operand >= 4; /* the initial state */
    case QN_OP_SCAN:
    case QN_OP_WHILE: return operand < (int)qn_attr_int_or(node, QN_ATTR_N_CARRIED, 0);
    case QN_OP_PAD:
    case QN_OP_POW:
    case QN_OP_DIV:
    case QN_OP_REM: return operand > 0;
    case QN_OP_MAX: /* a bound */
    case QN_OP_MIN: return !constant[node->operands[1 - operand]->id];
    default: return false;
    }
}

/* By value: is it made of constants alone, and of inputs of integers where these count too? */
static bool *find_constant(const qn_graph *graph, int n_values, bool with_integers)
{
    bool *constant = QN_NEW_ARRAY(graph->module->arena, bool, n_values + 1);
    for (int i = 0; i < graph->n_inputs; i++)
        constant[graph->inputs[i]->id] = with_integers && !qn_dtype_is_float(graph->inputs[i]->type.dtype);
    QN_FOR_NODES (graph, node) {
        bool all = true;
        for (int i = 0; i < node->n_operands; i++)
            all &= constant[node->operands[i]->id];
        for (int i = 0; i < node->n_results; i++)
            constant[node->results[i].id] = all;
    }
    return constant;
}

static int axes_of(const qn_type *type)
{
    int n = 0;
    for (int i = 0; i < type->rank; i++)
        n += !qn_dim_is(type->dims[i], 1);
    return n;
}

/* By value: is it made of constants, one of which the model says is learnt? Then it is no setting and no mask. */
static bool *find_declared(const qn_graph *graph, int n_values, const bool *constant)
{
    bool *declared = QN_NEW_ARRAY(graph->module->arena, bool, n_values + 1);
    QN_FOR_NODES (graph, node) {
        const qn_tensor *tensor = constant_of(node);
        bool any = tensor && tensor->role == QN_ROLE_PARAM;
        for (int i = 0; i < node->n_operands; i++)
            any |= declared[node->operands[i]->id];
        for (int i = 0; i < node->n_results; i++)
            declared[node->results[i].id] = any && constant[node->results[i].id];
    }
    return declared;
}

/* By value: is it made of constants, moved about and scaled, that have two axes or more? That is what a mask is; a line of numbers
 * may be a bias, and a looked-up row is learnt. */
static bool *find_mask_like(qn_graph *graph, int n_values)
{
    int *axes = QN_NEW_ARRAY(graph->module->arena, int, n_values + 1); /* -1: other things go in */
    bool *mask_like = QN_NEW_ARRAY(graph->module->arena, bool, n_values + 1);
    for (int i = 0; i < graph->n_inputs; i++)
        axes[graph->inputs[i]->id] = -1;
    QN_FOR_NODES (graph, node) {
        const qn_op_class class = qn_ops[node->op].class;
        int most = node->op == QN_OP_CONSTANT ? axes_of(&node->results[0].type) : 0;
        if (node->op != QN_OP_CONSTANT && class != QN_ELEMENTWISE && class != QN_BROADCAST &&
            (class != QN_INJECTIVE || node->op == QN_OP_GATHER || node->op == QN_OP_GATHER_ND ||
             node->op == QN_OP_GATHER_ELEMENTS))
            most = -1;
        for (int i = 0; i < node->n_operands; i++) {
            const int operand = axes[node->operands[i]->id];
            most = most < 0 || operand < 0 ? -1 : operand > most ? operand : most;
        }
        for (int i = 0; i < node->n_results; i++) {
            axes[node->results[i].id] = most;
            mask_like[node->results[i].id] = most >= 2;
        }
    }
    return mask_like;
}

/* ---- tables of sines ---- */

typedef struct angles {
    int64_t n,
        turned; /* pairs that are a sine and a cosine; those where neither is 0: ones beside zeros are no table */
} angles;

static double element(const qn_tensor *tensor, const char *data, int64_t i)
{
    const qn_dtype dtype = tensor->type.dtype;
    return qn_scalar_load(dtype, data + (size_t)i * qn_dtype_bytes(dtype)).f;
}

static bool add_angle(angles *found, qn_dtype dtype, double a, double b)
{
    const double tolerance = qn_dtype_is_narrow(dtype) ? 2e-2 : 1e-4;
    found->n++;
    found->turned += a != 0 && b != 0;
    return fabs(a * a + b * b - 1) < tolerance;
}

static bool are_many(const angles *found)
{
    return found->turned >= 8 && found->turned >= found->n / 2;
}

/* Do sines and cosines of the same angles make up the last axis, in halves or by turns? */
static bool has_sines(const qn_tensor *tensor)
{
    const qn_type *type = &tensor->type;
    const int64_t n = type->dims[type->rank - 1]->value, total = qn_type_elements(type);
    if (n % 2)
        return false;
    const char *data = qn_tensor_data(tensor);
    for (int turns = 0; turns < 2; turns++) {
        angles found = { 0 };
        bool all = true;
        for (int64_t at = 0; at < total && all; at += n)
            for (int64_t i = 0; i < n / 2 && all; i++) {
                const int64_t a = at + (turns ? 2 * i : i), b = turns ? a + 1 : a + n / 2;
                all = add_angle(&found, type->dtype, element(tensor, data, a), element(tensor, data, b));
            }
        if (all && are_many(&found))
            return true;
    }
    return false;
}

/* Are they the sines and the cosines of the same angles? */
static bool are_sines(const qn_tensor *a, const qn_tensor *b)
{
    if (!qn_type_equal(&a->type, &b->type))
        return false;
    const char *of_a = qn_tensor_data(a), *of_b = qn_tensor_data(b);
    const int64_t total = qn_type_elements(&a->type);
    angles found = { 0 };
    bool all = true;
    for (int64_t i = 0; i < total && all; i++)
        all = add_angle(&found, a->type.dtype, element(a, of_a, i), element(b, of_b, i));
    return all && are_many(&found);
}

/* By value: is it a table of sines and cosines, which says where in a sequence something is? No weights are drawn like that. */
static bool *find_sines(const qn_graph *graph, int n_values)
{
    bool *sines = QN_NEW_ARRAY(graph->module->arena, bool, n_values + 1);
    QN_FOR_NODES (graph, node) {
        const qn_tensor *tensor = constant_of(node);
        if (!tensor || axes_of(&tensor->type) < 2 || tensor->role != QN_ROLE_INPUT)
            continue;
        sines[node->results[0].id] |= has_sines(tensor);
        for (const qn_node *other = node->next; other; other = other->next) {
            const qn_tensor *partner = constant_of(other);
            if (partner && partner->role == QN_ROLE_INPUT && are_sines(tensor, partner))
                sines[node->results[0].id] = sines[other->results[0].id] = true;
        }
    }
    return sines;
}

/* ---- both together ---- */

/* By value: does it reach an output through operands that are learnt? What is like a mask and is added to what a softmax
 * takes is one. */
static bool *find_wanted(qn_graph *graph)
{
    qn_arena *arena = graph->module->arena;
    const int n = qn_graph_number(graph);
    const bool *mask_like = find_mask_like(graph, n), *constant = find_constant(graph, n, false),
               *placed = find_constant(graph, n, true), *declared = find_declared(graph, n, constant),
               *sines = find_sines(graph, n);
    bool *wanted = QN_NEW_ARRAY(arena, bool, n + 1), *scores = QN_NEW_ARRAY(arena, bool, n + 1);
    for (int i = 0; i < graph->n_outputs; i++)
        wanted[graph->outputs[i]->id] = true;
    for (const qn_node *node = graph->last; node; node = node->prev) {
        bool any = false;
        for (int i = 0; i < node->n_results; i++)
            any |= wanted[node->results[i].id];
        if (!any)
            continue;
        const bool elementwise = qn_ops[node->op].class == QN_ELEMENTWISE;
        for (int i = 0; i < node->n_operands; i++) {
            const int id = node->operands[i]->id;
            if (node->op == QN_OP_SOFTMAX || node->op == QN_OP_LOG_SOFTMAX ||
                (elementwise && scores[node->results[0].id]))
                scores[id] = true;
            const bool setting = (constant[id] && is_setting(node, i, constant)) || sines[id] ||
                                 (placed[id] && (node->op == QN_OP_SIN || node->op == QN_OP_COS)),
                       mask = mask_like[id] &&
                              (node->op == QN_OP_ATTENTION ? i == 3
                                                           : elementwise && scores[node->results[0].id]);
            if (leads_back(node, i) && (declared[id] || (!setting && !mask)))
                wanted[id] = true;
        }
    }
    return wanted;
}

/* Masks hold infinities, or numbers that stand for them. */
static bool is_moderate(const qn_tensor *tensor)
{
    const size_t size = qn_dtype_bytes(tensor->type.dtype);
    for (size_t at = 0; at < tensor->bytes; at += size)
        if (!(fabs(qn_scalar_load(tensor->type.dtype, (const char *)tensor->data + at).f) < 1e4))
            return false;
    return true;
}

/* Does the pattern, in which '*' stands for any letters, match the whole name? */
static bool matches(const char *pattern, const char *name)
{
    for (; *pattern && *pattern != '*'; pattern++, name++)
        if (*pattern != *name)
            return false;
    if (!*pattern)
        return !*name;
    for (pattern++;; name++) {
        if (matches(pattern, name))
            return true;
        if (!*name)
            return false;
    }
}

/* Is it asked for? Notes which patterns have matched something. */
static bool is_named(const qn_train_options *options, const char *name, bool *used)
{
    bool found = false;
    for (int i = 0; i < options->n_params; i++)
        if (matches(options->params[i], name)) {
            used[i] = true;
            found = true;
        }
    return found;
}

/* ---- precision ---- */

static const qn_tensor *as_float32(qn_module *module, const qn_tensor *narrow)
{
    const qn_dtype dtype = narrow->type.dtype;
    int64_t dims[QN_MAX_RANK];
    for (int i = 0; i < narrow->type.rank; i++)
        dims[i] = narrow->type.dims[i]->value;
    qn_tensor *wide = qn_tensor_new(module, QUERN_F32, narrow->type.rank, dims, NULL);
    const char *from = qn_tensor_data(narrow);
    float *to = (float *)(uintptr_t)wide->data; /* nobody else has it yet */
    for (size_t i = 0; i < wide->bytes / sizeof *to; i++)
        to[i] = (float)qn_scalar_load(dtype, from + i * qn_dtype_bytes(dtype)).f;
    wide->name = narrow->name;
    return wide;
}

/* Parameters of 16 bits would lose small updates: they are kept in float32, and rounded where the model reads them. */
static void keep_in_float32(qn_graph *graph, qn_diags *diags)
{
    qn_builder b = { .graph = graph, .before = graph->first, .diags = diags };
    for (int i = 0; i < graph->n_inputs; i++) {
        qn_value *narrow = graph->inputs[i];
        const qn_tensor *initial = graph->input_initial[i];
        if (graph->input_roles[i] != QN_ROLE_PARAM || !qn_dtype_is_narrow(narrow->type.dtype))
            continue;
        qn_type type = narrow->type;
        type.dtype = QUERN_F32;
        qn_value *wide = qn_graph_add_input(graph, narrow->name, type, QN_ROLE_PARAM);
        graph->input_initial[wide->index] = initial ? as_float32(graph->module, initial) : NULL;
        qn_value_replace(narrow, qn_b_convert(&b, narrow->type.dtype, wide));
        qn_graph_resolve(graph);
        qn_graph_remove_input(graph, i--);
    }
}

/* Exporters make one initializer of tensors that are equal: ones that are both the scale and the variance of a new network. What is to
 * be learnt and to follow the batches can't be one. */
static qn_status check_statistics(qn_graph *function, qn_diags *diags)
{
    const bool *wanted = NULL; /* while they are constants, which are settings there */
    QN_FOR_NODES (function, norm)
        for (int i = 3; norm->op == QN_OP_BATCH_NORM && i < 5; i++) {
            const qn_tensor *statistic = float_constant(norm->operands[i]);
            bool learnt = false;
            if (!statistic || !statistic->name)
                continue;
            wanted = wanted ? wanted : find_wanted(function);
            QN_FOR_NODES (function, node) {
                const qn_tensor *tensor = constant_of(node);
                learnt |= tensor && tensor->name && tensor->data == statistic->data &&
                          strcmp(tensor->name, statistic->name) == 0 && wanted[node->results[0].id];
            }
            if (learnt)
                return qn_error(
                    diags, QUERN_ERROR_ARGUMENT, NULL,
                    "'%s' is a running statistic of a batch normalization and a parameter at once: the "
                    "exporter made one tensor of equal ones; export the model in training mode (PyTorch: "
                    "training=TrainingMode.TRAINING)",
                    statistic->name);
        }
    return QUERN_OK;
}

qn_status qn_train_parameters(qn_graph *function, const qn_train_options *options, qn_diags *diags)
{
    QN_TRY(check_statistics(function, diags));
    promote_statistics(function);
    const bool *wanted = find_wanted(function);
    bool *used = QN_NEW_ARRAY(diags->arena, bool, options->n_params + 1);
    for (int i = 0; i < function->n_inputs; i++)
        if (function->input_roles[i] == QN_ROLE_PARAM && options->n_params &&
            !is_named(options, function->inputs[i]->name, used))
            function->input_roles[i] = QN_ROLE_STATE;
    for (qn_node *node = function->first, *next; node; node = next) {
        next = node->next;
        const qn_tensor *tensor = constant_of(node);
        if (!tensor || !tensor->name)
            continue;
        bool learnt =
            options->n_params
                ? is_named(options, tensor->name, used)
                : wanted[node->results[0].id] &&
                      (tensor->role == QN_ROLE_PARAM ||
                       (tensor->role == QN_ROLE_INPUT && tensor->type.rank > 0 && is_moderate(tensor)));
        if (learnt)
            become_input(function, &node->results[0], tensor->name, QN_ROLE_PARAM);
    }
    qn_graph_resolve(function);
    keep_in_float32(function, diags);
    for (int i = 0; i < options->n_params; i++)
        if (!used[i])
            qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                     "no parameter is called '%s': expected a floating-point initializer of the model",
                     options->params[i]);
    QN_TRY(qn_diags_status(diags));
    for (int i = 0; i < function->n_inputs; i++)
        if (function->input_roles[i] == QN_ROLE_PARAM)
            return QUERN_OK;
    const char *file = function->module->name;
    return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                    "'%s' has no parameters to train: no input is one, and no floating-point initializer is "
                    "multiplied, added or looked up on a way to the output that has a derivative",
                    *file ? file : function->name);
}
