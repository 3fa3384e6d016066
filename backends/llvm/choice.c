/* The comparison of an object with the machine: see choice.h. What the machine can do is read once, on x86-64 by cpuid, on
 * AArch64 from what Linux tells a process at its start; the choice is kept in one word, the only one of an object that changes.
 * Threads that come at the same time store the same value. */
#include "backends/llvm/choice.h"

#include <string.h>

#include "backends/llvm/entry.h"

/* ---- what CPUs have ---- */

/* Words that say what a machine can do: on x86-64 registers that cpuid gives, and XCR0, which says what the system saves; on
 * AArch64 two of the auxiliary vector. */
enum { LEAF_1_C, LEAF_7_B, LEAF_7_C, LEAF_7_D, LEAF_7_1_A, LEAF_80000001_C, XCR0, HWCAP, HWCAP2, N_WORDS };

#define BIT(n) (1u << (n))
enum { OSXSAVE = 27 }; /* of LEAF_1_C: XCR0 can be read */

/* In the order of the bits QN_NEEDS_. */
static const struct part {
    const char *name;
    uint32_t words[N_WORDS];
} parts[] = {
    { "AVX2, FMA or F16C",
      { [LEAF_1_C] = BIT(0) | BIT(9) | BIT(12) | BIT(19) | BIT(20) | BIT(28) |
                     BIT(29),         /* SSE3, SSSE3, FMA, SSE4.1, SSE4.2, AVX, F16C */
        [LEAF_7_B] = BIT(5),          /* AVX2 */
        [XCR0] = BIT(1) | BIT(2) } }, /* xmm, ymm */
    { "BMI, BMI2, LZCNT, MOVBE or POPCNT",
      { [LEAF_1_C] = BIT(13) | BIT(22) | BIT(23), /* CX16, MOVBE, POPCNT */
        [LEAF_7_B] = BIT(3) | BIT(8),             /* BMI, BMI2 */
        [LEAF_80000001_C] = BIT(0) | BIT(5) } },  /* LAHF, LZCNT */
    { "AVX-512 (F, BW, CD, DQ, VL)",
      { [LEAF_7_B] = BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31), /* F, DQ, CD, BW, VL */
        [XCR0] = BIT(5) | BIT(6) | BIT(7) } },                        /* k, zmm */
    { "AVX_VNNI", { [LEAF_7_1_A] = BIT(4) } },
    { "AVX512_VNNI", { [LEAF_7_C] = BIT(11) } },
    { "AVX512_BF16", { [LEAF_7_1_A] = BIT(5) } },
    { "AVX512_FP16", { [LEAF_7_D] = BIT(23) } },
    { "AVX512_BITALG, VBMI, VBMI2, VPOPCNTDQ or GFNI",
      { [LEAF_7_C] = BIT(1) | BIT(6) | BIT(8) | BIT(12) | BIT(14) } },
    { "AMX",                                      /* and the system's permission */
      { [LEAF_7_D] = BIT(22) | BIT(24) | BIT(25), /* bf16, tiles, int8 */
        [XCR0] = BIT(17) | BIT(18) } },           /* their state */
    { "dotprod", { [HWCAP] = BIT(20) } },
    { "i8mm", { [HWCAP2] = BIT(13) } },
    { "bf16", { [HWCAP2] = BIT(14) } },
};
enum { N_PARTS = sizeof parts / sizeof *parts };

typedef struct level {
    const char *name, *cpu, *features; /* the last two as LLVM knows them */
} level;

static const level x86_levels[] = {
    { "x86-64-v3", "x86-64-v3", NULL },
    { "x86-64-v4", "x86-64-v4", NULL },
    { "icelake-server", "x86-64-v4", "+avx512vnni" },
    { "znver4", "x86-64-v4", "+avx512vnni,+avx512bf16" },
    { "sapphirerapids", "x86-64-v4", "+avx512vnni,+avx512bf16,+amx-tile,+amx-int8,+amx-bf16" },
};
static const level aarch64_levels[] = {
    { "generic", "generic", NULL },
    { "neoverse-n1", "generic", "+dotprod" },
    { "neoverse-v1", "generic", "+dotprod,+i8mm,+bf16" },
};

static bool is_aarch64(const char *triple)
{
    return triple ? strncmp(triple, "aarch64", 7) == 0 : QN_HOST_ISA == QN_ISA_AARCH64;
}

const char *qn_llvm_level_names(const char *triple)
{
    return is_aarch64(triple) ? "generic, neoverse-n1, neoverse-v1"
                              : "x86-64-v3, x86-64-v4, icelake-server, znver4, sapphirerapids";
}

