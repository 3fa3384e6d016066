/* Dropout and its relatives: what the masks are like, and what noise does for a network that learns from few samples. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"
#include "quern_tensor.h"

/* ---- masks ---- */

enum { N = 1 << 20 };

typedef struct masked {
    uint8_t mask[N];
    float y[N]; /* of ones */
} masked;

static void mask_ones(const example *e, const char *target, int threads, uint64_t seed, uint64_t step,
                      masked *out)
{
    static float ones[N];
    const int64_t n = N;
    const uint64_t key[2] = { seed, 0 };
    quern_builder *b = quern_builder_new("mask");
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(N)));
    quern_value *operands[] = { x, quern_constant(b, QUERN_U64, 1, (const int64_t[]){ 2 }, key),
                                quern_constant(b, QUERN_U64, 0, NULL, &step) };
    quern_value *y = quern_op(b, "dropout", 3, operands, "ratio = 0.3, training = true");
    quern_output(b, y, "y");
    quern_output(b, quern_result(b, y, 1), "mask");

    quern_compile_options options = e->compile;
    quern_module *module;
    quern_model *model;
    quern_session *session;
    options.target = target;
    options.threads = threads;
    example_check(quern_builder_finish(b, &module));
    example_check(quern_compile(module, &options, &model));
    quern_module_free(module);
    example_check(quern_session_new(model, NULL, &session));
    for (int i = 0; i < N; i++)
        ones[i] = 1;
    example_check(quern_session_bind(session, 0, &(quern_array){ QUERN_F32, 1, &n, ones }));
    example_check(quern_session_bind(session, 1, &(quern_array){ QUERN_F32, 1, &n, out->y }));
    example_check(quern_session_bind(session, 2, &(quern_array){ QUERN_BOOL, 1, &n, out->mask }));
    example_check(quern_session_run(session));
    quern_session_free(session);
    quern_model_free(model);
}

/* The share of equal elements of two masks. */
static double agreement(const masked *a, const masked *b)
{
    int equal = 0;
    for (int i = 0; i < N; i++)
        equal += a->mask[i] == b->mask[i];
    return (double)equal / N;
}

static bool check_masks(const example *e)
{
    static masked first, other;
    const double keep = 0.7, sigma = sqrt(keep * (1 - keep) / N);
    double kept = 0, mean = 0;
    bool same = true, scaled = true;
    mask_ones(e, NULL, 1, e->seed, 5, &first);
    for (int i = 0; i < N; i++) {
        kept += (double)first.mask[i] / N;
        mean += (double)first.y[i] / N;
        scaled &= first.y[i] == (first.mask[i] ? (float)(1 / keep) : 0);
    }
    for (int threads = 2; threads <= 4; threads++) {
        mask_ones(e, NULL, threads, e->seed, 5, &other);
        same &= memcmp(&first, &other, sizeof first) == 0;
    }
    const bool has_gpu = quern_device_count() > 0;
    if (has_gpu) {
        mask_ones(e, "cuda", 0, e->seed, 5, &other);
        same &= memcmp(&first, &other, sizeof first) == 0;
    }
    /* of independent masks, as many elements agree as are kept by both or by none */
    const double chance = keep * keep + (1 - keep) * (1 - keep), spread = sqrt(chance * (1 - chance) / N);
    mask_ones(e, NULL, 0, e->seed, 6, &other);
    const double step = (agreement(&first, &other) - chance) / spread;
    mask_ones(e, NULL, 0, e->seed + 1, 5, &other);
    const double seed = (agreement(&first, &other) - chance) / spread;
    printf("masks: %.2f sigma from the keep rate, mean %.5f of ones, %s at 1 to 4 threads%s; agreement with "
           "the next step's and the "
           "next seed's: %.2f and %.2f sigma from chance\n",
           (kept - keep) / sigma, mean, same ? "the same" : "NOT THE SAME", has_gpu ? " and on a GPU" : "",
           step, seed);
    return fabs(kept - keep) < 4 * sigma && fabs(mean - 1) < 4 * sigma / keep && same && scaled &&
           fabs(step) < 4 && fabs(seed) < 4;
}

/* ---- learning from few digits, of which some are called by another's name ---- */

typedef enum variant { NONE, ACTIVATIONS, WEIGHTS, NOISE, VARIANTS } variant;
static const char *const names[] = { "dropout-none", "dropout-activations", "dropout-weights",
                                     "dropout-noise" };
enum { WIDTH = 256, FEW = 400 };

/* x + deviation or x - deviation, by a coin for each element; in inference x. ones: as x */
static quern_value *noisy(quern_builder *b, quern_value *x, quern_value *ones, float deviation)
{
    quern_value *one = quern_scalar(b, QUERN_F32, 1);
    quern_value *scale = quern_constant(b, QUERN_F32, 0, NULL, &deviation);
    quern_value *coin =
        quern_sub(b, quern_dropout(b, ones, 0.5), one); /* dropout gives 0 or 2; 1 in inference */
    return quern_add(b, x, quern_mul(b, scale, coin));
}

