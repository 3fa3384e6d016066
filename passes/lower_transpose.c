/* LOOP groups that transpose: some operand is read across the lines that the outputs are written along.
 *
 *   for each block of 16 x 16 elements (as many as a vector has lanes; what is left over is smaller)
 *     16 vectors along the operand's lines, transposed in registers     -> local, in the first cache
 *     for each row of the block
 *       16 elements of the outputs, vectorized; what was transposed comes from the local block
 *
 * A block's columns lie along the last axis, its rows along whatever axis the operand's lines go, forwards or backwards:
 * [O, I, 3, 3] to blocks of 16 channels, [O / 16, I, 3, 3, 16], has rows of 9 along the last two axes of what is read.
 * An axis whose number is divided is first cut in two.
 *
 * Where the last axes are short, as the taps of a convolution's weights, but what is written is one run of memory along several of
 * them, the columns are the numbers in that run, and a block has several vectors of them: [O, I * 9] from [I, O / 16, 9, 16].
 *
 * Pairs that lie side by side in what is written, as products of bfloat16 want them, are the last axis, and columns lie along the one
 * before it: what is written of a row is two vectors, one of each number of a pair, shuffled into one (lower_zip.c). They come from
 * two blocks, [O, I, 3, 3] to [O / 16, 9, I / 2, 16, 2], or, where they are neighbours in a line too, from two rows of one:
 * [N, K] to [N / 32, K / 2, 32, 2].
 *
 * An element that is fetched by itself, or gathered, costs as much as a vector; this takes four shuffles for 16 elements, whether they
 * have four bytes, two or one. Of eight bytes, blocks are 8 x 8. */
#include <string.h>

#include "passes/lower.h"

enum {
    MAX_STAGED = 6,
    MAX_VECTORS = 4, /* of a block's rows where columns are numbers in a run */
    AHEAD = 4,       /* steps of the outer axes by which large buffers are fetched */
    AHEAD_BYTES = 1 << 20
};

typedef struct staged { /* an operand's block */
    const qn_kbuffer *from;
    qn_dim linear;
    int number; /* of a pair */
    qn_kbuffer *block;
} staged;

typedef struct transposer {
    const qn_group *group;
    int lanes, n;
    qn_dim row, column, step;            /* variables; step: of all outer axes */
    bool run;                            /* the columns are numbers in a run over several axes */
    qn_dim pair;                         /* variable; NULL: the last axis is the columns' */
    int number;                          /* of the pair that is being written */
    int height;                          /* most rows of a block */
    qn_kbuffer *apart;                   /* the numbers of a row's pairs, before they are put together */
    qn_kvalue *first_row, *first_column; /* of the block */
    int n_rows, n_columns;               /* of the block */
    qn_kblock *ahead;                    /* code that runs before the block's elements */
    qn_kvalue *first_staged;             /* there: the first column of those that are transposed */
    staged staged[MAX_STAGED];
    qn_dim (*at)[QN_MAX_RANK]; /* by output: index of the element */
} transposer;

bool qn_lower_crosses(qn_writer *w, qn_dim linear, qn_dim row, qn_dim column, bool along_row)
{
    enum { FAR = 16 };
    qn_dim factor, rest;
    if (row->kind != QN_DIM_SYMBOL || column->kind != QN_DIM_SYMBOL ||
        !qn_ix_affine(&w->space, linear, column, &factor, &rest) || factor->min < (along_row ? FAR : 2))
        return false;
    return !along_row || (qn_ix_affine(&w->space, linear, row, &factor, &rest) && qn_dim_is(factor, 1));
}

/* Does an address jump along `column`, and step through a line along `row`? Which way: 1 or -1; 0: it does not. `run`: an address
 * that divides the column jumps too. */
