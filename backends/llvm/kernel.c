/* Kernels: kernel IR to LLVM IR, instruction by instruction.
 *
 *   void kernel(ptr noalias %args, i64 %task) {       on a GPU: of the grid's first block, and the arguments behind it
 *   entry:   local buffers, buffer addresses
 *   body:    straight code; a `for` becomes  test? -> loop (phis, bottom test) -> behind,  an `if` two blocks and phis
 *
 * The kernel IR is vector code already, so no LLVM pass runs before code generation. What LLVM is told beyond it: buffers
 * don't overlap (alias scopes), index arithmetic doesn't wrap, and nothing about floats unless the instruction is marked
 * fast. */
#include <string.h>

#include "backends/llvm/emit.h"
#include "ir/kernel_edit.h"
#include "passes/lower.h"

typedef struct lowering {
    qn_emitter *e;
    const qn_kernel *k;
    const char *symbol;
    LLVMValueRef function, args, task;
    LLVMValueRef *values;    /* by serial number */
    LLVMValueRef *addresses; /* by position in k->buffers */
    qn_llvm_tags *tags;
    int threads;                 /* of a GPU's block; 0 on a CPU */
    LLVMValueRef thread;         /* GPU: number of this one */
    const struct escape *escape; /* in a loop that is spread over GPU threads */
    bool aligned;  /* in the version for buffers aligned to whole vectors: see nontemporal stores below */
    bool bypassed; /* non-temporal stores were emitted: a fence is due */
    LLVMValueRef tile_config;    /* NULL: it uses no tiles */
    bool behind_tile;            /* a loop before, in this block, has a tile's sums in registers */
    const struct hidden *hidden; /* constants of the running loop; NULL: none are hidden */
    qn_status status;
} lowering;

/* Constants whose values LLVM is not to know. It would move them out of all loops, to the top of the kernel, and then has no registers
 * left for a tile's sums (of 12 x 32, in the innermost loop): products with an epilogue took half as long again. */
typedef struct hidden {
    int n;
    struct {
        qn_ktype type;
        LLVMValueRef known, value;
    } items[32];
} hidden;

/* Where a thread of a GPU goes on after a failed check: with its next iteration. It can't leave, others wait for it. */
typedef struct escape {
    LLVMBasicBlockRef next;
    int n;
    LLVMValueRef *before, *phis; /* carried values at the iteration's begin; in `next` */
} escape;

/* The constant, or the value that hides it. */
static LLVMValueRef find_hidden(const lowering *s, LLVMValueRef constant)
{
    for (int i = 0; s->hidden && i < s->hidden->n; i++)
        if (s->hidden->items[i].known == constant)
            return s->hidden->items[i].value;
    return constant;
}

static LLVMValueRef get(const lowering *s, const qn_kvalue *v)
{
    LLVMValueRef value = s->values[v->serial];
    QN_ASSERT(value, "kernel %s: a value is used before it is made", s->k->name);
    return s->hidden ? find_hidden(s, value) : value;
}

static LLVMValueRef operand(const lowering *s, const qn_kinst *inst, int i)
{
    return get(s, inst->operands[i]);
}

static LLVMValueRef operand_or_null(const lowering *s, const qn_kinst *inst, int i)
{
    return i < inst->n_operands && inst->operands[i] ? get(s, inst->operands[i]) : NULL;
}

static void unsupported(lowering *s, const char *what)
{
    if (!s->status)
        s->status = qn_error(s->e->diags, QUERN_ERROR_INTERNAL, NULL, "kernel %s: no %s code for %s",
                             s->k->name, s->threads ? "GPU" : "CPU", what);
}

/* ---- buffers ---- */

static int position(const lowering *s, const qn_kbuffer *buffer)
{
    for (int i = 0; i < s->k->n_all_buffers; i++)
        if (s->k->buffers[i] == buffer)
            return i;
    QN_UNREACHABLE("kernel %s has no buffer %s", s->k->name, buffer->name);
}

/* On a GPU: are addresses and parameters the kernel's own? */
static bool has_arguments(const lowering *s)
{
    return s->threads && s->k->n_buffers + s->k->n_params <= QN_GPU_ARGUMENTS;
}

static LLVMValueRef load_argument(const lowering *s, LLVMTypeRef type, int number)
{
    if (has_arguments(s))
        return LLVMGetParam(s->function, (unsigned)(1 + number));
    LLVMValueRef index = qn_llvm_i64(s->e, number);
    LLVMValueRef at = LLVMBuildGEP2(s->e->builder, s->e->i64, s->args, &index, 1, "");
    LLVMValueRef value = LLVMBuildLoad2(s->e->builder, type, at, "");
    LLVMSetAlignment(value, 8);
    return value;
}

static void place_buffers(lowering *s)
{
    const qn_emitter *e = s->e;
    int64_t local_bytes = 0;
    for (int i = 0; i < s->k->n_all_buffers; i++) {
        const qn_kbuffer *buffer = s->k->buffers[i];
        if (buffer->space == QN_SPACE_ARGUMENT) {
            s->addresses[i] = load_argument(s, e->ptr, 1 + i);
            if (s->threads && !has_arguments(s))
                s->addresses[i] = qn_llvm_gpu_global(e, s->addresses[i]);
        } else if (buffer->space == QN_SPACE_SHARED && s->threads) {
            const char *name = qn_arena_printf(e->arena, "%s_shared%d", s->symbol, i);
            LLVMTypeRef element = qn_llvm_memory_type(e, (qn_ktype){ buffer->dtype, 1 });
            s->addresses[i] = qn_llvm_gpu_shared(e, name, element, buffer->elements);
        } else if (buffer->space == QN_SPACE_LOCAL) {
            LLVMTypeRef element = qn_llvm_memory_type(e, (qn_ktype){ buffer->dtype, 1 });
            LLVMTypeRef array = LLVMArrayType2(element, (uint64_t)buffer->elements);
            s->addresses[i] = LLVMBuildAlloca(e->builder, array, buffer->name);
            LLVMSetAlignment(s->addresses[i], 64);
            local_bytes += buffer->elements * (int64_t)qn_dtype_bytes(buffer->dtype);
        } else {
            unsupported(s, "shared memory");
        }
    }
    QN_ASSERT(local_bytes <= QN_LOCAL_LIMIT, "kernel %s: %lld bytes of local buffers", s->k->name,
              (long long)local_bytes);
}

