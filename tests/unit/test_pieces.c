/* Constants that are made when they are asked for: any box of them is what the interpreter makes of the whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/interp/interp.h"
#include "tests/support/eval.h"

static uint64_t seed;
static int n_multiplied;

static int64_t below(int64_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((seed >> 33) % (uint64_t)n);
}

/* A value both ways. */
typedef struct subject {
    qn_array array;
    const qn_tensor *tensor;
} subject;

static subject known(const qn_array *a)
{
    return (subject){ *a, qn_tensor_new(eval_module(), a->dtype, a->rank, a->dims, a->data) };
}

/* One more op on top; a tensor that cannot be deferred any more (the chain is long) is made. */
static subject apply(qn_op op, int n, const subject *x, int n_attrs, const qn_attr *attrs)
{
    qn_graph *graph = qn_region_new(eval_module());
    qn_value *values[3];
    const qn_tensor *tensors[3];
    call c = { .op = op, .n_operands = n, .n_attrs = n_attrs };
    for (int i = 0; i < n; i++) {
        c.operands[i] = x[i].array;
        tensors[i] = x[i].tensor;
        values[i] = add_node(graph, QN_OP_CONSTANT, 0, NULL, 1,
                             &(qn_attr){ .key = QN_ATTR_VALUE, .tensor = x[i].tensor }, 0, NULL)
                        ->results;
    }
    memcpy(c.attrs, attrs, (size_t)n_attrs * sizeof *attrs);
    const qn_array *result = eval(&c);
    assert_non_null(result);
    const qn_node *node = add_node(graph, op, n, values, n_attrs, attrs, 0, NULL);
    subject y = { *result, qn_tensor_defer(node, tensors) };
    return y.tensor ? y : known(result);
}

static qn_attr list(qn_attr_key key, int n, const int64_t *values)
{
    return (qn_attr){ .key = key, .n = n, .ints = values };
}

static subject reshaped(const subject *x)
{
    int64_t dims[6], left = qn_array_elements(&x->array);
    int rank = 1 + (int)below(5);
    for (int i = 0; i < rank; i++) {
        dims[i] = 1;
        while (i < rank - 1 && below(3)) {
            int64_t factor = 2 + below(4);
            if (left % factor == 0) {
                dims[i] *= factor;
                left /= factor;
            }
        }
    }
    dims[rank - 1] = left;
    return apply(QN_OP_RESHAPE, 1, x, 1, (qn_attr[]){ list(QN_ATTR_DIMS, rank, dims) });
}

static subject transposed(const subject *x)
{
    int64_t perm[6];
    for (int i = 0; i < x->array.rank; i++) {
        int at = (int)below(i + 1);
        perm[i] = perm[at];
        perm[at] = i;
    }
    return apply(QN_OP_TRANSPOSE, 1, x, 1, (qn_attr[]){ list(QN_ATTR_PERM, x->array.rank, perm) });
}

static subject sliced(const subject *x)
{
    int64_t start[6], limit[6], stride[6];
    for (int i = 0; i < x->array.rank; i++) {
        const int64_t n = x->array.dims[i];
        start[i] = n > 4 ? below(3) : 0;
        limit[i] = n > 8 ? n - below(3) : n;
        stride[i] = n > 8 && below(4) == 0 ? 2 : 1;
    }
    return apply(QN_OP_SLICE, 1, x, 3,
                 (qn_attr[]){ list(QN_ATTR_LIMIT, x->array.rank, limit),
                              list(QN_ATTR_START, x->array.rank, start),
                              list(QN_ATTR_STRIDE, x->array.rank, stride) });
}

static subject padded(const subject *x)
{
    int64_t low[6], high[6], interior[6] = { 0 };
    const qn_array fill = full(x->array.dtype, SCALAR, 3);
    for (int i = 0; i < x->array.rank; i++) {
        low[i] = below(3) - (x->array.dims[i] > 4);
        high[i] = below(3) - (x->array.dims[i] > 4);
    }
    return apply(QN_OP_PAD, 2, (subject[]){ *x, known(&fill) }, 3,
                 (qn_attr[]){ list(QN_ATTR_HIGH, x->array.rank, high),
                              list(QN_ATTR_INTERIOR, x->array.rank, interior),
                              list(QN_ATTR_LOW, x->array.rank, low) });
}

