/* Programs as text: what lowering makes prints, reads back to the letter and runs alike; mistakes in a text are found, and
 * said where they are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/text/text.h"
#include "tests/support/eval.h"
#include "tests/support/lowered.h"
#include "tests/support/random_graph.h"

static qn_program *parse(const char *text, qn_arena *arena, qn_diags *diags)
{
    int n;
    qn_program **programs;
    assert_true(qn_text_has_programs(text, strlen(text)));
    if (qn_text_parse_programs(text, strlen(text), "p.qn", arena, &n, &programs, diags))
        return NULL;
    assert_int_equal(n, 1);
    return programs[0];
}

/* ---- what lowering makes ---- */

static void round_trip(const char *what, qn_graph *graph, const qn_pass_options *options,
                       const qn_array *inputs, const int64_t *symbols)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_array *expected = QN_NEW_ARRAY(arena, qn_array, graph->n_outputs);
    qn_array *found = QN_NEW_ARRAY(arena, qn_array, graph->n_outputs);
    qn_program *p = NULL;
    if (lowered_run(graph, true, options, inputs, symbols, expected, &p, arena, &diags))
        fail_msg("%s: %s", what, qn_diags_text(&diags, arena));
    const char *text = qn_program_print(p, arena);
    qn_program *again = parse(text, arena, &diags);
    if (!again)
        fail_msg("%s: %s\n%s", what, qn_diags_text(&diags, arena), text);
    assert_string_equal(qn_program_print(again, arena), text);
    if (program_run(again, graph, inputs, symbols, found, arena, &diags))
        fail_msg("%s, read back: %s\n%s", what, qn_diags_text(&diags, arena), text);
    for (int i = 0; i < graph->n_outputs; i++)
        expect_near(what, &found[i], &expected[i], 0);
    qn_arena_free(arena);
}

static void test_random_programs(void **state)
{
    (void)state;
    static const int flags[] = {
        0,
        QN_RANDOM_INTS | QN_RANDOM_NARROW,
        QN_RANDOM_REDUCE | QN_RANDOM_SYMBOLS,
        QN_RANDOM_CONTRACT,
        QN_RANDOM_CONTROL,
        QN_RANDOM_CONTROL | QN_RANDOM_SYMBOLS,
        QN_RANDOM_INDEX | QN_RANDOM_SYMBOLS,
        QN_RANDOM_ALL,
    };
    for (size_t f = 0; f < sizeof flags / sizeof *flags; f++)
        for (int seed = 20000; seed < 20040; seed++) {
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .machine = seed % 2 ? &lowered_machine : NULL,
                                              .blas = seed % 3 ? QN_BLAS_NEVER : QN_BLAS_ALWAYS };
            qn_module *module = qn_graph_random((uint64_t)seed, flags[f], 12);
            qn_graph *graph = qn_module_find(module, "main");
            const int64_t *symbols = qn_random_symbols(module, (uint64_t)seed, module->arena);
            const qn_array *inputs = qn_random_inputs(graph, (uint64_t)seed, symbols, module->arena);
            char name[64];
            snprintf(name, sizeof name, "random graph %d of flags %d", seed, flags[f]);
            round_trip(name, graph, &options, inputs, symbols);
            qn_module_free(module);
        }
}

static void test_collectives(void **state)
{
    (void)state;
    static const char text[] =
        "graph @main(%x: f32[4, 3]) -> (f32[4, 3], f32[4, 3], f32[4, 3], f32[4, 3], i64[]) {\n"
        "  %0 = all_reduce %x {kind = mean} : f32[4, 3]\n"
        "  %1 = all_gather %0 {ranks = 1} : f32[4, 3]\n"
        "  %2 = reduce_scatter %1 {kind = max, ranks = 1} : f32[4, 3]\n"
        "  %3 = broadcast_rank %2 {root = 0} : f32[4, 3]\n"
        "  %4 = constant 1.5 : f32[]\n"
        "  %5 = broadcast %4 {axes = [], dims = [4, 3]} : f32[4, 3]\n"
        "  %6 = all_reduce %5 {kind = sum} : f32[4, 3]\n"
        "  %7 = add %3, %6 : f32[4, 3]\n"
        "  %8 = rank : i64[]\n"
        "  return %1, %2, %3, %7, %8\n"
        "}\n";
    qn_arena *arena = qn_arena_new();
    qn_array inputs[1];
    qn_graph *graph = lowered_parsed("collectives", text, inputs, arena);
    const qn_pass_options options = { .machine = &lowered_machine };
    round_trip("collectives", graph, &options, inputs, NULL);
    qn_module_free(graph->module);
    qn_arena_free(arena);
}

