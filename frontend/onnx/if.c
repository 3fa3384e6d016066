/* If: of a known condition its branch, in place; else an if of two regions, see choice.c. */
#include "frontend/onnx/body.h"
#include "frontend/onnx/families.h"

static const char *const *output_names(const qn_onnx_node *n, const Onnx__Graph *branch)
{
    const char **names = QN_NEW_ARRAY(n->im->arena, const char *, n->n_out);
    for (int i = 0; i < n->n_out; i++)
        names[i] = branch->output[i]->name;
    return names;
}

static void inline_branch(qn_onnx_node *n, const Onnx__Graph *branch)
{
    qn_onnx_scope *scope = qn_onnx_scope_new(n, NULL);
    if (!scope)
        return;
    scope->hands_over = true;
    if (!qn_onnx_scope_import(scope, branch))
        return;
    if (scope->choice) {
        qn_onnx_hand_over(n, scope, output_names(n, branch));
        return;
    }
    for (int i = 0; i < n->n_out; i++)
        qn_onnx_out_any(n, i, qn_onnx_scope_output(scope, branch, i, &n->b.loc));
    qn_onnx_touched(n, scope);
}

/* A run ends where the condition chooses the other one. */
static void require_branch(qn_onnx_node *n, int branch)
{
    qn_value *p = qn_onnx_as_scalar(&n->b, qn_onnx_in(n, 0));
    qn_onnx_require(n, branch && p ? qn_b_unary(&n->b, QN_OP_NOT, p) : p,
                    branch ? "only its else branch fits what is behind it"
                           : "only its then branch fits what is behind it");
    n->im->needs |= n->in[0]->depends; /* maybe it is not so for all values, after all */
}

static void import_if(qn_onnx_node *n)
{
    const Onnx__Graph *branches[2] = { qn_onnx_attr_graph(n, "then_branch"),
                                       qn_onnx_attr_graph(n, "else_branch") };
    qn_dim known;
    if (!branches[0] || !branches[1] || !qn_onnx_in_type(n, 0))
        return;
    for (int k = 0; k < 2; k++)
        if (branches[k]->n_output < (size_t)n->n_out) {
            qn_onnx_malformed(n, "a branch has fewer outputs than the node");
            return;
        }
    if (qn_onnx_known_scalar(n->im, n->in[0], &known) && qn_dim_is_const(known)) {
        inline_branch(n, branches[known->value ? 0 : 1]);
        return;
    }
    const int decided = qn_onnx_decided(n);
    if (decided >= 0) {
        require_branch(n, decided);
        inline_branch(n, branches[decided]);
        return;
    }
    qn_onnx_scope *sides[2] = { NULL };
    const char *const *names[2];
    for (int k = 0; k < 2; k++) {
        sides[k] = qn_onnx_scope_new(n, qn_region_new(n->im->module));
        if (!sides[k])
            return;
        sides[k]->hands_over = true;
        if (!qn_onnx_scope_import(sides[k], branches[k])) {
            qn_onnx_misses(n, n->in[0]); /* it may be for other shapes, and not the one that is taken */
            return;
        }
        names[k] = output_names(n, branches[k]);
        for (int i = 0; i < n->n_out; i++)
            if (!sides[k]->choice && !qn_onnx_scope_output(sides[k], branches[k], i, &n->b.loc))
                return;
    }
    qn_onnx_open_choice(n, sides, names);
}

const qn_onnx_op qn_onnx_if_ops[] = {
    { "If", NULL, 1, 0, import_if },
    { 0 },
};
