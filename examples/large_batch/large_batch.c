/* A small ResNet learns with batches 32 times as large, cut into parts for several ranks: threads, or processes of mpirun. What
 * momentum alone can't do, LARS and LAMB can. Then the step's kernels are measured, and a model of links says how long it would
 * take on 1,024 machines. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

enum {
    SIDE = 12,
    PIXELS = SIDE * SIDE,
    CLASSES = 10,
    TRAIN = 4096,
    TEST = 4096,
    SMALL = 16, /* the small batch */
    LARGE = 32 * SMALL,
    MOST_CHANNELS = 32,
    EPOCHS = 20,
    MOST_RANKS = 64
};

typedef struct data {
    quern_array x[2], y[2]; /* to learn from, and unseen */
} data;

typedef struct method {
    const char *name, *optimizer;
    double rate, momentum, trust, decay;
    int64_t batch, warmup; /* steps */
} method;

/* The rate of sgd is 32 times that of the small batch, as is usual (Goyal and others, 2017), but without the warm-up. */
static const method methods[] = {
    { "small", "sgd", 0.3, 0.9, 0, 5e-4, SMALL, 0 },
    { "sgd", "sgd", 9.6, 0.9, 0, 5e-4, LARGE, 0 },
    { "lars", "lars", 0.9, 0.9, 0.02, 5e-3, LARGE, 16 },
    { "lamb", "lamb", 0.06, 0, 0, 0.01, LARGE, 16 },
};
enum { METHODS = sizeof methods / sizeof *methods };

typedef struct run {
    const example *e;
    const data *d;
    const method *m;
    double slower; /* factor of the learning rate, for comparisons step by step */
    int64_t epochs;
    quern_comm *comm; /* this rank; NULL: there is one */
    quern_trainer *trainer;
    bool joined; /* has the states of rank 0 */
} run;

/* ---- images ---- */

/* Each class is a pattern of waves. An image has that of its class, moved a little, that of another class more weakly, and noise. */
static void make_images(const example *e, data *d)
{
    static float patterns[CLASSES][SIDE][SIDE], pixels[TRAIN + TEST][SIDE][SIDE];
    static int64_t labels[TRAIN + TEST];
    static const int64_t x_dims[2][4] = { { TRAIN, 1, SIDE, SIDE }, { TEST, 1, SIDE, SIDE } },
                         y_dims[2][1] = { { TRAIN }, { TEST } };
    uint64_t random = e->seed + 1000;
    for (int c = 0; c < CLASSES; c++)
        for (int wave = 0; wave < 4; wave++) {
            const double a = example_uniform(&random) * 3, b = example_uniform(&random) * 3,
                         phase = example_uniform(&random) * 6;
            for (int i = 0; i < SIDE; i++)
                for (int j = 0; j < SIDE; j++)
                    patterns[c][i][j] += (float)(0.5 * sin(6.2831853 * (a * i + b * j) / SIDE + phase));
        }
    for (int n = 0; n < TRAIN + TEST; n++) {
        const int c = (int)(CLASSES * example_uniform(&random)),
                  other = (int)(CLASSES * example_uniform(&random));
        const int down = (int)(4 * example_uniform(&random)), right = (int)(4 * example_uniform(&random));
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j++)
                pixels[n][i][j] = patterns[c][(i + down) % SIDE][(j + right) % SIDE] +
                                  0.5f * patterns[other][i][j] + (float)(0.4 * example_normal(&random));
        labels[n] = c;
    }
    for (int k = 0; k < 2; k++) {
        d->x[k] = (quern_array){ QUERN_F32, 4, x_dims[k], pixels[k * TRAIN] };
        d->y[k] = (quern_array){ QUERN_I64, 1, y_dims[k], labels + k * TRAIN };
    }
}

/* ---- the network ---- */

static quern_value *conv_norm(quern_builder *b, uint64_t *random, quern_value *x, int64_t from, int64_t to,
                              int kernel, int stride, const char *name)
{
    const int64_t dims[] = { to, from, kernel, kernel }, count = to * from * kernel * kernel;
    const double bound = sqrt(6 / (double)(from * kernel * kernel)); /* He and others, 2015 */
    float initial[32 * 32 * 9];
    char text[256];
    for (int64_t i = 0; i < count; i++)
        initial[i] = (float)((2 * example_uniform(random) - 1) * bound);
    snprintf(text, sizeof text, "%s.weight", name);
    quern_value *weight = quern_param(b, text, QUERN_F32, 4, dims, initial);
    snprintf(text, sizeof text,
             "stride = [%d, %d], low = [%d, %d], high = [%d, %d], x_dilation = [1, 1], w_dilation = [1, 1], "
             "groups = 1",
             stride, stride, kernel / 2, kernel / 2, kernel / 2, kernel / 2);
    x = quern_op(b, "convolution", 2, (quern_value *[]){ x, weight }, text);
    snprintf(text, sizeof text, "%s.norm", name);
    return quern_batch_norm(b, x, text);
}