/* ---- texts ---- */

/* Every kind of line there is. Copies 8 numbers twice over, by way of the workspace. */
static const char everything[] =
    "program @\"every thing\" {\n"
    "  dims n: 1..64, m: 0..\n"
    "  bound \"b 1\": 0..64 limit n\n"
    "  node 0 \"/gather (Gather, opset 13)\"\n"
    "  io 0 input \"x\" f32[n, 8]\n"
    "  io 1 state \"w\" f32[4] trainable at 64 = [1, 2, 3, 4] \"w.0\"\n"
    "  io 2 output \"y\" f32[n, 8] alias 0\n"
    "  io 3 output f32[m]\n"
    "  %0 = io 0 : f32 8*n \"x\"\n"
    "  %1 = weights 0 : f32 16 \"c\" = f32[4, 4] splat 0.5\n"
    "  %2 = arena 0 live 0..10 : f32 8*n \"a\"\n"
    "  %3 = arena 64*floordiv(n + 1, 2) live 0..10 : f32 8*n\n"
    "  %4 = slot %2 : f32 8*n\n"
    "  %5 = slot %3 : f32 8*n\n"
    "  %6 = view %0 at 0 loop 0 stride 32 : f32 8\n"
    "  %7 = view %4 at 0 loop 0 stride 32 : f32 8 \"\"\n"
    "  %8 = arena 128*floordiv(n + 1, 2) live 2..9 : bool 1\n"
    "  %9 = arena 128*floordiv(n + 1, 2) + 64 live 6..7 : i64 1\n"
    "  %10 = io 2 : f32 8*n\n"
    "  %11 = io 3 : f32 m\n"
    "  arena 128*floordiv(n + 1, 2) + 128 bound 128*floordiv(n + 1, 2) weights 192\n"
    "  loop 0 \"scan\" count n reverse {\n"
    "    copy %6 to %7\n"
    "  }\n"
    "  loop 1 \"while\" count 3 while %8 test {\n"
    "    call 0 \"more\" (%8) tasks 1\n"
    "  } {\n"
    "    copy %4 to %5\n"
    "    swap %4 %5\n"
    "  }\n"
    "  call 1 (%9; n) tasks 1\n"
    "  bind \"b 1\" %9\n"
    "  call 2 \"fill /gather\" (%11; m) tasks floordiv(m + 7, 8)\n"
    "  if %8 \"if\" {\n"
    "    copy %4 to %10\n"
    "  } else {\n"
    "  }\n"
    "  check m = \"b 1\" node 0\n"
    "}\n"
    "\n"
    "kernel @more(%m: bool out) {\n"
    "  store %m[0], bool true\n"
    "}\n"
    "\n"
    "kernel @count(%c: i64 out; %n [0, 64]) {\n"
    "  store %c[0], %n\n"
    "}\n"
    "\n"
    "kernel @fill(%y: f32 out; %m [0, 1099511627776]) {\n"
    "  %0 = imul task, 8\n"
    "  %1 = iadd %0, 8\n"
    "  %2 = min %1, %m\n"
    "  for %3 = %0 to %2 step 1 {\n"
    "    store %y[%3], f32 0.5\n"
    "  }\n"
    "}\n";

static void test_every_line(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_program *p = parse(everything, arena, &diags);
    assert_string_equal(qn_diags_text(&diags, arena), "");
    assert_string_equal(qn_program_print(p, arena), everything);
    assert_int_equal(p->n_loops, 2);
    assert_int_equal(p->n_entry_symbols, 2);
    assert_true(p->io[1].trainable);
    assert_int_equal(p->io[1].initial_offset, 64);
    assert_int_equal(p->io[2].alias, 0);
    assert_true(p->steps.items[0].reverse);
    qn_arena_free(arena);
}

