/* quern compile: a model into a shared object with its C header, or into another kind of file. */
#include <stdio.h>
#include <string.h>

#include "driver/cli.h"
#include "driver/commands.h"
#include "ir/clock.h"

enum { OUTPUT, EMIT, PREFIX, WEIGHTS, HEADER, TIME };

static const qn_cli_option options[] = {
    [OUTPUT] = { "output", 'o', "FILE", "what to write; its ending says what it is, where --emit does not" },
    [EMIT] = { "emit", 0, "KIND", "so, a, o, llvm (.ll), asm (.s), ptx, qn (the model as text)" },
    [PREFIX] = { "prefix", 0, "NAME", "of the C names; from the file's name" },
    [WEIGHTS] = { "weights", 0, "WHERE", "embed, or side: FILE.safetensors" },
    [HEADER] = { "header", 0, "FILE", "the C header; beside the output; \"\" for none" },
    [TIME] = { "time", 0, NULL, "say how long each stage takes" },
    { NULL, 0, NULL, NULL },
};

typedef struct compile {
    qn_cli cli;
    const char *path;
    quern_emit_options emit;
    bool time;
} compile;

static int accept(void *user, int option, const char *value)
{
    compile *c = user;
    switch (option) {
    case OUTPUT: c->path = value; break;
    case EMIT: c->emit.emit = value; break;
    case PREFIX: c->emit.prefix = value; break;
    case WEIGHTS: c->emit.weights = value; break;
    case HEADER: c->emit.header = value; break;
    case TIME: c->time = true; break;
    default: return qn_cli_usage(&c->cli, "one model at a time: what is '%s'?", value);
    }
    return QN_EXIT_OK;
}

static void print_times(const qn_compile_times *t)
{
    fprintf(stderr, "passes %.1f ms, lowering %.1f ms, %d kernels (%d from the cache) %.1f ms\n",
            1e3 * t->passes, 1e3 * t->lower, t->n_kernels, t->n_cached, 1e3 * t->kernels);
}

static int write_files(compile *c, quern_module *module)
{
    qn_compile_times times = { 0 };
    double start = qn_seconds();
    const int status = qn_cli_emit(&c->cli, module, &c->emit, c->path, &times);
    if (status)
        return status;
    if (c->time || c->cli.verbose)
        print_times(&times);
    if (c->cli.verbose)
        fprintf(stderr, "wrote %s in %.1f ms\n", c->path, 1e3 * (qn_seconds() - start));
    return QN_EXIT_OK;
}

int quern_main_compile(int argc, char **argv)
{
    compile c = { .cli = { .command = "compile",
                           .synopsis = "MODEL -o FILE [options]",
                           .options = options,
                           .accept = accept },
                  .emit.size = sizeof c.emit };
    int status = QN_EXIT_OK;
    c.cli.user = &c;
    if (!qn_cli_read(&c.cli, argc, argv, &status))
        return status;
    if (!c.path)
        return qn_cli_usage(&c.cli, "where to? -o FILE");
    if (!c.emit.emit && !qn_emit_kind(c.path))
        return qn_cli_usage(
            &c.cli, "what is %s to be? Say it with --emit, or by its ending: .so, .a, .o, .ll, .s, .ptx, .qn",
            c.path);
    quern_module *module = qn_cli_module(&c.cli, &status);
    if (!module)
        return status;
    status = write_files(&c, module);
    quern_module_free(module);
    return status ? status : qn_cli_finish(&c.cli);
}
