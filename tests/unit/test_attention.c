/* Attention as one kernel, against the interpreter: shapes that leave remainders everywhere, masks, causal, grouped heads, more
 * keys than a block, symbolic lengths, what comes before and after; on machines with 32 and with 16 registers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "frontend/text/text.h"
#include "ir/build.h"
#include "passes/pass.h"
#include "tests/support/lowered.h"
#include "tests/support/net.h"

/* Small floats that repeat late; of bools two in three. */
static void fill(qn_array *array, const qn_type *type, const int64_t *symbols, int seed, qn_arena *arena)
{
    const int64_t n = array_of_type(array, type, symbols, arena);
    for (int64_t i = 0; i < n; i++)
        if (type->dtype == QUERN_BOOL)
            ((uint8_t *)array->data)[i] = (i * 7919 + seed) % 3 != 0;
        else
            ((float *)array->data)[i] = (float)((i * 7919 + seed * 104729) % 401 - 200) / 100;
}

/* In regions, too. */
/* Runs the text's first function through the interpreter and lowered, and expects so many kernels for `op` in it. `nan` is the
 * number of the input that has one; -1: none. */
static void compare_op(qn_op op, const char *name, const char *text, const int64_t *symbols, int kernels,
                       int nan)
{
    for (int m = 0; m < LOWERED_MACHINES; m++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        qn_module *module;
        if (qn_text_parse(text, strlen(text), name, &module, &diags))
            fail_msg("%s\n%s", qn_diags_text(&diags, arena), text);
        qn_graph *graph = module->functions[0];
        qn_array inputs[8];
        for (int k = 0; k < graph->n_inputs; k++)
            fill(&inputs[k], &graph->inputs[k]->type, symbols, k, arena);
        if (nan >= 0)
            ((float *)inputs[nan].data)[inputs[nan].dims[3] * 5] = NAN; /* of the sixth query or key */
        const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                          .machine = &lowered_machines[m],
                                          .fold = qn_interp_fold };
        lowered_compare(name, graph, &options, inputs, symbols);
        if (lowered_machines[m].vector_bytes > 16) /* short vectors fit more shapes as they lie */
            assert_int_equal(lowered_count(graph, op), kernels);
        else
            assert_true(lowered_count(graph, op) >= kernels);
        qn_module_free(module);
        qn_arena_free(arena);
    }
}

static void compare(const char *name, const char *text, const int64_t *symbols, int kernels)
{
    compare_op(QN_OP_ATTENTION_PACKED, name, text, symbols, kernels, -1);
}

/* One NaN makes every result NaN that depends on it, beside masked scores and in an earlier block of keys, and no other. */
static void nan_spreads(void **state)
{
    (void)state;
    for (int i = 0; i < 32; i++) {
        char text[400], mask[40] = "";
        const int keys = i & 1 ? 600 : 20, queries = i & 16 ? 7 : 20, depth = i & 16 ? 16 : 4;
        if (keys == 600 && i & 8)
            snprintf(mask, sizeof mask, ", %%m: bool[1, 1, %d, 600]", queries);
        snprintf(text, sizeof text,
                 "graph @f(%%q: f32[1, 1, %d, %d], %%k: f32[1, 1, %d, %d], %%v: f32[1, 1, %d, 16]%s) -> "
                 "f32[1, 1, %d, 16] {\n"
                 "%%r = attention %%q, %%k, %%v%s {causal = %s, scale = 0.3} : f32[1, 1, %d, 16]\n"
                 "return %%r\n}\n",
                 queries, depth, keys, depth, keys, mask, queries, *mask ? ", %m" : "",
                 i & 2 ? "true" : "false", queries);
        compare_op(QN_OP_ATTENTION_PACKED, "NaN", text, NULL, true, i >> 2 & 1);
    }
}

