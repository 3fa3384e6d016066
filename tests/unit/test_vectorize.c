/* Vector code computes what the loop computed: kernels run by the kernel interpreter before and after, for every trip count
 * from 0 to 70, on machines with and without masks. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "passes/pass.h"

enum { SIZE = 4096, MOST = 70 };

typedef struct {
    const char *name, *text;
    int n_buffers;
    bool vector; /* is vector code expected? */
} kernel_case;

static const kernel_case cases[] = {
#include "vectorize_cases.inc"
};

static const qn_machine machines[] = {
    { .vector_bytes = 64,
      .vector_registers = 32,
      .fma = true,
      .masked = true,
      .l2_bytes = 1 << 20,
      .features = "512" },
    { .vector_bytes = 32,
      .vector_registers = 16,
      .fma = true,
      .masked = false,
      .l2_bytes = 1 << 20,
      .features = "256" },
    { .vector_bytes = 16,
      .vector_registers = 32,
      .fma = true,
      .by_lane = true,
      .l2_bytes = 1 << 20,
      .features = "128" },
};

/* As many lanes as the values of the block have at most. */
static int most_lanes(const qn_kblock *block)
{
    int most = 1;
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_results; i++)
            if (inst->results[i].type.lanes > most)
                most = inst->results[i].type.lanes;
        for (int i = 0; i < inst->n_blocks; i++) {
            const int inside = most_lanes(inst->blocks[i]);
            most = inside > most ? inside : most;
        }
    }
    return most;
}

static void fill(float (*buffers)[SIZE])
{
    for (int b = 0; b < 4; b++)
        for (int i = 0; i < SIZE; i++)
            buffers[b][i] = (float)((i * 7919 + b * 104729) % 251 - 125) / 16;
}

static int64_t run(const qn_kernel *k, float (*buffers)[SIZE], int64_t n, qn_diags *diags)
{
    int64_t args[8] = { -1 };
    fill(buffers);
    for (int i = 0; i < k->n_buffers; i++)
        args[1 + i] = (int64_t)(intptr_t)buffers[i];
    args[1 + k->n_buffers] = n;
    assert_int_equal(qn_interp_kernel(k, args, 1, diags), QUERN_OK);
    return args[0];
}

/* The kernel of a case as it is, and vectorized for a machine. */
static qn_kernel *vectorized(const char *name, const char *text, const qn_machine *machine,
                             qn_kernel **out_before, qn_arena *arena, qn_diags *diags)
{
    qn_diags_init(diags, arena);
    *out_before = qn_kernel_parse(text, name, arena, diags);
    if (!*out_before)
        fail_msg("%s: %s", name, qn_diags_text(diags, arena));
    qn_kernel *after = qn_kernel_clone(*out_before, arena);
    qn_kernel_vectorize(after, machine);
    qn_kernel_simplify(after);
    if (qn_kernel_verify(after, diags))
        fail_msg("%s: %s", name, qn_diags_text(diags, arena));
    return after;
}

static void vector_code_computes_the_same(void **state)
{
    (void)state;
    static float expected[4][SIZE], got[4][SIZE];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (size_t m = 0; m < 2; m++) {
            qn_arena *arena = qn_arena_new();
            qn_diags diags;
            qn_kernel *before;
            qn_kernel *after = vectorized(cases[c].name, cases[c].text, &machines[m], &before, arena, &diags);
            if ((most_lanes(after->body) > 1) != cases[c].vector)
                fail_msg("%s: vector code was %sexpected:\n%s", cases[c].name, cases[c].vector ? "" : "not ",
                         qn_kernel_print(after, arena));
            for (int64_t n = 0; n <= MOST; n++) {
                int64_t status = run(before, expected, n, &diags);
                if (run(after, got, n, &diags) != status)
                    fail_msg("%s, n = %d: another status", cases[c].name, (int)n);
                for (int b = 0; b < before->n_buffers && status < 0; b++)
                    for (int i = 0; i < SIZE; i++)
                        if (!(fabsf(got[b][i] - expected[b][i]) <= 1e-5f * (1 + fabsf(expected[b][i]))))
                            fail_msg("%s on %s, n = %d: buffer %d element %d is %g, expected %g\n%s",
                                     cases[c].name, machines[m].features, (int)n, b, i, (double)got[b][i],
                                     (double)expected[b][i], qn_kernel_print(after, arena));
            }
            qn_arena_free(arena);
        }
    }
}