static int turns(qn_writer *w, qn_dim linear, qn_dim row, qn_dim column, bool run)
{
    qn_dim jump, step, rest;
    if (row->kind != QN_DIM_SYMBOL || column->kind != QN_DIM_SYMBOL)
        return 0;
    const bool jumps = qn_ix_affine(&w->space, linear, column, &jump, &rest)
                           ? jump->min >= 2
                           : run && qn_ix_uses(linear, column);
    if (!jumps || !qn_ix_affine(&w->space, linear, row, &step, &rest))
        return 0;
    return qn_dim_is(step, 1) ? 1 : qn_dim_is(step, -1) ? -1 : 0;
}

/* Does an address jump along `column`, and step through a line from pair to pair along `row`, and in a pair along `pair`? */
static bool turns_pairs(qn_writer *w, qn_dim linear, qn_dim row, qn_dim column, qn_dim pair)
{
    qn_dim jump, step, rest;
    return row->kind == QN_DIM_SYMBOL && column->kind == QN_DIM_SYMBOL &&
           qn_ix_affine(&w->space, linear, column, &jump, &rest) && jump->min >= 2 &&
           qn_ix_affine(&w->space, linear, row, &step, &rest) && qn_dim_is(step, 2) &&
           qn_ix_affine(&w->space, linear, pair, &step, &rest) && qn_dim_is(step, 1);
}

bool qn_lower_depends_only_on(const qn_writer *w, qn_dim linear, int n, const qn_dim *vars)
{
    for (size_t i = 0; i < w->space.vars.n; i++) {
        const qn_dim symbol = w->space.vars.items[i].symbol;
        bool known = false;
        for (int k = 0; k < n && !known; k++)
            known = vars[k] == symbol;
        if (!known && qn_ix_uses(linear, symbol))
            return false;
    }
    return true;
}

/* Of blocks for outputs of that type. */
static int lanes_of(const qn_lowering *l, qn_dtype output)
{
    const qn_machine *machine = l->options->machine;
    return machine && !machine->gpu ? machine->vector_bytes / (qn_dtype_bytes(output) == 8 ? 8 : 4) : 0;
}

/* The same in a rehearsal, of the first output. */
static int lanes_of_outputs(const qn_writer *r)
{
    for (size_t i = 0; i < r->accesses.n; i++)
        if (r->accesses.items[i].store)
            return lanes_of(r->lowering, r->accesses.items[i].buffer->dtype);
    return 0;
}

/* Can rows of such elements be transposed in registers? */
static bool is_shuffled(qn_dtype dtype, int lanes)
{
    enum { LEAST_BYTES = 8 }; /* of a vector */
    return dtype != QUERN_BOOL && qn_dtype_carrier(dtype) == dtype &&
           qn_dtype_bytes(dtype) * (size_t)lanes >= LEAST_BYTES;
}

int qn_transposed_axis(qn_writer *r, const qn_nest *nest, const qn_dim *vars)
{
    const int lanes = lanes_of_outputs(r), last = nest->n - 1;
    if (lanes < 4 || lanes > QN_TRANSPOSE_LANES || last < 1 || !qn_dim_is_const(nest->dims[last]))
        return -1;
    const int64_t columns = nest->dims[last]->value < lanes ? nest->dims[last]->value : lanes;
    for (size_t i = 0; i < r->accesses.n; i++) {
        const qn_access *a = &r->accesses.items[i];
        if (!a->buffer || a->store || !is_shuffled(a->buffer->dtype, lanes) ||
            !qn_lower_depends_only_on(r, a->linear, nest->n, vars))
            continue;
        for (int axis = last - 1; axis >= 0; axis--) { /* a quarter of a full block is worth the shuffles */
            const qn_dim rows = nest->dims[axis];
            if (qn_dim_is_const(rows) &&
                4 * columns * (rows->value < lanes ? rows->value : lanes) >= lanes * lanes &&
                turns(r, a->linear, vars[axis], vars[last], false))
                return axis;
        }
    }
    return -1;
}