static void shapes_masks_and_groups(void **state)
{
    (void)state;
    static const struct {
        int b, h, g, s, t, d, e;
        const char *mask; /* "": none */
        bool causal;
    } cases[] = {
        { 1, 2, 2, 24, 64, 16, 32, "", false },
        { 2, 3, 3, 13, 37, 7, 5, "", false },
        { 1, 4, 2, 9, 3, 1, 33, "", false },
        { 1, 6, 2, 25, 25, 20, 48, "", true },
        { 1, 1, 1, 12, 30, 8, 8, "", true }, /* queries at the end of the keys */
        { 1, 1, 1, 30, 12, 8, 8, "", true }, /* the first see nothing */
        { 2, 2, 1, 11, 40, 8, 16, "f32[2, 1, 1, 40]", false },
        { 2, 2, 2, 11, 21, 8, 16, "f32[1, 2, 11, 1]", true },
        { 1, 4, 2, 14, 35, 8, 64, "f32[1, 1, 14, 35]", true },
        { 2, 2, 2, 10, 19, 8, 16, "bool[2, 1, 10, 19]", false },
        { 2, 2, 2, 10, 19, 8, 16, "bool[2, 2, 1, 19]", true },
        { 1, 1, 1, 9, 1, 3, 3, "bool[1, 1, 9, 1]", false }, /* rows that see nothing */
        { 1, 1, 1, 14, 515, 4, 8, "", false },              /* two blocks of keys */
        { 1, 1, 1, 20, 1100, 4, 8, "", true },
        { 1, 1, 1, 600, 600, 2, 2, "", true },
        { 1, 2, 1, 9, 700, 3, 8, "bool[1, 2, 9, 700]", false },
        /* keys in place, queries side by side */
        { 1, 4, 2, 32, 24, 16, 32, "", false },
        { 2, 2, 2, 62, 40, 32, 16, "", true },  /* the last tile isn't full */
        { 1, 1, 1, 32, 72, 16, 48, "", true },  /* queries at the end of the keys */
        { 1, 1, 1, 96, 40, 16, 16, "", true },  /* the first see nothing */
        { 1, 2, 1, 64, 520, 16, 64, "", true }, /* blocks of keys */
        { 2, 2, 1, 32, 344, 16, 16, "bool[2, 1, 1, 344]", false },
        { 1, 1, 1, 96, 240, 32, 32, "", true },  /* blocks in turn; queries at the end of the keys */
        { 1, 1, 1, 256, 168, 16, 16, "", true }, /* the first see nothing, others a block and a part */
        { 1, 2, 1, 64, 136, 64, 48, "f32[1, 1, 1, 136]", false },
        { 1, 1, 1, 32, 352, 128, 32, "", true }, /* too many columns of q for that */
        { 1, 2, 2, 64, 16, 48, 32, "bool[1, 2, 1, 16]", true },
        { 2, 1, 1, 32, 8, 16, 16, "bool[2, 1, 1, 1]", false }, /* rows that see nothing */
        { 2, 1, 1, 32, 24, 16, 16, "f32[2, 1, 1, 24]", true },
        { 1, 64, 2, 1, 40, 16, 16, "bool[1, 64, 1, 40]", false }, /* heads of a group as queries */
        /* few queries: keys in place, and those of a group of heads together where there is one query */
        { 1, 2, 2, 1, 37, 16, 32, "", false },
        { 2, 6, 2, 1, 21, 32, 64, "f32[2, 1, 1, 21]", true },
        { 1, 8, 2, 1, 40, 16, 16, "bool[1, 8, 1, 40]", false },
        { 1, 30, 2, 1, 19, 16, 16, "", false }, /* more of them than a tile has rows */
        { 2, 4, 1, 1, 3, 16, 16, "bool[2, 1, 1, 3]", false },
        { 2, 2, 1, 5, 29, 16, 48, "", true },
        { 1, 3, 3, 7, 9, 16, 128, "f32[1, 1, 7, 9]", false },
        { 1, 1, 1, 7, 5, 256, 256, "", true },  /* the first see nothing */
        { 1, 2, 2, 3, 1100, 16, 16, "", true }, /* three blocks of keys */
        { 1, 2, 1, 1, 700, 16, 80, "bool[1, 2, 1, 700]", false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[800], mask[40] = "";
        if (*cases[i].mask)
            snprintf(mask, sizeof mask, ", %%m: %s", cases[i].mask);
        const int b = cases[i].b, h = cases[i].h, g = cases[i].g, s = cases[i].s, t = cases[i].t,
                  d = cases[i].d, e = cases[i].e;
        snprintf(
            text, sizeof text,
            "graph @f(%%q: f32[%d, %d, %d, %d], %%k: f32[%d, %d, %d, %d], %%v: f32[%d, %d, %d, %d]%s) -> "
            "f32[%d, %d, %d, %d] {\n"
            "%%r = attention %%q, %%k, %%v%s {causal = %s, scale = 0.3} : f32[%d, %d, %d, %d]\nreturn "
            "%%r\n}\n",
            b, h, s, d, b, g, t, d, b, g, t, e, mask, b, h, s, e, *mask ? ", %m" : "",
            cases[i].causal ? "true" : "false", b, h, s, e);
        compare("attention", text, NULL, true);
    }
}

/* A mask that hides all keys from some on: of each sequence, head or query others, of some all or none. */
static void hidden_ends(void **state)
{
    (void)state;
    static const struct {
        int b, h, g, s, t, d, e;
        const char *n; /* the last axes of how many are seen */
        bool causal;
    } cases[] = {
        { 4, 4, 2, 1, 70, 16, 16, "1, 1, 1", false },    { 3, 2, 2, 1, 1100, 16, 32, "1, 1, 1", false },
        { 2, 8, 2, 1, 1030, 16, 16, "8, 1, 1", false },  { 2, 2, 2, 5, 97, 16, 16, "1, 5, 1", true },
        { 2, 2, 1, 7, 700, 16, 16, "1, 7, 1", false },   { 3, 2, 2, 13, 71, 7, 5, "1, 13, 1", false },
        { 3, 2, 1, 14, 1100, 8, 8, "1, 1, 1", true },    { 1, 2, 1, 26, 600, 8, 8, "2, 26, 1", false },
        { 4, 2, 1, 32, 72, 16, 16, "1, 1, 1", false },   { 4, 2, 2, 64, 200, 64, 16, "1, 1, 1", true },
        { 4, 1, 1, 32, 1096, 16, 64, "1, 1, 1", false }, { 4, 1, 1, 32, 352, 128, 32, "1, 1, 1", false },
    };
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        char text[1200], mask[40];
        const int b = cases[i / 2].b, h = cases[i / 2].h, g = cases[i / 2].g, s = cases[i / 2].s,
                  t = cases[i / 2].t, d = cases[i / 2].d, e = cases[i / 2].e;
        int dims[3];
        assert_int_equal(sscanf(cases[i / 2].n, "%d, %d, %d", &dims[0], &dims[1], &dims[2]), 3);
        snprintf(mask, sizeof mask, "[%d, %d, %d, %d]", b, dims[0], dims[1], t);
        snprintf(text, sizeof text,
                 "graph @f(%%q: f32[%d, %d, %d, %d], %%k: f32[%d, %d, %d, %d], %%v: f32[%d, %d, %d, %d], "
                 "%%n: f32[%d, %s]) -> f32[%d, %d, %d, %d] {\n"
                 "%%i = iota {axis = 3, dims = %s, dtype = f32} : f32%s\n%%x = constant %d.0 : f32[]\n"
                 "%%y = broadcast %%x {axes = [], dims = [%d, %s]} : f32[%d, %s]\n%%p = mul %%n, %%y : "
                 "f32[%d, %s]\n"
                 "%%u = broadcast %%p {axes = [0, 1, 2, 3], dims = %s} : f32%s\n"
                 "%%c = compare %%i, %%u {direction = lt} : bool%s\n",
                 b, h, s, d, b, g, t, d, b, g, t, e, b, cases[i / 2].n, b, h, s, e, mask, mask, t / 2 + 1, b,
                 cases[i / 2].n, b, cases[i / 2].n, b, cases[i / 2].n, mask, mask, mask);
        const size_t used = strlen(text);
        if (i % 2)
            snprintf(text + used, sizeof text - used,
                     "%%z = constant splat 0.0 : f32%s\n%%h = constant splat -inf : f32%s\n"
                     "%%m = select %%c, %%z, %%h : f32%s\n",
                     mask, mask, mask);
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "%%r = attention %%q, %%k, %%v, %s {causal = %s, scale = 0.3} : f32[%d, %d, %d, %d]\n"
                 "return %%r\n}\n",
                 i % 2 ? "%m" : "%c", cases[i / 2].causal ? "true" : "false", b, h, s, e);
        compare("hidden ends", text, NULL, true);
    }
}

