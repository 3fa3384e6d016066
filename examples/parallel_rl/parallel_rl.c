/* Advantage actor-critic (Mnih and others, 2016) over many CartPoles that run in parallel, with the targets of V-trace (Espeholt
 * and others, 2018).
 *
 * Environments are in groups, each with a session of the compiled policy. Workers, threads of a pool, let groups play; then one
 * compiled step learns from what all of them saw. Ranks of mpirun have groups of their own, and average gradients. What is played
 * depends on the group alone: any number of workers gives the same bits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/cartpole.h"
#include "examples/common/common.h"

enum {
    GROUP = 16,
    TIME = 16,
    WIDTH = 64
}; /* environments of a group; pushes before a step; of the networks */
enum {
    STEPS = 100,
    EPOCHS = 10,
    WARM = 100,
    TEST = 100
}; /* steps of an epoch, with a small rate; test episodes */
static const float discount = 0.99f;   /* of rewards, for each push that they come later */
static const float curiosity = 0.002f; /* the weight of the policy's entropy */

/* ---- the model ---- */

/* Observations [.., CART_SIZE] to `out` numbers each. */
static quern_value *network(quern_builder *b, quern_value *x, int64_t out, const char *name)
{
    char layer[32];
    for (int i = 0; i < 3; i++) {
        snprintf(layer, sizeof layer, "%s.%d", name, i);
        x = quern_linear(b, x, i < 2 ? WIDTH : out, layer);
        x = i < 2 ? quern_tanh(b, x) : x;
    }
    return x;
}

static quern_value *log_policy(quern_builder *b, quern_value *x)
{
    x = network(b, x, CART_ACTIONS, "policy");
    return QUERN_OP(b, "log_softmax", "axis = 2", x);
}

/* What was seen in TIME pushes of all environments: arrays [TIME, environments], of the first two with an observation each. */
enum { BEFORE, AFTER, ACTION, BEHAVIOUR, REWARD, ALIVE, GOES_ON, FIELDS };
static const char *const field_names[] = { "before", "after", "action", "behaviour",
                                           "reward", "alive", "goes_on" };

/* From the last push to the first: the correction of a state's value is that of its push and what is left of the next one's. */
static void correct(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                    quern_value **step)
{
    (void)user;
    step[0] = carried[0] = quern_add(b, slices[0], quern_mul(b, slices[1], carried[0]));
}

static quern_value *backwards(quern_builder *b, quern_value *x)
{
    return QUERN_OP(b, "reverse", "axes = [0]", x);
}

/* The loss of each push. V-trace: with r = min(1, policy / behaviour), which is 1 where the policy has not changed since,
 *   target_t = value_t + r_t (reward_t + discount value_t+1 - value_t) + discount r_t (target_t+1 - value_t+1)
 * A last push (of an episode or of all) has no t + 1 in here, and a pole that has fallen no later value at all. */
static quern_value *loss(quern_builder *b, quern_value *const *x, int64_t environments,
                         quern_value **out_targets, quern_value **out_after)
{
    quern_value *values = network(b, QUERN_OP(b, "concatenate", "axis = 0", x[BEFORE], x[AFTER]), 1, "value");
    values = quern_reshape(b, values, QUERN_SHAPE(QUERN_N(2 * TIME), QUERN_N(environments)));
    quern_value *value = quern_slice(b, values, 0, 0, TIME),
                *fixed = QUERN_OP(b, "stop_gradient", "", values);
    quern_value *before = quern_slice(b, fixed, 0, 0, TIME),
                *after = quern_slice(b, fixed, 0, TIME, 2 * TIME);

    quern_value *logs = log_policy(b, x[BEFORE]);
    quern_value *action =
        quern_reshape(b, x[ACTION], QUERN_SHAPE(QUERN_N(TIME), QUERN_N(environments), QUERN_N(1)));
    quern_value *chosen = QUERN_OP(b, "gather_elements", "axis = 2", logs, action);
    chosen = quern_reshape(b, chosen, QUERN_SHAPE(QUERN_N(TIME), QUERN_N(environments)));
    quern_value *ratio = quern_sub(b, QUERN_OP(b, "stop_gradient", "", chosen), x[BEHAVIOUR]);
    ratio = quern_min(b, QUERN_OP(b, "exp", "", ratio), quern_scalar(b, QUERN_F32, 1));

    quern_value *wanted = quern_add(
        b, x[REWARD], quern_mul(b, quern_scalar(b, QUERN_F32, discount), quern_mul(b, x[ALIVE], after)));
    quern_value *kept = quern_mul(b, quern_mul(b, quern_scalar(b, QUERN_F32, discount), x[GOES_ON]), ratio);
    quern_value *scanned[] = { backwards(b, quern_mul(b, ratio, quern_sub(b, wanted, before))),
                               backwards(b, kept) };
    quern_value *last = quern_broadcast(b, quern_scalar(b, QUERN_F32, 0), QUERN_SHAPE(QUERN_N(environments))),
                *corrections;
    quern_scan(b, 1, &last, 2, scanned, 1, &corrections, correct, NULL);
    corrections = backwards(b, corrections);

    *out_targets = quern_add(b, before, corrections);
    *out_after = after;
    const quern_loss_options each = { .size = sizeof each, .reduction = "none" };
    quern_value *critic = quern_loss(b, "mse", value, *out_targets, &each);
    quern_value *plogp = quern_mul(b, QUERN_OP(b, "exp", "", logs), logs);
    quern_value *actor = quern_sub(b,
                                   quern_mul(b, quern_scalar(b, QUERN_F32, curiosity),
                                             QUERN_OP(b, "reduce", "kind = sum, axes = [2]", plogp)),
                                   quern_mul(b, corrections, chosen));
    return quern_add(b, actor, quern_mul(b, quern_scalar(b, QUERN_F32, 0.5f), critic));
}

