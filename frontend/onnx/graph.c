/* Graphs of the model -> graphs of ours: scopes, nodes, inlined functions, captures.
 *
 *   If (region)      scope with a graph of its own: what it reads of its parent becomes an input, see capture
 *   inlined body     scope with the parent's graph: a dissolved If, an unrolled Loop
 *   function call    scope without a parent: sees its arguments only */
#include <string.h>

#include "frontend/onnx/frame.h"
#include "frontend/onnx/import.h"

/* ---- names ---- */

struct qn_onnx_name {
    const char *name; /* NULL: free */
    qn_onnx_value *value;
};

uint64_t qn_onnx_hash_name(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 0x100000001b3u;
    return h ^ h >> 29;
}

static struct qn_onnx_name *find_name(const qn_onnx_scope *scope, const char *name)
{
    if (!scope->name_capacity)
        return NULL;
    size_t mask = (size_t)scope->name_capacity - 1, at = (size_t)qn_onnx_hash_name(name) & mask;
    while (scope->names[at].name && strcmp(scope->names[at].name, name))
        at = (at + 1) & mask;
    return &scope->names[at];
}

static void add_name(qn_onnx_scope *scope, const char *name, qn_onnx_value *value)
{
    if (scope->n_names * 2 >= scope->name_capacity) {
        struct qn_onnx_name *old = scope->names;
        int n_old = scope->name_capacity;
        scope->name_capacity = n_old ? n_old * 2 : 16;
        scope->names = QN_NEW_ARRAY(scope->im->arena, struct qn_onnx_name, scope->name_capacity);
        for (int i = 0; i < n_old; i++)
            if (old[i].name)
                *find_name(scope, old[i].name) = old[i];
    }
    *find_name(scope, name) = (struct qn_onnx_name){ name, value };
    scope->n_names++;
}

bool qn_onnx_scope_define(qn_onnx_scope *scope, const char *name, qn_onnx_value *value, const qn_loc *loc)
{
    struct qn_onnx_name *slot = find_name(scope, name);
    if (slot && slot->name) {
        qn_error(scope->im->diags, QUERN_ERROR_MODEL, loc, "the name \"%s\" is defined twice", name);
        return false;
    }
    add_name(scope, name, value);
    return true;
}

/* ---- scopes ---- */

qn_onnx_scope *qn_onnx_scope_new(qn_onnx_node *n, qn_graph *region)
{
    qn_onnx_scope *parent = n->scope;
    if (parent->depth + 1 > QN_ONNX_MAX_DEPTH) {
        qn_onnx_malformed(n, "graphs are nested more than %d deep", QN_ONNX_MAX_DEPTH);
        return NULL;
    }
    qn_onnx_scope *scope = QN_NEW(n->im->arena, qn_onnx_scope);
    scope->im = n->im;
    scope->parent = parent;
    scope->graph = region ? region : parent->graph;
    scope->frame = parent->frame;
    scope->opsets = parent->opsets;
    scope->n_opsets = parent->n_opsets;
    scope->depth = parent->depth + 1;
    return scope;
}

qn_value *qn_onnx_scope_capture(qn_onnx_scope *scope, qn_value *outer)
{
    for (size_t i = 0; i < scope->captured.n; i++)
        if (scope->captured.items[i] == outer)
            return scope->captured_inputs.items[i];
    qn_value *input = qn_graph_add_input(scope->graph, NULL, outer->type, QN_ROLE_INPUT);
    qn_vec_push(scope->im->arena, &scope->captured, outer);
    qn_vec_push(scope->im->arena, &scope->captured_inputs, input);
    return input;
}

/* A value of the parent's graph, in the region. Contents need no capture, unless training may change them. */
static qn_onnx_value *adopt(qn_onnx_scope *scope, qn_onnx_value *outer)
{
    qn_onnx_value *v = qn_onnx_value_new(scope->im, outer->kind);
    *v = *outer;
    if (outer->kind == QN_ONNX_TENSOR && ((!outer->tensor && !outer->dims) || outer->learnable)) {
        qn_builder b = { .graph = scope->parent->graph, .diags = scope->im->diags };
        v->value = qn_onnx_scope_capture(scope, qn_onnx_value_make(&b, outer));
    } else {
        v->value = NULL;
    }
    v->whole = NULL; /* is not of this graph */
    v->items = QN_NEW_ARRAY(scope->im->arena, qn_onnx_value *, outer->n_items);
    for (int i = 0; i < outer->n_items; i++)
        v->items[i] = adopt(scope, outer->items[i]);
    return v;
}

