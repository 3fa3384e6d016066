/* A compiled model written by hand, in the form that the code generator emits, run through its tables by a caller
 * that knows nothing else. When this file and the generator disagree, one of them is wrong.
 *
 * The model: p = logistic(x w + b) for x f32[batch, 3]; then the class weight of each row's label, p * c[label].
 *   task      four rows of the batch; one more kernel checks the labels, so the entry can fail at a node
 *   workspace the logits, f32[batch]
 *   weights   w at 0, b at 64, c at 128 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "quern_abi.h"
#include "tests/support/abi_caller.h"

/* ---- the artifact ---- */

enum { ROWS = 4, N_CLASSES = 2, BATCH_MAX = 1000 };

static const struct {
    _Alignas(64) float w[3];
    _Alignas(64) float b[1];
    _Alignas(64) float c[N_CLASSES];
} weights = { { 0.5f, -1.0f, 2.0f }, { 0.25f }, { 1.0f, 3.0f } };

/* args: failed node | x w b logits | rows */
static void kernel_linear(int64_t *args, int64_t task)
{
    const float *x = (const float *)args[1], *w = (const float *)args[2], *b = (const float *)args[3];
    float *logits = (float *)args[4];
    int64_t rows = args[5], low = task * ROWS, high = low + ROWS < rows ? low + ROWS : rows;
    for (int64_t i = low; i < high; i++) {
        float sum = b[0];
        for (int64_t j = 0; j < 3; j++)
            sum += x[i * 3 + j] * w[j];
        logits[i] = sum;
    }
}

/* args: failed node | logits labels c p | rows */
static void kernel_weigh(int64_t *args, int64_t task)
{
    const float *logits = (const float *)args[1], *c = (const float *)args[3];
    const int64_t *labels = (const int64_t *)args[2];
    float *p = (float *)args[4];
    int64_t rows = args[5], low = task * ROWS, high = low + ROWS < rows ? low + ROWS : rows;
    for (int64_t i = low; i < high; i++) {
        int64_t label = labels[i] < 0 ? labels[i] + N_CLASSES : labels[i];
        if (label < 0 || label >= N_CLASSES) {
            __atomic_store_n(&args[0], 1, __ATOMIC_RELAXED); /* node 1 */
            return;
        }
        p[i] = c[label] / (1 + expf(-logits[i]));
    }
}

typedef void kernel_fn(int64_t *args, int64_t task);
static const quern_model_info model;
static const int never_cancelled = 0;

/* One kernel call; the generator emits this function once for each object. */
static int launch(const quern_ctx *ctx, int64_t *args, kernel_fn *kernel, int64_t tasks, const char *name)
{
    const volatile int *cancel = ctx && ctx->cancel ? ctx->cancel : &never_cancelled;
    if (*cancel)
        return QUERN_ERROR_CANCELLED;
    if (ctx && ctx->trace)
        ctx->trace(ctx->trace_user, name, 1);
    if (tasks > 1 && ctx && ctx->parallel_for)
        ctx->parallel_for(ctx->pool, (void (*)(void *, int64_t))kernel, args, tasks);
    else
        for (int64_t i = 0; i < tasks; i++)
            kernel(args, i);
    if (ctx && ctx->trace)
        ctx->trace(ctx->trace_user, name, 0);
    return args[0] < 0 ? QUERN_OK : QUERN_ERROR_INDEX;
}

typedef struct infer_io {
    const float *x;
    const int64_t *labels;
    float *p;
    int64_t batch;
} infer_io;