static subject joined(const subject *x)
{
    return apply(QN_OP_CONCATENATE, 2, (subject[]){ *x, *x }, 1,
                 (qn_attr[]){ INT(AXIS, below(x->array.rank)) });
}

/* Times one number for each index of an axis. */
static subject scaled(const subject *x)
{
    const int64_t axis = below(x->array.rank);
    const qn_array factors = noise(x->array.dtype, 1, &x->array.dims[axis], seed);
    const subject small = known(&factors);
    const subject all =
        apply(QN_OP_BROADCAST, 1, &small, 2,
              (qn_attr[]){ list(QN_ATTR_AXES, 1, &axis), list(QN_ATTR_DIMS, x->array.rank, x->array.dims) });
    return apply(QN_OP_MUL, 2, (subject[]){ *x, all }, 0, (qn_attr[1]){ 0 });
}

static subject converted(const subject *x)
{
    return apply(QN_OP_CONVERT, 1, x, 1,
                 (qn_attr[]){ INT(DTYPE, x->array.dtype == QUERN_F32 ? QUERN_BF16 : QUERN_F32) });
}

/* The largest elements along one axis or two, which round in no order. */
static subject reduced(const subject *x)
{
    const int64_t first = below(x->array.rank), axes[] = { first, first + 1 };
    const int n = x->array.rank > 2 && first + 1 < x->array.rank ? 2 : 1;
    if (x->array.rank < 2)
        return *x;
    return apply(QN_OP_REDUCE, 1, x, 2, (qn_attr[]){ list(QN_ATTR_AXES, n, axes), INT(KIND, QN_KIND_MAX) });
}

/* Its rows through a small matrix. */
static subject multiplied(const subject *x)
{
    const int64_t last = x->array.rank - 1, dims[] = { x->array.dims[last], 1 + below(36) }, first = 0;
    if (x->array.dtype != QUERN_F32 || dims[0] > 16)
        return *x;
    const qn_array matrix = noise(QUERN_F32, 2, dims, seed);
    const subject y =
        apply(QN_OP_DOT_GENERAL, 2, (subject[]){ *x, known(&matrix) }, 4,
              (qn_attr[]){ list(QN_ATTR_X_BATCH, 0, NULL), list(QN_ATTR_X_CONTRACT, 1, &last),
                           list(QN_ATTR_Y_BATCH, 0, NULL), list(QN_ATTR_Y_CONTRACT, 1, &first) });
    n_multiplied += y.tensor->data == NULL;
    return y;
}

static void expect_boxes(const subject *x)
{
    int64_t low[QN_MAX_RANK], extent[QN_MAX_RANK], strides[QN_MAX_RANK], at = 0;
    qn_array box = { .dtype = x->array.dtype, .rank = x->array.rank };
    if (x->tensor->data)
        return;
    for (int i = 0; i < x->array.rank; i++) {
        low[i] = below(x->array.dims[i]);
        box.dims[i] = extent[i] = 1 + below(x->array.dims[i] - low[i]);
    }
    qn_strides(&x->array, strides);
    for (int i = 0; i < x->array.rank; i++)
        at += low[i] * strides[i];
    const size_t size = qn_dtype_bytes(box.dtype), bytes = (size_t)qn_array_elements(&box) * size;
    box.data = malloc(bytes);
    qn_array expected = box;
    expected.data = malloc(bytes);
    int64_t to[QN_MAX_RANK];
    qn_strides(&expected, to);
    qn_copy_strided(size, box.rank, extent, expected.data, to, qn_element(&x->array, at), strides);
    x->tensor->source->read(x->tensor, low, extent, box.data);
    expect_same("a box", &box, &expected);
    free(box.data);
    free(expected.data);
}

