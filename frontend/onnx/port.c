/* Inputs and outputs of the outermost graph. A sequence is as many tensors as the options say that it has. */
#include <ctype.h>
#include <string.h>

#include "frontend/onnx/import.h"

/* ---- dimensions of inputs ---- */

static bool is_identifier(const char *name)
{
    if (!isalpha((unsigned char)*name) && *name != '_')
        return false;
    while (isalnum((unsigned char)*name) || *name == '_')
        name++;
    return !*name;
}

/* The name that stands for a name; NULL where it is a number, *out_value. */
static const char *resolve_alias(const qn_onnx_import *im, const char *name, int64_t *out_value)
{
    for (const qn_onnx_alias *a = im->aliases; a; a = a->next)
        if (!strcmp(a->from, name)) {
            *out_value = a->value;
            return a->to ? resolve_alias(im, a->to, out_value) : NULL;
        }
    return name;
}

void qn_onnx_add_alias(qn_onnx_import *im, const char *from, const char *to, int64_t value)
{
    qn_arena *arena = im->diags->arena; /* outlives this attempt */
    int64_t known;
    if (im->n_sides) /* what a branch needs */
        return;
    from = resolve_alias(im, from, &known);
    to = to ? resolve_alias(im, to, &value) : NULL;
    if (!from ||
        (to && !strcmp(from, to))) /* a number already, or the same: what differs is an error elsewhere */
        return;
    qn_onnx_alias *alias = QN_NEW(arena, qn_onnx_alias);
    *alias = (qn_onnx_alias){ qn_arena_strdup(arena, from), to ? qn_arena_strdup(arena, to) : NULL, value,
                              im->aliases };
    im->aliases = alias;
    im->restart = true;
}

/* The dimension of that name: a number where the options fix it, else a symbol. */
static qn_dim named_dim(qn_onnx_import *im, const char *given)
{
    int64_t min = QN_ONNX_DIM_MIN, max = QN_ONNX_DIM_MAX, value = 0, other_value;
    const char *name = resolve_alias(im, given, &value), *other;
    bool bounded = false;
    for (int i = 0; i < im->options->n_dims; i++) {
        const quern_dim_range *d = &im->options->dims[i];
        other = resolve_alias(im, d->name, &other_value);
        im->met[i] |= strcmp(d->name, given) == 0;
        if (name ? !other || strcmp(other, name) : strcmp(d->name, given))
            continue;
        min = !bounded || d->min > min ? d->min : min;
        max = !bounded || d->max < max ? d->max : max;
        bounded = true;
    }
    for (const qn_onnx_limit *l = im->limits; l && name; l = l->next)
        if (!strcmp(l->name, name)) {
            min = l->least > min ? l->least : min;
            max = l->most < max ? l->most : max;
        }
    if (min > max || (!name && (value < min || value > max)))
        qn_error(im->diags, QUERN_ERROR_ARGUMENT, &(qn_loc){ .file = im->file },
                 "the model needs dimension %s to be another one, or %lld, which its range excludes", given,
                 (long long)value);
    if (!name)
        return qn_dim_const(im->dims, value);
    return min >= max ? qn_dim_const(im->dims, min) : qn_dim_symbol(im->dims, name, min, max);
}

/* "?" is how exporters of PaddlePaddle write a dimension without a name: two of them are not the same. */
static bool is_param(const Onnx__Shape__Dim *dim)
{
    return dim->value_case == ONNX__SHAPE__DIM__VALUE_DIM_PARAM && *dim->dim_param &&
           strcmp(dim->dim_param, "?") != 0;
}

static bool is_function(const char *name)
{
    return !strcmp(name, "min") || !strcmp(name, "max") || !strcmp(name, "mod") || !strcmp(name, "floordiv");
}

/* "past + 1" over names that are dimensions of their own elsewhere, so that their values are known at run time; else
 * NULL. */
