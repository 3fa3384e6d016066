/* Panels of four bits in kernels: see nibbles.h. */
#include "passes/nibbles.h"

#include "passes/terms.h"
#include "passes/words.h"

enum {
    AHEAD = 24, /* lines that are fetched before they are needed */
    LINE = 16,  /* words of a line */
    MOST_WORDS = QN_NIBBLES_MOST_GROUP / QN_WORD_BYTES
};

#define TERMS (n->b)

/* Numbers of a word of such a right side. */
static int numbers_of_word(const qn_node *product)
{
    const qn_type *x = &product->operands[0]->type, *y = &product->operands[1]->type;
    return (int)(x->dims[x->rank - 1]->value / y->dims[y->rank - 3]->value);
}

int64_t qn_nibbles_group(const qn_node *product)
{
    if (product->op != QN_OP_MATMUL_PACKED || product->n_operands < 3)
        return 0;
    const qn_type *x = &product->operands[0]->type, *scale = &product->operands[2]->type;
    const qn_dim k = x->dims[x->rank - 1];
    const int64_t group = k->value / scale->dims[scale->rank - 2]->value;
    return group <= QN_NIBBLES_MOST_GROUP ? group : 0;
}

bool qn_nibbles_have_many_rows(const qn_node *product)
{
    if (qn_nibbles_group(product) == 0)
        return false;
    const qn_type *x = &product->operands[0]->type;
    double rows = 1;
    for (int i = (int)qn_attr_int(product, QN_ATTR_BATCH_DIMS); i < x->rank - 1; i++)
        rows *= (double)x->dims[i]->max;
    return rows > QN_NIBBLES_MOST_ROWS;
}

bool qn_nibbles_reads(const qn_node *product, const qn_value *value)
{
    for (int i = 1; i < product->n_operands; i++)
        if (product->operands[i] == value)
            return true;
    return false;
}

static qn_kbuffer *argument(qn_writer *w, qn_value *v)
{
    qn_kbuffer *buffer = qn_writer_argument(w, qn_lower_buffer(w->lowering, v), true, false);
    qn_writer_note_load(w, buffer);
    return buffer;
}

qn_nibbles qn_nibbles_open(qn_writer *w, const qn_node *product, int lanes, int vectors, qn_kvalue *k_value)
{
    const int zeros = qn_packed_zeros(product), factors = qn_packed_factors(product);
    return (qn_nibbles){ .b = &w->b,
                         .x = argument(w, product->operands[0]),
                         .y = argument(w, product->operands[1]),
                         .scale = argument(w, product->operands[2]),
                         .zeros = zeros ? argument(w, product->operands[zeros]) : NULL,
                         .factors = factors ? argument(w, product->operands[factors]) : NULL,
                         .lanes = lanes,
                         .vectors = vectors,
                         .width = (int64_t)lanes * vectors,
                         .group = qn_nibbles_group(product),
                         .each = numbers_of_word(product),
                         .k_value = k_value,
                         .fused = qn_may_fuse(w->lowering->options),
                         .same_signs = w->lowering->options->machine->dot4_signs == QN_SIGNS_SAME };
}

/* Numbers below 128, as the machine multiplies them with signed bytes. */
static qn_kvalue *as_bytes(const qn_nibbles *n, qn_kvalue *numbers)
{
    return n->same_signs ? qn_kb_bitcast(n->b, QUERN_I8, numbers) : numbers;
}

/* Four of k are in the lower halves of a word's bytes, four in the upper ones. */
static void halves_of(const qn_nibbles *n, qn_kvalue *words, qn_kvalue *half[2])
{
    qn_kvalue *fifteen = qn_kb_const(n->b, words->type, (qn_scalar){ .i = 15 }),
              *four = qn_kb_const(n->b, words->type, (qn_scalar){ .i = 4 });
    half[0] = as_bytes(n, qn_kb_binary(n->b, QN_OP_AND, words, fifteen));
    half[1] = as_bytes(n, qn_kb_binary(n->b, QN_OP_SHIFT_RIGHT, words, four));
}

/* Bytes as the machine multiplies them with signed ones; signed ones are 128 less. */
static qn_kvalue *whole_bytes(const qn_nibbles *n, qn_kvalue *words)
{
    return n->same_signs ? as_bytes(n, qn_kb_binary(n->b, QN_OP_XOR, words,
                                                    qn_kb_const(n->b, words->type, (qn_scalar){ .i = 128 })))
                         : words;
}

