/* The operators of ai.onnx.ml that are arithmetic on tensors. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/ml.h"

/* ---- shared ---- */

const double *qn_ml_numbers(qn_onnx_node *n, const char *name, const char *tensor_name, int *out_n,
                            bool *out_double)
{
    const Onnx__Attribute *a =
        tensor_name ? qn_onnx_attr(n, tensor_name, ONNX__ATTRIBUTE__KIND__TENSOR) : NULL;
    *out_double = false;
    *out_n = 0;
    if (!a || !a->t) {
        const float *floats = qn_onnx_attr_floats(n, name, out_n);
        double *made = QN_NEW_ARRAY(n->im->arena, double, *out_n);
        for (int i = 0; i < *out_n; i++)
            made[i] = (double)floats[i];
        return floats ? made : NULL;
    }
    const qn_tensor *t = qn_onnx_tensor(n->im, a->t, &n->b.loc);
    if (!t)
        return NULL;
    const int64_t count = qn_type_elements(&t->type);
    if (!qn_dtype_is_float(t->type.dtype) || count > INT32_MAX) {
        qn_onnx_malformed(n, "attribute %s must be a tensor of floats", tensor_name);
        return NULL;
    }
    const uint8_t *data = qn_tensor_data(t);
    double *made = QN_NEW_ARRAY(n->im->arena, double, count);
    for (int64_t i = 0; i < count; i++)
        made[i] = qn_scalar_load(t->type.dtype, data + (size_t)i * qn_dtype_bytes(t->type.dtype)).f;
    *out_n = (int)count;
    *out_double = t->type.dtype == QUERN_F64;
    return made;
}

qn_value *qn_ml_vector(qn_onnx_node *n, const char *name)
{
    int count;
    const float *values = qn_onnx_attr_floats(n, name, &count);
    int64_t extent = count;
    return values ? qn_b_constant(&n->b, qn_onnx_tensor_of(n->im, QUERN_F32, 1, &extent, values)) : NULL;
}

int qn_ml_word(qn_onnx_node *n, const char *name, const char *fallback, const char *const *words)
{
    const char *word = qn_onnx_attr_string(n, name, fallback);
    for (int i = 0; words[i]; i++)
        if (!strcmp(words[i], word))
            return i;
    qn_onnx_malformed(n, "attribute %s is \"%s\", which is not known", name, word);
    return -1;
}

int qn_ml_post_of(qn_onnx_node *n)
{
    static const char *const words[] = { "NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT", NULL };
    return qn_ml_word(n, "post_transform", "NONE", words);
}

/* Softmax that takes no part in zeros: they stay 0, others are divided by the sum over all but them. */
static qn_value *softmax_zero(qn_builder *b, qn_value *x)
{
    enum { CLASSES = 1 };
    const int64_t axis = CLASSES;
    qn_value *most = qn_b_reduce(b, QN_KIND_MAX, x, 1, &axis, true);
    qn_value *other = compare_number(b, QN_GT, qn_b_unary(b, QN_OP_ABS, x), 1e-7);
    qn_value *e = choose(b, other, qn_b_unary(b, QN_OP_EXP, sub(b, x, most)), number_like(b, x, 0));
    qn_value *zero = mul(b, x, qn_b_unary(b, QN_OP_EXP, negate(b, most)));
    return divide(b, choose(b, other, e, zero), qn_b_reduce(b, QN_SUM, e, 1, &axis, true));
}

/* sqrt(2) erfinv(2 x - 1), by the approximation that ONNX Runtime has too */
static qn_value *probit(qn_builder *b, qn_value *x)
{
    x = add_number(b, mul_number(b, x, 2), -1);
    qn_value *log = qn_b_unary(b, QN_OP_LOG, mul(b, add_number(b, negate(b, x), 1), add_number(b, x, 1)));
    qn_value *v = add_number(b, mul_number(b, log, 0.5), 2 / (3.14159265358979323846 * 0.147));
    qn_value *w = sub(b, square(b, v), mul_number(b, log, 1 / 0.147));
    qn_value *root = qn_b_unary(b, QN_OP_SQRT, sub(b, qn_b_unary(b, QN_OP_SQRT, w), v));
    root = choose(b, compare_number(b, QN_LT, x, 0), negate(b, root), root);
    return mul_number(b, root, 1.41421356237309504880);
}

