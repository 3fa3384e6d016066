/* Lowering: groups become kernels and steps of a program.
 *
 *   lower.c            one function: buffers for its values, its groups one after the other
 *   lower_check.c      extents that fit together only for some values of the symbols
 *   lower_writer.c     a kernel being written: arguments, parameters, loops, index expressions
 *   lower_value.c      the heart: code for "element of a value at an index", for every op that can be said so
 *   lower_sums.c       likewise of ops that sum
 *   lower_loop.c       LOOP groups, and whatever else is one value at each index of its result
 *   lower_parts.c      LOOP groups that are different things in parts of an axis
 *   lower_transpose.c  LOOP groups that read across the lines they write along
 *   lower_zip.c        LOOP groups of pairs, one of each from lines that lie apart
 *   lower_rows*.c      ROWS groups
 *   lower_opaque*.c    ops with kernels of their own
 *   lower_control.c    if, while, scan, call: steps
 *   lower_text.c       ops on text: steps
 *   lower_collective.c collectives: steps; lower_beside.c moves them beside kernels
 *   lower_finish.c     what kernels go through when all are written
 */
#ifndef QN_PASSES_LOWER_H
#define QN_PASSES_LOWER_H

#include "passes/bounds.h"
#include "passes/claim.h"
#include "passes/index.h"
#include "passes/pass.h"

/* Work of one task at most, in elements that it computes; tasks depend on shapes only, never on the number of threads. */
#define QN_GRAIN 32768
/* Likewise where a task is a block of GPU threads: some elements a thread, so that there are blocks for all of the GPU. */
#define QN_GPU_GRAIN 1024
#define QN_GRAIN_OF(options) ((options)->machine && (options)->machine->gpu ? QN_GPU_GRAIN : QN_GRAIN)

/* Where the values of one graph are; a region has its own. */
typedef struct qn_scope {
    qn_graph *graph;
    int *buffers;      /* by value id: program buffer, or -1: none yet */
    qn_bounds *bounds; /* by value id: what is known of its numbers */
} qn_scope;

typedef struct qn_lower_pair {
    qn_dim a, b;
} qn_lower_pair;

struct qn_lowering {
    const qn_pass_options *options;
    qn_module *module;
    qn_arena *arena; /* the program's */
    qn_program *program;
    qn_scope *scope;
    qn_steps *steps; /* where steps go */
    qn_diags *diags;
    int node_capacity;
    qn_vec(qn_dim) limits;        /* of the symbols that steps bind, in the module's terms */
    qn_vec(int) bound;            /* symbols of the program that steps have bound so far */
    qn_vec(qn_lower_pair) checks; /* dimensions that are equal when the steps to come run, of the program */
    int loop;                     /* id of the innermost loop step around `steps`, or -1 */
    const qn_graph *function;
    const int *aliased;         /* by output of the function: buffer of the state that it replaces, or -1 */
    qn_vec(qn_arena *) written; /* memory of each of the program's kernels until it is finished */
};

/* ---- lower.c ---- */

/* A dimension of the module or of an index space as one of the program, which has a table of its own. */
qn_dim qn_lower_dim(const qn_lowering *l, qn_dim d);

/* The program buffer of a value; what is no code yet (a constant, a reshape) gets one. */
int qn_lower_buffer(qn_lowering *l, qn_value *value);
/* Is the value an input or an output of the entry, in the caller's memory? */
bool qn_lower_is_io(const qn_lowering *l, qn_value *value);
/* A new one in the workspace; for kernel-to-kernel scratch too. `elements` is a dim of the program. */
int qn_lower_scratch(qn_lowering *l, const char *name, qn_dtype dtype, qn_dim elements);
void qn_lower_copy(qn_lowering *l, int from, int to); /* nothing when they are the same */
/* The state that is replaced by what is in the buffer, or -1. */
int qn_lower_replaced(const qn_lowering *l, int buffer);
/* The number of a copy of the kernel, or of an equal one that is there. */
int qn_lower_kernel(qn_lowering *l, const qn_kernel *kernel);
/* Number of a node in program.node_names, for checks. */
int qn_lower_node_number(qn_lowering *l, const qn_node *node);
/* Number of an entry of its own there, with what is wanted of a node. */
int qn_lower_node_text(qn_lowering *l, const char *text);
const char *qn_lower_node_name(const qn_lowering *l, const qn_node *node); /* with its operator */