/* The numbers of words, four of k at a time. */
static void fours_of(const qn_nibbles *n, qn_kvalue *words, qn_kvalue *fours[2])
{
    if (n->each == QN_WORD_BYTES)
        fours[0] = whole_bytes(n, words);
    else
        halves_of(n, words, fours);
}

/* How much less numbers are as the machine multiplies them. */
static int less(const qn_nibbles *n)
{
    return n->each == QN_WORD_BYTES && n->same_signs ? 128 : 0;
}

/* What stands for 0 then, where zeros are the usual ones. */
static int usual_zero(const qn_nibbles *n)
{
    return (n->each == QN_WORD_BYTES ? 128 : 8) - less(n);
}

/* The negative of what stands for 0, of a vector of columns. */
static qn_kvalue *minus_zeros(const qn_nibbles *n, qn_kvalue *at)
{
    const qn_ktype type = { QUERN_I32, n->lanes };
    if (!n->zeros)
        return qn_kb_const(n->b, type, (qn_scalar){ .i = -usual_zero(n) });
    qn_kvalue *zeros = qn_kb_convert(n->b, QUERN_I32, qn_kb_load(n->b, n->zeros, at, n->lanes));
    return qn_kb_binary(n->b, QN_OP_SUB, qn_kb_const(n->b, type, (qn_scalar){ .i = less(n) }), zeros);
}

/* A group of k and a vector of columns times x, as whole numbers: parts[row] += x * number, whatever stands for 0. `x` holds the
 * rows' words of the group. */
static void multiply_bytes(const qn_nibbles *n, int rows, qn_kvalue *at, qn_kvalue *const *x,
                           qn_kvalue **parts)
{
    const int words = (int)n->group / QN_WORD_BYTES, fours = n->each / QN_WORD_BYTES;
    for (int i = 0; i < words; i += fours) {
        qn_kvalue *four[2];
        fours_of(n, qn_word_load(n->b, n->y, ADD(at, INDEX(i / fours * n->width)), n->lanes), four);
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < fours; h++)
                parts[r] = qn_kb_dot4(n->b, four[h], x[r * words + i + h], parts[r]);
    }
}

/* Sums of such products, without what stands for 0, as floats; all of it is exact. `offset` is that row's, see qn_nibbles_offsets. */
static qn_kvalue *without_zeros(const qn_nibbles *n, qn_kvalue *parts, qn_kvalue *offset, qn_kvalue *minus)
{
    if (!n->zeros)
        return qn_kb_convert(n->b, QUERN_F32, qn_kb_binary(n->b, QN_OP_ADD, parts, offset));
    return qn_word_multiply_add(n->b, offset, qn_kb_convert(n->b, QUERN_F32, minus),
                                qn_kb_convert(n->b, QUERN_F32, parts), n->fused);
}

/* What picks byte j of each word: words that are 1 in it and 0 in the others. */
static void pickers(const qn_nibbles *n, qn_kvalue *one[QN_WORD_BYTES])
{
    const qn_ktype bytes = { QUERN_I8, QN_WORD_BYTES * n->lanes };
    qn_kvalue *zeros = qn_kb_const(n->b, bytes, (qn_scalar){ .i = 0 }),
              *ones = qn_kb_const(n->b, bytes, (qn_scalar){ .i = 1 });
    int mask[64];
    for (int j = 0; j < QN_WORD_BYTES; j++) {
        for (int i = 0; i < QN_WORD_BYTES * n->lanes; i++)
            mask[i] = i % QN_WORD_BYTES == j ? QN_WORD_BYTES * n->lanes : 0;
        one[j] = qn_kb_shuffle(n->b, zeros, ones, QN_WORD_BYTES * n->lanes, mask);
    }
}

/* The numbers of a word, less what stands for 0, as floats. */
static void numbers_of(const qn_nibbles *n, qn_kvalue *at, qn_kvalue *minus, qn_kvalue *const *one,
                       qn_kvalue *numbers[QN_NIBBLES])
{
    qn_kvalue *fours[2];
    fours_of(n, qn_word_load(n->b, n->y, at, n->lanes), fours);
    for (int i = 0; i < n->each; i++)
        numbers[i] = qn_kb_convert(n->b, QUERN_F32,
                                   qn_kb_dot4(n->b, fours[i / QN_WORD_BYTES], one[i % QN_WORD_BYTES], minus));
}

