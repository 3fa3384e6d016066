/* quern opt: reads a module in the text form, verifies it, runs passes, prints it. What the tests of the IR run. */
#include <stdio.h>
#include <string.h>

#include "driver/commands.h"
#include "driver/output.h"
#include "frontend/text/text.h"
#include "ir/print.h"

static const char usage[] = "usage: quern opt FILE.qn|- [options]\n"
                            "  --inline-data   write large constants out instead of as $hash\n"
                            "  --no-data       leave out the contents of what is written as $hash\n";

typedef struct options {
    const char *file;
    qn_print_options print;
} options;

static int wrong_usage(const char *what, const char *argument)
{
    fprintf(stderr, "quern opt: %s%s\n%s", what, argument, usage);
    return 2;
}

/* 0, or the exit status of a mistake. */
static int read_options(int argc, char **argv, options *out)
{
    *out = (options){ .print = { QN_PRINT_INLINE_ELEMENTS, true } };
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (strcmp(argument, "--inline-data") == 0)
            out->print.inline_elements = -1;
        else if (strcmp(argument, "--no-data") == 0)
            out->print.data = false;
        else if (argument[0] == '-' && argument[1])
            return wrong_usage("there is no option ", argument);
        else if (out->file)
            return wrong_usage("more than one file: ", argument);
        else
            out->file = argument;
    }
    return out->file ? 0 : wrong_usage("which file?", "");
}

static qn_status run(const options *options, qn_arena *arena, qn_diags *diags)
{
    char *text;
    size_t size;
    qn_module *module;
    bool standard = strcmp(options->file, "-") == 0;
    QN_TRY(qn_read_file(standard ? "/dev/stdin" : options->file, arena, &text, &size, diags));
    QN_TRY(qn_text_parse(text, size, standard ? "<stdin>" : options->file, &module, diags));
    fputs(qn_module_print_as(module, &options->print, arena), stdout);
    qn_module_free(module);
    return QUERN_OK;
}

int quern_main_opt(int argc, char **argv)
{
    options options;
    int wrong = read_options(argc, argv, &options);
    if (wrong)
        return wrong;
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    qn_status status = run(&options, arena, &diags);
    if (status)
        fprintf(stderr, "%s\n", qn_diags_text(&diags, arena));
    else if (fflush(stdout) || ferror(stdout))
        status = QUERN_ERROR_IO;
    qn_arena_free(arena);
    return status ? 1 : 0;
}
