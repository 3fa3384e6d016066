/* What an operator's function asks of its node. */
#include <stdlib.h>
#include <string.h>

#include "frontend/onnx/frame.h"
#include "frontend/onnx/import.h"

/* ---- messages ---- */

/* " [float[1, 3], none]" */
static const char *input_types(const qn_onnx_node *n)
{
    qn_arena *arena = n->im->arena;
    const char *text = "";
    for (int i = 0; i < n->n_in && i < 8; i++) {
        const qn_onnx_value *v = n->in[i];
        const char *one = v->kind == QN_ONNX_NONE       ? "none"
                          : v->kind == QN_ONNX_SEQUENCE ? "sequence"
                          : v->kind == QN_ONNX_PIECES   ? "sequence of unknown length"
                          : v->kind == QN_ONNX_FAILED   ? "?"
                                                        : qn_type_print(&v->type, arena);
        if (v->strings)
            one = qn_arena_printf(arena, "string%s", strchr(one, '['));
        text = qn_arena_printf(arena, "%s%s%s", text, i ? ", " : "", one);
    }
    return *text ? qn_arena_printf(arena, " (inputs: %s)", text) : "";
}

static void report(qn_onnx_node *n, qn_status status, const char *format, va_list args)
{
    const char *text = qn_arena_vprintf(n->im->arena, format, args);
    qn_error(n->im->diags, n->n_missed ? QUERN_ERROR_UNSUPPORTED : status, &n->b.loc, "%s%s%s%s", text,
             input_types(n), n->n_missed ? "; it would do to fix " : "", n->n_missed ? n->missed : "");
    n->n_missed = 0;
}

void qn_onnx_unsupported(qn_onnx_node *n, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    report(n, QUERN_ERROR_UNSUPPORTED, format, args);
    va_end(args);
}

void qn_onnx_malformed(qn_onnx_node *n, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    report(n, QUERN_ERROR_MODEL, format, args);
    va_end(args);
}

bool qn_onnx_ok(const qn_onnx_node *n)
{
    return n->im->diags->n_errors == n->n_errors;
}

/* ---- attributes ---- */

static const Onnx__Attribute *find_attribute(size_t n, Onnx__Attribute *const *attributes, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(attributes[i]->name, name))
            return attributes[i];
    return NULL;
}

const Onnx__Attribute *qn_onnx_attr(qn_onnx_node *n, const char *name, Onnx__Attribute__Kind kind)
{
    const Onnx__Attribute *a = find_attribute(n->proto->n_attribute, n->proto->attribute, name);
    /* In a function's body an attribute may stand for one of the call's, which may stand for one of an outer call's. */
    for (const qn_onnx_frame *frame = n->scope->frame; a && *a->ref_attr_name; frame = frame->outer) {
        if (!frame) {
            qn_onnx_malformed(n, "attribute %s refers to a function's attribute outside of a function", name);
            return NULL;
        }
        const char *other = a->ref_attr_name;
        a = find_attribute(frame->call->n_attribute, frame->call->attribute, other);
        if (!a) {
            a = find_attribute(frame->function->n_attribute_default, frame->function->attribute_default,
                               other);
            break;
        }
    }
    if (a && a->kind != (int32_t)kind) {
        qn_onnx_malformed(n, "attribute %s has the wrong kind", name);
        return NULL;
    }
    return a;
}

int64_t qn_onnx_attr_int(qn_onnx_node *n, const char *name, int64_t fallback)
{
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__INT);
    return a ? a->i : fallback;
}

double qn_onnx_attr_float(qn_onnx_node *n, const char *name, double fallback)
{
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__FLOAT);
    return a ? (double)a->f : fallback;
}

