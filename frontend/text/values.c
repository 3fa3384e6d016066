/* Reads types, attributes and constant data. */
#include <inttypes.h>
#include <string.h>

#include "frontend/text/parser.h"
#include "ir/literal.h"
#include "ir/narrow.h"
#include "ir/strbuf.h"

enum { MAX_DIM_NESTING = 64, MAX_DIM_TEXT = 4096 };

/* ---- numbers, dimensions, types ---- */

qn_status qn_parse_i64(qn_parser *p, const char *what, int64_t *out_value)
{
    if (p->token.kind != QN_TOKEN_NUMBER ||
        !qn_literal_parse(QUERN_I64, p->token.text, p->token.length, out_value))
        return qn_parser_expected(p, what);
    qn_parser_next(p);
    return QUERN_OK;
}

/* The expression parser recurses; this keeps what it is given small. */
static bool is_modest_dim(const char *c)
{
    int depth = 0;
    for (int i = 0; i < MAX_DIM_TEXT; i++, c++) {
        depth += (*c == '(') - (*c == ')');
        if (depth > MAX_DIM_NESTING)
            return false;
        if (!*c || *c == '\n' || *c == ']' || *c == '}' || (depth <= 0 && *c == ','))
            return true;
    }
    return false;
}

qn_status qn_parse_dim(qn_parser *p, qn_dim *out_dim)
{
    const char *cursor = p->token.start;
    if (!is_modest_dim(cursor))
        return qn_parser_error(p, &p->token, "this dimension is too long or too deeply nested");
    if (p->token.kind == QN_TOKEN_RBRACKET || p->token.kind == QN_TOKEN_COMMA)
        return qn_parser_expected(p, "a dimension (12, n, 2*n + 1, floordiv(n, 2), …)");
    *out_dim = qn_dim_parse(p->module->dims, &cursor);
    qn_lexer place = qn_parser_place(p);
    qn_lexer_advance(&place, cursor);
    qn_parser_seek(p, &place);
    if (!*out_dim)
        return qn_parser_expected(p, "a dimension (12, n, 2*n + 1, floordiv(n, 2), …)");
    return QUERN_OK;
}

qn_status qn_parse_new_symbol(qn_parser *p, qn_dim *out_symbol)
{
    int n = qn_dims_symbol_count(p->module->dims);
    qn_token name = p->token;
    QN_TRY(qn_parse_dim(p, out_symbol));
    if ((*out_symbol)->kind != QN_DIM_SYMBOL)
        return qn_parser_error(p, &name, "only a name has a range");
    if (qn_dims_symbol_count(p->module->dims) == n)
        return qn_parser_error(p, &name, "the range of a dimension stands once, before its first use");
    return QUERN_OK;
}

/* [a, b, c]; present token: '['. */
static qn_status parse_dims(qn_parser *p, int *out_n, const qn_dim **out_dims)
{
    qn_vec(qn_dim) dims = { 0 };
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LBRACKET, "'['"));
    if (!qn_parser_accept(p, QN_TOKEN_RBRACKET)) {
        do {
            qn_dim dim;
            QN_TRY(qn_parse_dim(p, &dim));
            qn_vec_push(p->arena, &dims, dim);
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
        QN_TRY(qn_parser_expect(p, QN_TOKEN_RBRACKET, "',' or ']'"));
    }
    *out_n = (int)dims.n;
    *out_dims = dims.items;
    return QUERN_OK;
}

qn_status qn_parse_dtype(qn_parser *p, qn_dtype *out_dtype)
{
    *out_dtype =
        p->token.kind == QN_TOKEN_WORD ? qn_dtype_parse(p->token.text, p->token.length) : QUERN_INVALID_DTYPE;
    if (*out_dtype == QUERN_INVALID_DTYPE)
        return qn_parser_expected(
            p, "a data type (bool, i8, i16, i32, i64, u8, u16, u32, u64, f16, bf16, f32, f64)");
    qn_parser_next(p);
    return QUERN_OK;
}

