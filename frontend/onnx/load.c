/* The entry points, and the outermost graph: inputs and outputs. */
#include <ctype.h>
#include <string.h>

#include "frontend/onnx/import.h"
#include "frontend/onnx/map.h"
#include "frontend/onnx/wire.h"

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
    for (const qn_onnx_floor *f = im->floors; f && name; f = f->next)
        if (!strcmp(f->name, name) && f->least > min)
            min = f->least;
    if (min > max || (!name && (value < min || value > max)))
        qn_error(im->diags, QUERN_ERROR_ARGUMENT, &(qn_loc){ .file = im->file },
                 "the model needs dimension %s to be another one, or %lld, which its range excludes", given,
                 (long long)value);
    if (!name)
        return qn_dim_const(im->dims, value);
    return min >= max ? qn_dim_const(im->dims, min) : qn_dim_symbol(im->dims, name, min, max);
}

static bool is_param(const Onnx__Shape__Dim *dim)
{
    return dim->value_case == ONNX__SHAPE__DIM__VALUE_DIM_PARAM && *dim->dim_param;
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

static bool add_input(qn_onnx_import *im, qn_onnx_scope *scope, const Onnx__ValueInfo *info)
{
    qn_loc loc = { .file = im->file };
    const Onnx__Type__TensorType *tensor =
        info->type && info->type->value_case == ONNX__TYPE__VALUE_TENSOR_TYPE ? info->type->tensor_type
                                                                              : NULL;
    if (!tensor) {
        qn_error(im->diags, info->type ? QUERN_ERROR_UNSUPPORTED : QUERN_ERROR_MODEL, &loc,
                 "input \"%s\" %s; only tensors are supported", info->name,
                 info->type ? "is a sequence, an optional, a map or sparse" : "has no type");
        return false;
    }
    qn_dtype dtype = qn_onnx_elem_dtype(tensor->elem_type);
    if (dtype == QUERN_INVALID_DTYPE) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc,
                 "input \"%s\" has data type %s, which is not supported", info->name,
                 qn_onnx_elem_name(tensor->elem_type));
        return false;
    }
    if (!tensor->shape || tensor->shape->n_dim > QN_MAX_RANK) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc,
                 "input \"%s\" has %s; its number of dimensions must be given, up to %d", info->name,
                 tensor->shape ? "too many dimensions" : "no shape", QN_MAX_RANK);
        return false;
    }
    qn_dim dims[QN_MAX_RANK];
    int rank = (int)tensor->shape->n_dim;
    for (int i = 0; i < rank; i++) {
        const Onnx__Shape__Dim *dim = tensor->shape->dim[i];
        if (dim->value_case == ONNX__SHAPE__DIM__VALUE_DIM_VALUE && dim->dim_value >= QN_DIM_MAX_VALUE) {
            qn_error(im->diags, QUERN_ERROR_MODEL, &loc,
                     "input \"%s\" has the dimension %lld, which is too large", info->name,
                     (long long)dim->dim_value);
            return false;
        }
        if (dim->value_case == ONNX__SHAPE__DIM__VALUE_DIM_VALUE && dim->dim_value >= 0) {
            dims[i] = qn_dim_const(im->dims, dim->dim_value);
        } else if (is_param(dim)) {
            dims[i] = is_identifier(dim->dim_param) ? NULL : expression_dim(im, dim->dim_param);
            if (!dims[i])
                dims[i] = named_dim(im, dim->dim_param);
        } else {
            dims[i] = named_dim(im, qn_arena_printf(im->arena, "%s_%d", info->name, i));
        }
    }
    qn_value *value = qn_graph_add_input(scope->graph, info->name,
                                         qn_type_make(im->module, dtype, rank, dims), QN_ROLE_INPUT);
    qn_onnx_value *v = qn_onnx_value_from(im, value);
    for (int i = 0; i < im->options->n_constants; i++) {
        const qn_onnx_constant *c = &im->options->constants[i];
        if (strcmp(c->name, info->name))
            continue;
        bool same = c->array.dtype == (int32_t)dtype && c->array.rank == rank;
        for (int k = 0; k < rank && same; k++)
            same = qn_dim_is_const(dims[k]) ? qn_dim_is(dims[k], c->array.dims[k])
                                            : c->array.dims[k] >= 0 && c->array.dims[k] < QN_DIM_MAX_VALUE;
        if (!same) {
            qn_error(im->diags, QUERN_ERROR_ARGUMENT, &loc,
                     "the contents given for input \"%s\" do not fit %s", info->name,
                     qn_type_print(&value->type, im->arena));
            return false;
        }
        v = qn_onnx_value_constant(im, qn_onnx_tensor_of(im, dtype, rank, c->array.dims, c->array.data));
    }
    int index = scope->graph->n_inputs - 1;
    if (index < 64) {
        im->input_names[index] = info->name;
        v->depends = (uint64_t)1 << index;
    }
    return qn_onnx_scope_define(scope, info->name, v, &loc);
}

