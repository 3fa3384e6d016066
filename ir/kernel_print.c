/* Kernels as text; the form is in kernel_text.h. */
#include <ctype.h>
#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_text.h"
#include "ir/literal.h"
#include "ir/strbuf.h"

const char *const qn_kop_names[] = {
    [QN_K_CONST] = "const",
    [QN_K_PARAM] = "param",
    [QN_K_TASK] = "task",
    [QN_K_THREAD] = "thread",
    [QN_K_UNARY] = "unary",
    [QN_K_BINARY] = "binary",
    [QN_K_FMA] = "fma",
    [QN_K_DOT4] = "dot4",
    [QN_K_DOT2] = "dot2",
    [QN_K_MMLA] = "mmla",
    [QN_K_COMPARE] = "compare",
    [QN_K_SELECT] = "select",
    [QN_K_CONVERT] = "convert",
    [QN_K_BITCAST] = "bitcast",
    [QN_K_SCALE2] = "scale2",
    [QN_K_LOOKUP] = "lookup",
    [QN_K_PICK] = "pick",
    [QN_K_JOIN] = "join",
    [QN_K_SPLAT] = "splat",
    [QN_K_RAMP] = "ramp",
    [QN_K_EXTRACT] = "extract",
    [QN_K_SHUFFLE] = "shuffle",
    [QN_K_REDUCE] = "reduce",
    [QN_K_LOAD] = "load",
    [QN_K_STORE] = "store",
    [QN_K_PREFETCH] = "prefetch",
    [QN_K_ATOMIC_ADD] = "atomic_add",
    [QN_K_FOR] = "for",
    [QN_K_IF] = "if",
    [QN_K_CHECK] = "check",
    [QN_K_BARRIER] = "barrier",
    [QN_K_WARP_SHUFFLE] = "warp_shuffle",
    [QN_K_WARP_LOAD] = "warp_load",
    [QN_K_WARP_MMA] = "warp_mma",
    [QN_K_TILE_SHAPE] = "tile_shape",
    [QN_K_TILE_ZERO] = "tile_zero",
    [QN_K_TILE_LOAD] = "tile_load",
    [QN_K_TILE_STORE] = "tile_store",
    [QN_K_TILE_MMA] = "tile_mma",
};
const char *const qn_ktag_names[5] = { "serial", "vector", "unroll", "overlap", "gpu_thread" };

static const struct {
    qn_op fn;
    const char *name;
} index_names[] = {
    { QN_OP_ADD, "iadd" }, { QN_OP_SUB, "isub" }, { QN_OP_MUL, "imul" },
    { QN_OP_DIV, "idiv" }, { QN_OP_REM, "imod" },
};
enum { N_INDEX_NAMES = sizeof index_names / sizeof *index_names };

const char *qn_k_index_name(qn_op fn)
{
    for (int i = 0; i < N_INDEX_NAMES; i++)
        if (index_names[i].fn == fn)
            return index_names[i].name;
    return NULL;
}

qn_op qn_k_index_parse(const char *name, size_t length)
{
    for (int i = 0; i < N_INDEX_NAMES; i++)
        if (strlen(index_names[i].name) == length && !memcmp(index_names[i].name, name, length))
            return index_names[i].fn;
    return QN_N_OPS;
}

const char *qn_ktype_print(qn_ktype type, qn_arena *arena)
{
    const char *name = qn_dtype_name(type.dtype);
    return type.lanes == 1 ? name : qn_arena_printf(arena, "%sx%d", name, type.lanes);
}

typedef struct printer {
    qn_strbuf out;
    const qn_kernel *k;
    bool canonical; /* names are left out */
    int n_values;
    int indent;
} printer;

static void print_number(printer *p, const char *before, int64_t value)
{
    qn_strbuf_puts(&p->out, before);
    qn_strbuf_int(&p->out, value);
}

static void name_buffer(printer *p, const qn_kbuffer *buffer)
{
    if (!p->canonical) {
        qn_strbuf_printf(&p->out, "%%%s", buffer->name);
        return;
    }
    for (int i = 0; i < p->k->n_all_buffers; i++)
        if (p->k->buffers[i] == buffer)
            print_number(p, "%b", i);
}

static void name_param(printer *p, int64_t i)
{
    if (p->canonical)
        print_number(p, "%p", i);
    else
        qn_strbuf_printf(&p->out, "%%%s", p->k->param_names[i]);
}

