/* Targets: names to what LLVM wants and to what lowering must know.
 *
 * What a CPU with a name can do is asked of the code generator itself: a probe function is compiled for it and the registers
 * and instructions that it uses are looked at. So every CPU name and feature string that LLVM knows works, and what lowering
 * is told is what it will get. This machine's CPU is asked itself, so that LLVM is needed for code only. */
#include "backends/llvm/target.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/llvm/choice.h"
#include "backends/llvm/guard.h"
#include "backends/llvm/open.h"

/* ---- LLVM's targets, registered once: the host's, and all when another is asked for ---- */

static pthread_once_t initialized = PTHREAD_ONCE_INIT, all_initialized = PTHREAD_ONCE_INIT;

/* An LLVM may have been built without some of them. */
static void initialize_isa(const char *name)
{
    static const char *const parts[] = { "TargetInfo", "Target", "TargetMC", "AsmPrinter",
                                         "AsmParser" /* entries of kernels that use tiles call Linux */ };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char function[64];
        snprintf(function, sizeof function, "LLVMInitialize%s%s", name, parts[i]);
        void (*run)(void) = qn_llvm_optional(function);
        if (run)
            run();
    }
}

static void initialize_all(void)
{
    initialize_isa("X86");
    initialize_isa("AArch64");
    initialize_isa("NVPTX");
}

static void initialize(void)
{
    initialize_isa(QN_HOST_ISA == QN_ISA_X86 ? "X86" : "AArch64");
    /* No loop strength reduction: for nested loops with many addresses it takes several times as long as all the rest of
     * code generation, and the code is no faster, since kernels say their addresses in the form that machines add up by
     * themselves. The C API has no other way to leave it out. */
    static const char *const options[] = { "quern", "-disable-lsr" };
    LLVMParseCommandLineOptions(2, options, NULL);
}

static char *copy_and_dispose(char *message)
{
    char *copy = strdup(message);
    LLVMDisposeMessage(message);
    QN_ASSERT(copy, "out of memory");
    return copy;
}

/* ---- probe ---- */

static LLVMTargetMachineRef new_machine(const qn_llvm_target *t, qn_llvm_effort effort)
{
    LLVMCodeGenOptLevel level = effort == QN_LLVM_FAST_CODE ? LLVMCodeGenLevelDefault : LLVMCodeGenLevelNone;
    return LLVMCreateTargetMachine(t->llvm, t->triple, t->cpu, t->features, level, LLVMRelocPIC,
                                   LLVMCodeModelSmall);
}

/* Adds 8 sums of two products of 16 bits to what is in a register: one instruction with VNNI, of which vpdpbusd is part. */
static void add_products(LLVMContextRef c, LLVMBuilderRef b, LLVMValueRef from, LLVMValueRef to)
{
    LLVMTypeRef i32 = LLVMInt32TypeInContext(c), wide = LLVMVectorType(i32, 16);
    LLVMValueRef x = LLVMBuildLoad2(b, LLVMVectorType(LLVMInt16TypeInContext(c), 16), from, "");
    LLVMValueRef products = LLVMBuildSExt(b, x, wide, ""), halves[2], places[8];
    products = LLVMBuildMul(b, products, products, "");
    for (unsigned odd = 0; odd < 2; odd++) {
        for (unsigned i = 0; i < 8; i++)
            places[i] = LLVMConstInt(i32, 2 * i + odd, 0);
        halves[odd] =
            LLVMBuildShuffleVector(b, products, LLVMGetPoison(wide), LLVMConstVector(places, 8), "");
    }
    LLVMValueRef sum = LLVMBuildBitCast(b, x, LLVMVectorType(i32, 8), "");
    LLVMBuildStore(b, LLVMBuildAdd(b, sum, LLVMBuildAdd(b, halves[0], halves[1], ""), ""), to);
}

