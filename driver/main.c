/* The command line. So far it knows only its own usage. */
#include <stdio.h>
#include <string.h>

static const char usage[] = "usage: quern <command> [arguments]\n"
                            "  compile MODEL -o FILE.so    emit a shared object and its header\n"
                            "  run     MODEL               compile and run in this process\n"
                            "  bench   MODEL               measure, with a table per kernel\n"
                            "  inspect MODEL               print the graph, the kernels and the memory plan\n"
                            "  train   MODEL               train in this process\n"
                            "  check   MODEL               say for every node whether it is supported\n"
                            "  opt     FILE.qn             run passes on a text file\n";

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    fprintf(stderr, "quern: '%s' is not available in this version\n%s", argv[1], usage);
    return 2;
}
