/* Reads modules: dims, data, and the signatures of functions first, then their bodies, so that a call may name a
 * function further down. */
#include "frontend/text/parser.h"

#include <stdarg.h>
#include <string.h>

#include "frontend/text/text.h"

/* ---- tokens and messages ---- */

void qn_parser_next(qn_parser *p)
{
    p->token = qn_lexer_next(&p->lexer);
}

void qn_parser_seek(qn_parser *p, const qn_lexer *place)
{
    p->lexer = *place;
    qn_parser_next(p);
}

qn_lexer qn_parser_place(const qn_parser *p)
{
    qn_lexer place = p->lexer;
    place.cursor = p->token.start;
    place.line = p->token.line;
    place.line_start = p->token.start - (p->token.column - 1);
    return place;
}

qn_loc qn_parser_loc(const qn_parser *p, const qn_token *token)
{
    return (qn_loc){ .file = p->file, .line = token->line, .column = token->column };
}

qn_status qn_parser_error(qn_parser *p, const qn_token *token, const char *format, ...)
{
    qn_loc loc = qn_parser_loc(p, token);
    if (token->kind == QN_TOKEN_BAD)
        return qn_error(p->diags, QUERN_ERROR_MODEL, &loc, "%s", token->text);
    va_list args;
    va_start(args, format);
    const char *text = qn_arena_vprintf(p->arena, format, args);
    va_end(args);
    return qn_error(p->diags, QUERN_ERROR_MODEL, &loc, "%s", text);
}

qn_status qn_parser_expected(qn_parser *p, const char *what)
{
    enum { LONGEST = 40 };
    size_t length = (size_t)(p->token.end - p->token.start);
    if (p->token.kind == QN_TOKEN_END)
        return qn_parser_error(p, &p->token, "expected %s, found the end of the text", what);
    return qn_parser_error(p, &p->token, "expected %s, found '%.*s'%s", what,
                           (int)(length < LONGEST ? length : LONGEST), p->token.start,
                           length < LONGEST ? "" : "…");
}

bool qn_parser_accept(qn_parser *p, qn_token_kind kind)
{
    if (p->token.kind != kind)
        return false;
    qn_parser_next(p);
    return true;
}

qn_status qn_parser_expect(qn_parser *p, qn_token_kind kind, const char *what)
{
    return qn_parser_accept(p, kind) ? QUERN_OK : qn_parser_expected(p, what);
}

bool qn_parser_at_word(const qn_parser *p, const char *word)
{
    return p->token.kind == QN_TOKEN_WORD && strlen(word) == p->token.length &&
           memcmp(word, p->token.text, p->token.length) == 0;
}

bool qn_parser_accept_word(qn_parser *p, const char *word)
{
    if (!qn_parser_at_word(p, word))
        return false;
    qn_parser_next(p);
    return true;
}

qn_input_role qn_parser_accept_role(qn_parser *p)
{
    return qn_parser_accept_word(p, "param")   ? QN_ROLE_PARAM
           : qn_parser_accept_word(p, "state") ? QN_ROLE_STATE
                                               : QN_ROLE_INPUT;
}

const char *qn_parser_suggest(qn_parser *p, const qn_token *token, const char *const *words, int n)
{
    const char *best = qn_nearest_word(token->text, token->length, words, n);
    return best ? qn_arena_printf(p->arena, ", did you mean '%s'?", best) : "";
}

/* ---- functions ---- */

