/* quern inspect: what a model was lowered to, and where its memory lies; what a shared object says of itself. */
#include <stdio.h>
#include <string.h>

#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/inspect.h"
#include "driver/output.h"
#include "ir/print.h"

enum { FORMAT, AS_JSON, SVG };

static const qn_cli_option options[] = {
    [FORMAT] = { "format", 0, "FORM",
                 "text, json, dot (Graphviz), graph (after the passes), program, kernels (the IRs as text)" },
    [AS_JSON] = { "json", 0, NULL, "the same as --format json" },
    [SVG] = { "svg", 0, "FILE", "draw graph, fused kernels and memory plan (needs Graphviz)" },
    { NULL, 0, NULL, NULL },
};

typedef struct inspect {
    qn_cli cli;
    const char *format, *svg;
    qn_arena *arena;
    qn_diags diags;
} inspect;

static int accept(void *user, int option, const char *value)
{
    inspect *i = user;
    switch (option) {
    case FORMAT: i->format = value; return QN_EXIT_OK;
    case AS_JSON: i->format = "json"; return QN_EXIT_OK;
    case SVG: i->svg = value; return QN_EXIT_OK;
    default: return qn_cli_usage(&i->cli, "one model at a time: what is '%s'?", value);
    }
}

/* ---- the IRs ---- */

static void print_graph(const qn_view *v)
{
    qn_print_options options = { .inline_elements = QN_PRINT_INLINE_ELEMENTS };
    fputs(qn_module_print_as(v->module, &options, v->arena), stdout);
}

static void print_program(const qn_view *v)
{
    qn_print_options options = { .inline_elements = QN_PRINT_INLINE_ELEMENTS };
    for (int i = 0; i < v->compiled->n_programs; i++)
        printf("%s\n", qn_program_print_as(v->compiled->programs[i], &options, true, v->arena));
}

static void print_kernels(const qn_view *v)
{
    for (int i = 0; i < v->compiled->n_programs; i++)
        for (int k = 0; k < v->compiled->programs[i]->n_kernels; k++)
            printf("%s\n", qn_kernel_print(v->compiled->programs[i]->kernels[k], v->arena));
}

static void print_text(const qn_view *v)
{
    qn_view_text(v, stdout);
}

static void print_json(const qn_view *v)
{
    qn_view_json(v, stdout);
}

static void print_dot(const qn_view *v)
{
    qn_view_dot(v, stdout);
}

enum { TEXT, JSON };

static const struct {
    const char *name;
    void (*print)(const qn_view *view);
} formats[] = {
    [TEXT] = { "text", print_text }, [JSON] = { "json", print_json }, { "dot", print_dot },
    { "graph", print_graph },        { "program", print_program },    { "kernels", print_kernels },
};
enum { N_FORMATS = sizeof formats / sizeof *formats };

/* ---- the command ---- */

static int count_nodes(const qn_graph *graph)
{
    int n = 0;
    QN_FOR_NODES (graph, node) {
        n++;
        for (int i = 0; i < node->n_regions; i++)
            n += count_nodes(node->regions[i]);
    }
    return n;
}

static int *count_all(const qn_module *module, qn_arena *arena)
{
    int *counts = QN_NEW_ARRAY(arena, int, module->n_functions);
    for (int i = 0; i < module->n_functions; i++)
        counts[i] = count_nodes(module->functions[i]);
    return counts;
}

static qn_status write_svg(const inspect *in, const qn_view *view, qn_diags *diags)
{
    qn_output output;
    QN_TRY(qn_output_open(&output, in->svg, diags));
    const qn_status status = qn_view_svg(view, output.file, diags);
    if (status)
        qn_output_discard(&output);
    return status ? status : qn_output_commit(&output, diags);
}

static qn_status look(inspect *in, qn_module *module, int format)
{
    qn_settings settings;
    qn_compiled compiled;
    QN_TRY(qn_settings_from(&in->cli.compile, &settings, &in->diags));
    settings.target.jit = settings.blas == QN_BLAS_OPENBLAS; /* what only code in this process may call */
    if (!settings.backend)
        return qn_error(&in->diags, QUERN_ERROR_ARGUMENT, NULL,
                        "the interpreter lowers nothing: choose another target");
    int *before = count_all(module, in->arena);
    QN_TRY(qn_plan_module(module, &settings, in->arena, &compiled, &in->diags));
    const char *slash = strrchr(in->cli.model, '/');
    qn_view view = { .module = module,
                     .compiled = &compiled,
                     .name = slash ? slash + 1 : in->cli.model,
                     .ops_before = before,
                     .ops_after = count_all(module, in->arena),
                     .options = { .math = settings.math,
                                  .precision = settings.precision,
                                  .machine = &compiled.machine,
                                  .no_fusion = !settings.fuse,
                                  .blas = settings.target.jit ? QN_BLAS_ALWAYS : QN_BLAS_NEVER },
                     .arena = in->arena };
    qn_cli_progress_end(&in->cli);
    if (in->svg)
        QN_TRY(write_svg(in, &view, &in->diags));
    if (!in->svg || in->format)
        formats[format].print(&view);
    return QUERN_OK;
}

/* Of an object that this machine can't run what its file says. */
static int look_at_object(inspect *in, bool json)
{
    qn_object_view view = { .path = in->cli.model, .arena = in->arena };
    quern_model *model;
    const bool unread = qn_object_read(in->cli.model, in->arena, &view.file, &in->diags);
    if (!quern_model_open(in->cli.model, NULL, &model))
        view.info = quern_model_describe(model);
    else if (unread)
        return qn_cli_fail_api(&in->cli);
    else
        view.refused = qn_arena_strdup(in->arena, quern_last_error());
    if (view.refused)
        view.info = view.file.models[0];
    (json ? qn_object_json : qn_object_text)(&view, stdout);
    quern_model_free(model);
    return QN_EXIT_OK;
}

int quern_main_inspect(int argc, char **argv)
{
    inspect in = { .cli = { .command = "inspect",
                            .synopsis = "MODEL|OBJECT.so [options]",
                            .options = options,
                            .accept = accept } };
    int status = QN_EXIT_OK, format = 0;
    in.cli.user = &in;
    if (!qn_cli_read(&in.cli, argc, argv, &status))
        return status;
    while (in.format && format < N_FORMATS && strcmp(formats[format].name, in.format) != 0)
        format++;
    if (format == N_FORMATS)
        return qn_cli_usage(&in.cli, "there is no format '%s': text, json, dot, graph, program, kernels",
                            in.format);
    const bool object = qn_cli_is_object(in.cli.model);
    if (object && (in.svg || format > JSON))
        return qn_cli_usage(&in.cli, "a shared object is code: of it there is --format text and json");
    in.arena = qn_arena_new();
    qn_diags_init(&in.diags, in.arena);
    quern_module *module = object ? NULL : qn_cli_module(&in.cli, &status);
    if (object)
        status = look_at_object(&in, format == JSON);
    else if (module && look(&in, module->ir, format))
        status = qn_cli_fail_diags(&in.cli, &in.diags);
    qn_arena_free(in.arena);
    quern_module_free(module);
    return status ? status : qn_cli_finish(&in.cli);
}
