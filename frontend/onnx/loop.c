/* Loop.
 *
 *   of a known trip count whose condition stays true   a scan
 *   whose values grow by a piece a trip                one that stacks the pieces
 *   whose values change shape, or hold sequences       spelled out, where trips and conditions are known
 *   else                                               a while; stacked outputs go into buffers of the most trips */
#include "frontend/onnx/arith.h"
#include "frontend/onnx/body.h"
#include "frontend/onnx/families.h"

typedef struct loop {
    qn_onnx_node *n;
    const Onnx__Graph *body; /* (trip, condition, carried…) -> (condition, carried…, stacked…) */
    int n_carried, n_stacked;
    qn_onnx_value **carried;  /* at the start */
    qn_dim trips;             /* NULL: not known, or without bound */
    qn_onnx_value *condition; /* at the start; NULL: true */
    /* Where values grow: the outputs that results are, of which those from n_kept on are pieces; else NULL. */
    int *outputs, n_kept;
    qn_onnx_growth *growths; /* of all carried values of the node */
    qn_onnx_value **starts;
    int n_starts;
} loop;

/* The axis along which carried value i of the node grows; -1 after a report. */
static int growing_axis(loop *l, int i)
{
    const int rank = l->starts[i]->type.rank;
    const int64_t axis = l->growths[i].axis + (l->growths[i].axis < 0 ? rank : 0);
    if (axis >= 0 && axis < rank)
        return (int)axis;
    qn_onnx_malformed(l->n, "carried value %d of rank %d can't grow along axis %d", i, rank, (int)axis);
    return -1;
}

/* What carried value i of the node has become by the pieces of all trips. */
static qn_value *grown(loop *l, int i, qn_value *pieces)
{
    qn_onnx_node *n = l->n;
    const qn_type *start = &l->starts[i]->type;
    const int axis = growing_axis(l, i);
    int64_t perm[QN_MAX_RANK + 1];
    qn_dim dims[QN_MAX_RANK];
    if (axis < 0 || !pieces || pieces->type.rank != start->rank + 1)
        return NULL;
    for (int k = 0; k <= start->rank; k++)
        perm[k] = k < axis ? k + 1 : k == axis ? 0 : k;
    for (int k = 0; k < start->rank; k++)
        dims[k] = pieces->type.dims[k + 1];
    dims[axis] = qn_dim_mul(n->im->dims, pieces->type.dims[0], dims[axis]);
    qn_value *all = qn_b_reshape(&n->b, qn_b_transpose(&n->b, pieces, perm), start->rank, dims);
    if (qn_dim_is(start->dims[axis], 0))
        return all;
    qn_value *both[2] = { qn_onnx_value_make(&n->b, l->starts[i]), all };
    return both[0] && all ? qn_b_concatenate(&n->b, 2, both, axis) : NULL;
}

/* What grows is empty in the body, which makes pieces of it. */
static bool define_growing(loop *l, qn_onnx_scope *scope, qn_graph *region)
{
    qn_builder b = qn_onnx_region_builder(l->n, region);
    for (int i = 0; l->growths && i < l->n_starts; i++) {
        if (!l->growths[i].name)
            continue;
        const int axis = growing_axis(l, i);
        if (axis < 0)
            return false;
        const qn_type *start = &l->starts[i]->type;
        qn_dim dims[QN_MAX_RANK];
        for (int k = 0; k < start->rank; k++)
            dims[k] = k == axis ? qn_dim_const(l->n->im->dims, 0) : start->dims[k];
        qn_type type = qn_type_make(l->n->im->module, start->dtype, start->rank, dims);
        qn_value *empty = qn_b_full(&b, &type, 0);
        if (!empty || !qn_onnx_scope_define(scope, l->growths[i].name, qn_onnx_value_from(l->n->im, empty),
                                            &l->n->b.loc))
            return false;
    }
    return true;
}

/* Result i of the loop, of the carried and then the stacked values. */
static void give(loop *l, int i, qn_value *v)
{
    const int out = l->outputs ? l->outputs[i] : i;
    if (out >= l->n->n_out)
        return;
    if (l->outputs && i >= l->n_kept)
        v = grown(l, out, v);
    qn_onnx_out(l->n, out, v);
}

