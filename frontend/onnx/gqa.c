/* GroupQueryAttention of the domain com.microsoft, with groups of query heads and a cache of keys and values, and the domain's
 * RotaryEmbedding, whose tables of cosines and sines are the same. */
#include <math.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/mha.h"

typedef struct cache {
    qn_value *first; /* where the new keys go, i64 [B, 1, 1, 1] */
    qn_dim length;   /* keys in the cache afterwards */
    bool grows;      /* the new ones lie behind all of before, in each sequence */
    bool stays;      /* it is a buffer */
    qn_dim
        capacity; /* of a cache that keeps no more than attribute local_window_size looks back to; NULL: it keeps all */
    int64_t window;
    qn_value *
        kept; /* of such a one: keys in it before, i64 [B, 1, 1, 1]; they lie at its start, the last at `first` - 1 */
} cache;

/* Input i, whose contents are one number: NULL when they are not known. */
static qn_dim known_number(qn_onnx_node *n, int i)
{
    qn_onnx_contents c;
    return qn_onnx_contents_of(n->im, qn_onnx_in_any(n, i), &c) && c.n == 1 && c.dims ? c.dims[0] : NULL;
}

/* The cache has the length of what was in it and what comes, or keeps its own: that is a buffer, which holds as many keys as
 * total_sequence_length says. New keys of a sequence lie before its length, seqlens_k + 1. */
static bool read_cache(qn_onnx_node *n, qn_dim batch, qn_dim queries, qn_value *past, cache *out)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    qn_value *last = qn_onnx_of_sequences(n, qn_onnx_in(n, 5), batch);
    const qn_dim before = past ? past->type.dims[2] : qn_onnx_dim(n, 0), total = known_number(n, 6);
    if (!last || !qn_onnx_in_type(n, 6))
        return false;
    const bool buffer =
        total && past && qn_dim_is_const(before) && qn_dim_is_const(total) && total->value <= before->value;
    out->length = buffer ? before : qn_dim_add(t, before, queries);
    if (total && !buffer)
        qn_onnx_equal_dims(n, total, out->length);
    /* the first of them: at 0 where a sequence that begins is shorter than the others. Looked up, so that a length for which there
     * is no room is an error of this node's. */
    const qn_dim one = qn_onnx_dim(n, 1), places = qn_dim_add(t, qn_dim_sub(t, out->length, queries), one);
    qn_type type = qn_type_make(n->im->module, QUERN_I64, 1, &places);
    qn_value *first = sub(b, last, qn_b_dim_value(b, QUERN_I64, qn_dim_sub(t, queries, one)));
    out->first = qn_b_gather(b, qn_b_iota(b, &type, 0), max_number(b, first, 0), 0);
    out->stays = buffer;
    out->grows = qn_dim_is(before, 0) || (!buffer && qn_dim_is(batch, 1));
    return true;
}

/* Keys that a cache of `capacity` holds of the first `total` of a sequence, i64 [B, 1, 1, 1]. Where they are more, so many make
 * room at once that at least a window's are left. */
static qn_value *kept_of(qn_onnx_node *n, const cache *c, qn_value *total)
{
    qn_builder *b = &n->b;
    qn_value *capacity = qn_b_dim_value(b, QUERN_I64, c->capacity);
    qn_value *at_once = max_number(b, add_number(b, capacity, 1 - (double)c->window), 1);
    qn_value *over = max_number(b, sub(b, total, capacity), 0);
    qn_value *times = divide(b, add_number(b, add(b, over, at_once), -1), at_once);
    return sub(b, total, mul(b, times, at_once));
}

/* Attribute sliding_window_cache: the first keys[b] rows of the cache are those of the last positions, in their order. */
static bool read_window_cache(qn_onnx_node *n, qn_dim batch, qn_dim queries, qn_value *past, int64_t window,
                              cache *c)
{
    qn_builder *b = &n->b;
    if (!past || window < 1 || window > QN_DIM_MAX_VALUE || qn_onnx_attr_int(n, "causal", 1) == 0 ||
        (qn_dim_is_const(past->type.dims[2]) && past->type.dims[2]->value < window)) {
        qn_onnx_malformed(n,
                          "sliding_window_cache = 1 needs a past of at least local_window_size keys, which "
                          "is positive, and goes without causal = 0");
        return false;
    }
    if (qn_onnx_has(n, 10)) {
        qn_onnx_unsupported(n, "input 10 (attention_bias) with sliding_window_cache = 1");
        return false;
    }
    qn_value *last = qn_onnx_of_sequences(n, qn_onnx_in(n, 5), batch);
    *c = (cache){ .capacity = past->type.dims[2], .window = window };
    c->first = max_number(b, sub(b, add_number(b, last, 1), qn_b_dim_value(b, QUERN_I64, queries)), 0);
    c->kept = kept_of(n, c, c->first);
    c->length = qn_dim_add(n->im->dims, c->capacity, queries);
    return c->kept != NULL;
}

