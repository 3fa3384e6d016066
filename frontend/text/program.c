/* Reads programs: the text that ir/program_print.c writes. Only the form is checked here; what it means is verified at the
 * end, with the places in the text that buffers and steps remember. */
#include <limits.h>
#include <stdlib.h>

#include "frontend/text/parser.h"
#include "frontend/text/text.h"
#include "ir/literal.h"
#include "ir/text_ops.h"

enum { MAX_LOOPS = 1 << 16 };

typedef struct reader {
    qn_parser *parser;
    qn_program *program;
} reader;

/* ---- words ---- */

static qn_status parse_count(qn_parser *p, const char *what, int *out)
{
    const qn_token start = p->token;
    int64_t value;
    QN_TRY(qn_parse_i64(p, what, &value));
    if (value < 0 || value > INT_MAX)
        return qn_parser_error(p, &start, "expected %s from 0 to %d", what, INT_MAX);
    *out = (int)value;
    return QUERN_OK;
}

/* A number that goes up by one from line to line, for people; `next` is what it must be. */
static qn_status parse_number(qn_parser *p, const char *what, int next)
{
    const qn_token start = p->token;
    int value;
    QN_TRY(parse_count(p, what, &value));
    return value == next ? QUERN_OK : qn_parser_error(p, &start, "the next %s is %d", what, next);
}

/* The name behind something, or NULL. */
static const char *parse_name(qn_parser *p)
{
    const char *name = p->token.kind == QN_TOKEN_STRING ? p->token.text : NULL;
    if (name)
        qn_parser_next(p);
    return name;
}

/* A dimension of symbols that `dims` and `bound` have named. */
static qn_status parse_dim(reader *r, qn_dim *out)
{
    qn_parser *p = r->parser;
    const qn_token start = p->token;
    const int n = qn_dims_symbol_count(r->program->dims);
    QN_TRY(qn_parse_dim(p, out));
    if (qn_dims_symbol_count(r->program->dims) > n)
        return qn_parser_error(p, &start, "no line of dims or bound names %s",
                               qn_dim_print(qn_dims_symbol_at(r->program->dims, n), p->arena));
    return QUERN_OK;
}

/* %3: a buffer that stands above. */
static qn_status parse_buffer(reader *r, int *out)
{
    qn_parser *p = r->parser;
    int64_t number = -1;
    if (p->token.kind != QN_TOKEN_NUMBERED)
        return qn_parser_expected(p, "a buffer (%number)");
    if (!qn_literal_parse(QUERN_I64, p->token.text, p->token.length, &number) || number < 0 ||
        number >= r->program->n_buffers)
        return qn_parser_error(p, &p->token, "there is no %%%s above", p->token.text);
    *out = (int)number;
    qn_parser_next(p);
    return QUERN_OK;
}

/* ---- what the entry takes ---- */