/* The sum of 16 products of bytes, of which one, two or none are signed: one instruction, and another that adds four sums. */
static void add_bytes(LLVMContextRef c, LLVMModuleRef module, LLVMBuilderRef b, LLVMValueRef from,
                      LLVMValueRef to, bool one)
{
    LLVMTypeRef i32 = LLVMInt32TypeInContext(c), wide = LLVMVectorType(i32, 16);
    LLVMValueRef x = LLVMBuildLoad2(b, LLVMVectorType(LLVMInt8TypeInContext(c), 16), from, "");
    LLVMValueRef y = LLVMBuildLoad2(b, LLVMVectorType(LLVMInt8TypeInContext(c), 16), to, "");
    LLVMValueRef products =
        LLVMBuildMul(b, one ? LLVMBuildZExt(b, x, wide, "") : LLVMBuildSExt(b, x, wide, ""),
                     LLVMBuildSExt(b, y, wide, ""), "");
    const char reduce[] = "llvm.vector.reduce.add";
    unsigned id = LLVMLookupIntrinsicID(reduce, sizeof reduce - 1);
    LLVMBuildStore(b,
                   LLVMBuildCall2(b, LLVMIntrinsicGetType(c, id, &wide, 1),
                                  LLVMGetIntrinsicDeclaration(module, id, &wide, 1), &products, 1, ""),
                   to);
}

/* A function that rounds 16 floats to bf16. By itself, since it is calls where there is no instruction. */
static void round_to_bf16(LLVMContextRef c, LLVMModuleRef module, LLVMBuilderRef b)
{
    LLVMTypeRef p = LLVMPointerTypeInContext(c, 0), from = LLVMVectorType(LLVMFloatTypeInContext(c), 16),
                to = LLVMVectorType(LLVMBFloatTypeInContext(c), 16);
    LLVMValueRef f = LLVMAddFunction(module, "rounds", LLVMFunctionType(LLVMVoidTypeInContext(c), &p, 1, 0));
    LLVMPositionBuilderAtEnd(b, LLVMAppendBasicBlockInContext(c, f, ""));
    LLVMValueRef x = LLVMBuildLoad2(b, from, LLVMGetParam(f, 0), "");
    LLVMBuildStore(b, LLVMBuildFPTrunc(b, x, to, ""), LLVMGetParam(f, 0));
    LLVMBuildRetVoid(b);
}

static void set_attribute(LLVMContextRef c, LLVMValueRef f, const char *key, const char *value)
{
    LLVMAddAttributeAtIndex(
        f, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
        LLVMCreateStringAttribute(c, key, (unsigned)strlen(key), value, (unsigned)strlen(value)));
}

/* A function that adds 32 floats of 16 bits and counts the bits of 64 bytes. By itself, so that the other's text does not change. */
static void use_newer(LLVMContextRef c, LLVMModuleRef module, LLVMBuilderRef b)
{
    LLVMTypeRef p = LLVMPointerTypeInContext(c, 0), halves = LLVMVectorType(LLVMHalfTypeInContext(c), 32),
                bytes = LLVMVectorType(LLVMInt8TypeInContext(c), 64);
    LLVMTypeRef type = LLVMFunctionType(LLVMVoidTypeInContext(c), (LLVMTypeRef[]){ p, p }, 2, 0);
    LLVMValueRef f = LLVMAddFunction(module, "newer", type);
    set_attribute(c, f, "prefer-vector-width", "512");
    LLVMPositionBuilderAtEnd(b, LLVMAppendBasicBlockInContext(c, f, ""));
    LLVMValueRef x = LLVMBuildLoad2(b, halves, LLVMGetParam(f, 0), ""),
                 y = LLVMBuildLoad2(b, bytes, LLVMGetParam(f, 1), "");
    LLVMBuildStore(b, LLVMBuildFAdd(b, x, x, ""), LLVMGetParam(f, 0));
    const unsigned count = LLVMLookupIntrinsicID("llvm.ctpop", 10);
    y = LLVMBuildCall2(b, LLVMIntrinsicGetType(c, count, &bytes, 1),
                       LLVMGetIntrinsicDeclaration(module, count, &bytes, 1), &y, 1, "");
    LLVMBuildStore(b, y, LLVMGetParam(f, 1));
    LLVMBuildRetVoid(b);
}

