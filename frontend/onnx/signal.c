/* Signals: windows, Fourier transforms (as products with matrices), mel weights. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

static const double pi = 3.14159265358979323846;

/* Transforms of up to so many elements are one product; longer ones are two shorter transforms, where the length is a product. */
#define SHORT_LENGTH 1024
/* Longest transform that is one product: its matrix has the square of it. */
#define MAX_LENGTH 8192
/* Longest transform. */
#define MAX_SPLIT ((int64_t)1 << 22)

static bool float_dtype(qn_onnx_node *n, const char *attr, qn_dtype *out)
{
    int64_t elem = qn_onnx_attr_int(n, attr, QN_ONNX_FLOAT);
    *out = elem > 0 && elem < QN_ONNX_N_ELEMS ? qn_onnx_elem_dtype((int)elem) : QUERN_INVALID_DTYPE;
    if (*out == QUERN_INVALID_DTYPE)
        qn_onnx_unsupported(n, "attribute %s is not supported", attr);
    return *out != QUERN_INVALID_DTYPE;
}

/* ---- windows: a0 - a1 cos(2 pi i / n) + a2 cos(4 pi i / n) ---- */

static void import_window(qn_onnx_node *n)
{
    static const struct {
        const char *name;
        double a[3];
    } windows[] = { { "HannWindow", { 0.5, 0.5, 0 } },
                    { "HammingWindow", { 25.0 / 46, 21.0 / 46, 0 } },
                    { "BlackmanWindow", { 0.42, 0.5, 0.08 } } };
    qn_builder *b = &n->b;
    qn_dim size;
    qn_dtype dtype;
    int count, kind = 0;
    if (!qn_onnx_in_dims(n, 0, 1, &size, &count) || !float_dtype(n, "output_datatype", &dtype))
        return;
    if (count != 1 || size->max < 0) {
        qn_onnx_malformed(n, "the size must be one number that is not negative");
        return;
    }
    while (strcmp(windows[kind].name, n->proto->op_type))
        kind++;
    const double *a = windows[kind].a;
    qn_type type = qn_type_make(n->im->module, QUERN_F64, 1, &size);
    qn_value *length = qn_b_convert(b, QUERN_F64, qn_b_dim_value(b, QUERN_I64, size));
    if (!qn_onnx_attr_int(n, "periodic", 1))
        length = add_number(b, length, -1);
    qn_value *angle = divide(b, mul_number(b, qn_b_iota(b, &type, 0), 2 * pi), length);
    qn_value *y = add_number(b, mul_number(b, qn_b_unary(b, QN_OP_COS, angle), -a[1]), a[0]);
    if (a[2] != 0)
        y = add(b, y, mul_number(b, qn_b_unary(b, QN_OP_COS, mul_number(b, angle, 2)), a[2]));
    qn_onnx_out(n, 0, y ? qn_b_convert(b, dtype, y) : NULL);
}

/* ---- Fourier transforms ---- */

/* cos or sin of sign * 2 pi j k / n times scale, [rows, columns]. */
static qn_value *wave_matrix(qn_onnx_node *n, qn_dtype dtype, int64_t length, int64_t rows, int64_t columns,
                             bool sine, double sign, double scale)
{
    double *data = QN_NEW_ARRAY(n->im->arena, double, rows *columns);
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = 0; k < columns; k++) {
            double angle = sign * 2 * pi * (double)(j * k % length) / (double)length;
            data[j * columns + k] = scale * (sine ? sin(angle) : cos(angle));
        }
    int64_t dims[2] = { rows, columns };
    return qn_b_convert(&n->b, dtype,
                        qn_b_constant(&n->b, qn_onnx_tensor_of(n->im, QUERN_F64, 2, dims, data)));
}

/* The larger of two factors, as near to each other as can be, of the length of a transform that is split; 1: it isn't. */
static int64_t split_of(int64_t length)
{
    enum { LEAST_FACTOR = 4 };
    int64_t factor = 1;
    for (int64_t k = 2; k * k <= length && length > SHORT_LENGTH; k++)
        if (length % k == 0)
            factor = k;
    return factor < LEAST_FACTOR ? 1 : length / factor;
}

/* Is there a way to transform so many elements? */
static bool can_transform(int64_t length)
{
    const int64_t large = split_of(length);
    return large > 1 ? length <= MAX_SPLIT && can_transform(large) && can_transform(length / large)
                     : length <= MAX_LENGTH;
}

static qn_value *swap_last(qn_builder *b, qn_value *x, int axis)
{
    int64_t perm[QN_MAX_RANK];
    if (!x)
        return NULL;
    int last = x->type.rank - 1;
    for (int i = 0; i <= last; i++)
        perm[i] = i == axis ? last : i == last ? axis : i;
    return qn_b_transpose(b, x, perm);
}

