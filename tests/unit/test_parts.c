/* Kernels that go over parts of an axis by themselves, against the interpreter: values put together from several, transposed or
 * not, padded ones and sums of them, with an output in place of an input, with bounds that no one axis decides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/lowered.h"

/* `branches` of the kernel say how many parts with tasks of their own it has; `wanted` is in its text, or behind a ! not. */
static void compare(const char *name, int branches, const char *wanted, const char *text)
{
    const qn_pass_options options = { .math = QN_MATH_DEFAULT, .machine = &lowered_machine };
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_array inputs[4], outputs[1];
    qn_graph *graph = lowered_parsed(name, text, inputs, arena);
    lowered_compare(name, graph, &options, inputs, NULL);
    qn_program *program;
    if (lowered_run(graph, true, &options, inputs, NULL, outputs, &program, arena, &diags))
        fail_msg("%s: %s", name, qn_diags_text(&diags, arena));
    assert_int_equal(program->n_kernels, 1);
    const char *kernel = qn_kernel_print(program->kernels[0], arena);
    int found = 0;
    for (const char *at = kernel; (at = strstr(at, "if %")); at++)
        found++;
    const bool absent = *wanted == '!';
    if (found != branches || (strstr(kernel, wanted + absent) == NULL) != absent)
        fail_msg("%s: %d branches in\n%s", name, found, kernel);
    qn_module_free(graph->module);
    qn_arena_free(arena);
}

static void put_together(void **state)
{
    (void)state;
    compare("rows", 1, "store",
            "graph @f(%a: f32[60, 100], %b: f32[40, 100]) -> f32[100, 100] {\n"
            "%y = concatenate %a, %b {axis = 0} : f32[100, 100]\nreturn %y\n}\n");
    compare("columns, by whole vectors", 2, "store",
            "graph @f(%a: f32[50, 48], %b: f32[50, 64], %c: f32[50, 70]) -> f32[50, 182] {\n"
            "%y = concatenate %a, %b, %c {axis = 1} : f32[50, 182]\nreturn %y\n}\n");
    compare("columns of no whole vectors", 0, "!select",
            "graph @f(%a: f32[50, 50], %b: f32[50, 64]) -> f32[50, 114] {\n"
            "%y = concatenate %a, %b {axis = 1} : f32[50, 114]\nreturn %y\n}\n");
    compare("a single row", 0, "!select",
            "graph @f(%a: f32[1, 4096], %b: f32[3, 4096]) -> f32[4, 4096] {\n"
            "%y = concatenate %a, %b {axis = 0} : f32[4, 4096]\nreturn %y\n}\n");
    compare("small ones", 0, "!select",
            "graph @f(%a: f32[6, 16], %b: f32[4, 16]) -> f32[10, 16] {\n"
            "%y = concatenate %a, %b {axis = 0} : f32[10, 16]\nreturn %y\n}\n");
}

/* Small parts, one after the other in each task. */
static void stacked(void **state)
{
    (void)state;
    compare("in the middle", 0, "!select",
            "graph @f(%a: f32[70, 1, 33], %b: f32[70, 2, 33], %c: f32[70, 1, 33]) -> f32[70, 4, 33] {\n"
            "%y = concatenate %a, %b, %c {axis = 1} : f32[70, 4, 33]\nreturn %y\n}\n");
    compare("computed, over many tasks", 0, "!select",
            "graph @f(%a: f32[3000, 17], %b: f32[3000, 17], %c: f32[3000, 3]) -> f32[3000, 54] {\n"
            "%d = sub %a, %b : f32[3000, 17]\n"
            "%y = concatenate %a, %d, %b, %c {axis = 1} : f32[3000, 54]\nreturn %y\n}\n");
    compare("transposed", 0, "!select",
            "graph @f(%a: f32[1, 9, 20], %b: f32[1, 9, 20], %c: f32[1, 9, 20]) -> f32[9, 3, 20] {\n"
            "%v = concatenate %a, %b, %c {axis = 0} : f32[3, 9, 20]\n"
            "%y = transpose %v {perm = [1, 0, 2]} : f32[9, 3, 20]\nreturn %y\n}\n");
    compare("nested", 0, "!select",
            "graph @f(%a: f32[40, 5], %b: f32[40, 6], %c: f32[40, 7], %d: f32[40, 18]) -> f32[40, 18] {\n"
            "%v = concatenate %a, %b {axis = 1} : f32[40, 11]\n"
            "%w = concatenate %v, %c {axis = 1} : f32[40, 18]\n"
            "%y = add %w, %d : f32[40, 18]\nreturn %y\n}\n");
}