/* A function that multiplies and adds 16 floats, rounds them to f16, adds 64 bytes, and products of 16 bits; and others. */
static LLVMModuleRef probe_module(LLVMContextRef c, const qn_llvm_target *t)
{
    LLVMModuleRef module = LLVMModuleCreateWithNameInContext("probe", c);
    LLVMBuilderRef b = LLVMCreateBuilderInContext(c);
    LLVMTypeRef p = LLVMPointerTypeInContext(c, 0), f32 = LLVMFloatTypeInContext(c),
                i8 = LLVMInt8TypeInContext(c);
    LLVMTypeRef v16 = LLVMVectorType(f32, 16), h16 = LLVMVectorType(LLVMHalfTypeInContext(c), 16);
    LLVMTypeRef bytes = LLVMVectorType(i8, 64);
    LLVMValueRef f = LLVMAddFunction(module, "probe", LLVMFunctionType(LLVMVoidTypeInContext(c), &p, 1, 0));
    set_attribute(c, f, "prefer-vector-width", "512");
    if (t->isa ==
        QN_ISA_X86) /* what a CPU has, not what it should rather use: Sapphire Rapids' vpdpwssd is slow */
        set_attribute(c, f, "tune-cpu", "x86-64");
    LLVMSetTarget(module, t->triple);
    LLVMPositionBuilderAtEnd(b, LLVMAppendBasicBlockInContext(c, f, ""));
    LLVMValueRef at[4], v = NULL;
    for (int i = 0; i < 4; i++) {
        LLVMValueRef offset = LLVMConstInt(LLVMInt64TypeInContext(c), (unsigned)i * 64, 0);
        at[i] = LLVMBuildGEP2(b, i8, LLVMGetParam(f, 0), &offset, 1, "");
    }
    v = LLVMBuildLoad2(b, v16, at[0], "");
    unsigned fma = LLVMLookupIntrinsicID("llvm.fma", 8);
    LLVMValueRef args[] = { v, v, v };
    LLVMValueRef sum = LLVMBuildCall2(b, LLVMIntrinsicGetType(c, fma, &v16, 1),
                                      LLVMGetIntrinsicDeclaration(module, fma, &v16, 1), args, 3, "");
    LLVMBuildStore(b, sum, at[1]);
    LLVMBuildStore(b, LLVMBuildFPTrunc(b, v, h16, ""), at[2]);
    LLVMValueRef w = LLVMBuildLoad2(b, bytes, at[3], "");
    LLVMBuildStore(b, LLVMBuildAdd(b, w, w, ""), at[3]);
    add_products(c, b, at[3], at[0]);
    if (t->isa == QN_ISA_AARCH64)
        for (int one = 0; one < 2; one++)
            add_bytes(c, module, b, at[2 + one], at[one], one);
    LLVMBuildRetVoid(b);
    if (t->isa != QN_ISA_NVPTX)
        round_to_bf16(c, module, b);
    if (t->isa == QN_ISA_X86)
        use_newer(c, module, b);
    LLVMDisposeBuilder(b);
    return module;
}

typedef struct probe_job {
    const qn_llvm_target *target;
    char *data_layout, *text; /* to be freed; NULL when LLVM had none */
} probe_job;

/* Compiles the probe to assembly. */
static void probe(void *user)
{
    probe_job *j = user;
    LLVMTargetMachineRef machine = new_machine(j->target, QN_LLVM_FAST_CODE);
    LLVMContextRef c = LLVMContextCreate();
    LLVMModuleRef module = probe_module(c, j->target);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(machine);
    LLVMSetModuleDataLayout(module, layout);
    j->data_layout = copy_and_dispose(LLVMCopyStringRepOfTargetData(layout));
    LLVMDisposeTargetData(layout);
    LLVMMemoryBufferRef buffer = NULL;
    char *message = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(machine, module, LLVMAssemblyFile, &message, &buffer))
        LLVMDisposeMessage(message);
    else
        j->text = strndup(LLVMGetBufferStart(buffer), LLVMGetBufferSize(buffer));
    if (buffer)
        LLVMDisposeMemoryBuffer(buffer);
    LLVMDisposeModule(module);
    LLVMContextDispose(c);
    LLVMDisposeTargetMachine(machine);
}

/* ---- resolution ---- */

static int64_t cache_bytes(int name, int64_t fallback)
{
    long bytes = sysconf(name);
    return bytes > 0 ? bytes : fallback;
}

/* What one group of cores shares: the C library adds up those of all groups. 0: not known. */
static int64_t l3_bytes(void)
{
    FILE *file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r");
    long kilobytes = 0;
    char unit = 0;
    const bool known = file && fscanf(file, "%ld%c", &kilobytes, &unit) == 2 && unit == 'K' &&
                       kilobytes > 0 && kilobytes < 1 << 24;
    if (file)
        fclose(file);
    return known ? (int64_t)kilobytes << 10 : 0;
}

/* LLVM takes any name, so they are listed: the number N of sm_N, sm_Na (from 90 on) and sm_Nf (from 100 on); 0: unknown.
 * Threads of a warp may go different ways since 70, which a thread that waits alone in a loop relies on. */
