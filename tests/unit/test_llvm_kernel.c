/* Machine code of whole kernels against the interpreter: memory, lanes, loops and branches for every element type and
 * lane count; non-temporal stores; random kernels. Buffers end at pages that must not be touched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_eval.h"
#include "tests/support/jit_kernel.h"

static const qn_dtype dtypes[] = { QUERN_BOOL, QUERN_I8,  QUERN_I16, QUERN_I32, QUERN_I64,
                                   QUERN_U8,   QUERN_U16, QUERN_U32, QUERN_U64, QUERN_F16,
                                   QUERN_BF16, QUERN_F32, QUERN_F64 };
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };
static const int lane_counts[] = { 1, 4, 8, 16 };
static const char *const cpus[] = { NULL, "x86-64-v3" };

static void compare_text(const char *text, const int64_t *elements, const int64_t *params, int64_t tasks)
{
    for (int c = 0; c < 2; c++) {
        qn_arena *arena = qn_arena_new();
        kernel_compare(kernel_parsed(text, arena), elements, params, tasks, cpus[c]);
        qn_arena_free(arena);
    }
}

static void everywhere(qn_kernel *make(qn_arena *arena, qn_dtype dtype, int lanes), const int64_t *elements)
{
    for (size_t l = 0; l < sizeof lane_counts / sizeof *lane_counts; l++)
        for (int d = 0; d < N_DTYPES; d++)
            for (int c = 0; c < 2; c++) {
                qn_arena *arena = qn_arena_new();
                qn_kernel *k = make(arena, dtypes[d], lane_counts[l]);
                if (k)
                    kernel_compare(k, elements, NULL, 2, cpus[c]);
                qn_arena_free(arena);
            }
}

/* ---- tables ---- */

/* Every lane count; indices beyond the table and below 0 count modulo its size. Two tables read by one index stay two. */
static void test_lookup(void **state)
{
    (void)state;
    for (int lanes = 1; lanes <= 64; lanes *= 2) {
        qn_arena *arena = qn_arena_new();
        qn_kernel *k = qn_kernel_new(arena, "lookup");
        qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_I32, true, false, 0);
        qn_kbuffer *y = qn_kernel_add_buffer(k, "y", QUERN_F32, false, true, 0);
        qn_kbuilder b = qn_kb_new(k);
        float tables[2][QN_LOOKUP];
        for (int i = 0; i < QN_LOOKUP; i++) {
            tables[0][i] = 1 / (3 + (float)i);
            tables[1][i] = i == 7 ? -tables[0][i] : tables[0][i];
        }
        for (int t = 0; t < 2; t++) {
            qn_kvalue *index = qn_kb_load(&b, x, qn_kb_index(&b, 0), lanes);
            qn_kb_store(&b, y, qn_kb_index(&b, t * lanes), qn_kb_lookup(&b, tables[t], index), NULL);
        }
        qn_kernel_simplify(k);
        const char *text = qn_kernel_print(k, arena);
        assert_string_equal(qn_kernel_print(kernel_parsed(text, arena), arena), text);
        for (int c = 0; c < 2; c++)
            kernel_compare(kernel_parsed(text, arena), (int64_t[]){ lanes, 2 * lanes }, NULL, 1, cpus[c]);
        if (lanes == 16) { /* what it does with given indices */
            int32_t at[16] = { 0, 1, 31, 32, -1, -32, INT32_MAX, INT32_MIN, 7, 39 };
            float got[32];
            int64_t args[] = { -1, (int64_t)(uintptr_t)at, (int64_t)(uintptr_t)got };
            qn_diags diags;
            qn_diags_init(&diags, arena);
            assert_int_equal(qn_interp_kernel(k, args, 1, &diags), QUERN_OK);
            for (int i = 0; i < 32; i++)
                assert_true(got[i] == tables[i / 16][(uint32_t)at[i % 16] % QN_LOOKUP]);
        }
        qn_arena_free(arena);
    }
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    assert_null(
        qn_kernel_parse("kernel @k(%x: f32 in) {\n  %0 = lookup i32 1 [0, 1, 2]\n}\n", "t", arena, &diags));
    assert_null(qn_kernel_parse(
        "kernel @k(%x: f32 in) {\n  %0 = lookup i64 1 [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, "
        "16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]\n}\n",
        "t", arena, &diags));
    assert_non_null(strstr(qn_diags_text(&diags, arena), "gives f32 for i32"));
    qn_arena_free(arena);
}

