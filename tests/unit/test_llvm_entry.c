/* Entries: a program made by hand with every kind of step, run in this process and as a linked shared object through
 * its tables alone, against the same thing written in C. */
#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "backends/llvm/link.h"
#include "tests/support/abi_caller.h"

enum { COLUMNS = 4, ROWS = 8, LEVELS = 3, BATCH_MAX = 1000 };

/* One row for each level, and one more that is added first. */
static const float weights[LEVELS + 1][COLUMNS] = {
    { 1, 2, 3, 4 }, { 0.5f, -1, 0.25f, 8 }, { -3, 0, 1, 1 }, { 10, 20, 30, 40 }
};

/* ---- kernels ---- */

static qn_kvalue *loop_over(qn_kbuilder *b, qn_kvalue *low, qn_kvalue *high, qn_kinst **out)
{
    *out = qn_kb_for(b, low, high, qn_kb_index(b, 1), QN_TAG_SERIAL, 0, NULL, NULL);
    return qn_loop_counter(*out);
}

/* y[i, :] = x[i, :] + row[:], eight rows a task */
static qn_kernel *add_row(qn_arena *arena)
{
    qn_kernel *k = qn_kernel_new(arena, "add_row");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_F32, true, false, 4);
    qn_kbuffer *row = qn_kernel_add_buffer(k, "row", QUERN_F32, true, false, 4);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", QUERN_F32, false, true, 4);
    qn_kvalue *rows = qn_kernel_add_param(k, "rows", 1, BATCH_MAX, 1);
    qn_kbuilder b = qn_kb_new(k);
    qn_kinst *loop;
    qn_kvalue *low = qn_kb_imul(&b, qn_kb_task(&b), qn_kb_index(&b, ROWS));
    qn_kvalue *high = qn_kb_imin(&b, qn_kb_iadd(&b, low, qn_kb_index(&b, ROWS)), rows);
    qn_kvalue *add = qn_kb_load(&b, row, qn_kb_index(&b, 0), COLUMNS);
    qn_kvalue *at = qn_kb_imul(&b, loop_over(&b, low, high, &loop), qn_kb_index(&b, COLUMNS));
    qn_kvalue *sum = qn_kb_binary(&b, QN_OP_ADD, qn_kb_load(&b, x, at, COLUMNS), add);
    qn_kb_store(&b, y, at, sum, NULL);
    qn_kb_end_for(&b, loop, NULL);
    return k;
}

/* y = 2 x */
static qn_kernel *twice(qn_arena *arena)
{
    qn_kernel *k = qn_kernel_new(arena, "twice");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_F32, true, false, 4);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", QUERN_F32, false, true, 4);
    qn_kvalue *n = qn_kernel_add_param(k, "n", 1, BATCH_MAX * COLUMNS, COLUMNS);
    qn_kbuilder b = qn_kb_new(k);
    qn_kinst *loop;
    qn_kvalue *i = loop_over(&b, qn_kb_index(&b, 0), n, &loop);
    qn_kvalue *v = qn_kb_load(&b, x, i, 1);
    qn_kb_store(&b, y, i, qn_kb_binary(&b, QN_OP_ADD, v, v), NULL);
    qn_kb_end_for(&b, loop, NULL);
    return k;
}

/* count = rows whose first column is positive; most = more than half of them */
static qn_kernel *count_positive(qn_arena *arena)
{
    qn_kernel *k = qn_kernel_new(arena, "count_positive");
    qn_kbuffer *x = qn_kernel_add_buffer(k, "x", QUERN_F32, true, false, 4);
    qn_kbuffer *count = qn_kernel_add_buffer(k, "count", QUERN_I64, false, true, 8);
    qn_kbuffer *most = qn_kernel_add_buffer(k, "most", QUERN_BOOL, false, true, 1);
    qn_kvalue *rows = qn_kernel_add_param(k, "rows", 1, BATCH_MAX, 1);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *zero = qn_kb_index(&b, 0), *n = zero;
    qn_kinst *loop = qn_kb_for(&b, zero, rows, qn_kb_index(&b, 1), QN_TAG_SERIAL, 1, &n, NULL);
    qn_kvalue *i = qn_loop_counter(loop);
    qn_kvalue *v = qn_kb_load(&b, x, qn_kb_imul(&b, i, qn_kb_index(&b, COLUMNS)), 1);
    qn_kvalue *positive = qn_kb_compare(&b, QN_GT, v, qn_kb_float(&b, v->type, 0));
    n = qn_kb_binary(&b, QN_OP_ADD, &loop->blocks[0]->arguments[1], qn_kb_convert(&b, QUERN_I64, positive));
    qn_kb_end_for(&b, loop, &n);
    n = &loop->results[0];
    qn_kb_store(&b, count, zero, n, NULL);
    qn_kb_store(&b, most, zero, qn_kb_compare(&b, QN_GT, qn_kb_binary(&b, QN_OP_ADD, n, n), rows), NULL);
    return k;
}

