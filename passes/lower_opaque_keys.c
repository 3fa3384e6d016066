/* sort and top_k: numbers in the keys' order are sorted, each with its position.
 *
 * Above its position in the line, a number of 64 bits holds the key's own bits, changed so that they are in the order of sort as
 * an unsigned number: 0 for -0, one NaN above all else, all bits turned where the order descends. So no two are equal, equal
 * keys stay in their order, and comparing takes no branch. A line is sorted in two halves of a buffer by turns:
 *
 *   for each 64 numbers (the last are filled up with the greatest)
 *     eight vectors of eight: sorted lane by lane by a network, transposed: eight runs of eight
 *     two runs each: one is turned around, so that both are a run that rises and falls; such ones fall apart into the lesser and
 *       the greater half of their numbers, again and again (a bitonic merge), until there is one run
 *   for width = 64, 128, … below their number
 *     for two runs each         the first `width` numbers from the front, the others from the back: no end is met
 *   operands are read at the positions of the first k numbers
 *
 * Where only a few of a line are wanted, the buffer takes what comes before the last of the first k so far. When it is half full it
 * is sorted, which leaves k:
 *
 *   for low = 0 to n step half
 *     for i = low to low + half     buffer[count] = number[i]; count += number[i] < least
 *     if count > half               sort; count = k; least = buffer[k - 1]
 *
 * Keys of 64 bits are taken from the line's least, so that most lines of integers have 32 bits again. Others are sorted twice: by their
 * lower bits, then what that gives by the upper ones. Where few are wanted, the first k are found by the 32 upper bits that tell the line's
 * keys apart, and what is not behind the last of these is sorted:
 *
 *   for round = 0 to 1 or 2
 *     number[j] = 32 bits of key[positions[j]] above j; sort; positions[j] = positions[lower bits of number[j]] */
#include <string.h>

#include "passes/lower_opaque_keys.h"

enum {
    BASE = 8, /* lanes, and numbers of a run at first */
    GROUP = QN_KEYS_GROUP,
    POSITION_BITS = 32,
    MOST_LOCAL = 1 << 13, /* numbers in a half that lies in the task's own memory */
    LEAST_ROOM = 128,     /* numbers in a half where few are wanted, and how many times as many as these */
    ROOM = 4
};

bool qn_lower_packs_keys(const qn_node *node, const qn_pass_options *options)
{
    const bool suppresses = node->op == QN_OP_SUPPRESS;
    return (node->op == QN_OP_SORT || node->op == QN_OP_TOP_K || suppresses) &&
           !(options->machine && options->machine->gpu) &&
           !(suppresses && (qn_dtype_bytes(node->operands[0]->type.dtype) > 4 ||
                            qn_dtype_bytes(node->operands[1]->type.dtype) > 4));
}

/* ---- numbers ---- */

static qn_kvalue *word(qn_keys *s, qn_dtype dtype, uint64_t value)
{
    return qn_kb_const(&s->o.w.b, (qn_ktype){ dtype, 1 }, (qn_scalar){ .i = (int64_t)value });
}

static qn_kvalue *last_of_all(qn_keys *s)
{
    return word(s, QUERN_U64, UINT64_MAX);
}

qn_kvalue *qn_keys_ordered(qn_keys *s, qn_kvalue *key)
{
    qn_kbuilder *b = &s->o.w.b;
    const qn_dtype dtype = key->type.dtype;
    const bool wide = qn_dtype_bytes(dtype) == 8;
    const qn_dtype to = wide ? QUERN_U64 : QUERN_U32;
    const uint64_t all = wide ? UINT64_MAX : UINT32_MAX, sign = all / 2 + 1;
    qn_kvalue *top = word(s, to, sign), *bits;
    if (qn_dtype_is_float(dtype)) {
        bits = qn_kb_bitcast(b, to, qn_kb_convert(b, wide ? QUERN_F64 : QUERN_F32, key));
        qn_kvalue *size = qn_kb_binary(b, QN_OP_AND, bits, word(s, to, sign - 1));
        qn_kvalue *infinity = word(s, to, wide ? 0x7ff0000000000000u : 0x7f800000u);
        qn_kvalue *nan = qn_kb_compare(b, QN_GT, size, infinity);
        qn_kvalue *negative = qn_kb_compare(b, QN_GT, bits, top); /* and not -0 */
        bits =
            qn_kb_select(b, negative, qn_kb_unary(b, QN_OP_NOT, bits), qn_kb_binary(b, QN_OP_OR, bits, top));
        bits = qn_kb_select(b, nan, word(s, to, all), bits);
    } else if (qn_dtype_class_of(dtype) == QN_CLASS_SIGNED) {
        bits = qn_kb_bitcast(b, to, qn_kb_convert(b, wide ? QUERN_I64 : QUERN_I32, key));
        bits = qn_kb_binary(b, QN_OP_XOR, bits, top);
    } else {
        bits = qn_kb_convert(b, to, key);
    }
    return s->descending ? qn_kb_unary(b, QN_OP_NOT, bits) : bits;
}

