/* Random functions with several collectives, for ranks that are threads: compiled, where all_reduces go on beside kernels, they
 * give the bits that the interpreter gives, which makes each collective at once; so do states that are updated in place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>

#include "quern.h"

enum { RANKS = 3, N = 3000, RUNS = 2, MOST_VALUES = 64, N_STATES = 2, N_OUT = 3 };

/* ---- functions ---- */

typedef struct writer {
    FILE *to;
    uint64_t random;
    int n_values, n_nodes;
    char values[MOST_VALUES][16]; /* of i32[n], alike in extent */
} writer;

static int below(writer *w, int n)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (int)(w->random % (uint64_t)n);
}

/* One of the last few more often: chains. */
static const char *pick(writer *w)
{
    const int few = w->n_values < 4 ? w->n_values : 4;
    return w->values[below(w, 2) ? w->n_values - 1 - below(w, few) : below(w, w->n_values)];
}

static void add_value(writer *w)
{
    snprintf(w->values[w->n_values++], sizeof w->values[0], "%%%d", w->n_nodes++);
}

static const char *kind(writer *w)
{
    static const char *const kinds[] = { "sum", "max", "min" };
    return kinds[below(w, 3)];
}

static void put_binary(writer *w)
{
    static const char *const ops[] = { "add", "sub", "mul", "max" };
    fprintf(w->to, "  %%%d = %s %s, %s : i32[n]\n", w->n_nodes, ops[below(w, 4)], pick(w), pick(w));
    add_value(w);
}

static void put_all_reduce(writer *w)
{
    fprintf(w->to, "  %%%d = all_reduce %s {kind = %s} : i32[n]\n", w->n_nodes, pick(w), kind(w));
    add_value(w);
}

static void put_other(writer *w)
{
    switch (below(w, 3)) {
    case 0: fprintf(w->to, "  %%%d = reverse %s {axes = [0]} : i32[n]\n", w->n_nodes, pick(w)); break;
    case 1:
        fprintf(w->to, "  %%%d = cumulative %s {axis = 0, kind = sum} : i32[n]\n", w->n_nodes, pick(w));
        break;
    default:
        fprintf(w->to, "  %%%d = broadcast_rank %s {root = %d} : i32[n]\n", w->n_nodes, pick(w),
                below(w, RANKS));
    }
    add_value(w);
}

/* Of so few elements that it isn't started. */
static void put_small(writer *w)
{
    const int at = w->n_nodes;
    fprintf(w->to,
            "  %%%d = reduce %s {axes = [0], kind = sum} : i32[]\n"
            "  %%%d = all_reduce %%%d {kind = %s} : i32[]\n"
            "  %%%d = broadcast %%%d {axes = [], dims = [n]} : i32[n]\n",
            at, pick(w), at + 1, at, kind(w), at + 2, at + 1);
    w->n_nodes += 2;
    add_value(w);
}

/* All ranks go the same way, since they ask for what is the same on all. */
static void put_if(writer *w)
{
    const int at = w->n_nodes;
    fprintf(w->to,
            "  %%%d = all_reduce %s {kind = sum} : i32[n]\n"
            "  %%%d = reduce %%%d {axes = [0], kind = sum} : i32[]\n"
            "  %%%d = constant 0 : i32[]\n"
            "  %%%d = compare %%%d, %%%d {direction = lt} : bool[]\n"
            "  %%%d = if %%%d, %s, %%%d : i32[n]\n"
            "    then (%%x: i32[n], %%y: i32[n]) {\n"
            "      %%0 = all_reduce %%x {kind = %s} : i32[n]\n"
            "      %%1 = add %%0, %%y : i32[n]\n"
            "      return %%1\n    }\n"
            "    else (%%x: i32[n], %%y: i32[n]) {\n"
            "      %%0 = sub %%x, %%y : i32[n]\n"
            "      return %%0\n    }\n",
            at, pick(w), at + 1, at, at + 2, at + 3, at + 1, at + 2, at + 4, at + 3, pick(w), at, kind(w));
    w->n_nodes += 4;
    add_value(w);
}

static void put_loop(writer *w)
{
    fprintf(w->to,
            "  %%%d = scan %s, %s {length = [%d], n_carried = 1, n_scanned = 0, reverse = false} : i32[n]\n"
            "    body (%%x: i32[n], %%y: i32[n]) {\n"
            "      %%0 = all_reduce %%x {kind = %s} : i32[n]\n"
            "      %%1 = mul %%0, %%y : i32[n]\n"
            "      return %%1\n    }\n",
            w->n_nodes, pick(w), pick(w), 1 + below(w, 3), kind(w));
    add_value(w);
}

