/* Modules, functions and graphs: the top level of the IR. Pure SSA; every node has one op of ir/ops.def.
 *
 *   module    functions by name, one table of dimension expressions, one arena that owns everything
 *   graph     a function's or region's body: inputs, nodes in order (definitions before uses), outputs
 *   node      op, operands, attributes, regions, results
 *   value     a graph input or one result of a node: a type and who defines it
 *
 * Everything lives in the module's arena and is freed with it. A module is used by one thread at a time. */
#ifndef QN_IR_GRAPH_H
#define QN_IR_GRAPH_H

#include <stdbool.h>
#include <stdint.h>

#include "ir/arena.h"
#include "ir/diag.h"
#include "ir/dim.h"
#include "ir/dtype.h"
#include "quern.h"

/* ---- ops ---- */

typedef enum qn_op {
#define QN_OP(name, text, class, min, max, results, dtypes, flags, attrs) QN_OP_##name,
#include "ir/ops.def"
#undef QN_OP
    QN_N_OPS
} qn_op;

/* How an op takes part in fusion. */
typedef enum qn_op_class {
    QN_LEAF,        /* no tensor operands */
    QN_ELEMENTWISE, /* result element i from operand elements i */
    QN_BROADCAST,   /* result element from one operand element, operand elements used more than once */
    QN_INJECTIVE,   /* data movement: result element from at most one operand element, by index arithmetic */
    QN_REDUCTION,   /* result element from many operand elements */
    QN_CONTRACTION, /* dot_general, convolution */
    QN_OPAQUE,      /* a kernel of its own */
    QN_CONTROL      /* regions or calls: becomes part of the program, not of a kernel */
} qn_op_class;

enum {
    QN_FLAG_COMMUTES = 1,
    QN_FLAG_EFFECT = 2,
    QN_FLAG_SMOOTH = 4,
    QN_FLAG_COMPOSITE = 8,
    QN_FLAG_BINDS = 16
};

typedef struct qn_op_info {
    const char *name; /* "add" */
    qn_op_class class;
    int min_operands, max_operands; /* max -1: any number */
    int n_results;                  /* -1: depends on the node */
    int dtypes;                     /* set of qn_dtype_class, of operand 0 (of the result for leaves) */
    int flags;
    const char *attrs; /* "axis causal? scale": those it takes, '?' after the optional ones */
} qn_op_info;

extern const qn_op_info qn_ops[QN_N_OPS];
static inline bool qn_op_is_composite(qn_op op)
{
    return (qn_ops[op].flags & QN_FLAG_COMPOSITE) != 0;
}
/* Does it move elements of operand 0 and nothing else? Further operands say which. */
static inline bool qn_op_selects(qn_op op)
{
    return (qn_ops[op].class == QN_BROADCAST || qn_ops[op].class == QN_INJECTIVE) && op != QN_OP_PAD &&
           op != QN_OP_CONCATENATE;
}
qn_op qn_op_parse(const char *name, size_t length); /* QN_N_OPS when unknown */
/* The attributes it takes, and of these the required ones (may be NULL), as sets of bits 1 << qn_attr_key. */
uint64_t qn_op_attrs(qn_op op, uint64_t *out_required);

/* ---- types ---- */

#define QN_MAX_RANK 16

typedef struct qn_type {
    qn_dtype dtype;
    int rank;
    const qn_dim *dims; /* rank of them, in the module's arena */
} qn_type;

bool qn_type_equal(const qn_type *a, const qn_type *b); /* of one module: dims are compared as pointers */
bool qn_type_is_static(const qn_type *type);            /* all dims constant */
int64_t qn_type_elements(const qn_type *type);          /* static types only; INT64_MAX when there are more */
qn_dim qn_type_elements_dim(qn_dims *dims, const qn_type *type);
double qn_type_most_elements(const qn_type *type); /* of its largest dims */
/* "f32[batch, 10]" */
const char *qn_type_print(const qn_type *type, qn_arena *arena);

/* ---- constant data ---- */

