/* A multilayer perceptron that tells two spirals apart, and a check of its gradient by differences. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

enum { N = 1000, WIDTH = 64 }; /* points of a set, hidden units of a layer */

typedef struct points {
    float x[N][2];
    int64_t y[N];
} points;

/* Two arms of one and a half turns, half a turn apart, with a little noise. */
static void make_points(points *p, uint64_t *state)
{
    const double pi = 3.14159265358979323846;
    for (int i = 0; i < N; i++) {
        p->y[i] = example_uniform(state) < 0.5;
        const double t = 0.25 + 1.25 * sqrt(example_uniform(state));
        const double angle = 2 * pi * t + pi * (double)p->y[i];
        p->x[i][0] = (float)(t * cos(angle) + 0.02 * example_normal(state));
        p->x[i][1] = (float)(t * sin(angle) + 0.02 * example_normal(state));
    }
}

/* [batch, 2] to logits [batch, 2]; *out_x is the input */
static quern_value *network(quern_builder *b, int dtype, int width, quern_value **out_x)
{
    *out_x = quern_input(b, "x", dtype, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(2)));
    quern_value *h = quern_tanh(b, quern_linear(b, *out_x, width, "fc1"));
    h = quern_tanh(b, quern_linear(b, h, width, "fc2"));
    return quern_linear(b, h, 2, "fc3");
}

/* ---- the chain rule against differences ---- */

enum { CHECKED = 16, ROWS = 32 };

static double loss_of(quern_session *s, int index)
{
    quern_array loss;
    example_check(quern_session_run(s));
    example_check(quern_session_get(s, index, &loss));
    return *(double *)loss.data;
}

/* The largest difference between the compiled gradient of a smaller network in f64 and central differences of its
 * compiled loss, relative to the largest element of the gradient. */
static double check_gradient(const example *e)
{
    static const char *const names[] = { "fc1.weight", "fc1.bias",   "fc2.weight",
                                         "fc2.bias",   "fc3.weight", "fc3.bias" };
    enum { PARAMS = sizeof names / sizeof *names };
    const double h = 1e-5;
    quern_value *x;
    quern_builder *b = quern_builder_new("loss");
    quern_builder_seed(b, e->seed);
    quern_value *logits = network(b, QUERN_F64, CHECKED, &x);
    /* The op cross_entropy gives f32; this is the same, in f64, from one-hot rows. */
    quern_value *y = quern_input(b, "y", QUERN_F64, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(2)));
    quern_value *logs = QUERN_OP(b, "log_softmax", "axis = 1", logits);
    quern_value *mean = quern_mean(b, quern_mul(b, logs, y));
    quern_output(b, QUERN_OP(b, "neg", "", mean), "loss");
    quern_module *module;
    quern_model *model;
    quern_session *loss, *gradient;
    example_check(quern_builder_finish(b, &module));
    example_check(quern_grad(module, "loss", "loss", PARAMS, names, "gradient"));
    example_check(quern_compile(module, &e->compile, &model));
    quern_module_free(module);
    example_check(quern_session_new(model, "loss", &loss));
    example_check(quern_session_new(model, "gradient", &gradient));
    example_check(quern_session_share_states(gradient, loss));

    double in[ROWS][2], labels[ROWS][2] = { { 0 } };
    uint64_t state = e->seed;
    for (int i = 0; i < ROWS; i++) {
        in[i][0] = example_normal(&state);
        in[i][1] = example_normal(&state);
        labels[i][example_uniform(&state) < 0.5] = 1;
    }
    const quern_array xs = { QUERN_F64, 2, (const int64_t[]){ ROWS, 2 }, in };
    const quern_array ys = { QUERN_F64, 2, (const int64_t[]){ ROWS, 2 }, labels };
    quern_session *const sessions[] = { loss, gradient };
    for (int k = 0; k < 2; k++) {
        example_check(quern_session_bind(sessions[k], quern_session_find(sessions[k], "x"), &xs));
        example_check(quern_session_bind(sessions[k], quern_session_find(sessions[k], "y"), &ys));
    }
    example_check(quern_session_run(gradient));

    const int output = quern_session_find(loss, "loss");
    double worst = 0, largest = 0;
    for (int k = 0; k < PARAMS; k++) {
        quern_array g, w;
        char name[32];
        snprintf(name, sizeof name, "grad_%s", names[k]);
        example_check(quern_session_get(gradient, quern_session_find(gradient, name), &g));
        example_check(quern_session_get(loss, quern_session_find(loss, names[k]), &w));
        int64_t n = 1;
        for (int i = 0; i < g.rank; i++)
            n *= g.dims[i];
        for (int64_t i = 0; i < n; i++) {
            double *at = (double *)w.data + i, kept = *at, exact = ((double *)g.data)[i];
            *at = kept + h;
            const double above = loss_of(loss, output);
            *at = kept - h;
            const double below = loss_of(loss, output);
            *at = kept;
            worst = fmax(worst, fabs((above - below) / (2 * h) - exact));
            largest = fmax(largest, fabs(exact));
        }
    }
    quern_session_free(gradient);
    quern_session_free(loss);
    quern_model_free(model);
    return worst / largest;
}

/* ---- training ---- */

static double train(const example *e)
{
    static points learnt, unseen;
    uint64_t state = e->seed;
    make_points(&learnt, &state);
    make_points(&unseen, &state);
    const quern_array x = { QUERN_F32, 2, (const int64_t[]){ N, 2 }, learnt.x };
    const quern_array y = { QUERN_I64, 1, (const int64_t[]){ N }, learnt.y };
    const quern_array test_x = { QUERN_F32, 2, (const int64_t[]){ N, 2 }, unseen.x };
    const quern_array test_y = { QUERN_I64, 1, (const int64_t[]){ N }, unseen.y };

    const quern_train_options options = {
        .size = sizeof options, .loss = "cross_entropy", .optimizer = "adam", .learning_rate = 3e-3
    };
    quern_trainer *trainer;
    quern_value *in;
    quern_builder *b = quern_builder_new("mlp");
    quern_builder_seed(b, e->seed);
    quern_output(b, network(b, QUERN_F32, WIDTH, &in), "logits");
    example_check(quern_train(b, &options, &e->compile, &trainer));
    example_train(e, trainer, &x, &y, 50, 200);
    int64_t right;
    example_check(quern_trainer_eval(trainer, &test_x, &test_y, NULL, &right));
    quern_trainer_free(trainer);
    return 100.0 * (double)right / N;
}

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "mlp");
    const double error = check_gradient(&e);
    printf("mlp: the gradient differs from central differences by %.1e\n", error);
    const double share = train(&e);
    if (!e.dump)
        printf("mlp: %.2f %% of the test points right\n", share);
    return error < 1e-6 && (e.dump || e.epochs || share >= 99) ? 0 : 1;
}
