/* Convolution in channel blocks whose result leaves them: what follows the sums is computed plane by plane.
 *
 * A result that lies in blocks and is then turned goes through memory once more, which takes as long as many a convolution. A tile's sums
 * are turned in registers instead, and put into local memory with a channel's positions side by side:
 *
 *   tile, vector by vector:   sums[position] of 16 channels   ->   local[channel][position]
 *   for each vector, for each of its channels, vectorized for each position: the group's outputs, in the order of the group
 *
 * A tile of several rows is as wide as the map, so that its positions are side by side in the result, too. */
#include <string.h>

#include "passes/arith.h"
#include "passes/conv_emit.h"

bool qn_conv_turns(const qn_node *node, const qn_pass_options *options)
{
    qn_conv_plan plan;
    if (!qn_conv_plan_make(node, options, &plan) || options->machine->tiles || plan.lanes < 4 ||
        plan.lanes > QN_TRANSPOSE_LANES)
        return false;
    /* fewer positions take as many shuffles, and are stored by pieces */
    const int64_t positions = plan.columns[0].size * (plan.n_rows > 0 ? plan.rows[0].size : 1);
    return 2 * positions >= plan.lanes;
}

int64_t qn_conv_turned_length(const qn_conv_emitter *e, int64_t positions)
{
    return ceil_div(positions, e->p.lanes) * e->p.lanes;
}

/* The sums of vector v, turned, to local memory. */
static void turn_vector(qn_conv_emitter *e, int64_t v)
{
    qn_kbuilder *b = &e->w.b;
    const int64_t lanes = e->p.lanes, positions = qn_conv_positions(e),
                  length = qn_conv_turned_length(e, positions);
    qn_kvalue *rows[QN_TRANSPOSE_LANES];
    for (int64_t first = 0; first < positions; first += lanes) {
        for (int64_t i = 0; i < lanes; i++) {
            const int64_t position =
                least(first + i, positions - 1); /* behind the last one: nobody reads it */
            rows[i] = e->sums[position * e->vectors + v];
        }
        qn_kb_transpose(b, (int)lanes, rows);
        for (int64_t i = 0; i < lanes; i++)
            qn_kb_store(b, e->local, qn_kb_index(b, (v * lanes + i) * length + first), rows[i], NULL);
    }
}

qn_kvalue *qn_conv_fetch_turned(qn_conv_emitter *e)
{
    qn_dims *dims = e->w.space.dims;
    const qn_dim extents[] = { qn_dim_const(dims, e->vectors), qn_dim_const(dims, e->p.lanes),
                               qn_dim_const(dims, qn_conv_turned_length(e, qn_conv_positions(e))) };
    const qn_dim at[] = { e->at_vector, e->at_lane, e->at_position };
    return qn_writer_load(&e->w, e->local, qn_ix_linear(&e->w.space, 3, extents, at));
}

/* Are channels one axis of the group, [N, C, …]? Else [N, blocks, channels of a block, …]. */
static bool has_plain_channels(const qn_conv_emitter *e)
{
    return e->group->n_dims == e->p.spatial + 2;
}

/* Index of the group's element at the place in the tile. */
static void element_index(qn_conv_emitter *e, qn_dim *out)
{
    qn_ispace *space = &e->w.space;
    qn_dims *dims = space->dims;
    const qn_dim width = qn_dim_const(dims, e->columns.size),
                 block = qn_dim_add(dims, e->block, e->at_vector);
    const qn_dim along[QN_CONV_AXES] = {
        e->depth, qn_dim_add(dims, e->row, qn_ix_div(space, e->at_position, width)),
        qn_dim_add(dims, e->column, qn_ix_mod(space, e->at_position, width))
    };
    int n = 0;
    out[n++] = e->sample;
    if (has_plain_channels(e)) {
        out[n++] = qn_dim_add(dims, qn_dim_mul(dims, block, qn_dim_const(dims, e->p.lanes)), e->at_lane);
    } else {
        out[n++] = block;
        out[n++] = e->at_lane;
    }
    for (int i = 0; i < e->p.spatial; i++)
        out[n++] = e->p.slot[i] < 0 ? qn_dim_const(dims, 0) : along[e->p.slot[i]];
}

