/* Arrays as literals, nodes evaluated one at a time, and comparisons that say where they fail. */
#include "tests/support/eval.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/text/text.h"

static struct {
    qn_arena *arena;
    qn_module *module;
    qn_diags diags;
} state;

static qn_arena *arena(void)
{
    if (!state.arena) {
        state.arena = qn_arena_new();
        qn_diags_init(&state.diags, state.arena);
        state.module = qn_module_new("test");
    }
    return state.arena;
}

void eval_reset(void)
{
    qn_arena_free(state.arena);
    qn_module_free(state.module);
    state.arena = NULL;
    state.module = NULL;
}

int eval_teardown(void **unused)
{
    (void)unused;
    eval_reset();
    return 0;
}

qn_module *eval_module(void)
{
    arena();
    return state.module;
}

qn_diags *eval_diags(void)
{
    arena();
    return &state.diags;
}

const char *eval_error(void)
{
    return qn_diags_text(&state.diags, arena());
}

qn_status eval_status(void)
{
    return qn_diags_status(eval_diags());
}

static int64_t count(const qn_array *a)
{
    int64_t n = 1;
    for (int i = 0; i < a->rank; i++)
        n *= a->dims[i];
    return n;
}

static void *element(const qn_array *a, int64_t i)
{
    return (char *)a->data + (size_t)i * qn_dtype_bytes(a->dtype);
}

static qn_array array_new(qn_dtype dtype, int rank, const int64_t *dims)
{
    qn_array a = { .dtype = dtype, .rank = rank };
    for (int i = 0; i < rank; i++)
        a.dims[i] = dims[i];
    a.data = qn_arena_calloc(arena(), (size_t)count(&a), qn_dtype_bytes(dtype));
    return a;
}

static qn_scalar scalar_of(qn_dtype dtype, double value)
{
    return qn_dtype_is_float(dtype) ? (qn_scalar){ .f = value } : (qn_scalar){ .i = (int64_t)value };
}

qn_array floats(qn_dtype dtype, int rank, const int64_t *dims, const double *values)
{
    const qn_array a = array_new(dtype, rank, dims);
    for (int64_t i = 0; i < count(&a); i++)
        qn_scalar_store(dtype, scalar_of(dtype, values[i]), element(&a, i));
    return a;
}

qn_array ints(qn_dtype dtype, int rank, const int64_t *dims, const int64_t *values)
{
    const qn_array a = array_new(dtype, rank, dims);
    for (int64_t i = 0; i < count(&a); i++)
        qn_scalar_store(dtype, (qn_scalar){ .i = values[i] }, element(&a, i));
    return a;
}

qn_array full(qn_dtype dtype, int rank, const int64_t *dims, double value)
{
    const qn_array a = array_new(dtype, rank, dims);
    for (int64_t i = 0; i < count(&a); i++)
        qn_scalar_store(dtype, scalar_of(dtype, value), element(&a, i));
    return a;
}

qn_array noise(qn_dtype dtype, int rank, const int64_t *dims, uint64_t seed)
{
    const qn_array a = array_new(dtype, rank, dims);
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; i < count(&a); i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        qn_scalar_store(dtype, scalar_of(dtype, (double)(s >> 33) / 0x1p28 - 4), element(&a, i));
    }
    return a;
}

double at(const qn_array *a, int64_t index)
{
    const qn_scalar v = qn_scalar_load(a->dtype, element(a, index));
    return qn_dtype_is_float(a->dtype) ? v.f : a->dtype == QUERN_U64 ? (double)(uint64_t)v.i : (double)v.i;
}

