/* Modules, graphs and nodes: making, changing, copying; attributes, types and tensors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "ir/graph.h"

static qn_module *module;
static qn_diags diags;

static int set_up(void **state)
{
    (void)state;
    module = qn_module_new("test.qn");
    qn_diags_init(&diags, module->arena);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    qn_module_free(module);
    return 0;
}

static qn_type vector(int64_t n)
{
    return qn_type_static(module, QUERN_F32, 1, &n);
}

static qn_value *input(qn_graph *graph, const char *name)
{
    return qn_graph_add_input(graph, name, vector(4), QN_ROLE_INPUT);
}

static qn_value *make(qn_graph *graph, qn_op op, int n, qn_value *const *operands)
{
    qn_node *node = qn_node_new(graph, NULL, op, n, operands, 0, NULL, 0, NULL, NULL, &diags);
    if (!node)
        fail_msg("%s", qn_diags_text(&diags, module->arena));
    return &node->results[0];
}

static qn_value *neg(qn_graph *graph, qn_value *x)
{
    return make(graph, QN_OP_NEG, 1, &x);
}

static qn_value *add(qn_graph *graph, qn_value *x, qn_value *y)
{
    return make(graph, QN_OP_ADD, 2, (qn_value *[]){ x, y });
}

/* The ops in order, forwards; that the way back says the same is asserted. */
static const char *ops_of(const qn_graph *graph)
{
    const char *text = "";
    const qn_node *last = NULL;
    QN_FOR_NODES (graph, node) {
        assert_ptr_equal(node->prev, last);
        assert_ptr_equal(node->graph, graph);
        text = qn_arena_printf(module->arena, "%s%s%s", text, last ? " " : "", qn_ops[node->op].name);
        last = node;
    }
    assert_ptr_equal(graph->last, last);
    return text;
}

static void functions_are_found_by_name(void **state)
{
    (void)state;
    assert_string_equal(module->name, "test.qn");
    for (int i = 0; i < 20; i++)
        qn_function_new(module, qn_arena_printf(module->arena, "f%d", i));
    assert_int_equal(module->n_functions, 20);
    assert_ptr_equal(qn_module_find(module, "f13"), module->functions[13]);
    assert_null(qn_module_find(module, "f20"));
    qn_region_new(module);
    assert_int_equal(module->n_functions, 20);
}

static void signatures_grow_and_shrink(void **state)
{
    (void)state;
    qn_graph *f = qn_function_new(module, "f");
    qn_value *in[9];
    for (int i = 0; i < 9; i++)
        in[i] = qn_graph_add_input(f, qn_arena_printf(module->arena, "x%d", i), vector(i + 1),
                                   i % 2 ? QN_ROLE_STATE : QN_ROLE_PARAM);
    qn_graph_add_output(f, in[0], "a", -1);
    assert_null(f->aliases);
    qn_graph_add_output(f, in[5], "b", 5);
    qn_graph_add_output(f, in[3], NULL, 3);
    qn_graph_add_output(f, in[8], "d", 8);
    static const int before[] = { -1, 5, 3, 8 }, after[] = { -1, 4, -1, 7 };
    assert_memory_equal(f->aliases, before, sizeof before);
    qn_graph_remove_input(f, 3);
    assert_memory_equal(f->aliases, after, sizeof after);
    assert_int_equal(f->n_inputs, 8);
    for (int i = 0; i < 8; i++) {
        qn_value *want = in[i < 3 ? i : i + 1];
        assert_ptr_equal(f->inputs[i], want);
        assert_int_equal(want->index, i);
        assert_int_equal(f->input_roles[i], (i < 3 ? i : i + 1) % 2 ? QN_ROLE_STATE : QN_ROLE_PARAM);
    }
    qn_graph_add_input(f, "again", vector(1), QN_ROLE_INPUT);
    assert_string_equal(f->inputs[8]->name, "again");
    assert_string_equal(f->inputs[7]->name, "x8");
    assert_string_equal(f->output_names[3], "d");
    assert_null(f->output_names[2]);

    qn_graph *region = qn_region_new(module);
    qn_graph_add_output(region, input(region, "x"), NULL, -1);
    assert_null(region->input_roles);
    assert_null(region->output_names);
}