/* `%w: f32[64, 10] param = $label` */
static qn_status parse_input(qn_parser *p, qn_text_function *function)
{
    qn_token name = p->token;
    if (name.kind != QN_TOKEN_VALUE && name.kind != QN_TOKEN_NUMBERED)
        return qn_parser_expected(p, "an input (%name: type) or ')'");
    qn_parser_next(p);
    void **slot = qn_map_at(&function->scope, qn_parse_value_key(p, &name), p->arena);
    if (*slot)
        return qn_parser_error(p, &name, "there is an input %%%s already", name.text);
    qn_type type;
    QN_TRY(qn_parser_expect(p, QN_TOKEN_COLON, "':' and the type of the input"));
    QN_TRY(qn_parse_type(p, &type));
    const qn_input_role role = qn_parser_accept_role(p);
    const qn_tensor *initial = NULL;
    if (p->token.kind == QN_TOKEN_EQUALS) {
        if (role == QN_ROLE_INPUT)
            return qn_parser_error(p, &p->token, "only an input that is param or state has initial contents");
        qn_parser_next(p);
        QN_TRY(qn_parse_tensor(p, &type, &initial));
    }
    *slot = qn_graph_add_input(function->graph, name.kind == QN_TOKEN_VALUE ? name.text : NULL, type, role);
    if (initial)
        function->graph->input_initial[function->graph->n_inputs - 1] = initial;
    return QUERN_OK;
}

/* `y: f32[n] alias %w`; the name may be a word or a string, or absent. */
static qn_status parse_output(qn_parser *p, qn_text_function *function, qn_type *out_type,
                              const char **out_name, int *out_alias)
{
    qn_token name = p->token;
    qn_lexer place = qn_parser_place(p);
    *out_name = NULL;
    *out_alias = -1;
    qn_parser_next(p);
    if (p->token.kind == QN_TOKEN_COLON && (name.kind == QN_TOKEN_WORD || name.kind == QN_TOKEN_STRING)) {
        *out_name = qn_arena_printf(p->arena, "%.*s", (int)name.length, name.text);
        qn_parser_next(p);
    } else {
        qn_parser_seek(p, &place);
    }
    QN_TRY(qn_parse_type(p, out_type));
    if (!qn_parser_accept_word(p, "alias"))
        return QUERN_OK;
    qn_value *input = NULL;
    if (p->token.kind == QN_TOKEN_VALUE || p->token.kind == QN_TOKEN_NUMBERED)
        input = qn_map_get(&function->scope, qn_parse_value_key(p, &p->token));
    if (!input)
        return qn_parser_expected(p, "the input that this output updates");
    *out_alias = input->index;
    qn_parser_next(p);
    return QUERN_OK;
}

static qn_status parse_outputs(qn_parser *p, qn_text_function *function)
{
    qn_vec(qn_type) types = { 0 };
    qn_vec(const char *) names = { 0 };
    qn_vec(int) aliases = { 0 };
    bool list = qn_parser_accept(p, QN_TOKEN_LPAREN);
    if (!list || !qn_parser_accept(p, QN_TOKEN_RPAREN)) {
        do {
            qn_type type;
            const char *name;
            int alias;
            QN_TRY(parse_output(p, function, &type, &name, &alias));
            qn_vec_push(p->arena, &types, type);
            qn_vec_push(p->arena, &names, name);
            qn_vec_push(p->arena, &aliases, alias);
        } while (list && qn_parser_accept(p, QN_TOKEN_COMMA));
        if (list)
            QN_TRY(qn_parser_expect(p, QN_TOKEN_RPAREN, "',' or ')'"));
    }
    function->n_outputs = (int)types.n;
    function->output_types = types.items;
    function->output_names = names.items;
    function->output_aliases = aliases.items;
    return QUERN_OK;
}

/* Up to and with the '}' that closes what is open. */
static qn_status skip_body(qn_parser *p)
{
    for (int depth = 1; depth > 0; qn_parser_next(p)) {
        if (p->token.kind == QN_TOKEN_END || p->token.kind == QN_TOKEN_BAD)
            return qn_parser_expected(p, "'}'");
        depth += (p->token.kind == QN_TOKEN_LBRACE) - (p->token.kind == QN_TOKEN_RBRACE);
    }
    return QUERN_OK;
}

