/* The older tools that networks are set against: kernel ridge regression, gradient-boosted soft decision trees and a Gaussian
 * mixture, beside a multilayer perceptron and LeNet. All are graphs that are compiled, on the same handwritten digits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

enum { PIXELS = 64, LEVELS = 16, CLASSES = 10 };
enum { TRAIN = 1437 };

/* ---- what methods share ---- */

typedef struct digits {
    quern_array train[2], test[2]; /* pixels u8[n, PIXELS], classes i64[n] */
} digits;

typedef quern_value *(*scores_fn)(quern_builder *b,
                                  quern_value *x); /* f32[n, PIXELS], 0 to 1, to [n, CLASSES] */

typedef struct result {
    double right, seconds, each; /* share of the test digits; of training; microseconds of a prediction */
} result;

static quern_value *number(quern_builder *b, double value)
{
    return quern_scalar(b, QUERN_F32, value);
}

static quern_value *columns(quern_builder *b, quern_value *x, int64_t n)
{
    return quern_reshape(b, x, QUERN_SHAPE(QUERN_N(-1), QUERN_N(n)));
}

/* The input x, and what it is from 0 to 1. */
static quern_value *pixels(quern_builder *b, quern_dim n)
{
    quern_value *x = quern_input(b, "x", QUERN_U8, QUERN_SHAPE(n, QUERN_N(PIXELS)));
    return quern_mul(b, quern_convert(b, x, QUERN_F32), number(b, 1.0 / LEVELS));
}

/* The input y, classes, as rows of one 1 and zeros. */
static quern_value *one_hot(quern_builder *b)
{
    static const int64_t classes[CLASSES] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    quern_value *y = quern_input(b, "y", QUERN_I64, QUERN_SHAPE(QUERN_N(TRAIN)));
    quern_value *all = quern_constant(b, QUERN_I64, 2, (const int64_t[]){ 1, CLASSES }, classes);
    y = QUERN_OP(b, "broadcast", "axes = [0], dims = [1437, 10]", y);
    all = QUERN_OP(b, "broadcast", "axes = [0, 1], dims = [1437, 10]", all);
    return quern_convert(b, QUERN_OP(b, "compare", "direction = eq", y, all), QUERN_F32);
}

/* A session of what the builder describes; `owner`, or NULL: whose states it shares. */
static quern_session *open_session(const example *e, quern_builder *b, quern_session *owner,
                                   quern_model **out_model)
{
    quern_session *session;
    example_check(quern_build(b, &e->compile, out_model));
    example_check(quern_session_new(*out_model, NULL, &session));
    if (owner)
        example_check(quern_session_share_states(session, owner));
    return session;
}

static void bind(quern_session *session, const char *name, const quern_array *array)
{
    example_check(quern_session_bind(session, quern_session_find(session, name), array));
}

static quern_array array_of(quern_session *session, const char *name)
{
    quern_array array;
    example_check(quern_session_get(session, quern_session_find(session, name), &array));
    return array;
}

/* How many test digits have their greatest score at their class, by the states of `owner`, which learned for so many seconds. */
static result judge(const example *e, const digits *d, scores_fn scores, quern_session *owner, double seconds)
{
    enum { ROUNDS = 50 };
    const int64_t n = d->test[0].dims[0], *classes = d->test[1].data;
    quern_model *model;
    quern_builder *b = quern_builder_new("scores");
    quern_output(b, scores(b, pixels(b, QUERN_DIM("n"))), "scores");
    quern_session *session = open_session(e, b, owner, &model);
    bind(session, "x", &d->test[0]);
    example_check(quern_session_run(session));
    const double start = example_now();
    for (int i = 0; i < ROUNDS; i++)
        example_check(quern_session_run(session));
    const double each = 1e6 * (example_now() - start) / (double)(ROUNDS * n);
    const float *s = array_of(session, "scores").data;
    int64_t right = 0;
    for (int64_t i = 0; i < n; i++, s += CLASSES) {
        int best = 0;
        for (int k = 1; k < CLASSES; k++)
            best = s[k] > s[best] ? k : best;
        right += best == classes[i];
    }
    quern_session_free(session);
    quern_model_free(model);
    return (result){ 100.0 * (double)right / (double)n, seconds, each };
}

