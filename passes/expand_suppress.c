/* suppress by other ops, where it has no kernel of its own. */
#include "passes/expand_suppress.h"

/* Of each line of [M, N], the problems, or of one number a line. */
enum { SCORE_COUNTS, NUMBER, BOX, N_PARTS = BOX + 5 };

static qn_value *make(qn_builder *b, qn_op op, qn_value *x, qn_value *y)
{
    return qn_b_binary_bcast(b, op, x, y);
}

static qn_value *column(qn_builder *b, qn_value *x)
{
    return x ? qn_b_expand_dims(b, x, 1) : NULL;
}

/* One box a problem [M] against all [M, N]: where they overlap too much. */
static qn_value *overlapping(qn_builder *b, qn_value *const *one, qn_value *const *all, qn_value *overlap)
{
    qn_value *side[2];
    for (int i = 0; i < 2; i++) {
        qn_value *low = make(b, QN_OP_MAX, column(b, one[i]), all[i]);
        qn_value *high = make(b, QN_OP_MIN, column(b, one[i + 2]), all[i + 2]);
        qn_value *length = make(b, QN_OP_SUB, high, low);
        side[i] = length ? make(b, QN_OP_MAX, length, qn_b_scalar(b, length->type.dtype, 0)) : NULL;
    }
    qn_value *common = make(b, QN_OP_MUL, side[0], side[1]);
    qn_value *joint = make(b, QN_OP_SUB, make(b, QN_OP_ADD, column(b, one[4]), all[4]), common);
    return qn_b_compare_bcast(b, QN_GT, common, make(b, QN_OP_MUL, joint, overlap));
}

/* The largest of x, which is false or 0 where there is nothing. */
static qn_value *largest(qn_builder *b, qn_value *x)
{
    return x ? qn_b_reduce(b, QN_KIND_MAX, x, x->type.rank, (int64_t[]){ 0, 1 }, false) : NULL;
}

/* [M, N] of each problem, in the order of its scores: does the score count, the box's number, its corners and area. */
static void parts_in_order(qn_builder *b, const qn_node *node, qn_dim problems, qn_value **out)
{
    qn_dims *t = qn_b_dims(b);
    qn_value *scores = node->operands[0], *boxes = node->operands[1];
    const qn_dim *dims = scores->type.dims, flat[2] = { problems, dims[2] };
    const qn_node *order = qn_b_top_k(b, scores, 2, dims[2], true);
    if (!order)
        return;
    qn_value *sorted = &order->results[0], *x[4], *corner[5];
    qn_value *counts = node->n_operands > 4 ? qn_b_compare_bcast(b, QN_GT, sorted, node->operands[4])
                                            : qn_b_compare(b, QN_EQ, sorted, sorted); /* all but NaN */
    out[SCORE_COUNTS] = qn_b_reshape(b, counts, 2, flat);
    out[NUMBER] = qn_b_reshape(b, &order->results[1], 2, flat);
    if (boxes->type.dtype != QUERN_F64)
        boxes = qn_b_convert(b, QUERN_F32, boxes);
    for (int i = 0; i < 4; i++)
        x[i] = qn_b_squeeze(b, qn_b_slice_axis(b, boxes, 2, qn_dim_const(t, i), qn_dim_const(t, i + 1)), 2);
    const bool centre = qn_attr_bool(node, QN_ATTR_CENTRE);
    for (int i = 0; i < 2; i++) {
        qn_value *to = centre && x[i + 2] ? qn_b_binary_scalar(b, QN_OP_MUL, x[i + 2], 0.5) : x[i + 2];
        corner[i] = make(b, centre ? QN_OP_SUB : QN_OP_MIN, x[i], to);
        corner[i + 2] = make(b, centre ? QN_OP_ADD : QN_OP_MAX, x[i], to);
    }
    corner[4] = make(b, QN_OP_MUL, make(b, QN_OP_SUB, corner[2], corner[0]),
                     make(b, QN_OP_SUB, corner[3], corner[1]));
    for (int i = 0; i < 5; i++) {
        qn_value *spread = qn_b_broadcast(b, corner[i], 3, dims, (int64_t[]){ 0, 2 });
        out[BOX + i] = qn_b_gather_elements(b, qn_b_reshape(b, spread, 2, flat), out[NUMBER], 1);
    }
}

/* A loop over the boxes of all problems at once, until none is left whose score counts, or each has as many as it may keep.
 * Carried: kept [M, N], how many [M], their numbers [M, k], the step. Captured: the parts by step, all boxes, overlap, limit,
 * the last step. */
