/* Random kernels through everything that is done to kernels, judged by the interpreter: what a pass leaves computes the same
 * bits for each trip count from 0 to 100. Values are small integers, so sums do not depend on their order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "ir/kernel_edit.h"

enum { IN = 1024, REGION = 512, N_REGIONS = 24, POOL = 64, MOST_TRIPS = 100 };

/* ---- a kernel from a seed ---- */

typedef struct generator {
    uint64_t state;
    qn_kernel *k;
    qn_kbuilder b;
    qn_kbuffer *x, *z, *idx, *table, *y, *w;
    qn_kvalue *counter; /* of the vector loop */
    qn_kvalue *outer;   /* of the loop around it */
    qn_kvalue *floats[POOL], *ints[POOL], *bools[POOL];
    int n_floats, n_ints, n_bools;
    int n_regions[2]; /* used of y and w */
    bool checks;
} generator;

static int draw(generator *g, int n)
{
    g->state = g->state * 6364136223846793005u + 1442695040888963407u;
    return (int)((g->state >> 33) % (uint64_t)n);
}

static qn_kvalue *pick(generator *g, qn_kvalue **pool, int n)
{
    return pool[draw(g, n)];
}

static qn_kvalue *index_const(generator *g, int64_t v)
{
    return qn_kb_index(&g->b, v);
}

static qn_kvalue *constant(generator *g, qn_dtype dtype, int v)
{
    qn_scalar imm = { .i = v };
    if (qn_dtype_is_float(dtype))
        imm.f = v;
    return qn_kb_const(&g->b, qn_ktype_make(dtype, 1), imm);
}

static void add_float(generator *g, qn_kvalue *v)
{
    /* kept small, so that reductions of it are exact */
    v = qn_kb_binary(&g->b, QN_OP_MIN, v, constant(g, QUERN_F32, 1000));
    v = qn_kb_binary(&g->b, QN_OP_MAX, v, constant(g, QUERN_F32, -1000));
    g->floats[g->n_floats < POOL ? g->n_floats++ : draw(g, POOL)] = v;
}

static void add_int(generator *g, qn_kvalue *v)
{
    g->ints[g->n_ints < POOL ? g->n_ints++ : draw(g, POOL)] = v;
}

static void add_bool(generator *g, qn_kvalue *v)
{
    g->bools[g->n_bools < POOL ? g->n_bools++ : draw(g, POOL)] = v;
}

/* An element of an input: affine in the counter, wrapped round, or by an index that was loaded. */
static qn_kvalue *input_index(generator *g)
{
    qn_kbuilder *b = &g->b;
    qn_kvalue *at = qn_kb_imul(b, g->counter, index_const(g, draw(g, 4)));
    at = qn_kb_iadd(b, at, qn_kb_imul(b, g->outer, index_const(g, draw(g, 50))));
    switch (draw(g, 6)) {
    case 0: return qn_kb_load(b, g->idx, at, 1);
    case 1: return qn_kb_imod(b, qn_kb_imul(b, at, index_const(g, 7)), index_const(g, IN));
    case 2: return qn_kb_idiv(b, at, index_const(g, 1 + draw(g, 5)));
    case 3: /* backwards */
        return qn_kb_isub(b, index_const(g, IN - 1), qn_kb_iadd(b, g->counter, index_const(g, draw(g, 9))));
    case 4: { /* clamped, partly outside */
        qn_kvalue *shifted = qn_kb_isub(b, at, index_const(g, draw(g, 60)));
        return qn_kb_imin(b, qn_kb_imax(b, shifted, index_const(g, 0)), index_const(g, IN - 1));
    }
    default: return qn_kb_iadd(b, at, index_const(g, draw(g, 100)));
    }
}

static void load(generator *g)
{
    qn_kvalue *mask = draw(g, 4) ? NULL : pick(g, g->bools, g->n_bools), *at = input_index(g);
    if (draw(g, 5) == 0)
        add_float(g, qn_kb_load(&g->b, g->table, qn_kb_imod(&g->b, at, index_const(g, 64)), 1));
    else if (draw(g, 2))
        add_float(g, qn_kb_load_masked(&g->b, g->x, at, 1, mask,
                                       mask && draw(g, 2) ? pick(g, g->floats, g->n_floats) : NULL));
    else
        add_int(g, qn_kb_load_masked(&g->b, g->z, at, 1, mask,
                                     mask && draw(g, 2) ? pick(g, g->ints, g->n_ints) : NULL));
}

