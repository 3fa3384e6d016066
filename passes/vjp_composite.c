/* Derivatives of composites that have a better one than their expansion: fewer operations, or stable. The others are
 * expanded before the walk. */
#include <math.h>

#include "passes/vjp.h"

#define MUL(x, y) qn_vjp_mul(v, x, y)
#define ADD(x, y) qn_b_binary(&v->b, QN_OP_ADD, x, y)
#define SUB(x, y) qn_vjp_sub(v, x, y)

static qn_value *sum_over(qn_vjp *v, qn_value *x, int64_t axis)
{
    return qn_vjp_unreduce(v, qn_b_reduce(&v->b, QN_SUM, x, 1, &axis, false), x, 1, &axis);
}

/* y (g - sum(g y)) */
static qn_status softmax(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *y = &node->results[0];
    qn_vjp_add(v, node, 0, MUL(y, SUB(g[0], sum_over(v, MUL(g[0], y), qn_attr_int(node, QN_ATTR_AXIS)))));
    return QUERN_OK;
}

/* g - exp(y) sum(g) */
static qn_status log_softmax(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *p = qn_b_unary(&v->b, QN_OP_EXP, &node->results[0]);
    qn_vjp_add(v, node, 0, SUB(g[0], MUL(p, sum_over(v, g[0], qn_attr_int(node, QN_ATTR_AXIS)))));
    return QUERN_OK;
}

/* Those that count from the end as they count from the beginning. */
static qn_value *counted_from_0(qn_builder *b, qn_value *labels, qn_dim classes)
{
    qn_value *n = qn_b_dim_value(b, labels->type.dtype, classes);
    qn_value *other = qn_b_binary(b, QN_OP_ADD, labels, qn_b_broadcast_to(b, n, 1, labels->type.dims));
    qn_value *negative = qn_b_compare(b, QN_LT, labels, qn_b_full(b, &labels->type, 0));
    return qn_b_select(b, negative, other, labels);
}

/* (softmax(logits) - one hot) g */
static qn_status cross_entropy(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *logits = node->operands[0];
    qn_value *labels = counted_from_0(&v->b, node->operands[1], logits->type.dims[1]);
    const int64_t rows = 0;
    qn_type index = logits->type;
    index.dtype = labels->type.dtype;
    qn_value *label = qn_b_broadcast(&v->b, labels, 2, logits->type.dims, &rows);
    qn_value *hot = qn_b_convert(&v->b, logits->type.dtype,
                                 qn_b_compare(&v->b, QN_EQ, qn_b_iota(&v->b, &index, 1), label));
    qn_value *p = qn_b_softmax(&v->b, QN_OP_SOFTMAX, logits, 1);
    qn_value *scale =
        qn_b_broadcast(&v->b, qn_b_convert(&v->b, logits->type.dtype, g[0]), 2, logits->type.dims, &rows);
    qn_vjp_add(v, node, 0, MUL(SUB(p, hot), scale));
    return QUERN_OK;
}

static qn_status relu(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *zeros = qn_vjp_zeros_like(v, g[0]);
    qn_value *positive = qn_b_compare(&v->b, QN_GT, node->operands[0], zeros);
    qn_vjp_add(v, node, 0, qn_b_select(&v->b, positive, g[0], zeros));
    return QUERN_OK;
}

/* s + x s (1 - s) */
static qn_status silu(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *x = node->operands[0], *s = qn_b_unary(&v->b, QN_OP_LOGISTIC, x);
    qn_value *one_minus = qn_b_binary_scalar(&v->b, QN_OP_ADD, qn_vjp_neg(v, s), 1);
    qn_vjp_add(v, node, 0, MUL(g[0], MUL(s, qn_b_binary_scalar(&v->b, QN_OP_ADD, MUL(x, one_minus), 1))));
    return QUERN_OK;
}