qn_value *qn_ml_post_transform(qn_onnx_node *n, qn_ml_post post, qn_value *scores)
{
    qn_builder *b = &n->b;
    switch (scores ? post : QN_POST_NONE) {
    case QN_POST_SOFTMAX: return qn_b_softmax(b, QN_OP_SOFTMAX, scores, 1);
    case QN_POST_LOGISTIC: return qn_b_unary(b, QN_OP_LOGISTIC, scores);
    case QN_POST_SOFTMAX_ZERO: return softmax_zero(b, scores);
    case QN_POST_PROBIT: return probit(b, scores);
    default: return scores;
    }
}

int qn_ml_n_classes(qn_onnx_node *n, const char *ints)
{
    int count;
    const int64_t *labels = qn_onnx_attr_ints(n, ints, &count);
    if (labels && count > 0)
        return count;
    if (qn_onnx_attr_strings(n, "classlabels_strings", &count) && count > 0)
        return count;
    if (qn_onnx_ok(n))
        qn_onnx_malformed(n, "the labels of the classes are missing: attribute %s, or classlabels_strings",
                          ints);
    return -1;
}

void qn_ml_out_labels(qn_onnx_node *n, int i, const char *ints, qn_value *classes)
{
    int count;
    const int64_t *labels = qn_onnx_attr_ints(n, ints, &count);
    const bool strings = !labels || !count;
    if (strings)
        labels = qn_onnx_attr_strings(n, "classlabels_strings", &count);
    bool counted = true; /* 0, 1, 2, … */
    for (int k = 0; k < count; k++)
        counted &= labels[k] == k;
    classes = counted ? classes : qn_b_gather(&n->b, qn_b_ints(&n->b, count, labels), classes, 0);
    if (strings)
        qn_onnx_out_strings(n, i, classes);
    else
        qn_onnx_out(n, i, classes);
}

/* ---- preprocessing ---- */

static void import_array_feature_extractor(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *index = qn_onnx_in(n, 1);
    if (!x || !index)
        return;
    if (x->type.rank < 1) {
        qn_onnx_malformed(n, "the input must have an axis");
        return;
    }
    qn_dim count = qn_type_elements_dim(n->im->dims, &index->type);
    x = qn_b_gather(b, x, qn_b_reshape(b, index, 1, &count), x->type.rank - 1);
    qn_onnx_out(n, 0, x && x->type.rank == 1 ? qn_b_expand_dims(b, x, 0) : x);
}

static void import_binarizer(qn_onnx_node *n)
{
    qn_value *x = qn_onnx_in(n, 0);
    qn_value *over = compare_number(&n->b, QN_GT, x, qn_onnx_attr_float(n, "threshold", 0));
    qn_onnx_out(n, 0, over ? qn_b_convert(&n->b, x->type.dtype, over) : NULL);
}

/* (x - offset) * scale */
static void import_scaler(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *offset = qn_ml_vector(n, "offset"), *scale = qn_ml_vector(n, "scale");
    x = x ? qn_b_convert(b, QUERN_F32, x) : NULL;
    x = offset ? sub(b, x, offset) : x;
    qn_onnx_out(n, 0, scale ? mul(b, x, scale) : x);
}

static void import_normalizer(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *size;
    const char *norm = qn_onnx_attr_string(n, "norm", "MAX");
    if (!x)
        return;
    x = qn_b_convert(b, QUERN_F32, x);
    if (!x || x->type.rank < 1) {
        qn_onnx_malformed(n, "the input must have an axis");
        return;
    }
    int64_t axis = x->type.rank - 1;
    if (!strcmp(norm, "MAX"))
        size = qn_b_reduce(b, QN_KIND_MAX, x, 1, &axis, true);
    else if (!strcmp(norm, "L1"))
        size = qn_b_reduce(b, QN_SUM, qn_b_unary(b, QN_OP_ABS, x), 1, &axis, true);
    else
        size = qn_b_unary(b, QN_OP_SQRT, qn_b_reduce(b, QN_SUM, square(b, x), 1, &axis, true));
    size = choose(b, compare_number(b, QN_EQ, size, 0), number_like(b, x, 1), size);
    qn_onnx_out(n, 0, divide(b, x, size));
}

/* ---- missing values, categories ---- */