static int gpu_arch(const char *name)
{
    static const int known[] = { 70, 72, 75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121 };
    if (strncmp(name, "sm_", 3) != 0)
        return 0;
    char *suffix;
    long arch = strtol(name + 3, &suffix, 10);
    bool good =
        !*suffix || (strcmp(suffix, "a") == 0 && arch >= 90) || (strcmp(suffix, "f") == 0 && arch >= 100);
    for (size_t i = 0; good && i < sizeof known / sizeof *known; i++)
        if (known[i] == arch)
            return known[i];
    return 0;
}

/* Multiprocessors, for cost models: of V100, T4, A100, A10, Orin, L40, H100, B200, … */
static int gpu_units(int arch)
{
    static const struct {
        int arch, units;
    } known[] = { { 70, 80 }, { 72, 8 },  { 75, 40 },  { 80, 108 },
                  { 86, 84 }, { 87, 16 }, { 89, 142 }, { 90, 132 } };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].arch == arch)
            return known[i].units;
    return 148;
}

static qn_status learn_gpu(qn_llvm_target *t, qn_diags *diags)
{
    probe_job j = { .target = t };
    char message[256] = "";
    const int arch = gpu_arch(t->cpu);
    bool fit = arch > 0 && qn_llvm_guarded(probe, &j, message, sizeof message) && j.text;
    free(j.text);
    t->data_layout = j.data_layout;
    t->vector_bytes = 16;
    if (!fit)
        return qn_error(diags, QUERN_ERROR_UNSUPPORTED, NULL,
                        "GPU '%s' is unknown or too old; wanted: sm_70 or newer (sm_80, sm_90, …)%s%s",
                        t->cpu, message[0] ? "; LLVM says: " : "", message);
    t->machine = (qn_machine){ .gpu = true,
                               .gpu_arch = arch,
                               .gpu_units = gpu_units(arch),
                               .vector_bytes = t->vector_bytes,
                               .vector_registers = 32,
                               .fma = true,
                               .masked = true,
                               .l1_bytes = 48 << 10,
                               .l2_bytes = 4 << 20 };
    return QUERN_OK;
}

/* What a list such as "+avx2,-fma" makes of a feature; the last word on it counts. */
static bool lists(const char *features, const char *name, bool on)
{
    const size_t n = strlen(name);
    for (const char *at = features; *at; at += *at == ',') {
        const size_t length = strcspn(at, ",");
        if (length == n + 1 && memcmp(at + 1, name, n) == 0)
            on = *at == '+';
        at += length;
    }
    return on;
}

/* Matrix units of other CPUs are known by name, not by a probe: an instruction that a CPU lacks is a fatal error of LLVM, after
 * which its memory is lost. */
static bool has_tiles(const qn_llvm_target *t)
{
    static const char *const names[] = { "sapphirerapids", "emeraldrapids", "graniterapids",
                                         "graniterapids-d", "diamondrapids" };
    if (strstr(t->features, "amx-bf16"))
        return lists(t->features, "amx-bf16", false) && lists(t->features, "amx-int8", false);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(t->cpu, names[i]) == 0)
            return true;
    return false;
}

static bool learn_probed(qn_llvm_target *t, char *message, size_t size)
{
    probe_job j = { .target = t };
    bool finished = qn_llvm_guarded(probe, &j, message, size);
    char *text = j.text;
    t->data_layout = j.data_layout;
    bool fit = finished && text;
    if (fit && t->isa == QN_ISA_X86) {
        /* With AVX-512 F alone the bytes would still be added in ymm registers. */
        const char *add = strstr(text, "vpaddb");
        t->avx512 = strstr(text, "vfmadd") && add && memchr(add, 'z', strcspn(add, "\n"));
        t->vnni = strstr(text, "vpdpwssd");
        t->bf16 = t->avx512 && strstr(text, "vcvtneps2bf16");
        t->fp16 = t->avx512 && strstr(text, "vaddph");
        t->bitalg = t->avx512 && strstr(text, "vpopcntb");
        bool wide = strstr(text, "ymm") || strstr(text, "zmm");
        fit = wide && strstr(text, "vfmadd") && strstr(text, "vcvtps2ph");
    } else if (fit) {
        t->dotprod = strstr(text, "\tsdot\t");
        t->bf16 = strstr(text, "\tbfcvt");
        /* Both are from Armv8.6. */
        t->i8mm = t->dotprod && (QN_LLVM_FINDS_USDOT ? strstr(text, "\tusdot\t") != NULL
                                                     : lists(t->features, "i8mm", t->bf16));
        fit = strstr(text, "fmla\tv") != NULL;
    }
    free(text);
    return fit;
}