/* A linear layer, uniform in +-1/sqrt(in) as quern_linear, whose weights may be left out in training (DropConnect). */
static quern_value *layer(quern_builder *b, quern_value *x, int64_t in, int64_t out, const char *name,
                          double ratio, uint64_t *random)
{
    static float initial[WIDTH * WIDTH];
    char full[32];
    for (int64_t i = 0; i < in * out; i++)
        initial[i] = (float)((2 * example_uniform(random) - 1) / sqrt((double)in));
    snprintf(full, sizeof full, "%s.weight", name);
    quern_value *weight = quern_param(b, full, QUERN_F32, 2, (const int64_t[]){ in, out }, initial);
    snprintf(full, sizeof full, "%s.bias", name);
    quern_value *bias = quern_param(b, full, QUERN_F32, 1, &out, NULL);
    if (ratio > 0)
        weight = quern_dropout(b, weight, ratio);
    return quern_add(b, quern_matmul(b, x, weight), bias);
}

/* u8[batch, 64] to logits [batch, 10] */
static quern_value *network(quern_builder *b, variant v, uint64_t seed)
{
    const quern_dim batch = QUERN_DIM("batch");
    uint64_t random = seed;
    quern_value *one = quern_scalar(b, QUERN_F32, 1);
    quern_value *pixels = quern_input(b, "x", QUERN_U8, QUERN_SHAPE(batch, QUERN_N(64)));
    quern_value *scale = quern_scalar(b, QUERN_F32, 1.0 / 16);
    quern_value *h = quern_mul(b, quern_convert(b, pixels, QUERN_F32), scale);
    if (v == NOISE)
        h = noisy(b, h, quern_broadcast(b, one, QUERN_SHAPE(batch, QUERN_N(64))), 0.5f);
    h = quern_relu(b, layer(b, h, 64, WIDTH, "fc1", v == WEIGHTS ? 0.5 : 0, &random));
    if (v == ACTIVATIONS)
        h = quern_dropout(b, h, 0.5);
    h = quern_relu(b, layer(b, h, WIDTH, WIDTH, "fc2", v == WEIGHTS ? 0.5 : 0, &random));
    if (v == ACTIVATIONS)
        h = quern_dropout(b, h, 0.5);
    if (v == NOISE)
        h = noisy(b, h, quern_broadcast(b, one, QUERN_SHAPE(batch, QUERN_N(WIDTH))), 1);
    return layer(b, h, WIDTH, 10, "fc3", 0, &random);
}

/* The first FEW rows of the digits, and all others. */
static void split(const quern_array *all, quern_array *few, quern_array *rest)
{
    static const int64_t dims[2][2] = { { FEW, 64 }, { 1797 - FEW, 64 } };
    *few = *rest = *all;
    few->dims = dims[0];
    rest->dims = dims[1];
    rest->data = (char *)all->data + FEW * quern_dtype_size(all->dtype) * (size_t)(all->rank == 2 ? 64 : 1);
}

/* The share of digits, unseen while it learnt, that it gets wrong. */
static double error_of(example e, variant v)
{
    quern_arrays *file;
    quern_array train[2], test[2], few[2], rest[2];
    example_digits(&e, &file, train, test);
    for (int i = 0; i < 2; i++)
        split(&train[i], &few[i], &rest[i]);
    uint64_t random = e.seed + 1000003;
    for (int i = 0; i < FEW; i++)
        if (example_uniform(&random) < 0.3)
            ((int64_t *)few[1].data)[i] = (int64_t)(10 * example_uniform(&random));

    const quern_train_options options = { .size = sizeof options,
                                          .loss = "cross_entropy",
                                          .optimizer = "adam",
                                          .learning_rate = 1e-3,
                                          .seed = e.seed };
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new("network");
    quern_output(b, network(b, v, e.seed), "logits");
    example_check(quern_train(b, &options, &e.compile, &trainer));
    e.name = names[v];
    example_train(&e, trainer, &few[0], &few[1], 20, 60);
    int64_t right;
    example_check(quern_trainer_eval(trainer, &rest[0], &rest[1], NULL, &right));
    quern_trainer_free(trainer);
    quern_arrays_free(file);
    return 1 - (double)right / (double)rest[0].dims[0];
}

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "dropout");
    const bool masks = e.dump || check_masks(&e);
    double errors[VARIANTS];
    bool lower = true;
    for (variant v = NONE; v < VARIANTS; v++) {
        errors[v] = error_of(e, v);
        lower &= v == NONE || errors[v] < errors[NONE];
    }
    for (variant v = NONE; v < VARIANTS && !e.dump; v++)
        printf("%s: %.2f %% of the test digits wrong\n", names[v], 100 * errors[v]);
    return masks && (e.dump || e.epochs || lower) ? 0 : 1;
}
