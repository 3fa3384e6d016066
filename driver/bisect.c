/* Binary search over pass runs: see bisect.h. */
#include "driver/bisect.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "driver/tensors.h"

/* ---- one trial: the module after some pass runs ---- */

typedef struct trial {
    const qn_bisection *b;
    qn_array **expected; /* per function */
    int limit;           /* pass runs that are allowed */
    int n;               /* that took place; the last one is in `verdict` */
    bool bad;
    qn_culprit verdict;
    const char *function; /* at work */
    qn_arena *arena;      /* of what is kept: texts */
} trial;

static bool enabled(void *user, const qn_pass *pass, int occurrence)
{
    trial *t = user;
    if (t->b->enabled && !t->b->enabled(t->b->user, pass, occurrence))
        return false;
    if (t->n == t->limit)
        return false;
    t->n++;
    t->verdict.pass = pass;
    t->verdict.occurrence = occurrence;
    t->verdict.function = t->function;
    return true;
}

static double tolerance_of(qn_dtype dtype)
{
    switch (dtype) {
    case QUERN_F64: return 1e-12;
    case QUERN_F32: return 1e-5;
    case QUERN_F16: return 1e-2;
    case QUERN_BF16: return 5e-2;
    default: return 0;
    }
}

/* As exact as the least exact float: an f64 may have been made from an f16. */
static double tolerance_in(const qn_graph *graph)
{
    double tolerance = 0;
    for (int i = 0; i < graph->n_inputs; i++)
        tolerance = fmax(tolerance, tolerance_of(graph->inputs[i]->type.dtype));
    QN_FOR_NODES (graph, node) {
        for (int i = 0; i < node->n_results; i++)
            tolerance = fmax(tolerance, tolerance_of(node->results[i].type.dtype));
        for (int i = 0; i < node->n_regions; i++)
            tolerance = fmax(tolerance, tolerance_in(node->regions[i]));
    }
    return tolerance;
}

static quern_array borrow(const qn_array *array)
{
    return (quern_array){
        .dtype = (int32_t)array->dtype, .rank = array->rank, .dims = array->dims, .data = array->data
    };
}

static const char *output_name(const qn_graph *function, int i, qn_arena *arena)
{
    return qn_arena_printf(arena, "%s",
                           function->output_names[i] ? function->output_names[i]
                                                     : qn_arena_printf(arena, "output_%d", i));
}

/* Keeps the worst output of all in the verdict. */
static void compare(trial *t, int f, const qn_array *found)
{
    const qn_graph *function = t->b->module->functions[f];
    const double tolerance = t->b->tolerance < 0 ? tolerance_in(function) : t->b->tolerance;
    for (int i = 0; i < function->n_outputs; i++) {
        const quern_array is = borrow(&found[i]), was = borrow(&t->expected[f][i]);
        qn_difference d;
        const bool same_shape = qn_array_compare(&is, &was, 0, 0, &d);
        const bool wrong =
            !same_shape || !(d.relative <= (qn_dtype_is_float(found[i].dtype) ? tolerance : 0));
        if (same_shape && d.n_wrong == 0)
            continue;
        qn_culprit *v = &t->verdict;
        const bool worse =
            !v->output || (wrong && !t->bad) ||
            (wrong == t->bad && !v->other_shape && (!same_shape || !(d.relative <= v->relative)));
        if (worse) {
            v->output = output_name(function, i, t->arena);
            v->output_function = function->name;
            v->other_shape = !same_shape;
            v->largest = d.largest;
            v->relative = d.relative;
        }
        t->bad |= wrong;
    }
}

