/* quern check: is every node of a model supported? Lists what is not, all of it, or counts what is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver/cli.h"
#include "driver/commands.h"

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

static void report(const qn_module *module, qn_arena *arena)
{
    int counts[QN_N_OPS] = { 0 }, total = 0;
    for (int i = 0; i < module->n_functions; i++) {
        print_signature(module->functions[i], arena);
        count_ops(module->functions[i], counts);
    }
    for (int op = 0; op < QN_N_OPS; op++)
        total += counts[op];
    printf("every node is supported; %d ops:", total);
    for (;;) { /* the most frequent first */
        int most = 0;
        for (int op = 0; op < QN_N_OPS; op++)
            if (counts[op] > counts[most])
                most = op;
        if (!counts[most])
            break;
        printf(" %s %d", qn_ops[most].name, counts[most]);
        counts[most] = 0;
    }
    putchar('\n');
}

int quern_main_check(int argc, char **argv)
{
    qn_cli cli = { .command = "check", .synopsis = "MODEL [options]" };
    int status = QN_EXIT_OK;
    if (!qn_cli_read(&cli, argc, argv, &status))
        return status;
    quern_module *module = qn_cli_module(&cli, &status);
    if (!module)
        return status;
    qn_arena *arena = qn_arena_new();
    report(module->ir, arena);
    qn_arena_free(arena);
    quern_module_free(module);
    return qn_cli_finish(&cli);
}
