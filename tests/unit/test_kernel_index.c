/* Index arithmetic of the kernel builder: known simplifications, and random expressions against brute force. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ir/kernel_edit.h"

typedef struct fixture {
    qn_arena *arena;
    qn_kernel *k;
    qn_kbuilder b;
    qn_kvalue *n, *m, *t, *i, *j, *c; /* i < n, j < m, c in 0, 4, 8, 12 */
} fixture;

static qn_kvalue *counter(qn_kbuilder *b, qn_kvalue *low, qn_kvalue *high, int64_t step)
{
    qn_kinst *loop = qn_kb_for(b, low, high, qn_kb_index(b, step), QN_TAG_SERIAL, 0, NULL, NULL);
    return qn_loop_counter(loop);
}

static fixture *open_nest(void)
{
    qn_arena *arena = qn_arena_new();
    fixture *f = QN_NEW(arena, fixture);
    f->arena = arena;
    f->k = qn_kernel_new(arena, "test");
    f->b = qn_kb_new(f->k);
    f->n = qn_kernel_add_param(f->k, "n", 0, (int64_t)1 << 40, 1);
    f->m = qn_kernel_add_param(f->k, "m", 1, (int64_t)1 << 40, 1);
    f->t = qn_kb_task(&f->b);
    f->i = counter(&f->b, qn_kb_index(&f->b, 0), f->n, 1);
    f->j = counter(&f->b, qn_kb_index(&f->b, 0), f->m, 1);
    f->c = counter(&f->b, qn_kb_index(&f->b, 0), qn_kb_index(&f->b, 16), 4);
    return f;
}

static void close_nest(fixture *f)
{
    qn_arena_free(f->arena);
}

#define IX(value) qn_kb_index(b, value)

static void test_known(void **state)
{
    (void)state;
    fixture *f = open_nest();
    qn_kbuilder *b = &f->b;
    qn_kvalue *zero = IX(0);

    /* (i*m + j) / m and % m, for a symbolic m */
    qn_kvalue *flat = qn_kb_iadd(b, qn_kb_imul(b, f->i, f->m), f->j);
    assert_ptr_equal(qn_kb_idiv(b, flat, f->m), f->i);
    assert_ptr_equal(qn_kb_imod(b, flat, f->m), f->j);
    /* three levels: ((t*n + i)*m + j) / (n*m) */
    qn_kvalue *deep =
        qn_kb_iadd(b, qn_kb_imul(b, qn_kb_iadd(b, qn_kb_imul(b, f->t, f->n), f->i), f->m), f->j);
    qn_kvalue *nm = qn_kb_imul(b, f->n, f->m);
    assert_ptr_equal(qn_kb_idiv(b, deep, nm), f->t);
    assert_ptr_equal(qn_kb_imod(b, deep, nm), flat);
    assert_ptr_equal(qn_kb_imod(b, qn_kb_idiv(b, deep, f->m), f->n), f->i);
    /* constants */
    qn_kvalue *tc = qn_kb_iadd(b, qn_kb_imul(b, f->t, IX(16)), f->c);
    assert_ptr_equal(qn_kb_idiv(b, tc, IX(16)), f->t);
    assert_ptr_equal(qn_kb_imod(b, tc, IX(16)), f->c);
    assert_ptr_equal(qn_kb_imod(b, tc, IX(4)), zero);
    assert_ptr_equal(qn_kb_imod(b, qn_kb_iadd(b, tc, IX(7)), IX(4)), IX(3));
    /* a common factor, and what is smaller than it */
    qn_kvalue *t4 = qn_kb_iadd(b, qn_kb_imul(b, f->t, IX(4)), qn_kb_imod(b, f->j, IX(4)));
    assert_ptr_equal(qn_kb_idiv(b, t4, IX(8)), qn_kb_idiv(b, f->t, IX(2)));
    /* joining what division took apart */
    qn_kvalue *q = qn_kb_idiv(b, f->t, f->m), *r = qn_kb_imod(b, f->t, f->m);
    assert_ptr_equal(qn_kb_iadd(b, qn_kb_imul(b, q, f->m), r), f->t);
    assert_ptr_equal(qn_kb_idiv(b, qn_kb_idiv(b, f->t, IX(6)), IX(7)), qn_kb_idiv(b, f->t, IX(42)));
    qn_kvalue *three = qn_kb_iadd(b, qn_kb_imul(b, qn_kb_imod(b, qn_kb_idiv(b, f->t, IX(8)), IX(4)), IX(8)),
                                  qn_kb_imod(b, f->t, IX(8)));
    assert_ptr_equal(three, qn_kb_imod(b, f->t, IX(32)));
    /* sums do not depend on the order they were made in */
    assert_ptr_equal(qn_kb_iadd(b, qn_kb_iadd(b, f->j, f->i), f->t),
                     qn_kb_iadd(b, f->t, qn_kb_iadd(b, f->i, f->j)));
    assert_ptr_equal(qn_kb_isub(b, qn_kb_iadd(b, f->i, f->j), f->j), f->i);
    assert_ptr_equal(qn_kb_imul(b, f->i, IX(0)), zero);
    /* bounds */
    assert_ptr_equal(qn_kb_imin(b, f->i, f->n), f->i);
    assert_ptr_equal(qn_kb_imax(b, qn_kb_iadd(b, f->i, IX(1)), f->n), f->n);
    assert_ptr_equal(qn_kb_imin(b, f->c, IX(12)), f->c);
    assert_true(qn_k_is_const(qn_kb_compare(b, QN_LT, f->j, f->m)));
    assert_true(qn_k_proven_lt(flat, nm));
    assert_false(qn_k_proven_lt(flat, qn_kb_isub(b, nm, IX(1))));
    assert_true(qn_k_proven_multiple(tc, 4));
    assert_false(qn_k_proven_multiple(tc, 8));
    /* where the whole vectors of a loop end */
    qn_kvalue *low = qn_kb_imul(b, f->t, IX(32)), *rest = qn_kb_imod(b, f->i, IX(16));
    assert_true(qn_k_proven_multiple(qn_kb_isub(b, f->i, rest), 16));
    assert_true(qn_k_proven_multiple(qn_kb_isub(b, qn_kb_iadd(b, low, f->i), rest), 16));
    assert_false(qn_k_proven_multiple(qn_kb_isub(b, qn_kb_iadd(b, low, f->i), rest), 32));
    assert_false(qn_k_proven_multiple(qn_kb_isub(b, qn_kb_iadd(b, tc, f->i), rest), 8));
    close_nest(f);
}

