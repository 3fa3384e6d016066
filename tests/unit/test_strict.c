/* Strict mathematics: kernels for machines with vectors give the bits of the definition. Of float64 that is what the interpreter
 * computes, of float32 what a plain nest of loops does, in the same order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/text/text.h"
#include "ir/build.h"
#include "tests/support/eval.h"
#include "tests/support/lowered.h"

static const qn_machine machines[] = {
    { LOWERED_AVX512, .dot2 = true },
    { LOWERED_AVX2 },
    { LOWERED_AARCH64 },
};
enum { MACHINES = sizeof machines / sizeof *machines };

/* The function of the text, in which each T is a dtype's name. */
static qn_graph *parsed(const char *text, const char *dtype, qn_arena *arena, qn_diags *diags)
{
    char *typed = qn_arena_alloc(arena, strlen(text) * 3 + 1), *to = typed;
    for (const char *c = text; *c; c++)
        if (*c == 'T')
            to += sprintf(to, "%s", dtype);
        else
            *to++ = *c;
    *to = '\0';
    qn_module *module;
    if (qn_text_parse(typed, strlen(typed), "strict", &module, diags))
        fail_msg("%s\n%s", qn_diags_text(diags, arena), typed);
    return module->functions[0];
}

/* Numbers whose sums round; some are 0 and -0. */
static void fill(const qn_graph *graph, int64_t symbol, uint64_t seed, qn_array *inputs)
{
    for (int k = 0; k < graph->n_inputs; k++) {
        const qn_type *type = &graph->inputs[k]->type;
        int64_t dims[QN_MAX_RANK], n = 1;
        for (int i = 0; i < type->rank; i++)
            n *= dims[i] = qn_dim_is_const(type->dims[i]) ? type->dims[i]->value : symbol;
        inputs[k] = noise(type->dtype, type->rank, dims, seed + (uint64_t)k);
        const size_t bytes = qn_dtype_bytes(type->dtype);
        for (int64_t i = 0; i < n; i += 5)
            qn_scalar_store(type->dtype, (qn_scalar){ .f = i % 2 ? -0.0 : 0.0 },
                            (char *)inputs[k].data + (size_t)i * bytes);
    }
}

/* The text's function, lowered for each machine, against its definition. */
static void check(const char *text, const char *dtype, int64_t symbol, uint64_t seed, const char *kernel)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_array inputs[8], expected[4], found[4];
    qn_graph *graph = parsed(text, dtype, arena, &diags);
    fill(graph, symbol, seed, inputs);
    const qn_pass_options plain = { .math = QN_MATH_STRICT };
    const qn_status status = strcmp(dtype, "f64") == 0 ? qn_interp_run(graph, inputs, expected, arena, &diags)
                                                       : lowered_run(graph, false, &plain, inputs, &symbol,
                                                                     expected, NULL, arena, &diags);
    if (status)
        fail_msg("%s\n%s", qn_diags_text(&diags, arena), text);
    for (int m = 0; m < MACHINES; m++) {
        const qn_pass_options options = { .math = QN_MATH_STRICT, .machine = &machines[m] };
        qn_graph *again = parsed(text, dtype, arena, &diags);
        qn_program *program;
        if (lowered_run(again, true, &options, inputs, &symbol, found, &program, arena, &diags))
            fail_msg("%s\n%s", qn_diags_text(&diags, arena), text);
        const char *name =
            qn_arena_printf(arena, "%s on %d bytes: %s", dtype, machines[m].vector_bytes, text);
        if (kernel && !strstr(qn_program_print(program, arena), kernel))
            fail_msg("no %s in %s\n%s", kernel, name, qn_program_print(program, arena));
        for (int i = 0; i < graph->n_outputs; i++)
            expect_same(name, &found[i], &expected[i]);
        qn_module_free(again->module);
    }
    qn_module_free(graph->module);
    qn_arena_free(arena);
    eval_reset();
}

/* ---- convolutions ---- */

static int64_t pick(uint64_t *seed, int64_t low, int64_t high)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return low + (int64_t)((*seed >> 33) % (uint64_t)(high - low + 1));
}

