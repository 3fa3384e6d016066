/* Optimizers: from a parameter and its gradient the next parameter, and the states that go with it. Each is a short formula
 * over the parameter's elements, so that it becomes one kernel. Learning rates and what depends on the step's number are f64
 * scalars computed once a step: 1 - 0.999^t has lost half of a float's digits. */
#include <math.h>

#include "passes/train_parts.h"

const qn_train_name qn_optimizers[] = {
#define QN_OPTIMIZER(id, name, decay, epsilon, help) { #name, help },
#include "passes/train.def"
    { NULL, NULL }
};
const qn_train_name qn_schedules[] = {
#define QN_SCHEDULE(id, name, help) { #name, help },
#include "passes/train.def"
    { NULL, NULL }
};
const double qn_optimizer_epsilons[] = {
#define QN_OPTIMIZER(id, name, decay, epsilon, help) epsilon,
#include "passes/train.def"
};

typedef enum decay_kind { GRADIENT, DECOUPLED, OWN } decay_kind;
static const decay_kind decays[] = {
#define QN_OPTIMIZER(id, name, decay, epsilon, help) decay,
#include "passes/train.def"
};

typedef struct optimizer {
    qn_builder *b;
    const qn_train_options *options;
    qn_value *rate;          /* f64 scalar; NULL: options->learning_rate in every step */
    qn_value *bias1, *bias2; /* adam, adamw, lamb: 1 - beta^t, f64 scalars */
    const qn_value *param;   /* being updated, whose name its states' names begin with */
} optimizer;

#define MUL(x, y) qn_b_binary(o->b, QN_OP_MUL, x, y)
#define ADD(x, y) qn_b_binary(o->b, QN_OP_ADD, x, y)
#define SUB(x, y) qn_b_binary(o->b, QN_OP_SUB, x, y)
#define DIV(x, y) qn_b_binary(o->b, QN_OP_DIV, x, y)
#define SCALED(x, c) qn_b_binary_scalar(o->b, QN_OP_MUL, x, c)
#define PLUS(x, c) qn_b_binary_scalar(o->b, QN_OP_ADD, x, c)
#define SQRT(x) qn_b_unary(o->b, QN_OP_SQRT, x)

/* ---- the step's scalars ---- */

static qn_value *number(optimizer *o, double value)
{
    return qn_b_scalar(o->b, QUERN_F64, value);
}

/* done: steps after the warm-up, f64, at least 0 */
static qn_value *schedule_factor(optimizer *o, qn_value *done)
{
    const qn_train_options *options = o->options;
    const double steps = (double)options->schedule_steps, end = options->schedule_factor;
    qn_value *left;
    if (options->schedule == QN_SCHEDULE_STEP) {
        /* done / steps may come out just below a whole number: half a step more decides the same, whatever the rounding */
        qn_value *drops = qn_b_unary(o->b, QN_OP_FLOOR, SCALED(PLUS(done, 0.5), 1 / steps));
        return qn_b_binary(o->b, QN_OP_POW, number(o, end), drops);
    }
    qn_value *share = qn_b_binary(o->b, QN_OP_MIN, SCALED(done, 1 / steps), number(o, 1));
    if (options->schedule == QN_SCHEDULE_COSINE)
        left = SCALED(PLUS(qn_b_unary(o->b, QN_OP_COS, SCALED(share, M_PI)), 1), 0.5);
    else
        left = SUB(number(o, 1), share);
    return PLUS(SCALED(left, 1 - end), end);
}

/* Does the schedule need the number of the step? */
static bool is_timed(const qn_train_options *options)
{
    return options->schedule != QN_SCHEDULE_CONSTANT && options->schedule != QN_SCHEDULE_HOST;
}

/* t: the step's number, f64; NULL where it isn't counted */
static qn_value *scheduled_rate(optimizer *o, qn_value *t)
{
    const qn_train_options *options = o->options;
    qn_value *factor = NULL, *rate = NULL;
    if (options->schedule == QN_SCHEDULE_HOST)
        rate = qn_train_add_state(o->b->graph, options, "learning_rate", QUERN_F64, 0, NULL,
                                  &options->learning_rate);
    if (is_timed(options)) {
        qn_value *done = PLUS(t, -(double)options->warmup_steps);
        factor = schedule_factor(o, qn_b_binary(o->b, QN_OP_MAX, done, number(o, 0)));
    }
    if (options->warmup_steps > 0) {
        qn_value *rise = SCALED(PLUS(t, 1), 1 / (double)options->warmup_steps);
        rise = qn_b_binary(o->b, QN_OP_MIN, rise, number(o, 1));
        factor = factor ? MUL(factor, rise) : rise;
    }
    if (rate)
        return factor ? MUL(factor, rate) : rate;
    return factor ? SCALED(factor, options->learning_rate) : NULL;
}

