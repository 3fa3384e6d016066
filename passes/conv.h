/* The geometry of a convolution in channel blocks and how its kernel goes over it: planned in conv_plan.c, emitted by conv.c (conv_emit.h). */
#ifndef QN_PASSES_CONV_H
#define QN_PASSES_CONV_H

#include "passes/schedule.h"

enum {
    QN_CONV_AXES = 3,   /* depth, height, width; what there is less of is 1 */
    QN_CONV_RUNS = 8,   /* runs of tiles along an axis */
    QN_CONV_TILE = 32,  /* sums that a tile keeps in registers */
    QN_CONV_WIDTH = 16, /* of a kernel whose columns are unrolled */
    QN_CONV_AHEAD = 64, /* steps of K before which weights are asked for */
};

typedef struct qn_conv_axis {
    int64_t in, out, kernel, stride, low, dilation;
} qn_conv_axis;

/* `n` tiles of `size` positions each, from `start` on, side by side, that all meet the border in the same way. */
typedef struct qn_conv_run {
    int64_t start, n, size;
} qn_conv_run;

/* Positions [first, last) of a tile. */
typedef struct qn_conv_span {
    int64_t first, last;
} qn_conv_span;

typedef struct qn_conv_plan {
    const qn_node *node;
    char site[QN_SITE_SIZE]; /* of its schedule */
    qn_dtype dtype;          /* of the sums */
    int64_t word;     /* elements of x and w that are multiplied at a time (words.h); 1: they are numbers */
    bool inside;      /* groups lie inside of blocks: each lane takes its group's channels */
    bool across;      /* likewise, but groups are larger, so that an output block is of two at most */
    int64_t lanes;    /* channels of an output block: a vector */
    int64_t c;        /* channels of an input block, in words */
    int64_t channels; /* of a group, that take part; likewise */
    int64_t blocks, out_blocks, groups; /* blocks: of x, all groups */
    int64_t out_channels;               /* of all, or of a group across blocks; 0: it isn't said */
    int64_t of_group;                   /* output channels of a group of that sort */
    int64_t reach; /* channels of x that an output block reads where groups lie inside of blocks */
    int64_t w_c,
        w_channels;  /* channels of a block of w, c or less; that an output block has weights for. In words */
    bool by_channel; /* all of a kernel for one channel, then for the next: the order of a strict sum */
    qn_conv_axis axes[QN_CONV_AXES];
    int spatial;            /* how many the node has */
    int slot[QN_CONV_AXES]; /* which of `axes` spatial axis i of the node is; -1: none, its extent is 1 */
    int vectors;            /* of a tile: output blocks side by side */
    int64_t
        parts; /* of the sums of the last output block, side by side, since it has few channels; 1: it has many */
    int n_columns, n_rows;
    qn_conv_run columns[QN_CONV_RUNS]; /* of tiles along the width */
    qn_conv_run rows[QN_CONV_RUNS];    /* and the height, for tiles of several rows; otherwise none */
    int64_t panels; /* of `vectors` output blocks; the last may have less, and with parts it is one alone */
    int64_t panels_per_task;
    bool
        lines_first; /* neighbouring tasks have the same lines, and then the same panels; otherwise the reverse */
    int64_t lines,
        lines_per_task; /* rows of output (of all depths) that tasks share; with n_rows > 0 one per depth */
} qn_conv_plan;

/* False: there is no kernel of this sort for the node, a conv_packed. */
bool qn_conv_plan_make(const qn_node *node, const qn_pass_options *options, qn_conv_plan *out);

/* The plan of a convolution of float32 and one group once it is in blocks; of few channels in one block. False: none. */
bool qn_conv_plan_foresee(const qn_node *node, const qn_pass_options *options, qn_conv_plan *out);

/* Elements that a conv_packed multiplies at a time: 1 of f32 or f64, else those of a word (words.h). 0: there is no kernel for its
 * dtypes. */
int64_t qn_conv_word(const qn_node *node);

/* Are the spatial extents of a convolution and of its result known? */
bool qn_conv_has_extents(const qn_node *node);

int64_t qn_conv_common_divisor(int64_t a, int64_t b);

/* Says with what schedule the node's kernel is made. */
void qn_conv_plan_note(const qn_conv_plan *plan, const qn_pass_options *options);

/* The most positions of a tile of that many vectors: their sums and what is multiplied are in registers, where the machine
 * multiplies by lanes a vector of x for each position. */
int64_t qn_conv_tile_positions(const qn_machine *machine, int64_t vectors);

/* Positions of the tile from `start` on that read inside of x at kernel offset k. */
qn_conv_span qn_conv_valid(const qn_conv_axis *axis, int64_t start, int64_t size, int64_t k);

/* A panel's weights are asked for before they are multiplied: those that don't stay in the L1 cache come from beyond it for each
 * tile again, for the first one often from memory, and the machine's own prefetchers follow them too late. */
bool qn_conv_asks_for_weights(const qn_machine *machine, int64_t panel_words);

/* Output blocks whose sums are not in parts. */
int64_t qn_conv_whole_blocks(const qn_conv_plan *plan);

/* Multiplications and additions for a sample, those with padding among them. */
double qn_conv_flops(const qn_conv_plan *plan);

#endif
