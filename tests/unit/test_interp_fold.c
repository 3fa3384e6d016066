/* Folding: what becomes a constant, what stays a node, and that the constant is what the node would have given. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/eval.h"

static qn_graph *graph;

static qn_value *constant(const qn_array *a)
{
    const qn_tensor *tensor = qn_tensor_new(eval_module(), a->dtype, a->rank, a->dims, a->data);
    return add_node(graph, QN_OP_CONSTANT, 0, NULL, 1, &(qn_attr){ .key = QN_ATTR_VALUE, .tensor = tensor },
                    0, NULL)
        ->results;
}

static qn_node *node(qn_op op, int n_operands, qn_value *const *operands, int n_attrs, const qn_attr *attrs)
{
    return add_node(graph, op, n_operands, operands, n_attrs, attrs, 0, NULL);
}

static void expect_tensor(const char *what, const qn_tensor *tensor, const qn_array *expected)
{
    assert_non_null(tensor);
    qn_array found = { .dtype = tensor->type.dtype,
                       .rank = tensor->type.rank,
                       .data = (void *)(uintptr_t)qn_tensor_data(tensor) };
    for (int i = 0; i < found.rank; i++)
        found.dims[i] = tensor->type.dims[i]->value;
    expect_same(what, &found, expected);
}

static void nodes_of_constants_become_constants(void **state)
{
    (void)state;
    graph = qn_region_new(eval_module());
    const qn_array m = floats(QUERN_F32, SHAPE(2, 2), V(1, 2, 3, 4)),
                   v = floats(QUERN_F32, SHAPE(2), V(10, 20));
    qn_value *x = constant(&m);
    const qn_array sum = floats(QUERN_F32, SHAPE(2, 2), V(2, 4, 6, 8)),
                   flat = floats(QUERN_F32, SHAPE(4), V(1, 2, 3, 4));
    const qn_array scaled = floats(QUERN_F32, SHAPE(2, 2), V(10, 20, 60, 80)),
                   relu = floats(QUERN_F32, SHAPE(2), V(0, 0));
    const qn_array seven = ints(QUERN_I64, SCALAR, I(7));
    expect_tensor("add", qn_interp_fold(node(QN_OP_ADD, 2, (qn_value *[]){ x, x }, 0, NULL), NULL), &sum);
    const qn_tensor *reshaped =
        qn_interp_fold(node(QN_OP_RESHAPE, 1, &x, 1, (qn_attr[]){ LIST(DIMS, 4) }), NULL);
    expect_tensor("reshape", reshaped, &flat);
    assert_ptr_equal(reshaped->data, qn_attr_tensor(x->node, QN_ATTR_VALUE)->data);
    qn_value *scale = constant(&v);
    qn_node *rows = node(QN_OP_BROADCAST, 1, &scale, 2, (qn_attr[]){ LIST(AXES, 0), LIST(DIMS, 2, 2) });
    expect_tensor("scale",
                  qn_interp_fold(node(QN_OP_MUL, 2, (qn_value *[]){ x, rows->results }, 0, NULL), NULL),
                  &scaled);
    qn_node *negative = node(QN_OP_NEG, 1, &scale, 0, NULL);
    assert_null(qn_interp_fold(node(QN_OP_RELU, 1, (qn_value *[]){ negative->results }, 0, NULL), NULL));
    qn_attr value = { .key = QN_ATTR_VALUE, .tensor = qn_interp_fold(negative, NULL) };
    qn_node *folded = node(QN_OP_CONSTANT, 0, NULL, 1, &value);
    qn_value_replace(negative->results, folded->results);
    expect_tensor("a composite of a replaced value",
                  qn_interp_fold(node(QN_OP_RELU, 1, (qn_value *[]){ negative->results }, 0, NULL), NULL),
                  &relu);
    expect_tensor(
        "dim_value",
        qn_interp_fold(node(QN_OP_DIM_VALUE, 0, NULL, 2, (qn_attr[]){ LIST(DIMS, 7), INT(DTYPE, QUERN_I64) }),
                       NULL),
        &seven);
}

static void what_is_large_stays(void **state)
{
    (void)state;
    graph = qn_region_new(eval_module());
    const qn_array one = floats(QUERN_F32, SCALAR, V(1)), weights = noise(QUERN_F32, SHAPE(1000, 1000), 1);
    qn_value *s = constant(&one), *w = constant(&weights);
    qn_attr small[] = { NO_LIST(AXES), LIST(DIMS, 512, 512) },
            large[] = { NO_LIST(AXES), LIST(DIMS, 512, 513) };
    assert_non_null(qn_interp_fold(node(QN_OP_BROADCAST, 1, &s, 2, small), NULL));
    assert_null(qn_interp_fold(node(QN_OP_BROADCAST, 1, &s, 2, large), NULL));
    qn_attr iota[] = { INT(AXIS, 0), LIST(DIMS, 1 << 20), INT(DTYPE, QUERN_I64) };
    assert_null(qn_interp_fold(node(QN_OP_IOTA, 0, NULL, 3, iota), NULL));
    /* Weights move, whatever their size, and may grow: a kernel of one place to one of 8 x 8. */
    assert_non_null(qn_interp_fold(node(QN_OP_TRANSPOSE, 1, &w, 1, (qn_attr[]){ LIST(PERM, 1, 0) }), NULL));
    qn_attr pad[] = { LIST(LOW, 0, 0), LIST(HIGH, 3001, 0), LIST(INTERIOR, 0, 0) },
            huge[] = { LIST(LOW, 0, 0), LIST(HIGH, 63001, 0), LIST(INTERIOR, 0, 0) };
    assert_non_null(qn_interp_fold(node(QN_OP_PAD, 2, (qn_value *[]){ w, s }, 3, pad), NULL));
    assert_null(qn_interp_fold(node(QN_OP_PAD, 2, (qn_value *[]){ w, s }, 3, huge), NULL));
    /* A product of 10^9 steps is not for the compiler. */
    qn_attr dot[] = { NO_LIST(X_BATCH), NO_LIST(Y_BATCH), LIST(X_CONTRACT, 1), LIST(Y_CONTRACT, 0) };
    assert_null(qn_interp_fold(node(QN_OP_DOT_GENERAL, 2, (qn_value *[]){ w, w }, 4, dot), NULL));
}