static qn_status parse_symbols(reader *r)
{
    qn_parser *p = r->parser;
    qn_program *program = r->program;
    qn_vec(qn_dim) limits = { 0 };
    qn_dim symbol, limit;
    while (qn_parser_accept_word(p, "dims"))
        do {
            QN_TRY(qn_parse_symbol(p, &symbol));
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    program->n_entry_symbols = qn_dims_symbol_count(program->dims);
    while (qn_parser_accept_word(p, "bound")) {
        QN_TRY(qn_parse_symbol(p, &symbol));
        if (!qn_parser_accept_word(p, "limit"))
            return qn_parser_expected(p, "limit and the largest value of the dimension");
        QN_TRY(parse_dim(r, &limit));
        qn_vec_push(p->arena, &limits, limit);
    }
    program->limits = limits.items;
    return QUERN_OK;
}

static qn_status parse_nodes(reader *r)
{
    qn_parser *p = r->parser;
    qn_vec(const char *) names = { 0 };
    while (qn_parser_accept_word(p, "node")) {
        QN_TRY(parse_number(p, "node", (int)names.n));
        if (p->token.kind != QN_TOKEN_STRING)
            return qn_parser_expected(p, "the name of the node");
        qn_vec_push(p->arena, &names, parse_name(p));
    }
    r->program->n_nodes = (int)names.n;
    r->program->node_names = names.items;
    return QUERN_OK;
}

/* io 1 state "w" f32[784, 10] alias 0 trainable at 128 = $9482cbf0e812c660 */
static qn_status parse_io(reader *r, int number, qn_pio *io)
{
    qn_parser *p = r->parser;
    const qn_token start = p->token;
    *io = (qn_pio){ .alias = -1, .initial_offset = -1 };
    QN_TRY(parse_number(p, "io", number));
    if (qn_parser_accept_word(p, "input"))
        io->role = QUERN_INPUT;
    else if (qn_parser_accept_word(p, "output"))
        io->role = QUERN_OUTPUT;
    else if (qn_parser_accept_word(p, "state"))
        io->role = QUERN_STATE;
    else
        return qn_parser_expected(p, "input, output or state");
    io->name = parse_name(p);
    const int n_symbols = qn_dims_symbol_count(r->program->dims);
    QN_TRY(qn_parse_type(p, &io->type));
    if (qn_dims_symbol_count(r->program->dims) > n_symbols)
        return qn_parser_error(p, &start, "no line of dims or bound names a dimension of io %d", number);
    if (qn_parser_accept_word(p, "alias")) {
        QN_TRY(parse_count(p, "the io whose memory it is", &io->alias));
        if (io->alias >= number)
            return qn_parser_error(p, &start, "io %d is an alias of io %d, which does not come before it",
                                   number, io->alias);
    }
    io->trainable = qn_parser_accept_word(p, "trainable");
    if (qn_parser_accept_word(p, "at")) {
        const qn_token offset = p->token;
        QN_TRY(qn_parse_i64(p, "the place of the contents in the weights", &io->initial_offset));
        if (io->initial_offset < 0)
            return qn_parser_error(p, &offset, "a place in the weights is at least 0");
    }
    if (!qn_parser_accept(p, QN_TOKEN_EQUALS))
        return QUERN_OK;
    if (io->role != QUERN_STATE)
        return qn_parser_error(p, &start, "only a state has initial contents");
    return qn_parse_tensor(p, &io->type, &io->initial);
}

static qn_status parse_all_io(reader *r)
{
    qn_vec(qn_pio) all = { 0 };
    while (qn_parser_accept_word(r->parser, "io")) {
        qn_pio io;
        QN_TRY(parse_io(r, (int)all.n, &io));
        qn_vec_push(r->parser->arena, &all, io);
    }
    r->program->n_io = (int)all.n;
    r->program->io = all.items;
    return QUERN_OK;
}

/* ---- buffers ---- */

/* An offset, unless what follows the place comes already. */
static qn_status parse_offset(reader *r, qn_dim *out)
{
    return r->parser->token.kind == QN_TOKEN_COLON ? QUERN_OK : parse_dim(r, out);
}

static qn_status parse_arena_place(reader *r, qn_pbuffer *b)
{
    qn_parser *p = r->parser;
    b->place = QN_PLACE_ARENA;
    QN_TRY(parse_offset(r, &b->offset));
    if (!b->offset)
        return QUERN_OK;
    if (!qn_parser_accept_word(p, "live"))
        return qn_parser_expected(p, "live and the steps between which it is needed");
    QN_TRY(parse_count(p, "the number of a step", &b->first));
    QN_TRY(qn_parser_expect(p, QN_TOKEN_RANGE, "'..'"));
    return parse_count(p, "the number of a step", &b->last);
}

static qn_status parse_view_place(reader *r, qn_pbuffer *b)
{
    qn_parser *p = r->parser;
    b->place = QN_PLACE_VIEW;
    QN_TRY(parse_buffer(r, &b->base));
    if (qn_parser_accept_word(p, "at"))
        QN_TRY(parse_dim(r, &b->offset));
    if (!qn_parser_accept_word(p, "loop"))
        return QUERN_OK;
    QN_TRY(parse_count(p, "the number of a loop", &b->loop));
    if (!qn_parser_accept_word(p, "stride"))
        return qn_parser_expected(p, "stride and the bytes that the view moves");
    return parse_dim(r, &b->stride);
}

static qn_status parse_place(reader *r, qn_pbuffer *b)
{
    qn_parser *p = r->parser;
    if (qn_parser_accept_word(p, "arena"))
        return parse_arena_place(r, b);
    if (qn_parser_accept_word(p, "view"))
        return parse_view_place(r, b);
    if (qn_parser_accept_word(p, "io")) {
        b->place = QN_PLACE_IO;
        return parse_count(p, "the number of an io", &b->io);
    }
    if (qn_parser_accept_word(p, "weights")) {
        b->place = QN_PLACE_WEIGHTS;
        return parse_offset(r, &b->offset);
    }
    if (qn_parser_accept_word(p, "slot")) {
        b->place = QN_PLACE_SLOT;
        return parse_buffer(r, &b->base);
    }
    return qn_parser_expected(p, "a place: arena, io, weights, view or slot");
}

/* %2 = arena 64*batch live 0..3 : f32 16*batch "h" */
static qn_status parse_buffers(reader *r)
{
    qn_parser *p = r->parser;
    while (p->token.kind == QN_TOKEN_NUMBERED) {
        qn_pbuffer b = { .io = -1, .base = -1, .loop = -1, .loc = qn_parser_loc(p, &p->token) };
        const qn_token number = p->token;
        if (strtol(number.text, NULL, 10) != r->program->n_buffers)
            return qn_parser_error(p, &number, "the next buffer is %%%d", r->program->n_buffers);
        qn_parser_next(p);
        QN_TRY(qn_parser_expect(p, QN_TOKEN_EQUALS, "'=' and the place of the buffer"));
        QN_TRY(parse_place(r, &b));
        QN_TRY(qn_parser_expect(p, QN_TOKEN_COLON, "':', the data type and the number of elements"));
        QN_TRY(qn_parse_dtype(p, &b.dtype));
        QN_TRY(parse_dim(r, &b.elements));
        b.name = parse_name(p);
        if (b.place == QN_PLACE_WEIGHTS && qn_parser_accept(p, QN_TOKEN_EQUALS)) {
            qn_type type;
            QN_TRY(qn_parse_type(p, &type));
            QN_TRY(qn_parse_tensor(p, &type, &b.tensor));
        }
        qn_program_add_buffer(r->program, b);
    }
    return QUERN_OK;
}

/* arena 40*batch bound 40*batch weights 31360 */
static qn_status parse_sizes(reader *r)
{
    qn_parser *p = r->parser;
    if (!qn_parser_accept_word(p, "arena"))
        return qn_parser_expected(p, "a buffer (%number = …) or arena and the size of the workspace");
    QN_TRY(parse_dim(r, &r->program->arena_bytes));
    if (!qn_parser_accept_word(p, "bound"))
        return qn_parser_expected(p, "bound and the least possible size of the workspace");
    QN_TRY(parse_dim(r, &r->program->arena_lower_bound));
    if (!qn_parser_accept_word(p, "weights"))
        return qn_parser_expected(p, "weights and their size");
    return qn_parse_i64(p, "the size of the weights", &r->program->weights_bytes);
}

/* ---- steps ---- */

static qn_status parse_steps(reader *r, qn_steps *out);

/* `{ steps }` */
static qn_status parse_block(reader *r, qn_steps *out)
{
    qn_parser *p = r->parser;
    const qn_token start = p->token;
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LBRACE, "'{' and steps"));
    if (++p->nesting > QN_TEXT_MAX_NESTING)
        return qn_parser_error(p, &start, "steps nest at most %d deep", QN_TEXT_MAX_NESTING);
    QN_TRY(parse_steps(r, out));
    p->nesting--;
    return qn_parser_expect(p, QN_TOKEN_RBRACE, "a step or '}'");
}

