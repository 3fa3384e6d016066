/* A neural programmer-interpreter (Reed and de Freitas, 2016), which learns to add from the traces of programs.
 *
 * An LSTM, the core, runs programs: in each step it sees what the scratch pad's pointers stand on and which program runs, and says
 * whether that ends, or which program is called, with which arguments. A call begins with a state of 0; its caller's state waits.
 * Training goes over whole traces, of additions of up to 20 digits, cut into the calls they are made of. Running,
 * another model with the same parameters makes one step for many machines, each of which has a stack of states that are written in
 * place. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

/* ---- the scratch pad: two numbers, carries and the sum, each with a pointer ---- */

enum { IN1, IN2, CARRIES, OUT, PAD_ROWS, NO_ROW = PAD_ROWS, N_ROWS };
enum { BLANK = 10, DIGITS };                     /* what a place holds: 0 to 9, or nothing */
enum { LEFT = 10, RIGHT, NO_ACTION, N_ACTIONS }; /* of a pointer; 0 to 9: writes a digit where it stands */
enum { COLUMNS = 128 };

typedef struct pad {
    int8_t at[PAD_ROWS][COLUMNS];
    int pointer[PAD_ROWS];
} pad;

static void put_number(pad *p, int row, const char *digits)
{
    const int n = (int)strlen(digits);
    for (int i = 0; i < n; i++)
        p->at[row][COLUMNS - n + i] = (int8_t)(digits[i] - '0');
}

static pad new_pad(const char *a, const char *b)
{
    pad p;
    memset(p.at, BLANK, sizeof p.at);
    put_number(&p, IN1, a);
    put_number(&p, IN2, b);
    for (int i = 0; i < PAD_ROWS; i++)
        p.pointer[i] = COLUMNS - 1;
    return p;
}

static int seen(const pad *p, int row)
{
    return p->at[row][p->pointer[row]];
}

/* Is there such a place? */
static bool act(pad *p, int row, int action)
{
    if (row >= PAD_ROWS || action >= NO_ACTION)
        return false;
    if (action < LEFT)
        p->at[row][p->pointer[row]] = (int8_t)action;
    else
        p->pointer[row] += action == LEFT ? -1 : 1;
    return p->pointer[row] >= 0 && p->pointer[row] < COLUMNS;
}

/* ---- programs ---- */

enum { ADD, ADD1, CARRY, LSHIFT, ACT, PROGRAMS };
static const char *const program_names[] = { "ADD", "ADD1", "CARRY", "LSHIFT", "ACT" };
static const char *const row_names[] = { "IN1", "IN2", "CARRY", "OUT", "-" };

/* What a step decides: the program's end, or a call. */
enum { END, PROGRAM, ROW, ACTION, DECISIONS };
typedef int64_t decision[DECISIONS];
static const int choices[DECISIONS] = { 2, PROGRAMS, N_ROWS, N_ACTIONS };

/* The teacher: step n of a program, as one learns it at school. */
static void right_step(const pad *p, int program, int n, decision d)
{
    static const int64_t carry[3][2] = { { CARRIES, LEFT }, { CARRIES, 1 }, { CARRIES, RIGHT } };
    int sum = 0, blank = 0;
    for (int row = IN1; row <= CARRIES; row++) {
        sum += seen(p, row) == BLANK ? 0 : seen(p, row);
        blank += seen(p, row) == BLANK;
    }
    memcpy(d, (const decision){ true, ACT, NO_ROW, NO_ACTION }, sizeof(decision));
    if (program == ADD && (n % 2 || blank < 3))
        memcpy(d, (const decision){ false, n % 2 ? LSHIFT : ADD1, NO_ROW, NO_ACTION }, sizeof(decision));
    else if (program == ADD1 && n == 0)
        memcpy(d, (const decision){ false, ACT, OUT, sum % 10 }, sizeof(decision));
    else if (program == ADD1 && n == 1 && sum >= 10)
        memcpy(d, (const decision){ false, CARRY, NO_ROW, NO_ACTION }, sizeof(decision));
    else if (program == CARRY && n < 3)
        memcpy(d, (const decision){ false, ACT, carry[n][0], carry[n][1] }, sizeof(decision));
    else if (program == LSHIFT && n < PAD_ROWS)
        memcpy(d, (const decision){ false, ACT, n, LEFT }, sizeof(decision));
}

/* ---- what the model sees of a step ---- */