/* One convolution, then three blocks of two (8, 16 and 32 channels), the mean of all positions, and a layer. */
static quern_builder *resnet(uint64_t seed)
{
    quern_builder *b = quern_builder_new("resnet");
    uint64_t random = seed;
    quern_builder_seed(b, seed);
    quern_value *x = quern_input(b, "x", QUERN_F32,
                                 QUERN_SHAPE(QUERN_DIM("batch"), QUERN_N(1), QUERN_N(SIDE), QUERN_N(SIDE)));
    x = quern_relu(b, conv_norm(b, &random, x, 1, 8, 3, 1, "conv"));
    for (int64_t block = 0, from = 8; block < 3; block++) {
        const int64_t to = (int64_t)8 << block;
        const int stride = block ? 2 : 1;
        char name[3][32];
        for (int i = 0; i < 3; i++)
            snprintf(name[i], sizeof name[i], "block%d.conv%d", (int)block + 1, i + 1);
        quern_value *y = quern_relu(b, conv_norm(b, &random, x, from, to, 3, stride, name[0]));
        y = conv_norm(b, &random, y, to, to, 3, 1, name[1]);
        x = from == to ? x : conv_norm(b, &random, x, from, to, 1, stride, name[2]);
        x = quern_relu(b, quern_add(b, x, y));
        from = to;
    }
    x = quern_op(b, "reduce", 1, &x, "kind = sum, axes = [2, 3]");
    x = quern_mul(b, x, quern_constant(b, QUERN_F32, 0, NULL, &(float){ 1.0f / (SIDE / 4) / (SIDE / 4) }));
    quern_output(b, quern_linear(b, x, CLASSES, "fc"), "logits");
    return b;
}

/* ---- learning ---- */

static quern_trainer *make_trainer(const run *r, bool all_statistics)
{
    const method *m = r->m;
    const int64_t steps = r->epochs * TRAIN / m->batch - m->warmup;
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "cross_entropy",
                                          .optimizer = m->optimizer,
                                          .learning_rate = m->rate * r->slower,
                                          .momentum = m->momentum,
                                          .trust = m->trust,
                                          .weight_decay = m->decay,
                                          .warmup_steps = m->warmup,
                                          .schedule = "cosine",
                                          .schedule_steps = steps > 0 ? steps : 1,
                                          .data_parallel = 1,
                                          .sync_batch_norm = all_statistics,
                                          .bucket_bytes = 16 << 10 };
    quern_trainer *trainer;
    example_check(quern_train(resnet(r->e->seed), &options, &r->e->compile, &trainer));
    return trainer;
}

/* All ranks do epoch `number`, which rank 0 says; -1: there is none any more. */
static bool epoch_of_rank(run *r, int64_t *number, double *losses)
{
    example_check(quern_comm_broadcast(r->comm, number, 1, QUERN_I64, 0));
    if (*number < 0)
        return false;
    if (!r->joined && r->comm)
        example_check(
            quern_session_broadcast_states(quern_trainer_session(r->trainer), 0)); /* resumed, perhaps */
    r->joined = true;
    example_check(quern_trainer_epoch(r->trainer, &r->d->x[0], &r->d->y[0], r->m->batch, 0, losses));
    return true;
}

static void first_epoch(void *user, int64_t number, double *losses)
{
    epoch_of_rank(user, &number, losses);
}

/* A rank that isn't the first. */
static void *follow(void *user)
{
    run *r = user;
    int64_t number = 0;
    r->trainer = make_trainer(r, true);
    example_check(quern_trainer_set_comm(r->trainer, r->comm));
    while (epoch_of_rank(r, &number, NULL))
        ;
    quern_trainer_free(r->trainer);
    return NULL;
}

/* Rank 0: trains, and gives the share of unseen images that are right, in percent. */
static double lead(run *r)
{
    int64_t right, end = -1;
    char name[64];
    example named = *r->e;
    snprintf(name, sizeof name, "large_batch-%s", r->m->name);
    named.name = name;
    r->trainer = make_trainer(r, true);
    if (named.dump) {
        example_train(&named, r->trainer, &r->d->x[0], &r->d->y[0], r->m->batch, r->epochs);
        quern_trainer_free(r->trainer);
        return 0;
    }
    if (r->comm)
        example_check(quern_trainer_set_comm(r->trainer, r->comm));
    example_loop(&named, quern_trainer_session(r->trainer), TRAIN / r->m->batch, r->epochs, first_epoch, r);
    example_check(quern_comm_broadcast(r->comm, &end, 1, QUERN_I64, 0));
    example_check(quern_trainer_eval(r->trainer, &r->d->x[1], &r->d->y[1], NULL, &right));
    quern_trainer_free(r->trainer);
    const double share = 100.0 * (double)right / TEST;
    printf("%s: %.2f %% of the test images right\n", name, share);
    return share;
}