/* exact: P + x p with the normal distribution's P and density p; tanh form: the derivative of that form */
static qn_status gelu(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *x = node->operands[0], *x2 = MUL(x, x), *slope;
    if (node->op == QN_OP_GELU_TANH) {
        const double c = sqrt(2 / M_PI), a = 0.044715;
        qn_value *inner =
            MUL(x, qn_b_binary_scalar(&v->b, QN_OP_ADD, qn_b_binary_scalar(&v->b, QN_OP_MUL, x2, c * a), c));
        qn_value *t = qn_b_unary(&v->b, QN_OP_TANH, inner);
        qn_value *du =
            qn_b_binary_scalar(&v->b, QN_OP_ADD, qn_b_binary_scalar(&v->b, QN_OP_MUL, x2, 3 * c * a), c);
        qn_value *dt = MUL(qn_b_binary_scalar(&v->b, QN_OP_ADD, qn_vjp_neg(v, MUL(t, t)), 1), du);
        slope = ADD(qn_b_binary_scalar(&v->b, QN_OP_ADD, t, 1), MUL(x, dt));
        slope = qn_b_binary_scalar(&v->b, QN_OP_MUL, slope, 0.5);
    } else {
        qn_value *e = qn_b_unary(&v->b, QN_OP_ERF, qn_b_binary_scalar(&v->b, QN_OP_MUL, x, sqrt(0.5)));
        qn_value *p = qn_b_binary_scalar(&v->b, QN_OP_MUL, qn_b_binary_scalar(&v->b, QN_OP_ADD, e, 1), 0.5);
        qn_value *density = qn_b_unary(&v->b, QN_OP_EXP, qn_b_binary_scalar(&v->b, QN_OP_MUL, x2, -0.5));
        density = qn_b_binary_scalar(&v->b, QN_OP_MUL, density, 1 / sqrt(2 * M_PI));
        slope = ADD(p, MUL(x, density));
    }
    qn_vjp_add(v, node, 0, MUL(g[0], slope));
    return QUERN_OK;
}

/* What is normalized over some axes: n = (x - mean) r, where the mean is 0 unless it is centred. */
typedef struct normalized {
    bool centred;
    int n_axes;
    const int64_t *axes;
    qn_value *n, *r;
} normalized;

static void normalize(qn_vjp *v, qn_value *x, double epsilon, normalized *of)
{
    const int n = of->n_axes;
    qn_value *mean = of->centred ? qn_b_mean(&v->b, x, n, of->axes, false) : NULL;
    qn_value *d = of->centred ? SUB(x, qn_vjp_unreduce(v, mean, x, n, of->axes)) : x;
    qn_value *variance = qn_b_mean(&v->b, MUL(d, d), n, of->axes, false);
    variance = qn_b_binary_scalar(&v->b, QN_OP_ADD, variance, epsilon);
    of->r = qn_vjp_unreduce(v, qn_b_unary(&v->b, QN_OP_RSQRT, variance), x, n, of->axes);
    of->n = MUL(d, of->r);
}

/* For the gradient s of n that of x: r (s - mean(s) - n mean(s n)) */
static qn_value *through_normalized(qn_vjp *v, const normalized *of, qn_value *s)
{
    const int n = of->n_axes;
    qn_value *along = qn_b_mean(&v->b, MUL(s, of->n), n, of->axes, false);
    qn_value *gx = SUB(s, MUL(of->n, qn_vjp_unreduce(v, along, of->n, n, of->axes)));
    if (of->centred)
        gx = SUB(gx, qn_vjp_unreduce(v, qn_b_mean(&v->b, s, n, of->axes, false), of->n, n, of->axes));
    return MUL(gx, of->r);
}

/* Of scale and bias, operands 1 and 2, each for the indices of one place in `axes`: sum(g n), sum(g) over these. */
static void add_affine(qn_vjp *v, qn_node *node, qn_value *gy, qn_value *n, int n_axes, const int64_t *axes)
{
    for (int i = 1; i < node->n_operands; i++)
        if (qn_vjp_wants(v, node, i))
            qn_vjp_add(
                v, node, i,
                qn_b_convert(&v->b, node->operands[i]->type.dtype,
                             qn_b_reduce(&v->b, QN_SUM, i == 1 ? MUL(gy, n) : gy, n_axes, axes, false)));
}

/* Layer and RMS norm in one rule, with s = g scale; f16 and bf16 compute in f32. */
static qn_status norm(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_value *x = node->operands[0];
    qn_dtype stored = x->type.dtype, dtype = stored == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    int axis = (int)qn_attr_int(node, QN_ATTR_AXIS), rank = x->type.rank;
    int64_t inner[QN_MAX_RANK], outer[QN_MAX_RANK];
    for (int i = 0; i < rank; i++)
        *(i < axis ? &outer[i] : &inner[i - axis]) = i;
    normalized of = { .centred = node->op == QN_OP_LAYER_NORM, .n_axes = rank - axis, .axes = inner };
    x = qn_b_convert(&v->b, dtype, x);
    qn_value *gy = qn_b_convert(&v->b, dtype, g[0]), *scale = qn_b_convert(&v->b, dtype, node->operands[1]);
    normalize(v, x, qn_attr_float(node, QN_ATTR_EPSILON), &of);
    if (qn_vjp_wants(v, node, 0)) {
        qn_value *s = MUL(gy, qn_b_broadcast(&v->b, scale, rank, x ? x->type.dims : NULL, inner));
        qn_vjp_add(v, node, 0, qn_b_convert(&v->b, stored, through_normalized(v, &of, s)));
    }
    add_affine(v, node, gy, of.n, axis, outer);
    return QUERN_OK;
}