static qn_dim expression_dim(qn_onnx_import *im, const char *text)
{
    const char *resolved = "";
    for (const char *c = text; *c;) {
        size_t length = 0;
        while (isalnum((unsigned char)c[length]) || c[length] == '_')
            length++;
        const char *token = qn_arena_printf(im->arena, "%.*s", (int)(length ? length : 1), c);
        if (length && !isdigit((unsigned char)*c) && !is_function(token)) {
            int64_t value;
            token = resolve_alias(im, token, &value);
            if (token && !qn_dim_find_symbol(im->dims, token))
                return NULL;
            if (!token)
                token = qn_arena_printf(im->arena, "%lld", (long long)value);
        }
        resolved = qn_arena_printf(im->arena, "%s%s", resolved, token);
        c += length ? length : 1;
    }
    const char *cursor = resolved;
    qn_dim dim = qn_dim_parse(im->dims, &cursor);
    while (dim && *cursor == ' ')
        cursor++;
    return dim && !*cursor && dim->min >= 0 ? dim : NULL;
}

/* ---- shapes that the options give ---- */

/* NULL: they say nothing of that input. */
static const char *given_shape(qn_onnx_import *im, const char *name)
{
    for (int i = 0; i < im->options->n_shapes; i++)
        if (!strcmp(im->options->shapes[i].name, name)) {
            im->met_shapes[i] = true;
            return im->options->shapes[i].text;
        }
    return NULL;
}

static void skip_spaces(const char **cursor)
{
    while (**cursor == ' ')
        (*cursor)++;
}

static bool skip(const char **cursor, char c)
{
    skip_spaces(cursor);
    if (**cursor != c)
        return false;
    (*cursor)++;
    skip_spaces(cursor);
    return true;
}

/* The text up to the comma or bracket that ends it, as a dimension; NULL when it is none. */
static qn_dim read_dim(qn_onnx_import *im, const char **cursor)
{
    size_t n = 0;
    for (int depth = 0; (*cursor)[n] && (depth || !strchr(",]", (*cursor)[n])); n++)
        depth += ((*cursor)[n] == '(') - ((*cursor)[n] == ')');
    const char *text = *cursor;
    *cursor += n;
    while (n && text[n - 1] == ' ')
        n--;
    text = qn_arena_printf(im->arena, "%.*s", (int)n, text);
    return is_identifier(text) ? named_dim(im, text) : expression_dim(im, text);
}

/* "[2, n]"; false when it is something else. */
static bool read_shape(qn_onnx_import *im, const char **cursor, int *out_rank, qn_dim *out)
{
    *out_rank = 0;
    if (!skip(cursor, '['))
        return false;
    if (skip(cursor, ']'))
        return true;
    do {
        qn_dim dim = *out_rank < QN_MAX_RANK ? read_dim(im, cursor) : NULL;
        if (!dim || !qn_dim_is_valid_extent(dim))
            return false;
        out[(*out_rank)++] = dim;
    } while (skip(cursor, ','));
    return skip(cursor, ']');
}

/* ---- inputs ---- */

static bool is_named(const Onnx__Shape__Dim *dim)
{
    return is_param(dim) && is_identifier(dim->dim_param);
}

/* The dimension that the model declares; `fallback` names one that it does not. NULL after a report. */
static qn_dim declared_dim(qn_onnx_import *im, const char *name, const Onnx__Shape__Dim *dim,
                           const char *fallback)
{
    if (dim->value_case == ONNX__SHAPE__DIM__VALUE_DIM_VALUE && dim->dim_value >= QN_DIM_MAX_VALUE) {
        qn_error(im->diags, QUERN_ERROR_MODEL, &(qn_loc){ .file = im->file },
                 "input \"%s\" has the dimension %lld, which is too large", name, (long long)dim->dim_value);
        return NULL;
    }
    if (dim->value_case == ONNX__SHAPE__DIM__VALUE_DIM_VALUE && dim->dim_value >= 0)
        return qn_dim_const(im->dims, dim->dim_value);
    if (!is_param(dim))
        return named_dim(im, fallback);
    qn_dim expression = is_named(dim) ? NULL : expression_dim(im, dim->dim_param);
    return expression ? expression : named_dim(im, dim->dim_param);
}

/* A dimension that is given is the one declared; a name that is declared is another one for it, but in the type of a sequence's
 * tensors, where each may have its own. */
