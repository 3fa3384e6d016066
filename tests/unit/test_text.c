/* What the parser of the text form refuses, where, and with which words; and that it stands any garbage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontend/text/text.h"
#include "ir/print.h"

static const char *const mistakes[][2] = {
    /* tokens */
    { "graph @f() -> () {\n  ~\n  return }", "x.qn:2:3: this character has no meaning here" },
    { "graph @f() -> () { return } \"abc", "x.qn:1:29: this string has no closing '\"' in its line" },
    { "graph @\"a\\q\"() -> () { return }",
      "x.qn:1:7: unknown escape; these are known: \\\" \\\\ \\n \\t \\xHH" },
    { "graph @\"\\x00\"() -> () { return }", "x.qn:1:7: a string can't hold a NUL" },
    { "graph @() -> () { return }", "x.qn:1:7: a name is missing here" },
    { "data $a : u8[1] = x\"0\"", "x.qn:1:19: x\"…\" has an odd number of hexadecimal digits" },
    { "data $a : u8[1] = x\"0g\"",
      "x.qn:1:19: the bytes of x\"…\" are pairs of hexadecimal digits, up to a '\"'" },

    /* modules */
    { "grahp @f() -> () { return }", "x.qn:1:1: expected graph, dims, strings or data, found 'grahp'" },
    { "graph f() -> () { return }", "x.qn:1:7: expected the name of the graph (@name), found 'f'" },
    { "graph @f() -> () { return", "x.qn:1:26: expected '}', found the end of the text" },
    { "graph @f() -> () { return }\ngraph @f() -> () { return }", "x.qn:2:7: there is a graph @f already" },
    { "graph @f(%x f32[2]) -> () { return }",
      "x.qn:1:13: expected ':' and the type of the input, found 'f32'" },
    { "graph @f(%x: f32[2], %x: f32[2]) -> () { return }", "x.qn:1:22: there is an input %x already" },
    { "graph @f(%x: f32[2] = [1, 2]) -> () { return }",
      "x.qn:1:21: only an input that is param or state has initial contents" },
    { "graph @f(%x: f32[1]) -> f32[1] alias %y { return %x }",
      "x.qn:1:38: expected the input that this output updates, found '%y'" },
    { "graph @f(%x: f32[1]) -> (y: f32[1], y: f32[1]) { return %x, %x }",
      "outputs 0 and 1 are both called y" },
    { "graph @f(%x: f32[1], %y: f32[1]) -> (f32[1] alias %x, f32[1] alias %x) { return %y, %y }",
      "outputs 0 and 1 both update input 0" },
    { "graph @f(%x: f32[1], %y: f32[2]) -> f32[2] alias %x { return %y }",
      "output 0 is f32[2], but updates input 0, which is f32[1]" },
    { "graph @f(%x: f32[1]) -> f32[2] { return %x }",
      "x.qn:1:7: output 0 of graph @f is f32[2], but it returns f32[1]" },
    { "graph @f(%x: f32[1]) -> f32[1] { return }",
      "x.qn:1:7: graph @f has 1 outputs, but it returns 0 values" },
    { "graph @f(%x: f32[1]) -> f32[1] { return %x %x }",
      "x.qn:1:44: expected '}' behind return, found '%x'" },
    { "graph @f(%x: f32[1]) -> f32[1] { %y = neg %x : f32[1] }",
      "x.qn:1:55: expected a node or return, found '}'" },

    /* dims */
    { "dims n: 5..3",
      "x.qn:1:6: a dimension is at least 0, at most 1099511627776, and its range isn't empty" },
    { "dims n: -1..3", "x.qn:1:6: a dimension is at least 0, at most" },
    { "dims n: 1..3\ndims n: 1..3", "x.qn:2:6: the range of a dimension stands once, before its first use" },
    { "graph @f(%x: f32[n]) -> () { return }\ndims n: 1..3",
      "x.qn:2:6: the range of a dimension stands once" },
    { "dims 3: 1..3", "x.qn:1:6: only a name has a range" },
    { "graph @f(%x: f32[n +]) -> () { return }", "x.qn:1:21: expected a dimension (12, n, 2*n + 1" },
    { "graph @f(%x: f32[,]) -> () { return }", "x.qn:1:18: expected a dimension" },
    { "graph @f(%x: f32[-1]) -> () { return }",
      "x.qn:1:14: dimension 0 can't be -1: it is at least 0 and at most 1099511627776" },
    { "graph @f(%x: f32[1099511627777]) -> () { return }", "x.qn:1:14: dimension 0 can't be 1099511627777" },
    { "graph @f(%x: f32[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]) -> () { return }",
      "x.qn:1:14: a tensor has at most 16 dimensions, this one has 17" },
    { "graph @f(%x: float[2]) -> () { return }", "x.qn:1:14: expected a data type (bool, i8," },

    /* nodes */
    { "graph @f(%x: f32[2]) -> () {\n  %y = sofmax %x {axis = 0} : f32[2]\n return }",
      "x.qn:2:8: there is no op 'sofmax', did you mean 'softmax'?" },
    { "graph @f(%x: f32[2]) -> () { %y = zzzzzzz %x : f32[2] return }",
      "x.qn:1:35: there is no op 'zzzzzzz'" },
    { "graph @f(%x: f32[2]) -> () { %y = neg %z : f32[2] return }",
      "x.qn:1:39: nothing above defines %z in this graph" },
    { "graph @f(%x: f32[2]) -> () { %y = neg %y : f32[2] return }", "x.qn:1:39: nothing above defines %y" },
    { "graph @f(%x: f32[2]) -> () { %x = neg %x : f32[2] return }",
      "x.qn:1:30: there is a %x already in this graph" },
    { "graph @f(%x: f32[2]) -> () { %a, %a = sort %x, %x {axis = 0} : f32[2], f32[2] return }",
      "x.qn:1:34: two results are called %a" },
    { "graph @f(%x: f32[2]) -> () { %a = sort %x, %x {axis = 0} : f32[2], f32[2] return }",
      "x.qn:1:30: 1 results are named, but 2 have a type" },
    { "graph @f(%x: f32[2]) -> () { %a = sort %x, %x {axis = 0} : f32[2] return }",
      "x.qn:1:30: sort has 2 results here, the text names 1" },
    { "graph @f(%x: f32[2]) -> () { %y = neg %x : f32[3] return }",
      "x.qn:1:30: result 0 of neg is f32[2], but the text says f32[3]" },
    { "graph @f(%x: f32[2]) -> () { %y = softmax %x {axs = 0} : f32[2] return }",
      "x.qn:1:47: softmax has no attribute 'axs', did you mean 'axis'?; it takes: axis" },
    { "graph @f(%x: f32[2]) -> () { %y = neg %x {axis = 0} : f32[2] return }",
      "x.qn:1:43: neg has no attribute 'axis'; it takes: none" },
    { "graph @f(%x: f32[2]) -> () { %y = softmax %x {axis = 0, axis = 0} : f32[2] return }",
      "x.qn:1:57: attribute 'axis' is here twice" },
    { "graph @f(%x: f32[2]) -> () { %y = softmax %x {axis = 1.5} : f32[2] return }",
      "x.qn:1:54: expected a whole number, found '1.5'" },
    { "graph @f(%x: f32[2]) -> () { %y = softmax %x : f32[2] return }",
      "x.qn:1:30: softmax: the attribute axis is missing" },
    { "graph @f(%x: f32[2]) -> () { %y = reduce %x {axes = [0], kind = median} : f32[] return }",
      "x.qn:1:65: expected sum, prod, max, min, set or mean, found 'median'" },
    { "graph @f(%x: f32[2]) -> () { %y = reduce %x {axes = 0, kind = max} : f32[] return }",
      "x.qn:1:53: expected '[' and whole numbers, found '0'" },
    { "graph @f(%x: f32[2]) -> () { %y = neg %x : f32[2] loc(1) return }",
      "x.qn:1:55: expected the name of a node as a string, found '1'" },

    /* constants */
    { "graph @f() -> () { %c = constant [1, 2] : f32[3] return }",
      "x.qn:1:34: this list has 2 items, but dimension 0 of f32[3] is 3" },
    { "graph @f() -> () { %c = constant [1, [2]] : f32[2] return }", "x.qn:1:38: expected a number, inf" },
    { "graph @f() -> () { %c = constant [1, 1000] : i8[2] return }",
      "x.qn:1:38: expected a whole number in the range of the data type, found '1000'" },
    { "graph @f() -> () { %c = constant [1, 0] : bool[2] return }",
      "x.qn:1:35: expected true or false, found '1'" },
    { "graph @f() -> () { %c = constant 1 : f32[2] return }",
      "x.qn:1:34: expected '[' (or splat, $label, x\"…\"), found '1'" },
    { "graph @f() -> () { %c = constant [1] : f32[n] return }",
      "x.qn:1:34: a constant needs constant dimensions of a size that fits in memory; f32[n] hasn't" },
    { "graph @f() -> () { %c = constant splat 1 : f64[1000000, 1000000] return }",
      "x.qn:1:34: the splats of a text may have 1024 MiB together" },
    { "graph @f() -> () { %c = constant splat 1 : f64[1099511627776, 1099511627776] return }",
      "x.qn:1:34: a constant needs constant dimensions" },
    { "graph @f() -> () { %c = constant $a : f32[2] return }", "x.qn:1:34: no data $a in this text" },
    { "graph @f() -> () { %c = constant $a : f32[2] return }\ndata $a : f32[3] = splat 1",
      "x.qn:1:34: $a is f32[3], not f32[2]" },
    { "graph @f(%x: f32[2] param = $a) -> () { return }\ndata $a : f32[3] = splat 1",
      "x.qn:1:29: $a is f32[3], not f32[2]" },
    { "graph @f(%x: f32[2] param = $a) -> () { return }", "x.qn:1:29: no data $a in this text" },
    { "data $a : f32[1] = [1]\ndata $a : f32[1] = [1]", "x.qn:2:6: there is a $a already" },
    { "data $a : f32[2] = x\"00\"", "x.qn:1:20: there are 1 bytes here, but f32[2] has 8" },
    { "data $a : bool[2] = x\"0102\"", "x.qn:1:21: byte 1 of a bool tensor is neither 00 nor 01" },
    { "graph @f() -> () { %c = constant {value = 1} : f32[] return }",
      "x.qn:1:34: expected a constant: 1.5, [1, 2]" },

    /* regions and calls */
    { "graph @f(%p: bool[]) -> () { if %p : () then () { return } return }",
      "x.qn:1:60: expected else (inputs) { … }, found 'return'" },
    { "graph @f(%p: bool[], %x: f32[]) -> () { %y = if %p : f32[] then () { return %x } else () { return %x "
      "} return }",
      "x.qn:1:77: nothing above defines %x in this graph" },
    { "graph @f() -> () { call {function = \"g\"} : () return }", "x.qn:1:20: there is no graph @g to call" },
    { "graph @f() -> () { call {function = \"f\"} : () return }",
      "x.qn:1:20: @f calls itself here, which no graph may" },
    { "graph @f() -> () { call {function = \"g\"} : () return }\ngraph @g() -> () { call {function = \"f\"} "
      ": () return }",
      "x.qn:2:20: @f calls itself here, which no graph may" },
    { "graph @f() -> () { call : () return }", "x.qn:1:20: call: the attribute function is missing" },
};