int qn_llvm_level(const char *triple, const char *name, qn_target *out)
{
    const bool arm = is_aarch64(triple);
    const level *levels = arm ? aarch64_levels : x86_levels;
    const int n = arm ? sizeof aarch64_levels / sizeof *levels : sizeof x86_levels / sizeof *levels;
    for (int i = 0; i < n; i++)
        if (strcmp(levels[i].name, name) == 0) {
            out->cpu = levels[i].cpu;
            out->features = levels[i].features;
            return i;
        }
    return -1;
}

/* ---- asking the machine: x86-64 ---- */

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

/* Returns `nothing` where there is nothing to ask. */
static void ask_x86(const qn_emitter *e, int nothing, LLVMValueRef *words)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef leaves = part_of(e, cpuid(e, 0, 0), 0);
    return_unless(e, LLVMBuildICmp(b, LLVMIntUGE, leaves, qn_llvm_i32(e, 7), ""), nothing);
    words[LEAF_1_C] = part_of(e, cpuid(e, 1, 0), 2);
    return_unless(e, has_all(e, words[LEAF_1_C], BIT(OSXSAVE)), nothing);
    LLVMValueRef leaf_7 = cpuid(e, 7, 0), zero = qn_llvm_i32(e, 0);
    for (int i = LEAF_7_B; i <= LEAF_7_D; i++)
        words[i] = part_of(e, leaf_7, (unsigned)(1 + i - LEAF_7_B));
    words[LEAF_7_1_A] = part_of(e, cpuid(e, 7, 1), 0); /* 0 where there is no such leaf */
    words[LEAF_80000001_C] = part_of(e, cpuid(e, 0x80000001, 0), 2);
    words[XCR0] = call_asm(e, "xgetbv", "={eax},{ecx},~{edx}", e->i32, 1, &zero);
}

/* ---- asking the machine: AArch64 ---- */

static LLVMValueRef call_linux(const qn_emitter *e, int64_t number, LLVMValueRef x0, LLVMValueRef x1,
                               LLVMValueRef x2)
{
    const char text[] = "svc #0", constraints[] = "={x0},{x8},{x0},{x1},{x2},~{memory}";
    LLVMTypeRef types[] = { e->i64, e->i64, e->ptr, e->i64 };
    LLVMValueRef code =
        LLVMGetInlineAsm(LLVMFunctionType(e->i64, types, 4, 0), text, sizeof text - 1, constraints,
                         sizeof constraints - 1, 1, 0, LLVMInlineAsmDialectATT, 0);
    LLVMValueRef arguments[] = { qn_llvm_i64(e, number), x0, x1, x2 };
    return LLVMBuildCall2(e->builder, LLVMFunctionType(e->i64, types, 4, 0), code, arguments, 4, "");
}

/* Fills `pairs` from the file with what the C library's getauxval knows: a kind and a value each. How many there are. An object
 * has no C library, and registers that say what a CPU has can be read since Linux 4.11 only. */
static LLVMValueRef read_auxiliary_vector(const qn_emitter *e, LLVMValueRef pairs, int64_t room)
{
    enum { OPENAT = 56, CLOSE = 57, READ = 63, HERE = -100, CLOEXEC = 0x80000, PAIR = 16 };
    LLVMValueRef file = call_linux(e, OPENAT, qn_llvm_i64(e, HERE), qn_llvm_string(e, "/proc/self/auxv"),
                                   qn_llvm_i64(e, CLOEXEC));
    LLVMValueRef bytes = call_linux(e, READ, file, pairs, qn_llvm_i64(e, room * PAIR)); /* < 0: an error */
    call_linux(e, CLOSE, file, LLVMConstNull(e->ptr), qn_llvm_i64(e, 0));
    return LLVMBuildSDiv(e->builder, bytes, qn_llvm_i64(e, PAIR), "");
}

static LLVMValueRef load_at(const qn_emitter *e, LLVMValueRef numbers, LLVMValueRef index)
{
    return LLVMBuildLoad2(e->builder, e->i64, LLVMBuildGEP2(e->builder, e->i64, numbers, &index, 1, ""), "");
}

