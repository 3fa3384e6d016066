#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/folder.h"

int setup_folder(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    f->arena = qn_arena_new();
    qn_diags_init(&f->diags, f->arena);
    strcpy(f->folder, "/tmp/quern-test-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    *state = f;
    return 0;
}

int teardown_folder(void **state)
{
    fixture *f = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", f->folder);
    assert_int_equal(system(command), 0);
    qn_arena_free(f->arena);
    free(f);
    return 0;
}

int setup_cache(void **state)
{
    setup_folder(state);
    fixture *f = *state;
    assert_int_equal(qn_cache_open(&f->cache, f->folder, &f->diags), QUERN_OK);
    return 0;
}

int teardown_cache(void **state)
{
    fixture *f = *state;
    qn_cache_close(&f->cache);
    return teardown_folder(state);
}

const char *in_folder(fixture *f, const char *name)
{
    return qn_arena_printf(f->arena, "%s/%s", f->folder, name);
}
