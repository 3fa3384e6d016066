/* Losses over classes: negative log likelihood, cross entropy of softmax. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

typedef struct loss {
    qn_onnx_node *n;
    qn_value *scores, *labels; /* [N, C, d…], i64 [N, d…] */
    qn_value *counted;         /* bool like labels: those that are not ignored; NULL: all */
    qn_value *weights;         /* like labels: of each label's class; NULL: 1 */
} loss;

/* [N, C, d…] -> [N * d…, C] */
static qn_value *classes_last(qn_builder *b, qn_value *x)
{
    qn_dims *t = qn_b_dims(b);
    int64_t perm[QN_MAX_RANK];
    qn_dim dims[2] = { qn_dim_const(t, 1), x->type.dims[1] };
    for (int i = 0; i < x->type.rank; i++) {
        perm[i] = i == x->type.rank - 1 ? 1 : i == 0 ? 0 : i + 1;
        if (i != 1)
            dims[0] = qn_dim_mul(t, dims[0], x->type.dims[i]);
    }
    return qn_b_reshape(b, qn_b_transpose(b, x, perm), 2, dims);
}

static bool read_loss(loss *l)
{
    qn_onnx_node *n = l->n;
    qn_builder *b = &n->b;
    l->scores = qn_onnx_in(n, 0);
    l->labels = qn_onnx_in(n, 1);
    if (!l->scores || !l->labels)
        return false;
    if (l->scores->type.rank < 2 || l->labels->type.rank != l->scores->type.rank - 1 ||
        !qn_dtype_is_int(l->labels->type.dtype)) {
        qn_onnx_malformed(n, "scores [N, C, …] need integer labels [N, …]");
        return false;
    }
    for (int i = 0; i < l->labels->type.rank; i++) {
        l->labels = qn_onnx_with_dim(n, l->labels, i, l->scores->type.dims[i ? i + 1 : 0]);
        if (!l->labels)
            return false;
    }
    l->labels = qn_b_convert(b, QUERN_I64, l->labels);
    if (qn_onnx_attr(n, "ignore_index", ONNX__ATTRIBUTE__KIND__INT)) {
        qn_value *ignored = qn_b_scalar_int(b, QUERN_I64, qn_onnx_attr_int(n, "ignore_index", 0));
        l->counted = compare(b, QN_NE, l->labels, ignored);
        l->labels =
            choose(b, l->counted, l->labels, qn_b_scalar_int(b, QUERN_I64, 0)); /* any class will do */
    }
    if (qn_onnx_has(n, 2))
        l->weights = qn_b_gather(b, qn_onnx_in(n, 2), l->labels, 0);
    if (l->counted) {
        qn_value *one = number_like(b, l->scores, 1), *zero = number_like(b, l->scores, 0);
        l->weights = choose(b, l->counted, l->weights ? l->weights : one, zero);
    }
    return qn_onnx_ok(n);
}

/* `each`: the loss per label, not weighted. */
static void reduce_loss(loss *l, qn_value *each)
{
    qn_onnx_node *n = l->n;
    qn_builder *b = &n->b;
    const char *reduction = qn_onnx_attr_string(n, "reduction", "mean");
    int64_t axes[QN_MAX_RANK];
    if (!each)
        return;
    for (int i = 0; i < each->type.rank; i++)
        axes[i] = i;
    if (l->weights)
        each = l->counted ? choose(b, l->counted, mul(b, each, l->weights), number_like(b, each, 0))
                          : mul(b, each, l->weights);
    if (!strcmp(reduction, "none"))
        qn_onnx_out(n, 0, each);
    else if (!strcmp(reduction, "sum"))
        qn_onnx_out(n, 0, qn_b_reduce(b, QN_SUM, each, l->labels->type.rank, axes, false));
    else if (strcmp(reduction, "mean"))
        qn_onnx_malformed(n, "attribute reduction must be none, sum or mean");
    else if (l->weights)
        qn_onnx_out(n, 0,
                    divide(b, qn_b_reduce(b, QN_SUM, each, l->labels->type.rank, axes, false),
                           qn_b_reduce(b, QN_SUM, l->weights, l->labels->type.rank, axes, false)));
    else
        qn_onnx_out(n, 0, qn_b_mean(b, each, l->labels->type.rank, axes, false));
}

/* Minus the log probability of each label. */
static qn_value *pick_labels(loss *l, qn_value *log_probabilities)
{
    qn_builder *b = &l->n->b;
    qn_value *picked = qn_b_gather_elements(b, log_probabilities, qn_b_expand_dims(b, l->labels, 1), 1);
    return negate(b, qn_b_squeeze(b, picked, 1));
}

static void import_likelihood(qn_onnx_node *n)
{
    loss l = { .n = n };
    if (read_loss(&l))
        reduce_loss(&l, pick_labels(&l, l.scores));
}

/* f32 scores go through the composite, whose gradient is known. */
static void import_cross_entropy(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    loss l = { .n = n };
    if (!read_loss(&l))
        return;
    qn_value *log_probabilities = NULL, *each;
    if (l.scores->type.dtype != QUERN_F32 || qn_onnx_wants(n, 1))
        log_probabilities = qn_b_softmax(b, QN_OP_LOG_SOFTMAX, l.scores, 1);
    if (l.scores->type.dtype == QUERN_F32) {
        qn_dim count = qn_type_elements_dim(n->im->dims, &l.labels->type);
        each = qn_b_cross_entropy(b, classes_last(b, l.scores), qn_b_reshape(b, l.labels, 1, &count));
        each = qn_b_reshape(b, each, l.labels->type.rank, l.labels->type.dims);
    } else {
        each = pick_labels(&l, log_probabilities);
    }
    reduce_loss(&l, each);
    qn_onnx_out(n, 1, log_probabilities);
}

const qn_onnx_op qn_onnx_loss_ops[] = {
    { "NegativeLogLikelihoodLoss", NULL, 12, 0, import_likelihood },
    { "SoftmaxCrossEntropyLoss", NULL, 12, 0, import_cross_entropy },
    { 0 },
};