/* y[i] = i */
static qn_kernel *iota(qn_arena *arena)
{
    qn_kernel *k = qn_kernel_new(arena, "iota");
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", QUERN_I64, false, true, 8);
    qn_kvalue *n = qn_kernel_add_param(k, "n", 0, BATCH_MAX, 1);
    qn_kbuilder b = qn_kb_new(k);
    qn_kinst *loop;
    qn_kvalue *i = loop_over(&b, qn_kb_index(&b, 0), n, &loop);
    qn_kb_store(&b, y, i, i, NULL);
    qn_kb_end_for(&b, loop, NULL);
    return k;
}

/* y[i] = table[index[i], 0], checked; one row a task */
static qn_kernel *gather(qn_arena *arena)
{
    qn_kernel *k = qn_kernel_new(arena, "gather");
    qn_kbuffer *table = qn_kernel_add_buffer(k, "table", QUERN_F32, true, false, 4);
    qn_kbuffer *index = qn_kernel_add_buffer(k, "index", QUERN_I64, true, false, 8);
    qn_kbuffer *y = qn_kernel_add_buffer(k, "y", QUERN_F32, false, true, 4);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *i = qn_kb_task(&b), *at = qn_kb_load(&b, index, i, 1);
    qn_kvalue *low = qn_kb_compare(&b, QN_GE, at, qn_kb_index(&b, 0));
    qn_kvalue *high = qn_kb_compare(&b, QN_LE, at, qn_kb_index(&b, LEVELS));
    qn_kb_check(&b, qn_kb_binary(&b, QN_OP_AND, low, high), 1);
    at = qn_kb_imax(&b, qn_kb_imin(&b, at, qn_kb_index(&b, LEVELS)), qn_kb_index(&b, 0));
    qn_kvalue *v = qn_kb_load(&b, table, qn_kb_imul(&b, at, qn_kb_index(&b, COLUMNS)), 1);
    qn_kb_store(&b, y, i, v, NULL);
    return k;
}

/* more = counter < limit */
static qn_kernel *below(qn_arena *arena)
{
    qn_kernel *k = qn_kernel_new(arena, "below");
    qn_kbuffer *counter = qn_kernel_add_buffer(k, "counter", QUERN_I64, true, false, 8);
    qn_kbuffer *more = qn_kernel_add_buffer(k, "more", QUERN_BOOL, false, true, 1);
    qn_kvalue *limit = qn_kernel_add_param(k, "limit", 1, BATCH_MAX, 1);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *zero = qn_kb_index(&b, 0);
    qn_kb_store(&b, more, zero, qn_kb_compare(&b, QN_LT, qn_kb_load(&b, counter, zero, 1), limit), NULL);
    return k;
}

/* counter += 3 */
static qn_kernel *advance(qn_arena *arena)
{
    qn_kernel *k = qn_kernel_new(arena, "advance");
    qn_kbuffer *counter = qn_kernel_add_buffer(k, "counter", QUERN_I64, true, true, 8);
    qn_kbuilder b = qn_kb_new(k);
    qn_kvalue *zero = qn_kb_index(&b, 0);
    qn_kvalue *next = qn_kb_binary(&b, QN_OP_ADD, qn_kb_load(&b, counter, zero, 1), qn_kb_index(&b, 3));
    qn_kb_store(&b, counter, zero, next, NULL);
    return k;
}

/* ---- the program ---- */

typedef struct maker {
    qn_arena *arena;
    qn_program *p;
    qn_dim n, decided;
} maker;

