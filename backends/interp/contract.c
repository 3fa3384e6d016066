/* Contractions: dot_general and convolution, both as products of matrices that are read through an accessor and packed
 * block by block:
 *
 *             K                columns
 *   rows  [ left  ]   x   K  [ right ]   =   rows [ result ]
 *
 * Each result element adds its products in the order of K, in double (integers: modulo 2^64), and is rounded once. */
#include "backends/interp/interp.h"
#include "ir/condensed.h"

#include <string.h>

enum { BLOCK = 96, BLOCK_K = 256, TILE = 4, FEW = 16 }; /* BLOCK is a multiple of TILE */

/* Rows [at, at + n) of the left (columns of the right) matrix, elements [k, k + n_k) of each:
 * to[(k' - k) * BLOCK + (i - at)]. */
typedef void (*pack_fn)(const void *matrix, int64_t at, int64_t n, int64_t k, int64_t n_k, qn_scalar *to);

typedef struct product {
    int64_t rows, columns, k;
    pack_fn pack_left, pack_right;
    const void *left, *right;
    qn_array *result;
    int64_t at;                    /* of its first element; rows follow each other */
    int64_t row_step, column_step; /* set by run_product: between elements of the result */
} product;

/* Packed blocks and the sums of a block of the result. */
typedef struct workspace {
    qn_scalar *left, *right, *sums;
} workspace;

/* Two elements at a time: what every x86-64 has, and other machines take apart. Each sum has its own lane, so the
 * order of additions is not touched. */
typedef double pair_f __attribute__((vector_size(16), may_alias));
typedef uint64_t pair_i __attribute__((vector_size(16), may_alias));

/* sums = left x right if it is the first block of K, or else sums +=, in tiles whose sums stay in registers. */
#define UNROLL _Pragma("GCC unroll 4")
#define MULTIPLY(pair, type, field)                                           \
    do {                                                                      \
        for (int64_t i = 0; i < rows; i += TILE)                              \
            for (int64_t j = 0; j < columns; j += TILE) {                     \
                pair *at = (pair *)(w->sums + i * BLOCK + j), sum[TILE][2];   \
                UNROLL for (int r = 0; r < TILE; r++)                         \
                {                                                             \
                    sum[r][0] = first ? (pair){ 0 } : at[r * BLOCK / 2];      \
                    sum[r][1] = first ? (pair){ 0 } : at[r * BLOCK / 2 + 1];  \
                }                                                             \
                for (int64_t k = 0; k < n_k; k++) {                           \
                    const qn_scalar *a = w->left + k * BLOCK + i;             \
                    const pair *b = (const pair *)(w->right + k * BLOCK + j); \
                    UNROLL for (int r = 0; r < TILE; r++)                     \
                    {                                                         \
                        sum[r][0] += (type)a[r].field * b[0];                 \
                        sum[r][1] += (type)a[r].field * b[1];                 \
                    }                                                         \
                }                                                             \
                UNROLL for (int r = 0; r < TILE; r++)                         \
                {                                                             \
                    at[r * BLOCK / 2] = sum[r][0];                            \
                    at[r * BLOCK / 2 + 1] = sum[r][1];                        \
                }                                                             \
            }                                                                 \
    } while (0)

static void multiply_floats(const workspace *w, int64_t rows, int64_t columns, int64_t n_k, bool first)
{
    MULTIPLY(pair_f, double, f);
}

