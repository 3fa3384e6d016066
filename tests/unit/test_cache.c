/* The disk cache: entries come back, damaged and foreign ones do not, and a folder that others can write to is refused. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/folder.h"

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

static void put_old(fixture *f, const char *name, int seconds_ago)
{
    static char text[1000];
    qn_cache_key key = key_of(name, "");
    qn_cache_put(&f->cache, &key, &(qn_code){ .data = text, .size = sizeof text });
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec -= seconds_ago;
    const struct timespec times[2] = { now, now };
    assert_int_equal(utimensat(AT_FDCWD, entry_path(f, &key), times, 0), 0);
}

static bool is_there(fixture *f, const char *name)
{
    qn_cache_key key = key_of(name, "");
    return access(entry_path(f, &key), F_OK) == 0;
}

static void keeps_to_its_limit(void **state)
{
    fixture *f = *state;
    qn_code back;
    put_old(f, "a", 40000);
    put_old(f, "b", 30000);
    put_old(f, "c", 20000);
    put_old(f, "d", 10000);
    /* a file that is not ours, one that is being written, and one that was never finished */
    qn_cache_key key = key_of("a", "");
    const char *other = qn_arena_printf(f->arena, "%s/README", f->folder),
               *writing = qn_arena_printf(f->arena, "%s.1.1", entry_path(f, &key)),
               *left = qn_arena_printf(f->arena, "%s.1.2", entry_path(f, &key));
    const char *files[] = { other, writing, left };
    for (int i = 0; i < 3; i++) {
        FILE *file = fopen(files[i], "w");
        assert_non_null(file);
        fclose(file);
    }
    const struct timespec long_ago[2] = { { .tv_sec = 1000 }, { .tv_sec = 1000 } };
    assert_int_equal(utimensat(AT_FDCWD, left, long_ago, 0), 0);
    assert_int_equal(utimensat(AT_FDCWD, other, long_ago, 0), 0);
    f->cache.limit = 0;
    qn_cache_trim(&f->cache);
    assert_true(is_there(f, "a"));
    assert_true(qn_cache_get(&f->cache, &key, f->arena, &back)); /* now the last one used */
    f->cache.limit = 2500;
    qn_cache_trim(&f->cache);
    assert_true(is_there(f, "a"));
    assert_false(is_there(f, "b"));
    assert_false(is_there(f, "c"));
    assert_true(is_there(f, "d"));
    assert_int_equal(access(other, F_OK), 0);
    assert_int_equal(access(writing, F_OK), 0);
    assert_int_not_equal(access(left, F_OK), 0);
    /* once there is too much, room is made for more than the next entry */
    static const char *const names[] = { "1", "2", "3", "4", "5", "6" };
    for (int i = 0; i < 6; i++)
        put_old(f, names[i], 50000 - i * 1000);
    f->cache.limit = 8192;
    qn_cache_trim(&f->cache);
    assert_false(is_there(f, "1"));
    assert_false(is_there(f, "2"));
    assert_true(is_there(f, "3"));
    assert_true(is_there(f, "d"));
    qn_cache_trim(&f->cache); /* six of them are not too much */
    assert_true(is_there(f, "3"));
    f->cache.limit = 2500;
    qn_cache_trim(&f->cache);
    assert_true(is_there(f, "d"));
    /* closing trims what was written to */
    setenv("QUERN_CACHE_LIMIT", "2K", 1);
    qn_cache cache;
    assert_int_equal(qn_cache_open(&cache, f->folder, &f->diags), QUERN_OK);
    assert_int_equal(cache.limit, 2048);
    qn_cache_close(&cache);
    assert_true(is_there(f, "d"));
    assert_int_equal(qn_cache_open(&cache, f->folder, &f->diags), QUERN_OK);
    qn_cache_key new = key_of("e", "");
    qn_cache_put(&cache, &new, &(qn_code){ .data = "0123456789", .size = 10 });
    qn_cache_close(&cache);
    assert_false(is_there(f, "d"));
    assert_true(is_there(f, "a"));
    assert_true(is_there(f, "e"));
    /* a call counts, and leaves what was used last, or nothing */
    int64_t bytes, entries, remain;
    assert_int_equal(quern_cache_trim(f->folder, -1, &bytes, &entries), QUERN_OK);
    assert_true(bytes > 1000 && entries == 2 && is_there(f, "a") && is_there(f, "e"));
    assert_int_equal(quern_cache_trim(f->folder, bytes - 1, &remain, &entries), QUERN_OK);
    assert_true(remain < bytes && entries == 1);
    assert_int_equal(quern_cache_trim(f->folder, 0, NULL, NULL), QUERN_OK);
    assert_false(is_there(f, "a") || is_there(f, "e"));
    assert_int_equal(quern_cache_trim("", 0, &bytes, &entries), QUERN_OK);
    assert_true(bytes == 0 && entries == 0);
    /* what was counted is believed, nothing else: not a number of three bytes */
    for (int damaged = 0; damaged < 2; damaged++) {
        put_old(f, "b", 30000);
        if (damaged)
            assert_int_equal(truncate(qn_arena_printf(f->arena, "%s/total", f->folder), 3), 0);
        setenv("QUERN_CACHE_LIMIT", damaged ? "1K" : "1M", 1);
        assert_int_equal(qn_cache_open(&cache, f->folder, &f->diags), QUERN_OK);
        qn_cache_put(&cache, &new, &(qn_code){ .data = "0123456789", .size = 10 });
        qn_cache_close(&cache);
        assert_int_equal(is_there(f, "b"), !damaged);
    }
    static const char *const wrong[] = { "", "x", "-1", "12Q", "1Kb", "99999999999G" };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        setenv("QUERN_CACHE_LIMIT", wrong[i], 1);
        assert_int_equal(qn_cache_open(&cache, f->folder, &f->diags), QUERN_ERROR_ARGUMENT);
        assert_int_equal(cache.folder, -1);
    }
    assert_non_null(strstr(f->diags.last->text, "QUERN_CACHE_LIMIT cannot be '99999999999G'"));
    unsetenv("QUERN_CACHE_LIMIT");
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
        cmocka_unit_test_setup_teardown(keeps_entries, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(refuses_damaged_entries, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(keeps_to_its_limit, setup_cache, teardown_cache),
        cmocka_unit_test_setup_teardown(checks_the_folder, setup_cache, teardown_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
