/* Winograd convolution: what it computes is a convolution, its kernels give what the interpreter gives, and the layout pass
 * takes it where it should. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/winograd.h"
#include "passes/winograd.h"
#include "tests/support/eval.h"
#include "tests/support/lowered.h"

/* Caches so small that some filters are streamed. */
static const qn_machine avx512 = { .vector_bytes = 64,
                                   .vector_registers = 32,
                                   .fma = true,
                                   .masked = true,
                                   .l1_bytes = 48 << 10,
                                   .l2_bytes = 1 << 17 };
static const qn_machine avx2 = {
    .vector_bytes = 32, .vector_registers = 16, .fma = true, .l1_bytes = 32768, .l2_bytes = 1 << 15
};
static const qn_machine sse = {
    .vector_bytes = 16, .vector_registers = 16, .l1_bytes = 32768, .l2_bytes = 1 << 18
};

typedef struct shape {
    const char *name;
    int64_t n, channels, out_blocks, vectors, height, width, low[2], high[2];
} shape;

static const shape shapes[] = {
    { "even", 1, 16, 2, 2, 8, 8, { 1, 1 }, { 1, 1 } },
    { "ragged", 2, 16, 2, 2, 7, 9, { 1, 1 }, { 1, 1 } },
    { "odd channels", 1, 21, 3, 3, 6, 10, { 1, 1 }, { 1, 1 } },
    { "no border", 1, 5, 1, 1, 9, 5, { 0, 0 }, { 0, 0 } },
    { "wide border", 1, 16, 4, 4, 3, 4, { 4, 5 }, { 6, 3 } },
    { "cropped", 1, 16, 1, 1, 9, 12, { -1, 0 }, { 0, -2 } },
    { "one position", 3, 16, 1, 1, 1, 1, { 1, 1 }, { 1, 1 } },
    { "many tiles", 1, 16, 2, 2, 26, 30, { 1, 1 }, { 1, 1 } },
    { "many channels", 2, 100, 8, 2, 14, 14, { 1, 1 }, { 1, 1 } },
    { "more channels", 1, 400, 8, 1, 9, 6, { 1, 1 }, { 1, 1 } },
};

enum { ALONE, ACTIVATION, RESIDUAL, EPILOGUES };

enum { SYMBOLS = 3 };
static const int symbol_axes[SYMBOLS] = { 0, 2, 3 }; /* of x */

static int64_t blocks_of(int64_t channels, int64_t lanes)
{
    return (channels + lanes - 1) / lanes;
}

/* The convolution of input x with input u, and what follows it. */
static qn_graph *build(const shape *s, qn_dtype dtype, int64_t lanes, int64_t t, int epilogue, bool symbolic,
                       qn_diags *diags)
{
    const int64_t x_extents[] = { s->n, blocks_of(s->channels, lanes), s->height, s->width, lanes };
    const int64_t u_dims[] = { s->out_blocks / s->vectors, t, t, s->channels, s->vectors * lanes };
    qn_module *module = qn_module_new("winograd");
    qn_graph *graph = qn_function_new(module, "main");
    qn_builder b = { .graph = graph, .diags = diags };
    qn_dim x_dims[5];
    for (int i = 0; i < 5; i++)
        x_dims[i] = qn_dim_const(module->dims, x_extents[i]);
    for (int i = 0; i < SYMBOLS && symbolic; i++)
        x_dims[symbol_axes[i]] = qn_dim_symbol(module->dims, (const char *[]){ "n", "h", "w" }[i], 1, 1000);
    qn_value *x = qn_graph_add_input(graph, "x", qn_type_make(module, dtype, 5, x_dims), QN_ROLE_INPUT);
    qn_value *u = qn_graph_add_input(graph, "u", qn_type_static(module, dtype, 5, u_dims), QN_ROLE_INPUT);
    qn_value *y = qn_b_conv_winograd(&b, x, u, s->low, s->high);
    assert_non_null(y);
    const qn_type like = y->type;
    if (epilogue == ACTIVATION) {
        const int64_t bias_dims[] = { s->out_blocks, lanes }, axes[] = { 1, 4 };
        qn_value *bias =
            qn_graph_add_input(graph, "bias", qn_type_static(module, dtype, 2, bias_dims), QN_ROLE_INPUT);
        y = qn_b_binary(&b, QN_OP_ADD, y, qn_b_broadcast(&b, bias, like.rank, like.dims, axes));
        y = qn_b_binary(&b, QN_OP_MAX, y, qn_b_full(&b, &like, 0));
    } else if (epilogue == RESIDUAL) {
        y = qn_b_binary(&b, QN_OP_ADD, y, qn_graph_add_input(graph, "residual", like, QN_ROLE_INPUT));
        const qn_dim flat = qn_type_elements_dim(module->dims, &like);
        qn_graph_add_output(graph, qn_b_reshape(&b, qn_b_unary(&b, QN_OP_NEG, y), 1, &flat), "z", -1);
    }
    qn_graph_add_output(graph, y, "y", -1);
    return graph;
}

