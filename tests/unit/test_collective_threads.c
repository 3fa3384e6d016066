/* Collectives with ranks that are threads: in models (interpreter, JIT, shared object), their derivatives, and what
 * happens where ranks don't fit together. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/ok.h"
#include "tests/support/ranks.h"

#define DIMS(...) ((const int64_t[]){ __VA_ARGS__ })

/* ---- models ---- */

static quern_module *load(const char *text)
{
    quern_module *module;
    ok(quern_load_bytes(text, strlen(text), NULL, &module));
    return module;
}

/* For 3 ranks: x on rank r has number(r, i). */
static const char ops_of_3[] =
    "graph @main(%x: f32[6, 2]) -> (f32[6, 2], f32[18, 2], f32[2, 2], f32[6, 2], i64[], f32[6, 2]) {\n"
    "  %0 = all_reduce %x {kind = mean} : f32[6, 2]\n"
    "  %1 = all_gather %x {ranks = 3} : f32[18, 2]\n"
    "  %2 = reduce_scatter %x {kind = sum, ranks = 3} : f32[2, 2]\n"
    "  %3 = broadcast_rank %x {root = 1} : f32[6, 2]\n"
    "  %4 = rank : i64[]\n"
    "  %5 = mul %x, %x : f32[6, 2]\n"
    "  %6 = all_reduce %5 {kind = max} : f32[6, 2]\n"
    "  %7 = add %6, %0 : f32[6, 2]\n"
    "  return %0, %1, %2, %3, %4, %7\n"
    "}\n";

typedef struct models {
    quern_model *models[MOST_RANKS];
    const char *entry;
    int n_in, n_out;
    int64_t elements; /* of each input */
    double in[MOST_RANKS][4][64];
    double out[MOST_RANKS][8][64];
    int status[MOST_RANKS];
    char error[MOST_RANKS][256];
} models;

static void run_model(quern_comm *comm, void *arg)
{
    models *m = arg;
    const int r = comm->rank;
    quern_session *s;
    quern_array a;
    float in[4][64];
    int status = quern_session_new(m->models[r], m->entry, &s);
    if (!status)
        quern_session_set_comm(s, comm);
    const quern_entry_info *entry = quern_model_entry(m->models[r], m->entry);
    for (int i = 0; !status && i < m->n_in; i++) {
        const quern_buffer_info *info = &entry->buffers[i];
        for (int64_t k = 0; k < m->elements; k++)
            in[i][k] = (float)m->in[r][i][k];
        status = quern_session_bind(
            s, i,
            &(quern_array){ info->dtype, info->rank, info->dims,
                            info->dtype == QUERN_F64 ? (void *)m->in[r][i] : (void *)in[i] });
    }
    if (!status)
        status = quern_session_run(s);
    for (int i = 0; !status && i < m->n_out; i++) {
        status = quern_session_get(s, m->n_in + i, &a);
        int64_t n = 1;
        for (int d = 0; d < a.rank; d++)
            n *= a.dims[d];
        for (int64_t k = 0; !status && k < n; k++)
            m->out[r][i][k] = a.dtype == QUERN_I64   ? (double)((int64_t *)a.data)[k]
                              : a.dtype == QUERN_F64 ? ((double *)a.data)[k]
                                                     : ((float *)a.data)[k];
    }
    m->status[r] = status;
    snprintf(m->error[r], sizeof m->error[r], "%s", status ? quern_last_error() : "");
    quern_session_free(s);
}

/* A model for each rank, which the interpreter needs, or the same for all. */
static models *compile(const char *text, const char *target, int ranks)
{
    models *m = calloc(1, sizeof *m);
    const bool own = strcmp(target, "interp") == 0;
    for (int r = 0; r < ranks; r++) {
        if (r > 0 && !own) {
            m->models[r] = m->models[0];
            continue;
        }
        quern_module *module = load(text);
        ok(quern_compile(
            module,
            &(quern_compile_options){ .size = sizeof(quern_compile_options), .target = target, .threads = 1 },
            &m->models[r]));
        quern_module_free(module);
    }
    return m;
}