const char *qn_onnx_attr_string(qn_onnx_node *n, const char *name, const char *fallback)
{
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__STRING);
    if (!a)
        return fallback;
    if (a->s.len && memchr(a->s.data, 0, a->s.len)) {
        qn_onnx_unsupported(n, "attribute %s has a byte of zero in it", name);
        return "";
    }
    return qn_arena_printf(n->im->arena, "%.*s", (int)a->s.len, (const char *)a->s.data);
}

bool qn_onnx_attr_is(qn_onnx_node *n, const char *name, const char *fallback, const char *value)
{
    return !strcmp(qn_onnx_attr_string(n, name, fallback), value);
}

const int64_t *qn_onnx_attr_ints(qn_onnx_node *n, const char *name, int *out_n)
{
    static const int64_t none[1];
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__INTS);
    if (a && a->n_ints > INT32_MAX) {
        qn_onnx_malformed(n, "attribute %s is too long", name);
        a = NULL;
    }
    *out_n = a ? (int)a->n_ints : 0;
    return !a ? NULL : a->n_ints ? a->ints : none;
}

const float *qn_onnx_attr_floats(qn_onnx_node *n, const char *name, int *out_n)
{
    static const float none[1];
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__FLOATS);
    if (a && a->n_floats > INT32_MAX) {
        qn_onnx_malformed(n, "attribute %s is too long", name);
        a = NULL;
    }
    *out_n = a ? (int)a->n_floats : 0;
    return !a ? NULL : a->n_floats ? a->floats : none;
}

const Onnx__Graph *qn_onnx_attr_graph(qn_onnx_node *n, const char *name)
{
    const Onnx__Attribute *a = qn_onnx_attr(n, name, ONNX__ATTRIBUTE__KIND__GRAPH);
    if ((!a || !a->g) && qn_onnx_ok(n))
        qn_onnx_malformed(n, "attribute %s, a graph, is missing", name);
    return a ? a->g : NULL;
}

/* ---- inputs ---- */

qn_onnx_value *qn_onnx_in_any(const qn_onnx_node *n, int i)
{
    static qn_onnx_value none = { .kind = QN_ONNX_NONE };
    return i < n->n_in ? n->in[i] : &none;
}

bool qn_onnx_has(const qn_onnx_node *n, int i)
{
    return qn_onnx_in_any(n, i)->kind != QN_ONNX_NONE;
}

static bool is_tensor(qn_onnx_node *n, int i)
{
    const qn_onnx_value *v = qn_onnx_in_any(n, i);
    if (v->kind == QN_ONNX_NONE)
        qn_onnx_malformed(n, "input %d is missing", i);
    else if (v->kind == QN_ONNX_SEQUENCE || v->kind == QN_ONNX_PIECES)
        qn_onnx_malformed(n, "input %d is a sequence, not a tensor", i);
    return v->kind == QN_ONNX_TENSOR;
}

qn_value *qn_onnx_in(qn_onnx_node *n, int i)
{
    return is_tensor(n, i) ? qn_onnx_value_make(&n->b, n->in[i]) : NULL;
}

qn_value *qn_onnx_in_opt(qn_onnx_node *n, int i)
{
    return qn_onnx_has(n, i) ? qn_onnx_in(n, i) : NULL;
}

const qn_type *qn_onnx_in_type(qn_onnx_node *n, int i)
{
    return is_tensor(n, i) ? &n->in[i]->type : NULL;
}

static bool has_dim(const qn_onnx_import *im, qn_dim symbol)
{
    for (size_t i = 0; i < im->needs_dims.n; i++)
        if (im->needs_dims.items[i] == symbol)
            return true;
    return false;
}

/* Can the caller fix it? A count of what is found (NonZero) is nobody's to say. */
static bool is_of_input(const qn_onnx_import *im, qn_dim symbol)
{
    const qn_graph *graph = im->module->functions[0];
    for (int i = 0; i < graph->n_inputs; i++)
        for (int k = 0; k < graph->inputs[i]->type.rank; k++)
            if (graph->inputs[i]->type.dims[k] == symbol)
                return true;
    return false;
}