static qn_status parse_operands(reader *r, int n, qn_step *step)
{
    step->n_buffers = n;
    step->buffers = QN_NEW_ARRAY(r->parser->arena, int, n);
    for (int i = 0; i < n; i++) {
        if (i > 0 && step->kind == QN_STEP_COPY && !qn_parser_accept_word(r->parser, "to"))
            return qn_parser_expected(r->parser, "to and the buffer that is written");
        QN_TRY(parse_buffer(r, &step->buffers[i]));
    }
    return QUERN_OK;
}

/* (%0, %1; batch) */
static qn_status parse_arguments(reader *r, qn_step *step)
{
    qn_parser *p = r->parser;
    qn_vec(int) buffers = { 0 };
    qn_vec(qn_dim) params = { 0 };
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LPAREN, "'(' and the arguments"));
    if (p->token.kind == QN_TOKEN_NUMBERED)
        do {
            int buffer;
            QN_TRY(parse_buffer(r, &buffer));
            qn_vec_push(p->arena, &buffers, buffer);
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    if (qn_parser_accept(p, QN_TOKEN_SEMICOLON))
        do {
            qn_dim param;
            QN_TRY(parse_dim(r, &param));
            qn_vec_push(p->arena, &params, param);
        } while (qn_parser_accept(p, QN_TOKEN_COMMA));
    step->n_buffers = (int)buffers.n;
    step->buffers = buffers.items;
    step->n_params = (int)params.n;
    step->params = params.items;
    return qn_parser_expect(p, QN_TOKEN_RPAREN, "',', ';' or ')'");
}

