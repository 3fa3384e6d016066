/* The choice between tables for several CPUs: see choice.h. What the machine can do is read by cpuid, once; the choice is kept
 * in one word, the only one of an object that changes. Threads that come at the same time store the same value. */
#include "backends/llvm/choice.h"

#include <string.h>

#include "backends/llvm/entry.h"

/* ---- what CPUs have ---- */

/* Words that say what a machine can do: registers that cpuid gives, and XCR0, which says what the system saves. */
enum { LEAF_1_C, LEAF_7_B, LEAF_7_C, LEAF_7_D, LEAF_7_1_A, LEAF_80000001_C, XCR0, N_WORDS };

#define BIT(n) (1u << (n))
enum { OSXSAVE = 27 }; /* of LEAF_1_C: XCR0 can be read */

static const struct level {
    const char *name, *cpu, *features; /* the last two as LLVM knows them */
    uint32_t needs[N_WORDS];           /* besides what the levels before need */
} levels[] = {
    { "x86-64-v3",
      "x86-64-v3",
      NULL,
      { [LEAF_1_C] = BIT(0) | BIT(9) | BIT(12) | BIT(13) | BIT(19) | BIT(20) | BIT(22) | BIT(23) | BIT(28) |
                     BIT(29), /* SSE3, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AVX, F16C */
        [LEAF_7_B] = BIT(3) | BIT(5) | BIT(8), /* BMI1, AVX2, BMI2 */
        [LEAF_80000001_C] = BIT(0) | BIT(5),   /* LAHF, LZCNT */
        [XCR0] = BIT(1) | BIT(2) } },          /* xmm, ymm */
    { "x86-64-v4",
      "x86-64-v4",
      NULL,
      { [LEAF_7_B] = BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31), /* AVX-512 F, DQ, CD, BW, VL */
        [XCR0] = BIT(5) | BIT(6) | BIT(7) } },                        /* k, zmm */
    { "icelake-server", "x86-64-v4", "+avx512vnni", { [LEAF_7_C] = BIT(11) } },
    { "znver4", "x86-64-v4", "+avx512vnni,+avx512bf16", { [LEAF_7_1_A] = BIT(5) } },
    { "sapphirerapids",
      "x86-64-v4",
      "+avx512vnni,+avx512bf16,+amx-tile,+amx-int8,+amx-bf16",
      { [LEAF_7_D] = BIT(22) | BIT(24) | BIT(25), /* AMX: bf16, tiles, int8 */
        [XCR0] = BIT(17) | BIT(18) } },           /* their state */
};
enum { N_LEVELS = sizeof levels / sizeof *levels, WITH_TILES = N_LEVELS - 1 };

const char qn_llvm_level_names[] = "x86-64-v3, x86-64-v4, icelake-server, znver4, sapphirerapids";

int qn_llvm_level(const char *name, qn_target *out)
{
    for (int i = 0; i < N_LEVELS; i++)
        if (strcmp(levels[i].name, name) == 0) {
            out->cpu = levels[i].cpu;
            out->features = levels[i].features;
            return i;
        }
    return -1;
}

/* ---- asking the machine ---- */

static LLVMValueRef call_asm(const qn_emitter *e, const char *text, const char *constraints,
                             LLVMTypeRef result, int n, LLVMValueRef *arguments)
{
    LLVMTypeRef type = LLVMFunctionType(result, (LLVMTypeRef[]){ e->i32, e->i32 }, (unsigned)n, 0);
    LLVMValueRef code = LLVMGetInlineAsm(type, text, strlen(text), constraints, strlen(constraints), 0, 0,
                                         LLVMInlineAsmDialectATT, 0);
    return LLVMBuildCall2(e->builder, type, code, arguments, (unsigned)n, "");
}

/* { eax, ebx, ecx, edx } */
static LLVMValueRef cpuid(const qn_emitter *e, uint32_t leaf, uint32_t part)
{
    LLVMTypeRef four =
        LLVMStructTypeInContext(e->context, (LLVMTypeRef[]){ e->i32, e->i32, e->i32, e->i32 }, 4, 0);
    LLVMValueRef arguments[] = { qn_llvm_i32(e, (int32_t)leaf), qn_llvm_i32(e, (int32_t)part) };
    return call_asm(e, "cpuid", "={eax},={ebx},={ecx},={edx},{eax},{ecx}", four, 2, arguments);
}

static LLVMValueRef part_of(const qn_emitter *e, LLVMValueRef registers, unsigned which)
{
    return LLVMBuildExtractValue(e->builder, registers, which, "");
}

static LLVMValueRef has_all(const qn_emitter *e, LLVMValueRef word, uint32_t bits)
{
    LLVMValueRef mask = qn_llvm_i32(e, (int32_t)bits);
    return LLVMBuildICmp(e->builder, LLVMIntEQ, LLVMBuildAnd(e->builder, word, mask, ""), mask, "");
}

static void return_unless(const qn_emitter *e, LLVMValueRef condition, int value)
{
    LLVMBasicBlockRef no = qn_llvm_block(e, ""), yes = qn_llvm_block(e, "");
    LLVMBuildCondBr(e->builder, condition, yes, no);
    qn_llvm_at(e, no);
    LLVMBuildRet(e->builder, qn_llvm_i32(e, value));
    qn_llvm_at(e, yes);
}