/* The same over rows of a group each, while scale and bias are of channels. */
static qn_status group_norm(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_builder *b = &v->b;
    const int64_t last = 2, channel = 1, groups = qn_attr_int(node, QN_ATTR_GROUPS);
    const qn_type type = node->operands[0]->type;
    const qn_dtype dtype = type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    normalized of = { .centred = true, .n_axes = 1, .axes = &last };
    qn_value *gy = qn_b_convert(b, dtype, g[0]), *scale = qn_b_convert(b, dtype, node->operands[1]);
    normalize(v, qn_b_groups(b, qn_b_convert(b, dtype, node->operands[0]), groups),
              qn_attr_float(node, QN_ATTR_EPSILON), &of);
    if (qn_vjp_wants(v, node, 0)) {
        qn_value *s = MUL(gy, qn_b_broadcast(b, scale, type.rank, type.dims, &channel));
        qn_value *gx = through_normalized(v, &of, qn_b_groups(b, s, groups));
        qn_vjp_add(v, node, 0, qn_b_convert(b, type.dtype, qn_b_reshape(b, gx, type.rank, type.dims)));
    }
    int64_t axes[QN_MAX_RANK] = { 0 };
    for (int i = 2; i < type.rank; i++)
        axes[i - 1] = i;
    add_affine(v, node, gy, qn_b_reshape(b, of.n, type.rank, type.dims), type.rank - 1, axes);
    return QUERN_OK;
}

/* In inference gx = g scale r. In training also the statistics depend on x:
 * gx = scale r (g - mean(g) - n mean(g n)) with n = (x - mean) r; what the running statistics are read by adds to it. */
