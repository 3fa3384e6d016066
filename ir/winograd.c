/* Winograd convolution in primitives: its matrices, the filters it multiplies with, and what it computes. See winograd.h. */
#include "ir/winograd.h"

typedef struct matrices {
    int t;
    double b[QN_WINOGRAD_TILE][QN_WINOGRAD_TILE];     /* B^T: of an input */
    double g[QN_WINOGRAD_TILE][QN_WINOGRAD_TILE];     /* G: of a filter; 3 columns */
    double a[QN_WINOGRAD_TILE - 2][QN_WINOGRAD_TILE]; /* A^T: of the products */
} matrices;

bool qn_winograd_has(int64_t t)
{
    return t == 4 || t == 6;
}

/* Row i of B^T holds the polynomial that is 0 at all points but number i (the last: at all points), in rising powers; row i of
 * G the powers of point i divided by what that polynomial's other factors are there; A^T the powers of the points. */
static matrices matrices_of(int t)
{
    const double points[] = { 0, t == 4 ? 1 : QN_WINOGRAD_A, t == 4 ? -1 : -QN_WINOGRAD_A, QN_WINOGRAD_B,
                              -QN_WINOGRAD_B };
    matrices m = { .t = t };
    for (int i = 0; i < t; i++) {
        double divisor = 1;
        int degree = 0;
        m.b[i][0] = 1;
        for (int k = 0; k < t - 1; k++) {
            if (k == i)
                continue;
            if (i < t - 1)
                divisor *= points[i] - points[k];
            for (int power = ++degree; power >= 0; power--)
                m.b[i][power] = (power > 0 ? m.b[i][power - 1] : 0) - points[k] * m.b[i][power];
        }
        double power = 1;
        for (int k = 0; k < 3; k++, power *= points[i < t - 1 ? i : 0])
            m.g[i][k] = i < t - 1 ? power / divisor : k == 2;
        power = 1;
        for (int k = 0; k < t - 2; k++, power *= points[i < t - 1 ? i : 0])
            m.a[k][i] = i < t - 1 ? power : k == t - 3;
    }
    return m;
}

/* The constant [columns * columns, rows * rows] that takes a plane to left * plane * left^T, planes being rows of a matrix. */
static qn_value *both_sides(qn_builder *b, qn_dtype dtype, int rows, int columns,
                            const double left[][QN_WINOGRAD_TILE])
{
    const int64_t dims[] = { (int64_t)columns * columns, (int64_t)rows * rows };
    qn_tensor *tensor = qn_tensor_new(b->graph->module, dtype, 2, dims, NULL);
    for (int64_t i = 0; i < dims[0]; i++)
        for (int64_t k = 0; k < dims[1]; k++) {
            const qn_scalar value = { .f = left[k / rows][i / columns] * left[k % rows][i % columns] };
            qn_scalar_store(dtype, value,
                            (char *)tensor->data + (size_t)(i * dims[1] + k) * qn_dtype_bytes(dtype));
        }
    return qn_b_constant(b, tensor);
}

/* x [.., n] times a matrix [n, k]. */
static qn_value *times(qn_builder *b, qn_value *x, qn_value *matrix)
{
    if (!x)
        return NULL;
    const qn_dot dot = { .n_contract = 1, .x_contract = { x->type.rank - 1 }, .y_contract = { 0 } };
    return qn_b_dot_general(b, x, matrix, &dot, QUERN_INVALID_DTYPE);
}

static qn_dim number(const qn_builder *b, int64_t value)
{
    return qn_dim_const(qn_b_dims(b), value);
}

qn_value *qn_winograd_weights(qn_builder *b, qn_value *w, int t, int64_t width)
{
    const matrices m = matrices_of(t);
    const qn_dim out = w->type.dims[0], channels = w->type.dims[1];
    const qn_dim planes[] = { out, channels, number(b, 9) };
    const qn_dim parts[] = { qn_dim_floordiv(qn_b_dims(b), out, number(b, width)), number(b, width), channels,
                             number(b, t), number(b, t) };
    qn_value *u = qn_b_reshape(b, w, 3, planes);
    u = times(b, u, both_sides(b, w->type.dtype, t, 3, m.g));
    return qn_b_transpose(b, qn_b_reshape(b, u, 5, parts), (const int64_t[]){ 0, 3, 4, 2, 1 });
}

/* ---- the body ---- */