qn_status qn_parse_type(qn_parser *p, qn_type *out_type)
{
    qn_token start = p->token;
    qn_dtype dtype;
    int rank = 0;
    const qn_dim *dims = NULL;
    QN_TRY(qn_parse_dtype(p, &dtype));
    if (p->token.kind == QN_TOKEN_LBRACKET)
        QN_TRY(parse_dims(p, &rank, &dims));
    if (rank > QN_MAX_RANK)
        return qn_parser_error(p, &start, "a tensor has at most %d dimensions, this one has %d", QN_MAX_RANK,
                               rank);
    for (int i = 0; i < rank;
         i++) /* as the type rules: an expression needn't be proved, it must be possible */
        if (dims[i]->max < 0 || (qn_dim_is_const(dims[i]) && !qn_dim_is_valid_extent(dims[i])))
            return qn_parser_error(p, &start,
                                   "dimension %d can't be %s: it is at least 0 and at most %" PRId64, i,
                                   qn_dim_print(dims[i], p->arena), QN_DIM_MAX_VALUE);
    *out_type = qn_type_make(p->module, dtype, rank, dims);
    return QUERN_OK;
}

/* ---- tensors ---- */

typedef struct data_use {
    qn_tensor *tensor;
    qn_token at;
} data_use;

struct qn_text_data {
    const qn_tensor *contents; /* NULL: not read yet */
    qn_vec(data_use) waiting;  /* uses before the contents */
    qn_tensor *last_use;       /* an equal use is the same tensor */
};

/* Bytes of a static type; false when they don't fit in any memory. */
static bool bytes_of(const qn_type *type, size_t *out_bytes)
{
    size_t bytes = qn_dtype_bytes(type->dtype);
    for (int i = 0; i < type->rank; i++)
        if (type->dims[i]->value == 0) {
            *out_bytes = 0;
            return true;
        }
    for (int i = 0; i < type->rank; i++)
        if (__builtin_mul_overflow(bytes, (size_t)type->dims[i]->value, &bytes) || bytes > SIZE_MAX / 4)
            return false;
    *out_bytes = bytes;
    return true;
}

static qn_status parse_element(qn_parser *p, qn_dtype dtype, void *at)
{
    bool literal = p->token.kind == QN_TOKEN_NUMBER || p->token.kind == QN_TOKEN_WORD;
    if (!literal || !qn_literal_parse(dtype, p->token.text, p->token.length, at)) {
        const char *what = qn_is_real(dtype)                  ? "a number, inf, -inf, nan or 0x with its bits"
                           : dtype == QUERN_BOOL              ? "true or false"
                           : p->token.kind == QN_TOKEN_NUMBER ? "a whole number in the range of the data type"
                                                              : "a whole number";
        return qn_parser_expected(p, what);
    }
    qn_parser_next(p);
    return QUERN_OK;
}

/* The elements from `axis` on, appended to `out`. */
static qn_status parse_list(qn_parser *p, const qn_type *type, int axis, qn_strbuf *out)
{
    if (axis == type->rank) {
        char element[8];
        QN_TRY(parse_element(p, type->dtype, element));
        qn_strbuf_add(out, element, qn_dtype_bytes(type->dtype));
        return QUERN_OK;
    }
    int64_t n = 0, expected = type->dims[axis]->value;
    qn_token start = p->token;
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LBRACKET, "'[' (or splat, $label, x\"…\")"));
    if (p->token.kind != QN_TOKEN_RBRACKET) {
        do {
            QN_TRY(parse_list(p, type, axis + 1, out));
            n++;
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    }
    QN_TRY(qn_parser_expect(p, QN_TOKEN_RBRACKET, "',' or ']'"));
    if (n != expected)
        return qn_parser_error(p, &start,
                               "this list has %" PRId64 " items, but dimension %d of %s is %" PRId64, n, axis,
                               qn_type_print(type, p->arena), expected);
    return QUERN_OK;
}

static qn_status parse_splat(qn_parser *p, const qn_type *type, size_t bytes, char **out_data)
{
    char element[8];
    size_t size = qn_dtype_bytes(type->dtype);
    qn_token start = p->token;
    qn_parser_next(p);
    QN_TRY(parse_element(p, type->dtype, element));
    if (bytes > QN_TEXT_MAX_SPLAT_BYTES - p->splat_bytes)
        return qn_parser_error(p, &start,
                               "the splats of a text may have %zu MiB together; this one has %zu more bytes",
                               QN_TEXT_MAX_SPLAT_BYTES >> 20, bytes);
    p->splat_bytes += bytes;
    static const char zero[8];
    *out_data = NULL; /* zeros: qn_tensor_new makes them without touching the memory */
    if (memcmp(element, zero, size) == 0)
        return QUERN_OK;
    *out_data = qn_arena_alloc(p->arena, bytes);
    for (size_t at = 0; at < bytes; at += size)
        memcpy(*out_data + at, element, size);
    return QUERN_OK;
}