static void free_models(models *m, int ranks)
{
    for (int r = 0; r < ranks; r++)
        if (r == 0 || m->models[r] != m->models[0])
            quern_model_free(m->models[r]);
    free(m);
}

/* One input of 12 elements, of each rank its own numbers. */
static void run_on_3(models *m, int n_out)
{
    m->n_in = 1;
    m->n_out = n_out;
    m->elements = 12;
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 12; i++)
            m->in[r][0][i] = number(r, i);
    on_ranks(3, run_model, m);
    for (int r = 0; r < 3; r++)
        if (m->status[r])
            fail_msg("rank %d: %s", r, m->error[r]);
}

static void check_ops_of_3(models *m)
{
    run_on_3(m, 6);
    for (int r = 0; r < 3; r++) {
        for (int i = 0; i < 12; i++) {
            const double a = number(0, i), b = number(1, i), c = number(2, i),
                         mean = (float)((a + b + c) / 3);
            assert_true(m->out[r][0][i] == mean);
            for (int s = 0; s < 3; s++)
                assert_true(m->out[r][1][12 * s + i] == number(s, i));
            if (i / 4 == r)
                assert_true(m->out[r][2][i % 4] == a + b + c);
            assert_true(m->out[r][3][i] == b);
            assert_true(fabs(m->out[r][5][i] - (fmax(a * a, fmax(b * b, c * c)) + mean)) < 1e-5);
        }
        assert_true(m->out[r][4][0] == r);
    }
}

static void models_of_ranks(void **state)
{
    (void)state;
    static const char *const targets[] = { "interp", "cpu" };
    for (int t = 0; t < 2; t++) {
        models *m = compile(ops_of_3, targets[t], 3);
        check_ops_of_3(m);
        free_models(m, 3);
    }
}

static void shared_object_of_ranks(void **state)
{
    (void)state;
    char folder[] = "/tmp/quern_collective_XXXXXX", path[64], header[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/m.so", folder);
    snprintf(header, sizeof header, "%s/m.h", folder);
    quern_module *module = load(ops_of_3);
    ok(quern_compile_file(module, NULL, NULL, path));
    quern_module_free(module);
    models *m = calloc(1, sizeof *m);
    ok(quern_model_open(path, NULL, &m->models[0]));
    m->models[1] = m->models[2] = m->models[0];
    check_ops_of_3(m);
    free_models(m, 3);
    unlink(path);
    unlink(header);
    rmdir(folder);
}

static void wrong_number_of_ranks(void **state)
{
    (void)state;
    static const char *const targets[] = { "interp", "cpu" };
    for (int t = 0; t < 2; t++) {
        models *m = compile(ops_of_3, targets[t], 2);
        m->n_in = 1;
        m->elements = 12;
        on_ranks(2, run_model, m);
        for (int r = 0; r < 2; r++) {
            assert_int_equal(m->status[r], QUERN_ERROR_ARGUMENT);
            if (!strstr(m->error[r], "all_gather is for 3 ranks"))
                fail_msg("rank %d: %s", r, m->error[r]);
        }
        quern_session *s; /* no communicator at all */
        float x[12] = { 0 };
        ok(quern_session_new(m->models[0], NULL, &s));
        ok(quern_session_bind(s, 0, &(quern_array){ QUERN_F32, 2, DIMS(6, 2), x }));
        assert_int_equal(quern_session_run(s), QUERN_ERROR_ARGUMENT);
        if (!strstr(quern_last_error(),
                    "all_gather is for 3 ranks: the communicator has another number, or there is none"))
            fail_msg("%s", quern_last_error());
        quern_session_free(s);
        free_models(m, 2);
    }
}

/* ---- ranks that don't fit together ---- */

typedef struct misfit {
    int64_t n[MOST_RANKS];
    int status[MOST_RANKS], again[MOST_RANKS];
    char error[MOST_RANKS][256];
} misfit;

static void reduce_misfit(quern_comm *comm, void *arg)
{
    misfit *m = arg;
    const int r = comm->rank;
    float x[8] = { 0 };
    m->status[r] = quern_comm_all_reduce(comm, x, x, m->n[r], QUERN_F32, QUERN_COMBINE_SUM);
    snprintf(m->error[r], sizeof m->error[r], "%s", quern_last_error());
    m->again[r] = quern_comm_all_reduce(comm, x, x, 1, QUERN_F32, QUERN_COMBINE_SUM);
}

static void sizes_differ(void **state)
{
    (void)state;
    misfit m = { .n = { 8, 8, 5 } };
    on_ranks(3, reduce_misfit, &m);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(m.status[r], QUERN_ERROR_ARGUMENT);
        assert_int_equal(m.again[r], QUERN_ERROR_ARGUMENT);
        assert_string_equal(
            m.error[r], "ranks have to ask for the same: rank 0 for all_reduce of 8 f32 (sum), rank 2 for "
                        "all_reduce of 5 f32 (sum)");
    }
}

