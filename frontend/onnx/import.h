/* What the files of the importer share.
 *
 *   load.c      bytes -> parsed model, mapped files, ranges of dimensions, the entry points
 *   port.c      inputs and outputs of the outermost graph
 *   graph.c     scopes, the walk over nodes, functions, captures of regions
 *   body.c      graphs in nodes: what If, Loop and Scan share
 *   choice.c    what stands behind an If whose branches differ
 *   join.c      two branches as one node
 *   order.c     nodes that come before what they read
 *   node.c      what an operator's function asks of its node: attributes, inputs, outputs, messages
 *   contents.c  values that are known while importing
 *   known.c     values that can be computed then
 *   extent.c    numbers that only a run computes, as extents
 *   range.c     between what numbers those lie
 *   repeat.c    a loop that repeats rows
 *   tensor.c    initializers and tensor attributes
 *   table.c     the list of operator families; one file per family
 *
 * An operator is a function on a qn_onnx_node: it reads inputs and attributes, builds with n->b, sets outputs. On a
 * mistake it reports and returns; an output that it leaves unset counts as unsupported. */
#ifndef QN_FRONTEND_ONNX_IMPORT_H
#define QN_FRONTEND_ONNX_IMPORT_H

#include "frontend/onnx/onnx.h"
#include "ir/build.h"
#include "onnx.pb-c.h"

/* ONNX's element types. */
typedef enum qn_onnx_elem {
    QN_ONNX_UNDEFINED = 0,
    QN_ONNX_FLOAT = 1,
    QN_ONNX_UINT8 = 2,
    QN_ONNX_INT8 = 3,
    QN_ONNX_UINT16 = 4,
    QN_ONNX_INT16 = 5,
    QN_ONNX_INT32 = 6,
    QN_ONNX_INT64 = 7,
    QN_ONNX_STRING = 8,
    QN_ONNX_BOOL = 9,
    QN_ONNX_FLOAT16 = 10,
    QN_ONNX_DOUBLE = 11,
    QN_ONNX_UINT32 = 12,
    QN_ONNX_UINT64 = 13,
    QN_ONNX_COMPLEX64 = 14,
    QN_ONNX_COMPLEX128 = 15,
    QN_ONNX_BFLOAT16 = 16,
    QN_ONNX_FLOAT8E4M3FN = 17,
    QN_ONNX_FLOAT8E4M3FNUZ = 18,
    QN_ONNX_FLOAT8E5M2 = 19,
    QN_ONNX_FLOAT8E5M2FNUZ = 20,
    QN_ONNX_UINT4 = 21,
    QN_ONNX_INT4 = 22,
    QN_ONNX_FLOAT4E2M1 = 23,
    QN_ONNX_FLOAT8E8M0 = 24,
    QN_ONNX_UINT2 = 25,
    QN_ONNX_INT2 = 26,
    QN_ONNX_FLOAT6E2M3 = 27,
    QN_ONNX_FLOAT6E3M2 = 28,
    QN_ONNX_N_ELEMS
} qn_onnx_elem;

const char *qn_onnx_elem_name(int elem); /* "int4"; "type 99" is not told apart: "unknown" */
/* The dtype whose values stand for it; 2- and 4-bit integers widen to 8 bits. QUERN_INVALID_DTYPE: not supported. */
qn_dtype qn_onnx_elem_dtype(int elem);
qn_onnx_elem qn_onnx_dtype_elem(qn_dtype dtype);

/* ---- values ---- */

typedef enum qn_onnx_kind {
    QN_ONNX_NONE, /* an optional input or output that is left out; an optional without a value */
    QN_ONNX_TENSOR,
    QN_ONNX_SEQUENCE, /* of known length: exists while importing only */
    QN_ONNX_PIECES,   /* a sequence of unknown length that only its whole is known of */
    QN_ONNX_FAILED    /* its node was reported already */
} qn_onnx_kind;

