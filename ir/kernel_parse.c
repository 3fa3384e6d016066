/* The text form of kernels, read; the form is in kernel_text.h. Instructions are made as they stand, without folding, so
 * that printing gives the same text. Each is checked as soon as it is there (kernel_verify.c), so mistakes have a line. */
#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"
#include "ir/kernel_text.h"
#include "ir/literal.h"

enum { MAX_NESTING = 100 };

typedef struct word {
    const char *at;
    size_t n;
} word;

typedef struct binding {
    word name;
    qn_kvalue *value; /* NULL: a result that is being defined */
} binding;

typedef struct parser {
    const char *at, *line_start, *file;
    int line;
    qn_arena *arena;
    qn_diags *diags;
    qn_kernel *k;
    qn_kbuilder b;
    qn_vec(binding) names; /* innermost last */
    int depth;
    bool failed; /* reported; everything returns quickly */
} parser;

/* ---- words ---- */

static void fail(parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fail(parser *p, const char *format, ...)
{
    if (p->failed)
        return;
    p->failed = true;
    va_list args;
    va_start(args, format);
    qn_loc loc = { .file = p->file, .line = p->line, .column = (int)(p->at - p->line_start) + 1 };
    qn_error(p->diags, QUERN_ERROR_MODEL, &loc, "%s", qn_arena_vprintf(p->arena, format, args));
    va_end(args);
}

static void skip_space(parser *p)
{
    for (;;) {
        if (*p->at == '\n') {
            p->line++;
            p->line_start = ++p->at;
        } else if (*p->at == ' ' || *p->at == '\t' || *p->at == '\r') {
            p->at++;
        } else if (*p->at == '#') {
            p->at += strcspn(p->at, "\n");
        } else {
            return;
        }
    }
}

static bool is_word_char(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '.';
}

static word peek(parser *p)
{
    skip_space(p);
    word w = { p->at, 0 };
    while (is_word_char(w.at[w.n]))
        w.n++;
    return w;
}

static bool word_is(word w, const char *text)
{
    return strlen(text) == w.n && !memcmp(w.at, text, w.n);
}

/* Takes the word or sign when it is next. */
static bool accept(parser *p, const char *text)
{
    skip_space(p);
    size_t n = strlen(text);
    if (p->failed || strncmp(p->at, text, n) || (is_word_char(text[n - 1]) && is_word_char(p->at[n])))
        return false;
    p->at += n;
    return true;
}

static void expect(parser *p, const char *text)
{
    if (!accept(p, text))
        fail(p, "expected '%s'", text);
}

static word take_word(parser *p, const char *what)
{
    word w = peek(p);
    if (w.n == 0)
        fail(p, "expected %s", what);
    p->at += w.n;
    return w;
}

static const char *copy_word(parser *p, word w)
{
    return qn_arena_printf(p->arena, "%.*s", (int)w.n, w.at);
}

static word take_name(parser *p)
{
    expect(p, "%");
    if (!is_word_char(*p->at))
        fail(p, "expected a name after '%%'");
    return take_word(p, "a name");
}

/* A literal of a dtype: a word with its signs. */
static qn_scalar take_literal(parser *p, qn_dtype dtype)
{
    unsigned char bytes[8] = { 0 };
    skip_space(p);
    size_t n = 0;
    while (is_word_char(p->at[n]) ||
           ((p->at[n] == '-' || p->at[n] == '+') && (n == 0 || p->at[n - 1] == 'e' || p->at[n - 1] == 'E')))
        n++;
    if (p->failed || n == 0 || !qn_literal_parse(dtype, p->at, n, bytes)) {
        fail(p, "expected a constant of %s", qn_dtype_name(dtype));
        return (qn_scalar){ .i = 0 };
    }
    p->at += n;
    return qn_scalar_load(dtype, bytes);
}

static int64_t take_int(parser *p, int64_t min, int64_t max)
{
    int64_t v = take_literal(p, QUERN_I64).i;
    if (v < min || v > max)
        fail(p, "%lld is not between %lld and %lld", (long long)v, (long long)min, (long long)max);
    return p->failed ? min : v;
}

/* "f32", "i32x16"; *out stays as it is when it is neither */
static bool parse_type(word w, qn_ktype *out)
{
    size_t n = w.n;
    int lanes = 1;
    const char *x = memchr(w.at, 'x', w.n);
    if (x) {
        n = (size_t)(x - w.at);
        lanes = 0;
        for (const char *c = x + 1; c < w.at + w.n; c++) {
            if (!isdigit((unsigned char)*c) || lanes > 64)
                return false;
            lanes = lanes * 10 + (*c - '0');
        }
    }
    qn_dtype dtype = qn_dtype_parse(w.at, n);
    if (dtype == QUERN_INVALID_DTYPE || lanes < 1 || lanes > 64 || (lanes & (lanes - 1)))
        return false;
    *out = qn_ktype_make(dtype, lanes);
    return true;
}

static qn_ktype take_type(parser *p)
{
    qn_ktype type = { QUERN_I64, 1 };
    word w = take_word(p, "a type");
    if (!p->failed && !parse_type(w, &type))
        fail(p, "'%.*s' is no type: a dtype, or a dtype with lanes as in f32x16", (int)w.n, w.at);
    return p->failed ? qn_ktype_make(QUERN_I64, 1) : type;
}

static int take_choice(parser *p, const char *what, const char *const *choices, int n)
{
    word w = take_word(p, what);
    for (int i = 0; i < n && !p->failed; i++)
        if (word_is(w, choices[i]))
            return i;
    fail(p, "'%.*s' is no %s", (int)w.n, w.at, what);
    return 0;
}

/* ---- values ---- */

static qn_kbuffer *find_buffer(parser *p, word name)
{
    for (int i = 0; i < p->k->n_all_buffers; i++)
        if (word_is(name, p->k->buffers[i]->name))
            return p->k->buffers[i];
    return NULL;
}

static qn_kbuffer *take_buffer(parser *p)
{
    word name = take_name(p);
    qn_kbuffer *buffer = p->failed ? NULL : find_buffer(p, name);
    if (!buffer)
        fail(p, "there is no buffer %%%.*s", (int)name.n, name.at);
    return buffer;
}

static qn_kvalue *find_value(parser *p, word name)
{
    for (size_t i = p->names.n; i-- > 0;)
        if (p->names.items[i].name.n == name.n && !memcmp(p->names.items[i].name.at, name.at, name.n))
            return p->names.items[i].value;
    for (int i = 0; i < p->k->n_params; i++)
        if (word_is(name, p->k->param_names[i]))
            return qn_kernel_param(p->k, i);
    return NULL;
}

static void bind(parser *p, word name, qn_kvalue *value)
{
    if (p->failed)
        return;
    if (find_value(p, name) || find_buffer(p, name))
        fail(p, "%%%.*s has two definitions", (int)name.n, name.at);
    binding made = { name, value };
    qn_vec_push(p->arena, &p->names, made);
}

/* Something to go on with after a mistake. */
static qn_kvalue *nothing(parser *p)
{
    return qn_kb_const(&p->b, qn_ktype_make(QUERN_I64, 1), (qn_scalar){ .i = 0 });
}

static qn_kvalue *take_value(parser *p)
{
    skip_space(p);
    if (p->failed)
        return nothing(p);
    if (*p->at == '%') {
        word name = take_name(p);
        qn_kvalue *v = find_value(p, name);
        if (!v)
            fail(p, "%%%.*s is not defined here", (int)name.n, name.at);
        return v ? v : nothing(p);
    }
    if (accept(p, "task"))
        return qn_kb_task(&p->b);
    word w = peek(p);
    qn_ktype type = { QUERN_I64, 1 };
    if (w.n > 0 && parse_type(w, &type))
        p->at += w.n;
    qn_scalar imm = take_literal(p, type.dtype);
    return p->failed ? nothing(p) : qn_kb_const(&p->b, type, imm);
}

static int take_values(parser *p, qn_kvalue **out, int max)
{
    int n = 0;
    do {
        if (n == max) {
            fail(p, "too many operands");
            return n;
        }
        out[n++] = take_value(p);
    } while (accept(p, ","));
    return n;
}

/* ---- instructions ---- */

static void check_inst(parser *p, qn_kinst *inst)
{
    const char *mistake = p->failed ? NULL : qn_kinst_mistake(p->k, inst, p->arena);
    if (mistake)
        fail(p, "%s %s",
             inst->op == QN_K_UNARY || inst->op == QN_K_BINARY ? qn_ops[inst->fn].name
                                                               : qn_kop_names[inst->op],
             mistake);
}

static qn_kinst *emit(parser *p, qn_kop op, int n, qn_kvalue **operands, qn_ktype type)
{
    qn_kb_emit(&p->b, op, n, operands, type);
    qn_kinst *inst = p->b.block->last;
    inst->fast = false;
    return inst;
}

typedef struct results {
    int n;
    word *names;
} results;

static void bind_results(parser *p, const results *names, qn_kinst *inst)
{
    if (!p->failed && names->n != inst->n_results)
        fail(p, "%d names for %d results", names->n, inst->n_results);
    for (int i = 0; i < inst->n_results && !p->failed; i++)
        bind(p, names->names[i], &inst->results[i]);
}

static void parse_block(parser *p, qn_kblock *block);

static void parse_yield(parser *p, qn_kblock *block)
{
    qn_kvalue *values[64];
    int n = 0;
    if (accept(p, "yield"))
        n = take_values(p, values, 64);
    qn_kblock_set_yields(p->k, block, n, values);
    expect(p, "}");
}

static void check_yields(parser *p, const qn_kblock *block, int n, const qn_kvalue *results)
{
    if (p->failed)
        return;
    if (block->n_yields != n) {
        fail(p, "the block yields %d values, %d are wanted", block->n_yields, n);
        return;
    }
    for (int i = 0; i < n; i++)
        if (!qn_ktype_equal(block->yields[i]->type, results[i].type))
            fail(p, "value %d that the block yields is a %s, not a %s", i,
                 qn_ktype_print(block->yields[i]->type, p->arena), qn_ktype_print(results[i].type, p->arena));
}

static void parse_for(parser *p, const results *names)
{
    enum { MAX_CARRIED = 60 };
    qn_kvalue *bounds[3], *initial[MAX_CARRIED];
    word counter = take_name(p), carried[MAX_CARRIED];
    qn_kind kinds[MAX_CARRIED];
    static const char *const words[3] = { "=", "to", "step" };
    for (int i = 0; i < 3; i++) {
        expect(p, words[i]);
        bounds[i] = take_value(p);
    }
    int tag = QN_TAG_SERIAL, lanes = 0, n = 0, n_kinds = 0;
    for (int i = 1; i < 4; i++)
        if (accept(p, qn_ktag_names[i]))
            tag = i;
    if (isdigit((unsigned char)*peek(p).at))
        lanes = (int)take_int(p, 1, 64);
    if (accept(p, "carry"))
        do {
            if (n == MAX_CARRIED) {
                fail(p, "a loop carries at most %d values", MAX_CARRIED);
                break;
            }
            carried[n] = take_name(p);
            expect(p, "=");
            initial[n] = take_value(p);
            for (int i = 0; i < 5; i++)
                if (accept(p, qn_kind_names[i])) {
                    kinds[n] = (qn_kind)i;
                    n_kinds++;
                }
            n++;
        } while (accept(p, ","));
    if (n_kinds != 0 && n_kinds != n)
        fail(p, "all carried values have a kind, or none has");
    expect(p, "{");
    for (int i = 0; i < 3 && !p->failed; i++)
        if (!qn_k_is_index(bounds[i]))
            fail(p, "bounds and step of a loop are i64 scalars");
    if (p->failed)
        return;
    qn_kinst *loop =
        qn_kb_for(&p->b, bounds[0], bounds[1], bounds[2], (qn_ktag)tag, n, initial, n_kinds ? kinds : NULL);
    loop->lanes = lanes;
    check_inst(p, loop);
    size_t mark = p->names.n;
    bind(p, counter, &loop->blocks[0]->arguments[0]);
    for (int i = 0; i < n; i++)
        bind(p, carried[i], &loop->blocks[0]->arguments[1 + i]);
    parse_block(p, loop->blocks[0]);
    check_yields(p, loop->blocks[0], n, loop->results);
    p->names.n = mark;
    p->b.block = loop->parent;
    bind_results(p, names, loop);
}

static void parse_if(parser *p, const results *names)
{
    qn_kvalue *condition = take_value(p);
    expect(p, "{");
    if (!p->failed && !qn_ktype_equal(condition->type, qn_ktype_make(QUERN_BOOL, 1)))
        fail(p, "the condition of an if is a bool scalar, not %s", qn_ktype_print(condition->type, p->arena));
    if (p->failed)
        return;
    qn_kinst *branch = qn_kb_if(&p->b, condition);
    size_t mark = p->names.n;
    parse_block(p, branch->blocks[0]);
    p->names.n = mark;
    p->b.block = branch->blocks[1];
    if (accept(p, "else")) {
        expect(p, "{");
        parse_block(p, branch->blocks[1]);
        p->names.n = mark;
    }
    if (branch->blocks[1]->n_yields != branch->blocks[0]->n_yields)
        fail(p, "the blocks of an if yield %d and %d values", branch->blocks[0]->n_yields,
             branch->blocks[1]->n_yields);
    for (int i = 0; i < branch->blocks[1]->n_yields && !p->failed; i++)
        if (!qn_ktype_equal(branch->blocks[0]->yields[i]->type, branch->blocks[1]->yields[i]->type))
            fail(p, "value %d that the blocks of an if yield has two types", i);
    if (p->failed)
        return;
    qn_kb_end_if(&p->b, branch, branch->blocks[1]->n_yields, branch->blocks[1]->yields);
    bind_results(p, names, branch);
}

static qn_kvalue *parse_place(parser *p, qn_kbuffer **out)
{
    *out = take_buffer(p);
    expect(p, "[");
    qn_kvalue *index = take_value(p);
    expect(p, "]");
    return index;
}

static qn_kinst *parse_memory(parser *p, qn_kop op)
{
    qn_kbuffer *buffer;
    qn_kvalue *o[4] = { parse_place(p, &buffer) };
    qn_ktype type = { QUERN_INVALID_DTYPE, 0 };
    int n = 1;
    int64_t locality = 0;
    if (op == QN_K_LOAD) {
        expect(p, ":");
        type = take_type(p);
    } else {
        expect(p, ",");
        if (op == QN_K_PREFETCH)
            locality = take_int(p, 0, 3);
        else
            o[n++] = take_value(p);
    }
    if ((op == QN_K_LOAD || op == QN_K_STORE) && accept(p, ",")) {
        expect(p, "mask");
        o[n++] = take_value(p);
        if (op == QN_K_LOAD && accept(p, ",")) {
            expect(p, "other");
            o[n++] = take_value(p);
        }
    }
    qn_kinst *inst = emit(p, op, n, o, type);
    inst->buffer = buffer;
    inst->index = locality;
    inst->nontemporal = op == QN_K_STORE && accept(p, "nontemporal");
    return inst;
}

static void parse_mask(parser *p, int *mask, int *n)
{
    expect(p, "[");
    do {
        if (*n == 64) {
            fail(p, "a shuffle gives at most 64 lanes");
            return;
        }
        mask[(*n)++] = (int)take_int(p, 0, 127);
    } while (accept(p, ","));
    expect(p, "]");
}

static qn_dtype take_dtype(parser *p);

static qn_kinst *parse_tile(parser *p, qn_kop op)
{
    int tiles[64], n_tiles = 0, n = 0;
    qn_kvalue *o[QN_TILES];
    qn_kbuffer *buffer = NULL;
    qn_dtype types[2] = { QUERN_INVALID_DTYPE, QUERN_INVALID_DTYPE };
    if (op == QN_K_TILE_SHAPE)
        n = take_values(p, o, QN_TILES);
    else
        parse_mask(p, tiles, &n_tiles);
    if (op == QN_K_TILE_LOAD || op == QN_K_TILE_STORE) {
        o[n++] = parse_place(p, &buffer);
        expect(p, ",");
        o[n++] = take_value(p);
    }
    for (int i = 0; i < 2 && op == QN_K_TILE_MMA; i++)
        types[i] = take_dtype(p);
    if (p->failed)
        return NULL;
    qn_kinst *inst = emit(p, op, n, o, qn_ktype_make(QUERN_INVALID_DTYPE, 0));
    inst->buffer = buffer;
    inst->n_mask = n_tiles;
    inst->mask = qn_arena_copy(p->k->arena, tiles, (size_t)n_tiles * sizeof *tiles);
    memcpy(inst->tile_type, types, sizeof types);
    return inst;
}

/* The instructions that are a name, operands and a little more. */
static qn_kinst *parse_plain(parser *p, qn_kop op, qn_op fn)
{
    qn_kvalue *o[3];
    int direction = 0, kind = 0, n_mask = 0, mask[64];
    int64_t number = 0;
    if (op == QN_K_COMPARE)
        direction = take_choice(p, "comparison", qn_direction_names, 6);
    if (op == QN_K_REDUCE)
        kind = take_choice(p, "kind", qn_kind_names, 4);
    int n = 0;
    if (op == QN_K_EXTRACT || op == QN_K_CHECK) {
        o[n++] = take_value(p);
        expect(p, ",");
        number = take_int(p, 0, INT32_MAX);
    } else if (op != QN_K_BARRIER) {
        n = take_values(p, o, 3);
    }
    if (p->failed)
        return NULL;
    qn_ktype type = n ? o[n - 1]->type : qn_ktype_make(QUERN_INVALID_DTYPE, 0);
    switch (op) {
    case QN_K_UNARY: type.dtype = qn_keval_result(fn, type.dtype); break;
    case QN_K_COMPARE: type.dtype = QUERN_BOOL; break;
    case QN_K_CONVERT:
    case QN_K_BITCAST:
    case QN_K_SPLAT:
    case QN_K_RAMP:
        expect(p, ":");
        type = take_type(p);
        break;
    case QN_K_EXTRACT:
    case QN_K_REDUCE: type.lanes = 1; break;
    case QN_K_SHUFFLE:
        parse_mask(p, mask, &n_mask);
        type.lanes = n_mask;
        break;
    case QN_K_CHECK: type.lanes = 0; break;
    default: break;
    }
    qn_kinst *inst = emit(p, op, n, o, type);
    inst->fn = fn;
    inst->direction = (qn_direction)direction;
    inst->kind = (qn_kind)kind;
    inst->index = number;
    inst->n_mask = n_mask;
    if (n_mask > 0)
        inst->mask = qn_arena_copy(p->k->arena, mask, (size_t)n_mask * sizeof *mask);
    return inst;
}

/* What an instruction word says: "add", "add.fast", "iadd", "fma". */
static bool parse_opcode(word w, qn_kop *op, qn_op *fn, bool *fast, bool *index_math)
{
    *fast = w.n > 5 && !memcmp(w.at + w.n - 5, ".fast", 5);
    w.n -= *fast ? 5 : 0;
    *fn = qn_k_index_parse(w.at, w.n);
    *index_math = *fn != QN_N_OPS;
    *op = QN_K_BINARY;
    if (*index_math)
        return true;
    for (int i = QN_K_FMA; i <= QN_K_TILE_MMA; i++)
        if (word_is(w, qn_kop_names[i])) {
            *op = (qn_kop)i;
            *fn = (qn_op)0;
            return true;
        }
    *fn = qn_op_parse(w.at, w.n);
    if (*fn == QN_N_OPS)
        return false;
    *op = qn_keval_is_unary(*fn) ? QN_K_UNARY : QN_K_BINARY;
    return qn_keval_is_unary(*fn) || qn_keval_is_binary(*fn);
}

static void parse_operation(parser *p, const results *names)
{
    word w = take_word(p, "an instruction");
    qn_kop op;
    qn_op fn;
    bool fast, index_math;
    if (p->failed)
        return;
    if (!parse_opcode(w, &op, &fn, &fast, &index_math)) {
        fail(p, "'%.*s' is no kernel instruction", (int)w.n, w.at);
        return;
    }
    bool memory = op == QN_K_LOAD || op == QN_K_STORE || op == QN_K_PREFETCH || op == QN_K_ATOMIC_ADD;
    qn_kinst *inst = op >= QN_K_TILE_SHAPE ? parse_tile(p, op)
                     : memory              ? parse_memory(p, op)
                                           : parse_plain(p, op, fn);
    if (p->failed)
        return;
    inst->fast = fast;
    inst->index_math = index_math;
    check_inst(p, inst);
    if (p->failed)
        return;
    qn_kinst_bound(p->k, inst);
    bind_results(p, names, inst);
}

static void parse_inst(parser *p)
{
    word names[64];
    results r = { 0, names };
    skip_space(p);
    if (*p->at == '%') {
        do {
            if (r.n == 64) {
                fail(p, "an instruction has at most 64 results");
                return;
            }
            names[r.n++] = take_name(p);
        } while (accept(p, ","));
        expect(p, "=");
    }
    if (p->failed)
        return;
    if (accept(p, "for"))
        parse_for(p, &r);
    else if (accept(p, "if"))
        parse_if(p, &r);
    else
        parse_operation(p, &r);
}

static void parse_block(parser *p, qn_kblock *block)
{
    if (++p->depth > MAX_NESTING)
        fail(p, "blocks are nested more than %d deep", MAX_NESTING);
    p->b.block = block;
    for (;;) {
        word w = peek(p);
        if (p->failed || *w.at == '}' || word_is(w, "yield"))
            break;
        if (*w.at == 0)
            fail(p, "expected '}'");
        parse_inst(p);
    }
    parse_yield(p, block);
    p->depth--;
}

/* ---- the header ---- */

static int take_align(parser *p, int fallback)
{
    if (!accept(p, "align"))
        return fallback;
    int align = (int)take_int(p, 1, 1 << 20);
    if (align & (align - 1))
        fail(p, "an alignment is a power of two");
    return align;
}

static const char *checked_name(parser *p, word name)
{
    if (!p->failed && isdigit((unsigned char)name.at[0]))
        fail(p, "the name of a buffer or parameter starts with a letter");
    if (!p->failed && (find_value(p, name) || find_buffer(p, name)))
        fail(p, "%%%.*s has two definitions", (int)name.n, name.at);
    return copy_word(p, name);
}

static qn_dtype take_dtype(parser *p)
{
    word w = take_word(p, "a dtype");
    qn_dtype dtype = p->failed ? QUERN_I64 : qn_dtype_parse(w.at, w.n);
    if (dtype == QUERN_INVALID_DTYPE)
        fail(p, "'%.*s' is no dtype", (int)w.n, w.at);
    return p->failed ? QUERN_I64 : dtype;
}

static void parse_arguments(parser *p)
{
    static const char *const uses[4] = { "unused", "in", "out", "inout" };
    qn_vec(word) inplace = { 0 };
    skip_space(p);
    while (*p->at == '%') {
        word name = take_name(p), other = { 0 };
        const char *text = checked_name(p, name);
        expect(p, ":");
        qn_dtype dtype = take_dtype(p);
        int use = take_choice(p, "use of an argument: in, out, inout or unused", uses, 4);
        if (p->failed)
            return;
        int align = take_align(p, 0);
        qn_kernel_add_buffer(p->k, text, dtype, use & 1, use & 2, align);
        if (accept(p, "inplace"))
            other = take_name(p);
        qn_vec_push(p->arena, &inplace, other);
        if (!accept(p, ","))
            break;
        skip_space(p);
    }
    for (size_t i = 0; i < inplace.n && !p->failed; i++) {
        if (inplace.items[i].n == 0)
            continue;
        qn_kbuffer *other = find_buffer(p, inplace.items[i]);
        if (!other)
            fail(p, "there is no buffer %%%.*s", (int)inplace.items[i].n, inplace.items[i].at);
        else
            p->k->buffers[i]->inplace = other->index;
    }
}

static void parse_params(parser *p)
{
    if (!accept(p, ";"))
        return;
    do {
        const char *name = checked_name(p, take_name(p));
        int64_t min = INT64_MIN, max = INT64_MAX, multiple = 1;
        if (accept(p, "[")) {
            min = take_int(p, INT64_MIN, INT64_MAX);
            expect(p, ",");
            max = take_int(p, min, INT64_MAX);
            expect(p, "]");
        }
        if (accept(p, "multiple"))
            multiple = take_int(p, 1, INT64_MAX);
        if (!p->failed)
            qn_kernel_add_param(p->k, name, min, max, multiple);
    } while (!p->failed && accept(p, ","));
}

static void parse_scratch(parser *p)
{
    for (;;) {
        bool local = accept(p, "local");
        if (!local && !accept(p, "shared"))
            return;
        const char *name = checked_name(p, take_name(p));
        expect(p, ":");
        qn_dtype dtype = take_dtype(p);
        expect(p, "[");
        int64_t elements = take_int(p, 0, QN_LOCAL_LIMIT);
        expect(p, "]");
        if (p->failed)
            return;
        qn_kbuffer *buffer = local ? qn_kernel_add_local(p->k, name, dtype, elements)
                                   : qn_kernel_add_shared(p->k, name, dtype, elements);
        buffer->align = take_align(p, 64);
    }
}

/* @plain.name, or @"any text" with \" \\ \n \t \xHH */
static const char *parse_kernel_name(parser *p)
{
    expect(p, "@");
    if (p->failed || *p->at != '"')
        return copy_word(p, take_word(p, "the kernel's name"));
    size_t n = 0;
    char *name = qn_arena_alloc(p->arena, strlen(p->at) + 1);
    for (p->at++; *p->at && *p->at != '"' && *p->at != '\n'; p->at++) {
        char c = *p->at;
        if (c == '\\') {
            unsigned code = 0;
            c = *++p->at;
            if (c == 'n' || c == 't') {
                c = c == 'n' ? '\n' : '\t';
            } else if (c == 'x' && isxdigit((unsigned char)p->at[1]) && isxdigit((unsigned char)p->at[2])) {
                char digits[3] = { p->at[1], p->at[2], 0 };
                code = (unsigned)strtoul(digits, NULL, 16);
                c = (char)code;
                p->at += 2;
            } else if (c != '"' && c != '\\') {
                fail(p, "unknown escape in the kernel's name");
                return "";
            }
        }
        name[n++] = c;
    }
    expect(p, "\"");
    return name;
}

static void parse_kernel(parser *p)
{
    expect(p, "kernel");
    p->k->name = qn_arena_strdup(p->k->arena, parse_kernel_name(p));
    expect(p, "(");
    parse_arguments(p);
    parse_params(p);
    expect(p, ")");
    if (accept(p, "gpu_threads"))
        p->k->gpu_threads = (int)take_int(p, 1, 1024);
    if (accept(p, "flops"))
        p->k->flops = take_literal(p, QUERN_F64).f;
    if (accept(p, "bytes"))
        p->k->bytes = take_literal(p, QUERN_F64).f;
    expect(p, "{");
    parse_scratch(p);
    if (!p->failed)
        parse_block(p, p->k->body);
    if (!p->failed && p->k->body->n_yields)
        fail(p, "the body of a kernel yields nothing");
}

static qn_kernel *parse_from(parser *p)
{
    p->k = qn_kernel_new(p->arena, "");
    p->b = qn_kb_new(p->k);
    parse_kernel(p);
    return p->failed || qn_kernel_verify(p->k, p->diags) ? NULL : p->k;
}

qn_kernel *qn_kernel_parse(const char *text, const char *file, qn_arena *arena, qn_diags *diags)
{
    parser p = { .at = text, .line_start = text, .file = file, .line = 1, .arena = arena, .diags = diags };
    qn_kernel *k = parse_from(&p);
    skip_space(&p);
    if (k && *p.at)
        fail(&p, "expected the end of the text after the kernel");
    return p.failed ? NULL : k;
}

qn_kernel *qn_kernel_parse_at(qn_text_place *place, const char *file, qn_arena *arena, qn_diags *diags)
{
    parser p = { .at = place->at,
                 .line_start = place->line_start,
                 .line = place->line,
                 .file = file,
                 .arena = arena,
                 .diags = diags };
    qn_kernel *k = parse_from(&p);
    *place = (qn_text_place){ p.at, p.line_start, p.line };
    return k;
}