/* lower_check.c: steps that check what can be checked by now of the extents in a graph. */
void qn_lower_checks(qn_lowering *l, const qn_graph *graph);
/* Are there extents of the node that fit for some values of the symbols only? */
bool qn_lower_would_check(const qn_node *node);

/* All steps of a graph whose inputs have buffers; its outputs are in out_buffers afterwards: where wishes[i] >= 0, in that
 * buffer. */
qn_status qn_lower_graph(qn_lowering *l, qn_graph *graph, const int *input_buffers, const int *wishes,
                         int *out_buffers);

/* ---- lower_writer.c ---- */

typedef struct qn_writer qn_writer;
/* Code for the element of a bound value at an index. */
typedef qn_kvalue *(*qn_fetch_fn)(qn_writer *w, void *user, const qn_value *value, const qn_dim *index);

typedef struct qn_binding {
    const qn_value *value;
    qn_kbuffer *buffer; /* it is loaded from here; or NULL */
    qn_fetch_fn fetch;
    void *user;
} qn_binding;

typedef struct qn_argument { /* of the kernel, in its order */
    int buffer;              /* of the program */
    qn_kbuffer *kbuffer;
} qn_argument;

typedef struct qn_access {
    const qn_kbuffer *buffer; /* NULL: an index expression that is used as a value */
    qn_dim linear;
    bool store;
    int section, part; /* writer.section and .part at that time */
} qn_access;

typedef struct qn_bound { /* it made a difference whether 0 <= d < extent */
    qn_dim d, extent;
} qn_bound;

typedef struct qn_known { /* a value that was computed at an index */
    const qn_value *value;
    const qn_dim *index;
    const qn_kvalue *mask;
    qn_kvalue *result; /* NULL: only looked at, by qn_writer_prepare */
    int below;         /* next in the chain */
} qn_known;

typedef struct qn_datum { /* a number that became a variable of the index space */
    const qn_kvalue *source, *mask;
    qn_dim extent, symbol;
    size_t known; /* size of `known` then: it is forgotten with what is known */
} qn_datum;

enum { QN_KNOWN_BUCKETS = 256 };

struct qn_writer {
    qn_lowering *lowering;
    qn_arena *arena; /* scratch */
    qn_ispace space;
    qn_kernel *kernel;
    qn_kbuilder b;
    qn_kvalue *mask; /* loads are only made where it is true; NULL: everywhere */
    int pass;        /* of a ROWS kernel: which pass over the row is being written */
    /* Set while the body of a vector loop over this variable is written, where data larger than the caches is gone through in
     * order: loads ask `ahead` elements in advance (0: they don't), stores go past the caches. NULL: not. */
    qn_dim stream;
    int64_t ahead;
    int section;     /* code of different sections is about different elements */
    int part;        /* and of different parts, whose tasks are different ones: see lower_parts.c */
    qn_kvalue *task; /* number within the part; NULL: the kernel's */
    /* Called with each value that was computed (not loaded); or NULL. */
    void (*computed)(qn_writer *w, void *user, const qn_value *value, const qn_dim *index, qn_kvalue *result);
    void *computed_user;
    /* Asked first for each element that is loaded; NULL, or gives NULL: an ordinary load. */
    qn_kvalue *(*load)(qn_writer *w, void *user, qn_kbuffer *buffer, qn_dim linear);
    void *load_user;
    qn_vec(qn_binding) bindings;
    qn_vec(qn_argument) arguments;
    qn_vec(qn_access) accesses;
    qn_vec(qn_bound) bounds;
    qn_vec(qn_dim) params; /* expressions of the space, by parameter number */
    qn_vec(qn_known) known;
    qn_vec(qn_datum) data;
    int known_heads[QN_KNOWN_BUCKETS];
};