static bool has_bias_correction(const qn_train_options *options)
{
    return options->optimizer == QN_ADAM || options->optimizer == QN_ADAMW || options->optimizer == QN_LAMB;
}

bool qn_optimizer_counts(const qn_train_options *options)
{
    return has_bias_correction(options) || is_timed(options) || options->warmup_steps > 0;
}

static qn_value *bias_correction(optimizer *o, double beta, qn_value *t)
{
    return SUB(number(o, 1), qn_b_binary(o->b, QN_OP_POW, number(o, beta), PLUS(t, 1)));
}

/* ---- parts of formulas ---- */

/* A scalar for each element of the parameter. */
static qn_value *spread(optimizer *o, qn_value *scalar)
{
    const qn_type *type = &o->param->type;
    return qn_b_broadcast_to(o->b, qn_b_convert(o->b, type->dtype, scalar), type->rank, type->dims);
}

static qn_value *times_rate(optimizer *o, qn_value *x)
{
    return o->rate ? MUL(spread(o, o->rate), x) : SCALED(x, o->options->learning_rate);
}

static qn_value *add_state(optimizer *o, const char *suffix)
{
    qn_graph *graph = o->b->graph;
    const char *name = qn_arena_printf(graph->module->arena, "%s.%s", o->param->name, suffix);
    return qn_graph_add_input(graph, qn_train_fresh_name(graph, name), o->param->type, QN_ROLE_STATE);
}

static void set_state(optimizer *o, const qn_value *state, qn_value *next)
{
    if (next)
        qn_graph_add_output(o->b->graph, next, state->name, state->index);
}

/* state = keep state + add x */
static qn_value *running(optimizer *o, const char *suffix, double keep, qn_value *x, double add)
{
    qn_value *state = add_state(o, suffix);
    qn_value *next = ADD(SCALED(state, keep), SCALED(x, add));
    set_state(o, state, next);
    return next;
}

/* The sum of squares, an f32 or f64 scalar. */
static qn_value *squares_of(qn_builder *b, qn_value *x)
{
    int64_t axes[QN_MAX_RANK];
    if (!x)
        return NULL;
    if (qn_dtype_bytes(x->type.dtype) < 4)
        x = qn_b_convert(b, QUERN_F32, x);
    for (int i = 0; i < x->type.rank; i++)
        axes[i] = i;
    return qn_b_reduce(b, QN_SUM, qn_b_binary(b, QN_OP_MUL, x, x), x->type.rank, axes, false);
}

static qn_value *length_of(optimizer *o, const qn_value *x)
{
    return SQRT(squares_of(o->b, (qn_value *)x));
}

/* a / b where both are above 0, else 1 */
static qn_value *ratio_or_one(optimizer *o, qn_value *a, qn_value *b)
{
    if (!a || !b)
        return NULL;
    qn_value *zero = qn_b_full(o->b, &a->type, 0), *one = qn_b_full(o->b, &a->type, 1);
    qn_value *both =
        qn_b_binary(o->b, QN_OP_AND, qn_b_compare(o->b, QN_GT, a, zero), qn_b_compare(o->b, QN_GT, b, zero));
    return qn_b_select(o->b, both, DIV(a, b), one);
}

/* ---- the optimizers: what is subtracted from the parameter ---- */

static qn_value *velocity(optimizer *o, qn_value *g)
{
    const double momentum = o->options->momentum;
    if (momentum == 0)
        return g;
    qn_value *v = running(o, "velocity", momentum, g, 1);
    return o->options->nesterov ? ADD(g, SCALED(v, momentum)) : v;
}

static qn_value *update_sgd(optimizer *o, qn_value *p, qn_value *g)
{
    (void)p;
    return times_rate(o, velocity(o, g));
}

/* over m / bias1 / (sqrt(v / bias2) + epsilon), over being a scalar */
static qn_value *adam_direction(optimizer *o, qn_value *g, qn_value *over)
{
    const qn_train_options *options = o->options;
    qn_value *m = running(o, "m", options->beta1, g, 1 - options->beta1);
    qn_value *v = running(o, "v", options->beta2, MUL(g, g), 1 - options->beta2);
    /* one division for each element: the other divisor is a scalar */
    qn_value *scale = DIV(number(o, 1), SQRT(o->bias2));
    qn_value *root = PLUS(MUL(SQRT(v), spread(o, scale)), options->epsilon);
    return MUL(spread(o, DIV(over, o->bias1)), DIV(m, root));
}

static qn_value *rate_or_number(optimizer *o)
{
    return o->rate ? o->rate : number(o, o->options->learning_rate);
}

static qn_value *update_adam(optimizer *o, qn_value *p, qn_value *g)
{
    (void)p;
    return adam_direction(o, g, rate_or_number(o));
}

static qn_value *update_adamw(optimizer *o, qn_value *p, qn_value *g)
{
    return update_adam(o, p, g);
}