/* Lengths that are only known when it runs. */
static void symbolic_lengths(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "dims b: 1..4, s: 1..40, t: 1..90\n"
        "graph @f(%q: f32[b, 4, s, 8], %k: f32[b, 2, t, 8], %v: f32[b, 2, t, 20], %m: f32[b, 1, 1, t]) -> "
        "f32[b, 4, s, 20] {\n"
        "%r = attention %q, %k, %v, %m {scale = 0.5} : f32[b, 4, s, 20]\nreturn %r\n}\n",
        "dims b: 1..4, s: 1..2000, t: 1..2000\n"
        "graph @f(%q: f32[b, 1, s, 4], %k: f32[b, 1, t, 4], %v: f32[b, 1, t, 4]) -> f32[b, 1, s, 4] {\n"
        "%r = attention %q, %k, %v {causal = true, scale = 0.5} : f32[b, 1, s, 4]\nreturn %r\n}\n",
    };
    static const int64_t values[][3] = { { 1, 1, 1 },   { 2, 5, 3 },   { 1, 12, 32 },
                                         { 3, 13, 17 }, { 1, 23, 64 }, { 1, 40, 90 } };
    static const int64_t large[][3] = { { 1, 1, 700 }, { 2, 14, 530 }, { 1, 25, 1024 }, { 1, 520, 515 } };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        for (int k = 0; k < 2; k++)
            compare("symbolic lengths", texts[k], values[i], true);
    for (size_t i = 0; i < sizeof large / sizeof *large; i++)
        compare("long symbolic lengths", texts[1], large[i], true);
    static const char one_query[] =
        "dims b: 1..4, t: 1..2000\n"
        "graph @f(%q: f32[b, 6, 1, 16], %k: f32[b, 2, t, 16], %v: f32[b, 2, t, 32], %m: f32[b, 1, 1, t]) -> "
        "f32[b, 6, 1, 32] {\n"
        "%r = attention %q, %k, %v, %m {scale = 0.5} : f32[b, 6, 1, 32]\nreturn %r\n}\n";
    static const int64_t lengths[][2] = { { 1, 1 }, { 3, 17 }, { 2, 512 }, { 1, 1030 } };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        compare("one query, symbolic lengths", one_query, lengths[i], true);
}