/* A body as a region over inputs (trip, condition?, carried…, buffers…, captured…). */
typedef struct loop_region {
    qn_graph *graph;
    qn_onnx_scope *scope;
    qn_value *trip, *condition, *go_on; /* go_on: the condition it gives; NULL: known to be true */
    qn_value **carried, **stacked, **buffers;
} loop_region;

static bool define_input(loop *l, qn_onnx_scope *scope, int i, qn_onnx_value *v)
{
    return !*l->body->input[i]->name || qn_onnx_scope_define(scope, l->body->input[i]->name, v, &l->n->b.loc);
}

/* Imports the body as a region. with_condition: its condition is carried. buffers: types of stacked outputs' buffers,
 * or NULL. False when something was reported. */
static bool import_region(loop *l, bool with_condition, const qn_type *buffers, loop_region *out)
{
    qn_onnx_node *n = l->n;
    qn_onnx_import *im = n->im;
    qn_type trip = qn_type_make(im->module, QUERN_I64, 0, NULL),
            truth = qn_type_make(im->module, QUERN_BOOL, 0, NULL);
    *out = (loop_region){ .graph = qn_region_new(im->module) };
    out->scope = qn_onnx_scope_new(n, out->graph);
    if (!out->scope)
        return false;
    out->trip = qn_graph_add_input(out->graph, NULL, trip, QN_ROLE_INPUT);
    qn_onnx_value *condition = NULL;
    if (with_condition) {
        out->condition = qn_graph_add_input(out->graph, NULL, truth, QN_ROLE_INPUT);
        condition = qn_onnx_value_from(im, out->condition);
    } else {
        qn_dim one = qn_dim_const(im->dims, 1);
        condition = qn_onnx_value_dims(im, QUERN_BOOL, 0, NULL, &one);
    }
    if (!define_input(l, out->scope, 0, qn_onnx_value_from(im, out->trip)) ||
        !define_input(l, out->scope, 1, condition))
        return false;
    for (int i = 0; i < l->n_carried; i++) {
        qn_value *input = qn_graph_add_input(out->graph, NULL, l->carried[i]->type, QN_ROLE_INPUT);
        if (!define_input(l, out->scope, i + 2, qn_onnx_value_from(im, input)))
            return false;
    }
    if (!define_growing(l, out->scope, out->graph))
        return false;
    out->buffers = QN_NEW_ARRAY(im->arena, qn_value *, l->n_stacked);
    for (int i = 0; buffers && i < l->n_stacked; i++)
        out->buffers[i] = qn_graph_add_input(out->graph, NULL, buffers[i], QN_ROLE_INPUT);
    if (!qn_onnx_scope_import(out->scope, l->body))
        return false;
    qn_builder b = qn_onnx_region_builder(n, out->graph);
    qn_onnx_value *go_on = qn_onnx_scope_output(out->scope, l->body, 0, &n->b.loc);
    qn_dim known;
    if (!go_on)
        return false;
    if (!qn_onnx_known_scalar(im, go_on, &known) || !qn_dim_is(known, 1))
        out->go_on = qn_onnx_as_scalar(&b, qn_onnx_body_output(n, out->scope, l->body, 0));
    out->carried = QN_NEW_ARRAY(im->arena, qn_value *, l->n_carried);
    out->stacked = QN_NEW_ARRAY(im->arena, qn_value *, l->n_stacked);
    for (int i = 0; i < l->n_carried; i++) {
        qn_value *v = qn_onnx_body_output(n, out->scope, l->body, i + 1);
        out->carried[i] = qn_onnx_of_type(&b, v, &l->carried[i]->type);
        if (v && !out->carried[i])
            qn_onnx_unsupported(n, "carried value %d starts as %s and continues as %s", i,
                                qn_type_print(&l->carried[i]->type, im->arena),
                                qn_type_print(&v->type, im->arena));
        if (!out->carried[i])
            return false;
    }
    for (int i = 0; i < l->n_stacked; i++)
        if (!(out->stacked[i] = qn_onnx_body_output(n, out->scope, l->body, i + 1 + l->n_carried)))
            return false;
    return true;
}

