/* Runs a linker over objects, or writes them as a static library.
 *
 * All inputs go to the linker as one archive (and the files that exist already), in a folder of their own under $TMPDIR,
 * which is removed in any case. */
#include "backends/llvm/link.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/llvm/archive.h"
#include "backends/llvm/target.h"

extern char **environ;

typedef qn_vec(const char *) strings;

typedef struct linker_run {
    qn_arena *arena;
    qn_diags *diags;
    qn_link_kind kind;
    const char *exported;
    const char *output;
    const char *folder, *archive, *script; /* temporary files; "" where not made */
    const char *cross; /* "aarch64-linux-gnu", as cross tools are called; NULL: for this machine */
    int n_inputs;
    const qn_link_input *inputs;
} linker_run;

static qn_status io_error(qn_diags *diags, const char *path)
{
    return qn_error(diags, QUERN_ERROR_IO, NULL, "%s: %s", path, strerror(errno));
}

/* ---- files ---- */

static qn_status map_file(const char *path, qn_code *out, qn_diags *diags)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0) {
        if (fd >= 0)
            close(fd);
        return io_error(diags, path);
    }
    void *data = info.st_size > 0 ? mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    close(fd);
    if (data == MAP_FAILED)
        return io_error(diags, path);
    *out = (qn_code){ data, (size_t)info.st_size };
    return QUERN_OK;
}

/* In-memory inputs, and with `files` the mapped ones too. */
static qn_status write_archive(linker_run *r, const char *path, bool files)
{
    qn_archive_member *members = QN_NEW_ARRAY(r->arena, qn_archive_member, r->n_inputs);
    qn_status status = QUERN_OK;
    int n = 0;
    FILE *file = fopen(path, "wbe");
    if (!file)
        return io_error(r->diags, path);
    for (int i = 0; i < r->n_inputs && !status; i++) {
        const qn_link_input *in = &r->inputs[i];
        if (in->path && !files)
            continue;
        members[n] = (qn_archive_member){ in->name, in->code };
        if (in->path)
            status = map_file(in->path, &members[n].code, r->diags);
        n += !status;
    }
    if (!status)
        status = qn_archive_write(file, n, members, r->arena, r->diags);
    for (int i = 0, m = 0; i < r->n_inputs && m < n; i++) {
        if (r->inputs[i].path && !files)
            continue;
        if (r->inputs[i].path && members[m].code.data)
            munmap(members[m].code.data, members[m].code.size);
        m++;
    }
    bool failed = ferror(file) != 0;
    failed |= fclose(file) != 0;
    return status ? status : failed ? io_error(r->diags, path) : QUERN_OK;
}

static qn_status write_text(const char *path, const char *text, qn_diags *diags)
{
    FILE *file = fopen(path, "we");
    if (!file)
        return io_error(diags, path);
    bool failed = fputs(text, file) < 0;
    failed |= fclose(file) != 0;
    return failed ? io_error(diags, path) : QUERN_OK;
}

/* ---- running a program ---- */