int qn_paired_axis(qn_writer *r, const qn_nest *nest, const qn_dim *vars, qn_transposed_pairs *out_pairs)
{
    const int lanes = lanes_of_outputs(r), last = nest->n - 1, column = last - 1;
    if (lanes < 4 || lanes > QN_TRANSPOSE_LANES || column < 1 || !qn_dim_is(nest->dims[last], 2))
        return -1;
    const int64_t columns = nest->dims[column]->value;
    if (columns < lanes || (columns % lanes != 0 && !r->lowering->options->machine->masked))
        return -1;
    for (size_t i = 0; i < r->accesses.n; i++) {
        const qn_access *a = &r->accesses.items[i];
        if (!a->buffer || a->store || !is_shuffled(a->buffer->dtype, lanes) ||
            !qn_lower_depends_only_on(r, a->linear, nest->n, vars))
            continue;
        for (int axis = column - 1; axis >= 0; axis--) {
            const bool of_lines = turns_pairs(r, a->linear, vars[axis], vars[column], vars[last]);
            const qn_dim rows = nest->dims[axis];
            *out_pairs = of_lines ? QN_PAIRS_OF_LINES : QN_PAIRS_APART;
            if (qn_dim_is_const(rows) && rows->value << of_lines >= lanes / 4 &&
                (of_lines || turns(r, a->linear, vars[axis], vars[column], false)))
                return axis;
        }
    }
    *out_pairs = QN_PAIRS_NONE;
    return -1;
}

bool qn_nest_run(qn_writer *r, qn_nest *nest, int row_axis, const qn_dim *vars)
{
    const int lanes = lanes_of_outputs(r), last = nest->n - 1;
    if (row_axis >= last - 1 || !qn_dim_is_const(nest->dims[last - 1]) ||
        nest->dims[last]->value % lanes == 0)
        return false;
    for (size_t i = 0; i < r->accesses.n; i++) {
        const qn_access *a = &r->accesses.items[i];
        const bool staged = a->buffer && !a->store && is_shuffled(a->buffer->dtype, lanes) &&
                            turns(r, a->linear, vars[row_axis], vars[last], false) &&
                            qn_lower_depends_only_on(r, a->linear, nest->n, vars);
        if (!staged && !qn_nest_sees_as_one(&r->space, a->linear, vars[last - 1], vars[last],
                                            qn_ispace_var_of(&r->space, vars[last])->extent))
            return false;
    }
    const qn_nest before = *nest;
    nest->n = last;
    return qn_nest_join(r->lowering, nest, &before, last) || (nest->n = last + 1, false);
}

/* The constant that divides `var` by itself somewhere in d, or 0. */
static int64_t divisor_of(qn_dim d, qn_dim var)
{
    if ((d->kind == QN_DIM_MOD || d->kind == QN_DIM_FLOORDIV) && d->operands[0] == var &&
        qn_dim_is_const(d->operands[1]))
        return d->operands[1]->value;
    int64_t found = 0;
    for (int i = 0; i < d->n && !found; i++)
        found = divisor_of(d->operands[i], var);
    return found;
}

bool qn_nest_cut(qn_writer *r, qn_nest *nest, const qn_dim *vars)
{
    qn_dims *dims = r->lowering->program->dims;
    qn_nest cut = { 0 };
    for (int i = 0; i < nest->n; i++) {
        int64_t by = 0;
        for (size_t k = 0; k < r->accesses.n && !by; k++)
            if (r->accesses.items[k].buffer && !r->accesses.items[k].store)
                by = divisor_of(r->accesses.items[k].linear, vars[i]);
        qn_nest_add(&cut, nest, i);
        if (cut.n + nest->n - i > QN_MAX_RANK || by < 2 || !qn_dim_is_const(nest->dims[i]) ||
            nest->dims[i]->value % by != 0 || nest->first[i] % by != 0 || nest->whole[i] % by != 0)
            continue;
        cut.dims[cut.n - 1] = qn_dim_const(dims, nest->dims[i]->value / by);
        cut.first[cut.n - 1] /= by;
        cut.whole[cut.n - 1] /= by;
        cut.dims[cut.n++] = qn_dim_const(dims, by);
    }
    const bool changed = cut.n > nest->n;
    *nest = cut;
    return changed;
}

