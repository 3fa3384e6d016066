/* quern.h: layers with parameters of their own. */
#include <float.h>
#include <math.h>

#include "driver/api_builder.h"
#include "driver/shuffle.h"

static const double epsilon = 1e-5, momentum = 0.9; /* of norms */

/* ---- parameters ---- */

static double uniform(uint64_t *random)
{
    return (double)(qn_random_next(random) >> 11) * 0x1p-53;
}

/* By Box and Muller. */
static double normal(uint64_t *random)
{
    const double radius = sqrt(-2 * log(1 - uniform(random)));
    return radius * cos(2 * acos(-1) * uniform(random));
}

/* An input NAME.PART (part NULL: NAME), zeros, and where its contents are. */
static quern_value *new_state(quern_builder *b, const char *call, const char *name, const char *part,
                              qn_input_role role, qn_dtype dtype, int rank, const int64_t *dims,
                              const qn_tensor **out_tensor)
{
    const char *full = part ? qn_arena_printf(b->module->arena, "%s.%s", name, part) : name;
    quern_value *value = qn_build_state(b, call, full, role, dtype, rank, dims, NULL);
    *out_tensor = value ? b->function->input_initial[qn_in(value)->index] : NULL;
    return value;
}

quern_value *qn_build_param(quern_builder *b, const char *call, const char *name, const char *part,
                            qn_dtype dtype, int rank, const int64_t *dims, qn_spread spread, double scale)
{
    const qn_tensor *tensor;
    quern_value *value = new_state(b, call, name, part, QN_ROLE_PARAM, dtype, rank, dims, &tensor);
    if (!value)
        return NULL;
    uint64_t random = qn_random_start(b->seed, (uint64_t)b->n_parameters++);
    const size_t size = qn_dtype_bytes(dtype);
    for (size_t at = 0; at < tensor->bytes; at += size) {
        const double x = spread == QN_NORMAL ? normal(&random) : 2 * uniform(&random) - 1;
        qn_scalar_store(dtype, (qn_scalar){ .f = x * scale }, (char *)tensor->data + at);
    }
    return value;
}

static quern_value *drawn(quern_builder *b, const char *call, const char *name, int dtype, int rank,
                          const int64_t *dims, qn_spread spread, double scale)
{
    if (!quern_dtype_size(dtype) || !qn_dtype_is_float((qn_dtype)dtype))
        return qn_build_fail(b, call, "'%s' must be of floats", name ? name : "");
    if (!(scale >= 0 && scale <= DBL_MAX))
        return qn_build_fail(b, call, "'%s' cannot be drawn with %g", name ? name : "", scale);
    return qn_build_param(b, call, name, NULL, (qn_dtype)dtype, rank, dims, spread, scale);
}

quern_value *quern_param_normal(quern_builder *b, const char *name, int dtype, int rank, const int64_t *dims,
                                double deviation)
{
    return drawn(b, "quern_param_normal", name, dtype, rank, dims, QN_NORMAL, deviation);
}

quern_value *quern_param_uniform(quern_builder *b, const char *name, int dtype, int rank, const int64_t *dims,
                                 double bound)
{
    return drawn(b, "quern_param_uniform", name, dtype, rank, dims, QN_UNIFORM, bound);
}

/* NAME.weight and NAME.bias of a layer: uniform in +-1/sqrt(fan_in). */
static bool layer_params(quern_builder *b, const char *call, const char *name, qn_dtype dtype, int rank,
                         const int64_t *dims, double fan_in, int64_t width, quern_value **weight,
                         quern_value **bias)
{
    const double bound = fan_in > 0 ? 1 / sqrt(fan_in) : 0;
    *weight = qn_build_param(b, call, name, "weight", dtype, rank, dims, QN_UNIFORM, bound);
    *bias = qn_build_param(b, call, name, "bias", dtype, 1, &width, QN_UNIFORM, bound);
    return *weight && *bias;
}