/* Bytes of a table of 16 by the lower four bits of others, then side by side as numbers; loads that keep their order. */
static void test_bytes(void **state)
{
    (void)state;
    static const qn_dtype numbers[] = { QUERN_I16, QUERN_F16, QUERN_F32, QUERN_U32, QUERN_I64 };
    for (int lanes = 8; lanes <= 64; lanes *= 2)
        for (size_t d = 0; d < sizeof numbers / sizeof *numbers; d++) {
            qn_arena *arena = qn_arena_new();
            qn_kernel *k = qn_kernel_new(arena, "bytes");
            qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_U8, true, false, 0);
            qn_kbuffer *y = qn_kernel_add_buffer(k, "y", numbers[d], false, true, 0);
            qn_kbuilder b = qn_kb_new(k);
            qn_kvalue *table = qn_kb_load(&b, x, qn_kb_index(&b, 0), 16);
            qn_kvalue *index = qn_kb_load_in_order(&b, x, qn_kb_index(&b, 16), lanes);
            qn_kvalue *joined = qn_kb_join(&b, numbers[d], qn_kb_pick(&b, index, table));
            qn_kb_store(&b, y, qn_kb_index(&b, 0), joined, NULL);
            qn_kernel_simplify(k);
            const char *text = qn_kernel_print(k, arena);
            assert_non_null(strstr(text, " in_order\n"));
            assert_string_equal(qn_kernel_print(kernel_parsed(text, arena), arena), text);
            for (int c = 0; c < 2; c++)
                kernel_compare(kernel_parsed(text, arena), (int64_t[]){ 16 + lanes, joined->type.lanes },
                               NULL, 1, cpus[c]);
            uint8_t in[80], out[64], expected[64];
            for (int i = 0; i < 80; i++)
                in[i] = (uint8_t)(i < 16 ? 11 * i + 3 : 37 * i);
            for (int i = 0; i < lanes; i++)
                expected[i] = in[in[16 + i] % 16];
            int64_t args[] = { -1, (int64_t)(uintptr_t)in, (int64_t)(uintptr_t)out };
            qn_diags diags;
            qn_diags_init(&diags, arena);
            assert_int_equal(qn_interp_kernel(k, args, 1, &diags), QUERN_OK);
            if (qn_dtype_is_int(numbers[d])) /* a NaN may become another */
                assert_memory_equal(out, expected, (size_t)lanes);
            qn_arena_free(arena);
        }
    static const char *const mistakes[][2] = {
        { "%0 = load %x[0] : u8x8\n  %1 = pick %0, %0", "gives u8 for u8 from u8x16" },
        { "%0 = load %x[0] : u8x16\n  %1 = pick i32x16 1, %0", "gives u8 for u8 from u8x16" },
        { "%0 = load %x[0] : u8x16\n  %1 = join %0 : f32x8", "joins bytes" },
        { "%0 = load %x[0] : u8x16\n  %1 = join %0 : u8x16", "joins bytes" },
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_diags_init(&diags, arena);
        assert_null(
            qn_kernel_parse(qn_arena_printf(arena, "kernel @k(%%x: u8 in) {\n  %s\n}\n", mistakes[i][0]), "t",
                            arena, &diags));
        if (!strstr(qn_diags_text(&diags, arena), mistakes[i][1]))
            fail_msg("%s", qn_diags_text(&diags, arena));
        qn_arena_free(arena);
    }
}

/* ---- memory ---- */

/* 45 elements: whole vectors, then a masked tail that ends at the buffer's end; the masked lanes are x[…] = other. The
 * tail's lanes beyond the buffer must not be read or written. Then the same through gather and scatter. */