/* Contents by hash stand at the end of their program; a text may have several, and comments. */
static void test_several(void **state)
{
    (void)state;
    static const char text[] = "# two\n"
                               "program @a {\n"
                               "  io 0 output \"y\" f32[2]\n"
                               "  %0 = weights 0 : f32 2 = f32[2] $1234\n"
                               "  %1 = io 0 : f32 2\n"
                               "  arena 0 bound 0 weights 64\n"
                               "  copy %0 to %1 # so it is\n"
                               "}\n"
                               "data $1234 : f32[2] = x\"0000803f00000040\"\n"
                               "program @b { arena 0 bound 0 weights 64 }\n";
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    int n;
    qn_program **programs;
    qn_diags_init(&diags, arena);
    assert_int_equal(qn_text_parse_programs(text, strlen(text), "two.qn", arena, &n, &programs, &diags),
                     QUERN_OK);
    assert_int_equal(n, 2);
    assert_memory_equal(programs[0]->buffers[0].tensor->data, "\0\0\x80\x3f\0\0\0\x40", 8);
    assert_string_equal(programs[1]->name, "b");
    assert_false(qn_text_has_programs("# program\ngraph @f() -> () { return }", 37));
    qn_arena_free(arena);
}

/* The text with its first `from` replaced is refused with that message. */
static void refuse(const char *from, const char *to, const char *message)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    const char *at = strstr(everything, from);
    assert_non_null(at);
    const char *text =
        qn_arena_printf(arena, "%.*s%s%s", (int)(at - everything), everything, to, at + strlen(from));
    if (parse(text, arena, &diags))
        fail_msg("accepted: '%s' for '%s'", to, from);
    assert_string_equal(qn_diags_text(&diags, arena), message);
    qn_arena_free(arena);
}

static void test_mistakes_of_form(void **state)
{
    (void)state;
    refuse("program @\"every thing\"", "program",
           "p.qn:1:9: expected the name of the program (@name), found '{'");
    refuse("limit n", "n", "p.qn:3:22: expected limit and the largest value of the dimension, found 'n'");
    refuse("io 1 state", "io 2 state", "p.qn:6:6: the next io is 1");
    refuse("alias 0", "alias 2", "p.qn:7:6: io 2 is an alias of io 2, which does not come before it");
    refuse("output f32[m]", "output f32[k]", "p.qn:8:6: no line of dims or bound names a dimension of io 3");
    refuse("%1 = weights", "%7 = weights", "p.qn:10:3: the next buffer is %1");
    refuse("%1 = weights 0", "%1 = nowhere",
           "p.qn:10:8: expected a place: arena, io, weights, view or slot, found 'nowhere'");
    refuse("slot %3", "slot %13", "p.qn:14:13: there is no %13 above");
    refuse("f32 8*n\n  %4", "f32 8*q\n  %4", "p.qn:12:53: no line of dims or bound names q");
    refuse("copy %6 to %7", "copy %6, %7",
           "p.qn:23:12: expected to and the buffer that is written, found ','");
    refuse("swap %4 %5\n  }", "swap %4 %5\n",
           "p.qn:41:1: expected a step (call, library, collective, text, wait, copy, loop, if, swap, bind, "
           "check) or "
           "'}', found 'kernel'");
    refuse("check m = \"b 1\" node 0", "check m \"b 1\" node 0", "p.qn:38:11: expected '=', found '\"b 1\"'");
    refuse("tasks 1\n  bind", "bind", "p.qn:31:18: expected tasks and their number, found 'bind'");
    refuse("store %c[0], %n", "store %c[0], %k", "p.qn:46:18: %k is not defined here");
    refuse("store %y[%3], f32 0.5", "store %y[%3], f32", "p.qn:55:3: expected a constant of f32");
    refuse("kernel @more(%m: bool out) {\n  store %m[0], bool true",
           "kernel @more(%c: i64 out; %n [0, 64]) {\n  store %c[0], %n",
           "p.qn:45:1: this kernel is the same as kernel 0");
}