static bool may_overlap(const qn_kbuffer *a, int a_at, const qn_kbuffer *b, int b_at)
{
    return a_at == b_at || a->inplace == b_at || b->inplace == a_at ||
           (a->inplace >= 0 && a->inplace == b->inplace);
}

/* An alias scope a buffer: its accesses are in its own and overlap none of the others. */
static void make_alias_scopes(lowering *s)
{
    enum { MOST = 24 };
    LLVMContextRef c = s->e->context;
    LLVMMetadataRef scopes[MOST], others[MOST];
    int n = s->k->n_all_buffers;
    if (n < 2 || n > MOST)
        return;
    LLVMMetadataRef text = LLVMMDStringInContext2(c, s->k->name, strlen(s->k->name));
    LLVMMetadataRef domain = LLVMMDNodeInContext2(c, &text, 1);
    for (int i = 0; i < n; i++) {
        const char *name = s->k->buffers[i]->name;
        LLVMMetadataRef parts[] = { LLVMMDStringInContext2(c, name, strlen(name)), domain };
        scopes[i] = LLVMMDNodeInContext2(c, parts, 2);
    }
    for (int i = 0; i < n; i++) {
        size_t n_others = 0;
        for (int j = 0; j < n; j++)
            if (!may_overlap(s->k->buffers[i], i, s->k->buffers[j], j))
                others[n_others++] = scopes[j];
        s->tags[i].alias_scope = LLVMMetadataAsValue(c, LLVMMDNodeInContext2(c, &scopes[i], 1));
        s->tags[i].noalias = LLVMMetadataAsValue(c, LLVMMDNodeInContext2(c, others, n_others));
    }
}

/* ---- addresses ---- */

static bool is_index_constant(const qn_kvalue *v)
{
    return v->inst && v->inst->op == QN_K_CONST && v->type.dtype == QUERN_I64 && v->type.lanes == 1;
}

static LLVMValueRef step(const lowering *s, LLVMTypeRef element, LLVMValueRef base, LLVMValueRef index)
{
    return LLVMBuildGEP2(s->e->builder, element, base, &index, 1, "");
}

/* base + at + elements, as an AArch64 adds up: a displacement has no sign, so one below is cut, and many share its lower part. */
static LLVMValueRef displaced(const lowering *s, LLVMTypeRef element, const qn_kbuffer *buffer,
                              LLVMValueRef at, LLVMValueRef elements)
{
    enum { REACH = 256, CUT = 16384 }; /* bytes: of a displacement with a sign; of parts that are cut off */
    const int64_t size = (int64_t)qn_dtype_bytes(buffer->dtype), n = LLVMConstIntGetSExtValue(elements);
    if (s->e->target->isa == QN_ISA_AARCH64 && n * size < -REACH) {
        const int64_t each = CUT / size, below = (-n + each - 1) / each * each;
        at = step(s, element, at, qn_llvm_i64(s->e, -below));
        elements = qn_llvm_i64(s->e, n + below);
    }
    return step(s, element, at, elements);
}

/* Splits x + constant, so that the constant becomes the displacement of the machine's addressing mode. */
static LLVMValueRef address(const lowering *s, const qn_kbuffer *buffer, const qn_kvalue *index)
{
    LLVMTypeRef element = qn_llvm_memory_type(s->e, (qn_ktype){ buffer->dtype, 1 });
    LLVMValueRef base = s->addresses[position(s, buffer)];
    const qn_kinst *sum = index->inst;
    if (index->type.lanes == 1 && sum && sum->op == QN_K_BINARY && sum->fn == QN_OP_ADD)
        for (int i = 0; i < 2; i++)
            if (is_index_constant(sum->operands[i]))
                return displaced(s, element, buffer, step(s, element, base, operand(s, sum, !i)),
                                 operand(s, sum, i));
    return step(s, element, base, get(s, index));
}

/* ---- memory ---- */

/* How the access may touch memory. On a GPU wide accesses are worth their proof of alignment, and what nobody writes while the
 * kernel runs takes another way through the caches. */
static qn_llvm_tags tags_of(const lowering *s, const qn_kinst *inst, qn_ktype type)
{
    qn_llvm_tags tags = s->tags[position(s, inst->buffer)];
    const int64_t bytes = (int64_t)qn_dtype_bytes(type.dtype), multiple = inst->operands[0]->multiple;
    if (!s->threads || inst->operands[0]->type.lanes > 1)
        return tags;
    int64_t align = bytes;
    while (align < QN_GPU_ACCESS && 2 * align <= inst->buffer->align && multiple % (2 * align / bytes) == 0)
        align *= 2;
    tags.align = (unsigned)align;
    tags.unchanging = inst->op == QN_K_LOAD && qn_kinst_is_pure(s->k, inst);
    return tags;
}

