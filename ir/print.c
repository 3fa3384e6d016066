/* Prints modules, graphs and nodes in the text form (docs/text-form.md). */
#include "ir/print.h"

#include <inttypes.h>
#include <string.h>

#include "ir/literal.h"
#include "ir/text_ops.h"

enum { INDENT = 2, LINE = 100 };

typedef qn_printer printer;

static void indent(printer *p, int depth)
{
    for (int i = 0; i < depth * INDENT; i++)
        qn_strbuf_add(&p->out, " ", 1);
}

const char *qn_region_name(qn_op op, int i)
{
    switch (op) {
    case QN_OP_IF: return i == 0 ? "then" : "else";
    case QN_OP_WHILE: return i == 0 ? "condition" : "body";
    default: return "body";
    }
}

/* ---- names ---- */

static void print_function_name(printer *p, const char *name)
{
    qn_strbuf_puts(&p->out, "graph @");
    if (qn_name_is_plain(name))
        qn_strbuf_puts(&p->out, name);
    else
        qn_strbuf_quote(&p->out, name);
}

/* Is it one word for a lexer, so that it needs no quotes without a sigil in front? */
static bool is_word(const char *name)
{
    return qn_name_is_plain(name) && (*name == '_' || *name >= 'A') && !strchr(name, '/') &&
           !strstr(name, "..");
}

static void print_type(printer *p, const qn_type *type)
{
    qn_strbuf_puts(&p->out, qn_type_print(type, p->out.arena));
}

/* ---- tensors ---- */

static bool is_splat(const qn_tensor *tensor)
{
    size_t bytes = qn_dtype_bytes(tensor->type.dtype);
    const char *data = qn_tensor_data(tensor);
    return tensor->bytes > bytes && memcmp(data, data + bytes, tensor->bytes - bytes) == 0;
}

static const char *print_list(printer *p, const qn_tensor *tensor, int axis, const char *at)
{
    char literal[QN_LITERAL_MAX];
    if (axis == tensor->type.rank) {
        int length = qn_literal_print(tensor->type.dtype, at, literal);
        qn_strbuf_add(&p->out, literal, (size_t)length);
        return at + qn_dtype_bytes(tensor->type.dtype);
    }
    qn_strbuf_puts(&p->out, "[");
    /* Without elements the type says how many lists there would be. */
    int64_t n = tensor->bytes ? tensor->type.dims[axis]->value : 0;
    for (int64_t i = 0; i < n; i++) {
        if (i)
            qn_strbuf_puts(&p->out, ", ");
        at = print_list(p, tensor, axis + 1, at);
    }
    qn_strbuf_puts(&p->out, "]");
    return at;
}

static void remember_data(printer *p, const qn_tensor *tensor)
{
    for (size_t i = 0; i < p->data.n; i++)
        if (p->data.items[i] == tensor || qn_tensor_hash(p->data.items[i]) == qn_tensor_hash(tensor))
            return;
    qn_vec_push(p->out.arena, &p->data, tensor);
}

static const char *const roles[] = { "", " param", " state" };

void qn_print_tensor(qn_printer *p, const qn_tensor *tensor)
{
    if (p->options->no_contents) {
        qn_strbuf_puts(&p->out, "...");
        return;
    }
    char literal[QN_LITERAL_MAX];
    int64_t limit = p->options->inline_elements;
    size_t element = qn_dtype_bytes(tensor->type.dtype);
    bool fits = limit < 0 || tensor->bytes / element <= (size_t)limit;
    if (tensor->bytes <= QN_PRINT_MAX_SPLAT_BYTES && is_splat(tensor)) {
        int length = qn_literal_print(tensor->type.dtype, qn_tensor_data(tensor), literal);
        qn_strbuf_puts(&p->out, "splat ");
        qn_strbuf_add(&p->out, literal, (size_t)length);
    } else if (fits) {
        print_list(p, tensor, 0, qn_tensor_data(tensor));
    } else {
        remember_data(p, tensor);
        qn_strbuf_printf(&p->out, "$%016" PRIx64, qn_tensor_hash(tensor));
    }
    if (tensor->name) {
        qn_strbuf_puts(&p->out, " ");
        qn_strbuf_quote(&p->out, tensor->name);
        qn_strbuf_puts(&p->out, roles[tensor->role]);
    }
}