static qn_status refuse_cpu(const qn_llvm_target *t, const char *cpu, const char *of, const char *message,
                            qn_diags *diags)
{
    return qn_error(diags, QUERN_ERROR_UNSUPPORTED, NULL,
                    "CPU '%s' of '%s' is unknown, or has no %s; wanted: native, %s%s%s", cpu, of,
                    t->isa == QN_ISA_X86 ? "AVX2, FMA and F16C" : "NEON",
                    t->isa == QN_ISA_X86
                        ? "x86-64-v3, x86-64-v4 or LLVM's name of a CPU from 2013 on (haswell, "
                          "znver4, sapphirerapids, …)"
                        : "generic or LLVM's name of a CPU (neoverse-n1, …)",
                    message[0] ? "; LLVM says: " : "", message);
}

/* What code for it may use. Of this machine's CPU not what the machine lacks. */
static uint32_t needs_of(const qn_llvm_target *t, bool is_host, bool tiles)
{
    if (t->isa != QN_ISA_X86)
        return (t->dotprod ? QN_NEEDS_DOTPROD : 0) | (t->i8mm ? QN_NEEDS_I8MM : 0) |
               (t->bf16 ? QN_NEEDS_ARM_BF16 : 0);
    const bool bits = !is_host || (qn_host_has("bmi") && qn_host_has("bmi2") && qn_host_has("lzcnt") &&
                                   qn_host_has("movbe") && qn_host_has("popcnt"));
    return QN_NEEDS_VECTORS | (bits ? QN_NEEDS_BITS : 0) | (t->avx512 ? QN_NEEDS_AVX512 : 0) |
           (t->vnni ? t->avx512 ? QN_NEEDS_AVX512_VNNI : QN_NEEDS_AVX_VNNI : 0) |
           (t->bf16 ? QN_NEEDS_BF16 : 0) | (t->fp16 ? QN_NEEDS_FP16 : 0) | (t->bitalg ? QN_NEEDS_BITALG : 0) |
           (t->avx512 && tiles ? QN_NEEDS_TILES : 0);
}

/* What lowering is told of a CPU with these registers and instructions. */
static void describe_cpu(qn_llvm_target *t, bool is_host, bool tiles)
{
    t->vector_bytes = t->isa != QN_ISA_X86 ? 16 : t->avx512 ? 64 : 32;
    /* Of a core of another machine: what the plainer ones with such vectors have. */
    const int64_t l2_bytes = t->avx512 ? 1 << 20 : 512 << 10;
    t->machine = (qn_machine){
        .lookup = t->avx512,
        .dot4 = t->vnni || t->dotprod,
        .dot4_signs = t->isa != QN_ISA_AARCH64 ? QN_SIGNS_MIXED
                      : t->i8mm                ? QN_SIGNS_ANY
                                               : QN_SIGNS_SAME,
        .dot2 = t->bf16,
        .mmla = t->i8mm && t->bf16,
        .tiles = t->avx512 && tiles,
        .follows_streams = is_host ? qn_host_is_zen5() : strcmp(t->cpu, "znver5") == 0,
        .vector_bytes = t->vector_bytes,
        .vector_registers = t->avx512 || t->isa == QN_ISA_AARCH64 ? 32 : 16,
        .fma = true,
        .by_lane = t->isa == QN_ISA_AARCH64,
        .masked = t->avx512,
        .needs = needs_of(t, is_host, tiles),
        .l1_bytes = is_host ? cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10) : 32 << 10,
        .l2_bytes = is_host ? cache_bytes(_SC_LEVEL2_CACHE_SIZE, l2_bytes) : l2_bytes,
        .l3_bytes = is_host ? l3_bytes() : 0,
    };
}

/* Another machine's CPU, or this one's by its name: as the code generator knows it. */
static qn_status learn(qn_llvm_target *t, bool plain, qn_diags *diags)
{
    char message[256] = "";
    if (t->isa == QN_ISA_NVPTX)
        return learn_gpu(t, diags);
    if (!learn_probed(t, message, sizeof message) && !(plain && t->data_layout))
        return refuse_cpu(t, t->cpu, t->triple, message, diags);
    describe_cpu(t, false, has_tiles(t));
    return QUERN_OK;
}

