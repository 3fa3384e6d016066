/* Kernels for GPUs: mapped to threads they give what the interpreter gives, their PTX does, too, where every thread runs it, and
 * ptxas accepts it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/nvptx/ptx.h"
#include "driver/api.h"
#include "frontend/text/text.h"
#include "tests/support/eval.h"
#include "tests/support/lowered.h"
#include "tests/support/random_graph.h"

static const qn_target target = { .cpu = "sm_90" };

static bool has_ptxas(void)
{
    static int known = -1;
    if (known < 0)
        known = system("ptxas --version > /dev/null 2>&1") == 0;
    return known;
}

/* ---- PTX modules ---- */

typedef struct module {
    qn_arena *arena;
    qn_vec(qn_code) kernels;
    size_t n_threads; /* kernels on more than one thread */
} module;

static module module_begin(void)
{
    return (module){ .arena = qn_arena_new() };
}

static void add_kernels(module *m, const char *what, const qn_program *p, qn_diags *diags)
{
    for (int i = 0; i < p->n_kernels; i++) {
        qn_code code;
        const char *symbol = qn_arena_printf(m->arena, "k%zu", m->kernels.n);
        if (qn_backend_nvptx.emit_kernel(p->kernels[i], symbol, &target, QN_MATH_DEFAULT, QN_EMIT_ASSEMBLY,
                                         m->arena, &code, diags))
            fail_msg("%s: %s\n%s", what, qn_diags_text(diags, m->arena),
                     qn_kernel_print(p->kernels[i], m->arena));
        qn_vec_push(m->arena, &m->kernels, code);
        m->n_threads += p->kernels[i]->gpu_threads > 1;
    }
}

/* All of them in one module are given to ptxas. */
static void module_end(module *m, const char *what)
{
    assert_true(m->kernels.n > 0);
    if (has_ptxas()) {
        char path[] = "/tmp/quern_ptx_XXXXXX", command[128];
        int descriptor = mkstemp(path);
        assert_true(descriptor >= 0);
        FILE *file = fdopen(descriptor, "w");
        fputs(qn_ptx_join((int)m->kernels.n, m->kernels.items, m->arena), file);
        fclose(file);
        snprintf(command, sizeof command, "ptxas -O1 -arch=sm_90 -o /dev/null %s", path);
        if (system(command))
            fail_msg("%s: ptxas refuses %s", what, path);
        unlink(path);
    } else {
        print_message("%s: not assembled: there is no ptxas on the path\n", what);
    }
    qn_arena_free(m->arena);
}

static qn_pass_options gpu_options(qn_machine *machine, qn_arena *arena, qn_diags *diags)
{
    assert_int_equal(qn_backend_nvptx.describe(&target, arena, machine, diags), QUERN_OK);
    return (qn_pass_options){ .math = QN_MATH_DEFAULT, .machine = machine, .fold = qn_interp_fold };
}

/* ---- the PTX, run by tests/fake_cuda ---- */

static void ok(const char *what, int status)
{
    if (status)
        fail_msg("%s: %s", what, quern_last_error());
}

static int n_run;

/* A model for the GPU gives what the interpreter gives, whichever thread is first. */
static void check_run(const char *what, const qn_graph *graph, uint64_t seed)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    const int64_t *symbols = qn_random_symbols(graph->module, seed, arena);
    qn_array *inputs = qn_random_inputs(graph, seed, symbols, arena);
    qn_array *expected = QN_NEW_ARRAY(arena, qn_array, graph->n_outputs);
    if (qn_interp_run(graph, inputs, expected, arena, &diags))
        fail_msg("%s: the interpreter says: %s", what, qn_diags_text(&diags, arena));
    const quern_compile_options options = { .size = sizeof options, .target = "cuda" };
    quern_module *module = qn_handle_new(qn_module_clone(graph->module, 0, NULL), NULL);
    quern_model *model;
    quern_session *session;
    ok(what, quern_compile(module, &options, &model));
    quern_module_free(module);
    ok(what, quern_session_new(model, NULL, &session));
    for (int i = 0; i < graph->n_inputs; i++)
        ok(what, quern_session_bind(session, i,
                                    &(quern_array){ (int32_t)inputs[i].dtype, inputs[i].rank, inputs[i].dims,
                                                    inputs[i].data }));
    setenv("FAKE_CUDA_BACKWARDS", "1", 1);
    if (n_run++ % 2)
        unsetenv("FAKE_CUDA_BACKWARDS");
    ok(what, quern_session_run(session));
    for (int i = 0; i < graph->n_outputs; i++) {
        quern_array array;
        ok(what, quern_session_get(session, graph->n_inputs + i, &array));
        qn_array found = { .dtype = (qn_dtype)array.dtype, .rank = array.rank, .data = array.data };
        memcpy(found.dims, array.dims, (size_t)array.rank * sizeof *array.dims);
        const char *name =
            qn_arena_printf(arena, "%s, output %d of\n%s", what, i, qn_graph_print(graph, arena));
        expect_near(name, &found, &expected[i],
                    qn_dtype_is_float(found.dtype) ? lowered_tolerance(graph) : 0);
    }
    quern_session_free(session);
    quern_model_free(model);
    qn_arena_free(arena);
}