/* Everything that is written lies in `scratch`; qn_writer_finish copies what the program keeps. */
void qn_writer_init(qn_writer *w, qn_lowering *l, const char *name, qn_arena *scratch);
/* An argument, once for each program buffer. */
qn_kbuffer *qn_writer_argument(qn_writer *w, int buffer, bool read, bool written);
/* Loads of the value come from its program buffer. */
void qn_writer_bind_input(qn_writer *w, qn_value *value);
void qn_writer_bind(qn_writer *w, const qn_value *value, qn_fetch_fn fetch, void *user);
const qn_binding *qn_writer_binding(const qn_writer *w, const qn_value *value); /* NULL: it is computed */

/* An i64 scalar. Parts without variables become parameters. */
qn_kvalue *qn_writer_index(qn_writer *w, qn_dim expression);
/* Says that the kernel depends on the expression other than by an address, so that loops are not merged across it. */
void qn_writer_note_index(qn_writer *w, qn_dim expression);
/* Says that the buffer is read in ways that the writer doesn't see: no output may take its memory. */
void qn_writer_note_load(qn_writer *w, const qn_kbuffer *buffer);
qn_kvalue *qn_writer_load(qn_writer *w, qn_kbuffer *buffer, qn_dim linear);
void qn_writer_store(qn_writer *w, qn_kbuffer *buffer, qn_dim linear, qn_kvalue *value);
/* Has the cache line of an element that will be stored fetched, where `stream` is set and the buffer is large, but not so
 * large that its stores go past the caches. */
void qn_writer_prefetch(qn_writer *w, qn_kbuffer *buffer, qn_dim linear);
/* Is the program's buffer so large that streaming stores (see `stream`) go past the caches? */
bool qn_writer_bypasses(const qn_writer *w, int buffer);

/* Computes the group's outputs at one index of a tensor with these dims, then stores them: what follows a product. */
void qn_writer_store_outputs(qn_writer *w, const qn_group *group, int rank, const qn_dim *dims,
                             const qn_dim *index);
/* Has the lines fetched to the second cache that such a store will write, of outputs that lie in a row along that variable. */
void qn_writer_prefetch_outputs(qn_writer *w, const qn_group *group, int rank, const qn_dim *dims,
                                const qn_dim *index, qn_dim along);

/* A loop over variable `var` from low to high; a var of extent 1 (the constant 0) makes none. What was computed inside is
 * forgotten at its end. */
typedef struct qn_writer_loop {
    qn_kinst *inst; /* NULL: extent 1 */
    qn_dim var;
    size_t known_mark;
    int n_carried;
    qn_kvalue **carried; /* inside: the current values; after the end: the results */
} qn_writer_loop;
qn_writer_loop qn_writer_for(qn_writer *w, qn_dim var, qn_kvalue *low, qn_kvalue *high, qn_ktag tag,
                             int n_carried, qn_kvalue *const *initial, const qn_kind *kinds);
qn_writer_loop qn_writer_for_all(qn_writer *w, qn_dim var, qn_ktag tag, int n_carried,
                                 qn_kvalue *const *initial, const qn_kind *kinds); /* 0 to its extent */
void qn_writer_end_for(qn_writer *w, qn_writer_loop *loop, qn_kvalue *const *yields);
/* Loops over several variables, all of their extents, the last innermost; carried values go through all of them. */
void qn_writer_open_nest(qn_writer *w, int n, const qn_dim *vars, qn_ktag innermost, int n_carried,
                         qn_kvalue *const *initial, const qn_kind *kinds, qn_writer_loop *out_loops);
