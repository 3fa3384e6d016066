/* When Winograd convolution pays, and how its kernel goes over the tiles: see winograd.c for what a task does.
 *
 * Transformed inputs of a group of tiles (V), and for one panel of output channels the filters (U) and the sums (M), want to
 * stay in the L2 cache. Where maps are large and channels few, a task transforms the inputs of its own tiles (V and M are its
 * local memory) and goes over all panels. Where channels are many, this would be done again for every part of the panels, or
 * the filters would be read again for every few tiles: there a kernel of its own transforms all inputs first.
 *
 * What it costs is estimated in cycles of a core that does two multiply-adds and two loads a cycle. Tasks, and so what is
 * chosen, depend on shapes and the machine only. */
#include "passes/winograd.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "passes/arith.h"
#include "passes/conv.h"

enum {
    ROOM =
        232 *
        1024, /* of local memory for V and M; the rest of QN_LOCAL_LIMIT is for what is on the way to the result */
    PARTS = 8,        /* tasks that there should be, if there is enough to do */
    SMALLEST = 60000, /* cycles of a task */
};

static int64_t places(const qn_winograd_plan *p)
{
    return (int64_t)p->t * p->t;
}

/* n, or one more where steps of n times a power of two would meet in the same sets of the cache. */
static int64_t spread(int64_t n)
{
    return n % 8 == 0 ? n + 1 : n;
}

static int64_t group_tiles(const qn_winograd_plan *p)
{
    const int64_t all = p->pieces_per_group * p->piece;
    return p->symbolic ? all : least(all, p->tiles);
}

static void set_strides(qn_winograd_plan *p)
{
    p->v_row = ceil_div(p->channels, p->lanes) * p->lanes;
    if (p->v_row / p->lanes % 2 == 0)
        p->v_row += p->lanes;
    p->v_plane = spread(group_tiles(p)) * p->v_row;
    p->m_plane = spread(group_tiles(p)) * p->vectors * p->lanes;
}

static int64_t local_bytes(const qn_winograd_plan *p)
{
    return places(p) * ((p->shared ? 0 : p->v_plane) + p->m_plane) * (int64_t)qn_dtype_bytes(p->dtype);
}

/* ---- cycles ---- */

static double transform_input(const qn_winograd_plan *p)
{
    return p->t == 6 ? 120 : 50; /* a tile of one block */
}

static double transform_result(const qn_winograd_plan *p)
{
    return p->t == 6 ? 130 : 60;
}

/* Products and sums of one tile with one panel. */
static double multiply(const qn_winograd_plan *p)
{
    const double step = (double)p->piece * p->vectors / 2, loads = (double)(p->piece + p->vectors) / 2;
    const double cycles = step > loads ? step : loads;
    return (double)(places(p) * p->channels) * (cycles > 4 ? cycles : 4) * 1.12 / (double)p->piece;
}

/* What is not in the L2 cache comes at about so many bytes a cycle. */
static double stream(double bytes)
{
    return bytes / 4.5;
}

static double filter_bytes(const qn_winograd_plan *p)
{
    return (double)(places(p) * p->channels * p->panels * p->vectors * p->lanes) *
           (double)qn_dtype_bytes(p->dtype);
}

/* Products of all panels. The filters of one come, while the first group of tiles that meets them is computed, from beyond the
 * L2 cache: always, or for every group again when those of a task are too many. */
static double products_cost(const qn_winograd_plan *p, const qn_machine *machine)
{
    const double panels = (double)p->panels, groups = (double)p->groups,
                 panel_bytes = filter_bytes(p) / panels;
    const double fetch = stream(panel_bytes), group = (double)p->tiles / groups * multiply(p);
    const double fetching = fetch > group ? fetch : group;
    const bool again = panel_bytes * (double)p->panels_per_task > 0.5 * (double)machine->l2_bytes;
    if (!p->streams)
        return panels * (groups * group) + fetch * panels;
    return panels * (again ? groups * fetching : fetching + (groups - 1) * group);
}