static bool is_initializer(const Onnx__Graph *graph, const char *name)
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
static void declare_dims(qn_onnx_import *im, const Onnx__Graph *graph)
{
    for (size_t i = 0; i < graph->n_input; i++) {
        const Onnx__Type *type = graph->input[i]->type;
        if (!type || type->value_case != ONNX__TYPE__VALUE_TENSOR_TYPE || !type->tensor_type->shape ||
            is_initializer(graph, graph->input[i]->name))
            continue;
        const Onnx__Shape *shape = type->tensor_type->shape;
        for (size_t k = 0; k < shape->n_dim; k++)
            if (is_param(shape->dim[k]) && is_identifier(shape->dim[k]->dim_param))
                named_dim(im, shape->dim[k]->dim_param);
    }
}

static void add_output(qn_onnx_import *im, qn_onnx_scope *scope, const Onnx__Graph *graph, int i)
{
    qn_loc loc = { .file = im->file };
    const char *name = graph->output[i]->name;
    const Onnx__Type *type = graph->output[i]->type;
    qn_onnx_value *v = qn_onnx_scope_output(scope, graph, i, &loc);
    if (!v)
        return;
    if (v->kind != QN_ONNX_TENSOR) {
        qn_error(im->diags, QUERN_ERROR_UNSUPPORTED, &loc, "output \"%s\" is %s; only tensors are supported",
                 name, v->kind == QN_ONNX_SEQUENCE ? "a sequence" : "an optional without a value");
        return;
    }
    for (int k = 0; k < i; k++)
        if (!strcmp(graph->output[k]->name, name)) {
            qn_error(im->diags, QUERN_ERROR_MODEL, &loc, "the name \"%s\" is used for two outputs", name);
            return;
        }
    int declared =
        type && type->value_case == ONNX__TYPE__VALUE_TENSOR_TYPE ? type->tensor_type->elem_type : 0;
    const int elem = (int)qn_onnx_dtype_elem(v->type.dtype);
    if (declared && declared != elem) {
        qn_error(im->diags, QUERN_ERROR_MODEL, &loc, "output \"%s\" is declared as %s and computed as %s",
                 name, qn_onnx_elem_name(declared), qn_onnx_elem_name(elem));
        return;
    }
    qn_builder b = { .graph = scope->graph, .diags = im->diags, .loc = loc };
    qn_value *value = qn_onnx_value_make(&b, v);
    if (value)
        qn_graph_add_output(scope->graph, value, name, -1);
}

static void import_main(qn_onnx_import *im)
{
    const Onnx__Graph *graph = im->model->graph;
    qn_loc loc = { .file = im->file };
    qn_onnx_scope *scope = QN_NEW(im->arena, qn_onnx_scope);
    scope->im = im;
    scope->graph = qn_function_new(im->module, "main");
    scope->opsets = (const Onnx__OpsetId *const *)im->model->opset_import;
    scope->n_opsets = (int)im->model->n_opset_import;
    declare_dims(im, graph);
    bool good = true;
    for (size_t i = 0; i < graph->n_input; i++)
        if (!is_initializer(graph, graph->input[i]->name) && !add_input(im, scope, graph->input[i])) {
            good = false;
            qn_onnx_scope_define(scope, graph->input[i]->name, qn_onnx_value_new(im, QN_ONNX_FAILED), &loc);
        }
    good &= qn_onnx_scope_import(scope, graph);
    for (int i = 0; i < (int)graph->n_output; i++)
        add_output(im, scope, graph, i);
    if (good && graph->n_output == 0)
        qn_error(im->diags, QUERN_ERROR_MODEL, &loc, "the model has no outputs");
}

/* ---- entry points ---- */

/* An input that has the symbol as a dimension. */
static bool find_dim(const qn_graph *graph, qn_dim symbol, int *out_input, int *out_axis)
{
    for (int i = 0; i < graph->n_inputs; i++)
        for (int k = 0; k < graph->inputs[i]->type.rank; k++)
            if (graph->inputs[i]->type.dims[k] == symbol) {
                *out_input = i;
                *out_axis = k;
                return true;
            }
    return false;
}