static void test_tiles(void **state)
{
    (void)state;
    fixture *f = open_nest();
    qn_kbuilder *b = &f->b;
    /* A loop in steps of 16 over a parameter known to be a multiple of 16: the last tile is whole. */
    qn_kvalue *p = qn_kernel_add_param(f->k, "p", 0, 1 << 20, 16);
    qn_kvalue *tile = counter(b, IX(0), p, 16);
    assert_true(qn_k_proven_le(qn_kb_iadd(b, tile, IX(16)), p));
    qn_kvalue *lane = counter(b, IX(0), IX(16), 1);
    assert_true(qn_k_proven_lt(qn_kb_iadd(b, tile, lane), p));
    qn_kvalue *ragged = counter(b, IX(0), f->n, 16);
    assert_false(qn_k_proven_lt(qn_kb_iadd(b, ragged, lane), f->n));
    qn_kvalue *inner = counter(b, ragged, qn_kb_imin(b, qn_kb_iadd(b, ragged, IX(16)), f->n), 1);
    assert_true(qn_k_proven_lt(inner, f->n));
    assert_ptr_equal(qn_kb_imod(b, qn_kb_iadd(b, qn_kb_imul(b, f->t, f->n), inner), f->n), inner);
    close_nest(f);
}

/* ---- random expressions ---- */

typedef struct environment {
    int64_t n, m, t, i, j, c;
} environment;

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static int64_t evaluate(const fixture *f, const environment *e, const qn_kvalue *v)
{
    if (v == f->i)
        return e->i;
    if (v == f->j)
        return e->j;
    if (v == f->c)
        return e->c;
    const qn_kinst *inst = v->inst;
    if (inst->op == QN_K_TASK)
        return e->t;
    if (inst->op == QN_K_PARAM)
        return inst->index == 0 ? e->n : e->m;
    if (inst->op == QN_K_CONST)
        return inst->imm.i;
    int64_t x = evaluate(f, e, inst->operands[0]), y = evaluate(f, e, inst->operands[1]), r = 0;
    if (inst->op == QN_K_COMPARE)
        return inst->direction == QN_LT ? x < y : -1;
    if (inst->op == QN_K_SELECT)
        return x ? y : evaluate(f, e, inst->operands[2]);
    assert_int_equal(inst->op, QN_K_BINARY);
    switch (inst->fn) {
    case QN_OP_ADD: r = x + y; break;
    case QN_OP_SUB: r = x - y; break;
    case QN_OP_MUL: r = x * y; break;
    case QN_OP_MIN: r = x < y ? x : y; break;
    case QN_OP_MAX: r = x > y ? x : y; break;
    case QN_OP_DIV:
    case QN_OP_REM:
        assert_true(y > 0);
        if (inst->index_math)
            assert_true(x >= 0);
        r = inst->fn == QN_OP_DIV ? x / y : x % y;
        break;
    default: fail();
    }
    assert_true(v->min <= r && r <= v->max);
    assert_true(v->multiple == 0 ? r == 0 : r % v->multiple == 0);
    return r;
}