static LLVMValueRef emit_load(lowering *s, const qn_kinst *inst)
{
    qn_ktype type = inst->results[0].type;
    qn_llvm_tags tags = tags_of(s, inst, type);
    LLVMValueRef mask = operand_or_null(s, inst, 1), other = operand_or_null(s, inst, 2);
    LLVMValueRef at = address(s, inst->buffer, inst->operands[0]);
    if (inst->operands[0]->type.lanes > 1)
        return qn_llvm_gather(s->e, type, at, mask, other, tags);
    return qn_llvm_load(s->e, type, at, mask, other, tags);
}

/* Non-temporal stores are only for addresses that are multiples of the vector. The index tells at compile time; the buffer
 * of a caller, who promises no more than the element's alignment, only at run time; so is whether an output took the memory
 * of the input that it is made from, whose lines are in the cache then. A kernel with such stores is made twice and
 * chooses at its start. */
static bool fits_nontemporal(const lowering *s, const qn_kinst *inst, int64_t *out_bytes)
{
    if (inst->op != QN_K_STORE || !inst->nontemporal || inst->n_operands > 2)
        return false;
    qn_ktype type = inst->operands[1]->type;
    const qn_kvalue *index = inst->operands[0];
    int64_t size = (int64_t)qn_dtype_bytes(type.dtype), bytes = size * type.lanes;
    if (bytes > s->e->target->vector_bytes)
        bytes = s->e->target->vector_bytes;
    *out_bytes = bytes;
    return bytes >= 16 && index->type.lanes == 1 && index->multiple % (bytes / size) == 0;
}

static bool surely_nontemporal(const qn_kinst *inst, int64_t bytes)
{
    return inst->buffer->align >= bytes && inst->buffer->inplace < 0;
}

static void emit_store(lowering *s, const qn_kinst *inst)
{
    qn_ktype type = inst->operands[1]->type;
    qn_llvm_tags tags = tags_of(s, inst, type);
    LLVMValueRef value = operand(s, inst, 1), mask = operand_or_null(s, inst, 2);
    LLVMValueRef at = address(s, inst->buffer, inst->operands[0]);
    int64_t bytes;
    if (inst->operands[0]->type.lanes > 1)
        qn_llvm_scatter(s->e, type, at, value, mask, tags);
    else if (fits_nontemporal(s, inst, &bytes) && (s->aligned || surely_nontemporal(inst, bytes))) {
        qn_llvm_store_nontemporal(s->e, type, at, value, tags);
        s->bypassed = true;
    } else
        qn_llvm_store(s->e, type, at, value, mask, tags);
}

/* All addresses that non-temporal stores want aligned, or'ed, and 1 where an output is in place of an input; NULL when there
 * are no such stores. */
static LLVMValueRef addresses_to_align(const lowering *s, const qn_kblock *block, LLVMValueRef all,
                                       int64_t *most_bytes)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        int64_t bytes;
        for (int i = 0; i < inst->n_blocks; i++)
            all = addresses_to_align(s, inst->blocks[i], all, most_bytes);
        if (!fits_nontemporal(s, inst, &bytes) || surely_nontemporal(inst, bytes))
            continue;
        LLVMValueRef at = s->addresses[position(s, inst->buffer)];
        LLVMValueRef bits = LLVMBuildPtrToInt(s->e->builder, at, s->e->i64, "");
        if (inst->buffer->inplace >= 0) {
            LLVMValueRef input = s->addresses[inst->buffer->inplace];
            LLVMValueRef same = LLVMBuildICmp(s->e->builder, LLVMIntEQ, at, input, "");
            same = LLVMBuildZExt(s->e->builder, same, s->e->i64, "");
            bits = LLVMBuildOr(s->e->builder, bits, same, "");
        }
        all = all ? LLVMBuildOr(s->e->builder, all, bits, "") : bits;
        if (bytes > *most_bytes)
            *most_bytes = bytes;
    }
    return all;
}

/* ---- arithmetic ---- */

/* A GPU's registers have 32 bits: indices that are known to fit into one are computed so, and are numbers of 64 bits only where they
 * become addresses. */
static bool is_narrow(const lowering *s, const qn_kvalue *v)
{
    return s->threads && v->type.dtype == QUERN_I64 && v->type.lanes == 1 && v->min >= INT32_MIN &&
           v->max <= INT32_MAX;
}

static LLVMValueRef narrow(const lowering *s, LLVMValueRef wide)
{
    if (LLVMIsASExtInst(wide) && LLVMTypeOf(LLVMGetOperand(wide, 0)) == s->e->i32)
        return LLVMGetOperand(wide, 0);
    return LLVMBuildTrunc(s->e->builder, wide, s->e->i32, "");
}

static LLVMValueRef widen(const lowering *s, LLVMValueRef x)
{
    return LLVMBuildSExt(s->e->builder, x, s->e->i64, "");
}

/* NULL: it needs 64 bits. */
static LLVMValueRef emit_narrow(const lowering *s, const qn_kinst *inst)
{
    LLVMBuilderRef b = s->e->builder;
    if (!is_narrow(s, &inst->results[0]) || !is_narrow(s, inst->operands[0]) ||
        !is_narrow(s, inst->operands[1]) ||
        !(inst->index_math || inst->fn == QN_OP_MIN || inst->fn == QN_OP_MAX))
        return NULL;
    LLVMValueRef x = narrow(s, operand(s, inst, 0)), y = narrow(s, operand(s, inst, 1));
    const bool max = inst->fn == QN_OP_MAX;
    switch (inst->fn) {
    case QN_OP_ADD: return widen(s, LLVMBuildNSWAdd(b, x, y, ""));
    case QN_OP_SUB: return widen(s, LLVMBuildNSWSub(b, x, y, ""));
    case QN_OP_MUL: return widen(s, LLVMBuildNSWMul(b, x, y, ""));
    case QN_OP_DIV: return widen(s, LLVMBuildUDiv(b, x, y, ""));
    case QN_OP_REM: return widen(s, LLVMBuildURem(b, x, y, ""));
    default:
        return widen(s,
                     LLVMBuildSelect(b, LLVMBuildICmp(b, max ? LLVMIntSGT : LLVMIntSLT, x, y, ""), x, y, ""));
    }
}