/* Elements by strides, one by one. */
static void copies_go_where_strides_say(void **state)
{
    (void)state;
    enum { MOST = 1 << 16 };
    static unsigned char from[MOST], to[MOST], expected[MOST];
    for (int i = 0; i < MOST; i++)
        from[i] = (unsigned char)(i * 131 >> 3);
    for (int round = 0; round < 3000; round++) {
        seed = (uint64_t)round + 1;
        const int rank = 1 + (int)below(3), order = (int)below(6);
        const size_t size = (size_t)1 << below(4);
        int64_t dims[3], to_strides[3], from_strides[3], n = 1, wide = 1;
        for (int i = 0; i < rank; i++)
            dims[i] = 1 + below(i == rank - 1 && rank < 3 ? 70 : 18);
        for (int i = rank - 1; i >= 0; i--) {
            to_strides[i] = n;
            n *= dims[i];
        }
        for (int i = 0; i < rank;
             i++) { /* axes in another order, lines a bit apart, or the same element again */
            const int axis = (i + order) % rank;
            from_strides[axis] = below(8) ? wide : 0;
            wide = wide * dims[axis] + below(3);
        }
        assert_true(wide * (int64_t)size <= MOST && n * (int64_t)size <= MOST);
        memset(to, 0, sizeof to);
        memset(expected, 0, sizeof expected);
        const int64_t dims3[3] = { dims[0], rank > 1 ? dims[1] : 1, rank > 2 ? dims[2] : 1 };
        for (int64_t i = 0; i < dims3[0]; i++)
            for (int64_t j = 0; j < dims3[1]; j++)
                for (int64_t k = 0; k < dims3[2]; k++) {
                    const int64_t at[3] = { i, j, k };
                    int64_t t = 0, f = 0;
                    for (int a = 0; a < rank; a++) {
                        t += at[a] * to_strides[a];
                        f += at[a] * from_strides[a];
                    }
                    memcpy(expected + t * (int64_t)size, from + f * (int64_t)size, size);
                }
        qn_copy_strided(size, rank, dims, to, to_strides, from, from_strides);
        assert_memory_equal(to, expected, sizeof to);
    }
}

static void any_box_is_what_the_whole_says(void **state)
{
    (void)state;
    subject (*const steps[])(const subject *) = { reshaped, transposed, sliced, padded,  reshaped,  joined,
                                                  scaled,   converted,  joined, reduced, multiplied };
    int deferred = 0;
    for (int round = 0; round < 300; round++) {
        seed = (uint64_t)round + 1;
        const qn_array start = noise(QUERN_F32, SHAPE(4 + below(9), 12, 1 + below(3), 2 + below(6)), seed);
        subject x = known(&start);
        for (int i = 0; i < 8; i++) {
            x = steps[below(sizeof steps / sizeof *steps)](&x);
            if (qn_array_elements(&x.array) == 0 || qn_array_elements(&x.array) > 200000)
                break;
            for (int k = 0; k < 4; k++)
                expect_boxes(&x);
            deferred += x.tensor->data == NULL;
        }
        eval_reset();
    }
    assert_true(deferred > 1500);
    assert_true(n_multiplied > 50);
}

static void pieces_are_the_whole(void **state)
{
    (void)state;
    const qn_array start = noise(QUERN_F32, SHAPE(700, 1111), 1);
    const subject x = known(&start), y = transposed(&x);
    const subject z = padded(&y);
    assert_null(z.tensor->data);
    const int64_t n = qn_tensor_pieces(z.tensor);
    assert_true(n > 2);
    char *data = malloc(z.tensor->bytes);
    size_t end = 0;
    for (int64_t i = 0; i < n; i++) {
        const qn_piece piece = qn_tensor_piece(z.tensor, i);
        assert_int_equal(piece.offset, end);
        end += piece.bytes;
        qn_tensor_read(z.tensor, i, data + piece.offset);
    }
    assert_int_equal(end, z.tensor->bytes);
    assert_memory_equal(data, z.array.data, end);
    /* The same once it is in memory. */
    assert_memory_equal(qn_tensor_data(z.tensor), z.array.data, end);
    assert_non_null(z.tensor->data);
    memset(data, 0, end);
    for (int64_t i = 0; i < qn_tensor_pieces(z.tensor); i++)
        qn_tensor_read(z.tensor, i, data + qn_tensor_piece(z.tensor, i).offset);
    assert_memory_equal(data, z.array.data, end);
    free(data);
}

