/* Passes over a row that run together with those over other rows compute the same bits: kernels run by the kernel interpreter
 * before and after, for several numbers of rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "passes/pass.h"

enum { SIZE = 512, MOST_ROWS = 7 };

#define KERNEL(buffers) "kernel @k(" buffers "; %n [0, 7]) { "
#define ROWS "for %r = 0 to %n step 1 overlap { %at = imul %r, 20 "
#define COLUMN "for %c = 0 to 20 step 1 vector "
#define LOAD "%j = iadd %at, %c %a = load %x[%j] : f32 "
#define SUM "%s = " COLUMN "carry %p = f32 0 sum { " LOAD "%q = add %p, %a yield %q } "
#define MAX "%m = " COLUMN "carry %p = f32 -inf max { " LOAD "%q = max %p, %a yield %q } "
#define FIRST_STORES(to)                                             \
    "%s = " COLUMN "carry %p = f32 0 sum { " LOAD "%d = add %a, %a " \
    "store " to "[%j], %d %q = add %p, %d yield %q } "
#define IN_OUT "%x: f32 in, %y: f32 out"
#define IN_PLACE "%x: f32 in, %y: f32 out inplace %x"

static const struct {
    const char *name, *text;
    bool overlaps, inplace;
} cases[] = {
    { "three passes, one staged",
      KERNEL(IN_OUT) "local %t: f32[20] " ROWS MAX "%s = " COLUMN "carry %p = f32 0 sum { " LOAD
                     "%d = sub %a, %m %e = exp %d store %t[%c], %e %q = add %p, %e yield %q } "
                     "%i = div f32 1, %s " COLUMN
                     "{ %e = load %t[%c] : f32 %o = mul %e, %i %j = iadd %at, %c store %y[%j], %o } } }",
      true, false },
    { "the same in place, fetching ahead",
      KERNEL(IN_PLACE) "local %t: f32[20] " ROWS MAX "%s = " COLUMN "carry %p = f32 0 sum { " LOAD
                       "%f = iadd %j, 20 prefetch %x[%f], 0 "
                       "%d = sub %a, %m %e = exp %d store %t[%c], %e %q = add %p, %e yield %q } "
                       "%i = div f32 1, %s " COLUMN
                       "{ %e = load %t[%c] : f32 %o = mul %e, %i %j = iadd %at, %c store %y[%j], %o } } }",
      true, true },
    { "a value that is needed two passes later, and values of a row",
      KERNEL("%x: f32 in, %y: f32 out, %z: f32 out") ROWS SUM
      "%m = mul %s, f32 0.05 "
      "%v = " COLUMN "carry %p = f32 0 sum { " LOAD "%d = sub %a, %m %q = fma %d, %d, %p yield %q } "
      "%i = rsqrt %v " COLUMN "{ " LOAD "%d = sub %a, %m %o = mul %d, %i store %y[%j], %o } "
      "store %z[%r], %m %k = iadd %r, 8 store %z[%k], %v } }",
      true, false },
    { "two passes",
      KERNEL(IN_PLACE) ROWS "%v = " COLUMN "carry %p = f32 1 sum { " LOAD "%q = fma %a, %a, %p yield %q } "
                            "%i = rsqrt %v " COLUMN "{ " LOAD "%o = mul %a, %i store %y[%j], %o } } }",
      true, true },
    { "a factor of the row that is loaded",
      KERNEL("%x: f32 in, %g: f32 in, %y: f32 out") ROWS "%f = load %g[%r] : f32 " SUM
                                                         "%i = mul %s, %f " COLUMN "{ " LOAD
                                                         "%o = mul %a, %i store %y[%j], %o } } }",
      true, false },
    { "columns chosen by loaded numbers",
      KERNEL("%x: f32 in, %g: f32 in, %y: f32 out") ROWS SUM COLUMN
      "{ %b = load %g[%c] : f32 %w = convert %b : i64 %u = iadd %w, 8 %l = max %u, 0 %h = min %l, 19 "
      "%j = iadd %at, %h prefetch %x[%j], 0 %a = load %x[%j] : f32 %o = mul %a, %s %k = iadd %at, %c store "
      "%y[%k], %o } } }",
      true, false },
    { "the first of three passes stores as well",
      KERNEL("%x: f32 in, %y: f32 out inplace %x, %z: f32 out") ROWS FIRST_STORES("%z") MAX COLUMN
      "{ " LOAD "%o = fma %a, %s, %m store %y[%j], %o } } }",
      true, true },
    { "the first of two: the last row's come twice, the second time of what the second pass made",
      KERNEL("%x: f32 in, %y: f32 out inplace %x, %z: f32 out") ROWS FIRST_STORES("%z") COLUMN
      "{ " LOAD "%o = mul %a, %s store %y[%j], %o } } }",
      false, true },
    { "the first of three in place: the last row's would come twice",
      KERNEL("%x: f32 in, %y: f32 out inplace %x, %z: f32 out") ROWS FIRST_STORES("%y") MAX COLUMN
      "{ %o = fma %m, %m, %s %j = iadd %at, %c store %z[%j], %o } } }",
      false, true },
    { "a staged element that is read at another column",
      KERNEL(IN_OUT) "local %t: f32[20] " ROWS "%s = " COLUMN "carry %p = f32 0 sum { " LOAD
                     "store %t[%c], %a %q = add %p, %a yield %q } " COLUMN
                     "{ %b = isub 19, %c %a = load %t[%b] : f32 %o = mul %a, %s %j = iadd %at, %c store "
                     "%y[%j], %o } } }",
      false, false },
    { "a staged element that is read two passes later",
      KERNEL(IN_OUT) "local %t: f32[20] " ROWS "%s = " COLUMN "carry %p = f32 0 sum { " LOAD
                     "store %t[%c], %a %q = add %p, %a yield %q } " MAX COLUMN
                     "{ %a = load %t[%c] : f32 %o = fma %a, %s, %m %j = iadd %at, %c store %y[%j], %o } } }",
      false, false },
    { "other columns",
      KERNEL(IN_OUT) ROWS SUM "for %c = 0 to 10 step 1 vector { " LOAD
                              "%o = mul %a, %s store %y[%j], %o } } }",
      false, false },
    { "one pass", KERNEL(IN_OUT) ROWS SUM "store %y[%r], %s } }", false, false },
    { "four passes",
      KERNEL(IN_OUT) ROWS SUM MAX "%v = " COLUMN "carry %p = f32 1 sum { " LOAD
                                  "%d = sub %a, %m %q = fma %d, %s, %p yield %q } " COLUMN "{ " LOAD
                                  "%o = mul %a, %v store %y[%j], %o } } }",
      false, false },
};

/* Values of one row in the iteration over the next: a loop that carries something, with loops inside. */
static bool hands_on(const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        bool found = false;
        for (int i = 0; i < inst->n_blocks; i++) {
            for (const qn_kinst *in = inst->blocks[i]->first; in; in = in->next)
                found |= inst->op == QN_K_FOR && inst->n_results > 0 && in->op == QN_K_FOR;
            found |= hands_on(inst->blocks[i]);
        }
        if (found)
            return true;
    }
    return false;
}