/* Each store has a region of its own: iterations are independent. */
static void store(generator *g)
{
    qn_kbuilder *b = &g->b;
    int which = draw(g, 2);
    if (g->n_regions[which] + 3 > N_REGIONS)
        return;
    int step = 1 + draw(g, 3);
    qn_kvalue *at = qn_kb_imul(b, g->counter, index_const(g, step));
    if (draw(g, 5) == 0)
        at = qn_kb_isub(b, index_const(g, 300), at);
    at = qn_kb_iadd(b, at, index_const(g, REGION * g->n_regions[which]));
    at = qn_kb_iadd(b, at, qn_kb_imul(b, g->outer, index_const(g, REGION)));
    g->n_regions[which] += 3; /* the outer loop runs three times at most */
    qn_kvalue *mask = draw(g, 4) ? NULL : pick(g, g->bools, g->n_bools);
    qn_kvalue *value = which ? pick(g, g->ints, g->n_ints) : pick(g, g->floats, g->n_floats);
    qn_kb_store(b, which ? g->w : g->y, at, value, mask);
}

static void arithmetic(generator *g)
{
    static const qn_op float_ops[] = { QN_OP_ADD, QN_OP_SUB, QN_OP_MAX, QN_OP_MIN, QN_OP_MUL };
    static const qn_op float_unary[] = { QN_OP_NEG, QN_OP_ABS, QN_OP_FLOOR, QN_OP_SIGN, QN_OP_RELU };
    static const qn_op int_ops[] = { QN_OP_ADD, QN_OP_SUB, QN_OP_MUL, QN_OP_DIV,        QN_OP_REM,
                                     QN_OP_AND, QN_OP_XOR, QN_OP_MAX, QN_OP_SHIFT_LEFT, QN_OP_SHIFT_RIGHT };
    qn_kbuilder *b = &g->b;
    qn_kvalue *f = pick(g, g->floats, g->n_floats), *h = pick(g, g->floats, g->n_floats);
    qn_kvalue *i = pick(g, g->ints, g->n_ints), *j = pick(g, g->ints, g->n_ints);
    qn_kvalue *p = pick(g, g->bools, g->n_bools), *q = pick(g, g->bools, g->n_bools);
    switch (draw(g, 12)) {
    case 0:
    case 1: add_float(g, qn_kb_binary(b, float_ops[draw(g, 5)], f, h)); break;
    case 2: add_float(g, qn_kb_unary(b, float_unary[draw(g, 5)], f)); break;
    case 3: add_float(g, qn_kb_fma(b, f, constant(g, QUERN_F32, draw(g, 5)), h)); break;
    case 4:
    case 5: add_int(g, qn_kb_binary(b, int_ops[draw(g, 10)], i, j)); break;
    case 6: add_bool(g, qn_kb_compare(b, (qn_direction)draw(g, 6), f, h)); break;
    case 7: add_bool(g, qn_kb_compare(b, (qn_direction)draw(g, 6), i, j)); break;
    case 8: add_float(g, qn_kb_select(b, p, f, h)); break;
    case 9: add_int(g, draw(g, 2) ? qn_kb_select(b, p, i, j) : qn_kb_convert(b, QUERN_I32, f)); break;
    case 10:
        add_float(g, qn_kb_convert(b, QUERN_F32, qn_kb_binary(b, QN_OP_REM, i, constant(g, QUERN_I32, 100))));
        break;
    default:
        add_bool(g, draw(g, 2) ? qn_kb_binary(b, draw(g, 2) ? QN_OP_AND : QN_OP_OR, p, q)
                               : qn_kb_unary(b, QN_OP_NOT, p));
        break;
    }
}

static void statements(generator *g, int n, int depth);

/* What is made inside a block is forgotten at its end. */
typedef struct pools {
    qn_kvalue *floats[POOL], *ints[POOL], *bools[POOL];
    int n[3];
} pools;

