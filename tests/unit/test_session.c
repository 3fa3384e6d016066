/* Sessions on a model whose tables are written by hand: what an emitted object must look like to the runtime. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ir/dtype.h"
#include "runtime/error.h"
#include "runtime/model.h"
#include "runtime/session.h"

/* ---- infer(x f32[batch, 4], y f32[batch, 2*half]) -> z f32[batch]: sum of x's row, times y's last, plus bias ---- */

static const float weights[] = { 100, 200, 300 };

struct infer_io {
    const float *x, *y;
    float *z, *counter;
    int64_t batch, half;
};

static int run_infer(void *io_, void *workspace, quern_ctx *ctx)
{
    struct infer_io *io = io_;
    float *sums = workspace;
    assert_int_equal((uintptr_t)workspace % 64, 0);
    if (ctx->cancel && *ctx->cancel)
        return QUERN_ERROR_CANCELLED;
    for (int64_t i = 0; i < io->batch; i++) {
        sums[i] = 0;
        for (int j = 0; j < 4; j++)
            sums[i] += io->x[i * 4 + j];
        if (sums[i] < 0) {
            ctx->failed_node = 1;
            return QUERN_ERROR_INDEX;
        }
        io->z[i] = sums[i] * io->y[i * 2 * io->half + 2 * io->half - 1] + io->counter[2];
    }
    io->counter[0]++;
    return QUERN_OK;
}

static int64_t infer_workspace(const int64_t *symbols)
{
    return symbols[0] * 4;
}

static void infer_shape(int32_t buffer, const int64_t *symbols, int64_t *out)
{
    switch (buffer) {
    case 0: out[0] = symbols[0], out[1] = 4; break;
    case 1: out[0] = symbols[0], out[1] = 2 * symbols[1]; break;
    case 2: out[0] = symbols[0]; break;
    case 3: out[0] = 3; break;
    }
}

#define BUFFER(name_, role_, rank_, dims_, symbols_, text_, initial_) \
    { .size = sizeof(quern_buffer_info),                              \
      .name = name_,                                                  \
      .role = role_,                                                  \
      .dtype = QUERN_F32,                                             \
      .rank = rank_,                                                  \
      .alias = -1,                                                    \
      .dims = (const int64_t[])dims_,                                 \
      .symbols = (const int32_t[])symbols_,                           \
      .text = text_,                                                  \
      .initial = initial_ }
#define LIST(...) { __VA_ARGS__ }

static const quern_buffer_info infer_buffers[] = {
    BUFFER("x", QUERN_INPUT, 2, LIST(-1, 4), LIST(0, -1), "f32[batch, 4]", -1),
    BUFFER("y", QUERN_INPUT, 2, LIST(-1, -1), LIST(0, -1), "f32[batch, 2*half]", -1),
    BUFFER("z", QUERN_OUTPUT, 1, LIST(-1), LIST(0), "f32[batch]", -1),
    BUFFER("counter", QUERN_STATE, 1, LIST(3), LIST(-1), "f32[3]", 0),
};
static const quern_symbol_info infer_symbols[] = {
    { .size = sizeof(quern_symbol_info), .name = "batch", .min = 1, .max = 64 },
    { .size = sizeof(quern_symbol_info), .name = "half", .min = 1, .max = 8 },
};
static const char *const infer_nodes[] = { "/first", "/gather" };

/* ---- positive(x f32[n]) -> y f32[found]: the positive elements ---- */

struct positive_io {
    const float *x;
    float *y;
    int64_t n, found;
};

static int run_positive(void *io_, void *workspace, quern_ctx *ctx)
{
    struct positive_io *io = io_;
    (void)workspace, (void)ctx;
    int64_t found = 0;
    for (int64_t i = 0; i < io->n; i++)
        if (io->x[i] > 0)
            io->y[found++] = io->x[i];
    io->found = found;
    return QUERN_OK;
}

static int64_t positive_workspace(const int64_t *symbols)
{
    return symbols[1] * 0;
}

static void positive_shape(int32_t buffer, const int64_t *symbols, int64_t *out)
{
    out[0] = symbols[buffer];
}

static void positive_limits(int64_t *symbols)
{
    symbols[1] = symbols[0];
}

