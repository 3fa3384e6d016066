/* Convolutions over what is spread, without the zeros in between: see build.h. */
#include "ir/build.h"

enum { MAX_PHASES = 4, MAX_OF_SYMBOLS = 8, BLOCK = 16 };
#define MOST_GIVEN 1.25 /* taps that are multiplied, zeros among them, for one */

static int64_t ceil_div(int64_t x, int64_t y)
{
    return (x + y - 1) / y;
}

/* Of the result along spatial axis i over x of that extent. */
static int64_t result_extent(const qn_type *w, const qn_conv *conv, int i, int64_t extent)
{
    return (extent - 1) * conv->x_dilation[i] + 1 + (conv->low ? conv->low[i] : 0) +
           (conv->high ? conv->high[i] : 0) - (w->dims[i + 2]->value - 1);
}

/* Has the result elements of each phase, for every extent that a symbol stands for? Over none it has as many as the padding
 * makes, which the phases agree about where otherwise it has s for each element of x. */
static bool fills_phases(const qn_type *x, const qn_type *w, const qn_conv *conv, int i)
{
    const qn_dim extent = x->dims[i + 2];
    if (qn_dim_is_const(extent))
        return extent->value > 0;
    return extent->min > 0 ? result_extent(w, conv, i, extent->min) >= conv->x_dilation[i]
                           : result_extent(w, conv, i, 0) == 0;
}

/* In how many phases; 1 where it stays as it is. */
static int64_t count_phases(const qn_type *x, const qn_type *w, const qn_conv *conv)
{
    int64_t n = 1;
    for (int i = 0; i < x->rank - 2; i++) {
        const bool plain =
            (!conv->stride || conv->stride[i] == 1) && (!conv->w_dilation || conv->w_dilation[i] == 1);
        const int64_t most = qn_dim_is_const(x->dims[i + 2]) ? MAX_PHASES : MAX_OF_SYMBOLS;
        if (!plain || !qn_dim_is_const(w->dims[i + 2]) || conv->x_dilation[i] > most / n ||
            !fills_phases(x, w, conv, i))
            return 1;
        n *= conv->x_dilation[i];
    }
    return n;
}

/* Taps that a phase has along spatial axis i, where all are given as many. */
static int64_t taps_of(const qn_type *w, const qn_conv *conv, int i)
{
    return ceil_div(w->dims[i + 2]->value, conv->x_dilation[i]);
}

/* Does each element of x become as many of the result along spatial axis i, which no other has a part in? */
static bool is_tile(const qn_type *w, const qn_conv *conv, int i)
{
    const int64_t s = conv->x_dilation[i];
    return qn_dim_is(w->dims[i + 2], s) && conv->low && conv->low[i] == s - 1 && conv->high &&
           conv->high[i] == s - 1;
}

/* Are extents, strides and padding so small that no product of two of them overflows? */
static bool is_countable(const qn_type *x, const qn_type *w, const qn_conv *conv, int i)
{
    const int64_t most = INT32_MAX, low = conv->low ? conv->low[i] : 0, high = conv->high ? conv->high[i] : 0;
    return conv->x_dilation[i] <= most && w->dims[i + 2]->value <= most && x->dims[i + 2]->min <= most &&
           low >= -most && low <= most && high >= -most && high <= most;
}

/* Have the phases as many taps, or nearly so, that they are channels of one convolution? Where elements of x don't become tiles a
 * few phases by themselves are as good, whose results need not be put side by side. */
