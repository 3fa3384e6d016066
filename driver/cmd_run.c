/* quern run: a model on inputs from files or at random; prints the outputs, writes them, or compares them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/output.h"
#include "driver/tensors.h"
#include "ir/clock.h"
#include "ir/dtype.h"

enum { INPUT, OUTPUT, EXPECT, RTOL, ATOL, ENTRY, SEED, JSON };

static const qn_cli_option options[] = {
    [INPUT] = { "input", 'i', "[NAME=]FILE",
                ".npy, or .npz with the names of inputs or in_0, in_1, …; random without" },
    [OUTPUT] = { "output", 'o', "[NAME=]FILE", "write an output as .npy, or all as .npz" },
    [EXPECT] = { "expect", 0, "[NAME=]FILE",
                 "compare with .npy, or .npz with the names of outputs or out_0, …" },
    [RTOL] = { "rtol", 0, "X", "tolerance of --expect: |a - b| <= atol + rtol |b|; 1e-3" },
    [ATOL] = { "atol", 0, "X", "1e-5 of the largest |b|" },
    [ENTRY] = { "entry", 0, "NAME", "what to run; the first entry" },
    [SEED] = { "seed", 0, "N", "of random inputs; 0" },
    [JSON] = { "json", 0, NULL, "print the outputs as JSON, all elements" },
    { NULL, 0, NULL, NULL },
};

typedef struct run {
    qn_cli cli;
    qn_arena *arena;
    qn_diags diags;
    qn_vec(const char *) inputs, outputs, expected;
    double rtol, atol;
    const char *entry_name;
    long seed;
    bool json;
    quern_module *module; /* of a model that has strings; else NULL */
    quern_session *session;
    const quern_entry_info *entry;
} run;

static int accept(void *user, int option, const char *value)
{
    run *r = user;
    switch (option) {
    case INPUT: qn_vec_push(r->arena, &r->inputs, value); return QN_EXIT_OK;
    case OUTPUT: qn_vec_push(r->arena, &r->outputs, value); return QN_EXIT_OK;
    case EXPECT: qn_vec_push(r->arena, &r->expected, value); return QN_EXIT_OK;
    case RTOL:
        return qn_cli_real(value, &r->rtol) ? QN_EXIT_OK
                                            : qn_cli_usage(&r->cli, "--rtol %s: a number", value);
    case ATOL:
        return qn_cli_real(value, &r->atol) ? QN_EXIT_OK
                                            : qn_cli_usage(&r->cli, "--atol %s: a number", value);
    case ENTRY: r->entry_name = value; return QN_EXIT_OK;
    case SEED:
        return qn_cli_number(value, 0, 1000000000, &r->seed)
                   ? QN_EXIT_OK
                   : qn_cli_usage(&r->cli, "--seed %s: a number", value);
    case JSON: r->json = true; return QN_EXIT_OK;
    default: return qn_cli_usage(&r->cli, "one model at a time: what is '%s'?", value);
    }
}

/* ---- outputs ---- */

static const quern_buffer_info *output_at(const run *r, int k)
{
    return qn_buffer_at(r->entry, qn_entry_buffer(r->entry, QUERN_OUTPUT, k));
}

static int get_output(run *r, int k, quern_array *out)
{
    return quern_session_get(r->session, qn_entry_buffer(r->entry, QUERN_OUTPUT, k), out)
               ? qn_cli_fail_api(&r->cli)
               : QN_EXIT_OK;
}

/* What an output's elements are the numbers of, where the model says strings. */
static qn_texts texts_of(const run *r, int k)
{
    const quern_group *groups;
    const char *const *strings;
    const int n = r->module ? quern_module_groups(r->module, &groups) : 0;
    for (int i = 0; i < n; i++)
        if (groups[i].strings && groups[i].role == QUERN_OUTPUT && k >= groups[i].first &&
            k < groups[i].first + groups[i].n) {
            const int n_strings = quern_module_strings(r->module, &strings);
            return (qn_texts){ strings, n_strings, quern_session_strings(r->session) };
        }
    return (qn_texts){ 0 };
}

static int print_outputs(run *r)
{
    fputs(r->json ? "{\"outputs\": [" : "", stdout);
    for (int k = 0; k < qn_entry_count(r->entry, QUERN_OUTPUT); k++) {
        quern_array array;
        int status = get_output(r, k, &array);
        if (status)
            return status;
        if (r->json) {
            fputs(k ? ",\n {\"name\": " : "\n {\"name\": ", stdout);
            qn_json_string(output_at(r, k)->name, stdout);
            fputs(", ", stdout);
            qn_array_json(&array, texts_of(r, k), stdout);
            putchar('}');
        } else {
            printf("%s ", output_at(r, k)->name);
            qn_array_show(&array, texts_of(r, k), stdout);
        }
    }
    fputs(r->json ? "]}\n" : "", stdout);
    return QN_EXIT_OK;
}

