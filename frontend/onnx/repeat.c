/* What PyTorch's exporter writes for repeat_interleave by a tensor: a loop over the rows of x that appends each to a sequence as often
 * as its number says, and the sequence in one piece.
 *
 *   for i: s = SequenceInsert(s, Reshape(Expand(Unsqueeze(SequenceAt(rows, i)), Concat(…, SequenceAt(numbers, i), …))))
 *   y = ConcatFromSequence(s)
 *
 * It is a gather of rows, without a loop: row j begins where the numbers before it add up to. */
#include <string.h>

#include "frontend/onnx/arith.h"
#include "frontend/onnx/body.h"
#include "frontend/onnx/families.h"

/* The node of that operator that makes the name, with at least n inputs. */
static const Onnx__Node *made_by(const Onnx__Graph *body, const char *name, const char *op, size_t n)
{
    const Onnx__Node *node = qn_onnx_maker_of(body, name);
    return node && !strcmp(node->op_type, op) && node->n_input >= n ? node : NULL;
}

static qn_onnx_value *constant_of(qn_onnx_node *n, const Onnx__Tensor *own)
{
    const qn_tensor *tensor = qn_onnx_tensor(n->im, own, &n->b.loc);
    return tensor ? qn_onnx_value_constant(n->im, tensor) : NULL;
}

static bool numbers_in(qn_onnx_node *n, qn_onnx_value *v, qn_dim *out, int *out_n)
{
    qn_onnx_contents c;
    if (!v || !qn_onnx_contents_of(n->im, v, &c) || !c.dims || c.n > QN_MAX_RANK)
        return false;
    *out_n = (int)c.n;
    for (int i = 0; i < *out_n; i++)
        out[i] = c.dims[i];
    return true;
}

/* A constant of the body, or a value from outside of it that is known. */
static bool known_numbers(qn_onnx_node *n, const Onnx__Graph *body, const char *name, qn_dim *out, int *out_n)
{
    const Onnx__Node *node = qn_onnx_maker_of(body, name);
    const Onnx__Tensor *own = NULL;
    for (size_t i = 0; i < body->n_initializer; i++)
        own = strcmp(body->initializer[i]->name, name) ? own : body->initializer[i];
    if (node && !strcmp(node->op_type, "Constant") && node->n_attribute == 1)
        own = node->attribute[0]->t;
    qn_onnx_value *v = own ? constant_of(n, own) : node ? NULL : qn_onnx_scope_find(n->scope, name);
    return numbers_in(n, v, out, out_n);
}

/* Of the shape to expand to exporters write Where(Equal(shape, -1 * ones), ones, shape), which is the shape. */
static bool is_default(qn_onnx_node *n, const Onnx__Graph *body, const Onnx__Node *where)
{
    const Onnx__Node *equal = made_by(body, where->input[0], "Equal", 2);
    const Onnx__Node *product = equal ? made_by(body, equal->input[1], "Mul", 2) : NULL;
    const Onnx__Node *ones = made_by(body, where->input[1], "ConstantOfShape", 1);
    qn_dim one[QN_MAX_RANK], factor[QN_MAX_RANK];
    int n_one, n_factor;
    return product && ones && !strcmp(equal->input[0], where->input[2]) &&
           !strcmp(product->input[0], where->input[1]) && ones->n_attribute == 1 && ones->attribute[0]->t &&
           numbers_in(n, constant_of(n, ones->attribute[0]->t), one, &n_one) && n_one == 1 &&
           qn_dim_is(one[0], 1) && known_numbers(n, body, product->input[1], factor, &n_factor) &&
           n_factor == 1 && qn_dim_is(factor[0], -1);
}

/* The sequence, all items of which are slices of a tensor, that the name is the item of number `counter` of. */
static const qn_onnx_value *item_of(qn_onnx_node *n, const Onnx__Graph *body, const char *name,
                                    const char *counter)
{
    const Onnx__Node *at = made_by(body, name, "SequenceAt", 2);
    if (!at || strcmp(at->input[1], counter) || qn_onnx_maker_of(body, at->input[0]))
        return NULL;
    const qn_onnx_value *s = qn_onnx_scope_find(n->scope, at->input[0]);
    return s && s->whole ? s : NULL;
}

/* Does the loop go on until its trips are over? */
static bool goes_on(qn_onnx_node *n, const Onnx__Graph *body)
{
    qn_dim known[QN_MAX_RANK];
    int count;
    const Onnx__Node *node = qn_onnx_maker_of(body, body->output[0]->name);
    const char *name = body->output[0]->name;
    if (node && (!strcmp(node->op_type, "Cast") || !strcmp(node->op_type, "Identity")) && node->n_input == 1)
        name = node->input[0];
    return !strcmp(name, body->input[1]->name) ||
           (known_numbers(n, body, name, known, &count) && count == 1 && qn_dim_is(known[0], 1));
}

