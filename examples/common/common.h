/* What the example programs share: their options, random numbers for data, and a training loop that prints progress,
 * writes the loss curve and checkpoints, and resumes from them. */
#ifndef EXAMPLES_COMMON_H
#define EXAMPLES_COMMON_H

#include <stdbool.h>

#include "quern.h"

typedef struct example {
    const char *name; /* of the files: NAME.csv, NAME.svg, NAME.safetensors */
    uint64_t seed;
    int64_t epochs;  /* 0: as many as the program thinks right */
    const char *out; /* folder */
    const char *data;
    const char *dump; /* folder, or NULL: write data and initial parameters there and train nothing */
    bool resume;
    bool silent; /* writes neither progress nor files: one of several ranks, but the first */
    quern_compile_options compile;
} example;

/* An option of the program's own: its value, which it takes out of the command line, or `usual`. */
const char *example_option(int *argc, char **argv, const char *option, const char *usual);
/* Reads the other options of the command line; prints them and ends where one is unknown. `epochs`: where none are given. */
example example_parse(int argc, char **argv, const char *name);
void example_check(int status); /* prints quern_last_error() and ends where it is not 0 */
double example_now(void);       /* seconds */

/* Data: the same numbers for the same seed on every machine. */
double example_uniform(uint64_t *state); /* [0, 1) */
double example_normal(uint64_t *state);  /* mean 0, variance 1: a sum of 12 uniform ones */
/* Handwritten digits: x u8[n, 64] and y i64[n], to be freed with *out_file. The first 1437 train, the other 360 test. */
void example_digits(const example *e, quern_arrays **out_file, quern_array train[2], quern_array test[2]);

/* What a program elsewhere needs to train the same, for --dump: NAME.x and, of a target, NAME.y, bytes as
 * they lie; NAME.safetensors. */
void example_dump(const example *e, quern_trainer *trainer, const quern_array *x, const quern_array *target);

/* Calls `epoch` for the example's epochs, or `epochs` where it says none: it does epoch `number` and writes the losses of its
 * `steps` steps. Prints progress; writes the curve and a checkpoint of the session now and then, and goes on from one. An epoch
 * is to follow from the states, its number and the seed alone. */
void example_loop(const example *e, quern_session *session, int64_t steps, int64_t epochs,
                  void (*epoch)(void *user, int64_t number, double *losses), void *user);
/* The same of several sessions, which share states or have none of the same name, with one checkpoint. */
void example_loop_all(const example *e, int n, quern_session *const *sessions, int64_t steps, int64_t epochs,
                      void (*epoch)(void *user, int64_t number, double *losses), void *user);
/* The usual such loop. Trains for the example's epochs, or `epochs` where it says none, in batches that follow the data's own
 * order. */
void example_train(const example *e, quern_trainer *trainer, const quern_array *x, const quern_array *target,
                   int64_t batch, int64_t epochs);

#endif