/* Immutable tensor contents, row-major. May point into a mapped file, so `data` need not be aligned to its element:
 * read elements with memcpy or qn_scalar_load, or copy it to aligned memory first.
 *
 * A large constant that was computed (a transposed or scaled weight) exists only as what it is computed from until
 * somebody asks for its contents: qn_tensor_data for all of them, qn_tensor_read for a part, which is how weights reach
 * their place without ever being in memory twice. */
typedef struct qn_tensor_source qn_tensor_source;
typedef enum qn_input_role { QN_ROLE_INPUT, QN_ROLE_PARAM, QN_ROLE_STATE } qn_input_role;
typedef struct qn_tensor {
    qn_type type;     /* static */
    const void *data; /* NULL: see source; readers who don't know use qn_tensor_data */
    size_t bytes;
    uint64_t hash;      /* of dtype, dims and data; 0: not computed yet (qn_tensor_hash) */
    const char *name;   /* initializer name, or NULL */
    qn_input_role role; /* what the model says of it: PARAM is learnt, STATE isn't; INPUT: it says nothing */
    bool
        mapped; /* data lies in a private mapping of a file: its pages may be dropped, and come back when read */
    const qn_tensor_source *source; /* where data is NULL */
} qn_tensor;

/* ---- attributes ---- */

typedef enum qn_attr_key {
#define QN_ATTR(name, text, kind) QN_ATTR_##name,
#include "ir/attrs.def"
#undef QN_ATTR
    QN_N_ATTRS
} qn_attr_key;

typedef enum qn_attr_kind {
    QN_ATTR_KIND_INT,
    QN_ATTR_KIND_FLOAT,
    QN_ATTR_KIND_BOOL,
    QN_ATTR_KIND_INTS,
    QN_ATTR_KIND_DIMS,
    QN_ATTR_KIND_DTYPE,
    QN_ATTR_KIND_KIND,
    QN_ATTR_KIND_DIRECTION,
    QN_ATTR_KIND_STRING,
    QN_ATTR_KIND_TENSOR
} qn_attr_kind;

typedef struct qn_attr_info {
    const char *name;
    qn_attr_kind kind;
} qn_attr_info;
extern const qn_attr_info qn_attrs[QN_N_ATTRS];
qn_attr_key qn_attr_parse(const char *name, size_t length); /* QN_N_ATTRS when unknown */

/* Words of the KIND attribute: what a reduction, window, scan or scatter combines with. */
typedef enum qn_kind { QN_SUM, QN_PROD, QN_KIND_MAX, QN_KIND_MIN, QN_SET, QN_MEAN, QN_N_KINDS } qn_kind;
extern const char *const qn_kind_names[QN_N_KINDS]; /* "sum", "prod", "max", "min", "set", "mean" */
/* What combining starts from: 0, 1, the lowest (-inf), the highest (inf). There is none for QN_SET and QN_MEAN. */
qn_scalar qn_neutral(qn_kind kind, qn_dtype dtype);

/* Of collectives: what the communicator's functions take as `how` (quern_combine, or the root); the number of ranks that the node
 * is for, 0: any; and what it asks for, for messages: "all_gather is for 4 ranks: …". */
typedef struct qn_node qn_node;
int qn_collective_how(const qn_node *node);
int64_t qn_collective_ranks(const qn_node *node);
const char *qn_collective_wants(qn_op op, int64_t ranks, int how, qn_arena *arena);

typedef enum qn_direction { QN_EQ, QN_NE, QN_LT, QN_LE, QN_GT, QN_GE } qn_direction;
extern const char *const qn_direction_names[6];

typedef struct qn_attr {
    qn_attr_key key;
    int n; /* INTS, DIMS: length */
    union {
        int64_t i; /* INT, BOOL, DTYPE, KIND, DIRECTION */
        double f;
        const int64_t *ints;
        const qn_dim *dims;
        const char *s;
        const qn_tensor *tensor;
    };
} qn_attr;

/* ---- graphs ---- */

typedef struct qn_module qn_module;
typedef struct qn_graph qn_graph;
typedef struct qn_node qn_node;
typedef struct qn_value qn_value;