static qn_dim number(maker *m, int64_t value)
{
    return qn_dim_const(m->p->dims, value);
}

static int add_io(maker *m, const char *name, quern_role role, qn_dtype dtype, int rank, qn_dim rows)
{
    qn_dim *dims = QN_NEW_ARRAY(m->arena, qn_dim, 2);
    qn_program *p = m->p;
    dims[0] = rows;
    dims[1] = number(m, COLUMNS);
    p->io[p->n_io] = (qn_pio){ .name = name, .role = role, .type = { dtype, rank, dims }, .alias = -1 };
    qn_dim elements = rank == 2 ? qn_dim_mul(p->dims, rows, dims[1]) : rows;
    return qn_program_add_buffer(
        p, (qn_pbuffer){
               .name = name, .dtype = dtype, .elements = elements, .place = QN_PLACE_IO, .io = p->n_io++ });
}

/* At the end of the arena, which grows by it. */
static int add_temporary(maker *m, const char *name, qn_dtype dtype, qn_dim elements)
{
    qn_program *p = m->p;
    qn_dim bytes = qn_dim_mul(p->dims, elements, number(m, (int64_t)qn_dtype_bytes(dtype)));
    qn_dim offset = p->arena_bytes, lines = qn_dim_ceildiv(p->dims, bytes, number(m, 64));
    p->arena_bytes = qn_dim_add(p->dims, offset, qn_dim_mul(p->dims, lines, number(m, 64)));
    return qn_program_add_buffer(
        p,
        (qn_pbuffer){
            .name = name, .dtype = dtype, .elements = elements, .place = QN_PLACE_ARENA, .offset = offset });
}

static int add_slot(maker *m, int base)
{
    qn_pbuffer slot = m->p->buffers[base];
    slot.place = QN_PLACE_SLOT;
    slot.base = base;
    return qn_program_add_buffer(m->p, slot);
}

static qn_step *add_call(maker *m, qn_steps *steps, qn_kernel *kernel, int n_buffers, const int *buffers,
                         qn_dim param, qn_dim tasks)
{
    int index = qn_program_add_kernel(m->p, kernel);
    qn_step *step = qn_steps_add(m->p, steps, QN_STEP_KERNEL);
    step->kernel = index;
    step->name = kernel->name;
    step->n_buffers = n_buffers;
    step->buffers = qn_arena_copy(m->arena, buffers, (size_t)n_buffers * sizeof *buffers);
    step->n_params = param != NULL;
    step->params = qn_arena_copy(m->arena, &param, sizeof param);
    step->tasks = tasks ? tasks : number(m, 1);
    return step;
}

static qn_step *add_pair(maker *m, qn_steps *steps, qn_step_kind kind, int a, int b)
{
    qn_step *step = qn_steps_add(m->p, steps, kind);
    int pair[] = { a, b };
    step->n_buffers = 2;
    step->buffers = qn_arena_copy(m->arena, pair, sizeof pair);
    return step;
}

/* t = x + w[3];  for l = 2, 1, 0: t = t + w[l];  (count, most) = …t;  y = most ? 2 t : t;
 * m := count;  out = 0 … m-1;  g = w[index, 0];  while (counter < n) counter += 3 */
