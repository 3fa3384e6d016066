/* Reads the bodies of functions and regions. */
#include <string.h>

#include "frontend/text/parser.h"
#include "ir/print.h"

typedef qn_vec(qn_value *) value_vec;
typedef qn_vec(qn_token) token_vec;
typedef qn_vec(qn_type) type_vec;

const char *qn_parse_value_key(qn_parser *p, const qn_token *token)
{
    return token->kind == QN_TOKEN_NUMBERED ? token->text : qn_arena_printf(p->arena, "%%%s", token->text);
}

static bool at_value(const qn_parser *p)
{
    return p->token.kind == QN_TOKEN_VALUE || p->token.kind == QN_TOKEN_NUMBERED;
}

/* `%a, %b` as far as it goes; none is fine. */
static qn_status parse_operands(qn_parser *p, const qn_map *scope, value_vec *out)
{
    if (!at_value(p))
        return QUERN_OK;
    do {
        if (!at_value(p))
            return qn_parser_expected(p, "a value (%name)");
        qn_value *value = qn_map_get(scope, qn_parse_value_key(p, &p->token));
        if (!value)
            return qn_parser_error(p, &p->token, "nothing above defines %%%s in this graph", p->token.text);
        qn_vec_push(p->arena, out, value);
        qn_parser_next(p);
    } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    return QUERN_OK;
}

/* `%a, %b =`; also for none of it. */
static qn_status parse_results(qn_parser *p, const qn_map *scope, token_vec *out)
{
    if (!at_value(p))
        return QUERN_OK;
    do {
        if (!at_value(p))
            return qn_parser_expected(p, "a result (%name)");
        if (qn_map_get(scope, qn_parse_value_key(p, &p->token)))
            return qn_parser_error(p, &p->token, "there is a %%%s already in this graph", p->token.text);
        qn_vec_push(p->arena, out, p->token);
        qn_parser_next(p);
    } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    return qn_parser_expect(p, QN_TOKEN_EQUALS, "',' or '='");
}

static qn_status parse_op(qn_parser *p, qn_op *out_op)
{
    const char *names[QN_N_OPS];
    if (p->token.kind != QN_TOKEN_WORD)
        return qn_parser_expected(p, "the name of an op");
    *out_op = qn_op_parse(p->token.text, p->token.length);
    if (*out_op == QN_N_OPS) {
        for (int i = 0; i < QN_N_OPS; i++)
            names[i] = qn_ops[i].name;
        return qn_parser_error(p, &p->token, "there is no op '%.*s'%s", (int)p->token.length, p->token.text,
                               qn_parser_suggest(p, &p->token, names, QN_N_OPS));
    }
    qn_parser_next(p);
    return QUERN_OK;
}

/* `: f32[2], i64[2]` or `: ()` */
static qn_status parse_result_types(qn_parser *p, type_vec *out)
{
    QN_TRY(qn_parser_expect(p, QN_TOKEN_COLON, "':' and the types of the results"));
    if (qn_parser_accept(p, QN_TOKEN_LPAREN))
        return qn_parser_expect(p, QN_TOKEN_RPAREN, "')'");
    do {
        qn_type type;
        QN_TRY(qn_parse_type(p, &type));
        qn_vec_push(p->arena, out, type);
    } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    return QUERN_OK;
}

/* `loc("node", "op")` where there is one. */
static qn_status parse_loc(qn_parser *p, qn_loc *loc)
{
    if (!qn_parser_accept_word(p, "loc"))
        return QUERN_OK;
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LPAREN, "'('"));
    qn_token node = p->token, op = { 0 };
    QN_TRY(qn_parser_expect(p, QN_TOKEN_STRING, "the name of a node as a string"));
    if (qn_parser_accept(p, QN_TOKEN_COMMA)) {
        op = p->token;
        QN_TRY(qn_parser_expect(p, QN_TOKEN_STRING, "the name of an op as a string"));
    }
    loc->node = node.length ? node.text : NULL;
    loc->op = op.text;
    return qn_parser_expect(p, QN_TOKEN_RPAREN, "')'");
}

static qn_status parse_nodes(qn_parser *p, qn_graph *graph, qn_map *scope, value_vec *out_returned);

