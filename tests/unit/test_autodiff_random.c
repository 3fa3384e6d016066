/* Gradients of random differentiable graphs: against finite differences in float64 through the interpreter, and of compiled
 * code against the interpreter's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "driver/api.h"
#include "passes/pass.h"
#include "tests/support/random_graph.h"

enum { N_SEEDS = 500, N_COMPILED = 60, N_DIRECTIONS = 2 };

static int float_inputs(const qn_graph *f, int *out)
{
    int n = 0;
    for (int i = 0; i < f->n_inputs; i++)
        if (qn_dtype_is_float(f->inputs[i]->type.dtype))
            out[n++] = i;
    return n;
}

static int64_t elements_of(const qn_array *a)
{
    int64_t n = 1;
    for (int axis = 0; axis < a->rank; axis++)
        n *= a->dims[axis];
    return n;
}

/* @gradient of @main; NULL where something is not supported, which is the case of symbolic windows and undecided broadcasts */
static qn_graph *gradient_of(qn_module *module, uint64_t seed, qn_arena *arena)
{
    int wrt[64];
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_graph *f = qn_module_find(module, "main");
    const int n = float_inputs(f, wrt);
    qn_graph *gradient = qn_grad(f, "gradient", 0, n, wrt, false, &diags);
    if (gradient && qn_verify(module, &diags))
        fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
    if (!gradient && qn_diags_status(&diags) != QUERN_ERROR_UNSUPPORTED)
        fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
    return gradient;
}

static double loss_at(const qn_graph *f, const qn_array *inputs, uint64_t seed)
{
    qn_array out;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    if (qn_interp_run(f, inputs, &out, arena, &diags))
        fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
    const double loss = *(double *)out.data;
    qn_arena_free(arena);
    return loss;
}

/* The loss along a direction, at `t` times it. */
static double loss_along(const qn_graph *f, const qn_array *inputs, double *const *direction, double t,
                         uint64_t seed)
{
    qn_array moved[64];
    qn_arena *arena = qn_arena_new();
    for (int i = 0; i < f->n_inputs; i++) {
        moved[i] = inputs[i];
        if (!direction[i])
            continue;
        const int64_t n = elements_of(&inputs[i]);
        double *x = QN_NEW_ARRAY(arena, double, n + 1);
        for (int64_t k = 0; k < n; k++)
            x[k] = ((const double *)inputs[i].data)[k] + t * direction[i][k];
        moved[i].data = x;
    }
    const double loss = loss_at(f, moved, seed);
    qn_arena_free(arena);
    return loss;
}

/* By a five-point stencil; two lengths, of which one may meet a place where higher derivatives are large. */
static bool agrees(const qn_graph *f, const qn_array *inputs, double *const *direction, double slope,
                   double scale, uint64_t seed, double *out_found)
{
    const double lengths[] = { 1e-3, 1e-4, 2e-5 };
    for (int i = 0; i < 3; i++) {
        const double h = lengths[i];
        double at[4];
        for (int k = 0; k < 4; k++)
            at[k] = loss_along(f, inputs, direction, h * (double[]){ -2, -1, 1, 2 }[k], seed);
        *out_found = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h);
        if (fabs(*out_found - slope) <= 1e-6 * fmax(scale, fabs(slope)))
            return true;
    }
    return false;
}

/* Some with symbolic dims. */
static qn_module *smooth_graph(uint64_t seed)
{
    const int flags = (seed % 3 ? QN_RANDOM_ALL : QN_RANDOM_ALL & ~QN_RANDOM_SYMBOLS) & ~QN_RANDOM_NARROW;
    return qn_graph_random(seed, flags | QN_RANDOM_SMOOTH | QN_RANDOM_DOUBLE, 5 + (int)(seed % 20));
}