static void one_fails(quern_comm *comm, void *arg)
{
    misfit *m = arg;
    const int r = comm->rank;
    float x = 0;
    if (r == 1) {
        (comm->fail)(comm, "no data");
        m->status[r] = QUERN_ERROR_IO;
        return;
    }
    m->status[r] = quern_comm_all_reduce(comm, &x, &x, 1, QUERN_F32, QUERN_COMBINE_SUM);
    snprintf(m->error[r], sizeof m->error[r], "%s", quern_last_error());
}

static void a_rank_fails(void **state)
{
    (void)state;
    misfit m = { 0 };
    on_ranks(3, one_fails, &m);
    for (int r = 0; r < 3; r += 2) {
        assert_int_equal(m.status[r], QUERN_ERROR_ARGUMENT);
        assert_string_equal(m.error[r], "rank 1 failed: no data");
    }
}

/* The state is as long as x, which one rank has not. */
static void one_has_no_states(quern_comm *comm, void *arg)
{
    static const char text[] = "graph @main(%x: f32[n], %w: f32[n] state) -> (f32[n] alias %w) {\n"
                               "  %0 = add %x, %w : f32[n]\n"
                               "  return %0\n"
                               "}\n";
    misfit *m = arg;
    const int r = comm->rank;
    float x[4] = { 0 };
    quern_module *module;
    quern_model *model = NULL;
    quern_session *s = NULL;
    m->status[r] = quern_load_bytes(text, strlen(text), NULL, &module);
    if (!m->status[r]) {
        m->status[r] =
            quern_compile(module, &(quern_compile_options){ .size = sizeof(quern_compile_options) }, &model);
        quern_module_free(module);
    }
    if (!m->status[r])
        m->status[r] = quern_session_new(model, NULL, &s);
    if (!m->status[r] && r != 1)
        m->status[r] = quern_session_bind(s, 0, &(quern_array){ QUERN_F32, 1, DIMS(4), x });
    if (m->status[r]) {
        (comm->fail)(comm, "no model");
    } else {
        quern_session_set_comm(s, comm);
        m->status[r] = quern_session_broadcast_states(s, 0);
    }
    snprintf(m->error[r], sizeof m->error[r], "%s", quern_last_error());
    quern_session_free(s);
    quern_model_free(model);
}

static void a_rank_without_states_fails(void **state)
{
    (void)state;
    misfit m = { 0 };
    on_ranks(3, one_has_no_states, &m);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(m.status[r], QUERN_ERROR_ARGUMENT);
        if (!strstr(m.error[r], r == 1 ? "is not bound" : "rank 1 failed: "))
            fail_msg("rank %d: %s", r, m.error[r]);
    }
}

/* ---- collectives that are started ---- */

enum { STARTED = 20, MANY = 5000 };

