/* Operators that make strings or read their characters: ops on text, which a run's table of strings computes. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"
#include "frontend/onnx/ml.h"
#include "frontend/onnx/regex.h"
#include "ir/text_ops.h"

enum {
    USUAL_PIECES = 1024
}; /* that a string is cut into, where the options don't say how many there may be */

static qn_value *strings_in(qn_onnx_node *n, int i)
{
    qn_value *x = qn_onnx_in(n, i);
    if (x && !n->in[i]->strings)
        qn_onnx_malformed(n, "input %d must be of strings", i);
    return x && n->in[i]->strings ? x : NULL;
}

static void import_concat(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *both[] = { strings_in(n, 0), strings_in(n, 1) };
    int rank;
    qn_dim dims[QN_MAX_RANK];
    if (!both[0] || !both[1] || !qn_b_broadcast_dims(b, 2, both, &rank, dims))
        return;
    for (int i = 0; i < 2; i++)
        both[i] = qn_b_broadcast_to(b, both[i], rank, dims);
    qn_onnx_out_strings(n, 0, qn_b_text_concat(b, both[0], both[1]));
}

static void import_split(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = strings_in(n, 0);
    const char *separator = qn_onnx_attr_string(n, "delimiter", "");
    const int64_t number = *separator ? qn_onnx_attr_string_number(n, "delimiter", "") : -1;
    const int64_t most = qn_onnx_attr_int(n, "maxsplit", -1);
    if (!x || (*separator && number < 0))
        return;
    qn_value *counts = qn_b_text_count(b, x, number, most < 0 ? -1 : most);
    int64_t axes[QN_MAX_RANK];
    for (int i = 0; i < x->type.rank; i++)
        axes[i] = i;
    qn_value *largest = counts ? qn_b_reduce(b, QN_KIND_MAX, counts, x->type.rank, axes, false) : NULL;
    largest = largest ? qn_b_binary(b, QN_OP_MAX, largest, qn_b_scalar_int(b, QUERN_I64, 0)) : NULL;
    const qn_dim k = qn_onnx_named_extent(n, largest, "pieces",
                                          most >= 0 && most < USUAL_PIECES ? most + 1 : USUAL_PIECES);
    if (!k)
        return;
    qn_onnx_out_strings(n, 0, qn_b_text_split(b, x, number, most < 0 ? -1 : most, k));
    if (qn_onnx_wants(n, 1))
        qn_onnx_out(n, 1, counts);
}

/* Which elements of x [C] are none of the words? */
static qn_value *others(qn_builder *b, qn_value *x, qn_value *words)
{
    const int64_t axis = 1;
    qn_value *same = qn_b_compare_bcast(b, QN_EQ, qn_b_expand_dims(b, x, 1), qn_b_expand_dims(b, words, 0));
    return same ? qn_b_unary(b, QN_OP_NOT, qn_b_reduce(b, QN_KIND_MAX, same, 1, &axis, false)) : NULL;
}

/* The elements of x [C] where `keep` holds; where it nowhere does one empty string. */
static qn_value *kept(qn_onnx_node *n, qn_value *x, qn_value *keep, int64_t empty)
{
    qn_builder *b = &n->b;
    qn_dims *dims = n->im->dims;
    const qn_dim all = x->type.dims[0], zero = qn_onnx_dim(n, 0), one = qn_onnx_dim(n, 1);
    const qn_dim count =
        qn_dim_fresh(dims, "kept", 0, all->max < QN_DIM_MAX_VALUE ? all->max : QN_DIM_MAX_VALUE);
    qn_value *at = qn_b_reshape(b, qn_b_non_zero(b, keep, count), 1, &count);
    const qn_dim more = qn_dim_sub(dims, qn_dim_max(dims, count, one), count);
    qn_value *both[] = { x, qn_b_ints(b, 1, &empty) };
    at = qn_b_pad(b, at, qn_b_dim_value(b, QUERN_I64, all), &zero, &more, NULL);
    return qn_b_gather(b, qn_b_concatenate(b, 2, both, 0), at, 0);
}