/* The same, keeping messages and what was missed to itself. */
static bool try_region(loop *l, bool with_condition, loop_region *out)
{
    const int before = l->n->n_errors, n_lengths = l->n->im->n_lengths;
    qn_onnx_trial *trial = qn_onnx_trial_begin(l->n->im);
    l->n->n_errors = 0;
    bool good = import_region(l, with_condition, NULL, out);
    (void)qn_onnx_trial_end(l->n->im, trial);
    l->n->n_errors = before;
    if (!good) /* the next one has lengths of the same names */
        l->n->im->n_lengths = n_lengths;
    return good;
}

static void loop_as_scan(loop *l, loop_region *r)
{
    qn_onnx_node *n = l->n;
    qn_builder *b = &n->b, inner = qn_onnx_region_builder(n, r->graph);
    int n_captured = (int)r->scope->captured.n, n_operands = 1 + l->n_carried + n_captured;
    qn_value **operands = QN_NEW_ARRAY(n->im->arena, qn_value *, n_operands);
    qn_graph_add_output(r->graph, add(&inner, r->trip, qn_b_scalar_int(&inner, QUERN_I64, 1)), NULL, -1);
    operands[0] = qn_b_scalar_int(b, QUERN_I64, 0);
    for (int i = 0; i < l->n_carried; i++) {
        operands[1 + i] = qn_onnx_value_make(b, l->carried[i]);
        qn_graph_add_output(r->graph, r->carried[i], NULL, -1);
    }
    for (int i = 0; i < l->n_stacked; i++)
        qn_graph_add_output(r->graph, r->stacked[i], NULL, -1);
    for (int i = 0; i < n_captured; i++)
        operands[1 + l->n_carried + i] = r->scope->captured.items[i];
    qn_node *node = qn_b_scan(b, 1 + l->n_carried, 0, n_captured, operands, l->trips, false, r->graph);
    for (int i = 0; node && i < l->n_carried + l->n_stacked; i++)
        give(l, i, &node->results[1 + i]);
}

/* Goes on while the condition holds and trips are left. */
static qn_graph *while_condition(loop *l, int n_operands, qn_value *const *operands, qn_value *trips)
{
    qn_graph *graph = qn_region_new(l->n->im->module);
    qn_builder b = qn_onnx_region_builder(l->n, graph);
    for (int i = 0; i < n_operands; i++)
        qn_graph_add_input(graph, NULL, operands[i]->type, QN_ROLE_INPUT);
    qn_value *go_on = graph->inputs[1];
    if (trips) /* the last operand */
        go_on = and_also(&b, go_on, compare(&b, QN_LT, graph->inputs[0], graph->inputs[n_operands - 1]));
    else if (l->trips)
        go_on = and_also(&b, go_on,
                         compare(&b, QN_LT, graph->inputs[0], qn_b_dim_value(&b, QUERN_I64, l->trips)));
    qn_graph_add_output(graph, go_on, NULL, -1);
    return graph;
}

/* The first `count` rows of a buffer; their number is a new symbol. */
static qn_value *first_rows(qn_onnx_node *n, qn_value *buffer, qn_value *count)
{
    qn_builder *b = &n->b;
    qn_dim most = buffer->type.dims[0];
    qn_type index = qn_type_make(n->im->module, QUERN_I64, 1, &most);
    qn_dim rows =
        qn_dim_fresh(n->im->dims, "trips", 0, most->max < QN_DIM_MAX_VALUE ? most->max : QN_DIM_MAX_VALUE);
    qn_value *used = compare(b, QN_LT, qn_b_iota(b, &index, 0), count);
    return qn_b_gather(b, buffer, qn_b_reshape(b, qn_b_non_zero(b, used, rows), 1, &rows), 0);
}

