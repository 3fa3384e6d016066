/* The command line: finds the command. Each command is a file of its own. */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "driver/commands.h"
#include "ir/diag.h"
#include "quern.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *example, *help;
} commands[] = {
    { "compile", quern_main_compile, "resnet50.onnx -o resnet50.so",
      "+ resnet50.h; self-contained, nothing of Quern needed to run it" },
    { "run", quern_main_run, "resnet50.onnx --input image=cat.npy",
      "JIT; prints outputs or writes --output logits=out.npy" },
    { "bench", quern_main_bench, "resnet50.onnx --threads 2",
      "median, GFLOP/s, % of the machine's peak, table per kernel" },
    { "tune", quern_main_tune, "resnet50.onnx",
      "measures kernels; compilations on this machine use the fastest" },
    { "inspect", quern_main_inspect, "resnet50.onnx --svg plan.svg", "graph, fused kernels, memory plan" },
    { "train", quern_main_train, "mlp.onnx --data digits.npz --epochs 20 -o trained.onnx",
      "learns from arrays; checkpoints; the step as a shared object" },
    { "check", quern_main_check, "model.onnx", "every node: supported, or what is missing" },
    { "cache", quern_main_cache, "--clear", "compiled kernels: how much there is, and less of it" },
    { "targets", quern_main_targets, "", "what can be compiled for" },
    { "opt", quern_main_opt, "model.qn --passes=simplify,cse --print-after-all",
      "run passes on a text file" },
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *to)
{
    fputs("usage: quern COMMAND [options]   (quern COMMAND --help explains; quern --version)\n\n", to);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(to, "quern %-7s %-37s%s%s\n", commands[i].name, commands[i].example,
                *commands[i].help ? " # " : "", commands[i].help);
    fputs("\nexit status: 0 done, 1 failed (standard error says why), 2 wrong usage\n", to);
}

static int run(const char *name, int argc, char **argv)
{
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++) {
        names[i] = commands[i].name;
        if (strcmp(name, names[i]) == 0)
            return commands[i].run(argc, argv);
    }
    const char *nearest = qn_nearest_word(name, strlen(name), names, N_COMMANDS);
    if (nearest) {
        fprintf(stderr, "quern: there is no command '%s': did you mean '%s'?\n", name, nearest);
        return 2;
    }
    fprintf(stderr, "quern: there is no command '%s'\n", name);
    print_usage(stderr);
    return 2;
}

static int finish(void)
{
    if (!fflush(stdout) && !ferror(stdout))
        return 0;
    fprintf(stderr, "quern: the output cannot be written: %s\n", strerror(errno));
    return 1;
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ,
           SIG_IGN); /* a file larger than it may be is one that cannot be written, and no reason to die */
    const char *first = argc < 2 ? "help" : argv[1];
    const bool help = strcmp(first, "help") == 0;
    if (help && argc > 2) /* quern help run */
        return run(argv[2], 2, (char *[]){ argv[2], "--help", NULL });
    if (help || strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0) {
        print_usage(stdout);
        return finish();
    }
    if (strcmp(first, "--version") == 0 || strcmp(first, "-V") == 0 || strcmp(first, "version") == 0) {
        printf("quern %s\n", quern_version());
        return finish();
    }
    return run(first, argc - 1, argv + 1);
}
