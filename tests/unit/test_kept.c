/* Programs that are kept in the cache: they come back as they were, under a key that tells apart what lowering tells apart, and a
 * model is the same whatever part of it the cache has lost. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver/compile.h"
#include "driver/kept.h"
#include "frontend/text/text.h"
#include "ir/print.h"
#include "passes/passes.h"
#include "tests/support/folder.h"
#include "tests/support/lowered.h"
#include "tests/support/random_graph.h"

/* ---- programs ---- */

static void expect_same_kernel(const qn_kernel *a, const qn_kernel *b)
{
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->n_buffers, b->n_buffers);
    assert_int_equal(a->n_params, b->n_params);
    for (int i = 0; i < a->n_buffers; i++) {
        const qn_kbuffer *x = a->buffers[i], *y = b->buffers[i];
        assert_string_equal(x->name, y->name);
        assert_int_equal(x->dtype, y->dtype);
        assert_int_equal(x->index, y->index);
        assert_int_equal(x->inplace, y->inplace);
        assert_int_equal(x->align, y->align);
        assert_true(x->read == y->read && x->written == y->written);
    }
    for (int i = 0; i < a->n_params; i++)
        assert_true(a->param_min[i] == b->param_min[i] && a->param_max[i] == b->param_max[i] &&
                    a->param_multiple[i] == b->param_multiple[i]);
    assert_true(a->flops == b->flops && a->bytes == b->bytes);
}

static void expect_same_flops(const qn_steps *a, const qn_steps *b)
{
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) {
        assert_true(a->items[i].flops == b->items[i].flops);
        expect_same_flops(&a->items[i].test, &b->items[i].test);
        expect_same_flops(&a->items[i].body, &b->items[i].body);
        expect_same_flops(&a->items[i].other, &b->items[i].other);
    }
}

static void keep_and_compare(fixture *f, const char *name, qn_graph *graph, const qn_pass_options *options)
{
    const qn_print_options print = { .inline_elements = QN_PRINT_INLINE_ELEMENTS };
    qn_arena *arena = qn_arena_new();
    qn_program *p, *back;
    qn_cache_key *keys_back;
    qn_kept kept;
    bool changed;
    assert_int_equal(qn_run_passes(graph, NULL, options, NULL, &f->diags), QUERN_OK);
    assert_int_equal(qn_pass_find("expand")->run(graph, options, &changed, &f->diags), QUERN_OK);
    qn_graph_remove_dead(graph);
    assert_true(qn_kept_of(graph, options, name, arena, &kept));
    assert_int_equal(qn_lower(graph, options, arena, &p, &f->diags), QUERN_OK);
    assert_int_equal(qn_memplan(p, &f->diags), QUERN_OK);
    qn_cache_key *keys = QN_NEW_ARRAY(arena, qn_cache_key, p->n_kernels);
    for (int i = 0; i < p->n_kernels; i++)
        keys[i] = qn_cache_key_of(1, &p->kernel_texts[i]);
    assert_false(qn_kept_get(&f->cache, &kept, arena, &back, &keys_back));
    qn_kept_put(&f->cache, &kept, p, keys);
    assert_true(qn_kept_get(&f->cache, &kept, arena, &back, &keys_back));
    assert_string_equal(qn_program_print_as(back, &print, false, arena),
                        qn_program_print_as(p, &print, false, arena));
    assert_int_equal(back->n_kernels, p->n_kernels);
    for (int i = 0; i < p->n_kernels; i++)
        expect_same_kernel(p->kernels[i], back->kernels[i]);
    assert_memory_equal(keys, keys_back, (size_t)p->n_kernels * sizeof *keys);
    expect_same_flops(&p->steps, &back->steps);
    qn_weights weights;
    qn_weights_lay_out(1, &back, arena, &weights);
    if (qn_program_verify(back, &f->diags))
        fail_msg("%s", qn_diags_text(&f->diags, arena));
    qn_arena_free(arena);
}

static void programs_come_back(void **state)
{
    fixture *f = *state;
    static const int flags[] = { QN_RANDOM_REDUCE | QN_RANDOM_SYMBOLS, QN_RANDOM_CONTRACT,
                                 QN_RANDOM_CONTROL | QN_RANDOM_SYMBOLS, QN_RANDOM_INDEX | QN_RANDOM_SYMBOLS,
                                 QN_RANDOM_ALL };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        for (int seed = 31000; seed < 31030; seed++) {
            const qn_pass_options options = { .math = QN_MATH_DEFAULT,
                                              .machine = seed % 2 ? &lowered_machine : NULL,
                                              .blas = seed % 3 ? QN_BLAS_NEVER : QN_BLAS_ALWAYS };
            qn_module *module = qn_graph_random((uint64_t)seed, flags[i], 12);
            char name[64];
            snprintf(name, sizeof name, "random graph %d of flags %d", seed, flags[i]);
            keep_and_compare(f, name, qn_module_find(module, "main"), &options);
            qn_module_free(module);
        }
}

