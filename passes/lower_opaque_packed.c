/* gather_packed: channels of blocks in other blocks.
 *
 *   for each block of the result { for each position { the blocks that it has channels of, shuffled into one vector } }
 *
 * Which lanes come from where differs from block to block, so that these are written out, one behind the other; a task has so few
 * positions that what several blocks of the result read stays in the first caches. */
#include "ir/narrow.h"
#include "passes/lower_opaque.h"

enum { MOST_LANES = 64 };

typedef struct gatherer {
    qn_opaque o;
    const int64_t *lanes;
    int c;
    qn_dim sample, position, positions; /* numbers, of all axes between blocks and lanes */
    qn_kbuffer *out;
} gatherer;

typedef struct channel {
    int operand;
    int64_t block;
    int lane;
} channel;

static channel channel_of(const gatherer *g, int64_t number)
{
    channel at = { 0, number, 0 };
    const qn_node *node = g->o.node;
    for (; at.block >= node->operands[at.operand]->type.dims[1]->value * g->c; at.operand++)
        at.block -= node->operands[at.operand]->type.dims[1]->value * g->c;
    at.lane = (int)(at.block % g->c);
    at.block /= g->c;
    return at;
}

/* Number of the first element of a block of a value, at the current position. */
static qn_dim vector_at(const gatherer *g, const qn_value *value, int64_t block)
{
    qn_dims *dims = g->o.w.space.dims;
    const qn_dim blocks = qn_dim_mul(dims, g->sample, qn_dim_const(dims, value->type.dims[1]->value));
    qn_dim at = qn_dim_mul(dims, qn_dim_add(dims, blocks, qn_dim_const(dims, block)), g->positions);
    return qn_dim_mul(dims, qn_dim_add(dims, at, g->position), qn_dim_const(dims, g->c));
}

static qn_kvalue *load_block(gatherer *g, const channel *from)
{
    qn_writer *w = &g->o.w;
    qn_value *x = g->o.node->operands[from->operand];
    qn_kbuffer *buffer = qn_writer_argument(w, qn_lower_buffer(g->o.l, x), true, false);
    qn_writer_note_load(w, buffer);
    return qn_kb_load(&w->b, buffer, qn_writer_index(w, vector_at(g, x, from->block)), g->c);
}

/* Block number `block` of the result: each other block that has lanes of it is read once. */
static qn_kvalue *gathered(gatherer *g, int64_t block)
{
    const int64_t *lanes = g->lanes + block * g->c;
    qn_kbuilder *b = &g->o.w.b;
    qn_kvalue *all = NULL;
    bool there[MOST_LANES] = { false };
    int mask[MOST_LANES];
    for (int i = 0; i < g->c; i++) {
        if (there[i] || lanes[i] < 0)
            continue;
        const channel from = channel_of(g, lanes[i]);
        for (int k = 0; k < g->c; k++) {
            const channel other = lanes[k] < 0 ? (channel){ -1, 0, 0 } : channel_of(g, lanes[k]);
            const bool here = other.operand == from.operand && other.block == from.block;
            mask[k] = here ? other.lane + (all ? g->c : 0) : k;
            there[k] |= here;
        }
        qn_kvalue *vector = load_block(g, &from);
        all = qn_kb_shuffle(b, all ? all : vector, vector, g->c, mask);
    }
    qn_kvalue *zero = qn_kb_const(b, (qn_ktype){ g->out->dtype, g->c }, (qn_scalar){ .i = 0 });
    for (int k = 0; k < g->c; k++)
        mask[k] = lanes[k] < 0 ? g->c + k : k;
    return all ? qn_kb_shuffle(b, all, zero, g->c, mask) : zero;
}

