/* The disk cache: entries come back, damaged and foreign ones do not, and a folder that others can write to is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "driver/cache.h"

typedef struct fixture {
    qn_arena *arena;
    qn_diags diags;
    qn_cache cache;
    char folder[64];
} fixture;

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    f->arena = qn_arena_new();
    qn_diags_init(&f->diags, f->arena);
    strcpy(f->folder, "/tmp/quern-cache-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    assert_int_equal(qn_cache_open(&f->cache, f->folder, &f->diags), QUERN_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    qn_cache_close(&f->cache);
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", f->folder);
    assert_int_equal(system(command), 0);
    qn_arena_free(f->arena);
    free(f);
    return 0;
}

static qn_cache_key key_of(const char *a, const char *b)
{
    return qn_cache_key_of(2, (const char *[]){ a, b });
}

static const char *entry_path(fixture *f, const qn_cache_key *key)
{
    char name[33];
    qn_cache_key_text(key, name);
    return qn_arena_printf(f->arena, "%s/%s", f->folder, name);
}

static void keeps_entries(void **state)
{
    fixture *f = *state;
    qn_cache_key key = key_of("kernel", "avx2"), other = key_of("kernela", "vx2");
    qn_code code = { .data = "machine code", .size = 12 }, back;
    assert_memory_not_equal(&key, &other, sizeof key);
    assert_false(qn_cache_get(&f->cache, &key, f->arena, &back));
    qn_cache_put(&f->cache, &key, &code);
    assert_true(qn_cache_get(&f->cache, &key, f->arena, &back));
    assert_int_equal(back.size, 12);
    assert_memory_equal(back.data, code.data, 12);
    assert_false(qn_cache_get(&f->cache, &other, f->arena, &back));
    code = (qn_code){ .data = "new", .size = 3 };
    qn_cache_put(&f->cache, &key, &code);
    assert_true(qn_cache_get(&f->cache, &key, f->arena, &back));
    assert_int_equal(back.size, 3);
    code = (qn_code){ .data = "", .size = 0 };
    qn_cache_put(&f->cache, &other, &code);
    assert_true(qn_cache_get(&f->cache, &other, f->arena, &back));
    assert_int_equal(back.size, 0);
}

static void refuses_damaged_entries(void **state)
{
    fixture *f = *state;
    qn_cache_key key = key_of("kernel", "avx2"), other = key_of("other", "avx2");
    qn_code code = { .data = "machine code", .size = 12 }, back;
    const char *path = entry_path(f, &key);
    qn_cache_put(&f->cache, &key, &code);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (off_t i = 0; i < st.st_size; i++) { /* each byte in turn */
        FILE *file = fopen(path, "r+b");
        assert_non_null(file);
        fseek(file, i, SEEK_SET);
        int byte = getc(file);
        fseek(file, i, SEEK_SET);
        putc(byte ^ 0x10, file);
        fclose(file);
        assert_false(qn_cache_get(&f->cache, &key, f->arena, &back));
        assert_int_not_equal(access(path, F_OK), 0); /* gone, so that it is made again */
        qn_cache_put(&f->cache, &key, &code);
        assert_true(qn_cache_get(&f->cache, &key, f->arena, &back));
    }
    for (off_t i = 0; i < st.st_size; i++) { /* cut off */
        assert_int_equal(truncate(path, i), 0);
        assert_false(qn_cache_get(&f->cache, &key, f->arena, &back));
        qn_cache_put(&f->cache, &key, &code);
    }
    /* an entry under another's name */
    assert_int_equal(rename(path, entry_path(f, &other)), 0);
    assert_false(qn_cache_get(&f->cache, &other, f->arena, &back));
    /* one that others may write to, a link, and something that is no file */
    qn_cache_put(&f->cache, &key, &code);
    assert_int_equal(chmod(path, 0622), 0);
    assert_false(qn_cache_get(&f->cache, &key, f->arena, &back));
    qn_cache_put(&f->cache, &key, &code);
    assert_int_equal(rename(path, entry_path(f, &other)), 0);
    assert_int_equal(symlink(entry_path(f, &other), path), 0);
    assert_false(qn_cache_get(&f->cache, &key, f->arena, &back));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_false(qn_cache_get(&f->cache, &key, f->arena, &back));
}

static void checks_the_folder(void **state)
{
    fixture *f = *state;
    qn_cache cache;
    assert_int_equal(chmod(f->folder, 0770), 0);
    assert_int_equal(qn_cache_open(&cache, f->folder, &f->diags), QUERN_ERROR_IO);
    assert_non_null(strstr(f->diags.last->text, "mode 0700"));
    assert_int_equal(chmod(f->folder, 0700), 0);
    assert_int_equal(qn_cache_open(&cache, "/dev/null/x", &f->diags), QUERN_ERROR_IO);
    /* made where missing, also below others; the default one is done without where it cannot be made */
    const char *nested = qn_arena_printf(f->arena, "%s/a/b", f->folder);
    assert_int_equal(qn_cache_open(&cache, nested, &f->diags), QUERN_OK);
    assert_true(cache.folder >= 0);
    qn_cache_close(&cache);
    struct stat st;
    assert_int_equal(stat(nested, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    unsetenv("QUERN_CACHE");
    setenv("XDG_CACHE_HOME", "/dev/null", 1);
    int n_errors = f->diags.n_errors;
    assert_int_equal(qn_cache_open(&cache, NULL, &f->diags), QUERN_OK);
    assert_int_equal(cache.folder, -1);
    qn_code back;
    qn_cache_key key = key_of("a", "b");
    assert_false(qn_cache_get(&cache, &key, f->arena, &back));
    setenv("QUERN_CACHE", nested, 1);
    assert_int_equal(qn_cache_open(&cache, NULL, &f->diags), QUERN_OK);
    assert_true(cache.folder >= 0);
    qn_cache_close(&cache);
    assert_int_equal(qn_cache_open(&cache, "", &f->diags), QUERN_OK);
    assert_int_equal(cache.folder, -1);
    assert_int_equal(f->diags.n_errors, n_errors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(keeps_entries, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_damaged_entries, setup, teardown),
        cmocka_unit_test_setup_teardown(checks_the_folder, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