static void report_needed_dims(const qn_onnx_import *im, qn_onnx_needs *needs)
{
    qn_arena *arena = im->diags->arena;
    const int n = im->options->every_dim ? qn_dims_symbol_count(im->dims) : (int)im->needs_dims.n;
    int *inputs = QN_NEW_ARRAY(arena, int, n), *axes = QN_NEW_ARRAY(arena, int, n), at = 0;
    const qn_graph *graph = im->module->functions[0];
    needs->dims = QN_NEW_ARRAY(arena, const char *, n);
    needs->dim_names = QN_NEW_ARRAY(arena, const char *, n);
    needs->dim_inputs = inputs;
    needs->dim_axes = axes;
    for (int i = 0; i < n; i++) {
        const qn_dim symbol =
            im->options->every_dim ? qn_dims_symbol_at(im->dims, i) : im->needs_dims.items[i];
        if (!find_dim(graph, symbol, &inputs[at], &axes[at]))
            continue;
        needs->dim_names[at] = qn_arena_strdup(arena, graph->inputs[inputs[at]]->name);
        needs->dims[at++] = qn_arena_strdup(arena, symbol->name);
    }
    needs->n_dims = at;
}

static void report_needs(const qn_onnx_import *im)
{
    qn_onnx_needs *needs = im->options->needs;
    if (!needs)
        return;
    if (im->module->n_functions)
        report_needed_dims(im, needs);
    needs->n = 0;
    int *indices = QN_NEW_ARRAY(im->diags->arena, int, 64);
    needs->indices = indices;
    needs->names = QN_NEW_ARRAY(im->diags->arena, const char *, 64);
    for (int i = 0; i < 64; i++)
        if (im->needs >> i & 1) {
            indices[needs->n] = i;
            needs->names[needs->n++] = qn_arena_strdup(im->diags->arena, im->input_names[i]);
        }
}

static bool good_options(const qn_onnx_options *options, qn_diags *diags)
{
    for (int i = 0; i < options->n_dims; i++) {
        const quern_dim_range *d = &options->dims[i];
        if (d->min < 0 || d->min > d->max || d->max > QN_DIM_MAX_VALUE) {
            qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "dimension %s cannot range from %lld to %lld",
                     d->name, (long long)d->min, (long long)d->max);
            return false;
        }
    }
    return true;
}

/* ---- how large an input must be ---- */

/* Does d grow, or stay, with its symbols? */
static bool is_increasing(qn_dim d)
{
    int from = 0, to = d->n;
    switch (d->kind) {
    case QN_DIM_CONST:
    case QN_DIM_SYMBOL:
    case QN_DIM_ADD:
    case QN_DIM_MIN:
    case QN_DIM_MAX: break;
    case QN_DIM_MUL:
        if (d->n != 2 || !(qn_dim_is_const(d->operands[0]) || qn_dim_is_const(d->operands[1])))
            return false;
        from = qn_dim_is_const(d->operands[0]);
        to = from + 1;
        if (d->operands[!from]->value < 0)
            return false;
        break;
    case QN_DIM_FLOORDIV:
        if (!qn_dim_is_const(d->operands[1]))
            return false;
        to = 1;
        break;
    default: return false;
    }
    for (int i = from; i < to; i++)
        if (!is_increasing(d->operands[i]))
            return false;
    return true;
}

/* The only symbol in d; NULL: there is none, or several. */
static qn_dim only_symbol(qn_dim d, qn_dim so_far, bool *io_several)
{
    if (d->kind == QN_DIM_SYMBOL) {
        *io_several |= so_far && so_far != d;
        return d;
    }
    for (int i = 0; i < d->n; i++)
        so_far = only_symbol(d->operands[i], so_far, io_several);
    return so_far;
}

/* An image that is smaller than a window has no result: extents that may be negative say from where on an input's dimension makes
 * sense, and the import starts again knowing it. */
static void add_floor(qn_onnx_import *im, const qn_graph *graph, qn_dim extent)
{
    bool several = false;
    int input, axis;
    if (extent->min >= 0)
        return;
    const qn_dim symbol = only_symbol(extent, NULL, &several);
    if (!symbol || several || !find_dim(graph, symbol, &input, &axis) || !is_increasing(extent))
        return;
    int64_t *values = QN_NEW_ARRAY(im->arena, int64_t, qn_dims_symbol_count(im->dims));
    int64_t too_small = symbol->min, enough = symbol->max;
    values[symbol->symbol] = enough;
    if (qn_dim_eval(extent, values) < 0)
        return;
    values[symbol->symbol] = too_small;
    if (qn_dim_eval(extent, values) >= 0) /* its bounds are only not known exactly */
        return;
    while (enough - too_small > 1) {
        const int64_t middle = too_small + (enough - too_small) / 2;
        values[symbol->symbol] = middle;
        if (qn_dim_eval(extent, values) >= 0)
            enough = middle;
        else
            too_small = middle;
    }
    for (const qn_onnx_floor *f = im->floors; f; f = f->next)
        if (!strcmp(f->name, symbol->name) && f->least >= enough)
            return;
    qn_arena *arena = im->diags->arena; /* outlives this attempt */
    qn_onnx_floor *floor = QN_NEW(arena, qn_onnx_floor);
    *floor = (qn_onnx_floor){ qn_arena_strdup(arena, symbol->name), enough, im->floors };
    im->floors = floor;
    im->restart = true;
}