/* The function that learns, whose first output is the loss; or the same with V-trace's targets, and values of what came after. */
static quern_builder *learner(uint64_t seed, int64_t environments, bool shows_targets)
{
    quern_builder *b = quern_builder_new("a2c");
    quern_builder_seed(b, seed);
    quern_value *x[FIELDS], *targets, *after;
    for (int i = 0; i < FIELDS; i++)
        x[i] = quern_input(b, field_names[i], i == ACTION ? QUERN_I64 : QUERN_F32, i <= AFTER ? 3 : 2,
                           (const quern_dim[]){ QUERN_N(TIME), QUERN_N(environments), QUERN_N(CART_SIZE) });
    quern_value *losses = loss(b, x, environments, &targets, &after);
    quern_output(b, losses, "loss");
    if (shows_targets) {
        quern_output(b, targets, "targets");
        quern_output(b, after, "later");
    }
    return b;
}

/* Logarithms of the policy's probabilities, for n environments. */
static quern_builder *actor(uint64_t seed)
{
    quern_builder *b = quern_builder_new("actor");
    quern_builder_seed(b, seed);
    quern_value *x =
        quern_input(b, "x", QUERN_F32, QUERN_SHAPE(QUERN_N(1), QUERN_DIM("n"), QUERN_N(CART_SIZE)));
    quern_output(b, log_policy(b, x), "log_policy");
    return b;
}

/* ---- environments ---- */

typedef struct group {
    quern_session *policy;
    cart carts[GROUP];
    uint64_t random;
} group;

typedef struct school {
    const example *e;
    quern_comm *comm; /* NULL: there is one rank */
    quern_trainer *trainer;
    quern_model *actor;
    quern_pool *pool;
    int n_groups, first_group; /* of this rank; the number of its first among those of all */
    group *groups;
    void *seen[FIELDS];
    quern_array arrays[FIELDS];
    FILE *dump; /* where what is learnt from goes, or NULL */
} school;

static const float *log_policy_of(quern_session *policy, int64_t n, const float *observations)
{
    const quern_array x = { QUERN_F32, 3, (const int64_t[]){ 1, n, CART_SIZE }, (void *)observations };
    quern_array out;
    example_check(quern_session_bind(policy, quern_session_find(policy, "x"), &x));
    example_check(quern_session_run(policy));
    example_check(quern_session_get(policy, quern_session_find(policy, "log_policy"), &out));
    return out.data;
}

/* TIME pushes of a group's environments, from where they are. */
static void play(void *user, int64_t number)
{
    const school *s = user;
    group *g = &s->groups[number];
    const size_t all = (size_t)s->n_groups * GROUP;
    for (int t = 0; t < TIME; t++) {
        const size_t row = (size_t)t * all + (size_t)number * GROUP;
        float *before = (float *)s->seen[BEFORE] + row * CART_SIZE;
        for (int i = 0; i < GROUP; i++)
            memcpy(before + i * CART_SIZE, g->carts[i].at, sizeof g->carts[i].at);
        const float *logs = log_policy_of(g->policy, GROUP, before);
        for (size_t i = 0; i < GROUP; i++) {
            cart *c = &g->carts[i];
            const int64_t action = log(1 - example_uniform(&g->random)) < (double)logs[i * CART_ACTIONS + 1];
            const bool fallen = cart_push(c, action), ends = fallen || c->age == CART_LIMIT;
            memcpy((float *)s->seen[AFTER] + (row + i) * CART_SIZE, c->at, sizeof c->at);
            ((int64_t *)s->seen[ACTION])[row + i] = action;
            ((float *)s->seen[BEHAVIOUR])[row + i] = logs[i * CART_ACTIONS + (size_t)action];
            ((float *)s->seen[REWARD])[row + i] = 1 - discount; /* values are then below 1 */
            ((float *)s->seen[ALIVE])[row + i] = !fallen;
            ((float *)s->seen[GOES_ON])[row + i] = !ends && t < TIME - 1;
            if (ends)
                cart_reset(c, &g->random);
        }
    }
}

