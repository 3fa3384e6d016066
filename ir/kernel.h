/* Kernel IR: one kernel is a function of a task number. It is structured SSA: a block is a list of instructions; `for`
 * and `if` hold blocks and give results. Scalars and vectors are values of one kind (dtype x lanes), memory is buffers
 * indexed by element. CPU, PTX and the interpreter share everything here; a backend only expands leaves.
 *
 *   kernel @bias_relu(%x: f32 in, %b: f32 in, %y: f32 out; %rows) {
 *     task %t
 *     %lo = mul %t, 64
 *     %hi = min (add %lo, 64), %rows
 *     for %i = %lo to %hi step 1 {
 *       %base = mul %i, 4096
 *       for %j = 0 to 4096 step 1 vector {
 *         …
 *
 * Tasks of one call may run in any order, at once, on any threads, and never wait for each other. They write disjoint
 * elements. Kernels know no symbols: what depends on them comes in as i64 parameters.
 *
 * A machine kernel has the C signature  void kernel(int64_t *args, int64_t task)  with
 *   args[0]                      in -1; out: node number of a failed check (see QN_K_CHECK)
 *   args[1 … n_buffers]          buffer addresses
 *   args[1 + n_buffers …]        parameters
 * On a GPU what follows args[0] comes as parameters of the kernel, which are constants to its code, unless there are more than
 * QN_GPU_ARGUMENTS of it.
 *
 * What a backend must implement: the instructions that are left after passes/expand_math.c and passes/legalize.c, with the
 * meaning of ir/ops.def (nothing traps: zero divisors, MIN / -1, wide shifts, conversions out of range have their value
 * there; index_math instructions need no such care).
 *   memory     load, store (masked, gathered, scattered) of every dtype; prefetch; check; for (unroll too); if
 *   f32, f64   add sub mul div max min fma (where the machine has it) neg abs sign floor ceil round trunc sqrt is_nan is_inf,
 *              compare, select, scale2; never exp … atan2, pow, rem, rsqrt, logistic, gelu, silu, relu
 *   f16, bf16  load, store, select, lane movement, bitcast, convert; no arithmetic
 *   bytes      dot4
 *   f32        dot2, of bf16
 *   f32        lookup
 *   bytes      pick, join
 *   integers   add sub mul div rem pow max min neg abs sign not and or xor shift_left shift_right relu, compare, select
 *   bool       and or xor not max min, compare, select
 *   all        convert and bitcast between them; const, splat, ramp, extract, shuffle, reduce
 */
#ifndef QN_IR_KERNEL_H
#define QN_IR_KERNEL_H

#include "ir/graph.h"

typedef struct qn_ktype {
    qn_dtype dtype; /* indices are i64; conditions are bool */
    int lanes;      /* 1: a scalar; otherwise a power of two up to 64 */
} qn_ktype;