/* Half of the pieces, of so many lanes, of two vectors. By turns: those of each 16 bytes from number `first` on, of one vector
 * and of the other. Else: every other piece from number `first` on, all of the one vector, then of the other. */
static qn_kvalue *mix(qn_kbuilder *b, int lanes, int piece, qn_kvalue *x, qn_kvalue *y, int first,
                      bool by_turns)
{
    enum { BLOCK = 4 }; /* lanes of 16 bytes, inside which shuffles are the quickest */
    int mask[QN_TRANSPOSE_LANES];
    const int half = lanes / piece / 2;
    for (int i = 0; i < lanes; i++) {
        const int at = i / piece;
        mask[i] = by_turns ? i / BLOCK * BLOCK + (first + i % BLOCK / piece / 2) * piece + at % 2 * lanes
                           : (at % half * 2 + first) * piece + at / half * lanes;
        mask[i] += i % piece;
    }
    return qn_kb_shuffle(b, x, y, lanes, mask);
}

/* Four by four inside each 16 bytes, then whole 16 bytes. */
void qn_kb_transpose(qn_kbuilder *b, int lanes, qn_kvalue **rows)
{
    qn_kvalue *next[QN_TRANSPOSE_LANES];
    for (int i = 0; i < lanes; i++) /* rows 2 j and 2 j + 1, numbers by turns: 0 and 1, or 2 and 3 */
        next[i] = mix(b, lanes, 1, rows[i / 2 * 2], rows[i / 2 * 2 + 1], i % 2 * 2, true);
    for (int i = 0; i < lanes; i++) { /* pairs of them by turns: number i % 4 of four rows */
        qn_kvalue **four = next + i / 4 * 4 + i % 4 / 2;
        rows[i] = mix(b, lanes, 2, four[0], four[2], i % 2, true);
    }
    for (int n = 4; n < lanes; n *= 2) { /* rows n apart: pieces with even numbers, then with odd ones */
        for (int i = 0; i < lanes; i++) {
            const int low = i / (2 * n) * 2 * n + i % n;
            next[i] = mix(b, lanes, 4, rows[low], rows[low + n], i / n % 2, false);
        }
        memcpy(rows, next, sizeof next);
    }
}

/* Has the element that is at `linear` some steps later fetched, or in the next block of a run. */
static void fetch_ahead(qn_writer *w, const transposer *t, int buffer, qn_kbuffer *from, qn_dim linear)
{
    const qn_pbuffer *p = &w->lowering->program->buffers[buffer];
    const qn_dim along = t->run ? t->column : t->step;
    if (along->kind != QN_DIM_SYMBOL || p->elements->min < AHEAD_BYTES / (int64_t)qn_dtype_bytes(p->dtype))
        return;
    qn_var *var = qn_ispace_var_of(&w->space, along);
    qn_kvalue *const now = var->value;
    var->value = qn_kb_iadd(&w->b, now, qn_kb_index(&w->b, t->run ? t->n_columns : AHEAD));
    qn_kb_prefetch(&w->b, from, qn_writer_index(w, linear), 0);
    var->value = now;
}

/* Where a column's elements, `length` of them, begin. Under a mask, which decides whole columns, those that aren't there read somewhere in the buffer
 * instead: nobody takes what they read. */
static qn_kvalue *column_at(qn_writer *w, const qn_kbuffer *from, qn_dim linear, int length)
{
    qn_kbuilder *b = &w->b;
    qn_kvalue *at = qn_writer_index(w, linear);
    if (!w->mask)
        return at;
    const qn_pbuffer *p = &w->lowering->program->buffers[w->arguments.items[from->index].buffer];
    qn_kvalue *last =
        qn_kb_isub(b, qn_writer_index(w, qn_ispace_import(&w->space, p->elements)), qn_kb_index(b, length));
    return qn_kb_imax(b, qn_kb_imin(b, at, last), qn_kb_index(b, 0));
}