static void equal_recipes_are_equal(void **state)
{
    (void)state;
    const qn_array a = noise(QUERN_F32, SHAPE(60, 50), 1), b = noise(QUERN_F32, SHAPE(60, 50), 2);
    const subject x = known(&a), again = known(&a), other = known(&b);
    const qn_attr swap[] = { LIST(PERM, 1, 0) }, keep[] = { LIST(PERM, 0, 1) };
    const subject t = apply(QN_OP_TRANSPOSE, 1, &x, 1, swap), u = apply(QN_OP_TRANSPOSE, 1, &again, 1, swap),
                  v = apply(QN_OP_TRANSPOSE, 1, &other, 1, swap), w = apply(QN_OP_TRANSPOSE, 1, &x, 1, keep);
    assert_true(qn_tensor_key(t.tensor) == qn_tensor_key(u.tensor));
    assert_true(qn_tensor_same_bytes(t.tensor, u.tensor));
    assert_false(qn_tensor_same_bytes(t.tensor, v.tensor));
    assert_false(qn_tensor_same_bytes(t.tensor, w.tensor));
    assert_true(qn_tensor_key(x.tensor) == qn_tensor_key(again.tensor));
    assert_true(qn_tensor_key(x.tensor) != qn_tensor_key(other.tensor));
}

static void long_chains_are_made(void **state)
{
    (void)state;
    const qn_array a = full(QUERN_F32, SHAPE(3, 2), 1);
    subject x = known(&a);
    int64_t limit = 0;
    for (int i = 0; i < 40; i++) { /* 2^40 additions if each operand were read anew */
        x = apply(QN_OP_ADD, 2, (subject[]){ x, x }, 0, (qn_attr[1]){ 0 });
        limit += x.tensor->data != NULL;
    }
    assert_true(limit > 5);
    assert_true(at(&x.array, 0) == 0x1p40);
    expect_boxes(&x);
}

/* Numbers of 4 and 2 bits, of which a box may begin inside a byte; of movement and arithmetic on them, too. */
static void packed_numbers_are_unpacked(void **state)
{
    (void)state;
    static uint8_t bytes[2][60 * 1201 / 2 + 1];
    for (size_t i = 0; i < sizeof bytes[0]; i++)
        bytes[0][i] = bytes[1][i] = (uint8_t)(i * 37 + i / 251);
    for (int bits = 2; bits <= 4; bits += 2) {
        const qn_dtype dtype = bits == 4 ? QUERN_U4 : QUERN_U2;
        const int64_t dims[] = { 60, 1201 }, n = dims[0] * dims[1];
        qn_array a = { .dtype = dtype, .rank = 2, .dims = { dims[0], dims[1] }, .data = malloc((size_t)n) };
        assert_non_null(a.data);
        for (int64_t i = 0; i < n; i++)
            ((uint8_t *)a.data)[i] = bytes[0][i * bits / 8] >> i * bits % 8 & ((1 << bits) - 1);
        const qn_type type = qn_type_static(eval_module(), dtype, 2, dims);
        const qn_tensor *tensors[2];
        for (int i = 0; i < 2; i++)
            tensors[i] = qn_tensor_packed(eval_module()->arena, type, bytes[i], false, "w");
        assert_null(tensors[0]->data);
        assert_true(qn_tensor_same_bytes(tensors[0], tensors[1]));
        assert_true(qn_tensor_key(tensors[0]) == qn_tensor_key(tensors[1]));
        const subject x = { a, tensors[0] };
        expect_boxes(&x);
        const qn_attr perm = list(QN_ATTR_PERM, 2, (int64_t[]){ 1, 0 });
        const subject turned = apply(QN_OP_TRANSPOSE, 1, &x, 1, &perm);
        expect_boxes(&turned);
        bytes[1][700]++;
        assert_false(qn_tensor_same_bytes(tensors[0], tensors[1]));
        bytes[1][700]--;
        assert_memory_equal(qn_tensor_data(tensors[1]), a.data, (size_t)n);
        eval_reset();
        free(a.data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_go_where_strides_say),
        cmocka_unit_test_teardown(any_box_is_what_the_whole_says, eval_teardown),
        cmocka_unit_test_teardown(pieces_are_the_whole, eval_teardown),
        cmocka_unit_test_teardown(equal_recipes_are_equal, eval_teardown),
        cmocka_unit_test_teardown(long_chains_are_made, eval_teardown),
        cmocka_unit_test_teardown(packed_numbers_are_unpacked, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
