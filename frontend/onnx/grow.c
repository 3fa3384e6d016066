/* Loops that append a piece to what they carry, as PyTorch's exporter writes a list of tensors that is concatenated behind the loop:
 *
 *   for i: c = Concat(Cast(c), piece)
 *
 * Where nothing else in the body reads c, the pieces are a stacked output, and c is what it began with and all of them: a piece is what the
 * body gives where c is empty. */
#include <string.h>

#include "frontend/onnx/body.h"

/* How often nodes of the graph, and of graphs in it, read the name, or give it. */
static int uses_of(const Onnx__Graph *graph, const char *name)
{
    int n = 0;
    for (size_t i = 0; i < graph->n_output; i++)
        n += !strcmp(graph->output[i]->name, name);
    for (size_t i = 0; i < graph->n_node; i++) {
        const Onnx__Node *node = graph->node[i];
        for (size_t k = 0; k < node->n_input; k++)
            n += !strcmp(node->input[k], name);
        for (size_t k = 0; k < node->n_attribute; k++)
            n += node->attribute[k]->g ? uses_of(node->attribute[k]->g, name) : 0;
    }
    return n;
}

/* Does carried value i grow, and by nothing but a piece that is appended? A conversion before that changes nothing, since what it makes
 * goes round. */
static bool grows(const Onnx__Graph *body, int i, int64_t *out_axis)
{
    const char *begin = body->input[i + 2]->name, *end = body->output[i + 1]->name;
    const Onnx__Node *join = qn_onnx_maker_of(body, end);
    if (!join || strcmp(join->op_type, "Concat") || join->n_input != 2 || uses_of(body, end) != 1 ||
        uses_of(body, begin) != 1)
        return false;
    if (strcmp(join->input[0], begin)) {
        const Onnx__Node *cast = qn_onnx_maker_of(body, join->input[0]);
        if (!cast || (strcmp(cast->op_type, "Cast") && strcmp(cast->op_type, "Identity")) ||
            cast->n_input != 1 || strcmp(cast->input[0], begin) || uses_of(body, join->input[0]) != 1)
            return false;
    }
    *out_axis = 0;
    for (size_t k = 0; k < join->n_attribute; k++)
        if (!strcmp(join->attribute[k]->name, "axis"))
            *out_axis = join->attribute[k]->i;
    return true;
}

const Onnx__Graph *qn_onnx_loop_pieces(qn_onnx_node *n, const Onnx__Graph *body, int n_carried,
                                       qn_onnx_growth *out)
{
    qn_arena *arena = n->im->arena;
    Onnx__Graph *g = QN_NEW(arena, Onnx__Graph);
    *g = *body;
    g->input = QN_NEW_ARRAY(arena, Onnx__ValueInfo *, body->n_input);
    g->output = QN_NEW_ARRAY(arena, Onnx__ValueInfo *, body->n_output);
    g->n_input = g->n_output = 0;
    for (size_t i = 0; i < body->n_input; i++) {
        const int k = (int)i - 2;
        if (k >= 0 && grows(body, k, &out[k].axis))
            out[k].name = body->input[i]->name;
        else
            g->input[g->n_input++] = body->input[i];
    }
    for (int pieces = 0; pieces < 2; pieces++) /* behind all others */
        for (size_t i = 0; i < body->n_output; i++)
            if (pieces == (i > 0 && i <= (size_t)n_carried && out[i - 1].name != NULL))
                g->output[g->n_output++] = body->output[i];
    return g->n_input < body->n_input ? g : NULL;
}