/* This machine's CPU, with what the user adds to it or takes from it: without LLVM. */
static qn_status learn_host(qn_llvm_target *t, const char *extra, qn_diags *diags)
{
#define HAS(name) lists(extra, name, qn_host_has(name))
    t->isa = QN_HOST_ISA;
    t->avx512 = HAS("avx512f") && HAS("avx512bw");
    t->vnni = t->avx512 ? HAS("avx512vnni") : HAS("avxvnni");
    t->dotprod = HAS("dotprod");
    t->i8mm = t->dotprod && HAS("i8mm");
    t->bf16 = t->isa == QN_ISA_AARCH64 ? HAS("bf16") : t->avx512 && HAS("avx512bf16");
    t->fp16 = t->avx512 && HAS("avx512fp16");
    t->bitalg = t->avx512 && HAS("avx512bitalg") && HAS("avx512vbmi") && HAS("avx512vbmi2") &&
                HAS("avx512vpopcntdq") && HAS("gfni");
    if (t->isa == QN_ISA_X86 && !(HAS("avx2") && HAS("fma") && HAS("f16c")))
        return refuse_cpu(t, "native", QN_HOST_ARCH, "", diags);
    describe_cpu(t, true, HAS("amx-bf16") && HAS("amx-int8"));
#undef HAS
    return QUERN_OK;
}

static bool is_x86(const char *triple)
{
    return strncmp(triple, "x86_64-", 7) == 0;
}

static bool is_aarch64(const char *triple)
{
    return strncmp(triple, "aarch64-", 8) == 0;
}

static bool is_nvptx(const char *triple)
{
    return strncmp(triple, "nvptx64-", 8) == 0;
}

/* The same instruction set as the host: the part of the triple up to the first '-'. */
static bool same_isa_as_host(const char *triple)
{
    const size_t n = strcspn(triple, "-");
    return n == strlen(QN_HOST_ARCH) && strncmp(triple, QN_HOST_ARCH, n) == 0;
}

bool qn_llvm_is_host_triple(const char *triple)
{
    return !triple || same_isa_as_host(triple);
}

static bool is_native(const qn_target *target)
{
    return !target->cpu || strcmp(target->cpu, "native") == 0;
}

static char *print(const char *format, ...) __attribute__((format(printf, 1, 2)));
static char *print(const char *format, ...)
{
    char *text;
    va_list arguments;
    va_start(arguments, format);
    const int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    QN_ASSERT(length >= 0, "out of memory");
    return text;
}

/* "-avx512fp16,-gfni,…": what LLVM knows and this machine lacks. Not the matrix unit: entries that use it ask Linux for it. */
static char *missing_here(void)
{
    char *all = LLVMGetHostCPUFeatures(), *out = strdup(all), *to = out;
    QN_ASSERT(out, "out of memory");
    for (const char *at = all; *at;) {
        const size_t length = strcspn(at, ",");
        if (*at == '-' && strncmp(at, "-amx", 4) != 0) {
            to += to != out;
            memcpy(to, at, length);
            to += length;
            *to = ',';
        }
        at += length + (at[length] == ',');
    }
    *to = '\0';
    LLVMDisposeMessage(all);
    return out;
}

/* Code for a CPU that is named, to run in this process: without what the machine lacks; what kernels are chosen by it has to have. */
static qn_status learn_here(qn_llvm_target *t, const char *extra, qn_diags *diags)
{
    qn_llvm_target named = *t;
    named.features = extra;
    named.data_layout = NULL;
    const qn_status status = learn(&named, false, diags);
    free((void *)named.data_layout);
    QN_TRY(status);
    char message[256] = "";
    const bool fit = learn_probed(t, message, sizeof message);
    const char *lack = !fit                         ? "AVX2, FMA or F16C"
                       : named.avx512 && !t->avx512 ? "AVX-512 (F, BW, DQ, VL)"
                       : named.vnni && !t->vnni     ? "VNNI"
                       : named.bf16 && !t->bf16     ? "AVX512_BF16"
                                                    : NULL;
    if (lack)
        return qn_error(diags, QUERN_ERROR_UNSUPPORTED, NULL,
                        "code for CPU '%s' cannot run in this process: this machine has no %s", t->cpu, lack);
    describe_cpu(t, false, has_tiles(&named));
    t->machine.features = print("%s without %s", t->text, t->features); /* lives as long as the process */
    return QUERN_OK;
}

