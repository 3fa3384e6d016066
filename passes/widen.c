/* Products, convolutions, attention and its gradients of 16-bit floats sum in float32 in any case, and of float32 there are
 * kernels.
 *
 * Before: any graph, on a CPU. After: no float16 is multiplied by them, and bfloat16 only where pairs of it are (see pack.c); a
 * result is rounded once, as it was before.
 *
 *   %r = dot_general %x: f16, %y: f16 : f16
 *   ->
 *   %r = convert (dot_general (convert %x : f32), (convert %y : f32) : f32) : f16 */
#include "ir/build.h"
#include "passes/passes.h"
#include "passes/quantize.h"

static bool is_half(const qn_value *v)
{
    return v->type.dtype == QUERN_F16 || v->type.dtype == QUERN_BF16;
}

static qn_value *wide(qn_builder *b, qn_value *v)
{
    return is_half(v) ? qn_b_convert(b, QUERN_F32, v) : v;
}

/* Does the machine multiply pairs of bfloat16, of which the summed axes have whole ones? */
static bool has_pairs(const qn_node *node, const qn_pass_options *options)
{
    const int step = qn_bf16_step(options);
    const qn_dot_side x = qn_dot_side_of(node, 0);
    int64_t k = 1;
    for (int i = 0; i < x.n_contract; i++) {
        const qn_dim d = node->operands[0]->type.dims[x.contract[i]];
        k = qn_dim_is_const(d) && k <= INT32_MAX ? k * d->value : 0;
    }
    return node->operands[0]->type.dtype == QUERN_BF16 && step > 0 && k > 0 && k % step == 0;
}

static qn_value *product(qn_builder *b, const qn_node *node, const qn_pass_options *options)
{
    const qn_dot dot = qn_dot_of(node);
    const bool pairs = has_pairs(node, options);
    if (pairs && node->results[0].type.dtype == QUERN_F32)
        return NULL;
    qn_value *x = pairs ? node->operands[0] : wide(b, node->operands[0]);
    qn_value *y = pairs ? node->operands[1] : wide(b, node->operands[1]);
    return qn_b_dot_general(b, x, y, &dot, QUERN_F32);
}

static qn_value *convolution(qn_builder *b, const qn_node *node, const qn_pass_options *options)
{
    if (node->operands[0]->type.dtype == QUERN_BF16 && qn_bf16_step(options) > 0)
        return NULL;
    qn_conv_room room;
    const qn_conv conv = qn_conv_of(node, &room);
    qn_value *x = wide(b, node->operands[0]), *w = wide(b, node->operands[1]);
    return qn_b_convolution_to(b, x, w, &conv, QUERN_F32);
}

static qn_value *attention(qn_builder *b, const qn_node *node)
{
    qn_value *mask = node->n_operands > 3 ? wide(b, node->operands[3]) : NULL;
    return qn_b_attention(b, wide(b, node->operands[0]), wide(b, node->operands[1]),
                          wide(b, node->operands[2]), mask, qn_attr_float(node, QN_ATTR_SCALE),
                          qn_attr_bool(node, QN_ATTR_CAUSAL));
}

static qn_value *gradients(qn_builder *b, const qn_node *node)
{
    qn_value *x[5] = { NULL };
    for (int i = 0; i < node->n_operands; i++)
        x[i] = wide(b, node->operands[i]);
    qn_node *made = qn_b_attention_grad(b, x, x[3], x[4], qn_attr_float(node, QN_ATTR_SCALE),
                                        qn_attr_bool(node, QN_ATTR_CAUSAL));
    return made ? &made->results[0] : NULL;
}

static bool widen_graph(qn_graph *graph, const qn_pass_options *options, qn_diags *diags)
{
    bool changed = false;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        for (int i = 0; i < node->n_regions; i++)
            changed |= widen_graph(node->regions[i], options, diags);
        if (node->n_operands == 0 || !is_half(node->operands[0]))
            continue;
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        qn_value *made = node->op == QN_OP_DOT_GENERAL      ? product(&b, node, options)
                         : node->op == QN_OP_CONVOLUTION    ? convolution(&b, node, options)
                         : node->op == QN_OP_ATTENTION      ? attention(&b, node)
                         : node->op == QN_OP_ATTENTION_GRAD ? gradients(&b, node)
                                                            : NULL; /* first of the results */
        if (!made)
            continue;
        for (int i = 0; i < node->n_results; i++)
            qn_value_replace(&node->results[i], qn_b_convert(&b, node->results[i].type.dtype, made + i));
        qn_node_remove(node);
        changed = true;
    }
    qn_graph_resolve(graph);
    return changed;
}

qn_status qn_pass_widen(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    const int errors = diags->n_errors;
    const qn_machine *machine = options->machine;
    *out_changed =
        machine && !machine->gpu && machine->vector_bytes >= 16 && widen_graph(graph, options, diags);
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