/* One number for all features, or one for each, takes the place of missing ones. */
static void import_imputer(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0), *missing;
    int n_floats, n_ints;
    if (!x)
        return;
    qn_onnx_attr_floats(n, "imputed_value_floats", &n_floats);
    const int64_t *ints = qn_onnx_attr_ints(n, "imputed_value_int64s", &n_ints);
    const bool is_float = qn_dtype_is_float(x->type.dtype);
    const int count = is_float ? n_floats : n_ints;
    const qn_dim last = x->type.rank ? x->type.dims[x->type.rank - 1] : qn_onnx_dim(n, 1);
    if (count == 0 || (count > 1 && qn_dim_is_const(last) && last->value != count)) {
        qn_onnx_malformed(n, "there are %d imputed values of the input's kind for %s features", count,
                          qn_dim_print(last, n->im->arena));
        return;
    }
    qn_value *instead = is_float ? qn_ml_vector(n, "imputed_value_floats") : qn_b_ints(b, n_ints, ints);
    if (is_float) {
        const double replaced = qn_onnx_attr_float(n, "replaced_value_float", 0);
        missing = isnan(replaced) ? qn_b_unary(b, QN_OP_IS_NAN, x) : compare_number(b, QN_EQ, x, replaced);
    } else {
        qn_value *replaced =
            qn_b_scalar_int(b, x->type.dtype, qn_onnx_attr_int(n, "replaced_value_int64", 0));
        missing = compare(b, QN_EQ, x, replaced);
    }
    qn_onnx_out(n, 0, choose(b, missing, qn_b_convert(b, x->type.dtype, instead), x));
}

/* Inputs side by side, each cut or filled up with zeros to its number of features. */
static void import_feature_vectorizer(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    int count;
    const int64_t *sizes = qn_onnx_attr_ints(n, "inputdimensions", &count);
    qn_value **parts = QN_NEW_ARRAY(n->im->arena, qn_value *, n->n_in);
    if (!sizes || count != n->n_in || count == 0) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "attribute inputdimensions has %d elements for %d inputs", count, n->n_in);
        return;
    }
    for (int i = 0; i < count; i++) {
        qn_value *x = qn_b_convert(b, QUERN_F32, qn_onnx_in(n, i));
        if (!x)
            return;
        if (x->type.rank < 1 || x->type.rank > 2 || !qn_dim_is_const(x->type.dims[x->type.rank - 1]) ||
            sizes[i] < 0 || sizes[i] > QN_DIM_MAX_VALUE) {
            qn_onnx_needs_dim(n, x->type.rank ? x->type.dims[x->type.rank - 1] : qn_onnx_dim(n, 0));
            qn_onnx_unsupported(n, "input %d must be [N, features], of a known number of features", i);
            return;
        }
        x = x->type.rank == 1 ? qn_b_expand_dims(b, x, 0) : x;
        const int64_t has = x->type.dims[1]->value;
        if (has > sizes[i])
            x = qn_b_slice_axis(b, x, 1, qn_onnx_dim(n, 0), qn_onnx_dim(n, sizes[i]));
        const qn_dim none[2] = { qn_onnx_dim(n, 0), qn_onnx_dim(n, 0) };
        const qn_dim more[2] = { none[0], qn_onnx_dim(n, has < sizes[i] ? sizes[i] - has : 0) };
        parts[i] = has < sizes[i] ? qn_b_pad(b, x, number_like(b, x, 0), none, more, NULL) : x;
    }
    qn_onnx_out(n, 0, count == 1 ? parts[0] : qn_b_concatenate(b, count, parts, 1));
}

/* Which of the constant keys [K] an element is, i64; *out_found: is it any? Of equal keys the first; NaN is equal to NaN. */
static qn_value *position_of(qn_builder *b, qn_value *x, qn_value *keys, qn_value **out_found)
{
    const int64_t axis = x->type.rank;
    qn_value *each = qn_b_expand_dims(b, x, x->type.rank);
    qn_value *equal = compare(b, QN_EQ, each, keys);
    if (qn_dtype_is_float(x->type.dtype))
        equal = or_else(b, equal,
                        and_also(b, qn_b_unary(b, QN_OP_IS_NAN, each), qn_b_unary(b, QN_OP_IS_NAN, keys)));
    *out_found = equal ? qn_b_reduce(b, QN_KIND_MAX, equal, 1, &axis, false) : NULL;
    return equal ? qn_b_arg_reduce(b, QN_KIND_MAX, equal, (int)axis, false) : NULL;
}