static void loop_as_while(loop *l, const loop_region *typed)
{
    qn_onnx_node *n = l->n;
    qn_builder *b = &n->b;
    qn_type *buffers = QN_NEW_ARRAY(n->im->arena, qn_type, l->n_stacked);
    loop_region r;
    for (int i = 0; i < l->n_stacked; i++) {
        const qn_type *row = &typed->stacked[i]->type;
        qn_dim dims[QN_MAX_RANK + 1] = { l->trips };
        if (!l->trips) {
            qn_onnx_needs_contents(n, 0);
            return;
        }
        for (int k = 0; k < row->rank; k++)
            dims[k + 1] = row->dims[k];
        if (row->rank == QN_MAX_RANK) {
            qn_onnx_unsupported(n, "a stacked output's rank is too high");
            return;
        }
        buffers[i] = qn_type_make(n->im->module, row->dtype, row->rank + 1, dims);
    }
    if (!import_region(l, true, buffers, &r))
        return;
    qn_builder inner = qn_onnx_region_builder(n, r.graph);
    qn_value *trips = !l->trips && qn_onnx_has(n, 0) ? qn_onnx_as_scalar(b, qn_onnx_in(n, 0)) : NULL;
    int n_loop = 2 + l->n_carried + l->n_stacked, n_captured = (int)r.scope->captured.n;
    int n_operands = n_loop + n_captured + (trips != NULL);
    qn_value **operands = QN_NEW_ARRAY(n->im->arena, qn_value *, n_operands);
    qn_value *truth = r.go_on ? r.go_on : qn_b_scalar_int(&inner, QUERN_BOOL, 1);
    qn_graph_add_output(r.graph, add(&inner, r.trip, qn_b_scalar_int(&inner, QUERN_I64, 1)), NULL, -1);
    qn_graph_add_output(r.graph, truth, NULL, -1);
    operands[0] = qn_b_scalar_int(b, QUERN_I64, 0);
    operands[1] = l->condition ? qn_onnx_as_scalar(b, qn_onnx_value_make(b, l->condition))
                               : qn_b_scalar_int(b, QUERN_BOOL, 1);
    for (int i = 0; i < l->n_carried; i++) {
        operands[2 + i] = qn_onnx_value_make(b, l->carried[i]);
        qn_graph_add_output(r.graph, r.carried[i], NULL, -1);
    }
    for (int i = 0; i < l->n_stacked; i++) {
        qn_value *starts[QN_MAX_RANK] = { r.trip };
        for (int k = 1; k < buffers[i].rank; k++)
            starts[k] = qn_b_scalar_int(&inner, QUERN_I64, 0);
        operands[2 + l->n_carried + i] = qn_b_full(b, &buffers[i], 0);
        qn_value *row = qn_b_expand_dims(&inner, r.stacked[i], 0);
        qn_graph_add_output(r.graph, qn_b_dynamic_update_slice(&inner, r.buffers[i], row, starts), NULL, -1);
    }
    for (int i = 0; i < n_captured; i++)
        operands[n_loop + i] = r.scope->captured.items[i];
    if (trips) {
        operands[n_operands - 1] = trips;
        qn_graph_add_input(r.graph, NULL, trips->type, QN_ROLE_INPUT);
    }
    for (int i = 0; i < n_operands; i++)
        if (!operands[i])
            return;
    if (!qn_onnx_ok(n))
        return;
    qn_graph *condition = while_condition(l, n_operands, operands, trips);
    qn_node *node = qn_b_while(b, n_loop, n_operands - n_loop, operands, l->trips, condition, r.graph);
    for (int i = 0; node && i < l->n_carried + l->n_stacked; i++) {
        qn_value *result = &node->results[2 + i];
        give(l, i, i < l->n_carried ? result : first_rows(n, result, &node->results[0]));
    }
    qn_onnx_touched(n, r.scope);
}