/* Compares, then emits. */
static void check_graph(module *m, const char *what, qn_graph *graph, uint64_t seed)
{
    bool is_pure =
        true; /* a session finds symbols by inputs alone, and a state has one place for before and after */
    for (int i = 0; i < graph->n_inputs; i++)
        is_pure &= graph->input_roles[i] == QN_ROLE_INPUT;
    if (is_pure)
        check_run(what, graph, seed);
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine;
    qn_diags_init(&diags, arena);
    const qn_pass_options options = gpu_options(&machine, arena, &diags);
    const int64_t *symbols = qn_random_symbols(graph->module, seed, arena);
    lowered_compare(what, graph, &options, qn_random_inputs(graph, seed, symbols, arena), symbols);
    qn_program *program;
    if (qn_lower(graph, &options, arena, &program, &diags))
        fail_msg("%s: %s", what, qn_diags_text(&diags, arena));
    add_kernels(m, what, program, &diags);
    qn_arena_free(arena);
}

/* ---- models as text ---- */

static void check_text(module *m, const char *text, uint64_t seed)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_module *parsed;
    qn_diags_init(&diags, arena);
    if (qn_text_parse(text, strlen(text), "model.qn", &parsed, &diags))
        fail_msg("%s", qn_diags_text(&diags, arena));
    check_graph(m, text, parsed->functions[0], seed);
    qn_module_free(parsed);
    qn_arena_free(arena);
}

static const char *const models[] = {
    "graph @main(%x: f32[8, 784], %w: f32[784, 128], %b: f32[128], %v: f32[128, 10]) -> f32[8, 10] {\n"
    "  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[8, "
    "128]\n"
    "  %1 = broadcast %b {axes = [1], dims = [8, 128]} : f32[8, 128]\n"
    "  %2 = add %0, %1 : f32[8, 128]\n"
    "  %3 = relu %2 : f32[8, 128]\n"
    "  %4 = dot_general %3, %v {x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]} : f32[8, "
    "10]\n"
    "  %5 = softmax %4 {axis = 1} : f32[8, 10]\n"
    "  return %5\n"
    "}\n",
    "dims n: 1..4096\n"
    "graph @main(%x: f32[n], %y: f32[n]) -> f32[n] {\n"
    "  %0 = mul %x, %y : f32[n]\n"
    "  %1 = tanh %0 : f32[n]\n"
    "  %2 = exp %1 : f32[n]\n"
    "  %3 = add %2, %x : f32[n]\n"
    "  return %3\n"
    "}\n",
    "graph @main(%x: f32[12, 1000]) -> f32[12, 1000] {\n"
    "  %0 = softmax %x {axis = 1} : f32[12, 1000]\n"
    "  return %0\n"
    "}\n",
    "graph @main(%x: f32[6, 768], %s: f32[768], %b: f32[768]) -> f32[6, 768] {\n"
    "  %0 = layer_norm %x, %s, %b {axis = 1, epsilon = 1e-05} : f32[6, 768]\n"
    "  return %0\n"
    "}\n",
};

static void test_models(void **state)
{
    (void)state;
    module m = module_begin();
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        check_text(&m, models[i], i);
    assert_int_equal(m.n_threads, m.kernels.n); /* none of these is left to one thread */
    module_end(&m, "models");
}

/* ---- products ---- */

typedef struct product {
    const char *dims, *x, *y, *result, *axes; /* shapes as text; axes: batch and contracted ones of x and y */
    const char *after;                        /* what follows %p, up to %r; "": nothing */
    int threads;                              /* of the template's kernel */
} product;