static bool unify(qn_onnx_import *im, const Onnx__Shape__Dim *declared, qn_dim given, bool item)
{
    if (declared->value_case == ONNX__SHAPE__DIM__VALUE_DIM_VALUE && declared->dim_value >= 0)
        return qn_dim_is(given, declared->dim_value);
    if (!is_param(declared) || item)
        return true;
    const qn_dim named = named_dim(im, declared->dim_param);
    if (named == given)
        return true;
    if (named->kind != QN_DIM_SYMBOL || (!qn_dim_is_const(given) && given->kind != QN_DIM_SYMBOL))
        return false;
    if (qn_dim_is_const(given) && (given->value < named->min || given->value > named->max))
        return false;
    qn_onnx_add_alias(im, named->name, qn_dim_is_const(given) ? NULL : given->name,
                      qn_dim_is_const(given) ? given->value : 0);
    return true;
}

/* "[batch, ?, 3]" */
static const char *declared_text(qn_onnx_import *im, const Onnx__Shape *shape)
{
    const char *text = "[";
    for (size_t i = 0; i < shape->n_dim; i++) {
        const Onnx__Shape__Dim *dim = shape->dim[i];
        const bool number = dim->value_case == ONNX__SHAPE__DIM__VALUE_DIM_VALUE;
        text = qn_arena_printf(im->arena, "%s%s%s", text, i ? ", " : "",
                               number          ? qn_arena_printf(im->arena, "%lld", (long long)dim->dim_value)
                               : is_param(dim) ? dim->dim_param
                                               : "?");
    }
    return qn_arena_printf(im->arena, "%s]", text);
}

static void bad_shape(qn_onnx_import *im, const char *name, const char *expected)
{
    qn_error(im->diags, QUERN_ERROR_ARGUMENT, &(qn_loc){ .file = im->file },
             "input \"%s\" can't have the shape %s; %s", name, given_shape(im, name), expected);
}

static void needs_shape(qn_onnx_import *im)
{
    if (im->n_hosts < 64)
        im->needs_shapes |= (uint64_t)1 << im->n_hosts;
}

/* Adds a tensor to the graph's inputs: of the shape at the cursor, or, without one, of the shape declared. NULL after a report. */
static qn_onnx_value *add_tensor(qn_onnx_import *im, qn_graph *graph, const Onnx__ValueInfo *info,
                                 const char *name, const Onnx__Type__TensorType *tensor, const char **cursor)
{
    const qn_loc loc = { .file = im->file };
    const Onnx__Shape *shape = tensor->shape;
    const bool strings = tensor->elem_type == QN_ONNX_STRING;
    qn_dtype dtype = strings ? QUERN_I64 : qn_onnx_elem_dtype(tensor->elem_type);
    qn_dim dims[QN_MAX_RANK];
    int rank = shape ? (int)shape->n_dim : 0;
    if (dtype == QUERN_INVALID_DTYPE) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc,
                 "input \"%s\" has data type %s, which is not supported", info->name,
                 qn_onnx_elem_name(tensor->elem_type));
        return NULL;
    }
    if (!cursor && (!shape || shape->n_dim > QN_MAX_RANK)) {
        if (!shape)
            needs_shape(im);
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc,
                 "input \"%s\" has %s; its number of dimensions must be %s, up to %d", info->name,
                 shape ? "too many dimensions" : "no shape",
                 shape ? "less" : "given (as in --shape 'x=[1, n]')", QN_MAX_RANK);
        return NULL;
    }
    if (cursor) {
        bool fits = read_shape(im, cursor, &rank, dims) && (!shape || (int)shape->n_dim == rank);
        for (int i = 0; fits && shape && i < rank; i++)
            fits = unify(im, shape->dim[i], dims[i], name != info->name);
        if (!fits) {
            bad_shape(im, info->name,
                      shape ? qn_arena_printf(im->arena, "the model says %s", declared_text(im, shape))
                            : "write numbers, names, and expressions of names of other dimensions: [1, n]");
            return NULL;
        }
    }
    for (int i = 0; !cursor && i < rank; i++)
        if (!(dims[i] =
                  declared_dim(im, info->name, shape->dim[i], qn_arena_printf(im->arena, "%s_%d", name, i))))
            return NULL;
    qn_vec_push(im->arena, &im->hosts, im->n_hosts);
    qn_value *value =
        qn_graph_add_input(graph, name, qn_type_make(im->module, dtype, rank, dims), QN_ROLE_INPUT);
    qn_onnx_value *v = qn_onnx_value_from(im, value);
    v->strings = strings;
    return v;
}

