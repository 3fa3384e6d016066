/* The verifier finds what a broken pass would leave behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/text/text.h"
#include "ir/build.h"

typedef struct fixture {
    qn_arena *arena;
    qn_diags diags;
    qn_module *module;
    qn_graph *f;
} fixture;

static const char text[] = "dims n: 1..8, count: 0..\n"
                           "graph @f(%x: f32[n, 4], %p: bool[], %w: f32[4] state = [1, 2, 3, 4]) -> (y: "
                           "f32[n, 4], w: f32[4] alias %w) {\n"
                           "  %a = exp %x : f32[n, 4]\n"
                           "  %b = softmax %a {axis = 1} : f32[n, 4]\n"
                           "  %c = if %p, %b : f32[n, 4]\n"
                           "    then (%q: f32[n, 4]) { %0 = neg %q : f32[n, 4] return %0 }\n"
                           "    else (%q: f32[n, 4]) { return %q }\n"
                           "  %d = call %c {function = \"g\"} : f32[n, 4]\n"
                           "  return %d, %w\n"
                           "}\n"
                           "graph @g(%x: f32[n, 4]) -> f32[n, 4] { return %x }\n";

static int setup(void **state)
{
    static fixture f;
    f.arena = qn_arena_new();
    qn_diags_init(&f.diags, f.arena);
    if (qn_text_parse(text, strlen(text), "verify.qn", &f.module, &f.diags))
        fail_msg("%s", qn_diags_text(&f.diags, f.arena));
    f.f = qn_module_find(f.module, "f");
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    qn_module_free(f->module);
    qn_arena_free(f->arena);
    return 0;
}

static qn_node *node(fixture *f, int i)
{
    qn_node *n = f->f->first;
    while (i--)
        n = n->next;
    return n;
}

/* The verifier says this, and only this. */
static void expect(fixture *f, const char *message)
{
    assert_int_not_equal(qn_verify(f->module, &f->diags), QUERN_OK);
    const char *found = qn_diags_text(&f->diags, f->arena);
    if (!strstr(found, message))
        fail_msg("expected: %s\nfound: %s", message, found);
    assert_int_equal(f->diags.n_errors, 1);
}

static void a_good_module_passes(void **state)
{
    fixture *f = *state;
    assert_int_equal(qn_verify(f->module, &f->diags), QUERN_OK);
    assert_int_equal(qn_verify_graph(f->f, &f->diags), QUERN_OK);
    assert_int_equal(f->diags.n_errors, 0);
}

static void use_before_definition(void **state)
{
    fixture *f = *state;
    qn_node_move_before(node(f, 1), node(f, 0));
    expect(f, "verify.qn:4:3: graph @f, softmax: operand 0 is not defined above it");
}

static void a_region_that_reads_from_outside(void **state)
{
    fixture *f = *state;
    node(f, 2)->regions[0]->first->operands[0] = &node(f, 0)->results[0];
    expect(f, "graph @f, neg: operand 0 is not defined above it");
}

static void an_unresolved_operand(void **state)
{
    fixture *f = *state;
    qn_value_replace(&node(f, 0)->results[0], f->f->inputs[0]);
    expect(f, "graph @f, softmax: operand 0 was replaced, which is not resolved");
}

static void an_unresolved_output(void **state)
{
    fixture *f = *state;
    qn_value_replace(&node(f, 3)->results[0], f->f->inputs[0]);
    expect(f, "graph @f: output 0 was replaced, which is not resolved");
}

static void an_operand_that_was_removed(void **state)
{
    fixture *f = *state;
    qn_node_remove(node(f, 0));
    expect(f, "graph @f, softmax: operand 0 is not defined above it");
}

static void a_type_that_is_not_the_rules(void **state)
{
    fixture *f = *state;
    node(f, 0)->results[0].type.dtype = QUERN_F64;
    expect(f, "graph @f, exp: result 0 is f64[n, 4], by its rule f32[n, 4]");
}

static void one_result_too_many(void **state)
{
    fixture *f = *state;
    node(f, 0)->n_results = 0;
    expect(f, "graph @f, exp: it has 0 results, by its rule 1");
}