/* Is the mask, if there is one, the same for all elements of a block's column, and has the buffer as many of them? */
static bool masks_columns(const qn_writer *w, const transposer *t, const qn_kbuffer *from)
{
    for (size_t i = 0; i < w->bounds.n && w->mask; i++)
        if (qn_ix_uses(w->bounds.items[i].d, t->row))
            return false;
    return !w->mask ||
           (from->space == QN_SPACE_ARGUMENT &&
            w->lowering->program->buffers[w->arguments.items[from->index].buffer].elements->min >= t->lanes);
}

/* The operand's block, transposed, before the elements of the block that is being written. `way`: of its lines. `pairs`: each row
 * of what is written is two of this one. */
static qn_kbuffer *stage(qn_writer *w, const transposer *t, qn_kbuffer *from, qn_dim linear, int way,
                         bool pairs)
{
    qn_kbuilder *b = &w->b;
    qn_kblock *const cursor = b->block;
    qn_var *row = qn_ispace_var_of(&w->space, t->row), *column = qn_ispace_var_of(&w->space, t->column);
    qn_kvalue *const at_row = row->value, *const at_column = column->value, *rows[QN_TRANSPOSE_LANES];
    const int vectors = (t->n_columns + t->lanes - 1) / t->lanes, width = vectors * t->lanes,
              length = t->n_rows << pairs, n_columns = vectors > 1 ? t->lanes : t->n_columns;
    qn_kbuffer *block = qn_kernel_add_local(w->kernel, "block", from->dtype, (int64_t)t->lanes * width);
    b->block = t->ahead;
    if (t->pair)
        qn_ispace_set(&w->space, t->pair, qn_kb_index(b, pairs ? 0 : t->number));
    qn_kvalue *some = NULL,
              *none = qn_kb_const(b, (qn_ktype){ from->dtype, t->lanes }, (qn_scalar){ .i = 0 });
    if (length < t->lanes)
        some = qn_kb_compare(b, QN_LT, qn_kb_ramp(b, qn_kb_index(b, 0), t->lanes),
                             qn_kb_splat(b, qn_kb_index(b, length), t->lanes));
    row->value = way > 0 ? t->first_row : qn_kb_iadd(b, t->first_row, qn_kb_index(b, t->n_rows - 1));
    for (int i = 0; i < t->lanes; i++) {
        column->value = qn_kb_iadd(b, t->first_staged, qn_kb_index(b, i));
        rows[i] = i >= n_columns ? none
                  : some
                      ? qn_kb_load_masked(b, from, column_at(w, from, linear, length), t->lanes, some, none)
                      : qn_kb_load(b, from, column_at(w, from, linear, length), t->lanes);
        if (i < n_columns)
            fetch_ahead(w, t, w->arguments.items[from->index].buffer, from, linear);
    }
    qn_kb_transpose(b, t->lanes, rows);
    for (int i = 0; i < length; i++)
        qn_kb_store(b, block,
                    qn_kb_iadd(b, qn_kb_isub(b, t->first_staged, t->first_column),
                               qn_kb_index(b, (int64_t)i * width)),
                    rows[way > 0 ? i : length - 1 - i], NULL);
    b->block = cursor;
    if (t->pair)
        qn_ispace_set(&w->space, t->pair, qn_kb_index(b, t->number));
    row->value = at_row;
    column->value = at_column;
    return block;
}

