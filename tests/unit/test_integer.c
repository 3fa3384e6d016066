/* Products of bytes in quantized models (passes/integer.c): what a model dequantizes, multiplies and quantizes, lowered for a CPU
 * and compared with the interpreter's float32. Scales are powers of two and sums small, so that float32 is exact and bytes have to
 * be the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "ir/build.h"
#include "passes/pass.h"
#include "tests/support/lowered.h"

typedef struct model {
    qn_module *module;
    qn_diags diags;
    qn_builder b;
    qn_array inputs[4];
} model;

static void open_model(model *m)
{
    m->module = qn_module_new("integer");
    qn_diags_init(&m->diags, m->module->arena);
    m->b = (qn_builder){ .graph = qn_function_new(m->module, "f"), .diags = &m->diags };
}

static void *bytes(model *m, int64_t n, int seed)
{
    unsigned char *data = QN_NEW_ARRAY(m->module->arena, unsigned char, n + 1);
    for (int64_t i = 0; i < n; i++) /* 0, 255, 127 and 128 are among them */
        data[i] = (unsigned char)((i * 7919 + seed * 104729) % 256);
    return data;
}

static int64_t count_elements(int rank, const int64_t *dims)
{
    int64_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= dims[i];
    return n;
}

static qn_value *input(model *m, qn_dtype dtype, int rank, const int64_t *dims)
{
    qn_graph *graph = m->b.graph;
    qn_array *a = &m->inputs[graph->n_inputs];
    *a = (qn_array){ .dtype = dtype, .rank = rank };
    for (int i = 0; i < rank; i++)
        a->dims[i] = dims[i];
    a->data = bytes(m, count_elements(rank, dims), graph->n_inputs);
    return qn_graph_add_input(graph, graph->n_inputs ? "y" : "x",
                              qn_type_static(m->module, dtype, rank, dims), QN_ROLE_INPUT);
}

static qn_value *weights(model *m, qn_dtype dtype, int rank, const int64_t *dims)
{
    return qn_b_constant(
        &m->b, qn_tensor_new(m->module, dtype, rank, dims, bytes(m, count_elements(rank, dims), 5)));
}

/* With axis >= 0 a scale and a zero point for each index of it. */
static qn_value *dequantized(model *m, qn_value *x, double scale, int zero, int axis)
{
    enum { MOST = 128 };
    float scales[MOST];
    unsigned char zeros[MOST];
    if (axis < 0)
        return qn_b_dequantize(&m->b, x, qn_b_scalar(&m->b, QUERN_F32, scale),
                               qn_b_scalar(&m->b, x->type.dtype, zero), -1, 0);
    const int64_t n = x->type.dims[axis]->value;
    for (int64_t i = 0; i < n; i++) {
        scales[i] = (float)(i % 3 ? scale : 2 * scale);
        zeros[i] = (unsigned char)(zero + (zero ? i % 4 : 0));
    }
    return qn_b_dequantize(&m->b, x, qn_b_constant(&m->b, qn_tensor_new(m->module, QUERN_F32, 1, &n, scales)),
                           qn_b_constant(&m->b, qn_tensor_new(m->module, x->type.dtype, 1, &n, zeros)), axis,
                           0);
}

static qn_value *quantized(model *m, qn_value *x, double scale, qn_dtype dtype, int zero)
{
    return qn_b_quantize(&m->b, x, qn_b_scalar(&m->b, QUERN_F32, scale), qn_b_scalar(&m->b, dtype, zero), -1,
                         0);
}

static int count(const qn_graph *graph, qn_op op, qn_dtype dtype)
{
    int n = 0;
    QN_FOR_NODES (graph, node)
        n += node->op == op && node->results[0].type.dtype == dtype;
    return n;
}

static void compare(model *m, qn_value *result, const qn_machine *machine, const char *what)
{
    const qn_pass_options options = { .math = QN_MATH_DEFAULT, .machine = machine, .fold = qn_interp_fold };
    qn_graph_add_output(m->b.graph, result, "r", -1);
    lowered_compare(what, m->b.graph, &options, m->inputs, NULL);
}

static const qn_dtype kinds[] = { QUERN_I8, QUERN_U8 };

