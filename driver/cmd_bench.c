/* quern bench: how long a run takes, against what the machine can do, and where the time goes. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver/ceiling.h"
#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/output.h"
#include "driver/profile.h"
#include "driver/tensors.h"
#include "ir/clock.h"

enum { INPUT, ENTRY, SECONDS, ALL, JSON, PROFILE };

static const qn_cli_option options[] = {
    [INPUT] = { "input", 'i', "[NAME=]FILE",
                ".npy, or .npz with the names of inputs or in_0, in_1, …; random without" },
    [ENTRY] = { "entry", 0, "NAME", "what to run; the first entry" },
    [SECONDS] = { "seconds", 0, "X", "how long to measure; 1" },
    [ALL] = { "all", 0, NULL, "all kernels, not only those that take 95% of the time" },
    [JSON] = { "json", 0, NULL, "print JSON" },
    [PROFILE] = { "profile", 0, "FILE",
                  "write a run's kernels by thread as a trace, for Perfetto or Chrome" },
    { NULL, 0, NULL, NULL },
};

/* All calls of kernels of one name. */
typedef struct row {
    const char *name;
    int calls;           /* in a run */
    double seconds;      /* of a run */
    double flops, bytes; /* of a run; 0: unknown */
} row;

typedef struct bench {
    qn_cli cli;
    qn_arena *arena;
    qn_diags diags;
    qn_vec(const char *) inputs;
    const char *entry_name, *profile;
    double seconds;
    bool all, json;
    quern_session *session;
    /* results */
    double compile_seconds, *times;
    int n_runs;
    double flops, peak_flops, peak_bytes;
    qn_vec(row) rows;
    double kernel_started;
} bench;

static int accept(void *user, int option, const char *value)
{
    bench *b = user;
    switch (option) {
    case INPUT: qn_vec_push(b->arena, &b->inputs, value); return QN_EXIT_OK;
    case ENTRY: b->entry_name = value; return QN_EXIT_OK;
    case SECONDS:
        return qn_cli_real(value, &b->seconds) ? QN_EXIT_OK
                                               : qn_cli_usage(&b->cli, "--seconds %s: a number", value);
    case ALL: b->all = true; return QN_EXIT_OK;
    case JSON: b->json = true; return QN_EXIT_OK;
    case PROFILE: b->profile = value; return QN_EXIT_OK;
    default: return qn_cli_usage(&b->cli, "one model at a time: what is '%s'?", value);
    }
}

/* ---- measuring ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Runs for the time that was asked for, at least ten times. Before that: until two runs in a row take alike long. */
static int measure_runs(bench *b)
{
    enum { MOST = 1000000 };
    b->times = malloc(MOST * sizeof *b->times);
    QN_ASSERT(b->times, "out of memory");
    double before = 0, end = 0;
    for (int warm = 0; b->n_runs < MOST && (warm < 2 || b->n_runs < 10 || qn_seconds() < end);) {
        double start = qn_seconds();
        if (quern_session_run(b->session))
            return qn_cli_fail_api(&b->cli);
        double took = qn_seconds() - start;
        if (warm < 2) {
            warm += before > 0 && took > 0.8 * before;
            before = took;
            end = qn_seconds() + b->seconds;
        } else {
            b->times[b->n_runs++] = took;
        }
    }
    qsort(b->times, (size_t)b->n_runs, sizeof *b->times, by_value);
    return QN_EXIT_OK;
}

static double median(const bench *b)
{
    return b->times[b->n_runs / 2];
}

static row *row_of(bench *b, const char *name)
{
    for (size_t i = 0; i < b->rows.n; i++)
        if (strcmp(b->rows.items[i].name, name) == 0)
            return &b->rows.items[i];
    qn_vec_push(b->arena, &b->rows, ((row){ .name = name }));
    return &b->rows.items[b->rows.n - 1];
}