static LLVMValueRef emit_compare(const lowering *s, const qn_kinst *inst)
{
    LLVMValueRef x = operand(s, inst, 0), y = operand(s, inst, 1);
    qn_ktype type = inst->operands[0]->type;
    if (is_narrow(s, inst->operands[0]) && is_narrow(s, inst->operands[1])) {
        x = narrow(s, x);
        y = narrow(s, y);
        type.dtype = QUERN_I32;
    }
    return qn_llvm_compare(s->e, inst->direction, type, x, y);
}

/* Index arithmetic: known not to overflow, dividends >= 0, divisors > 0; 32-bit division where that is enough. */
static LLVMValueRef emit_index_math(const lowering *s, const qn_kinst *inst)
{
    LLVMBuilderRef b = s->e->builder;
    LLVMValueRef x = operand(s, inst, 0), y = operand(s, inst, 1);
    switch (inst->fn) {
    case QN_OP_ADD: return LLVMBuildNSWAdd(b, x, y, "");
    case QN_OP_SUB: return LLVMBuildNSWSub(b, x, y, "");
    case QN_OP_MUL: return LLVMBuildNSWMul(b, x, y, "");
    case QN_OP_DIV:
    case QN_OP_REM: {
        bool narrow = inst->operands[0]->max <= UINT32_MAX && inst->operands[1]->max <= UINT32_MAX;
        if (narrow) {
            x = LLVMBuildTrunc(b, x, s->e->i32, "");
            y = LLVMBuildTrunc(b, y, s->e->i32, "");
        }
        LLVMValueRef r = inst->fn == QN_OP_DIV ? LLVMBuildUDiv(b, x, y, "") : LLVMBuildURem(b, x, y, "");
        return narrow ? LLVMBuildZExt(b, r, s->e->i64, "") : r;
    }
    default: QN_UNREACHABLE("kernel %s: index arithmetic by %s", s->k->name, qn_ops[inst->fn].name);
    }
}

/* Constant divisors other than 0 and -1 need no check. */
static bool is_fit_divisor(const qn_kvalue *v)
{
    if (!v->inst || v->inst->op != QN_K_CONST || !qn_dtype_is_int(v->type.dtype))
        return false;
    int64_t value = v->inst->imm.i;
    return value != 0 && !(value == -1 && qn_dtype_class_of(v->type.dtype) == QN_CLASS_SIGNED);
}

static LLVMValueRef emit_binary(const lowering *s, const qn_kinst *inst)
{
    qn_ktype type = inst->operands[0]->type;
    LLVMValueRef x = operand(s, inst, 0), y = operand(s, inst, 1);
    LLVMValueRef made = type.dtype == QUERN_I64 ? emit_narrow(s, inst) : NULL;
    if (made)
        return made;
    if (inst->index_math)
        return emit_index_math(s, inst);
    if ((inst->fn == QN_OP_DIV || inst->fn == QN_OP_REM) && is_fit_divisor(inst->operands[1]))
        return qn_llvm_divide_unchecked(s->e, inst->fn, type, x, y);
    return qn_llvm_binary(s->e, inst->fn, type, x, y);
}

static LLVMValueRef emit_value(lowering *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    qn_ktype type = inst->results[0].type;
    switch (inst->op) {
    case QN_K_CONST: return qn_llvm_constant(e, type, inst->imm);
    case QN_K_PARAM: return load_argument(s, e->i64, 1 + s->k->n_buffers + (int)inst->index);
    case QN_K_TASK: return s->task;
    case QN_K_THREAD: return s->thread;
    case QN_K_UNARY: return qn_llvm_unary(e, inst->fn, inst->operands[0]->type, operand(s, inst, 0));
    case QN_K_BINARY: return emit_binary(s, inst);
    case QN_K_FMA: return qn_llvm_fma(e, type, operand(s, inst, 0), operand(s, inst, 1), operand(s, inst, 2));
    case QN_K_DOT4:
        return qn_llvm_dot4(e, type.lanes, inst->operands[0]->type.dtype, inst->operands[1]->type.dtype,
                            operand(s, inst, 0), operand(s, inst, 1), operand(s, inst, 2));
    case QN_K_DOT2:
        return qn_llvm_dot2(e, type, operand(s, inst, 0), operand(s, inst, 1), operand(s, inst, 2));
    case QN_K_MMLA:
        return qn_llvm_mmla(e, type, inst->operands[0]->type.dtype, inst->operands[1]->type.dtype,
                            operand(s, inst, 0), operand(s, inst, 1), operand(s, inst, 2));
    case QN_K_COMPARE: return emit_compare(s, inst);
    case QN_K_SELECT:
        return LLVMBuildSelect(e->builder, operand(s, inst, 0), operand(s, inst, 1), operand(s, inst, 2), "");
    case QN_K_CONVERT:
        if (inst->fast && type.dtype == QUERN_BF16 && inst->operands[0]->type.dtype == QUERN_F32)
            return qn_llvm_round_to_bf16(e, inst->operands[0]->type, operand(s, inst, 0));
        return qn_llvm_convert(e, inst->operands[0]->type, type.dtype, operand(s, inst, 0));
    case QN_K_BITCAST: return qn_llvm_bitcast(e, inst->operands[0]->type, type.dtype, operand(s, inst, 0));
    case QN_K_SCALE2: return qn_llvm_scale2(e, type, operand(s, inst, 0), operand(s, inst, 1));
    case QN_K_LOOKUP: return qn_llvm_lookup(e, type.lanes, inst->table, operand(s, inst, 0));
    case QN_K_SPLAT: return qn_llvm_splat(e, operand(s, inst, 0), type.lanes);
    case QN_K_RAMP: return qn_llvm_ramp(e, type, operand(s, inst, 0));
    case QN_K_EXTRACT: return qn_llvm_slice(e, operand(s, inst, 0), (int)inst->index, 1);
    case QN_K_SHUFFLE:
        return qn_llvm_shuffle(e, operand(s, inst, 0), operand_or_null(s, inst, 1), inst->n_mask, inst->mask);
    case QN_K_REDUCE: return qn_llvm_reduce(e, inst->kind, inst->operands[0]->type, operand(s, inst, 0));
    case QN_K_LOAD: return emit_load(s, inst);
    case QN_K_WARP_SHUFFLE: return qn_llvm_gpu_warp_shuffle(e, type, operand(s, inst, 0), (int)inst->index);
    case QN_K_WARP_LOAD:
        return qn_llvm_gpu_warp_load(e, address(s, inst->buffer, inst->operands[0]), inst->index != 0);
    case QN_K_WARP_MMA:
        return qn_llvm_gpu_warp_mma(e, inst->operands[0]->type.dtype, operand(s, inst, 0),
                                    operand(s, inst, 1), operand(s, inst, 2));
    default: return NULL;
    }
}