static void nodes_are_placed_moved_and_removed(void **state)
{
    (void)state;
    qn_graph *f = qn_function_new(module, "f");
    qn_value *x = input(f, "x");
    qn_value *a = neg(f, x);
    qn_value *b = make(f, QN_OP_ABS, 1, &a);
    assert_string_equal(ops_of(f), "neg abs");
    qn_node *sqrt = qn_node_new(f, b->node, QN_OP_SQRT, 1, &a, 0, NULL, 0, NULL, NULL, &diags);
    qn_node *first = qn_node_new(f, a->node, QN_OP_EXP, 1, &x, 0, NULL, 0, NULL, NULL, &diags);
    assert_string_equal(ops_of(f), "exp neg sqrt abs");
    qn_node_move_before(first, NULL);
    assert_string_equal(ops_of(f), "neg sqrt abs exp");
    qn_node_move_before(first, a->node);
    assert_string_equal(ops_of(f), "exp neg sqrt abs");
    qn_node_move_before(first, first);
    qn_node_remove(sqrt);
    assert_string_equal(ops_of(f), "exp neg abs");
    qn_node_remove(first);
    qn_node_remove(b->node);
    qn_node_remove(a->node);
    assert_string_equal(ops_of(f), "");
}

static void attributes_are_sorted_copies(void **state)
{
    (void)state;
    qn_graph *f = qn_function_new(module, "f");
    qn_value *x = input(f, "x");
    int64_t stride[] = { 2 };
    qn_dim start[] = { qn_dim_const(module->dims, 1) }, limit[] = { qn_dim_const(module->dims, 4) };
    const qn_attr attrs[] = { { .key = QN_ATTR_STRIDE, .n = 1, .ints = stride },
                              { .key = QN_ATTR_LIMIT, .n = 1, .dims = limit },
                              { .key = QN_ATTR_START, .n = 1, .dims = start } };
    const qn_node *node = qn_node_new(f, NULL, QN_OP_SLICE, 1, &x, 3, attrs, 0, NULL, NULL, &diags);
    stride[0] = 99;
    start[0] = limit[0];
    assert_true(node->attrs[0].key < node->attrs[1].key && node->attrs[1].key < node->attrs[2].key);
    int n;
    assert_int_equal(qn_attr_ints(node, QN_ATTR_STRIDE, &n)[0], 2);
    assert_int_equal(n, 1);
    assert_true(qn_dim_is(qn_attr_dims(node, QN_ATTR_START, &n)[0], 1));
    assert_null(qn_attr_find(node, QN_ATTR_AXIS));
    assert_null(qn_attr_find(node, QN_ATTR_Y_CONTRACT));
    assert_int_equal(qn_attr_int_or(node, QN_ATTR_AXIS, 7), 7);
    assert_false(qn_attr_bool(node, QN_ATTR_REVERSE));

    const qn_attr cumulative[] = { { .key = QN_ATTR_KIND, .i = QN_PROD },
                                   { .key = QN_ATTR_REVERSE, .i = 1 },
                                   { .key = QN_ATTR_AXIS, .i = 0 } };
    node = qn_node_new(f, NULL, QN_OP_CUMULATIVE, 1, &x, 3, cumulative, 0, NULL, NULL, &diags);
    assert_int_equal(qn_attr_int(node, QN_ATTR_AXIS), 0);
    assert_int_equal(qn_attr_reduce_kind(node), QN_PROD);
    assert_true(qn_attr_bool(node, QN_ATTR_REVERSE));
    assert_false(qn_attr_bool(node, QN_ATTR_EXCLUSIVE));
}

static void tables_are_read_from_their_files(void **state)
{
    (void)state;
    for (int op = 0; op < QN_N_OPS; op++) {
        uint64_t required, taken = qn_op_attrs((qn_op)op, &required);
        assert_int_equal(required & ~taken, 0);
        assert_int_equal(qn_op_attrs((qn_op)op, NULL), taken);
        assert_int_equal(qn_op_parse(qn_ops[op].name, strlen(qn_ops[op].name)), op);
    }
    for (int key = 0; key < QN_N_ATTRS; key++) {
        assert_int_equal(qn_attr_parse(qn_attrs[key].name, strlen(qn_attrs[key].name)), key);
    }
    assert_int_equal(qn_op_parse("addx", 3), QN_OP_ADD);
    assert_int_equal(qn_op_parse("ad", 2), QN_N_OPS);
    assert_int_equal(qn_op_parse("", 0), QN_N_OPS);
    assert_int_equal(qn_attr_parse("axisx", 5), QN_N_ATTRS);
    uint64_t required, taken = qn_op_attrs(QN_OP_ATTENTION, &required);
    assert_int_equal(taken, (uint64_t)1 << QN_ATTR_CAUSAL | (uint64_t)1 << QN_ATTR_SCALE);
    assert_int_equal(required, (uint64_t)1 << QN_ATTR_SCALE);
    assert_true(qn_op_is_composite(QN_OP_GELU) && !qn_op_is_composite(QN_OP_ADD));
    assert_true(qn_ops[QN_OP_MUL].flags == (QN_FLAG_SMOOTH | QN_FLAG_COMMUTES));
}