/* Places in the table of everything that is seen: four digits, then the program's own arguments */
enum { SEEN = PAD_ROWS + 2, SEEN_ROWS = PAD_ROWS * DIGITS + N_ROWS + N_ACTIONS };
/* A step of a trace: what is seen, the program, whether it has just been called; what is right; whether this counts */
enum { AT_PROGRAM = SEEN, AT_FRESH, AT_RIGHT, AT_COUNTS = AT_RIGHT + DECISIONS, FIELDS };

typedef struct call {
    int program, row, action;
    bool fresh; /* no step is made */
} call;

static void look(const pad *p, const call *c, int64_t step[])
{
    for (int i = 0; i < PAD_ROWS; i++)
        step[i] = i * DIGITS + seen(p, i);
    step[PAD_ROWS] = PAD_ROWS * DIGITS + c->row;
    step[PAD_ROWS + 1] = PAD_ROWS * DIGITS + N_ROWS + c->action;
    step[AT_PROGRAM] = c->program;
    step[AT_FRESH] = c->fresh;
}

/* ---- traces to learn from ---- */

enum { LONGEST = 20, TIME = 64, TRACES = 1024, BATCH = 16, EPOCHS = 16 };

/* Rows of TIME steps, with one call behind the other */
typedef struct traces {
    int64_t n; /* rows */
    int in_row;
    int64_t (*steps)[TIME][FIELDS];
} traces;

static void keep(traces *t, int n, int64_t (*steps)[FIELDS])
{
    if (t->in_row + n > TIME) {
        t->n++;
        t->in_row = 0;
    }
    memcpy(t->steps[t->n][t->in_row], steps, (size_t)n * sizeof *steps);
    t->in_row += n;
}

/* Runs a program as is right, and keeps the steps of it and of what it calls. */
static void teach(traces *t, pad *p, call c)
{
    int64_t steps[2 * (LONGEST + 1) + 1][FIELDS];
    bool ends = false;
    int n = 0;
    for (; !ends; n++) {
        int64_t *right = &steps[n][AT_RIGHT];
        c.fresh = n == 0;
        look(p, &c, steps[n]);
        right_step(p, c.program, n, right);
        steps[n][AT_COUNTS] = true;
        ends = right[END];
        if (!ends && right[PROGRAM] == ACT)
            act(p, (int)right[ROW], (int)right[ACTION]);
        else if (!ends)
            teach(t, p, (call){ (int)right[PROGRAM], (int)right[ROW], (int)right[ACTION], true });
    }
    keep(t, n, steps);
}

static void random_number(char *out, int digits, uint64_t *random)
{
    for (int i = 0; i < digits; i++)
        out[i] = (char)('0' + (i == 0) + (int)((9 + (i > 0)) * example_uniform(random)));
    out[digits] = 0;
}

static traces new_traces(uint64_t *random)
{
    enum { MOST = TRACES * (LONGEST + 1) * 14 / (TIME - 2 * LONGEST - 3) }; /* rows */
    traces t = { .steps = calloc(MOST, sizeof *t.steps) };
    if (!t.steps)
        exit(1);
    for (int i = 0; i < TRACES; i++) {
        char a[LONGEST + 1], b[LONGEST + 1];
        random_number(a, 1 + (int)(LONGEST * example_uniform(random)), random);
        random_number(b, 1 + (int)(LONGEST * example_uniform(random)), random);
        pad p = new_pad(a, b);
        teach(&t, &p, (call){ ADD, NO_ROW, NO_ACTION, true });
    }
    t.n++;
    return t;
}

/* ---- the model: of n steps, wherever they come from ---- */

enum { STATE = 64, EMBEDDING = 32, HIDDEN = 64, KEY = 16 };

/* Steps [n, FIELDS] to what the core takes, [n, STATE + EMBEDDING]: an encoder of what is seen, and the program's embedding. */
static quern_value *encode(quern_builder *b, quern_value *steps)
{
    quern_value *s = quern_slice(b, steps, 1, 0, SEEN),
                *program = quern_slice(b, steps, 1, AT_PROGRAM, AT_FRESH);
    s = quern_embedding(b, s, SEEN_ROWS, STATE, "encoder.seen");
    s = quern_relu(b, QUERN_OP(b, "reduce", "kind = sum, axes = [1]", s));
    s = quern_relu(b, quern_linear(b, s, STATE, "encoder.state"));
    program = quern_embedding(b, program, PROGRAMS, EMBEDDING, "programs.embedding");
    program = QUERN_OP(b, "reduce", "kind = sum, axes = [1]", program); /* of one */
    return QUERN_OP(b, "concatenate", "axis = 1", s, program);
}