static bool is_tiles(const qn_type *x, const qn_type *w, const qn_conv *conv)
{
    const int64_t n_phases = count_phases(x, w, conv);
    bool spread = false, tiles = true;
    double taps = 1, given = 1;
    if (2 * w->rank - 2 > QN_MAX_RANK)
        return false;
    for (int i = 0; i < w->rank - 2; i++) {
        const int64_t s = conv->x_dilation[i];
        if ((conv->stride && conv->stride[i] != 1) || !qn_dim_is_const(w->dims[i + 2]) ||
            w->dims[i + 2]->value < 1 || (conv->w_dilation && conv->w_dilation[i] != 1) ||
            !is_countable(x, w, conv, i) || (s > 1 && x->dims[i + 2]->min < 1 && !is_tile(w, conv, i)))
            return false;
        spread |= s > 1;
        tiles &= is_tile(w, conv, i);
        taps *= (double)w->dims[i + 2]->value;
        given *= (double)(taps_of(w, conv, i) * s);
    }
    return spread && (tiles || n_phases == 1) && given <= MOST_GIVEN * taps;
}

/* x spread by s and convolved has at t = s q - r + low, 0 <= r < s, the sum of w[s k + r] x[q + k] over k: a convolution of x with a channel
 * for each r, whose results are put side by side, the highest r first. What is before t = 0 and behind the end is cut off. */
static qn_value *convolve_tiles(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv)
{
    qn_dims *t = qn_b_dims(b);
    const int n = x->type.rank - 2;
    /* where channels are whole blocks, those of one r after those of another, so that blocks are moved as they are */
    const bool whole = conv->groups <= 1 && qn_dim_divisible(w->type.dims[0], BLOCK);
    const int r_axis = whole ? 1 : 2, o_axis = whole ? n + 1 : 1;
    const qn_dim zero = qn_dim_const(t, 0);
    int64_t reversed[QN_MAX_RANK], last[QN_MAX_RANK], apart[QN_MAX_RANK] = { 0, o_axis }, low[QN_MAX_RANK],
                                                      high[QN_MAX_RANK];
    qn_dim filled[QN_MAX_RANK] = { zero, zero }, none[QN_MAX_RANK], flat[QN_MAX_RANK], cut[QN_MAX_RANK],
           dims[QN_MAX_RANK], result[QN_MAX_RANK], start[QN_MAX_RANK] = { zero, zero }, limit[QN_MAX_RANK];
    flat[0] = cut[0] = w->type.dims[0];
    flat[1] = cut[1] = w->type.dims[1];
    none[0] = none[1] = zero;
    for (int i = 0; i < n; i++) {
        const int64_t s = conv->x_dilation[i], taps = taps_of(&w->type, conv, i),
                      before = conv->low ? conv->low[i] : 0;
        none[i + 2] = zero;
        filled[i + 2] = qn_dim_const(t, taps * s - w->type.dims[i + 2]->value);
        cut[2 + 2 * i] = flat[i + 2] = qn_dim_const(t, taps);
        cut[3 + 2 * i] = qn_dim_const(t, s);
        flat[0] = qn_dim_mul(t, flat[0], cut[3 + 2 * i]);
        reversed[i] = 3 + 2 * i;
        last[r_axis - 1 + i] = 3 + 2 * i;
        last[n + 2 + i] = 2 + 2 * i;
        /* what follows is the same for all extents */
        const int64_t least = x->type.dims[i + 2]->min, extent = least > 0 ? least : 1,
                      all = result_extent(&w->type, conv, i, extent), first = ceil_div(before + 1, s),
                      skipped = first * s - 1 - before, count = ceil_div(skipped + all, s);
        low[i] = first - 1;
        high[i] = count - extent - low[i] + taps - 1;
        start[i + 2] = qn_dim_const(t, skipped);
        limit[i + 2] = qn_dim_add(t, qn_dim_mul(t, x->type.dims[i + 2], qn_dim_const(t, s)),
                                  qn_dim_const(t, skipped + all - extent * s));
    }
    last[o_axis - 1] = 0; /* [s…, O, I, taps…] or [O, s…, I, taps…] */
    last[n + 1] = 1;
    w = qn_b_pad(b, w, qn_b_scalar(b, w->type.dtype, 0), none, filled, NULL);
    w = w ? qn_b_reverse(b, qn_b_reshape(b, w, 2 * n + 2, cut), n, reversed) : NULL;
    w = w ? qn_b_reshape(b, qn_b_transpose(b, w, last), n + 2, flat) : NULL;
    const qn_conv plain = { .low = low, .high = high, .groups = conv->groups };
    qn_value *y = w ? qn_b_convolution(b, x, w, &plain) : NULL;
    if (!y)
        return NULL;
    dims[0] = result[0] = limit[0] = y->type.dims[0];
    dims[o_axis] = result[1] = limit[1] = cut[0];
    for (int i = 0; i < n; i++) {
        dims[r_axis + i] = cut[3 + 2 * i];
        dims[2 + n + i] = y->type.dims[2 + i];
        result[2 + i] = qn_dim_mul(t, y->type.dims[2 + i], dims[r_axis + i]);
        apart[2 + 2 * i] = 2 + n + i;
        apart[3 + 2 * i] = r_axis + i;
    }
    y = qn_b_reshape(b, qn_b_transpose(b, qn_b_reshape(b, y, 2 + 2 * n, dims), apart), n + 2, result);
    return y ? qn_b_slice(b, y, start, limit, NULL) : NULL;
}