/* data $0123456789abcdef : f32[2, 3] = x"0000803f…": the bytes in order, as they lie in memory of a little-endian machine */
static void print_data(printer *p, const qn_tensor *tensor)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *data = qn_tensor_data(tensor);
    qn_strbuf_printf(&p->out, "data $%016" PRIx64 " : ", qn_tensor_hash(tensor));
    print_type(p, &tensor->type);
    qn_strbuf_puts(&p->out, " = x\"");
    for (size_t at = 0; at < tensor->bytes;) {
        char chunk[1024];
        size_t n = 0;
        for (; n < sizeof chunk && at < tensor->bytes; at++) {
            chunk[n++] = hex[data[at] >> 4];
            chunk[n++] = hex[data[at] & 15];
        }
        qn_strbuf_add(&p->out, chunk, n);
    }
    qn_strbuf_puts(&p->out, "\"\n");
}

void qn_print_data(qn_printer *p)
{
    if (!p->options->data || p->data.n == 0)
        return;
    qn_strbuf_puts(&p->out, "\n");
    for (size_t i = 0; i < p->data.n; i++)
        print_data(p, p->data.items[i]);
}

/* ---- attributes ---- */

static void print_attr_value(printer *p, const qn_attr *attr)
{
    char literal[QN_LITERAL_MAX];
    switch (qn_attrs[attr->key].kind) {
    case QN_ATTR_KIND_INT: qn_strbuf_printf(&p->out, "%" PRId64, attr->i); break;
    case QN_ATTR_KIND_FLOAT:
        qn_literal_print(QUERN_F64, &attr->f, literal);
        qn_strbuf_puts(&p->out, literal);
        break;
    case QN_ATTR_KIND_BOOL: qn_strbuf_puts(&p->out, attr->i ? "true" : "false"); break;
    case QN_ATTR_KIND_INTS:
    case QN_ATTR_KIND_DIMS:
        qn_strbuf_puts(&p->out, "[");
        for (int i = 0; i < attr->n; i++) {
            if (i)
                qn_strbuf_puts(&p->out, ", ");
            if (qn_attrs[attr->key].kind == QN_ATTR_KIND_INTS)
                qn_strbuf_printf(&p->out, "%" PRId64, attr->ints[i]);
            else
                qn_strbuf_puts(&p->out, qn_dim_print(attr->dims[i], p->out.arena));
        }
        qn_strbuf_puts(&p->out, "]");
        break;
    case QN_ATTR_KIND_DTYPE: qn_strbuf_puts(&p->out, qn_dtype_name((qn_dtype)attr->i)); break;
    case QN_ATTR_KIND_KIND: qn_strbuf_puts(&p->out, qn_kind_names[attr->i]); break;
    case QN_ATTR_KIND_DIRECTION: qn_strbuf_puts(&p->out, qn_direction_names[attr->i]); break;
    case QN_ATTR_KIND_STRING: qn_strbuf_quote(&p->out, attr->s); break;
    case QN_ATTR_KIND_TENSOR: qn_print_tensor(p, attr->tensor); break;
    }
}

static void print_attrs(printer *p, const qn_node *node)
{
    if (node->n_attrs == 0)
        return;
    for (int i = 0; i < node->n_attrs; i++) {
        qn_strbuf_printf(&p->out, "%s%s = ", i ? ", " : " {", qn_attrs[node->attrs[i].key].name);
        print_attr_value(p, &node->attrs[i]);
    }
    qn_strbuf_puts(&p->out, "}");
}

/* ---- nodes ---- */

static void print_loc(printer *p, const qn_loc *loc)
{
    if (!loc->node && !loc->op)
        return;
    qn_strbuf_puts(&p->out, " loc(");
    qn_strbuf_quote(&p->out, loc->node ? loc->node : "");
    if (loc->op) {
        qn_strbuf_puts(&p->out, ", ");
        qn_strbuf_quote(&p->out, loc->op);
    }
    qn_strbuf_puts(&p->out, ")");
}

/* Everything but the regions: `%y = relu %x : f32[4]`, `%c = constant [1, 2] : i64[2]`. */
static void print_node_line(printer *p, const qn_node *node, const qn_names *names)
{
    for (int i = 0; i < node->n_results; i++)
        qn_strbuf_printf(&p->out, "%s%s", i ? ", " : "", qn_names_get(names, &node->results[i]));
    qn_strbuf_printf(&p->out, "%s%s", node->n_results ? " = " : "", qn_ops[node->op].name);
    for (int i = 0; i < node->n_operands; i++)
        qn_strbuf_printf(&p->out, "%s%s", i ? ", " : " ", qn_names_get(names, node->operands[i]));
    if (node->op == QN_OP_CONSTANT && node->n_attrs == 1) {
        qn_strbuf_puts(&p->out, " ");
        print_attr_value(p, &node->attrs[0]);
    } else {
        print_attrs(p, node);
    }
    qn_strbuf_puts(&p->out, " : ");
    for (int i = 0; i < node->n_results; i++) {
        if (i)
            qn_strbuf_puts(&p->out, ", ");
        print_type(p, &node->results[i].type);
    }
    if (node->n_results == 0)
        qn_strbuf_puts(&p->out, "()");
    print_loc(p, &node->loc);
}