/* Strides, dilations, paddings that may be wider than the kernel or cut x, groups, samples whose number is a symbol. */
static void random_convolution(char *text, size_t size, uint64_t *seed)
{
    const int64_t sort =
        pick(seed, 0, 3); /* one group, groups of whole blocks, each channel by itself, few channels */
    const int64_t channels = sort == 3   ? pick(seed, 1, 7)
                             : sort == 1 ? 32
                                         : pick(seed, 16, 40),
                  groups = sort == 1   ? 2
                           : sort == 2 ? channels
                                       : 1;
    const int64_t out = sort == 1 ? 32 : sort == 2 ? channels : pick(seed, 1, 40);
    int64_t in[2], kernel[2], stride[2], low[2], high[2], dilation[2], result[2];
    for (int i = 0; i < 2; i++) {
        kernel[i] = pick(seed, 1, 4);
        stride[i] = pick(seed, 1, 2);
        dilation[i] = pick(seed, 1, 2);
        low[i] = pick(seed, -1, 4);
        high[i] = pick(seed, -1, 4);
        const int64_t reach = (kernel[i] - 1) * dilation[i] + 1, least = reach - low[i] - high[i];
        in[i] = pick(seed, least > 1 ? least : 1, (least > 1 ? least : 1) + (i ? 20 : 6));
        result[i] = (in[i] + low[i] + high[i] - reach) / stride[i] + 1;
    }
#define NUMBERS "[%lld, %lld]"
#define PAIR(a) (long long)a[0], (long long)a[1]
    snprintf(
        text, size,
        "dims n: 0..8\n"
        "graph @f(%%x: T[n, %lld, %lld, %lld], %%w: T[%lld, %lld, %lld, %lld]) -> T[n, %lld, %lld, %lld] {\n"
        "%%r = convolution %%x, %%w {groups = %lld, high = " NUMBERS ", low = " NUMBERS ", stride = " NUMBERS
        ", w_dilation = " NUMBERS ", x_dilation = [1, 1]} : T[n, %lld, %lld, %lld]\nreturn %%r\n}\n",
        (long long)channels, PAIR(in), (long long)out, (long long)(channels / groups), PAIR(kernel),
        (long long)out, PAIR(result), (long long)groups, PAIR(high), PAIR(low), PAIR(stride), PAIR(dilation),
        (long long)out, PAIR(result));
}

static void test_convolutions(void **state)
{
    enum { CASES = 40 };
    (void)state;
    uint64_t seed = 7;
    for (int i = 0; i < CASES; i++) {
        char text[1024];
        random_convolution(text, sizeof text, &seed);
        check(text, "f32", 2, seed, "conv_packed");
        check(text, "f64", 1, seed, "conv_packed");
    }
}

/* Maps as narrow and as wide as tiles are; several axes; two convolutions with what is between and behind them. */
static const char *const networks[] = {
    "graph @f(%x: T[1, 40, 7, 7], %w: T[33, 40, 3, 3]) -> T[1, 33, 7, 7] {\n"
    "%r = convolution %x, %w {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, 1], "
    "x_dilation = [1, 1]} : T[1, 33, 7, 7]\nreturn %r\n}\n",
    "graph @f(%x: T[1, 16, 3, 56], %w: T[64, 16, 3, 3]) -> T[1, 64, 3, 56] {\n"
    "%r = convolution %x, %w {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, 1], "
    "x_dilation = [1, 1]} : T[1, 64, 3, 56]\nreturn %r\n}\n",
    "graph @f(%x: T[1, 50, 9, 9], %w: T[20, 50, 1, 1]) -> T[1, 20, 5, 5] {\n"
    "%r = convolution %x, %w {groups = 1, high = [0, 0], low = [0, 0], stride = [2, 2], w_dilation = [1, 1], "
    "x_dilation = [1, 1]} : T[1, 20, 5, 5]\nreturn %r\n}\n",
    "graph @f(%x: T[2, 17, 30], %w: T[19, 17, 5]) -> T[2, 19, 30] {\n"
    "%r = convolution %x, %w {groups = 1, high = [2], low = [2], stride = [1], w_dilation = [1], x_dilation "
    "= [1]} : "
    "T[2, 19, 30]\nreturn %r\n}\n",
    "graph @f(%x: T[1, 16, 3, 4, 5], %w: T[16, 16, 2, 3, 3]) -> T[1, 16, 4, 4, 5] {\n"
    "%r = convolution %x, %w {groups = 1, high = [1, 1, 1], low = [1, 1, 1], stride = [1, 1, 1], w_dilation "
    "= [1, 1, 1], "
    "x_dilation = [1, 1, 1]} : T[1, 16, 4, 4, 5]\nreturn %r\n}\n",
    "graph @f(%x: T[1, 3, 12, 12], %w: T[32, 3, 3, 3], %v: T[32, 32, 3, 3], %b: T[32]) -> (T[1, 32, 6, 6], "
    "T[1, 32], "
    "T[1]) {\n"
    "%r = convolution %x, %w {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, 1], "
    "x_dilation = [1, 1]} : T[1, 32, 12, 12]\n"
    "%c = broadcast %b {axes = [1], dims = [1, 32, 12, 12]} : T[1, 32, 12, 12]\n"
    "%d = mul %r, %c : T[1, 32, 12, 12]\n%e = add %d, %r : T[1, 32, 12, 12]\n"
    "%p = reduce_window %e {dilation = [1, 1, 1, 1], high = [0, 0, 1, 1], kind = sum, low = [0, 0, 1, 1], "
    "stride = [1, "
    "1, 2, 2], window = [1, 1, 3, 3]} : T[1, 32, 6, 6]\n"
    "%q = convolution %p, %v {groups = 1, high = [1, 1], low = [1, 1], stride = [1, 1], w_dilation = [1, 1], "
    "x_dilation = [1, 1]} : T[1, 32, 6, 6]\n"
    "%m = reduce %q {axes = [2, 3], kind = sum} : T[1, 32]\n"
    "%o = reduce %q {axes = [1, 2, 3], kind = sum} : T[1]\nreturn %q, %m, %o\n}\n",
};