/* The value of a name in a scope. At least one of value, tensor and dims is set. */
typedef struct qn_onnx_value qn_onnx_value;
struct qn_onnx_value {
    qn_onnx_kind kind;
    qn_type type;
    qn_value *value;         /* in the scope's graph; made from the contents when first asked for */
    const qn_tensor *tensor; /* its contents: a constant */
    const qn_dim *dims;      /* its contents, of a small integer or bool tensor: an expression per element */
    int n_items;             /* sequence */
    qn_onnx_value **items;
    qn_value *
        whole; /* sequence: a tensor that it is the slices of along `axis`, one by one; of pieces: one behind the other. Or NULL */
    int axis;
    uint64_t depends; /* set of graph inputs (the first 64) whose contents it is made of */
    uint64_t extents; /* set of symbols (the first 64) whose values its contents are made of */
    bool strings;     /* their numbers, i64: see strings.c */
    bool unknown;     /* was asked for its contents, and isn't computed from constants */
    bool learnable;   /* made of an initializer that training may change */
};

/* May training change an initializer? The model says so, or says nothing and it is one of floats that is no scalar. */
bool qn_onnx_is_learnable(const qn_tensor *tensor);

/* Contents of more elements than this are not followed. */
#define QN_ONNX_CONTENTS_MAX 1024

typedef struct qn_onnx_scope qn_onnx_scope;
typedef struct qn_onnx_choice qn_onnx_choice;
typedef struct qn_onnx_frame qn_onnx_frame;

/* One call. */
/* A value that is `before` but for a part. Where they are an output and an input, they may share memory. */
typedef struct qn_onnx_update {
    qn_value *before, *after;
} qn_onnx_update;

typedef struct qn_onnx_import {
    qn_module *module;
    qn_arena *arena;     /* the module's */
    qn_dims *dims;       /* the module's */
    bool *met;           /* for each dimension of the options: the model has it */
    bool *met_shapes;    /* for each shape: the model has the input */
    bool *met_constants; /* the same */
    qn_diags *diags;
    const qn_onnx_options *options; /* not NULL */
    const char *file;
    const uint8_t *bytes;
    size_t n_bytes;
    const char *folder; /* of external data; NULL: there is none */
    struct qn_onnx_external *externals;
    const Onnx__Model *model;
    int n_hosts;                          /* inputs that the host knows: a sequence is one */
    qn_vec(int) hosts;                    /* which of them each input of the graph belongs to */
    const char *input_names[64];          /* what the bits of qn_onnx_value.depends stand for */
    uint64_t needs;                       /* inputs whose contents were missed */
    qn_vec(qn_dim) needs_dims;            /* symbols whose values were */
    uint64_t needs_shapes;                /* inputs whose shapes were */
    const struct qn_onnx_alias *aliases;  /* symbols that the model needs to be equal */
    const struct qn_onnx_limit *limits;   /* and what others must lie within */
    const struct qn_onnx_extent *extents; /* numbers that are extents */
    qn_vec(const char *) lengths;         /* names of their symbols, the first n_lengths of which are taken */
    int n_lengths;
    const struct qn_onnx_decision *decisions; /* branches that are the only ones to fit */
    bool restart;                             /* one was found: import again with it */
    int *string_slots, string_capacity;       /* finds the module's strings */
    int64_t n_nodes;                          /* imported, with copies of functions and loop bodies */
    uint64_t n_random;                        /* random operators so far */
    int n_sides;                              /* of choices, that the import is in */
    int64_t n_chosen;                         /* nodes imported into sides */
    bool keep_floats;                         /* contents of floats are not folded: nodes are made */
    qn_vec(qn_onnx_update) updates;           /* of caches that keep their place */
} qn_onnx_import;

/* Symbol `from` is another name of symbol `to`, or (to is NULL) of a number. */
typedef struct qn_onnx_alias {
    const char *from, *to;
    int64_t value;
    const struct qn_onnx_alias *next;
} qn_onnx_alias;

