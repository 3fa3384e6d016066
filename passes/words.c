/* Words of a product's operands: see words.h. */
#include "passes/words.h"

int qn_word_elements(qn_dtype dtype)
{
    const int bytes = (int)qn_dtype_bytes(dtype);
    return bytes < QN_WORD_BYTES ? QN_WORD_BYTES / bytes : 1;
}

/* Columns of a panel where `words` words of each lie side by side; 0: y is no such. */
static int panels_of(const qn_type *y, int n_batch, const qn_machine *machine, int words)
{
    const bool bytes = y->dtype == QUERN_I8 || y->dtype == QUERN_U8;
    const int lanes = machine->vector_bytes / QN_WORD_BYTES;
    if (bytes || y->dtype == QUERN_BF16
            ? y->rank != n_batch + 4 || !qn_dim_is(y->dims[n_batch + 3], words * qn_word_elements(y->dtype))
            : words > 1 || y->dtype != QUERN_F32 || y->rank != n_batch + 3)
        return 0;
    const int64_t width = y->dims[n_batch + 2]->value;
    return width == lanes || width == 2 * lanes ? (int)width : 0;
}

int qn_word_panels(const qn_type *y, int n_batch, const qn_machine *machine)
{
    return panels_of(y, n_batch, machine, 1);
}

int qn_word_pair_panels(const qn_type *y, int n_batch, const qn_machine *machine)
{
    return machine->mmla ? panels_of(y, n_batch, machine, 2) : 0;
}

static qn_kvalue *element(qn_kbuilder *b, const qn_kbuffer *buffer, qn_kvalue *word)
{
    return qn_kb_imul(b, word, qn_kb_index(b, qn_word_elements(buffer->dtype)));
}

qn_kvalue *qn_word_load(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int lanes)
{
    return qn_kb_load(b, buffer, element(b, buffer, at), lanes * qn_word_elements(buffer->dtype));
}

qn_kvalue *qn_word_repeat(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int lanes)
{
    const int n = qn_word_elements(buffer->dtype);
    qn_kvalue *word = qn_word_load(b, buffer, at, 1);
    int mask[64];
    if (n == 1)
        return qn_kb_splat(b, word, lanes);
    for (int i = 0; i < n * lanes; i++)
        mask[i] = i % n;
    return qn_kb_shuffle(b, word, word, n * lanes, mask);
}

qn_kvalue *qn_word_lane(qn_kbuilder *b, qn_kvalue *words, int n, int i, int lanes)
{
    const int elements = words->type.lanes / n;
    int mask[64];
    for (int j = 0; j < elements * lanes; j++)
        mask[j] = i * elements + j % elements;
    return qn_kb_shuffle(b, words, words, elements * lanes, mask);
}

qn_kvalue *qn_word_in_turn(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int lanes, qn_kvalue **vector,
                           int lane)
{
    if (!vector)
        return qn_word_repeat(b, buffer, at, lanes);
    if (lane == 0)
        *vector = qn_word_load(b, buffer, at, lanes);
    return qn_word_lane(b, *vector, lanes, lane, lanes);
}

void qn_word_store(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, qn_kvalue *words)
{
    qn_kb_store(b, buffer, element(b, buffer, at), words, NULL);
}

void qn_word_prefetch(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int locality)
{
    qn_kb_prefetch(b, buffer, element(b, buffer, at), locality);
}

void qn_word_prefetch_run(qn_kbuilder *b, qn_kbuffer *buffer, qn_kvalue *at, int64_t n)
{
    enum { LINE = 64 };
    const int64_t bytes = qn_word_elements(buffer->dtype) * (int64_t)qn_dtype_bytes(buffer->dtype);
    for (int64_t i = 0; i < n; i += LINE / bytes)
        qn_word_prefetch(b, buffer, qn_kb_iadd(b, at, qn_kb_index(b, i)), 0);
}

qn_kvalue *qn_word_multiply_add(qn_kbuilder *b, qn_kvalue *x, qn_kvalue *y, qn_kvalue *sum, bool fused)
{
    switch (x->type.dtype) {
    case QUERN_F32:
    case QUERN_F64:
        return fused ? qn_kb_fma(b, x, y, sum)
                     : qn_kb_binary(b, QN_OP_ADD, sum, qn_kb_binary(b, QN_OP_MUL, x, y));
    case QUERN_BF16: return qn_kb_dot2(b, x, y, sum);
    case QUERN_U8: return qn_kb_dot4(b, x, y, sum);
    default: return y->type.dtype == QUERN_U8 ? qn_kb_dot4(b, y, x, sum) : qn_kb_dot4(b, x, y, sum);
    }
}
