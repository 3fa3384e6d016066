/* Deep Q-learning on CartPole: a pole is to stay upright on a cart that is pushed to the left or to the right.
 *
 * The step is one compiled function: it reads a batch from the replay buffer (states of the model, which the host fills),
 * computes what double Q-learning expects by the target network, updates the online network, and moves the target network
 * after it. A second entry says the values of both actions; it shares the online network's parameters. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/cartpole.h"
#include "examples/common/common.h"

enum { SIZE = CART_SIZE, ACTIONS = CART_ACTIONS };
enum { WIDTH = 64, LAYERS = 3 };                    /* of the networks */
enum { CAPACITY = 20000, BATCH = 64, WARM = 1000 }; /* transitions: kept, of a step, before the first step */
enum { STEPS = 1000, EPOCHS = 50, TEST = 100 };     /* of an epoch; test episodes */
static const float discount = 0.99f;                /* of rewards, for each step that they come later */
static const float follow = 0.005f; /* how much of its way to the online network the target network goes */

/* ---- the networks ---- */

typedef struct network {
    quern_value *weight[LAYERS], *bias[LAYERS];
} network;

typedef quern_value *(*make_fn)(quern_builder *b, const char *name, int dtype, int rank, const int64_t *dims,
                                const void *initial);

/* Parameters or states NAME.i.weight and NAME.i.bias: the same numbers for the same seed, whatever the name. */
static network new_network(quern_builder *b, const char *name, make_fn make, uint64_t seed)
{
    static const int64_t sizes[LAYERS + 1] = { SIZE, WIDTH, WIDTH, ACTIONS };
    static float initial[WIDTH * WIDTH];
    network net;
    for (int i = 0; i < LAYERS; i++) {
        const double bound = 1 / sqrt((double)sizes[i]);
        char text[64];
        for (int bias = 0; bias < 2; bias++) {
            const int64_t n = bias ? sizes[i + 1] : sizes[i] * sizes[i + 1];
            for (int64_t k = 0; k < n; k++)
                initial[k] = (float)((2 * example_uniform(&seed) - 1) * bound);
            snprintf(text, sizeof text, "%s.%d.%s", name, i, bias ? "bias" : "weight");
            *(bias ? &net.bias[i] : &net.weight[i]) =
                make(b, text, QUERN_F32, bias ? 1 : 2, &sizes[bias ? i + 1 : i], initial);
        }
    }
    return net;
}

/* [n, SIZE] to the values of actions [n, ACTIONS] */
static quern_value *values(quern_builder *b, const network *net, quern_value *x)
{
    for (int i = 0; i < LAYERS; i++) {
        x = quern_add(b, quern_matmul(b, x, net->weight[i]), net->bias[i]);
        x = i < LAYERS - 1 ? quern_relu(b, x) : x;
    }
    return x;
}

/* ---- the step ---- */

static const struct {
    const char *name;
    int dtype, width;
} replay[] = { { "replay.before", QUERN_F32, SIZE },
               { "replay.action", QUERN_I64, 1 },
               { "replay.reward", QUERN_F32, 1 },
               { "replay.after", QUERN_F32, SIZE },
               { "replay.alive", QUERN_F32, 1 } };
enum { BEFORE, ACTION, REWARD, AFTER, ALIVE, FIELDS };

static quern_value *pick(quern_builder *b, quern_value *values, quern_value *action)
{
    return QUERN_OP(b, "gather_elements", "axis = 1", values, action);
}

/* half the square up to 1, linear beyond */
static quern_value *huber(quern_builder *b, quern_value *x)
{
    quern_value *size = QUERN_OP(b, "abs", "", x);
    quern_value *beyond = quern_relu(b, quern_sub(b, size, quern_scalar(b, QUERN_F32, 1))),
                *near = quern_sub(b, size, beyond);
    return quern_add(b, quern_mul(b, quern_mul(b, near, near), quern_scalar(b, QUERN_F32, 0.5f)), beyond);
}