static double cost(const qn_winograd_plan *p, const qn_machine *machine)
{
    const double tiles = (double)p->tiles, k_blocks = (double)ceil_div(p->channels, p->lanes);
    const double parts = p->shared ? 1 : (double)ceil_div(p->panels, p->panels_per_task);
    const double v_bytes = tiles * (double)(places(p) * p->v_row) * (double)qn_dtype_bytes(p->dtype);
    double cycles = products_cost(p, machine);
    cycles += tiles * k_blocks * transform_input(p) * parts;
    cycles += tiles * (double)(p->panels * p->vectors) * transform_result(p);
    if (p->shared)
        cycles += 4000 + stream(v_bytes);
    return cycles;
}

static double direct_cost(const qn_conv_plan *d)
{
    double steps = (double)(d->channels * d->out_blocks);
    for (int i = 0; i < QN_CONV_AXES; i++)
        steps *= (double)(d->axes[i].kernel * d->axes[i].out);
    const double weights = (double)(d->channels * d->axes[1].kernel * d->axes[2].kernel * d->out_blocks *
                                    d->lanes * (int64_t)qn_dtype_bytes(d->dtype));
    return steps / 2 * 1.1 > stream(weights) ? steps / 2 * 1.1 : stream(weights);
}

/* ---- tiles, groups, tasks ---- */

/* Tiles in pieces of nearly equal size, all of whose sums fit in registers. */
static bool choose_pieces(qn_winograd_plan *p, const qn_machine *machine)
{
    const int64_t largest = qn_conv_tile_positions(machine, p->vectors);
    if (largest < 1)
        return false;
    p->n_pieces = ceil_div(p->tiles, least(largest, p->tiles));
    p->piece = p->symbolic ? largest : ceil_div(p->tiles, p->n_pieces);
    p->n_tall = p->tiles - p->n_pieces * (p->piece - 1);
    return true;
}

static void set_group(qn_winograd_plan *p, int64_t pieces)
{
    p->groups = ceil_div(p->n_pieces, pieces);
    p->pieces_per_group = ceil_div(p->n_pieces, p->groups);
    p->groups = ceil_div(p->n_pieces, p->pieces_per_group);
    set_strides(p);
}

/* Fills in groups and tasks; false when local memory has no room. */
static bool divide(qn_winograd_plan *p, const qn_machine *machine, bool shared, int64_t pieces,
                   int64_t panels)
{
    p->shared = shared;
    set_group(p, pieces);
    p->panels_per_task = ceil_div(p->panels, ceil_div(p->panels, panels));
    p->streams = filter_bytes(p) > (double)machine->l2_bytes / 2;
    p->tiles_per_transform = most(1, least(group_tiles(p), ceil_div(p->tiles, PARTS)));
    p->transforms = ceil_div(group_tiles(p), p->tiles_per_transform);
    return local_bytes(p) <= ROOM;
}

/* The least costly way to divide the work, of those with enough tasks. 0: there is none. */
static double choose_tasks(qn_winograd_plan *p, const qn_machine *machine)
{
    qn_winograd_plan best = *p;
    double least_cost = 0;
    const double all = (double)(p->tiles * p->panels) * multiply(p);
    const double wanted = all / SMALLEST < PARTS ? all / SMALLEST : PARTS;
    for (int shared = 0; shared < 2; shared++)
        for (int64_t pieces = 1; pieces <= p->n_pieces && divide(p, machine, shared, pieces, 1); pieces++)
            for (int64_t panels = p->panels;; panels = ceil_div(panels, 2)) {
                divide(p, machine, shared, pieces, panels);
                const double tasks = (double)(p->groups * ceil_div(p->panels, p->panels_per_task));
                if (tasks >= wanted) {
                    const double cycles = cost(p, machine);
                    if (least_cost == 0 || cycles < least_cost) {
                        least_cost = cycles;
                        best = *p;
                    }
                }
                if (panels == 1)
                    break;
            }
    *p = best;
    return least_cost;
}

/* The plan for a given t and number of vectors, but for the geometry, which is there. Its cycles, or 0: there is none. */
static double complete(qn_winograd_plan *p, const qn_machine *machine)
{
    for (int i = 0; i < 2; i++)
        p->axes[i].tiles = ceil_div(p->axes[i].out, p->t - 2);
    if (__builtin_mul_overflow(p->axes[0].tiles, p->axes[1].tiles, &p->tiles) || p->tiles > (int64_t)1 << 24)
        return 0;
    return choose_pieces(p, machine) ? choose_tasks(p, machine) : 0;
}