static void test_mistakes_of_meaning(void **state)
{
    (void)state;
    refuse("f32[n, 8] alias", "f64[n, 8] alias",
           "p.qn:19:3: %10 is 8*n elements of f32; its io is f64[n, 8]");
    refuse("weights 192", "weights 32",
           "p.qn:10:3: %1 has 64 bytes from 0 on: more than the 32 of the weights");
    refuse("f32 16 \"c\"", "f32 12 \"c\"", "p.qn:10:3: %1 has 48 bytes of f32; its contents have 64 of f32");
    refuse("arena 0 live", "arena 32 live", "p.qn:11:3: %2 begins at 32, which is no multiple of 64");
    refuse("arena 0 live 0..10", "arena 0 live 0..12", "p.qn:11:3: %2 is live from step 0 to 12 of 12");
    refuse("+ 128 bound", "+ 64 bound",
           "p.qn:18:3: %9 has 64 bytes from 128*floordiv(n + 1, 2) + 64 on: more than the "
           "128*floordiv(n + 1, 2) + 64 of the workspace");
    refuse("stride 32 : f32 8\n", "stride 64 : f32 8\n",
           "p.qn:15:3: %6 reaches to byte 64*n - 32 of %0, which has 32*n");
    refuse("view %0 at 0 loop 0", "view %0 at 0 loop 2",
           "p.qn:15:3: %6 moves with loop 2, which there is not");
    refuse("loop 1 \"while\"", "loop 0 \"while\"", "p.qn:25:3: there is a loop 0 already");
    refuse("live 6..7", "live 7..7", "p.qn:31:3: step 6 uses %9, which is live from step 7 to 7");
    refuse("call 0 \"more\" (%8)", "call 3 \"more\" (%8)", "p.qn:26:5: step 3 calls kernel 3 of 3");
    refuse("(%8) tasks", "(%9) tasks", "p.qn:26:5: step 3 uses %9, which is live from step 6 to 7");
    refuse("(%9; n)", "(%9)",
           "p.qn:31:3: step 6 gives kernel count 1 buffers and 0 parameters; it takes 1 and 1");
    refuse("(%9; n)", "(%9; 65)",
           "p.qn:31:3: step 6 gives kernel count 65 as n; it takes multiples of 1 from 0 to 64");
    refuse("(%11; m)", "(%1; m)", "p.qn:33:3: step 8 lets kernel fill write into the weights");
    refuse("    copy %4 to %5\n", "    copy %4 to %6\n", "p.qn:28:5: step 4 uses %6 outside of loop 0");
    refuse("node 0\n}", "node 1\n}", "p.qn:38:3: step 11: there is no node 1");
    refuse("bind \"b 1\" %9", "bind n %9", "p.qn:32:3: step 7 binds n, which is no bound dimension");
    refuse("    copy %4 to %10", "    copy %4 to %7", "p.qn:35:5: step 10 uses %7 outside of loop 0");
    refuse("swap %4 %5", "swap %2 %3", "p.qn:29:5: step 5 exchanges what are no slots");
    refuse("if %8", "if %9", "p.qn:34:3: step 9 uses %9, which is live from step 6 to 7");
    refuse("while %8 test", "while %2 test", "p.qn:25:3: step 2: the condition %2 is no bool scalar");
    refuse("limit n", "limit \"b 1\"",
           "program every thing: the limit of the dimension b 1 is itself unknown");
}

/* ---- contents ---- */

/* A chain through the workspace, `%s`: where %2 and %3 lie, and the last step. */
static const char chain[] = "program @chain {\n"
                            "  io 0 input \"x\" f32[16]\n"
                            "  io 1 output \"y\" f32[16]\n"
                            "  %%0 = io 0 : f32 16\n"
                            "  %%1 = io 1 : f32 16\n"
                            "  %%2 = arena %d live 0..%d : f32 16\n"
                            "  %%3 = arena %d live 0..%d : f32 16\n"
                            "  arena 128 bound 64 weights 0\n"
                            "  %s\n"
                            "}\n"
                            "kernel @neg(%%x: f32 in, %%y: f32 out%s) {\n"
                            "  for %%i = 0 to 16 step 1 {\n"
                            "    %%v = load %%x[%%i] : f32\n"
                            "    %%w = neg %%v\n"
                            "    store %%y[%%i], %%w\n"
                            "  }\n"
                            "}\n";

static void expect_chain(int two, int three, int last, const char *steps, bool inplace, const char *message)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    parse(qn_arena_printf(arena, chain, two, last, three, last, steps, inplace ? " inplace %x" : ""), arena,
          &diags);
    assert_string_equal(qn_diags_text(&diags, arena), message);
    qn_arena_free(arena);
}

