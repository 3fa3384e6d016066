/* Tile instructions on AMX: one intrinsic each, with the tile's number as an immediate. LLVM's allocator of tile registers
 * takes no part, so a kernel has the eight tiles for itself. */
#include "backends/llvm/emit.h"

/* palette 1; bytes of a row at 16 + 2 t, rows at 48 + t */
enum { CONFIG_BYTES = 64, PALETTE = 0, ROW_BYTES = 16, ROWS = 48 };

LLVMValueRef qn_llvm_tile_config(const qn_emitter *e)
{
    LLVMValueRef config = LLVMBuildAlloca(e->builder, LLVMArrayType2(e->i8, CONFIG_BYTES), "tile_config");
    LLVMSetAlignment(config, CONFIG_BYTES);
    return config;
}

static void store_at(const qn_emitter *e, LLVMValueRef base, int offset, LLVMValueRef value)
{
    LLVMValueRef at = qn_llvm_i64(e, offset);
    LLVMSetAlignment(LLVMBuildStore(e->builder, value, LLVMBuildGEP2(e->builder, e->i8, base, &at, 1, "")),
                     1);
}

/* A tile without rows has no bytes a row either. */
void qn_llvm_tile_shape(const qn_emitter *e, LLVMValueRef config, LLVMValueRef *rows)
{
    LLVMBuilderRef b = e->builder;
    LLVMTypeRef block = qn_llvm_lanes(e->i8, CONFIG_BYTES);
    LLVMSetAlignment(LLVMBuildStore(b, LLVMConstNull(block), config), CONFIG_BYTES);
    store_at(e, config, PALETTE, LLVMConstInt(e->i8, 1, 0));
    for (int t = 0; t < QN_TILES; t++) {
        LLVMValueRef bytes = LLVMBuildSelect(b, LLVMBuildIsNull(b, rows[t], ""), LLVMConstNull(e->i16),
                                             LLVMConstInt(e->i16, QN_TILE_BYTES, 0), "");
        store_at(e, config, ROW_BYTES + 2 * t, bytes);
        store_at(e, config, ROWS + t, LLVMBuildTrunc(b, rows[t], e->i8, ""));
    }
    qn_llvm_intrinsic(e, "llvm.x86.ldtilecfg", 0, NULL, 1, &config);
}

static LLVMValueRef tile(const qn_emitter *e, int number)
{
    return LLVMConstInt(e->i8, (unsigned)number, 0);
}

void qn_llvm_tile_zero(const qn_emitter *e, int number)
{
    LLVMValueRef args[] = { tile(e, number) };
    qn_llvm_intrinsic(e, "llvm.x86.tilezero", 0, NULL, 1, args);
}

void qn_llvm_tile_move(const qn_emitter *e, bool load, int number, LLVMValueRef address,
                       LLVMValueRef row_bytes)
{
    LLVMValueRef args[] = { tile(e, number), address, row_bytes };
    qn_llvm_intrinsic(e, load ? "llvm.x86.tileloadd64" : "llvm.x86.tilestored64", 0, NULL, 3, args);
}

void qn_llvm_tile_mma(const qn_emitter *e, const int *tiles, qn_dtype x, qn_dtype y)
{
    const char *name = x == QUERN_BF16                  ? "llvm.x86.tdpbf16ps"
                       : x == QUERN_I8 && y == QUERN_I8 ? "llvm.x86.tdpbssd"
                       : x == QUERN_I8                  ? "llvm.x86.tdpbsud"
                       : y == QUERN_I8                  ? "llvm.x86.tdpbusd"
                                                        : "llvm.x86.tdpbuud";
    LLVMValueRef args[] = { tile(e, tiles[0]), tile(e, tiles[1]), tile(e, tiles[2]) };
    qn_llvm_intrinsic(e, name, 0, NULL, 3, args);
}

void qn_llvm_tile_release(const qn_emitter *e)
{
    qn_llvm_intrinsic(e, "llvm.x86.tilerelease", 0, NULL, 0, NULL);
}

LLVMValueRef qn_llvm_tile_permission(const qn_emitter *e)
{
    enum { ARCH_PRCTL = 158, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    static const char text[] = "syscall", constraints[] = "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory}";
    LLVMTypeRef type = LLVMFunctionType(e->i64, (LLVMTypeRef[]){ e->i64, e->i64, e->i64 }, 3, 0);
    LLVMValueRef code = LLVMGetInlineAsm(type, text, sizeof text - 1, constraints, sizeof constraints - 1, 1,
                                         0, LLVMInlineAsmDialectATT, 0);
    LLVMValueRef args[] = { qn_llvm_i64(e, ARCH_PRCTL), qn_llvm_i64(e, REQUEST_PERMISSION),
                            qn_llvm_i64(e, TILE_DATA) };
    return LLVMBuildIsNotNull(e->builder, LLVMBuildCall2(e->builder, type, code, args, 3, ""), "");
}
