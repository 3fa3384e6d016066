/* An end-to-end memory network of three hops (Sukhbaatar and others, 2015), which answers questions about short stories.
 *
 * Five tasks in the manner of bAbI (Weston and others, 2015) are learnt jointly by one model. Stories are told in words; the
 * model sees their numbers, the latest sentence first, and the order of words by position encoding alone. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/common/common.h"

enum { TASKS = 5, SENTENCES = 12, WORDS = 6, ROWS = SENTENCES + 1, VOCABULARY = 64 };
enum { STORIES = 10000, TESTS = 1000, BATCH = 32, EPOCHS = 30 }; /* stories of each task */
enum { WIDTH = 40, HOPS = 3 };

/* ---- words ---- */

static const char *const people[] = { "mary", "john", "daniel", "sandra" };
static const char *const places[] = { "kitchen", "garden", "office", "bedroom", "hallway", "bathroom" };
static const char *const things[] = { "apple", "football", "milk" };
static const char *const moves[] = { "moved", "went", "travelled", "journeyed" };
static const char *const takes[] = { "picked up", "got", "took", "grabbed" };
static const char *const drops[] = { "put down", "dropped", "left", "discarded" };
static const char *const numbers[] = { "none", "one", "two", "three" };
static const char *const animals[][2] = {
    { "mouse", "mice" }, { "sheep", "sheep" }, { "wolf", "wolves" }, { "cat", "cats" }
};
static const char *const pets[] = { "gertrude", "winona", "jessica", "emily" };
enum { PEOPLE = 4, PLACES = 6, THINGS = 3, ANIMALS = 4, VERBS = 4 };

/* The number of a word, the same from then on; 0 is no word. */
static int64_t number_of(const char *word, size_t length)
{
    static char known[VOCABULARY][16];
    static int64_t n = 1;
    for (int64_t i = 1; i < n; i++)
        if (strlen(known[i]) == length && memcmp(known[i], word, length) == 0)
            return i;
    if (n == VOCABULARY || length >= sizeof known[0]) {
        fprintf(stderr, "no room for the word '%.*s'\n", (int)length, word);
        exit(1);
    }
    memcpy(known[n], word, length);
    return n++;
}

/* ---- stories ---- */

typedef struct story {
    int n;
    char text[SENTENCES][64], question[64];
    const char *answer;
} story;

static int pick(uint64_t *random, int n)
{
    return (int)(n * example_uniform(random));
}

__attribute__((format(printf, 2, 3))) static void say(story *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(s->text[s->n++], sizeof s->text[0], format, args);
    va_end(args);
}

__attribute__((format(printf, 3, 4))) static void ask(story *s, const char *answer, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(s->question, sizeof s->question, format, args);
    va_end(args);
    s->answer = answer;
}

/* Where people and things are, as far as the story says: -1 where it does not. */
typedef struct world {
    int person[PEOPLE], thing[THINGS], owner[THINGS];
} world;

static void walk(story *s, world *w, uint64_t *random)
{
    const int who = pick(random, PEOPLE), where = pick(random, PLACES);
    if (w->person[who] == where)
        return;
    w->person[who] = where;
    say(s, "%s %s to the %s", people[who], moves[pick(random, VERBS)], places[where]);
    for (int i = 0; i < THINGS; i++)
        if (w->owner[i] == who)
            w->thing[i] = where;
}

/* Somebody whose place is known takes a thing that may be there, or leaves one. */
static void handle(story *s, world *w, uint64_t *random)
{
    const int who = pick(random, PEOPLE), what = pick(random, THINGS), verb = pick(random, VERBS);
    const int where = w->person[who];
    if (where < 0)
        return;
    if (w->owner[what] == who) {
        w->owner[what] = -1;
        say(s, "%s %s the %s", people[who], drops[verb], things[what]);
    } else if (w->owner[what] < 0 && (w->thing[what] < 0 || w->thing[what] == where)) {
        w->owner[what] = who;
        w->thing[what] = where;
        say(s, "%s %s the %s", people[who], takes[verb], things[what]);
    }
}

static int carried(const world *w, int who)
{
    int n = 0;
    for (int i = 0; i < THINGS; i++)
        n += w->owner[i] == who;
    return n;
}

static void single_fact(story *s, const world *w, int who, uint64_t *random)
{
    (void)random;
    ask(s, places[w->person[who]], "where is %s", people[who]);
}

static void two_facts(story *s, const world *w, int who, uint64_t *random)
{
    (void)who;
    const int what = pick(random, THINGS);
    if (w->thing[what] >= 0)
        ask(s, places[w->thing[what]], "where is the %s", things[what]);
}