static int infer(void *io_, void *workspace, quern_ctx *ctx)
{
    const infer_io *io = io_;
    if (ctx)
        ctx->failed_node = -1;
    if (!io)
        return QUERN_ERROR_ARGUMENT;
    int64_t batch = io->batch;
    if (batch < 1 || batch > BATCH_MAX)
        return QUERN_ERROR_RANGE;
    if (!io->x || !io->labels || !io->p || !workspace || (uintptr_t)workspace % 64)
        return QUERN_ERROR_ARGUMENT;
    const char *w = model.weights;
    int64_t args[6] = { -1 }, tasks = (batch + ROWS - 1) / ROWS;
    args[1] = (int64_t)io->x;
    args[2] = (int64_t)w;
    args[3] = (int64_t)(w + 64);
    args[4] = (int64_t)workspace;
    args[5] = batch;
    int status = launch(ctx, args, kernel_linear, tasks, "linear");
    if (status)
        goto failed;
    args[1] = (int64_t)workspace;
    args[2] = (int64_t)io->labels;
    args[3] = (int64_t)(w + 128);
    args[4] = (int64_t)io->p;
    args[5] = batch;
    status = launch(ctx, args, kernel_weigh, tasks, "weigh");
    if (!status)
        return QUERN_OK;
failed:
    if (ctx)
        ctx->failed_node = (int32_t)args[0];
    return status;
}

static int64_t infer_workspace_bytes(const int64_t *symbols)
{
    return symbols[0] < 1 || symbols[0] > BATCH_MAX ? -1 : (symbols[0] * 4 + 63) / 64 * 64;
}

static void infer_shape(int32_t buffer, const int64_t *symbols, int64_t *out_dims)
{
    switch (buffer) {
    case 0:
        out_dims[0] = symbols[0];
        out_dims[1] = 3;
        break;
    case 1: out_dims[0] = symbols[0]; break;
    case 2: out_dims[0] = symbols[0]; break;
    }
}

static const int64_t dims_x[] = { -1, 3 }, dims_row[] = { -1 };
static const int32_t symbols_x[] = { 0, -1 }, symbols_row[] = { 0 };
static const quern_buffer_info infer_buffers[] = {
    { sizeof(quern_buffer_info), "x", QUERN_INPUT, QUERN_F32, 2, -1, dims_x, symbols_x, "f32[batch, 3]", -1,
      0 },
    { sizeof(quern_buffer_info), "labels", QUERN_INPUT, QUERN_I64, 1, -1, dims_row, symbols_row, "i64[batch]",
      -1, 0 },
    { sizeof(quern_buffer_info), "p", QUERN_OUTPUT, QUERN_F32, 1, -1, dims_row, symbols_row, "f32[batch]", -1,
      0 },
};
static const quern_symbol_info infer_symbols[] = { { sizeof(quern_symbol_info), "batch", 1, BATCH_MAX, 0 } };
static const char *const infer_nodes[] = { "linear", "gather" };
static const quern_entry_info entries[] = { {
    .size = sizeof(quern_entry_info),
    .name = "infer",
    .run = infer,
    .workspace_bytes = infer_workspace_bytes,
    .shape = infer_shape,
    .n_buffers = 3,
    .n_symbols = 1,
    .buffers = infer_buffers,
    .symbols = infer_symbols,
    .n_nodes = 2,
    .node_names = infer_nodes,
} };
static const quern_model_info model = {
    .size = sizeof(quern_model_info),
    .abi_version = QUERN_ABI_VERSION,
    .name = "logreg",
    .target = "by hand",
    .n_entries = 1,
    .entries = entries,
    .weights_bytes = sizeof weights,
    .weights = &weights,
    .weights_hash = "",
};

static const quern_model_info *logreg_query(uint32_t abi_version)
{
    return abi_version == QUERN_ABI_VERSION ? &model : NULL;
}

/* ---- the caller ---- */

static void fill(const abi_call *call, int64_t batch)
{
    float *x = abi_buffer(call, "x");
    int64_t *labels = abi_buffer(call, "labels");
    for (int64_t i = 0; i < batch; i++) {
        for (int64_t j = 0; j < 3; j++)
            x[i * 3 + j] = 0.01f * (float)(i * 3 + j) - 0.1f;
        labels[i] = i % 3 - 1;
    }
}