/* Loops over elements of one or two bytes, and the lanes of each on the three machines. */
static const struct {
    const char *name, *text;
    int lanes[3];
} narrow_cases[] = {
    { "bytes are moved",
      "kernel @k(%x: u8 in, %y: u8 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector { %j = iadd %i, 5 %a = load %x[%j] : u8 store %y[%i], %a } }",
      { 64, 32, 16 } },
    { "halves are moved",
      "kernel @k(%x: f16 in, %y: f16 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector { %a = load %x[%i] : f16 store %y[%i], %a } }",
      { 32, 16, 8 } },
    { "bytes are turned round",
      "kernel @k(%x: u8 in, %y: u8 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector {"
      "    %j = isub 1000, %i %a = load %x[%j] : u8 store %y[%i], %a } }",
      { 64, 32, 16 } },
    { "bytes are compared and chosen",
      "kernel @k(%x: i8 in, %y: i8 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector {"
      "    %a = load %x[%i] : i8 %j = iadd %i, 7 %b = load %x[%j] : i8 %p = compare lt %a, %b"
      "    %q = compare lt %i, 70 %m = and %p, %q %c = xor %a, %b %d = select %m, %c, %b store %y[%i], %d } "
      "}",
      { 64, 32, 16 } },
    { "bytes under a mask of indices",
      "kernel @k(%x: u8 in, %y: u8 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector {"
      "    %m = compare ge %i, 5 %j = isub %i, 5 %a = load %x[%j] : u8, mask %m, other u8 9"
      "    store %y[%i], %a } }",
      { 64, 8, 4 } },
    { "bytes of rows of 32",
      "kernel @k(%x: u8 in, %y: u8 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector {"
      "    %j = imod %i, 32 %a = load %x[%j] : u8 store %y[%i], %a } }",
      { 32, 32, 16 } },
    { "bytes that are multiplied",
      "kernel @k(%x: u8 in, %y: u8 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector { %a = load %x[%i] : u8 %b = mul %a, %a store %y[%i], %b } }",
      { 16, 8, 4 } },
    { "bytes that become numbers",
      "kernel @k(%x: u8 in, %y: u8 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector {"
      "    %a = load %x[%i] : u8 %b = convert %a : i32 %c = add %b, i32 300 %d = convert %c : u8"
      "    store %y[%i], %d } }",
      { 16, 8, 4 } },
    { "bytes apart",
      "kernel @k(%x: u8 in, %y: u8 out; %n [0, 1000]) {"
      "  for %i = 0 to %n step 1 vector {"
      "    %j = imul %i, 2 %a = load %x[%j] : u8 store %y[%i], %a } }",
      { 16, 8, 4 } },
};

static void loops_over_bytes_fill_vectors(void **state)
{
    (void)state;
    static float expected[4][SIZE], got[4][SIZE];
    for (size_t c = 0; c < sizeof narrow_cases / sizeof *narrow_cases; c++) {
        for (size_t m = 0; m < sizeof machines / sizeof *machines; m++) {
            qn_arena *arena = qn_arena_new();
            qn_diags diags;
            qn_kernel *before;
            qn_kernel *after =
                vectorized(narrow_cases[c].name, narrow_cases[c].text, &machines[m], &before, arena, &diags);
            if (most_lanes(after->body) != narrow_cases[c].lanes[m])
                fail_msg("%s on %s: %d lanes, expected %d:\n%s", narrow_cases[c].name, machines[m].features,
                         most_lanes(after->body), narrow_cases[c].lanes[m], qn_kernel_print(after, arena));
            for (int64_t n = 0; n <= 200; n++) {
                assert_int_equal(run(before, expected, n, &diags), run(after, got, n, &diags));
                if (memcmp(expected, got, sizeof got))
                    fail_msg("%s on %s, n = %d: other bytes\n%s", narrow_cases[c].name, machines[m].features,
                             (int)n, qn_kernel_print(after, arena));
            }
            qn_arena_free(arena);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(vector_code_computes_the_same),
                                        cmocka_unit_test(loops_over_bytes_fill_vectors) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