static void yes_no(story *s, const world *w, int who, uint64_t *random)
{
    const bool is = pick(random, 2);
    const int other = (w->person[who] + 1 + pick(random, PLACES - 1)) % PLACES;
    ask(s, is ? "yes" : "no", "is %s in the %s", people[who], places[is ? w->person[who] : other]);
}

static void counting(story *s, const world *w, int who, uint64_t *random)
{
    (void)random;
    ask(s, numbers[carried(w, who)], "how many objects is %s carrying", people[who]);
}

/* Who a pet fears follows from what it is and what such animals fear. */
static void deduction(story *s, uint64_t *random)
{
    int fears[ANIMALS], kind[ANIMALS], order[2 * ANIMALS];
    for (int i = 0; i < ANIMALS; i++) {
        fears[i] = (i + 1 + pick(random, ANIMALS - 1)) % ANIMALS;
        kind[i] = pick(random, ANIMALS);
    }
    for (int i = 0; i < 2 * ANIMALS; i++) {
        const int k = pick(random, i + 1);
        order[i] = order[k];
        order[k] = i;
    }
    for (int i = 0; i < 2 * ANIMALS; i++) {
        const int k = order[i] % ANIMALS;
        if (order[i] < ANIMALS)
            say(s, "%s are afraid of %s", animals[k][1], animals[fears[k]][1]);
        else
            say(s, "%s is a %s", pets[k], animals[kind[k]][0]);
    }
    const int who = pick(random, ANIMALS);
    ask(s, animals[fears[kind[who]]][0], "what is %s afraid of", pets[who]);
}

typedef void (*ask_fn)(story *s, const world *w, int who, uint64_t *random);
static const struct {
    const char *name;
    ask_fn ask;      /* NULL: deduction */
    double handling; /* share of sentences in which a thing is taken or left */
} tasks[TASKS] = { { "single fact", single_fact, 0 },
                   { "two facts", two_facts, 0.4 },
                   { "yes/no", yes_no, 0 },
                   { "counting", counting, 0.7 },
                   { "deduction", NULL, 0 } };

static story tell(int task, uint64_t *random)
{
    story s = { 0 };
    if (!tasks[task].ask)
        deduction(&s, random);
    while (!s.answer) {
        const int n = 2 + pick(random, SENTENCES - 1);
        world w;
        s.n = 0;
        memset(&w, -1, sizeof w);
        while (s.n < n)
            (example_uniform(random) < tasks[task].handling ? handle : walk)(&s, &w, random);
        const int who = pick(random, PEOPLE);
        if (w.person[who] >= 0)
            tasks[task].ask(&s, &w, who, random);
    }
    return s;
}

static void write_words(const char *text, int64_t row[WORDS])
{
    for (int i = 0; *text && i < WORDS; i++) {
        const size_t length = strcspn(text, " ");
        row[i] = number_of(text, length);
        text += length + (text[length] == ' ');
    }
}

typedef struct data {
    quern_array x, y;
} data;

/* Questions [n, ROWS, WORDS] and answers [n], of the tasks by turns: a row for the question, then the story from its end. */
static data new_data(int64_t n, int first, int step, uint64_t *random)
{
    int64_t (*x)[ROWS][WORDS] = calloc((size_t)n, sizeof *x), *y = calloc((size_t)n, sizeof *y);
    int64_t *dims = malloc(3 * sizeof *dims);
    if (!x || !y || !dims)
        exit(1);
    memcpy(dims, (const int64_t[]){ n, ROWS, WORDS }, 3 * sizeof *dims);
    for (int64_t i = 0; i < n; i++) {
        const story s = tell((int)(first + i * step) % TASKS, random);
        write_words(s.question, x[i][0]);
        for (int k = 0; k < s.n; k++)
            write_words(s.text[s.n - 1 - k], x[i][1 + k]);
        y[i] = number_of(s.answer, strlen(s.answer));
    }
    return (data){ { QUERN_I64, 3, dims, x }, { QUERN_I64, 1, dims, y } };
}

static void data_free(data *d)
{
    free((void *)d->x.dims);
    free(d->x.data);
    free(d->y.data);
}

/* ---- the model ---- */

/* [VOCABULARY, WIDTH], normal of deviation 0.1; what is no word is 0 */
static quern_value *words_of(quern_builder *b, int k)
{
    char name[32];
    float is_word[VOCABULARY] = { 0 };
    for (int i = 1; i < VOCABULARY; i++)
        is_word[i] = 1;
    snprintf(name, sizeof name, "words%d.weight", k);
    quern_value *table =
        quern_param_normal(b, name, QUERN_F32, 2, (const int64_t[]){ VOCABULARY, WIDTH }, 0.1);
    return quern_mul(b, table, quern_constant(b, QUERN_F32, 2, (const int64_t[]){ VOCABULARY, 1 }, is_word));
}