static void mistakes_are_reported_where_they_are(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        qn_arena *arena = qn_arena_new();
        qn_diags diags;
        qn_module *module = NULL;
        qn_diags_init(&diags, arena);
        qn_status status = qn_text_parse(mistakes[i][0], strlen(mistakes[i][0]), "x.qn", &module, &diags);
        const char *text = qn_diags_text(&diags, arena);
        if (!status || module || !strstr(text, mistakes[i][1]))
            fail_msg("%s\n  expected: %s\n  found:    %s", mistakes[i][0], mistakes[i][1], text);
        qn_arena_free(arena);
    }
}

static void every_function_reports_its_first_mistake(void **state)
{
    (void)state;
    static const char text[] =
        "graph @a() -> () { one return }\ngraph @b() -> () { return }\n"
        "graph @c() -> () { call {function = \"a\"} : () return }\ngraph @d() -> () { two three }";
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_module *module;
    qn_diags_init(&diags, arena);
    assert_int_equal(qn_text_parse(text, strlen(text), "x.qn", &module, &diags), QUERN_ERROR_MODEL);
    assert_string_equal(qn_diags_text(&diags, arena),
                        "x.qn:1:20: there is no op 'one'\nx.qn:4:20: there is no op 'two'");
    qn_arena_free(arena);
}