qn_node *add_node(qn_graph *graph, qn_op op, int n_operands, qn_value *const *operands, int n_attrs,
                  const qn_attr *attrs, int n_regions, qn_graph *const *regions)
{
    qn_attr *copies = QN_NEW_ARRAY(arena(), qn_attr, n_attrs);
    for (int i = 0; i < n_attrs; i++) {
        copies[i] = attrs[i];
        if (qn_attrs[attrs[i].key].kind != QN_ATTR_KIND_DIMS)
            continue;
        qn_dim *dims = QN_NEW_ARRAY(arena(), qn_dim, attrs[i].n);
        for (int k = 0; k < attrs[i].n; k++)
            dims[k] = qn_dim_const(state.module->dims, attrs[i].ints[k]);
        copies[i].dims = dims;
    }
    qn_node *node = qn_node_new(graph, NULL, op, n_operands, operands, n_attrs, copies, n_regions, regions,
                                &(qn_loc){ .node = "test node" }, &state.diags);
    if (!node)
        fail_msg("%s", eval_error());
    return node;
}

const qn_array *eval_graph(const qn_graph *graph, const qn_array *inputs)
{
    qn_array *outputs = QN_NEW_ARRAY(arena(), qn_array, graph->n_outputs);
    return qn_interp_run(graph, inputs, outputs, arena(), &state.diags) ? NULL : outputs;
}

const qn_array *eval(const call *c)
{
    qn_graph *graph = qn_region_new(eval_module());
    qn_value *operands[6];
    state.diags = (qn_diags){ .arena = arena() };
    for (int i = 0; i < c->n_operands; i++)
        operands[i] = qn_graph_add_input(
            graph, NULL,
            qn_type_static(state.module, c->operands[i].dtype, c->operands[i].rank, c->operands[i].dims),
            QN_ROLE_INPUT);
    qn_node *node = add_node(graph, c->op, c->n_operands, operands, c->n_attrs, c->attrs, 0, NULL);
    for (int i = 0; i < node->n_results; i++)
        qn_graph_add_output(graph, &node->results[i], NULL, -1);
    return eval_graph(graph, c->operands);
}

const qn_array *eval_text(const char *text, const qn_array *inputs)
{
    qn_module *module;
    *eval_diags() = (qn_diags){ .arena = arena() };
    if (qn_text_parse(text, strlen(text), "test.qn", &module, &state.diags))
        return NULL;
    const qn_array *outputs = eval_graph(module->functions[0], inputs);
    qn_module_free(module);
    return outputs;
}

static void expect_shape(const char *what, const qn_array *found, const qn_array *expected)
{
    if (!found)
        fail_msg("%s: %s", what, eval_error());
    if (found->dtype != expected->dtype || found->rank != expected->rank)
        fail_msg("%s: %s of rank %d, expected %s of rank %d", what, qn_dtype_name(found->dtype), found->rank,
                 qn_dtype_name(expected->dtype), expected->rank);
    for (int i = 0; i < found->rank; i++)
        if (found->dims[i] != expected->dims[i])
            fail_msg("%s: dim %d is %lld, expected %lld", what, i, (long long)found->dims[i],
                     (long long)expected->dims[i]);
}

void expect_same(const char *what, const qn_array *found, const qn_array *expected)
{
    expect_shape(what, found, expected);
    const size_t size = qn_dtype_bytes(found->dtype);
    for (int64_t i = 0; i < count(found); i++) {
        const double a = at(found, i), b = at(expected, i);
        if (memcmp(element(found, i), element(expected, i), size) != 0 && !(isnan(a) && isnan(b)))
            fail_msg("%s: element %lld is %.17g, expected %.17g (%s)", what, (long long)i, a, b,
                     qn_dtype_name(found->dtype));
    }
}

void check_rows(const row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++)
        expect_same(rows[i].what, eval(&rows[i].call), &rows[i].expected);
}

void expect_near(const char *what, const qn_array *found, const qn_array *expected, double tolerance)
{
    expect_shape(what, found, expected);
    for (int64_t i = 0; i < count(found); i++) {
        const double a = at(found, i), b = at(expected, i);
        if (!(fabs(a - b) <= tolerance * fmax(1, fabs(b))) && !(isnan(a) && isnan(b)) && a != b)
            fail_msg("%s: element %lld is %.17g, expected %.17g", what, (long long)i, a, b);
    }
}