static void gradients_equal_finite_differences(void **state)
{
    (void)state;
    int n_refused = 0;
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = smooth_graph(seed);
        qn_graph *gradient = gradient_of(module, seed, arena), *f = qn_module_find(module, "main");
        n_refused += gradient == NULL;
        if (gradient) {
            int wrt[64];
            const int n = float_inputs(f, wrt);
            qn_array *inputs = qn_random_inputs(f, seed, qn_random_symbols(module, seed, arena), arena),
                     outputs[65];
            if (qn_interp_run(gradient, inputs, outputs, arena, &diags))
                fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
            for (int d = 0; d < N_DIRECTIONS; d++) {
                double *direction[64] = { NULL }, slope = 0, scale = 1e-3, found;
                for (int i = 0; i < n; i++) {
                    const int64_t count = elements_of(&inputs[wrt[i]]);
                    direction[wrt[i]] = f->inputs[wrt[i]]->type.dtype == QUERN_F64
                                            ? QN_NEW_ARRAY(arena, double, count + 1)
                                            : NULL;
                    for (int64_t k = 0; k < count && direction[wrt[i]]; k++) {
                        direction[wrt[i]][k] = sin((double)(k * 7 + i * 3 + d * 5 + 1));
                        slope += direction[wrt[i]][k] * ((double *)outputs[1 + i].data)[k];
                        scale += fabs(direction[wrt[i]][k] * ((double *)outputs[1 + i].data)[k]);
                    }
                }
                if (!agrees(f, inputs, direction, slope, scale, seed, &found))
                    fail_msg("seed %llu: along direction %d the gradient says %.12g, differences %.12g\n%s",
                             (unsigned long long)seed, d, slope, found, qn_graph_print(f, arena));
            }
        }
        qn_module_free(module);
        qn_arena_free(arena);
    }
    if (n_refused)
        fail_msg("%d of %d gradients were refused", n_refused, N_SEEDS);
}