/* What LLVM wants; `t` is that of the host when the target is. */
static qn_status resolve(const qn_target *target, qn_llvm_target *t, qn_diags *diags)
{
    QN_TRY(qn_llvm_open(diags));
    pthread_once(&initialized, initialize);
    char *triple = copy_and_dispose(target->triple ? LLVMNormalizeTargetTriple(target->triple)
                                                   : LLVMGetDefaultTargetTriple());
    bool same_isa = same_isa_as_host(triple), native = is_native(target);
    if (!same_isa)
        pthread_once(&all_initialized, initialize_all);
    t->triple = triple;
    char *message = NULL;
    if ((!is_x86(triple) && !is_aarch64(triple) && !is_nvptx(triple)) ||
        LLVMGetTargetFromTriple(triple, &t->llvm, &message)) {
        LLVMDisposeMessage(message);
        return qn_error(diags, QUERN_ERROR_UNSUPPORTED, NULL,
                        "target '%s' is not supported; wanted: x86_64-unknown-linux-gnu, "
                        "aarch64-unknown-linux-gnu or nvptx64",
                        triple);
    }
    t->isa = is_x86(triple) ? QN_ISA_X86 : is_nvptx(triple) ? QN_ISA_NVPTX : QN_ISA_AARCH64;
    if (target->jit && !same_isa)
        return qn_error(diags, QUERN_ERROR_UNSUPPORTED, NULL,
                        "code for '%s' cannot run in this process: write an object file", triple);
    if (native && !same_isa)
        return qn_error(diags, QUERN_ERROR_ARGUMENT, NULL,
                        "'native' is this machine's CPU: name a CPU of '%s' (such as %s)", triple,
                        t->isa == QN_ISA_X86 ? "x86-64-v3" : "generic, neoverse-n1");
    const bool here = target->jit && !native && t->isa == QN_ISA_X86;
    char *features = native ? copy_and_dispose(LLVMGetHostCPUFeatures()) : here ? missing_here() : strdup("");
    t->cpu = native ? copy_and_dispose(LLVMGetHostCPUName()) : strdup(target->cpu);
    const char *extra = target->features ? target->features : "";
    t->features = print("%s%s%s", features, *features && *extra ? "," : "", extra);
    free(features);
    t->text = print("%s %s %s", t->triple, t->cpu, here ? extra : t->features);
    if (here)
        return learn_here(t, extra, diags);
    if (!native) {
        QN_TRY(learn(t, target->plain, diags));
        t->machine.features = t->text;
        return QUERN_OK;
    }
    LLVMTargetMachineRef machine = new_machine(t, QN_LLVM_FAST_CODE);
    if (!machine)
        return qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "LLVM has no target machine for '%s'", triple);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(machine);
    t->data_layout = copy_and_dispose(LLVMCopyStringRepOfTargetData(layout));
    LLVMDisposeTargetData(layout);
    LLVMDisposeTargetMachine(machine);
    return QUERN_OK;
}

/* ---- the tables of what was asked for ---- */

typedef struct entry {
    char *key;              /* as it was asked for */
    qn_llvm_target *host;   /* this machine's CPU, without what LLVM wants; or NULL */
    qn_llvm_target *target; /* with it, or NULL */
    struct entry *next;
} entry;

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static entry *table;

static void free_target(qn_llvm_target *t)
{
    free((void *)t->triple);
    free((void *)t->cpu);
    free((void *)t->features);
    free((void *)t->data_layout);
    free((void *)t->text);
    free(t);
}

static char *make_key(const qn_target *target)
{
    return print("%s|%s|%s|%s", target->triple ? target->triple : "", target->cpu ? target->cpu : "native",
                 target->features ? target->features : "",
                 target->jit     ? "jit"
                 : target->plain ? "plain"
                                 : "");
}

/* The entry for a target, without targets where it is new. With the lock. */
static entry *entry_of(const qn_target *target)
{
    char *key = make_key(target);
    entry *found = table;
    while (found && strcmp(found->key, key) != 0)
        found = found->next;
    if (found) {
        free(key);
        return found;
    }
    found = malloc(sizeof *found);
    QN_ASSERT(found, "out of memory");
    *found = (entry){ .key = key, .next = table };
    table = found;
    return found;
}