/* The t x t elements under every tile: [N, B, rows of tiles, columns of tiles, c, t * t], by strided slices of padded x. */
static qn_value *tiles_of(qn_builder *b, qn_value *x, int t, const qn_dim *low, const qn_dim *tiles)
{
    qn_dims *table = qn_b_dims(b);
    const int64_t m = t - 2;
    qn_dim before[5], after[5], start[5], limit[5], apart[6];
    qn_value *parts[QN_WINOGRAD_TILE * QN_WINOGRAD_TILE];
    for (int i = 0; i < 5; i++) {
        before[i] = after[i] = start[i] = number(b, 0);
        limit[i] = x->type.dims[i];
    }
    for (int i = 0; i < 2; i++) {
        const qn_dim reach = qn_dim_add(table, qn_dim_mul(table, tiles[i], number(b, m)), number(b, t - 1));
        before[2 + i] = low[i];
        after[2 + i] = qn_dim_sub(table, qn_dim_sub(table, reach, x->type.dims[2 + i]), low[i]);
    }
    x = qn_b_pad(b, x, qn_b_scalar(b, x->type.dtype, 0), before, after, NULL);
    for (int k = 0; k < t * t && x; k++) {
        const int at[] = { k / t, k % t };
        for (int i = 0; i < 2; i++) {
            start[2 + i] = number(b, at[i]);
            limit[2 + i] = qn_dim_add(table, qn_dim_mul(table, tiles[i], number(b, m)), number(b, at[i]));
        }
        parts[k] = qn_b_slice(b, x, start, limit, (const int64_t[]){ 1, 1, m, m, 1 });
        if (!parts[k])
            return NULL;
        for (int i = 0; i < 5; i++)
            apart[i] = parts[k]->type.dims[i];
        apart[5] = number(b, 1);
        parts[k] = qn_b_reshape(b, parts[k], 6, apart);
    }
    return x ? qn_b_concatenate(b, t * t, parts, 5) : NULL;
}

/* [N, B, rows, columns, c, t * t] times u [panels, t, t, K, width] at each of the t * t: [t * t, N, rows, columns, panels, width] */
static qn_value *products(qn_builder *b, qn_value *v, qn_value *u)
{
    qn_dims *table = qn_b_dims(b);
    v = qn_b_transpose(b, v, (const int64_t[]){ 5, 0, 2, 3, 1, 4 });
    u = qn_b_transpose(b, u, (const int64_t[]){ 1, 2, 3, 0, 4 });
    if (!v || !u)
        return NULL;
    const qn_dim *vd = v->type.dims, *ud = u->type.dims;
    const qn_dim flat[] = { vd[0], vd[1], vd[2], vd[3], qn_dim_mul(table, vd[4], vd[5]) };
    const qn_dim u_flat[] = { vd[0], ud[2], ud[3], ud[4] };
    v = qn_b_slice_axis(b, qn_b_reshape(b, v, 5, flat), 4, number(b, 0), ud[2]);
    const qn_dot dot = { .n_batch = 1, .n_contract = 1, .x_contract = { 4 }, .y_contract = { 1 } };
    return qn_b_dot_general(b, v, qn_b_reshape(b, u, 4, u_flat), &dot, QUERN_INVALID_DTYPE);
}

qn_value *qn_winograd_expand(qn_builder *b, const qn_node *node, qn_value *x, qn_value *u)
{
    qn_dims *table = qn_b_dims(b);
    const qn_dim *y = node->results[0].type.dims, *low = qn_attr_dims(node, QN_ATTR_LOW, NULL);
    const int t = (int)u->type.dims[1]->value, m = t - 2;
    const matrices all = matrices_of(t);
    const qn_dtype dtype = x->type.dtype;
    const qn_dim edge = number(b, m);
    const qn_dim tiles[] = { qn_dim_ceildiv(table, y[2], edge), qn_dim_ceildiv(table, y[3], edge) };
    qn_value *v = times(b, tiles_of(b, x, t, low, tiles), both_sides(b, dtype, t, t, all.b));
    v = v ? products(b, v, u) : NULL;
    v = v ? qn_b_transpose(b, v, (const int64_t[]){ 1, 2, 3, 4, 5, 0 }) : NULL;
    v = times(b, v, both_sides(b, dtype, m, t, all.a));
    const qn_dim apart[] = { y[0], tiles[0], tiles[1], y[1], y[4], edge, edge };
    const qn_dim joined[] = { y[0], y[1], qn_dim_mul(table, tiles[0], edge),
                              qn_dim_mul(table, tiles[1], edge), y[4] };
    v = v ? qn_b_reshape(b, v, 7, apart) : NULL;
    v = qn_b_reshape(b, qn_b_transpose(b, v, (const int64_t[]){ 0, 3, 1, 5, 2, 6, 4 }), 5, joined);
    v = qn_b_slice_axis(b, v, 2, number(b, 0), y[2]);
    return qn_b_slice_axis(b, v, 3, number(b, 0), y[3]);
}
