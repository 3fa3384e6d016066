/* Generative adversarial networks: a generator makes samples of noise, a critic tells them from real ones, and each learns from
 * the other by turns. One makes points on a ring of 8 Gaussians, one with transposed convolutions makes handwritten digits.
 *
 * Either network has a compiled step of its own. The critic's step holds the generator, and the generator's the critic, as
 * states that another trainer owns. */
#include <math.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

enum { NOISE = 16, WARM = 200, SAMPLES = 2000 }; /* WARM: steps until the learning rate is what is said */
enum { MODES = 8, POINTS = 4 };                  /* POINTS, DIGITS: samples that a critic sees together */
enum { PIXELS = 64, SIDE = 8, LEVELS = 16, CLASSES = 10, DIGITS = 8 };
static const double sigma = 0.05; /* of each Gaussian; the ring's radius is 1 */

/* ---- the networks ---- */

static quern_value *generate_point(quern_builder *b, quern_value *z)
{
    z = quern_relu(b, quern_linear(b, z, 128, "generator.1"));
    z = quern_relu(b, quern_linear(b, z, 128, "generator.2"));
    return quern_linear(b, z, 2, "generator.3");
}

/* Of several points together (Lin, Khetan, Fanti and Oh, 2018): a generator that makes few kinds of them gives itself away. */
static quern_value *judge_point(quern_builder *b, quern_value *x)
{
    x = quern_reshape(b, x, QUERN_SHAPE(QUERN_N(-1), QUERN_N(2 * POINTS)));
    x = quern_leaky_relu(b, quern_linear(b, x, 128, "critic.1"), 0.2);
    x = quern_leaky_relu(b, quern_linear(b, x, 128, "critic.2"), 0.2);
    return quern_linear(b, x, 1, "critic.3");
}

/* -1: as many as there are */
static quern_value *image(quern_builder *b, quern_value *x, int64_t channels, int64_t side)
{
    return quern_reshape(b, x, QUERN_SHAPE(QUERN_N(-1), QUERN_N(channels), QUERN_N(side), QUERN_N(side)));
}

static quern_value *flat(quern_builder *b, quern_value *x, int64_t width)
{
    return quern_reshape(b, x, QUERN_SHAPE(QUERN_N(-1), QUERN_N(width)));
}

/* Radford, Metz and Chintala, 2016, cut to 8x8 pixels, which are from -1 to 1. Activations without a kink: where an element is
 * so near to one that rounding decides, whole steps would differ from PyTorch's. */
static quern_value *generate_digit(quern_builder *b, quern_value *z)
{
    z = image(b, quern_linear(b, z, 64 * 4, "generator.1"), 64, 2);
    z = quern_gelu(b, quern_batch_norm(b, z, "generator.norm1"));
    z = quern_conv_transpose2d(b, z, 32, 4, 2, 1, "generator.2");
    z = quern_gelu(b, quern_batch_norm(b, z, "generator.norm2"));
    return flat(b, quern_tanh(b, quern_conv_transpose2d(b, z, 1, 4, 2, 1, "generator.3")), PIXELS);
}

static quern_value *judge_digit(quern_builder *b, quern_value *x)
{
    x = quern_gelu(b, quern_conv2d(b, image(b, x, 1, SIDE), 32, 4, 2, 1, "critic.1"));
    x = quern_gelu(b, quern_conv2d(b, x, 64, 4, 2, 1, "critic.2"));
    return quern_linear(b, flat(b, x, DIGITS * 64 * 4), 1, "critic.3");
}

typedef struct problem {
    const char *name;
    int batch, width; /* width: numbers of a sample */
    int64_t steps, epochs;
    double learning_rate;                                       /* at first; it falls to 0 in a line */
    quern_value *(*generate)(quern_builder *b, quern_value *z); /* [n, NOISE] to samples [n, width] */
    quern_value *(*judge)(quern_builder *b,
                          quern_value *x); /* to logits, one of several samples: above 0, they are real */
} problem;

static const problem ring = { "gan-ring", 128, 2, 250, 40, 1e-3, generate_point, judge_point };
static const problem digits = { "gan-digits", 64, PIXELS, 100, 60, 2e-3, generate_digit, judge_digit };

