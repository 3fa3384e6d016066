/* Tables of strings, and models that make strings: interpreted, compiled, as a shared object with and without a session. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "quern.h"
#include "tests/support/ok.h"

static int64_t number(quern_strings *s, const char *text)
{
    int64_t n;
    ok(quern_strings_number(s, text, strlen(text), &n));
    return n;
}

static void expect_text(const quern_strings *s, int64_t number, const char *text)
{
    size_t length;
    const char *found = quern_strings_text(s, number, &length);
    assert_non_null(found);
    assert_string_equal(found, text);
    assert_int_equal(length, strlen(text));
}

/* ---- tables ---- */

static const char *const own[] = { "", "yes", ",", "yes" };

static void equal_strings_have_one_number(void **state)
{
    (void)state;
    quern_strings *s, *none;
    int64_t n;
    ok(quern_strings_new(own, 4, &s));
    assert_int_equal(number(s, "yes"), 1);
    assert_int_equal(number(s, ""), 0);
    assert_int_equal(number(s, "no"), 4);
    assert_int_equal(number(s, "no"), 4);
    ok(quern_strings_number(s, "n\0o", 3, &n)); /* bytes of zero are bytes */
    assert_int_equal(n, 5);
    ok(quern_strings_number(s, "n\0x", 3, &n));
    assert_int_equal(n, 6);
    expect_text(s, 3, "yes");
    expect_text(s, 4, "no");
    assert_null(quern_strings_text(s, 7, NULL));
    assert_null(quern_strings_text(s, -1, NULL));
    assert_null(quern_strings_text(NULL, 0, NULL));
    assert_int_equal(quern_strings_number(NULL, "", 0, &n), QUERN_ERROR_ARGUMENT);
    assert_int_equal(quern_strings_new(NULL, 1, &none), QUERN_ERROR_ARGUMENT);
    assert_null(none);
    quern_strings_clear(NULL); /* of a session whose model needs none */
    quern_strings_limit(NULL, 0);
    quern_strings_free(s);
}

/* Many, then none, several times over: slots of what was forgotten are empty again. */
static void forgets_what_came_later(void **state)
{
    (void)state;
    char text[40];
    quern_strings *s;
    ok(quern_strings_new(own, 3, &s));
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 5000; i++) {
            snprintf(text, sizeof text, "%d of round %d", i, round % 3);
            assert_int_equal(number(s, text), 3 + i);
        }
        for (int i = 0; i < 5000; i++) {
            snprintf(text, sizeof text, "%d of round %d", i, round % 3);
            assert_int_equal(number(s, text), 3 + i);
            expect_text(s, 3 + i, text);
        }
        quern_strings_clear(s);
        assert_null(quern_strings_text(s, 3, NULL));
        assert_int_equal(number(s, "yes"), 1);
    }
    char *large = malloc(1 << 20);
    memset(large, 'x', 1 << 20);
    large[(1 << 20) - 1] = '\0';
    expect_text(s, number(s, large), large);
    quern_strings_clear(s);
    expect_text(s, number(s, "small"), "small");
    free(large);
    quern_strings_free(s);
}

static void has_a_limit(void **state)
{
    (void)state;
    char text[40];
    quern_strings *s;
    int64_t n;
    int status = QUERN_OK, i = 0;
    ok(quern_strings_new(NULL, 0, &s));
    quern_strings_limit(s, 1000);
    for (; !status && i < 1000; i++) {
        snprintf(text, sizeof text, "number %d", i);
        status = quern_strings_number(s, text, strlen(text), &n);
    }
    assert_int_equal(status, QUERN_ERROR_MEMORY);
    assert_non_null(strstr(quern_last_error(), "the table of strings is full"));
    assert_in_range(i, 5, 50);
    expect_text(s, 0, "number 0");
    assert_int_equal(number(s, "number 0"), 0); /* is there */
    quern_strings_limit(s, 0);                  /* what is there stays */
    assert_int_equal(number(s, "number 1"), 1);
    quern_strings_clear(s);
    quern_strings_limit(s, 1000);
    assert_int_equal(number(s, text), 0);
    quern_strings_free(s);
}

/* ---- models ---- */

/* x behind "é", in upper case; as often as ", " is there, and one more, pieces of x. */
static const char shouts[] =
    "strings \"é\", \",\"\n"
    "dims n: 0..8, pieces: 0..3\n"
    "graph @main(%x: i64[n], %prefix: i64[n]) -> (all: i64[n], pieces: i64[n, pieces]) {\n"
    "  %0 = text_concat %prefix, %x : i64[n]\n"
    "  %1 = text_case %0 {upper = true} : i64[n]\n"
    "  %2 = text_count %x {most = -1, separator = 1} : i64[n]\n"
    "  %3 = constant 0 : i64[]\n"
    "  %4 = reduce %2 {axes = [0], kind = max} : i64[]\n"
    "  %5 = max %4, %3 : i64[]\n"
    "  %6 = extent %5 {limit = [3], symbol = [pieces]} : i64[]\n"
    "  %7 = text_split %x {k = [pieces], most = -1, separator = 1} : i64[n, pieces]\n"
    "  return %1, %7\n}\n";