typedef struct started {
    float in[MOST_RANKS][STARTED][MANY], out[MOST_RANKS][STARTED][MANY], behind[MOST_RANKS][MANY];
    int status[MOST_RANKS], idle[MOST_RANKS];
} started;

/* Of other lengths each, half of them in place, and one that isn't started behind them. */
static void start_many(quern_comm *comm, void *arg)
{
    started *s = arg;
    const int r = comm->rank;
    int status = QUERN_OK;
    for (int k = 0; k < STARTED && !status; k++) {
        if (k % 2)
            memcpy(s->out[r][k], s->in[r][k], sizeof s->in[r][k]);
        status = comm->start_all_reduce(comm, k % 2 ? s->out[r][k] : s->in[r][k], s->out[r][k],
                                        MANY - 200 * k, QUERN_F32, QUERN_COMBINE_SUM);
    }
    if (!status)
        status = quern_comm_all_reduce(comm, s->in[r][0], s->behind[r], MANY, QUERN_F32, QUERN_COMBINE_MAX);
    for (int k = 0; k < STARTED && !status; k++)
        status = comm->wait(comm);
    s->status[r] = status;
    s->idle[r] = comm->wait(comm);
}

static void starts_many(void **state)
{
    (void)state;
    started *s = calloc(1, sizeof *s);
    for (int ranks = 1; ranks <= MOST_RANKS; ranks += 2) {
        for (int r = 0; r < ranks; r++)
            for (int k = 0; k < STARTED; k++)
                for (int i = 0; i < MANY; i++)
                    s->in[r][k][i] = (float)number(r + k, i);
        on_ranks(ranks, start_many, s);
        for (int r = 0; r < ranks; r++) {
            assert_int_equal(s->status[r], QUERN_OK);
            assert_int_equal(s->idle[r], QUERN_ERROR_ARGUMENT); /* nothing was started */
            for (int k = 0; k < STARTED; k++)
                for (int i = 0; i < MANY - 200 * k; i++) {
                    double sum = 0, most = 0;
                    for (int from = 0; from < ranks; from++) {
                        sum += number(from + k, i);
                        most = fmax(most, number(from, i));
                    }
                    if (s->out[r][k][i] != (float)sum || (k == 0 && s->behind[r][i] != (float)most))
                        fail_msg("rank %d of %d: number %d, element %d", r, ranks, k, i);
                }
        }
    }
    free(s);
}

/* Rank 1 starts what the others never come to, and fails: its memory is its own again. Rank 0 waits for what rank 1 never starts. */
static void start_and_fail(quern_comm *comm, void *arg)
{
    misfit *m = arg;
    const int r = comm->rank;
    float *x = calloc(MANY, sizeof *x);
    if (r < 2)
        m->status[r] = comm->start_all_reduce(comm, x, x, MANY, QUERN_F32, QUERN_COMBINE_SUM);
    if (r == 1) {
        (comm->fail)(comm, "no data");
        m->again[r] = comm->wait(comm);
    } else if (r == 0) {
        m->again[r] = comm->wait(comm);
    } else {
        m->again[r] = QUERN_ERROR_ARGUMENT; /* does something else */
    }
    snprintf(m->error[r], sizeof m->error[r], "%s", comm->error(comm));
    free(x);
}

static void a_rank_fails_beside(void **state)
{
    (void)state;
    misfit m = { 0 };
    on_ranks(3, start_and_fail, &m);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(m.status[r], QUERN_OK);
        assert_int_equal(m.again[r], QUERN_ERROR_ARGUMENT);
        if (r < 2)
            assert_string_equal(m.error[r], "rank 1 failed: no data");
    }
}

static void start_misfit(quern_comm *comm, void *arg)
{
    misfit *m = arg;
    const int r = comm->rank;
    float x[8] = { 0 };
    m->status[r] = comm->start_all_reduce(comm, x, x, m->n[r], QUERN_F32, QUERN_COMBINE_SUM);
    m->again[r] = comm->wait(comm);
    snprintf(m->error[r], sizeof m->error[r], "%s", comm->error(comm));
}