static void trace(void *user, const char *kernel, int begin)
{
    bench *b = user;
    if (begin) {
        b->kernel_started = qn_seconds();
        return;
    }
    double took = qn_seconds() - b->kernel_started;
    row *r = row_of(b, kernel);
    r->seconds += took;
    r->calls++;
}

static int by_time(const void *a, const void *b)
{
    double x = ((const row *)a)->seconds, y = ((const row *)b)->seconds;
    return x > y ? -1 : x < y;
}

static int measure_kernels(bench *b, const quern_model *model)
{
    quern_ctx *ctx = quern_session_ctx(b->session);
    const qn_model_notes *notes = qn_model_notes_of(model);
    int runs = (int)(0.3 * b->seconds / median(b)) + 3;
    b->flops = notes ? notes->flops[b->session->entry_index] : 0;
    ctx->trace = trace;
    ctx->trace_user = b;
    for (int i = 0; i < runs; i++)
        if (quern_session_run(b->session))
            return qn_cli_fail_api(&b->cli);
    ctx->trace = NULL;
    for (size_t i = 0; i < b->rows.n; i++) {
        row *r = &b->rows.items[i];
        double calls = (double)r->calls / runs;
        r->seconds /= runs;
        r->calls = (int)lround(calls);
        const qn_kernel_cost cost = qn_model_cost_of(notes, b->session->entry_index, r->name);
        r->flops = cost.flops * calls;
        r->bytes = cost.bytes * calls;
    }
    if (b->rows.n)
        qsort(b->rows.items, b->rows.n, sizeof *b->rows.items, by_time);
    return QN_EXIT_OK;
}

static int measure(bench *b, const quern_model *model)
{
    int status = measure_runs(b);
    if (status)
        return status;
    quern_pool *pool = quern_session_ctx(b->session)->pool;
    b->peak_flops = qn_peak_flops(pool, 0.2);
    b->peak_bytes = qn_peak_bandwidth(pool, 0.3);
    return measure_kernels(b, model);
}

/* ---- reporting ---- */

static void print_rate(double amount, double seconds, double peak, int width)
{
    if (amount > 0 && seconds > 0)
        printf("%*.1f %4.0f%%", width, 1e-9 * amount / seconds, peak > 0 ? 100 * amount / seconds / peak : 0);
    else
        printf("%*s %5s", width, "-", "");
}

static void print_table(const bench *b)
{
    double all = 0, shown = 0;
    for (size_t i = 0; i < b->rows.n; i++)
        all += b->rows.items[i].seconds;
    printf("\n%10s %6s %6s %8s %5s %8s %5s  %s\n", "us", "share", "calls", "GFLOP/s", "peak", "GB/s", "peak",
           "kernel");
    for (size_t i = 0; i < b->rows.n; i++) {
        const row *r = &b->rows.items[i];
        if (!b->all && shown > 0.95 * all && i >= 10) {
            printf("%10.1f %5.1f%% %6s  %zu more (--all)\n", 1e6 * (all - shown), 100 * (all - shown) / all,
                   "", b->rows.n - i);
            break;
        }
        printf("%10.1f %5.1f%% %6d ", 1e6 * r->seconds, 100 * r->seconds / all, r->calls);
        print_rate(r->flops, r->seconds, b->peak_flops, 8);
        putchar(' ');
        print_rate(r->bytes, r->seconds, b->peak_bytes, 8);
        printf("  %s\n", r->name);
        shown += r->seconds;
    }
}

/* What the named dimensions were, and how many there are. */
static int print_dims(const bench *b, const char *before, bool json)
{
    int n = 0;
    for (int i = 0; i < b->session->n_symbols; i++) {
        const quern_symbol_info *symbol = qn_symbol_at(b->session->entry, i);
        if (symbol->decided)
            continue;
        fputs(n++ ? ", " : before, stdout);
        if (json)
            qn_json_string(symbol->name, stdout);
        else
            fputs(symbol->name, stdout);
        printf(json ? ": %" PRId64 : " = %" PRId64, b->session->symbols[i]);
    }
    return n;
}