static void print_body(printer *p, const qn_graph *graph, const qn_names *names, int depth);

static void print_region(printer *p, const qn_graph *region, const char *word, int depth)
{
    const qn_names *names = qn_names_new(region, p->out.arena);
    indent(p, depth);
    qn_strbuf_printf(&p->out, "%s (", word);
    for (int i = 0; i < region->n_inputs; i++) {
        qn_strbuf_printf(&p->out, "%s%s: ", i ? ", " : "", qn_names_get(names, region->inputs[i]));
        print_type(p, &region->inputs[i]->type);
    }
    qn_strbuf_puts(&p->out, ") {\n");
    print_body(p, region, names, depth + 1);
    indent(p, depth);
    qn_strbuf_puts(&p->out, "}\n");
}

static void print_body(printer *p, const qn_graph *graph, const qn_names *names, int depth)
{
    QN_FOR_NODES (graph, node) {
        indent(p, depth);
        print_node_line(p, node, names);
        qn_strbuf_puts(&p->out, "\n");
        for (int i = 0; i < node->n_regions; i++)
            print_region(p, node->regions[i], qn_region_name(node->op, i), depth + 1);
    }
    indent(p, depth);
    qn_strbuf_puts(&p->out, "return");
    for (int i = 0; i < graph->n_outputs; i++)
        qn_strbuf_printf(&p->out, "%s%s", i ? ", " : " ", qn_names_get(names, graph->outputs[i]));
    qn_strbuf_puts(&p->out, "\n");
}

/* ---- functions ---- */

/* "(a, b, c)" in one line, or one item a line where that would be too long; the line began at `line_start`. */
static void print_items(printer *p, size_t line_start, int n, const char *const *items)
{
    size_t length = p->out.n - line_start;
    for (int i = 0; i < n; i++)
        length += strlen(items[i]) + 2;
    bool broken = length > LINE;
    qn_strbuf_puts(&p->out, "(");
    for (int i = 0; i < n; i++) {
        if (broken)
            qn_strbuf_puts(&p->out, "\n    ");
        qn_strbuf_printf(&p->out, "%s%s", items[i], i + 1 == n ? "" : broken ? "," : ", ");
    }
    qn_strbuf_puts(&p->out, ")");
}

/* One item of a signature; written to a buffer of its own. */
static const char *input_text(printer *p, const qn_graph *graph, int i, const qn_names *names)
{
    qn_strbuf whole = p->out;
    p->out = (qn_strbuf){ .arena = whole.arena };
    qn_strbuf_printf(&p->out, "%s: ", qn_names_get(names, graph->inputs[i]));
    print_type(p, &graph->inputs[i]->type);
    if (graph->input_roles)
        qn_strbuf_puts(&p->out, roles[graph->input_roles[i]]);
    if (graph->input_initial && graph->input_initial[i]) {
        qn_strbuf_puts(&p->out, " = ");
        qn_print_tensor(p, graph->input_initial[i]);
    }
    const char *text = qn_strbuf_text(&p->out);
    p->out = whole;
    return text;
}

static const char *output_text(printer *p, const qn_graph *graph, int i, const qn_names *names)
{
    qn_strbuf whole = p->out;
    p->out = (qn_strbuf){ .arena = whole.arena };
    if (graph->output_names && graph->output_names[i]) {
        if (is_word(graph->output_names[i]))
            qn_strbuf_puts(&p->out, graph->output_names[i]);
        else
            qn_strbuf_quote(&p->out, graph->output_names[i]);
        qn_strbuf_puts(&p->out, ": ");
    }
    print_type(p, &graph->outputs[i]->type);
    if (graph->aliases && graph->aliases[i] >= 0 && graph->aliases[i] < graph->n_inputs)
        qn_strbuf_printf(&p->out, " alias %s", qn_names_get(names, graph->inputs[graph->aliases[i]]));
    const char *text = qn_strbuf_text(&p->out);
    p->out = whole;
    return text;
}