void qn_onnx_needs_dim(qn_onnx_node *n, qn_dim extent)
{
    qn_arena *arena = n->im->arena;
    for (int i = 0; i < extent->n; i++)
        qn_onnx_needs_dim(n, extent->operands[i]);
    if (extent->kind != QN_DIM_SYMBOL || !is_of_input(n->im, extent))
        return;
    n->missed = n->n_missed++ ? qn_arena_printf(arena, "%s, %s", n->missed, extent->name) : extent->name;
    if (!has_dim(n->im, extent))
        qn_vec_push(arena, &n->im->needs_dims, extent);
}

void qn_onnx_needs_shape(qn_onnx_node *n, int i)
{
    const qn_onnx_value *v = qn_onnx_in_any(n, i);
    for (int k = 0; v->kind == QN_ONNX_TENSOR && k < v->type.rank; k++)
        qn_onnx_needs_dim(n, v->type.dims[k]);
}

qn_value *qn_onnx_require(qn_onnx_node *n, qn_value *condition, const char *why)
{
    qn_builder b = n->b;
    b.loc.op = qn_arena_printf(n->im->arena, "%s; %s", b.loc.op, why);
    return qn_b_require(&b, condition);
}

void qn_onnx_misses(qn_onnx_node *n, const qn_onnx_value *value)
{
    n->im->needs |= value->depends;
    for (int i = 0; i < qn_dims_symbol_count(n->im->dims) && i < 64; i++)
        if (value->extents >> i & 1)
            qn_onnx_needs_dim(n, qn_dims_symbol_at(n->im->dims, i));
}

void qn_onnx_needs_contents(qn_onnx_node *n, int i)
{
    qn_onnx_misses(n, qn_onnx_in_any(n, i));
    qn_onnx_unsupported(
        n, "the contents of input %d must be known when the model is compiled, as an initializer is", i);
}

bool qn_onnx_in_dims(qn_onnx_node *n, int i, int max, qn_dim *out, int *out_n)
{
    qn_onnx_contents c;
    if (!is_tensor(n, i))
        return false;
    if (!qn_onnx_contents_needed(n->im, n->in[i], &c)) {
        qn_onnx_needs_contents(n, i);
        return false;
    }
    if (!c.dims) {
        qn_onnx_malformed(n, "input %d must be of integers", i);
        return false;
    }
    if (c.rank > 1 || c.n > max) {
        qn_onnx_malformed(n, "input %d must be a list of at most %d numbers", i, max);
        return false;
    }
    for (int64_t k = 0; k < c.n; k++)
        out[k] = c.dims[k];
    *out_n = (int)c.n;
    return true;
}

bool qn_onnx_in_extents(qn_onnx_node *n, int i, int max, qn_dim limit, qn_dim *out, int *out_n)
{
    qn_onnx_contents c;
    if (is_tensor(n, i) && !qn_onnx_contents_needed(n->im, n->in[i], &c) &&
        !qn_onnx_compute_dims(n, i, limit) && !qn_onnx_ok(n))
        return false;
    return qn_onnx_in_dims(n, i, max, out, out_n);
}

bool qn_onnx_in_ints(qn_onnx_node *n, int i, int max, int64_t *out, int *out_n)
{
    qn_dim *dims = QN_NEW_ARRAY(n->im->arena, qn_dim, max);
    if (!qn_onnx_in_dims(n, i, max, dims, out_n))
        return false;
    for (int k = 0; k < *out_n; k++) {
        if (!qn_dim_is_const(dims[k])) {
            qn_onnx_needs_dim(n, dims[k]);
            qn_onnx_unsupported(n, "input %d must be constant, and is %s", i,
                                qn_dim_print(dims[k], n->im->arena));
            return false;
        }
        out[k] = dims[k]->value;
    }
    return true;
}

