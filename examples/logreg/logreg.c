/* Linear, logistic and softmax regression: one layer each, trained to the optimum that Newton's method finds. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

enum { N = 512, D = 8, P = D + 1 }; /* samples, features, parameters: a weight a feature, and a bias */

static float x[N][D], y[N][1];

/* Features are normal; targets are a linear function with noise, or decided by a coin with a linear log-odds. */
static void make_data(uint64_t seed, bool logistic)
{
    uint64_t state = seed + (logistic ? 1000003 : 0);
    double w[P];
    for (int j = 0; j < P; j++)
        w[j] = example_normal(&state);
    for (int i = 0; i < N; i++) {
        double z = w[D];
        for (int j = 0; j < D; j++) {
            x[i][j] = (float)example_normal(&state);
            z += w[j] * x[i][j];
        }
        y[i][0] = logistic ? (float)(example_uniform(&state) < 1 / (1 + exp(-z)))
                           : (float)(z + 0.5 * example_normal(&state));
    }
}

/* a (symmetric, positive definite) times step = g, by Cholesky's factors */
static void solve(double a[P][P], double *g)
{
    for (int j = 0; j < P; j++)
        for (int i = j; i < P; i++) {
            for (int k = 0; k < j; k++)
                a[i][j] -= a[i][k] * a[j][k];
            a[i][j] = i == j ? sqrt(a[i][i]) : a[i][j] / a[j][j];
        }
    for (int i = 0; i < P; i++) {
        for (int k = 0; k < i; k++)
            g[i] -= a[i][k] * g[k];
        g[i] /= a[i][i];
    }
    for (int i = P - 1; i >= 0; i--) {
        for (int k = i + 1; k < P; k++)
            g[i] -= a[k][i] * g[k];
        g[i] /= a[i][i];
    }
}

/* The least mean loss there is, in double precision: Newton's method from zero, to a standstill. */
static double optimum(bool logistic)
{
    double w[P] = { 0 }, loss = 0;
    for (int round = 0; round < 30; round++) {
        double hessian[P][P] = { { 0 } }, gradient[P] = { 0 };
        loss = 0;
        for (int i = 0; i < N; i++) {
            double f[P], z = 0;
            for (int j = 0; j < P; j++) {
                f[j] = j < D ? x[i][j] : 1;
                z += w[j] * f[j];
            }
            const double p = 1 / (1 + exp(-z)), r = logistic ? p - y[i][0] : z - y[i][0];
            loss += logistic ? fmax(z, 0) - z * y[i][0] + log1p(exp(-fabs(z))) : r * r;
            for (int j = 0; j < P; j++) {
                gradient[j] += r * f[j];
                for (int k = 0; k < P; k++)
                    hessian[j][k] += (logistic ? p * (1 - p) : 1) * f[j] * f[k];
            }
        }
        solve(hessian, gradient);
        for (int j = 0; j < P; j++)
            w[j] -= gradient[j];
    }
    return loss / N;
}

static bool regression(example e, bool logistic)
{
    e.name = logistic ? "logreg-logistic" : "logreg-linear";
    make_data(e.seed, logistic);
    const quern_array in = { QUERN_F32, 2, (const int64_t[]){ N, D }, x };
    const quern_array target = { QUERN_F32, 2, (const int64_t[]){ N, 1 }, y };

    const quern_train_options options = { .size = sizeof options,
                                          .loss = logistic ? "bce_with_logits" : "mse",
                                          .optimizer = "sgd",
                                          .learning_rate = logistic ? 1 : 0.1,
                                          .momentum = 0.9,
                                          .nesterov = 1 };
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new("regression");
    quern_builder_seed(b, e.seed);
    quern_value *v = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(D)));
    quern_output(b, quern_linear(b, v, 1, "fc"), "y");
    example_check(quern_train(b, &options, &e.compile, &trainer));
    example_train(&e, trainer, &in, &target, N, 1000);

    double loss, best = optimum(logistic);
    example_check(quern_trainer_eval(trainer, &in, &target, &loss, NULL));
    quern_trainer_free(trainer);
    printf("%s: loss %.8f, Newton's optimum %.8f, difference %.1e\n", e.name, loss, best, loss - best);
    return fabs(loss - best) < 1e-6;
}

static bool digits(example e)
{
    quern_arrays *file;
    quern_array train[2], test[2];
    e.name = "logreg-digits";
    example_digits(&e, &file, train, test);

    const quern_train_options options = {
        .size = sizeof options, .loss = "cross_entropy", .optimizer = "adam", .learning_rate = 1e-2
    };
    quern_trainer *trainer;
    quern_builder *b = quern_builder_new("softmax");
    quern_builder_seed(b, e.seed);
    quern_value *pixels = quern_input(b, "x", QUERN_U8, QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(64)));
    quern_value *scale = quern_scalar(b, QUERN_F32, 1.0 / 16);
    quern_value *v = quern_mul(b, quern_convert(b, pixels, QUERN_F32), scale);
    quern_output(b, quern_linear(b, v, 10, "fc"), "logits");
    example_check(quern_train(b, &options, &e.compile, &trainer));
    example_train(&e, trainer, &train[0], &train[1], 64, 40);

    int64_t right;
    example_check(quern_trainer_eval(trainer, &test[0], &test[1], NULL, &right));
    const double share = 100.0 * (double)right / (double)test[0].dims[0];
    printf("%s: %.2f %% of the test digits right\n", e.name, share);
    quern_trainer_free(trainer);
    quern_arrays_free(file);
    return share > 92;
}

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "logreg");
    const bool linear = regression(e, false), logistic = regression(e, true), softmax = digits(e);
    return e.dump || e.epochs || (linear && logistic && softmax) ? 0 : 1;
}