/* ---- kernel ridge regression: (K + lambda) weights = y, by conjugate gradients ---- */

enum { SOLVE_STEPS = 20, SOLVE_EPOCHS = 5 };
static const double kernel_width = 0.8, lambda = 1;
static const digits *kernel_digits; /* whose training digits the kernel is about */

static quern_value *squares(quern_builder *b, quern_value *x, const char *axes)
{
    return QUERN_OP(b, "reduce", axes, quern_mul(b, x, x));
}

/* exp(-width |x - y|^2) for rows x [n, PIXELS] and the training digits: [n, TRAIN] */
static quern_value *kernel(quern_builder *b, quern_value *x)
{
    static float seen[PIXELS][TRAIN]; /* transposed */
    const uint8_t *from = kernel_digits->train[0].data;
    for (int i = 0; i < TRAIN * PIXELS; i++)
        seen[i % PIXELS][i / PIXELS] = (float)from[i] / LEVELS;
    quern_value *y = quern_constant(b, QUERN_F32, 2, (const int64_t[]){ PIXELS, TRAIN }, seen);
    quern_value *far = quern_sub(b, columns(b, squares(b, x, "kind = sum, axes = [1]"), 1),
                                 quern_mul(b, quern_matmul(b, x, y), number(b, 2)));
    far = quern_add(b, far, squares(b, y, "kind = sum, axes = [0]"));
    return QUERN_OP(b, "exp", NULL, quern_mul(b, far, number(b, -kernel_width)));
}

static quern_value *weights_state(quern_builder *b, const char *name)
{
    return quern_state(b, name, QUERN_F32, 2, (const int64_t[]){ TRAIN, CLASSES }, NULL);
}

static quern_value *kernel_scores(quern_builder *b, quern_value *x)
{
    return quern_matmul(b, kernel(b, x), weights_state(b, "weights"));
}

/* The matrix of the training digits, and where the solution starts. */
static quern_builder *kernel_begin(void)
{
    quern_builder *b = quern_builder_new("begin");
    quern_value *y = one_hot(b);
    quern_value *matrix = quern_state(b, "matrix", QUERN_F32, 2, (const int64_t[]){ TRAIN, TRAIN }, NULL);
    quern_set_state(b, matrix, kernel(b, pixels(b, QUERN_N(TRAIN))));
    quern_set_state(b, weights_state(b, "target"), y);
    quern_set_state(b, weights_state(b, "residual"), y);
    quern_set_state(b, weights_state(b, "direction"), y);
    quern_output(b, quern_mean(b, y), "mean");
    return b;
}

/* A step for all classes at once (Hestenes and Stiefel, 1952). The loss is what is minimized, of each digit:
 * |y - K weights|^2 + lambda weights K weights. */
static quern_builder *kernel_step(void)
{
    static const char *const axes = "kind = sum, axes = [0]";
    quern_builder *b = quern_builder_new("step");
    quern_value *matrix = quern_state(b, "matrix", QUERN_F32, 2, (const int64_t[]){ TRAIN, TRAIN }, NULL);
    quern_value *w = weights_state(b, "weights"), *r = weights_state(b, "residual");
    quern_value *p = weights_state(b, "direction"), *y = weights_state(b, "target");
    quern_value *moved = quern_add(b, quern_matmul(b, matrix, p), quern_mul(b, p, number(b, lambda)));
    quern_value *before = squares(b, r, axes), *least = number(b, 1e-30);
    quern_value *length =
        quern_div(b, before, quern_add(b, QUERN_OP(b, "reduce", axes, quern_mul(b, p, moved)), least));
    quern_value *new_w = quern_add(b, w, quern_mul(b, length, p));
    quern_value *new_r = quern_sub(b, r, quern_mul(b, length, moved));
    quern_value *turn = quern_div(b, squares(b, new_r, axes), quern_add(b, before, least));
    quern_set_state(b, w, new_w);
    quern_set_state(b, r, new_r);
    quern_set_state(b, p, quern_add(b, new_r, quern_mul(b, turn, p)));
    quern_value *shrunk = quern_mul(b, new_w, number(b, lambda)), *off = quern_add(b, new_r, shrunk);
    quern_value *loss = quern_add(b, quern_mul(b, off, off), quern_mul(b, shrunk, quern_sub(b, y, off)));
    quern_output(b, quern_mul(b, quern_mean(b, loss), number(b, CLASSES)), "loss");
    return b;
}

