/* The raise pass keeps what graphs compute: every graph of tests/text/opt/raise.qn (which says what is found in it) in the
 * interpreter, before and after, in all math modes; to the bit under --math strict. */
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
#include "passes/pass.h"
#include "tests/support/eval.h"
#include "tests/support/net.h"

static const char passes[] = "simplify,fold,simplify,cse,dce,raise,simplify,dce";

static char *read_cases(qn_arena *arena)
{
    FILE *file = fopen(QN_SOURCE_DIR "/tests/text/opt/raise.qn", "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    const long size = ftell(file);
    assert_true(size > 0);
    rewind(file);
    char *text = qn_arena_calloc(arena, (size_t)size + 1, 1);
    assert_int_equal(fread(text, 1, (size_t)size, file), size);
    fclose(file);
    return text;
}

/* Floats around 0; labels below 6; conditions that are true for the first key of every query. */
static void fill(qn_array *array, const qn_type *type, const int64_t *symbols, int seed, qn_arena *arena)
{
    const int64_t n = array_of_type(array, type, symbols, arena),
                  last = type->rank > 0 ? array->dims[type->rank - 1] : 1;
    for (int64_t i = 0; i < n; i++) {
        const int64_t noise = (i * 7919 + seed * 104729 + i / 7 * 31) % 401 - 200;
        switch (type->dtype) {
        case QUERN_BOOL: ((unsigned char *)array->data)[i] = i % last == 0 || noise % 3 != 0; break;
        case QUERN_I64: ((int64_t *)array->data)[i] = (noise + 200) % 6; break;
        default: ((float *)array->data)[i] = (float)noise / 60;
        }
    }
}

static qn_module *parse(const char *text, qn_diags *diags, qn_arena *arena)
{
    qn_module *module;
    if (qn_text_parse(text, strlen(text), "raise.qn", &module, diags))
        fail_msg("%s", qn_diags_text(diags, arena));
    return module;
}

static void same_values(void **state)
{
    (void)state;
    static const int64_t symbols[][3] = { { 1, 1, 1 }, { 3, 4, 7 }, { 9, 9, 2 }, { 5, 3, 3 } };
    static const qn_math modes[] = { QN_MATH_STRICT, QN_MATH_DEFAULT, QN_MATH_FAST };
    qn_arena *arena = qn_arena_new();
    const char *text = read_cases(arena);
    for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *before = parse(text, &diags, arena), *after = parse(text, &diags, arena);
        const qn_pass_options options = { .math = modes[m], .fold = qn_interp_fold };
        const qn_pass_hooks hooks = { .verify_each = true };
        assert_true(before->n_functions > 30);
        for (int f = 0; f < before->n_functions; f++) {
            qn_graph *x = before->functions[f], *y = after->functions[f];
            if (qn_run_passes(y, passes, &options, &hooks, &diags))
                fail_msg("%s: %s", x->name, qn_diags_text(&diags, arena));
            for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
                qn_array inputs[5], expected[2], found[2];
                for (int k = 0; k < x->n_inputs; k++)
                    fill(&inputs[k], &x->inputs[k]->type, symbols[i], k, arena);
                if (qn_interp_run(x, inputs, expected, arena, &diags) ||
                    qn_interp_run(y, inputs, found, arena, &diags))
                    fail_msg("%s: %s", x->name, qn_diags_text(&diags, arena));
                for (int o = 0; o < x->n_outputs; o++)
                    if (modes[m] == QN_MATH_STRICT)
                        expect_same(x->name, &found[o], &expected[o]);
                    else
                        expect_near(x->name, &found[o], &expected[o], 4e-6);
            }
        }
        qn_module_free(before);
        qn_module_free(after);
    }
    qn_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(same_values) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