static qn_kernel *make_memory(qn_arena *arena, qn_dtype dtype, int lanes)
{
    qn_kernel *k = qn_kernel_new(arena, "memory");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", dtype, true, false, 0);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", dtype, false, true, 0);
    qn_kbuffer *g = qn_kernel_add_buffer(k, "g", dtype, false, true, 0);
    qn_kbuffer *t = qn_kernel_add_local(k, "t", dtype, 64);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *n = qn_kb_index(&b, 45);
    qn_kinst *loop =
        qn_kb_for(&b, qn_kb_index(&b, 0), n, qn_kb_index(&b, lanes), QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *i = qn_loop_counter(loop);
    qn_kvalue *at = qn_kb_ramp(&b, i, lanes);
    qn_kvalue *inside = qn_kb_compare(&b, QN_LT, at, qn_kb_splat(&b, n, lanes));
    qn_ktype type = { dtype, lanes };
    qn_kvalue *other =
        qn_dtype_is_float(dtype) ? qn_kb_float(&b, type, 3) : qn_kb_const(&b, type, (qn_scalar){ .i = 1 });
    qn_kvalue *v = qn_kb_load_masked(&b, x, i, lanes, inside, NULL);
    qn_kb_store(&b, y, i, v, inside);
    qn_kvalue *w = qn_kb_load_masked(&b, x, i, lanes, inside, other);
    qn_kb_store(&b, t, i, w, NULL);
    qn_kb_prefetch(&b, x, qn_kb_iadd(&b, i, qn_kb_index(&b, 1000000)), 0);
    /* backwards through the local buffer */
    qn_kvalue *back = qn_kb_binary(&b, QN_OP_SUB, qn_kb_splat(&b, qn_kb_index(&b, 44), lanes), at);
    qn_kb_store(&b, g, back, qn_kb_load_masked(&b, t, at, lanes, inside, NULL), inside);
    qn_kb_end_for(&b, loop, NULL);
    if (lanes <= 16) /* unmasked */
        qn_kb_store(&b, y, qn_kb_index(&b, 3), qn_kb_load(&b, x, qn_kb_index(&b, 1), lanes), NULL);
    return k;
}

static void memory(void **state)
{
    (void)state;
    everywhere(make_memory, (int64_t[]){ 45, 45, 45 });
}

/* ---- lanes ---- */

static qn_kernel *make_lanes(qn_arena *arena, qn_dtype dtype, int lanes)
{
    static const qn_kind kinds[] = { QN_SUM, QN_PROD, QN_KIND_MAX, QN_KIND_MIN };
    int mask[64], at = 0;
    qn_kernel *k = qn_kernel_new(arena, "lanes");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", dtype, true, false, 0);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", dtype, false, true, 0);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *a = qn_kb_load(&b, x, qn_kb_index(&b, 0), lanes);
    qn_kvalue *c = qn_kb_load(&b, x, qn_kb_index(&b, 5), lanes);
    for (int n = 1; n <= 16; n *= 2)
        for (int shift = 1; shift < 2 * lanes; shift = shift * 2 + 1) {
            for (int i = 0; i < n; i++)
                mask[i] = (i * shift + shift) % (2 * lanes);
            qn_kb_store(&b, y, qn_kb_index(&b, at), qn_kb_shuffle(&b, a, c, n, mask), NULL);
            at += n;
        }
    for (int lane = 0; lane < lanes; lane += 3) {
        qn_kvalue *one = qn_kb_extract(&b, a, lane);
        qn_kb_store(&b, y, qn_kb_index(&b, at), qn_kb_splat(&b, one, lanes), NULL);
        at += lanes;
    }
    if (qn_dtype_is_int(dtype)) {
        qn_kvalue *ramp = qn_kb_ramp(&b, qn_kb_extract(&b, a, 0), lanes);
        qn_kb_store(&b, y, qn_kb_index(&b, at), ramp, NULL);
        at += lanes;
    }
    for (int i = 0; i < 4; i++) {
        bool extreme = kinds[i] >= QN_KIND_MAX;
        if (dtype == QUERN_BOOL ? !extreme : extreme && qn_dtype_is_float(dtype))
            continue; /* of zeros either sign: tested below */
        qn_kb_store(&b, y, qn_kb_index(&b, at++), qn_kb_reduce(&b, kinds[i], a), NULL);
    }
    assert_true(at <= 400);
    return k;
}

static void lanes(void **state)
{
    (void)state;
    everywhere(make_lanes, (int64_t[]){ 32, 400 });
    compare_text("kernel @extremes(%x: f32 in, %y: f32 out) {\n"
                 "  %i = imul task, 16\n"
                 "  %v = load %x[%i] : f32x16\n"
                 "  %one = add %v, f32x16 0\n" /* no -0 */
                 "  %a = reduce max %one\n"
                 "  %b = reduce min %one\n"
                 "  %o = imul task, 2\n"
                 "  %p = iadd %o, 1\n"
                 "  store %y[%o], %a\n"
                 "  store %y[%p], %b\n"
                 "}\n",
                 (int64_t[]){ 1600, 200 }, NULL, 100);
}