static bool is_named(quern_builder *b, const char *call, const char *name)
{
    if (name && name[0])
        return true;
    qn_build_fail(b, call, "it needs a name");
    return false;
}

static const char *type_text(quern_builder *b, quern_value *x)
{
    return qn_type_print(&qn_in(x)->type, b->module->arena);
}

int64_t qn_build_width(quern_builder *b, const char *call, quern_value *x, const char *name)
{
    const qn_type *type = &qn_in(x)->type;
    if (!is_named(b, call, name))
        return -1;
    if (qn_dtype_is_float(type->dtype) && type->rank > 0 && qn_dim_is_const(type->dims[type->rank - 1]))
        return type->dims[type->rank - 1]->value;
    qn_build_fail(b, call, "x is %s; it must be of floats, and its last dimension a number", type_text(b, x));
    return -1;
}

/* ---- dense ---- */

quern_value *quern_linear(quern_builder *b, quern_value *x, int64_t width, const char *name)
{
    static const char call[] = "quern_linear";
    quern_value *weight, *bias;
    const int64_t depth = qn_build_begin(b, call, 1, &x) ? qn_build_width(b, call, x, name) : -1;
    if (depth >= 0 && width < 1)
        return qn_build_fail(b, call, "%lld features: there must be at least 1", (long long)width);
    if (depth < 0 || !layer_params(b, call, name, qn_in(x)->type.dtype, 2, (const int64_t[]){ depth, width },
                                   depth, width, &weight, &bias))
        return NULL;
    qn_value *product = qn_b_matmul(&b->build, qn_in(x), qn_in(weight));
    return product ? qn_out(qn_b_binary_bcast(&b->build, QN_OP_ADD, product, qn_in(bias))) : NULL;
}

quern_value *quern_embedding(quern_builder *b, quern_value *indices, int64_t rows, int64_t width,
                             const char *name)
{
    static const char call[] = "quern_embedding";
    if (!qn_build_begin(b, call, 1, &indices) || !is_named(b, call, name))
        return NULL;
    const qn_dtype_class class = qn_dtype_class_of(qn_in(indices)->type.dtype);
    if (class != QN_CLASS_SIGNED && class != QN_CLASS_UNSIGNED)
        return qn_build_fail(b, call, "the indices are %s; they must be of integers", type_text(b, indices));
    if (rows < 1 || width < 1)
        return qn_build_fail(b, call, "%lld rows of %lld: both must be at least 1", (long long)rows,
                             (long long)width);
    quern_value *table =
        qn_build_param(b, call, name, "weight", QUERN_F32, 2, (const int64_t[]){ rows, width }, QN_NORMAL, 1);
    qn_value *wide = table ? qn_b_convert(&b->build, QUERN_I64, qn_in(indices)) : NULL;
    return wide ? qn_out(qn_b_gather(&b->build, qn_in(table), wide, 0)) : NULL;
}

/* ---- images ---- */

/* Is x [N, C, H, W], C being a number? */
static bool is_image(quern_builder *b, const char *call, quern_value *x)
{
    const qn_type *type = &qn_in(x)->type;
    if (qn_dtype_is_float(type->dtype) && type->rank == 4 && qn_dim_is_const(type->dims[1]))
        return true;
    qn_build_fail(b, call, "x is %s; it must be of floats [N, C, H, W], and C a number", type_text(b, x));
    return false;
}