/* Copies of the body one after the other. */
static void loop_unrolled(loop *l)
{
    qn_onnx_node *n = l->n;
    qn_builder *b = &n->b;
    qn_onnx_import *im = n->im;
    int64_t trips =
        l->trips && l->trips->value < QN_ONNX_MAX_UNROLLED ? l->trips->value : QN_ONNX_MAX_UNROLLED;
    qn_dim one = qn_dim_const(im->dims, 1), known;
    qn_onnx_value *condition =
        l->condition ? l->condition : qn_onnx_value_dims(im, QUERN_BOOL, 0, NULL, &one);
    qn_value ***rows = QN_NEW_ARRAY(im->arena, qn_value **, l->n_stacked);
    int64_t trip = 0;
    for (int i = 0; i < l->n_stacked; i++)
        rows[i] = QN_NEW_ARRAY(im->arena, qn_value *, trips);
    for (; trip < trips; trip++) {
        if (!qn_onnx_known_scalar(im, condition, &known) || !qn_dim_is_const(known)) {
            qn_onnx_misses(n, condition);
            qn_onnx_unsupported(n,
                                "its values change shape or hold sequences, and its condition is not known");
            return;
        }
        if (!known->value)
            break;
        qn_onnx_scope *scope = qn_onnx_scope_new(n, NULL);
        qn_dim number = qn_dim_const(im->dims, trip);
        if (!scope || !define_input(l, scope, 0, qn_onnx_value_dims(im, QUERN_I64, 0, NULL, &number)) ||
            !define_input(l, scope, 1, condition))
            return;
        for (int i = 0; i < l->n_carried; i++)
            if (!define_input(l, scope, i + 2, l->carried[i]))
                return;
        if (!qn_onnx_scope_import(scope, l->body))
            return;
        qn_onnx_touched(n, scope);
        condition = qn_onnx_scope_output(scope, l->body, 0, &n->b.loc);
        for (int i = 0; i < l->n_carried; i++)
            if (!(l->carried[i] = qn_onnx_scope_output(scope, l->body, i + 1, &n->b.loc)))
                return;
        for (int i = 0; i < l->n_stacked; i++)
            if (!(rows[i][trip] =
                      qn_b_expand_dims(b, qn_onnx_body_output(n, scope, l->body, i + 1 + l->n_carried), 0)))
                return;
        if (!condition)
            return;
    }
    if (trip == QN_ONNX_MAX_UNROLLED) {
        qn_onnx_unsupported(n, "its values change shape or hold sequences over %d trips or more",
                            QN_ONNX_MAX_UNROLLED);
        return;
    }
    for (int i = 0; i < n->n_out && i < l->n_carried; i++)
        qn_onnx_out_any(n, i, l->carried[i]);
    for (int i = l->n_carried; i < n->n_out; i++) {
        if (trip == 0)
            qn_onnx_unsupported(n, "output %d of a loop without trips", i);
        else
            qn_onnx_out(n, i, qn_b_concatenate(b, (int)trip, rows[i - l->n_carried], 0));
    }
}

/* ---- loops that count ---- */

/* What a scalar of integers is known to be; NULL: it is not. */
static qn_dim number_of(qn_dims *t, const qn_value *v)
{
    const qn_node *node = v->node;
    if (!node || !qn_dtype_is_int(v->type.dtype))
        return NULL;
    switch (node->op) {
    case QN_OP_CONSTANT: {
        const qn_tensor *c = qn_attr_tensor(node, QN_ATTR_VALUE);
        return qn_type_elements(&c->type) == 1
                   ? qn_dim_const(t, qn_scalar_load(c->type.dtype, qn_tensor_data(c)).i)
                   : NULL;
    }
    case QN_OP_DIM_VALUE: return qn_attr_dims(node, QN_ATTR_DIMS, NULL)[0];
    case QN_OP_CONVERT:
    case QN_OP_BROADCAST:
    case QN_OP_RESHAPE: return number_of(t, node->operands[0]);
    default: return NULL;
    }
}

/* Where the number begins that the body compares: of trips 0, of a carried value that grows by *out_step its start; NULL: it
 * does not count. */