static qn_status parse_bytes(qn_parser *p, const qn_type *type, size_t bytes, char **out_data)
{
    if (p->token.length / 2 != bytes)
        return qn_parser_error(p, &p->token, "there are %zu bytes here, but %s has %zu", p->token.length / 2,
                               qn_type_print(type, p->arena), bytes);
    *out_data = qn_arena_alloc(p->arena, bytes);
    for (size_t i = 0; i < bytes; i++) {
        (*out_data)[i] =
            (char)(qn_hex_digit(p->token.text[2 * i]) << 4 | qn_hex_digit(p->token.text[2 * i + 1]));
        if (type->dtype == QUERN_BOOL && (unsigned char)(*out_data)[i] > 1)
            return qn_parser_error(p, &p->token, "byte %zu of a bool tensor is neither 00 nor 01", i);
    }
    qn_parser_next(p);
    return QUERN_OK;
}

/* What stands behind a tensor: its name, and what the model says of it. */
typedef struct tensor_label {
    const char *name; /* NULL: there is none */
    qn_input_role role;
} tensor_label;

/* A tensor like `contents` of that name; gives the last use again where it is the same. */
static qn_tensor *use_data(qn_parser *p, qn_text_data *data, const qn_type *type, tensor_label label)
{
    const char *name = label.name;
    qn_tensor *last = data->last_use;
    if (last && qn_type_equal(&last->type, type) && last->role == label.role &&
        (last->name == name || (last->name && name && strcmp(last->name, name) == 0)))
        return last;
    qn_tensor *tensor = QN_NEW(p->arena, qn_tensor);
    if (data->contents)
        *tensor = *data->contents;
    tensor->type = *type;
    tensor->name = name;
    tensor->role = label.role;
    return data->last_use = tensor;
}

static qn_status check_use(qn_parser *p, const qn_text_data *data, const qn_token *at, const qn_type *type)
{
    if (qn_type_equal(&data->contents->type, type))
        return QUERN_OK;
    return qn_parser_error(p, at, "$%s is %s, not %s", at->text,
                           qn_type_print(&data->contents->type, p->arena), qn_type_print(type, p->arena));
}

static qn_text_data *data_of(qn_parser *p, const char *label)
{
    void **slot = qn_map_at(&p->data, label, p->arena);
    if (!*slot)
        *slot = QN_NEW(p->arena, qn_text_data);
    return *slot;
}

static tensor_label parse_label(qn_parser *p)
{
    tensor_label label = { 0 };
    if (p->token.kind != QN_TOKEN_STRING)
        return label;
    label.name = p->token.text;
    qn_parser_next(p);
    label.role = qn_parser_accept_role(p);
    return label;
}

qn_status qn_parse_tensor(qn_parser *p, const qn_type *type, const qn_tensor **out_tensor)
{
    size_t bytes;
    qn_token start = p->token;
    if (!qn_type_is_static(type) || !bytes_of(type, &bytes))
        return qn_parser_error(
            p, &start, "a constant needs constant dimensions of a size that fits in memory; %s hasn't",
            qn_type_print(type, p->arena));
    if (start.kind == QN_TOKEN_LABEL) {
        qn_parser_next(p);
        qn_text_data *data = data_of(p, start.text);
        if (data->contents)
            QN_TRY(check_use(p, data, &start, type));
        else if (p->data_complete)
            return qn_parser_error(p, &start, "no data $%s in this text", start.text);
        qn_tensor *tensor = use_data(p, data, type, parse_label(p));
        if (!data->contents) {
            data_use use = { tensor, start };
            qn_vec_push(p->arena, &data->waiting, use);
        }
        *out_tensor = tensor;
        return QUERN_OK;
    }
    char *contents = NULL;
    int64_t dims[QN_MAX_RANK];
    for (int i = 0; i < type->rank; i++)
        dims[i] = type->dims[i]->value;
    if (start.kind == QN_TOKEN_BYTES) {
        QN_TRY(parse_bytes(p, type, bytes, &contents));
    } else if (qn_parser_at_word(p, "splat")) {
        QN_TRY(parse_splat(p, type, bytes, &contents));
    } else if (bytes == 0) {
        QN_TRY(qn_parser_expect(p, QN_TOKEN_LBRACKET, "'[' (and ']': this tensor has no elements)"));
        QN_TRY(qn_parser_expect(p, QN_TOKEN_RBRACKET, "']': this tensor has no elements"));
    } else {
        qn_strbuf list = { .arena = p->arena };
        QN_TRY(parse_list(p, type, 0, &list));
        contents = list.data;
    }
    qn_tensor *tensor = qn_tensor_new(p->module, type->dtype, type->rank, dims, contents);
    const tensor_label label = parse_label(p);
    tensor->name = label.name;
    tensor->role = label.role;
    *out_tensor = tensor;
    return QUERN_OK;
}