/* Rows of [B, G, T, D] whose numbers are i64 [B, 1, R, 1]. */
static qn_value *rows_of(qn_onnx_node *n, qn_value *x, qn_value *rows)
{
    qn_builder *b = &n->b;
    static const int64_t swap[4] = { 0, 2, 1, 3 };
    if (!x || !rows)
        return NULL;
    const qn_dim batch = x->type.dims[0], count = rows->type.dims[2], one = qn_onnx_dim(n, 1);
    if (qn_dim_is(batch, 1))
        return qn_b_gather(b, x, qn_b_reshape(b, rows, 1, &count), 2);
    const qn_dim index[3] = { batch, count, one };
    x = qn_b_gather_nd(b, qn_b_transpose(b, x, swap), qn_b_reshape(b, rows, 3, index), 1);
    return qn_b_transpose(b, x, swap);
}

/* i64 [1, 1, count, 1] or, `across`, [1, 1, 1, count] */
static qn_value *counted(qn_onnx_node *n, qn_dim count, bool across)
{
    const qn_dim one = qn_onnx_dim(n, 1), dims[4] = { one, one, across ? one : count, across ? count : one };
    qn_type type = qn_type_make(n->im->module, QUERN_I64, 4, dims);
    return qn_b_iota(&n->b, &type, across ? 3 : 2);
}

/* What the cache keeps of x [B, G, capacity + S, D], which is all that was in it and the new keys. Behind it lies the last of them. */
static qn_value *keep_window(qn_onnx_node *n, const cache *c, qn_value *x)
{
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    if (!x)
        return NULL;
    qn_value *capacity = qn_b_dim_value(b, QUERN_I64, c->capacity);
    qn_value *total =
        add(b, c->first, qn_b_dim_value(b, QUERN_I64, qn_dim_sub(t, x->type.dims[2], c->capacity)));
    qn_value *position = add(b, counted(n, c->capacity, false), sub(b, total, kept_of(n, c, total)));
    position = minimum(b, position, add_number(b, total, -1));
    qn_value *since = sub(b, position, c->first);
    qn_value *row =
        choose(b, compare_number(b, QN_GE, since, 0), add(b, since, capacity), add(b, since, c->kept));
    return rows_of(n, x, max_number(b, row, 0));
}

/* The window of queries whose keys are all rows of before and the new ones, by their positions: [B, 1, S, capacity + S]. The
 * attention's own causality hides new keys behind a query. */
static void allow_window(qn_onnx_attention *a, const cache *c)
{
    qn_onnx_node *n = a->n;
    qn_builder *b = &n->b;
    qn_value *row = counted(n, a->k->type.dims[2], true);
    qn_value *news = sub(b, row, qn_b_dim_value(b, QUERN_I64, c->capacity)); /* new keys: 0 and more */
    qn_value *since = choose(b, compare_number(b, QN_GE, news, 0), news, sub(b, row, c->kept));
    qn_value *there = or_else(b, compare_number(b, QN_GE, news, 0), compare(b, QN_LT, row, c->kept));
    qn_value *query = counted(n, a->q->type.dims[2], false);
    qn_value *near = compare(b, QN_GT, add_number(b, since, (double)c->window), query);
    qn_onnx_attention_allow(a, and_also(b, there, near), -INFINITY);
}

/* A buffer with x [B, G, S, D] in it, from `first` on. Nothing else is touched: where it is the memory of before, no more is
 * written. */
static qn_value *put_in_buffer(qn_onnx_node *n, const cache *c, qn_value *past, qn_value *x)
{
    qn_builder *b = &n->b;
    qn_value *zero = qn_b_scalar_int(b, QUERN_I64, 0);
    const int64_t batch = x->type.dims[0]->value;
    for (int64_t i = 0; i < batch; i++) {
        const qn_dim from = qn_onnx_dim(n, i), to = qn_onnx_dim(n, i + 1);
        qn_value *first = qn_b_reshape(b, qn_b_slice_axis(b, c->first, 0, from, to), 0, NULL);
        qn_value *starts[4] = { qn_b_scalar_int(b, QUERN_I64, i), zero, first, zero };
        past = qn_b_dynamic_update_slice(b, past, qn_b_slice_axis(b, x, 0, from, to), starts);
    }
    return past;
}