static void bind(quern_session *s, int index, int64_t n, const int64_t *numbers)
{
    ok(quern_session_bind(s, index, &(quern_array){ QUERN_I64, 1, &n, (void *)(uintptr_t)numbers }));
}

static void check_shouts(quern_model *model)
{
    quern_session *s;
    ok(quern_session_new(model, NULL, &s));
    quern_strings *strings = quern_session_strings(s);
    assert_non_null(strings);
    for (int round = 0; round < 3; round++) {
        const int64_t x[] = { number(strings, "a,ß,"), number(strings, ""), number(strings, "é") };
        const int64_t prefix[] = { number(strings, "<"), number(strings, "é"), number(strings, ",") };
        quern_array all, pieces;
        assert_int_equal(x[2], 0); /* the model's own */
        bind(s, 0, 3, x);
        bind(s, 1, 3, prefix);
        ok(quern_session_run(s));
        ok(quern_session_get(s, 2, &all));
        ok(quern_session_get(s, 3, &pieces));
        static const char *const want[] = { "<A,ß,", "É", ",É" }, *const parts[] = { "a", "ß", "", "", "",
                                                                                     "",  "é", "", "" };
        for (int i = 0; i < 3; i++)
            expect_text(strings, ((int64_t *)all.data)[i], want[i]);
        assert_int_equal(pieces.dims[1], 3);
        for (int i = 0; i < 9; i++)
            expect_text(strings, ((int64_t *)pieces.data)[i], parts[i]);
        quern_strings_clear(strings);
    }
    const int64_t none[] = { 1, 77 }, four = number(strings, "1,2,3,4");
    bind(s, 0, 2, none);
    bind(s, 1, 2, none);
    assert_int_equal(quern_session_run(s), QUERN_ERROR_INDEX);
    if (!strstr(quern_last_error(), "no string has the number 77"))
        fail_msg("%s", quern_last_error());
    bind(s, 0, 1, &four);
    bind(s, 1, 1, &four);
    assert_int_equal(quern_session_run(s), QUERN_ERROR_RANGE);
    if (!strstr(quern_last_error(), "pieces"))
        fail_msg("%s", quern_last_error());
    bind(s, 0, 0, none);
    bind(s, 1, 0, none);
    ok(quern_session_run(s));
    quern_strings_limit(strings, 64);
    bind(s, 0, 1, none);
    bind(s, 1, 1, none);
    assert_int_equal(quern_session_run(s), QUERN_ERROR_MEMORY);
    if (!strstr(quern_last_error(), "the table of strings is full"))
        fail_msg("%s", quern_last_error());
    quern_session_free(s);
}

/* Two sessions with one table. */
static void check_lent(quern_model *model)
{
    quern_session *a, *b;
    quern_strings *strings;
    quern_array first, second;
    ok(quern_strings_new((const char *const[]){ "é", "," }, 2, &strings));
    ok(quern_session_new(model, NULL, &a));
    ok(quern_session_new(model, NULL, &b));
    quern_session_set_strings(a, strings);
    quern_session_set_strings(b, strings);
    assert_ptr_equal(quern_session_strings(a), strings);
    const int64_t x = number(strings, "x");
    bind(a, 0, 1, &x);
    bind(a, 1, 1, &x);
    ok(quern_session_run(a));
    ok(quern_session_get(a, 2, &first));
    bind(b, 0, 1, first.data);
    bind(b, 1, 1, first.data);
    ok(quern_session_run(b));
    ok(quern_session_get(b, 2, &second));
    expect_text(strings, *(int64_t *)second.data, "XXXX");
    quern_session_set_strings(a, NULL);
    assert_ptr_not_equal(quern_session_strings(a), strings);
    quern_session_free(a);
    quern_session_free(b);
    quern_strings_free(strings);
}

static int refuses(quern_strings *strings, int32_t what, const int64_t *args)
{
    (void)strings;
    (void)what;
    (void)args;
    return QUERN_ERROR_UNSUPPORTED;
}

static const char *reason(const quern_strings *strings)
{
    (void)strings;
    return "no strings today";
}

