/* Kernels of convolutions in channel blocks give what the interpreter gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/build.h"
#include "passes/claim.h"
#include "passes/conv.h"
#include "tests/support/eval.h"
#include "tests/support/lowered.h"

static const qn_machine avx512 = { LOWERED_AVX512 }, avx2 = { LOWERED_AVX2 };

typedef struct shape {
    const char *name;
    int spatial;
    int64_t n, blocks, c, channels, groups,
        out_blocks; /* groups: negative: inside of blocks, of so many channels */
    int64_t x[3], w[3], stride[3], low[3], high[3], dilation[3];
} shape;

/* Where c is 0, it is the machine's lanes, and channels counts from there: -1 leaves one lane out. */
static const shape shapes[] = {
    { "1x1", 2, 1, 2, 0, 0, 1, 4, { 5, 28 }, { 1, 1 }, { 1, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 } },
    { "1x1, odd blocks", 2, 2, 3, 0, -3, 1, 5, { 7, 7 }, { 1, 1 }, { 1, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 } },
    { "1x1, stride", 2, 1, 1, 0, 0, 1, 1, { 9, 31 }, { 1, 1 }, { 2, 2 }, { 0, 0 }, { 0, 0 }, { 1, 1 } },
    { "3x3", 2, 1, 1, 0, 0, 1, 2, { 6, 56 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "3x3, narrow", 2, 2, 2, 0, -5, 1, 3, { 7, 7 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "3x3, very narrow", 2, 1, 1, 0, 0, 1, 2, { 5, 2 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "3x3, one position", 2, 1, 1, 0, 0, 1, 2, { 1, 1 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "3x3, stride", 2, 1, 1, 0, 0, 1, 2, { 15, 29 }, { 3, 3 }, { 2, 2 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "3x3, dilation", 2, 1, 1, 0, 0, 1, 2, { 9, 33 }, { 3, 3 }, { 1, 1 }, { 4, 4 }, { 4, 4 }, { 4, 4 } },
    { "3x3, wide border", 2, 1, 1, 0, 0, 1, 1, { 3, 3 }, { 3, 3 }, { 1, 1 }, { 4, 5 }, { 5, 4 }, { 1, 1 } },
    { "cropped", 2, 1, 1, 0, 0, 1, 1, { 9, 12 }, { 3, 2 }, { 1, 1 }, { -1, -2 }, { 0, -1 }, { 1, 1 } },
    { "7x7 of planes", 2, 1, 3, 1, 0, 1, 4, { 22, 60 }, { 7, 7 }, { 2, 2 }, { 3, 3 }, { 3, 3 }, { 1, 1 } },
    { "5x5 of one plane", 2, 2, 1, 1, 0, 1, 1, { 9, 9 }, { 5, 5 }, { 1, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 } },
    { "blocks of 3", 2, 1, 2, 3, 5, 1, 2, { 6, 17 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "groups", 2, 1, 4, 0, -2, 2, 4, { 5, 14 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "groups of one block",
      2,
      1,
      2,
      0,
      0,
      2,
      2,
      { 5, 14 },
      { 1, 3 },
      { 1, 1 },
      { 0, 1 },
      { 0, 1 },
      { 1, 1 } },
    { "each", 2, 2, 3, 0, 0, -1, 3, { 8, 30 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "each, narrow", 2, 1, 2, 0, 0, -1, 2, { 7, 7 }, { 5, 5 }, { 1, 1 }, { 2, 2 }, { 2, 2 }, { 1, 1 } },
    { "groups of 2", 2, 2, 3, 0, 0, -2, 3, { 8, 30 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "groups of 4, narrow",
      2,
      1,
      2,
      0,
      0,
      -4,
      2,
      { 7, 7 },
      { 5, 5 },
      { 1, 1 },
      { 2, 2 },
      { 2, 2 },
      { 1, 1 } },
    { "groups of 4, 1x1", 2, 1, 2, 0, 0, -4, 2, { 6, 17 }, { 1, 1 }, { 2, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 } },
    { "groups of 2 to 4", 2, 1, 1, 0, 0, -2, 2, { 6, 17 }, { 3, 3 }, { 1, 2 }, { 1, 1 }, { 1, 1 }, { 2, 1 } },
    { "each to 2", 2, 2, 1, 0, 0, -1, 2, { 6, 17 }, { 3, 3 }, { 1, 2 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
    { "each, stride", 2, 1, 1, 0, 0, -1, 1, { 12, 29 }, { 3, 3 }, { 2, 2 }, { 0, 1 }, { 1, 0 }, { 1, 2 } },
    { "line", 1, 2, 1, 0, 0, 1, 3, { 61 }, { 3 }, { 1 }, { 1 }, { 1 }, { 1 } },
    { "line as a column", 2, 1, 1, 0, 0, 1, 2, { 40, 1 }, { 5, 1 }, { 2, 1 }, { 2, 0 }, { 2, 0 }, { 1, 1 } },
    { "solid",
      3,
      1,
      1,
      0,
      0,
      1,
      2,
      { 4, 5, 15 },
      { 3, 3, 3 },
      { 1, 2, 1 },
      { 1, 1, 1 },
      { 1, 1, 1 },
      { 1, 1, 1 } },
    { "narrow solid",
      3,
      1,
      1,
      0,
      0,
      1,
      1,
      { 3, 4, 4 },
      { 2, 3, 3 },
      { 1, 1, 1 },
      { 1, 1, 1 },
      { 0, 1, 1 },
      { 1, 1, 1 } },
    { "wide, each channel", 1, 2, 2, 0, 0, -1, 2, { 60 }, { 33 }, { 1 }, { 0 }, { 0 }, { 1 } },
    { "wide, dilation, each", 1, 1, 1, 0, 0, -1, 1, { 90 }, { 24 }, { 2 }, { 0 }, { 0 }, { 2 } },
    { "wide, rows, each",
      2,
      1,
      1,
      0,
      0,
      -1,
      1,
      { 3, 40 },
      { 2, 19 },
      { 1, 1 },
      { 1, 0 },
      { 0, 0 },
      { 1, 1 } },
    { "wide, pairs", 1, 1, 2, 0, 0, -2, 2, { 50 }, { 20 }, { 1 }, { 0 }, { 0 }, { 1 } },
    { "wide, dilation", 1, 1, 2, 0, -3, 1, 3, { 80 }, { 21 }, { 1 }, { 0 }, { 0 }, { 3 } },
    { "1x1, deep", 2, 1, 5, 0, -4, 1, 8, { 7, 7 }, { 1, 1 }, { 1, 1 }, { 0, 0 }, { 0, 0 }, { 1, 1 } },
    { "line, deep", 1, 3, 4, 0, -4, 1, 7, { 64 }, { 4 }, { 1 }, { 0 }, { 0 }, { 1 } },
    { "blocks of 6", 2, 1, 3, 6, 18, 1, 2, { 6, 17 }, { 3, 3 }, { 1, 1 }, { 1, 1 }, { 1, 1 }, { 1, 1 } },
};

static const int64_t *dims_of(const shape *s, int64_t lanes, int64_t *x, int64_t *w)
{
    const int64_t c = s->c ? s->c : lanes;
    x[0] = s->n;
    x[1] = s->blocks;
    w[0] = s->out_blocks;
    w[1] = s->groups > 0 ? s->blocks / s->groups : 1;
    for (int i = 0; i < s->spatial; i++) {
        x[2 + i] = s->x[i];
        w[2 + i] = s->w[i];
    }
    x[2 + s->spatial] = c;
    w[2 + s->spatial] = s->groups > 0 ? c : -s->groups;
    w[3 + s->spatial] = lanes;
    return x;
}

enum { ALONE, ACTIVATION, RESIDUAL, BOTH, TURNED, PLANES, EPILOGUES };

/* y with the channels of a block, or all but the last two channels, as planes, to which others are added then. */
static qn_value *out_of_blocks(qn_builder *b, qn_value *y, bool planes)
{
    const int rank = y->type.rank;
    int64_t perm[QN_MAX_RANK] = { 0, 1, rank - 1 };
    for (int i = 2; i < rank - 1; i++)
        perm[i + 1] = i;
    y = qn_b_transpose(b, y, perm);
    if (!planes)
        return y;
    qn_dims *t = qn_b_dims(b);
    qn_dim dims[QN_MAX_RANK] = { y->type.dims[0], qn_dim_mul(t, y->type.dims[1], y->type.dims[2]) };
    for (int i = 3; i < rank; i++)
        dims[i - 1] = y->type.dims[i];
    y = qn_b_reshape(b, y, rank - 1, dims);
    y = qn_b_slice_axis(b, y, 1, qn_dim_const(t, 0), qn_dim_sub(t, dims[1], qn_dim_const(t, 2)));
    qn_value *others = qn_graph_add_input(b->graph, "others", y->type, QN_ROLE_INPUT);
    y = qn_b_binary(b, QN_OP_ADD, y, others);
    qn_graph_add_output(b->graph, qn_b_unary(b, QN_OP_NEG, y), "negated", -1);
    return y;
}

/* The convolution, and what follows it. behind: lanes of the last output block that are no channels. */
static qn_graph *build(const shape *s, qn_dtype dtype, int64_t lanes, int64_t behind, int epilogue,
                       qn_diags *diags)
{
    int64_t x_dims[QN_MAX_RANK], w_dims[QN_MAX_RANK];
    dims_of(s, lanes, x_dims, w_dims);
    qn_module *module = qn_module_new("conv");
    qn_graph *graph = qn_function_new(module, "main");
    qn_builder b = { .graph = graph, .diags = diags };
    qn_value *x =
        qn_graph_add_input(graph, "x", qn_type_static(module, dtype, 3 + s->spatial, x_dims), QN_ROLE_INPUT);
    qn_value *w =
        qn_graph_add_input(graph, "w", qn_type_static(module, dtype, 4 + s->spatial, w_dims), QN_ROLE_INPUT);
    const int64_t c = x_dims[2 + s->spatial], of_group = w_dims[1] * w_dims[2 + s->spatial];
    const qn_conv conv = { s->stride, s->low,      s->high,
                           NULL,      s->dilation, s->groups > 0 ? s->groups : s->blocks * c / -s->groups };
    const int64_t channels = s->channels > 0 ? s->channels : of_group + s->channels;
    qn_value *y = behind > 0
                      ? qn_b_conv_packed_across(&b, x, w, &conv, channels, s->out_blocks * lanes - behind)
                      : qn_b_conv_packed(&b, x, w, &conv, channels);
    assert_non_null(y);
    qn_type like = y->type;
    if (epilogue == ACTIVATION || epilogue == BOTH || epilogue == TURNED) {
        const int64_t bias_dims[] = { s->out_blocks, lanes }, axes[] = { 1, 2 + s->spatial };
        qn_value *bias =
            qn_graph_add_input(graph, "bias", qn_type_static(module, dtype, 2, bias_dims), QN_ROLE_INPUT);
        y = qn_b_binary(&b, QN_OP_ADD, y, qn_b_broadcast(&b, bias, like.rank, like.dims, axes));
        y = qn_b_binary(&b, QN_OP_MAX, y, qn_b_full(&b, &like, 0));
    }
    if (epilogue == RESIDUAL || epilogue == BOTH) {
        qn_value *residual = qn_graph_add_input(graph, "residual", like, QN_ROLE_INPUT);
        y = qn_b_binary(&b, QN_OP_ADD, y, residual);
    }
    if (epilogue == TURNED || epilogue == PLANES)
        y = out_of_blocks(&b, y, epilogue == PLANES);
    qn_graph_add_output(graph, y, "y", -1);
    if (epilogue == BOTH) { /* a second output, seen in other dims */
        const qn_dim flat = qn_type_elements_dim(module->dims, &like);
        qn_graph_add_output(graph, qn_b_reshape(&b, qn_b_unary(&b, QN_OP_NEG, y), 1, &flat), "z", -1);
    }
    return graph;
}

static qn_array random_input(const qn_type *type, unsigned seed, qn_arena *arena)
{
    qn_array a = { .dtype = type->dtype, .rank = type->rank };
    int64_t n = 1;
    for (int i = 0; i < type->rank; i++)
        n *= a.dims[i] = type->dims[i]->value;
    a.data = qn_arena_alloc(arena, (size_t)n * qn_dtype_bytes(type->dtype));
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        const qn_scalar v = { .f = (double)(int)(seed >> 16 & 255) / 64 - 2 };
        qn_scalar_store(type->dtype, v, (char *)a.data + (size_t)i * qn_dtype_bytes(type->dtype));
    }
    return a;
}

/* Weights of what is behind the output channels are 0. */
static void clear_behind(int64_t behind, qn_array *w)
{
    int64_t n = 1;
    for (int i = 0; i < w->rank; i++)
        n *= w->dims[i];
    const int64_t lanes = w->dims[w->rank - 1], last = n - n / w->dims[0];
    for (int64_t i = last; i < n; i++)
        if (i % lanes >= lanes - behind)
            qn_scalar_store(w->dtype, (qn_scalar){ .f = 0 },
                            (char *)w->data + (size_t)i * qn_dtype_bytes(w->dtype));
}

/* Gives how many have sums in parts. */
static int check(const shape *s, qn_dtype dtype, const qn_machine *machine, int64_t behind, int epilogue)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    const qn_pass_options options = { .math = QN_MATH_DEFAULT, .machine = machine };
    const int64_t lanes = machine->vector_bytes / (int64_t)qn_dtype_bytes(dtype);
    qn_graph *graph = build(s, dtype, lanes, behind, epilogue, &diags);
    char name[128];
    snprintf(name, sizeof name, "%s, %d bytes, %d behind, epilogue %d", s->name, machine->vector_bytes,
             (int)behind, epilogue);
    qn_conv_plan plan;
    int in_parts = 0;
    QN_FOR_NODES (graph, node) {
        if (node->op != QN_OP_CONV_PACKED)
            continue;
        if (!qn_conv_plan_make(node, &options, &plan))
            fail_msg("%s: there is no kernel for it", name);
        in_parts += plan.parts > 1;
    }
    qn_array inputs[8];
    for (int i = 0; i < graph->n_inputs; i++)
        inputs[i] = random_input(&graph->inputs[i]->type, 7u * (unsigned)i + 1, arena);
    clear_behind(behind, &inputs[1]);
    lowered_compare(name, graph, &options, inputs, NULL);
    qn_module_free(graph->module);
    qn_arena_free(arena);
    return in_parts;
}

static void test_avx512(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int epilogue = 0; epilogue < EPILOGUES; epilogue++)
            check(&shapes[i], QUERN_F32, &avx512, 0, epilogue);
}

static void test_avx2(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int epilogue = 0; epilogue < EPILOGUES; epilogue++)
            check(&shapes[i], QUERN_F32, &avx2, 0, epilogue);
}

static void test_aarch64(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int epilogue = 0; epilogue < EPILOGUES; epilogue++)
            check(&shapes[i], QUERN_F32, &lowered_aarch64, 0, epilogue);
}

static void test_f64(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check(&shapes[i], QUERN_F64, i % 3 ? &avx512 : &lowered_aarch64, 0, (int)(i % EPILOGUES));
}

/* Output blocks of few channels, whose sums are made in parts where there is one group of vectors. */
static void test_few_channels(void **state)
{
    (void)state;
    const qn_machine *const machines[] = { &avx512, &avx2, &lowered_aarch64 };
    int in_parts = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int m = 0; m < 3 && shapes[i].groups == 1; m++)
            for (int f64 = 0; f64 < 2; f64++) {
                const qn_dtype dtype = f64 ? QUERN_F64 : QUERN_F32;
                const int64_t lanes = machines[m]->vector_bytes / (int64_t)qn_dtype_bytes(dtype);
                for (int64_t left = 1; left < lanes && lanes > 2; left += 1 + left / 2)
                    in_parts += check(&shapes[i], dtype, machines[m], lanes - left,
                                      (int)(i + (size_t)left) % EPILOGUES);
            }
    assert_true(in_parts > 50);
}

/* Every position of an axis is in one tile, and which ones meet the border is said rightly. */
static void test_spans(void **state)
{
    (void)state;
    const qn_conv_axis axes[] = { { 7, 7, 3, 1, 1, 1 }, { 8, 4, 3, 2, 1, 1 },   { 5, 9, 3, 1, 3, 1 },
                                  { 9, 5, 3, 1, 0, 2 }, { 10, 7, 2, 1, -2, 1 }, { 33, 33, 3, 1, 4, 4 },
                                  { 1, 3, 3, 1, 2, 1 } };
    for (size_t a = 0; a < sizeof axes / sizeof *axes; a++)
        for (int64_t start = 0; start < axes[a].out; start++)
            for (int64_t size = 1; start + size <= axes[a].out; size++)
                for (int64_t k = 0; k < axes[a].kernel; k++) {
                    const qn_conv_span span = qn_conv_valid(&axes[a], start, size, k);
                    for (int64_t q = 0; q < size; q++) {
                        const int64_t at = (start + q) * axes[a].stride - axes[a].low + k * axes[a].dilation;
                        assert_int_equal(q >= span.first && q < span.last, at >= 0 && at < axes[a].in);
                    }
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spans),   cmocka_unit_test(test_avx512), cmocka_unit_test(test_avx2),
        cmocka_unit_test(test_aarch64), cmocka_unit_test(test_f64),    cmocka_unit_test(test_few_channels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
