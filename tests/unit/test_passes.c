/* The pass runner, and that each pass does what its head comment says on a small graph. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ir/build.h"
#include "passes/passes.h"

typedef struct fixture {
    qn_module *module;
    qn_graph *graph;
    qn_diags diags;
    qn_builder b;
} fixture;

static fixture begin(void)
{
    fixture f = { .module = qn_module_new("test") };
    f.graph = qn_function_new(f.module, "main");
    return f;
}

static qn_builder *builder(fixture *f)
{
    qn_diags_init(&f->diags, f->module->arena);
    f->b = (qn_builder){ .graph = f->graph, .diags = &f->diags };
    return &f->b;
}

static qn_value *input(fixture *f, const char *name, int rank, const int64_t *dims)
{
    return qn_graph_add_input(f->graph, name, qn_type_static(f->module, QUERN_F32, rank, dims),
                              QN_ROLE_INPUT);
}

static void run(fixture *f, const char *passes)
{
    const qn_pass_options options = { .math = QN_MATH_DEFAULT };
    const qn_pass_hooks hooks = { .verify_each = true };
    if (qn_run_passes(f->graph, passes, &options, &hooks, &f->diags))
        fail_msg("%s", qn_diags_text(&f->diags, f->module->arena));
}

static int count(const fixture *f, qn_op op)
{
    int n = 0;
    QN_FOR_NODES (f->graph, node)
        n += node->op == op;
    return n;
}

static void test_unknown_pass(void **state)
{
    (void)state;
    fixture f = begin();
    qn_value *x = input(&f, "x", 1, (int64_t[]){ 4 });
    builder(&f);
    qn_graph_add_output(f.graph, x, "y", -1);
    const qn_pass_options options = { 0 };
    assert_int_equal(qn_run_passes(f.graph, "dce,nonsense", &options, NULL, &f.diags), QUERN_ERROR_ARGUMENT);
    assert_non_null(strstr(qn_diags_text(&f.diags, f.module->arena), "there is no pass 'nonsense'"));
    qn_module_free(f.module);
}

static bool skip_second(void *user, const qn_pass *pass, int occurrence)
{
    int *seen = user;
    seen[0]++;
    return strcmp(pass->name, "simplify") != 0 || occurrence != 1;
}

static void test_hooks_count_occurrences(void **state)
{
    (void)state;
    fixture f = begin();
    qn_value *x = input(&f, "x", 1, (int64_t[]){ 4 });
    qn_graph_add_output(f.graph, qn_b_unary(builder(&f), QN_OP_NEG, x), "y", -1);
    int seen = 0;
    const qn_pass_options options = { 0 };
    const qn_pass_hooks hooks = { .enabled = skip_second, .user = &seen };
    assert_int_equal(qn_run_passes(f.graph, "simplify,dce,simplify", &options, &hooks, &f.diags), QUERN_OK);
    assert_int_equal(seen, 3);
    qn_module_free(f.module);
}

static void test_cse_and_dce(void **state)
{
    (void)state;
    fixture f = begin();
    qn_value *x = input(&f, "x", 1, (int64_t[]){ 4 }), *y = input(&f, "y", 1, (int64_t[]){ 4 });
    qn_builder *b = builder(&f);
    qn_value *one = qn_b_binary(b, QN_OP_ADD, x, y), *two = qn_b_binary(b, QN_OP_ADD, y, x);
    qn_b_unary(b, QN_OP_EXP, x);
    qn_graph_add_output(f.graph, qn_b_binary(b, QN_OP_MUL, one, two), "z", -1);
    run(&f, "cse,dce");
    assert_int_equal(count(&f, QN_OP_ADD), 1);
    assert_int_equal(count(&f, QN_OP_EXP), 0);
    assert_ptr_equal(f.graph->outputs[0]->node->operands[0], f.graph->outputs[0]->node->operands[1]);
    qn_module_free(f.module);
}

/* x + 0 must stay for floats (-0 + 0 = 0), x + -0 and x * 1 go. */
static void test_exact_identities(void **state)
{
    (void)state;
    fixture f = begin();
    qn_value *x = input(&f, "x", 1, (int64_t[]){ 4 });
    qn_builder *b = builder(&f);
    qn_graph_add_output(f.graph, qn_b_binary_scalar(b, QN_OP_ADD, x, 0.0), "stays", -1);
    qn_graph_add_output(f.graph, qn_b_binary_scalar(b, QN_OP_ADD, x, -0.0), "goes", -1);
    qn_graph_add_output(f.graph, qn_b_binary_scalar(b, QN_OP_MUL, x, 1.0), "goes_too", -1);
    qn_graph_add_output(f.graph, qn_b_binary_scalar(b, QN_OP_DIV, x, 8.0), "becomes_mul", -1);
    qn_graph_add_output(f.graph, qn_b_binary_scalar(b, QN_OP_DIV, x, 3.0), "stays_div", -1);
    run(&f, "simplify,dce");
    assert_int_equal(f.graph->outputs[0]->node->op, QN_OP_ADD);
    assert_ptr_equal(f.graph->outputs[1], x);
    assert_ptr_equal(f.graph->outputs[2], x);
    assert_int_equal(f.graph->outputs[3]->node->op, QN_OP_MUL);
    assert_int_equal(f.graph->outputs[4]->node->op, QN_OP_DIV);
    qn_module_free(f.module);
}