/* qn_writer.load: loads across lines come from blocks. */
static qn_kvalue *load(qn_writer *w, void *user, qn_kbuffer *from, qn_dim linear)
{
    transposer *t = user;
    const bool pairs = t->height < t->lanes && turns_pairs(w, linear, t->row, t->column, t->pair);
    const int way = pairs ? 1 : turns(w, linear, t->row, t->column, t->run), number = pairs ? 0 : t->number;
    if (!masks_columns(w, t, from) || !is_shuffled(from->dtype, t->lanes) || !way ||
        !qn_lower_depends_only_on(w, linear, t->pair ? 4 : 3,
                                  (const qn_dim[]){ t->row, t->column, t->step, t->pair }))
        return NULL;
    int i = 0;
    while (i < t->n &&
           (t->staged[i].from != from || t->staged[i].linear != linear || t->staged[i].number != number))
        i++;
    if (i == MAX_STAGED)
        return NULL;
    if (i == t->n)
        t->staged[t->n++] = (staged){ from, linear, number, stage(w, t, from, linear, way, pairs) };
    qn_kbuilder *b = &w->b;
    qn_kvalue *row = qn_kb_isub(b, qn_writer_index(w, t->row), t->first_row);
    if (pairs)
        row = qn_kb_iadd(b, qn_kb_imul(b, row, qn_kb_index(b, 2)), qn_kb_index(b, t->number));
    qn_kvalue *column = qn_kb_isub(b, qn_writer_index(w, t->column), t->first_column);
    const int64_t width = (t->n_columns + t->lanes - 1) / t->lanes * t->lanes;
    return qn_kb_load(b, t->staged[i].block, qn_kb_iadd(b, qn_kb_imul(b, row, qn_kb_index(b, width)), column),
                      1);
}

/* The row's part of each output, some steps ahead. */
static void fetch_outputs(qn_writer *w, const transposer *t, int from)
{
    qn_var *column = qn_ispace_var_of(&w->space, t->column);
    column->value = qn_kb_iadd(&w->b, t->first_column, qn_kb_index(&w->b, from));
    for (int i = 0; i < t->group->n_outputs; i++) {
        qn_value *value = t->group->outputs[i];
        const int buffer = qn_lower_buffer(w->lowering, value);
        qn_dim dims[QN_MAX_RANK];
        qn_ispace_dims(&w->space, &value->type, dims);
        fetch_ahead(w, t, buffer, qn_writer_argument(w, buffer, false, true),
                    qn_ix_linear(&w->space, value->type.rank, dims, t->at[i]));
    }
    column->value = NULL;
}

/* A row's pairs: a vector of one number of each, then of the other, put together. */
static void write_pairs(qn_writer *w, transposer *t, qn_kvalue *past_column)
{
    qn_kbuilder *b = &w->b;
    qn_value *value = t->group->outputs[0];
    const size_t mark = qn_writer_mark(w);
    for (t->number = 0; t->number < 2; t->number++) {
        qn_ispace_set(&w->space, t->pair, qn_kb_index(b, t->number));
        w->section++;
        qn_writer_loop columns =
            qn_writer_for(w, t->column, t->first_column, past_column, QN_TAG_VECTOR, 0, NULL, NULL);
        qn_kvalue *place = qn_kb_iadd(b, qn_kb_isub(b, qn_writer_index(w, t->column), t->first_column),
                                      qn_kb_index(b, (int64_t)t->number * t->lanes));
        qn_kb_store(b, t->apart, place, qn_writer_value(w, value, t->at[0]), NULL);
        qn_writer_end_for(w, &columns, NULL);
    }
    qn_ispace_set(&w->space, t->pair, qn_kb_index(b, 0));
    qn_ispace_set(&w->space, t->column, t->first_column);
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&w->space, &value->type, dims);
    qn_kbuffer *to = qn_writer_argument(w, qn_lower_buffer(w->lowering, value), false, true);
    qn_kvalue *at = qn_writer_index(w, qn_ix_linear(&w->space, value->type.rank, dims, t->at[0]));
    qn_store_zipped(w, t->apart, 2, t->lanes, to, at, t->n_columns);
    qn_writer_forget(w, mark);
    qn_ispace_set(&w->space, t->column, NULL);
}