/* Filters are small, so that results, in which large numbers cancel, are about 1. */
static qn_array random_input(const qn_type *type, const int64_t *symbols, uint64_t seed, double scale)
{
    int64_t dims[QN_MAX_RANK], n = 1;
    for (int i = 0; i < type->rank; i++)
        n *= dims[i] = qn_dim_eval(type->dims[i], symbols);
    const qn_array a = noise(type->dtype, type->rank, dims, seed);
    for (int64_t i = 0; i < n; i++)
        qn_scalar_store(type->dtype, (qn_scalar){ .f = scale * at(&a, i) },
                        (char *)a.data + (size_t)i * qn_dtype_bytes(type->dtype));
    return a;
}

/* Gives whether inputs are transformed by a kernel of their own. */
static bool check(const shape *s, qn_dtype dtype, const qn_machine *machine, int64_t t, int epilogue,
                  bool symbolic)
{
    const int64_t symbols[SYMBOLS] = { s->n, s->height, s->width };
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    const qn_pass_options options = { .math = QN_MATH_DEFAULT, .machine = machine };
    const int64_t lanes = machine->vector_bytes / (int64_t)qn_dtype_bytes(dtype);
    qn_graph *graph = build(s, dtype, lanes, t, epilogue, symbolic, &diags);
    char name[128];
    snprintf(name, sizeof name, "%s, %d bytes, t = %d, epilogue %d%s", s->name, machine->vector_bytes, (int)t,
             epilogue, symbolic ? ", symbols" : "");
    qn_winograd_plan plan = { 0 };
    QN_FOR_NODES (graph, node)
        if (node->op == QN_OP_CONV_WINOGRAD && !qn_winograd_plan_make(node, &options, &plan) && !symbolic)
            fail_msg("%s: there is no kernel for it", name);
    qn_array inputs[4];
    for (int i = 0; i < graph->n_inputs; i++)
        inputs[i] =
            random_input(&graph->inputs[i]->type, symbols, 7u * (unsigned)i + 1, i == 1 ? 1. / 1024 : 1);
    lowered_compare(name, graph, &options, inputs, symbols);
    qn_module_free(graph->module);
    qn_arena_free(arena);
    eval_reset();
    return plan.shared;
}

static void check_all(const qn_machine *machine, qn_dtype dtype)
{
    int shared[2] = { 0, 0 }, n = 0; /* extents known, symbols */
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int64_t t = 4; t <= 6; t += 2, n++)
            for (int symbolic = 0; symbolic < 2; symbolic++)
                shared[symbolic] +=
                    check(&shapes[i], dtype, machine, t, (int)((i + (size_t)t / 2) % EPILOGUES), symbolic);
    for (int symbolic = 0; symbolic < 2; symbolic++)
        if (shared[symbolic] == 0 || shared[symbolic] == n)
            fail_msg("inputs have a kernel of their own in %d of %d cases%s", shared[symbolic], n,
                     symbolic ? ", symbols" : "");
}

static void kernels_avx512(void **state)
{
    (void)state;
    check_all(&avx512, QUERN_F32);
}

static void kernels_avx2(void **state)
{
    (void)state;
    check_all(&avx2, QUERN_F32);
}