/* ---- control ---- */

static void loops(void **state)
{
    (void)state;
    static const char text[] =
        "kernel @loops(%x: f32 in, %y: f32 out, %c: i64 out; %n, %m) {\n"
        "  %s, %k = for %i = 0 to %n step 1 carry %a = f32 0, %e = 0 {\n"
        "    %low = imul %i, 2\n"
        "    %t = for %j = %low to %m step 3 carry %b = %a {\n"
        "      %v = load %x[%j] : f32\n"
        "      %p = add %b, %v\n"
        "      yield %p\n"
        "    }\n"
        "    %f = add %e, %low\n"
        "    yield %t, %f\n"
        "  }\n"
        "  store %y[task], %s\n"
        "  store %c[task], %k\n"
        "  %u = for %i = 0 to 6 step 2 unroll carry %a = %s {\n"
        "    %at = iadd %i, task\n"
        "    %v = load %x[%at] : f32\n"
        "    %w = sub %v, %a\n"
        "    yield %w\n"
        "  }\n"
        "  %o = iadd task, 4\n"
        "  store %y[%o], %u\n"
        "  %p, %q = for %i = 0 to %n step 1 carry %r = 1, %s2 = 1 {\n" /* swaps what it carries */
        "    %t2 = add %r, %s2\n"
        "    yield %s2, %t2\n"
        "  }\n"
        "  store %c[%o], %p\n"
        "}\n";
    for (int64_t n = 0; n < 5; n++)
        for (int64_t m = 0; m < 8; m += 3)
            compare_text(text, (int64_t[]){ 16, 8, 8 }, (int64_t[]){ n, m }, 4);
}

static void branches(void **state)
{
    (void)state;
    compare_text("kernel @branches(%x: i64 in, %y: i64 out, %z: f32 out) {\n"
                 "  %v = load %x[task] : i64\n"
                 "  %small = compare lt %v, 4\n"
                 "  %odd.v = and %v, 1\n"
                 "  %odd = compare ne %odd.v, 0\n"
                 "  %r, %f = if %small {\n"
                 "    %d = add %v, %v\n"
                 "    %inner = if %odd {\n"
                 "      store %z[task], f32 7\n"
                 "      yield %d\n"
                 "    } else {\n"
                 "      yield %v\n"
                 "    }\n"
                 "    yield %inner, f32x4 1\n"
                 "  } else {\n"
                 "    %l = for %i = 0 to %v step 1 carry %a = %v {\n"
                 "      %b = mul %a, 3\n"
                 "      yield %b\n"
                 "    }\n"
                 "    yield %l, f32x4 2\n"
                 "  }\n"
                 "  if %odd { store %y[task], %r }\n"
                 "  %first = extract %f, 2\n"
                 "  %o = iadd task, 64\n"
                 "  store %z[%o], %first\n"
                 "}\n",
                 (int64_t[]){ 64, 64, 128 }, NULL, 64);
}

static void checks(void **state)
{
    (void)state;
    /* The second fails in no task; the vector one in most. Nothing after a failed check happens. */
    compare_text("kernel @checks(%x: i64 in, %y: i64 out) {\n"
                 "  %v = load %x[task] : i64\n"
                 "  %fine = compare lt %v, 8\n"
                 "  check %fine, 3\n"
                 "  for %i = 0 to 4 step 1 {\n"
                 "    %s = iadd %i, task\n"
                 "    %w = load %x[%s] : i64\n"
                 "    %good = compare lt %w, 7\n"
                 "    check %good, 5\n"
                 "  }\n"
                 "  store %y[task], %v\n"
                 "}\n",
                 (int64_t[]){ 40, 36 }, NULL, 36);
}

/* ---- non-temporal stores ---- */

