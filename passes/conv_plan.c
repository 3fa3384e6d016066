/* How a kernel goes over a convolution in channel blocks: the tile of sums that it keeps in registers, and what a task does.
 *
 * A tile is some output positions times 1 to 4 vectors of output channels. Positions lie in one row, or, where the map is
 * narrow, in several rows of its full width:
 *
 *   56 wide: 14 14 14 14        13 wide: 13        7 wide: 7        (rows of a 7 x 7 map: 2 2 2 1)
 *                                                         7
 *
 * Where x has a border of padding, each kernel column meets some positions of a tile and not others; which ones is the same
 * for all tiles of a run. So padding costs nothing: neither a copy of x nor products with 0. */
#include "passes/conv.h"

#include <stdio.h>
#include <string.h>

#include "passes/arith.h"
#include "passes/lower.h"
#include "passes/words.h"

bool qn_conv_asks_for_weights(const qn_machine *machine, int64_t panel_words)
{
    return !machine->by_lane && panel_words * QN_WORD_BYTES > machine->l1_bytes / 4;
}

int64_t qn_conv_common_divisor(int64_t a, int64_t b)
{
    return b == 0 ? a : qn_conv_common_divisor(b, a % b);
}

int64_t qn_conv_word(const qn_node *node)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    const qn_dtype sums = node->results[0].type.dtype;
    const int word = qn_word_elements(x->dtype);
    if (sums == QUERN_F64 || x->dtype == QUERN_F32)
        return x->dtype == sums && w->dtype == sums && w->rank == x->rank + 1;
    const bool bytes = (x->dtype == QUERN_U8 || x->dtype == QUERN_I8) && w->dtype == QUERN_I8 &&
                       sums == QUERN_I32,
               pairs = x->dtype == QUERN_BF16 && w->dtype == QUERN_BF16 && sums == QUERN_F32;
    return (bytes || pairs) && w->rank == x->rank + 2 && qn_dim_is(w->dims[w->rank - 1], word) ? word : 0;
}

bool qn_conv_has_extents(const qn_node *node)
{
    for (int i = 2; i < node->operands[0]->type.rank; i++)
        if (!qn_dim_is_const(node->operands[0]->type.dims[i]) ||
            !qn_dim_is_const(node->results[0].type.dims[i]))
            return false;
    return true;
}

qn_conv_span qn_conv_valid(const qn_conv_axis *axis, int64_t start, int64_t size, int64_t k)
{
    const int64_t at =
        start * axis->stride - axis->low + k * axis->dilation; /* what position 0 of the tile reads */
    const int64_t first = at < 0 ? ceil_div(-at, axis->stride) : 0;
    const int64_t last = at < axis->in ? ceil_div(axis->in - at, axis->stride) : 0;
    const qn_conv_span span = { least(first, size), least(last, size) };
    return span.first < span.last ? span : (qn_conv_span){ 0, 0 };
}

/* ---- the geometry ---- */

/* Of x with so many spatial axes. */
static bool read_axes(const qn_node *node, int spatial, qn_conv_plan *p)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type, *y = &node->results[0].type;
    const int64_t *stride = qn_attr_ints(node, QN_ATTR_STRIDE, NULL);
    const int64_t *dilation = qn_attr_ints(node, QN_ATTR_W_DILATION, NULL);
    const qn_dim *low = qn_attr_dims(node, QN_ATTR_LOW, NULL);
    p->spatial = spatial;
    if (p->spatial > QN_CONV_AXES)
        return false;
    for (int i = 0; i < QN_CONV_AXES; i++)
        p->axes[i] = (qn_conv_axis){ 1, 1, 1, 1, 0, 1 };
    int last = QN_CONV_AXES;
    for (int i = p->spatial - 1; i >= 0; i--) {
        qn_conv_axis a = { .stride = stride[i], .dilation = dilation[i] };
        if (!qn_dim_known(x->dims[2 + i], &a.in) || !qn_dim_known(w->dims[2 + i], &a.kernel) ||
            !qn_dim_known(y->dims[2 + i], &a.out) || !qn_dim_known(low[i], &a.low) || a.in < 1 || a.out < 1)
            return false;
        /* a last axis of one element is none: [N, C, time, 1] is a line of positions */
        p->slot[i] = a.in == 1 && a.kernel == 1 && a.out == 1 && a.low == 0 ? -1 : --last;
        if (p->slot[i] >= 0)
            p->axes[p->slot[i]] = a;
    }
    return true;
}