static qn_dim counts_from(loop *l, const loop_region *r, const qn_value *next, int64_t *out_step)
{
    qn_dims *t = l->n->im->dims;
    while (next->node && next->node->op == QN_OP_RESHAPE)
        next = next->node->operands[0];
    if (!next->node || next->node->op != QN_OP_ADD)
        return NULL;
    for (int side = 0; side < 2; side++) {
        const qn_value *before = next->node->operands[side];
        const qn_dim step = number_of(t, next->node->operands[1 - side]);
        qn_dim start;
        if (!step || !qn_dim_is_const(step) || step->value < 1)
            continue;
        *out_step = step->value;
        if (before == r->trip)
            return qn_dim_const(t, 0);
        for (int i = 0; i < l->n_carried; i++)
            if (before == r->graph->inputs[2 + i] && r->carried[i] == next &&
                qn_onnx_known_scalar(l->n->im, l->carried[i], &start))
                return start;
    }
    return NULL;
}

typedef struct count {
    qn_dim start, limit, trips; /* goes on while start + step * (trips so far) < limit */
} count;

enum { MAX_COUNTS = 4 };

/* The comparisons that the condition consists of; false when there are others. At the start (r is NULL) they are of numbers. */
static bool read_counts(loop *l, const loop_region *r, const qn_value *v, int *io_n, count *out)
{
    qn_dims *t = l->n->im->dims;
    const qn_node *node = v->node;
    if (!node || *io_n == MAX_COUNTS)
        return false;
    if (node->op == QN_OP_RESHAPE)
        return read_counts(l, r, node->operands[0], io_n, out);
    if (node->op == QN_OP_AND)
        return read_counts(l, r, node->operands[0], io_n, out) &&
               read_counts(l, r, node->operands[1], io_n, out);
    if (node->op != QN_OP_COMPARE || qn_attr_compare_direction(node) != QN_LT)
        return false;
    int64_t step = 1;
    count c = { .limit = number_of(t, node->operands[1]) };
    c.start = r ? counts_from(l, r, node->operands[0], &step) : number_of(t, node->operands[0]);
    if (!c.start || !c.limit)
        return false;
    c.trips = qn_dim_ceildiv(t, qn_dim_max(t, qn_dim_sub(t, c.limit, c.start), qn_dim_const(t, 0)),
                             qn_dim_const(t, step));
    out[(*io_n)++] = c;
    return true;
}

/* The trips of a loop that goes on while counters are below known limits, as those of TensorFlow do; NULL: it is no such loop. */
static qn_dim counted_trips(loop *l, const loop_region *r)
{
    qn_dims *t = l->n->im->dims;
    count counts[MAX_COUNTS], first[MAX_COUNTS];
    int n = 0, n_first = 0;
    qn_dim known, trips = l->trips;
    if (!r->go_on ||
        (!trips && qn_onnx_has(l->n, 0) && !qn_onnx_known_scalar(l->n->im, l->n->in[0], &known)) ||
        !read_counts(l, r, r->go_on, &n, counts))
        return NULL;
    const bool always =
        !l->condition || (qn_onnx_known_scalar(l->n->im, l->condition, &known) && qn_dim_is(known, 1));
    if (!always &&
        (!l->condition->value || !read_counts(l, NULL, l->condition->value, &n_first, first) || n_first != n))
        return NULL;
    for (int i = 0; i < n; i++) {
        if (!always && (first[i].start != counts[i].start || first[i].limit != counts[i].limit))
            return NULL;
        qn_dim own = always ? qn_dim_max(t, counts[i].trips, qn_dim_const(t, 1)) : counts[i].trips;
        trips = trips ? qn_dim_min(t, trips, own) : own;
    }
    return trips && qn_dim_is_valid_extent(trips) ? trips : NULL;
}

/* As a scan or a while, whose values keep their types; false where they don't. `always`: its condition at the start is known. */
static bool as_one_region(loop *l, bool always)
{
    loop_region r;
    if (always && l->trips && try_region(l, false, &r) && !r.go_on) {
        qn_onnx_touched(l->n, r.scope);
        loop_as_scan(l, &r);
        return true;
    }
    if (!try_region(l, true, &r))
        return false;
    qn_dim trips = counted_trips(l, &r);
    l->trips = trips ? trips : l->trips;
    if (!trips) {
        loop_as_while(l, &r);
    } else if (import_region(l, false, NULL, &r)) {
        qn_onnx_touched(l->n, r.scope);
        loop_as_scan(l, &r);
    }
    return true;
}