static pools save(const generator *g)
{
    pools s = { .n = { g->n_floats, g->n_ints, g->n_bools } };
    memcpy(s.floats, g->floats, sizeof s.floats);
    memcpy(s.ints, g->ints, sizeof s.ints);
    memcpy(s.bools, g->bools, sizeof s.bools);
    return s;
}

static void restore(generator *g, const pools *s)
{
    memcpy(g->floats, s->floats, sizeof s->floats);
    memcpy(g->ints, s->ints, sizeof s->ints);
    memcpy(g->bools, s->bools, sizeof s->bools);
    g->n_floats = s->n[0];
    g->n_ints = s->n[1];
    g->n_bools = s->n[2];
}

static void branch(generator *g, int depth)
{
    qn_kbuilder *b = &g->b;
    qn_kinst *inst = qn_kb_if(b, pick(g, g->bools, g->n_bools));
    pools before = save(g);
    qn_kvalue *yields[2];
    for (int side = 0; side < 2; side++) {
        statements(g, 1 + draw(g, 4), depth - 1);
        yields[0] = pick(g, g->floats, g->n_floats);
        yields[1] = pick(g, g->ints, g->n_ints);
        restore(g, &before);
        if (side == 0)
            qn_kb_else(b, inst, 2, yields);
        else
            qn_kb_end_if(b, inst, 2, yields);
    }
    add_float(g, &inst->results[0]);
    add_int(g, &inst->results[1]);
}

static void inner_loop(generator *g, int depth)
{
    qn_kbuilder *b = &g->b;
    qn_kvalue *high = draw(g, 2) ? index_const(g, draw(g, 4)) : qn_kb_iadd(b, g->outer, index_const(g, 1));
    qn_kvalue *initial[2] = { pick(g, g->floats, g->n_floats), pick(g, g->ints, g->n_ints) }, *yields[2];
    qn_ktag tag = qn_k_is_const(high) && draw(g, 2) ? QN_TAG_UNROLL : QN_TAG_SERIAL;
    qn_kinst *loop = qn_kb_for(b, index_const(g, 0), high, index_const(g, 1), tag, 2, initial, NULL);
    pools before = save(g);
    add_float(g, &loop->blocks[0]->arguments[1]);
    add_int(g, &loop->blocks[0]->arguments[2]);
    add_int(g, qn_kb_convert(b, QUERN_I32, qn_loop_counter(loop)));
    int regions[2] = { g->n_regions[0], g->n_regions[1] };
    g->n_regions[0] = g->n_regions[1] = N_REGIONS; /* no stores: they would hit one place several times */
    statements(g, 1 + draw(g, 4), depth - 1);
    g->n_regions[0] = regions[0];
    g->n_regions[1] = regions[1];
    yields[0] = pick(g, g->floats, g->n_floats);
    yields[1] = pick(g, g->ints, g->n_ints);
    restore(g, &before);
    qn_kb_end_for(b, loop, yields);
    add_float(g, &loop->results[0]);
    add_int(g, &loop->results[1]);
}

static void statements(generator *g, int n, int depth)
{
    for (int i = 0; i < n; i++) {
        int what = draw(g, 20);
        if (what < 5)
            load(g);
        else if (what < 8)
            store(g);
        else if (what == 8 && depth > 0)
            branch(g, depth);
        else if (what == 9 && depth > 0)
            inner_loop(g, depth);
        else if (what == 10 && g->checks)
            qn_kb_check(
                &g->b,
                qn_kb_compare(&g->b, QN_LT, pick(g, g->floats, g->n_floats), constant(g, QUERN_F32, 900)), 3);
        else
            arithmetic(g);
    }
}

static void fill_table(generator *g)
{
    qn_kbuilder *b = &g->b;
    qn_kinst *loop = qn_kb_for(b, index_const(g, 0), index_const(g, 64), index_const(g, 1),
                               draw(g, 2) ? QN_TAG_VECTOR : QN_TAG_SERIAL, 0, NULL, NULL);
    qn_kvalue *i = qn_loop_counter(loop);
    qn_kb_store(b, g->table, i, qn_kb_load(b, g->x, qn_kb_imul(b, i, index_const(g, 3)), 1), NULL);
    qn_kb_end_for(b, loop, NULL);
}

