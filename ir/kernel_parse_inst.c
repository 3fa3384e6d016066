/* Blocks and instructions of the text form of kernels. Instructions are made as they stand, without folding, so that printing
 * gives the same text. Each is checked as soon as it is there (kernel_verify.c), so mistakes have a line. */
#include <ctype.h>
#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"
#include "ir/kernel_parse.h"

enum { MAX_NESTING = 100 };

/* ---- values ---- */

qn_kbuffer *qn_kp_find_buffer(qn_kparser *p, qn_kword name)
{
    for (int i = 0; i < p->k->n_all_buffers; i++)
        if (qn_kp_word_is(name, p->k->buffers[i]->name))
            return p->k->buffers[i];
    return NULL;
}

static qn_kbuffer *take_buffer(qn_kparser *p)
{
    qn_kword name = qn_kp_name(p);
    qn_kbuffer *buffer = p->failed ? NULL : qn_kp_find_buffer(p, name);
    if (!buffer)
        qn_kp_fail(p, "there is no buffer %%%.*s", (int)name.n, name.at);
    return buffer;
}

qn_kvalue *qn_kp_find_value(qn_kparser *p, qn_kword name)
{
    for (size_t i = p->names.n; i-- > 0;)
        if (p->names.items[i].name.n == name.n && !memcmp(p->names.items[i].name.at, name.at, name.n))
            return p->names.items[i].value;
    for (int i = 0; i < p->k->n_params; i++)
        if (qn_kp_word_is(name, p->k->param_names[i]))
            return qn_kernel_param(p->k, i);
    return NULL;
}

static void bind(qn_kparser *p, qn_kword name, qn_kvalue *value)
{
    if (p->failed)
        return;
    if (qn_kp_find_value(p, name) || qn_kp_find_buffer(p, name))
        qn_kp_fail(p, "%%%.*s has two definitions", (int)name.n, name.at);
    qn_kbinding made = { name, value };
    qn_vec_push(p->arena, &p->names, made);
}

/* Something to go on with after a mistake. */
static qn_kvalue *nothing(qn_kparser *p)
{
    return qn_kb_const(&p->b, qn_ktype_make(QUERN_I64, 1), (qn_scalar){ .i = 0 });
}

static qn_kvalue *take_value(qn_kparser *p)
{
    qn_kp_skip(p);
    if (p->failed)
        return nothing(p);
    if (*p->at == '%') {
        qn_kword name = qn_kp_name(p);
        qn_kvalue *v = qn_kp_find_value(p, name);
        if (!v)
            qn_kp_fail(p, "%%%.*s is not defined here", (int)name.n, name.at);
        return v ? v : nothing(p);
    }
    if (qn_kp_accept(p, "task"))
        return qn_kb_task(&p->b);
    if (p->k->by_thread && qn_kp_accept(p, "thread"))
        return qn_kb_thread(&p->b);
    qn_kword w = qn_kp_peek(p);
    qn_ktype type = { QUERN_I64, 1 };
    if (w.n > 0 && qn_kp_parse_type(w, &type))
        p->at += w.n;
    qn_scalar imm = qn_kp_literal(p, type.dtype);
    return p->failed ? nothing(p) : qn_kb_const(&p->b, type, imm);
}

static int take_values(qn_kparser *p, qn_kvalue **out, int max)
{
    int n = 0;
    do {
        if (n == max) {
            qn_kp_fail(p, "too many operands");
            return n;
        }
        out[n++] = take_value(p);
    } while (qn_kp_accept(p, ","));
    return n;
}

/* ---- instructions ---- */

static void check_inst(qn_kparser *p, qn_kinst *inst)
{
    const char *mistake = p->failed ? NULL : qn_kinst_mistake(p->k, inst, p->arena);
    if (mistake)
        qn_kp_fail(p, "%s %s",
                   inst->op == QN_K_UNARY || inst->op == QN_K_BINARY ? qn_ops[inst->fn].name
                                                                     : qn_kop_names[inst->op],
                   mistake);
}

static qn_kinst *emit(qn_kparser *p, qn_kop op, int n, qn_kvalue **operands, qn_ktype type)
{
    qn_kb_emit(&p->b, op, n, operands, type);
    qn_kinst *inst = p->b.block->last;
    inst->fast = false;
    return inst;
}

typedef struct results {
    int n;
    qn_kword *names;
} results;