/* The passes, the verifier and the interpreter over a copy of the module. */
static qn_status run_copy(trial *t, qn_module *copy, qn_arena *scratch, qn_diags *diags)
{
    const qn_pass_hooks hooks = { .enabled = enabled, .user = t, .verify_each = true };
    for (int f = 0; f < copy->n_functions; f++) {
        t->function = t->b->module->functions[f]->name;
        QN_TRY(t->b->run_passes(t->b->user, copy->functions[f], &hooks, diags));
    }
    QN_TRY(qn_verify(copy, diags));
    for (int f = 0; f < t->b->module->n_functions; f++) {
        if (!t->b->inputs[f])
            continue;
        const qn_graph *function = copy->functions[f];
        qn_array *found = QN_NEW_ARRAY(scratch, qn_array, function->n_outputs);
        QN_TRY(qn_interp_run(function, t->b->inputs[f], found, scratch, diags));
        compare(t, f, found);
    }
    return QUERN_OK;
}

static trial try(const qn_bisection *b, qn_array **expected, int limit, qn_arena *arena)
{
    trial t = { .b = b, .expected = expected, .limit = limit, .arena = arena };
    qn_arena *scratch = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, scratch);
    qn_module *copy = qn_module_clone(b->module, 0, NULL);
    if (run_copy(&t, copy, scratch, &diags)) {
        t.bad = true;
        t.verdict.problem = qn_diags_text(&diags, arena);
    }
    t.verdict.run = t.n;
    qn_module_free(copy);
    qn_arena_free(scratch);
    return t;
}

/* ---- the search ---- */

qn_status qn_bisect(const qn_bisection *b, qn_arena *arena, qn_culprit *out, qn_diags *diags)
{
    qn_array **expected = QN_NEW_ARRAY(arena, qn_array *, b->module->n_functions);
    for (int f = 0; f < b->module->n_functions; f++) {
        const qn_graph *function = b->module->functions[f];
        expected[f] = QN_NEW_ARRAY(arena, qn_array, function->n_outputs);
        if (b->inputs[f])
            QN_TRY(qn_interp_run(function, b->inputs[f], expected[f], arena, diags));
    }
    trial bad = try(b, expected, INT_MAX, arena);
    const int n_runs = bad.n;
    int good = 0;              /* results are right after so many runs, and wrong after bad.n */
    if (bad.bad && bad.n == 0) /* not the passes' doing */
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "it fails before any pass has run%s%s",
                        bad.verdict.problem ? ": " : "", bad.verdict.problem ? bad.verdict.problem : "");
    while (bad.bad && bad.n - good > 1) {
        const trial t = try(b, expected, good + (bad.n - good) / 2, arena);
        if (t.bad)
            bad = t;
        else
            good = t.n;
    }
    *out = bad.verdict;
    out->n_runs = n_runs;
    if (!bad.bad)
        out->pass = NULL;
    return QUERN_OK;
}

/* ---- inputs ---- */

static const char *input_name(const qn_graph *function, int i, qn_arena *arena)
{
    const char *name = function->inputs[i]->name;
    return name ? name : qn_arena_printf(arena, "input_%d", i);
}

static qn_array make_random(const qn_type *type, const int64_t *symbols, uint64_t *state, qn_arena *arena)
{
    qn_array array = { .dtype = type->dtype, .rank = type->rank };
    int64_t n = 1;
    for (int i = 0; i < type->rank; i++)
        n *= array.dims[i] = qn_dim_eval(type->dims[i], symbols);
    array.data = qn_arena_calloc(arena, (size_t)n, qn_dtype_bytes(type->dtype));
    qn_fill_random(type->dtype, n, array.data, state);
    return array;
}

static qn_array initial_array(const qn_tensor *tensor)
{
    const qn_type *type = &tensor->type;
    qn_array array = { .dtype = type->dtype, .rank = type->rank, .data = (void *)qn_tensor_data(tensor) };
    for (int i = 0; i < type->rank; i++)
        array.dims[i] = type->dims[i]->value;
    return array;
}

