/* Kernels that transpose in blocks, against the interpreter: alone and with element-wise neighbours, into panels, with outer
 * axes that are spread over tasks, of several operands at once, with blocks that are left over, with rows along any axis and
 * backwards, with columns along several axes, on machines with 16 lanes, masked or not, and with 8; and kernels that put pairs of lines side by side. */
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
    enum { MACHINES = 3 };
    for (int m = 0; m < MACHINES; m++) {
        const qn_machine machine = {
            .vector_bytes = 64 >> m / 2, .vector_registers = 16, .fma = true, .masked = m == 1
        };
        const qn_pass_options options = { .math = QN_MATH_DEFAULT, .machine = &machine };
        lowered_compare_text(name, text, &options);
    }
}

static void matrices(void **state)
{
    (void)state;
    compare("one block", "graph @f(%x: f32[16, 16]) -> f32[16, 16] {\n"
                         "%y = transpose %x {perm = [1, 0]} : f32[16, 16]\nreturn %y\n}\n");
    compare("blocks of rows over tasks", "graph @f(%x: f32[448, 336]) -> f32[336, 448] {\n"
                                         "%y = transpose %x {perm = [1, 0]} : f32[336, 448]\nreturn %y\n}\n");
    compare("a multiple of 8 only", "graph @f(%x: f32[40, 24]) -> f32[24, 40] {\n"
                                    "%y = transpose %x {perm = [1, 0]} : f32[24, 40]\nreturn %y\n}\n");
    compare("with others", "graph @f(%x: f32[64, 48], %w: f32[48, 64], %z: f32[64, 48]) -> f32[48, 64] {\n"
                           "%a = transpose %x {perm = [1, 0]} : f32[48, 64]\n"
                           "%b = transpose %z {perm = [1, 0]} : f32[48, 64]\n"
                           "%c = mul %a, %w : f32[48, 64]\n%y = sub %c, %b : f32[48, 64]\n"
                           "return %y\n}\n");
}

static void more_axes(void **state)
{
    (void)state;
    compare("panels", "graph @f(%w: f32[96, 80]) -> f32[3, 80, 32] {\n"
                      "%t = transpose %w {perm = [1, 0]} : f32[80, 96]\n"
                      "%r = reshape %t {dims = [80, 3, 32]} : f32[80, 3, 32]\n"
                      "%y = transpose %r {perm = [1, 0, 2]} : f32[3, 80, 32]\nreturn %y\n}\n");
    compare("batches over tasks", "graph @f(%x: f32[5, 7, 32, 64]) -> f32[7, 5, 64, 32] {\n"
                                  "%y = transpose %x {perm = [1, 0, 3, 2]} : f32[7, 5, 64, 32]\n"
                                  "return %y\n}\n");
    compare("a part", "graph @f(%x: f32[3, 40, 96]) -> f32[3, 64, 32] {\n"
                      "%s = slice %x {start = [0, 5, 20], limit = [3, 37, 84], stride = [1, 1, 1]} : "
                      "f32[3, 32, 64]\n"
                      "%y = transpose %s {perm = [0, 2, 1]} : f32[3, 64, 32]\nreturn %y\n}\n");
}

static void left_over(void **state)
{
    (void)state;
    compare("rows and columns left over", "graph @f(%x: f32[45, 39]) -> f32[39, 45] {\n"
                                          "%y = transpose %x {perm = [1, 0]} : f32[39, 45]\nreturn %y\n}\n");
    compare("few columns", "graph @f(%x: f32[9, 300]) -> f32[300, 9] {\n"
                           "%y = transpose %x {perm = [1, 0]} : f32[300, 9]\nreturn %y\n}\n");
    compare("few rows", "graph @f(%x: f32[300, 9]) -> f32[9, 300] {\n"
                        "%y = transpose %x {perm = [1, 0]} : f32[9, 300]\nreturn %y\n}\n");
    compare("rows left over in tasks", "graph @f(%x: f32[448, 1001]) -> f32[1001, 448] {\n"
                                       "%y = transpose %x {perm = [1, 0]} : f32[1001, 448]\nreturn %y\n}\n");
}