static qn_program *make_program(qn_arena *arena)
{
    static const char *nodes[] = { "first", "gather" };
    qn_dims *dims = qn_dims_new(arena);
    maker maker = { .arena = arena, .p = qn_program_new(arena, dims, "infer") }, *m = &maker;
    qn_program *p = m->p;
    m->n = qn_dim_symbol(dims, "n", 1, BATCH_MAX);
    m->decided = qn_dim_symbol(dims, "m", 0, BATCH_MAX);
    p->n_entry_symbols = 1;
    p->limits = qn_arena_copy(arena, &m->n, sizeof m->n);
    p->n_nodes = 2;
    p->node_names = nodes;
    p->weights_bytes = sizeof weights;
    p->io = QN_NEW_ARRAY(arena, qn_pio, 6);
    int x = add_io(m, "x", QUERN_INPUT, QUERN_F32, 2, m->n),
        y = add_io(m, "y", QUERN_OUTPUT, QUERN_F32, 2, m->n);
    int index = add_io(m, "index", QUERN_INPUT, QUERN_I64, 1, m->n);
    int g = add_io(m, "g", QUERN_OUTPUT, QUERN_F32, 1, m->n);
    int out = add_io(m, "out", QUERN_OUTPUT, QUERN_I64, 1, m->decided);
    int counter = add_io(m, "counter", QUERN_STATE, QUERN_I64, 1, number(m, 1));
    p->io[5].trainable = true;
    qn_dim all = qn_dim_mul(dims, m->n, number(m, COLUMNS));
    int a = add_slot(m, add_temporary(m, "a", QUERN_F32, all));
    int b = add_slot(m, add_temporary(m, "b", QUERN_F32, all));
    int count = add_temporary(m, "count", QUERN_I64, number(m, 1));
    int most = add_temporary(m, "most", QUERN_BOOL, number(m, 1));
    int more = add_temporary(m, "more", QUERN_BOOL, number(m, 1));
    int w = qn_program_add_buffer(p, (qn_pbuffer){ .name = "w",
                                                   .dtype = QUERN_F32,
                                                   .elements = number(m, (LEVELS + 1) * COLUMNS),
                                                   .place = QN_PLACE_WEIGHTS,
                                                   .offset = number(m, 0) });
    qn_pbuffer row = { .name = "row",
                       .dtype = QUERN_F32,
                       .elements = number(m, COLUMNS),
                       .place = QN_PLACE_VIEW,
                       .base = w,
                       .offset = number(m, 0),
                       .loop = 0,
                       .stride = number(m, sizeof weights[0]) };
    int level = qn_program_add_buffer(p, row);
    row.loop = -1;
    row.offset = number(m, sizeof weights[0] * LEVELS);
    int last = qn_program_add_buffer(p, row);
    qn_dim tasks = qn_dim_ceildiv(dims, m->n, number(m, ROWS));

    qn_steps *steps = &p->steps;
    add_call(m, steps, add_row(arena), 3, (int[]){ x, last, a }, m->n, tasks);
    qn_step *loop = qn_steps_add(p, steps, QN_STEP_LOOP);
    loop->loop = 0;
    loop->count = number(m, LEVELS);
    loop->reverse = true;
    add_call(m, &loop->body, add_row(arena), 3, (int[]){ a, level, b }, m->n, tasks);
    loop->body.items[0].alternates = true;
    add_pair(m, &loop->body, QN_STEP_SWAP, a, b);
    add_call(m, steps, count_positive(arena), 3, (int[]){ a, count, most }, m->n, NULL);
    qn_step *branch = qn_steps_add(p, steps, QN_STEP_IF);
    branch->condition = most;
    add_call(m, &branch->body, twice(arena), 2, (int[]){ a, y }, all, NULL);
    add_pair(m, &branch->other, QN_STEP_COPY, a, y);
    qn_step *bind = add_pair(m, steps, QN_STEP_BIND, count, count);
    bind->n_buffers = 1;
    bind->count = m->decided;
    add_call(m, steps, iota(arena), 1, (int[]){ out }, m->decided, NULL);
    add_call(m, steps, gather(arena), 3, (int[]){ w, index, g }, NULL, m->n);
    qn_step *repeat = qn_steps_add(p, steps, QN_STEP_LOOP);
    repeat->loop = 1;
    repeat->condition = more;
    add_call(m, &repeat->test, below(arena), 2, (int[]){ counter, more }, m->n, NULL);
    add_call(m, &repeat->body, advance(arena), 1, (int[]){ counter }, NULL, NULL);
    p->n_loops = 2;
    const int n_steps = qn_program_number(p);
    for (int i = 0; i < p->n_buffers; i++)
        p->buffers[i].last = n_steps - 1; /* nothing shares its place */
    return p;
}

/* ---- the same in C ---- */

static void fill(const abi_call *call, int64_t n, float shift)
{
    float *x = abi_buffer(call, "x");
    int64_t *index = abi_buffer(call, "index");
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < COLUMNS; j++)
            x[i * COLUMNS + j] = (float)((i * 7 + j * 3) % 11) + shift;
        index[i] = i % (LEVELS + 1);
    }
    *(int64_t *)abi_buffer(call, "counter") = 1;
}