typedef enum qn_kop {
    /* values */
    QN_K_CONST,  /* imm, the same in each lane */
    QN_K_PARAM,  /* number `index`; i64 scalar */
    QN_K_TASK,   /* the task number; i64 scalar, 0 … QN_TASK_MAX */
    QN_K_THREAD, /* number of the thread in its block; i64 scalar. Only in kernels by_thread */
    QN_K_UNARY, /* fn(a): fn is an element-wise op of ir/ops.def with its meaning there (f16, bf16: see passes/legalize) */
    QN_K_BINARY, /* fn(a, b) */
    QN_K_FMA,    /* a * b + c, rounded once; floats (f16, bf16: fma in f32, then rounded) */
    QN_K_DOT4, /* c + the dot product of four bytes: lane i is c's plus a[4 i] b[4 i] + … + a[4 i + 3] b[4 i + 3]. a and b of
                * four times the lanes of c, an i32, which wraps and never saturates; u8 or i8, but not a i8 and b u8 */
    QN_K_DOT2, /* c + the dot product of two bf16: lane i is c's plus a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]. a and b have twice
                * the lanes of c, an f32. Products are exact; the two additions come in no promised order, and the first may be
                * rounded or not, each to nearest or to odd. Numbers below the smallest normal one, given, between or found, may count as 0 */
    QN_K_MMLA, /* c + pairs of rows times pairs of rows: four lanes of c are products of a's rows 0, 0, 1, 1 with b's 0, 1, 0, 1. A row is
                * eight bytes or four bf16; types and sums are those of dot4 and dot2. Not on every CPU */
    QN_K_COMPARE, /* direction; a, b -> bool */
    QN_K_SELECT,  /* a (bool) ? b : c */
    QN_K_CONVERT, /* a to type, as the convert op; to bf16 and marked fast: numbers below the smallest normal one may become 0 */
    QN_K_BITCAST, /* same bits, same lanes */
    QN_K_SCALE2, /* a * 2^b; a float, b of a's type holding an integer; clamps large |b|. Correctly rounded, into the
                  * denormals too, for 2^-60 <= |a| <= 2^60, 0, infinity, NaN */
    QN_K_LOOKUP, /* table[a mod QN_LOOKUP]: f32 for i32 */
    QN_K_PICK,   /* b[a mod 16]: u8 for u8; b has 16 lanes */
    QN_K_JOIN, /* bytes of a, u8, side by side as numbers of 16 to 64 bits, the lowest first: as many fewer lanes */
    /* lanes */
    QN_K_SPLAT,   /* scalar to lanes */
    QN_K_RAMP,    /* scalar integer a: a, a+1, a+2, … */
    QN_K_EXTRACT, /* lane `index` of a */
    QN_K_SHUFFLE, /* lane i = lane mask[i] of a followed by b (same type); result lanes = n_mask */
    QN_K_REDUCE,  /* lanes of a combined by `kind` to a scalar, pairwise: lane i with i + n/2, then n/4, … */
    /* memory; index counts elements of the buffer, i64 */
    QN_K_LOAD, /* operands: index [, mask [, other]]. lanes > 1 with a scalar index: contiguous; with a vector index: gather.
                   * mask false: nothing is read, the lane is `other` (0 when absent) */
    QN_K_STORE,      /* operands: index, value [, mask]. vector index: scatter */
    QN_K_PREFETCH,   /* operand: index; `index`: 0 = all levels … 3 = none; never faults */
    QN_K_ATOMIC_ADD, /* operands: index, value; GPU only */
    /* control */
    QN_K_FOR, /* operands: low, high, step (> 0), initial values of the carried; block arguments: counter, carried. Results: carried */
    QN_K_IF,  /* operand: scalar bool; two blocks; results: what the blocks yield */
    QN_K_CHECK,   /* operand: bool; where false, args[0] = `index` (a node number) and the task returns */
    QN_K_BARRIER, /* GPU: all threads of the block */
    QN_K_WARP_SHUFFLE, /* a of the thread whose number in the warp differs by exclusive or with `index`, below 32; a scalar of 32 bits. All
                        * threads of a warp come to it together, in kernels by_thread */
    /* matrix unit of a GPU: all threads of a warp come to it together, in kernels by_thread. Threads hold pieces of 8 x 8 tiles:
     * thread t has elements 2 (t % 4) and the next of row t / 4 */
    QN_K_WARP_LOAD, /* operand: index, a multiple of 8 elements of 16 bits of a shared buffer; 8 lanes. Of four tiles: threads 8 i
                     * … 8 i + 7 say where the rows of tile i begin; lanes 2 i and 2 i + 1 are the thread's piece of it. `index` 1: of
                     * the tile turned, whose columns these rows are */
    QN_K_WARP_MMA, /* c + a * b: of 16 x 8, f32, 4 lanes: rows 0 … 7, 8 … 15. a of 16 x 16, 8 lanes: tiles of rows 0 … 7 and 8 … 15 of
                    * k 0 … 7, then of k 8 … 15. b, 4 lanes: tiles of k 0 … 7 and 8 … 15, each turned: row t / 4 of it is a column. a and b
                    * are both bf16 or both f16. Products are exact; sums come in no promised order */
    /* matrix unit: eight tiles of up to 16 rows of 64 bytes, a state of the task beside its values (CPU with AMX) */
    QN_K_TILE_SHAPE, /* operands: rows of tiles 0 … 7 (i64; 0: the tile isn't used). Before any use; tiles are zero after it */
    QN_K_TILE_ZERO,  /* tile */
    QN_K_TILE_LOAD,  /* tile; operands: index, elements from one row to the next. 64 bytes a row */
    QN_K_TILE_STORE, /* likewise */
    QN_K_TILE_MMA /* sums, x, y; dtypes of x and y. sums[i][j] += x[i][k] * y[k][j] over all k: sums are f32 for bf16 and i32
                   * for bytes; a row of x is its k in order; y holds `group` values of k side by side, 4 bytes of them:
                   * row k / group, element j * group + k % group. x has as many groups as y has rows. In no promised order;
                   * bf16 below the smallest normal number count as 0 */
} qn_kop;