bool qn_onnx_in_int(qn_onnx_node *n, int i, int64_t *out)
{
    int count = 0;
    if (!qn_onnx_in_ints(n, i, 1, out, &count))
        return false;
    if (count != 1)
        qn_onnx_malformed(n, "input %d must be one number", i);
    return count == 1;
}

bool qn_onnx_in_floats(qn_onnx_node *n, int i, int max, double *out, int *out_n)
{
    qn_onnx_contents c;
    if (!is_tensor(n, i))
        return false;
    if (!qn_onnx_contents_needed(n->im, n->in[i], &c) || !c.data) {
        qn_onnx_needs_contents(n, i);
        return false;
    }
    if (c.n > max) {
        qn_onnx_malformed(n, "input %d must be a list of at most %d numbers", i, max);
        return false;
    }
    for (int64_t k = 0; k < c.n; k++) {
        qn_scalar s = qn_scalar_load(c.dtype, c.data + (size_t)k * qn_dtype_bytes(c.dtype));
        out[k] = qn_dtype_is_float(c.dtype) ? s.f : (double)s.i;
    }
    *out_n = (int)c.n;
    return true;
}

/* ---- outputs ---- */

bool qn_onnx_wants(const qn_onnx_node *n, int i)
{
    return i < n->n_out && *n->proto->output[i];
}

void qn_onnx_out_any(qn_onnx_node *n, int i, qn_onnx_value *value)
{
    if (i < n->n_out)
        n->out[i] = value;
}

void qn_onnx_out(qn_onnx_node *n, int i, qn_value *value)
{
    if (value)
        qn_onnx_out_any(n, i, qn_onnx_value_from(n->im, value));
}

void qn_onnx_out_tensor(qn_onnx_node *n, int i, const qn_tensor *tensor)
{
    qn_onnx_out_any(n, i, qn_onnx_value_constant(n->im, tensor));
}

/* ---- operators in operators ---- */

qn_value *qn_onnx_apply(qn_onnx_node *n, const char *op, int64_t opset, int n_in, qn_value *const *in)
{
    bool other;
    const qn_onnx_op *found = qn_onnx_op_find("", op, opset, &other);
    Onnx__Node proto = *n->proto;
    qn_onnx_value *out = NULL;
    qn_onnx_node inner = *n;
    QN_ASSERT(found, "no operator %s", op);
    proto.op_type = (char *)(uintptr_t)op;
    proto.domain = (char *)(uintptr_t)"";
    inner.proto = &proto;
    inner.opset = opset;
    inner.n_in = n_in;
    inner.in = QN_NEW_ARRAY(n->im->arena, qn_onnx_value *, n_in);
    inner.n_out = 1;
    inner.out = &out;
    for (int i = 0; i < n_in; i++)
        inner.in[i] = in[i] ? qn_onnx_value_from(n->im, in[i]) : qn_onnx_value_new(n->im, QN_ONNX_NONE);
    found->import(&inner);
    return out ? qn_onnx_value_make(&n->b, out) : NULL;
}

/* ---- extents ---- */

/* d as factor * symbol; false when it is something else. */
static bool is_scaled_symbol(qn_dim d, qn_dim *out_symbol, int64_t *out_factor)
{
    *out_factor = 1;
    *out_symbol = d;
    if (d->kind == QN_DIM_MUL && d->n == 2)
        for (int i = 0; i < 2; i++)
            if (qn_dim_is_const(d->operands[i])) {
                *out_factor = d->operands[i]->value;
                *out_symbol = d->operands[1 - i];
            }
    return (*out_symbol)->kind == QN_DIM_SYMBOL;
}

