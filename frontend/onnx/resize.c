/* Resize and Upsample: one axis after the other, each a weighted sum of gathers.
 *
 *   known extent      indices and weights are constants
 *   symbolic or large they are computed in the graph, from the position along the axis
 *   nearest, by a whole factor: a broadcast along a new axis
 *
 * The position of output i in the input lies in (base, base + 1]; tap k reads element base + first + k, at the edge the
 * nearest there is. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

typedef enum transform {
    HALF_PIXEL,
    HALF_PIXEL_SYMMETRIC,
    PYTORCH_HALF_PIXEL,
    ALIGN_CORNERS,
    ASYMMETRIC,
    HALF_PIXEL_FOR_NEAREST, /* of opset 11 */
    CROP,
    N_TRANSFORMS
} transform;

typedef enum rounding { PREFER_FLOOR, PREFER_CEIL, FLOOR, CEIL, N_ROUNDINGS } rounding;
typedef enum filter { NEAREST, LINEAR, CUBIC, N_FILTERS } filter;

static const char *const transform_names[] = { "half_pixel",         "half_pixel_symmetric",
                                               "pytorch_half_pixel", "align_corners",
                                               "asymmetric",         "tf_half_pixel_for_nn",
                                               "tf_crop_and_resize" };
static const char *const rounding_names[] = { "round_prefer_floor", "round_prefer_ceil", "floor", "ceil" };
static const char *const filter_names[] = { "nearest", "linear", "cubic" };

typedef struct resize {
    qn_onnx_node *n;
    transform transform;
    rounding rounding;
    filter filter;
    double cubic_a, extrapolation;
    bool antialias, exclude_outside;
} resize;

/* One axis. */
typedef struct axis_plan {
    int axis;
    qn_dim in, out;
    double scale;  /* 0: out / in, of symbols */
    double roi[2]; /* of tf_crop_and_resize */
} axis_plan;

static bool read_word(qn_onnx_node *n, const char *attr, const char *const *words, int n_words, int fallback,
                      int *out)
{
    const char *word = qn_onnx_attr_string(n, attr, words[fallback]);
    for (*out = 0; *out < n_words; ++*out)
        if (!strcmp(words[*out], word))
            return true;
    qn_onnx_unsupported(n, "attribute %s = %s", attr, word);
    return false;
}

/* ---- constant tables ---- */

/* Position of output i in the input. */
static double position(const resize *r, const axis_plan *p, double i)
{
    double in = (double)p->in->value, scale = p->scale, out = scale * in; /* out: before rounding down */
    switch (r->transform) {
    case ALIGN_CORNERS: return out == 1 ? 0 : i * (in - 1) / (out - 1);
    case ASYMMETRIC: return i / scale;
    case HALF_PIXEL_FOR_NEAREST: return (i + 0.5) / scale;
    case PYTORCH_HALF_PIXEL: return out == 1 ? -0.5 : (i + 0.5) / scale - 0.5;
    case HALF_PIXEL_SYMMETRIC: return in / 2 * (1 - (double)p->out->value / out) + (i + 0.5) / scale - 0.5;
    case CROP: {
        double step = out == 1 ? (p->roi[1] - p->roi[0]) * (in - 1) / 2
                               : i * (p->roi[1] - p->roi[0]) * (in - 1) / (out - 1);
        return step + p->roi[0] * (in - 1);
    }
    default: return (i + 0.5) / scale - 0.5;
    }
}