static void kernels_sse(void **state)
{
    (void)state;
    check_all(&sse, QUERN_F32);
}

static void kernels_aarch64(void **state)
{
    (void)state;
    check_all(&lowered_aarch64, QUERN_F32);
}

static void kernels_f64(void **state)
{
    (void)state;
    check_all(&avx512, QUERN_F64);
}

/* ---- what it computes ---- */

/* x [N, C, H, W] in one block of C channels: [N, 1, H, W, C]. */
static qn_array in_a_block(const qn_array *x)
{
    const int64_t *d = x->dims, plane = d[2] * d[3];
    const int64_t dims[] = { d[0], 1, d[2], d[3], d[1] };
    qn_array y = full(x->dtype, 5, dims, 0);
    for (int64_t n = 0; n < d[0]; n++)
        for (int64_t c = 0; c < d[1]; c++)
            for (int64_t i = 0; i < plane; i++)
                qn_scalar_store(x->dtype, (qn_scalar){ .f = at(x, (n * d[1] + c) * plane + i) },
                                (char *)y.data +
                                    (size_t)((n * plane + i) * d[1] + c) * qn_dtype_bytes(x->dtype));
    return y;
}

/* conv_winograd with the filters that qn_winograd_weights makes of w. */
static void run_winograd(const qn_array *x, const qn_array *w, int t, qn_array *out, qn_arena *arena)
{
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_module *module = qn_module_new("winograd");
    qn_graph *graph = qn_function_new(module, "main");
    qn_builder b = { .graph = graph, .diags = &diags };
    qn_value *values[2];
    const qn_array inputs[] = { in_a_block(x), *w };
    for (int i = 0; i < 2; i++)
        values[i] = qn_graph_add_input(
            graph, i ? "w" : "x", qn_type_static(module, inputs[i].dtype, inputs[i].rank, inputs[i].dims),
            QN_ROLE_INPUT);
    qn_value *u = qn_winograd_weights(&b, values[1], t, w->dims[0]);
    qn_value *y = qn_b_conv_winograd(&b, values[0], u, (const int64_t[]){ 1, 0 }, (const int64_t[]){ 1, 2 });
    if (!y)
        fail_msg("%s", qn_diags_text(&diags, arena));
    qn_graph_add_output(graph, y, "y", -1);
    if (qn_interp_run(graph, inputs, out, arena, &diags))
        fail_msg("%s", qn_diags_text(&diags, arena));
    qn_module_free(module);
}

/* The error in float32, as part of the largest result, stays below what ir/winograd.h says of 128 channels. */
static void it_is_a_convolution(void **state)
{
    (void)state;
    static const struct {
        qn_dtype dtype;
        int t;
        double bound;
    } cases[] = {
        { QUERN_F32, 4, 1e-6 }, { QUERN_F32, 6, 4e-6 }, { QUERN_F64, 4, 1e-14 }, { QUERN_F64, 6, 1e-14 }
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum { C = 128 };
        qn_arena *arena = qn_arena_new();
        const qn_array x = noise(cases[i].dtype, 4, (const int64_t[]){ 2, C, 9, 10 }, 3),
                       w = noise(cases[i].dtype, 4, (const int64_t[]){ C, C, 3, 3 }, 4);
        qn_array y;
        run_winograd(&x, &w, cases[i].t, &y, arena);
        const call direct = { QN_OP_CONVOLUTION,
                              2,
                              { x, w },
                              6,
                              { INT(GROUPS, 1), LIST(HIGH, 1, 2), LIST(LOW, 1, 0), LIST(STRIDE, 1, 1),
                                LIST(W_DILATION, 1, 1), LIST(X_DILATION, 1, 1) } };
        const qn_array *expected = eval(&direct);
        assert_non_null(expected);
        const qn_array e = in_a_block(expected);
        double largest = 0, error = 0;
        for (int64_t k = 0; k < 2 * C * 9 * 10; k++) {
            largest = fmax(largest, fabs(at(&e, k)));
            error = fmax(error, fabs(at(&e, k) - at(&y, k)));
        }
        assert_true(largest > 1);
        if (error > cases[i].bound * largest)
            fail_msg("t = %d: error %g of %g", cases[i].t, error, largest);
        eval_reset();
        qn_arena_free(arena);
    }
}

