/* Operators that read images between their pixels: GridSample, RoiAlign, DeformConv, and AffineGrid, which makes grids.
 *
 * The image [N, C, D1, …] is laid out as rows [N, D1 * …, C], so that a gather fetches all channels of a pixel; points
 * are f32 coordinates [N, P] per spatial axis, in pixels. */
#include <math.h>
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/conv.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/window.h"

enum { MAX_SPATIAL = 3 };

typedef enum border { ZEROS, BORDER, REFLECTION } border;

typedef struct image {
    qn_onnx_node *n;
    qn_value *rows; /* [N, S, C] */
    int n_axes;
    qn_dim extents[MAX_SPATIAL];
    qn_dim batch, channels;
    qn_value *which; /* image of each of a batch of point lists, [N, 1]; NULL: its own */
    border border;
    bool align_corners;
} image;

static bool read_image(qn_onnx_node *n, qn_value *x, image *out)
{
    qn_dims *t = n->im->dims;
    int64_t perm[MAX_SPATIAL + 2];
    if (!x)
        return false;
    if (x->type.rank < 3 || x->type.rank > MAX_SPATIAL + 2) {
        qn_onnx_malformed(n, "the input must have rank 3 to %d", MAX_SPATIAL + 2);
        return false;
    }
    *out =
        (image){ .n = n, .n_axes = x->type.rank - 2, .batch = x->type.dims[0], .channels = x->type.dims[1] };
    qn_dim pixels = qn_dim_const(t, 1);
    for (int i = 0; i < x->type.rank; i++)
        perm[i] = i == x->type.rank - 1 ? 1 : i == 0 ? 0 : i + 1;
    for (int i = 0; i < out->n_axes; i++) {
        out->extents[i] = x->type.dims[i + 2];
        pixels = qn_dim_mul(t, pixels, out->extents[i]);
    }
    qn_dim dims[3] = { out->batch, pixels, out->channels };
    out->rows = qn_b_reshape(&n->b, qn_b_transpose(&n->b, x, perm), 3, dims);
    return out->rows != NULL;
}

static qn_value *extent_of(const image *m, int axis, const qn_value *like)
{
    qn_builder *b = &m->n->b;
    return qn_b_convert(b, like->type.dtype, qn_b_dim_value(b, QUERN_I64, m->extents[axis]));
}

/* x mirrored into the image: at the centres of its outermost pixels where corners are aligned, else at their edges. */
static qn_value *reflect(const image *m, int axis, qn_value *x)
{
    qn_builder *b = &m->n->b;
    double low = m->align_corners ? 0 : -0.5;
    qn_value *length = add_number(b, extent_of(m, axis, x), m->align_corners ? -1 : 0);
    qn_value *safe = max_number(b, length, 1e-6); /* of one pixel with aligned corners */
    qn_value *period = mul_number(b, safe, 2);
    x = qn_b_unary(b, QN_OP_ABS, add_number(b, x, -low));
    x = qn_b_binary_bcast(b, QN_OP_REM, x, period);
    x = choose(b, compare(b, QN_GT, x, safe), sub(b, period, x), x);
    return add_number(b, x, low);
}

/* Rows of pixels at whole coordinates, [N, P, C]: zeros, the border's or mirrored ones outside. */
static qn_value *pixels_at(const image *m, qn_value *const *at)
{
    qn_onnx_node *n = m->n;
    qn_builder *b = &n->b;
    qn_value *index = NULL, *inside = NULL;
    for (int i = 0; i < m->n_axes; i++) {
        qn_value *x = at[i];
        if (!x)
            return NULL;
        qn_value *last = add_number(b, extent_of(m, i, x), -1);
        if (m->border == REFLECTION)
            x = reflect(m, i, x);
        if (m->border == ZEROS) {
            qn_value *in = and_also(b, compare_number(b, QN_GE, x, 0), compare(b, QN_LE, x, last));
            inside = inside ? and_also(b, inside, in) : in;
        }
        x = minimum(b, max_number(b, x, 0), last); /* NaN becomes some pixel when converted */
        x = x ? qn_b_convert(b, QUERN_I64, x) : NULL;
        index = index ? add(b, mul(b, index, qn_b_dim_value(b, QUERN_I64, m->extents[i])), x) : x;
    }
    qn_value *rows = m->rows;
    if (m->which && index) {
        qn_dims *t = n->im->dims;
        const qn_dim *from = rows->type.dims, all[2] = { qn_dim_mul(t, from[0], from[1]), from[2] };
        index = add(b, index, mul(b, m->which, qn_b_dim_value(b, QUERN_I64, from[1])));
        rows = index ? qn_b_gather(b, qn_b_reshape(b, rows, 2, all), index, 0) : NULL;
    } else {
        rows = qn_b_gather_nd(b, rows, qn_b_expand_dims(b, index, 2), 1);
    }
    if (inside)
        rows = choose(b, qn_b_expand_dims(b, inside, 2), rows, number_like(b, rows, 0));
    return rows;
}