static void solve(void *user, int64_t epoch, double *losses)
{
    quern_session *step = user;
    (void)epoch;
    for (int i = 0; i < SOLVE_STEPS; i++) {
        example_check(quern_session_run(step));
        losses[i] = (double)*(float *)array_of(step, "loss").data;
    }
}

static result kernel_regression(example e, const digits *d)
{
    quern_model *models[2];
    e.name = "classic-kernel";
    kernel_digits = d;
    quern_session *step = open_session(&e, kernel_step(), NULL, &models[0]);
    quern_session *begin = open_session(&e, kernel_begin(), step, &models[1]);
    result r = { 0 };
    const double start = example_now();
    bind(begin, "x", &d->train[0]);
    bind(begin, "y", &d->train[1]);
    example_check(quern_session_run(begin));
    if (e.dump) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s.safetensors", e.dump, e.name);
        example_check(quern_session_save(step, path, NULL));
    } else {
        example_loop(&e, step, SOLVE_STEPS, SOLVE_EPOCHS, solve, step);
        r = judge(&e, d, kernel_scores, step, example_now() - start);
    }
    quern_session_free(begin);
    quern_session_free(step);
    quern_model_free(models[1]);
    quern_model_free(models[0]);
    return r;
}

/* ---- gradient boosting: each soft tree learns what the scores so far miss ---- */

enum { DEPTH = 4, LEAVES = 1 << DEPTH, NODES = LEAVES - 1, TREE_STEPS = 50, TREES = 20, TREE_PARTS = 3 };
static const double tree_share = 2; /* of a tree's output that is added to the scores */

static const struct {
    const char *name, *m, *v, *fresh,
        *all;              /* of the tree that learns, Adam's of it, of the next one, of all trees */
    int64_t dims[2], axis; /* axis: where trees lie side by side in `all` */
    double spread;         /* of the numbers at first */
} parts[TREE_PARTS] = {
    { "tree.split.weight",
      "tree.split.weight.m",
      "tree.split.weight.v",
      "fresh.0",
      "all.0",
      { PIXELS, NODES },
      1,
      0.5 },
    { "tree.split.bias", "tree.split.bias.m", "tree.split.bias.v", "fresh.1", "all.1", { 1, NODES }, 1, 0.5 },
    { "tree.leaf", "tree.leaf.m", "tree.leaf.v", "fresh.2", "all.2", { LEAVES, CLASSES }, 0, 0.01 },
};

/* Every leaf is reached with the product of the probabilities of the turns to it (Irsoy, Yildiz and Alpaydin, 2012):
 * [n, PIXELS] to the sum over n_trees of what their leaves say, [n, CLASSES]. */
