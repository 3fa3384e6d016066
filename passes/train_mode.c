/* Batch norms, dropouts and random numbers in training and in inference.
 *
 *   %y, %m, %v = batch_norm %x, %s, %b, %mean, %variance {…}    ->    … {…, training = true}, and outputs that set the
 *                                                                   states %mean and %variance to %m and %v
 *   %y, %k = dropout %x, %key, %step {…}                        ->    … {…, training = true} with the key's second word
 *                                                                   raised by the number of the dropout
 *   random_bits of a constant key and offset                  ->    the key is added to the training's, and the offset to
 *                                                                   step * 2^32: other numbers in each step
 */
#include "passes/inline.h"
#include "passes/passes.h"
#include "passes/train_parts.h"

static bool has_mode(const qn_node *node)
{
    return node->op == QN_OP_BATCH_NORM || node->op == QN_OP_DROPOUT;
}

/* Random numbers that are the same in each run. Those of a key that the model computes are its own affair. */
static bool is_repeated(const qn_node *node)
{
    if (node->op != QN_OP_RANDOM_BITS)
        return false;
    for (int i = 0; i < 2; i++)
        if (!node->operands[i]->node || node->operands[i]->node->op != QN_OP_CONSTANT)
            return false;
    return true;
}

bool qn_train_is_random(const qn_graph *graph)
{
    QN_FOR_NODES (graph, node)
        if (node->op == QN_OP_DROPOUT || is_repeated(node))
            return true;
    return false;
}

/* The node with these operands in that mode; it stands for the old one. */
static qn_node *set_mode(qn_node *node, qn_value *const *operands, bool training, qn_diags *diags)
{
    qn_attr attrs[8];
    int n = 0;
    for (int i = 0; i < node->n_attrs; i++)
        if (node->attrs[i].key != QN_ATTR_TRAINING)
            attrs[n++] = node->attrs[i];
    if (training)
        attrs[n++] = (qn_attr){ .key = QN_ATTR_TRAINING, .i = 1 };
    qn_node *changed = qn_node_new(node->graph, node, node->op, node->n_operands, operands, n, attrs, 0, NULL,
                                   &node->loc, diags);
    if (!changed)
        return NULL;
    for (int i = 0; i < node->n_results; i++) {
        changed->results[i].name = node->results[i].name;
        qn_value_replace(&node->results[i], &changed->results[i]);
    }
    qn_node_remove(node);
    return changed;
}

void qn_inference_mode(qn_graph *graph, qn_diags *diags)
{
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        for (int i = 0; i < node->n_regions; i++)
            qn_inference_mode(node->regions[i], diags);
        qn_node_resolve(node);
        if (has_mode(node) && qn_attr_bool(node, QN_ATTR_TRAINING))
            set_mode(node, node->operands, false, diags);
    }
    qn_graph_resolve(graph);
}

/* A norm in a region could not update its statistics, and a dropout there would draw the same mask in each iteration; random
 * numbers there would be those of all steps. */
static void refuse_in_regions(const qn_graph *graph, bool inside, qn_diags *diags)
{
    QN_FOR_NODES (graph, node) {
        if (inside && has_mode(node))
            qn_error(diags, QUERN_ERROR_UNSUPPORTED, &node->loc,
                     "%s in a loop or a branch can't be trained: move it out, or leave it out",
                     qn_ops[node->op].name);
        else if (inside && is_repeated(node))
            qn_error(
                diags, QUERN_ERROR_UNSUPPORTED, &node->loc,
                "random numbers in a loop or a branch can't be trained: they would be the same in each step; "
                "draw them outside, or take them as an input");
        for (int i = 0; i < node->n_regions; i++)
            refuse_in_regions(node->regions[i], true, diags);
    }
}

static qn_value *key_of(qn_builder *b, qn_value *key, uint64_t number)
{
    const int64_t two = 2;
    const uint64_t words[2] = { 0, number };
    if (number == 0)
        return key;
    qn_value *addend = qn_b_constant(b, qn_tensor_new(b->graph->module, QUERN_U64, 1, &two, words));
    return qn_b_binary(b, QN_OP_ADD, key, addend);
}

/* The node's key keeps random operators apart, and 2^32 in its second word keeps them from dropouts. */
static void draw_anew(qn_builder *b, qn_node *node, qn_value *key, qn_value *step)
{
    qn_value *own = qn_b_binary(b, QN_OP_ADD, node->operands[0], key_of(b, key, (uint64_t)1 << 32));
    qn_value *from = qn_b_binary_scalar(b, QN_OP_SHIFT_LEFT, step, 32);
    const qn_type *type = &node->results[0].type;
    qn_value *bits =
        qn_b_random_bits(b, own, qn_b_binary(b, QN_OP_ADD, node->operands[1], from), type->rank, type->dims);
    if (bits)
        qn_value_replace(&node->results[0], bits);
}

qn_status qn_training_mode(qn_graph *graph, qn_value *key, qn_value *step, qn_diags *diags)
{
    refuse_in_regions(graph, false, diags);
    QN_TRY(qn_diags_status(diags));
    /* what a state input is after the norms so far: two norms may share it */
    qn_value **now = QN_NEW_ARRAY(graph->module->arena, qn_value *, graph->n_inputs);
    int n_dropouts = 0;
    for (qn_node *node = graph->first, *next; node; node = next) {
        next = node->next;
        qn_node_resolve(node);
        if (!has_mode(node) && !is_repeated(node))
            continue;
        qn_builder b = { .graph = graph, .before = node, .loc = node->loc, .diags = diags };
        if (node->op == QN_OP_RANDOM_BITS) {
            draw_anew(&b, node, key, step);
            continue;
        }
        qn_value *operands[5];
        for (int i = 0; i < node->n_operands; i++)
            operands[i] = node->operands[i];
        if (node->op == QN_OP_DROPOUT) {
            operands[1] = key_of(&b, key, (uint64_t)n_dropouts++);
            operands[2] = step;
            if (!set_mode(node, operands, true, diags))
                return qn_diags_status(diags);
            continue;
        }
        const qn_value *states[2] = { operands[3], operands[4] };
        for (int i = 0; i < 2; i++)
            if (!states[i]->node && now[states[i]->index])
                operands[3 + i] = now[states[i]->index];
        qn_node *norm = set_mode(node, operands, true, diags);
        if (!norm)
            return qn_diags_status(diags);
        for (int i = 0; i < 2; i++)
            if (!states[i]->node && graph->input_roles[states[i]->index] == QN_ROLE_STATE)
                now[states[i]->index] = &norm->results[1 + i];
    }
    qn_graph_resolve(graph);
    for (int i = 0; i < graph->n_inputs; i++)
        if (now[i])
            qn_graph_add_output(graph, now[i], graph->inputs[i]->name, i);
    return QUERN_OK;
}
