/* Finds the composites that models spell out.
 *
 * Before: a graph after simplify, with constants folded: transpositions and factors are where the rules expect them. After: the
 * same values; where primitives say softmax, log_softmax, layer_norm, rms_norm, gelu, silu, attention or cross_entropy, that
 * composite stands there. Autodiff knows gradients of composites, and lowering kernels.
 *
 *   %0 = div %x, 1.4142135                  becomes      %4 = gelu %x
 *   %1 = erf %0
 *   %2 = add %1, 1.0
 *   %3 = mul %2, 0.5
 *   %4 = mul %x, %3
 *
 * A rule starts at the last node of its pattern and gives what stands for it; the nodes inside stay for others who read them,
 * and go with dce. The composite rounds at other places than what it replaces, by no more than the op table's bounds; rules that
 * this can't be said of "to the bit" are off under --math strict. Attention is looked for in a second sweep, since it is
 * made of a softmax. */
#include <math.h>

#include "passes/raise.h"

/* ---- looking at values ---- */

int qn_raise_uses(const qn_raiser *s, const qn_value *value)
{
    return value->id >= 0 && value->id < s->n_uses ? s->uses[value->id] : 2;
}

bool qn_raise_near(qn_dtype dtype, double a, double b)
{
    const double rounding = dtype == QUERN_F64    ? 1e-15
                            : dtype == QUERN_F16  ? 1e-3
                            : dtype == QUERN_BF16 ? 8e-3
                                                  : 1.2e-7;
    /* exporters write 0.797885 for sqrt(2 / pi) */
    return fabs(a - b) <= fmax(4 * rounding, 1e-6) * fabs(b);
}

bool qn_raise_is_number(const qn_value *value, double number)
{
    qn_scalar s;
    return qn_dtype_is_float(value->type.dtype) && qn_value_splat(value, &s) &&
           (s.f == number || qn_raise_near(value->type.dtype, s.f, number));
}

qn_value *qn_raise_without_one_factor(const qn_value *value, double *factor)
{
    const qn_node *node = value->node;
    qn_scalar s;
    if (!node || !qn_dtype_is_float(value->type.dtype))
        return NULL;
    if (node->op == QN_OP_NEG) {
        *factor = -*factor;
        return node->operands[0];
    }
    if (node->op == QN_OP_DIV && qn_value_splat(node->operands[1], &s)) {
        *factor /= s.f;
        return node->operands[0];
    }
    for (int i = 0; node->op == QN_OP_MUL && i < 2; i++)
        if (qn_value_splat(node->operands[1 - i], &s)) {
            *factor *= s.f;
            return node->operands[i];
        }
    return NULL;
}

qn_value *qn_raise_without_factor(qn_value *value, double *factor)
{
    for (qn_value *inner; (inner = qn_raise_without_one_factor(value, factor));)
        value = inner;
    return value;
}

static bool divide_by(const qn_value *value, const qn_value *x, int *times, const qn_value *other,
                      int *others, double *factor)
{
    enum { DEPTH = 8 };
    const qn_value *open[DEPTH] = { value };
    for (int n = 1; n > 0;) {
        const qn_value *v = open[--n];
        qn_scalar s;
        if (v == x) {
            ++*times;
        } else if (v == other) {
            ++*others;
        } else if (qn_value_splat(v, &s)) {
            *factor *= s.f;
        } else if (qn_value_made_by(v, QN_OP_MUL) && n + 2 <= DEPTH) {
            open[n++] = v->node->operands[0];
            open[n++] = v->node->operands[1];
        } else if (qn_value_made_by(v, QN_OP_DIV) && qn_value_splat(v->node->operands[1], &s)) {
            *factor /= s.f;
            open[n++] = v->node->operands[0];
        } else {
            return false;
        }
    }
    return true;
}

bool qn_raise_is_product(const qn_value *value, const qn_value *x, int times, const qn_value *other,
                         double *out_factor)
{
    int found = 0, others = 0;
    *out_factor = 1;
    return qn_dtype_is_float(value->type.dtype) && divide_by(value, x, &found, other, &others, out_factor) &&
           found == times && others == (other != NULL);
}

/* ---- the pass ---- */

static qn_value *apply(qn_raiser *s, const qn_raise_rule *rules, const qn_node *node)
{
    for (const qn_raise_rule *rule = rules; rule->raise; rule++)
        if (rule->op == node->op && (rule->same_bits || s->r.math != QN_MATH_STRICT)) {
            qn_value *value = rule->raise(s, node);
            if (value)
                return value;
        }
    return NULL;
}

/* Rules of these tables over the graph and its regions, in order: what a pattern is made of is raised before it. */
static bool sweep(qn_graph *graph, qn_raiser *s, const qn_raise_rule *const *tables)
{
    bool changed = false;
    qn_arena *scratch = qn_arena_new();
    s->uses = qn_graph_count_uses(graph, scratch);
    s->n_uses = graph->n_values;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        s->r.b.graph = graph;
        s->r.b.before = node;
        s->r.b.loc = node->loc;
        qn_value *value = NULL;
        for (int i = 0; tables[i] && !value; i++)
            value = apply(s, tables[i], node);
        if (!value)
            continue;
        qn_value_replace(&node->results[0], value);
        qn_node_remove(node);
        changed = true;
    }
    qn_arena_free(scratch);
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_regions; i++)
            changed |= sweep(node->regions[i], s, tables);
    return changed;
}

qn_status qn_pass_raise(qn_graph *graph, const qn_pass_options *options, bool *out_changed, qn_diags *diags)
{
    static const qn_raise_rule *const sweeps[][3] = {
        { qn_raise_row_rules, qn_raise_elementwise_rules, NULL }, { qn_raise_attention_rules, NULL }
    };
    const int errors = diags->n_errors;
    qn_raiser s = { .r = { .b = { .diags = diags }, .math = options->math } };
    *out_changed = false;
    for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++)
        if (sweep(graph, &s, sweeps[i])) {
            *out_changed = true;
            qn_graph_remove_dead(graph);
        }
    return diags->n_errors > errors ? qn_diags_status(diags) : QUERN_OK;
}