static void one_block(qn_writer *w, transposer *t)
{
    qn_kbuilder *b = &w->b;
    qn_kvalue *past_row = qn_kb_iadd(b, t->first_row, qn_kb_index(b, t->n_rows)),
              *past_column = qn_kb_iadd(b, t->first_column, qn_kb_index(b, t->n_columns));
    w->section++; /* other elements than the block before */
    /* a loop, of one step where a row is one vector, holds a place for what is found to be staged; nothing that it needs comes
     * behind it */
    const bool one = t->n_columns <= t->lanes;
    qn_kinst *staging =
        qn_kb_for(b, one ? qn_kb_index(b, 0) : t->first_column, one ? qn_kb_index(b, 1) : past_column,
                  qn_kb_index(b, one ? 1 : t->lanes), QN_TAG_SERIAL, 0, NULL, NULL);
    t->ahead = staging->blocks[0];
    t->first_staged = one ? t->first_column : &t->ahead->arguments[0];
    t->n = 0;
    qn_kb_end_for(b, staging, NULL);
    w->load = load;
    w->load_user = t;
    qn_writer_loop rows = qn_writer_for(w, t->row, t->first_row, past_row, QN_TAG_SERIAL, 0, NULL, NULL);
    if (t->pair) {
        write_pairs(w, t, past_column);
    } else {
        for (int i = 0; i < t->n_columns; i += t->lanes)
            fetch_outputs(w, t, i);
        qn_writer_loop columns =
            qn_writer_for(w, t->column, t->first_column, past_column, QN_TAG_VECTOR, 0, NULL, NULL);
        qn_loop_element(w, t->group, t->at);
        qn_writer_end_for(w, &columns, NULL);
    }
    qn_writer_end_for(w, &rows, NULL);
    w->load = NULL;
}

/* Blocks of n_rows rows from low on, as long as they begin below high. */
static void rows_of_blocks(qn_writer *w, transposer *t, int64_t n_rows, qn_kvalue *low, qn_kvalue *high)
{
    qn_kbuilder *b = &w->b;
    if (n_rows == 0)
        return;
    qn_kinst *loop = qn_kb_for(b, low, high, qn_kb_index(b, t->height), QN_TAG_SERIAL, 0, NULL, NULL);
    t->first_row = qn_loop_counter(loop);
    t->n_rows = (int)n_rows;
    one_block(w, t);
    qn_kb_end_for(b, loop, NULL);
}

/* How many vectors a block's rows have, so that whole blocks are as many as whole vectors allow. */
static int vectors_of(int64_t columns, int lanes)
{
    int vectors = columns < lanes ? 1 : MAX_VECTORS;
    while (columns / lanes % vectors != 0)
        vectors--;
    return vectors;
}

typedef struct range {
    qn_kvalue *low, *high;
} range;

/* A part of [0, extent), all being of `size` but the last. */
static range part_of(qn_kbuilder *b, qn_kvalue *part, int64_t size, int64_t extent)
{
    qn_kvalue *low = qn_kb_imul(b, part, qn_kb_index(b, size));
    return (range){ low, qn_kb_imin(b, qn_kb_iadd(b, low, qn_kb_index(b, size)), qn_kb_index(b, extent)) };
}