/* What was there before `first`, then x [B, G, S, D], then what was there if it is a buffer of few sequences, else zeros:
 * [B, G, length, D]. */
static qn_value *put(qn_onnx_node *n, const cache *c, qn_value *past, qn_value *x)
{
    enum { MOST_SEQUENCES = 16 }; /* each is an update of its own */
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    if (!x || c->grows)
        return past && !qn_dim_is(past->type.dims[2], 0) ? qn_onnx_after_past(n, past, x) : x;
    const qn_dim zero = qn_onnx_dim(n, 0), one = qn_onnx_dim(n, 1), low[4] = { zero, zero, zero, zero },
                 high[4] = { zero, zero, qn_dim_sub(t, c->length, past->type.dims[2]), zero },
                 row[4] = { one, one, c->length, one }, news = x->type.dims[2];
    for (int i = 0; i < 4; i++)
        past = i == 2 ? past : qn_onnx_with_dim(n, past, i, x->type.dims[i]);
    const qn_dim batch = x->type.dims[0];
    if (c->stays && qn_dim_is_const(batch) && batch->value <= MOST_SEQUENCES)
        return put_in_buffer(n, c, past, x);
    qn_type positions = qn_type_make(n->im->module, QUERN_I64, 4, row);
    qn_value *since = sub(b, qn_b_iota(b, &positions, 2), c->first); /* [B, 1, length, 1] */
    qn_value *nothing = number_like(b, x, 0), *fresh = x;
    if (!qn_dim_is(news, 1)) {
        const qn_dim index[3] = { x->type.dims[0], c->length, one };
        static const int64_t swap[4] = { 0, 2, 1, 3 };
        qn_value *most = qn_b_dim_value(b, QUERN_I64, qn_dim_sub(t, news, one));
        qn_value *from = max_number(b, minimum(b, since, most), 0);
        fresh = qn_b_gather_nd(b, qn_b_transpose(b, x, swap), qn_b_reshape(b, from, 3, index), 1);
        fresh = qn_b_transpose(b, fresh, swap);
    }
    qn_value *old = qn_b_pad(b, past, nothing, low, high, NULL);
    fresh = choose(b, compare(b, QN_LT, since, qn_b_dim_value(b, QUERN_I64, news)), fresh, nothing);
    return choose(b, compare_number(b, QN_LT, since, 0), old, fresh);
}

/* Cosines or sines [B, 1, S, half] of positions i64 [B, S]. */
static qn_value *at_positions(qn_onnx_node *n, int input, qn_value *positions)
{
    qn_value *table = qn_onnx_in(n, input);
    if (!table || !positions)
        return NULL;
    if (table->type.rank != 2) {
        qn_onnx_malformed(n, "input %d must have rank 2", input);
        return NULL;
    }
    return qn_b_expand_dims(&n->b, qn_b_gather(&n->b, table, positions, 0), 1);
}

/* Position ids, or those that follow from where the new keys go. */
static qn_value *positions_of(qn_onnx_node *n, const cache *c, const qn_dim *dims)
{
    qn_builder *b = &n->b;
    if (qn_onnx_has(n, 9)) {
        qn_value *given = qn_onnx_in(n, 9);
        if (!given || given->type.rank == 2)
            return given;
        qn_onnx_malformed(n, "position_ids must have rank 2");
        return NULL;
    }
    qn_type type = qn_type_make(n->im->module, QUERN_I64, 2, dims);
    const qn_dim flat[2] = { dims[0], qn_onnx_dim(n, 1) };
    return add(b, qn_b_iota(b, &type, 1), qn_b_reshape(b, c->first, 2, flat));
}

/* RMS norms of queries and keys by head, before they are turned: inputs 14 and 15. */
static bool normalize_heads(qn_onnx_node *n, qn_value **qk)
{
    static const char *const epsilons[2] = { "q_norm_epsilon", "k_norm_epsilon" };
    const double epsilon = qn_onnx_attr_float(n, "qk_norm_epsilon", 1e-6);
    if (qn_onnx_has(n, 14) != qn_onnx_has(n, 15)) {
        qn_onnx_malformed(n, "q_norm_weight and k_norm_weight go together");
        return false;
    }
    for (int i = 0; i < 2 && qn_onnx_has(n, 14); i++)
        if (!(qk[i] = qn_b_rms_norm(&n->b, qk[i], qn_onnx_in(n, 14 + i), 3,
                                    qn_onnx_attr_float(n, epsilons[i], epsilon))))
            return false;
    return true;
}

