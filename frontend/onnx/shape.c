/* Operators that make values of shapes and numbers: Shape, Size, Constant, ConstantOfShape, Range, EyeLike. */
#include <math.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

static void import_shape(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    if (!x)
        return;
    int64_t start = 0, end = x->rank;
    if (n->opset >= 15) {
        start = qn_onnx_attr_int(n, "start", 0);
        end = qn_onnx_attr_int(n, "end", x->rank);
        start += start < 0 ? x->rank : 0;
        end += end < 0 ? x->rank : 0;
    }
    start = start < 0 ? 0 : start > x->rank ? x->rank : start;
    end = end < start ? start : end > x->rank ? x->rank : end;
    int64_t count = end - start;
    n->depends = n->extents = 0; /* a shape is known without the contents */
    qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, QUERN_I64, 1, &count, x->dims + start));
}

static void import_size(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    if (!x)
        return;
    qn_dim elements = qn_type_elements_dim(n->im->dims, x);
    n->depends = n->extents = 0;
    qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, QUERN_I64, 0, NULL, &elements));
}

static void import_constant(qn_onnx_node *n)
{
    qn_onnx_import *im = n->im;
    static const struct {
        const char *name;
        Onnx__Attribute__Kind kind;
    } forms[] = { { "value", ONNX__ATTRIBUTE__KIND__TENSOR },
                  { "value_int", ONNX__ATTRIBUTE__KIND__INT },
                  { "value_ints", ONNX__ATTRIBUTE__KIND__INTS },
                  { "value_float", ONNX__ATTRIBUTE__KIND__FLOAT },
                  { "value_floats", ONNX__ATTRIBUTE__KIND__FLOATS },
                  { "value_string", ONNX__ATTRIBUTE__KIND__STRING },
                  { "value_strings", ONNX__ATTRIBUTE__KIND__STRINGS },
                  { "sparse_value", ONNX__ATTRIBUTE__KIND__SPARSE_TENSOR } };
    bool strings = false;
    const int64_t *numbers, one = 1;
    int n_strings;
    const Onnx__Attribute *a = NULL;
    for (size_t i = 0; i < sizeof forms / sizeof *forms && !a && qn_onnx_ok(n); i++)
        a = qn_onnx_attr(n, forms[i].name, forms[i].kind);
    const qn_tensor *tensor = NULL;
    if (!a) {
        if (qn_onnx_ok(n))
            qn_onnx_unsupported(n, "a constant must be a tensor, or numbers or strings");
        return;
    }
    int64_t count, shape;
    switch (a->kind) {
    case ONNX__ATTRIBUTE__KIND__TENSOR:
        strings = a->t && a->t->data_type == QN_ONNX_STRING;
        tensor = strings ? qn_onnx_string_tensor(im, a->t, &n->b.loc)
                 : a->t  ? qn_onnx_tensor(im, a->t, &n->b.loc)
                         : NULL;
        break;
    case ONNX__ATTRIBUTE__KIND__STRING:
    case ONNX__ATTRIBUTE__KIND__STRINGS:
        strings = true;
        count = a->kind == ONNX__ATTRIBUTE__KIND__STRING ? qn_onnx_attr_string_number(n, a->name, "") : 0;
        numbers =
            a->kind == ONNX__ATTRIBUTE__KIND__STRING ? &count : qn_onnx_attr_strings(n, a->name, &n_strings);
        if (!numbers || count < 0)
            return;
        shape = a->kind == ONNX__ATTRIBUTE__KIND__STRING ? one : n_strings;
        tensor = qn_onnx_tensor_of(im, QUERN_I64, a->kind == ONNX__ATTRIBUTE__KIND__STRINGS, &shape, numbers);
        break;
    case ONNX__ATTRIBUTE__KIND__SPARSE_TENSOR:
        tensor = a->sparse_tensor ? qn_onnx_sparse_tensor(im, a->sparse_tensor, &n->b.loc) : NULL;
        break;
    case ONNX__ATTRIBUTE__KIND__INT: tensor = qn_onnx_tensor_of(im, QUERN_I64, 0, NULL, &a->i); break;
    case ONNX__ATTRIBUTE__KIND__FLOAT: tensor = qn_onnx_tensor_of(im, QUERN_F32, 0, NULL, &a->f); break;
    case ONNX__ATTRIBUTE__KIND__INTS:
        count = (int64_t)a->n_ints;
        tensor = qn_onnx_tensor_of(im, QUERN_I64, 1, &count, a->ints);
        break;
    default:
        count = (int64_t)a->n_floats;
        tensor = qn_onnx_tensor_of(im, QUERN_F32, 1, &count, a->floats);
        break;
    }
    if (!tensor) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "attribute %s has no tensor", a->name);
        return;
    }
    qn_onnx_out_tensor(n, 0, tensor);
    if (n->n_out > 0)
        n->out[0]->strings = strings;
}