static void replacements_are_followed(void **state)
{
    (void)state;
    qn_graph *f = qn_function_new(module, "f");
    qn_value *x = input(f, "x"), *y = input(f, "y");
    qn_value *a = neg(f, x), *b = neg(f, x), *c = neg(f, y);
    qn_value *sum = add(f, a, b);
    qn_graph_add_output(f, a, "out", -1);
    qn_value_replace(a, b);
    qn_value_replace(b, c); /* a chain */
    qn_value_replace(a, c); /* already so */
    assert_ptr_equal(qn_value_resolve(a), c);
    assert_ptr_equal(sum->node->operands[0], a);
    qn_graph_resolve(f);
    assert_ptr_equal(sum->node->operands[0], c);
    assert_ptr_equal(sum->node->operands[1], c);
    assert_ptr_equal(f->outputs[0], c);
    assert_ptr_equal(neg(f, a)->node->operands[0], c); /* new readers follow at once */
}

static qn_node *branch(qn_graph *f, qn_value *condition, qn_value *x, qn_graph *then_body,
                       qn_graph *else_body)
{
    qn_node *node = qn_node_new(f, NULL, QN_OP_IF, 2, (qn_value *[]){ condition, x }, 0, NULL, 2,
                                (qn_graph *[]){ then_body, else_body }, NULL, &diags);
    if (!node)
        fail_msg("%s", qn_diags_text(&diags, module->arena));
    return node;
}

static qn_graph *negating_body(void)
{
    qn_graph *body = qn_region_new(module);
    qn_value *x = input(body, "x");
    neg(body, neg(body, x)); /* of no use */
    qn_graph_add_output(body, neg(body, x), NULL, -1);
    return body;
}

static void uses_are_counted_and_the_dead_removed(void **state)
{
    (void)state;
    qn_graph *f = qn_function_new(module, "f");
    qn_value *p = qn_graph_add_input(f, "p", qn_type_static(module, QUERN_BOOL, 0, NULL), QN_ROLE_INPUT);
    qn_value *x = input(f, "x");
    qn_value *a = neg(f, x), *dead = neg(f, a);
    add(f, dead, dead); /* keeps `dead` alive until it is gone itself */
    qn_node *live_if = branch(f, p, a, negating_body(), negating_body());
    branch(f, p, a, negating_body(), negating_body());
    qn_value *stand_in = neg(f, x);
    qn_value_replace(&live_if->results[0], &live_if->results[0]);
    qn_graph_add_output(f, &live_if->results[0], "y", -1);
    qn_graph_add_output(f, a, "z", -1);

    qn_arena *scratch = qn_arena_new();
    const int *uses = qn_graph_count_uses(f, scratch);
    assert_int_equal(f->n_values, 2 + 6);
    assert_int_equal(uses[p->id], 2);
    assert_int_equal(uses[x->id], 2);
    assert_int_equal(uses[a->id], 1 + 2 + 1);
    assert_int_equal(uses[dead->id], 2);
    assert_int_equal(uses[stand_in->id], 0);
    qn_arena_free(scratch);

    assert_true(qn_graph_remove_dead(f));
    assert_string_equal(ops_of(f), "neg if");
    assert_string_equal(ops_of(live_if->regions[0]), "neg");
    assert_string_equal(ops_of(live_if->regions[1]), "neg");
    assert_false(qn_graph_remove_dead(f));

    qn_value_replace(&live_if->results[0], a); /* resolved before anything is counted */
    assert_true(qn_graph_remove_dead(f));
    assert_string_equal(ops_of(f), "neg");
    assert_ptr_equal(f->outputs[0], a);
}