static void products(void **state)
{
    (void)state;
    for (int i = 0; i < 32 * LOWERED_BYTE_MACHINES; i++) {
        model m;
        open_model(&m);
        const qn_dtype dtype = kinds[i & 1];
        const int axis = i & 4 ? 1 : -1, x_zero = i & 8 ? 3 : 0, w_zero = i & 16 ? 5 : 0;
        qn_value *x = dequantized(&m, input(&m, dtype, 3, (int64_t[]){ 2, 9, 70 }), 0.5, x_zero, -1);
        qn_value *w =
            dequantized(&m, weights(&m, kinds[i >> 1 & 1], 2, (int64_t[]){ 70, 33 }), 0.25, w_zero, axis);
        qn_value *bias = qn_b_scalar(&m.b, QUERN_F32, 8), *low = qn_b_scalar(&m.b, QUERN_F32, -100);
        qn_value *y = qn_b_binary_bcast(&m.b, QN_OP_ADD, qn_b_matmul(&m.b, x, w), bias);
        y = qn_b_binary_bcast(&m.b, QN_OP_MAX, y, low);
        compare(&m, quantized(&m, y, 256, dtype, 7), &lowered_byte_machines[i / 32],
                qn_arena_printf(m.module->arena, "product %d", i));
        assert_int_equal(count(m.b.graph, QN_OP_MATMUL_PACKED, QUERN_I32), 1);
        assert_int_equal(count(m.b.graph, QN_OP_DIV, QUERN_F32), 0);
        qn_module_free(m.module);
    }
}

static void products_of_two_results(void **state)
{
    (void)state;
    for (int i = 0; i < 4 * LOWERED_BYTE_MACHINES; i++) {
        model m;
        open_model(&m);
        qn_value *x = dequantized(&m, input(&m, kinds[i & 1], 3, (int64_t[]){ 2, 9, 130 }), 0.5, 100, -1);
        qn_value *y =
            dequantized(&m, input(&m, kinds[i >> 1 & 1], 3, (int64_t[]){ 2, 17, 130 }), 0.5, 90, -1);
        y = qn_b_transpose(&m.b, y, (int64_t[]){ 0, 2, 1 });
        compare(&m, quantized(&m, qn_b_matmul(&m.b, x, y), 1024, QUERN_U8, 9), &lowered_byte_machines[i / 4],
                qn_arena_printf(m.module->arena, "results %d", i));
        assert_int_equal(count(m.b.graph, QN_OP_MATMUL_PACKED, QUERN_I32), 1);
        qn_module_free(m.module);
    }
}

/* Movement and the largest of a window move bytes, and what is quantized as it was before stays what it is. */
static void bytes_that_move(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * LOWERED_BYTE_MACHINES; i++) {
        model m;
        open_model(&m);
        const qn_dtype dtype = kinds[i & 1];
        const int64_t window[] = { 1, 2, 3 }, stride[] = { 1, 2, 1 };
        qn_value *x = quantized(&m, dequantized(&m, input(&m, dtype, 3, (int64_t[]){ 2, 8, 40 }), 0.3, 4, -1),
                                0.3, dtype, 4);
        x = qn_b_transpose(&m.b, dequantized(&m, x, 0.3, 4, -1), (int64_t[]){ 1, 0, 2 });
        x = dequantized(&m, quantized(&m, x, 0.3, dtype, 4), 0.3, 4, -1);
        x = qn_b_reduce_window(&m.b, QN_KIND_MAX, x, &(qn_window){ .window = window, .stride = stride });
        compare(&m, quantized(&m, x, 0.3, dtype, 4), &lowered_byte_machines[i / 2],
                qn_arena_printf(m.module->arena, "movement %d", i));
        assert_int_equal(count(m.b.graph, QN_OP_CONVERT, dtype) + count(m.b.graph, QN_OP_CONVERT, QUERN_U8),
                         0);
        assert_int_equal(count(m.b.graph, QN_OP_REDUCE_WINDOW, QUERN_U8) +
                             count(m.b.graph, QN_OP_REDUCE_WINDOW, QUERN_I8),
                         1);
        qn_module_free(m.module);
    }
}

static const struct {
    int64_t n, c, o, in, kernel, stride, low, high;
} shapes[] = { { 2, 3, 20, 11, 3, 2, 1, 1 },
               { 1, 16, 16, 7, 1, 1, 0, 0 },
               { 1, 20, 40, 9, 3, 1, 1, 1 },
               { 1, 40, 70, 8, 1, 2, 0, 0 },
               { 1, 37, 16, 6, 2, 1, 0, 1 } };
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static qn_value *convolved(model *m, qn_value *x, qn_value *w, int i, int64_t groups)
{
    const int64_t stride[] = { shapes[i].stride, shapes[i].stride }, low[] = { shapes[i].low, shapes[i].low },
                  high[] = { shapes[i].high, shapes[i].high };
    return qn_b_convolution(&m->b, x, w,
                            &(qn_conv){ .stride = stride, .low = low, .high = high, .groups = groups });
}