static bool usable(const qn_pass_options *options, qn_dtype dtype, int64_t lanes)
{
    const qn_machine *machine = options->machine;
    return machine && !machine->gpu && options->math != QN_MATH_STRICT &&
           (dtype == QUERN_F32 || dtype == QUERN_F64) &&
           lanes * (int64_t)qn_dtype_bytes(dtype) == machine->vector_bytes;
}

void qn_winograd_plan_note(const qn_winograd_plan *p, const qn_node *node, const qn_pass_options *options)
{
    qn_schedule_note(options, p->site, node,
                     (qn_schedule){ .knobs = { [QN_KNOB_SHARED] = 1 + p->shared,
                                               [QN_KNOB_TILES] = p->pieces_per_group,
                                               [QN_KNOB_PANELS] = p->panels_per_task } });
}

static void name_site(qn_winograd_plan *p, const qn_node *node)
{
    snprintf(p->site, sizeof p->site, "%s %s %d %lldx%d of %lld, %lld+%lld-%lld %lld+%lld-%lld",
             qn_ops[node->op].name, qn_dtype_name(p->dtype), p->t, (long long)p->panels, p->vectors,
             (long long)p->channels, (long long)p->axes[0].in, (long long)p->axes[0].low,
             (long long)p->axes[0].out, (long long)p->axes[1].in, (long long)p->axes[1].low,
             (long long)p->axes[1].out);
}

/* What was measured, where local memory has room for it. */
static void take_measured(qn_winograd_plan *p, const qn_pass_options *options)
{
    const qn_schedule s = qn_schedule_find(options, p->site);
    const qn_winograd_plan modelled = *p;
    const bool shared = qn_schedule_get(&s, QN_KNOB_SHARED, 1 + p->shared, 2) == 2;
    const int64_t pieces = qn_schedule_get(&s, QN_KNOB_TILES, p->pieces_per_group, p->n_pieces),
                  panels = qn_schedule_get(&s, QN_KNOB_PANELS, p->panels_per_task, p->panels);
    if (!divide(p, options->machine, shared, pieces, panels))
        *p = modelled;
}

/* Maps are taken to be as large as they are in networks where they have so many channels. */
static int64_t likely_extent(int64_t channels)
{
    enum { AREA = 7168, SMALLEST_MAP = 14, LARGEST_MAP = 112 };
    return least(LARGEST_MAP, most(SMALLEST_MAP, AREA / channels));
}

bool qn_winograd_plan_make(const qn_node *node, const qn_pass_options *options, qn_winograd_plan *p)
{
    memset(p, 0, sizeof *p);
    if (node->op != QN_OP_CONV_WINOGRAD)
        return false;
    const qn_type *x = &node->operands[0]->type, *u = &node->operands[1]->type, *y = &node->results[0].type;
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL);
    int64_t t, width;
    p->dtype = x->dtype;
    if (!qn_dim_known(x->dims[4], &p->lanes) || !usable(options, p->dtype, p->lanes) ||
        !qn_dim_known(x->dims[1], &p->blocks) || !qn_dim_known(u->dims[0], &p->panels) ||
        !qn_dim_known(u->dims[1], &t) || !qn_dim_known(u->dims[3], &p->channels) ||
        !qn_dim_known(u->dims[4], &width) || p->blocks < 1 || p->panels < 1 || p->channels < 1 ||
        width < p->lanes)
        return false;
    p->t = (int)t;
    p->vectors = (int)(width / p->lanes);
    for (int i = 0; i < 2; i++) {
        const bool in = qn_dim_known(x->dims[2 + i], &p->axes[i].in);
        const bool out = qn_dim_known(y->dims[2 + i], &p->axes[i].out);
        if (in && out && (p->axes[i].in < 1 || p->axes[i].out < 1))
            return false;
        p->symbolic |= !in || !out;
        p->axes[i].low = low[i]->value;
    }
    for (int i = 0; i < 2 && p->symbolic; i++)
        p->axes[i].in = p->axes[i].out = likely_extent(p->channels);
    if (complete(p, options->machine) == 0)
        return false;
    name_site(p, node);
    if (!p->symbolic)
        take_measured(p, options);
    return true;
}