static void copies_share_nothing_that_changes(void **state)
{
    (void)state;
    qn_graph *f = qn_function_new(module, "f");
    qn_value *p = qn_graph_add_input(f, "p", qn_type_static(module, QUERN_BOOL, 0, NULL), QN_ROLE_INPUT);
    qn_value *x = qn_graph_add_input(f, "x", vector(4), QN_ROLE_PARAM);
    f->input_initial[1] = qn_tensor_new(module, QUERN_F32, 1, (int64_t[]){ 4 }, NULL);
    qn_value *a = neg(f, x), *b = make(f, QN_OP_ABS, 1, &x);
    b->name = "b";
    b->node->loc = (qn_loc){ .file = "f.qn", .line = 3 };
    qn_node *node = branch(f, p, b, negating_body(), negating_body());
    const qn_attr axis[] = { { .key = QN_ATTR_AXIS, .i = 0 } };
    qn_value *operands[] = { &node->results[0], a };
    qn_node *joined = qn_node_new(f, NULL, QN_OP_CONCATENATE, 2, operands, 1, axis, 0, NULL, NULL, &diags);
    qn_graph_add_output(f, &joined->results[0], "y", -1);
    qn_graph_add_output(f, b, "x'", 1);
    qn_value_replace(a, b); /* not yet resolved: the copy is */

    const qn_graph *copy = qn_graph_clone(f, "g");
    assert_ptr_equal(qn_module_find(module, "g"), copy);
    assert_string_equal(ops_of(copy), "neg abs if concatenate");
    assert_int_equal(copy->n_inputs, 2);
    assert_string_equal(copy->inputs[1]->name, "x");
    assert_int_equal(copy->input_roles[1], QN_ROLE_PARAM);
    assert_ptr_equal(copy->input_initial[1], f->input_initial[1]);
    assert_string_equal(copy->output_names[1], "x'");
    assert_int_equal(copy->aliases[1], 1);

    const qn_node *c_neg = copy->first, *c_abs = c_neg->next, *c_if = c_abs->next, *c_cat = c_if->next;
    assert_ptr_equal(c_neg->operands[0], copy->inputs[1]);
    assert_ptr_equal(c_cat->operands[0], &c_if->results[0]);
    assert_ptr_equal(c_cat->operands[1], &c_abs->results[0]);
    assert_ptr_equal(copy->outputs[1], &c_abs->results[0]);
    assert_ptr_equal(c_abs->results[0].node, c_abs);
    assert_string_equal(c_abs->results[0].name, "b");
    assert_int_equal(c_abs->loc.line, 3);
    assert_ptr_not_equal(c_cat->attrs, joined->attrs);
    assert_int_equal(qn_attr_int(c_cat, QN_ATTR_AXIS), 0);
    assert_ptr_not_equal(c_if->regions[0], node->regions[0]);
    assert_string_equal(ops_of(c_if->regions[0]), "neg neg neg");
    assert_ptr_equal(c_if->regions[0]->outputs[0]->node->graph, c_if->regions[0]);

    const qn_graph *region = qn_graph_clone(f, NULL);
    assert_null(region->name);
    assert_null(region->input_roles);
    assert_int_equal(module->n_functions, 2);
    assert_string_equal(ops_of(region), "neg abs if concatenate");
}

static void types_and_tensors(void **state)
{
    (void)state;
    qn_dims *dims = module->dims;
    const qn_dim n = qn_dim_symbol(dims, "n", 0, 100), three = qn_dim_const(dims, 3);
    const qn_type a = qn_type_make(module, QUERN_F32, 2, (qn_dim[]){ n, three });
    const qn_type b = qn_type_make(module, QUERN_F32, 2, (qn_dim[]){ n, three });
    const qn_type c = qn_type_make(module, QUERN_F16, 2, (qn_dim[]){ n, three });
    assert_true(qn_type_equal(&a, &b));
    assert_false(qn_type_equal(&a, &c));
    assert_false(qn_type_is_static(&a));
    assert_string_equal(qn_type_print(&a, module->arena), "f32[n, 3]");
    assert_string_equal(qn_dim_print(qn_type_elements_dim(dims, &a), module->arena), "3*n");
    const qn_type scalar = qn_type_make(module, QUERN_BOOL, 0, NULL);
    assert_string_equal(qn_type_print(&scalar, module->arena), "bool[]");
    assert_int_equal(qn_type_elements(&scalar), 1);
    const qn_type huge = qn_type_static(module, QUERN_I8, 3, (int64_t[]){ 1 << 30, 1 << 30, 1 << 30 });
    assert_true(qn_type_elements(&huge) == INT64_MAX);
    const qn_type empty = qn_type_static(module, QUERN_I8, 4, (int64_t[]){ 1 << 30, 1 << 30, 1 << 30, 0 });
    assert_int_equal(qn_type_elements(&empty), 0);

    const qn_tensor *zeros = qn_tensor_new(module, QUERN_I16, 2, (int64_t[]){ 2, 3 }, NULL);
    assert_int_equal(zeros->bytes, 12);
    for (size_t i = 0; i < zeros->bytes; i++)
        assert_int_equal(((const char *)zeros->data)[i], 0);
}

