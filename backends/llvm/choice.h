/* Objects compare themselves with the machine that loads them: those with code for one CPU, and those that choose between
 * several. */
#ifndef QN_BACKENDS_LLVM_CHOICE_H
#define QN_BACKENDS_LLVM_CHOICE_H

#include "backends/backend.h"

/* What code may use, and a machine is asked for: bits of qn_machine.needs. */
enum {
    QN_NEEDS_VECTORS = 1 << 0, /* AVX2, FMA, F16C */
    QN_NEEDS_BITS = 1 << 1,    /* BMI, BMI2, LZCNT, MOVBE, POPCNT: what else x86-64-v3 has */
    QN_NEEDS_AVX512 = 1 << 2,  /* that of x86-64-v4 */
    QN_NEEDS_AVX_VNNI = 1 << 3,
    QN_NEEDS_AVX512_VNNI = 1 << 4,
    QN_NEEDS_BF16 = 1 << 5,
    QN_NEEDS_FP16 = 1 << 6,
    QN_NEEDS_BITALG = 1 << 7,  /* and what comes with it */
    QN_NEEDS_TILES = 1 << 8,   /* AMX, and Linux' permission */
    QN_NEEDS_DOTPROD = 1 << 9, /* of AArch64 */
    QN_NEEDS_I8MM = 1 << 10,
    QN_NEEDS_ARM_BF16 = 1 << 11
};

/* CPUs of lists, for a triple (NULL: this machine's): x86-64-v3 … sapphirerapids, or generic … neoverse-v1, each with all that
 * those before it have. A number for `name`, larger for more, and in *out (its CPU and features) what code for it may use; -1:
 * there is no such. */
int qn_llvm_level(const char *triple, const char *name, qn_target *out);
const char *qn_llvm_level_names(const char *triple); /* "x86-64-v3, …" */

/* The function `<prefix>_query` of an object with tables for n CPUs, each of which needs more than those before it: queries[i]
 * is the name of the function that gives those of CPU i. It gives the last that this machine can run, or where it can run none
 * tables like theirs whose entries return QUERN_ERROR_DEVICE and which say what the machine lacks. `entries` are those of the
 * first CPU, whose name is `cpu`. */
typedef struct qn_choice {
    const qn_entries *entries;
    const char *triple, *cpu;
    int n;
    const uint32_t *needs;
    const char *const *queries;
} qn_choice;

qn_status qn_llvm_emit_choice(const qn_choice *choice, qn_arena *arena, qn_code *out_code, qn_diags *diags);

#endif