static void print_type(printer *p, qn_ktype type)
{
    qn_strbuf_puts(&p->out, qn_dtype_name(type.dtype));
    if (type.lanes != 1)
        print_number(p, "x", type.lanes);
}

static void print_const(printer *p, const qn_kvalue *v)
{
    unsigned char bytes[8];
    char text[QN_LITERAL_MAX];
    if (qn_k_is_index(v)) {
        qn_strbuf_int(&p->out, v->inst->imm.i);
        return;
    }
    print_type(p, v->type);
    qn_strbuf_puts(&p->out, " ");
    qn_scalar_store(v->type.dtype, v->inst->imm, bytes);
    qn_literal_print(v->type.dtype, bytes, text);
    qn_strbuf_puts(&p->out, text);
}

static void use(printer *p, const qn_kvalue *v)
{
    if (v->inst && v->inst->op == QN_K_CONST)
        print_const(p, v);
    else if (v->inst && v->inst->op == QN_K_PARAM)
        name_param(p, v->inst->index);
    else if (v->inst && v->inst->op == QN_K_TASK)
        qn_strbuf_puts(&p->out, "task");
    else if (v->inst && v->inst->op == QN_K_THREAD)
        qn_strbuf_puts(&p->out, "thread");
    else
        print_number(p, "%", v->id);
}

static void uses(printer *p, qn_kvalue *const *values, int n)
{
    for (int i = 0; i < n; i++) {
        qn_strbuf_puts(&p->out, i ? ", " : " ");
        use(p, values[i]);
    }
}

static void define(printer *p, qn_kvalue *values, int n)
{
    for (int i = 0; i < n; i++) {
        values[i].id = p->n_values++;
        print_number(p, i ? ", %" : "%", values[i].id);
    }
}

static void start_line(printer *p)
{
    const size_t n = 2 * (size_t)p->indent;
    memset(qn_strbuf_reserve(&p->out, n), ' ', n);
    p->out.n += n;
}

static void print_block(printer *p, const qn_kblock *block);

static void print_for(printer *p, qn_kinst *inst)
{
    qn_kblock *body = inst->blocks[0];
    qn_strbuf_puts(&p->out, "for ");
    define(p, &body->arguments[0], 1);
    static const char *const words[3] = { " = ", " to ", " step " };
    for (int i = 0; i < 3; i++) {
        qn_strbuf_puts(&p->out, words[i]);
        use(p, inst->operands[i]);
    }
    if (inst->tag != QN_TAG_SERIAL)
        qn_strbuf_printf(&p->out, " %s", qn_ktag_names[inst->tag]);
    if (inst->lanes > 0)
        qn_strbuf_printf(&p->out, " %d", inst->lanes);
    for (int i = 0; i < inst->n_results; i++) {
        qn_strbuf_puts(&p->out, i ? ", " : " carry ");
        define(p, &body->arguments[1 + i], 1);
        qn_strbuf_puts(&p->out, " = ");
        use(p, inst->operands[3 + i]);
        if (inst->carried_kinds)
            qn_strbuf_printf(&p->out, " %s", qn_kind_names[inst->carried_kinds[i]]);
    }
    qn_strbuf_puts(&p->out, " {\n");
    print_block(p, body);
    start_line(p);
    qn_strbuf_puts(&p->out, "}");
}

static void print_if(printer *p, const qn_kinst *inst)
{
    qn_strbuf_puts(&p->out, "if ");
    use(p, inst->operands[0]);
    qn_strbuf_puts(&p->out, " {\n");
    print_block(p, inst->blocks[0]);
    start_line(p);
    if (inst->blocks[1]->first || inst->blocks[1]->n_yields > 0) {
        qn_strbuf_puts(&p->out, "} else {\n");
        print_block(p, inst->blocks[1]);
        start_line(p);
    }
    qn_strbuf_puts(&p->out, "}");
}

static void print_place(printer *p, const qn_kinst *inst)
{
    qn_strbuf_puts(&p->out, " ");
    name_buffer(p, inst->buffer);
    qn_strbuf_puts(&p->out, "[");
    use(p, inst->operands[0]);
    qn_strbuf_puts(&p->out, "]");
}