/* The array's elements in that type; NULL: they aren't. Whole numbers, as a command line gives them, are of any type that has them. */
static const void *contents_as(const qn_onnx_import *im, const quern_array *array, qn_dtype dtype)
{
    if (array->dtype == (int32_t)dtype)
        return array->data;
    const int64_t *numbers = array->data, n = qn_onnx_count(array->rank, array->dims);
    const int64_t exact = (int64_t)1 << 53; /* in a double */
    const bool floats = qn_dtype_is_float(dtype);
    if (array->dtype != QUERN_I64 || n < 0 || qn_dtype_is_stored(dtype) || dtype == QUERN_BOOL)
        return NULL;
    const size_t bytes = qn_dtype_bytes(dtype);
    uint8_t *data = QN_NEW_ARRAY(im->arena, uint8_t, (size_t)n *bytes + 1);
    for (int64_t i = 0; i < n; i++) {
        qn_scalar number = { .i = numbers[i] }, kept;
        if (floats ? number.i < -exact || number.i > exact : dtype == QUERN_U64 && number.i < 0)
            return NULL;
        if (floats)
            number.f = (double)numbers[i];
        qn_scalar_store(dtype, number, data + (size_t)i * bytes);
        kept = qn_scalar_load(dtype, data + (size_t)i * bytes);
        if (floats ? kept.f != number.f : kept.i != number.i)
            return NULL;
    }
    return data;
}

/* The contents that the options give for the input; v where they give none. NULL after a report. */
static qn_onnx_value *given_contents(qn_onnx_import *im, const char *name, qn_onnx_value *v)
{
    const qn_type *type = &v->type;
    for (int i = 0; i < im->options->n_constants; i++) {
        const qn_onnx_constant *c = &im->options->constants[i];
        if (strcmp(c->name, name))
            continue;
        im->met_constants[i] = true;
        bool same = c->array.rank == type->rank;
        for (int k = 0; k < type->rank && same; k++)
            same = qn_dim_is_const(type->dims[k])
                       ? qn_dim_is(type->dims[k], c->array.dims[k])
                       : c->array.dims[k] >= 0 && c->array.dims[k] < QN_DIM_MAX_VALUE;
        const void *data = same ? contents_as(im, &c->array, type->dtype) : NULL;
        if (!data) {
            qn_error(im->diags, QUERN_ERROR_ARGUMENT, &(qn_loc){ .file = im->file },
                     "the contents given for input \"%s\" do not fit %s", name,
                     qn_type_print(type, im->arena));
            return NULL;
        }
        const bool strings = v->strings;
        v = qn_onnx_value_constant(im, qn_onnx_tensor_of(im, type->dtype, type->rank, c->array.dims, data));
        v->strings = strings;
    }
    return v;
}

/* What an optional or a sequence holds in the end, where that is a tensor. */
static const Onnx__Type__TensorType *tensor_type(const Onnx__Type *type, bool *out_optional,
                                                 bool *out_sequence)
{
    *out_optional = *out_sequence = false;
    if (type && type->value_case == ONNX__TYPE__VALUE_OPTIONAL_TYPE) {
        *out_optional = true;
        type = type->optional_type->elem_type;
    }
    if (type && type->value_case == ONNX__TYPE__VALUE_SEQUENCE_TYPE) {
        *out_sequence = true;
        type = type->sequence_type->elem_type;
    }
    return type && type->value_case == ONNX__TYPE__VALUE_TENSOR_TYPE ? type->tensor_type : NULL;
}

/* NAME_0, NAME_1, …: what the tensors of a sequence are called; not like another input or output. */
static const char *item_name(qn_onnx_import *im, const char *name, int item)
{
    const Onnx__Graph *graph = im->model->graph;
    const char *own = qn_arena_printf(im->arena, "%s_%d", name, item);
    for (size_t i = 0; i < graph->n_input + graph->n_output; i++)
        if (!strcmp(i < graph->n_input ? graph->input[i]->name : graph->output[i - graph->n_input]->name,
                    own)) {
            own = qn_arena_printf(im->arena, "%s_", own);
            i = (size_t)-1;
        }
    return own;
}

/* Of what is not just a tensor of numbers. */
static void add_group(qn_onnx_import *im, const char *name, quern_role role, int position,
                      const qn_onnx_value *v, int first)
{
    qn_module *m = im->module;
    if (v->kind == QN_ONNX_TENSOR && !v->strings)
        return;
    const quern_group group = { .size = sizeof group,
                                .name = qn_arena_strdup(m->arena, name),
                                .role = role,
                                .position = position,
                                .sequence = v->kind == QN_ONNX_SEQUENCE,
                                .first = first,
                                .n = v->kind == QN_ONNX_TENSOR ? 1 : v->n_items,
                                .strings = qn_onnx_is_strings(v) };
    qn_vec_push(m->arena, &m->groups, group);
}

