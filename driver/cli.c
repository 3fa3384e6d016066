/* What the commands share: see cli.h. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver/cache.h"
#include "driver/cli.h"
#include "ir/clock.h"

/* ---- messages ---- */

static void message(const qn_cli *cli, const char *format, va_list args)
{
    qn_cli_progress_end((qn_cli *)cli);
    fprintf(stderr, "quern %s: ", cli->command);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

int qn_cli_usage(const qn_cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message(cli, format, args);
    va_end(args);
    fprintf(stderr, "usage: quern %s%s%s   (quern %s --help explains)\n", cli->command,
            *cli->synopsis ? " " : "", cli->synopsis, cli->command);
    return QN_EXIT_USAGE;
}

int qn_cli_fail(const qn_cli *cli, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    message(cli, format, args);
    va_end(args);
    return QN_EXIT_FAILED;
}

/* A text of several lines begins on a line of its own. */
static int fail_text(const qn_cli *cli, const char *text)
{
    return qn_cli_fail(cli, "%s%s", strchr(text, '\n') ? "\n" : "", text);
}

int qn_cli_fail_api(const qn_cli *cli)
{
    return fail_text(cli, quern_last_error());
}

int qn_cli_fail_diags(const qn_cli *cli, const qn_diags *diags)
{
    return fail_text(cli, qn_diags_text(diags, diags->arena));
}

int qn_cli_finish(const qn_cli *cli)
{
    qn_cli_progress_end((qn_cli *)cli);
    if (fflush(stdout) || ferror(stdout))
        return qn_cli_fail(cli, "the output cannot be written: %s", strerror(errno));
    return QN_EXIT_OK;
}

/* ---- progress ---- */

static struct {
    double start;
    bool shown;
} progress;

void qn_cli_progress(void *cli, const char *what, int done, int total)
{
    (void)cli;
    static int terminal = -1;
    if (terminal < 0)
        terminal = isatty(2);
    if (!terminal)
        return;
    double now = qn_seconds();
    if (progress.start == 0)
        progress.start = now;
    if (now - progress.start < 0.2)
        return;
    fprintf(stderr, "\r\033[K%s %d/%d", what, done, total);
    progress.shown = true;
}

void qn_cli_progress_end(qn_cli *cli)
{
    (void)cli;
    if (progress.shown)
        fputs("\r\033[K", stderr);
    progress.shown = false;
    progress.start = 0;
}

/* ---- values ---- */

bool qn_cli_split(const char *text, qn_arena *arena, const char **out_name, const char **out_value)
{
    const char *equals = strchr(text, '=');
    if (!equals || equals == text)
        return false;
    *out_name = qn_arena_printf(arena, "%.*s", (int)(equals - text), text);
    *out_value = equals + 1;
    return true;
}

bool qn_cli_number(const char *text, long low, long high, long *out)
{
    char *end;
    errno = 0;
    *out = strtol(text, &end, 10);
    return end != text && !*end && !errno && *out >= low && *out <= high;
}

bool qn_cli_real(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && *out >= 0;
}

/* ---- options ---- */

enum {
    DIM,
    CONSTANT,
    SHAPE,
    TARGET,
    CPU,
    GPU,
    MATH,
    PRECISION,
    OPTIMIZE,
    BLAS,
    CHECK_NUMERICS,
    REMAT,
    MEMORY,
    THREADS,
    JOBS,
    CACHE,
    TUNE,
    VERBOSE
};

static const qn_cli_option common[] = {
    [DIM] = { "dim", 0, "NAME=N",
              "fix a dimension, or bound it: --dim batch=4, --dim batch=1..64, --dim length=0..2000" },
    [CONSTANT] = { "constant", 0, "NAME=VALUE",
                   "what an input always holds: 16000, [1, -1], 0.5 (float32) or true; it is compiled for "
                   "that" },
    [SHAPE] = { "shape", 0, "NAME=SHAPE",
                "of an input: --shape 'x=[1, n]'; of a sequence: 'x=([2, 3], [n, 3])'; or 'x=none'" },
    [TARGET] = { "target", 0, "T", "cpu, interp (the reference interpreter), nvptx64, cuda, or a triple" },
    [CPU] = { "cpu", 0, "NAME", "native, x86-64-v3, x86-64-v4, …; for files a list: x86-64-v3,x86-64-v4" },
    [GPU] = { "gpu", 0, "NAME", "sm_90, sm_80, … (of nvptx64 and cuda)" },
    [MATH] = { "math", 0, "MODE", "strict, default or fast" },
    [PRECISION] = { "precision", 0, "P",
                    "f32; bf16: large products of bfloat16; int8: products of bytes; int4: weights of four "
                    "bits" },
    [OPTIMIZE] = { "optimize", 0, "N",
                   "2 (the default), or 1: a kernel for each node, for looking for mistakes" },
    [BLAS] = { "blas", 0, "WHO",
               "multiplies matrices: none (our own kernels), openblas, or auto (OpenBLAS for float64)" },
    [CHECK_NUMERICS] = { "check-numerics", 0, NULL,
                         "fail where a result is NaN or infinite, and say which node made it" },
    [REMAT] = { "remat", 0, "HOW",
                "compute values again for gradients instead of keeping them: none, sqrt or all" },
    [MEMORY] = { "memory-limit", 0, "BYTES",
                 "of an entry's workspace, such as 64M; without --remat, as much is computed again as it "
                 "takes" },
    [THREADS] = { "threads", 0, "N", "threads of a run; as many as the process may use" },
    [JOBS] = { "jobs", 'j', "N", "threads of a compilation; likewise" },
    [CACHE] = { "cache", 0, "FOLDER", "of compiled kernels; \"\" for none" },
    [TUNE] = { "tune", 0, NULL, "measure kernels first and keep what is fastest, as quern tune does" },
    [VERBOSE] = { "verbose", 'v', NULL, "say what is done and how long it takes" },
    { NULL, 0, NULL, NULL },
};

static void print_options(const qn_cli_option *options)
{
    for (const qn_cli_option *o = options; o->name; o++) {
        char text[64];
        int n = o->letter ? snprintf(text, sizeof text, "-%c, ", o->letter) : 0;
        snprintf(text + n, sizeof text - (size_t)n, "--%s%s%s", o->name, o->value ? " " : "",
                 o->value ? o->value : "");
        printf("  %-24s %s\n", text, o->help);
    }
}

/* "batch=4", "batch=1..64" */
static bool read_dim(qn_cli *cli, const char *text)
{
    long min, max;
    char low[32];
    const char *equals = strchr(text, '='), *dots = equals ? strstr(equals, "..") : NULL;
    if (!equals || equals == text || equals - text >= QN_CLI_MAX_NAME || cli->n_dims == QN_CLI_MAX_DIMS)
        return false;
    size_t length = dots ? (size_t)(dots - equals - 1) : strlen(equals + 1);
    if (length >= sizeof low)
        return false;
    memcpy(low, equals + 1, length);
    low[length] = '\0';
    if (!qn_cli_number(low, 0, LONG_MAX, &min) || !qn_cli_number(dots ? dots + 2 : low, min, LONG_MAX, &max))
        return false;
    char *name = cli->dim_names[cli->n_dims];
    memcpy(name, text, (size_t)(equals - text)); /* zeros follow */
    cli->dims[cli->n_dims++] = (quern_dim_range){ .name = name, .min = min, .max = max };
    return true;
}

/* "x=[1, n]" */
static bool read_shape(qn_cli *cli, const char *text)
{
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || equals - text >= QN_CLI_MAX_NAME || cli->n_shapes == QN_CLI_MAX_DIMS)
        return false;
    char *name = cli->shape_names[cli->n_shapes];
    memcpy(name, text, (size_t)(equals - text)); /* zeros follow */
    cli->shapes[cli->n_shapes++] = (quern_shape){ .name = name, .text = equals + 1 };
    return true;
}