#define PLAIN "x_batch = [], x_contract = [1], y_batch = [], y_contract = [0]"
#define TURNED "x_batch = [], x_contract = [0], y_batch = [], y_contract = [1]"

static const product products[] = {
    { "", "f32[70, 37]", "f32[37, 90]", "f32[70, 90]", PLAIN, "", 64 },
    { "", "f32[64, 64]", "f32[64, 96]", "f32[64, 96]", PLAIN, "", 64 },
    { "", "f32[20, 130]", "f32[132, 20]", "f32[130, 132]", TURNED, "", 64 },
    { "", "f32[9, 12]", "f32[12, 8]", "f32[9, 8]", PLAIN, "", 64 },
    { "", "f32[3, 33, 48]", "f32[3, 48, 40]", "f32[3, 33, 40]",
      "x_batch = [0], x_contract = [2], y_batch = [0], y_contract = [1]", "", 64 },
    { "", "f32[33, 3, 48]", "f32[48, 40, 3]", "f32[3, 33, 40]",
      "x_batch = [1], x_contract = [2], y_batch = [2], y_contract = [0]", "", 64 },
    { "", "f32[4, 10, 6, 8]", "f32[6, 8, 36]", "f32[4, 10, 36]",
      "x_batch = [], x_contract = [2, 3], y_batch = [], y_contract = [0, 1]", "", 64 },
    { "", "f32[16, 6, 8]", "f32[6, 4, 8, 9]", "f32[16, 4, 9]",
      "x_batch = [], x_contract = [2, 1], y_batch = [], y_contract = [2, 0]", "", 64 },
    { "dims n: 1..100\n", "f32[n, 64]", "f32[64, 72]", "f32[n, 72]", PLAIN, "", 64 },
    { "dims n: 1..100\n", "f32[40, n]", "f32[n, 72]", "f32[40, 72]", PLAIN, "", 64 },
    { "", "f16[24, 40]", "f16[40, 24]", "f16[24, 24]", PLAIN, "", 64 },
    { "", "bf16[24, 41]", "bf16[41, 24]", "bf16[24, 24]", PLAIN, "", 64 },
    { "", "bf16[20, 136]", "bf16[72, 20]", "bf16[136, 72]", TURNED, "", 64 },
    { "", "f16[3, 40, 64]", "f16[3, 72, 64]", "f16[3, 40, 72]",
      "x_batch = [0], x_contract = [2], y_batch = [0], y_contract = [2]", "", 64 },
    { "", "f16[1000, 24]", "f16[24, 1001]", "f16[1000, 1001]", PLAIN, "", 128 },
    { "", "bf16[1000, 40]", "bf16[1280, 40]", "f32[1000, 1280]",
      "x_batch = [], x_contract = [1], y_batch = [], y_contract = [1], dtype = f32", "", 256 },
    { "", "f32[36, 40]", "f32[40, 72]", "f32[36, 72]", PLAIN,
      "  %1 = broadcast %b {axes = [1], dims = [36, 72]} : f32[36, 72]\n"
      "  %2 = add %p, %1 : f32[36, 72]\n"
      "  %3 = gelu %2 : f32[36, 72]\n"
      "  %r = add %3, %c : f32[36, 72]\n",
      64 },
    /* few rows or columns: whole lines of the other side, in slices of k */
    { "", "f32[1, 300]", "f32[300, 100]", "f32[1, 100]", PLAIN, "", 256 },
    { "", "f32[3, 257]", "f32[257, 33]", "f32[3, 33]", PLAIN, "", 256 },
    { "", "f32[7, 600]", "f32[50, 600]", "f32[7, 50]",
      "x_batch = [], x_contract = [1], y_batch = [], y_contract = [1]", "", 256 },
    { "", "f32[130, 70]", "f32[70, 2]", "f32[130, 2]", PLAIN, "", 256 },
    { "", "bf16[5, 2, 128]", "bf16[5, 128, 48]", "bf16[5, 2, 48]",
      "x_batch = [0], x_contract = [2], y_batch = [0], y_contract = [1]", "", 256 },
    { "", "f16[1, 1032]", "f16[40, 1032]", "f16[1, 40]",
      "x_batch = [], x_contract = [1], y_batch = [], y_contract = [1]", "", 256 },
    { "dims n: 1..100\n", "f32[2, n]", "f32[n, 72]", "f32[2, 72]", PLAIN, "", 256 },
    { "", "f32[1010, 20]", "f32[20, 1000]", "f32[1010, 1000]", PLAIN, "", 128 },
    { "", "f32[1000, 16]", "f32[16, 1280]", "f32[1000, 1280]", PLAIN, "", 256 },
};