/* What is not found counts as 0. */
static void ask_aarch64(const qn_emitter *e, LLVMValueRef *words)
{
    enum { ROOM = 128, N = 2 };
    static const int64_t kinds[N] = { 16, 26 }; /* AT_HWCAP, AT_HWCAP2 */
    LLVMBuilderRef b = e->builder;
    LLVMValueRef pairs = LLVMBuildAlloca(b, LLVMArrayType2(e->i64, 2 * ROOM), "auxv"),
                 zero = qn_llvm_i64(e, 0);
    LLVMValueRef n = read_auxiliary_vector(e, pairs, ROOM), found[N], next[N];
    LLVMBasicBlockRef before = qn_llvm_here(e), loop = qn_llvm_block(e, "loop"),
                      behind = qn_llvm_block(e, "");
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSGT, n, zero, ""), loop, behind);
    qn_llvm_at(e, loop);
    LLVMValueRef i = qn_llvm_phi(e, e->i64);
    for (int w = 0; w < N; w++)
        found[w] = qn_llvm_phi(e, e->i64);
    LLVMValueRef at = LLVMBuildNSWMul(b, i, qn_llvm_i64(e, 2), ""), kind = load_at(e, pairs, at),
                 value = load_at(e, pairs, LLVMBuildNSWAdd(b, at, qn_llvm_i64(e, 1), ""));
    for (int w = 0; w < N; w++) {
        LLVMValueRef wanted = LLVMBuildICmp(b, LLVMIntEQ, kind, qn_llvm_i64(e, kinds[w]), "");
        next[w] = LLVMBuildSelect(b, wanted, value, found[w], "");
        qn_llvm_incoming(found[w], zero, before);
        qn_llvm_incoming(found[w], next[w], loop);
    }
    LLVMValueRef more = LLVMBuildNSWAdd(b, i, qn_llvm_i64(e, 1), "");
    qn_llvm_incoming(i, zero, before);
    qn_llvm_incoming(i, more, loop);
    LLVMBuildCondBr(b, LLVMBuildICmp(b, LLVMIntSLT, more, n, ""), loop, behind);
    qn_llvm_at(e, behind);
    LLVMValueRef results[N];
    for (int w = 0; w < N; w++) {
        results[w] = qn_llvm_phi(e, e->i64);
        qn_llvm_incoming(results[w], zero, before);
        qn_llvm_incoming(results[w], next[w], loop);
    }
    for (int w = 0; w < N; w++)
        words[HWCAP + w] = LLVMBuildTrunc(b, results[w], e->i32, "");
}

/* ---- the choice ---- */

/* Has the machine with these words a part? */
static LLVMValueRef has_part(const qn_emitter *e, LLVMValueRef *words, int part)
{
    LLVMValueRef has = LLVMConstAllOnes(e->i1);
    for (int w = 0; w < N_WORDS; w++)
        if (parts[part].words[w])
            has = LLVMBuildAnd(e->builder, has, has_all(e, words[w], parts[part].words[w]), "");
    if (1u << part == QN_NEEDS_TILES)
        has = LLVMBuildAnd(e->builder, has, LLVMBuildNot(e->builder, qn_llvm_tile_permission(e), ""), "");
    return has;
}

/* The first part that the first CPU needs. */
static int first_need(const qn_choice *c)
{
    int p = 0;
    while (p < N_PARTS - 1 && !(c->needs[0] >> p & 1))
        p++;
    return p;
}

/* i32 choose(void): 1 + the index of the last CPU whose code the machine can run; or 1 + n + the first part that it lacks of
 * what the first needs. */
static LLVMValueRef emit_choose(const qn_emitter *e, const qn_choice *c)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef f = qn_llvm_function(e, "choose", e->i32, 0, NULL), words[N_WORDS], has[N_PARTS] = { NULL };
    LLVMSetLinkage(f, LLVMInternalLinkage);
    qn_llvm_at(e, LLVMAppendBasicBlockInContext(e->context, f, "entry"));
    if (e->target->isa == QN_ISA_X86)
        ask_x86(e, c->n + 1 + first_need(c), words);
    else
        ask_aarch64(e, words);
    LLVMValueRef result = qn_llvm_i32(e, c->n + 1 + first_need(c));
    for (int p = N_PARTS - 1; p >= 0; p--)
        if (c->needs[c->n - 1] >> p & 1) {
            has[p] = has_part(e, words, p);
            if (c->needs[0] >> p & 1)
                result = LLVMBuildSelect(b, has[p], result, qn_llvm_i32(e, c->n + 1 + p), "");
        }
    for (int i = 0; i < c->n; i++) {
        LLVMValueRef fit = LLVMConstAllOnes(e->i1);
        for (int p = 0; p < N_PARTS; p++)
            if (c->needs[i] >> p & 1)
                fit = LLVMBuildAnd(b, fit, has[p], "");
        result = LLVMBuildSelect(b, fit, qn_llvm_i32(e, i + 1), result, "");
    }
    LLVMBuildRet(b, result);
    return f;
}

