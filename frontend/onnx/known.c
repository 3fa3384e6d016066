/* Contents that operators without a rule of their own compute from constants: exporters spell lists of repeats, sizes of grids
 * and the like out with OneHot, Pow, TopK and others, and leave folding to whoever reads the model. They are evaluated node by
 * node, where something asks for them. */
#include "frontend/onnx/import.h"
#include "ir/build.h"

enum {
    MOST_NODES = 256, /* that one value may be made of */
    MOST_BYTES = 1 << 16
};

typedef struct walk {
    qn_onnx_import *im;
    qn_builder b; /* of the scratch graph, which has the constants and one node at a time */
    int budget;
} walk;

/* Parameters change in training: nothing that is made of one is known for good. */
static bool may_change(const qn_tensor *tensor)
{
    return tensor->name && qn_onnx_is_learnable(tensor);
}

static bool is_small(const qn_type *type)
{
    if (!qn_type_is_static(type) || qn_dtype_is_stored(type->dtype))
        return false;
    const int64_t n = qn_type_elements(type);
    return n <= MOST_BYTES && n * (int64_t)qn_dtype_bytes(type->dtype) <= MOST_BYTES;
}

static bool is_computed(const qn_node *node)
{
    return node->n_results == 1 && node->n_regions == 0 && node->op != QN_OP_RANDOM_BITS &&
           qn_ops[node->op].class != QN_CONTROL &&
           !(qn_ops[node->op].flags & (QN_FLAG_EFFECT | QN_FLAG_BINDS));
}

static const qn_tensor *evaluate(walk *w, qn_value *value)
{
    value = qn_value_resolve(value);
    const qn_node *node = value->node;
    if (!node || w->budget-- <= 0 || !is_small(&value->type))
        return NULL;
    if (node->op == QN_OP_CONSTANT) {
        const qn_tensor *tensor = qn_attr_tensor(node, QN_ATTR_VALUE);
        return may_change(tensor) ? NULL : tensor;
    }
    if (!is_computed(node))
        return NULL;
    qn_value **operands = QN_NEW_ARRAY(w->im->arena, qn_value *, node->n_operands);
    for (int i = 0; i < node->n_operands; i++) {
        const qn_tensor *tensor = evaluate(w, node->operands[i]);
        if (!tensor)
            return NULL;
        operands[i] = qn_b_constant(&w->b, tensor);
    }
    const qn_node *copy = qn_node_new(w->b.graph, NULL, node->op, node->n_operands, operands, node->n_attrs,
                                      node->attrs, 0, NULL, &node->loc, w->im->diags);
    return copy ? w->im->options->fold(copy, NULL) : NULL;
}

const qn_tensor *qn_onnx_evaluate(qn_onnx_import *im, qn_value *value)
{
    if (!im->options->fold || !is_small(&value->type))
        return NULL;
    walk w = { .im = im,
               .b = { .graph = qn_region_new(im->module), .diags = im->diags },
               .budget = MOST_NODES };
    return evaluate(&w, value);
}