static qn_kvalue *ordered_at(qn_keys *s, qn_dim i)
{
    qn_dim at[QN_MAX_RANK];
    memcpy(at, s->at, sizeof at);
    at[s->axis] = i;
    return qn_keys_ordered(s, qn_writer_value(&s->o.w, s->o.node->operands[0], at));
}

/* The lower 32 bits above the number of an element. */
static qn_kvalue *above(qn_keys *s, qn_kvalue *bits, qn_kvalue *element)
{
    qn_kbuilder *b = &s->o.w.b;
    bits = qn_kb_binary(b, QN_OP_SHIFT_LEFT, bits, word(s, QUERN_U64, POSITION_BITS));
    return qn_kb_binary(b, QN_OP_OR, bits, qn_kb_convert(b, QUERN_U64, element));
}

static qn_kvalue *lower_bits(qn_keys *s, qn_kvalue *number)
{
    qn_kbuilder *b = &s->o.w.b;
    return qn_kb_convert(b, QUERN_I64, qn_kb_binary(b, QN_OP_AND, number, word(s, QUERN_U64, UINT32_MAX)));
}

qn_kvalue *qn_keys_number(qn_keys *s, qn_dim i)
{
    qn_kbuilder *b = &s->o.w.b;
    qn_kvalue *bits = ordered_at(s, i);
    bits = bits->type.dtype == QUERN_U32
               ? qn_kb_convert(b, QUERN_U64, bits)
               : qn_kb_binary(b, QN_OP_SHIFT_RIGHT, qn_kb_binary(b, QN_OP_SUB, bits, s->least), s->shift);
    return above(s, bits, qn_writer_index(&s->o.w, i));
}

qn_kvalue *qn_keys_place(qn_keys *s, qn_kvalue *half, qn_kvalue *i)
{
    qn_kbuilder *b = &s->o.w.b;
    return qn_kb_iadd(b, qn_kb_iadd(b, s->base, half), i);
}

static qn_kvalue *number(qn_keys *s, qn_kvalue *half, qn_kvalue *i)
{
    return qn_kb_load(&s->o.w.b, s->numbers, qn_keys_place(s, half, i), 1);
}

/* ---- sorting ---- */

/* The greatest of two goes to the second place, in all lanes. */
static void exchange(qn_kbuilder *b, qn_kvalue **x, qn_kvalue **y)
{
    qn_kvalue *least = qn_kb_binary(b, QN_OP_MIN, *x, *y);
    *y = qn_kb_binary(b, QN_OP_MAX, *x, *y);
    *x = least;
}

/* Sorts two vectors that rise and fall: exchanges at distances of 4, 2 and 1 lanes, of both at once, for which what is to be
 * compared is put side by side. */
static void sort_risen(qn_kbuilder *b, qn_kvalue **x, qn_kvalue **y)
{
    static const int order[4][2][BASE] = {
        { { 0, 1, 2, 3, 8, 9, 10, 11 }, { 4, 5, 6, 7, 12, 13, 14, 15 } },
        { { 0, 1, 8, 9, 4, 5, 12, 13 }, { 2, 3, 10, 11, 6, 7, 14, 15 } },
        { { 0, 8, 2, 10, 4, 12, 6, 14 }, { 1, 9, 3, 11, 5, 13, 7, 15 } },
        { { 0, 8, 1, 9, 2, 10, 3, 11 }, { 4, 12, 5, 13, 6, 14, 7, 15 } }, /* as they were */
    };
    for (int i = 0; i < 4; i++) {
        qn_kvalue *first = qn_kb_shuffle(b, *x, *y, BASE, order[i][0]);
        *y = qn_kb_shuffle(b, *x, *y, BASE, order[i][1]);
        *x = first;
        if (i < 3)
            exchange(b, x, y);
    }
}