static double cubic(double a, double x)
{
    x = fabs(x);
    if (x <= 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

static double nearest_weight(rounding mode, double ratio, int tap)
{
    bool second = ratio == 1;
    if (ratio != 1)
        second =
            mode == CEIL || (mode == PREFER_FLOOR && ratio > 0.5) || (mode == PREFER_CEIL && ratio >= 0.5);
    return tap == second;
}

enum { MAX_TAPS = 1 << 12 };

/* Taps of a filter for a scale, and the offset of the first. Of scales that are too small, some more than MAX_TAPS. */
static int taps_of(const resize *r, double scale, int *out_first)
{
    double reach = r->filter == CUBIC ? 2 : 1;
    if (r->antialias && scale < 1 && r->filter != NEAREST)
        reach = fmin(reach / scale, MAX_TAPS);
    *out_first = (int)floor(-reach) + 1;
    return 2 - 2 * *out_first;
}

static double tap_weight(const resize *r, double scale, double ratio, int offset)
{
    double shrink = r->antialias && scale < 1 ? scale : 1, x = (offset - ratio) * shrink;
    if (r->filter == NEAREST)
        return nearest_weight(r->rounding, ratio, offset);
    return r->filter == CUBIC ? cubic(r->cubic_a, x) : fmax(0, 1 - fabs(x));
}

/* Indices and weights of `taps` taps per output, tap by tap; inside: is the position within the input? */
static void fill_tables(const resize *r, const axis_plan *p, int first, int taps, int64_t *index,
                        double *weight, bool *inside)
{
    int64_t in = p->in->value, out = p->out->value;
    for (int64_t i = 0; i < out; i++) {
        double x = position(r, p, (double)i), base = ceil(x) - 1, sum = 0;
        inside[i] = r->transform != CROP || (x >= 0 && x <= (double)in - 1);
        base = inside[i] ? base : 0;
        for (int k = 0; k < taps; k++) {
            double at = base + first + k, w = tap_weight(r, p->scale, inside[i] ? x - base : 1, first + k);
            if (r->exclude_outside && (at < 0 || at > (double)in - 1))
                w = 0;
            at = at<0 ? 0 : at>(double) in - 1 ? (double)in - 1 : at;
            index[k * out + i] = (int64_t)at;
            weight[k * out + i] = w;
            sum += w;
        }
        for (int k = 0; k < taps && (r->antialias || r->exclude_outside) && sum != 0; k++)
            weight[k * out + i] /= sum;
    }
}

/* Weights along an axis, in x's dtype. */
static qn_value *along_axis(qn_onnx_node *n, qn_value *x, int axis, int64_t count, const double *values)
{
    int64_t dims[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++)
        dims[i] = i == axis ? count : 1;
    const qn_tensor *t = qn_onnx_tensor_of(n->im, QUERN_F64, x->type.rank, dims, values);
    return qn_b_convert(&n->b, x->type.dtype, qn_b_constant(&n->b, t));
}

/* Each element `factor` times. */
static qn_value *repeat(qn_onnx_node *n, qn_value *x, int axis, int64_t factor)
{
    qn_dim split[QN_MAX_RANK + 1], merged[QN_MAX_RANK];
    int64_t axes[QN_MAX_RANK];
    int rank = x->type.rank;
    for (int i = 0; i < rank; i++) {
        merged[i] = split[i + (i > axis)] = x->type.dims[i];
        axes[i] = i + (i > axis);
    }
    split[axis + 1] = qn_dim_const(n->im->dims, factor);
    merged[axis] = qn_dim_mul(n->im->dims, x->type.dims[axis], split[axis + 1]);
    return qn_b_reshape(&n->b, qn_b_broadcast(&n->b, x, rank + 1, split, axes), rank, merged);
}

/* Is it nearest by a whole factor, output i reading element i / factor? Then the factor, else 0. */
static int64_t whole_factor(const resize *r, const axis_plan *p)
{
    if (r->filter != NEAREST || p->scale < 2 || p->scale > 64 || p->scale != floor(p->scale) ||
        r->transform == CROP || r->transform == ALIGN_CORNERS || r->transform == HALF_PIXEL_FOR_NEAREST)
        return 0;
    for (int64_t i = 0; i < (int64_t)p->scale; i++) { /* the pattern repeats */
        double x = (r->transform == ASYMMETRIC ? (double)i : i + 0.5) / p->scale -
                   (r->transform == ASYMMETRIC ? 0 : 0.5);
        double base = ceil(x) - 1, ratio = x - base;
        double at = base + (nearest_weight(r->rounding, ratio, 1) != 0);
        if ((at < 0 ? 0 : at) != 0)
            return 0;
    }
    return (int64_t)p->scale;
}

/* Sums of weighted windows of taps, as one reduction: x as [before, in, after], its windows as [before, out, taps, after]. */
static qn_value *sum_of_windows(qn_onnx_node *n, const axis_plan *p, qn_value *x, int taps,
                                const int64_t *index, const double *weight)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    const int rank = x->type.rank;
    const int64_t out = p->out->value, window = 2;
    qn_dim flat[3] = { qn_dim_const(t, 1), p->in, qn_dim_const(t, 1) }, dims[QN_MAX_RANK];
    for (int i = 0; i < rank; i++) {
        dims[i] = i == p->axis ? p->out : x->type.dims[i];
        if (i != p->axis)
            flat[2 * (i > p->axis)] = qn_dim_mul(t, flat[2 * (i > p->axis)], dims[i]);
    }
    int64_t *at = QN_NEW_ARRAY(n->im->arena, int64_t, taps *out);
    double *w = QN_NEW_ARRAY(n->im->arena, double, taps *out);
    for (int64_t i = 0; i < out; i++)
        for (int k = 0; k < taps; k++) {
            at[i * taps + k] = index[k * out + i];
            w[i * taps + k] = weight[k * out + i];
        }
    const qn_tensor *indices = qn_onnx_tensor_of(n->im, QUERN_I64, 2, (int64_t[]){ out, taps }, at);
    const qn_tensor *weights = qn_onnx_tensor_of(n->im, QUERN_F64, 3, (int64_t[]){ out, taps, 1 }, w);
    qn_value *y = qn_b_gather(b, qn_b_reshape(b, x, 3, flat), qn_b_constant(b, indices), 1);
    y = mul(b, y, qn_b_convert(b, x->type.dtype, qn_b_constant(b, weights)));
    y = qn_b_reduce(b, QN_SUM, y, 1, &window, false);
    qn_arena_release(n->im->arena, at, sizeof *at * (size_t)(taps * out));
    qn_arena_release(n->im->arena, w, sizeof *w * (size_t)(taps * out));
    return qn_b_reshape(b, y, rank, dims);
}

/* Sum over taps of weight times gather; of many taps one reduction, of fewer in f16 and bf16, where each addition rounds. */
static qn_value *apply_tables(resize *r, const axis_plan *p, qn_value *x, qn_value **inside_mask)
{
    enum { MAX_GATHERS = 16, MAX_NARROW = 4, MAX_EXTENT = 1 << 24, MAX_WEIGHTS = 1 << 25 };
    qn_onnx_node *n = r->n;
    qn_builder *b = &n->b;
    int first, taps = taps_of(r, p->scale, &first);
    int64_t in = p->in->value, out = p->out->value;
    if (taps > MAX_TAPS || out > MAX_EXTENT || in > MAX_EXTENT || in < 1 || out * taps > MAX_WEIGHTS) {
        qn_onnx_unsupported(n, "resizing %lld elements to %lld with %d taps", (long long)in, (long long)out,
                            taps);
        return NULL;
    }
    int64_t *index = QN_NEW_ARRAY(n->im->arena, int64_t, taps *out);
    double *weight = QN_NEW_ARRAY(n->im->arena, double, taps *out);
    bool *inside = QN_NEW_ARRAY(n->im->arena, bool, out), all_inside = true;
    fill_tables(r, p, first, taps, index, weight, inside);
    for (int64_t i = 0; i < out; i++)
        all_inside &= inside[i];
    if (!all_inside) {
        int64_t dims[QN_MAX_RANK];
        for (int i = 0; i < x->type.rank; i++)
            dims[i] = i == p->axis ? out : 1;
        qn_value *mask = qn_b_constant(b, qn_onnx_tensor_of(n->im, QUERN_BOOL, x->type.rank, dims, inside));
        *inside_mask = *inside_mask ? and_also(b, *inside_mask, mask) : mask;
    }
    qn_value *y = NULL;
    if (r->filter == NEAREST) {
        for (int64_t i = 0; i < out; i++)
            index[i] = weight[i] != 0 ? index[i] : index[out + i];
        y = qn_b_gather(b, x, qn_b_ints(b, (int)out, index), p->axis);
    } else if (taps > (qn_dtype_bytes(x->type.dtype) < 4 ? MAX_NARROW : MAX_GATHERS)) {
        y = sum_of_windows(n, p, x, taps, index, weight);
    } else {
        for (int k = 0; k < taps; k++) {
            qn_value *row = qn_b_gather(b, x, qn_b_ints(b, (int)out, index + k * out), p->axis);
            row = mul(b, row, along_axis(n, x, p->axis, out, weight + k * out));
            y = y ? add(b, y, row) : row;
        }
    }
    qn_arena_release(n->im->arena, index, sizeof *index * (size_t)(taps * out));
    qn_arena_release(n->im->arena, weight, sizeof *weight * (size_t)(taps * out));
    return y;
}

/* ---- tables in the graph ---- */

static qn_value *real(qn_builder *b, qn_dim d)
{
    return qn_b_convert(b, QUERN_F64, qn_b_dim_value(b, QUERN_I64, d));
}

/* As position(), of all outputs at once: f64 [out]. */
static qn_value *positions(resize *r, const axis_plan *p)
{
    qn_builder *b = &r->n->b;
    qn_type type = qn_type_make(r->n->im->module, QUERN_F64, 1, &p->out);
    qn_value *i = qn_b_iota(b, &type, 0), *in = real(b, p->in), *out = real(b, p->out), *kept = out;
    qn_value *scale = p->scale != 0 ? qn_b_scalar(b, QUERN_F64, p->scale) : divide(b, out, in);
    if (p->scale != 0) /* before rounding down */
        out = mul(b, scale, in);
    qn_value *half = add_number(b, divide(b, add_number(b, i, 0.5), scale), -0.5);
    qn_value *single = compare_number(b, QN_EQ, out, 1);
    switch (r->transform) {
    case ALIGN_CORNERS:
        out = choose(b, single, qn_b_scalar(b, QUERN_F64, 2), out);
        return divide(b, mul(b, i, add_number(b, in, -1)), add_number(b, out, -1));
    case ASYMMETRIC: return divide(b, i, scale);
    case HALF_PIXEL_FOR_NEAREST: return add_number(b, half, 0.5);
    case PYTORCH_HALF_PIXEL: return choose(b, single, qn_b_scalar(b, QUERN_F64, -0.5), half);
    case HALF_PIXEL_SYMMETRIC:
        kept = divide(b, kept, out);
        return add(b, mul(b, mul_number(b, in, 0.5), add_number(b, negate(b, kept), 1)), half);
    default: return half;
    }
}

/* cubic() of distances below (inner) or above 1 */
static qn_value *cubic_of(qn_builder *b, double a, qn_value *x, bool inner)
{
    qn_value *y;
    if (inner) {
        y = add_number(b, mul_number(b, x, a + 2), -(a + 3));
        return add_number(b, mul(b, mul(b, y, x), x), 1);
    }
    y = add_number(b, mul_number(b, x, a), -5 * a);
    y = add_number(b, mul(b, y, x), 8 * a);
    return add_number(b, mul(b, y, x), -4 * a);
}

static qn_value *gather_clamped(resize *r, const axis_plan *p, qn_value *x, qn_value *at)
{
    qn_builder *b = &r->n->b;
    at = minimum(b, max_number(b, at, 0), add_number(b, real(b, p->in), -1));
    return at ? qn_b_gather(b, x, qn_b_convert(b, QUERN_I64, at), p->axis) : NULL;
}

static qn_value *compute_axis(resize *r, const axis_plan *p, qn_value *x)
{
    qn_onnx_node *n = r->n;
    qn_builder *b = &n->b;
    if (r->transform == CROP || r->antialias || r->exclude_outside) {
        qn_onnx_needs_dim(n, p->in);
        qn_onnx_needs_dim(n, p->out);
        qn_onnx_unsupported(n, "cropping, antialias and exclude_outside of symbolic dimensions");
        return NULL;
    }
    qn_value *at = positions(r, p);
    if (r->filter == NEAREST) {
        if (r->rounding == FLOOR)
            at = qn_b_unary(b, QN_OP_FLOOR, at);
        else if (r->rounding == CEIL)
            at = qn_b_unary(b, QN_OP_CEIL, at);
        else if (r->rounding == PREFER_CEIL)
            at = qn_b_unary(b, QN_OP_FLOOR, add_number(b, at, 0.5));
        else
            at = qn_b_unary(b, QN_OP_CEIL, add_number(b, at, -0.5));
        return gather_clamped(r, p, x, at);
    }
    qn_value *base = qn_b_unary(b, QN_OP_FLOOR, at), *ratio = sub(b, at, base),
             *rest = add_number(b, negate(b, ratio), 1), *y = NULL;
    int first = r->filter == CUBIC ? -1 : 0, taps = r->filter == CUBIC ? 4 : 2;
    for (int k = 0; k < taps; k++) {
        int offset = first + k;
        qn_value *near = offset <= 0 ? ratio : rest, *w; /* distance to the nearer side */
        if (r->filter == LINEAR)
            w = offset == 0 ? rest : ratio;
        else if (offset == 0 || offset == 1)
            w = cubic_of(b, r->cubic_a, near, true);
        else
            w = cubic_of(b, r->cubic_a, add_number(b, near, 1), false);
        qn_dim dims[QN_MAX_RANK];
        for (int i = 0; i < x->type.rank; i++)
            dims[i] = i == p->axis ? p->out : qn_dim_const(n->im->dims, 1);
        w = qn_b_reshape(b, w, x->type.rank, dims);
        qn_value *row = gather_clamped(r, p, x, add_number(b, base, offset));
        row = w ? mul(b, row, qn_b_convert(b, x->type.dtype, w)) : NULL;
        y = y ? add(b, y, row) : row;
    }
    return y;
}

/* ---- the operator ---- */

/* Can memory hold x as the axes are resized one after the other? Asked before tables are made. */
static bool fits(qn_onnx_node *n, const qn_type *x, int n_axes, const axis_plan *plans)
{
    int64_t dims[QN_MAX_RANK];
    for (int i = 0; i < x->rank; i++)
        dims[i] = x->dims[i]->min;
    for (int k = 0; k < n_axes; k++) {
        int64_t bytes = (int64_t)sizeof(double);
        bool none = false, overflow = false;
        dims[plans[k].axis] = plans[k].out->min;
        for (int i = 0; i < x->rank; i++) {
            none |= dims[i] <= 0;
            overflow |= __builtin_mul_overflow(bytes, dims[i], &bytes);
        }
        if (overflow && !none) {
            qn_onnx_malformed(n, "the result would be larger than any memory");
            return false;
        }
    }
    return true;
}

/* Is it worth constants of all its indices and weights? Where the graph can't compute them, always. */
static bool has_tables(const resize *r, const axis_plan *p)
{
    enum { MAX_COUNT = 1 << 19 };
    return qn_dim_is_const(p->in) && qn_dim_is_const(p->out) &&
           (p->out->value <= MAX_COUNT || r->transform == CROP || r->antialias || r->exclude_outside);
}

/* NULL: no extent. */
static qn_dim whole_extent(qn_onnx_node *n, double extent)
{
    return extent >= 0 && extent < (double)QN_DIM_MAX_VALUE ? qn_dim_const(n->im->dims, (int64_t)extent)
                                                            : NULL;
}

/* Extent times scale, rounded down, in float32 as shape inference has it: 24 times the float below 5/3 is 40. Symbolic extents need
 * a scale that is a fraction of small numbers, above it or at most 2^-25 below: their products round to what the fraction's are. */
static qn_dim scaled_extent(qn_onnx_node *n, qn_dim in, double scale)
{
    qn_dims *t = n->im->dims;
    if (qn_dim_is_const(in))
        return whole_extent(n, (double)floorf((float)in->value * (float)scale));
    for (int64_t q = 1; q <= 64; q++) {
        const double p = round(scale * (double)q), fraction = p / (double)q;
        if ((float)fraction == (float)scale && p < 4096 && scale >= fraction * (1 - 0x1p-25))
            return qn_dim_floordiv(t, qn_dim_mul(t, in, qn_dim_const(t, (int64_t)p)), qn_dim_const(t, q));
    }
    return NULL;
}

/* Scales and extents of the listed axes. */
static bool read_extents(resize *r, const qn_type *x, int n_axes, axis_plan *plans)
{
    qn_onnx_node *n = r->n;
    double scales[QN_MAX_RANK];
    qn_dim sizes[QN_MAX_RANK];
    int count = 0, scales_at = n->opset < 11 ? 1 : 2;
    bool by_sizes = n->opset >= 11 && qn_onnx_has(n, 3);
    if (by_sizes) {
        if (!qn_onnx_in_extents(n, 3, QN_MAX_RANK, NULL, sizes, &count))
            return false;
    } else if (n->opset < 9) {
        const float *given = qn_onnx_attr_floats(n, "scales", &count);
        for (int i = 0; i < count && i < QN_MAX_RANK; i++)
            scales[i] = (double)given[i];
    } else if (!qn_onnx_in_floats(n, scales_at, QN_MAX_RANK, scales, &count)) {
        return false;
    }
    if (count != n_axes) {
        qn_onnx_malformed(n, "there must be one scale or size per axis, and there are %d for %d", count,
                          n_axes);
        return false;
    }
    double keep = 0;
    const char *policy = qn_onnx_attr_string(n, "keep_aspect_ratio_policy", "stretch");
    bool larger = !strcmp(policy, "not_smaller"), smaller = !strcmp(policy, "not_larger");
    for (int i = 0; i < n_axes && by_sizes && (larger || smaller); i++) {
        qn_dim in = x->dims[plans[i].axis];
        if (!qn_dim_is_const(in) || !qn_dim_is_const(sizes[i])) {
            qn_onnx_needs_dim(n, in);
            qn_onnx_needs_dim(n, sizes[i]);
            qn_onnx_unsupported(n, "keep_aspect_ratio_policy of symbolic dimensions");
            return false;
        }
        double scale = (double)sizes[i]->value / (double)in->value;
        keep = i == 0 ? scale : larger ? fmax(keep, scale) : fmin(keep, scale);
    }
    for (int i = 0; i < n_axes; i++) {
        axis_plan *p = &plans[i];
        p->in = x->dims[p->axis];
        if (!by_sizes) {
            p->scale = scales[i];
            p->out = scales[i] > 0 ? scaled_extent(n, p->in, scales[i]) : NULL;
        } else if (larger || smaller) {
            p->scale = keep;
            p->out = keep > 0 ? whole_extent(n, floor(keep * (double)p->in->value + 0.5)) : NULL;
        } else {
            p->out = sizes[i];
            bool known = qn_dim_is_const(p->in) && qn_dim_is_const(p->out);
            p->scale = known ? (double)p->out->value / (double)p->in->value : p->in == p->out ? 1 : 0;
        }
        if (!p->out || p->out->max < 1) {
            qn_onnx_needs_dim(n, p->in);
            qn_onnx_unsupported(n, "axis %d cannot be resized to that", p->axis);
            return false;
        }
    }
    return true;
}

/* Start and end of each axis's region, relative to its extent. */
static bool read_roi(resize *r, int n_axes, axis_plan *plans)
{
    double roi[2 * QN_MAX_RANK];
    int count;
    if (r->transform != CROP)
        return true;
    if (!qn_onnx_in_floats(r->n, 1, 2 * QN_MAX_RANK, roi, &count))
        return false;
    if (count != 2 * n_axes) {
        qn_onnx_malformed(r->n, "the region must have two numbers per axis");
        return false;
    }
    for (int i = 0; i < n_axes; i++) {
        plans[i].roi[0] = roi[i];
        plans[i].roi[1] = roi[i + n_axes];
    }
    return true;
}

static void import_resize(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    resize r = { .n = n, .transform = ASYMMETRIC, .rounding = FLOOR };
    qn_value *x = qn_onnx_in(n, 0), *inside = NULL;
    int mode, word;
    if (!x)
        return;
    const char *name = qn_onnx_attr_string(n, "mode", "nearest");
    if (!strcmp(name, "bilinear") || !strcmp(name, "trilinear")) /* Upsample of old */
        mode = LINEAR;
    else if (!read_word(n, "mode", filter_names, N_FILTERS, NEAREST, &mode))
        return;
    r.filter = (filter)mode;
    if (n->opset >= 11) {
        if (!read_word(n, "coordinate_transformation_mode", transform_names, N_TRANSFORMS, HALF_PIXEL, &word))
            return;
        r.transform = (transform)word;
        if (!read_word(n, "nearest_mode", rounding_names, N_ROUNDINGS, PREFER_FLOOR, &word))
            return;
        r.rounding = (rounding)word;
    }
    r.cubic_a = qn_onnx_attr_float(n, "cubic_coeff_a", -0.75);
    r.extrapolation = qn_onnx_attr_float(n, "extrapolation_value", 0);
    r.antialias = qn_onnx_attr_int(n, "antialias", 0) != 0;
    r.exclude_outside = qn_onnx_attr_int(n, "exclude_outside", 0) != 0;
    axis_plan plans[QN_MAX_RANK] = { { 0 } };
    int n_axes = 0;
    const int64_t *axes = qn_onnx_attr_ints(n, "axes", &n_axes);
    n_axes = axes ? n_axes : x->type.rank;
    if (n_axes > x->type.rank) {
        qn_onnx_malformed(n, "attribute axes has too many elements");
        return;
    }
    for (int i = 0; i < n_axes; i++)
        if (!qn_onnx_axis(n, axes ? axes[i] : i, x->type.rank, &plans[i].axis))
            return;
    if (!read_extents(&r, &x->type, n_axes, plans) || !read_roi(&r, n_axes, plans) ||
        !fits(n, &x->type, n_axes, plans))
        return;
    qn_dtype dtype = x->type.dtype; /* integers are interpolated in f32, then rounded */
    const bool rounds = r.filter != NEAREST && !qn_dtype_is_float(dtype);
    if (rounds)
        x = qn_b_convert(b, QUERN_F32, x);
    for (int i = 0; i < n_axes && x; i++) {
        axis_plan *p = &plans[i];
        int64_t factor = whole_factor(&r, p);
        if (p->scale == 1 && r.transform != CROP)
            continue;
        if (factor && x->type.rank < QN_MAX_RANK)
            x = repeat(n, x, p->axis, factor);
        else if (has_tables(&r, p))
            x = apply_tables(&r, p, x, &inside);
        else
            x = compute_axis(&r, p, x);
    }
    if (inside)
        x = choose(b, inside, x, number_like(b, x, r.extrapolation));
    if (rounds)
        x = qn_b_unary(b, QN_OP_ROUND, x);
    qn_onnx_out(n, 0, x ? qn_b_convert(b, dtype, x) : NULL);
}

const qn_onnx_op qn_onnx_resize_ops[] = {
    { "Resize", NULL, 10, 0, import_resize },
    { "Upsample", NULL, 7, 9, import_resize },
    { 0 },
};