qn_value *qn_expand_suppress(qn_builder *b, const qn_node *node)
{
    enum { KEPT, COUNT, NUMBERS, STEP, PARTS, ALL = PARTS + N_PARTS, OVERLAP = ALL + 5, LIMIT, LAST, N };
    qn_module *module = b->graph->module;
    qn_dims *t = module->dims;
    const qn_dim *dims = node->operands[0]->type.dims, k = node->results[0].type.dims[2];
    const qn_dim problems = qn_dim_mul(t, dims[0], dims[1]), flat[2] = { problems, dims[2] };
    const qn_type kept_type = qn_type_make(module, QUERN_BOOL, 2, flat),
                  step_type = qn_type_make(module, QUERN_I64, 2, flat),
                  count_type = qn_type_make(module, QUERN_I64, 1, &problems),
                  numbers_type = qn_type_make(module, QUERN_I64, 2, (qn_dim[]){ problems, k });
    qn_value *parts[N_PARTS] = { NULL }, *operands[N], *in[N], *now[N];
    parts_in_order(b, node, problems, parts);
    operands[KEPT] = qn_b_full(b, &kept_type, 0);
    operands[COUNT] = qn_b_full(b, &count_type, 0);
    operands[NUMBERS] = qn_b_full(b, &numbers_type, -1);
    operands[STEP] = qn_b_scalar_int(b, QUERN_I64, 0);
    for (int i = 0; i < N_PARTS; i++)
        operands[PARTS + i] = qn_b_transpose(b, parts[i], (int64_t[]){ 1, 0 });
    for (int i = 0; i < 5; i++)
        operands[ALL + i] = parts[BOX + i];
    qn_value *overlap = node->operands[3], *zero = qn_b_scalar_int(b, QUERN_I64, 0);
    operands[OVERLAP] =
        overlap->type.dtype == QUERN_F64 ? overlap : qn_b_convert(b, QUERN_F32, node->operands[3]);
    operands[LIMIT] = make(b, QN_OP_MIN, node->operands[2], qn_b_dim_value(b, QUERN_I64, k));
    qn_value *behind = make(b, QN_OP_ADD, qn_b_iota(b, &step_type, 1), qn_b_scalar_int(b, QUERN_I64, 1));
    operands[LAST] = largest(b, qn_b_select_bcast(b, parts[SCORE_COUNTS], behind, zero));
    qn_graph *const condition = qn_region_new(module), *const body = qn_region_new(module);
    for (int i = 0; i < N; i++) {
        if (!operands[i])
            return NULL;
        in[i] = qn_graph_add_input(body, NULL, operands[i]->type, QN_ROLE_INPUT);
        now[i] = qn_graph_add_input(condition, NULL, operands[i]->type, QN_ROLE_INPUT);
    }

    qn_builder c = { .graph = condition, .loc = b->loc, .diags = b->diags };
    qn_value *open = largest(&c, qn_b_compare_bcast(&c, QN_LT, now[COUNT], now[LIMIT]));
    open = make(&c, QN_OP_AND, open, qn_b_compare(&c, QN_LT, now[STEP], now[LAST]));
    qn_graph_add_output(condition, open, NULL, -1);

    qn_builder d = { .graph = body, .loc = b->loc, .diags = b->diags };
    qn_value *start[2] = { in[STEP], qn_b_scalar_int(&d, QUERN_I64, 0) };
    for (int i = PARTS; i < ALL; i++)
        in[i] = qn_b_squeeze(
            &d, qn_b_dynamic_slice(&d, in[i], start, (qn_dim[]){ qn_dim_const(t, 1), problems }), 0);
    qn_value *hit = make(&d, QN_OP_AND, in[KEPT], overlapping(&d, in + PARTS + BOX, in + ALL, in[OVERLAP]));
    qn_value *suppressed = hit ? qn_b_reduce(&d, QN_KIND_MAX, hit, 1, (int64_t[]){ 1 }, false) : NULL;
    qn_value *room = qn_b_compare_bcast(&d, QN_LT, in[COUNT], in[LIMIT]);
    qn_value *keep = make(&d, QN_OP_AND, make(&d, QN_OP_AND, in[PARTS + SCORE_COUNTS], room),
                          suppressed ? qn_b_unary(&d, QN_OP_NOT, suppressed) : NULL);
    qn_value *here = qn_b_compare_bcast(&d, QN_EQ, qn_b_iota(&d, &step_type, 1), in[STEP]);
    qn_value *next = qn_b_compare_bcast(&d, QN_EQ, qn_b_iota(&d, &numbers_type, 1), column(&d, in[COUNT]));
    qn_value *kept = make(&d, QN_OP_OR, in[KEPT], make(&d, QN_OP_AND, column(&d, keep), here));
    qn_value *numbers = qn_b_select_bcast(&d, make(&d, QN_OP_AND, column(&d, keep), next),
                                          column(&d, in[PARTS + NUMBER]), in[NUMBERS]);
    if (!open || !kept || !numbers)
        return NULL;
    qn_graph_add_output(body, kept, NULL, -1);
    qn_graph_add_output(body, make(&d, QN_OP_ADD, in[COUNT], qn_b_convert(&d, QUERN_I64, keep)), NULL, -1);
    qn_graph_add_output(body, numbers, NULL, -1);
    qn_graph_add_output(body, make(&d, QN_OP_ADD, in[STEP], qn_b_scalar_int(&d, QUERN_I64, 1)), NULL, -1);
    const qn_node *loop = qn_b_while(b, PARTS, N - PARTS, operands, dims[2], condition, body);
    return loop ? qn_b_reshape(b, &loop->results[NUMBERS], 3, node->results[0].type.dims) : NULL;
}