/* rows [batch, n, WORDS] to [batch, n, WIDTH]: the sum of the words' vectors, weighed by where they are in the row */
static quern_value *encode(quern_builder *b, quern_value *rows, quern_value *table)
{
    float weight[WORDS][WIDTH];
    for (int j = 0; j < WORDS; j++)
        for (int k = 0; k < WIDTH; k++) {
            const float word = (float)(j + 1) / WORDS, part = (float)(k + 1) / WIDTH;
            weight[j][k] = 1 - word - part * (1 - 2 * word);
        }
    quern_value *position = quern_constant(b, QUERN_F32, 2, (const int64_t[]){ WORDS, WIDTH }, weight);
    quern_value *vectors = quern_mul(b, QUERN_OP(b, "gather", "axis = 0", table, rows), position);
    return QUERN_OP(b, "reduce", "kind = sum, axes = [2]", vectors);
}

/* The story's sentences as memory k: with a vector for how long ago each was. */
static quern_value *memory(quern_builder *b, quern_value *story, quern_value *table, int k)
{
    char name[32];
    snprintf(name, sizeof name, "times%d.weight", k);
    quern_value *times =
        quern_param_normal(b, name, QUERN_F32, 2, (const int64_t[]){ SENTENCES, WIDTH }, 0.1);
    return quern_add(b, encode(b, story, table), times);
}

/* Half of the units are linear, as in the paper's language model: answers of yes and no are learnt more surely so. */
static quern_value *half_relu(quern_builder *b, quern_value *u)
{
    quern_value *low = quern_slice(b, u, -1, 0, WIDTH / 2);
    quern_value *high = quern_slice(b, u, -1, WIDTH / 2, WIDTH);
    return QUERN_OP(b, "concatenate", "axis = 2", quern_relu(b, low), high);
}

/* What a hop writes is what the next one looks up, and the last table is that of answers: adjacent weight tying. */
static quern_builder *network(uint64_t seed)
{
    const quern_dim batch = QUERN_DIM("batch");
    quern_builder *b = quern_builder_new("memnet");
    quern_builder_seed(b, seed);
    quern_value *x = quern_input(b, "x", QUERN_I64, QUERN_SHAPE(batch, QUERN_N(ROWS), QUERN_N(WORDS)));
    quern_value *question = quern_slice(b, x, 1, 0, 1), *story = quern_slice(b, x, 1, 1, ROWS);
    quern_value *table = words_of(b, 0), *u = encode(b, question, table), *keys = memory(b, story, table, 0);
    for (int hop = 1; hop <= HOPS; hop++) {
        quern_value *found = QUERN_OP(
            b, "dot_general", "x_batch = [0], y_batch = [0], x_contract = [2], y_contract = [2]", u, keys);
        table = words_of(b, hop);
        keys = memory(b, story, table, hop);
        u = quern_add(b, u, quern_matmul(b, quern_softmax(b, found, -1), keys));
        u = hop < HOPS ? half_relu(b, u) : u;
    }
    u = quern_reshape(b, u, QUERN_SHAPE(batch, QUERN_N(WIDTH)));
    quern_output(b, quern_matmul(b, u, QUERN_OP(b, "transpose", "perm = [1, 0]", table)), "answers");
    return b;
}

/* Are fewer than 5 % of the answers to each task's unseen questions wrong? */
static bool test(quern_trainer *trainer, uint64_t *random)
{
    bool good = true;
    for (int task = 0; task < TASKS; task++) {
        data d = new_data(TESTS, task, 0, random);
        int64_t right;
        example_check(quern_trainer_eval(trainer, &d.x, &d.y, NULL, &right));
        printf("memnet: %s: %.1f %% of the test questions wrong\n", tasks[task].name,
               100.0 * (double)(TESTS - right) / TESTS);
        good = good && TESTS - right < TESTS / 20;
        data_free(&d);
    }
    return good;
}

int main(int argc, char **argv)
{
    const example e = example_parse(argc, argv, "memnet");
    const int64_t steps = (int64_t)EPOCHS * ((int64_t)STORIES * TASKS + BATCH - 1) / BATCH;
    const quern_train_options options = { .size = sizeof options,
                                          .loss = "cross_entropy",
                                          .optimizer = "adam",
                                          .learning_rate = 5e-3,
                                          .schedule = "linear",
                                          .schedule_steps = steps };
    uint64_t random = e.seed;
    data d = new_data((int64_t)STORIES * TASKS, 0, 1, &random);
    quern_trainer *trainer;
    example_check(quern_train(network(e.seed), &options, &e.compile, &trainer));
    example_train(&e, trainer, &d.x, &d.y, BATCH, EPOCHS);
    const bool good = e.dump || test(trainer, &random);
    quern_trainer_free(trainer);
    data_free(&d);
    return good || e.epochs ? 0 : 1;
}