static quern_value *forest(quern_builder *b, quern_value *x, quern_value *const part[TREE_PARTS],
                           int64_t n_trees)
{
    float on_way[2 * NODES][LEAVES] = { { 0 } }; /* left turns, right turns */
    for (int leaf = 0; leaf < LEAVES; leaf++)
        for (int node = leaf + LEAVES; node > 1; node /= 2)
            on_way[(node % 2 ? NODES : 0) + node / 2 - 1][leaf] = 1;
    quern_value *z = quern_add(b, quern_matmul(b, x, part[0]), part[1]);
    z = quern_reshape(b, z, QUERN_SHAPE(QUERN_N(-1), QUERN_N(n_trees), QUERN_N(NODES)));
    /* the logarithms of 1 / (1 + e^-z) and of 1 / (1 + e^z) */
    quern_value *small = QUERN_OP(
        b, "log1p", NULL, QUERN_OP(b, "exp", NULL, QUERN_OP(b, "neg", NULL, QUERN_OP(b, "abs", NULL, z))));
    quern_value *right = quern_sub(b, quern_sub(b, z, quern_relu(b, z)), small),
                *left = quern_sub(b, right, z);
    quern_value *turns = QUERN_OP(b, "concatenate", "axis = 2", left, right);
    quern_value *ways = quern_constant(b, QUERN_F32, 2, (const int64_t[]){ 2 * NODES, LEAVES }, on_way);
    quern_value *reached = QUERN_OP(b, "exp", NULL, quern_matmul(b, turns, ways));
    return quern_matmul(b, columns(b, reached, n_trees * LEAVES), part[2]);
}

static void draw(uint64_t *random, int part, float *out)
{
    for (int64_t i = 0; i < parts[part].dims[0] * parts[part].dims[1]; i++)
        out[i] = (float)(parts[part].spread * example_normal(random));
}

static void all_dims(int part, int64_t dims[2])
{
    memcpy(dims, parts[part].dims, sizeof parts[part].dims);
    dims[parts[part].axis] *= TREES;
}

static quern_value *tree_scores(quern_builder *b, quern_value *x)
{
    quern_value *part[TREE_PARTS];
    for (int i = 0; i < TREE_PARTS; i++) {
        int64_t dims[2];
        all_dims(i, dims);
        part[i] = quern_state(b, parts[i].all, QUERN_F32, 2, dims, NULL);
    }
    return forest(b, x, part, TREES);
}

/* One tree moves towards what the probabilities, by the scores so far, miss. */
static quern_trainer *tree_trainer(const example *e)
{
    const quern_train_options options = {
        .size = sizeof options, .loss = "output", .optimizer = "adam", .learning_rate = 0.05
    };
    static float first[PIXELS * NODES];
    uint64_t random = e->seed;
    quern_trainer *trainer;
    quern_value *part[TREE_PARTS];
    quern_builder *b = quern_builder_new("tree");
    quern_value *x = pixels(b, QUERN_N(TRAIN)), *y = one_hot(b), *scores = weights_state(b, "scores");
    for (int i = 0; i < TREE_PARTS; i++) {
        draw(&random, i, first);
        part[i] = quern_param(b, parts[i].name, QUERN_F32, 2, parts[i].dims, first);
    }
    quern_value *missed = quern_sub(b, y, quern_softmax(b, scores, 1));
    quern_output(b, quern_mse(b, forest(b, x, part, 1), missed), "loss");
    example_check(quern_train(b, &options, &e->compile, &trainer));
    return trainer;
}