qn_dim qn_write_transposed(qn_writer *w, const qn_group *group, const qn_nest *nest, int row_axis, bool run,
                           qn_transposed_pairs pairs, int64_t grain)
{
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    transposer *t = QN_NEW(w->arena, transposer);
    t->group = group;
    t->lanes = lanes_of(w->lowering, group->outputs[0]->type.dtype);
    t->run = run;
    qn_dim extents[QN_MAX_RANK], outer_index[QN_MAX_RANK], outer_extents[QN_MAX_RANK], index[QN_MAX_RANK],
        outer = qn_dim_const(dims, 1);
    const int last = nest->n - 1 - (pairs != QN_PAIRS_NONE); /* the columns' */
    int n_outer = 0;
    for (int i = 0; i < nest->n; i++) {
        extents[i] = qn_ispace_import(&w->space, nest->dims[i]);
        if (i == row_axis || i >= last)
            continue;
        outer_extents[n_outer++] = extents[i];
        outer = qn_dim_mul(dims, outer, extents[i]);
    }
    const int64_t lanes = t->lanes, n_rows = extents[row_axis]->value, n_columns = extents[last]->value,
                  width = run ? vectors_of(n_columns, t->lanes) * lanes : lanes;
    /* a task: some rows of one step of the outer axes, in a run some columns of them, or some steps */
    const int64_t height = t->height = (int)(pairs == QN_PAIRS_OF_LINES ? lanes / 2 : lanes);
    int64_t rows = grain / n_columns / height * height;
    rows = rows < height ? height : rows;
    rows = rows > n_rows ? n_rows : rows;
    int64_t columns = run ? grain / rows / width * width : n_columns;
    columns = columns < width ? width : columns;
    columns = columns > n_columns ? n_columns : columns;
    const int64_t row_pieces = (n_rows + rows - 1) / rows,
                  pieces = row_pieces * ((n_columns + columns - 1) / columns),
                  steps = pieces > 1 || grain < n_rows * n_columns ? 1 : grain / (n_rows * n_columns);
    const qn_dim parts = qn_dim_ceildiv(dims, outer, qn_dim_const(dims, steps));
    const qn_dim step = t->step = qn_ispace_var(&w->space, outer, false);
    qn_ix_split(&w->space, step, n_outer, outer_extents, outer_index);
    t->row = qn_ispace_var(&w->space, extents[row_axis], false);
    t->column = qn_ispace_var(&w->space, extents[last], false);
    if (pairs != QN_PAIRS_NONE) {
        t->pair = qn_ispace_var(&w->space, extents[last + 1], false);
        t->apart = qn_kernel_add_local(w->kernel, "apart", group->outputs[0]->type.dtype, 2 * lanes);
    }
    for (int i = 0, from = 0; i < nest->n; i++)
        index[i] = i == row_axis ? t->row : i == last ? t->column : i > last ? t->pair : outer_index[from++];
    t->at = qn_arena_calloc(w->arena, (size_t)group->n_outputs, sizeof *t->at);
    for (int i = 0; i < group->n_outputs; i++)
        qn_nest_index(w, nest, index, &group->outputs[i]->type, t->at[i]);

    qn_kvalue *task = qn_writer_task(w), *piece = qn_kb_imod(b, task, qn_kb_index(b, pieces));
    const range by_row = part_of(b, qn_kb_imod(b, piece, qn_kb_index(b, row_pieces)), rows, n_rows),
                by_column = part_of(b, qn_kb_idiv(b, piece, qn_kb_index(b, row_pieces)), columns, n_columns);
    qn_kvalue *from = qn_kb_imul(b, qn_kb_idiv(b, task, qn_kb_index(b, pieces)), qn_kb_index(b, steps));
    qn_kvalue *to = qn_kb_imin(b, qn_kb_iadd(b, from, qn_kb_index(b, steps)), qn_writer_index(w, outer));
    qn_kvalue *whole_rows = qn_kb_index(b, n_rows - n_rows % height),
              *whole_columns = qn_kb_index(b, n_columns - n_columns % lanes);
    qn_writer_loop by_step = qn_writer_for(w, step, from, to, QN_TAG_SERIAL, 0, NULL, NULL);
    for (int i = 0; i < group->n_outputs && !t->pair; i++)
        qn_writer_prepare(w, group->outputs[i], t->at[i]);
    for (int rest = 0; rest < 2; rest++) { /* whole blocks of columns, then what is left of them */
        t->n_columns = (int)(rest ? n_columns % lanes : n_columns < lanes ? 0 : width);
        if (t->n_columns == 0)
            continue;
        qn_kinst *blocks = qn_kb_for(b, rest ? qn_kb_imax(b, by_column.low, whole_columns) : by_column.low,
                                     rest ? by_column.high : qn_kb_imin(b, by_column.high, whole_columns),
                                     qn_kb_index(b, rest ? lanes : width), QN_TAG_SERIAL, 0, NULL, NULL);
        t->first_column = qn_loop_counter(blocks);
        rows_of_blocks(w, t, n_rows < height ? 0 : height, by_row.low,
                       qn_kb_imin(b, by_row.high, whole_rows));
        rows_of_blocks(w, t, n_rows % height, qn_kb_imax(b, by_row.low, whole_rows), by_row.high);
        qn_kb_end_for(b, blocks, NULL);
    }
    qn_writer_end_for(w, &by_step, NULL);
    return qn_dim_mul(dims, parts, qn_dim_const(dims, pieces));
}