/* A group of k and a vector of columns, times x as floats: parts[row] += x * number. */
static void multiply_floats(const qn_nibbles *n, int rows, qn_kvalue *at, qn_kvalue *minus, qn_kvalue *x_at,
                            qn_kvalue **parts)
{
    qn_kvalue *one[QN_WORD_BYTES], *numbers[QN_NIBBLES];
    pickers(n, one);
    for (int k = 0; k < n->group; k += n->each) {
        numbers_of(n, ADD(at, INDEX(k / n->each * n->width)), minus, one, numbers);
        for (int i = 0; i < n->each; i++)
            for (int r = 0; r < rows; r++) {
                qn_kvalue *from = ADD(ADD(x_at, MUL(n->k_value, INDEX(r))), INDEX(k + i));
                qn_kvalue *x = qn_kb_splat(n->b, qn_kb_load(n->b, n->x, from, 1), n->lanes);
                parts[r] = qn_word_multiply_add(n->b, x, numbers[i], parts[r], n->fused);
            }
    }
}

static qn_kvalue *scales_at(const qn_nibbles *n, qn_kvalue *at)
{
    return qn_kb_convert(n->b, QUERN_F32, qn_kb_load(n->b, n->scale, at, n->lanes));
}

/* The factors of the group from k on, of the row that begins at x_at, in all lanes; NULL: 1. */
static qn_kvalue *factor_at(const qn_nibbles *n, qn_kvalue *x_at, qn_kvalue *k)
{
    if (!n->factors)
        return NULL;
    qn_kvalue *at = DIV(ADD(x_at, k), INDEX(n->group));
    return qn_kb_splat(n->b, qn_kb_load(n->b, n->factors, at, 1), n->lanes);
}

static qn_kvalue *times(const qn_nibbles *n, qn_kvalue *scale, qn_kvalue *factor)
{
    return factor ? qn_kb_binary(n->b, QN_OP_MUL, scale, factor) : scale;
}

qn_dtype qn_nibbles_offset(const qn_nibbles *n)
{
    return n->zeros ? QUERN_F32 : QUERN_I32;
}

/* Vectors of bytes of x, of which all are the same group, as qn_nibbles_offset's type: their sums of four, or what those make. */
static qn_kvalue *offset_of(const qn_nibbles *n, qn_kvalue *const *x, int vectors)
{
    const int lanes = x[0]->type.lanes;
    qn_kvalue *by = qn_kb_const(n->b, (qn_ktype){ QUERN_U8, lanes },
                                (qn_scalar){ .i = n->zeros ? 1 : usual_zero(n) }),
              *none =
                  qn_kb_const(n->b, (qn_ktype){ QUERN_I32, lanes / QN_WORD_BYTES }, (qn_scalar){ .i = 0 }),
              *sums = none;
    for (int i = 0; i < vectors && (n->zeros || usual_zero(n) != 0); i++)
        sums = qn_kb_dot4(n->b, as_bytes(n, by), x[i], sums);
    return n->zeros ? qn_kb_convert(n->b, QUERN_F32, sums) : qn_kb_binary(n->b, QN_OP_SUB, none, sums);
}