/* The tree joins the others, its scores are added up, and the next one starts. */
static quern_builder *tree_joins(void)
{
    quern_value *part[TREE_PARTS];
    quern_builder *b = quern_builder_new("join");
    quern_value *scores = weights_state(b, "scores"), *zero = quern_scalar(b, QUERN_I64, 0);
    quern_value *count = quern_state(b, "trees", QUERN_I64, 0, NULL, NULL);
    for (int i = 0; i < TREE_PARTS; i++) {
        const int64_t *dims = parts[i].dims;
        int64_t wide[2];
        all_dims(i, wide);
        part[i] = quern_state(b, parts[i].name, QUERN_F32, 2, dims, NULL);
        quern_value *all = quern_state(b, parts[i].all, QUERN_F32, 2, wide, NULL);
        quern_value *kept = i == TREE_PARTS - 1 ? quern_mul(b, part[i], number(b, tree_share)) : part[i];
        quern_value *at = quern_mul(b, count, quern_scalar(b, QUERN_I64, (double)dims[parts[i].axis]));
        quern_value *operands[] = { all, kept, parts[i].axis ? zero : at, parts[i].axis ? at : zero };
        quern_set_state(b, all, quern_op(b, "dynamic_update_slice", 4, operands, NULL));
        quern_set_state(
            b, part[i],
            quern_input(b, parts[i].fresh, QUERN_F32, QUERN_SHAPE(QUERN_N(dims[0]), QUERN_N(dims[1]))));
        for (int v = 0; v < 2; v++) { /* Adam starts again */
            quern_value *moment = quern_state(b, v ? parts[i].v : parts[i].m, QUERN_F32, 2, dims, NULL);
            quern_set_state(b, moment, quern_mul(b, part[i], number(b, 0)));
        }
    }
    quern_value *added = quern_mul(b, forest(b, pixels(b, QUERN_N(TRAIN)), part, 1), number(b, tree_share));
    quern_set_state(b, scores, quern_add(b, scores, added));
    quern_set_state(b, count, quern_add(b, count, quern_scalar(b, QUERN_I64, 1)));
    quern_set_state(b, quern_state(b, "step", QUERN_I64, 0, NULL, NULL), zero);
    quern_output(b, quern_mean(b, added), "mean");
    return b;
}

typedef struct boosting {
    const example *e;
    const digits *d;
    quern_trainer *trainer;
    quern_session *join;
    FILE *dump; /* where the numbers that trees start from go, or NULL */
} boosting;

static void boost(void *user, int64_t epoch, double *losses)
{
    static float fresh[TREE_PARTS][PIXELS * NODES];
    const boosting *s = user;
    uint64_t random = s->e->seed * 1000003 + (uint64_t)epoch;
    for (int i = 0; i < TREE_STEPS; i++)
        example_check(quern_trainer_step(s->trainer, s->d->train, NULL, &losses[i]));
    for (int i = 0; i < TREE_PARTS; i++) {
        draw(&random, i, fresh[i]);
        bind(s->join, parts[i].fresh, &(quern_array){ QUERN_F32, 2, parts[i].dims, fresh[i] });
        if (s->dump)
            fwrite(fresh[i], sizeof(float), (size_t)(parts[i].dims[0] * parts[i].dims[1]), s->dump);
    }
    example_check(quern_session_run(s->join));
}

static result boosted_trees(example e, const digits *d)
{
    quern_model *model;
    result r = { 0 };
    e.name = "classic-trees";
    boosting s = { &e, d, tree_trainer(&e), NULL, NULL };
    quern_session *learner = quern_trainer_session(s.trainer);
    s.join = open_session(&e, tree_joins(), learner, &model);
    bind(s.join, "x", &d->train[0]);
    const double start = example_now();
    if (e.dump) {
        char path[4096];
        double losses[TREE_STEPS];
        snprintf(path, sizeof path, "%s/%s.safetensors", e.dump, e.name);
        example_check(quern_session_save(learner, path, NULL));
        snprintf(path, sizeof path, "%s/%s.fresh", e.dump, e.name);
        s.dump = fopen(path, "wb");
        if (s.dump)
            boost(&s, 0, losses);
        if (!s.dump || ferror(s.dump) | fclose(s.dump)) {
            perror(path);
            exit(1);
        }
    } else {
        example_loop_all(&e, 2, (quern_session *[]){ learner, s.join }, TREE_STEPS, TREES, boost, &s);
        r = judge(&e, d, tree_scores, s.join, example_now() - start);
    }
    quern_session_free(s.join);
    quern_model_free(model);
    quern_trainer_free(s.trainer);
    return r;
}

/* ---- a mixture of Gaussians for each class: log p(x, class) ---- */

enum { COMPONENTS = 6, ALL = CLASSES * COMPONENTS };
static const double least_variance = 1; /* of pixels from 0 to LEVELS */