/* Weight of the tap at that offset from the floor, for the distance from the floor. */
static qn_value *tap(qn_builder *b, int taps, int offset, qn_value *ratio)
{
    const double a = -0.75;
    if (taps == 2)
        return offset ? ratio : add_number(b, negate(b, ratio), 1);
    qn_value *x = qn_b_unary(b, QN_OP_ABS, add_number(b, ratio, -offset));
    if (offset == 0 || offset == 1) {
        qn_value *y = add_number(b, mul_number(b, x, a + 2), -(a + 3));
        return add_number(b, mul(b, mul(b, y, x), x), 1);
    }
    qn_value *y = add_number(b, mul_number(b, x, a), -5 * a);
    y = add_number(b, mul(b, y, x), 8 * a);
    return add_number(b, mul(b, y, x), -4 * a);
}

/* taps^axes pixels around each point, weighted and combined (summed, or the largest): [N, P, C]. taps 1: the nearest. */
static qn_value *interpolate(const image *m, int taps, qn_op combine, qn_value *const *points)
{
    qn_builder *b = &m->n->b;
    qn_value *base[MAX_SPATIAL], *ratio[MAX_SPATIAL], *at[MAX_SPATIAL], *sum = NULL;
    int count = 1, first = taps == 4 ? -1 : 0;
    for (int i = 0; i < m->n_axes; i++) {
        base[i] = qn_b_unary(b, taps == 1 ? QN_OP_ROUND : QN_OP_FLOOR, points[i]);
        ratio[i] = sub(b, points[i], base[i]);
        count *= taps;
    }
    if (taps == 1)
        return pixels_at(m, base);
    for (int k = 0; k < count; k++) {
        qn_value *weight = NULL;
        for (int i = 0, rest = k; i < m->n_axes; i++, rest /= taps) {
            int offset = first + rest % taps;
            qn_value *w = tap(b, taps, offset, ratio[i]);
            at[i] = add_number(b, base[i], offset);
            weight = weight ? mul(b, weight, w) : w;
        }
        qn_value *rows = pixels_at(m, at);
        if (!rows || !weight)
            return NULL;
        rows = mul(b, rows, qn_b_convert(b, rows->type.dtype, qn_b_expand_dims(b, weight, 2)));
        sum = sum ? qn_b_binary(b, combine, sum, rows) : rows;
    }
    return sum;
}

/* Where pixels are, in f32 at least: fewer bits would not tell those of a wide image apart. */
static qn_value *as_places(qn_builder *b, qn_value *v)
{
    return v && qn_dtype_bytes(v->type.dtype) < 4 ? qn_b_convert(b, QUERN_F32, v) : v;
}

/* ---- GridSample ---- */

/* Coordinate `column` of points [N, out…, axes], as f32 [N, P]. */
static qn_value *column_of(qn_onnx_node *n, qn_value *grid, int column, qn_dim n_points)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_dim dims[2] = { grid->type.dims[0], n_points };
    grid =
        qn_b_slice_axis(b, grid, grid->type.rank - 1, qn_dim_const(t, column), qn_dim_const(t, column + 1));
    return as_places(b, qn_b_reshape(b, grid, 2, dims));
}