qn_value *qn_b_convolution_in_phases(qn_builder *b, qn_value *x, qn_value *w, const qn_conv *conv)
{
    if (!x || !w)
        return NULL;
    qn_dims *dims = qn_b_dims(b);
    const int rank = x->type.rank, n = rank - 2;
    const int64_t n_phases = conv->x_dilation ? count_phases(&x->type, &w->type, conv) : 1;
    if (conv->x_dilation && is_tiles(&x->type, &w->type, conv))
        return convolve_tiles(b, x, w, conv);
    const qn_dim zero = qn_dim_const(dims, 0);
    qn_value *sum = NULL;
    for (int64_t phase = 0; phase < n_phases && n_phases > 1; phase++) {
        qn_dim start[QN_MAX_RANK] = { zero, zero }, before[QN_MAX_RANK] = { zero, zero },
               after[QN_MAX_RANK] = { zero, zero };
        int64_t step[QN_MAX_RANK] = { 1, 1 }, interior[QN_MAX_RANK] = { 0, 0 }, from[QN_MAX_RANK],
                to[QN_MAX_RANK], rest = phase;
        bool empty = false;
        for (int i = 0; i < n; i++) {
            const int64_t s = conv->x_dilation[i], at = rest % s, low = conv->low ? conv->low[i] : 0,
                          /* what follows is the same for all extents */
                least = x->type.dims[i + 2]->min, extent = least > 0 ? least : 1,
                          taps_of_all = w->type.dims[i + 2]->value,
                          result = result_extent(&w->type, conv, i, extent), first = ((low - at) % s + s) % s,
                          count = ceil_div(result - at, s), taps = ceil_div(taps_of_all - first, s);
            rest /= s;
            empty |= result <= at || taps_of_all <= first;
            from[i] = (low - at - first) / s;
            to[i] = count + taps - 1 - extent - from[i];
            start[i + 2] = qn_dim_const(dims, first);
            step[i + 2] = s;
            interior[i + 2] = s - 1;
            before[i + 2] = qn_dim_const(dims, at);
            after[i + 2] = qn_dim_const(dims, result - 1 - at - (count - 1) * s);
        }
        if (empty)
            continue;
        const qn_conv plain = { .low = from, .high = to, .groups = conv->groups };
        qn_value *part = qn_b_convolution(b, x, qn_b_slice(b, w, start, w->type.dims, step), &plain);
        part = part ? qn_b_pad(b, part, qn_b_scalar(b, x->type.dtype, 0), before, after, interior) : NULL;
        sum = sum ? qn_b_binary(b, QN_OP_ADD, sum, part) : part;
    }
    return sum ? sum : qn_b_convolution(b, x, w, conv);
}