static void transform_split(qn_onnx_node *n, qn_value *re, qn_value *im, int64_t in, int64_t length,
                            int64_t out, bool inverse, qn_value **out_re, qn_value **out_im);

/* Transform of the last axis of re + i im (im may be NULL), of `in` elements as if it had `length`; the first `out`
 * results. */
static void transform(qn_onnx_node *n, qn_value *re, qn_value *im, int64_t in, int64_t length, int64_t out,
                      bool inverse, qn_value **out_re, qn_value **out_im)
{
    qn_builder *b = &n->b;
    double sign = inverse ? 1 : -1, scale = inverse ? 1.0 / (double)length : 1;
    *out_re = *out_im = NULL;
    if (!re)
        return;
    if (split_of(length) > 1 && re->type.rank < QN_MAX_RANK) {
        transform_split(n, re, im, in, length, out, inverse, out_re, out_im);
        return;
    }
    qn_dtype dtype = re->type.dtype;
    qn_value *c = wave_matrix(n, dtype, length, out, in, false, sign, scale);
    qn_value *s = wave_matrix(n, dtype, length, out, in, true, sign, scale);
    *out_re = times_transposed(b, re, c);
    *out_im = times_transposed(b, re, s);
    if (im) {
        *out_re = sub(b, *out_re, times_transposed(b, im, s));
        *out_im = add(b, *out_im, times_transposed(b, im, c));
    }
}

/* (re, im) times the waves w_length^(j k), [rows, columns]. */
static void turn(qn_onnx_node *n, int64_t length, int64_t rows, int64_t columns, double sign, qn_value **re,
                 qn_value **im)
{
    qn_builder *b = &n->b;
    if (!*re || !*im)
        return;
    qn_value *c = wave_matrix(n, (*re)->type.dtype, length, rows, columns, false, sign, 1);
    qn_value *s = wave_matrix(n, (*re)->type.dtype, length, rows, columns, true, sign, 1);
    qn_value *turned = sub(b, mul(b, *re, c), mul(b, *im, s));
    *im = add(b, mul(b, *re, s), mul(b, *im, c));
    *re = turned;
}

/* With length = p q, element j1 q + j2 as [j1, j2] and result k1 + p k2 as [k2, k1] (Cooley and Tukey): transforms over j1,
 * times w_length^(j2 k1), transforms over j2. */
static void transform_split(qn_onnx_node *n, qn_value *re, qn_value *im, int64_t in, int64_t length,
                            int64_t out, bool inverse, qn_value **out_re, qn_value **out_im)
{
    qn_builder *b = &n->b;
    const int64_t p = split_of(length), q = length / p;
    const int rank = re->type.rank;
    qn_value *part[2] = { re, im }, *made[2];
    qn_dim dims[QN_MAX_RANK];
    for (int i = 0; i < 2; i++) {
        qn_dim low[QN_MAX_RANK], high[QN_MAX_RANK];
        for (int k = 0; k < rank; k++) {
            low[k] = qn_onnx_dim(n, 0);
            high[k] = qn_onnx_dim(n, k == rank - 1 ? length - in : 0);
            dims[k] = re->type.dims[k];
        }
        dims[rank - 1] = qn_onnx_dim(n, p);
        dims[rank] = qn_onnx_dim(n, q);
        if (part[i] && in < length)
            part[i] = qn_b_pad(b, part[i], qn_b_scalar(b, re->type.dtype, 0), low, high, NULL);
        part[i] = part[i] ? swap_last(b, qn_b_reshape(b, part[i], rank + 1, dims), rank - 1) : NULL;
    }
    transform(n, part[0], part[1], p, p, p, inverse, &made[0], &made[1]); /* [.., j2, k1] */
    turn(n, length, q, p, inverse ? 1 : -1, &made[0], &made[1]);
    transform(n, swap_last(b, made[0], rank - 1), swap_last(b, made[1], rank - 1), q, q, q, inverse, &part[0],
              &part[1]);
    dims[rank - 1] = qn_onnx_dim(n, length);
    for (int i = 0; i < 2; i++) {
        qn_value *y = swap_last(b, part[i], rank - 1); /* [.., k2, k1] */
        y = y ? qn_b_reshape(b, y, rank, dims) : NULL;
        *(i ? out_im : out_re) =
            y && out < length ? qn_b_slice_axis(b, y, rank - 1, qn_onnx_dim(n, 0), qn_onnx_dim(n, out)) : y;
    }
}

/* Real or imaginary part of x [.., 1 or 2]; NULL for the imaginary part of a real one. */
static qn_value *part_of(qn_onnx_node *n, qn_value *x, int which)
{
    qn_dims *t = n->im->dims;
    int last = x->type.rank - 1;
    if (which == 1 && qn_dim_is(x->type.dims[last], 1))
        return NULL;
    return qn_b_squeeze(
        &n->b, qn_b_slice_axis(&n->b, x, last, qn_dim_const(t, which), qn_dim_const(t, which + 1)), last);
}