/* `then (%a: f32[4]) { … }` */
static qn_status parse_region(qn_parser *p, const char *word, qn_graph **out_region)
{
    qn_token start = p->token;
    if (!qn_parser_accept_word(p, word))
        return qn_parser_expected(p, qn_arena_printf(p->arena, "%s (inputs) { … }", word));
    if (p->nesting == QN_TEXT_MAX_NESTING)
        return qn_parser_error(p, &start, "regions may be nested %d deep", QN_TEXT_MAX_NESTING);
    qn_graph *region = qn_region_new(p->module);
    qn_map scope = { 0 };
    value_vec returned = { 0 };
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LPAREN, "'(' and the inputs of the region"));
    if (!qn_parser_accept(p, QN_TOKEN_RPAREN)) {
        do {
            qn_token name = p->token;
            qn_type type;
            if (!at_value(p))
                return qn_parser_expected(p, "an input (%name: type) or ')'");
            qn_parser_next(p);
            void **slot = qn_map_at(&scope, qn_parse_value_key(p, &name), p->arena);
            if (*slot)
                return qn_parser_error(p, &name, "there is an input %%%s already", name.text);
            QN_TRY(qn_parser_expect(p, QN_TOKEN_COLON, "':' and the type of the input"));
            QN_TRY(qn_parse_type(p, &type));
            *slot = qn_graph_add_input(region, name.kind == QN_TOKEN_VALUE ? name.text : NULL, type,
                                       QN_ROLE_INPUT);
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
        QN_TRY(qn_parser_expect(p, QN_TOKEN_RPAREN, "',' or ')'"));
    }
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LBRACE, "'{' and the body of the region"));
    p->nesting++;
    qn_status status = parse_nodes(p, region, &scope, &returned);
    p->nesting--;
    for (size_t i = 0; i < returned.n; i++)
        qn_graph_add_output(region, returned.items[i], NULL, -1);
    *out_region = region;
    return status;
}

/* The body of a callee must be read before the call: its outputs give the call its types. */
static qn_status prepare_call(qn_parser *p, const qn_token *at, const qn_attr *attr)
{
    qn_text_function *callee = qn_map_get(&p->functions, attr->s);
    if (!callee)
        return qn_parser_error(p, at, "there is no graph @%s to call", attr->s);
    if (callee->state == QN_BODY_DONE)
        return QUERN_OK;
    if (callee->state == QN_BODY_RUNS)
        return qn_parser_error(p, at, "@%s calls itself here, which no graph may", attr->s);
    if (callee->state == QN_BODY_FAILED)
        return QUERN_ERROR_MODEL;
    if (p->calls == QN_TEXT_MAX_CALLS)
        return qn_parser_error(p, at, "more than %d calls of graphs further down lead here",
                               QN_TEXT_MAX_CALLS);
    qn_lexer place = qn_parser_place(p);
    int nesting = p->nesting;
    p->calls++;
    p->nesting = 0;
    qn_status status = qn_parse_function_body(p, callee);
    p->nesting = nesting;
    p->calls--;
    qn_parser_seek(p, &place);
    return status;
}

static int region_count(qn_op op)
{
    return op == QN_OP_IF || op == QN_OP_WHILE ? 2 : op == QN_OP_SCAN ? 1 : 0;
}

static qn_status check_results(qn_parser *p, const qn_token *start, const qn_node *node,
                               const type_vec *types, const token_vec *names)
{
    if (names->n != (size_t)node->n_results)
        return qn_parser_error(p, start, "%s has %d results here, the text names %zu", qn_ops[node->op].name,
                               node->n_results, names->n);
    for (int i = 0; i < node->n_results; i++)
        if (!qn_type_equal(&node->results[i].type, &types->items[i]))
            return qn_parser_error(p, start, "result %d of %s is %s, but the text says %s", i,
                                   qn_ops[node->op].name, qn_type_print(&node->results[i].type, p->arena),
                                   qn_type_print(&types->items[i], p->arena));
    return QUERN_OK;
}

