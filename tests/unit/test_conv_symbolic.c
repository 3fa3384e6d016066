/* Convolutions over extents that are symbols give what the interpreter gives, for any extents. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backends/interp/interp.h"
#include "tests/support/lowered.h"
#include "tests/support/net.h"

static const qn_machine avx512 = { .vector_bytes = 64,
                                   .vector_registers = 32,
                                   .fma = true,
                                   .masked = true,
                                   .l1_bytes = 32768,
                                   .l2_bytes = 1 << 20 };
static const qn_machine avx2 = {
    .vector_bytes = 32, .vector_registers = 16, .fma = true, .l1_bytes = 32768, .l2_bytes = 1 << 18
};
static const qn_machine *const machines[] = { &avx512, &avx2, &lowered_aarch64 };

static uint64_t state;

static int64_t below(int64_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)(state >> 33) % n;
}

static qn_array noise(const qn_type *type, const int64_t *symbols, qn_arena *arena)
{
    qn_array a;
    const int64_t n = array_of_type(&a, type, symbols, arena);
    for (int64_t i = 0; i < n; i++) {
        const int64_t number = below(5) - (type->dtype == QUERN_U8 ? 0 : 2); /* sums are exact */
        const qn_scalar v =
            qn_dtype_is_float(type->dtype) ? (qn_scalar){ .f = (double)number } : (qn_scalar){ .i = number };
        qn_scalar_store(type->dtype, v, (char *)a.data + (size_t)i * qn_dtype_bytes(type->dtype));
    }
    return a;
}

/* What follows: nothing, a bias and relu, a residual, or another convolution, which reads blocks. */
static qn_value *follow(net *n, qn_value *y, int what)
{
    qn_builder *b = &n->b;
    const int rank = y->type.rank;
    if (what == 1) {
        qn_value *bias = net_input(n, "bias", y->type.dtype, 1, &y->type.dims[1]);
        y = qn_b_binary(b, QN_OP_ADD, y, qn_b_broadcast(b, bias, rank, y->type.dims, (const int64_t[]){ 1 }));
        return qn_b_binary(b, QN_OP_MAX, y, qn_b_full(b, &y->type, 0));
    }
    if (what == 2)
        return qn_b_binary(b, QN_OP_ADD, y, net_input(n, "residual", y->type.dtype, rank, y->type.dims));
    if (what == 3) {
        qn_dim dims[QN_MAX_RANK] = { qn_dim_const(qn_b_dims(b), 9), y->type.dims[1] };
        int64_t one[3] = { 1, 1, 1 };
        for (int i = 2; i < rank; i++)
            dims[i] = qn_dim_const(qn_b_dims(b), 3);
        const qn_conv conv = { .low = one, .high = one };
        return qn_b_convolution(b, y, net_input(n, "v", y->type.dtype, rank, dims), &conv);
    }
    return y;
}

/* False: the result would have a negative extent. */
static bool check(uint64_t seed)
{
    static const char *const names[] = { "d", "h", "w" };
    state = seed * 7919 + 1;
    const qn_machine *machine = machines[below(3)];
    static const struct {
        qn_dtype x, w, sum;
    } sorts[] = { { QUERN_F32, QUERN_F32, QUERN_F32 }, { QUERN_F32, QUERN_F32, QUERN_F32 },
                  { QUERN_F64, QUERN_F64, QUERN_F64 }, { QUERN_BF16, QUERN_BF16, QUERN_F32 },
                  { QUERN_U8, QUERN_I8, QUERN_I32 },   { QUERN_I8, QUERN_I8, QUERN_I32 } };
    const int64_t which = below(6);
    const qn_dtype dtype = sorts[which].sum;
    const bool words = which > 2, strict = dtype == QUERN_I32 && below(2);
    const int64_t lanes = machine->vector_bytes / (int64_t)qn_dtype_bytes(dtype);
    const int64_t counts[] = { 1, 3, lanes, 2 * lanes, lanes + 3, 3 * lanes - 1 };
    const int sort =
        (int)below(words ? 4 : 7); /* groups, 4: of whole blocks, 5: of one channel, 6: inside of blocks */
    int64_t channels = counts[below(6)], out = below(4) == 0 ? 5 * lanes : counts[below(6)], groups = 1;
    if (sort == 4) {
        groups = 2;
        channels = lanes * 2 * (1 + below(2));
        out = lanes * 2 * (1 + below(2));
    } else if (sort == 5) {
        groups = out = channels = lanes * (1 + below(2)) - below(2);
    } else if (sort == 6) {
        const int64_t of_group = lanes >> (1 + below(lanes > 2 ? 2 : 1)),
                      in = of_group > 1 ? of_group >> below(2) : 1;
        groups = 2 + below(3 * lanes / of_group);
        out = groups * of_group;
        channels = groups * in;
    }
    net n;
    net_begin(&n);
    qn_dims *dims = n.module->dims;
    const int spatial = 1 + (int)below(3), known = (int)below(spatial + 1);
    qn_dim x_dims[5], w_dims[5] = { qn_dim_const(dims, out), qn_dim_const(dims, channels / groups) };
    int64_t stride[3], low[3], high[3], x_dilation[3], w_dilation[3];
    x_dims[0] = below(2) ? net_symbol(&n, "n", 0, below(3)) : qn_dim_const(dims, 1 + below(2));
    x_dims[1] = qn_dim_const(dims, channels);
    for (int i = 0; i < spatial; i++) {
        const int64_t longest = i == spatial - 1 ? 45 : 6, extent = below(3) ? 1 + below(longest) : below(4);
        x_dims[2 + i] =
            i == known && spatial > 1 ? qn_dim_const(dims, extent + 1) : net_symbol(&n, names[i], 0, extent);
        const int64_t kernel = below(8) == 0 ? 9 + below(9) : 1 + below(4);
        w_dims[2 + i] = qn_dim_const(dims, spatial > 1 && kernel > 4 ? 3 : kernel);
        stride[i] = 1 + (below(3) == 0) * below(3);
        w_dilation[i] = 1 + (below(3) == 0) * below(3);
        x_dilation[i] = 1 + (below(6) == 0) * below(3);
        low[i] = below(5) - 1;
        high[i] = below(5) - 1;
    }
    if (below(3) == 0) { /* columns that reach far out of x */
        w_dilation[spatial - 1] = 2 + below(20);
        low[spatial - 1] = below(40);
        high[spatial - 1] = below(40);
    }
    qn_value *x = net_input(&n, "x", sorts[which].x, 2 + spatial, x_dims),
             *w = net_input(&n, "k", sorts[which].w, 2 + spatial, w_dims);
    const qn_conv conv = { stride, low, high, x_dilation, w_dilation, groups };
    qn_value *y = qn_b_convolution_to(&n.b, x, w, &conv, dtype);
    bool fits = y != NULL; /* a known extent may be too small */
    for (int i = 0; i < spatial && fits; i++)
        fits = qn_dim_eval(y->type.dims[2 + i], n.symbols) >= 0;
    if (fits) {
        y = follow(&n, y, (int)below(dtype == QUERN_I32 ? 3 : 4));
        fits = y != NULL;
    }
    if (fits) {
        qn_graph_add_output(n.b.graph, y, "y", -1);
        qn_array inputs[4];
        for (int i = 0; i < n.b.graph->n_inputs; i++)
            inputs[i] = noise(&n.b.graph->inputs[i]->type, n.symbols, n.arena);
        const qn_pass_options options = { .math = strict ? QN_MATH_STRICT : QN_MATH_DEFAULT,
                                          .machine = machine };
        char name[32];
        snprintf(name, sizeof name, "seed %llu", (unsigned long long)seed);
        lowered_compare(name, n.b.graph, &options, inputs, n.symbols);
        if (lowered_count(n.b.graph, QN_OP_CONVOLUTION) > 0)
            fail_msg("%s: a convolution has no kernel of its own", name);
    }
    net_end(&n);
    return fits;
}