static void test_contents(void **state)
{
    (void)state;
    static const char through[] = "copy %0 to %2 call 0 (%2, %3) tasks 1 copy %3 to %1",
                      again[] = "copy %0 to %2 call 0 (%2, %3) tasks 1 copy %2 to %1";
    expect_chain(0, 64, 2, through, false, "");
    expect_chain(0, 64, 2, again, false, "");
    expect_chain(64, 64, 2, through, true, "");
    expect_chain(64, 64, 2, through, false,
                 "p.qn:9:17: step 1: kernel neg writes %3 over %2, which it also uses");
    expect_chain(0, 0, 2, again, true,
                 "p.qn:9:41: step 2 reads %2, whose bytes another buffer has overwritten");
    expect_chain(0, 64, 2, "copy %2 to %1 copy %0 to %2 copy %0 to %3", false,
                 "p.qn:9:3: step 0 reads %2, which nothing has written");
    /* the second iteration reads what the first has overwritten */
    expect_chain(0, 0, 3, "copy %0 to %2 loop 0 count 2 { copy %2 to %1 copy %0 to %3 }", false,
                 "p.qn:9:34: step 2 reads %2, whose bytes another buffer has overwritten");
    expect_chain(0, 0, 3, "loop 0 count 2 { copy %0 to %2 copy %2 to %1 copy %0 to %3 }", false, "");
}

static void expect_collective(const char *step, const char *message)
{
    static const char program[] = "program @c {\n"
                                  "  node 0 \"all_gather\"\n"
                                  "  io 0 input \"x\" f32[16]\n"
                                  "  io 1 output \"y\" f32[64]\n"
                                  "  %%0 = io 0 : f32 16\n"
                                  "  %%1 = io 1 : f32 64\n"
                                  "  arena 0 bound 0 weights 0\n"
                                  "  collective %s\n"
                                  "}\n";
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    parse(qn_arena_printf(arena, program, step), arena, &diags);
    assert_string_equal(qn_diags_text(&diags, arena), message);
    qn_arena_free(arena);
}

static void test_collective_lines(void **state)
{
    (void)state;
    expect_collective("all_gather ranks 4 (%0, %1) node 0", "");
    expect_collective("reduce_scatter max ranks 4 \"name\" (%1, %0) node 0", "");
    expect_collective("all_gather ranks 3 (%0, %1) node 0",
                      "p.qn:8:3: step 0: %0 and %1 don't fit all_gather");
    expect_collective("all_reduce sum (%0, %1) node 0", "p.qn:8:3: step 0: %0 and %1 don't fit all_reduce");
    expect_collective("all_reduce sum (%0, %0) node 1", "p.qn:8:3: step 0: there is no node 1");
    expect_collective("rank (%0)", "p.qn:8:3: step 0 writes the rank into what is no i64 scalar");
    expect_collective("all_reduce prod (%0, %0) node 0",
                      "p.qn:8:25: expected sum, mean, max or min, found 'prod'");
    expect_collective("all_redduce sum (%0, %0) node 0",
                      "p.qn:8:14: expected a collective, did you mean 'all_reduce'?");
    expect_collective("broadcast_rank (%0, %0) node 0",
                      "p.qn:8:29: expected root and the number of a rank, found '('");
    expect_collective("all_gather ranks 0 (%0, %1) node 0", "p.qn:8:25: there is at least 1 rank");
}

static void test_started_lines(void **state)
{
    (void)state;
    expect_collective("start all_reduce sum (%1, %1) node 0\n  wait \"name\" (%1, %1)", "");
    expect_collective("start all_gather ranks 4 (%0, %1) node 0\n  wait (%0, %1)",
                      "p.qn:8:3: step 0 starts all_gather: only all_reduce is started");
    expect_collective("start rank (%0)\n  wait (%0, %0)",
                      "p.qn:8:3: step 0 starts rank: only all_reduce is started");
    expect_collective("start all_reduce sum (%1, %1) node 0", "p.qn:8:3: nothing waits for step 0");
    expect_collective("all_reduce sum (%1, %1) node 0\n  wait (%1, %1)",
                      "p.qn:9:3: step 1 does not wait for the oldest collective that was started");
    expect_collective(
        "start all_reduce sum (%0, %0) node 0\n  collective start all_reduce sum (%1, %1) node 0\n"
        "  wait (%1, %1)\n  wait (%0, %0)",
        "p.qn:10:3: step 2 does not wait for the oldest collective that was started");
    expect_collective(
        "start all_reduce sum (%1, %1) node 0\n  collective all_gather ranks 4 (%0, %1) node 0\n"
        "  wait (%1, %1)",
        "p.qn:9:3: step 1 uses what step 0 has given to a collective, before it has waited");
    expect_collective(
        "start all_reduce sum (%1, %1) node 0\n"
        "  loop 0 count 2 { collective start all_reduce sum (%0, %0) node 0 wait (%0, %0) }\n  wait (%1, %1)",
        "p.qn:9:3: step 1 starts a collective inside, before what step 0 has started was waited for");
}