struct qn_value {
    qn_type type;
    qn_node *node;     /* NULL: a graph input */
    int index;         /* result number, or input number */
    const char *name;  /* without the '%'; NULL: numbered when printed */
    qn_value *forward; /* set by qn_value_replace: who stands for this value now; NULL: itself */
    int id;            /* scratch of whoever runs over the graph: qn_graph_number */
};

struct qn_node {
    qn_op op;
    int n_operands, n_results, n_attrs, n_regions;
    qn_value **operands;
    qn_value *results; /* n_results of them, contiguous */
    qn_attr *attrs;    /* sorted by key */
    qn_graph **regions;
    qn_graph *graph; /* it is in */
    qn_node *prev, *next;
    qn_loc loc;
    bool dead;  /* scratch */
    void *user; /* scratch of the running pass */
};

/* What a tensor without data is computed from, in the arena of its module. */
struct qn_tensor_source {
    const struct qn_node
        *node; /* op and attributes; its operands are these. NULL: one, of packed numbers, or what
                                   * ir/condensed.h makes of it */
    const qn_tensor *const *operands;
    int cost;        /* ops that reading one element takes: operands are not shared, so it can grow fast */
    qn_arena *arena; /* of the data, once made */
    /* The box of elements from `low` on, row-major, to `to`. Thread-safe. */
    void (*read)(const qn_tensor *tensor, const int64_t *low, const int64_t *extent, void *to);
    /* Is the box there already, inside a tensor that is in memory? Then where its first element is, and a stride for each
     * axis, in elements. NULL: it never is. */
    bool (*view)(const qn_tensor *tensor, const int64_t *low, const int64_t *extent, const void **out_data,
                 int64_t *out_strides);
};

struct qn_graph {
    qn_module *module;
    const char *name;
    int n_inputs, n_outputs;
    qn_value **inputs;
    qn_input_role
        *input_roles; /* PARAM: a trainable state; STATE: other state. Of functions; NULL in regions */
    const qn_tensor **input_initial; /* initial contents of PARAM and STATE inputs, or NULL each */
    qn_value **outputs;
    const char **output_names; /* of functions */
    int *aliases;              /* per output: the input it updates in place, or -1; NULL: none */
    qn_node *first, *last;
    int n_values; /* after qn_graph_number */
};

struct qn_module {
    qn_arena *arena;
    qn_dims *dims;
    const char *name; /* file it came from, or "" */
    int n_functions, function_capacity;
    qn_graph **functions;
    qn_vec(quern_group) groups;   /* of the first function as it was imported */
    qn_vec(const char *) strings; /* that the model has, by the numbers that stand for them */
};

qn_module *qn_module_new(const char *name); /* with an arena of its own */
void qn_module_free(qn_module *module);
/* A copy with an arena and symbols of its own, in which the named symbols have these ranges (equal bounds: they are
 * numbers). Contents of tensors are shared with the original, which must outlive it. */
qn_module *qn_module_clone(const qn_module *module, int n_ranges, const quern_dim_range *ranges);
qn_graph *qn_module_find(const qn_module *module, const char *name); /* NULL when absent */
qn_graph *qn_function_new(qn_module *module, const char *name);      /* added to the module */
qn_graph *qn_region_new(qn_module *module);
qn_value *qn_graph_add_input(qn_graph *graph, const char *name, qn_type type, qn_input_role role);
void qn_graph_add_output(qn_graph *graph, qn_value *value, const char *name, int alias);
/* Of output i of a function: where it has none, that of its value, which may have none either (NULL). */
static inline const char *qn_graph_output_name(const qn_graph *graph, int i)
{
    const char *name = graph->output_names ? graph->output_names[i] : NULL;
    return name ? name : graph->outputs[i]->name;
}
void qn_graph_remove_input(qn_graph *graph, int index); /* unused; later inputs move down, aliases follow */
/* A deep copy (regions too) as a new function of that name in the same module; as a region when name is NULL. */
qn_graph *qn_graph_clone(const qn_graph *graph, const char *name);