static void print_memory(printer *p, const qn_kinst *inst)
{
    static const char *const words[2] = { ", mask ", ", other " };
    print_place(p, inst);
    int at = 1;
    if (inst->op == QN_K_LOAD) {
        qn_strbuf_puts(&p->out, " : ");
        print_type(p, inst->results[0].type);
    } else if (inst->n_operands > 1) {
        qn_strbuf_puts(&p->out, ",");
        uses(p, inst->operands + 1, 1);
        at = 2;
    }
    for (int i = 0; at < inst->n_operands; i++, at++) {
        qn_strbuf_puts(&p->out, words[i]);
        use(p, inst->operands[at]);
    }
    if (inst->nontemporal)
        qn_strbuf_puts(&p->out, " nontemporal");
    if (inst->in_order)
        qn_strbuf_puts(&p->out, " in_order");
    if (inst->op == QN_K_PREFETCH || inst->op == QN_K_WARP_LOAD)
        qn_strbuf_printf(&p->out, ", %lld", (long long)inst->index);
}

static void print_numbers(printer *p, const qn_kinst *inst)
{
    for (int i = 0; i < inst->n_mask; i++)
        print_number(p, i ? ", " : " [", inst->mask[i]);
    qn_strbuf_puts(&p->out, "]");
}

static void print_table(printer *p, const float *table)
{
    char text[QN_LITERAL_MAX];
    for (int i = 0; i < QN_LOOKUP; i++) {
        qn_literal_print(QUERN_F32, &table[i], text);
        qn_strbuf_printf(&p->out, "%s%s", i ? ", " : " [", text);
    }
    qn_strbuf_puts(&p->out, "]");
}

static void print_operation(printer *p, const qn_kinst *inst)
{
    const char *name = qn_kop_names[inst->op];
    if (inst->op == QN_K_UNARY || inst->op == QN_K_BINARY)
        name = inst->index_math ? qn_k_index_name(inst->fn) : qn_ops[inst->fn].name;
    qn_strbuf_puts(&p->out, name);
    if (inst->fast)
        qn_strbuf_puts(&p->out, ".fast");
    if (inst->nonpositive)
        qn_strbuf_puts(&p->out, ".nonpositive");
    switch (inst->op) {
    case QN_K_LOAD:
    case QN_K_STORE:
    case QN_K_PREFETCH:
    case QN_K_ATOMIC_ADD:
    case QN_K_WARP_LOAD: print_memory(p, inst); return;
    case QN_K_TILE_LOAD:
    case QN_K_TILE_STORE: /* tile_load [4] %x[%i], %stride */
        print_numbers(p, inst);
        print_place(p, inst);
        qn_strbuf_puts(&p->out, ",");
        uses(p, inst->operands + 1, 1);
        return;
    case QN_K_COMPARE: qn_strbuf_printf(&p->out, " %s", qn_direction_names[inst->direction]); break;
    case QN_K_REDUCE: qn_strbuf_printf(&p->out, " %s", qn_kind_names[inst->kind]); break;
    default: break;
    }
    uses(p, inst->operands, inst->n_operands);
    switch (inst->op) {
    case QN_K_CONVERT:
    case QN_K_BITCAST:
    case QN_K_JOIN:
    case QN_K_SPLAT:
    case QN_K_RAMP:
        qn_strbuf_puts(&p->out, " : ");
        print_type(p, inst->results[0].type);
        break;
    case QN_K_EXTRACT:
    case QN_K_WARP_SHUFFLE:
    case QN_K_CHECK: qn_strbuf_printf(&p->out, ", %lld", (long long)inst->index); break;
    case QN_K_LOOKUP: print_table(p, inst->table); break;
    case QN_K_SHUFFLE:
    case QN_K_TILE_ZERO: print_numbers(p, inst); break;
    case QN_K_TILE_MMA: /* tile_mma [0, 4, 6] bf16 bf16 */
        print_numbers(p, inst);
        for (int i = 0; i < 2; i++)
            qn_strbuf_printf(&p->out, " %s", qn_dtype_name(inst->tile_type[i]));
        break;
    default: break;
    }
}

static void print_block(printer *p, const qn_kblock *block)
{
    p->indent++;
    for (qn_kinst *inst = block->first; inst; inst = inst->next) {
        if (inst->op == QN_K_CONST || inst->op == QN_K_PARAM || inst->op == QN_K_TASK ||
            inst->op == QN_K_THREAD)
            continue;
        start_line(p);
        if (inst->n_results > 0) {
            define(p, inst->results, inst->n_results);
            qn_strbuf_puts(&p->out, " = ");
        }
        if (inst->op == QN_K_FOR)
            print_for(p, inst);
        else if (inst->op == QN_K_IF)
            print_if(p, inst);
        else
            print_operation(p, inst);
        qn_strbuf_puts(&p->out, "\n");
    }
    if (block->n_yields > 0) {
        start_line(p);
        qn_strbuf_puts(&p->out, "yield");
        uses(p, block->yields, block->n_yields);
        qn_strbuf_puts(&p->out, "\n");
    }
    p->indent--;
}