/* (%0, %1; batch) tasks floordiv(batch + 7, 8) */
static qn_status parse_tasks(reader *r, qn_step *step)
{
    qn_parser *p = r->parser;
    QN_TRY(parse_arguments(r, step));
    if (!qn_parser_accept_word(p, "tasks"))
        return qn_parser_expected(p, "tasks and their number");
    QN_TRY(parse_dim(r, &step->tasks));
    step->alternates = qn_parser_accept_word(p, "alternating");
    return QUERN_OK;
}

static qn_status parse_call(reader *r, qn_step *step)
{
    step->kind = QN_STEP_KERNEL;
    QN_TRY(parse_count(r->parser, "the number of a kernel", &step->kernel));
    step->name = parse_name(r->parser);
    return parse_tasks(r, step);
}

static qn_status parse_library(reader *r, qn_step *step)
{
    qn_parser *p = r->parser;
    const char *names[QN_N_LIBRARIES];
    step->kind = QN_STEP_LIBRARY;
    for (int i = 0; i < QN_N_LIBRARIES; i++) {
        names[i] = qn_libraries[i].name;
        if (!qn_parser_accept_word(p, names[i]))
            continue;
        step->library = (qn_library)i;
        step->name = parse_name(p);
        return parse_tasks(r, step);
    }
    return qn_parser_error(p, &p->token, "expected a function of a library%s",
                           qn_parser_suggest(p, &p->token, names, QN_N_LIBRARIES));
}

/* ("name") (%0, %1) */
static qn_status parse_pair(reader *r, int n, qn_step *step)
{
    qn_parser *p = r->parser;
    step->name = parse_name(p);
    step->n_buffers = n;
    step->buffers = QN_NEW_ARRAY(p->arena, int, 2);
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LPAREN, "'(' and the buffers"));
    for (int i = 0; i < n; i++) {
        if (i > 0)
            QN_TRY(qn_parser_expect(p, QN_TOKEN_COMMA, "',' and the buffer that is written"));
        QN_TRY(parse_buffer(r, &step->buffers[i]));
    }
    return qn_parser_expect(p, QN_TOKEN_RPAREN, "')'");
}

/* all_reduce sum "name" (%0, %1) node 0 */
static qn_status parse_collective(reader *r, qn_step *step)
{
    static const char *const combines[] = { "sum", "mean", "max", "min" };
    static const qn_op ops[] = { QN_OP_ALL_REDUCE, QN_OP_ALL_GATHER, QN_OP_REDUCE_SCATTER,
                                 QN_OP_BROADCAST_RANK, QN_OP_RANK };
    enum { N_OPS = sizeof ops / sizeof *ops, N_COMBINES = sizeof combines / sizeof *combines };
    qn_parser *p = r->parser;
    const char *names[N_OPS];
    int op = 0;
    for (int i = 0; i < N_OPS; i++)
        names[i] = qn_ops[ops[i]].name;
    step->starts = qn_parser_accept_word(p, "start");
    while (op < N_OPS && !qn_parser_accept_word(p, names[op]))
        op++;
    if (op == N_OPS)
        return qn_parser_error(p, &p->token, "expected a collective%s",
                               qn_parser_suggest(p, &p->token, names, N_OPS));
    step->kind = QN_STEP_COLLECTIVE;
    step->collective = ops[op];
    if (ops[op] == QN_OP_ALL_REDUCE || ops[op] == QN_OP_REDUCE_SCATTER) {
        while (step->how < N_COMBINES && !qn_parser_accept_word(p, combines[step->how]))
            step->how++;
        if (step->how == N_COMBINES)
            return qn_parser_expected(p, "sum, mean, max or min");
    }
    if (ops[op] == QN_OP_BROADCAST_RANK) {
        if (!qn_parser_accept_word(p, "root"))
            return qn_parser_expected(p, "root and the number of a rank");
        QN_TRY(parse_count(p, "the number of a rank", &step->how));
    }
    if (ops[op] == QN_OP_ALL_GATHER || ops[op] == QN_OP_REDUCE_SCATTER) {
        int ranks;
        const qn_token start = p->token;
        if (!qn_parser_accept_word(p, "ranks"))
            return qn_parser_expected(p, "ranks and their number");
        QN_TRY(parse_count(p, "the number of ranks", &ranks));
        if (ranks < 1)
            return qn_parser_error(p, &start, "there is at least 1 rank");
        step->ranks = ranks;
    }
    QN_TRY(parse_pair(r, ops[op] == QN_OP_RANK ? 1 : 2, step));
    if (step->n_buffers == 1)
        return QUERN_OK;
    if (!qn_parser_accept_word(p, "node"))
        return qn_parser_expected(p, "node and its number");
    return parse_count(p, "the number of a node", &step->node);
}