/* graph @f(%x: f32[n, 4], %w: f32[4] param = $1c…) -> (y: f32[n], w: f32[4] alias %w) { */
static void print_function(printer *p, const qn_graph *graph)
{
    const qn_names *names = qn_names_new(graph, p->out.arena);
    int most = graph->n_inputs > graph->n_outputs ? graph->n_inputs : graph->n_outputs;
    const char **items = QN_NEW_ARRAY(p->out.arena, const char *, most);
    size_t line_start = p->out.n;
    if (graph->name)
        print_function_name(p, graph->name);
    else
        qn_strbuf_puts(&p->out, "graph @?"); /* a region on its own */
    for (int i = 0; i < graph->n_inputs; i++)
        items[i] = input_text(p, graph, i, names);
    print_items(p, line_start, graph->n_inputs, items);
    qn_strbuf_puts(&p->out, " -> ");
    line_start = p->out.n;
    for (int i = 0; i < graph->n_outputs; i++)
        items[i] = output_text(p, graph, i, names);
    bool bare = graph->n_outputs == 1 && !(graph->output_names && graph->output_names[0]) &&
                !(graph->aliases && graph->aliases[0] >= 0);
    if (bare)
        qn_strbuf_puts(&p->out, items[0]);
    else
        print_items(p, line_start, graph->n_outputs, items);
    qn_strbuf_puts(&p->out, " {\n");
    print_body(p, graph, names, 1);
    qn_strbuf_puts(&p->out, "}\n");
}

void qn_print_symbols(qn_printer *p, const qn_dims *dims, int from, int to)
{
    for (int i = from; i < to; i++) {
        qn_dim symbol = qn_dims_symbol_at(dims, i);
        qn_strbuf_printf(&p->out, "%s%s: %" PRId64 "..", i > from ? ", " : "",
                         qn_dim_print(symbol, p->out.arena), symbol->min);
        if (symbol->max != QN_DIM_MAX_VALUE)
            qn_strbuf_printf(&p->out, "%" PRId64, symbol->max);
    }
}

static void print_dims(printer *p, const qn_module *module)
{
    const int n_symbols = qn_dims_symbol_count(module->dims);
    if (n_symbols > 0) {
        qn_strbuf_puts(&p->out, "dims ");
        qn_print_symbols(p, module->dims, 0, n_symbols);
        qn_strbuf_puts(&p->out, "\n");
    }
}

/* strings "", "yes": what ops on text have the numbers of; else they are only names for numbers, which hosts know. */
static void print_strings(printer *p, const qn_module *module)
{
    bool text = false;
    for (int i = 0; i < module->n_functions; i++)
        text |= qn_text_in(module->functions[i]);
    for (size_t i = 0; text && i < module->strings.n; i++) {
        qn_strbuf_puts(&p->out, i ? ", " : "strings ");
        qn_strbuf_quote(&p->out, module->strings.items[i]);
    }
    if (p->out.n)
        qn_strbuf_puts(&p->out, "\n");
}

const char *qn_graph_print_as(const qn_graph *graph, const qn_print_options *options, qn_arena *arena)
{
    printer p = { .out = { .arena = arena }, .options = options };
    print_dims(&p, graph->module);
    print_function(&p, graph);
    return qn_strbuf_text(&p.out);
}

const char *qn_module_print_as(const qn_module *module, const qn_print_options *options, qn_arena *arena)
{
    printer p = { .out = { .arena = arena }, .options = options };
    print_strings(&p, module);
    print_dims(&p, module);
    for (int i = 0; i < module->n_functions; i++) {
        if (p.out.n)
            qn_strbuf_puts(&p.out, "\n");
        print_function(&p, module->functions[i]);
    }
    qn_print_data(&p);
    return qn_strbuf_text(&p.out);
}

static const qn_print_options with_data = { .inline_elements = QN_PRINT_INLINE_ELEMENTS, .data = true };
static const qn_print_options without_data = { .inline_elements = QN_PRINT_INLINE_ELEMENTS };

const char *qn_module_print(const qn_module *module, qn_arena *arena)
{
    return qn_module_print_as(module, &with_data, arena);
}

const char *qn_graph_print(const qn_graph *graph, qn_arena *arena)
{
    printer p = { .out = { .arena = arena }, .options = &without_data };
    print_function(&p, graph);
    return qn_strbuf_text(&p.out);
}
