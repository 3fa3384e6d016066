/* Derivatives of convolutions and windows over extents that are symbols: against finite differences in float64 for any extents, and
 * lowered. The loss is sum(sin(y)). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "passes/pass.h"
#include "tests/support/lowered.h"
#include "tests/support/net.h"

enum { SEEDS = 300 };

static uint64_t state;

static int64_t below(int64_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)(state >> 33) % n;
}

static int64_t one_in(int64_t n)
{
    return below(n) == 0;
}

static int64_t elements(const qn_type *type, const int64_t *symbols)
{
    int64_t n = 1;
    for (int i = 0; i < type->rank; i++)
        n *= qn_dim_eval(type->dims[i], symbols);
    return n;
}

static qn_array noise(const qn_type *type, const int64_t *symbols, qn_arena *arena)
{
    qn_array a;
    const int64_t n = array_of_type(&a, type, symbols, arena);
    for (int64_t i = 0; i < n; i++)
        ((double *)a.data)[i] = (double)(below(2001) - 1000) / 1000;
    return a;
}

static qn_value *convolved(net *n, int spatial, const qn_dim *x_dims)
{
    qn_dims *dims = qn_b_dims(&n->b);
    const int64_t groups = one_in(3) ? 2 : 1, of_group = 1 + below(2), out = groups * (1 + below(2));
    qn_dim x[4] = { x_dims[0], qn_dim_const(dims, groups * of_group) },
           w[4] = { qn_dim_const(dims, out), qn_dim_const(dims, of_group) };
    int64_t stride[2], low[2], high[2], x_dilation[2], w_dilation[2];
    for (int i = 0; i < spatial; i++) {
        x[2 + i] = x_dims[2 + i];
        w[2 + i] = qn_dim_const(dims, 1 + below(3));
        stride[i] = 1 + below(3) / 2 * (1 + below(2));
        w_dilation[i] = 1 + one_in(4);
        x_dilation[i] = 1 + below(3) / 2 * (1 + below(2));
        low[i] = below(4) - one_in(4);
        high[i] = below(4) - one_in(4);
    }
    const qn_conv conv = { stride, low, high, x_dilation, w_dilation, groups };
    qn_value *a = net_input(n, "x", QUERN_F64, 2 + spatial, x),
             *k = net_input(n, "w", QUERN_F64, 2 + spatial, w);
    return one_in(2) ? qn_b_convolution_in_phases(&n->b, a, k, &conv) : qn_b_convolution(&n->b, a, k, &conv);
}

/* Largest or sum of windows, over an even border. */
static qn_value *pooled(net *n, qn_value *y, qn_kind kind)
{
    int64_t window[4] = { 1, 1 }, stride[4] = { 1, 1 }, low[4] = { 0 }, high[4] = { 0 };
    for (int i = 2; i < y->type.rank; i++) {
        window[i] = 1 + below(3);
        stride[i] = 1 + below(2);
        low[i] = high[i] = one_in(2) && window[i] > 1;
    }
    return qn_b_reduce_window(&n->b, kind, y, &(qn_window){ window, stride, NULL, low, high });
}

static double loss_of(const qn_graph *f, const qn_array *inputs, qn_diags *diags)
{
    qn_arena *arena = qn_arena_new();
    qn_array loss;
    if (qn_interp_run(f, inputs, &loss, arena, diags))
        fail_msg("%s", qn_diags_text(diags, diags->arena));
    const double value = *(double *)loss.data;
    qn_arena_free(arena);
    return value;
}

static void compare(uint64_t seed, const net *n, const qn_graph *f, const qn_graph *gradient,
                    qn_array *inputs, qn_diags *diags)
{
    qn_array outputs[3];
    if (qn_interp_run(gradient, inputs, outputs, diags->arena, diags))
        fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(diags, diags->arena));
    for (int i = 0; i < f->n_inputs; i++) {
        double *x = inputs[i].data;
        const double *g = outputs[1 + i].data;
        for (int64_t j = 0; j < elements(&f->inputs[i]->type, n->symbols); j++) {
            const double h = 1e-5, kept = x[j];
            x[j] = kept + h;
            const double above = loss_of(f, inputs, diags);
            x[j] = kept - h;
            const double expected = (above - loss_of(f, inputs, diags)) / (2 * h);
            x[j] = kept;
            if (!(fabs(g[j] - expected) <= 1e-5 * fmax(1, fabs(expected))))
                fail_msg("seed %llu: input %d element %d: gradient %.12g, by differences %.12g",
                         (unsigned long long)seed, i, (int)j, g[j], expected);
        }
    }
}

/* False: the result would have a negative extent. */
static bool check(uint64_t seed)
{
    static const char *const names[] = { "h", "w" };
    state = seed * 7919 + 1;
    net n;
    net_begin(&n);
    qn_dims *dims = n.module->dims;
    const int spatial = 1 + (int)below(2);
    qn_dim x_dims[4] = { one_in(2) ? net_symbol(&n, "n", 0, below(3)) : qn_dim_const(dims, 1 + below(2)) };
    for (int i = 0; i < spatial; i++) {
        const int64_t extent = 1 + below(spatial == 1 ? 9 : 5), least = below(2);
        x_dims[2 + i] = i == 0 && spatial > 1 && one_in(3) ? qn_dim_const(dims, extent)
                                                           : net_symbol(&n, names[i], least, extent);
    }
    qn_value *y = convolved(&n, spatial, x_dims);
    if (y && one_in(3))
        y = pooled(&n, y, one_in(2) ? QN_SUM : QN_KIND_MAX);
    bool fits = y != NULL; /* a known extent may be too small */
    QN_FOR_NODES (n.b.graph, node)
        for (int i = 0; i < node->results[0].type.rank && fits; i++)
            fits = qn_dim_eval(node->results[0].type.dims[i], n.symbols) >= 0;
    if (fits) {
        const int64_t axes[] = { 0, 1, 2, 3 };
        qn_value *sine = qn_b_unary(&n.b, QN_OP_SIN, y);
        qn_graph_add_output(n.b.graph, qn_b_reduce(&n.b, QN_SUM, sine, 2 + spatial, axes, false), "loss", -1);
        qn_graph *gradient = qn_grad(n.b.graph, "gradient", 0, 2, (const int[]){ 0, 1 }, false, &n.diags);
        if (!gradient || qn_verify(n.module, &n.diags))
            fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&n.diags, n.arena));
        qn_array inputs[2];
        for (int i = 0; i < 2; i++)
            inputs[i] = noise(&n.b.graph->inputs[i]->type, n.symbols, n.arena);
        compare(seed, &n, n.b.graph, gradient, inputs, &n.diags);
        const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                          .machine = &lowered_machines[below(LOWERED_MACHINES)] };
        char name[32];
        snprintf(name, sizeof name, "seed %llu", (unsigned long long)seed);
        lowered_compare(name, gradient, &options, inputs, n.symbols);
    }
    net_end(&n);
    return fits;
}

static void gradients_over_symbols(void **unused)
{
    (void)unused;
    int checked = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        checked += check(seed);
    assert_true(checked > SEEDS / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(gradients_over_symbols) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