static qn_llvm_target *new_target(const qn_llvm_target *like)
{
    qn_llvm_target *t = calloc(1, sizeof *t);
    QN_ASSERT(t, "out of memory");
    if (like)
        *t = *like;
    return t;
}

static qn_status find_host(entry *e, const qn_target *target, qn_diags *diags)
{
    const char *extra = target->features ? target->features : "";
    if (e->host)
        return QUERN_OK;
    qn_llvm_target *t = new_target(NULL);
    const qn_status status = learn_host(t, extra, diags);
    if (status) {
        free_target(t);
        return status;
    }
    t->machine.features = print(QN_HOST_ARCH " native %s %s", qn_host_text(), extra);
    e->host = t;
    return QUERN_OK;
}

static qn_status find_target(entry *e, const qn_target *target, qn_diags *diags)
{
    if (e->target)
        return QUERN_OK;
    if (is_native(target) && qn_llvm_is_host_triple(target->triple))
        QN_TRY(find_host(e, target, diags));
    qn_llvm_target *t = new_target(e->host);
    const qn_status status = resolve(target, t, diags);
    if (status)
        free_target(t);
    else
        e->target = t;
    return status;
}

qn_status qn_llvm_target_find(const qn_target *target, const qn_llvm_target **out, qn_diags *diags)
{
    pthread_mutex_lock(&table_lock);
    entry *e = entry_of(target);
    const qn_status status = find_target(e, target, diags);
    *out = e->target;
    pthread_mutex_unlock(&table_lock);
    return status;
}

qn_status qn_llvm_describe(const qn_target *target, qn_arena *arena, qn_machine *out_machine, qn_diags *diags)
{
    (void)arena; /* the texts live as long as the process */
    const bool of_host = is_native(target) && qn_llvm_is_host_triple(target->triple);
    pthread_mutex_lock(&table_lock);
    entry *e = entry_of(target);
    const qn_status status = of_host ? find_host(e, target, diags) : find_target(e, target, diags);
    if (!status)
        *out_machine = of_host ? e->host->machine : e->target->machine;
    pthread_mutex_unlock(&table_lock);
    return status;
}

qn_status qn_llvm_host_text(const char **out, qn_diags *diags)
{
    const qn_llvm_target *t;
    QN_TRY(qn_llvm_target_find(&(qn_target){ 0 }, &t, diags));
    *out = t->text;
    return QUERN_OK;
}

/* ---- target machines: kept by the thread, since making one costs a third of a millisecond ---- */

typedef struct cached_machines {
    const qn_llvm_target *targets[2]; /* by effort */
    LLVMTargetMachineRef machines[2];
} cached_machines;

static pthread_key_t machines_key;
static pthread_once_t machines_key_made = PTHREAD_ONCE_INIT;

static void dispose_machines(void *memory)
{
    cached_machines *cached = memory;
    for (int i = 0; i < 2; i++)
        if (cached->machines[i])
            LLVMDisposeTargetMachine(cached->machines[i]);
    free(cached);
}

static void make_machines_key(void)
{
    QN_ASSERT(pthread_key_create(&machines_key, dispose_machines) == 0, "no thread-specific data left");
}

LLVMTargetMachineRef qn_llvm_target_machine(const qn_llvm_target *target, qn_llvm_effort effort,
                                            qn_diags *diags)
{
    pthread_once(&machines_key_made, make_machines_key);
    cached_machines *cached = pthread_getspecific(machines_key);
    if (!cached) {
        cached = calloc(1, sizeof *cached);
        QN_ASSERT(cached && pthread_setspecific(machines_key, cached) == 0, "out of memory");
    }
    if (cached->targets[effort] != target) {
        if (cached->machines[effort])
            LLVMDisposeTargetMachine(cached->machines[effort]);
        cached->machines[effort] = new_machine(target, effort);
        cached->targets[effort] = cached->machines[effort] ? target : NULL;
    }
    if (!cached->machines[effort])
        qn_error(diags, QUERN_ERROR_INTERNAL, NULL, "LLVM has no target machine for '%s'", target->triple);
    return cached->machines[effort];
}

void qn_llvm_target_machines_abandon(void)
{
    cached_machines *cached = pthread_getspecific(machines_key);
    if (cached)
        *cached = (cached_machines){ 0 };
}