static void print_text(const bench *b)
{
    if (print_dims(b, "with ", false))
        puts(b->inputs.n ? "" : ", the least (--dim NAME=N for others)");
    printf("median %.1f us, min %.1f us, 90%% within %.1f us, %d runs, %d threads; compiled in %.1f ms\n",
           1e6 * median(b), 1e6 * b->times[0], 1e6 * b->times[b->n_runs * 9 / 10], b->n_runs,
           quern_pool_threads(quern_session_ctx(b->session)->pool), 1e3 * b->compile_seconds);
    if (b->flops > 0)
        printf("%.1f GFLOP/s of %.1f: %.0f%% of the peak of multiply-adds, measured now\n",
               1e-9 * b->flops / median(b), 1e-9 * b->peak_flops, 100 * b->flops / median(b) / b->peak_flops);
    printf("machine: %.1f GFLOP/s FP32, %.1f GB/s from memory, with these threads\n", 1e-9 * b->peak_flops,
           1e-9 * b->peak_bytes);
    if (b->rows.n)
        print_table(b);
}

static void print_json(const bench *b)
{
    printf("{\"model\": ");
    qn_json_string(b->cli.model, stdout);
    printf(", \"dims\": {");
    print_dims(b, "", true);
    printf("}, \"threads\": %d, \"runs\": %d, \"median_s\": %.9g, \"min_s\": %.9g, \"compile_s\": %.6g, "
           "\"flops\": %.9g, "
           "\"peak_flops_per_s\": %.6g, \"peak_bytes_per_s\": %.6g, \"kernels\": [",
           quern_pool_threads(quern_session_ctx(b->session)->pool), b->n_runs, median(b), b->times[0],
           b->compile_seconds, b->flops, b->peak_flops, b->peak_bytes);
    for (size_t i = 0; i < b->rows.n; i++) {
        const row *r = &b->rows.items[i];
        printf("%s\n  {\"name\": ", i ? "," : "");
        qn_json_string(r->name, stdout);
        printf(", \"calls\": %d, \"seconds\": %.9g, \"flops\": %.9g, \"bytes\": %.9g}", r->calls, r->seconds,
               r->flops, r->bytes);
    }
    printf("]}\n");
}

/* ---- the command ---- */

static int run(bench *b)
{
    int status = QN_EXIT_OK;
    double start = qn_seconds();
    quern_model *model = qn_cli_model(&b->cli, NULL, &status);
    b->compile_seconds = qn_seconds() - start;
    if (!model)
        return status;
    if (quern_session_new(model, b->entry_name, &b->session))
        status = qn_cli_fail_api(&b->cli);
    if (!status)
        status =
            qn_bind_inputs(&b->cli, b->session, (int)b->inputs.n, b->inputs.items, 0, b->arena, &b->diags);
    if (!status)
        status = measure(b, model);
    if (!status && b->profile) {
        const qn_peaks peaks = { b->peak_flops, b->peak_bytes,
                                 quern_pool_threads(quern_session_ctx(b->session)->pool) };
        if (qn_profile(b->session, qn_model_notes_of(model), &peaks, b->profile, b->arena, &b->diags))
            status = qn_cli_fail_diags(&b->cli, &b->diags);
    }
    if (!status)
        (b->json ? print_json : print_text)(b);
    quern_session_free(b->session);
    quern_model_free(model);
    return status;
}

int quern_main_bench(int argc, char **argv)
{
    bench b = {
        .cli = { .command = "bench", .synopsis = "MODEL [options]", .options = options, .accept = accept },
        .seconds = 1
    };
    int status = QN_EXIT_OK;
    b.cli.user = &b;
    b.arena = qn_arena_new();
    qn_diags_init(&b.diags, b.arena);
    if (qn_cli_read(&b.cli, argc, argv, &status))
        status = run(&b);
    free(b.times);
    qn_arena_free(b.arena);
    return status ? status : qn_cli_finish(&b.cli);
}
