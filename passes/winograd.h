/* Convolutions by Winograd's F(2, 3) and F(4, 3): when they are worth it and how their kernel goes over tiles, planned in
 * winograd_plan.c, emitted by winograd.c. */
#ifndef QN_PASSES_WINOGRAD_H
#define QN_PASSES_WINOGRAD_H

#include "passes/conv.h"

typedef struct qn_winograd_axis {
    int64_t in, out, low; /* of an extent that is a symbol in and out are what is likely */
    int64_t tiles;        /* of t - 2 positions of the result each; the last may reach beyond it */
} qn_winograd_axis;

typedef struct qn_winograd_plan {
    char site[QN_SITE_SIZE]; /* of its schedule; "" while plans are compared */
    qn_dtype dtype;
    int t;                    /* a tile reads t x t elements */
    int vectors;              /* blocks of output channels in a panel */
    int64_t lanes;            /* channels of a block: a vector */
    int64_t channels, blocks; /* that take part; blocks of x */
    int64_t panels;           /* of output channels */
    qn_winograd_axis axes[2]; /* height, width */
    int64_t tiles;            /* of a sample, row by row */
    int64_t piece;            /* tiles whose sums a register tile holds; from piece `n_tall` on one less */
    int64_t n_tall, n_pieces; /* of a sample */
    int64_t pieces_per_group; /* a task has one group of tiles */
    int64_t groups;           /* of a sample */
    int64_t panels_per_task;  /* and some panels */
    bool
        symbolic; /* of extents that are symbols: the kernel counts tiles, pieces and groups; all pieces are as large */
    bool shared; /* inputs are transformed by a kernel of their own, for all panels; otherwise by each task */
    bool streams;           /* filters are too many to stay in the L2 cache */
    int64_t v_row, v_plane; /* elements of a tile's channels in transformed inputs; of a group's tiles */
    int64_t m_plane;        /* elements of a group's sums for one panel at one of t * t places */
    int64_t
        tiles_per_transform; /* of a task of the kernel that transforms inputs: one of `transforms` of a group */
    int64_t transforms;
} qn_winograd_plan;

/* False: there is no kernel for the node, which is a conv_winograd. */
bool qn_winograd_plan_make(const qn_node *node, const qn_pass_options *options, qn_winograd_plan *out);

/* Says with what schedule the node's kernels are made. */
void qn_winograd_plan_note(const qn_winograd_plan *plan, const qn_node *node, const qn_pass_options *options);

/* Is a kernel of this sort faster than the plan's, or, for `pairs`, than the same one of bf16? Which t, and how wide its panels
 * are. */
bool qn_winograd_wins(const qn_conv_plan *direct, bool pairs, const qn_pass_options *options, int *out_t,
                      int64_t *out_width);

/* The same of a convolution in blocks whose extents are symbols, of x that is not padded yet. */
bool qn_winograd_wins_over_symbols(const qn_node *direct, int64_t channels, const qn_pass_options *options,
                                   int *out_t, int64_t *out_width);

#endif