/* Two runs of n vectors each become one. */
static void merge_vectors(qn_kbuilder *b, int n, qn_kvalue **v)
{
    static const int turned[BASE] = { 7, 6, 5, 4, 3, 2, 1, 0 };
    qn_kvalue *second[BASE];
    for (int i = 0; i < n; i++)
        second[i] = qn_kb_shuffle(b, v[2 * n - 1 - i], v[2 * n - 1 - i], BASE, turned);
    for (int i = 0; i < n; i++) {
        v[n + i] = second[i];
        exchange(b, &v[i], &v[n + i]);
    }
    for (int apart = n / 2; apart > 0; apart /= 2)
        for (int i = 0; i < 2 * n; i++)
            if (!(i & apart))
                exchange(b, &v[i], &v[i + apart]);
    for (int i = 0; i < 2 * n; i += 2)
        sort_risen(b, &v[i], &v[i + 1]);
}

/* Runs of GROUP in place, in whole groups. */
static void sort_groups(qn_keys *s, qn_kvalue *half, qn_kvalue *count)
{
    static const int network[19][2] = { { 0, 2 }, { 1, 3 }, { 4, 6 }, { 5, 7 }, { 0, 4 }, { 1, 5 }, { 2, 6 },
                                        { 3, 7 }, { 0, 1 }, { 2, 3 }, { 4, 5 }, { 6, 7 }, { 2, 4 }, { 3, 5 },
                                        { 1, 4 }, { 3, 6 }, { 1, 2 }, { 3, 4 }, { 5, 6 } };
    qn_kbuilder *b = &s->o.w.b;
    for (int i = 0; i < GROUP / BASE; i++) /* so that whole groups may be read */
        qn_kb_store(b, s->numbers, qn_keys_place(s, half, qn_kb_iadd(b, count, qn_kb_index(b, i * BASE))),
                    qn_kb_splat(b, last_of_all(s), BASE), NULL);
    qn_kinst *groups =
        qn_kb_for(b, qn_kb_index(b, 0), count, qn_kb_index(b, GROUP), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *rows[QN_TRANSPOSE_LANES], *at[BASE];
    for (int i = 0; i < BASE; i++) {
        at[i] = qn_keys_place(s, half, qn_kb_iadd(b, qn_loop_counter(groups), qn_kb_index(b, i * BASE)));
        rows[i] = qn_kb_load(b, s->numbers, at[i], BASE);
    }
    for (size_t i = 0; i < sizeof network / sizeof *network; i++)
        exchange(b, &rows[network[i][0]], &rows[network[i][1]]);
    qn_kb_transpose(b, BASE, rows);
    for (int n = 1; n < BASE; n *= 2)
        for (int i = 0; i < BASE; i += 2 * n)
            merge_vectors(b, n, rows + i);
    for (int i = 0; i < BASE; i++)
        qn_kb_store(b, s->numbers, at[i], rows[i], NULL);
    qn_kb_end_for(b, groups, NULL);
}

/* Two runs of that width from `low` on into the other half. */
static void merge(qn_keys *s, qn_kvalue *from, qn_kvalue *to, qn_kvalue *low, qn_kvalue *width)
{
    qn_kbuilder *b = &s->o.w.b;
    qn_kvalue *zero = qn_kb_index(b, 0), *one = qn_kb_index(b, 1);
    qn_kvalue *middle = qn_kb_iadd(b, low, width);
    qn_kvalue *given[2] = { zero, zero }; /* how many the right run has given to the front and to the back */
    qn_kvalue *last_left = qn_kb_isub(b, middle, one);
    qn_kvalue *last_right = qn_kb_iadd(b, last_left, width);
    qn_kinst *loop = qn_kb_carry(b, zero, width, one, QN_TAG_SERIAL, 2, given, NULL);
    qn_kvalue *k = qn_loop_counter(loop), *front = given[0], *back = given[1];
    qn_kvalue *x = number(s, from, qn_kb_iadd(b, low, qn_kb_isub(b, k, front)));
    qn_kvalue *y = number(s, from, qn_kb_iadd(b, middle, front));
    qn_kb_store(b, s->numbers, qn_keys_place(s, to, qn_kb_iadd(b, low, k)), qn_kb_binary(b, QN_OP_MIN, x, y),
                NULL);
    qn_kvalue *first = qn_kb_convert(b, QUERN_I64, qn_kb_compare(b, QN_LT, y, x));
    x = number(s, from, qn_kb_isub(b, last_left, qn_kb_isub(b, k, back)));
    y = number(s, from, qn_kb_isub(b, last_right, back));
    qn_kb_store(b, s->numbers, qn_keys_place(s, to, qn_kb_isub(b, last_right, k)),
                qn_kb_binary(b, QN_OP_MAX, x, y), NULL);
    qn_kvalue *second = qn_kb_convert(b, QUERN_I64, qn_kb_compare(b, QN_GT, y, x));
    given[0] = qn_kb_iadd(b, front, first);
    given[1] = qn_kb_iadd(b, back, second);
    qn_kb_end_carry(b, loop, given);
}

/* One width. A run that is alone is copied, with the greatest numbers behind it. */
static void merge_pass(void *user, qn_kvalue *from, qn_kvalue *to, qn_kvalue *width)
{
    qn_keys *s = user;
    qn_kbuilder *b = &s->o.w.b;
    qn_kinst *lows =
        qn_kb_for(b, qn_kb_index(b, 0), s->count, qn_kb_iadd(b, width, width), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *low = qn_loop_counter(lows), *middle = qn_kb_iadd(b, low, width);
    qn_kinst *two = qn_kb_if(b, qn_kb_compare(b, QN_LT, middle, s->count));
    merge(s, from, to, low, width);
    qn_kb_else(b, two, 0, NULL);
    qn_kinst *copy =
        qn_kb_for(b, qn_kb_index(b, 0), width, qn_kb_index(b, BASE), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *left = qn_kb_iadd(b, low, qn_loop_counter(copy));
    qn_kb_store(b, s->numbers, qn_keys_place(s, to, left),
                qn_kb_load(b, s->numbers, qn_keys_place(s, from, left), BASE), NULL);
    qn_kb_store(b, s->numbers, qn_keys_place(s, to, qn_kb_iadd(b, left, width)),
                qn_kb_splat(b, last_of_all(s), BASE), NULL);
    qn_kb_end_for(b, copy, NULL);
    qn_kb_end_if(b, two, 0, NULL);
    qn_kb_end_for(b, lows, NULL);
}

void qn_keys_sort(qn_keys *s, qn_kvalue *count, qn_kvalue **from)
{
    qn_kbuilder *b = &s->o.w.b;
    sort_groups(s, from[0], count);
    qn_kvalue *group = qn_kb_index(b, GROUP); /* the last is as full as the others now */
    s->count = qn_kb_imul(b, qn_kb_idiv(b, qn_kb_iadd(b, count, qn_kb_index(b, GROUP - 1)), group), group);
    qn_opaque_merge(&s->o, group, s->count, s->n_passes, from, merge_pass, s);
}

/* ---- lines ---- */

/* All numbers of the line, sorted. */
static void sort_line(qn_keys *s, qn_kvalue **from)
{
    qn_writer *w = &s->o.w;
    const qn_dim i = qn_ispace_var(&w->space, s->n, false);
    qn_writer_loop fill = qn_writer_for_all(w, i, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kb_store(&w->b, s->numbers, qn_keys_place(s, from[0], qn_writer_index(w, i)), qn_keys_number(s, i),
                NULL);
    qn_writer_end_for(w, &fill, NULL);
    qn_keys_sort(s, qn_writer_index(w, s->n), from);
}

/* Puts those of the n staged numbers that are below the least so far, now[3], behind the now[2] of half now[0]: how many there are then.
 * Most of a long line are not: some are compared at once. */
static qn_kvalue *take_lesser(qn_keys *s, qn_kbuffer *staged, qn_kvalue *n, qn_kvalue *now)
{
    enum { VECTORS = 2, SOME = VECTORS * BASE };
    qn_kbuilder *b = &s->o.w.b;
    qn_kvalue *count = &now[2], *one = qn_kb_index(b, 1), *any = NULL;
    qn_kinst *blocks =
        qn_kb_carry(b, qn_kb_index(b, 0), n, qn_kb_index(b, SOME), QN_TAG_SERIAL, 1, &count, NULL);
    qn_kvalue *first = qn_loop_counter(blocks);
    for (int i = 0; i < VECTORS; i++) { /* behind the n may be anything */
        qn_kvalue *x = qn_kb_load(b, staged, qn_kb_iadd(b, first, qn_kb_index(b, i * BASE)), BASE);
        qn_kvalue *less = qn_kb_compare(b, QN_LT, x, qn_kb_splat(b, &now[3], BASE));
        any = any ? qn_kb_binary(b, QN_OP_OR, any, less) : less;
    }
    qn_kinst *some = qn_kb_if(b, qn_kb_reduce(b, QN_KIND_MAX, any));
    qn_kvalue *taken = count, *behind = qn_kb_imin(b, qn_kb_iadd(b, first, qn_kb_index(b, SOME)), n);
    qn_kinst *take = qn_kb_carry(b, first, behind, one, QN_TAG_SERIAL, 1, &taken, NULL);
    qn_kvalue *x = qn_kb_load(b, staged, qn_loop_counter(take), 1);
    qn_kb_store(b, s->numbers, qn_keys_place(s, &now[0], taken), x, NULL);
    taken = qn_kb_iadd(b, taken, qn_kb_convert(b, QUERN_I64, qn_kb_compare(b, QN_LT, x, &now[3])));
    qn_kb_end_carry(b, take, &taken);
    qn_kb_else(b, some, 1, &taken);
    qn_kb_end_if(b, some, 1, &count);
    count = &some->results[0];
    qn_kb_end_carry(b, blocks, &count);
    return count;
}

/* Its first k; `room` numbers fit into a half. */
static void select_first(qn_keys *s, int64_t room, qn_kvalue **from)
{
    qn_writer *w = &s->o.w;
    qn_kbuilder *b = &w->b;
    qn_kbuffer *staged = qn_kernel_add_local(w->kernel, "staged", QUERN_U64, room / 2);
    qn_kvalue *zero = qn_kb_index(b, 0), *one = qn_kb_index(b, 1), *half = qn_kb_index(b, room / 2);
    qn_kvalue *n = qn_writer_index(w, s->n), *k = qn_writer_index(w, s->k);
    qn_kvalue *state[4] = { from[0], from[1], zero, last_of_all(s) };
    qn_kinst *lows = qn_kb_for(b, zero, n, half, QN_TAG_SERIAL, 4, state, NULL);
    qn_kvalue *low = qn_loop_counter(lows), *now = lows->blocks[0]->arguments + 1;
    qn_kvalue *high = qn_kb_imin(b, qn_kb_iadd(b, low, half), n);
    const size_t mark = qn_writer_mark(w);
    const qn_dim i = qn_ispace_var(&w->space, s->n, false);
    qn_writer_loop fill = qn_writer_for(w, i, low, high, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kb_store(b, staged, qn_kb_isub(b, qn_writer_index(w, i), low), qn_keys_number(s, i), NULL);
    qn_writer_end_for(w, &fill, NULL);

    qn_kvalue *count = take_lesser(s, staged, qn_kb_isub(b, high, low), now);
    qn_kinst *full = qn_kb_if(b, qn_kb_compare(b, QN_GT, count, half));
    qn_kvalue *sorted[2] = { &now[0], &now[1] };
    qn_keys_sort(s, count, sorted);
    qn_kvalue *const left[4] = { sorted[0], sorted[1], k, number(s, sorted[0], qn_kb_isub(b, k, one)) };
    qn_kb_else(b, full, 4, left);
    qn_kvalue *const same[4] = { &now[0], &now[1], count, &now[3] };
    qn_kb_end_if(b, full, 4, same);
    qn_writer_forget(w, mark);
    qn_kvalue *next[4];
    for (int j = 0; j < 4; j++)
        next[j] = &full->results[j];
    qn_kb_end_for(b, lows, next);
    from[0] = &lows->results[0];
    from[1] = &lows->results[1];
    qn_keys_sort(s, &lows->results[2], from);
}

/* The least of a line's keys of 64 bits, and by how much the greatest is above it. */
static qn_kvalue *find_range(qn_keys *s)
{
    qn_writer *w = &s->o.w;
    qn_kvalue *const ends[2] = { last_of_all(s), word(s, QUERN_U64, 0) };
    const qn_kind kinds[2] = { QN_KIND_MIN, QN_KIND_MAX };
    const qn_dim i = qn_ispace_var(&w->space, s->n, false);
    qn_writer_loop loop = qn_writer_for_all(w, i, QN_TAG_VECTOR, 2, ends, kinds);
    qn_kvalue *key = ordered_at(s, i);
    qn_writer_end_for(w, &loop,
                      (qn_kvalue *[]){ qn_kb_binary(&w->b, QN_OP_MIN, loop.carried[0], key),
                                       qn_kb_binary(&w->b, QN_OP_MAX, loop.carried[1], key) });
    s->least = loop.carried[0];
    return qn_kb_binary(&w->b, QN_OP_SUB, loop.carried[1], s->least);
}

/* Bits of a u64 above its lower 32. */
static qn_kvalue *upper_bits(qn_keys *s, qn_kvalue *x)
{
    qn_kbuilder *b = &s->o.w.b;
    qn_kvalue *zero = word(s, QUERN_U64, 0), *count = zero;
    x = qn_kb_binary(b, QN_OP_SHIFT_RIGHT, x, word(s, QUERN_U64, POSITION_BITS));
    for (uint64_t bits = POSITION_BITS / 2; bits > 0; bits /= 2) {
        qn_kvalue *less = qn_kb_binary(b, QN_OP_SHIFT_RIGHT, x, word(s, QUERN_U64, bits));
        qn_kvalue *more = qn_kb_compare(b, QN_NE, less, zero);
        count = qn_kb_select(b, more, qn_kb_binary(b, QN_OP_ADD, count, word(s, QUERN_U64, bits)), count);
        x = qn_kb_select(b, more, less, x);
    }
    return qn_kb_binary(b, QN_OP_ADD, count, x); /* what is left is one bit */
}

static qn_kvalue *position_at(qn_keys *s, qn_kvalue *j)
{
    qn_kbuilder *b = &s->o.w.b;
    return qn_kb_convert(b, QUERN_I64, qn_kb_load(b, s->positions, qn_kb_iadd(b, s->list, j), 1));
}

static void set_position(qn_keys *s, qn_kvalue *j, qn_kvalue *position)
{
    qn_kbuilder *b = &s->o.w.b;
    qn_kb_store(b, s->positions, qn_kb_iadd(b, s->list, j), qn_kb_convert(b, QUERN_U32, position), NULL);
}

/* Begins a loop over the first `count` elements of a list. */
static qn_writer_loop each(qn_keys *s, qn_kvalue *count)
{
    qn_writer *w = &s->o.w;
    const qn_dim j = qn_ispace_var(&w->space, s->n, false);
    return qn_writer_for(w, j, qn_kb_index(&w->b, 0), count, QN_TAG_VECTOR, 0, NULL, NULL);
}

/* Sorts the keys at the first `count` positions by so many times 32 bits. */
static void sort_positions(qn_keys *s, qn_kvalue *count, qn_kvalue *rounds)
{
    qn_writer *w = &s->o.w;
    qn_kbuilder *b = &w->b;
    qn_kinst *loop = qn_kb_for(b, qn_kb_index(b, 0), rounds, qn_kb_index(b, 1), QN_TAG_SERIAL, 0, NULL, NULL);
    const size_t mark = qn_writer_mark(w);
    qn_kvalue *shift = qn_kb_convert(b, QUERN_U64, qn_loop_counter(loop)),
              *from[2] = { qn_kb_index(b, 0), s->half };
    shift = qn_kb_binary(b, QN_OP_MUL, shift, word(s, QUERN_U64, POSITION_BITS));
    qn_writer_loop element = each(s, count);
    qn_kvalue *j = qn_writer_index(w, element.var);
    qn_kvalue *bits = ordered_at(s, qn_writer_datum(w, position_at(s, j), s->n));
    bits = qn_kb_binary(b, QN_OP_SHIFT_RIGHT, qn_kb_binary(b, QN_OP_SUB, bits, s->least), shift);
    qn_kb_store(b, s->numbers, qn_keys_place(s, from[0], j), above(s, bits, j), NULL);
    qn_writer_end_for(w, &element, NULL);
    qn_keys_sort(s, count, from);
    for (int pass = 0; pass < 2; pass++) { /* not before all are read */
        element = each(s, count);
        j = qn_writer_index(w, element.var);
        qn_kvalue *x = number(s, from[0], j);
        if (pass == 0)
            qn_kb_store(b, s->numbers, qn_keys_place(s, from[0], j),
                        qn_kb_convert(b, QUERN_U64, position_at(s, lower_bits(s, x))), NULL);
        else
            set_position(s, j, qn_kb_convert(b, QUERN_I64, x));
        qn_writer_end_for(w, &element, NULL);
    }
    qn_writer_forget(w, mark);
    qn_kb_end_for(b, loop, NULL);
}

/* Positions of the first k of a line of keys of 64 bits, by what select_first found: that is all there is to know where 32 bits tell the
 * keys apart. */
static void refine_first(qn_keys *s, qn_kvalue *from)
{
    qn_writer *w = &s->o.w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *k = qn_writer_index(w, s->k), *zero = qn_kb_index(b, 0), *one = qn_kb_index(b, 1);
    qn_kinst *told = qn_kb_if(b, qn_kb_compare(b, QN_EQ, s->shift, word(s, QUERN_U64, 0)));
    qn_writer_loop element = each(s, k);
    qn_kvalue *j = qn_writer_index(w, element.var);
    set_position(s, j, lower_bits(s, number(s, from, j)));
    qn_writer_end_for(w, &element, NULL);
    qn_kb_else(b, told, 0, NULL);
    const size_t mark = qn_writer_mark(w);
    qn_kvalue *last =
        qn_kb_binary(b, QN_OP_OR, number(s, from, qn_kb_isub(b, k, one)), word(s, QUERN_U64, UINT32_MAX));
    const qn_dim i = qn_ispace_var(&w->space, s->n, false);
    qn_writer_loop line = qn_writer_for_all(w, i, QN_TAG_SERIAL, 1, &zero, NULL);
    qn_kvalue *count = line.carried[0];
    set_position(s, count, qn_writer_index(w, i));
    qn_kvalue *taken = qn_kb_convert(b, QUERN_I64, qn_kb_compare(b, QN_LE, qn_keys_number(s, i), last));
    qn_writer_end_for(w, &line, (qn_kvalue *[]){ qn_kb_iadd(b, count, taken) });
    sort_positions(s, line.carried[0], qn_kb_index(b, 2));
    qn_writer_forget(w, mark);
    qn_kb_end_if(b, told, 0, NULL);
}

/* Positions of the first k of a line of keys of 64 bits; few != 0: of a line that is many times as long, with room for so many. */
static void order_wide(qn_keys *s, int64_t room, int64_t few)
{
    qn_writer *w = &s->o.w;
    qn_kbuilder *b = &w->b;
    qn_kvalue *range = find_range(s);
    if (few) {
        qn_kvalue *from[2] = { qn_kb_index(b, 0), s->half };
        s->shift = upper_bits(s, range);
        s->n_passes = qn_keys_passes(few);
        select_first(s, few, from);
        s->n_passes = qn_keys_passes(room);
        refine_first(s, from[0]);
        return;
    }
    qn_kvalue *n = qn_writer_index(w, s->n);
    qn_writer_loop element = each(s, n);
    set_position(s, qn_writer_index(w, element.var), qn_writer_index(w, element.var));
    qn_writer_end_for(w, &element, NULL);
    qn_kvalue *more =
        qn_kb_convert(b, QUERN_I64, qn_kb_compare(b, QN_GT, range, word(s, QUERN_U64, UINT32_MAX)));
    sort_positions(s, n, qn_kb_iadd(b, more, qn_kb_index(b, 1)));
}

static void write_line(qn_keys *s, qn_kvalue *from)
{
    qn_writer *w = &s->o.w;
    qn_node *node = s->o.node;
    const qn_dim j = qn_ispace_var(&w->space, s->k, false);
    qn_writer_loop write = qn_writer_for_all(w, j, QN_TAG_VECTOR, 0, NULL, NULL);
    qn_kvalue *at_j = qn_writer_index(w, j);
    qn_kvalue *position = s->positions ? position_at(s, at_j) : lower_bits(s, number(s, from, at_j));
    qn_dim at[QN_MAX_RANK], out[QN_MAX_RANK];
    memcpy(at, s->at, sizeof at);
    memcpy(out, s->at, sizeof out);
    at[s->axis] = qn_writer_datum(w, position, s->n);
    out[s->axis] = j;
    for (int i = 0; i < node->n_results; i++)
        qn_writer_store(w, qn_writer_argument(w, qn_lower_buffer(s->o.l, &node->results[i]), false, true),
                        qn_opaque_linear(&s->o, &node->results[i].type, out),
                        i < node->n_operands ? qn_writer_value(w, node->operands[i], at) : position);
    qn_writer_end_for(w, &write, NULL);
}

int64_t qn_keys_power(int64_t n)
{
    int64_t power = GROUP;
    while (power < n)
        power *= 2;
    return power;
}

int qn_keys_passes(int64_t n)
{
    int passes = 0;
    while ((int64_t)GROUP << passes < n)
        passes++;
    return passes;
}

/* The halves, and the positions of keys of 64 bits: of the task's own, or scratch memory with as many as there are tasks. */
static void place_halves(qn_keys *s, int64_t room, bool wide, const qn_loops *loops)
{
    qn_writer *w = &s->o.w;
    qn_kbuilder *b = &w->b;
    qn_dims *dims = w->space.dims;
    qn_lowering *l = s->o.l;
    if (room <= MOST_LOCAL) {
        s->half = qn_kb_index(b, room + GROUP);
        s->base = qn_kb_index(b, 0);
        s->numbers = qn_kernel_add_local(w->kernel, "numbers", QUERN_U64, 2 * (room + GROUP));
        s->list = s->base;
        s->positions = wide ? qn_kernel_add_local(w->kernel, "positions", QUERN_U32, room) : NULL;
        return;
    }
    /* the power of two from n on is below 2 n */
    const qn_dim two = qn_dim_const(dims, 2),
                 half = qn_dim_add(dims, qn_dim_mul(dims, s->n, two), qn_dim_const(dims, 2 * GROUP));
    const qn_dim pair = qn_dim_mul(dims, half, two);
    s->half = qn_writer_index(w, half);
    s->base = qn_kb_imul(b, qn_kb_task(b), qn_writer_index(w, pair));
    const qn_dim all = qn_lower_dim(l, qn_dim_mul(dims, loops->tasks, pair));
    s->numbers = qn_writer_argument(w, qn_lower_scratch(l, "numbers", QUERN_U64, all), true, true);
    if (wide) {
        const qn_dim lists = qn_lower_dim(l, qn_dim_mul(dims, loops->tasks, s->n));
        s->list = qn_kb_imul(b, qn_kb_task(b), qn_writer_index(w, s->n));
        s->positions = qn_writer_argument(w, qn_lower_scratch(l, "positions", QUERN_U32, lists), true, true);
    }
}

qn_status qn_lower_keys(qn_lowering *l, const qn_group *group)
{
    qn_node *node = group->root;
    const bool selects = node->op == QN_OP_TOP_K;
    const qn_type *type = &node->operands[0]->type;
    qn_keys s = { .axis = (int)qn_attr_int(node, QN_ATTR_AXIS),
                  .descending = qn_attr_bool(node, selects ? QN_ATTR_LARGEST : QN_ATTR_DESCENDING) };
    qn_opaque_begin(&s.o, l, group);
    qn_writer *w = &s.o.w;
    qn_nest nest;
    qn_loops loops;
    int axes[QN_MAX_RANK];
    qn_writer_loop open[QN_MAX_RANK];
    s.n = qn_ispace_import(&w->space, type->dims[s.axis]);
    s.k = selects ? qn_ispace_import(&w->space, qn_attr_dims(node, QN_ATTR_K, NULL)[0]) : s.n;
    const bool wide = qn_dtype_bytes(type->dtype) == 8;
    int64_t room = qn_keys_power(s.n->max < QN_PACKED_LINE ? s.n->max : QN_PACKED_LINE), few = 0;
    if (s.k->min > 0 && s.k->max <= MOST_LOCAL / ROOM) {
        const int64_t less = qn_keys_power(ROOM * s.k->max < LEAST_ROOM ? LEAST_ROOM : ROOM * s.k->max);
        few = less < room ? less : 0;
        room = few && !wide ? few : room; /* of keys of 64 bits all may have to be sorted */
    }
    s.n_passes = qn_keys_passes(room);
    const double grain = QN_GRAIN / ((few ? 1 : 4) * (1 + qn_likely_extent(type->dims[s.axis])));
    qn_opaque_nest(&s.o, type, 1u << s.axis, &nest, axes);
    qn_loops_plan(w, &nest, grain < 1 ? 1 : (int64_t)grain, &loops);
    for (int i = 0; i < type->rank; i++)
        s.at[i] = qn_dim_const(w->space.dims, 0);
    for (int i = 0; i < nest.n; i++)
        s.at[axes[i]] = loops.index[i];
    place_halves(&s, room, wide, &loops);
    for (int i = 0; i < loops.n; i++)
        open[i] = qn_planned_loop_open(w, &loops.loops[i], QN_TAG_SERIAL);
    qn_kvalue *from[2] = { qn_kb_index(&w->b, 0), s.half };
    if (wide)
        order_wide(&s, room, few);
    else if (few)
        select_first(&s, room, from);
    else
        sort_line(&s, from);
    write_line(&s, from[0]);
    qn_opaque_close(&s.o, &loops, open);
    return qn_opaque_end(&s.o, loops.tasks);
}
