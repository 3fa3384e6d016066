/* Type rules of if, while, scan and call: regions and functions take and give what the operands and results say. */
#include "ir/infer_rules.h"

static const char *where(int region)
{
    return region == 0 ? "first region" : "second region";
}

static qn_status expect_regions(qn_infer_context *c, int n)
{
    if (c->node->n_regions == n)
        return QUERN_OK;
    return qn_infer_fail(c, "%d regions; expected %d", c->node->n_regions, n);
}

/* Region r takes operands [first, n_operands), those in [slice_from, slice_to) without their first axis. */
static qn_status expect_inputs(qn_infer_context *c, int r, int first, int slice_from, int slice_to)
{
    const qn_graph *region = c->node->regions[r];
    int n = c->node->n_operands - first;
    if (region->n_inputs != n)
        return qn_infer_fail(c, "the %s takes %d values; expected %d", where(r), region->n_inputs, n);
    for (int i = 0; i < n; i++) {
        qn_type given = *qn_infer_operand(c, first + i);
        if (first + i >= slice_from && first + i < slice_to) {
            given.rank--;
            given.dims++;
        }
        if (!qn_type_equal(&given, &region->inputs[i]->type))
            return qn_infer_fail(c, "the %s takes %s as value %d; it is given %s", where(r),
                                 qn_infer_print(c, &region->inputs[i]->type), i, qn_infer_print(c, &given));
    }
    return QUERN_OK;
}

static qn_status expect_outputs(qn_infer_context *c, int r, int n)
{
    if (c->node->regions[r]->n_outputs == n)
        return QUERN_OK;
    return qn_infer_fail(c, "the %s gives %d values; expected %d", where(r), c->node->regions[r]->n_outputs,
                         n);
}

static qn_status expect_carried(qn_infer_context *c, int r, int n)
{
    const qn_graph *region = c->node->regions[r];
    for (int i = 0; i < n; i++) {
        if (!qn_type_equal(&region->outputs[i]->type, qn_infer_operand(c, i)))
            return qn_infer_fail(c, "carried value %d starts as %s and continues as %s", i,
                                 qn_infer_print(c, qn_infer_operand(c, i)),
                                 qn_infer_print(c, &region->outputs[i]->type));
    }
    return QUERN_OK;
}

static qn_status give_type(qn_infer_context *c, const qn_type *t)
{
    return qn_infer_give(c, t->dtype, t->rank, t->dims);
}

static qn_status expect_count(qn_infer_context *c, qn_attr_key key, int64_t n, int64_t most)
{
    if (n >= 0 && n <= most)
        return QUERN_OK;
    return qn_infer_fail(c, "%s is %lld; expected 0 to %lld", qn_attrs[key].name, (long long)n,
                         (long long)most);
}

static qn_status if_(qn_infer_context *c)
{
    QN_TRY(qn_infer_expect_rank(c, 0, 0));
    QN_TRY(expect_regions(c, 2));
    const qn_graph *then_body = c->node->regions[0], *else_body = c->node->regions[1];
    for (int r = 0; r < 2; r++)
        QN_TRY(expect_inputs(c, r, 1, 0, 0));
    QN_TRY(expect_outputs(c, 1, then_body->n_outputs));
    for (int i = 0; i < then_body->n_outputs; i++) {
        const qn_type *a = &then_body->outputs[i]->type, *b = &else_body->outputs[i]->type;
        if (!qn_type_equal(a, b))
            return qn_infer_fail(c, "result %d is %s in one branch and %s in the other", i,
                                 qn_infer_print(c, a), qn_infer_print(c, b));
        QN_TRY(give_type(c, a));
    }
    return QUERN_OK;
}