/* Any bit of the contents, the dims and the dtype count; where the data lies does not. */
static void hashes_tell_tensors_apart(void **state)
{
    (void)state;
    enum { MAX = 150 };
    unsigned char data[MAX + 1];
    for (int size = 1; size <= MAX; size++) {
        for (int i = 0; i <= MAX; i++)
            data[i] = (unsigned char)(i * 7);
        const uint64_t hash = qn_tensor_hash(qn_tensor_new(module, QUERN_U8, 1, (int64_t[]){ size }, data));
        for (int bit = 0; bit < size * 8; bit++) {
            data[bit / 8] ^= (unsigned char)(1 << bit % 8);
            const qn_tensor *other = qn_tensor_new(module, QUERN_U8, 1, (int64_t[]){ size }, data);
            assert_true(qn_tensor_hash(other) != hash);
            data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
        const qn_tensor *same = qn_tensor_new(module, QUERN_U8, 1, (int64_t[]){ size }, data);
        assert_true(qn_tensor_hash(same) == hash && same->hash == hash);
        memmove(data + 1, data, (size_t)size);
        qn_tensor unaligned = *same;
        unaligned.data = data + 1;
        unaligned.hash = 0;
        assert_true(qn_tensor_hash(&unaligned) == hash);
    }
    memset(data, 0, sizeof data);
    const uint64_t a = qn_tensor_hash(qn_tensor_new(module, QUERN_U8, 2, (int64_t[]){ 2, 6 }, data));
    const uint64_t b = qn_tensor_hash(qn_tensor_new(module, QUERN_U8, 2, (int64_t[]){ 6, 2 }, data));
    const uint64_t c = qn_tensor_hash(qn_tensor_new(module, QUERN_I8, 2, (int64_t[]){ 6, 2 }, data));
    const uint64_t d = qn_tensor_hash(qn_tensor_new(module, QUERN_U8, 1, (int64_t[]){ 12 }, data));
    assert_true(a != b && a != c && a != d && b != c && b != d && c != d);
}

/* Large graphs: what is linear stays linear. The limit is far from what it takes (5 ms), and far from quadratic. */
static void large_graphs_are_built_in_no_time(void **state)
{
    (void)state;
    enum { N = 20000 };
    qn_graph *f = qn_function_new(module, "f");
    const clock_t begin = clock();
    qn_value *x = input(f, "x"), *sum = x;
    for (int i = 0; i < N; i++)
        sum = add(f, sum, i % 2 ? x : neg(f, x));
    qn_graph_add_output(f, sum, "y", -1);
    const qn_graph *copy = qn_graph_clone(f, "g");
    assert_false(qn_graph_remove_dead(f));
    f->outputs[0] = x;
    assert_true(qn_graph_remove_dead(f)); /* a chain of N, from one end */
    const double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    assert_null(f->first);
    assert_non_null(copy->last);
    assert_true(seconds < 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(functions_are_found_by_name),
        TEST(signatures_grow_and_shrink),
        TEST(nodes_are_placed_moved_and_removed),
        TEST(attributes_are_sorted_copies),
        TEST(tables_are_read_from_their_files),
        TEST(replacements_are_followed),
        TEST(uses_are_counted_and_the_dead_removed),
        TEST(copies_share_nothing_that_changes),
        TEST(types_and_tensors),
        TEST(hashes_tell_tensors_apart),
        TEST(large_graphs_are_built_in_no_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