typedef struct mixture {
    float mean[PIXELS][ALL],
        spread[PIXELS][ALL]; /* spread: the logarithm of the variance, but for its least */
    float share[ALL];
} mixture;
static mixture mixture_start;

static quern_value *mixture_scores(quern_builder *b, quern_value *x)
{
    const int64_t dims[] = { PIXELS, ALL };
    quern_value *mean = quern_param(b, "mean.weight", QUERN_F32, 2, dims, mixture_start.mean);
    quern_value *spread = quern_param(b, "spread.weight", QUERN_F32, 2, dims, mixture_start.spread);
    quern_value *share =
        quern_param(b, "share.weight", QUERN_F32, 2, (const int64_t[]){ 1, ALL }, mixture_start.share);
    x = quern_mul(b, x, number(b, LEVELS));
    quern_value *variance = quern_add(b, QUERN_OP(b, "exp", NULL, spread), number(b, least_variance));
    quern_value *inverse = quern_div(b, number(b, 1), variance), *scaled = quern_mul(b, mean, inverse);
    /* sum over the pixels of (x - mean)^2 / variance + log(2 pi variance) */
    quern_value *sum = quern_sub(b, quern_matmul(b, quern_mul(b, x, x), inverse),
                                 quern_mul(b, quern_matmul(b, x, scaled), number(b, 2)));
    quern_value *rest =
        quern_add(b, quern_mul(b, mean, scaled),
                  QUERN_OP(b, "log", NULL, quern_mul(b, variance, number(b, 6.283185307179586))));
    sum = quern_add(b, sum, QUERN_OP(b, "reduce", "kind = sum, axes = [0]", rest));
    quern_value *logs =
        quern_sub(b, QUERN_OP(b, "log_softmax", "axis = 1", share), quern_mul(b, sum, number(b, 0.5)));
    logs = quern_reshape(b, logs, QUERN_SHAPE(QUERN_N(-1), QUERN_N(CLASSES), QUERN_N(COMPONENTS)));
    /* the logarithm of the sum over the components of e^logs */
    quern_value *top =
        QUERN_OP(b, "stop_gradient", NULL, QUERN_OP(b, "reduce", "kind = max, axes = [2]", logs));
    quern_value *above =
        quern_sub(b, logs, quern_reshape(b, top, QUERN_SHAPE(QUERN_N(-1), QUERN_N(CLASSES), QUERN_N(1))));
    quern_value *total = QUERN_OP(b, "reduce", "kind = sum, axes = [2]", QUERN_OP(b, "exp", NULL, above));
    return quern_add(b, top, QUERN_OP(b, "log", NULL, total));
}

/* Components start at digits of their class, as wide as pixels spread. */
static void start_mixture(const example *e, const digits *d)
{
    const uint8_t *x = d->train[0].data;
    const int64_t *y = d->train[1].data;
    uint64_t random = e->seed;
    for (int k = 0; k < ALL; k++) {
        int64_t i = (int64_t)(example_uniform(&random) * TRAIN);
        while (y[i] != k / COMPONENTS)
            i = (i + 1) % TRAIN;
        for (int p = 0; p < PIXELS; p++) {
            mixture_start.mean[p][k] = x[i * PIXELS + p];
            mixture_start.spread[p][k] = 3;
        }
    }
}

typedef struct fitting {
    quern_trainer *trainer;
    const digits *d;
} fitting;

static void fit(void *user, int64_t epoch, double *losses)
{
    const fitting *f = user;
    (void)epoch;
    example_check(quern_trainer_epoch(f->trainer, f->d->train, NULL, 64, 0, losses));
}