enum { QN_LOOKUP = 32 }; /* numbers in the table of a lookup: two registers of AVX-512 */

typedef enum qn_ktag {
    QN_TAG_SERIAL,
    QN_TAG_VECTOR, /* iterations are independent, or carried values combine by carried_kinds: to be vectorized (CPU)
                        * or spread over the threads of a block (GPU) */
    QN_TAG_UNROLL, /* to be unrolled completely; constant bounds */
    QN_TAG_OVERLAP, /* iterations are independent and short: loops inside may run together with those of other iterations */
    QN_TAG_GPU_THREAD /* counter is spread over the threads of the block */
} qn_ktag;

typedef enum qn_space { QN_SPACE_ARGUMENT, QN_SPACE_LOCAL, QN_SPACE_SHARED } qn_space;

/* Local buffers are the task's own (the stack on a CPU): constant size, uninitialised, QN_LOCAL_LIMIT bytes a kernel in all. */
#define QN_LOCAL_LIMIT (256 * 1024)
#define QN_TASK_MAX ((int64_t)1 << 40)
#define QN_GPU_ARGUMENTS 500 /* a kernel's parameters are up to 4352 bytes */

typedef struct qn_kbuffer {
    const char *name;
    qn_dtype dtype;
    qn_space space;
    int index;          /* ARGUMENT: position in args */
    bool written, read; /* ARGUMENT. Arguments do not overlap, unless `inplace` names one */
    int inplace; /* ARGUMENT, written: argument that may be the same memory, element for element; or -1 */
    int64_t elements; /* LOCAL, SHARED */
    int align;        /* of its first element in bytes, known at compile time */
} qn_kbuffer;

typedef struct qn_kblock qn_kblock;
typedef struct qn_kinst qn_kinst;

/* A value is the instruction that makes it; `for` and `if` results and block arguments are QN_KVALUE_*. */
typedef struct qn_kvalue {
    qn_ktype type;
    qn_kinst *inst;   /* defining instruction; NULL for a block argument */
    qn_kblock *block; /* block argument: whose */
    int index;        /* result or argument number */
    int64_t min, max; /* i64 scalars: proven inclusive bounds, INT64_MIN/MAX when unknown */
    int64_t multiple; /* i64 scalars: proven divisor, >= 1; 0: the value is 0 */
    int serial; /* order of creation in its kernel: operands come before users, so terms of sums are sorted by it */
    int id;     /* scratch; number when printed */
    void *user; /* scratch of the running pass or backend */
} qn_kvalue;