/* ---- the module ---- */

static LLVMValueRef kept_access(LLVMValueRef access)
{
    LLVMSetOrdering(access, LLVMAtomicOrderingMonotonic);
    LLVMSetAlignment(access, 4);
    return access;
}

/* The refusing tables `of`, which also say that the machine has no `part`. */
static LLVMValueRef refusal(const qn_emitter *e, LLVMValueRef of, int part)
{
    LLVMValueRef model = LLVMGetInitializer(of), members[QN_MODEL_N_STRINGS + 1];
    const unsigned n = (unsigned)LLVMGetNumOperands(model);
    for (unsigned i = 0; i < n; i++)
        members[i] = LLVMGetOperand(model, i);
    members[QN_MODEL_LACKS] = qn_llvm_string(e, parts[part].name);
    LLVMValueRef made = LLVMAddGlobal(e->module, LLVMTypeOf(model), "lacks");
    LLVMSetInitializer(made, LLVMConstNamedStruct(LLVMTypeOf(model), members, n));
    LLVMSetGlobalConstant(made, 1);
    LLVMSetLinkage(made, LLVMInternalLinkage);
    return made;
}

static qn_status build(qn_emitter *e, void *user)
{
    const qn_choice *c = user;
    LLVMBuilderRef b = e->builder;
    qn_entries refusing = *c->entries;
    refusing.query = "refusing";
    refusing.machine = qn_arena_printf(e->arena, "%s %s", e->target->triple, c->cpu);
    LLVMDeleteFunction(qn_llvm_build_entries(e, &refusing, false, true)); /* only its tables are wanted */
    LLVMValueRef tables =
        LLVMGetNamedGlobal(e->module, qn_arena_printf(e->arena, "%s_model", c->entries->prefix));
    LLVMValueRef choose = emit_choose(e, c);
    LLVMTypeRef query_type = LLVMFunctionType(e->ptr, &e->i32, 1, 0),
                choose_type = LLVMFunctionType(e->i32, NULL, 0, 0);
    LLVMValueRef kept = LLVMAddGlobal(e->module, e->i32, "choice");
    LLVMSetInitializer(kept, qn_llvm_i32(e, 0));
    LLVMSetLinkage(kept, LLVMInternalLinkage);

    const char *name = qn_arena_printf(e->arena, "%s_query", c->entries->prefix);
    qn_llvm_claim(e, name);
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
    LLVMValueRef to = LLVMBuildSwitch(b, choice, none, (unsigned)c->n);
    for (int i = 0; i < c->n; i++) {
        LLVMBasicBlockRef block = qn_llvm_block(e, "");
        LLVMAddCase(to, qn_llvm_i32(e, i + 1), block);
        qn_llvm_claim(e, c->queries[i]);
        LLVMValueRef query = LLVMAddFunction(e->module, c->queries[i], query_type);
        LLVMSetVisibility(query, LLVMHiddenVisibility);
        qn_llvm_at(e, block);
        LLVMBuildRet(b, LLVMBuildCall2(b, query_type, query, &version, 1, ""));
    }
    qn_llvm_at(e, none);
    LLVMValueRef result = refusal(e, tables, first_need(c));
    for (int p = first_need(c) + 1; p < N_PARTS; p++)
        if (c->needs[0] >> p & 1) {
            LLVMValueRef it = LLVMBuildICmp(b, LLVMIntEQ, choice, qn_llvm_i32(e, c->n + 1 + p), "");
            result = LLVMBuildSelect(b, it, refusal(e, tables, p), result, "");
        }
    LLVMValueRef same = LLVMBuildICmp(b, LLVMIntEQ, version, qn_llvm_i32(e, QUERN_ABI_VERSION), "");
    LLVMBuildRet(b, LLVMBuildSelect(b, same, result, LLVMConstNull(e->ptr), ""));
    return QUERN_OK;
}

qn_status qn_llvm_emit_choice(const qn_choice *choice, qn_arena *arena, qn_code *out_code, qn_diags *diags)
{
    const qn_target target = { .triple = choice->triple,
                               .cpu = is_aarch64(choice->triple) ? "generic" : "x86-64",
                               .plain = true };
    return qn_llvm_compile("the comparison with the machine's CPU", &target, QN_EMIT_OBJECT,
                           QN_LLVM_FAST_COMPILE, build, (void *)choice, arena, out_code, diags);
}