static void multiply_ints(const workspace *w, int64_t rows, int64_t columns, int64_t n_k, bool first)
{
    MULTIPLY(pair_i, uint64_t, i);
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void run_blocks(const product *p, const workspace *w)
{
    const qn_dtype dtype = p->result->dtype;
    for (int64_t j = 0; j < p->columns; j += BLOCK) {
        const int64_t columns = least(p->columns - j, BLOCK);
        for (int64_t i = 0; i < p->rows; i += BLOCK) {
            const int64_t rows = least(p->rows - i, BLOCK);
            for (int64_t k = 0; k == 0 || k < p->k; k += BLOCK_K) {
                const int64_t n_k = least(p->k - k, BLOCK_K);
                p->pack_left(p->left, i, rows, k, n_k, w->left);
                p->pack_right(p->right, j, columns, k, n_k, w->right);
                if (qn_dtype_is_float(dtype))
                    multiply_floats(w, rows, columns, n_k, k == 0);
                else
                    multiply_ints(w, rows, columns, n_k, k == 0);
            }
            for (int64_t r = 0; r < rows; r++)
                qn_lanes_store(dtype, w->sums + r * BLOCK, columns,
                               qn_element(p->result, p->at + (i + r) * p->row_step + j * p->column_step),
                               p->column_step);
        }
    }
}

/* Of a few columns (filters through a transform) each is treated as a row: a block then has its whole width of work. */
static void run_product(const product *p, const workspace *w)
{
    product q = *p;
    q.row_step = p->columns;
    q.column_step = 1;
    if (p->columns < FEW && p->columns < p->rows) {
        q.rows = p->columns, q.pack_left = p->pack_right, q.left = p->right, q.row_step = 1;
        q.columns = p->rows, q.pack_right = p->pack_left, q.right = p->left, q.column_step = p->columns;
    }
    run_blocks(&q, w);
}

static qn_status workspace_new(qn_eval *e, workspace *w)
{
    QN_TRY(qn_eval_scalars(e, BLOCK * BLOCK_K, &w->left));
    QN_TRY(qn_eval_scalars(e, BLOCK * BLOCK_K, &w->right));
    return qn_eval_scalars(e, BLOCK * BLOCK, &w->sums);
}

/* ---- dot_general ---- */

/* A matrix whose element (i, k) is element base + rows[i] + ks[k] of an array. */
typedef struct offsets {
    const qn_array *array;
    int64_t base;
    const qn_scalar *rows, *ks;
} offsets;

static void pack_offsets(const void *matrix, int64_t at, int64_t n, int64_t k, int64_t n_k, qn_scalar *to)
{
    const offsets *m = matrix;
    const qn_scalar *rows = m->rows + at, *ks = m->ks + k;
    const int64_t step = n > 1 ? rows[1].i - rows[0].i : 0;
    bool even = true;
    for (int64_t i = 1; i < n; i++)
        even = even && rows[i].i - rows[i - 1].i == step;
    for (int64_t c = 0; c < n_k; c++)
        if (even)
            qn_lanes_load(m->array->dtype, qn_element(m->array, m->base + rows[0].i + ks[c].i), step, n,
                          to + c * BLOCK);
        else
            for (int64_t i = 0; i < n; i++)
                to[c * BLOCK + i] =
                    qn_scalar_load(m->array->dtype, qn_element(m->array, m->base + rows[i].i + ks[c].i));
}

/* Element offsets of all indices into some axes of an array, in row-major order of these. */
static qn_status axes_offsets(qn_eval *e, const qn_array *a, int n_axes, const int64_t *axes, int64_t *out_n,
                              qn_scalar **out)
{
    int64_t strides[QN_MAX_RANK], dims[QN_MAX_RANK], index[QN_MAX_RANK] = { 0 };
    qn_strides(a, strides);
    for (int i = 0; i < n_axes; i++)
        dims[i] = a->dims[axes[i]];
    *out_n = qn_product(dims, 0, n_axes);
    QN_TRY(qn_eval_scalars(e, *out_n, out));
    for (int64_t k = 0; k < *out_n; k++, qn_next_index(n_axes, dims, index)) {
        (*out)[k].i = 0;
        for (int i = 0; i < n_axes; i++)
            (*out)[k].i += index[i] * strides[axes[i]];
    }
    return QUERN_OK;
}

/* Axes of a rank that are in neither list. */
static int free_axes(int rank, const int64_t *a, int n_a, const int64_t *b, int n_b, int64_t *out)
{
    bool taken[QN_MAX_RANK] = { false };
    int n = 0;
    for (int i = 0; i < n_a; i++)
        taken[a[i]] = true;
    for (int i = 0; i < n_b; i++)
        taken[b[i]] = true;
    for (int i = 0; i < rank; i++)
        if (!taken[i])
            out[n++] = i;
    return n;
}

typedef struct side {
    int64_t n_batch, n_free, n_contract;
    qn_scalar *batch, *free, *contract;
} side;

static qn_status side_of(qn_eval *e, const qn_array *a, qn_attr_key batch_key, qn_attr_key contract_key,
                         side *s)
{
    int n_batch, n_contract;
    const int64_t *batch = qn_attr_ints(e->node, batch_key, &n_batch);
    const int64_t *contract = qn_attr_ints(e->node, contract_key, &n_contract);
    int64_t rest[QN_MAX_RANK];
    const int n_rest = free_axes(a->rank, batch, n_batch, contract, n_contract, rest);
    QN_TRY(axes_offsets(e, a, n_batch, batch, &s->n_batch, &s->batch));
    QN_TRY(axes_offsets(e, a, n_contract, contract, &s->n_contract, &s->contract));
    return axes_offsets(e, a, n_rest, rest, &s->n_free, &s->free);
}

qn_status qn_eval_dot_general(qn_eval *e)
{
    const qn_array *x = &e->x[0], *y = &e->x[1];
    if (qn_array_elements(&e->y[0]) == 0)
        return QUERN_OK;
    side xs, ys;
    QN_TRY(side_of(e, x, QN_ATTR_X_BATCH, QN_ATTR_X_CONTRACT, &xs));
    QN_TRY(side_of(e, y, QN_ATTR_Y_BATCH, QN_ATTR_Y_CONTRACT, &ys));
    workspace w;
    QN_TRY(workspace_new(e, &w));
    for (int64_t b = 0; b < xs.n_batch; b++) {
        const offsets left = { x, xs.batch[b].i, xs.free, xs.contract };
        const offsets right = { y, ys.batch[b].i, ys.free, ys.contract };
        run_product(&(product){ .rows = xs.n_free,
                                .columns = ys.n_free,
                                .k = xs.n_contract,
                                .pack_left = pack_offsets,
                                .pack_right = pack_offsets,
                                .left = &left,
                                .right = &right,
                                .result = &e->y[0],
                                .at = b * xs.n_free * ys.n_free },
                    &w);
    }
    return QUERN_OK;
}

/* y of four bits or bytes with scales, and zeros where they aren't the usual ones: [panels, K / each, width, 4],
 * [panels, K / s, width]. */
typedef struct nibbles {
    const qn_array *y, *scale, *zeros;
    int64_t panel, k, width; /* the first panel of the batch */
    int64_t each;            /* numbers of four bytes */
} nibbles;

static void pack_nibbles(const void *matrix, int64_t at, int64_t n, int64_t k, int64_t n_k, qn_scalar *to)
{
    const nibbles *m = matrix;
    const int64_t n_scales = m->scale->dims[m->scale->rank - 2];
    for (int64_t c = k; c < k + n_k; c++)
        for (int64_t i = 0; i < n; i++) {
            const int64_t panel = m->panel + (at + i) / m->width, column = (at + i) % m->width;
            const int64_t byte = ((panel * (m->k / m->each) + c / m->each) * m->width + column) * 4 + c % 4;
            const int64_t group = (panel * n_scales + c / (m->k / n_scales)) * m->width + column;
            const int stored = ((const uint8_t *)m->y->data)[byte];
            const int number = m->each == 4 ? stored : stored >> c % 8 / 4 * 4 & 15,
                      zero = m->zeros       ? ((const uint8_t *)m->zeros->data)[group]
                             : m->each == 4 ? 128
                                            : 8;
            const double scale = qn_scalar_load(m->scale->dtype, qn_element(m->scale, group)).f;
            to[(c - k) * BLOCK + i].f = (number - zero) * scale;
        }
}

/* y f32 in 28 bits a number, or bf16 in 12, as panels of f32. */
static qn_status read_condensed(qn_eval *e, const qn_array *y, int64_t k, qn_array *out)
{
    const int64_t width = y->dims[y->rank - 1], bytes = y->dims[y->rank - 2] * width;
    qn_scalar *memory; /* of eight bytes each */
    qn_condensed of = { 0 };
    qn_condensed_of(k, width, bytes, &of);
    *out = *y;
    out->dtype = QUERN_F32;
    out->dims[y->rank - 2] = k;
    const int64_t elements = qn_array_elements(out);
    QN_TRY(qn_eval_scalars(e, elements / 2 + 1, &memory));
    out->data = memory;
    for (int64_t i = 0; i * k * width < elements; i++)
        qn_condensed_read(of, (const uint8_t *)y->data + i * bytes, (float *)out->data + i * k * width);
    return QUERN_OK;
}

/* Integers that are multiplied as floats, with a factor for each group of a row where there are some. */
typedef struct integers {
    offsets numbers;
    const qn_array *factors; /* [rows, groups], from `row` on; or NULL */
    int64_t row, k;
} integers;

static void pack_as_floats(const void *matrix, int64_t at, int64_t n, int64_t k, int64_t n_k, qn_scalar *to)
{
    const integers *m = matrix;
    const qn_array *f = m->factors;
    const int64_t groups = f ? f->dims[f->rank - 1] : 0;
    pack_offsets(&m->numbers, at, n, k, n_k, to);
    for (int64_t c = 0; c < n_k; c++)
        for (int64_t i = 0; i < n; i++) {
            const int64_t group = (m->row + at + i) * groups + (k + c) * groups / m->k;
            const double factor = f ? qn_scalar_load(f->dtype, qn_element(f, group)).f : 1;
            to[c * BLOCK + i].f = (double)to[c * BLOCK + i].i * factor;
        }
}

/* y [batch…, panels, K, width] as the columns of a plain [batch…, K, N]: column n at (n / width, k, n % width); or
 * [batch…, panels, K / g, width, g]: at (n / width, k / g, n % width, k % g) */
qn_status qn_eval_matmul_packed(qn_eval *e)
{
    const qn_array *x = &e->x[0], *y = &e->x[1];
    if (qn_array_elements(&e->y[0]) == 0)
        return QUERN_OK;
    int n_batch = (int)qn_attr_int(e->node, QN_ATTR_BATCH_DIMS);
    const int64_t group = y->rank == n_batch + 4 ? y->dims[n_batch + 3] : 1;
    const bool scaled = e->node->n_operands > 2, integer = scaled && x->dtype == QUERN_I8;
    const int zeros = qn_packed_zeros(e->node), factors = qn_packed_factors(e->node);
    int64_t width = y->dims[n_batch + 2], k = x->dims[x->rank - 1], panels = y->dims[n_batch], batch = 1,
            rows = 1;
    qn_array plain;
    if (x->dtype == QUERN_F32 && y->dtype == QUERN_U8 && !scaled) {
        QN_TRY(read_condensed(e, y, k, &plain));
        y = &plain;
    }
    int64_t columns = e->y[0].dims[e->y[0].rank - 1];
    for (int i = 0; i < x->rank - 1; i++)
        *(i < n_batch ? &batch : &rows) *= x->dims[i];
    qn_scalar *left_free, *left_k, *right_free, *right_k;
    QN_TRY(qn_eval_scalars(e, rows, &left_free));
    QN_TRY(qn_eval_scalars(e, k, &left_k));
    QN_TRY(qn_eval_scalars(e, columns, &right_free));
    QN_TRY(qn_eval_scalars(e, k, &right_k));
    for (int64_t i = 0; i < rows; i++)
        left_free[i].i = i * k;
    for (int64_t i = 0; i < columns; i++)
        right_free[i].i = i / width * k * width + i % width * group;
    for (int64_t i = 0; i < k; i++) {
        left_k[i].i = i;
        right_k[i].i = i / group * width * group + i % group;
    }
    workspace w;
    QN_TRY(workspace_new(e, &w));
    for (int64_t b = 0; b < batch; b++) {
        const integers left = {
            { x, b * rows * k, left_free, left_k }, factors ? &e->x[factors] : NULL, b * rows, k
        };
        const offsets right = { y, b * panels * k * width, right_free, right_k };
        const nibbles right_nibbles = { .y = y,
                                        .scale = scaled ? &e->x[2] : NULL,
                                        .zeros = zeros ? &e->x[zeros] : NULL,
                                        .panel = b * panels,
                                        .k = k,
                                        .width = width,
                                        .each = scaled && k > 0 ? k / y->dims[n_batch + 1] : 1 };
        run_product(&(product){ .rows = rows,
                                .columns = columns,
                                .k = k,
                                .pack_left = integer ? pack_as_floats : pack_offsets,
                                .pack_right = scaled ? pack_nibbles : pack_offsets,
                                .left = integer ? (const void *)&left : &left.numbers,
                                .right = scaled ? (const void *)&right_nibbles : &right,
                                .result = &e->y[0],
                                .at = b * rows * columns },
                    &w);
    }
    return QUERN_OK;
}

/* ---- convolution ---- */

enum { MAX_SPATIAL = QN_MAX_RANK - 2 };

/* The operand seen as a matrix: column = output position, k = (channel, kernel position). Channels lie in planes, or `block`
 * of them in one: channel i of x [N, blocks, spatial…, block] in plane i / block at i % block. */
typedef struct patches {
    const qn_array *x;
    int64_t base;  /* element where the sample's channels of the group begin */
    int64_t block; /* 1: x is [N, C, spatial…] */
    int64_t first; /* channel behind base that k begins with */
    int n;         /* spatial axes */
    const int64_t *kernel, *out, *stride, *x_dilation, *w_dilation;
    int64_t low[MAX_SPATIAL];
} patches;

/* Index of the row-major position `at` in a box. */
static void index_of(int64_t at, int rank, const int64_t *dims, int64_t *out)
{
    for (int i = rank - 1; i >= 0; i--) {
        out[i] = at % dims[i];
        at /= dims[i];
    }
}

static void pack_patches(const void *matrix, int64_t at, int64_t n, int64_t k, int64_t n_k, qn_scalar *to)
{
    const patches *m = matrix;
    const int64_t *extent = m->x->dims + 2;
    const int64_t plane = qn_product(extent, 0, m->n), n_kernel = qn_product(m->kernel, 0, m->n);
    int64_t out[BLOCK][MAX_SPATIAL]; /* where each output begins: o * stride - low */
    for (int64_t i = 0; i < n; i++) {
        index_of(at + i, m->n, m->out, out[i]);
        for (int a = 0; a < m->n; a++)
            out[i][a] = out[i][a] * m->stride[a] - m->low[a];
    }
    for (int64_t c = 0; c < n_k; c++) {
        int64_t position[MAX_SPATIAL];
        index_of((k + c) % n_kernel, m->n, m->kernel, position);
        const int64_t i_channel = m->first + (k + c) / n_kernel;
        const int64_t channel = m->base + i_channel / m->block * plane * m->block + i_channel % m->block;
        for (int64_t i = 0; i < n; i++) {
            int64_t offset = 0;
            bool in = true;
            for (int a = 0; a < m->n; a++) {
                int64_t p = out[i][a] + position[a] * m->w_dilation[a];
                if (m->x_dilation[a] != 1) { /* only every x_dilation-th position holds an element */
                    in = in && p % m->x_dilation[a] == 0;
                    p = p < 0 ? -1 : p / m->x_dilation[a];
                }
                in = in && p >= 0 && p < extent[a];
                offset = offset * extent[a] + p;
            }
            to[c * BLOCK + i] =
                in ? qn_scalar_load(m->x->dtype, qn_element(m->x, channel + offset * m->block))
                   : (qn_scalar){ .i = 0 };
        }
    }
}

/* The kernels of a group: row = output channel, its elements in order. */
typedef struct kernels {
    const qn_array *w;
    int64_t base, row;
} kernels;

static void pack_kernels(const void *matrix, int64_t at, int64_t n, int64_t k, int64_t n_k, qn_scalar *to)
{
    const kernels *m = matrix;
    for (int64_t c = 0; c < n_k; c++)
        qn_lanes_load(m->w->dtype, qn_element(m->w, m->base + at * m->row + k + c), m->row, n,
                      to + c * BLOCK);
}

qn_status qn_eval_convolution(qn_eval *e)
{
    const qn_array *x = &e->x[0], *w = &e->x[1];
    qn_array *r = &e->y[0];
    const int64_t groups = qn_attr_int(e->node, QN_ATTR_GROUPS);
    patches p = { .x = x,
                  .block = 1,
                  .n = x->rank - 2,
                  .kernel = w->dims + 2,
                  .out = r->dims + 2,
                  .stride = qn_attr_ints(e->node, QN_ATTR_STRIDE, NULL),
                  .x_dilation = qn_attr_ints(e->node, QN_ATTR_X_DILATION, NULL),
                  .w_dilation = qn_attr_ints(e->node, QN_ATTR_W_DILATION, NULL) };
    QN_TRY(qn_eval_dims(e, QN_ATTR_LOW, p.low));
    if (qn_array_elements(r) == 0)
        return QUERN_OK;
    workspace space;
    QN_TRY(workspace_new(e, &space));
    const int64_t rows = w->dims[0] / groups, columns = qn_product(r->dims, 2, r->rank);
    const int64_t k = qn_product(w->dims, 1, w->rank), plane = qn_product(x->dims, 2, x->rank);
    for (int64_t n = 0; n < x->dims[0]; n++)
        for (int64_t g = 0; g < groups; g++) {
            const kernels left = { w, g * rows * k, k };
            p.base = (n * x->dims[1] + g * w->dims[1]) * plane;
            run_product(&(product){ .rows = rows,
                                    .columns = columns,
                                    .k = k,
                                    .pack_left = pack_kernels,
                                    .pack_right = pack_patches,
                                    .left = &left,
                                    .right = &p,
                                    .result = r,
                                    .at = (n * w->dims[0] + g * rows) * columns },
                        &space);
        }
    return QUERN_OK;
}

/* ---- convolution in blocks ---- */

/* The kernels of a block of output channels, w [P, B, kernel…, c / g, o, g], or without the last: column = channel in the
 * block. */
typedef struct block_kernels {
    const qn_array *w;
    int64_t base, n_kernel, c, o, g;
} block_kernels;

static void pack_block_kernels(const void *matrix, int64_t at, int64_t n, int64_t k, int64_t n_k,
                               qn_scalar *to)
{
    const block_kernels *m = matrix;
    for (int64_t i = 0; i < n_k; i++) {
        const int64_t channel = (k + i) / m->n_kernel, position = (k + i) % m->n_kernel;
        const int64_t row = (channel / m->c * m->n_kernel + position) * m->c + channel % m->c;
        const int64_t element = m->base + (row / m->g * m->o + at) * m->g + row % m->g;
        qn_lanes_load(m->w->dtype, qn_element(m->w, element), m->g, n, to + i * BLOCK);
    }
}

/* One block of result channels is a product [positions, K] x [K, o]; where groups lie inside of blocks, each column is one. */
qn_status qn_eval_conv_packed(qn_eval *e)
{
    const qn_array *x = &e->x[0], *w = &e->x[1];
    qn_array *r = &e->y[0];
    const int n = x->rank - 3;
    const int64_t groups = qn_attr_int(e->node, QN_ATTR_GROUPS), blocks = x->dims[1], c = x->dims[n + 2];
    const int64_t n_out = w->dims[0], o = w->dims[n + 3], w_block = qn_product(w->dims, 1, w->rank);
    const bool across = groups > 1 && qn_attr_find(e->node, QN_ATTR_OUT_CHANNELS),
               inside = across || groups > blocks;
    int64_t ones[MAX_SPATIAL];
    for (int i = 0; i < n; i++)
        ones[i] = 1;
    patches p = { .x = x,
                  .block = c,
                  .n = n,
                  .kernel = w->dims + 2,
                  .out = r->dims + 2,
                  .stride = qn_attr_ints(e->node, QN_ATTR_STRIDE, NULL),
                  .x_dilation = ones,
                  .w_dilation = qn_attr_ints(e->node, QN_ATTR_W_DILATION, NULL) };
    QN_TRY(qn_eval_dims(e, QN_ATTR_LOW, p.low));
    if (qn_array_elements(r) == 0)
        return QUERN_OK;
    workspace space;
    QN_TRY(workspace_new(e, &space));
    const int64_t positions = qn_product(r->dims, 2, n + 2), plane = qn_product(x->dims, 2, x->rank);
    block_kernels right = { .w = w, .n_kernel = qn_product(w->dims, 2, n + 2), .o = o };
    right.g = w->rank == n + 5 ? w->dims[n + 4] : 1;
    right.c = w->dims[n + 2] * right.g;
    product a = { .rows = positions,
                  .columns = inside ? 1 : o,
                  .k = qn_attr_int(e->node, QN_ATTR_CHANNELS) * right.n_kernel,
                  .pack_left = pack_patches,
                  .pack_right = pack_block_kernels,
                  .left = &p,
                  .right = &right,
                  .result = r };
    qn_array column = { .dtype = r->dtype, .rank = 1, .dims = { positions } };
    if (inside) {
        QN_TRY(qn_array_alloc(&column, e->scratch, &e->node->loc, e->in->diags));
        a.result = &column;
    }
    const int64_t of_group = across   ? qn_attr_int(e->node, QN_ATTR_OUT_CHANNELS)
                             : inside ? n_out * o / groups
                                      : o;
    for (int64_t i = 0; i < x->dims[0] * n_out; i++) {
        const int64_t sample = i / n_out, block = i % n_out, at = i * positions * o;
        if (!inside) {
            p.base = (sample * blocks + block / (n_out / groups) * (blocks / groups)) * plane;
            right.base = block * w_block;
            a.at = at;
            run_product(&a, &space);
            continue;
        }
        for (int64_t lane = 0; lane < o; lane++) {
            const int64_t group = (block * o + lane) / of_group;
            p.base = sample * blocks * plane;
            p.first = (group < groups ? group : groups - 1) * right.c;
            right.base = block * w_block + lane;
            run_product(&a, &space);
            for (int64_t k = 0; k < positions; k++)
                memcpy(qn_element(r, at + k * o + lane), qn_element(&column, k), qn_dtype_bytes(r->dtype));
        }
    }
    return QUERN_OK;
}