/* Makes what grows by a piece in each trip a stacked output; false where nothing does. */
static bool stack_pieces(loop *l)
{
    qn_arena *arena = l->n->im->arena;
    const int n_carried = l->n_carried, n_results = n_carried + l->n_stacked;
    l->growths = QN_NEW_ARRAY(arena, qn_onnx_growth, n_carried);
    const Onnx__Graph *body = qn_onnx_loop_pieces(l->n, l->body, n_carried, l->growths);
    if (!body)
        return false;
    l->starts = l->carried;
    l->n_starts = n_carried;
    l->body = body;
    l->carried = QN_NEW_ARRAY(arena, qn_onnx_value *, n_carried);
    l->outputs = QN_NEW_ARRAY(arena, int, n_results);
    l->n_carried = l->n_kept = 0;
    for (int i = 0; i < n_results; i++) {
        if (i < n_carried && l->growths[i].name)
            continue;
        if (i < n_carried)
            l->carried[l->n_carried++] = l->starts[i];
        l->outputs[l->n_kept++] = i;
    }
    for (int i = 0, to = l->n_kept; i < n_carried; i++)
        if (l->growths[i].name)
            l->outputs[to++] = i;
    l->n_stacked = n_results - l->n_carried;
    return true;
}

static void import_loop(qn_onnx_node *n)
{
    qn_onnx_import *im = n->im;
    loop l = { .n = n, .body = qn_onnx_attr_graph(n, "body") };
    if (!l.body)
        return;
    l.n_carried = (int)l.body->n_input - 2;
    l.n_stacked = (int)l.body->n_output - 1 - l.n_carried;
    if (l.n_carried < 0 || l.n_stacked < 0 || l.n_carried < n->n_in - 2 ||
        n->n_out > l.n_carried + l.n_stacked) {
        qn_onnx_malformed(n, "the body's inputs and outputs do not fit the node's");
        return;
    }
    bool tensors = true;
    l.carried = QN_NEW_ARRAY(im->arena, qn_onnx_value *, l.n_carried);
    for (int i = 0; i < l.n_carried; i++) {
        l.carried[i] = qn_onnx_in_any(n, i + 2);
        tensors &= l.carried[i]->kind == QN_ONNX_TENSOR;
    }
    qn_dim known;
    bool always = true;
    if (qn_onnx_has(n, 0) && qn_onnx_known_scalar(im, n->in[0], &known)) {
        l.trips = qn_dim_max(im->dims, known, qn_dim_const(im->dims, 0));
        if (l.trips->max > QN_DIM_MAX_VALUE && qn_dim_is_const(l.trips)) /* INT64_MAX: without bound */
            l.trips = NULL;
    }
    if (qn_onnx_has(n, 1)) {
        l.condition = n->in[1];
        always = qn_onnx_known_scalar(im, l.condition, &known) && qn_dim_is_const(known);
        if (always && !known->value)
            l.trips = qn_dim_const(im->dims, 0);
    }
    bool countable = l.trips && qn_dim_is_const(l.trips);
    if (!tensors) {
        if (qn_onnx_loop_repeats(n, l.body, l.trips))
            return;
        if (qn_onnx_has(n, 0) && !l.trips)
            qn_onnx_misses(n, n->in[0]);
        loop_unrolled(&l);
        return;
    }
    if (as_one_region(&l, always))
        return;
    if (countable && l.trips->value < QN_ONNX_MAX_UNROLLED) {
        loop_unrolled(&l);
        return;
    }
    loop stacking = l, *refused = &l;
    if (stack_pieces(&stacking)) {
        if (as_one_region(&stacking, always))
            return;
        refused = &stacking;
    }
    if (qn_onnx_has(n, 0))
        qn_onnx_misses(n, n->in[0]);
    loop_region r;
    import_region(refused, true, NULL, &r); /* for its messages */
}

const qn_onnx_op qn_onnx_loop_ops[] = {
    { "Loop", NULL, 1, 0, import_loop },
    { 0 },
};