/* 2, 3, 4, … where the ranges allow that: equal extents would hide that two dimensions are taken for each other. */
static int64_t *choose_symbols(const qn_module *module, qn_arena *arena)
{
    const int n = qn_dims_symbol_count(module->dims);
    int64_t *symbols = QN_NEW_ARRAY(arena, int64_t, n + 1);
    for (int i = 0; i < n; i++) {
        qn_dim symbol = qn_dims_symbol_at(module->dims, i);
        const int64_t wish = 2 + i;
        symbols[i] = wish < symbol->min ? symbol->min : wish > symbol->max ? symbol->max : wish;
    }
    return symbols;
}

typedef struct named {
    int n;
    qn_npy *arrays;
} named;

/* The arrays of all files, with the names that the command line gives them. */
static qn_status read_files(int n_files, const char *const *files, qn_arena *arena, named *out,
                            qn_diags *diags)
{
    for (int i = 0; i < n_files; i++) {
        const char *name = NULL, *path = files[i];
        int n;
        qn_npy *arrays;
        qn_cli_split(files[i], arena, &name, &path);
        QN_TRY(qn_npy_read(path, arena, &n, &arrays, diags));
        if (n == 1 && name)
            arrays[0].name = name;
        qn_npy *all = QN_NEW_ARRAY(arena, qn_npy, out->n + n);
        for (int k = 0; k < out->n + n; k++)
            all[k] = k < out->n ? out->arrays[k] : arrays[k - out->n];
        *out = (named){ out->n + n, all };
    }
    return QUERN_OK;
}

static qn_status given_array(const qn_graph *function, int i, int k, const named *given, qn_array *out,
                             qn_arena *arena, qn_diags *diags)
{
    const qn_type *type = &function->inputs[i]->type;
    const char *name = input_name(function, i, arena);
    int at = qn_npy_find(given->n, given->arrays, name, "in_", k);
    if (at < 0 && function->n_inputs == 1 && given->n == 1)
        at = 0;
    if (at < 0)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "input '%s' (%s) is missing: --input=%s=FILE",
                        name, qn_type_print(type, arena), name);
    const quern_array *array = &given->arrays[at].array;
    bool fits = array->dtype == (int32_t)type->dtype && array->rank == type->rank;
    for (int axis = 0; fits && axis < type->rank; axis++) {
        out->dims[axis] = array->dims[axis];
        fits = !qn_dim_is_const(type->dims[axis]) || type->dims[axis]->value == array->dims[axis];
    }
    if (!fits)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "input '%s' is %s; the model takes %s", name,
                        qn_array_type(array, arena), qn_type_print(type, arena));
    out->dtype = type->dtype;
    out->rank = type->rank;
    out->data = array->data;
    return QUERN_OK;
}

qn_status qn_bisect_inputs(const qn_module *module, int n_files, const char *const *files, qn_arena *arena,
                           qn_array ***out, qn_diags *diags)
{
    const int64_t *symbols = choose_symbols(module, arena);
    named given = { 0 };
    uint64_t state = 0;
    QN_TRY(read_files(n_files, files, arena, &given, diags));
    *out = QN_NEW_ARRAY(arena, qn_array *, module->n_functions);
    for (int f = 0; f < module->n_functions && (f == 0 || n_files == 0); f++) {
        const qn_graph *function = module->functions[f];
        qn_array *arrays = (*out)[f] = QN_NEW_ARRAY(arena, qn_array, function->n_inputs + 1);
        for (int i = 0, k = 0; i < function->n_inputs; i++) {
            const bool is_input = function->input_roles[i] == QN_ROLE_INPUT;
            if (!is_input && function->input_initial && function->input_initial[i])
                arrays[i] = initial_array(function->input_initial[i]);
            else if (is_input && n_files)
                QN_TRY(given_array(function, i, k, &given, &arrays[i], arena, diags));
            else
                arrays[i] = make_random(&function->inputs[i]->type, symbols, &state, arena);
            k += is_input;
        }
    }
    return QUERN_OK;
}