static qn_kernel *generate(qn_arena *arena, uint64_t seed, bool checks)
{
    generator *g = QN_NEW(arena, generator);
    g->state = seed * 0x9e3779b97f4a7c15u + 1;
    g->checks = checks;
    g->k = qn_kernel_new(arena, "random");
    g->b = qn_kb_new(g->k);
    g->x = qn_kernel_add_buffer(g->k, "x", QUERN_F32, true, false, 0);
    g->z = qn_kernel_add_buffer(g->k, "z", QUERN_I32, true, false, 0);
    g->idx = qn_kernel_add_buffer(g->k, "idx", QUERN_I64, true, false, 0);
    g->y = qn_kernel_add_buffer(g->k, "y", QUERN_F32, false, true, 0);
    g->w = qn_kernel_add_buffer(g->k, "w", QUERN_I32, false, true, 0);
    g->table = qn_kernel_add_local(g->k, "table", QUERN_F32, 64);
    qn_kvalue *n = qn_kernel_add_param(g->k, "n", 0, MOST_TRIPS, 1);
    qn_kbuilder *b = &g->b;
    fill_table(g);
    qn_kinst *outer = qn_kb_for(b, index_const(g, 0), index_const(g, 1 + draw(g, 3)), index_const(g, 1),
                                QN_TAG_SERIAL, 0, NULL, NULL);
    g->outer = qn_loop_counter(outer);
    add_float(g, constant(g, QUERN_F32, draw(g, 9) - 4));
    add_float(g, qn_kb_load(b, g->x, g->outer, 1));
    add_int(g, qn_kb_load(b, g->z, g->outer, 1));
    add_bool(g, qn_kb_compare(b, QN_LT, g->floats[0], g->floats[1]));
    static const qn_kind kinds[] = { QN_SUM, QN_KIND_MAX, QN_KIND_MIN, QN_SUM };
    int n_carried = draw(g, 4);
    qn_kind carried_kinds[3];
    qn_kvalue *initial[3], *yields[3];
    for (int i = 0; i < n_carried; i++) {
        carried_kinds[i] = kinds[draw(g, 4)];
        initial[i] = i == 2 ? pick(g, g->ints, g->n_ints) : pick(g, g->floats, g->n_floats);
    }
    bool some_low = draw(g, 3) == 0, fixed = draw(g, 3) == 0;
    qn_kvalue *low = some_low ? qn_kb_iadd(b, g->outer, index_const(g, draw(g, 5))) : index_const(g, 0);
    qn_kvalue *high = fixed ? index_const(g, draw(g, MOST_TRIPS)) : n;
    qn_kinst *loop =
        qn_kb_for(b, low, high, index_const(g, 1), QN_TAG_VECTOR, n_carried, initial, carried_kinds);
    g->counter = qn_loop_counter(loop);
    add_int(g, qn_kb_convert(b, QUERN_I32, g->counter));
    add_float(g, qn_kb_convert(b, QUERN_F32, g->counter));
    statements(g, 6 + draw(g, 16), 2);
    store(g);
    static const qn_op combining[] = { [QN_SUM] = QN_OP_ADD,
                                       [QN_KIND_MAX] = QN_OP_MAX,
                                       [QN_KIND_MIN] = QN_OP_MIN };
    for (int i = 0; i < n_carried; i++)
        yields[i] = qn_kb_binary(b, combining[carried_kinds[i]], &loop->blocks[0]->arguments[1 + i],
                                 i == 2 ? pick(g, g->ints, g->n_ints) : pick(g, g->floats, g->n_floats));
    qn_kb_end_for(b, loop, yields);
    for (int i = 0; i < n_carried; i++) {
        qn_kvalue *at = qn_kb_iadd(b, g->outer, index_const(g, REGION * N_REGIONS + 4 * i));
        qn_kb_store(b, i == 2 ? g->w : g->y, at, &loop->results[i], NULL);
    }
    qn_kb_end_for(b, outer, NULL);
    return g->k;
}

/* ---- running and comparing ---- */

typedef struct memory {
    float x[IN], y[REGION * N_REGIONS + 16];
    int32_t z[IN], w[REGION * N_REGIONS + 16];
    int64_t idx[IN], status;
} memory;

