/* Instructions of a kernel that make one value: what each becomes is in the files of emit.h. */
#include "backends/llvm/kernel.h"

#include "ir/kernel_edit.h"

bool qn_llvm_is_narrow(const qn_llvm_kernel *s, const qn_kvalue *v)
{
    return s->threads && v->type.dtype == QUERN_I64 && v->type.lanes == 1 && v->min >= INT32_MIN &&
           v->max <= INT32_MAX;
}

LLVMValueRef qn_llvm_narrow(const qn_llvm_kernel *s, LLVMValueRef wide)
{
    if (LLVMIsASExtInst(wide) && LLVMTypeOf(LLVMGetOperand(wide, 0)) == s->e->i32)
        return LLVMGetOperand(wide, 0);
    return LLVMBuildTrunc(s->e->builder, wide, s->e->i32, "");
}

LLVMValueRef qn_llvm_widen(const qn_llvm_kernel *s, LLVMValueRef x)
{
    return LLVMBuildSExt(s->e->builder, x, s->e->i64, "");
}

/* NULL: it needs 64 bits. */
static LLVMValueRef emit_narrow(const qn_llvm_kernel *s, const qn_kinst *inst)
{
    LLVMBuilderRef b = s->e->builder;
    if (!qn_llvm_is_narrow(s, &inst->results[0]) || !qn_llvm_is_narrow(s, inst->operands[0]) ||
        !qn_llvm_is_narrow(s, inst->operands[1]) ||
        !(inst->index_math || inst->fn == QN_OP_MIN || inst->fn == QN_OP_MAX))
        return NULL;
    LLVMValueRef x = qn_llvm_narrow(s, qn_llvm_operand(s, inst, 0)),
                 y = qn_llvm_narrow(s, qn_llvm_operand(s, inst, 1));
    const bool max = inst->fn == QN_OP_MAX;
    switch (inst->fn) {
    case QN_OP_ADD: return qn_llvm_widen(s, LLVMBuildNSWAdd(b, x, y, ""));
    case QN_OP_SUB: return qn_llvm_widen(s, LLVMBuildNSWSub(b, x, y, ""));
    case QN_OP_MUL: return qn_llvm_widen(s, LLVMBuildNSWMul(b, x, y, ""));
    case QN_OP_DIV: return qn_llvm_widen(s, LLVMBuildUDiv(b, x, y, ""));
    case QN_OP_REM: return qn_llvm_widen(s, LLVMBuildURem(b, x, y, ""));
    default:
        return qn_llvm_widen(
            s, LLVMBuildSelect(b, LLVMBuildICmp(b, max ? LLVMIntSGT : LLVMIntSLT, x, y, ""), x, y, ""));
    }
}

static LLVMValueRef emit_compare(const qn_llvm_kernel *s, const qn_kinst *inst)
{
    LLVMValueRef x = qn_llvm_operand(s, inst, 0), y = qn_llvm_operand(s, inst, 1);
    qn_ktype type = inst->operands[0]->type;
    if (qn_llvm_is_narrow(s, inst->operands[0]) && qn_llvm_is_narrow(s, inst->operands[1])) {
        x = qn_llvm_narrow(s, x);
        y = qn_llvm_narrow(s, y);
        type.dtype = QUERN_I32;
    }
    return qn_llvm_compare(s->e, inst->direction, type, x, y);
}

/* Index arithmetic: known not to overflow, dividends >= 0, divisors > 0; 32-bit division where that is enough. */
static LLVMValueRef emit_index_math(const qn_llvm_kernel *s, const qn_kinst *inst)
{
    LLVMBuilderRef b = s->e->builder;
    LLVMValueRef x = qn_llvm_operand(s, inst, 0), y = qn_llvm_operand(s, inst, 1);
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
    if (!qn_k_is_const(v) || !qn_dtype_is_int(v->type.dtype))
        return false;
    int64_t value = v->inst->imm.i;
    return value != 0 && !(value == -1 && qn_dtype_class_of(v->type.dtype) == QN_CLASS_SIGNED);
}

static LLVMValueRef emit_binary(const qn_llvm_kernel *s, const qn_kinst *inst)
{
    qn_ktype type = inst->operands[0]->type;
    LLVMValueRef x = qn_llvm_operand(s, inst, 0), y = qn_llvm_operand(s, inst, 1);
    LLVMValueRef made = type.dtype == QUERN_I64 ? emit_narrow(s, inst) : NULL;
    if (made)
        return made;
    if (inst->index_math)
        return emit_index_math(s, inst);
    if ((inst->fn == QN_OP_DIV || inst->fn == QN_OP_REM) && is_fit_divisor(inst->operands[1]))
        return qn_llvm_divide_unchecked(s->e, inst->fn, type, x, y);
    return qn_llvm_binary(s->e, inst->fn, type, x, y);
}

