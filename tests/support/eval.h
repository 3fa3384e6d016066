/* Arrays as literals and single nodes run by the reference interpreter, for tests. All memory is freed by eval_reset. */
#ifndef QN_TESTS_EVAL_H
#define QN_TESTS_EVAL_H

#include "backends/backend.h"

/* Dims and values for the functions below: SHAPE(2, 3), SCALAR, V(1, 2, 3), EMPTY. */
#define SHAPE(...)                                                                 \
    (int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), (const int64_t[]) \
    {                                                                              \
        __VA_ARGS__                                                                \
    }
#define SCALAR 0, NULL
#define V(...)       \
    (const double[]) \
    {                \
        __VA_ARGS__  \
    }
#define I(...)        \
    (const int64_t[]) \
    {                 \
        __VA_ARGS__   \
    }
#define EMPTY NULL

/* An array of these values, rounded or wrapped to dtype; ints() takes 64-bit integers exactly. */
qn_array floats(qn_dtype dtype, int rank, const int64_t *dims, const double *values);
qn_array ints(qn_dtype dtype, int rank, const int64_t *dims, const int64_t *values);
qn_array full(qn_dtype dtype, int rank, const int64_t *dims, double value);
/* Numbers that look random, between -4 and 4 (integers: of that range). */
qn_array noise(qn_dtype dtype, int rank, const int64_t *dims, uint64_t seed);
double at(const qn_array *a, int64_t index); /* an element, by its row-major number */

/* Attributes. Lists of numbers do for DIMS too. */
#define INT(key_, value) { .key = QN_ATTR_##key_, .i = (value) }
#define REAL(key_, value) { .key = QN_ATTR_##key_, .f = (value) }
#define LIST(key_, ...)                                                                          \
    {                                                                                            \
        .key = QN_ATTR_##key_, .n = (int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), \
        .ints = (const int64_t[])                                                                \
        {                                                                                        \
            __VA_ARGS__                                                                          \
        }                                                                                        \
    }
#define NO_LIST(key_) { .key = QN_ATTR_##key_, .n = 0 }

/* Runs one node on these operands; NULL when that failed: then eval_error says why and eval_status what. */
typedef struct call {
    qn_op op;
    int n_operands;
    qn_array operands[6];
    int n_attrs;
    qn_attr attrs[10];
} call;
const qn_array *eval(const call *c);
const char *eval_error(void);
qn_status eval_status(void);
void eval_reset(void);
int eval_teardown(void **state); /* the same, for cmocka */

/* A module to build graphs in by hand, and their diagnostics; freed by eval_reset. */
qn_module *eval_module(void);
qn_diags *eval_diags(void);
/* Runs a graph of it; NULL when that failed. */
const qn_array *eval_graph(const qn_graph *graph, const qn_array *inputs);
/* Parses a module and runs its first function on these inputs; NULL when that failed. */
const qn_array *eval_text(const char *text, const qn_array *inputs);
/* A node with these attributes (as in `call`) at the end of the graph; fails the test when it is wrong. */
qn_node *add_node(qn_graph *graph, qn_op op, int n_operands, qn_value *const *operands, int n_attrs,
                  const qn_attr *attrs, int n_regions, qn_graph *const *regions);

/* Same dtype, dims and bits, all NaN alike; else fails the test, naming `what` and the first difference. */
void expect_same(const char *what, const qn_array *found, const qn_array *expected);
/* Rows of calls that are to give just this. */
typedef struct row {
    const char *what;
    call call;
    qn_array expected;
} row;
void check_rows(const row *rows, size_t n);
#define CHECK(rows) check_rows(rows, sizeof(rows) / sizeof *(rows))
/* |found - expected| <= tolerance * max(1, |expected|), element by element. */
void expect_near(const char *what, const qn_array *found, const qn_array *expected, double tolerance);

#endif