/* A tensor of one value; small ones are contents. */
static void import_constant_of_shape(qn_onnx_node *n)
{
    qn_dim dims[QN_MAX_RANK];
    int64_t shape[QN_MAX_RANK], count;
    int rank;
    if (!qn_onnx_in_extents(n, 0, QN_MAX_RANK, NULL, dims, &rank))
        return;
    const Onnx__Attribute *a = qn_onnx_attr(n, "value", ONNX__ATTRIBUTE__KIND__TENSOR);
    static const float zero = 0;
    const qn_tensor *value = a && a->t ? qn_onnx_tensor(n->im, a->t, &n->b.loc)
                                       : qn_onnx_tensor_of(n->im, QUERN_F32, 0, NULL, &zero);
    if (!value || qn_type_elements(&value->type) != 1) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "attribute value must have one element");
        return;
    }
    bool is_static = true;
    for (int i = 0; i < rank; i++) {
        if (dims[i]->max < 0) {
            qn_onnx_malformed(n, "dimension %d is negative", i);
            return;
        }
        is_static &= qn_dim_is_const(dims[i]);
        shape[i] = dims[i]->value;
    }
    count = is_static ? qn_onnx_count(rank, shape) : -1;
    if (count >= 0) {
        int64_t one = 1, *map = QN_NEW_ARRAY(n->im->arena, int64_t, count);
        qn_onnx_contents c = {
            .dtype = value->type.dtype, .rank = 1, .shape = { one }, .n = 1, .data = value->data
        };
        qn_onnx_contents_move(n, 0, &c, rank, shape, map);
        return;
    }
    value = qn_onnx_tensor_of(n->im, value->type.dtype, 0, NULL, value->data);
    qn_onnx_out(n, 0, qn_b_broadcast_to(&n->b, qn_b_constant(&n->b, value), rank, dims));
}

/* start + i * delta, small ranges of integers as contents. */
static void range_of_dims(qn_onnx_node *n, qn_dtype dtype, qn_dim start, qn_dim limit, qn_dim delta)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    if (!qn_dim_is_const(delta) || delta->value == 0) {
        qn_onnx_unsupported(n, "delta must be a constant other than 0");
        return;
    }
    bool up = delta->value > 0;
    qn_dim length = up ? qn_dim_sub(t, limit, start) : qn_dim_sub(t, start, limit);
    qn_dim step = qn_dim_const(t, up ? delta->value : delta->value == INT64_MIN ? INT64_MAX : -delta->value);
    qn_dim count = qn_dim_ceildiv(t, qn_dim_max(t, length, qn_dim_const(t, 0)), step);
    if (qn_dim_is_const(count) && count->value <= QN_ONNX_CONTENTS_MAX) {
        qn_dim *dims = QN_NEW_ARRAY(n->im->arena, qn_dim, count->value);
        for (int64_t i = 0; i < count->value; i++)
            dims[i] = qn_dim_add(t, start, qn_dim_const(t, i * delta->value));
        qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, dtype, 1, &count->value, dims));
        return;
    }
    qn_type type = qn_type_make(n->im->module, dtype, 1, &count);
    qn_value *x = qn_b_iota(b, &type, 0);
    if (!qn_dim_is(delta, 1))
        x = qn_b_binary_bcast(b, QN_OP_MUL, x, qn_b_scalar_int(b, dtype, delta->value));
    if (!qn_dim_is(start, 0))
        x = add(b, x, qn_b_dim_value(b, dtype, start));
    qn_onnx_out(n, 0, x);
}