static int write_all_outputs(run *r, const char *path)
{
    int n = qn_entry_count(r->entry, QUERN_OUTPUT);
    qn_npy *arrays = QN_NEW_ARRAY(r->arena, qn_npy, n);
    for (int k = 0; k < n; k++) {
        int status = get_output(r, k, &arrays[k].array);
        if (status)
            return status;
        arrays[k].name = output_at(r, k)->name;
    }
    return qn_npz_write(path, n, arrays, &r->diags) ? qn_cli_fail_diags(&r->cli, &r->diags) : QN_EXIT_OK;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The output an argument is about, and the file. "NAME=FILE"; "FILE" where there is one output. -1: none. */
static int output_of(run *r, const char *argument, const char **out_path)
{
    const char *name, *path;
    int n = qn_entry_count(r->entry, QUERN_OUTPUT);
    *out_path = argument;
    if (qn_cli_split(argument, r->arena, &name, &path)) {
        for (int k = 0; k < n; k++)
            if (strcmp(output_at(r, k)->name, name) == 0) {
                *out_path = path;
                return k;
            }
        qn_cli_fail(&r->cli, "there is no output '%s'; the outputs are: %s", name,
                    qn_entry_names(r->entry, QUERN_OUTPUT, r->arena));
        return -1;
    }
    if (n == 1)
        return 0;
    qn_cli_fail(&r->cli, "which output is %s? Write NAME=%s; the outputs are: %s", argument, argument,
                qn_entry_names(r->entry, QUERN_OUTPUT, r->arena));
    return -1;
}

static int write_output(run *r, const char *argument)
{
    const char *path;
    quern_array array;
    if (ends_with(argument, ".npz") && !strchr(argument, '='))
        return write_all_outputs(r, argument);
    int k = output_of(r, argument, &path);
    if (k < 0)
        return QN_EXIT_FAILED;
    int status = get_output(r, k, &array);
    if (status)
        return status;
    return qn_npy_write(path, &array, &r->diags) ? qn_cli_fail_diags(&r->cli, &r->diags) : QN_EXIT_OK;
}

/* ---- comparing ---- */

static int compare(run *r, int k, const quern_array *expected)
{
    quern_array array;
    int status = get_output(r, k, &array);
    if (status)
        return status;
    const char *name = output_at(r, k)->name;
    const quern_array meant = qn_npy_as(expected, array.dtype);
    qn_difference d;
    expected = &meant;
    if (!qn_array_compare(&array, expected, r->rtol, r->atol, &d))
        return qn_cli_fail(&r->cli, "output '%s' is %s; %s is expected", name,
                           qn_array_type(&array, r->arena), qn_array_type(expected, r->arena));
    printf("%s %s: largest difference %.3g (relative to the largest value: %.3g)%s\n", name,
           qn_array_type(&array, r->arena), d.largest, d.relative, d.n_wrong ? "" : ", as expected");
    if (!d.n_wrong)
        return QN_EXIT_OK;
    return qn_cli_fail(
        &r->cli,
        "output '%s': %lld of %lld elements differ by more than %g + %g |expected|; the first is number "
        "%lld: %.9g, expected %.9g",
        name, (long long)d.n_wrong, (long long)d.n, d.atol, r->rtol, (long long)d.first, d.is, d.expected);
}

static int expect(run *r, const char *argument)
{
    const char *path, *name;
    int n, only = -1;
    qn_npy *arrays;
    if (qn_cli_split(argument, r->arena, &name, &path) || !ends_with(argument, ".npz")) {
        only = output_of(r, argument, &path);
        if (only < 0)
            return QN_EXIT_FAILED;
    } else {
        path = argument;
    }
    if (qn_npy_read(path, r->arena, &n, &arrays, &r->diags))
        return qn_cli_fail_diags(&r->cli, &r->diags);
    if (only >= 0 && n == 1)
        return compare(r, only, &arrays[0].array);
    int n_compared = 0, status = QN_EXIT_OK;
    for (int k = 0; k < qn_entry_count(r->entry, QUERN_OUTPUT); k++) {
        int found = qn_npy_find(n, arrays, output_at(r, k)->name, "out_", k);
        if (found < 0)
            continue;
        n_compared++;
        int result = compare(r, k, &arrays[found].array);
        status = status ? status : result;
    }
    if (!n_compared)
        return qn_cli_fail(&r->cli, "%s has none of the outputs: %s, or out_0, out_1, …", path,
                           qn_entry_names(r->entry, QUERN_OUTPUT, r->arena));
    return status;
}

/* ---- the command ---- */

static int run_model(run *r, quern_model *model)
{
    if (quern_session_new(model, r->entry_name, &r->session))
        return qn_cli_fail_api(&r->cli);
    r->entry = quern_model_entry(model, r->entry_name);
    int status = qn_bind_inputs(&r->cli, r->session, (int)r->inputs.n, r->inputs.items, (uint64_t)r->seed,
                                r->arena, &r->diags);
    if (status)
        return status;
    double start = qn_seconds();
    if (quern_session_run(r->session))
        return qn_cli_fail_api(&r->cli);
    if (r->cli.verbose)
        fprintf(stderr, "ran in %.3f ms\n", 1e3 * (qn_seconds() - start));
    for (size_t i = 0; i < r->expected.n; i++) {
        int result = expect(r, r->expected.items[i]);
        status = status ? status : result;
    }
    for (size_t i = 0; !status && i < r->outputs.n; i++)
        status = write_output(r, r->outputs.items[i]);
    if (!status && (r->json || (!r->expected.n && !r->outputs.n)))
        status = print_outputs(r);
    return status;
}

int quern_main_run(int argc, char **argv)
{
    run r = {
        .cli = { .command = "run", .synopsis = "MODEL [options]", .options = options, .accept = accept },
        .rtol = 1e-3,
        .atol = -1
    };
    int status = QN_EXIT_OK;
    r.cli.user = &r;
    r.arena = qn_arena_new();
    qn_diags_init(&r.diags, r.arena);
    quern_model *model = NULL;
    if (qn_cli_read(&r.cli, argc, argv, &status))
        model = qn_cli_model(&r.cli, &r.module, &status);
    if (model)
        status = run_model(&r, model);
    quern_session_free(r.session);
    quern_model_free(model);
    quern_module_free(r.module);
    qn_arena_free(r.arena);
    return status ? status : qn_cli_finish(&r.cli);
}
