/* Rules for activations: gelu in both forms, silu. Factors may stand anywhere in a product:
 *
 *   x (erf(x / sqrt 2) + 1) / 2                                   ->  gelu x
 *   x (tanh(sqrt(2 / pi) (x + 0.044715 x^3)) + 1) / 2             ->  gelu_tanh x
 *   x logistic(2 sqrt(2 / pi) (x + 0.044715 x^3))                 ->  gelu_tanh x
 *   the same with  sqrt(2 / pi) x (1 + 0.044715 x^2)  inside
 *   x logistic(x), x / (1 + exp(-x))                              ->  silu x */
#include <math.h>

#include "passes/raise.h"

/* Of f + 1: f's node, when it is made by `op`. */
static const qn_node *one_more(const qn_value *value, qn_op op)
{
    const qn_node *add = qn_value_made_by(value, QN_OP_ADD);
    for (int i = 0; add && i < 2; i++)
        if (qn_value_made_by(add->operands[i], op) && qn_raise_is_number(add->operands[1 - i], 1))
            return add->operands[i]->node;
    return NULL;
}

/* The factor f + 1 of a product, f made by `op`; else NULL. */
static const qn_value *find_factor(const qn_value *product, qn_op op, int depth, const qn_node **out_f)
{
    const qn_node *node = product->node;
    if ((*out_f = one_more(product, op)))
        return product;
    if (depth == 0 || !node || (node->op != QN_OP_MUL && node->op != QN_OP_DIV))
        return NULL;
    for (int i = 0; i < (node->op == QN_OP_MUL ? 2 : 1); i++) {
        const qn_value *found = find_factor(node->operands[i], op, depth - 1, out_f);
        if (found)
            return found;
    }
    return NULL;
}

static bool is_half_of(const qn_value *product, const qn_value *x, const qn_value *other)
{
    double factor;
    return qn_raise_is_product(product, x, 1, other, &factor) && qn_raise_near(x->type.dtype, factor, 0.5);
}

static qn_value *gelu_by_erf(qn_raiser *s, const qn_node *node)
{
    const qn_node *erf;
    const qn_value *product = &node->results[0], *other = find_factor(product, QN_OP_ERF, 3, &erf);
    if (!other)
        return NULL;
    double factor = 1;
    for (const qn_value *inside = erf->operands[0]; inside;) { /* x may be a product with a number itself */
        qn_value *x = qn_raise_without_one_factor(inside, &factor);
        if (x && qn_raise_near(x->type.dtype, factor, M_SQRT1_2) && is_half_of(product, x, other))
            return qn_b_unary(&s->r.b, QN_OP_GELU, x);
        inside = x;
    }
    return NULL;
}

/* Of sqrt(2 / pi) (x + 0.044715 x^3), or the same with x in front: x; else NULL. */
static qn_value *inside_of_tanh(qn_value *inside)
{
    static const double cubic = 0.044715;
    const double root = sqrt(M_2_PI);
    double factor = 1, inner;
    const qn_node *add = qn_value_made_by(qn_raise_without_factor(inside, &factor), QN_OP_ADD);
    const qn_dtype dtype = inside->type.dtype;
    for (int i = 0; add && i < 2; i++)
        if (qn_raise_near(dtype, factor, root) &&
            qn_raise_is_product(add->operands[1 - i], add->operands[i], 3, NULL, &inner) &&
            qn_raise_near(dtype, inner, cubic))
            return add->operands[i];
    const qn_node *mul = qn_value_made_by(inside, QN_OP_MUL);
    for (int i = 0; mul && i < 2; i++) {
        factor = 1;
        qn_value *x = qn_raise_without_factor(mul->operands[i], &factor);
        const qn_node *sum = qn_value_made_by(mul->operands[1 - i], QN_OP_ADD);
        for (int k = 0; sum && k < 2; k++)
            if (qn_raise_is_number(sum->operands[k], 1) && qn_raise_near(dtype, factor, root) &&
                qn_raise_is_product(sum->operands[1 - k], x, 2, NULL, &inner) &&
                qn_raise_near(dtype, inner, cubic))
                return x;
    }
    return NULL;
}

static qn_value *gelu_by_tanh(qn_raiser *s, const qn_node *node)
{
    const qn_node *tanh;
    const qn_value *product = &node->results[0], *other = find_factor(product, QN_OP_TANH, 3, &tanh);
    qn_value *x = other ? inside_of_tanh(tanh->operands[0]) : NULL;
    return x && is_half_of(product, x, other) ? qn_b_unary(&s->r.b, QN_OP_GELU_TANH, x) : NULL;
}

/* x logistic(2 u) for x (tanh(u) + 1) / 2, as simplify says it */
static qn_value *gelu_by_logistic(qn_raiser *s, const qn_node *node)
{
    for (int i = 0; i < 2; i++) {
        const qn_node *logistic = qn_value_made_by(node->operands[i], QN_OP_LOGISTIC);
        const qn_node *twice = logistic ? qn_value_made_by(logistic->operands[0], QN_OP_ADD) : NULL;
        if (twice && twice->operands[0] == twice->operands[1] &&
            inside_of_tanh(twice->operands[0]) == node->operands[1 - i])
            return qn_b_unary(&s->r.b, QN_OP_GELU_TANH, node->operands[1 - i]);
    }
    return NULL;
}

static qn_value *silu(qn_raiser *s, const qn_node *node)
{
    if (node->results[0].type.dtype == QUERN_F16 || node->results[0].type.dtype == QUERN_BF16)
        return NULL;
    for (int i = 0; i < 2; i++) {
        const qn_node *logistic = qn_value_made_by(node->operands[i], QN_OP_LOGISTIC);
        if (logistic && logistic->operands[0] == node->operands[1 - i])
            return qn_b_unary(&s->r.b, QN_OP_SILU, node->operands[1 - i]);
    }
    return NULL;
}

static qn_value *silu_by_exp(qn_raiser *s, const qn_node *node)
{
    const qn_node *exp = one_more(node->operands[1], QN_OP_EXP);
    const qn_node *negated = exp ? qn_value_made_by(exp->operands[0], QN_OP_NEG) : NULL;
    return negated && negated->operands[0] == node->operands[0]
               ? qn_b_unary(&s->r.b, QN_OP_SILU, node->operands[0])
               : NULL;
}

const qn_raise_rule qn_raise_elementwise_rules[] = {
    { QN_OP_MUL, false, gelu_by_erf },  { QN_OP_DIV, false, gelu_by_erf },
    { QN_OP_MUL, false, gelu_by_tanh }, { QN_OP_MUL, false, gelu_by_logistic },
    { QN_OP_MUL, true, silu },          { QN_OP_DIV, false, silu_by_exp },
    { QN_N_OPS, false, NULL },
};
