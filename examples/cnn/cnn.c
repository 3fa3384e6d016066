/* LeNet on handwritten digits of 8x8 pixels: two convolutions with pooling, three layers. */
#include <stdio.h>

#include "examples/common/common.h"

/* u8[batch, 64] to logits [batch, 10] */
static quern_value *lenet(quern_builder *b)
{
    const quern_dim batch = QUERN_DIM("batch");
    quern_value *pixels = quern_input(b, "x", QUERN_U8, QUERN_SHAPE(batch, QUERN_N(64)));
    quern_value *scale = quern_scalar(b, QUERN_F32, 1.0 / 16);
    quern_value *h = quern_mul(b, quern_convert(b, pixels, QUERN_F32), scale);
    h = quern_reshape(b, h, QUERN_SHAPE(batch, QUERN_N(1), QUERN_N(8), QUERN_N(8)));
    h = quern_max_pool2d(b, quern_relu(b, quern_conv2d(b, h, 16, 5, 1, 2, "conv1")), 2);
    h = quern_max_pool2d(b, quern_relu(b, quern_conv2d(b, h, 32, 5, 1, 2, "conv2")), 2);
    h = quern_reshape(b, h, QUERN_SHAPE(batch, QUERN_N(128)));
    h = quern_relu(b, quern_linear(b, h, 120, "fc1"));
    h = quern_relu(b, quern_linear(b, h, 84, "fc2"));
    return quern_linear(b, h, 10, "fc3");
}

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "cnn");
    quern_arrays *file;
    quern_array train[2], test[2];
    example_digits(&e, &file, train, test);

    const quern_train_options options = {
        .size = sizeof options, .loss = "cross_entropy", .optimizer = "adam", .learning_rate = 1e-3
    };
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new("lenet");
    quern_builder_seed(b, e.seed);
    quern_output(b, lenet(b), "logits");
    example_check(quern_train(b, &options, &e.compile, &trainer));
    example_train(&e, trainer, &train[0], &train[1], 32, 40);

    int64_t right;
    example_check(quern_trainer_eval(trainer, &test[0], &test[1], NULL, &right));
    const double share = 100.0 * (double)right / (double)test[0].dims[0];
    if (!e.dump)
        printf("cnn: %.2f %% of the test digits right\n", share);
    quern_trainer_free(trainer);
    quern_arrays_free(file);
    return e.dump || e.epochs || share >= 98 ? 0 : 1;
}