/* What does not need a collective's result comes before what waits for it; the second has nothing to go on beside. */
static void test_collectives_beside_kernels(void **state)
{
    (void)state;
    static const char text[] = "graph @main(%x: f32[4096], %y: f32[64, 64]) -> (f32[4096], f32[64, 64]) {\n"
                               "  %0 = mul %x, %x : f32[4096]\n"
                               "  %1 = all_reduce %0 {kind = sum} : f32[4096]\n"
                               "  %2 = exp %1 : f32[4096]\n"
                               "  %3 = sin %y : f32[64, 64]\n"
                               "  %4 = all_reduce %3 {kind = sum} : f32[64, 64]\n"
                               "  %5 = exp %4 : f32[64, 64]\n"
                               "  return %2, %5\n"
                               "}\n";
    static const char *const order[] = {
        "start all_reduce", "call ", "start all_reduce", "wait", "call ", "wait", "call ", "kernel"
    };
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_array inputs[2], outputs[2];
    qn_program *p = NULL;
    qn_graph *graph = lowered_parsed("beside", text, inputs, arena);
    const qn_pass_options options = { .machine = &lowered_machine };
    round_trip("beside", graph, &options, inputs, NULL);
    assert_int_equal(lowered_run(graph, true, &options, inputs, NULL, outputs, &p, arena, &diags), QUERN_OK);
    const char *printed = qn_program_print(p, arena), *at = strstr(printed, "bound ");
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        const char *found = strstr(at, order[i]);
        if (!found)
            fail_msg("no %s behind number %zu of\n%s", order[i], i, printed);
        at = found + strlen(order[i]);
    }
    int views = 0; /* both results take the place of their operands */
    for (int i = 0; i < p->n_buffers; i++)
        views += p->buffers[i].place == QN_PLACE_VIEW;
    assert_int_equal(views, 2);
    qn_module_free(graph->module);
    qn_arena_free(arena);
}

/* Plans of random programs, spoilt by laying each buffer over the start of the workspace in turn: most are found. */
static void test_spoilt_plans(void **state)
{
    (void)state;
    int spoilt = 0, found = 0;
    for (int seed = 1; seed <= 100; seed++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module = qn_graph_random((uint64_t)seed, QN_RANDOM_ALL, 24);
        const qn_pass_options options = { .math = QN_MATH_DEFAULT };
        qn_program *p;
        assert_int_equal(qn_lower(qn_module_find(module, "main"), &options, arena, &p, &diags), QUERN_OK);
        assert_int_equal(qn_memplan(p, &diags), QUERN_OK);
        if (qn_program_verify(p, &diags))
            fail_msg("seed %d: %s\n%s", seed, qn_diags_text(&diags, arena), qn_program_print(p, arena));
        for (int i = 0; i < p->n_buffers; i++) {
            qn_pbuffer *b = &p->buffers[i];
            if (b->place != QN_PLACE_ARENA || qn_dim_is(b->offset, 0) || !qn_dim_is_const(b->elements))
                continue;
            const qn_dim was = b->offset;
            b->offset = qn_dim_const(p->dims, 0);
            spoilt++;
            found += qn_program_verify(p, &diags) != QUERN_OK;
            b->offset = was;
        }
        qn_module_free(module);
        qn_arena_free(arena);
    }
    if (spoilt < 20 || found < spoilt / 2)
        fail_msg("%d of %d spoilt plans were found", found, spoilt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_programs),
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_collective_lines),
        cmocka_unit_test(test_started_lines),
        cmocka_unit_test(test_collectives_beside_kernels),
        cmocka_unit_test(test_every_line),
        cmocka_unit_test(test_several),
        cmocka_unit_test(test_mistakes_of_form),
        cmocka_unit_test(test_mistakes_of_meaning),
        cmocka_unit_test(test_contents),
        cmocka_unit_test(test_spoilt_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