static void what_is_not_known_stays(void **state)
{
    (void)state;
    graph = qn_region_new(eval_module());
    const qn_array v = floats(QUERN_F32, SHAPE(2), V(1, 2)), bad = ints(QUERN_I64, SCALAR, I(2));
    qn_value *c = constant(&v), *x = qn_graph_add_input(graph, "x", c->type, QN_ROLE_INPUT);
    assert_null(qn_interp_fold(node(QN_OP_ADD, 2, (qn_value *[]){ c, x }, 0, NULL), NULL));
    /* A mistake stays where it is, and says nothing: the node may never run. */
    assert_null(qn_interp_fold(
        node(QN_OP_GATHER, 2, (qn_value *[]){ c, constant(&bad) }, 1, (qn_attr[]){ INT(AXIS, 0) }), NULL));
    qn_dim n = qn_dim_symbol(eval_module()->dims, "n", 0, 100);
    qn_node *value =
        qn_node_new(graph, NULL, QN_OP_DIM_VALUE, 0, NULL, 2,
                    (qn_attr[]){ { .key = QN_ATTR_DIMS, .n = 1, .dims = &n }, INT(DTYPE, QUERN_I64) }, 0,
                    NULL, NULL, eval_diags());
    assert_non_null(value);
    assert_null(qn_interp_fold(value, NULL));
    assert_int_equal(eval_diags()->n_errors, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(nodes_of_constants_become_constants, eval_teardown),
        cmocka_unit_test_teardown(what_is_large_stays, eval_teardown),
        cmocka_unit_test_teardown(what_is_not_known_stays, eval_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
