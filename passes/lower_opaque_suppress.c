/* suppress: one problem, the boxes of a batch for a class, after the other; tasks share them.
 *
 * Scores become numbers that hold score and position (lower_opaque_keys.c), the best one the least. Few of them are ever looked at
 * where few boxes are kept, so they are taken by portions: the next best ones, sorted, then more of them the next time. From a
 * number is taken what the last portion ended with, `base`: what came before is huge then, and one comparison says whether it
 * comes before the last of the best so far. What is below `end` has a score that counts.
 *
 *   for each portion while there is more and boxes may be kept
 *     for each GROUP scores: if one may be before the end        [it sinks: when the half is full it is sorted, the portion left]
 *       half[count] = number - base; count += number - base < end
 *     sort
 *     for each of the portion
 *       for each LANES boxes that were kept: does one overlap it?
 *       else keep it
 *
 * A box that is kept goes to five rows: corners and area. The area of lanes behind the last is NaN, which compares as false. */
#include <math.h>
#include <string.h>

#include "passes/lower_opaque_keys.h"

enum {
    LANES = 16,
    GROUP = QN_KEYS_GROUP,
    STEPS = 32, /* boxes that are looked at before it is asked whether enough are kept */
    LEAST_PORTION = 128,
    MOST_PORTION = 4096,
    GROWTH = 4,        /* of portions */
    MOST_LOCAL = 1024, /* boxes that are kept in the task's own memory */
    AREA = 4,          /* row behind those of corners */
    N_ROWS
};

typedef struct suppressor {
    qn_keys s;
    int64_t room;                    /* numbers in a half */
    qn_kbuffer *staged, *kept, *out; /* the next numbers; rows of kept boxes; what they are */
    qn_kvalue *base;                 /* of the rows in `kept` */
    qn_kvalue *stride;               /* from row to row */
    qn_kvalue *first;                /* of the problem's numbers in `out` */
    qn_kvalue *all_count; /* the end for numbers whose scores count, before `base` is taken from them */
    qn_kvalue *limit, *overlap;
} suppressor;

static qn_kvalue *word(suppressor *p, uint64_t value)
{
    return qn_kb_const(&p->s.o.w.b, (qn_ktype){ QUERN_U64, 1 }, (qn_scalar){ .i = (int64_t)value });
}

static qn_kvalue *at_zero(suppressor *p, int operand)
{
    return qn_writer_value(&p->s.o.w, p->s.o.node->operands[operand], NULL);
}

/* ---- portions ---- */

/* What a portion is taken with: its numbers' half, the other one, how many there are, their end, the least score before it. */
enum { HALF, OTHER, COUNT, END, SCORE, N_STATE };

/* The score of the last number before the end. */
static qn_kvalue *last_score(suppressor *p, qn_kvalue *base, qn_kvalue *end)
{
    qn_kbuilder *b = &p->s.o.w.b;
    qn_kvalue *last = qn_kb_binary(b, QN_OP_ADD, qn_kb_binary(b, QN_OP_SUB, end, word(p, 1)), base);
    qn_kvalue *key = qn_kb_convert(b, QUERN_U32, qn_kb_binary(b, QN_OP_SHIFT_RIGHT, last, word(p, 32)));
    qn_kvalue *top = qn_kb_const(b, (qn_ktype){ QUERN_U32, 1 }, (qn_scalar){ .i = 0x80000000 });
    qn_kvalue *ordered = qn_kb_unary(b, QN_OP_NOT, key), *negative = qn_kb_compare(b, QN_LT, ordered, top);
    qn_kvalue *bits = qn_kb_select(b, negative, key, qn_kb_binary(b, QN_OP_XOR, ordered, top));
    return qn_kb_bitcast(b, QUERN_F32, bits);
}

/* Is one of those scores such that its number may be before the end? */
static qn_kvalue *any_before(suppressor *p, qn_kvalue *low, qn_kvalue *high, qn_kvalue *score)
{
    qn_writer *w = &p->s.o.w;
    qn_kbuilder *b = &w->b;
    const qn_dim i = qn_ispace_var(&w->space, p->s.n, false), at[3] = { p->s.at[0], p->s.at[1], i };
    qn_kvalue *any = qn_kb_const(b, (qn_ktype){ QUERN_BOOL, 1 }, (qn_scalar){ .i = 0 });
    qn_writer_loop all = qn_writer_for(w, i, low, high, QN_TAG_VECTOR, 1, &any, (qn_kind[]){ QN_KIND_MAX });
    qn_kvalue *x = qn_kb_convert(b, QUERN_F32, qn_writer_value(w, p->s.o.node->operands[0], at));
    any = qn_kb_binary(b, QN_OP_MAX, all.carried[0], qn_kb_compare(b, QN_GE, x, score));
    qn_writer_end_for(w, &all, &any);
    return all.carried[0];
}

