/* What the files of the layout pass share: a graph on its way into channel blocks.
 *
 *   layout.c           the pass: values in order; ops that stay in blocks as they are
 *   layout_forms.c     the two forms of a value, plain and in blocks
 *   layout_channels.c  channels that are cut, joined and shuffled
 *   layout_groups.c    norms of groups of channels
 *   layout_conv.c      convolutions
 */
#ifndef QN_PASSES_LAYOUT_H
#define QN_PASSES_LAYOUT_H

#include "ir/build.h"
#include "passes/pass.h"

/* A channel of a value in blocks. */
typedef struct qn_layout_channel {
    qn_value *blocked;
    int64_t number;
} qn_layout_channel;

/* Where a value is. */
typedef struct qn_layout_place {
    bool native;                       /* it is computed in blocks */
    qn_value *blocked;                 /* NULL: none yet */
    const qn_layout_channel *channels; /* not NULL: what it is in blocks once somebody asks */
    int64_t lanes;                     /* then: of a block */
    qn_value *plain;                   /* NULL: none yet; the original unless it is native */
    bool normalized; /* rows, all axes behind the second one, are reduced, of this or of what is made of it */
    const qn_type *as; /* not NULL: it is [N, groups, …], and blocked its reshape to this type, [N, C, …] */
} qn_layout_place;

typedef struct qn_layout_converted {
    qn_value *from, *to;
} qn_layout_converted;

typedef struct qn_layout {
    qn_graph *graph;
    const qn_pass_options *options;
    qn_builder b;            /* before the node that is looked at */
    qn_layout_place *places; /* by id of the original values */
    bool *wanted;            /* likewise: somebody reads it in blocks */
    qn_value **
        shuffled; /* likewise: whose channels it has in another order, or it is a step on the way there; or NULL */
    bool bytes_by_unit; /* convolutions of bytes are a matrix unit's */
    qn_arena *scratch;
    qn_vec(qn_layout_converted) converted;
    bool changed;
} qn_layout;

static inline qn_dim qn_layout_dim(const qn_layout *l, int64_t value)
{
    return qn_dim_const(qn_b_dims(&l->b), value);
}

/* ---- layout.c ---- */

/* The node's op on other operands; a list attribute gets one more entry, of the lanes' axis. */
qn_value *qn_layout_rebuild(qn_layout *l, const qn_node *node, qn_value *const *operands);

/* ---- layout_forms.c ---- */

/* Dims of a value of that type in blocks of c channels. */
void qn_layout_blocked_dims(const qn_layout *l, const qn_type *type, int64_t c, qn_dim *out);
/* Axis `axis` padded with zeros to a multiple of c and split in two: [blocks, c]. */
qn_value *qn_layout_split_axis(qn_layout *l, qn_value *x, int axis, int64_t c);
/* x, which is in blocks, as a value of that type. */
qn_value *qn_layout_from_blocks(qn_layout *l, qn_value *x, const qn_type *type);

/* How many channels a block of it has; 0 when it isn't computed in blocks. */
int64_t qn_layout_lanes(const qn_layout *l, const qn_value *value);
/* The channels of all operands that are computed in blocks, which must agree. 0: none is, or some differ. */
int64_t qn_layout_common_lanes(const qn_layout *l, const qn_node *node);
/* What is computed in blocks. */
qn_value *qn_layout_in_blocks(qn_layout *l, const qn_value *value);
/* Any value as it was; in blocks of c channels. */
qn_value *qn_layout_plain(qn_layout *l, qn_value *value);
qn_value *qn_layout_blocked(qn_layout *l, qn_value *value, int64_t c);
/* Says what a value has become. */
void qn_layout_set_blocked(qn_layout *l, const qn_value *value, qn_value *blocked);
void qn_layout_set_plain(qn_layout *l, const qn_value *value, qn_value *plain);

/* ---- layout_channels.c ---- */

/* Finds the shuffles, and what is read in blocks if it is there. */
void qn_layout_find_wanted(qn_layout *l);
/* The channels of values in blocks as the blocks of one. */
qn_value *qn_layout_gather_channels(qn_layout *l, const qn_layout_channel *channels, int64_t n, int64_t c);
/* False, as of those below: the node stays as it is. */
bool qn_layout_slice(qn_layout *l, const qn_node *node);
bool qn_layout_concatenate(qn_layout *l, const qn_node *node);
bool qn_layout_shuffle(qn_layout *l, const qn_node *node);
bool qn_layout_convert_channels(qn_layout *l, const qn_node *node);

/* ---- layout_groups.c ---- */

/* Notes which reshapes begin a norm. */
void qn_layout_find_norms(qn_layout *l);
/* The type of [N, C, spatial…] whose blocks an operand is in that is [N, groups, …]; else NULL. */
const qn_type *qn_layout_grouped(const qn_layout *l, const qn_node *node);
bool qn_layout_reshape(qn_layout *l, const qn_node *node);
bool qn_layout_grouped_elementwise(qn_layout *l, const qn_node *node, const qn_type *as);
bool qn_layout_grouped_reduce(qn_layout *l, const qn_node *node, const qn_type *as);

/* ---- layout_conv.c ---- */

/* Whether each convolution has enough channels for the blocks that a matrix unit wants of bytes, but those that read the planes of a
 * few channels: of one with groups, or of a few channels more, blocks are those of a vector. */
bool qn_layout_all_fill_blocks(const qn_graph *graph, const qn_pass_options *options);
bool qn_layout_convolution(qn_layout *l, qn_node *node);

#endif