static char *make_function(uint64_t seed)
{
    char *text;
    size_t size;
    writer w = { .to = open_memstream(&text, &size), .random = 88172645463325252u + 977 * seed };
    for (int i = 0; i < 10; i++)
        below(&w, 2);
    fprintf(
        w.to,
        "dims n: 1..%d\ngraph @main(%%x: i32[n], %%s: i32[n] state, %%t: i32[n] state) -> (i32[n], i32[n], "
        "i32[n], s: i32[n] alias %%s, t: i32[n] alias %%t) {\n",
        N);
    snprintf(w.values[w.n_values++], 8, "%%x");
    snprintf(w.values[w.n_values++], 8, "%%s");
    snprintf(w.values[w.n_values++], 8, "%%t");
    for (int n = 6 + below(&w, 20); n > 0; n--) {
        const int what = below(&w, 100);
        if (what < 40)
            put_binary(&w);
        else if (what < 75)
            put_all_reduce(&w);
        else if (what < 85)
            put_other(&w);
        else if (what < 90)
            put_small(&w);
        else if (what < 95)
            put_if(&w);
        else
            put_loop(&w);
    }
    fprintf(w.to, "  return %s, %s, %s, %s, %s\n}\n", pick(&w), pick(&w), pick(&w), pick(&w), pick(&w));
    fclose(w.to);
    return text;
}

/* ---- running ---- */

typedef struct rank {
    quern_comm *comm;
    quern_model *model;
    int comm_rank;
    int64_t n;
    int32_t x[N], states[N_STATES][N], out[N_OUT][N];
    int status;
    char error[256];
} rank;

static void *run_rank(void *user)
{
    rank *r = user;
    quern_session *s = NULL;
    quern_array a;
    int status = quern_session_new(r->model, NULL, &s);
    int32_t *memory[] = { r->x, r->states[0], r->states[1] };
    for (int i = 0; i < N; i++) {
        r->x[i] = (i * 7 + r->comm->rank * 13) % 11 - 5;
        r->states[0][i] = (i * 5 + r->comm->rank) % 7 - 3;
        r->states[1][i] = i + r->comm->rank;
    }
    if (!status)
        quern_session_set_comm(s, r->comm);
    for (int i = 0; !status && i < 1 + N_STATES; i++)
        status = quern_session_bind(s, i, &(quern_array){ QUERN_I32, 1, &r->n, memory[i] });
    for (int k = 0; !status && k < RUNS; k++)
        status = quern_session_run(s);
    for (int i = 0, k = 0; !status && k < N_OUT; i++) {
        status = quern_session_get(s, 1 + N_STATES + i, &a);
        if (!status)
            memcpy(r->out[k++], a.data, (size_t)r->n * sizeof(int32_t));
    }
    r->status = status;
    snprintf(r->error, sizeof r->error, "%s", status ? quern_last_error() : "");
    quern_session_free(s);
    return NULL;
}

/* cmocka cuts messages. */
static void say(const char *text)
{
    fputs(text, stderr);
}

/* The interpreter needs a model for each rank. */
static rank *run_on(const char *text, const char *target, int64_t n)
{
    rank *all = calloc(RANKS, sizeof *all);
    quern_comm *comms[RANKS];
    pthread_t threads[RANKS];
    const bool shared = strcmp(target, "interp") != 0;
    assert_int_equal(quern_comm_threads(RANKS, comms), QUERN_OK);
    for (int r = 0; r < RANKS; r++) {
        quern_module *module;
        all[r].comm = comms[r];
        all[r].comm_rank = r;
        all[r].n = n;
        all[r].model = all[0].model;
        if (r && shared)
            continue;
        const quern_compile_options options = { .size = sizeof options, .target = target, .threads = 1 };
        if (quern_load_bytes(text, strlen(text), NULL, &module) ||
            quern_compile(module, &options, &all[r].model)) {
            say(text);
            fail_msg("%s", quern_last_error());
        }
        quern_module_free(module);
    }
    for (int r = 0; r < RANKS; r++)
        assert_int_equal(pthread_create(&threads[r], NULL, run_rank, &all[r]), 0);
    for (int r = 0; r < RANKS; r++)
        pthread_join(threads[r], NULL);
    for (int r = 0; r < RANKS; r++) {
        quern_comm_free(comms[r]);
        if (r == 0 || !shared)
            quern_model_free(all[r].model);
        if (all[r].status) {
            say(text);
            fail_msg("%s, rank %d: %s", target, r, all[r].error);
        }
    }
    return all;
}

static void compare(const rank *expected, const rank *got, int seed, const char *text)
{
    for (int k = 0; k < N_OUT + N_STATES; k++)
        for (int64_t i = 0; i < expected->n; i++) {
            const int32_t want = k < N_OUT ? expected->out[k][i] : expected->states[k - N_OUT][i],
                          is = k < N_OUT ? got->out[k][i] : got->states[k - N_OUT][i];
            if (want != is) {
                say(text);
                fail_msg("seed %d, rank %d: output %d, element %d: %d instead of %d", seed,
                         expected->comm_rank, k, (int)i, is, want);
            }
        }
}

static void random_functions(void **state)
{
    (void)state;
    const char *only = getenv("QUERN_TEST_SEED");
    const uint64_t first = only ? strtoull(only, NULL, 10) : 0, end = only ? first + 1 : 40;
    for (uint64_t seed = first; seed < end; seed++) {
        char *text = make_function(seed);
        const int64_t n = seed % 4 ? N - (int64_t)seed : 1;
        rank *expected = run_on(text, "interp", n), *got = run_on(text, "cpu", n);
        for (int r = 0; r < RANKS; r++)
            compare(&expected[r], &got[r], (int)seed, text);
        free(expected);
        free(got);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(random_functions) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