/* Takes those numbers of `low` to `high` that come before the end. When the half may be too full for the next ones, it is sorted,
 * which leaves `portion`. */
static void take(suppressor *p, qn_kvalue *low, qn_kvalue *high, qn_kvalue *base, qn_kvalue *portion,
                 qn_kvalue **state)
{
    qn_writer *w = &p->s.o.w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *zero = qn_kb_index(b, 0), *one = qn_kb_index(b, 1), *count = state[COUNT];
    const qn_dim i = qn_ispace_var(&w->space, p->s.n, false);
    qn_writer_loop fill = qn_writer_for(w, i, low, high, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *number = qn_kb_binary(b, QN_OP_SUB, qn_keys_number(&p->s, i), base);
    qn_kb_store(b, p->staged, qn_kb_isub(b, qn_writer_index(w, i), low), number, NULL);
    qn_writer_end_for(w, &fill, NULL);

    qn_kinst *each = qn_kb_carry(b, zero, qn_kb_isub(b, high, low), one, QN_TAG_SERIAL, 1, &count, NULL);
    qn_kvalue *x = qn_kb_load(b, p->staged, qn_loop_counter(each), 1);
    qn_kb_store(b, p->s.numbers, qn_keys_place(&p->s, state[HALF], count), x, NULL);
    count = qn_kb_iadd(b, count, qn_kb_convert(b, QUERN_I64, qn_kb_compare(b, QN_LT, x, state[END])));
    qn_kb_end_carry(b, each, &count);
    state[COUNT] = count;

    qn_kvalue *full = qn_kb_isub(b, qn_kb_iadd(b, portion, portion), qn_kb_index(b, GROUP));
    qn_kinst *sort = qn_kb_if(b, qn_kb_compare(b, QN_GT, count, full));
    qn_kvalue *halves[2] = { state[HALF], state[OTHER] };
    qn_keys_sort(&p->s, count, halves);
    qn_kvalue *last = qn_keys_place(&p->s, halves[0], qn_kb_isub(b, portion, one));
    qn_kvalue *end = qn_kb_load(b, p->s.numbers, last, 1);
    qn_kb_else(b, sort, N_STATE,
               (qn_kvalue *[]){ halves[0], halves[1], portion, end, last_score(p, base, end) });
    qn_kb_end_if(b, sort, N_STATE, state);
    for (int k = 0; k < N_STATE; k++)
        state[k] = &sort->results[k];
}

/* The next portion, sorted, and maybe more behind it. The end is the one given where that is all there is. */
static void next_portion(suppressor *p, qn_kvalue *base, qn_kvalue *portion, qn_kvalue *end,
                         qn_kvalue **state)
{
    qn_writer *w = &p->s.o.w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *zero = qn_kb_index(b, 0), *n = qn_writer_index(w, p->s.n), *group = qn_kb_index(b, GROUP);
    state[HALF] = state[COUNT] = zero;
    state[OTHER] = p->s.half;
    state[END] = end;
    state[SCORE] = last_score(p, base, end);
    qn_kinst *groups = qn_kb_carry(b, zero, n, group, QN_TAG_SERIAL, N_STATE, state, NULL);
    qn_kvalue *low = qn_loop_counter(groups), *high = qn_kb_imin(b, qn_kb_iadd(b, low, group), n);
    const size_t mark = qn_writer_mark(w);
    qn_kinst *some = qn_kb_if(b, any_before(p, low, high, state[SCORE]));
    qn_kvalue *taken[N_STATE];
    memcpy(taken, state, sizeof taken);
    take(p, low, high, base, portion, taken);
    qn_kb_else(b, some, N_STATE, taken);
    qn_kb_end_if(b, some, N_STATE, state);
    qn_writer_forget(w, mark);
    for (int k = 0; k < N_STATE; k++)
        state[k] = &some->results[k];
    qn_kb_end_carry(b, groups, state);
    qn_keys_sort(&p->s, state[COUNT], state + HALF);
}

/* ---- boxes ---- */

static qn_kvalue *row_place(suppressor *p, int row, qn_kvalue *i)
{
    qn_kbuilder *b = &p->s.o.w.b;
    return qn_kb_iadd(b, qn_kb_iadd(b, p->base, qn_kb_imul(b, p->stride, qn_kb_index(b, row))), i);
}

/* Corners and area. */
static void read_box(suppressor *p, qn_kvalue *position, qn_kvalue **box)
{
    qn_writer *w = &p->s.o.w;
    qn_kbuilder *b = &w->b;
    const bool centre = qn_attr_bool(p->s.o.node, QN_ATTR_CENTRE);
    qn_dim at[3] = { p->s.at[0], qn_writer_datum(w, position, p->s.n), NULL };
    qn_kvalue *x[4];
    for (int i = 0; i < 4; i++) {
        at[2] = qn_dim_const(w->space.dims, i);
        x[i] = qn_kb_convert(b, QUERN_F32, qn_writer_value(w, p->s.o.node->operands[1], at));
    }
    for (int i = 0; i < 2; i++) {
        qn_kvalue *half = qn_kb_float(b, (qn_ktype){ QUERN_F32, 1 }, 0.5);
        qn_kvalue *to = centre ? qn_kb_binary(b, QN_OP_MUL, x[i + 2], half) : x[i + 2];
        box[i] = qn_kb_binary(b, centre ? QN_OP_SUB : QN_OP_MIN, x[i], to);
        box[i + 2] = qn_kb_binary(b, centre ? QN_OP_ADD : QN_OP_MAX, x[i], to);
    }
    box[AREA] = qn_kb_binary(b, QN_OP_MUL, qn_kb_binary(b, QN_OP_SUB, box[2], box[0]),
                             qn_kb_binary(b, QN_OP_SUB, box[3], box[1]));
}

static void load_boxes(suppressor *p, qn_kvalue *i, qn_kvalue **out_rows)
{
    for (int row = 0; row < N_ROWS; row++)
        out_rows[row] = qn_kb_load(&p->s.o.w.b, p->kept, row_place(p, row, i), LANES);
}

static void store_boxes(suppressor *p, qn_kvalue *i, qn_kvalue *const *rows)
{
    for (int row = 0; row < N_ROWS; row++)
        qn_kb_store(&p->s.o.w.b, p->kept, row_place(p, row, i), rows[row], NULL);
}

/* Does the box overlap one of LANES others? */
static qn_kvalue *overlaps(suppressor *p, qn_kvalue *const *one, qn_kvalue *const *other)
{
    qn_kbuilder *b = &p->s.o.w.b;
    qn_kvalue *side[2];
    for (int k = 0; k < 2; k++) {
        qn_kvalue *low = qn_kb_binary(b, QN_OP_MAX, one[k], other[k]);
        qn_kvalue *high = qn_kb_binary(b, QN_OP_MIN, one[k + 2], other[k + 2]);
        side[k] = qn_kb_binary(b, QN_OP_MAX, qn_kb_binary(b, QN_OP_SUB, high, low),
                               qn_kb_float(b, (qn_ktype){ QUERN_F32, LANES }, 0));
    }
    qn_kvalue *common = qn_kb_binary(b, QN_OP_MUL, side[0], side[1]);
    qn_kvalue *joint = qn_kb_binary(b, QN_OP_SUB, qn_kb_binary(b, QN_OP_ADD, one[AREA], other[AREA]), common);
    qn_kvalue *much = qn_kb_binary(b, QN_OP_MUL, joint, qn_kb_splat(b, p->overlap, LANES));
    return qn_kb_reduce(b, QN_KIND_MAX, qn_kb_compare(b, QN_GT, common, much));
}

/* One more box after so many: of the last ones. They go to memory when they are LANES. */
static void keep_box(suppressor *p, qn_kvalue *const *one, qn_kvalue *count, qn_kvalue *const *last,
                     qn_kvalue **out_last)
{
    qn_kbuilder *b = &p->s.o.w.b;
    qn_kvalue *lane = qn_kb_imod(b, count, qn_kb_index(b, LANES));
    qn_kvalue *lanes =
        qn_kb_ramp(b, qn_kb_const(b, (qn_ktype){ QUERN_I32, 1 }, (qn_scalar){ .i = 0 }), LANES);
    qn_kvalue *here =
        qn_kb_compare(b, QN_EQ, lanes, qn_kb_splat(b, qn_kb_convert(b, QUERN_I32, lane), LANES));
    for (int row = 0; row < N_ROWS; row++)
        out_last[row] = qn_kb_select(b, here, one[row], last[row]);
    qn_kinst *full = qn_kb_if(b, qn_kb_compare(b, QN_EQ, lane, qn_kb_index(b, LANES - 1)));
    store_boxes(p, qn_kb_isub(b, count, lane), out_last);
    qn_kvalue *empty = qn_kb_float(b, (qn_ktype){ QUERN_F32, LANES }, NAN);
    qn_kb_else(b, full, 1, &empty);
    qn_kb_end_if(b, full, 1, &out_last[AREA]);
    out_last[AREA] = &full->results[0];
}

/* One box of a portion. state: the last boxes that were kept, whose number is no multiple of LANES; how many are kept. */
static void look_at(suppressor *p, qn_kvalue *position, qn_kvalue **state)
{
    qn_kbuilder *b = &p->s.o.w.b;
    qn_kvalue *count = state[N_ROWS], *box[N_ROWS], *one[N_ROWS], *other[N_ROWS];
    read_box(p, position, box);
    for (int row = 0; row < N_ROWS; row++)
        one[row] = qn_kb_splat(b, box[row], LANES);
    qn_kvalue *lanes = qn_kb_index(b, LANES), *whole = qn_kb_isub(b, count, qn_kb_imod(b, count, lanes));
    qn_kvalue *hit = overlaps(p, one, state);
    qn_kinst *blocks = qn_kb_carry(b, qn_kb_index(b, 0), whole, lanes, QN_TAG_SERIAL, 1, &hit, NULL);
    qn_kinst *still = qn_kb_if(b, qn_kb_unary(b, QN_OP_NOT, hit));
    load_boxes(p, qn_loop_counter(blocks), other);
    qn_kvalue *here = overlaps(p, one, other);
    qn_kb_else(b, still, 1, &here);
    qn_kb_end_if(b, still, 1, &hit);
    hit = &still->results[0];
    qn_kb_end_carry(b, blocks, &hit);

    /* a branch, so that the next box need not wait for what is found of this one */
    qn_kvalue *room = qn_kb_compare(b, QN_LT, count, p->limit), *more[N_ROWS + 1];
    qn_kinst *keep = qn_kb_if(b, qn_kb_binary(b, QN_OP_AND, qn_kb_unary(b, QN_OP_NOT, hit), room));
    qn_kb_store(b, p->out, qn_kb_iadd(b, p->first, count), position, NULL);
    keep_box(p, one, count, state, more);
    more[N_ROWS] = qn_kb_iadd(b, count, qn_kb_index(b, 1));
    qn_kb_else(b, keep, N_ROWS + 1, more);
    qn_kb_end_if(b, keep, N_ROWS + 1, state);
    for (int i = 0; i <= N_ROWS; i++)
        state[i] = &keep->results[i];
}

/* One box after the other of a portion: how many are kept then. */
static qn_kvalue *walk(suppressor *p, qn_kvalue *half, qn_kvalue *n, qn_kvalue *base, qn_kvalue *count)
{
    qn_writer *w = &p->s.o.w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *one = qn_kb_index(b, 1), *steps = qn_kb_index(b, STEPS), *lanes = qn_kb_index(b, LANES);
    qn_kvalue *state[N_ROWS + 1];
    load_boxes(p, qn_kb_isub(b, count, qn_kb_imod(b, count, lanes)), state);
    state[N_ROWS] = count;
    qn_kinst *parts = qn_kb_carry(b, qn_kb_index(b, 0), n, steps, QN_TAG_SERIAL, N_ROWS + 1, state, NULL);
    qn_kvalue *low = qn_loop_counter(parts), *high = qn_kb_imin(b, qn_kb_iadd(b, low, steps), n);
    high = qn_kb_select(b, qn_kb_compare(b, QN_LT, state[N_ROWS], p->limit), high, low);
    qn_kinst *each = qn_kb_carry(b, low, high, one, QN_TAG_SERIAL, N_ROWS + 1, state, NULL);
    const size_t mark = qn_writer_mark(w);
    qn_kvalue *number = qn_kb_load(b, p->s.numbers, qn_keys_place(&p->s, half, qn_loop_counter(each)), 1);
    number = qn_kb_binary(b, QN_OP_AND, qn_kb_binary(b, QN_OP_ADD, number, base), word(p, UINT32_MAX));
    look_at(p, qn_kb_convert(b, QUERN_I64, number), state);
    qn_writer_forget(w, mark);
    qn_kb_end_carry(b, each, state);
    qn_kb_end_carry(b, parts, state);
    count = state[N_ROWS];
    store_boxes(p, qn_kb_isub(b, count, qn_kb_imod(b, count, lanes)), state);
    return count;
}

/* ---- problems ---- */

static void suppress(suppressor *p, int64_t portion)
{
    qn_writer *w = &p->s.o.w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *zero = qn_kb_index(b, 0), *one = qn_kb_index(b, 1), *n = qn_writer_index(w, p->s.n);
    const qn_ktype lanes = { QUERN_F32, LANES };
    for (int row = 0; row < N_ROWS; row++)
        qn_kb_store(b, p->kept, row_place(p, row, zero), qn_kb_float(b, lanes, row == AREA ? NAN : 0), NULL);
    /* how many are kept, where numbers begin (behind NaN, whose key is 0), how many are next */
    qn_kvalue *state[3] = { zero, word(p, (uint64_t)1 << 32), qn_kb_index(b, portion) };
    qn_kinst *rounds = qn_kb_carry(b, zero, n, qn_kb_index(b, portion), QN_TAG_SERIAL, 3, state, NULL);
    qn_kvalue *more = qn_kb_binary(b, QN_OP_AND, qn_kb_compare(b, QN_LT, state[0], p->limit),
                                   qn_kb_compare(b, QN_LT, state[1], p->all_count));
    const size_t mark = qn_writer_mark(w);
    qn_kinst *open = qn_kb_if(b, more);
    qn_kvalue *end = qn_kb_binary(b, QN_OP_SUB, p->all_count, state[1]), *taken[N_STATE];
    next_portion(p, state[1], state[2], end, taken);
    qn_kvalue *rest = qn_kb_compare(b, QN_LT, taken[END], end); /* the half was full once */
    qn_kvalue *size = qn_kb_select(b, rest, state[2], taken[COUNT]);
    qn_kvalue *kept = walk(p, taken[HALF], size, state[1], state[0]);
    /* one number above the last; where there are no more, where numbers end */
    qn_kvalue *last = qn_keys_place(&p->s, taken[HALF], qn_kb_imax(b, qn_kb_isub(b, size, one), zero));
    qn_kvalue *next = qn_kb_binary(b, QN_OP_ADD, qn_kb_load(b, p->s.numbers, last, 1),
                                   qn_kb_binary(b, QN_OP_ADD, state[1], word(p, 1)));
    next = qn_kb_select(b, rest, next, p->all_count);
    qn_kvalue *larger =
        qn_kb_imin(b, qn_kb_imul(b, state[2], qn_kb_index(b, GROWTH)), qn_kb_index(b, p->room / 2));
    qn_kb_else(b, open, 3, (qn_kvalue *[]){ kept, next, larger });
    qn_kb_end_if(b, open, 3, state);
    qn_writer_forget(w, mark);
    for (int i = 0; i < 3; i++)
        state[i] = &open->results[i];
    qn_kb_end_carry(b, rounds, state);

    qn_kinst *none = qn_kb_for(b, state[0], qn_writer_index(w, p->s.k), one, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kb_store(b, p->out, qn_kb_iadd(b, p->first, qn_loop_counter(none)), qn_kb_index(b, -1), NULL);
    qn_kb_end_for(b, none, NULL);
}

/* Memory for kept boxes: the task's own where they are few, or a part of scratch memory each. */
static void place_rows(suppressor *p, const qn_loops *loops)
{
    qn_writer *w = &p->s.o.w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    qn_lowering *l = p->s.o.l;
    if (p->s.k->max <= MOST_LOCAL) {
        const int64_t stride = (p->s.k->max / LANES + 1) * LANES;
        p->stride = qn_kb_index(b, stride);
        p->base = qn_kb_index(b, 0);
        p->kept = qn_kernel_add_local(w->kernel, "kept", QUERN_F32, N_ROWS * stride);
        return;
    }
    const qn_dim lanes = qn_dim_const(dims, LANES);
    const qn_dim stride = qn_dim_mul(
        dims, qn_dim_add(dims, qn_dim_floordiv(dims, p->s.k, lanes), qn_dim_const(dims, 1)), lanes);
    const qn_dim rows = qn_dim_mul(dims, stride, qn_dim_const(dims, N_ROWS));
    p->stride = qn_writer_index(w, stride);
    p->base = qn_kb_imul(b, qn_kb_task(b), qn_writer_index(w, rows));
    const qn_dim all = qn_lower_dim(l, qn_dim_mul(dims, loops->tasks, rows));
    p->kept = qn_writer_argument(w, qn_lower_scratch(l, "kept", QUERN_F32, all), true, true);
}

qn_status qn_lower_suppress(qn_lowering *l, const qn_group *group)
{
    const qn_node *node = group->root;
    const qn_type *type = &node->operands[0]->type;
    suppressor p = { .s = { .axis = 2, .descending = true } };
    qn_opaque_begin(&p.s.o, l, group);
    qn_writer *w = &p.s.o.w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    qn_nest nest;
    qn_loops loops;
    int axes[QN_MAX_RANK];
    qn_writer_loop open[QN_MAX_RANK];
    p.s.n = qn_ispace_import(&w->space, type->dims[2]);
    p.s.k = qn_ispace_import(&w->space, node->results[0].type.dims[2]);
    const int64_t most = qn_keys_power(p.s.n->max < MOST_PORTION ? p.s.n->max + GROUP : MOST_PORTION);
    int64_t portion = p.s.k->max < MOST_PORTION ? qn_keys_power(p.s.k->max + p.s.k->max / 4) : MOST_PORTION;
    portion = portion < LEAST_PORTION ? LEAST_PORTION : portion;
    portion = portion < most ? portion : most;
    p.room = 2 * most;
    p.s.n_passes = qn_keys_passes(p.room);
    p.s.half = qn_kb_index(b, p.room + GROUP);
    p.s.base = qn_kb_index(b, 0);
    p.s.numbers = qn_kernel_add_local(w->kernel, "numbers", QUERN_U64, 2 * (p.room + GROUP));
    p.staged = qn_kernel_add_local(w->kernel, "staged", QUERN_U64, GROUP);

    const double grain = QN_GRAIN / (2 * (1 + qn_likely_extent(type->dims[2])));
    qn_opaque_nest(&p.s.o, type, 1u << 2, &nest, axes);
    qn_loops_plan(w, &nest, grain < 1 ? 1 : (int64_t)grain, &loops);
    for (int i = 0; i < 3; i++)
        p.s.at[i] = qn_dim_const(dims, 0);
    for (int i = 0; i < nest.n; i++)
        p.s.at[axes[i]] = loops.index[i];
    place_rows(&p, &loops);
    p.out = qn_writer_argument(w, qn_lower_buffer(l, (qn_value *)&node->results[0]), false, true);
    p.overlap = qn_kb_convert(b, QUERN_F32, at_zero(&p, 3));
    p.limit = qn_kb_imin(b, at_zero(&p, 2), qn_writer_index(w, p.s.k));
    p.all_count = word(&p, (uint64_t)0xff800001 << 32); /* behind -infinity */
    if (node->n_operands > 4) {
        qn_kvalue *key = qn_kb_convert(b, QUERN_U64, qn_keys_ordered(&p.s, at_zero(&p, 4)));
        p.all_count = qn_kb_binary(b, QN_OP_SHIFT_LEFT, key, word(&p, 32));
    }
    for (int i = 0; i < loops.n; i++)
        open[i] = qn_planned_loop_open(w, &loops.loops[i], QN_TAG_SERIAL);
    qn_dim result[3];
    for (int i = 0; i < 3; i++)
        result[i] = i < 2 ? p.s.at[i] : qn_dim_const(dims, 0);
    p.first = qn_writer_index(w, qn_opaque_linear(&p.s.o, &node->results[0].type, result));
    suppress(&p, portion);
    qn_opaque_close(&p.s.o, &loops, open);
    return qn_opaque_end(&p.s.o, loops.tasks);
}
