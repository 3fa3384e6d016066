/* Lets products multiply numbers of fewer bits where that is faster. Bytes, under precision int8, are in quantize_int8.c. Here
 * is bfloat16, on machines with a matrix unit or with instructions that multiply pairs.
 *
 * Before: dot_general of float32, {precision = bf16}. After: its operands rounded to bf16, its sums float32 as before.
 * Constants are rounded at compile time; other operands by whoever computes them, so what lies in memory is bf16.
 *
 *   %r = dot_general %x: f32[128, 768], %w: f32[768, 3072]
 *   ->
 *   %x' = convert %x : bf16;  %w' = convert %w : bf16
 *   %r = dot_general %x', %w' {dtype = f32} : f32[128, 3072]
 *
 * Convolutions likewise, where there is a kernel for them (conv_tile.c, conv.c); the layout pass puts them in blocks of channels.
 * Products that are small, or bound by reading the right side, stay as they are; see pack.c for the latter. So do those without a
 * matrix unit of few rows, or positions, whose right side, or filter, is no constant, such as weights that are trained: putting pairs
 * side by side takes as long as is gained. But in a loop that is done once, where it is the same in every step. */
#include <string.h>

#include "passes/conv_tile.h"
#include "passes/integer.h"
#include "passes/quantize.h"
#include "passes/winograd.h"

enum {
    GPU_STEP = 8,   /* of what is summed over, on a GPU: 16 bytes */
    LEAST_ROWS = 8, /* for a matrix unit: fewer are bound by reading y */
    LEAST_COLUMNS = 16,
    LEAST_REUSE = 24,    /* rows, or pairs of positions, for which pairs are put side by side at run time */
    LEAST_PADDED = 64,   /* columns that are worth a zero behind each row of x */
    LEAST_STEPS = 2,     /* of a matrix unit, of which the last may end in zeros */
    LEAST_WORK = 1 << 18 /* multiplications */
};

const char *const qn_precision_names[] = { [QN_PRECISION_F32] = "f32",
                                           [QN_PRECISION_BF16] = "bf16",
                                           [QN_PRECISION_INT8] = "int8",
                                           [QN_PRECISION_INT4] = "int4",
                                           NULL };

bool qn_is_constant(const qn_value *value)
{
    const qn_node *node = value->node;
    bool all = node && (node->op == QN_OP_CONSTANT || node->n_operands > 0) && node->n_regions == 0 &&
               node->op != QN_OP_RANDOM_BITS && !(qn_ops[node->op].flags & (QN_FLAG_EFFECT | QN_FLAG_BINDS));
    for (int i = 0; all && i < node->n_operands; i++)
        all = qn_is_constant(node->operands[i]);
    return all;
}

static int copy_axes(const qn_node *node, qn_attr_key key, int64_t *to)
{
    int n;
    const int64_t *axes = qn_attr_ints(node, key, &n);
    memcpy(to, axes, (size_t)n * sizeof *axes);
    return n;
}

qn_dot qn_dot_of(const qn_node *node)
{
    qn_dot dot = { .n_batch = 0 };
    dot.n_batch = copy_axes(node, QN_ATTR_X_BATCH, dot.x_batch);
    copy_axes(node, QN_ATTR_Y_BATCH, dot.y_batch);
    dot.n_contract = copy_axes(node, QN_ATTR_X_CONTRACT, dot.x_contract);
    copy_axes(node, QN_ATTR_Y_CONTRACT, dot.y_contract);
    return dot;
}

qn_conv qn_conv_of(const qn_node *node, qn_conv_room *room)
{
    int n;
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, &n), *high = qn_attr_dims(node, QN_ATTR_HIGH, NULL);
    for (int i = 0; i < n; i++) {
        room->low[i] = low[i]->value;
        room->high[i] = high[i]->value;
    }
    return (qn_conv){ .stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL),
                      .low = room->low,
                      .high = room->high,
                      .x_dilation = qn_attr_ints(node, QN_ATTR_X_DILATION, NULL),
                      .w_dilation = qn_attr_ints(node, QN_ATTR_W_DILATION, NULL),
                      .groups = qn_attr_int(node, QN_ATTR_GROUPS) };
}

/* ---- bfloat16 ---- */

/* From there on they multiply bfloat16. */
static bool has_gpu_unit(const qn_machine *machine)
{
    return machine->gpu && machine->gpu_arch >= 80;
}

int qn_bf16_step(const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    if (options->math == QN_MATH_STRICT && options->precision != QN_PRECISION_BF16)
        return 0; /* a pair's sum would come before its own */
    return machine->tiles ? QN_TILE_BYTES / 2 : machine->dot2 ? 2 : has_gpu_unit(machine) ? GPU_STEP : 0;
}

