/* Random numbers: Philox with the key (seed, ordinal of the operator in the model). The seed is the operator's own, or
 * the options'; every run gives the same numbers. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

static qn_value *random_key(qn_onnx_node *n)
{
    uint64_t key[2] = { n->im->options->seed, n->im->n_random++ };
    double seed; /* Dropout's is an integer */
    if (!strcmp(n->proto->op_type, "Dropout"))
        seed = qn_onnx_attr(n, "seed", ONNX__ATTRIBUTE__KIND__INT) ? (double)qn_onnx_attr_int(n, "seed", 0)
                                                                   : NAN;
    else
        seed = qn_onnx_attr_float(n, "seed", NAN);
    if (!isnan(seed)) {
        memcpy(&key[0], &seed, sizeof seed);
        key[1] = 0; /* the same seed, the same numbers */
    }
    int64_t two = 2;
    return qn_b_constant(&n->b, qn_onnx_tensor_of(n->im, QUERN_U64, 1, &two, key));
}

static qn_value *uniform(qn_onnx_node *n, qn_value *key, const qn_type *type)
{
    return qn_b_random_uniform(&n->b, key, qn_b_scalar_int(&n->b, QUERN_U64, 0), type);
}

/* Type of the result: attribute dtype, else `fallback`. */
static bool result_dtype(qn_onnx_node *n, qn_dtype fallback, qn_dtype *out)
{
    int64_t elem = qn_onnx_attr_int(n, "dtype", (int64_t)qn_onnx_dtype_elem(fallback));
    *out = elem > 0 && elem < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)elem) : QUERN_INVALID_DTYPE;
    if (*out == QUERN_INVALID_DTYPE)
        qn_onnx_unsupported(n, "attribute dtype is not supported");
    return *out != QUERN_INVALID_DTYPE;
}

static void random_numbers(qn_onnx_node *n, qn_dtype dtype, int rank, const qn_dim *dims)
{
    qn_builder *b = &n->b;
    bool is_normal = !strncmp(n->proto->op_type, "RandomNormal", 12);
    if (!qn_dtype_is_float(dtype)) {
        qn_onnx_malformed(n, "attribute dtype must be a float type");
        return;
    }
    qn_type type = qn_type_make(n->im->module, dtype == QUERN_F64 ? QUERN_F64 : QUERN_F32, rank, dims);
    qn_value *key = random_key(n), *x;
    if (is_normal) {
        double mean = qn_onnx_attr_float(n, "mean", 0), scale = qn_onnx_attr_float(n, "scale", 1);
        x = qn_b_random_normal(b, key, qn_b_scalar_int(b, QUERN_U64, 0), &type);
        x = add_number(b, mul_number(b, x, scale), mean);
    } else {
        double low = qn_onnx_attr_float(n, "low", 0), high = qn_onnx_attr_float(n, "high", 1);
        x = add_number(b, mul_number(b, uniform(n, key, &type), high - low), low);
    }
    qn_onnx_out(n, 0, x ? qn_b_convert(b, dtype, x) : NULL);
}

static void import_random(qn_onnx_node *n)
{
    qn_dim dims[QN_MAX_RANK];
    qn_dtype dtype;
    int rank;
    const int64_t *shape = qn_onnx_attr_ints(n, "shape", &rank);
    if (!shape || rank > QN_MAX_RANK) {
        qn_onnx_malformed(n, "attribute shape is missing or too long");
        return;
    }
    for (int i = 0; i < rank; i++)
        dims[i] = qn_dim_const(n->im->dims, shape[i]);
    if (result_dtype(n, QUERN_F32, &dtype))
        random_numbers(n, dtype, rank, dims);
}

static void import_random_like(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    qn_dtype dtype;
    if (x && result_dtype(n, x->dtype, &dtype))
        random_numbers(n, dtype, x->rank, x->dims);
}

/* 1 with the probability that the input gives. */
static void import_bernoulli(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *p = qn_onnx_in(n, 0);
    qn_dtype dtype;
    if (!p || !result_dtype(n, p->type.dtype, &dtype))
        return;
    qn_type type = p->type;
    qn_value *hit = compare(b, QN_LT, uniform(n, random_key(n), &type), p);
    qn_onnx_out(n, 0, hit ? qn_b_convert(b, dtype, hit) : NULL);
}

/* Gumbel's trick: the largest of log p - log(-log u) is drawn with probability p. */
static void import_multinomial(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t samples = qn_onnx_attr_int(n, "sample_size", 1);
    qn_dtype dtype;
    if (!x || !result_dtype(n, QUERN_I32, &dtype))
        return;
    if (x->type.rank != 2 || samples < 1) {
        qn_onnx_malformed(n, "the input must have rank 2, and sample_size be positive");
        return;
    }
    qn_dim dims[3] = { x->type.dims[0], qn_dim_const(n->im->dims, samples), x->type.dims[1] };
    qn_type type = qn_type_make(n->im->module, QUERN_F32, 3, dims);
    /* 1 - u is in (0, 1] */
    qn_value *u = add_number(b, negate(b, uniform(n, random_key(n), &type)), 1);
    qn_value *gumbel = negate(b, qn_b_unary(b, QN_OP_LOG, negate(b, qn_b_unary(b, QN_OP_LOG, u))));
    qn_value *score = add(b, gumbel, qn_b_expand_dims(b, qn_b_convert(b, QUERN_F32, x), 1));
    qn_value *drawn = qn_b_arg_reduce(b, QN_KIND_MAX, score, 2, false);
    qn_onnx_out(n, 0, drawn ? qn_b_convert(b, dtype, drawn) : NULL);
}

/* Identity in inference. Training is told by attribute is_test before opset 7, by an input from opset 12. */
static void import_dropout(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    double ratio = qn_onnx_attr_float(n, "ratio", 0.5);
    int64_t training = 0;
    int count = 1;
    if (!x)
        return;
    if (n->opset >= 12) {
        qn_onnx_contents known;
        if (qn_onnx_has(n, 2) && !qn_onnx_in_int(n, 2, &training))
            return;
        if (qn_onnx_has(n, 1) && !training && !qn_onnx_contents_of(n->im, n->in[1], &known))
            ratio = 0; /* inference does not ask for it */
        else if (qn_onnx_has(n, 1) && !qn_onnx_in_floats(n, 1, 1, &ratio, &count))
            return;
    }
    if (count != 1 || !(ratio >= 0 && ratio <= 1)) {
        qn_onnx_malformed(n, "the ratio must be one number from 0 to 1");
        return;
    }
    qn_node *dropout =
        qn_b_dropout(b, x, random_key(n), qn_b_scalar_int(b, QUERN_U64, 0), ratio, training != 0);
    if (!dropout)
        return;
    qn_onnx_out(n, 0, &dropout->results[0]);
    qn_onnx_out(n, 1, qn_b_convert(b, n->opset >= 10 ? QUERN_BOOL : x->type.dtype, &dropout->results[1]));
}

const qn_onnx_op qn_onnx_random_ops[] = {
    { "RandomNormal", NULL, 1, 0, import_random },
    { "RandomUniform", NULL, 1, 0, import_random },
    { "RandomNormalLike", NULL, 1, 0, import_random_like },
    { "RandomUniformLike", NULL, 1, 0, import_random_like },
    { "Bernoulli", NULL, 15, 0, import_bernoulli },
    { "Multinomial", NULL, 7, 0, import_multinomial },
    { "Dropout", NULL, 1, 0, import_dropout },
    { 0 },
};