/* The numbers, where the list is of ones and they stand at `axis` of it, and of the extents of x but for that axis. */
static const qn_onnx_value *numbers_of(qn_onnx_node *n, const Onnx__Graph *body, const char *list,
                                       const qn_onnx_value *rows)
{
    const qn_type *x = &rows->whole->type;
    const Onnx__Node *where = made_by(body, list, "Where", 3);
    if (where && !is_default(n, body, where))
        return NULL;
    const Onnx__Node *join = made_by(body, where ? where->input[2] : list, "Concat", 1);
    const qn_onnx_value *numbers = NULL;
    int at = 0;
    for (size_t i = 0; join && i < join->n_input; i++) {
        const qn_onnx_value *item = item_of(n, body, join->input[i], body->input[0]->name);
        qn_dim known[QN_MAX_RANK];
        int count = 1;
        if (item) {
            if (numbers || at != rows->axis + 1)
                return NULL;
            numbers = item;
        } else if (!known_numbers(n, body, join->input[i], known, &count)) {
            return NULL;
        }
        for (int k = 0; k < count && !item; k++) {
            const int axis = at + k - (at + k > rows->axis + 1);
            if (axis >= x->rank ||
                (axis == rows->axis ? !qn_dim_is(known[k], 1)
                                    : !qn_dim_is(known[k], 1) && known[k] != x->dims[axis]))
                return NULL;
        }
        at += count;
    }
    const qn_type *type = numbers ? &numbers->whole->type : NULL;
    return at == x->rank + 1 && type->rank == 1 && type->dims[0] == x->dims[rows->axis] &&
                   qn_dtype_is_int(type->dtype)
               ? numbers
               : NULL;
}

/* x with row j of the axis numbers[j] times. */
static qn_value *repeated(qn_onnx_node *n, qn_value *x, int axis, qn_value *numbers)
{
    qn_builder *b = &n->b;
    const qn_dim one = qn_dim_const(n->im->dims, 1);
    numbers = max_number(b, qn_b_convert(b, QUERN_I64, numbers), 0);
    qn_value *sum = numbers ? qn_b_reduce(b, QN_SUM, numbers, 1, (int64_t[]){ 0 }, false) : NULL;
    const qn_dim total = qn_onnx_extent(n, sum, NULL);
    if (!total)
        return NULL;
    qn_value *starts = qn_b_cumulative(b, QN_SUM, numbers, 0, true, false);
    const qn_dim places = qn_dim_add(n->im->dims, total, one);
    qn_type type = qn_type_make(n->im->module, QUERN_I64, 1, &places);
    qn_value *begun =
        qn_b_scatter_elements(b, QN_SUM, qn_b_full(b, &type, 0), starts, qn_b_full(b, &numbers->type, 1), 0);
    qn_value *row = add_number(b, qn_b_cumulative(b, QN_SUM, begun, 0, false, false), -1);
    row = row ? qn_b_slice_axis(b, row, 0, qn_dim_const(n->im->dims, 0), total) : NULL;
    return qn_b_gather(b, x, row, axis);
}

bool qn_onnx_loop_repeats(qn_onnx_node *n, const Onnx__Graph *body, qn_dim trips)
{
    qn_dim shape[QN_MAX_RANK], known[QN_MAX_RANK];
    int n_shape, count;
    if (body->n_input != 3 || body->n_output != 2 || n->n_in != 3 || n->n_out != 1 || !trips ||
        n->in[2]->kind != QN_ONNX_SEQUENCE || n->in[2]->n_items)
        return false;
    qn_onnx_contents start;
    if (qn_onnx_has(n, 1) && (!qn_onnx_contents_of(n->im, n->in[1], &start) || start.n != 1 || !start.dims ||
                              !qn_dim_is(start.dims[0], 1)))
        return false;
    const char *counter = body->input[0]->name;
    const Onnx__Node *insert = made_by(body, body->output[1]->name, "SequenceInsert", 2);
    const Onnx__Node *flat = insert && insert->n_input == 2 && !strcmp(insert->input[0], body->input[2]->name)
                                 ? made_by(body, insert->input[1], "Reshape", 2)
                                 : NULL;
    const Onnx__Node *wide = flat ? made_by(body, flat->input[0], "Expand", 2) : NULL;
    const Onnx__Node *apart = wide ? made_by(body, wide->input[0], "Unsqueeze", 1) : NULL;
    const qn_onnx_value *rows = apart ? item_of(n, body, apart->input[0], counter) : NULL;
    if (!rows || !goes_on(n, body) || rows->whole->type.dims[rows->axis] != trips)
        return false;
    /* a new axis behind that of the rows; merged with it */
    const qn_type *x = &rows->whole->type;
    if (apart->n_input < 2 || !known_numbers(n, body, apart->input[1], known, &count) || count != 1 ||
        !qn_dim_is(known[0], rows->axis + 1) || !known_numbers(n, body, flat->input[1], shape, &n_shape) ||
        n_shape != x->rank)
        return false;
    for (int i = 0; i < n_shape; i++)
        if (i == rows->axis ? !qn_dim_is(shape[i], -1) : shape[i] != x->dims[i])
            return false;
    const qn_onnx_value *numbers = numbers_of(n, body, wide->input[1], rows);
    if (!numbers)
        return false;
    qn_onnx_value *v = qn_onnx_value_new(n->im, QN_ONNX_PIECES);
    v->axis = rows->axis;
    v->whole = repeated(n, rows->whole, rows->axis, numbers->whole);
    qn_onnx_out_any(n, 0, v->whole ? v : NULL);
    return true;
}