/* A one at the category's place; nothing, or an error, for what is none. */
static void import_one_hot_encoder(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    int count;
    const int64_t *categories = qn_onnx_attr_ints(n, "cats_int64s", &count);
    qn_value *x = qn_onnx_in(n, 0), *found;
    if (!x)
        return;
    const bool strings = n->in[0]->strings;
    if (strings)
        categories = qn_onnx_attr_strings(n, "cats_strings", &count);
    if (!categories || count == 0) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "attribute %s is missing", strings ? "cats_strings" : "cats_int64s");
        return;
    }
    x = qn_b_convert(b, QUERN_I64, x);
    qn_value *keys = qn_b_ints(b, count, categories);
    if (qn_onnx_attr_int(n, "zeros", 1)) {
        qn_value *equal = x ? compare(b, QN_EQ, qn_b_expand_dims(b, x, x->type.rank), keys) : NULL;
        qn_onnx_out(n, 0, equal ? qn_b_convert(b, QUERN_F32, equal) : NULL);
        return;
    }
    qn_value *at = x ? position_of(b, x, keys, &found) : NULL;
    at = at ? choose(b, found, at, qn_b_scalar_int(b, QUERN_I64, count)) : NULL; /* out of range */
    const qn_dim dims[2] = { qn_onnx_dim(n, count), qn_onnx_dim(n, count) };
    const qn_type square = qn_type_make(n->im->module, QUERN_I64, 2, dims);
    qn_value *unit = compare(b, QN_EQ, qn_b_iota(b, &square, 0), qn_b_iota(b, &square, 1));
    qn_onnx_out(n, 0, at ? qn_b_gather(b, qn_b_convert(b, QUERN_F32, unit), at, 0) : NULL);
}

/* A list of a LabelEncoder as a vector: `what` is "keys" or "values". NULL after a report. */
static qn_value *encoder_list(qn_onnx_node *n, const char *what, bool *out_strings)
{
    int count;
    *out_strings = false;
    const char *name = qn_arena_printf(n->im->arena, "%s_tensor", what);
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__TENSOR);
    if (a && a->t) {
        *out_strings = a->t->data_type == QN_ONNX_STRING;
        const qn_tensor *t = *out_strings ? qn_onnx_string_tensor(n->im, a->t, &n->b.loc)
                                          : qn_onnx_tensor(n->im, a->t, &n->b.loc);
        const qn_dim all = t ? qn_onnx_dim(n, qn_type_elements(&t->type)) : NULL;
        return t ? qn_b_reshape(&n->b, qn_b_constant(&n->b, t), 1, &all) : NULL;
    }
    const int64_t *ints = qn_onnx_attr_ints(n, qn_arena_printf(n->im->arena, "%s_int64s", what), &count);
    if (ints)
        return qn_b_ints(&n->b, count, ints);
    ints = qn_onnx_attr_strings(n, qn_arena_printf(n->im->arena, "%s_strings", what), &count);
    *out_strings = ints != NULL;
    if (ints)
        return qn_b_ints(&n->b, count, ints);
    qn_value *v = qn_ml_vector(n, qn_arena_printf(n->im->arena, "%s_floats", what));
    if (!v && qn_onnx_ok(n))
        qn_onnx_malformed(n, "there is no attribute with the %s", what);
    return v;
}

static void import_label_encoder(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    bool by_strings, strings;
    qn_value *x = qn_onnx_in(n, 0), *keys = encoder_list(n, "keys", &by_strings), *found, *otherwise;
    qn_value *values = keys ? encoder_list(n, "values", &strings) : NULL;
    if (!x || !values)
        return;
    if (n->in[0]->strings != by_strings) {
        qn_onnx_malformed(n, "the keys are %s, and the input is %s", by_strings ? "strings" : "numbers",
                          by_strings ? "not" : "strings");
        return;
    }
    if (keys->type.dims[0] != values->type.dims[0] || qn_dim_is(keys->type.dims[0], 0) ||
        keys->type.dtype != x->type.dtype) {
        qn_onnx_malformed(n, "there are keys %s and values %s", qn_type_print(&keys->type, n->im->arena),
                          qn_type_print(&values->type, n->im->arena));
        return;
    }
    const Onnx__Attribute *a = qn_onnx_attr(n, "default_tensor", ONNX__ATTRIBUTE__KIND__TENSOR);
    if (a && a->t) {
        const bool of_strings = a->t->data_type == QN_ONNX_STRING;
        const qn_tensor *t = of_strings ? qn_onnx_string_tensor(n->im, a->t, &n->b.loc)
                                        : qn_onnx_tensor(n->im, a->t, &n->b.loc);
        if (!t)
            return;
        if (of_strings != strings || qn_type_elements(&t->type) != 1 || t->type.dtype != values->type.dtype) {
            qn_onnx_malformed(n, "default_tensor is %s", qn_type_print(&t->type, n->im->arena));
            return;
        }
        otherwise = qn_b_reshape(b, qn_b_constant(b, t), 0, NULL);
    } else if (strings) {
        const int64_t number = qn_onnx_attr_string_number(n, "default_string", "_Unused");
        otherwise = number < 0 ? NULL : qn_b_scalar_int(b, QUERN_I64, number);
    } else if (qn_dtype_is_float(values->type.dtype)) {
        otherwise = number_like(b, values, qn_onnx_attr_float(n, "default_float", -0.0));
    } else {
        otherwise = qn_b_scalar_int(b, values->type.dtype, qn_onnx_attr_int(n, "default_int64", -1));
    }
    qn_value *at = position_of(b, x, keys, &found);
    at = at && otherwise ? choose(b, found, qn_b_gather(b, values, at, 0), otherwise) : NULL;
    if (strings)
        qn_onnx_out_strings(n, 0, at);
    else
        qn_onnx_out(n, 0, at);
}