static bool is_complex(const qn_type *x)
{
    return x->rank >= 2 && (qn_dim_is(x->dims[x->rank - 1], 1) || qn_dim_is(x->dims[x->rank - 1], 2));
}

static void import_dft(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = qn_onnx_in(n, 0);
    int64_t axis_given = n->opset < 20 ? qn_onnx_attr_int(n, "axis", 1) : -2, length;
    bool inverse = qn_onnx_attr_int(n, "inverse", 0) != 0,
         one_sided = qn_onnx_attr_int(n, "onesided", 0) != 0;
    int axis;
    if (!x || (n->opset >= 20 && qn_onnx_has(n, 2) && !qn_onnx_in_int(n, 2, &axis_given)) ||
        !qn_onnx_axis(n, axis_given, x->type.rank, &axis))
        return;
    if (!is_complex(&x->type) || axis == x->type.rank - 1 || !qn_dim_is_const(x->type.dims[axis])) {
        qn_onnx_needs_dim(n, x->type.dims[x->type.rank - 1]);
        qn_onnx_needs_dim(n, x->type.dims[axis]);
        qn_onnx_unsupported(
            n, "the last axis must have 1 or 2 elements, and the transformed one a known number");
        return;
    }
    int64_t in = x->type.dims[axis]->value;
    length = inverse && one_sided ? 2 * (in - 1) : in;
    if (qn_onnx_has(n, 1) && !qn_onnx_in_int(n, 1, &length))
        return;
    if (length < 1 || in < 1 || in > MAX_SPLIT || !can_transform(length)) {
        qn_onnx_unsupported(
            n,
            "a transform of %lld elements; 1 to %d are supported, and products of factors up to that to %lld",
            (long long)length, MAX_LENGTH, (long long)MAX_SPLIT);
        return;
    }
    qn_value *re = swap_last(b, part_of(n, x, 0), axis), *im = swap_last(b, part_of(n, x, 1), axis), *y[2];
    if (!re)
        return;
    /* of a longer signal only the first elements count; a shorter one is as if zeros followed */
    qn_dims *t = n->im->dims;
    int64_t used = in < length ? in : length;
    if (inverse && one_sided && used > length / 2 + 1)
        used = length / 2 + 1;
    if (used < in) {
        qn_dim zero = qn_dim_const(t, 0), limit = qn_dim_const(t, used);
        re = qn_b_slice_axis(b, re, re->type.rank - 1, zero, limit);
        im = im ? qn_b_slice_axis(b, im, im->type.rank - 1, zero, limit) : NULL;
        if (!re)
            return;
    }
    if (inverse && one_sided) { /* the other half is the conjugate: twice the real part, but for the middle */
        double *twice = QN_NEW_ARRAY(n->im->arena, double, used);
        for (int64_t k = 0; k < used; k++)
            twice[k] = k == 0 || 2 * k == length ? 1 : 2;
        qn_value *factor = qn_b_constant(b, qn_onnx_tensor_of(n->im, QUERN_F64, 1, &used, twice));
        factor = qn_b_convert(b, re->type.dtype, factor);
        re = mul(b, re, factor);
        im = im ? mul(b, im, factor) : NULL;
        transform(n, re, im, used, length, length, true, &y[0], &y[1]);
        qn_onnx_out(n, 0, qn_b_expand_dims(b, swap_last(b, y[0], axis), x->type.rank - 1));
        return;
    }
    transform(n, re, im, used, length, one_sided ? length / 2 + 1 : length, inverse, &y[0], &y[1]);
    for (int i = 0; i < 2; i++)
        y[i] = qn_b_expand_dims(b, swap_last(b, y[i], axis), x->type.rank - 1);
    qn_onnx_out(n, 0, qn_b_concatenate(b, 2, y, x->type.rank - 1));
}

/* Frames of the signal, `step` apart, windowed and transformed: [B, frames, bins, 2]. PyTorch writes a real signal without its last
 * axis. */