static void test_movement(void **state)
{
    (void)state;
    fixture f = begin();
    qn_value *x = input(&f, "x", 3, (int64_t[]){ 2, 3, 4 });
    qn_value *unit = input(&f, "unit", 3, (int64_t[]){ 1, 3, 4 });
    qn_builder *b = builder(&f);
    const int64_t cycle[] = { 1, 2, 0 };
    qn_value *t = qn_b_transpose(b, qn_b_transpose(b, qn_b_transpose(b, x, cycle), cycle), cycle);
    qn_graph_add_output(f.graph, t, "same", -1);
    qn_graph_add_output(f.graph, qn_b_transpose(b, unit, cycle), "reshaped", -1);
    qn_dims *dims = f.module->dims;
    qn_value *left = qn_b_slice_axis(b, x, 2, qn_dim_const(dims, 0), qn_dim_const(dims, 2));
    qn_value *parts[] = { left, left };
    qn_value *both = qn_b_concatenate(b, 2, parts, 2);
    qn_graph_add_output(f.graph, qn_b_slice_axis(b, both, 2, qn_dim_const(dims, 2), qn_dim_const(dims, 4)),
                        "part", -1);
    run(&f, "simplify,dce");
    assert_ptr_equal(f.graph->outputs[0], x);
    assert_int_equal(f.graph->outputs[1]->node->op, QN_OP_RESHAPE);
    assert_int_equal(f.graph->outputs[2]->node->op, QN_OP_SLICE);
    assert_ptr_equal(f.graph->outputs[2]->node->operands[0], x);
    assert_int_equal(count(&f, QN_OP_CONCATENATE), 0);
    qn_module_free(f.module);
}

static void test_expand(void **state)
{
    (void)state;
    fixture f = begin();
    qn_value *x = input(&f, "x", 2, (int64_t[]){ 2, 5 });
    qn_builder *b = builder(&f);
    qn_graph_add_output(f.graph, qn_b_softmax(b, QN_OP_SOFTMAX, x, 1), "y", -1);
    qn_graph_add_output(f.graph, qn_b_arg_reduce(b, QN_KIND_MAX, x, 1, false), "i", -1);
    run(&f, NULL);
    QN_FOR_NODES (f.graph, node)
        assert_false(qn_op_is_composite(node->op) || node->op == QN_OP_ARG_REDUCE);
    qn_module_free(f.module);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unknown_pass), cmocka_unit_test(test_hooks_count_occurrences),
        cmocka_unit_test(test_cse_and_dce),  cmocka_unit_test(test_exact_identities),
        cmocka_unit_test(test_movement),     cmocka_unit_test(test_expand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