static void sizes_differ_beside(void **state)
{
    (void)state;
    misfit m = { .n = { 8, 8, 5 } };
    on_ranks(3, start_misfit, &m);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(m.status[r], QUERN_OK);
        assert_int_equal(m.again[r], QUERN_ERROR_ARGUMENT);
        assert_string_equal(
            m.error[r], "ranks have to ask for the same: rank 0 for all_reduce of 8 f32 (sum), rank 2 for "
                        "all_reduce of 5 f32 (sum)");
    }
}

typedef struct waiting {
    quern_comm *comm;
    misfit *m;
} waiting;

static void *wait_for_one(void *user)
{
    waiting *w = user;
    one_fails(w->comm, w->m);
    return NULL;
}

static void a_rank_leaves(void **state)
{
    (void)state;
    quern_comm *comms[2];
    pthread_t thread;
    misfit m = { 0 };
    ok(quern_comm_threads(2, comms));
    waiting waits = { comms[0], &m };
    assert_int_equal(pthread_create(&thread, NULL, wait_for_one, &waits), 0);
    quern_comm_free(comms[1]);
    pthread_join(thread, NULL);
    assert_int_equal(m.status[0], QUERN_ERROR_ARGUMENT);
    assert_string_equal(m.error[0], "rank 1 has left");
    quern_comm_free(comms[0]);
}

/* Three ranks run it twice; the second time the first number of rank 1, which is an index, is out of range. */
static void rank_1_fails(const char *text, const char *target, int n_out)
{
    models *m = compile(text, target, 3);
    m->n_in = 1;
    m->n_out = n_out;
    m->elements = 4;
    for (int round = 0; round < 2; round++) {
        m->in[1][0][0] = round ? 9 : 3;
        on_ranks(3, run_model, m);
        for (int r = 0; r < 3; r++) {
            assert_int_equal(m->status[r], !round   ? QUERN_OK
                                           : r == 1 ? QUERN_ERROR_INDEX
                                                    : QUERN_ERROR_ARGUMENT);
            if (round && !strstr(m->error[r], r == 1 ? "index" : "rank 1 failed: "))
                fail_msg("rank %d: %s", r, m->error[r]);
        }
    }
    free_models(m, 3);
}

/* A run that fails on one rank. */
static void a_run_fails(void **state)
{
    (void)state;
    static const char text[] = "graph @main(%x: f32[4]) -> f32[1] {\n"
                               "  %0 = constant [2] : i64[1]\n"
                               "  %1 = slice %x {limit = [1], start = [0], stride = [1]} : f32[1]\n"
                               "  %2 = convert %1 {dtype = i64} : i64[1]\n"
                               "  %3 = gather %x, %2 {axis = 0} : f32[1]\n"
                               "  %4 = all_reduce %3 {kind = sum} : f32[1]\n"
                               "  return %4\n"
                               "}\n";
    rank_1_fails(text, "interp", 1);
    rank_1_fails(text, "cpu", 1);
}

/* The same while a collective that all ranks started goes on beside: it is computed with what comes behind. */
static void a_run_fails_beside(void **state)
{
    (void)state;
    static const char text[] = "graph @main(%x: f32[4]) -> (f32[4], f32[1]) {\n"
                               "  %0 = broadcast %x {axes = [1], dims = [1024, 4]} : f32[1024, 4]\n"
                               "  %1 = all_reduce %0 {kind = sum} : f32[1024, 4]\n"
                               "  %2 = reduce %1 {axes = [0], kind = max} : f32[4]\n"
                               "  %3 = slice %x {limit = [1], start = [0], stride = [1]} : f32[1]\n"
                               "  %4 = convert %3 {dtype = i64} : i64[1]\n"
                               "  %5 = gather %x, %4 {axis = 0} : f32[1]\n"
                               "  %6 = all_reduce %5 {kind = sum} : f32[1]\n"
                               "  return %2, %6\n"
                               "}\n";
    rank_1_fails(text, "cpu", 2);
}