/* ranks > 1: in threads. 0: this process is a rank of mpirun, `world`. */
static double learn(run *r, int ranks, quern_comm *world)
{
    quern_comm *comms[MOST_RANKS];
    pthread_t threads[MOST_RANKS];
    run others[MOST_RANKS];
    r->comm = world;
    if (world && world->rank > 0) {
        follow(r);
        return 0;
    }
    if (ranks < 2 || r->e->dump)
        return lead(r);
    example_check(quern_comm_threads(ranks, comms));
    for (int i = 1; i < ranks; i++) {
        others[i] = *r;
        others[i].comm = comms[i];
        if (pthread_create(&threads[i], NULL, follow, &others[i]))
            exit(1);
    }
    r->comm = comms[0];
    const double share = lead(r);
    for (int i = 1; i < ranks; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < ranks; i++)
        quern_comm_free(comms[i]);
    return share;
}

/* ---- a thousand machines ---- */

enum { DEVICES = 1024, PER_DEVICE = 32, MOST_EVENTS = 512, MEASURED = 41 };

typedef enum event_kind { KERNEL, COLLECTIVE, START, WAIT } event_kind;

/* A communicator that notes when the step would have talked, and of how much; and the kernels between, from the trace. */
typedef struct recorder {
    quern_comm comm; /* first: the others find the structure by it */
    int n;
    struct {
        event_kind kind;
        double seconds, bytes; /* of a kernel; of a collective */
    } events[MOST_EVENTS];
    double began;
} recorder;

static void note(recorder *r, event_kind kind, double seconds, double bytes)
{
    if (r->n == MOST_EVENTS)
        exit(1);
    r->events[r->n].kind = kind;
    r->events[r->n].seconds = seconds;
    r->events[r->n++].bytes = bytes;
}

static int note_collective(quern_comm *comm, event_kind kind, const void *in, void *out, int64_t n,
                           int32_t dtype)
{
    const size_t bytes = (size_t)n * quern_dtype_size(dtype);
    memmove(out, in, bytes);
    note((recorder *)comm, kind, 0, (double)bytes);
    return QUERN_OK;
}

static int note_all_reduce(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    (void)how;
    return note_collective(comm, COLLECTIVE, in, out, n, dtype);
}

static int note_start(quern_comm *comm, const void *in, void *out, int64_t n, int32_t dtype, int32_t how)
{
    (void)how;
    return note_collective(comm, START, in, out, n, dtype);
}

static int note_wait(quern_comm *comm)
{
    note((recorder *)comm, WAIT, 0, 0);
    return QUERN_OK;
}

static const char *no_error(const quern_comm *comm)
{
    (void)comm;
    return "";
}

static void no_failure(quern_comm *comm, const char *reason)
{
    (void)comm;
    (void)reason;
}

static void trace(void *user, const char *kernel, int begin)
{
    recorder *r = user;
    if (begin) {
        r->began = example_now();
        return;
    }
    if (strncmp(kernel, "all_reduce", 10) != 0 && strncmp(kernel, "wait_", 5) != 0)
        note(r, KERNEL, example_now() - r->began, 0);
}