/* The gates of a recurrence in another order, in panels of 32. */
static void packed(void **state)
{
    (void)state;
    compare("panels", 3, "shuffle",
            "graph @f(%w: f32[256, 80]) -> f32[8, 80, 32] {\n"
            "%a = slice %w {start = [0, 0], limit = [64, 80], stride = [1, 1]} : f32[64, 80]\n"
            "%b = slice %w {start = [64, 0], limit = [128, 80], stride = [1, 1]} : f32[64, 80]\n"
            "%c = slice %w {start = [128, 0], limit = [192, 80], stride = [1, 1]} : f32[64, 80]\n"
            "%d = slice %w {start = [192, 0], limit = [256, 80], stride = [1, 1]} : f32[64, 80]\n"
            "%v = concatenate %a, %d, %b, %c {axis = 0} : f32[256, 80]\n"
            "%t = transpose %v {perm = [1, 0]} : f32[80, 256]\n"
            "%r = reshape %t {dims = [80, 8, 32]} : f32[80, 8, 32]\n"
            "%y = transpose %r {perm = [1, 0, 2]} : f32[8, 80, 32]\nreturn %y\n}\n");
}

static void padded(void **state)
{
    (void)state;
    compare("sums of padded ones", 2, "store",
            "graph @f(%a: f32[64, 48], %b: f32[64, 48], %c: f32[64, 48]) -> f32[64, 144] {\n"
            "%zero = constant 0.0 : f32[]\n"
            "%p = pad %a, %zero {low = [0, 96], high = [0, 0], interior = [0, 0]} : f32[64, 144]\n"
            "%q = pad %b, %zero {low = [0, 48], high = [0, 48], interior = [0, 0]} : f32[64, 144]\n"
            "%r = pad %c, %zero {low = [0, 0], high = [0, 96], interior = [0, 0]} : f32[64, 144]\n"
            "%s = add %p, %q : f32[64, 144]\n%y = add %s, %r : f32[64, 144]\nreturn %y\n}\n");
    compare("a little, behind", 0, "!select",
            "graph @f(%a: f32[30, 40]) -> f32[30, 43] {\n%zero = constant 1.0 : f32[]\n"
            "%y = pad %a, %zero {low = [0, 0], high = [0, 3], interior = [0, 0]} : f32[30, 43]\n"
            "return %y\n}\n");
    compare("around both axes", 0, "store",
            "graph @f(%a: f32[60, 60]) -> f32[64, 64] {\n%zero = constant 1.0 : f32[]\n"
            "%y = pad %a, %zero {low = [2, 2], high = [2, 2], interior = [0, 0]} : f32[64, 64]\n"
            "return %y\n}\n");
}

/* The parts of an update stay in place. */
static void in_place(void **state)
{
    (void)state;
    compare("update", 1, "inplace %p",
            "graph @f(%w: f32[128, 64], %p: f32[128, 64]) -> f32[128, 64] {\n"
            "%a = slice %w {start = [0, 0], limit = [64, 64], stride = [1, 1]} : f32[64, 64]\n"
            "%b = slice %w {start = [64, 0], limit = [128, 64], stride = [1, 1]} : f32[64, 64]\n"
            "%g = concatenate %b, %a {axis = 0} : f32[128, 64]\n"
            "%y = sub %p, %g : f32[128, 64]\nreturn %y\n}\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(put_together), cmocka_unit_test(stacked),  cmocka_unit_test(packed),
        cmocka_unit_test(padded),       cmocka_unit_test(in_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