/* The core's states [n, HIDDEN] to the logits of what it decides. The program is looked up by a key. */
static void decide(quern_builder *b, quern_value *h, quern_value *logits[DECISIONS])
{
    quern_value *keys =
        quern_param_normal(b, "programs.keys", QUERN_F32, 2, (const int64_t[]){ KEY, PROGRAMS }, 1);
    logits[END] = quern_linear(b, h, choices[END], "end");
    logits[PROGRAM] = quern_matmul(b, quern_linear(b, h, KEY, "key"), keys);
    logits[ROW] = quern_linear(b, h, choices[ROW], "row");
    logits[ACTION] = quern_linear(b, h, choices[ACTION], "action");
}

/* 1 in steps that go on from a state, 0 in those that begin: [n, 1] */
static quern_value *goes_on(quern_builder *b, quern_value *steps)
{
    quern_value *fresh = quern_convert(b, quern_slice(b, steps, 1, AT_FRESH, AT_FRESH + 1), QUERN_F32);
    return quern_sub(b, quern_scalar(b, QUERN_F32, 1), fresh);
}

/* A step of the core. carried: h and c; slices: what it takes, and whether it goes on */
static void core(void *user, quern_builder *b, quern_value **carried, quern_value *const *slices,
                 quern_value **step)
{
    (void)user;
    carried[1] = quern_mul(b, carried[1], slices[1]);
    step[0] = carried[0] =
        quern_lstm_cell(b, slices[0], quern_mul(b, carried[0], slices[1]), &carried[1], "core");
}

/* Rows of traces [BATCH, TIME, FIELDS] to the loss of each step. */
static quern_builder *learner(uint64_t seed)
{
    enum { N = TIME * BATCH };
    quern_builder *b = quern_builder_new("npi");
    quern_builder_seed(b, seed);
    quern_value *steps =
        quern_input(b, "steps", QUERN_I64, QUERN_SHAPE(QUERN_N(BATCH), QUERN_N(TIME), QUERN_N(FIELDS)));
    steps = QUERN_OP(b, "transpose", "perm = [1, 0, 2]", steps);
    steps = quern_reshape(b, steps, QUERN_SHAPE(QUERN_N(N), QUERN_N(FIELDS)));
    quern_value *scanned[] = { encode(b, steps), goes_on(b, steps) }, *h, *logits[DECISIONS];
    for (int i = 0; i < 2; i++)
        scanned[i] = quern_reshape(
            b, scanned[i], QUERN_SHAPE(QUERN_N(TIME), QUERN_N(BATCH), QUERN_N(i ? 1 : STATE + EMBEDDING)));
    quern_value *zero = quern_broadcast(b, quern_scalar(b, QUERN_F32, 0),
                                        QUERN_SHAPE(QUERN_N(BATCH), QUERN_N(HIDDEN))),
                *carried[] = { zero, zero };
    quern_scan(b, 2, carried, 2, scanned, 1, &h, core, NULL);
    decide(b, quern_reshape(b, h, QUERN_SHAPE(QUERN_N(N), QUERN_N(HIDDEN))), logits);

    /* where a program ends, nothing is called */
    quern_value *loss = NULL,
                *weight = quern_convert(b, quern_slice(b, steps, 1, AT_COUNTS, FIELDS), QUERN_F32);
    const quern_loss_options each = { .size = sizeof each, .reduction = "none" };
    for (int i = 0; i < DECISIONS; i++) {
        quern_value *right = quern_slice(b, steps, 1, AT_RIGHT + i, AT_RIGHT + i + 1);
        quern_value *wrong = quern_loss(b, "cross_entropy", logits[i],
                                        quern_reshape(b, right, QUERN_SHAPE(QUERN_N(N))), &each);
        wrong = quern_mul(b, quern_reshape(b, wrong, QUERN_SHAPE(QUERN_N(N), QUERN_N(1))), weight);
        loss = i ? quern_add(b, loss, wrong) : wrong;
        if (i == END)
            weight = quern_mul(
                b, weight, quern_sub(b, quern_scalar(b, QUERN_F32, 1), quern_convert(b, right, QUERN_F32)));
    }
    quern_output(b, loss, "loss");
    return b;
}

/* ---- machines that run programs ---- */

enum { DEPTH = 8, MACHINES = 256 };

typedef struct machine {
    pad pad;
    call stack[DEPTH];
    int depth; /* 0: it has ended */
} machine;

