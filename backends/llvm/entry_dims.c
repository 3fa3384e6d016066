/* Dimension expressions as code, and the functions of an entry that are nothing but such expressions. */
#include "backends/llvm/entry.h"

/* ---- one expression ---- */

static LLVMValueRef call2(const qn_emitter *e, const char *name, LLVMValueRef a, LLVMValueRef b)
{
    return qn_llvm_intrinsic(e, name, 1, (LLVMTypeRef[]){ LLVMTypeOf(a) }, 2, (LLVMValueRef[]){ a, b });
}

static bool may_overflow(qn_dim d)
{
    return d->max == INT64_MAX || d->min == INT64_MIN;
}

static LLVMValueRef multiply_saturated(const qn_emitter *e, LLVMValueRef a, LLVMValueRef b)
{
    LLVMBuilderRef builder = e->builder;
    LLVMValueRef both = call2(e, "llvm.smul.with.overflow", a, b), zero = qn_llvm_i64(e, 0);
    LLVMValueRef product = LLVMBuildExtractValue(builder, both, 0, "");
    LLVMValueRef overflowed = LLVMBuildExtractValue(builder, both, 1, "");
    LLVMValueRef negative = LLVMBuildICmp(builder, LLVMIntSLT, LLVMBuildXor(builder, a, b, ""), zero, "");
    LLVMValueRef limit =
        LLVMBuildSelect(builder, negative, qn_llvm_i64(e, INT64_MIN), qn_llvm_i64(e, INT64_MAX), "");
    return LLVMBuildSelect(builder, overflowed, limit, product, "");
}

/* Rounds to minus infinity; b is not negative (ir/dim.h); by 0 gives 0. */
static LLVMValueRef divide(const qn_emitter *e, qn_dim d, LLVMValueRef a, LLVMValueRef b)
{
    LLVMBuilderRef builder = e->builder;
    bool quotient = d->kind == QN_DIM_FLOORDIV;
    LLVMValueRef zero = qn_llvm_i64(e, 0);
    LLVMValueRef fit = d->operands[1]->min > 0 ? b : call2(e, "llvm.smax", b, qn_llvm_i64(e, 1)), r;
    if (d->operands[0]->min >= 0) {
        r = quotient ? LLVMBuildUDiv(builder, a, fit, "") : LLVMBuildURem(builder, a, fit, "");
    } else {
        LLVMValueRef q = LLVMBuildSDiv(builder, a, fit, ""), rest = LLVMBuildSRem(builder, a, fit, "");
        LLVMValueRef below = LLVMBuildICmp(builder, LLVMIntSLT, rest, zero, "");
        r = quotient ? LLVMBuildAdd(builder, q, LLVMBuildSExt(builder, below, e->i64, ""), "")
                     : LLVMBuildAdd(builder, rest, LLVMBuildSelect(builder, below, fit, zero, ""), "");
    }
    if (d->operands[1]->min > 0)
        return r;
    return LLVMBuildSelect(builder, LLVMBuildICmp(builder, LLVMIntEQ, b, zero, ""), zero, r, "");
}

static LLVMValueRef combine(const qn_emitter *e, qn_dim d, LLVMValueRef a, LLVMValueRef b)
{
    switch (d->kind) {
    case QN_DIM_ADD:
        return may_overflow(d) ? call2(e, "llvm.sadd.sat", a, b) : LLVMBuildAdd(e->builder, a, b, "");
    case QN_DIM_MUL:
        return may_overflow(d) ? multiply_saturated(e, a, b) : LLVMBuildMul(e->builder, a, b, "");
    case QN_DIM_FLOORDIV:
    case QN_DIM_MOD: return divide(e, d, a, b);
    case QN_DIM_MIN: return call2(e, "llvm.smin", a, b);
    case QN_DIM_MAX: return call2(e, "llvm.smax", a, b);
    case QN_DIM_SELECT_ONE: {
        LLVMValueRef is_one = LLVMBuildICmp(e->builder, LLVMIntEQ, a, qn_llvm_i64(e, 1), "");
        return LLVMBuildSelect(e->builder, is_one, b, a, "");
    }
    case QN_DIM_CONST:
    case QN_DIM_SYMBOL: break;
    }
    QN_UNREACHABLE("a dimension expression of kind %d", (int)d->kind);
}

