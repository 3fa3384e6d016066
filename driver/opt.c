/* quern opt: reads a module in the text form (or a model), verifies it, runs passes over its functions, prints it or what it
 * is lowered to; reads, verifies and prints such programs again. What the tests of the IR and of the passes run. */
#include <stdio.h>
#include <string.h>

#include "backends/backend.h"
#include "driver/api.h"
#include "driver/bisect.h"
#include "driver/cache.h"
#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/output.h"
#include "driver/weights.h"
#include "frontend/onnx/onnx.h"
#include "frontend/text/text.h"
#include "ir/print.h"
#include "passes/autodiff.h"

static const char usage[] =
    "usage: quern opt FILE.qn|FILE.onnx|- [options]\n"
    "the file has graphs, or programs that --lower has printed: these are verified and printed\n"
    "  --grad=LOSS:X,Y     add @grad, the gradient of the first function's output LOSS for its inputs X, Y\n"
    "  --jvp=X,Y           add @jvp, the first function's derivatives along tangents of its inputs X, Y\n"
    "  --passes=A,B        run these passes over every function; the standard "
    "pipeline with --passes=standard\n"
    "  --skip=PASS[:N]     leave a pass out, or its run number N (from 0)\n"
    "  --math=MODE         strict, default or fast\n"
    "  --precision=P       f32, bf16, int8 or int4\n"
    "  --remat=HOW         none, sqrt or all\n"
    "  --memory-limit=N    bytes of a function's workspace\n"
    "  --lower             print the programs that the functions become, with their kernels\n"
    "  --optimize=N        lower with fusion (2, the default) or without (1)\n"
    "  --blas              lower contractions to calls of a library\n"
    "  --machine=NAME      lower for: none (kernels as written, the default), avx2, avx512, vnni, bf16, amx\n"
    "  --print-after-all   print a function after each pass that changed it\n"
    "  --print-after=PASS  print a function after each run of this pass\n"
    "  --verify-each       verify a function after each pass that changed it, and what it is lowered to\n"
    "  --bisect            find the pass run that changes what the reference interpreter makes of random "
    "inputs;\n"
    "                      prints it and exits with 1 if there is one; the standard pipeline without "
    "--passes\n"
    "  --input=[NAME=]FILE  inputs of the first function for --bisect: .npy, or .npz with their names\n"
    "  --tolerance=X       largest difference for --bisect, as part of an output's largest value\n"
    "  --time              print the time that each pass takes to stderr\n"
    "  --list-passes       print the passes and what they do\n"
    "  --inline-data       write large constants out instead of as $hash\n"
    "  --no-data           leave out the contents of what is written as $hash\n";

enum { MAX_INPUTS = 64 };

typedef struct options {
    const char *file, *grad, *jvp, *passes, *print_after, *skip;
    bool print_after_all, verify_each, time, lower;
    bool no_fusion, bisect;
    int n_inputs;
    const char *inputs[MAX_INPUTS];
    double tolerance;
    qn_blas_use blas;
    qn_math math;
    qn_precision precision;
    qn_remat remat;
    int64_t memory_limit;
    const qn_machine *machine;
    qn_print_options print;
} options;

/* ---- the command line ---- */

static int wrong_usage(const char *what, const char *argument)
{
    fprintf(stderr, "quern opt: %s%s\n%s", what, argument, usage);
    return 2;
}