#define CONVOLUTION(groups, low, high, stride, x_dilation, w_dilation)           \
    "groups = " groups ", high = [" high "], low = [" low "], stride = [" stride \
    "], w_dilation = [" w_dilation "], x_dilation = [" x_dilation "]"

static const product convolutions[] = {
    { "", "f32[2, 3, 9, 11]", "f32[16, 3, 3, 3]", "f32[2, 16, 9, 11]",
      CONVOLUTION("1", "1, 1", "1, 1", "1, 1", "1, 1", "1, 1"), "", 64 },
    { "", "f32[2, 12, 8, 8]", "f32[20, 12, 1, 1]", "f32[2, 20, 8, 8]",
      CONVOLUTION("1", "0, 0", "0, 0", "1, 1", "1, 1", "1, 1"), "", 64 },
    { "", "f32[1, 8, 7, 7]", "f32[24, 8, 1, 1]", "f32[1, 24, 7, 7]",
      CONVOLUTION("1", "0, 0", "0, 0", "1, 1", "1, 1", "1, 1"), "", 64 },
    { "", "f32[2, 8, 10, 9]", "f32[16, 4, 3, 2]", "f32[2, 16, 4, 6]",
      CONVOLUTION("2", "1, 0", "0, -1", "2, 1", "1, 1", "2, 2"), "", 64 },
    { "", "f32[1, 8, 5, 4]", "f32[8, 8, 3, 3]", "f32[1, 8, 9, 8]",
      CONVOLUTION("1", "1, 1", "1, 2", "1, 1", "2, 2", "1, 1"), "", 64 },
    { "", "f32[2, 10, 40]", "f32[12, 10, 5]", "f32[2, 12, 36]", CONVOLUTION("1", "0", "0", "1", "1", "1"), "",
      64 },
    { "dims n: 1..9\n", "f32[n, 8, 6, 6]", "f32[8, 8, 3, 3]", "f32[n, 8, 6, 6]",
      CONVOLUTION("1", "1, 1", "1, 1", "1, 1", "1, 1", "1, 1"), "", 64 },
    { "", "bf16[2, 16, 8, 8]", "bf16[24, 16, 3, 3]", "bf16[2, 24, 8, 8]",
      CONVOLUTION("1", "1, 1", "1, 1", "1, 1", "1, 1", "1, 1"), "", 64 },
    { "", "f16[2, 16, 8, 8]", "f16[24, 16, 1, 1]", "f16[2, 24, 8, 8]",
      CONVOLUTION("1", "0, 0", "0, 0", "1, 1", "1, 1", "1, 1"), "", 64 },
    { "", "f32[8, 4, 32, 64]", "f32[70, 4, 3, 1]", "f32[8, 70, 32, 64]",
      CONVOLUTION("1", "1, 0", "1, 0", "1, 1", "1, 1", "1, 1"), "", 256 },
};

/* The template has them all, and says what each thread does. */
static void check_products(const char *op, int n, const product *products)
{
    module m = module_begin();
    n_run = 0;
    for (int i = 0; i < n; i++) {
        const product *p = &products[i];
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_module *parsed;
        qn_program *program;
        qn_machine machine;
        qn_diags_init(&diags, arena);
        const char *more = *p->after ? ", %b: f32[72], %c: f32[36, 72]" : "";
        const char *text = qn_arena_printf(arena,
                                           "%sgraph @main(%%x: %s, %%y: %s%s) -> %s {\n  %%p = %s "
                                           "%%x, %%y {%s} : %s\n%s  return %%%s\n}\n",
                                           p->dims, p->x, p->y, more, p->result, op, p->axes, p->result,
                                           p->after, *p->after ? "r" : "p");
        if (qn_text_parse(text, strlen(text), "product.qn", &parsed, &diags))
            fail_msg("%s\n%s", qn_diags_text(&diags, arena), text);
        const qn_pass_options options = gpu_options(&machine, arena, &diags);
        assert_int_equal(qn_lower(qn_module_find(parsed, "main"), &options, arena, &program, &diags),
                         QUERN_OK);
        assert_int_equal(program->n_kernels, 1);
        if (!program->kernels[0]->by_thread || program->kernels[0]->gpu_threads != p->threads)
            fail_msg("%d threads%s for\n%s", program->kernels[0]->gpu_threads,
                     program->kernels[0]->by_thread ? "" : ", not the template's,", text);
        check_graph(&m, text, qn_module_find(parsed, "main"), (uint64_t)i);
        qn_module_free(parsed);
        qn_arena_free(arena);
    }
    module_end(&m, op);
}