typedef struct game {
    example e;
    const problem *p;
    quern_trainer *critic, *generator;
    const float *seen; /* digits to learn from: [n_seen, PIXELS] */
    int64_t n_seen;
    FILE *dump; /* where samples and noise of each step go, or NULL */
} game;

/* ---- what is learnt ---- */

static const double circle = 6.283185307179586;

/* A point of the ring, or a digit. */
static void take_sample(const game *g, uint64_t *random, float *out)
{
    if (g->seen) {
        memcpy(out, g->seen + (int64_t)(example_uniform(random) * (double)g->n_seen) * PIXELS,
               PIXELS * sizeof *out);
        return;
    }
    const double angle = circle / MODES * floor(example_uniform(random) * MODES);
    out[0] = (float)(cos(angle) + sigma * example_normal(random));
    out[1] = (float)(sin(angle) + sigma * example_normal(random));
}

/* ---- the game ---- */

/* The critic's step takes samples x and noise z, the generator's noise alone. Each holds both networks and trains one. */
static quern_trainer *train(const game *g, bool critic)
{
    const problem *p = g->p;
    const char *const params = critic ? "critic.*" : "generator.*";
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "output",
                                          .optimizer = "adam",
                                          .learning_rate = p->learning_rate,
                                          .beta1 = 0.5,
                                          .schedule = "linear",
                                          .warmup_steps = WARM,
                                          .schedule_steps = p->steps * p->epochs - WARM,
                                          .n_params = 1,
                                          .params = &params,
                                          .name = critic ? "critic" : "generator" };
    const quern_dim n = QUERN_N(p->batch);
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new(p->name);
    quern_builder_seed(b, g->e.seed);
    quern_value *x = critic ? quern_input(b, "x", QUERN_F32, QUERN_SHAPE(n, QUERN_N(p->width))) : NULL;
    quern_value *z = quern_input(b, "z", QUERN_F32, QUERN_SHAPE(n, QUERN_N(NOISE)));
    quern_value *logits, *made = p->generate(b, z);
    if (critic) { /* of what was made, it is right with logits below 0 */
        logits = p->judge(b, QUERN_OP(b, "concatenate", "axis = 0", x, made));
        logits = quern_mul(b, quern_reshape(b, logits, QUERN_SHAPE(QUERN_N(2), QUERN_N(-1))),
                           quern_constant(b, QUERN_F32, 2, (const int64_t[]){ 2, 1 }, (float[]){ 1, -1 }));
    } else { /* it wants to be taken for real */
        logits = p->judge(b, made);
    }
    quern_output(b, quern_bce_with_logits(b, logits, quern_scalar(b, QUERN_F32, 1)), "loss");
    example_check(quern_train(b, &options, &g->e.compile, &trainer));
    return trainer;
}

static void dump(const game *g, const float *numbers, size_t n)
{
    if (g->dump && fwrite(numbers, sizeof *numbers, n, g->dump) != n)
        perror("dump");
}

/* A step of the critic and one of the generator, by turns. Their losses are added up. */
static void play(void *user, int64_t epoch, double *losses)
{
    const game *g = user;
    const problem *p = g->p;
    static float x[128 * PIXELS], z[2][128 * NOISE];
    uint64_t random = g->e.seed * 1000003 + (uint64_t)epoch;
    const quern_array samples = { QUERN_F32, 2, (const int64_t[]){ p->batch, p->width }, x };
    for (int64_t i = 0; i < p->steps; i++) {
        double loss[2];
        for (int k = 0; k < p->batch; k++)
            take_sample(g, &random, x + k * p->width);
        for (int k = 0; k < 2 * p->batch * NOISE; k++)
            z[k / (p->batch * NOISE)][k % (p->batch * NOISE)] = (float)example_normal(&random);
        dump(g, x, (size_t)(p->batch * p->width));
        for (int k = 0; k < 2; k++) {
            const quern_array noise = { QUERN_F32, 2, (const int64_t[]){ p->batch, NOISE }, z[k] };
            dump(g, z[k], (size_t)(p->batch * NOISE));
            example_check(
                k ? quern_trainer_step(g->generator, &noise, NULL, &loss[1])
                  : quern_trainer_step(g->critic, (quern_array[]){ samples, noise }, NULL, &loss[0]));
        }
        losses[i] = loss[0] + loss[1];
    }
}