static bool rotate_heads(qn_onnx_node *n, const cache *c, const qn_dim *dims, qn_value **qk)
{
    if (!qn_onnx_attr_int(n, "do_rotary", 0))
        return true;
    const bool interleaved = qn_onnx_attr_int(n, "rotary_interleaved", 0) != 0;
    qn_value *positions = positions_of(n, c, dims);
    qn_value *cosine = at_positions(n, 7, positions), *sine = at_positions(n, 8, positions);
    for (int i = 0; i < 2; i++)
        if (!(qk[i] = qn_onnx_rotate(n, qk[i], cosine, sine, interleaved)))
            return false;
    return true;
}

/* Queries, keys and values in heads, of three inputs or side by side in the first. */
static bool read_grouped(qn_onnx_node *n, int64_t heads, int64_t groups, qn_value **out)
{
    qn_dims *t = n->im->dims;
    const int64_t counts[3] = { heads, groups, groups };
    qn_value *in[3] = { qn_onnx_in(n, 0), qn_onnx_in_opt(n, 1), qn_onnx_in_opt(n, 2) };
    if (!in[0] || !qn_onnx_ok(n))
        return false;
    if (!in[1] != !in[2] || in[0]->type.rank != 3 ||
        (in[1] && (in[1]->type.rank != 3 || in[2]->type.rank != 3))) {
        qn_onnx_malformed(n, "query, key and value must have rank 3; key and value may both be left out");
        return false;
    }
    const qn_dim size =
        qn_dim_floordiv(t, in[0]->type.dims[2], qn_onnx_dim(n, in[1] ? heads : heads + 2 * groups));
    qn_dim widths[3];
    for (int i = 0; i < 3; i++)
        widths[i] = qn_dim_mul(t, size, qn_onnx_dim(n, counts[i]));
    if (!in[1])
        return qn_onnx_cut_heads(n, in[0], widths, counts, out);
    for (int i = 0; i < 3; i++) {
        qn_value *x = qn_onnx_with_dim(n, qn_onnx_with_dim(n, in[i], 2, widths[i]), 1, in[0]->type.dims[1]);
        if (!(out[i] = qn_onnx_unpack_heads(n, x, counts[i])))
            return false;
    }
    return true;
}

static bool refuse_cache_types(qn_onnx_node *n)
{
    static const char *const names[2] = { "k_quant_type", "v_quant_type" };
    for (int i = 0; i < 2; i++)
        if (!qn_onnx_attr_is(n, names[i], "NONE", "NONE")) {
            qn_onnx_unsupported(n, "attribute %s = %s", names[i], qn_onnx_attr_string(n, names[i], ""));
            return false;
        }
    return qn_onnx_refuse_attribute(n, "kv_cache_bit_width");
}

static void import_grouped(qn_onnx_node *n)
{
    static const qn_onnx_named inputs[] = {
        { 12, "k_scale" }, { 13, "v_scale" }, { 16, "query_seqlens" }, { 0 }
    };
    static const qn_onnx_named outputs[] = { { 3, "output_qk" }, { 0 } };
    qn_builder *b = &n->b;
    const int64_t heads = qn_onnx_head_count(n, "num_heads"),
                  groups = heads ? qn_onnx_head_count(n, "kv_num_heads") : 0,
                  window = qn_onnx_attr_int(n, "local_window_size", -1);
    const bool slides = qn_onnx_attr_int(n, "sliding_window_cache", 0) != 0;
    qn_onnx_attention a;
    qn_value *qkv[3], *past[2] = { qn_onnx_in_opt(n, 3), qn_onnx_in_opt(n, 4) };
    cache c;
    if (!groups || !qn_onnx_refuse(n, inputs, outputs) || !refuse_cache_types(n))
        return;
    if (heads % groups) {
        qn_onnx_malformed(n, "num_heads must be a multiple of kv_num_heads");
        return;
    }
    if (!past[0] != !past[1] || (past[0] && (past[0]->type.rank != 4 || past[1]->type.rank != 4))) {
        qn_onnx_malformed(n, "past_key and past_value must both be given, and have rank 4, or be left out");
        return;
    }
    if (!read_grouped(n, heads, groups, qkv))
        return;
    const qn_dim dims[2] = { qkv[0]->type.dims[0], qkv[0]->type.dims[2] };
    if (!(slides ? read_window_cache(n, dims[0], dims[1], past[0], window, &c)
                 : read_cache(n, dims[0], dims[1], past[0], &c)) ||
        !normalize_heads(n, qkv) || !rotate_heads(n, &c, dims, qkv))
        return;
    for (int i = 0; i < 2; i++)
        qkv[i + 1] = slides ? qn_onnx_after_past(n, past[i], qkv[i + 1]) : put(n, &c, past[i], qkv[i + 1]);
    if (!qn_onnx_attention_init(&a, n, qkv[0], qkv[1], qkv[2]) || !qn_onnx_attention_read_scale(&a) ||
        !qn_onnx_attention_read_bias(&a, 10))
        return;
    a.cap = qn_onnx_attr_float(n, "softcap", 0);
    a.causal = qn_onnx_attr_int(n, "causal", 1) != 0;
    if (slides)
        a.past = c.capacity;
    else if (c.grows)
        a.past = qn_dim_sub(n->im->dims, a.k->type.dims[2], dims[1]);
    else
        a.first = c.first;
    if (slides)
        allow_window(&a, &c);
    else if (window > 0)
        a.left = window - 1;
    if (!a.causal) {
        qn_value *last = qn_onnx_of_sequences(n, qn_onnx_in(n, 5), dims[0]);
        qn_onnx_attention_allow(&a, compare(b, QN_LE, qn_onnx_attention_keys(&a), last), -INFINITY);
    }
    a.sink = qn_onnx_in_opt(n, 11);
    if (!a.sink && qn_onnx_attr_int(n, "smooth_softmax", 0) == 1) {
        qn_type type = qn_type_make(n->im->module, a.q->type.dtype, 1, &a.q->type.dims[1]);
        a.sink = qn_b_full(b, &type, 0);
    }
    for (int i = 0; i < 2; i++) {
        qn_value *present = slides ? keep_window(n, &c, i ? a.v : a.k) : i ? a.v : a.k;
        if (present && (c.stays || slides))
            qn_vec_push(n->im->arena, &n->im->updates, ((qn_onnx_update){ past[i], present }));
        qn_onnx_out(n, 1 + i, present);
    }
    qn_onnx_out(n, 0, qn_onnx_pack_heads(n, qn_onnx_attend(&a)));
}