static void test_products(void **state)
{
    (void)state;
    check_products("dot_general", sizeof products / sizeof *products, products);
}

static void test_convolutions(void **state)
{
    (void)state;
    check_products("convolution", sizeof convolutions / sizeof *convolutions, convolutions);
}

/* ---- attention ---- */

static const char *const attentions[] = {
    "graph @main(%q: f32[2, 3, 40, 16], %k: f32[2, 3, 50, 16], %v: f32[2, 3, 50, 32]) -> f32[2, 3, 40, 32] "
    "{\n"
    "  %0 = attention %q, %k, %v {scale = 0.25} : f32[2, 3, 40, 32]\n"
    "  return %0\n"
    "}\n",
    /* the first queries see nothing */
    "graph @main(%q: f32[1, 4, 70, 32], %k: f32[1, 2, 33, 32], %v: f32[1, 2, 33, 64]) -> f32[1, 4, 70, 64] "
    "{\n"
    "  %0 = attention %q, %k, %v {causal = true, scale = 0.125} : f32[1, 4, 70, 64]\n"
    "  return %0\n"
    "}\n",
    "graph @main(%q: f32[1, 2, 64, 48], %k: f32[1, 2, 96, 48], %v: f32[1, 2, 96, 32], %m: f32[1, 1, 64, 96]) "
    "-> "
    "f32[1, 2, 64, 32] {\n"
    "  %0 = attention %q, %k, %v, %m {causal = true, scale = 0.5} : f32[1, 2, 64, 32]\n"
    "  return %0\n"
    "}\n",
    "graph @main(%q: f32[2, 2, 33, 64], %k: f32[2, 1, 40, 64], %v: f32[2, 1, 40, 64], %m: bool[2, 1, 1, 40]) "
    "-> f32[2, 2, 33, 64] {\n"
    "  %0 = attention %q, %k, %v, %m {scale = 0.125} : f32[2, 2, 33, 64]\n"
    "  return %0\n"
    "}\n",
    "dims n: 1..3, s: 1..90, t: 1..90\n"
    "graph @main(%q: f32[n, 2, s, 16], %k: f32[n, 2, t, 16], %v: f32[n, 2, t, 32]) -> f32[n, 2, s, 32] {\n"
    "  %0 = attention %q, %k, %v {causal = true, scale = 0.25} : f32[n, 2, s, 32]\n"
    "  return %0\n"
    "}\n",
};

/* The last value, which is the only one of its step of keys. */
static const char infinite_value[] =
    "graph @main(%q: f32[1, 1, 32, 16], %k: f32[1, 1, 33, 16], %v: f32[1, 1, 32, 32]) -> f32[1, 1, 32, 32] "
    "{\n"
    "  %0 = constant inf : f32[]\n"
    "  %1 = pad %v, %0 {high = [0, 0, 1, 0], interior = [0, 0, 0, 0], low = [0, 0, 0, 0]} "
    ": f32[1, 1, 33, 32]\n"
    "  %2 = attention %q, %k, %1 {scale = 0.25} : f32[1, 1, 32, 32]\n"
    "  return %2\n"
    "}\n";

/* One kernel has it all. */
static void test_attention(void **state)
{
    (void)state;
    module m = module_begin();
    n_run = 0;
    for (size_t i = 0; i < sizeof attentions / sizeof *attentions; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_module *parsed;
        qn_program *program;
        qn_machine machine;
        qn_diags_init(&diags, arena);
        const qn_pass_options options = gpu_options(&machine, arena, &diags);
        if (qn_text_parse(attentions[i], strlen(attentions[i]), "attention.qn", &parsed, &diags))
            fail_msg("%s\n%s", qn_diags_text(&diags, arena), attentions[i]);
        assert_int_equal(qn_lower(qn_module_find(parsed, "main"), &options, arena, &program, &diags),
                         QUERN_OK);
        assert_int_equal(program->n_kernels, 1);
        assert_true(program->kernels[0]->by_thread);
        for (int round = 0; round < 2; round++)
            check_graph(&m, attentions[i], qn_module_find(parsed, "main"), 2 * i + (uint64_t)round);
        qn_module_free(parsed);
        qn_arena_free(arena);
    }
    check_text(&m, infinite_value, 0);
    module_end(&m, "attention");
}