/* Groups inside of blocks: one vector of x has all that a vector of output channels reads. Groups across them: a vector of
 * output channels is of two groups at most. */
static bool read_groups(qn_conv_plan *p)
{
    p->of_group = p->out_channels > 0 ? p->out_channels : p->out_blocks * p->lanes / p->groups;
    if (p->word > 1 || p->channels != p->w_c || p->of_group < 1)
        return false;
    p->across = p->of_group > p->lanes;
    p->reach = p->across ? 1 : p->lanes / p->of_group * p->w_c;
    return p->across || (p->lanes % p->of_group == 0 && p->reach > 1 && p->c % p->reach == 0 &&
                         p->out_blocks * p->reach <= p->blocks * p->c);
}

static bool read_node(const qn_node *node, qn_conv_plan *p)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    int64_t w_blocks;
    p->dtype = node->results[0].type.dtype;
    p->word = qn_conv_word(node);
    if (p->word == 0)
        return false;
    const int last = w->rank - 1 - (p->word > 1); /* axis of the lanes */
    p->node = node;
    p->groups = qn_attr_int(node, QN_ATTR_GROUPS);
    p->channels = qn_attr_int(node, QN_ATTR_CHANNELS);
    if (!qn_dim_known(x->dims[1], &p->blocks) || !qn_dim_known(x->dims[x->rank - 1], &p->c) ||
        !qn_dim_known(w->dims[0], &p->out_blocks) || !qn_dim_known(w->dims[1], &w_blocks) ||
        !qn_dim_known(w->dims[last - 1], &p->w_c) || !qn_dim_known(w->dims[last], &p->lanes) ||
        p->blocks < 1 || p->out_blocks < 1 || p->c % p->word || p->channels % p->word)
        return false;
    p->out_channels = qn_attr_find(node, QN_ATTR_OUT_CHANNELS) ? qn_attr_int(node, QN_ATTR_OUT_CHANNELS) : 0;
    p->inside = (p->groups > 1 && p->out_channels > 0) || p->groups > p->blocks;
    p->c /= p->word;
    p->channels /= p->word;
    p->w_channels = w_blocks * p->w_c;
    if (!read_axes(node, x->rank - 3, p) || (p->inside && !read_groups(p)))
        return false;
    /* With one place in a kernel both orders are the same, and the weights lie alike. */
    const bool one_place = p->axes[0].kernel * p->axes[1].kernel * p->axes[2].kernel == 1;
    if (!p->inside && one_place)
        p->w_c = p->c;
    p->by_channel = !p->inside && p->w_c < p->c;
    return true;
}

/* As the layout pass will put it in blocks. */
static bool read_convolution(const qn_node *node, int64_t lanes, qn_conv_plan *p)
{
    const qn_type *x = &node->operands[0]->type, *w = &node->operands[1]->type;
    int64_t out;
    if (!qn_dim_known(x->dims[1], &p->channels) || !qn_dim_known(w->dims[0], &out) || p->channels < 1 ||
        out < 1 || x->dtype != QUERN_F32 || node->results[0].type.dtype != QUERN_F32 ||
        qn_attr_int(node, QN_ATTR_GROUPS) != 1)
        return false;
    for (int i = 0; i < x->rank - 2; i++)
        if (qn_attr_ints(node, QN_ATTR_X_DILATION, NULL)[i] != 1)
            return false;
    p->node = node;
    p->dtype = QUERN_F32;
    p->word = p->groups = 1;
    p->lanes = lanes;
    p->c = least(p->channels, lanes);
    p->blocks = ceil_div(p->channels, p->c);
    p->w_c = p->c;
    p->w_channels = p->blocks * p->c;
    p->out_blocks = ceil_div(out, lanes);
    p->out_channels = out;
    return read_axes(node, x->rank - 2, p);
}

/* ---- tiles ---- */

int64_t qn_conv_whole_blocks(const qn_conv_plan *p)
{
    return p->out_blocks - (p->parts > 1);
}

/* In how many parts the sums of the last output block are made: of 4 channels each in 4, of which a vector has 16. Each part takes
 * every fourth channel of x. That block's tiles read x once more, which costs what it saves where one other block reads it. */