/* Elements of one, two and eight bytes; booleans go element by element. */
static void types(void **state)
{
    (void)state;
    static const char *const names[] = { "u8", "i8", "f16", "bf16", "i16", "i64", "f64", "i32", "bool" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *t = names[i];
        char text[1024];
        snprintf(text, sizeof text,
                 "graph @f(%%x: f32[45, 3, 70]) -> (%s[70, 3, 45], f32[3, 70, 45], %s[70, 45, 3]) {\n"
                 "%%a = convert %%x {dtype = %s} : %s[45, 3, 70]\n"
                 "%%b = transpose %%a {perm = [2, 1, 0]} : %s[70, 3, 45]\n"
                 "%%c = transpose %%a {perm = [1, 2, 0]} : %s[3, 70, 45]\n"
                 "%%d = convert %%c {dtype = f32} : f32[3, 70, 45]\n"
                 "%%e = transpose %%a {perm = [2, 0, 1]} : %s[70, 45, 3]\n"
                 "return %%b, %%d, %%e\n}\n",
                 t, t, t, t, t, t, t);
        compare(t, text);
    }
}

/* Two or three elements from as many lines, or the same one again; the last block is whole, shorter, or the only one. */
static void few(void **state)
{
    (void)state;
    static const int extents[] = { 4, 7, 16, 28, 33, 40, 112, 3136 };
    for (int n = 2; n <= 3; n++)
        for (size_t i = 0; i < sizeof extents / sizeof *extents; i++) {
            const int w = extents[i];
            char text[2048];
            snprintf(text, sizeof text,
                     "graph @f(%%x: f32[2, %d, %d], %%z: f32[%d], %%p: f32[5, %d]) -> "
                     "(f32[2, %d, %d], u8[2, %d, %d], f32[5, %d]) {\n"
                     "%%a = transpose %%x {perm = [0, 2, 1]} : f32[2, %d, %d]\n"
                     "%%b = broadcast %%z {axes = [2], dims = [2, %d, %d]} : f32[2, %d, %d]\n"
                     "%%c = mul %%a, %%b : f32[2, %d, %d]\n"
                     "%%t = convert %%x {dtype = u8} : u8[2, %d, %d]\n"
                     "%%u = transpose %%t {perm = [0, 2, 1]} : u8[2, %d, %d]\n"
                     "%%d = broadcast %%p {axes = [0, 1], dims = [5, %d, %d]} : f32[5, %d, %d]\n"
                     "%%e = reshape %%d {dims = [5, %d]} : f32[5, %d]\n"
                     "return %%c, %%u, %%e\n}\n",
                     n, w, n, w, w, n, w, n, w * n, w, n, w, n, w, n, w, n, n, w, w, n, w, n, w, n, w * n,
                     w * n);
            compare(text, text);
        }
}

/* Weights of convolutions and their gradients on the way to and from blocks of channels. The large ones are fetched ahead. */
static void channels(void **state)
{
    (void)state;
    compare("to blocks",
            "graph @f(%w: f32[32, 48, 3, 3]) -> f32[2, 3, 3, 3, 16, 16] {\n"
            "%r = reshape %w {dims = [2, 16, 3, 16, 3, 3]} : f32[2, 16, 3, 16, 3, 3]\n"
            "%y = transpose %r {perm = [0, 2, 4, 5, 3, 1]} : f32[2, 3, 3, 3, 16, 16]\nreturn %y\n}\n");
    compare("from blocks, channels and positions as one axis",
            "graph @f(%x: f32[4, 5, 19, 16]) -> u8[5, 1216] {\n"
            "%a = transpose %x {perm = [1, 0, 3, 2]} : f32[5, 4, 16, 19]\n"
            "%r = reshape %a {dims = [5, 1216]} : f32[5, 1216]\n%b = abs %r : f32[5, 1216]\n"
            "%y = convert %b {dtype = u8} : u8[5, 1216]\nreturn %y\n}\n");
    compare("backwards to blocks",
            "graph @f(%w: f32[32, 48, 3, 3]) -> f32[3, 2, 3, 3, 16, 16] {\n"
            "%v = reverse %w {axes = [2, 3]} : f32[32, 48, 3, 3]\n"
            "%r = reshape %v {dims = [2, 16, 3, 16, 3, 3]} : f32[2, 16, 3, 16, 3, 3]\n"
            "%y = transpose %r {perm = [2, 0, 4, 5, 1, 3]} : f32[3, 2, 3, 3, 16, 16]\nreturn %y\n}\n");
    compare("from blocks",
            "graph @f(%g: f32[48, 2, 3, 3, 16], %p: f32[32, 48, 3, 3]) -> f32[32, 48, 3, 3] {\n"
            "%a = transpose %g {perm = [0, 1, 4, 2, 3]} : f32[48, 2, 16, 3, 3]\n"
            "%b = reshape %a {dims = [48, 32, 3, 3]} : f32[48, 32, 3, 3]\n"
            "%c = transpose %b {perm = [1, 0, 2, 3]} : f32[32, 48, 3, 3]\n"
            "%y = sub %p, %c : f32[32, 48, 3, 3]\nreturn %y\n}\n");
    compare("large", "graph @f(%g: f32[256, 8, 9, 16]) -> f32[128, 256, 9] {\n"
                     "%a = transpose %g {perm = [1, 3, 0, 2]} : f32[8, 16, 256, 9]\n"
                     "%y = reshape %a {dims = [128, 256, 9]} : f32[128, 256, 9]\nreturn %y\n}\n");
}