/* ---- derivatives ---- */

/* %r of each rank from its %x; the loss of a rank is the sum of sin(%r) w, with w of its own. */
typedef struct derivative {
    const char *body, *type;
} derivative;

static const derivative derivatives[] = {
    { "%r = all_reduce %x {kind = sum} : f64[6]", "f64[6]" },
    { "%r = all_reduce %x {kind = mean} : f64[6]", "f64[6]" },
    { "%r = all_reduce %x {kind = max} : f64[6]", "f64[6]" },
    { "%r = all_reduce %x {kind = min} : f64[6]", "f64[6]" },
    { "%r = all_gather %x {ranks = 3} : f64[18]", "f64[18]" },
    { "%r = reduce_scatter %x {kind = sum, ranks = 3} : f64[2]", "f64[2]" },
    { "%r = reduce_scatter %x {kind = mean, ranks = 3} : f64[2]", "f64[2]" },
    { "%r = reduce_scatter %x {kind = max, ranks = 3} : f64[2]", "f64[2]" },
    { "%r = broadcast_rank %x {root = 2} : f64[6]", "f64[6]" },
    { "%q = all_reduce %x {kind = sum} : f64[6]\n  %p = mul %q, %x : f64[6]\n  %r = all_reduce %p {kind = "
      "mean} : f64[6]",
      "f64[6]" },
};

static double losses(models *m)
{
    double sum = 0;
    m->entry = NULL;
    m->n_out = 1;
    on_ranks(3, run_model, m);
    for (int r = 0; r < 3; r++) {
        if (m->status[r])
            fail_msg("%s", m->error[r]);
        sum += m->out[r][0][0];
    }
    return sum;
}

static void gradients_equal_differences(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof derivatives / sizeof *derivatives; c++) {
        char text[1024];
        const derivative *d = &derivatives[c];
        snprintf(
            text, sizeof text,
            "graph @main(%%x: f64[6], %%w: f64[6]) -> (loss: f64[]) {\n  %s\n  %%s = sin %%r : %s\n"
            "  %%t = reduce %%s {axes = [0], kind = sum} : f64[]\n"
            "  %%u = slice %%w {limit = [1], start = [0], stride = [1]} : f64[1]\n"
            "  %%v = reshape %%u {dims = []} : f64[]\n  %%loss = mul %%t, %%v : f64[]\n  return %%loss\n}\n",
            d->body, d->type);
        models *m = calloc(1, sizeof *m);
        for (int r = 0; r < 3; r++) {
            quern_module *module = load(text);
            ok(quern_grad(module, "main", "loss", 1, (const char *const[]){ "x" }, "gradient"));
            ok(quern_compile(
                module, &(quern_compile_options){ .size = sizeof(quern_compile_options), .target = "interp" },
                &m->models[r]));
            quern_module_free(module);
        }
        m->n_in = 2;
        m->elements = 6;
        for (int r = 0; r < 3; r++)
            for (int i = 0; i < 6; i++) {
                m->in[r][0][i] = sin(17.0 * r + 5.3 * i);
                m->in[r][1][i] = 1 + 0.5 * r;
            }
        m->entry = "gradient";
        m->n_out = 2;
        on_ranks(3, run_model, m);
        double gradient[3][6];
        for (int r = 0; r < 3; r++) {
            if (m->status[r])
                fail_msg("%s", m->error[r]);
            memcpy(gradient[r], m->out[r][1], sizeof gradient[r]);
        }
        for (int r = 0; r < 3; r++)
            for (int i = 0; i < 6; i++) {
                const double h = 1e-5, kept = m->in[r][0][i];
                m->in[r][0][i] = kept + h;
                const double above = losses(m);
                m->in[r][0][i] = kept - h;
                const double below = losses(m);
                m->in[r][0][i] = kept;
                if (!(fabs(gradient[r][i] - (above - below) / (2 * h)) < 1e-8))
                    fail_msg("%s: rank %d element %d: gradient %.12g, by differences %.12g", d->body, r, i,
                             gradient[r][i], (above - below) / (2 * h));
            }
        free_models(m, 3);
    }
}