static int64_t parts_of(const qn_conv_plan *p, const qn_pass_options *options)
{
    enum { SHORTEST = 32 }; /* products of a sum, below which putting the parts together costs too much */
    const int64_t last = p->out_channels - (p->out_blocks - 1) * p->lanes,
                  k = p->channels * p->axes[0].kernel * p->axes[1].kernel * p->axes[2].kernel;
    if (p->inside || p->groups > 1 || p->word > 1 || p->w_c < p->c || p->out_channels == 0 ||
        p->out_blocks == 2 || options->machine->by_lane || options->math == QN_MATH_STRICT)
        return 1;
    int64_t parts = 1;
    while (2 * parts * last <= p->lanes && p->c % (2 * parts) == 0 && p->channels % (2 * parts) == 0 &&
           SHORTEST * 2 * parts <= 2 * k)
        parts *= 2;
    return parts;
}

static bool meet_alike(const qn_conv_axis *a, int64_t start, int64_t other, int64_t size)
{
    for (int64_t k = 0; k < a->kernel; k++) {
        const qn_conv_span x = qn_conv_valid(a, start, size, k), y = qn_conv_valid(a, other, size, k);
        if (x.first != y.first || x.last != y.last)
            return false;
    }
    return true;
}

/* The axis in tiles of nearly equal size, `largest` at most. 0 when these are more than QN_CONV_RUNS runs. */
static int find_runs(const qn_conv_axis *a, int64_t largest, qn_conv_run *out)
{
    const int64_t n = ceil_div(a->out, largest);
    int runs = 0;
    for (int64_t i = 0, start = 0; i < n; i++) {
        const int64_t size = a->out / n + (i < a->out % n);
        if (runs > 0 && out[runs - 1].size == size && meet_alike(a, out[runs - 1].start, start, size)) {
            out[runs - 1].n++;
        } else {
            if (runs == QN_CONV_RUNS)
                return 0;
            out[runs++] = (qn_conv_run){ start, 1, size };
        }
        start += size;
    }
    return runs;
}

/* Cycles for one step of K in a tile, on a core that does two multiply-adds and two loads a cycle, each taking four. */
static double tile_cycles(int64_t positions, int64_t vectors, bool by_lane)
{
    const double of_x = (double)positions / (by_lane ? 4 : 1);
    const double sums = (double)(positions * vectors) / 2, loads = (of_x + (double)vectors) / 2;
    return sums > loads ? sums > 4 ? sums : 4 : loads > 4 ? loads : 4;
}

static double axis_cycles(const qn_conv_run *columns, int n, int64_t rows, int64_t vectors, bool by_lane)
{
    double cycles = 0;
    for (int i = 0; i < n; i++)
        cycles += (double)columns[i].n * (tile_cycles(rows * columns[i].size, vectors, by_lane) + 0.25);
    return cycles;
}

int64_t qn_conv_tile_positions(const qn_machine *machine, int64_t vectors)
{
    const int64_t registers = machine->vector_registers, spare = registers > 16 ? 2 : 1;
    const int64_t fit =
        machine->by_lane ? (registers - 1 - vectors) / (vectors + 1) : (registers - spare) / vectors - 1;
    return least(fit, QN_CONV_TILE / vectors);
}

/* Tiles of that many vectors: fills in vectors, columns and rows; gives the cycles of one step of K over a whole map and all
 * output blocks, or 0 when there are none. */
static double try_vectors(qn_conv_plan *p, int64_t vectors, const qn_machine *machine)
{
    const qn_conv_axis *height = &p->axes[1], *width = &p->axes[2];
    const bool by_lane = machine->by_lane && !p->inside && !p->by_channel;
    const int64_t registers = machine->vector_registers;
    int64_t positions = p->inside ? registers / 2 - 2 : qn_conv_tile_positions(machine, vectors);
    /* One that meets both borders has kernel columns written out: channel by channel, numbers of x stay in registers from one to
     * the next. */
    if (p->by_channel && width->kernel > 1 && width->out <= positions)
        positions = (registers - (registers > 16 ? 3 : 2)) / (vectors + 1);
    const int64_t in_group = p->inside ? p->out_blocks : p->out_blocks / p->groups;
    const int64_t whole = qn_conv_whole_blocks(p), rest = whole % vectors;
    if (positions < 1 || (p->groups > 1 && in_group % vectors != 0) || vectors > most(whole, 1))
        return 0;
    p->vectors = (int)vectors;
    p->n_columns = find_runs(width, positions, p->columns);
    p->n_rows = 0;
    if (p->n_columns == 0)
        return 0;
    const int64_t rows = positions / width->out;
    double cycles = 0;
    if (rows > 1 && height->out > 1)
        p->n_rows = find_runs(height, rows, p->rows);
    for (int part = 0; part < 3; part++) {
        const int64_t n = part == 0   ? whole / vectors
                          : part == 1 ? rest > 0
                                      : p->parts > 1,
                      v = part == 0   ? vectors
                          : part == 1 ? rest
                                      : 1;
        double one = 0;
        for (int i = 0; i < p->n_rows; i++)
            one += (double)p->rows[i].n * axis_cycles(p->columns, p->n_columns, p->rows[i].size, v, by_lane);
        if (p->n_rows == 0)
            one = (double)height->out * axis_cycles(p->columns, p->n_columns, 1, v, by_lane);
        cycles += n > 0 ? (double)n * one / (double)(part == 2 ? p->parts : 1) : 0;
    }
    return cycles;
}