qn_status qn_parse_skip_tensor(qn_parser *p)
{
    if (p->token.kind == QN_TOKEN_LBRACKET) {
        int depth = 0;
        do {
            depth += (p->token.kind == QN_TOKEN_LBRACKET) - (p->token.kind == QN_TOKEN_RBRACKET);
            if (p->token.kind == QN_TOKEN_END || p->token.kind == QN_TOKEN_BAD)
                return qn_parser_expected(p, "']'");
            qn_parser_next(p);
        } while (depth > 0);
    } else {
        if (qn_parser_at_word(p, "splat"))
            qn_parser_next(p);
        if (p->token.kind != QN_TOKEN_NUMBER && p->token.kind != QN_TOKEN_WORD &&
            p->token.kind != QN_TOKEN_LABEL && p->token.kind != QN_TOKEN_BYTES)
            return qn_parser_expected(p, "a constant: 1.5, [1, 2], splat 0, $label or x\"…\"");
        qn_parser_next(p);
    }
    parse_label(p);
    return QUERN_OK;
}

qn_status qn_parse_data(qn_parser *p)
{
    qn_parser_next(p);
    qn_token label = p->token;
    qn_type type;
    const qn_tensor *contents;
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LABEL, "a label ($name) after data"));
    QN_TRY(qn_parser_expect(p, QN_TOKEN_COLON, "':' and the type of the data"));
    QN_TRY(qn_parse_type(p, &type));
    QN_TRY(qn_parser_expect(p, QN_TOKEN_EQUALS, "'=' and the contents"));
    if (p->token.kind == QN_TOKEN_LABEL)
        return qn_parser_expected(p, "the contents: [1, 2], splat 0 or x\"…\"");
    QN_TRY(qn_parse_tensor(p, &type, &contents));
    qn_text_data *data = data_of(p, label.text);
    if (data->contents)
        return qn_parser_error(p, &label, "there is a $%s already", label.text);
    data->contents = contents;
    for (size_t i = 0; i < data->waiting.n; i++) {
        qn_tensor *use = data->waiting.items[i].tensor;
        QN_TRY(check_use(p, data, &data->waiting.items[i].at, &use->type));
        const char *name = use->name;
        *use = *contents;
        use->name = name;
    }
    return QUERN_OK;
}

qn_status qn_parse_end_data(qn_parser *p)
{
    p->data_complete = true;
    for (size_t i = 0; i < p->data.capacity; i++) {
        qn_text_data *data = p->data.slots[i].value;
        if (data && !data->contents && data->waiting.n)
            return qn_parser_error(p, &data->waiting.items[0].at, "no data $%s in this text",
                                   p->data.slots[i].key);
    }
    return QUERN_OK;
}

/* ---- attributes ---- */

static qn_status parse_enum(qn_parser *p, const char *what, const char *const *words, int n,
                            int64_t *out_value)
{
    for (int i = 0; i < n; i++)
        if (qn_parser_accept_word(p, words[i])) {
            *out_value = i;
            return QUERN_OK;
        }
    return qn_parser_expected(p, what);
}

static qn_status parse_ints(qn_parser *p, int *out_n, const int64_t **out_ints)
{
    qn_vec(int64_t) ints = { 0 };
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LBRACKET, "'[' and whole numbers"));
    if (!qn_parser_accept(p, QN_TOKEN_RBRACKET)) {
        do {
            int64_t value;
            QN_TRY(qn_parse_i64(p, "a whole number", &value));
            qn_vec_push(p->arena, &ints, value);
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
        QN_TRY(qn_parser_expect(p, QN_TOKEN_RBRACKET, "',' or ']'"));
    }
    *out_n = (int)ints.n;
    *out_ints = ints.items;
    return QUERN_OK;
}

