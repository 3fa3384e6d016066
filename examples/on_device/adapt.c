/* Adapts the last layers of a compiled network on the device that it runs on: the camera is mounted upside down, and the network
 * was trained on upright digits. All memory is one arena whose size is known when this is compiled. See README.md. */
#include <stdio.h>
#include <string.h>

#include "adapt.h"
#include "samples.h"

enum {
    BATCH = ADAPT_EVAL_INPUT_TARGET_ELEMENTS,
    PIXELS = ADAPT_EVAL_INPUT_IMAGE_ELEMENTS / BATCH,
    EPOCHS = 40
};
enum {
    LEARN = sizeof learn_samples / sizeof *learn_samples,
    TEST = sizeof test_samples / sizeof *test_samples
};

#define LARGER(a, b) ((a) > (b) ? (a) : (b))

static struct {
    adapt_state state;
    QUERN_ALIGN(64)
    unsigned char workspace[LARGER(ADAPT_TRAIN_STEP_WORKSPACE_BYTES, ADAPT_EVAL_WORKSPACE_BYTES)];
    float image[BATCH][PIXELS];
    int64_t digit[BATCH];
} arena;

static float value(char pixel)
{
    return (float)(pixel <= '9' ? pixel - '0' : pixel - 'a' + 10) / 16;
}

/* The batch that begins at `first`, as the camera sees it: upside down. */
static void take(const char (*samples)[PIXELS + 2], int first)
{
    for (int i = 0; i < BATCH; i++) {
        const char *sample = samples[first + i];
        arena.digit[i] = sample[0] - '0';
        for (int k = 0; k < PIXELS; k++)
            arena.image[i][k] = value(sample[PIXELS - k]);
    }
}

static int measure(const char *when)
{
    int64_t right = 0, correct;
    float loss;
    adapt_eval_io io = { .image = arena.image[0], .target = arena.digit, .loss = &loss, .correct = &correct };
    for (int i = 0; i + BATCH <= TEST; i += BATCH) {
        take(test_samples, i);
        const int status = adapt_eval(&io, &arena.state, arena.workspace, NULL);
        if (status)
            return status;
        right += correct;
    }
    printf("%s %d of %d test digits are right\n", when, (int)right, TEST / BATCH * BATCH);
    return 0;
}

static int learn(void)
{
    float loss;
    adapt_train_step_io io = { .image = arena.image[0], .target = arena.digit, .loss = &loss };
    for (int epoch = 0; epoch < EPOCHS; epoch++)
        for (int i = 0; i + BATCH <= LEARN; i += BATCH) {
            take(learn_samples, i);
            const int status = adapt_train_step(&io, &arena.state, arena.workspace, NULL);
            if (status)
                return status;
        }
    return 0;
}

int main(void)
{
    static char buffer[BUFSIZ];
    setvbuf(stdout, buffer, _IOLBF, sizeof buffer); /* or the C library would allocate one */
    printf("arena %zu bytes: states %zu (of these parameters that learn %zu), workspace %zu, a batch %zu\n",
           sizeof arena, sizeof arena.state, offsetof(adapt_state, _2_weight_velocity),
           sizeof arena.workspace, sizeof arena.image + sizeof arena.digit);
    printf("weights that stay as they are: in the object, %lld bytes\n",
           (long long)adapt_query(QUERN_ABI_VERSION)->weights_bytes);
    adapt_init(&arena.state);
    int status = measure("before:");
    if (!status)
        status = learn();
    if (!status)
        status = measure("after: ");
    return status;
}