static void comes_back_from(fixture *f, const char *name, const char *text)
{
    const qn_pass_options options = { .math = QN_MATH_DEFAULT };
    qn_module *module;
    if (qn_text_parse(text, strlen(text), "c.qn", &module, &f->diags))
        fail_msg("%s", qn_diags_text(&f->diags, f->arena));
    keep_and_compare(f, name, module->functions[0], &options);
    qn_module_free(module);
}

static void collectives_come_back(void **state)
{
    static const char text[] = "dims n: 1..64\n"
                               "graph @main(%x: f32[n, 3]) -> (y: f32[2*n, 3], z: f32[n, 3], r: i64[]) {\n"
                               "  %0 = all_reduce %x {kind = mean} : f32[n, 3]\n"
                               "  %1 = concatenate %0, %x {axis = 0} : f32[2*n, 3]\n"
                               "  %2 = broadcast_rank %1 {root = 2} : f32[2*n, 3]\n"
                               "  %3 = concatenate %2, %2, %1, %1 {axis = 0} : f32[8*n, 3]\n"
                               "  %4 = reduce_scatter %3 {kind = sum, ranks = 8} : f32[n, 3]\n"
                               "  %5 = rank : i64[]\n"
                               "  return %2, %4, %5\n}\n";
    comes_back_from(*state, "collectives", text);
}

static void text_comes_back(void **state)
{
    static const char text[] = "strings \",\"\n"
                               "dims n: 1..64, k: 0..9\n"
                               "graph @main(%x: i64[n]) -> (y: i64[n, k], z: f32[n]) {\n"
                               "  %0 = text_count %x {most = 8, separator = 0} : i64[n]\n"
                               "  %1 = reduce %0 {axes = [0], kind = max} : i64[]\n"
                               "  %2 = extent %1 {limit = [9], symbol = [k]} : i64[]\n"
                               "  %3 = text_split %x {k = [k], most = 8, separator = 0} : i64[n, k]\n"
                               "  %4 = text_parse %x {dtype = f32} : f32[n]\n"
                               "  return %3, %4\n}\n";
    comes_back_from(*state, "text", text);
}

static bool comes_back(fixture *f, const qn_kept *kept, char *bytes, size_t n)
{
    qn_arena *arena = qn_arena_new();
    qn_program *back;
    qn_cache_key *keys;
    assert_true(qn_cache_put(&f->cache, &kept->key, &(qn_code){ bytes, n }));
    const bool found = qn_kept_get(&f->cache, kept, arena, &back, &keys);
    qn_arena_free(arena);
    return found;
}

/* An entry that ends anywhere but at its end is none, nor is one with more behind it; and whatever its bytes are, reading them
 * does no harm. */
static void other_bytes_are_read_with_care(void **state)
{
    static const char text[] = "dims n: 1..64\n"
                               "graph @main(%x: f32[n, 8]) -> (y: f32[n, 8]) {\n"
                               "  %0 = sort %x {axis = 1} : f32[n, 8]\n"
                               "  %1 = exp %0 : f32[n, 8]\n"
                               "  return %1\n}\n";
    fixture *f = *state;
    const qn_pass_options options = { .math = QN_MATH_DEFAULT };
    qn_module *module;
    qn_kept kept;
    qn_code whole;
    bool changed;
    assert_int_equal(qn_text_parse(text, sizeof text - 1, "p.qn", &module, &f->diags), QUERN_OK);
    qn_graph *graph = module->functions[0];
    keep_and_compare(f, "bytes", graph, &options);
    assert_int_equal(qn_pass_find("expand")->run(graph, &options, &changed, &f->diags), QUERN_OK);
    assert_true(qn_kept_of(graph, &options, "bytes", f->arena, &kept));
    assert_true(qn_cache_get(&f->cache, &kept.key, f->arena, &whole));
    char *bytes = qn_arena_alloc(f->arena, whole.size + 1);
    memcpy(bytes, whole.data, whole.size);
    for (size_t n = 0; n <= whole.size + 1; n++)
        assert_int_equal(comes_back(f, &kept, bytes, n), n == whole.size);
    for (size_t i = 0; i < whole.size; i++) {
        static const unsigned char others[] = { 0, 1, 64, 127, 128, 255 };
        const char byte = bytes[i];
        for (size_t k = 0; k < sizeof others; k++) {
            bytes[i] = (char)others[k];
            comes_back(f, &kept, bytes, whole.size);
        }
        bytes[i] = byte;
    }
    qn_module_free(module);
}