/* ---- RotaryEmbedding ---- */

/* Positions come as [B, S], or as one number: that of the first query. */
static void import_rotary(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const int64_t heads = qn_onnx_attr_int(n, "num_heads", 0);
    qn_value *x = qn_onnx_in(n, 0), *positions = qn_onnx_in(n, 1);
    const qn_type *table = qn_onnx_in_type(n, 2);
    if (!x || !positions || !table || !qn_onnx_refuse_attribute(n, "is_packed_batching"))
        return;
    const bool packed = x->type.rank == 3;
    if ((!packed && x->type.rank != 4) || table->rank != 2 || positions->type.rank < 1 ||
        positions->type.rank > 2 || (positions->type.rank == 1 && !qn_dim_is(positions->type.dims[0], 1))) {
        qn_onnx_malformed(
            n,
            "input must have rank 3 or 4, position_ids be one number or have rank 2, and cos_cache rank 2");
        return;
    }
    const bool partly = heads > 0 && qn_onnx_attr_int(n, "rotary_embedding_dim", 0) > 0;
    if (packed && !partly) { /* a head is as long as a row of cosines says */
        const qn_dim size = qn_dim_mul(n->im->dims, table->dims[1], qn_onnx_dim(n, 2)),
                     count = qn_dim_floordiv(n->im->dims, x->type.dims[2], size);
        if (!qn_dim_is_const(count) || count->value < 1) {
            qn_onnx_unsupported(n, "the hidden size, and the length of a row of cosines, must be known");
            return;
        }
        x = qn_onnx_unpack_heads(n, x, count->value);
    } else if (packed) {
        x = qn_onnx_unpack_heads(n, x, heads);
    }
    if (!x)
        return;
    if (positions->type.rank == 1) {
        const qn_dim dims[2] = { qn_onnx_dim(n, 1), x->type.dims[2] };
        qn_type type = qn_type_make(n->im->module, positions->type.dtype, 2, dims);
        positions = add(b, qn_b_iota(b, &type, 1), positions);
    } else {
        positions =
            qn_onnx_with_dim(n, qn_onnx_with_dim(n, positions, 0, x->type.dims[0]), 1, x->type.dims[2]);
    }
    qn_value *y = qn_onnx_rotate(n, x, at_positions(n, 2, positions), at_positions(n, 3, positions),
                                 qn_onnx_attr_int(n, "interleaved", 0) != 0);
    qn_onnx_out(n, 0, packed ? qn_onnx_pack_heads(n, y) : y);
}

const qn_onnx_op qn_onnx_gqa_ops[] = {
    { "GroupQueryAttention", "com.microsoft", 1, 0, import_grouped },
    { "RotaryEmbedding", "com.microsoft", 1, 0, import_rotary },
    { 0 },
};