/* rows i64[BATCH] of the replay buffer to the loss of each */
static quern_value *step(quern_builder *b, uint64_t seed)
{
    const network online = new_network(b, "online", quern_param, seed);
    const network target = new_network(b, "target", quern_state, seed);
    quern_value *rows = quern_input(b, "rows", QUERN_I64, QUERN_SHAPE(QUERN_N(BATCH))), *batch[FIELDS];
    for (int i = 0; i < FIELDS; i++) {
        quern_value *all = quern_state(b, replay[i].name, replay[i].dtype, 2,
                                       (const int64_t[]){ CAPACITY, replay[i].width }, NULL);
        batch[i] = QUERN_OP(b, "gather", "axis = 0", all, rows);
    }
    /* The online network chooses, the target network says what that is worth (van Hasselt and others, 2016). */
    quern_value *best = values(b, &online, batch[AFTER]);
    best = QUERN_OP(b, "arg_reduce", "kind = max, axis = 1, last = false", best);
    best = quern_reshape(b, best, QUERN_SHAPE(QUERN_N(BATCH), QUERN_N(1)));
    quern_value *later = quern_mul(b, batch[ALIVE], pick(b, values(b, &target, batch[AFTER]), best));
    quern_value *wanted =
        quern_add(b, batch[REWARD], quern_mul(b, later, quern_scalar(b, QUERN_F32, discount)));
    for (int i = 0; i < LAYERS; i++)
        for (int bias = 0; bias < 2; bias++) {
            quern_value *to = bias ? target.bias[i] : target.weight[i];
            quern_value *from = bias ? online.bias[i] : online.weight[i];
            quern_value *moved = quern_mul(b, quern_sub(b, from, to), quern_scalar(b, QUERN_F32, follow));
            quern_set_state(b, to, quern_add(b, to, moved));
        }
    quern_value *found = pick(b, values(b, &online, batch[BEFORE]), batch[ACTION]);
    return huber(b, quern_sub(b, found, QUERN_OP(b, "stop_gradient", "", wanted)));
}

/* ---- the agent ---- */

typedef struct agent {
    const example *e;
    quern_trainer *trainer;
    quern_model *model; /* values of actions, with the online network's parameters */
    quern_session *values;
    void *replay[FIELDS]; /* memory of the states */
    FILE *rows;           /* where the rows of each step go, or NULL */
} agent;

/* Values of both actions for n observations; they stay until the next call. */
static const float *values_of(const agent *a, const float *observations, int64_t n)
{
    const quern_array x = { QUERN_F32, 2, (const int64_t[]){ n, SIZE }, (void *)observations };
    quern_array out;
    example_check(quern_session_bind(a->values, quern_session_find(a->values, "x"), &x));
    example_check(quern_session_run(a->values));
    example_check(quern_session_get(a->values, quern_session_find(a->values, "values"), &out));
    return out.data;
}

static int64_t greedy(const float *values)
{
    return values[1] > values[0];
}

/* A step of the world, kept as transition `number`. */
static void live(agent *a, cart *c, int64_t action, int64_t number, uint64_t *random)
{
    const int64_t row = number % CAPACITY;
    memcpy((float *)a->replay[BEFORE] + row * SIZE, c->at, sizeof c->at);
    const bool fallen = cart_push(c, action);
    memcpy((float *)a->replay[AFTER] + row * SIZE, c->at, sizeof c->at);
    ((int64_t *)a->replay[ACTION])[row] = action;
    ((float *)a->replay[REWARD])[row] =
        1 - discount; /* values are then below 1, and in reach of the network */
    ((float *)a->replay[ALIVE])[row] = !fallen;
    if (fallen || c->age == CART_LIMIT)
        cart_reset(c, random);
}

static void find_replay(agent *a)
{
    quern_session *session = quern_trainer_session(a->trainer);
    for (int k = 0; k < FIELDS; k++) {
        quern_array array;
        example_check(quern_session_get(session, quern_session_find(session, replay[k].name), &array));
        a->replay[k] = array.data;
    }
}