LLVMValueRef qn_llvm_emit_value(qn_llvm_kernel *s, const qn_kinst *inst)
{
    const qn_emitter *e = s->e;
    qn_ktype type = inst->results[0].type;
    switch (inst->op) {
    case QN_K_CONST: return qn_llvm_constant(e, type, inst->imm);
    case QN_K_PARAM: return qn_llvm_load_argument(s, e->i64, 1 + s->k->n_buffers + (int)inst->index);
    case QN_K_TASK: return s->task;
    case QN_K_THREAD: return s->thread;
    case QN_K_UNARY: return qn_llvm_unary(e, inst->fn, inst->operands[0]->type, qn_llvm_operand(s, inst, 0));
    case QN_K_BINARY: return emit_binary(s, inst);
    case QN_K_FMA:
        return qn_llvm_fma(e, type, qn_llvm_operand(s, inst, 0), qn_llvm_operand(s, inst, 1),
                           qn_llvm_operand(s, inst, 2));
    case QN_K_DOT4:
        return qn_llvm_dot4(e, type.lanes, inst->operands[0]->type.dtype, inst->operands[1]->type.dtype,
                            qn_llvm_operand(s, inst, 0), qn_llvm_operand(s, inst, 1),
                            qn_llvm_operand(s, inst, 2));
    case QN_K_DOT2:
        return qn_llvm_dot2(e, type, qn_llvm_operand(s, inst, 0), qn_llvm_operand(s, inst, 1),
                            qn_llvm_operand(s, inst, 2));
    case QN_K_MMLA:
        return qn_llvm_mmla(e, type, inst->operands[0]->type.dtype, inst->operands[1]->type.dtype,
                            qn_llvm_operand(s, inst, 0), qn_llvm_operand(s, inst, 1),
                            qn_llvm_operand(s, inst, 2));
    case QN_K_COMPARE: return emit_compare(s, inst);
    case QN_K_SELECT:
        return LLVMBuildSelect(e->builder, qn_llvm_operand(s, inst, 0), qn_llvm_operand(s, inst, 1),
                               qn_llvm_operand(s, inst, 2), "");
    case QN_K_CONVERT:
        if (inst->fast && type.dtype == QUERN_BF16 && inst->operands[0]->type.dtype == QUERN_F32)
            return qn_llvm_round_to_bf16(e, inst->operands[0]->type, qn_llvm_operand(s, inst, 0));
        return qn_llvm_convert(e, inst->operands[0]->type, type.dtype, qn_llvm_operand(s, inst, 0));
    case QN_K_BITCAST:
        return qn_llvm_bitcast(e, inst->operands[0]->type, type.dtype, qn_llvm_operand(s, inst, 0));
    case QN_K_SCALE2:
        return qn_llvm_scale2(e, type, qn_llvm_operand(s, inst, 0), qn_llvm_operand(s, inst, 1));
    case QN_K_LOOKUP: return qn_llvm_lookup(e, type.lanes, inst->table, qn_llvm_operand(s, inst, 0));
    case QN_K_PICK:
        return qn_llvm_pick(e, type.lanes, qn_llvm_operand(s, inst, 0), qn_llvm_operand(s, inst, 1));
    case QN_K_JOIN:
        return LLVMBuildBitCast(e->builder, qn_llvm_operand(s, inst, 0), qn_llvm_type(e, type), "");
    case QN_K_SPLAT: return qn_llvm_splat(e, qn_llvm_operand(s, inst, 0), type.lanes);
    case QN_K_RAMP: return qn_llvm_ramp(e, type, qn_llvm_operand(s, inst, 0));
    case QN_K_EXTRACT: return qn_llvm_slice(e, qn_llvm_operand(s, inst, 0), (int)inst->index, 1);
    case QN_K_SHUFFLE:
        return qn_llvm_shuffle(e, qn_llvm_operand(s, inst, 0), qn_llvm_operand_or_null(s, inst, 1),
                               inst->n_mask, inst->mask);
    case QN_K_REDUCE:
        return qn_llvm_reduce(e, inst->kind, inst->operands[0]->type, qn_llvm_operand(s, inst, 0));
    case QN_K_LOAD: return qn_llvm_emit_load(s, inst);
    case QN_K_WARP_SHUFFLE:
        return qn_llvm_gpu_warp_shuffle(e, type, qn_llvm_operand(s, inst, 0), (int)inst->index);
    case QN_K_WARP_LOAD:
        return qn_llvm_gpu_warp_load(e, qn_llvm_address(s, inst->buffer, inst->operands[0]),
                                     inst->index != 0);
    case QN_K_WARP_MMA:
        return qn_llvm_gpu_warp_mma(e, inst->operands[0]->type.dtype, qn_llvm_operand(s, inst, 0),
                                    qn_llvm_operand(s, inst, 1), qn_llvm_operand(s, inst, 2));
    default: return NULL;
    }
}