static qn_kernel *make_nontemporal(qn_arena *arena, int align)
{
    qn_kernel *k = qn_kernel_new(arena, "nontemporal");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_F32, true, false, 4);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", QUERN_F32, false, true, align);
    qn_kbuilder b = qn_kb_new(k);
    qn_kinst *loop = qn_kb_for(&b, qn_kb_index(&b, 0), qn_kb_index(&b, 64), qn_kb_index(&b, 16),
                               QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *i = qn_loop_counter(loop);
    qn_kb_store(&b, y, i, qn_kb_load(&b, x, i, 16), NULL)->nontemporal = true;
    /* an index that is no multiple of the vector, and a masked one: ordinary stores */
    qn_kvalue *odd = qn_kb_iadd(&b, i, qn_kb_index(&b, 3));
    qn_kvalue *v = qn_kb_load(&b, x, odd, 16);
    qn_kb_store(&b, y, odd, v, NULL)->nontemporal = true;
    qn_ktype mask = { QUERN_BOOL, 16 };
    qn_kvalue *some = qn_kb_compare(&b, QN_GT, v, qn_kb_float(&b, (qn_ktype){ QUERN_F32, 16 }, 0));
    assert_true(some->type.lanes == mask.lanes);
    qn_kb_store(&b, y, qn_kb_iadd(&b, i, qn_kb_index(&b, 80)), v, some)->nontemporal = true;
    qn_kb_end_for(&b, loop, NULL);
    return k;
}

static int count(const char *text, const char *word)
{
    int n = 0;
    for (const char *at = strstr(text, word); at; at = strstr(at + 1, word))
        n++;
    return n;
}

static void nontemporal_stores(void **state)
{
    (void)state;
    for (int c = 0; c < 2; c++) {
        qn_arena *arena = qn_arena_new();
        qn_target target = { .cpu = cpus[c] };
        /* 80 elements of x end at a page: x + 3 is read from 64 + 3 on */
        kernel_compare(make_nontemporal(arena, 4), (int64_t[]){ 80, 160 }, NULL, 1, cpus[c]); /* aligned */
        kernel_compare(make_nontemporal(arena, 4), (int64_t[]){ 80, 161 }, NULL, 1,
                       cpus[c]); /* by chance not */
        const char *unknown = kernel_text(make_nontemporal(arena, 4), &target, QN_EMIT_ASSEMBLY, arena);
        const char *known = kernel_text(make_nontemporal(arena, 64), &target, QN_EMIT_ASSEMBLY, arena);
        int vectors = strstr(known, "zmm") ? 1 : 2;
        assert_int_equal(count(known, "\tvmovntps"), vectors);
        assert_int_equal(count(unknown, "\tvmovntps"), vectors); /* in one of two versions */
        assert_int_equal(count(unknown, "\tmovnt") + count(known, "\tmovnt"), 0);
        assert_int_equal(count(known, "\tsfence"), 1);
        /* Aligned, but perhaps in place of x, found in the cache then: two versions again. */
        qn_kernel *inplace = make_nontemporal(arena, 64);
        inplace->buffers[1]->inplace = 0;
        kernel_compare(inplace, (int64_t[]){ 80, 160 }, NULL, 1, cpus[c]);
        const char *perhaps = kernel_text(inplace, &target, QN_EMIT_ASSEMBLY, arena);
        assert_int_equal(count(perhaps, "\tvmovntps"), vectors);
        assert_int_equal(count(perhaps, "\tsfence"), 1);
        assert_int_equal(count(perhaps, "\tretq"), 2);
        qn_arena_free(arena);
    }
}

/* ---- random kernels ---- */

enum { MOST_VALUES = 256, RANDOM_ELEMENTS = 64 };

typedef struct generator {
    qn_kbuilder b;
    uint64_t state;
    qn_kbuffer *in[N_DTYPES], *out[N_DTYPES];
    int64_t next_out[N_DTYPES];
    qn_kvalue *values[MOST_VALUES];
    int n_values, n_left; /* instructions still to make */
} generator;

static uint64_t draw(generator *g, uint64_t below)
{
    g->state = g->state * 6364136223846793005u + 1442695040888963407u;
    return (g->state >> 33) % below;
}

static qn_kvalue *any_value(generator *g)
{
    return g->values[draw(g, (uint64_t)g->n_values)];
}

static void keep(generator *g, qn_kvalue *v)
{
    g->values[g->n_values < MOST_VALUES ? g->n_values++ : (int)draw(g, MOST_VALUES)] = v;
}

