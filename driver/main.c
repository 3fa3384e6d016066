/* The command line: finds the command. Each command is a file of its own. */
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
    { "targets", quern_main_targets, "", "what can be compiled for" },
    { "opt", quern_main_opt, "model.qn --passes=simplify,cse --print-after-all",
      "run passes on a text file" },
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *to)
{
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(to, "quern %-7s %-37s%s%s\n", commands[i].name, commands[i].example,
                *commands[i].help ? " # " : "", commands[i].help);
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("quern %s\n", quern_version());
        return 0;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    }
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i].name;
    const char *nearest = qn_nearest_word(argv[1], strlen(argv[1]), names, N_COMMANDS);
    if (nearest) {
        fprintf(stderr, "quern: there is no command '%s': did you mean '%s'?\n", argv[1], nearest);
        return 2;
    }
    fprintf(stderr, "quern: there is no command '%s'; these are the commands:\n", argv[1]);
    print_usage(stderr);
    return 2;
}