/* Depends on given values alone. */
static bool is_fixed(const qn_dim_code *code, qn_dim d)
{
    if (d->kind == QN_DIM_SYMBOL)
        return code->symbols[d->symbol] != NULL;
    for (int i = 0; i < d->n; i++)
        if (!is_fixed(code, d->operands[i]))
            return false;
    return true;
}

static LLVMValueRef read_symbol(const qn_dim_code *code, int symbol)
{
    const qn_emitter *e = code->e;
    LLVMValueRef index = qn_llvm_i64(e, symbol);
    LLVMValueRef at = LLVMBuildGEP2(e->builder, e->i64, code->memory, &index, 1, "");
    return LLVMBuildLoad2(e->builder, e->i64, at, "");
}

static LLVMValueRef known(const qn_dim_code *code, qn_dim d)
{
    for (size_t i = 0; i < code->known.n; i++)
        if (code->known.items[i].dim == d)
            return code->known.items[i].value;
    return NULL;
}

static LLVMValueRef emit_here(qn_dim_code *code, qn_dim d)
{
    if (d->kind == QN_DIM_CONST)
        return qn_llvm_i64(code->e, d->value);
    if (d->kind == QN_DIM_SYMBOL)
        return code->symbols[d->symbol] ? code->symbols[d->symbol] : read_symbol(code, d->symbol);
    LLVMValueRef value = qn_dim_emit(code, d->operands[0]);
    for (int i = 1; i < d->n; i++)
        value = combine(code->e, d, value, qn_dim_emit(code, d->operands[i]));
    return value;
}

LLVMValueRef qn_dim_emit(qn_dim_code *code, qn_dim d)
{
    if (d->kind == QN_DIM_CONST || !is_fixed(code, d))
        return emit_here(code, d);
    LLVMValueRef value = known(code, d);
    if (value)
        return value;
    LLVMBasicBlockRef here = qn_llvm_here(code->e);
    qn_llvm_at(code->e, code->home);
    value = emit_here(code, d);
    qn_llvm_at(code->e, here);
    qn_dim_value item = { d, value };
    qn_vec_push(code->e->arena, &code->known, item);
    return value;
}

LLVMValueRef qn_symbols_outside(qn_dim_code *code, qn_dims *dims, int from, int to)
{
    LLVMBuilderRef b = code->e->builder;
    LLVMValueRef outside = LLVMConstNull(code->e->i1);
    for (int i = from; i < to; i++) {
        qn_dim symbol = qn_dims_symbol_at(dims, i);
        LLVMValueRef value = emit_here(code, symbol);
        /* value - min, unsigned, is above max - min on either side */
        LLVMValueRef distance = LLVMBuildSub(b, value, qn_llvm_i64(code->e, symbol->min), "");
        uint64_t extent = (uint64_t)symbol->max - (uint64_t)symbol->min;
        LLVMValueRef bad = LLVMBuildICmp(b, LLVMIntUGT, distance, qn_llvm_i64(code->e, (int64_t)extent), "");
        outside = LLVMBuildOr(b, outside, bad, "");
    }
    return outside;
}

/* ---- functions that are given the symbols' values ---- */

/* Opens the function; all symbols are values, read at its start. */
static LLVMValueRef open_function(const qn_emitter *e, const qn_program *p, const char *name,
                                  LLVMTypeRef result, int n_params, LLVMTypeRef *params, int symbols_param,
                                  qn_dim_code *out_code)
{
    LLVMValueRef function = qn_llvm_function(e, name, result, n_params, params);
    LLVMSetLinkage(function, LLVMInternalLinkage);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, function, "entry"));
    int n = qn_dims_symbol_count(p->dims);
    *out_code = (qn_dim_code){ .e = e,
                               .symbols = QN_NEW_ARRAY(e->arena, LLVMValueRef, n),
                               .memory = LLVMGetParam(function, (unsigned)symbols_param),
                               .home = qn_llvm_here(e) };
    for (int i = 0; i < n; i++)
        out_code->symbols[i] = read_symbol(out_code, i);
    return function;
}