/* ---- garbage ---- */

static qn_status parse(const char *text, size_t length)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_module *module = NULL;
    qn_diags_init(&diags, arena);
    qn_status status = qn_text_parse(text, length, "garbage.qn", &module, &diags);
    assert_true((status == QUERN_OK) == (module != NULL));
    assert_true((status == QUERN_OK) == (diags.n_errors == 0));
    qn_module_free(module);
    qn_arena_free(arena);
    return status;
}

/* `part` n times, then `end`. */
static qn_status parse_repeated(const char *start, const char *part, int n, const char *end)
{
    size_t length = strlen(start) + strlen(part) * (size_t)n + strlen(end);
    char *text = malloc(length + 1), *to = text;
    assert_non_null(text);
    to += sprintf(to, "%s", start);
    for (int i = 0; i < n; i++)
        to += sprintf(to, "%s", part);
    sprintf(to, "%s", end);
    qn_status status = parse(text, length);
    free(text);
    return status;
}

static void deep_nesting_is_refused(void **state)
{
    (void)state;
    static const char open[] = " if %p, %p : () then (%p: bool[]) {";
    assert_int_equal(parse_repeated("graph @f(%p: bool[]) -> () {", open, 100000, ""), QUERN_ERROR_MODEL);
    assert_int_equal(parse_repeated("graph @f() -> () { %c = constant ", "[", 1000000, " : f32[] return }"),
                     QUERN_ERROR_MODEL);
    assert_int_equal(parse_repeated("graph @f(%x: f32[", "(", 1000000, "n"), QUERN_ERROR_MODEL);
    assert_int_equal(parse_repeated("graph @f(%x: f32[", "-", 1000000, "n"), QUERN_ERROR_MODEL);
    assert_int_equal(parse_repeated("graph @f(%x: f32[", "min(n, ", 1000000, "n"), QUERN_ERROR_MODEL);
    assert_int_equal(parse_repeated("graph @f(%x: f32[n", " + n*n", 100000, "]) -> () { return }"),
                     QUERN_ERROR_MODEL);
}