static void reset(school *s, int64_t epoch)
{
    for (int i = 0; i < s->n_groups; i++) {
        group *g = &s->groups[i];
        g->random = (s->e->seed * 1000003 + (uint64_t)epoch) * 1000003 + (uint64_t)(s->first_group + i);
        for (int k = 0; k < GROUP; k++)
            cart_reset(&g->carts[k], &g->random);
    }
}

static void learn(void *user, int64_t epoch, double *losses)
{
    school *s = user;
    reset(s, epoch);
    for (int step = 0; step < STEPS; step++) {
        quern_pool_parallel_for(s->pool, play, s, s->n_groups);
        for (int i = 0; s->dump && i < FIELDS; i++)
            fwrite(s->seen[i], i == ACTION ? 8 : 4,
                   (size_t)(TIME * s->n_groups * GROUP * (i <= AFTER ? CART_SIZE : 1)), s->dump);
        example_check(quern_trainer_step(s->trainer, s->arrays, NULL, &losses[step]));
    }
}

static void choose(void *user, int64_t n, const float *observations, int64_t *actions)
{
    const float *logs = log_policy_of(user, n, observations);
    for (int64_t i = 0; i < n; i++)
        actions[i] = logs[i * CART_ACTIONS + 1] > logs[i * CART_ACTIONS];
}

/* ---- what is checked and measured ---- */

/* How far V-trace's targets are from the discounted rewards of the pushes that follow and the value of where these end, which
 * they are where the policy is the one that played. */
static double compare_returns(school *s)
{
    const int all = s->n_groups * GROUP;
    quern_module *module;
    quern_model *model;
    quern_session *session;
    quern_array targets, after;
    double worst = 0;
    example_check(quern_builder_finish(learner(s->e->seed, all, true), &module));
    example_check(quern_compile(module, &s->e->compile, &model));
    quern_module_free(module);
    example_check(quern_session_new(model, NULL, &session));
    example_check(quern_session_share_states(session, quern_trainer_session(s->trainer)));
    quern_pool_parallel_for(s->pool, play, s, s->n_groups);
    for (int i = 0; i < FIELDS; i++)
        example_check(
            quern_session_bind(session, quern_session_find(session, field_names[i]), &s->arrays[i]));
    example_check(quern_session_run(session));
    example_check(quern_session_get(session, quern_session_find(session, "targets"), &targets));
    example_check(quern_session_get(session, quern_session_find(session, "later"), &after));
    const float *reward = s->seen[REWARD], *alive = s->seen[ALIVE], *goes_on = s->seen[GOES_ON];
    for (int i = 0; i < all; i++) {
        double later = 0;
        for (int at = (TIME - 1) * all + i; at >= 0; at -= all) {
            if (!(goes_on[at] > 0))
                later = (double)(alive[at] * ((const float *)after.data)[at]);
            later = (double)reward[at] + (double)discount * later;
            worst = fmax(worst, fabs(later - (double)((const float *)targets.data)[at]));
        }
    }
    quern_session_free(session);
    quern_model_free(model);
    return worst;
}

/* Pushes of all ranks in a second, by how many workers each has. */
static void measure(school *s)
{
    for (int workers = 1; workers <= s->n_groups && workers <= quern_pool_threads(s->pool); workers *= 2) {
        enum { PLAYS = 200 };
        quern_pool *pool = quern_pool_new(workers);
        const double start = example_now();
        for (int i = 0; i < PLAYS; i++)
            quern_pool_parallel_for(pool, play, s, s->n_groups);
        double rate = PLAYS * TIME * GROUP * (double)s->n_groups / (example_now() - start);
        quern_pool_free(pool);
        example_check(quern_comm_all_reduce(s->comm, &rate, &rate, 1, QUERN_F64, QUERN_COMBINE_SUM));
        if (!s->e->silent)
            printf("parallel_rl: %d workers on each of %d ranks: %.0f environment steps a second\n", workers,
                   s->comm ? s->comm->ranks : 1, rate);
    }
}