/* ---- control ---- */

static void emit_block(lowering *s, const qn_kblock *block);

static void set(lowering *s, const qn_kvalue *v, LLVMValueRef value)
{
    s->values[v->serial] = value;
}

static void emit_unrolled(lowering *s, const qn_kinst *loop)
{
    const qn_kblock *body = loop->blocks[0];
    int n = loop->n_results;
    LLVMValueRef *carried = QN_NEW_ARRAY(s->e->arena, LLVMValueRef, n);
    int64_t low = loop->operands[0]->inst->imm.i, high = loop->operands[1]->inst->imm.i;
    for (int i = 0; i < n; i++)
        carried[i] = operand(s, loop, 3 + i);
    for (int64_t at = low; at < high; at += loop->operands[2]->inst->imm.i) {
        set(s, &body->arguments[0], qn_llvm_i64(s->e, at));
        for (int i = 0; i < n; i++)
            set(s, &body->arguments[1 + i], carried[i]);
        emit_block(s, body);
        for (int i = 0; i < n; i++)
            carried[i] = get(s, body->yields[i]);
    }
    for (int i = 0; i < n; i++)
        set(s, &loop->results[i], carried[i]);
}

static bool is_unrolled(const qn_kinst *loop)
{
    enum { MOST = 1024 };
    if (loop->tag != QN_TAG_UNROLL)
        return false;
    for (int i = 0; i < 3; i++)
        if (!is_index_constant(loop->operands[i]))
            return false;
    int64_t low = loop->operands[0]->inst->imm.i, high = loop->operands[1]->inst->imm.i;
    return high - low <= MOST * loop->operands[2]->inst->imm.i;
}

/* A thread does iterations thread, thread + threads, …; what it carries starts neutral but for the first thread's. */
static void emit_thread_for(lowering *s, const qn_kinst *loop)
{
    const qn_emitter *e = s->e;
    const qn_kblock *body = loop->blocks[0];
    LLVMBuilderRef b = e->builder;
    int n = loop->n_results;
    LLVMValueRef *initial = QN_NEW_ARRAY(e->arena, LLVMValueRef, n),
                 *phis = QN_NEW_ARRAY(e->arena, LLVMValueRef, n),
                 *next_phis = QN_NEW_ARRAY(e->arena, LLVMValueRef, n);
    qn_ktype *types = QN_NEW_ARRAY(e->arena, qn_ktype, n);
    LLVMValueRef high = operand(s, loop, 1), step = operand(s, loop, 2);
    LLVMValueRef low = LLVMBuildNSWAdd(b, operand(s, loop, 0), LLVMBuildNSWMul(b, s->thread, step, ""), "");
    LLVMValueRef stride = LLVMBuildNSWMul(b, step, qn_llvm_i64(e, s->threads), "");
    LLVMValueRef is_first = LLVMBuildIsNull(b, s->thread, "");
    for (int i = 0; i < n; i++) {
        types[i] = loop->results[i].type;
        LLVMValueRef neutral =
            qn_llvm_constant(e, types[i], qn_neutral(loop->carried_kinds[i], types[i].dtype));
        initial[i] = LLVMBuildSelect(b, is_first, operand(s, loop, 3 + i), neutral, "");
    }
    LLVMBasicBlockRef before = qn_llvm_here(e), behind = qn_llvm_block(e, "");
    LLVMBasicBlockRef next = qn_llvm_block(e, "next"), inside = qn_llvm_block(e, "thread"),
                      head = qn_llvm_block(e, "threads");
    LLVMBuildBr(b, head);
    qn_llvm_at(e, next);
    for (int i = 0; i < n; i++)
        next_phis[i] = qn_llvm_phi(e, qn_llvm_type(e, types[i]));
    qn_llvm_at(e, head);
    LLVMValueRef counter = qn_llvm_phi(e, e->i64);
    for (int i = 0; i < n; i++) {
        phis[i] = qn_llvm_phi(e, qn_llvm_type(e, types[i]));
        qn_llvm_incoming(phis[i], initial[i], before);
        qn_llvm_incoming(phis[i], next_phis[i], next);
        set(s, &body->arguments[1 + i], phis[i]);
    }
    set(s, &body->arguments[0], counter);
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, counter, high, ""), inside, behind);

    qn_llvm_at(e, inside);
    escape way = { next, n, phis, next_phis };
    s->escape = &way;
    emit_block(s, body);
    s->escape = NULL;
    for (int i = 0; i < n; i++)
        qn_llvm_incoming(next_phis[i], get(s, body->yields[i]), qn_llvm_here(e));
    LLVMBuildBr(b, next);
    qn_llvm_at(e, next);
    qn_llvm_incoming(counter, low, before);
    qn_llvm_incoming(counter, LLVMBuildNSWAdd(b, counter, stride, ""), next);
    LLVMBuildBr(b, head);

    qn_llvm_at(e, behind);
    qn_llvm_gpu_combine(e, s->symbol, s->threads, s->thread, n, types, loop->carried_kinds, phis);
    for (int i = 0; i < n; i++)
        set(s, &loop->results[i], phis[i]);
}