static const quern_buffer_info positive_buffers[] = {
    BUFFER("x", QUERN_INPUT, 1, LIST(-1), LIST(0), "f32[n]", -1),
    BUFFER("y", QUERN_OUTPUT, 1, LIST(-1), LIST(1), "f32[found]", -1),
};
static const quern_symbol_info positive_symbols[] = {
    { .size = sizeof(quern_symbol_info), .name = "n", .min = 0, .max = 1000 },
    { .size = sizeof(quern_symbol_info), .name = "found", .min = 0, .max = 1000, .decided = 1 },
};

static const quern_entry_info entries[] = {
    { .size = sizeof(quern_entry_info),
      .name = "infer",
      .run = run_infer,
      .workspace_bytes = infer_workspace,
      .shape = infer_shape,
      .n_buffers = 4,
      .n_symbols = 2,
      .buffers = infer_buffers,
      .symbols = infer_symbols,
      .n_nodes = 2,
      .node_names = infer_nodes },
    { .size = sizeof(quern_entry_info),
      .name = "positive",
      .run = run_positive,
      .workspace_bytes = positive_workspace,
      .shape = positive_shape,
      .n_buffers = 2,
      .n_symbols = 2,
      .buffers = positive_buffers,
      .symbols = positive_symbols,
      .limits = positive_limits },
};
static const quern_model_info info = { .size = sizeof info,
                                       .abi_version = QUERN_ABI_VERSION,
                                       .name = "hand",
                                       .n_entries = 2,
                                       .entries = entries,
                                       .weights = weights,
                                       .weights_bytes = sizeof weights };

static void release_nothing(quern_model *model)
{
    (void)model;
}

static quern_model model = { .info = &info, .threads = 1, .release = release_nothing };

static quern_session *new_session(const char *entry)
{
    quern_session *s;
    assert_int_equal(quern_session_new(&model, entry, &s), QUERN_OK);
    return s;
}

static int bind(quern_session *s, int index, int rank, const int64_t *dims, const void *data)
{
    return quern_session_bind(
        s, index, &(quern_array){ .dtype = QUERN_F32, .rank = rank, .dims = dims, .data = (void *)data });
}

#define DIMS(...) ((const int64_t[]){ __VA_ARGS__ })

static void runs_and_follows_new_shapes(void **state)
{
    (void)state;
    quern_session *s = new_session(NULL);
    float x[12] = { 1, 2, 3, 4, 1, 1, 1, 1, 0, 0, 0, 5 }, y[12] = { 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4 };
    assert_int_equal(bind(s, 0, 2, DIMS(2, 4), x), QUERN_OK);
    assert_int_equal(bind(s, 1, 2, DIMS(2, 4), y), QUERN_OK);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    quern_array z;
    assert_int_equal(quern_session_get(s, 2, &z), QUERN_OK);
    assert_int_equal(z.rank, 1);
    assert_int_equal(z.dims[0], 2);
    assert_float_equal(((float *)z.data)[0], 320, 0);
    assert_float_equal(((float *)z.data)[1], 312, 0);
    /* another batch */
    assert_int_equal(bind(s, 0, 2, DIMS(3, 4), x), QUERN_OK);
    assert_int_equal(bind(s, 1, 2, DIMS(3, 4), y), QUERN_OK);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    assert_int_equal(quern_session_get(s, 2, &z), QUERN_OK);
    assert_int_equal(z.dims[0], 3);
    assert_float_equal(((float *)z.data)[2], 320, 0);
    /* the output in the caller's memory */
    float mine[3] = { 0 };
    assert_int_equal(bind(s, 2, 1, DIMS(3), mine), QUERN_OK);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    assert_float_equal(mine[1], 312, 0);
    /* and back, for yet another batch */
    assert_int_equal(quern_session_bind(s, 2, NULL), QUERN_OK);
    assert_int_equal(bind(s, 0, 2, DIMS(1, 4), x), QUERN_OK);
    assert_int_equal(bind(s, 1, 2, DIMS(1, 4), y), QUERN_OK);
    int64_t dims[2];
    assert_int_equal(quern_session_dims(s, 2, dims), QUERN_OK);
    assert_int_equal(dims[0], 1);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    assert_int_equal(quern_session_get(s, 2, &z), QUERN_OK);
    assert_ptr_not_equal(z.data, mine);
    assert_float_equal(((float *)z.data)[0], 320, 0);
    quern_session_free(s);
}

