/* Kernels of windows along the last axis (passes/windows.c), against the interpreter: each kind, with strides, dilations and padding on
 * any side, rows that are pieces of several, several axes of windows, what follows them, other types, and strict math. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/lowered.h"

static void compare(const char *name, const char *text)
{
    for (int m = 0; m < LOWERED_MACHINES; m++)
        for (int strict = 0; strict < 2; strict++) {
            const qn_pass_options options = { .math = strict ? QN_MATH_STRICT : QN_MATH_DEFAULT,
                                              .machine = &lowered_machines[m] };
            lowered_compare_text(name, text, &options);
        }
}

/* Windows over an image of 5 planes. */
static void pool(const char *kind, int h, int w, const char *attributes, int out_h, int out_w)
{
    char text[1024];
    snprintf(text, sizeof text,
             "graph @f(%%x: f32[5, %d, %d]) -> f32[5, %d, %d] {\n"
             "%%y = reduce_window %%x {kind = %s, %s} : f32[5, %d, %d]\nreturn %%y\n}\n",
             h, w, out_h, out_w, kind, attributes, out_h, out_w);
    compare(text, text);
}

static void images(void **state)
{
    (void)state;
    static const char *const kinds[] = { "max", "min", "sum", "prod" };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        pool(
            kinds[k], 20, 20,
            "window = [1, 3, 3], stride = [1, 1, 1], dilation = [1, 1, 1], low = [0, 1, 1], high = [0, 1, 1]",
            20, 20);
        pool(
            kinds[k], 33, 37,
            "window = [1, 3, 3], stride = [1, 2, 2], dilation = [1, 1, 1], low = [0, 1, 1], high = [0, 1, 1]",
            17, 19);
    }
    pool("max", 16, 48,
         "window = [1, 2, 4], stride = [1, 2, 4], dilation = [1, 1, 1], low = [0, 0, 0], high = [0, 0, 0]", 8,
         12);
    pool("sum", 30, 50,
         "window = [1, 5, 3], stride = [1, 2, 3], dilation = [1, 2, 2], low = [0, 3, 0], high = [0, 4, 6]",
         15, 18);
    pool("max", 9, 3,
         "window = [1, 3, 3], stride = [1, 1, 1], dilation = [1, 1, 1], low = [0, 0, 2], high = [0, 5, 2]",
         12, 5);
    pool(
        "sum", 24, 29,
        "window = [1, 19, 21], stride = [1, 1, 5], dilation = [1, 1, 1], low = [0, 9, 10], high = [0, 9, 10]",
        24, 6);
    pool("max", 7, 7,
         "window = [1, 7, 7], stride = [1, 1, 1], dilation = [1, 1, 1], low = [0, 0, 0], high = [0, 0, 0]", 1,
         1);
}

/* A row is several pieces; windows of the last axis alone; over all axes. */
static void rows(void **state)
{
    (void)state;
    pool("max", 3, 2500,
         "window = [1, 2, 3], stride = [1, 1, 1], dilation = [1, 1, 1], low = [0, 1, 1], high = [0, 1, 1]", 4,
         2500);
    pool("sum", 2, 3001,
         "window = [1, 1, 8], stride = [1, 1, 3], dilation = [1, 1, 1], low = [0, 0, 4], high = [0, 0, 2]", 2,
         1000);
    pool("max", 10, 40,
         "window = [2, 3, 2], stride = [1, 1, 2], dilation = [1, 1, 1], low = [1, 0, 0], high = [0, 0, 0]", 8,
         20);
    compare("a line",
            "graph @f(%x: f32[1000]) -> f32[333] {\n"
            "%y = reduce_window %x {kind = max, window = [4], stride = [3], dilation = [1], low = [0], high "
            "= [0]} : f32[333]\nreturn %y\n}\n");
}

static void others(void **state)
{
    (void)state;
    compare("with what follows",
            "graph @f(%x: f32[2, 3, 18, 22], %z: f32[2, 3, 9, 11]) -> (f32[2, 3, 99], f32[2, 3, 9, 11]) {\n"
            "%a = reduce_window %x {kind = sum, window = [1, 1, 3, 3], stride = [1, 1, 2, 2], dilation = [1, "
            "1, 1, 1], "
            "low = [0, 0, 1, 1], high = [0, 0, 0, 0]} : f32[2, 3, 9, 11]\n"
            "%b = mul %a, %z : f32[2, 3, 9, 11]\n%c = reshape %b {dims = [2, 3, 99]} : f32[2, 3, 99]\n"
            "%d = relu %c : f32[2, 3, 99]\nreturn %d, %a\n}\n");
    static const char *const types[] = { "f16", "f64", "i8", "u8", "i64", "i32" };
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        char text[1024];
        snprintf(text, sizeof text,
                 "graph @f(%%x: f32[3, 20, 70]) -> %s[3, 20, 35] {\n"
                 "%%a = convert %%x {dtype = %s} : %s[3, 20, 70]\n"
                 "%%b = reduce_window %%a {kind = max, window = [1, 3, 3], stride = [1, 1, 2], dilation = "
                 "[1, 1, 1], "
                 "low = [0, 1, 1], high = [0, 1, 0]} : %s[3, 20, 35]\n"
                 "%%c = reduce_window %%a {kind = sum, window = [1, 3, 3], stride = [1, 1, 2], dilation = "
                 "[1, 1, 1], "
                 "low = [0, 1, 1], high = [0, 1, 0]} : %s[3, 20, 35]\n"
                 "%%y = add %%b, %%c : %s[3, 20, 35]\nreturn %%y\n}\n",
                 types[t], types[t], types[t], types[t], types[t], types[t]);
        compare(types[t], text);
    }
}

/* Elements two to five apart. */
static void apart(void **state)
{
    (void)state;
    for (int step = 2; step <= 5; step++)
        for (int n = 7; n <= 200; n += 13 * step) {
            char text[512];
            const int size = n * step - step + 1;
            snprintf(text, sizeof text,
                     "graph @f(%%x: f32[3, %d]) -> (f32[3, %d], f16[3, %d]) {\n"
                     "%%y = slice %%x {start = [0, 0], limit = [3, %d], stride = [1, %d]} : f32[3, %d]\n"
                     "%%h = convert %%y {dtype = f16} : f16[3, %d]\nreturn %%y, %%h\n}\n",
                     size, n, n, size, step, n, n);
            compare(text, text);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(images),
        cmocka_unit_test(rows),
        cmocka_unit_test(others),
        cmocka_unit_test(apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