static void import_stft(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *window = qn_onnx_in_opt(n, 2), *y[2];
    int64_t step, length = 0;
    bool one_sided = qn_onnx_attr_int(n, "onesided", 1) != 0;
    if (!x || !qn_onnx_in_int(n, 1, &step) || (qn_onnx_has(n, 3) && !qn_onnx_in_int(n, 3, &length)) ||
        !qn_onnx_ok(n))
        return;
    if (x->type.rank == 2)
        x = qn_b_expand_dims(b, x, 2);
    if (x->type.rank != 3 || !is_complex(&x->type) || (window && window->type.rank != 1)) {
        if (x->type.rank == 3)
            qn_onnx_needs_dim(n, x->type.dims[2]);
        qn_onnx_malformed(
            n, "the signal must be [batch, length] or [batch, length, 1 or 2], the window a vector");
        return;
    }
    qn_dim samples = window ? window->type.dims[0] : x->type.dims[1];
    if (!qn_onnx_has(n, 3) && qn_dim_is_const(samples))
        length = samples->value;
    if (step < 1 || length < 1 || length > MAX_LENGTH) {
        if (!qn_onnx_has(n, 3))
            qn_onnx_needs_dim(n, samples);
        qn_onnx_unsupported(n, "frames of %lld elements, %lld apart; 1 to %d are supported",
                            (long long)length, (long long)step, MAX_LENGTH);
        return;
    }
    qn_dim room = qn_dim_sub(t, x->type.dims[1], qn_dim_const(t, length));
    qn_dim grid[2] = { qn_dim_add(t, qn_dim_floordiv(t, room, qn_dim_const(t, step)), qn_dim_const(t, 1)),
                       qn_dim_const(t, length) };
    qn_type type = qn_type_make(n->im->module, QUERN_I64, 2, grid);
    qn_value *index = add(b, mul_number(b, qn_b_iota(b, &type, 0), (double)step), qn_b_iota(b, &type, 1));
    qn_value *parts[2];
    for (int i = 0; i < 2; i++) {
        qn_value *p = part_of(n, x, i);
        parts[i] = p ? qn_b_gather(b, p, index, 1) : NULL; /* [B, frames, length] */
        if (parts[i] && window)
            parts[i] = mul(b, parts[i], window);
    }
    if (!parts[0])
        return;
    transform(n, parts[0], parts[1], length, length, one_sided ? length / 2 + 1 : length, false, &y[0],
              &y[1]);
    for (int i = 0; i < 2; i++)
        y[i] = qn_b_expand_dims(b, y[i], 3);
    qn_onnx_out(n, 0, qn_b_concatenate(b, 2, y, 3));
}

/* ---- MelWeightMatrix: a constant ---- */

static void import_mel(qn_onnx_node *n)
{
    int64_t bands, length, rate;
    double low, high;
    qn_dtype dtype;
    int count;
    if (!qn_onnx_in_int(n, 0, &bands) || !qn_onnx_in_int(n, 1, &length) || !qn_onnx_in_int(n, 2, &rate) ||
        !qn_onnx_in_floats(n, 3, 1, &low, &count) || !qn_onnx_in_floats(n, 4, 1, &high, &count) ||
        !float_dtype(n, "output_datatype", &dtype))
        return;
    if (bands < 1 || bands > 65536 || length < 1 || length > (1 << 24) || rate < 1 ||
        bands * (length / 2 + 1) > (1 << 26)) {
        qn_onnx_malformed(n, "bands, length and rate must be positive and not too large");
        return;
    }
    int64_t bins = length / 2 + 1, dims[2] = { bins, bands };
    double mel_low = 2595 * log10(1 + low / 700), mel_high = 2595 * log10(1 + high / 700);
    double step = (mel_high - mel_low) / (double)(bands + 2);
    int64_t *edge = QN_NEW_ARRAY(n->im->arena, int64_t, bands + 2);
    double *data = QN_NEW_ARRAY(n->im->arena, double, bins *bands);
    for (int64_t i = 0; i < bands + 2; i++) {
        double hertz = 700 * (pow(10, (mel_low + (double)i * step) / 2595) - 1);
        double at = floor((double)(length + 1) * hertz / (double)rate);
        edge[i] = at<0 ? 0 : at>(double)(bins - 1) ? bins - 1 : (int64_t)at;
    }
    for (int64_t i = 0; i < bands; i++) {
        int64_t left = edge[i], centre = edge[i + 1], right = edge[i + 2];
        if (left == centre)
            data[centre * bands + i] = 1;
        for (int64_t k = left; k <= centre && left < centre; k++)
            data[k * bands + i] = (double)(k - left) / (double)(centre - left);
        for (int64_t k = centre; k < right; k++)
            data[k * bands + i] = (double)(right - k) / (double)(right - centre);
    }
    const qn_tensor *t = qn_onnx_tensor_of(n->im, QUERN_F64, 2, dims, data);
    qn_onnx_out(n, 0, qn_b_convert(&n->b, dtype, qn_b_constant(&n->b, t)));
}

const qn_onnx_op qn_onnx_signal_ops[] = {
    { "HannWindow", NULL, 17, 0, import_window },
    { "HammingWindow", NULL, 17, 0, import_window },
    { "BlackmanWindow", NULL, 17, 0, import_window },
    { "DFT", NULL, 17, 0, import_dft },
    { "STFT", NULL, 17, 0, import_stft },
    { "MelWeightMatrix", NULL, 17, 0, import_mel },
    { 0 },
};