static void import_grid_sample(qn_onnx_node *n)
{
    static const struct {
        const char *name;
        int taps;
    } modes[] = { { "bilinear", 2 }, { "linear", 2 }, { "nearest", 1 }, { "bicubic", 4 }, { "cubic", 4 } };
    static const char *const borders[] = { "zeros", "border", "reflection" };
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *grid = qn_onnx_in(n, 1), *points[MAX_SPATIAL] = { NULL };
    const char *mode = qn_onnx_attr_string(n, "mode", "linear"),
               *name = qn_onnx_attr_string(n, "padding_mode", "zeros");
    image m;
    int taps = 0, border = 0;
    if (!x || !grid || !read_image(n, x, &m))
        return;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(modes[i].name, mode))
            taps = modes[i].taps;
    while (border < 3 && strcmp(borders[border], name))
        border++;
    if (grid->type.rank == x->type.rank) {
        grid = qn_onnx_with_dim(n, grid, grid->type.rank - 1, qn_dim_const(t, m.n_axes));
        grid = qn_onnx_with_dim(n, grid, 0, m.batch);
    }
    if (!grid)
        return;
    if (!taps || border == 3 || grid->type.rank != x->type.rank ||
        !qn_dim_is(grid->type.dims[grid->type.rank - 1], m.n_axes)) {
        qn_onnx_malformed(n, "attribute mode or padding_mode is unknown, or the grid does not fit");
        return;
    }
    m.border = (enum border)border;
    m.align_corners = qn_onnx_attr_int(n, "align_corners", 0) != 0;
    qn_dim n_points = qn_dim_const(t, 1), dims[MAX_SPATIAL + 2] = { m.batch };
    for (int i = 0; i < m.n_axes; i++) {
        dims[i + 1] = grid->type.dims[i + 1];
        n_points = qn_dim_mul(t, n_points, grid->type.dims[i + 1]);
    }
    dims[m.n_axes + 1] = m.channels;
    for (int i = 0; i < m.n_axes; i++) {
        /* the grid's last axis has the fastest axis first; -1 and 1 are the corners */
        qn_value *p = column_of(n, grid, m.n_axes - 1 - i, n_points);
        if (!p)
            return;
        qn_value *extent = extent_of(&m, i, p);
        if (m.align_corners)
            p = mul(b, mul_number(b, add_number(b, p, 1), 0.5), add_number(b, extent, -1));
        else
            p = mul_number(b, add_number(b, mul(b, add_number(b, p, 1), extent), -1), 0.5);
        if (m.border == BORDER)
            p = minimum(b, max_number(b, p, 0), add_number(b, extent, -1));
        else if (m.border == REFLECTION && p)
            p = reflect(&m, i, p);
        points[i] = p;
    }
    qn_value *y = qn_b_reshape(b, interpolate(&m, taps, QN_OP_ADD, points), m.n_axes + 2, dims);
    int64_t perm[MAX_SPATIAL + 2] = { 0, m.n_axes + 1 };
    for (int i = 0; i < m.n_axes; i++)
        perm[i + 2] = i + 1;
    qn_onnx_out(n, 0, qn_b_transpose(b, y, perm));
}

/* ---- AffineGrid ---- */

/* Positions of an axis's pixels between -1 and 1, [extent]. */
static qn_value *unit_positions(qn_onnx_node *n, qn_dtype dtype, qn_dim extent, bool align_corners)
{
    qn_builder *b = &n->b;
    qn_type type = qn_type_make(n->im->module, dtype, 1, &extent);
    qn_value *i = qn_b_iota(b, &type, 0),
             *length = qn_b_convert(b, dtype, qn_b_dim_value(b, QUERN_I64, extent));
    if (align_corners) {
        qn_value *steps = max_number(b, add_number(b, length, -1), 1);
        return add_number(b, divide(b, mul_number(b, i, 2), steps), -1);
    }
    return add_number(b, divide(b, add_number(b, mul_number(b, i, 2), 1), length), -1);
}

/* theta [N, axes, axes + 1] times the positions (fastest axis first, then 1) of every pixel. */
static void import_affine_grid(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *theta = qn_onnx_in(n, 0);
    qn_dim size[MAX_SPATIAL + 2], dims[MAX_SPATIAL + 1];
    int count;
    if (!theta || !qn_onnx_in_extents(n, 1, MAX_SPATIAL + 2, NULL, size, &count))
        return;
    int n_axes = count - 2;
    if (n_axes < 2 || theta->type.rank != 3) {
        qn_onnx_malformed(n, "theta must have rank 3, and size 4 or 5 elements");
        return;
    }
    theta = qn_onnx_with_dim(n, theta, 2, qn_dim_const(n->im->dims, n_axes + 1));
    if (!theta)
        return;
    bool align = qn_onnx_attr_int(n, "align_corners", 0) != 0;
    qn_value *parts[MAX_SPATIAL + 1];
    for (int i = 0; i < n_axes; i++)
        dims[i] = size[i + 2];
    for (int k = 0; k <= n_axes; k++) {
        int64_t axis = n_axes - 1 - k;
        parts[k] = k == n_axes ? qn_b_broadcast_to(b, qn_b_scalar(b, theta->type.dtype, 1), n_axes, dims)
                               : qn_b_broadcast(b, unit_positions(n, theta->type.dtype, dims[axis], align),
                                                n_axes, dims, &axis);
        parts[k] = qn_b_expand_dims(b, parts[k], n_axes);
    }
    qn_value *base = qn_b_concatenate(b, n_axes + 1, parts, n_axes);
    qn_dot dot = { .n_contract = 1, .x_contract = { 2 }, .y_contract = { n_axes } };
    qn_value *grid = qn_b_dot_general(b, theta, base, &dot, QUERN_INVALID_DTYPE); /* [N, axes, D1, …] */
    int64_t perm[MAX_SPATIAL + 2] = { 0 };
    for (int i = 0; i < n_axes; i++)
        perm[i + 1] = i + 2;
    perm[n_axes + 1] = 1;
    qn_onnx_out(n, 0, qn_b_transpose(b, grid, perm));
}