qn_type qn_type_make(qn_module *module, qn_dtype dtype, int rank, const qn_dim *dims); /* copies dims */
qn_type qn_type_static(qn_module *module, qn_dtype dtype, int rank, const int64_t *dims);
qn_tensor *qn_tensor_new(qn_module *module, qn_dtype dtype, int rank, const int64_t *dims,
                         const void *data); /* copies data; NULL: zeros */
/* Of a type of 2 or 4 bits, whose numbers lie side by side in `bytes`, which stay: they are unpacked when they are read. */
const qn_tensor *qn_tensor_packed(qn_arena *arena, qn_type type, const void *bytes, bool mapped,
                                  const char *name);
/* All contents, made now if need be; not by two threads at once, then. */
const void *qn_tensor_data(const qn_tensor *tensor);
uint64_t qn_tensor_hash(const qn_tensor *tensor); /* 64-bit content hash, computed once */
/* Cheap: equal for tensors that qn_tensor_same_bytes finds equal, and seldom for others. */
uint64_t qn_tensor_key(const qn_tensor *tensor);
/* Exact where both have data; else whether they are computed in the same way from equal ones. Dtype and dims of `a` and `b`
 * don't matter. */
bool qn_tensor_same_bytes(const qn_tensor *a, const qn_tensor *b);

/* The contents in pieces of about QN_PIECE_BYTES, in order; any number of threads may read. Pages of mapped files that are
 * done with are dropped on the way where it is known, all of them by qn_tensor_release. */
#define QN_PIECE_BYTES ((size_t)1 << 20)
typedef struct qn_piece {
    size_t offset, bytes;
} qn_piece;
int64_t qn_tensor_pieces(const qn_tensor *tensor);
qn_piece qn_tensor_piece(const qn_tensor *tensor, int64_t piece);
void qn_tensor_read(const qn_tensor *tensor, int64_t piece, void *to); /* to: memory of that piece */
void qn_tensor_release(const qn_tensor *tensor);
void qn_release_mapped(const void *at,
                       size_t bytes); /* the whole pages of a private file mapping in that range */

/* Attributes of a node. The typed getters assert that the attribute is there unless they take a fallback. */
const qn_attr *qn_attr_find(const qn_node *node, qn_attr_key key); /* NULL when absent */
int64_t qn_attr_int(const qn_node *node, qn_attr_key key);
int64_t qn_attr_int_or(const qn_node *node, qn_attr_key key, int64_t fallback);
double qn_attr_float(const qn_node *node, qn_attr_key key);
bool qn_attr_bool(const qn_node *node, qn_attr_key key);                       /* false when absent */
const int64_t *qn_attr_ints(const qn_node *node, qn_attr_key key, int *out_n); /* out_n may be NULL */
const qn_dim *qn_attr_dims(const qn_node *node, qn_attr_key key, int *out_n);
const qn_tensor *qn_attr_tensor(const qn_node *node, qn_attr_key key);
const char *qn_attr_string(const qn_node *node, qn_attr_key key);
qn_kind qn_attr_reduce_kind(const qn_node *node);
qn_direction qn_attr_compare_direction(const qn_node *node);
bool qn_attr_equal(const qn_attr *a, const qn_attr *b); /* of nodes of one module */

/* The axes of an operand of dot_general by what becomes of them: batch and contracted ones in the order that pairs them with
 * the other operand's, free ones in ascending order. */
typedef struct qn_dot_side {
    int n_batch, n_free, n_contract;
    int64_t batch[QN_MAX_RANK], free[QN_MAX_RANK], contract[QN_MAX_RANK];
} qn_dot_side;
qn_dot_side qn_dot_side_of(const qn_node *node, int operand);

/* Which operands of a matmul_packed with a scale are its zeros and the factors of x's groups; 0: it has none. */
int qn_packed_zeros(const qn_node *node);
int qn_packed_factors(const qn_node *node);

/* ---- construction: ir/build.h has a function for each op on top of this ---- */

