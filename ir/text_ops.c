/* Ops on text: see text_ops.h; their builders and type rules. */
#include "ir/text_ops.h"

#include "ir/build_internal.h"
#include "ir/infer_rules.h"

int qn_text_what(qn_op op)
{
    switch (op) {
    case QN_OP_TEXT_CONCAT: return QUERN_TEXT_CONCAT;
    case QN_OP_TEXT_CASE: return QUERN_TEXT_CASE;
    case QN_OP_TEXT_COUNT: return QUERN_TEXT_COUNT;
    case QN_OP_TEXT_SPLIT: return QUERN_TEXT_SPLIT;
    case QN_OP_TEXT_MATCH: return QUERN_TEXT_MATCH;
    case QN_OP_TEXT_PARSE: return QUERN_TEXT_PARSE;
    case QN_OP_TEXT_PRINT: return QUERN_TEXT_PRINT;
    default: return 0;
    }
}

int qn_text_buffers(qn_op op)
{
    return qn_ops[op].min_operands + 1;
}

bool qn_text_reads(qn_dtype dtype)
{
    return dtype == QUERN_I64 || dtype == QUERN_U64 || dtype == QUERN_F32 || dtype == QUERN_F64;
}

bool qn_text_in(const qn_graph *graph)
{
    QN_FOR_NODES (graph, node) {
        bool found = qn_text_what(node->op) != 0;
        for (int i = 0; i < node->n_regions && !found; i++)
            found = qn_text_in(node->regions[i]);
        if (found)
            return true;
    }
    return false;
}

int qn_text_params(const qn_module *module, const qn_node *node, qn_dim out[QN_TEXT_MOST_PARAMS])
{
    qn_dims *dims = module->dims;
    const qn_type *x = &node->operands[0]->type;
    int n = 0, n_k;
    out[n++] = qn_type_elements_dim(dims, x);
    switch (node->op) {
    case QN_OP_TEXT_CASE: out[n++] = qn_dim_const(dims, qn_attr_bool(node, QN_ATTR_UPPER)); break;
    case QN_OP_TEXT_COUNT:
    case QN_OP_TEXT_SPLIT:
        out[n++] = qn_dim_const(dims, qn_attr_int(node, QN_ATTR_SEPARATOR));
        out[n++] = qn_dim_const(dims, qn_attr_int(node, QN_ATTR_MOST));
        if (node->op == QN_OP_TEXT_SPLIT)
            out[n++] = qn_attr_dims(node, QN_ATTR_K, &n_k)[0];
        break;
    case QN_OP_TEXT_MATCH: out[n++] = node->operands[1]->type.dims[0]; break;
    case QN_OP_TEXT_PARSE: out[n++] = qn_dim_const(dims, qn_attr_int(node, QN_ATTR_DTYPE)); break;
    case QN_OP_TEXT_PRINT: out[n++] = qn_dim_const(dims, x->dtype); break;
    default: break;
    }
    return n;
}

/* ---- builders ---- */

qn_value *qn_b_text_concat(qn_builder *b, qn_value *x, qn_value *y)
{
    qn_value *operands[] = { x, y };
    return qn_build(b, QN_OP_TEXT_CONCAT, 2, operands, NULL);
}

qn_value *qn_b_text_case(qn_builder *b, qn_value *x, bool upper)
{
    qn_attr_list list = { 0 };
    qn_attrs_flag(&list, QN_ATTR_UPPER, upper);
    return qn_build(b, QN_OP_TEXT_CASE, 1, &x, &list);
}

qn_value *qn_b_text_count(qn_builder *b, qn_value *x, int64_t separator, int64_t most)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_MOST, most);
    qn_attrs_int(&list, QN_ATTR_SEPARATOR, separator);
    return qn_build(b, QN_OP_TEXT_COUNT, 1, &x, &list);
}

qn_value *qn_b_text_split(qn_builder *b, qn_value *x, int64_t separator, int64_t most, qn_dim k)
{
    qn_attr_list list = { 0 };
    qn_attrs_dims(&list, QN_ATTR_K, 1, &k);
    qn_attrs_int(&list, QN_ATTR_MOST, most);
    qn_attrs_int(&list, QN_ATTR_SEPARATOR, separator);
    return qn_build(b, QN_OP_TEXT_SPLIT, 1, &x, &list);
}

qn_value *qn_b_text_match(qn_builder *b, qn_value *x, qn_value *table)
{
    qn_value *operands[] = { x, table };
    return qn_build(b, QN_OP_TEXT_MATCH, 2, operands, NULL);
}