/* The states in which calls wait lie in the model, in rows, DEPTH for each machine; a run writes n of them in place. */
static quern_builder *runner(uint64_t seed)
{
    quern_builder *b = quern_builder_new("machines");
    quern_builder_seed(b, seed);
    const quern_dim n = QUERN_DIM("n");
    quern_value *steps = quern_input(b, "steps", QUERN_I64, QUERN_SHAPE(n, QUERN_N(AT_RIGHT)));
    quern_value *place = quern_input(b, "place", QUERN_I64, QUERN_SHAPE(n, QUERN_N(1)));
    quern_value *stack[2], *in[2] = { encode(b, steps), goes_on(b, steps) }, *now[2], *h, *logits[DECISIONS];
    for (int i = 0; i < 2; i++) {
        stack[i] = quern_state(b, i ? "stack.c" : "stack.h", QUERN_F32, 2,
                               (const int64_t[]){ MACHINES * DEPTH, HIDDEN }, NULL);
        now[i] = QUERN_OP(b, "gather_nd", "batch_dims = 0", stack[i], place);
    }
    core(NULL, b, now, in, &h);
    for (int i = 0; i < 2; i++)
        quern_set_state(b, stack[i], QUERN_OP(b, "scatter_nd", "kind = set", stack[i], place, now[i]));
    decide(b, h, logits);
    for (int i = 0; i < DECISIONS; i++) {
        logits[i] = QUERN_OP(b, "arg_reduce", "kind = max, axis = 1, last = false", logits[i]);
        logits[i] = quern_reshape(b, logits[i], QUERN_SHAPE(n, QUERN_N(1)));
    }
    quern_output(b, quern_op(b, "concatenate", DECISIONS, logits, "axis = 1"), "decisions");
    return b;
}

typedef struct hall {
    quern_model *model;
    quern_session *session;
    int steps, place, decisions; /* its buffers */
} hall;

static hall new_hall(const example *e, quern_trainer *trainer)
{
    hall h;
    quern_module *module;
    example_check(quern_builder_finish(runner(e->seed), &module));
    example_check(quern_compile(module, &e->compile, &h.model));
    quern_module_free(module);
    example_check(quern_session_new(h.model, NULL, &h.session));
    example_check(quern_session_share_states(h.session, quern_trainer_session(trainer)));
    h.steps = quern_session_find(h.session, "steps");
    h.place = quern_session_find(h.session, "place");
    h.decisions = quern_session_find(h.session, "decisions");
    return h;
}

static void hall_free(hall *h)
{
    quern_session_free(h->session);
    quern_model_free(h->model);
}

static void print_call(const call *c, int depth)
{
    static const char *const moves[] = { "LEFT", "RIGHT", "-" };
    printf("%*s%s", 2 * depth, "", program_names[c->program]);
    if (c->program == ACT && c->action < LEFT)
        printf(" WRITE %s %d", row_names[c->row], c->action);
    else if (c->program == ACT)
        printf(" PTR %s %s", row_names[c->row], moves[c->action - LEFT]);
    printf("\n");
}

/* Does what the model decided. A call too deep, or an act that cannot be, ends the machine. */
static void follow(machine *m, const int64_t d[DECISIONS], bool print)
{
    if (d[END]) {
        m->depth--;
        return;
    }
    const call next = { (int)d[PROGRAM], (int)d[ROW], (int)d[ACTION], true };
    if (print)
        print_call(&next, m->depth);
    m->stack[m->depth - 1].fresh = false;
    if (next.program != ACT && m->depth < DEPTH)
        m->stack[m->depth++] = next;
    else if (next.program != ACT || !act(&m->pad, next.row, next.action))
        m->depth = 0;
}

/* Runs all machines, at most MACHINES, to their ends; those that find none in far more steps than addition takes are stopped. */
static void run_machines(hall *h, int n_machines, machine *machines, bool print)
{
    enum { MOST_STEPS = 20 * COLUMNS };
    static int64_t steps[MACHINES][AT_RIGHT], place[MACHINES];
    for (int k = 0; k < MOST_STEPS; k++) {
        int64_t n = 0;
        for (int i = 0; i < n_machines; i++) {
            const machine *m = &machines[i];
            if (m->depth == 0)
                continue;
            look(&m->pad, &m->stack[m->depth - 1], steps[n]);
            place[n++] = i * DEPTH + m->depth - 1;
        }
        if (n == 0)
            return;
        quern_array decisions;
        example_check(quern_session_bind(
            h->session, h->steps, &(quern_array){ QUERN_I64, 2, (const int64_t[]){ n, AT_RIGHT }, steps }));
        example_check(quern_session_bind(h->session, h->place,
                                         &(quern_array){ QUERN_I64, 2, (const int64_t[]){ n, 1 }, place }));
        example_check(quern_session_run(h->session));
        example_check(quern_session_get(h->session, h->decisions, &decisions));
        for (int64_t i = 0; i < n; i++)
            follow(&machines[place[i] / DEPTH], (const int64_t *)decisions.data + i * DECISIONS, print);
    }
}