/* 500 seeds, of which more than `least` have to be checked. */
static void run_seeds(bool (*one)(uint64_t seed), int least)
{
    int checked = 0;
    for (uint64_t seed = 1; seed <= 500; seed++)
        checked += one(seed);
    assert_true(checked > least);
}

static void random_convolutions(void **unused)
{
    (void)unused;
    run_seeds(check, 250);
}

/* Transposed convolutions by phases are what they are as a whole. True: they were computed so. */
static bool check_phases(uint64_t seed)
{
    static const char *const names[] = { "h", "w" };
    state = seed * 104729 + 1;
    net n;
    net_begin(&n);
    qn_dims *dims = n.module->dims;
    const int spatial = 1 + (int)below(2);
    qn_dim x_dims[4] = { qn_dim_const(dims, 1), qn_dim_const(dims, 2) },
           w_dims[4] = { qn_dim_const(dims, below(3) ? 3 : 16), x_dims[1] };
    int64_t low[2], high[2], spread[2];
    bool none = false; /* tiles for no element: padding makes nothing of them */
    for (int i = 0; i < spatial; i++) {
        const int64_t least = below(3), extent = least + below(5), s = 1 + below(spatial == 1 ? 12 : 3),
                      kernel = s + below(s + 2), pad = below(s);
        spread[i] = s;
        w_dims[2 + i] = qn_dim_const(dims, kernel);
        low[i] = kernel - 1 - pad;
        high[i] = kernel - 1 - (below(2) ? kernel - s - pad : below(s));
        none |= extent == 0 && kernel == s && low[i] == s - 1 && high[i] == s - 1;
        x_dims[2 + i] = net_symbol(&n, names[i], least, extent);
    }
    qn_value *x = net_input(&n, "x", QUERN_F32, 2 + spatial, x_dims),
             *w = net_input(&n, "k", QUERN_F32, 2 + spatial, w_dims);
    const qn_conv conv = { .low = low, .high = high, .x_dilation = spread };
    qn_value *whole = qn_b_convolution(&n.b, x, w, &conv), *sum = NULL;
    bool fits = whole != NULL && !none;
    for (int i = 0; i < spatial && fits; i++)
        fits = qn_dim_eval(whole->type.dims[2 + i], n.symbols) >= 0;
    if (fits)
        sum = qn_b_convolution_in_phases(&n.b, x, w, &conv);
    const bool phases = fits && sum->node->op != QN_OP_CONVOLUTION;
    if (phases) {
        qn_graph_add_output(n.b.graph, whole, "whole", -1);
        qn_graph_add_output(n.b.graph, sum, "sum", -1);
        const qn_array inputs[] = { noise(&x->type, n.symbols, n.arena),
                                    noise(&w->type, n.symbols, n.arena) };
        qn_array outputs[2];
        if (qn_interp_run(n.b.graph, inputs, outputs, n.arena, &n.diags))
            fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&n.diags, n.arena));
        size_t elements = 1;
        for (int i = 0; i < 2 + spatial; i++) {
            assert_int_equal(outputs[0].dims[i], outputs[1].dims[i]);
            elements *= (size_t)outputs[0].dims[i];
        }
        for (size_t i = 0; i < elements; i++)
            assert_true(((float *)outputs[0].data)[i] == ((float *)outputs[1].data)[i]);
    }
    net_end(&n);
    return phases;
}

static void random_phases(void **unused)
{
    (void)unused;
    run_seeds(check_phases, 150);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(random_convolutions),
                                        cmocka_unit_test(random_phases) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