/* Results are in loops[0].carried. `loops` has one element even when n is 0. */
void qn_writer_close_nest(qn_writer *w, int n, qn_writer_loop *loops, qn_kvalue *const *yields);
/* What is known now may be forgotten again: for code inside an `if`. */
size_t qn_writer_mark(const qn_writer *w);
void qn_writer_forget(qn_writer *w, size_t mark);
/* An entry for the value at that index that holds under the current mask, or NULL. */
qn_known *qn_writer_find_known(qn_writer *w, const qn_value *value, const qn_dim *index);
void qn_writer_add_known(qn_writer *w, const qn_value *value, const qn_dim *index, qn_kvalue *result);

/* The step that runs the kernel, which the program gets a copy of unless it knows an equal one. `tasks` is an expression of the
 * space. */
qn_status qn_writer_finish(qn_writer *w, qn_dim tasks, const char *step_name);

/* ---- lower_finish.c ---- */

/* Machine passes over all kernels of the program. */
qn_status qn_lower_finish(qn_lowering *l);

/* ---- lower_beside.c: collectives beside kernels ---- */

void qn_lower_beside(qn_program *p);

/* ---- lower_value.c ---- */

/* The element of `value` at `index` (rank expressions of the space). */
qn_kvalue *qn_writer_value(qn_writer *w, qn_value *value, const qn_dim *index);
/* The maximum of its row that a value is without, max of x - broadcast(max): the value is 0 or less, or NaN. NULL: it is another. */
const qn_node *qn_maximum_taken(const qn_value *value);
/* Computes now what `value` at `index` needs and what no unset variable takes part in: before a loop is opened. */
void qn_writer_prepare(qn_writer *w, qn_value *value, const qn_dim *index);
/* x combined with y; sums of products use FMA where the math mode allows. */
qn_kvalue *qn_writer_combine(qn_writer *w, qn_kind kind, qn_kvalue *x, qn_kvalue *y);
/* The number in an i32 or i64 index element, as a variable in [0, extent): checked, negative ones counted from the end. */
qn_dim qn_writer_checked_index(qn_writer *w, qn_kvalue *number, qn_dim extent, const qn_node *node);
/* Likewise, clamped instead of checked. */
qn_dim qn_writer_clamped_index(qn_writer *w, qn_kvalue *number, qn_dim extent);

/* An i64 that is known to be in [0, extent), as a variable. */
qn_dim qn_writer_datum(qn_writer *w, qn_kvalue *number, qn_dim extent);
/* condition and 0 <= d < extent; what is proven is left out. NULL is true. */
qn_kvalue *qn_writer_and_inside(qn_writer *w, qn_kvalue *condition, qn_dim d, qn_dim extent);
/* condition, and d is a multiple of step. */
qn_kvalue *qn_writer_and_multiple(qn_writer *w, qn_kvalue *condition, qn_dim d, qn_dim step);
/* The element at an index that holds where `condition` does; elsewhere `other`. */
qn_kvalue *qn_writer_value_where(qn_writer *w, qn_kvalue *condition, qn_value *value, const qn_dim *index,
                                 qn_kvalue *other);
/* A number of that dtype, or of what kernels have in its place (qn_dtype_carrier). */
qn_kvalue *qn_writer_constant(qn_writer *w, qn_dtype dtype, qn_scalar value);

/* ---- lower_sums.c ---- */

/* The element of a reduce, a reduce_window or a contraction that is not composite. */
qn_kvalue *qn_writer_sum(qn_writer *w, const qn_node *node, const qn_dim *index);

/* ---- the kinds of groups ---- */

/* One value at each index of the group's iteration space. */
qn_status qn_lower_loop(qn_lowering *l, const qn_group *group);
qn_status qn_lower_rows(qn_lowering *l, const qn_group *group);
qn_status qn_lower_opaque(qn_lowering *l, const qn_group *group);
/* Is the node a sort, top_k or suppress whose kernel sorts numbers that hold key and position? Else top_k and suppress are said by
 * other ops. */
