/* Reductions, arg-reductions, cumulative sums, the largest k. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

static const struct {
    const char *name;
    qn_kind kind;
} reductions[] = {
    { "ReduceSum", QN_SUM },       { "ReduceMean", QN_SUM },   { "ReduceMax", QN_KIND_MAX },
    { "ReduceMin", QN_KIND_MIN },  { "ReduceProd", QN_PROD },  { "ReduceL1", QN_SUM },
    { "ReduceL2", QN_SUM },        { "ReduceLogSum", QN_SUM }, { "ReduceLogSumExp", QN_SUM },
    { "ReduceSumSquare", QN_SUM },
};

static bool is_named(const qn_onnx_node *n, const char *name)
{
    return !strcmp(n->proto->op_type, name);
}

/* log(sum(exp(x))), with the largest element taken out of the exponents. */
static qn_value *log_sum_exp(qn_builder *b, qn_value *x, int n_axes, const int64_t *axes, bool keep)
{
    qn_value *most = qn_b_reduce(b, QN_KIND_MAX, x, n_axes, axes, true);
    most = choose(b, qn_b_unary(b, QN_OP_IS_INF, most), number_like(b, x, 0), most);
    qn_value *sum = qn_b_reduce(b, QN_SUM, qn_b_unary(b, QN_OP_EXP, sub(b, x, most)), n_axes, axes, keep);
    if (!keep && most && sum)
        most = qn_b_reshape(b, most, sum->type.rank, sum->type.dims);
    return add(b, qn_b_unary(b, QN_OP_LOG, sum), most);
}

/* Element count of a shape computed at import: ReduceProd of a known list. */
static bool reduce_contents(qn_onnx_node *n, bool keep, int n_axes, int rank)
{
    qn_onnx_contents c;
    if (!is_named(n, "ReduceProd") || rank != 1 || n_axes != 1 || !qn_onnx_contents_of(n->im, n->in[0], &c) ||
        c.dtype != QUERN_I64)
        return false;
    qn_dim product = qn_dim_const(n->im->dims, 1);
    for (int64_t i = 0; i < c.n; i++)
        product = qn_dim_mul(n->im->dims, product, c.dims[i]);
    int64_t one = 1;
    qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, QUERN_I64, keep, &one, &product));
    return true;
}

static void import_reduce(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const qn_type *type = qn_onnx_in_type(n, 0);
    int64_t axes[QN_MAX_RANK];
    int n_axes;
    bool given, keep = qn_onnx_attr_int(n, "keepdims", 1) != 0;
    bool by_input = n->opset >= (is_named(n, "ReduceSum") ? 13 : 18);
    if (!type || !qn_onnx_axes(n, by_input ? 1 : -1, type->rank, axes, &n_axes, &given))
        return;
    /* no axes: all of them, unless that is said to mean none */
    if (n_axes == 0 && !(by_input && qn_onnx_attr_int(n, "noop_with_empty_axes", 0)))
        for (n_axes = 0; n_axes < type->rank; n_axes++)
            axes[n_axes] = n_axes;
    if (reduce_contents(n, keep, n_axes, type->rank))
        return;
    qn_value *x = qn_onnx_in(n, 0);
    if (is_named(n, "ReduceLogSumExp")) {
        qn_onnx_out(n, 0, log_sum_exp(b, x, n_axes, axes, keep));
        return;
    }
    if (is_named(n, "ReduceMean")) {
        qn_onnx_out(n, 0, n_axes ? qn_b_mean(b, x, n_axes, axes, keep) : x);
        return;
    }
    if (is_named(n, "ReduceL1"))
        x = qn_b_unary(b, QN_OP_ABS, x);
    if (is_named(n, "ReduceL2") || is_named(n, "ReduceSumSquare"))
        x = square(b, x);
    for (size_t i = 0; i < sizeof reductions / sizeof *reductions && n_axes; i++)
        if (is_named(n, reductions[i].name))
            x = qn_b_reduce(b, reductions[i].kind, x, n_axes, axes, keep);
    if (is_named(n, "ReduceL2") && x) { /* of integers too */
        qn_dtype dtype = x->type.dtype;
        x = qn_dtype_is_float(dtype) ? x : qn_b_convert(b, QUERN_F64, x);
        x = qn_b_convert(b, dtype, qn_b_unary(b, QN_OP_SQRT, x));
    }
    if (is_named(n, "ReduceLogSum") && x) {
        qn_dtype dtype = x->type.dtype;
        x = qn_dtype_is_float(dtype) ? x : qn_b_convert(b, QUERN_F64, x);
        x = qn_b_convert(b, dtype, qn_b_unary(b, QN_OP_LOG, x));
    }
    qn_onnx_out(n, 0, x);
}