static void convolutions(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES * 32 * LOWERED_BYTE_MACHINES; i++) {
        const int at = i / 32 % N_SHAPES, axis = i & 4 ? 0 : -1;
        const int64_t x_dims[] = { shapes[at].n, shapes[at].c, shapes[at].in, shapes[at].in },
                      w_dims[] = { shapes[at].o, shapes[at].c, shapes[at].kernel, shapes[at].kernel };
        model m;
        open_model(&m);
        qn_value *x = dequantized(&m, input(&m, kinds[i & 1], 4, x_dims), 0.5, i & 8 ? 3 : 0, -1);
        qn_value *w = dequantized(&m, weights(&m, kinds[i >> 1 & 1], 4, w_dims), 0.25, i & 16 ? 5 : 0, axis);
        qn_value *y = convolved(&m, x, w, at, 1);
        y = qn_b_binary_bcast(&m.b, QN_OP_ADD, y, qn_b_scalar(&m.b, QUERN_F32, 8));
        compare(&m, quantized(&m, y, 256, QUERN_U8, 7), &lowered_byte_machines[i / 32 / N_SHAPES],
                qn_arena_printf(m.module->arena, "convolution %d", i));
        assert_int_equal(count(m.b.graph, QN_OP_CONV_PACKED, QUERN_I32), 1);
        qn_module_free(m.module);
    }
}

/* (x - zx) as i32, of an input's zero point. */
static qn_value *difference(model *m, qn_value *x, qn_value *zero)
{
    return qn_b_binary_bcast(&m->b, QN_OP_SUB, qn_b_convert(&m->b, QUERN_I32, x),
                             qn_b_convert(&m->b, QUERN_I32, zero));
}

/* Convolutions of whole numbers, whose zero points are known when they run; by groups in float32, which is exact. */
static void whole_numbers(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES * 4 * LOWERED_BYTE_MACHINES; i++) {
        const int at = i / 4 % N_SHAPES;
        const bool each = i & 1;
        const int64_t c = shapes[at].c, x_dims[] = { shapes[at].n, c, shapes[at].in, shapes[at].in },
                      w_dims[] = { each ? c : shapes[at].o, each ? 1 : c, shapes[at].kernel,
                                   shapes[at].kernel };
        model m;
        open_model(&m);
        qn_value *x = input(&m, QUERN_U8, 4, x_dims), *zero = input(&m, QUERN_U8, 0, NULL);
        *(unsigned char *)m.inputs[1].data = 77;
        qn_value *w = difference(&m, weights(&m, kinds[i >> 1 & 1], 4, w_dims),
                                 qn_b_scalar(&m.b, kinds[i >> 1 & 1], 9));
        compare(&m, convolved(&m, difference(&m, x, zero), w, at, each ? c : 1),
                &lowered_byte_machines[i / 4 / N_SHAPES], qn_arena_printf(m.module->arena, "whole %d", i));
        assert_int_equal(count(m.b.graph, QN_OP_CONV_PACKED, QUERN_I32), !each);
        assert_int_equal(count(m.b.graph, QN_OP_CONVOLUTION, QUERN_I32), 0);
        qn_module_free(m.module);
    }
}

/* Groups whose sums could be too large for float32 go by what their filters add up to. */
static void groups_of_known_filters(void **state)
{
    (void)state;
    enum { C = 64, GROUPS = 2, KERNEL = 3, N = 6 };
    for (int i = 0; i < 4; i++) {
        const bool large = i & 1, given = i & 2;
        const int64_t x_dims[] = { 1, C, N, N }, w_dims[] = { C, C / GROUPS, KERNEL, KERNEL };
        const int64_t ones[] = { 1, 1 };
        model m;
        open_model(&m);
        qn_value *x = input(&m, QUERN_U8, 4, x_dims), *w = given ? input(&m, QUERN_I8, 4, w_dims) : NULL;
        if (!given) {
            unsigned char *data = bytes(&m, count_elements(4, w_dims), 5);
            for (int64_t k = 0; !large && k < count_elements(4, w_dims); k++)
                data[k] = (unsigned char)((int)(signed char)data[k] / 4);
            for (int64_t k = 0; large && k < count_elements(4, w_dims); k++)
                data[k] = 0x80; /* 288 * 255 * 255 > 2^24 */
            w = qn_b_constant(&m.b, qn_tensor_new(m.module, QUERN_I8, 4, w_dims, data));
        }
        w = difference(&m, w, qn_b_scalar(&m.b, QUERN_I8, large ? 127 : 0));
        qn_value *y = qn_b_convolution(&m.b, difference(&m, x, qn_b_scalar(&m.b, QUERN_U8, 4)), w,
                                       &(qn_conv){ .low = ones, .high = ones, .groups = GROUPS });
        compare(&m, y, &lowered_byte_machines[0], qn_arena_printf(m.module->arena, "groups %d", i));
        assert_int_equal(count(m.b.graph, QN_OP_CONVOLUTION, QUERN_I32), large || given);
        qn_module_free(m.module);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products),        cmocka_unit_test(products_of_two_results),
        cmocka_unit_test(bytes_that_move), cmocka_unit_test(convolutions),
        cmocka_unit_test(whole_numbers),   cmocka_unit_test(groups_of_known_filters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