enum { N_ENVIRONMENTS = 24 };
typedef struct pair { /* a value and what it must be in each environment */
    qn_kvalue *v;
    int64_t expected[N_ENVIRONMENTS];
} pair;

static uint64_t random_state;
static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static void random_environments(environment *es)
{
    for (int e = 0; e < N_ENVIRONMENTS; e++) {
        es[e].n = 1 + random_below(9);
        es[e].m = 1 + random_below(9);
        es[e].t = random_below(e % 2 ? 20 : 5000);
        es[e].i = random_below((uint32_t)es[e].n);
        es[e].j = random_below((uint32_t)es[e].m);
        es[e].c = 4 * random_below(4);
    }
}

static pair leaf(const fixture *f, qn_kbuilder *b, const environment *es)
{
    pair p;
    static const int64_t constants[] = { 0, 1, 2, 3, 4, 5, 7, 8, 12, 16, -1, -3, 64 };
    uint32_t which = random_below(9);
    qn_kvalue *leaves[6] = { f->n, f->m, f->t, f->i, f->j, f->c };
    p.v = which < 6 ? leaves[which] : IX(constants[random_below(13)]);
    for (int e = 0; e < N_ENVIRONMENTS; e++)
        p.expected[e] = evaluate(f, &es[e], p.v);
    return p;
}

static pair combine(qn_kbuilder *b, int op, const pair *x, const pair *y, const pair *divisor)
{
    pair r;
    switch (op) {
    case 0: r.v = qn_kb_iadd(b, x->v, y->v); break;
    case 1: r.v = qn_kb_isub(b, x->v, y->v); break;
    case 2: r.v = qn_kb_imul(b, x->v, y->v); break;
    case 3: r.v = qn_kb_imin(b, x->v, y->v); break;
    case 4: r.v = qn_kb_imax(b, x->v, y->v); break;
    case 5: r.v = qn_kb_idiv(b, x->v, divisor->v); break;
    default: r.v = qn_kb_imod(b, x->v, divisor->v); break;
    }
    for (int e = 0; e < N_ENVIRONMENTS; e++) {
        int64_t a = x->expected[e], c = y->expected[e], d = divisor->expected[e];
        int64_t values[] = {
            a + c, a - c, a * c, a < c ? a : c, a > c ? a : c, floor_div(a, d), a - floor_div(a, d) * d
        };
        r.expected[e] = values[op];
    }
    return r;
}

static bool small(const pair *p)
{
    for (int e = 0; e < N_ENVIRONMENTS; e++)
        if (p->expected[e] > 1 << 20 || p->expected[e] < -(1 << 20))
            return false;
    return true;
}

static bool positive(const pair *p)
{
    for (int e = 0; e < N_ENVIRONMENTS; e++)
        if (p->expected[e] < 1)
            return false;
    return true;
}

static void test_random(void **state)
{
    (void)state;
    enum { POOL = 40 };
    int proven = 0;
    for (int round = 0; round < 400; round++) {
        random_state = (uint64_t)round + 1;
        fixture *f = open_nest();
        qn_kbuilder *b = &f->b;
        environment es[N_ENVIRONMENTS];
        random_environments(es);
        pair pool[POOL];
        for (int at = 0; at < POOL; at++) {
            pair made = leaf(f, b, es);
            if (at >= 8) {
                const pair *x = &pool[random_below((uint32_t)at)], *y = &pool[random_below((uint32_t)at)];
                const pair *d = &pool[random_below((uint32_t)at)];
                int op = (int)random_below(7);
                pair two;
                two.v = IX(2 + random_below(12));
                for (int e = 0; e < N_ENVIRONMENTS; e++)
                    two.expected[e] = two.v->inst->imm.i;
                made = combine(b, op, x, y, positive(d) ? d : &two);
            }
            for (int e = 0; e < N_ENVIRONMENTS; e++)
                assert_int_equal(evaluate(f, &es[e], made.v), made.expected[e]);
            if (!small(&made))
                made = leaf(f, b, es);
            pool[at] = made;
        }
        for (int at = 0; at < 200; at++) {
            const pair *x = &pool[random_below(POOL)], *y = &pool[random_below(POOL)];
            bool le = qn_k_proven_le(x->v, y->v), lt = qn_k_proven_lt(x->v, y->v);
            proven += le;
            for (int e = 0; e < N_ENVIRONMENTS; e++) {
                assert_true(!le || x->expected[e] <= y->expected[e]);
                assert_true(!lt || x->expected[e] < y->expected[e]);
            }
        }
        close_nest(f);
    }
    assert_true(proven > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