/* The taps are no whole vectors, but what is written is a run over channels and taps. */
static void runs(void **state)
{
    (void)state;
    compare("two outputs",
            "graph @f(%g: f32[64, 2, 9, 16], %p: f32[32, 64, 9]) -> (f32[32, 64, 9], f32[32, 64, 9]) {\n"
            "%a = transpose %g {perm = [1, 3, 0, 2]} : f32[2, 16, 64, 9]\n"
            "%b = reshape %a {dims = [32, 64, 9]} : f32[32, 64, 9]\n"
            "%x = mul %p, %b : f32[32, 64, 9]\n%y = sub %x, %b : f32[32, 64, 9]\n"
            "return %x, %y\n}\n");
    compare("rows and columns left over",
            "graph @f(%g: f32[11, 3, 7, 20], %p: f32[60, 11, 7]) -> f32[60, 11, 7] {\n"
            "%a = transpose %g {perm = [1, 3, 0, 2]} : f32[3, 20, 11, 7]\n"
            "%b = reshape %a {dims = [60, 11, 7]} : f32[60, 11, 7]\n"
            "%y = add %p, %b : f32[60, 11, 7]\nreturn %y\n}\n");
    compare("shorter than a vector", "graph @f(%g: f32[2, 2, 3, 32], %p: f32[64, 2, 3]) -> f32[64, 2, 3] {\n"
                                     "%a = transpose %g {perm = [1, 3, 0, 2]} : f32[2, 32, 2, 3]\n"
                                     "%b = reshape %a {dims = [64, 2, 3]} : f32[64, 2, 3]\n"
                                     "%y = add %p, %b : f32[64, 2, 3]\nreturn %y\n}\n");
    compare("three axes, backwards",
            "graph @f(%g: f32[5, 6, 3, 48], %p: f32[48, 6, 5, 3]) -> f32[48, 6, 5, 3] {\n"
            "%r = reverse %g {axes = [3]} : f32[5, 6, 3, 48]\n"
            "%a = transpose %r {perm = [3, 1, 0, 2]} : f32[48, 6, 5, 3]\n"
            "%y = add %p, %a : f32[48, 6, 5, 3]\nreturn %y\n}\n");
    compare("pieces of columns", "graph @f(%g: f32[400, 9, 16], %p: f32[16, 400, 9]) -> f32[16, 400, 9] {\n"
                                 "%a = transpose %g {perm = [2, 0, 1]} : f32[16, 400, 9]\n"
                                 "%y = mul %p, %a : f32[16, 400, 9]\nreturn %y\n}\n");
}

