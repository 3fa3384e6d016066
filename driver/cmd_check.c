/* quern check: is every node of a model supported? Lists what is not, all of it, or counts what is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/inspect.h"
#include "driver/output.h"
#include "ir/clock.h"

static const qn_cli_option options[] = {
    { "json", 0, NULL, "print JSON, of a model that is refused too" },
    { NULL, 0, NULL, NULL },
};

typedef struct check {
    qn_cli cli;
    bool json;
} check;

static int accept(void *user, int option, const char *value)
{
    check *c = user;
    if (option < 0)
        return qn_cli_usage(&c->cli, "one model at a time: what is '%s'?", value);
    c->json = true;
    return QN_EXIT_OK;
}

static void count_ops(const qn_graph *graph, int *counts)
{
    QN_FOR_NODES (graph, node) {
        counts[node->op]++;
        for (int i = 0; i < node->n_regions; i++)
            count_ops(node->regions[i], counts);
    }
}

static void print_signature(const qn_graph *graph, qn_arena *arena)
{
    printf("@%s\n", graph->name);
    for (int i = 0; i < graph->n_inputs; i++)
        if (graph->input_roles[i] == QN_ROLE_INPUT)
            printf("  input  %s %s\n", graph->inputs[i]->name ? graph->inputs[i]->name : "",
                   qn_type_print(&graph->inputs[i]->type, arena));
    for (int i = 0; i < graph->n_outputs; i++)
        printf("  output %s %s\n", graph->output_names[i] ? graph->output_names[i] : "",
               qn_type_print(&graph->outputs[i]->type, arena));
}

/* The most frequent op of those that are left, which it is taken from; its number in *out_n, 0: none is left. */
static const char *take_most(int *counts, int *out_n)
{
    int most = 0;
    for (int op = 0; op < QN_N_OPS; op++)
        if (counts[op] > counts[most])
            most = op;
    *out_n = counts[most];
    counts[most] = 0;
    return qn_ops[most].name;
}

static void print_text(const qn_module *module, int *counts, qn_arena *arena)
{
    int total = 0, n;
    for (int i = 0; i < module->n_functions; i++)
        print_signature(module->functions[i], arena);
    for (int op = 0; op < QN_N_OPS; op++)
        total += counts[op];
    printf("every node is supported; %d ops:", total);
    for (const char *name; name = take_most(counts, &n), n;)
        printf(" %s %d", name, n);
    putchar('\n');
}

static void json_buffer(const char *name, const char *role, const qn_type *type, bool first, qn_arena *arena)
{
    printf("%s{\"name\": ", first ? "\n    " : ",\n    ");
    qn_json_string(name, stdout);
    printf(", \"role\": \"%s\", ", role);
    qn_json_type(type, arena, stdout);
    putchar('}');
}

static void json_entry(const qn_graph *graph, qn_arena *arena)
{
    bool first = true;
    fputs("\n {\"name\": ", stdout);
    qn_json_string(graph->name, stdout);
    fputs(", \"io\": [", stdout);
    for (int i = 0; i < graph->n_inputs; i++)
        if (graph->input_roles[i] == QN_ROLE_INPUT) {
            json_buffer(graph->inputs[i]->name, "input", &graph->inputs[i]->type, first, arena);
            first = false;
        }
    for (int i = 0; i < graph->n_outputs; i++, first = false)
        json_buffer(graph->output_names[i], "output", &graph->outputs[i]->type, first, arena);
    fputs("]}", stdout);
}

/* The same members for a model that is refused, which has no entries and no ops. */
static void print_json(const check *c, const qn_module *module, int *counts, const qn_diags *diags)
{
    const char *before = "";
    int n;
    fputs("{\"model\": ", stdout);
    qn_json_string(c->cli.model, stdout);
    printf(", \"supported\": %s,\n \"n_errors\": %d, \"errors\": [", module ? "true" : "false",
           diags->n_errors);
    for (const qn_diag *d = diags->first; d; d = d->next) {
        printf("%s\n  {\"status\": \"%s\", \"text\": ", d == diags->first ? "" : ",",
               quern_status_text(d->status));
        qn_json_string(d->text, stdout);
        putchar('}');
    }
    fputs("],\n \"entries\": [", stdout);
    for (int i = 0; module && i < module->n_functions; i++) {
        fputs(i ? "," : "", stdout);
        json_entry(module->functions[i], diags->arena);
    }
    fputs("],\n \"ops\": {", stdout);
    for (const char *name; module && (name = take_most(counts, &n), n); before = ", ")
        printf("%s\"%s\": %d", before, name, n);
    puts("}}");
}

int quern_main_check(int argc, char **argv)
{
    check c = {
        .cli = { .command = "check", .synopsis = "MODEL [options]", .options = options, .accept = accept }
    };
    int status = QN_EXIT_OK, counts[QN_N_OPS] = { 0 };
    qn_module *module = NULL;
    qn_call call;
    c.cli.user = &c;
    if (!qn_cli_read(&c.cli, argc, argv, &status))
        return status;
    const quern_load_options given = qn_cli_load_options(&c.cli);
    const double start = qn_seconds();
    qn_call_begin(&call);
    const bool refused = qn_load_module(c.cli.model, NULL, 0, &given, &module, &call.diags);
    if (!refused && c.cli.verbose)
        fprintf(stderr, "loaded %s in %.1f ms\n", c.cli.model, 1e3 * (qn_seconds() - start));
    for (int i = 0; !refused && i < module->n_functions; i++)
        count_ops(module->functions[i], counts);
    if (c.json)
        print_json(&c, module, counts, &call.diags);
    else if (!refused)
        print_text(module, counts, call.arena);
    else
        qn_cli_fail_diags(&c.cli, &call.diags);
    if (module)
        qn_module_free(module);
    qn_call_end(&call, QUERN_OK);
    status = qn_cli_finish(&c.cli);
    return refused ? QN_EXIT_FAILED : status;
}