/* "[1, 2]" or "1" after the name; floats where a number has a point or an exponent. */
static bool read_elements(const char *text, qn_cli_constant *c, quern_array *out)
{
    const bool list = *text == '[', floats = strpbrk(text, ".eE") != NULL;
    text += list;
    while (!c->n || *text == ',') {
        char *end;
        text += c->n > 0;
        if (c->n == QN_CLI_MAX_ELEMENTS || (!list && c->n))
            return false;
        errno = 0;
        if (floats)
            c->data.floats[c->n++] = strtof(text, &end);
        else
            c->data.ints[c->n++] = strtoll(text, &end, 10);
        if (end == text || errno)
            return false;
        text = end + strspn(end, " ");
    }
    *out = (quern_array){ floats ? QUERN_F32 : QUERN_I64, list, &c->n, &c->data };
    return !strcmp(text, list ? "]" : "");
}

/* "rate=16000", "sizes=[1, 3]", "deep=true" */
static bool read_constant(qn_cli *cli, const char *text)
{
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || equals - text >= QN_CLI_MAX_NAME ||
        cli->n_constants == QN_CLI_MAX_CONSTANTS)
        return false;
    qn_cli_constant *c = &cli->constant_values[cli->n_constants];
    quern_known_input *known = &cli->constants[cli->n_constants++];
    memcpy(c->name, text, (size_t)(equals - text)); /* zeros follow */
    known->name = c->name;
    known->array = (quern_array){ QUERN_BOOL, 0, &c->n, &c->data };
    c->data.truth = !strcmp(equals + 1, "true");
    return c->data.truth || !strcmp(equals + 1, "false") || read_elements(equals + 1, c, &known->array);
}