/* Seconds in which all have the sum of so many bytes, by a ring or by halving and doubling along a tree, whichever is quicker. */
static double all_reduce_seconds(double bytes, double latency, double bandwidth)
{
    const double share = 2 * (DEVICES - 1.0) / DEVICES * bytes / bandwidth;
    const double ring = 2 * (DEVICES - 1.0) * latency + share, tree = 2 * log2(DEVICES) * latency + share;
    return ring < tree ? ring : tree;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The step of one device, kernel by kernel: medians of several steps. */
static void measure(recorder *out, run *r, bool all_statistics)
{
    static recorder steps[MEASURED];
    const int64_t x_dims[] = { PER_DEVICE, 1, SIDE, SIDE }, y_dims[] = { PER_DEVICE };
    const quern_array x = { QUERN_F32, 4, x_dims, r->d->x[0].data },
                      y = { QUERN_I64, 1, y_dims, r->d->y[0].data };
    quern_trainer *trainer = make_trainer(r, all_statistics);
    quern_ctx *ctx = quern_session_ctx(quern_trainer_session(trainer));
    for (int i = 0; i < MEASURED; i++) {
        steps[i] = (recorder){ .comm = { .size = sizeof(quern_comm),
                                         .ranks = 1,
                                         .all_reduce = note_all_reduce,
                                         .error = no_error,
                                         .fail = no_failure,
                                         .start_all_reduce = note_start,
                                         .wait = note_wait } };
        ctx->comm = &steps[i].comm;
        ctx->trace = trace;
        ctx->trace_user = &steps[i];
        example_check(quern_trainer_step(trainer, &x, &y, NULL));
    }
    *out = steps[0];
    for (int k = 0; k < out->n; k++) {
        double seconds[MEASURED];
        for (int i = 0; i < MEASURED; i++)
            seconds[i] = steps[i].events[k].seconds;
        qsort(seconds, MEASURED, sizeof *seconds, by_size);
        out->events[k].seconds = seconds[MEASURED / 2];
    }
    quern_trainer_free(trainer);
}

/* Of the step as it is compiled: what is started goes over the link when that is free, while the kernels go on, and ends before
 * what waits for it. */
static void simulate(run *r, bool all_statistics, double latency, double bandwidth)
{
    static recorder step;
    double compute = 0, talk = 0, bytes = 0, clock = 0, link = 0, ends[MOST_EVENTS]; /* of what was started */
    int n = 0, n_started = 0, n_waited = 0;
    measure(&step, r, all_statistics);
    for (int i = 0; i < step.n; i++) {
        compute += step.events[i].seconds;
        clock += step.events[i].seconds;
        if (step.events[i].kind == WAIT && ends[n_waited++] > clock)
            clock = ends[n_waited - 1];
        if (step.events[i].bytes == 0)
            continue;
        const double seconds = all_reduce_seconds(step.events[i].bytes, latency, bandwidth);
        link = (link > clock ? link : clock) + seconds;
        if (step.events[i].kind == START)
            ends[n_started++] = link;
        else
            clock = link;
        talk += seconds;
        bytes += step.events[i].bytes;
        n++;
    }
    printf("large_batch: %d x %d, norms of %s: %.0f us of kernels, %d collectives of %.1f KB together, %d of "
           "them "
           "beside kernels: step %.0f us, efficiency %.1f %%; without any beside kernels %.0f us, %.1f %%\n",
           DEVICES, PER_DEVICE, all_statistics ? "all rows" : "a device's rows", 1e6 * compute, n,
           bytes / 1e3, n_started, 1e6 * clock, 100 * compute / clock, 1e6 * (compute + talk),
           100 * compute / (compute + talk));
}

int main(int argc, char **argv)
{
    const char *ranks = example_option(&argc, argv, "--ranks", "1"),
               *only = example_option(&argc, argv, "--method", "all");
    const double slower = strtod(example_option(&argc, argv, "--rate", "1"), NULL);
    const double latency = 1e-6 * strtod(example_option(&argc, argv, "--latency", "2"), NULL);
    const double bandwidth = 1e9 * strtod(example_option(&argc, argv, "--bandwidth", "12.5"), NULL);
    const example e = example_parse(argc, argv, "large_batch");
    const bool mpi = strcmp(ranks, "mpi") == 0;
    quern_comm *world = NULL;
    data d;
    double shares[METHODS] = { 0 };
    const int n_ranks = mpi ? 0 : atoi(ranks);
    if (mpi)
        example_check(quern_comm_mpi(&world));
    if (n_ranks > MOST_RANKS || (!mpi && n_ranks < 1)) {
        fprintf(stderr, "--ranks: 1 to %d, or mpi\n", MOST_RANKS);
        return 2;
    }
    make_images(&e, &d);
    run r = { .e = &e, .d = &d, .slower = slower, .epochs = e.epochs ? e.epochs : EPOCHS };
    for (int i = 0; i < METHODS; i++) {
        r.m = &methods[i];
        r.joined = false;
        if (strcmp(only, "all") == 0 || strcmp(only, r.m->name) == 0)
            shares[i] = learn(&r, n_ranks, world);
    }
    if ((!world || world->rank == 0) && !e.dump &&
        (strcmp(only, "all") == 0 || strcmp(only, "simulate") == 0)) {
        r.m = &methods[0];
        simulate(&r, false, latency, bandwidth);
        simulate(&r, true, latency, bandwidth);
    }
    quern_comm_free(world);
    const bool works =
        shares[2] >= shares[0] - 0.5 && shares[3] >= shares[0] - 0.5 && shares[1] < shares[0] - 0.5;
    return e.dump || e.epochs || strcmp(only, "all") != 0 || (world && world->rank > 0) || works ? 0 : 1;
}