static void import_normalizer(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    qn_value *x = strings_in(n, 0);
    static const char *const actions[] = { "NONE", "LOWER", "UPPER", NULL };
    enum { NONE, LOWER, UPPER };
    const int action = qn_ml_word(n, "case_change_action", "NONE", actions);
    const bool exact = qn_onnx_attr_int(n, "is_case_sensitive", 0) != 0;
    int n_words;
    const int64_t *words = qn_onnx_attr_strings(n, "stopwords", &n_words);
    const int64_t empty = qn_onnx_string_number(n, "");
    if (!x || !qn_onnx_ok(n))
        return;
    const bool row = x->type.rank == 2;
    if (!row && x->type.rank != 1) {
        qn_onnx_unsupported(n, "only strings [C] or [1, C]");
        return;
    }
    x = row ? qn_onnx_with_dim(n, x, 0, qn_onnx_dim(n, 1)) : x;
    x = row && x ? qn_b_squeeze(b, x, 0) : x;
    if (!x)
        return;
    if (n_words) {
        qn_value *list = qn_b_ints(b, n_words, words), *seen = exact ? x : qn_b_text_case(b, x, false);
        qn_value *keep = others(b, seen, exact ? list : qn_b_text_case(b, list, false));
        x = keep ? kept(n, x, keep, empty) : NULL;
    }
    if (x && action != NONE)
        x = qn_b_text_case(b, x, action == UPPER);
    qn_onnx_out_strings(n, 0, row && x ? qn_b_expand_dims(b, x, 0) : x);
}

static void import_match(qn_onnx_node *n)
{
    qn_value *x = strings_in(n, 0);
    const char *pattern = qn_onnx_attr_string(n, "pattern", NULL);
    if (!x || !qn_onnx_ok(n))
        return;
    if (!pattern) {
        qn_onnx_malformed(n, "attribute pattern is missing");
        return;
    }
    qn_regex_table table;
    const char *wrong = qn_regex_compile(pattern, n->im->arena, &table);
    if (wrong) {
        qn_onnx_unsupported(n, "pattern \"%.200s\": %s", pattern, wrong);
        return;
    }
    const int64_t dims[] = { table.n_states, QN_TEXT_COLUMNS };
    qn_value *states = qn_b_constant(&n->b, qn_onnx_tensor_of(n->im, QUERN_U16, 2, dims, table.rows));
    qn_onnx_out(n, 0, states ? qn_b_text_match(&n->b, x, states) : NULL);
}

/* ---- Cast ---- */

void qn_onnx_cast_text(qn_onnx_node *n, int to)
{
    qn_builder *b = &n->b;
    const qn_dtype dtype = to == QN_ONNX_STRING ? QUERN_INVALID_DTYPE : qn_onnx_elem_dtype(to);
    qn_value *x = qn_onnx_in(n, 0);
    if (!x)
        return;
    if (to == QN_ONNX_STRING && n->in[0]->strings) {
        qn_onnx_out_any(n, 0, n->in[0]);
    } else if (to == QN_ONNX_STRING) {
        const qn_dtype from = x->type.dtype;
        x = qn_text_reads(from) ? x : qn_b_convert(b, qn_dtype_is_float(from) ? QUERN_F32 : QUERN_I64, x);
        qn_onnx_out_strings(n, 0, x ? qn_b_text_print(b, x) : NULL);
    } else if (dtype == QUERN_INVALID_DTYPE) {
        qn_onnx_unsupported(n, "data type %s is not supported", qn_onnx_elem_name(to));
    } else {
        const qn_dtype read = qn_text_reads(dtype)                              ? dtype
                              : qn_dtype_is_float(dtype) || dtype == QUERN_BOOL ? QUERN_F64
                                                                                : QUERN_I64;
        qn_value *y = qn_b_text_parse(b, read, x);
        qn_onnx_out(n, 0, y ? qn_b_convert(b, dtype, y) : NULL);
    }
}

const qn_onnx_op qn_onnx_text_ops[] = {
    { "StringConcat", NULL, 20, 0, import_concat },
    { "StringSplit", NULL, 20, 0, import_split },
    { "StringNormalizer", NULL, 10, 0, import_normalizer },
    { "RegexFullMatch", NULL, 20, 0, import_match },
    { 0 },
};