static void import_arg_reduce(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    int axis;
    if (!x || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), x->type.rank, &axis))
        return;
    qn_kind kind = is_named(n, "ArgMax") ? QN_KIND_MAX : QN_KIND_MIN;
    bool last = qn_onnx_attr_int(n, "select_last_index", 0) != 0;
    qn_value *index = qn_b_arg_reduce(b, kind, x, axis, last);
    qn_onnx_out(n, 0, qn_onnx_attr_int(n, "keepdims", 1) ? qn_b_expand_dims(b, index, axis) : index);
}

static void import_cumulative(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    int64_t given;
    int axis;
    if (!x || !qn_onnx_in_int(n, 1, &given) || !qn_onnx_axis(n, given, x->type.rank, &axis))
        return;
    bool exclusive = qn_onnx_attr_int(n, "exclusive", 0) != 0,
         reverse = qn_onnx_attr_int(n, "reverse", 0) != 0;
    qn_kind kind = is_named(n, "CumSum") ? QN_SUM : QN_PROD;
    qn_onnx_out(n, 0, qn_b_cumulative(&n->b, kind, x, axis, exclusive, reverse));
}

static void import_top_k(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    int axis, count;
    qn_dim k;
    if (!x || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", -1), x->type.rank, &axis))
        return;
    if (n->opset < 10) {
        k = qn_dim_const(n->im->dims, qn_onnx_attr_int(n, "k", -1));
    } else if (!qn_onnx_in_extents(n, 1, 1, x->type.dims[axis], &k, &count) || count != 1) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "input 1 must be one number");
        return;
    }
    if (k->max < 0) {
        qn_onnx_malformed(n, "k is negative");
        return;
    }
    qn_node *node = qn_b_top_k(&n->b, x, axis, k, qn_onnx_attr_int(n, "largest", 1) != 0);
    if (!node)
        return;
    qn_onnx_out(n, 0, &node->results[0]);
    qn_onnx_out(n, 1, &node->results[1]);
}

const qn_onnx_op qn_onnx_reduce_ops[] = {
    { "ReduceSum", NULL, 1, 0, import_reduce },
    { "ReduceMean", NULL, 1, 0, import_reduce },
    { "ReduceMax", NULL, 1, 0, import_reduce },
    { "ReduceMin", NULL, 1, 0, import_reduce },
    { "ReduceProd", NULL, 1, 0, import_reduce },
    { "ReduceL1", NULL, 1, 0, import_reduce },
    { "ReduceL2", NULL, 1, 0, import_reduce },
    { "ReduceLogSum", NULL, 1, 0, import_reduce },
    { "ReduceLogSumExp", NULL, 1, 0, import_reduce },
    { "ReduceSumSquare", NULL, 1, 0, import_reduce },
    { "ArgMax", NULL, 1, 0, import_arg_reduce },
    { "ArgMin", NULL, 1, 0, import_arg_reduce },
    { "CumSum", NULL, 11, 0, import_cumulative },
    { "CumProd", NULL, 26, 0, import_cumulative },
    { "TopK", NULL, 1, 0, import_top_k },
    { 0 },
};
