/* qn_kernel_legalize: the same bits before and after, on f16 and bf16, and fma without the instruction. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "ir/kernel_edit.h"

static uint64_t random_state = 7;
static uint64_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state ^ (random_state >> 31)) * 0xbf58476d1ce4e5b9u;
}

static void run(const qn_kernel *k, int64_t *args, int64_t tasks, qn_arena *arena)
{
    qn_diags diags;
    qn_diags_init(&diags, arena);
    if (qn_kernel_verify(k, &diags) || qn_interp_kernel(k, args, tasks, &diags))
        fail_msg("%s", qn_diags_text(&diags, arena));
}

/* The text with # replaced by a dtype. */
static const char *with_dtype(const char *text, const char *dtype, qn_arena *arena)
{
    size_t n = 0, width = strlen(dtype);
    char *out = qn_arena_alloc(arena, strlen(text) * width + 1);
    for (; *text; text++) {
        if (*text == '#') {
            memcpy(out + n, dtype, width);
            n += width;
        } else {
            out[n++] = *text;
        }
    }
    return out;
}

static const char narrow_text[] =
    "kernel @narrow(%x: # in, %y: # out, %p: bool out) {\n"
    "  %at = imul task, 24\n  %b = iadd %at, 8\n  %c = iadd %at, 16\n"
    "  %u = load %x[%at] : #x8\n  %v = load %x[%b] : #x8\n  %w = load %x[%c] : #x8\n"
    "  %0 = add %u, %v  %1 = mul %0, %w  %2 = div %1, %u  %3 = fma %u, %v, %w\n"
    "  %4 = max %2, %3  %5 = neg %4  %6 = sqrt %v  %7 = floor %w  %8 = sub %6, %7\n"
    "  %n = convert %7 : i8x8  %nf = convert %n : #x8  %9 = scale2 %u, %nf\n"
    "  %q = compare lt %u, %v  %10 = select %q, %5, %8\n"
    "  %sum = reduce sum %3  %s = splat %sum : #x8  %11 = mul %10, %s\n"
    "  %12 = abs %11  %13 = round %12  %nan = is_nan %13\n"
    "  store %y[%at], %10  store %y[%b], %9  store %y[%c], %13  store %p[%at], %nan store "
    "%p[%b], %q\n"
    "  %14 = reduce max %u  %15 = reduce prod %v  store %y[%c], %15  %e = extract %2, 3\n"
    "  %f = add %14, %e  %d = iadd %c, 1 store %y[%d], %f\n"
    "}\n";

static bool has_narrow_arithmetic(const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        if ((inst->op == QN_K_UNARY || inst->op == QN_K_BINARY || inst->op == QN_K_FMA ||
             inst->op == QN_K_COMPARE || inst->op == QN_K_REDUCE || inst->op == QN_K_SCALE2) &&
            (inst->operands[0]->type.dtype == QUERN_F16 || inst->operands[0]->type.dtype == QUERN_BF16))
            return true;
        for (int i = 0; i < inst->n_blocks; i++)
            if (has_narrow_arithmetic(inst->blocks[i]))
                return true;
    }
    return false;
}

static bool has_fma(const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next)
        if (inst->op == QN_K_FMA)
            return true;
    return false;
}