static qn_status parse_signature(qn_parser *p)
{
    qn_parser_next(p);
    qn_token name = p->token;
    QN_TRY(qn_parser_expect(p, QN_TOKEN_FUNCTION, "the name of the graph (@name)"));
    void **slot = qn_map_at(&p->functions, name.text, p->arena);
    if (*slot)
        return qn_parser_error(p, &name, "there is a graph @%s already", name.text);
    qn_text_function *function = QN_NEW(p->arena, qn_text_function);
    *slot = function;
    function->name = name;
    function->graph = qn_function_new(p->module, name.text);
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LPAREN, "'(' and the inputs"));
    if (!qn_parser_accept(p, QN_TOKEN_RPAREN)) {
        do {
            QN_TRY(parse_input(p, function));
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
        QN_TRY(qn_parser_expect(p, QN_TOKEN_RPAREN, "',' or ')'"));
    }
    QN_TRY(qn_parser_expect(p, QN_TOKEN_ARROW, "'->' and the outputs"));
    QN_TRY(parse_outputs(p, function));
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LBRACE, "'{' and the body of the graph"));
    function->body = qn_parser_place(p);
    return skip_body(p);
}

/* ---- modules ---- */

qn_status qn_parse_symbol(qn_parser *p, qn_dim *out_symbol)
{
    int64_t min, max = QN_DIM_MAX_VALUE;
    qn_token name = p->token;
    QN_TRY(qn_parse_new_symbol(p, out_symbol));
    QN_TRY(qn_parser_expect(p, QN_TOKEN_COLON, "':' and the range of the dimension"));
    QN_TRY(qn_parse_i64(p, "the least value of the dimension", &min));
    QN_TRY(qn_parser_expect(p, QN_TOKEN_RANGE, "'..'"));
    if (p->token.kind == QN_TOKEN_NUMBER)
        QN_TRY(qn_parse_i64(p, "the greatest value of the dimension", &max));
    if (min < 0 || max < min || max > QN_DIM_MAX_VALUE)
        return qn_parser_error(p, &name, "a dimension is at least 0, at most %lld, and its range isn't empty",
                               (long long)QN_DIM_MAX_VALUE);
    qn_dim_set_range(p->module->dims, *out_symbol, min, max);
    return QUERN_OK;
}

/* dims batch: 1..64, n: 0.. */
static qn_status parse_symbols(qn_parser *p)
{
    qn_dim symbol;
    qn_parser_next(p);
    do {
        QN_TRY(qn_parse_symbol(p, &symbol));
    } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    return QUERN_OK;
}

/* strings "", "yes" */
static qn_status parse_strings(qn_parser *p)
{
    qn_parser_next(p);
    do {
        const char *text = p->token.text;
        QN_TRY(qn_parser_expect(p, QN_TOKEN_STRING, "a string"));
        qn_vec_push(p->arena, &p->module->strings, text);
    } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    return QUERN_OK;
}

static qn_status parse_outlines(qn_parser *p)
{
    while (p->token.kind != QN_TOKEN_END) {
        if (qn_parser_at_word(p, "graph"))
            QN_TRY(parse_signature(p));
        else if (qn_parser_at_word(p, "dims"))
            QN_TRY(parse_symbols(p));
        else if (qn_parser_at_word(p, "data"))
            QN_TRY(qn_parse_data(p));
        else if (qn_parser_at_word(p, "strings"))
            QN_TRY(parse_strings(p));
        else
            return qn_parser_expected(p, "graph, dims, strings or data");
    }
    return qn_parse_end_data(p);
}

static qn_status parse_module(qn_parser *p)
{
    qn_status first = QUERN_OK;
    qn_parser_next(p);
    QN_TRY(parse_outlines(p));
    for (int i = 0; i < p->module->n_functions; i++) {
        qn_status status =
            qn_parse_function_body(p, qn_map_get(&p->functions, p->module->functions[i]->name));
        first = first ? first : status;
    }
    return first ? first : qn_verify(p->module, p->diags);
}

qn_status qn_text_parse(const char *text, size_t length, const char *file, qn_module **out_module,
                        qn_diags *diags)
{
    *out_module = NULL;
    qn_module *module = qn_module_new(file ? file : "");
    qn_arena *arena = module->arena;
    qn_parser p = { .lexer = qn_lexer_of(text, length, arena),
                    .file = module->name,
                    .module = module,
                    .arena = arena,
                    .diags = diags };
    qn_status status = parse_module(&p);
    if (status)
        qn_module_free(module);
    else
        *out_module = module;
    return status;
}