static void refuses_what_does_not_fit(void **state)
{
    (void)state;
    quern_session *s = new_session("infer");
    float x[260] = { 0 }, y[260] = { 0 };
    assert_int_equal(quern_session_run(s), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(quern_last_error(), "input 0 'x' (f32[batch, 4]) is not bound"));
    assert_int_equal(bind(s, 0, 2, DIMS(3, 5), x), QUERN_ERROR_ARGUMENT);
    assert_string_equal(quern_last_error(), "input 0 'x' is f32[3, 5]; the model takes f32[batch, 4]");
    assert_int_equal(bind(s, 0, 1, DIMS(4), x), QUERN_ERROR_ARGUMENT);
    quern_array wrong = { .dtype = QUERN_I64, .rank = 2, .dims = DIMS(3, 4), .data = x };
    assert_int_equal(quern_session_bind(s, 0, &wrong), QUERN_ERROR_ARGUMENT);
    assert_string_equal(quern_last_error(), "input 0 'x' is i64[3, 4]; the model takes f32[batch, 4]");
    assert_int_equal(bind(s, 9, 1, DIMS(4), x), QUERN_ERROR_ARGUMENT);
    assert_int_equal(bind(s, 0, 2, DIMS(3, 4), NULL), QUERN_ERROR_ARGUMENT);
    assert_int_equal(bind(s, 0, 2, DIMS(3, 4), (char *)x + 1), QUERN_ERROR_ARGUMENT);
    assert_int_equal(bind(s, 0, 2, DIMS(3, 4), x), QUERN_OK);
    assert_int_equal(bind(s, 1, 2, DIMS(5, 2), y), QUERN_OK);
    assert_int_equal(quern_session_run(s), QUERN_ERROR_ARGUMENT);
    assert_string_equal(
        quern_last_error(),
        "input 1 'y' is f32[5, 2]; the model takes f32[batch, 2*half], which is f32[3, 2] with "
        "batch = 3, half = 1");
    assert_int_equal(bind(s, 1, 2, DIMS(3, 3), y), QUERN_OK); /* half would be 1.5 */
    assert_int_equal(quern_session_run(s), QUERN_ERROR_ARGUMENT);
    assert_int_equal(bind(s, 1, 2, DIMS(3, 32), y), QUERN_OK);
    assert_int_equal(quern_session_run(s), QUERN_ERROR_RANGE);
    assert_non_null(
        strstr(quern_last_error(), "half is 16 by input 1 'y'; the model was compiled for 1 to 8"));
    assert_int_equal(bind(s, 0, 2, DIMS(65, 4), x), QUERN_OK);
    assert_int_equal(quern_session_run(s), QUERN_ERROR_RANGE);
    assert_non_null(strstr(quern_last_error(), "batch is 65"));
    /* and still works */
    assert_int_equal(bind(s, 0, 2, DIMS(1, 4), x), QUERN_OK);
    assert_int_equal(bind(s, 1, 2, DIMS(1, 2), y), QUERN_OK);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    /* what the entry itself reports */
    x[0] = -1;
    assert_int_equal(quern_session_run(s), QUERN_ERROR_INDEX);
    assert_non_null(strstr(quern_last_error(), "/gather"));
    volatile int cancel = 1;
    quern_session_ctx(s)->cancel = &cancel;
    assert_int_equal(quern_session_run(s), QUERN_ERROR_CANCELLED);
    quern_session_free(s);
    quern_session *none;
    assert_int_equal(quern_session_new(&model, "train", &none), QUERN_ERROR_ARGUMENT);
    assert_null(none);
    assert_int_equal(quern_session_new(NULL, NULL, &none), QUERN_ERROR_ARGUMENT);
}

static void keeps_and_shares_states(void **state)
{
    (void)state;
    quern_session *a = new_session(NULL), *b = new_session(NULL);
    float x[4] = { 1, 0, 0, 0 }, y[2] = { 0, 1 };
    quern_array counter, of_b;
    assert_int_equal(quern_session_get(b, 3, &of_b), QUERN_OK);
    assert_float_equal(((float *)of_b.data)[0], 100, 0);
    assert_int_equal(quern_session_share_states(b, a), QUERN_OK);
    for (int i = 0; i < 2; i++) {
        quern_session *s = i ? b : a;
        assert_int_equal(bind(s, 0, 2, DIMS(1, 4), x), QUERN_OK);
        assert_int_equal(bind(s, 1, 2, DIMS(1, 2), y), QUERN_OK);
        assert_int_equal(quern_session_run(s), QUERN_OK);
    }
    assert_int_equal(quern_session_get(a, 3, &counter), QUERN_OK);
    assert_int_equal(quern_session_get(b, 3, &of_b), QUERN_OK);
    assert_ptr_equal(counter.data, of_b.data);
    assert_float_equal(((float *)counter.data)[0], 102, 0);
    assert_float_equal(weights[0], 100, 0);
    quern_session_free(b);
    quern_session_free(a);
}