/* What the generator makes of noise, by a model of its own that shares its parameters: [SAMPLES, width]. */
static float *sample(const game *g)
{
    uint64_t random = g->e.seed * 1000003 - 1;
    quern_model *model;
    quern_session *session;
    quern_array in, out;
    quern_builder *b = quern_builder_new("samples");
    quern_value *z = quern_input(b, "z", QUERN_F32, QUERN_SHAPE(QUERN_N(SAMPLES), QUERN_N(NOISE)));
    quern_output(b, g->p->generate(b, z), "x");
    example_check(quern_build(b, &g->e.compile, &model));
    example_check(quern_session_new(model, NULL, &session));
    example_check(quern_session_share_states(session, quern_trainer_session(g->generator)));
    example_check(quern_session_get(session, quern_session_find(session, "z"), &in));
    for (int i = 0; i < SAMPLES * NOISE; i++)
        ((float *)in.data)[i] = (float)example_normal(&random);
    example_check(quern_session_run(session));
    example_check(quern_session_get(session, quern_session_find(session, "x"), &out));
    const size_t size = (size_t)(SAMPLES * g->p->width) * sizeof(float);
    float *copy = malloc(size);
    if (copy)
        memcpy(copy, out.data, size);
    quern_session_free(session);
    quern_model_free(model);
    return copy;
}

/* ---- what it makes ---- */

static void write_picture(const game *g, const uint8_t *pixels, int width, int height)
{
    char path[4096];
    png_image image = { .version = PNG_IMAGE_VERSION,
                        .width = (unsigned)width,
                        .height = (unsigned)height,
                        .format = PNG_FORMAT_GRAY };
    snprintf(path, sizeof path, "%s/%s.png", g->e.out, g->p->name);
    if (!png_image_write_to_file(&image, path, 0, pixels, 0, NULL)) {
        fprintf(stderr, "%s: %s\n", path, image.message);
        exit(1);
    }
}

/* Points: how many are near which of the Gaussians? */
static bool judge_points(const game *g, const float *x)
{
    enum { SIZE = 256 };
    static uint8_t picture[SIZE * SIZE];
    int near[MODES] = { 0 }, total = 0, modes = 0;
    memset(picture, 255, sizeof picture);
    for (int i = 0; i < SAMPLES; i++, x += 2) {
        const double column = SIZE * (x[0] + 1.5) / 3, row = SIZE * (1.5 - x[1]) / 3;
        if (column >= 0 && column < SIZE && row >= 0 && row < SIZE) /* and not NaN */
            picture[(int)row * SIZE + (int)column] = 0;
        for (int k = 0; k < MODES; k++)
            near[k] += hypot(x[0] - cos(circle * k / MODES), x[1] - sin(circle * k / MODES)) < 3 * sigma;
    }
    for (int k = 0; k < MODES; k++) {
        total += near[k];
        modes += near[k] >= SAMPLES / MODES / 5; /* a fifth of its share at least */
    }
    write_picture(g, picture, SIZE, SIZE);
    printf("%s: %d of %d modes, %.1f %% of the samples within 3 sigma\n", g->p->name, modes, MODES,
           100.0 * total / SAMPLES);
    return modes == MODES && total >= 0.8 * SAMPLES;
}