/* ---- RoiAlign ---- */

/* Column of regions [R, 4], scaled: [R, 1] */
static qn_value *region_column(qn_onnx_node *n, qn_value *regions, int column, double scale, double offset)
{
    qn_dims *t = n->im->dims;
    qn_value *v = qn_b_slice_axis(&n->b, regions, 1, qn_dim_const(t, column), qn_dim_const(t, column + 1));
    return add_number(&n->b, mul_number(&n->b, v, scale), -offset);
}

/* Sample positions of an axis: [R, bins * samples], from the region's start and end. */
static qn_value *region_points(qn_onnx_node *n, qn_value *start, qn_value *end, int64_t bins, int64_t samples,
                               bool at_least_1)
{
    qn_builder *b = &n->b;
    qn_value *length = sub(b, end, start);
    if (at_least_1)
        length = max_number(b, length, 1);
    qn_dim count = qn_dim_const(n->im->dims, bins * samples);
    qn_type type = qn_type_make(n->im->module, start ? start->type.dtype : QUERN_F32, 1, &count);
    qn_value *step =
        mul_number(b, add_number(b, qn_b_iota(b, &type, 0), 0.5), 1.0 / (double)(bins * samples));
    return add(b, start, mul(b, length, step));
}

/* Where the point is in the image, clamped to it: *out_inside is false beyond a pixel's width around it. */
static qn_value *clamp_point(const image *m, int axis, qn_value *x, qn_value **out_inside)
{
    qn_builder *b = &m->n->b;
    if (!x)
        return NULL;
    qn_value *extent = extent_of(m, axis, x);
    *out_inside = and_also(b, compare_number(b, QN_GE, x, -1), compare(b, QN_LE, x, extent));
    return minimum(b, max_number(b, x, 0), add_number(b, extent, -1));
}