/* A value of that type: one that is there, or one converted, splat and sliced into it. */
static qn_kvalue *value_as(generator *g, qn_ktype type)
{
    qn_kvalue *v = any_value(g);
    for (int tries = 0; tries < 8 && !qn_ktype_equal(v->type, type); tries++)
        v = any_value(g);
    v = qn_kb_convert(&g->b, type.dtype, v);
    if (v->type.lanes != type.lanes)
        v = qn_kb_splat(&g->b, qn_kb_extract(&g->b, v, (int)draw(g, (uint64_t)v->type.lanes)), type.lanes);
    return v;
}

static bool is_random_op(qn_op fn, qn_dtype dtype)
{
    bool is_float = qn_dtype_is_float(dtype);
    if (!qn_keval_accepts(fn, dtype))
        return false;
    if (fn == QN_OP_POW)
        return !is_float;
    /* max and min of zeros may give either; rem of floats is expanded before */
    bool loose = is_float && (fn == QN_OP_MAX || fn == QN_OP_MIN || fn == QN_OP_RELU || fn == QN_OP_REM);
    return qn_keval_is_exact(fn) && !loose;
}

static void make_value(generator *g)
{
    qn_kbuilder *b = &g->b;
    qn_kvalue *v = any_value(g), *w = value_as(g, v->type);
    qn_ktype type = v->type;
    int mask[16], n = 1 << draw(g, 5);
    switch (draw(g, 8)) {
    case 0: keep(g, qn_kb_compare(b, (qn_direction)draw(g, 6), v, w)); return;
    case 1: keep(g, qn_kb_select(b, value_as(g, (qn_ktype){ QUERN_BOOL, type.lanes }), v, w)); return;
    case 2: keep(g, qn_kb_convert(b, dtypes[draw(g, N_DTYPES)], v)); return;
    case 3:
        for (int i = 0; i < n; i++)
            mask[i] = (int)draw(g, 2 * (uint64_t)type.lanes);
        keep(g, qn_kb_shuffle(b, v, w, n, mask));
        return;
    case 4: {
        int d = (int)draw(g, N_DTYPES), lanes = lane_counts[draw(g, 4)];
        qn_kvalue *at = value_as(g, (qn_ktype){ QUERN_I64, 1 });
        at = qn_kb_imin(b, qn_kb_imax(b, at, qn_kb_index(b, 0)), qn_kb_index(b, RANDOM_ELEMENTS - lanes));
        keep(g, qn_kb_load(b, g->in[d], at, lanes));
        return;
    }
    case 5:
        if (qn_dtype_is_float(type.dtype)) {
            keep(g, qn_kb_fma(b, v, w, value_as(g, type)));
            return;
        }
        break;
    case 6:
        if (type.dtype != QUERN_BOOL) {
            qn_kind kind = qn_dtype_is_float(type.dtype) ? (qn_kind)draw(g, 2) : (qn_kind)draw(g, 4);
            keep(g, qn_kb_reduce(b, kind, v));
            return;
        }
        break;
    default: break;
    }
    for (int tries = 0; tries < 50; tries++) {
        qn_op fn = (qn_op)draw(g, QN_N_OPS);
        bool unary = qn_keval_is_unary(fn);
        if ((!unary && !qn_keval_is_binary(fn)) || !is_random_op(fn, type.dtype))
            continue;
        keep(g, unary ? qn_kb_unary(b, fn, v) : qn_kb_binary(b, fn, v, w));
        return;
    }
}

static void make_store(generator *g)
{
    qn_kvalue *v = any_value(g), *mask = NULL;
    int d = 0;
    while (dtypes[d] != v->type.dtype)
        d++;
    int64_t at = g->next_out[d];
    if (at + v->type.lanes > RANDOM_ELEMENTS)
        at = 0;
    g->next_out[d] = at + v->type.lanes;
    if (draw(g, 4) == 0)
        mask = value_as(g, (qn_ktype){ QUERN_BOOL, v->type.lanes });
    qn_kb_store(&g->b, g->out[d], qn_kb_index(&g->b, at), v, mask);
}

static void make_block(generator *g, int depth);