static void assert_probabilities(const abi_call *call, int64_t batch)
{
    const float *x = abi_buffer(call, "x"), *p = abi_buffer(call, "p");
    const int64_t *labels = abi_buffer(call, "labels");
    for (int64_t i = 0; i < batch; i++) {
        double logit = 0.5 * x[i * 3] - x[i * 3 + 1] + 2.0 * x[i * 3 + 2] + 0.25;
        double expected = (labels[i] == 0 ? 1.0 : 3.0) / (1 + exp(-logit));
        assert_true(fabs(p[i] - expected) < 1e-5);
    }
}

static void tables_are_sound(void **state)
{
    (void)state;
    assert_null(logreg_query(QUERN_ABI_VERSION + 1));
    abi_check_tables(logreg_query(QUERN_ABI_VERSION));
}

static void runs_for_any_batch(void **state)
{
    (void)state;
    const quern_model_info *info = logreg_query(QUERN_ABI_VERSION);
    for (int64_t batch = 1; batch <= BATCH_MAX; batch = batch * 3 + 1) {
        abi_call call = abi_call_new(info, "infer", &batch);
        assert_int_equal(abi_elements(&call, "x"), batch * 3);
        fill(&call, batch);
        assert_int_equal(abi_run(&call, NULL), QUERN_OK);
        assert_probabilities(&call, batch);
        abi_call_free(&call);
    }
}

typedef struct events {
    int n;
    char text[256];
} events;

static void trace(void *user, const char *kernel, int begin)
{
    events *e = user;
    e->n++;
    strcat(strcat(e->text, begin ? "<" : ">"), kernel);
}

static void lends_threads_and_trace(void **state)
{
    (void)state;
    int64_t batch = 10;
    abi_call call = abi_call_new(logreg_query(QUERN_ABI_VERSION), "infer", &batch);
    int parallel_calls = 0;
    events e = { 0 };
    quern_ctx ctx = { .size = sizeof ctx,
                      .parallel_for = abi_reverse_for,
                      .pool = &parallel_calls,
                      .trace = trace,
                      .trace_user = &e };
    fill(&call, batch);
    assert_int_equal(abi_run(&call, &ctx), QUERN_OK);
    assert_probabilities(&call, batch);
    assert_int_equal(parallel_calls, 2);
    assert_string_equal(e.text, "<linear>linear<weigh>weigh");
    assert_int_equal(ctx.failed_node, -1);
    abi_call_free(&call);
}

static void mistakes_are_statuses(void **state)
{
    (void)state;
    int64_t batch = 10;
    abi_call call = abi_call_new(logreg_query(QUERN_ABI_VERSION), "infer", &batch);
    const quern_entry_info *entry = call.entry;
    fill(&call, batch);
    quern_ctx ctx = { .size = sizeof ctx };

    ((int64_t *)abi_buffer(&call, "labels"))[7] = 2;
    assert_int_equal(abi_run(&call, &ctx), QUERN_ERROR_INDEX);
    assert_string_equal(entry->node_names[ctx.failed_node], "gather");
    fill(&call, batch);
    assert_int_equal(abi_run(&call, &ctx), QUERN_OK);
    assert_int_equal(ctx.failed_node, -1);

    int64_t too_large = BATCH_MAX + 1;
    assert_int_equal(entry->workspace_bytes(&too_large), -1);
    abi_symbols(&call)[0] = too_large;
    assert_int_equal(abi_run(&call, &ctx), QUERN_ERROR_RANGE);
    abi_symbols(&call)[0] = batch;

    int stop = 1;
    ctx.cancel = &stop;
    assert_int_equal(abi_run(&call, &ctx), QUERN_ERROR_CANCELLED);
    assert_int_equal(entry->run(NULL, call.workspace, NULL), QUERN_ERROR_ARGUMENT);
    assert_int_equal(entry->run(call.io, NULL, NULL), QUERN_ERROR_ARGUMENT);
    abi_call_free(&call);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_sound),
        cmocka_unit_test(runs_for_any_batch),
        cmocka_unit_test(lends_threads_and_trace),
        cmocka_unit_test(mistakes_are_statuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