/* Numbers that the run computes: as many as there are steps from the first up to the second. */
static void range_of_values(qn_onnx_node *n, const qn_type *x)
{
    qn_builder *b = &n->b;
    qn_value *v[3], *count = NULL;
    const qn_dtype wide = qn_dtype_is_float(x->dtype) ? QUERN_F64 : QUERN_I64;
    for (int i = 0; i < 3; i++) {
        v[i] = qn_onnx_in(n, i);
        if (!v[i] || !qn_type_is_static(&v[i]->type) || qn_type_elements(&v[i]->type) != 1) {
            if (v[i])
                qn_onnx_malformed(n, "input %d must be one number", i);
            return;
        }
        v[i] = qn_b_convert(b, wide, qn_b_reshape(b, v[i], 0, NULL));
    }
    count = sub(b, v[1], v[0]);
    if (wide == QUERN_F64)
        count = qn_b_convert(b, QUERN_I64, qn_b_unary(b, QN_OP_CEIL, divide(b, count, v[2])));
    else { /* quotients round to zero */
        qn_value *sign = qn_b_unary(b, QN_OP_SIGN, v[2]);
        count = divide(b, sub(b, add(b, count, v[2]), sign), v[2]);
    }
    qn_dim extent = qn_onnx_extent(n, max_number(b, count, 0), NULL);
    if (!extent)
        return;
    qn_type type = qn_type_make(n->im->module, wide, 1, &extent);
    qn_onnx_out(n, 0, qn_b_convert(b, x->dtype, add(b, mul(b, qn_b_iota(b, &type, 0), v[2]), v[0])));
}

/* Makes input i, which it counts to from 0, an extent: 0 where the number is negative. */
static bool counts_to(qn_onnx_node *n, int i)
{
    const qn_onnx_value *given = n->in[i];
    qn_value *x = qn_onnx_in(n, i);
    if (!x || !qn_type_is_static(&x->type) || qn_type_elements(&x->type) != 1)
        return false;
    if (!qn_onnx_never_negative(n, x)) {
        n->in[i] = qn_onnx_value_from(n->im, max_number(&n->b, x, 0));
        n->in[i]->depends = given->depends;
        n->in[i]->extents = given->extents;
    }
    return qn_onnx_compute_dims(n, i, NULL);
}

/* Is there an input whose contents are known neither now nor as an extent? */
static bool has_unknown(qn_onnx_node *n, bool integers)
{
    qn_onnx_contents c;
    for (int i = 0; i < 3; i++) {
        if (!qn_onnx_in_type(n, i) || qn_onnx_contents_needed(n->im, n->in[i], &c))
            continue;
        const bool starts_at_zero = i == 1 && qn_onnx_contents_needed(n->im, n->in[0], &c) && c.n == 1 &&
                                    c.dims && qn_dim_is(c.dims[0], 0);
        if (!integers || !starts_at_zero || !counts_to(n, i))
            return true;
    }
    return false;
}

static bool is_given(const qn_onnx_node *n)
{
    for (int i = 0; i < 3; i++)
        if (qn_onnx_is_input(n, i))
            return true;
    return false;
}

/* From 0 by 1 up to a number that isn't known, in a type that can say it? */
static bool counts_up(qn_onnx_node *n)
{
    for (int i = 0; i < 3; i++) {
        qn_onnx_contents c;
        const qn_type *type = qn_onnx_in_type(n, i);
        if (!type || qn_dtype_bytes(type->dtype) < 4)
            return false;
        const bool known = qn_onnx_contents_needed(n->im, n->in[i], &c) && c.data && c.n == 1;
        if (known != (i != 1) || (known && qn_scalar_load(c.dtype, c.data).f != (i == 2)))
            return false;
    }
    return true;
}