/* Where rows lie outside in part, a block is not transposed as one; columns outside read something else in the buffer. */
static void padded(void **state)
{
    (void)state;
    compare("padded", "graph @f(%x: f32[40, 30]) -> f32[32, 48] {\n"
                      "%t = transpose %x {perm = [1, 0]} : f32[30, 40]\n%zero = constant 0.0 : f32[]\n"
                      "%y = pad %t, %zero {low = [1, 3], high = [1, 5], interior = [0, 0]} : f32[32, 48]\n"
                      "return %y\n}\n");
    compare("padded columns",
            "graph @f(%x: f32[3, 27, 40]) -> f32[3, 40, 40] {\n"
            "%t = transpose %x {perm = [0, 2, 1]} : f32[3, 40, 27]\n"
            "%one = constant 1.0 : f32[]\n"
            "%y = pad %t, %one {low = [0, 0, 3], high = [0, 0, 10], interior = [0, 0, 0]} : "
            "f32[3, 40, 40]\nreturn %y\n}\n");
    compare("padded columns, few elements",
            "graph @f(%x: f32[3, 5]) -> f32[5, 24] {\n"
            "%t = transpose %x {perm = [1, 0]} : f32[5, 3]\n%zero = constant 0.0 : f32[]\n"
            "%y = pad %t, %zero {low = [0, 9], high = [0, 12], interior = [0, 0]} : f32[5, 24]\n"
            "return %y\n}\n");
    compare("padded columns, rows left over, put beside others",
            "graph @f(%x: f32[29, 19], %z: f32[19, 7]) -> f32[19, 48] {\n"
            "%t = transpose %x {perm = [1, 0]} : f32[19, 29]\n%zero = constant 0.0 : f32[]\n"
            "%p = pad %t, %zero {low = [0, 2], high = [0, 10], interior = [0, 0]} : f32[19, 41]\n"
            "%y = concatenate %p, %z {axis = 1} : f32[19, 48]\nreturn %y\n}\n");
}

/* The last axis has two elements, which come from two lines. */
static void pairs(void **state)
{
    (void)state;
    compare("two lines", "graph @f(%x: f32[2, 4800]) -> f32[4800, 2] {\n"
                         "%y = transpose %x {perm = [1, 0]} : f32[4800, 2]\nreturn %y\n}\n");
    compare("panels of pairs of rows",
            "graph @f(%x: f32[38, 96]) -> bf16[3, 19, 32, 2] {\n"
            "%c = convert %x {dtype = bf16} : bf16[38, 96]\n"
            "%r = reshape %c {dims = [19, 2, 3, 32]} : bf16[19, 2, 3, 32]\n"
            "%y = transpose %r {perm = [2, 0, 3, 1]} : bf16[3, 19, 32, 2]\nreturn %y\n}\n");
    compare("an odd number of rows, behind which is zero",
            "graph @f(%x: f32[3, 37, 64]) -> bf16[3, 19, 64, 2] {\n"
            "%c = convert %x {dtype = bf16} : bf16[3, 37, 64]\n%zero = constant 0.0 : bf16[]\n"
            "%p = pad %c, %zero {low = [0, 0, 0], high = [0, 1, 0], interior = [0, 0, 0]} : bf16[3, 38, 64]\n"
            "%r = reshape %p {dims = [3, 19, 2, 64]} : bf16[3, 19, 2, 64]\n"
            "%y = transpose %r {perm = [0, 1, 3, 2]} : bf16[3, 19, 64, 2]\nreturn %y\n}\n");
    compare("with others, of the first, of the last and of all axes",
            "graph @f(%x: f32[5, 2, 7, 16], %a: f32[16], %b: f32[2], %z: f32[5, 7, 16, 2]) -> "
            "f32[5, 7, 16, 2] {\n"
            "%t = transpose %x {perm = [0, 2, 3, 1]} : f32[5, 7, 16, 2]\n"
            "%c = broadcast %a {axes = [2], dims = [5, 7, 16, 2]} : f32[5, 7, 16, 2]\n"
            "%d = broadcast %b {axes = [3], dims = [5, 7, 16, 2]} : f32[5, 7, 16, 2]\n"
            "%e = mul %t, %c : f32[5, 7, 16, 2]\n%f = add %e, %d : f32[5, 7, 16, 2]\n"
            "%y = sub %f, %z : f32[5, 7, 16, 2]\nreturn %y\n}\n");
    compare("bytes of a part",
            "graph @f(%x: f32[3, 40, 96]) -> u8[3, 64, 2] {\n"
            "%s = slice %x {start = [0, 5, 20], limit = [3, 39, 84], stride = [1, 17, 1]} : f32[3, 2, 64]\n"
            "%a = abs %s : f32[3, 2, 64]\n%c = convert %a {dtype = u8} : u8[3, 2, 64]\n"
            "%y = transpose %c {perm = [0, 2, 1]} : u8[3, 64, 2]\nreturn %y\n}\n");
    compare("no whole vectors", "graph @f(%x: f32[3, 2, 50]) -> f32[3, 50, 2] {\n"
                                "%y = transpose %x {perm = [0, 2, 1]} : f32[3, 50, 2]\nreturn %y\n}\n");
}

