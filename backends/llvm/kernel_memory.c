/* Memory of a kernel: its buffers, addresses in them, loads and stores. */
#include "backends/llvm/kernel.h"

#include <string.h>

#include "ir/kernel_edit.h"

/* ---- buffers ---- */

static int position(const qn_llvm_kernel *s, const qn_kbuffer *buffer)
{
    for (int i = 0; i < s->k->n_all_buffers; i++)
        if (s->k->buffers[i] == buffer)
            return i;
    QN_UNREACHABLE("kernel %s has no buffer %s", s->k->name, buffer->name);
}

bool qn_llvm_has_arguments(const qn_llvm_kernel *s)
{
    return s->threads && s->k->n_buffers + s->k->n_params <= QN_GPU_ARGUMENTS;
}

LLVMValueRef qn_llvm_load_argument(const qn_llvm_kernel *s, LLVMTypeRef type, int number)
{
    if (qn_llvm_has_arguments(s))
        return LLVMGetParam(s->function, (unsigned)(1 + number));
    LLVMValueRef index = qn_llvm_i64(s->e, number);
    LLVMValueRef at = LLVMBuildGEP2(s->e->builder, s->e->i64, s->args, &index, 1, "");
    LLVMValueRef value = LLVMBuildLoad2(s->e->builder, type, at, "");
    LLVMSetAlignment(value, 8);
    return value;
}

void qn_llvm_place_buffers(qn_llvm_kernel *s)
{
    const qn_emitter *e = s->e;
    int64_t local_bytes = 0;
    for (int i = 0; i < s->k->n_all_buffers; i++) {
        const qn_kbuffer *buffer = s->k->buffers[i];
        if (buffer->space == QN_SPACE_ARGUMENT) {
            s->addresses[i] = qn_llvm_load_argument(s, e->ptr, 1 + i);
            if (s->threads && !qn_llvm_has_arguments(s))
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
            qn_llvm_unsupported(s, "shared memory");
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

void qn_llvm_make_alias_scopes(qn_llvm_kernel *s)
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

static LLVMValueRef step(const qn_llvm_kernel *s, LLVMTypeRef element, LLVMValueRef base, LLVMValueRef index)
{
    return LLVMBuildGEP2(s->e->builder, element, base, &index, 1, "");
}

/* base + at + elements, as an AArch64 adds up: a displacement has no sign, so one below is cut, and many share its lower part. */
static LLVMValueRef displaced(const qn_llvm_kernel *s, LLVMTypeRef element, const qn_kbuffer *buffer,
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

LLVMValueRef qn_llvm_address(const qn_llvm_kernel *s, const qn_kbuffer *buffer, const qn_kvalue *index)
{
    LLVMTypeRef element = qn_llvm_memory_type(s->e, (qn_ktype){ buffer->dtype, 1 });
    LLVMValueRef base = s->addresses[position(s, buffer)];
    const qn_kinst *sum = index->inst;
    if (index->type.lanes == 1 && sum && sum->op == QN_K_BINARY && sum->fn == QN_OP_ADD)
        for (int i = 0; i < 2; i++)
            if (qn_k_is_const(sum->operands[i]))
                return displaced(s, element, buffer, step(s, element, base, qn_llvm_operand(s, sum, !i)),
                                 qn_llvm_operand(s, sum, i));
    return step(s, element, base, qn_llvm_get(s, index));
}

/* ---- memory ---- */

/* How the access may touch memory. On a GPU wide accesses are worth their proof of alignment, and what nobody writes while the
 * kernel runs takes another way through the caches. */
static qn_llvm_tags tags_of(const qn_llvm_kernel *s, const qn_kinst *inst, qn_ktype type)
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

LLVMValueRef qn_llvm_emit_load(qn_llvm_kernel *s, const qn_kinst *inst)
{
    qn_ktype type = inst->results[0].type;
    qn_llvm_tags tags = tags_of(s, inst, type);
    LLVMValueRef mask = qn_llvm_operand_or_null(s, inst, 1), other = qn_llvm_operand_or_null(s, inst, 2);
    LLVMValueRef at = qn_llvm_address(s, inst->buffer, inst->operands[0]);
    tags.in_order = inst->in_order;
    if (inst->operands[0]->type.lanes > 1)
        return qn_llvm_gather(s->e, type, at, mask, other, tags);
    return qn_llvm_load(s->e, type, at, mask, other, tags);
}

static bool fits_nontemporal(const qn_llvm_kernel *s, const qn_kinst *inst, int64_t *out_bytes)
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

static void store(qn_llvm_kernel *s, const qn_kinst *inst)
{
    qn_ktype type = inst->operands[1]->type;
    qn_llvm_tags tags = tags_of(s, inst, type);
    LLVMValueRef value = qn_llvm_operand(s, inst, 1), mask = qn_llvm_operand_or_null(s, inst, 2);
    LLVMValueRef at = qn_llvm_address(s, inst->buffer, inst->operands[0]);
    int64_t bytes;
    if (inst->operands[0]->type.lanes > 1)
        qn_llvm_scatter(s->e, type, at, value, mask, tags);
    else if (fits_nontemporal(s, inst, &bytes) && (s->aligned || surely_nontemporal(inst, bytes))) {
        qn_llvm_store_nontemporal(s->e, type, at, value, tags);
        s->bypassed = true;
    } else
        qn_llvm_store(s->e, type, at, value, mask, tags);
}

/* What all threads of a GPU's block do alike, one of them stores. */
void qn_llvm_emit_store(qn_llvm_kernel *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    if (s->threads <= 1 || s->escape || s->k->by_thread) {
        store(s, inst);
        return;
    }
    LLVMBasicBlockRef behind = qn_llvm_block(e, ""), first = qn_llvm_block(e, "first_thread");
    LLVMBuildCondBr(e->builder, LLVMBuildIsNull(e->builder, s->thread, ""), first, behind);
    qn_llvm_at(e, first);
    store(s, inst);
    LLVMBuildBr(e->builder, behind);
    qn_llvm_at(e, behind);
}

/* All addresses that non-temporal stores want aligned, or'ed, and 1 where an output is in place of an input; NULL when there
 * are no such stores. */
static LLVMValueRef addresses_to_align(const qn_llvm_kernel *s, const qn_kblock *block, LLVMValueRef all,
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

LLVMValueRef qn_llvm_are_aligned(const qn_llvm_kernel *s)
{
    int64_t bytes = 0;
    LLVMValueRef all = addresses_to_align(s, s->k->body, NULL, &bytes);
    if (!all)
        return NULL;
    return LLVMBuildIsNull(s->e->builder, LLVMBuildAnd(s->e->builder, all, qn_llvm_i64(s->e, bytes - 1), ""),
                           "");
}