static void import_roi_align(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *regions = qn_onnx_in(n, 1), *batch = qn_onnx_in(n, 2);
    int64_t height = qn_onnx_attr_int(n, "output_height", 1), width = qn_onnx_attr_int(n, "output_width", 1);
    int64_t samples = qn_onnx_attr_int(n, "sampling_ratio", 0);
    double scale = qn_onnx_attr_float(n, "spatial_scale", 1);
    bool half =
        n->opset >= 16 && qn_onnx_attr_is(n, "coordinate_transformation_mode", "half_pixel", "half_pixel");
    bool average = qn_onnx_attr_is(n, "mode", "avg", "avg");
    image m;
    if (!x || !regions || !batch)
        return;
    if (x->type.rank != 4 || regions->type.rank != 2 || height < 1 || width < 1 || height > 4096 ||
        width > 4096) {
        qn_onnx_malformed(n, "the input must have rank 4, the regions rank 2, the output a size");
        return;
    }
    if (samples < 1 || samples > 64) {
        qn_onnx_unsupported(
            n, "sampling_ratio = %lld; it must be positive, as the samples' number is fixed when compiling",
            (long long)samples);
        return;
    }
    if (!read_image(n, x, &m))
        return;
    m.batch = regions->type.dims[0];
    m.which = qn_b_expand_dims(b, qn_b_convert(b, QUERN_I64, batch), 1);
    regions = as_places(b, regions);
    double offset = half ? 0.5 : 0;
    qn_value *edge[4], *points[2], *flat[2], *inside = NULL;
    for (int i = 0; i < 4; i++)
        edge[i] = region_column(n, regions, i, scale, offset);
    int64_t counts[2] = { height * samples, width * samples };
    points[0] = region_points(n, edge[1], edge[3], height, samples, !half);
    points[1] = region_points(n, edge[0], edge[2], width, samples, !half);
    qn_dim grid[3] = { m.batch, qn_dim_const(t, counts[0]), qn_dim_const(t, counts[1]) };
    qn_dim list[2] = { m.batch, qn_dim_const(t, counts[0] * counts[1]) };
    for (int i = 0; i < 2; i++) {
        qn_value *in = NULL, *p = clamp_point(&m, i, points[i], &in);
        int64_t axes[2] = { 0, i + 1 };
        flat[i] = qn_b_reshape(b, qn_b_broadcast(b, p, 3, grid, axes), 2, list);
        in = qn_b_reshape(b, qn_b_broadcast(b, in, 3, grid, axes), 2, list);
        inside = inside ? and_also(b, inside, in) : in;
    }
    m.border = BORDER;
    /* the maximum is over the weighted pixels, as the operator defines it */
    qn_value *rows = interpolate(&m, 2, average ? QN_OP_ADD : QN_OP_MAX, flat);
    rows = choose(b, qn_b_expand_dims(b, inside, 2), rows, number_like(b, rows, 0));
    qn_dim split[6] = { m.batch,
                        qn_dim_const(t, height),
                        qn_dim_const(t, samples),
                        qn_dim_const(t, width),
                        qn_dim_const(t, samples),
                        m.channels };
    rows = qn_b_reshape(b, rows, 6, split);
    static const int64_t axes[2] = { 2, 4 };
    rows = average ? qn_b_mean(b, rows, 2, axes, false) : qn_b_reduce(b, QN_KIND_MAX, rows, 2, axes, false);
    qn_onnx_out(n, 0, qn_b_transpose(b, rows, (int64_t[]){ 0, 3, 1, 2 }));
}

/* ---- DeformConv ---- */

/* Offsets or modulation of an input [N, groups * K * axes, oh, ow] as [N * groups, K * axes, P]. */
static qn_value *by_group(qn_onnx_node *n, qn_value *v, int64_t groups, int64_t columns)
{
    qn_dims *t = n->im->dims;
    qn_dim dims[3] = { qn_dim_mul(t, v->type.dims[0], qn_dim_const(t, groups)), qn_dim_const(t, columns),
                       qn_dim_mul(t, v->type.dims[2], v->type.dims[3]) };
    return qn_b_reshape(&n->b, v, 3, dims);
}