/* ---- whatever lowering writes ---- */

static void random_graphs(const char *what, int flags, int first, int count)
{
    module m = module_begin();
    n_run = 0;
    for (int seed = first; seed < first + count; seed++) {
        qn_module *graph = qn_graph_random((uint64_t)seed, flags, 10);
        char name[64];
        snprintf(name, sizeof name, "%s, seed %d", what, seed);
        check_graph(&m, name, qn_module_find(graph, "main"), (uint64_t)seed);
        qn_module_free(graph);
    }
    assert_true(n_run > 0);
    module_end(&m, what);
}

static void test_elementwise(void **state)
{
    (void)state;
    random_graphs("element-wise", QN_RANDOM_INTS | QN_RANDOM_NARROW | QN_RANDOM_SYMBOLS, 1, 12);
}

static void test_reductions(void **state)
{
    (void)state;
    random_graphs("reductions", QN_RANDOM_REDUCE | QN_RANDOM_CONTRACT | QN_RANDOM_COMPOSITE, 100, 12);
}

static void test_indices(void **state)
{
    (void)state;
    random_graphs("indices", QN_RANDOM_INDEX | QN_RANDOM_CONTROL | QN_RANDOM_BITS, 200, 12);
}

/* ---- text ---- */

/* A staged row and two reductions: threads, shared memory, barriers. */
static void test_mapping(void **state)
{
    (void)state;
    static const char text[] = "graph @main(%x: f32[12, 1000]) -> f32[12, 1000] {\n"
                               "  %0 = softmax %x {axis = 1} : f32[12, 1000]\n"
                               "  return %0\n"
                               "}\n";
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine;
    qn_module *parsed;
    qn_program *program;
    qn_code code;
    qn_diags_init(&diags, arena);
    const qn_pass_options options = gpu_options(&machine, arena, &diags);
    assert_int_equal(qn_text_parse(text, strlen(text), "model.qn", &parsed, &diags), QUERN_OK);
    qn_graph *graph = parsed->functions[0];
    assert_int_equal(qn_run_passes(graph, NULL, &options, NULL, &diags), QUERN_OK);
    assert_int_equal(qn_lower(graph, &options, arena, &program, &diags), QUERN_OK);
    assert_int_equal(program->n_kernels, 1);
    const char *kernel = qn_kernel_print(program->kernels[0], arena);
    assert_non_null(strstr(kernel, "gpu_threads 256"));
    assert_non_null(strstr(kernel, "barrier"));
    assert_int_equal(qn_backend_nvptx.emit_kernel(program->kernels[0], "k", &target, QN_MATH_DEFAULT,
                                                  QN_EMIT_ASSEMBLY, arena, &code, &diags),
                     QUERN_OK);
    assert_non_null(strstr(code.data, ".target sm_90"));
    assert_non_null(strstr(code.data, ".visible .entry k("));
    assert_non_null(strstr(code.data, ".shared"));
    assert_non_null(strstr(code.data, "%tid.x"));
    assert_non_null(strstr(code.data, "%ctaid.x"));
    assert_non_null(strstr(code.data, "bar"));
    assert_non_null(strstr(code.data, "ld.global"));
    qn_module_free(parsed);
    qn_arena_free(arena);
}

static void test_unknown_gpu(void **state)
{
    (void)state;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_machine machine;
    qn_diags_init(&diags, arena);
    assert_int_equal(qn_backend_nvptx.describe(&(qn_target){ .cpu = "sm_35" }, arena, &machine, &diags),
                     QUERN_ERROR_UNSUPPORTED);
    assert_non_null(strstr(qn_diags_text(&diags, arena), "sm_70 or newer"));
    qn_arena_free(arena);
}

int main(void)
{
    setenv("QUERN_CUDA_LIBRARY", QN_FAKE_CUDA, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models),       cmocka_unit_test(test_products),
        cmocka_unit_test(test_convolutions), cmocka_unit_test(test_attention),
        cmocka_unit_test(test_elementwise),  cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_indices),      cmocka_unit_test(test_mapping),
        cmocka_unit_test(test_unknown_gpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