/* ---- keys ---- */

static qn_cache_key key_of(fixture *f, const char *text, const char *settings)
{
    const qn_pass_options options = { .math = QN_MATH_DEFAULT };
    qn_module *module;
    qn_kept kept;
    if (qn_text_parse(text, strlen(text), "k.qn", &module, &f->diags))
        fail_msg("%s", qn_diags_text(&f->diags, f->arena));
    assert_true(qn_kept_of(module->functions[0], &options, settings, f->arena, &kept));
    qn_module_free(module);
    return kept.key;
}

static bool same_key(fixture *f, const char *a, const char *b)
{
    const qn_cache_key x = key_of(f, a, ""), y = key_of(f, b, "");
    return memcmp(&x, &y, sizeof x) == 0;
}

#define WITH(name, dims, first, second)                             \
    "dims n: " dims "\n"                                            \
    "graph @main(%x: f32[n, 4]) -> (y: f32[n, 4]) {\n"              \
    "  %a = constant " first " : f32[4]\n"                          \
    "  %b = constant " second " : f32[4]\n"                         \
    "  %c = mul %a, %b : f32[4]\n"                                  \
    "  %d = broadcast %c {dims = [n, 4], axes = [1]} : f32[n, 4]\n" \
    "  %" name " = add %x, %d : f32[n, 4]\n"                        \
    "  return %" name "\n}\n"
#define LOOKED_UP(indices)                             \
    "graph @main(%x: f32[4, 8]) -> (y: f32[2, 8]) {\n" \
    "  %i = constant " indices " : i64[2]\n"           \
    "  %y = gather %x, %i {axis = 0} : f32[2, 8]\n"    \
    "  return %y\n}\n"

static void keys_tell_apart_what_lowering_does(void **state)
{
    fixture *f = *state;
    const char *base = WITH("y", "1..8", "[1, 2, 3, 4]", "[5, 6, 7, 8]");
    assert_true(same_key(f, base, base));
    /* other weights are the same program */
    assert_true(same_key(f, base, WITH("y", "1..8", "[1, 2, 3, 5]", "[0, 6, 7, 8]")));
    /* but not those that are one value, or equal */
    assert_false(same_key(f, base, WITH("y", "1..8", "[1, 1, 1, 1]", "[5, 6, 7, 8]")));
    assert_false(same_key(f, WITH("y", "1..8", "[2, 2, 2, 2]", "[5, 6, 7, 8]"),
                          WITH("y", "1..8", "[1, 1, 1, 1]", "[5, 6, 7, 8]")));
    assert_false(same_key(f, base, WITH("y", "1..8", "[5, 6, 7, 8]", "[5, 6, 7, 8]")));
    /* nor other names, which traces show, and other ranges */
    assert_false(same_key(f, base, WITH("z", "1..8", "[1, 2, 3, 4]", "[5, 6, 7, 8]")));
    assert_false(same_key(f, base, WITH("y", "1..9", "[1, 2, 3, 4]", "[5, 6, 7, 8]")));
    /* indices are checked, or not */
    assert_false(same_key(f, LOOKED_UP("[0, 1]"), LOOKED_UP("[0, 7]")));
    const qn_cache_key a = key_of(f, base, "fuse 1"), b = key_of(f, base, "fuse 0");
    assert_memory_not_equal(&a, &b, sizeof a);
}

/* ---- models ---- */

static const char model[] =
    "graph @main(%x: f32[3, 32], %w: f32[32, 32] param = splat 0.25) -> (y: f32[3, 32]) {\n"
    "  %0 = dot_general %x, %w {x_batch = [], x_contract = [1], y_batch = [], "
    "y_contract = [0]} : f32[3, 32]\n"
    "  %1 = sort %0 {axis = 1} : f32[3, 32]\n"
    "  %2 = exp %1 : f32[3, 32]\n"
    "  return %2\n}\n";

enum { N_IO = 3 };