static quern_value *convolve(quern_builder *b, const char *call, bool transposed, quern_value *x,
                             int64_t channels, int64_t kernel, int64_t stride, int64_t padding,
                             const char *name)
{
    if (!qn_build_begin(b, call, 1, &x) || !is_image(b, call, x) || !is_named(b, call, name))
        return NULL;
    if (channels < 1 || kernel < 1 || stride < 1 || padding < 0 || kernel > INT32_MAX || padding > INT32_MAX)
        return qn_build_fail(
            b, call, "channels, kernel and stride must be at least 1, the padding at least 0, and none huge");
    const qn_type *type = &qn_in(x)->type;
    const int64_t depth = type->dims[1]->value;
    const int64_t dims[] = { transposed ? depth : channels, transposed ? channels : depth, kernel, kernel };
    quern_value *weight, *bias;
    if (!layer_params(b, call, name, type->dtype, 4, dims, (double)depth * (double)kernel * (double)kernel,
                      channels, &weight, &bias))
        return NULL;
    /* The transpose of a convolution is one over x with stride - 1 zeros in between, with the filters turned around. */
    qn_value *filters = qn_in(weight);
    if (transposed)
        filters = qn_b_reverse(&b->build, qn_b_transpose(&b->build, filters, (const int64_t[]){ 1, 0, 2, 3 }),
                               2, (const int64_t[]){ 2, 3 });
    const int64_t ones[] = { 1, 1 }, strides[] = { stride, stride };
    const int64_t pad = transposed ? kernel - 1 - padding : padding, pads[] = { pad, pad };
    const qn_conv conv = { .stride = transposed ? ones : strides,
                           .low = pads,
                           .high = pads,
                           .x_dilation = transposed ? strides : ones,
                           .w_dilation = ones,
                           .groups = 1 };
    qn_value *y = qn_b_convolution_in_phases(&b->build, qn_in(x), filters, &conv);
    const qn_dim column[] = { qn_dim_const(b->module->dims, channels), qn_dim_const(b->module->dims, 1),
                              qn_dim_const(b->module->dims, 1) };
    qn_value *shift = y ? qn_b_reshape(&b->build, qn_in(bias), 3, column) : NULL;
    return shift ? qn_out(qn_b_binary_bcast(&b->build, QN_OP_ADD, y, shift)) : NULL;
}

quern_value *quern_conv2d(quern_builder *b, quern_value *x, int64_t channels, int64_t kernel, int64_t stride,
                          int64_t padding, const char *name)
{
    return convolve(b, "quern_conv2d", false, x, channels, kernel, stride, padding, name);
}

quern_value *quern_conv_transpose2d(quern_builder *b, quern_value *x, int64_t channels, int64_t kernel,
                                    int64_t stride, int64_t padding, const char *name)
{
    return convolve(b, "quern_conv_transpose2d", true, x, channels, kernel, stride, padding, name);
}

quern_value *quern_max_pool2d(quern_builder *b, quern_value *x, int64_t window)
{
    static const char call[] = "quern_max_pool2d";
    if (!qn_build_begin(b, call, 1, &x) || !is_image(b, call, x))
        return NULL;
    if (window < 1)
        return qn_build_fail(b, call, "the window must be at least 1");
    const int64_t extent[] = { 1, 1, window, window };
    return qn_out(qn_b_reduce_window(&b->build, QN_KIND_MAX, qn_in(x),
                                     &(qn_window){ .window = extent, .stride = extent }));
}

/* ---- norms and noise ---- */

/* [width] numbers that are all the same at first: NAME.PART. */
static qn_value *filled(quern_builder *b, const char *call, const char *name, const char *part,
                        qn_input_role role, qn_dtype dtype, int64_t width, double number)
{
    const qn_tensor *tensor;
    quern_value *value = new_state(b, call, name, part, role, dtype, 1, &width, &tensor);
    const size_t size = qn_dtype_bytes(dtype);
    for (size_t at = 0; value && at < tensor->bytes; at += size)
        qn_scalar_store(dtype, (qn_scalar){ .f = number }, (char *)tensor->data + at);
    return qn_in(value);
}