static void import_range(qn_onnx_node *n)
{
    const qn_type *x = qn_onnx_in_type(n, 0);
    int count;
    if (!x)
        return;
    const bool integers = !qn_dtype_is_float(x->dtype);
    if (!integers && counts_up(n)) {
        qn_value *limit = qn_onnx_in(n, 1);
        qn_dim extent = limit ? qn_onnx_known_extent(n, limit) : NULL;
        if (extent) {
            qn_type type = qn_type_make(n->im->module, x->dtype, 1, &extent);
            qn_onnx_out(n, 0, qn_b_iota(&n->b, &type, 0));
            return;
        }
    }
    if (!is_given(n) && has_unknown(n, integers)) {
        if (qn_onnx_ok(n))
            range_of_values(n, x);
        return;
    }
    if (integers) {
        qn_dim bounds[3];
        for (int i = 0; i < 3; i++) {
            if (!qn_onnx_in_dims(n, i, 1, &bounds[i], &count))
                return;
            if (count != 1) {
                qn_onnx_malformed(n, "input %d must be one number", i);
                return;
            }
        }
        range_of_dims(n, x->dtype, bounds[0], bounds[1], bounds[2]);
        return;
    }
    double bounds[3];
    for (int i = 0; i < 3; i++)
        if (!qn_onnx_in_floats(n, i, 1, &bounds[i], &count) || count != 1) {
            if (qn_onnx_ok(n))
                qn_onnx_malformed(n, "input %d must be one number", i);
            return;
        }
    double length = ceil((bounds[1] - bounds[0]) / bounds[2]);
    if (!(length < (double)QN_DIM_MAX_VALUE)) {
        qn_onnx_malformed(n, "the range is too long");
        return;
    }
    int64_t extent = length > 0 ? (int64_t)length : 0;
    qn_type type = qn_type_static(n->im->module, x->dtype, 1, &extent);
    /* 16-bit floats do not count far: in f32, rounded once */
    type.dtype = qn_dtype_bytes(x->dtype) < 4 ? QUERN_F32 : x->dtype;
    qn_value *i = qn_b_iota(&n->b, &type, 0);
    qn_onnx_out(n, 0,
                qn_b_convert(&n->b, x->dtype, add_number(&n->b, mul_number(&n->b, i, bounds[2]), bounds[0])));
}

static void import_eye_like(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const qn_type *x = qn_onnx_in_type(n, 0);
    if (!x)
        return;
    int64_t elem = qn_onnx_attr_int(n, "dtype", (int64_t)qn_onnx_dtype_elem(x->dtype)),
            k = qn_onnx_attr_int(n, "k", 0);
    qn_dtype dtype = elem > 0 && elem < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)elem) : QUERN_INVALID_DTYPE;
    if (x->rank != 2 || dtype == QUERN_INVALID_DTYPE) {
        qn_onnx_malformed(n, "the input must have rank 2, and dtype be supported");
        return;
    }
    qn_type type = qn_type_make(n->im->module, QUERN_I64, 2, x->dims);
    qn_value *row = qn_b_iota(b, &type, 0), *column = qn_b_iota(b, &type, 1);
    qn_value *on = compare(b, QN_EQ, column, add(b, row, qn_b_scalar_int(b, QUERN_I64, k)));
    n->depends = n->extents = 0;
    qn_onnx_out(n, 0, qn_b_convert(b, dtype, on));
}

const qn_onnx_op qn_onnx_shape_ops[] = {
    { "Shape", NULL, 1, 0, import_shape },
    { "Size", NULL, 1, 0, import_size },
    { "Constant", NULL, 1, 0, import_constant },
    { "ConstantOfShape", NULL, 9, 0, import_constant_of_shape },
    { "Range", NULL, 11, 0, import_range },
    { "EyeLike", NULL, 9, 0, import_eye_like },
    { 0 },
};
