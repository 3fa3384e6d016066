/* The gradient of each case of test_autodiff.c, fused and compiled. */
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
#include "driver/api.h"
#include "frontend/text/text.h"
#include "ir/build.h"
#include "passes/pass.h"

#include "tests/unit/autodiff_cases.inc"

/* The gradient of each case, fused and compiled: what the interpreter gives. */
static void compiled_gradients_equal_the_interpreters(void **state)
{
    (void)state;
    const quern_compile_options options = { .size = sizeof options, .cache = "", .threads = 1 };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const gradient_case *c = &cases[k];
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *ir;
        int wrt[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
        qn_graph *loss, *gradient = gradient_of(c, &ir, &loss, &diags);
        const int n_functions = k % 4 ? 1 : 2; /* second derivatives of some: they take long to compile */
        qn_graph *both[2] = { gradient, n_functions == 1
                                            ? gradient
                                            : qn_jvp(gradient, "hessian", loss->n_inputs, wrt, &diags) };
        memcpy(ir->functions, both, (size_t)n_functions * sizeof *both);
        ir->n_functions = n_functions;
        qn_array inputs[16], expected[32];
        quern_module *module = qn_handle_new(ir, NULL);
        quern_model *model;
        if (!both[1] || quern_compile(module, &options, &model))
            fail_msg("%s: %s", c->name, both[1] ? quern_last_error() : qn_diags_text(&diags, arena));
        for (int which = 0; which < n_functions; which++) {
            const qn_graph *f = both[which];
            quern_session *session;
            make_inputs(f, inputs, c, arena);
            assert_int_equal(qn_interp_run(f, inputs, expected, arena, &diags), QUERN_OK);
            if (quern_session_new(model, f->name, &session))
                fail_msg("%s: %s", c->name, quern_last_error());
            for (int i = 0; i < f->n_inputs; i++) {
                const quern_array array = { inputs[i].dtype, inputs[i].rank, inputs[i].dims, inputs[i].data };
                assert_int_equal(quern_session_bind(session, i, &array), QUERN_OK);
            }
            if (quern_session_run(session))
                fail_msg("%s: %s", c->name, quern_last_error());
            for (int o = 0; o < f->n_outputs; o++) {
                quern_array found;
                assert_int_equal(quern_session_get(session, f->n_inputs + o, &found), QUERN_OK);
                for (int64_t i = 0; i < qn_type_elements(&f->outputs[o]->type); i++) {
                    const double x = ((double *)found.data)[i], y = ((double *)expected[o].data)[i];
                    if (!(fabs(x - y) <= 1e-10 * fmax(1, fabs(y))))
                        fail_msg("%s: output %d of the %s, element %d: compiled %.15g, interpreted %.15g",
                                 c->name, o, f->name, (int)i, x, y);
                }
            }
            quern_session_free(session);
        }
        quern_model_free(model);
        quern_module_free(module);
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(compiled_gradients_equal_the_interpreters) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