static void test_narrow(void **state)
{
    (void)state;
    enum { TASKS = 4000, N = 24 * TASKS };
    static uint16_t x[N + 8], expected[N + 8], got[N + 8];
    static unsigned char p_expected[N + 8], p_got[N + 8];
    const char *names[2] = { "f16", "bf16" };
    for (int d = 0; d < 2; d++)
        for (int fma = 0; fma < 2; fma++) {
            qn_machine machine = { .vector_bytes = 32, .fma = fma };
            qn_arena *arena = qn_arena_new();
            qn_diags diags;
            qn_diags_init(&diags, arena);
            qn_kernel *k = qn_kernel_parse(with_dtype(narrow_text, names[d], arena), "narrow", arena, &diags);
            if (!k)
                fail_msg("%s", qn_diags_text(&diags, arena));
            for (int i = 0; i < N; i++) /* half of them around 1 */
                x[i] = (uint16_t)(i % 2 ? random_bits() >> 20 : (random_bits() >> 20 & 0x87ff) | 0x3800);
            int64_t args[] = { -1, (int64_t)(uintptr_t)x, (int64_t)(uintptr_t)expected,
                               (int64_t)(uintptr_t)p_expected };
            run(k, args, TASKS, arena);
            qn_kernel_legalize(k, &machine);
            qn_kernel_simplify(k);
            assert_false(has_narrow_arithmetic(k->body));
            assert_true(fma || !has_fma(k->body));
            args[2] = (int64_t)(uintptr_t)got;
            args[3] = (int64_t)(uintptr_t)p_got;
            run(k, args, TASKS, arena);
            for (int i = 0; i < N; i++) {
                bool nan = d ? (expected[i] & 0x7fff) > 0x7f80 : (expected[i] & 0x7fff) > 0x7c00;
                bool got_nan = d ? (got[i] & 0x7fff) > 0x7f80 : (got[i] & 0x7fff) > 0x7c00;
                if (nan ? !got_nan : got[i] != expected[i])
                    fail_msg("%s, element %d: %04x, not %04x", names[d], i, got[i], expected[i]);
            }
            assert_memory_equal(p_got, p_expected, sizeof p_got);
            qn_arena_free(arena);
        }
}

/* Values whose sums cancel and whose products end between two floats. */
static double fma_operand(bool f64, int which, const double *others)
{
    uint64_t bits = random_bits();
    int exponent = (int)(bits >> 40 & 31) - 16;
    double v = (double)(bits & 0xfffff) * 0x1p-20 + 1;
    if (bits >> 60 & 1)
        v += ldexp((double)(random_bits() >> 12), -53); /* all bits in use */
    if (which == 2 && bits >> 61 & 1)                   /* close to minus the product */
        v = -others[0] * others[1] * (1 + ldexp((double)(bits >> 50 & 3), -(int)(bits >> 52 & 63)));
    else
        v = ldexp(bits >> 62 & 1 ? v : -v, exponent);
    return f64 ? v : (float)v;
}

static void test_fma(void **state)
{
    (void)state;
    enum { N = 40000 };
    static double x[3][N], r[N];
    static float xf[3][N], rf[N];
    static const double special[] = { 0, -0.0, INFINITY, -INFINITY, NAN, 1, -1 };
    qn_machine machine = { .vector_bytes = 16 };
    for (int f64 = 0; f64 < 2; f64++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        const char *text = "kernel @fma(%a: # in, %b: # in, %c: # in, %y: # out) {\n"
                           "  %i = imul task, 4 %x = load %a[%i] : #x4 %y0 = load %b[%i] : #x4\n"
                           "  %z = load %c[%i] : #x4 %r = fma %x, %y0, %z store %y[%i], %r }";
        text = with_dtype(text, f64 ? "f64" : "f32", arena);
        qn_kernel *k = qn_kernel_parse(text, "fma", arena, &diags);
        qn_kernel_legalize(k, &machine);
        assert_false(has_fma(k->body));
        for (int i = 0; i < N; i++) {
            double v[3];
            for (int o = 0; o < 3; o++) {
                v[o] = i < 343 ? special[i / (o == 0 ? 49 : o == 1 ? 7 : 1) % 7] : fma_operand(f64, o, v);
                x[o][i] = v[o];
                xf[o][i] = (float)v[o];
            }
        }
        int64_t args[] = { -1, 0, 0, 0, (int64_t)(uintptr_t)(f64 ? (void *)r : (void *)rf) };
        for (int o = 0; o < 3; o++)
            args[1 + o] = (int64_t)(uintptr_t)(f64 ? (void *)x[o] : (void *)xf[o]);
        run(k, args, N / 4, arena);
        for (int i = 0; i < N; i++) {
            double wanted = f64 ? fma(x[0][i], x[1][i], x[2][i]) : fmaf(xf[0][i], xf[1][i], xf[2][i]);
            double got = f64 ? r[i] : rf[i];
            if (isnan(wanted) ? !isnan(got) : memcmp(&wanted, &got, 8) != 0)
                fail_msg("fma %a * %a + %a: %a, not %a", x[0][i], x[1][i], x[2][i], got, wanted);
        }
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_narrow),
        cmocka_unit_test(test_fma),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