static void lends_inputs(void **state)
{
    (void)state;
    quern_session *s = new_session(NULL);
    quern_array array;
    assert_int_equal(quern_session_get(s, 0, &array), QUERN_ERROR_ARGUMENT); /* batch is unknown */
    quern_session_free(s);
}

static void finds_counts(void **state)
{
    (void)state;
    quern_session *s = new_session("positive");
    float x[5] = { 1, -2, 3, -4, 5 };
    assert_int_equal(bind(s, 0, 1, DIMS(5), x), QUERN_OK);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    quern_array y;
    assert_int_equal(quern_session_get(s, 1, &y), QUERN_OK);
    assert_int_equal(y.dims[0], 3);
    assert_float_equal(((float *)y.data)[2], 5, 0);
    int64_t most;
    assert_int_equal(quern_session_dims(s, 1, &most), QUERN_OK);
    assert_int_equal(most, 5);
    assert_int_equal(quern_session_get(s, 1, &y), QUERN_OK);
    float room[8], little[2];
    assert_int_equal(bind(s, 1, 1, DIMS(8), room), QUERN_OK);
    x[1] = 2;
    assert_int_equal(quern_session_run(s), QUERN_OK);
    assert_int_equal(quern_session_get(s, 1, &y), QUERN_OK);
    assert_ptr_equal(y.data, room);
    assert_int_equal(y.dims[0], 4);
    assert_int_equal(quern_session_run(s), QUERN_OK);
    assert_int_equal(bind(s, 1, 1, DIMS(2), little), QUERN_OK); /* not enough in the worst case */
    assert_int_equal(quern_session_run(s), QUERN_ERROR_ARGUMENT);
    quern_session_free(s);
}

static void names_agree_with_the_compiler(void **state)
{
    (void)state;
    for (int dtype = QUERN_BOOL; dtype <= QUERN_F64; dtype++) {
        assert_string_equal(quern_dtype_text(dtype), qn_dtype_name(dtype));
        assert_int_equal(quern_dtype_size(dtype), qn_dtype_bytes(dtype));
    }
    assert_int_equal(quern_dtype_size(0), 0);
    assert_int_equal(quern_dtype_size(99), 0);
    assert_int_equal(quern_dtype_size(-1), 0);
    assert_string_equal(quern_status_name(QUERN_ERROR_UNSUPPORTED), "unsupported");
    assert_string_equal(quern_status_name(QUERN_ERROR_INTERNAL), "internal");
    assert_string_equal(quern_status_name(77), "unknown");
}

static void prefixes_are_identifiers(void **state)
{
    (void)state;
    char prefix[16];
    qn_prefix_from_path("/a.b/resnet50.v2.so", prefix, sizeof prefix);
    assert_string_equal(prefix, "resnet50");
    qn_prefix_from_path("3d-net.so", prefix, sizeof prefix);
    assert_string_equal(prefix, "m3d_net");
    qn_prefix_from_path("a_very_long_name_of_a_model.so", prefix, sizeof prefix);
    assert_string_equal(prefix, "a_very_long_nam");
    quern_model *opened;
    assert_int_equal(quern_model_open("/does/not/exist.so", NULL, &opened), QUERN_ERROR_IO);
    assert_null(opened);
    assert_non_null(strstr(quern_last_error(), "/does/not/exist.so"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_and_follows_new_shapes),
        cmocka_unit_test(refuses_what_does_not_fit),
        cmocka_unit_test(keeps_and_shares_states),
        cmocka_unit_test(lends_inputs),
        cmocka_unit_test(finds_counts),
        cmocka_unit_test(names_agree_with_the_compiler),
        cmocka_unit_test(prefixes_are_identifiers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