/* Is each of the axes of constant extent? The product of the extents. */
static bool extent(const qn_type *type, int n, const int64_t *axes, int64_t *out)
{
    *out = 1;
    for (int i = 0; i < n; i++) {
        const qn_dim d = type->dims[axes[i]];
        if (!qn_dim_is_const(d) || __builtin_mul_overflow(*out, d->value, out))
            return false;
    }
    return true;
}

/* Largest number of elements along the axes that are in neither list. */
static double free_elements(const qn_type *type, int n_a, const int64_t *a, int n_b, const int64_t *b)
{
    double n = 1;
    for (int axis = 0; axis < type->rank; axis++) {
        bool taken = false;
        for (int i = 0; i < n_a; i++)
            taken |= a[i] == axis;
        for (int i = 0; i < n_b; i++)
            taken |= b[i] == axis;
        n *= taken ? 1 : (double)type->dims[axis]->max;
    }
    return n;
}

/* Zeros behind the one axis that is summed over, which make its k products whole steps: one for pairs, or some of a matrix unit's step. 0:
 * none, or they may be too many. */
static int64_t padding(const qn_node *node, const qn_machine *machine, int64_t k, int step)
{
    const bool worth_it = machine->tiles ? k >= LEAST_STEPS * step : step == 2;
    return worth_it && qn_dot_of(node).n_contract == 1 ? -k & (step - 1) : 0;
}

/* Is it, or what is made of it by moving elements, there before the first run, or the first step of the loop whose body it is in? */
static bool is_made_once(const qn_value *v, const qn_node *loop)
{
    if (qn_is_constant(v))
        return true;
    while (v->node && (v->node->op == QN_OP_TRANSPOSE || v->node->op == QN_OP_RESHAPE))
        v = v->node->operands[0];
    return loop && !v->node && v->index >= qn_first_captured(loop);
}

/* loop: whose body the node is in, or NULL. */
static bool worth_it(const qn_node *node, const qn_node *loop, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    static const qn_attr_key batch_key[2] = { QN_ATTR_X_BATCH, QN_ATTR_Y_BATCH };
    static const qn_attr_key contract_key[2] = { QN_ATTR_X_CONTRACT, QN_ATTR_Y_CONTRACT };
    double free[2];
    int64_t k = 0;
    for (int side = 0; side < 2; side++) {
        const qn_type *type = &node->operands[side]->type;
        int n_batch, n_contract;
        const int64_t *batch = qn_attr_ints(node, batch_key[side], &n_batch);
        const int64_t *contract = qn_attr_ints(node, contract_key[side], &n_contract);
        if (type->dtype != QUERN_F32 || !extent(type, n_contract, contract, &k))
            return false;
        free[side] = free_elements(type, n_batch, batch, n_contract, contract);
    }
    const bool unit = machine->tiles || machine->gpu;
    const int step = qn_bf16_step(options);
    const bool whole =
        k % step == 0 || (padding(node, machine, k, step) > 0 && (machine->tiles || free[1] >= LEAST_PADDED));
    const int least = unit ? LEAST_ROWS : is_made_once(node->operands[1], loop) ? 1 : LEAST_REUSE;
    return k > 0 && whole && free[0] >= least && free[1] >= LEAST_COLUMNS &&
           free[0] * free[1] * (double)k >= LEAST_WORK;
}

/* Rounded, with zeros behind axis `axis`. */
static qn_value *round_operand(qn_builder *b, qn_value *v, int64_t axis, int64_t zeros)
{
    qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
    v = qn_b_convert(b, QUERN_BF16, v);
    if (zeros == 0 || !v)
        return v;
    for (int i = 0; i < v->type.rank; i++)
        low[i] = high[i] = qn_dim_const(qn_b_dims(b), 0);
    high[axis] = qn_dim_const(qn_b_dims(b), zeros);
    return qn_b_pad(b, v, qn_b_scalar(b, QUERN_BF16, 0), low, high, NULL);
}

static qn_value *round_operands(qn_builder *b, const qn_node *node, const qn_machine *machine, int step)
{
    const qn_dot dot = qn_dot_of(node);
    const int64_t zeros =
        padding(node, machine, node->operands[0]->type.dims[dot.x_contract[0]]->value, step);
    return qn_b_dot_general(b, round_operand(b, node->operands[0], dot.x_contract[0], zeros),
                            round_operand(b, node->operands[1], dot.y_contract[0], zeros), &dot, QUERN_F32);
}

/* ---- convolutions ---- */