static void assert_results(const abi_call *call, int64_t n)
{
    const float *x = abi_buffer(call, "x"), *y = abi_buffer(call, "y"), *g = abi_buffer(call, "g");
    const int64_t *index = abi_buffer(call, "index"), *out = abi_buffer(call, "out");
    int64_t count = 0, counter = 1;
    float *t = calloc((size_t)n * COLUMNS, sizeof *t);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < COLUMNS; j++) {
            t[i * COLUMNS + j] = x[i * COLUMNS + j];
            for (int l = LEVELS; l >= 0; l--)
                t[i * COLUMNS + j] += weights[l][j];
        }
        count += t[i * COLUMNS] > 0;
    }
    for (int64_t i = 0; i < n * COLUMNS; i++)
        assert_true(y[i] == (2 * count > n ? 2 * t[i] : t[i]));
    assert_int_equal(abi_symbols(call)[1], count);
    assert_int_equal(abi_elements(call, "out"), count);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(out[i], i);
    for (int64_t i = 0; i < n; i++)
        assert_true(g[i] == weights[index[i]][0]);
    while (counter < n)
        counter += 3;
    assert_int_equal(*(int64_t *)abi_buffer(call, "counter"), counter);
    free(t);
}

/* ---- what is true however the code got here ---- */

typedef struct events {
    int n_begun, n_ended;
    char first[32];
} events;

static void trace(void *user, const char *kernel, int begin)
{
    events *e = user;
    if (e->n_begun == 0)
        snprintf(e->first, sizeof e->first, "%s", kernel);
    *(begin ? &e->n_begun : &e->n_ended) += 1;
}

/* Lent instead of a pool: how often each function was called. */
typedef struct both_ways {
    int up, down; /* `up` first: abi_reverse_for counts there */
} both_ways;

static void down_for(void *pool, void (*task)(void *arg, int64_t i), void *arg, int64_t n)
{
    ((both_ways *)pool)->down++;
    for (int64_t i = n - 1; i >= 0; i--)
        task(arg, i);
}

