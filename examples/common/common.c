/* What the example programs share: see common.h. */
#include "examples/common/common.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [--seed N] [--epochs N] [--threads N] [--out FOLDER] [--resume] [--data FILE.npz] "
            "[--dump FOLDER]\n"
            "  --out     where curves and checkpoints go (.)\n"
            "  --resume  go on from the checkpoints there\n"
            "  --data    the digits (examples/digits/digits.npz)\n"
            "  --dump    write the data and the parameters before training there, and stop\n",
            program);
    exit(2);
}

static int64_t number(const char *program, const char *text)
{
    char *end;
    const long long value = strtoll(text, &end, 10);
    if (end == text || *end || value < 0)
        usage(program);
    return value;
}

const char *example_option(int *argc, char **argv, const char *option, const char *usual)
{
    for (int i = 1; i + 1 < *argc; i++) {
        if (strcmp(argv[i], option) != 0)
            continue;
        const char *value = argv[i + 1];
        for (*argc -= 2; i < *argc; i++)
            argv[i] = argv[i + 2];
        return value;
    }
    return usual;
}

example example_parse(int argc, char **argv, const char *name)
{
    example e = {
        .name = name, .seed = 1, .out = ".", .data = EXAMPLE_DIGITS, .compile = { .size = sizeof e.compile }
    };
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i];
        if (strcmp(option, "--resume") == 0) {
            e.resume = true;
            continue;
        }
        if (++i == argc)
            usage(argv[0]);
        if (strcmp(option, "--seed") == 0)
            e.seed = (uint64_t)number(argv[0], argv[i]);
        else if (strcmp(option, "--epochs") == 0)
            e.epochs = number(argv[0], argv[i]);
        else if (strcmp(option, "--threads") == 0)
            e.compile.threads = (int)number(argv[0], argv[i]);
        else if (strcmp(option, "--out") == 0)
            e.out = argv[i];
        else if (strcmp(option, "--data") == 0)
            e.data = argv[i];
        else if (strcmp(option, "--dump") == 0)
            e.dump = argv[i];
        else
            usage(argv[0]);
    }
    return e;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

void example_check(int status)
{
    if (status)
        fail(quern_last_error());
}

/* ---- data ---- */

double example_uniform(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

double example_normal(uint64_t *state)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += example_uniform(state);
    return sum;
}

enum { DIGITS = 1797, DIGITS_TRAIN = 1437 };

void example_digits(const example *e, quern_arrays **out_file, quern_array train[2], quern_array test[2])
{
    static const int64_t dims[2][2][2] = { { { DIGITS_TRAIN, 64 }, { DIGITS_TRAIN } },
                                           { { DIGITS - DIGITS_TRAIN, 64 }, { DIGITS - DIGITS_TRAIN } } };
    example_check(quern_arrays_read(e->data, out_file));
    const quern_array *x = quern_arrays_find(*out_file, "x"), *y = quern_arrays_find(*out_file, "y");
    if (!x || !y || x->dtype != QUERN_U8 || x->rank != 2 || x->dims[0] != DIGITS || x->dims[1] != 64 ||
        y->dtype != QUERN_I64 || y->rank != 1 || y->dims[0] != DIGITS)
        fail("the digits must be x: u8[1797, 64] and y: i64[1797]");
    train[0] = test[0] = *x;
    train[1] = test[1] = *y;
    for (int i = 0; i < 2; i++) {
        train[i].dims = dims[0][i];
        test[i].dims = dims[1][i];
    }
    test[0].data = (uint8_t *)x->data + (size_t)DIGITS_TRAIN * 64;
    test[1].data = (int64_t *)y->data + DIGITS_TRAIN;
}

/* ---- files ---- */

static FILE *open_file(const char *folder, const char *name, const char *suffix, const char *mode)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s%s", folder, name, suffix);
    FILE *file = fopen(path, mode);
    if (!file) {
        perror(path);
        exit(1);
    }
    return file;
}

static void close_file(FILE *file)
{
    if (ferror(file) | fclose(file))
        fail("cannot write a file");
}

/* The loss of each step, as text and as a picture. */
static void write_curve(const example *e, const double *losses, int64_t n)
{
    FILE *file = open_file(e->out, e->name, ".csv", "w");
    fprintf(file, "step,loss\n");
    double top = 0;
    for (int64_t i = 0; i < n; i++) {
        fprintf(file, "%" PRId64 ",%.17g\n", i + 1, losses[i]);
        top = losses[i] > top ? losses[i] : top;
    }
    close_file(file);
    file = open_file(e->out, e->name, ".svg", "w");
    fprintf(
        file,
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 640 360' font-family='sans-serif' "
        "font-size='12'>\n"
        "<rect width='640' height='360' fill='white'/>\n"
        "<path d='M50 20V320H620' fill='none' stroke='black'/>\n"
        "<text x='320' y='14' text-anchor='middle'>%s: loss of each step</text>\n"
        "<text x='46' y='26' text-anchor='end'>%.3g</text><text x='46' y='324' text-anchor='end'>0</text>\n"
        "<text x='620' y='338' text-anchor='end'>%" PRId64 "</text>\n"
        "<polyline fill='none' stroke='steelblue' points='",
        e->name, top, n);
    for (int64_t i = 0; i < n; i++)
        fprintf(file, "%.1f,%.1f ", 50 + 570.0 * (double)(i + 1) / (double)n,
                320 - (top > 0 ? 300 * losses[i] / top : 0));
    fprintf(file, "'/>\n</svg>\n");
    close_file(file);
}