/* Symbol `name` is in [least, most]. */
typedef struct qn_onnx_limit {
    const char *name;
    int64_t least, most;
    const struct qn_onnx_limit *next;
} qn_onnx_limit;

#define QN_ONNX_MAX_NODES 1000000
#define QN_ONNX_MAX_DEPTH 64 /* graphs in graphs and calls in calls */

/* ---- a node, as its operator's function sees it ---- */

typedef struct qn_onnx_node {
    qn_onnx_import *im;
    qn_onnx_scope *scope;
    const Onnx__Node *proto;
    int64_t opset; /* of the operator's domain */
    qn_builder b;
    int n_in, n_out; /* without those left out at the end */
    qn_onnx_value **in, **out;
    uint64_t depends, extents; /* what its outputs depend on */
    qn_onnx_choice *choice;    /* its outputs are in both sides of it */
    int64_t number;            /* among all nodes, in the order of the import */
    int n_errors;              /* reported before it */
    int n_missed;              /* symbols whose values it misses, and their names */
    const char *missed;
} qn_onnx_node;

typedef struct qn_onnx_op {
    const char *name;
    const char *domain; /* NULL: the default domain */
    int min, max;       /* opsets; max 0: no end */
    void (*import)(qn_onnx_node *n);
} qn_onnx_op;

/* NULL when there is none; *out_other tells whether another opset has it. */
const qn_onnx_op *qn_onnx_op_find(const char *domain, const char *name, int64_t opset, bool *out_other);