/* ---- what follows a register tile ---- */

/* Are more sums carried than there are registers to spare for constants? */
static bool is_tile(const qn_kinst *loop)
{
    enum { MANY = 8 };
    int vectors = 0;
    for (int i = 0; i < loop->n_results; i++)
        vectors += loop->results[i].type.lanes > 1;
    return vectors >= MANY;
}

static void hide(const lowering *s, const qn_kvalue *v, hidden *out)
{
    const qn_emitter *e = s->e;
    const qn_kinst *inst = v->inst;
    if (!inst || inst->op != QN_K_CONST)
        return;
    const qn_ktype type = v->type;
    LLVMValueRef known = qn_llvm_constant(e, type, inst->imm);
    if (type.lanes == 1 || qn_dtype_bytes(type.dtype) != 4 || LLVMIsNull(known) ||
        out->n == (int)(sizeof out->items / sizeof *out->items))
        return;
    for (int i = 0; i < out->n; i++)
        if (out->items[i].known == known)
            return;
    LLVMTypeRef same = LLVMFunctionType(e->i32, (LLVMTypeRef[]){ e->i32 }, 1, 0);
    LLVMValueRef code = LLVMGetInlineAsm(same, "", 0, "=r,0", 4, 1, 0, LLVMInlineAsmDialectATT, 0);
    const qn_ktype one = { type.dtype, 1 }, bits = { QUERN_I32, 1 };
    LLVMValueRef scalar = LLVMConstBitCast(qn_llvm_constant(e, one, inst->imm), e->i32);
    scalar = qn_llvm_bitcast(e, bits, type.dtype, LLVMBuildCall2(e->builder, same, code, &scalar, 1, ""));
    out->items[out->n].known = known;
    out->items[out->n++].value = qn_llvm_splat(e, scalar, type.lanes);
}

/* All vector constants that a block uses, before the loop that it is in. */
static void hide_constants(const lowering *s, const qn_kblock *block, hidden *out)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_operands; i++)
            if (inst->operands[i])
                hide(s, inst->operands[i], out);
        for (int i = 0; i < inst->n_blocks; i++)
            if (inst->blocks[i])
                hide_constants(s, inst->blocks[i], out);
    }
}

/* Its counter, also what it is behind the last iteration. */
static bool counts_in_32(const lowering *s, const qn_kinst *loop)
{
    const qn_kvalue *high = loop->operands[1], *step = loop->operands[2];
    return is_narrow(s, loop->operands[0]) && is_narrow(s, high) && is_narrow(s, step) &&
           high->max + step->max <= INT32_MAX;
}

/* Tested at the bottom, and before the first iteration unless that surely happens. */
static void emit_for(lowering *s, const qn_kinst *loop)
{
    const qn_emitter *e = s->e;
    const qn_kblock *body = loop->blocks[0];
    LLVMBuilderRef b = e->builder;
    if (is_unrolled(loop)) {
        emit_unrolled(s, loop);
        return;
    }
    if (s->threads && loop->tag == QN_TAG_GPU_THREAD) {
        emit_thread_for(s, loop);
        return;
    }
    const bool behind_tile = s->behind_tile, hides = behind_tile && !s->hidden && !s->threads;
    hidden constants = { 0 };
    if (hides) {
        hide_constants(s, body, &constants);
        s->hidden = &constants;
    }
    s->behind_tile = false;
    LLVMValueRef low = operand(s, loop, 0), high = operand(s, loop, 1);
    bool surely = qn_k_proven_lt(loop->operands[0], loop->operands[1]);
    int n = loop->n_results;
    const bool narrow_counter = counts_in_32(s, loop);
    if (narrow_counter) {
        low = narrow(s, low);
        high = narrow(s, high);
    }
    LLVMBasicBlockRef before = qn_llvm_here(e), behind = qn_llvm_block(e, "");
    LLVMBasicBlockRef head = qn_llvm_block(e, "loop");
    if (surely)
        LLVMBuildBr(b, head);
    else
        LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, low, high, ""), head, behind);

    qn_llvm_at(e, head);
    LLVMValueRef counter = qn_llvm_phi(e, narrow_counter ? e->i32 : e->i64), step = operand(s, loop, 2);
    qn_llvm_incoming(counter, low, before);
    for (int i = 0; i < n; i++) {
        LLVMValueRef phi = qn_llvm_phi(e, qn_llvm_type(e, loop->results[i].type));
        qn_llvm_incoming(phi, operand(s, loop, 3 + i), before);
        set(s, &body->arguments[1 + i], phi);
    }
    set(s, &body->arguments[0], narrow_counter ? widen(s, counter) : counter);
    emit_block(s, body);
    LLVMBasicBlockRef end = qn_llvm_here(e);
    LLVMValueRef next = LLVMBuildNSWAdd(b, counter, narrow_counter ? narrow(s, step) : step, "");
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, next, high, ""), head, behind);
    qn_llvm_incoming(counter, next, end);
    for (int i = 0; i < n; i++)
        qn_llvm_incoming(get(s, &body->arguments[1 + i]), get(s, body->yields[i]), end);

    qn_llvm_at(e, behind);
    for (int i = 0; i < n; i++) {
        LLVMValueRef result = get(s, body->yields[i]);
        if (!surely) {
            LLVMValueRef phi = qn_llvm_phi(e, qn_llvm_type(e, loop->results[i].type));
            qn_llvm_incoming(phi, operand(s, loop, 3 + i), before);
            qn_llvm_incoming(phi, result, end);
            result = phi;
        }
        set(s, &loop->results[i], result);
    }
    if (hides)
        s->hidden = NULL;
    s->behind_tile = behind_tile || is_tile(loop);
}