/* A host's table of functions of its own: nothing but what quern_abi.h says is behind the pointer. */
static void check_own_functions(quern_model *model)
{
    quern_strings *strings = malloc(sizeof *strings + 1024);
    char *behind = (char *)(strings + 1), before[1024];
    const int64_t x = 0;
    quern_session *s;
    *strings = (quern_strings){ sizeof *strings, refuses, reason };
    memset(behind, 'x', sizeof before);
    memset(before, 'x', sizeof before);
    ok(quern_session_new(model, NULL, &s));
    quern_session_set_strings(s, strings);
    bind(s, 0, 1, &x);
    bind(s, 1, 1, &x);
    assert_int_equal(quern_session_run(s), QUERN_ERROR_UNSUPPORTED);
    assert_non_null(strstr(quern_last_error(), "no strings today"));
    assert_memory_equal(behind, before, sizeof before);
    quern_session_free(s);
    free(strings);
}

static quern_module *load(const char *text)
{
    quern_module *module;
    ok(quern_load_bytes(text, strlen(text), NULL, &module));
    return module;
}

static void models_make_strings(void **state)
{
    (void)state;
    static const char *const targets[] = { "interp", "cpu" };
    for (int t = 0; t < 2; t++) {
        quern_module *module = load(shouts);
        quern_compile_options options = { .size = sizeof options, .target = targets[t] };
        quern_model *model;
        ok(quern_compile(module, &options, &model));
        quern_module_free(module);
        check_shouts(model);
        check_lent(model);
        check_own_functions(model);
        quern_model_free(model);
    }
}

/* As a host without the runtime's sessions does: the object's entry with a table, and without one. */
static void check_entry(const quern_model_info *info)
{
    const quern_entry_info *entry = info->entries;
    assert_true(info->size >= offsetof(quern_model_info, n_strings) + sizeof info->n_strings);
    assert_int_equal(info->n_strings, 2);
    quern_ctx ctx = { .size = sizeof ctx };
    int64_t x = 0, all = -1, pieces[3] = { -1 };
    struct {
        void *buffers[4];
        int64_t n, pieces;
    } io = { { &x, &x, &all, pieces }, 1, 0 };
    int64_t symbols[] = { 1, 3 };
    void *workspace = aligned_alloc(64, (size_t)(entry->workspace_bytes(symbols) + 127) / 64 * 64);
    assert_int_equal(entry->run(&io, workspace, NULL), QUERN_ERROR_ARGUMENT);
    assert_int_equal(entry->run(&io, workspace, &ctx), QUERN_ERROR_ARGUMENT);
    assert_true(ctx.failed_node >= 0 && ctx.failed_node < entry->n_nodes);
    ctx.size = offsetof(quern_ctx, strings); /* an older host's */
    assert_int_equal(entry->run(&io, workspace, &ctx), QUERN_ERROR_ARGUMENT);
    ctx.size = sizeof ctx;
    ok(quern_strings_new(info->strings, info->n_strings, &ctx.strings));
    assert_int_equal(entry->run(&io, workspace, &ctx), QUERN_OK);
    expect_text(ctx.strings, all, "ÉÉ");
    assert_int_equal(io.pieces, 1);
    assert_int_equal(pieces[0], 0);
    quern_strings_free(ctx.strings);
    free(workspace);
}

static void shared_objects_make_strings(void **state)
{
    (void)state;
    char folder[] = "/tmp/quern_strings_XXXXXX", path[64], header[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/m.so", folder);
    snprintf(header, sizeof header, "%s/m.h", folder);
    quern_module *module = load(shouts);
    ok(quern_compile_file(module, NULL, NULL, path));
    quern_module_free(module);
    quern_model *model;
    ok(quern_model_open(path, NULL, &model));
    check_shouts(model);
    check_lent(model);
    check_entry(quern_model_describe(model));
    quern_model_free(model);
    unlink(path);
    unlink(header);
    rmdir(folder);
}

/* Nothing of a model without such ops says anything of strings. */
static void others_have_no_table(void **state)
{
    (void)state;
    quern_module *module = load("strings \"a\"\ngraph @main(%x: i64[2]) -> i64[2] {\n  return %x\n}\n");
    quern_model *model;
    quern_session *s;
    ok(quern_compile(module, NULL, &model));
    assert_int_equal(quern_model_describe(model)->size, offsetof(quern_model_info, strings));
    ok(quern_session_new(model, NULL, &s));
    assert_null(quern_session_strings(s));
    quern_session_free(s);
    quern_model_free(model);
    quern_module_free(module);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_strings_have_one_number),
        cmocka_unit_test(forgets_what_came_later),
        cmocka_unit_test(has_a_limit),
        cmocka_unit_test(models_make_strings),
        cmocka_unit_test(shared_objects_make_strings),
        cmocka_unit_test(others_have_no_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