bool qn_winograd_wins(const qn_conv_plan *direct, bool pairs, const qn_pass_options *options, int *out_t,
                      int64_t *out_width)
{
    static const int vectors[] = { 2, 4, 3, 1 }, sizes[] = { 4, 6 };
    if (direct->groups != 1 || direct->inside || direct->c != direct->lanes ||
        !usable(options, direct->dtype, direct->lanes) || direct->spatial != 2 || direct->slot[0] < 0 ||
        direct->slot[1] < 0)
        return false;
    for (int i = 1; i < QN_CONV_AXES; i++)
        if (direct->axes[i].kernel != 3 || direct->axes[i].stride != 1 || direct->axes[i].dilation != 1)
            return false;
    char site[QN_SITE_SIZE];
    const bool symbolic = !qn_conv_has_extents(direct->node);
    snprintf(site, sizeof site, "3x3 %.200s", direct->site);
    const qn_schedule s = symbolic ? (qn_schedule){ 0 } : qn_schedule_find(options, site);
    const int64_t measured = s.knobs[QN_KNOB_TRANSFORM], width = s.knobs[QN_KNOB_VECTORS];
    qn_schedule given = { .knobs = { [QN_KNOB_TRANSFORM] = 1 } };
    double best = measured > 1 ? INFINITY : direct_cost(direct) / (pairs ? 2 : 1);
    bool wins = false;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t v = 0; v < sizeof vectors / sizeof *vectors; v++) {
            if (direct->out_blocks % vectors[v] != 0 || (measured > 0 && sizes[i] != measured) ||
                (width > 0 && vectors[v] != width))
                continue;
            qn_winograd_plan p = { .dtype = direct->dtype,
                                   .t = sizes[i],
                                   .vectors = vectors[v],
                                   .lanes = direct->lanes,
                                   .symbolic = symbolic,
                                   .channels = direct->channels,
                                   .blocks = direct->blocks,
                                   .panels = direct->out_blocks / vectors[v] };
            for (int a = 0; a < 2; a++)
                p.axes[a] = (qn_winograd_axis){ .in = direct->axes[1 + a].in,
                                                .out = direct->axes[1 + a].out,
                                                .low = direct->axes[1 + a].low };
            const double cycles = complete(&p, options->machine);
            if (cycles > 0 && cycles < 0.95 * best) {
                best = cycles;
                wins = true;
                *out_t = p.t;
                *out_width = p.vectors * p.lanes;
                given.knobs[QN_KNOB_TRANSFORM] = p.t;
                given.knobs[QN_KNOB_VECTORS] = p.vectors;
            }
        }
    if (direct->node->op == QN_OP_CONV_PACKED && !symbolic)
        qn_schedule_note(options, site, direct->node, given);
    return wins;
}

bool qn_winograd_wins_over_symbols(const qn_node *direct, int64_t channels, const qn_pass_options *options,
                                   int *out_t, int64_t *out_width)
{
    const qn_type *x = &direct->operands[0]->type, *w = &direct->operands[1]->type,
                  *y = &direct->results[0].type;
    qn_conv_plan p = {
        .node = direct, .dtype = y->dtype, .groups = 1, .word = 1, .channels = channels, .spatial = 2
    };
    if (direct->op != QN_OP_CONV_PACKED || x->rank != 5 || qn_attr_int(direct, QN_ATTR_GROUPS) != 1 ||
        !qn_dim_known(x->dims[1], &p.blocks) || !qn_dim_known(x->dims[4], &p.c) ||
        !qn_dim_known(y->dims[1], &p.out_blocks) || !qn_dim_known(y->dims[4], &p.lanes))
        return false;
    const int64_t likely = likely_extent(channels);
    p.axes[0] = (qn_conv_axis){ .in = 1, .out = 1, .kernel = 1, .stride = 1, .dilation = 1 };
    for (int i = 0; i < 2; i++) {
        qn_conv_axis a = { .in = likely, .out = likely, .low = 1 };
        a.stride = qn_attr_ints(direct, QN_ATTR_STRIDE, NULL)[i];
        a.dilation = qn_attr_ints(direct, QN_ATTR_W_DILATION, NULL)[i];
        if (!qn_dim_known(w->dims[2 + i], &a.kernel))
            return false;
        p.axes[1 + i] = a;
        p.slot[i] = 1 + i;
    }
    return qn_winograd_wins(&p, false, options, out_t, out_width);
}