static void emit_if(lowering *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    LLVMBasicBlockRef behind = qn_llvm_block(e, ""), otherwise = qn_llvm_block(e, "else");
    LLVMBasicBlockRef starts[2] = { qn_llvm_block(e, "then"), otherwise }, ends[2];
    LLVMValueRef *values[2];
    LLVMBuildCondBr(e->builder, operand(s, inst, 0), starts[0], starts[1]);
    for (int i = 0; i < 2; i++) {
        const qn_kblock *block = i < inst->n_blocks ? inst->blocks[i] : NULL;
        qn_llvm_at(e, starts[i]);
        if (block)
            emit_block(s, block);
        values[i] = QN_NEW_ARRAY(e->arena, LLVMValueRef, inst->n_results);
        for (int r = 0; r < inst->n_results; r++)
            values[i][r] = get(s, block->yields[r]);
        ends[i] = qn_llvm_here(e);
        LLVMBuildBr(e->builder, behind);
    }
    qn_llvm_at(e, behind);
    for (int r = 0; r < inst->n_results; r++) {
        LLVMValueRef phi = qn_llvm_phi(e, qn_llvm_type(e, inst->results[r].type));
        for (int i = 0; i < 2; i++)
            qn_llvm_incoming(phi, values[i][r], ends[i]);
        set(s, &inst->results[r], phi);
    }
}

static void end_task(const lowering *s)
{
    if (s->tile_config)
        qn_llvm_tile_release(s->e);
    LLVMBuildRetVoid(s->e->builder);
}

/* Another task may report at the same time: the store is atomic, any of the nodes may win. */
static void emit_check(lowering *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    LLVMValueRef good = operand(s, inst, 0);
    good = qn_llvm_reduce(e, QN_KIND_MIN, inst->operands[0]->type, good);
    LLVMBasicBlockRef behind = qn_llvm_block(e, ""), failed = qn_llvm_block(e, "failed");
    LLVMBuildCondBr(e->builder, good, behind, failed);
    qn_llvm_at(e, failed);
    LLVMValueRef store = LLVMBuildStore(e->builder, qn_llvm_i64(e, inst->index), s->args);
    LLVMSetAlignment(store, 8);
    LLVMSetOrdering(store, LLVMAtomicOrderingMonotonic);
    if (s->escape) {
        for (int i = 0; i < s->escape->n; i++)
            qn_llvm_incoming(s->escape->phis[i], s->escape->before[i], failed);
        LLVMBuildBr(e->builder, s->escape->next);
    } else {
        end_task(s);
    }
    qn_llvm_at(e, behind);
}

static void emit_tile(lowering *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    LLVMValueRef rows[QN_TILES];
    if (!e->target->machine.tiles) {
        unsupported(s, "matrix instructions");
        return;
    }
    switch (inst->op) {
    case QN_K_TILE_SHAPE:
        for (int i = 0; i < QN_TILES; i++)
            rows[i] = operand(s, inst, i);
        qn_llvm_tile_shape(e, s->tile_config, rows);
        return;
    case QN_K_TILE_ZERO: qn_llvm_tile_zero(e, inst->mask[0]); return;
    case QN_K_TILE_MMA: qn_llvm_tile_mma(e, inst->mask, inst->tile_type[0], inst->tile_type[1]); return;
    default: break; /* LOAD, STORE */
    }
    LLVMValueRef bytes = qn_llvm_i64(e, (int64_t)qn_dtype_bytes(inst->buffer->dtype));
    qn_llvm_tile_move(e, inst->op == QN_K_TILE_LOAD, inst->mask[0],
                      address(s, inst->buffer, inst->operands[0]),
                      LLVMBuildNSWMul(e->builder, operand(s, inst, 1), bytes, ""));
}

static const char *op_name(const qn_kinst *inst)
{
    return inst->op == QN_K_UNARY || inst->op == QN_K_BINARY ? qn_ops[inst->fn].name
           : inst->op == QN_K_ATOMIC_ADD                     ? "an atomic"
           : inst->op == QN_K_BARRIER                        ? "a barrier"
                                                             : "a matrix instruction";
}

/* What an instruction marked fast allows: another order, fused or approximate operations; never that NaN and infinity
 * don't occur. */
static void mark_fast(LLVMValueRef value)
{
    if (value && LLVMCanValueUseFastMathFlags(value) && LLVMIsAInstruction(value))
        LLVMSetFastMathFlags(value, LLVMFastMathAllowReassoc | LLVMFastMathAllowReciprocal |
                                        LLVMFastMathAllowContract | LLVMFastMathApproxFunc);
}

/* What all threads of a GPU's block do alike, one of them stores. */
static void emit_store_once(lowering *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    if (s->threads <= 1 || s->escape || s->k->by_thread) {
        emit_store(s, inst);
        return;
    }
    LLVMBasicBlockRef behind = qn_llvm_block(e, ""), first = qn_llvm_block(e, "first_thread");
    LLVMBuildCondBr(e->builder, LLVMBuildIsNull(e->builder, s->thread, ""), first, behind);
    qn_llvm_at(e, first);
    emit_store(s, inst);
    LLVMBuildBr(e->builder, behind);
    qn_llvm_at(e, behind);
}