/* New queries and a cache, both of any length: a step of one query reads keys where they lie, more have them packed. */
static void a_step_or_more(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "dims b: 0..4, s: 0..40, t: 0..2000\n"
        "graph @f(%q: f32[b, 6, s, 16], %k: f32[b, 2, t, 16], %v: f32[b, 2, t, 32], %m: f32[b, 1, s, t]) -> "
        "f32[b, 6, s, 32] {\n"
        "%r = attention %q, %k, %v, %m {causal = true, scale = 0.5} : f32[b, 6, s, 32]\nreturn %r\n}\n",
        "dims b: 0..4, s: 0..40, t: 0..2000\n"
        "graph @f(%q: f32[b, 4, s, 16], %k: f32[b, 4, t, 16], %v: f32[b, 4, t, 16], %m: bool[b, 1, 1, t]) -> "
        "f32[b, s, 4, 16] {\n"
        "%a = attention %q, %k, %v, %m {scale = 0.5} : f32[b, 4, s, 16]\n"
        "%r = transpose %a {perm = [0, 2, 1, 3]} : f32[b, s, 4, 16]\nreturn %r\n}\n",
    };
    static const int64_t values[][3] = { { 1, 1, 1 },   { 2, 1, 37 },  { 1, 1, 600 },
                                         { 2, 2, 130 }, { 1, 13, 50 }, { 3, 40, 40 } };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        for (int k = 0; k < 2; k++)
            compare("a step or more", texts[k], values[i], 2);
}