static void check_model(const quern_model_info *model, const void *lent_weights)
{
    quern_ctx ctx = { .size = sizeof ctx, .weights = lent_weights };
    abi_check_tables(model);
    assert_int_equal(model->weights_bytes, sizeof weights);
    const quern_entry_info *entry = abi_entry(model, "infer");
    assert_string_equal(entry->buffers[0].text, "f32[n, 4]");
    assert_int_equal(entry->buffers[0].symbols[0], 0);
    assert_int_equal(entry->buffers[0].dims[1], 4);
    assert_int_equal(entry->buffers[5].trainable, 1);
    assert_int_equal(entry->symbols[1].decided, 1);
    static const int64_t sizes[] = { 1, 2, 7, 8, 9, 100, BATCH_MAX };
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t n = sizes[s];
        abi_call call = abi_call_new(model, "infer", &n);
        assert_int_equal(call.workspace_bytes, 2 * ((n * 16 + 63) / 64 * 64) + 3 * 64);
        for (int shift = -30; shift <= 0; shift += 15) { /* none, some, all are positive */
            fill(&call, n, (float)shift);
            assert_int_equal(abi_run(&call, lent_weights ? &ctx : NULL), QUERN_OK);
            assert_results(&call, n);
        }
        abi_call_free(&call);
    }

    int64_t n = 20;
    int stop = 1;
    both_ways calls = { 0 };
    events e = { 0 };
    abi_call call = abi_call_new(model, "infer", &n);
    fill(&call, n, 0);
    ctx = (quern_ctx){ .size = sizeof ctx,
                       .weights = lent_weights,
                       .parallel_for = abi_reverse_for,
                       .pool = &calls,
                       .trace = trace,
                       .trace_user = &e,
                       .failed_node = 77 };
    assert_int_equal(abi_run(&call, &ctx), QUERN_OK);
    assert_results(&call, n);
    assert_int_equal(calls.up, 1 + LEVELS + 1); /* a NULL parallel_for_down is not called */
    assert_int_equal(e.n_begun, e.n_ended);
    assert_int_equal(e.n_begun, 1 + LEVELS + 2 + 2 + 8 + 7);
    assert_string_equal(e.first, "add_row");
    assert_int_equal(ctx.failed_node, -1);

    /* Odd iterations go down, where the host knows what that is. */
    calls = (both_ways){ 0 };
    ctx.trace = NULL;
    ctx.parallel_for_down = down_for;
    assert_int_equal(abi_run(&call, &ctx), QUERN_OK);
    assert_results(&call, n);
    assert_int_equal(calls.down, LEVELS / 2);
    assert_int_equal(calls.up, 1 + LEVELS - LEVELS / 2 + 1);
    calls = (both_ways){ 0 };
    ctx.size = offsetof(quern_ctx, parallel_for_down);
    assert_int_equal(abi_run(&call, &ctx), QUERN_OK);
    assert_int_equal(calls.down, 0);
    ctx.size = sizeof ctx;

    ((int64_t *)abi_buffer(&call, "index"))[13] = LEVELS + 1;
    assert_int_equal(abi_run(&call, &ctx), QUERN_ERROR_INDEX);
    assert_string_equal(entry->node_names[ctx.failed_node], "gather");
    ctx.cancel = &stop;
    assert_int_equal(abi_run(&call, &ctx), QUERN_ERROR_CANCELLED);
    assert_int_equal(ctx.failed_node, -1);
    ctx.cancel = NULL;

    abi_symbols(&call)[0] = BATCH_MAX + 1;
    assert_int_equal(abi_run(&call, &ctx), QUERN_ERROR_RANGE);
    abi_symbols(&call)[0] = 0;
    assert_int_equal(abi_run(&call, &ctx), QUERN_ERROR_RANGE);
    int64_t outside[] = { BATCH_MAX + 1, 0 };
    assert_int_equal(entry->workspace_bytes(outside), -1);
    abi_symbols(&call)[0] = n;
    assert_int_equal(entry->run(NULL, call.workspace, &ctx), QUERN_ERROR_ARGUMENT);
    assert_int_equal(entry->run(call.io, (char *)call.workspace + 4, &ctx), QUERN_ERROR_ARGUMENT);
    for (int i = 0; i < entry->n_buffers; i++) { /* one of them has as many rows as there may be of a count */
        void *given = call.io[i];
        call.io[i] = NULL;
        assert_int_equal(abi_run(&call, &ctx), QUERN_ERROR_ARGUMENT);
        call.io[i] = given;
    }
    if (lent_weights)
        assert_int_equal(abi_run(&call, NULL), QUERN_ERROR_ARGUMENT);
    abi_call_free(&call);
}

/* ---- three ways to run it ---- */

enum { MOST_OBJECTS = 16 };

typedef struct built {
    qn_arena *arena;
    qn_diags diags;
    const qn_program *program;
    int n;
    qn_code objects[MOST_OBJECTS];
    const char *names[MOST_OBJECTS];
} built;

static void must(built *b, qn_status status)
{
    if (status)
        fail_msg("%s", qn_diags_text(&b->diags, b->arena));
}

static void build(built *b, bool jit, bool weights_inside)
{
    *b = (built){ .arena = qn_arena_new() };
    qn_diags_init(&b->diags, b->arena);
    qn_target target = { .jit = jit };
    const qn_program *p = make_program(b->arena);
    const char **symbols = QN_NEW_ARRAY(b->arena, const char *, p->n_kernels);
    const char *const *all[] = { symbols };
    for (int i = 0; i < p->n_kernels; i++) {
        symbols[i] = b->names[b->n] = qn_arena_printf(b->arena, "kernel_%s", p->kernels[i]->name);
        must(b, qn_backend_cpu.emit_kernel(p->kernels[i], symbols[i], &target, QN_MATH_DEFAULT,
                                           QN_EMIT_OBJECT, b->arena, &b->objects[b->n++], &b->diags));
    }
    b->program = p;
    b->names[b->n] = "entries";
    const qn_entries entries = { .n_programs = 1,
                                 .programs = &p,
                                 .kernel_symbols = all,
                                 .prefix = "steps",
                                 .weights_hash = "cafe",
                                 .weights_inside = weights_inside };
    must(b, qn_backend_cpu.emit_entries(&entries, &target, QN_EMIT_OBJECT, b->arena, &b->objects[b->n++],
                                        &b->diags));
}