static qn_status while_(qn_infer_context *c)
{
    int64_t n = qn_attr_int(c->node, QN_ATTR_N_CARRIED);
    QN_TRY(expect_count(c, QN_ATTR_N_CARRIED, n, c->node->n_operands));
    QN_TRY(expect_regions(c, 2));
    for (int r = 0; r < 2; r++)
        QN_TRY(expect_inputs(c, r, 0, 0, 0));
    QN_TRY(expect_outputs(c, 0, 1));
    const qn_type *condition = &c->node->regions[0]->outputs[0]->type;
    if (condition->dtype != QUERN_BOOL || condition->rank != 0)
        return qn_infer_fail(c, "the condition is %s; expected bool[]", qn_infer_print(c, condition));
    QN_TRY(expect_outputs(c, 1, (int)n));
    QN_TRY(expect_carried(c, 1, (int)n));
    for (int i = 0; i < n; i++)
        QN_TRY(give_type(c, qn_infer_operand(c, i)));
    return QUERN_OK;
}

static qn_status scan(qn_infer_context *c)
{
    const qn_node *node = c->node;
    int64_t n_carried = qn_attr_int(node, QN_ATTR_N_CARRIED),
            n_scanned = qn_attr_int(node, QN_ATTR_N_SCANNED);
    const qn_dim *length;
    QN_TRY(expect_count(c, QN_ATTR_N_CARRIED, n_carried, node->n_operands));
    QN_TRY(expect_count(c, QN_ATTR_N_SCANNED, n_scanned, node->n_operands - n_carried));
    QN_TRY(qn_infer_dims(c, QN_ATTR_LENGTH, 1, &length));
    QN_TRY(expect_regions(c, 1));
    for (int i = (int)n_carried; i < n_carried + n_scanned; i++) {
        const qn_type *t = qn_infer_operand(c, i);
        if (t->rank < 1 || t->dims[0] != length[0])
            return qn_infer_fail(c, "operand %d is %s; expected %s slices along axis 0", i,
                                 qn_infer_print(c, t), qn_dim_print(length[0], c->module->arena));
    }
    QN_TRY(expect_inputs(c, 0, 0, (int)n_carried, (int)(n_carried + n_scanned)));
    const qn_graph *body = node->regions[0];
    if (body->n_outputs < n_carried)
        return qn_infer_fail(c, "the body gives %d values; %lld are carried", body->n_outputs,
                             (long long)n_carried);
    QN_TRY(expect_carried(c, 0, (int)n_carried));
    for (int i = 0; i < body->n_outputs; i++) {
        const qn_type *t = &body->outputs[i]->type;
        if (i < n_carried) {
            QN_TRY(give_type(c, t));
            continue;
        }
        qn_dim dims[QN_MAX_RANK + 1] = { length[0] };
        for (int axis = 0; axis < t->rank; axis++)
            dims[axis + 1] = t->dims[axis];
        QN_TRY(qn_infer_give(c, t->dtype, t->rank + 1, dims));
    }
    return QUERN_OK;
}

static qn_status call(qn_infer_context *c)
{
    const char *name = qn_attr_string(c->node, QN_ATTR_FUNCTION);
    const qn_graph *callee = qn_module_find(c->module, name);
    if (!callee)
        return qn_infer_fail(c, "there is no function @%s before this one", name);
    if (callee->n_inputs != c->node->n_operands)
        return qn_infer_fail(c, "%d arguments; @%s takes %d", c->node->n_operands, name, callee->n_inputs);
    for (int i = 0; i < callee->n_inputs; i++) {
        if (!qn_type_equal(&callee->inputs[i]->type, qn_infer_operand(c, i)))
            return qn_infer_fail(c, "argument %d is %s; @%s takes %s", i,
                                 qn_infer_print(c, qn_infer_operand(c, i)), name,
                                 qn_infer_print(c, &callee->inputs[i]->type));
    }
    for (int i = 0; i < callee->n_outputs; i++)
        QN_TRY(give_type(c, &callee->outputs[i]->type));
    return QUERN_OK;
}

qn_infer_rule qn_infer_control(qn_op op)
{
    switch (op) {
    case QN_OP_IF: return if_;
    case QN_OP_WHILE: return while_;
    case QN_OP_SCAN: return scan;
    case QN_OP_CALL: return call;
    default: return NULL;
    }
}