struct qn_kinst {
    qn_kop op;
    int n_operands, n_results, n_blocks;
    qn_kvalue **operands;
    qn_kvalue *results; /* contiguous */
    qn_kblock *blocks[2];
    qn_op fn;               /* UNARY, BINARY */
    qn_direction direction; /* COMPARE */
    qn_kind kind;           /* REDUCE */
    qn_scalar imm;          /* CONST */
    int64_t index;          /* PARAM, EXTRACT, PREFETCH, CHECK */
    qn_kbuffer *buffer;     /* memory */
    bool nontemporal;       /* STORE: bypass the caches */
    bool in_order; /* LOAD of a vector: not before another such; cores follow streams that are read so */
    bool fast;     /* float arithmetic that may be reassociated, approximated (math mode fast) */
    bool
        nonpositive; /* UNARY exp: of what is 0 or less, or NaN, as a number without its row's maximum; "exp.nonpositive" */
    bool
        index_math; /* BINARY add, sub, mul, div, rem on i64 made by qn_kb_i*: the result does not overflow; dividends
                      * are >= 0 and divisors > 0 (so no guards, and nsw is right). Printed as iadd, isub, imul, idiv, imod */
    int n_mask;
    const int *mask;       /* SHUFFLE; TILE_*: tile numbers */
    const float *table;    /* LOOKUP: QN_LOOKUP numbers */
    qn_dtype tile_type[2]; /* TILE_MMA */
    qn_ktag tag;           /* FOR */
    int lanes;             /* FOR vector: how many (0: the target's choice) */
    const qn_kind
        *carried_kinds; /* FOR vector: how each carried value combines (QN_SET: not combinable, forbids it) */
    qn_kinst *prev, *next;
    qn_kblock *parent;
};

struct qn_kblock {
    qn_kinst *first, *last;
    int n_arguments, n_yields;
    qn_kvalue *arguments;
    qn_kvalue **yields;
    qn_kinst *owner; /* NULL: the kernel's body */
};

typedef struct qn_kernel {
    qn_arena *arena;
    const char *name;
    int n_buffers, n_params; /* n_buffers: arguments; locals come after them in `buffers` */
    int n_all_buffers;
    qn_kbuffer **buffers;
    const char **param_names;
    int64_t *param_min, *param_max; /* what the program promises */
    int64_t *param_multiple;        /* param is a multiple of it (>= 1) */
    qn_kblock *body;
    int n_serials;     /* values made so far */
    void *index_table; /* index arithmetic made so far: ir/kernel_index.c */
    int gpu_threads;   /* threads a block when it runs on a GPU; 0: not mapped to one */
    /* It says what each of the block's threads does, not what the block does: every thread runs the body with values of its
     * own, and all come to the same barriers. What one writes between two of them no other touches there. No checks (others
     * would wait for who ends), no local buffers. Printed "gpu_threads 256 each". */
    bool by_thread;
    double flops, bytes; /* of one call at its largest constant size, for `bench`; 0 when unknown */
} qn_kernel;

qn_kernel *qn_kernel_new(qn_arena *arena, const char *name);
qn_kbuffer *qn_kernel_add_buffer(qn_kernel *k, const char *name, qn_dtype dtype, bool read, bool written,
                                 int align);
qn_kbuffer *qn_kernel_add_local(qn_kernel *k, const char *name, qn_dtype dtype, int64_t elements);
qn_kbuffer *qn_kernel_add_shared(qn_kernel *k, const char *name, qn_dtype dtype, int64_t elements);
/* Names are made printable and unique; the value is at the front of the body, so it dominates everything. */
qn_kvalue *qn_kernel_add_param(qn_kernel *k, const char *name, int64_t min, int64_t max, int64_t multiple);
qn_kvalue *qn_kernel_param(qn_kernel *k, int number); /* the value of a parameter added before */

/* ---- building: appends at the cursor; folds constants and simplifies index arithmetic as it goes ---- */

typedef struct qn_kbuilder {
    qn_kernel *kernel;
    qn_kblock *block; /* cursor: end of this block */
    bool fast;        /* set on what is built */
} qn_kbuilder;

qn_kbuilder qn_kb_new(qn_kernel *kernel); /* at the end of the body */