static void print_argument(printer *p, const qn_kbuffer *buffer)
{
    name_buffer(p, buffer);
    qn_strbuf_printf(&p->out, ": %s %s", qn_dtype_name(buffer->dtype),
                     buffer->read      ? buffer->written ? "inout" : "in"
                     : buffer->written ? "out"
                                       : "unused");
    if (buffer->align != (int)qn_dtype_bytes(buffer->dtype))
        qn_strbuf_printf(&p->out, " align %d", buffer->align);
    if (buffer->inplace >= 0) {
        qn_strbuf_puts(&p->out, " inplace ");
        name_buffer(p, p->k->buffers[buffer->inplace]);
    }
}

static void print_param(printer *p, int i)
{
    const qn_kernel *k = p->k;
    name_param(p, i);
    if (k->param_min[i] != INT64_MIN || k->param_max[i] != INT64_MAX)
        qn_strbuf_printf(&p->out, " [%lld, %lld]", (long long)k->param_min[i], (long long)k->param_max[i]);
    if (k->param_multiple[i] != 1)
        qn_strbuf_printf(&p->out, " multiple %lld", (long long)k->param_multiple[i]);
}

static void print_count(printer *p, const char *word, double value)
{
    char text[QN_LITERAL_MAX];
    if (value == 0)
        return;
    qn_literal_print(QUERN_F64, &value, text);
    qn_strbuf_printf(&p->out, " %s %s", word, text);
}

static void print_name(printer *p, const char *name)
{
    bool plain = isalpha((unsigned char)name[0]) || name[0] == '_';
    for (const char *c = name; *c; c++)
        plain = plain && (isalnum((unsigned char)*c) || *c == '_' || *c == '.');
    if (plain)
        qn_strbuf_puts(&p->out, name);
    else
        qn_strbuf_quote(&p->out, name);
}

static void print_header(printer *p)
{
    const qn_kernel *k = p->k;
    qn_strbuf_puts(&p->out, "kernel @");
    print_name(p, p->canonical ? "k" : k->name);
    qn_strbuf_puts(&p->out, "(");
    for (int i = 0; i < k->n_buffers; i++) {
        qn_strbuf_puts(&p->out, i ? ", " : "");
        print_argument(p, k->buffers[i]);
    }
    for (int i = 0; i < k->n_params; i++) {
        qn_strbuf_puts(&p->out, i ? ", " : "; ");
        print_param(p, i);
    }
    qn_strbuf_puts(&p->out, ")");
    if (k->gpu_threads)
        qn_strbuf_printf(&p->out, " gpu_threads %d%s", k->gpu_threads, k->by_thread ? " each" : "");
    if (!p->canonical) {
        print_count(p, "flops", k->flops);
        print_count(p, "bytes", k->bytes);
    }
    qn_strbuf_puts(&p->out, " {\n");
    for (int i = k->n_buffers; i < k->n_all_buffers; i++) {
        const qn_kbuffer *buffer = k->buffers[i];
        qn_strbuf_puts(&p->out, buffer->space == QN_SPACE_LOCAL ? "  local " : "  shared ");
        name_buffer(p, buffer);
        qn_strbuf_printf(&p->out, ": %s[%lld]", qn_dtype_name(buffer->dtype), (long long)buffer->elements);
        if (buffer->align != 64)
            qn_strbuf_printf(&p->out, " align %d", buffer->align);
        qn_strbuf_puts(&p->out, "\n");
    }
}

static const char *print_kernel(const qn_kernel *kernel, bool canonical, qn_arena *arena)
{
    printer p = { .out = { .arena = arena }, .k = kernel, .canonical = canonical };
    print_header(&p);
    print_block(&p, kernel->body);
    qn_strbuf_puts(&p.out, "}\n");
    return qn_strbuf_text(&p.out);
}

const char *qn_kernel_print(const qn_kernel *kernel, qn_arena *arena)
{
    return print_kernel(kernel, false, arena);
}

const char *qn_kernel_canonical(const qn_kernel *kernel, qn_arena *arena)
{
    return print_kernel(kernel, true, arena);
}