static void test_networks(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++) {
        check(networks[i], "f32", 0, i + 1, "conv_packed");
        check(networks[i], "f64", 0, i + 100, "conv_packed");
    }
}

/* ---- products, and sums along rows ---- */

#define PLAIN "{x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]}"

static const char *const products[] = {
    "graph @f(%x: T[29, 137], %y: T[137, 65]) -> T[29, 65] {\n"
    "%r = dot_general %x, %y " PLAIN " : T[29, 65]\nreturn %r\n}\n",
    "graph @f(%x: T[50, 1601], %y: T[1601, 96]) -> T[50, 96] {\n"
    "%r = dot_general %x, %y " PLAIN " : T[50, 96]\nreturn %r\n}\n",
    "graph @f(%x: T[1, 300], %y: T[300, 200]) -> T[1, 200] {\n"
    "%w = constant splat 0.3 : T[300, 200]\n%z = mul %y, %w : T[300, 200]\n"
    "%r = dot_general %x, %z " PLAIN " : T[1, 200]\n%s = dot_general %x, %w " PLAIN " : T[1, 200]\n"
    "%t = add %r, %s : T[1, 200]\nreturn %t\n}\n",
    "graph @f(%x: T[3, 301]) -> T[3, 200] {\n%w = constant splat 0.3 : T[301, 200]\n"
    "%s = dot_general %x, %w " PLAIN " : T[3, 200]\nreturn %s\n}\n",
    "dims n: 0..60\n"
    "graph @f(%x: T[n, 300], %y: T[300, 70]) -> T[n, 70] {\n"
    "%r = dot_general %x, %y " PLAIN " : T[n, 70]\nreturn %r\n}\n",
    "graph @f(%x: T[2, 3, 20, 64], %y: T[2, 3, 40, 64], %b: T[40]) -> T[2, 3, 20, 40] {\n"
    "%r = dot_general %x, %y {x_batch = [0, 1], x_contract = [3], y_batch = [0, 1], y_contract = [3]} : T[2, "
    "3, 20, 40]\n"
    "%c = broadcast %b {axes = [3], dims = [2, 3, 20, 40]} : T[2, 3, 20, 40]\n"
    "%d = mul %r, %c : T[2, 3, 20, 40]\n%e = add %d, %c : T[2, 3, 20, 40]\nreturn %e\n}\n",
    "graph @f(%x: T[9, 4, 10], %y: T[10, 4, 50]) -> T[9, 50] {\n"
    "%r = dot_general %x, %y {x_batch = [], x_contract = [1, 2], y_batch = [], y_contract = [1, 0]} : T[9, "
    "50]\n"
    "return %r\n}\n",
    /* what is added up is computed, once stored as well; two sums in one pass over a row, and a maximum beside one */
    "graph @f(%x: T[37, 333]) -> (T[37, 333], T[37], T[37]) {\n%m = reduce %x {axes = [1], kind = max} : "
    "T[37]\n"
    "%b = broadcast %m {axes = [0], dims = [37, 333]} : T[37, 333]\n%d = sub %x, %b : T[37, 333]\n"
    "%e = mul %d, %d : T[37, 333]\n%t = reduce %e {axes = [1], kind = sum} : "
    "T[37]\n"
    "%u = reduce %d {axes = [1], kind = sum} : T[37]\n%o = reduce %e {axes = [1], kind = max} : T[37]\n"
    "%v = broadcast %t {axes = [0], dims = [37, 333]} : T[37, 333]\n%q = div %e, %v : T[37, 333]\n"
    "return %q, %u, %o\n}\n",
    "dims n: 0..100\n"
    "graph @f(%x: T[n, 5, n]) -> (T[n, 5, n]) {\n%a = abs %x : T[n, 5, n]\n%s = sqrt %a : T[n, 5, n]\n"
    "%t = reduce %s {axes = [1, 2], kind = sum} : T[n]\n"
    "%v = broadcast %t {axes = [0], dims = [n, 5, n]} : T[n, 5, n]\n%q = div %s, %v : T[n, 5, n]\n"
    "%r = reduce %q {axes = [2], kind = prod} : T[n, 5]\n"
    "%w = broadcast %r {axes = [0, 1], dims = [n, 5, n]} : T[n, 5, n]\n%y = sub %q, %w : T[n, 5, n]\nreturn "
    "%y\n}\n",
    "graph @f(%x: T[20, 333]) -> (T[20], T[333], T) {\n%a = reduce %x {axes = [1], kind = sum} : T[20]\n"
    "%b = reduce %x {axes = [0], kind = sum} : T[333]\n%c = reduce %x {axes = [0, 1], kind = sum} : T\n"
    "return %a, %b, %c\n}\n",
};

static void test_products(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        check(products[i], "f32", 37, i + 1, NULL);
        check(products[i], "f64", 37, i + 100, NULL);
        check(products[i], "bf16", 37, i + 200, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convolutions),
        cmocka_unit_test(test_networks),
        cmocka_unit_test(test_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