static void bind_results(qn_kparser *p, const results *names, qn_kinst *inst)
{
    if (!p->failed && names->n != inst->n_results)
        qn_kp_fail(p, "%d names for %d results", names->n, inst->n_results);
    for (int i = 0; i < inst->n_results && !p->failed; i++)
        bind(p, names->names[i], &inst->results[i]);
}

static void parse_yield(qn_kparser *p, qn_kblock *block)
{
    qn_kvalue *values[64];
    int n = 0;
    if (qn_kp_accept(p, "yield"))
        n = take_values(p, values, 64);
    qn_kblock_set_yields(p->k, block, n, values);
    qn_kp_expect(p, "}");
}

static void check_yields(qn_kparser *p, const qn_kblock *block, int n, const qn_kvalue *results)
{
    if (p->failed)
        return;
    if (block->n_yields != n) {
        qn_kp_fail(p, "the block yields %d values, %d are wanted", block->n_yields, n);
        return;
    }
    for (int i = 0; i < n; i++)
        if (!qn_ktype_equal(block->yields[i]->type, results[i].type))
            qn_kp_fail(p, "value %d that the block yields is a %s, not a %s", i,
                       qn_ktype_print(block->yields[i]->type, p->arena),
                       qn_ktype_print(results[i].type, p->arena));
}

static void parse_for(qn_kparser *p, const results *names)
{
    enum { MAX_CARRIED = 60 };
    qn_kvalue *bounds[3], *initial[MAX_CARRIED];
    qn_kword counter = qn_kp_name(p), carried[MAX_CARRIED];
    qn_kind kinds[MAX_CARRIED];
    static const char *const words[3] = { "=", "to", "step" };
    for (int i = 0; i < 3; i++) {
        qn_kp_expect(p, words[i]);
        bounds[i] = take_value(p);
    }
    int tag = QN_TAG_SERIAL, lanes = 0, n = 0, n_kinds = 0;
    for (int i = 1; i < 5; i++)
        if (qn_kp_accept(p, qn_ktag_names[i]))
            tag = i;
    if (isdigit((unsigned char)*qn_kp_peek(p).at))
        lanes = (int)qn_kp_int(p, 1, 64);
    if (qn_kp_accept(p, "carry"))
        do {
            if (n == MAX_CARRIED) {
                qn_kp_fail(p, "a loop carries at most %d values", MAX_CARRIED);
                break;
            }
            carried[n] = qn_kp_name(p);
            qn_kp_expect(p, "=");
            initial[n] = take_value(p);
            for (int i = 0; i < 5; i++)
                if (qn_kp_accept(p, qn_kind_names[i])) {
                    kinds[n] = (qn_kind)i;
                    n_kinds++;
                }
            n++;
        } while (qn_kp_accept(p, ","));
    if (n_kinds != 0 && n_kinds != n)
        qn_kp_fail(p, "all carried values have a kind, or none has");
    qn_kp_expect(p, "{");
    for (int i = 0; i < 3 && !p->failed; i++)
        if (!qn_k_is_index(bounds[i]))
            qn_kp_fail(p, "bounds and step of a loop are i64 scalars");
    if (p->failed)
        return;
    qn_kinst *loop =
        qn_kb_for(&p->b, bounds[0], bounds[1], bounds[2], (qn_ktag)tag, n, initial, n_kinds ? kinds : NULL);
    loop->lanes = lanes;
    check_inst(p, loop);
    size_t mark = p->names.n;
    bind(p, counter, qn_loop_counter(loop));
    for (int i = 0; i < n; i++)
        bind(p, carried[i], &loop->blocks[0]->arguments[1 + i]);
    qn_kp_block(p, loop->blocks[0]);
    check_yields(p, loop->blocks[0], n, loop->results);
    p->names.n = mark;
    p->b.block = loop->parent;
    bind_results(p, names, loop);
}

