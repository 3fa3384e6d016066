/* The entry points. */
#include <string.h>

#include "frontend/onnx/import.h"
#include "frontend/onnx/map.h"
#include "frontend/onnx/wire.h"

static void import_main(qn_onnx_import *im)
{
    const Onnx__Graph *graph = im->model->graph;
    const qn_loc loc = { .file = im->file };
    qn_onnx_scope *scope = QN_NEW(im->arena, qn_onnx_scope);
    scope->im = im;
    scope->graph = qn_function_new(im->module, "main");
    scope->opsets = (const Onnx__OpsetId *const *)im->model->opset_import;
    scope->n_opsets = (int)im->model->n_opset_import;
    qn_onnx_declare_dims(im, graph);
    bool good = true;
    for (size_t i = 0; i < graph->n_input; i++)
        if (!qn_onnx_is_initializer(graph, graph->input[i]->name))
            good &= qn_onnx_add_input(im, scope, graph->input[i]);
    good &= qn_onnx_scope_import(scope, graph);
    for (int i = 0; i < (int)graph->n_output; i++)
        qn_onnx_add_output(im, scope, i);
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

static bool is_of_sequence(const qn_module *m, int input)
{
    bool is = false;
    for (size_t i = 0; i < m->groups.n; i++) {
        const quern_group *g = &m->groups.items[i];
        is |= g->role == QUERN_INPUT && g->sequence && input >= g->first && input < g->first + g->n;
    }
    return is;
}

/* Of a sequence all shapes are needed then: its tensors have names that the caller does not know. */
static void report_needed_dims(qn_onnx_import *im, qn_onnx_needs *needs)
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
        int input;
        if (!find_dim(graph, symbol, &input, &axes[at]))
            continue;
        if (is_of_sequence(im->module, input)) {
            if (im->hosts.items[input] < 64)
                im->needs_shapes |= (uint64_t)1 << im->hosts.items[input];
            continue;
        }
        inputs[at] = im->hosts.items[input];
        needs->dim_names[at] = qn_arena_strdup(arena, graph->inputs[input]->name);
        needs->dims[at++] = qn_arena_strdup(arena, symbol->name);
    }
    needs->n_dims = at;
}