/* What a program elsewhere needs to learn the same: the parameters, and what the steps of an epoch learn from. */
static void dump(school *s)
{
    char path[4096];
    double losses[STEPS];
    snprintf(path, sizeof path, "%s/parallel_rl.safetensors", s->e->dump);
    example_check(quern_session_save(quern_trainer_session(s->trainer), path, NULL));
    snprintf(path, sizeof path, "%s/parallel_rl.x", s->e->dump);
    s->dump = fopen(path, "wb");
    if (s->dump)
        learn(s, 0, losses);
    if (!s->dump || ferror(s->dump) | fclose(s->dump)) {
        perror(path);
        exit(1);
    }
}

/* ---- the beginning and the end ---- */

static void school_open(school *s, int environments, int workers)
{
    const example *e = s->e;
    const int ranks = s->comm ? s->comm->ranks : 1;
    if (environments < GROUP * ranks || environments % (GROUP * ranks) || environments / ranks > 1024) {
        fprintf(stderr, "each of %d ranks needs a multiple of %d environments, at most 1024; %d are not\n",
                ranks, GROUP, environments);
        exit(2);
    }
    s->n_groups = environments / GROUP / ranks;
    s->first_group = s->comm ? s->comm->rank * s->n_groups : 0;
    s->pool = quern_pool_new(workers);
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "output",
                                          .optimizer = "adam",
                                          .learning_rate = 2e-3,
                                          .clip_norm = 0.5,
                                          .schedule = "linear",
                                          .warmup_steps = WARM,
                                          .schedule_steps = EPOCHS * STEPS - WARM,
                                          .data_parallel = s->comm != NULL };
    example_check(
        quern_train(learner(e->seed, environments / ranks, false), &options, &e->compile, &s->trainer));
    if (s->comm)
        example_check(quern_trainer_set_comm(s->trainer, s->comm));

    quern_module *module;
    quern_compile_options alone = e->compile; /* workers are the threads */
    alone.threads = 1;
    example_check(quern_builder_finish(actor(e->seed), &module));
    example_check(quern_compile(module, &alone, &s->actor));
    quern_module_free(module);
    s->groups = calloc((size_t)s->n_groups, sizeof *s->groups);
    if (!s->groups || !s->pool)
        exit(1);
    for (int i = 0; i < s->n_groups; i++) {
        example_check(quern_session_new(s->actor, NULL, &s->groups[i].policy));
        example_check(quern_session_share_states(s->groups[i].policy, quern_trainer_session(s->trainer)));
    }
    static int64_t dims[3];
    memcpy(dims, (const int64_t[]){ TIME, environments / ranks, CART_SIZE }, sizeof dims);
    for (int i = 0; i < FIELDS; i++) {
        s->seen[i] = calloc((size_t)(TIME * environments * CART_SIZE), 8);
        if (!s->seen[i])
            exit(1);
        s->arrays[i] =
            (quern_array){ i == ACTION ? QUERN_I64 : QUERN_F32, i <= AFTER ? 3 : 2, dims, s->seen[i] };
    }
}

static void school_close(school *s)
{
    for (int i = 0; i < s->n_groups; i++)
        quern_session_free(s->groups[i].policy);
    for (int i = 0; i < FIELDS; i++)
        free(s->seen[i]);
    free(s->groups);
    quern_model_free(s->actor);
    quern_trainer_free(s->trainer);
    quern_pool_free(s->pool);
}

int main(int argc, char **argv)
{
    const int environments = atoi(example_option(&argc, argv, "--environments", "64"));
    const int workers = atoi(example_option(&argc, argv, "--workers", "0"));
    const char *ranks = example_option(&argc, argv, "--ranks", "one");
    example e = example_parse(argc, argv, "parallel_rl");
    school s = { .e = &e };
    if (strcmp(ranks, "mpi") == 0) {
        example_check(quern_comm_mpi(&s.comm));
        e.silent = s.comm->rank > 0;
    } else if (strcmp(ranks, "one") != 0) {
        fprintf(stderr, "--ranks is one, or mpi: those that mpirun started; not %s\n", ranks);
        return 2;
    }
    school_open(&s, environments, workers);
    double mean = 0;
    if (e.dump) {
        dump(&s);
    } else {
        reset(&s, -1);
        const double difference = compare_returns(&s);
        example_loop(&e, quern_trainer_session(s.trainer), STEPS, EPOCHS, learn, &s);
        mean = cart_mean_return(TEST, e.seed * 1000003 - 1, choose, s.groups[0].policy);
        if (!e.silent)
            printf("parallel_rl: V-trace differs from the n-step return by %.1e\nparallel_rl: mean return "
                   "%.1f over %d "
                   "episodes\n",
                   difference, mean, TEST);
        measure(&s);
    }
    school_close(&s);
    quern_comm_free(s.comm);
    return e.dump || e.epochs || mean >= 475 ? 0 : 1;
}