static int accept_common(qn_cli *cli, int option, const char *value)
{
    long n;
    switch (option) {
    case DIM:
        return read_dim(cli, value)
                   ? QN_EXIT_OK
                   : qn_cli_usage(cli, "--dim %s: write NAME=NUMBER or NAME=MIN..MAX", value);
    case CONSTANT:
        return read_constant(cli, value)
                   ? QN_EXIT_OK
                   : qn_cli_usage(cli, "--constant %s: write NAME=NUMBER, NAME=[NUMBER, …] or NAME=true",
                                  value);
    case SHAPE:
        return read_shape(cli, value)
                   ? QN_EXIT_OK
                   : qn_cli_usage(cli, "--shape %s: write NAME=SHAPE, as in x=[1, n]", value);
    case TARGET: cli->compile.target = value; break;
    case CPU:
    case GPU: cli->compile.cpu = value; break;
    case MATH: cli->compile.math = value; break;
    case PRECISION: cli->compile.precision = value; break;
    case BLAS: cli->compile.blas = value; break;
    case REMAT: cli->compile.remat = value; break;
    case MEMORY:
        if (!qn_read_bytes(value, &cli->compile.memory_limit) || cli->compile.memory_limit == 0)
            return qn_cli_usage(cli, "--memory-limit %s: a number of bytes, or one with K, M or G behind it",
                                value);
        break;
    case OPTIMIZE:
        if (!qn_cli_number(value, 1, 2, &n))
            return qn_cli_usage(cli, "--optimize %s: 1 or 2", value);
        cli->compile.optimize = (int)n;
        break;
    case CHECK_NUMERICS: cli->compile.check_numerics = 1; break;
    case THREADS:
        if (!qn_cli_number(value, 0, 256, &n))
            return qn_cli_usage(cli, "--threads %s: a number from 0 (all) to 256", value);
        cli->compile.threads = (int)n;
        break;
    case JOBS:
        if (!qn_cli_number(value, 0, 256, &n))
            return qn_cli_usage(cli, "--jobs %s: a number from 0 (all) to 256", value);
        cli->compile.compile_threads = (int)n;
        break;
    case CACHE: cli->compile.cache = value; break;
    case TUNE: cli->compile.tune = 1; break;
    case VERBOSE: cli->verbose = true; break;
    }
    return QN_EXIT_OK;
}