/* Between strings and numbers, both ways: those of a list (CategoryMapper), or 0, 1, … (LabelEncoder at opset 1). */
static void import_category_mapper(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const bool mapper = !strcmp(n->proto->op_type, "CategoryMapper");
    int n_strings, n_ints = 0;
    const int64_t *strings = qn_onnx_attr_strings(n, mapper ? "cats_strings" : "classes_strings", &n_strings);
    const int64_t *ints = mapper ? qn_onnx_attr_ints(n, "cats_int64s", &n_ints) : NULL;
    qn_value *x = qn_onnx_in(n, 0), *found;
    if (!x || !qn_onnx_ok(n))
        return;
    const bool from_strings = n->in[0]->strings;
    if (!strings || n_strings == 0 || (mapper && n_ints != n_strings) || x->type.dtype != QUERN_I64) {
        qn_onnx_malformed(n, "there are %d strings and %d numbers, and the input must be of one of them",
                          n_strings, n_ints);
        return;
    }
    int64_t *counted = QN_NEW_ARRAY(n->im->arena, int64_t, n_strings);
    for (int i = 0; i < n_strings; i++)
        counted[i] = ints ? ints[i] : i;
    const int64_t otherwise = from_strings ? qn_onnx_attr_int(n, "default_int64", -1)
                                           : qn_onnx_attr_string_number(n, "default_string", "_Unused");
    qn_value *at = position_of(b, x, qn_b_ints(b, n_strings, from_strings ? strings : counted), &found);
    qn_value *to =
        at ? qn_b_gather(b, qn_b_ints(b, n_strings, from_strings ? counted : strings), at, 0) : NULL;
    to = to && qn_onnx_ok(n) ? choose(b, found, to, qn_b_scalar_int(b, QUERN_I64, otherwise)) : NULL;
    if (from_strings)
        qn_onnx_out(n, 0, to);
    else
        qn_onnx_out_strings(n, 0, to);
}

/* Takes scores [N, classes] apart into N maps from labels to scores. There are no maps here: it gives the scores. */
static void import_zip_map(qn_onnx_node *n)
{
    qn_onnx_out(n, 0, qn_onnx_in(n, 0));
}

const qn_onnx_op qn_onnx_ml_ops[] = {
    { "ArrayFeatureExtractor", "ai.onnx.ml", 1, 0, import_array_feature_extractor },
    { "Binarizer", "ai.onnx.ml", 1, 0, import_binarizer },
    { "Scaler", "ai.onnx.ml", 1, 0, import_scaler },
    { "Normalizer", "ai.onnx.ml", 1, 0, import_normalizer },
    { "Imputer", "ai.onnx.ml", 1, 0, import_imputer },
    { "FeatureVectorizer", "ai.onnx.ml", 1, 0, import_feature_vectorizer },
    { "OneHotEncoder", "ai.onnx.ml", 1, 0, import_one_hot_encoder },
    { "ZipMap", "ai.onnx.ml", 1, 0, import_zip_map },
    { "LabelEncoder", "ai.onnx.ml", 1, 1, import_category_mapper },
    { "LabelEncoder", "ai.onnx.ml", 2, 0, import_label_encoder },
    { "CategoryMapper", "ai.onnx.ml", 1, 0, import_category_mapper },
    { 0 },
};