/* i32 choose(void): 1 + the index of the last of the levels that the machine has, or n + 1. */
static LLVMValueRef emit_choose(const qn_emitter *e, int n, const int *chosen)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef f = qn_llvm_function(e, "choose", e->i32, 0, NULL), words[N_WORDS];
    LLVMSetLinkage(f, LLVMInternalLinkage);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    LLVMValueRef leaves = part_of(e, cpuid(e, 0, 0), 0);
    return_unless(e, LLVMBuildICmp(b, LLVMIntUGE, leaves, qn_llvm_i32(e, 7), ""), n + 1);
    words[LEAF_1_C] = part_of(e, cpuid(e, 1, 0), 2);
    return_unless(e, has_all(e, words[LEAF_1_C], BIT(OSXSAVE)), n + 1);
    LLVMValueRef leaf_7 = cpuid(e, 7, 0), zero = qn_llvm_i32(e, 0);
    for (int i = LEAF_7_B; i <= LEAF_7_D; i++)
        words[i] = part_of(e, leaf_7, (unsigned)(1 + i - LEAF_7_B));
    words[LEAF_7_1_A] = part_of(e, cpuid(e, 7, 1), 0); /* 0 where there is no such leaf */
    words[LEAF_80000001_C] = part_of(e, cpuid(e, 0x80000001, 0), 2);
    words[XCR0] = call_asm(e, "xgetbv", "={eax},{ecx},~{edx}", e->i32, 1, &zero);
    LLVMValueRef result = qn_llvm_i32(e, n + 1);
    for (int i = 0; i < n; i++) {
        LLVMValueRef fit = LLVMConstAllOnes(e->i1);
        for (int w = 0; w < N_WORDS; w++) {
            uint32_t bits = 0;
            for (int l = 0; l <= chosen[i]; l++)
                bits |= levels[l].needs[w];
            fit = LLVMBuildAnd(b, fit, has_all(e, words[w], bits), "");
        }
        if (chosen[i] == WITH_TILES)
            fit = LLVMBuildAnd(b, fit, LLVMBuildNot(b, qn_llvm_tile_permission(e), ""), "");
        result = LLVMBuildSelect(b, fit, qn_llvm_i32(e, i + 1), result, "");
    }
    LLVMBuildRet(b, result);
    return f;
}

/* ---- the module ---- */

typedef struct job {
    const qn_entries *entries;
    int n;
    const int *levels;
    const char *const *queries;
} job;

static LLVMValueRef kept_access(LLVMValueRef access)
{
    LLVMSetOrdering(access, LLVMAtomicOrderingMonotonic);
    LLVMSetAlignment(access, 4);
    return access;
}

static qn_status build(qn_emitter *e, void *user)
{
    const job *j = user;
    LLVMBuilderRef b = e->builder;
    qn_entries refusing = *j->entries;
    refusing.query = "refusing";
    refusing.machine = qn_arena_printf(e->arena, "%s %s, which this machine is not", e->target->triple,
                                       levels[j->levels[0]].name);
    LLVMValueRef refuse = qn_llvm_build_entries(e, &refusing, false, true),
                 choose = emit_choose(e, j->n, j->levels);
    LLVMTypeRef query_type = LLVMFunctionType(e->ptr, &e->i32, 1, 0),
                choose_type = LLVMFunctionType(e->i32, NULL, 0, 0);
    LLVMValueRef kept = LLVMAddGlobal(e->module, e->i32, "choice");
    LLVMSetInitializer(kept, qn_llvm_i32(e, 0));
    LLVMSetLinkage(kept, LLVMInternalLinkage);

    const char *name = qn_arena_printf(e->arena, "%s_query", j->entries->prefix);
    LLVMValueRef f = qn_llvm_function(e, name, e->ptr, 1, &e->i32), version = LLVMGetParam(f, 0);
    LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(e->context, f, "entry");
    qn_llvm_at(e, entry);
    LLVMBasicBlockRef none = qn_llvm_block(e, "none"), known = qn_llvm_block(e, "known"),
                      first = qn_llvm_block(e, "first");
    LLVMValueRef before = kept_access(LLVMBuildLoad2(b, e->i32, kept, ""));
    LLVMBuildCondBr(b, LLVMBuildIsNull(b, before, ""), first, known);
    qn_llvm_at(e, first);
    LLVMValueRef now = LLVMBuildCall2(b, choose_type, choose, NULL, 0, "");
    kept_access(LLVMBuildStore(b, now, kept));
    LLVMBuildBr(b, known);
    qn_llvm_at(e, known);
    LLVMValueRef choice = qn_llvm_phi(e, e->i32);
    qn_llvm_incoming(choice, before, entry);
    qn_llvm_incoming(choice, now, first);
    LLVMValueRef to = LLVMBuildSwitch(b, choice, none, (unsigned)j->n);
    for (int i = 0; i <= j->n; i++) {
        LLVMBasicBlockRef block = i < j->n ? qn_llvm_block(e, "") : none;
        LLVMValueRef query = refuse;
        if (i < j->n) {
            LLVMAddCase(to, qn_llvm_i32(e, i + 1), block);
            query = LLVMAddFunction(e->module, j->queries[i], query_type);
            LLVMSetVisibility(query, LLVMHiddenVisibility);
        }
        qn_llvm_at(e, block);
        LLVMBuildRet(b, LLVMBuildCall2(b, query_type, query, &version, 1, ""));
    }
    return QUERN_OK;
}

qn_status qn_llvm_emit_choice(const qn_entries *entries, const char *triple, int n, const int *chosen,
                              const char *const *queries, qn_arena *arena, qn_code *out_code, qn_diags *diags)
{
    job j = { entries, n, chosen, queries };
    const qn_target target = { .triple = triple, .cpu = "x86-64", .plain = true };
    return qn_llvm_compile("the choice of a CPU", &target, QN_EMIT_OBJECT, QN_LLVM_FAST_COMPILE, build, &j,
                           arena, out_code, diags);
}