/* Runs arguments[0], found in PATH. *out_found is false when there is no such program; what it prints is in *out_text. */
static qn_status run_program(linker_run *r, const strings *arguments, bool *out_found, const char **out_text)
{
    int ends[2], status;
    pid_t child;
    char buffer[4096];
    size_t n = 0;
    posix_spawn_file_actions_t actions;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return io_error(r->diags, "pipe");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    char **argv = QN_NEW_ARRAY(r->arena, char *, arguments->n + 1);
    for (size_t i = 0; i < arguments->n; i++)
        argv[i] = qn_arena_strdup(r->arena, arguments->items[i]);
    int error = posix_spawnp(&child, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    *out_found = error == 0;
    if (error) {
        close(ends[0]);
        return QUERN_OK;
    }
    char rest[512];
    for (;;) { /* the beginning is kept, the rest read all the same so that the program can end */
        bool full = n == sizeof buffer - 1;
        ssize_t got =
            full ? read(ends[0], rest, sizeof rest) : read(ends[0], buffer + n, sizeof buffer - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        n += full ? 0 : (size_t)got;
    }
    close(ends[0]);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    while (n > 0 && buffer[n - 1] == '\n')
        n--;
    buffer[n] = 0;
    *out_text = qn_arena_strdup(r->arena, buffer);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return QUERN_OK;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127 && n == 0) { /* how some systems say: not found */
        *out_found = false;
        return QUERN_OK;
    }
    return qn_error(r->diags, QUERN_ERROR_IO, NULL, "%s failed to link: %s", argv[0],
                    n > 0 ? *out_text : "it said nothing");
}

static void push(linker_run *r, strings *to, const char *text)
{
    qn_vec_push(r->arena, to, text);
}

/* A linker is called by itself, a compiler driver hands options on by -Wl. */
static strings arguments_of(linker_run *r, const char *program, bool is_driver)
{
    strings a = { 0 };
    const char *wl = is_driver ? "-Wl," : "";
    push(r, &a, program);
    push(r, &a, r->kind == QN_LINK_SHARED ? "-shared" : "-r");
    if (is_driver)
        push(r, &a, "-nostdlib");
    push(r, &a, "-o");
    push(r, &a, r->output);
    if (r->kind == QN_LINK_SHARED) {
        /* No soname: a program that was linked with ./model.so looks for it there. */
        const char *options[] = { "-Bsymbolic", "--no-undefined", "--hash-style=gnu" };
        for (size_t i = 0; i < sizeof options / sizeof *options; i++)
            push(r, &a, qn_arena_printf(r->arena, "%s%s", wl, options[i]));
        push(r, &a, qn_arena_printf(r->arena, "%s--version-script=%s", wl, r->script));
        const char *words[] = { "relro", "now", "noexecstack" };
        for (int i = 0; i < 3; i++) {
            if (!is_driver)
                push(r, &a, "-z");
            push(r, &a, qn_arena_printf(r->arena, "%s%s", is_driver ? "-Wl,-z," : "", words[i]));
        }
    }
    push(r, &a, qn_arena_printf(r->arena, "%s--whole-archive", wl));
    push(r, &a, r->archive);
    push(r, &a, qn_arena_printf(r->arena, "%s--no-whole-archive", wl));
    for (int i = 0; i < r->n_inputs; i++)
        if (r->inputs[i].path)
            push(r, &a, r->inputs[i].path);
    return a;
}

static bool is_linker_name(const char *program)
{
    const char *slash = strrchr(program, '/'), *name = slash ? slash + 1 : program;
    return strncmp(name, "ld", 2) == 0;
}

static qn_status run_linker(linker_run *r)
{
    /* What is for one machine alone is left out for the others. */
    const char *programs[] = { getenv("QUERN_LINKER"),
                               r->cross ? NULL : "cc",
                               "ld.lld",
                               "ld.lld-22",
                               "ld.lld-21",
                               "ld.lld-20",
                               "ld.lld-19",
                               r->cross ? qn_arena_printf(r->arena, "%s-gcc", r->cross) : "ld" };
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        if (!programs[i] || !*programs[i])
            continue;
        bool found;
        const char *text;
        strings arguments = arguments_of(r, programs[i], !is_linker_name(programs[i]));
        QN_TRY(run_program(r, &arguments, &found, &text));
        if (found)
            return QUERN_OK;
        if (i == 0)
            return qn_error(r->diags, QUERN_ERROR_IO, NULL, "QUERN_LINKER names '%s', which cannot be run",
                            programs[0]);
    }
    const char *wanted =
        r->cross ? qn_arena_printf(r->arena, "ld.lld or %s-gcc", r->cross) : "cc, ld.lld or ld";
    return qn_error(r->diags, QUERN_ERROR_IO, NULL,
                    "linking%s%s needs a linker: install %s, or write a static library (.a) instead",
                    r->cross ? " for " : "", r->cross ? r->cross : "", wanted);
}

/* ---- the whole ---- */

static qn_status link_in_folder(linker_run *r)
{
    char folder[256];
    const char *tmp = getenv("TMPDIR");
    int length = snprintf(folder, sizeof folder, "%s/quern-link-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (length >= (int)sizeof folder || !mkdtemp(folder))
        return io_error(r->diags, folder);
    r->folder = folder;
    r->archive = qn_arena_printf(r->arena, "%s/code.a", folder);
    r->script = qn_arena_printf(r->arena, "%s/exports", folder);
    qn_status status = write_archive(r, r->archive, false);
    if (!status && r->kind == QN_LINK_SHARED)
        status = write_text(r->script, qn_arena_printf(r->arena, "{ global: %s; local: *; };\n", r->exported),
                            r->diags);
    if (!status)
        status = run_linker(r);
    unlink(r->archive);
    unlink(r->script);
    rmdir(folder);
    return status;
}

qn_status qn_link(qn_link_kind kind, const char *path, const char *exported, const char *triple, int n_inputs,
                  const qn_link_input *inputs, qn_diags *diags)
{
    qn_arena *arena = qn_arena_new();
    linker_run r = { .arena = arena,
                     .diags = diags,
                     .kind = kind,
                     .exported = exported,
                     .output = path,
                     .cross =
                         qn_llvm_is_host_triple(triple)
                             ? NULL
                             : qn_arena_printf(arena, "%.*s-linux-gnu", (int)strcspn(triple, "-"), triple),
                     .n_inputs = n_inputs,
                     .inputs = inputs };
    qn_status status = kind == QN_LINK_ARCHIVE ? write_archive(&r, path, true) : link_in_folder(&r);
    if (status)
        unlink(path);
    qn_arena_free(arena);
    return status;
}