static int find_option(const qn_cli_option *options, const char *argument, size_t length)
{
    for (int i = 0; options && options[i].name; i++) {
        bool is_long = length > 2 && argument[1] == '-' && strlen(options[i].name) == length - 2 &&
                       memcmp(options[i].name, argument + 2, length - 2) == 0;
        bool is_letter = length == 2 && options[i].letter && argument[1] == options[i].letter;
        if (is_long || is_letter)
            return i;
    }
    return -1;
}

static int no_such_option(const qn_cli *cli, const char *argument, size_t length)
{
    enum { MOST = 64 };
    const char *names[MOST];
    int n = 0;
    for (const qn_cli_option *o = cli->options; o && o->name && n < MOST; o++)
        names[n++] = o->name;
    for (const qn_cli_option *o = common; !cli->no_common && o->name && n < MOST; o++)
        names[n++] = o->name;
    const char *nearest = length > 2 ? qn_nearest_word(argument + 2, length - 2, names, n) : NULL;
    return nearest ? qn_cli_usage(cli, "there is no option %s: did you mean --%s?", argument, nearest)
                   : qn_cli_usage(cli, "there is no option %s", argument);
}

static int read_option(qn_cli *cli, int argc, char **argv, int *at)
{
    const char *argument = argv[*at], *equals = strchr(argument, '=');
    bool inside = equals && argument[1] == '-';
    size_t length = inside ? (size_t)(equals - argument) : strlen(argument);
    int own = find_option(cli->options, argument, length);
    int shared = own < 0 && !cli->no_common ? find_option(common, argument, length) : -1;
    if (own < 0 && shared < 0)
        return no_such_option(cli, argument, length);
    const qn_cli_option *option = own >= 0 ? &cli->options[own] : &common[shared];
    const char *value = inside ? equals + 1 : NULL;
    if (!option->value && value)
        return qn_cli_usage(cli, "--%s takes no value", option->name);
    if (option->value && !value) {
        if (*at + 1 == argc)
            return qn_cli_usage(cli, "--%s needs a value: %s", option->name, option->value);
        value = argv[++*at];
    }
    return own >= 0 ? cli->accept(cli->user, own, value) : accept_common(cli, shared, value);
}

bool qn_cli_read(qn_cli *cli, int argc, char **argv, int *out_exit)
{
    cli->compile.size = sizeof cli->compile;
    cli->compile.progress = qn_cli_progress;
    cli->compile.progress_user = cli;
    bool only_arguments = false;
    for (int i = 1; i < argc; i++) {
        int status = QN_EXIT_OK;
        if (!only_arguments && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
            printf("usage: quern %s%s%s\n", cli->command, *cli->synopsis ? " " : "", cli->synopsis);
            if (cli->options)
                print_options(cli->options);
            if (!cli->no_common)
                print_options(common);
            *out_exit = qn_cli_finish(cli);
            return false;
        }
        if (!only_arguments && strcmp(argv[i], "--") == 0)
            only_arguments = true;
        else if (!only_arguments && argv[i][0] == '-' && argv[i][1])
            status = read_option(cli, argc, argv, &i);
        else if (!cli->model)
            cli->model = argv[i];
        else
            status = cli->accept ? cli->accept(cli->user, -1, argv[i])
                                 : qn_cli_usage(cli, "one model at a time: what is '%s'?", argv[i]);
        if (status) {
            *out_exit = status;
            return false;
        }
    }
    if (!cli->model && !cli->no_common) {
        *out_exit = qn_cli_usage(cli, "which model?");
        return false;
    }
    return true;
}

/* ---- models ---- */

quern_load_options qn_cli_load_options(const qn_cli *cli)
{
    return (quern_load_options){ .size = sizeof(quern_load_options),
                                 .n_dims = cli->n_dims,
                                 .dims = cli->dims,
                                 .n_constants = cli->n_constants,
                                 .constants = cli->constants,
                                 .n_shapes = cli->n_shapes,
                                 .shapes = cli->shapes };
}

