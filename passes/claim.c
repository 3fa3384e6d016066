/* The list of kernel templates. */
#include "passes/claim.h"

extern const qn_template qn_template_blas;           /* passes/blas.c */
extern const qn_template qn_template_gpu_attention;  /* passes/gpu_attention.c */
extern const qn_template qn_template_gpu_gemm;       /* passes/gpu_gemm.c */
extern const qn_template qn_template_gpu_gemv;       /* passes/gpu_gemv.c */
extern const qn_template qn_template_gemm_tile;      /* passes/gemm_tile.c */
extern const qn_template qn_template_gemm_narrow;    /* passes/gemm_narrow.c */
extern const qn_template qn_template_conv_tile;      /* passes/conv_tile.c */
extern const qn_template qn_template_gemv;           /* passes/gemv.c */
extern const qn_template qn_template_gemm;           /* passes/gemm.c */
extern const qn_template qn_template_conv;           /* passes/conv.c */
extern const qn_template qn_template_conv_symbolic;  /* passes/conv_symbolic.c */
extern const qn_template qn_template_winograd;       /* passes/winograd.c */
extern const qn_template qn_template_attention;      /* passes/attention.c */
extern const qn_template qn_template_attention_grad; /* passes/attention_grad.c */
extern const qn_template qn_template_windows;        /* passes/windows.c */

/* clang-format off */
const qn_template *const qn_templates[] = {
    &qn_template_blas,
    &qn_template_gpu_attention,
    &qn_template_gpu_gemm,
    &qn_template_gpu_gemv,
    &qn_template_gemm_tile,
    &qn_template_gemm_narrow,
    &qn_template_conv_tile,
    &qn_template_gemv,
    &qn_template_gemm,
    &qn_template_conv,
    &qn_template_conv_symbolic,
    &qn_template_winograd,
    &qn_template_attention,
    &qn_template_attention_grad,
    &qn_template_windows,
    NULL,
};
/* clang-format on */

bool qn_template_keeps(const qn_node *node, const qn_pass_options *options)
{
    for (const qn_template *const *t = qn_templates; *t; t++)
        if ((*t)->keeps && (*t)->keeps(node, options))
            return true;
    return false;
}

const qn_template *qn_template_for(const qn_group *group, const qn_pass_options *options)
{
    for (const qn_template *const *t = qn_templates; *t; t++)
        if ((*t)->matches(group, options))
            return *t;
    return NULL;
}