/* Projections whose heads lie inside: the kernel reads the queries where they are, and writes what the next product reads. */
static void between_projections(void **state)
{
    (void)state;
    compare(
        "between projections",
        "graph @f(%x: f32[2, 15, 72], %b: f32[24], %y: f32[2, 15, 24]) -> (f32[2, 15, 24], f32[2, 15, 24]) "
        "{\n"
        "%q = slice %x {start = [0, 0, 0], limit = [2, 15, 24], stride = [1, 1, 1]} : f32[2, 15, 24]\n"
        "%k = slice %x {start = [0, 0, 24], limit = [2, 15, 48], stride = [1, 1, 1]} : f32[2, 15, 24]\n"
        "%v = slice %x {start = [0, 0, 48], limit = [2, 15, 72], stride = [1, 1, 1]} : f32[2, 15, 24]\n"
        "%c = broadcast %b {axes = [2], dims = [2, 15, 24]} : f32[2, 15, 24]\n"
        "%q1 = add %q, %c : f32[2, 15, 24]\n"
        "%q2 = reshape %q1 {dims = [2, 15, 3, 8]} : f32[2, 15, 3, 8]\n"
        "%k2 = reshape %k {dims = [2, 15, 3, 8]} : f32[2, 15, 3, 8]\n"
        "%v2 = reshape %v {dims = [2, 15, 3, 8]} : f32[2, 15, 3, 8]\n"
        "%q3 = transpose %q2 {perm = [0, 2, 1, 3]} : f32[2, 3, 15, 8]\n"
        "%k3 = transpose %k2 {perm = [0, 2, 1, 3]} : f32[2, 3, 15, 8]\n"
        "%v3 = transpose %v2 {perm = [0, 2, 1, 3]} : f32[2, 3, 15, 8]\n"
        "%a = attention %q3, %k3, %v3 {causal = true, scale = 0.35} : f32[2, 3, 15, 8]\n"
        "%t = transpose %a {perm = [0, 2, 1, 3]} : f32[2, 15, 3, 8]\n"
        "%r = reshape %t {dims = [2, 15, 24]} : f32[2, 15, 24]\n"
        "%z = add %r, %y : f32[2, 15, 24]\n"
        "return %z, %r\n}\n",
        NULL, true);
}

/* Gradients as one kernel: tiles that aren't full, keys that are no whole panel, what causal and masks hide, heads that share k and
 * v, so many keys that tiles are lower. Columns that are no whole vectors are spelled out. */