/* Whether none of the graph's convolutions stays float32 for good: where each channel is convolved by itself, in blocks of
 * another size than a matrix unit's, going back and forth costs more than is gained. */
static bool convolutions_fit(const qn_graph *graph, const qn_machine *machine)
{
    if (!machine->tiles)
        return true;
    QN_FOR_NODES (graph, node)
        if (node->op == QN_OP_CONVOLUTION && qn_attr_int(node, QN_ATTR_GROUPS) != 1)
            return false;
    return true;
}

/* Most outputs of a channel. */
static double positions(const qn_type *y)
{
    static const int64_t channels = 1;
    return free_elements(y, 1, &channels, 0, NULL);
}

/* Blocks of channels are those of float32, so each convolution may be one or the other: where Winograd's method takes less time
 * than half of what the direct kernel does, it stays as it is. */
static bool pairs_fit(const qn_node *node, const qn_pass_options *options)
{
    const qn_type *w = &node->operands[1]->type;
    qn_conv_plan plan;
    int t;
    int64_t width;
    if (!options->machine->dot2 || options->math == QN_MATH_STRICT || !qn_integer_convolves(node) ||
        w->dims[1]->value <= 1 || w->dims[0]->value < options->machine->vector_bytes / 4 ||
        (!qn_is_constant(node->operands[1]) && positions(&node->results[0].type) < 2 * LEAST_REUSE))
        return false;
    if (!qn_conv_plan_foresee(node, options,
                              &plan)) /* over extents that are symbols there is the direct kernel */
        return w->rank - 2 <= QN_CONV_AXES && !qn_conv_has_extents(node);
    return !(qn_is_known(node->operands[1]) && qn_winograd_wins(&plan, true, options, &t, &width));
}

static bool convolution_fits(const qn_node *node, const qn_pass_options *options)
{
    return options->machine->tiles ? qn_conv_tile_fits(node, options) : pairs_fit(node, options);
}

static qn_value *round_convolution(qn_builder *b, const qn_node *node)
{
    qn_conv_room room;
    const qn_conv conv = qn_conv_of(node, &room);
    return qn_b_convolution_to(b, qn_b_convert(b, QUERN_BF16, node->operands[0]),
                               qn_b_convert(b, QUERN_BF16, node->operands[1]), &conv, QUERN_F32);
}

/* ---- the pass ---- */

/* What replaces the node's result; NULL: it stays, or after a report. */
static qn_value *replacement(qn_builder *b, const qn_node *node, const qn_node *loop,
                             const qn_pass_options *options, bool convolutions)
{
    if (options->precision == QN_PRECISION_INT8) {
        if (!qn_int8_is_worth_it(node, options->machine))
            return NULL;
        return node->op == QN_OP_CONVOLUTION ? qn_int8_convolution(b, node, options->machine)
                                             : qn_int8_product(b, node);
    }
    if (node->op == QN_OP_DOT_GENERAL && worth_it(node, loop, options))
        return round_operands(b, node, options->machine, qn_bf16_step(options));
    const bool fits = convolutions && node->op == QN_OP_CONVOLUTION &&
                      node->operands[0]->type.dtype == QUERN_F32 && convolution_fits(node, options);
    return fits ? round_convolution(b, node) : NULL;
}

/* loop: whose body it is, or NULL. */
static qn_status quantize_graph(qn_graph *graph, const qn_node *loop, const qn_pass_options *options,
                                bool *changed, qn_diags *diags)
{
    const bool convolutions = convolutions_fit(graph, options->machine);
    const int errors = diags->n_errors;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        const bool is_loop = node->op == QN_OP_SCAN || node->op == QN_OP_WHILE;
        for (int i = 0; i < node->n_regions; i++)
            QN_TRY(quantize_graph(node->regions[i], is_loop ? node : NULL, options, changed, diags));
        qn_node_resolve(node);
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        qn_value *made = replacement(&b, node, loop, options, convolutions);
        if (diags->n_errors > errors)
            return qn_diags_status(diags);
        if (!made)
            continue;
        qn_value_replace(&node->results[0], made);
        qn_node_remove(node);
        *changed = true;
    }
    qn_graph_resolve(graph);
    return QUERN_OK;
}

qn_status qn_pass_quantize(qn_graph *graph, const qn_pass_options *options, bool *out_changed,
                           qn_diags *diags)
{
    *out_changed = false;
    const qn_machine *machine = options->machine;
    const bool any = machine && ((options->precision == QN_PRECISION_INT8 && !machine->gpu) ||
                                 (options->precision == QN_PRECISION_BF16 && qn_bf16_step(options) > 0));
    return any ? quantize_graph(graph, NULL, options, out_changed, diags) : QUERN_OK;
}