static const quern_model_info *query(void *symbol)
{
    quern_query_fn fn;
    assert_non_null(symbol);
    memcpy(&fn, &symbol, sizeof fn);
    assert_null(fn(QUERN_ABI_VERSION + 1));
    return fn(QUERN_ABI_VERSION);
}

static void runs_in_this_process(void **state)
{
    (void)state;
    for (int inside = 0; inside < 2; inside++) {
        built b;
        void *image;
        build(&b, true, inside);
        must(&b, qn_backend_cpu.load(b.n, b.objects, b.names, &image, &b.diags));
        const void **base = qn_backend_cpu.symbol(image, "steps_weights_base");
        assert_int_equal(base != NULL, inside);
        if (inside)
            *base = weights;
        const quern_model_info *model = query(qn_backend_cpu.symbol(image, "steps_query"));
        assert_ptr_equal(model->weights, inside ? weights : NULL);
        check_model(model, inside ? NULL : weights);
        assert_null(qn_backend_cpu.symbol(image, "no_such_symbol"));
        qn_backend_cpu.unload(image);
        qn_arena_free(b.arena);
    }
}

/* The definition of what steps mean agrees. */
static void runs_in_the_interpreter(void **state)
{
    (void)state;
    built b;
    void *image;
    build(&b, true, false);
    must(&b, qn_program_verify(b.program, &b.diags));
    must(&b, qn_backend_cpu.load(b.n, b.objects, b.names, &image, &b.diags));
    const quern_model_info *model = query(qn_backend_cpu.symbol(image, "steps_query"));
    for (int64_t n = 1; n < 100; n = 3 * n + 1) {
        abi_call call = abi_call_new(model, "infer", &n);
        for (int shift = -30; shift <= 0; shift += 15) {
            fill(&call, n, (float)shift);
            must(&b, qn_interp_program(b.program, call.io, call.workspace, weights, NULL, &b.diags));
            assert_results(&call, n);
        }
        ((int64_t *)abi_buffer(&call, "index"))[0] = -1;
        quern_ctx ctx = { .size = sizeof ctx };
        assert_int_equal(qn_interp_program(b.program, call.io, call.workspace, weights, &ctx, &b.diags),
                         QUERN_ERROR_INDEX);
        assert_int_equal(ctx.failed_node, 1);
        abi_call_free(&call);
    }
    qn_backend_cpu.unload(image);
    qn_arena_free(b.arena);
}

static const char *output_of(const char *command, qn_arena *arena)
{
    char text[4096];
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t n = fread(text, 1, sizeof text - 1, pipe);
    text[n] = 0;
    assert_int_equal(pclose(pipe), 0);
    return qn_arena_strdup(arena, text);
}

static int make_inputs(built *b, const char *folder, bool weights_inside, qn_link_input *inputs)
{
    for (int i = 0; i < b->n; i++)
        inputs[i] =
            (qn_link_input){ .name = qn_arena_printf(b->arena, "%s.o", b->names[i]), .code = b->objects[i] };
    if (!weights_inside)
        return b->n;
    const char *source = qn_arena_printf(b->arena, "%s/weights.c", folder);
    const char *object = qn_arena_printf(b->arena, "%s/weights.o", folder);
    FILE *file = fopen(source, "w");
    assert_non_null(file);
    fprintf(file, "__attribute__((visibility(\"hidden\"), aligned(64))) const float steps_weights[] = {");
    for (int i = 0; i < (LEVELS + 1) * COLUMNS; i++)
        fprintf(file, "%g,", (double)weights[i / COLUMNS][i % COLUMNS]);
    fprintf(file, "};\n");
    fclose(file);
    output_of(qn_arena_printf(b->arena, "cc -c -fPIC -o %s %s", object, source), b->arena);
    inputs[b->n] = (qn_link_input){ .name = "weights.o", .path = object };
    return b->n + 1;
}

