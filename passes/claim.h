/* Templates: kernels written for one kind of group. The generic lowering does what no template claims. */
#ifndef QN_PASSES_CLAIM_H
#define QN_PASSES_CLAIM_H

#include "passes/pass.h"

typedef struct qn_lowering qn_lowering;

typedef struct qn_template {
    const char *name; /* "gemm" */
    /* Would it take this composite? Then expand leaves the node as it is. NULL: it takes none. */
    bool (*keeps)(const qn_node *node, const qn_pass_options *options);
    /* Has it a kernel for the whole group? */
    bool (*matches)(const qn_group *group, const qn_pass_options *options);
    /* Adds the group's kernels and steps (passes/lower.h). */
    qn_status (*lower)(qn_lowering *lowering, const qn_group *group);
} qn_template;

/* passes/blas.c: does the template for calls of a library have it, by itself? */
bool qn_blas_takes(const qn_node *node, const qn_pass_options *options);

/* passes/gemm.c: would its kernel pack the right side of this matmul_packed itself, if that is data movement that goes along
 * the rows of what it moves? Then it reads each element once, and no panels go through memory. */
bool qn_gemm_packs(const qn_node *node, const qn_pass_options *options);

/* passes/gemm.c: has it a kernel for this dot_general as it is, with a right side that lies row by row? */
bool qn_gemm_reads_rows(const qn_node *node, const qn_pass_options *options);

/* passes/gemm.c: has it a kernel for this product with panels of four bits? */
bool qn_gemm_takes_nibbles(const qn_node *node, const qn_pass_options *options);

/* passes/conv_turned.c: has it a kernel for this conv_packed that stores channels as planes? */
bool qn_conv_turns(const qn_node *node, const qn_pass_options *options);

/* In the order they are asked; ends with NULL. */
extern const qn_template *const qn_templates[];

bool qn_template_keeps(const qn_node *node, const qn_pass_options *options);
const qn_template *qn_template_for(const qn_group *group, const qn_pass_options *options); /* NULL: none */

#endif