/* Of what is always computed: not of what lies in branches. */
static void find_floors(qn_onnx_import *im)
{
    qn_graph *graph = im->module->functions[0];
    qn_graph_remove_dead(graph);
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_results; i++)
            for (int k = 0; k < node->results[i].type.rank; k++)
                add_floor(im, graph, node->results[i].type.dims[k]);
}

/* Dimensions that the options speak of and the model does not: misspelt, most likely. */
static void report_unmet(qn_onnx_import *im)
{
    for (int i = 0; i < im->options->n_dims; i++)
        if (!im->met[i])
            qn_error(im->diags, QUERN_ERROR_ARGUMENT, NULL, "%s: no dimension is called '%s'", im->file,
                     im->options->dims[i].name);
}

/* One attempt: a module, or NULL with messages. */
static qn_module *attempt(qn_onnx_import *im, const char *name)
{
    Onnx__Model *model;
    im->module = qn_module_new(name);
    im->arena = im->module->arena;
    im->dims = im->module->dims;
    im->file = im->module->name;
    im->met = QN_NEW_ARRAY(im->arena, bool, im->options->n_dims);
    if (!qn_onnx_parse(im->bytes, im->n_bytes, im->file, im->arena, &model, im->diags)) {
        im->model = model;
        import_main(im);
    }
    if (im->diags->n_errors == 0 && !im->restart)
        report_unmet(im);
    if (im->diags->n_errors == 0 && !im->restart)
        find_floors(im);
    if (im->diags->n_errors == 0 && !im->restart)
        return im->module;
    report_needs(im);
    qn_module_free(im->module);
    return NULL;
}

static void move_messages(qn_diags *from, qn_diags *to)
{
    if (to->last)
        to->last->next = from->first;
    else
        to->first = from->first;
    to->last = from->last ? from->last : to->last;
    to->n_errors += from->n_errors;
}

static qn_status import_model(const char *name, const uint8_t *bytes, size_t size, const char *folder,
                              const qn_onnx_options *options, qn_module **out, qn_diags *diags)
{
    enum { MAX_ATTEMPTS = 100 };
    static const qn_onnx_options defaults;
    const qn_onnx_alias *aliases = NULL;
    const qn_onnx_floor *floors = NULL;
    options = options ? options : &defaults;
    if (!good_options(options, diags))
        return QUERN_ERROR_ARGUMENT;
    for (int i = 0;; i++) {
        qn_diags mine;
        qn_diags_init(&mine, diags->arena);
        qn_onnx_import im = { .diags = &mine,
                              .options = options,
                              .bytes = bytes,
                              .n_bytes = size,
                              .folder = folder,
                              .aliases = aliases,
                              .floors = floors };
        if (options->needs)
            *options->needs = (qn_onnx_needs){ 0 };
        *out = attempt(&im, name);
        aliases = im.aliases;
        floors = im.floors;
        if (im.restart && i < MAX_ATTEMPTS)
            continue;
        move_messages(&mine, diags);
        return *out ? QUERN_OK : qn_diags_status(diags);
    }
}

static void free_arena(void *arena)
{
    qn_arena_free(arena);
}

qn_status qn_onnx_load(const char *path, const qn_onnx_options *options, qn_module **out, qn_diags *diags)
{
    qn_loc loc = { .file = path };
    qn_arena *arena = qn_arena_new(); /* keeps the mapping; freed with the module */
    qn_onnx_mapping mapping;
    *out = NULL;
    qn_status status = qn_onnx_map(path, arena, &loc, diags, &mapping);
    if (!status) {
        const char *slash = strrchr(path, '/');
        const char *folder = !slash ? "." : qn_arena_printf(arena, "%.*s", (int)(slash - path + 1), path);
        status = import_model(path, mapping.data, mapping.size, folder, options, out, diags);
    }
    if (*out)
        qn_arena_defer((*out)->arena, free_arena, arena);
    else
        qn_arena_free(arena);
    return status;
}

qn_status qn_onnx_load_bytes(const void *data, size_t size, const char *name, const qn_onnx_options *options,
                             qn_module **out, qn_diags *diags)
{
    *out = NULL;
    return import_model(name, data, size, NULL, options, out, diags);
}