/* What is behind "--name=", or NULL when the argument is something else. */
static const char *value_of(const char *argument, const char *name)
{
    size_t length = strlen(name);
    return strncmp(argument, name, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

static bool read_math(const char *word, qn_math *out)
{
    static const char *const words[] = { "strict", "default", "fast" };
    for (int i = 0; i < 3; i++)
        if (strcmp(word, words[i]) == 0) {
            *out = (qn_math)i;
            return true;
        }
    return false;
}

/* Machines to look at kernels for: real ones are described by their backend. */
static const qn_machine avx2 = { .vector_bytes = 32,
                                 .vector_registers = 16,
                                 .fma = true,
                                 .l1_bytes = 32 << 10,
                                 .l2_bytes = 1 << 20,
                                 .features = "+avx2,+fma,+f16c" };
static const qn_machine avx512 = { .vector_bytes = 64,
                                   .vector_registers = 32,
                                   .fma = true,
                                   .lookup = true,
                                   .masked = true,
                                   .l1_bytes = 48 << 10,
                                   .l2_bytes = 2 << 20,
                                   .features = "+avx512f,+avx512bw,+avx512dq,+avx512vl,+fma,+f16c" };

static const qn_machine vnni = { .vector_bytes = 64,
                                 .vector_registers = 32,
                                 .fma = true,
                                 .lookup = true,
                                 .masked = true,
                                 .dot4 = true,
                                 .l1_bytes = 48 << 10,
                                 .l2_bytes = 2 << 20,
                                 .features =
                                     "+avx512f,+avx512bw,+avx512dq,+avx512vl,+fma,+f16c,+avx512vnni" };

static const qn_machine bf16 = { .vector_bytes = 64,
                                 .vector_registers = 32,
                                 .fma = true,
                                 .lookup = true,
                                 .masked = true,
                                 .dot4 = true,
                                 .dot2 = true,
                                 .l1_bytes = 48 << 10,
                                 .l2_bytes = 2 << 20,
                                 .features = "+avx512f,+avx512bw,+avx512dq,+avx512vl,+fma,+f16c,+avx512vnni,"
                                             "+avx512bf16" };

static const qn_machine amx = { .vector_bytes = 64,
                                .vector_registers = 32,
                                .fma = true,
                                .lookup = true,
                                .masked = true,
                                .dot4 = true,
                                .tiles = true,
                                .l1_bytes = 48 << 10,
                                .l2_bytes = 2 << 20,
                                .features = "+avx512f,+avx512bw,+avx512dq,+avx512vl,+fma,+f16c,+amx-bf16" };

static bool read_machine(const char *word, const qn_machine **out)
{
    *out = strcmp(word, "avx2") == 0     ? &avx2
           : strcmp(word, "avx512") == 0 ? &avx512
           : strcmp(word, "vnni") == 0   ? &vnni
           : strcmp(word, "bf16") == 0   ? &bf16
           : strcmp(word, "amx") == 0    ? &amx
                                         : NULL;
    return *out || strcmp(word, "none") == 0;
}

static bool read_flag(const char *argument, options *out)
{
    if (strcmp(argument, "--lower") == 0)
        out->lower = true;
    else if (strcmp(argument, "--blas") == 0)
        out->blas = QN_BLAS_ALWAYS;
    else if (strcmp(argument, "--print-after-all") == 0)
        out->print_after_all = true;
    else if (strcmp(argument, "--verify-each") == 0)
        out->verify_each = true;
    else if (strcmp(argument, "--bisect") == 0)
        out->bisect = true;
    else if (strcmp(argument, "--time") == 0)
        out->time = true;
    else if (strcmp(argument, "--inline-data") == 0)
        out->print.inline_elements = -1;
    else if (strcmp(argument, "--no-data") == 0)
        out->print.data = false;
    else
        return false;
    return true;
}

/* 0, or the exit status of a mistake. */
static int read_argument(const char *argument, options *out)
{
    const char *value;
    if (read_flag(argument, out))
        return 0;
    if ((value = value_of(argument, "--passes")))
        out->passes = value;
    else if ((value = value_of(argument, "--grad")))
        out->grad = value;
    else if ((value = value_of(argument, "--jvp")))
        out->jvp = value;
    else if ((value = value_of(argument, "--skip")))
        out->skip = value;
    else if ((value = value_of(argument, "--print-after"))) {
        if (!qn_pass_find(value))
            return wrong_usage("there is no pass ", value);
        out->print_after = value;
    } else if ((value = value_of(argument, "--math"))) {
        if (!read_math(value, &out->math))
            return wrong_usage("--math is strict, default or fast, not ", value);
    } else if ((value = value_of(argument, "--precision"))) {
        int i = 0;
        while (qn_precision_names[i] && strcmp(qn_precision_names[i], value) != 0)
            i++;
        if (!qn_precision_names[i])
            return wrong_usage("--precision is f32, bf16, int8 or int4, not ", value);
        out->precision = (qn_precision)i;
    } else if ((value = value_of(argument, "--remat"))) {
        if (!qn_remat_parse(value, &out->remat))
            return wrong_usage("--remat is none, sqrt or all, not ", value);
    } else if ((value = value_of(argument, "--memory-limit"))) {
        if (!qn_read_bytes(value, &out->memory_limit))
            return wrong_usage("--memory-limit is a number of bytes, not ", value);
    } else if ((value = value_of(argument, "--input"))) {
        if (out->n_inputs == MAX_INPUTS)
            return wrong_usage("too many inputs: put them into an .npz file: ", value);
        out->inputs[out->n_inputs++] = value;
    } else if ((value = value_of(argument, "--tolerance"))) {
        if (!qn_cli_real(value, &out->tolerance) || !(out->tolerance >= 0))
            return wrong_usage("--tolerance is a number from 0 on, not ", value);
    } else if ((value = value_of(argument, "--optimize"))) {
        if (strcmp(value, "1") != 0 && strcmp(value, "2") != 0)
            return wrong_usage("--optimize is 1 or 2, not ", value);
        out->no_fusion = value[0] == '1';
    } else if ((value = value_of(argument, "--machine"))) {
        if (!read_machine(value, &out->machine))
            return wrong_usage("--machine is none, avx2, avx512, vnni, bf16 or amx, not ", value);
    } else if (argument[0] == '-' && argument[1]) {
        return wrong_usage("there is no option ", argument);
    } else if (out->file) {
        return wrong_usage("more than one file: ", argument);
    } else {
        out->file = argument;
    }
    return 0;
}

static int read_options(int argc, char **argv, options *out)
{
    *out = (options){ .math = QN_MATH_DEFAULT,
                      .tolerance = -1,
                      .print = { .inline_elements = QN_PRINT_INLINE_ELEMENTS, .data = true } };
    for (int i = 1; i < argc; i++) {
        int wrong = read_argument(argv[i], out);
        if (wrong)
            return wrong;
    }
    if (out->bisect && out->lower)
        return wrong_usage("--bisect is about the passes: it does not go with --lower", "");
    if (out->n_inputs && !out->bisect)
        return wrong_usage("only --bisect has inputs: ", out->inputs[0]);
    return out->file ? 0 : wrong_usage("which file?", "");
}

static bool is_standard_input(const options *options)
{
    return strcmp(options->file, "-") == 0;
}

/* What messages call the file. */
static const char *file_name(const options *options)
{
    return is_standard_input(options) ? "<stdin>" : options->file;
}

/* ---- passes ---- */

static bool enabled(void *user, const qn_pass *pass, int occurrence)
{
    const options *options = user;
    size_t length = strlen(pass->name);
    const char *skip = options->skip;
    if (!skip || strncmp(skip, pass->name, length) != 0)
        return true;
    char number[16];
    snprintf(number, sizeof number, ":%d", occurrence);
    return !(skip[length] == 0 || strcmp(skip + length, number) == 0);
}

static void after(void *user, const qn_pass *pass, const qn_graph *graph, bool changed, double seconds)
{
    const options *options = user;
    if (options->time)
        fprintf(stderr, "%-12s %10.3f ms%s  @%s\n", pass->name, seconds * 1e3, changed ? "" : "  (no change)",
                graph->name);
    bool named = options->print_after && strcmp(options->print_after, pass->name) == 0;
    if (!named && !(options->print_after_all && changed))
        return;
    qn_arena *arena = qn_arena_new();
    printf("# after %s%s\n%s\n", pass->name, changed ? "" : " (no change)", qn_graph_print(graph, arena));
    qn_arena_free(arena);
}

/* The list of --passes; NULL: the standard pipeline. */
static const char *pass_names(const options *options)
{
    return options->passes && strcmp(options->passes, "standard") != 0 ? options->passes : NULL;
}

static qn_pass_options pass_options_of(const options *options)
{
    return (qn_pass_options){ .math = options->math,
                              .precision = options->precision,
                              .remat = options->remat,
                              .memory_limit = options->memory_limit,
                              .machine = options->machine,
                              .fold = qn_interp_fold,
                              .no_fusion = options->no_fusion,
                              .blas = options->blas };
}

static qn_status run_over(void *user, qn_graph *function, const qn_pass_hooks *hooks, qn_diags *diags)
{
    const options *options = user;
    const qn_pass_options pass_options = pass_options_of(options);
    return qn_run_passes(function, pass_names(options), &pass_options, hooks, diags);
}

static qn_status run_passes(qn_module *module, const options *options, qn_diags *diags)
{
    qn_pass_hooks hooks = {
        .enabled = enabled, .after = after, .user = (void *)options, .verify_each = options->verify_each
    };
    for (int i = 0; i < module->n_functions; i++)
        QN_TRY(run_over((void *)options, module->functions[i], &hooks, diags));
    return qn_verify(module, diags);
}

/* ---- bisection ---- */

static void print_difference(const qn_culprit *c)
{
    if (c->other_shape)
        printf("output '%s' of @%s has another shape", c->output, c->output_function);
    else
        printf("output '%s' of @%s differs by %.3g, %.2g of its largest value", c->output, c->output_function,
               c->largest, c->relative);
}

static qn_status bisect(const qn_module *module, const options *options, qn_arena *arena, bool *out_found,
                        qn_diags *diags)
{
    qn_bisection bisection = { .module = module,
                               .run_passes = run_over,
                               .enabled = enabled,
                               .user = (void *)options,
                               .tolerance = options->tolerance >= 0 ? options->tolerance
                                            : options->precision    ? 5e-2
                                                                    : -1 };
    qn_culprit culprit;
    QN_TRY(qn_bisect_inputs(module, options->n_inputs, options->inputs, arena, &bisection.inputs, diags));
    QN_TRY(qn_bisect(&bisection, arena, &culprit, diags));
    *out_found = culprit.pass;
    if (!culprit.pass) {
        printf("no pass changes a result: %d pass runs", culprit.n_runs);
        fputs(culprit.output ? "; within the bound, " : "", stdout);
    } else {
        printf("%s:%d on @%s (pass run %d of %d) changes a result: ", culprit.pass->name, culprit.occurrence,
               culprit.function, culprit.run, culprit.n_runs);
    }
    if (culprit.problem)
        fputs(culprit.problem, stdout);
    else if (culprit.output)
        print_difference(&culprit);
    putchar('\n');
    return QUERN_OK;
}

/* ---- programs ---- */

static qn_status print_programs(qn_module *module, const options *options, qn_arena *arena, qn_diags *diags)
{
    const qn_pass_options pass_options = pass_options_of(options);
    const int n = module->n_functions;
    qn_program **programs = QN_NEW_ARRAY(arena, qn_program *, n);
    qn_weights weights;
    for (int i = 0; i < n; i++) {
        QN_TRY(qn_lower(module->functions[i], &pass_options, arena, &programs[i], diags));
        QN_TRY(qn_memplan(programs[i], diags));
    }
    qn_weights_lay_out(n, programs, arena, &weights);
    for (int i = 0; i < n; i++) {
        if (options->verify_each)
            QN_TRY(qn_program_verify(programs[i], diags));
        fputs(i ? "\n" : "", stdout);
        fputs(qn_program_print_as(programs[i], &options->print, true, arena), stdout);
    }
    return QUERN_OK;
}

/* A text of programs: read, verified, printed. */
static qn_status read_programs(const char *text, size_t size, const options *options, qn_arena *arena,
                               qn_diags *diags)
{
    int n;
    qn_program **programs;
    if (options->passes || options->lower || options->bisect)
        return qn_error(
            diags, QUERN_ERROR_ARGUMENT, NULL,
            "%s has programs, which are lowered already: --passes, --lower and --bisect are for graphs",
            options->file);
    QN_TRY(qn_text_parse_programs(text, size, file_name(options), arena, &n, &programs, diags));
    for (int i = 0; i < n; i++) {
        fputs(i ? "\n" : "", stdout);
        fputs(qn_program_print_as(programs[i], &options->print, true, arena), stdout);
    }
    return QUERN_OK;
}

/* ---- derivatives ---- */

/* The names between commas. */
static int split_names(const char *list, qn_arena *arena, const char *const **out)
{
    qn_vec(const char *) names = { 0 };
    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        const char *name = qn_arena_printf(arena, "%.*s", (int)strcspn(at, ","), at);
        qn_vec_push(arena, &names, name);
    }
    *out = names.items;
    return (int)names.n;
}

static qn_status add_derivatives(qn_module *module, const options *options, qn_arena *arena, qn_diags *diags)
{
    const char *const *wrt;
    if (options->grad) {
        const char *colon = strchr(options->grad, ':');
        if (!colon)
            return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL, "--grad=%s: LOSS:X,Y is expected",
                            options->grad);
        const char *loss = qn_arena_printf(arena, "%.*s", (int)(colon - options->grad), options->grad);
        const int n = split_names(colon + 1, arena, &wrt);
        QN_TRY(qn_add_gradient(module, NULL, loss, n, wrt, "grad", diags));
    }
    if (!options->jvp)
        return QUERN_OK;
    const int n = split_names(options->jvp, arena, &wrt);
    return qn_add_jvp(module, NULL, n, wrt, "jvp", diags);
}