#define QN_PACKED_LINE ((int64_t)1 << 31) /* elements of a line then: checked when it runs */
bool qn_lower_packs_keys(const qn_node *node, const qn_pass_options *options);
qn_status qn_lower_control(qn_lowering *l, const qn_group *group);

/* "softmax" or "add_exp_mul": for kernels; with the nodes' names for steps. */
const char *qn_group_kernel_name(const qn_group *group, qn_arena *arena);
const char *qn_group_step_name(const qn_group *group, qn_arena *arena);

/* ---- loop nests (lower_loop.c), for other files too ---- */

/* Axes that a kernel goes over; those that nothing tells apart are one. */
typedef struct qn_nest {
    int n;
    qn_dim dims[QN_MAX_RANK]; /* of the program; none is the constant 1 */
    int64_t first[QN_MAX_RANK],
        whole[QN_MAX_RANK]; /* whole > 0: a part of an axis of that extent, from `first` on */
} qn_nest;

typedef struct qn_planned_loop {
    qn_dim var;
    qn_kvalue *low, *high; /* NULL: all of its extent */
} qn_planned_loop;

/* The loops of one task: leading axes are spread over tasks. */
typedef struct qn_loops {
    int n;
    qn_planned_loop loops[QN_MAX_RANK];
    qn_dim index[QN_MAX_RANK]; /* by axis of the nest */
    qn_dim tasks;
    int64_t whole; /* > 0: the first loop takes exactly so many steps in every task */
    bool pieces;   /* the last loop runs over short pieces of what lies in a row */
} qn_loops;

/* What an extent is likely to be, where that is all one can know: for sizes of tasks. */
double qn_likely_extent(qn_dim d);
/* Elements of the group's iteration space for one task: QN_GRAIN_OF where there are many. */
int64_t qn_task_elements(const qn_lowering *l, const qn_group *group);
/* Tasks of about `grain` steps of the innermost axis. Bounds are computed at the cursor. */
void qn_loops_plan(qn_writer *w, const qn_nest *nest, int64_t grain, qn_loops *out);
qn_writer_loop qn_planned_loop_open(qn_writer *w, const qn_planned_loop *loop, qn_ktag tag);
/* Index of the element of a tensor that has the row-major number of `index` in the nest. */
void qn_nest_index(qn_writer *w, const qn_nest *nest, const qn_dim *index, const qn_type *type,
                   qn_dim *out_index);

/* One element of each output, at the current values of the loops' variables; at: its index, by output. */
void qn_loop_element(qn_writer *w, const qn_group *group, qn_dim (*at)[QN_MAX_RANK]);

/* ---- lower_parts.c ---- */

enum { QN_MAX_PARTS = 128 };
/* Parts of an axis of a nest. */
typedef struct qn_parts {
    int axis, n;
    bool tasks;                   /* of their own; else each task goes through all parts */
    int64_t at[QN_MAX_PARTS + 1]; /* part p: [at[p], at[p + 1]) */
} qn_parts;
/* Parts in which all bounds are known to hold or not to; n is 0 where there are none. Of a rehearsal with one variable an axis. */
qn_parts qn_find_parts(qn_writer *rehearsal, const qn_nest *nest, const qn_dim *vars);
void qn_nest_part(qn_lowering *l, qn_nest *nest, const qn_parts *parts, int part);
/* The number of the task, in the part that is written. */
qn_kvalue *qn_writer_task(qn_writer *w);

/* ---- lower_transpose.c ---- */

