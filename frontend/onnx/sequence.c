/* Sequences and optionals of known length: they exist while importing only. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/families.h"

/* Input i as a sequence; NULL after a report. */
static qn_onnx_value *sequence_in(qn_onnx_node *n, int i)
{
    qn_onnx_value *v = qn_onnx_in_any(n, i);
    if (v->kind == QN_ONNX_SEQUENCE)
        return v;
    if (v->kind != QN_ONNX_PIECES) {
        qn_onnx_malformed(n, "input %d is not a sequence", i);
        return NULL;
    }
    if (v->type.rank > v->axis)
        qn_onnx_needs_dim(n, v->type.dims[v->axis]);
    qn_onnx_unsupported(n, "input %d is a sequence whose length must be known", i);
    return NULL;
}

static qn_onnx_value *sequence_new(qn_onnx_node *n, int n_items)
{
    qn_onnx_value *v = qn_onnx_value_new(n->im, QN_ONNX_SEQUENCE);
    v->n_items = n_items;
    v->items = QN_NEW_ARRAY(n->im->arena, qn_onnx_value *, n_items);
    return v;
}

static void import_construct(qn_onnx_node *n)
{
    qn_onnx_value *v = sequence_new(n, n->n_in);
    for (int i = 0; i < n->n_in; i++) {
        v->items[i] = n->in[i];
        if (n->in[i]->kind != QN_ONNX_TENSOR)
            qn_onnx_malformed(n, "input %d is not a tensor", i);
    }
    qn_onnx_out_any(n, 0, v);
}

static void import_empty(qn_onnx_node *n)
{
    qn_onnx_out_any(n, 0, sequence_new(n, 0));
}

/* Position from input i (default: `fallback`), in [0, limit). */
static bool position_in(qn_onnx_node *n, int i, int n_items, int limit, int64_t fallback, int *out)
{
    int64_t at = fallback;
    if (qn_onnx_has(n, i) && !qn_onnx_in_int(n, i, &at))
        return false;
    at += at < 0 ? n_items : 0;
    if (at < 0 || at >= limit) {
        qn_onnx_malformed(n, "position %lld is outside of the sequence of %d", (long long)at, n_items);
        return false;
    }
    *out = (int)at;
    return true;
}

/* At a position that is not known: the items, if alike, stacked and gathered. */
static void gather_item(qn_onnx_node *n, const qn_onnx_value *s)
{
    qn_builder *b = &n->b;
    qn_value **items = QN_NEW_ARRAY(n->im->arena, qn_value *, s->n_items);
    for (int i = 0; i < s->n_items; i++) {
        if (!qn_type_equal(&s->items[i]->type, &s->items[0]->type) || s->items[i]->strings) {
            qn_onnx_needs_contents(n, 1);
            return;
        }
        items[i] = qn_b_expand_dims(b, qn_onnx_value_make(b, s->items[i]), 0);
    }
    qn_value *at = qn_b_reshape(b, qn_onnx_in(n, 1), 0, NULL);
    qn_onnx_out(n, 0, qn_b_gather(b, qn_b_concatenate(b, s->n_items, items, 0), at, 0));
}

static void import_at(qn_onnx_node *n)
{
    qn_onnx_value *s = sequence_in(n, 0);
    qn_onnx_contents c;
    int at;
    if (!s || !qn_onnx_in_type(n, 1))
        return;
    if (!qn_onnx_contents_of(n->im, n->in[1], &c) && s->n_items)
        gather_item(n, s);
    else if (position_in(n, 1, s->n_items, s->n_items, 0, &at))
        qn_onnx_out_any(n, 0, s->items[at]);
}

static void import_insert(qn_onnx_node *n)
{
    qn_onnx_value *s = sequence_in(n, 0);
    int at;
    if (!s || !qn_onnx_in_type(n, 1) || !position_in(n, 2, s->n_items, s->n_items + 1, s->n_items, &at))
        return;
    qn_onnx_value *v = sequence_new(n, s->n_items + 1);
    for (int i = 0; i <= s->n_items; i++)
        v->items[i] = i == at ? n->in[1] : s->items[i - (i > at)];
    qn_onnx_out_any(n, 0, v);
}

