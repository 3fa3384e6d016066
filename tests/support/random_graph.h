/* Random valid graphs, for comparing passes and backends with the interpreter. The same seed gives the same graph. */
#ifndef QN_TESTS_RANDOM_GRAPH_H
#define QN_TESTS_RANDOM_GRAPH_H

#include "backends/backend.h"

/* What the graph may contain, beside element-wise and movement ops on f32. */
enum {
    QN_RANDOM_INTS = 1,       /* integers and bools, and what mixes them with floats */
    QN_RANDOM_NARROW = 2,     /* f16, bf16 and f64 */
    QN_RANDOM_SYMBOLS = 4,    /* symbolic dims */
    QN_RANDOM_REDUCE = 8,     /* reductions, windows, cumulative */
    QN_RANDOM_CONTRACT = 16,  /* dot_general, convolution */
    QN_RANDOM_INDEX = 32,     /* gather, scatter, dynamic slices; without SMOOTH also sort and top_k */
    QN_RANDOM_COMPOSITE = 64, /* softmax, norms, attention, … */
    QN_RANDOM_CONTROL = 128,  /* if, while, scan, call */
    QN_RANDOM_BITS = 256,     /* random_bits */
    QN_RANDOM_ALL = 511,
    /* Only what is differentiable wherever the inputs may lie, and one output: the f32 scalar "loss". The inputs whose
     * gradient makes sense are the floats. Excludes INTS and BITS. */
    QN_RANDOM_SMOOTH = 512,
    QN_RANDOM_DOUBLE = 1024 /* every float is f64, also the loss: for comparing with finite differences */
};

/* A module whose function @main has about n_nodes nodes (unused ones among them). It passes qn_verify. Every symbol is
 * the dim of some input.
 *
 * Numbers stay tame: floats between about 1e-3 and 100, no NaN or infinity where inputs have none. Ops that jump (floor,
 * compare, sort, conversion to integers, …) are only applied to values that every correct backend computes to the bit:
 * so two backends that agree on each op within its error bound agree on the whole graph within a modest one. */
qn_module *qn_graph_random(uint64_t seed, int flags, int n_nodes);

/* A value for each symbol of the module, within its range: small numbers. */
int64_t *qn_random_symbols(const qn_module *module, uint64_t seed, qn_arena *arena);

/* Inputs of a function for these symbol values: floats between -2 and 2 (multiples of 1/16, so that every float type has
 * them), integers between -8 and 8, key-like u64 anything. */
qn_array *qn_random_inputs(const qn_graph *function, uint64_t seed, const int64_t *symbols, qn_arena *arena);

#endif