static void gradients(void **state)
{
    (void)state;
    static const struct {
        int b, h, g, s, t, d, e;
        const char *mask; /* "": none */
        bool causal, one_kernel;
    } cases[] = {
        { 1, 2, 2, 24, 64, 16, 32, "", false, true },
        { 2, 4, 2, 13, 37, 16, 16, "", false, true },
        { 1, 6, 2, 25, 25, 48, 64, "", true, true },
        { 1, 1, 1, 12, 30, 16, 16, "", true, true }, /* queries at the end of the keys */
        { 1, 1, 1, 30, 12, 16, 16, "", true, true }, /* the first see nothing */
        { 2, 2, 1, 11, 40, 16, 16, "f32[2, 1, 1, 40]", false, true },
        { 2, 2, 2, 11, 21, 32, 16, "f32[1, 2, 11, 1]", true, true },
        { 2, 2, 2, 10, 19, 16, 80, "bool[2, 2, 1, 19]", true, true },
        { 1, 1, 1, 9, 1, 16, 16, "bool[1, 1, 9, 1]", false, true }, /* rows that see nothing */
        { 1, 1, 1, 14, 2500, 16, 16, "", true, true },
        { 1, 1, 1, 14, 20, 17, 16, "", false, false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[800], mask[40] = "";
        if (*cases[i].mask)
            snprintf(mask, sizeof mask, ", %%m: %s", cases[i].mask);
        const int b = cases[i].b, h = cases[i].h, g = cases[i].g, s = cases[i].s, t = cases[i].t,
                  d = cases[i].d, e = cases[i].e;
        snprintf(text, sizeof text,
                 "graph @f(%%q: f32[%d, %d, %d, %d], %%k: f32[%d, %d, %d, %d], %%v: f32[%d, %d, %d, %d], "
                 "%%g: f32[%d, "
                 "%d, %d, %d]%s) -> (f32[%d, %d, %d, %d], f32[%d, %d, %d, %d], f32[%d, %d, %d, %d]) {\n"
                 "%%x, %%y, %%z = attention_grad %%q, %%k, %%v, %%g%s {causal = %s, scale = 0.3} : "
                 "f32[%d, %d, %d, %d], f32[%d, %d, %d, %d], f32[%d, %d, %d, %d]\nreturn %%x, %%y, %%z\n}\n",
                 b, h, s, d, b, g, t, d, b, g, t, e, b, h, s, e, mask, b, h, s, d, b, g, t, d, b, g, t, e,
                 *mask ? ", %m" : "", cases[i].causal ? "true" : "false", b, h, s, d, b, g, t, d, b, g, t, e);
        compare_op(QN_OP_ATTENTION_GRAD, "gradients", text, NULL, cases[i].one_kernel, -1);
    }
    static const int64_t lengths[][3] = { { 1, 1, 1 }, { 2, 5, 3 }, { 1, 40, 90 }, { 3, 13, 17 } };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        compare_op(
            QN_OP_ATTENTION_GRAD, "gradients of symbolic lengths",
            "dims b: 1..4, s: 1..40, t: 1..90\n"
            "graph @f(%q: f32[b, 4, s, 16], %k: f32[b, 2, t, 16], %v: f32[b, 2, t, 32]) -> (f32[b, 4, s, "
            "16], "
            "f32[b, 2, t, 16], f32[b, 2, t, 32]) {\n"
            "%one = constant 1.0 : f32[]\n" /* made from nothing: it has to be in memory all the same */
            "%g = broadcast %one {axes = [], dims = [b, 4, s, 32]} : f32[b, 4, s, 32]\n"
            "%x, %y, %z = attention_grad %q, %k, %v, %g {scale = 0.5} : f32[b, 4, s, 16], f32[b, 2, t, 16], "
            "f32[b, 2, t, 32]\nreturn %x, %y, %z\n}\n",
            lengths[i], true, -1);
}

/* One query has nothing to share a packed k with; f16 has no kernel. Both are spelled out. */
static void without_a_kernel(void **state)
{
    (void)state;
    compare(
        "one query",
        "graph @f(%q: f32[1, 2, 1, 7], %k: f32[1, 2, 9, 7], %v: f32[1, 2, 9, 8], %m: bool[1, 1, 1, 9]) -> "
        "f32[1, 2, 1, 8] {\n"
        "%r = attention %q, %k, %v, %m {scale = 0.5} : f32[1, 2, 1, 8]\nreturn %r\n}\n",
        NULL, false);
    compare("few queries, keys in columns",
            "graph @f(%q: f32[1, 2, 3, 16], %k: f32[1, 2, 16, 9], %v: f32[1, 2, 9, 16]) -> "
            "f32[1, 2, 3, 16] {\n"
            "%t = transpose %k {perm = [0, 1, 3, 2]} : f32[1, 2, 9, 16]\n"
            "%r = attention %q, %t, %v {scale = 0.5} : f32[1, 2, 3, 16]\nreturn %r\n}\n",
            NULL, false);
    compare("doubles",
            "graph @f(%x: f32[1, 2, 12, 8]) -> f64[1, 2, 12, 8] {\n"
            "%q = convert %x {dtype = f64} : f64[1, 2, 12, 8]\n"
            "%r = attention %q, %q, %q {scale = 0.5} : f64[1, 2, 12, 8]\nreturn %r\n}\n",
            NULL, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_masks_and_groups), cmocka_unit_test(hidden_ends),
        cmocka_unit_test(symbolic_lengths),        cmocka_unit_test(a_step_or_more),
        cmocka_unit_test(between_projections),     cmocka_unit_test(gradients),
        cmocka_unit_test(without_a_kernel),        cmocka_unit_test(nan_spreads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