/* Steps of the world, each followed by one of learning. Before the first epoch come random actions. */
static void learn(void *user, int64_t epoch, double *losses)
{
    agent *a = user;
    uint64_t random = a->e->seed * 1000003 + (uint64_t)epoch;
    cart c;
    find_replay(a);
    cart_reset(&c, &random);
    for (int64_t i = 0; epoch == 0 && i < WARM; i++)
        live(a, &c, example_uniform(&random) < 0.5, i, &random);
    for (int64_t i = 0; i < STEPS; i++) {
        const int64_t n = WARM + epoch * STEPS + i, kept = n < CAPACITY ? n + 1 : CAPACITY;
        const double explore = fmax(0.05, 1 - (double)n / (10 * STEPS));
        const int64_t action = example_uniform(&random) < explore ? example_uniform(&random) < 0.5
                                                                  : greedy(values_of(a, c.at, 1));
        int64_t rows[BATCH];
        live(a, &c, action, n, &random);
        for (int k = 0; k < BATCH; k++)
            rows[k] = (int64_t)(example_uniform(&random) * (double)kept);
        if (a->rows)
            fwrite(rows, sizeof rows, 1, a->rows);
        const quern_array batch = { QUERN_I64, 1, (const int64_t[]){ BATCH }, rows };
        example_check(quern_trainer_step(a->trainer, &batch, NULL, &losses[i]));
    }
}

static void choose(void *user, int64_t n, const float *observations, int64_t *actions)
{
    const float *q = values_of(user, observations, n);
    for (int64_t i = 0; i < n; i++)
        actions[i] = greedy(q + i * ACTIONS);
}

/* What a program elsewhere needs to learn the same: the states before and after an epoch, and the rows of its steps. */
static void dump(agent *a)
{
    char path[4096];
    double losses[STEPS];
    quern_session *session = quern_trainer_session(a->trainer);
    snprintf(path, sizeof path, "%s/dqn.safetensors", a->e->dump);
    example_check(quern_session_save(session, path, NULL));
    snprintf(path, sizeof path, "%s/dqn.rows", a->e->dump);
    a->rows = fopen(path, "wb");
    if (a->rows)
        learn(a, 0, losses);
    if (!a->rows || ferror(a->rows) | fclose(a->rows)) {
        perror(path);
        exit(1);
    }
    snprintf(path, sizeof path, "%s/dqn.after.safetensors", a->e->dump);
    example_check(quern_session_save(session, path, NULL));
}

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "dqn");
    agent a = { .e = &e };
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "output",
                                          .optimizer = "adam",
                                          .learning_rate = 1e-3,
                                          .schedule = "linear",
                                          .schedule_steps = EPOCHS * STEPS };
    quern_builder *b = quern_builder_new("dqn");
    quern_output(b, step(b, e.seed), "loss");
    example_check(quern_train(b, &options, &e.compile, &a.trainer));

    b = quern_builder_new("values");
    quern_value *x = quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_DIM("n"), QUERN_N(SIZE)));
    const network online = new_network(b, "online", quern_param, e.seed);
    quern_output(b, values(b, &online, x), "values");
    example_check(quern_build(b, &e.compile, &a.model));
    example_check(quern_session_new(a.model, NULL, &a.values));
    example_check(quern_session_share_states(a.values, quern_trainer_session(a.trainer)));

    double mean = 0;
    if (e.dump) {
        dump(&a);
    } else {
        example_loop(&e, quern_trainer_session(a.trainer), STEPS, EPOCHS, learn, &a);
        mean = cart_mean_return(TEST, e.seed * 1000003 - 1, choose, &a);
        printf("dqn: mean return %.1f over %d episodes\n", mean, TEST);
    }
    quern_session_free(a.values);
    quern_model_free(a.model);
    quern_trainer_free(a.trainer);
    return e.dump || e.epochs || mean >= 475 ? 0 : 1;
}