static machine new_machine(const char *a, const char *b)
{
    return (machine){ new_pad(a, b), { { ADD, NO_ROW, NO_ACTION, true } }, 1 };
}

/* What the pad says the sum is */
static void read_sum(const pad *p, char sum[COLUMNS + 1])
{
    int n = 0;
    for (int i = 0; i < COLUMNS; i++)
        if (p->at[OUT][i] != BLANK)
            sum[n++] = (char)('0' + p->at[OUT][i]);
    sum[n] = 0;
}

static void right_sum(const char *a, const char *b, char sum[COLUMNS + 1])
{
    const int na = (int)strlen(a), nb = (int)strlen(b), n = na > nb ? na : nb;
    int carry = 0;
    char digits[COLUMNS + 1];
    for (int i = 0; i < n; i++) {
        carry += (i < na ? a[na - 1 - i] - '0' : 0) + (i < nb ? b[nb - 1 - i] - '0' : 0);
        digits[n - i] = (char)('0' + carry % 10);
        carry /= 10;
    }
    digits[0] = '1';
    memcpy(sum, digits + !carry, (size_t)(n + carry));
    sum[n + carry] = 0;
}

static bool test(hall *h, uint64_t *random)
{
    enum { SUMS = 1000, TEST_DIGITS = 100 };
    static machine machines[MACHINES];
    static char a[MACHINES][TEST_DIGITS + 1], b[MACHINES][TEST_DIGITS + 1];
    int right = 0;
    for (int done = 0, n; done < SUMS; done += n) {
        n = SUMS - done < MACHINES ? SUMS - done : MACHINES;
        for (int i = 0; i < n; i++) {
            random_number(a[i], TEST_DIGITS, random);
            random_number(b[i], TEST_DIGITS, random);
            machines[i] = new_machine(a[i], b[i]);
        }
        run_machines(h, n, machines, false);
        for (int i = 0; i < n; i++) {
            char wanted[COLUMNS + 1], sum[COLUMNS + 1];
            right_sum(a[i], b[i], wanted);
            read_sum(&machines[i].pad, sum);
            right += machines[i].depth == 0 && strcmp(sum, wanted) == 0;
        }
    }
    printf("npi: %d of %d sums of %d digits right\n", right, SUMS, TEST_DIGITS);
    return right == SUMS;
}

static void trace(hall *h, const char *a, const char *b)
{
    machine m = new_machine(a, b);
    char sum[COLUMNS + 1];
    print_call(&m.stack[0], 0);
    run_machines(h, 1, &m, true);
    read_sum(&m.pad, sum);
    printf("%s + %s = %s\n", a, b, sum);
}

/* Takes --trace A B out of the command line. */
static bool find_trace(int *argc, char **argv, const char *numbers[2])
{
    for (int i = 1; i + 2 < *argc; i++) {
        if (strcmp(argv[i], "--trace") != 0)
            continue;
        for (int k = 0; k < 2; k++) {
            numbers[k] = argv[i + 1 + k];
            const size_t n = strlen(numbers[k]);
            if (n == 0 || n >= COLUMNS - 1 || strspn(numbers[k], "0123456789") != n) {
                fprintf(stderr, "--trace takes two numbers of at most %d digits, not '%s'\n", COLUMNS - 2,
                        numbers[k]);
                exit(2);
            }
        }
        for (*argc -= 3; i < *argc; i++)
            argv[i] = argv[i + 3];
        return true;
    }
    return false;
}

int main(int argc, char **argv)
{
    const char *numbers[2];
    const bool traced = find_trace(&argc, argv, numbers);
    const example e = example_parse(argc, argv, "npi");
    uint64_t random = e.seed;
    traces t = new_traces(&random);
    t.n -= t.n % BATCH;
    const quern_array x = { QUERN_I64, 3, (const int64_t[]){ t.n, TIME, FIELDS }, t.steps };
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "output",
                                          .optimizer = "adam",
                                          .learning_rate = 3e-3,
                                          .schedule = "linear",
                                          .schedule_steps = EPOCHS * t.n / BATCH };
    quern_trainer *trainer;
    example_check(quern_train(learner(e.seed), &options, &e.compile, &trainer));
    example_train(&e, trainer, &x, NULL, BATCH, EPOCHS);
    bool good = true;
    if (!e.dump) {
        hall h = new_hall(&e, trainer);
        if (traced)
            trace(&h, numbers[0], numbers[1]);
        else
            good = test(&h, &random);
        hall_free(&h);
    }
    quern_trainer_free(trainer);
    free(t.steps);
    return good || e.epochs ? 0 : 1;
}
