/* Every derivative rule against finite differences in float64, and what cannot be differentiated against its message.
 *
 * A case is the body of a graph in the text form whose last value is %r. The loss is sum(sin(%r)), so that adjoints differ from
 * element to element. Derivatives by a five-point stencil: exact to about 1e-11 for smooth functions, and short, so that it
 * seldom crosses a kink. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "frontend/text/text.h"
#include "ir/build.h"
#include "passes/pass.h"
#include "passes/vjp.h"

#include "tests/unit/autodiff_cases.inc"

static double run_loss(const qn_graph *f, const qn_array *inputs, qn_diags *diags)
{
    qn_array loss;
    assert_int_equal(qn_interp_run(f, inputs, &loss, diags->arena, diags), QUERN_OK);
    return *(double *)loss.data;
}

static void compare(const gradient_case *c, const qn_graph *f, const qn_graph *gradient, qn_array *inputs,
                    qn_diags *diags)
{
    qn_array outputs[8];
    assert_int_equal(qn_interp_run(gradient, inputs, outputs, diags->arena, diags), QUERN_OK);
    for (int i = 0; i < f->n_inputs; i++) {
        double *x = inputs[i].data, *g = outputs[1 + i].data;
        for (int64_t j = 0; j < qn_type_elements(&f->inputs[i]->type); j++) {
            const double h = 1e-4, kept = x[j];
            double at[4];
            for (int k = 0; k < 4; k++) {
                x[j] = kept + h * (double[]){ -2, -1, 1, 2 }[k];
                at[k] = run_loss(f, inputs, diags);
            }
            x[j] = kept;
            double expected = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h);
            if (!(fabs(g[j] - expected) <= 1e-6 * fmax(1e-2, fabs(expected))))
                fail_msg("%s: input %d element %d: gradient %.12g, by differences %.12g", c->name, i, (int)j,
                         g[j], expected);
        }
    }
}

static void rules_equal_finite_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const gradient_case *c = &cases[i];
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module;
        qn_graph *f, *gradient = gradient_of(c, &module, &f, &diags);
        qn_array inputs[8];
        for (int round = 0; round < 2; round++) {
            make_inputs(f, inputs, c, arena);
            compare(c, f, gradient, inputs, &diags);
        }
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

/* Moves the inputs by t times the directions, and runs. */
static void run_moved(const qn_graph *f, const qn_array *inputs, qn_array *const *directions, double t,
                      qn_array *out, qn_diags *diags)
{
    qn_array moved[8];
    for (int i = 0; i < f->n_inputs; i++) {
        const int64_t n = qn_type_elements(&f->inputs[i]->type);
        double *x = QN_NEW_ARRAY(diags->arena, double, n + 1);
        for (int64_t k = 0; k < n; k++)
            x[k] = ((double *)inputs[i].data)[k] + t * ((double *)directions[i]->data)[k];
        moved[i] = inputs[i];
        moved[i].data = x;
    }
    assert_int_equal(qn_interp_run(f, moved, out, diags->arena, diags), QUERN_OK);
}

/* tangent[i] = J v by the stencil, for all outputs of `f`, of which `pushed` is the jvp. */
static void compare_pushed(const gradient_case *c, const qn_graph *f, const qn_graph *pushed,
                           const qn_array *inputs, qn_diags *diags)
{
    const gradient_case direction = { .low = -1, .high = 1 };
    qn_array both[16], outputs[16], at[4][8], *directions[8];
    make_inputs(f, both + f->n_inputs, &direction, diags->arena);
    for (int i = 0; i < f->n_inputs; i++) {
        both[i] = inputs[i];
        directions[i] = &both[f->n_inputs + i];
    }
    assert_int_equal(qn_interp_run(pushed, both, outputs, diags->arena, diags), QUERN_OK);
    const double h = 1e-4;
    for (int k = 0; k < 4; k++)
        run_moved(f, inputs, directions, h * (double[]){ -2, -1, 1, 2 }[k], at[k], diags);
    for (int o = 0; o < f->n_outputs; o++)
        for (int64_t j = 0; j < qn_type_elements(&f->outputs[o]->type); j++) {
            const double found = ((double *)outputs[f->n_outputs + o].data)[j];
            double y[4];
            for (int k = 0; k < 4; k++)
                y[k] = ((double *)at[k][o].data)[j];
            const double expected = (y[0] - 8 * y[1] + 8 * y[2] - y[3]) / (12 * h);
            if (!(fabs(found - expected) <= 1e-6 * fmax(1e-2, fabs(expected))))
                fail_msg("%s: output %d element %d: tangent %.12g, by differences %.12g", c->name, o, (int)j,
                         found, expected);
        }
}