/* text text_case "name" (%0, %1; n, 1) node 0 */
static qn_status parse_text(reader *r, qn_step *step)
{
    qn_parser *p = r->parser;
    int op = 0;
    while (op < QN_N_OPS && !(qn_text_what((qn_op)op) && qn_parser_accept_word(p, qn_ops[op].name)))
        op++;
    if (op == QN_N_OPS)
        return qn_parser_expected(p, "an op on text");
    step->kind = QN_STEP_TEXT;
    step->text = (qn_op)op;
    step->name = parse_name(p);
    QN_TRY(parse_arguments(r, step));
    if (!qn_parser_accept_word(p, "node"))
        return qn_parser_expected(p, "node and its number");
    return parse_count(p, "the number of a node", &step->node);
}

static qn_status parse_loop(reader *r, qn_step *step)
{
    qn_parser *p = r->parser;
    const qn_token start = p->token;
    step->kind = QN_STEP_LOOP;
    QN_TRY(parse_count(p, "the number of the loop", &step->loop));
    if (step->loop >= MAX_LOOPS)
        return qn_parser_error(p, &start, "loops have numbers below %d", MAX_LOOPS);
    if (step->loop >= r->program->n_loops)
        r->program->n_loops = step->loop + 1;
    step->name = parse_name(p);
    if (qn_parser_accept_word(p, "count"))
        QN_TRY(parse_dim(r, &step->count));
    step->reverse = qn_parser_accept_word(p, "reverse");
    if (step->reverse && !step->count)
        return qn_parser_error(p, &start, "only a loop with a count runs in reverse");
    if (qn_parser_accept_word(p, "while")) {
        QN_TRY(parse_buffer(r, &step->condition));
        if (!qn_parser_accept_word(p, "test"))
            return qn_parser_expected(p, "test and the steps that make the condition");
        QN_TRY(parse_block(r, &step->test));
    }
    return parse_block(r, &step->body);
}

static qn_status parse_if(reader *r, qn_step *step)
{
    step->kind = QN_STEP_IF;
    QN_TRY(parse_buffer(r, &step->condition));
    step->name = parse_name(r->parser);
    QN_TRY(parse_block(r, &step->body));
    if (!qn_parser_accept_word(r->parser, "else"))
        return qn_parser_expected(r->parser, "else and its steps");
    return parse_block(r, &step->other);
}

static qn_status parse_check(reader *r, qn_step *step)
{
    qn_parser *p = r->parser;
    qn_dim *params = QN_NEW_ARRAY(p->arena, qn_dim, 2);
    step->kind = QN_STEP_CHECK;
    step->n_params = 2;
    step->params = params;
    QN_TRY(parse_dim(r, &params[0]));
    QN_TRY(qn_parser_expect(p, QN_TOKEN_EQUALS, "'='"));
    QN_TRY(parse_dim(r, &params[1]));
    if (!qn_parser_accept_word(p, "node"))
        return qn_parser_expected(p, "node and its number");
    return parse_count(p, "the number of a node", &step->node);
}

static qn_status parse_step(reader *r, qn_step *step)
{
    qn_parser *p = r->parser;
    if (qn_parser_accept_word(p, "call"))
        return parse_call(r, step);
    if (qn_parser_accept_word(p, "library"))
        return parse_library(r, step);
    if (qn_parser_accept_word(p, "collective"))
        return parse_collective(r, step);
    if (qn_parser_accept_word(p, "text"))
        return parse_text(r, step);
    if (qn_parser_accept_word(p, "wait")) {
        step->kind = QN_STEP_WAIT;
        return parse_pair(r, 2, step);
    }
    if (qn_parser_accept_word(p, "loop"))
        return parse_loop(r, step);
    if (qn_parser_accept_word(p, "if"))
        return parse_if(r, step);
    if (qn_parser_accept_word(p, "bind")) {
        step->kind = QN_STEP_BIND;
        QN_TRY(parse_dim(r, &step->count));
        return parse_operands(r, 1, step);
    }
    if (qn_parser_accept_word(p, "check"))
        return parse_check(r, step);
    step->kind = qn_parser_at_word(p, "copy") ? QN_STEP_COPY : QN_STEP_SWAP;
    if (!qn_parser_accept_word(p, "copy") && !qn_parser_accept_word(p, "swap"))
        return qn_parser_expected(
            p, "a step (call, library, collective, text, wait, copy, loop, if, swap, bind, check) or '}'");
    return parse_operands(r, 2, step);
}