/* Gathers each kernel position's pixels where its offset says, then multiplies by the weights: [N, oh * ow, K, C]. */
static void import_deform_conv(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *x = qn_onnx_in(n, 0), *w = qn_onnx_in(n, 1), *offset = qn_onnx_in(n, 2),
             *mask = qn_onnx_in_opt(n, 4);
    int64_t groups = qn_onnx_attr_int(n, "group", 1), shifts = qn_onnx_attr_int(n, "offset_group", 1),
            kernel[2];
    qn_onnx_window window;
    image m;
    if (!x || !w || !offset || !qn_onnx_ok(n))
        return;
    bool known = x->type.rank == 4 && w->type.rank == 4 && offset->type.rank == 4 &&
                 qn_type_is_static(&w->type) && qn_dim_is_const(x->type.dims[1]) &&
                 (!mask || mask->type.rank == 4);
    if (!known || groups < 1 || shifts < 1 || x->type.dims[1]->value % shifts ||
        w->type.dims[0]->value % groups || w->type.dims[1]->value * groups != x->type.dims[1]->value) {
        qn_onnx_needs_shape(n, 1);
        if (x->type.rank == 4)
            qn_onnx_needs_dim(n, x->type.dims[1]);
        qn_onnx_unsupported(n, "only two spatial axes and known channels and kernels that fit the groups");
        return;
    }
    kernel[0] = w->type.dims[2]->value;
    kernel[1] = w->type.dims[3]->value;
    int64_t channels = x->type.dims[1]->value, n_kernel = kernel[0] * kernel[1];
    if (n_kernel < 1 || n_kernel > 1024 || !qn_onnx_window_read(n, &x->type, kernel, &window) ||
        !qn_onnx_window_is_static(&window)) {
        if (qn_onnx_ok(n))
            qn_onnx_unsupported(n, "a kernel of %lld positions, or symbolic padding", (long long)n_kernel);
        return;
    }
    /* a group of channels with offsets of its own is an image of its own */
    qn_dim s = qn_dim_const(t, shifts), images = qn_dim_mul(t, x->type.dims[0], s);
    qn_dim apart[4] = { images, qn_dim_const(t, channels / shifts), x->type.dims[2], x->type.dims[3] };
    if (!read_image(n, qn_b_reshape(b, x, 4, apart), &m))
        return;
    m.border = ZEROS;
    offset = as_places(b, by_group(n, offset, shifts, n_kernel * 2));
    mask = mask ? by_group(n, mask, shifts, n_kernel) : NULL;
    qn_dim out[2] = { window.out[0], window.out[1] }, one = qn_dim_const(t, 1),
           count = qn_dim_mul(t, out[0], out[1]);
    qn_value **columns = QN_NEW_ARRAY(n->im->arena, qn_value *, n_kernel);
    for (int64_t k = 0; k < n_kernel; k++) {
        qn_value *points[2];
        int64_t place[2] = { k / kernel[1], k % kernel[1] };
        for (int i = 0; i < 2; i++) {
            qn_type type = qn_type_make(n->im->module, offset ? offset->type.dtype : x->type.dtype, 2, out);
            double start = (double)(place[i] * window.dilation[i] - window.low[i]->value);
            qn_value *at =
                add_number(b, mul_number(b, qn_b_iota(b, &type, i), (double)window.stride[i]), start);
            qn_dim column = qn_dim_const(t, 2 * k + i);
            qn_value *shift = qn_b_slice_axis(b, offset, 1, column, qn_dim_add(t, column, one));
            points[i] = add(b, qn_b_squeeze(b, shift, 1), qn_b_reshape(b, at, 1, &count));
        }
        qn_value *rows = interpolate(&m, 2, QN_OP_ADD, points); /* [N * shifts, P, C / shifts] */
        if (mask) {
            qn_value *factor = qn_b_slice_axis(b, mask, 1, qn_dim_const(t, k), qn_dim_const(t, k + 1));
            rows = mul(b, rows, qn_b_transpose(b, factor, (int64_t[]){ 0, 2, 1 }));
        }
        columns[k] = qn_b_expand_dims(b, rows, 2);
    }
    /* [N * shifts, P, K, C / shifts] -> [groups, N, P, K, C / groups], which stays as it lies where there is one of both */
    qn_value *y = qn_b_concatenate(b, (int)n_kernel, columns, 2);
    qn_dim g = qn_dim_const(t, groups), taps = qn_dim_const(t, n_kernel), width = w->type.dims[1];
    qn_dim shifted[5] = { x->type.dims[0], s, count, taps, qn_dim_const(t, channels / shifts) };
    y = qn_b_transpose(b, qn_b_reshape(b, y, 5, shifted), (int64_t[]){ 0, 2, 3, 1, 4 });
    qn_dim grouped[5] = { x->type.dims[0], count, taps, g, width };
    y = qn_b_transpose(b, qn_b_reshape(b, y, 5, grouped), (int64_t[]){ 3, 0, 1, 2, 4 });
    qn_dim dims[4] = { x->type.dims[0], w->type.dims[0], out[0], out[1] };
    qn_dim weights[4] = { g, qn_dim_floordiv(t, w->type.dims[0], g), width, taps };
    w = qn_b_transpose(b, qn_b_reshape(b, w, 4, weights), (int64_t[]){ 0, 1, 3, 2 });
    qn_dot dot = { .n_batch = 1,
                   .n_contract = 2,
                   .x_batch = { 0 },
                   .y_batch = { 0 },
                   .x_contract = { 3, 4 },
                   .y_contract = { 2, 3 } };
    y = qn_b_dot_general(b, y, w, &dot, QUERN_INVALID_DTYPE); /* [g, N, P, O / g] */
    y = qn_b_reshape(b, qn_b_transpose(b, y, (int64_t[]){ 1, 0, 3, 2 }), 4, dims);
    if (y && qn_onnx_has(n, 3))
        y = add(b, y, qn_onnx_per_channel(n, 3, 4));
    qn_onnx_out(n, 0, y);
}

const qn_onnx_op qn_onnx_sample_ops[] = {
    { "GridSample", NULL, 16, 0, import_grid_sample },
    { "AffineGrid", NULL, 20, 0, import_affine_grid },
    { "RoiAlign", NULL, 10, 0, import_roi_align },
    { "DeformConv", NULL, 19, 0, import_deform_conv },
    { 0 },
};