/* ---- trainers ---- */

enum { ROWS = 50, FEATURES = 2100 }; /* so many that their gradient goes beside kernels */

typedef struct training {
    int64_t batch;
    bool at_once;     /* with communicators that start nothing */
    int without_rows; /* one more than the rank that has none; 0: all have some */
    double losses[MOST_RANKS][64];
    float weight[MOST_RANKS][FEATURES];
    int status[MOST_RANKS];
    char error[MOST_RANKS][256];
} training;

/* Two epochs in a shuffled order; the model starts from other values on every rank. */
static int train_rank(quern_comm *comm, int r, training *t)
{
    const int64_t rows = t->without_rows == r + 1 ? 0 : ROWS, x_dims[] = { rows, FEATURES },
                  y_dims[] = { rows, 1 };
    float x[ROWS][FEATURES], y[ROWS];
    for (int i = 0; i < ROWS; i++) {
        y[i] = 0;
        for (int k = 0; k < FEATURES; k++) {
            x[i][k] = (float)sin(3.1 * i + 7.7 * k);
            y[i] += (float)(k % 5 + 1) * x[i][k];
        }
    }
    quern_builder *b = quern_builder_new(NULL);
    quern_trainer *trainer;
    quern_array weight;
    quern_builder_seed(b, (uint64_t)r);
    quern_value *in = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(FEATURES)));
    quern_output(b, quern_linear(b, in, 1, "fc"), "y");
    int status = quern_train(b,
                             &(quern_train_options){ .size = sizeof(quern_train_options),
                                                     .loss = "mse",
                                                     .optimizer = "sgd",
                                                     .learning_rate = 0.5 / FEATURES,
                                                     .data_parallel = comm != NULL,
                                                     .bucket_bytes = comm ? 8 : 0 },
                             &(quern_compile_options){ .size = sizeof(quern_compile_options), .threads = 1 },
                             &trainer);
    if (!status && comm)
        status = quern_trainer_set_comm(trainer, comm);
    for (int epoch = 0; !status && epoch < 2; epoch++)
        status = quern_trainer_epoch(trainer, &(quern_array){ QUERN_F32, 2, x_dims, x },
                                     &(quern_array){ QUERN_F32, 2, y_dims, y }, t->batch, (uint64_t)epoch + 1,
                                     t->losses[r] + 32 * epoch);
    const quern_entry_info *entry = status ? NULL : quern_trainer_entry(trainer);
    for (int i = 0; !status && i < entry->n_buffers; i++)
        if (strcmp(entry->buffers[i].name, "fc.weight") == 0) {
            status = quern_session_get(quern_trainer_session(trainer), i, &weight);
            memcpy(t->weight[r], weight.data, sizeof t->weight[r]);
        }
    snprintf(t->error[r], sizeof t->error[r], "%s", status ? quern_last_error() : "");
    quern_trainer_free(trainer);
    return status;
}

static void run_training(quern_comm *comm, void *arg)
{
    training *t = arg;
    if (t->at_once)
        comm->start_all_reduce = NULL;
    t->status[comm->rank] = train_rank(comm, comm->rank, t);
}