qn_value *qn_b_text_parse(qn_builder *b, qn_dtype dtype, qn_value *x)
{
    qn_attr_list list = { 0 };
    qn_attrs_int(&list, QN_ATTR_DTYPE, dtype);
    return qn_build(b, QN_OP_TEXT_PARSE, 1, &x, &list);
}

qn_value *qn_b_text_print(qn_builder *b, qn_value *x)
{
    return qn_build(b, QN_OP_TEXT_PRINT, 1, &x, NULL);
}

/* ---- type rules ---- */

static qn_status concat(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    QN_TRY(qn_infer_expect_dtype(c, 0, QUERN_I64));
    QN_TRY(qn_infer_expect_dtype(c, 1, QUERN_I64));
    QN_TRY(qn_infer_expect_dims(c, 1, x->rank, x->dims));
    return qn_infer_give(c, QUERN_I64, x->rank, x->dims);
}

static qn_status same(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    QN_TRY(qn_infer_expect_dtype(c, 0, QUERN_I64));
    return qn_infer_give(c, QUERN_I64, x->rank, x->dims);
}

static qn_status check_separator(qn_infer_context *c)
{
    const int64_t separator = qn_attr_int(c->node, QN_ATTR_SEPARATOR), n = (int64_t)c->module->strings.n;
    if (separator < -1 || separator >= n)
        return qn_infer_fail(c, "separator is %lld; expected -1, or one of the module's %lld strings",
                             (long long)separator, (long long)n);
    return qn_infer_expect_dtype(c, 0, QUERN_I64);
}

static qn_status count(qn_infer_context *c)
{
    QN_TRY(check_separator(c));
    return same(c);
}

static qn_status split(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const qn_dim *k;
    qn_dim dims[QN_MAX_RANK];
    QN_TRY(check_separator(c));
    QN_TRY(qn_infer_dims(c, QN_ATTR_K, 1, &k));
    if (k[0]->max < 0)
        return qn_infer_fail(c, "k is %s; expected 0 or more", qn_dim_print(k[0], c->module->arena));
    if (x->rank == QN_MAX_RANK)
        return qn_infer_fail(c, "%s has no room for another axis", qn_infer_print(c, x));
    for (int i = 0; i < x->rank; i++)
        dims[i] = x->dims[i];
    dims[x->rank] = k[0];
    return qn_infer_give(c, QUERN_I64, x->rank + 1, dims);
}

static qn_status match(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0), *table = qn_infer_operand(c, 1);
    QN_TRY(qn_infer_expect_dtype(c, 0, QUERN_I64));
    QN_TRY(qn_infer_expect_dtype(c, 1, QUERN_U16));
    QN_TRY(qn_infer_expect_rank(c, 1, 2));
    if (table->dims[0]->min < 2 || !qn_dim_is(table->dims[1], QN_TEXT_COLUMNS))
        return qn_infer_fail(c, "the table is %s; expected u16[2 or more, %d]", qn_infer_print(c, table),
                             QN_TEXT_COLUMNS);
    return qn_infer_give(c, QUERN_BOOL, x->rank, x->dims);
}

static qn_status parse(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    const qn_dtype dtype = (qn_dtype)qn_attr_int(c->node, QN_ATTR_DTYPE);
    QN_TRY(qn_infer_expect_dtype(c, 0, QUERN_I64));
    if (!qn_text_reads(dtype))
        return qn_infer_fail(c, "dtype is %s; expected i64, u64, f32 or f64", qn_dtype_name(dtype));
    return qn_infer_give(c, dtype, x->rank, x->dims);
}

static qn_status print(qn_infer_context *c)
{
    const qn_type *x = qn_infer_operand(c, 0);
    if (!qn_text_reads(x->dtype))
        return qn_infer_fail(c, "operand 0 is %s; expected i64, u64, f32 or f64", qn_infer_print(c, x));
    return qn_infer_give(c, QUERN_I64, x->rank, x->dims);
}

qn_infer_rule qn_infer_text(qn_op op)
{
    switch (op) {
    case QN_OP_TEXT_CONCAT: return concat;
    case QN_OP_TEXT_CASE: return same;
    case QN_OP_TEXT_COUNT: return count;
    case QN_OP_TEXT_SPLIT: return split;
    case QN_OP_TEXT_MATCH: return match;
    case QN_OP_TEXT_PARSE: return parse;
    case QN_OP_TEXT_PRINT: return print;
    default: return NULL;
    }
}