static void an_attribute_out_of_range(void **state)
{
    fixture *f = *state;
    node(f, 1)->attrs[0].i = 7;
    expect(f, "softmax: axis is 7; expected 0 to 1");
}

static void attributes_out_of_order(void **state)
{
    fixture *f = *state;
    qn_attr twice[2] = { node(f, 1)->attrs[0], node(f, 1)->attrs[0] };
    node(f, 1)->attrs = twice;
    node(f, 1)->n_attrs = 2;
    expect(f, "softmax: attributes axis and axis are not in order");
}

static void an_attribute_of_another_op(void **state)
{
    fixture *f = *state;
    node(f, 1)->attrs[0].key = QN_ATTR_EPSILON;
    assert_int_not_equal(qn_verify(f->module, &f->diags), QUERN_OK);
}

static void a_region_of_two_nodes(void **state)
{
    fixture *f = *state;
    node(f, 2)->regions[1] = node(f, 2)->regions[0];
    expect(f, "graph @f, if: its region 1 belongs to another node too");
}

static void a_broken_list(void **state)
{
    fixture *f = *state;
    node(f, 1)->prev = NULL;
    expect(f, "graph @f, softmax: the list of nodes is broken here");
}

static void a_list_that_ends_early(void **state)
{
    fixture *f = *state;
    f->f->last = node(f, 2);
    expect(f, "graph @f: the list of nodes ends before the last one");
}

static void a_node_of_another_graph(void **state)
{
    fixture *f = *state;
    node(f, 1)->graph = qn_module_find(f->module, "g");
    expect(f, "it belongs to another graph");
}

static void inputs_without_a_type(void **state)
{
    fixture *f = *state;
    qn_type *type = &f->f->inputs[0]->type;
    const qn_type good = *type;
    type->dtype = QUERN_INVALID_DTYPE;
    expect(f, "graph @f: input 0 has no valid type");
    *type = good;
    type->rank = QN_MAX_RANK + 1;
    qn_diags_init(&f->diags, f->arena);
    expect(f, "graph @f: input 0 has no valid type");
}

static void an_output_from_elsewhere(void **state)
{
    fixture *f = *state;
    f->f->outputs[0] = qn_module_find(f->module, "g")->inputs[0];
    expect(f, "graph @f: output 0 is no value of the graph");
}

static void an_alias_of_another_type(void **state)
{
    fixture *f = *state;
    f->f->aliases[1] = 0;
    expect(f, "graph @f: output 1 is f32[4], but updates input 0, which is f32[n, 4]");
}

static void an_alias_of_nothing(void **state)
{
    fixture *f = *state;
    f->f->aliases[1] = 3;
    expect(f, "graph @f: output 1 updates input 3, which is not there");
}

static void contents_of_a_plain_input(void **state)
{
    fixture *f = *state;
    f->f->input_roles[2] = QN_ROLE_INPUT;
    expect(f, "graph @f: input 2 is neither param nor state, but has initial contents");
}

static void two_inputs_of_one_name(void **state)
{
    fixture *f = *state;
    f->f->inputs[1]->name = "x";
    expect(f, "graph @f: inputs 0 and 1 are both called x");
}

static void functions_in_a_circle(void **state)
{
    fixture *f = *state;
    qn_graph *g = qn_module_find(f->module, "g");
    qn_builder b = { .graph = g, .diags = &f->diags };
    assert_non_null(qn_b_call(&b, "g", 1, g->inputs));
    expect(f, "@g reaches itself by calls, which no graph may");
}

static void two_functions_of_one_name(void **state)
{
    fixture *f = *state;
    f->f->name = "g";
    expect(f, "two functions have this name");
}

/* ---- symbols that nodes bind ---- */

static void expect_of_text(const char *module_text, const char *message)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_module *module = NULL;
    qn_diags_init(&diags, arena);
    qn_status status = qn_text_parse(module_text, strlen(module_text), "symbols.qn", &module, &diags);
    const char *found = qn_diags_text(&diags, arena);
    if (message ? !strstr(found, message) : status != QUERN_OK)
        fail_msg("expected: %s\nfound: %s", message ? message : "nothing", found);
    qn_module_free(module);
    qn_arena_free(arena);
}