static qn_status parse_steps(reader *r, qn_steps *out)
{
    while (r->parser->token.kind != QN_TOKEN_RBRACE) {
        qn_step step = { .condition = -1, .loop = -1, .loc = qn_parser_loc(r->parser, &r->parser->token) };
        QN_TRY(parse_step(r, &step));
        qn_vec_push(r->parser->arena, out, step);
    }
    return QUERN_OK;
}

/* ---- programs ---- */

static qn_status parse_kernels(reader *r)
{
    qn_parser *p = r->parser;
    while (qn_parser_at_word(p, "kernel")) {
        qn_lexer lexer = qn_parser_place(p);
        qn_text_place place = { lexer.cursor, lexer.line_start, lexer.line };
        const qn_token start = p->token;
        qn_kernel *kernel = qn_kernel_parse_at(&place, p->file, p->arena, p->diags);
        if (!kernel)
            return QUERN_ERROR_MODEL; /* reported */
        const int n = r->program->n_kernels, number = qn_program_add_kernel(r->program, kernel);
        if (number < n)
            return qn_parser_error(p, &start, "this kernel is the same as kernel %d", number);
        lexer.cursor = place.at;
        lexer.line_start = place.line_start;
        lexer.line = place.line;
        qn_parser_seek(p, &lexer);
    }
    return QUERN_OK;
}

static qn_status parse_program(qn_parser *p, qn_program **out)
{
    if (!qn_parser_accept_word(p, "program"))
        return qn_parser_expected(p, "program");
    const qn_token name = p->token;
    QN_TRY(qn_parser_expect(p, QN_TOKEN_FUNCTION, "the name of the program (@name)"));
    p->module->dims = qn_dims_new(p->arena);
    p->data = (qn_map){ 0 };
    p->data_complete = false;
    reader r = { p, qn_program_new(p->arena, p->module->dims, name.text) };
    QN_TRY(qn_parser_expect(p, QN_TOKEN_LBRACE, "'{' and what the program takes"));
    QN_TRY(parse_symbols(&r));
    QN_TRY(parse_nodes(&r));
    QN_TRY(parse_all_io(&r));
    QN_TRY(parse_buffers(&r));
    QN_TRY(parse_sizes(&r));
    QN_TRY(parse_steps(&r, &r.program->steps));
    QN_TRY(qn_parser_expect(p, QN_TOKEN_RBRACE, "a step or '}'"));
    QN_TRY(parse_kernels(&r));
    while (qn_parser_at_word(p, "data"))
        QN_TRY(qn_parse_data(p));
    QN_TRY(qn_parse_end_data(p));
    qn_program_number(r.program);
    *out = r.program;
    return qn_program_verify(r.program, p->diags);
}

bool qn_text_has_programs(const char *text, size_t length)
{
    qn_arena *arena = qn_arena_new();
    qn_lexer lexer = qn_lexer_of(text, length, arena);
    const qn_token first = qn_lexer_next(&lexer);
    const qn_parser p = { .token = first };
    const bool yes = qn_parser_at_word(&p, "program");
    qn_arena_free(arena);
    return yes;
}

qn_status qn_text_parse_programs(const char *text, size_t length, const char *file, qn_arena *arena,
                                 int *out_n, qn_program ***out_programs, qn_diags *diags)
{
    const char *name = qn_arena_strdup(arena, file ? file : "");
    qn_module module = { .arena = arena, .name = name };
    qn_parser p = { .lexer = qn_lexer_of(text, length, arena),
                    .file = name,
                    .module = &module,
                    .arena = arena,
                    .diags = diags };
    qn_vec(qn_program *) programs = { 0 };
    qn_parser_next(&p);
    do {
        qn_program *program = NULL;
        QN_TRY(parse_program(&p, &program));
        qn_vec_push(arena, &programs, program);
    } while (p.token.kind != QN_TOKEN_END);
    *out_n = (int)programs.n;
    *out_programs = programs.items;
    return QUERN_OK;
}