/* The tile with as many vectors as were measured to be the best, where there is one; otherwise the least costly. Bytes of x have
 * to be broadcast by instructions of their own, for each position, but where a machine multiplies by lanes: there more vectors
 * are better than the cycles say, by far where weights come from the second cache. */
static bool choose_tile(qn_conv_plan *p, const qn_machine *machine, int64_t measured)
{
    static const int64_t floats[] = { 2, 3, 4, 1 }, bytes[] = { 4, 3, 2, 1 };
    const bool broadcasts = p->word > 2 && !machine->by_lane;
    const int64_t *widths = broadcasts ? bytes : floats;
    const double gain = broadcasts ? 0.95 : 0.99;
    double best = 0;
    qn_conv_plan chosen;
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        if ((p->inside && widths[i] != 1) || (best > 0 && chosen.vectors == measured))
            continue;
        const double cycles = try_vectors(p, widths[i], machine);
        if (cycles > 0 && (best == 0 || widths[i] == measured || cycles < gain * best)) {
            best = cycles;
            chosen = *p;
        }
    }
    if (best > 0)
        *p = chosen;
    return best > 0;
}

static bool meets_border(const qn_conv_plan *p)
{
    const qn_conv_axis *a = &p->axes[2];
    for (int i = 0; i < p->n_columns; i++)
        for (int64_t k = 0; k < a->kernel; k++) {
            const qn_conv_span span = qn_conv_valid(a, p->columns[i].start, p->columns[i].size, k);
            if (span.last - span.first != p->columns[i].size)
                return true;
        }
    return false;
}

/* ---- tasks ---- */

double qn_conv_flops(const qn_conv_plan *p)
{
    const int64_t lanes = p->out_blocks * p->lanes, idle = p->lanes - p->lanes / most(p->parts, 1);
    double flops = 2.0 * (double)(p->channels * p->word * (lanes - idle));
    for (int i = 0; i < QN_CONV_AXES; i++)
        flops *= (double)(p->axes[i].kernel * p->axes[i].out);
    return flops;
}

/* A task has some panels of output channels and some lines of the map: so many panels that their weights stay in half of the
 * L2 cache while the tasks of other lines go over them, and lines for about TASK multiplications and additions. */
static void divide(qn_conv_plan *p, const qn_machine *machine)
{
    enum { PARTS = 32, SMALLEST = 500000, LARGEST = 4000000 };
    const qn_conv_axis *a = p->axes;
    const int64_t k = p->channels * a[0].kernel * a[1].kernel * a[2].kernel;
    const int64_t bytes = (int64_t)qn_dtype_bytes(p->dtype), panel_bytes = k * p->vectors * p->lanes * bytes;
    p->panels = ceil_div(qn_conv_whole_blocks(p), p->vectors) + (p->parts > 1);
    p->lines = p->n_rows > 0 ? a[0].out : a[0].out * a[1].out;
    const double line = 2.0 * (double)(a[2].out * (p->n_rows > 0 ? a[1].out : 1) * k * p->vectors * p->lanes);
    const double total = line * (double)p->lines * (double)p->panels;
    double task = total / PARTS;
    task = task < SMALLEST ? SMALLEST : task > LARGEST ? LARGEST : task;
    int64_t panels = most(1, least(p->panels, machine->l2_bytes / 2 / most(panel_bytes, 1)));
    if (line * (double)panels > 1.5 * task)
        panels = most(1, (int64_t)(task / line));
    p->panels_per_task = ceil_div(p->panels, ceil_div(p->panels, panels));
    p->lines_first = panel_bytes * p->panels <= machine->l2_bytes / 2;
    const int64_t lines = most(1, (int64_t)(task / (line * (double)p->panels_per_task) + 0.5));
    p->lines_per_task = lines >= p->lines ? p->lines : ceil_div(p->lines, ceil_div(p->lines, lines));
}

