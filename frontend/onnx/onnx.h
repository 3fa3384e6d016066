/* ONNX -> module. Opsets 7 to 28 of the default domain, and local functions; what is not supported is reported at once,
 * node by node.
 *
 * The module has one function, "main", with the model's inputs (those that have no initializer) and outputs. Weights
 * are constants that point into the mapped file. A model's named dimensions are symbols of that name; an input
 * dimension without a name gets the symbol <input>_<axis>. Of a sequence, whose shapes the options give, each tensor is an input
 * or output of the function; module->groups says which. Thread-safe: each call has a module of its own. */
#ifndef QN_FRONTEND_ONNX_ONNX_H
#define QN_FRONTEND_ONNX_ONNX_H

#include <stdio.h>

#include "ir/graph.h"
#include "quern.h"

/* The range of a dimension that the options do not bound. It begins later where extents computed from it would be negative. */
#define QN_ONNX_DIM_MIN 0
#define QN_ONNX_DIM_MAX INT32_MAX

/* Contents of a graph input that are known at compile time: shapes, axes, trip counts. The input stays in the
 * signature, but its value is not read. */
typedef struct qn_onnx_constant {
    const char *name;
    quern_array array; /* copied */
} qn_onnx_constant;

/* Graph inputs whose contents an operator had to know and did not: load again with their values as constants. And dimensions
 * of inputs whose values one had to know: load again with them fixed. */
typedef struct qn_onnx_needs {
    int n;
    const char **names; /* in the arena of the diagnostics */
    const int *indices; /* among the inputs of the module's function */
    int n_dims;
    const char **dims, **dim_names; /* what they are called, and the inputs that have them */
    const int *dim_inputs, *dim_axes;
    int n_shapes; /* inputs without a shape, sequences, optionals: load again with their shapes */
    const char **shape_names;
    const int *shape_indices;
} qn_onnx_needs;

typedef struct qn_onnx_options {
    int n_dims;
    const quern_dim_range *dims; /* by symbol name; equal bounds fix the dimension */
    int n_constants;
    const qn_onnx_constant *constants;
    int n_shapes;
    const quern_shape *shapes;
    uint64_t seed;        /* of random operators without a seed of their own */
    qn_onnx_needs *needs; /* out, or NULL */
    bool
        every_dim; /* on an error, needs has all dimensions of inputs that aren't fixed, whether an operator asked or not */
    /* What differentiates for the operator Gradient: qn_gradient_at of passes/autodiff.h; NULL: the operator is not supported. */
    qn_status (*gradient)(qn_graph *graph, qn_value *y, int n, qn_value *const *from, qn_value *const *at,
                          int n_wrt, qn_value **out_gradients, qn_diags *diags);
    /* What evaluates a node of constants: qn_interp_fold of backends/backend.h; NULL: contents that operators have to know may come
     * only from arithmetic and data movement. */
    const qn_tensor *(*fold)(const qn_node *node, void *folder);
} qn_onnx_options;

/* options may be NULL. The module owns the mapped files; free it with qn_module_free. On an error *out is NULL and diags
 * say why: QUERN_ERROR_IO, QUERN_ERROR_MODEL (malformed) or QUERN_ERROR_UNSUPPORTED. */
QN_MUST_USE qn_status qn_onnx_load(const char *path, const qn_onnx_options *options, qn_module **out,
                                   qn_diags *diags);
/* `data` must live as long as the module: weights point into it. `name` stands for the file in messages; external
 * data is refused. */
QN_MUST_USE qn_status qn_onnx_load_bytes(const void *data, size_t size, const char *name,
                                         const qn_onnx_options *options, qn_module **out, qn_diags *diags);

/* ---- write.c ---- */

typedef struct qn_onnx_replacement {
    const char *name; /* of an initializer */
    qn_dtype dtype;   /* the initializer's; or f32 where that is f16 or bf16: it is rounded */
    const void *data; /* as many elements as it has */
    size_t bytes;
    bool optional; /* the file need not have it */
    bool used;     /* out */
} qn_onnx_replacement;

/* Writes the model of the file `from` to `model` with these contents of initializers; the rest stays to the byte. External data,
 * also of initializers that stay, goes to `data`, which the new model knows as `data_name`; *out_has_data tells whether there is
 * some. Errors of writing show in ferror. */
QN_MUST_USE qn_status qn_onnx_rewrite(const char *from, int n, qn_onnx_replacement *replacements, FILE *model,
                                      FILE *data, const char *data_name, bool *out_has_data, qn_diags *diags);

#endif
