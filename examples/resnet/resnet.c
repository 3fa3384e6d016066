/* ResNet-18 and ResNet-50 (He and others, 2016) with torchvision's shapes and names. They learn a few random images. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

enum { SIDE = 64, IMAGES = 16, BATCH = 4, CLASSES = 10, EPOCHS = 25 };

typedef struct net {
    quern_builder *b;
    uint64_t random;
    quern_value *x; /* what comes next works on this */
    int64_t channels;
} net;

/* A convolution without a bias, padded so that stride 1 keeps the image's size. */
static void conv(net *n, int64_t channels, int64_t kernel, int64_t stride, const char *name)
{
    const int64_t dims[] = { channels, n->channels, kernel, kernel };
    const int64_t count = channels * n->channels * kernel * kernel;
    const double bound = sqrt(6 / (double)(channels * kernel * kernel)); /* He and others, 2015 */
    float *initial = malloc((size_t)count * sizeof *initial);
    char text[256];
    for (int64_t i = 0; initial && i < count; i++)
        initial[i] = (float)((2 * example_uniform(&n->random) - 1) * bound);
    snprintf(text, sizeof text, "%s.weight", name);
    quern_value *weight = quern_param(n->b, text, QUERN_F32, 4, dims, initial);
    free(initial);
    const int s = (int)stride, p = (int)kernel / 2;
    snprintf(text, sizeof text,
             "stride = [%d, %d], low = [%d, %d], high = [%d, %d], x_dilation = [1, 1], w_dilation = [1, 1], "
             "groups = 1",
             s, s, p, p, p, p);
    n->x = quern_op(n->b, "convolution", 2, (quern_value *[]){ n->x, weight }, text);
    n->channels = channels;
}

static void conv_norm(net *n, int64_t channels, int64_t kernel, int64_t stride, const char *conv_name,
                      const char *norm_name)
{
    conv(n, channels, kernel, stride, conv_name);
    n->x = quern_batch_norm(n->b, n->x, norm_name);
}

/* Two convolutions of 3x3, or (deep) one of 3x3 between two of 1x1, and what came in added. */
static void block(net *n, bool deep, int64_t width, int64_t stride, const char *name)
{
    const int64_t out = deep ? 4 * width : width, kernels[] = { deep ? 1 : 3, 3, 1 };
    const int layers = deep ? 3 : 2;
    const net before = *n;
    char text[2][64];
    for (int i = 0; i < layers; i++) {
        snprintf(text[0], sizeof text[0], "%s.conv%d", name, i + 1);
        snprintf(text[1], sizeof text[1], "%s.bn%d", name, i + 1);
        conv_norm(n, i == layers - 1 ? out : width, kernels[i], i == deep ? stride : 1, text[0], text[1]);
        if (i < layers - 1)
            n->x = quern_relu(n->b, n->x);
    }
    quern_value *result = n->x;
    n->x = before.x;
    if (stride > 1 || before.channels != out) {
        n->channels = before.channels;
        snprintf(text[0], sizeof text[0], "%s.downsample.0", name);
        snprintf(text[1], sizeof text[1], "%s.downsample.1", name);
        conv_norm(n, out, 1, stride, text[0], text[1]);
    }
    n->x = quern_relu(n->b, quern_add(n->b, result, n->x));
}

static quern_builder *resnet(bool deep, uint64_t seed)
{
    static const int blocks[2][4] = { { 2, 2, 2, 2 }, { 3, 4, 6, 3 } };
    quern_builder *b = quern_builder_new(deep ? "resnet50" : "resnet18");
    quern_builder_seed(b, seed);
    net n = { .b = b, .random = seed, .channels = 3 };
    n.x = quern_input(b, "x", QUERN_F32,
                      QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(3), QUERN_N(SIDE), QUERN_N(SIDE)));
    conv_norm(&n, 64, 7, 2, "conv1", "bn1");
    n.x = quern_relu(b, n.x);
    n.x = quern_op(b, "reduce_window", 1, &n.x,
                   "kind = max, window = [1, 1, 3, 3], stride = [1, 1, 2, 2], dilation = [1, 1, 1, 1], "
                   "low = [0, 0, 1, 1], high = [0, 0, 1, 1]");
    for (int stage = 0; stage < 4; stage++)
        for (int i = 0; i < blocks[deep][stage]; i++) {
            char name[32];
            snprintf(name, sizeof name, "layer%d.%d", stage + 1, i);
            block(&n, deep, (int64_t)64 << stage, stage > 0 && i == 0 ? 2 : 1, name);
        }
    const int64_t pixels = (int64_t)(SIDE / 32) * (SIDE / 32);
    quern_value *sum = quern_op(b, "reduce", 1, &n.x, "kind = sum, axes = [2, 3]");
    quern_value *mean = quern_mul(b, sum, quern_scalar(b, QUERN_F32, 1 / (double)pixels));
    quern_output(b, quern_linear(b, mean, CLASSES, "fc"), "logits");
    return b;
}

/* The last norm of each block begins with a small scale, so that the block is near the identity (Goyal and others, 2017, begin
 * with 0). With 1, fifty layers multiply what rounding changes until no two programs agree after a step. */
static void calm(quern_trainer *trainer, const char *suffix)
{
    const quern_entry_info *entry = quern_trainer_entry(trainer);
    for (int i = 0; i < entry->n_buffers; i++) {
        const char *name = entry->buffers[i].name;
        quern_array scale;
        if (strlen(name) < strlen(suffix) || strcmp(name + strlen(name) - strlen(suffix), suffix) != 0)
            continue;
        example_check(quern_session_get(quern_trainer_session(trainer), i, &scale));
        for (int64_t k = 0; k < scale.dims[0]; k++)
            ((float *)scale.data)[k] = 0.1f;
    }
}

int main(int argc, char **argv)
{
    example e = example_parse(argc, argv, "resnet");
    static float pixels[IMAGES * 3 * SIDE * SIDE];
    static int64_t labels[IMAGES];
    uint64_t random = e.seed;
    for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++)
        pixels[i] = (float)example_normal(&random);
    for (int i = 0; i < IMAGES; i++)
        labels[i] = (int64_t)(CLASSES * example_uniform(&random));
    const quern_array x = { QUERN_F32, 4, (const int64_t[]){ IMAGES, 3, SIDE, SIDE }, pixels };
    const quern_array y = { QUERN_I64, 1, (const int64_t[]){ IMAGES }, labels };
    quern_train_options options = {
        .size = sizeof options, .loss = "cross_entropy", .optimizer = "sgd", .momentum = 0.9
    };
    for (int deep = 0; deep < 2; deep++) {
        quern_trainer *trainer;
        double loss;
        e.name = deep ? "resnet50" : "resnet18";
        options.learning_rate = deep ? 1e-5 : 2e-5; /* with more, rounding parts two programs in 100 steps */
        example_check(quern_train(resnet(deep, e.seed), &options, &e.compile, &trainer));
        calm(trainer, deep ? ".bn3.weight" : ".bn2.weight");
        example_train(&e, trainer, &x, &y, BATCH, EPOCHS);
        example_check(quern_trainer_eval(trainer, &x, &y, &loss, NULL));
        if (!e.dump)
            printf("%s: loss %.6f with running statistics\n", e.name, loss);
        quern_trainer_free(trainer);
    }
    return 0;
}