qn_onnx_value *qn_onnx_scope_find(qn_onnx_scope *scope, const char *name)
{
    struct qn_onnx_name *slot = find_name(scope, name);
    qn_onnx_value *value = slot && slot->name ? slot->value : NULL;
    if (!value && scope->parent) {
        value = qn_onnx_scope_find(scope->parent, name);
        if (value && scope->graph != scope->parent->graph) {
            value = adopt(scope, value);
            add_name(scope, name, value);
        }
    }
    if (value) {
        scope->touched |= value->depends;
        scope->touched_extents |= value->extents;
    }
    return value;
}

/* ---- nodes ---- */

static bool is_default_domain(const char *domain)
{
    return !*domain || !strcmp(domain, "ai.onnx");
}

static bool same_domain(const char *a, const char *b)
{
    return !strcmp(a, b) || (is_default_domain(a) && is_default_domain(b));
}

/* Version of a domain's operators in the scope; 0 when it is not imported. */
static int64_t opset_of(const qn_onnx_scope *scope, const char *domain)
{
    for (int i = 0; i < scope->n_opsets; i++)
        if (same_domain(scope->opsets[i]->domain, domain))
            return scope->opsets[i]->version;
    return 0;
}

static const Onnx__Function *find_function(const Onnx__Model *model, const Onnx__Node *node)
{
    for (size_t i = 0; i < model->n_functions; i++) {
        const Onnx__Function *f = model->functions[i];
        if (!strcmp(f->name, node->op_type) && same_domain(f->domain, node->domain) &&
            !strcmp(f->overload, node->overload))
            return f;
    }
    return NULL;
}

static bool import_nodes(qn_onnx_scope *scope, qn_onnx_nodes nodes);

static void inline_function(qn_onnx_node *n, const Onnx__Function *function)
{
    qn_onnx_frame *frame = QN_NEW(n->im->arena, qn_onnx_frame);
    *frame = (qn_onnx_frame){ n->scope->frame, n->proto, function };
    qn_onnx_scope *scope = qn_onnx_scope_new(n, NULL);
    if (!scope)
        return;
    scope->parent = NULL;
    scope->frame = frame;
    scope->opsets = (const Onnx__OpsetId *const *)function->opset_import;
    scope->n_opsets = (int)function->n_opset_import;
    if ((size_t)n->n_in > function->n_input || (size_t)n->n_out > function->n_output) {
        qn_onnx_malformed(n, "function %s takes %zu inputs and gives %zu outputs", function->name,
                          function->n_input, function->n_output);
        return;
    }
    for (size_t i = 0; i < function->n_input; i++)
        if (!qn_onnx_scope_define(scope, function->input[i], qn_onnx_in_any(n, (int)i), &n->b.loc))
            return;
    const qn_onnx_nodes nodes = { .n = function->n_node,
                                  .nodes = function->node,
                                  .n_outputs = function->n_output,
                                  .outputs = (const char *const *)function->output };
    scope->hands_over = true;
    if (!import_nodes(scope, nodes))
        return;
    if (scope->choice) {
        qn_onnx_hand_over(n, scope, nodes.outputs);
        return;
    }
    for (int i = 0; i < n->n_out; i++) {
        n->out[i] = qn_onnx_scope_find(scope, function->output[i]);
        if (!n->out[i])
            qn_onnx_malformed(n, "function %s does not compute its output %s", function->name,
                              function->output[i]);
    }
}

static bool is_failed(const qn_onnx_value *v)
{
    bool failed = v->kind == QN_ONNX_FAILED;
    for (int i = 0; i < v->n_items; i++)
        failed |= is_failed(v->items[i]);
    return failed;
}

/* Finds the inputs; false when one is not there or comes from a node that failed. */
static bool find_inputs(qn_onnx_node *n)
{
    const Onnx__Node *proto = n->proto;
    bool good = true;
    n->n_in = (int)proto->n_input;
    while (n->n_in > 0 && !*proto->input[n->n_in - 1])
        n->n_in--;
    n->in = QN_NEW_ARRAY(n->im->arena, qn_onnx_value *, n->n_in);
    for (int i = 0; i < n->n_in; i++) {
        const char *name = proto->input[i];
        n->in[i] = *name ? qn_onnx_scope_find(n->scope, name) : qn_onnx_value_new(n->im, QN_ONNX_NONE);
        if (!n->in[i]) {
            qn_error(n->im->diags, QUERN_ERROR_MODEL, &n->b.loc,
                     "input \"%s\" is not defined before this node", name);
            n->in[i] = qn_onnx_value_new(n->im, QN_ONNX_FAILED);
        }
        good &= !is_failed(n->in[i]);
        n->depends |= n->in[i]->depends;
        n->extents |= n->in[i]->extents;
    }
    while (n->n_in > 0 && n->in[n->n_in - 1]->kind == QN_ONNX_NONE)
        n->n_in--;
    return good;
}

