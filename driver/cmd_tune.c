/* quern tune: measures what cost models otherwise choose, and keeps what is fastest. */
#include <stdio.h>

#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/output.h"

enum { ENTRY, SECONDS, JSON };

static const qn_cli_option options[] = {
    [ENTRY] = { "entry", 0, "NAME", "what to run; the first entry" },
    [SECONDS] = { "seconds", 0, "X", "of measuring, beside compilations; 20" },
    [JSON] = { "json", 0, NULL, "print JSON; of the whole run the kernel is null" },
    { NULL, 0, NULL, NULL },
};

typedef struct tune {
    qn_cli cli;
    quern_tune_options options;
    int n_kernels;
    bool json;
} tune;

static int accept(void *user, int option, const char *value)
{
    tune *t = user;
    switch (option) {
    case ENTRY: t->options.entry = value; return QN_EXIT_OK;
    case SECONDS:
        return qn_cli_real(value, &t->options.seconds)
                   ? QN_EXIT_OK
                   : qn_cli_usage(&t->cli, "--seconds %s: a number", value);
    case JSON: t->json = true; return QN_EXIT_OK;
    default: return qn_cli_usage(&t->cli, "one model at a time: what is '%s'?", value);
    }
}

static void json_row(const tune *t, const char *site, double before, double after, const char *schedule)
{
    fputs(t->n_kernels ? ",\n {\"kernel\": " : "\n {\"kernel\": ", stdout);
    qn_json_string_or_null(site, stdout);
    printf(", \"before_s\": %.9g, \"after_s\": %.9g, \"schedule\": ", before, after);
    qn_json_string(schedule, stdout);
    putchar('}');
}

static void report(void *user, const char *site, double before, double after, const char *schedule)
{
    tune *t = user;
    if (t->json) {
        json_row(t, site, before, after, schedule);
        t->n_kernels++;
        return;
    }
    if (!t->n_kernels) {
        qn_cli_progress_end(&t->cli);
        printf("%10s %10s %6s  %s\n", "us before", "us after", "gain", "kernel: schedule");
    }
    t->n_kernels++;
    printf("%10.1f %10.1f %5.1f%%  %s%s%s\n", 1e6 * before, 1e6 * after,
           before > 0 ? 100 * (before - after) / before : 0, site ? site : "a whole run", site ? ": " : "",
           schedule);
}

int quern_main_tune(int argc, char **argv)
{
    tune t = {
        .cli = { .command = "tune", .synopsis = "MODEL [options]", .options = options, .accept = accept },
        .options = { .size = sizeof t.options, .report = report }
    };
    int status = QN_EXIT_OK;
    t.cli.user = t.options.report_user = &t;
    if (!qn_cli_read(&t.cli, argc, argv, &status))
        return status;
    quern_module *module = qn_cli_module(&t.cli, &status);
    if (!module)
        return status;
    fputs(t.json ? "{\"kernels\": [" : "", stdout);
    if (quern_tune(module, &t.cli.compile, &t.options))
        status = qn_cli_fail_api(&t.cli);
    fputs(t.json ? "]}\n" : "", stdout);
    qn_cli_progress_end(&t.cli);
    quern_module_free(module);
    return status ? status : qn_cli_finish(&t.cli);
}