static void runs_as_shared_object(void **state)
{
    (void)state;
    static const char *const linkers[] = { "", "cc", "ld.lld-22", "ld" };
    for (int i = 0; i < 8; i++) {
        bool inside = i % 2;
        char folder[] = "/tmp/quern-test-XXXXXX";
        qn_link_input inputs[MOST_OBJECTS];
        built b;
        assert_non_null(mkdtemp(folder));
        build(&b, false, inside);
        const char *path = qn_arena_printf(b.arena, "%s/steps.so", folder);
        setenv("QUERN_LINKER", linkers[i / 2], 1);
        int n = make_inputs(&b, folder, inside, inputs);
        must(&b, qn_link(QN_LINK_SHARED, path, "steps_query", NULL, n, inputs, &b.diags));
        unsetenv("QUERN_LINKER");
        assert_string_equal(output_of(qn_arena_printf(b.arena, "nm -D -u %s", path), b.arena), "");
        const char *exports = output_of(qn_arena_printf(b.arena, "nm -D --defined-only %s", path), b.arena);
        assert_non_null(strstr(exports, "steps_query"));
        assert_null(strchr(strchr(exports, '\n') + 1, '\n')); /* one line */
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library)
            fail_msg("%s", dlerror());
        check_model(query(dlsym(library, "steps_query")), inside ? NULL : weights);
        dlclose(library);
        output_of(qn_arena_printf(b.arena, "ls -A %s", folder), b.arena);
        output_of(qn_arena_printf(b.arena, "rm -r %s", folder), b.arena);
        qn_arena_free(b.arena);
    }
}

static void links_statically(void **state)
{
    (void)state;
    char folder[] = "/tmp/quern-test-XXXXXX";
    qn_link_input inputs[MOST_OBJECTS];
    built b;
    assert_non_null(mkdtemp(folder));
    build(&b, false, true);
    int n = make_inputs(&b, folder, true, inputs);
    const char *archive = qn_arena_printf(b.arena, "%s/libsteps.a", folder);
    const char *object = qn_arena_printf(b.arena, "%s/steps.o", folder);
    must(&b, qn_link(QN_LINK_ARCHIVE, archive, NULL, NULL, n, inputs, &b.diags));
    must(&b, qn_link(QN_LINK_OBJECT, object, NULL, NULL, n, inputs, &b.diags));
    const char *names = output_of(qn_arena_printf(b.arena, "ar t %s", archive), b.arena);
    assert_non_null(strstr(names, "kernel_count_positive.o\n"));
    assert_non_null(strstr(names, "weights.o\n"));
    const char *source = qn_arena_printf(b.arena, "%s/main.c", folder);
    FILE *file = fopen(source, "w");
    fprintf(file, "#include \"quern_abi.h\"\n"
                  "const quern_model_info *steps_query(uint32_t);\n"
                  "int main(void) { return steps_query(1)->n_entries - 1; }\n");
    fclose(file);
    for (int i = 0; i < 2; i++)
        output_of(qn_arena_printf(b.arena, "cc -I%s/include -o %s/main %s %s && %s/main", QN_SOURCE_DIR,
                                  folder, source, i ? object : archive, folder),
                  b.arena);
    output_of(qn_arena_printf(b.arena, "rm -r %s", folder), b.arena);
    qn_arena_free(b.arena);
}

static void reports_what_cannot_be_linked(void **state)
{
    (void)state;
    qn_link_input inputs[MOST_OBJECTS];
    built b;
    build(&b, false, true); /* and no weights */
    char folder[] = "/tmp/quern-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    int n = make_inputs(&b, folder, false, inputs);
    const char *path = qn_arena_printf(b.arena, "%s/steps.so", folder);
    assert_int_equal(qn_link(QN_LINK_SHARED, path, "steps_query", NULL, n, inputs, &b.diags), QUERN_ERROR_IO);
    assert_non_null(strstr(qn_diags_text(&b.diags, b.arena), "steps_weights"));
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(rmdir(folder), 0); /* nothing is left behind */
    assert_int_equal(qn_link(QN_LINK_ARCHIVE, "/no/such/folder/x.a", NULL, NULL, n, inputs, &b.diags),
                     QUERN_ERROR_IO);
    void *image;
    b.n--; /* the kernels without the entries, then the entries without the kernels */
    assert_int_equal(qn_backend_cpu.load(1, &b.objects[b.n], &b.names[b.n], &image, &b.diags),
                     QUERN_ERROR_INTERNAL);
    assert_null(image);
    qn_arena_free(b.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_in_this_process),          cmocka_unit_test(runs_in_the_interpreter),
        cmocka_unit_test(runs_as_shared_object),         cmocka_unit_test(links_statically),
        cmocka_unit_test(reports_what_cannot_be_linked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