static void run_model(const char *folder, float *y)
{
    quern_module *module;
    quern_model *compiled;
    quern_session *session;
    float x[3 * 32];
    for (int i = 0; i < 3 * 32; i++)
        x[i] = (float)(i * 37 % 64) / 64 - 0.5f;
    assert_int_equal(quern_load_bytes(model, sizeof model - 1, NULL, &module), QUERN_OK);
    const quern_compile_options options = { .size = sizeof options, .threads = 1, .cache = folder };
    if (quern_compile(module, &options, &compiled))
        fail_msg("%s", quern_last_error());
    assert_int_equal(quern_session_new(compiled, NULL, &session), QUERN_OK);
    const quern_array array = { .dtype = QUERN_F32, .rank = 2, .dims = (int64_t[]){ 3, 32 }, .data = x };
    quern_array result;
    assert_int_equal(quern_session_bind(session, 0, &array), QUERN_OK);
    assert_int_equal(quern_session_run(session), QUERN_OK);
    assert_int_equal(quern_session_get(session, N_IO - 1, &result), QUERN_OK);
    memcpy(y, result.data, sizeof x);
    quern_session_free(session);
    quern_model_free(compiled);
    quern_module_free(module);
}

/* Is the model's program kept, and all that it needs? */
static bool is_kept(fixture *f)
{
    qn_arena *arena = qn_arena_new();
    qn_module *module;
    qn_compiled compiled;
    qn_settings settings;
    const quern_compile_options options = { .size = sizeof options, .cache = f->folder };
    assert_int_equal(qn_settings_from(&options, &settings, &f->diags), QUERN_OK);
    settings.target.jit = true;
    assert_int_equal(qn_text_parse(model, sizeof model - 1, "m.qn", &module, &f->diags), QUERN_OK);
    if (qn_compile_module(module, &settings, QN_EMIT_OBJECT, arena, &compiled, &f->diags))
        fail_msg("%s", qn_diags_text(&f->diags, f->arena));
    const bool kept = compiled.kept[0];
    qn_module_free(module);
    qn_arena_free(arena);
    return kept;
}

static void tuning_makes_programs_anew(void **state)
{
    fixture *f = *state;
    quern_module *module;
    float y[3 * 32];
    run_model(f->folder, y);
    assert_true(is_kept(f));
    assert_int_equal(quern_load_bytes(model, sizeof model - 1, NULL, &module), QUERN_OK);
    const quern_compile_options options = { .size = sizeof options, .threads = 1, .cache = f->folder };
    const quern_tune_options tune = { .size = sizeof tune, .seconds = 0.05 };
    if (quern_tune(module, &options, &tune))
        fail_msg("%s", quern_last_error());
    quern_module_free(module);
    assert_false(is_kept(f));
    run_model(f->folder, y);
    assert_true(is_kept(f));
}

static int list(fixture *f, const char **names, int most)
{
    DIR *folder = opendir(f->folder);
    int n = 0;
    assert_non_null(folder);
    for (struct dirent *d; (d = readdir(folder));)
        if (strlen(d->d_name) == 32) {
            assert_in_range(n, 0, most - 1);
            names[n++] = qn_arena_printf(f->arena, "%s/%s", f->folder, d->d_name);
        }
    closedir(folder);
    return n;
}

/* The last byte of the file becomes another: the entry's hash is no longer that of its contents. */
static void damage(const char *path)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, -1, SEEK_END), 0);
    const int last = getc(file);
    assert_int_equal(fseek(file, -1, SEEK_END), 0);
    putc(last ^ 0xff, file);
    assert_int_equal(fclose(file), 0);
}

static void remove_file(const char *path)
{
    assert_int_equal(unlink(path), 0);
}

static void loses(fixture *f, void (*lose)(const char *path))
{
    const char *names[32];
    float expected[3 * 32], y[3 * 32];
    assert_false(is_kept(f));
    run_model(f->folder, expected);
    assert_true(is_kept(f));
    run_model(f->folder, y);
    assert_memory_equal(y, expected, sizeof y);
    const int n = list(f, names, 32);
    assert_in_range(n, 4, 32); /* two kernels, the entries, the program */
    for (int i = 0; i < n; i++) {
        lose(names[i]);
        run_model(f->folder, y);
        assert_memory_equal(y, expected, sizeof y);
        assert_true(is_kept(f));
        lose(names[i]);
        assert_false(is_kept(f));
        run_model(f->folder, y);
        assert_int_equal(access(names[i], F_OK), 0);
        assert_memory_equal(y, expected, sizeof y);
        assert_true(is_kept(f));
    }
}

static void what_is_lost_is_made_again(void **state)
{
    loses(*state, remove_file);
}

static void what_is_damaged_is_made_again(void **state)
{
    loses(*state, damage);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(programs_come_back, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(collectives_come_back, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(text_comes_back, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(other_bytes_are_read_with_care, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(keys_tell_apart_what_lowering_does, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(tuning_makes_programs_anew, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(what_is_lost_is_made_again, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(what_is_damaged_is_made_again, setup_cache, teardown_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
