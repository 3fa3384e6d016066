/* Calls of Graphviz: see graphviz.h. Everything goes by way of files, so neither side can wait for the other. */
#include "driver/graphviz.h"

#include <errno.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

qn_status qn_temporary_file(FILE **out, qn_diags *diags)
{
    *out = tmpfile();
    return *out ? QUERN_OK : qn_error(diags, QUERN_ERROR_IO, NULL, "a temporary file: %s", strerror(errno));
}

/* All of it, with a zero behind. */
static qn_status read_all(FILE *file, qn_arena *arena, char **out, qn_diags *diags)
{
    long size;
    if (fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET))
        return qn_error(diags, QUERN_ERROR_IO, NULL, "a temporary file: %s", strerror(errno));
    *out = qn_arena_alloc(arena, (size_t)size + 1);
    if (fread(*out, 1, (size_t)size, file) != (size_t)size)
        return qn_error(diags, QUERN_ERROR_IO, NULL, "a temporary file: %s", strerror(errno));
    (*out)[size] = 0;
    return QUERN_OK;
}

/* Runs it from file to file. *out_status is what waitpid gives. */
static int run_dot(FILE *from, FILE *to, FILE *messages, int *out_status)
{
    char *arguments[] = { "dot", "-Tsvg", NULL };
    posix_spawn_file_actions_t actions;
    pid_t child;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fileno(from), 0);
    posix_spawn_file_actions_adddup2(&actions, fileno(to), 1);
    posix_spawn_file_actions_adddup2(&actions, fileno(messages), 2);
    const int error = posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error)
        return error;
    while (waitpid(child, out_status, 0) < 0)
        if (errno != EINTR)
            return errno;
    return 0;
}

static qn_status draw(FILE *dot, FILE *svg, FILE *messages, qn_arena *arena, char **out_svg, qn_diags *diags)
{
    int status = 0;
    char *text;
    if (fflush(dot) || ferror(dot) || lseek(fileno(dot), 0, SEEK_SET) < 0)
        return qn_error(diags, QUERN_ERROR_IO, NULL, "a temporary file: %s", strerror(errno));
    const int error = run_dot(dot, svg, messages, &status);
    if (error == ENOENT)
        return qn_error(
            diags, QUERN_ERROR_UNSUPPORTED, NULL,
            "drawing needs Graphviz, and there is no program 'dot' in PATH (Debian, Ubuntu: apt-get "
            "install graphviz); --format dot prints the steps for it without");
    if (error)
        return qn_error(diags, QUERN_ERROR_IO, NULL, "dot cannot be run: %s", strerror(error));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        QN_TRY(read_all(messages, arena, &text, diags));
        return qn_error(diags, QUERN_ERROR_IO, NULL, "dot failed: %.500s", *text ? text : "it said nothing");
    }
    return read_all(svg, arena, out_svg, diags);
}

qn_status qn_graphviz_svg(FILE *dot, qn_arena *arena, char **out_svg, qn_diags *diags)
{
    FILE *svg = NULL, *messages = NULL;
    qn_status status = qn_temporary_file(&svg, diags);
    if (!status)
        status = qn_temporary_file(&messages, diags);
    if (!status)
        status = draw(dot, svg, messages, arena, out_svg, diags);
    if (svg)
        fclose(svg);
    if (messages)
        fclose(messages);
    return status;
}