static void parse_if(qn_kparser *p, const results *names)
{
    qn_kvalue *condition = take_value(p);
    qn_kp_expect(p, "{");
    if (!p->failed && !qn_ktype_equal(condition->type, qn_ktype_make(QUERN_BOOL, 1)))
        qn_kp_fail(p, "the condition of an if is a bool scalar, not %s",
                   qn_ktype_print(condition->type, p->arena));
    if (p->failed)
        return;
    qn_kinst *branch = qn_kb_if(&p->b, condition);
    size_t mark = p->names.n;
    qn_kp_block(p, branch->blocks[0]);
    p->names.n = mark;
    p->b.block = branch->blocks[1];
    if (qn_kp_accept(p, "else")) {
        qn_kp_expect(p, "{");
        qn_kp_block(p, branch->blocks[1]);
        p->names.n = mark;
    }
    if (branch->blocks[1]->n_yields != branch->blocks[0]->n_yields)
        qn_kp_fail(p, "the blocks of an if yield %d and %d values", branch->blocks[0]->n_yields,
                   branch->blocks[1]->n_yields);
    for (int i = 0; i < branch->blocks[1]->n_yields && !p->failed; i++)
        if (!qn_ktype_equal(branch->blocks[0]->yields[i]->type, branch->blocks[1]->yields[i]->type))
            qn_kp_fail(p, "value %d that the blocks of an if yield has two types", i);
    if (p->failed)
        return;
    qn_kb_end_if(&p->b, branch, branch->blocks[1]->n_yields, branch->blocks[1]->yields);
    bind_results(p, names, branch);
}

static qn_kvalue *parse_place(qn_kparser *p, qn_kbuffer **out)
{
    *out = take_buffer(p);
    qn_kp_expect(p, "[");
    qn_kvalue *index = take_value(p);
    qn_kp_expect(p, "]");
    return index;
}

static qn_kinst *parse_memory(qn_kparser *p, qn_kop op)
{
    qn_kbuffer *buffer;
    qn_kvalue *o[4] = { parse_place(p, &buffer) };
    qn_ktype type = { QUERN_INVALID_DTYPE, 0 };
    int n = 1;
    int64_t locality = 0;
    if (op == QN_K_LOAD) {
        qn_kp_expect(p, ":");
        type = qn_kp_type(p);
    } else {
        qn_kp_expect(p, ",");
        if (op == QN_K_WARP_LOAD && buffer)
            type = qn_ktype_make(buffer->dtype, 8);
        if (op == QN_K_PREFETCH || op == QN_K_WARP_LOAD)
            locality = qn_kp_int(p, 0, op == QN_K_PREFETCH ? 3 : 1);
        else
            o[n++] = take_value(p);
    }
    if ((op == QN_K_LOAD || op == QN_K_STORE) && qn_kp_accept(p, ",")) {
        qn_kp_expect(p, "mask");
        o[n++] = take_value(p);
        if (op == QN_K_LOAD && qn_kp_accept(p, ",")) {
            qn_kp_expect(p, "other");
            o[n++] = take_value(p);
        }
    }
    qn_kinst *inst = emit(p, op, n, o, type);
    inst->buffer = buffer;
    inst->index = locality;
    inst->nontemporal = op == QN_K_STORE && qn_kp_accept(p, "nontemporal");
    inst->in_order = op == QN_K_LOAD && n == 1 && qn_kp_accept(p, "in_order");
    return inst;
}

static void parse_mask(qn_kparser *p, int *mask, int *n)
{
    qn_kp_expect(p, "[");
    do {
        if (*n == 64) {
            qn_kp_fail(p, "a shuffle gives at most 64 lanes");
            return;
        }
        mask[(*n)++] = (int)qn_kp_int(p, 0, 127);
    } while (qn_kp_accept(p, ","));
    qn_kp_expect(p, "]");
}

static const float *parse_table(qn_kparser *p)
{
    float table[QN_LOOKUP] = { 0 };
    for (int i = 0; i < QN_LOOKUP && !p->failed; i++) {
        qn_kp_expect(p, i ? "," : "[");
        table[i] = (float)qn_kp_literal(p, QUERN_F32).f;
    }
    qn_kp_expect(p, "]");
    return qn_arena_copy(p->k->arena, table, sizeof table);
}