/* a - b = 0 as a statement about one symbol, or two. */
static void solve(qn_onnx_node *n, qn_dim difference)
{
    qn_dim symbol[2] = { NULL, NULL }, d;
    int64_t factor[2] = { 0, 0 }, constant = 0, f;
    int n_terms = difference->kind == QN_DIM_ADD ? difference->n : 1, n_symbols = 0;
    for (int i = 0; i < n_terms; i++) {
        qn_dim term = difference->kind == QN_DIM_ADD ? difference->operands[i] : difference;
        if (qn_dim_is_const(term)) {
            constant = term->value;
        } else if (n_symbols == 2 || !is_scaled_symbol(term, &d, &f)) {
            return;
        } else {
            symbol[n_symbols] = d;
            factor[n_symbols++] = f;
        }
    }
    if (n_symbols == 1 && constant > INT64_MIN && constant % factor[0] == 0) {
        int64_t value = -constant / factor[0];
        if (value >= symbol[0]->min && value <= symbol[0]->max)
            qn_onnx_add_alias(n->im, symbol[0]->name, NULL, value);
    } else if (n_symbols == 2 && constant == 0 && factor[0] == -factor[1]) {
        bool first = symbol[0]->symbol < symbol[1]->symbol;
        qn_onnx_add_alias(n->im, symbol[first]->name, symbol[!first]->name, 0);
    }
}

void qn_onnx_equal_dims(qn_onnx_node *n, qn_dim a, qn_dim b)
{
    if (a == b)
        return;
    /* hidden sizes divided by the same number of heads, which divides them */
    if (a->kind == QN_DIM_FLOORDIV && b->kind == QN_DIM_FLOORDIV && a->operands[1] == b->operands[1])
        qn_onnx_equal_dims(n, a->operands[0], b->operands[0]);
    else
        solve(n, qn_dim_sub(n->im->dims, a, b));
}

qn_value *qn_onnx_with_dim(qn_onnx_node *n, qn_value *x, int axis, qn_dim dim)
{
    qn_dim dims[QN_MAX_RANK];
    if (!x || axis >= x->type.rank || x->type.dims[axis] == dim)
        return x;
    qn_onnx_equal_dims(n, x->type.dims[axis], dim);
    if (!qn_dim_can_be_equal(n->im->dims, x->type.dims[axis], dim) ||
        (qn_dim_is_const(dim) && qn_dim_is_const(x->type.dims[axis])))
        return x;
    for (int i = 0; i < x->type.rank; i++)
        dims[i] = i == axis ? dim : x->type.dims[i];
    return qn_b_reshape(&n->b, x, x->type.rank, dims);
}

/* ---- axes ---- */

bool qn_onnx_axis(qn_onnx_node *n, int64_t axis, int rank, int *out)
{
    if (axis < -rank || axis >= rank) {
        qn_onnx_malformed(n, "axis %lld is outside of rank %d", (long long)axis, rank);
        return false;
    }
    *out = (int)(axis < 0 ? axis + rank : axis);
    return true;
}

static int compare_ints(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

bool qn_onnx_axes(qn_onnx_node *n, int input, int rank, int64_t *out, int *out_n, bool *out_given)
{
    const int64_t *attr = qn_onnx_attr_ints(n, "axes", out_n);
    *out_given = attr != NULL;
    if (attr && *out_n <= QN_MAX_RANK) {
        for (int i = 0; i < *out_n; i++)
            out[i] = attr[i];
    } else if (attr) {
        qn_onnx_malformed(n, "there are too many axes");
        return false;
    } else if (input >= 0 && qn_onnx_has(n, input)) {
        *out_given = true;
        if (!qn_onnx_in_ints(n, input, QN_MAX_RANK, out, out_n))
            return false;
    }
    for (int i = 0; i < *out_n; i++) {
        int axis;
        if (!qn_onnx_axis(n, out[i], rank, &axis))
            return false;
        out[i] = axis;
    }
    qsort(out, (size_t)*out_n, sizeof *out, compare_ints);
    for (int i = 1; i < *out_n; i++)
        if (out[i] == out[i - 1]) {
            qn_onnx_malformed(n, "axis %lld is given twice", (long long)out[i]);
            return false;
        }
    return true;
}