/* Was something computed while importing that is made of parameters? */
static bool folded_parameters(const qn_onnx_node *n)
{
    bool learnable = false, folded = false;
    for (int i = 0; i < n->n_in; i++)
        learnable |= n->in[i]->learnable;
    for (int i = 0; i < n->n_out; i++)
        folded |= n->out[i] && n->out[i]->tensor && !n->out[i]->value && !n->out[i]->learnable &&
                  qn_dtype_is_float(n->out[i]->type.dtype);
    return learnable && folded && qn_onnx_ok(n);
}

/* Training changes parameters, and what is made of them: imports the node again, as nodes. The contents stay known. */
static void keep_nodes(qn_onnx_node *n, const qn_onnx_op *op)
{
    qn_onnx_value **folded = qn_arena_copy(n->im->arena, n->out, (size_t)n->n_out * sizeof(qn_onnx_value *));
    n->im->keep_floats = true;
    op->import(n);
    n->im->keep_floats = false;
    for (int i = 0; i < n->n_out; i++) {
        qn_onnx_value *made = n->out[i];
        if (!made || !folded[i] || !made->value || !folded[i]->tensor)
            continue;
        made->tensor = folded[i]->tensor;
        made->learnable = true;
    }
}

static void import_operator(qn_onnx_node *n, bool inputs_good)
{
    const Onnx__Function *function = find_function(n->im->model, n->proto);
    if (function) {
        if (inputs_good)
            inline_function(n, function);
        return;
    }
    const char *domain = is_default_domain(n->proto->domain) ? "" : n->proto->domain;
    bool other = false;
    const qn_onnx_op *op = qn_onnx_op_find(domain, n->proto->op_type, n->opset, &other);
    if (!op)
        qn_onnx_unsupported(n, other ? "this operator is not supported at this opset"
                                     : "this operator is not supported");
    else if (inputs_good)
        qn_onnx_import_node(n, op);
    if (inputs_good && op && folded_parameters(n))
        keep_nodes(n, op);
}

static void define_outputs(qn_onnx_node *n, bool inputs_good)
{
    for (int i = 0; i < (int)n->proto->n_output; i++) {
        const char *name = n->proto->output[i];
        if (!*name)
            continue;
        qn_onnx_value *v = i < n->n_out ? n->out[i] : NULL;
        if (!v && inputs_good && qn_onnx_ok(n))
            qn_onnx_unsupported(n, "output %d is not supported", i);
        if (!v)
            v = qn_onnx_value_new(n->im, QN_ONNX_FAILED);
        v->depends |= n->depends;
        v->extents |= n->extents;
        qn_onnx_scope_define(n->scope, name, v, &n->b.loc);
    }
}

bool qn_onnx_import_one(qn_onnx_scope *scope, const qn_onnx_nodes *nodes, size_t i,
                        qn_onnx_choice **out_choice)
{
    const size_t index = nodes->order ? nodes->order[i] : i;
    const Onnx__Node *proto = nodes->nodes[index];
    qn_onnx_import *im = scope->im;
    const char *domain = is_default_domain(proto->domain) ? "" : proto->domain;
    qn_onnx_node n = {
        .im = im,
        .scope = scope,
        .proto = proto,
        .opset = opset_of(scope, domain),
        .b = { .graph = scope->graph, .diags = im->diags },
        .number = im->n_nodes,
        .n_errors = im->diags->n_errors,
    };
    n.b.loc = (qn_loc){ .file = im->file,
                        .node = *proto->name ? proto->name
                                             : qn_arena_printf(im->arena, "%s#%zu", proto->op_type, index),
                        .op = qn_arena_printf(im->arena, "%s%s%s, opset %lld", domain, *domain ? "." : "",
                                              proto->op_type, (long long)n.opset) };
    if (++im->n_nodes > QN_ONNX_MAX_NODES) {
        qn_onnx_unsupported(&n, "the model has more than %d nodes with its functions and loops spelled out",
                            QN_ONNX_MAX_NODES);
        return false;
    }
    n.n_out = (int)proto->n_output;
    while (n.n_out > 0 && !*proto->output[n.n_out - 1])
        n.n_out--;
    n.out = QN_NEW_ARRAY(im->arena, qn_onnx_value *, n.n_out);
    bool good = find_inputs(&n);
    import_operator(&n, good);
    if (!qn_onnx_ok(&n))
        memset(n.out, 0, (size_t)n.n_out * sizeof *n.out);
    *out_choice = qn_onnx_ok(&n) ? n.choice : NULL;
    if (!*out_choice)
        define_outputs(&n, good);
    return qn_onnx_ok(&n);
}