static qn_value *update_rmsprop(optimizer *o, qn_value *p, qn_value *g)
{
    const qn_train_options *options = o->options;
    (void)p;
    qn_value *v = running(o, "v", options->alpha, MUL(g, g), 1 - options->alpha);
    return times_rate(o, velocity(o, DIV(g, PLUS(SQRT(v), options->epsilon))));
}

static qn_value *update_adagrad(optimizer *o, qn_value *p, qn_value *g)
{
    (void)p;
    qn_value *sum = running(o, "sum", 1, MUL(g, g), 1);
    return times_rate(o, DIV(g, PLUS(SQRT(sum), o->options->epsilon)));
}

static qn_value *update_lars(optimizer *o, qn_value *p, qn_value *g)
{
    const qn_train_options *options = o->options;
    const double decay = options->weight_decay;
    qn_value *length = length_of(o, p);
    qn_value *local =
        ratio_or_one(o, SCALED(length, options->trust), ADD(length_of(o, g), SCALED(length, decay)));
    qn_value *step = decay != 0 ? ADD(g, SCALED(p, decay)) : g;
    return velocity(o, times_rate(o, MUL(spread(o, local), step)));
}

static qn_value *update_lamb(optimizer *o, qn_value *p, qn_value *g)
{
    qn_value *step = adam_direction(o, g, number(o, 1));
    if (o->options->weight_decay != 0)
        step = ADD(step, SCALED(p, o->options->weight_decay));
    return times_rate(o, MUL(spread(o, ratio_or_one(o, length_of(o, p), length_of(o, step))), step));
}

typedef qn_value *(*update_fn)(optimizer *o, qn_value *p, qn_value *g);
static const update_fn updates[] = {
#define QN_OPTIMIZER(id, name, decay, epsilon, help) update_##name,
#include "passes/train.def"
};

/* ---- all parameters ---- */

/* min(1, clip / norm of all gradients), as a scalar of that dtype */
static qn_value *clip_factor(optimizer *o, int n, qn_value **gradients)
{
    qn_value *sum = NULL;
    for (int i = 0; i < n; i++) {
        qn_value *square = squares_of(o->b, gradients[i]);
        if (sum && square && square->type.dtype != sum->type.dtype) {
            square = qn_b_convert(o->b, QUERN_F64, square);
            sum = qn_b_convert(o->b, QUERN_F64, sum);
        }
        sum = sum ? ADD(sum, square) : square;
    }
    if (!sum)
        return NULL;
    qn_value *factor = DIV(qn_b_full(o->b, &sum->type, o->options->clip_norm), PLUS(SQRT(sum), 1e-6));
    return factor ? qn_b_binary(o->b, QN_OP_MIN, factor, qn_b_full(o->b, &factor->type, 1)) : NULL;
}

static void update(optimizer *o, qn_value *p, qn_value *g, const qn_tensor *initial)
{
    const qn_train_options *options = o->options;
    const decay_kind decay = decays[options->optimizer];
    qn_graph *graph = o->b->graph;
    qn_value *kept = p;
    o->param = p;
    if (options->weight_decay != 0 && decay == GRADIENT)
        g = ADD(g, SCALED(p, options->weight_decay));
    if (options->weight_decay != 0 && decay == DECOUPLED)
        kept = o->rate ? MUL(p, spread(o, SUB(number(o, 1), SCALED(o->rate, options->weight_decay))))
                       : SCALED(p, 1 - options->learning_rate * options->weight_decay);
    qn_value *next = SUB(kept, updates[options->optimizer](o, p, g));
    if (!next)
        return;
    qn_graph_add_output(graph, next, p->name, p->index);
    if (options->ema != 0) {
        qn_value *average = add_state(o, "ema");
        graph->input_initial[average->index] = initial;
        set_state(o, average, ADD(SCALED(average, options->ema), SCALED(next, 1 - options->ema)));
    }
}

void qn_optimizer_apply(qn_builder *b, const qn_train_options *options, qn_value *step, int n,
                        qn_value **params, qn_value **gradients)
{
    optimizer storage = { .b = b, .options = options }, *o = &storage;
    qn_value *t = step ? qn_b_convert(b, QUERN_F64, step) : NULL;
    o->rate = scheduled_rate(o, t);
    if (has_bias_correction(options)) {
        o->bias1 = bias_correction(o, options->beta1, t);
        o->bias2 = bias_correction(o, options->beta2, t);
    }
    qn_value *factor = options->clip_norm > 0 ? clip_factor(o, n, gradients) : NULL;
    for (int i = 0; i < n; i++) {
        o->param = params[i];
        qn_value *g = factor ? MUL(gradients[i], spread(o, factor)) : gradients[i];
        update(o, params[i], g, b->graph->input_initial[params[i]->index]);
    }
}