/* The same where blocks are no vectors, or an operand is in no memory: lane by lane. */
static void gather_lanes(gatherer *g, int64_t block)
{
    qn_writer *w = &g->o.w;
    qn_dims *dims = w->space.dims;
    const qn_node *node = g->o.node;
    const qn_type *type = &node->results[0].type;
    qn_dim index[QN_MAX_RANK], spatial[QN_MAX_RANK];
    qn_ispace_dims(&w->space, type, spatial);
    qn_ix_split(&w->space, g->position, type->rank - 3, spatial + 2, index + 2);
    index[0] = g->sample;
    for (int k = 0; k < g->c; k++) {
        const int64_t number = g->lanes[block * g->c + k];
        qn_kvalue *element = qn_kb_const(&w->b, (qn_ktype){ type->dtype, 1 }, (qn_scalar){ .i = 0 });
        if (number >= 0) {
            const channel from = channel_of(g, number);
            index[1] = qn_dim_const(dims, from.block);
            index[type->rank - 1] = qn_dim_const(dims, from.lane);
            element = qn_writer_value(w, node->operands[from.operand], index);
        }
        qn_writer_store(w, g->out,
                        qn_dim_add(dims, vector_at(g, &node->results[0], block), qn_dim_const(dims, k)),
                        element);
    }
}

static bool in_memory(const qn_group *group, const qn_value *value)
{
    for (int i = 0; i < group->n_inputs; i++)
        if (group->inputs[i] == value)
            return true;
    return false;
}

qn_status qn_lower_gather_packed(qn_lowering *l, const qn_group *group)
{
    enum { LEAST_GRAIN = 16 };
    const qn_type *type = &group->root->results[0].type;
    const int last = type->rank - 1;
    int n;
    gatherer g = { .lanes = qn_attr_ints(group->root, QN_ATTR_LANES, &n) };
    qn_opaque_begin(&g.o, l, group);
    qn_writer *w = &g.o.w;
    g.c = (int)type->dims[last]->value;
    g.out = qn_writer_argument(w, qn_lower_buffer(l, &group->root->results[0]), false, true);
    bool vectors = l->options->machine && !l->options->machine->gpu && g.c > 1 && g.c <= MOST_LANES &&
                   (g.c & (g.c - 1)) == 0 && !qn_narrow_of(type->dtype);
    for (int i = 0; i < group->root->n_operands; i++)
        vectors &= in_memory(group, group->root->operands[i]);
    qn_nest nest = { 0 };
    qn_loops loops;
    qn_dim one = qn_dim_const(l->program->dims, 1), places = one;
    for (int i = 2; i < last; i++)
        places = qn_dim_mul(l->program->dims, places, qn_lower_dim(l, type->dims[i]));
    g.positions = qn_ispace_import(&w->space, places);
    const qn_dim samples = qn_lower_dim(l, type->dims[0]);
    g.sample = g.position = qn_dim_const(w->space.dims, 0);
    if (!qn_dim_is(samples, 1))
        nest.dims[nest.n++] = samples;
    if (!qn_dim_is(places, 1))
        nest.dims[nest.n++] = places;
    const int64_t grain = QN_GRAIN / 4 / (n + 1);
    qn_loops_plan(w, &nest, grain < LEAST_GRAIN ? LEAST_GRAIN : grain, &loops);
    if (!qn_dim_is(places, 1))
        g.position = loops.index[nest.n - 1];
    if (!qn_dim_is(samples, 1))
        g.sample = loops.index[0];
    for (int64_t block = 0; block < n / g.c; block++) {
        qn_writer_loop open[QN_MAX_RANK];
        for (int i = 0; i < loops.n; i++)
            open[i] = qn_planned_loop_open(w, &loops.loops[i],
                                           i < loops.n - 1 || vectors ? QN_TAG_SERIAL : QN_TAG_VECTOR);
        if (vectors)
            qn_kb_store(&w->b, g.out, qn_writer_index(w, vector_at(&g, &group->root->results[0], block)),
                        gathered(&g, block), NULL);
        else
            gather_lanes(&g, block);
        qn_opaque_close(&g.o, &loops, open);
    }
    return qn_opaque_end(&g.o, loops.tasks);
}
