/* What is not a finite number, value by value: see numerics.h. */
#include "passes/numerics.h"

#include "ir/build.h"

/* 2 where an element is NaN, else 1 where one is infinite: an i32 scalar. */
static qn_value *flag_of(qn_builder *b, qn_value *x)
{
    int64_t axes[QN_MAX_RANK];
    qn_type type = x->type;
    type.dtype = QUERN_I32;
    for (int i = 0; i < type.rank; i++)
        axes[i] = i;
    qn_value *infinite = qn_b_convert(b, QUERN_I32, qn_b_unary(b, QN_OP_IS_INF, x));
    qn_value *flags = qn_b_select(b, qn_b_unary(b, QN_OP_IS_NAN, x), qn_b_full(b, &type, 2), infinite);
    return type.rank ? qn_b_reduce(b, QN_KIND_MAX, flags, type.rank, axes, false) : flags;
}

qn_status qn_flag_numerics(qn_graph *graph, qn_diags *diags)
{
    qn_node *const last = graph->last;
    qn_builder b = { .graph = graph, .diags = diags };
    graph->n_outputs = 0;
    graph->outputs = NULL;
    graph->output_names = NULL;
    graph->aliases = NULL;
    for (qn_node *node = graph->first; node; node = node == last ? NULL : node->next)
        for (int i = 0; i < node->n_results && node->op != QN_OP_CONSTANT; i++)
            if (qn_dtype_is_float(node->results[i].type.dtype))
                qn_graph_add_output(graph, flag_of(&b, &node->results[i]),
                                    qn_arena_printf(graph->module->arena, "flag.%d", graph->n_outputs), -1);
    return qn_diags_status(diags);
}
