/* A module as ptx_read.c makes it and ptx_run.c runs it. */
#ifndef QN_TESTS_FAKE_CUDA_PTX_MODULE_H
#define QN_TESTS_FAKE_CUDA_PTX_MODULE_H

#include "ptx.h"

enum { ERROR_BYTES = 512, MOST_OPERANDS = 5 };

/* Addresses of other spaces as generic ones: above what the driver gives out. */
#define SHARED_AT ((uint64_t)0xfd << 48)
#define LOCAL_AT ((uint64_t)0xfc << 48)
#define GLOBAL_AT ((uint64_t)0xfb << 48)
#define SPACE_OF(address) ((address) & ((uint64_t)0xff << 48))
#define OFFSET_OF(address) ((address) & (((uint64_t)1 << 48) - 1))

typedef enum op {
    ABS,
    ADD,
    AND,
    BAR,
    BFE,
    BRA,
    CLZ,
    COPYSIGN,
    CVT,
    CVTA,
    DIV,
    FMA,
    LD,
    LDMATRIX,
    MAD,
    MAX,
    MIN,
    MMA,
    MOV,
    MUL,
    NEG,
    NOT,
    OR,
    POPC,
    PRMT,
    RCP,
    REM,
    RET,
    SELP,
    SET,
    SETP,
    SHF,
    SHFL,
    SHL,
    SHR,
    SQRT,
    ST,
    SUB,
    TESTP,
    XOR,
    N_OPS
} op;

typedef struct type {
    char kind; /* b, s, u, f, B (bf16), p */
    int bits;
} type;

typedef enum space { GENERIC, GLOBAL, SHARED, LOCAL, PARAM } space;
typedef enum rounding { TO_NEAREST, TO_ZERO, DOWN, UP } rounding;

typedef enum operand_kind { REGISTER, IMMEDIATE, MEMORY, VECTOR, LABEL, SPECIAL, SINK } operand_kind;
enum { NOBODY = -1, NUMBER = -2 };

typedef struct operand {
    operand_kind kind;
    int reg;         /* of REGISTER and MEMORY; -1: MEMORY without one. SPECIAL: which. LABEL: where */
    uint64_t value;  /* IMMEDIATE; added to the register */
    int n, parts[4]; /* VECTOR, of registers; NOBODY: `_`; NUMBER: values[i] */
    uint64_t values[4];
} operand;

typedef struct inst {
    op op;
    type type, from; /* the second type of cvt and set; otherwise the same */
    space space;
    rounding rounding;
    bool turned; /* ldmatrix; shfl: by the exclusive or of lanes */
    bool to_integer, wide, high, nan, sat, left, clamp, negated, to_space;
    char compare[8], with[8]; /* of setp; number, finite, … of testp */
    int n_vector;
    int guard; /* register; -1: none */
    int n, line;
    operand x[MOST_OPERANDS];
} inst;

typedef struct symbol {
    char name[160];
    space space;
    uint64_t at; /* a generic address, but in PARAM */
    struct symbol *next;
} symbol;

typedef struct registers { /* "%r<8>": %r0 … %r7; or one of just that name */
    char name[160];
    bool numbered;
    int first, n;
} registers;

struct ptx_kernel {
    char name[160];
    ptx_module *module;
    int threads, n_params;
    size_t shared_bytes, local_bytes;
    int n_regs, n_kinds, n, capacity;
    registers *regs;
    inst *code;
    symbol *symbols;
    ptx_kernel *next;
};

struct ptx_module {
    ptx_kernel *kernels;
    symbol *symbols;
    size_t shared_bytes, global_bytes;
    unsigned char *globals;
};

#endif