static void import_erase(qn_onnx_node *n)
{
    qn_onnx_value *s = sequence_in(n, 0);
    int at;
    if (!s || !position_in(n, 1, s->n_items, s->n_items, s->n_items - 1, &at))
        return;
    qn_onnx_value *v = sequence_new(n, s->n_items - 1);
    for (int i = 0; i < v->n_items; i++)
        v->items[i] = s->items[i + (i >= at)];
    qn_onnx_out_any(n, 0, v);
}

static void import_length(qn_onnx_node *n)
{
    qn_onnx_value *s = sequence_in(n, 0);
    if (!s)
        return;
    qn_dim length = qn_dim_const(n->im->dims, s->n_items);
    qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, QUERN_I64, 0, NULL, &length));
}

/* By sizes (a list), by one size (a scalar; the last part may be smaller), or into single slices. */
static void import_split(qn_onnx_node *n)
{
    enum { MAX_PARTS = 65536 };
    qn_builder *b = &n->b;
    qn_dims *t = n->im->dims;
    const qn_type *x = qn_onnx_in_type(n, 0);
    int axis, n_parts = 0;
    if (!x || !qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), x->rank, &axis))
        return;
    bool single = !qn_onnx_has(n, 1), by_one = single || (qn_onnx_in_type(n, 1) && n->in[1]->type.rank == 0);
    bool squeeze = single && !qn_onnx_attr_int(n, "keepdims", 1);
    qn_dim sizes[QN_ONNX_CONTENTS_MAX], size = qn_dim_const(t, 1);
    int count;
    const bool ones = single || qn_onnx_all_are(qn_onnx_in(n, 1), 1);
    if (ones && !(single && squeeze) && !qn_dim_is_const(x->dims[axis])) {
        qn_onnx_value *pieces = qn_onnx_value_new(n->im, QN_ONNX_PIECES);
        pieces->whole = qn_onnx_in(n, 0);
        pieces->type = *x;
        pieces->axis = axis;
        qn_onnx_out_any(n, 0, pieces->whole ? pieces : NULL);
        return;
    }
    if (!by_one && !qn_onnx_in_dims(n, 1, QN_ONNX_CONTENTS_MAX, sizes, &n_parts))
        return;
    if (by_one) {
        if (!single && !qn_onnx_in_dims(n, 1, 1, &size, &count))
            return;
        qn_dim parts = size->min > 0 ? qn_dim_ceildiv(t, x->dims[axis], size) : qn_dim_const(t, -1);
        if (!qn_dim_is_const(parts) || parts->value < 0 || parts->value > MAX_PARTS) {
            qn_onnx_needs_dim(n, parts);
            qn_onnx_unsupported(n, "the number of parts is %s; it must be known",
                                qn_dim_print(parts, n->im->arena));
            return;
        }
        n_parts = (int)parts->value;
    }
    qn_onnx_value *v = sequence_new(n, n_parts);
    qn_dim start = qn_dim_const(t, 0);
    for (int i = 0; i < n_parts; i++) {
        qn_dim limit = qn_dim_add(t, start, by_one ? size : sizes[i]);
        if (by_one && i == n_parts - 1)
            limit = x->dims[axis];
        qn_value *part = qn_b_slice_axis(b, qn_onnx_in(n, 0), axis, start, limit);
        part = squeeze ? qn_b_squeeze(b, part, axis) : part;
        if (!part)
            return;
        v->items[i] = qn_onnx_value_from(n->im, part);
        start = limit;
    }
    if (ones && !squeeze) {
        v->whole = qn_onnx_in(n, 0);
        v->axis = axis;
    }
    qn_onnx_out_any(n, 0, v);
}