static void symbols_are_bound_before_they_are_used(void **state)
{
    (void)state;
    expect_of_text("graph @f(%x: f32[4]) -> i64[c, 1] {\n"
                   "  %0 = non_zero %x {symbol = [c]} : i64[1, c]\n"
                   "  %1 = reshape %0 {dims = [c, 1]} : i64[c, 1]\n return %1 }",
                   NULL);
    expect_of_text("graph @f(%x: f32[4]) -> () {\n"
                   "  %1 = iota {axis = 0, dims = [2*c], dtype = f32} : f32[2*c]\n"
                   "  %0 = non_zero %x {symbol = [c]} : i64[1, c]\n return }",
                   "symbols.qn:2:3: graph @f, iota: uses dimension c, which no node above it binds");
    expect_of_text("graph @f(%x: f32[4], %y: f32[c]) -> () {\n"
                   "  %0 = non_zero %x {symbol = [c]} : i64[1, c]\n return }",
                   "graph @f: input 1 uses dimension c, which a node binds only later");
    expect_of_text("graph @f(%x: f32[4]) -> () {\n"
                   "  %0 = non_zero %x {symbol = [c]} : i64[1, c]\n"
                   "  %1 = non_zero %x {symbol = [c]} : i64[1, c]\n return }",
                   "symbols.qn:3:3: graph @f, non_zero: another node binds dimension c already");
}

static void symbols_stay_inside_of_regions_and_callees(void **state)
{
    (void)state;
    expect_of_text(
        "graph @f(%p: bool[], %x: f32[4]) -> () {\n"
        "  %0 = if %p, %x : i64[1, c]\n"
        "    then (%x: f32[4]) { %0 = non_zero %x {symbol = [c]} : i64[1, c] return %0 }\n"
        "    else (%x: f32[4]) { %0 = iota {axis = 1, dims = [1, c], dtype = i64} : i64[1, c] return %0 }\n"
        "  return }",
        "uses dimension c, which no node above it binds");
    expect_of_text("graph @f(%x: f32[4]) -> () {\n"
                   "  %0 = call %x {function = \"g\"} : i64[1, c]\n return }\n"
                   "graph @g(%x: f32[4]) -> i64[1, c] {\n"
                   "  %0 = non_zero %x {symbol = [c]} : i64[1, c]\n return %0 }",
                   "symbols.qn:2:3: graph @f, call: result 0 has dimension c, which @g binds itself");
    expect_of_text("graph @f(%x: f32[4]) -> () {\n"
                   "  %0 = call %x {function = \"g\"} : i64[]\n"
                   "  %1 = call %x {function = \"g\"} : i64[]\n return }\n"
                   "graph @g(%x: f32[4]) -> i64[] {\n"
                   "  %0 = non_zero %x {symbol = [c]} : i64[1, c]\n"
                   "  %1 = reduce %0 {axes = [0, 1], kind = sum} : i64[]\n return %1 }",
                   NULL);
}

#define CHECK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHECK(a_good_module_passes),
        CHECK(use_before_definition),
        CHECK(a_region_that_reads_from_outside),
        CHECK(an_unresolved_operand),
        CHECK(an_unresolved_output),
        CHECK(an_operand_that_was_removed),
        CHECK(a_type_that_is_not_the_rules),
        CHECK(one_result_too_many),
        CHECK(an_attribute_out_of_range),
        CHECK(attributes_out_of_order),
        CHECK(an_attribute_of_another_op),
        CHECK(a_region_of_two_nodes),
        CHECK(a_broken_list),
        CHECK(a_list_that_ends_early),
        CHECK(a_node_of_another_graph),
        CHECK(inputs_without_a_type),
        CHECK(an_output_from_elsewhere),
        CHECK(an_alias_of_another_type),
        CHECK(an_alias_of_nothing),
        CHECK(contents_of_a_plain_input),
        CHECK(two_inputs_of_one_name),
        CHECK(functions_in_a_circle),
        CHECK(two_functions_of_one_name),
        cmocka_unit_test(symbols_are_bound_before_they_are_used),
        cmocka_unit_test(symbols_stay_inside_of_regions_and_callees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
