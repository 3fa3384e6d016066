/* What the templates for GPUs share (passes/gpu_gemm.c has the code): which groups they take, and where an element of a
 * product's side lies. */
#ifndef QN_PASSES_GPU_H
#define QN_PASSES_GPU_H

#include "passes/lower.h"

/* A contraction of floats that are summed in float32, with nothing in it that checks an index: other threads would wait. */
bool qn_gpu_takes(const qn_group *group, const qn_pass_options *options);

/* Of a side of dot_general: the element at an index of its batch axes, number `free` of its free axes and `k` of its contracted
 * ones. Neighbours in memory lie along k, or along the free axes, or neither. */
typedef struct qn_gpu_element {
    qn_dim linear, line; /* line: the last axis */
    bool along_k, along_free;
} qn_gpu_element;
qn_gpu_element qn_gpu_element_of(qn_ispace *space, const qn_node *dot, int side, const qn_dim *batch_index,
                                 qn_dim free, qn_dim k);
/* Elements of these axes, in the space. */
qn_dim qn_gpu_extent(qn_ispace *space, const qn_type *type, int n, const int64_t *axes);
/* How many these most likely are. */
double qn_gpu_likely(const qn_type *type, int n, const int64_t *axes);

#endif