qn_kvalue *qn_kb_const(qn_kbuilder *b, qn_ktype type, qn_scalar imm);
qn_kvalue *qn_kb_index(qn_kbuilder *b, int64_t value); /* i64 scalar */
qn_kvalue *qn_kb_float(qn_kbuilder *b, qn_ktype type, double value);
qn_kvalue *qn_kb_task(qn_kbuilder *b);
qn_kvalue *qn_kb_thread(qn_kbuilder *b); /* gpu_threads is set before */
qn_kvalue *qn_kb_unary(qn_kbuilder *b, qn_op fn, qn_kvalue *a);
qn_kvalue *qn_kb_exp_nonpositive(qn_kbuilder *b, qn_kvalue *a); /* for a <= 0 and NaN only */
qn_kvalue *qn_kb_binary(qn_kbuilder *b, qn_op fn, qn_kvalue *a, qn_kvalue *c);
qn_kvalue *qn_kb_fma(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z);
/* Do the bytes that dot4 multiplies have these types? */
bool qn_k_dot4_takes(qn_ktype x, qn_ktype y, int lanes);
/* The same for all three. */
bool qn_k_mmla_takes(qn_ktype x, qn_ktype y, qn_ktype z);
qn_kvalue *qn_kb_mmla(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z);
qn_kvalue *qn_kb_dot4(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z);
qn_kvalue *qn_kb_dot2(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *z);
qn_kvalue *qn_kb_compare(qn_kbuilder *b, qn_direction d, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kb_select(qn_kbuilder *b, qn_kvalue *condition, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kb_convert(qn_kbuilder *b, qn_dtype to, qn_kvalue *x);
qn_kvalue *qn_kb_bitcast(qn_kbuilder *b, qn_dtype to, qn_kvalue *x);
qn_kvalue *qn_kb_scale2(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *n);
qn_kvalue *qn_kb_lookup(qn_kbuilder *b, const float *table, qn_kvalue *index);
qn_kvalue *qn_kb_pick(qn_kbuilder *b, qn_kvalue *index, qn_kvalue *table);
/* Can such bytes be joined to such numbers? */
bool qn_k_join_takes(qn_ktype bytes, qn_ktype numbers);
qn_kvalue *qn_kb_join(qn_kbuilder *b, qn_dtype to, qn_kvalue *bytes);
qn_kvalue *qn_kb_splat(qn_kbuilder *b, qn_kvalue *x, int lanes);
qn_kvalue *qn_kb_ramp(qn_kbuilder *b, qn_kvalue *x, int lanes);
qn_kvalue *qn_kb_extract(qn_kbuilder *b, qn_kvalue *x, int lane);
qn_kvalue *qn_kb_shuffle(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, int n_mask, const int *mask);
qn_kvalue *qn_kb_reduce(qn_kbuilder *b, qn_kind kind, qn_kvalue *x);
qn_kvalue *qn_kb_load(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, int lanes);
qn_kvalue *qn_kb_load_in_order(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, int lanes);
qn_kvalue *qn_kb_load_masked(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, int lanes, qn_kvalue *mask,
                             qn_kvalue *other);
qn_kinst *qn_kb_store(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, qn_kvalue *value,
                      qn_kvalue *mask); /* mask may be NULL */
void qn_kb_prefetch(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, int locality);
void qn_kb_check(qn_kbuilder *b, qn_kvalue *condition, int node);
void qn_kb_barrier(qn_kbuilder *b);
qn_kvalue *qn_kb_warp_shuffle(qn_kbuilder *b, qn_kvalue *x, int with);
qn_kvalue *qn_kb_warp_load(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *index, bool turned);
qn_kvalue *qn_kb_warp_mma(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *sums);
/* ---- kernel_tile.c ---- */
enum { QN_TILES = 8, QN_TILE_ROWS = 16, QN_TILE_BYTES = 64 };
void qn_kb_tile_shape(qn_kbuilder *b, qn_kvalue *const *rows); /* of QN_TILES tiles */
void qn_kb_tile_zero(qn_kbuilder *b, int tile);
void qn_kb_tile_load(qn_kbuilder *b, int tile, qn_kbuffer *buffer, qn_kvalue *index, qn_kvalue *stride);
void qn_kb_tile_store(qn_kbuilder *b, int tile, qn_kbuffer *buffer, qn_kvalue *index, qn_kvalue *stride);
void qn_kb_tile_mma(qn_kbuilder *b, int sums, int x, int y, qn_dtype x_type, qn_dtype y_type);
bool qn_kernel_uses_tiles(const qn_kernel *kernel);

/* Index arithmetic on i64 scalars, simplified with the bounds of the operands: x*1, (i*n + j)/n = i for 0 <= j < n,
 * (i*n + j)%n = j, sums in a canonical order (so that common parts are common). Division rounds to minus infinity;
 * a divisor below 1 (an empty extent) gives some value and never traps. Contract: results do not overflow where they
 * are used (qn_kb_binary is the wrapping arithmetic for data). Bounds of data that was checked come in by imin/imax. */
qn_kvalue *qn_kb_iadd(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kb_isub(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kb_imul(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kb_idiv(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kb_imod(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kb_imin(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y);
qn_kvalue *qn_kb_imax(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y);
/* Does x <= y (x < y) hold whatever the counters, parameters and loaded values are? false: not proven. */
bool qn_k_proven_le(const qn_kvalue *x, const qn_kvalue *y);
bool qn_k_proven_lt(const qn_kvalue *x, const qn_kvalue *y);
/* Is x a multiple of `by` (> 0), whatever they are? */
bool qn_k_proven_multiple(const qn_kvalue *x, int64_t by);

/* `for`: begin moves the cursor into the body; inst->blocks[0]->arguments[0] is its counter, [1 + i] carried value i.
 * end takes what the next iteration (or the result) gets and moves the cursor behind; results are inst->results. */
qn_kinst *qn_kb_for(qn_kbuilder *b, qn_kvalue *low, qn_kvalue *high, qn_kvalue *step, qn_ktag tag,
                    int n_carried, qn_kvalue *const *initial, const qn_kind *carried_kinds);
void qn_kb_end_for(qn_kbuilder *b, qn_kinst *loop, qn_kvalue *const *yields);

/* The same, where `values` are what is carried: between begin and end those of the running iteration, then the results. */
qn_kinst *qn_kb_carry(qn_kbuilder *b, qn_kvalue *low, qn_kvalue *high, qn_kvalue *step, qn_ktag tag, int n,
                      qn_kvalue **values, const qn_kind *kinds);
void qn_kb_end_carry(qn_kbuilder *b, qn_kinst *loop, qn_kvalue **values);

static inline qn_kvalue *qn_loop_counter(const qn_kinst *loop)
{
    return &loop->blocks[0]->arguments[0];
}

/* `if`: begin moves the cursor into the first block, else into the second, end behind it. */
qn_kinst *qn_kb_if(qn_kbuilder *b, qn_kvalue *condition);
void qn_kb_else(qn_kbuilder *b, qn_kinst *branch, int n_yields, qn_kvalue *const *yields);
void qn_kb_end_if(qn_kbuilder *b, qn_kinst *branch, int n_yields, qn_kvalue *const *yields);

/* ---- text, checks, copies ---- */

const char *qn_kernel_print(const qn_kernel *kernel, qn_arena *arena);
/* Text with names stripped: equal for kernels that do the same; the cache's and the deduplication's key. */
const char *qn_kernel_canonical(const qn_kernel *kernel, qn_arena *arena);
/* NULL with a diagnostic on a mistake. */
qn_kernel *qn_kernel_parse(const char *text, const char *file, qn_arena *arena, qn_diags *diags);
/* Reads a kernel that other text follows, and moves `place` behind it. The text ends with a NUL. */
typedef struct qn_text_place {
    const char *at, *line_start;
    int line; /* from 1 */
} qn_text_place;
qn_kernel *qn_kernel_parse_at(qn_text_place *place, const char *file, qn_arena *arena, qn_diags *diags);
qn_status qn_kernel_verify(const qn_kernel *kernel, qn_diags *diags);
qn_kernel *qn_kernel_clone(const qn_kernel *kernel, qn_arena *arena);
/* Folds again, drops loops that never run, unwraps those that run once, removes instructions nobody reads, merges
 * equal pure ones within a block and its parents (CSE), and moves what does not change in a loop in front of it.
 * Loads of buffers that are only read count as pure; one is moved out of a loop only when the loop surely runs and
 * nothing before the load guards it. Values held from before are invalid afterwards: the body is made anew. */
void qn_kernel_simplify(qn_kernel *kernel);

#endif