/* "([2], [3])". NULL after a report. */
static qn_onnx_value *add_sequence(qn_onnx_import *im, qn_graph *graph, const Onnx__ValueInfo *info,
                                   const Onnx__Type__TensorType *tensor, const char *text)
{
    qn_onnx_value *v = qn_onnx_value_new(im, QN_ONNX_SEQUENCE);
    qn_vec(qn_onnx_value *) items = { 0 };
    const char *cursor = text;
    bool good = skip(&cursor, '(');
    for (bool more = good && !skip(&cursor, ')'); more; more = skip(&cursor, ',')) {
        qn_onnx_value *item =
            add_tensor(im, graph, info, item_name(im, info->name, (int)items.n), tensor, &cursor);
        if (!item)
            return NULL;
        qn_vec_push(im->arena, &items, item);
    }
    good = good && (items.n == 0 || skip(&cursor, ')')) && !*cursor;
    if (!good) {
        bad_shape(im, info->name, "it is a sequence: write ([2, n], [3, n])");
        return NULL;
    }
    v->items = items.items;
    v->n_items = (int)items.n;
    return v;
}

static qn_onnx_value *add_value(qn_onnx_import *im, qn_graph *graph, const Onnx__ValueInfo *info)
{
    const qn_loc loc = { .file = im->file };
    const char *text = given_shape(im, info->name), *cursor = text;
    bool optional, sequence;
    const Onnx__Type__TensorType *tensor = tensor_type(info->type, &optional, &sequence);
    if (!tensor) {
        qn_error(im->diags, info->type ? QUERN_ERROR_UNSUPPORTED : QUERN_ERROR_MODEL, &loc,
                 "input \"%s\" %s; tensors, sequences and optionals of them are supported", info->name,
                 info->type ? "is a map, sparse, or a sequence of these" : "has no type");
        return NULL;
    }
    if (!text && (sequence || optional)) {
        needs_shape(im);
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc,
                 "input \"%s\" is %s; it must be known of which shapes (as in --shape '%s=%s')", info->name,
                 sequence ? "a sequence" : "an optional", info->name,
                 sequence ? "([2, 3], [2, 3])" : "[2, 3]', or 'none");
        return NULL;
    }
    if (optional && !strcmp(text, "none"))
        return qn_onnx_value_new(im, QN_ONNX_NONE);
    if (sequence)
        return add_sequence(im, graph, info, tensor, text);
    qn_onnx_value *v = add_tensor(im, graph, info, info->name, tensor, text ? &cursor : NULL);
    if (v && text && *cursor) {
        bad_shape(im, info->name, "it is a tensor: write [1, n]");
        return NULL;
    }
    return v ? given_contents(im, info->name, v) : NULL;
}

bool qn_onnx_add_input(qn_onnx_import *im, qn_onnx_scope *scope, const Onnx__ValueInfo *info)
{
    const qn_loc loc = { .file = im->file };
    const int first = scope->graph->n_inputs;
    qn_onnx_value *v = add_value(im, scope->graph, info);
    if (v)
        add_group(im, info->name, QUERN_INPUT, im->n_hosts, v, first);
    if (im->n_hosts < 64)
        im->input_names[im->n_hosts] = info->name;
    if (v && v->kind == QN_ONNX_TENSOR && im->n_hosts < 64)
        v->depends = (uint64_t)1 << im->n_hosts;
    im->n_hosts++;
    qn_onnx_scope_define(scope, info->name, v ? v : qn_onnx_value_new(im, QN_ONNX_FAILED), &loc);
    return v != NULL;
}

bool qn_onnx_is_initializer(const Onnx__Graph *graph, const char *name)
{
    for (size_t i = 0; i < graph->n_initializer; i++)
        if (!strcmp(graph->initializer[i]->name, name))
            return true;
    for (size_t i = 0; i < graph->n_sparse_initializer; i++)
        if (graph->sparse_initializer[i]->values && !strcmp(graph->sparse_initializer[i]->values->name, name))
            return true;
    return false;
}