/* Reports at the node, with the types of its inputs. */
void qn_onnx_unsupported(qn_onnx_node *n, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A run ends where the condition does not hold, with a message that says why it must. NULL after a report. */
qn_value *qn_onnx_require(qn_onnx_node *n, qn_value *condition, const char *why);
void qn_onnx_malformed(qn_onnx_node *n, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool qn_onnx_ok(const qn_onnx_node *n); /* nothing was reported for it */

/* attributes: the fallback when it is absent; a wrong kind is reported and gives the fallback */
const Onnx__Attribute *qn_onnx_attr(qn_onnx_node *n, const char *name,
                                    Onnx__Attribute__Kind kind); /* or NULL */
int64_t qn_onnx_attr_int(qn_onnx_node *n, const char *name, int64_t fallback);
double qn_onnx_attr_float(qn_onnx_node *n, const char *name, double fallback);
const char *qn_onnx_attr_string(qn_onnx_node *n, const char *name, const char *fallback);
const int64_t *qn_onnx_attr_ints(qn_onnx_node *n, const char *name, int *out_n); /* NULL when absent */
const float *qn_onnx_attr_floats(qn_onnx_node *n, const char *name, int *out_n); /* NULL when absent */
bool qn_onnx_attr_is(qn_onnx_node *n, const char *name, const char *fallback, const char *value);
const Onnx__Graph *qn_onnx_attr_graph(qn_onnx_node *n, const char *name); /* reported when absent */

/* inputs */
bool qn_onnx_has(const qn_onnx_node *n, int i);
qn_onnx_value *qn_onnx_in_any(const qn_onnx_node *n, int i); /* of kind NONE when left out; never NULL */
qn_value *qn_onnx_in(qn_onnx_node *n, int i);           /* NULL after a report: left out, or not a tensor */
qn_value *qn_onnx_in_opt(qn_onnx_node *n, int i);       /* NULL without a report when left out */
const qn_type *qn_onnx_in_type(qn_onnx_node *n, int i); /* like qn_onnx_in, without making the value */
/* Contents; false after a report when they are not known. At most max elements. */
bool qn_onnx_in_ints(qn_onnx_node *n, int i, int max, int64_t *out, int *out_n);
bool qn_onnx_in_int(qn_onnx_node *n, int i, int64_t *out);
bool qn_onnx_in_floats(qn_onnx_node *n, int i, int max, double *out, int *out_n);
bool qn_onnx_in_dims(qn_onnx_node *n, int i, int max, qn_dim *out, int *out_n);
/* The same, or what the run computes, as extents: see qn_onnx_extent. */
bool qn_onnx_in_extents(qn_onnx_node *n, int i, int max, qn_dim limit, qn_dim *out, int *out_n);
void qn_onnx_needs_contents(qn_onnx_node *n, int i); /* reports that input i has to be known */
void qn_onnx_misses(qn_onnx_node *n,
                    const qn_onnx_value *value); /* what is reported next is for want of its contents */
/* The same of the extent's value, or of those of all of input i's extents. */
void qn_onnx_needs_dim(qn_onnx_node *n, qn_dim extent);
void qn_onnx_needs_shape(qn_onnx_node *n, int i);

/* outputs */
bool qn_onnx_wants(const qn_onnx_node *n, int i);          /* does the model name it? */
void qn_onnx_out(qn_onnx_node *n, int i, qn_value *value); /* NULL: nothing, it was reported */
void qn_onnx_out_tensor(qn_onnx_node *n, int i, const qn_tensor *tensor);
void qn_onnx_out_any(qn_onnx_node *n, int i, qn_onnx_value *value);

/* Output 0 of an operator of the default domain on other inputs (NULL: left out), with the node's attributes: what a node does to
 * the numbers that its inputs stand for. NULL after a report. */
qn_value *qn_onnx_apply(qn_onnx_node *n, const char *op, int64_t opset, int n_in, qn_value *const *in);

/* The operator needs two extents to be equal. Where that says that two symbols are the same, or what number a symbol is,
 * the import starts again knowing it; else it is left to the type rules. */
void qn_onnx_equal_dims(qn_onnx_node *n, qn_dim a, qn_dim b);
/* x, whose extent along the axis the operator needs to be `dim`: the same elements with that extent where it may be it. */
qn_value *qn_onnx_with_dim(qn_onnx_node *n, qn_value *x, int axis, qn_dim dim);

static inline qn_dim qn_onnx_dim(const qn_onnx_node *n, int64_t value)
{
    return qn_dim_const(n->im->dims, value);
}
/* axes: made non-negative; false after a report */
bool qn_onnx_axis(qn_onnx_node *n, int64_t axis, int rank, int *out);
/* A list of axes from attribute "axes" or from input `input` (-1: none), sorted; *out_given: was there one? */
bool qn_onnx_axes(qn_onnx_node *n, int input, int rank, int64_t *out, int *out_n, bool *out_given);

/* ---- port.c ---- */

void qn_onnx_declare_dims(qn_onnx_import *im, const Onnx__Graph *graph);
bool qn_onnx_is_initializer(const Onnx__Graph *graph, const char *name);
/* Defines the input, as failed after a report; false then. */
bool qn_onnx_add_input(qn_onnx_import *im, qn_onnx_scope *scope, const Onnx__ValueInfo *info);
void qn_onnx_add_output(qn_onnx_import *im, qn_onnx_scope *scope, int i);
/* to: NULL for a number */
void qn_onnx_add_alias(qn_onnx_import *im, const char *from, const char *to, int64_t value);

/* ---- load.c ---- */

/* Where the only symbol in d is of an input, and the node is always run: imports again for those of its values for which d is not
 * negative. False when there are none, or all are such. */
bool qn_onnx_assume_not_negative(qn_onnx_node *n, qn_dim d);
/* The same for those for which d is at most that; false, too, where no input of a reasonable size is left. */
bool qn_onnx_assume_at_most(qn_onnx_node *n, qn_dim d, int64_t most);

/* ---- contents.c ---- */

qn_onnx_value *qn_onnx_value_new(qn_onnx_import *im, qn_onnx_kind kind);
qn_onnx_value *qn_onnx_value_from(qn_onnx_import *im, qn_value *value);
qn_onnx_value *qn_onnx_value_constant(qn_onnx_import *im, const qn_tensor *tensor);
qn_onnx_value *qn_onnx_value_dims(qn_onnx_import *im, qn_dtype dtype, int rank, const int64_t *shape,
                                  const qn_dim *dims);
qn_value *qn_onnx_value_make(qn_builder *b, qn_onnx_value *value); /* value->value, made if need be */

/* Elements of a small tensor: expressions (integers and bools), or a constant's bytes. */
typedef struct qn_onnx_contents {
    qn_dtype dtype;
    int rank;
    int64_t shape[QN_MAX_RANK], n;
    const qn_dim *dims;  /* NULL: only constant */
    const uint8_t *data; /* NULL: only expressions, not all of them constant */
} qn_onnx_contents;

bool qn_onnx_contents_of(qn_onnx_import *im, qn_onnx_value *value,
                         qn_onnx_contents *out); /* false: not known */
/* The same of a value that an operator needs to know, rather than computes with. */
bool qn_onnx_contents_needed(qn_onnx_import *im, qn_onnx_value *value, qn_onnx_contents *out);
/* Output i holds, at position k, element from[k] of the contents. */
void qn_onnx_contents_move(qn_onnx_node *n, int i, const qn_onnx_contents *from, int rank,
                           const int64_t *shape, const int64_t *index);
int64_t qn_onnx_count(int rank, const int64_t *shape); /* product; -1 above QN_ONNX_CONTENTS_MAX */
/* Position in a row-major tensor. */
int64_t qn_onnx_position(int rank, const int64_t *shape, const int64_t *index);
/* Steps to the next index in row-major order. */
void qn_onnx_next_index(int rank, const int64_t *shape, int64_t *index);
/* Element-wise operators on contents: true when they are known and output 0 is set. */
bool qn_onnx_fold_unary(qn_onnx_node *n, const char *op);
/* x op y ("Add", …); NULL when it is no dimension expression, or undecided. */
qn_dim qn_onnx_fold_dim(qn_dims *dims, const char *op, qn_dim x, qn_dim y);
bool qn_onnx_fold_binary(qn_onnx_node *n, const char *op);
bool qn_onnx_fold_cast(qn_onnx_node *n, qn_onnx_elem to);
bool qn_onnx_fold_where(qn_onnx_node *n);

/* ---- extent.c ---- */

/* The integer, a tensor of one element that the run computes, as an extent: it ends where it is negative, above `limit` (NULL: what
 * follows from how it is computed), or above what the options say. NULL after a report: nothing says how large it may be. */
qn_dim qn_onnx_extent(qn_onnx_node *n, qn_value *number, qn_dim limit);
/* A number that is never negative as an extent with a name of its own, at most `usual` unless the options say how large. */
qn_dim qn_onnx_named_extent(qn_onnx_node *n, qn_value *number, const char *name, int64_t usual);
/* Makes extents of all elements of input i, which are its contents from then on. False, maybe after a report, when it may not. */
bool qn_onnx_compute_dims(qn_onnx_node *n, int i, qn_dim limit);
/* An output of the model as a value whose extents are largest where what the run finds is. NULL after a report. */
qn_value *qn_onnx_settle(qn_onnx_import *im, qn_onnx_scope *scope, qn_value *x);
/* Are elements of input i an input's of the model, which the caller can say, and does not bound? */
bool qn_onnx_is_input(const qn_onnx_node *n, int i);
/* Is the number, of one element, an extent already, or one that is surely never negative? */
bool qn_onnx_never_negative(qn_onnx_node *n, qn_value *number);
/* The number as an expression in extents that it surely is, never negative; NULL: there is none so far, and none that is bounded. */
qn_dim qn_onnx_known_extent(qn_onnx_node *n, qn_value *number);

/* ---- range.c, with range.h ---- */

bool qn_onnx_all_are(qn_value *x, double number); /* constant ones */

/* ---- repeat.c ---- */

/* A loop of that body which appends slices of a tensor to a sequence, each as often as a number says: true when output 0 is set, or
 * something was reported. */
bool qn_onnx_loop_repeats(qn_onnx_node *n, const Onnx__Graph *body, qn_dim trips);

/* ---- grow.c ---- */

typedef struct qn_onnx_growth {
    const char *name; /* of the value in the body; NULL: it doesn't grow */
    int64_t axis;     /* along which pieces are appended */
} qn_onnx_growth;

/* A loop's body in which carried values that a trip appends a piece to, and nothing else reads, are no inputs, and their outputs stand
 * behind all others: the pieces, where the names of `out` are defined as empty. NULL: there are none. */
const Onnx__Graph *qn_onnx_loop_pieces(qn_onnx_node *n, const Onnx__Graph *body, int n_carried,
                                       qn_onnx_growth *out);

/* ---- known.c ---- */

/* What a value of a few elements is when it is computed from constants; NULL when it is not, or is made of parameters. */
const qn_tensor *qn_onnx_evaluate(qn_onnx_import *im, qn_value *value);

/* ---- tensor.c ---- */

/* NULL after a report at loc. */
const qn_tensor *qn_onnx_tensor(qn_onnx_import *im, const Onnx__Tensor *proto, const qn_loc *loc);
const qn_tensor *qn_onnx_sparse_tensor(qn_onnx_import *im, const Onnx__SparseTensor *proto,
                                       const qn_loc *loc);
const qn_tensor *qn_onnx_tensor_of(qn_onnx_import *im, qn_dtype dtype, int rank, const int64_t *dims,
                                   const void *data); /* copied */
/* A tensor of bytes, each of which holds one integer of that dtype or several of 2 or 4 bits, the first in the lowest bits, as a
 * tensor of them. */
const qn_tensor *qn_onnx_tensor_of_bits(qn_onnx_import *im, qn_dtype dtype, int rank, const int64_t *dims,
                                        const qn_tensor *packed);
/* external.c: bytes of a file beside the model; NULL after a report */
const uint8_t *qn_onnx_external_bytes(qn_onnx_import *im, const Onnx__Tensor *proto, const qn_loc *loc,
                                      size_t *out_size);

/* ---- strings.c ---- */

/* The numbers of a tensor's or an attribute's strings; NULL after a report, or without one where there is no such attribute. */
const qn_tensor *qn_onnx_string_tensor(qn_onnx_import *im, const Onnx__Tensor *proto, const qn_loc *loc);
const int64_t *qn_onnx_attr_strings(qn_onnx_node *n, const char *name, int *out_n);
int64_t qn_onnx_string_number(qn_onnx_node *n, const char *text); /* -1 after a report */
int64_t qn_onnx_attr_string_number(qn_onnx_node *n, const char *name,
                                   const char *fallback); /* -1 after a report */
void qn_onnx_out_strings(qn_onnx_node *n, int i, qn_value *numbers);
bool qn_onnx_is_strings(const qn_onnx_value *v); /* or a sequence with some */
/* Imports the node, unless it has strings that its operator does not take. */
void qn_onnx_import_node(qn_onnx_node *n, const qn_onnx_op *op);

/* ---- text.c ---- */

/* Output 0 is input 0 as that data type; one of them is strings. */
void qn_onnx_cast_text(qn_onnx_node *n, int to);

/* ---- order.c ---- */

/* Nodes behind those that they read from, as indices; NULL where they stand so, or go in a circle. */
const size_t *qn_onnx_order(qn_arena *arena, size_t n, Onnx__Node *const *nodes);

/* ---- graph.c ---- */

uint64_t qn_onnx_hash_name(const char *name);

/* Where names are looked up: a graph of the model being imported into a graph of ours. A scope of the same graph as its
 * parent (an inlined body) shares its values; a region's scope turns outer values into captured inputs. */
struct qn_onnx_scope {
    qn_onnx_import *im;
    qn_onnx_scope *parent; /* whose names are visible; NULL: none (main, a function's body) */
    qn_graph *graph;
    const qn_onnx_frame *frame; /* attributes of the function call it is in */
    const Onnx__OpsetId *const *opsets;
    int n_opsets, depth;
    struct qn_onnx_name *names; /* open addressing */
    int n_names, name_capacity;
    qn_vec(qn_value *) captured; /* regions: outer values, and the inputs that stand for them */
    qn_vec(qn_value *) captured_inputs;
    qn_onnx_choice *choice;            /* that is open in it */
    bool hands_over;                   /* one that is open at its end goes on in the scope around it */
    uint64_t touched, touched_extents; /* what the values looked up through it depend on */
};

/* region: NULL for a scope of the parent's graph. NULL after a report when nested too deeply. */
qn_onnx_scope *qn_onnx_scope_new(qn_onnx_node *n, qn_graph *region);
qn_onnx_value *qn_onnx_scope_find(qn_onnx_scope *scope, const char *name); /* NULL when there is none */
/* The input of the scope's region that stands for a value of its parent's graph. */
qn_value *qn_onnx_scope_capture(qn_onnx_scope *scope, qn_value *outer);
/* What the node's body looked up, its outputs depend on. */
static inline void qn_onnx_touched(qn_onnx_node *n, const qn_onnx_scope *scope)
{
    n->depends |= scope->touched;
    n->extents |= scope->touched_extents;
}
/* False after a report when the name is taken. */
bool qn_onnx_scope_define(qn_onnx_scope *scope, const char *name, qn_onnx_value *value, const qn_loc *loc);
/* The nodes of a graph or a function, in the order of their import, and the names that it gives. */
typedef struct qn_onnx_nodes {
    size_t n;
    Onnx__Node *const *nodes;
    const size_t *order; /* NULL: as they stand */
    size_t n_outputs;
    const char *const *outputs;
} qn_onnx_nodes;

/* Node i; NULL at *out_choice, or the one that its outputs are in, undefined so far. False when something was reported. */
bool qn_onnx_import_one(qn_onnx_scope *scope, const qn_onnx_nodes *nodes, size_t i,
                        qn_onnx_choice **out_choice);
/* Initializers, then nodes; inputs are the caller's. False when something was reported. */
bool qn_onnx_scope_import(qn_onnx_scope *scope, const Onnx__Graph *graph);
/* The value of output i of a graph imported into the scope. NULL after a report. */
qn_onnx_value *qn_onnx_scope_output(qn_onnx_scope *scope, const Onnx__Graph *graph, int i, const qn_loc *loc);

/* ---- choice.c ---- */

/* An If of the sides, whose regions' results have these names: the node's outputs. */
void qn_onnx_open_choice(qn_onnx_node *n, qn_onnx_scope *const *sides, const char *const *const *names);
/* The scope ends with an open choice, which the node's outputs are in under these names. */
void qn_onnx_hand_over(qn_onnx_node *n, qn_onnx_scope *scope, const char *const *names);
/* The branch that an import before this one has found to be the only one that fits what is behind the node; -1: it has found none. */
int qn_onnx_decided(const qn_onnx_node *n);
/* Imports node i, into both sides of an open choice where it reads what is in these. */
bool qn_onnx_step(qn_onnx_scope *scope, const qn_onnx_nodes *nodes, size_t i);
/* Behind the last node: closes the open choice, or reports that it can't be. */
bool qn_onnx_finish_choice(qn_onnx_scope *scope, const qn_onnx_nodes *nodes);

/* Keeps messages and what was missed to itself, from begin to end. */
typedef struct qn_onnx_trial {
    qn_diags mine, *diags;
    uint64_t needs, needs_shapes;
    size_t n_needs_dims;
} qn_onnx_trial;

qn_onnx_trial *qn_onnx_trial_begin(qn_onnx_import *im);
qn_status qn_onnx_trial_end(qn_onnx_import *im, qn_onnx_trial *trial); /* of the first message */

#endif