LLVMValueRef qn_emit_workspace_bytes(const qn_emitter *e, const qn_program *p, const char *name)
{
    qn_dim_code code;
    LLVMBuilderRef b = e->builder;
    LLVMValueRef function = open_function(e, p, qn_arena_printf(e->arena, "%s_workspace_bytes", name), e->i64,
                                          1, (LLVMTypeRef[]){ e->ptr }, 0, &code);
    LLVMValueRef outside = qn_symbols_outside(&code, p->dims, 0, qn_dims_symbol_count(p->dims));
    LLVMValueRef bytes = qn_dim_emit(&code, p->arena_bytes);
    if (may_overflow(p->arena_bytes)) {
        LLVMValueRef too_large = LLVMBuildICmp(b, LLVMIntEQ, bytes, qn_llvm_i64(e, INT64_MAX), "");
        outside = LLVMBuildOr(b, outside, too_large, "");
    }
    LLVMBuildRet(b, LLVMBuildSelect(b, outside, qn_llvm_i64(e, -1), bytes, ""));
    return function;
}

LLVMValueRef qn_emit_shape(const qn_emitter *e, const qn_program *p, const char *name)
{
    qn_dim_code code;
    LLVMBuilderRef b = e->builder;
    LLVMValueRef function = open_function(e, p, qn_arena_printf(e->arena, "%s_shape", name), e->nothing, 3,
                                          (LLVMTypeRef[]){ e->i32, e->ptr, e->ptr }, 1, &code);
    LLVMBasicBlockRef done = qn_llvm_block(e, "done");
    LLVMValueRef choice = LLVMBuildSwitch(b, LLVMGetParam(function, 0), done, (unsigned)p->n_io);
    for (int i = 0; i < p->n_io; i++) {
        const qn_type *type = &p->io[i].type;
        LLVMBasicBlockRef block = LLVMInsertBasicBlockInContext(e->context, done, "");
        LLVMAddCase(choice, qn_llvm_i32(e, i), block);
        qn_llvm_at(e, block);
        qn_dim_code of_block = { .e = e, .symbols = code.symbols, .memory = code.memory, .home = block };
        for (int d = 0; d < type->rank; d++) {
            LLVMValueRef index = qn_llvm_i64(e, d);
            LLVMValueRef at = LLVMBuildGEP2(b, e->i64, LLVMGetParam(function, 2), &index, 1, "");
            LLVMBuildStore(b, qn_dim_emit(&of_block, type->dims[d]), at);
        }
        LLVMBuildBr(b, done);
    }
    qn_llvm_at(e, done);
    LLVMBuildRetVoid(b);
    return function;
}

LLVMValueRef qn_emit_limits(const qn_emitter *e, const qn_program *p, const char *name)
{
    qn_dim_code code;
    int n = qn_dims_symbol_count(p->dims);
    if (n == p->n_entry_symbols)
        return NULL;
    LLVMValueRef function = open_function(e, p, qn_arena_printf(e->arena, "%s_limits", name), e->nothing, 1,
                                          (LLVMTypeRef[]){ e->ptr }, 0, &code);
    for (int i = p->n_entry_symbols; i < n; i++) {
        LLVMValueRef index = qn_llvm_i64(e, i);
        LLVMValueRef at = LLVMBuildGEP2(e->builder, e->i64, code.memory, &index, 1, "");
        LLVMBuildStore(e->builder, qn_dim_emit(&code, p->limits[i - p->n_entry_symbols]), at);
    }
    LLVMBuildRetVoid(e->builder);
    return function;
}