/* Pairs from lines that lie across what is written. */
static void pairs_across(void **state)
{
    (void)state;
    compare(
        "panels of pairs of columns",
        "graph @f(%x: f32[64, 100]) -> bf16[2, 50, 32, 2] {\n%c = convert %x {dtype = bf16} : bf16[64, 100]\n"
        "%r = reshape %c {dims = [2, 32, 50, 2]} : bf16[2, 32, 50, 2]\n"
        "%y = transpose %r {perm = [0, 2, 1, 3]} : bf16[2, 50, 32, 2]\nreturn %y\n}\n");
    compare("filters",
            "graph @f(%w: f32[48, 32, 3, 3]) -> bf16[3, 2, 3, 3, 8, 16, 2] {\n"
            "%c = convert %w {dtype = bf16} : bf16[48, 32, 3, 3]\n"
            "%r = reshape %c {dims = [3, 16, 2, 8, 2, 3, 3]} : bf16[3, 16, 2, 8, 2, 3, 3]\n"
            "%y = transpose %r {perm = [0, 2, 5, 6, 3, 1, 4]} : bf16[3, 2, 3, 3, 8, 16, 2]\nreturn %y\n}\n");
    compare("filters of many taps, backwards",
            "graph @f(%w: f32[32, 16, 5, 5]) -> bf16[1, 2, 5, 5, 8, 16, 2] {\n"
            "%v = reverse %w {axes = [2, 3]} : f32[32, 16, 5, 5]\n"
            "%c = convert %v {dtype = bf16} : bf16[32, 16, 5, 5]\n"
            "%r = reshape %c {dims = [2, 8, 2, 1, 16, 5, 5]} : bf16[2, 8, 2, 1, 16, 5, 5]\n"
            "%y = transpose %r {perm = [3, 0, 5, 6, 1, 4, 2]} : bf16[1, 2, 5, 5, 8, 16, 2]\nreturn %y\n}\n");
    compare("columns left over, padding and a neighbour",
            "graph @f(%x: f32[40, 24], %z: f32[1, 12, 48, 2]) -> f32[1, 12, 48, 2] {\n"
            "%o = constant 2.0 : f32[]\n"
            "%p = pad %x, %o {low = [0, 0], high = [8, 0], interior = [0, 0]} : f32[48, 24]\n"
            "%r = reshape %p {dims = [1, 48, 12, 2]} : f32[1, 48, 12, 2]\n"
            "%t = transpose %r {perm = [0, 2, 1, 3]} : f32[1, 12, 48, 2]\n"
            "%y = add %t, %z : f32[1, 12, 48, 2]\nreturn %y\n}\n");
    compare("rows and columns that are no whole blocks",
            "graph @f(%x: f32[3, 21, 38]) -> f32[3, 19, 21, 2] {\n"
            "%r = reshape %x {dims = [3, 21, 19, 2]} : f32[3, 21, 19, 2]\n"
            "%t = transpose %r {perm = [0, 2, 1, 3]} : f32[3, 19, 21, 2]\n"
            "%y = exp %t : f32[3, 19, 21, 2]\nreturn %y\n}\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrices),     cmocka_unit_test(more_axes), cmocka_unit_test(left_over),
        cmocka_unit_test(types),        cmocka_unit_test(few),       cmocka_unit_test(channels),
        cmocka_unit_test(runs),         cmocka_unit_test(padded),    cmocka_unit_test(pairs),
        cmocka_unit_test(pairs_across),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