static void run(const qn_kernel *k, memory *m, int64_t n)
{
    for (int i = 0; i < IN; i++) {
        m->x[i] = (float)(i * 7919 % 41 - 20);
        m->z[i] = i * 104729 % 251 - 125;
        m->idx[i] = i * 6151 % IN;
    }
    memset(m->y, 0, sizeof m->y);
    memset(m->w, 0, sizeof m->w);
    int64_t args[] = { -1,
                       (int64_t)(uintptr_t)m->x,
                       (int64_t)(uintptr_t)m->z,
                       (int64_t)(uintptr_t)m->idx,
                       (int64_t)(uintptr_t)m->y,
                       (int64_t)(uintptr_t)m->w,
                       n };
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    if (qn_interp_kernel(k, args, 1, &diags))
        fail_msg("%s\n%s", qn_diags_text(&diags, arena), qn_kernel_print(k, arena));
    qn_arena_free(arena);
    m->status = args[0];
}

static void check_same(const qn_kernel *k, const qn_kernel *before, uint64_t seed, const char *what)
{
    static memory expected, got;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    if (qn_kernel_verify(k, &diags))
        fail_msg("seed %llu, %s: %s\n%s", (unsigned long long)seed, what, qn_diags_text(&diags, arena),
                 qn_kernel_print(k, arena));
    static const int trips[] = { 0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 79, 96, 97, 100 };
    for (size_t i = 0; i < sizeof trips / sizeof *trips; i++) {
        run(before, &expected, trips[i]);
        run(k, &got, trips[i]);
        /* after a failed check, what was stored is not said */
        bool same = expected.status == got.status &&
                    (expected.status >= 0 || (!memcmp(expected.w, got.w, sizeof got.w)));
        for (size_t e = 0; e < sizeof got.y / sizeof *got.y && expected.status < 0; e++)
            same = same && expected.y[e] == got.y[e]; /* -0 equals 0 */
        if (!same)
            fail_msg("seed %llu, %s, n = %d: other results\n%s\n%s", (unsigned long long)seed, what, trips[i],
                     qn_kernel_print(before, arena), qn_kernel_print(k, arena));
    }
    qn_arena_free(arena);
}

static bool has_vectors(const qn_kblock *block)
{
    for (const qn_kinst *inst = block->first; inst; inst = inst->next) {
        for (int i = 0; i < inst->n_results; i++)
            if (inst->results[i].type.lanes > 1)
                return true;
        for (int i = 0; i < inst->n_blocks; i++)
            if (has_vectors(inst->blocks[i]))
                return true;
    }
    return false;
}

static const qn_machine machines[] = {
    { .vector_bytes = 64, .vector_registers = 32, .fma = true, .masked = true },
    { .vector_bytes = 32, .vector_registers = 16, .fma = true },
    { .vector_bytes = 16, .vector_registers = 16 },
};

static void check_text(const qn_kernel *k, uint64_t seed)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    const char *text = qn_kernel_print(k, arena);
    qn_kernel *again = qn_kernel_parse(text, "again", arena, &diags);
    if (!again)
        fail_msg("seed %llu: %s\n%s", (unsigned long long)seed, qn_diags_text(&diags, arena), text);
    assert_string_equal(qn_kernel_print(again, arena), text);
    qn_arena_free(arena);
}

static void test_random(void **state)
{
    (void)state;
    int vectorized = 0;
    enum { SEEDS = 80 };
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        qn_arena *arena = qn_arena_new();
        qn_kernel *k = generate(arena, seed, seed % 6 == 0);
        check_text(k, seed);
        qn_kernel *simple = qn_kernel_clone(k, arena);
        qn_kernel_simplify(simple);
        check_same(simple, k, seed, "simplify");
        check_text(simple, seed);
        for (int m = 0; m < 3; m++) {
            qn_kernel *after = qn_kernel_clone(m == 1 ? k : simple, arena);
            qn_kernel_vectorize(after, &machines[m]);
            check_same(after, k, seed, "vectorize");
            vectorized += has_vectors(after->body);
            qn_kernel_expand_math(after, &machines[m], QN_MATH_DEFAULT);
            qn_kernel_legalize(after, &machines[m]);
            qn_kernel_simplify(after);
            qn_kernel_forward(after);
            check_same(after, k, seed, "everything");
            check_text(after, seed);
        }
        qn_arena_free(arena);
    }
    assert_true(vectorized > SEEDS * 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_random) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