static result gaussian_mixture(example e, const digits *d)
{
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "output",
                                          .optimizer = "adam",
                                          .learning_rate = 0.05,
                                          .schedule = "linear",
                                          .schedule_steps = 23 * 40 };
    fitting f = { NULL, d };
    result r = { 0 };
    e.name = "classic-mixture";
    start_mixture(&e, d);
    quern_builder *b = quern_builder_new("mixture");
    quern_value *scores = mixture_scores(b, pixels(b, QUERN_DIM("n")));
    quern_value *y = quern_input(b, "y", QUERN_I64, QUERN_SHAPE(QUERN_DIM("n")));
    quern_value *own = QUERN_OP(b, "gather_elements", "axis = 1", scores, columns(b, y, 1));
    quern_output(b, QUERN_OP(b, "neg", NULL, own), "loss");
    example_check(quern_train(b, &options, &e.compile, &f.trainer));
    const double start = example_now();
    if (e.dump) {
        example_dump(&e, f.trainer, &d->train[0], &d->train[1]);
    } else {
        example_loop(&e, quern_trainer_session(f.trainer), (TRAIN + 63) / 64, 40, fit, &f);
        r = judge(&e, d, mixture_scores, quern_trainer_session(f.trainer), example_now() - start);
    }
    quern_trainer_free(f.trainer);
    return r;
}

/* ---- networks ---- */

static quern_value *perceptron_scores(quern_builder *b, quern_value *x)
{
    return quern_linear(b, quern_relu(b, quern_linear(b, x, 128, "fc1")), CLASSES, "fc2");
}

/* As in examples/cnn. */
static quern_value *lenet_scores(quern_builder *b, quern_value *x)
{
    x = quern_reshape(b, x, QUERN_SHAPE(QUERN_N(-1), QUERN_N(1), QUERN_N(8), QUERN_N(8)));
    x = quern_max_pool2d(b, quern_relu(b, quern_conv2d(b, x, 16, 5, 1, 2, "conv1")), 2);
    x = quern_max_pool2d(b, quern_relu(b, quern_conv2d(b, x, 32, 5, 1, 2, "conv2")), 2);
    x = quern_relu(b, quern_linear(b, columns(b, x, 128), 120, "fc1"));
    x = quern_relu(b, quern_linear(b, x, 84, "fc2"));
    return quern_linear(b, x, CLASSES, "fc3");
}

static result network(example e, const digits *d, const char *name, scores_fn scores)
{
    const quern_train_options options = {
        .size = sizeof options, .loss = "cross_entropy", .optimizer = "adam", .learning_rate = 1e-3
    };
    quern_trainer *trainer;
    result r = { 0 };
    e.name = name;
    quern_builder *b = quern_builder_new(name);
    quern_builder_seed(b, e.seed);
    quern_output(b, scores(b, pixels(b, QUERN_DIM("batch"))), "scores");
    example_check(quern_train(b, &options, &e.compile, &trainer));
    const double start = example_now();
    example_train(&e, trainer, &d->train[0], &d->train[1], 32, 40);
    if (!e.dump)
        r = judge(&e, d, scores, quern_trainer_session(trainer), example_now() - start);
    quern_trainer_free(trainer);
    return r;
}

/* ---- the program ---- */

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "classic");
    quern_arrays *file;
    digits d;
    example_digits(&e, &file, d.train, d.test);
    const struct {
        const char *name;
        double least; /* share of the test digits */
        result is;
    } rows[] = {
        { "kernel ridge regression", 98, kernel_regression(e, &d) },
        { "boosted soft trees", 97, boosted_trees(e, &d) },
        { "Gaussian mixture", 95, gaussian_mixture(e, &d) },
        { "multilayer perceptron", 98, network(e, &d, "classic-mlp", perceptron_scores) },
        { "LeNet", 98, network(e, &d, "classic-lenet", lenet_scores) },
    };
    bool good = true;
    if (!e.dump)
        printf("classic: | method | test digits right | training | prediction |\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        good &= rows[i].is.right >= rows[i].least;
        if (!e.dump)
            printf("classic: | %s | %.2f %% | %.2f s | %.2f us |\n", rows[i].name, rows[i].is.right,
                   rows[i].is.seconds, rows[i].is.each);
    }
    quern_arrays_free(file);
    return e.dump || e.epochs || good ? 0 : 1;
}