static void run(const qn_kernel *k, bool inplace, int64_t n, float (*buffers)[SIZE], qn_diags *diags)
{
    int64_t args[8] = { -1 };
    for (int b = 0; b < 3; b++)
        for (int i = 0; i < SIZE; i++)
            buffers[b][i] = (float)((i * 7919 + b * 104729) % 251 - 125) / 16;
    for (int i = 0; i < k->n_buffers; i++)
        args[1 + i] = (int64_t)(intptr_t)buffers[inplace && i == 1 ? 0 : i];
    args[1 + k->n_buffers] = n;
    assert_int_equal(qn_interp_kernel(k, args, 1, diags), QUERN_OK);
}

static void overlapped_rows_are_the_same(void **state)
{
    (void)state;
    static float expected[3][SIZE], got[3][SIZE];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_kernel *before = qn_kernel_parse(cases[c].text, cases[c].name, arena, &diags);
        if (!before)
            fail_msg("%s: %s", cases[c].name, qn_diags_text(&diags, arena));
        qn_kernel *after = qn_kernel_clone(before, arena);
        qn_kernel_overlap(after);
        qn_kernel_simplify(after);
        if (qn_kernel_verify(after, &diags))
            fail_msg("%s: %s", cases[c].name, qn_diags_text(&diags, arena));
        if (hands_on(after->body) != cases[c].overlaps)
            fail_msg("%s: rows were %soverlapped:\n%s", cases[c].name, cases[c].overlaps ? "not " : "",
                     qn_kernel_print(after, arena));
        for (int64_t n = 0; n <= MOST_ROWS; n++) {
            run(before, cases[c].inplace, n, expected, &diags);
            run(after, cases[c].inplace, n, got, &diags);
            if (memcmp(got, expected, sizeof got) != 0)
                fail_msg("%s, %d rows: not the same\n%s", cases[c].name, (int)n,
                         qn_kernel_print(after, arena));
        }
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(overlapped_rows_are_the_same) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