static void read_curve(const example *e, double *losses, int64_t n)
{
    FILE *file = open_file(e->out, e->name, ".csv", "r");
    char line[128];
    bool good = fgets(line, sizeof line, file) != NULL;
    for (int64_t i = 0; good && i < n; i++)
        good = fgets(line, sizeof line, file) && sscanf(line, "%*d,%lf", &losses[i]) == 1;
    fclose(file);
    if (!good)
        fail("the loss curve does not reach the checkpoint");
}

void example_dump(const example *e, quern_trainer *trainer, const quern_array *x, const quern_array *target)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.safetensors", e->dump, e->name);
    example_check(quern_session_save(quern_trainer_session(trainer), path, NULL));
    const quern_array *const both[] = { x, target };
    for (int k = 0; k < 2 && both[k]; k++) {
        size_t n = 1;
        for (int i = 0; i < both[k]->rank; i++)
            n *= (size_t)both[k]->dims[i];
        FILE *file = open_file(e->dump, e->name, k ? ".y" : ".x", "wb");
        fwrite(both[k]->data, quern_dtype_size(both[k]->dtype), n, file);
        close_file(file);
    }
}

/* ---- the loop ---- */

double example_now(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void example_loop_all(const example *e, int n, quern_session *const *sessions, int64_t steps, int64_t epochs,
                      void (*epoch)(void *user, int64_t number, double *losses), void *user)
{
    epochs = e->epochs ? e->epochs : epochs;
    int64_t done = 0;
    double *losses = calloc((size_t)(steps * epochs), sizeof *losses);
    char path[4096], note[32];
    snprintf(path, sizeof path, "%s/%s.safetensors", e->out, e->name);
    if (!losses)
        fail("out of memory");
    if (e->resume) {
        char *kept;
        example_check(quern_sessions_restore(n, sessions, path, &kept));
        done = kept ? strtoll(kept, NULL, 10) : 0;
        quern_free(kept);
        if (done < 0 || done > epochs)
            fail("the checkpoint is past the last epoch");
        read_curve(e, losses, steps * done);
        if (!e->silent)
            printf("%s: resumed after epoch %" PRId64 "\n", e->name, done);
    }
    const int64_t pause = epochs > 20 ? epochs / 20 : 1; /* between reports and checkpoints */
    while (done < epochs) {
        const double start = example_now();
        epoch(user, done, losses + steps * done);
        const double seconds = example_now() - start;
        if ((++done % pause != 0 && done != epochs) || e->silent)
            continue;
        double mean = 0;
        for (int64_t i = steps * (done - 1); i < steps * done; i++)
            mean += losses[i] / (double)steps;
        printf("%s: epoch %" PRId64 "/%" PRId64 " loss %.6f, %.0f us a step\n", e->name, done, epochs, mean,
               1e6 * seconds / (double)steps);
        fflush(stdout);
        write_curve(e, losses, steps * done);
        snprintf(note, sizeof note, "%" PRId64, done);
        example_check(quern_sessions_save(n, sessions, path, note));
    }
    free(losses);
}

void example_loop(const example *e, quern_session *session, int64_t steps, int64_t epochs,
                  void (*epoch)(void *user, int64_t number, double *losses), void *user)
{
    example_loop_all(e, 1, &session, steps, epochs, epoch, user);
}

typedef struct supervised {
    quern_trainer *trainer;
    const quern_array *x, *target;
    int64_t batch;
} supervised;

static void supervised_epoch(void *user, int64_t number, double *losses)
{
    const supervised *s = user;
    (void)number;
    example_check(quern_trainer_epoch(s->trainer, s->x, s->target, s->batch, 0, losses));
}

void example_train(const example *e, quern_trainer *trainer, const quern_array *x, const quern_array *target,
                   int64_t batch, int64_t epochs)
{
    if (e->dump) {
        example_dump(e, trainer, x, target);
        return;
    }
    supervised s = { trainer, x, target, batch };
    example_loop(e, quern_trainer_session(trainer), (x->dims[0] + batch - 1) / batch, epochs,
                 supervised_epoch, &s);
}