quern_module *qn_cli_module(qn_cli *cli, int *out_exit)
{
    const quern_load_options options = qn_cli_load_options(cli);
    quern_module *module;
    double start = qn_seconds();
    if (quern_load(cli->model, &options, &module)) {
        *out_exit = qn_cli_fail_api(cli);
        return NULL;
    }
    if (cli->verbose)
        fprintf(stderr, "loaded %s in %.1f ms\n", cli->model, 1e3 * (qn_seconds() - start));
    return module;
}

bool qn_cli_is_object(const char *path)
{
    static const char elf[] = "\177ELF", archive[] = "!<arch>\n";
    char start[sizeof archive - 1];
    FILE *f = fopen(path, "rbe");
    const size_t n = f ? fread(start, 1, sizeof start, f) : 0;
    const bool is = (n >= sizeof elf - 1 && memcmp(start, elf, sizeof elf - 1) == 0) ||
                    (n == sizeof start && memcmp(start, archive, n) == 0);
    if (f)
        fclose(f);
    return is;
}

static void say_plan(void *user, const char *entry, const qn_remat_report *plan)
{
    qn_cli *cli = user;
    if (plan->bytes_before == 0 && !cli->verbose)
        return;
    qn_cli_progress_end(cli);
    fprintf(stderr, "%s: %s%.1f MB of workspace", entry, plan->varies ? "at most " : "",
            1e-6 * (double)plan->bytes);
    if (plan->bytes < plan->bytes_before)
        fprintf(stderr, " instead of %.1f MB; %.3g GFLOP computed again, %.1f %% more",
                1e-6 * (double)plan->bytes_before, 1e-9 * plan->flops_again,
                100 * plan->flops_again / plan->flops);
    fputc('\n', stderr);
}

int qn_cli_compile(qn_cli *cli, quern_module *module, quern_model **out)
{
    const double start = qn_seconds();
    const int status = quern_compile(module, &cli->compile, out) ? qn_cli_fail_api(cli) : QN_EXIT_OK;
    qn_cli_progress_end(cli);
    const qn_model_notes *notes = status ? NULL : qn_model_notes_of(*out);
    for (int i = 0; notes && i < quern_model_describe(*out)->n_entries; i++)
        say_plan(cli, qn_entry_at(quern_model_describe(*out), i)->name, &notes->plans[i]);
    if (!status && cli->verbose)
        fprintf(stderr, "compiled in %.1f ms\n", 1e3 * (qn_seconds() - start));
    return status;
}

int qn_cli_emit(qn_cli *cli, quern_module *module, const quern_emit_options *emit, const char *path,
                qn_compile_times *out_times)
{
    qn_call call;
    qn_settings settings;
    qn_call_begin(&call);
    qn_status status = qn_settings_from(&cli->compile, &settings, &call.diags);
    settings.planned = say_plan;
    if (!status) /* the module is not needed any more: no copy */
        status = qn_emit_files(module->ir, &settings, emit, path, out_times, &call.diags);
    qn_cli_progress_end(cli);
    return qn_call_end(&call, status) ? qn_cli_fail_api(cli) : QN_EXIT_OK;
}

quern_model *qn_cli_model(qn_cli *cli, quern_module **out_module, int *out_exit)
{
    quern_model *model = NULL;
    if (qn_cli_is_object(cli->model)) {
        if (quern_model_open(cli->model, NULL, &model))
            *out_exit = qn_cli_fail_api(cli);
        return model;
    }
    quern_module *module = qn_cli_module(cli, out_exit);
    if (!module)
        return NULL;
    *out_exit = qn_cli_compile(cli, module, &model);
    const char *const *strings;
    if (model && out_module && quern_module_strings(module, &strings) > 0)
        *out_module = module;
    else
        quern_module_free(module);
    return model;
}