static void trains_alike(void **state)
{
    (void)state;
    training alone = { .batch = 16 };
    ok(train_rank(NULL, 0, &alone));
    for (int ranks = 2; ranks <= 4; ranks += 2) {
        training t = { .batch = 16 }, at_once = { .batch = 16, .at_once = true };
        on_ranks(ranks, run_training, &t);
        on_ranks(ranks, run_training, &at_once);
        assert_memory_equal(t.weight, at_once.weight, sizeof t.weight);
        assert_memory_equal(t.losses, at_once.losses, sizeof t.losses);
        for (int r = 0; r < ranks; r++) {
            if (t.status[r])
                fail_msg("rank %d: %s", r, t.error[r]);
            assert_memory_equal(t.weight[r], t.weight[0], sizeof t.weight[0]);
            assert_memory_equal(t.losses[r], t.losses[0], sizeof t.losses[0]);
            for (int i = 0; i < 3;
                 i++) /* whole batches; the last has 2 rows, which go into 4 parts not at all */
                if (!(fabs(t.losses[r][i] - alone.losses[0][i]) <= 1e-5 * alone.losses[0][i]))
                    fail_msg("%d ranks, step %d: %g instead of %g", ranks, i, t.losses[r][i],
                             alone.losses[0][i]);
            assert_true((t.losses[r][3] > 0) == (ranks == 2));
        }
    }
    training odd = { .batch = 15 };
    on_ranks(2, run_training, &odd);
    assert_string_equal(odd.error[0], "quern_trainer_epoch: a batch of 15 does not go into 2 equal parts");
}

/* One rank never comes to a collective: the others need not wait. */
static void a_rank_without_rows_fails(void **state)
{
    (void)state;
    training t = { .batch = 15, .without_rows = 2 };
    on_ranks(3, run_training, &t);
    assert_string_equal(t.error[1], "quern_trainer_epoch: there are no samples");
    for (int r = 0; r < 3; r += 2)
        assert_non_null(strstr(t.error[r], "rank 1 failed: quern_trainer_epoch: there are no samples"));
}

/* ---- builder calls ---- */

static void builds_collectives(void **state)
{
    (void)state;
    quern_builder *b = quern_builder_new("main");
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(6), QUERN_N(2)));
    quern_output(b, quern_all_reduce(b, x, QUERN_COMBINE_MEAN), "mean");
    quern_output(b, quern_all_gather(b, x, -1, 3), "gathered"); /* [6, 6] */
    quern_output(b, quern_reduce_scatter(b, x, QUERN_COMBINE_SUM, 0, 3), "scattered");
    quern_output(b, quern_broadcast_rank(b, x, 1), "first");
    quern_output(b, quern_rank(b), "rank");
    quern_module *module;
    ok(quern_builder_finish(b, &module));
    models *m = calloc(1, sizeof *m);
    ok(quern_compile(module, NULL, &m->models[0]));
    quern_module_free(module);
    m->models[1] = m->models[2] = m->models[0];
    run_on_3(m, 5);
    for (int r = 0; r < 3; r++) {
        for (int s = 0; s < 3; s++)
            for (int i = 0; i < 12; i++)
                assert_true(m->out[r][1][i / 2 * 6 + 2 * s + i % 2] == number(s, i));
        assert_true(m->out[r][4][0] == r);
    }
    free_models(m, 3);
    b = quern_builder_new(NULL);
    x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(6)));
    assert_null(quern_all_reduce(b, x, 9));
    assert_int_not_equal(quern_builder_finish(b, &module), QUERN_OK);
    assert_non_null(strstr(quern_last_error(), "there is no way 9 to combine"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_of_ranks),
        cmocka_unit_test(shared_object_of_ranks),
        cmocka_unit_test(wrong_number_of_ranks),
        cmocka_unit_test(sizes_differ),
        cmocka_unit_test(a_rank_fails),
        cmocka_unit_test(a_rank_without_states_fails),
        cmocka_unit_test(a_rank_leaves),
        cmocka_unit_test(a_run_fails),
        cmocka_unit_test(a_run_fails_beside),
        cmocka_unit_test(starts_many),
        cmocka_unit_test(a_rank_fails_beside),
        cmocka_unit_test(sizes_differ_beside),
        cmocka_unit_test(gradients_equal_differences),
        cmocka_unit_test(trains_alike),
        cmocka_unit_test(a_rank_without_rows_fails),
        cmocka_unit_test(builds_collectives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