/* Does an address jump along variable `column`; `along_row`: from line to line, and step through a line along `row`? */
bool qn_lower_crosses(qn_writer *w, qn_dim linear, qn_dim row, qn_dim column, bool along_row);
/* Has the address no other variables than these: none of a sum's loop, no number that is read? */
bool qn_lower_depends_only_on(const qn_writer *w, qn_dim linear, int n, const qn_dim *vars);
/* Rows of so many lanes, up to 16, become columns. */
enum { QN_TRANSPOSE_LANES = 16 };
void qn_kb_transpose(qn_kbuilder *b, int lanes, qn_kvalue **rows);
/* The axis along which something is read line by line that the last axis jumps across, where blocks of vectors between the two
 * pay; or -1. Of a rehearsal with one variable an axis (vars). */
int qn_transposed_axis(qn_writer *rehearsal, const qn_nest *nest, const qn_dim *vars);
/* How pairs, which are the last axis, come from what is read across lines. */
typedef enum qn_transposed_pairs { QN_PAIRS_NONE, QN_PAIRS_APART, QN_PAIRS_OF_LINES } qn_transposed_pairs;
/* The same where the last axis has two elements, of a group for which qn_nest_stores_zipped holds, and the axis before it is jumped
 * across. */
int qn_paired_axis(qn_writer *rehearsal, const qn_nest *nest, const qn_dim *vars,
                   qn_transposed_pairs *out_pairs);
/* Cuts axes whose number is divided by a constant in what such a rehearsal reads: [512] in blocks of 16 is [32, 16]. */
bool qn_nest_cut(qn_writer *rehearsal, qn_nest *nest, const qn_dim *vars);
/* Makes one axis of the last two, where the last is no whole vectors and all but what is read line by line along `row_axis` sees
 * the two as one. Of such a rehearsal. */
bool qn_nest_run(qn_writer *rehearsal, qn_nest *nest, int row_axis, const qn_dim *vars);
/* The group's elements, block by block, in tasks of about `grain` elements: how many tasks, an expression of the space.
 * `run`: qn_nest_run made the last axis. */
qn_dim qn_write_transposed(qn_writer *w, const qn_group *group, const qn_nest *nest, int row_axis, bool run,
                           qn_transposed_pairs pairs, int64_t grain);

/* ---- lower_zip.c ---- */

/* Has the last axis two or three elements? */
bool qn_nest_may_zip(const qn_nest *nest);
/* Is each element of the axis before it then stored behind the other, in the one result of the group? Of a rehearsal with one variable
 * an axis. */
bool qn_nest_stores_zipped(qn_writer *rehearsal, const qn_group *group, const qn_nest *nest,
                           const qn_dim *vars);
/* Does then something that is read lie in as many lines along the axis before it, which is whole blocks, or is it the same for all of
 * them? Of such a rehearsal. */
bool qn_nest_zips(qn_writer *rehearsal, const qn_nest *nest, const qn_dim *vars);
/* The first n elements of the vectors of `lanes` in the block, `count` of them, one of each by turns, to `to` from `at` on. */
void qn_store_zipped(qn_writer *w, qn_kbuffer *block, int count, int lanes, qn_kbuffer *to, qn_kvalue *at,
                     int64_t n);
/* The group's elements, vectors of each put together, in tasks of about `grain` elements: how many tasks. */
qn_dim qn_write_zipped(qn_writer *w, const qn_group *group, const qn_nest *nest, int64_t grain);

/* ---- nests ---- */

/* Puts axis i of another nest behind the axes that there are. */
void qn_nest_add(qn_nest *nest, const qn_nest *from, int i);
/* Puts the axis and the one before it together, if they can be. */
bool qn_nest_join(qn_lowering *l, qn_nest *nest, const qn_nest *from, int i);
/* Does an expression see axes a (outer) and b (inner, of that extent) only as a*extent + b? */
bool qn_nest_sees_as_one(qn_ispace *space, qn_dim d, qn_dim a, qn_dim b, qn_dim extent);
/* Merges neighbouring axes of `nest` that every access and index expression of a rehearsal, written with one variable an
 * axis (vars), treats as one. */
void qn_nest_merge(qn_writer *rehearsal, qn_nest *nest, const qn_dim *vars);

#endif