/* Opens the loop over the vector's channels that there are. */
static qn_writer_loop open_lanes(qn_conv_emitter *e)
{
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    const qn_dim lanes = qn_dim_const(dims, e->p.lanes);
    int64_t channels;
    if (!has_plain_channels(e) || !qn_dim_known(e->group->dims[1], &channels) ||
        channels >= e->p.out_blocks * e->p.lanes)
        return qn_writer_for_all(w, e->at_lane, QN_TAG_SERIAL, 0, NULL, NULL);
    const qn_dim first = qn_dim_mul(dims, qn_dim_add(dims, e->block, e->at_vector), lanes),
                 rest = qn_dim_sub(dims, qn_dim_const(dims, channels), first);
    return qn_writer_for(w, e->at_lane, qn_kb_index(&w->b, 0),
                         qn_writer_index(w, qn_dim_min(dims, lanes, rest)), QN_TAG_SERIAL, 0, NULL, NULL);
}

void qn_conv_store_turned(qn_conv_emitter *e)
{
    qn_writer *w = &e->w;
    qn_dims *dims = w->space.dims;
    const qn_group *g = e->group;
    qn_dim index[QN_MAX_RANK], from[QN_MAX_RANK];
    qn_dim(*at)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)g->n_outputs, sizeof *at);
    qn_dim(*to)[QN_MAX_RANK] = qn_arena_calloc(w->arena, (size_t)g->n_outputs, sizeof *to);
    qn_kvalue **values = QN_NEW_ARRAY(w->arena, qn_kvalue *, g->n_outputs);
    for (int64_t v = 0; v < e->vectors; v++)
        turn_vector(e, v);
    e->at_vector = qn_ispace_var(&w->space, qn_dim_const(dims, e->vectors), false);
    e->at_lane = qn_ispace_var(&w->space, qn_dim_const(dims, e->p.lanes), false);
    e->at_position = qn_ispace_var(&w->space, qn_dim_const(dims, qn_conv_positions(e)), false);
    element_index(e, index);
    for (int i = 0; i < g->n_dims; i++)
        from[i] = qn_ispace_import(&w->space, g->dims[i]);
    for (int i = 0; i < g->n_outputs; i++) {
        qn_ispace_dims(&w->space, &g->outputs[i]->type, to[i]);
        qn_ix_reshape(&w->space, g->n_dims, from, index, g->outputs[i]->type.rank, to[i], at[i]);
    }
    qn_writer_loop vectors = qn_writer_for_all(w, e->at_vector, QN_TAG_SERIAL, 0, NULL, NULL);
    qn_writer_loop lanes = open_lanes(e);
    for (int i = 0; i < g->n_outputs; i++)
        qn_writer_prepare(w, g->outputs[i], at[i]);
    qn_writer_loop positions = qn_writer_for_all(w, e->at_position, QN_TAG_VECTOR, 0, NULL, NULL);
    for (int i = 0; i < g->n_outputs; i++)
        values[i] = qn_writer_value(w, g->outputs[i], at[i]);
    for (int i = 0; i < g->n_outputs; i++) {
        qn_kbuffer *y = qn_writer_argument(w, qn_lower_buffer(w->lowering, g->outputs[i]), false, true);
        qn_writer_store(w, y, qn_ix_linear(&w->space, g->outputs[i]->type.rank, to[i], at[i]), values[i]);
    }
    qn_writer_end_for(w, &positions, NULL);
    qn_writer_end_for(w, &lanes, NULL);
    qn_writer_end_for(w, &vectors, NULL);
}
