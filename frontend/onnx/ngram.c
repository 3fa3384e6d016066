/* TfIdfVectorizer: how often each of a list of n-grams occurs in a row of numbers. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/ml.h"

typedef struct grams {
    const int64_t *pool, *starts, *places; /* places: of each n-gram, in the result */
    int n_pool, n_starts, n_places;
    int64_t least, most, skips, n_out;
} grams;

static bool read_grams(qn_onnx_node *n, grams *g)
{
    g->pool = qn_onnx_attr_ints(n, "pool_int64s", &g->n_pool);
    g->starts = qn_onnx_attr_ints(n, "ngram_counts", &g->n_starts);
    g->places = qn_onnx_attr_ints(n, "ngram_indexes", &g->n_places);
    g->least = qn_onnx_attr_int(n, "min_gram_length", 1);
    g->most = qn_onnx_attr_int(n, "max_gram_length", 1);
    g->skips = qn_onnx_attr_int(n, "max_skip_count", 0);
    if (n->n_in > 0 && n->in[0]->strings)
        g->pool = qn_onnx_attr_strings(n, "pool_strings", &g->n_pool);
    if (!g->pool || !g->starts || !g->places || g->n_places == 0) {
        if (qn_onnx_ok(n))
            qn_onnx_malformed(n, "an attribute of %s, ngram_counts and ngram_indexes is missing",
                              n->n_in > 0 && n->in[0]->strings ? "pool_strings" : "pool_int64s");
        return false;
    }
    if (g->least < 1 || g->most < g->least || g->most > 64 || g->skips < 0 || g->skips > 64) {
        qn_onnx_unsupported(n,
                            "n-grams of %lld to %lld numbers with up to %lld skipped; up to 64 of each are",
                            (long long)g->least, (long long)g->most, (long long)g->skips);
        return false;
    }
    int64_t total = 0;
    for (int i = 0; i < g->n_starts; i++) {
        const int64_t end = i + 1 < g->n_starts ? g->starts[i + 1] : g->n_pool;
        if (g->starts[i] < 0 || end < g->starts[i] || end > g->n_pool || (end - g->starts[i]) % (i + 1)) {
            qn_onnx_malformed(n, "the %d-grams are numbers %lld to %lld of %d", i + 1,
                              (long long)g->starts[i], (long long)end, g->n_pool);
            return false;
        }
        total += (end - g->starts[i]) / (i + 1);
    }
    for (int i = 0; i < g->n_places; i++) {
        if (g->places[i] < 0 || g->places[i] >= QN_DIM_MAX_VALUE) {
            qn_onnx_malformed(n, "element %d of ngram_indexes is %lld", i, (long long)g->places[i]);
            return false;
        }
        g->n_out = g->places[i] + 1 > g->n_out ? g->places[i] + 1 : g->n_out;
    }
    if (total != g->n_places)
        qn_onnx_malformed(n, "there are %lld n-grams, and ngram_indexes has %d elements", (long long)total,
                          g->n_places);
    return total == g->n_places;
}

/* A number that is in no n-gram: what stands behind the end of a row. */
static int64_t no_item(const grams *g)
{
    for (int64_t candidate = -1;; candidate--) {
        int i = 0;
        while (i < g->n_pool && g->pool[i] != candidate)
            i++;
        if (i == g->n_pool)
            return candidate;
    }
}

/* How often each of `count` n-grams of `length` items is in the rows of x [N, C], the next item being `step` behind one:
 * [N, count]. */
static qn_value *occurrences(qn_onnx_node *n, qn_value *x, const int64_t *items, int64_t count, int length,
                             int64_t step, int64_t nothing)
{
    qn_builder *b = &n->b;
    qn_dims *dims = n->im->dims;
    const qn_dim none[2] = { qn_onnx_dim(n, 0), qn_onnx_dim(n, 0) };
    const qn_dim behind[2] = { none[0], qn_onnx_dim(n, step * (length - 1)) }, columns = x->type.dims[1];
    qn_value *padded = qn_b_pad(b, x, qn_b_scalar_int(b, x->type.dtype, nothing), none, behind, NULL),
             *all = NULL;
    int64_t *column = QN_NEW_ARRAY(n->im->arena, int64_t, count);
    for (int k = 0; k < length && padded; k++) {
        const qn_dim start = qn_onnx_dim(n, step * k);
        qn_value *at = qn_b_slice_axis(b, padded, 1, start, qn_dim_add(dims, start, columns));
        for (int64_t i = 0; i < count; i++)
            column[i] = items[i * length + k];
        qn_value *want = qn_b_convert(b, x->type.dtype, qn_b_ints(b, (int)count, column));
        qn_value *same = compare(b, QN_EQ, qn_b_expand_dims(b, at, 2), want);
        all = all ? and_also(b, all, same) : same;
    }
    const int64_t axis = 1;
    return all ? qn_b_reduce(b, QN_SUM, qn_b_convert(b, QUERN_F32, all), 1, &axis, false) : NULL;
}