static qn_status batch_norm(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const bool training = qn_attr_bool(node, QN_ATTR_TRAINING);
    qn_value *x = node->operands[0];
    qn_dtype stored = x->type.dtype;
    qn_dtype dtype =
        stored == QUERN_F64 || node->operands[3]->type.dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32;
    int64_t axes[QN_MAX_RANK];
    const int64_t channel = 1;
    int n = 0, rank = x->type.rank;
    for (int i = 0; i < rank; i++)
        if (i != 1)
            axes[n++] = i;
    x = qn_b_convert(&v->b, dtype, x);
    qn_value *scale = qn_b_convert(&v->b, dtype, node->operands[1]);
    qn_value *mean =
        training ? qn_b_mean(&v->b, x, n, axes, false) : qn_b_convert(&v->b, dtype, node->operands[3]);
    qn_value *d = x ? SUB(x, qn_b_broadcast(&v->b, mean, rank, x->type.dims, &channel)) : NULL;
    qn_value *variance = training ? qn_b_mean(&v->b, MUL(d, d), n, axes, false)
                                  : qn_b_convert(&v->b, dtype, node->operands[4]);
    if (!variance)
        return QUERN_ERROR_INTERNAL;
    const qn_dim *dims = x->type.dims;
    qn_value *r =
        qn_b_unary(&v->b, QN_OP_RSQRT,
                   qn_b_binary_scalar(&v->b, QN_OP_ADD, variance, qn_attr_float(node, QN_ATTR_EPSILON)));
    qn_value *gx = NULL;
    if (g[0]) {
        qn_value *gy = qn_b_convert(&v->b, dtype, g[0]);
        /* sums over the elements of each channel: of g, and of g n */
        qn_value *sum = qn_b_reduce(&v->b, QN_SUM, gy, n, axes, false);
        qn_value *along = MUL(qn_b_reduce(&v->b, QN_SUM, MUL(gy, d), n, axes, false), r);
        gx = gy;
        if (training) {
            qn_dims *table = qn_b_dims(&v->b);
            qn_dim count = qn_dim_const(table, 1);
            for (int i = 0; i < n; i++)
                count = qn_dim_mul(table, count, dims[axes[i]]);
            qn_value *elements = qn_b_convert(&v->b, dtype, qn_b_dim_value(&v->b, QUERN_I64, count));
            elements = qn_b_broadcast_to(&v->b, elements, 1, dims + 1);
            qn_value *slope = qn_vjp_div(v, MUL(along, r), elements);
            gx = SUB(SUB(gy, qn_b_broadcast(&v->b, qn_vjp_div(v, sum, elements), rank, dims, &channel)),
                     MUL(d, qn_b_broadcast(&v->b, slope, rank, dims, &channel)));
        }
        gx = MUL(gx, qn_b_broadcast(&v->b, MUL(scale, r), rank, dims, &channel));
        qn_vjp_add(v, node, 1, qn_b_convert(&v->b, node->operands[1]->type.dtype, along));
        qn_vjp_add(v, node, 2, qn_b_convert(&v->b, node->operands[2]->type.dtype, sum));
        if (!training) {
            qn_value *gmean = MUL(qn_vjp_neg(v, MUL(scale, r)), sum);
            qn_value *gvariance =
                qn_b_binary_scalar(&v->b, QN_OP_MUL, MUL(MUL(scale, MUL(r, r)), along), -0.5);
            qn_vjp_add(v, node, 3, qn_b_convert(&v->b, node->operands[3]->type.dtype, gmean));
            qn_vjp_add(v, node, 4, qn_b_convert(&v->b, node->operands[4]->type.dtype, gvariance));
        }
    }
    const double momentum = training ? qn_attr_float(node, QN_ATTR_MOMENTUM) : 1;
    for (int i = 1; i <= 2; i++) { /* the running mean, the running variance */
        if (!g[i])
            continue;
        qn_value *running = qn_b_convert(&v->b, dtype, g[i]);
        qn_vjp_add(v, node, 2 + i, qn_b_binary_scalar(&v->b, QN_OP_MUL, g[i], momentum));
        if (!training)
            continue;
        /* of a mean of x, or of d d: spread over what it was taken of */
        qn_value *share = qn_vjp_unreduce(v, running, x, n, axes);
        qn_value *count = qn_b_reduce(&v->b, QN_SUM, qn_b_full(&v->b, &x->type, 1), n, axes, false);
        share = qn_vjp_div(v, share, qn_vjp_unreduce(v, count, x, n, axes));
        share = i == 1 ? share : qn_b_binary_scalar(&v->b, QN_OP_MUL, MUL(share, d), 2);
        share = qn_b_binary_scalar(&v->b, QN_OP_MUL, share, 1 - momentum);
        gx = gx ? ADD(gx, share) : share;
    }
    qn_vjp_add(v, node, 0, gx ? qn_b_convert(&v->b, stored, gx) : NULL);
    return QUERN_OK;
}

/* One composite for all three: its kernel computes the scores again. */
static qn_status attention(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    qn_node *grad =
        qn_b_attention_grad(&v->b, node->operands, g[0], node->n_operands > 3 ? node->operands[3] : NULL,
                            qn_attr_float(node, QN_ATTR_SCALE), qn_attr_bool(node, QN_ATTR_CAUSAL));
    for (int i = 0; grad && i < 3; i++)
        qn_vjp_add(v, node, i, &grad->results[i]);
    return QUERN_OK;
}

/* What was kept passes, divided as x was. */
static qn_status dropout(qn_vjp *v, qn_node *node, qn_value *const *g)
{
    const double ratio = qn_attr_float(node, QN_ATTR_RATIO);
    qn_value *gx = g[0];
    if (qn_attr_bool(node, QN_ATTR_TRAINING)) {
        gx = qn_b_binary_scalar(&v->b, QN_OP_MUL, gx, ratio < 1 ? 1 / (1 - ratio) : 0);
        gx = qn_b_select(&v->b, &node->results[1], gx, qn_vjp_zeros_like(v, g[0]));
    }
    qn_vjp_add(v, node, 0, gx);
    return QUERN_OK;
}

qn_vjp_rule qn_vjp_composite(qn_op op)
{
    switch (op) {
    case QN_OP_SOFTMAX: return softmax;
    case QN_OP_LOG_SOFTMAX: return log_softmax;
    case QN_OP_CROSS_ENTROPY: return cross_entropy;
    case QN_OP_RELU: return relu;
    case QN_OP_SILU: return silu;
    case QN_OP_GELU:
    case QN_OP_GELU_TANH: return gelu;
    case QN_OP_LAYER_NORM:
    case QN_OP_RMS_NORM: return norm;
    case QN_OP_GROUP_NORM: return group_norm;
    case QN_OP_BATCH_NORM: return batch_norm;
    case QN_OP_DROPOUT: return dropout;
    case QN_OP_ATTENTION: return attention;
    default: return NULL;
    }
}