static bool import_nodes(qn_onnx_scope *scope, qn_onnx_nodes nodes)
{
    bool good = true;
    nodes.order = qn_onnx_order(scope->im->arena, nodes.n, nodes.nodes);
    for (size_t i = 0; i < nodes.n && scope->im->n_nodes <= QN_ONNX_MAX_NODES; i++)
        good &= qn_onnx_step(scope, &nodes, i);
    if (scope->choice && !scope->hands_over)
        good &= qn_onnx_finish_choice(scope, &nodes);
    return good && scope->im->n_nodes <= QN_ONNX_MAX_NODES;
}

bool qn_onnx_is_learnable(const qn_tensor *tensor)
{
    return qn_dtype_is_float(tensor->type.dtype) &&
           (tensor->role == QN_ROLE_PARAM || (tensor->role == QN_ROLE_INPUT && tensor->type.rank > 0));
}

/* PyTorch notes beside a value whether it was a parameter of the module, or a buffer or another tensor of it. */
static void take_roles(qn_onnx_scope *scope, const Onnx__Graph *graph)
{
    for (size_t i = 0; i < graph->n_value_info; i++) {
        const Onnx__Described *described = graph->value_info[i];
        for (size_t k = 0; k < described->n_metadata_props; k++) {
            const Onnx__Entry *entry = described->metadata_props[k];
            if (strcmp(entry->key, "pkg.torch.export.graph_signature.InputSpec.kind"))
                continue;
            const qn_input_role role = strcmp(entry->value, "PARAMETER") == 0 ? QN_ROLE_PARAM : QN_ROLE_STATE;
            const struct qn_onnx_name *slot = find_name(scope, described->name);
            qn_onnx_value *v = slot && slot->name ? slot->value : NULL;
            if (!v || !v->tensor || !qn_dtype_is_float(v->tensor->type.dtype))
                continue;
            qn_tensor *tensor = qn_arena_copy(scope->im->arena, v->tensor, sizeof *tensor);
            tensor->role = role;
            v->tensor = tensor;
            v->learnable = qn_onnx_is_learnable(tensor);
        }
    }
}

bool qn_onnx_scope_import(qn_onnx_scope *scope, const Onnx__Graph *graph)
{
    qn_onnx_import *im = scope->im;
    qn_loc loc = { .file = im->file };
    bool good = true;
    for (size_t i = 0; i < graph->n_initializer + graph->n_sparse_initializer; i++) {
        const qn_tensor *tensor;
        const char *name;
        bool strings = false;
        if (i < graph->n_initializer) {
            name = graph->initializer[i]->name;
            strings = graph->initializer[i]->data_type == QN_ONNX_STRING;
            tensor = strings ? qn_onnx_string_tensor(im, graph->initializer[i], &loc)
                             : qn_onnx_tensor(im, graph->initializer[i], &loc);
        } else {
            const Onnx__SparseTensor *sparse = graph->sparse_initializer[i - graph->n_initializer];
            name = sparse->values ? sparse->values->name : "";
            tensor = qn_onnx_sparse_tensor(im, sparse, &loc);
        }
        qn_onnx_value *v =
            tensor ? qn_onnx_value_constant(im, tensor) : qn_onnx_value_new(im, QN_ONNX_FAILED);
        v->strings = strings && tensor;
        v->learnable = tensor && qn_onnx_is_learnable(tensor);
        good &= tensor != NULL;
        good &= qn_onnx_scope_define(scope, name, v, &loc);
    }
    take_roles(scope, graph);
    const char **outputs = QN_NEW_ARRAY(im->arena, const char *, graph->n_output);
    for (size_t i = 0; i < graph->n_output; i++)
        outputs[i] = graph->output[i]->name;
    const qn_onnx_nodes nodes = {
        .n = graph->n_node, .nodes = graph->node, .n_outputs = graph->n_output, .outputs = outputs
    };
    return import_nodes(scope, nodes) && good;
}

qn_onnx_value *qn_onnx_scope_output(qn_onnx_scope *scope, const Onnx__Graph *graph, int i, const qn_loc *loc)
{
    const char *name = graph->output[i]->name;
    qn_onnx_value *v = qn_onnx_scope_find(scope, name);
    if (!v)
        qn_error(scope->im->diags, QUERN_ERROR_MODEL, loc, "the graph's output \"%s\" is computed by no node",
                 name);
    return v && v->kind != QN_ONNX_FAILED ? v : NULL;
}