/* Counts [N, n-grams] at their places: [N, places]. */
static qn_value *put(qn_onnx_node *n, const grams *g, qn_value *counts, const int64_t *places, int count)
{
    qn_builder *b = &n->b;
    int64_t *from = QN_NEW_ARRAY(n->im->arena, int64_t, g->n_out);
    bool once = true;
    for (int64_t i = 0; i < g->n_out; i++)
        from[i] = count; /* a column of zeros */
    for (int i = 0; i < count; i++) {
        once &= from[places[i]] == count;
        from[places[i]] = i;
    }
    qn_type type = { QUERN_F32, 2, (const qn_dim[]){ counts->type.dims[0], qn_onnx_dim(n, 1) } };
    if (once) {
        qn_value *both[2] = { counts, qn_b_full(b, &type, 0) };
        return qn_b_gather(b, qn_b_concatenate(b, 2, both, 1), qn_b_ints(b, (int)g->n_out, from), 1);
    }
    type.dims = (const qn_dim[]){ counts->type.dims[0], qn_onnx_dim(n, g->n_out) };
    qn_value *indices = qn_b_broadcast_to(b, qn_b_ints(b, count, places), 2, counts->type.dims);
    return qn_b_scatter_elements(b, QN_SUM, qn_b_full(b, &type, 0), indices, counts, 1);
}

static void import_tf_idf(qn_onnx_node *n)
{
    static const char *const words[] = { "TF", "IDF", "TFIDF", NULL };
    enum { TF, IDF };
    qn_builder *b = &n->b;
    grams g = { 0 };
    const int mode = qn_ml_word(n, "mode", "TF", words);
    int n_weights;
    const float *weights = qn_onnx_attr_floats(n, "weights", &n_weights);
    qn_value *x = qn_onnx_in(n, 0), *y = NULL;
    if (mode < 0 || !x || !read_grams(n, &g))
        return;
    const bool row = x->type.rank == 1;
    if (x->type.rank < 1 || x->type.rank > 2 || !qn_dtype_is_int(x->type.dtype)) {
        qn_onnx_unsupported(n, "only integers [C] or [N, C]");
        return;
    }
    if (weights && n_weights < g.n_out) {
        qn_onnx_malformed(n, "there are %d weights for %lld places", n_weights, (long long)g.n_out);
        return;
    }
    x = row ? qn_b_expand_dims(b, x, 0) : x;
    const int64_t nothing = no_item(&g);
    bool narrow = x->type.dtype == QUERN_I32 && nothing >= INT32_MIN;
    for (int i = 0; i < g.n_pool; i++)
        narrow &= g.pool[i] >= INT32_MIN && g.pool[i] <= INT32_MAX;
    x = narrow ? x : qn_b_convert(b, QUERN_I64, x);
    qn_value **parts = QN_NEW_ARRAY(n->im->arena, qn_value *, g.n_starts);
    int64_t *places = QN_NEW_ARRAY(n->im->arena, int64_t, g.n_places);
    int n_parts = 0, n_placed = 0;
    for (int i = 0, first = 0; i < g.n_starts; i++) {
        const int64_t end = i + 1 < g.n_starts ? g.starts[i + 1] : g.n_pool;
        const int64_t count = (end - g.starts[i]) / (i + 1);
        qn_value *sum = NULL;
        /* one number is where it is, however many are skipped */
        for (int64_t step = 1; step <= (i == 0 ? 1 : g.skips + 1) && count && i + 1 >= g.least && i < g.most;
             step++) {
            qn_value *more = occurrences(n, x, g.pool + g.starts[i], count, i + 1, step, nothing);
            sum = sum ? add(b, sum, more) : more;
        }
        if (sum) {
            parts[n_parts++] = sum;
            memcpy(places + n_placed, g.places + first, (size_t)count * sizeof *places);
            n_placed += (int)count;
        }
        first += (int)count;
    }
    const qn_type type = { QUERN_F32, 2, (const qn_dim[]){ x->type.dims[0], qn_onnx_dim(n, g.n_out) } };
    if (n_parts == 0)
        y = qn_b_full(b, &type, 0);
    else
        y = put(n, &g, n_parts == 1 ? parts[0] : qn_b_concatenate(b, n_parts, parts, 1), places, n_placed);
    if (mode == IDF)
        y = y ? qn_b_convert(b, QUERN_F32, compare_number(b, QN_GT, y, 0)) : NULL;
    if (mode != TF && weights)
        y = mul(b, y, qn_b_constant(b, qn_onnx_tensor_of(n->im, QUERN_F32, 1, &g.n_out, weights)));
    qn_onnx_out(n, 0, row && y ? qn_b_squeeze(b, y, 0) : y);
}

const qn_onnx_op qn_onnx_ngram_ops[] = {
    { "TfIdfVectorizer", NULL, 9, 0, import_tf_idf },
    { 0 },
};