static void long_chains_of_calls_are_refused_or_read(void **state)
{
    (void)state;
    for (int n = 50; n <= 5000; n *= 10) {
        char *text = malloc((size_t)n * 64 + 64), *to = text;
        assert_non_null(text);
        for (int i = 0; i < n; i++)
            to += sprintf(to, "graph @f%d() -> () { call {function = \"f%d\"} : () return }\n", i, i + 1);
        to += sprintf(to, "graph @f%d() -> () { return }\n", n);
        assert_int_equal(parse(text, (size_t)(to - text)), n <= 50 ? QUERN_OK : QUERN_ERROR_MODEL);
        free(text);
    }
}

static const char valid[] =
    "dims n: 1..8, \"odd name\": 2..\n"
    "graph @main(%x: f32[n, 4] param, %\"y\": i64[], %p: bool[]) -> (f32[n, 4] alias %x) {\n"
    "  %0 = constant [[1.5, -inf], [nan, 0x7fc00001]] \"name\" : f32[2, 2]\n"
    "  %1 = constant $lab : u8[20] # comment\n"
    "  %a, %b = top_k %x {axis = 1, k = [2*n - 1], largest = true} : f32[n, 2*n - 1], i64[n, 2*n - 1]\n"
    "  %2 = if %p, %x : f32[n, 4] loc(\"node\", \"If\")\n"
    "    then (%q: f32[n, 4]) { %0 = neg %q : f32[n, 4] return %0 }\n"
    "    else (%q: f32[n, 4]) { return %q }\n"
    "  %3 = call %2 {function = \"g\"} : f32[n, 4]\n"
    "  return %3\n}\n"
    "graph @g(%x: f32[n, 4]) -> f32[n, 4] { return %x }\n"
    "data $lab : u8[20] = x\"000102030405060708090a0b0c0d0e0f10111213\"\n";

static void every_prefix_and_many_changes_are_survived(void **state)
{
    (void)state;
    char text[sizeof valid];
    const size_t n = sizeof valid - 1;
    assert_int_equal(parse(valid, n), QUERN_OK);
    for (size_t length = 0; length < n; length++)
        (void)parse(valid, length);
    uint32_t random = 1;
    for (int round = 0; round < 5000; round++) {
        memcpy(text, valid, sizeof valid);
        for (int change = 0; change < 1 + round % 3; change++) {
            random = random * 1664525u + 1013904223u;
            size_t at = random >> 8 & 0xffff;
            text[at % n] = round % 2 ? valid[(random >> 3) % n] : (char)(random >> 24);
        }
        (void)parse(text, n);
    }
}

static void empty_text_is_an_empty_module(void **state)
{
    (void)state;
    assert_int_equal(parse("", 0), QUERN_OK);
    assert_int_equal(parse("# only a comment", 16), QUERN_OK);
    assert_int_equal(parse("\0", 1), QUERN_ERROR_MODEL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_are_reported_where_they_are),
        cmocka_unit_test(every_function_reports_its_first_mistake),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(long_chains_of_calls_are_refused_or_read),
        cmocka_unit_test(every_prefix_and_many_changes_are_survived),
        cmocka_unit_test(empty_text_is_an_empty_module),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