/* The sums and the products of the group from k on, times its scales. */
static void add_group(const qn_nibbles *n, int rows, int streams, qn_kvalue *const *panels, qn_kvalue *x_at,
                      qn_kvalue *k, qn_kvalue **sums)
{
    qn_kbuilder *b = n->b;
    const int words = (int)n->group / QN_WORD_BYTES;
    const bool bytes = n->x->dtype == QUERN_I8;
    const qn_ktype part = { bytes ? QUERN_I32 : QUERN_F32, n->lanes };
    qn_kvalue *x[QN_NIBBLES_MOST_ROWS * MOST_WORDS], *offset[QN_NIBBLES_MOST_ROWS],
        *parts[QN_NIBBLES_MOST_ROWS], *factor[QN_NIBBLES_MOST_ROWS] = { NULL };
    for (int r = 0; r < rows && bytes; r++) {
        qn_kvalue *row = ADD(x_at, MUL(n->k_value, INDEX(r))), *at = DIV(ADD(row, k), INDEX(QN_WORD_BYTES));
        factor[r] = factor_at(n, row, k);
        for (int i = 0; i < words; i++)
            x[r * words + i] = qn_word_repeat(b, n->x, ADD(at, INDEX(i)), n->lanes);
        offset[r] = offset_of(n, x + r * words, words);
    }
    for (int s = 0; s < streams; s++) {
        qn_kvalue *from = ADD(panels[s], MUL(k, INDEX(n->width)));
        qn_kvalue *at = DIV(from, INDEX(n->each)), *scales = DIV(from, INDEX(n->group));
        for (int64_t i = 0; i < n->group / n->each * n->width; i += LINE)
            qn_word_prefetch(b, n->y, ADD(at, INDEX(AHEAD * LINE + i)), 0);
        for (int v = 0; v < n->vectors; v++) {
            for (int r = 0; r < rows; r++)
                parts[r] = qn_kb_const(b, part, (qn_scalar){ .i = 0 });
            qn_kvalue *minus = minus_zeros(n, ADD(scales, INDEX(v * n->lanes)));
            if (bytes)
                multiply_bytes(n, rows, ADD(at, INDEX(v * n->lanes)), x, parts);
            else
                multiply_floats(n, rows, ADD(at, INDEX(v * n->lanes)), minus, ADD(x_at, k), parts);
            qn_kvalue *scale = scales_at(n, ADD(scales, INDEX(v * n->lanes)));
            for (int r = 0; r < rows; r++) {
                qn_kvalue **sum = &sums[(s * rows + r) * n->vectors + v];
                if (bytes)
                    parts[r] = without_zeros(n, parts[r], offset[r], minus);
                *sum = qn_word_multiply_add(b, parts[r], times(n, scale, factor[r]), *sum, n->fused);
            }
        }
    }
}

void qn_nibbles_sums(const qn_nibbles *n, int rows, int streams, qn_kvalue *const *panels, qn_kvalue *x_at,
                     qn_kvalue **sums)
{
    const int each = streams * rows * n->vectors;
    for (int i = 0; i < each; i++)
        sums[i] = qn_kb_float(n->b, (qn_ktype){ QUERN_F32, n->lanes }, 0);
    qn_kinst *loop =
        qn_kb_carry(n->b, INDEX(0), n->k_value, INDEX(n->group), QN_TAG_SERIAL, each, sums, NULL);
    add_group(n, rows, streams, panels, x_at, qn_loop_counter(loop), sums);
    qn_kb_end_carry(n->b, loop, sums);
}

void qn_nibbles_offsets(const qn_nibbles *n, int rows, qn_kvalue *x_at, qn_kbuffer *offsets, int64_t n_groups)
{
    enum { LEAST_LANES = 8 };
    qn_kbuilder *b = n->b;
    const int lanes = (int)(n->group & -n->group); /* bytes of a vector: some of them are a group */
    qn_kvalue *x[QN_NIBBLES_MOST_GROUP / LEAST_LANES];
    qn_kinst *groups = qn_kb_for(b, INDEX(0), INDEX(n_groups), INDEX(1), QN_TAG_SERIAL, 0, NULL, NULL);
    for (int r = 0; r < rows; r++) {
        qn_kvalue *at =
            ADD(ADD(x_at, MUL(n->k_value, INDEX(r))), MUL(qn_loop_counter(groups), INDEX(n->group)));
        for (int i = 0; i < n->group; i += lanes)
            x[i / lanes] = qn_kb_load(b, n->x, ADD(at, INDEX(i)), lanes);
        qn_kb_store(b, offsets, ADD(INDEX(r * n_groups), qn_loop_counter(groups)),
                    qn_kb_reduce(b, QN_SUM, offset_of(n, x, (int)n->group / lanes)), NULL);
    }
    qn_kb_end_for(b, groups, NULL);
}

static qn_kvalue *offset_at(const qn_nibbles *n, qn_kbuffer *offsets, qn_kvalue *at)
{
    return qn_kb_splat(n->b, qn_kb_load(n->b, offsets, at, 1), n->lanes);
}