static qn_status parse_attr_value(qn_parser *p, qn_attr *attr)
{
    static const char *const bools[] = { "false", "true" };
    qn_dtype dtype;
    switch (qn_attrs[attr->key].kind) {
    case QN_ATTR_KIND_INT: return qn_parse_i64(p, "a whole number", &attr->i);
    case QN_ATTR_KIND_FLOAT: return parse_element(p, QUERN_F64, &attr->f);
    case QN_ATTR_KIND_BOOL: return parse_enum(p, "true or false", bools, 2, &attr->i);
    case QN_ATTR_KIND_INTS: return parse_ints(p, &attr->n, &attr->ints);
    case QN_ATTR_KIND_DIMS: return parse_dims(p, &attr->n, &attr->dims);
    case QN_ATTR_KIND_DTYPE:
        QN_TRY(qn_parse_dtype(p, &dtype));
        attr->i = dtype;
        return QUERN_OK;
    case QN_ATTR_KIND_KIND:
        return parse_enum(p, "sum, prod, max, min, set or mean", qn_kind_names, QN_N_KINDS, &attr->i);
    case QN_ATTR_KIND_DIRECTION:
        return parse_enum(p, "eq, ne, lt, le, gt or ge", qn_direction_names, 6, &attr->i);
    case QN_ATTR_KIND_STRING:
        if (p->token.kind != QN_TOKEN_STRING)
            return qn_parser_expected(p, "a string in double quotes");
        attr->s = p->token.text;
        qn_parser_next(p);
        return QUERN_OK;
    case QN_ATTR_KIND_TENSOR: break;
    }
    return qn_parser_error(p, &p->token,
                           "a tensor isn't written as an attribute, but as `constant [1, 2] : i64[2]`");
}

static qn_status parse_attr(qn_parser *p, qn_op op, qn_attr *attr)
{
    const char *names[QN_N_ATTRS];
    *attr = (qn_attr){ .key = QN_N_ATTRS };
    uint64_t taken = qn_op_attrs(op, NULL);
    for (int key = 0; key < QN_N_ATTRS; key++) {
        names[key] = taken >> key & 1 ? qn_attrs[key].name : NULL;
        if (names[key] && qn_parser_at_word(p, names[key]))
            attr->key = (qn_attr_key)key;
    }
    if (p->token.kind != QN_TOKEN_WORD)
        return qn_parser_expected(p, "the name of an attribute");
    if (attr->key == QN_N_ATTRS)
        return qn_parser_error(p, &p->token, "%s has no attribute '%.*s'%s; it takes: %s", qn_ops[op].name,
                               (int)p->token.length, p->token.text,
                               qn_parser_suggest(p, &p->token, names, QN_N_ATTRS),
                               *qn_ops[op].attrs ? qn_ops[op].attrs : "none");
    qn_parser_next(p);
    QN_TRY(qn_parser_expect(p, QN_TOKEN_EQUALS, "'='"));
    return parse_attr_value(p, attr);
}

qn_status qn_parse_attrs(qn_parser *p, qn_op op, int *out_n, qn_attr **out_attrs)
{
    qn_vec(qn_attr) attrs = { 0 };
    qn_parser_next(p);
    if (!qn_parser_accept(p, QN_TOKEN_RBRACE)) {
        do {
            qn_attr attr;
            qn_token start = p->token;
            QN_TRY(parse_attr(p, op, &attr));
            qn_vec_push(p->arena, &attrs, attr);
            size_t at = attrs.n - 1; /* sorted by key */
            for (; at > 0 && attrs.items[at - 1].key >= attr.key; at--) {
                if (attrs.items[at - 1].key == attr.key)
                    return qn_parser_error(p, &start, "attribute '%s' is here twice",
                                           qn_attrs[attr.key].name);
                attrs.items[at] = attrs.items[at - 1];
            }
            attrs.items[at] = attr;
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
        QN_TRY(qn_parser_expect(p, QN_TOKEN_RBRACE, "',' or '}'"));
    }
    *out_n = (int)attrs.n;
    *out_attrs = attrs.items;
    return QUERN_OK;
}