/* Makes a node with inferred result types and appends it to `graph` (before `before` when not NULL).
 * Attributes (with their lists and strings) and operands are copied. On a mistake reports at `loc` and gives NULL.
 * attrs in any order; regions, loc may be NULL. Operands that were replaced are followed. */
qn_node *qn_node_new(qn_graph *graph, qn_node *before, qn_op op, int n_operands, qn_value *const *operands,
                     int n_attrs, const qn_attr *attrs, int n_regions, qn_graph *const *regions,
                     const qn_loc *loc, qn_diags *diags);
void qn_node_remove(qn_node *node);                       /* unlinks it */
void qn_node_move_before(qn_node *node, qn_node *before); /* within its graph; NULL: to the end */

/* The symbol that the node finds the value of, or NULL. Such a node stays in front of all that has the symbol in its types or
 * attributes, and as long as something has. */
qn_dim qn_node_binds(const qn_node *node);
/* What a run says where a node of QN_OP_REQUIRE has another number than 1. */
#define QN_REQUIRED "what is required does not hold here"
qn_dim qn_node_limit(const qn_node *node);  /* of such a node: the most that it may find */
bool qn_graph_binds(const qn_graph *graph); /* has it nodes that do, regions aside? */
/* Sets the flags, by number, of the symbols that the node's types and attributes have, and all that is in its regions; not of
 * the one that it binds. */
void qn_node_mark_symbols(const qn_node *node, bool *flags);
void qn_type_mark_symbols(const qn_type *type, bool *flags); /* the type's */

/* Every later reading of `old` (after qn_graph_resolve) is `value`. Same dtype and rank. `value` must not be computed from
 * `old`: that reading would be replaced too. */
void qn_value_replace(qn_value *old, qn_value *value);
/* The constant's tensor, or NULL when `value` is no constant. */
const qn_tensor *qn_value_constant(const qn_value *value);
/* Padded constants are folded up to so many times their size: kernels of one place are added to larger ones (passes/scale.c). */
#define QN_FOLD_PAD_GROWTH 64
/* Who stands for `value` now. */
qn_value *qn_value_resolve(qn_value *value);
/* Follows forwards in all operands and outputs, regions included. Passes call it once at their end. */
void qn_graph_resolve(qn_graph *graph);
/* Gives each value of the graph (not of its regions) an id from 0 in order; returns their number. */
int qn_graph_number(qn_graph *graph);
/* Number of uses per value id (operands of nodes plus outputs) after qn_graph_number, which it calls; in `arena`. */
int *qn_graph_count_uses(qn_graph *graph, qn_arena *arena);
/* Removes nodes without effect whose results nobody reads, in regions too; true when something went. Resolves first.
 * A control node has an effect when a node in it has. */
bool qn_graph_remove_dead(qn_graph *graph);
/* Has to run though nobody reads its results: it, or a node in its regions. */
bool qn_node_has_effect(const qn_node *node);

#define QN_FOR_NODES(graph, node) for (qn_node *node = (graph)->first; node; node = node->next)

/* ---- ir/infer.c: the type rule of each op ---- */

/* How many results such a node has at most: room for qn_infer. */
int qn_node_max_results(const qn_node *node);
/* Result types of a node whose op, operands, attributes and regions are set. Reports what is wrong and gives a status.
 * out_types has room for out_capacity; *out_n is how many there are. */
qn_status qn_infer(const qn_node *node, qn_module *module, qn_type *out_types, int out_capacity, int *out_n,
                   qn_diags *diags);

/* ---- ir/verify.c ---- */

/* Checks every invariant: order, types against qn_infer, attributes, aliases, regions isolated, names unique. */
qn_status qn_verify(const qn_module *module, qn_diags *diags);
qn_status qn_verify_graph(const qn_graph *graph, qn_diags *diags);

/* ---- ir/print.c, frontend/text/ ---- */

/* The text form; frontend/text parses it back to the letter. */
const char *qn_module_print(const qn_module *module, qn_arena *arena);
const char *qn_graph_print(const qn_graph *graph, qn_arena *arena);

#endif