static void import_concat(qn_onnx_node *n)
{
    qn_builder *b = &n->b;
    const qn_onnx_value *pieces = qn_onnx_in_any(n, 0);
    if (pieces->kind == QN_ONNX_PIECES && pieces->whole && qn_onnx_attr_int(n, "new_axis", 0) == 0 &&
        qn_onnx_attr_int(n, "axis", 0) == pieces->axis) {
        qn_onnx_out(n, 0, pieces->whole);
        return;
    }
    qn_onnx_value *s = sequence_in(n, 0);
    bool new_axis = qn_onnx_attr_int(n, "new_axis", 0) != 0;
    int axis;
    if (!s)
        return;
    if (s->n_items == 0) {
        qn_onnx_malformed(n, "the sequence is empty");
        return;
    }
    if (!qn_onnx_axis(n, qn_onnx_attr_int(n, "axis", 0), s->items[0]->type.rank + new_axis, &axis))
        return;
    qn_value **items = QN_NEW_ARRAY(n->im->arena, qn_value *, s->n_items);
    for (int i = 0; i < s->n_items; i++) {
        items[i] = qn_onnx_value_make(b, s->items[i]);
        for (int k = 0; items[i] && k < items[0]->type.rank - new_axis && i; k++)
            if (new_axis || k != axis)
                items[i] = qn_onnx_with_dim(n, items[i], k, items[0]->type.dims[k + (new_axis && k >= axis)]);
        if (new_axis)
            items[i] = qn_b_expand_dims(b, items[i], axis);
    }
    qn_onnx_out(n, 0, qn_b_concatenate(b, s->n_items, items, axis));
}

/* The body, once per item. */
static void import_map(qn_onnx_node *n)
{
    const Onnx__Graph *body = qn_onnx_attr_graph(n, "body");
    qn_onnx_value *s = sequence_in(n, 0);
    if (!body || !s)
        return;
    if ((int)body->n_input != n->n_in || (int)body->n_output < n->n_out) {
        qn_onnx_malformed(n, "the body's inputs and outputs do not fit the node's");
        return;
    }
    for (int i = 0; i < n->n_out; i++)
        qn_onnx_out_any(n, i, sequence_new(n, s->n_items));
    for (int k = 0; k < s->n_items; k++) {
        qn_onnx_scope *scope = qn_onnx_scope_new(n, NULL);
        if (!scope)
            return;
        for (int i = 0; i < n->n_in; i++) {
            qn_onnx_value *v = n->in[i];
            if (v->kind == QN_ONNX_SEQUENCE && v->n_items != s->n_items) {
                qn_onnx_malformed(n, "the sequences differ in length");
                return;
            }
            v = v->kind == QN_ONNX_SEQUENCE ? v->items[k] : v;
            if (!qn_onnx_scope_define(scope, body->input[i]->name, v, &n->b.loc))
                return;
        }
        if (!qn_onnx_scope_import(scope, body))
            return;
        qn_onnx_touched(n, scope);
        for (int i = 0; i < n->n_out; i++)
            if (!(n->out[i]->items[k] = qn_onnx_scope_output(scope, body, i, &n->b.loc)))
                return;
    }
}

/* ---- optionals: the value itself, or none ---- */

static void import_optional(qn_onnx_node *n)
{
    qn_onnx_out_any(n, 0, qn_onnx_has(n, 0) ? n->in[0] : qn_onnx_value_new(n->im, QN_ONNX_NONE));
}

static void import_get_element(qn_onnx_node *n)
{
    if (qn_onnx_has(n, 0))
        qn_onnx_out_any(n, 0, n->in[0]);
    else
        qn_onnx_malformed(n, "the optional has no value");
}

static void import_has_element(qn_onnx_node *n)
{
    qn_dim has = qn_dim_const(n->im->dims, qn_onnx_has(n, 0));
    qn_onnx_out_any(n, 0, qn_onnx_value_dims(n->im, QUERN_BOOL, 0, NULL, &has));
}

const qn_onnx_op qn_onnx_sequence_ops[] = {
    { "SequenceConstruct", NULL, 11, 0, import_construct },
    { "SequenceEmpty", NULL, 11, 0, import_empty },
    { "SequenceAt", NULL, 11, 0, import_at },
    { "SequenceInsert", NULL, 11, 0, import_insert },
    { "SequenceErase", NULL, 11, 0, import_erase },
    { "SequenceLength", NULL, 11, 0, import_length },
    { "SplitToSequence", NULL, 11, 0, import_split },
    { "ConcatFromSequence", NULL, 11, 0, import_concat },
    { "SequenceMap", NULL, 17, 0, import_map },
    { "Optional", NULL, 15, 0, import_optional },
    { "OptionalGetElement", NULL, 15, 0, import_get_element },
    { "OptionalHasElement", NULL, 15, 0, import_has_element },
    { 0 },
};