quern_value *quern_layer_norm(quern_builder *b, quern_value *x, const char *name)
{
    static const char call[] = "quern_layer_norm";
    const int64_t width = qn_build_begin(b, call, 1, &x) ? qn_build_width(b, call, x, name) : -1;
    if (width < 0)
        return NULL;
    const qn_type *type = &qn_in(x)->type;
    qn_value *weight = filled(b, call, name, "weight", QN_ROLE_PARAM, type->dtype, width, 1);
    qn_value *bias = filled(b, call, name, "bias", QN_ROLE_PARAM, type->dtype, width, 0);
    return bias ? qn_out(qn_b_layer_norm(&b->build, qn_in(x), weight, bias, type->rank - 1, epsilon)) : NULL;
}

/* Of x [N, C, ...] of floats; -1 after a report. */
static int64_t channels_of(quern_builder *b, const char *call, quern_value *x, const char *name)
{
    if (!qn_build_begin(b, call, 1, &x) || !is_named(b, call, name))
        return -1;
    const qn_type *type = &qn_in(x)->type;
    if (qn_dtype_is_float(type->dtype) && type->rank >= 2 && qn_dim_is_const(type->dims[1]))
        return type->dims[1]->value;
    qn_build_fail(b, call, "x is %s; it must be of floats [N, C, ...], and C a number", type_text(b, x));
    return -1;
}

quern_value *quern_group_norm(quern_builder *b, quern_value *x, int64_t groups, const char *name)
{
    static const char call[] = "quern_group_norm";
    const int64_t channels = channels_of(b, call, x, name);
    if (channels < 0)
        return NULL;
    const qn_dtype dtype = qn_in(x)->type.dtype;
    if (groups < 1 || channels % groups != 0)
        return qn_build_fail(b, call, "%lld channels do not divide into %lld groups", (long long)channels,
                             (long long)groups);
    qn_value *weight = filled(b, call, name, "weight", QN_ROLE_PARAM, dtype, channels, 1);
    qn_value *bias = filled(b, call, name, "bias", QN_ROLE_PARAM, dtype, channels, 0);
    return bias ? qn_out(qn_b_group_norm(&b->build, qn_in(x), weight, bias, groups, epsilon)) : NULL;
}

quern_value *quern_batch_norm(quern_builder *b, quern_value *x, const char *name)
{
    static const char call[] = "quern_batch_norm";
    const int64_t channels = channels_of(b, call, x, name);
    if (channels < 0)
        return NULL;
    const qn_dtype dtype = qn_in(x)->type.dtype;
    qn_value *weight = filled(b, call, name, "weight", QN_ROLE_PARAM, dtype, channels, 1);
    qn_value *bias = filled(b, call, name, "bias", QN_ROLE_PARAM, dtype, channels, 0);
    qn_value *mean = filled(b, call, name, "running_mean", QN_ROLE_STATE, dtype, channels, 0);
    qn_value *variance = filled(b, call, name, "running_var", QN_ROLE_STATE, dtype, channels, 1);
    const qn_node *norm =
        qn_b_batch_norm(&b->build, qn_in(x), weight, bias, mean, variance, epsilon, momentum, false);
    return norm ? qn_out((qn_value *)&norm->results[0]) : NULL;
}

quern_value *quern_dropout(quern_builder *b, quern_value *x, double ratio)
{
    static const char call[] = "quern_dropout";
    if (!qn_build_begin(b, call, 1, &x))
        return NULL;
    if (!(ratio >= 0 && ratio < 1))
        return qn_build_fail(b, call, "the ratio is %g; it must be at least 0 and below 1", ratio);
    /* training sets key and step: see passes/train_mode.c */
    const qn_tensor *key = qn_tensor_new(b->module, QUERN_U64, 1, (const int64_t[]){ 2 }, NULL);
    const qn_node *node = qn_b_dropout(&b->build, qn_in(x), qn_b_constant(&b->build, key),
                                       qn_b_scalar_int(&b->build, QUERN_U64, 0), ratio, false);
    return node ? qn_out((qn_value *)&node->results[0]) : NULL;
}