static void make_loop(generator *g, int depth)
{
    qn_kvalue *carried[2] = { any_value(g), any_value(g) }, *yields[2];
    qn_ktype types[2] = { carried[0]->type, carried[1]->type };
    qn_kvalue *high = value_as(g, (qn_ktype){ QUERN_I64, 1 });
    high = qn_kb_imin(&g->b, qn_kb_imax(&g->b, high, qn_kb_index(&g->b, 0)), qn_kb_index(&g->b, 3));
    if (draw(g, 3) == 0)
        high = qn_kb_index(&g->b, 2);
    qn_ktag tag = draw(g, 2) ? QN_TAG_UNROLL : QN_TAG_SERIAL;
    qn_kinst *loop =
        qn_kb_for(&g->b, qn_kb_index(&g->b, 0), high, qn_kb_index(&g->b, 1), tag, 2, carried, NULL);
    int n_before = g->n_values;
    for (int i = 0; i < 3; i++)
        keep(g, &loop->blocks[0]->arguments[i]);
    if (g->n_values < MOST_VALUES)
        make_block(g, depth + 1);
    for (int i = 0; i < 2; i++)
        yields[i] = g->n_values < MOST_VALUES ? value_as(g, types[i]) : &loop->blocks[0]->arguments[1 + i];
    qn_kb_end_for(&g->b, loop, yields);
    g->n_values = n_before; /* what the body made is not seen outside */
    for (int i = 0; i < 2; i++)
        keep(g, &loop->results[i]);
}

static void make_branch(generator *g, int depth)
{
    qn_kvalue *condition = value_as(g, (qn_ktype){ QUERN_BOOL, 1 });
    qn_ktype type = any_value(g)->type;
    int n_before = g->n_values;
    qn_kinst *branch = qn_kb_if(&g->b, condition);
    make_block(g, depth + 1);
    qn_kvalue *yield = value_as(g, type);
    qn_kb_else(&g->b, branch, 1, &yield);
    g->n_values = n_before;
    make_block(g, depth + 1);
    yield = value_as(g, type);
    qn_kb_end_if(&g->b, branch, 1, &yield);
    g->n_values = n_before;
    keep(g, &branch->results[0]);
}

static void make_block(generator *g, int depth)
{
    for (int n = 3 + (int)draw(g, 12); n > 0 && g->n_left > 0 && g->n_values < MOST_VALUES - 8; n--) {
        g->n_left--;
        uint64_t kind = draw(g, 10);
        if (kind == 0 && depth < 3)
            make_loop(g, depth);
        else if (kind == 1 && depth < 3)
            make_branch(g, depth);
        else if (kind <= 3)
            make_store(g);
        else
            make_value(g);
    }
}

static qn_kernel *make_random(qn_arena *arena, uint64_t seed)
{
    generator maker = { .state = seed, .n_left = 60 }, *g = &maker;
    qn_kernel *k = qn_kernel_new(arena, "random");
    for (int d = 0; d < N_DTYPES; d++)
        g->in[d] = qn_kernel_add_buffer(k, "in", dtypes[d], true, false, 0);
    for (int d = 0; d < N_DTYPES; d++)
        g->out[d] = qn_kernel_add_buffer(k, "out", dtypes[d], false, true, 0);
    g->b = qn_kb_new(k);
    keep(g, qn_kb_task(&g->b));
    for (int d = 0; d < N_DTYPES; d++)
        keep(g, qn_kb_load(&g->b, g->in[d], qn_kb_index(&g->b, 4 * d), lane_counts[draw(g, 4)]));
    make_block(g, 0);
    for (int i = 0; i < 8; i++)
        make_store(g);
    return k;
}

static void random_kernels(void **state)
{
    (void)state;
    int64_t elements[2 * N_DTYPES];
    for (int i = 0; i < 2 * N_DTYPES; i++)
        elements[i] = RANDOM_ELEMENTS;
    const char *count = getenv("QUERN_TEST_KERNELS");
    uint64_t n = count ? strtoull(count, NULL, 10) : 60;
    for (uint64_t seed = 1; seed <= n; seed++) {
        qn_arena *arena = qn_arena_new();
        kernel_compare(make_random(arena, seed), elements, NULL, 3, cpus[seed % 2]);
        qn_arena_free(arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory),      cmocka_unit_test(lanes),      cmocka_unit_test(loops),
        cmocka_unit_test(branches),    cmocka_unit_test(checks),     cmocka_unit_test(nontemporal_stores),
        cmocka_unit_test(test_lookup), cmocka_unit_test(test_bytes), cmocka_unit_test(random_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