static qn_kinst *parse_tile(qn_kparser *p, qn_kop op)
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
        qn_kp_expect(p, ",");
        o[n++] = take_value(p);
    }
    for (int i = 0; i < 2 && op == QN_K_TILE_MMA; i++)
        types[i] = qn_kp_dtype(p);
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
static qn_kinst *parse_plain(qn_kparser *p, qn_kop op, qn_op fn)
{
    qn_kvalue *o[3];
    int direction = 0, kind = 0, n_mask = 0, mask[64];
    const float *table = NULL;
    int64_t number = 0;
    if (op == QN_K_COMPARE)
        direction = qn_kp_choice(p, "comparison", qn_direction_names, 6);
    if (op == QN_K_REDUCE)
        kind = qn_kp_choice(p, "kind", qn_kind_names, 4);
    int n = 0;
    if (op == QN_K_EXTRACT || op == QN_K_CHECK || op == QN_K_WARP_SHUFFLE) {
        o[n++] = take_value(p);
        qn_kp_expect(p, ",");
        number = qn_kp_int(p, 0, INT32_MAX);
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
    case QN_K_JOIN:
    case QN_K_SPLAT:
    case QN_K_RAMP:
        qn_kp_expect(p, ":");
        type = qn_kp_type(p);
        break;
    case QN_K_EXTRACT:
    case QN_K_REDUCE: type.lanes = 1; break;
    case QN_K_PICK: type = o[0]->type; break;
    case QN_K_SHUFFLE:
        parse_mask(p, mask, &n_mask);
        type.lanes = n_mask;
        break;
    case QN_K_LOOKUP:
        type.dtype = QUERN_F32;
        table = parse_table(p);
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
    inst->table = table;
    if (n_mask > 0)
        inst->mask = qn_arena_copy(p->k->arena, mask, (size_t)n_mask * sizeof *mask);
    return inst;
}

/* Does the word end so? Then the end is taken off. */
static bool take_end(qn_kword *w, const char *end)
{
    const size_t n = strlen(end);
    const bool there = w->n > n && !memcmp(w->at + w->n - n, end, n);
    w->n -= there ? n : 0;
    return there;
}

/* What an instruction word says: "add", "add.fast", "iadd", "fma". */
static bool parse_opcode(qn_kword w, qn_kop *op, qn_op *fn, bool *fast, bool *index_math)
{
    *fast = take_end(&w, ".fast");
    *fn = qn_k_index_parse(w.at, w.n);
    *index_math = *fn != QN_N_OPS;
    *op = QN_K_BINARY;
    if (*index_math)
        return true;
    for (int i = QN_K_FMA; i <= QN_K_TILE_MMA; i++)
        if (qn_kp_word_is(w, qn_kop_names[i])) {
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

static void parse_operation(qn_kparser *p, const results *names)
{
    const qn_kword all = qn_kp_word(p, "an instruction");
    qn_kword w = all;
    qn_kop op;
    qn_op fn;
    bool fast, index_math;
    if (p->failed)
        return;
    const bool nonpositive = take_end(&w, ".nonpositive");
    if (!parse_opcode(w, &op, &fn, &fast, &index_math) ||
        (nonpositive && (op != QN_K_UNARY || fn != QN_OP_EXP))) {
        qn_kp_fail(p, "'%.*s' is no kernel instruction", (int)all.n, all.at);
        return;
    }
    bool memory = op == QN_K_LOAD || op == QN_K_STORE || op == QN_K_PREFETCH || op == QN_K_ATOMIC_ADD ||
                  op == QN_K_WARP_LOAD;
    qn_kinst *inst = op >= QN_K_TILE_SHAPE ? parse_tile(p, op)
                     : memory              ? parse_memory(p, op)
                                           : parse_plain(p, op, fn);
    if (p->failed)
        return;
    inst->fast = fast;
    inst->nonpositive = nonpositive;
    inst->index_math = index_math;
    check_inst(p, inst);
    if (p->failed)
        return;
    qn_kinst_bound(p->k, inst);
    bind_results(p, names, inst);
}

static void parse_inst(qn_kparser *p)
{
    qn_kword names[64];
    results r = { 0, names };
    qn_kp_skip(p);
    if (*p->at == '%') {
        do {
            if (r.n == 64) {
                qn_kp_fail(p, "an instruction has at most 64 results");
                return;
            }
            names[r.n++] = qn_kp_name(p);
        } while (qn_kp_accept(p, ","));
        qn_kp_expect(p, "=");
    }
    if (p->failed)
        return;
    if (qn_kp_accept(p, "for"))
        parse_for(p, &r);
    else if (qn_kp_accept(p, "if"))
        parse_if(p, &r);
    else
        parse_operation(p, &r);
}

void qn_kp_block(qn_kparser *p, qn_kblock *block)
{
    if (++p->depth > MAX_NESTING)
        qn_kp_fail(p, "blocks are nested more than %d deep", MAX_NESTING);
    p->b.block = block;
    for (;;) {
        qn_kword w = qn_kp_peek(p);
        if (p->failed || *w.at == '}' || qn_kp_word_is(w, "yield"))
            break;
        if (*w.at == 0)
            qn_kp_fail(p, "expected '}'");
        parse_inst(p);
    }
    parse_yield(p, block);
    p->depth--;
}