/* ---- when it is taken ---- */

/* size 0: any */
static qn_op op_for(int64_t channels, int64_t size, int64_t stride, bool constant, qn_math math)
{
    qn_module *module = qn_module_new("f");
    qn_diags diags;
    qn_diags_init(&diags, module->arena);
    qn_graph *graph = qn_function_new(module, "f");
    qn_builder b = { .graph = graph, .diags = &diags };
    const int64_t w_dims[] = { channels, channels, 3, 3 };
    const qn_dim extent =
                     size > 0 ? qn_dim_const(module->dims, size) : qn_dim_symbol(module->dims, "h", 1, 1000),
                 x_dims[] = { qn_dim_const(module->dims, 1), qn_dim_const(module->dims, channels), extent,
                              extent };
    qn_value *x = qn_graph_add_input(graph, "x", qn_type_make(module, QUERN_F32, 4, x_dims), QN_ROLE_INPUT);
    qn_value *w = constant ? qn_b_constant(&b, qn_tensor_new(module, QUERN_F32, 4, w_dims, NULL))
                           : qn_graph_add_input(graph, "w", qn_type_static(module, QUERN_F32, 4, w_dims),
                                                QN_ROLE_INPUT);
    const qn_conv conv = { .stride = (const int64_t[]){ stride, stride },
                           .low = (const int64_t[]){ 1, 1 },
                           .high = (const int64_t[]){ 1, 1 } };
    qn_graph_add_output(graph, qn_b_convolution(&b, x, w, &conv), "y", -1);
    qn_machine machine = avx512;
    machine.l2_bytes = 2 << 20;
    const qn_pass_options options = { .math = math, .machine = &machine };
    if (qn_run_passes(graph, "layout", &options, NULL, &diags))
        fail_msg("%s", qn_diags_text(&diags, module->arena));
    qn_op op = QN_OP_CONSTANT;
    QN_FOR_NODES (graph, node)
        if (qn_ops[node->op].class == QN_CONTRACTION && node->op != QN_OP_DOT_GENERAL)
            op = node->op;
    qn_module_free(module);
    return op;
}

static void layout_takes_it_where_it_pays(void **state)
{
    (void)state;
    assert_int_equal(op_for(64, 56, 1, true, QN_MATH_DEFAULT), QN_OP_CONV_WINOGRAD);
    assert_int_equal(op_for(128, 28, 1, true, QN_MATH_DEFAULT), QN_OP_CONV_WINOGRAD);
    assert_int_equal(op_for(256, 14, 1, true, QN_MATH_DEFAULT), QN_OP_CONV_WINOGRAD);
    assert_int_equal(op_for(64, 56, 2, true, QN_MATH_DEFAULT), QN_OP_CONV_PACKED);
    assert_int_equal(op_for(64, 56, 1, false, QN_MATH_DEFAULT), QN_OP_CONV_PACKED);
    assert_int_equal(op_for(512, 7, 1, true, QN_MATH_DEFAULT),
                     QN_OP_CONV_PACKED); /* more to read than to save */
    assert_int_equal(op_for(64, 56, 1, true, QN_MATH_STRICT), QN_OP_CONV_PACKED);
    assert_int_equal(op_for(64, 0, 1, true, QN_MATH_DEFAULT), QN_OP_CONV_WINOGRAD);
    assert_int_equal(op_for(64, 0, 2, true, QN_MATH_DEFAULT), QN_OP_CONV_PACKED);
    assert_int_equal(op_for(64, 0, 1, false, QN_MATH_DEFAULT), QN_OP_CONV_PACKED);
    assert_int_equal(op_for(64, 0, 1, true, QN_MATH_STRICT), QN_OP_CONVOLUTION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_a_convolution),
        cmocka_unit_test(kernels_avx512),
        cmocka_unit_test(kernels_avx2),
        cmocka_unit_test(kernels_sse),
        cmocka_unit_test(kernels_aarch64),
        cmocka_unit_test(kernels_f64),
        cmocka_unit_test(layout_takes_it_where_it_pays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