static void emit_inst(lowering *s, const qn_kinst *inst)
{
    switch (inst->op) {
    case QN_K_STORE: emit_store_once(s, inst); return;
    case QN_K_BARRIER:
        if (!s->threads)
            break;
        qn_llvm_gpu_barrier(s->e);
        return;
    case QN_K_PREFETCH:
        if (s->threads) /* other threads hide the latency */
            return;
        qn_llvm_prefetch(s->e, address(s, inst->buffer, inst->operands[0]), (int)inst->index);
        return;
    case QN_K_FOR: emit_for(s, inst); return;
    case QN_K_IF: emit_if(s, inst); return;
    case QN_K_CHECK: emit_check(s, inst); return;
    case QN_K_TILE_SHAPE:
    case QN_K_TILE_ZERO:
    case QN_K_TILE_LOAD:
    case QN_K_TILE_STORE:
    case QN_K_TILE_MMA: emit_tile(s, inst); return;
    default: break;
    }
    LLVMValueRef value = inst->n_results == 1 ? emit_value(s, inst) : NULL;
    if (!value) {
        unsupported(s, op_name(inst));
        value = inst->n_results ? LLVMGetPoison(qn_llvm_type(s->e, inst->results[0].type)) : NULL;
    } else if (inst->fast) {
        mark_fast(value);
    }
    if (value)
        set(s, &inst->results[0], value);
}

static void emit_block(lowering *s, const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next)
        emit_inst(s, inst);
}

/* ---- the whole kernel ---- */

static void emit_version(lowering *s, bool aligned)
{
    s->aligned = aligned;
    s->bypassed = false;
    emit_block(s, s->k->body);
    if (s->bypassed) /* whoever is told that the task is done finds what it stored */
        qn_llvm_store_fence(s->e);
    end_task(s);
}

static void make_function(lowering *s)
{
    const qn_emitter *e = s->e;
    const int n = has_arguments(s) ? s->k->n_buffers + s->k->n_params : 0;
    LLVMTypeRef *types = QN_NEW_ARRAY(e->arena, LLVMTypeRef, 2 + n);
    types[0] = e->ptr;
    types[1] = e->i64;
    for (int i = 0; i < n; i++)
        types[2 + i] = i < s->k->n_buffers ? LLVMPointerTypeInContext(e->context, QN_GPU_GLOBAL) : e->i64;
    s->function = qn_llvm_function(e, s->symbol, e->nothing, 2 + n, types);
}

static qn_status build(qn_emitter *e, void *user)
{
    lowering *s = user;
    s->e = e;
    s->values = QN_NEW_ARRAY(e->arena, LLVMValueRef, s->k->n_serials);
    s->addresses = QN_NEW_ARRAY(e->arena, LLVMValueRef, s->k->n_all_buffers);
    s->tags = QN_NEW_ARRAY(e->arena, qn_llvm_tags, s->k->n_all_buffers);
    if (e->target->isa == QN_ISA_NVPTX)
        s->threads = s->k->gpu_threads > 0 ? s->k->gpu_threads : 1;
    make_function(s);
    if (s->threads) {
        qn_llvm_gpu_kernel(e, s->function, s->threads, s->k->by_thread);
    } else {
        LLVMSetLinkage(s->function, LLVMWeakODRLinkage);
        LLVMSetVisibility(s->function, LLVMHiddenVisibility);
    }
    qn_llvm_enum_attribute(e, s->function, 1, "noalias", 0);
    s->args = LLVMGetParam(s->function, 0);
    s->task = LLVMGetParam(s->function, 1);
    make_alias_scopes(s);
    LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(e->context, s->function, "entry");
    qn_llvm_at(e, entry);
    if (s->threads) {
        s->args = qn_llvm_gpu_global(e, s->args);
        s->task = LLVMBuildNSWAdd(e->builder, s->task, qn_llvm_gpu_block(e), "");
        s->thread = qn_llvm_gpu_thread(e);
    }
    place_buffers(s);
    if (qn_kernel_uses_tiles(s->k) && e->target->machine.tiles)
        s->tile_config = qn_llvm_tile_config(e);

    int64_t bytes = 0;
    LLVMValueRef addresses = addresses_to_align(s, s->k->body, NULL, &bytes);
    if (addresses) {
        LLVMBasicBlockRef other = qn_llvm_block(e, "unaligned"), aligned = qn_llvm_block(e, "aligned");
        LLVMValueRef rest = LLVMBuildAnd(e->builder, addresses, qn_llvm_i64(e, bytes - 1), "");
        LLVMBuildCondBr(e->builder, LLVMBuildIsNull(e->builder, rest, ""), aligned, other);
        qn_llvm_at(e, aligned);
        emit_version(s, true);
        qn_llvm_at(e, other);
    }
    emit_version(s, false);
    return s->status;
}

qn_status qn_llvm_emit_kernel(const qn_kernel *kernel, const char *symbol, const qn_target *target,
                              qn_math math, qn_emit emit, qn_arena *arena, qn_code *out_code, qn_diags *diags)
{
    lowering s = { .k = kernel, .symbol = symbol };
    (void)math; /* what it allows is said in the kernel: FMA instructions, `fast` marks */
    const char *what = qn_arena_printf(arena, "kernel %s", kernel->name);
    return qn_llvm_compile(what, target, emit, QN_LLVM_FAST_CODE, build, &s, arena, out_code, diags);
}