static void report_needs(qn_onnx_import *im)
{
    qn_onnx_needs *needs = im->options->needs;
    if (!needs)
        return;
    if (im->module->n_functions)
        report_needed_dims(im, needs);
    needs->n = needs->n_shapes = 0;
    int *shape_indices = QN_NEW_ARRAY(im->diags->arena, int, 64);
    needs->shape_indices = shape_indices;
    needs->shape_names = QN_NEW_ARRAY(im->diags->arena, const char *, 64);
    for (int i = 0; i < 64; i++)
        if (im->needs_shapes >> i & 1) {
            shape_indices[needs->n_shapes] = i;
            needs->shape_names[needs->n_shapes++] = qn_arena_strdup(im->diags->arena, im->input_names[i]);
        }
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

/* ---- for which inputs the model makes sense ---- */

/* Does d grow, or stay, with its symbols? */
static bool is_increasing(qn_dim d)
{
    int to = d->n;
    switch (d->kind) {
    case QN_DIM_CONST:
    case QN_DIM_SYMBOL:
    case QN_DIM_ADD:
    case QN_DIM_MIN:
    case QN_DIM_MAX: break;
    case QN_DIM_MUL: /* of what is not negative, or of one with a positive number */
        for (int i = 0; i < d->n; i++) {
            const qn_dim f = d->operands[i];
            if (f->min < 0 && (d->n != 2 || qn_dim_is_const(f) || !qn_dim_is_const(d->operands[!i])))
                return false;
        }
        break;
    case QN_DIM_FLOORDIV:
        if (!qn_dim_is_const(d->operands[1]))
            return false;
        to = 1;
        break;
    default: return false;
    }
    for (int i = 0; i < to; i++)
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

/* The value of the symbol of an input next to those for which d is negative, where d rises or falls with it and has no other; false
 * when there is none, or none for which d is negative. */
static bool first_not_negative(qn_onnx_import *im, const qn_graph *graph, qn_dim d, qn_dim *out_symbol,
                               int64_t *out_value, bool *out_rises)
{
    bool several = false;
    int input, axis;
    const qn_dim symbol = only_symbol(d, NULL, &several);
    if (!symbol || several || !find_dim(graph, symbol, &input, &axis))
        return false;
    const bool rises = is_increasing(d);
    if (!rises && !is_increasing(qn_dim_sub(im->dims, qn_dim_const(im->dims, 0), d)))
        return false;
    int64_t *values = QN_NEW_ARRAY(im->arena, int64_t, qn_dims_symbol_count(im->dims));
    int64_t bad = rises ? symbol->min : symbol->max, good = rises ? symbol->max : symbol->min;
    values[symbol->symbol] = good;
    if (qn_dim_eval(d, values) < 0)
        return false;
    values[symbol->symbol] = bad;
    if (qn_dim_eval(d, values) >= 0) /* its bounds are only not known exactly */
        return false;
    while (good - bad > 1 || bad - good > 1) {
        const int64_t middle = bad + (good - bad) / 2;
        values[symbol->symbol] = middle;
        *(qn_dim_eval(d, values) >= 0 ? &good : &bad) = middle;
    }
    *out_symbol = symbol;
    *out_value = good;
    *out_rises = rises;
    return true;
}

/* The import starts again with a range of the symbol in which d is not negative; unless that ends below `reaches`. */
static bool narrow(qn_onnx_import *im, const qn_graph *graph, qn_dim d, int64_t reaches)
{
    qn_dim symbol;
    int64_t value;
    bool rises;
    if (!first_not_negative(im, graph, d, &symbol, &value, &rises) || (!rises && value < reaches))
        return false;
    const int64_t least = rises ? value : INT64_MIN, most = rises ? INT64_MAX : value;
    for (const qn_onnx_limit *l = im->limits; l; l = l->next)
        if (!strcmp(l->name, symbol->name) && l->least >= least && l->most <= most)
            return false;
    qn_arena *arena = im->diags->arena; /* outlives this attempt */
    qn_onnx_limit *limit = QN_NEW(arena, qn_onnx_limit);
    *limit = (qn_onnx_limit){ qn_arena_strdup(arena, symbol->name), least, most, im->limits };
    im->limits = limit;
    im->restart = true;
    return true;
}

bool qn_onnx_assume_not_negative(qn_onnx_node *n, qn_dim d)
{
    const qn_graph *graph = n->im->module->functions[0];
    return n->b.graph == graph && narrow(n->im, graph, d, INT64_MIN);
}

bool qn_onnx_assume_at_most(qn_onnx_node *n, qn_dim d, int64_t most)
{
    const qn_graph *graph = n->im->module->functions[0];
    const qn_dim room = qn_dim_sub(n->im->dims, qn_dim_const(n->im->dims, most), d);
    return n->b.graph == graph && narrow(n->im, graph, room, 1 << 20);
}

/* An image that is smaller than a window has no result: extents that may be negative say from where on an input's dimension makes
 * sense. */
static void add_floor(qn_onnx_import *im, const qn_graph *graph, qn_dim extent)
{
    if (extent->min < 0)
        narrow(im, graph, extent, INT64_MAX);
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

/* Dimensions and inputs that the options speak of and the model does not: misspelt, most likely. */
static void report_unmet(qn_onnx_import *im)
{
    for (int i = 0; i < im->options->n_dims; i++)
        if (!im->met[i])
            qn_error(im->diags, QUERN_ERROR_ARGUMENT, NULL, "%s: no dimension is called '%s'", im->file,
                     im->options->dims[i].name);
    for (int i = 0; i < im->options->n_shapes; i++)
        if (!im->met_shapes[i])
            qn_error(im->diags, QUERN_ERROR_ARGUMENT, NULL, "%s: no input is called '%s'", im->file,
                     im->options->shapes[i].name);
    for (int i = 0; i < im->options->n_constants; i++)
        if (!im->met_constants[i])
            qn_error(im->diags, QUERN_ERROR_ARGUMENT, NULL, "%s: no input is called '%s'", im->file,
                     im->options->constants[i].name);
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
    im->met_shapes = QN_NEW_ARRAY(im->arena, bool, im->options->n_shapes);
    im->met_constants = QN_NEW_ARRAY(im->arena, bool, im->options->n_constants);
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

static qn_status import_model(const char *name, const uint8_t *bytes, size_t size, const char *folder,
                              const qn_onnx_options *options, qn_module **out, qn_diags *diags)
{
    enum { MAX_ATTEMPTS = 100 };
    static const qn_onnx_options defaults;
    const qn_onnx_alias *aliases = NULL;
    const qn_onnx_limit *limits = NULL;
    const struct qn_onnx_decision *decisions = NULL;
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
                              .limits = limits,
                              .decisions = decisions };
        if (options->needs)
            *options->needs = (qn_onnx_needs){ 0 };
        *out = attempt(&im, name);
        /* other dimensions may make other nodes, whose numbers are those of decisions */
        decisions = im.aliases == aliases && im.limits == limits ? im.decisions : NULL;
        aliases = im.aliases;
        limits = im.limits;
        if (im.restart && i < MAX_ATTEMPTS)
            continue;
        qn_diags_move(&mine, diags);
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