/* Names that stand alone become symbols before expressions over them are read. */
void qn_onnx_declare_dims(qn_onnx_import *im, const Onnx__Graph *graph)
{
    for (size_t i = 0; i < graph->n_input; i++) {
        const Onnx__Type *type = graph->input[i]->type;
        if (!type || type->value_case != ONNX__TYPE__VALUE_TENSOR_TYPE || !type->tensor_type->shape ||
            qn_onnx_is_initializer(graph, graph->input[i]->name))
            continue;
        const Onnx__Shape *shape = type->tensor_type->shape;
        for (size_t k = 0; k < shape->n_dim; k++)
            if (is_param(shape->dim[k]) && is_identifier(shape->dim[k]->dim_param))
                named_dim(im, shape->dim[k]->dim_param);
    }
}

/* ---- outputs ---- */

enum { MAX_OUTPUTS = 65536 };

/* The input that the value may replace in its place; -1: none. */
static int updated_input(const qn_onnx_import *im, const qn_graph *graph, const qn_value *value)
{
    const qn_value *before = NULL;
    for (size_t i = 0; i < im->updates.n; i++)
        if (im->updates.items[i].after == value)
            before = im->updates.items[i].before;
    for (int i = 0; before && i < graph->n_inputs; i++) {
        bool taken = graph->inputs[i] != before || !qn_type_equal(&before->type, &value->type);
        for (int k = 0; graph->aliases && k < graph->n_outputs; k++)
            taken |= graph->aliases[k] == i;
        if (!taken)
            return i;
    }
    return -1;
}

static void add_tensor_output(qn_onnx_import *im, qn_onnx_scope *scope, const char *name,
                              const Onnx__Type__TensorType *type, qn_onnx_value *v)
{
    const qn_loc loc = { .file = im->file };
    const int declared = type ? type->elem_type : 0,
              elem = v->strings ? QN_ONNX_STRING : (int)qn_onnx_dtype_elem(v->type.dtype);
    if (declared && declared != elem) {
        qn_error(im->diags, QUERN_ERROR_MODEL, &loc, "output \"%s\" is declared as %s and computed as %s",
                 name, qn_onnx_elem_name(declared), qn_onnx_elem_name(elem));
        return;
    }
    qn_builder b = { .graph = scope->graph, .diags = im->diags, .loc = loc };
    qn_value *value = qn_onnx_value_make(&b, v);
    value = value ? qn_onnx_settle(im, scope, value) : NULL;
    if (value)
        qn_graph_add_output(scope->graph, value, name, updated_input(im, scope->graph, value));
}

void qn_onnx_add_output(qn_onnx_import *im, qn_onnx_scope *scope, int i)
{
    const Onnx__Graph *graph = im->model->graph;
    const qn_loc loc = { .file = im->file };
    const char *name = graph->output[i]->name;
    bool optional, sequence;
    const Onnx__Type__TensorType *type = tensor_type(graph->output[i]->type, &optional, &sequence);
    qn_onnx_value *v = qn_onnx_scope_output(scope, graph, i, &loc);
    if (!v)
        return;
    for (int k = 0; k < i; k++)
        if (!strcmp(graph->output[k]->name, name)) {
            qn_error(im->diags, QUERN_ERROR_MODEL, &loc, "the name \"%s\" is used for two outputs", name);
            return;
        }
    if (v->kind == QN_ONNX_PIECES) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc, "output \"%s\" is a sequence of unknown length",
                 name);
        return;
    }
    add_group(im, name, QUERN_OUTPUT, i, v, scope->graph->n_outputs);
    if (v->kind == QN_ONNX_TENSOR) {
        add_tensor_output(im, scope, name, type, v);
        return;
    }
    if (v->n_items > MAX_OUTPUTS - scope->graph->n_outputs) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc,
                 "output \"%s\" is a sequence of %d; the outputs may have %d tensors", name, v->n_items,
                 MAX_OUTPUTS);
        return;
    }
    for (int k = 0; k < v->n_items; k++)
        if (v->items[k]->kind != QN_ONNX_TENSOR) {
            qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc,
                     "output \"%s\" is a sequence of what are no tensors", name);
            return;
        }
    for (int k = 0; k < v->n_items; k++)
        add_tensor_output(im, scope, item_name(im, name, k), type, v->items[k]);
}