/* ---- the command ---- */

static qn_status run_module(qn_module *module, const options *options, qn_arena *arena, bool *out_found,
                            qn_diags *diags)
{
    qn_status status = add_derivatives(module, options, arena, diags);
    if (!status && options->bisect) {
        qn_status searched = bisect(module, options, arena, out_found, diags);
        qn_module_free(module);
        return searched;
    }
    if (!status && options->passes)
        status = run_passes(module, options, diags);
    if (!status && options->lower)
        status = print_programs(module, options, arena, diags);
    else if (!status)
        fputs(qn_module_print_as(module, &options->print, arena), stdout);
    qn_module_free(module);
    return status;
}

/* *out_found: --bisect has found something. */
static qn_status run(const options *options, qn_arena *arena, bool *out_found, qn_diags *diags)
{
    qn_module *module;
    char *text;
    size_t size, length = strlen(options->file);
    if (length > 5 && strcmp(options->file + length - 5, ".onnx") == 0) {
        QN_TRY(qn_onnx_load(options->file,
                            &(qn_onnx_options){ .gradient = qn_gradient_at, .fold = qn_interp_fold }, &module,
                            diags));
        return run_module(module, options, arena, out_found, diags);
    }
    QN_TRY(
        qn_read_file(is_standard_input(options) ? "/dev/stdin" : options->file, arena, &text, &size, diags));
    if (qn_text_has_programs(text, size))
        return read_programs(text, size, options, arena, diags);
    QN_TRY(qn_text_parse(text, size, file_name(options), &module, diags));
    return run_module(module, options, arena, out_found, diags);
}

static int list_passes(void)
{
    for (const qn_pass *pass = qn_passes; pass->name; pass++)
        printf("%-12s %s\n", pass->name, pass->help);
    return 0;
}

int quern_main_opt(int argc, char **argv)
{
    options options;
    if (argc == 2 && strcmp(argv[1], "--list-passes") == 0)
        return list_passes();
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    int wrong = read_options(argc, argv, &options);
    if (wrong)
        return wrong;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    bool found = false;
    qn_status status = run(&options, arena, &found, &diags);
    if (status)
        fprintf(stderr, "%s\n", qn_diags_text(&diags, arena));
    else if (fflush(stdout) || ferror(stdout))
        status = QUERN_ERROR_IO;
    qn_arena_free(arena);
    return status || found ? 1 : 0;
}