/* `%y = relu %x : f32[4] loc("…")` with its regions. */
static qn_status parse_node(qn_parser *p, qn_graph *graph, qn_map *scope)
{
    qn_token start = p->token;
    token_vec names = { 0 };
    value_vec operands = { 0 };
    type_vec types = { 0 };
    qn_op op;
    qn_attr *attrs = NULL, value;
    int n_attrs = 0;
    qn_graph *regions[2];
    qn_loc loc = qn_parser_loc(p, &start);
    qn_lexer constant = { 0 };
    QN_TRY(parse_results(p, scope, &names));
    qn_token op_token = p->token;
    QN_TRY(parse_op(p, &op));
    QN_TRY(parse_operands(p, scope, &operands));
    if (op == QN_OP_CONSTANT) {
        constant = qn_parser_place(p); /* read when its type is known */
        QN_TRY(qn_parse_skip_tensor(p));
    } else if (p->token.kind == QN_TOKEN_LBRACE) {
        QN_TRY(qn_parse_attrs(p, op, &n_attrs, &attrs));
    }
    QN_TRY(parse_result_types(p, &types));
    QN_TRY(parse_loc(p, &loc));
    if (names.n != types.n)
        return qn_parser_error(p, &start, "%zu results are named, but %zu have a type", names.n, types.n);
    if (op == QN_OP_CONSTANT) {
        if (types.n != 1)
            return qn_parser_error(p, &start, "a constant is one result");
        qn_lexer behind = qn_parser_place(p);
        qn_parser_seek(p, &constant);
        value = (qn_attr){ .key = QN_ATTR_VALUE };
        QN_TRY(qn_parse_tensor(p, &types.items[0], &value.tensor));
        qn_parser_seek(p, &behind);
        attrs = &value;
        n_attrs = 1;
    }
    if (op == QN_OP_CALL && n_attrs == 1)
        QN_TRY(prepare_call(p, &op_token, &attrs[0]));
    for (int i = 0; i < region_count(op); i++)
        QN_TRY(parse_region(p, qn_region_name(op, i), &regions[i]));
    qn_node *node = qn_node_new(graph, NULL, op, (int)operands.n, operands.items, n_attrs, attrs,
                                region_count(op), regions, &loc, p->diags);
    if (!node)
        return QUERN_ERROR_MODEL;
    QN_TRY(check_results(p, &start, node, &types, &names));
    for (size_t i = 0; i < names.n; i++) {
        void **slot = qn_map_at(scope, qn_parse_value_key(p, &names.items[i]), p->arena);
        if (*slot)
            return qn_parser_error(p, &names.items[i], "two results are called %%%s", names.items[i].text);
        *slot = &node->results[i];
        if (names.items[i].kind == QN_TOKEN_VALUE)
            node->results[i].name = names.items[i].text;
    }
    return QUERN_OK;
}

/* Up to and with `return … }`. */
static qn_status parse_nodes(qn_parser *p, qn_graph *graph, qn_map *scope, value_vec *out_returned)
{
    while (!qn_parser_at_word(p, "return")) {
        if (p->token.kind == QN_TOKEN_RBRACE || p->token.kind == QN_TOKEN_END)
            return qn_parser_expected(p, "a node or return");
        QN_TRY(parse_node(p, graph, scope));
    }
    qn_parser_next(p);
    QN_TRY(parse_operands(p, scope, out_returned));
    return qn_parser_expect(p, QN_TOKEN_RBRACE, "'}' behind return");
}

static qn_status parse_function(qn_parser *p, qn_text_function *function)
{
    value_vec returned = { 0 };
    qn_parser_seek(p, &function->body);
    QN_TRY(parse_nodes(p, function->graph, &function->scope, &returned));
    if (returned.n != (size_t)function->n_outputs)
        return qn_parser_error(p, &function->name, "graph @%s has %d outputs, but it returns %zu values",
                               function->name.text, function->n_outputs, returned.n);
    for (int i = 0; i < function->n_outputs; i++) {
        if (!qn_type_equal(&returned.items[i]->type, &function->output_types[i]))
            return qn_parser_error(p, &function->name, "output %d of graph @%s is %s, but it returns %s", i,
                                   function->name.text, qn_type_print(&function->output_types[i], p->arena),
                                   qn_type_print(&returned.items[i]->type, p->arena));
        qn_graph_add_output(function->graph, returned.items[i], function->output_names[i],
                            function->output_aliases[i]);
    }
    return QUERN_OK;
}

qn_status qn_parse_function_body(qn_parser *p, qn_text_function *function)
{
    if (function->state != QN_BODY_WAITS) /* read for a call, and reported if it was wrong */
        return function->state == QN_BODY_DONE ? QUERN_OK : QUERN_ERROR_MODEL;
    function->state = QN_BODY_RUNS;
    qn_status status = parse_function(p, function);
    function->state = status ? QN_BODY_FAILED : QN_BODY_DONE;
    return status;
}
