/* Output files: whole or not at all, and what killed processes have left of them is removed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "driver/output.h"
#include "tests/support/folder.h"

#define TARGET "model.safetensors"

static void make_old(const char *path)
{
    const struct timespec old[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000 } };
    assert_int_equal(utimensat(AT_FDCWD, path, old, AT_SYMLINK_NOFOLLOW), 0);
}

static void make_file(fixture *f, const char *name)
{
    FILE *file = fopen(in_folder(f, name), "w");
    assert_non_null(file);
    fclose(file);
}

static bool is_there(fixture *f, const char *name)
{
    struct stat st;
    return lstat(in_folder(f, name), &st) == 0;
}

static void write_it(fixture *f)
{
    qn_output output;
    assert_int_equal(qn_output_open(&output, in_folder(f, TARGET), &f->diags), QUERN_OK);
    fputs("contents", output.file);
    assert_int_equal(qn_output_commit(&output, &f->diags), QUERN_OK);
}

static int count(fixture *f)
{
    DIR *folder = opendir(f->folder);
    int n = -2; /* . and .. */
    while (readdir(folder))
        n++;
    closedir(folder);
    return n;
}

static void what_the_killed_left_goes(void **state)
{
    fixture *f = *state;
    const pid_t child = fork();
    if (child == 0) {
        qn_output output;
        if (qn_output_open(&output, in_folder(f, TARGET), &f->diags))
            _exit(1);
        fputs("half of it", output.file);
        fflush(output.file);
        raise(SIGKILL);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(count(f), 1);
    DIR *folder = opendir(f->folder);
    for (struct dirent *d; (d = readdir(folder));)
        if (d->d_name[0] != '.')
            make_old(in_folder(f, d->d_name));
    closedir(folder);
    write_it(f);
    assert_int_equal(count(f), 1);
    assert_true(is_there(f, TARGET));
}

static void all_else_stays(void **state)
{
    fixture *f = *state;
    static const char *const others[] = { "model.backup",
                                          "model.safetensors.backup",
                                          "model.safetensors.quern-short",
                                          "model.safetensors.quern-longer7",
                                          "model.safetensors2.quern-abcdef",
                                          "other.safetensors.quern-abcdef",
                                          "safetensors.quern-abcdef" };
    enum { OTHERS = sizeof others / sizeof *others };
    for (int i = 0; i < OTHERS; i++) {
        make_file(f, others[i]);
        make_old(in_folder(f, others[i]));
    }
    make_file(f, "model.safetensors.quern-newnew");
    assert_int_equal(symlink("/nowhere", in_folder(f, "model.safetensors.quern-llllll")), 0);
    make_old(in_folder(f, "model.safetensors.quern-llllll"));
    assert_int_equal(mkdir(in_folder(f, "model.safetensors.quern-dddddd"), 0700), 0);
    make_old(in_folder(f, "model.safetensors.quern-dddddd"));
    write_it(f);
    for (int i = 0; i < OTHERS; i++)
        assert_true(is_there(f, others[i]));
    assert_int_equal(count(f), OTHERS + 4);
}

/* Two write the same file, one of them for long. */
static void what_is_written_stays(void **state)
{
    fixture *f = *state;
    qn_output slow;
    assert_int_equal(qn_output_open(&slow, in_folder(f, TARGET), &f->diags), QUERN_OK);
    make_old(slow.temporary);
    write_it(f);
    assert_int_equal(access(slow.temporary, F_OK), 0);
    fputs("later", slow.file);
    assert_int_equal(qn_output_close(&slow, &f->diags), QUERN_OK);
    make_old(slow.temporary);
    write_it(f);
    assert_int_equal(qn_output_commit(&slow, &f->diags), QUERN_OK);
    assert_int_equal(count(f), 1);
    char *text;
    size_t size;
    assert_int_equal(qn_read_file(in_folder(f, TARGET), f->arena, &text, &size, &f->diags), QUERN_OK);
    assert_string_equal(text, "later");
}

static void discarding_leaves_nothing(void **state)
{
    fixture *f = *state;
    qn_output output;
    assert_int_equal(qn_output_open(&output, in_folder(f, TARGET), &f->diags), QUERN_OK);
    assert_int_equal(count(f), 1);
    qn_output_discard(&output);
    qn_output_discard(&output);
    assert_int_equal(count(f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_the_killed_left_goes, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(all_else_stays, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(what_is_written_stays, setup_folder, teardown_folder),
        cmocka_unit_test_setup_teardown(discarding_leaves_nothing, setup_folder, teardown_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