/* The square of the distance to the nearest digit that was seen, and which it is. */
static double nearest(const game *g, const float *x, int64_t *out_which)
{
    double best = INFINITY;
    for (int64_t i = 0; i < g->n_seen; i++) {
        double distance = 0;
        for (int k = 0; k < PIXELS; k++) {
            const double d = x[k] - g->seen[i * PIXELS + k];
            distance += d * d;
        }
        if (distance < best) {
            best = distance;
            *out_which = i;
        }
    }
    return best;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Digits: is what was made as near to those that were seen as other digits are, and is every digit among it? */
static bool judge_digits(const game *g, const float *x, const int64_t *classes, const float *unseen,
                         int64_t n_unseen)
{
    enum {
        ROWS = 10,
        COLUMNS = 20,
        ZOOM = 4,
        CELL = ZOOM * (SIDE + 1),
        WIDTH = COLUMNS * CELL,
        HEIGHT = ROWS * CELL
    };
    static uint8_t picture[HEIGHT * WIDTH];
    static double distances[SAMPLES];
    int near = 0, found[CLASSES] = { 0 }, all = 0, least = SAMPLES;
    int64_t which = 0;
    for (int64_t i = 0; i < n_unseen; i++)
        distances[i] = nearest(g, unseen + i * PIXELS, &which);
    qsort(distances, (size_t)n_unseen, sizeof *distances, compare);
    const double usual = distances[n_unseen * 95 / 100];
    for (int i = 0; i < SAMPLES; i++) {
        near += nearest(g, x + i * PIXELS, &which) <= usual;
        found[classes[which]]++;
    }
    for (int k = 0; k < CLASSES; k++) {
        all += found[k] >= SAMPLES / CLASSES / 5;
        least = found[k] < least ? found[k] : least;
    }
    for (int i = 0; i < HEIGHT * WIDTH; i++) {
        const int row = i / WIDTH, column = i % WIDTH, cell = row / CELL * COLUMNS + column / CELL;
        const int r = row % CELL / ZOOM, c = column % CELL / ZOOM;
        picture[i] = r < SIDE && c < SIDE ? (uint8_t)(127.5f * (1 - x[cell * PIXELS + r * SIDE + c])) : 200;
    }
    write_picture(g, picture, WIDTH, HEIGHT);
    printf("%s: %d of %d digits, each at least %d times, "
           "%.1f %% of the samples as near to digits as 95 %% of unseen ones\n",
           g->p->name, all, CLASSES, least, 100.0 * near / SAMPLES);
    return all == CLASSES && near >= 0.8 * SAMPLES;
}

/* ---- the program ---- */

/* What a program elsewhere needs to learn the same: the states at first, samples and noise of an epoch. */
static void write_dump(game *g, int n, quern_session *const *sessions)
{
    char path[4096];
    double losses[1000];
    snprintf(path, sizeof path, "%s/%s.safetensors", g->e.dump, g->p->name);
    example_check(quern_sessions_save(n, sessions, path, NULL));
    snprintf(path, sizeof path, "%s/%s.batches", g->e.dump, g->p->name);
    g->dump = fopen(path, "wb");
    if (g->dump)
        play(g, 0, losses);
    if (!g->dump || ferror(g->dump) | fclose(g->dump)) {
        perror(path);
        exit(1);
    }
}

/* Samples, or NULL where none are asked for. */
static float *learn(game *g)
{
    g->e.name = g->p->name;
    g->critic = train(g, true);
    g->generator = train(g, false);
    example_check(quern_trainer_share(g->generator, g->critic));
    quern_session *const sessions[] = { quern_trainer_session(g->critic),
                                        quern_trainer_session(g->generator) };
    float *samples = NULL;
    if (g->e.dump) {
        write_dump(g, 2, sessions);
    } else {
        example_loop_all(&g->e, 2, sessions, g->p->steps, g->p->epochs, play, g);
        samples = sample(g);
    }
    quern_trainer_free(g->generator);
    quern_trainer_free(g->critic);
    return samples;
}

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "gan");
    game points = { .e = e, .p = &ring }, images = { .e = e, .p = &digits };
    static float seen[1797 * PIXELS];
    quern_arrays *file;
    quern_array data[2][2];
    example_digits(&e, &file, data[0], data[1]);
    images.seen = seen;
    images.n_seen = data[0][0].dims[0];
    const int64_t n_unseen = data[1][0].dims[0];
    for (int64_t i = 0; i < (images.n_seen + n_unseen) * PIXELS; i++)
        seen[i] = (float)((uint8_t *)data[0][0].data)[i] / (LEVELS / 2) - 1;

    float *x = learn(&points);
    bool good = x && judge_points(&points, x);
    free(x);
    x = learn(&images);
    good &= x && judge_digits(&images, x, data[0][1].data, seen + images.n_seen * PIXELS, n_unseen);
    free(x);
    quern_arrays_free(file);
    return e.dump || e.epochs || good ? 0 : 1;
}