void qn_nibbles_byte_sums(const qn_nibbles *n, int rows, qn_kvalue *panel, qn_kvalue *x_at,
                          qn_kbuffer *offsets, int64_t n_groups, qn_kvalue **sums)
{
    enum { MOST_ROWS = 24 };
    qn_kbuilder *b = n->b;
    const int each = rows * n->vectors, fours = n->each / QN_WORD_BYTES;
    qn_kvalue *parts[MOST_ROWS];
    for (int i = 0; i < each; i++)
        sums[i] = qn_kb_float(b, (qn_ktype){ QUERN_F32, n->lanes }, 0);
    qn_kinst *loop = qn_kb_carry(b, INDEX(0), INDEX(n_groups), INDEX(1), QN_TAG_SERIAL, each, sums, NULL);
    qn_kvalue *g = qn_loop_counter(loop), *k = MUL(g, INDEX(n->group));
    qn_kvalue *from = ADD(panel, MUL(k, INDEX(n->width))), *y_at = DIV(from, INDEX(n->each)),
              *scales = DIV(from, INDEX(n->group));
    for (int64_t i = 0; i < n->group / n->each * n->width; i += LINE)
        qn_word_prefetch(b, n->y, ADD(y_at, INDEX(AHEAD * LINE + i)), 0);
    qn_kvalue *none = qn_kb_const(b, (qn_ktype){ QUERN_I32, n->lanes }, (qn_scalar){ .i = 0 });
    for (int i = 0; i < each; i++)
        parts[i] = n->zeros ? none : offset_at(n, offsets, ADD(INDEX(i / n->vectors * n_groups), g));
    for (int w = 0; w < n->group / n->each; w++) {
        qn_kvalue *four[2][2];
        for (int v = 0; v < n->vectors; v++)
            fours_of(n, qn_word_load(n->b, n->y, ADD(y_at, INDEX(w * n->width + v * n->lanes)), n->lanes),
                     four[v]);
        for (int h = 0; h < fours; h++)
            for (int i = 0; i < each; i++) {
                qn_kvalue *at = ADD(ADD(x_at, MUL(n->k_value, INDEX(i / n->vectors))), k);
                at = ADD(DIV(at, INDEX(QN_WORD_BYTES)), INDEX(fours * w + h));
                parts[i] =
                    qn_kb_dot4(b, four[i % n->vectors][h], qn_word_repeat(b, n->x, at, n->lanes), parts[i]);
            }
    }
    for (int i = 0; i < each; i++) {
        qn_kvalue *at = ADD(scales, INDEX(i % n->vectors * n->lanes)), *part = parts[i],
                  *row = ADD(x_at, MUL(n->k_value, INDEX(i / n->vectors)));
        part = n->zeros
                   ? without_zeros(n, part, offset_at(n, offsets, ADD(INDEX(i / n->vectors * n_groups), g)),
                                   minus_zeros(n, at))
                   : qn_kb_convert(b, QUERN_F32, part);
        sums[i] = qn_word_multiply_add(b, part, times(n, scales_at(n, at), factor_at(n, row, k)), sums[i],
                                       n->fused);
    }
    qn_kb_end_carry(b, loop, sums);
}

void qn_nibbles_unpack(const qn_nibbles *n, qn_kvalue *panel, qn_kvalue *low, qn_kvalue *high, qn_kbuffer *to,
                       qn_kvalue *at)
{
    qn_kbuilder *b = n->b;
    qn_kvalue *one[QN_WORD_BYTES], *numbers[QN_NIBBLES], *scale[2], *minus[2];
    qn_kinst *groups = qn_kb_for(b, low, high, INDEX(n->group), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *first = qn_loop_counter(groups),
              *scales = DIV(ADD(panel, MUL(first, INDEX(n->width))), INDEX(n->group));
    pickers(n, one);
    for (int v = 0; v < n->vectors; v++) {
        scale[v] = scales_at(n, ADD(scales, INDEX(v * n->lanes)));
        minus[v] = minus_zeros(n, ADD(scales, INDEX(v * n->lanes)));
    }
    qn_kinst *words =
        qn_kb_for(b, first, ADD(first, INDEX(n->group)), INDEX(n->each), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *k = qn_loop_counter(words), *from = DIV(ADD(panel, MUL(k, INDEX(n->width))), INDEX(n->each)),
              *line = ADD(at, MUL(SUB(k, low), INDEX(n->width)));
    for (int i = 0; i < n->width; i += LINE)
        qn_word_prefetch(b, n->y, ADD(from, INDEX(AHEAD * LINE + i)), 0);
    for (int v = 0; v < n->vectors; v++) {
        numbers_of(n, ADD(from, INDEX(v * n->lanes)), minus[v], one, numbers);
        for (int i = 0; i < n->each; i++)
            qn_kb_store(b, to, ADD(line, INDEX(i * n->width + v * n->lanes)),
                        qn_kb_binary(b, QN_OP_MUL, numbers[i], scale[v]), NULL);
    }
    qn_kb_end_for(b, words, NULL);
    qn_kb_end_for(b, groups, NULL);
}