/* Forward and reverse mode: the tangent of the loss along v is its gradient times v. */
static void tangents_are_gradients_times_directions(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = smooth_graph(seed);
        qn_graph *gradient = gradient_of(module, seed, arena), *f = qn_module_find(module, "main");
        int wrt[64];
        const int n = float_inputs(f, wrt);
        qn_graph *pushed = gradient ? qn_jvp(f, "pushed", n, wrt, &diags) : NULL;
        if (gradient && (!pushed || qn_verify(module, &diags)))
            fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
        if (pushed) {
            qn_array both[128], gradients[65], outputs[65];
            const qn_array *inputs = qn_random_inputs(f, seed, qn_random_symbols(module, seed, arena), arena);
            memcpy(both, inputs, (size_t)f->n_inputs * sizeof *both);
            for (int i = 0; i < n; i++) {
                qn_array *tangent = &both[f->n_inputs + i];
                *tangent = inputs[wrt[i]];
                const int64_t count = elements_of(tangent);
                tangent->data = QN_NEW_ARRAY(arena, double, count + 1);
                for (int64_t k = 0; k < count; k++)
                    qn_scalar_store(tangent->dtype, (qn_scalar){ .f = sin((double)(k * 7 + i * 3 + 1)) },
                                    (char *)tangent->data + (size_t)k * quern_dtype_size(tangent->dtype));
            }
            if (qn_interp_run(gradient, inputs, gradients, arena, &diags) ||
                qn_interp_run(pushed, both, outputs, arena, &diags))
                fail_msg("seed %llu: %s", (unsigned long long)seed, qn_diags_text(&diags, arena));
            double expected = 0, scale = 1e-3;
            for (int i = 0; i < n; i++)
                for (int64_t k = 0; k < elements_of(&inputs[wrt[i]]); k++) {
                    const qn_dtype dtype = inputs[wrt[i]].dtype;
                    const size_t at = (size_t)k * quern_dtype_size(dtype);
                    const double product = qn_scalar_load(dtype, (char *)gradients[1 + i].data + at).f *
                                           qn_scalar_load(dtype, (char *)both[f->n_inputs + i].data + at).f;
                    expected += product;
                    scale += fabs(product);
                }
            const double found = *(double *)outputs[f->n_outputs].data;
            if (!(fabs(found - expected) <= 1e-9 * scale))
                fail_msg("seed %llu: tangent %.15g, gradient times direction %.15g\n%s",
                         (unsigned long long)seed, found, expected, qn_graph_print(f, arena));
        }
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

static quern_session *session_of(quern_module *module, const char *target, uint64_t seed,
                                 quern_model **out_model)
{
    const quern_compile_options options = {
        .size = sizeof options, .target = target, .cache = "", .threads = 1
    };
    quern_session *session = NULL;
    if (quern_compile(module, &options, out_model) || quern_session_new(*out_model, "gradient", &session))
        fail_msg("seed %llu: %s", (unsigned long long)seed, quern_last_error());
    return session;
}

static void compiled_gradients_equal_the_interpreters(void **state)
{
    (void)state;
    for (uint64_t seed = 1000; seed < 1000 + N_COMPILED; seed++) {
        const bool is_double = seed % 2;
        const int all = QN_RANDOM_ALL & ~QN_RANDOM_NARROW & ~QN_RANDOM_SYMBOLS;
        const int flags = all | QN_RANDOM_SMOOTH | (is_double ? QN_RANDOM_DOUBLE : 0);
        qn_arena *arena = qn_arena_new();
        qn_module *ir = qn_graph_random(seed, flags, 5 + (int)(seed % 20));
        const qn_graph *gradient = gradient_of(ir, seed, arena);
        quern_module *module = qn_handle_new(ir, NULL);
        if (!gradient) {
            quern_module_free(module);
            qn_arena_free(arena);
            continue;
        }
        const qn_array *inputs = qn_random_inputs(gradient, seed, qn_random_symbols(ir, seed, arena), arena);
        quern_model *models[2];
        quern_session *sessions[2] = { session_of(module, "interp", seed, &models[0]),
                                       session_of(module, "cpu", seed, &models[1]) };
        for (int s = 0; s < 2; s++) {
            for (int i = 0; i < gradient->n_inputs; i++) {
                const quern_array array = { .dtype = inputs[i].dtype,
                                            .rank = inputs[i].rank,
                                            .dims = inputs[i].dims,
                                            .data = inputs[i].data };
                if (quern_session_bind(sessions[s], i, &array))
                    fail_msg("seed %llu: %s", (unsigned long long)seed, quern_last_error());
            }
            if (quern_session_run(sessions[s]))
                fail_msg("seed %llu: %s", (unsigned long long)seed, quern_last_error());
        }
        for (int k = 0; k < gradient->n_outputs; k++) {
            quern_array found[2];
            double largest = 0;
            int64_t n = 1;
            for (int s = 0; s < 2; s++)
                assert_int_equal(quern_session_get(sessions[s], gradient->n_inputs + k, &found[s]), QUERN_OK);
            for (int axis = 0; axis < found[0].rank; axis++)
                n *= found[0].dims[axis];
            const size_t size = quern_dtype_size(found[0].dtype);
            for (int64_t i = 0; i < n; i++)
                largest = fmax(largest, fabs(qn_scalar_load((qn_dtype)found[0].dtype,
                                                            (char *)found[0].data + (size_t)i * size)
                                                 .f));
            for (int64_t i = 0; i < n; i++) {
                double value[2];
                for (int s = 0; s < 2; s++)
                    value[s] =
                        qn_scalar_load((qn_dtype)found[s].dtype, (char *)found[s].data + (size_t)i * size).f;
                if (!(fabs(value[0] - value[1]) <= (is_double ? 1e-9 : 2e-3) * fmax(largest, 1e-3)))
                    fail_msg("seed %llu, output %d, element %d: compiled %.12g, interpreted %.12g\n%s",
                             (unsigned long long)seed, k, (int)i, value[1], value[0],
                             qn_graph_print(qn_module_find(ir, "main"), arena));
            }
        }
        for (int s = 0; s < 2; s++) {
            quern_session_free(sessions[s]);
            quern_model_free(models[s]);
        }
        quern_module_free(module);
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(gradients_equal_finite_differences),
                                        cmocka_unit_test(tangents_are_gradients_times_directions),
                                        cmocka_unit_test(compiled_gradients_equal_the_interpreters) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