/* All numbers that the kernel depends on, but for what follows it. Where they are too long some share a schedule. */
static void name_site(qn_conv_plan *p)
{
    char axes[128] = "";
    int at = 0;
    for (int i = 0; i < QN_CONV_AXES && at < (int)sizeof axes; i++) {
        const qn_conv_axis *a = &p->axes[i];
        at += snprintf(axes + at, sizeof axes - (size_t)at, " %lld-%lld:%lld/%lld+%lld*%lld",
                       (long long)a->in, (long long)a->out, (long long)a->kernel, (long long)a->stride,
                       (long long)a->low, (long long)a->dilation);
    }
    snprintf(p->site, sizeof p->site, "%s %s %lldx%lld/%lld from %lldx%lld, %lld%s in %lld,%s",
             qn_ops[QN_OP_CONV_PACKED].name, qn_dtype_name(p->dtype), (long long)p->out_blocks,
             (long long)p->lanes, (long long)p->parts, (long long)p->blocks, (long long)p->c,
             (long long)p->channels, p->by_channel ? " by one" : "", (long long)p->groups, axes);
}

void qn_conv_plan_note(const qn_conv_plan *p, const qn_pass_options *options)
{
    qn_schedule_note(options, p->site, p->node,
                     (qn_schedule){ .knobs = { [QN_KNOB_VECTORS] = p->vectors,
                                               [QN_KNOB_TILES] = p->lines_per_task,
                                               [QN_KNOB_PANELS] = p->panels_per_task } });
}

/* The rest of a plan whose geometry is there. */
static bool complete(qn_conv_plan *out, const qn_pass_options *options)
{
    const qn_machine *machine = options->machine;
    out->parts = parts_of(out, options);
    name_site(out);
    const qn_schedule s = qn_schedule_find(options, out->site);
    if (!choose_tile(out, machine, s.knobs[QN_KNOB_VECTORS]) ||
        (out->axes[2].kernel > QN_CONV_WIDTH && meets_border(out)))
        return false;
    divide(out, machine);
    out->panels_per_task = qn_schedule_get(&s, QN_KNOB_PANELS, out->panels_per_task, out->panels);
    out->lines_per_task = qn_schedule_get(&s, QN_KNOB_TILES, out->lines_per_task, out->lines);
    return true;
}

/* x as the layout pass pads it where no kernel meets its border. False: it has none. */
static bool pad_axes(qn_conv_plan *p)
{
    const qn_dim *high = qn_attr_dims(p->node, QN_ATTR_HIGH, NULL);
    bool bordered = false;
    for (int i = 0; i < p->spatial; i++) {
        int64_t past;
        if (p->slot[i] < 0)
            continue;
        if (!qn_dim_known(high[i], &past))
            return false;
        qn_conv_axis *a = &p->axes[p->slot[i]];
        bordered |= a->low != 0 || past != 0;
        a->in += a->low + past;
        a->low = 0;
    }
    return bordered;
}

bool qn_conv_plan_make(const qn_node *node, const qn_pass_options *options, qn_conv_plan *out)
{
    const qn_machine *machine = options->machine;
    memset(out, 0, sizeof *out);
    return node->op == QN_OP_CONV_PACKED && machine && !machine->gpu && read_node(node, out) &&
           out->lanes * (int64_t)qn_dtype_bytes(out->dtype) == machine->vector_bytes &&
           complete(out, options);
}

bool qn_conv_plan_foresee(const qn_node *node, const qn_pass_options *options, qn_conv_plan *out)
{
    const qn_machine *machine = options->machine;
    memset(out, 0, sizeof *out);
    if (node->op != QN_OP_CONVOLUTION || !machine || machine->gpu ||
        !read_convolution(node, machine->vector_bytes / 4, out))
        return false;
    if (complete(out, options))
        return true;
    return pad_axes(out) && complete(out, options);
}
