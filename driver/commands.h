/* The commands of the `quern` executable. Each takes the arguments from its own name on and gives an exit status:
 * 0 done, 1 failed (reported on stderr), 2 wrong usage. */
#ifndef QN_DRIVER_COMMANDS_H
#define QN_DRIVER_COMMANDS_H

int quern_main_compile(int argc, char **argv);
int quern_main_bench(int argc, char **argv);
int quern_main_inspect(int argc, char **argv);
int quern_main_cache(int argc, char **argv);
int quern_main_targets(int argc, char **argv);
int quern_main_tune(int argc, char **argv);
int quern_main_train(int argc, char **argv);
int quern_main_run(int argc, char **argv);
int quern_main_check(int argc, char **argv);
int quern_main_opt(int argc, char **argv);

#endif