/* Of the functions themselves; of their gradients, which gives Hessians times vectors. */
static void tangents_equal_finite_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const gradient_case *c = &cases[i];
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module;
        int wrt[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
        qn_array inputs[8];
        qn_graph *loss, *gradient = gradient_of(c, &module, &loss, &diags);
        qn_graph *f = qn_module_find(module, "f");
        qn_graph *pushed = qn_jvp(f, "pushed", f->n_inputs, wrt, &diags);
        qn_graph *hessian = qn_jvp(gradient, "hessian", f->n_inputs, wrt, &diags);
        if (!pushed || !hessian || qn_verify(module, &diags))
            fail_msg("%s: %s", c->name, qn_diags_text(&diags, arena));
        make_inputs(f, inputs, c, arena);
        compare_pushed(c, f, pushed, inputs, &diags);
        compare_pushed(c, gradient, hessian, inputs, &diags);
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

/* What only the reverse pass needs is gone, in loops too. */
static void tangents_cost_what_they_need(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_module *module = parse(
        "graph @f(%s: f64[2], %x: f64[4, 2], %w: f64[2]) -> f64[2] {\n"
        "  %r = scan %s, %x, %w {length = [4], n_carried = 1, n_scanned = 1} : f64[2]\n"
        "    body (%a: f64[2], %b: f64[2], %c: f64[2]) {\n      %d = mul %a, %c : f64[2]\n"
        "      %e = add %d, %b : f64[2]\n      return %e\n    }\n  return %r\n}\n"
        "graph @g(%x: f64[3]) -> f64[3] {\n  %y = sin %x : f64[3]\n  %z = exp %y : f64[3]\n  return %z\n}\n",
        &diags);
    int wrt[3] = { 0, 1, 2 };
    const qn_graph *f = qn_jvp(qn_module_find(module, "f"), "jf", 3, wrt, &diags);
    const qn_graph *g = qn_jvp(qn_module_find(module, "g"), "jg", 1, wrt, &diags);
    int n_scans = 0, n_nodes = 0;
    QN_FOR_NODES (f, node) {
        n_scans += node->op == QN_OP_SCAN;
        if (node->op == QN_OP_SCAN)
            assert_false(node->n_operands > 7);
    }
    QN_FOR_NODES (g, node)
        n_nodes += qn_ops[node->op].class == QN_ELEMENTWISE;
    assert_int_equal(n_scans, 2); /* with the stacked starts of the steps, and the tangents' */
    assert_int_equal(n_nodes, 5); /* sin, exp, cos, two products */
    qn_module_free(module);
    qn_arena_free(arena);
}

/* Adds @second: the gradient of the sum of the sines of what @first has behind its loss. */
static qn_graph *second_of(qn_graph *first, int n, const int *wrt, qn_diags *diags)
{
    qn_builder b = { .graph = first, .diags = diags };
    qn_value *sum = qn_b_scalar(&b, QUERN_F64, 0);
    for (int k = 1; k <= n; k++) {
        int64_t axes[QN_MAX_RANK];
        qn_value *g = first->outputs[k];
        for (int axis = 0; axis < g->type.rank; axis++)
            axes[axis] = axis;
        g = qn_b_reduce(&b, QN_SUM, qn_b_unary(&b, QN_OP_SIN, g), g->type.rank, axes, false);
        sum = qn_b_binary(&b, QN_OP_ADD, sum, g);
    }
    first->outputs[0] = sum;
    first->n_outputs = 1;
    return qn_grad(first, "second", 0, n, wrt, false, diags);
}

/* Where the rule is a formula with jumps, small steps cross none: second derivatives are those of the pieces. */
static void gradients_of_gradients_equal_finite_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const gradient_case *c = &cases[i];
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = parse_case(c, &diags);
        qn_graph *f = with_loss(module, &diags);
        int wrt[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
        qn_graph *first = qn_grad(f, "first", 0, f->n_inputs, wrt, false, &diags);
        assert_non_null(first);
        qn_graph *second = second_of(first, f->n_inputs, wrt, &diags);
        if (!second || qn_verify(module, &diags))
            fail_msg("%s: %s", c->name, qn_diags_text(&diags, arena));
        qn_array inputs[8];
        make_inputs(f, inputs, c, arena);
        compare(c, first, second, inputs, &diags);
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

/* cross_entropy gives float32: its derivatives are compared with those of its parts in float64. The gradient, the Hessian
 * times a vector, and the gradient of the gradient. */
static void the_derivatives_of_cross_entropy_are_those_of_its_parts(void **state)
{
    (void)state;
    static const char *const bodies[2] = {
        "  %e = cross_entropy %x, %y : f32[3]\n  %d = convert %e {dtype = f64} : f64[3]\n",
        "  %p = log_softmax %x {axis = 1} : f64[3, 4]\n  %z = reshape %y {dims = [3, 1]} : i64[3, 1]\n"
        "  %e = gather_elements %p, %z {axis = 1} : f64[3, 1]\n  %f = reshape %e {dims = [3]} : f64[3]\n"
        "  %d = neg %f : f64[3]\n"
    };
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    double x[12], v[12];
    qn_array found[2][3];
    int64_t labels[3] = { 2, 0, 3 };
    for (int i = 0; i < 12; i++) {
        x[i] = random_between(-2, 2);
        v[i] = random_between(-1, 1);
    }
    const qn_array inputs[3] = { { .dtype = QUERN_F64, .rank = 2, .dims = { 3, 4 }, .data = x },
                                 { .dtype = QUERN_I64, .rank = 1, .dims = { 3 }, .data = labels },
                                 { .dtype = QUERN_F64, .rank = 2, .dims = { 3, 4 }, .data = v } };
    for (int k = 0; k < 2; k++) {
        qn_module *module = parse(qn_arena_printf(arena,
                                                  "graph @f(%%x: f64[3, 4], %%y: i64[3]) -> f64[] {\n%s"
                                                  "  %%s = mul %%d, %%d : f64[3]\n"
                                                  "  %%r = reduce %%s {axes = [0], kind = sum} : f64[]\n"
                                                  "  return %%r\n}\n",
                                                  bodies[k]),
                                  &diags);
        int wrt = 0;
        qn_array outputs[4];
        qn_graph *first = qn_grad(qn_module_find(module, "f"), "first", 0, 1, &wrt, false, &diags);
        assert_non_null(first);
        assert_int_equal(qn_interp_run(first, inputs, outputs, arena, &diags), QUERN_OK);
        found[k][0] = outputs[1];
        const qn_graph *hessian = qn_jvp(first, "hessian", 1, &wrt, &diags);
        assert_non_null(hessian);
        assert_int_equal(qn_interp_run(hessian, inputs, outputs, arena, &diags), QUERN_OK);
        found[k][1] = outputs[3];
        const qn_graph *second = second_of(first, 1, &wrt, &diags);
        assert_non_null(second);
        assert_int_equal(qn_interp_run(second, inputs, outputs, arena, &diags), QUERN_OK);
        found[k][2] = outputs[1];
        qn_module_free(module);
    }
    for (int of = 0; of < 3; of++)
        for (int i = 0; i < 12; i++)
            assert_float_equal(((double *)found[0][of].data)[i], ((double *)found[1][of].data)[i], 5e-6);
    qn_arena_free(arena);
}

static void every_smooth_op_has_a_case(void **state)
{
    (void)state;
    bool seen[QN_N_OPS] = { [QN_OP_CROSS_ENTROPY] = true };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = parse_case(&cases[i], &diags);
        QN_FOR_NODES (qn_module_find(module, "f"), node)
            seen[node->op] = true;
        qn_module_free(module);
        qn_arena_free(arena);
    }
    for (int op = 0; op < QN_N_OPS; op++)
        if (!seen[op] && (qn_ops[op].flags & QN_FLAG_SMOOTH))
            fail_msg("%s is differentiable and has no case", qn_ops[op].name);
}

static void every_smooth_op_has_a_rule(void **state)
{
    (void)state;
    qn_vjp_rule (*const families[])(qn_op) = { qn_vjp_elementwise, qn_vjp_movement, qn_vjp_reduction,
                                               qn_vjp_contraction, qn_vjp_control,  qn_vjp_composite,
                                               qn_vjp_collective };
    for (int op = 0; op < QN_N_OPS; op++) {
        bool found = qn_op_is_composite((qn_op)op) || op == QN_OP_CALL;
        for (size_t i = 0; i < sizeof families / sizeof *families; i++)
            found |= families[i]((qn_op)op) != NULL;
        if (found != ((qn_ops[op].flags & QN_FLAG_SMOOTH) != 0) && !qn_op_is_composite((qn_op)op))
            fail_msg("%s: its flag and its rules do not agree", qn_ops[op].name);
    }
}

/* d/dx of d/dx: x^4 -> 12 x^2 */
static void gradients_have_gradients(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_module *module = parse(
        "graph @f(%x: f64[]) -> f64[] {\n%a = mul %x, %x : f64[]\n%r = mul %a, %a : f64[]\nreturn %r\n}\n",
        &diags);
    int x = 0;
    qn_graph *first = qn_grad(qn_module_find(module, "f"), "first", 0, 1, &x, false, &diags);
    assert_non_null(first);
    qn_graph *second = qn_grad(first, "second", 1, 1, &x, false, &diags);
    assert_non_null(second);
    double value = 1.5;
    qn_array input = { .dtype = QUERN_F64, .data = &value }, outputs[2];
    assert_int_equal(qn_interp_run(second, &input, outputs, arena, &diags), QUERN_OK);
    assert_float_equal(*(double *)outputs[0].data, 4 * 1.5 * 1.5 * 1.5, 1e-12);
    assert_float_equal(*(double *)outputs[1].data, 12 * 1.5 * 1.5, 1e-12);
    qn_module_free(module);
    qn_arena_free(arena);
}

static void what_has_no_derivative_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {
        { "graph @f(%x: f64[]) -> f64[] {\n"
          "  %r = while %x {n_carried = 1} : f64[]\n"
          "    condition (%a: f64[]) {\n      %c = constant 1 : f64[]\n      %d = compare %a, %c {direction "
          "= lt} : bool[]\n"
          "      return %d\n    }\n"
          "    body (%a: f64[]) {\n      %b = add %a, %a : f64[]\n      return %b\n    }\n"
          "  return %r\n}\n",
          "while can't be differentiated" },
        { "graph @f(%x: f64[3]) -> f64[3] {\n  %r = exp %x : f64[3]\n  return %r\n}\n",
          "expected a floating-point scalar" },
        { "graph @f(%x: i64[]) -> f64[] {\n  %r = convert %x {dtype = f64} : f64[]\n  return %r\n}\n",
          "with respect to 'x'" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = parse(bad[i].text, &diags);
        assert_non_null(module);
        int x = 0;
        assert_null(qn_grad(qn_module_find(module, "f"), "g", 0, 1, &x, false, &diags));
        assert_non_null(strstr(qn_diags_text(&diags, arena), bad[i].message));
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_equal_finite_differences),
        cmocka_unit_test(gradients_of_gradients_equal_finite_differences),
        cmocka_unit_test(tangents_equal_finite_differences),
        cmocka_unit_test(tangents_cost_what_they_need),
        cmocka_unit_test(the_derivatives_of_cross_entropy_are_those_of_its_parts),
        cmocka_unit_test(every_smooth_op_has_a_case),
        cmocka_unit_test(every_smooth_op_has_a_rule),
        cmocka_unit_test(gradients_have_gradients),
        cmocka_unit_test(what_has_no_derivative_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
